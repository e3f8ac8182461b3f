# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of the crash matrix, and how one is played: begin, end in some way at some point, run again, look.

A cell is a transaction (enrol, commit, rotate, or go back after a red gate), a point in it, a way to end there, and who runs next. What must hold
afterwards is always the same: one live record, one working credential that host, files and Vault agree on, nothing left lying about, and a second run
that sends no request that changes anything. A pair that is made on its host is rotated and brought back too, which leaves a record for each certificate
where the control plane has no call that removes one: there the next rotation has to name all but that of the pair in use.

Each host has a fault point of its own (see connections/switchable.py), so that one run of ansible-playbook plays many cells: all that end alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.agents import CONTRACTS, REGISTER, World
from integration.atlas import Atlas
from integration.controller import Controller, Play, Running, for_each

from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from world.processes import wait_until

from .grounds import HEALTH, ROTATE, Ground, Pairs, Subject, Tokens

CONNECTIONS = Path(__file__).parent / "connections"
DEAD = "http://127.0.0.1:9/health"
MODULES = {"enrol": REGISTER, "commit": HEALTH, "rotate": ROTATE, "back": ROTATE, "pair": ROTATE, "pair-back": ROTATE}

# The points that each transaction passes for an agent whose token is our own and lies in Vault, and for one that proves itself with a pair.
POINTS = {
    "enrol": ("after_probe", "after_look", "before_issue", "after_issue", "after_spool", "after_settle", "after_vault", "after_mint", "before_delivery",
              "after_delivery"),
    "commit": ("before_commit", "after_commit"),
    "rotate": ("after_probe", "after_look", "after_plan", "after_lease", "after_stage", "after_vault", "after_settle", "before_delivery", "after_delivery",
               "after_nudge", "before_commit", "after_commit", "after_gate"),
    "back": ("before_rollback", "after_vault_back", "after_rollback"),
    "pair": ("after_probe", "after_look", "after_plan", "after_lease", "after_key", "after_sign", "after_stage", "before_issue", "after_issue", "after_settle",
             "after_install", "before_delivery", "after_delivery", "after_nudge", "before_commit", "after_commit", "after_gate", "before_retire",
             "after_retire"),
    "pair-back": ("before_rollback", "after_vault_back", "after_rollback"),
}
# Which failure point of the two tables (first enrolment F0 to F16, rotation R0 to R12) each of them is.
ROWS = {
    "enrol": ("F0", "F1", "F1", "F5", "F6", "F6", "F7", "F7", "F9", "F10"),
    "commit": ("F11", "F12"),
    "rotate": ("R0", "R0", "R0", "R1", "R3", "R4", "R4", "R4", "R5", "R5", "R8", "R8", "R8"),
    "back": ("R6", "R7", "R7"),
    "pair": ("R0", "R0", "R0", "R1", "R1", "R1", "R3", "R2", "R2", "R3", "R4", "R4", "R5", "R5", "R8", "R8", "R8", "R9", "R9"),
    "pair-back": ("R6", "R7", "R7"),
}
# What is no cell: not a step of ours at which a run can end, but something that a server, another run or the operator does.
ELSEWHERE = {
    "F2, F3, F4": "answers lost, failed or cut short after the server committed: tests/integration/test_agent_register_crashes.py",
    "F8": "the server's own late write to Vault: tests/integration/test_agent_register_crashes.py",
    "F13": "two runs on one identity: tests/integration/test_agent_register_crashes.py, tests/unit/plugins/test_rotation.py",
    "F14": "a host that was rebuilt: the column host-rebuilt; who may take it over: tests/integration/test_agent_register_adoption.py",
    "F14, a pair": "a pair that is lost with its host is replaced by a deploy with another: tests/integration/test_kubeatlas.py",
    "F15": "a record that the control plane lost: tests/integration/test_agent_register_adoption.py",
    "F16": "a bad bootstrap credential: tests/integration/test_bootstrap.py",
    "R2, R9": "credentials that the control plane issues and takes back: tests/unit/plugins/test_rotation.py, which ends a run at every effect",
    "R10": "a token that somebody else wrote to Vault meanwhile: tests/unit/plugins/test_rotation.py",
    "R11": "clocks that jump between two runs: tests/integration/test_token_rotate_clock.py; which credential is good is decided by use, never by a date",
    "R12": "a spent failure budget: tests/integration/test_token_rotate.py, test_token_rotate_fleet.py",
}
DISTURBANCES = ("disk-full", "read-only", "unreachable")
ENDS = ("kill", "exception", *DISTURBANCES)
# Who runs next: the same command, on the same or on another control node; a deploy from another one, where a pair could be in its way; or a deploy that
# finds nothing of what was on the host. Where the credential lies in Vault, another node deploys in any case.
NEXT = ("same-controller", "new-controller", "host-rebuilt", "deploy")
_SIZE = "6m"
_WAYS = ("fast", "auto", "module", "fast", "auto", "module", "auto")  # of a length that no other turn in the matrix has

__all__ = ["CONNECTIONS", "ELSEWHERE", "ENDS", "HEALTH", "MODULES", "NEXT", "POINTS", "ROTATE", "Cell", "Played", "cells", "play", "sample"]


@dataclass(frozen=True)
class Cell:
    """One line of the matrix. contract and way say which server and which way to the host it is played with; mistake that an exception is not ours."""

    transaction: str
    point: str
    end: str
    next: str
    contract: str
    way: str
    mistake: bool = False

    @property
    def name(self) -> str:
        """How it is called, in the output and as a host."""
        return "-".join((self.transaction, self.point, self.end, self.next, self.contract, self.way)).replace("_", "-")

    @property
    def row(self) -> str:
        """The failure point that this is."""
        return ROWS[self.transaction][POINTS[self.transaction].index(self.point)]

    @property
    def of_pair(self) -> bool:
        """Whether the agent proves itself with a pair of its host."""
        return self.transaction.startswith("pair")

    @property
    def module(self) -> str:
        """What runs next."""
        return MODULES[self.transaction] if self.next == "same-controller" or (self.of_pair and self.next == "new-controller") else REGISTER

    @property
    def fault(self) -> str:
        """The test switch for its host."""
        if self.end != "exception":
            return f"{self.point}=stop"
        return f"{self.point}={'break' if self.mistake else 'raise'}"


@dataclass(frozen=True)
class Played:
    """What became of a cell: an empty problem is a pass."""

    cell: Cell
    problem: str


def cells(
    points: Mapping[str, Sequence[str]] | None = None, ends: Sequence[str] = ENDS, following: Sequence[str] = NEXT, *, both: bool = False,
) -> list[Cell]:
    """Return the matrix. Contracts, ways and kinds of exception take turns from cell to cell; *both* plays each cell with either contract."""
    chosen = []
    number = 0
    for transaction, names in (points or POINTS).items():
        for point in names:
            for end in ends:
                for after in _followers(transaction, following):
                    way = _WAYS[number % len(_WAYS)]
                    for contract in CONTRACTS if both else (CONTRACTS[number % 2],):
                        chosen.append(Cell(transaction, point, end, after, contract, way, mistake=number % 4 > 1))
                    number += 1
    return chosen


def _followers(transaction: str, following: Sequence[str] = NEXT) -> list[str]:
    """Return those of *following* that make sense after *transaction*."""
    return [after for after in following if after != ("host-rebuilt" if transaction.startswith("pair") else "deploy")]


def sample(*transactions: str) -> list[Cell]:
    """Return each point of *transactions* once; ends (killed or failed), contracts, ways and who runs next take turns."""
    chosen = []
    for transaction in transactions:
        for number, point in enumerate(POINTS[transaction]):
            end, way = ENDS[number % 2], _WAYS[number % len(_WAYS)]
            chosen.append(Cell(transaction, point, end, _followers(transaction)[number % 3], CONTRACTS[number // 2 % 2], way, mistake=number % 4 == 3))
    return chosen


def play(world: World | Atlas, directory: Path, chosen: Sequence[Cell], *, parallel: int = 2) -> Iterator[Played]:
    """Play *chosen*, all with tokens or all with pairs, in *directory*, and yield what became of each, in order."""
    stage = _Stage(Pairs(world) if isinstance(world, Atlas) else Tokens(world), directory)
    try:
        yield from stage.play(chosen, parallel)
    finally:
        stage.clear()


class _Stage:
    """Hosts and control nodes of a passage through the matrix."""

    def __init__(self, ground: Ground, directory: Path) -> None:
        self.ground = ground
        self.directory = directory
        self.away, self.ends = directory / "away", directory / "ends"
        for folder in (self.away, self.ends):
            folder.mkdir(parents=True)
        self.first = Controller(directory / "first-node")
        self.other = Controller(directory / "other-node")
        self.agents: dict[Cell, Subject] = {}
        self.mounted: list[Path] = []
        self.starting = threading.Lock()

    def play(self, chosen: Sequence[Cell], parallel: int) -> Iterator[Played]:
        """See the function of the same name."""
        for cell in chosen:
            self.agents[cell] = self.ground.put(cell.contract, cell.way, self._host(cell), policy=cell.transaction == "enrol")
            (self.ends / cell.name).write_text(cell.fault)
        enrolled = [cell for cell in chosen if cell.transaction != "enrol"]
        problems: dict[Cell, str] = {}
        if enrolled:
            begun = self._run(self.first, REGISTER, enrolled)
            problems.update({cell: f"could not be enrolled first: {begun.result(cell.name)}" for cell in enrolled if begun.result(cell.name)["failed"]})
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in chosen:
            kind = "disturb" if cell.end in DISTURBANCES else cell.end
            groups.setdefault((cell.transaction, kind), []).append(cell)
        problems.update(self._all([lambda key=key, group=group: self._end(*key, group) for key, group in groups.items()], parallel))
        self._rebuild([cell for cell in chosen if cell.next == "host-rebuilt"])
        problems.update(self._recover(chosen, parallel))
        problems.update(self._judge(chosen, problems))
        for cell in chosen:
            yield Played(cell, problems.get(cell, ""))

    @staticmethod
    def _all(work: Sequence[Callable[[], dict[Cell, str]]], parallel: int) -> dict[Cell, str]:
        """Do *work*, so much of it at once, and return all that was found."""
        found: dict[Cell, str] = {}
        with ThreadPoolExecutor(parallel) as pool:
            for part in pool.map(lambda item: item(), work):
                found.update(part)
        return found

    def clear(self) -> None:
        """Take the hosts' file systems away."""
        for place in self.mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False)

    def _host(self, cell: Cell) -> Path:
        """Return the directory of a cell's host, a small file system of its own where it is to run full or become read-only."""
        place = self.directory / "hosts" / str(len(self.agents))
        place.mkdir(parents=True)
        if cell.end in ("disk-full", "read-only"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0755", "muster-test", str(place)], check=True)
            self.mounted.append(place)
        return place

    def _start(self, node: Controller, module: str, chosen: Iterable[Cell], *, ending: bool = False, **changes: Any) -> Running:
        orders = {cell.name: {**self.ground.options(module, self.agents[cell]), **changes} for cell in chosen}
        task, hosts = for_each(module, orders)
        environment = {"ANSIBLE_CONNECTION_PLUGINS": str(CONNECTIONS), "MUSTER_TEST_AWAY": str(self.away), "ANSIBLE_PIPELINING": "1"}
        if ending:
            environment["MUSTER_TEST_ENDS"] = str(self.ends)
        hosts = {host: {**variables, "ansible_connection": "switchable"} for host, variables in hosts.items()}
        with self.starting:
            return node.start([task], hosts, environment=environment, forks=len(hosts) if ending else 6)

    def _run(self, node: Controller, module: str, chosen: Iterable[Cell], **changes: Any) -> Play:
        return self._start(node, module, chosen, **changes).end()

    # -- the end of the first run

    def _end(self, transaction: str, kind: str, group: Sequence[Cell]) -> dict[Cell, str]:
        """Run a transaction on all hosts of *group*, and end it at each one's point. Returns what did not go as it should."""
        changes: dict[str, Any] = {"when": ["always"]} if MODULES[transaction] == ROTATE else {}
        if transaction.endswith("back"):
            changes["health_url"] = DEAD
        running = self._start(self.first, MODULES[transaction], group, ending=True, **changes)
        if kind == "exception":
            play = running.end()
            results = {cell: play.result(cell.name) for cell in group}
            return {cell: f"was to be ended at {cell.point} and was not: {result}" for cell, result in results.items()
                    if not result["failed"] or f"ended the run at {cell.point}" not in str(result)}
        running.wait_halted(len(group))
        if kind == "kill":
            running.kill()
            return {}
        for cell in group:
            self._disturb(cell)
        while running.halted():
            for process in running.halted():
                os.kill(process, signal.SIGCONT)
            time.sleep(0.1)
        running.end()
        for cell in group:
            self._undisturb(cell)
        return {}

    def _disturb(self, cell: Cell) -> None:
        place = self.agents[cell].directory
        if cell.end == "unreachable":
            (self.away / cell.name).touch()
        elif cell.end == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        else:
            _fill(place)

    def _undisturb(self, cell: Cell) -> None:
        place = self.agents[cell].directory
        if cell.end == "unreachable":
            (self.away / cell.name).unlink()
        elif cell.end == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        else:
            (place / "filler").unlink()

    def _rebuild(self, chosen: Iterable[Cell]) -> None:
        """Lose everything that a host had."""
        for cell in chosen:
            for path in self.agents[cell].directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- the run after it

    def _recover(self, chosen: Sequence[Cell], parallel: int) -> dict[Cell, str]:
        """Run again: the same command where that makes sense, a plain enrolment elsewhere."""
        runs: dict[tuple[str, str], list[Cell]] = {}
        for cell in chosen:
            runs.setdefault(("first" if cell.next == "same-controller" else "other", cell.module), []).append(cell)

        def again(node: Controller, module: str, mine: Sequence[Cell]) -> dict[Cell, str]:
            play = self._run(node, module, mine)
            return {cell: f"the run after failed: {play.result(cell.name).get('msg')}" for cell in mine if play.result(cell.name)["failed"]}

        nodes = {"first": self.first, "other": self.other}
        return self._all([lambda key=key, mine=mine: again(nodes[key[0]], key[1], mine) for key, mine in runs.items()], parallel)

    def _judge(self, chosen: Sequence[Cell], problems: Mapping[Cell, str]) -> dict[Cell, str]:
        """Look at every host, then run once more and see that nothing is sent and nothing changes."""
        found: dict[Cell, str] = {}
        # Rotation leaves it to the enrolment to bring Vault's own token for the agent up to date; nothing of that is due here.
        self._check([cell for cell in chosen if cell not in problems], found)
        whole = [cell for cell in chosen if cell not in problems and cell not in found]
        self._see_quiet(whole, found)
        pairs = [cell for cell in whole if cell.of_pair and cell not in found]
        if pairs:
            last = self._run(self.other, ROTATE, pairs, when=["always"])
            self._check(pairs, found)
            for cell in pairs:
                result = last.result(cell.name)
                if result["failed"]:
                    found[cell] = f"a further rotation failed: {result.get('msg')}"
                elif not self.ground.names(self.agents[cell], " ".join(result.get("warnings", []))):
                    found[cell] = f"a record that stays was not named: {result.get('warnings')}"
            self._see_quiet([cell for cell in pairs if cell not in found], found)
        return found

    def _check(self, chosen: Iterable[Cell], found: dict[Cell, str]) -> None:
        """Look at the hosts, and note in *found* what is not as it should be."""
        for cell in chosen:
            agent = self.agents[cell]
            try:
                self.ground.check(agent)
            except (AssertionError, OSError, ValueError, KeyError) as error:
                found[cell] = f"is not healthy: {type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"
            spool = Spool(str(self.first.home / "muster" / "spool"), self.ground.url(agent), agent.name)
            if cell.next == "same-controller" and spool.find() is not None:
                found[cell] = "has a credential left in the controller's spool"

    def _see_quiet(self, whole: Sequence[Cell], found: dict[Cell, str]) -> None:
        """Deploy once more, and note in *found* whatever is sent or changed."""
        if not whole:
            return
        self.ground.quiet()
        again = self._run(self.other, REGISTER, whole)
        sent, before = self.ground.mutations(), len(found)
        for cell in whole:
            result = again.result(cell.name)
            if result["failed"] or result["changed"]:
                found[cell] = f"the second run was not quiet: {result.get('action')} {result.get('reason')} {result.get('msg')}"
        if sent and len(found) == before:
            found[whole[0]] = f"the second runs sent changes: {sent[:3]}"


def _fill(place: Path) -> None:
    """Write until no space is left."""
    with (place / "filler").open("wb", buffering=0) as stream:
        block = b"x" * 65536
        while block:
            try:
                stream.write(block)
            except OSError:
                block = block[: len(block) // 2]
    wait_until(lambda: shutil.disk_usage(place).free < 8192, 5, 0.05)
