# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KubeAtlas, the control plane of cluster agents and controllers, in both of its contracts.

``DocumentedKubeAtlas`` is the published guide (mTLS agent integration): JSON errors, validated input, a certificate
that must chain, be meant for clients and name the service, a heartbeat over mTLS that moves ``last_seen``. A
token is used up by success alone. ``ShippedKubeAtlas`` is the server that ships (wire contract, sections 1 to 3):
text errors for malformed requests, nothing verified, the token gone before the certificate is parsed, no
heartbeat. Where the guide is silent (the list of services), both answer as the shipped one does.

Beside them stands the CSR signer that the sibling guide describes (``POST /api/v1/sign-certificate``), served when
``--kubeatlas-signer`` names its CA. Not offered, since no operator's tool needs it: users, profile, statistics.

Actions of the control API: ``mint`` (an install token without a login), ``tokens`` (the live ones, without their
text), ``touch`` (a sign of life, as an agent elsewhere would give), ``lock`` (a user), ``revoke-sessions``,
``identity`` (``up``: false switches the identity provider off).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import datetime
import hashlib
import json
import re
import secrets
import sqlite3
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .core import Answer, BodyTooLargeError, Call, ControlPlane, RefusalError, Route, Shared
from .kubeatlas_oidc import Account, Realm

TYPES = ("controller", "agent")
DEFAULT_HOURS = 24

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")
_HEARTBEAT = "/api/v1/agent/heartbeat"
_STATES = ("healthy", "degraded", "unhealthy")
_OURS = ("/realms/", "/auth/", "/health", "/api/v1/install-tokens", "/api/v1/register", "/api/v1/services", _HEARTBEAT, "/api/v1/sign-certificate")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kubeatlas_tokens (
    token_hash TEXT PRIMARY KEY, service_name TEXT NOT NULL, service_type TEXT NOT NULL, controller_name TEXT, created_by TEXT NOT NULL,
    created_at REAL NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS kubeatlas_services (
    id TEXT PRIMARY KEY, service_type TEXT NOT NULL, service_name TEXT NOT NULL, controller_name TEXT, serial TEXT NOT NULL,
    fingerprint TEXT NOT NULL, der_hash TEXT NOT NULL, connected_at REAL NOT NULL, last_seen REAL NOT NULL, metadata TEXT NOT NULL,
    listed INTEGER NOT NULL);
"""

__all__ = ["Config", "DocumentedKubeAtlas", "KubeAtlas", "ShippedKubeAtlas", "Signer", "add_arguments", "from_arguments"]


@dataclass(frozen=True)
class Config:
    """How one KubeAtlas is set up. ``trusted`` are the CAs of client certificates (none: any); ``without`` names absent endpoints."""

    trusted: tuple[x509.Certificate, ...] = ()
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Grant:
    """What an install token was minted for."""

    service_name: str
    service_type: str
    controller_name: str | None
    created_by: str
    expires_at: float


class _Records:
    """The tables of one KubeAtlas. Of install tokens only hashes are kept."""

    def __init__(self, shared: Shared) -> None:
        self._db = shared.database
        self._now = shared.clock.now
        self._db.create(_SCHEMA)

    def mint(self, name: str, kind: str, controller: str | None, author: str, seconds: float) -> tuple[str, float]:
        """Make an install token: 32 random bytes, URL-safe, 43 characters. Returns it with its end."""
        token, now = secrets.token_urlsafe(32), self._now()
        self._db.run("INSERT INTO kubeatlas_tokens VALUES (?, ?, ?, ?, ?, ?, ?)", _hash(token), name, kind, controller, author, now, now + seconds)
        return token, now + seconds

    def grant(self, token: str) -> Grant | None:
        row = self._db.one("SELECT * FROM kubeatlas_tokens WHERE token_hash = ? AND expires_at > ?", _hash(token), self._now())
        if row is None:
            return None
        return Grant(row["service_name"], row["service_type"], row["controller_name"], row["created_by"], row["expires_at"])

    def burn(self, token: str) -> None:
        self._db.run("DELETE FROM kubeatlas_tokens WHERE token_hash = ?", _hash(token))

    def live_tokens(self) -> list[dict[str, Any]]:
        rows = self._db.all("SELECT * FROM kubeatlas_tokens WHERE expires_at > ? ORDER BY created_at", self._now())
        return [{key: row[key] for key in ("service_name", "service_type", "controller_name", "created_by", "created_at", "expires_at")} for row in rows]

    def add(self, grant: Grant, certificate: x509.Certificate, fingerprint: str, metadata: Any, *, listed: bool = True) -> str:
        """Store a service and return its id; nothing is deduplicated."""
        service_id, now = str(uuid.uuid4()), self._now()
        self._db.run(
            "INSERT INTO kubeatlas_services VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", service_id, grant.service_type, grant.service_name,
            grant.controller_name, str(certificate.serial_number), fingerprint, certificate.fingerprint(hashes.SHA256()).hex(), now, now,
            json.dumps(metadata), int(listed))
        return service_id

    def services(self, kind: str | None = None) -> list[sqlite3.Row]:
        """The listed services, newest first."""
        chosen = TYPES if kind is None else (kind,)
        rows = self._db.all("SELECT * FROM kubeatlas_services WHERE listed = 1 ORDER BY connected_at DESC, rowid DESC")
        return [row for row in rows if row["service_type"] in chosen]

    def holders(self, der_hash: str) -> list[sqlite3.Row]:
        return self._db.all("SELECT * FROM kubeatlas_services WHERE der_hash = ?", der_hash)

    def seen(self, service_id: str, moment: float) -> None:
        self._db.run("UPDATE kubeatlas_services SET last_seen = ? WHERE id = ?", moment, service_id)

    def touch(self, name: str, moment: float) -> int:
        return self._db.run("UPDATE kubeatlas_services SET last_seen = ? WHERE service_name = ?", moment, name)

    def delete(self, name: str) -> bool:
        return self._db.run("DELETE FROM kubeatlas_services WHERE service_name = ?", name) > 0

    def spoil(self, name: str) -> bool:
        """Let the records of a name hold another certificate."""
        other = secrets.token_hex(32)
        return self._db.run(
            "UPDATE kubeatlas_services SET serial = ?, fingerprint = ?, der_hash = ? WHERE service_name = ?",
            str(secrets.randbits(128)), other, other, name) > 0

    def clear(self) -> None:
        self._db.run("DELETE FROM kubeatlas_tokens")
        self._db.run("DELETE FROM kubeatlas_services")


@dataclass(frozen=True)
class Signer:
    """The CSR signer of the sibling guide: a CA that signs client certificates for whoever asks."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def load(cls, cert: str, key: str) -> Signer:
        """Read both PEM files. Raises OSError or ValueError."""
        loaded = serialization.load_pem_private_key(Path(key).read_bytes(), password=None)
        if not isinstance(loaded, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            raise ValueError(f"{key} is neither an RSA nor an EC key")
        return cls(x509.load_pem_x509_certificate(Path(cert).read_bytes()), loaded)

    def sign(self, request: x509.CertificateSigningRequest, days: int, now: datetime.datetime) -> str:
        """Return a client certificate (PEM) for the request's subject and key."""
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.certificate.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(self.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, False, True, False, False, False, False, False, False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


class KubeAtlas(ControlPlane):
    """What both contracts share: install tokens, the list of services, the identity provider, the signer."""

    name = "kubeatlas"
    #: ``kubeatlas-redis-down``: no token can be read or written. ``-store`` and ``-list``: the token is gone, then the record cannot be
    #: written, or is written and not entered in the list.
    own_faults = frozenset({"kubeatlas-redis-down", "kubeatlas-redis-store", "kubeatlas-redis-list"})

    def __init__(self, shared: Shared, config: Config, realm: Realm, signer: Signer | None = None) -> None:
        self.shared = shared
        self.config = config
        self.realm = realm
        self.signer = signer
        self.records = _Records(shared)

    # The two contracts differ in these.

    @abstractmethod
    def user(self, call: Call) -> str:
        """The name of the realm's user who is calling. Raises RefusalError."""

    @abstractmethod
    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """The JSON object of a request, with these keys present as strings. Raises RefusalError."""

    @abstractmethod
    async def mint(self, call: Call) -> Answer:
        """``POST /api/v1/install-tokens``."""

    @abstractmethod
    async def register(self, call: Call) -> Answer:
        """``POST /api/v1/register``."""

    # Hooks of the service and the control API.

    def routes(self) -> Sequence[Route]:
        """The endpoints this contract and configuration offer."""
        offered = {
            "": [
                Route("POST", "/api/v1/install-tokens", "kubeatlas_mint", "mutating", self.mint),
                Route("POST", "/api/v1/register", "kubeatlas_register", "mutating", self.register),
                *self.realm.routes(),
                *self.extra_routes(),
            ],
            "services": [Route("GET", "/api/v1/services", "kubeatlas_services", "read", self.services)],
            "health": [Route("GET", "/health", "kubeatlas_health", "read", self.health)],
            "signer": [Route("POST", "/api/v1/sign-certificate", "kubeatlas_sign", "mutating", self.sign)],
        }
        absent = self.config.without | (frozenset() if self.signer is not None else {"signer"})
        return [route for feature, routes in offered.items() if feature not in absent for route in routes]

    def extra_routes(self) -> list[Route]:
        """Endpoints only one contract has."""
        return []

    def owns(self, path: str) -> bool:
        """Everything below the paths of this plane."""
        return path.startswith(_OURS)

    async def no_route(self, call: Call) -> Answer:
        """404 for an unknown path and 405 for a wrong method, both without a word."""
        allowed = sorted({route.method for route in self.routes() if route.path == call.path})
        return Answer(405, headers={"Allow": ", ".join(allowed)}) if allowed else Answer(404)

    def broken(self) -> Answer:
        """500 with the words for a storage that is away."""
        return failure(500, "Failed to list connected services", "Failed to connect to Redis")

    def answer_faults(self) -> Mapping[str, Callable[[Answer], Answer]]:
        """``kubeatlas-no-id``: a registration's answer without the id; ``kubeatlas-no-token``: a minting's answer without the token."""
        return {
            "kubeatlas-no-id": lambda answer: Answer.of_json(answer.status, {"message": answer.payload["message"]}),
            "kubeatlas-no-token": lambda answer: Answer.of_json(answer.status, {"expires_at": answer.payload.get("expires_at")}),
        }

    def agents(self) -> list[dict[str, Any]]:
        """Every listed service; ``last_heartbeat`` is None until one came."""
        return [
            {
                "control_plane": self.name,
                "agent_id": row["id"],
                "name": row["service_name"],
                "service_type": row["service_type"],
                "controller_name": row["controller_name"],
                "serial": row["serial"],
                "fingerprint": row["fingerprint"],
                "metadata": json.loads(row["metadata"]),
                "registered_at": self.shared.clock.rfc3339(row["connected_at"]),
                "last_heartbeat": self.shared.clock.rfc3339(row["last_seen"]) if row["last_seen"] > row["connected_at"] else None,
            }
            for row in self.records.services()
        ]

    def forget(self, name: str) -> bool:
        """Lose all services of this name."""
        return self.records.delete(name)

    async def drift(self, name: str, options: Mapping[str, Any]) -> bool:
        """Let the services of this name hold another certificate."""
        return self.records.spoil(name)

    async def accepts(self, name: str, token: str) -> bool:
        """Whether the certificate ``token`` (PEM) is registered under this name."""
        certificate = first_certificate(token)
        if certificate is None:
            return False
        return any(row["service_name"] == name for row in self.records.holders(certificate.fingerprint(hashes.SHA256()).hex()))

    def own(self, name: str, owner: str | None) -> None:
        """No deployments here: a service exists once it is registered."""

    async def control(self, action: str, options: Mapping[str, Any]) -> Any:
        """See the module's description."""
        if action == "mint":
            token, _end = self.records.mint(
                str(options["service_name"]), str(options.get("service_type", "agent")), options.get("controller_name"), "test",
                float(options.get("seconds", 3600)))
            return {"install_token": token}
        if action == "tokens":
            return self.records.live_tokens()
        if action == "touch":
            return {"services": self.records.touch(str(options["name"]), self.shared.clock.now() - float(options.get("seconds_ago", 0)))}
        if action == "lock":
            self.realm.lock(str(options["user"]))
            return {}
        if action == "revoke-sessions":
            self.realm.revoke_all()
            return {}
        if action == "identity":
            self.realm.up = bool(options.get("up", True))
            return {}
        raise LookupError(action)

    async def reset(self) -> None:
        """Drop every record, and unlock everybody."""
        self.records.clear()
        self.realm.reset()

    async def close(self) -> None:
        """Nothing is open."""

    # Endpoints.

    async def health(self, call: Call) -> Answer:
        """Static: proves that the port is open, and nothing else."""
        moment = int(self.shared.clock.now())
        return Answer.of_json(200, {"status": "healthy", "timestamp": moment, "service": "kubeatlas-backend", "version": "0.1.0"})

    async def services(self, call: Call) -> Answer:
        """A bare array, newest first; no pages."""
        self.user(call)
        kind = call.query.get("service_type")
        if kind is not None and kind not in TYPES:
            return failure(400, "Invalid service type", f"Valid types are: {', '.join(TYPES)}")
        if self.fault("kubeatlas-redis-down", "kubeatlas_services", call):
            return failure(500, "Failed to list connected services", "Failed to connect to Redis")
        return Answer.of_json(200, [self._service(row) for row in self.records.services(kind)])

    def _service(self, row: sqlite3.Row) -> dict[str, Any]:
        moment = self.shared.clock.rfc3339
        return {
            "id": row["id"], "service_type": row["service_type"], "service_name": row["service_name"], "controller_name": row["controller_name"],
            "client_cert_serial": row["serial"], "client_cert_fingerprint": row["fingerprint"], "connected_at": moment(row["connected_at"]),
            "last_seen": moment(row["last_seen"]), "metadata": json.loads(row["metadata"]), "status": "active",
        }

    async def sign(self, call: Call) -> Answer:
        """Sign a CSR: ``{"csr": base64 of the PEM file, "agent_name", "controller", "validity_days"}`` -> ``{"certificate": PEM}``."""
        if self.signer is None:
            return Answer(404)
        spec = _json_object(await call.body())
        if spec is None or not all(isinstance(spec.get(key), str) and spec[key] for key in ("csr", "agent_name", "controller")):
            return failure(400, "Validation error", "csr, agent_name and controller are required")
        days = spec.get("validity_days", 365)
        if not isinstance(days, int) or not 1 <= days <= 3650:
            return failure(400, "Validation error", "validity_days must be 1 to 3650")
        try:
            request = x509.load_pem_x509_csr(base64.b64decode(spec["csr"], validate=True))
        except (ValueError, binascii.Error):
            return failure(400, "Failed to sign certificate", "Invalid CSR")
        if not request.is_signature_valid:
            return failure(400, "Failed to sign certificate", "CSR signature is not valid")
        now = datetime.datetime.fromtimestamp(self.shared.clock.now(), datetime.timezone.utc)
        return Answer.of_json(200, {"certificate": self.signer.sign(request, days, now)})

    # For the contracts.

    def fault(self, kind: str, route: str, call: Call) -> bool:
        """Whether a storage fault strikes this request now."""
        return self.shared.faults.take({kind}, route, call.path) is not None

    def bearer(self, call: Call) -> str:
        """The bearer of a request. Raises RefusalError when there is none."""
        scheme, _space, token = call.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise RefusalError(failure(401, "Unauthorized", "Missing or invalid authorization header"))
        return token

    def unknown_bearer(self) -> RefusalError:
        """The refusal of a bearer for any reason."""
        return RefusalError(failure(401, "Unauthorized", "Invalid token"))

    @staticmethod
    def registered(service_id: str, grant: Grant) -> dict[str, str]:
        """The body of a successful registration."""
        return {"service_id": service_id, "message": f"{grant.service_type} '{grant.service_name}' successfully registered"}


class ShippedKubeAtlas(KubeAtlas):
    """KubeAtlas as it ships: what is bound to the token wins, nothing is verified, every step after the look at the token burns it."""

    def extra_routes(self) -> list[Route]:
        """The session helpers, which the guide does not name."""
        return [
            Route("POST", "/auth/validate", "kubeatlas_auth_validate", "read", self.auth_validate),
            Route("GET", "/auth/user", "kubeatlas_auth_user", "read", self.auth_user),
            Route("POST", "/auth/refresh", "kubeatlas_auth_refresh", "login", self.auth_refresh),
            Route("POST", "/auth/logout", "kubeatlas_auth_logout", "login", self.auth_logout),
        ]

    def user(self, call: Call) -> str:
        """By way of the realm's userinfo: the scope openid and an e-mail address are needed; any trouble there is an invalid token."""
        claims = self._claims(self.bearer(call))
        if claims is None:
            raise self.unknown_bearer()
        return str(claims["preferred_username"])

    def _claims(self, token: str) -> dict[str, Any] | None:
        claims = self.realm.claims(token)
        if claims is None or "openid" not in str(claims["scope"]).split():
            return None
        complete = all(isinstance(claims.get(key), str) for key in ("sub", "preferred_username", "email"))
        return claims if complete else None

    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """Text for every complaint: 415, 413, 400 for no JSON, 422 for JSON of the wrong form."""
        if not call.headers.get("Content-Type", "").startswith("application/json"):
            raise RefusalError(Answer.of_text(415, "Expected request with `Content-Type: application/json`"))
        try:
            body = await call.body()
        except BodyTooLargeError as error:
            raise RefusalError(Answer.of_text(413, "Failed to buffer the request body: length limit exceeded")) from error
        try:
            spec = json.loads(body)
        except ValueError as error:
            raise RefusalError(Answer.of_text(400, "Failed to parse the request body as JSON: expected value at line 1 column 1")) from error
        if not isinstance(spec, dict):
            raise RefusalError(_unprocessable("invalid type, expected struct"))
        for key in required:
            if key not in spec:
                raise RefusalError(_unprocessable(f"missing field `{key}`"))
            if not isinstance(spec[key], str):
                raise RefusalError(_unprocessable(f"{key}: invalid type, expected a string"))
        return spec

    async def mint(self, call: Call) -> Answer:
        """A new token at every call, for any user of the realm."""
        author = self.user(call)
        spec = await self.object_of(call, ("service_name", "service_type"))
        kind, controller, hours = spec["service_type"], spec.get("controller_name"), spec.get("expires_in_hours", DEFAULT_HOURS)
        if kind not in TYPES:
            raise RefusalError(_unprocessable(f"service_type: unknown variant `{kind}`, expected `controller` or `agent`"))
        if controller is not None and not isinstance(controller, str):
            raise RefusalError(_unprocessable("controller_name: invalid type, expected a string"))
        if hours is None:
            hours = DEFAULT_HOURS
        if not isinstance(hours, int) or isinstance(hours, bool):
            raise RefusalError(_unprocessable("expires_in_hours: invalid type, expected i64"))
        if hours <= 0 or self.fault("kubeatlas-redis-down", "kubeatlas_mint", call):
            return failure(500, "Failed to create install token", "Failed to generate install token")
        token, end = self.records.mint(spec["service_name"], kind, controller, author, hours * 3600.0)
        return Answer.of_json(200, {"install_token": token, "expires_at": self.shared.clock.rfc3339(end)})

    async def register(self, call: Call) -> Answer:
        """Look at the token, delete it, parse the certificate, store the service: in this order, so that a bad certificate burns it."""
        spec = await self.object_of(call, ("install_token", "client_cert_pem"))
        token, pem = spec["install_token"], spec["client_cert_pem"]
        grant = None if self.fault("kubeatlas-redis-down", "kubeatlas_register", call) else self.records.grant(token)
        if grant is None:
            return _refused("Invalid or expired install token")
        self.records.burn(token)
        certificate = first_certificate(pem)
        if certificate is None:
            return _refused("Failed to extract certificate serial")
        if self.fault("kubeatlas-redis-store", "kubeatlas_register", call):
            return _refused("Failed to store service in Redis")
        listed = not self.fault("kubeatlas-redis-list", "kubeatlas_register", call)
        # The digest of the text, not of the certificate: openssl shows another.
        fingerprint = hashlib.sha256(pem.strip().encode()).hexdigest()
        service_id = self.records.add(grant, certificate, fingerprint, spec.get("metadata", {}), listed=listed)
        return Answer.of_json(200, self.registered(service_id, grant)) if listed else _refused("Failed to add service to list")

    async def auth_validate(self, call: Call) -> Answer:
        """200 also for a bad token."""
        spec = await self.object_of(call, ("token",))
        claims = self._claims(spec["token"])
        error = None if claims is not None else "Invalid token"
        return Answer.of_json(200, {"valid": claims is not None, "user": _user(claims), "error": error})

    async def auth_user(self, call: Call) -> Answer:
        """The user of a token, which stands in the body of a GET."""
        spec = await self.object_of(call, ("token",))
        claims = self._claims(spec["token"])
        return Answer(401) if claims is None else Answer.of_json(200, {"user": _user(claims), "roles": claims["realm_access"]["roles"]})

    async def auth_refresh(self, call: Call) -> Answer:
        """Exchange a refresh token."""
        spec = await self.object_of(call, ("refresh_token",))
        answer = self.realm.refreshed(call, spec["refresh_token"])
        if answer.status != 200:
            return Answer.of_json(401, {"error": "invalid_token", "error_description": "Failed to refresh token"})
        return Answer.of_json(200, {key: answer.payload[key] for key in ("access_token", "refresh_token", "expires_in")})

    async def auth_logout(self, call: Call) -> Answer:
        """End a session."""
        spec = await self.object_of(call, ("refresh_token",))
        if not self.realm.forget_refresh(spec["refresh_token"]):
            return Answer.of_json(500, {"error": "logout_failed", "error_description": "Failed to log out"})
        return Answer.of_json(200, {"message": "Successfully logged out"})


class DocumentedKubeAtlas(KubeAtlas):
    """KubeAtlas as the guide tells it: everything is validated, and mTLS is in use from the registration on."""

    def extra_routes(self) -> list[Route]:
        """The guide's heartbeat."""
        return [Route("POST", _HEARTBEAT, "kubeatlas_heartbeat", "agent", self.heartbeat)]

    def user(self, call: Call) -> str:
        """Any user of the realm whose token the JWKS verifies."""
        claims = self.realm.claims(self.bearer(call))
        if claims is None:
            raise self.unknown_bearer()
        return str(claims["preferred_username"])

    async def object_of(self, call: Call, required: Sequence[str]) -> dict[str, Any]:
        """400 and JSON for every complaint; the first missing field is named."""
        try:
            spec = _json_object(await call.body()) if call.headers.get("Content-Type", "").startswith("application/json") else None
        except BodyTooLargeError as error:
            raise RefusalError(failure(413, "Validation error", "Request body too large")) from error
        if spec is None:
            raise RefusalError(failure(400, "Validation error", "Request body must be a JSON object"))
        for key in required:
            if not isinstance(spec.get(key), str) or not spec[key]:
                raise RefusalError(failure(400, "Validation error", f"Missing required field: {key}"))
        if "service_type" in required and spec["service_type"] not in TYPES:
            raise RefusalError(failure(400, "Validation error", "Invalid value for field: service_type"))
        return spec

    async def mint(self, call: Call) -> Answer:
        """201 with the token alone; how long it lives, the guide does not say."""
        author = self.user(call)
        spec = await self.object_of(call, ("service_name", "service_type"))
        hours = spec.get("expires_in_hours", DEFAULT_HOURS)
        if not isinstance(hours, int) or not 1 <= hours <= 8760:
            raise RefusalError(failure(400, "Validation error", "Invalid value for field: expires_in_hours"))
        if self.fault("kubeatlas-redis-down", "kubeatlas_mint", call):
            return failure(500, "Failed to create install token", "Failed to generate install token")
        token, _end = self.records.mint(spec["service_name"], spec["service_type"], spec.get("controller_name"), author, hours * 3600.0)
        return Answer.of_json(201, {"install_token": token})

    async def register(self, call: Call) -> Answer:
        """Fields, token, certificate, and only then the token is used up."""
        spec = await self.object_of(call, ("install_token", "service_name", "service_type", "client_cert_pem"))
        if spec["service_type"] == "agent" and not (isinstance(spec.get("controller_name"), str) and spec["controller_name"]):
            return failure(400, "Validation error", "Missing required field: controller_name")
        grant = None if self.fault("kubeatlas-redis-down", "kubeatlas_register", call) else self.records.grant(spec["install_token"])
        bound = (spec["service_name"], spec["service_type"])
        if grant is None or (grant.service_name, grant.service_type) != bound or grant.controller_name not in (None, spec.get("controller_name")):
            return _refused("Invalid or expired install token")
        certificate = first_certificate(spec["client_cert_pem"])
        if certificate is None:
            return _refused("Invalid certificate format")
        if not self._valid(certificate, spec["client_cert_pem"], grant):
            return _refused("Certificate validation failed")
        if self.fault("kubeatlas-redis-store", "kubeatlas_register", call):
            return _refused("Failed to store service")
        self.records.burn(spec["install_token"])
        grant = Grant(grant.service_name, grant.service_type, spec.get("controller_name"), grant.created_by, grant.expires_at)
        # As the guide's debug command shows it: openssl x509 -fingerprint -sha256.
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        return Answer.of_json(201, self.registered(self.records.add(grant, certificate, fingerprint, spec.get("metadata", {})), grant))

    def _valid(self, certificate: x509.Certificate, pem: str, grant: Grant) -> bool:
        """In force, for clients, naming the service, and with a complete chain."""
        now = datetime.datetime.fromtimestamp(self.shared.clock.now(), datetime.timezone.utc)
        return _in_force(certificate, now) and _for_clients(certificate) and _names(certificate, grant) and self._chains(certificate, pem, now)

    def _chains(self, leaf: x509.Certificate, pem: str, now: datetime.datetime) -> bool:
        """Follow the issuers, through what was sent, to a trusted CA. Without a CA of ours everything does."""
        if not self.config.trusted:
            return True
        sent = [found for found in (parsed(der) for der in pem_blocks(pem)[1:]) if found is not None]
        current, seen = leaf, 0
        while seen <= len(sent):
            if any(_issued(current, anchor) and _in_force(anchor, now) for anchor in self.config.trusted):
                return True
            above = next((item for item in sent if _issued(current, item) and _in_force(item, now) and item != current), None)
            if above is None:
                return False
            current, seen = above, seen + 1
        return False

    async def heartbeat(self, call: Call) -> Answer:
        """A sign of life over mTLS: the client certificate must be a registered one."""
        der = call.peer_certificate()
        if der is None:
            return failure(401, "Unauthorized", "Client certificate required")
        holders = self.records.holders(hashlib.sha256(der).hexdigest())
        if not holders:
            return failure(401, "Unauthorized", "Client certificate is not registered")
        spec = await self.object_of(call, ("agent_id", "status"))
        if spec["status"] not in _STATES:
            return failure(400, "Validation error", "Invalid value for field: status")
        own = [row for row in holders if spec["agent_id"] in (row["id"], json.loads(row["metadata"]).get("agent_id"))]
        if not own:
            return failure(403, "Forbidden", "Client certificate does not belong to this agent")
        for row in own:
            self.records.seen(row["id"], self.shared.clock.now())
        return Answer.of_json(200, {"status": "ok"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add KubeAtlas's options to the command line."""
    group = parser.add_argument_group("KubeAtlas")
    account = "NAME:SECRET[:EMAIL[:ROLE,ROLE]]"
    group.add_argument("--kubeatlas-user", action="append", default=[], metavar=account, help="a user of the realm; repeatable")
    group.add_argument("--kubeatlas-client", action="append", default=[], metavar=account, help="a client of the realm; repeatable")
    group.add_argument("--kubeatlas-token-seconds", type=float, default=3600.0, metavar="SECONDS", help="life of an access token")
    group.add_argument("--kubeatlas-max-failures", type=int, default=30, metavar="N", help="failed logins that lock a user")
    group.add_argument("--kubeatlas-client-ca", metavar="FILE", help="documented: CA of client certificates (default: that of --client-ca)")
    group.add_argument("--kubeatlas-without", default="", metavar="FEATURES", help="comma list of endpoints that are absent: services, health")
    group.add_argument("--kubeatlas-signer", metavar="CERT:KEY", help="serve the CSR signer with this CA (PEM files)")


def from_arguments(arguments: argparse.Namespace, shared: Shared) -> KubeAtlas:
    """Build the KubeAtlas the command line describes. Raises ValueError or OSError for options that cannot be used."""
    realm = Realm(
        shared, _accounts(arguments.kubeatlas_user, "--kubeatlas-user"), _accounts(arguments.kubeatlas_client, "--kubeatlas-client"),
        scheme="https" if arguments.tls_cert else "http", lifespan=arguments.kubeatlas_token_seconds, max_failures=arguments.kubeatlas_max_failures)
    trusted_file = arguments.kubeatlas_client_ca or arguments.client_ca
    config = Config(
        trusted=tuple(x509.load_pem_x509_certificates(Path(trusted_file).read_bytes())) if trusted_file else (),
        without=frozenset(item.strip() for item in arguments.kubeatlas_without.split(",") if item.strip()))
    signer = None
    if arguments.kubeatlas_signer:
        cert, colon, key = arguments.kubeatlas_signer.partition(":")
        if not colon:
            raise ValueError("--kubeatlas-signer takes CERT:KEY")
        signer = Signer.load(cert, key)
    contract = DocumentedKubeAtlas if arguments.contract == "documented" else ShippedKubeAtlas
    return contract(shared, config, realm, signer)


def failure(status: int, error: str, message: str) -> Answer:
    """An error as KubeAtlas writes it."""
    return Answer.of_json(status, {"error": error, "message": message})


def pem_blocks(text: str) -> list[bytes]:
    """The decoded blocks of a PEM text, whatever their labels are."""
    found = []
    for match in _PEM_BLOCK.finditer(text):
        try:
            found.append(base64.b64decode("".join(match.group(2).split()), validate=True))
        except binascii.Error:
            return []
    return found


def parsed(der: bytes) -> x509.Certificate | None:
    """The certificate in a DER document, None when there is none."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        return None


def first_certificate(text: str) -> x509.Certificate | None:
    """The first block of a PEM text, None when it is no certificate."""
    blocks = pem_blocks(text)
    return parsed(blocks[0]) if blocks else None


def _in_force(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _for_clients(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _names(certificate: x509.Certificate, grant: Grant) -> bool:
    """Whether CN or a DNS name is the service's, as such or after its type and a dash, as in the guide's CN=agent-NAME."""
    wanted = {grant.service_name, f"{grant.service_type}-{grant.service_name}"}
    names = {str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return bool(wanted & names)
    return bool(wanted & (names | set(alternatives.get_values_for_type(x509.DNSName))))


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _accounts(texts: Sequence[str], option: str) -> dict[str, Account]:
    accounts = {}
    for text in texts:
        name, *rest = text.split(":")
        if not name or not rest:
            raise ValueError(f"{option} takes NAME:SECRET[:EMAIL[:ROLE,ROLE]]")
        secret, email, roles = (*rest, "", "")[:3]
        accounts[name] = Account(secret, email, tuple(roles.split(",")) if roles else ("user",))
    return accounts


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _refused(message: str) -> Answer:
    return failure(400, "Failed to register service", message)


def _unprocessable(what: str) -> Answer:
    return Answer.of_text(422, f"Failed to deserialize the JSON body into the target type: {what} at line 1 column 2")


def _user(claims: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if claims is None else {"id": claims["sub"], "username": claims["preferred_username"], "email": claims["email"]}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
