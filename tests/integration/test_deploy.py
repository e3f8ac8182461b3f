# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook deploy on a real host over ssh: binaries that must be refused, secrets that must not show, and an end in the gate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from reference_agent.build import build

from reference_server.client import ReferenceServer, Tls, VaultLink
from world.ca import CertificateAuthority
from world.hosts import Fleet
from world.openbao import OpenBao
from world.processes import free_port

from .canary import found_in
from .controller import Running

pytestmark = pytest.mark.thorough

NETWORK = "10.231.30.0/24"
GATEWAY = "10.231.30.1"
PLACES = "/var/lib/muster /opt/agent /usr/local/bin/status-panel /etc/systemd/system/status-panel.service"


@dataclass(frozen=True)
class Ground:
    """One bare host with systemd, a control plane and an OpenBao that it can reach, and the agent's name there."""

    fleet: Fleet
    server: ReferenceServer
    bao: OpenBao
    ca_file: Path
    folder: Path
    name: str = ""

    def fresh(self) -> Ground:
        """This ground with the host bare again, no record at the control plane, and a name that nobody has used."""
        self.bao.unseal()
        self.fleet.down()
        self.fleet.up()
        self.server.reset()
        return replace(self, name=str(uuid.uuid4()))

    def vault(self, **changes: str) -> dict[str, Any]:
        """The operator's way to OpenBao."""
        return {"url": self.bao.url.replace("127.0.0.1", GATEWAY), "ca_cert": str(self.ca_file), "token_file": str(self.bao.token_file), **changes}

    def deploy(self, *arguments: str, **how: Any) -> tuple[int, str]:
        """Run the playbook to its end; see :meth:`start`. Returns its status and all that it printed."""
        done = self.start(*arguments, **how).end()
        return done.code, done.output

    def start(self, *arguments: str, fault: str = "", hosts: Mapping[str, Mapping[str, Any]] | None = None, **variables: Any) -> Running:
        """Start the playbook with *variables* on top of what fits this ground.

        The host goes by each name in *hosts* at once, which has variables of its own; that is one name when they are not given.
        """
        artefact = next(path for path in build(self.folder / "good") if path.name.startswith("status-panel"))
        given = {
            "agent_control_plane": "stacker", "agent_control_plane_url": self.server.urls[1], "agent_name": self.name,
            "agent_version": "1.0.0", "agent_capabilities": ["logs"], "agent_ca_cert": str(self.ca_file), "agent_binary_src": str(artefact),
            "agent_binary_checksum": checksum(artefact), "agent_vault": self.vault(), "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_host": self.fleet.hosts[0].address, "service_cache_directory": str(self.folder / "cache"), **variables}
        mark, directory = uuid.uuid4().hex, self.folder / f"run-{uuid.uuid4().hex}"
        directory.mkdir()
        inventory = {"agents": {"hosts": {host: {**given, **own} for host, own in (hosts or {"host": {}}).items()}}}
        (directory / "inventory.json").write_text(json.dumps(inventory))
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")), "muster.agents.deploy", "-i", str(directory / "inventory.json"), "--user=root",
            f"--private-key={self.fleet.key_file}", *arguments,
            "--ssh-common-args=-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=30s"]
        environment = {
            **os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_NOCOLOR": "1",
            "MUSTER_AGENTS_TEST_FAULT": fault, "MUSTER_TEST_RUN": mark}
        with (directory / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        return Running(process, directory, mark)

    def on_host(self, *command: str) -> str:
        """Run a command on the host."""
        return self.fleet.execute(self.fleet.hosts[0], *command)

    def quiet(self) -> None:
        """Count mutating requests from here."""
        self.server.reset_counters()
        self.bao.reset_mutations()

    def mutations(self) -> int:
        """How many requests changed a record at the control plane or in OpenBao since then."""
        return int(self.server.counters()["stacker"]["mutating"]) + self.bao.mutations()

    def receipt(self) -> Mapping[str, Any]:
        """The receipt on the host."""
        document: dict[str, Any] = json.loads(self.on_host("cat", f"/var/lib/muster/stacker/{self.name}/receipt.json"))
        return document

    def token(self) -> str:
        """The token that the host holds."""
        return self.on_host("cat", f"/var/lib/muster/stacker/{self.name}/generations/{self.receipt()['generation']}/token")

    def secrets(self) -> list[str]:
        """What may not show: the agent's token, its Vault token, and the operator's."""
        found = self.on_host("sh", "-c", f"cd /var/lib/muster/stacker/{self.name}/generations/* && cat token && echo && cat vault_token").split()
        return [*found, self.bao.root_token]


def checksum(artefact: Path) -> str:
    """The announced digest of a release."""
    return "sha256:" + artefact.with_name(f"{artefact.name}.sha256").read_text().split()[0]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("deploy")
    authority = CertificateAuthority(folder / "ca")
    fleet = Fleet(folder / "fleet", name="muster-deploy", network=NETWORK, suites=("bookworm",))
    fleet.down()
    fleet.up()
    pair = authority.server("all", ("127.0.0.1", GATEWAY))
    try:
        with OpenBao(ca=authority, server=pair, addresses=("127.0.0.1", GATEWAY)) as bao:
            bao.enable_kv("status_panel", 1)
            link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), "status_panel")
            tls = Tls(str(pair.cert), str(pair.key))
            with ReferenceServer.start("documented", tls=tls, vault=link, listen=("127.0.0.1:0", f"{GATEWAY}:0")) as server:
                yield Ground(fleet, server, bao, authority.ca_file, folder, str(uuid.uuid4()))
    finally:
        fleet.down()


def test_a_binary_that_cannot_be_right_is_refused_before_anything_is_written(ground: Ground) -> None:
    foreign = build(ground.folder / "foreign", broken="arch")[0]
    url = "https://releases.example.com/status-panel"
    cases = {
        "agent_binary_checksum is missing": {"agent_binary_src": "", "agent_binary_url": url, "agent_binary_checksum": ""},
        "another SHA-256": {"agent_binary_checksum": "sha256:" + "0" * 64},
        "is built for": {"agent_binary_src": str(foreign), "agent_binary_checksum": checksum(foreign)},
    }
    ground.quiet()
    for sentence, variables in cases.items():
        code, output = ground.deploy(**variables)
        assert (code, sentence in " ".join(output.split())) == (2, True), output
    assert ground.mutations() == 0
    assert ground.on_host("sh", "-c", f"ls -d {PLACES} 2>/dev/null; true") == ""


def test_a_vault_that_is_down_stops_a_deploy_before_it_begins_and_the_next_one_does_it_all(ground: Ground) -> None:
    ground.quiet()
    nobody = {"agent_name": str(uuid.uuid4()), "agent_vault": ground.vault(url=f"https://{GATEWAY}:{free_port(GATEWAY)}")}
    ground.bao.seal()
    code, output = ground.deploy(hosts={"refused": nobody, "sealed": {}})
    said = " ".join(output.split())
    assert (code, "unreachable=0 failed=1 " in said) == (2, True), output
    assert f"Vault: {nobody['agent_vault']['url']} refuses connections: check that the server runs" in said
    assert f"Vault at {ground.vault()['url']} is sealed: unseal it and run again; nothing was written." in said
    assert ground.server.counters()["stacker"]["mutating"] == 0
    assert ground.server.agents() == []
    assert ground.on_host("sh", "-c", f"ls -d {PLACES} 2>/dev/null; true") == ""
    ground.bao.unseal()
    assert ground.mutations() == 0
    code, output = ground.deploy()
    assert code == 0, output[-3000:]
    assert ground.receipt()["phase"] == "COMMITTED"
    assert ground.on_host("systemctl", "is-active", "status-panel").strip() == "active"
    ground.quiet()
    code, output = ground.deploy()
    assert (code, "changed=0" in output) == (0, True), output[-3000:]
    assert ground.mutations() == 0


def test_a_vault_that_goes_away_in_the_middle_of_a_deploy_leaves_the_credential_on_the_host_and_the_next_one_goes_on(ground: Ground) -> None:
    ground = ground.fresh()
    ground.quiet()
    running = ground.start(fault="after_settle=stop")
    running.wait_halted(1)
    ground.bao.seal()
    for process in running.halted():
        os.kill(process, signal.SIGCONT)
    cut = running.end()
    ground.bao.unseal()
    assert (cut.code, "is sealed: unseal it and run again" in " ".join(cut.output.split())) == (2, True), cut.output
    assert ground.receipt()["phase"] == "ISSUED"
    token = ground.token()
    assert ground.server.accepts(ground.name, token)
    code, output = ground.deploy()
    assert code == 0, output[-3000:]
    assert (ground.receipt()["phase"], ground.token()) == ("COMMITTED", token)
    assert ground.server.counters()["stacker"]["mutating"] == 1
    assert [agent["name"] for agent in ground.server.agents()] == [ground.name]


def test_a_deploy_that_dies_in_the_gate_is_finished_by_the_next_one_and_shows_no_secret(ground: Ground) -> None:
    ground = ground.fresh()
    code, output = ground.deploy("-vvvv", "--diff", fault="before_commit=kill")
    assert code != 0
    assert ground.receipt()["phase"] == "STORED"
    assert found_in(output, ground.secrets()) == []
    code, output = ground.deploy("-vvvv", "--diff", fault="after_commit=raise")
    assert code == 2
    assert "test switch" in output
    assert found_in(output, ground.secrets()) == []
    code, output = ground.deploy("-vvvv", "--diff")
    assert code == 0, output[-3000:]
    assert ground.receipt()["phase"] == "COMMITTED"
    assert found_in(output, ground.secrets()) == []
    assert found_in(output + ground.secrets()[0], ground.secrets()) != []
    assert [agent["name"] for agent in ground.server.agents()] == [ground.name]
    ground.quiet()
    code, output = ground.deploy()
    assert (code, "changed=0" in output) == (0, True), output[-3000:]
    assert ground.mutations() == 0
