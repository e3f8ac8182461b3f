# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the reference server and agent: running servers over TLS, and a plain client."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from reference_server.client import ReferenceServer, Tls, VaultLink
from world.ca import CertificateAuthority
from world.openbao import OpenBao

REGISTER = "/api/v1/agent/register"
NOTIFICATIONS = "/api/v1/agent/notifications"
USER = ("operator@example.test", "correct horse")


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded; raises ValueError when it is no JSON."""
        return json.loads(self.body)

    @property
    def item(self) -> Any:
        """``item``, wherever the contract puts it."""
        payload = self.json
        return payload["data"]["item"] if "data" in payload else payload["item"]


class Wire:
    """A client of one server: one connection for each call, nothing hidden."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        self._target = urlsplit(url)
        self._context = context

    def call(
        self, method: str, path: str, body: object | None = None, headers: Mapping[str, str] | None = None, timeout: float = 20
    ) -> Reply:
        """Send; a body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        host, port = str(self._target.hostname), self._target.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
            if self._context
            else http.client.HTTPConnection(host, port, timeout=timeout)
        )
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def register(self, name: str = "agent-1", key: str | None = None, **changes: Any) -> Reply:
        """Register an agent."""
        body = {"deployment_hash": name, "agent_version": "1.0.0", "capabilities": ["docker"], "system_info": {"os": "linux"}, **changes}
        return self.call("POST", REGISTER, body, {"Idempotency-Key": key} if key else None)

    def prove(self, item: Mapping[str, Any], name: str = "agent-1", token: str | None = None) -> Reply:
        """Use a credential without any effect."""
        return self.call("GET", f"{NOTIFICATIONS}?deployment_hash={name}", headers=bearer(item, token))

    def login(self) -> dict[str, str]:
        """Log in and return the headers of the session."""
        session = self.call("POST", "/api/v1/agent/login", {"email": USER[0], "password": USER[1]}).json
        return {"Authorization": f"Bearer {session['session_token']}"}


def bearer(item: Mapping[str, Any], token: str | None = None) -> dict[str, str]:
    """The headers of an agent."""
    return {"X-Agent-Id": str(item["agent_id"]), "Authorization": f"Bearer {token or item['agent_token']}"}


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def tls(ca: CertificateAuthority) -> Tls:
    pair = ca.server()
    return Tls(str(pair.cert), str(pair.key))


@pytest.fixture(scope="session")
def trust(ca: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca.ca_file))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    (folder / "agent-1.0.0").write_bytes(b"\x00release\xff")
    return folder


Running = Callable[[str], ReferenceServer]


@pytest.fixture(scope="session")
def running(tls: Tls, releases: Path) -> Iterator[Running]:
    """One server for each contract, started when first asked for."""
    servers: dict[str, ReferenceServer] = {}

    def get(contract: str) -> ReferenceServer:
        if contract not in servers:
            arguments = ["--user", ":".join(USER), "--releases", str(releases)]
            servers[contract] = ReferenceServer.start(contract, tls=tls, arguments=arguments)
        return servers[contract]

    yield get
    codes = [server.stop() for server in servers.values()]
    assert set(codes) <= {0}


@pytest.fixture(params=["documented", "shipped"])
def contract(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(running: Running, contract: str) -> ReferenceServer:
    """An empty server; tests that need one contract set ``contract`` by parametrizing it."""
    found = running(contract)
    found.reset()
    return found


@pytest.fixture
def wire(server: ReferenceServer, trust: ssl.SSLContext) -> Wire:
    return Wire(server.url, trust)


@pytest.fixture(scope="session")
def vault() -> Iterator[OpenBao]:
    """A real OpenBao with the mounts of both KV versions."""
    with OpenBao() as started:
        started.enable_kv("status_panel", 1)
        started.enable_kv("secret", 2)
        yield started


@pytest.fixture(scope="session")
def vault_link(vault: OpenBao) -> VaultLink:
    return VaultLink(vault.url, str(vault.token_file), str(vault.ca_file))


def eventually(check: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until the check holds. The limit only ends a test that would fail anyway."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@dataclass
class Process:
    """An agent that runs: its process and everything it said."""

    popen: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


Launch = Callable[..., Process]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a program in the test's folder with an environment of its own; whatever still runs is ended afterwards."""
    started: list[Process] = []

    def start(command: list[str], environment: Mapping[str, str] | None = None) -> Process:
        output = tmp_path / f"output-{len(started)}.txt"
        with output.open("wb") as sink:
            popen = subprocess.Popen(command, cwd=tmp_path, env=dict(environment or {}), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        started.append(Process(popen, output))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()
