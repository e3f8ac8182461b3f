# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host tries its own pair: what OpenSSL and a server over mutual TLS say of it, with a reason for each way of being wrong."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from sockets import Sayer, answer_bytes

from ansible_collections.muster.agents.plugins.module_utils._local_probe import Check
from ansible_collections.muster.agents.plugins.module_utils._pair_probe import PairFiles, check_pair
from ansible_collections.muster.agents.plugins.modules import agent_probe
from world.agent_pairs import Issuer, Pair, issue
from world.ca import CertificateAuthority


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(ca: CertificateAuthority) -> Pair:
    return issue("agent-a-1", Issuer.of(ca))


@pytest.fixture
def files(pair: Pair, tmp_path: Path) -> PairFiles:
    cert, key = pair.write(tmp_path)
    return PairFiles(str(cert), str(key))


@pytest.fixture(params=["1.2", "1.3"])
def server(request: pytest.FixtureRequest, ca: CertificateAuthority) -> Iterator[Sayer]:
    """A server that insists on certificates of our CA; how it refuses others depends on the version of TLS."""
    own = ca.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)
    context.load_verify_locations(ca.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3
    with Sayer(tls=context) as sayer:
        yield sayer


def pair_check(files: PairFiles) -> Check:
    """The verdict on files and key."""
    (check,) = check_pair(files)
    return check


def test_key_that_belongs_to_its_certificate(files: PairFiles) -> None:
    check = pair_check(files)
    assert (check.name, check.ok, check.reason) == ("pair", True, "ok")


def test_chain_after_the_certificate_does_no_harm(files: PairFiles, ca: CertificateAuthority) -> None:
    with Path(files.certificate).open("a") as stream:
        stream.write(ca.ca_file.read_text())
    assert pair_check(files).ok


@pytest.mark.parametrize(("part", "content", "reason"), [
    ("certificate", None, "certificate_missing"),
    ("key", None, "key_missing"),
    ("certificate", "no pem", "certificate_unreadable"),
    ("certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate_unreadable"),
    ("key", "no pem", "key_unreadable"),
    ("key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "key_unreadable"),
    ("key", "another", "key_mismatch"),
    ("key", "encrypted", "key_unreadable"),
])
def test_each_way_of_being_no_pair_has_its_reason(files: PairFiles, pair: Pair, part: str, content: str | None, reason: str) -> None:
    path = Path(getattr(files, part))
    if content is None:
        path.unlink()
    elif content == "another":
        path.write_text(issue("x").key)
    elif content == "encrypted":
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
        path.write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")))
    else:
        path.write_text(content)
    check = pair_check(files)
    assert (check.ok, check.final, check.reason) == (False, True, reason)
    assert str(path) in check.detail


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_that_others_may_use_is_not_good(files: PairFiles, mode: int) -> None:
    Path(files.key).chmod(mode)
    check = pair_check(files)
    assert check.reason == "key_mode"
    assert f"{mode:04o}" in check.detail


def test_server_sees_the_certificate(files: PairFiles, server: Sayer, ca: CertificateAuthority) -> None:
    pair, mtls = check_pair(PairFiles(files.certificate, files.key, f"{server.url}/health?x=1", ca.ca_file.read_text()))
    assert (pair.ok, mtls.ok, mtls.name) == (True, True, "mtls")
    assert server.peers == ["agent-a-1"]
    assert server.requests[0].startswith(b"GET /health?x=1 HTTP/1.1\r\n")


def test_server_that_does_not_know_the_ca_refuses(server: Sayer, ca: CertificateAuthority, tmp_path: Path) -> None:
    cert, key = issue("agent-a-1").write(tmp_path)
    mtls = check_pair(PairFiles(str(cert), str(key), server.url, ca.ca_file.read_text()))[1]
    assert (mtls.ok, mtls.reason) == (False, "tls_refused")
    assert server.requests == []


@pytest.mark.parametrize(("status", "reason"), [
    ("200 OK", "ok"), ("404 Not Found", "ok"), ("302 Found", "ok"), ("401 Unauthorized", "certificate_refused"), ("403 Forbidden", "certificate_refused"),
    ("496 SSL Certificate Required", "certificate_refused"),
])
def test_status_says_whether_the_certificate_is_welcome(
    files: PairFiles, server: Sayer, ca: CertificateAuthority, status: str, reason: str) -> None:
    server.answer = answer_bytes(b"", status, "Location: https://elsewhere.example.com/\r\n")
    assert check_pair(PairFiles(files.certificate, files.key, server.url, ca.ca_file.read_text()))[1].reason == reason
    assert len(server.requests) == 1


def test_server_that_is_not_trusted_is_not_asked(files: PairFiles, server: Sayer) -> None:
    for ca_text in (issue("other CA", authority=True).cert, "", "no pem"):
        assert check_pair(PairFiles(files.certificate, files.key, server.url, ca_text))[1].reason == "server_untrusted"
    assert server.requests == []


def test_server_that_is_away_or_speaks_no_tls(files: PairFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert check_pair(PairFiles(files.certificate, files.key, f"https://127.0.0.1:{port}"))[1].reason == "server_unreachable"
    with Sayer() as plain:
        assert check_pair(PairFiles(files.certificate, files.key, plain.url.replace("http:", "https:")))[1].reason in ("tls_refused", "server_unreachable")


def test_pair_that_is_bad_is_not_shown_to_anybody(files: PairFiles, server: Sayer, ca: CertificateAuthority) -> None:
    Path(files.key).write_text(issue("x").key)
    pair, mtls = check_pair(PairFiles(files.certificate, files.key, server.url, ca.ca_file.read_text()))
    assert (pair.ok, mtls.skipped) == (False, True)
    assert server.requests == []


def _module(**options: object) -> dict[str, object]:
    """Run the module as a host does."""
    done = subprocess.run(
        [sys.executable, str(agent_probe.__file__)], input=json.dumps({"ANSIBLE_MODULE_ARGS": options}), capture_output=True, text=True, check=False)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_module_tells_of_the_pair_beside_the_rest(files: PairFiles) -> None:
    good = _module(pair={"certificate": files.certificate, "key": files.key})
    assert (good["ok"], good["reason"]) == (True, "ok")
    Path(files.key).chmod(0o644)
    bad = _module(pair={"certificate": files.certificate, "key": files.key})
    assert (bad["ok"], bad["reason"]) == (False, "key_mode")
    assert bad.get("failed") is not True
    wrong = _module(pair={"certificate": files.certificate, "key": files.key, "url": "http://127.0.0.1"})
    assert (wrong["failed"], wrong["reason"]) == (True, "invalid_input")
