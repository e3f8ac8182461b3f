# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a credential is due for rotation, why, in which steps, and whether the old one can be put back (private to muster.agents).

Everything here is computed from values; nothing is sent or written.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Capabilities, Lifetime

__all__ = ["DAY", "Due", "Origin", "RotationPlan", "State", "due_options", "judge"]

DAY = 86400.0

Origin = t.Literal["vault", "server", "host"]
_FIRST: t.Mapping[str, tuple[str, ...]] = {
    "vault": ("stage", "vault", "prove"), "server": ("issue", "stage", "prove"), "host": ("pair", "stage", "register", "prove"),
}


@dataclass(frozen=True)
class Due:
    """When to rotate: the conditions that are looked at, and their limits (max_age and min_days_left in days, max_percent_used from 0 to 100)."""

    when: tuple[str, ...]
    max_age: float
    min_days_left: float
    max_percent_used: float


@dataclass(frozen=True)
class State:
    """What is known of a credential that the control plane accepts.

    now and issued_at are seconds since the epoch on the controller's clock; issued_at is None when nobody noted it. lifetime is None when it does
    not expire. drift names, as short sentences, where something else is kept than what the control plane accepts.
    """

    now: float
    issued_at: float | None
    lifetime: Lifetime | None
    drift: tuple[str, ...] = ()


@dataclass(frozen=True)
class RotationPlan:
    """What would be done. reason is a stable word; why a sentence; steps are in order; restorable says whether the old credential can be put back."""

    due: bool
    reason: str
    why: str
    restorable: bool
    steps: tuple[str, ...]

    def as_result(self) -> dict[str, t.Any]:
        """Return the plan as plain data for a task result."""
        return {"due": self.due, "reason": self.reason, "why": self.why, "restorable": self.restorable, "steps": list(self.steps)}


def due_options(args: t.Mapping[str, t.Any]) -> Due:
    """Return the options as one value. Raises InvalidInput for a limit that cannot be meant."""
    for name in ("max_age", "min_days_left"):
        if args[name] < 0:
            raise InvalidInput(f"{name} is {args[name]:g}: give a number of days that is not negative.")
    if not 0 <= args["max_percent_used"] <= 100:
        raise InvalidInput(f"max_percent_used is {args['max_percent_used']:g}: give a number from 0 to 100.")
    return Due(tuple(args["when"]), args["max_age"], args["min_days_left"], args["max_percent_used"])


def judge(due: Due, state: State, capabilities: Capabilities, *, origin: Origin, vault: bool, nudge: str, retires: bool) -> RotationPlan:
    """Say whether rotation is due, and what it would do.

    *origin*: ``vault`` for a credential of our own that becomes valid by lying there, ``server`` for one that the control plane issues, ``host`` for a
    pair that is made on the host and registered. *vault*: a copy lies there.
    *nudge*: restart, reload or none. *retires*: the old one leaves something at the control plane that goes last.
    """
    reason, why = _reason(due, state)
    steps = [*_FIRST[origin], *(["vault"] if vault and origin != "vault" else [])]
    steps += ["deliver", *([nudge] if nudge != "none" else []), "gate", *(["retire"] if retires else [])]
    restorable = capabilities.restore_old
    if reason and not restorable:
        why += " The control plane replaces the old credential at once: it cannot be put back, only replaced again."
    return RotationPlan(bool(reason), reason or "not_due", why or _not_due(state), restorable, tuple(steps))


def _reason(due: Due, state: State) -> tuple[str, str]:
    """Return the first condition that holds, and what it says; two empty texts when none does."""
    if "drift" in due.when and state.drift:
        return "drift", " ".join(state.drift)
    life = state.lifetime
    if "days_left" in due.when and life is not None:
        left = (life.expires_at - state.now) / DAY
        if left < due.min_days_left:
            return "days_left", f"It ends in {left:.1f} days, and less than {due.min_days_left:g} are allowed."
    if "percent_used" in due.when and life is not None:
        used = life.used(state.now) * 100
        if used >= due.max_percent_used:
            return "percent_used", f"{used:.0f} % of its life are over, and {due.max_percent_used:g} % are allowed."
    if "age" in due.when:
        if state.issued_at is None:
            return "age", "Nobody noted when it was issued."
        age = (state.now - state.issued_at) / DAY
        if age >= due.max_age:
            return "age", f"It is {age:.1f} days old, and {due.max_age:g} are allowed."
    if "always" in due.when:
        return "always", "Rotation was asked for in any case."
    return "", ""


def _not_due(state: State) -> str:
    age = "" if state.issued_at is None else f" It is {max(0.0, state.now - state.issued_at) / DAY:.1f} days old."
    left = "" if state.lifetime is None else f" It ends in {(state.lifetime.expires_at - state.now) / DAY:.1f} days."
    return f"Nothing asks for a rotation yet.{age}{left}"
