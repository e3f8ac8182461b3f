# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cert_issue with ansible-playbook: issued, renewed, adopted, repaired, revoked and removed, read by openssl."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from world import OpenBao

from .authority import Authority, openssl
from .controller import Controller

ISSUE = "muster.agents.cert_issue"
PASSPHRASE = "passphrase-of-the-ca-6c1d"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An own CA below a root, its key encrypted."""
    return Authority(tmp_path_factory.mktemp("authority"), PASSPHRASE)


class Target:
    """One host's files, and the options of a certificate there."""

    def __init__(self, directory: Path, issuer: Mapping[str, Any], **changes: Any) -> None:
        self.directory = directory
        self.certificate = directory / "certs" / "agent.crt"
        self.key = directory / "certs" / "agent.key"
        self.ca = directory / "certs" / "ca.crt"
        self.unit = directory / "certs" / ".muster" / "agent.crt"
        self._options = {
            "certificate_path": str(self.certificate), "key_path": str(self.key), "ca_path": str(self.ca),
            "subject": {"C": "US", "O": "KubeAtlas", "CN": f"agent-{directory.name}"}, **issuer, **changes,
        }

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options, changed; None removes one."""
        return {key: value for key, value in {**self._options, **changes}.items() if value is not None}

    def everything(self) -> dict[str, tuple[int, bytes]]:
        """Every file and link with its mode and content."""
        return {
            str(path.relative_to(self.directory)): (path.lstat().st_mode, os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
            for path in sorted(self.directory.rglob("*")) if not path.is_dir() or path.is_symlink()}

    def serial(self) -> str:
        """The serial number as openssl reads it."""
        return openssl("x509", "-in", str(self.certificate), "-noout", "-serial").strip().partition("=")[2]

    def check(self, authority: Authority) -> None:
        """Fail unless openssl finds a pair that belongs together, verifies strictly, and is guarded by its modes."""
        openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(self.ca), str(self.certificate))
        openssl("verify", "-x509_strict", "-CAfile", str(authority.root_file), "-untrusted", str(self.certificate), str(self.certificate))
        of_key = openssl("pkey", "-in", str(self.key), "-pubout")
        assert of_key == openssl("x509", "-in", str(self.certificate), "-noout", "-pubkey")
        assert [path.stat().st_mode & 0o777 for path in (self.key, self.certificate, self.ca)] == [0o600, 0o644, 0o644]
        assert [os.readlink(path) for path in (self.key, self.certificate)] == [f".muster/agent.crt/current/{name}.pem" for name in ("key", "certificate")]
        assert not (self.unit / "stage").exists()


KINDS: dict[str, dict[str, Any]] = {
    "rsa": {"key_type": "rsa", "key_size": 2048},
    "names": {"subject_alt_name": ["DNS:a.example.com", "IP:192.0.2.7", "IP:2001:db8::1", "URI:spiffe://example.com/agent"]},
}


def test_issued_left_alone_renewed_and_removed(controller: Controller, authority: Authority, tmp_path: Path) -> None:
    targets = {name: Target(tmp_path / name, authority.options(), **more) for name, more in KINDS.items()}
    options = {host: target.options() for host, target in targets.items()}
    foretold = controller.each(ISSUE, options, arguments=["--check", "--diff"]).good()
    for host, target in targets.items():
        assert not target.directory.exists()
        assert (foretold.result(host)["action"], foretold.result(host)["reason"], foretold.result(host)["changed"]) == ("issued", "missing", True)

    done = controller.each(ISSUE, options, arguments=["--diff", "-vvvv"]).good()
    assert PASSPHRASE not in done.output + done.events
    assert "PRIVATE KEY" not in done.output + done.events
    # The look came as sources for the host's Python, what was signed by script.
    assert re.findall(r"Using module file \S+", done.output) == []
    for host, target in targets.items():
        result = done.result(host)
        assert (result["action"], result["reason"], result["changed"], result["reload_pending"]) == ("issued", "missing", True, True)
        assert result["certificate"]["serial"] == target.serial()
        assert f"agent-{host}" in json.dumps(result["diff"])
        target.check(authority)
    assert "Public-Key: (2048 bit)" in openssl("x509", "-in", str(targets["rsa"].certificate), "-noout", "-text")
    text = openssl("x509", "-in", str(targets["names"].certificate), "-noout", "-text")
    for word in ("DNS:a.example.com", "IP Address:192.0.2.7", "IP Address:2001:DB8:0:0:0:0:0:1", "URI:spiffe://example.com/agent", "CA:FALSE",
                 "TLS Web Client Authentication", "X509v3 Basic Constraints: critical", "X509v3 Authority Key Identifier"):
        assert word in text, text

    before = {host: target.everything() for host, target in targets.items()}
    again = controller.each(ISSUE, options).good()
    for host, target in targets.items():
        assert (again.result(host)["changed"], again.result(host)["reason"]) == (False, "ok")
        assert target.everything() == before[host]

    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "rsa": ("key_changed", {"key_type": "ed25519"}), "names": ("san_changed", {"subject_alt_name": ["DNS:b.example.com"]}),
    }
    renewed = controller.each(ISSUE, {host: targets[host].options(**change) for host, (_reason, change) in changes.items()}).good()
    for host, (reason, _change) in changes.items():
        assert (renewed.result(host)["action"], renewed.result(host)["reason"]) == ("renewed", reason)
        assert renewed.result(host)["previous"]["sha256"] == done.result(host)["certificate"]["sha256"]
        assert sorted(path.name for path in (targets[host].unit / "generations").iterdir()) == ["1", "2"]
        targets[host].check(authority)

    gone = {host: target.options(state="absent", issuer=None, own_ca=None) for host, target in targets.items()}
    for changed in (True, False):
        removed = controller.each(ISSUE, gone).good()
        assert [removed.result(host)["changed"] for host in targets] == [changed] * len(targets)
    assert all(list((target.directory / "certs").iterdir()) == [] for target in targets.values())


def test_the_guide_s_own_certificate_is_adopted_and_renewed_as_one_unit(controller: Controller, authority: Authority, tmp_path: Path) -> None:
    """KubeAtlas' guide makes it with openssl: RSA 2048, keyEncipherment and dataEncipherment, clientAuth, 365 days."""
    usage = {"key_usage": ["keyEncipherment", "dataEncipherment"], "key_type": "rsa", "key_size": 2048}
    targets = {name: Target(tmp_path / name, authority.options(), **usage, include_chain=False) for name in ("kept", "due", "left-open")}
    for name, target in targets.items():
        authority.by_hand(target.directory / "certs", f"agent-{name}", section="guide", days=20 if name == "due" else 365)
        for path, mode in ((target.key, 0o600 if name != "left-open" else 0o644), (target.certificate, 0o644), (target.ca, 0o644)):
            path.chmod(mode)
    before = targets["kept"].everything()
    settings = {host: target.options(renew_days=30) for host, target in targets.items()}
    done = controller.each(ISSUE, settings).good()
    assert [(done.result(host)["action"], done.result(host)["reason"]) for host in targets] == [
        ("unchanged", "ok"), ("renewed", "expires_soon"), ("repaired", "attributes")]
    assert targets["kept"].everything() == before
    assert targets["left-open"].key.stat().st_mode & 0o777 == 0o600
    assert "digitalSignature" in done.result("kept")["warnings"][0]
    due = targets["due"]
    assert openssl("x509", "-in", str(due.certificate), "-noout", "-subject", "-nameopt", "compat").strip() == "subject=/C=US/O=KubeAtlas/CN=agent-due"
    assert "Key Encipherment, Data Encipherment" in openssl("x509", "-in", str(due.certificate), "-noout", "-ext", "keyUsage")
    assert sorted(path.name for path in (due.unit / "generations").iterdir()) == ["1", "2"]
    again = controller.each(ISSUE, settings).good()
    assert [again.result(host)["changed"] for host in targets] == [False] * 3


@pytest.mark.parametrize("point", [
    pytest.param("after_key", marks=pytest.mark.thorough), "after_sign", pytest.param("before_install", marks=pytest.mark.thorough),
    pytest.param("after_install", marks=pytest.mark.thorough)])
def test_a_controller_that_dies_is_followed_by_one_that_finishes(controller: Controller, authority: Authority, tmp_path: Path, point: str) -> None:
    target = Target(tmp_path / point, authority.options())
    options = {"host": target.options()}
    issued = len(authority.issued())
    assert controller.each(ISSUE, options, environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=kill"}).code != 0
    done = controller.each(ISSUE, options).good()
    assert done.result("host")["changed"] == (point != "after_install")
    target.check(authority)
    assert len(authority.issued()) == issued + 1


@pytest.fixture(scope="module")
def engine(bao: OpenBao) -> str:
    """A PKI engine at the session's OpenBao."""
    role = {"allow_any_name": True, "enforce_hostnames": False, "key_type": "any", "organization": "KubeAtlas", "country": "US", "max_ttl": "9000h"}
    bao.enable_pki("pki-cert-issue", "Agents", agent=role)
    return "pki-cert-issue"


def test_vault_issues_and_revokes_without_a_needless_request(controller: Controller, bao: OpenBao, engine: str, tmp_path: Path) -> None:
    login = {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)}
    target = Target(tmp_path / "vault", {"issuer": "vault_pki", "vault_pki": {"mount": engine, "role": "agent"}, "vault": login})
    options = {"host": target.options()}
    bao.reset_mutations()
    done = controller.each(ISSUE, options, arguments=["-vvvv", "--diff"]).good()
    assert done.result("host")["action"] == "issued"
    assert bao.root_token not in done.output + done.events
    openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(target.ca), str(target.certificate))
    assert not controller.each(ISSUE, options).good().result("host")["changed"]
    assert bao.mutating_requests() == [f"update {engine}/sign/agent"]
    serial = target.serial()
    gone = controller.each(ISSUE, {"host": target.options(state="revoked")}).good().result("host")
    assert gone["revoked"] == [serial]
    assert bao.mutating_requests() == [f"update {engine}/sign/agent", f"update {engine}/revoke"]
    assert list((target.directory / "certs").iterdir()) == []


def test_what_is_wrong_is_said_in_one_sentence(controller: Controller, authority: Authority, tmp_path: Path) -> None:
    ours = authority.options()["own_ca"]
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "wrong-passphrase": ("ca_passphrase", {"own_ca": {**ours, "passphrase_file": None, "passphrase": "passphrase-that-is-wrong-77"}}),
        "no-such-owner": ("unknown_owner", {"owner": "nobody-of-that-name"}), "a-file-in-the-way": ("not_writable", {}),
        "no-ca-there": ("invalid_input", {"own_ca": {**ours, "certificate": "/nonexistent"}}),
    }
    targets = {name: Target(tmp_path / name, authority.options(), **{
        key: {inner: given for inner, given in value.items() if given is not None} if isinstance(value, dict) else value
        for key, value in changes.items()}) for name, (_reason, changes) in cases.items()}
    targets["a-file-in-the-way"].directory.write_text("")
    failed = controller.each(ISSUE, {name: target.options() for name, target in targets.items()}, arguments=["-vvvv"])
    for name, (reason, _changes) in cases.items():
        result = failed.result(name)
        assert (result["failed"], result["reason"]) == (True, reason), result
        assert result["msg"].endswith(".")
        assert not targets[name].certificate.exists()
    for secret in (PASSPHRASE, "passphrase-that-is-wrong-77"):
        assert secret not in failed.output + failed.events
