# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads collections as ansible-playbook does, before any unit test imports one, so that plugins and filters are found by their full names."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig


def pytest_configure() -> None:
    """Install core's collection loader."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([path for path in sys.path if (Path(path or ".") / "ansible_collections").is_dir()])
