# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""X.509 as controller and host both need it (private; no stability promise outside muster.agents).

What is asked for, what a certificate says, and whether the two agree. Runs with Python 3.9+ and cryptography 3.3+ (Debian 11). Nothing here touches a file.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import ipaddress
import re
import traceback
import typing as t
from dataclasses import asdict, dataclass, replace

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

__all__ = [
    "IMPORT_ERROR", "KEY_TYPES", "KEY_USAGES", "CertificateError", "Pair", "Renewal", "Request", "Verdict", "certificate_pem", "describe",
    "extended_key_usage", "fingerprint_of", "general_names", "is_issued_by", "judge", "key_matches", "key_usage", "leads_to",
    "load_certificates", "load_request", "new_key_and_request", "normal_name", "private_key_of", "public_bytes", "renewal_time",
    "request_differs", "request_fits", "serial_text", "subject_name", "validity",
]

KEY_TYPES = ("ec", "ed25519", "rsa")
KEY_USAGES = (
    "digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly",
)
_MAX_CERTIFICATES = 100  # in one file; a bundle of all public CAs is no agent's certificate
_SECONDS_A_DAY = 86400
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PEM_KEY = re.compile(rb"-----BEGIN ((?:RSA |EC |ENCRYPTED )?PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
_DOTTED = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*))+\Z")
_DNS_NAME = re.compile(r"(?:\*\.)?(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\Z")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+\Z")


_Signed = t.Union["x509.Certificate", "x509.CertificateSigningRequest"]


class CertificateError(Exception):
    """Something about a certificate, key or request is wrong. *reason* is a stable key, *msg* a clause for people."""

    def __init__(self, reason: str, msg: str) -> None:
        super().__init__(msg)
        self.reason = reason
        self.msg = msg


@dataclass(frozen=True)
class Request:
    """What a certificate shall say.

    subject: pairs of attribute (C, O, OU, CN, ... or a dotted OID) and value, in order. names: subject alternative names such as DNS:a or IP:::1.
    key_usage: empty leaves it to the signer. exact: whether the signer follows a request to the letter, so that more than was asked is a difference too.
    """

    subject: tuple[tuple[str, str], ...]
    names: tuple[str, ...] = ()
    key_usage: tuple[str, ...] = ()
    extended_key_usage: tuple[str, ...] = ()
    key_type: str = "ec"
    key_size: int = 0
    exact: bool = True

    def dump(self) -> dict[str, t.Any]:
        """Return plain data, as a module takes it."""
        return asdict(self)

    @classmethod
    def load(cls, document: t.Mapping[str, t.Any]) -> Request:
        """Undo :meth:`dump`, also after a way through JSON."""
        lists = {name: tuple(document[name]) for name in ("names", "key_usage", "extended_key_usage")}
        return cls(
            subject=tuple((str(key), str(value)) for key, value in document["subject"]), key_type=document["key_type"], key_size=document["key_size"],
            exact=document["exact"], **lists)


@dataclass(frozen=True)
class Renewal:
    """When a certificate is due. now: seconds since the epoch. days: renew with fewer left; share: renew when that share of the lifetime is used.

    early: by what share of the lifetime this identity goes before that, so that a fleet does not renew in one hour.
    """

    now: float
    days: int | None = None
    share: float | None = None
    early: float = 0.0


@dataclass(frozen=True)
class Pair:
    """The bytes of a certificate file and of a key file; None for one that is not there."""

    certificate: bytes | None
    key: bytes | None


@dataclass(frozen=True)
class Verdict:
    """What is to be said about a pair: *reason* is ok or why a new one is needed, *detail* the same in words; *certificates* are those that could be read."""

    reason: str
    detail: str
    certificates: tuple[x509.Certificate, ...] = ()


# -- building


def subject_name(pairs: t.Iterable[tuple[str, str]]) -> x509.Name:
    """Return *pairs* as a distinguished name, one attribute a step. Raises CertificateError for an unknown attribute or a value it cannot have."""
    attributes = []
    for key, value in pairs:
        try:
            attributes.append(x509.NameAttribute(_attribute(key), value))
        except (ValueError, TypeError) as error:
            raise CertificateError("invalid_input", f"subject: {key} cannot be {value!r} ({error})") from None
    return x509.Name(attributes)


def normal_name(text: str) -> str:
    """Return a subject alternative name (DNS:, IP: or URI:) in the one form that is compared. Raises CertificateError."""
    kind, colon, value = text.partition(":")
    kind = kind.strip().upper()
    value = value.strip()
    if not colon or kind not in ("DNS", "IP", "URI") or not value:
        raise CertificateError(
            "invalid_input",
            f"subject_alt_name {text!r} is none: write it as DNS:host.example.com, IP:192.0.2.7 or URI:spiffe://example/agent")
    if kind == "DNS":
        return f"DNS:{_dns(value)}"
    if kind == "IP":
        try:
            return f"IP:{ipaddress.ip_address(value)}"
        except ValueError:
            raise CertificateError("invalid_input", f"subject_alt_name {text!r} is no IP address") from None
    if not _URI.match(value):
        raise CertificateError("invalid_input", f"subject_alt_name {text!r} is no URI in printable ASCII")
    return f"URI:{value}"


def general_names(names: t.Iterable[str]) -> list[x509.GeneralName]:
    """Return normal *names* as X.509 has them."""
    made: list[x509.GeneralName] = []
    for name in names:
        kind, _colon, value = name.partition(":")
        if kind == "IP":
            made.append(x509.IPAddress(ipaddress.ip_address(value)))
        else:
            made.append(x509.DNSName(value) if kind == "DNS" else x509.UniformResourceIdentifier(value))
    return made


def key_usage(names: t.Collection[str]) -> x509.KeyUsage:
    """Return the extension for *names* out of KEY_USAGES."""
    wanted = {_snake(name): name in names for name in KEY_USAGES}
    return x509.KeyUsage(**wanted, key_cert_sign=False, crl_sign=False)


def extended_key_usage(names: t.Iterable[str]) -> x509.ExtendedKeyUsage:
    """Return the extension for *names*: clientAuth and the like, or dotted OIDs. Raises CertificateError."""
    return x509.ExtendedKeyUsage([_usage(name) for name in names])


def new_key_and_request(request: Request) -> tuple[bytes, bytes]:
    """Return a fresh private key (PKCS#8 PEM, unencrypted) and the signing request (PEM) for it."""
    key = _new_key(request.key_type, request.key_size)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(request.subject))
    if request.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names(request.names)), critical=False)
    if request.key_usage:
        builder = builder.add_extension(key_usage(request.key_usage), critical=True)
    if request.extended_key_usage:
        builder = builder.add_extension(extended_key_usage(request.extended_key_usage), critical=False)
    algorithm = None if request.key_type == "ed25519" else hashes.SHA256()
    signed = builder.sign(key, algorithm)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, signed.public_bytes(serialization.Encoding.PEM)


# -- reading


def load_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a PEM file in their order. Raises CertificateError(unreadable)."""
    blocks = _PEM_CERTIFICATE.findall(data)
    if not blocks:
        raise CertificateError("unreadable", "it holds no PEM certificate")
    if len(blocks) > _MAX_CERTIFICATES:
        raise CertificateError("unreadable", f"it holds {len(blocks)} certificates")
    try:
        found = tuple(x509.load_pem_x509_certificate(block) for block in blocks)
        for certificate in found:
            describe(certificate)  # Much is decoded when it is asked for only: better now than later.
    except _parse_errors() as error:
        raise CertificateError("unreadable", f"a certificate in it cannot be read ({type(error).__name__})") from None
    return found


def load_request(data: bytes) -> x509.CertificateSigningRequest:
    """Return a signing request whose signature is good. Raises CertificateError(unreadable)."""
    try:
        request = x509.load_pem_x509_csr(data)
        valid = request.is_signature_valid
    except _parse_errors() as error:
        raise CertificateError("unreadable", f"the signing request cannot be read ({type(error).__name__})") from None
    if not valid:
        raise CertificateError("unreadable", "the signing request is not signed by its own key")
    return request


def private_key_of(data: bytes) -> t.Any:
    """Return the private key of a PEM file. Raises CertificateError(key_unreadable)."""
    found = _PEM_KEY.search(data)
    if found is None:
        raise CertificateError("key_unreadable", "the key file holds no PEM private key")
    try:
        return serialization.load_pem_private_key(found.group(0), password=None)
    except TypeError:
        raise CertificateError("key_unreadable", "the key is encrypted with a password") from None
    except _parse_errors() as error:
        raise CertificateError("key_unreadable", f"the key cannot be read ({type(error).__name__})") from None


def public_bytes(key: t.Any) -> bytes:
    """Return a public key as DER SubjectPublicKeyInfo."""
    return t.cast(bytes, key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def key_matches(certificate: x509.Certificate, key: bytes) -> bool:
    """Say whether the PEM private *key* belongs to *certificate*; an unreadable key belongs to none."""
    try:
        return public_bytes(private_key_of(key).public_key()) == public_bytes(certificate.public_key())
    except CertificateError:
        return False


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Return *certificates* as PEM with LF line endings."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the whole certificate in hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def serial_text(number: int) -> str:
    """Return a serial number as openssl prints it: upper-case hexadecimal of an even length."""
    text = f"{abs(number):X}"
    return ("-" if number < 0 else "") + ("0" + text if len(text) % 2 else text)


def validity(certificate: x509.Certificate) -> tuple[float, float]:
    """Return notBefore and notAfter in seconds since the epoch."""
    return _epoch(certificate, "not_valid_before"), _epoch(certificate, "not_valid_after")


def describe(certificate: x509.Certificate) -> dict[str, t.Any]:
    """Return what is told about a certificate: plain values, nothing secret."""
    start, end = validity(certificate)
    spki = hashlib.sha256(public_bytes(certificate.public_key())).digest()
    algorithm = certificate.signature_hash_algorithm
    return {
        "subject": certificate.subject.rfc4514_string(), "issuer": certificate.issuer.rfc4514_string(), "serial": serial_text(certificate.serial_number),
        "sha256": fingerprint_of(certificate), "spki_sha256": base64.b64encode(spki).decode(), "not_before": _iso(start), "not_after": _iso(end),
        "names": list(_names(certificate)), "key": _key_words(certificate.public_key()),
        "signature": algorithm.name if algorithm is not None else "eddsa", "key_usage": sorted(_key_usages(certificate) or ()),
        "extended_key_usage": sorted(_extended_usages(certificate) or ()),
    }


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether *issuer*'s name is on *certificate* and its key signed it."""
    if certificate.issuer != issuer.subject:
        return False
    key = issuer.public_key()
    try:
        _verify(certificate, key)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True


def leads_to(certificate: x509.Certificate, between: t.Sequence[x509.Certificate], issuers: t.Sequence[x509.Certificate]) -> bool:
    """Say whether one of *issuers* issued *certificate*, directly or through the intermediate certificates *between*."""
    reached = [certificate]
    for step in reached:
        if any(is_issued_by(step, issuer) for issuer in issuers):
            return True
        reached.extend(other for other in between if other not in reached and is_issued_by(step, other))
    return False


# -- judging


def judge(pair: Pair, request: Request, issuers: t.Sequence[x509.Certificate], renewal: Renewal) -> Verdict:
    """Say whether *pair* is what *request* asks for, issued by one of *issuers* (any, when empty), and not due.

    Reasons: ok, missing, unreadable, key_missing, key_unreadable, key_mismatch, issuer_changed, expired, not_yet_valid, weak_signature,
    subject_changed, san_changed, usage_changed, key_changed, expires_soon.
    """
    if pair.certificate is None:
        return Verdict("missing", "there is no certificate yet")
    try:
        certificates = load_certificates(pair.certificate)
    except CertificateError as error:
        return Verdict(error.reason, f"the certificate file is of no use: {error.msg}")
    leaf = certificates[0]
    reason, detail = _key_problem(pair.key, leaf) or _problem(certificates, request, issuers, renewal) or ("ok", "the certificate is as it shall be")
    return Verdict(reason, detail, certificates)


def request_differs(certificate: _Signed, request: Request) -> tuple[str, str] | None:
    """Return reason and words for the first thing in which *certificate* is not what *request* asks for, None when there is none."""
    wanted = _subject_pairs(subject_name(request.subject))
    there = _subject_pairs(certificate.subject)
    if (there != wanted) if request.exact else (set(wanted) - set(there)):
        return "subject_changed", f"its subject is {certificate.subject.rfc4514_string()!r}"
    for reason, word, asked, found in (
        ("san_changed", "names are", set(request.names), set(_names(certificate))),
        ("usage_changed", "key usage is", set(request.key_usage), _key_usages(certificate)),
        ("usage_changed", "extended key usage is", {_usage(name).dotted_string for name in request.extended_key_usage}, _dotted_usages(certificate)),
    ):
        difference = _difference(asked, found, exact=request.exact, optional=word == "key usage is")
        if difference:
            return reason, f"its {word} {', '.join(sorted(found or ())) or 'none'}"
    kind, size = _key_kind(certificate.public_key())
    if kind != request.key_type or (kind == "rsa" and size != request.key_size) or (kind == "ec" and size != 256):
        return "key_changed", f"its key is {_key_words(certificate.public_key())}"
    return None


def request_fits(data: bytes, key: bytes, request: Request) -> bool:
    """Say whether a signing request (PEM) that waits with its private *key* (PEM) is the one that *request* would be now."""
    try:
        waiting = load_request(data)
        same_key = public_bytes(private_key_of(key).public_key()) == public_bytes(waiting.public_key())
    except CertificateError:
        return False
    return same_key and bool(_key_usages(waiting)) == bool(request.key_usage) and request_differs(waiting, replace(request, exact=True)) is None


def renewal_time(certificate: x509.Certificate, renewal: Renewal) -> float:
    """Return when *certificate* is due, in seconds since the epoch."""
    start, end = validity(certificate)
    moments = [end]
    if renewal.days is not None:
        moments.append(end - renewal.days * _SECONDS_A_DAY)
    if renewal.share is not None:
        moments.append(start + (end - start) * renewal.share)
    return min(moments) - renewal.early * (end - start)


def _key_problem(key: bytes | None, leaf: x509.Certificate) -> tuple[str, str] | None:
    if key is None:
        return "key_missing", "there is no key"
    try:
        ours = public_bytes(private_key_of(key).public_key())
    except CertificateError as error:
        return error.reason, error.msg
    return None if ours == public_bytes(leaf.public_key()) else ("key_mismatch", "key and certificate do not belong together")


def _problem(
    certificates: t.Sequence[x509.Certificate], request: Request, issuers: t.Sequence[x509.Certificate], renewal: Renewal,
) -> tuple[str, str] | None:
    leaf = certificates[0]
    start, end = validity(leaf)
    if issuers and not leads_to(leaf, certificates[1:], issuers):
        return "issuer_changed", f"it was issued by {leaf.issuer.rfc4514_string()!r}, not by the present CA"
    if renewal.now >= end:
        return "expired", f"it expired at {_iso(end)}"
    if renewal.now < start:
        return "not_yet_valid", f"it is valid from {_iso(start)} only"
    algorithm = leaf.signature_hash_algorithm
    if algorithm is not None and algorithm.name in ("md5", "sha1"):
        return "weak_signature", f"it is signed with {algorithm.name}"
    different = request_differs(leaf, request)
    if different is not None:
        return different
    if renewal.now >= renewal_time(leaf, renewal):
        return "expires_soon", f"it expires at {_iso(end)} and was due at {_iso(renewal_time(leaf, renewal))}"
    return None


def _difference(asked: set[str], found: set[str] | None, *, exact: bool, optional: bool) -> bool:
    """Say whether *found* is not what was *asked*; nothing asked for is no wish where that is *optional*."""
    if optional and not asked:
        return False
    return asked != (found or set()) if exact else bool(asked - (found or set()))


# -- details


def _attribute(key: str) -> x509.ObjectIdentifier:
    known = {
        "C": NameOID.COUNTRY_NAME, "ST": NameOID.STATE_OR_PROVINCE_NAME, "L": NameOID.LOCALITY_NAME, "STREET": NameOID.STREET_ADDRESS,
        "O": NameOID.ORGANIZATION_NAME, "OU": NameOID.ORGANIZATIONAL_UNIT_NAME, "CN": NameOID.COMMON_NAME, "DC": NameOID.DOMAIN_COMPONENT,
        "UID": NameOID.USER_ID, "serialNumber": NameOID.SERIAL_NUMBER, "emailAddress": NameOID.EMAIL_ADDRESS, "title": NameOID.TITLE,
        "GN": NameOID.GIVEN_NAME, "SN": NameOID.SURNAME,
    }
    if key in known:
        return known[key]
    if _DOTTED.match(key):
        return x509.ObjectIdentifier(key)
    raise CertificateError("invalid_input", f"subject: {key!r} is no attribute known here ({', '.join(known)}) and no dotted OID")


def _usage(name: str) -> x509.ObjectIdentifier:
    known = _usage_names()
    if name in known:
        return known[name]
    if _DOTTED.match(name):
        return x509.ObjectIdentifier(name)
    raise CertificateError("invalid_input", f"extended_key_usage: {name!r} is not known here ({', '.join(known)}) and no dotted OID")


def _usage_names() -> dict[str, x509.ObjectIdentifier]:
    return {
        "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH, "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
        "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION, "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
        "OCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
    }


def _dns(value: str) -> str:
    try:
        name = value.lower() if value.isascii() else value.encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if len(name) > 253 or not _DNS_NAME.match(name):
        raise CertificateError("invalid_input", f"subject_alt_name DNS:{value} is no host name")
    return name


def _new_key(kind: str, size: int) -> t.Any:
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=size)
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def _key_kind(key: t.Any) -> tuple[str, int]:
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ec", key.curve.key_size if key.curve.name == "secp256r1" else 0
    return ("ed25519", 0) if isinstance(key, ed25519.Ed25519PublicKey) else ("other", 0)


def _key_words(key: t.Any) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.replace("PublicKey", "").strip("_")


def _verify(certificate: x509.Certificate, key: t.Any) -> None:
    """Check the signature on *certificate*. Raises InvalidSignature, or TypeError for a kind of key that signs nothing."""
    if not certificate.public_bytes(serialization.Encoding.DER).endswith(b"\0" + certificate.signature):
        # A signature is whole bytes. The library drops the count of unused bits before them, other readers refuse the certificate for it.
        raise InvalidSignature
    algorithm = certificate.signature_hash_algorithm
    if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
        # Newer versions name the padding; older ones know PKCS #1 v1.5 only, which every CA but a few uses.
        scheme = getattr(certificate, "signature_algorithm_parameters", None) or padding.PKCS1v15()
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, scheme, algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    elif isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    else:
        raise TypeError("not a signing key")


def _subject_pairs(name: x509.Name) -> list[tuple[str, str]]:
    return [(attribute.oid.dotted_string, _text(attribute.value)) for attribute in name]


def _names(certificate: _Signed) -> tuple[str, ...]:
    extension = _extension(certificate, x509.SubjectAlternativeName)
    return tuple(_general_name_text(name) for name in extension) if extension is not None else ()


def _general_name_text(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DNSName):
        return f"DNS:{name.value.lower()}"
    if isinstance(name, x509.IPAddress):
        return f"IP:{name.value}"
    if isinstance(name, x509.UniformResourceIdentifier):
        return f"URI:{name.value}"
    return f"{type(name).__name__}:{hashlib.sha256(repr(name).encode()).hexdigest()[:12]}"


def _key_usages(certificate: _Signed) -> set[str] | None:
    extension = _extension(certificate, x509.KeyUsage)
    if extension is None:
        return None
    agreed = {"encipherOnly", "decipherOnly"}
    names = [name for name in KEY_USAGES if name not in agreed or extension.key_agreement]
    found = {name for name in names if getattr(extension, _snake(name))}
    return found | {name for name, there in (("keyCertSign", extension.key_cert_sign), ("cRLSign", extension.crl_sign)) if there}


def _dotted_usages(certificate: _Signed) -> set[str] | None:
    extension = _extension(certificate, x509.ExtendedKeyUsage)
    return None if extension is None else {usage.dotted_string for usage in extension}


def _extended_usages(certificate: x509.Certificate) -> set[str] | None:
    words = {usage.dotted_string: name for name, usage in _usage_names().items()}
    found = _dotted_usages(certificate)
    return None if found is None else {words.get(dotted, dotted) for dotted in found}


def _extension(certificate: _Signed, kind: t.Any) -> t.Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _parse_errors() -> tuple[type[Exception], ...]:
    # KeyError: cryptography before 42, for a name whose text has a type that no text can have.
    return (
        ValueError, TypeError, KeyError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion,
        binascii.Error)


def _epoch(certificate: x509.Certificate, name: str) -> float:
    moment = getattr(certificate, f"{name}_utc", None)
    if moment is None:
        moment = getattr(certificate, name).replace(tzinfo=datetime.timezone.utc)
    return float(moment.timestamp())


def _iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda match: "_" + match.group(1).lower(), name)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()
