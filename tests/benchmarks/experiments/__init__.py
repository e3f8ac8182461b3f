# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All experiments by name, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from ..experiment import Experiment, Options
from ..ground import Ground
from .certificates import issue
from .checks import check_endpoints
from .enrol import enrol_local, growth, nothing_to_do, scale
from .gate import gate
from .pacing import pacing
from .rotation import fleet_memory, fleet_rotation
from .ssh import over_ssh
from .vault import vault_store

__all__ = ["EXPERIMENTS", "Opened"]

Opened = Callable[[Ground, Options], AbstractContextManager[list[Experiment]]]


def _simple(build: Callable[[Ground, Options], Experiment | list[Experiment]]) -> Opened:
    """Wrap what needs no hosts of its own."""

    @contextmanager
    def opened(ground: Ground, options: Options) -> Iterator[list[Experiment]]:
        built = build(ground, options)
        yield built if isinstance(built, list) else [built]

    return opened


EXPERIMENTS: Mapping[str, Opened] = {
    "enrol": _simple(enrol_local),
    "again": _simple(nothing_to_do),
    "vault": _simple(vault_store),
    "issue": _simple(issue),
    "gate": _simple(gate),
    "growth": _simple(growth),
    "rotate": _simple(fleet_rotation),
    "check": _simple(check_endpoints),
    "memory": _simple(fleet_memory),
    "pacing": _simple(pacing),
    "scale": _simple(scale),
    "ssh": over_ssh,
}
