# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CA and a host for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pairs import Authority, Machine


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A root that issues certificates itself."""
    return Authority(tmp_path / "ca")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host without any certificate."""
    return Machine(tmp_path / "host")
