# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook deploy on a real host over ssh: binaries that must be refused, secrets that must not show, and an end in the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reference_agent.build import build

from reference_server.client import ReferenceServer, Tls, VaultLink
from world.ca import CertificateAuthority
from world.hosts import Fleet
from world.openbao import OpenBao

from .canary import found_in

pytestmark = pytest.mark.thorough

NETWORK = "10.231.30.0/24"
GATEWAY = "10.231.30.1"
NAME = "7b1f6a52-5d0e-4a59-9f57-2f1f2f9a9f11"


@dataclass(frozen=True)
class Ground:
    """One bare host with systemd, a control plane and an OpenBao that it can reach."""

    fleet: Fleet
    server: ReferenceServer
    bao: OpenBao
    ca_file: Path
    folder: Path

    def deploy(self, *arguments: str, fault: str = "", **variables: Any) -> tuple[int, str]:
        """Run the playbook with *variables* on top of what fits this ground. Returns its status and all that it printed."""
        artefact = next(path for path in build(self.folder / "good") if path.name.startswith("status-panel"))
        given = {
            "agent_hosts": "all", "agent_control_plane": "stacker", "agent_control_plane_url": self.server.urls[1], "agent_name": NAME,
            "agent_version": "1.0.0", "agent_capabilities": ["logs"], "agent_ca_cert": str(self.ca_file), "agent_binary_src": str(artefact),
            "agent_binary_checksum": checksum(artefact), "agent_vault": {
                "url": self.bao.url.replace("127.0.0.1", GATEWAY), "ca_cert": str(self.ca_file), "token_file": str(self.bao.token_file)},
            "ansible_python_interpreter": "/usr/bin/python3", "service_cache_directory": str(self.folder / "cache"), **variables}
        file = self.folder / "variables.json"
        file.write_text(json.dumps(given))
        host = self.fleet.hosts[0]
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")), "muster.agents.deploy", "-i", f"{host.address},", "--user=root",
            f"--private-key={self.fleet.key_file}", "-e", f"@{file}", *arguments,
            "--ssh-common-args=-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=30s"]
        environment = {
            **os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_NOCOLOR": "1"}
        if fault:
            environment["MUSTER_AGENTS_TEST_FAULT"] = fault
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
        return done.returncode, done.stdout + done.stderr

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
        document: dict[str, Any] = json.loads(self.on_host("cat", f"/var/lib/muster/stacker/{NAME}/receipt.json"))
        return document

    def secrets(self) -> list[str]:
        """What may not show: the agent's token, its Vault token, and the operator's."""
        found = self.on_host("sh", "-c", f"cd /var/lib/muster/stacker/{NAME}/generations/* && cat token && echo && cat vault_token").split()
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
                yield Ground(fleet, server, bao, authority.ca_file, folder)
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
    places = "/var/lib/muster /opt/agent /usr/local/bin/status-panel /etc/systemd/system/status-panel.service"
    assert ground.on_host("sh", "-c", f"ls -d {places} 2>/dev/null; true") == ""


def test_a_deploy_that_dies_in_the_gate_is_finished_by_the_next_one_and_shows_no_secret(ground: Ground) -> None:
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
    assert [agent["name"] for agent in ground.server.agents()] == [NAME]
    ground.quiet()
    code, output = ground.deploy()
    assert (code, "changed=0" in output) == (0, True), output[-3000:]
    assert ground.mutations() == 0
