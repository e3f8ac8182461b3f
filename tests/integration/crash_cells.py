# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cells of the crash matrix, played at once in a place that is gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from faults.matrix import Cell, Played, play

from .agents import World

__all__ = ["all_played"]


@contextmanager
def all_played(world: World, chosen: Sequence[Cell]) -> Iterator[dict[Cell, Played]]:
    """Play every cell, and say what became of each."""
    directory = Path(tempfile.mkdtemp(prefix="muster-crashes-"))
    try:
        yield {found.cell: found for found in play(world, directory, chosen)}
    finally:
        shutil.rmtree(directory, ignore_errors=True)
