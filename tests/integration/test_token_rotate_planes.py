# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""token_rotate where the control plane issues the credential: pgAnalytics with overlap, oxmon without a way back, both contracts; and nothing leaks."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority
from world.openbao import OpenBao

from . import test_oxmon as oxmon
from . import test_pganalytics as pganalytics
from .agents import CONTRACTS, REGISTER, WAYS
from .canary import Watch, found_in
from .controller import Controller, Play, for_each

ROTATE = "muster.agents.token_rotate"
QUIET: dict[str, Any] = {"capabilities": None, "seen": False, "attempts": 1, "delay": 0.2, "when": ["always"], "settle_timeout": 5}
DEAD = "http://127.0.0.1:9/health"
LOUD = ("-vvvvvv", "--diff")


@pytest.fixture(scope="module")
def servers(tls: Tls) -> Iterator[dict[str, ReferenceServer]]:
    """Both control planes in both contracts."""
    users = ["--pganalytics-user", f"ops:{pganalytics.PASSWORD}", "--oxmon-user", f"{oxmon.USER}:{oxmon.PASSWORD}", "--oxmon-require-agent-auth"]
    started = {contract: ReferenceServer.start(contract, tls=tls, arguments=["--plane", "pganalytics", "--plane", "oxmon", *users]) for contract in CONTRACTS}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def collectors(servers: dict[str, ReferenceServer], ca: CertificateAuthority, bao: OpenBao, controller: Controller, tmp_path: Path) -> Iterator[
        dict[str, pganalytics.Host]]:
    """An enrolled collector for each contract and way to the host."""
    analytics = pganalytics.Analytics(servers, ca.ca_file, bao)
    for server in servers.values():
        server.reset()
    hosts = {f"{contract}-{way}": pganalytics.Host(analytics, contract, tmp_path / f"{contract}-{way}", way)
             for contract, way in itertools.product(CONTRACTS, WAYS)}
    controller.each(REGISTER, pganalytics.orders(hosts)).good()
    for host in hosts.values():
        host.push()  # a record that was never used would count as the fruit of a lost try
    analytics.quiet()
    yield hosts
    bao.unseal()


def rotation(host: pganalytics.Host, **changes: Any) -> dict[str, Any]:
    """The options of token_rotate; None removes one."""
    return {key: value for key, value in {**host.options(), **QUIET, **changes}.items() if value is not None}


def test_collectors_get_new_credentials_and_their_older_records_go_last(collectors: dict[str, pganalytics.Host], controller: Controller) -> None:
    analytics = next(iter(collectors.values())).analytics
    before = {name: (host.secret("certificate"), host.receipt()["agent_id"], host.secrets) for name, host in collectors.items()}
    foretold = controller.each(ROTATE, {name: rotation(host) for name, host in collectors.items()}, arguments=["--check"]).good()
    for name in collectors:
        plan = foretold.result(name)["plan"]
        assert (plan["restorable"], plan["steps"]) == (True, ["issue", "stage", "prove", "vault", "deliver", "gate", "retire"])
    assert analytics.mutations() == []

    with Watch() as watch:
        done = controller.each(ROTATE, {name: rotation(host) for name, host in collectors.items()}, arguments=LOUD).good()
    for name, host in collectors.items():
        result = done.result(name)
        assert (result["action"], result["generation"], result["phase"]) == ("rotated", 2, "COMMITTED"), result
        assert [step["step"] for step in result["steps"] if step["step"] != "retire"] == result["plan"]["steps"][:-1]
        assert host.secret("certificate") != before[name][0]
        # Where the server has no call to rotate, the collector got a further record, and the older one is gone.
        assert (host.receipt()["agent_id"] == before[name][1]) is (host.contract == "documented")
        host.check_healthy()
    secrets = [secret for host in collectors.values() for secret in host.secrets] + [secret for _pem, _id, known in before.values() for secret in known]
    shown = [secret for secret in secrets if secret != pganalytics.PASSWORD]  # the reference server has that one from its command line
    assert (found_in(done.output + done.events, secrets), watch.processes(shown), watch.log(secrets)) == ([], [], [])
    assert controller.spool == []

    analytics.quiet()
    again = controller.each(ROTATE, {name: rotation(host, when=["age"]) for name, host in collectors.items()}).good()
    deployed = controller.each(REGISTER, pganalytics.orders(collectors)).good()
    assert {play.result(name)["changed"] for play in (again, deployed) for name in collectors} == {False}
    assert analytics.mutations() == []


def test_a_collector_s_rotation_that_fails_anywhere_is_undone_or_made_good_and_says_no_secret(
    collectors: dict[str, pganalytics.Host], controller: Controller, bao: OpenBao,
) -> None:
    def held() -> dict[str, Any]:
        return {name: (host.secret(), host.toml(), host.receipt()["agent_id"], bao.read(host.vault_path)) for name, host in collectors.items()}

    def rotated(**changes: Any) -> Play:
        return controller.each(ROTATE, {name: rotation(host, **changes) for name, host in collectors.items()}, arguments=LOUD)

    before = held()
    refused = rotated(registration_secret="canary-wrong-secret-51f0")
    bao.seal()
    sealed = rotated()
    bao.unseal()
    assert {play.result(name)["failed"] for play in (refused, sealed) for name in collectors} == {True}
    assert held() == before

    for host in collectors.values():
        route = "pganalytics_rotate" if host.contract == "documented" else "pganalytics_register"
        host.server.fault(route, "commit-then-drop", name=host.receipt()["agent_id"] if host.contract == "documented" else f'"{host.name}"')
    made_good = rotated().good()
    assert [fault["fired"] for server in collectors["shipped-fast"].analytics.servers.values() for fault in server.faults()] == [1] * len(collectors)
    for name, host in collectors.items():
        assert made_good.result(name)["action"] == "rotated"
        host.check_healthy()
        host.push()

    before = held()
    red = rotated(health_url=DEAD)
    for name, host in collectors.items():
        result = red.result(name)
        assert (result["action"], result["failed_step"], result["rolled_back"]) == ("rolled_back", "gate", True), result
        assert host.server.accepts(host.name, host.secret())
        assert len(host.records()) == 1
    assert {name: found[:3] for name, found in held().items()} == {name: found[:3] for name, found in before.items()}
    secrets = ["canary-wrong-secret-51f0", *(secret for host in collectors.values() for secret in host.secrets)]
    assert found_in("".join(play.output + play.events for play in (refused, sealed, made_good, red)), secrets) == []


def test_the_playbook_tries_one_host_first_and_stops_there_when_it_fails(
    collectors: dict[str, pganalytics.Host], controller: Controller, tmp_path: Path,
) -> None:
    """The first host was never enrolled, so that its rotation is refused; the others would have been next."""
    hosts = {"a-bare": pganalytics.Host(collectors["shipped-fast"].analytics, "shipped", tmp_path / "bare"), **collectors}
    variables = {
        name: {
            "ansible_connection": "local", "agent_become": False, "agent_control_plane": "pganalytics", "agent_control_plane_url": host.server.url,
            "agent_ca_cert": str(host.analytics.ca_file), "agent_name": host.name, "agent_store": str(host.directory / "store"), "agent_username": "ops",
            "agent_password": pganalytics.PASSWORD, "agent_registration_secret": pganalytics.DEFAULT_SECRET, "agent_hostname": f"{host.name}.example.com",
            "rotation_when": ["always"],
        } for name, host in hosts.items()}
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"agents": {"hosts": variables}}))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "muster.agents.rotate"], env=controller.environment(), cwd=tmp_path,
        capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "is not enrolled at" in done.stdout, done.stdout
    recap = done.stdout.partition("PLAY RECAP")[2]
    assert [name for name in hosts if name in recap] == ["a-bare"], recap
    assert collectors["shipped-fast"].analytics.mutations() == []


@pytest.fixture
def agents(servers: dict[str, ReferenceServer], ca: CertificateAuthority, tmp_path: Path) -> dict[str, oxmon.Agent]:
    """One host in the documented contract, two in the shipped one; not enrolled yet."""
    for server in servers.values():
        server.reset()
    return {host: oxmon.Agent(servers[host.partition("-")[0]], ca.ca_file, tmp_path / host) for host in ("documented-1", "shipped-1", "shipped-2")}


class Follower:
    """Restarts an agent whenever its file changes, as a path unit would."""

    def __init__(self, processes: oxmon.Processes, agents: dict[str, oxmon.Agent]) -> None:
        self._processes = processes
        self._agents = agents
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        tokens = {host: agent.token() for host, agent in self._agents.items()}
        while not self._over.wait(0.1):
            for host, agent in self._agents.items():
                if agent.token() != tokens[host]:
                    tokens[host] = agent.token()
                    self._processes.restart(host, agent)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[oxmon.Processes]:
    """A way to run reference agents; all are ended afterwards."""
    started = oxmon.Processes(dict(zip(CONTRACTS, oxmon.build(tmp_path / "release", agent="metrics-agent"))))
    yield started
    for host in list(started.running):
        started.stop(host)


def test_a_regenerated_token_goes_forward_only_and_the_plan_says_so(
    agents: dict[str, oxmon.Agent], controller: Controller, processes: oxmon.Processes,
) -> None:
    """Of two agents that must report with their new tokens one is restarted and one is not: that one cannot go back, and the next run goes on."""
    def run(module: str, given: dict[str, dict[str, Any]], *arguments: str) -> Play:
        task, hosts = for_each(module, given)
        endpoints = {host: agents[host].server.addresses["oxmon_grpc"] for host in hosts}
        return controller.run([task], {host: {**variables, "endpoint": endpoints[host]} for host, variables in hosts.items()}, arguments=arguments)

    run(REGISTER, {host: agent.options() for host, agent in agents.items()}).good()
    for host, agent in agents.items():
        processes.restart(host, agent)
    tokens = {host: agent.token() for host, agent in agents.items()}
    names = {host: {**agent.options(), "when": ["always"], "seen": True, "attempts": 10, "delay": 1.0} for host, agent in agents.items()}
    foretold = run(ROTATE, names, "--check").good()
    for host in agents:
        result = foretold.result(host)
        assert (result["action"], result["plan"]["restorable"]) == ("planned", False)
        assert "cannot be put back" in result["plan"]["why"]
        assert "cannot be put back" in result["msg"]
    assert {host: agent.token() for host, agent in agents.items()} == tokens

    agents["shipped-1"].server.fault("oxmon_whitelist_token", "commit-then-drop")
    with Follower(processes, {host: agent for host, agent in agents.items() if host != "shipped-2"}):
        done = run(ROTATE, names, *LOUD)
    for host, agent in agents.items():
        result = done.result(host)
        assert agent.token() != tokens[host]
        assert not agent.server.accepts(agent.name, tokens[host])
        if host == "shipped-2":
            assert (result["failed"], result["action"], result["failed_step"], result["rolled_back"]) == (True, "failed", "gate", False), result
            assert "cannot be put back" in result["msg"]
        else:
            assert (result["action"], result["phase"]) == ("rotated", "COMMITTED"), result
        agent.check_healthy()
    secrets = [oxmon.PASSWORD, *tokens.values(), *(agent.token() for agent in agents.values())]
    assert found_in(done.output + done.events, secrets) == []

    before = agents["shipped-2"].token()
    processes.restart("shipped-2", agents["shipped-2"])
    agents["shipped-2"].server.reset_counters()
    resumed = run(ROTATE, {"shipped-2": {**names["shipped-2"], "when": ["age"]}}).good().result("shipped-2")
    assert (resumed["action"], resumed["phase"], agents["shipped-2"].token()) == ("resumed", "COMMITTED", before)
    assert agents["shipped-2"].server.counters()["oxmon"]["mutating"] == 0
