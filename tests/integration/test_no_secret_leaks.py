# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret shows: not in output, job events, caches, logs, processes or leftover files, whether a run succeeds, fails or is killed."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from world.processes import wait_until

from .agents import CONTRACTS, REGISTER, WAYS, Agent, World, strict_python
from .canary import Watch, found_in, found_in_files, slow_tools
from .controller import Controller, for_each

DATABASE = 'canary "p\\ss\' w0rd" %41&+é$HOME'
ADMIN = "canary-admin-token-51f0c2"
PASSWORD = "canary-operator-password-77aa"


@dataclass(frozen=True)
class Fleet:
    """Agents with all kinds of secrets, their options, and what must never show."""

    agents: Mapping[str, Agent]
    options: Mapping[str, Mapping[str, Any]]
    given: tuple[str, ...]

    def secrets(self) -> list[str]:
        """Everything that is secret by now."""
        issued = [path.read_text() for agent in self.agents.values() for path in agent.root.glob("generations/*/*token")]
        keys = [path.read_text() for agent in self.agents.values() for path in agent.root.glob("key")]
        assert all(len(secret) > 12 for secret in issued)
        return [*self.given, *issued, *keys]


@pytest.fixture
def fleet(world: World, tmp_path: Path) -> Fleet:
    """One agent for each contract and way; half of them log in to Vault with an AppRole."""
    rules = 'path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }'
    role = world.bao.approle("canary", [world.bao.policy("canary", rules)])
    agents = {f"{contract}-{way}": Agent(world, contract, tmp_path / f"{contract}-{way}", way, policy=True) for contract in CONTRACTS for way in WAYS}
    password = tmp_path / "database-password"
    password.write_text(DATABASE)
    options: dict[str, Mapping[str, Any]] = {}
    for host, agent in agents.items():
        login = {"auth_method": "approle", "role_id": role.role_id, "secret_id": role.secret_id, "auth_mount": role.mount}
        plain = {"url": world.bao.url, "ca_cert": str(world.bao.ca_file)}
        vault = {**plain, **(login if agent.way == "fast" else {"token": world.bao.root_token})}
        secret = {"name": "database", **({"file": str(password)} if agent.way == "fast" else {"value": DATABASE})}
        options[host] = agent.options(vault=vault, secrets=[secret])
    return Fleet(agents, options, (DATABASE, ADMIN, PASSWORD, role.secret_id, world.bao.root_token))


def failing(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """The same hosts with options that fail at different depths, on the way through every kind of secret."""
    env = {"path": "/nonexistent/x", "format": "json"}
    changes: list[dict[str, Any]] = [
        {"files": [{**env, "content": "{% raw %}{ {{ muster_secret.token }} {{ muster_secret.database }}{% endraw %}"}]},
        {"files": [{**env, "content": "{% raw %}{{ muster_secret.database | int / 0 }}{% endraw %}"}]},
        {"admin_token": ADMIN}, {"username": "joe", "password": PASSWORD},
    ]
    hosts = {}
    for number, change in enumerate(changes):
        for host, agent in fleet.agents.items():
            fresh = Agent(agent.world, agent.contract, agent.directory / f"failing-{number}", agent.way)
            hosts[f"failing-{number}-{host}"] = {**fresh.options(), **{key: fleet.options[host][key] for key in ("vault", "secrets")}, **change}
    return hosts


def test_neither_success_nor_failure_shows_a_secret_at_the_highest_verbosity(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    cache = tmp_path / "facts"
    environment = {
        "PATH": slow_tools(tmp_path / "slow"), "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(cache),
        "ANSIBLE_LOG_PATH": str(tmp_path / "ansible.log"),
    }
    bad = failing(fleet)
    task, hosts = for_each(REGISTER, {**fleet.options, **bad})
    tasks = [
        {**task, "register": "answer"},
        {"name": "Keep the answer", "ansible.builtin.set_fact": {"kept": "{{ answer }}", "cacheable": True}},
        {"name": "Log something", "ansible.builtin.command": "true"},
    ]
    with Watch() as watch:
        ran = controller.run(tasks, hosts, arguments=["-vvvv", "--diff"], environment=environment)
    for host in fleet.agents:
        assert ran.results[host][0]["action"] == "registered", ran.results[host][0]
    assert {ran.results[host][0]["failed"] for host in bad} == {True}
    secrets = fleet.secrets()
    assert len(secrets) == len(fleet.given) + 3 * len(fleet.agents)
    assert found_in(ran.output, secrets) == []
    assert found_in(ran.events, secrets) == []
    assert found_in_files(cache, secrets) == []
    assert found_in((tmp_path / "ansible.log").read_bytes(), secrets) == []
    assert watch.processes(secrets) == []
    assert watch.log(secrets) == []
    for place in (controller.scratch, controller.home):
        assert found_in_files(place, secrets) == []


def runner_job(
    directory: Path, controller: Controller, play: list[dict[str, Any]], hosts: Mapping[str, Any], arguments: str = "-vvvv --diff", **environment: str,
) -> Path:
    """Run *play* as a job of ansible-runner, which AWX uses too. Returns the folder of its artefacts."""
    for name, document in (("project/play.json", play), ("inventory/hosts.json", {"all": {"hosts": hosts}})):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text(json.dumps(document))
    command = [sys.executable, "-m", "ansible_runner", "run", str(directory), "-p", "play.json", "--ident", "job", f"--cmdline={arguments}"]
    path = f"{Path(sys.executable).parent}:{controller.environment()['PATH']}"
    surroundings = {**controller.environment(), "PATH": path, "MUSTER_TEST_RESULTS": str(directory / "results.jsonl"), **environment}
    subprocess.run(command, env=surroundings, check=False, capture_output=True, timeout=240)
    return directory / "artifacts"


def test_job_events_of_ansible_runner_hold_no_secret(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    task, hosts = for_each(REGISTER, {**fleet.options, **failing(fleet)})
    play = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [task]}]
    artefacts = runner_job(tmp_path / "job", controller, play, hosts)
    events = sorted((artefacts / "job" / "job_events").glob("*.json"))
    said = "".join(path.read_text() for path in events)
    assert said.count('"event": "runner_on_ok"') == len(fleet.agents)
    assert found_in_files(artefacts, fleet.secrets()) == []


@pytest.mark.parametrize("point", ["after_mint", "in-delivery"])
def test_a_killed_run_leaves_a_secret_in_no_temporary_file_without_pipelining(fleet: Fleet, controller: Controller, tmp_path: Path, point: str) -> None:
    python = strict_python(tmp_path)  # whatever goes on standard input leaves no file at all
    environment = {"ANSIBLE_PIPELINING": "0", "ANSIBLE_KEEP_REMOTE_FILES": "0", "ANSIBLE_PYTHON_INTERPRETER": str(python)}
    blocked = {host: tmp_path / f"blocked-{host}" for host in fleet.agents}
    options = {host: dict(given) for host, given in fleet.options.items()}
    if point == "in-delivery":
        stall = tmp_path / "stall"
        stall.write_text('#!/bin/sh\n: > "$1"\nexec sleep 300\n')
        stall.chmod(0o755)
        for host, given in options.items():
            given["files"] = [{**given["files"][0], "validate": f"{stall} {blocked[host]} %s"}]
    else:
        environment["MUSTER_AGENTS_TEST_FAULT"] = f"{point}=stop"
    task, hosts = for_each(REGISTER, options)
    with Watch() as watch:
        running = controller.start([task], hosts, arguments=["-vvvv"], environment=environment)
        if point == "in-delivery":
            assert wait_until(lambda: all(path.exists() for path in blocked.values()), 120), running.kill().output
        else:
            running.wait_halted(len(hosts))
        killed = running.kill()
    finished = controller.each(REGISTER, fleet.options, environment={"ANSIBLE_PIPELINING": "0"}).good()
    secrets = fleet.secrets()
    assert found_in(killed.output + finished.output, secrets) == []
    assert (watch.processes(secrets), watch.log(secrets)) == ([], [])
    left = [path for path in controller.scratch.rglob("*") if path.is_file()]
    if point == "in-delivery":
        assert left, "the kill came too late to leave a file"
    for place in (controller.scratch, controller.home):
        assert found_in_files(place, secrets) == []
    for agent in fleet.agents.values():
        agent.check_healthy()


def test_the_spool_of_a_killed_run_is_for_its_owner_alone(fleet: Fleet, controller: Controller) -> None:
    task, hosts = for_each(REGISTER, fleet.options)
    running = controller.start([task], hosts, environment={"MUSTER_AGENTS_TEST_FAULT": "after_spool=stop"})
    running.wait_halted(len(hosts))
    running.kill()
    assert len(controller.spool) == len(hosts)
    for path in controller.spool:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("secret", ["canary-plain-0123456789", DATABASE])
def test_the_scanner_knows_a_secret_in_every_disguise(secret: str) -> None:
    data = secret.encode()
    texts = [secret, json.dumps({"x": secret}), quote(secret), quote(secret, safe=""), data.hex(), repr([secret])]
    disguises = [text.encode() for text in texts]
    disguises += [base64.b64encode(b"p" * length + data + b"tail") for length in range(6)]
    disguises += [base64.urlsafe_b64encode(b"p" * length + data + b"tail") for length in range(6)]
    for disguise in disguises:
        assert found_in(b"before " + disguise + b" after", [secret]), disguise
    assert found_in(b"another canary altogether", [secret]) == []


def test_the_scanner_finds_planted_leaks_in_every_place(world: World, controller: Controller, tmp_path: Path) -> None:
    secret = "canary-planted-leak-0123456789"
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "encoded").write_text(json.dumps({"x": "a" + secret}).encode().hex())
    tasks = [
        {"name": "Say it", "ansible.builtin.debug": {"msg": secret}},
        {"name": "Pass it", "ansible.builtin.command": {"argv": ["sh", "-c", f"sleep 0.3; : {secret}"]}},
        {"name": "Keep it", "ansible.builtin.set_fact": {"kept": secret, "cacheable": True}},
        {"name": "Leave it", "ansible.builtin.copy": {"content": secret, "dest": "{{ place }}", "mode": "0600"}},
    ]
    cache = {"ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "facts")}
    with Watch() as watch:
        leaky = controller.run(tasks, {"host": {"place": str(controller.scratch / "leak")}}, environment=cache).good()
    assert found_in(leaky.output, [secret])
    assert found_in(leaky.events, [secret])
    assert found_in_files(tmp_path / "facts", [secret])
    assert found_in_files(controller.scratch, [secret])
    assert found_in_files(hidden, [secret])
    assert watch.processes([secret])
    assert watch.log([secret])
    play = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": tasks[:1]}]
    assert found_in_files(runner_job(tmp_path / "job", controller, play, {"host": {}}), [secret])
