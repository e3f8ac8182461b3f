# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enrolling more hosts than the control plane's limit lets through at once: how much of the limit is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Samples, Side
from ..ground import PASSWORD, USER, Ground
from ..measure import Sample

__all__ = ["pacing"]

PER_SECOND = 1.0  # what the shipped oxmon lets through once its bucket is empty
_STARTING = 30.0  # seconds for which the bucket stays empty, so that nothing gathers in it while ansible-playbook starts

_TASKS: list[dict[str, Any]] = [{
    "name": "Enrol", "muster.agents.agent_register": {
        "control_plane": "oxmon", "url": "{{ oxmon_url }}", "grpc_endpoint": "{{ grpc_endpoint }}", "ca_cert": "{{ ca_file }}", "username": USER,
        "password": "{{ password }}", "name": "{{ deployment_hash }}", "system_info": {}, "capabilities": [], "store": "{{ place }}/store",
    },
}]


def pacing(ground: Ground, options: Options) -> Experiment:
    """The bucket is empty at the start, so that every request that gets through has waited for its turn."""
    used: list[float] = []

    def enrolled() -> Sample:
        server = ground.oxmon
        variables = {
            "oxmon_url": server.url, "grpc_endpoint": server.addresses["oxmon_grpc"], "ca_file": str(ground.ca.ca_file), "password": PASSWORD,
        }
        first = ground.agents(1)  # whose login, which has a limit of its own, serves the others too
        ground.controller.run(Play(_TASKS, first.hosts(), variables))
        server.reset()
        agents = ground.agents(options.hosts)
        earlier = len(server.log)
        server.act("oxmon", "drain", seconds=_STARTING)
        sample = ground.controller.run(Play(_TASKS, agents.hosts(), variables, forks=options.forks))
        if {record["name"] for record in server.agents()} != set(agents.names.values()):
            raise BenchError("not every agent was registered")
        used.append(_rate(server.log[earlier:]) / PER_SECOND)
        server.reset()
        return sample

    def share(_samples: Samples) -> float:
        return sum(used) / len(used)

    work = f"pacing, {options.hosts} hosts at a control plane that takes one request a second"
    return Experiment(
        "pacing", work, (Side("ours", "agent_register", enrolled),),
        (Line(f"{work}: share of that limit", "the whole of it", share, 0.9, unit=""),), runs=1)


def _rate(log: Sequence[Mapping[str, Any]]) -> float:
    """Return how many enrolments a second the server let through, from the first to the last."""
    passed = [datetime.fromisoformat(line["time"].replace("Z", "+00:00")) for line in log if line["method"] == "POST" and line["status"] == "201"]
    return (len(passed) - 1) / (max(passed) - min(passed)).total_seconds()
