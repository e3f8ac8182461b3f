# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rendered files outside of an enrolment: brought up to date, put back, or taken away (private to muster.agents)."""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass, replace
from urllib.parse import unquote

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, HostFile, StagedFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import new_key
from ansible_collections.muster.agents.plugins.plugin_utils._adapters import ADAPTERS
from ansible_collections.muster.agents.plugins.plugin_utils._delivery_plan import changed_files, delivered, file_diffs, host_time, staged
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look, require_free
from ansible_collections.muster.agents.plugins.plugin_utils._identity import Gathering, agent_facts, completed
from ansible_collections.muster.agents.plugins.plugin_utils._options import enrolment, user_secrets
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile, Renderer

__all__ = ["configure"]


@dataclass(frozen=True)
class _Task:
    """What one call works with."""

    action: ActionBase
    args: t.Mapping[str, t.Any]
    task_vars: t.Mapping[str, t.Any]
    host: Host
    check_mode: bool


def configure(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Carry out agent_config with validated *args* and return its result. Raises AgentsError."""
    host = Host(action, task_vars, store=args["store"], control_plane=args["control_plane"], name=args["name"], delivery=args["delivery"])
    task = _Task(action, args, task_vars, host, bool(action._task.check_mode))
    return {"present": _present, "restored": _restored, "absent": _absent}[args["state"]](task)


def _present(task: _Task) -> dict[str, t.Any]:
    """Render and put in place what differs."""
    if not task.args.get("files"):
        raise InvalidInput("files is empty: name at least one file to render.")
    adapter = ADAPTERS[task.args["control_plane"]]
    own = user_secrets(task.args, reserved=(*adapter.secret_names, *adapter.optional_secrets))
    gathering = Gathering.of(task.args)
    look = task.host.look([item["path"] for item in task.args["files"]], facts=gathering.needed)
    require_free(look, task.host.root)
    receipt = look.receipt
    given = completed(enrolment(task.args), look, gathering)
    facts = agent_facts(
        given, control_plane=task.args["control_plane"], url=task.args.get("url") or (receipt.url if receipt is not None else ""),
        agent_id=look.agent_id or (receipt.agent_id if receipt is not None else ""), generation=look.generation(),
        server_version=str(receipt.server.get("version", "")) if receipt is not None else "")
    secrets = {**own, **look.secrets}
    rendered = Renderer(task.action._templar, task.args["files"], task.task_vars, adapter.optional_secrets)(facts, secrets)
    changed = changed_files(look.files, rendered)
    work = bool(changed or look.leftovers)
    if work and not task.check_mode:
        task.host.deliver(_delivery(task, look, rendered, changed))
    restart = any(item.restart for item in changed) or bool(receipt is not None and receipt.pending_restart)
    names = {item.path for item in changed}
    result = _answer(work, "delivered", "content_differs" if changed else "leftovers", "up_to_date", pending_restart=restart)
    result["files"] = [{"path": item.path, "changed": item.path in names} for item in rendered]
    return _with_diff(result, file_diffs(look, changed, secrets, secrets, look.generation()))


def _delivery(task: _Task, look: Look, rendered: t.Sequence[RenderedFile], changed: t.Sequence[RenderedFile]) -> Delivery:
    receipt, key = look.receipt, look.key or new_key()
    document = b""
    if receipt is not None:
        updated = replace(receipt, files=delivered(receipt.files, rendered, key))
        if any(item.restart for item in changed):
            updated = replace(updated, pending_restart=host_time(look)).moved("STORED", "files changed", int(time.time()))
        document = updated.dump()
    return Delivery(
        task.host.root, look.receipt_digest, receipt=document, key="" if look.key or receipt is None else key, files=staged(changed),
        save_previous=bool(changed) and receipt is not None and receipt.phase == "COMMITTED",
        remove=look.rubbish)


def _restored(task: _Task) -> dict[str, t.Any]:
    """Put back what the last delivery over a committed state replaced."""
    look = task.host.look()
    receipt = look.receipt
    files = tuple(_staged_again(place, item) for place, item in sorted(look.previous.items()))
    if not files or receipt is None:
        return _answer(False, "restored", "", "nothing_to_restore", pending_restart=bool(receipt is not None and receipt.pending_restart))
    if not task.check_mode:
        updated = replace(receipt, pending_restart=host_time(look)).moved("STORED", "previous files restored", int(time.time()))
        task.host.deliver(Delivery(
            task.host.root, look.receipt_digest, receipt=updated.dump(), files=files, remove=(f"{task.host.root}/previous",)))
    result = _answer(True, "restored", "previous_restored", "", pending_restart=True)
    result["files"] = [{"path": item.path, "changed": True} for item in files]
    return result


def _absent(task: _Task) -> dict[str, t.Any]:
    """Take the listed files away, or all that the receipt knows of when none is listed."""
    listed = [item["path"] for item in task.args.get("files") or ()]
    look = task.host.look(listed)
    receipt = look.receipt
    known = [item.path for item in receipt.files] if receipt is not None else []
    there = [path for path in (listed or known) if path in look.files or (path in known and not listed)]
    if there and not task.check_mode:
        document = _without(receipt, there).dump() if receipt is not None else b""
        task.host.deliver(Delivery(task.host.root, look.receipt_digest, receipt=document, remove=tuple(there)))
    result = _answer(bool(there), "removed", "files_removed", "nothing_to_remove", pending_restart=False)
    result["files"] = [{"path": path, "changed": path in there} for path in (listed or known)]
    return result


def _without(receipt: Receipt, paths: t.Sequence[str]) -> Receipt:
    left = tuple(item for item in receipt.files if item.path not in paths)
    return replace(receipt, files=left).moved(receipt.phase, "files removed", int(time.time()))


def _staged_again(place: str, item: HostFile) -> StagedFile:
    return StagedFile(unquote(place), item.content, item.owner, item.group, item.mode)


def _answer(changed: bool, action: str, reason: str, quiet: str, *, pending_restart: bool) -> dict[str, t.Any]:
    sentences = {
        "content_differs": "The rendered files were brought up to date.", "leftovers": "What an interrupted delivery left behind was cleared away.",
        "previous_restored": "The previous files are back in place.", "files_removed": "The files were removed.",
        "up_to_date": "The rendered files are up to date.", "nothing_to_restore": "There is nothing to put back.",
        "nothing_to_remove": "There is nothing to remove.",
    }
    word = reason if changed else quiet
    return {
        "changed": changed, "action": action if changed else "unchanged", "reason": word, "msg": sentences[word], "files": [],
        "pending_restart": pending_restart,
    }


def _with_diff(result: dict[str, t.Any], diffs: list[dict[str, str]]) -> dict[str, t.Any]:
    return {**result, "diff": diffs} if diffs else result
