# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cert_check and the playbook check by ansible-playbook: against a real control plane's certificate, from controller and host, and over a fleet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .agents import CONTRACTS, REGISTER, Agent, World, orders
from .authority import Authority, openssl
from .controller import Controller

CHECK = "muster.agents.cert_check"
PASSPHRASE = "passphrase-of-a-key-91ad"


def port(world: World) -> str:
    """Host and port of a control plane that is there."""
    return world.stackers["documented"].url.removeprefix("https://")


def test_a_server_and_its_files_are_checked_from_controller_and_host(world: World, controller: Controller, tmp_path: Path) -> None:
    certificate = openssl("s_client", "-connect", port(world), "-servername", "localhost")
    served = tmp_path / "served.pem"
    served.write_text(certificate[certificate.index("-----BEGIN"):certificate.index("-----END CERTIFICATE-----") + 26])
    authority = Authority(tmp_path, PASSPHRASE)
    authority.by_hand(tmp_path / "agent", "agent-7")
    key = tmp_path / "agent" / "agent.key"
    openssl("rsa", "-in", str(key), "-aes256", "-passout", f"pass:{PASSPHRASE}", "-out", str(tmp_path / "locked.key"))
    common = {
        "endpoints": [{"host": port(world), "file": str(served)}, "localhost:1"], "ca_certs": [str(world.ca_file), str(authority.root_file)],
        "files": [
            {"path": str(tmp_path / "agent" / "agent.crt"), "key": str(key), "purpose": "client", "name": "agent"},
            {"path": str(tmp_path / "agent" / "agent.crt"), "key": str(tmp_path / "locked.key"), "name": "locked"},
        ],
        "intermediates": [str(authority.issuing_file)], "ignore": ["missing_intermediate"], "retries": 0,
    }
    (tmp_path / "passphrase-file").write_text(f"{PASSPHRASE}\n")
    options: dict[str, Mapping[str, Any]] = {
        "controller": {**common, "passphrase": PASSPHRASE, "prometheus_file": str(tmp_path / "m.prom"), "json_file": str(tmp_path / "m.json")},
        "host": {**common, "from": "host", "passphrase_file": str(tmp_path / "passphrase-file")},
    }
    for arguments in (["--check"], ["-vvvv"]):
        done = controller.each(CHECK, options, arguments=arguments).good()
        assert (tmp_path / "m.prom").exists() is (arguments != ["--check"])
        assert PASSPHRASE not in done.output
    results = {host: done.result(host)["results"] for host in options}
    for host, items in results.items():
        assert [(item["verdict"], item["reason"]) for item in items] == [("ok", "ok"), ("unreachable", "refused"), ("ok", "ok"), ("ok", "ok")], items
        assert (items[0]["file_match"], items[0]["chain_valid"], items[0]["host_match"]) == (True, True, True)
        assert [item["key_match"] for item in items] == [None, None, True, True]
        assert {item["source"] for item in items} == {host}
    same = ("fingerprint_sha256", "not_after", "chain_depth", "tls_version", "verdict", "reason", "problems", "subject_alt_names")
    assert [{name: item[name] for name in same} for item in results["host"]] == [{name: item[name] for name in same} for item in results["controller"]]
    assert json.loads((tmp_path / "m.json").read_text())["summary"]["unreachable"] == 1
    # The memory of the second run: the first was a dry one.
    assert results["controller"][1]["failures"] == 1


def test_the_task_fails_when_told_to_and_still_tells_everything(controller: Controller, tmp_path: Path) -> None:
    options = {"files": [str(tmp_path / "nothing.pem")], "fail_on": ["unreachable"]}
    done = controller.each(CHECK, {"bad": options, "wrong": {"files": [], "endpoints": ["a:b"]}})
    assert done.code != 0
    assert (done.result("bad")["failed"], done.result("bad")["reason"], done.result("bad")["summary"]["unreachable"]) == (True, "file_missing", 1)
    assert (done.result("wrong")["failed"], done.result("wrong")["reason"]) == (True, "invalid_input")


class Fleet:
    """Hosts that are directories, and the playbook check over them."""

    def __init__(self, world: World, controller: Controller, tmp_path: Path) -> None:
        self.world = world
        self.controller = controller
        self.folder = tmp_path
        self.agents = {contract: Agent(world, contract, tmp_path / contract, vault=False) for contract in CONTRACTS}
        self.authority = Authority(tmp_path, PASSPHRASE)

    def check(self, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the playbook with *variables* on top of what fits these hosts."""
        hosts = {
            name: {"agent_name": agent.name, "agent_control_plane_url": agent.stacker.url, "agent_store": str(agent.directory / "store"),
                   "check_files": [{"path": str(self.folder / f"{name}-pair" / "agent.crt"), "key": str(self.folder / f"{name}-pair" / "agent.key")}]}
            for name, agent in self.agents.items()}
        given = {
            "agent_control_plane": "stacker", "agent_version": "1.0.0", "agent_ca_cert": str(self.world.ca_file), "agent_become": False,
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "check_units": [], "check_seen": False, "check_health_url": "",
            "check_ca_certs": [str(self.authority.file), str(self.world.ca_file)], "check_endpoints": [port(self.world)], **variables}
        inventory = self.folder / "inventory.json"
        inventory.write_text(json.dumps({"agents": {"hosts": hosts, "vars": given}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "muster.agents.check", "-i", str(inventory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240,
                              env={**self.controller.environment(), "MUSTER_TEST_RESULTS": str(self.folder / "results.jsonl")})


@pytest.fixture
def fleet(world: World, controller: Controller, tmp_path: Path) -> Fleet:
    made = Fleet(world, controller, tmp_path)
    controller.each(REGISTER, orders(made.agents)).good()
    for name, agent in made.agents.items():
        agent.heartbeat()
        made.authority.by_hand(tmp_path / f"{name}-pair", name)
    world.quiet()
    return made


def test_a_whole_fleet_is_checked_in_one_table_without_a_change(world: World, fleet: Fleet) -> None:
    before = {name: agent.everything() for name, agent in fleet.agents.items()}
    done = fleet.check()
    assert done.returncode == 0, done.stdout + done.stderr
    for name, agent in fleet.agents.items():
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(f'"{name} ')]
        assert [agent.name, "ok"] == line.split()[1:3]
        assert "365" in line or "364." in line
        assert agent.secret() not in done.stdout + done.stderr
        assert agent.everything() == before[name]
    assert f'"{port(world)} ' in done.stdout
    assert "changed=0" in done.stdout
    assert world.mutations() == []


def test_a_refused_credential_and_a_bad_certificate_end_the_run_with_a_failure(fleet: Fleet) -> None:
    documented, shipped = fleet.agents["documented"], fleet.agents["shipped"]
    (newest,) = (documented.root / "generations").iterdir()
    (newest / "token").write_text("another-token-that-nobody-knows")
    fleet.authority.by_hand(fleet.folder / "shipped-pair", "shipped", days=3)
    done = fleet.check()
    assert done.returncode != 0
    verdicts = {line.split()[0].strip('"'): line.split()[2] for line in done.stdout.splitlines() if documented.name in line or shipped.name in line}
    assert verdicts == {"documented": "critical", "shipped": "critical"}
    assert "2 of 3 are critical" in done.stdout
    tolerated = fleet.check("-e", json.dumps({"check_fail_on": ["expired"]}))
    assert tolerated.returncode == 0, tolerated.stdout
