# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What buys an enrolment is refused: the server hears it once, every host says why, and the role stops the play with one message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls

from .agents import CONTRACTS, REGISTER
from .controller import Controller

GOOD = "canary-registration-secret-of-32-and-more"
WRONG = "canary-wrong-registration-secret-of-32-and-more"
HOSTS = 6


@pytest.fixture(scope="module", params=CONTRACTS)
def server(request: pytest.FixtureRequest, tls: Tls) -> Iterator[ReferenceServer]:
    """A control plane that wants a registration secret."""
    with ReferenceServer.start(request.param, tls=tls, arguments=["--plane", "pganalytics", "--pganalytics-secret", GOOD]) as started:
        yield started


def _options(server: ReferenceServer, ca_file: Path, directory: Path, secret: str) -> dict[str, dict[str, Any]]:
    shared = {"control_plane": "pganalytics", "url": server.url, "ca_cert": str(ca_file), "registration_secret": secret, "system_info": {}, "capabilities": []}
    return {
        f"db{number}": {**shared, "name": f"collector-of-db{number}", "hostname": f"db{number}.example.com", "store": str(directory / f"db{number}")}
        for number in range(HOSTS)
    }


@pytest.mark.parametrize(("secret", "sent"), [(WRONG, 1), ("canary-short", 0), (f"{GOOD}\n{GOOD}", 0)])
def test_a_refused_secret_is_sent_once_for_the_whole_play(
    secret: str, sent: int, server: ReferenceServer, ca: Any, controller: Controller, tmp_path: Path,
) -> None:
    server.reset()
    play = controller.each(REGISTER, _options(server, ca.ca_file, tmp_path, secret), forks=HOSTS)
    results = [play.result(f"db{number}") for number in range(HOSTS)]
    assert {result["reason"] for result in results} == {"bad_bootstrap"}
    assert server.counters()["by_route"].get("pganalytics_register", 0) == sent
    assert [result for result in results if "registration_secret" not in result["msg"]] == []
    if sent:
        assert sum(result["msg"].startswith("Not sent") for result in results) == HOSTS - 1
    assert "canary" not in play.output
    assert server.agents() == []


def test_a_good_secret_serves_all_hosts_at_once(server: ReferenceServer, ca: Any, controller: Controller, tmp_path: Path) -> None:
    server.reset()
    play = controller.each(REGISTER, _options(server, ca.ca_file, tmp_path, GOOD), forks=HOSTS).good()
    assert {play.result(f"db{number}")["action"] for number in range(HOSTS)} == {"registered"}
    assert len(server.agents()) == HOSTS


def test_the_role_stops_the_play_with_one_message(server: ReferenceServer, ca: Any, controller: Controller, tmp_path: Path) -> None:
    server.reset()
    shared = {
        "agent_control_plane": "pganalytics", "agent_control_plane_url": server.url, "agent_ca_cert": str(ca.ca_file), "agent_registration_secret": WRONG,
        "agent_delivery": "fast",
    }
    hosts = {
        f"db{number}": {**shared, "agent_name": f"collector-of-db{number}", "agent_hostname": "db.example.com", "agent_store": str(tmp_path / f"db{number}")}
        for number in range(HOSTS)
    }
    tasks = [
        {"name": "Enrol", "ansible.builtin.include_role": {"name": "muster.agents.registration"}, "ignore_errors": False},
        {"name": "Go on", "ansible.builtin.debug": {"msg": "another task ran"}, "ignore_errors": False},
    ]
    play = controller.run(tasks, hosts, forks=HOSTS)
    assert play.code != 0
    assert server.counters()["by_route"].get("pganalytics_register", 0) == 1
    stopped = play.output.partition("Stop the play, since every other host would be refused as well")[2]
    assert stopped.count("compare it with the server's REGISTRATION_SECRET") >= 1
    assert stopped.count("fatal: [") == 1
    assert "another task ran" not in play.output
    assert "canary" not in play.output
