# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that builds a world: a CA, a real OpenBao, the reference control plane, and systemd hosts.

``python -m world up`` (with ``tests`` on PYTHONPATH) keeps a world running for the demo and for molecule; tests use the classes directly:
``from world import OpenBao, CertificateAuthority``.

The names below are loaded on first use, because ``world.venvs`` and ``world.machine`` must work before anything is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ca import CertificateAuthority, KeyPair
    from .errors import WorldError
    from .hosts import Fleet, Host
    from .openbao import OpenBao
    from .reference import Reference
    from .world import Settings, World

_HOMES = {
    "CertificateAuthority": "ca",
    "Fleet": "hosts",
    "Host": "hosts",
    "KeyPair": "ca",
    "OpenBao": "openbao",
    "Reference": "reference",
    "Settings": "world",
    "World": "world",
    "WorldError": "errors",
}

__all__ = ["CertificateAuthority", "Fleet", "Host", "KeyPair", "OpenBao", "Reference", "Settings", "World", "WorldError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
