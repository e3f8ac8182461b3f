# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peak memory of ansible-playbook with all its forks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..controller import Play
from ..experiment import Experiment, Line, Options, Side, memory, ratio
from ..ground import Ground
from ..measure import Sample
from ..tasks import ENROL, GUIDE

__all__ = ["memory_use"]

_HOSTS = 200


def memory_use(ground: Ground, options: Options) -> Experiment:
    """One run of each: the figure hardly varies, and the timing of a watched run means nothing."""
    hosts = min(_HOSTS, 4 * options.hosts)

    def enrolled(tasks: Sequence[Mapping[str, Any]]) -> Sample:
        with ground.agents(hosts) as agents:
            variables = {**ground.variables, "ca_on_host": ground.variables["ca_file"]}
            sample = ground.controller.run(Play(tasks, agents.hosts(), variables, forks=options.forks), watch_memory=True)
            ground.documented.reset()
            return sample

    work = f"memory, {hosts} hosts, forks {options.forks}"
    return Experiment(
        "memory", work,
        (
            Side("ours", f"agent_register, {hosts} hosts", lambda: enrolled(ENROL)),
            Side("guide", f"guide's playbook, {hosts} hosts", lambda: enrolled(GUIDE)),
        ),
        (Line(f"{work}: agent_register", "guide's playbook", ratio("ours", "guide", memory)),),
        runs=1)
