# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs gates and prints one table: gate, version, result, seconds."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from world.errors import WorldError
from world.machine import TOP
from world.venvs import VENVS, find_python, make

from .place import Place
from .registry import GATES, Gate, Step

_TAIL_LINES = 60
_CAUSE = re.compile(r"^(?:fatal|failed): |^(?:FAILED|ERROR|CRITICAL)\b")
_CAUSE_LINES, _CAUSE_LENGTH = 10, 1500
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    gate: Gate
    version: str
    result: str
    seconds: float


def _version(gate: Gate) -> str:
    """Return the installed version of the gate's package, from its metadata."""
    name = gate.package.replace("-", "_").lower()
    for folder in VENVS[gate.venv].directory.glob("lib/python3*/site-packages/*.dist-info"):
        package, _dash, version = folder.name.removesuffix(".dist-info").partition("-")
        if package.replace("-", "_").lower() == name:
            return version
    return "-"


def _run_step(step: Step, gate: Gate, log: TextIO) -> bool:
    """Run one command with its output in the log. Returns whether it succeeded in time."""
    programs = VENVS[gate.venv].bin
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(TOP / "tests"),
        **step.environment,
    }
    environment.pop("VIRTUAL_ENV", None)
    log.write(f"$ {' '.join(step.command)}\n")
    log.flush()
    process = subprocess.Popen(
        step.command,
        cwd=step.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _running.add(process)
    try:
        return process.wait(timeout=60 * gate.minutes) == 0
    except subprocess.TimeoutExpired:
        log.write(f"\nEnded: it took more than {gate.minutes} minutes.\n")
        return False
    finally:
        _running.discard(process)
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run(gate: Gate, place: Place) -> Outcome:
    print(f"{gate.title} ...", flush=True)
    started = time.monotonic()
    log_file = place.logs / f"{gate.title}.log"
    if find_python(VENVS[gate.venv].minors) is None:
        oldest = min(VENVS[gate.venv].minors)
        return Outcome(gate, "-", f"skipped: no Python 3.{oldest}+", 0.0)
    with log_file.open("w") as log:
        try:
            programs = make(gate.venv).parent
            passed = all(_run_step(step, gate, log) for step in gate.steps(place, programs))
        except (OSError, WorldError) as problem:
            log.write(f"{problem}\n")
            passed = False
    if not passed:
        print(_told(gate, log_file), flush=True)
    return Outcome(gate, _version(gate), "passed" if passed else "failed", time.monotonic() - started)


def _told(gate: Gate, log_file: Path) -> str:
    """Return what is shown of a failed gate's log: its end, after the first lines above it that name a cause (a program may tidy up at length)."""
    lines = log_file.read_text(errors="replace").splitlines()
    causes = [line[:_CAUSE_LENGTH] for line in lines[:-_TAIL_LINES] if _CAUSE.search(line)][:_CAUSE_LINES]
    above = [f"\n--- {gate.title} failed; lines of its log that tell why:", *causes] if causes else []
    end = f"\n--- {gate.title} failed; the end of {log_file.relative_to(TOP)}:"
    return "\n".join([*above, end, *lines[-_TAIL_LINES:], f"--- end of {gate.title}\n"])


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [("gate", "version", "result", "seconds")]
    for outcome in outcomes:
        result = outcome.result if not outcome.gate.note or outcome.result != "passed" else f"passed ({outcome.gate.note})"
        lines.append((outcome.gate.name, outcome.version, result, f"{outcome.seconds:.0f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rule = tuple("-" * width for width in widths)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (lines[0], rule, *lines[1:]))


def _chosen(names: Sequence[str]) -> list[Gate]:
    """Return the gates named (``unit`` means all of its versions, ``unit-2.19`` one of them); the build comes first."""
    known = {gate.name for gate in GATES} | {gate.title for gate in GATES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"gates: unknown: {', '.join(unknown)}. There are: {', '.join(gate.title for gate in GATES)}")
    return [gate for gate in GATES if not names or gate.name == "build" or gate.name in names or gate.title in names]


def main() -> int:
    """Command line. Returns 0 when every gate passed; a skipped gate counts as failed where CI is set."""
    parser = argparse.ArgumentParser(prog="gates", description="Run the gates and print one table.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="gates to run; the build always runs")
    parser.add_argument("--list", action="store_true", help="print the names of all gates")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(gate.title for gate in GATES))
        return 0
    gates = _chosen(arguments.only)
    place = Place()
    place.logs.mkdir(parents=True, exist_ok=True)
    with (place.build / ".gates.lock").open("w") as lock:
        _acquire(lock)
        outcomes = _run_all(gates, place)
    print(f"\n{_table(outcomes)}\n")
    passed = sum(outcome.result == "passed" for outcome in outcomes)
    failed = sum(outcome.result == "failed" for outcome in outcomes)
    skipped = len(outcomes) - passed - failed
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or (skipped and os.environ.get("CI")) else 0


def _acquire(lock: TextIO) -> None:
    """Wait for another run in the same checkout: both would install into the same folder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another run of the gates is going on in this checkout; waiting for it ...", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _run_all(gates: Sequence[Gate], place: Place) -> list[Outcome]:
    """Run gates in order, and those that keep one core busy one after another beside the rest. Without a built tarball nothing else makes sense."""
    first = [gate for gate in gates if gate.name == "build"]
    built = [_run(gate, place) for gate in first]
    if any(outcome.result != "passed" for outcome in built):
        return built
    later = [gate for gate in gates if gate not in first]
    with ThreadPoolExecutor(max_workers=1) as beside:
        waiting = {gate.title: beside.submit(_run, gate, place) for gate in later if gate.one_core}
        try:
            inline = {gate.title: _run(gate, place) for gate in later if not gate.one_core}
            return [*built, *(inline[gate.title] if gate.title in inline else waiting[gate.title].result() for gate in later)]
        except BaseException:
            beside.shutdown(wait=False, cancel_futures=True)
            for process in tuple(_running):
                _end(process)
            raise


if __name__ == "__main__":
    sys.exit(main())
