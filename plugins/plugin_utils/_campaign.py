# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rotation over many hosts as one undertaking: who is done, who failed, and when to stop (private to muster.agents).

It lies on the controller, shared by all forks and kept between runs, so that a run that stopped is gone on with where it stopped. Losing it
costs nothing but that knowledge.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.muster.agents.plugins.plugin_utils._host import controller_identity
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument

__all__ = ["Campaign"]


class Campaign:
    """One undertaking, by its name. Without a name nothing is kept and nothing stops it."""

    def __init__(self, directory: str, url: str, name: str, budget: int) -> None:
        """*directory*: where it is kept; *budget*: failures of one run that are put up with."""
        self._document = SharedDocument(directory, "campaign", url, name) if name else None
        self._budget = budget

    def standing(self, agent: str) -> t.Literal["due", "done", "spent"]:
        """Say whether *agent* is to be rotated: ``done`` when it was in this campaign, ``spent`` when too many others failed in this run."""
        if self._document is None:
            return "due"
        with self._document.held() as document:
            if agent in document.get("done", {}):
                return "done"
            return "spent" if len(self._failed_now(document)) > self._budget else "due"

    def note(self, agent: str, reason: str) -> None:
        """Remember how it ended for *agent*: an empty *reason* is success."""
        if self._document is None:
            return
        with self._document.held() as document:
            now, failed, done = int(time.time()), document.setdefault("failed", {}), document.setdefault("done", {})
            failed.pop(agent, None)
            if reason:
                failed[agent] = {"at": now, "reason": reason, "run": controller_identity()}
            else:
                done[agent] = now

    def summary(self) -> dict[str, list[str]]:
        """Return the names of those that are done and of those that failed."""
        if self._document is None:
            return {"done": [], "failed": []}
        with self._document.held() as document:
            return {"done": sorted(document.get("done", {})), "failed": sorted(document.get("failed", {}))}

    @staticmethod
    def _failed_now(document: t.Mapping[str, t.Any]) -> list[str]:
        return [name for name, entry in document.get("failed", {}).items() if entry.get("run") == controller_identity()]
