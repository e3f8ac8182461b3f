# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transaction: when a certificate is renewed, what is refused, and that no end in the middle leaves a pair apart."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, HostFailure, InvalidInput, Mismatch
from ansible_collections.muster.agents.plugins.plugin_utils._issuance import check_answer, early_share, wish_of
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, Signed

from .pairs import Authority, Machine, killed_at

REQUEST = x.Request((("O", "Example"), ("CN", "agent-web")), extended_key_usage=("clientAuth",))


def test_a_host_without_anything_gets_a_pair_in_two_visits_and_keeps_it_in_one(authority: Authority, machine: Machine) -> None:
    first = machine.issue(**authority.options())
    assert (first["action"], first["reason"], first["changed"], first["generation"], machine.visits) == ("issued", "missing", True, 1, ["look", "install"])
    assert machine.is_whole()
    assert machine.is_tidy()
    before = machine.everything()
    second = machine.issue(**authority.options())
    assert (second["action"], second["reason"], second["changed"], machine.visits) == ("unchanged", "ok", False, ["look"])
    assert second["certificate"]["sha256"] == first["certificate"]["sha256"]
    assert machine.everything() == before
    assert len(authority.issued()) == 1


def test_check_mode_foretells_and_touches_nothing(authority: Authority, machine: Machine) -> None:
    told = machine.issue(check_mode=True, diff=True, **authority.options())
    assert (told["action"], told["reason"], told["changed"], machine.visits) == ("issued", "missing", True, ["look"])
    assert "CN=agent-web" in told["diff"][0]["after"]
    assert not machine.directory.exists()
    assert authority.issued() == []


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "subject": ("subject_changed", {"subject": {"O": "Example", "CN": "other"}}),
    "subject-order": ("subject_changed", {"subject": {"CN": "agent-web", "O": "Example"}}),
    "subject-more": ("subject_changed", {"subject": {"O": "Example", "OU": ["a", "b"], "CN": "agent-web"}}),
    "name-more": ("san_changed", {"subject_alt_name": ["DNS:a.example"]}),
    "key-usage": ("usage_changed", {"key_usage": ["digitalSignature", "keyAgreement"]}),
    "extended-usage": ("usage_changed", {"extended_key_usage": ["clientAuth", "1.3.6.1.4.1.99999.1"]}),
    "key-type": ("key_changed", {"key_type": "ed25519"}),
    "forced": ("forced", {"force": True}),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_is_asked_for_differently_is_issued_anew_and_the_generation_before_is_kept(authority: Authority, machine: Machine, change: str) -> None:
    reason, options = CHANGES[change]
    old = machine.issue(**authority.options())["certificate"]
    new = machine.issue(diff=True, **authority.options(), **options)
    assert (new["action"], new["reason"], new["previous"]["sha256"], new["generation"]) == ("renewed", reason, old["sha256"], 2)
    assert old["sha256"] in new["diff"][0]["before"]
    assert new["certificate"]["sha256"] in new["diff"][0]["after"]
    assert new["certificate"]["spki_sha256"] != old["spki_sha256"]
    assert sorted(path.name for path in (machine.unit / "generations").iterdir()) == ["1", "2"]
    assert machine.is_whole()
    if change != "forced":
        assert not machine.issue(**authority.options(), **options)["changed"]


def test_names_in_another_spelling_or_order_are_the_same(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options(), subject_alt_name=["DNS:A.Example", "IP:2001:DB8:0::1", "URI:spiffe://x/y", "DNS:bücher.example"])
    again = machine.issue(**authority.options(), subject_alt_name=["dns:xn--bcher-kva.example", "URI:spiffe://x/y", "IP:2001:db8::1", "DNS:a.example"])
    assert not again["changed"]


def damage(machine: Machine, what: str) -> None:
    """Spoil one file at the fixed path, in place of the link."""
    path, content = {
        "certificate-gone": (machine.certificate, None), "key-gone": (machine.key, None), "certificate-empty": (machine.certificate, b""),
        "certificate-cut": (machine.certificate, machine.certificate.read_bytes()[:200]), "certificate-binary": (machine.certificate, os.urandom(2000)),
        "certificate-huge": (machine.certificate, b"x" * 10_000_000), "certificate-bundle": (machine.certificate, machine.certificate.read_bytes() * 1000),
        "key-binary": (machine.key, os.urandom(300)), "key-other": (machine.key, x.new_key_and_request(REQUEST)[0]),
        "key-encrypted": (machine.key, b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"),
    }[what]
    path.unlink()
    if content is not None:
        path.write_bytes(content)


DAMAGES = {
    "certificate-gone": "missing", "key-gone": "key_missing", "certificate-empty": "unreadable", "certificate-cut": "unreadable",
    "certificate-binary": "unreadable", "certificate-huge": "unreadable", "certificate-bundle": "unreadable", "key-binary": "key_unreadable",
    "key-other": "key_mismatch", "key-encrypted": "key_unreadable",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_spoilt_file_is_put_right_from_what_is_kept_without_the_signer(authority: Authority, machine: Machine, what: str) -> None:
    serial = machine.issue(**authority.options())["certificate"]["serial"]
    damage(machine, what)
    result = machine.issue(**authority.options())
    assert (result["action"], result["reason"], result["certificate"]["serial"]) == ("repaired", "interrupted", serial)
    assert result["reload_pending"]
    assert machine.is_whole()
    assert machine.is_tidy()
    assert len(authority.issued()) == 1


@pytest.mark.parametrize("what", DAMAGES)
def test_a_spoilt_plain_pair_is_issued_anew_with_the_reason(authority: Authority, machine: Machine, what: str) -> None:
    authority.by_hand(machine, REQUEST)
    damage(machine, what)
    foretold = machine.issue(check_mode=True, **authority.options())
    result = machine.issue(**authority.options())
    assert foretold["reason"] == result["reason"] == DAMAGES[what]
    assert machine.is_whole()
    assert machine.is_tidy()
    assert not machine.issue(**authority.options())["changed"]


def test_a_plain_pair_that_satisfies_stays_as_it_is(authority: Authority, machine: Machine) -> None:
    authority.by_hand(machine, REQUEST)
    machine.certificate.write_text("words before the certificate, as openssl x509 -text writes them\n" + machine.certificate.read_text())
    before = machine.everything()
    result = machine.issue(**authority.options())
    assert (result["changed"], result["reason"], result["generation"]) == (False, "ok", 0)
    assert machine.everything() == before
    machine.key.chmod(0o644)
    result = machine.issue(**authority.options())
    assert (result["action"], result["reason"], result["generation"]) == ("repaired", "attributes", 0)
    assert machine.everything() == before


def test_a_plain_pair_becomes_the_generation_before_at_renewal(authority: Authority, machine: Machine) -> None:
    authority.by_hand(machine, REQUEST, days=(-300, 65))
    old, old_key = machine.leaf(), machine.key.read_bytes()
    result = machine.issue(**authority.options())
    assert (result["action"], result["reason"], result["generation"]) == ("renewed", "expires_soon", 2)
    assert x.load_certificates((machine.unit / "generations/1/certificate.pem").read_bytes())[0] == old
    assert (machine.unit / "generations/1/key.pem").read_bytes() == old_key
    assert (machine.unit / "generations/1/key.pem").stat().st_mode & 0o777 == 0o600


TIMES: dict[str, tuple[tuple[float, float], dict[str, Any], str]] = {
    "fresh": ((-1, 364), {}, "ok"), "two-thirds-used": ((-250, 115), {}, "expires_soon"), "before-two-thirds": ((-240, 125), {}, "ok"),
    "days-left": ((-340, 25), {"renew_days": 30}, "expires_soon"), "days-enough": ((-330, 35), {"renew_days": 30}, "ok"),
    "share-alone-does-not-count-beside-days": ((-300, 65), {"renew_days": 30}, "ok"), "both": ((-300, 65), {"renew_days": 30, "renew_at": 0.5}, "expires_soon"),
    "half": ((-190, 175), {"renew_at": 0.5}, "expires_soon"), "expired": ((-400, -1), {}, "expired"), "not-yet": ((2, 300), {}, "not_yet_valid"),
    "to-the-year-9999": ((-1, 2_900_000), {}, "ok"),
}


@pytest.mark.parametrize("case", TIMES)
def test_the_moment_of_renewal(authority: Authority, machine: Machine, case: str) -> None:
    days, options, reason = TIMES[case]
    authority.by_hand(machine, REQUEST, days=days)
    assert machine.issue(check_mode=True, renew_jitter=0, **authority.options(), **options)["reason"] == reason


def test_jitter_is_a_host_s_own_and_spreads_a_fleet() -> None:
    shares = [early_share(f"agent-{number}") for number in range(1000)]
    assert shares == [early_share(f"agent-{number}") for number in range(1000)]
    assert all(0 <= share < 1 for share in shares)
    tenths = [sum(1 for share in shares if number <= share * 10 < number + 1) for number in range(10)]
    assert min(tenths) > 60


def test_a_changed_ca_renews_and_a_ca_with_the_same_key_only_replaces_its_certificate(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    serial = machine.issue(**authority.options())["certificate"]["serial"]
    extended = Authority(tmp_path / "extended", key=authority.key, days=(-1, 7000))
    result = machine.issue(**extended.options())
    assert (result["action"], result["reason"], result["certificate"]["serial"]) == ("updated", "chain_changed", serial)
    assert machine.ca.read_bytes() == extended.file.read_bytes()
    assert machine.is_whole()
    other = Authority(tmp_path / "other")  # The same name, another key.
    result = machine.issue(**other.options())
    assert (result["action"], result["reason"]) == ("renewed", "issuer_changed")
    assert not machine.issue(**other.options())["changed"]


def test_intermediates_follow_the_certificate_or_do_not(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    issuing = Authority(tmp_path / "ca", "Issuing", above=authority, path_length=0)
    machine.issue(**issuing.options())
    assert x.load_certificates(machine.certificate.read_bytes())[1:] == (issuing.certificate,)
    assert x.load_certificates(machine.ca.read_bytes()) == (issuing.certificate, authority.certificate)
    assert not machine.issue(**issuing.options())["changed"]
    assert not machine.issue(**issuing.options(), include_chain=False)["changed"]
    alone = Machine(tmp_path / "alone")
    alone.issue(**issuing.options(), include_chain=False, ca_path=None)
    assert len(x.load_certificates(alone.certificate.read_bytes())) == 1
    result = alone.issue(**issuing.options())
    assert (result["action"], result["reason"]) == ("updated", "chain_changed")
    assert alone.is_whole()


def test_a_revoked_certificate_is_replaced(authority: Authority, machine: Machine) -> None:
    serial = machine.issue(**authority.options())["certificate"]["serial"]
    Machine(machine.directory / "elsewhere").issue(state="revoked", serial_number=serial, certificate_path=None, key_path=None, **authority.options())
    assert machine.issue(check_mode=True, **authority.options())["reason"] == "revoked"
    result = machine.issue(**authority.options())
    assert (result["action"], result["reason"]) == ("renewed", "revoked")
    assert result["certificate"]["serial"] != serial
    assert not machine.issue(**authority.options())["changed"]


def test_revoked_takes_back_every_generation_and_removes_it(authority: Authority, machine: Machine) -> None:
    first = machine.issue(**authority.options())["certificate"]["serial"]
    second = machine.issue(**authority.options(), force=True)["certificate"]["serial"]
    foretold = machine.issue(check_mode=True, state="revoked", **authority.options())
    assert (sorted(foretold["revoked"]), machine.is_whole()) == (sorted([first, second]), True)
    result = machine.issue(state="revoked", **authority.options())
    assert (result["action"], sorted(result["revoked"])) == ("revoked", sorted([first, second]))
    assert list(machine.certificate.parent.iterdir()) == []
    again = machine.issue(state="revoked", **authority.options())
    assert (again["changed"], again["revoked"], again["reason"]) == (False, [], "nothing_to_revoke")


def test_a_reload_stays_pending_until_it_is_settled(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options())
    assert machine.issue(**authority.options())["reload_pending"]
    (machine.unit / "reload_pending").unlink()
    assert not machine.issue(**authority.options())["reload_pending"]
    machine.issue(**authority.options(), force=True)
    assert machine.issue(**authority.options())["reload_pending"]


# -- an end at every step


def disasters(work: Callable[[], object], prepare: Callable[[], Machine], check: Callable[[Machine, int], None]) -> int:
    """Kill *work* before each of its changes to the disk, one after the other, and *check* what is left each time. Returns how many there were."""
    step = 1
    while True:
        machine = prepare()
        if not killed_at(step, work):
            return step - 1
        check(machine, step)
        step += 1


@pytest.mark.thorough
@pytest.mark.parametrize("start", ["nothing", "plain", "managed"])
def test_no_end_in_the_middle_leaves_a_pair_apart_or_a_second_certificate(tmp_path: Path, start: str) -> None:
    authority, machine = Authority(tmp_path / "ca"), Machine(tmp_path / "host")
    template = tmp_path / "template"
    if start == "plain":
        authority.by_hand(machine, REQUEST, days=(-300, 65))
    elif start == "managed":
        machine.issue(**authority.options())
    machine.directory.mkdir(exist_ok=True)
    authority.records.mkdir(exist_ok=True)
    shutil.copytree(machine.directory, template / "host", symlinks=True)
    shutil.copytree(authority.records, template / "records", symlinks=True)
    already = len(authority.issued())
    options = {**authority.options(), "subject": {"O": "Example", "CN": "agent-web"}, "subject_alt_name": ["DNS:new.example"]}

    def prepare() -> Machine:
        for place, kept in ((machine.directory, "host"), (authority.records, "records")):
            shutil.rmtree(place)
            shutil.copytree(template / kept, place, symlinks=True)
        return machine

    def check(left: Machine, step: int) -> None:
        if start != "nothing":
            assert left.is_whole(), f"apart after step {step}"
        result = left.issue(**options)
        assert left.is_whole(), f"apart after the repair of step {step}"
        assert left.is_tidy(), f"untidy after the repair of step {step}"
        assert result["certificate"]["names"] == ["DNS:new.example"]
        assert len(authority.issued()) == already + 1, f"a second certificate after step {step}"
        assert not left.issue(**options)["changed"], f"not settled after step {step}"

    steps = disasters(lambda: machine.issue(**options), prepare, check)
    assert steps > 40


@pytest.mark.thorough
def test_an_end_during_the_removal_is_finished_by_the_next(tmp_path: Path) -> None:
    authority, machine = Authority(tmp_path / "ca"), Machine(tmp_path / "host")

    def prepare() -> Machine:
        for place in (machine.directory, authority.records):
            shutil.rmtree(place, ignore_errors=True)
        machine.issue(**authority.options())
        return machine

    def check(left: Machine, step: int) -> None:
        left.issue(state="revoked", **authority.options())
        assert list(left.certificate.parent.iterdir()) == [], f"left after step {step}"
        assert [line[0] for line in authority.issued()] == ["R"]
        assert (authority.records / "crl.pem").exists()

    assert disasters(lambda: machine.issue(state="revoked", **authority.options()), prepare, check) > 8


def test_a_lost_answer_asks_for_the_same_key_again(authority: Authority, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", "after_sign=raise")
    with pytest.raises(AgentsError):
        machine.issue(**authority.options())
    waiting = (machine.unit / "stage" / "request.pem").read_bytes()
    with pytest.raises(AgentsError):
        machine.issue(**authority.options())
    assert (machine.unit / "stage" / "request.pem").read_bytes() == waiting
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    machine.issue(**authority.options())
    assert x.public_bytes(machine.leaf().public_key()) == x.public_bytes(x.load_request(waiting).public_key())
    assert len(authority.issued()) == 1


def test_a_key_that_waits_for_another_request_is_thrown_away(authority: Authority, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", "after_key=raise")
    with pytest.raises(AgentsError):
        machine.issue(**authority.options(), key_usage=["digitalSignature"])
    waiting = (machine.unit / "stage" / "request.pem").read_bytes()
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    machine.issue(**authority.options())
    assert x.public_bytes(machine.leaf().public_key()) != x.public_bytes(x.load_request(waiting).public_key())


# -- what is refused


def test_two_runs_at_once_do_not_undo_each_other(authority: Authority, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Machine(machine.directory)

    def meanwhile(point: str) -> None:
        if point == "before_install":
            monkeypatch.undo()
            other.issue(**authority.options(), force=True)

    monkeypatch.setattr("ansible_collections.muster.agents.plugins.plugin_utils._issuance.reach", meanwhile)
    with pytest.raises(HostFailure) as caught:
        machine.issue(**authority.options())
    assert caught.value.reason in ("changed", "key_mismatch")
    assert machine.is_whole()
    assert not machine.issue(**authority.options())["changed"]


def test_a_folder_of_ours_that_is_a_link_or_open_to_others_is_not_written_to(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    machine.certificate.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (machine.certificate.parent / ".muster").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostFailure) as caught:
        machine.issue(**authority.options())
    assert caught.value.reason == "unsafe"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (machine.certificate.parent / ".muster").unlink()
    (machine.certificate.parent / ".muster").mkdir()
    (machine.certificate.parent / ".muster").chmod(0o777)
    with pytest.raises(HostFailure) as caught:
        machine.issue(**authority.options())
    assert caught.value.reason == "unsafe"


def test_a_host_whose_clock_is_off_gets_no_certificate(authority: Authority, machine: Machine) -> None:
    with pytest.raises(HostFailure) as caught:
        machine.issue(clock=-400, **authority.options())
    assert caught.value.reason == "clock_skew"
    assert authority.issued() == []


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no-subject": ("subject is empty", {"subject": {}}), "empty-value": ("CN has no value", {"subject": {"CN": ""}}),
    "unknown-attribute": ("no attribute known here", {"subject": {"NAME": "x"}}), "long-country": ("C cannot be", {"subject": {"C": "USA", "CN": "x"}}),
    "name-without-kind": ("is none", {"subject_alt_name": ["a.example"]}), "bad-address": ("no IP address", {"subject_alt_name": ["IP:300.1.1.1"]}),
    "bad-host": ("no host name", {"subject_alt_name": ["DNS:a b"]}), "bad-uri": ("no URI", {"subject_alt_name": ["URI:not a uri"]}),
    "unknown-usage": ("not known here", {"extended_key_usage": ["clientauth"]}), "small-rsa": ("2048 to 4096", {"key_type": "rsa", "key_size": 1024}),
    "no-days": ("at least 1", {"valid_days": 0}), "beyond-all-dates": ("more than", {"valid_days": 10**9}),
    "renewed-at-every-run": ("at every run", {"valid_days": 30, "renew_days": 30}),
    "renew-at": ("between 0 and 1", {"renew_at": 1.5}), "jitter": ("too much", {"renew_jitter": 0.9}),
    "open-key": ("lets everybody read", {"key_mode": "0644"}), "mode": ("no octal mode", {"key_mode": "rw"}),
    "relative": ("not absolute", {"certificate_path": "agent.crt"}), "same-file": ("different files", {"key_path": "/x", "certificate_path": "/x"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_before_anything_happens(authority: Authority, machine: Machine, case: str) -> None:
    words, options = WRONG[case]
    with pytest.raises(InvalidInput) as caught:
        machine.issue(**{**authority.options(), **options})
    assert words in caught.value.msg
    assert (machine.visits, machine.directory.exists()) == ([], False)


def answer(authority: Authority, machine: Machine, request: x.Request, **more: Any) -> tuple[Signed, bytes]:
    """A certificate with its signing request, as a signer might send it."""
    authority.by_hand(machine, request, **more)
    key = x.private_key_of(machine.key.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(x, "_new_key", lambda *_kind: key)
        return Signed(machine.leaf()), x.new_key_and_request(request)[1]


ANSWERS: dict[str, tuple[str, x.Request, dict[str, Any]]] = {
    "expired": ("expired", REQUEST, {"days": (-10, -1)}), "future": ("not_yet_valid", REQUEST, {"days": (1, 300)}),
    "ends-soon": ("absurd_lifetime", REQUEST, {"days": (-300, 10)}),
    "other-subject": ("subject_changed", x.Request((("CN", "x"),), extended_key_usage=("clientAuth",)), {}),
    "no-client": ("usage_changed", x.Request(REQUEST.subject, extended_key_usage=("serverAuth",)), {}),
    "without-names": ("san_changed", REQUEST, {"names": ["DNS:a.example"]}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_of_no_use_is_refused(authority: Authority, machine: Machine, case: str) -> None:
    reason, request, more = ANSWERS[case]
    names = more.pop("names", [])
    signed, csr = answer(authority, machine, request, **more)
    validated = {"include_chain": True, "force": False, "key_size": 0, "key_type": "ec", "extended_key_usage": ["clientAuth"], "valid_days": 365,
                    "renew_jitter": 0, "key_mode": "0600", "certificate_mode": "0644", "directory_mode": "0755",
                 "subject": dict(REQUEST.subject), "subject_alt_name": names}
    wish = wish_of(validated, exact=False, check_mode=False)
    with pytest.raises(Mismatch) as caught:
        check_answer(signed, csr, wish, Chain.of([authority.certificate]))
    assert caught.value.reason == reason
    if names:
        more["names"] = names


def test_an_answer_for_another_key_or_from_another_ca_is_refused(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    signed, csr = answer(authority, machine, REQUEST)
    validated = {"include_chain": True, "force": False, "key_size": 0, "key_type": "ec", "extended_key_usage": ["clientAuth"], "valid_days": 365,
                 "renew_jitter": 0, "key_mode": "0600", "certificate_mode": "0644", "directory_mode": "0755", "subject": dict(REQUEST.subject),
                 "subject_alt_name": []}
    wish = wish_of(validated, exact=False, check_mode=False)
    assert check_answer(signed, csr, wish, Chain.of([authority.certificate])) == ()
    with pytest.raises(Mismatch) as caught:
        check_answer(signed, x.new_key_and_request(REQUEST)[1], wish, Chain.of([authority.certificate]))
    assert caught.value.reason == "key_mismatch"
    with pytest.raises(Mismatch) as caught:
        check_answer(signed, csr, wish, Chain.of([Authority(tmp_path / "other").certificate]))
    assert caught.value.reason == "issuer_mismatch"


def test_the_renewal_that_is_told_is_the_one_that_happens(authority: Authority, machine: Machine) -> None:
    told = machine.issue(**authority.options())["certificate"]["renew_after"]
    start, end = x.validity(machine.leaf())
    early = 0.05 * early_share("agent-web")
    assert told == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + (end - start) * (0.67 - early)))
