# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client certificates of every good and bad kind, for tests of agents whose key is born on the host."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from .ca import CertificateAuthority, write_private

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)

__all__ = ["CLIENT", "SERVER", "Issuer", "Pair", "issue"]


@dataclass(frozen=True)
class Pair:
    """A certificate (PEM), its private key (PEM, PKCS 8) and the certificate as an object."""

    cert: str
    key: str
    certificate: x509.Certificate

    def write(self, directory: Path, name: str = "agent") -> tuple[Path, Path]:
        """Write ``NAME.crt`` and ``NAME.key`` (0600) into a directory, which is created. Returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        cert.write_text(self.cert)
        write_private(key, self.key)
        return cert, key


@dataclass(frozen=True)
class Issuer:
    """A CA that signs: its certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, ca: CertificateAuthority) -> Issuer:
        """The CA of a test world."""
        key = serialization.load_pem_private_key((ca.directory / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the CA's key is not an EC key")
        return cls(x509.load_pem_x509_certificate(ca.ca_file.read_bytes()), key)

    @classmethod
    def from_pair(cls, pair: Pair) -> Issuer:
        """A CA made by ``issue(..., authority=True)``."""
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the pair's key is not an EC key")
        return cls(pair.certificate, key)


def issue(
    common_name: str,
    issuer: Issuer | None = None,
    *,
    begins: float = -86400.0,
    ends: float = 365 * 86400.0,
    usages: Sequence[ObjectIdentifier] | None = CLIENT,
    signs: bool = True,
    authority: bool = False,
    names: Sequence[str] = (),
    serial: int | None = None,
) -> Pair:
    """Make a key and a certificate for it.

    Without an issuer it signs itself. ``begins`` and ``ends`` are seconds from now. ``usages``: extended key usage, None for no such extension.
    ``signs``: key usage digitalSignature, else the guide's keyEncipherment and dataEncipherment. ``authority``: a CA. ``names``: DNS names.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "KubeAtlas"),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    above = issuer.certificate.public_key() if issuer is not None else key.public_key()
    if not isinstance(above, ec.EllipticCurvePublicKey):
        raise TypeError("the issuer's key is not an EC key")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=begins))
        .not_valid_after(now + datetime.timedelta(seconds=ends))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(signs, False, not signs, not signs, False, authority, authority, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
    )
    if usages is not None and not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    certificate = builder.sign(issuer.key if issuer is not None else key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return Pair(pem, private, certificate)
