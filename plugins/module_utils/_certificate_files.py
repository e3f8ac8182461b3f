# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""The certificates in files, whatever the format, and whether a private key belongs to them (private; no stability promise outside muster.agents).

Runs on controller and host with Python 3.9+ and its standard library; PKCS#12, keys in DER and keys of certificates in DER need cryptography. A private key
is read here and nowhere else: what leaves is whether it fits.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
import re
import ssl
import typing as t
import warnings
from dataclasses import dataclass, field, replace

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import pkcs12
    from cryptography.x509 import load_der_x509_certificate
except ImportError:
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True

__all__ = ["MAX_CERTIFICATES", "PATTERNS", "FileSource", "Reading", "expand", "read"]

PATTERNS = ("*.pem", "*.crt", "*.cer", "*.der", "*.p12", "*.pfx")
MAX_CERTIFICATES = 1000
_MAX_BYTES = 4 * 1024 * 1024
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CERTIFICATE|TRUSTED CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ((?:RSA |EC |DSA |ENCRYPTED )?PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
_PKCS12_DATA = bytes.fromhex("2a864886f70d010701")  # the content type that every PKCS#12 file names near its beginning


@dataclass(frozen=True)
class FileSource:
    """A file to read. key_path is the private key that must belong to it, empty for none.

    passphrase, or what passphrase_file on this machine holds, opens the key or the PKCS#12 file.

    found: the file came out of a directory, so that one without certificates is none of our business.
    """

    path: str
    key_path: str = ""
    passphrase: str = field(default="", repr=False)
    passphrase_file: str = ""
    found: bool = False


@dataclass(frozen=True)
class Reading:
    """What a file holds. *reason* is ok or why nothing could be read, *msg* the same in words; *chain* is DER in the file's order.

    key: empty when no key was asked for, else match, mismatch, missing, unreadable, encrypted or unknown (the means are lacking), *key_msg* says more.
    """

    path: str
    reason: str = "ok"
    msg: str = ""
    chain: tuple[bytes, ...] = ()
    kind: str = ""
    key: str = ""
    key_msg: str = ""

    def dump(self) -> dict[str, t.Any]:
        """Return plain data for a module's result, certificates in base64."""
        return {**self.__dict__, "chain": [base64.b64encode(der).decode() for der in self.chain]}

    @classmethod
    def load(cls, document: t.Mapping[str, t.Any]) -> Reading:
        """Undo :meth:`dump`."""
        return cls(**{**document, "chain": tuple(base64.b64decode(item) for item in document["chain"])})


class _Unreadable(Exception):
    """A file that gives no certificate."""

    def __init__(self, reason: str, msg: str) -> None:
        super().__init__(msg)
        self.reason = reason
        self.msg = msg


def expand(directories: t.Sequence[str], patterns: t.Sequence[str]) -> list[FileSource]:
    """Return the files that match *patterns* in *directories*, which may have wildcards; each once, sorted.

    A directory that is not there is returned as a file that cannot be read, so that it is reported.
    """
    found: dict[str, FileSource] = {}
    for directory in directories:
        places = sorted(place for place in glob.glob(os.path.expanduser(directory)) if os.path.isdir(place))
        if not places:
            found[directory] = FileSource(directory)
        for place in places:
            paths = {path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(place), pattern)) if os.path.isfile(path)}
            found.update({path: FileSource(path, found=True) for path in sorted(paths)})
    return list(found.values())


def read(source: FileSource) -> Reading:
    """Return what the file holds; never raises for what it is."""
    path = os.path.expanduser(source.path)
    try:
        if source.passphrase_file:
            words = _bytes(os.path.expanduser(source.passphrase_file)).decode("utf-8", "replace")
            source = replace(source, passphrase=words.rstrip("\r\n"), passphrase_file="")
        data = _bytes(path)
        kind, chain, key = _certificates(data, source)
    except _Unreadable as error:
        return Reading(source.path, error.reason, error.msg)
    if kind == "pkcs12":
        words = "the key in the file belongs to another certificate" if key == "mismatch" else ""
        return Reading(source.path, chain=chain, kind=kind, key=key, key_msg=words)
    state, words = _key_state(path, data, kind, chain, source) if source.key_path else ("", "")
    return Reading(source.path, chain=chain, kind=kind, key=state, key_msg=words)


def _bytes(path: str) -> bytes:
    try:
        if not os.path.isfile(path):
            missing = "there is no such file" if not os.path.exists(path) else "it is no file"
            raise _Unreadable("missing", missing)
        if os.path.getsize(path) > _MAX_BYTES:
            raise _Unreadable("too_large", f"it is larger than {_MAX_BYTES // 1024 // 1024} MiB, which no certificate file is")
        with open(path, "rb") as stream:
            return stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _Unreadable("unreadable", f"it cannot be read ({error.strerror})") from None


def _certificates(data: bytes, source: FileSource) -> tuple[str, tuple[bytes, ...], str]:
    """Return format, certificates and, of PKCS#12, the state of its key."""
    if not data.strip():
        raise _Unreadable("empty", "it is empty")
    if b"-----BEGIN" in data:
        return "pem", _from_pem(data), ""
    if data[:1] == b"\x30" and _PKCS12_DATA in data[:64]:
        return "pkcs12", *_from_pkcs12(data, source.passphrase)
    if data[:1] == b"\x30":
        return "der", (_one_der(data),), ""
    raise _Unreadable("no_certificate", "it holds no certificate in PEM, DER or PKCS#12")


def _from_pem(data: bytes) -> tuple[bytes, ...]:
    blocks = _PEM.findall(data)
    if len(blocks) > MAX_CERTIFICATES:
        raise _Unreadable("too_many", f"it holds {len(blocks)} certificates; up to {MAX_CERTIFICATES} are looked at")
    try:
        found = tuple(_one_der(base64.b64decode(b"".join(_body(text).split()), validate=True)) for _kind, text in blocks)
    except binascii.Error:
        raise _Unreadable("damaged", "a certificate in it is damaged: its base64 cannot be read") from None
    if found:
        return found
    if b"-----BEGIN CERTIFICATE" in data or b"-----BEGIN X509 CERTIFICATE" in data:
        raise _Unreadable("damaged", "it is cut short: a certificate begins in it and does not end")
    raise _Unreadable("no_certificate", "it holds no certificate")


def _body(text: bytes) -> bytes:
    """Return a PEM block without the headers it may begin with."""
    return text.rsplit(b"\n\n", 1)[-1] if b": " in text else text


def _one_der(data: bytes) -> bytes:
    """Return the one DER value at the beginning of *data*; OpenSSL's trusted certificates have more after it. Raises _Unreadable for none."""
    length, head = data[1] if len(data) > 1 else 0, 2
    if length & 0x80:
        head += length & 0x7F
        length = int.from_bytes(data[2:head], "big")
    if data[:1] != b"\x30" or head > 6 or length < 16 or len(data) < head + length:
        raise _Unreadable("damaged", "a certificate in it is damaged or cut short")
    return data[:head + length]


def _from_pkcs12(data: bytes, passphrase: str) -> tuple[tuple[bytes, ...], str]:
    if not HAS_CRYPTOGRAPHY:
        raise _Unreadable("missing_library", "it is PKCS#12, which needs the Python library cryptography where the file lies")
    try:
        key, own, others = pkcs12.load_key_and_certificates(data, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Files of other programs without a passphrase have an empty one.
        try:
            key, own, others = pkcs12.load_key_and_certificates(data, passphrase.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            hint = "the passphrase is wrong" if passphrase else "it needs a passphrase"
            raise _Unreadable("wrong_passphrase", f"the PKCS#12 file cannot be opened: {hint}, or it is damaged") from None
    certificates = [item for item in (own, *others) if item is not None]
    if not certificates:
        raise _Unreadable("no_certificate", "the PKCS#12 file holds no certificate")
    chain = tuple(item.public_bytes(serialization.Encoding.DER) for item in certificates)
    if key is None or own is None:
        return chain, ""
    return chain, "match" if _spki(key.public_key()) == _spki(own.public_key()) else "mismatch"


def _key_state(path: str, data: bytes, kind: str, chain: tuple[bytes, ...], source: FileSource) -> tuple[str, str]:
    key_path = os.path.expanduser(source.key_path)
    try:
        key = data if os.path.abspath(key_path) == os.path.abspath(path) else _bytes(key_path)
    except _Unreadable as error:
        return ("missing" if error.reason == "missing" else "unreadable"), f"the key {source.key_path}: {error.msg}"
    if HAS_CRYPTOGRAPHY:
        return _by_cryptography(key, chain[0], source)
    if kind != "pem" or b"-----BEGIN" not in key:
        return "unknown", "only keys and certificates in PEM can be compared without the Python library cryptography"
    return _by_ssl(path, key_path, key, source)


def _by_cryptography(data: bytes, der: bytes, source: FileSource) -> tuple[str, str]:
    found = _KEY.search(data)
    passphrase = source.passphrase.encode() if source.passphrase else None
    load: t.Any = serialization.load_pem_private_key if found else serialization.load_der_private_key
    text = found.group(0) if found else data
    try:
        try:
            key = load(text, password=passphrase)
        except TypeError:
            if passphrase is None:
                return "encrypted", f"the key {source.key_path} is encrypted: give its passphrase"
            key = load(text, password=None)  # the key needs none after all
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "unreadable", f"the key {source.key_path} cannot be read: it is damaged, no private key, or its passphrase is another"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd certificates are somebody else's verdict
            same = _spki(key.public_key()) == _spki(load_der_x509_certificate(der).public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "unknown", "the certificate's own key cannot be read"
    return _compared(same, source)


def _by_ssl(path: str, key_path: str, key: bytes, source: FileSource) -> tuple[str, str]:
    """Compare by the standard library, which loads a pair only when it fits."""
    asked: list[int] = []

    def passphrase() -> str:
        asked.append(1)
        return source.passphrase

    if _KEY.search(key) is None:
        return "unreadable", f"the key {source.key_path} cannot be read: it is damaged or no private key"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # a weak key is somebody else's verdict
        context.load_cert_chain(path, key_path, password=passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH" or error.reason == "KEY_TYPE_MISMATCH":
            return _compared(False, source)
        if asked and not source.passphrase:
            return "encrypted", f"the key {source.key_path} is encrypted: give its passphrase"
        return "unreadable", f"the key {source.key_path} cannot be read: it is damaged, or its passphrase is another"
    except (OSError, ValueError):
        return "unreadable", f"the key {source.key_path} cannot be read"
    return _compared(True, source)


def _compared(same: bool, source: FileSource) -> tuple[str, str]:
    return ("match", "") if same else ("mismatch", f"the key {source.key_path} belongs to another certificate")


def _spki(key: t.Any) -> bytes:
    return t.cast(bytes, key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
