# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what clients asked for, so that a test can prove that nothing was changed.

A request is counted when it is read, whatever the answer is: a refused registration was still
sent. Classes: ``mutating`` (creates, changes or removes a record for an operator), ``login``,
``read``, and ``agent`` (what running agents send by themselves). Control requests are not counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

CLASSES = ("mutating", "login", "read", "agent")

__all__ = ["CLASSES", "Counters"]


class Counters:
    """Request counts per control plane and class, per route, and per route and outcome."""

    def __init__(self, planes: list[str]) -> None:
        self._planes = planes
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        self._classes: dict[str, Counter[str]] = {plane: Counter() for plane in self._planes}
        self._routes: Counter[str] = Counter()
        self._outcomes: dict[str, Counter[str]] = {}

    def arrived(self, plane: str, kind: str, route: str) -> None:
        """Count one request of class ``kind`` on ``route``."""
        self._routes[route] += 1
        if plane in self._classes:
            self._classes[plane][kind] += 1

    def answered(self, route: str, outcome: str) -> None:
        """Count how a request ended: a status code as text, or ``dropped``."""
        self._outcomes.setdefault(route, Counter())[outcome] += 1

    def report(self) -> dict[str, Any]:
        """Return ``{plane: {class: n}, "by_route": {route: n}, "by_outcome": {route: {outcome: n}}}``."""
        report: dict[str, Any] = {plane: {kind: counts[kind] for kind in CLASSES} for plane, counts in self._classes.items()}
        report["by_route"] = dict(self._routes)
        report["by_outcome"] = {route: dict(outcomes) for route, outcomes in self._outcomes.items()}
        return report
