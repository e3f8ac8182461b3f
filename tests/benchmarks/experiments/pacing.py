# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enrolling more hosts than the control plane's limit lets through at once: how much of the limit is used."""

from __future__ import annotations

from typing import Any

from reference_server.client import ReferenceServer

from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Samples, Side, task
from ..ground import PASSWORD, USER, Ground
from ..measure import Sample

__all__ = ["pacing"]

PER_SECOND = 1.0  # what the shipped oxmon lets through once its bucket is empty
_UNLIMITED = frozenset({"oxmon_login", "oxmon_public_key"})  # they have a limit of their own

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
        with ground.agents(options.hosts) as agents:
            server.act("oxmon", "drain", seconds=1)
            server.reset_counters()
            sample = ground.controller.run(Play(_TASKS, agents.hosts(), variables, forks=options.forks))
            if {record["name"] for record in server.agents()} != set(agents.names.values()):
                raise BenchError("not every agent was registered")
            used.append(_let_through(server) / (PER_SECOND * task(sample)))
            server.reset()
        return sample

    def share(_samples: Samples) -> float:
        return sum(used) / len(used)

    work = f"pacing, {options.hosts} hosts at a control plane that takes one request a second"
    return Experiment(
        "pacing", work, (Side("ours", "agent_register", enrolled),),
        (Line(f"{work}: requests that got through", "what the limit allows in that time", share, 0.9),), runs=1)


def _let_through(server: ReferenceServer) -> int:
    """Count the requests that the limit applies to and let pass."""
    outcomes = server.counters()["by_outcome"]
    return sum(
        number for route, found in outcomes.items() if route.startswith("oxmon_") and route not in _UNLIMITED
        for status, number in found.items() if status != "429")
