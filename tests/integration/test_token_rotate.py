# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""token_rotate on one host: host, Vault and control plane move together, or go back together; both contracts and both ways to the host."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
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
