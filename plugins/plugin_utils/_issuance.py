# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The transaction of a certificate: look at the host, have its key's request signed, check the answer, install it (private to muster.agents).

Two visits to the host when something changes, one when nothing does; the second is a shell script where that will do. The key is made in the first and
is on the host's disk before anybody hears of it, so that whatever happens later the same key is asked for again.
"""

from __future__ import annotations

import hashlib
import re
import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure, InvalidInput, Mismatch, MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils._faults import reach
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._pair import Executor
from ansible_collections.muster.agents.plugins.plugin_utils._pair_scripts import Installation, install
from ansible_collections.muster.agents.plugins.plugin_utils.issuers import issuer_of
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, Issuer, Signed, SigningOrder

if t.TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Wish", "check_answer", "early_share", "issue", "visit", "wish_of"]

_MODULE = "muster.agents.key_pair"
_DEFAULT_SHARE = 0.67
_MAX_SKEW = 300.0  # seconds; a host further off would take a new certificate for one of the future
_MAX_DAYS = 36525
_RSA_SIZES = range(2048, 4097)
_MODE = re.compile(r"0?[0-7]{3}\Z")
_PLACES = ("certificate_path", "key_path", "ca_path", "owner", "group", "key_mode", "certificate_mode", "directory_mode")


@dataclass(frozen=True)
class Wish:
    """What the operator asks for. places are the options about files, as the host's module takes them."""

    places: t.Mapping[str, t.Any]
    request: x.Request
    renewal: x.Renewal
    valid_days: int
    name: str
    include_chain: bool
    force: bool
    check_mode: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What the host showed, parsed. certificates are the ones at the fixed path, the leaf first."""

    raw: t.Mapping[str, t.Any]
    certificates: tuple[x509.Certificate, ...]
    bundle: tuple[x509.Certificate, ...]

    @property
    def reason(self) -> str:
        return str(self.raw["reason"])

    @property
    def leaf(self) -> x509.Certificate | None:
        return self.certificates[0] if self.certificates else None


@dataclass(frozen=True)
class _Outcome:
    """How it ended: the certificates now at the fixed path (in check mode those that stay), and what was done why."""

    action: str
    reason: str
    msg: str
    changed: bool
    certificates: tuple[x509.Certificate, ...]
    generation: int
    reload_pending: bool
    warnings: tuple[str, ...] = field(default=())


def issue(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Carry out cert_issue with validated *args* and return its result. Raises AgentsError."""
    if x.IMPORT_ERROR is not None:
        raise MissingLibrary(
            "The Python library cryptography is needed on the controller: install the collection's requirements.txt into the environment that runs "
            "ansible-playbook.", traceback=x.IMPORT_ERROR)
    host = Host(action, task_vars, store="", control_plane="", name="")
    check_mode = bool(action._task.check_mode)
    if args["state"] == "absent":
        return _removed(host, args, check_mode=check_mode)
    issuer = issuer_of(args)
    try:
        if args["state"] == "revoked":
            return _revoked(host, issuer, args, check_mode=check_mode)
        wish = wish_of(args, exact=issuer.exact, check_mode=check_mode)
        return _result(*_Issuance(host, issuer, wish).run(), wish, diff=bool(action._task.diff))
    finally:
        issuer.close()


def wish_of(args: t.Mapping[str, t.Any], *, exact: bool, check_mode: bool) -> Wish:
    """Return validated *args* as one value. Raises InvalidInput for what no certificate can be."""
    days, share, valid_days = args.get("renew_days"), args.get("renew_at"), args["valid_days"]
    if valid_days < 1:
        raise InvalidInput(f"valid_days {valid_days} is no lifetime: give at least 1.")
    if valid_days > _MAX_DAYS:
        raise InvalidInput(f"valid_days {valid_days} is more than a hundred years: give at most {_MAX_DAYS}.")
    if days is not None and not 0 <= days < valid_days:
        raise InvalidInput(f"renew_days {days} would renew a certificate of {valid_days} days at every run: give fewer days than valid_days.")
    if share is not None and not 0 < share < 1:
        raise InvalidInput(f"renew_at {share} is no share of the lifetime: give a number between 0 and 1, such as 0.67.")
    if not 0 <= args["renew_jitter"] < 0.5:
        raise InvalidInput(f"renew_jitter {args['renew_jitter']} is too much: give a share of the lifetime below 0.5, such as 0.05.")
    if days is None and share is None:
        share = _DEFAULT_SHARE
    try:
        request = _request(args, exact=exact)
        x.subject_name(request.subject)
        x.extended_key_usage(request.extended_key_usage or ("clientAuth",))
    except x.CertificateError as error:
        raise InvalidInput(f"{error.msg}.") from None
    name = args.get("name") or next((value for key, value in request.subject if key == "CN"), "")
    renewal = x.Renewal(now=time.time(), days=days, share=share, early=args["renew_jitter"] * early_share(name))
    return Wish(
        places=_places(args), request=request, renewal=renewal, valid_days=valid_days, name=name, include_chain=args["include_chain"], force=args["force"],
        check_mode=check_mode, warnings=_doubts(request))


def early_share(name: str) -> float:
    """Return a number in [0, 1) that is always the same for *name* and evenly spread over names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2.0**48


class _Issuance:
    """One certificate on one host."""

    def __init__(self, host: Host, issuer: Issuer, wish: Wish) -> None:
        self._host = host
        self._issuer = issuer
        self._wish = wish
        self._chain = Chain((), (), ())

    def run(self) -> tuple[_Look, _Outcome]:
        """Bring the host to what is wished for; returns what it had and what was done. Raises AgentsError."""
        self._chain = self._issuer.open()
        look = self._look("forced" if self._wish.force else "")
        if look.reason == "ok" and look.leaf is not None and self._issuer.is_revoked(look.leaf):
            look = self._look("revoked")
        if look.reason == "ok":
            return look, self._settled(look)
        recovered = x.load_certificates(str(look.raw["recovered"]).encode()) if look.raw["recovered"] else ()
        if recovered and not self._issuer.is_revoked(recovered[0]):
            why = "An interrupted run had brought a good certificate, which is in place now."
            return look, self._installed(look, recovered, "repaired", "interrupted", why)
        if recovered:
            look = self._look("revoked")
        return look, self._issued(look)

    def _look(self, reason: str) -> _Look:
        wish = self._wish
        renewal = {"now": wish.renewal.now, "days": wish.renewal.days, "share": wish.renewal.share, "early": wish.renewal.early}
        raw = visit(self._host, {
            **wish.places, "operation": "look", "request": wish.request.dump(), "issuers": _text(self._chain.anchors), "renewal": renewal, "reason": reason})
        reach("after_look")
        return _Look(raw, _parsed(raw["certificate"]), _parsed(raw["ca"]))

    def _settled(self, look: _Look) -> _Outcome:
        """The certificate is good: see to what lies around it."""
        bundle = self._chain.bundle if self._wish.places.get("ca_path") else ()
        shown = self._chain.intermediates if self._wish.include_chain else ()
        stale = (bundle and set(bundle) != set(look.bundle)) or not set(shown) <= set(look.certificates[1:])
        if stale:
            certificates = (look.certificates[0], *(shown or look.certificates[1:]))
            return self._installed(look, certificates, "updated", "chain_changed", "The certificate stays; the certificates of its CA changed.")
        if look.raw["repairs"]:
            return self._installed(
                look, look.certificates, "repaired", str(look.raw["repairs"][0]), f"Put right: {', '.join(look.raw['repairs'])}; the certificate stays.")
        return _Outcome(
            "unchanged", "ok", "The certificate is as it shall be.", False, look.certificates, look.raw["generation"], look.raw["reload_pending"] > 0)

    def _issued(self, look: _Look) -> _Outcome:
        done = "renewed" if look.leaf is not None else "issued"
        sentence = f"{look.reason}: {look.raw['detail']}"
        if self._wish.check_mode:
            return _Outcome(done, look.reason, f"A new certificate would be made ({sentence}).", True, look.certificates, look.raw["generation"], True)
        skew = float(look.raw["time"]) - time.time()
        if abs(skew) > _MAX_SKEW:
            raise HostFailure(f"The host's clock is {abs(skew):.0f} s off the controller's: set it, then run again.", reason="clock_skew")
        reach("after_key")
        csr = str(look.raw["request"]).encode()
        signed = self._issuer.sign(SigningOrder(csr, self._wish.request, self._wish.valid_days, self._wish.name))
        reach("after_sign")
        warnings = check_answer(signed, csr, self._wish, self._chain)
        certificates = (signed.certificate, *((signed.intermediates or self._chain.intermediates) if self._wish.include_chain else ()))
        outcome = self._installed(
            look, certificates, done, look.reason, f"A new certificate is in place ({sentence}).", fresh=not _is_held(signed.certificate, look))
        return replace(outcome, warnings=warnings)

    def _installed(
        self, look: _Look, certificates: t.Sequence[x509.Certificate], action: str, reason: str, msg: str, *, fresh: bool = False,
    ) -> _Outcome:
        """Have *certificates* put in place; *fresh* when it is known that they belong to the key that waits on the host, and to no other."""
        ca = _text(self._chain.bundle) if self._wish.places.get("ca_path") else ""
        wanted = Installation(self._wish.places, _text(certificates), ca, str(look.raw["token"]))
        reach("before_install")
        generation = install(self._host, wanted) if fresh else None
        if generation is None:
            raw = visit(self._host, {
                **wanted.places, "operation": "install", "certificate": wanted.certificate, "ca": wanted.ca, "expect": wanted.expect})
            generation = int(raw["generation"])
        reach("after_install")
        shown = look.certificates if self._wish.check_mode else tuple(certificates)
        same = generation == look.raw["generation"] and not look.raw["reload_pending"]
        return _Outcome(action, reason, msg, True, shown, generation, not same)


def _is_held(leaf: x509.Certificate, look: _Look) -> bool:
    """Say whether the host has the key of *leaf* in a pair already, so that it is more than one that waits."""
    return any(x.public_bytes(held.public_key()) == x.public_bytes(leaf.public_key()) for text in look.raw["held"] for held in _parsed(text)[:1])


def check_answer(signed: Signed, csr: bytes, wish: Wish, chain: Chain) -> tuple[str, ...]:
    """Refuse a certificate that would be of no use on the host, with what is wrong about it; return warnings. Raises Mismatch."""
    leaf = signed.certificate
    start, end = x.validity(leaf)
    now = time.time()
    if x.public_bytes(leaf.public_key()) != x.public_bytes(x.load_request(csr).public_key()):
        raise Mismatch("The signer's certificate is for another key than the one on the host: do not trust this signer.", reason="key_mismatch")
    if chain.anchors and not x.leads_to(leaf, signed.intermediates, chain.anchors):
        raise Mismatch(
            f"The signer's certificate comes from {leaf.issuer.rfc4514_string()!r} and does not lead to the CA that was expected: "
            "name the CA or the issuer that really signs.", reason="issuer_mismatch")
    if end <= now:
        raise Mismatch("The signer's certificate has expired already: check the signer's clock and the lifetime it gives.", reason="expired")
    if start > now + 60:
        raise Mismatch("The signer's certificate is not valid yet: check the signer's clock against the controller's.", reason="not_yet_valid")
    if any(key == "keyCertSign" for key in x.describe(leaf)["key_usage"]):
        raise Mismatch("The signer's certificate may sign others: an agent must not have that; check the signer's profile.", reason="absurd_usage")
    different = x.request_differs(leaf, wish.request)
    if different is not None:
        raise Mismatch(
            f"The signer did not give what was asked for: {different[1]}. Change what the signer allows, or ask for what it gives; otherwise every run "
            "would renew it.", reason=different[0])
    if x.renewal_time(leaf, wish.renewal) <= now:
        raise Mismatch(
            f"The signer's certificate ends after {(end - now) / 86400:.1f} days and would be due at once: have the signer (or its CA) give a longer "
            "lifetime, or change renew_days.", reason="absurd_lifetime")
    given = (end - now) / 86400
    if not 0.9 * wish.valid_days <= given <= 1.1 * wish.valid_days + 1:
        return (f"The signer gave {given:.0f} days instead of {wish.valid_days}.",)
    return ()


def _removed(host: Host, args: t.Mapping[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    raw = visit(host, {**_places(args), "operation": "remove"})
    changed = bool(raw["changed"])
    words = ("would be removed" if check_mode else "are removed") if changed else "are not there"
    return {
        "changed": changed, "action": "removed" if changed else "unchanged", "reason": "removed" if changed else "nothing_to_remove",
        "msg": f"Key and certificate {words}.", "certificate": {}, "revoked": [],
    }


def _revoked(host: Host, issuer: Issuer, args: t.Mapping[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    """Take back what the signer issued for this host, then remove it; in this order, so that an end in between loses no serial number."""
    if not issuer.can_revoke:
        issuer.revoke(0, None)
    chain = issuer.open()
    if args.get("serial_number"):
        return _revoked_by_number(issuer, str(args["serial_number"]), check_mode=check_mode)
    raw = visit(host, {**_places(args), "operation": "look"})
    held = [leaf for text in raw["held"] for leaf in _parsed(text)[:1] if x.leads_to(leaf, (), chain.anchors)]
    good = [leaf for leaf in held if not issuer.is_revoked(leaf)]
    if not check_mode:
        for leaf in good:
            issuer.revoke(leaf.serial_number, leaf)
            reach("after_revoke")
        raw = {**raw, **visit(host, {**_places(args), "operation": "remove"})}
    serials = [x.serial_text(leaf.serial_number) for leaf in good]
    changed = bool(good or raw["exists"])
    return {
        "changed": changed, "action": "revoked" if changed else "unchanged", "reason": "revoked" if changed else "nothing_to_revoke",
        "msg": f"{len(good)} certificates {'would be' if check_mode else 'are'} revoked and the files removed." if changed else "There is nothing to revoke.",
        "certificate": {}, "revoked": serials,
    }


def _revoked_by_number(issuer: Issuer, text: str, *, check_mode: bool) -> dict[str, t.Any]:
    try:
        serial = int(text.replace(":", ""), 16)
    except ValueError:
        raise InvalidInput(f"serial_number {text!r} is no hexadecimal number.") from None
    changed = True if check_mode else issuer.revoke(serial, None)
    return {
        "changed": changed, "action": "revoked" if changed else "unchanged", "reason": "revoked" if changed else "nothing_to_revoke",
        "msg": f"The certificate {x.serial_text(serial)} {'would be' if check_mode else 'is'} revoked.", "certificate": {},
        "revoked": [x.serial_text(serial)] if changed else [],
    }


def _result(look: _Look, outcome: _Outcome, wish: Wish, *, diff: bool) -> dict[str, t.Any]:
    leaf = outcome.certificates[0] if outcome.certificates else None
    result: dict[str, t.Any] = {
        "changed": outcome.changed, "action": outcome.action, "reason": outcome.reason, "msg": outcome.msg,
        "certificate": _told(leaf, wish), "previous": _told(look.leaf, wish) if outcome.action == "renewed" else {}, "generation": outcome.generation,
        "reload_pending": outcome.reload_pending, "revoked": [],
    }
    warnings = [*wish.warnings, *outcome.warnings]
    if warnings:
        result["warnings"] = warnings
    if diff and outcome.changed:
        path = wish.places["certificate_path"]
        after = _lines(leaf, wish) if not wish.check_mode or outcome.action == "repaired" else f"reason: {outcome.reason}\n{_wanted(wish)}"
        result["diff"] = [{"before_header": path, "after_header": path, "before": _lines(look.leaf, wish), "after": after}]
    return result


def _told(certificate: x509.Certificate | None, wish: Wish) -> dict[str, t.Any]:
    if certificate is None:
        return {}
    _start, end = x.validity(certificate)
    return {
        **x.describe(certificate), "days_left": round((end - wish.renewal.now) / 86400, 1),
        "renew_after": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(x.renewal_time(certificate, wish.renewal))),
    }


def _lines(certificate: x509.Certificate | None, wish: Wish) -> str:
    told = _told(certificate, wish)
    keys = ("subject", "names", "issuer", "serial", "not_before", "not_after", "key", "key_usage", "extended_key_usage", "sha256")
    return "".join(f"{key}: {', '.join(told[key]) if isinstance(told[key], list) else told[key]}\n" for key in keys if told)


def _wanted(wish: Wish) -> str:
    request = wish.request
    lines = [
        f"subject: {x.subject_name(request.subject).rfc4514_string()}", f"names: {', '.join(request.names)}", f"valid_days: {wish.valid_days}",
        f"key: {request.key_type}{f' {request.key_size}' if request.key_size else ''}", f"extended_key_usage: {', '.join(request.extended_key_usage)}",
    ]
    return "\n".join(lines) + "\n"


def _request(args: t.Mapping[str, t.Any], *, exact: bool) -> x.Request:
    subject = []
    for key, value in (args.get("subject") or {}).items():
        for item in value if isinstance(value, list) else [value]:
            if item is None or isinstance(item, (dict, list)) or not str(item).strip():
                raise InvalidInput(f"subject: {key} has no value: leave it out, or give one.")
            subject.append((str(key), str(item)))
    if not subject:
        raise InvalidInput("subject is empty: give at least CN, the name that the certificate stands for.")
    names = tuple(dict.fromkeys(x.normal_name(str(name)) for name in args["subject_alt_name"]))
    kind, size = args["key_type"], args["key_size"]
    if kind == "rsa" and size not in _RSA_SIZES:
        raise InvalidInput(f"key_size {size} is none for RSA: give 2048 to 4096 bits.")
    return x.Request(
        subject=tuple(subject), names=names, key_usage=tuple(args.get("key_usage") or ()), extended_key_usage=tuple(args["extended_key_usage"]),
        key_type=kind, key_size=size if kind == "rsa" else 0, exact=exact)


def _doubts(request: x.Request) -> tuple[str, ...]:
    """Return warnings about requests that are legal and will hurt: OpenSSL refuses a TLS client without digitalSignature or keyAgreement."""
    client = {"clientAuth", "1.3.6.1.5.5.7.3.2"} & set(request.extended_key_usage)
    doubt = "key_usage has neither digitalSignature nor keyAgreement: servers that check it (OpenSSL does) refuse such a client, and TLS 1.3 needs the former."
    return (doubt,) if client and request.key_usage and not {"digitalSignature", "keyAgreement"} & set(request.key_usage) else ()


def _places(args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the options about files for the host's module. Raises InvalidInput for what could never be right."""
    for option in ("certificate_path", "key_path", "ca_path"):
        value = args.get(option)
        if value and not value.startswith("/"):
            raise InvalidInput(f"{option} {value!r} is not absolute: write the whole path on the host.")
    paths = [args[option] for option in ("certificate_path", "key_path", "ca_path") if args.get(option)]
    if len(set(paths)) != len(paths):
        raise InvalidInput("certificate_path, key_path and ca_path must be different files.")
    for option in ("key_mode", "certificate_mode", "directory_mode"):
        if not _MODE.match(args[option]):
            raise InvalidInput(f"{option} {args[option]!r} is no octal mode: write it in quotes, such as '0600'.")
    if int(args["key_mode"], 8) & 0o007:
        raise InvalidInput(f"key_mode {args['key_mode']} lets everybody read the key: give '0600', or '0640' with the agent's group.")
    return {option: args[option] for option in _PLACES if args.get(option) is not None}


def visit(host: Executor, options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Run the host's part. Raises HostFailure with its reason."""
    result = host.execute(_MODULE, options)
    if result.get("failed"):
        words = [str(result.get(name) or "").strip().splitlines()[-1:] for name in ("msg", "module_stderr")]
        said = ": ".join(line[:400] for found in words for line in found)
        raise HostFailure(said or "The host's part failed without a word.", reason=str(result.get("reason") or "host_failure"))
    return result


def _parsed(text: t.Any) -> tuple[x509.Certificate, ...]:
    return x.load_certificates(str(text).encode()) if text else ()


def _text(certificates: t.Iterable[x509.Certificate]) -> str:
    return x.certificate_pem(*certificates).decode()
