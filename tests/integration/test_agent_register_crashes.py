# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first enrolment, ended between any two of its steps or met by a failing server, is finished by the next plain run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
from .controller import Controller, Play, for_each

# Every point that agent_register passes at a first enrolment with Vault and a Vault token for the agent.
POINTS = (
    "after_probe", "after_look", "before_issue", "after_issue", "after_spool", "after_settle", "after_vault", "after_mint", "before_delivery",
    "after_delivery",
)
ENDS = ("kill", "raise")
# The fast way meets both ends at both contracts; the slower one is killed at every point, with the contracts taking turns.
CRASHES = [
    *(f"{point}-{end}-{contract}-fast" for point, end, contract in itertools.product(POINTS, ENDS, CONTRACTS)),
    *(f"{point}-kill-{contract}-module" for point, contract in zip(POINTS, itertools.cycle(CONTRACTS))),
]


@dataclass(frozen=True)
class _Unparametrized:
    """Stands for the parameters of a test that has none."""

    params: Mapping[str, Any] = field(default_factory=dict)


_NOTHING = _Unparametrized()


@dataclass(frozen=True)
class Recovered:
    """All crashes, the plain run after each, the run after that, and what that last one changed anywhere."""

    agents: Mapping[str, Agent]
    crashed: Mapping[str, Play]
    plain: Mapping[str, Play]
    again: Play
    mutations: list[str]
    spool: list[Path]


@pytest.fixture(scope="module")
def recovered(request: pytest.FixtureRequest, _shared_world: World, tmp_path_factory: pytest.TempPathFactory) -> Recovered:
    """Each enrolment is ended at its point, all contracts and ways at once; then one plain run takes all of them on.

    A killed run is taken on by the same control node, a failed one by another, to which the first one's spool is lost.
    """
    world, directory = _shared_world, tmp_path_factory.mktemp("crashes")
    world.quiet()
    nodes = {"kill": Controller(directory / "node"), "raise": Controller(directory / "lost-node")}
    chosen = _chosen(request.session.items)
    agents = {host: Agent(world, *_contract_and_way(host, directory), vault=True, policy=True) for host in CRASHES if host in chosen}

    def crash(point: str, end: str) -> Play:
        mine = {host: agent for host, agent in agents.items() if host.startswith(f"{point}-{end}-")}
        task, hosts = for_each(REGISTER, orders(mine))
        switch = f"{point}={'stop' if end == 'kill' else 'raise'}"
        running = nodes[end].start([task], hosts, environment={"MUSTER_AGENTS_TEST_FAULT": switch})
        if end == "raise":
            return running.end()
        running.wait_halted(len(mine))
        return running.kill()

    with ThreadPoolExecutor(2) as pool:
        pairs = sorted({(host.split("-")[0], host.split("-")[1]) for host in agents})
        plays = dict(zip(pairs, pool.map(lambda pair: crash(*pair), pairs)))
    crashed = {host: plays[host.split("-")[0], host.split("-")[1]] for host in agents}
    other = Controller(directory / "other-node")
    plain = {}
    for end, node in (("kill", nodes["kill"]), ("raise", other)):
        mine = {host: agent for host, agent in agents.items() if f"-{end}-" in host}
        play = node.each(REGISTER, orders(mine))
        plain.update(dict.fromkeys(mine, play))
    world.quiet()
    again = other.each(REGISTER, orders(agents))
    return Recovered(agents, crashed, plain, again, world.mutations(), nodes["kill"].spool + other.spool)


def _chosen(items: list[pytest.Item]) -> set[str]:
    """The crashes that this run of the tests asks for."""
    return {item.callspec.params["host"] for item in items if isinstance(item, pytest.Function) and "host" in getattr(item, "callspec", _NOTHING).params}


def _contract_and_way(host: str, directory: Path) -> tuple[str, Path, str]:
    _point, _end, contract, way = host.split("-")
    return contract, directory / host, way


@pytest.mark.parametrize("host", [pytest.param(host, marks=pytest.mark.thorough if host.endswith("-module") else ()) for host in CRASHES])
def test_a_run_that_dies_anywhere_is_finished_by_the_next_one_with_one_live_record(host: str, recovered: Recovered) -> None:
    crashed = recovered.crashed[host]
    if "-raise-" in host:
        assert crashed.result(host)["reason"] == "test_fault"
    else:
        assert crashed.code == -9
        assert host not in crashed.results
    plain = recovered.plain[host].result(host)
    assert not plain["failed"], plain
    recovered.agents[host].check_healthy()
    assert recovered.again.result(host)["action"] == "unchanged"
    assert recovered.again.result(host)["changed"] is False


def test_after_recovery_nothing_changes_any_more_and_no_credential_waits_in_the_spool(recovered: Recovered) -> None:
    assert recovered.mutations == []
    assert recovered.spool == []


def test_an_attempt_keeps_its_idempotency_key_across_a_crash(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {way: Agent(world, "documented", tmp_path / way, way) for way in WAYS}
    task, hosts = for_each(REGISTER, orders(agents))
    running = controller.start([task], hosts, environment={"MUSTER_AGENTS_TEST_FAULT": "before_issue=stop"})
    running.wait_halted(len(agents))
    running.kill()
    announced = {way: (agent.root / "intent").read_text().split("\t")[0] for way, agent in agents.items()}
    controller.each(REGISTER, orders(agents)).good()
    assert {way: agent.receipt()["attempt"] for way, agent in agents.items()} == announced


FAULTS: dict[str, dict[str, Any]] = {
    "commit-then-drop": {}, "commit-then-500": {}, "truncate": {}, "missing-token": {}, "garbage": {}, "429": {"retry_after": 1},
    "slow": {"seconds": 4}, "refuse": {}, "late-vault-write": {"seconds": 3}, "no-vault-write": {},
}


@dataclass(frozen=True)
class Met:
    """One run against every fault, and the two after it."""

    agents: Mapping[str, Agent]
    runs: list[Play]
    fired: Mapping[str, int]
    mutations: list[str]


@pytest.fixture(scope="module")
def met(_shared_world: World, tmp_path_factory: pytest.TempPathFactory) -> Met:
    """Each fault meets one agent of each contract, all in one run."""
    world, directory = _shared_world, tmp_path_factory.mktemp("faults")
    agents = {f"{kind}/{contract}": Agent(world, contract, directory / f"{kind}-{contract}") for kind in FAULTS for contract in CONTRACTS}
    for host, agent in agents.items():
        kind = host.split("/")[0]
        agent.stacker.fault("register", kind, name=agent.name, **FAULTS[kind])
    node = Controller(directory / "node")
    runs = [node.each(REGISTER, orders(agents, timeout=2)) for _number in range(2)]
    fired = {fault["name"]: fault["fired"] for server in world.stackers.values() for fault in server.faults()}
    for server in world.stackers.values():
        server.clear_faults()
    world.quiet()
    runs.append(node.each(REGISTER, orders(agents, timeout=2)))
    return Met(agents, runs, {host: fired[agent.name] for host, agent in agents.items()}, world.mutations())


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_failing_registration_is_reconciled_and_ends_with_one_live_record(kind: str, contract: str, met: Met) -> None:
    host = f"{kind}/{contract}"
    assert met.fired[host] == 1
    first, second, third = (run.result(host) for run in met.runs)
    assert not first["failed"], first
    met.agents[host].check_healthy()
    assert (second["changed"], third["changed"]) == (False, False), second


def test_after_a_reconciled_registration_nothing_is_sent_any_more(met: Met) -> None:
    assert met.mutations == []


def test_a_server_that_never_stores_its_token_is_named_and_the_next_run_goes_on(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {way: Agent(world, "shipped", tmp_path / way, way, vault=False) for way in WAYS}
    for agent in agents.values():
        agent.stacker.fault("register", "no-vault-write", times=None, name=agent.name)
    stuck = controller.each(REGISTER, orders(agents, settle_timeout=1))
    for way in WAYS:
        assert stuck.result(way)["reason"] == "issued_credential_refused"
        assert "check the server's own Vault" in stuck.result(way)["msg"]
    world.stackers["shipped"].clear_faults()
    controller.each(REGISTER, orders(agents, settle_timeout=1)).good()
    for agent in agents.values():
        agent.check_healthy()
    assert controller.spool == []


def test_two_runs_at_once_on_the_same_identity_end_well_with_one_record(world: World, tmp_path: Path) -> None:
    agents = {f"{contract}-{way}": Agent(world, contract, tmp_path / f"{contract}-{way}", way) for contract in CONTRACTS for way in WAYS}
    nodes = [Controller(tmp_path / f"node-{number}") for number in range(2)]
    task, hosts = for_each(REGISTER, orders(agents))
    started = [node.start([task], hosts) for node in nodes]
    ended = [running.end().good() for running in started]
    for host, agent in agents.items():
        agent.check_healthy()
        assert "registered" in {play.result(host)["action"] for play in ended}
    world.quiet()
    quiet = nodes[0].each(REGISTER, orders(agents)).good()
    assert [quiet.result(host)["changed"] for host in agents] == [False] * len(agents)
    assert world.mutations() == []
    assert [node.spool for node in nodes] == [[], []]
