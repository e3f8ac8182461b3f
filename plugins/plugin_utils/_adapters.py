# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The adapters by the key of their control plane (private to muster.agents).

Not in the package itself, whose files import one another.
"""

from __future__ import annotations

from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import ControlPlane
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.kubeatlas import KubeAtlas
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.oxmon import Oxmon
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.pganalytics import PgAnalytics
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.stacker import Stacker

__all__ = ["ADAPTERS"]

ADAPTERS: dict[str, type[ControlPlane]] = {adapter.key: adapter for adapter in (Stacker, PgAnalytics, KubeAtlas, Oxmon)}
