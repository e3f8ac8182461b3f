# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two controllers, an agent, and three who write to Vault, interleaved effect by effect: whatever the order, the next run ends in one credential.

Each controller is a thread that stands still before each of its effects until the schedule lets it go on. The writers are the control plane's late write
of the first token, an operator, and the agent, which makes a token of its own when it finds itself refused.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import typing as t
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rotation_world import AGE, ALWAYS, Clock, Destructive, Effects, ProcessGate, Server, ThroughVault, WithOverlap, World

from ansible_collections.muster.agents.plugins.plugin_utils import _enrolment, _rotation
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, GateRed

PATIENCE = 60
_OTHERS_FROM = 8  # of ten choices, so that the others are spread over both runs and what comes after them


class Controller(threading.Thread):
    """A run of one controller that takes an effect whenever it is told to."""

    def __init__(self, name: str, work: t.Callable[[], t.Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.work = work
        self.go, self.stands = threading.Semaphore(0), threading.Semaphore(0)
        self.over = self.well = False

    def run(self) -> None:
        """Work to the end; it is well when that is the work's own or what the product says in an orderly way."""
        try:
            self.pause()
            with contextlib.suppress(AgentsError):
                self.work()
            self.well = True
        finally:
            self.over = True
            self.stands.release()

    def pause(self) -> None:
        """Stand still until the schedule says otherwise."""
        self.stands.release()
        if not self.go.acquire(timeout=PATIENCE):
            raise TimeoutError("nobody lets this controller go on")

    def step(self) -> None:
        """Let it go on to its next effect, or to its end."""
        self.go.release()
        assert self.stands.acquire(timeout=PATIENCE)


class Turns(Effects):
    """Effects that wait for their turn."""

    def take(self, name: str, work: t.Callable[[], t.Any]) -> t.Any:
        """Do *work* when the schedule comes to it."""
        me = threading.current_thread()
        if isinstance(me, Controller):
            me.pause()
        return super().take(name, work)


class Play:
    """One world, its two controllers, and what else can happen, each of it once."""

    def __init__(self, folder: Path, kind: type[Server], second: str) -> None:
        self.world = World(folder, kind)
        self.world.enrol()
        self.world.effects = Turns()
        runs = {"rotate": self.world.rotate, "enrol": self.world.enrol, "due": lambda: self.world.rotate(AGE)}
        self.controllers = [Controller("one:1", runs["rotate"]), Controller("two:2", runs[second])]
        self.others: list[t.Callable[[], None]] = []
        if kind is ThroughVault:
            safe = self.world.safe
            self.others = [lambda: safe.put("issued-1"), lambda: safe.put("operator-1"), self._agent, self._agent]

    def _agent(self) -> None:
        """Poll; a refused agent makes a token of its own, writes it to Vault and works with it."""
        if not self.world.plane.accepts(self.world.process):
            self.world.safe.put("self-issued")
            self.world.process = "self-issued"

    def run(self, schedule: t.Sequence[int]) -> None:
        """Let happen what *schedule* says, then the rest of both runs in turn."""
        for controller in self.controllers:
            controller.start()
            assert controller.stands.acquire(timeout=PATIENCE)
        for choice in schedule:
            running = [controller for controller in self.controllers if not controller.over]
            if choice < _OTHERS_FROM and running:
                running[choice % len(running)].step()
            elif self.others:
                self.others.pop(choice % len(self.others))()
        while any(not controller.over for controller in self.controllers):
            for controller in self.controllers:
                if not controller.over:
                    controller.step()
        assert all(controller.well for controller in self.controllers)

    def recover(self, by: str) -> None:
        """Run once more, see that all is well, and that a further run finds nothing to do."""
        world = self.world
        world.effects = Effects()
        try:
            world.rotate(AGE) if by == "rotate" else world.enrol()
        except GateRed as error:
            # And rightly so: its process made a token of its own, which somebody has replaced in Vault since. A refused agent asks Vault again.
            assert (error.reason, world.plane.accepts(world.process)) == ("credential_refused", False), error.msg
            world.process = world.safe.value()
            world.enrol()
        except AgentsError as error:
            assert error.reason == "no_accepted_credential", error.msg
            world.enrol()  # as the message says
        if world.receipt.retire_pending or len(world.plane.tokens) > 1:
            world.rotate(AGE if world.receipt.retire_pending else ALWAYS)  # what a lost try left goes with the next rotation
        if not world.plane.accepts(world.process):
            world.process = world.safe.value()  # a refused agent asks Vault, whenever that was
        world.check()
        if world.receipt.phase != "COMMITTED":
            assert not world.enrol().changed  # only its gate notes that the process is well: a rotation that has nothing to do leaves that to it
        before = (list(world.safe.versions), world.receipt, dict(world.plane.tokens), world.process)
        assert not world.rotate(AGE).changed
        assert not world.enrol().changed
        assert (list(world.safe.versions), world.receipt, dict(world.plane.tokens), world.process) == before


@pytest.fixture(autouse=True)
def _others_clock_and_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock.shared
    for module in (_rotation, _enrolment):
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "controller_identity", lambda: threading.current_thread().name)
        monkeypatch.setattr(module, "holder_is_dead", lambda _holder: False)
        monkeypatch.setattr(module, "require_controller", lambda: None, raising=False)
    monkeypatch.setattr(_rotation, "Gate", ProcessGate)


def _played(kind: type[Server], second: str, by: str, schedule: t.Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        play = Play(Path(name), kind, second)
        play.run(schedule)
        play.recover(by)


SCHEDULES = st.lists(st.integers(0, 9), min_size=20, max_size=90)


@settings(max_examples=150, deadline=None)
@example(kind=WithOverlap, second="enrol", by="rotate", schedule=[0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
@example(kind=ThroughVault, second="enrol", by="rotate", schedule=[0, 0, 1, 9, 0, 0, 1, 1, 8, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0])
@example(kind=ThroughVault, second="rotate", by="enrol", schedule=[0] * 6 + [1] * 2 + [0] * 3 + [9] + [0] * 11 + [8, 8])
@given(kind=st.sampled_from([ThroughVault, ThroughVault, WithOverlap, Destructive]), second=st.sampled_from(["rotate", "enrol", "due"]),
       by=st.sampled_from(["rotate", "enrol"]), schedule=SCHEDULES)
def test_whatever_the_order_the_next_run_ends_in_one_credential_that_works(kind: type[Server], second: str, by: str, schedule: list[int]) -> None:
    _played(kind, second, by, schedule)


@pytest.mark.thorough
@pytest.mark.parametrize("second", ["rotate", "enrol"])
@pytest.mark.parametrize("kind", [ThroughVault, WithOverlap, Destructive])
def test_every_order_in_which_each_controller_is_interrupted_once(kind: type[Server], second: str) -> None:
    wrong = []
    for first in range(32):
        for other in range(1, 32, 7):
            schedule = [0] * first + [1] * other  # the first one goes so far, the other so far, then both in turn
            try:
                _played(kind, second, "rotate", schedule)
            except (AssertionError, AgentsError) as error:
                wrong.append(f"{first} effects, then {other} of the other: {type(error).__name__} {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
