# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Status Panel agent for tests, with two faces: as the guide tells it, and as it ships.

The *documented* face is one process, ``status-panel serve``: it reads the environment and ``.env``,
refreshes its token from Vault, heartbeats, and serves ``/health`` and Prometheus ``/metrics``.
The *shipped* face is the binary ``status`` with a mandatory ``config.json``: without a subcommand it
polls the control plane and serves nothing, with ``serve`` it serves and polls nothing; its token is
read once.

Standard library only, Python 3.9 or newer. ``build.py`` bakes the three constants below into
executable artefacts. Nothing here registers an agent, and no secret is ever printed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import random
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FACE = "documented"
VERSION = "1.0.0"
BROKEN = ""

GUIDE_CREDENTIALS = "/var/lib/stacker/agent.json"
HTTP_SECONDS = 10.0
SHIPPED_FEATURES = ["monitoring", "docker", "compose", "logs", "restart", "pipes", "activate_pipe", "deactivate_pipe", "trigger_pipe"]


class StartError(Exception):
    """The agent cannot start; the message says why and holds no secret."""


def say(message: str) -> None:
    """Log one line to stdout."""
    print(message, flush=True)


# --- Settings -------------------------------------------------------------------------------------


def env_file(path: Path) -> dict[str, str]:
    """Read ``KEY=value`` lines; quotes are taken off, ``#`` lines and ``export`` are understood."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        # systemd may have read the file for an unprivileged service; then the environment has it all.
        say(f"warning: {path} is not readable ({type(error).__name__})")
        return {}
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        key = key[len("export ") :].strip() if key.startswith("export ") else key.strip()
        if equals and key and not key.startswith("#"):
            values[key] = unquoted(value.strip())
    return values


def unquoted(value: str) -> str:
    """Take off a pair of quotes; inside double quotes a backslash protects the next character."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    inner = value[1:-1]
    if value[0] == "'":
        return inner
    plain, protected = [], False
    for character in inner:
        if character == "\\" and not protected:
            protected = True
            continue
        plain.append(character)
        protected = False
    return "".join(plain)


def environment(parents: bool) -> dict[str, str]:
    """``.env`` of the working directory (or, with ``parents``, of the nearest one above), under the real environment."""
    here = Path.cwd()
    folders = [here, *here.parents] if parents else [here]
    for folder in folders:
        found = folder / ".env"
        if found.is_file():
            return {**env_file(found), **os.environ}
    return dict(os.environ)


def number(values: Mapping[str, str], key: str, default: float) -> float:
    """A number from the environment. Raises StartError."""
    try:
        return float(values.get(key) or default)
    except ValueError:
        raise StartError(f"{key} is not a number") from None


def used(token: str) -> str:
    """The token the agent works with; a build made to fail spoils it."""
    return token[::-1] + "x" if BROKEN == "badtoken" else token


@dataclass(frozen=True)
class Vault:
    """Where the agent reads its token."""

    address: str
    token: str
    prefix: str

    def leaf(self, name: str) -> str:
        """The URL of this agent's token."""
        return f"{self.address.rstrip('/')}/v1/{self.prefix.strip('/')}/{name}/token"


@dataclass(frozen=True)
class Settings:
    """Everything the documented face reads. Times are seconds."""

    agent_id: str
    token: str
    name: str
    url: str
    port: int
    bind: str
    vault: Vault | None
    refresh_every: float
    refresh_jitter: float | None
    heartbeat_every: float

    @classmethod
    def read(cls, values: Mapping[str, str], port: int | None) -> Settings:
        """Take the environment; id and token may come from the guide's agent.json. Raises StartError."""
        kept = kept_credentials(values.get("AGENT_CREDENTIALS_FILE", GUIDE_CREDENTIALS))
        agent_id = values.get("AGENT_ID") or kept.get("agent_id", "")
        token = values.get("AGENT_TOKEN") or kept.get("agent_token", "")
        name, url = values.get("DEPLOYMENT_HASH", ""), values.get("STACKER_URL", "").rstrip("/")
        needed = {"AGENT_ID": agent_id, "AGENT_TOKEN": token, "DEPLOYMENT_HASH": name, "STACKER_URL": url}
        missing = [key for key, value in needed.items() if not value]
        if missing:
            raise StartError(f"not set: {', '.join(missing)}")
        jitter = number(values, "VAULT_REFRESH_JITTER_SECS", 0) if values.get("VAULT_REFRESH_JITTER_SECS") else None
        return cls(
            agent_id,
            token,
            name,
            url,
            port or int(number(values, "AGENT_PORT", 5000)),
            values.get("AGENT_BIND") or "127.0.0.1",
            vault_of(values),
            number(values, "VAULT_REFRESH_SECS", 60),
            jitter,
            number(values, "HEARTBEAT_SECS", 5),
        )

    def pause(self) -> float:
        """Seconds until the next refresh: 60 and 5 to 10 more, so that a fleet does not ask Vault all at once."""
        return self.refresh_every + (random.uniform(5.0, 10.0) if self.refresh_jitter is None else self.refresh_jitter)


def vault_of(values: Mapping[str, str]) -> Vault | None:
    """Vault is on when all three variables are there."""
    keys = ("VAULT_ADDRESS", "VAULT_TOKEN", "VAULT_AGENT_PATH_PREFIX")
    return Vault(*(values[key] for key in keys)) if all(values.get(key) for key in keys) else None


def kept_credentials(path: str) -> dict[str, str]:
    """The guide's ``agent.json``, or nothing."""
    try:
        kept = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in kept.items() if isinstance(value, str)} if isinstance(kept, dict) else {}


# --- HTTP, as a client ----------------------------------------------------------------------------


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to somebody else."""

    def redirect_request(self, *unused: Any) -> None:
        """Follow nothing."""


class Http:
    """JSON over HTTP with the system's trust store, or ``SSL_CERT_FILE``."""

    def __init__(self, values: Mapping[str, str]) -> None:
        context = ssl.create_default_context(cafile=values.get("SSL_CERT_FILE") or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), NoRedirect())

    def call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, seconds: float = HTTP_SECONDS
    ) -> tuple[int, Any]:
        """Status and decoded body (None when it is no JSON). Raises OSError when there was no answer."""
        request = urllib.request.Request(url, data=body, method=method, headers=dict(headers))
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return response.status, decoded(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, decoded(error.read())


def decoded(body: bytes) -> Any:
    """JSON, or None."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def reason(error: Exception) -> str:
    """Why a call failed, in words that hold no secret."""
    inner = getattr(error, "reason", error)
    return f"{type(inner).__name__}: {inner}"


def item_of(payload: Any) -> Any:
    """The item of an answer: ``{"item"}`` as shipped, ``{"data": {"item"}}`` as documented."""
    if not isinstance(payload, dict):
        return None
    data = payload.get("data")
    return data.get("item") if isinstance(data, dict) else payload.get("item")


def command_result(name: str, command: Mapping[str, Any]) -> bytes:
    """The report that closes a command. This agent carries out nothing."""
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result = {"status": "completed", "command_status": "completed", "completed_at": finished, "result": {"echo": command.get("type")}}
    return json.dumps({"command_id": command.get("command_id"), "deployment_hash": name, **result}).encode()


# --- HTTP, as a server ----------------------------------------------------------------------------

Page = Callable[[], tuple[str, str]]


class Local(ThreadingHTTPServer):
    """The local pages. A page returns its content type and its text."""

    daemon_threads = True

    def __init__(self, bind: str, port: int, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        try:
            super().__init__((bind, port), LocalHandler)
        except OSError as error:
            raise StartError(f"cannot listen on {bind}:{port}: {error.strerror}") from None

    def server_bind(self) -> None:
        """Bind without the name look-up of the base class, which can hang where there is no resolver."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class LocalHandler(BaseHTTPRequestHandler):
    """Answers GET for the known pages."""

    def do_GET(self) -> None:
        """Serve one page."""
        pages = self.server.pages if isinstance(self.server, Local) else {}
        page = pages.get(self.path.partition("?")[0])
        kind, text = ("text/plain", "not found\n") if page is None else page()
        body = text.encode()
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Health checks are not worth a line."""


# --- Documented face ------------------------------------------------------------------------------


class TokenCache:
    """The token in use, how old it is, and whether the last refresh worked."""

    def __init__(self, token: str) -> None:
        self._lock = threading.Lock()
        self._token = token
        self._refreshed = time.monotonic()
        self._ok: bool | None = None

    def token(self) -> str:
        """The token for the next request."""
        with self._lock:
            return self._token

    def refreshed(self, token: str) -> bool:
        """Vault answered: take its token. True when it is another one."""
        with self._lock:
            changed = not hmac.compare_digest(self._token.encode(), token.encode())
            self._token, self._refreshed, self._ok = token, time.monotonic(), True
            return changed

    def failed(self) -> None:
        """Vault did not answer: keep what we have."""
        with self._lock:
            self._ok = False

    def state(self) -> tuple[int, bool | None]:
        """Seconds since the last successful refresh (or the start), and how the last one went."""
        with self._lock:
            return int(time.monotonic() - self._refreshed), self._ok


class DocumentedAgent:
    """One process that does everything."""

    def __init__(self, settings: Settings, http: Http) -> None:
        self.settings = settings
        self.http = http
        self.cache = TokenCache(used(settings.token))
        self.stop = threading.Event()
        self.refresh_now = threading.Event()
        self.heartbeats = {"accepted": 0, "refused": 0, "failed": 0}

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; SIGHUP refreshes the token now."""
        for wanted in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wanted, lambda *unused: self._end())
        signal.signal(signal.SIGHUP, lambda *unused: self.refresh_now.set())
        if self.settings.vault is not None:
            # Before anything is served, so that /health never claims a state nobody looked at.
            self.refresh(self.settings.vault)
            threading.Thread(target=self._refresh_loop, args=(self.settings.vault,), daemon=True).start()
        server = None if BROKEN == "portless" else Local(self.settings.bind, self.settings.port, self.pages())
        if server is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            say(f"listening on {self.settings.bind}:{server.server_port}")
        threading.Thread(target=self._heartbeat_loop, daemon=True).start()
        self.stop.wait()
        if server is not None:
            server.shutdown()
        say("stopped")
        return 0

    def pages(self) -> dict[str, Page]:
        """The local pages."""
        return {"/health": self._health, "/metrics": self._metrics}

    def refresh(self, vault: Vault) -> None:
        """Read the token once."""
        try:
            status, payload = self.http.call("GET", vault.leaf(self.settings.name), {"X-Vault-Token": vault.token}, seconds=5.0)
        except OSError as error:
            self.cache.failed()
            say(f"warning: Failed to fetch token from Vault ({reason(error)}); continuing with the current token")
            return
        outer = payload.get("data") if isinstance(payload, dict) else None
        inner = outer.get("data") if isinstance(outer, dict) else None
        token = inner.get("token") if isinstance(inner, dict) else None
        if status != 200 or not isinstance(token, str) or not token:
            self.cache.failed()
            said = status if status != 200 else "no token in the answer"
            say(f"warning: Failed to fetch token from Vault ({said}); continuing with the current token")
        elif self.cache.refreshed(used(token)):
            say("Token rotated")

    def heartbeat(self) -> None:
        """Ask for a command; the question is the heartbeat."""
        settings = self.settings
        headers = self._headers()
        url = f"{settings.url}/api/v1/agent/commands/wait/{settings.name}?timeout=1&interval=1"
        try:
            status, payload = self.http.call("GET", url, headers)
            if status == 404:
                status, payload = self.http.call("GET", f"{settings.url}/api/v1/commands", headers)
            command = item_of(payload) if status == 200 else None
            if isinstance(command, dict):
                report = command_result(settings.name, command)
                self.http.call("POST", f"{settings.url}/api/v1/agent/commands/report", headers, report)
        except OSError as error:
            self.heartbeats["failed"] += 1
            say(f"warning: heartbeat failed ({reason(error)})")
            return
        self.heartbeats["accepted" if status == 200 else "refused"] += 1
        if status != 200:
            say(f"warning: heartbeat refused ({status})")

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.cache.token()}",
            "X-Agent-Id": self.settings.agent_id,
            "Content-Type": "application/json",
        }

    def _refresh_loop(self, vault: Vault) -> None:
        while not self.stop.is_set():
            self.refresh_now.wait(self.settings.pause())
            self.refresh_now.clear()
            if not self.stop.is_set():
                self.refresh(vault)

    def _heartbeat_loop(self) -> None:
        while not self.stop.is_set():
            self.heartbeat()
            self.stop.wait(self.settings.heartbeat_every)

    def _end(self) -> None:
        self.stop.set()
        self.refresh_now.set()

    def _age(self) -> tuple[int, bool | None]:
        """Without Vault nothing is refreshed: the age is 0 and there is no last refresh."""
        return (0, None) if self.settings.vault is None else self.cache.state()

    def _health(self) -> tuple[str, str]:
        age, ok = self._age()
        return "application/json", json.dumps({"status": "ok", "token_age_seconds": age, "last_refresh_ok": ok})

    def _metrics(self) -> tuple[str, str]:
        age, ok = self._age()
        lines = [
            "# HELP status_panel_token_age_seconds Seconds since the token was last read from Vault.",
            "# TYPE status_panel_token_age_seconds gauge",
            f"status_panel_token_age_seconds {age}",
            "# HELP status_panel_heartbeats_total Heartbeats by result.",
            "# TYPE status_panel_heartbeats_total counter",
            *(f'status_panel_heartbeats_total{{result="{result}"}} {count}' for result, count in self.heartbeats.items()),
        ]
        if ok is not None:
            lines += ["# TYPE status_panel_last_refresh_ok gauge", f"status_panel_last_refresh_ok {int(ok)}"]
        return "text/plain; version=0.0.4", "\n".join(lines) + "\n"


def documented(arguments: list[str]) -> int:
    """``status-panel serve``."""
    parser = argparse.ArgumentParser(prog="status-panel", description="Status Panel agent")
    parser.add_argument("-V", "--version", action="version", version=f"status-panel {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="{serve}", required=True)
    serve = commands.add_parser("serve", help="run the agent")
    serve.add_argument("--port", type=int, help="port of /health and /metrics (default: AGENT_PORT, or 5000)")
    options = parser.parse_args(arguments)
    misbehave()
    values = environment(parents=False)
    return DocumentedAgent(Settings.read(values, options.port), Http(values)).run()


# --- Shipped face ---------------------------------------------------------------------------------


def shipped(arguments: list[str]) -> int:
    """``status``: a daemon that polls, or with ``serve`` a local API that does not."""
    parser = argparse.ArgumentParser(prog="status", description="Status Panel agent")
    parser.add_argument("-c", "--config", metavar="FILE", default="config.json", help="configuration file (default: config.json)")
    parser.add_argument("--daemon", action="store_true", help="run in background")
    parser.add_argument("--compose-mode", action="store_true", help="run as compose agent")
    parser.add_argument("-V", "--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the local API")
    serve.add_argument("--port", type=int, default=5000)
    serve.add_argument("--with-ui", action="store_true")
    init = commands.add_parser("init", help="write config.json and .env")
    init.add_argument("--force", action="store_true")
    register = commands.add_parser("register", help="register with a purchase token")
    register.add_argument("--purchase-token", required=True)
    register.add_argument("--stack-id", required=True)
    register.add_argument("--server", default="https://stacker.try.direct")
    for other in ("containers", "start", "stop", "restart", "pause", "health", "logs", "metrics", "update"):
        commands.add_parser(other).add_argument("rest", nargs="*")
    options = parser.parse_args(arguments)
    if options.command == "init":
        return write_initial_files(Path(options.config).parent, options.force)
    if options.command not in (None, "serve"):
        raise StartError(f"{options.command}: not part of this agent")
    misbehave()
    check_config(Path(options.config))
    values = environment(parents=True)
    return serve_locally(values, options.port) if options.command == "serve" else poll(values)


def check_config(path: Path) -> None:
    """The configuration file has to be there, with ``reqdata.email``. Raises StartError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"cannot read config file {path}: {error.strerror}") from None
    except ValueError:
        raise StartError(f"config file {path} is not JSON") from None
    request = config.get("reqdata") if isinstance(config, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("email"), str):
        raise StartError(f"config file {path}: missing field reqdata.email")


def write_initial_files(folder: Path, force: bool) -> int:
    """``status init``: templates for the operator to fill in."""
    texts = {
        "config.json": json.dumps({"reqdata": {"email": ""}}) + "\n",
        ".env": "AGENT_ID=\nAGENT_TOKEN=\nDEPLOYMENT_HASH=\nDASHBOARD_URL=\n",
    }
    for name in texts:
        if (folder / name).exists() and not force:
            raise StartError(f"{folder / name} exists (use --force)")
    for name, text in texts.items():
        with os.fdopen(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        say(f"wrote {folder / name}")
    return 0


def poll(values: Mapping[str, str]) -> int:
    """The daemon: long-poll for ever; only SIGINT stops it in an orderly way."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *unused: stop.set())
    threading.Thread(target=Poller.read(values).run, args=(stop,), daemon=True).start()
    stop.wait()
    say("daemon stopped")
    return 0


@dataclass(frozen=True)
class Poller:
    """What the daemon needs to ask for commands; read once, at the start."""

    agent_id: str
    token: str
    name: str
    base: str
    timeout: float
    backoff: float
    http: Http

    @classmethod
    def read(cls, values: Mapping[str, str]) -> Poller:
        """Take the environment, with the defaults the agent ships with. Raises StartError."""
        return cls(
            values.get("AGENT_ID", "default-agent"),
            used(values.get("AGENT_TOKEN", "")),
            values.get("DEPLOYMENT_HASH", "unknown-deployment"),
            values.get("DASHBOARD_URL", "http://localhost:5000"),
            number(values, "POLLING_TIMEOUT_SECS", 30),
            number(values, "POLLING_BACKOFF_SECS", 5),
            Http(values),
        )

    def run(self, stop: threading.Event) -> None:
        """Ask for ever; after a refusal or an error wait, then ask again with the same token."""
        say(f"long-polling configuration initialized timeout={self.timeout:.0f}")
        while not stop.is_set():
            trouble = self.ask()
            if trouble:
                say(f"polling error: {trouble}")
                stop.wait(self.backoff)

    def ask(self) -> str:
        """One long poll, and the report if it brought a command. Returns what went wrong, or nothing."""
        url = f"{self.base}/api/v1/agent/commands/wait/{self.name}?timeout={self.timeout:.0f}"
        try:
            status, payload = self.http.call("GET", url, signed(self.agent_id, self.token, b""), seconds=self.timeout + HTTP_SECONDS)
            command = item_of(payload) if status == 200 else None
            if isinstance(command, dict):
                body = command_result(self.name, command)
                self.http.call("POST", f"{self.base}/api/v1/agent/commands/report", signed(self.agent_id, self.token, body), body)
        except OSError as error:
            return reason(error)
        return "" if status == 200 else f"unexpected status: {status}"


def signed(agent_id: str, token: str, body: bytes) -> dict[str, str]:
    """The headers of every call the shipped agent makes: bearer, id, time, request id, signature of the body."""
    signature = base64.b64encode(hmac.new(token.encode(), body, hashlib.sha256).digest()).decode()
    return {
        "Authorization": f"Bearer {token}",
        "X-Agent-Id": agent_id,
        "X-Timestamp": str(int(time.time())),
        "X-Request-Id": str(uuid.uuid4()),
        "X-Agent-Signature": signature,
        "Content-Type": "application/json",
    }


def serve_locally(values: Mapping[str, str], port: int) -> int:
    """``status serve``: the local API. What it says of tokens is constant; that is how it ships."""
    started = time.monotonic()
    # As shipped, a variable that is set but empty counts as set.
    vault = all(key in values for key in ("VAULT_ADDRESS", "VAULT_TOKEN", "VAULT_AGENT_PATH_PREFIX"))
    counts = {
        "status_panel_count": 0,
        "compose_agent_count": 0,
        "total_count": 0,
        "last_control_plane": None,
        "last_command_timestamp_ms": 0,
    }

    def health() -> tuple[str, str]:
        age = int(time.monotonic() - started) if vault else 0
        state = {"status": "ok", "token_age_seconds": age, "last_refresh_ok": True if vault else None, "command_metrics": counts}
        return "application/json", json.dumps(state)

    def capabilities() -> tuple[str, str]:
        offered = {"compose_agent": False, "control_plane": "status_panel", "version": VERSION, "features": SHIPPED_FEATURES}
        return "application/json", json.dumps(offered)

    def metrics() -> tuple[str, str]:
        return "application/json", json.dumps(machine())

    if BROKEN == "portless":
        threading.Event().wait()
    pages = {"/health": health, "/capabilities": capabilities, "/metrics": metrics}
    server = Local(values.get("STATUS_PANEL_BIND") or "127.0.0.1", port, pages)
    say(f"local API on {server.server_name}:{server.server_port}")
    signal.signal(signal.SIGINT, lambda *unused: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    return 0


def machine() -> dict[str, Any]:
    """Memory and disk of this machine; 0 where the sandbox hides it."""
    disk = shutil.disk_usage("/")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except (OSError, ValueError, IndexError):
        memory = {}
    total = memory.get("MemTotal", 0)
    taken = total - memory.get("MemAvailable", 0)
    return {
        "timestamp_ms": int(time.time() * 1000),
        "cpu_usage_pct": 0.0,
        "memory_total_bytes": total,
        "memory_used_bytes": taken,
        "memory_used_pct": round(100 * taken / total, 1) if total else 0.0,
        "disk_total_bytes": disk.total,
        "disk_used_bytes": disk.used,
        "disk_used_pct": round(100 * disk.used / disk.total, 1),
    }


# --- Both -----------------------------------------------------------------------------------------


def misbehave() -> None:
    """What a build made to fail does instead of working."""
    if BROKEN == "exit":
        raise StartError("this build exits at once")
    if BROKEN == "hang":
        say("starting")
        threading.Event().wait()


def main(arguments: list[str]) -> int:
    """Run the face this file was built with."""
    try:
        return documented(arguments) if FACE == "documented" else shipped(arguments)
    except StartError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
