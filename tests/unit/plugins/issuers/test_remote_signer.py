# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A signer behind a REST call, as the reference server offers one: answers that are lost, cut short, or of no use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput
from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

from .pairs import Authority, Machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CAs of this module are."""
    return tmp_path_factory.mktemp("signer")


@pytest.fixture(scope="module")
def signing(folder: Path) -> Authority:
    """The CA behind the signer."""
    return Authority(folder, "Signing CA")


@pytest.fixture(scope="module")
def _server(folder: Path, signing: Authority) -> Iterator[ReferenceServer]:
    pair = CertificateAuthority(folder / "tls").server()
    server = ReferenceServer.start(
        tls=Tls(str(pair.cert), str(pair.key)), arguments=["--plane", "kubeatlas", "--kubeatlas-signer", f"{signing.file}:{signing.key_file}"])
    yield server
    server.stop()


@pytest.fixture
def server(_server: ReferenceServer) -> ReferenceServer:
    """The signer, counting from zero and without faults."""
    _server.reset()
    return _server


@pytest.fixture
def issue(server: ReferenceServer, signing: Authority, folder: Path, machine: Machine) -> Any:
    """Return a function that runs cert_issue with the signer; None takes an option away."""

    def run(**changes: Any) -> dict[str, Any]:
        options = {
            "issuer": "remote_signer", "url": server.url, "ca_cert": str(folder / "tls" / "ca.pem"), "issuer_ca": str(signing.file),
            "controller_name": "main", "retries": 0, "timeout": 5, "valid_days": 90,
        }
        return machine.issue(**{**options, **changes})

    return run


def refused(call: Any, **options: Any) -> AgentsError:
    with pytest.raises(AgentsError) as caught:
        call(**options)
    assert caught.value.msg.endswith(".")
    return caught.value


def signed(server: ReferenceServer) -> int:
    """How many signing requests the server carried out or began to."""
    return int(server.counters()["kubeatlas"]["mutating"])


def test_issued_left_alone_and_renewed(server: ReferenceServer, signing: Authority, machine: Machine, issue: Any) -> None:
    first = issue()
    assert (first["action"], first["certificate"]["issuer"], machine.is_whole()) == ("issued", "CN=Signing CA", True)
    assert machine.ca.read_bytes() == signing.file.read_bytes()
    assert abs(first["certificate"]["days_left"] - 90) < 0.1
    assert (issue()["changed"], signed(server)) == (False, 1)
    assert (issue(check_mode=True, force=True)["reason"], signed(server)) == ("forced", 1)
    assert (issue(force=True)["action"], signed(server)) == ("renewed", 2)


@pytest.mark.parametrize(("kind", "reason"), [("commit-then-drop", "ambiguous"), ("commit-then-500", "ambiguous"), ("truncate", "ambiguous"),
                                              ("garbage", "incomplete_answer")])
def test_a_lost_answer_is_asked_for_again_with_the_same_key(server: ReferenceServer, machine: Machine, issue: Any, kind: str, reason: str) -> None:
    server.fault("kubeatlas_sign", kind)
    error = refused(issue)
    assert error.reason == reason
    assert not machine.certificate.exists()
    waiting = (machine.unit / "stage" / "request.pem").read_bytes()
    assert issue()["action"] == "issued"
    assert x.public_bytes(machine.leaf().public_key()) == x.public_bytes(x.load_request(waiting).public_key())
    assert machine.is_tidy()


def body(text: Any) -> dict[str, Any]:
    return {"status": 200, "body": json.dumps({"certificate": text})}


ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "no-certificate": ("incomplete_answer", {"status": 200, "body": "{}"}), "no-object": ("incomplete_answer", {"status": 200, "body": "[]"}),
    "empty": ("incomplete_answer", body("")), "a-number": ("incomplete_answer", body(7)), "no-pem": ("incomplete_answer", body("MIIB")),
    "cut": ("incomplete_answer", body("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")),
    "unauthorised": ("bad_bootstrap", {"status": 401}), "forbidden": ("bad_bootstrap", {"status": 403}), "no-route": ("no_signer", {"status": 404}),
    "refused": ("refused", {"status": 422, "body": '{"message": "the policy forbids it"}'}), "unavailable": ("server_fault", {"status": 503}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_of_no_use_are_named(server: ReferenceServer, machine: Machine, issue: Any, case: str) -> None:
    reason, fault = ANSWERS[case]
    server.fault("kubeatlas_sign", "status", **fault)
    error = refused(issue)
    assert error.reason == reason, error.msg
    assert not machine.certificate.exists()


def test_the_certificate_of_somebody_else_is_refused(server: ReferenceServer, signing: Authority, machine: Machine, issue: Any, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    signing.by_hand(other, x.Request((("O", "Example"), ("CN", "agent-web")), extended_key_usage=("clientAuth",)))
    server.fault("kubeatlas_sign", "status", **body(other.certificate.read_text()))
    assert refused(issue).reason == "key_mismatch"
    assert not machine.certificate.exists()


def test_a_signer_below_another_ca_than_the_one_named_is_refused(machine: Machine, issue: Any, tmp_path: Path) -> None:
    assert refused(issue, issuer_ca=str(Authority(tmp_path / "other").file)).reason == "issuer_mismatch"
    assert not machine.certificate.exists()


def test_names_that_the_signer_leaves_out_are_told(machine: Machine, issue: Any) -> None:
    error = refused(issue, subject_alt_name=["DNS:web.example"])
    assert error.reason == "san_changed"
    assert "ask for what it gives" in error.msg


def test_a_signer_whose_clock_is_wrong_is_found_out(server: ReferenceServer, machine: Machine, issue: Any) -> None:
    for offset, reason in ((3600, "not_yet_valid"), (-100 * 86400, "expired")):
        server.clock(offset)
        assert refused(issue).reason == reason
    server.clock(0)
    assert not machine.certificate.exists()


def test_intermediates_that_come_along_are_kept_with_the_certificate(
    server: ReferenceServer, signing: Authority, machine: Machine, issue: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    below = Authority(signing.directory, "Below", above=signing)
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", "after_key=raise")
    refused(issue)
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    by_hand = Machine(machine.directory / "by-hand")
    key = x.private_key_of((machine.unit / "stage" / "key.pem").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(x, "_new_key", lambda *_kind: key)
        below.by_hand(by_hand, x.Request((("O", "Example"), ("CN", "agent-web")), extended_key_usage=("clientAuth",)))
    server.fault("kubeatlas_sign", "status", **body(by_hand.certificate.read_text() + below.file.read_text()))
    issue(valid_days=365)
    assert x.load_certificates(machine.certificate.read_bytes())[1:] == (below.certificate,)
    assert not issue(valid_days=365)["changed"]


def test_what_a_signer_needs_is_asked_for(machine: Machine, issue: Any) -> None:
    for option in ("url", "issuer_ca", "controller_name"):
        with pytest.raises(InvalidInput) as caught:
            issue(**{option: None})
        assert option in caught.value.msg
    assert refused(issue, state="revoked").reason == "cannot_revoke"
    assert refused(issue, ca_cert=None).reason == "untrusted"
    assert machine.visits in ([], ["look"])
