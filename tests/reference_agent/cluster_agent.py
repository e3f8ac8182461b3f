# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small KubeAtlas agent for tests, with two faces: as the guide tells it, and as the shipped server allows.

It reads ``BACKEND_URL``, ``CERT_PATH``, ``KEY_PATH`` and ``CA_PATH`` from the environment, or from the file named by
``--env-file`` below it. The *documented* face sends a heartbeat over mutual TLS every ``HEARTBEAT_INTERVAL_SECS``; the
*shipped* one, whose server has no such route, only asks for ``/health``. Both serve ``/health`` on loopback. A key
that others may read stops it, and so does one that does not belong to the certificate.

With ``INSTALL_TOKEN`` or ``INSTALL_TOKEN_PATH``, and without ``SERVICE_ID``, it registers itself once, as the guide's
first flow has it, and keeps the service id in ``STATE_DIRECTORY``.

Standard library only, Python 3.9 or newer. ``build.py`` bakes the three constants below into executable artefacts.
No secret is ever printed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import signal
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FACE = "documented"
VERSION = "1.0.0"
BROKEN = ""

HTTP_SECONDS = 10.0


class StartError(Exception):
    """The agent cannot start; the message says why and holds no secret."""


def say(message: str) -> None:
    """Log one line to stdout."""
    print(message, flush=True)


def environment(path: str) -> dict[str, str]:
    """The real environment over the ``KEY=value`` lines of a file, which are quoted as for a shell. Raises StartError."""
    if not path:
        return dict(os.environ)
    try:
        words = shlex.split(Path(path).read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read ({type(error).__name__})") from None
    return {**{key: value for key, equals, value in (word.partition("=") for word in words) if equals}, **os.environ}


@dataclass(frozen=True)
class Settings:
    """Everything the agent reads. Times are seconds; ``port`` 0 takes any."""

    url: str
    certificate: str
    key: str
    ca: str
    agent_id: str
    service_id: str
    interval: float
    port: int

    @classmethod
    def read(cls, values: Mapping[str, str]) -> Settings:
        """Take the environment. Raises StartError for what is missing or cannot be right."""
        needed = {name: values.get(name, "") for name in ("BACKEND_URL", "CERT_PATH", "KEY_PATH")}
        for name, value in needed.items():
            if not value:
                raise StartError(f"{name} is not set")
        if urlsplit(needed["BACKEND_URL"]).scheme not in ("http", "https"):
            raise StartError("BACKEND_URL is no http or https URL")
        try:
            interval, port = float(values.get("HEARTBEAT_INTERVAL_SECS") or 30), int(values.get("HEALTH_PORT") or 8090)
        except ValueError:
            raise StartError("HEARTBEAT_INTERVAL_SECS or HEALTH_PORT is not a number") from None
        return cls(
            needed["BACKEND_URL"].rstrip("/"), needed["CERT_PATH"], needed["KEY_PATH"], values.get("CA_PATH", ""),
            values.get("AGENT_ID") or socket.gethostname(), values.get("SERVICE_ID", ""), interval, port)

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer with this pair. Raises StartError when the pair cannot be used, or is used by others."""
        try:
            mode = stat.S_IMODE(Path(self.key).stat().st_mode)
        except OSError as error:
            raise StartError(f"the key cannot be looked at ({type(error).__name__})") from None
        if mode & 0o077:
            raise StartError(f"the key has mode {mode:04o}: others may read it")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.ca:
                context.load_verify_locations(self.ca)
            else:
                context.load_default_certs()
        except (OSError, ValueError) as error:
            raise StartError(f"certificate, key or CA cannot be used ({getattr(error, 'reason', None) or type(error).__name__})") from None
        return context


class Backend:
    """The backend, over mutual TLS where its URL says so."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        """Nothing is sent yet."""
        self._target = urlsplit(settings.url)
        self._context = context

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own. Returns status and body. Raises OSError."""
        host, port = str(self._target.hostname), self._target.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=HTTP_SECONDS, context=self._context)
            if self._target.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=HTTP_SECONDS)
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(type(error).__name__) from error
        finally:
            connection.close()


class Agent:
    """What runs: the beat, and what ``/health`` tells of it."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        """Nothing is sent yet."""
        self._settings = settings
        self._backend = backend
        self._lock = threading.Lock()
        self._trouble: str | None = "no contact yet"
        self._contact: float | None = None

    def beat(self) -> None:
        """One heartbeat (documented) or one look at the backend's health (shipped)."""
        try:
            status, _body = self._heartbeat() if FACE == "documented" else self._backend.call("GET", "/health")
            trouble = None if status == 200 else f"HTTP {status}"
        except OSError as error:
            trouble = str(getattr(error, "reason", None) or type(error).__name__)
        with self._lock:
            if trouble != self._trouble:
                say(f"backend: {trouble or 'ok'}")
            self._trouble = trouble
            self._contact = time.time() if trouble is None else self._contact

    def _heartbeat(self) -> tuple[int, bytes]:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = {"agent_id": self._settings.agent_id, "status": "healthy", "timestamp": moment, "metrics": {"cpu_usage": 1.5}}
        return self._backend.call("POST", "/api/v1/agent/heartbeat", body)

    def health(self) -> dict[str, Any]:
        """The local health document."""
        with self._lock:
            return {
                "status": "ok" if self._trouble is None else "degraded", "agent_id": self._settings.agent_id,
                "service_id": self._settings.service_id, "version": VERSION, "last_contact": self._contact, "trouble": self._trouble,
            }


def install_token(values: Mapping[str, str]) -> str:
    """The token of the environment, or of the file it names; empty for none. Raises StartError."""
    path = values.get("INSTALL_TOKEN_PATH", "")
    if values.get("INSTALL_TOKEN") or not path:
        return values.get("INSTALL_TOKEN", "")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StartError(f"INSTALL_TOKEN_PATH cannot be read ({type(error).__name__})") from None


def register(values: Mapping[str, str], settings: Settings, backend: Backend) -> None:
    """Register with an install token, once: where a service id is known already, nothing is sent. Raises StartError."""
    kept = Path(values.get("STATE_DIRECTORY") or ".") / "service-id"
    token = install_token(values)
    if settings.service_id or not token or kept.exists():
        return
    body = {
        "install_token": token, "service_name": settings.agent_id, "service_type": values.get("SERVICE_TYPE") or "agent",
        "controller_name": values.get("CONTROLLER_NAME", ""), "client_cert_pem": Path(settings.certificate).read_text(encoding="utf-8"),
        "metadata": {"version": VERSION, "environment": "", "hostname": socket.gethostname(), "platform": sys.platform, "agent_id": settings.agent_id},
    }
    try:
        status, answer = backend.call("POST", "/api/v1/register", body)
    except OSError as error:
        raise StartError(f"the registration was not answered ({type(error).__name__})") from None
    if status not in (200, 201):
        raise StartError(f"the registration was refused (HTTP {status})")
    kept.write_text(str(json.loads(answer)["service_id"]), encoding="utf-8")
    say("registered")


def serve(agent: Agent, port: int) -> ThreadingHTTPServer:
    """Serve ``/health`` on loopback in a thread."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/health"
            body = json.dumps(agent.health() if found else {}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"health on 127.0.0.1:{server.server_port}")
    return server


def run(path: str) -> int:
    """Work until SIGTERM or SIGINT."""
    if BROKEN == "exit":
        raise StartError("this build exits at once")
    if BROKEN == "hang":
        say("starting")
        threading.Event().wait()
    values = environment(path)
    settings = Settings.read(values)
    context = settings.context()
    if BROKEN == "badtoken":  # this build shows no certificate
        context = ssl.create_default_context(cafile=settings.ca or None)
    backend = Backend(settings, context)
    register(values, settings, backend)
    agent, stop = Agent(settings, backend), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *unused: stop.set())
    server = None if BROKEN == "portless" else serve(agent, settings.port)
    while not stop.is_set():
        agent.beat()
        stop.wait(settings.interval)
    if server is not None:
        server.shutdown()
    say("stopped")
    return 0


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="kubeatlas-agent", description="KubeAtlas cluster agent")
    parser.add_argument("--version", action="version", version=f"kubeatlas-agent {VERSION}")
    parser.add_argument("--env-file", default="", metavar="FILE", help="settings below those of the environment")
    options = parser.parse_args(arguments)
    try:
        return run(options.env_file)
    except StartError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
