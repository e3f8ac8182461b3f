# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the collection is, beside what people use today and beside bare requests: ``make bench``.

An experiment runs the same work in several ways, in turn, several times; its lines are ratios of medians. See docs/performance.md.
"""
