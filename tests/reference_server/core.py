# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every control plane of the reference server shares.

A control plane declares :class:`Route` objects. Each one gets a :class:`Call`, returns an
:class:`Answer` (or raises :class:`RefusalError`), and knows nothing of sockets. Around it,
:class:`Service` counts, injects faults, replays answers for an ``Idempotency-Key``, sets the
``Date`` header from the skewed clock, and writes the request log, which never holds a header, a
body or a query.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from .counters import Counters
from .faults import TRANSPORT, Fault, FaultBoard

BODY_LIMIT = 2 * 1024 * 1024

__all__ = [
    "Answer",
    "BodyTooLargeError",
    "Call",
    "Clock",
    "ControlPlane",
    "Database",
    "Journal",
    "RefusalError",
    "Replays",
    "Route",
    "Service",
    "Shared",
]


class BodyTooLargeError(Exception):
    """The body is above BODY_LIMIT."""


class Clock:
    """The server's wall clock, which a test may put wrong."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def now(self) -> float:
        """Seconds since the epoch as the server believes them to be."""
        return time.time() + self.offset_seconds

    def http_date(self) -> str:
        """The value of a ``Date`` header."""
        return format_datetime(datetime.fromtimestamp(self.now(), timezone.utc), usegmt=True)

    @staticmethod
    def rfc3339(moment: float | None) -> str | None:
        """Write a moment with microseconds, in UTC; None stays None."""
        if moment is None:
            return None
        return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Database:
    """One SQLite file (or memory). Every statement commits at once.

    A killed server keeps its records; only a power cut could lose some, which no test makes.
    """

    def __init__(self, path: str | None) -> None:
        if path is not None:
            # Created before SQLite opens it, so that the file with test tokens is never readable by others.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")

    def create(self, schema: str) -> None:
        """Create tables that are not there yet."""
        self._connection.executescript(schema)

    def run(self, statement: str, *values: Any) -> int:
        """Run one statement and return the number of rows it touched."""
        return self._connection.execute(statement, values).rowcount

    def one(self, statement: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row, if any."""
        row: sqlite3.Row | None = self._connection.execute(statement, values).fetchone()
        return row

    def all(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows."""
        return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, before it is sent."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, status: int, payload: Any, **headers: str) -> Answer:
        """An answer with a JSON body."""
        return cls(status, json.dumps(payload).encode(), "application/json", headers)

    @classmethod
    def of_text(cls, status: int, text: str) -> Answer:
        """An answer with a plain text body."""
        return cls(status, text.encode(), "text/plain; charset=utf-8")

    @property
    def payload(self) -> Any:
        """The body, decoded as JSON."""
        return json.loads(self.body)


class RefusalError(Exception):
    """A handler ends the request with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


class Call:
    """One request, as a control plane sees it."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.method = request.method
        self.path = request.path
        self.query: Mapping[str, str] = request.query
        self.headers: Mapping[str, str] = request.headers
        self.parameters: Mapping[str, str] = request.match_info

    async def body(self) -> bytes:
        """The whole body (read once, then remembered). Raises BodyTooLargeError."""
        try:
            return await self._request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise BodyTooLargeError from error

    async def text(self) -> str:
        """Path, query and body in one string, for faults that look for a name."""
        with contextlib.suppress(BodyTooLargeError):
            return self._request.path_qs + "\n" + (await self.body()).decode("utf-8", "replace")
        return self._request.path_qs

    def client_has_left(self) -> bool:
        """Whether the client has closed the connection, so that nothing may be handed out any more."""
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def peer_certificate(self) -> bytes | None:
        """The client's certificate (DER), if it showed one."""
        transport = self._request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        return None if tls is None else tls.getpeercert(binary_form=True)


Handler = Callable[[Call], Awaitable[Answer]]
Subject = Callable[[Call], Awaitable[str]]


@dataclass(frozen=True)
class Route:
    """One endpoint: where it is, its name for faults and counters, its class, and what it does.

    ``subject`` makes it honour ``Idempotency-Key``: it tells which record a request is about.
    """

    method: str
    path: str
    name: str
    kind: str
    handler: Handler
    subject: Subject | None = None


class ControlPlane(ABC):
    """One control plane: routes for agents and operators, and the hooks of the control API."""

    name: str = ""
    #: Kinds of faults beyond the transport ones that this plane takes from the board by itself.
    own_faults: frozenset[str] = frozenset()

    @abstractmethod
    def routes(self) -> Sequence[Route]:
        """The endpoints this plane serves."""

    def owns(self, path: str) -> bool:
        """Whether an unknown path is this plane's to answer; the first plane answers what nobody owns."""
        return False

    async def start(self) -> Mapping[str, str]:
        """Open listeners of the plane's own, beside HTTP. Returns what they are called and where they are (``HOST:PORT``)."""
        return {}

    async def control(self, action: str, options: Mapping[str, Any]) -> Any:
        """Carry out an action that only this plane's tests need. Raises LookupError for an unknown one."""
        raise LookupError(action)

    @abstractmethod
    async def no_route(self, call: Call) -> Answer:
        """The answer for a path nobody serves."""

    @abstractmethod
    def broken(self) -> Answer:
        """The plane's own way to say 500."""

    @abstractmethod
    def answer_faults(self) -> Mapping[str, Callable[[Answer], Answer]]:
        """Faults of this plane that change a finished answer."""

    @abstractmethod
    def agents(self) -> list[dict[str, Any]]:
        """Every record, without secrets."""

    @abstractmethod
    def forget(self, name: str) -> bool:
        """Lose a record, as a restored backup would. False when there is none."""

    @abstractmethod
    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Change the credential of a record behind everybody's back. False when there is none."""

    @abstractmethod
    async def accepts(self, name: str, token: str) -> bool:
        """Whether the plane would accept this credential for this name now."""

    @abstractmethod
    def own(self, name: str, owner: str | None) -> None:
        """Make a deployment known before any agent registered for it."""

    @abstractmethod
    async def reset(self) -> None:
        """Drop every record."""

    @abstractmethod
    async def close(self) -> None:
        """Stop background work and close connections."""


class Replays:
    """Answers kept for ``Idempotency-Key``: the same key again gets the same answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._locks: dict[str, asyncio.Lock] = {}
        database.create(
            """CREATE TABLE IF NOT EXISTS replays (key TEXT PRIMARY KEY, subject TEXT NOT NULL,
               status INTEGER NOT NULL, body BLOB NOT NULL, content_type TEXT NOT NULL)"""
        )

    def lock(self, key: str) -> asyncio.Lock:
        """One request at a time for each key, so that two at once cannot both create."""
        return self._locks.setdefault(key, asyncio.Lock())

    def find(self, key: str) -> tuple[str, Answer] | None:
        """The subject and the answer kept for this key."""
        row = self._database.one("SELECT * FROM replays WHERE key = ?", key)
        if row is None:
            return None
        return row["subject"], Answer(row["status"], row["body"], row["content_type"], {"Idempotency-Replayed": "true"})

    def keep(self, key: str, subject: str, answer: Answer) -> None:
        """Remember a success. Failures are not kept: a retry may do better."""
        if 200 <= answer.status < 300:
            self._database.run(
                "INSERT OR REPLACE INTO replays VALUES (?, ?, ?, ?, ?)", key, subject, answer.status, answer.body, answer.content_type
            )

    def forget(self, subject: str) -> None:
        """Forget what was answered about one record."""
        self._database.run("DELETE FROM replays WHERE subject = ?", subject)

    def reset(self) -> None:
        """Forget everything."""
        self._database.run("DELETE FROM replays")


class Journal:
    """The request log: one JSON line for each request."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None

    def write(self, call: Call, kind: str, outcome: str, fault: Fault | None) -> None:
        """Log one finished request. The path is kept, the query is not: it may carry a session."""
        if self._path is None:
            return
        moment = Clock.rfc3339(time.time())
        line = {"time": moment, "method": call.method, "path": call.path, "status": outcome, "class": kind}
        if fault is not None:
            line["fault"] = fault.kind
        # Opened for each line: a test may move the file away, and nothing is lost when the server is killed.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Shared:
    """What the control planes and the control API hold in common."""

    clock: Clock
    database: Database
    faults: FaultBoard
    counters: Counters
    replays: Replays
    journal: Journal


class Service:
    """The public side: all control planes on one application."""

    def __init__(self, planes: Sequence[ControlPlane], shared: Shared, releases: str | None) -> None:
        self.planes = planes
        self.shared = shared
        self._releases = Path(releases) if releases else None
        for plane in planes:
            shared.faults.know({*plane.own_faults, *plane.answer_faults()}, {route.name for route in plane.routes()})

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        application = web.Application(client_max_size=BODY_LIMIT)
        for plane in self.planes:
            for route in plane.routes():
                application.router.add_route(route.method, route.path, self._guard(plane, route))
        first = self.planes[0]
        if self._releases is not None:
            self.shared.faults.know((), {"releases"})
            download = Route("GET", "/releases/{file}", "releases", "release", self._release)
            application.router.add_route(download.method, download.path, self._guard(first, download))
        application.router.add_route("*", "/{path:.*}", self._unknown(first))
        return application

    def _unknown(self, first: ControlPlane) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Let the plane that owns an unknown path answer for it, else the *first* one."""
        guarded = {plane.name: self._guard(plane, Route("*", "/{path:.*}", "unknown", "unknown", plane.no_route)) for plane in self.planes}

        async def handle(request: web.Request) -> web.StreamResponse:
            owner = next((plane for plane in self.planes if plane.owns(request.path)), first)
            return await guarded[owner.name](request)

        return handle

    async def _release(self, call: Call) -> Answer:
        """Serve one file of the releases folder; nothing outside it can be named."""
        file = call.parameters["file"]
        folder = self._releases
        if folder is None or file not in {entry.name for entry in folder.iterdir() if entry.is_file()}:
            return Answer(404)
        return Answer(200, (folder / file).read_bytes(), "application/octet-stream")

    def _guard(self, plane: ControlPlane, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            call = Call(request)
            text = await call.text() if self.shared.faults.wants_text() else call.path
            fault = self.shared.faults.take(TRANSPORT, route.name, text)
            if fault is not None and fault.kind == "refuse":
                # Taken off the wire, not acted on: else a client that still sends would meet one of several errors.
                await call.text()
                return self._drop(request, call, route, fault)
            self.shared.counters.arrived(plane.name, route.kind, route.name)
            answer = await self._answer(plane, route, call, fault, text)
            if fault is not None and fault.kind == "commit-then-drop":
                return self._drop(request, call, route, fault)
            self._record(call, route, str(answer.status), fault)
            if fault is not None and fault.kind == "truncate":
                return await self._send_half(request, answer)
            return self._response(answer)

        return handle

    async def _answer(self, plane: ControlPlane, route: Route, call: Call, fault: Fault | None, text: str) -> Answer:
        if fault is not None and fault.kind in ("status", "429"):
            return _scripted(fault)
        answer = await self._replayed(plane, route, call)
        for kind, change in plane.answer_faults().items():
            if self.shared.faults.take({kind}, route.name, text) is not None and answer.status < 300:
                answer = change(answer)
        if fault is None:
            return answer
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds(1.0))
        elif fault.kind == "commit-then-500":
            return plane.broken()
        elif fault.kind == "garbage":
            return Answer(answer.status, b"<html>upstream is having a moment</html>", "application/json")
        return answer

    async def _replayed(self, plane: ControlPlane, route: Route, call: Call) -> Answer:
        """Run the handler, or repeat the answer the same ``Idempotency-Key`` got before."""
        key = call.headers.get("Idempotency-Key")
        if not key or route.subject is None:
            return await _run(route.handler, call)
        slot = f"{plane.name} {route.name} {hashlib.sha256(key.encode()).hexdigest()}"
        async with self.shared.replays.lock(slot):
            subject = await route.subject(call)
            kept = self.shared.replays.find(slot)
            if kept is None:
                answer = await _run(route.handler, call)
                self.shared.replays.keep(slot, subject, answer)
                return answer
            if kept[0] != subject:
                return Answer.of_json(422, {"message": "Idempotency-Key was used for another record"})
            return kept[1]

    def _drop(self, request: web.Request, call: Call, route: Route, fault: Fault) -> web.StreamResponse:
        """Reset the connection (RST), as a crashing server or a firewall does."""
        self._record(call, route, "dropped", fault)
        transport = request.transport
        if transport is not None:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response()

    async def _send_half(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Promise the whole body, send half of it, and close."""
        response = web.StreamResponse(status=answer.status, headers=self._headers(answer))
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    def _response(self, answer: Answer) -> web.Response:
        return web.Response(status=answer.status, body=answer.body, headers=self._headers(answer))

    def _headers(self, answer: Answer) -> dict[str, str]:
        headers = {"Date": self.shared.clock.http_date(), **answer.headers}
        if answer.body:
            headers.setdefault("Content-Type", answer.content_type)
        return headers

    def _record(self, call: Call, route: Route, outcome: str, fault: Fault | None) -> None:
        self.shared.counters.answered(route.name, outcome)
        self.shared.journal.write(call, route.kind, outcome, fault)


async def _run(handler: Handler, call: Call) -> Answer:
    try:
        return await handler(call)
    except RefusalError as refusal:
        return refusal.answer


def _scripted(fault: Fault) -> Answer:
    """The answer a ``status`` or ``429`` fault describes."""
    headers = {str(key): str(value) for key, value in fault.params.get("headers", {}).items()}
    status = int(fault.params.get("status", 429 if fault.kind == "429" else 503))
    if fault.kind == "429":
        headers.setdefault("Retry-After", str(fault.params.get("retry_after", 1)))
    body = fault.params.get("body", "")
    if isinstance(body, str):
        return Answer(status, body.encode(), "text/plain; charset=utf-8", headers)
    return Answer.of_json(status, body, **headers)
