# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plots of a results document, each as SVG and PNG: all ratios beside their targets, and seconds against the number of hosts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = ["draw"]

_OURS, _THEIRS, _FLOOR = "#1f6f8b", "#c96f3b", "#8a8a8a"


def draw(document: Mapping[str, Any], folder: Path) -> None:
    """Write ``ratios`` and ``hosts`` as SVG and PNG into *folder*; a plot without data is left out."""
    # The same figures give the same file.
    rcParams["svg.hashsalt"] = "muster.agents"
    for name, figure in (("ratios", _ratios(document)), ("hosts", _hosts(document))):
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})


def _ratios(document: Mapping[str, Any]) -> Figure | None:
    """How many times faster than what people use, with the target as a mark; one bar for each line that has a floor."""
    lines = [line for experiment in document["experiments"] for line in experiment["lines"]
             if line["target"] and line["wanted"] == "at least" and line["unit"] == "x"]
    if not lines:
        return None
    figure = Figure(figsize=(11, 1.2 + 0.42 * len(lines)), layout="constrained")
    axes = figure.subplots()
    places = range(len(lines))
    axes.barh(places, [line["value"] for line in lines], color=_OURS, height=0.62)
    axes.scatter([line["target"] for line in lines], places, marker="|", s=260, linewidths=2.5, color=_THEIRS, zorder=3, label="target")
    for place, line in zip(places, lines):
        axes.annotate(f" {line['value']:.1f} x", (line["value"], place), va="center", fontsize=8)
    axes.set_yticks(places, [f"{line['work']}\nagainst {line['against']}" for line in lines], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=min(1.0, *(line["value"] for line in lines)))
    _plain(axes.xaxis)
    axes.set_xlabel("times as fast (medians of one interleaved run)")
    figure.legend(loc="outside upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _hosts(document: Mapping[str, Any]) -> Figure | None:
    """Seconds of an enrolment against the number of hosts, on logarithmic scales: a straight line of slope one is a flat cost per host."""
    points: dict[str, dict[int, float]] = {}
    labels: dict[str, str] = {"ours": "agent_register", "guide": "guide's playbook", "nothing": "a no-op task", "bare": "bare asyncio"}
    for experiment in document["experiments"]:
        if experiment["name"] not in ("enrol", "growth") and not experiment["name"].startswith("scale-"):
            continue
        for name, side in experiment["sides"].items():
            key = "ours" if name in ("few", "many") else name
            if key in labels and not experiment["name"].endswith("-5"):
                points.setdefault(key, {})[side["items"]] = side["median"]["task"]
    if not any(len(line) > 1 for line in points.values()):
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for key, color, mark in (("guide", _THEIRS, "s"), ("ours", _OURS, "o"), ("nothing", _FLOOR, "^"), ("bare", "#444444", "x")):
        line = sorted(points.get(key, {}).items())
        if line:
            axes.plot([hosts for hosts, _s in line], [seconds for _h, seconds in line], marker=mark, color=color, label=labels[key])
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.yaxis)
    counts = sorted({hosts for line in points.values() for hosts in line})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("hosts (connection local, forks 20)")
    axes.set_ylabel("seconds in tasks")
    axes.grid(True, which="major", color="#dddddd")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plain(axis: Axis) -> None:
    """Write 1, 2, 5, 10 on a logarithmic axis instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda _value, _place: ""))
