# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a sign of life that a server wrote down came after a moment on the controller's clock (private to muster.agents)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time

__all__ = ["ServerClock", "Sighting", "Span", "judge_seen", "moment"]

# A Date header counts whole seconds (RFC 9110, 5.6.7), and servers may cache it for half a second.
_DATE_RESOLUTION = 1.5
_UNKNOWN_CLOCK = 2.0  # seconds either way where the server tells no time


@dataclass(frozen=True)
class Span:
    """A moment that is known to lie between two times (epoch seconds)."""

    low: float
    high: float

    def plus(self, other: Span) -> Span:
        """Return the span shifted by an uncertain amount."""
        return Span(self.low + other.low, self.high + other.high)


class ServerClock:
    """How far the server's clock is ahead of the controller's, in ever narrower bounds: each answer's Date header adds one."""

    def __init__(self) -> None:
        self._low: float | None = None
        self._high: float | None = None

    def note(self, skew: float | None) -> None:
        """Take one measurement, server minus controller in seconds; it is too small by up to the header's resolution."""
        if skew is None:
            return
        self._low = skew if self._low is None else max(self._low, skew)
        self._high = skew + _DATE_RESOLUTION if self._high is None else min(self._high, skew + _DATE_RESOLUTION)

    def bounds(self) -> Span:
        """Return what is known; two seconds around no difference where the server never told a time."""
        if self._low is None or self._high is None:
            return Span(-_UNKNOWN_CLOCK, _UNKNOWN_CLOCK)
        return Span(min(self._low, self._high), max(self._low, self._high))


@dataclass(frozen=True)
class Sighting:
    """Whether a sign of life came after a beginning: *sure* by any reading of the clocks, *possible* by one of them."""

    sure: bool
    possible: bool


def moment(text: str) -> Span | None:
    """Return the moment an ISO 8601 text names, as wide as its last digit; None when it names none."""
    start = parse_time(text)
    if start is None:
        return None
    fraction = re.search(r"\.(\d+)", text)
    return Span(start, start + 10.0 ** -(len(fraction.group(1)) if fraction else 0))


def judge_seen(last_seen: Span, since: Span) -> Sighting:
    """Compare a sign of life with what it is to come after, such as the start of a process, both on the server's clock."""
    return Sighting(sure=last_seen.low >= since.high, possible=last_seen.high >= since.low)
