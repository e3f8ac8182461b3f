# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that builds a world: a CA, a real OpenBao, the reference control plane, and systemd hosts.

``python -m world up`` (with ``tests`` on PYTHONPATH) keeps a world running for the demo and for molecule; tests use the classes directly.
"""

from __future__ import annotations

from .ca import CertificateAuthority, KeyPair
from .errors import WorldError
from .openbao import OpenBao

__all__ = ["CertificateAuthority", "KeyPair", "OpenBao", "WorldError"]
