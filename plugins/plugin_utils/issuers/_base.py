# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The contract of a signer: one file beside this one is one signer (private to muster.agents)."""

from __future__ import annotations

import typing as t
from abc import ABC, abstractmethod
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._certificates import CertificateError, Request, load_certificates
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput

if t.TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Chain", "Issuer", "Signed", "SigningOrder", "certificates_in", "own_signed"]


@dataclass(frozen=True)
class Chain:
    """The signer's certificates. anchors: one of them must have issued what it signs, directly or through intermediates that come with the answer.

    intermediates: those that clients show with their own certificate. bundle: what goes to the file with the CA.
    """

    anchors: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...]
    bundle: tuple[x509.Certificate, ...]

    @classmethod
    def of(cls, path: t.Sequence[x509.Certificate]) -> Chain:
        """Return the chain of a CA whose certificates are *path*: the one that signs first, the root last."""
        return cls(tuple(path[:1]), tuple(item for item in path if not own_signed(item)), tuple(path))


@dataclass(frozen=True)
class SigningOrder:
    """What is to be signed. csr: the signing request as PEM. valid_days: how long it shall be good. name: whom it is for, in the signer's own records."""

    csr: bytes
    request: Request
    valid_days: int
    name: str


@dataclass(frozen=True)
class Signed:
    """A signer's answer: the certificate, and intermediate ones that came along."""

    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...] = ()


class Issuer(ABC):
    """One signer. Making the object checks its options; :meth:`open` is the first thing that reads a CA or asks a server.

    exact: it follows a request to the letter. can_revoke: it can take a certificate back.
    """

    key: t.ClassVar[str]
    exact: t.ClassVar[bool] = False
    can_revoke: bool = False

    @abstractmethod
    def open(self) -> Chain:
        """Check that it could sign now, and return its certificates. Changes nothing. Raises AgentsError."""

    @abstractmethod
    def sign(self, order: SigningOrder) -> Signed:
        """Have a certificate made. Raises AgentsError, Ambiguous among them when it may have been made and the answer was lost."""

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Say whether it has taken *certificate* back; one it knows nothing of counts as good. Raises AgentsError."""
        return False

    def revoke(self, serial: int, certificate: x509.Certificate | None) -> bool:
        """Take back the certificate with *serial*; *certificate* itself where it is at hand. Returns whether it was good before. Raises AgentsError."""
        raise InvalidInput(f"The signer {self.key} has no way to revoke a certificate: use state: absent, and let it expire.", reason="cannot_revoke")

    def close(self) -> None:
        """Let go of connections, where there are any."""
        return


def own_signed(certificate: x509.Certificate) -> bool:
    """Say whether *certificate* names itself as its issuer, as a root does."""
    return bool(certificate.issuer == certificate.subject)


def certificates_in(path: str, option: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates in the PEM file *path* on the controller. Raises InvalidInput that names *option*."""
    try:
        with open(path, "rb") as stream:
            return load_certificates(stream.read(4 * 1024 * 1024))
    except OSError as error:
        raise InvalidInput(f"{option} {path!r} cannot be read on the controller ({error.strerror}).") from None
    except CertificateError as error:
        raise InvalidInput(f"{option} {path!r} is of no use: {error.msg}.") from None
