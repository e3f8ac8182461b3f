# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a CA took a certificate back: certificate revocation lists and OCSP (private to muster.agents).

Only done when it is asked for: responders fail more often than certificates are revoked, and some CAs have none any more. What cannot be found out is told as
such and never as good or revoked.
"""

from __future__ import annotations

import datetime
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ansible_collections.muster.agents.plugins.module_utils import _certificates as certificates
from ansible_collections.muster.agents.plugins.plugin_utils._check_details import Certificate, details, try_read
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso

try:
    import requests
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
    from cryptography.x509 import ocsp
    from cryptography.x509.oid import ExtendedKeyUsageOID
except ImportError:
    IMPORT_ERROR: str | None = "requests and cryptography"
else:
    IMPORT_ERROR = None

__all__ = ["Question", "Revocation", "Status"]

_MAX_BYTES = 32 * 1024 * 1024  # the largest lists of public CAs
_THREADS = 16
_SKEW = datetime.timedelta(seconds=300)  # an answer may be this much from the future


@dataclass(frozen=True)
class Question:
    """A certificate whose state is asked for, and who issued it. staples: the OCSP answers (DER) that servers sent along with it."""

    certificate: Certificate
    issuer: Certificate
    staples: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Status:
    """What was found: good, revoked, stale (the list or answer is older than it says it may be), unknown or unavailable; *msg* says more."""

    status: str
    msg: str = ""
    url: str = ""
    this_update: str = ""
    next_update: str = ""
    revoked_at: str = ""
    revocation_reason: str = ""

    def as_result(self) -> dict[str, t.Any]:
        """Return plain data for a task result."""
        return dict(self.__dict__)


@dataclass
class Revocation:
    """One run's questions. ways: crl, ocsp or both; lists: further CRLs by path or URL. Each list is fetched once."""

    ways: t.Collection[str]
    lists: t.Sequence[str]
    timeout: float
    now: float
    _fetched: dict[str, bytes | str] = field(default_factory=dict)
    _parsed: dict[str, t.Any] = field(default_factory=dict)

    def ask(self, questions: t.Sequence[Question]) -> list[dict[str, Status]]:
        """Return the answers to *questions* by way, in their order; fetched many at a time."""
        if not self.ways or not questions:
            return [{} for _question in questions]
        places = {place for question in questions for place in self._places(question)} if "crl" in self.ways else set()
        with ThreadPoolExecutor(_THREADS) as pool:
            self._fetched.update(zip(places, pool.map(self._fetch, places)))
            answers = list(pool.map(self._by_ocsp, questions)) if "ocsp" in self.ways else [{}] * len(questions)
        found = []
        for question, answer in zip(questions, answers):
            told = dict(answer)
            if "crl" in self.ways:
                told["crl"] = self._by_crl(question)
            found.append(told)
        return found

    def _places(self, question: Question) -> list[str]:
        return [*self.lists, *details(question.certificate, self.now)["crl_urls"]]

    def _fetch(self, place: str) -> bytes | str:
        """Return the content of a file or URL, or in words why there is none."""
        if "://" not in place:
            try:
                return Path(place).expanduser().read_bytes()
            except OSError as error:
                return f"{place} cannot be read ({error.strerror})"
        return self._http("GET", place)

    def _http(self, method: str, url: str, data: bytes | None = None) -> bytes | str:
        if not url.startswith(("http://", "https://")):
            return f"{url} is of a kind that is not fetched here"
        headers = {"Content-Type": "application/ocsp-request"} if data is not None else {}
        try:
            with requests.request(method, url, data=data, headers=headers, timeout=self.timeout, stream=True) as answer:
                if answer.status_code != 200:
                    return f"{url} answers with status {answer.status_code}"
                body = answer.raw.read(_MAX_BYTES + 1, decode_content=True)
        except (requests.RequestException, OSError, ValueError) as error:
            return f"{url} cannot be fetched ({type(error).__name__})"
        return bytes(body) if len(body) <= _MAX_BYTES else f"{url} is larger than {_MAX_BYTES // 1024 // 1024} MiB"

    # -- lists

    def _by_crl(self, question: Question) -> Status:
        """Return what the lists say: a revocation on any of them counts, then the freshest good one."""
        places = self._places(question)
        if not places:
            return Status("unavailable", "the certificate names no revocation list, and none was given")
        found = [self._on_list(question, place) for place in places]
        ranks = {"revoked": 0, "good": 1, "stale": 2}
        return min(found, key=lambda status: ranks.get(status.status, 3))

    def _on_list(self, question: Question, place: str) -> Status:
        parsed = self._list(place)
        if isinstance(parsed, str):
            return Status("unavailable", parsed, place)
        issuer = question.issuer
        if try_read(partial(_issuer_bytes, parsed), b"") != issuer.subject_der:
            return Status("unavailable", f"{place} is the list of another CA", place)
        if not try_read(lambda: parsed.is_signature_valid(issuer.parsed.public_key()), False):
            return Status("unavailable", f"{place} is not signed by {issuer.subject}", place)
        this, following = _moment(parsed, "last_update"), _moment(parsed, "next_update")
        dates = {"url": place, "this_update": _text(this), "next_update": _text(following)}
        entry = parsed.get_revoked_certificate_by_serial_number(question.certificate.parsed.serial_number)
        if entry is not None:
            why = try_read(lambda: entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value, "unspecified")
            when = _text(_moment(entry, "revocation_date"))
            return Status("revoked", f"it was revoked at {when} ({why})", revoked_at=when, revocation_reason=str(why), **dates)
        if following is not None and following.timestamp() < self.now:
            return Status("stale", f"the list {place} should have been replaced by {_text(following)}", **dates)
        return Status("good", **dates)

    def _list(self, place: str) -> t.Any:
        if place not in self._parsed:
            data = self._fetched[place]
            self._parsed[place] = data if isinstance(data, str) else _parse_list(data, place)
        return self._parsed[place]

    # -- OCSP

    def _by_ocsp(self, question: Question) -> dict[str, Status]:
        """Return what servers staple and what the responder says. A stapled answer will do where the certificate names no responder."""
        ranks = {"revoked": 0, "stale": 1, "unavailable": 2, "unknown": 3}
        stapled = [replace(self._read(staple, question, "the server"), url="") for staple in question.staples]
        told = {"stapled": min(stapled, key=lambda status: ranks.get(status.status, 4))} if stapled else {}
        urls = details(question.certificate, self.now)["ocsp_urls"]
        if urls or not any(status.status in ("good", "revoked") for status in stapled):
            told["ocsp"] = self._by_responder(question, urls)
        return told

    def _by_responder(self, question: Question, urls: t.Sequence[str]) -> Status:
        if not urls:
            return Status("unavailable", "the certificate names no OCSP responder")
        try:
            request = ocsp.OCSPRequestBuilder().add_certificate(question.certificate.parsed, question.issuer.parsed, _certificate_id_hash()).build()
        except ValueError:
            return Status("unavailable", "no OCSP request can be made for this certificate", urls[0])
        data = self._http("POST", urls[0], request.public_bytes(serialization.Encoding.DER))
        return Status("unavailable", data, urls[0]) if isinstance(data, str) else self._read(data, question, urls[0])

    def _read(self, data: bytes, question: Question, url: str) -> Status:
        try:
            return self._judged(ocsp.load_der_ocsp_response(data), question, url)
        except (ValueError, TypeError) as error:
            return Status("unavailable", f"the answer of {url} cannot be read ({type(error).__name__})", url)

    def _judged(self, answer: t.Any, question: Question, url: str) -> Status:
        if answer.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            return Status("unavailable", f"{url} answers {answer.response_status.name.lower()}", url)
        if answer.serial_number != question.certificate.parsed.serial_number:
            return Status("unavailable", f"{url} answers about another certificate", url)
        if not _signed_for(answer, question.issuer):
            return Status("unavailable", f"the answer of {url} is signed by nobody who may", url)
        this, following = _moment(answer, "this_update"), _moment(answer, "next_update")
        dates = {"url": url, "this_update": _text(this), "next_update": _text(following)}
        now = datetime.datetime.fromtimestamp(self.now, datetime.timezone.utc)
        if answer.certificate_status == ocsp.OCSPCertStatus.REVOKED:
            when = _text(_moment(answer, "revocation_time"))
            why = answer.revocation_reason.value if answer.revocation_reason is not None else "unspecified"
            return Status("revoked", f"it was revoked at {when} ({why})", revoked_at=when, revocation_reason=why, **dates)
        if (following is not None and following < now) or (this is not None and this > now + _SKEW):
            return Status("stale", f"the answer of {url} is not of now", **dates)
        if answer.certificate_status == ocsp.OCSPCertStatus.GOOD:
            return Status("good", **dates)
        return Status("unknown", f"{url} does not know the certificate", **dates)


def _certificate_id_hash() -> hashes.HashAlgorithm:
    """SHA-1 names the certificate in a request, and protects nothing: it is the one that every responder knows (RFC 5019 section 2.1.1)."""
    kind: t.Callable[[], hashes.HashAlgorithm] = hashes.SHA1
    return kind()


def _parse_list(data: bytes, place: str) -> t.Any:
    """Return a list in PEM or DER, or in words why it is none."""
    for parse in (x509.load_pem_x509_crl, x509.load_der_x509_crl):
        parsed = try_read(partial(parse, data), None)
        if parsed is not None:
            return parsed
    return f"{place} holds no revocation list"


def _signed_for(answer: t.Any, issuer: Certificate) -> bool:
    """Say whether the issuer signed the answer, or a responder whose certificate the issuer made for that purpose (RFC 6960 section 4.2.2.2)."""
    if _verifies(answer, issuer.parsed):
        return True
    for responder in answer.certificates:
        usages: list[t.Any] = try_read(partial(_usages, responder), [])
        may = ExtendedKeyUsageOID.OCSP_SIGNING in usages and certificates.is_issued_by(responder, issuer.parsed)
        if may and _verifies(answer, responder):
            return True
    return False


def _issuer_bytes(parsed: t.Any) -> bytes:
    return t.cast(bytes, parsed.issuer.public_bytes())


def _usages(certificate: x509.Certificate) -> list[t.Any]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def _verifies(answer: t.Any, signer: x509.Certificate) -> bool:
    key: t.Any = try_read(signer.public_key, None)
    algorithm = try_read(lambda: answer.signature_hash_algorithm, None)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(answer.signature, answer.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            key.verify(answer.signature, answer.tbs_response_bytes)
        else:
            return False
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _moment(source: t.Any, name: str) -> datetime.datetime | None:
    """Return a date of a list or an answer, by the name that this version of cryptography has for it."""
    value = getattr(source, f"{name}_utc", None) or getattr(source, name, None)
    return value if value is None or value.tzinfo is not None else value.replace(tzinfo=datetime.timezone.utc)


def _text(moment: datetime.datetime | None) -> str:
    return iso(moment.timestamp()) if moment is not None else ""
