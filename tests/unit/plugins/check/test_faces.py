# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers with every face a certificate can have, checked in one task, and openssl's opinion of the same chains."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from sockets import Listener, Sayer

from ansible_collections.muster.agents.plugins.plugin_utils import _certificate_check

from .faces import NOW, Authority, Certified, TlsServer, checked, key_usage, name, openssl_accepts, pem, resigned, sha1

HOST = "www.example.test"


@dataclass(frozen=True)
class Face:
    """A server and what must be said of it. verdict and reason: of the whole item; agrees: whether openssl is asked the same."""

    label: str
    verdict: str
    reason: str
    made: Certified | None = None
    host: str = HOST
    server: Mapping[str, Any] = field(default_factory=dict)
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    listener: Callable[[], Listener] | None = None
    agrees: bool = True


class Quiet(Listener):
    """Accepts and says nothing."""

    def serve(self, connection: socket.socket) -> None:
        while connection.recv(4096):
            continue


class Says(Listener):
    """Says the same bytes to everybody, and closes."""

    def __init__(self, words: bytes) -> None:
        self._words = words
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(self._words)


class Resets(Listener):
    """Resets every connection."""

    def serve(self, connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Closes(Listener):
    """Closes every connection."""

    def serve(self, connection: socket.socket) -> None:
        connection.recv(4096)


def constrained(permitted: str) -> tuple[Any, bool]:
    return x509.NameConstraints([x509.DNSName(permitted)], None), True


def unknown(last: int, *, critical: bool = False) -> tuple[Any, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.5.{last}"), b"\x05\x00"), critical


def twice(tbs: bytes) -> bytes:
    """The same extension two times."""
    return tbs.replace(b"\x06\x05\x2a\x03\x04\x05\x02", b"\x06\x05\x2a\x03\x04\x05\x01")


def negative(data: bytes) -> bytes:
    """The serial number, which follows the version, with its sign bit set."""
    start = data.find(b"\xa0\x03\x02\x01\x02\x02") + 7
    return data if start < 7 else data[:start] + bytes([data[start] | 0x80]) + data[start + 1:]


@dataclass(frozen=True)
class Lot:
    """Everything the faces share."""

    root: Authority
    faces: list[Face]
    client: Certified
    stranger: Certified


@pytest.fixture(scope="module")
def lot(tmp_path_factory: pytest.TempPathFactory) -> Lot:
    root, other = Authority("Root"), Authority("Other root")
    middle = Authority("Middle", root)
    second = Authority("Second", middle)
    hidden = Authority("Hidden", root)
    good = root.issue(HOST)
    client = root.issue("monitor", usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    stranger = other.issue("monitor", usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    without = middle.issue(HOST)
    odd = root.issue(HOST, extensions=[unknown(1), unknown(2)])
    latin = root.issue(HOST, subject=name("Muster", o="XXXX"))
    roots = tmp_path_factory.mktemp("roots") / "root.pem"
    roots.write_bytes(pem(root.certificate))
    old = ssl.TLSVersion.TLSv1_2
    rsa = Authority("RSA", root, key="rsa2048")
    old_way = Authority("Old", rsa)
    old_way.certificate = x509.load_der_x509_certificate(sha1(Certified(old_way.certificate.public_bytes(Encoding.DER), None), rsa.key).der)
    faces = [
        Face("good", "ok", "ok", good),
        Face("good by TLS 1.2", "ok", "ok", good, server={"newest": old}),
        Face("wildcard", "ok", "ok", root.issue("*.example.test")),
        Face("wildcard of another level", "critical", "wrong_host", root.issue("*.example.test"), host="a.b.example.test"),
        Face("address", "ok", "ok", root.issue("addressed", ["127.0.0.1"]), host="127.0.0.1"),
        Face("other address", "critical", "wrong_host", root.issue("addressed", ["127.0.0.2"]), host="127.0.0.1"),
        Face("RSA 2048", "ok", "ok", root.issue(HOST, key="rsa2048")),
        Face("P-384", "ok", "ok", root.issue(HOST, key="p384")),
        Face("Ed25519", "ok", "ok", root.issue(HOST, key="ed25519")),
        Face("intermediate", "ok", "ok", middle.issue(HOST)),
        Face("two intermediates", "ok", "ok", second.issue(HOST)),
        Face("intermediates in the wrong order", "ok", "ok", Certified(*_parts(second.issue(HOST)), second.chain[::-1])),
        Face("20 days left", "warning", "expires_soon", root.issue(HOST, days=(-70, 20))),
        Face("5 days left", "critical", "expires_soon", root.issue(HOST, days=(-85, 5))),
        Face("expired", "expired", "expired", root.issue(HOST, days=(-90, -1))),
        Face("not yet valid", "critical", "not_yet_valid", root.issue(HOST, days=(1, 90))),
        Face("year 9999", "ok", "ok", root.issue(HOST, days=(-1, _days_to_9999()))),
        Face("self-signed", "critical", "self_signed", _self_signed()),
        Face("unknown root", "critical", "missing_issuer", other.issue(HOST)),
        Face("unknown root that is sent", "critical", "untrusted_root", Certified(*_parts(other.issue(HOST)), (other.certificate,))),
        Face("missing intermediate known elsewhere", "critical", "missing_intermediate", Certified(*_parts(without))),
        Face("missing intermediate", "critical", "missing_issuer", Certified(*_parts(hidden.issue(HOST)))),
        Face("root of the same name with another key", "critical", "bad_signature", Authority("Root").issue(HOST)),
        Face("other host", "critical", "wrong_host", root.issue("other.example.test")),
        Face("common name alone", "critical", "wrong_host", root.issue(HOST, []), agrees=False),  # openssl still takes the common name
        Face("RSA 1024", "critical", "weak_key", root.issue(HOST, key="rsa1024"), agrees=False),  # openssl has no opinion without a security level
        Face("SHA-1", "critical", "weak_signature", sha1(rsa.issue(HOST), rsa.key), agrees=False),
        Face("SHA-1 in the chain", "critical", "weak_signature", old_way.issue(HOST), agrees=False),
        Face("expired intermediate", "expired", "chain_expired", Authority("Gone", root, days=(-400, -1)).issue(HOST)),
        Face("intermediate of tomorrow", "critical", "chain_not_yet_valid", Authority("Early", root, days=(1, 100)).issue(HOST)),
        Face("intermediate that expires soon", "warning", "chain_expires_soon", Authority("Late", root, days=(-400, 20)).issue(HOST)),
        Face("issuer that is no CA", "critical", "not_a_ca", Authority("None", root, ca=False).issue(HOST)),
        Face("issuer without basicConstraints", "critical", "not_a_ca", Authority("Nothing", root, ca=None).issue(HOST)),
        Face("issuer without keyCertSign", "critical", "not_a_ca", Authority("Mute", root, usage=key_usage(crl_sign=True)).issue(HOST)),
        Face("path length", "critical", "path_too_long", Authority("Below", Authority("Last", root, path_length=0)).issue(HOST)),
        Face("name constraints", "critical", "name_not_permitted", Authority("Local", root, extensions=[constrained("corp.test")]).issue(HOST)),
        Face("name within constraints", "ok", "ok", Authority("Here", root, extensions=[constrained("example.test")]).issue(HOST)),
        Face("unknown critical extension", "critical", "unknown_critical_extension", root.issue(HOST, extensions=[unknown(1, critical=True)])),
        Face("for clients", "critical", "wrong_purpose", root.issue(HOST, usage=ExtendedKeyUsageOID.CLIENT_AUTH)),
        Face("duplicate extension", "critical", "malformed", resigned(odd, twice, root.key), agrees=False),  # openssl minds by -x509_strict
        Face("negative serial number", "warning", "bad_serial", resigned(root.issue(HOST), negative, root.key)),
        Face("subject in Latin-1", "warning", "malformed_name", resigned(latin, lambda data: data.replace(b"\x0c\x04XXXX", b"\x14\x04\xe9\xe8XX"), root.key)),
        Face("client certificate wanted", "ok", "ok", good, server={"client_ca": roots}),
        Face("client certificate wanted by TLS 1.2", "ok", "ok", good, server={"client_ca": roots, "newest": old}),
        Face("client certificate", "ok", "ok", good, server={"client_ca": roots}, endpoint={"client": "client"}),
        Face("client certificate by TLS 1.2", "ok", "ok", good, server={"client_ca": roots, "newest": old}, endpoint={"client": "client"}),
        Face("wrong client certificate", "critical", "client_certificate_refused", good, server={"client_ca": roots}, endpoint={"client": "stranger"},
             agrees=False),
        Face("wrong client certificate by TLS 1.2", "critical", "client_certificate_refused", good, server={"client_ca": roots, "newest": old},
             endpoint={"client": "stranger"}, agrees=False),
        Face("TLS 1.1", "warning", "old_protocol", good, server={"newest": ssl.TLSVersion.TLSv1_1}),
        Face("silence", "unreachable", "silent", listener=Quiet),
        Face("HTTP", "unreachable", "not_tls", listener=Sayer),
        Face("garbage", "unreachable", "not_tls", listener=lambda: Says(b"\x7f\x00garbage\xff" * 50)),
        Face("reset", "unreachable", "reset", listener=Resets),
        Face("closed", "unreachable", "closed", listener=Closes),
    ]
    return Lot(root, faces, client, stranger)


def _parts(made: Certified) -> tuple[bytes, Any]:
    return made.der, made.key


def _days_to_9999() -> float:
    return (NOW.replace(year=9999, month=12, day=31, hour=23, minute=59, second=59) - NOW).total_seconds() / 86400


def _self_signed() -> Certified:
    alone = Authority(HOST, extensions=[(x509.SubjectAlternativeName([x509.DNSName(HOST)]), False)], ca=False)
    return Certified(alone.certificate.public_bytes(Encoding.DER), alone.key)


@pytest.fixture(scope="module")
def results(lot: Lot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Mapping[str, Any]]]:
    directory = tmp_path_factory.mktemp("faces")
    roots = directory / "roots.pem"
    roots.write_bytes(pem(lot.root.certificate))
    pairs = {"client": lot.client.write(directory, "client"), "stranger": lot.stranger.write(directory, "stranger")}
    endpoints = []
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_certificate_check, "state_directory", lambda part: str(directory / part))
        for number, face in enumerate(lot.faces):
            if face.listener is not None:
                server = stack.enter_context(face.listener())
            else:
                assert face.made is not None
                server = stack.enter_context(TlsServer(*face.made.write(directory, f"{number}"), **face.server))
            options = dict(face.endpoint)
            if "client" in options:
                options["client_cert"], options["client_key"] = map(str, pairs[options.pop("client")])
            endpoints.append({"host": face.host, "address": "127.0.0.1", "port": server.port, "name": face.label, **options})
        report = checked(endpoints=endpoints, ca_certs=[str(roots)], timeout=4.0)
    sys.stderr.write("\n".join(report["table"]) + "\n")
    yield {item["item"]: item for item in report["results"]}


def test_every_face_has_its_verdict_and_reason(lot: Lot, results: Mapping[str, Mapping[str, Any]]) -> None:
    assert len(lot.faces) >= 40
    told = {label: (item["verdict"], item["reason"]) for label, item in results.items()}
    assert told == {face.label: (face.verdict, face.reason) for face in lot.faces}


def test_openssl_accepts_the_same_chains_dates_and_hosts(lot: Lot, results: Mapping[str, Mapping[str, Any]], tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pem(lot.root.certificate))
    asked = {face.label: face for face in lot.faces if face.made is not None and face.agrees}
    theirs = {label: openssl_accepts(tmp_path, face.made, roots, face.host) for label, face in asked.items() if face.made is not None}
    ours = {label: results[label]["chain_valid"] and results[label]["host_match"] for label in asked}
    assert ours == theirs
    assert {True, False} == set(theirs.values())


def test_what_the_handshake_told_is_there(results: Mapping[str, Mapping[str, Any]]) -> None:
    assert (results["good"]["tls_version"], results["good by TLS 1.2"]["tls_version"]) == ("TLSv1.3", "TLSv1.2")
    assert results["good"]["cipher_suite"].startswith("TLS_")
    assert (results["good"]["chain_depth"], results["two intermediates"]["chain_depth"]) == (1, 3)
    assert results["two intermediates"]["trusted_path"][1:] == [f"CN={one},C=NL,O=Example" for one in ("Second", "Middle", "Root")]
    client = {label: results[label]["client_certificate"] for label in results if "client certificate" in label}
    assert client == {
        "client certificate wanted": "required", "client certificate wanted by TLS 1.2": "required", "client certificate": "accepted",
        "client certificate by TLS 1.2": "accepted", "wrong client certificate": "refused", "wrong client certificate by TLS 1.2": "refused",
    }
    assert results["good"]["client_certificate"] == "none"


def test_what_cannot_be_read_leaves_the_rest_readable(results: Mapping[str, Mapping[str, Any]]) -> None:
    assert results["negative serial number"]["serial_number"].startswith("-")
    assert results["subject in Latin-1"]["subject"] == ""
    assert results["subject in Latin-1"]["subject_alt_names"] == [HOST]
    assert results["duplicate extension"]["not_after"] == results["good"]["not_after"]
    assert results["year 9999"]["not_after"] == "9999-12-31T23:59:59Z"


def test_a_failure_that_may_pass_is_tried_again_and_silence_is_not(results: Mapping[str, Mapping[str, Any]]) -> None:
    tries = {label: results[label]["addresses"][0]["tries"] for label in ("reset", "closed", "silence", "HTTP", "good")}
    assert tries == {"reset": 3, "closed": 3, "silence": 1, "HTTP": 1, "good": 1}
