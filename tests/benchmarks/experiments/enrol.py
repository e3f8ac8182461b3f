# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enrolling: register, Vault, ``.env``; against the guide's own playbook, a task that does nothing, and bare requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import limits
from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Side, cpu, per_item, ratio, task, wall
from ..ground import Agents, Ground
from ..measure import Sample
from ..tasks import ENROL, GUIDE, NOTHING, enrol

__all__ = ["enrol_local", "growth", "nothing_to_do", "scale"]


class _Local:
    """Runs tasks on local hosts with new agents each time."""

    def __init__(self, ground: Ground, count: int, forks: int) -> None:
        self._ground = ground
        self._count = count
        self._forks = forks

    def side(self, name: str, label: str, tasks: Sequence[Mapping[str, Any]]) -> Side:
        """A side that enrols with *tasks*."""

        def measured() -> Sample:
            agents = self._ground.agents(self._count)
            self._ground.documented.reset_counters()
            sample = self._ground.controller.run(self._play(agents, tasks))
            if tasks is not NOTHING:
                _check(self._ground, agents)
            return sample

        return Side(name, label, measured)

    def bare(self) -> Side:
        """The same requests from one loop."""

        def measured() -> Sample:
            agents = self._ground.agents(self._count)
            places = {name: str(agents.folder / host) for host, name in agents.names.items()}
            sample = limits.bare(self._ground, "enrol", {**self._ground.variables, "places": places}, self._count)
            _check(self._ground, agents)
            return sample

        return Side("bare", "bare asyncio, 16 connections", measured)

    def _play(self, agents: Agents, tasks: Sequence[Mapping[str, Any]]) -> Play:
        variables = {**self._ground.variables, "ca_on_host": self._ground.variables["ca_file"]}
        return Play(tasks, agents.hosts(), variables, forks=self._forks)


def _check(ground: Ground, agents: Agents) -> None:
    """Raise BenchError unless every agent is registered and has its file."""
    registered = {record["name"] for record in ground.documented.agents("stacker")}
    if not set(agents.names.values()) <= registered:
        raise BenchError("not every agent was registered")
    for host in agents.names:
        if "AGENT_TOKEN=" not in (agents.folder / host / ".env").read_text():
            raise BenchError(f"{host} has no token")
    ground.documented.reset()


def enrol_local(ground: Ground, options: Options) -> Experiment:
    """The main line: all ways to enrol a fleet of local hosts."""
    local = _Local(ground, options.hosts, options.forks)
    work = f"enrol + Vault + .env, {options.hosts} hosts, local, forks {options.forks}"
    return Experiment(
        "enrol", work,
        (
            local.side("ours", "agent_register", ENROL),
            local.side("module", "agent_register, module way", enrol("module")),
            local.side("guide", "guide's playbook (uri, uri, template)", GUIDE),
            local.side("nothing", "a no-op task (debug)", NOTHING),
            local.bare(),
        ),
        (
            Line(f"{work}: wall", "guide's playbook", ratio("guide", "ours", wall), 12),
            Line(f"{work}: task time", "guide's playbook", ratio("guide", "ours", task), 20),
            Line(f"{work}: CPU", "guide's playbook", ratio("guide", "ours", cpu)),
            Line(f"{work}: task time", "a no-op task", ratio("ours", "nothing", task), 4, least=False),
            Line(f"{work}: task time", "bare asyncio", ratio("ours", "bare", task)),
            Line("the same, module way: wall", "guide's playbook", ratio("guide", "module", wall), 3.5),
        ))


def scale(ground: Ground, options: Options) -> list[Experiment]:
    """The same for other sizes and forks, once each; no targets."""
    found = []
    for hosts, forks in options.scale:
        local = _Local(ground, hosts, forks)
        work = f"enrol, {hosts} hosts, forks {forks}"
        found.append(Experiment(
            f"scale-{hosts}-{forks}", work,
            (local.side("ours", "agent_register", ENROL), local.side("guide", "guide's playbook", GUIDE), local.side("nothing", "a no-op task", NOTHING)),
            (
                Line(f"{work}: wall", "guide's playbook", ratio("guide", "ours", wall)),
                Line(f"{work}: task time", "a no-op task", ratio("ours", "nothing", task)),
            ), runs=1))
    return found


def growth(ground: Ground, options: Options) -> Experiment:
    """Whether a host costs the same among many as among few."""
    few, many = options.growth
    sides = [_Local(ground, count, options.forks).side(name, f"agent_register, {count} hosts", ENROL) for name, count in (("few", few), ("many", many))]

    def grown(samples: Mapping[str, Sequence[Sample]]) -> float:
        more = ratio("many", "few", per_item(task))
        return more(samples)

    return Experiment(
        "growth", f"growth, {many} against {few} hosts, forks {options.forks}", sides,
        (Line(f"growth: ms per host at {many}", f"ms per host at {few}", grown, 1.5, least=False),), runs=min(options.runs, 2))


def nothing_to_do(ground: Ground, options: Options) -> Experiment:
    """A second run over a fleet that is enrolled already; against the shipped contract, where the guide's playbook can be run twice."""
    variables = {**ground.shipped_variables, "ca_on_host": ground.variables["ca_file"]}
    mutations: list[int] = []

    def again(tasks: Sequence[Mapping[str, Any]], *, ours: bool) -> Sample:
        agents = ground.agents(options.hosts)
        play = Play(tasks, agents.hosts(), variables, forks=options.forks)
        ground.controller.run(play)
        ground.shipped.reset_counters()
        ground.bao.reset_mutations()
        sample = ground.controller.run(play)
        if ours:
            mutations.append(int(ground.shipped.counters()["stacker"]["mutating"]) + ground.bao.mutations())
        ground.shipped.reset()
        return sample

    work = f"nothing to do, {options.hosts} hosts, local, forks {options.forks}"
    return Experiment(
        "again", work,
        (
            Side("ours", "agent_register", lambda: again(ENROL, ours=True)),
            Side("guide", "guide's playbook (uri, uri, template)", lambda: again(GUIDE, ours=False)),
        ),
        (
            Line(f"{work}: wall", "guide's playbook", ratio("guide", "ours", wall), 12),
            Line(f"{work}: task time", "guide's playbook", ratio("guide", "ours", task)),
            Line(f"{work}: mutating requests", "none", lambda samples: float(sum(mutations)), 0, least=False, unit=""),
        ))
