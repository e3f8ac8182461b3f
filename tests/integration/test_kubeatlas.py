# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KubeAtlas through ansible-playbook, in both contracts: a pair on the host is enrolled, proved, watched and withdrawn, and its key is read by nobody."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reference_agent.build import build

from world.agent_pairs import SERVER, Issuer, issue
from world.openbao import OpenBao

from .agents import CONTRACTS, REGISTER, WAYS
from .atlas import CLIENT_SECRET, PASSWORD, Atlas, Host, orders
from .canary import found_in, found_in_files
from .controller import Controller

HEALTH, INFO = "muster.agents.agent_health", "muster.agents.agent_info"


@pytest.fixture
def hosts(atlas: Atlas, tmp_path: Path) -> dict[str, Host]:
    """One host for each contract, with a pair on it."""
    made = {contract: Host(atlas, contract, tmp_path / contract) for contract in CONTRACTS}
    for host in made.values():
        host.put()
    return made


def test_life_of_an_agent_from_a_bare_host_to_its_withdrawal(atlas: Atlas, controller: Controller, bao: OpenBao, tmp_path: Path) -> None:
    """Over all ways to the host, with Vault: foretold, enrolled, left alone by a second run, and taken out again."""
    vault = {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)}
    fleet, given = {}, {}
    for contract, way in itertools.product(CONTRACTS, WAYS):
        host = fleet[f"{contract}-{way}"] = Host(atlas, contract, tmp_path / f"{contract}-{way}", way)
        host.put()
        path = {"path": f"secret/data/kubeatlas/{host.name}", "fields": {"certificate": "certificate", "service_id": "agent_id"}}
        given[f"{contract}-{way}"] = host.options(vault=vault, vault_paths=[path])
    planned = controller.each(REGISTER, given, arguments=["--check", "--diff"]).good()
    assert atlas.mutations() == [0, 0]
    assert all(planned.result(name)["changed"] for name in fleet)
    assert not any((host.directory / "store").exists() for host in fleet.values())

    done = controller.each(REGISTER, given, arguments=["-vvvvvv", "--diff"]).good()
    for name, host in fleet.items():
        assert (done.result(name)["action"], done.result(name)["changed"]) == ("registered", True)
        assert host.records()[0]["metadata"]["agent_id"] == host.name
        host.check_healthy()
        document = bao.read(f"secret/data/kubeatlas/{host.name}")
        assert document is not None
        assert document["data"] == {"certificate": host.certificate.read_text(), "service_id": host.receipt()["agent_id"]}
    # A login for each server and a token for each host, none of which is left over, and no secret in all that was said.
    assert [server.counters()["kubeatlas"]["login"] for server in atlas.servers.values()] == [1, 1]
    assert [server.act("kubeatlas", "tokens") for server in atlas.servers.values()] == [[], []]
    sessions = [json.loads(path.read_text()).get("session") for path in (controller.home / "muster" / "sessions").glob("*.json")]
    access = [session["token"] for session in sessions if session]
    assert len(access) == 2
    secrets = [PASSWORD, CLIENT_SECRET, *access, *(host.key for host in fleet.values())]
    assert found_in(done.output + done.events, secrets) == []
    assert [found_in_files(host.directory / part, secrets) for host in fleet.values() for part in ("store", "opt")] == [[]] * 2 * len(fleet)

    atlas.quiet()
    bao.reset_mutations()
    again = controller.each(REGISTER, given).good()
    assert [(again.result(name)["changed"], again.result(name)["action"]) for name in fleet] == [(False, "unchanged")] * len(fleet)
    assert [server.counters()["kubeatlas"]["login"] for server in atlas.servers.values()] == [0, 0]
    assert bao.mutating_requests() == []

    ids = {name: host.receipt()["agent_id"] for name, host in fleet.items()}
    absent = {name: {**options, "state": "absent"} for name, options in given.items()}
    gone = controller.each(REGISTER, absent).good()
    for name, host in fleet.items():
        assert (gone.result(name)["action"], gone.result(name)["changed"]) == ("withdrawn", True)
        text = " ".join(gone.result(name)["remains"])
        assert f"redis-cli DEL service:{ids[name]}" in text
        assert "good until" in text
        assert not host.root.exists()
        assert not host.env_file.exists()
        assert host.certificate.exists(), "the pair belongs to whoever made it"
    assert [controller.each(REGISTER, absent).good().result(name)["changed"] for name in list(fleet)[:1]] == [False]
    assert atlas.mutations() == [0, 0]


def test_lost_answers_end_in_one_record_and_a_quiet_second_run(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    faults = [("kubeatlas_register", kind) for kind in ("commit-then-drop", "truncate", "commit-then-500", "garbage")]
    faults += [("kubeatlas_mint", "commit-then-drop"), ("kubeatlas_mint", "truncate")]
    hosts = {}
    for contract, (number, (route, kind)) in itertools.product(CONTRACTS, enumerate(faults)):
        hosts[f"{contract}-{number}"] = Host(atlas, contract, tmp_path / f"{contract}-{number}")
        hosts[f"{contract}-{number}"].put()
        atlas.servers[contract].fault(route, kind, name=f'"{hosts[f"{contract}-{number}"].name}"')
    controller.each(REGISTER, orders(hosts)).good()
    assert [fault["fired"] for server in atlas.servers.values() for fault in server.faults()] == [1] * len(hosts)
    for host in hosts.values():
        host.check_healthy()
    atlas.quiet()
    again = controller.each(REGISTER, orders(hosts)).good()
    assert [again.result(name)["changed"] for name in hosts] == [False] * len(hosts)
    assert atlas.mutations() == [0, 0]


def test_run_that_dies_is_finished_by_another_controller_without_a_second_record(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    hosts = {}
    for point in ("after_issue", "before_delivery"):
        mine = {f"{contract}-{point}": Host(atlas, contract, tmp_path / f"{contract}-{point.replace('_', '-')}") for contract in CONTRACTS}
        for host in mine.values():
            host.put()
        assert controller.each(REGISTER, orders(mine), environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=raise"}).code != 0
        hosts.update(mine)
    elsewhere = Controller(tmp_path / "another-node")
    atlas.quiet()
    for _run in range(2):
        elsewhere.each(REGISTER, orders(hosts, lease=1)).good()
    for host in hosts.values():
        host.check_healthy()
    assert atlas.mutations() == [0, 0]


def test_guides_hosts_are_adopted_and_renewed_pairs_registered_beside_the_stale_record(
    atlas: Atlas, hosts: dict[str, Host], controller: Controller) -> None:
    ids = {name: host.register_by_hand(host.put()) for name, host in hosts.items()}
    atlas.servers["documented"].act("kubeatlas", "touch", name=hosts["documented"].name)
    atlas.quiet()
    done = controller.each(REGISTER, orders(hosts)).good()
    for name, host in hosts.items():
        assert (done.result(name)["action"], done.result(name)["agent_id"]) == ("adopted", ids[name])
        host.check_healthy()
        host.put()
    assert atlas.mutations() == [0, 0]

    done = controller.each(REGISTER, orders(hosts)).good()
    for name, host in hosts.items():
        host.check_healthy(records=2)
        assert host.receipt()["agent_id"] != ids[name]
        assert (host.receipt()["generation"], host.env()["SERVICE_ID"]) == (2, host.receipt()["agent_id"])
        assert any(f"redis-cli DEL service:{ids[name]}" in warning for warning in done.result(name)["warnings"])
    atlas.quiet()
    assert [controller.each(REGISTER, orders(hosts)).good().result(name)["changed"] for name in ("shipped",)] == [False]
    assert atlas.mutations() == [0, 0]


def test_name_that_lives_elsewhere_is_taken_only_when_told(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    host = Host(atlas, "documented", tmp_path / "rebuilt")
    elsewhere = host.register_by_hand(issue(f"agent-{host.name}", Issuer.of(atlas.agents_ca)))
    host.server.clock(30)
    host.server.act("kubeatlas", "touch", name=host.name)
    host.put()
    atlas.quiet()
    refused = controller.each(REGISTER, {"rebuilt": host.options()})
    assert refused.result("rebuilt")["reason"] == "identity_conflict"
    assert "another certificate" in refused.result("rebuilt")["msg"]
    assert atlas.mutations() == [0, 0]
    assert not host.root.exists()
    taken = controller.each(REGISTER, {"rebuilt": host.options(adopt="always")}).good().result("rebuilt")
    assert taken["action"] == "reissued"
    assert any(elsewhere in warning for warning in taken["warnings"])
    host.check_healthy(records=2)


def test_bad_pairs_are_refused_before_a_token_is_minted(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    ours = Issuer.of(atlas.agents_ca)
    hosts = {}
    for contract, reason in itertools.product(CONTRACTS, ("certificate_missing", "key_mismatch", "key_mode", "key_missing", "certificate_expired",
                                                          "certificate_not_client", "chain_broken")):
        host = hosts[f"{contract}-{reason}"] = Host(atlas, contract, tmp_path / f"{contract}-{reason.replace('_', '-')}")
        pair = host.put(issue("x", ours, begins=-20.0, ends=-10.0) if reason == "certificate_expired" else None)
        key = host.certificate.with_suffix(".key")
        if reason == "certificate_missing":
            host.certificate.unlink()
        elif reason == "key_mismatch":
            key.write_text(issue("y").key)
        elif reason == "key_mode":
            key.chmod(0o644)
        elif reason == "key_missing":
            key.unlink()
        elif reason == "certificate_not_client":
            host.put(issue("x", ours, usages=SERVER))
        elif reason == "chain_broken":
            host.certificate.write_text(pair.cert + issue("z").cert)
    done = controller.each(REGISTER, orders(hosts))
    assert {name: done.result(name)["reason"] for name in hosts} == {name: name.split("-", 1)[1] for name in hosts}
    assert atlas.mutations() == [0, 0]
    assert not any(host.root.exists() for host in hosts.values())


def test_refused_login_is_tried_once_for_all_hosts(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    fleet = {f"{contract}-{number}": Host(atlas, contract, tmp_path / f"{contract}-{number}") for contract in CONTRACTS for number in (1, 2)}
    mute = Host(atlas, "shipped", tmp_path / "mute")
    for host in (*fleet.values(), mute):
        host.put()
    given = {**orders(fleet, password="canary-wrong-password"), "mute": mute.options(username="nomail")}
    done = controller.each(REGISTER, given, arguments=["-vvvvvv"])
    assert {done.result(name)["reason"] for name in fleet} == {"bad_bootstrap"}
    assert done.result("mute")["reason"] == "token_without_email"
    assert atlas.servers["documented"].counters()["kubeatlas"]["login"] == 1
    assert atlas.servers["shipped"].counters()["by_outcome"]["kubeatlas_oidc_token"]["401"] == 1
    assert atlas.mutations() == [0, 0]
    assert found_in(done.output + done.events, ["canary-wrong-password", CLIENT_SECRET, PASSWORD]) == []


def test_install_token_of_the_operators_is_enough_and_stays_off_the_host(atlas: Atlas, hosts: dict[str, Host], controller: Controller) -> None:
    nothing = {"username": None, "password": None, "client_secret": None, "issuer_url": None}
    tokens = {name: host.server.act("kubeatlas", "mint", service_name=host.name, controller_name="main")["install_token"] for name, host in hosts.items()}
    given = {name: host.options(**nothing, install_token=tokens[name]) for name, host in hosts.items()}
    done = controller.each(REGISTER, given, arguments=["-vvvvvv"]).good()
    for host in hosts.values():
        host.check_healthy()
        assert found_in_files(host.directory, tokens.values()) == []
    assert found_in(done.output + done.events, tokens.values()) == []
    atlas.quiet()
    again = controller.each(REGISTER, given).good()
    assert [again.result(name)["changed"] for name in hosts] == [False, False]
    assert [sum(server.counters()["kubeatlas"][kind] for kind in ("mutating", "login")) for server in atlas.servers.values()] == [0, 0]
    for host in hosts.values():
        host.put()
    used = controller.each(REGISTER, given)
    assert {used.result(name)["reason"] for name in hosts} == {"install_token_refused"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A cluster agent that runs on a host, and where it tells of itself."""

    process: subprocess.Popen[bytes]
    health_url: str


@pytest.fixture
def agents(hosts: dict[str, Host], controller: Controller, tmp_path: Path, atlas: Atlas) -> Iterator[dict[str, Running]]:
    """The reference agent on both hosts, enrolled and started from the file that was rendered for it."""
    controller.each(REGISTER, orders(hosts)).good()
    binaries = dict(zip(CONTRACTS, build(tmp_path / "releases", agent="cluster-agent")))
    running = {}
    for name, host in hosts.items():
        port = _free_port()
        settings = {"CA_PATH": str(atlas.ca.ca_file), "HEARTBEAT_INTERVAL_SECS": "0.2", "HEALTH_PORT": str(port), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, str(binaries[host.contract]), "--env-file", str(host.env_file)]
        running[name] = Running(subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL), f"http://127.0.0.1:{port}/health")
    yield running
    for agent in running.values():
        agent.process.kill()
        agent.process.wait()


def _gate(host: Host, agent: Running, **changes: Any) -> dict[str, Any]:
    """The options of agent_health."""
    registered = host.options()
    shared = {key: registered[key] for key in ("name", "store", "delivery", "certificate_path", "key_path")}
    return {**host.login(), **shared, "health_url": agent.health_url, "attempts": 20, "delay": 0.5, **changes}


def test_gate_sees_beats_and_the_pair_in_use_and_info_lists_the_fleet(
    atlas: Atlas, hosts: dict[str, Host], agents: dict[str, Running], controller: Controller) -> None:
    atlas.quiet()
    done = controller.each(HEALTH, {name: _gate(hosts[name], agent) for name, agent in agents.items()}).good()
    for name in agents:
        checks = {check["name"]: check for check in done.result(name)["checks"]}
        assert (checks["credential"]["ok"], checks["pair"]["ok"], checks["mtls"]["ok"]) == (True, True, True)
        assert checks["seen"]["skipped"] is (name == "shipped")
        assert hosts[name].receipt()["phase"] == "COMMITTED"
    assert atlas.mutations() == [0, 0]

    listed = controller.each(INFO, {name: hosts[name].login() for name in agents}).good()
    for name in agents:
        (record,) = listed.result(name)["agents"]
        assert (record["name"], record["agent_id"]) == (hosts[name].name, hosts[name].receipt()["agent_id"])
        assert bool(record["last_seen"]) is (name == "documented")

    # What goes wrong afterwards is told by what it is: an agent that no longer beats, and one that its server has lost.
    agents["documented"].process.send_signal(signal.SIGSTOP)
    hosts["shipped"].server.forget(hosts["shipped"].name)
    gates = {"documented": {"health_url": None, "attempts": 2}, "shipped": {"attempts": 1}}
    told = controller.each(HEALTH, {name: _gate(hosts[name], agents[name], **changes) for name, changes in gates.items()})
    assert told.result("documented")["reason"] == "not_seen"
    assert told.result("shipped")["reason"] == "credential_refused"

    for host in hosts.values():
        host.certificate.with_suffix(".key").write_text(issue("x").key)
    worse = controller.each(HEALTH, {"documented": _gate(hosts["documented"], agents["documented"], health_url=None, attempts=1)})
    assert worse.result("documented")["reason"] == "key_mismatch"
