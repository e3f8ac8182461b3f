# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference server: control planes as documented and as shipped, for tests.

Run it with ``python -m reference_server --contract documented|shipped`` or start it from a test
through :class:`reference_server.client.ReferenceServer`. Importing this package needs nothing
beyond the standard library; only the server itself needs aiohttp.
"""
