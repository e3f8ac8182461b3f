# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conversations with servers: every STARTTLS protocol, servers that refuse or misbehave, names with several addresses, and dead ones beside live ones."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils import _tls_probe
from ansible_collections.muster.agents.plugins.module_utils._tls_probe import DEFAULT_PORTS, Sight, Target, probe

from .faces import Authority, Certified, TlsServer

HOST = "mail.example.test"
Preface = Callable[[socket.socket], bool]


def line(connection: socket.socket) -> bytes:
    """One line of what the client says."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            raise OSError("closed")
        data += part
    return data.strip()


def exactly(connection: socket.socket, number: int) -> bytes:
    data = b""
    while len(data) < number:
        part = connection.recv(number - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


def smtp(connection: socket.socket, *, offers: bytes = b"250-SIZE\r\n250 STARTTLS\r\n", answer: bytes = b"220 go\r\n") -> bool:
    connection.sendall(b"220-hello\r\n220 mail\r\n")
    assert line(connection).startswith(b"EHLO ")
    connection.sendall(b"250-mail\r\n" + offers)
    assert line(connection) == b"STARTTLS"
    connection.sendall(answer)
    return answer.startswith(b"220")


def imap(connection: socket.socket, *, answer: bytes = b"OK begin") -> bool:
    connection.sendall(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n")
    tag, command = line(connection).split()
    assert command == b"STARTTLS"
    connection.sendall(b"* CAPABILITY IMAP4rev1\r\n" + tag + b" " + answer + b"\r\n")
    return answer.startswith(b"OK")


def pop3(connection: socket.socket, *, answer: bytes = b"+OK begin\r\n") -> bool:
    connection.sendall(b"+OK ready\r\n")
    assert line(connection) == b"STLS"
    connection.sendall(answer)
    return answer.startswith(b"+OK")


def ldap(connection: socket.socket, *, code: int = 0) -> bool:
    head = exactly(connection, 2)
    request = exactly(connection, head[1])
    assert b"1.3.6.1.4.1.1466.20037" in request
    body = b"\x02\x01\x01\x78\x07\x0a\x01" + bytes([code]) + b"\x04\x00\x04\x00"
    connection.sendall(b"\x30" + bytes([len(body)]) + body)
    return code == 0


def postgres(connection: socket.socket, *, answer: bytes = b"S") -> bool:
    assert exactly(connection, 8) == bytes.fromhex("0000000804d2162f")
    connection.sendall(answer)
    return answer == b"S"


def mysql(connection: socket.socket, *, capabilities: int = 0xF7FF | 0x0800) -> bool:
    greeting = b"\x0a8.0.36\x00" + b"\x07\0\0\0" + b"saltsalt" + b"\0" + capabilities.to_bytes(2, "little") + b"\xff\x02\0" + b"\xff\xdf\x15" + b"\0" * 10
    connection.sendall(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
    head = exactly(connection, 4)
    login = exactly(connection, int.from_bytes(head[:3], "little"))
    assert head[3] == 1
    assert len(login) == 32
    assert int.from_bytes(login[:4], "little") & 0x0800
    return True


def xmpp(connection: socket.socket, *, offers: bytes = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>") -> bool:
    data = b""
    while b"version='1.0'>" not in data:
        data += connection.recv(4096)
    assert f"to='{HOST}'".encode() in data
    connection.sendall(b"<?xml version='1.0'?><stream:stream id='1'><stream:features>" + offers + b"</stream:features>")
    data = b""
    while not data.endswith(b"/>"):
        part = connection.recv(4096)
        if not part:
            raise OSError("closed")
        data += part
    assert data.startswith(b"<starttls")
    connection.sendall(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    return True


PROTOCOLS: dict[str, Preface] = {"smtp": smtp, "imap": imap, "pop3": pop3, "ldap": ldap, "postgres": postgres, "mysql": mysql, "xmpp": xmpp}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certified, tuple[Path, Path]]:
    made = Authority("Middle", Authority("Root")).issue(HOST)
    return made, made.write(tmp_path_factory.mktemp("pair"), "server")


def one(server: Any, starttls: str = "", **options: Any) -> Sight:
    return probe([Target("127.0.0.1", server.port, server_name=HOST, starttls=starttls, **options)], timeout=5.0)[0][0]


def test_every_protocol_has_a_server_here() -> None:
    assert set(PROTOCOLS) == set(DEFAULT_PORTS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_starttls_leads_to_the_certificate(protocol: str, pair: tuple[Certified, tuple[Path, Path]]) -> None:
    made, files = pair
    with TlsServer(*files, preface=PROTOCOLS[protocol]) as server:
        seen = one(server, protocol)
    assert (seen.reason, seen.msg) == ("ok", "")
    assert seen.chain[0] == made.der
    assert len(seen.chain) == 2


def says(words: bytes) -> Preface:
    """A server that says *words* first, whatever it is asked, and nothing else."""
    def talk(connection: socket.socket) -> bool:
        connection.sendall(words)
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                continue
        return False
    return talk


REFUSALS: dict[str, tuple[str, Preface]] = {
    "smtp without it": ("smtp", lambda connection: smtp(connection, offers=b"250 SIZE\r\n")),
    "smtp that says no": ("smtp", lambda connection: smtp(connection, answer=b"454 not now\r\n")),
    "smtp that is busy": ("smtp", says(b"421 busy\r\n")),
    "smtp that sends elsewhere": ("smtp", lambda connection: smtp(connection, answer=b"551 User not local; please try <smtp:other.example.test>\r\n")),
    "imap that says no": ("imap", lambda connection: imap(connection, answer=b"NO never")),
    "imap that says goodbye": ("imap", says(b"* BYE\r\n")),
    "pop3 that says no": ("pop3", lambda connection: pop3(connection, answer=b"-ERR\r\n")),
    "ldap with a referral": ("ldap", lambda connection: ldap(connection, code=10)),
    "ldap that is none": ("ldap", says(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    "postgres without it": ("postgres", lambda connection: postgres(connection, answer=b"N")),
    "mysql without it": ("mysql", lambda connection: mysql(connection, capabilities=0x0200)),
    "mysql that bars us": ("mysql", says(b"\x10\0\0\0\xff\x69\x04Host blocked!")),
    "xmpp without it": ("xmpp", lambda connection: xmpp(connection, offers=b"<mechanisms/>")),
    "xmpp that sends elsewhere": ("xmpp", says(b"<stream:stream><stream:error><see-other-host>b</see-other-host></stream:error>")),
    "words slipped in": ("smtp", lambda connection: smtp(connection, answer=b"220 go\r\n250 slipped in\r\n")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_server_that_does_not_agree_to_starttls_is_quoted(case: str, pair: tuple[Certified, tuple[Path, Path]]) -> None:
    protocol, preface = REFUSALS[case]
    with TlsServer(*pair[1], preface=preface) as server:
        seen = one(server, protocol)
    assert (seen.reason, seen.chain) == ("starttls_refused", ()), seen.msg
    assert seen.msg


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_words_without_end_do_not_keep_us(protocol: str, pair: tuple[Certified, tuple[Path, Path]]) -> None:
    with TlsServer(*pair[1], preface=says(b"x" * 300_000)) as server:
        seen = one(server, protocol)
    assert seen.reason in ("starttls_refused", "not_tls"), seen
    assert len(seen.msg) < 300


class Full:
    """A port whose queue is full, so that connections are never accepted: like a machine that is gone."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(0)
        self.port = self.socket.getsockname()[1]
        self.queue = [socket.socket() for _number in range(4)]
        for waiting in self.queue:
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", self.port))

    def close(self) -> None:
        """Let go."""
        for waiting in [*self.queue, self.socket]:
            waiting.close()


@pytest.fixture
def dead() -> Iterator[Full]:
    full = Full()
    yield full
    full.close()


def test_dead_servers_do_not_hold_up_the_others(dead: Full, pair: tuple[Certified, tuple[Path, Path]]) -> None:
    with TlsServer(*pair[1]) as server:
        targets = [Target("127.0.0.1", dead.port)] * 40 + [Target("127.0.0.1", server.port, server_name=HOST)] * 5
        seen = [group[0] for group in probe(targets, timeout=1.5, concurrency=4)]
    assert [sight.reason for sight in seen] == ["timeout"] * 40 + ["ok"] * 5
    assert {sight.tries for sight in seen} == {1}


def test_a_slow_server_makes_room_for_the_next_one(pair: tuple[Certified, tuple[Path, Path]]) -> None:
    met = threading.Event()

    def waits(_connection: socket.socket) -> bool:
        return met.wait(20)

    def releases(_connection: socket.socket) -> bool:
        met.set()
        return True

    with TlsServer(*pair[1], preface=waits) as slow, TlsServer(*pair[1], preface=releases) as quick:
        targets = [Target("127.0.0.1", server.port, server_name=HOST) for server in (slow, quick)]
        # The first speaks only once the second was met, for which there is no room until the first counts as slow.
        assert [group[0].reason for group in probe(targets, timeout=8.0, concurrency=1)] == ["ok", "ok"]


def test_all_addresses_of_a_name_are_looked_at(pair: tuple[Certified, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(_tls_probe.socket, "getaddrinfo", lambda *_arguments, **_options: answers)
    with TlsServer(*pair[1]) as server:
        several = probe([Target(HOST, server.port)])[0]
        first = probe([Target(HOST, server.port, all_addresses=False)])[0]
    # Only 127.0.0.1 is listened on.
    assert [(sight.address, sight.reason) for sight in several] == [("127.0.0.1", "ok"), ("127.0.0.9", "refused")]
    assert [sight.address for sight in first] == ["127.0.0.1"]


@pytest.mark.parametrize(("target", "reason"), [
    (Target("no-such-host.invalid", 443), "unresolvable"), (Target("bad host", 443), "unresolvable"), (Target("a" * 300, 443), "unresolvable"),
    (Target("127.0.0.1", 443, address="nowhere"), "unresolvable"), (Target("127.0.0.1", 1), "refused"),
    (Target("127.0.0.1", 1, client_cert="/nowhere/at/all.pem", client_key="/nowhere"), "bad_client_certificate"),
])
def test_what_cannot_be_reached_says_why(target: Target, reason: str) -> None:
    seen = probe([target], timeout=5.0, retries=0)[0][0]
    assert (seen.reason, seen.chain) == (reason, ())
    assert seen.msg


def test_a_client_key_with_a_passphrase_is_opened_by_it(pair: tuple[Certified, tuple[Path, Path]], tmp_path: Path) -> None:
    certificate, key = pair[0].write(tmp_path, "client", password=b"open sesame")
    (tmp_path / "passphrase").write_text("open sesame\n")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pair[0].pem)
    with TlsServer(*pair[1], client_ca=ca) as server:
        given = {"client_cert": str(certificate), "client_key": str(key)}
        assert one(server, **given, passphrase="wrong").reason == "bad_client_certificate"
        assert one(server, **given).reason == "bad_client_certificate"
        opened = [one(server, **given, passphrase="open sesame"), one(server, **given, passphrase_file=str(tmp_path / "passphrase"))]
    assert "open sesame" not in repr(Target("h", 1, passphrase="open sesame"))
    # The server trusts nobody who issued that certificate; what matters is that it was shown.
    assert {sight.client_certificate for sight in opened} <= {"refused", "accepted"}


def test_without_the_callback_the_documented_ways_are_taken(pair: tuple[Certified, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    made, files = pair
    monkeypatch.setattr(_tls_probe, "_noted", lambda *_message: None)
    with TlsServer(*files) as server:
        seen = one(server)
    assert seen.chain[0] == made.der
    assert len(seen.chain) == (2 if sys.version_info >= (3, 13) else 1)


def test_a_sight_survives_its_way_through_json(pair: tuple[Certified, tuple[Path, Path]]) -> None:
    with TlsServer(*pair[1]) as server:
        seen = one(server)
    assert Sight.load(json.loads(json.dumps(seen.dump()))) == seen


def test_certificate_messages_that_are_cut_short_give_what_is_whole() -> None:
    certificate = b"\x00\x00\x05first" + b"\x00\x00\x06second"
    whole = len(certificate).to_bytes(3, "big") + certificate
    assert _tls_probe._certificates_in(whole, tls13=False) == (b"first", b"second")
    assert [len(_tls_probe._certificates_in(whole[:end], tls13=False)) for end in (0, 1, 5, 11, len(whole) - 1)] == [0, 0, 0, 1, 1]
    newer = b"\x00\x00\x00\x15" + b"\x00\x00\x05first\x00\x02ab" + b"\x00\x00\x06second\x00\x00"
    assert _tls_probe._certificates_in(newer, tls13=True) == (b"first", b"second")
    assert ssl.TLSVersion.TLSv1_3 > ssl.TLSVersion.TLSv1_2


@pytest.mark.thorough
def test_servers_are_not_called_silent_for_our_own_being_slow(pair: tuple[Certified, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together take us several times as long as one of them may take to answer."""
    heard = _tls_probe._Handshake.note

    def slowly(notes: Any, *message: Any) -> None:
        time.sleep(0.02)
        heard(notes, *message)

    monkeypatch.setattr(_tls_probe._Handshake, "note", slowly)
    with TlsServer(*pair[1]) as server:
        seen = probe([Target("127.0.0.1", server.port)] * 40, timeout=0.4, retries=0)
    assert {sight.reason for (sight,) in seen} == {"ok"}
