# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sending no faster than a server allows, over all forks of a controller (private to muster.agents).

A server that limits requests says so with 429. From then on its known pace is kept by everybody, so that waiting takes the place of being refused.
The arithmetic is the generic cell rate algorithm (ITU-T I.371): one number, the time at which the bucket would be full again.
"""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument

__all__ = ["Pace", "Pacer"]

_REMEMBERED = 3600.0  # seconds for which a server that once said 429 is treated with care


@dataclass(frozen=True)
class Pace:
    """A bucket of *burst* requests that refills at *per_second*."""

    burst: int
    per_second: float


class Pacer:
    """The pace of one server. Buckets are named; the empty name is the one for everything else."""

    def __init__(self, document: SharedDocument, paces: t.Mapping[str, Pace]) -> None:
        """*paces*: the server's known limits by bucket."""
        self._document = document
        self._paces = paces

    def delay(self, bucket: str = "") -> float:
        """Take the next free place in the bucket and return how many seconds off it is: none for a server that never said 429."""
        if self._document.untouched:
            return 0.0
        now = time.time()
        with self._document.held() as document:
            state = document.get(bucket)
            if not isinstance(state, dict) or not 0 <= now - float(state.get("refused", 0.0)) < _REMEMBERED:
                document.pop(bucket, None)
                return 0.0
            earliest = max(now, float(state.get("not_before", 0.0)))
            pace = self._paces.get(bucket)
            if pace is None:
                return earliest - now
            full_at = max(float(state.get("full_at", 0.0)), earliest)
            state["full_at"] = full_at + 1 / pace.per_second
            return max(earliest, full_at - (pace.burst - 1) / pace.per_second) - now

    def refused(self, bucket: str, seconds: float) -> None:
        """Note a 429 that asks to wait *seconds*: nobody sends on this bucket before."""
        now = time.time()
        with self._document.held() as document:
            state = document.setdefault(bucket, {})
            state["refused"] = now
            state["not_before"] = max(float(state.get("not_before", 0.0)), now + seconds)
            pace = self._paces.get(bucket)
            if pace is not None:  # The bucket is empty, whatever was reckoned.
                state["full_at"] = max(float(state.get("full_at", 0.0)), now + seconds + (pace.burst - 1) / pace.per_second)
