# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotating more agents at once than the control plane's limit lets through, where a new token is the end of the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

from .agents import REGISTER
from .controller import Controller
from .test_oxmon import PASSWORD, USER, Agent

ROTATE = "muster.agents.token_rotate"
HOSTS = 12
LEFT = 8  # requests that the limit lets through at once; then it is one a second


@pytest.mark.thorough
def test_a_rotation_above_the_limit_waits_its_turn_and_neither_a_host_nor_a_token_is_lost(
    tls: Tls, ca: CertificateAuthority, controller: Controller, tmp_path: Path,
) -> None:
    arguments = ["--plane", "oxmon", "--oxmon-user", f"{USER}:{PASSWORD}", "--oxmon-require-agent-auth", "--oxmon-rate-limits"]
    with ReferenceServer.start("shipped", tls=tls, arguments=arguments) as server:
        agents = {f"h{number}": Agent(server, ca.ca_file, tmp_path / f"h{number}") for number in range(HOSTS)}
        how: dict[str, Any] = {"forks": HOSTS, "arguments": ["-e", f"endpoint={server.addresses['oxmon_grpc']}"]}
        controller.each(REGISTER, {host: agent.options() for host, agent in agents.items()}, **how).good()
        old = {host: agent.token() for host, agent in agents.items()}
        server.act("oxmon", "drain", seconds=1 - LEFT)
        server.reset_counters()
        due = {"when": ["always"], "seen": False, "attempts": 1, "delay": 0.2}
        done = controller.each(ROTATE, {host: {**agent.options(), **due} for host, agent in agents.items()}, **how).good()
        assert {(done.result(host)["action"], done.result(host)["phase"]) for host in agents} == {("rotated", "COMMITTED")}
        for host, agent in agents.items():
            assert agent.token() != old[host]
            assert not server.accepts(agent.name, old[host])
            agent.check_healthy()
        counters = server.counters()
        # The limit was met; no token was made twice, and no login either.
        assert sum(outcomes.get("429", 0) for outcomes in counters["by_outcome"].values()) > 0
        assert counters["by_outcome"]["oxmon_whitelist_token"]["200"] == HOSTS
        assert "oxmon_login" not in counters["by_route"]
        assert controller.spool == []
