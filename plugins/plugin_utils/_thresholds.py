# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From when on an expiry is worth a word, for certificates and credentials alike (private to muster.agents)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput

__all__ = ["Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """When an expiry is worth a word, in days and in percent of the lifetime left; None for a measure that is not used."""

    warning_days: float | None = 30.0
    critical_days: float | None = 7.0
    warning_percent: float | None = None
    critical_percent: float | None = None

    @classmethod
    def of(cls, args: t.Mapping[str, t.Any]) -> Thresholds:
        """Return what a task's options say; days apply when they are given, or when no percentage is. Raises InvalidInput for limits in the wrong order."""
        by_percent = args["warning_percent"] is not None or args["critical_percent"] is not None
        warning = args["warning_days"] if args["warning_days"] is not None or by_percent else cls.warning_days
        critical = args["critical_days"] if args["critical_days"] is not None or by_percent else cls.critical_days
        found = cls(warning, critical, args["warning_percent"], args["critical_percent"])
        pairs = ((found.warning_days, found.critical_days, "days"), (found.warning_percent, found.critical_percent, "percent"))
        for first, second, unit in pairs:
            if first is not None and second is not None and first < second:
                raise InvalidInput(f"warning_{unit} {first:g} is less than critical_{unit} {second:g}: a warning has to come first.")
        return found

    @classmethod
    def for_life(cls, args: t.Mapping[str, t.Any], days: float) -> Thresholds:
        """Return what a task's options say of something that lives for *days*. Without any, what lives for less than a quarter is judged by shares."""
        given = any(args[name] is not None for name in ("warning_days", "critical_days", "warning_percent", "critical_percent"))
        return _SHARES if not given and 0 < days < _SHORT else cls.of(args)

    def severity(self, days: float, percent: float) -> str:
        """Return ok, warning or critical for what is left."""
        if _at_most(days, self.critical_days) or _at_most(percent, self.critical_percent):
            return "critical"
        return "warning" if _at_most(days, self.warning_days) or _at_most(percent, self.warning_percent) else "ok"


_SHORT = 90.0  # days; what lives for less would be warned of for a third of its life and more
_SHARES = Thresholds(None, None, 33.0, 10.0)


def _at_most(value: float, limit: float | None) -> bool:
    return limit is not None and value <= limit
