# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lease on an agent that lies in Vault, for runs that share nothing else (private to muster.agents).

It is an entry beside the agent's own, written by check-and-set, so that of two controllers or two slices of a job one gets it and the other sees it.
It holds who and until when, and no secret. On KV v1, which has no check-and-set, there is none.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Busy, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultEntry, VaultPath

__all__ = ["LEASE_NAME", "lease_path", "leased"]

LEASE_NAME = "muster_lease"
_FIELDS = {"holder": "holder", "until": "until"}
_MARGIN = 2.0  # seconds before its end at which a lease is not touched any more: another run may take it, by a clock of its own


def lease_path(path: str) -> str:
    """Return where the lease on the agent lies whose credential is at *path*: beside it."""
    return f"{path.rpartition('/')[0]}/{LEASE_NAME}"


@contextlib.contextmanager
def leased(vault: Vault, path: str, holder: str, seconds: float) -> t.Iterator[None]:
    """Hold the lease beside the entry *path* for the block, at most *seconds*. Raises Busy when somebody else has it, VaultFailure."""
    place = VaultPath(lease_path(path), _FIELDS)
    until = time.time() + seconds
    if not _taken(vault, place, holder, until):
        yield
        return
    try:
        yield
    finally:
        _let_go(vault, place, holder, until)


def _taken(vault: Vault, place: VaultPath, holder: str, until: float) -> bool:
    """Take the lease; False on KV v1. As a rule nobody has it and one request is enough: a write that fails where anything is or ever was."""
    if vault.create(place, _values(holder, until)):
        return True
    seen = vault.read(place)
    if seen.kv_version == 1:
        return False
    _require_free(seen, holder)
    try:
        vault.exchange(place, _values(holder, until), seen)
    except VaultFailure as error:
        if error.reason != "cas_conflict":
            raise
        raise Busy(f"The lease at {place.path} was taken by another run a moment ago: wait for it, then run again.") from None
    return True


def _let_go(vault: Vault, place: VaultPath, holder: str, until: float) -> None:
    """Remove the lease, or let it end now where the token may not delete; where neither works, or it ran out and may be another's, it ends by itself."""
    if time.time() > until - _MARGIN:
        return
    try:
        vault.destroy(place)
    except AgentsError:
        with contextlib.suppress(AgentsError):
            vault.ensure(place, _values(holder, 0.0))


def _require_free(seen: VaultEntry, holder: str) -> None:
    who, until = seen.fields.get("holder"), seen.fields.get("until")
    if who is None or until is None or who.reveal() == holder or not until.reveal().isdigit():
        return
    left = int(until.reveal()) - time.time()
    if left > 0:
        raise Busy(f"It is being rotated by {who.reveal()} until its lease ends in {left:.0f} seconds: wait for that run, then run again.")


def _values(holder: str, until: float) -> dict[str, Secret]:
    return {"holder": Secret(holder), "until": Secret(str(int(until)))}
