# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small pgAnalytics collector for tests, with two faces: as the guide tells it, and as it ships.

The *documented* face is ``pganalytics --config FILE``: it reads the guide's TOML, every section of it, pushes metrics each interval with its token
and its client certificate, serves ``/health``, writes a status file, and offers ``--validate``, ``--dry-run`` and ``--verbose``.
The *shipped* face knows the actions ``cron``, ``register`` and ``help`` and no option at all; it reads ``/etc/pganalytics/collector.toml`` with a
parser of its own, its token and id from ``/var/lib/pganalytics``, refreshes the token in memory before each push, serves nothing, and calls
every push a success that was answered at all.

Standard library only, Python 3.9 or newer. ``build.py`` bakes the three constants below into executable artefacts. No database is asked; the
metrics are made up. ``MUSTER_TEST_ROOT`` stands before every absolute path, so that tests need no real ``/etc``; the real collector has no such thing.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import http.client
import importlib
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FACE = "documented"
VERSION = "1.0.0"
BROKEN = ""

ROOT = os.environ.get("MUSTER_TEST_ROOT", "")
CONFIG = "/etc/pganalytics/collector.toml"
TOKEN_FILE, ID_FILE = "/var/lib/pganalytics/collector.token", "/var/lib/pganalytics/collector.id"
CERTIFICATE_FILE, KEY_FILE = "/etc/pganalytics/collector.crt", "/etc/pganalytics/collector.key"
HTTP_SECONDS = 10.0
SHIPPED_PARTS = (
    "pg_stats", "sysstat", "disk_usage", "pg_log", "pg_replication", "pg_schema", "pg_locks", "pg_bloat", "pg_cache", "pg_connections",
    "pg_extensions", "pg_query_stats")


class StartError(Exception):
    """The collector cannot start; the message says why and holds no secret."""


def say(message: str) -> None:
    """Log one line to stdout."""
    print(message, flush=True)


def place(path: str) -> Path:
    """Where an absolute path lies for this process."""
    return Path(f"{ROOT}{path}") if path.startswith("/") else Path(path)


def reason(error: Exception) -> str:
    """Why a call failed, in words that hold no secret."""
    inner = getattr(error, "reason", error)
    return f"{type(inner).__name__}: {inner}"


# --- TOML -----------------------------------------------------------------------------------------

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9](?:_?\d)*)(\.\d(?:_?\d)*)?(?:[eE][+-]?\d+)?\Z")
_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def read_toml(text: str) -> dict[str, Any]:
    """Read TOML with Python's own reader, or below 3.11 with the part of it that configurations use. Raises StartError naming the line."""
    try:
        library = importlib.import_module("tomllib")
    except ImportError:
        return SmallToml(text).read()
    try:
        parsed: dict[str, Any] = library.loads(text)
    except ValueError as error:
        found = re.search(r"at line (\d+)", str(error))
        raise StartError(f"not TOML, line {found.group(1) if found else '?'}") from None
    return parsed


class SmallToml:
    """Tables, bare keys, basic and literal strings, numbers, booleans, and arrays that may span lines; anything else is refused."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._at = 0

    def read(self) -> dict[str, Any]:
        """Return the document."""
        document: dict[str, Any] = {}
        table, seen = document, set()
        while self._at < len(self._lines):
            line = self._plain(self._lines[self._at])
            self._at += 1
            if not line:
                continue
            if line.startswith("["):
                name = line[1:-1].strip()
                if not line.endswith("]") or not _BARE_KEY.match(name) or name in seen:
                    raise self._wrong()
                seen.add(name)
                table = document.setdefault(name, {})
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not _BARE_KEY.match(key) or key in table:
                raise self._wrong()
            table[key] = self._value(self._whole(value))
        return document

    def _whole(self, value: str) -> str:
        """An array that is not closed on its line goes on in the next ones."""
        while value.startswith("[") and not value.endswith("]"):
            if self._at >= len(self._lines):
                raise self._wrong()
            value = f"{value} {self._plain(self._lines[self._at])}".strip()
            self._at += 1
        return value

    def _plain(self, line: str) -> str:
        """The line without its comment."""
        kept, quote, escaped = [], "", False
        for character in line:
            if not quote and character == "#":
                break
            if quote and character == quote and not escaped:
                quote = ""
            elif not quote and character in "\"'":
                quote = character
            escaped = quote == '"' and character == "\\" and not escaped
            kept.append(character)
        return "".join(kept).strip()

    def _value(self, text: str) -> Any:
        if text in ("true", "false"):
            return text == "true"
        if text.startswith("["):
            return self._array(text[1:-1])
        if len(text) >= 2 and text[0] == text[-1] == "'" and "'" not in text[1:-1]:
            return text[1:-1]
        if len(text) >= 2 and text[0] == text[-1] == '"':
            return self._string(text[1:-1])
        found = _NUMBER.match(text)
        if found is None:
            raise self._wrong()
        plain = text.replace("_", "")
        return float(plain) if found.group(1) or "e" in plain.lower() else int(plain)

    def _array(self, inner: str) -> list[Any]:
        items = re.findall(r'\s*("(?:[^"\\]|\\.)*"|\'[^\']*\'|[^,"\'\s]+)\s*(?:,|\Z)', inner)
        if re.sub(r'("(?:[^"\\]|\\.)*"|\'[^\']*\'|[^,"\'\s]+)|[,\s]', "", inner):
            raise self._wrong()
        return [self._value(item) for item in items]

    def _string(self, inner: str) -> str:
        plain, rest = [], iter(inner)
        for character in rest:
            if character == '"':
                raise self._wrong()
            if character != "\\":
                plain.append(character)
                continue
            code = next(rest, "")
            if code in ("u", "U"):
                digits = "".join(next(rest, "") for _digit in range(4 if code == "u" else 8))
                with contextlib.suppress(ValueError):
                    plain.append(chr(int(digits, 16)))
                    continue
            if code not in _ESCAPES:
                raise self._wrong()
            plain.append(_ESCAPES[code])
        return "".join(plain)

    def _wrong(self) -> StartError:
        return StartError(f"not TOML, line {self._at}")


# --- Calls ----------------------------------------------------------------------------------------


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to somebody else."""

    def redirect_request(self, *unused: Any) -> None:
        """Follow nothing."""


def call(context: ssl.SSLContext, method: str, url: str, token: str, body: bytes | None) -> tuple[int, Any]:
    """Send one request with a bearer token. Returns status and decoded body. Raises OSError when there was no answer."""
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), NoRedirect(), urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "User-Agent": f"pganalytics-collector/{VERSION}"}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with opener.open(request, timeout=HTTP_SECONDS) as response:
            return response.status, decoded(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, decoded(error.read())
    except http.client.HTTPException as error:
        raise OSError(reason(error)) from error


def decoded(body: bytes) -> Any:
    """JSON, or None."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def report(collector_id: str, hostname: str, metrics: int) -> bytes:
    """The body of a push."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    made_up = [{"type": "pg_stat_database", "value": number} for number in range(metrics)]
    body = {"collector_id": collector_id, "hostname": hostname, "timestamp": moment, "version": VERSION, "metrics_count": metrics, "metrics": made_up}
    return json.dumps(body).encode()


def used(token: str) -> str:
    """The token the collector works with; a build made to fail spoils it."""
    return token[::-1] if BROKEN == "badtoken" else token


# --- Documented face ------------------------------------------------------------------------------

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "collector.id": str, "collector.hostname": str, "collector.interval": int, "collector.log_level": str, "collector.log_file": str,
    "backend.url": str, "backend.jwt_token": str, "backend.tls_cert": str, "backend.tls_key": str, "backend.ca_cert": str, "backend.verify_ssl": bool,
    "backend.push_timeout": int, "backend.max_retries": int, "backend.retry_backoff": str, "backend.token_refresh_days": int,
    "postgres.host": str, "postgres.port": int, "postgres.user": str, "postgres.password": str, "postgres.databases": list,
    "postgres.exclude_databases": list, "postgres.ssl_mode": str, "metrics.sample_rate": int, "metrics.exclude_metrics": list,
    "security.tls_enabled": bool, "security.verify_certificate": bool, "health_check.enabled": bool, "health_check.port": int,
    "health_check.path": str, "health_check.status_file": str, "telemetry.prometheus_enabled": bool,
}
_NEEDED = ("collector.id", "collector.hostname", "collector.interval", "backend.url", "backend.jwt_token", "postgres.host", "postgres.port", "postgres.user")
_CHOICES = {
    "collector.log_level": ("trace", "debug", "info", "warn", "error"), "backend.retry_backoff": ("exponential", "linear"),
    "postgres.ssl_mode": ("disable", "allow", "prefer", "require"),
}


class Settings:
    """The guide's configuration, checked."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Raises StartError naming the key that is missing or wrong."""
        self._document = document
        for key in _NEEDED:
            if self.get(key) in (None, ""):
                raise StartError(f"{key} is missing")
        for key, kind in _KINDS.items():
            value = self.get(key)
            if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
                raise StartError(f"{key} is of the wrong type")
        for key, choices in _CHOICES.items():
            if self.get(key, choices[0]) not in choices:
                raise StartError(f"{key} is not one of {', '.join(choices)}")
        if not re.match(r"https?://[^/\s]+\Z", self.get("backend.url")):
            raise StartError("backend.url is no URL without a path")
        if not 0 <= self.get("metrics.sample_rate", 100) <= 100 or not 0 < self.get("health_check.port", 9090) < 65536:
            raise StartError("metrics.sample_rate or health_check.port is out of range")
        if not claims_of(self.get("backend.jwt_token")):
            raise StartError("backend.jwt_token is no JWT")

    @classmethod
    def read(cls, path: str) -> Settings:
        """Read a file. Raises StartError."""
        try:
            text = place(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"cannot read {path} ({type(error).__name__})") from None
        return cls(read_toml(text))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``section.key``."""
        section, _dot, name = key.partition(".")
        table = self._document.get(section, {})
        return table.get(name, default) if isinstance(table, dict) else default

    def context(self) -> ssl.SSLContext:
        """TLS as it is configured: 1.3 at least, the CA's file, the client's pair. Raises StartError."""
        verify = self.get("backend.verify_ssl", True) and self.get("security.verify_certificate", True)
        ca, certificate, key = (self.get(f"backend.{name}", "") for name in ("ca_cert", "tls_cert", "tls_key"))
        try:
            context = ssl.create_default_context(cafile=str(place(ca)) if ca else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if not verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if certificate:
                context.load_cert_chain(place(certificate), place(key))
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"backend.ca_cert, tls_cert or tls_key cannot be used ({type(error).__name__})") from None
        return context


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a JWT, empty when it is none."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))) if len(parts) == 3 else {}
    except (binascii.Error, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


class DocumentedCollector:
    """Pushes, and tells how it is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.context = settings.context()
        self.token = used(settings.get("backend.jwt_token"))
        self.stop = threading.Event()
        self.pushed = 0
        self.trouble = "nothing was pushed yet"

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT."""
        for wanted in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wanted, lambda *unused: self.stop.set())
        settings = self.settings
        server = self.server() if settings.get("health_check.enabled", False) and BROKEN != "portless" else None
        if server is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        say(f"INFO: Collector started with ID: {settings.get('collector.id')}")
        while not self.stop.is_set():
            self.push()
            self.write_status()
            self.stop.wait(settings.get("collector.interval"))
        if server is not None:
            server.shutdown()
        return 0

    def push(self, metrics: int = 3) -> None:
        """Send one round of metrics; an expired token is exchanged once."""
        settings = self.settings
        url = f"{settings.get('backend.url')}/api/v1/metrics/push"
        body = report(settings.get("collector.id"), settings.get("collector.hostname"), metrics)
        try:
            status, answer = call(self.context, "POST", url, self.token, body)
        except OSError as error:
            self.trouble = reason(error)
            say(f"ERROR: push failed ({self.trouble})")
            return
        said = answer.get("message", "") if isinstance(answer, dict) else ""
        self.trouble = "" if status == 200 else f"HTTP {status} {said}".strip()
        if status == 200:
            self.pushed += metrics
            say(f"INFO: Pushing metrics... ({metrics} metrics in 1ms)")
        else:
            say(f"ERROR: push refused ({self.trouble})")

    def health(self) -> dict[str, Any]:
        """What the health page says."""
        state = "degraded" if self.trouble else "healthy"
        return {"status": state, "collector_id": self.settings.get("collector.id"), "metrics_pushed": self.pushed, "last_error": self.trouble or None}

    def write_status(self) -> None:
        """Write the same into the status file, in one step."""
        path = self.settings.get("health_check.status_file", "")
        if not path:
            return
        target = place(path)
        beside = target.with_name(f".{target.name}.new")
        try:
            beside.write_text(json.dumps(self.health()) + "\n", encoding="utf-8")
            beside.replace(target)
        except OSError as error:
            say(f"WARNING: cannot write {path} ({type(error).__name__})")

    def server(self) -> ThreadingHTTPServer:
        """The health page. Raises StartError when its port is taken."""
        collector, path = self, self.settings.get("health_check.path", "/health")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(collector.health()).encode()
                self.send_response(200 if self.path == path else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Health checks are not worth a line."""

        port = self.settings.get("health_check.port", 9090)
        try:
            return Local(("127.0.0.1", port), Handler)
        except OSError as error:
            raise StartError(f"cannot listen on port {port}: {error.strerror}") from None


class Local(ThreadingHTTPServer):
    """A server that binds without the name look-up of the base class, which can hang where there is no resolver."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def documented(arguments: list[str]) -> int:
    """``pganalytics --config FILE [--validate|--dry-run] [--verbose]``."""
    parser = argparse.ArgumentParser(prog="pganalytics", description="pgAnalytics collector")
    parser.add_argument("--config", metavar="FILE", default=CONFIG, help="configuration file (default: %(default)s)")
    parser.add_argument("--validate", action="store_true", help="check the configuration, and end")
    parser.add_argument("--dry-run", action="store_true", help="try everything but the push, and end")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--version", action="version", version=f"pganalytics {VERSION}")
    options = parser.parse_args(arguments)
    settings = Settings.read(options.config)
    if options.verbose:
        say(f"DEBUG: configuration of {settings.get('collector.id')} for {settings.get('backend.url')}")
    if options.validate:
        settings.context()
        say("configuration is valid")
        return 0
    if options.dry_run:
        return dry_run(settings)
    misbehave()
    return DocumentedCollector(settings).run()


def dry_run(settings: Settings) -> int:
    """Show the token where that changes nothing. Raises StartError when it is refused."""
    url, token = f"{settings.get('backend.url')}/api/v1/collectors/token/info", settings.get("backend.jwt_token")
    try:
        status, _answer = call(settings.context(), "GET", url, token, None)
    except OSError as error:
        raise StartError(f"the backend cannot be reached ({reason(error)})") from None
    if status in (401, 403):
        raise StartError(f"the backend refuses the token ({status})")
    say("dry run: the backend takes the token")
    return 0


# --- Shipped face ---------------------------------------------------------------------------------


def mini_parser(text: str) -> dict[str, str]:
    """Read ``key = value`` lines as the shipped collector does: nothing is ever wrong, comments behind values belong to them, the last one counts."""
    found, section = {}, ""
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals:
            found[f"{section}.{key}"] = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    return found


@dataclass
class ShippedCollector:
    """What the shipped collector keeps in memory."""

    url: str
    collector_id: str
    hostname: str
    push_interval: float
    token: str
    context: ssl.SSLContext
    parts: tuple[str, ...]
    databases: tuple[str, ...]

    @classmethod
    def read(cls) -> ShippedCollector:
        """Read configuration, token and id, once. Raises StartError when there is no configuration."""
        try:
            values = mini_parser(place(CONFIG).read_text(encoding="utf-8"))
        except OSError:
            raise StartError(f"cannot read {CONFIG}") from None
        parts = tuple(part for part in SHIPPED_PARTS if values.get(f"{part}.enabled", "true").lower() in ("true", "yes", "1"))
        listed = tuple(name.strip() for name in values.get("postgres.databases", "").split(",") if name.strip())
        return cls(
            values.get("backend.url", "https://localhost:8080"), first_line(ID_FILE) or values.get("collector.id", "collector-001"),
            values.get("collector.hostname", "localhost"), float(values.get("collector.push_interval", "60")), used(first_line(TOKEN_FILE)),
            cls.tls(values), parts, listed or (values.get("postgres.database", "postgres"),))

    @staticmethod
    def tls(values: Mapping[str, str]) -> ssl.SSLContext:
        """TLS 1.2 at least; the CA file is read by nobody, so that only the system's CAs count, and those only when ``tls.verify`` is set."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if values.get("tls.verify", "false") != "true":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = place(values.get("tls.cert_file", CERTIFICATE_FILE)), place(values.get("tls.key_file", KEY_FILE))
        if certificate.exists() and key.exists():
            with contextlib.suppress(ssl.SSLError, OSError):
                context.load_cert_chain(certificate, key)
        return context

    def round(self) -> None:
        """Refresh the token, in memory alone, then push. Any answer at all counts as a success."""
        try:
            status, answer = call(self.context, "POST", f"{self.url}/api/v1/collectors/refresh-token", self.token, b"")
            if status == 200 and isinstance(answer, dict) and isinstance(answer.get("token"), str):
                self.token = used(answer["token"])
            body = report(self.collector_id, self.hostname, len(self.parts))
            call(self.context, "POST", f"{self.url}/api/v1/metrics/push", self.token, body)
        except OSError as error:
            say(f"Failed to push metrics: {reason(error)}")
            return
        say("Metrics pushed successfully")


def first_line(path: str) -> str:
    """The first line of a file, empty when it cannot be read."""
    try:
        return (place(path).read_text(encoding="utf-8").splitlines() or [""])[0]
    except OSError:
        return ""


def shipped(arguments: list[str]) -> int:
    """``pganalytics [cron|register|help]``."""
    action = arguments[0] if arguments else "cron"
    if action == "help":
        say("Usage: pganalytics [ACTION]\nActions: cron (default), register, help")
        return 0
    if action == "register":
        return register()
    if action != "cron":
        print(f"Unknown action: {action}\nUse: pganalytics help", file=sys.stderr, flush=True)
        return 1
    misbehave()
    collector = ShippedCollector.read()
    stop = threading.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda *unused: stop.set())
    say("pgAnalytics collector started in cron mode")
    while not stop.is_set():
        collector.round()
        stop.wait(collector.push_interval)
    say("Collector stopped")
    return 0


def register() -> int:
    """Register with the secret in the environment, and write four files. The real one prints the whole reply, which this one does not."""
    secret = os.environ.get("REGISTRATION_SECRET", "")
    try:
        values = mini_parser(place(CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise StartError(f"cannot read {CONFIG}") from None
    if not secret:
        raise StartError("REGISTRATION_SECRET is not set")
    hostname = values.get("collector.hostname", "localhost")
    request = urllib.request.Request(
        f"{values.get('backend.url', 'https://localhost:8080')}/api/v1/collectors/register", json.dumps({
            "name": hostname, "hostname": hostname, "version": "3.0.0"}).encode(),
        {"Content-Type": "application/json", "X-Registration-Secret": secret}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS, context=ShippedCollector.tls(values)) as response:
            answer = json.loads(response.read())
    except (OSError, ValueError) as error:
        raise StartError(f"registration failed ({type(error).__name__})") from None
    for path, key in ((TOKEN_FILE, "token"), (ID_FILE, "collector_id"), (CERTIFICATE_FILE, "certificate"), (KEY_FILE, "private_key")):
        target = place(path)
        target.write_text(answer[key] + ("" if answer[key].endswith("\n") else "\n"), encoding="utf-8")
        target.chmod(0o600)
    say("Registration successful")
    return 0


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
