# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate against a real agent under a real systemd, and a real control plane in both contracts, through ansible-playbook."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import typing as t
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from reference_agent.build import FACES, build

from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority
from world.hosts import Fleet, Host
from world.processes import wait_until

NETWORK = "10.231.10.0/24"
GATEWAY = "10.231.10.1"
HEALTH_URL = "http://127.0.0.1:5000/health"
UNITS = {"documented": ["status-panel"], "shipped": ["status-panel", "status-panel-api"]}
COMMANDS = {
    "documented": {"status-panel": "serve --port 5000"},
    "shipped": {"status-panel": "--config /opt/agent/config.json", "status-panel-api": "--config /opt/agent/config.json serve --port 5000"},
}
ENVIRONMENT = """\
AGENT_ID={{ muster_agent.agent_id }}
AGENT_TOKEN={{ muster_secret.token }}
DEPLOYMENT_HASH={{ muster_agent.name }}
STACKER_URL=%(url)s
DASHBOARD_URL=%(url)s
SSL_CERT_FILE=/opt/agent/ca.pem
HEARTBEAT_SECS=1
"""
UNIT = """\
[Unit]
StartLimitIntervalSec=0
[Service]
WorkingDirectory=/opt/agent
EnvironmentFile=/opt/agent/.env
ExecStart=%(command)s
Restart=%(restart)s
RestartSec=0.2
TimeoutStopSec=2
"""


@dataclass
class Deployment:
    """One enrolled agent on one real host; tasks run by ansible-playbook, anything else goes straight to the host."""

    fleet: Fleet
    host: Host
    server: ReferenceServer
    ca_file: Path
    folder: Path
    contract: str
    name: str = field(default_factory=lambda: str(uuid.uuid4()))
    output: str = ""

    @property
    def identity(self) -> dict[str, t.Any]:
        """The options that say who and where."""
        return {"control_plane": "stacker", "url": self.server.url, "ca_cert": str(self.ca_file), "name": self.name}

    def task(self, module: str, options: dict[str, t.Any], *arguments: str) -> dict[str, t.Any]:
        """Run one task and return its result; ``output`` holds all that was printed."""
        play = [{
            "hosts": "all", "gather_facts": False,
            "tasks": [
                {"name": "The task", f"muster.agents.{module}": options, "register": "said", "ignore_errors": True},
                {"name": "Tell its result", "ansible.builtin.debug": {"msg": "said:{{ said | to_json | b64encode }}:"}},
            ],
        }]
        playbook = self.folder / "play.yml"
        playbook.write_text(yaml.safe_dump(play, sort_keys=False))
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"), "-i", f"{self.host.address},", "--user=root", f"--private-key={self.fleet.key_file}",
            "--ssh-common-args=-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=30s",
            "-e", "ansible_python_interpreter=/usr/bin/python3", str(playbook), *arguments]
        environment = {**os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_HOME": str(self.folder / "home")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        self.output = done.stdout + done.stderr
        assert done.returncode == 0, self.output
        told = re.search("said:([A-Za-z0-9+/=]+):", self.output)
        assert told is not None, self.output
        result: dict[str, t.Any] = json.loads(base64.b64decode(told.group(1)))
        return result

    def gate(self, *arguments: str, **options: t.Any) -> dict[str, t.Any]:
        """Run the gate with what fits this agent; *options* override."""
        defaults = {"units": UNITS[self.contract], "health_url": HEALTH_URL, "attempts": 20, "delay": 0.5}
        return self.task("agent_health", {**self.identity, **defaults, **options}, *arguments)

    def enrol(self) -> None:
        """Register, and put the files the agent reads in place."""
        template = self.folder / "env.j2"
        template.write_text(ENVIRONMENT % {"url": self.server.urls[1]})
        files = [{"path": "/opt/agent/.env", "src": str(template), "format": "env"}]
        result = self.task("agent_register", {**self.identity, "version": "1.0.0", "capabilities": ["docker"], "files": files})
        assert result.get("failed") is not True, result

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a command on the host."""
        return self.fleet.execute(self.host, *command, stdin=stdin)

    def write(self, path: str, content: str, mode: str = "0644") -> None:
        """Put a file on the host."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, stdin=content)

    def start(self, broken: str = "", restart: str = "no", commands: t.Mapping[str, str] | None = None) -> None:
        """Install the agent of this contract (or one that is *broken*, or other *commands*) and start its units."""
        artefacts = build(self.folder / f"release-{broken or 'good'}", broken=broken)
        artefact = next(path for path in artefacts if path.name.startswith(f"{FACES[self.contract]}-1"))
        self.write("/usr/local/bin/agent", artefact.read_text(), "0755")
        self.write("/opt/agent/ca.pem", self.ca_file.read_text())
        self.write("/opt/agent/config.json", json.dumps({"reqdata": {"email": "ops@example.com"}}))
        given = commands or {unit: f"/usr/local/bin/agent {words}" for unit, words in COMMANDS[self.contract].items()}
        for unit, command in given.items():
            self.write(f"/etc/systemd/system/{unit}.service", UNIT % {"command": command, "restart": restart})
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", *given)

    def stop(self) -> None:
        """Take the units away; the enrolment stays."""
        units = " ".join(f"{unit}.service" for unit in [*UNITS["shipped"], "squatter"])
        self.run("sh", "-c", (
            f"systemctl stop {units}; cd /etc/systemd/system && rm -f {units}; systemctl daemon-reload; systemctl reset-failed {units}; true"))

    def files(self) -> dict[str, str]:
        """What the tests and their agents change on the host after an enrolment."""
        return {path: self.run("cat", path) for path in (f"{self.store}/receipt.json", "/opt/agent/.env")}

    def rewind(self, files: t.Mapping[str, str]) -> None:
        """Put units, files and server back to where they were right after the enrolment."""
        self.stop()
        for path, content in files.items():
            self.write(path, content, "0600")
        self.server.clear_faults()
        self.server.clock(0)

    @property
    def store(self) -> str:
        """The identity's folder on the host."""
        return f"/var/lib/muster/stacker/{self.name}"

    @property
    def token(self) -> str:
        """The credential on the host."""
        return self.run("sh", "-c", f"cat {self.store}/generations/1/token")

    @property
    def receipt(self) -> dict[str, t.Any]:
        """The receipt on the host."""
        document: dict[str, t.Any] = json.loads(self.run("cat", f"{self.store}/receipt.json"))
        return document


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One real host with systemd."""
    hosts = Fleet(tmp_path_factory.mktemp("fleet"), name="muster-gate", network=NETWORK, suites=("bookworm",))
    hosts.down()
    hosts.up()
    yield hosts
    hosts.down()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module", params=["documented", pytest.param("shipped", marks=pytest.mark.thorough)])
def server(request: pytest.FixtureRequest, fleet: Fleet, authority: CertificateAuthority) -> Iterator[tuple[str, ReferenceServer]]:
    """The control plane in one contract, on loopback for the controller and on the gateway for the host."""
    pair = authority.server("control", ("127.0.0.1", GATEWAY))
    listen = ("127.0.0.1:0", f"{fleet.gateway}:0")
    with ReferenceServer.start(contract=request.param, tls=Tls(str(pair.cert), str(pair.key)), listen=listen) as running:
        yield request.param, running


@pytest.fixture(scope="module")
def enrolled(
    fleet: Fleet, authority: CertificateAuthority, server: tuple[str, ReferenceServer], tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Deployment, dict[str, str]]:
    """An agent enrolled with the control plane, and its files at that moment."""
    contract, running = server
    deployment = Deployment(fleet, fleet.hosts[0], running, authority.ca_file, tmp_path_factory.mktemp("deployment"), contract)
    deployment.enrol()
    return deployment, deployment.files()


@pytest.fixture
def agent(enrolled: tuple[Deployment, dict[str, str]]) -> Iterator[Deployment]:
    """The enrolled agent, its units not installed yet."""
    deployment, files = enrolled
    deployment.rewind(files)
    yield deployment
    deployment.stop()


@pytest.fixture
def newcomer(agent: Deployment) -> Deployment:
    """Another agent on the same host that nobody has ever seen, and whose credential may be spoilt."""
    other = replace(agent, name=str(uuid.uuid4()))
    other.enrol()
    return other


def reasons(result: dict[str, t.Any]) -> dict[str, str]:
    """The outcome of each check."""
    return {check["name"]: "skipped" if check["skipped"] else check["reason"] for check in result["checks"]}


def test_a_good_agent_is_committed_once_and_never_again(agent: Deployment) -> None:
    assert agent.receipt["pending_restart"] > 0
    agent.start()
    first = agent.gate()
    assert (first["changed"], first["action"], first["reason"], first["previously_committed"]) == (True, "committed", "ok", False), first
    assert reasons(first)["credential"] == reasons(first)["seen"] == reasons(first)["port"] == reasons(first)["health"] == "ok"
    assert (agent.receipt["phase"], agent.receipt["pending_restart"], agent.receipt["proof"]["how"]) == ("COMMITTED", 0, "notifications+seen")
    before = agent.receipt
    agent.server.reset_counters()
    again = agent.gate()
    assert (again["changed"], again["action"], again["previously_committed"]) == (False, "unchanged", True), again
    assert agent.receipt == before
    assert agent.server.counters()["stacker"]["mutating"] == 0
    assert agent.token not in agent.output


@pytest.mark.thorough
def test_the_proof_itself_is_no_sign_of_life(newcomer: Deployment) -> None:
    newcomer.start(commands=dict.fromkeys(UNITS[newcomer.contract], "/usr/bin/sleep 600"))
    result = newcomer.gate(health_url=None, attempts=4)
    assert (result["reason"], reasons(result)["credential"]) == ("not_seen", "ok"), result
    assert result["last_seen"] == ""
    assert newcomer.server.agent(newcomer.name)["last_heartbeat"] is None


@pytest.mark.thorough
def test_a_heartbeat_from_before_the_restart_does_not_count(agent: Deployment) -> None:
    agent.start()
    assert agent.gate()["reason"] == "ok"
    agent.run("systemctl", "stop", *UNITS[agent.contract])
    stopped = time.time()
    assert wait_until(lambda: time.time() > stopped + 3, 10)
    agent.start(commands=dict.fromkeys(UNITS[agent.contract], "/usr/bin/sleep 600"))
    result = agent.gate(health_url=None, attempts=6)
    assert result["reason"] == "not_seen", result
    assert result["last_seen"] != ""
    assert (result["previously_committed"], agent.receipt["phase"], agent.receipt["history"][-1]["why"]) == (True, "COMMITTED", "unhealthy: not_seen")


@pytest.mark.thorough
def test_a_servers_wrong_clock_changes_nothing(agent: Deployment) -> None:
    agent.server.clock(240)
    agent.start()
    assert agent.gate()["reason"] == "ok"


def test_check_mode_and_commit_false_write_nothing(agent: Deployment) -> None:
    agent.start()
    before = agent.receipt
    assert wait_until(lambda: agent.server.agent(agent.name)["last_heartbeat"] is not None, 10)
    assert (agent.gate(commit=False)["action"], agent.receipt) == ("checked", before)
    checked = agent.gate("--check", "--diff")
    assert (checked["changed"], checked["action"], agent.receipt) == (False, "checked", before)


def test_check_mode_on_a_bare_host_reports_and_does_not_fail(agent: Deployment) -> None:
    result = agent.gate("--check", name=str(uuid.uuid4()))
    assert (result.get("failed", False), result["changed"], result["reason"]) == (False, False, "not_enrolled")


@pytest.mark.parametrize(("broken", "restart", "reason"), [
    ("exit", "no", "unit_exits"),
    ("exit", "always", "unit_exits"),
    ("portless", "no", "no_answer"),
])
def test_a_broken_agent_is_red_with_its_reason_and_its_journal(agent: Deployment, broken: str, restart: str, reason: str) -> None:
    agent.start(broken, restart)
    result = agent.gate(attempts=6)
    assert (result["failed"], result["changed"], result["reason"]) == (True, False, reason), result
    assert result["journal"]
    assert reasons(result)["credential"] == "ok"
    assert agent.receipt["history"][-1]["why"] == f"unhealthy: {reason}"
    assert agent.receipt["phase"] == "STORED"


@pytest.mark.thorough
def test_an_agent_with_a_spoilt_token_is_not_seen(newcomer: Deployment) -> None:
    newcomer.start("badtoken")
    result = newcomer.gate(attempts=6)
    assert (result["reason"], reasons(result)["health"]) == ("not_seen", "ok"), result


def test_a_credential_that_the_server_refuses_is_red(newcomer: Deployment) -> None:
    newcomer.start()
    newcomer.server.drift(newcomer.name)
    newcomer.server.drift(newcomer.name)  # the documented contract accepts the one before the last for a while
    result = newcomer.gate(attempts=6)
    assert result["reason"] == "credential_refused", result
    assert "agent_register" in result["msg"]


@pytest.mark.thorough
def test_a_server_that_is_away_for_a_moment_is_waited_for(agent: Deployment) -> None:
    agent.start()
    agent.server.fault("notifications", "refuse", times=2)
    agent.server.fault("notifications", "status", times=1, status=503)
    assert agent.gate()["reason"] == "ok"


@pytest.mark.thorough
def test_a_stopped_unit_and_a_missing_one_are_told_apart(agent: Deployment) -> None:
    assert agent.gate()["reason"] == "unit_not_found"
    agent.start()
    agent.run("systemctl", "stop", "status-panel")
    assert agent.gate()["reason"] in ("unit_inactive", "unit_failed")
    agent.run("sh", "-c", "rm /etc/systemd/system/status-panel.service; systemctl mask status-panel.service")
    assert agent.gate()["reason"] == "unit_masked"


@pytest.mark.thorough
def test_a_taken_port_explains_the_agent_that_cannot_listen(agent: Deployment) -> None:
    squatter = "/usr/bin/python3 -m http.server --bind 127.0.0.1 5000"
    agent.write("/etc/systemd/system/squatter.service", UNIT.replace("EnvironmentFile=/opt/agent/.env\n", "") % {"command": squatter, "restart": "no"})
    agent.run("sh", "-c", "systemctl daemon-reload; systemctl start squatter")
    assert wait_until(lambda: ":1388 " in agent.run("cat", "/proc/net/tcp"), 10)
    agent.start(restart="always")
    result = agent.gate(attempts=6)
    assert result["reason"] == "port_taken", result
    assert "python3" in result["msg"]


def test_no_secret_is_shown_even_when_the_agent_logs_it(agent: Deployment) -> None:
    shout = "/bin/sh -c 'echo token $AGENT_TOKEN; echo encoded $(printf u:%%s $AGENT_TOKEN | base64 -w0); exit 3'"
    agent.start(commands=dict.fromkeys(UNITS[agent.contract], shout))
    result = agent.gate("-vvvv", "--diff", attempts=4)
    assert result["reason"] == "unit_exits", result
    journal = agent.run("journalctl", "--unit=status-panel", "--output=cat", "--no-pager")
    assert agent.token in journal
    assert any("<secret>" in line for line in result["journal"]), result["journal"]
    for text in (agent.output, json.dumps(result)):
        assert agent.token not in text
        assert agent.token[4:40] not in text


@pytest.mark.thorough
def test_the_module_way_commits_too(agent: Deployment) -> None:
    agent.start()
    assert agent.gate(delivery="module")["action"] == "committed"
    assert agent.gate(delivery="module")["action"] == "unchanged"
    assert agent.receipt["phase"] == "COMMITTED"


class TestInfo:
    """agent_info needs no host; it is asked here because the control plane is."""

    def ask(self, agent: Deployment, *arguments: str, **options: t.Any) -> dict[str, t.Any]:
        return agent.task("agent_info", {**{key: value for key, value in agent.identity.items() if key != "name"}, **options}, *arguments)

    def test_it_says_whether_the_server_can_be_used(self, agent: Deployment) -> None:
        agent.server.reset_counters()
        result = self.ask(agent, "--check")
        assert (result["changed"], result["reason"], result["agents"]) == (False, "list_unsupported", [])
        assert result["server"]["reachable"] is True
        assert abs(result["server"]["clock_skew"]) < 5
        assert agent.server.counters()["stacker"]["mutating"] == 0

    def test_one_agent_is_shown_or_reported_as_not_shown(self, agent: Deployment) -> None:
        result = self.ask(agent, name=str(uuid.uuid4()))
        assert (result["reason"], result["agents"]) == ("not_found", [])

    @pytest.mark.parametrize(("change", "reason"), [
        ({"url": "https://127.0.0.1:1", "retries": 0}, "refused"),
        ({"ca_cert": None}, "untrusted"),
        ({"name": "no/slash"}, "invalid_input"),
    ])
    def test_a_server_that_cannot_be_used_fails_with_the_reason(self, agent: Deployment, change: dict[str, t.Any], reason: str) -> None:
        result = self.ask(agent, **change)
        assert (result["failed"], result["reason"], result["server"]["reachable"]) == (True, reason, False), result

    def test_a_clock_that_is_far_off_fails(self, agent: Deployment) -> None:
        agent.server.clock(400)
        result = self.ask(agent)
        assert (result["failed"], result["reason"], result["server"]["reachable"]) == (True, "clock_skew", True), result
