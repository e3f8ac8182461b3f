# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vault_token_store does: secrets of the operator or of an enrolled host into Vault, and out of it again (private to muster.agents)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look, require_free
from ansible_collections.muster.agents.plugins.plugin_utils._options import user_secrets
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import state_directory
from ansible_collections.muster.agents.plugins.plugin_utils._store import deliver_secret
from ansible_collections.muster.agents.plugins.plugin_utils._vault import (
    AgentTokenPolicy,
    TokenOutcome,
    Vault,
    VaultChange,
    VaultPath,
    agent_token_policy,
    check_secret_names,
    vault_paths,
)

__all__ = ["keep"]

# Stands for a token that only a real run mints; it is compared with what Vault holds and sent nowhere.
_NOT_MINTED = "not minted in check mode"


@dataclass(frozen=True)
class _Wish:
    """What the task asks for. *host* is None when no enrolled agent is named."""

    paths: tuple[VaultPath, ...]
    policy: AgentTokenPolicy | None
    host: Host | None
    remove: bool
    check_mode: bool


@dataclass
class _Done:
    """What was done so far (or would be), told even when a later step fails."""

    changes: list[VaultChange] = field(default_factory=list)
    token: TokenOutcome | None = None

    @property
    def changed(self) -> bool:
        """Whether anything changed."""
        return any(change.changed for change in self.changes) or (self.token is not None and self.token.changed)

    def facts(self) -> dict[str, t.Any]:
        """Return the part of the result that both success and failure have."""
        told: dict[str, t.Any] = {"changed": self.changed, "vault": [change.as_result() for change in self.changes]}
        if self.token is not None:
            told["policy"] = self.token.as_result()
        return told


def keep(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    """Carry out the task and return its result, with the diff under ``diff``. Raises AgentsError with what was done before it failed."""
    wish = _wish(action, args, task_vars, check_mode)
    with Vault(args["vault"], state_directory("vault")) as vault:
        own = user_secrets(args)
        look = wish.host.look() if wish.host is not None and (wish.policy or not wish.remove) else None
        secrets = _known_secrets(own, look)
        if not wish.remove:
            check_secret_names(wish.paths, {*secrets, *([wish.policy.secret] if wish.policy else [])})
        if wish.policy is not None and wish.host is not None and look is not None and not wish.remove:
            _check_store(wish.host, look)
        vault.preflight(wish.paths, remove=wish.remove, policy=wish.policy)
        done = _Done()
        try:
            if wish.remove:
                _remove(vault, wish, look, done)
            else:
                _store(vault, wish, look, secrets, done)
        except AgentsError as error:
            error.facts.update(done.facts())
            raise
    return _result(wish, done)


def _wish(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any], check_mode: bool) -> _Wish:
    control_plane, name = args.get("control_plane") or "", args.get("name") or ""
    paths = vault_paths(args["vault_paths"])
    if not paths:
        raise InvalidInput("vault_paths is empty: name at least one path with its fields.")
    if args.get("agent_token_policy") is not None and not name:
        raise InvalidInput("agent_token_policy mints a token for one enrolled agent, whose host keeps it: name the agent in control_plane and name.")
    policy = agent_token_policy(args, control_plane=control_plane, name=name, paths=[path.path for path in paths])
    host = None
    if name:
        host = Host(action, task_vars, store=args["store"], control_plane=control_plane, name=name, delivery=args["delivery"])
    return _Wish(paths, policy, host, args["state"] == "absent", check_mode)


def _known_secrets(own: t.Mapping[str, Secret], look: Look | None) -> dict[str, Secret]:
    stored = look.secrets if look is not None else {}
    for name in own:
        if name in stored:
            raise InvalidInput(f"secrets: the name {name!r} is taken already by a credential in the host's store: choose another.")
    return {**stored, **own}


def _check_store(host: Host, look: Look) -> None:
    """Raise AgentsError when the host could not keep a token, so that none is minted in vain."""
    if look.receipt is None:
        raise InvalidInput(f"agent_token_policy: {host.root} on the host knows of no enrolled agent: enrol it with agent_register first.")
    require_free(look, host.root)


def _store(vault: Vault, wish: _Wish, look: Look | None, secrets: dict[str, Secret], done: _Done) -> None:
    if wish.policy is not None and wish.host is not None and look is not None:
        secrets[wish.policy.secret] = _agent_token(vault, wish, wish.policy, wish.host, look, done)
    for path in wish.paths:
        done.changes.append(vault.plan(path, secrets) if wish.check_mode else vault.ensure(path, secrets))


def _agent_token(vault: Vault, wish: _Wish, policy: AgentTokenPolicy, host: Host, look: Look, done: _Done) -> Secret:
    """Return the agent's token: the one on the host where it serves, else a new one that the host has before anybody else."""
    current = look.secrets.get(policy.secret)
    if wish.check_mode:
        done.token = vault.plan_agent_token(policy, current)
        return Secret(_NOT_MINTED) if current is None or done.token.why else current
    outcome, token = vault.ensure_agent_token(policy, current)
    done.token = outcome
    if token is None and current is not None:
        return current
    if token is None:
        raise InvalidInput(f"The host has no {policy.secret}, and none was minted.")
    register_with_core([token])
    try:
        deliver_secret(host, look, policy.secret, token)
    except Ambiguous:
        # It may have arrived: a token that the host holds must stay valid.
        raise
    except AgentsError:
        vault.revoke_agent_token(token)
        raise
    if current is not None:
        vault.revoke_agent_token(current)
    return token


def _remove(vault: Vault, wish: _Wish, look: Look | None, done: _Done) -> None:
    for path in wish.paths:
        done.changes.append(vault.plan_removal(path) if wish.check_mode else vault.remove(path))
    if wish.policy is not None:
        current = look.secrets.get(wish.policy.secret) if look is not None else None
        if wish.check_mode:
            done.token = vault.plan_agent_token_removal(wish.policy, current)
            return
        done.token = vault.remove_agent_token(wish.policy, current)
        if current is not None and look is not None and look.receipt is not None and wish.host is not None:
            deliver_secret(wish.host, look, wish.policy.secret, None)


def _result(wish: _Wish, done: _Done) -> dict[str, t.Any]:
    action = ("removed" if wish.remove else "stored") if done.changed else "unchanged"
    diff = [change.diff() for change in done.changes if change.changed]
    if done.token is not None and done.token.changed:
        diff.append(done.token.diff())
    return {**done.facts(), "action": action, "reason": action, "msg": _sentence(wish, done), "diff": diff}


def _sentence(wish: _Wish, done: _Done) -> str:
    """Return what happened as one sentence for people."""
    if not done.changed:
        return "Vault holds nothing of it." if wish.remove else "Vault holds it all already."
    would = "Would have " if wish.check_mode else ""
    verb = "removed" if wish.remove else "stored"
    parts = [f"{change.path} ({', '.join(_touched(change)) or 'all versions'})" for change in done.changes if change.changed]
    if done.token is not None and done.token.changed:
        parts.append(f"the agent's policy {done.token.policy} ({done.token.policy_action}) and token ({done.token.token_action})")
    text = f"{would}{verb} {'; '.join(parts)}."
    return text[0].upper() + text[1:]


def _touched(change: VaultChange) -> tuple[str, ...]:
    return (*change.fields_added, *change.fields_changed, *change.fields_removed)
