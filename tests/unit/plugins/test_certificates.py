# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading certificates that are odd, damaged or hostile, and telling what openssl tells."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import re
import subprocess
import typing as t
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x

REQUEST = x.Request((("CN", "agent"),), extended_key_usage=("clientAuth",))
NOW = datetime.datetime.now(datetime.timezone.utc).timestamp()
RENEWAL = x.Renewal(NOW + 3600, share=0.67)  # certificates of this module are made a little later


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> x.Pair:
    """A self-signed client certificate that openssl made."""
    return made(tmp_path_factory.mktemp("plain"))


def made(folder: Path, *more: str, subject: str = "/CN=agent", days: int = 365) -> x.Pair:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out", str(certificate), "-subj", subject,
            "-days", str(days), "-addext", "keyUsage=digitalSignature", "-addext", "extendedKeyUsage=clientAuth", *more)
    return x.Pair(certificate.read_bytes(), key.read_bytes())


def der(pair: x.Pair) -> bytes:
    return base64.b64decode("".join((pair.certificate or b"").decode().splitlines()[1:-1]))


def pem(data: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"


def test_what_openssl_made_is_good(plain: x.Pair) -> None:
    verdict = x.judge(plain, REQUEST, (), RENEWAL)
    assert (verdict.reason, len(verdict.certificates)) == ("ok", 1)


def test_what_is_told_is_what_openssl_tells(tmp_path: Path) -> None:
    pair = made(tmp_path, "-addext", "subjectAltName=DNS:a.example,IP:192.0.2.7,URI:urn:x:y", subject="/C=US/O=Example, Inc./OU=a/OU=b/CN=agent")
    certificate = x.load_certificates(pair.certificate or b"")[0]
    told = x.describe(certificate)
    file = str(tmp_path / "certificate.pem")
    shown = openssl("x509", "-in", file, "-noout", "-serial", "-fingerprint", "-sha256", "-subject", "-issuer", "-nameopt", "RFC2253", "-dates",
                    "-dateopt", "iso_8601")
    lines = dict(line.partition("=")[::2] for line in shown.splitlines())
    assert told["serial"] == lines["serial"]
    assert told["sha256"] == lines["sha256 Fingerprint"].replace(":", "").lower()
    assert (told["subject"], told["issuer"]) == (lines["subject"], lines["issuer"])
    assert (told["not_before"], told["not_after"]) == tuple(lines[name].replace(" ", "T") for name in ("notBefore", "notAfter"))
    spki = base64.b64decode("".join(openssl("x509", "-in", file, "-noout", "-pubkey").splitlines()[1:-1]))
    assert told["spki_sha256"] == base64.b64encode(hashlib.sha256(spki).digest()).decode()
    assert told["names"] == ["DNS:a.example", "IP:192.0.2.7", "URI:urn:x:y"]
    assert (told["key"], told["signature"], told["key_usage"], told["extended_key_usage"]) == ("EC secp256r1", "sha256", ["digitalSignature"], ["clientAuth"])


def without_utf8(data: bytes) -> bytes:
    return data.replace(b"\x0c\x05agent", b"\x0c\x05\xff\xfe\xfd\xfc\xfb")


def with_an_extension_twice(data: bytes) -> bytes:
    return data.replace(bytes.fromhex("551d25"), bytes.fromhex("551d0f"))


def with_a_name_of_no_type(data: bytes) -> bytes:
    place = data.index(b"\x06\x03\x55\x04\x03") + 5
    return data[:place] + b"\0" + data[place + 1:]


def with_a_negative_serial(data: bytes) -> bytes:
    place = data.index(b"\x02", data.index(b"\xa0\x03\x02\x01\x02") + 5)
    return data[: place + 2] + b"\xff" + data[place + 3:]


ODD: dict[str, t.Callable[[bytes], bytes]] = {
    "subject-not-utf8": lambda data: pem(without_utf8(data)), "extension-twice": lambda data: pem(with_an_extension_twice(data)),
    "name-of-no-type": lambda data: pem(with_a_name_of_no_type(data)),
    "negative-serial": lambda data: pem(with_a_negative_serial(data)), "empty": lambda data: b"", "der": lambda data: data,
    "cut": lambda data: pem(data[:-40]), "no-base64": lambda data: b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
    "empty-block": lambda data: b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n", "other-kind": lambda data: pem(data).replace(b"CERT", b"CERTI"),
    "a-thousand": lambda data: pem(data) * 1000, "second-broken": lambda data: pem(data) + pem(data[:-40]), "zeros": lambda data: b"\0" * 100_000,
}


@pytest.mark.parametrize("case", ODD)
def test_what_cannot_be_read_is_renewed_and_never_crashes(plain: x.Pair, case: str) -> None:
    data = ODD[case](der(plain))
    assert data != plain.certificate
    verdict = x.judge(x.Pair(data, plain.key), REQUEST, (), RENEWAL)
    if case != "negative-serial":
        assert (verdict.reason, verdict.certificates) == ("unreadable", ())
        return
    # Some versions of the library read it; either way its signature is not the one of its issuer any more.
    issuers = x.load_certificates(plain.certificate or b"")
    assert x.judge(x.Pair(data, plain.key), REQUEST, issuers, RENEWAL).reason in ("unreadable", "issuer_changed")


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(plain: x.Pair, place: int, value: int) -> None:
    data = bytearray(der(plain))
    before, data[place % len(data)] = data[place % len(data)], value
    issuers = x.load_certificates(plain.certificate or b"")
    verdict = x.judge(x.Pair(pem(bytes(data)), plain.key), REQUEST, issuers, RENEWAL)
    assert (verdict.reason == "ok") == (before == value)


def test_a_signature_that_is_not_whole_bytes_is_noticed(tmp_path: Path) -> None:
    key, file = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
    for _attempt in range(64):
        openssl("req", "-x509", "-key", str(key), "-out", str(file), "-subj", "/CN=agent", "-addext", "extendedKeyUsage=clientAuth")
        good = x.Pair(file.read_bytes(), key.read_bytes())
        if der(good)[-1] % 2 == 0:  # An unused bit has to be 0, or nobody reads the certificate at all.
            break
    issuers = x.load_certificates(good.certificate or b"")
    data = bytearray(der(good))
    count = len(data) - len(issuers[0].signature) - 1
    assert data[count] == 0
    data[count] = 1
    assert x.judge(good, REQUEST, issuers, RENEWAL).reason == "ok"
    assert x.judge(x.Pair(pem(bytes(data)), good.key), REQUEST, issuers, RENEWAL).reason == "issuer_changed"
    openssl("verify", "-check_ss_sig", "-CAfile", str(file), str(file))
    file.write_bytes(pem(bytes(data)))
    done = subprocess.run(["openssl", "verify", "-check_ss_sig", "-CAfile", str(file), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_judged(data: bytes) -> None:
    for content in (data, pem(data), b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(data) + b"-----END PRIVATE KEY-----\n"):
        assert x.judge(x.Pair(content, content), REQUEST, (), RENEWAL).reason == "unreadable"


def test_words_around_a_certificate_and_windows_line_ends_do_no_harm(plain: x.Pair) -> None:
    text = b"Bag Attributes\n  localKeyID: 01\n" + (plain.certificate or b"").replace(b"\n", b"\r\n") + b"trailing"
    assert x.judge(x.Pair(text, plain.key), REQUEST, (), RENEWAL).reason == "ok"


@pytest.mark.parametrize("kind", ["traditional", "encrypted", "other", "parameters", "nothing", "public"])
def test_keys_in_other_forms(plain: x.Pair, tmp_path: Path, kind: str) -> None:
    (tmp_path / "key.pem").write_bytes(plain.key or b"")
    key, reason = plain.key, "ok"
    if kind == "traditional":
        key = openssl("pkey", "-in", str(tmp_path / "key.pem"), "-traditional").encode()
        assert b"BEGIN EC PRIVATE KEY" in key
    elif kind == "encrypted":
        key, reason = openssl("pkey", "-in", str(tmp_path / "key.pem"), "-aes256", "-passout", "pass:x").encode(), "key_unreadable"
    elif kind == "other":
        key, reason = x.new_key_and_request(REQUEST)[0], "key_mismatch"
    elif kind == "parameters":
        key = openssl("ecparam", "-name", "prime256v1").encode() + openssl("pkey", "-in", str(tmp_path / "key.pem"), "-traditional").encode()
    elif kind == "public":
        key, reason = openssl("pkey", "-in", str(tmp_path / "key.pem"), "-pubout").encode(), "key_unreadable"
    else:
        key, reason = None, "key_missing"
    assert x.judge(x.Pair(plain.certificate, key), REQUEST, (), RENEWAL).reason == reason


def test_weak_signatures_are_renewed(tmp_path: Path) -> None:
    assert x.judge(made(tmp_path, "-sha1"), REQUEST, (), RENEWAL).reason == "weak_signature"


def test_an_issuer_is_one_by_its_signature_and_not_by_its_name(plain: x.Pair, tmp_path: Path) -> None:
    same_name = x.load_certificates(made(tmp_path).certificate or b"")
    assert x.judge(plain, REQUEST, same_name, RENEWAL).reason == "issuer_changed"
    assert x.judge(plain, REQUEST, x.load_certificates(plain.certificate or b""), RENEWAL).reason == "ok"


def test_an_rsa_pss_signature_is_checked_as_such(tmp_path: Path) -> None:
    options = ("-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss")
    openssl("req", "-x509", *options, "-nodes", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "pss.pem"), "-subj", "/CN=agent")
    certificate = x.load_certificates((tmp_path / "pss.pem").read_bytes())[0]
    assert x.is_issued_by(certificate, certificate)


@pytest.mark.parametrize(("subject", "openssl_subject"), [
    ((("C", "US"), ("O", "KubeAtlas"), ("CN", "agent-a")), "C = US, O = KubeAtlas, CN = agent-a"),
    ((("DC", "com"), ("DC", "example"), ("UID", "7"), ("CN", "x")), "DC = com, DC = example, UID = 7, CN = x"),
    ((("CN", "a/b=c"), ("emailAddress", "a@example.com")), "CN = a/b=c, emailAddress = a@example.com"),
])
def test_a_request_says_what_was_asked_for(tmp_path: Path, subject: tuple[tuple[str, str], ...], openssl_subject: str) -> None:
    request = x.Request(subject, names=("DNS:a.example", "IP:2001:db8::1", "URI:urn:a"), key_usage=("keyEncipherment", "dataEncipherment"),
                        extended_key_usage=("clientAuth", "1.3.6.1.4.1.99999.1"), key_type="rsa", key_size=2048)
    key, csr = x.new_key_and_request(request)
    (tmp_path / "csr.pem").write_bytes(csr)
    text = openssl("req", "-in", str(tmp_path / "csr.pem"), "-noout", "-text", "-verify", "-nameopt", "oneline")
    assert f"Subject: {openssl_subject}" in text
    for word in ("DNS:a.example, IP Address:2001:DB8:0:0:0:0:0:1, URI:urn:a", "Key Encipherment, Data Encipherment", "TLS Web Client Authentication",
                 "1.3.6.1.4.1.99999.1", "Public-Key: (2048 bit)"):
        assert word in text
    assert x.request_fits(csr, key, request)
    assert x.Request.load(request.dump()) == request
    assert not x.request_fits(csr, x.new_key_and_request(REQUEST)[0], request)
    for changed in ({"names": ("DNS:a.example",)}, {"key_usage": ()}, {"extended_key_usage": ("clientAuth",)}, {"key_size": 3072}, {"subject": (("CN", "y"),)}):
        assert not x.request_fits(csr, key, x.Request.load({**request.dump(), **changed}))


@settings(max_examples=200, deadline=None)
@given(start=st.integers(-4000, 400), life=st.integers(1, 20_000), days=st.none() | st.integers(0, 400), share=st.floats(0.01, 0.99), early=st.floats(0, 0.3))
def test_a_certificate_is_due_before_it_ends_and_stays_due(start: int, life: int, days: int | None, share: float, early: float) -> None:
    class Fake:
        not_valid_before_utc = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(days=start)
        not_valid_after_utc = not_valid_before_utc + datetime.timedelta(days=life)

    renewal = x.Renewal(0.0, days=days, share=share, early=early)
    moment = x.renewal_time(t.cast(t.Any, Fake), renewal)
    begin, end = x.validity(t.cast(t.Any, Fake))
    assert moment <= end
    assert moment <= begin + (end - begin) * share + 1
    assert days is None or moment <= end - days * 86400
    assert moment >= min(begin + (end - begin) * share, end - (days or 0) * 86400) - early * (end - begin) - 1


def test_names_are_compared_in_one_form() -> None:
    assert x.normal_name("dns: WWW.Example.COM") == "DNS:www.example.com"
    assert x.normal_name("DNS:*.example.com") == "DNS:*.example.com"
    assert x.normal_name("IP:2001:0DB8::0001") == "IP:2001:db8::1"
    assert x.normal_name("DNS:bücher.example") == "DNS:xn--bcher-kva.example"
    for wrong in ("", "example.com", "EMAIL:a@b", "DNS:", "DNS:-a.b", "DNS:" + "a" * 64, "DNS:" + "a." * 130, "IP:1.2.3", "URI:no scheme", "DNS:a..b"):
        with pytest.raises(x.CertificateError):
            x.normal_name(wrong)


def test_serial_numbers_are_written_as_openssl_writes_them() -> None:
    assert [x.serial_text(number) for number in (0, 1, 0xABC, 0x1234, -5)] == ["00", "01", "0ABC", "1234", "-05"]


def test_no_private_key_is_ever_part_of_a_message(plain: x.Pair) -> None:
    line = (plain.key or b"").splitlines()[1].decode()
    for pair in (x.Pair(plain.key, plain.key), x.Pair(plain.certificate, (plain.key or b"")[:-60]), x.Pair(plain.certificate, b"x" + os.urandom(20))):
        verdict = x.judge(pair, REQUEST, (), RENEWAL)
        assert verdict.reason != "ok"
        assert line not in verdict.detail
        assert re.search(r"[A-Za-z0-9+/]{40}", verdict.detail) is None
