# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taking an identity out again: Vault first, then the control plane, the host's files last (private to muster.agents).

The receipt goes at the very end, so that a run that dies on the way is finished by the next one. What a control plane does not let anybody
remove is reported, never passed over in silence.
"""

from __future__ import annotations

import typing as t
from urllib.parse import urlsplit

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import candidates_on_host
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Parts
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Mismatch
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._vault import TokenOutcome, VaultChange, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Withdrawal

__all__ = ["withdraw"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def withdraw(order: Order, parts: Parts) -> dict[str, t.Any]:
    """Remove what can be removed of an identity and return the task's result. Raises AgentsError; in check mode it only reads."""
    parts.plane.probe()
    if parts.vault is not None:
        parts.vault.authenticate()
        parts.vault.preflight(order.vault_paths, remove=True, policy=order.policy)
    pair = (order.enrolment.certificate_path,) if order.enrolment.certificate_path else ()
    look = parts.host.look((*parts.file_paths, *(path for place in order.old_places for path in place.paths), *pair))
    if look.receipt is not None and look.receipt.url != parts.plane.http.url:
        raise Mismatch(
            f"The receipt on this host is of {look.receipt.url}, not of {parts.plane.http.url}: withdraw {order.enrolment.name} there.", reason="other_server")
    credential = _credential(order, parts, look)
    changes, policy = _vault(order, parts, look)
    known = look.receipt is not None or credential is not None
    removed, remains = _at_control_plane(order, parts, credential) if known or any(item.changed for item in changes) else ((), ())
    files = tuple(item.path for item in look.receipt.files) if look.receipt is not None else ()
    if known and not order.check_mode:
        parts.host.deliver(Delivery(parts.host.root, look.receipt_digest, remove=files, remove_all=True))
    if not order.check_mode:
        parts.spool.drop()
    changed = known or any(item.changed for item in changes) or (policy is not None and policy.changed)
    name, url = order.enrolment.name, parts.plane.http.url
    remains = (*remains, *_left_in_vault(order, parts, look), *(text for item in changes for text in item.remains))
    verb = "Would withdraw" if order.check_mode else "Withdrew"
    msg = f"{verb} {name} from {url}." if changed else f"{name} has nothing here to withdraw."
    if changed and remains:
        msg += f" What stays: {' '.join(remains)}"
    result: dict[str, t.Any] = {
        "changed": changed, "action": "withdrawn" if changed else "absent", "reason": "withdrawn" if changed else "not_enrolled", "msg": msg,
        "name": name, "control_plane": parts.plane.key, "url": url, "agent_id": look.receipt.agent_id if look.receipt is not None else "",
        "removed": [*removed, *(f"File {path} on the host." for path in files), *(f"Vault entry {item.path}." for item in changes if item.changed)],
        "remains": list(remains), "vault": [item.as_result() for item in changes], "policy": policy.as_result() if policy is not None else {},
        "store": parts.host.root, "pending_restart": False, "files": [{"path": path, "changed": True} for path in files],
    }
    diffs = [item.diff() for item in changes if item.changed]
    if known:
        before = "".join(f"{path}\n" for path in ("receipt.json", *files))
        diffs.append({"before_header": parts.host.root, "after_header": parts.host.root, "before": before, "after": ""})
    if diffs:
        result["diff"] = diffs
    return result


def _credential(order: Order, parts: Parts, look: Look) -> Credential | None:
    """Return the identity's credential as the host has it, None when it has none."""
    return next((item.credential for item in candidates_on_host(look, (), parts.spool, parts.plane.secret_names, parts.plane.optional_secrets)), None)


def _vault(order: Order, parts: Parts, look: Look) -> tuple[tuple[VaultChange, ...], TokenOutcome | None]:
    """Remove our fields from Vault, and the agent's own policy and token."""
    vault = parts.vault
    if vault is None:
        return (), None
    act = vault.plan_removal if order.check_mode else vault.remove
    companions = {name: name for name in parts.plane.vault_companions}
    changes = tuple(act(VaultPath(path.path, {**companions, **path.fields})) for path in order.vault_paths)
    if order.policy is None:
        return changes, None
    current = look.secrets.get(order.policy.secret)
    drop = vault.plan_agent_token_removal if order.check_mode else vault.remove_agent_token
    return changes, drop(order.policy, current)


def _at_control_plane(order: Order, parts: Parts, credential: Credential | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove the record where that is possible; then try whether the credential still works, since only that tells."""
    name = order.enrolment.name
    if order.check_mode:
        return (), ()
    withdrawal: Withdrawal = parts.plane.revoke(name, credential)
    remains = withdrawal.remains
    if credential is not None and parts.plane.prove(order.enrolment, credential).accepted:
        where = parts.plane.http.url
        remains = (*remains, f"The credential of {name} is still accepted at {where}: the server keeps it beside Vault, or its Vault was not given here.")
    return withdrawal.removed, remains


def _left_in_vault(order: Order, parts: Parts, look: Look) -> tuple[str, ...]:
    """Say what Vault still holds when it was not given, and what a Vault on loopback means."""
    if parts.vault is None and look.receipt is not None and look.receipt.vault:
        places = ", ".join(leaf.path for leaf in look.receipt.vault)
        return (f"Vault entries {places} at {look.receipt.vault_url}: give vault and vault_paths to remove them.",)
    if parts.vault is not None and parts.plane.loopback_vault_warning and urlsplit(parts.vault_url).hostname in _LOOPBACK:
        return (f"Vault is at {parts.vault_url}: {parts.plane.loopback_vault_warning}",)
    return ()
