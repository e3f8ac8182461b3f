# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control planes whose clocks jump between one run and the next: which credential is good is decided by use, never by a date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls

from . import test_pganalytics as pganalytics
from .agents import CONTRACTS, REGISTER, WAYS, Agent, World
from .controller import Controller, for_each

ROTATE = "muster.agents.token_rotate"
QUIET: dict[str, Any] = {"seen": False, "attempts": 1, "delay": 0.2, "settle_timeout": 5}
JUMP = 240  # seconds, less than is refused

pytestmark = pytest.mark.thorough

Hosts = dict[str, "Agent | pganalytics.Host"]


@pytest.fixture
def servers(world: World, tls: Tls) -> Iterator[list[ReferenceServer]]:
    """A Stacker of each contract and a pgAnalytics of each, whose credentials carry dates."""
    users = ["--plane", "pganalytics", "--pganalytics-user", f"ops:{pganalytics.PASSWORD}"]
    started = [ReferenceServer.start(contract, tls=tls, arguments=users) for contract in CONTRACTS]
    found = [*world.stackers.values(), *started]
    yield found
    _set(found, 0)
    for server in started:
        server.stop()


@pytest.fixture
def hosts(world: World, servers: list[ReferenceServer], controller: Controller, tmp_path: Path) -> Hosts:
    """One enrolled host for each control plane and contract; both ways to a host are among them."""
    analytics = pganalytics.Analytics(dict(zip(CONTRACTS, servers[len(world.stackers):])), world.ca_file, world.bao)
    found: Hosts = {}
    for contract, way in zip(CONTRACTS, WAYS):
        found[f"stacker-{contract}"] = Agent(world, contract, tmp_path / f"stacker-{contract}", way)
        found[f"pganalytics-{contract}"] = pganalytics.Host(analytics, contract, tmp_path / f"pganalytics-{contract}", way)
    controller.each(REGISTER, {name: host.options() for name, host in found.items()}).good()
    _check_healthy(found)
    return found


def _set(servers: list[ReferenceServer], seconds: float) -> None:
    for server in servers:
        server.clock(seconds)


def _due(hosts: Hosts, **changes: Any) -> dict[str, dict[str, Any]]:
    chosen = {"agent_token_policy": None, "capabilities": None, **QUIET, **changes}
    return {name: {key: value for key, value in {**host.options(), **chosen}.items() if value is not None} for name, host in hosts.items()}


def test_a_jump_of_the_clock_decides_nothing(world: World, servers: list[ReferenceServer], hosts: Hosts, controller: Controller) -> None:
    """A run dies with the new credential staged, and the clocks go forth and back before those after it. Only what no clock can be is refused."""
    task, named = for_each(ROTATE, _due(hosts, when=["always"]))
    running = controller.start([task], named, environment={"MUSTER_AGENTS_TEST_FAULT": "after_stage=stop"})
    running.wait_halted(len(hosts))
    running.kill()
    for seconds in (JUMP, -JUMP):
        _set(servers, seconds)
        made_good = controller.each(ROTATE, _due(hosts))
        # As shipped, pgAnalytics itself refuses a token that it made before its clock went back; an enrolment finds its way from there.
        early = {name for name in hosts if made_good.result(name)["failed"]}
        assert early == ({"pganalytics-shipped"} if seconds < 0 else set()), made_good.output
        assert {made_good.result(name)["reason"] for name in early} <= {"no_accepted_credential"}
        controller.each(REGISTER, {name: hosts[name].options() for name in early}).good()
        _check_healthy(hosts)
        before = {name: host.secret() for name, host in hosts.items()}
        _quiet(world, servers)
        settled = controller.each(ROTATE, _due(hosts)).good()
        assert {name: (settled.result(name)["reason"], settled.result(name)["changed"]) for name in hosts} == dict.fromkeys(hosts, ("not_due", False))
        assert _mutations(world, servers) == []
        done = controller.each(ROTATE, _due(hosts, when=["always"])).good()
        assert {done.result(name)["action"] for name in hosts} == {"rotated"}
        assert [name for name, host in hosts.items() if host.secret() == before[name]] == []
        _check_healthy(hosts)
    _set(servers, 2 * 3600)
    _quiet(world, servers)
    refused = controller.each(ROTATE, _due(hosts, when=["always"]))
    assert {refused.result(name)["reason"] for name in hosts} == {"clock_skew"}
    _set(servers, 0)
    deployed = controller.each(REGISTER, {name: host.options() for name, host in hosts.items()}).good()
    assert {deployed.result(name)["changed"] for name in hosts} == {False}
    assert _mutations(world, servers) == []


def _check_healthy(hosts: Hosts) -> None:
    for host in hosts.values():
        host.check_healthy()
        if isinstance(host, pganalytics.Host):
            host.push()  # a record that was never used would count as the fruit of a lost try


def _quiet(world: World, servers: list[ReferenceServer]) -> None:
    world.bao.reset_mutations()
    for server in servers:
        server.reset_counters()


def _mutations(world: World, servers: list[ReferenceServer]) -> list[Any]:
    """What changed anything, at the control planes or in Vault."""
    counted = [counters["mutating"] for server in servers for plane, counters in server.counters().items() if not plane.startswith("by_")]
    return [number for number in counted if number] + world.bao.mutating_requests()
