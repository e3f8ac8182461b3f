# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CA of one's own: what it issues, read by openssl and a strict TLS context; what it refuses; its records, read by openssl."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import SigningOrder
from ansible_collections.muster.agents.plugins.plugin_utils.issuers.own_ca import OwnCa

from .pairs import Authority, Machine

PASSWORD = "passphrase-canary-91c4"


def openssl(*arguments: str, good: bool = True) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(authority: Authority, machine: Machine, **changes: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        machine.issue(**authority.options(**changes))
    assert machine.visits == [], "the host was visited for a CA that cannot issue"
    assert PASSWORD not in caught.value.msg
    return caught.value


@pytest.mark.parametrize("kind", ["ec", "ed25519", "rsa"])
@pytest.mark.parametrize("signer", ["ec", "ec-384", "ed25519", "rsa"])
def test_openssl_accepts_strictly_what_is_issued(tmp_path: Path, machine: Machine, signer: str, kind: str) -> None:
    keys: dict[str, Any] = {"ec": lambda: ec.generate_private_key(ec.SECP256R1()), "ec-384": lambda: ec.generate_private_key(ec.SECP384R1()),
                            "ed25519": ed25519.Ed25519PrivateKey.generate, "rsa": lambda: rsa.generate_private_key(65537, 2048)}
    authority = Authority(tmp_path / "ca", key=keys[signer]())
    machine.issue(**authority.options(), key_type=kind, key_size=2048, subject_alt_name=["DNS:web.example"], extended_key_usage=["clientAuth", "serverAuth"])
    for purpose in ("sslclient", "sslserver"):
        openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(machine.ca), str(machine.certificate))
    text = openssl("x509", "-in", str(machine.certificate), "-noout", "-text")
    for word in ("Version: 3", "X509v3 Basic Constraints: critical", "CA:FALSE", "X509v3 Key Usage: critical", "X509v3 Subject Key Identifier",
                 "X509v3 Authority Key Identifier", "DNS:web.example"):
        assert word in text


def test_a_strict_tls_context_accepts_both_ends(authority: Authority, tmp_path: Path) -> None:
    server, client = Machine(tmp_path / "server"), Machine(tmp_path / "client")
    server.issue(**authority.options(), subject_alt_name=["DNS:server.example", "IP:127.0.0.1"], extended_key_usage=["serverAuth"])
    client.issue(**authority.options())
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server.ca))
    accepting.load_cert_chain(server.certificate, server.key)
    accepting.verify_mode = ssl.CERT_REQUIRED
    connecting = ssl.create_default_context(cafile=str(client.ca))
    connecting.load_cert_chain(client.certificate, client.key)
    for context in (accepting, connecting):
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # What Python 3.13 does by itself.
    listener = socket.create_server(("127.0.0.1", 0))
    subjects = []

    def serve() -> None:
        raw, _address = listener.accept()
        with raw, accepting.wrap_socket(raw, server_side=True) as stream:
            subjects.append(stream.getpeercert())
            stream.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, socket.create_connection(listener.getsockname()) as raw, connecting.wrap_socket(raw, server_hostname="server.example") as stream:
        assert stream.recv(5) == b"hello"
    thread.join()
    assert dict(pair for step in subjects[0]["subject"] for pair in step)["commonName"] == "agent-web"


def test_serials_are_random_and_dates_begin_a_minute_ago(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).timestamp()
    machine.issue(**authority.options(), valid_days=90)
    start, end = x.validity(machine.leaf())
    assert before - 62 <= start <= before - 58
    assert abs(end - start - 90 * 86400 - 60) < 2
    other = Machine(tmp_path / "other")
    other.issue(**authority.options())
    serials = [item.leaf().serial_number for item in (machine, other)]
    assert all(serial > 0 and 64 < serial.bit_length() < 160 for serial in serials)
    assert serials[0] != serials[1]


def test_a_certificate_does_not_outlive_its_ca_and_one_that_would_be_due_at_once_is_refused(tmp_path: Path, machine: Machine) -> None:
    ending = Authority(tmp_path / "ca", days=(-100, 50))
    result = machine.issue(**ending.options())
    assert x.validity(machine.leaf())[1] == x.validity(ending.certificate)[1]
    assert "50 days instead of 365" in result["warnings"][0]
    nearly = Authority(tmp_path / "nearly", days=(-100, 10))
    with pytest.raises(AgentsError) as caught:
        machine.issue(**nearly.options(), renew_days=20)
    assert caught.value.reason == "absurd_lifetime"
    assert machine.is_whole()


CAS: dict[str, tuple[str, dict[str, Any]]] = {
    "expired": ("ca_expired", {"days": (-100, -1)}), "not-yet-valid": ("ca_not_yet_valid", {"days": (1, 100)}), "no-ca": ("not_a_ca", {"is_ca": False}),
    "no-constraints": ("not_a_ca", {"is_ca": None}), "may-not-sign": ("ca_without_cert_sign", {"usage": (False, True)}),
    "small": ("ca_weak", {"key": "rsa-1024"}),
}


@pytest.mark.parametrize("case", CAS)
def test_a_ca_that_nobody_would_accept_issues_nothing(tmp_path: Path, machine: Machine, case: str) -> None:
    reason, options = CAS[case]
    if options.get("key"):
        pem = openssl("genrsa", "1024")
        options = {"key": serialization.load_pem_private_key(pem[pem.index("-----BEGIN"):].encode(), None)}
    authority = Authority(tmp_path / "ca", **options)
    assert refused(authority, machine).reason == reason


def test_a_ca_without_any_key_usage_may_sign(tmp_path: Path, machine: Machine) -> None:
    machine.issue(**Authority(tmp_path / "ca", usage=None).options())
    assert machine.is_whole()


def test_the_path_length_is_respected(tmp_path: Path, machine: Machine) -> None:
    narrow = Authority(tmp_path / "ca", "Root", path_length=0)
    machine.issue(**narrow.options())
    assert machine.is_whole()
    assert refused(Authority(tmp_path / "ca", "Below", above=narrow), machine).reason == "ca_pathlen"
    wide = Authority(tmp_path / "ca", "Wide", path_length=1)
    machine.issue(**Authority(tmp_path / "ca", "Under", above=wide, path_length=0).options())
    assert machine.is_whole()


def test_a_chain_in_the_wrong_order_is_refused(tmp_path: Path, machine: Machine) -> None:
    root = Authority(tmp_path / "ca", "Root")
    other = Authority(tmp_path / "ca", "Other")
    other.file.write_bytes(other.file.read_bytes() + root.file.read_bytes())
    assert refused(other, machine).reason == "ca_chain"


def test_the_key_is_opened_with_its_passphrase_and_nothing_else(tmp_path: Path, machine: Machine) -> None:
    closed = Authority(tmp_path / "ca", "Closed", password=PASSWORD)
    machine.issue(**closed.options(passphrase=PASSWORD))
    assert machine.is_whole()
    for passphrase in (None, f"{PASSWORD}x"):
        assert refused(closed, machine, passphrase=passphrase).reason == "ca_passphrase"
    assert refused(Authority(tmp_path / "ca", "Open"), machine, passphrase=PASSWORD).reason == "ca_passphrase"


FILES: dict[str, tuple[str, bytes | None]] = {
    "missing": ("cannot be read", None), "empty": ("no PEM certificate", b""), "binary": ("no PEM certificate", os.urandom(5000)),
    "huge": ("no PEM certificate", b"\0" * 10_000_000),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_no_use_are_named(authority: Authority, machine: Machine, case: str) -> None:
    words, content = FILES[case]
    for option, path in (("certificate", authority.file), ("key", authority.key_file)):
        kept = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        message = refused(authority, machine).msg
        assert f"own_ca.{option}" in message
        assert words in message or option == "key"
        path.write_bytes(kept)


def test_a_key_of_another_ca_or_of_a_kind_that_is_gone_is_refused(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    assert refused(authority, machine, key=str(other.key_file)).reason == "ca_mismatch"
    old = dsa.generate_private_key(2048).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    authority.key_file.write_bytes(old)
    assert "of a kind" in refused(authority, machine).msg


# -- records


def test_openssl_reads_the_index_and_the_crl(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    for number in range(3):
        Machine(tmp_path / f"host-{number}").issue(**authority.options(), subject={"O": "Ex\tample", "CN": f"agent-{number}"})
    gone = Machine(tmp_path / "host-1")
    shutil.copy(gone.certificate, tmp_path / "revoked.pem")
    result = gone.issue(state="revoked", subject=None, **authority.options())
    records = authority.records
    text = openssl("crl", "-in", str(records / "crl.pem"), "-noout", "-text", "-CAfile", str(authority.file))
    assert "verify OK" in text
    assert f"Serial Number: {result['revoked'][0]}" in text
    both = tmp_path / "ca-and-crl.pem"
    both.write_bytes(authority.file.read_bytes() + (records / "crl.pem").read_bytes())
    openssl("verify", "-x509_strict", "-crl_check", "-CAfile", str(both), str(tmp_path / "host-0" / "certs" / "agent.crt"))
    assert "certificate revoked" in openssl("verify", "-crl_check", "-CAfile", str(both), str(tmp_path / "revoked.pem"), good=False)
    config = tmp_path / "ca.cnf"
    config.write_text(f"[ca]\ndefault_ca = own\n[own]\ndatabase = {records}/index.txt\ncertificate = {authority.file}\nprivate_key = {authority.key_file}\n"
                      f"crlnumber = {records}/crlnumber\ndefault_md = sha256\ndefault_crl_days = 1\nunique_subject = no\n")
    (records / "index.txt.attr").write_text("unique_subject = no\n")
    openssl("ca", "-config", str(config), "-gencrl", "-out", str(tmp_path / "theirs.pem"))
    theirs = openssl("crl", "-in", str(tmp_path / "theirs.pem"), "-noout", "-text")
    assert f"Serial Number: {result['revoked'][0]}" in theirs
    assert "X509v3 CRL Number: \n                2" in theirs
    assert result["revoked"][0] in openssl("ca", "-config", str(config), "-status", result["revoked"][0], good=False) + theirs


def test_crl_numbers_rise_and_a_second_revocation_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    machines = [Machine(tmp_path / name) for name in "ab"]
    serials = [machine.issue(**authority.options())["certificate"]["serial"] for machine in machines]
    numbers = []
    for serial in (*serials, serials[0]):
        options = {"state": "revoked", "serial_number": serial.lower(), "certificate_path": None, "key_path": None, **authority.options()}
        changed = machines[0].issue(**options)["changed"]
        crl = x509.load_pem_x509_crl((authority.records / "crl.pem").read_bytes())
        numbers.append((changed, crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, len(list(crl))))
    assert numbers == [(True, 1, 1), (True, 2, 2), (False, 2, 2)]


def test_without_records_nothing_can_be_revoked_and_unknown_serials_are_named(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options(directory=None))
    for options, reason in ((authority.options(directory=None), "cannot_revoke"), (authority.options(), "unknown_serial")):
        with pytest.raises(InvalidInput) as caught:
            machine.issue(state="revoked", serial_number="AB:CD", certificate_path=None, key_path=None, **options)
        assert caught.value.reason == reason
    with pytest.raises(InvalidInput):
        machine.issue(state="revoked", serial_number="no number", certificate_path=None, key_path=None, **authority.options())
    assert machine.is_whole()


def test_a_ca_that_may_not_sign_a_crl_says_so_before_it_revokes(tmp_path: Path, machine: Machine) -> None:
    authority = Authority(tmp_path / "ca", usage=(True, False))
    machine.issue(**authority.options())
    with pytest.raises(InvalidInput) as caught:
        machine.issue(state="revoked", **authority.options())
    assert caught.value.reason == "ca_without_crl_sign"
    assert [line[0] for line in authority.issued()] == ["V"]
    assert machine.is_whole()


def test_the_address_of_the_crl_is_written_into_certificates(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options(crl_url="http://pki.example/crl.pem"))
    assert "URI:http://pki.example/crl.pem" in openssl("x509", "-in", str(machine.certificate), "-noout", "-text")


def test_a_torn_or_foreign_line_in_the_index_is_passed_over(authority: Authority, machine: Machine) -> None:
    serial = machine.issue(**authority.options())["certificate"]["serial"]
    index = authority.records / "index.txt"
    index.write_text(f"# a comment\n{index.read_text()}V\t2801")
    assert not machine.issue(**authority.options())["changed"]
    assert machine.issue(state="revoked", **authority.options())["revoked"] == [serial]


def test_forks_take_turns(authority: Authority, tmp_path: Path) -> None:
    def one(number: int) -> str:
        issuer = OwnCa(authority.options()["own_ca"])
        issuer.open()
        request = x.Request((("CN", f"agent-{number}"),), extended_key_usage=("clientAuth",))
        _key, csr = x.new_key_and_request(request)
        return x.serial_text(issuer.sign(SigningOrder(csr, request, 30, "x")).certificate.serial_number)

    with ThreadPoolExecutor(8) as pool:
        serials = list(pool.map(one, range(24)))
    assert sorted(line.split("\t")[3] for line in authority.issued()) == sorted(serials)


def test_records_that_cannot_be_written_are_named_before_anything_is_issued(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "own_ca.directory" in refused(authority, machine, directory=str(tmp_path / "file" / "records")).msg


# -- names of any kind

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=60).filter(
    lambda text: text.strip() != "" and len(text.encode()) <= 64)  # RFC 5280 allows no more


@settings(max_examples=60, deadline=None)
@given(organisation=TEXT, name=TEXT, units=st.lists(TEXT, max_size=2), days=st.integers(1, 20_000))
def test_any_name_comes_back_as_it_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, organisation: str, name: str, units: list[str], days: int,
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any-name"
    authority = Authority(directory) if not directory.exists() else Authority(directory, "Again")
    issuer = OwnCa(authority.options(directory=None)["own_ca"])
    issuer.open()
    request = x.Request((("O", organisation), *(("OU", unit) for unit in units), ("CN", name)), extended_key_usage=("clientAuth",))
    _key, csr = x.new_key_and_request(request)
    certificate = x.load_certificates(x.certificate_pem(issuer.sign(SigningOrder(csr, request, days, "x")).certificate))[0]
    assert x.request_differs(certificate, request) is None
    start, end = x.validity(certificate)
    assert end - start <= days * 86400 + 61
    # Another reader finds the same name.
    file = directory / "one.pem"
    file.write_bytes(x.certificate_pem(certificate))
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(file), "-noout", "-subject", "-nameopt", "sep_multiline,utf8,sname,dump_der"], capture_output=True, check=True)
    values = [line.partition(b"=")[2].decode() for line in shown.stdout.splitlines()[1:]]
    assert values == [organisation, *units, name] or "\\" in "".join([organisation, *units, name])
