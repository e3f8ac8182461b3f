# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A CA whose certificate and key lie on the controller; both stay there (private to muster.agents). Profile: RFC 5280."""

from __future__ import annotations

import datetime
import time
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._certificates import (
    extended_key_usage,
    general_names,
    is_issued_by,
    key_usage,
    load_request,
    public_bytes,
    request_differs,
    serial_text,
    subject_name,
    validity,
)
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._options import secret_option
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, Issuer, Signed, SigningOrder, certificates_in
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._ca_index import CaIndex

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
except ImportError:
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True

__all__ = ["OwnCa"]

_BACKDATED = datetime.timedelta(seconds=60)  # for hosts and servers whose clock is a little behind
_SMALLEST_RSA = 2048
_SAME_ATTEMPT = 86400.0  # seconds for which a certificate that was made and never arrived is handed out again


class OwnCa(Issuer):
    """Signs on the controller. With a directory it keeps an index and a CRL there, in openssl's own formats."""

    key = "own_ca"
    exact = True

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        """*options*: certificate, key, passphrase or passphrase_file, directory, crl_days, crl_url. Raises InvalidInput; files are read by open()."""
        self._certificate_file = str(options["certificate"])
        self._key_file = str(options["key"])
        self._passphrase = secret_option(options, "passphrase", prefix="own_ca.")
        self._index = CaIndex(str(options["directory"])) if options.get("directory") else None
        self._crl_days = int(options.get("crl_days") or 30)
        self._crl_url = str(options.get("crl_url") or "")
        self.can_revoke = self._index is not None  # only what is written down can be taken back
        self._chain: tuple[x509.Certificate, ...] = ()
        self._key: t.Any = None

    def open(self) -> Chain:
        """Load certificate and key, and refuse a CA that could not issue what anybody would accept. Raises InvalidInput."""
        self._chain = certificates_in(self._certificate_file, "own_ca.certificate")
        self._key = self._load_key()
        _require_chain(self._chain, time.time())
        if public_bytes(self._key.public_key()) != public_bytes(self._chain[0].public_key()):
            raise InvalidInput("own_ca.key does not belong to the first certificate in own_ca.certificate: give the pair of one CA.", reason="ca_mismatch")
        if self._index is not None:
            self._index.require_writable()
        return Chain.of(self._chain)

    def sign(self, order: SigningOrder) -> Signed:
        """Return a certificate for the request's key, the one that an interrupted run made already where there is such a one."""
        csr = load_request(order.csr)
        if self._index is None:
            return Signed(self._made(csr, order))
        with self._index.held() as index:
            known = index.unrevoked_for(public_bytes(csr.public_key()))
            if known is not None and self._is_answer(known, order):
                return Signed(known)
            certificate = self._made(csr, order)
            index.add(certificate)
            return Signed(certificate)

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Look it up in the index."""
        if self._index is None:
            return False
        with self._index.held() as index:
            return index.is_revoked(certificate.serial_number)

    def revoke(self, serial: int, certificate: x509.Certificate | None) -> bool:
        """Mark it in the index and write a new CRL. Raises InvalidInput without an index, or for a serial that is not in it."""
        if self._index is None:
            raise InvalidInput(
                "own_ca.directory is not set, so nobody knows what was issued and no CRL is kept: name the directory that holds the CA's index.",
                reason="cannot_revoke")
        with self._index.held() as index:
            if not index.knows(serial):
                if certificate is None:
                    raise InvalidInput(f"{self._index.directory} lists no certificate with serial {serial_text(serial)}.", reason="unknown_serial")
                index.add(certificate)
            if not index.revoke(serial):
                return False
            # The CRL first: it is what others go by, and an index that lags behind has it written once more.
            index.write_crl(self._crl(index.revoked(), index.next_crl_number()))
            index.save()
            return True

    def _is_answer(self, known: x509.Certificate, order: SigningOrder) -> bool:
        """Say whether *known*, made for the same key before, is what would be made now: then its answer was lost on the way to the host."""
        fresh = time.time() - validity(known)[0] < _SAME_ATTEMPT
        return fresh and is_issued_by(known, self._chain[0]) and request_differs(known, order.request) is None

    def _made(self, csr: x509.CertificateSigningRequest, order: SigningOrder) -> x509.Certificate:
        """Sign what the *order* says; of the request itself only the key is taken."""
        ca, request = self._chain[0], order.request
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        ca_start, ca_end = (datetime.datetime.fromtimestamp(moment, datetime.timezone.utc) for moment in validity(ca))
        public_key = csr.public_key()
        usages = request.key_usage or (("digitalSignature", "keyEncipherment") if isinstance(public_key, rsa.RSAPublicKey) else ("digitalSignature",))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject_name(request.subject))
            .issuer_name(ca.subject)
            .public_key(t.cast(t.Any, public_key))
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACKDATED, ca_start))
            .not_valid_after(min(now + datetime.timedelta(days=order.valid_days), ca_end))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(usages), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(t.cast(t.Any, public_key)), critical=False)
            .add_extension(_authority(ca), critical=False)
        )
        if request.extended_key_usage:
            builder = builder.add_extension(extended_key_usage(request.extended_key_usage), critical=False)
        if request.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(general_names(request.names)), critical=False)
        if self._crl_url:
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(self._crl_url)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        return builder.sign(self._key, _digest(self._key))

    def _crl(self, revoked: t.Iterable[tuple[int, datetime.datetime]], number: int) -> bytes:
        ca = self._chain[0]
        if not _may(ca, "crl_sign"):
            raise InvalidInput(
                "The certificate of own_ca may not sign CRLs (its key usage has no cRLSign), so nothing was revoked: renew the CA's certificate with cRLSign, "
                "then run again.", reason="ca_without_crl_sign")
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder().issuer_name(ca.subject).last_update(now - _BACKDATED)
            .next_update(now + datetime.timedelta(days=self._crl_days))
            .add_extension(x509.CRLNumber(number), critical=False).add_extension(_authority(ca), critical=False))
        for serial, when in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, _digest(self._key)).public_bytes(serialization.Encoding.PEM)

    def _load_key(self) -> t.Any:
        try:
            with open(self._key_file, "rb") as stream:
                data = stream.read(1024 * 1024)
        except OSError as error:
            raise InvalidInput(f"own_ca.key {self._key_file!r} cannot be read on the controller ({error.strerror}).") from None
        password = self._passphrase.reveal().encode() if self._passphrase is not None else None
        try:
            key = serialization.load_pem_private_key(data, password=password)
        except TypeError:
            word = "is encrypted: give own_ca.passphrase or own_ca.passphrase_file" if password is None else "is not encrypted: leave the passphrase out"
            raise InvalidInput(f"own_ca.key {self._key_file!r} {word}.", reason="ca_passphrase") from None
        except (ValueError, UnsupportedAlgorithm):
            word = "be read as a PEM private key" if password is None else "be opened: the passphrase is wrong, or the file is no PEM private key"
            raise InvalidInput(f"own_ca.key {self._key_file!r} cannot {word}.", reason="ca_passphrase" if password else None) from None
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
            raise InvalidInput(f"own_ca.key {self._key_file!r} is of a kind that certificates are not signed with any more: use RSA, EC or Ed25519.")
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _SMALLEST_RSA:
            raise InvalidInput(f"own_ca.key {self._key_file!r} has {key.key_size} bits: a CA needs at least {_SMALLEST_RSA}.", reason="ca_weak")
        return key


def _require_chain(chain: t.Sequence[x509.Certificate], now: float) -> None:
    """Raise InvalidInput unless every certificate of *chain* is a CA that is valid now, may sign certificates, and has room for those below it."""
    for depth, certificate in enumerate(chain):
        who = f"own_ca.certificate: {certificate.subject.rfc4514_string()!r}"
        start, end = validity(certificate)
        if now >= end:
            raise InvalidInput(f"{who} has expired: renew the CA before it issues anything.", reason="ca_expired")
        if now < start:
            raise InvalidInput(f"{who} is not valid yet: check the controller's clock.", reason="ca_not_yet_valid")
        limits = _constraints(certificate)
        if limits is None or not limits.ca:
            raise InvalidInput(f"{who} is no CA (basicConstraints CA:TRUE is missing): nobody would accept what it issues.", reason="not_a_ca")
        if not _may(certificate, "key_cert_sign"):
            raise InvalidInput(f"{who} may not sign certificates (its key usage has no keyCertSign).", reason="ca_without_cert_sign")
        # Its path length counts the CAs below it; the certificate of an agent is none.
        below = sum(1 for item in chain[:depth] if item.issuer != item.subject)
        if limits.path_length is not None and limits.path_length < below:
            raise InvalidInput(
                f"{who} allows {limits.path_length} CAs below it and has {below} in this file (pathlen): nobody would accept the chain.", reason="ca_pathlen")
        if depth and not is_issued_by(chain[depth - 1], certificate):
            raise InvalidInput(
                f"{who} did not issue the certificate before it: put the CA that signs first, then each one's issuer.", reason="ca_chain")


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _may(certificate: x509.Certificate, usage: str) -> bool:
    try:
        return bool(getattr(certificate.extensions.get_extension_for_class(x509.KeyUsage).value, usage))
    except x509.ExtensionNotFound:
        return True


def _authority(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(t.cast(t.Any, ca.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _digest(key: t.Any) -> t.Any:
    """Return the hash to sign with: none for EdDSA, as strong as the curve for large EC keys."""
    if isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
        return None
    large = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if large else hashes.SHA256()
