# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the arguments of token_rotate to a rotation, of one agent or of a fleet, and its result (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._adapters import ADAPTERS
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import AGENT_ID
from ansible_collections.muster.agents.plugins.plugin_utils._campaign import Campaign
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Parts
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._fleet_rotation import rotate_fleet
from ansible_collections.muster.agents.plugins.plugin_utils._health import gate_options
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._identity import Gathering
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane, enrolment, user_secrets
from ansible_collections.muster.agents.plugins.plugin_utils._pair_renewal import PairRenewal
from ansible_collections.muster.agents.plugins.plugin_utils._pair_rotation import PairRotation
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer
from ansible_collections.muster.agents.plugins.plugin_utils._rotation import Rotated, Rotation, RotationOrder, steps_as_result
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import due_options
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import state_directory
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, vault_paths

__all__ = ["rotate"]


def rotate(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Carry out token_rotate with validated *args* and return its result. Raises AgentsError."""
    check_mode = bool(action._task.check_mode)
    campaign = Campaign(state_directory("campaigns"), args["url"], args.get("campaign") or "", args["failure_budget"])
    if args.get("agents") is not None:
        return {**rotate_fleet(args, campaign, check_mode=check_mode, say=action._display.display), **_told(args, campaign)}
    if not args.get("name"):
        raise InvalidInput("Neither name nor agents is given: name one agent, or list those of a fleet.")
    standing = campaign.standing(args["name"])
    if standing != "due":
        return {**_left_alone(args, standing), **_told(args, campaign)}
    try:
        result = _rotate_one(action, args, task_vars)
    except AgentsError as error:
        if not check_mode and error.facts.get("action") in ("failed", "rolled_back"):
            campaign.note(args["name"], error.reason)
        error.facts.update(_told(args, campaign))
        raise
    if not check_mode:
        campaign.note(args["name"], "")
    return {**result, **_told(args, campaign)}


def _rotate_one(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    parts = _parts(action, args, task_vars)
    pair = _pair(args, parts, check_mode=bool(action._task.check_mode))
    try:
        order, wish = _order(action, args), _wish(args)
        born_here = parts.plane.capabilities.key_born_on == "host"
        rotation = PairRotation(order, parts, wish, pair) if born_here else Rotation(order, parts, wish)
        return _result(rotation.rotate(), parts, diff=bool(action._task.diff))
    finally:
        if pair is not None:
            pair.close()
        parts.plane.http.close()
        if parts.vault is not None:
            parts.vault.close()


def _pair(args: t.Mapping[str, t.Any], parts: Parts, *, check_mode: bool) -> PairRenewal | None:
    """Return how a new pair is made on the host, None where none is needed or nobody is named who signs it."""
    given = args.get("certificate")
    if not given or parts.plane.capabilities.key_born_on != "host":
        return None
    places = {name: args[name] for name in ("certificate_path", "key_path") if args.get(name)}
    for name, path in places.items():
        if given.get(name, path) != path:
            raise InvalidInput(f"certificate: {name} is {given[name]}, and the agent's own {name} is {path}: give the same.")
    return PairRenewal(parts.host, {**places, **given}, check_mode=check_mode)


def _left_alone(args: t.Mapping[str, t.Any], standing: str) -> dict[str, t.Any]:
    """Return the result for an agent that this campaign has no work for, or stops before."""
    if standing == "done":
        msg = f"{args['name']} was rotated in the campaign {args['campaign']} already."
        return {"changed": False, "action": "unchanged", "reason": "done_in_campaign", "msg": msg}
    msg = f"{args['name']} keeps its credential: more than {args['failure_budget']} others failed in this run. Look at them, then run again."
    return {"changed": False, "action": "untouched", "reason": "budget_spent", "msg": msg}


def _told(args: t.Mapping[str, t.Any], campaign: Campaign) -> dict[str, t.Any]:
    return {"campaign": campaign.summary()} if args.get("campaign") else {}


def _order(action: ActionBase, args: t.Mapping[str, t.Any]) -> Order:
    adapter = ADAPTERS[args["control_plane"]]
    adapter.rules.check(args["name"], allow_unstable=True)
    return Order(
        enrolment=enrolment(args), secrets=user_secrets(args, reserved=(*adapter.secret_names, *adapter.optional_secrets, AGENT_ID)),
        vault_paths=vault_paths(args.get("vault_paths")) if args.get("vault") else (), settle_timeout=args["settle_timeout"], lease=args["lease"],
        pin=args.get("pin_sha256") or "", check_mode=bool(action._task.check_mode), gathering=Gathering.of(args))


def _wish(args: t.Mapping[str, t.Any]) -> RotationOrder:
    gate = gate_options({**args, "commit": True}, check_mode=False)
    # The lease has to outlast the longest step, which is the gate.
    return RotationOrder(due_options(args), gate, args["nudge"], int(args["lease"] + gate.wait))


def _parts(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> Parts:
    plane = control_plane(args)
    files = list(args.get("files") or ())
    return Parts(
        plane=plane, host=Host(action, task_vars, store=args["store"], control_plane=args["control_plane"], name=args["name"], delivery=args["delivery"]),
        spool=Spool(state_directory("spool"), plane.http.url, args["name"]), render=Renderer(action._templar, files, task_vars, plane.optional_secrets),
        file_paths=tuple(item["path"] for item in files),
        vault=Vault(args["vault"], state_directory("vault")) if args.get("vault") else None, vault_url=args["vault"]["url"] if args.get("vault") else "")


def _result(outcome: Rotated, parts: Parts, *, diff: bool) -> dict[str, t.Any]:
    receipt = outcome.receipt
    result: dict[str, t.Any] = {
        "changed": outcome.changed, "action": outcome.action, "reason": outcome.reason, "msg": outcome.msg, "name": receipt.name,
        "control_plane": receipt.control_plane, "url": receipt.url, "agent_id": receipt.agent_id, "generation": receipt.generation,
        "phase": receipt.phase, "fingerprints": dict(receipt.fingerprints), "store": parts.host.root, "plan": outcome.plan.as_result(),
        "steps": steps_as_result(outcome.steps), "retire_pending": list(receipt.retire_pending),
        "vault": [item.as_result() for item in outcome.vault], "files": [{"path": path, "changed": changed} for path, changed in outcome.files],
        "gate": dict(outcome.gate), "pending_restart": bool(receipt.pending_restart),
    }
    if outcome.warnings:
        result["warnings"] = list(outcome.warnings)
    if diff and outcome.diff:
        result["diff"] = [dict(item) for item in outcome.diff]
    return result
