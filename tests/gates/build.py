# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate "build": the tarball, built from what git knows and installed as a user would, offline."""

from __future__ import annotations

import sys

from world.venvs import make

from .place import Place

if __name__ == "__main__":
    galaxy = make(sys.argv[1] if len(sys.argv) > 1 else "tools").with_name("ansible-galaxy")
    Place().build_and_install(galaxy)
