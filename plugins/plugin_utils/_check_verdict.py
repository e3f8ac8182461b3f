# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be said about a certificate that was seen: its problems and one verdict (private to muster.agents).

Nothing here reads or connects: what was seen comes in, plain results go out.
"""

from __future__ import annotations

import base64
import hashlib
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._certificate_files import Reading
from ansible_collections.muster.agents.plugins.module_utils._tls_probe import Sight
from ansible_collections.muster.agents.plugins.plugin_utils import _check_chain as chains
from ansible_collections.muster.agents.plugins.plugin_utils._check_details import Certificate, Flaw, details, element, left, load, spki_pin, strength, try_read
from ansible_collections.muster.agents.plugins.plugin_utils._check_revocation import Question, Status
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._thresholds import Thresholds
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso

__all__ = ["VERDICTS", "Context", "Item", "Pin", "Problem", "Seen", "judge", "look_at"]

VERDICTS = ("ok", "warning", "critical", "expired", "unreachable")
_OLD_PROTOCOLS = ("SSLv3", "TLSv1", "TLSv1.1")
_WEAK_HASHES = ("md5", "sha1")
_WAYS = {"crl": "CRL", "ocsp": "OCSP", "stapled": "the OCSP answer that the server staples"}
_MIN_RSA_BITS, _MIN_EC_BITS = 2048, 224
_KEY_PROBLEMS = {
    "mismatch": ("key_mismatch", "critical"), "missing": ("key_missing", "critical"), "unreadable": ("key_unreadable", "critical"),
    "encrypted": ("key_encrypted", "warning"), "unknown": ("key_not_compared", "warning"),
}
_PIN = re.compile(r"(?:sha256(?://|:|/))?(?:((?:[0-9a-f]{2}:?){32})|([a-z0-9+/]{43}=))\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. *severity* is one of VERDICTS, *reason* a stable key, *msg* a sentence for people."""

    reason: str
    severity: str
    msg: str

    def as_result(self) -> dict[str, str]:
        """Return plain data for a task result."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Pin:
    """The certificate or public key that must be met; exactly one of both digests is set."""

    certificate: bytes = b""
    public_key: str = ""

    @classmethod
    def parse(cls, text: str, place: str) -> Pin | None:
        """Return the pin in *text*, None when that is empty. Raises InvalidInput."""
        if not text:
            return None
        found = _PIN.match(text.strip())
        if found is None:
            raise InvalidInput(f"{place}: pin_sha256 is not a SHA-256: give 64 hexadecimal digits of the certificate, or the public key's digest in base64.")
        if found.group(1):
            return cls(certificate=bytes.fromhex(found.group(1).replace(":", "")))
        return cls(public_key=base64.b64encode(base64.b64decode(found.group(2))).decode())

    def fits(self, one: Certificate) -> bool:
        """Whether *one* is the pinned certificate, or has the pinned key."""
        if self.certificate:
            return one.sha256 == self.certificate
        return bool(self.public_key) and spki_pin(try_read(one.parsed.public_key, None)) == self.public_key


@dataclass(frozen=True)
class Item:
    """Something to check. label is its name in results; kind is endpoint or file; host_name is what the certificate must be for, empty for anything.

    purpose is server, client or empty for any. file is the certificate file that an endpoint should serve.
    """

    label: str
    kind: str
    domain: str = ""
    port: int = 0
    path: str = ""
    host_name: str = ""
    check_chain: bool = True
    purpose: str = ""
    pin: Pin | None = None
    file: str = ""


@dataclass(frozen=True)
class Seen:
    """Everything that was seen of an item: sights of an endpoint's addresses or a file's reading; file is the reading of the file to compare with."""

    sights: tuple[Sight, ...] = ()
    reading: Reading | None = None
    file: Reading | None = None


@dataclass(frozen=True)
class Context:
    """What all items of a task are judged by. known: intermediate certificates from elsewhere; now is in seconds since the epoch."""

    authorities: chains.Authorities
    thresholds: Thresholds
    now: float
    ignore: frozenset[str] = frozenset()
    known: tuple[Certificate, ...] = ()


@dataclass(frozen=True)
class Look:
    """One certificate of an item with the way to its CA; question is what a CA can be asked about it, None when its issuer is unknown."""

    chain: tuple[Certificate | Flaw, ...]
    route: chains.Route | None
    question: Question | None
    addresses: tuple[str, ...] = ()

    @property
    def leaf(self) -> Certificate | Flaw:
        """The certificate itself."""
        return self.chain[0]

    @property
    def key(self) -> tuple[bytes, ...]:
        """What answers are kept under: the certificate's SHA-256, and the OCSP answers that came along, which are one server's own."""
        staples = self.question.staples if self.question is not None else ()
        return (self.leaf.sha256 if isinstance(self.leaf, Certificate) else b"", *staples)


Answers = t.Mapping[tuple[bytes, ...], t.Mapping[str, Status]]


def look_at(item: Item, seen: Seen, context: Context) -> tuple[Look, ...]:
    """Return the different chains that were seen of *item*, each once."""
    shown: dict[tuple[bytes, ...], list[Sight]] = {}
    if seen.reading is not None and seen.reading.chain:
        shown[seen.reading.chain] = []
    for sight in seen.sights:
        if sight.chain:
            shown.setdefault(sight.chain, []).append(sight)
    return tuple(_look(item, chain, sights, context) for chain, sights in shown.items())


def judge(item: Item, seen: Seen, looks: t.Sequence[Look], answers: Answers, context: Context) -> dict[str, t.Any]:
    """Return the result of *item*. *answers*: what CAs said, by the keys of the looks."""
    problems = list(_reach_problems(seen, looks))
    worst_look: Look | None = None
    worst_rank = -1
    for look in looks:
        where = f" ({', '.join(look.addresses)})" if len(looks) > 1 else ""
        found = list(_look_problems(item, look, answers.get(look.key, {}), context, where))
        rank = max((VERDICTS.index(problem.severity) for problem in found), default=0)
        if rank > worst_rank:
            worst_look, worst_rank = look, rank
        problems.extend(problem for problem in found if problem not in problems)
    problems.extend(_comparison_problems(item, seen, looks))
    counted = sorted((one for one in problems if one.reason not in context.ignore), key=lambda one: -VERDICTS.index(one.severity))
    verdict = counted[0].severity if counted else "ok"
    result = {
        "item": item.label, "kind": item.kind, "domain": item.domain, "port": item.port, "path": item.path, "verdict": verdict,
        "reason": counted[0].reason if counted else "ok", "msg": counted[0].msg if counted else "It is good.",
        "problems": [one.as_result() for one in counted], "ignored": [one.as_result() for one in problems if one.reason in context.ignore],
        "last_checked": iso(context.now), **_addresses(seen, looks), **_shown(item, seen, worst_look, answers, context),
    }
    if not counted and result["not_after"]:
        result["msg"] = f"It is good until {result['not_after']}."
    return result


def _look(item: Item, chain: tuple[bytes, ...], sights: t.Sequence[Sight], context: Context) -> Look:
    addresses = tuple(sight.address for sight in sights)
    loaded = tuple(load(der) for der in chain)
    leaf = loaded[0]
    if isinstance(leaf, Flaw):
        return Look(loaded, None, None, addresses)
    between = [one for one in loaded[1:] if isinstance(one, Certificate)]
    route = chains.follow(leaf, between, context.authorities, now=context.now, purpose=item.purpose, known=context.known)
    staples = tuple(dict.fromkeys(sight.staple for sight in sights if sight.staple))
    question = Question(leaf, route.steps[1], staples) if len(route.steps) > 1 else None
    return Look(loaded, route, question, addresses)


def _reach_problems(seen: Seen, looks: t.Sequence[Look]) -> t.Iterator[Problem]:
    if seen.reading is not None and seen.reading.reason != "ok":
        yield Problem(f"file_{seen.reading.reason}" if seen.reading.reason in ("missing", "unreadable", "empty") else seen.reading.reason,
                      "unreachable", f"No certificate is in {seen.reading.path}: {seen.reading.msg}.")
    for sight in seen.sights:
        place = f"{sight.address}: " if sight.address else ""
        if not sight.chain:
            yield Problem(sight.reason, "warning" if looks else "unreachable", f"No certificate was seen. {place}{sight.msg}.".replace(". :", "."))
        elif sight.reason in ("client_certificate_refused", "tls_failed", "reset", "closed", "timeout"):
            yield Problem(sight.reason, "critical", f"The certificate was seen, but no connection came about. {place}{sight.msg}.")
        elif sight.tls_version in _OLD_PROTOCOLS:
            yield Problem("old_protocol", "warning", f"{place}the server speaks {sight.tls_version}, which clients of today refuse.")


def _look_problems(
    item: Item, look: Look, said: t.Mapping[str, Status], context: Context, where: str,
) -> t.Iterator[Problem]:
    leaf = look.leaf
    if isinstance(leaf, Flaw):
        yield Problem(leaf.reason, "critical", f"Nobody can use this: {leaf.msg}{where}.")
        return
    for flaw in leaf.flaws:
        yield Problem(flaw.reason, "critical" if flaw.reason == "malformed" else "warning", f"The certificate breaks the rules: {flaw.msg}{where}.")
    yield from _date_problems(leaf, where, context)
    if item.check_chain and look.route is not None:
        yield from _chain_problems(look.route, where, context)
    fault = chains.host_matches(leaf, item.host_name) if item.host_name else None
    if fault is not None:
        yield Problem(fault.reason, "critical", f"The certificate is for another host: {fault.msg}{where}.")
    yield from _strength_problems(leaf, look, where)
    if item.pin is not None and not item.pin.fits(leaf):
        yield Problem("pin_mismatch", "critical", f"It is not the certificate that is pinned: its SHA-256 is {leaf.fingerprint}{where}.")
    for way, status in said.items():
        if status.status == "revoked":
            yield Problem("revoked", "critical", f"Its CA took it back: {status.msg} says {_WAYS[way]}{where}.")
        elif status.status != "good":
            yield Problem(f"{way}_{status.status}", "warning", f"Whether it was revoked is not known by {_WAYS[way]}: {status.msg}{where}.")


def _date_problems(leaf: Certificate, where: str, context: Context) -> t.Iterator[Problem]:
    days, percent = left(leaf, context.now)
    if days < 0:
        yield Problem("expired", "expired", f"It expired {-days:.1f} days ago, at {iso(leaf.not_after)}{where}.")
    elif context.now < leaf.not_before:
        yield Problem("not_yet_valid", "critical", f"It is valid from {iso(leaf.not_before)} only{where}.")
    severity = context.thresholds.severity(days, percent) if days >= 0 else "ok"
    if severity != "ok":
        yield Problem("expires_soon", severity, f"It expires in {days:.1f} days ({percent:.0f} % of its lifetime left), at {iso(leaf.not_after)}{where}.")


def _chain_problems(route: chains.Route, where: str, context: Context) -> t.Iterator[Problem]:
    fault = route.fault
    if route.borrowed:
        yield Problem("missing_intermediate", "critical", f"The certificate of the CA {route.steps[1].subject} does not come with it, so that clients "
                      f"that do not know it cannot trust it{where}.")
    if fault is not None and fault.reason not in ("expired", "not_yet_valid", "malformed"):  # the certificate's own, told already
        severity = "expired" if fault.reason == "chain_expired" else "critical"
        yield Problem(fault.reason, severity, f"Its chain is not valid: {fault.msg}{where}.")
    if fault is not None:
        return
    for step in route.steps[1:]:
        days, percent = left(step, context.now)
        severity = context.thresholds.severity(days, percent)
        if severity != "ok":
            words = f"The certificate of the CA {step.subject} expires in {days:.1f} days, at {iso(step.not_after)}{where}."
            yield Problem("chain_expires_soon", severity, words)


def _strength_problems(leaf: Certificate, look: Look, where: str) -> t.Iterator[Problem]:
    algorithm, bits, _signature = strength(leaf)
    if (algorithm == "RSA" and bits < _MIN_RSA_BITS) or (algorithm == "ECDSA" and bits < _MIN_EC_BITS) or algorithm == "DSA":
        yield Problem("weak_key", "critical", f"Its key ({algorithm} with {bits} bits) is too weak: clients of today refuse it{where}.")
    steps = look.route.steps if look.route is not None else (leaf,)
    # Nobody looks at the signature of a CA's own certificate that is trusted by itself.
    for step in steps if len(steps) == 1 else [one for one in steps if not one.self_issued]:
        name = strength(step)[2]
        if any(weak in name.lower() for weak in _WEAK_HASHES):
            whose = "It" if step is leaf else f"The certificate of the CA {step.subject}"
            yield Problem("weak_signature", "critical", f"{whose} is signed with {name}, which clients of today refuse{where}.")


def _comparison_problems(item: Item, seen: Seen, looks: t.Sequence[Look]) -> t.Iterator[Problem]:
    leaves = {look.leaf.sha256: look.leaf for look in looks if isinstance(look.leaf, Certificate)}
    if len(leaves) > 1:
        told = "; ".join(f"{', '.join(look.addresses)}: {_short(look.leaf)}" for look in looks)
        yield Problem("addresses_disagree", "warning", f"Not all addresses serve the same certificate. {told}.")
    reading = seen.reading
    if reading is not None and reading.key in _KEY_PROBLEMS:
        reason, severity = _KEY_PROBLEMS[reading.key]
        yield Problem(reason, severity, f"Certificate and key do not make a pair: {reading.key_msg}." if severity == "critical" else
                      f"Whether certificate and key make a pair is not known: {reading.key_msg}.")
    if seen.file is None:
        return
    if seen.file.reason != "ok":
        yield Problem("file_not_compared", "warning", f"What is served cannot be compared with {item.file}: {seen.file.msg}.")
    elif leaves and hashlib.sha256(seen.file.chain[0]).digest() not in leaves:
        yield Problem("served_differs", "warning", f"The server does not serve what is in {item.file}: it was not reloaded since that file was replaced, or "
                      "it reads another one.")


def _short(leaf: Certificate | Flaw) -> str:
    return leaf.msg if isinstance(leaf, Flaw) else f"{leaf.subject} until {iso(leaf.not_after)}"


def _addresses(seen: Seen, looks: t.Sequence[Look]) -> dict[str, t.Any]:
    """Return what each address showed."""
    leaves = {look.leaf.der: look.leaf for look in looks if isinstance(look.leaf, Certificate)}
    told = []
    for sight in seen.sights:
        known = leaves.get(sight.chain[0]) if sight.chain else None
        told.append({
            "address": sight.address, "reason": sight.reason, "msg": sight.msg, "tls_version": sight.tls_version, "cipher_suite": sight.cipher_suite,
            "client_certificate": sight.client_certificate, "tries": sight.tries, "chain_depth": len(sight.chain),
            "fingerprint_sha256": known.fingerprint if known else "", "not_after": iso(known.not_after) if known else "",
        })
    return {"addresses": told, "ip_addresses": [sight.address for sight in seen.sights if sight.address]}


def _shown(item: Item, seen: Seen, look: Look | None, answers: Answers, context: Context) -> dict[str, t.Any]:
    """Return every field about the certificate, empty ones when there is none."""
    leaf = look.leaf if look is not None else None
    if look is None or not isinstance(leaf, Certificate):
        return {**_EMPTY, "chain": [element(one, context.now) for one in look.chain] if look is not None else [], "key_match": _key_match(seen)}
    sight = next((one for one in seen.sights if one.chain and one.chain[0] == leaf.der), None)
    route, said = look.route, answers.get(look.key, {})
    fault = route.fault if route is not None else None
    served = [one for one in look.chain if isinstance(one, Certificate)]
    good = route is not None and fault is None and not route.borrowed
    return {
        **_EMPTY, **details(leaf, context.now),
        "tls_version": sight.tls_version if sight else "", "cipher_suite": sight.cipher_suite if sight else "",
        "client_certificate": sight.client_certificate if sight else "", "chain_depth": len(look.chain), "chain_valid": good,
        "chain_error": fault.msg if fault is not None else ("an intermediate certificate is missing" if not good else ""),
        "chain_reason": fault.reason if fault is not None else ("missing_intermediate" if not good else "ok"),
        "missing_intermediate": bool(route is not None and (route.borrowed or (fault is not None and fault.reason == "missing_issuer"))),
        "chain": [element(one, context.now) for one in look.chain],
        "trusted_path": [step.subject for step in route.steps] if route is not None and fault is None else [],
        "chain_not_after": iso(route.not_after) if route is not None and fault is None else "",
        "earliest_not_after": iso(min(one.not_after for one in served)),
        "host_match": chains.host_matches(leaf, item.host_name) is None if item.host_name else None,
        "pin_match": item.pin.fits(leaf) if item.pin is not None else None, "key_match": _key_match(seen), "file_match": _file_match(seen, leaf),
        **{way: status.as_result() for way, status in said.items()},
    }


def _key_match(seen: Seen) -> bool | None:
    state = seen.reading.key if seen.reading is not None else ""
    return {"match": True, "mismatch": False}.get(state)


def _file_match(seen: Seen, leaf: Certificate) -> bool | None:
    if seen.file is None or seen.file.reason != "ok":
        return None
    return seen.file.chain[0] == leaf.der


_EMPTY: dict[str, t.Any] = {
    "subject": "", "subject_cn": "", "subject_o": "", "issuer": "", "issuer_cn": "", "issuer_o": "", "issuer_ou": "", "issuer_c": "",
    "subject_alt_names": [], "serial_number": "", "fingerprint_sha256": "", "fingerprint_spki_sha256": "", "version": 0, "not_before": "", "not_after": "",
    "days_until_expiry": None, "days_left": None, "percent_left": None, "signature_algorithm": "", "public_key_algorithm": "", "public_key_bits": 0,
    "key_usage": [], "extended_key_usage": [], "is_ca": False, "is_wildcard": False, "ocsp_urls": [], "ca_issuer_urls": [], "crl_urls": [], "sct_count": 0,
    "tls_version": "", "cipher_suite": "", "client_certificate": "", "chain_depth": 0, "chain_valid": False, "chain_error": "", "chain_reason": "",
    "missing_intermediate": False, "chain": [], "trusted_path": [], "chain_not_after": "", "earliest_not_after": "", "host_match": None, "pin_match": None,
    "key_match": None, "file_match": None, "crl": None, "ocsp": None, "stapled": None,
}
