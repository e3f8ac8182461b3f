# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Which certificates TLS servers show, many of them at once (private; no stability promise outside muster.agents).

Runs on controller and host with Python 3.9+ and its standard library alone. Nothing is judged here: every certificate is taken as it comes, also from
servers that nobody would trust, and whoever calls decides.

The chain is taken from the handshake's own Certificate message, by the callback that the ssl module has for handshake messages since Python 3.8.
``SSLObject.get_unverified_chain`` is public from 3.13 only, TLS 1.3 encrypts that message on the wire, and a second connection may reach another server.
The callback also shows certificates of a handshake that fails later, and whether the server asks for a client certificate. It is not a documented part of
the ssl module: a Python without it is served by the public method, and before 3.13 with the server's own certificate alone.

An OCSP answer that a server staples to its handshake is asked for by one more connection, since the ssl module cannot ask for one: its greeting is OpenSSL's
own of TLS 1.2, whose answer comes in the clear, with the wish added (RFC 6066 section 8). The handshake is not finished.

All addresses are tried at the same time on one event loop, so that dead ones cost one time-out together.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import ipaddress
import os
import re
import resource
import socket
import ssl
import struct
import threading
import typing as t
from dataclasses import dataclass, field, replace

__all__ = ["DEFAULT_PORTS", "STARTTLS", "Sight", "Target", "probe"]

DEFAULT_PORTS = {"smtp": 25, "imap": 143, "pop3": 110, "ldap": 389, "postgres": 5432, "mysql": 3306, "xmpp": 5222}
STARTTLS = tuple(DEFAULT_PORTS)

_CERTIFICATE, _CERTIFICATE_REQUEST = 11, 13  # handshake messages, RFC 8446 section 4
_SERVER_HELLO_DONE, _CERTIFICATE_STATUS = 14, 22  # those of TLS 1.2, RFC 5246 section 7.4 and RFC 6066 section 8
_STATUS_REQUEST = b"\0\5\0\5\1\0\0\0\0"  # the extension: OCSP, from any responder, without extensions of its own
_HANDSHAKE = 22
_MAX_BYTES = 1024 * 1024  # of one server's words; OpenSSL itself takes certificate messages up to 100 kB
_MAX_LINE = 4096
_MAX_LINES = 100
_SLOT_SECONDS = 0.1  # so long does a connection count as a new one
_MAX_TURNS = 10  # of as many seconds, while we are late ourselves
_TICK = 0.05  # seconds between two looks at how late we are ourselves
_LATE = 0.02  # seconds that any process may be late
_GRACE = 0.2  # seconds that any wait may take, so that our own being busy is not taken for a server's silence
_FAREWELL = 1.0  # seconds to wait for what a server says to our client certificate
_FIRST_PAUSE = 0.1
_RESOLVERS = 64
_SPARE_FILES = 64
_PASSING = ("refused", "reset", "closed")  # what may be over in a moment
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE")
_TLS_ALERT = re.compile(r"alert ([a-z0-9_ ]+)|ALERT_([A-Z0-9_]+)")
_LDAP_STARTTLS = b"1.3.6.1.4.1.1466.20037"
_POSTGRES_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_MYSQL_SSL, _MYSQL_PROTOCOL_41, _MYSQL_SECURE_CONNECTION = 0x0800, 0x0200, 0x8000


@dataclass(frozen=True)
class Target:
    """A server to look at. server_name is what TLS asks for; address, when given, is where to connect instead of what *host* resolves to.

    staple: whether to ask for an OCSP answer with the handshake, for which another connection is made.

    starttls is empty or one of STARTTLS. client_cert and client_key are PEM files on this machine; passphrase, or what passphrase_file holds, opens the key.
    """

    host: str
    port: int
    server_name: str = ""
    address: str = ""
    starttls: str = ""
    client_cert: str = ""
    client_key: str = ""
    passphrase: str = field(default="", repr=False)
    passphrase_file: str = ""
    all_addresses: bool = True
    staple: bool = False


@dataclass(frozen=True)
class Sight:
    """What one address showed. *reason* is ok or why there was no complete handshake, *msg* the same in words; *chain* is DER, the server's own first.

    staple is the OCSP answer (DER, RFC 6960) that came with the handshake, empty for none and where none was asked for.
    client_certificate: none, requested (not given, and the server did not mind), required (not given, and it did), accepted or refused.
    """

    address: str
    reason: str = "ok"
    msg: str = ""
    chain: tuple[bytes, ...] = ()
    tls_version: str = ""
    cipher_suite: str = ""
    client_certificate: str = "none"
    tries: int = 1
    staple: bytes = b""

    def dump(self) -> dict[str, t.Any]:
        """Return plain data for a module's result, certificates and answers in base64."""
        return {**self.__dict__, "chain": [ssl.DER_cert_to_PEM_cert(der) for der in self.chain], "staple": base64.b64encode(self.staple).decode()}

    @classmethod
    def load(cls, document: t.Mapping[str, t.Any]) -> Sight:
        """Undo :meth:`dump`."""
        chain = tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in document["chain"])
        return cls(**{**document, "chain": chain, "staple": base64.b64decode(document["staple"])})


class _Trouble(Exception):
    """A conversation that ended early. *reason* is one of Sight's."""

    def __init__(self, reason: str, msg: str) -> None:
        super().__init__(msg)
        self.reason = reason
        self.msg = msg


def probe(targets: t.Sequence[Target], *, timeout: float = 5.0, retries: int = 2, concurrency: int = 64) -> list[list[Sight]]:
    """Return what every address of every target showed, in the order of *targets*.

    *timeout* is for one address with all its tries, in seconds; *retries* are further tries after failures that may pass at once, with growing pauses;
    *concurrency* bounds how many connections are begun at a time.
    """
    return asyncio.run(_Probe(timeout, retries, concurrency).all(targets))


class _OwnTime:
    """Time without what our own being busy, or a busy machine, took from everybody: a server is not silent for as long as we do not listen."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = 0.0
        self._late = False
        self._expect()

    def _expect(self) -> None:
        self._due = self._loop.time() + _TICK
        self._tick = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        late = self._loop.time() - self._due
        self._late = late > _LATE
        self._lost += max(0.0, late - _LATE)
        self._expect()

    def now(self) -> float:
        """Return seconds on a clock that stands still while we are late."""
        return min(self._loop.time(), self._due + _LATE) - self._lost

    def is_late(self) -> bool:
        """Say whether we were late at the last look."""
        return self._late

    def stop(self) -> None:
        """Look no more."""
        self._tick.cancel()


class _Probe:
    """One run over many targets."""

    def __init__(self, timeout: float, retries: int, concurrency: int) -> None:
        self._timeout = timeout
        self._retries = retries
        self._concurrency = concurrency
        self._plain: ssl.SSLContext | None = None
        self._contexts: dict[tuple[str, str, str, str], ssl.SSLContext] = {}
        self._resolving: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def all(self, targets: t.Sequence[Target]) -> list[list[Sight]]:
        """See :func:`probe`. Each target has a task; sockets are bounded by what the process may open."""
        self._begun = asyncio.Semaphore(self._concurrency)
        self._open = asyncio.Semaphore(_allow_files(len(targets)))
        self._resolvers = asyncio.Semaphore(_RESOLVERS)
        self._time = _OwnTime()
        try:
            return list(await asyncio.gather(*(self._target(target) for target in targets)))
        finally:
            self._time.stop()

    async def _target(self, target: Target) -> list[Sight]:
        try:
            context = self._context(target)
            addresses = [target.address] if target.address else await self._resolve(target.host, target.port)
        except _Trouble as trouble:
            return [Sight(target.address, trouble.reason, trouble.msg)]
        chosen = addresses if target.all_addresses else addresses[:1]
        if len(chosen) == 1:
            return [await self._address(target, chosen[0], context)]
        return list(await asyncio.gather(*(self._address(target, address, context) for address in chosen)))

    async def _address(self, target: Target, address: str, context: ssl.SSLContext) -> Sight:
        async with self._open:
            await self._begun.acquire()
            slot = _Slot(self._begun, self._time)
            try:
                return await self._tries(target, address, context)
            finally:
                slot.release()

    async def _tries(self, target: Target, address: str, context: ssl.SSLContext) -> Sight:
        deadline, pause = self._time.now() + self._timeout, _FIRST_PAUSE
        for number in range(1, self._retries + 2):
            seen = await _Conversation(target, address, deadline, context, self._time).sight(number)
            if seen.chain or seen.reason not in _PASSING or number > self._retries or self._time.now() + pause >= deadline:
                break
            await asyncio.sleep(pause)
            pause *= 2
        if target.staple and seen.chain:
            return replace(seen, staple=await _Conversation(target, address, deadline, self._plain_context(), self._time).staple())
        return seen

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of *host*, each once. Raises _Trouble."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        if (host, port) not in self._resolving:
            self._resolving[host, port] = asyncio.ensure_future(self._looked_up(host, port))
        return await asyncio.shield(self._resolving[host, port])

    async def _looked_up(self, host: str, port: int) -> list[str]:
        async with self._resolvers:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[list[str]] = loop.create_future()
            # A thread of our own: the resolver cannot be interrupted, and the process must not wait for it at its end.
            threading.Thread(target=_look_up, args=(host, port, loop, answer), daemon=True).start()
            try:
                return await asyncio.wait_for(asyncio.shield(answer), self._timeout)
            except asyncio.TimeoutError:
                raise _Trouble("unresolvable", f"the name {host} was not resolved within {self._timeout:g} s") from None

    def _plain_context(self) -> ssl.SSLContext:
        """Return a context whose greeting is answered in the clear: TLS 1.2 encrypts its handshake's last message alone."""
        if self._plain is None:
            self._plain = _client_context("", "", "", "")
            self._plain.maximum_version = ssl.TLSVersion.TLSv1_2
        return self._plain

    def _context(self, target: Target) -> ssl.SSLContext:
        key = (target.client_cert, target.client_key, target.passphrase, target.passphrase_file)
        if key not in self._contexts:
            self._contexts[key] = _client_context(*key)
        return self._contexts[key]


class _Slot:
    """A place among the connections that are begun. Whoever is slow soon stops counting, so that silent servers do not hold up the others.

    While we are late ourselves a server may be slow for want of our answer, and more connections would make all of them later: there it counts longer.
    """

    def __init__(self, places: asyncio.Semaphore, time: _OwnTime) -> None:
        self._places = places
        self._time = time
        self._held = True
        self._turns = 0
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.call_later(_SLOT_SECONDS, self._over)

    def _over(self) -> None:
        self._turns += 1
        if self._time.is_late() and self._turns < _MAX_TURNS:
            self._end = self._loop.call_later(_SLOT_SECONDS, self._over)
        else:
            self.release()

    def release(self) -> None:
        """Make room, once."""
        self._end.cancel()
        if self._held:
            self._held = False
            self._places.release()


class _Wire(asyncio.Protocol):
    """What one connection has said and not yet been asked for."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.failure: Exception | None = None
        self.total = 0
        self._loop = asyncio.get_running_loop()
        self._awaited: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Keep *data*."""
        self.data += data
        self.total += len(data)
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember the end and why."""
        self.ended = True
        self.failure = exc
        self._tell()

    async def news(self, seconds: float) -> bool:
        """Wait until there is more data or the end. Returns False when neither came in *seconds*."""
        if not self.data and not self.ended:
            self._awaited = self._loop.create_future()
            alarm = self._loop.call_later(seconds, self._tell)
            try:
                await self._awaited
            finally:
                alarm.cancel()
        return bool(self.data) or self.ended

    def _tell(self) -> None:
        """Wake whoever waits."""
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


class _Conversation:
    """One connection to one address: connect, ask for TLS where the protocol wants that, shake hands, leave."""

    def __init__(self, target: Target, address: str, deadline: float, context: ssl.SSLContext, time: _OwnTime) -> None:
        self._target = target
        self._address = address
        self._deadline = deadline
        self._time = time
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._wire = _Wire()
        self._transport: asyncio.Transport | None = None
        self._handshake = _Handshake()

    async def sight(self, number: int) -> Sight:
        """Return what was seen; never raises for what a server does."""
        shown: dict[str, t.Any] = {}
        try:
            await self._connect()
            await _DIALOGUES[self._target.starttls](self)
            shown = await self._shake_hands()
            reason, msg = "ok", ""
        except _Trouble as trouble:
            reason, msg = trouble.reason, trouble.msg
        finally:
            if self._transport is not None:
                self._transport.abort()
        certificate = self._client_certificate(reason)
        if reason == "client_certificate" and self._handshake.chain:
            reason = f"client_certificate_{certificate}"
        shown.setdefault("chain", self._handshake.chain)
        return Sight(self._address, reason, msg, client_certificate=certificate, tries=number, **shown)

    async def staple(self) -> bytes:
        """Return the OCSP answer that the server staples to a handshake of TLS 1.2, empty when it does not or has no TLS 1.2; never raises for it."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            await self._connect()
            await _DIALOGUES[self._target.starttls](self)
            tls = self._context.wrap_bio(incoming, outgoing, server_hostname=self.server_name)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            self.send(_with_status_request(outgoing.read()))
            return await self._status()
        except (_Trouble, ssl.SSLError, ValueError):
            return b""
        finally:
            if self._transport is not None:
                self._transport.abort()

    async def _status(self) -> bytes:
        """Return the OCSP answer in the server's first words (RFC 6066 section 8); it comes before ServerHelloDone or never."""
        heard = b""
        while True:
            kind, _version, length = struct.unpack("!BHH", await self.exactly(5))
            if kind != _HANDSHAKE:  # an alert: there is no TLS 1.2 here
                return b""
            heard += await self.exactly(length)
            while len(heard) >= 4 and len(heard) - 4 >= int.from_bytes(heard[1:4], "big"):
                message, body = heard[0], heard[4:4 + int.from_bytes(heard[1:4], "big")]
                heard = heard[4 + len(body):]
                if message == _CERTIFICATE_STATUS:
                    return body[4:] if body[:1] == b"\1" and int.from_bytes(body[1:4], "big") == len(body) - 4 else b""
                if message == _SERVER_HELLO_DONE:
                    return b""
            if len(heard) > _MAX_BYTES:
                return b""

    # -- for the dialogues

    @property
    def server_name(self) -> str:
        """The name that the server is asked for."""
        return self._target.server_name or self._target.host

    def send(self, data: bytes) -> None:
        """Say *data*."""
        if self._transport is not None and not self._wire.ended:
            self._transport.write(data)

    async def exactly(self, number: int) -> bytes:
        """Return the next *number* bytes."""
        while len(self._wire.data) < number:
            await self._more(len(self._wire.data))
        found = bytes(self._wire.data[:number])
        del self._wire.data[:number]
        return found

    async def until(self, *ends: bytes) -> bytes:
        """Return everything up to and with the first of *ends* to come."""
        while True:
            places = [(place, end) for end in ends for place in [self._wire.data.find(end)] if place >= 0]
            if places:
                place, end = min(places)
                return await self.exactly(place + len(end))
            if len(self._wire.data) > _MAX_LINE:
                raise self.refusal(bytes(self._wire.data))
            await self._more(len(self._wire.data))

    async def line(self) -> bytes:
        """Return the next line without its end."""
        return (await self.until(b"\n")).rstrip(b"\r\n")

    def refusal(self, said: bytes) -> _Trouble:
        """Return the failure that quotes what the server *said* instead of agreeing to TLS."""
        return _Trouble("starttls_refused", f"the server does not agree to STARTTLS ({self._target.starttls}); it says {_words(said)}")

    # -- steps

    async def _connect(self) -> None:
        made = asyncio.ensure_future(self._loop.create_connection(lambda: self._wire, self._address, self._target.port))
        try:
            while not made.done() and self._left() > 0:
                await asyncio.wait({made}, timeout=max(self._left(), _GRACE))
            if not made.done():
                raise _Trouble("timeout", "no connection in time: a firewall, a wrong address, or a machine that is down")
            self._transport, _protocol = made.result()
        except OSError as error:
            raise _connect_trouble(error) from None
        except (UnicodeError, ValueError, OverflowError):
            raise _Trouble("unresolvable", f"{self._address} is no address") from None
        finally:
            made.cancel()

    def _left(self) -> float:
        """Return the seconds that are left for this address."""
        return self._deadline - self._time.now()

    async def _more(self, had: int) -> None:
        """Wait until there are more than *had* unread bytes. Raises _Trouble at the end of time or connection, and for too many words."""
        data = bytes(self._wire.data)
        self._wire.data.clear()
        came = await self._wire.news(max(self._left(), _GRACE))
        while not came and self._left() > 0:
            came = await self._wire.news(max(self._left(), _GRACE))
        fresh = len(self._wire.data)
        self._wire.data[:0] = data
        if self._wire.total > _MAX_BYTES:
            raise _Trouble("not_tls", f"more than {_MAX_BYTES} bytes came and no handshake was done")
        if fresh:
            # A server that drips byte by byte must not keep us for ever.
            if self._left() < -_GRACE * 5:
                raise _Trouble("timeout", "the server is too slow")
            return
        if not came:
            if self._wire.total:
                raise _Trouble("timeout", "the server fell silent before the handshake was done")
            raise _Trouble("silent", "the connection was accepted, but nothing was said")
        raise self._ended(had)

    def _ended(self, had: int) -> _Trouble:
        if self._wire.failure is not None:
            return _Trouble("reset", "the connection was reset")
        said = f" after {_words(bytes(self._wire.data))}" if had else ""
        return _Trouble("closed", f"the server closed the connection{said} before the handshake was done")

    async def _shake_hands(self) -> dict[str, t.Any]:
        if self._wire.data:
            # Words that came before the encryption would be taken for words under its protection.
            raise _Trouble("starttls_refused", "the server talks on after it agreed to STARTTLS: somebody may have slipped words in")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            tls = self._context.wrap_bio(incoming, outgoing, server_hostname=self.server_name)
        except (ValueError, UnicodeError):
            raise _Trouble("unresolvable", f"{self.server_name!r} is no name that TLS can ask for") from None
        t.cast(t.Any, tls).muster_handshake = self._handshake
        await self._pumped(tls.do_handshake, incoming, outgoing)
        cipher = tls.cipher()
        shown = {"chain": self._handshake.chain or _public_chain(tls), "tls_version": tls.version() or "", "cipher_suite": cipher[0] if cipher else ""}
        if self._handshake.asks:
            await self._hear_verdict(tls, incoming, outgoing)
        return shown

    async def _pumped(self, step: t.Callable[[], t.Any], incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        while True:
            try:
                step()
                self.send(outgoing.read())
                return
            except ssl.SSLWantReadError:
                self.send(outgoing.read())
                while not self._wire.data:
                    await self._more(0)
                incoming.write(bytes(self._wire.data))
                self._wire.data.clear()
            except ssl.SSLError as error:
                self.send(outgoing.read())
                raise self._tls_trouble(error) from None

    async def _hear_verdict(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        """Wait for what the server says of our certificate, or of there being none: in TLS 1.3 that comes after our side of the handshake is done.

        Our farewell is answered by a server that is content; one that says nothing at all is taken for content too.
        """
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        self.send(outgoing.read())
        end = self._loop.time() + min(_FAREWELL, max(self._left(), _GRACE))
        while self._loop.time() < end:
            if not await self._wire.news(end - self._loop.time()):
                return
            if not self._wire.data:
                if self._wire.failure is not None:  # the reset of a server that refused has overtaken its words
                    raise self._refused("connection reset")
                return
            incoming.write(bytes(self._wire.data))
            self._wire.data.clear()
            try:
                tls.read(1)  # unlike a second unwrap, this tells an alert from a farewell
                return
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                trouble = self._tls_trouble(error)
                if trouble.reason == "client_certificate":
                    raise trouble from None
                return

    def _tls_trouble(self, error: ssl.SSLError) -> _Trouble:
        reason = (error.reason or "").upper()
        if "ALERT" not in reason and (reason in _NO_TLS or not self._handshake.any):
            return _Trouble("not_tls", f"the server does not speak TLS here ({reason.lower() or 'garbage'})")
        found = _TLS_ALERT.search(reason.lower().replace("_", " ")) if reason else None
        words = (found.group(1) if found else reason.lower().replace("_", " ")).strip() or "no reason given"
        return self._refused(words) if self._handshake.asks else _Trouble("tls_failed", f"the handshake failed: {words}")

    def _refused(self, words: str) -> _Trouble:
        whose = "our client certificate" if self._target.client_cert else "a connection without client certificate"
        return _Trouble("client_certificate", f"the server refuses {whose} ({words})")

    def _client_certificate(self, reason: str) -> str:
        if not self._handshake.asks:
            return "none"
        if self._target.client_cert:
            return "refused" if reason == "client_certificate" else "accepted"
        return "required" if reason == "client_certificate" else "requested"


class _Handshake:
    """What the messages of one handshake told."""

    def __init__(self) -> None:
        self.chain: tuple[bytes, ...] = ()
        self.asks = False
        self.any = False

    def note(self, version: int, kind: int, message: bytes) -> None:
        """Take one handshake message with its header of four bytes."""
        self.any = True
        if kind == _CERTIFICATE_REQUEST:
            self.asks = True
        if kind == _CERTIFICATE and not self.chain:
            self.chain = _certificates_in(message[4:], tls13=version >= ssl.TLSVersion.TLSv1_3)


def _with_status_request(greeting: bytes) -> bytes:
    """Return a ClientHello in one record with the wish for an OCSP answer. Raises ValueError for anything else."""
    hello = greeting[9:]
    place = 34 + 1 + hello[34] if len(hello) > 34 else 0  # version and random, then the session
    for width in (2, 1):  # cipher suites, compression methods
        place += width + int.from_bytes(hello[place:place + width], "big")
    extensions = hello[place + 2:]
    if greeting[:1] != bytes([_HANDSHAKE]) or greeting[5:6] != b"\1" or int.from_bytes(hello[place:place + 2], "big") != len(extensions):
        raise ValueError("no ClientHello in one record")
    extensions += _STATUS_REQUEST
    hello = hello[:place] + len(extensions).to_bytes(2, "big") + extensions
    message = b"\1" + len(hello).to_bytes(3, "big") + hello
    return greeting[:3] + len(message).to_bytes(2, "big") + message


def _certificates_in(body: bytes, *, tls13: bool) -> tuple[bytes, ...]:
    """Return the certificates of a Certificate message (RFC 5246 section 7.4.2, RFC 8446 section 4.4.2); what is cut short is left out."""
    place = 1 + body[0] if tls13 and body else 0  # TLS 1.3 puts a request context first
    place += 3
    found = []
    while place + 3 <= len(body):
        length = int.from_bytes(body[place:place + 3], "big")
        der = body[place + 3:place + 3 + length]
        if not length or len(der) < length:
            break
        found.append(der)
        place += 3 + length
        if tls13:  # and extensions after each certificate
            place += 2 + int.from_bytes(body[place:place + 2], "big")
    return tuple(found)


def _noted(connection: t.Any, direction: str, version: int, content: int, kind: int, message: bytes) -> None:
    """The ssl module's callback for one message; all connections share a context, and each has its own notes."""
    notes = getattr(connection, "muster_handshake", None)
    if notes is not None and direction == "read" and content == _HANDSHAKE:
        notes.note(version, kind, message)


def _client_context(certificate: str, key: str, passphrase: str, passphrase_file: str) -> ssl.SSLContext:
    """Return a context that takes any certificate. Raises _Trouble when our own cannot be used.

    Nothing secret is sent over these connections. Security level 0 and TLS 1.0 are allowed since weak servers are to be seen, not avoided.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    # SSLContext's own attribute makes enumerations of each message's numbers first, which costs more than all that is done with them here. It passes the
    # callback on to this attribute of its base class.
    plain = getattr(super(ssl.SSLContext, ssl.SSLContext), "_msg_callback", None)
    if plain is not None:
        plain.__set__(context, _noted)
    if certificate:
        try:
            if passphrase_file:
                with open(os.path.expanduser(passphrase_file), encoding="utf-8") as stream:
                    passphrase = stream.read().rstrip("\r\n")
            context.load_cert_chain(os.path.expanduser(certificate), os.path.expanduser(key) or None, password=lambda: passphrase)
        except (OSError, ValueError) as error:
            words = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
            raise _Trouble("bad_client_certificate", f"the client certificate {certificate} with its key cannot be used ({words})") from None
    return context


def _public_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """Return the chain by the ssl module's documented ways: all of it from Python 3.13 on, else the server's own certificate."""
    whole = getattr(tls, "get_unverified_chain", None)
    if whole is not None:
        return tuple(whole())
    own = tls.getpeercert(binary_form=True)
    return (own,) if own else ()


def _look_up(host: str, port: int, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str]]) -> None:
    """Resolve *host* in a thread and hand the addresses, or the failure, to the event loop."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        result: list[str] | _Trouble = list(dict.fromkeys(str(item[4][0]) for item in found))
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "it is no host name"
        result = _Trouble("unresolvable", f"the name {host} cannot be resolved ({words})")
    with contextlib.suppress(RuntimeError):  # the loop is over: nobody waits any more
        loop.call_soon_threadsafe(_settle, answer, result)


def _settle(answer: asyncio.Future[list[str]], result: list[str] | _Trouble) -> None:
    if answer.done():
        return
    if isinstance(result, _Trouble):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _allow_files(wanted: int) -> int:
    """Raise this process's limit of open files as far as *wanted* sockets need and the system allows. Returns how many may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(wanted, 1)
    needed = wanted * 2 + _SPARE_FILES
    if soft < needed:
        more = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return max(soft - _SPARE_FILES, 8)


def _connect_trouble(error: OSError) -> _Trouble:
    words = error.strerror or type(error).__name__
    if isinstance(error, ConnectionRefusedError):
        return _Trouble("refused", "connections are refused: nothing listens there, or a firewall says so")
    if isinstance(error, ConnectionResetError):
        return _Trouble("reset", "the connection was reset")
    if error.errno == errno.ETIMEDOUT:
        return _Trouble("timeout", "no connection in time: a firewall, a wrong address, or a machine that is down")
    if isinstance(error, socket.gaierror):
        return _Trouble("unresolvable", f"it is no address ({words})")
    return _Trouble("no_route", f"there is no way to that address ({words})")


def _words(data: bytes) -> str:
    """Return the beginning of what a server said, fit to be printed."""
    text = data[:80].decode("ascii", "replace").strip()
    return repr("".join(character if character.isprintable() else "." for character in text)) if text else "nothing"


# -- how each protocol asks for TLS


async def _at_once(_talk: _Conversation) -> None:
    """TLS from the first byte."""


async def _smtp(talk: _Conversation) -> None:
    """RFC 3207."""
    await _smtp_answer(talk, b"220")
    talk.send(b"EHLO muster.invalid\r\n")
    offers = await _smtp_answer(talk, b"250")
    if not any(offer[4:].strip().upper() == b"STARTTLS" for offer in offers):
        raise talk.refusal(b" ".join(offers))
    talk.send(b"STARTTLS\r\n")
    await _smtp_answer(talk, b"220")


async def _smtp_answer(talk: _Conversation, code: bytes) -> list[bytes]:
    lines: list[bytes] = []
    while len(lines) < _MAX_LINES:
        lines.append(await talk.line())
        if not lines[-1].startswith(code):
            raise talk.refusal(lines[-1])
        if lines[-1][3:4] != b"-":
            return lines
    raise talk.refusal(lines[0])


async def _imap(talk: _Conversation) -> None:
    """RFC 3501 section 6.2.1."""
    greeting = await talk.line()
    if not greeting.upper().startswith(b"* OK"):
        raise talk.refusal(greeting)
    talk.send(b"m1 STARTTLS\r\n")
    for _number in range(_MAX_LINES):
        answer = await talk.line()
        if answer.lower().startswith(b"m1 ok"):
            return
        if not answer.startswith(b"* "):
            break
    raise talk.refusal(answer)


async def _pop3(talk: _Conversation) -> None:
    """RFC 2595 section 4."""
    greeting = await talk.line()
    if not greeting.startswith(b"+OK"):
        raise talk.refusal(greeting)
    talk.send(b"STLS\r\n")
    answer = await talk.line()
    if not answer.startswith(b"+OK"):
        raise talk.refusal(answer)


async def _ldap(talk: _Conversation) -> None:
    """RFC 4511 section 4.14: an extended request, and a response whose result code is 0."""
    name = b"\x80" + bytes([len(_LDAP_STARTTLS)]) + _LDAP_STARTTLS
    operation = b"\x02\x01\x01" + b"\x77" + bytes([len(name)]) + name
    talk.send(b"\x30" + bytes([len(operation)]) + operation)
    head = await talk.exactly(2)
    length = head[1]
    if head[0] != 0x30:
        raise talk.refusal(head)
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(await talk.exactly(min(size, 3)), "big")
    if not 8 <= length <= _MAX_LINE:
        raise talk.refusal(head)
    answer = await talk.exactly(length)
    result = re.match(rb"\x02\x01\x01\x78(?:[\x00-\x7f]|\x81.|\x82..)\x0a\x01(.)", answer, re.DOTALL)
    if result is None or result.group(1) != b"\0":
        raise talk.refusal(answer if result is None else f"result code {result.group(1)[0]}".encode())


async def _postgres(talk: _Conversation) -> None:
    """PostgreSQL's SSLRequest: one letter answers it."""
    talk.send(_POSTGRES_SSL_REQUEST)
    answer = await talk.exactly(1)
    if answer != b"S":
        raise talk.refusal(answer)


async def _mysql(talk: _Conversation) -> None:
    """MySQL's protocol 10: the greeting tells whether TLS is offered, and a short login packet asks for it."""
    head = await talk.exactly(4)
    greeting = await talk.exactly(min(int.from_bytes(head[:3], "little"), _MAX_LINE))
    version_end = greeting.find(b"\0", 1)
    offers = greeting[version_end + 14:version_end + 16]
    if greeting[:1] != b"\x0a" or version_end < 0 or len(offers) < 2:
        raise talk.refusal(greeting[3:] if greeting[:1] == b"\xff" else greeting)
    if not int.from_bytes(offers, "little") & _MYSQL_SSL:
        raise talk.refusal(b"that it has no TLS")
    wants = _MYSQL_SSL | _MYSQL_PROTOCOL_41 | _MYSQL_SECURE_CONNECTION
    packet = struct.pack("<IIB23x", wants, 1 << 24, 33)
    talk.send(len(packet).to_bytes(3, "little") + b"\x01" + packet)


async def _xmpp(talk: _Conversation) -> None:
    """RFC 6120 section 5."""
    name = re.sub(r"[^A-Za-z0-9.:_-]", "", talk.server_name)
    talk.send(
        f"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='{name}' version='1.0'>".encode())
    offers = await talk.until(b"</stream:features>", b"<stream:features/>", b"</stream:error>", b"</stream:stream>")
    if b"urn:ietf:params:xml:ns:xmpp-tls" not in offers:
        raise talk.refusal(offers[-80:])
    talk.send(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    answer = await talk.until(b">")
    if b"<proceed" not in answer:
        raise talk.refusal(answer)
    if not answer.endswith(b"/>"):
        await talk.until(b"</proceed>")


_DIALOGUES: dict[str, t.Callable[[_Conversation], t.Awaitable[None]]] = {
    "": _at_once, "smtp": _smtp, "imap": _imap, "pop3": _pop3, "ldap": _ldap, "postgres": _postgres, "mysql": _mysql, "xmpp": _xmpp,
}
