# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents that exist already: enrolled by the guide's own playbook, live elsewhere, or changed behind everybody's back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, orders
from .controller import Controller

# The environment file of the guide, as its playbook writes it.
GUIDE_ENV = """\
AGENT_ID={{ agent_id }}
AGENT_TOKEN={{ agent_token }}
DEPLOYMENT_HASH={{ deployment_hash }}
STACKER_URL={{ stacker_url }}
AGENT_VERSION={{ agent_version }}
VAULT_ADDRESS={{ vault_address }}
VAULT_TOKEN={{ vault_token }}
VAULT_AGENT_PATH_PREFIX=status_panel
"""


def guide_tasks(directory: Path) -> list[dict[str, Any]]:
    """The guide's playbook, steps 2 to 4, with the status codes that make it work; and its client's agent.json."""
    template = directory / "agent.env.j2"
    template.write_text(GUIDE_ENV)
    secret = "{{ registration_response.json.data.item.agent_token }}"
    body = {
        "deployment_hash": "{{ deployment_hash }}", "agent_version": "{{ agent_version }}", "capabilities": ["docker", "compose", "logs"],
        "system_info": {"os": "linux"},
    }
    return [
        {"name": "Register agent with Stacker server", "register": "registration_response", "ansible.builtin.uri": {
            "url": "{{ stacker_url }}/api/v1/agent/register", "method": "POST", "body_format": "json", "body": body,
            "status_code": [200, 201], "ca_path": "{{ ca_cert }}"}},
        {"name": "Store registration details", "ansible.builtin.set_fact": {
            "agent_id": "{{ registration_response.json.data.item.agent_id }}", "agent_token": secret}},
        {"name": "Store initial token in Vault KV", "ansible.builtin.uri": {
            "url": "{{ vault_address }}/v1/status_panel/{{ deployment_hash }}/token", "method": "POST", "ca_path": "{{ vault_ca }}",
            "headers": {"X-Vault-Token": "{{ vault_token }}"}, "body_format": "json", "body": {"data": {"token": secret}}, "status_code": [200, 204]}},
        {"name": "Create agent directory", "ansible.builtin.file": {"path": "{{ agent_home }}", "state": "directory", "mode": "0755"}},
        {"name": "Create agent .env file", "ansible.builtin.template": {"src": str(template), "dest": "{{ agent_home }}/.env", "mode": "0600"}},
        {"name": "Store credentials as the guide's client does", "ansible.builtin.copy": {
            "content": "{{ {'agent_id': agent_id, 'agent_token': agent_token} | to_json }}", "dest": "{{ agent_home }}/agent.json", "mode": "0600"}},
    ]


def guide_variables(agent: Agent) -> dict[str, Any]:
    """What the guide's playbook is given for one host."""
    bao = agent.world.bao
    return {
        "stacker_url": agent.stacker.url, "deployment_hash": agent.name, "agent_version": "1.0.0", "ca_cert": str(agent.world.ca_file),
        "vault_address": bao.url, "vault_ca": str(bao.ca_file), "vault_token": bao.root_token, "agent_home": str(agent.directory / "old"),
    }


def adopt_from(agent: Agent, kind: str) -> list[dict[str, Any]]:
    """The option that names where the guide left the credential."""
    if kind == "json":
        keys = {"agent_id": "agent_id", "secrets": {"token": "agent_token"}}
        return [{"path": str(agent.directory / "old" / "agent.json"), "format": "json", **keys}]
    return [{"path": str(agent.directory / "old" / ".env"), "format": "env", "agent_id": "AGENT_ID", "secrets": {"token": "AGENT_TOKEN"}}]


def fleet(world: World, directory: Path) -> dict[str, Agent]:
    """One agent for each contract."""
    return {contract: Agent(world, contract, directory / contract) for contract in CONTRACTS}


def actions(agents: Mapping[str, Agent], play: Any) -> dict[str, tuple[str, str]]:
    """Action and reason by host."""
    return {host: (play.result(host)["action"], play.result(host)["reason"]) for host in agents}


def test_a_host_enrolled_by_the_guides_playbook_is_adopted_with_its_id_and_no_registration(world: World, controller: Controller, tmp_path: Path) -> None:
    cases = (("env", "documented", "fast"), ("env", "shipped", "module"), ("json", "documented", "module"), ("json", "shipped", "fast"))
    agents = {f"{kind}-{contract}": Agent(world, contract, tmp_path / f"{kind}-{contract}", way, vault=kind == "env") for kind, contract, way in cases}
    controller.run(guide_tasks(tmp_path), {host: guide_variables(agent) for host, agent in agents.items()}).good()
    before = {host: json.loads((agent.directory / "old" / "agent.json").read_text()) for host, agent in agents.items()}
    for server in world.stackers.values():
        server.reset_counters()

    options = {host: agent.options(adopt_from=adopt_from(agent, host.split("-")[0])) for host, agent in agents.items()}
    adopted = controller.each(REGISTER, options, arguments=["--diff"]).good()
    assert set(actions(agents, adopted).values()) == {("adopted", "found_on_host")}
    for host, agent in agents.items():
        assert adopted.result(host)["agent_id"] == before[host]["agent_id"]
        assert agent.secret() == before[host]["agent_token"]
        agent.check_healthy()
        assert agent.stacker.counters()["stacker"]["mutating"] == 0
        assert before[host]["agent_token"] not in adopted.output

    world.quiet()
    again = controller.each(REGISTER, options).good()
    assert [again.result(host)["changed"] for host in agents] == [False] * len(agents)
    assert world.mutations() == []


def test_an_identity_that_is_live_elsewhere_is_taken_over_only_when_asked(world: World, controller: Controller, tmp_path: Path) -> None:
    there = fleet(world, tmp_path / "there")
    controller.each(REGISTER, orders(there)).good()
    for agent in there.values():
        agent.heartbeat()
    here = {host: Agent(world, agent.contract, tmp_path / "here" / host, agent.way, name=agent.name) for host, agent in there.items()}

    world.quiet()
    for adopt, words in (("never", "set adopt: stale or always"), ("stale", "set adopt: always if it replaces")):
        refused = controller.each(REGISTER, orders(here, adopt=adopt))
        for host, agent in here.items():
            result = refused.result(host)
            assert (result["failed"], result["reason"], result["changed"]) == (True, "identity_conflict", False)
            assert words in result["msg"]
            assert not agent.env_file.exists()
    # Only by being asked for a registration does the shipped server tell which id belongs to the name.
    assert world.mutations() == ["shipped: 2"]
    for agent in there.values():
        agent.check_healthy()

    taken = controller.each(REGISTER, orders(here, adopt="always")).good()
    for host, agent in here.items():
        assert taken.result(host)["agent_id"] == there[host].receipt()["agent_id"]
        agent.check_healthy()


def test_a_token_changed_in_vault_by_another_writer_is_taken_over_by_use(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path)
    controller.each(REGISTER, orders(agents)).good()
    old = {host: agent.secret() for host, agent in agents.items()}
    for agent in agents.values():
        agent.stacker.drift(agent.name)
    world.quiet()
    healed = controller.each(REGISTER, orders(agents)).good()
    for host, agent in agents.items():
        # The documented server still lets the old token pass for a while; the shipped one at once only what Vault holds.
        result = healed.result(host)
        agent.check_healthy()
        assert result["changed"]
        if agent.contract == "shipped":
            assert (result["action"], result["reason"]) == ("adopted", "vault_credential")
            assert agent.secret() != old[host]
        assert agent.stacker.counters()["stacker"]["mutating"] == 0


def test_a_record_that_the_server_lost_is_made_again(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path)
    controller.each(REGISTER, orders(agents)).good()
    old = {host: agent.receipt()["agent_id"] for host, agent in agents.items()}
    for agent in agents.values():
        agent.stacker.forget(agent.name)
    healed = controller.each(REGISTER, orders(agents)).good()
    for host, agent in agents.items():
        assert healed.result(host)["agent_id"] != old[host]
        agent.check_healthy()
    world.quiet()
    quiet = controller.each(REGISTER, orders(agents)).good()
    assert [quiet.result(host)["changed"] for host in agents] == [False] * len(agents)
    assert world.mutations() == []


def test_a_token_deleted_from_vault_is_put_back(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path)
    controller.each(REGISTER, orders(agents)).good()
    old = {host: agent.secret() for host, agent in agents.items()}
    for agent in agents.values():
        for leaf in agent.leaves:
            world.bao.call("DELETE", leaf)
    controller.each(REGISTER, orders(agents)).good()
    for host, agent in agents.items():
        agent.check_healthy()
        if agent.contract == "shipped":
            assert agent.secret() == old[host]


def test_a_rebuilt_host_gets_its_identity_back_through_vault(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = fleet(world, tmp_path)
    controller.each(REGISTER, orders(agents)).good()
    old = {host: agent.receipt()["agent_id"] for host, agent in agents.items()}
    rebuilt = {host: Agent(world, agent.contract, tmp_path / "rebuilt" / host, agent.way, name=agent.name) for host, agent in agents.items()}
    back = controller.each(REGISTER, orders(rebuilt)).good()
    for host, agent in rebuilt.items():
        assert back.result(host)["agent_id"] == old[host]
        agent.check_healthy()


def test_a_rebuilt_host_without_vault_is_told_what_to_do_about_a_409(world: World, controller: Controller, tmp_path: Path) -> None:
    agent = Agent(world, "documented", tmp_path / "old", vault=False)
    controller.each(REGISTER, {"host": agent.options()}).good()
    rebuilt = Agent(world, "documented", tmp_path / "new", vault=False, name=agent.name)
    result = controller.each(REGISTER, {"host": rebuilt.options()}).result("host")
    assert (result["failed"], result["reason"]) == (True, "identity_conflict")
    assert "Give vault and vault_paths" in result["msg"]
    assert not rebuilt.env_file.exists()
    assert agent.stacker.accepts(agent.name, agent.secret())


def test_running_again_after_a_refusal_takes_over_no_foreign_identity(world: World, controller: Controller, tmp_path: Path) -> None:
    """A name that is taken and whose token is in no Vault: nothing shows that it is this host's, however often one asks."""
    there = Agent(world, "documented", tmp_path / "there", vault=False)
    there.stacker.fault("register", "no-vault-write", name=there.name)
    controller.each(REGISTER, {"there": there.options()}).good()
    here = {way: Agent(world, "documented", tmp_path / way, way, name=there.name) for way in WAYS}
    world.quiet()
    for _attempt in range(2):
        refused = controller.each(REGISTER, orders(here))
        for way in here:
            assert refused.result(way).get("reason") == "identity_conflict", refused.result(way)
    assert [agent.everything() for agent in here.values()] == [{}] * len(WAYS)
    assert world.bao.mutating_requests() == []
    assert there.stacker.accepts(there.name, there.secret())


def test_an_attempt_that_was_refused_for_good_leaves_nothing_to_resume(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {contract: Agent(world, contract, tmp_path / contract) for contract in CONTRACTS}
    for agent in agents.values():
        agent.stacker.fault("register", "status", status=403, name=agent.name, body="forbidden")
    refused = controller.each(REGISTER, orders(agents))
    for contract, agent in agents.items():
        assert (refused.result(contract)["reason"], agent.everything()) == ("bad_bootstrap", {})
    controller.each(REGISTER, orders(agents)).good()
    for agent in agents.values():
        agent.check_healthy()
