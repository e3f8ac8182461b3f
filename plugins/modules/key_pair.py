#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make a key on the host and put its certificate in place; documented below."""

from __future__ import annotations

DOCUMENTATION = r"""
module: key_pair
short_description: A key that stays on its host, and the certificate beside it
version_added: 1.0.0
author:
  - muster.agents contributors (@muster-agents)
description:
  - The part of M(muster.agents.cert_issue) that runs on the host. It judges the pair that lies there, makes a new key with a signing request when that is due,
    and puts key, certificate and CA in place with one rename.
  - A private key never leaves the host. What is returned is public, namely certificates and the signing request.
  - Use it yourself to see what a host has with O(operation=look), and to say that a reload has happened with O(operation=settle).
requirements:
  - Python 3.9 on the host.
  - cryptography 3.3 or later on the host, for V(look), V(keep) and V(install).
attributes:
  check_mode:
    description: Can run in check mode and tells what would happen without changing the host.
    support: full
  diff_mode:
    description: Returns what changed when run with C(--diff).
    support: none
  idempotent:
    description: Running it again with the same options changes nothing further.
    support: full
options:
  operation:
    description:
      - V(look) reads, and with O(request) judges. When a new certificate is due it makes a key and a signing request,
        unless those of an earlier run wait still.
      - V(keep) keeps O(certificate) beside the key that waits for it, until it is installed.
      - V(install) puts O(certificate) in place, with the key on this host that it belongs to.
      - V(settle) notes that whoever uses the files has read the new ones.
      - V(remove) takes key, certificate, CA and all generations away.
    type: str
    choices: [look, keep, install, settle, remove]
    default: look
  certificate_path:
    description: Where the certificate lies.
    type: str
    required: true
  key_path:
    description: Where its key lies.
    type: str
    required: true
  ca_path:
    description: Where the certificates of its CA lie, if anybody reads them.
    type: str
  owner:
    description: User who owns the files, by name or number.
    type: str
    default: root
  group:
    description: Group of the files, by name or number.
    type: str
    default: root
  key_mode:
    description: Mode of the key's file, in octal.
    type: str
    default: '0600'
  certificate_mode:
    description: Mode of the other files, in octal.
    type: str
    default: '0644'
  directory_mode:
    description: Mode of directories that have to be made, in octal.
    type: str
    default: '0755'
  request:
    description:
      - What the certificate shall say, as M(muster.agents.cert_issue) makes it of its options, with C(subject), C(names), C(key_usage),
        C(extended_key_usage), C(key_type), C(key_size) and C(exact). Without it nothing is judged.
    type: dict
  issuers:
    description: Certificates (PEM) that the certificate must be issued by. Without them any issuer will do.
    type: str
    default: ''
  renewal:
    description: When a certificate is due, with C(now), C(days), C(share) and C(early).
    type: dict
    default: {}
  reason:
    description: Why a new certificate is wanted although the old one is in order, such as V(revoked). With it, a key is always made.
    type: str
    default: ''
  certificate:
    description: The certificate to keep or install (PEM), followed by intermediate ones.
    type: str
    default: ''
  ca:
    description: The content of O(ca_path) (PEM).
    type: str
    default: ''
  expect:
    description: RV(token) of the look that an installation rests on. When somebody else has changed something since, nothing is done.
    type: str
    default: ''
  abandon:
    description: With O(operation=install), also throw away a key that waits with its certificate for another time.
    type: bool
    default: false
notes:
  - Needs root. Set C(become) where the connection is not root's.
seealso:
  - module: muster.agents.cert_issue
"""

EXAMPLES = r"""
- name: See which certificates a host holds
  muster.agents.key_pair:
    certificate_path: /etc/kubeatlas/certs/agent.crt
    key_path: /etc/kubeatlas/certs/agent.key
  become: true
  register: pair

- name: Reload the agent when its files have changed, and remember that it happened
  when: pair.reload_pending > 0
  block:
    - name: Reload the agent
      ansible.builtin.systemd_service:
        name: kubeatlas-agent.service
        state: reloaded
      become: true

    - name: Note the reload
      muster.agents.key_pair:
        operation: settle
        certificate_path: /etc/kubeatlas/certs/agent.crt
        key_path: /etc/kubeatlas/certs/agent.key
      become: true
"""

RETURN = r"""
reason:
  description:
    - V(ok), or why a new certificate is due, among V(missing), V(unreadable), V(key_missing), V(key_unreadable), V(key_mismatch), V(issuer_changed),
      V(expired), V(not_yet_valid), V(weak_signature), V(subject_changed), V(san_changed), V(usage_changed), V(key_changed), V(expires_soon) and O(reason).
    - On failure what is wrong, among V(missing_library), V(not_writable), V(disk_full), V(locked), V(changed), V(unsafe), V(unknown_owner),
      V(invalid_input) and V(key_mismatch).
  type: str
  returned: always
  sample: expires_soon
detail:
  description: The same in words.
  type: str
  returned: for O(operation=look)
  sample: it expires at 2026-03-01T10:00:00Z and was due at 2025-11-29T18:00:00Z
certificate:
  description: The readable certificates (PEM) at O(certificate_path), empty for none.
  type: str
  returned: for O(operation=look)
  sample: "-----BEGIN CERTIFICATE-----..."
ca:
  description: The readable certificates (PEM) at O(ca_path), empty for none.
  type: str
  returned: for O(operation=look)
  sample: "-----BEGIN CERTIFICATE-----..."
held:
  description: Every certificate (PEM) that this host has a key for here, that of the generation before included.
  type: list
  elements: str
  returned: for O(operation=look)
  sample: ["-----BEGIN CERTIFICATE-----..."]
request:
  description: The signing request (PEM) of the key that waits for a certificate, empty when none is due and in check mode.
  type: str
  returned: for O(operation=look)
  sample: "-----BEGIN CERTIFICATE REQUEST-----..."
waiting:
  description: Certificates (PEM) that were kept beside a key which is not in use yet, empty for none.
  type: str
  returned: for O(operation=look)
  sample: ''
recovered:
  description: Certificates (PEM) that an interrupted run had brought but not put in place, and that are in order. Empty for none.
  type: str
  returned: for O(operation=look)
  sample: ''
repairs:
  description: What is to be put right beside the certificate itself, namely V(links), V(attributes) and V(leftovers).
  type: list
  elements: str
  returned: for O(operation=look)
  sample: [attributes]
generation:
  description: Number of the generation in use, V(0) for plain files.
  type: int
  returned: for O(operation=look) and O(operation=install)
  sample: 2
reload_pending:
  description: Since when whoever uses the files has not been told of new ones, in seconds since the epoch; V(0) when that is settled.
  type: int
  returned: for O(operation=look)
  sample: 0
exists:
  description: Whether there is anything that O(operation=remove) would take away.
  type: bool
  returned: for O(operation=look)
  sample: true
token:
  description: A digest of all that the look saw.
  type: str
  returned: for O(operation=look)
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
time:
  description: The host's clock in seconds since the epoch.
  type: float
  returned: for O(operation=look)
  sample: 1767225600.5
"""

import errno
import grp
import os
import pwd
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.module_utils._pair_store import Attributes, Contents, Found, PairStore, Places, StoreProblem

_WORDS = {
    "locked": "{place} is locked by another run on this host: let it finish, then run again.",
    "changed": "{place} was changed by another run since the look: run again.",
    "unsafe": "{place} is a link, or somebody but root can write there: remove it, or give paths in a directory that only root can write.",
}


def main() -> None:
    """Wire options, store and result."""
    module = AnsibleModule(
        argument_spec={
            "operation": {"type": "str", "choices": ["look", "keep", "install", "settle", "remove"], "default": "look"},
            "certificate_path": {"type": "str", "required": True},
            "key_path": {"type": "str", "required": True, "no_log": False},
            "ca_path": {"type": "str"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "key_mode": {"type": "str", "default": "0600", "no_log": False},
            "certificate_mode": {"type": "str", "default": "0644"},
            "directory_mode": {"type": "str", "default": "0755"},
            "request": {"type": "dict"},
            "issuers": {"type": "str", "default": ""},
            "renewal": {"type": "dict", "default": {}},
            "reason": {"type": "str", "default": ""},
            "certificate": {"type": "str", "default": ""},
            "ca": {"type": "str", "default": ""},
            "expect": {"type": "str", "default": ""},
            "abandon": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if module.params["operation"] in ("look", "keep", "install") and x.IMPORT_ERROR is not None:
        module.fail_json(
            msg="The Python library cryptography is needed on the host, where the key is made: install the package python3-cryptography there, "
            "or the library for the Python that ansible_python_interpreter names.", reason="missing_library", exception=x.IMPORT_ERROR)
    operations = {"look": _look, "keep": _keep, "install": _install, "settle": _settle, "remove": _remove}
    try:
        result = operations[module.params["operation"]](module, _store(module))
    except x.CertificateError as error:
        module.fail_json(msg=f"{module.params['certificate_path']}: {error.msg}.", reason=error.reason)
    except StoreProblem as error:
        module.fail_json(msg=_WORDS[error.reason].format(place=error.place), reason=error.reason)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = error.filename or module.params["certificate_path"]
        what = "is on a disk that is full: make room" if full else f"cannot be read or written ({error.strerror}): use become: true, and check the path"
        module.fail_json(msg=f"{place} {what}, then run again.", reason="disk_full" if full else "not_writable")
    module.exit_json(**{"changed": False, "reason": "ok", **result})


def _look(module: AnsibleModule, store: PairStore) -> dict[str, t.Any]:
    found = store.look()
    verdict, recovered, request = x.Verdict("ok", "nothing was asked for"), b"", b""
    if module.params["request"] is not None:
        wanted = x.Request.load(module.params["request"])
        verdict, recovered = _judged(module, found, wanted)
        if verdict.reason != "ok" and not recovered and not module.check_mode:
            request = _staged(store, found, wanted)
            found = store.look()
    return {
        "reason": verdict.reason, "detail": verdict.detail, "certificate": _readable(found.fixed.certificate), "ca": _readable(found.fixed.ca),
        "held": _held(found), "waiting": _readable(found.waiting),
        "request": request.decode(), "recovered": recovered.decode(), "repairs": _repairs(found), "generation": found.current,
        "reload_pending": found.reload_pending, "token": found.token(), "time": time.time(), "changed": bool(request),
        "exists": any(value is not None for value in (found.fixed.certificate, found.fixed.key, found.fixed.ca)) or bool(found.generations)
        or found.stage.key is not None,
    }


def _judged(module: AnsibleModule, found: Found, wanted: x.Request) -> tuple[x.Verdict, bytes]:
    """Return the verdict on the pair in use, and the certificates of a better one that an interrupted run left."""
    params = module.params
    issuers = x.load_certificates(params["issuers"].encode()) if params["issuers"] else ()
    renewal = x.Renewal(**{"now": time.time(), **params["renewal"]})
    verdict = x.judge(x.Pair(found.fixed.certificate, found.fixed.key), wanted, issuers, renewal)
    if params["reason"]:
        return x.Verdict(params["reason"], "a new one is wanted", verdict.certificates), b""
    if verdict.reason == "ok":
        return verdict, b""
    for number in (found.newest, found.current):
        if number:
            kept = found.generations[number]
            other = x.judge(x.Pair(kept.certificate, kept.key), wanted, issuers, renewal)
            if other.reason == "ok":
                return verdict, x.certificate_pem(*other.certificates)
    return verdict, b""


def _staged(store: PairStore, found: Found, wanted: x.Request) -> bytes:
    """Return the signing request of the key that waits, or of a new one; either is on disk."""
    key, request = found.stage.key, found.stage.certificate
    if key is not None and request is not None and x.request_fits(request, key, wanted):
        return request
    key, request = x.new_key_and_request(wanted)
    store.stage(key, request)
    return request


def _keep(module: AnsibleModule, store: PairStore) -> dict[str, t.Any]:
    certificates = x.load_certificates(module.params["certificate"].encode())
    found, kept = store.look(), x.certificate_pem(*certificates)
    if found.stage.key is None or not x.key_matches(certificates[0], found.stage.key):
        raise x.CertificateError("key_mismatch", "no key that waits on this host belongs to the certificate")
    if found.waiting == kept:
        return {"changed": False}
    if not module.check_mode:
        store.keep(kept)
    return {"changed": True}


def _install(module: AnsibleModule, store: PairStore) -> dict[str, t.Any]:
    certificates = x.load_certificates(module.params["certificate"].encode())
    ca = module.params["ca"].encode() or None
    found = store.look()
    keys = [found.stage.key, found.fixed.key, *(found.generations[number].key for number in sorted(found.generations, reverse=True))]
    key = next((key for key in keys if key is not None and x.key_matches(certificates[0], key)), None)
    if key is None:
        raise x.CertificateError("key_mismatch", "no key on this host belongs to the new certificate")
    if module.check_mode:
        return {"changed": True, "generation": found.current}
    contents = _as_it_lies(found.fixed, Contents(certificate=x.certificate_pem(*certificates), key=key, ca=ca if module.params["ca_path"] else None))
    if contents == found.fixed and not found.current:
        # A plain pair that is as it shall be stays one.
        store.correct(abandon=module.params["abandon"])
        return {"changed": True, "generation": 0}
    return {"changed": True, "generation": store.install(contents, module.params["expect"] or found.token(), abandon=module.params["abandon"])}


def _as_it_lies(fixed: Contents, contents: Contents) -> Contents:
    """Return *fixed* when it says the same as *contents*: what else is in the files, such as words before a certificate, makes no difference."""
    same = all(_readable(ours) == _readable(theirs) for ours, theirs in ((fixed.certificate, contents.certificate), (fixed.ca, contents.ca)))
    return fixed if same and fixed.key == contents.key else contents


def _settle(module: AnsibleModule, store: PairStore) -> dict[str, t.Any]:
    return {"changed": store.look().reload_pending > 0 if module.check_mode else store.settle()}


def _remove(module: AnsibleModule, store: PairStore) -> dict[str, t.Any]:
    if module.check_mode:
        found = store.look()
        return {"changed": found.fixed != Contents() or bool(found.generations) or found.stage != Contents()}
    return {"changed": store.remove()}


def _store(module: AnsibleModule) -> PairStore:
    params = module.params
    for option in ("certificate_path", "key_path", "ca_path"):
        if params[option] and not os.path.isabs(params[option]):
            raise x.CertificateError("invalid_input", f"{option} {params[option]!r} is not absolute")

    def label(path: str, stands_for: str) -> None:
        if module.selinux_enabled():
            module.set_context_if_different(path, module.selinux_default_context(stands_for), False)

    modes = {name: int(params[name], 8) for name in ("key_mode", "certificate_mode", "directory_mode")}
    places = Places(*(os.path.normpath(params[option]) if params[option] else "" for option in ("certificate_path", "key_path", "ca_path")))
    return PairStore(places, Attributes(_user(module, params["owner"]), _group(module, params["group"]), **modes), label)


def _user(module: AnsibleModule, name: str) -> int:
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        module.fail_json(msg=f"There is no user {name} on the host: create it first.", reason="unknown_owner")


def _group(module: AnsibleModule, name: str) -> int:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        module.fail_json(msg=f"There is no group {name} on the host: create it first.", reason="unknown_owner")


def _readable(content: bytes | None) -> str:
    try:
        return x.certificate_pem(*x.load_certificates(content or b"")).decode()
    except x.CertificateError:
        return ""


def _held(found: Found) -> list[str]:
    """Return the leaf of each pair, once."""
    held = []
    for contents in (found.fixed, *(found.generations[number] for number in sorted(found.generations, reverse=True))):
        text = _readable(contents.certificate)
        leaf = text[: text.find("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----\n")] if text else ""
        if leaf and leaf not in held:
            held.append(leaf)
    return held


def _repairs(found: Found) -> list[str]:
    # Plain files are nobody's fault: they stay until there is a new certificate.
    links = bool(found.generations) and not found.linked
    return [name for name, wanted in (("links", links), ("attributes", bool(found.astray)), ("leftovers", bool(found.leftovers))) if wanted]


if __name__ == "__main__":
    main()
