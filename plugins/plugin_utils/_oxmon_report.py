# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one gRPC call that proves a metrics agent's token: a report without data points, which is judged and then dropped (private to muster.agents).

grpcio is an optional extra. It is imported inside the call, in the worker that makes it: imported before a fork it would hang there.
The two messages are written and read by hand, since they have one field each that matters (Protocol Buffers encoding, proto3).
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import typing as t
from dataclasses import dataclass
from urllib.parse import urlsplit

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, MissingLibrary, ServerFault, Unreachable
from ansible_collections.muster.agents.plugins.plugin_utils._http import Transport

__all__ = ["Endpoint", "Reply", "empty_batch", "reply_text", "send_empty_batch"]

_METHOD = "/oxmon.MetricService/ReportMetrics"
_AGENT_ID = 0x0A  # field 1, length-delimited
_MESSAGE = 0x12  # field 2, length-delimited
_UNDELIVERED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True)
class Endpoint:
    """Where reports are taken: *tls* for a terminator in front of the server, which itself speaks clear text."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``HOST:PORT``, ``http://HOST:PORT`` or ``https://HOST:PORT``. Raises InvalidInput."""
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        bare = parts.path in ("", "/") and not parts.query and "@" not in parts.netloc and re.search(r"\s", text) is None
        if not host or not port or parts.scheme not in ("http", "https") or not bare:
            raise InvalidInput(f"grpc_endpoint {text!r} cannot be used: write it as host:port, or https://host:port where TLS is terminated before it.")
        return cls(host, port, parts.scheme == "https")

    @property
    def address(self) -> str:
        """``HOST:PORT``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether nothing leaves the machine on the way there."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Reply:
    """How the call ended: a gRPC status by its name, and the words that came with it."""

    status: str
    message: str

    @property
    def passed(self) -> bool:
        """Whether the call got past authentication."""
        return self.status == "OK"

    @property
    def refused(self) -> bool:
        """Whether authentication refused it."""
        return self.status in ("UNAUTHENTICATED", "PERMISSION_DENIED")


def send_empty_batch(endpoint: Endpoint, agent_id: str, token: Secret, transport: Transport) -> Reply:
    """Report nothing in the name of *agent_id*. Raises MissingLibrary without grpcio, Unreachable or ServerFault where nothing was judged."""
    grpc = _grpc()
    options = [("grpc.enable_http_proxy", 0)] if endpoint.loopback else []
    if endpoint.tls:
        channel = grpc.secure_channel(endpoint.address, _credentials(grpc, transport), options=options)
    else:
        channel = grpc.insecure_channel(endpoint.address, options=options)
    metadata = (("authorization", f"Bearer {token.reveal()}"), ("agent-id", agent_id))
    try:
        answer = channel.unary_unary(_METHOD)(empty_batch(agent_id), metadata=metadata, timeout=transport.timeout)
        return Reply("OK", reply_text(answer))
    except grpc.RpcError as error:
        status, said = error.code().name, " ".join(redact(str(error.details() or ""), [token]).split())[:200]
        if status in _UNDELIVERED:
            raise Unreachable(f"{endpoint.address} takes no reports ({said or status}): check the gRPC port and the way there from the controller.") from None
        return Reply(status, said)
    finally:
        channel.close()


def empty_batch(agent_id: str) -> bytes:
    """Return a MetricBatchProto with nothing but its agent_id (text of up to 16383 bytes in UTF-8)."""
    text = agent_id.encode()
    length = bytes([len(text)]) if len(text) < 0x80 else bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    return bytes([_AGENT_ID]) + length + text if text else b""


def reply_text(answer: bytes) -> str:
    """Return the message of a ReportResponse, empty when it has none. Raises ServerFault when these are no such bytes."""
    position = 0
    try:
        while position < len(answer):
            tag = answer[position]
            value, position = _varint(answer, position + 1)
            if tag & 0x07 == 0:
                continue
            if tag & 0x07 != 2 or position + value > len(answer):
                raise ValueError
            if tag == _MESSAGE:
                return answer[position:position + value].decode()
            position += value
    except (IndexError, ValueError):
        raise ServerFault("The answer to a report cannot be read: check that the gRPC port belongs to the control plane.") from None
    return ""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError


def _grpc() -> t.Any:
    """Import grpcio, whose C core would otherwise write its own log lines to the terminal."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return importlib.import_module("grpc")
    except ImportError:
        raise MissingLibrary("grpcio is not installed on the controller: install it to have tokens proved by use.") from None


def _credentials(grpc: t.Any, transport: Transport) -> t.Any:
    """Return TLS credentials of the transport. Raises InvalidInput for what gRPC cannot do."""
    if not transport.validate_certs or transport.pin_sha256:
        raise InvalidInput("gRPC over TLS always verifies by CA: validate_certs: false and pin_sha256 cannot be used with an https:// grpc_endpoint.")
    return grpc.ssl_channel_credentials(
        root_certificates=_read(transport.ca_cert), private_key=_read(transport.client_key), certificate_chain=_read(transport.client_cert))


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise InvalidInput(f"{path!r} cannot be read on the controller ({type(error).__name__}).") from None
