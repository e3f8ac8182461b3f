# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Revocation lists and OCSP answers: what they say, how fresh they are, and who signed them. openssl answers as the responder and reads the lists too."""

from __future__ import annotations

import datetime
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from ansible_collections.muster.agents.plugins.plugin_utils import _certificate_check

from .faces import NOW, Authority, Certified, checked, openssl, pem


class Place:
    """An HTTP server with revocation lists by path, and an OCSP responder whose answers openssl makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, bytes] = {}
        self.signer = "responder"
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.files.get(self.path)
                self.answer(404 if body is None else 200, body or b"")

            def do_POST(self) -> None:
                outer.asked += 1
                self.answer(200, outer.respond(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def respond(self, request: bytes) -> bytes:
        """An OCSP answer out of index.txt, signed by whoever is the signer now."""
        where = self.directory
        (where / "request").write_bytes(request)
        done = openssl(
            "ocsp", "-index", str(where / "index.txt"), "-CA", str(where / "ca.pem"), "-rsigner", str(where / f"{self.signer}.crt"), "-rkey",
            str(where / f"{self.signer}.key"), "-reqin", str(where / "request"), "-respout", str(where / "answer"), "-ndays", "1", check=False)
        return (where / "answer").read_bytes() if done.returncode == 0 else b"garbage"

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Revoking CA")


@pytest.fixture
def place(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(_certificate_check, "state_directory", lambda part: str(tmp_path / part))
    (tmp_path / "ca.pem").write_bytes(pem(authority.certificate))
    (tmp_path / "index.txt").write_text("")
    authority.issue("responder", usage=ExtendedKeyUsageOID.OCSP_SIGNING).write(tmp_path, "responder")
    authority.issue("impostor", usage=ExtendedKeyUsageOID.SERVER_AUTH).write(tmp_path, "impostor")
    served = Place(tmp_path)
    yield served
    served.close()


def issue(authority: Authority, place: Place) -> tuple[Certified, Path]:
    """A certificate that names list and responder, and its file."""
    location = x509.UniformResourceIdentifier
    made = authority.issue("agent", extensions=[
        (x509.CRLDistributionPoints([x509.DistributionPoint([location(f"{place.url}/ca.crl")], None, None, None)]), False),
        (x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location(f"{place.url}/ocsp"))]), False)])
    return made, made.write(place.directory, "agent")[0]


def crl(authority: Authority, *revoked: Certified, days: tuple[float, float] = (-1, 7), signer: Any = None) -> bytes:
    begin, end = (NOW + datetime.timedelta(days=day) for day in days)
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject).last_update(begin).next_update(end)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(x509.load_der_x509_certificate(one.der).serial_number).revocation_date(begin)
        builder = builder.add_revoked_certificate(entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), False).build())
    return builder.sign(signer or authority.key, hashes.SHA256()).public_bytes(Encoding.DER)


def result(place: Place, path: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = checked(files=[str(path)], ca_certs=[str(place.directory / "ca.pem")], **options)["results"][0]
    return found


def test_nothing_is_asked_unless_it_is_wanted(authority: Authority, place: Place) -> None:
    _made, path = issue(authority, place)
    found = result(place, path)
    assert (found["verdict"], found["crl"], found["ocsp"], place.asked) == ("ok", None, None, 0)
    assert (found["crl_urls"], found["ocsp_urls"]) == ([f"{place.url}/ca.crl"], [f"{place.url}/ocsp"])


@pytest.mark.parametrize("form", ["der", "pem"])
def test_a_list_tells_good_from_revoked_as_openssl_does(form: str, authority: Authority, place: Place) -> None:
    made, path = issue(authority, place)
    for listed, expected in (((), "good"), ((made,), "revoked")):
        data = crl(authority, *listed)
        place.files["/ca.crl"] = data if form == "der" else x509.load_der_x509_crl(data).public_bytes(Encoding.PEM)
        found = result(place, path, revocation=["crl"])
        assert found["crl"]["status"] == expected
        assert (found["verdict"], found["reason"]) == (("ok", "ok") if expected == "good" else ("critical", "revoked"))
        (place.directory / "list.pem").write_bytes(x509.load_der_x509_crl(data).public_bytes(Encoding.PEM))
        files = ["-CAfile", str(place.directory / "ca.pem"), "-CRLfile", str(place.directory / "list.pem")]
        said = openssl("verify", *files, "-crl_check", str(path), check=False)
        assert (said.returncode == 0) == (expected == "good")
    assert (found["crl"]["revocation_reason"], found["crl"]["url"]) == ("keyCompromise", f"{place.url}/ca.crl")


def test_a_list_that_is_stale_foreign_forged_or_missing_is_a_warning(authority: Authority, place: Place) -> None:
    _made, path = issue(authority, place)
    stranger = Authority("Stranger")
    lists = {
        "crl_stale": crl(authority, days=(-9, -1)), "foreign": crl(stranger), "forged": crl(authority, signer=stranger.key), "garbage": b"no list",
    }
    for case, data in lists.items():
        place.files["/ca.crl"] = data
        found = result(place, path, revocation=["crl"])
        assert (found["verdict"], found["reason"]) == ("warning", "crl_stale" if case == "crl_stale" else "crl_unavailable"), case
    place.files.clear()
    assert "404" in result(place, path, revocation=["crl"])["msg"]


def test_a_list_that_is_given_counts_beside_the_one_that_is_named(authority: Authority, place: Place) -> None:
    made, path = issue(authority, place)
    place.files["/ca.crl"] = crl(authority)
    local = place.directory / "local.crl"
    local.write_bytes(crl(authority, made))
    assert result(place, path, revocation=["crl"], crls=[str(local)])["reason"] == "revoked"
    local.write_bytes(crl(authority, made, days=(-9, -1)))
    assert result(place, path, revocation=["crl"], crls=[str(local)])["reason"] == "revoked"
    assert result(place, path, revocation=["crl"], crls=[str(place.directory / "none.crl")])["crl"]["status"] == "good"


def index(place: Place, made: Certified, state: str) -> None:
    """Tell openssl's responder about a certificate: V or R."""
    parsed = x509.load_der_x509_certificate(made.der)
    serial = f"{parsed.serial_number:X}"
    serial = "0" + serial if len(serial) % 2 else serial
    when = (NOW - datetime.timedelta(hours=2)).strftime("%y%m%d%H%M%SZ")
    end = (NOW + datetime.timedelta(days=90)).strftime("%y%m%d%H%M%SZ")
    (place.directory / "index.txt").write_text(f"{state}\t{end}\t{when + ',superseded' if state == 'R' else ''}\t{serial}\tunknown\t/CN=agent\n")


def test_a_responder_tells_good_revoked_and_unknown(authority: Authority, place: Place) -> None:
    made, path = issue(authority, place)
    assert (result(place, path, revocation=["ocsp"])["reason"], place.asked) == ("ocsp_unknown", 1)
    index(place, made, "V")
    found = result(place, path, revocation=["ocsp"])
    assert (found["verdict"], found["ocsp"]["status"]) == ("ok", "good")
    assert found["ocsp"]["next_update"] > found["ocsp"]["this_update"]
    index(place, made, "R")
    found = result(place, path, revocation=["ocsp"])
    assert (found["verdict"], found["reason"], found["ocsp"]["revocation_reason"]) == ("critical", "revoked", "superseded")


def test_an_answer_that_somebody_else_signed_does_not_count(authority: Authority, place: Place) -> None:
    made, path = issue(authority, place)
    index(place, made, "V")
    place.signer = "impostor"
    found = result(place, path, revocation=["ocsp"])
    assert (found["verdict"], found["reason"]) == ("warning", "ocsp_unavailable")
    assert "nobody who may" in found["msg"]
    place.signer = "nobody"
    assert result(place, path, revocation=["ocsp"])["reason"] == "ocsp_unavailable"


def test_what_names_neither_list_nor_responder_or_has_no_known_issuer_is_a_warning(authority: Authority, place: Place) -> None:
    plain = authority.issue("plain").write(place.directory, "plain")[0]
    found = result(place, plain, revocation=["crl", "ocsp"])
    assert {problem["reason"] for problem in found["problems"]} == {"crl_unavailable", "ocsp_unavailable"}
    foreign = Authority("Stranger").issue("foreign").write(place.directory, "foreign")[0]
    found = result(place, foreign, revocation=["crl"])
    assert {problem["reason"] for problem in found["problems"]} == {"missing_issuer", "crl_unavailable"}
