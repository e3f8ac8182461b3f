# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""oxmon, the control plane of metrics agents, in both of its contracts.

``DocumentedOxmon`` is the published guide: no login, bare JSON, the guide's two tables, tokens as bcrypt hashes alone, and an interceptor
that looks at ``authorization`` only. ``ShippedOxmon`` is the server that ships (wire contract, sections 1 to 5): an envelope, an encrypted
login, rate limits, row ids, regeneration, report logs, and ``agent-id`` beside the token.

Not offered, since no operator's tool needs it here: administration of further users, notification channels, dictionaries, cloud and AI checks.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import hmac
import importlib.util
import itertools
import json
import os
import re
import secrets
import sqlite3
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .core import Answer, Call, ControlPlane, RefusalError, Route, Shared
from .faults import TRANSPORT
from .oxmon_body import Field, json_object
from .oxmon_certificates import Certificates

if TYPE_CHECKING:
    from .oxmon_grpc import Admission, Batch, GrpcListener, Outcome

VERSION = "0.1.12"
REPORT = "oxmon_report"
MAX_POINTS = 10000
LOGIN_WINDOW = 300
JWT_LIFE = 86400
JWT_LEEWAY = 60
LOCK_FAILURES = 5
LOCK_SECONDS = 3 * 3600
PAGE = 20
LARGEST_PAGE = 1000

_SYSTEM_INFO = ("hostname", "os", "os_version", "arch", "kernel_version", "cpu_cores", "memory_gb", "disk_gb")
_COMMON_SCHEMA = """
CREATE TABLE IF NOT EXISTS oxmon_agents (
    id TEXT PRIMARY KEY, agent_id TEXT NOT NULL UNIQUE, first_seen TEXT NOT NULL, last_seen TEXT NOT NULL, collection_interval_secs INTEGER,
    description TEXT, hostname TEXT, os TEXT, os_version TEXT, arch TEXT, kernel_version TEXT, cpu_cores INTEGER, memory_gb REAL, disk_gb REAL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_report_logs (
    id TEXT PRIMARY KEY, agent_id TEXT NOT NULL, metric_count INTEGER NOT NULL, reported_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_metrics (agent_id TEXT NOT NULL, metric_name TEXT NOT NULL, value REAL NOT NULL, reported_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
#: Word for word the guide's.
_DOCUMENTED_WHITELIST = """
CREATE TABLE IF NOT EXISTS agent_whitelist (
    agent_id TEXT PRIMARY KEY,
    token_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    description TEXT
);
"""
_SHIPPED_WHITELIST = """
CREATE TABLE IF NOT EXISTS agent_whitelist (
    id TEXT PRIMARY KEY, agent_id TEXT NOT NULL UNIQUE, token_hash TEXT NOT NULL, encrypted_token TEXT, description TEXT,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
"""

_EMPTY = ("DELETE FROM agent_whitelist", "DELETE FROM oxmon_agents", "DELETE FROM oxmon_report_logs", "DELETE FROM oxmon_metrics")

__all__ = ["Config", "DocumentedOxmon", "Oxmon", "ShippedOxmon", "add_arguments", "from_arguments"]


@dataclass(frozen=True)
class Config:
    """How one oxmon is set up. *state* is the file of the database, beside which the keys lie; None keeps them in memory."""

    require_agent_auth: bool = False
    users: Mapping[str, str] | None = None
    rate_limits: bool = False
    require_app_id: bool = False
    grpc_listen: str = "127.0.0.1:0"
    grpc_tls: tuple[str, str] | None = None
    grpc: bool = True
    bcrypt_cost: int = 4
    state: str | None = None
    roots: str | None = None


class Limiter:
    """A bucket of *burst* requests that refills at *per_second*; the server counts on a clock that only moves forward."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self.refill()

    def refill(self, missing: float = 0.0) -> None:
        """Fill the bucket, but for so many; more than it holds keep it empty for a while."""
        self._level, self._moment = self._burst - missing, self._clock()

    def take(self) -> float | None:
        """Take one; None when it may pass, else the seconds until the next one may."""
        now = self._clock()
        self._level = min(float(self._burst), self._level + (now - self._moment) * self._per_second)
        self._moment = now
        if self._level >= 1.0:
            self._level -= 1.0
            return None
        return (1.0 - self._level) / self._per_second


class Oxmon(ControlPlane):
    """What both contracts share: the gRPC listener, agents and their reports, and the certificate monitor."""

    name = "oxmon"
    whitelist_schema = ""

    def __init__(self, shared: Shared, config: Config) -> None:
        self.shared = shared
        self.config = config
        self.require_auth = config.require_agent_auth
        self.db = shared.database
        self.db.create(_COMMON_SCHEMA + self.whitelist_schema)
        self.certificates = Certificates(shared, self.reply, self.failure, documented=self.documented, roots=config.roots)
        self._listener: GrpcListener | None = None
        self._started = time.monotonic()
        self._snowflakes = itertools.count(secrets.randbelow(4096))
        self._growing = itertools.count(1)
        self.grpc_port = 9090
        self._patterns = [(route.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path) + r"\Z")) for route in self.routes()]
        shared.faults.know((), {REPORT})

    # The two contracts differ in these.

    @property
    @abstractmethod
    def documented(self) -> bool:
        """Whether this is the guide's contract."""

    @abstractmethod
    def reply(self, status: int, data: Any, message: str = "success") -> Answer:
        """A success."""

    @abstractmethod
    def failure(self, status: int, code: int, message: str, data: Any = None) -> Answer:
        """An error; *code* is the envelope's, where there is one."""

    @abstractmethod
    def own_routes(self) -> list[Route]:
        """The endpoints of this contract, beside those of the certificate monitor."""

    @abstractmethod
    def guarded(self, handler: Callable[[Call], Awaitable[Answer]]) -> Callable[[Call], Awaitable[Answer]]:
        """The handler behind this contract's authentication and limits."""

    @abstractmethod
    async def authenticate(self, metadata: Mapping[str, str]) -> Admission:
        """Judge the metadata of a report."""

    @abstractmethod
    def entry(self, name: str) -> sqlite3.Row | None:
        """The whitelist row of an agent."""

    @abstractmethod
    def set_token(self, name: str, token: str) -> None:
        """Give a whitelisted agent this token."""

    @abstractmethod
    def matches(self, row: sqlite3.Row, token: str) -> bool:
        """Whether this is the row's token."""

    # Hooks of the service and the control API.

    def routes(self) -> Sequence[Route]:
        """The endpoints of this contract. The order counts: a static segment wins over a name."""
        monitored = [
            Route(route.method, route.path, route.name, route.kind, self.guarded(route.handler), route.subject) for route in self.certificates.routes()
        ]
        return [*self.own_routes(), *monitored]

    def owns(self, path: str) -> bool:
        """Everything under /v1."""
        return path == "/v1" or path.startswith("/v1/")

    async def no_route(self, call: Call) -> Answer:
        """404, or 405 for a path that is served by another method; both are empty."""
        return Answer(405 if any(pattern.match(call.path) for _method, pattern in self._patterns) else 404)

    def broken(self) -> Answer:
        """500 in this contract's manner."""
        return self.failure(500, 1500, "Internal error")

    def answer_faults(self) -> Mapping[str, Callable[[Answer], Answer]]:
        """``missing-token``; ``endless-list`` (each page shows the same and promises more) and ``growing-list`` (new ones for ever)."""
        return {"missing-token": _without_token, "endless-list": _endless, "growing-list": lambda answer: _growing(answer, next(self._growing))}

    async def start(self) -> Mapping[str, str]:
        """Open the gRPC listener, on the port it had before where the state knows one. Returns its address."""
        if not self.config.grpc:
            return {}
        from .oxmon_grpc import GrpcListener

        host, _colon, port = self.config.grpc_listen.rpartition(":")
        kept = self.setting("grpc_port") if port == "0" else None
        tls = self.config.grpc_tls
        pair = (Path(tls[1]).read_bytes(), Path(tls[0]).read_bytes()) if tls is not None else None
        self._listener = GrpcListener(self.authenticate, self.report)
        self.grpc_port = await self._listener.start(f"{host}:{kept or port}", pair)
        self.keep_setting("grpc_port", str(self.grpc_port))
        return {"oxmon_grpc": f"{host}:{self.grpc_port}"}

    async def control(self, action: str, options: Mapping[str, Any]) -> Any:
        """Actions: ``require_auth`` (on), ``report`` (name), ``forget_agent`` (name, with its reports), ``certificates`` (a tick of the scheduler)."""
        if action == "require_auth":
            self.require_auth = bool(options.get("on", True))
            return {"require_agent_auth": self.require_auth}
        if action == "report":
            self.store_report(str(options["name"]), [("cpu.usage", 1.0, str(options["name"]))], {"hostname": "by-hand"})
            return {}
        if action == "forget_agent":
            for statement in ("DELETE FROM oxmon_agents WHERE agent_id = ?", "DELETE FROM oxmon_report_logs WHERE agent_id = ?"):
                self.db.run(statement, str(options["name"]))
            return {}
        if action == "certificates":
            await self.certificates.tick()
            return {}
        raise LookupError(action)

    def agents(self) -> list[dict[str, Any]]:
        """Every whitelisted agent, and every one that reported without being whitelisted."""
        rows = {row["agent_id"]: row for row in self.db.all("SELECT * FROM agent_whitelist")}
        names = [*rows, *(row["agent_id"] for row in self.db.all("SELECT agent_id FROM oxmon_agents") if row["agent_id"] not in rows)]
        return [self._shown(name, rows.get(name)) for name in names]

    def _shown(self, name: str, row: sqlite3.Row | None) -> dict[str, Any]:
        seen = self.db.one("SELECT COUNT(*) AS reports, MAX(reported_at) AS newest FROM oxmon_report_logs WHERE agent_id = ?", name)
        known = dict(row) if row is not None else {}
        return {
            "control_plane": self.name,
            "name": name,
            "agent_id": known.get("id", name),
            "whitelisted": row is not None,
            "description": known.get("description"),
            "registered_at": known.get("created_at"),
            "updated_at": known.get("updated_at"),
            "reports": seen["reports"] if seen is not None else 0,
            "last_report": seen["newest"] if seen is not None else None,
        }

    def forget(self, name: str) -> bool:
        """Lose the whitelist row."""
        return self.db.run("DELETE FROM agent_whitelist WHERE agent_id = ?", name) > 0

    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Replace the token by another, as another administrator would."""
        if self.entry(name) is None:
            return False
        self.set_token(name, new_token())
        return True

    async def accepts(self, name: str, token: str) -> bool:
        """Whether this token would pass for this name while authentication is on."""
        row = self.entry(name)
        return row is not None and self.matches(row, token)

    def own(self, name: str, owner: str | None) -> None:
        """There is nothing to own here."""

    async def reset(self) -> None:
        """Drop every record, and go back to the configured way of authentication."""
        for statement in _EMPTY:
            self.db.run(statement)
        self.require_auth = self.config.require_agent_auth
        self.certificates.reset()

    async def close(self) -> None:
        """Stop the gRPC listener."""
        if self._listener is not None:
            await self._listener.stop()

    # Reports.

    async def report(self, batch: Batch, identity: str | None) -> Outcome:
        """``ReportMetrics``, behind the interceptor. *identity* is None while nobody is asked who they are."""
        from .oxmon_grpc import Outcome

        self.shared.counters.arrived(self.name, "agent", REPORT)
        fault = self.shared.faults.take(TRANSPORT, REPORT, batch.agent_id)
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.seconds(1.0))
        if fault is not None and fault.kind in ("refuse", "status", "429"):
            return Outcome(status="UNAVAILABLE", message="upstream is having a moment")
        outcome = self._reported(batch, identity)
        return Outcome(status="UNAVAILABLE", message="gone") if fault is not None and fault.kind == "commit-then-drop" else outcome

    def _reported(self, batch: Batch, identity: str | None) -> Outcome:
        from .oxmon_grpc import Outcome

        if identity is not None and batch.agent_id != identity:
            return Outcome(status="PERMISSION_DENIED", message="agent_id in payload does not match authenticated identity")
        if not batch.agent_id:
            return Outcome(message="agent_id is required")
        if not batch.points:
            return Outcome(message="data_points cannot be empty")
        if len(batch.points) > MAX_POINTS:
            return Outcome(message=f"batch too large: {len(batch.points)} data points (max {MAX_POINTS})")
        self.store_report(batch.agent_id, batch.points, batch.system_info)
        return Outcome(success=True, message="ok")

    def store_report(self, name: str, points: Sequence[tuple[str, float, str]], info: Mapping[str, Any] | None) -> None:
        """Keep a report. What is stored under is the agent id inside each point, which nobody compares."""
        now = self.now_text()
        self.touch_agent(name)
        if info is not None:
            self.db.run(
                """UPDATE oxmon_agents SET hostname = ?, os = ?, os_version = ?, arch = ?, kernel_version = ?, cpu_cores = ?, memory_gb = ?,
                   disk_gb = ? WHERE agent_id = ?""",
                *(info.get(column) for column in _SYSTEM_INFO), name)
        self.db.run("INSERT INTO oxmon_report_logs VALUES (?, ?, ?, ?)", self.snowflake(), name, len(points), now)
        for metric, value, inside in points:
            self.db.run("INSERT INTO oxmon_metrics VALUES (?, ?, ?, ?)", inside, metric, value, now)

    def touch_agent(self, name: str, description: str | None = None, interval: int | None = None) -> None:
        """Create or update the row of an agent; it counts as seen now."""
        now = self.now_text()
        self.db.run(
            "INSERT OR IGNORE INTO oxmon_agents (id, agent_id, first_seen, last_seen, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
            self.snowflake(), name, now, now, now, now)
        self.db.run(
            """UPDATE oxmon_agents SET last_seen = ?, updated_at = ?, description = COALESCE(?, description),
               collection_interval_secs = COALESCE(?, collection_interval_secs) WHERE agent_id = ?""",
            now, now, description, interval, name)

    def refusal(self, text: str, name: str = "") -> Admission:
        """An authentication that failed; it goes to the request log."""
        from .oxmon_grpc import PATH, Admission

        self.shared.counters.arrived(self.name, "agent", REPORT)
        self.shared.counters.answered(REPORT, "UNAUTHENTICATED")
        self.shared.journal.write(_rpc_call(PATH), "agent", f"UNAUTHENTICATED {text}" + (f" (agent {name})" if name else ""), None)
        return Admission(status="UNAUTHENTICATED", text=text)

    # Shared steps.

    def snowflake(self) -> str:
        """A new id: 41 bits of milliseconds, 22 bits of counting, as decimal text."""
        return str((int(time.time() * 1000) - 1_288_834_974_657 << 22) | (next(self._snowflakes) & 0x3FFFFF))

    def now_text(self) -> str:
        """The moment as RFC 3339."""
        return str(self.shared.clock.rfc3339(self.shared.clock.now()))

    def setting(self, name: str) -> str | None:
        """What was kept under this name."""
        row = self.db.one("SELECT value FROM oxmon_settings WHERE name = ?", name)
        return None if row is None else str(row["value"])

    def keep_setting(self, name: str, value: str) -> None:
        """Keep a value over restarts."""
        self.db.run("INSERT OR REPLACE INTO oxmon_settings VALUES (?, ?)", name, value)

    def health_data(self) -> dict[str, Any]:
        """The data of /v1/health."""
        row = self.db.one("SELECT COUNT(*) AS number FROM oxmon_agents")
        return {
            "version": VERSION,
            "uptime_secs": int(time.monotonic() - self._started),
            "agent_count": row["number"] if row is not None else 0,
            "storage_status": "ok",
        }

    def hashed(self, token: str) -> str:
        """The bcrypt hash of a token."""
        import bcrypt

        return bcrypt.hashpw(token.encode(), bcrypt.gensalt(self.config.bcrypt_cost)).decode()


class DocumentedOxmon(Oxmon):
    """oxmon as its guide describes it."""

    documented = True
    whitelist_schema = _DOCUMENTED_WHITELIST

    def own_routes(self) -> list[Route]:
        """The guide's three, and the health page there was before."""
        return [
            Route("GET", "/v1/health", "oxmon_health", "read", self.health),
            Route("POST", "/v1/agents/whitelist", "oxmon_whitelist_add", "mutating", self.add),
            Route("GET", "/v1/agents/whitelist", "oxmon_whitelist", "read", self.listed),
            Route("DELETE", "/v1/agents/whitelist/{agent_id}", "oxmon_whitelist_remove", "mutating", self.remove),
        ]

    def guarded(self, handler: Callable[[Call], Awaitable[Answer]]) -> Callable[[Call], Awaitable[Answer]]:
        """No authentication on the API: it is meant for an internal network."""
        return handler

    def reply(self, status: int, data: Any, message: str = "success") -> Answer:
        """Bare JSON."""
        return Answer.of_json(status, data)

    def failure(self, status: int, code: int, message: str, data: Any = None) -> Answer:
        """A JSON object with the error."""
        return Answer.of_json(status, {"error": message})

    async def health(self, call: Call) -> Answer:
        """Whether the server is up."""
        return self.reply(200, self.health_data())

    async def add(self, call: Call) -> Answer:
        """``POST /v1/agents/whitelist``: the one time the token is shown."""
        spec = await json_object(call, {"agent_id": Field(str, True), "description": Field(str)})
        name, token, now = str(spec["agent_id"]), new_token(), int(self.shared.clock.now())
        try:
            self.db.run("INSERT INTO agent_whitelist VALUES (?, ?, ?, ?)", name, self.hashed(token), now, spec.get("description"))
        except sqlite3.IntegrityError:
            return self.failure(409, 0, f"Agent '{name}' already exists")
        return self.reply(201, {"agent_id": name, "token": token, "created_at": now, "description": spec.get("description")})

    async def listed(self, call: Call) -> Answer:
        """``GET /v1/agents/whitelist``: all of them, no tokens."""
        rows = self.db.all("SELECT agent_id, created_at, description FROM agent_whitelist ORDER BY created_at, agent_id")
        return self.reply(200, [dict(row) for row in rows])

    async def remove(self, call: Call) -> Answer:
        """``DELETE /v1/agents/whitelist/{agent_id}``."""
        if not self.forget(call.parameters["agent_id"]):
            return self.failure(404, 0, f"Agent '{call.parameters['agent_id']}' not found")
        return Answer(204)

    async def authenticate(self, metadata: Mapping[str, str]) -> Admission:
        """The interceptor: the bearer token alone says who it is. One hash after the other is tried."""
        from .oxmon_grpc import Admission

        if not self.require_auth:
            return Admission()
        token = _bearer(metadata)
        if token is None:
            return self.refusal("Missing or invalid authorization header")
        for row in self.db.all("SELECT * FROM agent_whitelist"):
            if self.matches(row, token):
                return Admission(identity=row["agent_id"])
        return self.refusal("Invalid token")

    def entry(self, name: str) -> sqlite3.Row | None:
        """The row of an agent."""
        return self.db.one("SELECT * FROM agent_whitelist WHERE agent_id = ?", name)

    def set_token(self, name: str, token: str) -> None:
        """Replace the hash."""
        self.db.run("UPDATE agent_whitelist SET token_hash = ? WHERE agent_id = ?", self.hashed(token), name)

    def matches(self, row: sqlite3.Row, token: str) -> bool:
        """Ask bcrypt."""
        return _bcrypt_matches(token, row["token_hash"])


class ShippedOxmon(Oxmon):
    """oxmon as it ships."""

    documented = False
    whitelist_schema = _SHIPPED_WHITELIST

    def __init__(self, shared: Shared, config: Config) -> None:
        self._login_key: rsa.RSAPrivateKey | None = None
        self._jwt_secret = secrets.token_hex(32)
        self._token_version = 0
        self._failures: dict[tuple[str, str], list[float]] = {}
        self._login_limit = Limiter(5, 1 / 12)
        self._api_limit = Limiter(60, 1.0)
        super().__init__(shared, config)
        self._token_key = self._kept_key("token.key", lambda: secrets.token_bytes(32))

    def own_routes(self) -> list[Route]:
        """Sections 1 to 4 of the wire contract."""
        whitelist, agents = "/v1/agents/whitelist", "/v1/agents"
        guard = self.guarded
        return [
            Route("GET", "/v1/health", "oxmon_health", "read", self.health),
            Route("GET", "/v1/auth/public-key", "oxmon_public_key", "login", self.public_key),
            Route("POST", "/v1/auth/login", "oxmon_login", "login", self.login),
            Route("POST", "/v1/auth/logout", "oxmon_logout", "login", guard(self.logout)),
            Route("POST", whitelist, "oxmon_whitelist_add", "mutating", guard(self.add)),
            Route("GET", whitelist, "oxmon_whitelist", "read", guard(self.listed)),
            Route("GET", f"{whitelist}/{{id}}", "oxmon_whitelist_one", "read", guard(self.one)),
            Route("PUT", f"{whitelist}/{{id}}", "oxmon_whitelist_update", "mutating", guard(self.update)),
            Route("POST", f"{whitelist}/{{id}}/token", "oxmon_whitelist_token", "mutating", guard(self.regenerate)),
            Route("DELETE", f"{whitelist}/{{id}}", "oxmon_whitelist_remove", "mutating", guard(self.remove)),
            Route("GET", agents, "oxmon_agents", "read", guard(self.agents_listed)),
            Route("GET", f"{agents}/{{ref}}", "oxmon_agent", "read", guard(self.agent_one)),
            Route("PUT", f"{agents}/{{ref}}", "oxmon_agent_update", "mutating", guard(self.agent_update)),
            Route("DELETE", f"{agents}/{{ref}}", "oxmon_agent_remove", "mutating", guard(self.agent_remove)),
            Route("GET", f"{agents}/{{ref}}/latest", "oxmon_latest", "read", guard(self.latest)),
            Route("GET", f"{agents}/{{ref}}/report-logs", "oxmon_report_logs", "read", guard(self.report_logs)),
            Route("GET", "/v1/system/config", "oxmon_system_config", "read", guard(self.system_config)),
        ]

    async def control(self, action: str, options: Mapping[str, Any]) -> Any:
        """Further actions: ``refill`` and ``drain`` (rate limits; *seconds* until a request may pass), ``unlock`` (logins), ``revoke_sessions``,
        ``lose_token_key``.
        """
        if action == "refill":
            self._login_limit.refill()
            self._api_limit.refill()
        elif action == "drain":
            seconds = float(options.get("seconds", 30.0))
            self._login_limit.refill(4 + seconds / 12)
            self._api_limit.refill(59 + seconds)
        elif action == "unlock":
            self._failures.clear()
        elif action == "revoke_sessions":
            self._token_version += 1
        elif action == "lose_token_key":
            self._token_key = secrets.token_bytes(32)
        else:
            return await super().control(action, options)
        return {}

    async def reset(self) -> None:
        """Unlock and refill too."""
        await super().reset()
        self._failures.clear()
        self._login_limit.refill()
        self._api_limit.refill()

    # Envelope.

    def reply(self, status: int, data: Any, message: str = "success") -> Answer:
        """The envelope with code 0."""
        return self._enveloped(status, 0, message, data)

    def failure(self, status: int, code: int, message: str, data: Any = None, **headers: str) -> Answer:
        """The envelope with an error."""
        return self._enveloped(status, code, message, data, **headers)

    def _enveloped(self, status: int, code: int, message: str, data: Any, **headers: str) -> Answer:
        trace = secrets.token_hex(8)
        return Answer.of_json(status, {"err_code": code, "err_msg": message, "trace_id": trace, "data": data}, **{"X-Trace-Id": trace, **headers})

    def page(self, call: Call, rows: Sequence[Any], total: int | None = None) -> Answer:
        """One page of *rows*, which are all of them."""
        limit, offset = self._window(call)
        return self.reply(200, {"items": list(rows[offset : offset + limit]), "total": len(rows) if total is None else total, "limit": limit, "offset": offset})

    def _window(self, call: Call) -> tuple[int, int]:
        numbers = []
        for key, default in (("limit", PAGE), ("offset", 0)):
            text = call.query.get(key, str(default))
            if not text.isdecimal():
                raise RefusalError(Answer.of_text(400, f"Failed to deserialize query string: {key}: invalid digit found in string"))
            numbers.append(int(text))
        return min(numbers[0], LARGEST_PAGE), numbers[1]

    # Authentication of administrators.

    def guarded(self, handler: Callable[[Call], Awaitable[Answer]]) -> Callable[[Call], Awaitable[Answer]]:
        """First the session, then the rate limit, then the handler."""

        async def handle(call: Call) -> Answer:
            self._check_session(call)
            self._limited(self._api_limit)
            return await handler(call)

        return handle

    def _check_session(self, call: Call) -> None:
        header = call.headers.get("Authorization")
        if header is None:
            raise RefusalError(self.failure(401, 1002, "missing authorization header"))
        if not header.startswith("Bearer "):
            raise RefusalError(self.failure(401, 1002, "invalid authorization header"))
        try:
            # The server's clock may be put wrong by a test, so the times are judged here.
            claims = jwt.decode(
                header[len("Bearer ") :], self._jwt_secret, algorithms=["HS256"],
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False})
        except jwt.InvalidTokenError as error:
            raise RefusalError(self.failure(401, 1002, "invalid token")) from error
        if claims["exp"] + JWT_LEEWAY < self.shared.clock.now():
            raise RefusalError(self.failure(401, 1003, "token expired"))
        if claims["token_version"] != self._token_version:
            raise RefusalError(self.failure(401, 1002, "token revoked"))

    def _limited(self, limiter: Limiter) -> None:
        if not self.config.rate_limits:
            return
        wait = limiter.take()
        if wait is not None:
            seconds = str(int(wait))
            answer = Answer.of_text(429, f"Too Many Requests! Wait for {seconds}s")
            raise RefusalError(Answer(429, answer.body, answer.content_type, {"retry-after": seconds, "x-ratelimit-after": seconds}))

    def _app_id(self, call: Call) -> None:
        if not self.config.require_app_id:
            return
        if not call.headers.get("ox-app-id"):
            raise RefusalError(self.failure(403, 1008, "ox-app-id header is required"))
        raise RefusalError(self.failure(403, 1009, "app id is not allowed"))

    async def public_key(self, call: Call) -> Answer:
        """``GET /v1/auth/public-key``."""
        self._limited(self._login_limit)
        self._app_id(call)
        pem = self._key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return self.reply(200, {"public_key": pem, "algorithm": "RSA-OAEP-SHA256"})

    async def login(self, call: Call) -> Answer:
        """``POST /v1/auth/login``."""
        self._limited(self._login_limit)
        self._app_id(call)
        spec = await json_object(call, {"username": Field(str, True), "encrypted_password": Field(str, True)})
        user, encrypted = str(spec["username"]), str(spec["encrypted_password"])
        if not user or not encrypted:
            return self.failure(400, 1001, "username and encrypted_password are required")
        password = self._decrypted(encrypted)
        if password is None:
            return self.failure(400, 1001, "invalid encrypted password")
        throttle = (user.lower(), _client_address(call))
        now = self.shared.clock.now()
        if self._locked_until(throttle) > now:
            return self._locked(throttle)
        expected = (self.config.users or {}).get(user)
        if expected is None or not hmac.compare_digest(expected.encode(), password.encode()):
            self._failures.setdefault(throttle, []).append(now)
            return self._locked(throttle) if self._locked_until(throttle) > now else self.failure(401, 1002, "invalid credentials")
        self._failures.pop(throttle, None)
        claims = {"sub": "1", "username": user, "token_version": self._token_version, "iat": int(now), "exp": int(now) + JWT_LIFE}
        return self.reply(200, {"access_token": jwt.encode(claims, self._jwt_secret, algorithm="HS256"), "expires_in": JWT_LIFE})

    def _locked_until(self, throttle: tuple[str, str]) -> float:
        failures = self._failures.get(throttle, [])
        return failures[-1] + LOCK_SECONDS if len(failures) >= LOCK_FAILURES else 0.0

    def _locked(self, throttle: tuple[str, str]) -> Answer:
        until = self._locked_until(throttle)
        seconds = max(1, int(until - self.shared.clock.now()))
        data = {"locked_until": self.shared.clock.rfc3339(until), "retry_after_seconds": seconds}
        return self.failure(429, 1010, "too many failed login attempts", data, **{"Retry-After": str(seconds)})

    def _decrypted(self, encrypted: str) -> str | None:
        """The password inside, None when the text is no good or its time is off."""
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
        try:
            payload = json.loads(self._key().decrypt(base64.b64decode(encrypted, validate=True), oaep))
            password, moment = payload["password"], payload["timestamp"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            return None
        if not isinstance(password, str) or not isinstance(moment, int) or abs(self.shared.clock.now() - moment) > LOGIN_WINDOW:
            return None
        return password

    async def logout(self, call: Call) -> Answer:
        """``POST /v1/auth/logout``: every session of the user dies."""
        self._token_version += 1
        return self.reply(200, None)

    # Whitelist.

    async def add(self, call: Call) -> Answer:
        """``POST /v1/agents/whitelist``. Nothing of the name is checked; the agent counts as seen from now on."""
        spec = await json_object(
            call, {"agent_id": Field(str, True), "description": Field(str), "collection_interval_secs": Field(int)})
        name, description, token, now = str(spec["agent_id"]), spec.get("description"), new_token(), self.now_text()
        row_id = self.snowflake()
        try:
            self.db.run(
                "INSERT INTO agent_whitelist VALUES (?, ?, ?, ?, ?, ?, ?)",
                row_id, name, self.hashed(token), self._sealed(token), description, now, now)
        except sqlite3.IntegrityError:
            return self.failure(409, 1005, f"Agent '{name}' already exists")
        self.touch_agent(name, description, spec.get("collection_interval_secs"))
        return self.reply(201, {"id": row_id, "agent_id": name, "token": token, "created_at": now})

    async def listed(self, call: Call) -> Answer:
        """``GET /v1/agents/whitelist``: substring filters, newest first."""
        rows = self.db.all("SELECT * FROM agent_whitelist ORDER BY created_at DESC, id DESC")
        return self.page(call, [self._item(row) for row in self._filtered(call, rows, ("agent_id", "description"))])

    def _filtered(self, call: Call, rows: Sequence[sqlite3.Row], columns: Sequence[str]) -> list[sqlite3.Row]:
        found = list(rows)
        for column in columns:
            wanted = call.query.get(f"{column}__contains")
            if wanted is None:
                continue
            if "'" in wanted:
                raise RefusalError(self.failure(500, 1501, "Storage error: unrecognized token"))
            found = [row for row in found if wanted.lower() in str(row[column] or "").lower()]
        return found

    def _item(self, row: sqlite3.Row) -> dict[str, Any]:
        agent = self.db.one("SELECT * FROM oxmon_agents WHERE agent_id = ?", row["agent_id"])
        return {
            "id": row["id"], "agent_id": row["agent_id"], "created_at": row["created_at"], "updated_at": row["updated_at"],
            "description": row["description"], "token": None, "collection_interval_secs": None,
            "last_seen": agent["last_seen"] if agent is not None else None, "status": self._status(agent, 300),
        }

    def _status(self, agent: sqlite3.Row | None, default: int) -> str:
        if agent is None:
            return "unknown"
        age = self.shared.clock.now() - datetime.fromisoformat(agent["last_seen"].replace("Z", "+00:00")).timestamp()
        return "active" if age <= (agent["collection_interval_secs"] or default) * 3 else "inactive"

    def _row(self, call: Call) -> sqlite3.Row:
        row = self.db.one("SELECT * FROM agent_whitelist WHERE id = ?", call.parameters["id"])
        if row is None:
            raise RefusalError(self.failure(404, 1004, "Whitelist entry not found"))
        return row

    async def one(self, call: Call) -> Answer:
        """``GET /v1/agents/whitelist/{id}``, by row id."""
        return self.reply(200, self._item(self._row(call)))

    async def update(self, call: Call) -> Answer:
        """``PUT /v1/agents/whitelist/{id}``: null leaves things as they are."""
        spec = await json_object(call, {"description": Field(str), "collection_interval_secs": Field(int)})
        row = self._row(call)
        self.db.run(
            "UPDATE agent_whitelist SET description = COALESCE(?, description), updated_at = ? WHERE id = ?",
            spec.get("description"), self.now_text(), row["id"])
        self.db.run(
            """UPDATE oxmon_agents SET description = COALESCE(?, description),
               collection_interval_secs = COALESCE(?, collection_interval_secs) WHERE agent_id = ?""",
            spec.get("description"), spec.get("collection_interval_secs"), row["agent_id"])
        return self.reply(200, {"id": row["id"]})

    async def regenerate(self, call: Call) -> Answer:
        """``POST /v1/agents/whitelist/{id}/token``: the old token is dead at once."""
        row, token = self._row(call), new_token()
        self.set_token(row["agent_id"], token)
        return self.reply(200, {"agent_id": row["agent_id"], "token": token})

    async def remove(self, call: Call) -> Answer:
        """``DELETE /v1/agents/whitelist/{id}``: the row of ``agents`` and the metrics stay."""
        row = self._row(call)
        self.db.run("DELETE FROM agent_whitelist WHERE id = ?", row["id"])
        return self.reply(200, {"id": row["id"]})

    def entry(self, name: str) -> sqlite3.Row | None:
        """The row of an agent."""
        return self.db.one("SELECT * FROM agent_whitelist WHERE agent_id = ?", name)

    def set_token(self, name: str, token: str) -> None:
        """Replace hash and sealed copy."""
        self.db.run(
            "UPDATE agent_whitelist SET token_hash = ?, encrypted_token = ?, updated_at = ? WHERE agent_id = ?",
            self.hashed(token), self._sealed(token), self.now_text(), name)

    def matches(self, row: sqlite3.Row, token: str) -> bool:
        """Compare with the sealed copy; bcrypt is asked only when that cannot be opened."""
        sealed = base64.b64decode(row["encrypted_token"] or "")
        with contextlib.suppress(InvalidTag, ValueError):
            return hmac.compare_digest(AESGCM(self._token_key).decrypt(sealed[:12], sealed[12:], None), token.encode())
        return _bcrypt_matches(token, row["token_hash"])

    def _sealed(self, token: str) -> str:
        nonce = secrets.token_bytes(12)
        return base64.b64encode(nonce + AESGCM(self._token_key).encrypt(nonce, token.encode(), None)).decode()

    async def authenticate(self, metadata: Mapping[str, str]) -> Admission:
        """Section 4.2, in its order."""
        from .oxmon_grpc import Admission

        if not self.require_auth:
            return Admission()
        token, name = _bearer(metadata), metadata.get("agent-id")
        if token is None:
            return self.refusal("Missing or invalid authorization header", name or "")
        if name is None:
            return self.refusal("Missing agent-id in metadata")
        row = self.entry(name)
        if row is None:
            return self.refusal("Agent not authorized", name)
        if not self.matches(row, token):
            return self.refusal("Invalid token", name)
        return Admission(identity=name)

    # Agents and the system.

    async def health(self, call: Call) -> Answer:
        """``GET /v1/health``: public."""
        self._app_id(call)
        return self.reply(200, self.health_data())

    def _agent(self, call: Call) -> sqlite3.Row:
        reference = call.parameters["ref"]
        row = self.db.one("SELECT * FROM oxmon_agents WHERE id = ? OR agent_id = ?", reference, reference)
        if row is None:
            raise RefusalError(self.failure(404, 1004, "Agent not found"))
        return row

    def _agent_item(self, row: sqlite3.Row) -> dict[str, Any]:
        entry = self.entry(row["agent_id"])
        return {
            **dict(row), "status": self._status(row, 10), "in_whitelist": entry is not None, "whitelist_id": entry["id"] if entry is not None else None,
        }

    async def agents_listed(self, call: Call) -> Answer:
        """``GET /v1/agents``."""
        rows = self._filtered(call, self.db.all("SELECT * FROM oxmon_agents ORDER BY created_at DESC, id DESC"), ("agent_id",))
        return self.page(call, [self._agent_item(row) for row in rows])

    async def agent_one(self, call: Call) -> Answer:
        """``GET /v1/agents/{id or agent_id}``."""
        return self.reply(200, self._agent_item(self._agent(call)))

    async def agent_update(self, call: Call) -> Answer:
        """``PUT /v1/agents/{id or agent_id}``."""
        spec = await json_object(call, {"description": Field(str), "collection_interval_secs": Field(int)})
        row = self._agent(call)
        self.db.run(
            """UPDATE oxmon_agents SET description = COALESCE(?, description),
               collection_interval_secs = COALESCE(?, collection_interval_secs) WHERE id = ?""",
            spec.get("description"), spec.get("collection_interval_secs"), row["id"])
        return self.reply(200, {"id": row["id"]})

    async def agent_remove(self, call: Call) -> Answer:
        """``DELETE /v1/agents/{id or agent_id}``: whitelist entry and agent."""
        row = self._agent(call)
        self.forget(row["agent_id"])
        self.db.run("DELETE FROM oxmon_agents WHERE id = ?", row["id"])
        return self.reply(200, {"id": row["id"]})

    async def latest(self, call: Call) -> Answer:
        """``GET /v1/agents/{id}/latest``."""
        row = self._agent(call)
        metrics = self.db.all("SELECT * FROM oxmon_metrics WHERE agent_id = ?", row["agent_id"])
        if not metrics:
            return self.failure(404, 1004, "No metrics found for agent")
        return self.reply(200, {"agent_id": row["agent_id"], "metrics": [dict(metric) for metric in metrics[-50:]]})

    async def report_logs(self, call: Call) -> Answer:
        """``GET /v1/agents/{id}/report-logs``: newest first."""
        row = self._agent(call)
        logs = self.db.all("SELECT * FROM oxmon_report_logs WHERE agent_id = ? ORDER BY reported_at DESC, id DESC", row["agent_id"])
        return self.page(call, [dict(log) for log in logs])

    async def system_config(self, call: Call) -> Answer:
        """``GET /v1/system/config``."""
        return self.reply(200, {
            "grpc_port": self.grpc_port, "http_port": 8080, "data_dir": "data", "retention_days": 7, "require_agent_auth": self.require_auth,
            "cert_check_enabled": True, "cert_check_default_interval_secs": 86400, "cert_check_tick_secs": 60, "cert_check_max_concurrent": 10,
            "notification_aggregation_window_secs": 60, "alert_rules_count": 1, "notification_channels_count": 0, "language": "en",
        })

    # Keys.

    def _key(self) -> rsa.RSAPrivateKey:
        """The login key, made when first needed."""
        if self._login_key is None:
            made = self._kept_key("login.key", _new_login_key)
            key = load_pem_private_key(made, None)
            if not isinstance(key, rsa.RSAPrivateKey):
                raise TypeError("login.key is no RSA key")
            self._login_key = key
        return self._login_key

    def _kept_key(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A key from its file beside the database, made there with mode 0600 when missing; in memory without a file."""
        if self.config.state is None:
            return make()
        path = Path(f"{self.config.state}.{name}")
        if not path.exists():
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(make())
        return path.read_bytes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add oxmon's options."""
    group = parser.add_argument_group("oxmon")
    group.add_argument("--oxmon-user", action="append", default=[], metavar="NAME:PASSWORD", help="repeatable (default: admin:changeme)")
    group.add_argument("--oxmon-require-agent-auth", action="store_true", help="start with require_agent_auth = true")
    group.add_argument("--oxmon-rate-limits", action="store_true", help="the shipped limits: 60 requests and one a second, 5 logins and one in 12 seconds")
    group.add_argument("--oxmon-require-app-id", action="store_true", help="demand an ox-app-id, none of which is allowed")
    group.add_argument("--oxmon-grpc-listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes any, and the same after a restart")
    group.add_argument("--oxmon-grpc-tls", action="store_true", help="TLS on the gRPC listener, as a terminator in front of it would give")
    group.add_argument("--oxmon-bcrypt-cost", type=int, default=4, metavar="N")
    group.add_argument("--oxmon-roots", metavar="FILE", help="CAs that the certificate monitor trusts beside the system's")


def from_arguments(arguments: argparse.Namespace, shared: Shared) -> ControlPlane:
    """Build the plane of the chosen contract. Raises ValueError for a user without password."""
    users = {}
    for text in arguments.oxmon_user or ["admin:changeme"]:
        name, colon, password = text.partition(":")
        if not colon:
            raise ValueError(f"--oxmon-user {text!r} is not NAME:PASSWORD")
        users[name] = password
    config = Config(
        require_agent_auth=arguments.oxmon_require_agent_auth, users=users, rate_limits=arguments.oxmon_rate_limits,
        require_app_id=arguments.oxmon_require_app_id, grpc_listen=arguments.oxmon_grpc_listen,
        grpc_tls=(arguments.tls_cert, arguments.tls_key) if arguments.oxmon_grpc_tls else None,
        grpc=_grpc_wanted(arguments.plane), bcrypt_cost=arguments.oxmon_bcrypt_cost, state=arguments.state, roots=arguments.oxmon_roots)
    return DocumentedOxmon(shared, config) if arguments.contract == "documented" else ShippedOxmon(shared, config)


def _grpc_wanted(planes: Sequence[str] | None) -> bool:
    """Whether to open the gRPC listener: always when oxmon was asked for by name, else where grpcio is installed."""
    return planes is not None or importlib.util.find_spec("grpc") is not None


def new_token() -> str:
    """A token: standard base64 of 32 random bytes."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _new_login_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _bcrypt_matches(token: str, hashed: str) -> bool:
    import bcrypt

    return len(token.encode()) <= 72 and bcrypt.checkpw(token.encode(), hashed.encode())


def _bearer(metadata: Mapping[str, str]) -> str | None:
    header = metadata.get("authorization", "")
    return header[len("Bearer ") :] if header.startswith("Bearer ") and len(header) > len("Bearer ") else None


def _client_address(call: Call) -> str:
    """Whom a failed login is counted against: what a proxy says is believed."""
    forwarded = call.headers.get("X-Forwarded-For", "").split(",")[0].strip()
    return forwarded or call.headers.get("X-Real-IP", "") or "peer"


def _rpc_call(path: str) -> Call:
    """What the request log needs to know of a gRPC call."""
    call = Call.__new__(Call)
    call.method, call.path = "gRPC", path
    return call


def _changed_data(answer: Answer, change: Callable[[Any], Any]) -> Answer:
    payload = answer.payload if answer.body else None
    if isinstance(payload, dict) and "err_code" in payload:
        return Answer(answer.status, json.dumps({**payload, "data": change(payload["data"])}).encode(), answer.content_type, answer.headers)
    return Answer(answer.status, json.dumps(change(payload)).encode(), answer.content_type, answer.headers)


def _without_token(answer: Answer) -> Answer:
    return _changed_data(answer, lambda data: {key: value for key, value in data.items() if key != "token"} if isinstance(data, dict) else data)


def _ghost(number: int) -> dict[str, Any]:
    moment = datetime.now(timezone.utc).isoformat()
    return {"id": str(number), "agent_id": f"ghost-{number}", "created_at": moment, "updated_at": moment, "description": None, "last_seen": None}


def _endless(answer: Answer) -> Answer:
    return _changed_data(answer, lambda _data: {"items": [_ghost(1)], "total": 10**9, "limit": 1, "offset": 0})


def _growing(answer: Answer, number: int) -> Answer:
    return _changed_data(answer, lambda _data: {"items": [_ghost(number)], "total": 10**9, "limit": 1, "offset": 0})
