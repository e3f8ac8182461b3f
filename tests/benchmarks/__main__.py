# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m benchmarks``: run the experiments, print the table, write JSON and plots."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from world.machine import TOP

from .controller import BenchError
from .experiment import Options, Report, conduct
from .experiments import EXPERIMENTS
from .ground import Ground
from .measure import two_processes_against_one
from .report import as_document, machine, table, write_document, write_page

__all__ = ["main"]

_TRUSTED = 1.8  # two processes must do this much of one's work, or wall times of parallel work mean little


def _pair(text: str) -> tuple[int, int]:
    """Read ``A,B``."""
    first, _comma, second = text.partition(",")
    return int(first), int(second)


def _parser() -> argparse.ArgumentParser:
    standard = Options()
    parser = argparse.ArgumentParser(prog="make bench", description="Measure the collection against what people use today, and against bare requests.")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS), metavar="NAME", help=f"of: {' '.join(EXPERIMENTS)}")
    parser.add_argument("--runs", type=int, help=f"how often each side runs (default: {standard.runs})")
    parser.add_argument("--hosts", type=int, help=f"local hosts (default: {standard.hosts})")
    parser.add_argument("--forks", type=int, help=f"default: {standard.forks}")
    parser.add_argument("--ssh-hosts", type=int, help=f"systemd hosts (default: {standard.ssh_hosts})")
    parser.add_argument("--certificate-hosts", type=int, help=f"hosts that get a certificate (default: {standard.certificate_hosts})")
    parser.add_argument("--fleet", type=int, help=f"agents or endpoints served by one task (default: {standard.fleet})")
    parser.add_argument("--peer-items", type=int, help=f"as many of them are served one by one, and reckoned up (default: {standard.peer_items})")
    parser.add_argument("--growth", type=_pair, metavar="FEW,MANY", help="hosts that are compared for growth (default: {},{})".format(*standard.growth))
    parser.add_argument("--scale", type=_pair, nargs="*", metavar="HOSTS,FORKS", help="further sizes of the enrolment")
    parser.add_argument("--into", type=Path, help="folder for results.json and plots (default: docs/benchmarks for a complete run at standard sizes, "
                                                  "else build/benchmarks)")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    names = {item.name for item in fields(Options)}
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    if "scale" in given:
        given["scale"] = tuple(given["scale"])
    return replace(Options(), **given)


def _all(names: Sequence[str], options: Options) -> list[Report]:
    """Run the experiments named. One that fails or cannot be had is told and does not stop the rest."""
    reports: list[Report] = []
    with Ground() as ground:
        for name in names:
            print(f"{name} ...", flush=True)
            try:
                with EXPERIMENTS[name](ground, options) as experiments:
                    reports.extend(conduct(experiment, options, lambda text: print(text, flush=True)) for experiment in experiments)
            except BenchError as problem:
                print(f"  {problem}", file=sys.stderr, flush=True)
                reports.append(Report(name, name, missing=str(problem).splitlines()[0]))
    return reports


def main() -> int:
    """Command line. Returns 1 when something could not be measured; missing a target is told, and is no failure."""
    arguments = _parser().parse_args()
    options = _options(arguments)
    # Ended from outside, it still takes its servers and hosts down.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    complete = options == Options() and list(arguments.only) == list(EXPERIMENTS)
    into = arguments.into or TOP / ("docs" if complete else "build") / "benchmarks"
    began = time.monotonic()
    facts = machine(two_processes_against_one())
    print(f"{facts['processor']}, {facts['cores']} cores; two processes do {facts['two_processes_against_one']} times the work of one", flush=True)
    if facts["two_processes_against_one"] < _TRUSTED:
        print("This machine is busy or its cores are shared: trust the CPU seconds, not the wall times.", flush=True)
    reports = _all(arguments.only, options)
    document = as_document(reports, options, facts, time.monotonic() - began)
    written = write_document(document, into)
    _draw(document, into)
    write_page(document, table(reports), into)
    print(f"\n{table(reports)}\n\n{document['seconds']} s in all; {written.relative_to(TOP) if written.is_relative_to(TOP) else written} holds every run")
    return 1 if any(report.missing for report in reports) else 0


def _draw(document: dict[str, object], into: Path) -> None:
    """Draw the plots, where matplotlib is installed: the figures do not depend on it."""
    try:
        from .plots import draw
    except ImportError:
        print("no plots: matplotlib is not installed")
        return
    draw(document, into)


if __name__ == "__main__":
    sys.exit(main())
