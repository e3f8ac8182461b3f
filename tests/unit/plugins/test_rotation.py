# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rotation, ended before and after every single effect it has, with control planes of every kind, and with others at work meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
import rotation_world
from ansible.errors import AnsibleConnectionFailure
from rotation_world import AGE, ALWAYS, Clock, Dead, Destructive, MemoryHost, ProcessGate, Server, ThroughVault, WithOverlap, World

from ansible_collections.muster.agents.plugins.plugin_utils import _enrolment, _rotation
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous, HostFailure, InvalidInput, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import DAY, Due
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Lifetime

KINDS: tuple[type[Server], ...] = (ThroughVault, WithOverlap, Destructive)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate judges the process alone, and nobody waits."""
    clock = Clock.shared
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(_rotation, "Gate", ProcessGate)
    monkeypatch.setattr(_rotation, "time", clock)
    monkeypatch.setattr(_enrolment, "time", clock)
    # A run that was killed leaves its lease; its process is gone.
    monkeypatch.setattr(_rotation, "holder_is_dead", lambda _holder: True)
    monkeypatch.setattr(_enrolment, "holder_is_dead", lambda _holder: True)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    made = World(tmp_path, request.param)
    made.enrol()
    return made


def test_a_rotation_moves_host_vault_process_and_control_plane(world: World) -> None:
    old = world.process
    done = world.rotate()
    assert (done.action, done.changed, done.receipt.generation, done.receipt.phase) == ("rotated", True, 2, "COMMITTED")
    assert world.process != old
    assert not world.plane.accepts(old)
    assert [name for name, _outcome in done.steps] == list(done.plan.steps)
    world.check()


def test_check_mode_foretells_the_steps_and_touches_nothing(world: World) -> None:
    before, writes = world.receipt, len(world.safe.versions)
    world.effects.names.clear()
    foretold = world.rotate(check_mode=True)
    assert (foretold.action, foretold.changed, foretold.reason) == ("planned", True, "always")
    assert foretold.plan.restorable is world.plane.capabilities.restore_old
    assert ("cannot be put back" in foretold.msg) is not foretold.plan.restorable
    assert {"deliver", "issue", "vault write", "nudge"}.isdisjoint(world.effects.names)
    assert (world.receipt, len(world.safe.versions)) == (before, writes)


def test_a_fresh_credential_is_left_alone(world: World) -> None:
    world.effects.names.clear()
    quiet = world.rotate(AGE)
    assert (quiet.action, quiet.reason, quiet.changed) == ("unchanged", "not_due", False)
    assert {"deliver", "issue", "vault write", "nudge"}.isdisjoint(world.effects.names)


def test_what_a_run_left_half_written_is_cleared_by_the_next_one(world: World) -> None:
    for clearing in (lambda: world.rotate(AGE), world.enrol):
        world.disk.leftovers.add(f"{MemoryHost.root}/.intent.muster")
        clearing()
        world.check()


@pytest.mark.parametrize(("due", "action"), [(AGE, "unchanged"), (ALWAYS, "rotated")])
def test_a_generation_that_was_staged_without_its_receipt_is_taken_away(due: Due, action: str, tmp_path: Path) -> None:
    world = World(tmp_path, ThroughVault)
    world.enrol()
    for _again in range(2):
        stray = max(world.disk.generations) + 1
        world.disk.generations[stray] = {"token": "nobody-has-heard-of-it", "agent_id": world.receipt.agent_id}
        foretold = world.rotate(due, check_mode=True)
        assert (foretold.changed, stray in world.disk.generations) == (action == "rotated", True)
        assert world.rotate(due).action == action
        world.check()
        assert "nobody-has-heard-of-it" not in {stored["token"] for stored in world.disk.generations.values()}


def test_a_stray_generation_goes_too_when_only_the_process_is_judged_again(tmp_path: Path) -> None:
    world = World(tmp_path, ThroughVault)
    world.enrol()
    world.reds = 2
    with pytest.raises(AgentsError):
        world.rotate()
    world.disk.generations[max(world.disk.generations) + 1] = {"token": "nobody-has-heard-of-it", "agent_id": world.receipt.agent_id}
    assert world.rotate(AGE).action == "resumed"
    world.check()


@pytest.mark.parametrize(("kind", "after"), [(ThroughVault, "restored"), (WithOverlap, "restored"), (Destructive, "forward")])
def test_a_red_gate_brings_the_old_credential_back_where_that_can_be(kind: type[Server], after: str, tmp_path: Path) -> None:
    world = World(tmp_path, kind)
    world.enrol()
    world.rotate()
    old, generation = world.process, world.receipt.generation
    world.reds = 1
    with pytest.raises(AgentsError) as failed:
        world.rotate()
    assert failed.value.facts["failed_step"] == "gate"
    assert failed.value.facts["changed"] is True
    assert failed.value.facts["rolled_back"] is (after == "restored")
    if after == "restored":
        assert (world.process, world.receipt.generation, world.receipt.phase) == (old, generation, "COMMITTED")
    else:
        assert "cannot be put back" in failed.value.msg
        assert world.rotate(AGE).action == "resumed"
    world.check()
    world.rotate()
    world.check()


@pytest.mark.parametrize(("due", "action"), [(AGE, "resumed"), (ALWAYS, "rotated")])
def test_an_agent_that_is_unwell_with_either_credential_is_judged_again_and_rotated_when_that_is_due(due: Due, action: str, tmp_path: Path) -> None:
    world = World(tmp_path, ThroughVault)
    world.enrol()
    old, generation = world.process, world.receipt.generation
    world.reds = 2
    with pytest.raises(AgentsError) as failed:
        world.rotate()
    assert failed.value.facts["rolled_back"] is True
    assert (world.receipt.generation, world.receipt.phase) == (generation, "ACTIVE")
    world.disk.receipt = world.receipt.moved("ACTIVE", "unhealthy: unit_failed", 1).dump()  # as the gate notes it
    done = world.rotate(due)
    assert (done.action, world.process != old, world.receipt.phase) == (action, action == "rotated", "COMMITTED")
    world.check()


def test_vault_that_fails_in_the_middle_leaves_the_old_credential(tmp_path: Path) -> None:
    world = World(tmp_path, ThroughVault)
    world.enrol()
    old = world.process
    world.safe.failure = VaultFailure("Vault is sealed.", reason="sealed")
    with pytest.raises(AgentsError) as failed:
        world.rotate()
    assert (failed.value.facts["failed_step"], failed.value.facts["rolled_back"], failed.value.reason) == ("vault", True, "sealed")
    assert (world.process, world.receipt.phase) == (old, "COMMITTED")
    world.check()
    world.safe.failure = None
    world.rotate()
    world.check()


def test_without_a_way_nothing_is_begun(tmp_path: Path) -> None:
    world = World(tmp_path, ThroughVault)
    world.enrol()
    world.vault = False
    before = world.receipt
    with pytest.raises(InvalidInput) as refused:
        world.rotate(check_mode=True)
    assert refused.value.reason == "vault_needed"
    with pytest.raises(InvalidInput):
        world.rotate()
    assert world.receipt == before
    world.vault = True
    world.check()


def test_an_agent_that_was_never_enrolled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        World(tmp_path, ThroughVault).rotate()
    assert refused.value.reason == "not_enrolled"


def test_what_could_not_be_retired_is_retired_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, WithOverlap)
    world.enrol()
    with monkeypatch.context() as patched:
        patched.setattr(WithOverlap, "retire", _refuse_to_retire)
        done = world.rotate()
    assert (done.action, done.receipt.phase, done.receipt.retire_pending) == ("rotated", "COMMITTED", ("generation 1",))
    assert "tried again by the next run" in done.warnings[0]
    assert len(world.plane.tokens) == 2
    assert world.rotate(AGE).action == "retired"
    world.check()


def _refuse_to_retire(*_given: t.Any) -> t.NoReturn:
    raise AgentsError("The control plane is busy.")


@pytest.mark.parametrize(("due", "life", "reason"), [
    (Due(("days_left",), 90, 30, 67), (-335, 30.5), "not_due"), (Due(("days_left",), 90, 30, 67), (-336, 29), "days_left"),
    (Due(("percent_used",), 90, 30, 67), (-66, 34), "not_due"), (Due(("percent_used",), 90, 30, 67), (-68, 32), "percent_used"),
    (Due(("percent_used", "days_left"), 90, 30, 67), None, "not_due"), (Due((), 90, 30, 67), (-99, 1), "not_due"),
])
def test_what_a_credential_says_of_its_life_decides(due: Due, life: tuple[float, float] | None, reason: str, tmp_path: Path) -> None:
    world = World(tmp_path, WithOverlap)
    world.enrol()
    now = rotation_world.time.time()
    world.plane.life = Lifetime(now + life[0] * DAY, now + life[1] * DAY) if life else None
    assert world.rotate(due, check_mode=True).reason == reason


def test_drift_in_vault_is_a_reason_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, WithOverlap)
    world.enrol()
    due = Due(("drift",), 90, 30, 67)
    assert world.rotate(due).reason == "not_due"
    world.safe.put("somebody else's")
    done = world.rotate(due)
    assert (done.action, done.reason) == ("rotated", "drift")
    world.check()


# -- ended at every effect ---------------------------------------------------------------------------------------------------------------------


def _effects(kind: type[Server], folder: Path, *, red: bool) -> int:
    """How many effects a whole rotation has."""
    world = World(folder, kind)
    world.enrol()
    world.effects.count, world.reds = 0, int(red)
    try:
        world.rotate()
    except AgentsError:
        assert red
    return world.effects.count


def _raiser(error: BaseException) -> t.Callable[[], None]:
    def act() -> None:
        raise error

    return act


ENDS: dict[str, t.Callable[[], BaseException]] = {
    "killed": Dead, "failed": lambda: HostFailure("The disk is full.", reason="disk_full"), "away": lambda: AnsibleConnectionFailure("away"),
    "lost": lambda: Ambiguous("The answer was lost."),
}
FOLLOWING = ("rotate", "enrol")


def _ended_everywhere(kind: type[Server], folder: Path, *, red: bool) -> Iterator[tuple[str, World]]:
    for number in range(_effects(kind, folder / "count", red=red)):
        for moment in ("before", "after"):
            for turn, (end, error) in enumerate(ENDS.items()):
                following = FOLLOWING[(number + turn + (moment == "after")) % len(FOLLOWING)]
                world = World(folder / f"{number}-{moment}-{end}-{following}", kind)
                world.enrol()
                world.effects.count, world.reds = 0, int(red)
                getattr(world.effects, moment)[number] = _raiser(error())
                with contextlib.suppress(Dead, AgentsError, AnsibleConnectionFailure):
                    world.rotate()
                world.effects.before.clear()
                world.effects.after.clear()
                world.reds = 0
                yield f"{end} {moment} effect {number} ({world.effects.names[-1]}), then {following}", world


@pytest.mark.parametrize("red", [False, True], ids=["green", "red"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_anywhere_is_finished_by_the_next_one_and_then_all_is_quiet(kind: type[Server], red: bool, tmp_path: Path) -> None:
    wrong = []
    for what, world in _ended_everywhere(kind, tmp_path, red=red):
        problem = _recovered(world, what)
        if problem:
            wrong.append(f"{what}: {problem}")
    assert not wrong, "\n".join(wrong)


def _recovered(world: World, what: str) -> str:
    """Run again as *what* says, and return what is not as it should be."""
    try:
        if what.endswith("rotate"):
            try:
                world.rotate(AGE)
            except AgentsError as error:
                if error.reason != "no_accepted_credential":
                    raise
                world.enrol()  # as the message says
        else:
            world.enrol()
        if world.receipt.retire_pending or len(world.plane.tokens) > 1:
            world.rotate(AGE if world.receipt.retire_pending else ALWAYS)  # what a lost try left goes with the next rotation
        world.check()
        before = (list(world.safe.versions), world.receipt, dict(world.plane.tokens), world.process)
        quiet = world.rotate(AGE)
        again = world.enrol()
    except (AgentsError, AssertionError) as error:
        return f"{type(error).__name__} {error}"
    if quiet.changed or again.changed or (list(world.safe.versions), world.receipt, dict(world.plane.tokens), world.process) != before:
        return f"the second run was not quiet: {quiet.action} {quiet.reason} {again.action} {again.reason}"
    return ""


# -- with others at work -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["self-issued", "issued-1"], ids=["agent", "late-server"])
def test_another_writer_in_vault_at_any_moment_ends_in_one_credential_that_works(token: str, tmp_path: Path) -> None:
    wrong = []
    for number in range(_effects(ThroughVault, tmp_path / "count", red=False)):
        world = World(tmp_path / str(number), ThroughVault)
        world.enrol()
        world.effects.count = 0
        world.effects.before[number] = functools.partial(world.safe.put, token)
        with contextlib.suppress(AgentsError):
            world.rotate()
        world.effects.before.clear()
        problem = _recovered(world, "then rotate")
        if problem:
            wrong.append(f"writer before effect {number}: {problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_two_controllers_interleaved_at_any_effect_end_in_one_credential(kind: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = ["one:1"]
    for module in (_rotation, _enrolment):
        monkeypatch.setattr(module, "controller_identity", lambda: who[0])
        monkeypatch.setattr(module, "holder_is_dead", lambda _holder: False)
    wrong = []
    for number in range(_effects(kind, tmp_path / "count", red=False)):
        world = World(tmp_path / str(number), kind)
        world.enrol()
        world.effects.count = 0

        def other(world: World = world) -> None:
            who[0] = "two:2"
            world.effects.before.clear()
            with contextlib.suppress(AgentsError):
                world.rotate()
            who[0] = "one:1"

        world.effects.before[number] = other
        with contextlib.suppress(AgentsError):
            world.rotate()
        who[0] = "one:1"
        problem = _recovered(world, "then rotate")
        if problem:
            wrong.append(f"other controller before effect {number}: {problem}")
    assert not wrong, "\n".join(wrong)
