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


def lease_path(path: str) -> str:
    """Return where the lease on the agent lies whose credential is at *path*: beside it."""
    return f"{path.rpartition('/')[0]}/{LEASE_NAME}"


@contextlib.contextmanager
def leased(vault: Vault, path: str, holder: str, seconds: float) -> t.Iterator[None]:
    """Hold the lease beside the entry *path* for the block, at most *seconds*. Raises Busy when somebody else has it, VaultFailure."""
    place = VaultPath(lease_path(path), _FIELDS)
    seen = vault.read(place)
    if seen.kv_version == 1:
        yield
        return
    _require_free(seen, holder)
    try:
        vault.exchange(place, _values(holder, time.time() + seconds), seen)
    except VaultFailure as error:
        if error.reason != "cas_conflict":
            raise
        raise Busy(f"The lease at {place.path} was taken by another run a moment ago: wait for it, then run again.") from None
    try:
        yield
    finally:
        _let_go(vault, place, holder)


def _let_go(vault: Vault, place: VaultPath, holder: str) -> None:
    """Remove the lease, or let it end now where the token may not delete; where neither works it ends by itself."""
    try:
        vault.remove(place)
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
