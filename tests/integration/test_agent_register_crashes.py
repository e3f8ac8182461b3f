# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first enrolment, ended between any two of its steps or met by a failing server, is finished by the next plain run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.matrix import ROTATE, Cell, Played, sample

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
from .controller import Controller, Play, for_each
from .crash_cells import all_played

CHOSEN = sample("enrol", "commit")


@pytest.fixture(scope="module")
def played(_shared_world: World) -> Iterator[dict[Cell, Played]]:
    """Every point once, all played at once; ``make faults`` plays the whole matrix."""
    with all_played(_shared_world, CHOSEN) as found:
        yield found


@pytest.mark.parametrize("cell", CHOSEN, ids=lambda cell: cell.name)
def test_a_run_that_dies_anywhere_is_finished_by_the_next_one_with_one_live_record(cell: Cell, played: dict[Cell, Played]) -> None:
    assert not played[cell].problem, played[cell].problem


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


@pytest.mark.thorough
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_failing_registration_is_reconciled_and_ends_with_one_live_record(kind: str, contract: str, met: Met) -> None:
    host = f"{kind}/{contract}"
    assert met.fired[host] == 1
    first, second, third = (run.result(host) for run in met.runs)
    assert not first["failed"], first
    met.agents[host].check_healthy()
    assert (second["changed"], third["changed"]) == (False, False), second


@pytest.mark.thorough
def test_after_a_reconciled_registration_nothing_is_sent_any_more(met: Met) -> None:
    assert met.mutations == []


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_vault_that_goes_away_in_the_middle_is_made_up_for_by_the_next_run(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {f"{contract}-{way}": Agent(world, contract, tmp_path / f"{contract}-{way}", way) for contract in CONTRACTS for way in WAYS}
    registered = orders(agents, settle_timeout=2)
    cut = _without_vault_from(world, controller, "after_settle", REGISTER, registered)
    for host, agent in agents.items():
        assert (cut.result(host)["failed"], cut.result(host)["reason"]) == (True, "sealed"), cut.result(host)
        assert len(agent.records()) == 1
        assert agent.receipt()["phase"] == "ISSUED"
    world.quiet()
    controller.each(REGISTER, registered).good()
    assert [line for line in world.mutations() if "register" in line] == []
    for agent in agents.values():
        agent.check_healthy()
    rotated = orders(agents, settle_timeout=2, seen=False, attempts=1, delay=0.2)
    cut = _without_vault_from(world, controller, "after_stage", ROTATE, {host: {**options, "when": ["always"]} for host, options in rotated.items()})
    assert {cut.result(host)["failed"] for host in agents} == {True}
    controller.each(ROTATE, rotated).good()
    for agent in agents.values():
        agent.check_healthy()
    assert controller.spool == []


def _without_vault_from(world: World, controller: Controller, point: str, module: str, options: Mapping[str, Mapping[str, Any]]) -> Play:
    """Run *module* on all hosts, with Vault sealed from *point* on until the end of the run."""
    task, hosts = for_each(module, options)
    running = controller.start([task], hosts, environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=stop"})
    running.wait_halted(len(hosts))
    world.bao.seal()
    for process in running.halted():
        os.kill(process, signal.SIGCONT)
    ended = running.end()
    world.bao.unseal()
    return ended
