# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of an experiment: sides that do the same work, and lines that compare their medians with a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .measure import Sample, median

__all__ = ["Experiment", "Figure", "Line", "Options", "Report", "Side", "conduct", "cpu", "memory", "per_item", "ratio", "task", "wall"]

Samples = Mapping[str, Sequence[Sample]]
Figure = Callable[[Sample], float]


def wall(sample: Sample) -> float:
    """Seconds from start to end."""
    return sample.wall


def task(sample: Sample) -> float:
    """Seconds in tasks."""
    return sample.task


def cpu(sample: Sample) -> float:
    """CPU seconds."""
    return sample.cpu


def memory(sample: Sample) -> float:
    """Peak memory in MiB."""
    return sample.memory


def per_item(figure: Figure) -> Figure:
    """Return *figure* for each host, agent or endpoint."""
    return lambda sample: figure(sample) / sample.items


def ratio(top: str, bottom: str, figure: Figure) -> Callable[[Samples], float]:
    """Return how many times the median of side *top* is that of side *bottom*."""
    return lambda samples: median(samples[top], figure) / median(samples[bottom], figure)


@dataclass(frozen=True)
class Options:
    """How large and how often. Each experiment takes from it what it understands."""

    hosts: int = 50
    forks: int = 20
    runs: int = 3
    ssh_hosts: int = 10
    certificate_hosts: int = 20
    fleet: int = 1000
    peer_items: int = 100
    growth: tuple[int, int] = (100, 1000)
    scale: tuple[tuple[int, int], ...] = ((10, 20), (50, 5), (200, 20))


@dataclass(frozen=True)
class Side:
    """One way to do the work. *run* prepares, measures and checks that the work was done; it raises BenchError when it was not."""

    name: str
    label: str
    run: Callable[[], Sample]


@dataclass(frozen=True)
class Line:
    """One line of the table. *target* None only reports; *least* says whether the target is a floor or a ceiling. *unit* follows the figure."""

    work: str
    against: str
    value: Callable[[Samples], float]
    target: float | None = None
    least: bool = True
    unit: str = "x"

    def verdict(self, value: float) -> str:
        """Return ``ok``, ``below target`` or, without a target, nothing."""
        if self.target is None:
            return ""
        return "ok" if (value >= self.target if self.least else value <= self.target) else "below target"


@dataclass(frozen=True)
class Experiment:
    """*sides* are run in turn, *runs* times (None: as often as asked for)."""

    name: str
    title: str
    sides: Sequence[Side]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    runs: int | None = None


@dataclass(frozen=True)
class Report:
    """What came out of one experiment. *missing* says why it did not take place."""

    name: str
    title: str
    samples: Samples = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[tuple[Line, float]] = ()
    notes: Sequence[str] = ()
    missing: str = ""


def conduct(experiment: Experiment, options: Options, tell: Callable[[str], None]) -> Report:
    """Run all sides in turn, every second round backwards, so that a slow spell of the machine meets all of them."""
    samples: dict[str, list[Sample]] = {side.name: [] for side in experiment.sides}
    for number in range(experiment.runs or options.runs):
        for side in experiment.sides[:: -1 if number % 2 else 1]:
            sample = side.run()
            samples[side.name].append(sample)
            watched = f", {sample.memory:.0f} MiB" if sample.memory else ""
            tell(f"  {experiment.name} {number + 1}: {side.label}: {sample.wall:.2f} s, tasks {sample.task:.2f} s, CPU {sample.cpu:.2f} s{watched}")
    lines = [(line, line.value(samples)) for line in experiment.lines]
    return Report(experiment.name, experiment.title, samples, {side.name: side.label for side in experiment.sides}, lines, experiment.notes)
