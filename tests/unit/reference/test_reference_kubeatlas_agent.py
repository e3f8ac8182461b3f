# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference cluster agent: both faces as built artefacts, against a real server over mutual TLS."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference_agent.build import BREAKAGES, build

from reference_server.client import ReferenceServer, Tls
from world.agent_pairs import Issuer, Pair, issue
from world.ca import CertificateAuthority

from .conftest import Launch, Process, Wire, eventually

documented = pytest.mark.parametrize("contract", ["documented"])
shipped = pytest.mark.parametrize("contract", ["shipped"])


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both faces, by contract."""
    guide, ships = build(tmp_path_factory.mktemp("artefacts"), agent="cluster-agent")
    return {"documented": guide, "shipped": ships}


@pytest.fixture(scope="module")
def start(tls: Tls, ca: CertificateAuthority) -> Iterator[Callable[[str], ReferenceServer]]:
    servers: dict[str, ReferenceServer] = {}

    def get(contract: str) -> ReferenceServer:
        if contract not in servers:
            asking = Tls(tls.cert, tls.key, client_ca=str(ca.ca_file))
            servers[contract] = ReferenceServer.start(contract, tls=asking, arguments=["--plane", "kubeatlas"])
        servers[contract].reset()
        return servers[contract]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture
def server(start: Callable[[str], ReferenceServer], contract: str) -> ReferenceServer:
    return start(contract)


@pytest.fixture(scope="module")
def pair(ca: CertificateAuthority) -> Pair:
    return issue("agent-a-1", Issuer.of(ca))


@pytest.fixture
def settings(server: ReferenceServer, ca: CertificateAuthority, pair: Pair, tmp_path: Path) -> dict[str, str]:
    """The guide's variables, with a short interval and any port."""
    cert, key = pair.write(tmp_path / "certs")
    return {
        "BACKEND_URL": server.url, "CERT_PATH": str(cert), "KEY_PATH": str(key), "CA_PATH": str(ca.ca_file), "AGENT_ID": "a-1",
        "HEARTBEAT_INTERVAL_SECS": "0.1", "HEALTH_PORT": "0",
    }


def _enrol(server: ReferenceServer, trust: ssl.SSLContext, pem: str) -> None:
    token = server.act("kubeatlas", "mint", service_name="a-1", controller_name="c-1")["install_token"]
    body = {"install_token": token, "service_name": "a-1", "service_type": "agent", "controller_name": "c-1", "client_cert_pem": pem,
            "metadata": {"agent_id": "a-1"}}
    assert Wire(server.url, trust).call("POST", "/api/v1/register", body).status < 300


def _health(process: Process) -> dict[str, Any]:
    """The local health document; empty while nobody serves it."""
    port = next((line.rpartition(":")[2] for line in process.said.splitlines() if line.startswith("health on")), "")
    if not port:
        return {}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            document: dict[str, Any] = json.loads(answer.read())
            return document
    except urllib.error.URLError:
        return {}


@documented
def test_guides_agent_beats_over_mutual_tls(
    server: ReferenceServer, settings: dict[str, str], artefacts: dict[str, Path], launch: Launch, trust: ssl.SSLContext, pair: Pair) -> None:
    process = launch([str(artefacts["documented"])], settings)
    eventually(lambda: _health(process).get("trouble") == "HTTP 401")
    assert _health(process)["status"] == "degraded"
    _enrol(server, trust, pair.cert)
    eventually(lambda: _health(process).get("status") == "ok")
    assert server.agent("a-1")["last_heartbeat"] is not None
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(10) == 0


@shipped
def test_agent_of_the_shipped_server_asks_for_health_only(
    server: ReferenceServer, settings: dict[str, str], artefacts: dict[str, Path], launch: Launch) -> None:
    process = launch([str(artefacts["shipped"])], settings)
    eventually(lambda: _health(process).get("status") == "ok")
    assert set(server.counters()["by_route"]) == {"kubeatlas_health"}
    server.pause()
    eventually(lambda: _health(process).get("status") == "degraded")
    server.resume()
    eventually(lambda: _health(process).get("status") == "ok")


def test_settings_come_from_a_file_too(settings: dict[str, str], contract: str, artefacts: dict[str, Path], launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "agent.env").write_text("# settings\n" + "".join(f"{key}='{value}'\n" for key, value in settings.items()))
    process = launch([str(artefacts[contract]), "--env-file", "agent.env"])
    eventually(lambda: _health(process).get("agent_id") == "a-1")


def test_an_agent_with_an_install_token_registers_itself_once(
    server: ReferenceServer, settings: dict[str, str], contract: str, artefacts: dict[str, Path], launch: Launch, tmp_path: Path) -> None:
    token = server.act("kubeatlas", "mint", service_name="a-1", controller_name="c-1")["install_token"]
    (tmp_path / "token").write_text(f"{token}\n")
    own = {**settings, "INSTALL_TOKEN_PATH": str(tmp_path / "token"), "CONTROLLER_NAME": "c-1", "STATE_DIRECTORY": str(tmp_path)}
    for _start in range(2):
        process = launch([str(artefacts[contract])], own)
        eventually(lambda running=process: _health(running).get("status") == "ok")
        process.popen.kill()
        process.popen.wait()
    assert server.counters()["by_route"]["kubeatlas_register"] == 1
    assert (tmp_path / "service-id").read_text() == server.agent("a-1")["agent_id"]
    assert token not in process.said


@shipped
@pytest.mark.parametrize(("spoil", "words"), [
    (lambda settings: settings.pop("CERT_PATH"), "CERT_PATH is not set"),
    (lambda settings: settings.update(BACKEND_URL="backend:3001"), "BACKEND_URL is no"),
    (lambda settings: settings.update(HEALTH_PORT="x"), "not a number"),
    (lambda settings: Path(settings["KEY_PATH"]).chmod(0o640), "the key has mode 0640"),
    (lambda settings: Path(settings["KEY_PATH"]).unlink(), "the key cannot be looked at"),
    (lambda settings: Path(settings["KEY_PATH"]).write_text(issue("x").key), "certificate, key or CA cannot be used"),
    (lambda settings: settings.update(CA_PATH="/nonexistent"), "certificate, key or CA cannot be used"),
    (lambda settings: settings.update(INSTALL_TOKEN="t0ken-nobody-minted"), "the registration was refused (HTTP 400)"),
])
def test_an_agent_that_cannot_work_ends_with_the_reason(
    settings: dict[str, str], artefacts: dict[str, Path], launch: Launch, spoil: Callable[[dict[str, str]], object], words: str) -> None:
    spoil(settings)
    process = launch([str(artefacts["shipped"])], settings)
    assert process.popen.wait(20) == 1
    assert words in process.said
    assert "t0ken" not in process.said


@documented
@pytest.mark.parametrize("broken", [kind for kind in BREAKAGES if kind != "arch"])
def test_broken_builds_fail_in_their_way(
    server: ReferenceServer, settings: dict[str, str], launch: Launch, trust: ssl.SSLContext, pair: Pair, tmp_path: Path, broken: str) -> None:
    _enrol(server, trust, pair.cert)
    binary = build(tmp_path / "broken", broken=broken, agent="cluster-agent")[0]
    process = launch([str(binary)], settings)
    if broken == "exit":
        assert process.popen.wait(20) == 1
    elif broken == "hang":
        eventually(lambda: "starting" in process.said)
        assert _health(process) == {}
    elif broken == "badtoken":
        eventually(lambda: _health(process).get("trouble") == "HTTP 401")
    else:
        eventually(lambda: server.agent("a-1")["last_heartbeat"] is not None)
        assert _health(process) == {}


def test_artefacts_say_what_they_are(artefacts: dict[str, Path]) -> None:
    for path in artefacts.values():
        said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True).stdout
        assert said == "kubeatlas-agent 1.0.0\n"
    assert [path.name for path in artefacts.values()] == ["kubeatlas-agent-1.0.0-linux-any", "kubeatlas-agent-shipped-1.0.0-linux-any"]
