# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills at random moments: ansible-playbook enrols and rotates ten hosts, is killed, and is run once more.

Every other kill meets the whole run, as when a machine dies; the others meet the process ansible-playbook alone, whose workers outlive it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from integration.agents import CONTRACTS, REGISTER, Agent, World
from integration.controller import Controller, Play, Running, for_each

from world.processes import wait_until

from .matrix import HEALTH, ROTATE

HOSTS = 10
_PATIENCE = 240
_GATE = {"seen": False, "attempts": 1, "delay": 0.2}

__all__ = ["HOSTS", "Killed", "rounds"]


@dataclass(frozen=True)
class Killed:
    """One kill: of what, when in seconds since the first worker started, how many hosts had a result by then, and what was wrong after the next run."""

    run: str
    whole: bool
    after: float
    done: int
    problem: str


def rounds(world: World, directory: Path, count: int, seed: int, *, hosts: int = HOSTS, span: float = 0.0) -> Iterator[Killed]:
    """Kill *count* deploys and *count* rotations of so many *hosts*; each is followed by the same command once more.

    The moments come from *seed*, and lie in the first *span* seconds; 0 lets a run that nobody disturbs say how long one takes.
    """
    chance = random.Random(seed)
    node = Controller(directory / "node")
    spans = {"deploy": span, "rotate": span}
    for number in range(0 if span else -1, count):
        agents = {f"host{place}": Agent(world, CONTRACTS[place % 2], directory / str(number) / f"host{place}") for place in range(hosts)}
        for run, start in (("deploy", _deploy), ("rotate", _rotate)):
            if number < 0:  # nobody is killed: how long does it take?
                spans[run] = _measured(start(node, agents, True))
                continue
            whole = (number + (run == "rotate")) % 2 == 0
            running = start(node, agents, True)
            wait_until(lambda running=running: len(running.members()) > 1, _PATIENCE, 0.02)
            after = chance.uniform(0, spans[run])
            time.sleep(after)
            done = _kill(running, whole)
            plain = start(node, agents, False).end()
            wait_until(lambda running=running: not running.members(), _PATIENCE, 0.1)
            yield Killed(run, whole, after, done, _problem(world, node, agents, plain))


Start = Callable[[Controller, dict[str, Agent], bool], Running]


def _deploy(node: Controller, agents: dict[str, Agent], _first: bool) -> Running:
    """Enrol all, and let all pass the gate."""
    enrol, hosts = for_each(REGISTER, {host: agent.options(lease=5) for host, agent in agents.items()})
    gate = {HEALTH: {**{name: f"{{{{ given.{name} }}}}" for name in ("control_plane", "url", "ca_cert", "name", "store")}, **_GATE}}
    return node.start([{**enrol, "ignore_errors": False}, gate], hosts, forks=HOSTS)


def _rotate(node: Controller, agents: dict[str, Agent], first: bool) -> Running:
    """Rotate all; the run after rotates only what is due or under way."""
    more = {"when": ["always"]} if first else {}
    task, hosts = for_each(ROTATE, {host: agent.options(lease=5, settle_timeout=3, **_GATE, **more) for host, agent in agents.items()})
    return node.start([task], hosts, forks=HOSTS)


def _measured(running: Running) -> float:
    """Return the seconds from the first worker to the end of a run that nobody disturbs."""
    wait_until(lambda: len(running.members()) > 1, _PATIENCE, 0.02)
    began = time.monotonic()
    running.end().good()
    return time.monotonic() - began


def _kill(running: Running, whole: bool) -> int:
    """Kill the run, or ansible-playbook alone. Returns how many results there were."""
    if whole:
        play = running.kill()
    else:
        if running.pid in running.members():
            os.kill(running.pid, signal.SIGKILL)
        play = running.end()
    return sum(len(results) for results in play.results.values())


def _problem(world: World, node: Controller, agents: dict[str, Agent], plain: Play) -> str:
    """Say what is not as it should be after the plain run, nothing when all is well."""
    for host, agent in agents.items():
        if plain.result(host)["failed"]:
            return f"the run after failed on {host}: {plain.result(host).get('msg')}"
        try:
            agent.check_healthy()
        except (AssertionError, OSError, ValueError, KeyError) as error:
            return f"{host} is not healthy: {type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"
    if node.spool:
        return "a credential waits in the controller's spool"
    return ""
