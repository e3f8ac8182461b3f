# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether an issued token and an issued pair are what their server says they are (private to muster.agents).

Nobody but the server can check a token's signature (HS256: its key is the server's own), so that only what the claims say is compared. Certificates
are checked in full: key, dates, purpose (RFC 5280, 4.2.1.12), issuer, fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import re
import traceback
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Mismatch, MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Lifetime

try:
    import jwt
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

__all__ = ["Claims", "check_claims", "check_pair", "claims_of", "lifetime_of", "pair_trouble", "require_library"]

_DRIFT = 300.0  # seconds that two clocks may be apart: the widest window of the guides
_LONGEST_CHAIN = 5


def require_library() -> None:
    """Raise MissingLibrary when pyjwt or cryptography are not installed beside ansible-core."""
    if IMPORT_ERROR is not None:
        raise MissingLibrary(
            "The Python libraries pyjwt and cryptography are needed on the controller: install the collection's requirements.txt "
            "into the environment that runs ansible-playbook.", traceback=IMPORT_ERROR)


@dataclass(frozen=True)
class Claims:
    """What a token must say of itself. Issuer and audience are compared where the token names them.

    subjects: what ``sub`` may be; named: further claims that must have this value where they are there.
    """

    subjects: frozenset[str]
    named: t.Mapping[str, str]
    issuer: str = ""
    audience: str = ""


def claims_of(token: Secret) -> dict[str, t.Any] | None:
    """Return the claims of a JWT without checking its signature, None when *token* is no JWT."""
    try:
        return dict(jwt.decode(token.reveal(), options={"verify_signature": False}))
    except (jwt.InvalidTokenError, ValueError):
        return None


def check_claims(token: Secret, wanted: Claims, now: float) -> Lifetime:
    """Return from when to when *token* is good. Raises Mismatch naming the claim that contradicts; *now* is by the server's clock."""
    claims = claims_of(token)
    if claims is None:
        raise Mismatch("the token is no JWT.", reason="bad_token")
    subject = claims.get("sub")
    if subject is not None and subject not in wanted.subjects:
        raise Mismatch("the token's sub is another agent's.", reason="bad_token")
    if subject is None and not any(name in claims for name in wanted.named):
        raise Mismatch("the token does not say whose it is.", reason="bad_token")
    for name, value in wanted.named.items():
        if name in claims and claims[name] != value:
            raise Mismatch(f"the token's {name} is another one's.", reason="bad_token")
    if wanted.issuer and "iss" in claims and claims["iss"] != wanted.issuer:
        raise Mismatch(f"the token's iss is not {wanted.issuer}.", reason="bad_token")
    if wanted.audience and "aud" in claims and wanted.audience not in ([claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"] or ()):
        raise Mismatch(f"the token's aud is not {wanted.audience}.", reason="bad_token")
    return _check_times(claims, now)


def lifetime_of(claims: t.Mapping[str, t.Any]) -> Lifetime | None:
    """Return the life that *claims* tell, None when they tell no end."""
    end = claims.get("exp")
    begin = claims.get("iat", claims.get("nbf"))
    if not isinstance(end, (int, float)):
        return None
    return Lifetime(float(begin) if isinstance(begin, (int, float)) else float(end), float(end))


def _check_times(claims: t.Mapping[str, t.Any], now: float) -> Lifetime:
    life = lifetime_of(claims)
    if life is None:
        raise Mismatch("the token does not say when it expires.", reason="bad_token")
    if life.expires_at <= now:
        raise Mismatch("the token has expired already.", reason="bad_token")
    starts = [claims[name] for name in ("iat", "nbf") if isinstance(claims.get(name), (int, float))]
    if any(abs(start - now) > _DRIFT for start in starts):
        raise Mismatch("the token's iat is not now, by the server's own clock.", reason="bad_token")
    return life


def check_pair(certificate: str, private_key: str, now: float, *, ca: str = "", fingerprint: str = "") -> None:
    """Raise Mismatch when an issued pair (PEM) contradicts itself, its CA or its fingerprint. *ca* and *fingerprint* are empty where none was given."""
    trouble = pair_trouble(certificate, private_key, now)
    if trouble:
        raise Mismatch(f"the {trouble}", reason="bad_certificate")
    chain = x509.load_pem_x509_certificates(certificate.encode())
    if ca:
        _check_chain(chain, ca, now)
    if fingerprint and _digest(fingerprint) != hashlib.sha256(chain[0].public_bytes(Encoding.DER)).digest():
        raise Mismatch("the fingerprint is not the certificate's.", reason="bad_fingerprint")


def pair_trouble(certificate: str, private_key: str, now: float) -> str:
    """Return in a few words what is wrong with a pair (PEM), an empty text when a client can use it. *now* is in seconds since the epoch."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate.encode())[0]
    except (ValueError, IndexError):
        return "certificate cannot be read."
    try:
        key = load_pem_private_key(private_key.encode(), password=None)
    except (ValueError, TypeError):
        return "private key cannot be read."
    if _spki(key.public_key()) != _spki(leaf.public_key()):
        return "private key does not belong to the certificate."
    begin, end = _validity(leaf)
    if end.timestamp() <= now:
        return f"certificate expired at {_moment(end)}."
    if begin.timestamp() > now + _DRIFT:
        return f"certificate is not valid before {_moment(begin)}."
    return "" if _for_clients(leaf) else "certificate is not for clients (no clientAuth)."


def _for_clients(leaf: x509.Certificate) -> bool:
    """Say whether a certificate may prove a client; one without the extension may prove anything."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _check_chain(chain: t.Sequence[x509.Certificate], ca: str, now: float) -> None:
    try:
        anchors = x509.load_pem_x509_certificates(ca.encode())
    except ValueError:
        raise Mismatch("the ca_certificate cannot be read.", reason="bad_certificate") from None
    if all(_validity(anchor)[1].timestamp() <= now for anchor in anchors):
        raise Mismatch("the ca_certificate has expired.", reason="bad_certificate")
    current, others = chain[0], list(chain[1:])
    for _step in range(_LONGEST_CHAIN):
        if any(_signed_by(current, anchor) for anchor in anchors):
            return
        above = next((other for other in others if _signed_by(current, other)), None)
        if above is None:
            break
        others.remove(above)
        current = above
    raise Mismatch("the certificate was not signed by the ca_certificate.", reason="bad_certificate")


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _digest(text: str) -> bytes:
    """Return the SHA-256 that *text* writes in hexadecimal or base64, with or without its name in front; empty bytes when it writes none."""
    bare = re.sub(r"\Asha-?256[:=]?", "", text.strip(), flags=re.IGNORECASE)
    if re.fullmatch(r"(?:[0-9a-fA-F]{2}:?){32}", bare):
        return bytes.fromhex(bare.replace(":", ""))
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_" if set(bare) & set("-_") else None, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _spki(key: t.Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _validity(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """Return from when to when a certificate is good; cryptography 41 names the same moments without their zone."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate.not_valid_before.replace(tzinfo=datetime.timezone.utc), certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc)


def _moment(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
