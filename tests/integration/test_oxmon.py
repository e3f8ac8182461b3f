# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""oxmon's agents from a bare host to a withdrawn one, in both contracts, and the guide's way from open reports to checked tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from reference_agent.build import build
from reference_agent.metrics_agent import flat_toml

from reference_server.client import ReferenceServer, Tls
from world import OpenBao
from world.ca import CertificateAuthority

from .agents import CONTRACTS, REGISTER, TEMPLATES
from .controller import Controller

HEALTH = "muster.agents.agent_health"
INFO = "muster.agents.agent_info"
USER, PASSWORD = "automation", "canary-password-of-oxmon-7f3e"
BY_HAND = "canary-token-of-nobody-000000000000000000000="

Servers = Mapping[str, ReferenceServer]


@pytest.fixture(scope="module")
def shared_servers(tls: Tls) -> Iterator[Servers]:
    """One oxmon of each contract."""
    arguments = ["--plane", "oxmon", "--oxmon-user", f"{USER}:{PASSWORD}", "--oxmon-require-agent-auth"]
    started = {contract: ReferenceServer.start(contract, tls=tls, arguments=arguments) for contract in CONTRACTS}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def servers(shared_servers: Servers) -> Servers:
    """The servers without records, checking the tokens of agents."""
    for server in shared_servers.values():
        server.reset()
    return shared_servers


@dataclass(frozen=True)
class Agent:
    """One identity on one host."""

    server: ReferenceServer
    ca_file: Path
    directory: Path
    vault: OpenBao | None = None
    name: str = field(default_factory=lambda: f"edge.{uuid.uuid4()}")

    @property
    def root(self) -> Path:
        """Its folder in the store."""
        return self.directory / "store" / "oxmon" / self.name

    @property
    def file(self) -> Path:
        """The agent's own file."""
        return self.directory / "etc" / "agent.toml"

    @property
    def leaf(self) -> str:
        """Its entry in Vault."""
        return f"secret/data/oxmon/agents/{self.name}"

    def control_plane(self, **changes: Any) -> dict[str, Any]:
        """Where and as whom to ask."""
        given = {
            "control_plane": "oxmon", "url": self.server.url, "ca_cert": str(self.ca_file), "name": self.name, "username": USER, "password": PASSWORD,
            "grpc_endpoint": self.server.addresses["oxmon_grpc"]}
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_register; None removes one."""
        given: dict[str, Any] = {
            **self.control_plane(), "description": "rack 4", "system_info": {}, "capabilities": [], "store": str(self.directory / "store"),
            "files": [{"path": str(self.file), "src": str(TEMPLATES / "agent.toml.j2"), "format": "toml"}],
        }
        if self.vault is not None:
            given["vault"] = {"url": self.vault.url, "ca_cert": str(self.vault.ca_file), "token_file": str(self.vault.token_file)}
            given["vault_paths"] = [{"path": self.leaf, "fields": {"token": "token"}}]
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    def gate(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_health."""
        return self.control_plane(**{"store": str(self.directory / "store"), "units": [], "attempts": 10, "delay": 1.0, **changes})

    def token(self) -> str:
        """The token in the agent's own file."""
        return str(flat_toml(self.file.read_text())["auth_token"])

    def stored(self) -> str:
        """The token of the newest generation in the store."""
        newest = max((self.root / "generations").iterdir(), key=lambda folder: int(folder.name))
        return (newest / "token").read_text()

    def check_healthy(self) -> None:
        """Fail unless store, file, Vault and control plane agree on one token."""
        record = self.server.agent(self.name)
        assert record["whitelisted"]
        assert self.server.accepts(self.name, self.token())
        assert self.stored() == self.token()
        receipt = json.loads((self.root / "receipt.json").read_text())
        assert receipt["agent_id"] == record["agent_id"]
        if self.vault is not None:
            found = self.vault.read(self.leaf)
            assert found is not None
            assert found["data"]["token"] == self.token()


Run = Callable[..., Any]


@pytest.fixture
def fleet(servers: Servers, ca: CertificateAuthority, tmp_path: Path) -> dict[str, Agent]:
    """One host in the documented contract, two in the shipped one."""
    hosts = ("documented-1", "shipped-1", "shipped-2")
    return {host: Agent(servers[host.partition("-")[0]], ca.ca_file, tmp_path / host) for host in hosts}


@pytest.fixture
def run(controller: Controller) -> Run:
    """Run a module once on every host of a fleet. Options come from each agent's *options*, *gate* or *control_plane*."""

    def each(module: str, fleet: Mapping[str, Agent], kind: str = "options", *arguments: str, **changes: Any) -> Any:
        names = {host: {"endpoint": agent.server.addresses["oxmon_grpc"]} for host, agent in fleet.items()}
        given = {host: getattr(agent, kind)(**changes) for host, agent in fleet.items()}
        options = sorted({name for one in given.values() for name in one})
        task = {"name": module, module: {name: f"{{{{ given.{name} | default(omit) }}}}" for name in options}}
        return controller.run([task], {host: {**names[host], "given": given[host]} for host in fleet}, arguments=arguments, forks=len(fleet))

    return each


def quiet(servers: Servers) -> None:
    """Count from here on."""
    for server in servers.values():
        server.reset_counters()


def mutations(servers: Servers) -> list[int]:
    """The mutating requests since then, by server."""
    return [int(server.counters()["oxmon"]["mutating"]) for server in servers.values()]


@dataclass
class Processes:
    """Running reference agents by host."""

    binary: Mapping[str, Path]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def restart(self, host: str, agent: Agent) -> None:
        """Start the agent with the file it has now."""
        self.stop(host)
        output = (agent.directory / "agent.log").open("ab")
        command = [sys.executable, str(self.binary[host.partition("-")[0]]), str(agent.file)]
        self.running[host] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        output.close()

    def stop(self, host: str) -> None:
        """End one, if it runs."""
        process = self.running.pop(host, None)
        if process is not None:
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """A way to run reference agents; all are ended afterwards."""
    started = Processes(dict(zip(CONTRACTS, build(tmp_path / "release", agent="metrics-agent"))))
    yield started
    for host in list(started.running):
        started.stop(host)


def enforce(controller: Controller, fleet: Mapping[str, Agent], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the playbook that tells whether the control plane may ask for tokens."""
    hosts = {
        host: {
            "ansible_connection": "local", "agent_control_plane": "oxmon", "agent_control_plane_url": agent.server.url, "agent_ca_cert": str(agent.ca_file),
            "agent_name": agent.name, "agent_username": USER, "agent_password": PASSWORD, "agent_grpc_endpoint": agent.server.addresses["oxmon_grpc"],
        }
        for host, agent in fleet.items()
    }
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"agents": {"hosts": hosts}}))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "muster.agents.enforce"]
    return subprocess.run(command, env=controller.environment(), cwd=directory, capture_output=True, text=True, check=False, timeout=120)


def test_from_a_bare_host_to_a_withdrawn_one(
    servers: Servers, fleet: dict[str, Agent], run: Run, processes: Processes, controller: Controller, bao: OpenBao,
) -> None:
    fleet["shipped-2"] = replace(fleet["shipped-2"], vault=bao)
    foretold = run(REGISTER, fleet, "options", "--check", "--diff").good()
    assert mutations(servers) == [0, 0]
    assert {foretold.result(host)["action"] for host in fleet} == {"registered"}

    done = run(REGISTER, fleet, "options", "--diff", "-vvv").good()
    for host, agent in fleet.items():
        agent.check_healthy()
        result = done.result(host)
        assert (result["action"], result["changed"], result["proof"]) == ("registered", True, {"accepted": True, "how": "empty_batch"})
        assert agent.server.agent(agent.name)["description"] == "rack 4"
        assert agent.token() not in done.output + done.events
    assert PASSWORD not in done.output
    assert mutations(servers) == [1, 2]
    assert servers["shipped"].counters()["by_route"]["oxmon_login"] == 1
    assert controller.spool == []

    quiet(servers)
    again = run(REGISTER, fleet).good()
    assert {(again.result(host)["action"], again.result(host)["changed"]) for host in fleet} == {("unchanged", False)}
    assert mutations(servers) == [0, 0]

    silent = run(HEALTH, fleet, "gate", attempts=1, delay=0.1)
    for host, agent in fleet.items():
        # The documented server tells nothing of reports; there the accepted token is all the evidence there is.
        assert bool(silent.result(host).get("failed")) is host.startswith("shipped"), silent.result(host)
        processes.restart(host, agent)
    proved = run(HEALTH, fleet, "gate").good()
    assert {proved.result(host)["action"] for host in fleet if host.startswith("shipped")} == {"committed"}

    told = run(INFO, fleet, "control_plane").good()
    for host, agent in fleet.items():
        (record,) = told.result(host)["agents"]
        assert (record["name"], record["agent_id"]) == (agent.name, agent.server.agent(agent.name)["agent_id"])
        assert told.result(host)["server"]["enforced"] is (True if host.startswith("shipped") else None)
        if host.startswith("shipped"):
            assert record["reports"] > 0
    listed = run(INFO, fleet, "control_plane", name=None).good()
    assert {record["name"] for record in listed.result("shipped-1")["agents"]} == {agent.name for host, agent in fleet.items() if host.startswith("shipped")}

    quiet(servers)
    described = run(REGISTER, fleet, description="rack 5").good()
    for host, agent in fleet.items():
        taken = host.startswith("shipped")
        assert described.result(host)["action"] == ("refreshed" if taken else "delivered"), described.result(host)
        assert agent.server.agent(agent.name)["description"] == ("rack 5" if taken else "rack 4")
        agent.check_healthy()

    tokens = {host: agent.token() for host, agent in fleet.items()}
    gone = run(REGISTER, fleet, state="absent").good()
    for host, agent in fleet.items():
        assert gone.result(host)["action"] == "withdrawn"
        assert not agent.file.exists()
        assert not agent.root.exists()
        assert not agent.server.accepts(agent.name, tokens[host])
        assert any("whitelist entry" in text for text in gone.result(host)["removed"])
        assert any("metrics" in text for text in gone.result(host)["remains"])
    assert bao.read(fleet["shipped-2"].leaf) is None
    quiet(servers)
    again = run(REGISTER, fleet, state="absent").good()
    assert {again.result(host)["changed"] for host in fleet} == {False}
    assert mutations(servers) == [0, 0]


def test_lost_answers_are_made_good_and_leave_one_entry(servers: Servers, run: Run, ca: CertificateAuthority, tmp_path: Path) -> None:
    kinds = ("commit-then-drop", "truncate", "commit-then-500", "missing-token", "refuse")
    fleet = {f"{contract}-{kind}": Agent(servers[contract], ca.ca_file, tmp_path / f"{contract}-{kind}") for contract in CONTRACTS for kind in kinds}
    for host, agent in fleet.items():
        agent.server.fault("oxmon_whitelist_add", host.partition("-")[2], name=agent.name)
    done = run(REGISTER, fleet).good()
    for host, agent in fleet.items():
        assert done.result(host)["changed"] is True
        assert done.result(host)["proof"]["accepted"] is True
        agent.check_healthy()
    for server in servers.values():
        assert sorted(record["name"] for record in server.agents()) == sorted(agent.name for agent in fleet.values() if agent.server is server)
        assert {fault["fired"] for fault in server.faults()} == {1}
    quiet(servers)
    again = run(REGISTER, fleet).good()
    assert {again.result(host)["changed"] for host in fleet} == {False}
    assert mutations(servers) == [0, 0]


def test_hosts_that_were_set_up_by_hand_are_adopted_and_foreign_names_are_not(
    servers: Servers, fleet: dict[str, Agent], run: Run, controller: Controller,
) -> None:
    run(REGISTER, fleet).good()
    tokens = {host: agent.token() for host, agent in fleet.items()}
    for agent in fleet.values():
        # As by hand: the agent's own file, with no receipt beside it.
        subprocess.run(["rm", "-r", str(agent.directory / "store")], check=True)
    place = {host: [{"path": str(agent.file), "format": "env", "agent_id": "", "secrets": {"token": "auth_token"}}] for host, agent in fleet.items()}
    quiet(servers)
    given = {host: agent.options(adopt_from=place[host]) for host, agent in fleet.items()}
    adopted = controller.run(
        [{"name": "Adopt", REGISTER: {name: f"{{{{ given.{name} | default(omit) }}}}" for name in given["shipped-1"]}}],
        {host: {"given": given[host], "endpoint": agent.server.addresses["oxmon_grpc"]} for host, agent in fleet.items()}).good()
    for host, agent in fleet.items():
        assert adopted.result(host)["action"] == "adopted", adopted.result(host)
        assert agent.token() == tokens[host]
        agent.check_healthy()
    assert mutations(servers) == [0, 0]

    for agent in fleet.values():
        subprocess.run(["rm", "-r", str(agent.directory)], check=True)
    refused = run(REGISTER, fleet)
    for host, agent in fleet.items():
        assert refused.result(host)["reason"] == "identity_conflict", refused.result(host)
        assert agent.server.accepts(agent.name, tokens[host])
    taken = run(REGISTER, fleet, adopt="always").good()
    for host, agent in fleet.items():
        assert taken.result(host)["action"] == "reissued"
        assert "died at once" in taken.result(host)["warnings"][0]
        agent.check_healthy()
        assert agent.token() != tokens[host]


def test_a_token_that_another_administrator_replaced_is_replaced_again(servers: Servers, fleet: dict[str, Agent], run: Run) -> None:
    run(REGISTER, fleet).good()
    for agent in fleet.values():
        agent.server.drift(agent.name)
    done = run(REGISTER, fleet).good()
    for host, agent in fleet.items():
        assert (done.result(host)["action"], done.result(host)["changed"]) == ("reissued", True)
        agent.check_healthy()
    for agent in fleet.values():
        agent.server.forget(agent.name)
    restored = run(REGISTER, fleet).good()
    for host, agent in fleet.items():
        assert restored.result(host)["changed"] is True
        agent.check_healthy()


def test_a_wrong_login_is_sent_once_for_the_whole_play(servers: Servers, run: Run, ca: CertificateAuthority, tmp_path: Path) -> None:
    fleet = {f"shipped-{number}": Agent(servers["shipped"], ca.ca_file, tmp_path / str(number)) for number in range(6)}
    refused = run(REGISTER, fleet, password="canary-wrong-password-7f3e")
    assert {refused.result(host)["reason"] for host in fleet} == {"bad_bootstrap"}
    assert servers["shipped"].counters()["by_route"]["oxmon_login"] == 1
    assert "canary" not in refused.output
    assert servers["shipped"].agents() == []


@pytest.mark.thorough
def test_the_guides_way_from_open_reports_to_checked_tokens(
    servers: Servers, fleet: dict[str, Agent], run: Run, processes: Processes, controller: Controller, tmp_path: Path,
) -> None:
    """Phase 3 of the guide: whitelist all, deliver tokens, prove all, enforce, watch the refusals, and the way back."""
    for server in servers.values():
        server.act("oxmon", "require_auth", on=False)
    for host, agent in fleet.items():
        agent.file.parent.mkdir(parents=True)
        agent.file.write_text(f'agent_id = "{agent.name}"\nserver_endpoint = "{agent.server.addresses["oxmon_grpc"]}"\ncollection_interval_secs = 1\n')
        processes.restart(host, agent)
    known = run(INFO, fleet, "control_plane", name=None).good()
    assert known.result("shipped-1")["server"]["enforced"] is False

    delivered = run(REGISTER, fleet).good()
    for host, agent in fleet.items():
        # The documented server does not say whether it checks tokens: only the proof shows it.
        warned = any("require_agent_auth is off" in warning for warning in delivered.result(host).get("warnings", ()))
        assert warned is host.startswith("shipped")
        assert delivered.result(host)["proof"]["how"] == "auth_off"
        processes.restart(host, agent)
    proved = run(HEALTH, fleet, "gate").good()
    assert {proved.result(host)["failed"] for host in fleet} == {False}
    servers["shipped"].act("oxmon", "report", name="stranger.x")
    for code, words in ((2, "without being enrolled"), (0, "require_agent_auth = true")):
        ready = enforce(controller, {host: agent for host, agent in fleet.items() if host.startswith("shipped")}, tmp_path)
        assert (ready.returncode, words in ready.stdout) == (code, True), ready.stdout
        servers["shipped"].act("oxmon", "forget_agent", name="stranger.x")

    wrong = "shipped-2"
    fleet[wrong].file.write_text(fleet[wrong].file.read_text().replace(fleet[wrong].token(), BY_HAND))
    processes.restart(wrong, fleet[wrong])
    for server in servers.values():
        server.act("oxmon", "require_auth", on=True)
    enforced = run(HEALTH, fleet, "gate", attempts=4)
    for host in fleet:
        # The token in the store is good; the agent itself runs with another one, and only its missing reports tell.
        assert bool(enforced.result(host).get("failed")) is (host == wrong), enforced.result(host)
    checked = enforce(controller, {wrong: fleet[wrong]}, tmp_path)
    assert (checked.returncode, "Credentials are checked at" in checked.stdout) == (0, True), checked.stdout
    assert enforced.result(wrong)["reason"] == "not_seen"
    refusals = [line["status"] for line in servers["shipped"].log if line["status"].startswith("UNAUTHENTICATED")]
    assert any(fleet[wrong].name in line for line in refusals)
    assert not any(fleet["shipped-1"].name in line for line in refusals)
    repaired = run(REGISTER, fleet).good()
    assert {host for host in fleet if repaired.result(host)["changed"]} == {wrong}
    processes.restart(wrong, fleet[wrong])
    run(HEALTH, fleet, "gate").good()

    fleet[wrong].file.write_text(fleet[wrong].file.read_text().replace(fleet[wrong].token(), BY_HAND))
    processes.restart(wrong, fleet[wrong])
    for server in servers.values():
        server.act("oxmon", "require_auth", on=False)
    back = run(HEALTH, fleet, "gate").good()
    assert {back.result(host)["failed"] for host in fleet} == {False}
