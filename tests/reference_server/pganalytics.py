# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgAnalytics, the control plane of PostgreSQL collectors, in both of its contracts.

``DocumentedPgAnalytics`` is the published guide (collector registration and authentication): 201 and 409, ``{"error", "message"}``, tokens for a
year, certificates of the server's own CA with their fingerprint, token info, rotation, deletion by name, a bare list.
``ShippedPgAnalytics`` is the backend that ships (wire contract, sections 1 to 5): 200 and never a conflict, ``{"code", "message", "details"}``,
tokens for 30 minutes, self-signed certificates, a login that answers with a cookie, a list that never gets past its newest 20.

Both take metrics from a collector, which is what moves ``last_seen``. Not offered, since no operator's tool needs it: first-admin set-up,
password changes, explain plans, log ingestion.

Actions of the control API: ``expire`` (the server calls every token so far expired), ``lifetime`` (seconds, for tokens from now on), ``mint`` (a
token with times and claims of the test's choice), ``age`` (put a collector's birth into the past), ``registration-secret`` (what is in force).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import ipaddress
import json
import secrets
import sqlite3
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .core import Answer, BodyTooLargeError, Call, ControlPlane, RefusalError, Route, Shared

API = "/api/v1"
DEFAULT_SECRET = "reference-registration-secret-000"
YEAR = 365 * 86400.0
HALF_HOUR = 1800.0
USER_SESSION = 900
NEWEST = 20

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_OWNED = tuple(f"{API}/{part}" for part in ("collectors", "registration-secrets", "auth", "metrics", "config", "health"))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pganalytics_collectors (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, hostname TEXT NOT NULL, address TEXT, version TEXT,
    region TEXT, tags TEXT, status TEXT NOT NULL, last_seen REAL, metrics_count INTEGER NOT NULL, fingerprints TEXT NOT NULL, expired_before REAL,
    config_version INTEGER NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS pganalytics_secrets (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, value TEXT NOT NULL, active INTEGER NOT NULL, created_by INTEGER NOT NULL,
    created_by_username TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, expires_at REAL, total_registrations INTEGER NOT NULL,
    last_used_at REAL);
CREATE TABLE IF NOT EXISTS pganalytics_configs (collector_id TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pganalytics_keys (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

__all__ = ["DEFAULT_SECRET", "Config", "DocumentedPgAnalytics", "PgAnalytics", "ShippedPgAnalytics", "add_arguments", "from_arguments"]


@dataclass(frozen=True)
class User:
    """Somebody who may log in. ``role``: admin, user, viewer or inactive."""

    number: int
    name: str
    password: str
    role: str


@dataclass(frozen=True)
class Config:
    """How one pgAnalytics is set up. ``token_life`` in seconds (None: the contract's); ``without`` holds names of absent features.

    paging: ``stub`` (page 1 whatever is asked), ``working``, ``endless`` (every page is full of new names) or ``bare`` (no pages at all).
    rate: burst and refill per second, None for no limit. production: what the shipped server's environment is called.
    idle: ``last_seen`` never moves, as with the shipped schema. tenant_bug: every user's call about collectors fails, as since May 2026.
    """

    registration_secret: str = DEFAULT_SECRET
    users: tuple[User, ...] = ()
    token_life: float | None = None
    paging: str = ""
    page_size: int = NEWEST
    rate: tuple[float, float] | None = None
    without: frozenset[str] = frozenset()
    managed_secrets: bool = True
    idempotency: bool = False
    production: bool = False
    idle: bool = False
    tenant_bug: bool = False
    mtls: bool = False
    version: str = ""
    ca: tuple[str, str] | None = None


@dataclass(frozen=True)
class Collector:
    """One registered collector. Moments are seconds since the epoch."""

    number: int
    id: str
    name: str
    hostname: str
    address: str | None
    version: str | None
    region: str | None
    tags: Any
    status: str
    last_seen: float | None
    metrics_count: int
    fingerprints: list[str]
    expired_before: float | None
    config_version: int
    created_at: float
    updated_at: float

    @classmethod
    def of_row(cls, row: sqlite3.Row) -> Collector:
        """Read a database row."""
        values = dict(row)
        values["tags"], values["fingerprints"] = json.loads(row["tags"] or "null"), json.loads(row["fingerprints"])
        return cls(**values)


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, both PEM, and the SHA-256 of the certificate's DER in hexadecimal."""

    certificate: str
    private_key: str
    fingerprint: str


class _Records:
    """The tables of one pgAnalytics."""

    def __init__(self, shared: Shared) -> None:
        self._db = shared.database
        self._now = shared.clock.now
        self._db.create(_SCHEMA)

    def every(self) -> list[Collector]:
        """Oldest first."""
        return [Collector.of_row(row) for row in self._db.all("SELECT * FROM pganalytics_collectors ORDER BY number")]

    def by_id(self, collector_id: str) -> Collector | None:
        row = self._db.one("SELECT * FROM pganalytics_collectors WHERE id = ?", collector_id)
        return None if row is None else Collector.of_row(row)

    def by_name(self, name: str) -> list[Collector]:
        return [collector for collector in self.every() if collector.name == name]

    def insert(self, body: Mapping[str, Any]) -> Collector:
        now, collector_id = self._now(), str(uuid.uuid4())
        self._db.run(
            """INSERT INTO pganalytics_collectors (id, name, hostname, address, version, region, tags, status, metrics_count, fingerprints,
               config_version, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'registered', 0, '[]', 1, ?, ?)""",
            collector_id,
            body["name"],
            body["hostname"],
            body.get("address"),
            body.get("version"),
            body.get("region"),
            json.dumps(body.get("tags")),
            now,
            now,
        )
        found = self.by_id(collector_id)
        if found is None:
            raise LookupError(collector_id)
        return found

    def add_fingerprint(self, collector: Collector, fingerprint: str) -> None:
        listed = json.dumps([*collector.fingerprints, fingerprint])
        self._db.run("UPDATE pganalytics_collectors SET fingerprints = ? WHERE id = ?", listed, collector.id)

    def seen(self, collector_id: str, metrics: int, status: str | None) -> None:
        now = self._now()
        self._db.run(
            "UPDATE pganalytics_collectors SET last_seen = ?, metrics_count = metrics_count + ?, status = coalesce(?, status), updated_at = ? WHERE id = ?",
            now,
            metrics,
            status,
            now,
            collector_id,
        )

    def expire(self, collector: Collector) -> None:
        self._db.run("UPDATE pganalytics_collectors SET expired_before = ? WHERE id = ?", self._now() + 1, collector.id)

    def age(self, collector: Collector, seconds: float) -> None:
        moment = self._now() - seconds
        self._db.run("UPDATE pganalytics_collectors SET created_at = ?, updated_at = ? WHERE id = ?", moment, moment, collector.id)

    def delete(self, collector: Collector) -> None:
        self._db.run("DELETE FROM pganalytics_collectors WHERE id = ?", collector.id)
        self._db.run("DELETE FROM pganalytics_configs WHERE collector_id = ?", collector.id)

    def clear(self) -> None:
        self._db.run("DELETE FROM pganalytics_collectors")
        self._db.run("DELETE FROM pganalytics_secrets")
        self._db.run("DELETE FROM pganalytics_configs")

    def kept(self, name: str, make: Callable[[], str]) -> str:
        """A value that outlives a restart, made when it is first asked for."""
        row = self._db.one("SELECT value FROM pganalytics_keys WHERE name = ?", name)
        if row is not None:
            return str(row["value"])
        value = make()
        self._db.run("INSERT INTO pganalytics_keys VALUES (?, ?)", name, value)
        return value

    # Registration secrets.

    def secret(self, secret_id: str) -> sqlite3.Row | None:
        return self._db.one("SELECT * FROM pganalytics_secrets WHERE id = ?", secret_id)

    def secrets(self) -> list[sqlite3.Row]:
        return self._db.all("SELECT * FROM pganalytics_secrets ORDER BY created_at DESC, rowid DESC")

    def add_secret(self, name: str, value: str, expires_at: float | None, user: User) -> sqlite3.Row:
        """Create a secret. Raises sqlite3.IntegrityError when the name is taken."""
        secret_id, now = str(uuid.uuid4()), self._now()
        self._db.run(
            "INSERT INTO pganalytics_secrets VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, 0, NULL)", secret_id, name, value, user.number, user.name, now, now, expires_at
        )
        row = self.secret(secret_id)
        if row is None:
            raise LookupError(secret_id)
        return row

    def change_secret(self, secret_id: str, name: str, active: bool) -> None:
        self._db.run("UPDATE pganalytics_secrets SET name = ?, active = ?, updated_at = ? WHERE id = ?", name, int(active), self._now(), secret_id)

    def delete_secret(self, secret_id: str) -> bool:
        return self._db.run("DELETE FROM pganalytics_secrets WHERE id = ?", secret_id) > 0

    def use_secret(self, value: str) -> bool:
        """Whether an active, unexpired secret has this value; counts the use."""
        now = self._now()
        for row in self.secrets():
            good = row["active"] and (row["expires_at"] is None or row["expires_at"] > now)
            if good and row["value"] == value:
                self._db.run(
                    "UPDATE pganalytics_secrets SET total_registrations = total_registrations + 1, last_used_at = ? WHERE id = ?", now, row["id"])
                return True
        return False

    # Stored configurations.

    def config(self, collector_id: str) -> sqlite3.Row | None:
        return self._db.one("SELECT * FROM pganalytics_configs WHERE collector_id = ?", collector_id)

    def store_config(self, collector_id: str, body: str) -> int:
        kept = self.config(collector_id)
        version = 1 if kept is None else int(kept["version"]) + 1
        self._db.run("INSERT OR REPLACE INTO pganalytics_configs VALUES (?, ?, ?)", collector_id, version, body)
        return version


class _Bucket:
    """The shipped server's token bucket. Every test comes from one address, so that one bucket stands for all of them."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self.fill()

    def fill(self) -> None:
        """Start full."""
        self._level, self._at = self._burst, time.monotonic()

    def take(self) -> bool:
        """Take one, if there is one."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class PgAnalytics(ControlPlane):
    """What both contracts share: registering, tokens, the operator's calls, and metrics."""

    name = "pganalytics"
    default_life = YEAR
    default_paging = "bare"

    def __init__(self, shared: Shared, config: Config) -> None:
        self.shared = shared
        self.config = config
        self.records = _Records(shared)
        self.signing_key = self.records.kept("jwt", lambda: secrets.token_hex(32))
        self.life = config.token_life or self.default_life
        self.secret = config.registration_secret
        self.paging = config.paging or self.default_paging
        self._bucket = _Bucket(*config.rate) if config.rate else None

    # The two contracts differ in these.

    @abstractmethod
    def refusal(self, status: int, slug: str, message: str, details: str = "") -> Answer:
        """An error in this contract's manner; ``slug`` is the documented one's."""

    @abstractmethod
    def contract_routes(self) -> Mapping[str, list[Route]]:
        """The endpoints of this contract by feature."""

    @abstractmethod
    async def body_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """The JSON object of a request, with these keys present and not empty. Raises RefusalError."""

    @abstractmethod
    def collector_claims(self, collector: Collector) -> dict[str, Any]:
        """The claims of a collector's token, beside its times."""

    @abstractmethod
    def logged_in(self, user: User, token: str, expires_at: float) -> Answer:
        """The answer to a login."""

    @abstractmethod
    def shown(self, collector: Collector) -> dict[str, Any]:
        """A collector as a user sees it."""

    # Hooks of the service and the control API.

    def routes(self) -> Sequence[Route]:
        """The endpoints this contract and configuration offer."""
        offered = {
            "": [
                Route("POST", f"{API}/auth/login", "pganalytics_login", "login", self.login),
                Route("GET", f"{API}/auth/me", "pganalytics_me", "read", self.me),
                Route("GET", f"{API}/collectors", "pganalytics_list", "read", self.collectors),
                Route("POST", f"{API}/metrics/push", "pganalytics_push", "agent", self.push),
                Route("GET", f"{API}/health", "pganalytics_health", "read", self.health),
            ],
            **self.contract_routes(),
        }
        listed = [route for feature, routes in offered.items() if feature not in self.config.without for route in routes]
        return [Route(route.method, route.path, route.name, route.kind, self._limited(route), route.subject) for route in listed]

    def _limited(self, route: Route) -> Callable[[Call], Any]:
        """Count a request towards the rate limit, which comes before everything else; the health page is free."""

        async def handle(call: Call) -> Answer:
            if self._bucket is not None and route.name != "pganalytics_health" and not self._bucket.take():
                return self.finish(self.refusal(429, "rate_limited", "Too many requests"))
            try:
                return self.finish(await route.handler(call))
            except RefusalError as refused:
                raise RefusalError(self.finish(refused.answer)) from refused

        return handle

    def finish(self, answer: Answer) -> Answer:
        """The last touch on every answer."""
        return answer

    def owns(self, path: str) -> bool:
        """Whether an unknown path lies below ours."""
        return path.startswith(_OWNED) or path == "/version"

    def broken(self) -> Answer:
        """500 in this contract's manner."""
        return self.finish(self.refusal(500, "internal_error", "Database error"))

    def answer_faults(self) -> Mapping[str, Callable[[Answer], Answer]]:
        """Registrations (and rotations) whose answer contradicts itself."""
        return {
            "pganalytics-no-token": lambda answer: _changed(answer, token=None),
            "pganalytics-no-certificate": lambda answer: _changed(answer, certificate=None),
            "pganalytics-other-id": lambda answer: _changed(answer, collector_id=str(uuid.uuid4())),
            "pganalytics-other-key": lambda answer: _changed(answer, private_key=self._stranger.private_key),
            "pganalytics-other-ca": lambda answer: _changed(answer, ca_certificate=self._stranger.certificate),
            "pganalytics-other-fingerprint": lambda answer: _changed(answer, fingerprint="SHA256:" + "ab" * 32),
            "pganalytics-broken-certificate": lambda answer: _changed(answer, certificate="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "pganalytics-old-certificate": self._with_old_certificate,
            "pganalytics-old-token": lambda answer: self._with_claims(answer, iat=-7200, exp=-3600),
            "pganalytics-early-token": lambda answer: self._with_claims(answer, iat=7200, exp=9000),
            "pganalytics-other-issuer": lambda answer: self._with_claims(answer, iss="somebody-else"),
            "pganalytics-other-audience": lambda answer: self._with_claims(answer, aud="somebody-else"),
            "pganalytics-other-subject": lambda answer: self._with_claims(answer, sub="collector:" + str(uuid.uuid4())),
            "pganalytics-no-jwt": lambda answer: _changed(answer, token="opaque-token-without-claims"),
        }

    @functools.cached_property
    def _stranger(self) -> Pair:
        """A pair that is nobody's."""
        return self._self_signed("stranger.example.com")

    def _with_old_certificate(self, answer: Answer) -> Answer:
        old = self._self_signed("old.example.com", days=-1)
        return _changed(answer, certificate=old.certificate, private_key=old.private_key, fingerprint=None, ca_certificate=None)

    def _with_claims(self, answer: Answer, **changes: Any) -> Answer:
        token = answer.payload.get("token")
        if not isinstance(token, str):
            return answer
        claims = jwt.decode(token, options={"verify_signature": False})
        now = int(self.shared.clock.now())
        times = {key: now + value for key, value in changes.items() if key in ("iat", "nbf", "exp")}
        if "iat" in times and "nbf" in claims:
            times["nbf"] = times["iat"]
        return _changed(answer, token=self._signed({**claims, **changes, **times}))

    def agents(self) -> list[dict[str, Any]]:
        """Every record, without secrets."""
        moment = self.shared.clock.rfc3339
        return [
            {
                "control_plane": self.name,
                "agent_id": collector.id,
                "name": collector.name,
                "hostname": collector.hostname,
                "address": collector.address,
                "version": collector.version,
                "region": collector.region,
                "tags": collector.tags,
                "status": collector.status,
                "last_seen": moment(collector.last_seen),
                "metrics_count": collector.metrics_count,
                "fingerprints": collector.fingerprints,
                "registered_at": moment(collector.created_at),
            }
            for collector in self.records.every()
        ]

    def forget(self, name: str) -> bool:
        """Lose every record of this name."""
        found = self.records.by_name(name)
        for collector in found:
            self.records.delete(collector)
        return bool(found)

    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Call the tokens of this name expired."""
        found = self.records.by_name(name)
        for collector in found:
            self.records.expire(collector)
        return bool(found)

    async def accepts(self, name: str, token: str) -> bool:
        """Whether this token would pass for this name now."""
        claims = self._claims(token)
        collector = self.records.by_id(str((claims or {}).get("collector_id", "")))
        return collector is not None and collector.name == name and not self._called_expired(collector, claims or {})

    def own(self, name: str, owner: str | None) -> None:
        """Nothing is known of a collector before it registers."""

    async def reset(self) -> None:
        """Drop every record, and put right what a test changed."""
        self.records.clear()
        self.life = self.config.token_life or self.default_life
        self.secret = self.config.registration_secret
        if self._bucket is not None:
            self._bucket.fill()

    async def close(self) -> None:
        """Nothing runs in the background."""

    async def control(self, action: str, options: Mapping[str, Any]) -> Any:
        """See the head of this file. Raises LookupError for an unknown action or name."""
        if action == "lifetime":
            self.life = float(options["seconds"])
            return {"seconds": self.life}
        if action == "registration-secret":
            self.secret = str(options["value"])
            return {}
        found = self.records.by_name(str(options.get("name", "")))
        if not found:
            raise LookupError(action)
        if action == "expire":
            self.records.expire(found[-1])
            return {}
        if action == "age":
            self.records.age(found[-1], float(options["seconds"]))
            return {}
        if action == "mint":
            now = self.shared.clock.now()
            issued = now - float(options.get("issued_ago", 0))
            token = self.token_for(found[-1], issued, now + float(options.get("expires_in", self.life)))
            claims = jwt.decode(token, options={"verify_signature": False})
            return {"token": self._signed({**claims, **options.get("claims", {})})}
        raise LookupError(action)

    # Tokens.

    def _signed(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self.signing_key, algorithm="HS256")

    def token_for(self, collector: Collector, issued_at: float, expires_at: float) -> str:
        """A collector's token."""
        return self._signed({**self.collector_claims(collector), "iat": int(issued_at), "exp": int(expires_at)})

    def new_token(self, collector: Collector) -> tuple[str, float]:
        """A fresh token and when it ends."""
        now = self.shared.clock.now()
        return self.token_for(collector, now, now + self.life), now + self.life

    def _claims(self, token: str, *, late: float = 0.0) -> dict[str, Any] | None:
        """The claims of a token of ours that has not expired (or not longer than ``late`` seconds ago)."""
        try:
            claims = jwt.decode(token, self.signing_key, algorithms=["HS256", "HS384", "HS512"], options={
                "verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False, "verify_sub": False})
        except jwt.InvalidTokenError:
            return None
        now = self.shared.clock.now()
        if not isinstance(claims.get("exp"), int) or claims["exp"] + late <= now or claims.get("nbf", 0) > now + 1:
            return None
        return dict(claims)

    @staticmethod
    def _called_expired(collector: Collector, claims: Mapping[str, Any]) -> bool:
        return collector.expired_before is not None and int(claims.get("iat", 0)) < collector.expired_before

    @staticmethod
    def bearer(call: Call) -> str | None:
        """The bearer of a request, None when there is none."""
        scheme, _space, value = call.headers.get("Authorization", "").partition(" ")
        return value if scheme == "Bearer" and value else None

    def user_of(self, token: str) -> User | None:
        """The user a token belongs to."""
        claims = self._claims(token)
        if claims is None or "user_id" not in claims:
            return None
        return next((user for user in self.config.users if user.number == claims["user_id"]), None)

    def open_session(self, user: User) -> tuple[str, float]:
        """A user's access token and when it ends."""
        now = self.shared.clock.now()
        claims = {"user_id": user.number, "username": user.name, "email": f"{user.name}@example.test", "role": user.role, "type": "access"}
        times = {"sub": f"user:{user.number}", "iat": int(now), "nbf": int(now), "exp": int(now) + USER_SESSION}
        return self._signed({**claims, **times}), now + USER_SESSION

    @abstractmethod
    def must_be_user(self, call: Call) -> User:
        """The user who calls. Raises RefusalError."""

    @abstractmethod
    def must_be_collector(self, call: Call, *, late: float = 0.0) -> tuple[dict[str, Any], Collector | None]:
        """The claims of the collector that calls, and its record. Raises RefusalError."""

    # Endpoints.

    async def login(self, call: Call) -> Answer:
        """Open a user's session."""
        spec = await self.body_of(call, ("username", "password"))
        user = next((user for user in self.config.users if user.name == spec["username"]), None)
        if user is None or not hmac.compare_digest(user.password.encode(), str(spec["password"]).encode()):
            raise RefusalError(self.refusal(401, "invalid_credentials", "Invalid credentials"))
        if user.role == "inactive":
            raise RefusalError(self.refusal(401, "invalid_credentials", "User account is inactive"))
        token, expires_at = self.open_session(user)
        return self.logged_in(user, token, expires_at)

    def user_object(self, user: User) -> dict[str, Any]:
        """A user as the API shows one."""
        born = self.moment(self.shared.clock.now() - 86400)
        return {
            "id": user.number, "username": user.name, "email": f"{user.name}@example.test", "role": user.role, "is_active": True,
            "password_changed": True, "created_at": born, "updated_at": born,
        }

    async def me(self, call: Call) -> Answer:
        """Who is logged in."""
        return Answer.of_json(200, self.user_object(self.must_be_user(call)))

    async def collectors(self, call: Call) -> Answer:
        """List collectors, in the manner that is configured."""
        self.must_be_user(call)
        self.may_list()
        if self.paging == "bare":
            return Answer.of_json(200, [self.shown(collector) for collector in self.records.every()])
        size = self.config.page_size
        found = [self.shown(collector) for collector in reversed(self.records.every())]
        page = 1 if self.paging == "stub" else _positive(call.query.get("page"), 1)
        if self.paging == "endless":
            data = [self._invented(page, number) for number in range(2)]
            return Answer.of_json(200, {"data": data, "page": page, "page_size": 2, "total_pages": page + 1})
        data, pages = found[(page - 1) * size : page * size], max(1, -(-len(found) // size))
        return Answer.of_json(200, {"data": data, "total": len(found), "page": page, "page_size": size, "total_pages": pages})

    def may_list(self) -> None:
        """Refuse lists, where the contract has a reason to."""

    def _invented(self, page: int, number: int) -> dict[str, Any]:
        """A collector that nobody registered, for the list that never ends."""
        name = f"invented-{page}-{number}"
        moment = self.moment(self.shared.clock.now())
        return {"id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), "name": name, "hostname": name, "status": "registered", "created_at": moment}

    async def push(self, call: Call) -> Answer:
        """Take metrics: the sign of life. The collector's certificate is asked for where mTLS is on."""
        claims, collector = self.must_be_collector(call)
        spec = await self.body_of(call, ())
        if not all(isinstance(spec.get(key), str) and spec[key] for key in ("collector_id", "hostname", "timestamp")):
            raise RefusalError(self.refusal(400, "invalid_request", "Invalid metrics data", "collector_id, hostname and timestamp are required"))
        if spec["collector_id"] != claims["collector_id"]:
            raise RefusalError(self.refusal(401, "collector_mismatch", "Collector ID mismatch"))
        metrics = spec.get("metrics") if isinstance(spec.get("metrics"), list) else []
        if any(isinstance(item, dict) and not isinstance(item.get("type", ""), str) for item in metrics):
            return self.broken()
        self.check_certificate(call, collector)
        if collector is not None and not self.config.idle:
            self.records.seen(collector.id, self.counted(spec, metrics), self.live_status)
        size = len(await call.body())
        return Answer.of_json(200, {
            "status": "success", "collector_id": claims["collector_id"], "metrics_inserted": self.counted(spec, metrics), "bytes_received": size,
            "processing_time_ms": 1, "next_config_version": 1, "next_check_in_seconds": 300})

    live_status: str | None = None

    def counted(self, spec: Mapping[str, Any], metrics: Sequence[Any]) -> int:
        """How many of the pushed metrics are stored."""
        return 0

    def check_certificate(self, call: Call, collector: Collector | None) -> None:
        """Refuse a push without the collector's own client certificate, where this server asks for one."""
        if not self.config.mtls:
            return
        shown = call.peer_certificate()
        known = collector.fingerprints if collector is not None else []
        if shown is None or hashlib.sha256(shown).hexdigest() not in known:
            raise RefusalError(self.refusal(401, "invalid_certificate", "Client certificate required"))

    @abstractmethod
    async def health(self, call: Call) -> Answer:
        """Whether the server is well."""

    # Shared steps.

    def moment(self, seconds: float | None) -> str | None:
        """A moment as this server writes it: with nine fractional digits, which naive parsers trip over."""
        text = self.shared.clock.rfc3339(seconds)
        return None if text is None else text.replace("Z", "000Z")

    async def subject(self, call: Call) -> str:
        """The collector a registration is about; empty when the body is no good."""
        with contextlib.suppress(BodyTooLargeError, ValueError):
            spec = json.loads(await call.body())
            if isinstance(spec, dict):
                return str(spec.get("name", ""))
        return ""

    def secret_is_good(self, call: Call) -> bool:
        """Whether the registration secret of a request is one of ours: a managed one, else the environment's."""
        given = call.headers.get("X-Registration-Secret", "")
        if not given:
            return False
        if self.config.managed_secrets and self.records.use_secret(given):
            return True
        return hmac.compare_digest(given.encode(), self.secret.encode())

    def register_route(self) -> Route:
        """The registration, which remembers answers only where the server is told to."""
        subject = self.subject if self.config.idempotency else None
        return Route("POST", f"{API}/collectors/register", "pganalytics_register", "mutating", self.register, subject)

    @abstractmethod
    async def register(self, call: Call) -> Answer:
        """``POST /api/v1/collectors/register``."""

    def _self_signed(self, hostname: str, collector_id: str = "", days: int = 365) -> Pair:
        """What the shipped server makes: RSA, its own issuer, the host name as CN and DNS SAN. Raises ValueError for a name that is not ASCII."""
        hostname.encode("ascii")
        key = rsa.generate_private_key(65537, 2048)
        subject = x509.Name([
            x509.NameAttribute(NameOID.COUNTRY_NAME, "BR"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "pgAnalytics"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Collectors"), x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
        builder = _leaf(key, subject, hostname, self._today(), days).issuer_name(subject)
        builder = builder.add_extension(x509.SubjectKeyIdentifier((collector_id or str(uuid.uuid4())).encode()), critical=False)
        return _pair(builder.sign(key, hashes.SHA256()), key)

    def _today(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.shared.clock.now(), datetime.timezone.utc)


class DocumentedPgAnalytics(PgAnalytics):
    """pgAnalytics as the guide tells it."""

    live_status = "active"

    def __init__(self, shared: Shared, config: Config) -> None:
        super().__init__(shared, config)
        self._ca_key, self._ca = self._authority()

    def _authority(self) -> tuple[_Key, x509.Certificate]:
        """The CA of this server: given, or made once and kept with the records."""
        if self.config.ca is not None:
            certificate, key = (Path(name).read_text(encoding="ascii") for name in self.config.ca)
        else:
            key = self.records.kept("ca_key", lambda: _pem_key(ec.generate_private_key(ec.SECP256R1())))
            certificate = self.records.kept("ca", lambda: self._new_authority(_load_key(key)))
        return _load_key(key), x509.load_pem_x509_certificate(certificate.encode())

    def _new_authority(self, key: _Key) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgAnalytics reference CA")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(self._today() - datetime.timedelta(days=1))
            .not_valid_after(self._today() + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False))
        return _pem(builder.sign(key, hashes.SHA256()))

    def _issue(self, collector: Collector) -> Pair:
        """A pair for one collector, signed by the CA: one year, the id as common name, the host name as DNS name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, collector.id)])
        identifier = self._ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = _leaf(key, subject, collector.hostname, self._today(), 365).issuer_name(self._ca.subject)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        return _pair(builder.sign(self._ca_key, hashes.SHA256()), key)

    def contract_routes(self) -> Mapping[str, list[Route]]:
        """What the guide has."""
        return {
            "register": [self.register_route()],
            "token_info": [Route("GET", f"{API}/collectors/token/info", "pganalytics_token_info", "read", self.token_info)],
            "token_refresh": [Route("POST", f"{API}/collectors/token/refresh", "pganalytics_refresh", "agent", self.refresh)],
            "rotate": [Route("POST", f"{API}/collectors/rotate", "pganalytics_rotate", "mutating", self.rotate)],
            "delete": [Route("DELETE", f"{API}/collectors/{{name}}", "pganalytics_delete", "mutating", self.delete)],
        }

    def refusal(self, status: int, slug: str, message: str, details: str = "") -> Answer:
        """``{"error": <slug>, "message": ...}``."""
        return Answer.of_json(status, {"error": slug, "message": message})

    async def no_route(self, call: Call) -> Answer:
        """404 in the guide's manner of errors."""
        return self.refusal(404, "not_found", "No such endpoint")

    async def body_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """Parse, with the guide's message for what is missing."""
        try:
            spec = json.loads(await call.body())
        except (BodyTooLargeError, ValueError) as error:
            raise RefusalError(self.refusal(400, "invalid_request", "Invalid JSON")) from error
        if not isinstance(spec, dict):
            raise RefusalError(self.refusal(400, "invalid_request", "Invalid JSON: expected an object"))
        for key in required:
            if not isinstance(spec.get(key), str) or not spec[key]:
                raise RefusalError(self.refusal(400, "invalid_request", f"Missing required field: {key}"))
        return spec

    def must_be_user(self, call: Call) -> User:
        """A logged-in user."""
        token = self.bearer(call)
        user = None if token is None else self.user_of(token)
        if user is None:
            raise RefusalError(self.refusal(401, "unauthorized", "Authentication required"))
        return user

    def must_be_collector(self, call: Call, *, late: float = 0.0) -> tuple[dict[str, Any], Collector | None]:
        """A collector that exists, with a token that is good."""
        token = self.bearer(call)
        claims = None if token is None else self._claims(token, late=YEAR)
        if token is None or claims is None or "collector_id" not in claims:
            raise RefusalError(self.refusal(401, "invalid_token", "Invalid JWT Token"))
        collector = self.records.by_id(str(claims["collector_id"]))
        if collector is None:
            raise RefusalError(self.refusal(401, "invalid_token", "Invalid JWT Token: unknown collector"))
        if self._claims(token, late=late) is None or (self._called_expired(collector, claims) and not late):
            raise RefusalError(self.refusal(401, "token_expired", "Token Expired"))
        return claims, collector

    def collector_claims(self, collector: Collector) -> dict[str, Any]:
        """As the guide prints them."""
        return {"sub": collector.id, "collector_id": collector.id, "iss": "pganalytics-api", "aud": "pganalytics-collectors"}

    def counted(self, spec: Mapping[str, Any], metrics: Sequence[Any]) -> int:
        """All of them."""
        return len(metrics)

    def moment(self, seconds: float | None) -> str | None:
        """The guide writes whole seconds."""
        if seconds is None:
            return None
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")

    async def register(self, call: Call) -> Answer:
        """201 once, 409 for a name that is there."""
        if not self.secret_is_good(call):
            raise RefusalError(self.refusal(401, "invalid_registration_secret", "Registration secret not provided or invalid"))
        spec = await self.body_of(call, ("name", "hostname"))
        self._check(spec)
        if self.records.by_name(spec["name"]):
            raise RefusalError(self.refusal(409, "collector_exists", f"Collector with name '{spec['name']}' already registered"))
        return self._credentials(201, self.records.insert(spec))

    def _check(self, spec: Mapping[str, Any]) -> None:
        for key in ("name", "hostname"):
            if len(spec[key]) > 255 or not spec[key].isascii():
                raise RefusalError(self.refusal(400, "invalid_request", f"Invalid field: {key}"))
        if spec.get("address") is not None and not _is_address(spec["address"]):
            raise RefusalError(self.refusal(400, "invalid_request", "Invalid field: address"))
        tags = spec.get("tags")
        if tags is not None and not (isinstance(tags, dict) and all(isinstance(value, str) for value in tags.values())):
            raise RefusalError(self.refusal(400, "invalid_request", "Invalid field: tags"))

    def _credentials(self, status: int, collector: Collector) -> Answer:
        """Everything a collector needs, and nothing of it kept but the fingerprint."""
        pair = self._issue(collector)
        self.records.add_fingerprint(collector, pair.fingerprint)
        token, expires_at = self.new_token(collector)
        return Answer.of_json(status, {
            "collector_id": collector.id, "token": token, "certificate": pair.certificate, "private_key": pair.private_key,
            "ca_certificate": _pem(self._ca), "expires_at": self.moment(expires_at), "fingerprint": f"SHA256:{pair.fingerprint}"})

    async def token_info(self, call: Call) -> Answer:
        """What the token in use is good for; changes nothing."""
        claims, collector = self.must_be_collector(call)
        name = collector.name if collector is not None else ""
        return Answer.of_json(200, {
            "collector_id": claims["collector_id"], "name": name, "issued_at": self.moment(claims["iat"]), "expires_at": self.moment(claims["exp"]),
            "expires_in": int(claims["exp"] - self.shared.clock.now()), "status": "valid"})

    async def refresh(self, call: Call) -> Answer:
        """A new token for an old one, also for one that expired no longer than 30 days ago."""
        claims, collector = self.must_be_collector(call, late=30 * 86400.0)
        spec = await self.body_of(call, ("collector_id",))
        if collector is None or spec["collector_id"] != claims["collector_id"]:
            raise RefusalError(self.refusal(401, "collector_mismatch", "Collector ID mismatch"))
        token, expires_at = self.new_token(collector)
        return Answer.of_json(200, {"collector_id": collector.id, "token": token, "expires_at": self.moment(expires_at)})

    async def rotate(self, call: Call) -> Answer:
        """New credentials of every kind; the old ones stay good until they expire."""
        if not self.secret_is_good(call):
            raise RefusalError(self.refusal(401, "invalid_registration_secret", "Registration secret not provided or invalid"))
        claims, collector = self.must_be_collector(call)
        spec = await self.body_of(call, ("collector_id",))
        if collector is None or spec["collector_id"] != claims["collector_id"]:
            raise RefusalError(self.refusal(401, "collector_mismatch", "Collector ID mismatch"))
        return self._credentials(200, collector)

    async def delete(self, call: Call) -> Answer:
        """Remove a collector by name, for admins."""
        user = self.must_be_user(call)
        if user.role != "admin":
            raise RefusalError(self.refusal(403, "forbidden", "Admin role required"))
        found = self.records.by_name(call.parameters["name"])
        if not found:
            raise RefusalError(self.refusal(404, "collector_not_found", f"Collector '{call.parameters['name']}' not found"))
        for collector in found:
            self.records.delete(collector)
        return Answer(204)

    def logged_in(self, user: User, token: str, expires_at: float) -> Answer:
        """The token is in the body."""
        return Answer.of_json(200, {"token": token, "expires_at": self.moment(expires_at), "user": self.user_object(user)})

    def shown(self, collector: Collector) -> dict[str, Any]:
        """As the guide prints one."""
        return {
            "id": collector.id, "name": collector.name, "hostname": collector.hostname, "status": collector.status,
            "last_seen": self.moment(collector.last_seen), "metrics_count": collector.metrics_count, "created_at": self.moment(collector.created_at)}

    async def health(self, call: Call) -> Answer:
        """As the guide prints it."""
        return Answer.of_json(200, {"status": "healthy", "version": self.config.version or "3.2.0"})


class ShippedPgAnalytics(PgAnalytics):
    """pgAnalytics as it ships."""

    default_life = HALF_HOUR
    default_paging = "stub"

    def contract_routes(self) -> Mapping[str, list[Route]]:
        """What the backend has."""
        secret = f"{API}/registration-secrets"
        return {
            "register": [self.register_route()],
            "get": [Route("GET", f"{API}/collectors/{{id}}", "pganalytics_get", "read", self.get)],
            "delete": [Route("DELETE", f"{API}/collectors/{{id}}", "pganalytics_delete", "mutating", self.delete)],
            "token_refresh": [Route("POST", f"{API}/collectors/refresh-token", "pganalytics_refresh", "agent", self.refresh)],
            "logout": [Route("POST", f"{API}/auth/logout", "pganalytics_logout", "login", self.logout)],
            "config": [
                Route("GET", f"{API}/config/{{id}}", "pganalytics_config", "agent", self.config_of),
                Route("PUT", f"{API}/config/{{id}}", "pganalytics_config_store", "mutating", self.store_config),
            ],
            "registration_secrets": [
                Route("POST", secret, "pganalytics_secret_create", "mutating", self.create_secret),
                Route("GET", secret, "pganalytics_secret_list", "read", self.list_secrets),
                Route("GET", f"{secret}/{{id}}", "pganalytics_secret_get", "read", self.get_secret),
                Route("PUT", f"{secret}/{{id}}", "pganalytics_secret_change", "mutating", self.change_secret),
                Route("DELETE", f"{secret}/{{id}}", "pganalytics_secret_delete", "mutating", self.delete_secret),
            ],
            "version": [Route("GET", "/version", "pganalytics_version", "read", self.version)],
        }

    def finish(self, answer: Answer) -> Answer:
        """Every reply carries an id of the request."""
        return Answer(answer.status, answer.body, answer.content_type, {**answer.headers, "X-Request-ID": str(uuid.uuid4())})

    def refusal(self, status: int, slug: str, message: str, details: str = "") -> Answer:
        """``{"code", "message", "details"}``."""
        body: dict[str, Any] = {"code": status, "message": message}
        return Answer.of_json(status, {**body, "details": details} if details else body)

    async def no_route(self, call: Call) -> Answer:
        """Plain text, or a redirect when only a trailing slash is wrong."""
        bare = call.path.rstrip("/")
        if call.path != bare and any(_fits(route.path, bare) for route in self.routes()):
            status = 301 if call.method == "GET" else 307
            return self.finish(Answer(status, b"", "text/plain; charset=utf-8", {"Location": bare}))
        return self.finish(Answer(404, b"404 page not found", "text/plain"))

    async def body_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """Bind and validate as gin does: one message, the validator's words as details."""
        try:
            spec = json.loads(await call.body())
        except BodyTooLargeError as error:
            raise RefusalError(self.refusal(400, "", "Invalid request", "http: request body too large")) from error
        except ValueError as error:
            raise RefusalError(self.refusal(400, "", "Invalid request", "EOF" if not await call.body() else "invalid character")) from error
        if not isinstance(spec, dict):
            raise RefusalError(self.refusal(400, "", "Invalid request", "json: cannot unmarshal into Go value"))
        for key in required:
            value = spec.get(key, "")
            if not isinstance(value, str):
                details = f"json: cannot unmarshal {type(value).__name__} into Go struct field .{key} of type string"
                raise RefusalError(self.refusal(400, "", "Invalid request", details))
            if not value:
                field = key.capitalize()
                details = f"Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag"
                raise RefusalError(self.refusal(400, "", "Invalid request", details))
        return spec

    def must_be_user(self, call: Call) -> User:
        """Header first, cookie second."""
        token = self.bearer(call) or _cookie(call, "auth_token")
        if token is None:
            raise RefusalError(self.refusal(401, "", "Missing authentication token"))
        claims = self._claims(token)
        if claims is None:
            raise RefusalError(self.refusal(401, "", "Invalid token", self._why(token)))
        user = self.user_of(token)
        if user is None:
            raise RefusalError(self.refusal(401, "", "User not found"))
        return user

    def _must_be_admin(self, call: Call, what: str) -> User:
        user = self.must_be_user(call)
        if user.role != "admin":
            raise RefusalError(self.refusal(403, "", f"Only admins can {what} registration secrets"))
        return user

    def must_be_collector(self, call: Call, *, late: float = 0.0) -> tuple[dict[str, Any], Collector | None]:
        """A good collector token; whether the collector still exists is not asked."""
        if "Authorization" not in call.headers:
            raise RefusalError(self.refusal(401, "", "Missing authorization header"))
        token = self.bearer(call)
        claims = None if token is None else self._claims(token)
        if token is None or claims is None:
            raise RefusalError(self.refusal(401, "", "Invalid token", "malformed" if token is None else self._why(token)))
        if claims.get("type") != "access" or "collector_id" not in claims:
            raise RefusalError(self.refusal(401, "", "No valid collector token"))
        collector = self.records.by_id(str(claims["collector_id"]))
        if collector is not None and self._called_expired(collector, claims):
            raise RefusalError(self.refusal(401, "", "Invalid token", "token has invalid claims: token is expired"))
        return claims, collector

    def _claims(self, token: str, *, late: float = 0.0) -> dict[str, Any] | None:
        """A token that a test called expired is expired for users' calls too, which ask nothing of a collector's record."""
        claims = super()._claims(token, late=late)
        collector = self.records.by_id(str((claims or {}).get("collector_id", "")))
        return None if claims is None or (collector is not None and self._called_expired(collector, claims)) else claims

    @staticmethod
    def _why(token: str) -> str:
        """The parser's reason."""
        try:
            jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return "token is malformed: token contains an invalid number of segments"
        return "token has invalid claims: token is expired"

    def collector_claims(self, collector: Collector) -> dict[str, Any]:
        """As issued: no issuer, no audience."""
        now = int(self.shared.clock.now())
        return {"collector_id": collector.id, "hostname": collector.hostname, "type": "access", "sub": f"collector:{collector.id}", "nbf": now}

    def token_for(self, collector: Collector, issued_at: float, expires_at: float) -> str:
        """Not good before it was issued."""
        return self._signed({**self.collector_claims(collector), "iat": int(issued_at), "nbf": int(issued_at), "exp": int(expires_at)})

    def may_list(self) -> None:
        """The tenant layer takes an integer for a UUID and gives up, where that bug is."""
        if self.config.tenant_bug:
            raise RefusalError(Answer.of_json(500, {"error": "Invalid user context"}))

    async def register(self, call: Call) -> Answer:
        """200 and a new collector every time. The body is looked at before the secret."""
        spec = await self.body_of(call, ("name", "hostname"))
        for key in ("address", "version"):
            if spec.get(key) is not None and not isinstance(spec[key], str):
                details = f"json: cannot unmarshal into Go struct field .{key} of type string"
                raise RefusalError(self.refusal(400, "", "Invalid request", details))
        if not self.secret_is_good(call):
            raise RefusalError(self.refusal(401, "", "Invalid or missing registration secret"))
        self._would_the_database(spec)
        collector = self.records.insert({**spec, "region": None, "tags": None})
        try:
            pair = self._self_signed(collector.hostname, collector.id)
        except ValueError as error:
            raise RefusalError(self.refusal(500, "", "Certificate generation failed", str(error))) from error
        self.records.add_fingerprint(collector, pair.fingerprint)
        token, expires_at = self.new_token(collector)
        return Answer.of_json(200, {
            "collector_id": collector.id, "token": token, "certificate": pair.certificate, "private_key": pair.private_key,
            "expires_at": self.moment(expires_at)})

    def _would_the_database(self, spec: Mapping[str, Any]) -> None:
        """Refuse what the database would, with its own words."""
        trouble = ""
        if any(len(spec[key]) > 255 for key in ("name", "hostname")):
            trouble = "pq: value too long for type character varying(255)"
        elif len(spec.get("version") or "") > 50:
            trouble = "pq: value too long for type character varying(50)"
        elif spec.get("address") is not None and not _is_address(spec["address"]):
            trouble = f'pq: invalid input syntax for type inet: "{spec["address"]}"'
        if trouble:
            raise RefusalError(self.refusal(500, "", "Database error", trouble))

    async def refresh(self, call: Call) -> Answer:
        """A new token for one that is still good; the body is not looked at."""
        _claims, collector = self.must_be_collector(call)
        if collector is None:
            raise RefusalError(self.refusal(404, "", "Collector not found"))
        token, expires_at = self.new_token(collector)
        return Answer.of_json(200, {"token": token, "expires_at": self.moment(expires_at)})

    async def get(self, call: Call) -> Answer:
        """One collector by id."""
        self.must_be_user(call)
        self.may_list()
        return Answer.of_json(200, self.shown(self._known(call)))

    async def delete(self, call: Call) -> Answer:
        """Remove a collector by id. Any user may; its token lives on."""
        self.must_be_user(call)
        self.may_list()
        self.records.delete(self._known(call))
        return Answer(204)

    def _known(self, call: Call) -> Collector:
        collector = self.records.by_id(call.parameters["id"])
        if collector is None:
            raise RefusalError(self.refusal(404, "", "Collector not found"))
        return collector

    def logged_in(self, user: User, token: str, expires_at: float) -> Answer:
        """The token is in a cookie, and not in the body."""
        secure = "; Secure" if self.config.production else ""
        csrf = secrets.token_urlsafe(32)
        body = {"message": "Login successful", "csrf_token": csrf, "user": self.user_object(user), "expires_at": self.moment(expires_at)}
        # Two lines of one name: headers are a mapping here, and HTTP does not care for their case.
        cookies = {
            "Set-Cookie": f"auth_token={token}; Path=/; Max-Age={USER_SESSION}; HttpOnly{secure}",
            "set-cookie": f"csrf_token={csrf}; Path=/; Max-Age={USER_SESSION}{secure}",
        }
        return Answer.of_json(200, body, **cookies)

    async def logout(self, call: Call) -> Answer:
        """Clears cookies, revokes nothing."""
        return Answer.of_json(200, {"message": "Logged out", "status": "ok"})

    def shown(self, collector: Collector) -> dict[str, Any]:
        """The columns that are selected; the counts are not among them."""
        shown = {
            "id": collector.id, "name": collector.name, "hostname": collector.hostname, "status": collector.status,
            "config_version": collector.config_version, "metrics_count_total": 0, "metrics_count_24h": 0, "health_check_interval": 300,
            "created_at": self.moment(collector.created_at), "updated_at": self.moment(collector.updated_at)}
        return shown if collector.last_seen is None else {**shown, "last_seen": self.moment(collector.last_seen)}

    async def health(self, call: Call) -> Answer:
        """Not "healthy", and no version of the product."""
        return Answer.of_json(200, {
            "status": "ok", "version": self.config.version or "3.0.0-alpha", "timestamp": self.moment(self.shared.clock.now()), "uptime": 0,
            "database_ok": True, "timescale_ok": True})

    async def version(self, call: Call) -> Answer:
        """What the server calls itself."""
        return Answer.of_json(200, {"version": self.config.version or "3.0.0-alpha", "api": "1.0.0"})

    # Stored configurations, which a collector asks for and never gets: a user's token is wanted, behind a TLS that the server has not.

    def _must_have_certificate(self, call: Call) -> None:
        shown = call.peer_certificate()
        if shown is None and self.config.production:
            raise RefusalError(self.refusal(401, "", "Invalid certificate", "TLS connection required"))

    async def config_of(self, call: Call) -> Answer:
        """The stored configuration of a collector."""
        self._must_have_certificate(call)
        self.must_be_user(call)
        kept = self.records.config(call.parameters["id"])
        if kept is None:
            raise RefusalError(self.refusal(404, "", "Configuration not found"))
        return Answer(200, str(kept["body"]).encode(), "text/plain; charset=utf-8", {"X-Config-Version": str(kept["version"])})

    async def store_config(self, call: Call) -> Answer:
        """Any user, any text."""
        self.must_be_user(call)
        version = self.records.store_config(call.parameters["id"], (await call.body()).decode("utf-8", "replace"))
        return Answer.of_json(200, {"status": "ok", "collector_id": call.parameters["id"], "version": version, "message": "Configuration updated"})

    # Registration secrets.

    async def create_secret(self, call: Call) -> Answer:
        """Make a secret and show its value, this once. One of the caller's choosing is not taken."""
        user = self._must_be_admin(call, "create")
        spec = await self.body_of(call, ("name",))
        if len(spec["name"]) > 255:
            raise RefusalError(self.refusal(400, "", "Invalid request", "Field validation for 'Name' failed on the 'max' tag"))
        expires_at = self._expiry(spec.get("expires_at"))
        value = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        try:
            row = self.records.add_secret(spec["name"], value, expires_at, user)
        except sqlite3.IntegrityError as error:
            details = 'pq: duplicate key value violates unique constraint "registration_secrets_name_key"'
            raise RefusalError(self.refusal(500, "", "Failed to create registration secret", details)) from error
        return Answer.of_json(201, {
            "id": row["id"], "name": row["name"], "secret_value": value, "active": True, "created_at": self.moment(row["created_at"]),
            "message": "Store this secret now: it will not be shown again"})

    def _expiry(self, text: Any) -> float | None:
        if text is None:
            return None
        try:
            moment = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        except ValueError as error:
            raise RefusalError(self.refusal(400, "", "Invalid request", "parsing time")) from error
        if moment.tzinfo is None:
            raise RefusalError(self.refusal(400, "", "Invalid request", "parsing time"))
        return moment.timestamp()

    async def list_secrets(self, call: Call) -> Answer:
        """All of them without values; ``null`` when there are none."""
        self._must_be_admin(call, "list")
        listed = [self._shown_secret(row) for row in self.records.secrets()]
        return Answer.of_json(200, {"secrets": listed or None, "count": len(listed)})

    async def get_secret(self, call: Call) -> Answer:
        """One of them."""
        self._must_be_admin(call, "view")
        row = self.records.secret(call.parameters["id"])
        if row is None:
            raise RefusalError(self.refusal(404, "", "Registration secret not found"))
        return Answer.of_json(200, self._shown_secret(row))

    async def change_secret(self, call: Call) -> Answer:
        """Rename, or switch on and off. The name is wanted every time."""
        self._must_be_admin(call, "update")
        spec = await self.body_of(call, ("name",))
        row = self.records.secret(call.parameters["id"])
        if row is None:
            raise RefusalError(self.refusal(500, "", "Failed to update registration secret"))
        self.records.change_secret(row["id"], spec["name"], bool(spec.get("active", row["active"])))
        changed = self.records.secret(row["id"])
        return Answer.of_json(200, self._shown_secret(changed if changed is not None else row))

    async def delete_secret(self, call: Call) -> Answer:
        """200, and 500 for what is not there."""
        self._must_be_admin(call, "delete")
        if not self.records.delete_secret(call.parameters["id"]):
            raise RefusalError(self.refusal(500, "", "Failed to delete registration secret"))
        return Answer.of_json(200, {"message": "Registration secret deleted"})

    def _shown_secret(self, row: sqlite3.Row) -> dict[str, Any]:
        moments = {key: self.moment(row[key]) for key in ("created_at", "updated_at", "expires_at", "last_used_at") if row[key] is not None}
        return {
            "id": row["id"], "name": row["name"], "active": bool(row["active"]), "created_by": row["created_by"],
            "created_by_username": row["created_by_username"], "total_registrations": row["total_registrations"], **moments}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add pgAnalytics' options to the command line."""
    group = parser.add_argument_group("pgAnalytics")
    group.add_argument("--pganalytics-secret", default=DEFAULT_SECRET, metavar="SECRET", help="the registration secret of the server's environment")
    group.add_argument("--pganalytics-user", action="append", default=[], metavar="NAME:PASSWORD[:ROLE]", help="who may log in; ROLE is admin by default")
    group.add_argument("--pganalytics-token-life", type=float, metavar="SECONDS", help="default: a year (documented), 30 minutes (shipped)")
    group.add_argument("--pganalytics-paging", choices=("", "bare", "stub", "working", "endless"), default="", help="how lists are paged")
    group.add_argument("--pganalytics-page-size", type=int, default=NEWEST, metavar="N")
    group.add_argument("--pganalytics-rate", metavar="BURST/PER_SECOND", help="limit requests (the shipped server: 1000/16)")
    group.add_argument("--pganalytics-without", default="", metavar="FEATURES", help="comma list of endpoints that are absent")
    group.add_argument("--pganalytics-managed-secrets", choices=("on", "off"), default="on", help="off: as with the shipped schema, where they never work")
    group.add_argument("--pganalytics-idempotency", choices=("on", "off"), default="off", help="on: remember answers by Idempotency-Key")
    group.add_argument("--pganalytics-environment", choices=("production", "development"), default="development")
    group.add_argument("--pganalytics-last-seen", choices=("on", "off"), default="on", help="off: never moves, as with the shipped schema")
    group.add_argument("--pganalytics-tenant-bug", choices=("on", "off"), default="off", help="on: users' calls about collectors answer 500")
    group.add_argument("--pganalytics-mtls", choices=("on", "off"), default="off", help="on: a push needs the collector's client certificate")
    group.add_argument("--pganalytics-version", default="", help="what the health page says")
    group.add_argument("--pganalytics-ca-cert", metavar="FILE", help="documented: the CA that signs collectors (default: one of its own)")
    group.add_argument("--pganalytics-ca-key", metavar="FILE")


def from_arguments(arguments: argparse.Namespace, shared: Shared) -> PgAnalytics:
    """Build the pgAnalytics the command line describes. Raises ValueError when options contradict each other."""
    if bool(arguments.pganalytics_ca_cert) != bool(arguments.pganalytics_ca_key):
        raise ValueError("--pganalytics-ca-cert and --pganalytics-ca-key go together")
    config = Config(
        registration_secret=arguments.pganalytics_secret,
        users=tuple(_user(number, text) for number, text in enumerate(arguments.pganalytics_user, 1)),
        token_life=arguments.pganalytics_token_life,
        paging=arguments.pganalytics_paging,
        page_size=arguments.pganalytics_page_size,
        rate=_rate(arguments.pganalytics_rate),
        without=frozenset(part.strip() for part in arguments.pganalytics_without.split(",") if part.strip()),
        managed_secrets=arguments.pganalytics_managed_secrets == "on",
        idempotency=arguments.pganalytics_idempotency == "on",
        production=arguments.pganalytics_environment == "production",
        idle=arguments.pganalytics_last_seen == "off",
        tenant_bug=arguments.pganalytics_tenant_bug == "on",
        mtls=arguments.pganalytics_mtls == "on",
        version=arguments.pganalytics_version,
        ca=(arguments.pganalytics_ca_cert, arguments.pganalytics_ca_key) if arguments.pganalytics_ca_cert else None,
    )
    return DocumentedPgAnalytics(shared, config) if arguments.contract == "documented" else ShippedPgAnalytics(shared, config)


def _user(number: int, text: str) -> User:
    name, _colon, rest = text.partition(":")
    password, _colon, role = rest.partition(":")
    if not name or not password:
        raise ValueError("--pganalytics-user takes NAME:PASSWORD[:ROLE]")
    return User(number, name, password, role or "admin")


def _rate(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    burst, _slash, per_second = text.partition("/")
    try:
        return float(burst), float(per_second)
    except ValueError as error:
        raise ValueError("--pganalytics-rate takes BURST/PER_SECOND") from error


def _leaf(key: _Key, subject: x509.Name, hostname: str, now: datetime.datetime, days: int) -> x509.CertificateBuilder:
    """A client certificate but for its issuer and key identifiers. Negative *days*: expired that long ago."""
    usage = x509.KeyUsage(True, False, isinstance(key, rsa.RSAPrivateKey), False, False, False, False, False, False)
    begin = now if days > 0 else now - datetime.timedelta(days=30)
    return (
        x509.CertificateBuilder().subject_name(subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(begin).not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False))


def _pair(certificate: x509.Certificate, key: _Key) -> Pair:
    return Pair(_pem(certificate), _pem_key(key), certificate.fingerprint(hashes.SHA256()).hex())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_key(key: _Key) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _load_key(text: str) -> _Key:
    key = serialization.load_pem_private_key(text.encode(), password=None)
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise ValueError("the CA's key is neither RSA nor EC")
    return key


def _changed(answer: Answer, **changes: Any) -> Answer:
    """Change keys of an answer; None removes one, and a key that is not there is not added."""
    payload = answer.payload
    if not isinstance(payload, dict):
        return answer
    for key, value in changes.items():
        if key in payload:
            payload.pop(key)
            if value is not None:
                payload[key] = value
    return Answer(answer.status, json.dumps(payload).encode(), answer.content_type, answer.headers)


def _is_address(text: Any) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_interface(str(text))
        return True
    return False


def _positive(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else default


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(part.startswith("{") or part == other for part, other in zip(wanted, given))


def _cookie(call: Call, name: str) -> str | None:
    for part in call.headers.get("Cookie", "").split(";"):
        key, _equals, value = part.strip().partition("=")
        if key == name and value:
            return value
    return None
