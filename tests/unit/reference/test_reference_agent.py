# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference Status Panel agent: both faces as built artefacts, against a real server and a real OpenBao."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from reference_agent import status_panel
from reference_agent.build import BREAKAGES, build

from reference_server.client import ReferenceServer, Tls, VaultLink
from world.ca import CertificateAuthority
from world.openbao import OpenBao

from .conftest import Launch, Process, Wire, eventually

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both faces, by the name of their binary."""
    panel, status = build(tmp_path_factory.mktemp("artefacts"))
    return {"status-panel": panel, "status": status}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enrolled(wire: Wire, server: ReferenceServer, name: str = "agent-1") -> dict[str, Any]:
    item: dict[str, Any] = wire.register(name).json["data"]["item"]
    eventually(lambda: server.accepts(name, item["agent_token"]))
    return item


def page(port: int, path: str) -> str | None:
    """A local page, or None while nobody serves it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return str(response.read().decode())
    except urllib.error.URLError:
        return None


def health(port: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(page(port, "/health") or "{}")
    return state


def guide_env(item: Mapping[str, Any], url: str, ca: Path, **more: str) -> dict[str, str]:
    """The guide's variables, with a short heartbeat and no credentials file of the machine."""
    return {
        "AGENT_ID": item["agent_id"],
        "AGENT_TOKEN": item["agent_token"],
        "DEPLOYMENT_HASH": "agent-1",
        "STACKER_URL": url,
        "AGENT_VERSION": "1.0.0",
        "SSL_CERT_FILE": str(ca),
        "HEARTBEAT_SECS": "0.2",
        "AGENT_CREDENTIALS_FILE": "/nonexistent/agent.json",
        **more,
    }


def shipped_env(item: Mapping[str, Any], url: str, ca: Path, **more: str) -> dict[str, str]:
    return {
        "AGENT_ID": item["agent_id"],
        "AGENT_TOKEN": item["agent_token"],
        "DEPLOYMENT_HASH": "agent-1",
        "DASHBOARD_URL": url,
        "SSL_CERT_FILE": str(ca),
        "POLLING_BACKOFF_SECS": "0.1",
        **more,
    }


def ended(process: Process) -> int:
    return process.popen.wait(timeout=15)


# --- Artefacts ------------------------------------------------------------------------------------


def test_artefacts_are_executable_and_match_their_checksums(artefacts: dict[str, Path]) -> None:
    assert sorted(path.name for path in artefacts.values()) == ["status-1.0.0-linux-any", "status-panel-1.0.0-linux-any"]
    for path in artefacts.values():
        digest, _spaces, name = path.with_name(f"{path.name}.sha256").read_text().strip().partition("  ")
        assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
        assert path.stat().st_mode & 0o777 == 0o755


def test_the_faces_tell_their_versions_and_themselves_apart(tmp_path: Path) -> None:
    panel, status = build(tmp_path, "2.3.4")
    said = [
        subprocess.run([path, option], capture_output=True, text=True, check=True).stdout
        for path in (panel, status)
        for option in ("--version", "--help")
    ]
    assert (said[0], said[2]) == ("status-panel 2.3.4\n", "2.3.4\n")
    assert "serve" in said[1]
    assert "--daemon" not in said[1]
    assert all(word in said[3] for word in ("--daemon", "--compose-mode", "init", "serve", "register"))


def test_an_artefact_for_another_machine_cannot_be_executed(tmp_path: Path) -> None:
    for path in build(tmp_path, broken="arch"):
        with pytest.raises(OSError, match="Exec format error"):
            subprocess.run([path], check=False)


def test_every_breakage_can_be_built(tmp_path: Path) -> None:
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for name in BREAKAGES for path in build(tmp_path / name, broken=name)}
    assert len(digests) == 2 * len(BREAKAGES) - 1


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=plain", "plain"),
        ("export KEY=plain", "plain"),
        ("KEY='sin gle'", "sin gle"),
        ('KEY="a \\"b\\" \\\\ c"', 'a "b" \\ c'),
        ("KEY=a=b==", "a=b=="),
        ("#KEY=no\nKEY=yes", "yes"),
    ],
)
def test_env_files_are_read_as_people_write_them(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / ".env").write_text(line + "\n")
    assert status_panel.env_file(tmp_path / ".env") == {"KEY": value}


# --- Documented face ------------------------------------------------------------------------------


@documented
def test_documented_agent_is_seen_and_healthy(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, port: int
) -> None:
    item = enrolled(wire, server)
    environment = guide_env(item, server.url, ca.ca_file)
    agent = launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], environment)
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)
    eventually(lambda: health(port) == {"status": "ok", "token_age_seconds": 0, "last_refresh_ok": None})
    assert "status_panel_token_age_seconds 0\n" in (page(port, "/metrics") or "")
    agent.popen.send_signal(signal.SIGTERM)
    assert ended(agent) == 0
    assert item["agent_token"] not in agent.said
    assert server.counters()["stacker"]["mutating"] == 1


@documented
def test_documented_agent_reads_env_file_under_the_real_environment(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, port: int, tmp_path: Path
) -> None:
    values = {**guide_env(enrolled(wire, server), server.url, ca.ca_file), "AGENT_PORT": str(port)}
    (tmp_path / ".env").write_text("".join(f"{key}={value}\n" for key, value in {**values, "STACKER_URL": "https://127.0.0.1:1"}.items()))
    launch([str(artefacts["status-panel"]), "serve"], {"STACKER_URL": server.url})
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)
    eventually(lambda: health(port).get("status") == "ok")


@documented
def test_documented_agent_takes_its_credentials_from_the_guides_file(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, port: int, tmp_path: Path
) -> None:
    item = enrolled(wire, server)
    kept = tmp_path / "agent.json"
    kept.write_text(json.dumps({"agent_id": item["agent_id"], "agent_token": item["agent_token"]}))
    values = guide_env(item, server.url, ca.ca_file, AGENT_CREDENTIALS_FILE=str(kept), AGENT_ID="", AGENT_TOKEN="")
    launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], values)
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)


@documented
def test_documented_agent_falls_back_to_the_command_list_and_carries_on(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, port: int
) -> None:
    item = enrolled(wire, server)
    server.fault("wait", "status", times=None, status=404)
    launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], guide_env(item, server.url, ca.ca_file))
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)
    assert server.counters()["by_route"]["commands"] > 0


@documented
def test_documented_agent_closes_the_commands_it_gets(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, port: int
) -> None:
    item, session = enrolled(wire, server), wire.login()
    wire.call("POST", "/api/v1/agent/commands/enqueue", {"deployment_hash": "agent-1", "command_type": "docker_ps"}, session)
    launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], guide_env(item, server.url, ca.ca_file))

    def status() -> str:
        commands = wire.call("GET", "/api/v1/agent/deployments/agent-1", headers=session).item["commands"]
        return str(commands[0]["status"])

    eventually(lambda: status() == "completed")


def test_documented_agent_follows_vault_and_survives_its_silence(
    tls: Tls,
    trust: ssl.SSLContext,
    vault: OpenBao,
    vault_link: VaultLink,
    artefacts: dict[str, Path],
    launch: Launch,
    port: int,
    ca: CertificateAuthority,
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(ca.ca_file.read_text() + vault.ca_file.read_text())
    with ReferenceServer.start("documented", tls=tls, vault=vault_link, arguments=["--overlap", "0"]) as server:
        wire = Wire(server.url, trust)
        item = enrolled(wire, server)
        eventually(lambda: vault.read("status_panel/agent-1/token") is not None)
        policy = vault.policy("agent-1", 'path "status_panel/agent-1/token" { capabilities = ["read"] }')
        values = guide_env(
            item,
            server.url,
            bundle,
            VAULT_ADDRESS=vault.url,
            VAULT_TOKEN=vault.token([policy]),
            VAULT_AGENT_PATH_PREFIX="status_panel",
            VAULT_REFRESH_SECS="0.3",
            VAULT_REFRESH_JITTER_SECS="0.1",
        )
        agent = launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], values)
        eventually(lambda: health(port).get("last_refresh_ok") is True)
        assert "Token rotated" not in agent.said

        new = "R" * 86
        vault.write("status_panel/agent-1/token", {"data": {"token": new}})
        eventually(lambda: "Token rotated" in agent.said)
        # The server learns of the change when it is asked: let it see Vault before Vault falls silent.
        assert server.accepts("agent-1", new)
        server.reset_counters()
        eventually(lambda: server.counters()["by_outcome"].get("wait", {}).get("200", 0) > 0)

        vault.seal()
        try:
            eventually(lambda: health(port).get("last_refresh_ok") is False)
            server.reset_counters()
            eventually(lambda: server.counters()["by_outcome"].get("wait", {}).get("200", 0) > 0)
            eventually(lambda: health(port)["token_age_seconds"] >= 1)
        finally:
            vault.unseal()
        eventually(lambda: health(port) == {"status": "ok", "token_age_seconds": 0, "last_refresh_ok": True})
        assert agent.popen.poll() is None
        assert not any(secret in agent.said for secret in (new, item["agent_token"], values["VAULT_TOKEN"]))


def test_documented_agent_refreshes_at_once_on_sighup(
    tls: Tls,
    trust: ssl.SSLContext,
    vault: OpenBao,
    vault_link: VaultLink,
    artefacts: dict[str, Path],
    launch: Launch,
    port: int,
    ca: CertificateAuthority,
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(ca.ca_file.read_text() + vault.ca_file.read_text())
    vault.write("status_panel/agent-1/token", {"data": {"token": "first"}})
    link = {"VAULT_ADDRESS": vault.url, "VAULT_TOKEN": vault.root_token, "VAULT_AGENT_PATH_PREFIX": "status_panel"}
    values = guide_env({"agent_id": "a", "agent_token": "first"}, "https://127.0.0.1:1", bundle, **link, VAULT_REFRESH_SECS="3600")
    agent = launch([str(artefacts["status-panel"]), "serve", "--port", str(port)], values)
    eventually(lambda: health(port).get("last_refresh_ok") is True)
    vault.write("status_panel/agent-1/token", {"data": {"token": "second"}})
    agent.popen.send_signal(signal.SIGHUP)
    eventually(lambda: "Token rotated" in agent.said)


def test_documented_agent_says_what_is_not_set(artefacts: dict[str, Path], launch: Launch) -> None:
    agent = launch([str(artefacts["status-panel"]), "serve"], {"AGENT_CREDENTIALS_FILE": "/nonexistent"})
    assert ended(agent) == 1
    assert agent.said == "error: not set: AGENT_ID, AGENT_TOKEN, DEPLOYMENT_HASH, STACKER_URL\n"


def test_a_taken_port_ends_the_agent_with_a_sentence(artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        values = guide_env({"agent_id": "a", "agent_token": "t"}, "https://127.0.0.1:1", ca.ca_file)
        agent = launch([str(artefacts["status-panel"]), "serve", "--port", number], values)
        assert ended(agent) == 1
        assert f"cannot listen on 127.0.0.1:{number}" in agent.said


# --- Shipped face ---------------------------------------------------------------------------------


@shipped
def test_shipped_daemon_heartbeats_and_serves_nothing(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, tmp_path: Path
) -> None:
    item = enrolled(wire, server)
    (tmp_path / "config.json").write_text('{"reqdata": {"email": "ops@example.test"}}')
    (tmp_path / ".env").write_text("".join(f"{key}={value}\n" for key, value in shipped_env(item, server.url, ca.ca_file).items()))
    agent = launch([str(artefacts["status"])])
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)
    agent.popen.send_signal(signal.SIGINT)
    assert ended(agent) == 0
    assert "long-polling configuration initialized" in agent.said
    assert item["agent_token"] not in agent.said


@shipped
def test_shipped_daemon_never_picks_up_a_rotated_token(
    wire: Wire, server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, ca: CertificateAuthority, tmp_path: Path
) -> None:
    item = enrolled(wire, server)
    (tmp_path / "config.json").write_text('{"reqdata": {"email": "ops@example.test"}}')
    server.drift("agent-1")
    agent = launch([str(artefacts["status"]), "-c", "config.json"], shipped_env(item, server.url, ca.ca_file))
    eventually(lambda: agent.said.count("polling error: unexpected status: 400") > 1)
    assert server.agent("agent-1")["last_heartbeat"] is None


@pytest.mark.parametrize(("vault_set", "ok"), [(True, True), (False, None)])
def test_shipped_serve_always_says_ok(
    artefacts: dict[str, Path], launch: Launch, tmp_path: Path, port: int, vault_set: bool, ok: bool | None
) -> None:
    (tmp_path / "config.json").write_text('{"reqdata": {"email": "ops@example.test"}}')
    link = {"VAULT_ADDRESS": "https://127.0.0.1:1", "VAULT_TOKEN": "none", "VAULT_AGENT_PATH_PREFIX": "p"} if vault_set else {}
    agent = launch([str(artefacts["status"]), "serve", "--port", str(port)], link)
    eventually(lambda: health(port).get("status") == "ok")
    state = health(port)
    assert set(state) == {"status", "token_age_seconds", "last_refresh_ok", "command_metrics"}
    assert state["last_refresh_ok"] is ok
    assert "status_panel_token_age_seconds" not in (page(port, "/metrics") or "")
    assert json.loads(page(port, "/metrics") or "{}")["disk_total_bytes"] > 0
    assert "docker" in json.loads(page(port, "/capabilities") or "{}")["features"]
    agent.popen.send_signal(signal.SIGINT)
    assert ended(agent) == 0


@pytest.mark.parametrize(
    ("config", "told"), [(None, "cannot read config file"), ("{", "is not JSON"), ('{"reqdata": {}}', "missing field reqdata.email")]
)
@pytest.mark.parametrize("command", [[], ["serve"]])
def test_shipped_agent_needs_its_configuration(
    artefacts: dict[str, Path], launch: Launch, tmp_path: Path, command: list[str], config: str | None, told: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    agent = launch([str(artefacts["status"]), *command])
    assert ended(agent) == 1
    assert told in agent.said


def test_shipped_init_writes_private_files_once(artefacts: dict[str, Path], launch: Launch, tmp_path: Path) -> None:
    command = [str(artefacts["status"]), "--config", str(tmp_path / "config.json"), "init"]
    assert [ended(launch(command)) for _run in range(2)] == [0, 1]
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


# --- Builds that fail, for red gates --------------------------------------------------------------


@documented
def test_a_build_with_a_bad_token_runs_but_is_never_seen(
    wire: Wire, server: ReferenceServer, launch: Launch, ca: CertificateAuthority, port: int, tmp_path: Path
) -> None:
    panel, _status = build(tmp_path, broken="badtoken")
    agent = launch([str(panel), "serve", "--port", str(port)], guide_env(enrolled(wire, server), server.url, ca.ca_file))
    eventually(lambda: "heartbeat refused (401)" in agent.said)
    assert health(port)["status"] == "ok"
    assert server.agent("agent-1")["last_heartbeat"] is None


@documented
def test_a_portless_build_heartbeats_and_serves_nothing(
    wire: Wire, server: ReferenceServer, launch: Launch, ca: CertificateAuthority, port: int, tmp_path: Path
) -> None:
    panel, _status = build(tmp_path, broken="portless")
    launch([str(panel), "serve", "--port", str(port)], guide_env(enrolled(wire, server), server.url, ca.ca_file))
    eventually(lambda: server.agent("agent-1")["last_heartbeat"] is not None)
    assert page(port, "/health") is None


def test_builds_that_exit_and_hang_do_that(launch: Launch, tmp_path: Path, port: int) -> None:
    exiting, _status = build(tmp_path / "exit", broken="exit")
    hanging, _status = build(tmp_path / "hang", broken="hang")
    ending, staying = launch([str(exiting), "serve"]), launch([str(hanging), "serve", "--port", str(port)])
    assert ended(ending) == 1
    eventually(lambda: staying.said == "starting\n")
    assert (staying.popen.poll(), page(port, "/health")) == (None, None)
