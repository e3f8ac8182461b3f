# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a certificate says of itself, field by field (private to muster.agents).

The fields have the names of a certificate monitor's ``certificate_details``. A certificate that one part of cannot be read still tells the others: each
field is read on its own, and what went wrong is listed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import typing as t
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

from ansible_collections.muster.agents.plugins.module_utils import _certificates as certificates
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
    from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
except ImportError:
    IMPORT_ERROR: str | None = "cryptography"
else:
    IMPORT_ERROR = None

__all__ = ["IMPORT_ERROR", "Certificate", "Flaw", "details", "element", "left", "load", "quiet", "spki_pin", "strength", "try_read"]

_DAY = 86400.0
_REMEMBERED = 512  # certificates
_SIGNATURES = {
    "1.2.840.113549.1.1.4": "md5WithRSAEncryption", "1.2.840.113549.1.1.5": "sha1WithRSAEncryption", "1.2.840.113549.1.1.10": "rsassaPss",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption", "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption", "1.2.840.113549.1.1.14": "sha224WithRSAEncryption",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1", "1.2.840.10045.4.3.1": "ecdsa-with-SHA224", "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384", "1.2.840.10045.4.3.4": "ecdsa-with-SHA512", "1.2.840.10040.4.3": "dsaWithSHA1",
    "2.16.840.1.101.3.4.3.2": "dsa_with_SHA256", "1.3.101.112": "ED25519", "1.3.101.113": "ED448",
}
_KEY_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only",
    "decipher_only",
)
_EXTENDED_USAGES = {
    "1.3.6.1.5.5.7.3.1": "serverAuth", "1.3.6.1.5.5.7.3.2": "clientAuth", "1.3.6.1.5.5.7.3.3": "codeSigning", "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping", "1.3.6.1.5.5.7.3.9": "OCSPSigning", "2.5.29.37.0": "anyExtendedKeyUsage",
}

_T = t.TypeVar("_T")


@dataclass(frozen=True)
class Flaw:
    """Something wrong with a certificate's own form. *reason* is a stable key, *msg* a clause for people."""

    reason: str
    msg: str


@dataclass(frozen=True)
class Certificate:
    """A certificate, and what is asked of it often, which is read once. flaws: what cannot be read in it."""

    der: bytes
    parsed: x509.Certificate
    sha256: bytes
    not_before: float
    not_after: float
    subject_der: bytes
    issuer_der: bytes
    flaws: tuple[Flaw, ...] = field(default=(), compare=False)

    @property
    def self_issued(self) -> bool:
        """Whether it names itself as its issuer."""
        return self.subject_der == self.issuer_der

    @property
    def subject(self) -> str:
        """The subject for people."""
        return self.words["subject"] or "(no readable name)"

    @property
    def issuer(self) -> str:
        """The issuer's name for people."""
        return self.words["issuer"] or "(no readable name)"

    @cached_property
    def words(self) -> t.Mapping[str, str]:
        """``subject`` and ``issuer`` as RFC 4514 writes them, empty where they cannot be read."""
        return {which: try_read(partial(_name_words, self.parsed, which), "") for which in ("subject", "issuer")}

    @cached_property
    def key(self) -> t.Any:
        """The public key, None when it cannot be read."""
        return try_read(self.parsed.public_key, None)

    @cached_property
    def names(self) -> tuple[tuple[str, str], ...]:
        """The subject alternative names with their kinds (DNS, IP, URI, EMAIL, ID, DIRNAME, OTHER) in their order."""
        return tuple(_san_entries(self))

    @cached_property
    def _extensions(self) -> dict[t.Any, t.Any]:
        return {}

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the whole certificate: upper-case hexadecimal with colons, as openssl prints it."""
        return _colons(self.sha256)

    def extension(self, kind: t.Any) -> t.Any:
        """Return the value of an extension, None when there is none or it cannot be read."""
        if kind not in self._extensions:
            self._extensions[kind] = try_read(lambda: self.parsed.extensions.get_extension_for_class(kind).value, None)
        return self._extensions[kind]


@lru_cache(maxsize=_REMEMBERED)
def load(der: bytes) -> Certificate | Flaw:
    """Return the certificate in *der*, or the flaw that keeps it from being read at all. A fleet's CAs come again and again, and are read once."""
    try:
        with quiet():
            parsed = x509.load_der_x509_certificate(der)
        not_before, not_after = certificates.validity(parsed)
        subject, issuer = _name_bytes(parsed, "subject"), _name_bytes(parsed, "issuer")
    except _errors() as error:
        return Flaw("malformed", f"the certificate cannot be read ({_first_line(error)})")
    found = Certificate(der, parsed, hashlib.sha256(der).digest(), not_before, not_after, subject, issuer)
    return replace(found, flaws=tuple(_flaws(parsed)))


def details(found: Certificate, now: float) -> dict[str, t.Any]:
    """Return every field of *found*; *now* is in seconds since the epoch. What cannot be read is empty."""
    parsed = found.parsed
    days, percent = left(found, now)
    algorithm, bits = _key(found.key)
    usage = found.extension(x509.KeyUsage)
    constraints = found.extension(x509.BasicConstraints)
    return {
        **found.words,
        **{f"subject_{short}": value for short, value in _name_parts(parsed, "subject").items() if short in ("cn", "o")},
        **{f"issuer_{short}": value for short, value in _name_parts(parsed, "issuer").items()},
        "subject_alt_names": [value for _kind, value in found.names],
        "serial_number": _serial(parsed), "fingerprint_sha256": found.fingerprint, "fingerprint_spki_sha256": spki_pin(found.key),
        "version": try_read(lambda: parsed.version.value + 1, 0), "not_before": iso(found.not_before), "not_after": iso(found.not_after),
        "days_until_expiry": math.trunc(days), "days_left": round(days, 2), "percent_left": round(percent, 2),
        "signature_algorithm": _signature(parsed), "public_key_algorithm": algorithm, "public_key_bits": bits,
        "key_usage": [name for name in _KEY_USAGES if _has_usage(usage, name)],
        "extended_key_usage": [_EXTENDED_USAGES.get(item.dotted_string, item.dotted_string) for item in found.extension(x509.ExtendedKeyUsage) or ()],
        "is_ca": bool(constraints is not None and constraints.ca), "is_wildcard": any(value.startswith("*.") for kind, value in found.names if kind == "DNS"),
        "ocsp_urls": _access(found, AuthorityInformationAccessOID.OCSP), "ca_issuer_urls": _access(found, AuthorityInformationAccessOID.CA_ISSUERS),
        "crl_urls": _crl_urls(found), "sct_count": len(found.extension(x509.PrecertificateSignedCertificateTimestamps) or ()),
    }


def element(found: Certificate | Flaw, now: float) -> dict[str, t.Any]:
    """Return what is told about one certificate of a chain."""
    if isinstance(found, Flaw):
        return {"subject": "", "issuer": "", "serial_number": "", "not_before": "", "not_after": "", "days_left": None, "fingerprint_sha256": "",
                "is_ca": False, "error": found.msg}
    constraints = found.extension(x509.BasicConstraints)
    return {
        "subject": found.subject, "issuer": found.issuer, "serial_number": _serial(found.parsed), "not_before": iso(found.not_before),
        "not_after": iso(found.not_after), "days_left": round(left(found, now)[0], 2), "fingerprint_sha256": found.fingerprint,
        "is_ca": bool(constraints is not None and constraints.ca), "error": "; ".join(flaw.msg for flaw in found.flaws),
    }


def left(found: Certificate, now: float) -> tuple[float, float]:
    """Return the days and the percentage of the whole lifetime that are left, negative when it is over."""
    rest, whole = found.not_after - now, found.not_after - found.not_before
    return rest / _DAY, 100.0 * rest / whole if whole > 0 else 0.0


def _san_entries(found: Certificate) -> t.Iterator[tuple[str, str]]:
    kinds: tuple[tuple[t.Any, str], ...] = (
        (x509.DNSName, "DNS"), (x509.IPAddress, "IP"), (x509.UniformResourceIdentifier, "URI"), (x509.RFC822Name, "EMAIL"))
    for name in found.extension(x509.SubjectAlternativeName) or ():
        kind = next((words for cls, words in kinds if isinstance(name, cls)), "OTHER")
        value = name.value.rfc4514_string() if isinstance(name, x509.DirectoryName) else str(getattr(name.value, "dotted_string", name.value))
        yield kind, value if kind != "OTHER" or isinstance(name, (x509.DirectoryName, x509.RegisteredID)) else name.__class__.__name__


def strength(found: Certificate) -> tuple[str, int, str]:
    """Return the kind and the bits of its key, and what its signature is made with; empty or 0 for what cannot be read."""
    return (*_key(found.key), _signature(found.parsed))


def spki_pin(key: t.Any) -> str:
    """Return the SHA-256 of a public key in base64, as it is pinned; empty for an unreadable key."""
    data = try_read(lambda: certificates.public_bytes(key), b"")
    return base64.b64encode(hashlib.sha256(data).digest()).decode() if data else ""


@contextlib.contextmanager
def quiet() -> t.Iterator[None]:
    """Let cryptography warn of nothing inside: what is wrong with a certificate is told as a flaw.

    Blocks may be nested; only the outermost costs anything, so one belongs around the reading of many certificates.
    """
    if _Quiet.entered:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _Quiet.entered = True
        try:
            yield
        finally:
            _Quiet.entered = False


class _Quiet:
    entered = False


def try_read(what: t.Callable[[], _T], otherwise: _T) -> _T:
    """Return what *what* returns, or *otherwise* when the certificate does not allow to read it."""
    try:
        with quiet():
            return what()
    except _errors():
        return otherwise


def _flaws(parsed: x509.Certificate) -> t.Iterator[Flaw]:
    for name in ("subject", "issuer"):
        error = _readable(partial(_attributes, parsed, name))
        if error:
            yield Flaw("malformed_name", f"its {name} cannot be read ({error})")
    error = _readable(lambda: list(parsed.extensions))
    if error:
        yield Flaw("malformed", f"its extensions cannot be read ({error})")
    if _readable(parsed.public_key):
        yield Flaw("unknown_key", "its key is of a kind that is not known here")
    if try_read(lambda: parsed.serial_number, 1) <= 0:
        yield Flaw("bad_serial", "its serial number is not positive, which RFC 5280 forbids")


def _name_words(parsed: x509.Certificate, which: str) -> str:
    """Return a name for people; reading the name itself may fail already."""
    return t.cast(str, getattr(parsed, which).rfc4514_string())


def _attributes(parsed: x509.Certificate, which: str) -> list[t.Any]:
    return list(getattr(parsed, which))


def _readable(what: t.Callable[[], t.Any]) -> str | None:
    """Return None when *what* can be read, else why not."""
    try:
        with quiet():
            what()
    except _errors() as error:
        return _first_line(error)
    return None


def _errors() -> tuple[type[Exception], ...]:
    """What cryptography raises for certificates that break the rules."""
    return (
        ValueError, TypeError, KeyError, OverflowError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType, x509.InvalidVersion,
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__


def _name_bytes(parsed: x509.Certificate, which: str) -> bytes:
    """Return a name as DER, or one that equals no other when it cannot be read."""
    return try_read(lambda: t.cast(bytes, getattr(parsed, which).public_bytes()), parsed.signature + which.encode())


def _name_parts(parsed: x509.Certificate, which: str) -> dict[str, str]:
    """Return CN, O, OU and C of a name; the first of each, empty when there is none."""
    kinds = {"cn": NameOID.COMMON_NAME, "o": NameOID.ORGANIZATION_NAME, "ou": NameOID.ORGANIZATIONAL_UNIT_NAME, "c": NameOID.COUNTRY_NAME}

    attributes: list[t.Any] = try_read(partial(_attributes, parsed, which), [])
    values = [(item.oid, item.value if isinstance(item.value, str) else item.value.hex()) for item in attributes]
    return {short: next((value for oid, value in values if oid == kind), "") for short, kind in kinds.items()}


def _key(key: t.Any) -> tuple[str, int]:
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ECDSA", key.curve.key_size
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519", 256
    if isinstance(key, ed448.Ed448PublicKey):
        return "Ed448", 456
    return ("DSA", key.key_size) if isinstance(key, dsa.DSAPublicKey) else ("", 0)


def _signature(parsed: x509.Certificate) -> str:
    oid = try_read(lambda: parsed.signature_algorithm_oid.dotted_string, "")
    return _SIGNATURES.get(oid, oid)


def _serial(parsed: x509.Certificate) -> str:
    number = try_read(lambda: parsed.serial_number, 0)
    text = certificates.serial_text(number).lstrip("-")
    return ("-" if number < 0 else "") + _colons(bytes.fromhex(text))


def _colons(data: bytes) -> str:
    return data.hex(":").upper()


def _has_usage(usage: t.Any, name: str) -> bool:
    if usage is None or (name in ("encipher_only", "decipher_only") and not usage.key_agreement):
        return False
    return bool(getattr(usage, name))


def _access(found: Certificate, method: t.Any) -> list[str]:
    descriptions = found.extension(x509.AuthorityInformationAccess) or ()
    return [str(item.access_location.value) for item in descriptions if item.access_method == method
            and isinstance(item.access_location, x509.UniformResourceIdentifier)]


def _crl_urls(found: Certificate) -> list[str]:
    names = (name for point in found.extension(x509.CRLDistributionPoints) or () for name in point.full_name or ())
    return [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
