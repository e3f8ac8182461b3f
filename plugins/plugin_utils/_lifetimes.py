# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long certificates and tokens live, as templates and conditions ask for it (private to muster.agents).

Nothing is verified here: a token's claims are what it says of itself, and a certificate's dates are what is printed in it.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils import _certificates as certificates
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time

__all__ = ["Life", "LifetimeError", "days_left", "life_of", "share_used", "token_claims"]

_DAY = 86400.0
_ENDS = ("not_after", "exp", "expires_at")
_BEGINNINGS = ("not_before", "iat", "nbf", "issued_at")
_MAX_TOKEN = 64 * 1024


class LifetimeError(Exception):
    """A value that has no lifetime to be read; the message never quotes the value, which may be a secret."""


@dataclass(frozen=True)
class Life:
    """From when to when something is valid, in seconds since the epoch; *begin* is None when that is not told."""

    begin: float | None
    end: float


def token_claims(value: object) -> dict[str, t.Any]:
    """Return the claims of a JSON Web Token (RFC 7519) without verifying it. Raises LifetimeError."""
    parts = str(value).strip().split(".") if isinstance(value, str) and len(value) <= _MAX_TOKEN else []
    if len(parts) != 3 or not all(parts[:2]):
        raise LifetimeError("it is no JSON Web Token, which has three parts with dots between them: opaque tokens carry no claims")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        raise LifetimeError("it is no JSON Web Token: its second part is not JSON in base64") from None
    if not isinstance(claims, dict):
        raise LifetimeError("it is no JSON Web Token: its claims are no JSON object")
    return claims


def life_of(value: object) -> Life:
    """Return the lifetime of a certificate (PEM), a token (JWT), or a mapping or date that tells it. Raises LifetimeError.

    A mapping tells it by not_after, exp or expires_at, and its beginning by not_before, iat, nbf or issued_at; dates are ISO 8601 or seconds since the epoch.
    """
    if isinstance(value, t.Mapping):
        return _from_mapping(value)
    if isinstance(value, (int, float, datetime.datetime)):
        return Life(None, _moment(value))
    text = str(value).strip() if isinstance(value, str) else ""
    if "-----BEGIN CERTIFICATE" in text:
        return _from_pem(text)
    when = parse_time(text)
    return Life(None, when) if when is not None else _from_mapping(token_claims(text))


def days_left(value: object, now: float | None = None) -> float:
    """Return the days until *value* expires, negative when it has. *now* is in seconds since the epoch. Raises LifetimeError."""
    return round((life_of(value).end - (time.time() if now is None else now)) / _DAY, 2)


def share_used(life: Life, now: float) -> float:
    """Return how much of *life* is over: 0 at its beginning, 1 at its end and more after it. Raises LifetimeError when its beginning is not known."""
    if life.begin is None:
        raise LifetimeError("only its end is known: give days, or something that tells its beginning too")
    whole = life.end - life.begin
    return (now - life.begin) / whole if whole > 0 else float("inf")


def _from_pem(text: str) -> Life:
    try:
        chain = certificates.load_certificates(text.encode())
    except certificates.CertificateError as error:
        raise LifetimeError(error.msg) from None
    return Life(*certificates.validity(chain[0]))


def _from_mapping(value: t.Mapping[str, t.Any]) -> Life:
    end = next((value[name] for name in _ENDS if value.get(name) not in (None, "")), None)
    begin = next((value[name] for name in _BEGINNINGS if value.get(name) not in (None, "")), None)
    if end is None:
        raise LifetimeError(f"it does not tell when it expires: none of {', '.join(_ENDS)} is in it")
    return Life(None if begin is None else _moment(begin), _moment(end))


def _moment(value: object) -> float:
    if isinstance(value, bool):
        raise LifetimeError("a date in it cannot be read")
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=datetime.timezone.utc)).timestamp()
    when = parse_time(value) if isinstance(value, str) else None
    if when is None:
        raise LifetimeError("a date in it cannot be read: give ISO 8601 or seconds since the epoch")
    return when
