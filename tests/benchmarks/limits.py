# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the bare loops in a process of their own, so that their CPU time is theirs alone."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .controller import BenchError, neutral
from .ground import Ground
from .measure import Sample, run

__all__ = ["bare"]


def bare(ground: Ground, kind: str, given: Mapping[str, Any], items: int) -> Sample:
    """Run ``benchmarks.bare`` of this *kind*. The sample's task is the loop alone. Raises BenchError when it fails."""
    with tempfile.TemporaryDirectory(dir=ground.directory) as folder:
        order, output = Path(folder, "order.json"), Path(folder, "output.txt")
        order.write_text(json.dumps(dict(given)))
        order.chmod(0o600)
        environment = {**neutral(os.environ), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        with output.open("wb") as sink:
            cost = run([sys.executable, "-m", "benchmarks.bare", kind, str(order)], sink, environment=environment, folder=Path(folder))
        text = output.read_text(errors="replace").strip()
        if cost.code:
            raise BenchError(f"the bare loop failed: {text[-2000:]}")
        return Sample(cost.wall, cost.cpu, items, {"loop": float(text.splitlines()[-1])})
