# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cert_issue with ansible-playbook: issued, renewed, adopted, repaired, revoked and removed, read by openssl."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

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
    "ec": {}, "ed25519": {"key_type": "ed25519"}, "rsa": {"key_type": "rsa", "key_size": 2048},
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
    for host, target in targets.items():
        result = done.result(host)
        assert (result["action"], result["reason"], result["changed"], result["reload_pending"]) == ("issued", "missing", True, True)
        assert result["certificate"]["serial"] == target.serial()
        assert f"agent-{host}" in json.dumps(result["diff"])
        target.check(authority)
    assert "RSA Public-Key: (2048 bit)" in openssl("rsa", "-pubin", "-text", "-noout", stdin=openssl("pkey", "-in", str(targets["rsa"].key), "-pubout")).replace(
        "Public-Key: (2048 bit)", "RSA Public-Key: (2048 bit)")
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
        "ec": ("san_changed", {"subject_alt_name": ["DNS:b.example.com"]}), "ed25519": ("key_changed", {"key_type": "ec"}),
        "rsa": ("usage_changed", {"extended_key_usage": ["clientAuth", "serverAuth"]}), "names": ("subject_changed", {"subject": {"CN": "other"}}),
    }
    renewed = controller.each(ISSUE, {host: targets[host].options(**change) for host, (_reason, change) in changes.items()}).good()
    for host, (reason, _change) in changes.items():
        assert (renewed.result(host)["action"], renewed.result(host)["reason"]) == ("renewed", reason)
        assert renewed.result(host)["previous"]["sha256"] == done.result(host)["certificate"]["sha256"]
        assert sorted(path.name for path in (targets[host].unit / "generations").iterdir()) == ["1", "2"]
        targets[host].check(authority)

    gone = {host: target.options(state="absent", issuer=None, own_ca=None) for host, target in targets.items()}
    for arguments, changed in ((["--check"], True), ([], True), ([], False)):
        removed = controller.each(ISSUE, gone, arguments=arguments).good()
        assert [removed.result(host)["changed"] for host in targets] == [changed] * len(targets)
    assert all(list((target.directory / "certs").iterdir()) == [] for target in targets.values())
