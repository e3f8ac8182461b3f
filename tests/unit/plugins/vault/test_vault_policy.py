# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent's own policy and token: minted, kept, renewed, replaced and removed on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Ambiguous, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._vault import AgentTokenPolicy, Vault, VaultPath, agent_token_policy
from world import OpenBao

from .conftest import CANARY, Open, Refused


def policy_for(name: str, **options: Any) -> AgentTokenPolicy:
    """Return the policy an operator gets for agent *name* with the given options."""
    policy = agent_token_policy(
        {"agent_token_policy": options}, control_plane="stacker", name=name, paths=[f"status_panel/{name}/token", f"secret/data/{name}"])
    assert policy is not None
    return policy


def minted(vault: Vault, policy: AgentTokenPolicy, current: Secret | None = None) -> Secret:
    """Return the token that had to be minted."""
    outcome, token = vault.ensure_agent_token(policy, current)
    assert (outcome.token_action, outcome.changed, token is None) == ("minted", True, False)
    assert token is not None
    return token


def facts_of(bao: OpenBao, token: Secret) -> dict[str, Any]:
    """Return what Vault says of *token* when the token itself asks."""
    return dict(bao.call("GET", "auth/token/lookup-self", token=token.reveal()).data)


def test_a_minted_token_reads_its_own_paths_and_nothing_else(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    for path in (*policy.paths, f"status_panel/{fresh}-neighbour/token", f"status_panel/{fresh}/other", f"secret/data/{fresh}/below"):
        bao.write(path, {"data": {"token": path}})
    vault.preflight([], policy=policy)
    token = minted(vault, policy).reveal()
    for path in policy.paths:
        found = bao.read(path, token=token)
        assert found is not None
        assert found["data"] == {"token": path}
        assert bao.call("POST", path, {"data": {"token": "mine"}}, token=token).status == 403
        assert bao.call("DELETE", path, token=token).status == 403
    for path in (f"status_panel/{fresh}-neighbour/token", f"status_panel/{fresh}/other", f"secret/data/{fresh}/below",
                 f"secret/metadata/{fresh}", "sys/mounts", f"sys/policies/acl/{policy.policy}", "cubbyhole/x"):
        assert bao.call("GET", path, token=token).status == 403, path
    assert bao.call("POST", "auth/token/create", {}, token=token).status == 403


def test_a_minted_token_lasts_by_renewing_itself(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    token = minted(open_vault(), policy_for(fresh, period="2h"))
    facts = facts_of(bao, token)
    assert (facts["orphan"], facts["renewable"], facts["period"], facts["policies"]) == (True, True, 7200, [f"muster-stacker-{fresh}"])
    assert bao.call("POST", "auth/token/renew-self", {}, token=token.reveal()).body["auth"]["lease_duration"] == 7200


def test_a_minted_token_outlives_the_login_that_minted_it(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    policy = policy_for(fresh)
    rules = {
        f"sys/policies/acl/{policy.policy}": '"read", "update", "delete"', "auth/token/create-orphan": '"update", "sudo"',
        "auth/token/lookup": '"update"', "auth/token/revoke": '"update"',
    }
    bao.policy(fresh, "\n".join(f'path "{path}" {{ capabilities = [{words}] }}' for path, words in rules.items()))
    bao.userpass(fresh, CANARY, [fresh])
    vault = open_vault(auth_method="userpass", username=fresh, password=CANARY)
    vault.preflight([], policy=policy)
    token = minted(vault, policy)
    vault.close()
    assert facts_of(bao, token)["policies"] == [policy.policy]
    vault = open_vault(auth_method="userpass", username=fresh, password=CANARY)
    vault.preflight([], policy=policy, remove=True)
    assert vault.remove_agent_token(policy, token).changed is True


def test_a_good_token_is_kept_and_nothing_is_written(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    policy = policy_for(fresh)
    token = minted(open_vault(), policy)
    bao.reset_mutations()
    outcome, new = open_vault().ensure_agent_token(policy, token)
    assert (outcome.changed, outcome.policy_action, outcome.token_action, new) == (False, "unchanged", "kept", None)
    assert bao.mutating_requests() == []


def test_a_token_past_half_of_its_time_is_renewed_without_a_change(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    policy = policy_for(fresh, period="2h")
    vault = open_vault()
    minted(vault, policy)
    # A token of the same kind with a short first lease: the renewal brings it to the whole period.
    answer = bao.call("POST", "auth/token/create-orphan", {
        "policies": [policy.policy], "no_default_policy": True, "renewable": True, "ttl": "10m", "meta": {"period": "2h"}})
    token = Secret(answer.body["auth"]["client_token"])
    lookups = [{"ttl": 100, "creation_ttl": 600}]
    lookup = vault._client.hvac.auth.token.lookup

    def aged(value: str) -> Any:
        found = lookup(value)
        found["data"].update(lookups[0])
        return found

    vault._client.hvac.auth.token.lookup = aged
    bao.reset_mutations()
    outcome, new = vault.ensure_agent_token(policy, token)
    assert (outcome.changed, outcome.token_action, new) == (False, "renewed", None)
    assert bao.mutating_requests() == []
    assert any("renew-self" in str(entry["path"]) for entry in bao.requests())


def test_an_unfit_token_is_replaced_and_the_reason_told(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    good = minted(vault, policy)
    base = {"policies": [policy.policy], "no_default_policy": True, "period": "768h", "meta": {"period": "768h"}}

    def token(path: str = "create-orphan", **changes: Any) -> Secret:
        return Secret(bao.call("POST", f"auth/token/{path}", {**base, **changes}).body["auth"]["client_token"])

    unfit = {
        "Vault does not know": Secret("s.neverissued"),
        "other policies": token(no_default_policy=False),
        "end with its parent": token("create"),
        "cannot be renewed": token(renewable=False, period="", ttl="1h"),
        "another period": token(meta={"period": "1h"}),
    }
    for words, current in unfit.items():
        planned = vault.plan_agent_token(policy, current)
        assert (planned.changed, planned.token_action, words in planned.why) == (True, "minted", True), planned
        new = minted(vault, policy, current)
        assert facts_of(bao, new)["policies"] == [policy.policy]
        vault.revoke_agent_token(current)
    assert vault.plan_agent_token(policy, good).changed is False


def test_a_drifted_policy_is_put_right_and_the_token_kept(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    token = minted(vault, policy)
    bao.policy(policy.policy, policy.text().replace('"read"', '"read", "update"'))
    bao.reset_mutations()
    assert vault.plan_agent_token(policy, token).policy_action == "updated"
    assert bao.mutating_requests() == []
    outcome, new = vault.ensure_agent_token(policy, token)
    assert (outcome.changed, outcome.policy_action, outcome.token_action, new) == (True, "updated", "kept", None)
    assert bao.call("GET", f"sys/policies/acl/{policy.policy}").data["policy"] == policy.text()
    assert bao.mutating_requests() == [f"update sys/policies/acl/{policy.policy}"]


def test_a_policy_of_somebody_else_is_left_alone(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    theirs = 'path "a/b" { capabilities = ["read"] }'
    bao.policy(policy.policy, theirs)
    with refused("policy_conflict", policy.policy, "agent_token_policy.policy"):
        vault.ensure_agent_token(policy, None)
    with refused("policy_conflict", policy.policy):
        vault.remove_agent_token(policy, None)
    assert bao.call("GET", f"sys/policies/acl/{policy.policy}").data["policy"] == theirs


def test_removal_takes_token_and_policy_and_is_idempotent(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    token = minted(vault, policy)
    bao.reset_mutations()
    planned = vault.plan_agent_token_removal(policy, token)
    assert bao.mutating_requests() == []
    done = vault.remove_agent_token(policy, token)
    assert (done, done.policy_action, done.token_action) == (planned, "removed", "removed")
    assert bao.call("GET", "auth/token/lookup-self", token=token.reveal()).status == 403
    assert bao.call("GET", f"sys/policies/acl/{policy.policy}").status == 404
    bao.reset_mutations()
    for current in (token, None):
        again = vault.remove_agent_token(policy, current)
        assert (again.changed, again.policy_action, again.token_action) == (False, "absent", "absent")
    assert bao.mutating_requests() == []


def test_removing_the_policy_takes_the_rights_of_a_token_that_was_lost(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    token = minted(vault, policy)
    bao.write(policy.paths[0], {"data": {"token": CANARY}})
    assert vault.remove_agent_token(policy, None).policy_action == "removed"
    assert bao.call("GET", policy.paths[0], token=token.reveal()).status == 403


@pytest.mark.parametrize(("without", "words"), [
    ("auth/token/create-orphan", "lacks update and sudo on auth/token/create-orphan"),
    ("auth/token/lookup", "lacks update on auth/token/lookup"),
    ("sys/policies/acl/", "lacks read and update on sys/policies/acl/muster-stacker-"),
])
def test_what_the_administrator_lacks_is_named_before_anything_is_written(
    bao: OpenBao, open_vault: Open, fresh: str, refused: Refused, without: str, words: str,
) -> None:
    policy = policy_for(fresh)
    paths = [f"sys/policies/acl/{policy.policy}", "auth/token/create-orphan", "auth/token/lookup", "auth/token/revoke"]
    rights = '{ capabilities = ["read", "update", "sudo"] }'
    bao.policy(fresh, "\n".join(f'path "{path}" {rights}' for path in paths if not path.startswith(without)))
    vault = open_vault(token=bao.token([fresh]))
    with refused("permission_denied", words):
        vault.preflight([], policy=policy)
    assert bao.mutating_requests() == []


def test_minting_without_sudo_says_what_is_needed(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    policy = policy_for(fresh)
    paths = [f"sys/policies/acl/{policy.policy}", "auth/token/create-orphan", "auth/token/lookup", "auth/token/revoke"]
    bao.policy(fresh, "\n".join(f'path "{path}" {{ capabilities = ["read", "update"] }}' for path in paths))
    with refused("permission_denied", "update and sudo on auth/token/create-orphan"):
        open_vault(token=bao.token([fresh])).ensure_agent_token(policy, None)


def test_a_lost_answer_to_minting_is_not_tried_again(
    bao: OpenBao, open_vault: Open, fresh: str, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    http = vault._client._http
    send = http.send

    def lossy(method: str, path: str, **named: Any) -> Any:
        answer = send(method, path, **named)
        if path.endswith(("create-orphan", policy.policy)) and method != "GET":
            raise Ambiguous("the answer was lost.")
        return answer

    monkeypatch.setattr(http, "send", lossy)
    with refused("ambiguous", "ends after 768h"):
        vault.ensure_agent_token(policy, None)
    # The policy's lost answer was looked after; the token was minted once.
    assert bao.mutating_requests() == [f"update sys/policies/acl/{policy.policy}", "update auth/token/create-orphan"]


def test_no_outcome_or_diff_shows_the_token(open_vault: Open, bao: OpenBao, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    outcome, token = vault.ensure_agent_token(policy, None)
    assert token is not None
    assert token.reveal() not in repr((outcome, token, outcome.as_result(), outcome.diff(), policy))
    assert (outcome.diff()["before"], outcome.diff()["after"]) == ("policy: absent\ntoken: absent or unfit\n", "policy: present\ntoken: present\n")


def test_the_minted_token_can_itself_be_stored(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, policy = open_vault(), policy_for(fresh)
    token = minted(vault, policy)
    vault.ensure(VaultPath(f"secret/data/{fresh}", {"vault_token": "vault_token"}), {"vault_token": token})
    found = bao.read(f"secret/data/{fresh}")
    assert found is not None
    assert found["data"] == {"vault_token": token.reveal()}


@pytest.mark.parametrize(("name", "policy"), [
    ("5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10", "muster-stacker-5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10"),
    ("a" * 100, "muster-stacker-" + "a" * 100),
])
def test_a_plain_name_is_the_policys_name(name: str, policy: str) -> None:
    assert policy_for(name).policy == policy


def test_names_that_differ_in_case_or_length_have_policies_of_their_own() -> None:
    names = ["Web", "wEb", "web", "x" * 255, "x" * 254, "a~b", "a-b", "a@b"]
    found = {policy_for(name).policy for name in names}
    assert len(found) == len(names)
    assert all(len(policy) <= 128 and policy == policy.lower() for policy in found)


def test_defaults_and_wishes_are_read_from_the_option() -> None:
    policy = policy_for("agent", policy="mine", paths=["secret/data/a", "/secret/data/a", "status_panel/agent/apps/*"], capabilities=["list", "read"],
                        period="1h30m", secret="vt")
    assert policy == AgentTokenPolicy("mine", ("secret/data/a", "status_panel/agent/apps/*"), ("read", "list"), "1h30m", "vt")
    assert policy_for("agent").capabilities == ("read",)
    assert agent_token_policy({}, control_plane="stacker", name="agent", paths=["secret/data/a"]) is None


@pytest.mark.parametrize(("options", "words"), [
    ({"policy": "root"}, "belongs to Vault itself"),
    ({"policy": "default"}, "belongs to Vault itself"),
    ({"policy": "Upper"}, "lower-case"),
    ({"policy": "a/b"}, "is not usable"),
    ({"paths": ["secret/*"]}, "covers a whole mount"),
    ({"paths": ["*"]}, "agent_token_policy.paths"),
    ({"paths": ["secret/data/+/x"]}, "agent_token_policy.paths"),
    ({"paths": ['secret/data/x" { capabilities = ["sudo"] } path "y']}, "agent_token_policy.paths"),
    ({"capabilities": ["sudo"]}, "is not one of"),
    ({"capabilities": ["deny"]}, "is not one of"),
    ({"period": "soon"}, "is not a duration"),
    ({"period": "10s"}, "below 300 seconds"),
])
def test_a_dangerous_or_impossible_wish_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        policy_for("agent", **options)
    assert words in caught.value.msg
