# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a CA on the controller has issued and taken back, in the files that ``openssl ca`` and ``openssl ocsp`` read (private to muster.agents).

``index.txt`` has one line for each certificate: status, expiry, revocation time, serial, file, subject, with tabs between. ``certs/SERIAL.pem`` is the
certificate, ``crl.pem`` the list of those taken back, ``crlnumber`` the number of the next one.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import typing as t
from dataclasses import dataclass, replace

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file
from ansible_collections.muster.agents.plugins.module_utils._certificates import (
    CertificateError,
    certificate_pem,
    load_certificates,
    public_bytes,
    serial_text,
    validity,
)
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput

if t.TYPE_CHECKING:
    from cryptography import x509

__all__ = ["CaIndex", "HeldIndex"]

_COLUMNS = 6


@dataclass(frozen=True)
class _Line:
    status: str
    expires: str
    revoked: str
    serial: str
    file: str
    subject: str

    def text(self) -> str:
        return "\t".join((self.status, self.expires, self.revoked, self.serial, self.file, self.subject)) + "\n"


class CaIndex:
    """The directory of one CA; the forks of a controller take turns."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def require_writable(self) -> None:
        """Make the directory where it is missing. Raises InvalidInput when nothing can be written there."""
        try:
            os.makedirs(os.path.join(self.directory, "certs"), mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise InvalidInput(f"own_ca.directory {self.directory!r} cannot be written by the user who runs ansible-playbook.")

    @contextlib.contextmanager
    def held(self) -> t.Iterator[HeldIndex]:
        """Yield the index while nobody else has it. Raises InvalidInput when it cannot be read or written."""
        try:
            with open(os.open(os.path.join(self.directory, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield HeldIndex(self.directory)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> InvalidInput:
        return InvalidInput(f"own_ca.directory {self.directory!r} cannot be used on the controller ({error.strerror}): give one that can be written.")


class HeldIndex:
    """The index while it is held. Every change but a revocation is on disk when its method returns."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lines = [line for text in self._text("index.txt").splitlines() for line in [_parsed(text)] if line is not None]

    def knows(self, serial: int) -> bool:
        """Say whether *serial* is listed."""
        return any(line.serial == serial_text(serial) for line in self._lines)

    def is_revoked(self, serial: int) -> bool:
        """Say whether *serial* was taken back."""
        return any(line.serial == serial_text(serial) and line.status == "R" for line in self._lines)

    def revoked(self) -> list[tuple[int, datetime.datetime]]:
        """Return serial and time of all that were taken back."""
        return [(int(line.serial, 16), _moment(line.revoked.partition(",")[0])) for line in self._lines if line.status == "R"]

    def unrevoked_for(self, public_key: bytes) -> x509.Certificate | None:
        """Return the newest certificate for a public key (DER) that was neither taken back nor has expired."""
        now = datetime.datetime.now(datetime.timezone.utc)
        for line in reversed(self._lines):
            if line.status == "V" and _moment(line.expires) > now:
                with contextlib.suppress(OSError, CertificateError), open(self._certificate_file(line.serial), "rb") as stream:
                    certificate = load_certificates(stream.read())[0]
                    if public_bytes(certificate.public_key()) == public_key:
                        return certificate
        return None

    def add(self, certificate: x509.Certificate) -> None:
        """Write *certificate* down."""
        serial = serial_text(certificate.serial_number)
        replace_file(self._certificate_file(serial), certificate_pem(certificate))
        subject = "".join(f"/{item.rfc4514_string()}" for item in certificate.subject.rdns).replace("\t", " ").replace("\n", " ")
        expires = datetime.datetime.fromtimestamp(validity(certificate)[1], datetime.timezone.utc)
        self._lines.append(_Line("V", _stamp(expires), "", serial, "unknown", subject))
        self.save()

    def revoke(self, serial: int) -> bool:
        """Mark *serial* as taken back, until :meth:`save` in memory only. Returns whether it was good before."""
        now = _stamp(datetime.datetime.now(datetime.timezone.utc))
        lines = [replace(line, status="R", revoked=now) if line.serial == serial_text(serial) and line.status != "R" else line for line in self._lines]
        if lines == self._lines:
            return False
        self._lines = lines
        return True

    def save(self) -> None:
        """Write the index."""
        replace_file(os.path.join(self._directory, "index.txt"), "".join(line.text() for line in self._lines).encode())

    def next_crl_number(self) -> int:
        """Return the number for the next CRL, and keep that it is taken."""
        text = self._text("crlnumber").strip()
        number = int(text, 16) if text else 1
        replace_file(os.path.join(self._directory, "crlnumber"), f"{serial_text(number + 1)}\n".encode())
        return number

    def write_crl(self, crl: bytes) -> None:
        """Replace the CRL; everybody may read it."""
        replace_file(os.path.join(self._directory, "crl.pem"), crl, mode=0o644)

    def _certificate_file(self, serial: str) -> str:
        return os.path.join(self._directory, "certs", f"{serial}.pem")

    def _text(self, name: str) -> str:
        try:
            with open(os.path.join(self._directory, name), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""


def _parsed(text: str) -> _Line | None:
    columns = text.split("\t")
    return _Line(*columns) if len(columns) == _COLUMNS else None


def _stamp(moment: datetime.datetime) -> str:
    """Return *moment* as ASN.1 UTCTime, or GeneralizedTime from 2050 on, as openssl writes it."""
    return moment.strftime("%y%m%d%H%M%SZ" if moment.year < 2050 else "%Y%m%d%H%M%SZ")


def _moment(text: str) -> datetime.datetime:
    century = "" if len(text) > len("yymmddhhmmssZ") else "20" if text[:2] < "50" else "19"
    return datetime.datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
