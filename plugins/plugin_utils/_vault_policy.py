# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Vault token of its own for each agent: an ACL policy for this agent's paths, and a renewable token under it (private to muster.agents).

The policy is the token's only one (no ``default``), so it also lets the token look itself up and renew itself, and nothing else.
The token is an orphan: it outlives the administrator's token that minted it.
"""

from __future__ import annotations

import hashlib
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._vault_client import AnswerLost, Refusal, VaultClient, checked_path

__all__ = ["AgentTokenPolicy", "TokenOutcome", "agent_token_policy", "ensure_token", "plan_token", "remove_token", "required_capabilities"]

_MARK = "# Managed by muster.agents; changes are overwritten."
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}\Z")
_RESERVED = frozenset({"root", "default", "response-wrapping", "control-group"})
_CAPABILITIES = ("create", "read", "update", "patch", "delete", "list")
_PERIOD = re.compile(r"(?:\d+[smhd])+\Z")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MIN_PERIOD = 300
_BEFORE = {
    "unchanged": "present", "created": "absent", "updated": "present (drifted)", "removed": "present", "absent": "absent", "kept": "present",
    "renewed": "present", "minted": "absent or unfit",
}
_AFTER = {**dict.fromkeys(_BEFORE, "present"), "removed": "absent", "absent": "absent"}


@dataclass(frozen=True)
class AgentTokenPolicy:
    """What one agent may do in Vault.

    policy: name of the ACL policy (lower case, as Vault keeps it). paths: API paths, a trailing ``/*`` allowed. capabilities: on each of
    them. period: the token's renewal period, such as ``768h``. secret: the name under which the host's store keeps the token.
    """

    policy: str
    paths: tuple[str, ...]
    capabilities: tuple[str, ...]
    period: str
    secret: str

    def text(self) -> str:
        """Return the policy in HCL; the same values always give the same text."""
        granted = ", ".join(f'"{capability}"' for capability in self.capabilities)
        rules = [(path, granted) for path in self.paths]
        rules += [("auth/token/lookup-self", '"read"'), ("auth/token/renew-self", '"update"')]
        return "\n".join([_MARK, *(f'path "{path}" {{\n  capabilities = [{words}]\n}}' for path, words in rules)]) + "\n"


@dataclass(frozen=True)
class TokenOutcome:
    """What was done (or would be) about an agent's policy and token; no secret.

    policy_action: unchanged, created, updated, removed or absent. token_action: kept, renewed, minted, removed or absent.
    why: one clause on why a token was minted, empty otherwise.
    """

    policy: str
    policy_action: str
    token_action: str
    why: str = ""

    @property
    def changed(self) -> bool:
        """Whether a record changed. Renewing a token's lease is not a change."""
        return self.policy_action not in ("unchanged", "absent") or self.token_action in ("minted", "removed")

    def diff(self) -> dict[str, str]:
        """Return the outcome as one entry of a task's diff: what there is, never what it holds."""
        header = f"vault policy {self.policy}"
        before = {"policy": _BEFORE[self.policy_action], "token": _BEFORE[self.token_action]}
        after = {"policy": _AFTER[self.policy_action], "token": _AFTER[self.token_action]}
        return {"before_header": header, "after_header": header, "before": _lines(before), "after": _lines(after)}

    def as_result(self) -> dict[str, t.Any]:
        """Return the outcome as plain data for a task result."""
        return {
            "policy": self.policy, "policy_action": self.policy_action, "token_action": self.token_action, "why": self.why,
            "changed": self.changed,
        }


def agent_token_policy(
    args: t.Mapping[str, t.Any], *, control_plane: str, name: str, paths: t.Iterable[str],
) -> AgentTokenPolicy | None:
    """Return the option ``agent_token_policy`` as one value, None when it is not given.

    The policy is named after the agent unless named in the options; *paths* are granted unless it lists its own. Raises InvalidInput.
    """
    options = args.get("agent_token_policy")
    if options is None:
        return None
    return AgentTokenPolicy(
        policy=_policy_name(options.get("policy") or _default_name(control_plane, name)),
        paths=tuple(dict.fromkeys(_policy_path(path) for path in (options.get("paths") or list(paths)))),
        capabilities=_capabilities(options.get("capabilities")),
        period=_period(str(options.get("period") or "768h")),
        secret=str(options.get("secret") or "vault_token"))


def required_capabilities(policy: AgentTokenPolicy, *, remove: bool) -> dict[str, tuple[str, ...]]:
    """Return what the administrator's token needs on which API path."""
    needed = {
        f"sys/policies/acl/{policy.policy}": ("read", "delete" if remove else "update"),
        "auth/token/lookup": ("update",),
        "auth/token/revoke": ("update",),
    }
    if not remove:
        needed["auth/token/create-orphan"] = ("update", "sudo")
    return needed


def plan_token(client: VaultClient, policy: AgentTokenPolicy, current: Secret | None) -> TokenOutcome:
    """Return what :func:`ensure_token` would do; reads only."""
    found = _read_policy(client, policy)
    action = "created" if found is None else "unchanged" if found == policy.text() else "updated"
    why = _unfit(client, policy, current)
    if why:
        return TokenOutcome(policy.policy, action, "minted", why)
    return TokenOutcome(policy.policy, action, "kept")


def ensure_token(client: VaultClient, policy: AgentTokenPolicy, current: Secret | None) -> tuple[TokenOutcome, Secret | None]:
    """Make the policy right, then keep *current* if it serves, or mint a token.

    Returns the outcome and the new token, None when *current* stays. The old token is not revoked: do that once the new one is in place.
    """
    planned = plan_token(client, policy, current)
    if planned.policy_action != "unchanged":
        _write_policy(client, policy)
    if current is None or planned.why:
        return planned, _mint(client, policy)
    renewed = _renewed_when_due(client, current)
    return TokenOutcome(policy.policy, planned.policy_action, "renewed" if renewed else "kept"), None


def remove_token(client: VaultClient, policy: AgentTokenPolicy, current: Secret | None, *, check_mode: bool = False) -> TokenOutcome:
    """Revoke *current*, and delete the policy, which takes every right from tokens that are not at hand. With *check_mode* only look."""
    live = current is not None and _lookup(client, current) is not None
    found = _read_policy(client, policy)
    if not check_mode:
        if live and current is not None:
            revoke(client, current)
        if found is not None:
            client.hvac.sys.delete_acl_policy(policy.policy)
    return TokenOutcome(policy.policy, "absent" if found is None else "removed", "removed" if live else "absent")


def revoke(client: VaultClient, token: Secret) -> None:
    """Revoke *token*; one that Vault no longer knows is fine."""
    client.hvac.auth.token.revoke(client.remember(token).reveal())


def _read_policy(client: VaultClient, policy: AgentTokenPolicy) -> str | None:
    """Return the policy's text, None when there is none. Raises VaultFailure when somebody else keeps a policy of that name."""
    try:
        answer = client.hvac.sys.read_acl_policy(policy.policy)
    except Refusal as error:
        if error.status == 404:
            return None
        raise
    text = str((answer.get("data") or {}).get("policy") or "")
    if _MARK not in text:
        raise VaultFailure(
            f"Vault has a policy {policy.policy} that was not written by this collection: give another name in agent_token_policy.policy, "
            "or delete that policy first.", reason="policy_conflict")
    return text


def _write_policy(client: VaultClient, policy: AgentTokenPolicy) -> None:
    """Write the policy; the same text twice does no harm, so a lost answer is followed by a look and one more try."""
    try:
        client.hvac.sys.create_or_update_acl_policy(policy.policy, policy.text())
    except AnswerLost:
        if _read_policy(client, policy) != policy.text():
            client.hvac.sys.create_or_update_acl_policy(policy.policy, policy.text())


def _lookup(client: VaultClient, token: Secret) -> dict[str, t.Any] | None:
    """Return what Vault knows of *token*, None when it does not know it."""
    try:
        answer = client.hvac.auth.token.lookup(client.remember(token).reveal())
    except Refusal as error:
        if error.status == 404 or "bad token" in error.words:
            return None
        raise
    data = answer.get("data")
    return data if isinstance(data, dict) else None


def _unfit(client: VaultClient, policy: AgentTokenPolicy, current: Secret | None) -> str:
    """Return why *current* cannot serve as the agent's token, an empty string when it can."""
    if current is None:
        return "the host has none yet"
    data = _lookup(client, current)
    if data is None:
        return "Vault does not know the one on the host any more"
    if list(data.get("policies") or []) != [policy.policy]:
        return "the one on the host has other policies"
    if not data.get("orphan"):
        return "the one on the host would end with its parent"
    if not data.get("renewable"):
        return "the one on the host cannot be renewed"
    if (data.get("meta") or {}).get("period") != policy.period:
        return "the one on the host has another period"
    return ""


def _renewed_when_due(client: VaultClient, token: Secret) -> bool:
    """Renew *token* by itself when less than half of its time is left. Returns whether it was."""
    data = _lookup(client, token) or {}
    left, whole = int(data.get("ttl") or 0), int(data.get("creation_ttl") or 0)
    if left * 2 >= whole:
        return False
    with client.using(token):
        client.hvac.auth.token.renew_self()
    return True


def _mint(client: VaultClient, policy: AgentTokenPolicy) -> Secret:
    try:
        answer = client.hvac.auth.token.create_orphan(
            policies=[policy.policy], no_default_policy=True, renewable=True, period=policy.period, display_name=policy.policy,
            meta={"managed_by": "muster.agents", "period": policy.period})
    except Refusal as error:
        raise VaultFailure(
            f"Vault refused to mint a token under {policy.policy} ({error.words or error.status}): the vault token needs update and sudo "
            "on auth/token/create-orphan, to give a policy and a period of its own to a token that outlives it.",
            reason="permission_denied") from None
    except AnswerLost as error:
        raise AnswerLost(f"{error.msg} A token that was minted all the same ends after {policy.period}, since nobody renews it.") from None
    return client.remember(Secret(str(answer["auth"]["client_token"])))


def _lines(values: t.Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def _default_name(control_plane: str, name: str) -> str:
    """Return the policy's name for an agent. Vault folds case, so names that differ only in case are told apart by a digest."""
    plain = f"muster-{control_plane}-{name}"
    folded = re.sub(r"[^a-z0-9_.-]", "-", plain.lower())
    if folded == plain and len(plain) <= 128:
        return plain
    return f"{folded[:110]}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def _policy_name(name: str) -> str:
    if name in _RESERVED:
        raise InvalidInput(f"agent_token_policy.policy {name!r} belongs to Vault itself: choose another name.")
    if not _NAME.match(name):
        raise InvalidInput(
            f"agent_token_policy.policy {name!r} is not usable: give up to 128 lower-case letters, digits, dots, dashes and underscores.")
    return name


def _policy_path(path: str) -> str:
    plain = checked_path(path.removesuffix("/*"), option="agent_token_policy.paths")
    if not path.endswith("/*"):
        return plain
    if plain.count("/") < 1:
        raise InvalidInput(f"agent_token_policy.paths {path!r} covers a whole mount: name the part that belongs to this agent.")
    return f"{plain}/*"


def _capabilities(wanted: t.Any) -> tuple[str, ...]:
    names = [str(name) for name in (wanted or ["read"])]
    for name in names:
        if name not in _CAPABILITIES:
            raise InvalidInput(f"agent_token_policy.capabilities {name!r} is not one of {', '.join(_CAPABILITIES)}.")
    return tuple(name for name in _CAPABILITIES if name in names)


def _period(text: str) -> str:
    if not _PERIOD.match(text):
        raise InvalidInput(f"agent_token_policy.period {text!r} is not a duration: write it as 768h, 32d or 90m.")
    if sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", text)) < _MIN_PERIOD:
        raise InvalidInput(f"agent_token_policy.period {text!r} is below {_MIN_PERIOD} seconds: too short to renew the token in time.")
    return text
