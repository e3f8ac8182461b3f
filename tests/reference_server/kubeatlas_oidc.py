# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The identity provider that stands before KubeAtlas: one realm, with the endpoints, answers and lockout of Keycloak.

Its access tokens are RS256 JWTs (RFC 7519) which its JWKS verifies. As with Keycloak, a token is good for
``userinfo`` only when it was asked for with the scope ``openid``, and a user without an e-mail address has no
``email`` claim, whatever scope is asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .core import Answer, BodyTooLargeError, Call, RefusalError, Route, Shared

REALM = "/realms/kubeatlas"
PROTOCOL = f"{REALM}/protocol/openid-connect"
REFRESH_SECONDS = 1800

_SCOPES = frozenset({"openid", "email", "profile", "roles", "offline_access"})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kubeatlas_keys (kid TEXT PRIMARY KEY, pem TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS kubeatlas_refresh (token_hash TEXT PRIMARY KEY, username TEXT NOT NULL, client_id TEXT NOT NULL,
    scope TEXT NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS kubeatlas_failures (username TEXT PRIMARY KEY, failures INTEGER NOT NULL);
"""

__all__ = ["PROTOCOL", "REALM", "Account", "Realm"]


@dataclass(frozen=True)
class Account:
    """A user or a client of the realm: its secret, its e-mail address (empty: none), its realm roles."""

    secret: str = field(repr=False)
    email: str = ""
    roles: tuple[str, ...] = ("user",)


class Realm:
    """Users and clients, and the tokens they get. ``lifespan`` is an access token's, in seconds."""

    def __init__(
        self, shared: Shared, users: Mapping[str, Account], clients: Mapping[str, Account], *, scheme: str, lifespan: float, max_failures: int
    ) -> None:
        """``max_failures`` failed logins lock a user until a reset. ``scheme`` is that of the URLs in the metadata."""
        self._shared = shared
        self._users = users
        self._clients = clients
        self._scheme = scheme
        self._lifespan = lifespan
        self._max_failures = max_failures
        self._not_before = 0.0
        self._key: tuple[str, rsa.RSAPrivateKey] | None = None
        self.up = True
        shared.database.create(_SCHEMA)

    def routes(self) -> Sequence[Route]:
        """The realm's endpoints."""
        return [
            Route("GET", f"{REALM}/.well-known/openid-configuration", "kubeatlas_oidc_discovery", "read", self._guarded(self.discovery)),
            Route("POST", f"{PROTOCOL}/token", "kubeatlas_oidc_token", "login", self._guarded(self.token)),
            Route("GET", f"{PROTOCOL}/userinfo", "kubeatlas_oidc_userinfo", "read", self._guarded(self.userinfo)),
            Route("GET", f"{PROTOCOL}/certs", "kubeatlas_oidc_certs", "read", self._guarded(self.certs)),
            Route("POST", f"{PROTOCOL}/logout", "kubeatlas_oidc_logout", "login", self._guarded(self.end)),
        ]

    def _guarded(self, handler: Any) -> Any:
        async def handle(call: Call) -> Answer:
            if not self.up:
                return Answer(503, b"<html>Service Unavailable</html>", "text/html")
            answer: Answer = await handler(call)
            return answer

        return handle

    def reset(self) -> None:
        """Unlock everybody and end every session; the signing key stays, as it would in life."""
        self._shared.database.run("DELETE FROM kubeatlas_failures")
        self._shared.database.run("DELETE FROM kubeatlas_refresh")
        self._not_before = 0.0
        self.up = True

    def lock(self, username: str) -> None:
        """Disable a user, as too many failures would."""
        self._set_failures(username, self._max_failures)

    def revoke_all(self) -> None:
        """Take back every access token given so far."""
        self._not_before = self._shared.clock.now()

    # Endpoints.

    async def discovery(self, call: Call) -> Answer:
        """OpenID Connect Discovery 1.0."""
        issuer = self._issuer(call)
        base = f"{issuer}/protocol/openid-connect"
        return Answer.of_json(200, {
            "issuer": issuer, "token_endpoint": f"{base}/token", "userinfo_endpoint": f"{base}/userinfo", "jwks_uri": f"{base}/certs",
            "end_session_endpoint": f"{base}/logout", "grant_types_supported": ["password", "client_credentials", "refresh_token"],
            "scopes_supported": sorted(_SCOPES), "id_token_signing_alg_values_supported": ["RS256"],
        })

    async def token(self, call: Call) -> Answer:
        """RFC 6749, sections 4.3 (password), 4.4 (client credentials) and 6 (refresh)."""
        form = await _form(call)
        grant = form.get("grant_type", "")
        if not grant:
            return _refusal(400, "invalid_request", "Missing form parameter: grant_type")
        client_id = self._client(call, form)
        scope = _scope(form.get("scope", ""))
        if grant == "password":
            return self._password(call, form, client_id, scope)
        if grant == "client_credentials":
            return Answer.of_json(200, self._issue(call, f"service-account-{client_id}", self._clients[client_id], client_id, scope, refresh=False))
        if grant == "refresh_token":
            return self.refreshed(call, form.get("refresh_token", ""))
        return _refusal(400, "unsupported_grant_type", "Unsupported grant_type")

    async def userinfo(self, call: Call) -> Answer:
        """Claims of a token that has the scope ``openid``: 401 for a bad token, 403 without that scope."""
        scheme, _space, token = call.headers.get("Authorization", "").partition(" ")
        claims = self.claims(token) if scheme == "Bearer" else None
        if claims is None:
            return _refusal(401, "invalid_token", "Token verification failed")
        if "openid" not in str(claims["scope"]).split():
            return _refusal(403, "insufficient_scope", "Missing openid scope")
        known = ("sub", "preferred_username", "email", "realm_access", "resource_access")
        return Answer.of_json(200, {key: claims[key] for key in known if key in claims})

    async def certs(self, call: Call) -> Answer:
        """The verification key, as RFC 7517 writes it."""
        kid, key = self._signing_key()
        numbers = key.public_key().public_numbers()
        return Answer.of_json(200, {"keys": [
            {"kid": kid, "kty": "RSA", "alg": "RS256", "use": "sig", "n": _number(numbers.n), "e": _number(numbers.e)}]})

    async def end(self, call: Call) -> Answer:
        """End the session of a refresh token."""
        form = await _form(call)
        self.forget_refresh(form.get("refresh_token", ""))
        return Answer(204)

    # What the backend asks for.

    def claims(self, token: str) -> dict[str, Any] | None:
        """The claims of an access token of this realm, None when it is not good (any more)."""
        if not self.up:
            return None
        try:
            head, body, signature = token.split(".")
            self._signing_key()[1].public_key().verify(_decoded(signature), f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
            claims: dict[str, Any] = json.loads(_decoded(body))
        except (ValueError, binascii.Error, InvalidSignature):
            return None
        now = self._shared.clock.now()
        return claims if claims["exp"] > now and claims["issued"] >= self._not_before else None

    def refreshed(self, call: Call, refresh_token: str) -> Answer:
        """New tokens for a refresh token, which is used up by it."""
        row = self._shared.database.one("SELECT * FROM kubeatlas_refresh WHERE token_hash = ?", _hash(refresh_token))
        if row is None or row["expires_at"] <= self._shared.clock.now() or row["username"] not in self._users:
            return _refusal(400, "invalid_grant", "Token is not active")
        self.forget_refresh(refresh_token)
        account = self._users[row["username"]]
        return Answer.of_json(200, self._issue(call, row["username"], account, row["client_id"], row["scope"], refresh=True))

    def forget_refresh(self, refresh_token: str) -> bool:
        """Drop a refresh token. False when it was not known."""
        return self._shared.database.run("DELETE FROM kubeatlas_refresh WHERE token_hash = ?", _hash(refresh_token)) > 0

    # How it is done.

    def _issuer(self, call: Call) -> str:
        return f"{self._scheme}://{call.headers.get('Host', 'localhost')}{REALM}"

    def _client(self, call: Call, form: Mapping[str, str]) -> str:
        """The client of a token request, by form or by HTTP Basic. Raises RefusalError."""
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
        scheme, _space, basic = call.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            client_id, _colon, secret = base64.b64decode(basic).decode("utf-8", "replace").partition(":")
        account = self._clients.get(client_id)
        if account is None:
            raise RefusalError(_refusal(401, "invalid_client", "Invalid client or Invalid client credentials"))
        if not hmac.compare_digest(account.secret.encode(), secret.encode()):
            raise RefusalError(_refusal(401, "unauthorized_client", "Invalid client or Invalid client credentials"))
        return client_id

    def _password(self, call: Call, form: Mapping[str, str], client_id: str, scope: str) -> Answer:
        username, password = form.get("username", ""), form.get("password", "")
        failures = self._failures(username)
        if failures >= self._max_failures:
            return _refusal(400, "invalid_grant", "Account disabled")
        account = self._users.get(username)
        if account is None or not hmac.compare_digest(account.secret.encode(), password.encode()):
            self._set_failures(username, failures + 1)
            return _refusal(401, "invalid_grant", "Invalid user credentials")
        self._set_failures(username, 0)
        return Answer.of_json(200, self._issue(call, username, account, client_id, scope, refresh=True))

    def _issue(self, call: Call, username: str, account: Account, client_id: str, scope: str, *, refresh: bool) -> dict[str, Any]:
        now = self._shared.clock.now()
        claims: dict[str, Any] = {
            "exp": int(now + self._lifespan), "iat": int(now), "issued": now, "jti": str(uuid.uuid4()), "iss": self._issuer(call), "aud": "account",
            "sub": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{REALM}/{username}")), "typ": "Bearer", "azp": client_id, "scope": scope,
            "preferred_username": username, "realm_access": {"roles": list(account.roles)},
        }
        if account.email:
            claims |= {"email": account.email, "email_verified": True}
        answer: dict[str, Any] = {
            "access_token": self._signed(claims), "expires_in": int(self._lifespan), "refresh_expires_in": 0, "token_type": "Bearer",
            "not-before-policy": 0, "scope": scope,
        }
        if refresh:
            token = secrets.token_urlsafe(48)
            self._shared.database.run(
                "INSERT INTO kubeatlas_refresh VALUES (?, ?, ?, ?, ?)", _hash(token), username, client_id, scope, now + REFRESH_SECONDS)
            answer |= {"refresh_token": token, "refresh_expires_in": REFRESH_SECONDS, "session_state": str(uuid.uuid4())}
        return answer

    def _signed(self, claims: Mapping[str, Any]) -> str:
        kid, key = self._signing_key()
        text = f"{_encoded({'alg': 'RS256', 'typ': 'JWT', 'kid': kid})}.{_encoded(claims)}"
        return f"{text}.{_base64url(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def _signing_key(self) -> tuple[str, rsa.RSAPrivateKey]:
        """The realm's key, made when it is first needed and kept over restarts."""
        if self._key is None:
            row = self._shared.database.one("SELECT * FROM kubeatlas_keys")
            if row is None:
                made = rsa.generate_private_key(65537, 2048)
                pem = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
                self._key = (secrets.token_hex(8), made)
                self._shared.database.run("INSERT INTO kubeatlas_keys VALUES (?, ?)", self._key[0], pem)
            else:
                kept = serialization.load_pem_private_key(row["pem"].encode(), password=None)
                if not isinstance(kept, rsa.RSAPrivateKey):
                    raise ValueError("the realm's key is not an RSA key")
                self._key = (row["kid"], kept)
        return self._key

    def _failures(self, username: str) -> int:
        row = self._shared.database.one("SELECT failures FROM kubeatlas_failures WHERE username = ?", username)
        return 0 if row is None else int(row["failures"])

    def _set_failures(self, username: str, failures: int) -> None:
        self._shared.database.run("INSERT OR REPLACE INTO kubeatlas_failures VALUES (?, ?)", username, failures)


async def _form(call: Call) -> dict[str, str]:
    if not call.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
        raise RefusalError(Answer.of_json(415, {"error": "HTTP 415 Unsupported Media Type"}))
    try:
        return dict(parse_qsl((await call.body()).decode("utf-8", "replace"), keep_blank_values=True))
    except BodyTooLargeError as error:
        raise RefusalError(Answer(413)) from error


def _scope(asked: str) -> str:
    """The scope a token gets: Keycloak's default scopes, and those asked for. Raises RefusalError for an unknown one."""
    unknown = set(asked.split()) - _SCOPES
    if unknown:
        raise RefusalError(_refusal(400, "invalid_scope", f"Invalid scopes: {asked}"))
    return " ".join(sorted({"email", "profile", *asked.split()}))


def _refusal(status: int, error: str, description: str) -> Answer:
    return Answer.of_json(status, {"error": error, "error_description": description})


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(document: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(document).encode())


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))
