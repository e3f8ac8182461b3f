# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""agent_register from a bare host to a withdrawn agent, over both contracts and all ways to the host."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from reference_server.client import ReferenceServer, VaultLink

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders, strict_python
from .controller import Controller


def fleet(world: World, directory: Path) -> dict[str, Agent]:
    """With Vault one agent for each contract and way to the host, and a Vault token for each; two that have a static token only."""
    agents = {}
    static = [("documented", "fast", False), ("shipped", "module", False)]
    for contract, way, vault in (*itertools.product(CONTRACTS, WAYS, (True,)), *static):
        host = f"{contract}-{way}-{'vault' if vault else 'static'}"
        agents[host] = Agent(world, contract, directory / host, way, vault=vault, policy=vault)
    return agents


def half(agents: dict[str, Agent]) -> dict[str, Agent]:
    """Those of a fleet in which each contract still meets each way and each use of Vault once."""
    kept = ("documented-module-vault", "documented-fast-static", "shipped-fast-vault", "shipped-module-static")
    return {host: agents[host] for host in kept}


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


def test_a_python_that_takes_no_sources_is_given_the_module(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {contract: Agent(world, contract, tmp_path / contract, "module") for contract in CONTRACTS}
    strict = {"ANSIBLE_PYTHON_INTERPRETER": str(strict_python(tmp_path))}
    done = controller.each(REGISTER, orders(agents), environment=strict, arguments=["-vvvv"]).good()
    assert len(re.findall(r"Using module file \S+/credential_store\.py", done.output)) == 2 * len(agents)
    for agent in agents.values():
        agent.check_healthy()
        assert agent.secret() not in done.output + done.events
    world.quiet()
    again = controller.each(REGISTER, orders(agents), environment=strict).good()
    assert [again.result(host)["changed"] for host in agents] == [False, False]
    assert world.mutations() == []


def test_a_new_version_is_told_once_and_never_again(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = half(fleet(world, tmp_path))
    controller.each(REGISTER, orders(agents)).good()
    tokens = {host: agent.secret() for host, agent in agents.items()}
    world.quiet()
    planned = controller.each(REGISTER, orders(agents, version="1.1.0"), arguments=["--check"]).good()
    assert world.mutations() == []
    told = controller.each(REGISTER, orders(agents, version="1.1.0")).good()
    for host, agent in agents.items():
        taken = agent.contract == "shipped"
        assert (planned.result(host)["action"], planned.result(host)["changed"], told.result(host)["changed"]) == ("refreshed", True, True)
        answer = ("refreshed", "metadata_changed") if taken else ("delivered", "metadata_not_taken")
        assert (told.result(host)["action"], told.result(host)["reason"]) == answer
        assert agent.env()["AGENT_VERSION"] == "1.1.0"
        assert agent.secret() == tokens[host]
        agent.check_healthy()
        # The documented server answers 409: it keeps what it was told first, and is not asked again.
        assert agent.records()[0]["version"] == ("1.1.0" if taken else "1.0.0")
    assert [server.counters()["by_route"]["register"] for server in world.stackers.values()] == [len(agents) // 2] * 2
    world.quiet()
    quiet = controller.each(REGISTER, orders(agents, version="1.1.0"), arguments=["--forks", "1"]).good()
    assert [quiet.result(host)["changed"] for host in agents] == [False] * len(agents)
    assert world.mutations() == []
    for server in world.stackers.values():
        # Hosts of one run take each other's word that the server is well; they are not asked to be quick about it.
        assert 1 <= server.counters()["by_route"]["health"] < len(agents) // 2


def test_tokens_reach_their_readers_on_both_kv_versions_also_when_the_server_writes_late(world: World, controller: Controller, tmp_path: Path) -> None:
    """The server writes one leaf by itself, late; readers of both leaves then find the token in the shape they read."""
    link = VaultLink(world.bao.url, str(world.bao.token_file), str(world.bao.ca_file), "secret/data")
    tls = world.tls
    with ReferenceServer.start("documented", tls=tls, vault=link) as documented, ReferenceServer.start("shipped", tls=tls, vault=link) as shipped:
        versioned = {"documented": documented, "shipped": shipped}
        agents = {
            f"{contract}-v{number}": Agent(
                world, contract, tmp_path / f"{contract}-v{number}", "fast", policy=True, prefix={1: "status_panel", 2: "secret/data"}[number],
                server={1: world.stackers, 2: versioned}[number][contract])
            for contract in CONTRACTS for number in (1, 2)
        }
        for agent in agents.values():
            agent.stacker.fault("register", "late-vault-write", name=agent.name, seconds=1.5)
        done = controller.each(REGISTER, orders(agents)).good()
        minted = {}
        for host, agent in agents.items():
            agent.check_healthy()
            token = minted[host] = agent.secret("vault_token")
            assert agent.env()["VAULT_TOKEN"] == token
            for leaf, entry in zip(agent.leaves, done.result(host)["vault"]):
                found = world.bao.read(leaf, token=token)
                assert found is not None
                assert found["data"]["token"] == agent.secret()
                assert (entry["path"], entry["kv_version"], entry["fields"]) == (leaf, int(host[-1]), ["token"])
            assert world.bao.call("GET", "status_panel/somebody-else/token", token=token).status == 403
            assert world.bao.call("POST", agent.leaves[0], {"data": {"token": "x"}}, token=token).status == 403
        world.quiet()
        for server in versioned.values():
            server.reset_counters()
        again = controller.each(REGISTER, orders(agents)).good()
        for host, agent in agents.items():
            assert again.result(host)["changed"] is False, again.result(host)
            assert agent.secret("vault_token") == minted[host]
        assert world.mutations() == []
        assert [server.counters()["stacker"]["mutating"] for server in versioned.values()] == [0, 0]


def test_absent_takes_everything_away_that_can_go_and_names_what_stays(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = half(fleet(world, tmp_path))
    done = controller.each(REGISTER, orders(agents)).good()
    tokens = {host: (agent.secret(), agent.secret("vault_token") if agent.policy else "") for host, agent in agents.items()}
    policies = {host: done.result(host)["policy"].get("policy") for host in agents}
    world.quiet()
    before = {host: agent.everything() for host, agent in agents.items()}
    planned = controller.each(REGISTER, orders(agents, state="absent"), arguments=["--check", "--diff"]).good()
    assert {host: agent.everything() for host, agent in agents.items()} == before
    assert world.mutations() == []

    gone = controller.each(REGISTER, orders(agents, state="absent"), arguments=["--diff"]).good()
    for host, agent in agents.items():
        result = gone.result(host)
        assert (planned.result(host)["action"], planned.result(host)["changed"]) == (result["action"], result["changed"]) == ("withdrawn", True)
        assert agent.everything() == {}
        assert not agent.root.exists()
        assert any(agent.name in sentence for sentence in result["remains"]), result["remains"]
        token, minted = tokens[host]
        if agent.vault:
            assert agent.in_vault() == [None, None]
            assert world.bao.call("GET", f"sys/policies/acl/{policies[host]}").status == 404
            assert world.bao.call("GET", "auth/token/lookup-self", token=minted).status == 403
            assert not agent.stacker.accepts(agent.name, token)
        else:
            assert any("still accepted" in sentence for sentence in result["remains"]), result["remains"]
    world.quiet()
    again = controller.each(REGISTER, orders(agents, state="absent")).good()
    for host in agents:
        assert (again.result(host)["changed"], again.result(host)["action"]) == (False, "absent")
    assert world.mutations() == []
