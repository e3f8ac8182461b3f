# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vault_token_store as a user runs it: ansible-playbook against a real OpenBao."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, deliver
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import new_key
from world import OpenBao

from .conftest import Playbook, Ran

CANARY = "canary-51b2-do-not-print"


@pytest.fixture
def agent(bao: OpenBao) -> Iterator[str]:
    """The name of an agent; the counter of mutating requests starts at zero, and the server is unsealed afterwards."""
    bao.reset_mutations()
    yield str(uuid.uuid4())
    bao.unseal()


@pytest.fixture
def vault(bao: OpenBao) -> dict[str, Any]:
    """The ``vault`` option."""
    return {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)}


@pytest.fixture
def enrolled(agent: str, tmp_path: Path) -> dict[str, Any]:
    """Options that name an agent whose host keeps a token, as agent_register leaves it."""
    root = tmp_path / "store" / "stacker" / agent
    receipt = Receipt("stacker", agent, "https://stacker.example.com", "COMMITTED", "attempt", generation=1, agent_id="42")
    root.mkdir(parents=True, mode=0o700)
    (root / "key").write_text(new_key())
    deliver(Delivery(str(root), "", receipt=receipt.dump(), generation=1, secrets=(("agent_id", b"42"), ("token", CANARY.encode()))), lambda *_: None)
    return {"control_plane": "stacker", "name": agent, "store": str(tmp_path / "store")}


def store(vault: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return a task that runs the module."""
    return {"muster.agents.vault_token_store": {"vault": dict(vault), **options}}


def two_paths(agent: str, **names: str) -> list[dict[str, Any]]:
    """Return the paths of one agent on both mounts."""
    return [{"path": f"status_panel/{agent}/token", "fields": names}, {"path": f"secret/data/{agent}", "fields": names}]


def ok(ran: Ran, *hidden: str) -> Mapping[str, Any]:
    """Return the last result of a run without failures; nothing secret was printed or returned."""
    assert ran.code == 0, ran.output
    assert not ran.result.get("failed"), ran.result
    for secret in (CANARY, *hidden):
        assert secret not in ran.output
        assert secret not in repr(ran.results)
    return ran.result


def test_present_again_and_absent(bao: OpenBao, playbook: Playbook, vault: dict[str, Any], agent: str) -> None:
    options = {"vault_paths": two_paths(agent, db_password="database"), "secrets": [{"name": "database", "value": CANARY}]}
    hidden = (bao.root_token,)
    planned = ok(playbook.run(store(vault, **options), arguments=["--check", "--diff", "-vvvv"]), *hidden)
    assert (planned["changed"], planned["action"], bao.mutating_requests()) == (True, "stored", [])
    assert planned["msg"].startswith("Would have stored")

    stored = ok(playbook.run(store(vault, **options), arguments=["--diff", "-vvvv"]), *hidden)
    assert (stored["changed"], stored["action"], stored["reason"]) == (True, "stored", "stored")
    assert (stored["diff"], stored["vault"]) == (planned["diff"], planned["vault"])
    assert [entry["fields_added"] for entry in stored["vault"]] == [["db_password"], ["db_password"]]
    for path in (f"status_panel/{agent}/token", f"secret/data/{agent}"):
        found = bao.read(path)
        assert found is not None
        assert found["data"] == {"db_password": CANARY}

    bao.reset_mutations()
    ran = playbook.run(store(vault, **options))
    again = ok(ran, *hidden)
    assert (again["changed"], again["action"], "diff" in again, bao.mutating_requests()) == (False, "unchanged", False, [])
    assert "changed=0" in ran.output, ran.output

    gone = {"vault_paths": options["vault_paths"], "state": "absent"}
    planned = ok(playbook.run(store(vault, **gone), arguments=["--check"]), *hidden)
    assert (planned["changed"], bao.mutating_requests()) == (True, [])
    removed = ok(playbook.run(store(vault, **gone), store(vault, **gone), arguments=["--diff", "-vvvv"]), *hidden)
    assert (removed["changed"], removed["action"], removed["diff"]) == (False, "unchanged", [])
    assert bao.read(f"status_panel/{agent}/token") is None
    assert bao.read(f"secret/metadata/{agent}") is None


def test_the_secrets_of_an_enrolled_agent_and_its_own_vault_token(
    bao: OpenBao, playbook: Playbook, vault: dict[str, Any], agent: str, enrolled: dict[str, Any], tmp_path: Path,
) -> None:
    options = {**enrolled, "vault_paths": two_paths(agent, token="token"), "agent_token_policy": {"period": "2h"}}
    planned = ok(playbook.run(store(vault, **options), arguments=["--check", "--diff"]))
    assert (planned["changed"], planned["policy"]["token_action"], bao.mutating_requests()) == (True, "minted", [])
    assert sorted(path.name for path in (tmp_path / "store/stacker" / agent / "generations").iterdir()) == ["1"]

    stored = ok(playbook.run(store(vault, **options), arguments=["--diff", "-vvvv"]))
    minted = (tmp_path / "store/stacker" / agent / "generations/2/vault_token").read_text()
    assert (stored["policy"]["policy_action"], stored["policy"]["token_action"]) == ("created", "minted")
    assert minted not in repr(stored)
    assert bao.read(f"status_panel/{agent}/token", token=minted) == {"data": {"token": CANARY}}
    assert bao.call("GET", f"secret/metadata/{agent}", token=minted).status == 403
    assert (tmp_path / "store/stacker" / agent / "generations/2/token").read_text() == CANARY

    bao.reset_mutations()
    again = ok(playbook.run(store(vault, **options), arguments=["--diff", "-vvvv"]), minted)
    assert (again["changed"], again["policy"]["token_action"], bao.mutating_requests()) == (False, "kept", [])

    bao.call("POST", "auth/token/revoke", {"token": minted})
    healed = ok(playbook.run(store(vault, **options)), minted)
    renewed = (tmp_path / "store/stacker" / agent / "generations/3/vault_token").read_text()
    assert (healed["changed"], healed["policy"]["token_action"], renewed != minted) == (True, "minted", True)

    gone = {**options, "state": "absent"}
    removed = ok(playbook.run(store(vault, **gone), arguments=["--diff", "-vvvv"]), minted, renewed)
    assert (removed["action"], removed["policy"]["policy_action"], removed["policy"]["token_action"]) == ("removed", "removed", "removed")
    assert bao.call("GET", "auth/token/lookup-self", token=renewed).status == 403
    assert not (tmp_path / "store/stacker" / agent / "generations/4/vault_token").exists()
    assert (tmp_path / "store/stacker" / agent / "generations/4/token").read_text() == CANARY
    bao.reset_mutations()
    assert ok(playbook.run(store(vault, **gone)))["changed"] is False
    assert bao.mutating_requests() == []


def test_a_failure_is_one_sentence_and_tells_what_was_done_before_it(
    bao: OpenBao, playbook: Playbook, vault: dict[str, Any], agent: str,
) -> None:
    secrets = [{"name": "database", "value": CANARY}]
    paths = two_paths(agent, token="database")
    bao.policy(agent, f'path "status_panel/{agent}/*" {{ capabilities = ["create", "read", "update"] }}\npath "secret/data/+" {{ capabilities = ["list"] }}')
    limited = {**vault, "token_file": None, "token": bao.token([agent])}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("invalid_input", store(vault, vault_paths=two_paths(agent, token="nope"), secrets=secrets), "(known: database)"),
        ("invalid_input", store(vault, vault_paths=[], secrets=secrets), "vault_paths is empty"),
        ("invalid_input", store(vault, vault_paths=paths, secrets=secrets, agent_token_policy={}), "control_plane and name"),
        ("invalid_input", store({**vault, "url": "http://vault.example.com"}, vault_paths=paths, secrets=secrets), "clear text"),
        ("wrong_kv_shape", store(vault, vault_paths=[{"path": f"secret/{agent}", "fields": {"a": "database"}}], secrets=secrets), f"secret/data/{agent}"),
        ("missing_mount", store(vault, vault_paths=[{"path": "nowhere/x", "fields": {"a": "database"}}], secrets=secrets), "nowhere/x"),
        ("wrong_token", store({**vault, "token_file": None, "token": CANARY}, vault_paths=paths, secrets=secrets), "does not accept"),
        ("permission_denied", store(limited, vault_paths=paths, secrets=secrets), f"secret/data/{agent}"),
        ("unreachable", store({**vault, "url": "https://127.0.0.1:1"}, vault_paths=paths, secrets=secrets), "refuses connections"),
        ("untrusted", store({**vault, "ca_cert": None}, vault_paths=paths, secrets=secrets), "ca_cert"),
    ]
    ran = playbook.run(*(task for _reason, task, _words in cases), arguments=["-vvvv", "--diff"])
    assert len(ran.results) == len(cases), ran.output
    for (reason, _task, words), result in zip(cases, ran.results):
        assert (result["failed"], result["changed"], result["reason"]) == (True, False, reason), result
        assert words in result["msg"]
    for secret in (CANARY, bao.root_token, limited["token"]):
        assert secret not in ran.output
        assert secret not in repr(ran.results)
    assert bao.mutating_requests() == []


def test_an_agent_that_is_not_enrolled_gets_no_token(
    bao: OpenBao, playbook: Playbook, vault: dict[str, Any], agent: str, tmp_path: Path,
) -> None:
    options = {"control_plane": "stacker", "name": agent, "store": str(tmp_path / "empty"), "agent_token_policy": {},
               "vault_paths": two_paths(agent, vt="vault_token")}
    result = playbook.run(store(vault, **options)).result
    assert (result["reason"], "agent_register" in result["msg"], bao.mutating_requests()) == ("invalid_input", True, [])


def test_a_sealed_vault_stops_the_task(bao: OpenBao, playbook: Playbook, vault: dict[str, Any], agent: str) -> None:
    bao.seal()
    result = playbook.run(store(vault, vault_paths=two_paths(agent, a="b"), secrets=[{"name": "b", "value": CANARY}])).result
    assert (result["reason"], result["changed"]) == ("sealed", False)


def test_required_options_are_named(playbook: Playbook, vault: dict[str, Any]) -> None:
    without_paths, half_an_agent = store(vault), store(vault, vault_paths=[], name="x")
    ran = playbook.run(without_paths, half_an_agent)
    assert "vault_paths" in ran.results[0]["msg"]
    assert "control_plane, name" in ran.results[1]["msg"]
