# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lowest versions that the collection asks for are those that it is tested with on the oldest ansible-core."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[3]
_LINE = re.compile(r"^([a-z0-9-]+)(>=|==)([0-9.]+)$", re.MULTILINE)


def _versions(file: str) -> dict[str, tuple[str, str]]:
    """What *file* asks for: package -> operator and version. Lines with a marker are left out: they concern some Pythons only."""
    return {name: (operator, version) for name, operator, version in _LINE.findall((TOP / file).read_text())}


def test_the_lowest_versions_are_tested() -> None:
    asked, tested = _versions("requirements.txt"), _versions("tests/requirements/lowest.txt")
    assert len(asked) == 5
    assert tested == {name: ("==", version) for name, (_operator, version) in asked.items()}
    assert "-r lowest.txt" in (TOP / "tests/requirements/core-2.16.txt").read_text().splitlines()
