# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logging in at an OpenID Connect issuer, for control planes that take its access tokens (private to muster.agents).

A user logs in with the grant ``password``, a client of its own with ``client_credentials`` (RFC 6749, 4.3 and 4.4). The scope is always
``openid email``: without ``openid`` an issuer such as Keycloak refuses its userinfo, and servers that ask there call the token invalid.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import typing as t
from dataclasses import replace
from urllib.parse import urlsplit

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, InvalidRequest, Rejected, ServerFault, Throttled
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Session
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap

__all__ = ["OidcLogin", "shortcoming_of"]

SCOPE = "openid email"
_DISCOVERY = "/.well-known/openid-configuration"
_PROTOCOL = "/protocol/openid-connect"  # where Keycloak has its endpoints, below the realm
_DEFAULT_LIFE = 60.0  # seconds; RFC 6749, 5.1 lets an answer leave expires_in out
_LOCKED = re.compile(r"disabled|locked|blocked|temporarily", re.IGNORECASE)


class OidcLogin:
    """The login that *bootstrap* describes. Nothing is sent before it is used."""

    def __init__(self, bootstrap: Bootstrap, transport: Transport, server_url: str, default_client: str) -> None:
        """*transport* is that of the control plane at *server_url*: its pin and client certificate are shown to the issuer only on the same origin.

        Raises InvalidInput when something is missing or the issuer's address cannot be right.
        """
        self.issuer = bootstrap.issuer_url.rstrip("/")
        self._client_id = bootstrap.client_id or default_client
        self._username = bootstrap.username
        self._password = bootstrap.password
        self._client_secret = bootstrap.client_secret
        self.secret = self._check()
        parts = urlsplit(self.issuer)
        origin = f"{parts.scheme}://{parts.netloc}"
        same = replace(transport) if origin == server_url else replace(transport, pin_sha256="", client_cert="", client_key="")
        self._path = parts.path
        self._http = Http(origin, same, option="issuer_url")

    @property
    def who(self) -> str:
        """Whose login it is: the name that sessions are shared under."""
        return f"{self.issuer} {self._client_id} {self._username}"

    def close(self) -> None:
        """Close the connections to the issuer."""
        self._http.close()

    def login(self) -> Session:
        """Get an access token.

        Raises Rejected (bad_bootstrap, account_locked, account_not_ready, scope_refused), InvalidRequest when this is no issuer, ServerFault.
        """
        form = {"client_id": self._client_id, "scope": SCOPE, "grant_type": "client_credentials"}
        if self._client_secret is not None:
            form["client_secret"] = self._client_secret.reveal()
        if self._username and self._password is not None:
            form |= {"grant_type": "password", "username": self._username, "password": self._password.reveal()}
        path = self._endpoint("token")
        try:
            answer = self._http.send("POST", path, form=form, read=True)
        except Throttled as error:
            raise Rejected(
                f"{self.issuer} lets {self._subject} log in again in {error.retry_after:.0f} s only: too many logins failed; check the password, and wait.",
                reason="account_locked", retry_after=error.retry_after) from None
        if answer.status != 200:
            raise self._refusal(answer)
        return self._session(answer)

    def shortcoming(self, token: Secret) -> Rejected | None:
        """Say what a *token* of this issuer lacks, by its userinfo or else by its claims; None when nothing is seen."""
        answer = self._http.get(self._endpoint("userinfo"), headers={"Authorization": f"Bearer {token.reveal()}"})
        if answer.status == 403:
            return _without_openid(f"{self.issuer} gave {self._subject} a token")
        if answer.status == 200 and isinstance(answer.json, dict):
            return None if answer.json.get("email") else _without_email(f"The token that {self.issuer} gave {self._subject}")
        return shortcoming_of(token, f"The token that {self.issuer} gave {self._subject}")

    @property
    def _subject(self) -> str:
        return self._username or f"the client {self._client_id}"

    def _check(self) -> Secret:
        """Return the secret that the login stands on. Raises InvalidInput for one that is missing."""
        if not self.issuer:
            raise InvalidInput("issuer_url is missing: give the realm to log in at, such as https://keycloak.example.com/realms/company.")
        parts = urlsplit(self.issuer)
        if parts.query or parts.fragment:
            raise InvalidInput(f"issuer_url {self.issuer!r} has a query or fragment: give the realm's address alone.")
        if self._username and self._password is None:
            raise InvalidInput("username is set without password: give password or password_file.")
        found = self._password if self._username else self._client_secret
        if found is None:
            raise InvalidInput("issuer_url is set without a login: give username and password, or client_id and client_secret.")
        return found

    def _endpoint(self, name: str) -> str:
        """Return the path of an endpoint. One on another host is not used, since the credentials are meant for this one."""
        answer = self._http.get(f"{self._path}{_DISCOVERY}")
        if answer.status >= 500:
            raise ServerFault(f"{self.issuer} is not well (HTTP {answer.status}): repair the identity provider first.", reason="issuer_fault")
        document = answer.json if answer.status == 200 and isinstance(answer.json, dict) else {}
        parts = urlsplit(str(document.get(f"{name}_endpoint") or ""))
        if f"{parts.scheme}://{parts.netloc}" == self._http.url and parts.path:
            return parts.path
        return f"{self._path}{_PROTOCOL}/{name}"

    def _session(self, answer: Answer) -> Session:
        document = answer.json
        token = document.get("access_token") if isinstance(document, dict) else None
        if not isinstance(token, str) or not token:
            raise ServerFault(f"{self.issuer} answered the login without an access token: check that issuer_url is an OpenID Connect realm.",
                              reason="incomplete_answer")
        secret = Secret(token)
        register_with_core([secret])
        life = document.get("expires_in")
        return Session(secret, time.time() + (float(life) if isinstance(life, (int, float)) else _DEFAULT_LIFE))

    def _refusal(self, answer: Answer) -> Exception:
        """Return the exception for a refused login, by RFC 6749, 5.2 and Keycloak's descriptions."""
        document = answer.json if isinstance(answer.json, dict) else {}
        error, said = str(document.get("error") or ""), redact(str(document.get("error_description") or ""), answer.sent)[:200]
        words = f"{self.issuer} refuses the login of {self._subject}"
        if error == "invalid_grant" and _LOCKED.search(said):
            return Rejected(f"{words}: the account is locked ({said}). Wait or unlock it there, and check the password before the next try.",
                            reason="account_locked")
        if error == "invalid_grant" and "not fully set up" in said:
            return Rejected(f"{words}: the account is not ready ({said}). Finish its required actions there.", reason="account_not_ready")
        if error == "invalid_grant":
            return Rejected(f"{words} ({said or error}): check username and password.", reason="bad_bootstrap")
        if error in ("invalid_client", "unauthorized_client"):
            return Rejected(f"{words} ({said or error}): check client_id and client_secret, and that this client may log in so.", reason="bad_bootstrap")
        if error == "invalid_scope":
            return Rejected(f"{words} ({said}): allow the client {self._client_id} the scopes {SCOPE}.", reason="scope_refused")
        if error == "unsupported_grant_type":
            return InvalidRequest(f"{words} ({said}): allow this grant for the client {self._client_id}.", reason="grant_refused")
        if answer.status >= 500:
            return ServerFault(f"{self.issuer} failed at the login (HTTP {answer.status}): repair the identity provider first.", reason="issuer_fault")
        return InvalidRequest(f"{self.issuer} answered HTTP {answer.status} to a login: check that issuer_url is the realm's address.", reason="not_an_issuer")


def shortcoming_of(token: Secret, what: str) -> Rejected | None:
    """Say what the claims of *token* lack; None when they are well or cannot be read. *what* names it in the message. Nothing is verified or sent."""
    claims = _claims(token.reveal())
    if claims is None:
        return None
    expires = claims.get("exp")
    if isinstance(expires, (int, float)) and expires <= time.time():
        return Rejected(f"{what} expired {time.time() - expires:.0f} s ago: get a new one.", reason="bad_bootstrap")
    if isinstance(claims.get("scope"), str) and "openid" not in claims["scope"].split():
        return _without_openid(what)
    return None if claims.get("email") else _without_email(what)


def _without_openid(what: str) -> Rejected:
    return Rejected(f"{what} lacks the scope openid, without which the server cannot ask whose it is: allow the client that scope, or ask for it.",
                    reason="token_without_openid")


def _without_email(what: str) -> Rejected:
    return Rejected(f"{what} has no email claim, which the server needs: give the account an e-mail address and its client the scope email.",
                    reason="token_without_email")


def _claims(token: str) -> dict[str, t.Any] | None:
    """Return the claims of a JWT, None when it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
