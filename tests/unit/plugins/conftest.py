# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads collections as ansible-playbook does, so that plugins are found by their full names in unit tests too."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader


def pytest_configure() -> None:
    """Install core's collection loader over every import path that holds collections, before a test imports one of them."""
    init_plugin_loader([path for path in sys.path if (Path(path or ".") / "ansible_collections").is_dir()])
