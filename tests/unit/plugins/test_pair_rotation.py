# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rotation of a pair where nothing but its own last step is asked for; the whole is played by tests/integration/test_token_rotate_pair.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Parts
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._pair_rotation import PairRotation
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Enrolment


class _Pair:
    """A pair on a host that can note a restart, or cannot. *noted* counts."""

    def __init__(self, failure: HostFailure | None = None) -> None:
        self.noted = 0
        self._failure = failure

    def settle(self) -> None:
        self.noted += 1
        if self._failure is not None:
            raise self._failure


def _rotation(pair: _Pair, *, units: tuple[str, ...] = ("agent.service",), nudge: str = "restart") -> PairRotation:
    """A rotation of an agent that *units* run, whose gate was green."""
    nobody: Any = None
    given: Any = pair
    wish: Any = SimpleNamespace(nudge=nudge, gate=SimpleNamespace(units=units))
    order = Order(Enrolment("web", "1.0.0", certificate_path="/etc/agent.crt", key_path="/etc/agent.key"), {})
    return PairRotation(order, Parts(nobody, nobody, nobody, nobody, ()), wish, given)


def test_a_restart_that_cannot_be_noted_after_a_green_gate_is_a_warning_and_what_was_proved_stands() -> None:
    rotation = _rotation(_Pair(HostFailure("/etc is on a disk that is full: make room, then run again.", reason="disk_full")))
    rotation._read_by_the_agent()
    (warning,) = rotation._warnings
    assert warning.startswith("The next deploy restarts the agent once more, since the host could not note that it has read its pair: /etc is on a disk")


@pytest.mark.parametrize(("how", "noted"), [({}, 1), ({"units": ()}, 0), ({"nudge": "none"}, 0), ({"nudge": "reload"}, 1)])
def test_only_an_agent_that_was_restarted_has_read_its_pair(how: dict[str, Any], noted: int) -> None:
    pair = _Pair()
    rotation = _rotation(pair, **how)
    rotation._read_by_the_agent()
    assert (pair.noted, rotation._warnings) == (noted, [])
