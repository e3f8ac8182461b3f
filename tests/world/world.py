# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole world in one directory: hosts, OpenBao and the control plane, brought up together and repaired in place."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .ca import SERVER_NAMES, CertificateAuthority, write_private
from .errors import WorldError
from .hosts import DEFAULT_NETWORK, Fleet, Host
from .machine import install_packages, packages_for, require_root
from .openbao import OpenBao
from .processes import port_in_use
from .reference import Reference, VaultAccess, build_releases, control_plane_arguments

__all__ = ["Settings", "World", "agent_name"]

CONTRACTS = ("documented", "shipped")
_SECOND = 2  # from the first contract's ports to the second's
_REPORTS = 4  # from the port of a control plane to that of its gRPC listener

_SERVER_POLICY = """
path "status_panel/*" { capabilities = ["create", "read", "update", "delete", "list"] }
"""

# What an operator's token needs for enrolling: the agents' secrets, their policies, and tokens for them. Not root.
_OPERATOR_POLICY = """
path "status_panel/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "secret/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "sys/mounts" { capabilities = ["read"] }
path "sys/internal/ui/mounts/*" { capabilities = ["read"] }
path "sys/policies/acl/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "auth/token/create" { capabilities = ["create", "update", "sudo"] }
path "auth/token/create-orphan" { capabilities = ["create", "update", "sudo"] }
path "auth/token/create/*" { capabilities = ["create", "update"] }
path "auth/token/roles/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "auth/token/lookup-accessor" { capabilities = ["create", "update"] }
path "auth/token/revoke-accessor" { capabilities = ["create", "update"] }
path "auth/token/lookup" { capabilities = ["create", "update"] }
path "auth/token/revoke" { capabilities = ["create", "update"] }
"""

# Ansible's own namespace for the to_uuid filter, so that the summary knows the names which the demo's variables compute.
_TO_UUID = uuid.UUID("361E6D51-FAEC-444A-9079-341386DA8E2E")


def agent_name(host: Host) -> str:
    """Return what ``inventory_hostname | ansible.builtin.to_uuid`` gives for ``host``."""
    return str(uuid.uuid5(_TO_UUID, host.name))


@dataclass(frozen=True)
class Settings:
    """What a world is made of. Kept in ``world.json``, so that a later command needs no options."""

    contract: str = "documented"
    name: str = "muster"
    network: str = DEFAULT_NETWORK
    suites: tuple[str, ...] = ("bookworm", "trixie")
    control_plane_port: int = 18443
    control_port: int = 18444
    both_contracts: bool = False
    vault_port: int = 18200
    trust_ca: bool = False
    agent_version: str = "1.0.0"

    @classmethod
    def load(cls, file: Path) -> Settings:
        """Read settings back. Raises WorldError when the file is none of ours."""
        try:
            values = json.loads(file.read_text())
            return cls(**{**values, "suites": tuple(values["suites"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorldError(f"{file} cannot be read ({error}).", "Remove its directory and bring the world up again.") from error


class World:
    """Builds and repairs a world. Everything secret is in files of mode 0600 below ``directory``."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory.resolve()
        self.settings = settings
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.fleet = Fleet(self.directory / "ssh", name=settings.name, network=settings.network, suites=settings.suites)
        names = dict.fromkeys((*SERVER_NAMES, self.fleet.gateway))
        self.ca = CertificateAuthority(self.directory / "ca", f"muster.agents world CA ({settings.name})")
        self._server = self.ca.server(f"server-{self.fleet.gateway}", tuple(names))
        self._listen = ("127.0.0.1", self.fleet.gateway) if settings.suites else ("127.0.0.1",)
        self.vault = OpenBao(self.directory / "openbao", ca=self.ca, addresses=self._listen, port=settings.vault_port, storage="raft", server=self._server)
        self.server_token_file = self.directory / "openbao" / "server-token"
        self.operator_token_file = self.directory / "openbao" / "operator-token"
        self.references = {settings.contract: self._reference(settings.contract, 0)}
        if settings.both_contracts:
            other = next(contract for contract in CONTRACTS if contract != settings.contract)
            self.references[other] = self._reference(other, _SECOND)
        self.reference = self.references[settings.contract]

    def _reference(self, contract: str, offset: int) -> Reference:
        """Describe the control planes of one contract, at the world's ports plus ``offset``."""
        return Reference(
            self.directory / ("reference" if offset == 0 else f"reference-{contract}"),
            contract=contract,
            listen=[f"{address}:{self.settings.control_plane_port + offset}" for address in self._listen],
            control_port=self.settings.control_port + offset,
            server=self._server,
            # As shipped, no server asks for client certificates; collectors show self-signed ones, which any that asks would refuse.
            client_ca=self.ca.ca_file if contract == "documented" else None,
            vault=VaultAccess(self.vault.url, self.ca.ca_file, self.server_token_file, "status_panel"),
            releases=self.releases,
            arguments=control_plane_arguments(
                self.directory / "operator", f"{self._listen[-1]}:{self.settings.control_plane_port + offset + _REPORTS}", self.ca),
        )

    # -- where things are

    @property
    def releases(self) -> Path:
        """Folder of the release artefacts that the control plane serves at ``/releases/``."""
        return self.directory / "releases"

    @property
    def inventory(self) -> Path:
        """Ansible inventory of the hosts (group ``agents``)."""
        return self.directory / "inventory.yml"

    @property
    def demo_variables(self) -> Path:
        """Extra variables with which ``muster.agents.deploy`` enrols these hosts."""
        return self.directory / "demo-vars.yml"

    @property
    def control_plane_url(self) -> str:
        """The control plane, by an address that controller and hosts can both use."""
        return f"https://{self._listen[-1]}:{self.settings.control_plane_port}"

    @property
    def vault_url(self) -> str:
        """OpenBao, by an address that controller and hosts can both use."""
        return f"https://{self._listen[-1]}:{self.settings.vault_port}"

    @property
    def artefact(self) -> Path:
        """The release artefact of the contract's agent."""
        face = "status-panel" if self.settings.contract == "documented" else "status"
        return self.releases / f"{face}-{self.settings.agent_version}-linux-any"

    # -- life

    def up(self) -> None:
        """Bring everything up that is not, and write inventory and variables. On a running world this takes a second or two."""
        with self._locked():
            if self.settings.suites:
                require_root("Building and starting systemd hosts")
                install_packages(packages_for())
            self._check_ports()
            # Written before anything is started, so that `down` finds a world that failed half-way.
            write_private(self.directory / "world.json", json.dumps(asdict(self.settings), indent=2))
            # First the hosts: their network brings the address on which the servers listen.
            started = self.fleet.up(self.ca.ca_file if self.settings.trust_ca else None)
            self._start_vault()
            build_releases(self.releases, self.settings.agent_version)
            for reference in self.references.values():
                reference.start()
            self._check_reach(started)
            self._write_files()

    def down(self) -> None:
        """End everything this world started and remove its directory."""
        with self._locked():
            for reference in self.references.values():
                reference.stop()
            self.vault.stop()
            if self.settings.suites:
                self.fleet.down()
        shutil.rmtree(self.directory)

    def status(self) -> dict[str, str]:
        """Return ``part -> state`` for every part of the world."""
        parts = {host.name: self.fleet.running(host) for host in self.fleet.hosts}
        parts["openbao"] = self.vault.running()
        parts["control plane"] = self.reference.running()
        return {part: "running" if runs else "stopped" for part, runs in parts.items()}

    # -- parts

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory.parent / f".{self.directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_ports(self) -> None:
        wanted = [("OpenBao", "--vault-port", self.settings.vault_port, self.vault.running())]
        for number, reference in enumerate(self.references.values()):
            for option, port in (("--control-plane-port", self.settings.control_plane_port), ("--control-port", self.settings.control_port)):
                wanted.append(("the control plane", option, port + number * _SECOND, reference.running()))
        for what, option, port, ours in wanted:
            if not ours and port_in_use("127.0.0.1", port):
                raise WorldError(
                    f"Port {port} for {what} is taken by another program (perhaps another world).",
                    f"Stop it, or choose a free port with {option}.",
                )

    def _start_vault(self) -> None:
        self.vault.start()
        self.vault.enable_kv("status_panel", 1)
        self.vault.enable_kv("secret", 2)
        self._token("stacker-server", _SERVER_POLICY, self.server_token_file)
        self._token("operator", _OPERATOR_POLICY, self.operator_token_file)

    def _token(self, policy: str, rules: str, file: Path) -> None:
        self.vault.policy(policy, rules)
        if file.exists() and self.vault.call("GET", "auth/token/lookup-self", token=file.read_text().strip()).status == 200:
            return
        write_private(file, self.vault.token([policy], ttl="720h", no_parent=True))

    def _check_reach(self, names: list[str]) -> None:
        for host in self.fleet.hosts:
            for port in (self.settings.control_plane_port, self.settings.vault_port):
                if host.name in names and not self.fleet.reaches(host, port):
                    raise WorldError(
                        f"{host.name} cannot reach {self.fleet.gateway}:{port} on this machine.",
                        f"Let the firewall accept TCP from {self.settings.network}, for example: ufw allow from {self.settings.network}",
                    )

    def _write_files(self) -> None:
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.fleet.key_file),
            "ansible_ssh_common_args": ("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ServerAliveInterval=10"),
            "ansible_ssh_pipelining": True,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        first = {suite: next(host for host in self.fleet.hosts if host.suite == suite) for suite in self.settings.suites}
        agents = {host.name: {"ansible_host": host.address} for host in first.values()}
        more = {host.name: {"ansible_host": host.address} for host in self.fleet.hosts if host.name not in agents}
        _write_yaml(self.inventory, {"agents": {"vars": common, "hosts": agents}, "more": {"vars": common, "hosts": more}})
        _write_yaml(self.demo_variables, self.variables())
        # Beside the inventory too, where a play can override them, which it cannot with --extra-vars.
        beside = self.directory / "group_vars" / "all"
        beside.mkdir(parents=True, exist_ok=True)
        if not (beside / "agents.yml").is_symlink():
            (beside / "agents.yml").symlink_to(self.demo_variables)
        _write_yaml(beside / "world.yml", self.description())

    def description(self) -> dict[str, Any]:
        """Return what scenarios with other control planes need to know of this world. Paths and addresses, no secrets."""
        host = self._listen[-1]
        ports = {contract: number * _SECOND for number, contract in enumerate(self.references)}
        planes = {
            contract: {
                "url": f"https://{host}:{self.settings.control_plane_port + offset}",
                "api": f"http://127.0.0.1:{self.settings.control_port + offset}",
                "reports": f"{host}:{self.settings.control_plane_port + offset + _REPORTS}",
            }
            for contract, offset in ports.items()
        }
        return {
            "world_control_planes": planes,
            "world_operator": str(self.directory / "operator"),
            "world_releases": str(self.releases),
            "world_ca": str(self.ca.ca_file),
            "world_ca_key": str(self.ca.key_file),
        }

    def variables(self) -> dict[str, Any]:
        """Return the variables with which the collection's roles enrol these hosts."""
        checksum = self.artefact.with_name(f"{self.artefact.name}.sha256").read_text().split()[0]
        return {
            "agent_control_plane": "stacker",
            "agent_control_plane_url": self.control_plane_url,
            "agent_name": "{{ inventory_hostname | ansible.builtin.to_uuid }}",
            "agent_version": self.settings.agent_version,
            "agent_capabilities": ["docker", "compose", "logs"],
            "agent_ca_cert": str(self.ca.ca_file),
            "agent_vault": {
                "url": self.vault_url,
                "ca_cert": str(self.ca.ca_file),
                "auth_method": "token",
                "token_file": str(self.operator_token_file),
            },
            "agent_binary_url": f"{self.control_plane_url}/releases/{self.artefact.name}",
            "agent_binary_checksum": f"sha256:{checksum}",
        }

    def environment(self) -> dict[str, str]:
        """Return the shell variables that point other tools at this world. Paths and addresses, no secrets."""
        return {
            "MUSTER_INVENTORY": str(self.inventory),
            "MUSTER_VARS": str(self.demo_variables),
            "MUSTER_CA_CERT": str(self.ca.ca_file),
            "MUSTER_CONTROL_PLANE_URL": self.control_plane_url,
            "MUSTER_CONTROL_URL": f"http://127.0.0.1:{self.settings.control_port}",
            "MUSTER_VAULT_URL": self.vault_url,
            "MUSTER_VAULT_TOKEN_FILE": str(self.operator_token_file),
            "MUSTER_SSH_KEY": str(self.fleet.key_file),
        }


def _write_yaml(file: Path, content: object) -> None:
    """Write JSON, which is YAML, so that nothing but the standard library is needed."""
    text = "# Written by `python -m world up`; changes are lost.\n" + json.dumps(content, indent=2) + "\n"
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(file)
