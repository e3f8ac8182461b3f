# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules of this collection can be relied on for (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """The words for attributes; each module says how far it supports them."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and say what it would do, without changing anything anywhere.
  diff_mode:
    description: Shows what changed, or would change, in diff mode. Secrets are never part of it.
  idempotent:
    description: Running it again with the same options changes nothing and reports no change.
"""

    # For modules whose work is done by an action plugin on the controller.
    ACTION = r"""
attributes:
  action:
    description: Its work is done on the controller by an action plugin of the same name.
    support: full
  async:
    description: Can be run in the background with C(async).
    support: none
"""
