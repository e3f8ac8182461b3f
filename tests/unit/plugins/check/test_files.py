# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificate files of every kind, good and bad, with their keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, pkcs12

from ansible_collections.muster.agents.plugins.module_utils import _certificate_files, _tls_probe
from ansible_collections.muster.agents.plugins.module_utils._certificate_files import PATTERNS, FileSource, Reading, expand, read
from ansible_collections.muster.agents.plugins.plugin_utils import _certificate_check
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput

from .faces import Authority, Certified, checked, name, openssl, pem, resigned

ROOT = Authority("Root")
MADE = Authority("Middle", ROOT).issue("agent-7", usage=x509.OID_CLIENT_AUTH)


@pytest.fixture(autouse=True)
def memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller's memory for each test."""
    monkeypatch.setattr(_certificate_check, "state_directory", lambda _part: str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def roots(tmp_path: Path) -> str:
    path = tmp_path / "roots.pem"
    path.write_bytes(pem(ROOT.certificate))
    return str(path)


def judged(path: Path | str, roots: str, **options: Any) -> dict[str, Any]:
    """The result for one file."""
    common = {key: options.pop(key) for key in ("passphrase", "intermediates", "ignore") if key in options}
    result: dict[str, Any] = checked(files=[{"path": str(path), **options}], ca_certs=[roots], **common)["results"][0]
    return result


def test_pem_with_chain_der_and_pkcs12_are_the_same_certificate(tmp_path: Path, roots: str) -> None:
    chain, _key = MADE.write(tmp_path, "agent")
    der, bundle, protected = tmp_path / "agent.der", tmp_path / "agent.p12", tmp_path / "locked.pfx"
    der.write_bytes(MADE.der)
    leaf = x509.load_der_x509_certificate(MADE.der)
    bundle.write_bytes(pkcs12.serialize_key_and_certificates(b"agent", MADE.key, leaf, list(MADE.chain), NoEncryption()))
    protected.write_bytes(pkcs12.serialize_key_and_certificates(b"agent", MADE.key, leaf, list(MADE.chain), BestAvailableEncryption(b"open")))
    found = [judged(chain, roots), judged(bundle, roots), judged(protected, roots, passphrase="open"), judged(der, roots)]
    assert [item["verdict"] for item in found] == ["ok", "ok", "ok", "critical"]
    assert found[3]["reason"] == "missing_issuer"
    assert len({item["fingerprint_sha256"] for item in found}) == 1
    assert [item["chain_depth"] for item in found] == [2, 2, 2, 1]
    assert [item["key_match"] for item in found] == [None, True, True, None]
    assert judged(protected, roots)["reason"] == "wrong_passphrase"
    assert judged(protected, roots, passphrase="shut")["reason"] == "wrong_passphrase"


def test_a_missing_intermediate_is_told_from_an_unknown_ca(tmp_path: Path, roots: str) -> None:
    leaf, middle = tmp_path / "leaf.pem", tmp_path / "middle.pem"
    leaf.write_bytes(Certified(MADE.der, MADE.key).pem)
    middle.write_bytes(pem(*MADE.chain))
    assert judged(leaf, roots)["reason"] == "missing_issuer"
    found = judged(leaf, roots, intermediates=[str(middle)])
    assert (found["reason"], found["missing_intermediate"], found["chain_valid"]) == ("missing_intermediate", True, False)
    assert judged(leaf, roots, check_chain=False)["verdict"] == "ok"
    assert judged(leaf, roots, ignore=["missing_issuer"])["verdict"] == "ok"
    # An intermediate CA that is trusted by the operator is an end of the way.
    assert judged(leaf, str(middle))["verdict"] == "ok"


def test_purpose_and_host_name_of_a_file_are_checked_when_asked(tmp_path: Path, roots: str) -> None:
    path, _key = MADE.write(tmp_path, "agent")
    assert judged(path, roots, purpose="client", hostname="agent-7")["verdict"] == "ok"
    assert judged(path, roots, purpose="server")["reason"] == "wrong_purpose"
    assert judged(path, roots, hostname="agent-8")["reason"] == "wrong_host"


def test_a_pin_is_a_certificate_or_a_key(tmp_path: Path, roots: str) -> None:
    path, _key = MADE.write(tmp_path, "agent")
    found = judged(path, roots)
    for pin in (found["fingerprint_sha256"], found["fingerprint_sha256"].replace(":", "").lower(), f"sha256//{found['fingerprint_spki_sha256']}"):
        assert judged(path, roots, pin_sha256=pin)["pin_match"] is True
    other = judged(path, roots, pin_sha256="ab" * 32)
    assert (other["verdict"], other["reason"], other["pin_match"]) == ("critical", "pin_mismatch", False)
    with pytest.raises(InvalidInput, match="pin_sha256"):
        judged(path, roots, pin_sha256="abc")


KEYS = {
    "its own": ("match", None), "of another": ("key_mismatch", "critical"), "locked": ("key_encrypted", "warning"), "gone": ("key_missing", "critical"),
    "garbage": ("key_unreadable", "critical"), "a certificate": ("key_unreadable", "critical"),
}


@pytest.mark.parametrize("library", [True, False], ids=["cryptography", "standard library"])
@pytest.mark.parametrize("case", KEYS)
def test_a_key_belongs_to_its_certificate_or_says_why_not(case: str, library: bool, tmp_path: Path, roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_certificate_files, "HAS_CRYPTOGRAPHY", library)
    path, key = MADE.write(tmp_path, "agent")
    if case == "of another":
        _other, key = ROOT.issue("other").write(tmp_path, "other")
    elif case == "locked":
        _same, key = MADE.write(tmp_path, "locked", password=b"open")
    elif case == "gone":
        key = tmp_path / "gone"
    elif case == "garbage":
        key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif case == "a certificate":
        key = path
    reason, severity = KEYS[case]
    found = judged(path, roots, key=str(key))
    assert found["verdict"] == (severity or "ok"), found["problems"]
    assert found["key_match"] is {"its own": True, "of another": False}.get(case)
    if severity:
        assert [problem["reason"] for problem in found["problems"]] == [reason]
    if case == "locked":
        assert judged(path, roots, key=str(key), passphrase="open")["key_match"] is True
        assert judged(path, roots, key=str(key), passphrase="shut")["reason"] == "key_unreadable"


def test_a_weak_key_is_compared_without_the_library_too(tmp_path: Path, roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_certificate_files, "HAS_CRYPTOGRAPHY", False)
    path, key = ROOT.issue("weak", key="rsa1024").write(tmp_path, "weak")
    assert judged(path, roots, key=str(key))["key_match"] is True


def der_key(tmp_path: Path) -> Path:
    path = tmp_path / "key.der"
    path.write_bytes(MADE.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    return path


def test_a_key_in_der_needs_the_library_and_says_so(tmp_path: Path, roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _key = MADE.write(tmp_path, "agent")
    assert judged(path, roots, key=str(der_key(tmp_path)))["key_match"] is True
    monkeypatch.setattr(_certificate_files, "HAS_CRYPTOGRAPHY", False)
    assert judged(path, roots, key=str(der_key(tmp_path)))["reason"] == "key_not_compared"


def bad_files() -> dict[str, tuple[str, bytes]]:
    block = Certified(MADE.der, None).pem
    return {
        "empty": ("file_empty", b""), "blank": ("file_empty", b"\n \n"), "cut short": ("damaged", block[:200]),
        "binary": ("no_certificate", bytes(range(256)) * 16), "binary with a byte of DER": ("damaged", b"\x30\xff" + bytes(range(256)) * 16),
        "text": ("no_certificate", b"hello\n"), "key alone": ("no_certificate", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        "10 MB": ("too_large", b"A" * 10_000_000), "bad base64": ("damaged", block.replace(block[60:64], b"!!!!")),
        "cut DER": ("damaged", MADE.der[:100]), "other DER": ("malformed", b"\x30\x14" + b"\x04\x12" + b"x" * 18),
        "too many": ("too_many", b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n" * 1001),
    }


@pytest.mark.parametrize("case", bad_files())
def test_a_bad_file_is_named_with_its_reason(case: str, tmp_path: Path, roots: str) -> None:
    reason, data = bad_files()[case]
    path = tmp_path / "bad.pem"
    path.write_bytes(data)
    found = judged(path, roots)
    assert (found["verdict"], found["reason"]) == ("critical" if reason == "malformed" else "unreachable", reason)
    assert found["not_after"] == ""
    assert len(found["msg"]) < 400


def test_missing_files_directories_and_odd_ones_are_unreachable(tmp_path: Path, roots: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        assert judged(path, roots)["reason"] == "file_missing"


def test_a_thousand_certificates_are_read(tmp_path: Path, roots: str) -> None:
    path = tmp_path / "bundle.pem"
    path.write_bytes(MADE.pem + pem(*MADE.chain) * 998)
    found = judged(path, roots)
    assert (found["verdict"], found["chain_depth"], len(found["chain"])) == ("ok", 1000, 1000)


def test_a_subject_that_is_no_utf8_leaves_the_rest_readable(tmp_path: Path, roots: str) -> None:
    made = resigned(ROOT.issue("agent", subject=name("agent", o="XXXX")), lambda data: data.replace(b"XXXX", b"\xff\xfe\xe9\x80"), ROOT.key)
    path, _key = made.write(tmp_path, "odd")
    found = judged(path, roots)
    assert (found["verdict"], found["reason"], found["subject_alt_names"]) == ("warning", "malformed_name", ["agent"])


def test_openssls_trusted_certificates_and_headers_are_read(tmp_path: Path, roots: str) -> None:
    path = tmp_path / "agent.pem"
    path.write_bytes(MADE.pem)
    trusted, text = tmp_path / "trusted.pem", tmp_path / "text.pem"
    openssl("x509", "-in", str(path), "-trustout", "-addtrust", "clientAuth", "-out", str(trusted))
    openssl("x509", "-in", str(path), "-text", "-out", str(text))
    assert {read(FileSource(str(one))).chain[0] for one in (path, trusted, text)} == {MADE.der}


def test_directories_give_their_certificates_and_pass_over_the_rest(tmp_path: Path, roots: str) -> None:
    for folder, label in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        MADE.write(tmp_path / folder, label)
    (tmp_path / "a" / "key.pem").write_bytes((tmp_path / "a" / "one.key").read_bytes())
    (tmp_path / "a" / "bad.crt").write_bytes(MADE.pem[:99])
    report = checked(directories=[str(tmp_path / "[ab]"), str(tmp_path / "nowhere")], ca_certs=[roots])
    told = {item["item"].removeprefix(f"{tmp_path}/"): item["reason"] for item in report["results"]}
    assert told == {"a/bad.crt": "damaged", "a/one.crt": "ok", "b/two.crt": "ok", "nowhere": "file_missing"}
    assert [source.path for source in expand([str(tmp_path / "a")], ["*.key"])] == [str(tmp_path / "a" / "one.key")]
    assert "*.pem" in PATTERNS


def test_a_reading_survives_its_way_through_json(tmp_path: Path) -> None:
    path, key = MADE.write(tmp_path, "agent")
    found = read(FileSource(str(path), key_path=str(key)))
    assert Reading.load(json.loads(json.dumps(found.dump()))) == found


@pytest.mark.parametrize("module", [_certificate_files, _tls_probe])
def test_the_hosts_half_needs_the_standard_library_alone(module: Any) -> None:
    text = Path(str(module.__file__)).read_text()
    code = f"import sys, types; sys.modules['cryptography'] = None; m = sys.modules['m'] = types.ModuleType('m'); exec({text!r}, m.__dict__)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
