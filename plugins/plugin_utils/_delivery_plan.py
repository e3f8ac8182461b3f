# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has against what it shall have, and the delivery that makes up the difference (private to muster.agents).

Everything here is computed from values; nothing is sent or written.
"""

from __future__ import annotations

import json
import shlex
import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, HostFile, StagedFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import DeliveredFile, Receipt, VaultLeaf
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, fingerprint, new_key
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile, redacted_view, unmanaged_view
from ansible_collections.muster.agents.plugins.plugin_utils._vault import VaultChange
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Proof, ServerState

__all__ = ["Plan", "Wanted", "changed_files", "delivered", "file_diffs", "generation_for", "host_time", "make_plan", "receipt_diff", "staged"]

_GOOD = ("STORED", "ACTIVE", "COMMITTED")


@dataclass(frozen=True)
class Wanted:
    """What the host shall have. stored are all secrets of a generation by name; metadata is empty to leave the receipt's digest alone."""

    control_plane: str
    name: str
    url: str
    attempt: str
    credential: Credential
    stored: t.Mapping[str, Secret]
    why: str
    proof: Proof
    server: ServerState = field(default_factory=ServerState)
    metadata: str = ""
    adopted_from: str = ""
    pin: str = ""
    changes: tuple[VaultChange, ...] = ()
    vault_url: str = ""
    policy: str = ""
    rendered: tuple[RenderedFile, ...] = ()
    phase: str = "STORED"


@dataclass(frozen=True)
class Plan:
    """The receipt as it will be, the delivery that brings it (None when nothing differs), and the rendered files that change."""

    receipt: Receipt
    delivery: Delivery | None
    changed: tuple[RenderedFile, ...]


def generation_for(look: Look, credential: Credential, stored: t.Mapping[str, Secret]) -> int:
    """Return the number of the generation that holds *stored*: the newest on the host when it is the same, else the next."""
    same = dict(stored) == dict(look.secrets) and look.agent_id == credential.agent_id and look.generation() > 0
    return look.generation() if same else look.generation() + 1


def make_plan(look: Look, wanted: Wanted, root: str) -> Plan:
    """Compare *look* with *wanted*; *root* is the identity's folder on the host."""
    generation = generation_for(look, wanted.credential, wanted.stored)
    fresh = generation != look.generation()
    changed = changed_files(look.files, wanted.rendered)
    key = look.key or new_key()
    receipt = _receipt(look, wanted, key, generation)
    if any(item.restart for item in changed):
        receipt = replace(receipt, pending_restart=host_time(look))
    old = look.receipt
    settled = old is not None and old.url == wanted.url and old.phase in _GOOD and wanted.phase in _GOOD and not fresh and not changed
    if old is not None and settled:
        receipt = replace(receipt, phase=old.phase)
        if _essence(receipt) == _essence(old) and not look.leftovers and look.held is None:
            return Plan(old, None, ())
    else:
        receipt = receipt.moved(wanted.phase, wanted.why, int(time.time()))
    delivery = Delivery(
        root=root, expect=look.receipt_digest, receipt=receipt.dump(), key="" if look.key else key, generation=generation if fresh else 0,
        secrets=_generation_files(wanted) if fresh else (), files=staged(changed), keep=(generation, generation - 1) if fresh else (),
        save_previous=bool(changed) and old is not None and old.phase == "COMMITTED",
        remove=look.rubbish)
    return Plan(receipt, delivery, changed)


def changed_files(present: t.Mapping[str, HostFile], rendered: t.Sequence[RenderedFile]) -> tuple[RenderedFile, ...]:
    """Return those of *rendered* whose content, mode, owner or group differ from what is *present*."""
    return tuple(item for item in rendered if _differs(present.get(item.path), item))


def staged(rendered: t.Sequence[RenderedFile]) -> tuple[StagedFile, ...]:
    """Return rendered files as the store takes them."""
    return tuple(
        StagedFile(item.path, item.content, item.owner, item.group, item.mode, item.directory_mode, tuple(shlex.split(item.validate)))
        for item in rendered)


def delivered(known: t.Sequence[DeliveredFile], rendered: t.Sequence[RenderedFile], key: str) -> tuple[DeliveredFile, ...]:
    """Return the receipt's list of files with *rendered* brought in; what it knew before stays, so that a withdrawal finds it."""
    entries = {item.path: item for item in known}
    entries.update({item.path: DeliveredFile(item.path, fingerprint(key, item.content), item.mode, item.owner, item.group) for item in rendered})
    return tuple(entries[path] for path in sorted(entries))


def host_time(look: Look) -> int:
    """Return the host's time now, in seconds since the epoch, reckoned from its clock at the look."""
    return int(look.time + (time.time() - look.taken_at))


def file_diffs(
    look: Look, rendered: t.Sequence[RenderedFile], secrets: t.Mapping[str, Secret], old_secrets: t.Mapping[str, Secret], generation: int,
) -> list[dict[str, str]]:
    """Return one diff for each changed file: our own before and after with secrets cut out; of somebody else's file only key names.

    A file counts as ours when the receipt lists it.
    """
    ours = {item.path for item in look.receipt.files} if look.receipt is not None else set()
    diffs = []
    for item in rendered:
        found = look.files.get(item.path)
        if found is None:
            before = ""
        elif item.path in ours:
            before = redacted_view(found.content, item.format, {**secrets, **old_secrets}, look.receipt.generation if look.receipt is not None else None)
        else:
            before = unmanaged_view(found.content, item.format, {**secrets, **old_secrets})
        after = redacted_view(item.content, item.format, secrets, generation)
        if found is not None and before == after:
            before, after = _attributes(found.mode, found.owner, found.group) + before, _attributes(item.mode, item.owner, item.group) + after
        diffs.append({"before_header": item.path, "after_header": item.path, "before": before, "after": after})
    return diffs


def receipt_diff(look: Look, plan: Plan, root: str) -> dict[str, str]:
    """Return the receipt's change as a diff of its telling lines: phase, generation, agent id and fingerprints."""
    before = _telling(look.receipt) if look.receipt is not None else ""
    return {"before_header": f"{root}/receipt.json", "after_header": f"{root}/receipt.json", "before": before, "after": _telling(plan.receipt)}


def _differs(found: HostFile | None, item: RenderedFile) -> bool:
    if found is None:
        return True
    return (found.content, found.mode, found.owner, found.group) != (item.content, f"{int(item.mode, 8):04o}", item.owner, item.group)


def _receipt(look: Look, wanted: Wanted, key: str, generation: int) -> Receipt:
    old = look.receipt
    base = Receipt(wanted.control_plane, wanted.name, wanted.url, "INTENT", wanted.attempt)
    if old is not None:
        # Another server knows nothing of the old journal, but the files on this host are ours to withdraw all the same.
        base = old if old.url == wanted.url else replace(base, files=old.files)
    server = {name: value for name, value in (("version", wanted.server.version), ("api_versions", list(wanted.server.api_versions))) if value}
    leaves = tuple(VaultLeaf(item.path, item.kv_version, item.version, tuple(item.fields)) for item in wanted.changes)
    files = delivered(base.files, wanted.rendered, key)
    new_credential = any(look.secrets.get(name) != value for name, value in wanted.credential.secrets.items())
    return replace(
        base, issued_at=int(time.time()) if new_credential else base.issued_at,
        attempt=wanted.attempt if generation != base.generation else base.attempt, generation=generation, agent_id=wanted.credential.agent_id,
        pin=wanted.pin, fingerprints={name: fingerprint(key, value) for name, value in sorted(wanted.stored.items())},
        metadata=wanted.metadata or base.metadata, server={**base.server, **server}, vault=leaves or base.vault,
        vault_url=wanted.vault_url or base.vault_url, policy={"policy": wanted.policy} if wanted.policy else base.policy, files=files,
        adopted_from=wanted.adopted_from or base.adopted_from,
        proof={"how": wanted.proof.how, "result": "accepted" if wanted.proof.accepted else wanted.proof.detail, "when": int(time.time())})


def _generation_files(wanted: Wanted) -> tuple[tuple[str, bytes], ...]:
    files = [("agent_id", wanted.credential.agent_id.encode())]
    return (*files, *((name, secret.reveal().encode()) for name, secret in sorted(wanted.stored.items())))


def _essence(receipt: Receipt) -> dict[str, t.Any]:
    """Return what makes two receipts differ.

    The time of a proof and the journal do not, nor does the version of an entry in Vault: the server writes the same token there once more, late.
    """
    document = json.loads(replace(receipt, vault=tuple(replace(leaf, version=None) for leaf in receipt.vault)).dump())
    return {key: value for key, value in document.items() if key not in ("proof", "history")}


def _telling(receipt: Receipt) -> str:
    lines = [f"phase: {receipt.phase}", f"generation: {receipt.generation}", f"agent_id: {receipt.agent_id}"]
    lines += [f"{name}: <fingerprint {value}>" for name, value in sorted(receipt.fingerprints.items())]
    lines += [f"vault: {leaf.path} ({', '.join(leaf.fields)})" for leaf in receipt.vault]
    return "\n".join(lines) + "\n"


def _attributes(mode: str, owner: str, group: str) -> str:
    return f"# {owner}:{group} {mode}\n"
