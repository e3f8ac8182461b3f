# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run costs: wall time, CPU seconds with all its children, and the memory of the whole process tree."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["Cost", "Sample", "median", "pss_of_tree", "run", "two_processes_against_one"]

_SPIN = "import time; e = time.perf_counter() + {seconds}; n = 0\nwhile time.perf_counter() < e: n += sum(range(200))\nprint(n)"
_LOOK_EVERY = 0.1  # seconds between two looks at the memory


@dataclass(frozen=True)
class Sample:
    """One run. Times are in seconds; *items* is how many hosts, agents or endpoints it served; *memory* in MiB, 0 when it was not watched.

    *tasks* holds the seconds of each task by its name, *task* their sum: what is left of *wall* is starting ansible-playbook and reading the inventory.
    """

    wall: float
    cpu: float
    items: int
    tasks: Mapping[str, float] = field(default_factory=dict)
    memory: float = 0.0

    @property
    def task(self) -> float:
        """Seconds spent in tasks; all of it where a run has none."""
        return sum(self.tasks.values()) if self.tasks else self.wall


class Cost(NamedTuple):
    """What a command cost. *code* is its exit status."""

    code: int
    wall: float
    cpu: float
    memory: float


def median(samples: Sequence[Sample], what: Callable[[Sample], float]) -> float:
    """Return the median of one figure."""
    return statistics.median(what(sample) for sample in samples)


def run(command: Sequence[str], output: IO[bytes], *, environment: Mapping[str, str], folder: Path, watch_memory: bool = False) -> Cost:
    """Run *command* to its end. CPU seconds are those of the process and of all descendants it waited for, from the kernel's own account.

    *watch_memory* looks at the tree ten times a second, which itself takes some CPU: do not time such a run.
    """
    began = time.monotonic()
    with subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment), cwd=folder, start_new_session=True,
    ) as process:
        watch = _MemoryWatch(process.pid) if watch_memory else None
        _pid, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        memory = watch.stop() if watch is not None else 0.0
    return Cost(process.returncode, wall, usage.ru_utime + usage.ru_stime, memory)


class _MemoryWatch:
    """Remembers the most memory that a process and its descendants held at once."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            self._most = max(self._most, pss_of_tree(self._pid))

    def stop(self) -> float:
        """Stop watching. Returns the peak in MiB."""
        self._over.set()
        self._thread.join()
        return self._most


def pss_of_tree(pid: int) -> float:
    """Return the proportional set size of a process and its descendants in MiB: pages that forks share count once."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            text = _read(entry / "stat").rpartition(")")[2].split()
            if len(text) > 1:
                parents.setdefault(int(text[1]), []).append(int(entry.name))
    waiting, total = [pid], 0
    while waiting:
        current = waiting.pop()
        waiting.extend(parents.get(current, ()))
        for line in _read(Path(f"/proc/{current}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def two_processes_against_one(seconds: float = 1.0) -> float:
    """Return how much more work two processes do than one in the same time: 2.0 on a quiet machine with two cores."""

    def work(processes: int) -> int:
        command = [sys.executable, "-c", _SPIN.format(seconds=seconds)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _number in range(processes)]
        return sum(json.loads(process.communicate()[0]) for process in running)

    return work(2) / max(1, work(1))
