# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the arguments of agent_register to a transaction and its result (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._adapters import ADAPTERS
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import AGENT_ID, old_places
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Outcome, Parts, Transaction
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._identity import Gathering
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane, enrolment, user_secrets
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument, state_directory
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, agent_token_policy, vault_paths
from ansible_collections.muster.agents.plugins.plugin_utils._withdrawal import withdraw

__all__ = ["register"]


def register(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Carry out agent_register with validated *args* and return its result. Raises AgentsError."""
    order, parts = _order(action, args), _parts(action, args, task_vars)
    try:
        if args["state"] == "absent":
            return withdraw(order, parts)
        return _result(Transaction(order, parts).run(), parts)
    finally:
        parts.plane.http.close()
        if parts.vault is not None:
            parts.vault.close()


def _order(action: ActionBase, args: t.Mapping[str, t.Any]) -> Order:
    paths = vault_paths(args.get("vault_paths")) if args.get("vault") else ()
    policy = agent_token_policy(args, control_plane=args["control_plane"], name=args["name"], paths=[item.path for item in paths])
    adapter = ADAPTERS[args["control_plane"]]
    reserved = (*adapter.secret_names, *adapter.optional_secrets, AGENT_ID, *((policy.secret,) if policy is not None else ()))
    return Order(
        enrolment=enrolment(args), secrets=user_secrets(args, reserved=reserved), vault_paths=paths, policy=policy,
        old_places=old_places(args.get("adopt_from")), settle_timeout=args["settle_timeout"], lease=args["lease"], adopt=args["adopt"],
        adopt_after=args["adopt_after"], refresh_at=args["refresh_at"], pin=args.get("pin_sha256") or "", check_mode=bool(action._task.check_mode),
        diff=bool(action._task.diff), gathering=Gathering.of(args))


def _parts(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> Parts:
    plane = control_plane(args)
    files = list(args.get("files") or ())
    return Parts(
        plane=plane, host=Host(action, task_vars, store=args["store"], control_plane=args["control_plane"], name=args["name"], delivery=args["delivery"]),
        spool=Spool(state_directory("spool"), plane.http.url, args["name"]), render=Renderer(action._templar, files, task_vars, plane.optional_secrets),
        file_paths=tuple(item["path"] for item in files),
        vault=Vault(args["vault"], state_directory("vault")) if args.get("vault") else None, vault_url=args["vault"]["url"] if args.get("vault") else "",
        probes=SharedDocument(state_directory("servers"), "probe", args["control_plane"], plane.http.url, repr(plane.http.transport)))


def _result(outcome: Outcome, parts: Parts) -> dict[str, t.Any]:
    receipt, server = outcome.receipt, outcome.server
    result: dict[str, t.Any] = {
        "changed": outcome.changed, "action": outcome.action, "reason": outcome.reason, "msg": outcome.msg, "agent_id": receipt.agent_id,
        "name": receipt.name, "control_plane": receipt.control_plane, "url": receipt.url, "generation": receipt.generation, "phase": receipt.phase,
        "fingerprints": dict(receipt.fingerprints), "pending_restart": bool(receipt.pending_restart), "store": parts.host.root,
        "server": {"version": server.version, "api_versions": list(receipt.server.get("api_versions", ())), "clock_skew": round(server.clock_skew or 0.0, 1)},
        "vault": [item.as_result() for item in outcome.vault], "files": [{"path": path, "changed": changed} for path, changed in outcome.files],
        "proof": {"accepted": outcome.proof.accepted, "how": outcome.proof.how} if outcome.proof is not None else {},
        "policy": outcome.policy.as_result() if outcome.policy is not None else {},
        "previously_committed": any(step.phase == "COMMITTED" for step in receipt.history),
    }
    if outcome.warnings:
        result["warnings"] = list(outcome.warnings)
    if outcome.diff:
        result["diff"] = [dict(item) for item in outcome.diff]
    return result
