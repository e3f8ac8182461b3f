# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A client certificate as a control plane will look at it, checked before anything is spent on it (private to muster.agents)."""

from __future__ import annotations

import hashlib
import re
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._certificates import (
    CertificateError,
    describe,
    fingerprint_of,
    is_issued_by,
    load_certificates,
    validity,
)
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput

__all__ = ["ClientCertificate", "read_certificate", "usable_certificate"]

_FIRST_BLOCK = re.compile(r"-----BEGIN ([^-]+)-----.*?-----END \1-----", re.DOTALL)
_UNIQUE_SERIAL_BITS = 64  # RFC 5280 CAs draw at least so many at random; small counted serials repeat from CA to CA


@dataclass(frozen=True)
class ClientCertificate:
    """What tells a certificate from others, and from when to when it is good (seconds since the epoch).

    fingerprints: SHA-256 in lower-case hexadecimal of the file's trimmed text, of its first block's text, and of the certificate (DER): servers
    differ in which of them they keep. signs: whether its key usage allows signatures, which a TLS handshake needs.
    """

    fingerprints: frozenset[str]
    serial: int
    not_before: float
    not_after: float
    signs: bool = True

    @property
    def end(self) -> str:
        """When it ends, for people."""
        return _utc(self.not_after)

    def expired(self, clock_skew: float = 0.0) -> bool:
        """Say whether it is over by the server's clock, which is *clock_skew* seconds ahead of ours."""
        return time.time() + clock_skew >= self.not_after

    def is_known_as(self, fingerprint: str, serial: str) -> bool:
        """Say whether a record with this *fingerprint* (any case, colons allowed) and decimal *serial* is of this certificate."""
        if fingerprint.replace(":", "").lower() in self.fingerprints:
            return True
        return self.serial.bit_length() >= _UNIQUE_SERIAL_BITS and serial == str(self.serial)


def read_certificate(pem: str) -> ClientCertificate:
    """Return what *pem* says of itself. Raises InvalidInput(certificate_unreadable) when its first block is no certificate."""
    first = _FIRST_BLOCK.search(pem)
    if first is None or first.group(1) != "CERTIFICATE":
        what = f"begins with a {first.group(1)}" if first is not None else "holds no PEM block"
        raise InvalidInput(f"The certificate {what}: its file must begin with the agent's own certificate in PEM.", reason="certificate_unreadable")
    try:
        leaf = load_certificates(pem.encode())[0]
    except CertificateError as error:
        raise InvalidInput(f"The certificate cannot be used: {error.msg}. Issue it again.", reason="certificate_unreadable") from None
    usages = describe(leaf)["key_usage"]
    start, end = validity(leaf)
    texts = {hashlib.sha256(text.strip().encode()).hexdigest() for text in (pem, first.group(0))}
    return ClientCertificate(frozenset({*texts, fingerprint_of(leaf)}), leaf.serial_number, start, end, not usages or "digitalSignature" in usages)


def usable_certificate(pem: str, where: str, clock_skew: float = 0.0) -> ClientCertificate:
    """Return *pem* as read_certificate does, once nothing is wrong with it that any server or TLS library would refuse.

    *where* is its path, for messages; *clock_skew* is server minus controller in seconds. Raises InvalidInput with a reason of its own for each fault.
    """
    name = f"The certificate at {where or 'certificate_path'}"
    if "PRIVATE KEY-----" in pem:
        raise InvalidInput(f"{name} has a private key in its file, which would be sent along: keep the key in a file of its own.", reason="key_in_certificate")
    if "\r" in pem:
        raise InvalidInput(f"{name} has CRLF line endings, which change the fingerprint that servers keep: write it with LF.",
                           reason="certificate_line_endings")
    found = read_certificate(pem)
    if found.expired(clock_skew):
        raise InvalidInput(f"{name} expired at {found.end}: issue a new one.", reason="certificate_expired")
    if time.time() + clock_skew < found.not_before:
        raise InvalidInput(f"{name} is valid from {_utc(found.not_before)} only: check the CA's clock, or wait.", reason="certificate_not_yet_valid")
    certificates = load_certificates(pem.encode())
    usages = describe(certificates[0])["extended_key_usage"]
    if usages and not {"clientAuth", "anyExtendedKeyUsage"}.intersection(usages):
        raise InvalidInput(
            f"{name} is for {', '.join(usages)}, not for clients: issue it with the extended key usage clientAuth.", reason="certificate_not_client")
    _check_chain(certificates, name)
    return found


def _check_chain(certificates: t.Sequence[t.Any], name: str) -> None:
    """Raise InvalidInput when the file goes on with something other than the issuers of what stands before."""
    for below, above in zip(certificates, certificates[1:]):
        if not is_issued_by(below, above):
            words = describe(below)["issuer"]
            raise InvalidInput(
                f"{name} has a broken chain: the certificate that follows is not that of the issuer {words!r}. Put the agent's own first, then its issuers "
                "in order.", reason="chain_broken")


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
