# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One session to a server: what it trusts, what it repeats, what each failure means, and what it never sends."""

from __future__ import annotations

import base64
import datetime
import email.utils
import hashlib
import json
import socket
import ssl
import time
import traceback
import typing as t
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests.adapters
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from sockets import Proxy, Sayer, SocksProxy, answer_bytes

from ansible_collections.muster.agents.plugins.plugin_utils import _http
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    InvalidInput,
    InvalidRequest,
    MissingLibrary,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http, Transport, check_url
from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority, KeyPair

CANARY = "canary-7f3e-do-not-print"
HEALTH = "/health_check"
REGISTER = "/api/v1/agent/register"
BODY = {"deployment_hash": "edge", "agent_version": "1.0.0", "capabilities": ["logs"], "system_info": {}}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(ca: CertificateAuthority) -> KeyPair:
    return ca.server()


@pytest.fixture(scope="module")
def running(pair: KeyPair) -> Iterator[ReferenceServer]:
    with ReferenceServer.start("shipped", tls=Tls(str(pair.cert), str(pair.key))) as started:
        yield started


@pytest.fixture
def server(running: ReferenceServer) -> ReferenceServer:
    running.reset()
    return running


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine's own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no test wait; the pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=made.append, time=time.time, monotonic=time.monotonic))
    return made


@pytest.fixture
def opened(ca: CertificateAuthority) -> Iterator[t.Callable[..., Http]]:
    """Open sessions that trust the test's CA and repeat nothing, unless told otherwise; they are closed at the end."""
    sessions: list[Http] = []

    def open_one(url: str, **options: t.Any) -> Http:
        sessions.append(Http(url, Transport(**{"ca_cert": str(ca.ca_file), "retries": 0, "timeout": 10.0, **options})))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


Open = t.Callable[..., Http]


def _server_context(pair: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(pair.cert), str(pair.key))
    return context


# -- the URL ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "clean"), [
    ("https://control.test", "https://control.test"), ("https://control.test/", "https://control.test"), ("https://control.test:8443", "https://control.test:8443"),
    ("HTTPS://Control.Test:1", "https://Control.Test:1"), ("https://[::1]:8443/", "https://[::1]:8443"), ("http://127.0.0.1:80", "http://127.0.0.1:80"),
    ("http://localhost:1", "http://localhost:1"), ("http://[::1]:1", "http://[::1]:1"), ("http://127.9.9.9", "http://127.9.9.9"),
])
def test_a_usable_url_is_cleaned(url: str, clean: str) -> None:
    assert check_url(url, option="url", allow_plaintext=False) == clean


@pytest.mark.parametrize("url", [
    "", "control.test", "control.test:8443", "//control.test", "ftp://control.test", "https://", "https://:8443", "https:///path", "https://control.test/api",
    "https://control.test?x=1", "https://control.test#top", "https://control.test:99999", "https://control.test:0", "https://control.test:port",
    "http://control.test", "http://10.0.0.1", "https://[::1", "https://con trol.test", "https://control.test\x00", "https://control\u2100.test",
])
def test_an_unusable_url_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"\Aurl ") as refusal:
        check_url(url, option="url", allow_plaintext=False)
    assert ": " in refusal.value.msg


@pytest.mark.parametrize("url", [f"{scheme}://user:{CANARY}@control.test{end}" for scheme in ("https", "http", "ftp") for end in ("", ":99999", "/path", "?q")])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_url(url, option="url", allow_plaintext=True)
    assert CANARY not in refusal.value.msg


def test_plain_text_needs_permission() -> None:
    with pytest.raises(InvalidInput, match="allow_plaintext: true"):
        check_url("http://control.test", option="url", allow_plaintext=False)
    assert check_url("http://control.test", option="url", allow_plaintext=True) == "http://control.test"


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "IMPORT_ERROR", "Traceback ...")
    with pytest.raises(MissingLibrary, match=r"requirements\.txt"):
        Http("https://control.test", Transport())


# -- trust ------------------------------------------------------------------------------------------------------------------------------------


def test_a_server_of_the_named_ca_is_trusted(server: ReferenceServer, opened: Open) -> None:
    http = opened(server.url)
    answer = http.get(HEALTH)
    assert (answer.status, answer.json["status"]) == (200, "healthy")
    assert http.clock_skew == pytest.approx(0, abs=30)


def test_a_server_of_another_ca_is_untrusted(server: ReferenceServer, opened: Open) -> None:
    with pytest.raises(Untrusted, match="ca_cert") as failure:
        opened(server.url, ca_cert="").get(HEALTH)
    assert failure.value.reason == "untrusted"


def test_a_server_of_another_ca_is_met_when_asked_to(server: ReferenceServer, opened: Open) -> None:
    assert opened(server.url, ca_cert="", validate_certs=False).get(HEALTH).status == 200


def test_a_certificate_for_another_name_is_untrusted(ca: CertificateAuthority, opened: Open) -> None:
    with Sayer(tls=_server_context(ca.server("elsewhere", ["elsewhere.test"]))) as sayer:
        with pytest.raises(Untrusted, match="not valid for") as failure:
            opened(sayer.url).send("POST", "/", json_body={"token": CANARY})
        assert failure.value.reason == "untrusted"
        assert sayer.requests == []


def _digests(pair: KeyPair) -> tuple[str, str]:
    """Return the certificate's digest in hexadecimal and its key's in base64."""
    certificate = x509.load_pem_x509_certificate(pair.cert.read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(), base64.b64encode(hashlib.sha256(key).digest()).decode()


@pytest.mark.parametrize("form", ["{hex}", "{upper}", "{colons}", "sha256:{hex}", "{spki}", "sha256//{spki}", "SHA256/{spki}", " {hex} "])
def test_the_right_pin_lets_in(form: str, server: ReferenceServer, pair: KeyPair, opened: Open) -> None:
    digest, spki = _digests(pair)
    colons = ":".join(digest[index : index + 2] for index in range(0, 64, 2)).upper()
    pin = form.format(hex=digest, upper=digest.upper(), colons=colons, spki=spki)
    assert opened(server.url, pin_sha256=pin).get(HEALTH).status == 200


@given(digest=st.binary(min_size=32, max_size=32), prefix=st.sampled_from(["", "sha256:", "sha256/", "sha256//", "SHA256//"]))
@example(digest=b"\xff" * 32, prefix="sha256/")
@example(digest=b"\xff" * 32, prefix="sha256//")
def test_every_digest_is_read_with_every_prefix(digest: bytes, prefix: str) -> None:
    spki, colons = base64.b64encode(digest).decode(), digest.hex(":").upper()
    assert _http._Pin.parse(prefix + spki) == _http._Pin(public_key=digest)
    assert _http._Pin.parse(prefix + digest.hex()) == _http._Pin.parse(prefix + colons) == _http._Pin(certificate=digest)


@pytest.mark.parametrize("kind", ["certificate", "key"])
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("way", ["direct", "proxy", "socks"])
def test_a_wrong_pin_keeps_out_before_anything_is_sent(
    kind: str, validate: bool, way: str, ca: CertificateAuthority, pair: KeyPair, opened: Open,
) -> None:
    digest, spki = _digests(ca.server("another"))
    with Sayer(tls=_server_context(pair)) as sayer, (SocksProxy() if way == "socks" else Proxy()) as proxy:
        http = opened(
            sayer.url, pin_sha256=digest if kind == "certificate" else spki, validate_certs=validate, proxy="" if way == "direct" else proxy.url, retries=2)
        with pytest.raises(Untrusted, match="pin_sha256") as failure:
            http.send("POST", "/", json_body={"token": CANARY})
        assert failure.value.reason == "wrong_pin"
        assert sayer.requests == []
        assert len(proxy.tunnels) == int(way != "direct")


@pytest.mark.parametrize("pin", ["x", "ab" * 31, "ab" * 33, "not base64!", base64.b64encode(b"short").decode(), "sha256:"])
def test_a_pin_that_is_none_is_refused(pin: str, opened: Open) -> None:
    with pytest.raises(InvalidInput, match="pin_sha256"):
        opened("https://control.test", pin_sha256=pin)


def test_a_session_that_trusts_anybody_makes_no_other_one_do_so(pair: KeyPair, opened: Open) -> None:
    with Sayer(tls=_server_context(pair)) as sayer:
        for trusting in (False, True):
            if trusting:
                assert opened(sayer.url, ca_cert="", validate_certs=False).get("/").status == 200
            with pytest.raises(Untrusted, match="is not trusted"):
                opened(sayer.url, ca_cert="").get("/")


@pytest.mark.parametrize(("highest", "floor", "trust"), [("1.2", "1.3", {}), ("1.1", "1.2", {}), ("1.1", "1.2", {"ca_cert": ""})])
def test_a_server_below_the_floor_is_refused(highest: str, floor: str, trust: dict[str, str], pair: KeyPair, opened: Open) -> None:
    context = _server_context(pair)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = {"1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2}[highest]
    with Sayer(tls=context) as sayer:
        with pytest.raises(Untrusted, match="tls_min_version") as failure:
            opened(sayer.url, tls_min_version=floor, **trust).get("/")
        assert failure.value.reason == "tls_too_old"
        assert sayer.requests == []


def test_a_server_that_hangs_up_on_the_handshake_got_nothing(pair: KeyPair, opened: Open) -> None:
    with ReferenceServer.start("shipped", tls=Tls(str(pair.cert), str(pair.key), max_version="1.2")) as server:
        with pytest.raises(Untrusted, match=r"broke off the TLS handshake.*tls_min_version"):
            opened(server.url, tls_min_version="1.3").send("POST", REGISTER, json_body=BODY)
        assert server.agents() == []


def test_the_floor_itself_is_enough(pair: KeyPair, opened: Open) -> None:
    context = _server_context(pair)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Sayer(tls=context) as sayer:
        assert opened(sayer.url, tls_min_version="1.2").get("/").status == 200


def test_a_port_without_tls_is_told_as_such(opened: Open) -> None:
    with Sayer() as sayer:
        with pytest.raises(Untrusted, match="does not speak TLS"):
            opened(f"https://127.0.0.1:{sayer.port}").send("POST", "/", json_body={"token": CANARY})
        assert all(CANARY.encode() not in request for request in sayer.requests)


@pytest.mark.parametrize("spare", [True, False])
def test_a_context_for_a_ca_is_what_python_makes_for_it(spare: bool, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_SPARE", [_http._trusting_nobody()] if spare else [])
    _http._new_tls_context.cache_clear()
    made, usual = _http._tls_context(Transport(ca_cert=str(ca.ca_file))), ssl.create_default_context(cafile=str(ca.ca_file))
    usual.minimum_version = ssl.TLSVersion.TLSv1_2
    for name in ("verify_mode", "check_hostname", "verify_flags", "options", "minimum_version", "maximum_version", "post_handshake_auth", "keylog_filename"):
        assert getattr(made, name) == getattr(usual, name), name
    assert made.get_ca_certs() == usual.get_ca_certs()
    assert [cipher["name"] for cipher in made.get_ciphers()] == [cipher["name"] for cipher in usual.get_ciphers()]


def test_the_client_certificate_is_shown(ca: CertificateAuthority, pair: KeyPair, opened: Open) -> None:
    client = ca.client("operator")
    context = _server_context(pair)
    context.load_verify_locations(str(ca.ca_file))
    context.verify_mode = ssl.CERT_REQUIRED
    with Sayer(tls=context) as sayer, Proxy() as proxy:
        assert opened(sayer.url, client_cert=str(client.cert), client_key=str(client.key)).get("/").status == 200
        assert opened(sayer.url, client_cert=str(client.cert), client_key=str(client.key), proxy=proxy.url).get("/").status == 200
        assert sayer.peers == ["operator", "operator"]
        with pytest.raises((Untrusted, ServerFault)):
            opened(sayer.url).get("/")
        assert len(sayer.requests) == 2


def test_files_of_tls_that_cannot_serve_are_named(tmp_path: Path, ca: CertificateAuthority, opened: Open) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(CANARY)
    client, other = ca.client("operator"), ca.client("other")
    for options, option in (
        ({"ca_cert": str(wrong)}, "ca_cert"), ({"ca_cert": str(tmp_path / "absent")}, "ca_cert"), ({"client_cert": str(wrong)}, "client_cert"),
        ({"client_cert": str(client.cert), "client_key": str(other.key)}, "client_cert"), ({"ciphers": "NO-SUCH-CIPHER"}, "ciphers"),
        ({"tls_min_version": "1.0"}, "tls_min_version"),
    ):
        with pytest.raises(InvalidInput, match=rf"\A{option} ") as refusal:
            opened("https://control.test", **options)
        assert CANARY not in refusal.value.msg


# -- failures by meaning ------------------------------------------------------------------------------------------------------------------------


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
    return port


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_connection_proves_that_nothing_arrived(method: str, opened: Open, pauses: list[float]) -> None:
    with pytest.raises(Unreachable, match="refuses connections") as failure:
        opened(f"https://127.0.0.1:{_closed_port()}", retries=2).send(method, "/")
    assert failure.value.reason == "refused"
    assert pauses == [0.1, 0.4]


def test_a_name_that_does_not_resolve_is_told(opened: Open) -> None:
    with pytest.raises(Unreachable, match="cannot be resolved") as failure:
        opened("https://control.invalid").send("POST", "/")
    assert failure.value.reason == "unresolvable"


def test_an_answer_that_is_slow_is_ambiguous_after_a_post_and_a_fault_after_a_read(server: ReferenceServer, opened: Open) -> None:
    server.fault("any", "slow", times=None, seconds=2)
    with pytest.raises(Ambiguous) as lost:
        opened(server.url, timeout=0.2).send("POST", REGISTER, json_body=BODY)
    assert lost.value.reason == "ambiguous"
    with pytest.raises(ServerFault) as fault:
        opened(server.url, timeout=0.2).get(HEALTH)
    assert fault.value.reason == "server_fault"
    assert [agent["name"] for agent in server.agents()] == ["edge"]


@pytest.mark.parametrize("kind", ["commit-then-drop", "truncate", "refuse"])
def test_a_lost_answer_is_ambiguous_and_never_asked_for_again(kind: str, server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("register", kind)
    with pytest.raises(Ambiguous):
        opened(server.url, retries=3).send("POST", REGISTER, json_body=BODY)
    assert pauses == []
    assert server.faults()[0]["fired"] == 1
    assert len([line for line in server.log if line["path"] == REGISTER and line["method"] == "POST"]) >= 1


@pytest.mark.parametrize("kind", ["commit-then-drop", "truncate", "refuse"])
def test_a_read_is_repeated(kind: str, server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("health", kind, times=2)
    assert opened(server.url, retries=3).get(HEALTH).status == 200
    assert pauses == [0.1, 0.4]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_faulty_gateway_is_asked_again_by_reads_alone(status: int, server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("any", "status", times=2, status=status)
    assert opened(server.url, retries=3).get(HEALTH).status == 200
    server.clear_faults()
    server.fault("any", "status", times=1, status=status)
    assert opened(server.url, retries=3).send("POST", REGISTER, json_body=BODY).status == status
    assert pauses == [0.1, 0.4]
    assert server.agents() == []


def test_a_server_that_repeats_a_secret_does_not_make_us_show_it(server: ReferenceServer, opened: Open) -> None:
    server.fault("any", "status", times=None, status=403, body=json.dumps({"message": f"no such user {CANARY} with {CANARY}-2"}))
    http = opened(server.url)
    answers = [
        http.send("POST", REGISTER, json_body=BODY, headers={"Authorization": f"Bearer {CANARY}"}),
        http.send("POST", REGISTER, json_body={**BODY, "password": CANARY}),
        http.get(HEALTH, headers={"X-Vault-Token": CANARY}),
    ]
    assert [answer.message for answer in answers] == ["no such user <secret> with <secret>-2"] * 3
    assert CANARY not in repr(answers)


def test_repeating_ends(server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("health", "status", times=None, status=503)
    assert opened(server.url, retries=2).get(HEALTH).status == 503
    assert len(pauses) == 2
    server.clear_faults()
    server.fault("health", "refuse", times=None)
    with pytest.raises(ServerFault):
        opened(server.url, retries=2).get(HEALTH)
    assert len(pauses) == 4


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_retry_after_is_honoured(method: str, server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("any", "429", times=1, retry_after=7)
    path = HEALTH if method == "GET" else REGISTER
    assert opened(server.url, retries=1).send(method, path, json_body=BODY if method == "POST" else None).status in (200, 201)
    assert pauses == [pytest.approx(7.0, abs=0.5)]


def test_a_date_in_retry_after_is_read(server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
    server.fault("health", "429", retry_after=email.utils.format_datetime(later, usegmt=True))
    assert opened(server.url, retries=1).get(HEALTH).status == 200
    assert 20 < pauses[0] < 40


@pytest.mark.parametrize("value", ["soon", "", "-5", "1.5", "\u00b2"])
def test_a_retry_after_that_says_nothing_means_a_second(value: str, opened: Open, pauses: list[float]) -> None:
    answer = b"HTTP/1.1 429 Slow\r\nRetry-After: " + value.encode("latin-1") + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Sayer(answer) as sayer, pytest.raises(Throttled) as failure:
        opened(sayer.url, retries=1, patience=1.5).get("/")
    assert failure.value.retry_after == 1.0
    assert pauses == [pytest.approx(1.0, abs=0.5)]


def test_a_wait_too_long_is_left_to_the_operator(server: ReferenceServer, opened: Open, pauses: list[float]) -> None:
    server.fault("health", "429", retry_after=3600)
    with pytest.raises(Throttled, match="3600 seconds") as failure:
        opened(server.url, retries=3).get(HEALTH)
    assert failure.value.retry_after == 3600
    assert pauses == []


def test_an_endless_answer_is_cut_off(opened: Open, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_MAX_BODY", 1000)
    with Sayer(answer_bytes(b"x" * 1000)) as sayer:
        with pytest.raises(ServerFault, match="sent more than"):
            opened(sayer.url).get("/")
        before = len(sayer.requests)
        with pytest.raises(Ambiguous):
            opened(sayer.url, retries=3).send("POST", "/")
        assert len(sayer.requests) == before + 1
    assert pauses == []


def test_a_redirect_is_not_followed(opened: Open) -> None:
    with Sayer() as other, Sayer(answer_bytes(b"", "302 Found", f"Location: {other.url}/\r\n")) as sayer:
        with pytest.raises(InvalidRequest, match="redirects to http") as failure:
            opened(sayer.url).send("POST", "/", headers={"Authorization": f"Bearer {CANARY}"})
        assert failure.value.reason == "redirected"
        assert other.requests == []


def test_a_skewed_clock_shows(server: ReferenceServer, opened: Open) -> None:
    server.clock(-900)
    http = opened(server.url)
    http.get(HEALTH)
    assert http.clock_skew == pytest.approx(-900, abs=30)


# -- proxies and other people's settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Proxy, SocksProxy])
def test_a_proxy_from_the_options_is_used(kind: type[Proxy] | type[SocksProxy], server: ReferenceServer, opened: Open) -> None:
    with kind() as proxy:
        assert opened(server.url, proxy=proxy.url).get(HEALTH).status == 200
        assert proxy.tunnels == [server.url.removeprefix("https://")]


def test_a_proxy_from_the_environment_is_used_unless_excepted(server: ReferenceServer, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        assert opened(server.url).get(HEALTH).status == 200
        assert len(proxy.tunnels) == 1
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert opened(server.url).get(HEALTH).status == 200
        assert len(proxy.tunnels) == 1


@pytest.mark.parametrize("refusal", ["407 Proxy Authentication Required", "403 Forbidden", "502 Bad Gateway"])
def test_a_proxy_that_refuses_proves_that_nothing_arrived(refusal: str, server: ReferenceServer, opened: Open) -> None:
    with Proxy(refusal) as proxy, pytest.raises(Unreachable, match="proxy") as failure:
        opened(server.url, proxy=proxy.url).send("POST", REGISTER, json_body=BODY)
    assert failure.value.reason == "proxy"


@pytest.mark.parametrize("end", ["\n", "\r\nX: y", "\u20ac"])
def test_a_token_that_fits_into_no_header_is_refused_without_being_shown(end: str, server: ReferenceServer, opened: Open) -> None:
    with pytest.raises(InvalidInput, match="no header may have") as failure:
        opened(server.url).send("POST", REGISTER, json_body=BODY, headers={"Authorization": f"Bearer {CANARY}{end}"})
    assert CANARY not in repr(failure.value) + repr(failure.value.__cause__)
    assert server.agents() == []


def test_a_proxy_is_told_the_whole_address_where_there_is_no_tls(opened: Open) -> None:
    with Sayer() as proxy:
        address = f"http://127.0.0.1:{_closed_port()}"
        session = opened(address, proxy=proxy.url.replace("http://", f"http://olga:{CANARY}@"))
        assert session.send("POST", "/a b", json_body={"x": "ü"}).status == 200
        assert session.get("/c", params={"d": "e&f", "none": None}).status == 200
        first, second = (request.split(b"\r\n") for request in proxy.requests)
        assert (first[0], second[0]) == (f"POST {address}/a%20b HTTP/1.1".encode(), f"GET {address}/c?d=e%26f HTTP/1.1".encode())
        assert b"Proxy-Authorization: Basic " + base64.b64encode(f"olga:{CANARY}".encode()) in first
        assert first[-1] == b'{"x": "\\u00fc"}'
        assert b"Content-Type: application/json" in first


@pytest.mark.parametrize("proxy", [
    f"socks5://olga:{CANARY}@127.0.0.1:1080", f"ftp://olga:{CANARY}@127.0.0.1:21", f"http://olga:{CANARY}@:3128", f"http://olga:{CANARY}@[::1",
], ids=["socks-without-pysocks", "unknown-scheme", "no-host", "malformed"])
@pytest.mark.parametrize("given", ["option", "environment"])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    proxy: str, given: str, scheme: str, opened: Open, monkeypatch: pytest.MonkeyPatch,
) -> None:
    if given == "environment":
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", _socks_without_pysocks)
    with pytest.raises(InvalidInput, match="proxy cannot be used") as failure:
        opened(f"{scheme}://127.0.0.1:1", proxy=proxy if given == "option" else "")
    assert CANARY not in "".join(traceback.format_exception(failure.type, failure.value, failure.tb))


def _socks_without_pysocks(*_args: t.Any, **_options: t.Any) -> None:
    """Do what requests does where PySocks is not installed."""
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


def test_a_proxy_that_is_not_there_is_named(server: ReferenceServer, opened: Open) -> None:
    with pytest.raises(Unreachable, match="proxy") as failure:
        opened(server.url, proxy=f"http://127.0.0.1:{_closed_port()}").send("POST", REGISTER, json_body=BODY)
    assert failure.value.reason == "proxy"


def test_netrc_and_other_peoples_settings_are_never_used(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login someone password {CANARY}\ndefault login someone password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with Sayer() as sayer:
        assert opened(sayer.url).get("/", headers={"X-Agent-Id": "id"}).status == 200
        assert b"authorization" not in sayer.requests[0].lower()


# -- answers ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "kind", "message"), [
    ('{"message": "no\\n more"}', "application/json", "no more"), ('{"error": "bad"}', "text/plain", "bad"), ('{"msg": "worse"}', "text/plain", "worse"),
    ('{"message": 3, "error": "bad"}', "application/json", "bad"), ("{}", "application/json", ""), ("[1]", "application/json", ""),
    ("  plain\twords\n", "text/plain; charset=utf-8", "plain words"), ("<html>x</html>", "text/html", ""), ("x" * 500, "text/plain", "x" * 200), ("", "", ""),
])
def test_the_servers_own_words_are_found(text: str, kind: str, message: str) -> None:
    assert Answer(400, {"content-type": kind}, text).message == message


def test_an_answer_does_not_print_its_body() -> None:
    assert CANARY not in repr(Answer(200, {}, CANARY))


def test_a_text_that_is_not_json_is_none(opened: Open) -> None:
    with Sayer(answer_bytes(b"\xff\xfe<html>")) as sayer:
        assert opened(sayer.url).get("/").json is None


def test_no_failure_shows_what_was_sent(server: ReferenceServer, opened: Open) -> None:
    for kind in ("commit-then-drop", "truncate", "refuse", "slow"):
        server.fault("register", kind, seconds=2)
        with pytest.raises(AgentsError) as failure:
            opened(server.url, timeout=0.3).send("POST", REGISTER, json_body={**BODY, "x": CANARY}, headers={"Authorization": f"Bearer {CANARY}"})
        shown = repr(failure.value) + str(failure.value.as_result()) + repr(failure.value.__cause__)
        assert CANARY not in shown
        assert failure.value.__suppress_context__
        server.clear_faults()
