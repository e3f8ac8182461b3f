# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example inventories of pgAnalytics, run as they are: only addresses, secrets and places on the host are this test's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._formats import parse
from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.ca import CertificateAuthority

from .controller import COLLECTIONS, Controller

COLLECTION = COLLECTIONS / "ansible_collections" / "muster" / "agents"
EXAMPLES = COLLECTION / "docs" / "examples" / "pganalytics"
# Each of them with its collectors, and what else it is about.
SIZES = {"five-collectors": 5, "regional": 8, "failover": 2, "load-balanced": 10}
PLAY: list[dict[str, Any]] = [{
    "hosts": "agents", "gather_facts": False, "tasks": [
        {"name": "Load the profile", "ansible.builtin.include_role": {"name": "muster.agents.agent", "public": True}},
        {
            "name": "Enrol", "module_defaults": {
                "group/muster.agents.agents": "{{ _agent_connection }}", "muster.agents.agent_register": "{{ _agent_description }}"},
            "muster.agents.agent_register": {
                "control_plane": "{{ agent_control_plane }}", "url": "{{ agent_control_plane_url }}", "name": "{{ agent_name }}",
                "files": "{{ _agent_files | to_json | replace('\"path\": \"', '\"path\": \"' ~ test_root ~ '/' ~ inventory_hostname) | from_json }}"},
        },
    ]}]


@pytest.fixture(scope="module")
def servers(tls: Tls) -> Iterator[dict[str, ReferenceServer]]:
    options = ["--plane", "pganalytics", "--pganalytics-user", "automation:canary-password-3c1d"]
    started = {contract: ReferenceServer.start(contract, tls=tls, arguments=options) for contract in ("documented", "shipped")}
    yield started
    for server in started.values():
        server.stop()


def given(tmp_path: Path, server: ReferenceServer, ca: CertificateAuthority) -> Path:
    """Return a file with the variables that an example cannot know."""
    secrets = {"registration": DEFAULT_SECRET, "password": "canary-password-3c1d", "database": "canary-database-7f"}
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
    variables = {
        "agent_control_plane_url": server.url, "agent_ca_cert": str(ca.ca_file), "agent_registration_secret_file": str(tmp_path / "registration"),
        "agent_password_file": str(tmp_path / "password"), "agent_secrets": [{"name": "pg_password", "file": str(tmp_path / "database")}],
        "agent_user": "root", "agent_store": str(tmp_path / "hosts" / "{{ inventory_hostname }}" / "store"), "test_root": str(tmp_path / "hosts"),
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "_agent_role_path": str(COLLECTION / "roles" / "agent")}
    file = tmp_path / "given.json"
    file.write_text(json.dumps(variables))
    return file


@pytest.mark.parametrize(("example", "contract"), [
    ("five-collectors", "documented"), ("regional", "documented"), ("failover", "documented"), ("failover", "shipped"), ("load-balanced", "shipped")])
def test_an_example_enrols_its_collectors_and_a_second_run_changes_nothing(
    example: str, contract: str, servers: dict[str, ReferenceServer], ca: CertificateAuthority, controller: Controller, tmp_path: Path) -> None:
    server = servers[contract]
    server.reset()
    play = tmp_path / "play.json"
    play.write_text(json.dumps(PLAY))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(EXAMPLES / f"{example}.yml"), "-e", f"@{given(tmp_path, server, ca)}",
               "--forks", "5", str(play)]
    outputs = []
    for _run in range(2):
        done = subprocess.run(command, env=controller.environment(), capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
        if _run == 0:
            records = server.agents()
            server.reset_counters()
    assert server.counters()["pganalytics"]["mutating"] == 0
    assert outputs[1].count("changed=0") == len(records) == SIZES[example]
    assert len({record["name"] for record in records}) == SIZES[example]
    files = {record["name"]: tmp_path / "hosts" / record["name"] / "etc/pganalytics/collector.toml" for record in records}
    found = {name: parse(file.read_text(), "toml") for name, file in files.items()}
    assert {name: document["collector"]["id"] for name, document in found.items()} == {record["name"]: record["agent_id"] for record in records}
    for record in records:
        assert record["hostname"].startswith("db-")
        assert record["hostname"] == found[record["name"]]["collector"]["hostname"]
    if example == "regional":
        assert sorted(record["region"] for record in records) == sorted(["US-EAST-1", "US-WEST-1", "EU-WEST-1", "APAC-1"] * 2)
        assert {json.dumps(record["tags"]) for record in records} == {'{"environment": "production"}'}
    if example == "failover":
        assert {document["failover"]["fallback_host"] for document in found.values()} == {"db-prod-standby.example.com"}
        assert len({document["collector"]["id"] for document in found.values()}) == 2
    if example in ("five-collectors", "regional"):
        assert all(record["address"].startswith("203.0.113.") for record in records)
