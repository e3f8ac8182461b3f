# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""token_rotate on one host: host, Vault and control plane move together, or go back together; both contracts and both ways to the host."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
from .canary import found_in
from .controller import Controller

ROTATE = "muster.agents.token_rotate"
# Nothing runs on these hosts, so that the gate has only the credential to judge.
QUIET: dict[str, Any] = {"seen": False, "attempts": 1, "delay": 0.2, "when": ["always"], "settle_timeout": 5}
DEAD = "http://127.0.0.1:9/health"


def rotation(agent: Agent, **changes: Any) -> dict[str, Any]:
    """The options of token_rotate for *agent*; None removes one."""
    return {key: value for key, value in {**agent.options(agent_token_policy=None), **QUIET, **changes}.items() if value is not None}


def fleet(world: World, directory: Path, **more: Any) -> dict[str, Agent]:
    """One agent for each contract and way to the host."""
    return {f"{contract}-{way}": Agent(world, contract, directory / f"{contract}-{way}", way, **more)
            for contract, way in itertools.product(CONTRACTS, WAYS)}


def test_a_rotation_is_foretold_done_and_then_left_alone(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path, policy=True)
    controller.each(REGISTER, orders(agents)).good()
    before = {host: (agent.secret(), agent.everything()) for host, agent in agents.items()}
    world.quiet()
    foretold = controller.each(ROTATE, {host: rotation(agent) for host, agent in agents.items()}, arguments=["--check", "--diff"]).good()
    assert world.mutations() == []
    for host, agent in agents.items():
        result = foretold.result(host)
        assert (result["action"], result["reason"], result["changed"]) == ("planned", "always", True)
        assert result["plan"]["restorable"] is True
        assert result["plan"]["steps"] == ["stage", "vault", "prove", "deliver", "gate"]
        assert agent.everything() == before[host][1]

    done = controller.each(ROTATE, {host: rotation(agent) for host, agent in agents.items()}, arguments=["--diff", "-vvv"]).good()
    for host, agent in agents.items():
        result, old = done.result(host), before[host][0]
        assert (result["action"], result["generation"], result["phase"]) == ("rotated", 2, "COMMITTED"), result
        assert [step["step"] for step in result["steps"]] == result["plan"]["steps"]
        assert agent.secret() != old
        # The documented server lets an old token be good for a while; the shipped one does not.
        assert agent.stacker.accepts(agent.name, old) == (agent.contract == "documented")
        agent.check_healthy()
        assert sorted(path.name for path in (agent.root / "generations").iterdir()) == ["1", "2"]
        assert old not in done.output
        assert agent.secret() not in done.output
    assert controller.spool == []

    world.quiet()
    after = {host: agent.everything() for host, agent in agents.items()}
    for arguments in (["--check"], []):
        again = controller.each(ROTATE, {host: rotation(agent, when=None) for host, agent in agents.items()}, arguments=arguments).good()
        for host, agent in agents.items():
            assert (again.result(host)["action"], again.result(host)["reason"], again.result(host)["changed"]) == ("unchanged", "not_due", False)
            assert agent.everything() == after[host]
    deployed = controller.each(REGISTER, orders(agents)).good()
    assert [deployed.result(host)["action"] for host in agents] == ["unchanged"] * len(agents)
    assert world.mutations() == []


def test_a_red_gate_puts_the_old_token_back_in_host_and_vault_and_says_which_step_failed(
    world: World, controller: Controller, tmp_path: Path,
) -> None:
    agents = fleet(world, tmp_path)
    controller.each(REGISTER, orders(agents)).good()
    before = {host: (agent.secret(), agent.env(), agent.in_vault()) for host, agent in agents.items()}
    red = controller.each(ROTATE, {host: rotation(agent, health_url=DEAD) for host, agent in agents.items()})
    for host, agent in agents.items():
        result = red.result(host)
        assert result["failed"], result
        assert result["failed_step"] == "gate"
        assert (agent.secret(), agent.env(), agent.in_vault()) == before[host]
        agent.check_healthy()


def test_a_campaign_stops_when_its_budget_is_spent_and_is_gone_on_with(world: World, controller: Controller, tmp_path: Path) -> None:
    """Two of five come back to their old tokens, one more than is put up with: the rest keep theirs until the next run."""
    agents = {f"host-{number}": Agent(world, "documented", tmp_path / str(number)) for number in range(5)}
    controller.each(REGISTER, orders(agents)).good()
    before = {host: agent.secret() for host, agent in agents.items()}
    campaign = {"campaign": "2026-Q4", "failure_budget": 1}
    given = {host: rotation(agent, **campaign, health_url=DEAD if host in ("host-1", "host-2") else None) for host, agent in agents.items()}
    stopped = controller.each(ROTATE, given, arguments=["-vvvvvv"], forks=1)
    assert {host: stopped.result(host)["action"] for host in agents} == {
        "host-0": "rotated", "host-1": "rolled_back", "host-2": "rolled_back", "host-3": "untouched", "host-4": "untouched"}
    assert stopped.result("host-4")["reason"] == "budget_spent"
    names = {host: agent.name for host, agent in agents.items()}
    assert stopped.result("host-4")["campaign"] == {"done": [names["host-0"]], "failed": sorted([names["host-1"], names["host-2"]])}
    assert [agents[host].secret() for host in ("host-1", "host-2", "host-3", "host-4")] == [before[f"host-{number}"] for number in range(1, 5)]
    assert found_in(stopped.output + stopped.events, [*before.values(), *(agent.secret() for agent in agents.values())]) == []

    kept = agents["host-0"].secret()
    again = controller.each(ROTATE, {host: rotation(agent, **campaign) for host, agent in agents.items()}).good()
    assert again.result("host-0")["reason"] == "done_in_campaign"
    assert agents["host-0"].secret() == kept
    assert {again.result(host)["action"] for host in agents if host != "host-0"} == {"rotated"}
    for agent in agents.values():
        agent.check_healthy()
