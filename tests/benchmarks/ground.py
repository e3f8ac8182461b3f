# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What experiments work against: a real OpenBao, the reference control planes of both contracts, a CA made by openssl, and systemd hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from reference_server.client import ReferenceServer, Tls, VaultLink
from world import CertificateAuthority, Fleet, KeyPair, OpenBao
from world.ca import SERVER_NAMES

from .controller import BenchError, Controller

__all__ = ["FLEET", "PASSWORD", "USER", "Agents", "Ground"]

_NETWORK = "10.231.37.0/24"
_HERE = Path(__file__).resolve().parent

FLEET = "secret/data/fleet"
"""Where the tokens of a fleet lie that is rotated through Vault."""

USER, PASSWORD = "admin", "benchmark-password"
"""The operator's login at oxmon."""


@dataclass(frozen=True)
class Agents:
    """A set of agents to enrol, one for each host, and where a local host keeps its files."""

    names: Mapping[str, str]
    folder: Path

    def hosts(self, **more: Any) -> dict[str, dict[str, Any]]:
        """Inventory: each host knows its deployment_hash and, as ``place``, a directory of its own."""
        return {host: {"deployment_hash": name, "place": str(self.folder / host), **more} for host, name in self.names.items()}


def _spread(directory: Path) -> None:
    """Have ext4 give each folder in *directory* a part of the disk of its own, as hosts have disks of their own.

    Without a journal it walks past every inode that was freed within some minutes to make a new one beside them, which charges a run for what those
    before it have tidied up. Where the file system knows no such thing there is nothing to do.
    """
    if shutil.which("chattr") is not None:
        subprocess.run(["chattr", "+T", str(directory)], check=False, capture_output=True)


class Ground:
    """Everything is started when first asked for, and ended with the context."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Ground:
        # A short path, since ssh puts sockets below it.
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        _spread(self.directory)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @cached_property
    def controller(self) -> Controller:
        """The control node."""
        return Controller(Path(tempfile.mkdtemp(prefix="c-", dir=self.directory)))

    @cached_property
    def ca(self) -> CertificateAuthority:
        """Who signed the servers' certificate."""
        return CertificateAuthority(self.directory / "ca", "muster.agents benchmark CA")

    def fleet_of(self, count: int) -> Fleet:
        """Describe *count* systemd hosts."""
        return Fleet(self.directory / "ssh", name="muster-bench", network=_NETWORK, suites=["bookworm"] * count)

    @cached_property
    def pair(self) -> KeyPair:
        """The servers' certificate, good for loopback and for the hosts' gateway."""
        return self.ca.server("server", tuple(dict.fromkeys((*SERVER_NAMES, self.fleet_of(0).gateway))))

    @cached_property
    def bao(self) -> OpenBao:
        """OpenBao on loopback, with KV v1 at ``status_panel`` and ``shipped``, and KV v2 at ``secret``."""
        return self._bao(("127.0.0.1",))

    def _bao(self, addresses: tuple[str, ...]) -> OpenBao:
        server = OpenBao(self.directory / f"openbao-{len(addresses)}", ca=self.ca, addresses=addresses, server=self.pair)
        server.start()
        self._stack.callback(server.stop)
        for mount, version in (("status_panel", 1), ("shipped", 1), ("secret", 2)):
            server.enable_kv(mount, version)
        return server

    @cached_property
    def documented(self) -> ReferenceServer:
        """Stacker as its guide tells it, without a Vault of its own."""
        return self._stacker("documented", self.bao, ("127.0.0.1:0",))

    @cached_property
    def shipped(self) -> ReferenceServer:
        """Stacker as it ships, which keeps tokens in OpenBao."""
        return self._stacker("shipped", self.bao, ("127.0.0.1:0",), "shipped")

    @cached_property
    def fleet(self) -> ReferenceServer:
        """Stacker as its guide tells it, which takes over what OpenBao's KV v2 holds below ``secret/data/fleet``."""
        return self._stacker("documented", self.bao, ("127.0.0.1:0",), FLEET)

    @cached_property
    def oxmon(self) -> ReferenceServer:
        """The shipped oxmon with its limits."""
        tls = Tls(str(self.pair.cert), str(self.pair.key))
        arguments = ["--plane", "oxmon", "--oxmon-user", f"{USER}:{PASSWORD}", "--oxmon-require-agent-auth", "--oxmon-rate-limits"]
        return self._stack.enter_context(ReferenceServer.start("shipped", tls=tls, arguments=arguments))

    def _stacker(self, contract: str, bao: OpenBao, listen: tuple[str, ...], mount: str = "") -> ReferenceServer:
        link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), mount) if mount else None
        tls = Tls(str(self.pair.cert), str(self.pair.key))
        server = ReferenceServer.start(contract, tls=tls, vault=link, listen=listen, arguments=["--plane", "stacker"])
        return self._stack.enter_context(server)

    @cached_property
    def variables(self) -> dict[str, Any]:
        """Variables of plays on local hosts."""
        return self._variables(self.documented, self.bao, "127.0.0.1")

    def _variables(self, server: ReferenceServer, bao: OpenBao, address: str, mount: str = "status_panel") -> dict[str, Any]:
        url = next(url for url in server.urls if f"//{address}:" in url)
        return {
            "stacker_url": url, "vault_address": f"https://{address}:{bao.port}", "vault_token": bao.root_token, "vault_token_file": str(bao.token_file),
            "ca_file": str(self.ca.ca_file), "agent_version": "1.0.0", "vault_agent_path_prefix": mount, "templates": str(_HERE / "templates"),
        }

    @cached_property
    def fleet_variables(self) -> dict[str, Any]:
        """Variables of plays on the controller against the fleet's control plane."""
        return self._variables(self.fleet, self.bao, "127.0.0.1", FLEET)

    @cached_property
    def shipped_variables(self) -> dict[str, Any]:
        """Variables of plays on local hosts against the shipped contract."""
        return self._variables(self.shipped, self.bao, "127.0.0.1", "shipped")

    @cached_property
    def authority(self) -> Mapping[str, str]:
        """A CA as an operator has one, made by openssl: paths of its ``certificate`` and (unencrypted) ``key``."""
        folder = self.directory / "authority"
        folder.mkdir()
        key, certificate = folder / "ca.key", folder / "ca.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out",
                   str(certificate), "-subj", "/CN=Benchmark CA", "-days", "3650", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        subprocess.run(command, check=True, capture_output=True)
        return {"certificate": str(certificate), "key": str(key)}

    def agents(self, count: int) -> Agents:
        """Return names for *count* new agents on hosts with empty directories, which stay until the end."""
        folder = Path(tempfile.mkdtemp(prefix="hosts-", dir=self.directory))
        names = {f"host-{number:05}": str(uuid.uuid4()) for number in range(count)}
        for host in names:
            (folder / host).mkdir()
        return Agents(names, folder)

    @contextmanager
    def systemd_hosts(self, count: int) -> Iterator[tuple[dict[str, dict[str, Any]], dict[str, Any]]]:
        """Start *count* hosts, and servers that they can reach. Yields the inventory and the variables of plays on them."""
        if os.geteuid() != 0 or shutil.which("podman") is None:
            raise BenchError("systemd hosts need root and podman")
        fleet = self.fleet_of(count)
        try:
            fleet.up(self.ca.ca_file)
            bao = self._bao(("127.0.0.1", fleet.gateway))
            server = self._stacker("documented", bao, ("127.0.0.1:0", f"{fleet.gateway}:0"))
            common = {"ansible_user": "root", "ansible_ssh_private_key_file": str(fleet.key_file), "ansible_python_interpreter": "/usr/bin/python3"}
            yield {host.name: {"ansible_host": host.address, **common} for host in fleet.hosts}, self._variables(server, bao, fleet.gateway)
        finally:
            fleet.down()
