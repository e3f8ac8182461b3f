# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotating the tokens of many agents through Vault KV v2 in one task, and what their hosts make of it afterwards."""

from __future__ import annotations

import itertools
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs as specs
from ansible_collections.muster.agents.plugins.plugin_utils._campaign import Campaign
from ansible_collections.muster.agents.plugins.plugin_utils._errors import VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._fleet_rotation import rotate_fleet
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath
from reference_server.client import ReferenceServer, VaultLink

from .agents import REGISTER, Agent, World, orders
from .controller import Controller, Play

ROTATE = "muster.agents.token_rotate"
SIZE = 6
USER, PASSWORD = "operator@example.test", "a password for the fleet"


@pytest.fixture
def versioned(world: World) -> Iterator[ReferenceServer]:
    """A Stacker as it ships, whose tokens lie on KV v2: it lets an old token be good no longer."""
    link = VaultLink(world.bao.url, str(world.bao.token_file), str(world.bao.ca_file), "secret/data")
    with ReferenceServer.start("shipped", tls=world.tls, vault=link, arguments=["--user", f"{USER}:{PASSWORD}"]) as server:
        yield server


@pytest.fixture
def agents(world: World, versioned: ReferenceServer, controller: Controller, tmp_path: Path) -> dict[str, Agent]:
    """Enrolled agents, none of which runs."""
    found = {f"agent-{number}": Agent(world, "shipped", tmp_path / str(number), prefix="secret/data", server=versioned) for number in range(SIZE)}
    controller.each(REGISTER, orders(found)).good()
    return found


def fleet(agents: Mapping[str, Agent], **changes: Any) -> dict[str, Any]:
    """The options of one task for all of them."""
    first = next(iter(agents.values()))
    entries = [
        {"name": agent.name, "agent_id": agent.secret("agent_id"), "vault_paths": [{"path": leaf, "fields": {"token": "token"}} for leaf in agent.leaves]}
        for agent in agents.values()]
    given = {
        "control_plane": "stacker", "url": first.stacker.url, "ca_cert": str(first.world.ca_file), "vault": first.vault_login(), "when": ["always"],
        "agents": entries, "connections": 4, "fleet_wait": 0, "settle_timeout": 5,
    }
    return {**given, **changes}


def run(controller: Controller, options: Mapping[str, Any], *arguments: str) -> Play:
    """One task on one host, for all agents."""
    return controller.each(ROTATE, {"controller": options}, arguments=arguments)


def test_a_fleet_is_foretold_rotated_and_then_adopted_by_its_hosts_without_a_change_at_the_server(
    world: World, versioned: ReferenceServer, agents: dict[str, Agent], controller: Controller,
) -> None:
    old = {host: agent.secret() for host, agent in agents.items()}
    world.quiet()
    foretold = run(controller, fleet(agents), "--check").result("controller")
    assert foretold["counts"]["planned"] == SIZE
    assert world.mutations() == []

    play = run(controller, fleet(agents)).good()
    done = play.result("controller")
    assert (done["action"], done["changed"], done["counts"]["rotated"]) == ("rotated", True, SIZE), done
    assert f"{SIZE} of {SIZE} agents rotated, 0 failed" in play.output
    for host, agent in agents.items():
        entry = done["results"][agent.name]
        assert (entry["action"], entry["failed"], sorted(entry["versions"])) == ("rotated", False, sorted(agent.leaves))
        first, second = agent.in_vault()
        assert first == second
        assert first != old[host]
        assert agent.stacker.accepts(agent.name, str(first))
        assert not agent.stacker.accepts(agent.name, old[host])
        assert old[host] not in play.output + play.events
        assert str(first) not in play.output + play.events
        assert world.bao.read(f"secret/data/{agent.name}/muster_lease") is None

    world.quiet()
    versioned.reset_counters()
    adopted = controller.each(REGISTER, orders(agents)).good()
    assert {adopted.result(host)["reason"] for host in agents} == {"vault_credential"}
    for agent in agents.values():
        agent.check_healthy()
    quiet = controller.each(REGISTER, orders(agents)).good()
    assert {quiet.result(host)["changed"] for host in agents} == {False}
    assert world.mutations() == []
    assert versioned.counters()["stacker"]["mutating"] == 0
    again = run(controller, fleet(agents, when=["age"])).good().result("controller")
    assert (again["changed"], again["counts"]["unchanged"]) == (False, SIZE)


def test_the_id_that_a_token_needs_is_learnt_from_vault_and_missed_by_name(
    world: World, versioned: ReferenceServer, agents: dict[str, Agent], controller: Controller,
) -> None:
    """Stacker as it ships looks a token up by the agent's id: one agent has it in Vault beside a copy of the token, the other nowhere."""
    known, unknown = list(agents.values())[:2]
    copy: dict[str, Any] = {"path": f"secret/data/copies/{known.name}", "fields": {"token": "token", "id": "agent_id"}}
    world.bao.call("POST", copy["path"], {"data": {"token": known.secret(), "id": known.secret("agent_id")}})
    options = fleet({"known": known, "unknown": unknown})
    entries = [{name: value for name, value in entry.items() if name != "agent_id"} for entry in options["agents"]]
    entries[0]["vault_paths"] = [*entries[0]["vault_paths"], copy]
    old = known.secret()
    done = run(controller, {**options, "agents": entries}).result("controller")
    assert done["results"][known.name]["action"] == "rotated", done
    assert (done["results"][unknown.name]["action"], done["results"][unknown.name]["reason"]) == ("failed", "agent_id_unknown")
    assert unknown.in_vault() == [unknown.secret()] * 2
    assert known.in_vault()[0] != old
    written = world.bao.read(copy["path"])
    assert written is not None
    assert written["data"] == {"token": known.in_vault()[0], "id": known.secret("agent_id")}

    world.quiet()
    versioned.reset_counters()
    adopted = controller.each(REGISTER, orders({"known": known, "unknown": unknown})).good()
    assert (adopted.result("known")["reason"], adopted.result("unknown")["changed"]) == ("vault_credential", False)
    known.check_healthy()
    assert (world.mutations(), versioned.counters()["stacker"]["mutating"]) == ([], 0)


def _login(world: World, server: ReferenceServer) -> str:
    """Return the token of a user's session."""
    body = json.dumps({"email": USER, "password": PASSWORD}).encode()
    request = urllib.request.Request(f"{server.url}/api/v1/agent/login", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=str(world.ca_file))) as answer:
        return str(json.load(answer)["session_token"])


def test_an_id_is_asked_for_once_it_is_known_to_be_needed(
    world: World, versioned: ReferenceServer, agents: dict[str, Agent], controller: Controller,
) -> None:
    """The first token is refused for want of its agent's id; from then on each id is asked for first, of a control plane that tells it to this user."""
    options = fleet(agents, connections=1, admin_token=_login(world, versioned))
    nameless = [{name: value for name, value in entry.items() if name != "agent_id"} for entry in options["agents"]]
    before = len(versioned.log)
    done = run(controller, {**options, "agents": nameless}).result("controller")
    assert done["counts"]["rotated"] == SIZE, done
    asked = [(str(line["path"]).split("/")[4], line["status"]) for line in versioned.log[before:] if "/agent/" in line["path"]]
    assert asked == [("notifications", "400"), *[("deployments", "200"), ("notifications", "200"), ("notifications", "200")] * SIZE]


def test_one_entry_is_shown_by_use_and_several_are_read(world: World, agents: dict[str, Agent], controller: Controller) -> None:
    single, double = list(agents.values())[:2]
    options = fleet({"single": single, "double": double})
    options["agents"][0]["vault_paths"] = options["agents"][0]["vault_paths"][:1]
    world.quiet()
    done = run(controller, options).result("controller")
    assert done["counts"]["rotated"] == 2, done
    assert done["results"][single.name]["versions"] == {single.leaves[0]: 2}
    reads = [request["path"] for request in world.bao.requests() if request["operation"] == "read"]
    # The control plane reads the first entry of each for both proofs; the first of all is looked at to see on what engine it lies.
    assert [reads.count(path) for path in (*single.leaves, *double.leaves)] == [1 + 2 + 1, 0, 2 + 2, 2]
    leased = {request["path"] for request in world.bao.requests() if "muster_lease" in request["path"]}
    assert leased == {f"secret/{engine}/{double.name}/muster_lease" for engine in ("data", "metadata")}
    token = single.in_vault()[0]
    assert token is not None
    assert single.stacker.accepts(single.name, token)


def _meddled(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], None]) -> None:
    """Let somebody else write right before each of our own conditional writes."""
    exchange = Vault.exchange

    def late(self: Vault, *arguments: Any, **options: Any) -> Any:
        meddle()
        return exchange(self, *arguments, **options)

    monkeypatch.setattr(Vault, "exchange", late)


def _in_process(world: World, options: Mapping[str, Any], say: Callable[[str], object] = print) -> dict[str, Any]:
    """The work of the task in this process, where a test can come between two of its requests. No token that was or is in Vault is in its result."""
    paths = [path["path"] for agent in options["agents"] for path in agent["vault_paths"]]
    tokens = [entry["data"]["token"] for entry in map(world.bao.read, paths) if entry is not None]
    spec = {**specs.CONTROL_PLANE, **specs.TRANSPORT, **specs.VAULT, **specs.ROTATION}
    checked = ArgumentSpecValidator(spec).validate(dict(options))
    assert checked.error_messages == []
    result = rotate_fleet(checked.validated_parameters, Campaign("", "", "", 0), check_mode=False, say=say)
    tokens += [entry["data"]["token"] for entry in map(world.bao.read, paths) if entry is not None]
    assert tokens
    assert not [token for token in tokens if token in json.dumps(result)]
    return result


def _single(agent: Agent, **changes: Any) -> dict[str, Any]:
    """The options of one agent of whose entries only the one is told that its control plane reads."""
    options = fleet({"agent": agent}, **changes)
    options["agents"][0]["vault_paths"] = options["agents"][0]["vault_paths"][:1]
    return options


def test_of_two_runs_at_once_the_one_that_writes_first_rotates_and_the_other_leaves_it(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = next(iter(agents.values()))
    theirs = "token-of-another-run-" * 4
    _meddled(monkeypatch, lambda: world.bao.write(agent.leaves[0], {"data": {"token": theirs}}))
    entry = _in_process(world, _single(agent))["results"][agent.name]
    assert (entry["action"], entry["reason"], entry["failed"], entry["changed"]) == ("unchanged", "rotated_meanwhile", False, False)
    assert entry["versions"] == {agent.leaves[0]: 2}
    assert agent.in_vault()[0] == theirs


@pytest.mark.parametrize("managed", [False, True])
def test_a_writer_beside_the_token_delays_a_rotation_and_its_field_stays(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch, managed: bool,
) -> None:
    """Even where the field is one that we keep too: a token that is the same has not been rotated."""
    agent = next(iter(agents.values()))
    notes = iter([agent.secret("agent_id")] * 2 if managed else ["first", "second"])
    options = _single(agent)
    if managed:
        options["agents"][0]["vault_paths"] = [{"path": agent.leaves[0], "fields": {"token": "token", "note": "agent_id"}}]

    def meddle() -> None:
        note = next(notes, None)
        if note is not None:
            world.bao.write(agent.leaves[0], {"data": {"token": agent.secret(), "note": note}})

    _meddled(monkeypatch, meddle)
    entry = _in_process(world, options)["results"][agent.name]
    assert (entry["action"], entry["versions"]) == ("rotated", {agent.leaves[0]: 4})
    held = world.bao.read(agent.leaves[0])
    assert held is not None
    assert held["data"]["note"] == (agent.secret("agent_id") if managed else "second")
    assert held["data"]["token"] != agent.secret()
    assert agent.stacker.accepts(agent.name, held["data"]["token"])


def test_a_writer_who_never_rests_is_told_of_and_nothing_is_put_back(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, count = next(iter(agents.values())), itertools.count()
    _meddled(monkeypatch, lambda: world.bao.write(agent.leaves[0], {"data": {"token": agent.secret(), "note": str(next(count))}}))
    entry = _in_process(world, _single(agent))["results"][agent.name]
    assert (entry["action"], entry["reason"]) == ("failed", "cas_conflict")
    assert "old token" not in entry["msg"]
    assert next(count) == 3
    assert agent.in_vault()[0] == agent.secret()


@pytest.mark.parametrize("place", [0, 1])
def test_a_write_that_was_not_found_afterwards_is_taken_back(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch, place: int,
) -> None:
    """A node that is behind shows the entry as it was: nobody knows then who wrote last, and the new token must not stay in one of two entries."""
    agent = next(iter(agents.values()))
    verified, behind = Vault._verified, [agent.leaves[place]]

    def late(self: Vault, path: VaultPath, *arguments: Any) -> Any:
        if path.path in behind:
            behind.remove(path.path)
            raise VaultFailure(f"{path.path} was changed by somebody else right after it was written.", reason="cas_conflict")
        return verified(self, path, *arguments)

    monkeypatch.setattr(Vault, "_verified", late)
    entry = _in_process(world, fleet({"agent": agent}))["results"][agent.name]
    assert (entry["action"], entry["reason"]) == ("rolled_back", "cas_conflict")
    assert agent.in_vault() == [agent.secret()] * 2
    assert agent.stacker.accepts(agent.name, agent.secret())


def test_a_failure_that_nobody_expected_is_one_agents_own(world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when there are more of them than threads."""
    unlucky, lucky = list(agents.values())[:4], list(agents.values())[4:]
    exchange, paths = Vault.exchange, {leaf for agent in unlucky for leaf in agent.leaves}

    def broken(self: Vault, path: VaultPath, *arguments: Any, **options: Any) -> Any:
        if path.path in paths:
            raise ZeroDivisionError("nobody expects this")
        return exchange(self, path, *arguments, **options)

    monkeypatch.setattr(Vault, "exchange", broken)
    done = _in_process(world, fleet(agents, connections=2, failure_budget=SIZE))
    for agent in unlucky:
        entry = done["results"][agent.name]
        assert (entry["action"], entry["reason"], "ZeroDivisionError" in entry["msg"]) == ("failed", "unexpected", True)
        assert agent.in_vault() == [agent.secret()] * 2
    assert [done["results"][agent.name]["action"] for agent in lucky] == ["rotated"] * len(lucky)


def test_a_fleet_that_its_campaign_has_done_is_left_alone_without_a_word(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Campaign, "standing", lambda _self, _name: "done")
    done = _in_process(world, fleet(agents), say=said.append)
    assert (done["changed"], {entry["reason"] for entry in done["results"].values()}, said) == (False, {"done_in_campaign"}, [])


def test_who_interrupts_it_waits_for_the_agents_it_is_at_and_no_longer(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange, said = Vault.exchange, []

    def slow(self: Vault, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.8)
        return exchange(self, *arguments, **options)

    def interrupt(words: str) -> None:
        said.append(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "exchange", slow)
    with pytest.raises(KeyboardInterrupt):
        _in_process(world, fleet(agents, connections=1), say=interrupt)
    whole = [agent.in_vault()[0] for agent in agents.values() if len(set(agent.in_vault())) == 1]
    assert len(whole) == SIZE
    kept = [agent for agent in agents.values() if agent.in_vault()[0] == agent.secret()]
    assert len(said) == 1
    assert 0 < len(kept) < SIZE


def test_what_somebody_wrote_over_the_new_token_stays_and_is_not_told_as_a_way_back(
    world: World, agents: dict[str, Agent], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new token is refused, and when the old one is to come back the entry holds neither."""
    agent = next(iter(agents.values()))
    copy = f"secret/data/copies/{agent.name}"
    world.bao.write(copy, {"data": {"token": agent.secret()}})
    options = _single(agent, settle_timeout=1)
    options["agents"][0]["vault_paths"] = [{"path": copy, "fields": {"token": "token"}}]
    exchange = Vault.exchange

    def early(self: Vault, *arguments: Any, **options: Any) -> Any:
        change = exchange(self, *arguments, **options)
        world.bao.write(copy, {"data": {"token": "of somebody else"}})
        return change

    monkeypatch.setattr(Vault, "exchange", early)
    entry = _in_process(world, options)["results"][agent.name]
    assert (entry["action"], entry["reason"]) == ("failed", "new_credential_refused")
    assert f"Neither token is at {copy}" in entry["msg"]
    assert "again" not in entry["msg"]
    held = world.bao.read(copy)
    assert held is not None
    assert held["data"] == {"token": "of somebody else"}


def test_a_token_in_an_entry_that_nobody_reads_is_not_taken_for_a_rotation(world: World, agents: dict[str, Agent], controller: Controller) -> None:
    """The entry holds the accepted token, but the control plane reads another: a new one there is refused, and the old one comes back."""
    agent = next(iter(agents.values()))
    options = fleet({"agent": agent}, settle_timeout=1)
    copy = f"secret/data/copies/{agent.name}"
    world.bao.write(copy, {"data": {"token": agent.secret()}})
    options["agents"][0]["vault_paths"] = [{"path": copy, "fields": {"token": "token"}}]
    done = run(controller, options).result("controller")
    entry = done["results"][agent.name]
    assert (entry["action"], entry["reason"]) == ("rolled_back", "new_credential_refused")
    held = world.bao.read(copy)
    assert held is not None
    assert held["data"] == {"token": agent.secret()}
    assert agent.in_vault() == [agent.secret()] * 2
    assert agent.stacker.accepts(agent.name, agent.secret())


def test_agents_that_do_not_follow_get_their_tokens_back(
    versioned: ReferenceServer, agents: dict[str, Agent], controller: Controller,
) -> None:
    """Half of the agents take their new token from Vault and are seen, by a clock that has jumped; the others never come back."""
    versioned.clock(-240)
    hosts = list(agents)
    alive, away = hosts[: SIZE // 2], hosts[SIZE // 2:]
    old = {host: agent.secret() for host, agent in agents.items()}
    stop = threading.Event()

    def follow() -> None:
        while not stop.is_set():
            for host in alive:
                token = agents[host].in_vault()[0]
                if token is not None and token != old[host]:
                    (agents[host].root / "generations" / "1" / "token").write_text(token)
                    agents[host].heartbeat()
            time.sleep(0.3)

    watcher = threading.Thread(target=follow)
    watcher.start()
    try:
        result = run(controller, fleet(agents, fleet_wait=8)).result("controller")
    finally:
        stop.set()
        watcher.join()
    assert result["failed"]
    assert (result["counts"]["rotated"], result["counts"]["rolled_back"]) == (len(alive), len(away)), result
    for host in away:
        entry = result["results"][agents[host].name]
        assert (entry["action"], entry["reason"], entry["failed"]) == ("rolled_back", "not_seen", True)
        assert agents[host].in_vault() == [old[host]] * 2
        assert agents[host].stacker.accepts(agents[host].name, old[host])


def test_a_clock_that_jumps_meanwhile_does_not_keep_an_agent_from_being_seen(
    world: World, versioned: ReferenceServer, agents: dict[str, Agent],
) -> None:
    """The server is asked by its old clock first; the agent comes by the new one."""
    agent, old = next(iter(agents.values())), next(iter(agents.values())).secret()
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.1) and agent.in_vault()[0] in (None, old):
            pass
        stop.wait(2.5)
        versioned.clock(-240)
        while not stop.wait(0.5):
            (agent.root / "generations" / "1" / "token").write_text(str(agent.in_vault()[0]))
            agent.heartbeat()

    watcher = threading.Thread(target=follow)
    watcher.start()
    try:
        entry = _in_process(world, fleet({"agent": agent}, fleet_wait=12, connections=1))["results"][agent.name]
    finally:
        stop.set()
        watcher.join()
    assert (entry["action"], bool(entry["last_seen"])) == ("rotated", True), entry


def test_a_call_with_the_old_token_right_before_the_switch_is_no_proof_of_the_new_one(world: World, agents: dict[str, Agent]) -> None:
    """Within the uncertainty of the server's clock it could be taken for one that came after."""
    agent = next(iter(agents.values()))
    agent.heartbeat()
    entry = _in_process(world, fleet({"agent": agent}, fleet_wait=4))["results"][agent.name]
    assert (entry["action"], entry["reason"]) == ("rolled_back", "not_seen")
    assert agent.in_vault() == [agent.secret()] * 2


def test_what_somebody_else_holds_or_has_spoilt_is_left_alone_and_the_budget_ends_it(
    world: World, agents: dict[str, Agent], controller: Controller,
) -> None:
    held, spoilt, *others = agents.values()
    world.bao.call("POST", f"secret/data/{held.name}/muster_lease", {"data": {"holder": "other:1", "until": str(int(time.time()) + 600)}})
    spoilt.stacker.forget(spoilt.name)
    done = run(controller, fleet(agents, failure_budget=5, campaign="spring")).result("controller")
    assert done["results"][held.name]["reason"] == "busy"
    assert done["results"][spoilt.name]["reason"] == "no_accepted_credential"
    assert held.in_vault() == [held.secret()] * 2
    assert [done["results"][agent.name]["action"] for agent in others] == ["rotated"] * len(others)
    assert done["campaign"] == {"done": sorted(agent.name for agent in others), "failed": sorted([held.name, spoilt.name])}

    world.bao.call("DELETE", f"secret/metadata/{held.name}/muster_lease")
    again = run(controller, fleet(agents, failure_budget=5, campaign="spring")).result("controller")
    assert again["results"][held.name]["action"] == "rotated"
    assert {again["results"][agent.name]["reason"] for agent in others} == {"done_in_campaign"}
    spent = run(controller, fleet({"spoilt": spoilt, **{agent.name: agent for agent in others}}, failure_budget=0, connections=1)).result("controller")
    assert {spent["results"][agent.name]["action"] for agent in others} == {"untouched"}


def test_what_cannot_work_is_refused_before_anything_is_written(world: World, agents: dict[str, Agent], controller: Controller, tmp_path: Path) -> None:
    flat = Agent(world, "shipped", tmp_path / "flat")
    controller.each(REGISTER, orders({"flat": flat})).good()
    world.quiet()
    cases = {
        "needs_kv_v2": fleet({"flat": flat}), "invalid_input": fleet(agents, connections=65),
        "permission_denied": fleet(agents, vault={**flat.vault_login(), "token_file": None, "token": world.bao.token(["default"], ttl="1h")}),
    }
    for reason, options in cases.items():
        assert run(controller, options).result("controller")["reason"] == reason
    assert world.mutations() == []
