# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgAnalytics through ansible-playbook, in both contracts: collectors are enrolled, proved, refreshed, watched, adopted and withdrawn."""

from __future__ import annotations

import itertools
import json
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._formats import parse
from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.openbao import OpenBao

from .agents import CONTRACTS, REGISTER, TEMPLATES, WAYS
from .canary import found_in
from .controller import Controller

HEALTH, INFO = "muster.agents.agent_health", "muster.agents.agent_info"
PASSWORD, PG_PASSWORD = "canary-password-3c1d", "canary-pg-password-9b2e"
PARTS = ("token", "certificate", "private_key")
FILES = {"token": "credentials/jwt_token.txt", "certificate": "collector.crt", "private_key": "collector.key", "agent_id": "collector_id.txt"}


@dataclass(frozen=True)
class Analytics:
    """One pgAnalytics of each contract, the CA of their certificate, and a Vault."""

    servers: Mapping[str, ReferenceServer]
    ca_file: Path
    bao: OpenBao

    def quiet(self) -> None:
        """Count from here on."""
        self.bao.reset_mutations()
        for server in self.servers.values():
            server.reset_counters()

    def counted(self, kind: str = "mutating") -> list[int]:
        """How many requests of a *kind* each server got since then."""
        return [server.counters()["pganalytics"][kind] for server in self.servers.values()]

    def mutations(self) -> list[Any]:
        """What changed anything since then, at the control planes or in Vault."""
        return [number for number in self.counted() if number] + list(self.bao.mutating_requests())


@dataclass(frozen=True)
class Host:
    """One host with one collector. *admin*: whether the operator gives a login."""

    analytics: Analytics
    contract: str
    directory: Path
    way: str = "fast"
    admin: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its collector."""
        return f"db-{self.directory.name}x"

    @property
    def server(self) -> ReferenceServer:
        """Its control plane."""
        return self.analytics.servers[self.contract]

    @property
    def root(self) -> Path:
        """Its folder in the store."""
        return self.directory / "store" / "pganalytics" / self.name

    @property
    def etc(self) -> Path:
        """Where its files lie."""
        return self.directory / "etc"

    @property
    def vault_path(self) -> str:
        """The guide's entry."""
        return f"secret/data/pganalytics/collectors/{self.name}"

    def login(self) -> dict[str, Any]:
        """The options of every module that talks to the control plane."""
        given: dict[str, Any] = {
            "control_plane": "pganalytics", "url": self.server.url, "ca_cert": str(self.analytics.ca_file), "tls_min_version": "1.3",
            "registration_secret": DEFAULT_SECRET}
        return {**given, "username": "ops", "password": PASSWORD} if self.admin else given

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_register; None removes one."""
        given = {
            **self.login(), "name": self.name, "version": "3.2.0", "hostname": f"{self.name}.example.com", "address": "203.0.113.10",
            "labels": {"region": "us-east-1", "tier": "primary"}, "store": str(self.directory / "store"), "delivery": self.way, "settle_timeout": 3,
            "capabilities": ["logs"], "system_info": {}, "secrets": [{"name": "pg_password", "value": PG_PASSWORD}],
            "files": [{"path": str(self.etc / "collector.toml"), "src": str(TEMPLATES / "pganalytics.toml.j2"), "format": "toml"}],
            "vault": {"url": self.analytics.bao.url, "ca_cert": str(self.analytics.bao.ca_file), "token_file": str(self.analytics.bao.token_file)},
            "vault_paths": [{"path": self.vault_path, "fields": {"jwt_token": "token", "collector_id": "agent_id", "pg_password": "pg_password"}}],
            **self.changes}
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    def gate(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_health, for a host without systemd."""
        return {**self.login(), "name": self.name, "store": str(self.directory / "store"), "delivery": self.way, "units": [], "attempts": 3, "delay": 0.5,
                **changes}

    def info(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_info."""
        return {**self.login(), "name": self.name, **changes}

    # What there is of it.

    def secret(self, name: str = "token") -> str:
        """A secret of the newest generation."""
        newest = max((self.root / "generations").iterdir(), key=lambda folder: int(folder.name))
        return (newest / name).read_text()

    def receipt(self) -> dict[str, Any]:
        """The receipt."""
        loaded: dict[str, Any] = json.loads((self.root / "receipt.json").read_text())
        return loaded

    def toml(self) -> dict[str, Any]:
        """The rendered configuration."""
        parsed: dict[str, Any] = parse((self.etc / "collector.toml").read_text(), "toml")
        return parsed

    def records(self) -> list[dict[str, Any]]:
        """What the control plane has under this name."""
        return [record for record in self.server.agents() if record["name"] == self.name]

    def call(self, path: str, body: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """A request as a script or a collector sends it."""
        request = urllib.request.Request(f"{self.server.url}/api/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
        context = ssl.create_default_context(cafile=str(self.analytics.ca_file))
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            answered: dict[str, Any] = json.loads(answer.read())
        return answered

    def push(self) -> None:
        """Report, as a running collector does."""
        body = {"collector_id": self.receipt()["agent_id"], "hostname": "h", "timestamp": "2026-01-01T00:00:00Z", "metrics": [{"type": "x"}]}
        self.call("metrics/push", body, Authorization=f"Bearer {self.secret()}")

    def register_by_hand(self) -> str:
        """Register as the guide's commands do, and save the credentials where they do. Returns the collector's id."""
        item = self.call("collectors/register", {"name": self.name, "hostname": f"{self.name}.example.com"}, **{"X-Registration-Secret": DEFAULT_SECRET})
        for part, key in (("token", "token"), ("certificate", "certificate"), ("private_key", "private_key"), ("agent_id", "collector_id")):
            file = self.etc / FILES[part]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(item[key] + "\n")
        return str(item["collector_id"])

    @property
    def adopt_from(self) -> list[dict[str, Any]]:
        """Where that was."""
        return [{"path": str(self.etc), "format": "files", "agent_id": FILES["agent_id"], "secrets": {part: FILES[part] for part in PARTS}}]

    def check_healthy(self, records: int = 1, vault: bool = True) -> None:
        """Fail unless host, Vault and control plane agree on one credential."""
        token, found = self.secret(), self.records()
        assert self.server.accepts(self.name, token)
        assert len(found) == records
        assert self.receipt()["agent_id"] == self.toml()["collector"]["id"] == found[-1]["agent_id"]
        assert self.receipt()["phase"] in ("STORED", "COMMITTED")
        assert (self.toml()["backend"]["jwt_token"], self.toml()["postgres"]["password"]) == (token, PG_PASSWORD)
        assert self.secret("private_key").startswith("-----BEGIN PRIVATE KEY-----")
        if vault:
            entry = self.analytics.bao.read(self.vault_path)
            assert entry is not None
            assert entry["data"] == {"jwt_token": token, "collector_id": self.receipt()["agent_id"], "pg_password": PG_PASSWORD}

    @property
    def secrets(self) -> list[str]:
        """Everything of it that nobody may see."""
        return [PASSWORD, PG_PASSWORD, DEFAULT_SECRET, self.secret(), self.secret("private_key").splitlines()[2]]


def orders(hosts: Mapping[str, Host], **changes: Any) -> dict[str, dict[str, Any]]:
    """The options of many hosts, each with the same *changes*."""
    return {name: host.options(**changes) for name, host in hosts.items()}


@pytest.fixture(scope="module")
def _analytics(ca: Any, tls: Tls, bao: OpenBao) -> Iterator[Analytics]:
    options = ["--plane", "pganalytics", "--pganalytics-user", f"ops:{PASSWORD}"]
    servers = {contract: ReferenceServer.start(contract, tls=tls, arguments=options) for contract in CONTRACTS}
    yield Analytics(servers, ca.ca_file, bao)
    for server in servers.values():
        server.stop()


@pytest.fixture
def analytics(_analytics: Analytics) -> Analytics:
    for server in _analytics.servers.values():
        server.reset()
    _analytics.quiet()
    return _analytics


@pytest.fixture
def fleet(analytics: Analytics, tmp_path: Path) -> dict[str, Host]:
    """One host for each contract and way."""
    return {f"{contract}-{way}": Host(analytics, contract, tmp_path / f"{contract}-{way}", way) for contract, way in itertools.product(CONTRACTS, WAYS)}


@pytest.fixture
def pair(fleet: dict[str, Host]) -> dict[str, Host]:
    """Those two of them in which each contract and each way is met once."""
    return {name: fleet[name] for name in ("documented-fast", "shipped-module")}


def test_collectors_are_enrolled_once_and_a_second_run_sends_nothing_that_changes(
    analytics: Analytics, fleet: dict[str, Host], controller: Controller) -> None:
    planned = controller.each(REGISTER, orders(fleet), arguments=["--check", "--diff"]).good()
    assert analytics.mutations() == []
    assert all(planned.result(name)["changed"] for name in fleet)
    assert not any((host.directory / "store").exists() for host in fleet.values())

    done = controller.each(REGISTER, orders(fleet), arguments=["-vvvvvv", "--diff"]).good()
    for name, host in fleet.items():
        result = done.result(name)
        assert (result["action"], result["changed"], result["proof"]["accepted"]) == ("registered", True, True)
        assert "warnings" not in result
        host.check_healthy()
        record = host.records()[0]
        assert (record["hostname"], record["address"], record["version"]) == (f"{host.name}.example.com", "203.0.113.10", "3.2.0")
    assert analytics.counted("login") == [1, 1]
    assert analytics.counted() == [len(WAYS)] * 2
    secrets = [secret for host in fleet.values() for secret in host.secrets]
    sessions = [json.loads(path.read_text()).get("session") for path in (controller.home / "muster" / "sessions").glob("*.json")]
    tokens = [session["token"] for session in sessions if session]
    assert len(tokens) == 2
    assert found_in(done.output + done.events, [*secrets, *tokens]) == []
    assert controller.spool == []

    analytics.quiet()
    before = {name: sorted((path, path.read_bytes()) for path in host.directory.rglob("*") if path.is_file()) for name, host in fleet.items()}
    for arguments in (["--check"], []):
        again = controller.each(REGISTER, orders(fleet), arguments=arguments).good()
        assert [(again.result(name)["changed"], again.result(name)["action"]) for name in fleet] == [(False, "unchanged")] * len(fleet)
    assert analytics.mutations() == []
    assert before == {name: sorted((path, path.read_bytes()) for path in host.directory.rglob("*") if path.is_file()) for name, host in fleet.items()}


def test_lost_answers_end_in_one_record_and_a_quiet_second_run(analytics: Analytics, controller: Controller, tmp_path: Path) -> None:
    kinds = ("commit-then-drop", "truncate", "commit-then-500", "garbage", "pganalytics-no-token")
    hosts = {}
    for contract, (number, kind) in itertools.product(CONTRACTS, enumerate(kinds)):
        host = hosts[f"{contract}-{number}"] = Host(analytics, contract, tmp_path / f"{contract}-{number}")
        host.server.fault("pganalytics_register", kind, name=f'"{host.name}"')
    done = controller.each(REGISTER, orders(hosts)).good()
    assert [fault["fired"] for server in analytics.servers.values() for fault in server.faults()] == [1] * len(hosts)
    for name, host in hosts.items():
        assert done.result(name)["action"] == "registered"
        host.check_healthy()
    analytics.quiet()
    again = controller.each(REGISTER, orders(hosts)).good()
    assert [again.result(name)["changed"] for name in hosts] == [False] * len(hosts)
    assert analytics.mutations() == []


@pytest.mark.parametrize("point", ["after_issue", "before_delivery"])
def test_a_run_that_dies_is_finished_by_another_controller_without_a_second_record(
    analytics: Analytics, controller: Controller, tmp_path: Path, point: str) -> None:
    hosts = {contract: Host(analytics, contract, tmp_path / contract) for contract in CONTRACTS}
    assert controller.each(REGISTER, orders(hosts), environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=raise"}).code != 0
    elsewhere = Controller(tmp_path / "another-node")
    elsewhere.each(REGISTER, orders(hosts, lease=1)).good()
    for host in hosts.values():
        host.check_healthy()
    analytics.quiet()
    assert not any(elsewhere.each(REGISTER, orders(hosts)).good().result(name)["changed"] for name in hosts)
    assert analytics.mutations() == []


def test_without_a_login_the_shipped_server_may_keep_a_record_and_that_is_said(analytics: Analytics, controller: Controller, tmp_path: Path) -> None:
    hosts = {contract: Host(analytics, contract, tmp_path / contract, admin=False) for contract in CONTRACTS}
    for host in hosts.values():
        host.server.fault("pganalytics_register", "commit-then-drop", name=f'"{host.name}"')
    done = controller.each(REGISTER, orders(hosts))
    assert done.result("documented")["reason"] == "identity_conflict"
    assert any("unused record" in warning for warning in done.result("shipped")["warnings"])
    hosts["shipped"].check_healthy(records=2)
    # With a login the documented one gets on as well.
    finished = Host(analytics, "documented", hosts["documented"].directory)
    controller.each(REGISTER, {"documented": finished.options()}).good()
    finished.check_healthy()


def test_what_the_guides_commands_left_is_adopted_with_its_id(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    ids = {name: host.register_by_hand() for name, host in pair.items()}
    analytics.quiet()
    done = controller.each(REGISTER, {name: host.options(adopt_from=host.adopt_from, registration_secret=None) for name, host in pair.items()}).good()
    for name, host in pair.items():
        assert (done.result(name)["action"], done.result(name)["agent_id"]) == ("adopted", ids[name])
        host.check_healthy()
    assert analytics.counted() == [0, 0]


def test_a_token_is_refreshed_when_its_share_of_life_is_over_and_left_before(
    analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    controller.each(REGISTER, orders(pair)).good()
    tokens = {name: host.secret() for name, host in pair.items()}
    time.sleep(1.1)  # tokens count whole seconds: one of the same second would be the same
    analytics.quiet()
    done = controller.each(REGISTER, orders(pair, refresh_at=0.0, registration_secret=None)).good()
    for name, host in pair.items():
        assert (done.result(name)["action"], done.result(name)["reason"]) == ("refreshed", "expires_soon")
        assert host.secret() != tokens[name]
        host.check_healthy()
    assert analytics.counted() == [0, 0]
    assert not any(controller.each(REGISTER, orders(pair)).good().result(name)["changed"] for name in pair)


def test_a_credential_that_is_refused_is_replaced_and_leaves_no_second_record(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    controller.each(REGISTER, orders(pair)).good()
    old = {name: host.receipt()["agent_id"] for name, host in pair.items()}
    for host in pair.values():
        host.server.act("pganalytics", "expire", name=host.name)
    time.sleep(1.1)  # tokens count whole seconds: one of the same second is called expired too
    done = controller.each(REGISTER, orders(pair)).good()
    for name, host in pair.items():
        assert done.result(name)["action"] == "reissued", done.result(name)
        host.check_healthy()
        assert host.receipt()["agent_id"] != old[name]
    analytics.quiet()
    assert not any(controller.each(REGISTER, orders(pair)).good().result(name)["changed"] for name in pair)
    assert analytics.mutations() == []


def test_a_name_that_lives_elsewhere_is_taken_only_when_told(analytics: Analytics, controller: Controller, tmp_path: Path) -> None:
    hosts = {contract: Host(analytics, contract, tmp_path / contract) for contract in CONTRACTS}
    for host in hosts.values():
        host.register_by_hand()
        (host.etc / FILES["token"]).unlink()
    analytics.quiet()
    refused = controller.each(REGISTER, orders(hosts))
    assert {refused.result(name)["reason"] for name in hosts} == {"identity_conflict"}
    assert analytics.counted() == [0, 0]
    assert not any(host.root.exists() for host in hosts.values())
    for host in hosts.values():
        host.server.act("pganalytics", "age", name=host.name, seconds=7200)
    taken = controller.each(REGISTER, orders(hosts)).good()
    for name, host in hosts.items():
        assert taken.result(name)["action"] == "reissued"
        host.check_healthy()


def test_the_gate_wants_a_report_after_the_start_and_commits(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    controller.each(REGISTER, orders(pair)).good()
    red = controller.each(HEALTH, {name: host.gate(attempts=1) for name, host in pair.items()})
    assert {red.result(name)["reason"] for name in pair} == {"not_seen"}
    for host in pair.values():
        host.push()
    green = controller.each(HEALTH, {name: host.gate(seen=False) for name, host in pair.items()}).good()
    assert {green.result(name)["action"] for name in pair} == {"committed"}
    assert {host.receipt()["phase"] for host in pair.values()} == {"COMMITTED"}
    for host in pair.values():
        host.server.act("pganalytics", "expire", name=host.name)
    refused = controller.each(HEALTH, {name: host.gate(attempts=1) for name, host in pair.items()})
    assert {refused.result(name)["reason"] for name in pair} == {"credential_refused"}
    secrets = [secret for host in pair.values() for secret in host.secrets]
    assert found_in(red.output + green.output + refused.output + refused.events, secrets) == []


def test_info_shows_one_collector_all_of_them_and_a_refused_login(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    controller.each(REGISTER, orders(pair)).good()
    analytics.quiet()
    one = controller.each(INFO, {name: host.info() for name, host in pair.items()}).good()
    for name, host in pair.items():
        (agent,) = one.result(name)["agents"]
        assert (agent["name"], agent["agent_id"]) == (host.name, host.receipt()["agent_id"])
        assert one.result(name)["server"]["version"] == ("3.2.0" if host.contract == "documented" else "3.0.0-alpha")
    every = controller.each(INFO, {name: host.info(name="") for name, host in pair.items()}).good()
    assert all(len(every.result(name)["agents"]) == 1 for name in pair)
    assert analytics.mutations() == []
    wrong = controller.each(INFO, {name: host.info(password="canary-wrong-login") for name, host in pair.items()})
    assert {wrong.result(name)["reason"] for name in pair} == {"bad_bootstrap"}
    assert analytics.counted("login") == [1, 1], "a refused login was tried again for another host"
    assert found_in(wrong.output + wrong.events, ["canary-wrong-login"]) == []


def test_absent_takes_everything_away_and_says_what_lives_on(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    controller.each(REGISTER, orders(pair)).good()
    gone = controller.each(REGISTER, orders(pair, state="absent", registration_secret=None), arguments=["--diff"]).good()
    for name, host in pair.items():
        result = gone.result(name)
        assert (result["action"], result["changed"]) == ("withdrawn", True)
        assert host.records() == []
        assert not host.root.exists()
        assert not (host.etc / "collector.toml").exists()
        assert host.analytics.bao.read(host.vault_path) is None
        assert any("call a token back" in text for text in result["remains"]) is (host.contract == "shipped")
    analytics.quiet()
    again = controller.each(REGISTER, orders(pair, state="absent", registration_secret=None)).good()
    assert [(again.result(name)["changed"], again.result(name)["action"]) for name in pair] == [(False, "absent")] * 2
    assert analytics.mutations() == []


def test_a_bad_registration_secret_is_sent_once_for_all_hosts(analytics: Analytics, pair: dict[str, Host], controller: Controller) -> None:
    wrong = "canary-wrong-registration-secret-000"
    done = controller.each(REGISTER, orders(pair, registration_secret=wrong), arguments=["-vvvvvv"])
    assert {done.result(name)["reason"] for name in pair} == {"bad_bootstrap"}
    assert [server.counters()["by_route"]["pganalytics_register"] for server in analytics.servers.values()] == [1, 1]
    assert found_in(done.output + done.events, [wrong, PASSWORD, PG_PASSWORD]) == []
    for secret in ("too-short", None):
        analytics.quiet()
        short = controller.each(REGISTER, orders(pair, registration_secret=secret))
        assert {short.result(name)["reason"] for name in pair} == {"bad_bootstrap"}
        assert analytics.counted() == [0, 0]
    assert not any(host.root.exists() for host in pair.values())
