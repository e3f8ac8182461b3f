# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's own secrets (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors SECRETS of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  secrets:
    description:
      - Secrets of your own, beside those that the control plane issues. They become usable by name, are never shown or returned, and need not
        be variables of the play.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name to use it by, out of letters, digits and underscores. Templates know it as C(muster_secret.NAME).
        type: str
        required: true
      value:
        description: The secret. Give this or O(secrets[].file).
        type: str
      file:
        description: File on the controller that holds the secret. A line break at its end does not count.
        type: path
"""
