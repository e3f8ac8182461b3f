# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A representative part of the crash matrix; all of it is played by ``make faults``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.matrix import Cell, Played, sample
from faults.randoms import rounds

from .agents import World
from .crash_cells import all_played

CHOSEN = sample("rotate", "back")
SEED = 20260101


@pytest.fixture(scope="module")
def played(_shared_world: World) -> Iterator[dict[Cell, Played]]:
    """Every cell, played at once."""
    with all_played(_shared_world, CHOSEN) as found:
        yield found


@pytest.mark.parametrize("cell", CHOSEN, ids=lambda cell: cell.name)
def test_a_rotation_that_ends_anywhere_is_finished_by_the_next_run(cell: Cell, played: dict[Cell, Played]) -> None:
    assert not played[cell].problem, played[cell].problem


def test_a_run_that_is_killed_at_any_moment_is_made_good_by_the_next_one(world: World, tmp_path: Path) -> None:
    killed = list(itertools.islice(rounds(world, tmp_path, 2, SEED, hosts=4, span=4.0), 3))
    assert [(one.run, one.whole) for one in killed] == [("deploy", True), ("rotate", False), ("deploy", False)]
    assert [one.problem for one in killed] == ["", "", ""], killed
