# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a certificate leads to a trusted CA, and if not, why (private to muster.agents).

The rules are those of RFC 5280 section 6 as far as certificates of servers and agents meet them: signatures, dates, CA flag, path length, key usage,
extended key usage, name constraints, unknown critical extensions. OpenSSL would stop at the first fault and cannot be asked about a chain without a
connection; here every path is tried, and the fault of the best one is named.
"""

from __future__ import annotations

import ipaddress
import ssl
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.muster.agents.plugins.module_utils import _certificates as certificates
from ansible_collections.muster.agents.plugins.module_utils._certificate_files import FileSource, read
from ansible_collections.muster.agents.plugins.plugin_utils._check_details import Certificate, load, try_read
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso

try:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID
except ImportError:
    IMPORT_ERROR: str | None = "cryptography"
else:
    IMPORT_ERROR = None

__all__ = ["Authorities", "Fault", "Route", "follow", "host_matches"]

_MAX_PATHS = 200  # of one certificate; cross-signed CAs have a handful
_MAX_DEPTH = 12
_KNOWN_CRITICAL = frozenset({
    "2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.18", "2.5.29.19", "2.5.29.30", "2.5.29.31", "2.5.29.32", "2.5.29.35", "2.5.29.36", "2.5.29.37",
    "2.5.29.54", "1.3.6.1.5.5.7.1.1", "1.3.6.1.5.5.7.1.24",
})


@dataclass(frozen=True)
class Fault:
    """Why a chain is not valid. *reason* is a stable key, *msg* a clause for people."""

    reason: str
    msg: str


@dataclass(frozen=True)
class Route:
    """The best way from a certificate towards a trusted CA. *steps* begins with the certificate itself; *fault* is None when the whole way is good.

    borrowed: an intermediate certificate on it was not among those that came with the certificate, so that others cannot go this way.
    """

    steps: tuple[Certificate, ...]
    fault: Fault | None
    borrowed: bool = False

    @property
    def not_after(self) -> float:
        """When the first certificate on this way expires, in seconds since the epoch."""
        return min(step.not_after for step in self.steps)


@dataclass
class Authorities:
    """The CAs that are trusted, by their names. Signatures that were verified once are remembered, since a fleet's certificates share issuers."""

    anchors: dict[bytes, list[Certificate]] = field(default_factory=dict)
    source: str = ""
    _verified: dict[tuple[bytes, bytes], bool] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: t.Sequence[str]) -> Authorities:
        """Return the CAs in the files *paths*, or the system's when there are none. Raises InvalidInput for a file that holds none."""
        found = cls(source=", ".join(paths) or "the system's CAs")
        for path in paths or _system_files():
            reading = read(FileSource(path))
            if reading.reason != "ok" and paths:
                raise InvalidInput(f"ca_certs: {path} gives no certificate: {reading.msg}.")
            for der in reading.chain:
                one = load(der)
                if isinstance(one, Certificate):
                    found.anchors.setdefault(one.subject_der, []).append(one)
        return found

    def trusts(self, one: Certificate) -> bool:
        """Whether *one* is itself trusted."""
        return any(anchor.sha256 == one.sha256 for anchor in self.anchors.get(one.subject_der, ()))

    def issued(self, one: Certificate, issuer: Certificate) -> bool:
        """Whether *issuer* signed *one*."""
        if one.issuer_der != issuer.subject_der:
            return False
        key = (one.sha256, issuer.sha256)
        if key not in self._verified:
            self._verified[key] = try_read(lambda: certificates.is_issued_by(one.parsed, issuer.parsed), False)
        return self._verified[key]


def follow(
    leaf: Certificate, between: t.Sequence[Certificate], authorities: Authorities, *, now: float, purpose: str = "", known: t.Sequence[Certificate] = (),
) -> Route:
    """Return the best way from *leaf* over the certificates *between* to one of *authorities*.

    purpose is server, client or empty for any. known: intermediate certificates from elsewhere, which are used only when there is no way without them.
    """
    best = _best(leaf, between, authorities, now, purpose)
    if known and best.fault is not None and best.fault.reason == "missing_issuer":
        lent = _best(leaf, [*between, *known], authorities, now, purpose)
        if lent.fault is None or lent.fault.reason != "missing_issuer":
            return Route(lent.steps, lent.fault, borrowed=True)
    return best


def host_matches(found: Certificate, name: str) -> Fault | None:
    """Return None when *found* is valid for the host *name* (RFC 6125: alternative names only, a wildcard is one whole label), else the fault."""
    names = found.names
    wanted = name.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        ascii_name = _ascii(wanted)
        if any(kind == "DNS" and _dns_matches(value, ascii_name) for kind, value in names):
            return None
        told = ", ".join(value for kind, value in names if kind == "DNS")
    else:
        if any(kind == "IP" and value == str(address) for kind, value in names):
            return None
        told = ", ".join(value for kind, value in names if kind == "IP")
    if not names:
        return Fault("wrong_host", f"it has no subject alternative name, which clients of today want, so it is not for {name}")
    return Fault("wrong_host", f"it is for {told or 'other kinds of names'}, not for {name}")


def _best(leaf: Certificate, between: t.Sequence[Certificate], authorities: Authorities, now: float, purpose: str) -> Route:
    ranked: list[tuple[bool, int, int, Route]] = []
    for steps in _paths(leaf, between, authorities):
        fault = _incomplete(steps, authorities) or _fault(steps, now, purpose)
        if fault is None:
            return Route(steps, None)
        # A way that ends at a trusted CA says more than one that does not, and a longer one more than a shorter one.
        ranked.append((fault.reason in _INCOMPLETE, -len(steps), len(ranked), Route(steps, fault)))
    return min(ranked)[-1]


def _paths(leaf: Certificate, between: t.Sequence[Certificate], authorities: Authorities) -> t.Iterator[tuple[Certificate, ...]]:
    """Yield the ways from *leaf* upwards, each as far as it goes."""
    waiting: list[tuple[Certificate, ...]] = [(leaf,)]
    for _number in range(_MAX_PATHS):
        if not waiting:
            return
        steps = waiting.pop()
        last = steps[-1]
        if authorities.trusts(last) or len(steps) > _MAX_DEPTH:
            yield steps
            continue
        used = {step.sha256 for step in steps}
        candidates = {one.sha256: one for one in (*authorities.anchors.get(last.issuer_der, ()), *between) if one.sha256 not in used}
        issuers = [one for one in candidates.values() if authorities.issued(last, one)]
        waiting.extend((*steps, one) for one in reversed(issuers))
        if not issuers:
            yield steps


_INCOMPLETE = ("self_signed", "untrusted_root", "missing_issuer", "bad_signature")


def _incomplete(steps: tuple[Certificate, ...], authorities: Authorities) -> Fault | None:
    """Return why a way does not end at a trusted CA, None when it does."""
    last = steps[-1]
    if authorities.trusts(last):
        return None
    if last.self_issued:
        if len(steps) == 1:
            return Fault("self_signed", f"it is signed by itself and not among {authorities.source}")
        return Fault("untrusted_root", f"it leads to {last.subject}, which is not among {authorities.source}")
    if last.issuer_der in authorities.anchors:
        return Fault("bad_signature", f"{last.subject} names {last.issuer} as its issuer, but the trusted CA of that name did not sign it")
    return Fault("missing_issuer", f"{last.issuer}, which issued {_which(steps, len(steps) - 1)}, was not sent and is not among {authorities.source}")


def _fault(steps: tuple[Certificate, ...], now: float, purpose: str) -> Fault | None:
    for place, step in enumerate(steps):
        which = _which(steps, place)
        fault = _date_fault(step, which, now) or _form_fault(step, which) or _purpose_fault(step, which, purpose, place)
        fault = fault or (_authority_fault(steps, place, which) if place else None) or _constraint_fault(steps, place, which)
        if fault is not None:
            return fault
    return None


def _which(steps: t.Sequence[Certificate], place: int) -> str:
    return f"the certificate of the CA {steps[place].subject}" if place else "it"


def _date_fault(step: Certificate, which: str, now: float) -> Fault | None:
    prefix = "" if which == "it" else "chain_"
    if now > step.not_after:
        return Fault(f"{prefix}expired", f"{which} expired at {iso(step.not_after)}")
    if now < step.not_before:
        return Fault(f"{prefix}not_yet_valid", f"{which} is valid from {iso(step.not_before)} only")
    return None


def _form_fault(step: Certificate, which: str) -> Fault | None:
    broken = next((flaw for flaw in step.flaws if flaw.reason == "malformed"), None)
    if broken is not None:
        return Fault("malformed", broken.msg)
    for extension in step.parsed.extensions:
        if extension.critical and extension.oid.dotted_string not in _KNOWN_CRITICAL:
            return Fault("unknown_critical_extension", f"{which} has the critical extension {extension.oid.dotted_string}, which nobody here knows")
    return None


def _purpose_fault(step: Certificate, which: str, purpose: str, place: int) -> Fault | None:
    """An extended key usage must allow the purpose, in CA certificates too (as browsers and OpenSSL have it)."""
    usages = step.extension(x509.ExtendedKeyUsage)
    if not purpose or usages is None:
        return None
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if purpose == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    accepted = {wanted, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} if place else {wanted}
    if accepted & set(usages):
        return None
    return Fault("wrong_purpose", f"{which} may not be used by a {purpose}: its extended key usage does not say so")


def _authority_fault(steps: tuple[Certificate, ...], place: int, which: str) -> Fault | None:
    step = steps[place]
    constraints = step.extension(x509.BasicConstraints)
    old_root = step.parsed.version == x509.Version.v1 and step.self_issued
    if not old_root and (constraints is None or not constraints.ca):
        return Fault("not_a_ca", f"{which} does not say that it is one (basicConstraints)")
    usage = step.extension(x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return Fault("not_a_ca", f"{which} may not sign certificates (keyUsage without keyCertSign)")
    below = sum(1 for other in steps[1:place] if not other.self_issued)
    if constraints is not None and constraints.path_length is not None and below > constraints.path_length:
        return Fault("path_too_long", f"{which} allows {constraints.path_length} CAs below it, and there are {below}")
    return None


def _constraint_fault(steps: tuple[Certificate, ...], place: int, which: str) -> Fault | None:
    """Apply a CA's name constraints (DNS and IP) to the certificate at the beginning of the way."""
    constraints = steps[place].extension(x509.NameConstraints) if place else None
    if constraints is None:
        return None
    for kind, value in steps[0].names:
        excluded = [tree for tree in constraints.excluded_subtrees or () if _within(tree, kind, value)]
        permitted = [tree for tree in constraints.permitted_subtrees or () if _same_kind(tree, kind)]
        if excluded or (permitted and not any(_within(tree, kind, value) for tree in permitted)):
            return Fault("name_not_permitted", f"{which} may not issue certificates for {value} (nameConstraints)")
    return None


def _same_kind(tree: t.Any, kind: str) -> bool:
    return isinstance(tree, x509.DNSName if kind == "DNS" else x509.IPAddress) if kind in ("DNS", "IP") else False


def _within(tree: t.Any, kind: str, value: str) -> bool:
    if not _same_kind(tree, kind):
        return False
    if kind == "IP":
        return ipaddress.ip_address(value) in tree.value
    base = tree.value.lower().lstrip(".")
    return not base or value.lower() == base or value.lower().endswith(f".{base}")


def _dns_matches(pattern: str, name: str) -> bool:
    pattern = pattern.rstrip(".").lower()
    if pattern.startswith("*."):
        label, _dot, rest = name.partition(".")
        return bool(label) and "." in pattern[2:] and rest == pattern[2:]
    return pattern == name


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def _system_files() -> list[str]:
    """Return the files of the system's CAs as OpenSSL finds them, environment variables included."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return [paths.cafile]
    folder = Path(paths.capath) if paths.capath else None
    return sorted(str(item) for item in folder.glob("*.0")) if folder is not None and folder.is_dir() else []
