# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CAs and certificates as tests want them, also such as nobody should issue, and servers that show them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sockets import Listener

from ansible_collections.muster.agents.plugins.action import cert_check
from ansible_collections.muster.agents.plugins.plugin_utils._certificate_check import check, spelled_out

__all__ = ["NOW", "Authority", "Certified", "TlsServer", "checked", "key_usage", "name", "new_key", "openssl", "openssl_accepts", "pem", "resigned", "sha1"]

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
_RSA: dict[int, Any] = {}


def openssl(*arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run openssl."""
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=check)


def new_key(kind: str = "ec") -> Any:
    """A private key: ec, p384, ed25519 or rsa with its bits; RSA keys are made once."""
    if kind.startswith("rsa"):
        bits = int(kind[3:])
        if bits not in _RSA:
            _RSA[bits] = rsa.generate_private_key(65537, bits)
        return _RSA[bits]
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP256R1())


def name(common: str, **parts: str) -> x509.Name:
    """A distinguished name of CN and, as o, ou, c, further parts."""
    kinds = {"c": NameOID.COUNTRY_NAME, "o": NameOID.ORGANIZATION_NAME, "ou": NameOID.ORGANIZATIONAL_UNIT_NAME}
    attributes = [x509.NameAttribute(kinds[short], value) for short, value in parts.items()]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def key_usage(**wanted: bool) -> x509.KeyUsage:
    """The extension with some usages."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
             "encipher_only", "decipher_only")
    return x509.KeyUsage(**{one: wanted.get(one, False) for one in names})


@dataclass(frozen=True)
class Certified:
    """A certificate (DER) with its key and the CAs' certificates that come with it."""

    der: bytes
    key: Any
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        """Itself and its chain in PEM."""
        return ssl.DER_cert_to_PEM_cert(self.der).encode() + pem(*self.chain)

    def write(self, directory: Path, label: str, *, password: bytes = b"") -> tuple[Path, Path]:
        """Write chain and key; return their paths."""
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        certificate, key = directory / f"{label}.crt", directory / f"{label}.key"
        certificate.write_bytes(self.pem)
        key.write_bytes(self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
        return certificate, key


class Authority:
    """A CA. Everything about its own certificate can be wrong."""

    def __init__(
        self, common: str, parent: Authority | None = None, *, days: tuple[float, float] = (-400, 3650), ca: bool | None = True,
        path_length: int | None = None, usage: x509.KeyUsage | None = None, key: str = "ec", extensions: Sequence[tuple[Any, bool]] = (),
    ) -> None:
        self.parent = parent
        self.key = new_key(key)
        own = [(usage or key_usage(key_cert_sign=True, crl_sign=True), True), *extensions]
        if ca is not None:
            own.append((x509.BasicConstraints(ca, path_length if ca else None), True))
        issuer = parent or self
        self.certificate = _signed(
            name(common, o="Example", c="NL"), self.key.public_key(), issuer.key, issuer.certificate.subject if parent else name(common, o="Example", c="NL"),
            days, own, hashes.SHA256)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates of this CA and those above it, without the root's."""
        return (self.certificate, *self.parent.chain) if self.parent else ()

    def issue(
        self, common: str = "www.example.test", names: Iterable[str] | None = None, *, days: tuple[float, float] = (-1, 90), key: str = "ec",
        usage: Any = ExtendedKeyUsageOID.SERVER_AUTH, extensions: Sequence[tuple[Any, bool]] = (), pss: bool = False, subject: x509.Name | None = None,
    ) -> Certified:
        """Issue a certificate. *names*: DNS names and IP addresses, the common name when None."""
        own: list[tuple[Any, bool]] = [(x509.BasicConstraints(False, None), True), *extensions]
        if usage is not None:
            own.append((x509.ExtendedKeyUsage([usage]), False))
        alternative = [_general(one) for one in ([common] if names is None else names)]
        if alternative:
            own.append((x509.SubjectAlternativeName(alternative), False))
        private = new_key(key)
        made = _signed(subject or name(common), private.public_key(), self.key, self.certificate.subject, days, own, hashes.SHA256, pss=pss)
        return Certified(made.public_bytes(serialization.Encoding.DER), private, self.chain)


def _general(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    return x509.UniformResourceIdentifier(text) if "://" in text else x509.DNSName(text)


def _signed(
    subject: x509.Name, public: Any, signer: Any, issuer: x509.Name, days: tuple[float, float], extensions: Iterable[tuple[Any, bool]], digest: Any,
    *, pss: bool = False,
) -> x509.Certificate:
    begin, end = (NOW + datetime.timedelta(seconds=round(day * 86400)) for day in days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(end)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    scheme = padding.PSS(padding.MGF1(digest()), digest.digest_size) if pss else None
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else digest()
    return builder.sign(signer, algorithm, rsa_padding=scheme)


def resigned(made: Certified, change: Callable[[bytes], bytes], signer: Any, digest: Any = hashes.SHA256) -> Certified:
    """*made* with other bytes (of the same number) in what is signed, and a good signature of *signer* on them."""
    before = x509.load_der_x509_certificate(made.der).tbs_certificate_bytes
    after = change(before)
    assert after != before
    assert len(after) == len(before)
    start = made.der.index(before) + len(before)
    algorithm = change(made.der[start:start + 2 + made.der[start + 1]])
    how = (padding.PKCS1v15(), digest()) if isinstance(signer, rsa.RSAPrivateKey) else (ec.ECDSA(digest()),)
    signature = b"\0" + signer.sign(after, *how)
    body = after + algorithm + b"\x03" + _length(len(signature)) + signature
    return Certified(b"\x30" + _length(len(body)) + body, made.key, made.chain)


def sha1(made: Certified, signer: Any) -> Certified:
    """*made* signed anew by an RSA key with SHA-1, which no library of today offers to do."""
    return resigned(made, lambda data: data.replace(bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")), signer, hashes.SHA1)


def _length(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(data)]) + data


@dataclass
class TlsServer(Listener):
    """Shows a certificate to whoever connects. preface speaks before TLS begins."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    preface: Callable[[socket.socket], bool] | None = None
    address: str = "127.0.0.1"
    wanted_port: int = 0
    context: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_ciphers("ALL:@SECLEVEL=0")
        self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        self.context.maximum_version = self.newest
        self.context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(self.client_ca)
        self._socket = socket.create_server((self.address, self.wanted_port))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """Shake hands and wait for the end."""
        if self.preface is not None and not self.preface(connection):
            return
        with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as secured:
            while secured.recv(4096):
                continue


def checked(**options: Any) -> dict[str, Any]:
    """Run the check from the controller with these options, as the action plugin does."""
    validation = ArgumentSpecValidator(cert_check.ARGUMENT_SPEC).validate(spelled_out(options))
    assert not validation.error_messages, validation.error_messages
    return check(cast(Any, None), validation.validated_parameters, {}, check_mode=False)


def openssl_accepts(directory: Path, made: Certified, roots: Path, host: str, *, purpose: str = "sslserver") -> bool:
    """What openssl says of a chain, its dates and its host."""
    leaf, between = directory / "openssl-leaf.pem", directory / "openssl-between.pem"
    leaf.write_bytes(ssl.DER_cert_to_PEM_cert(made.der).encode())
    between.write_bytes(pem(*made.chain))
    untrusted = ["-untrusted", str(between)] if made.chain else []
    kind = "-verify_ip" if host.replace(".", "").isdigit() else "-verify_hostname"
    done = openssl("verify", "-partial_chain", "-CAfile", str(roots), *untrusted, "-purpose", purpose, kind, host, str(leaf), check=False)
    return done.returncode == 0
