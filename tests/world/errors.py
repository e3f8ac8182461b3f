# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of this package: something the world needs is not there, with what to do about it."""

from __future__ import annotations

__all__ = ["WorldError"]


class WorldError(RuntimeError):
    """A world cannot be built or used. ``remedy`` is one sentence that tells the reader what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy
