# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that a test arms and a request then meets.

A fault names a route (or ``any``), a kind, and how often it strikes. The kinds in ``TRANSPORT``
work on every route of every control plane; a control plane adds its own kinds, which either change
a finished answer or change what the plane does behind it.

===================  ==========================================================================
kind                 what the client meets
===================  ==========================================================================
``refuse``           the connection is reset before the request is acted on; nothing happened
``commit-then-drop`` the request is carried out, then the connection is reset
``commit-then-500``  the request is carried out, then answered with 500
``truncate``         the request is carried out, half of the answer arrives
``garbage``          the request is carried out, the answer is not JSON (its status is kept)
``slow``             the request is carried out, the answer comes ``seconds`` later
``status``           nothing happened; the answer is ``status``, ``body``, ``headers``
``429``              nothing happened; 429 with ``Retry-After: retry_after``
===================  ==========================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TRANSPORT = frozenset({"refuse", "commit-then-drop", "commit-then-500", "truncate", "garbage", "slow", "status", "429"})
ANY = "any"

__all__ = ["ANY", "TRANSPORT", "Fault", "FaultBoard", "UnknownFaultError"]


class UnknownFaultError(ValueError):
    """The test asked for a kind, a route or a parameter that does not exist."""


@dataclass
class Fault:
    """One armed fault. ``times`` left (None: until cleared), after ``skip`` requests that pass unharmed."""

    number: int
    route: str
    kind: str
    times: int | None
    skip: int
    name: str | None
    params: dict[str, Any] = field(default_factory=dict)
    fired: int = 0

    def seconds(self, default: float) -> float:
        """The fault's ``seconds`` parameter."""
        return float(self.params.get("seconds", default))

    def report(self) -> dict[str, Any]:
        """What ``GET /faults`` shows."""
        return {
            "number": self.number,
            "route": self.route,
            "kind": self.kind,
            "times": self.times,
            "skip": self.skip,
            "name": self.name,
            "fired": self.fired,
            **self.params,
        }


class FaultBoard:
    """The armed faults, oldest first."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._kinds: set[str] = set(TRANSPORT)
        self._routes: set[str] = {ANY}
        self._numbers = itertools.count(1)

    def know(self, kinds: Iterable[str], routes: Iterable[str]) -> None:
        """Let tests arm these kinds on these routes."""
        self._kinds.update(kinds)
        self._routes.update(routes)

    def arm(self, spec: dict[str, Any]) -> Fault:
        """Arm the fault a test described. Raises UnknownFaultError, naming what is known."""
        rest = dict(spec)
        kind, route = str(rest.pop("kind", "")), str(rest.pop("route", ANY))
        if kind not in self._kinds:
            raise UnknownFaultError(f"unknown kind {kind!r}; known: {', '.join(sorted(self._kinds))}")
        if route not in self._routes:
            raise UnknownFaultError(f"unknown route {route!r}; known: {', '.join(sorted(self._routes))}")
        times, skip, name = rest.pop("times", 1), rest.pop("skip", 0), rest.pop("name", None)
        if not (times is None or (isinstance(times, int) and times > 0)) or not isinstance(skip, int):
            raise UnknownFaultError("times is a positive number or null (until cleared), skip is a number")
        fault = Fault(next(self._numbers), route, kind, times, skip, name, rest)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm everything."""
        self._faults.clear()

    def report(self) -> list[dict[str, Any]]:
        """Every armed or spent fault since the last clear."""
        return [fault.report() for fault in self._faults]

    def wants_text(self) -> bool:
        """Whether an armed fault looks for a name, so that the body has to be read before it can match."""
        return any(fault.name is not None for fault in self._faults)

    def take(self, kinds: Iterable[str], route: str, text: str) -> Fault | None:
        """Return the first armed fault of these kinds for this route, and use it up by one.

        ``text`` is where a fault that has a ``name`` looks for it: path, query and body.
        """
        wanted = frozenset(kinds)
        for fault in self._faults:
            if fault.kind not in wanted or fault.route not in (ANY, route) or fault.times == 0:
                continue
            if fault.name is not None and fault.name not in text:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times = None if fault.times is None else fault.times - 1
            fault.fired += 1
            return fault
        return None
