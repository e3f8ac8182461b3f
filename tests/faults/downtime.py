# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rotation costs: a client sends commands through an agent under systemd all the while, and the agent's token is rotated again and again.

The control plane's request log is the witness: which requests of the agent it refused, and how long it took from a refusal to the next that it accepted.
What the client sent and the agent did not report in the end is counted too.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from integration.test_agent_health import ENVIRONMENT, HEALTH_URL, UNITS, Deployment

from reference_server.client import ReferenceServer, Tls, VaultLink
from world import OpenBao
from world.ca import CertificateAuthority
from world.hosts import Fleet
from world.processes import wait_until

NETWORK, GATEWAY = "10.231.24.0/24", "10.231.24.1"
POLL = 2.0
_SLACK = 1.5  # the agent's own round of requests and the refresh itself
_USER = ("ops@example.com", "correct-horse-battery")
_PAUSE = 0.2
# An agent that is never idle: whatever refuses it shows in no time.
_BUSY = ENVIRONMENT.replace("HEARTBEAT_SECS=1\n", "HEARTBEAT_SECS=0.1\nPOLLING_TIMEOUT_SECS=1\nPOLLING_BACKOFF_SECS=0.2\n")
_FROM_VAULT = """\
VAULT_ADDRESS=%(vault)s
VAULT_TOKEN={{ muster_secret.vault_token }}
VAULT_AGENT_PATH_PREFIX=status_panel
VAULT_REFRESH_SECS=%(poll)s
VAULT_REFRESH_JITTER_SECS=0
"""

__all__ = ["Served", "measure", "rotations"]


@dataclass(frozen=True)
class Case:
    """A server of a contract, an agent with the face of one, how it learns of its new token, and how many seconds it may be refused."""

    name: str
    server: str
    face: str
    nudge: str
    bound: float


CASES = (
    Case("old and new token overlap, agent is restarted", "documented", "documented", "restart", 0.0),
    Case("no overlap, agent is restarted", "shipped", "shipped", "restart", 2.0),
    Case(f"no overlap, agent asks Vault every {POLL:.0f} s", "shipped", "documented", "none", POLL + _SLACK),
)


@dataclass(frozen=True)
class Served:
    """What became of the requests in one case. commands were sent by the client, done is how many the agent reported; longest is in seconds."""

    case: Case
    rotated: int
    requests: int
    refused: int
    longest: float
    commands: int = 0
    done: int = 0

    @property
    def good(self) -> bool:
        """Whether that is within the bound of the case. A command that an agent holds while its token dies cannot be reported by anybody."""
        if self.case.bound == 0:
            return 0 < self.commands == self.done and self.refused == 0
        return self.commands > 0 and self.longest <= self.case.bound


def rotations(directory: Path, count: int) -> Iterator[Served]:
    """Rotate *count* times in each case on one systemd host, and yield what it cost."""
    authority = CertificateAuthority(directory / "ca")
    pair = authority.server("control", ("127.0.0.1", GATEWAY))
    fleet = Fleet(directory / "fleet", name="muster-downtime", network=NETWORK, suites=("bookworm",))
    fleet.down()
    with ExitStack() as stack:
        stack.callback(fleet.down)
        fleet.up()
        bao = stack.enter_context(OpenBao(addresses=("127.0.0.1", GATEWAY), server=pair, ca=authority))
        bao.enable_kv("status_panel", 1)
        link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), "status_panel")
        for number, case in enumerate(CASES):
            folder = directory / str(number)
            folder.mkdir()
            with ReferenceServer.start(
                case.server, tls=Tls(str(pair.cert), str(pair.key)), vault=link, listen=("127.0.0.1:0", f"{GATEWAY}:0"),
                arguments=("--user", ":".join(_USER)),
            ) as server:
                deployment = Deployment(fleet, fleet.hosts[0], server, authority.ca_file, folder, case.face)
                try:
                    yield _played(deployment, case, bao, count)
                finally:
                    deployment.stop()


def _played(deployment: Deployment, case: Case, bao: OpenBao, count: int) -> Served:
    template = deployment.folder / "env.j2"
    polls = case.nudge == "none"
    vault_url = bao.url.replace("127.0.0.1", GATEWAY)
    template.write_text(
        _BUSY % {"url": deployment.server.urls[1]} + (_FROM_VAULT % {"vault": vault_url, "poll": POLL} if polls else ""))
    paths = [{"path": f"status_panel/{deployment.name}/{leaf}", "fields": {"token": "token"}} for leaf in ("token", "status_panel_token")]
    options: dict[str, Any] = {
        **deployment.identity, "files": [{"path": "/opt/agent/.env", "src": str(template), "format": "env"}], "vault_paths": paths,
        "vault": {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)},
    }
    minted = {"agent_token_policy": {"period": "1h"}} if polls else {}
    enrolled = deployment.task("agent_register", {**options, **minted, "version": "1.0.0", "capabilities": ["docker"]})
    if enrolled.get("failed"):
        raise RuntimeError(f"could not be enrolled: {enrolled.get('msg')}")
    deployment.start()
    passed = deployment.gate()
    if passed.get("failed"):
        raise RuntimeError(f"did not pass the gate: {passed.get('msg')}")
    before = len(deployment.server.log)
    client = _Client(deployment)
    client.start()
    gate = {"units": UNITS[case.face], "health_url": HEALTH_URL, "attempts": 60, "delay": 0.5}
    try:
        done = _many(deployment, {**options, **gate, "nudge": case.nudge, "when": ["always"]}, count)
    finally:
        client.stop()
    wrong = [result for result in done if result.get("action") != "rotated"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(done)} rotations failed, the first with: {wrong[0].get('msg')}")
    wait_until(lambda: client.done() >= client.sent, 30, 0.5)
    return replace(measure(case, len(done), deployment.server.log[before:]), commands=client.sent, done=client.done())


class _Client(threading.Thread):
    """A user who sends the agent commands through the control plane, without a pause."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(daemon=True)
        self._deployment = deployment
        self._context = ssl.create_default_context(cafile=str(deployment.ca_file))
        self._ended = threading.Event()
        self.sent = 0
        deployment.server.own(deployment.name, _USER[0])
        session = self._call("/api/v1/agent/login", {"email": _USER[0], "password": _USER[1]})
        self._headers = {"Authorization": f"Bearer {session['session_token']}"}

    def run(self) -> None:
        """Send until stopped."""
        while not self._ended.wait(_PAUSE):
            self._call("/api/v1/agent/commands/enqueue", {"deployment_hash": self._deployment.name, "command_type": "noop"}, **self._headers)
            self.sent += 1

    def stop(self) -> None:
        """Send nothing more."""
        self._ended.set()
        self.join()

    def done(self) -> int:
        """How many commands the agent reported."""
        return sum(line["class"] == "agent" and line["path"].endswith("/commands/report") and line["status"] == "200"
                   for line in self._deployment.server.log)

    def _call(self, path: str, body: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._deployment.server.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
        with urllib.request.urlopen(request, timeout=20, context=self._context) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told


def _many(deployment: Deployment, options: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Run token_rotate *count* times in one run of ansible-playbook. Returns the results."""
    tasks = [
        {"name": "Rotate", "muster.agents.token_rotate": dict(options), "loop": list(range(count)), "register": "said", "ignore_errors": True},
        {"name": "Tell", "ansible.builtin.debug": {"msg": "said:{{ said.results | to_json | b64encode }}:"}},
    ]
    playbook = deployment.folder / "many.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}], sort_keys=False))
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"), "-i", f"{deployment.host.address},", "--user=root",
        f"--private-key={deployment.fleet.key_file}",
        "--ssh-common-args=-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=30s",
        "-e", "ansible_python_interpreter=/usr/bin/python3", str(playbook)]
    environment = {**os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_HOME": str(deployment.folder / "home")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    told = re.search("said:([A-Za-z0-9+/=]+):", ran.stdout)
    if told is None:
        raise RuntimeError(ran.stdout + ran.stderr)
    results: list[dict[str, Any]] = json.loads(base64.b64decode(told.group(1)))
    return results


def measure(case: Case, rotated: int, log: Iterable[Mapping[str, Any]]) -> Served:
    """Count the agent's own requests in the control plane's *log*, and find the longest time for which it was refused."""
    asked = [line for line in log if line["class"] == "agent"]
    refused, longest, since = 0, 0.0, None
    for line in asked:
        moment = datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
        if str(line["status"]).startswith("4"):  # as shipped, a token that Vault does not hold is a bad request
            refused += 1
            since = since or moment
        elif since is not None:
            longest, since = max(longest, (moment - since).total_seconds()), None
    return Served(case, rotated, len(asked), refused, longest if since is None else float("inf"))
