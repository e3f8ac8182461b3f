# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet against the limits of the shipped oxmon: 60 requests and then one a second, five logins and then one in twelve seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

from .agents import REGISTER
from .controller import Controller

HOSTS = 100
PASSWORD = "canary-password-of-oxmon-7f3e"


@pytest.mark.thorough
def test_a_hundred_hosts_enrol_with_one_login_and_none_fails(tls: Tls, ca: CertificateAuthority, controller: Controller, tmp_path: Path) -> None:
    """What is above the limits waits. One more host after the fleet finds the same login, and one more play without it makes another."""
    arguments = ["--plane", "oxmon", "--oxmon-user", f"admin:{PASSWORD}", "--oxmon-require-agent-auth", "--oxmon-rate-limits"]
    with ReferenceServer.start("shipped", tls=tls, arguments=arguments) as server:
        shared = {
            "control_plane": "oxmon", "url": server.url, "ca_cert": str(ca.ca_file), "username": "admin", "password": PASSWORD, "system_info": {},
            "capabilities": [], "grpc_endpoint": server.addresses["oxmon_grpc"],
        }
        fleet = {f"h{number}": {**shared, "name": f"edge.{number}.example", "store": str(tmp_path / f"h{number}")} for number in range(HOSTS)}
        done = controller.each(REGISTER, fleet, forks=20).good()
        assert {done.result(host)["action"] for host in fleet} == {"registered"}
        assert {done.result(host)["proof"]["how"] for host in fleet} == {"empty_batch"}
        assert len(server.agents()) == HOSTS
        counters = server.counters()
        assert counters["by_route"]["oxmon_login"] == 1
        # The limit was met, and waiting took the place of being refused: hardly any request went in vain.
        refused = counters["by_outcome"]["oxmon_whitelist_add"].get("429", 0)
        assert 0 < refused <= 40
        assert counters["by_outcome"]["oxmon_whitelist_add"]["201"] == HOSTS
