# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every field that is told of a certificate, against what openssl reads in it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.plugin_utils._check_chain import host_matches
from ansible_collections.muster.agents.plugins.plugin_utils._check_details import Certificate, details, load

from .faces import NOW, Authority, Certified, key_usage, name, openssl

USAGES = {
    "Digital Signature": "digital_signature", "Non Repudiation": "content_commitment", "Key Encipherment": "key_encipherment",
    "Data Encipherment": "data_encipherment", "Key Agreement": "key_agreement", "Certificate Sign": "key_cert_sign", "CRL Sign": "crl_sign",
}
EXTENDED = {"TLS Web Server Authentication": "serverAuth", "TLS Web Client Authentication": "clientAuth", "OCSP Signing": "OCSPSigning",
            "Any Extended Key Usage": "anyExtendedKeyUsage"}
URLS = {"ocsp": "http://ocsp.example.test/", "issuers": "http://ca.example.test/ca.crt", "crl": "http://ca.example.test/ca.crl"}


def everything() -> list[tuple[Any, bool]]:
    location = x509.UniformResourceIdentifier
    return [
        (key_usage(digital_signature=True, key_encipherment=True, key_agreement=True), True),
        (x509.AuthorityInformationAccess([
            x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location(URLS["ocsp"])),
            x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, location(URLS["issuers"]))]), False),
        (x509.CRLDistributionPoints([x509.DistributionPoint([location(URLS["crl"])], None, None, None)]), False),
    ]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Details CA")


def ours(made: Certified) -> dict[str, Any]:
    loaded = load(made.der)
    assert isinstance(loaded, Certificate)
    return details(loaded, NOW.timestamp())


def theirs(made: Certified) -> dict[str, Any]:
    """The same fields as openssl prints them."""
    words = openssl("x509", "-inform", "DER", "-noout", "-serial", "-fingerprint", "-sha256", "-dates", "-dateopt", "iso_8601", "-subject", "-issuer",
                    "-nameopt", "RFC2253,utf8,-esc_msb", "-text", "-certopt", "no_pubkey,no_sigdump,no_header", stdin=made.der).stdout.decode()
    lines = dict(line.split("=", 1) for line in words.splitlines() if re.match(r"[a-zA-Z0-9 ]+=", line))
    text = openssl("x509", "-inform", "DER", "-noout", "-text", stdin=made.der).stdout.decode()
    spki = openssl("x509", "-inform", "DER", "-noout", "-pubkey", stdin=made.der).stdout.decode()
    serial = lines["serial"]
    return {
        "serial_number": ":".join(re.findall("..", serial)), "fingerprint_sha256": lines["sha256 Fingerprint"],
        "not_before": lines["notBefore"].replace(" ", "T"), "not_after": lines["notAfter"].replace(" ", "T"),
        "subject": lines["subject"], "issuer": lines["issuer"],
        "signature_algorithm": re.search(r"Signature Algorithm: (\S+)", text).group(1),
        "version": int(re.search(r"Version: (\d)", text).group(1)),
        "public_key_bits": int(found.group(1)) if (found := re.search(r"Public-Key: \((\d+) bit\)", text)) else 256,
        "fingerprint_spki_sha256": base64.b64encode(hashlib.sha256(base64.b64decode("".join(spki.split("\n")[1:-2]))).digest()).decode(),
        "key_usage": [USAGES[item] for item in _values(text, "X509v3 Key Usage")],
        "extended_key_usage": [EXTENDED[item] for item in _values(text, "X509v3 Extended Key Usage")],
        "subject_alt_names": [item.split(":", 1)[1] for item in _values(text, "X509v3 Subject Alternative Name")],
        "is_ca": "CA:TRUE" in text, "ocsp_urls": re.findall(r"OCSP - URI:(\S+)", text), "ca_issuer_urls": re.findall(r"CA Issuers - URI:(\S+)", text),
        "crl_urls": re.findall(r"Full Name:\s+URI:(\S+)", text),
    }


def _values(text: str, extension: str) -> list[str]:
    found = re.search(rf"{extension}:[^\n]*\n\s+(.*)", text)
    return [item.strip() for item in found.group(1).split(",")] if found else []


@pytest.mark.parametrize("key", ["ec", "p384", "ed25519", "rsa2048"])
def test_every_field_is_what_openssl_reads(authority: Authority, key: str) -> None:
    made = authority.issue(
        "www.example.test", ["www.example.test", "*.example.test", "192.0.2.7", "2001:db8::7", "spiffe://example.test/agent"], key=key,
        extensions=everything(), subject=name("www.example.test", o="Muster", ou="Agents", c="NL"))
    found = ours(made)
    expected = theirs(made)
    expected["subject_alt_names"][3] = "2001:db8::7"  # openssl writes it out
    assert {field: found[field] for field in expected} == expected
    assert (found["subject_cn"], found["subject_o"], found["issuer_cn"], found["issuer_o"], found["issuer_ou"], found["issuer_c"]) == (
        "www.example.test", "Muster", "Details CA", "Example", "", "NL")
    assert (found["is_wildcard"], found["sct_count"]) == (True, 0)
    assert found["public_key_algorithm"] == {"ec": "ECDSA", "p384": "ECDSA", "ed25519": "Ed25519", "rsa2048": "RSA"}[key]


def test_a_ca_and_an_rsa_pss_signature_are_what_openssl_reads() -> None:
    root = Authority("PSS", key="rsa2048")
    for made in (Certified(root.certificate.public_bytes(Encoding.DER), None), root.issue(pss=True)):
        found, expected = ours(made), theirs(made)
        assert {field: found[field] for field in expected} == expected


def test_a_certificate_that_comes_again_is_read_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    parse = x509.load_der_x509_certificate

    def noted(der: bytes) -> x509.Certificate:
        read.append(der)
        return parse(der)

    monkeypatch.setattr(x509, "load_der_x509_certificate", noted)
    der = authority.issue("again").der
    first, second = load(der), load(bytes(bytearray(der)))
    assert isinstance(first, Certificate)
    assert first is second
    assert len(read) == 1
    assert first.names == (("DNS", "again"),)
    assert first.extension(x509.KeyUsage) is first.extension(x509.KeyUsage)


def test_the_fields_of_a_monitor_are_there_under_their_names(authority: Authority) -> None:
    fields = {
        "not_before", "not_after", "issuer_cn", "issuer_o", "issuer_ou", "issuer_c", "subject_alt_names", "serial_number", "fingerprint_sha256", "version",
        "signature_algorithm", "public_key_algorithm", "public_key_bits", "subject_cn", "subject_o", "key_usage", "extended_key_usage", "is_ca", "is_wildcard",
        "ocsp_urls", "crl_urls", "ca_issuer_urls", "sct_count",
    }
    assert fields <= set(ours(authority.issue()))


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
SECONDS = st.integers(0, int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp()) - int(NOW.timestamp()))
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
COMMON = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(common=TEXT, organisation=TEXT, seconds=SECONDS)
def test_names_and_dates_are_read_as_openssl_reads_them(common: str, organisation: str, seconds: int) -> None:
    made = CA.issue("x", days=(-1, seconds / 86400), subject=name(common, o=organisation))
    found = ours(made)
    expected: Mapping[str, Any] = theirs(made)
    assert (found["not_before"], found["not_after"], found["serial_number"]) == (expected["not_before"], expected["not_after"], expected["serial_number"])
    assert (found["subject_cn"], found["subject_o"]) == (common, organisation)


@COMMON
@given(labels=st.lists(LABEL, min_size=2, max_size=4), others=st.lists(LABEL, min_size=2, max_size=4), wild=st.booleans())
def test_hosts_are_matched_as_openssl_matches_them(labels: list[str], others: list[str], wild: bool) -> None:
    pattern = ".".join(["*", *labels[1:]] if wild else labels)
    made = CA.issue("x", [pattern])
    loaded = load(made.der)
    assert isinstance(loaded, Certificate)
    for host in (".".join(labels), ".".join([others[0], *labels[1:]]), ".".join([others[0], *labels])):
        said = openssl("x509", "-inform", "DER", "-noout", "-checkhost", host, stdin=made.der).stdout.decode()
        assert (host_matches(loaded, host) is None) == ("does match" in said), (pattern, host)


CA = Authority("Names")
