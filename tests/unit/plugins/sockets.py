# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sockets that behave as a test wants: a server that says prepared bytes, and a proxy that counts its tunnels or refuses them."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import typing as t
from types import TracebackType

__all__ = ["Listener", "Proxy", "Sayer", "answer_bytes"]


def answer_bytes(body: bytes = b"{}", status: str = "200 OK", headers: str = "Content-Type: application/json\r\n", length: int | None = None) -> bytes:
    """Return an HTTP answer; *length* is what it claims its body to be."""
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body) if length is None else length}\r\nConnection: close\r\n\r\n".encode() + body


class Listener:
    """A loopback socket whose connections are served one thread each."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> t.Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        raise OSError("nothing is served here")

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.serve(connection)


def _head(connection: socket.socket) -> bytes:
    """Read a request's head, and what came with it of the body."""
    data = b""
    # A TLS greeting (its first byte is 22) has no such end; it is answered like any other nonsense.
    while b"\r\n\r\n" not in data and data[:1] != b"\x16":
        part = connection.recv(65536)
        if not part:
            raise OSError("closed")
        data += part
    return data


def _request(connection: socket.socket) -> bytes:
    """Read a whole request: a body may come in a segment of its own."""
    data = _head(connection)
    head, _end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        part = connection.recv(missing)
        if not part:
            raise OSError("closed")
        data, missing = data + part, missing - len(part)
    return data


class Sayer(Listener):
    """Answers every request with the same bytes; remembers requests and the peers' certificates. *tls* makes it speak TLS."""

    def __init__(self, answer: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer or answer_bytes()
        self.requests: list[bytes] = []
        self.peers: list[str] = []
        self._tls = tls
        super().__init__()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        """Read one request and answer."""
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
            subject = dict(item[0] for item in t.cast(t.Any, connection.getpeercert() or {}).get("subject", ()))
            self.peers.append(str(subject.get("commonName", "")))
        self.requests.append(_request(connection))
        connection.sendall(self.answer)
        connection.close()


class Proxy(Listener):
    """A CONNECT proxy. *refusal* is a status line to answer instead of tunnelling."""

    def __init__(self, refusal: str = "") -> None:
        self.tunnels: list[str] = []
        self._refusal = refusal
        super().__init__()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        """Open the tunnel that is asked for and copy both ways."""
        target = _head(connection).split()[1].decode()
        self.tunnels.append(target)
        if self._refusal:
            connection.sendall(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        host, _colon, port = target.rpartition(":")
        _tunnel(connection, (host, int(port)), b"HTTP/1.1 200 Connection established\r\n\r\n")


class SocksProxy(Listener):
    """A SOCKS 5 proxy that lets everybody through to an IPv4 address (RFC 1928, requests of the kind CONNECT)."""

    def __init__(self) -> None:
        self.tunnels: list[str] = []
        super().__init__()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"socks5://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        """Open the tunnel that is asked for and copy both ways."""
        _version, methods = connection.recv(2)
        connection.recv(methods)
        connection.sendall(b"\x05\x00")
        asked = connection.recv(10)
        target = (socket.inet_ntoa(asked[4:8]), int.from_bytes(asked[8:10], "big"))
        self.tunnels.append(f"{target[0]}:{target[1]}")
        _tunnel(connection, target, b"\x05\x00\x00\x01" + bytes(6))


def _tunnel(connection: socket.socket, target: tuple[str, int], welcome: bytes) -> None:
    """Connect to *target*, say *welcome*, and copy both ways until one side ends."""
    with socket.create_connection(target) as other:
        connection.sendall(welcome)
        ends = {connection: other, other: connection}
        while True:
            for ready in select.select(list(ends), [], [], 30)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                ends[ready].sendall(data)
