# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""agent_register from a bare host to a withdrawn agent, over both contracts and both ways to the host."""

from __future__ import annotations

import itertools
from pathlib import Path

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
from .controller import Controller


def fleet(world: World, directory: Path) -> dict[str, Agent]:
    """One agent for each contract, way to the host, and use of Vault; with Vault each gets a Vault token of its own."""
    agents = {}
    for contract, way, vault in itertools.product(CONTRACTS, WAYS, (False, True)):
        host = f"{contract}-{way}-{'vault' if vault else 'static'}"
        agents[host] = Agent(world, contract, directory / host, way, vault=vault, policy=vault)
    return agents


def test_check_mode_foretells_what_the_real_run_does_and_a_second_run_changes_nothing(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path)

    foretold = controller.each(REGISTER, orders(agents), arguments=["--check", "--diff"]).good()
    assert world.mutations() == []
    for host, agent in agents.items():
        assert foretold.result(host)["changed"] is True
        assert foretold.result(host)["msg"].startswith("Would be done: ")
        assert agent.everything() == {}

    done = controller.each(REGISTER, orders(agents), arguments=["--diff"]).good()
    for host, agent in agents.items():
        agent.check_healthy()
        planned, real = foretold.result(host), done.result(host)
        for key in ("action", "reason", "files", "generation", "phase", "store", "url", "name", "pending_restart"):
            assert planned[key] == real[key], key
        assert (real["action"], real["changed"], real["proof"]["accepted"]) == ("registered", True, True)
        assert planned["msg"].endswith(real["msg"])
        assert [item["path"] for item in planned["vault"]] == [item["path"] for item in real["vault"]] == (agent.leaves if agent.vault else [])
        env = next(item for item in real["diff"] if item["after_header"] == str(agent.env_file))
        assert "AGENT_TOKEN=" in env["after"]
        assert agent.secret() not in env["after"]

    world.quiet()
    for arguments in (["--check", "--diff"], []):
        before = {host: agent.everything() for host, agent in agents.items()}
        again = controller.each(REGISTER, orders(agents), arguments=arguments).good()
        for host, agent in agents.items():
            assert (again.result(host)["changed"], again.result(host)["action"]) == (False, "unchanged"), again.result(host)
            assert "diff" not in again.result(host)
            assert agent.everything() == before[host]
        assert world.mutations() == []
        assert "changed=1" not in again.output
    assert controller.spool == []
