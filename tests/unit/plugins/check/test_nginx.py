# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real nginx with faces of its own, OCSP answers that it staples among them, and what openssl says of the same ports."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ansible_collections.muster.agents.plugins.module_utils._tls_probe import Sight, Target, _with_status_request, probe
from ansible_collections.muster.agents.plugins.plugin_utils import _certificate_check
from world.nginx import Nginx, Site

from .faces import NOW, Authority, Certified, checked, openssl, pem

HOST = "www.example.test"
pytestmark = pytest.mark.thorough


@dataclass(frozen=True)
class Face:
    """One port of nginx: what it serves, and what must be said of it."""

    made: Certified
    verdict: str
    reason: str
    stapled: str = ""
    options: tuple[str, ...] = ("ssl_protocols TLSv1.2 TLSv1.3",)
    staple: bytes = b""


def answer(issuer: Authority, made: Certified, status: ocsp.OCSPCertStatus, *, days: tuple[float, float] = (-1, 6), signer: Authority | None = None) -> bytes:
    """An OCSP answer of the issuer about a certificate."""
    begin, end = (NOW + datetime.timedelta(days=day) for day in days)
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    names: Callable[[], hashes.HashAlgorithm] = hashes.SHA1  # it names a certificate, and protects nothing
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=x509.load_der_x509_certificate(made.der), issuer=issuer.certificate, algorithm=names(), cert_status=status, this_update=begin,
        next_update=end, revocation_time=begin if revoked else None, revocation_reason=x509.ReasonFlags.key_compromise if revoked else None)
    signing = signer or issuer
    return builder.responder_id(ocsp.OCSPResponderEncoding.NAME, signing.certificate).sign(signing.key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Root")


@pytest.fixture(scope="module")
def faces(root: Authority) -> dict[str, Face]:
    good, middle, other = root.issue(HOST), Authority("Middle", root), Authority("Other")
    state = ocsp.OCSPCertStatus
    below = middle.issue(HOST)
    return {
        "good": Face(good, "ok", "ok"),
        "TLS 1.2 alone": Face(good, "ok", "ok", options=("ssl_protocols TLSv1.2",)),
        "intermediate": Face(middle.issue(HOST), "ok", "ok"),
        "missing intermediate": Face(dataclasses.replace(below, chain=()), "critical", "missing_intermediate"),
        "expired": Face(root.issue(HOST, days=(-90, -1)), "expired", "expired"),
        "not yet valid": Face(root.issue(HOST, days=(1, 90)), "critical", "not_yet_valid"),
        "other host": Face(root.issue("other.example.test"), "critical", "wrong_host"),
        "RSA 1024": Face(root.issue(HOST, key="rsa1024"), "critical", "weak_key"),
        "client certificate wanted": Face(good, "ok", "ok", options=("ssl_client_certificate ca.pem", "ssl_verify_client on", "ssl_protocols TLSv1.3")),
        "staples good": Face(good, "ok", "ok", "good", staple=answer(root, good, state.GOOD)),
        "staples good by TLS 1.2": Face(good, "ok", "ok", "good", ("ssl_protocols TLSv1.2",), answer(root, good, state.GOOD)),
        "staples revoked": Face(good, "critical", "revoked", "revoked", staple=answer(root, good, state.REVOKED)),
        "staples what an intermediate says": Face(below, "critical", "revoked", "revoked", staple=answer(middle, below, state.REVOKED)),
        "staples of last week": Face(good, "warning", "stapled_stale", "stale", staple=answer(root, good, state.GOOD, days=(-8, -1))),
        "staples of another CA": Face(good, "warning", "stapled_unavailable", "unavailable", staple=answer(root, good, state.GOOD, signer=other)),
        # Its answer cannot be read without TLS 1.3's keys: nothing is known, and the certificate names no responder to ask instead.
        "staples by TLS 1.3 alone": Face(good, "ok", "ok", "", ("ssl_protocols TLSv1.3",), answer(root, good, state.REVOKED)),
    }


@pytest.fixture(scope="module")
def nginx(root: Authority, faces: Mapping[str, Face], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    directory = tmp_path_factory.mktemp("nginx")
    (directory / "ca.pem").write_bytes(pem(root.certificate))
    sites = []
    for number, face in enumerate(faces.values()):
        certificate, key = face.made.write(directory, f"{number}")
        options = list(face.options)
        if face.staple:
            (directory / f"{number}.ocsp").write_bytes(face.staple)
            options += ["ssl_stapling on", f"ssl_stapling_file {number}.ocsp"]
        sites.append(Site(certificate, key, options))
    with Nginx(directory, [*sites, Site()]) as server:
        yield server


@pytest.fixture(scope="module")
def results(nginx: Nginx, faces: Mapping[str, Face]) -> dict[str, dict[str, Any]]:
    endpoints = [{"host": HOST, "address": "127.0.0.1", "port": port, "name": name} for name, port in zip([*faces, "HTTP"], nginx.ports)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_certificate_check, "state_directory", lambda part: str(nginx.directory / part))
        report = checked(endpoints=endpoints, ca_certs=[str(nginx.directory / "ca.pem")], timeout=20.0, revocation=["ocsp"], ignore=["ocsp_unavailable"])
    return {item["item"]: item for item in report["results"]}


def test_every_face_of_nginx_has_its_verdict_and_reason(faces: Mapping[str, Face], results: Mapping[str, Mapping[str, Any]]) -> None:
    told = {name: (item["verdict"], item["reason"]) for name, item in results.items()}
    assert told == {**{name: (face.verdict, face.reason) for name, face in faces.items()}, "HTTP": ("unreachable", "not_tls")}
    assert results["client certificate wanted"]["client_certificate"] == "requested"
    assert {results["good"]["tls_version"], results["TLS 1.2 alone"]["tls_version"]} == {"TLSv1.3", "TLSv1.2"}


def test_a_stapled_answer_is_told_and_takes_the_place_of_a_responder(faces: Mapping[str, Face], results: Mapping[str, Mapping[str, Any]]) -> None:
    told = {name: (results[name]["stapled"] or {}).get("status", "") for name in faces}
    assert told == {name: face.stapled for name, face in faces.items()}
    revoked = results["staples revoked"]["stapled"]
    assert (revoked["revocation_reason"], revoked["url"]) == ("keyCompromise", "")
    assert revoked["next_update"] > revoked["this_update"] != ""
    # The certificate names no responder: that is a problem only where nothing else tells.
    without = {name for name in faces if results[name]["ocsp"] is None}
    assert without == {name for name, face in faces.items() if face.stapled in ("good", "revoked")}


def test_openssl_is_told_the_same_by_the_same_ports(nginx: Nginx, faces: Mapping[str, Face]) -> None:
    words = {"good": "Cert Status: good", "revoked": "Cert Status: revoked", "": "OCSP response: no response sent"}
    for (name, face), port in zip(faces.items(), nginx.ports):
        if face.stapled in words and "client" not in name and "1.3" not in name:
            said = openssl("s_client", "-connect", f"127.0.0.1:{port}", "-servername", HOST, "-status", check=False).stdout.decode()
            assert words[face.stapled] in said, name


def test_nothing_is_asked_for_without_the_wish(nginx: Nginx, faces: Mapping[str, Face]) -> None:
    port = dict(zip(faces, nginx.ports))["staples good"]
    (asked,), (unasked,) = probe([Target("127.0.0.1", port, staple=True), Target("127.0.0.1", port)], timeout=20.0)
    assert (asked.staple, unasked.staple) == (faces["staples good"].staple, b"")
    assert Sight.load(json.loads(json.dumps(asked.dump()))) == asked


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x01", b"\x15\x03\x01\0\2\2\x28", b"\x16\x03\x01\0\x40\1" + b"\0" * 60, b"GET / HTTP/1.1\r\n\r\n" * 9])
def test_what_is_no_greeting_is_not_added_to(greeting: bytes) -> None:
    with pytest.raises(ValueError, match="no ClientHello"):
        _with_status_request(greeting)
