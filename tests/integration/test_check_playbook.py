# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook check over a fleet: one table of credentials, refreshes and certificates, nothing changed, and an exit code."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer
from reference_server.pganalytics import DEFAULT_SECRET

from .agents import CONTRACTS, REGISTER, Agent, World, orders
from .authority import Authority
from .controller import Controller

PASSPHRASE = "passphrase-of-a-key-91ad"
DAY = 86400


def port(world: World) -> str:
    """Host and port of a control plane that is there."""
    return world.stackers["documented"].url.removeprefix("https://")


@contextlib.contextmanager
def health_page(**document: Any) -> Iterator[str]:
    """An agent's health page that says *document*. Yields its URL."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/health"
        server.shutdown()


@pytest.fixture(scope="module")
def analytics(ca: Any, tls: Any) -> Iterator[ReferenceServer]:
    """A pgAnalytics as it ships, whose tokens live for half an hour."""
    server = ReferenceServer.start("shipped", tls=tls, arguments=["--plane", "pganalytics"])
    yield server
    server.stop()


class Fleet:
    """Hosts that are directories, and the playbook check over them: one agent in each contract of Stacker, and collectors where they are wanted."""

    def __init__(self, world: World, controller: Controller, tmp_path: Path) -> None:
        self.world = world
        self.controller = controller
        self.folder = tmp_path
        self.agents = {contract: Agent(world, contract, tmp_path / contract, vault=False) for contract in CONTRACTS}
        self.authority = Authority(tmp_path, PASSPHRASE)
        self.collectors: dict[str, dict[str, Any]] = {}

    def collect(self, server: ReferenceServer, tokens: Mapping[str, tuple[float, float]]) -> None:
        """Enrol a collector for each of *tokens*: how long ago its token was issued, and when it ends, in seconds."""
        hosts = {name: {"control_plane": "pganalytics", "url": server.url, "ca_cert": str(self.world.ca_file), "name": f"db-{name}-x",
                        "registration_secret": DEFAULT_SECRET, "hostname": name, "store": str(self.folder / name / "store")} for name in tokens}
        self.controller.each(REGISTER, hosts).good()
        for name, (ago, left) in tokens.items():
            (newest,) = (self.folder / name / "store" / "pganalytics" / f"db-{name}-x" / "generations").iterdir()
            minted = server.act("pganalytics", "mint", name=f"db-{name}-x", issued_ago=ago, expires_in=left)
            (newest / "token").write_text(minted["token"])
            self.collectors[name] = {
                "agent_control_plane": "pganalytics", "agent_name": f"db-{name}-x", "agent_control_plane_url": server.url, "check_files": [],
                "agent_registration_secret": DEFAULT_SECRET, "agent_store": str(self.folder / name / "store"), "agent_allow_unstable_name": True,
                "agent_certificate_path": str(self.folder / "documented-pair" / "agent.crt"), "agent_version": "3.2.0",
                "agent_key_path": str(self.folder / "documented-pair" / "agent.key")}

    def check(self, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the playbook with *variables* on top of what fits these hosts."""
        hosts = {
            name: {"agent_name": agent.name, "agent_control_plane_url": agent.stacker.url, "agent_store": str(agent.directory / "store"),
                   "check_files": [{"path": str(self.folder / f"{name}-pair" / "agent.crt"), "key": str(self.folder / f"{name}-pair" / "agent.key")}]}
            for name, agent in self.agents.items()}
        given = {
            "agent_control_plane": "stacker", "agent_version": "1.0.0", "agent_ca_cert": str(self.world.ca_file), "agent_become": False,
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "check_units": [], "check_seen": False, "check_health_url": "",
            "check_ca_certs": [str(self.authority.file), str(self.world.ca_file)], "check_endpoints": [port(self.world)], **variables}
        inventory = self.folder / "inventory.json"
        inventory.write_text(json.dumps({"agents": {"hosts": {**hosts, **self.collectors}, "vars": given}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "muster.agents.check", "-i", str(inventory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240,
                              env={**self.controller.environment(), "MUSTER_TEST_RESULTS": str(self.folder / "results.jsonl")})


def table(output: str, *hosts: str) -> dict[str, list[str]]:
    """The words of the table's lines of *hosts*; what is empty leaves none."""
    lines = [line.strip().strip('",') for line in output.splitlines() if line.startswith(" ")]
    return {line.split()[0]: line.split() for line in lines if line.split() and line.split()[0] in hosts}


@pytest.fixture
def fleet(world: World, controller: Controller, tmp_path: Path) -> Fleet:
    made = Fleet(world, controller, tmp_path)
    controller.each(REGISTER, orders(made.agents)).good()
    for name, agent in made.agents.items():
        agent.heartbeat()
        made.authority.by_hand(tmp_path / f"{name}-pair", name)
    world.quiet()
    return made


def test_a_whole_fleet_is_checked_in_one_table_without_a_change(world: World, fleet: Fleet) -> None:
    before = {name: agent.everything() for name, agent in fleet.agents.items()}
    with health_page(status="ok", token_age_seconds=42, last_refresh_ok=True) as page:
        done = fleet.check(check_health_url=page)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = table(done.stdout, *fleet.agents)
    for name, agent in fleet.agents.items():
        assert lines[name][1:3] == [agent.name, "ok"]
        # Age, no end since this token has none, the last refresh and its age, the last proof, and the certificate's days.
        assert lines[name][3:7] == ["0.0", "ok", "42", "s"]
        assert float(lines[name][-2]) > 364
        assert agent.secret() not in done.stdout + done.stderr
        assert agent.everything() == before[name]
    assert f'"{port(world)} ' in done.stdout
    assert "changed=0" in done.stdout
    assert world.mutations() == []


def test_what_is_refused_ends_soon_or_is_over_ends_the_run_with_a_failure(fleet: Fleet, analytics: ReferenceServer) -> None:
    (newest,) = (fleet.agents["documented"].root / "generations").iterdir()
    (newest / "token").write_text("another-token-that-nobody-knows")
    fleet.authority.by_hand(fleet.folder / "shipped-pair", "shipped", days=3)
    fleet.collect(analytics, {
        "soon": (8 * DAY, 2 * DAY), "late": (9.5 * DAY, DAY / 2), "over": (9 * DAY, -1 * DAY), "year": (345 * DAY, 20 * DAY)})
    done = fleet.check(check_endpoints=[])
    assert done.returncode != 0
    lines = table(done.stdout, *fleet.agents, *fleet.collectors)
    verdicts = {name: words[2] for name, words in lines.items()}
    assert verdicts == {
        "documented": "critical", "shipped": "critical", "soon": "warning", "late": "critical", "over": "expired", "year": "warning"}
    assert {name: words[-1] for name, words in lines.items() if name in ("soon", "late", "year")} == {
        "soon": "credential_expires_soon", "late": "credential_expires_soon", "year": "credential_expires_soon"}
    assert "credential_refused" in lines["documented"]
    assert "credential_expired" in lines["over"]
    assert [" ".join(lines[name][3:6]) for name in ("year", "late", "over")] == ["0.0 20.0 d", "0.0 12.0 h", "0.0 -1.0 d"]
    assert "4 of 6 are critical, expired" in done.stdout
    # A warning makes it fail only when it is told so, days can be had in the place of shares, and a reason can be left out.
    fleet.collectors["late"]["check_ignore"] = ["credential_expires_soon"]
    tolerated = fleet.check("--limit", "soon,late", check_credential_warning_days=30, check_credential_critical_days=0, check_endpoints=[])
    assert tolerated.returncode == 0, tolerated.stdout
    assert {name: words[2] for name, words in table(tolerated.stdout, "soon", "late").items()} == {"soon": "warning", "late": "ok"}
