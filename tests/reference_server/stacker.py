# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stacker, the control plane of Status Panel agents, in both of its contracts.

``DocumentedStacker`` is the published guide (agent registration specification): 201 and 409, JSON
errors, validated input, tokens in the server's database, an overlap when Vault changes.
``ShippedStacker`` is the server that ships (wire contract, sections 1 to 3): 201 and 200 with the
old token, text errors, authentication failures as 400, tokens in Vault alone.

Not offered, since no operator's tool needs it: the ``stacker-id`` client signature, the marketplace
stub, projects and servers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import string
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .core import Answer, BodyTooLargeError, Call, ControlPlane, RefusalError, Route, Shared
from .vault import HttpVault, StoreVault, TokenVault, VaultError

ONLINE_SECONDS = 300
TOKEN_LENGTH = 86
VAULT_PAUSES = (1.0, 2.0)
DOCUMENTED_VAULT_TIMEOUT = 5.0

_TOKEN_ALPHABET = string.ascii_letters + string.digits + "-_"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_CAPABILITY = re.compile(r"[a-z0-9_]{1,32}")
_UNUSABLE_IN_A_PATH = re.compile(r"[\s/?#%\x00-\x1f\x7f]")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS stacker_agents (
    agent_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, version TEXT NOT NULL, capabilities TEXT NOT NULL,
    system_info TEXT NOT NULL, last_heartbeat REAL, registered_at REAL NOT NULL, updated_at REAL NOT NULL,
    token_hash TEXT, vault_seen TEXT, previous_hash TEXT, previous_until REAL);
CREATE INDEX IF NOT EXISTS stacker_tokens ON stacker_agents (token_hash);
CREATE INDEX IF NOT EXISTS stacker_former_tokens ON stacker_agents (previous_hash);
CREATE TABLE IF NOT EXISTS stacker_commands (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, command_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, type TEXT NOT NULL,
    status TEXT NOT NULL, priority TEXT NOT NULL, parameters TEXT, result TEXT, error TEXT, created_by TEXT,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, timeout_seconds INTEGER, metadata TEXT);
CREATE TABLE IF NOT EXISTS stacker_deployments (name TEXT PRIMARY KEY, owner TEXT, created_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS stacker_sessions (token_hash TEXT PRIMARY KEY, email TEXT NOT NULL);
"""

__all__ = ["Config", "DocumentedStacker", "ShippedStacker", "Stacker", "add_arguments", "from_arguments"]


@dataclass(frozen=True)
class Config:
    """How one Stacker is set up. ``overlap`` in seconds; ``without`` holds names of absent features."""

    overlap: float = 120.0
    dashboard_version: str = "2.0.0"
    api_versions: tuple[str, ...] = ("1.0",)
    without: frozenset[str] = frozenset()
    loopback_bypass: bool = False
    users: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Agent:
    """One registered agent. Moments are seconds since the epoch; hashes are SHA-256, hex."""

    agent_id: str
    name: str
    version: str
    capabilities: Any
    system_info: Any
    last_heartbeat: float | None
    registered_at: float
    updated_at: float
    token_hash: str | None
    vault_seen: str | None
    previous_hash: str | None
    previous_until: float | None

    @classmethod
    def of_row(cls, row: sqlite3.Row) -> Agent:
        """Read a database row."""
        values = dict(row)
        values["capabilities"], values["system_info"] = json.loads(row["capabilities"]), json.loads(row["system_info"])
        return cls(**values)


@dataclass(frozen=True)
class Registration:
    """What an agent says of itself."""

    name: str
    version: str
    capabilities: list[str]
    system_info: Any


@dataclass(frozen=True)
class Caller:
    """Who sent a request: an agent, a user, or nobody known."""

    role: str
    agent: Agent | None = None
    email: str | None = None


class _Records:
    """The tables of one Stacker."""

    def __init__(self, shared: Shared) -> None:
        self._db = shared.database
        self._now = shared.clock.now
        self._db.create(_SCHEMA)

    def by_name(self, name: str) -> Agent | None:
        row = self._db.one("SELECT * FROM stacker_agents WHERE name = ?", name)
        return None if row is None else Agent.of_row(row)

    def by_id(self, agent_id: str) -> Agent | None:
        row = self._db.one("SELECT * FROM stacker_agents WHERE agent_id = ?", agent_id)
        return None if row is None else Agent.of_row(row)

    def by_token_hash(self, token_hash: str) -> list[Agent]:
        """Return whoever has this token, or had it before the one of now."""
        rows = self._db.all("SELECT * FROM stacker_agents WHERE token_hash = ? OR previous_hash = ?", token_hash, token_hash)
        return [Agent.of_row(row) for row in rows]

    def every(self) -> list[Agent]:
        return [Agent.of_row(row) for row in self._db.all("SELECT * FROM stacker_agents ORDER BY registered_at, name")]

    def insert(self, registration: Registration, token_hash: str | None, vault_seen: str | None) -> Agent:
        """Create a record. Raises sqlite3.IntegrityError when the name is taken."""
        now = self._now()
        self._db.run(
            "INSERT INTO stacker_agents VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, NULL, NULL)",
            str(uuid.uuid4()),
            registration.name,
            registration.version,
            json.dumps(registration.capabilities),
            json.dumps(registration.system_info),
            now,
            now,
            token_hash,
            vault_seen,
        )
        agent = self.by_name(registration.name)
        if agent is None:
            raise LookupError(registration.name)
        return agent

    def update(self, registration: Registration) -> None:
        self._db.run(
            "UPDATE stacker_agents SET version = ?, capabilities = ?, system_info = ?, updated_at = ? WHERE name = ?",
            registration.version,
            json.dumps(registration.capabilities),
            json.dumps(registration.system_info),
            self._now(),
            registration.name,
        )

    def add_capability(self, agent: Agent, capability: str) -> None:
        if capability not in agent.capabilities:
            listed = json.dumps([*agent.capabilities, capability])
            self._db.run("UPDATE stacker_agents SET capabilities = ? WHERE agent_id = ?", listed, agent.agent_id)

    def heartbeat(self, agent: Agent) -> None:
        self._db.run("UPDATE stacker_agents SET last_heartbeat = ? WHERE agent_id = ?", self._now(), agent.agent_id)

    def set_token(self, agent: Agent, token_hash: str, vault_seen: str | None, previous: str | None, until: float | None) -> Agent:
        self._db.run(
            "UPDATE stacker_agents SET token_hash = ?, vault_seen = ?, previous_hash = ?, previous_until = ? WHERE agent_id = ?",
            token_hash,
            vault_seen,
            previous,
            until,
            agent.agent_id,
        )
        return self.by_id(agent.agent_id) or agent

    def delete(self, name: str) -> bool:
        self._db.run("DELETE FROM stacker_commands WHERE name = ?", name)
        return self._db.run("DELETE FROM stacker_agents WHERE name = ?", name) > 0

    def clear(self) -> None:
        self._db.run("DELETE FROM stacker_agents")
        self._db.run("DELETE FROM stacker_commands")
        self._db.run("DELETE FROM stacker_deployments")
        self._db.run("DELETE FROM stacker_sessions")

    def own(self, name: str, owner: str | None) -> None:
        self._db.run("INSERT OR IGNORE INTO stacker_deployments VALUES (?, ?, ?)", name, owner, self._now())

    def owned(self, email: str) -> list[tuple[str, float]]:
        """Deployments of one user, with their age: their own, and those that belong to nobody."""
        rows = self._db.all(
            """SELECT name, created_at FROM stacker_deployments WHERE owner IS NULL OR owner = ?
               UNION SELECT name, registered_at FROM stacker_agents
               WHERE name NOT IN (SELECT name FROM stacker_deployments) ORDER BY 2, 1""",
            email,
        )
        return [(row["name"], row["created_at"]) for row in rows]

    def known(self, name: str) -> bool:
        return self.by_name(name) is not None or self._db.one("SELECT 1 FROM stacker_deployments WHERE name = ?", name) is not None

    def open_session(self, email: str) -> str:
        token = _new_token()
        self._db.run("INSERT INTO stacker_sessions VALUES (?, ?)", _hash(token), email)
        return token

    def session(self, token: str) -> str | None:
        row = self._db.one("SELECT email FROM stacker_sessions WHERE token_hash = ?", _hash(token))
        return None if row is None else str(row["email"])

    def enqueue(self, name: str, kind: str, spec: Mapping[str, Any], created_by: str) -> sqlite3.Row:
        """Queue a command and return it."""
        command_id, now = f"cmd_{uuid.uuid4()}", self._now()
        self._db.run(
            """INSERT INTO stacker_commands (id, command_id, name, type, status, priority, parameters, created_by, created_at, updated_at,
               timeout_seconds, metadata) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)""",
            str(uuid.uuid4()),
            command_id,
            name,
            kind,
            spec.get("priority", "normal"),
            json.dumps(spec.get("parameters")),
            created_by,
            now,
            now,
            spec.get("timeout_seconds", 300),
            json.dumps(spec.get("metadata")),
        )
        command = self.command(command_id)
        if command is None:
            raise LookupError(command_id)
        return command

    def command(self, command_id: str) -> sqlite3.Row | None:
        return self._db.one("SELECT * FROM stacker_commands WHERE command_id = ?", command_id)

    def commands(self, name: str, limit: int) -> list[sqlite3.Row]:
        return self._db.all("SELECT * FROM stacker_commands WHERE name = ? ORDER BY number DESC LIMIT ?", name, limit)

    def queued_commands(self, name: str) -> list[sqlite3.Row]:
        return self._db.all("SELECT * FROM stacker_commands WHERE name = ? AND status = 'queued' ORDER BY number", name)

    def next_command(self, name: str) -> sqlite3.Row | None:
        """The most urgent, then oldest, queued command; it counts as sent from now on."""
        row = self._db.one(
            """SELECT * FROM stacker_commands WHERE name = ? AND status = 'queued' ORDER BY
               CASE priority WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2 ELSE 3 END, number LIMIT 1""",
            name,
        )
        if row is None:
            return None
        self._db.run("UPDATE stacker_commands SET status = 'sent', updated_at = ? WHERE command_id = ?", self._now(), row["command_id"])
        return self.command(row["command_id"])

    def finish(self, command_id: str, status: str, result: Any, error: Any) -> None:
        self._db.run(
            "UPDATE stacker_commands SET status = ?, result = ?, error = ?, updated_at = ? WHERE command_id = ?",
            status,
            json.dumps(result),
            json.dumps(error),
            self._now(),
            command_id,
        )


class Stacker(ControlPlane):
    """What both contracts share: the endpoints, heartbeats, commands, and the late write to Vault."""

    name = "stacker"
    own_faults = frozenset({"late-vault-write", "no-vault-write"})
    shortest_wait = 0.0

    def __init__(self, shared: Shared, config: Config, vault: TokenVault | None) -> None:
        self.shared = shared
        self.config = config
        self.vault = vault
        self.records = _Records(shared)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._started = time.monotonic()

    # The two contracts differ in these.

    @abstractmethod
    def reply(self, status: int, message: str, item: Any = None, **more: Any) -> Answer:
        """A success in this contract's envelope. ``more`` adds ``list`` or ``meta``."""

    @abstractmethod
    def failure(self, status: int, message: str) -> Answer:
        """An error in this contract's manner."""

    @abstractmethod
    async def identify(self, call: Call) -> Caller:
        """Who is calling. Raises RefusalError when a credential was shown and is not good."""

    @abstractmethod
    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """The JSON object of a request, with these keys present. Raises RefusalError."""

    @abstractmethod
    async def register(self, call: Call) -> Answer:
        """``POST /api/v1/agent/register``."""

    @abstractmethod
    async def credentials_for(self, registration: Registration) -> tuple[Agent, str]:
        """Create or reuse an agent and its token, for ``link``."""

    @abstractmethod
    async def token_matches(self, agent: Agent, token: str) -> bool:
        """Whether this is the agent's token now. Raises VaultError where only Vault could tell and cannot."""

    @abstractmethod
    def not_allowed(self) -> Answer:
        """The answer when a known caller may not use an endpoint."""

    # Hooks of the service and the control API.

    def routes(self) -> Sequence[Route]:
        """The endpoints this contract and configuration offer."""
        api = "/api/v1"
        offered = {
            "": [
                Route("POST", f"{api}/agent/register", "register", "mutating", self.register, self._subject),
                Route("GET", f"{api}/agent/commands/wait/{{name}}", "wait", "agent", self.wait),
                Route("POST", f"{api}/agent/commands/report", "report", "agent", self.report),
                *self.extra_routes(),
            ],
            "notifications": [Route("GET", f"{api}/agent/notifications", "notifications", "read", self.notifications)],
            "deployments": [Route("GET", f"{api}/agent/deployments/{{name}}", "snapshot", "read", self.snapshot)],
            "capabilities": [Route("GET", f"{api}/deployments/{{name}}/capabilities", "capabilities", "read", self.capabilities)],
            "enqueue": [Route("POST", f"{api}/agent/commands/enqueue", "enqueue", "mutating", self.enqueue)],
            "login": [Route("POST", f"{api}/agent/login", "login", "login", self.login)],
            "link": [Route("POST", f"{api}/agent/link", "link", "mutating", self.link)],
            "health_check": [Route("GET", "/health_check", "health", "read", self.health_check)],
            "metrics": [Route("GET", "/metrics", "metrics", "read", self.metrics)],
        }
        return [route for feature, routes in offered.items() if feature not in self.config.without for route in routes]

    def extra_routes(self) -> list[Route]:
        """Endpoints only one contract has."""
        return []

    def broken(self) -> Answer:
        """500 in this contract's manner."""
        return self.failure(500, "Internal Server Error")

    def answer_faults(self) -> Mapping[str, Callable[[Answer], Answer]]:
        """``missing-token`` (201 or 200 without agent_token) and ``bad-api-version`` (only 9.9 is supported)."""
        return {
            "missing-token": lambda answer: _changed_item(answer, agent_token=None),
            "bad-api-version": lambda answer: _changed_item(answer, supported_api_versions=["9.9"]),
        }

    def agents(self) -> list[dict[str, Any]]:
        """Every record, without secrets."""
        moment = self.shared.clock.rfc3339
        return [
            {
                "control_plane": self.name,
                "agent_id": agent.agent_id,
                "name": agent.name,
                "version": agent.version,
                "capabilities": agent.capabilities,
                "system_info": agent.system_info,
                "last_heartbeat": moment(agent.last_heartbeat),
                "registered_at": moment(agent.registered_at),
                "updated_at": moment(agent.updated_at),
            }
            for agent in self.records.every()
        ]

    def forget(self, name: str) -> bool:
        """Lose the record. What Vault holds stays, as it would in life."""
        return self.records.delete(name)

    async def accepts(self, name: str, token: str) -> bool:
        """Whether this token would pass for this name now."""
        agent = self.records.by_name(name)
        if agent is None:
            return False
        with contextlib.suppress(VaultError):
            return await self.token_matches(agent, token)
        return False

    def own(self, name: str, owner: str | None) -> None:
        """Make a deployment known before an agent registered for it."""
        self.records.own(name, owner)

    async def reset(self) -> None:
        """Drop every record, and forget pending writes."""
        await self._cancel_tasks()
        self.records.clear()
        if self.vault is not None:
            await self.vault.reset()

    async def close(self) -> None:
        """Let waiting agents go, stop background writes, close connections."""
        self._stopping.set()
        await self._cancel_tasks()
        if self.vault is not None:
            await self.vault.close()

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Endpoints.

    async def notifications(self, call: Call) -> Answer:
        """Always empty, and changes nothing: the call that proves a token."""
        agent = await self._agent(call)
        self._must_be_own(agent, call.query.get("deployment_hash", agent.name))
        return self.reply(200, "OK", {"notifications": []})

    async def wait(self, call: Call) -> Answer:
        """The heartbeat: waits for a command and takes it off the queue."""
        agent = await self._agent(call)
        self._must_be_own(agent, call.parameters["name"])
        self.records.heartbeat(agent)
        timeout = _clamped(call.query.get("timeout"), 30.0, self.shortest_wait, 120.0)
        interval = _clamped(call.query.get("interval"), 3.0, 1.0, 10.0)
        command = await self._next_command(call, agent, time.monotonic() + timeout, interval)
        message = "No command available" if command is None else "Command available"
        return self.reply(200, message, self._command(command), meta={"next_poll_secs": int(interval)})

    async def _next_command(self, call: Call, agent: Agent, deadline: float, interval: float) -> sqlite3.Row | None:
        while not self._stopping.is_set() and not call.client_has_left():
            command = self.records.next_command(agent.name)
            left = deadline - time.monotonic()
            if command is not None or left <= 0:
                return command
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(interval, left))
        return None

    async def report(self, call: Call) -> Answer:
        """Take the result of a command; counts as a heartbeat."""
        agent = await self._agent(call)
        spec = await self.object_of(call, ("command_id", "deployment_hash", "status", "completed_at"))
        self._must_be_own(agent, str(spec["deployment_hash"]))
        self.records.heartbeat(agent)
        status = str(spec.get("command_status") or spec["status"]).lower()
        if status not in ("completed", "failed"):
            raise RefusalError(self.failure(400, "command_status must be completed or failed"))
        command = self.records.command(str(spec["command_id"]))
        if command is None or command["name"] != agent.name:
            raise RefusalError(self.failure(404, "Command not found"))
        self.records.finish(command["command_id"], status, spec.get("result"), spec.get("error") or spec.get("errors"))
        return self.reply(200, "OK", {"accepted": True, "message": "Command result accepted"})

    async def snapshot(self, call: Call) -> Answer:
        """What the dashboard shows of one deployment. An unknown one is shown as having no agent."""
        caller = await self._known(call)
        name = call.parameters["name"]
        self.may_look(caller, name)
        agent = self.records.by_name(name)
        limit = int(_clamped(call.query.get("command_limit"), 50, 0, 1000))
        full = call.query.get("include_command_results", "false") == "true"
        commands = [self._command(row, full) for row in self.records.commands(name, limit)]
        item = {"agent": self._shown(agent), "commands": commands, "containers": [], "apps": []}
        return self.reply(200, "OK", item)

    def may_look(self, caller: Caller, name: str) -> None:
        """Refuse callers who may not see this deployment. As shipped, everybody known may."""

    async def capabilities(self, call: Call) -> Answer:
        """What one deployment's agent says it can do."""
        caller = await self._known(call)
        name = call.parameters["name"]
        agent = self.records.by_name(name)
        if caller.agent is not None:
            self._must_be_own(caller.agent, name)
        if agent is None:
            raise RefusalError(self.failure(404, "Deployment not found"))
        can = set(agent.capabilities)
        features = {
            "kata_runtime": "kata" in can,
            "compose": "compose" in can,
            "backup": "backup" in can,
            "pipes": "pipes" in can,
            "proxy_credentials_vault": "npm_credential_source=vault" in can,
        }
        item = {
            "deployment_hash": agent.name,
            "agent_id": agent.agent_id,
            "status": "offline" if agent.last_heartbeat is None else "online",
            "last_heartbeat": self.shared.clock.rfc3339(agent.last_heartbeat),
            "version": agent.version,
            "system_info": agent.system_info,
            "capabilities": agent.capabilities,
            "commands": [],
            "features": features,
        }
        return self.reply(200, "OK", item)

    async def enqueue(self, call: Call) -> Answer:
        """Queue a command for an agent; for users."""
        caller = await self._known(call)
        if caller.agent is not None:
            raise RefusalError(self.not_allowed())
        spec = await self.object_of(call, ("deployment_hash", "command_type"))
        name, kind = str(spec["deployment_hash"]), str(spec["command_type"])
        if spec.get("priority", "normal") not in ("low", "normal", "high", "critical"):
            raise RefusalError(self.failure(400, "priority must be low, normal, high or critical"))
        if name not in {owned for owned, _created in self.records.owned(caller.email or "")}:
            raise RefusalError(self.failure(404, "Deployment not found"))
        row = self.records.enqueue(name, kind, spec, caller.email or caller.role)
        return self.reply(201, "Command enqueued", self._command(row))

    async def login(self, call: Call) -> Answer:
        """Open a user session."""
        spec = await self.object_of(call, ("email", "password"))
        users = self.config.users or {}
        expected = users.get(str(spec["email"]))
        if expected is None or not hmac.compare_digest(expected.encode(), str(spec["password"]).encode()):
            raise RefusalError(self.failure(403, "Authentication failed (401 Unauthorized)"))
        email = str(spec["email"])
        deployments = [
            {
                "deployment_id": name,
                "stack_name": name,
                "status": "completed",
                "created_at": time.strftime("%Y-%m-%d %H:%M", time.gmtime(created)),
                "server_ip": None,
            }
            for name, created in self.records.owned(email)
        ]
        user_id = str(sorted(users).index(email) + 1)
        return Answer.of_json(200, {"session_token": self.records.open_session(email), "user_id": user_id, "deployments": deployments})

    async def link(self, call: Call) -> Answer:
        """Hand an agent's credentials to a user who owns the deployment."""
        spec = await self.object_of(call, ("session_token", "deployment_id", "server_fingerprint"))
        email, name = self.records.session(str(spec["session_token"])), str(spec["deployment_id"])
        if email is None:
            raise RefusalError(self.failure(403, "Invalid or expired session"))
        if not self.records.known(name):
            raise RefusalError(self.failure(404, "Deployment not found"))
        if name not in {owned for owned, _created in self.records.owned(email)}:
            raise RefusalError(self.failure(403, "Not authorized for this deployment"))
        known = self.records.by_name(name)
        listed = spec.get("capabilities") or (known.capabilities if known else [])
        wanted = [*listed, *(() if "status_panel" in listed else ("status_panel",))]
        agent, token = await self.credentials_for(
            Registration(name, known.version if known else "0.0.0", wanted, known.system_info if known else {})
        )
        self.records.add_capability(agent, "status_panel")
        host = call.headers.get("Host", "localhost")
        item = {"agent_id": agent.agent_id, "agent_token": token, "deployment_hash": name, "dashboard_url": f"https://{host}"}
        return Answer.of_json(200, item)

    async def health_check(self, call: Call) -> Answer:
        """Whether the server is up, and whether its Vault is."""
        vault = "healthy" if self.vault is None or await self.vault.alive() else "unhealthy"
        others = ("database", "rabbitmq", "dockerhub", "redis", "user_service", "install_service")
        quiet = {component: {"status": "healthy"} for component in others}
        item = {
            "status": "healthy" if vault == "healthy" else "degraded",
            "timestamp": self.shared.clock.rfc3339(self.shared.clock.now()),
            "version": self.config.dashboard_version,
            "uptime_seconds": int(time.monotonic() - self._started),
            "components": {**quiet, "vault": {"status": vault}},
        }
        return Answer.of_json(200, item)

    async def metrics(self, call: Call) -> Answer:
        """Prometheus text: how many agents there are, and how many are online."""
        agents = self.records.every()
        online = sum(self._online(agent) for agent in agents)
        text = (
            "# HELP stacker_agents Registered agents.\n# TYPE stacker_agents gauge\n"
            f"stacker_agents {len(agents)}\n"
            "# HELP stacker_agents_online Agents with a recent heartbeat.\n# TYPE stacker_agents_online gauge\n"
            f"stacker_agents_online {online}\n"
        )
        return Answer.of_text(200, text)

    # Shared steps.

    def credentials(self, agent: Agent, token: str) -> dict[str, Any]:
        """The four keys of a registration's answer."""
        return {
            "agent_id": agent.agent_id,
            "agent_token": token,
            "dashboard_version": self.config.dashboard_version,
            "supported_api_versions": list(self.config.api_versions),
        }

    def store_later(self, name: str, token: str, pauses: Sequence[float] = VAULT_PAUSES) -> None:
        """Write a token to Vault in the background; the result is nobody's business but the log's."""
        if self.vault is None or self.shared.faults.take({"no-vault-write"}, "register", name) is not None:
            return
        late = self.shared.faults.take({"late-vault-write"}, "register", name)
        task = asyncio.create_task(self._store(self.vault, name, token, late.seconds(5.0) if late else 0.0, pauses))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store(self, vault: TokenVault, name: str, token: str, delay: float, pauses: Sequence[float]) -> None:
        await asyncio.sleep(delay)
        for pause in (0.0, *pauses):
            await asyncio.sleep(pause)
            if await _written(vault, name, token):
                return

    async def _subject(self, call: Call) -> str:
        """The deployment a registration is about; empty when the body is no good."""
        with contextlib.suppress(BodyTooLargeError, ValueError):
            spec = json.loads(await call.body())
            if isinstance(spec, dict):
                return str(spec.get("deployment_hash", ""))
        return ""

    async def _known(self, call: Call) -> Caller:
        """A caller who is somebody."""
        caller = await self.identify(call)
        if caller.role == "anonymous":
            raise RefusalError(self.not_allowed())
        return caller

    async def _agent(self, call: Call) -> Agent:
        """A caller who is an agent."""
        caller = await self._known(call)
        if caller.agent is None:
            raise RefusalError(self.not_allowed())
        return caller.agent

    def _must_be_own(self, agent: Agent, name: str) -> None:
        if agent.name != name:
            raise RefusalError(self.failure(403, "Not authorized for this deployment"))

    def _online(self, agent: Agent) -> bool:
        return agent.last_heartbeat is not None and self.shared.clock.now() - agent.last_heartbeat <= ONLINE_SECONDS

    def _shown(self, agent: Agent | None) -> dict[str, Any] | None:
        if agent is None:
            return None
        return {
            "id": agent.agent_id,
            "version": agent.version,
            "capabilities": agent.capabilities,
            "system_info": agent.system_info,
            "status": "online" if self._online(agent) else "offline",
            "last_heartbeat": self.shared.clock.rfc3339(agent.last_heartbeat),
            "deployment_hash": agent.name,
        }

    def _command(self, row: sqlite3.Row | None, full: bool = True) -> dict[str, Any] | None:
        if row is None:
            return None
        moment = self.shared.clock.rfc3339
        return {
            "id": row["id"],
            "command_id": row["command_id"],
            "deployment_hash": row["name"],
            "type": row["type"],
            "status": row["status"],
            "priority": row["priority"],
            "parameters": json.loads(row["parameters"] or "null"),
            "result": json.loads(row["result"] or "null") if full else None,
            "error": json.loads(row["error"] or "null") if full else None,
            "created_by": row["created_by"],
            "created_at": moment(row["created_at"]),
            "updated_at": moment(row["updated_at"]),
            "timeout_seconds": row["timeout_seconds"],
            "metadata": json.loads(row["metadata"] or "null"),
        }


class ShippedStacker(Stacker):
    """Stacker as it ships. Vault is the only place that knows tokens."""

    shortest_wait = 5.0

    def __init__(self, shared: Shared, config: Config, vault: TokenVault) -> None:
        super().__init__(shared, config, vault)
        self._tokens = vault

    def reply(self, status: int, message: str, item: Any = None, **more: Any) -> Answer:
        """``{"message", "item", ...}``."""
        return Answer.of_json(status, {"message": message, "item": item, **more})

    def failure(self, status: int, message: str) -> Answer:
        """JSON text, labelled as plain text."""
        return Answer.of_text(status, json.dumps({"message": message}))

    def not_allowed(self) -> Answer:
        """What the access rules say: 403 and not a word."""
        return Answer(403)

    async def no_route(self, call: Call) -> Answer:
        """Authentication comes before routing, so a bad credential is a 400 even here."""
        await self.identify(call)
        return Answer(404)

    async def identify(self, call: Call) -> Caller:
        """Agent by ``X-Agent-Id``; else a signed-looking bearer, a user's session, or anonymous."""
        agent_id = call.headers.get("X-Agent-Id")
        authorization = call.headers.get("Authorization")
        if agent_id is not None:
            return Caller("agent", agent=await self._agent_by_header(agent_id, authorization))
        if authorization is None:
            return Caller("anonymous")
        scheme, _space, bearer = authorization.partition(" ")
        if scheme != "Bearer":
            raise RefusalError(self.failure(400, "Bearer missing scheme"))
        claims = _unverified_claims(bearer)
        if claims is not None:
            if claims["exp"] <= self.shared.clock.now():
                raise RefusalError(self.failure(400, "Token expired"))
            return Caller(claims["role"], email=claims["email"])
        email = self.records.session(bearer)
        if email is None:
            raise RefusalError(self.failure(400, "401 Unauthorized"))
        return Caller("group_user", email=email)

    async def _agent_by_header(self, agent_id: str, authorization: str | None) -> Agent:
        try:
            wanted = str(uuid.UUID(agent_id))
        except ValueError as error:
            raise RefusalError(self.failure(400, "Invalid agent ID format")) from error
        if authorization is None:
            raise RefusalError(self.failure(400, "Authorization header required for agent"))
        scheme, _space, token = authorization.partition(" ")
        if scheme != "Bearer":
            raise RefusalError(self.failure(400, "Invalid Authorization header format"))
        agent = self.records.by_id(wanted)
        if agent is None:
            raise RefusalError(self.failure(400, "Agent not found"))
        try:
            if await self.token_matches(agent, token):
                return agent
        except VaultError as trouble:
            raise RefusalError(self.failure(400, f"Token not found in Vault: {trouble.reason}")) from trouble
        raise RefusalError(self.failure(400, "Invalid agent token"))

    async def token_matches(self, agent: Agent, token: str) -> bool:
        """Ask Vault, every time. With ``loopback_bypass`` a Vault on loopback that has no answer lets everybody in."""
        try:
            return hmac.compare_digest((await self._tokens.read(agent.name)).encode(), token.encode())
        except VaultError:
            if self.config.loopback_bypass and self._vault_is_loopback():
                return True
            raise

    def _vault_is_loopback(self) -> bool:
        return any(mark in self._tokens.address for mark in ("127.0.0.1", "localhost", "in-process"))

    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """Parse as the shipped server does; its error text is not escaped, so it may not be JSON itself."""
        if not call.headers.get("Content-Type", "").startswith("application/json"):
            raise RefusalError(_unparsed("other", "Content type error"))
        try:
            body = await call.body()
        except BodyTooLargeError as error:
            raise RefusalError(_unparsed("other", "JSON payload has exceeded limit (2097152 bytes).")) from error
        try:
            spec = json.loads(body)
        except ValueError as error:
            raise RefusalError(_undeserialized(body, "expected value")) from error
        if not isinstance(spec, dict):
            raise RefusalError(_undeserialized(body, f"invalid type: {_serde_type(spec)}, expected struct"))
        for key in required:
            if key not in spec:
                raise RefusalError(_undeserialized(body, f"missing field `{key}`"))
        return spec

    async def register(self, call: Call) -> Answer:
        """201 for a new hash, 200 with the existing token for a known one."""
        await self.identify(call)
        spec = await self.object_of(call, ("deployment_hash", "capabilities", "system_info", "agent_version"))
        body = await call.body()
        for key in ("deployment_hash", "agent_version"):
            if not isinstance(spec[key], str):
                raise RefusalError(_undeserialized(body, f"invalid type: {_serde_type(spec[key])}, expected a string"))
        if not isinstance(spec["capabilities"], list):
            raise RefusalError(_undeserialized(body, f"invalid type: {_serde_type(spec['capabilities'])}, expected a sequence"))
        for item in spec["capabilities"]:
            if not isinstance(item, str):
                raise RefusalError(_undeserialized(body, f"invalid type: {_serde_type(item)}, expected a string"))
        registration = Registration(spec["deployment_hash"], spec["agent_version"], spec["capabilities"], spec["system_info"])
        created = self.records.by_name(registration.name) is None
        agent, token = await self.credentials_for(registration)
        return Answer.of_json(201 if created else 200, {"data": {"item": self.credentials(agent, token)}})

    async def credentials_for(self, registration: Registration) -> tuple[Agent, str]:
        """Insert, or update and read the token back from Vault; whatever Vault's error, there is a token."""
        known = self.records.by_name(registration.name)
        # Between the look-up and the insert the shipped server waits for its database: two first
        # registrations at once both get here, and the slower one hits the unique index.
        await asyncio.sleep(0)
        if known is None:
            return self._first(registration)
        if len(registration.version) > 50:
            raise RefusalError(self.failure(500, "Failed to update agent"))
        self.records.update(registration)
        try:
            return known, await self._tokens.read(known.name)
        except VaultError:
            token = _new_token()
            self.store_later(known.name, token)
            return known, token

    def _first(self, registration: Registration) -> tuple[Agent, str]:
        if len(registration.name) > 128 or len(registration.version) > 50:
            raise RefusalError(self.failure(500, "Failed to create agent"))
        try:
            agent = self.records.insert(registration, token_hash=None, vault_seen=None)
        except sqlite3.IntegrityError as error:
            raise RefusalError(self.failure(500, "Failed to create agent")) from error
        token = _new_token()
        self.store_later(agent.name, token)
        return agent, token

    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Put another token into Vault: from now on nothing else passes."""
        if self.records.by_name(name) is None:
            return False
        await self._tokens.write(name, _new_token())
        return True


class DocumentedStacker(Stacker):
    """Stacker as the guide tells it. The database knows tokens; a changed Vault wins, with an overlap."""

    def reply(self, status: int, message: str, item: Any = None, **more: Any) -> Answer:
        """``{"data": {"item": ...}, "status", "message"}``."""
        return Answer.of_json(status, {"data": {"item": item, **more}, "status": status, "message": message})

    def failure(self, status: int, message: str) -> Answer:
        """``{"data": {}, "status", "message"}``."""
        return Answer.of_json(status, {"data": {}, "status": status, "message": message})

    def not_allowed(self) -> Answer:
        """401: who is asking?"""
        return self.failure(401, "Authentication required")

    def extra_routes(self) -> list[Route]:
        """The guide's command list."""
        return [Route("GET", "/api/v1/commands", "commands", "agent", self.commands)]

    async def no_route(self, call: Call) -> Answer:
        """A plain 404."""
        return self.failure(404, "Not Found")

    async def commands(self, call: Call) -> Answer:
        """Queued commands of the caller; a heartbeat that takes nothing off the queue."""
        agent = await self._agent(call)
        self.records.heartbeat(agent)
        queued = [self._command(row) for row in self.records.queued_commands(agent.name)]
        return Answer.of_json(200, {"data": {"list": queued}, "status": 200, "message": "OK"})

    def may_look(self, caller: Caller, name: str) -> None:
        """An agent sees its own deployment, a user sees those owned."""
        if caller.agent is not None:
            self._must_be_own(caller.agent, name)
        elif self.records.known(name) and name not in {owned for owned, _created in self.records.owned(caller.email or "")}:
            raise RefusalError(self.failure(403, "Not authorized for this deployment"))

    async def identify(self, call: Call) -> Caller:
        """``X-Agent-Id`` with a bearer, or a bearer alone (an agent's token or a user's session)."""
        agent_id = call.headers.get("X-Agent-Id")
        scheme, _space, bearer = call.headers.get("Authorization", "").partition(" ")
        if not bearer and agent_id is None and not scheme:
            return Caller("anonymous")
        if scheme != "Bearer" or not bearer:
            raise RefusalError(self.failure(401, "Bearer token required"))
        if agent_id is not None:
            agent = self.records.by_id(agent_id)
            if agent is not None and await self.token_matches(agent, bearer):
                return Caller("agent", agent=agent)
            raise RefusalError(self.failure(401, "Invalid agent credentials"))
        email = self.records.session(bearer)
        if email is not None:
            return Caller("user", email=email)
        for agent in self._candidates(call, bearer):
            if await self.token_matches(agent, bearer):
                return Caller("agent", agent=agent)
        raise RefusalError(self.failure(401, "Invalid token"))

    def _candidates(self, call: Call, bearer: str) -> Iterator[Agent]:
        """Agents a lone bearer may belong to, the likely ones first: Vault may hold a token the database has not seen."""
        hinted = self.records.by_name(call.parameters.get("name") or call.query.get("deployment_hash") or "")
        likely = [*self.records.by_token_hash(_hash(bearer)), *([hinted] if hinted is not None else [])]
        yield from likely
        tried = {agent.agent_id for agent in likely}
        yield from (agent for agent in self.records.every() if agent.agent_id not in tried)

    async def token_matches(self, agent: Agent, token: str) -> bool:
        """Compare with the current token, and with the previous one while the overlap lasts."""
        current = await self._synchronised(agent)
        wanted = _hash(token)
        if current is None:
            return False
        if current.token_hash is not None and hmac.compare_digest(current.token_hash, wanted):
            return True
        overlapping = current.previous_until is not None and time.time() < current.previous_until
        return overlapping and current.previous_hash is not None and hmac.compare_digest(current.previous_hash, wanted)

    async def _synchronised(self, agent: Agent) -> Agent | None:
        """Take over what Vault holds, once it changed. None: Vault held a token and it was deleted, which revokes."""
        if self.vault is None:
            return agent
        try:
            seen = _hash(await self.vault.read(agent.name))
        except VaultError as trouble:
            return None if trouble.missing and agent.vault_seen is not None else agent
        if seen == agent.vault_seen:
            return agent
        if seen == agent.token_hash:
            return self.records.set_token(agent, seen, seen, agent.previous_hash, agent.previous_until)
        # The overlap runs from the moment the server sees the change: an idle server has seen nothing yet.
        return self.records.set_token(agent, seen, seen, agent.token_hash, time.time() + self.config.overlap)

    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """Parse, with the guide's kind of messages."""
        if not call.headers.get("Content-Type", "").startswith("application/json"):
            raise RefusalError(self.failure(400, "Invalid JSON: Content-Type must be application/json"))
        try:
            spec = json.loads(await call.body())
        except BodyTooLargeError as error:
            raise RefusalError(self.failure(400, "Invalid JSON: body too large")) from error
        except ValueError as error:
            raise RefusalError(self.failure(400, "Invalid JSON: not parsable")) from error
        if not isinstance(spec, dict):
            raise RefusalError(self.failure(400, "Invalid JSON: expected an object"))
        for key in required:
            if key not in spec:
                raise RefusalError(self.failure(400, f"Invalid JSON: missing field '{key}'"))
        return spec

    async def register(self, call: Call) -> Answer:
        """201 for a new deployment, 409 for a known one."""
        await self.identify(call)
        spec = await self.object_of(call, ("deployment_hash", "agent_version", "capabilities", "system_info"))
        complaint = _complaint(spec)
        if complaint is not None:
            raise RefusalError(self.failure(400, complaint))
        registration = Registration(spec["deployment_hash"], spec["agent_version"], spec["capabilities"], spec["system_info"])
        if self.records.by_name(registration.name) is not None:
            raise RefusalError(self.failure(409, "Agent already registered for this deployment"))
        agent, token = await self._first(registration)
        return self.reply(201, "Agent registered", self.credentials(agent, token))

    async def _first(self, registration: Registration) -> tuple[Agent, str]:
        # A leaf left over from an earlier life of this name is not a change made after this registration.
        leftover = await self._vault_now(registration.name)
        token = _new_token()
        try:
            agent = self.records.insert(registration, _hash(token), leftover)
        except sqlite3.IntegrityError as error:
            raise RefusalError(self.failure(409, "Agent already registered for this deployment")) from error
        self.store_later(agent.name, token)
        return agent, token

    async def _vault_now(self, name: str) -> str | None:
        if self.vault is not None:
            with contextlib.suppress(VaultError):
                return _hash(await self.vault.read(name))
        return None

    async def credentials_for(self, registration: Registration) -> tuple[Agent, str]:
        """A linked agent that exists gets a new token: the database keeps no token to repeat."""
        known = self.records.by_name(registration.name)
        if known is None:
            return await self._first(registration)
        self.records.update(registration)
        token = _new_token()
        agent = self.records.set_token(known, _hash(token), known.vault_seen, known.token_hash, time.time() + self.config.overlap)
        self.store_later(agent.name, token, pauses=())
        return agent, token

    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Change the token at once, without overlap; in Vault too unless ``{"vault": false}``."""
        agent = self.records.by_name(name)
        if agent is None:
            return False
        token = _new_token()
        seen = agent.vault_seen
        if self.vault is not None and options.get("vault", True):
            await self.vault.write(name, token)
            seen = _hash(token)
        self.records.set_token(agent, _hash(token), seen, None, None)
        return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Stacker's options to the command line."""
    group = parser.add_argument_group("Stacker")
    group.add_argument("--vault-url", help="Vault's base URL; without it: no Vault (documented), or one inside the server (shipped)")
    group.add_argument("--vault-ca", metavar="FILE", help="CA that signed Vault's certificate")
    group.add_argument("--vault-token-file", metavar="FILE", help="file with the server's own Vault token")
    group.add_argument("--vault-prefix", default="status_panel", help="mount, with /data for KV v2 (default: %(default)s)")
    group.add_argument("--overlap", type=float, default=120.0, metavar="SECONDS", help="documented: how long an old token stays valid")
    group.add_argument("--dashboard-version", default="2.0.0")
    group.add_argument("--api-versions", default="1.0", help="comma list of supported API versions")
    group.add_argument("--without", default="", metavar="FEATURES", help="comma list of endpoints that are absent (404)")
    group.add_argument("--loopback-bypass", choices=("on", "off"), default="off", help="shipped: a silent Vault on loopback lets agents in")
    group.add_argument("--user", action="append", default=[], metavar="EMAIL:PASSWORD", help="a user who may log in; repeatable")


def from_arguments(arguments: argparse.Namespace, shared: Shared) -> Stacker:
    """Build the Stacker the command line describes. Raises ValueError when options contradict each other."""
    if arguments.vault_url and not arguments.vault_token_file:
        raise ValueError("--vault-url needs --vault-token-file")
    users = dict(user.split(":", 1) for user in arguments.user if ":" in user)
    if len(users) != len(arguments.user):
        raise ValueError("--user takes EMAIL:PASSWORD")
    config = Config(
        overlap=arguments.overlap,
        dashboard_version=arguments.dashboard_version,
        api_versions=tuple(_listed(arguments.api_versions)),
        without=frozenset(_listed(arguments.without)),
        loopback_bypass=arguments.loopback_bypass == "on",
        users=users,
    )
    documented = arguments.contract == "documented"
    vault = _vault(arguments, DOCUMENTED_VAULT_TIMEOUT if documented else None)
    if documented:
        return DocumentedStacker(shared, config, vault)
    return ShippedStacker(shared, config, vault or StoreVault(shared.database))


def _vault(arguments: argparse.Namespace, timeout: float | None) -> TokenVault | None:
    if not arguments.vault_url:
        return None
    return HttpVault(arguments.vault_url, arguments.vault_prefix, arguments.vault_token_file, arguments.vault_ca, timeout)


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _complaint(spec: Mapping[str, Any]) -> str | None:
    """The first rule of the guide that a registration breaks, as a sentence."""
    name, version, capabilities, key = spec["deployment_hash"], spec["agent_version"], spec["capabilities"], spec.get("public_key")
    if not isinstance(name, str) or not name.strip():
        return "Invalid deployment_hash: must be a non-empty string"
    if len(name) > 255:
        return "Invalid deployment_hash: longer than 255 characters"
    if _UNUSABLE_IN_A_PATH.search(name):
        return "Invalid deployment_hash: not usable in a URL"
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        return "Invalid agent_version: must be a semantic version"
    if not isinstance(capabilities, list) or not capabilities:
        return "Invalid capabilities: must be a non-empty array"
    if not all(isinstance(item, str) and _CAPABILITY.fullmatch(item) for item in capabilities):
        return "Invalid capabilities: each must be 1-32 characters, lowercase alphanumeric or underscore"
    if not isinstance(spec["system_info"], dict):
        return "Invalid system_info: must be an object"
    if key is not None and not (isinstance(key, str) and key.startswith("-----BEGIN PUBLIC KEY-----")):
        return "Invalid public_key: must be PEM"
    return None


async def _written(vault: TokenVault, name: str, token: str) -> bool:
    try:
        await vault.write(name, token)
    except VaultError:
        return False
    return True


def _new_token() -> str:
    return "".join(secrets.choice(_TOKEN_ALPHABET) for _position in range(TOKEN_LENGTH))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _clamped(text: str | None, default: float, low: float, high: float) -> float:
    """A number from a query, kept within bounds; what is not a number counts as absent."""
    try:
        value = default if text is None else float(int(text))
    except ValueError:
        value = default
    return max(low, min(high, value))


def _changed_item(answer: Answer, **changes: Any) -> Answer:
    """Change keys of ``data.item``; None removes one."""
    payload = answer.payload
    item = payload.get("data", {}).get("item") if isinstance(payload, dict) else None
    if not isinstance(item, dict):
        return answer
    for key, value in changes.items():
        item.pop(key, None)
        if value is not None:
            item[key] = value
    return Answer.of_json(answer.status, payload)


def _unverified_claims(bearer: str) -> dict[str, Any] | None:
    """The claims of a JWT-shaped bearer. The shipped server checks no signature, only the shape and ``exp``."""
    parts = bearer.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    shaped = isinstance(claims, dict) and isinstance(claims.get("role"), str) and isinstance(claims.get("email"), str)
    return claims if shaped and isinstance(claims.get("exp"), int) else None


def _serde_type(value: Any) -> str:
    """How the shipped server's parser names a JSON value in an error; strings keep their quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "sequence" if isinstance(value, list) else "map"


def _undeserialized(body: bytes, message: str) -> Answer:
    """400 for a body of the wrong form. ``msg`` is not escaped, as shipped, so this is not always JSON."""
    lines = body.decode("utf-8", "replace").split("\n")
    line, column = len(lines), len(lines[-1])
    text = f'{{"kind":"deserialize","line":{line}, "column":{column}, "msg":"{message} at line {line} column {column}"}}'
    return Answer.of_text(400, text)


def _unparsed(kind: str, message: str) -> Answer:
    return Answer.of_text(400, json.dumps({"kind": kind, "msg": message}))
