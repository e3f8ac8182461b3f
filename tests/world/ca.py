# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate authority for tests, strict enough for Python 3.13's ``VERIFY_X509_STRICT`` (RFC 5280: AKI, SKI, key usage)."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["SERVER_NAMES", "CertificateAuthority", "KeyPair", "write_private"]

SERVER_NAMES = ("localhost", "127.0.0.1", "::1", "10.231.7.1", "control.muster.test", "vault.muster.test")
"""What a server certificate of the world is valid for: loopback, the gateway the hosts see, and the names the hosts resolve."""

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class KeyPair:
    """Paths of one certificate (PEM) and its private key (PEM, mode 0600)."""

    cert: Path
    key: Path


def write_private(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` with mode 0600 from the first byte on. Returns nothing."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    temporary.replace(path)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


class CertificateAuthority:
    """A CA kept in a directory: ``ca.pem`` and ``ca.key`` (0600). Made on first use, read back afterwards."""

    def __init__(self, directory: Path, common_name: str = "muster.agents test CA") -> None:
        """``directory`` is created when missing. ``common_name`` names a new CA; an existing one keeps its own."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        self.key_file = directory / "ca.key"
        if self.ca_file.exists() and self.key_file.exists():
            self._certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
            key = serialization.load_pem_private_key(self.key_file.read_bytes(), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{self.key_file} is not an EC key: remove {directory} and start again.")
            self._key = key
        else:
            self._key, self._certificate = self._create(common_name)

    def _create(self, common_name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 3650 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self.key_file, _pem_key(key))
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key, certificate

    def server(self, name: str = "server", names: Iterable[str] = SERVER_NAMES, days: int = 825) -> KeyPair:
        """Return the server pair ``<name>.pem``/``<name>.key``, issued for ``names`` (DNS names and addresses) on first use."""
        return self._leaf(name, tuple(names), ExtendedKeyUsageOID.SERVER_AUTH, days)

    def client(self, name: str, days: int = 825) -> KeyPair:
        """Return the client pair whose common name is ``name``, issued on first use."""
        return self._leaf(name, (), ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def _leaf(self, name: str, names: tuple[str, ...], usage: x509.ObjectIdentifier, days: int) -> KeyPair:
        pair = KeyPair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        if pair.cert.exists() and pair.key.exists():
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), name, names, usage, days)
        write_private(pair.key, _pem_key(key))
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return pair

    def _sign(
        self, public_key: ec.EllipticCurvePublicKey, common_name: str, names: tuple[str, ...], usage: x509.ObjectIdentifier, days: int
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer_identifier = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + days * _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False)
        )
        alternatives: x509.SubjectAlternativeName | None = None
        if names:
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())
