# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A representative part of the crash matrix; all of it is played by ``make faults``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.matrix import Cell, Played, cells, play

from .agents import World

POINTS = {"rotate": ("after_stage", "after_vault", "after_delivery"), "back": ("after_vault_back",)}
CHOSEN = cells(POINTS, ("kill", "disk-full", "unreachable"), ("same-controller", "host-rebuilt"))


@pytest.fixture(scope="module")
def played(_shared_world: World) -> Iterator[dict[Cell, Played]]:
    """Every cell, played at once."""
    directory = Path(tempfile.mkdtemp(prefix="muster-crashes-"))
    yield {found.cell: found for found in play(_shared_world, directory, CHOSEN)}
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("cell", CHOSEN, ids=lambda cell: cell.name)
def test_a_rotation_that_ends_anywhere_is_finished_by_the_next_run(cell: Cell, played: dict[Cell, Played]) -> None:
    assert not played[cell].problem, played[cell].problem
