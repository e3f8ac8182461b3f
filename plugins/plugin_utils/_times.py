# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Times as servers write them (private to muster.agents)."""

from __future__ import annotations

import datetime
import re

__all__ = ["age_seconds", "iso", "parse_time"]

_FAR = 253402300799.0  # the end of the year 9999, the last moment that a certificate can name (RFC 5280 section 4.1.2.5)
_LONG_AGO = -62135596800.0  # the beginning of the year 1
_FRACTION = re.compile(r"\.(\d+)")


def parse_time(text: str) -> float | None:
    """Return *text* (ISO 8601; UTC when it names no zone) as seconds since the epoch, None when it is empty or something else."""
    cleaned = _FRACTION.sub(lambda match: "." + match.group(1)[:6].ljust(6, "0"), text.strip()).replace("Z", "+00:00").replace(" UTC", "+00:00")
    try:
        moment = datetime.datetime.fromisoformat(cleaned)
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()


def age_seconds(text: str, now: float) -> float | None:
    """Return how many seconds before *now* (epoch, on the clock of whoever wrote *text*) that was; None when it cannot be told."""
    moment = parse_time(text)
    return None if moment is None else now - moment


def iso(moment: float) -> str:
    """Return a time in seconds since the epoch in ISO 8601, UTC, as near as a date of the years 1 to 9999 can be."""
    found = datetime.datetime.fromtimestamp(min(max(moment, _LONG_AGO), _FAR), datetime.timezone.utc)
    return f"{found.replace(microsecond=0, tzinfo=None).isoformat()}Z"
