# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small oxmon metrics agent for tests, with two faces: as the guide tells it, and as it ships.

``oxmon-agent [CONFIG]``: one positional argument, the TOML file, and nothing else; ``--help`` is taken for a file name. It reports over gRPC
every ``collection_interval_secs``, keeps what could not be delivered, and never ends because of a refusal. The *shipped* face sends
``agent-id`` beside the token and says nothing when it has no token; the *documented* face sends the token alone and warns without one.
With ``tls = true`` it goes on in clear text, as the shipped agent does.

Standard library only, Python 3.9 or newer: gRPC is spoken over a plain HTTP/2 connection (RFC 9113, RFC 7541) by hand. ``build.py`` bakes the
three constants below into executable artefacts. No secret is ever printed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

FACE = "documented"
VERSION = "1.0.0"
BROKEN = ""

DEFAULT_CONFIG = "config/agent.toml"
CHUNK = 500
LEAST_BUFFER = 100
INFO_EVERY = 60
CONNECT_SECONDS = 10.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK, _PADDED, _PRIORITY = 0x1, 0x4, 0x1, 0x8, 0x20
_METHOD = "/oxmon.MetricService/ReportMetrics"
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


class StartError(Exception):
    """The agent cannot start; the message says why and holds no secret."""


class ReportError(Exception):
    """A report was not taken; the message says why and holds no secret."""


def say(level: str, message: str) -> None:
    """Log one line to stdout."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {level} {message}", flush=True)


# --- Settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What agent.toml says. *buffer_max_size* counts data points."""

    agent_id: str
    server_endpoint: str
    tls: bool = False
    collection_interval_secs: int = 10
    buffer_max_size: int = 1000
    auth_token: str = ""

    @classmethod
    def load(cls, path: str) -> Config:
        """Read the file. Raises StartError; unknown keys are ignored."""
        try:
            values = flat_toml(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"Failed to read config file '{path}': {type(error).__name__}") from error
        except ValueError as error:
            raise StartError(f"Failed to parse config file '{path}': {error}") from error
        for key in ("agent_id", "server_endpoint"):
            if not isinstance(values.get(key), str):
                raise StartError(f"Failed to parse config file '{path}': missing field `{key}`")
        known = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        for key, value in known.items():
            wanted = type(cls.__dataclass_fields__[key].default) if key not in ("agent_id", "server_endpoint") else str
            if type(value) is not wanted:
                raise StartError(f"Failed to parse config file '{path}': invalid type for `{key}`")
        return cls(**known)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of ``host:port`` or a URI. Raises StartError."""
        found = re.fullmatch(r"(?:https?://)?(?:\[([^\]]+)\]|([^:/\[\]]+)):(\d+)/?", self.server_endpoint)
        if found is None:
            raise StartError(f"invalid server_endpoint: {self.server_endpoint}")
        return found.group(1) or found.group(2), int(found.group(3))


def flat_toml(text: str) -> dict[str, Any]:
    """Read the top level of a TOML document: strings, integers and booleans. Raises ValueError for a line that is no TOML."""
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            break
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, rest = stripped.partition("=")
        name = key.strip().strip("\"'")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in values:
            raise ValueError(f"line {number} is no setting")
        values[name] = _toml_value(rest.strip(), number)
    return values


def _toml_value(text: str, number: int) -> Any:
    basic = re.match(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?\Z', text)
    if basic is not None:
        return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", _unescaped, basic.group(1))
    literal = re.match(r"'([^']*)'\s*(?:#.*)?\Z", text)
    if literal is not None:
        return literal.group(1)
    bare = text.partition("#")[0].strip()
    if bare in ("true", "false"):
        return bare == "true"
    if re.fullmatch(r"[+-]?\d+(?:_\d+)*", bare):
        return int(bare.replace("_", ""))
    raise ValueError(f"line {number} has a value that is no string, integer or boolean")


def _unescaped(found: re.Match[str]) -> str:
    escape = found.group(1)
    if escape[0] in "uU" and len(escape) > 1:
        return chr(int(escape[1:], 16))
    if escape not in _ESCAPES:
        raise ValueError("a string has an unknown escape")
    return _ESCAPES[escape]


# --- Protocol Buffers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One measurement; *timestamp_ms* is in milliseconds since the epoch."""

    timestamp_ms: int
    metric_name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value) if value else b""


def _double(tag: int, value: float) -> bytes:
    return _varint(tag << 3 | 1) + struct.pack("<d", value) if value else b""


def _bytes(tag: int, value: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(value)) + value


def _text(tag: int, value: str) -> bytes:
    return _bytes(tag, value.encode()) if value else b""


def batch_bytes(agent_id: str, points: Sequence[Point], info: Mapping[str, Any] | None) -> bytes:
    """A MetricBatchProto; *info* fills a SystemInfoProto."""
    out = _text(1, agent_id) + _number(2, int(time.time() * 1000))
    for point in points:
        labels = b"".join(_bytes(5, _text(1, key) + _text(2, value)) for key, value in point.labels.items())
        inner = _number(1, point.timestamp_ms) + _text(2, agent_id) + _text(3, point.metric_name) + _double(4, point.value) + labels
        out += _bytes(3, inner)
    if info is not None:
        texts = b"".join(_text(tag, str(info[key])) for tag, key in enumerate(("hostname", "os", "os_version", "arch", "kernel_version"), start=1))
        out += _bytes(4, texts + _number(6, info["cpu_cores"]) + _double(7, info["memory_gb"]) + _double(8, info["disk_gb"]))
    return out


def response_of(message: bytes) -> tuple[bool, str]:
    """Success and message of a ReportResponse."""
    success, said, position = False, "", 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if tag == 1 << 3:
            success = bool(value)
        elif tag & 7 == 2:
            said = message[position : position + value].decode("utf-8", "replace") if tag == 2 << 3 | 2 else said
            position += value
    return success, said


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ReportError("the answer cannot be read")


# --- HTTP/2 ---------------------------------------------------------------------------------------


def _prefixed(number: int, bits: int, flags: int) -> bytes:
    """An integer of RFC 7541, 5.1, behind *flags* in the same byte."""
    limit = (1 << bits) - 1
    if number < limit:
        return bytes([flags | number])
    return bytes([flags | limit]) + _varint(number - limit)


def header_block(headers: Sequence[tuple[str, str]]) -> bytes:
    """Headers as literals that are never indexed, without Huffman coding."""
    return b"".join(
        b"\x10" + _prefixed(len(name), 7, 0) + name.encode() + _prefixed(len(value.encode()), 7, 0) + value.encode() for name, value in headers
    )


def literal_headers(block: bytes) -> dict[str, str]:
    """The headers of a block whose names and values are plain literals; what is indexed or Huffman coded is left out.

    The tables are announced to be empty, and what gRPC has to say beyond the response message comes as literals.
    """
    found: dict[str, str] = {}
    position = 0
    with contextlib.suppress(IndexError):
        while position < len(block):
            first = block[position]
            if first & 0x80:
                _index, position = _read_prefixed(block, position, 7)
                continue
            if first & 0xE0 == 0x20:
                _size, position = _read_prefixed(block, position, 5)
                continue
            index, position = _read_prefixed(block, position, 6 if first & 0x40 else 4)
            name, position = ("", position) if index else _read_string(block, position)
            value, position = _read_string(block, position)
            if name:
                found[name] = value
    return found


def _read_prefixed(block: bytes, position: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    number = block[position] & limit
    position += 1
    if number < limit:
        return number, position
    shift = 0
    while True:
        byte = block[position]
        number += (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _read_string(block: bytes, position: int) -> tuple[str, int]:
    huffman = bool(block[position] & 0x80)
    length, position = _read_prefixed(block, position, 7)
    text = "" if huffman else block[position : position + length].decode("utf-8", "replace")
    return text, position + length


class Http2Call:
    """One request on one connection, in clear text with prior knowledge (RFC 9113, 3.3)."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, CONNECT_SECONDS)
        self._windows = {0: 65535, 1: 65535}
        self._frame_size = 16384
        self._trailers: dict[str, str] = {}
        self._body = bytearray()
        self._ended = False
        self._block = b""
        self._block_ends = False

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def exchange(self, headers: Sequence[tuple[str, str]], body: bytes) -> tuple[dict[str, str], bytes]:
        """Send the request and return trailers and body of the answer. Raises ReportError or OSError."""
        settings = struct.pack(">HI", 1, 0) + struct.pack(">HI", 2, 0)  # no header table, no push
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_HEADERS, _END_HEADERS, 1, header_block(headers)))
        sent = 0
        while sent < len(body):
            room = min(self._windows[0], self._windows[1], self._frame_size, len(body) - sent)
            if room <= 0:
                self._receive()
                if self._ended:
                    break
                continue
            last = sent + room == len(body)
            self._socket.sendall(_frame(_DATA, _END_STREAM if last else 0, 1, body[sent : sent + room]))
            for stream in self._windows:
                self._windows[stream] -= room
            sent += room
        while not self._ended:
            self._receive()
        return self._trailers, bytes(self._body)

    def _receive(self) -> None:
        length, kind, flags, stream = struct.unpack(">IBBI", b"\0" + self._exactly(9))
        payload = self._exactly(length)
        if kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            self._windows[stream] = self._windows.get(stream, 0) + (struct.unpack(">I", payload)[0] & 0x7FFFFFFF)
        elif kind == _GOAWAY or (kind == _RST and stream == 1):
            raise ReportError("the connection was ended by the server")
        elif kind in (_HEADERS, _CONTINUATION) and stream == 1:
            self._take_headers(kind, flags, payload)
        elif kind == _DATA and stream == 1:
            self._body += _unpadded(payload, flags)
            if length:
                update = struct.pack(">I", length)
                self._socket.sendall(_frame(_WINDOW, 0, 0, update) + _frame(_WINDOW, 0, 1, update))
            self._ended = self._ended or bool(flags & _END_STREAM)

    def _take_settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 4:
                self._windows[1] += value - 65535
            elif key == 5:
                self._frame_size = min(value, 16384)
        self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))

    def _take_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            block = _unpadded(payload, flags)
            self._block = block[5:] if flags & _PRIORITY else block
            self._block_ends = bool(flags & _END_STREAM)
        else:
            self._block += payload
        if flags & _END_HEADERS:
            self._trailers.update(literal_headers(self._block))
            self._ended = self._ended or self._block_ends

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._socket.recv(length - len(parts))
            if not part:
                raise ReportError("the server hung up")
            parts += part
        return bytes(parts)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload


# --- The agent ------------------------------------------------------------------------------------


def report(config: Config, points: Sequence[Point], info: Mapping[str, Any] | None) -> None:
    """Deliver one batch. Raises ReportError or OSError."""
    host, port = config.address
    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", _METHOD), (":authority", f"{host}:{port}"), ("content-type", "application/grpc"),
        ("te", "trailers"), *_credentials(config),
    ]
    message = batch_bytes(config.agent_id, points, info)
    call = Http2Call((host, port))
    try:
        trailers, body = call.exchange(headers, b"\0" + struct.pack(">I", len(message)) + message)
    finally:
        call.close()
    if len(body) < 5:
        raise ReportError(f"refused: grpc-status {trailers.get('grpc-status', 'unknown')} {trailers.get('grpc-message', '')}".rstrip())
    success, said = response_of(body[5:])
    if not success:
        raise ReportError(f"not taken: {said}")


def _credentials(config: Config) -> list[tuple[str, str]]:
    """The metadata of an agent that has a token. A name that cannot be a header is silently not sent."""
    if not config.auth_token:
        return []
    token = config.auth_token[::-1] if BROKEN == "badtoken" else config.auth_token
    bearer = [("authorization", f"Bearer {token}")]
    if FACE == "shipped" and re.fullmatch(r"[ -~]+", config.agent_id):
        return [*bearer, ("agent-id", config.agent_id)]
    return bearer


def collect() -> list[Point]:
    """What this machine measures just now."""
    now = int(time.time() * 1000)
    load = os.getloadavg()
    points = [Point(now, f"system.load{minutes}", value) for minutes, value in zip(("1", "5", "15"), load)]
    memory = _memory()
    if memory:
        points.append(Point(now, "memory.available_kb", float(memory.get("MemAvailable", 0))))
    usage = os.statvfs("/")
    points.append(Point(now, "disk.free_bytes", float(usage.f_bavail * usage.f_frsize), {"mount": "/"}))
    return points


def _memory() -> dict[str, int]:
    """/proc/meminfo, in kB."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return {line.partition(":")[0]: int(line.partition(":")[2].split()[0]) for line in lines}
    return {}


def system_info() -> dict[str, Any]:
    """What is sent with the first report and every 60th."""
    usage = os.statvfs("/")
    return {
        "hostname": socket.gethostname(), "os": platform.system(), "os_version": platform.version(), "arch": platform.machine(),
        "kernel_version": platform.release(), "cpu_cores": os.cpu_count() or 0, "memory_gb": round(_memory().get("MemTotal", 0) / 1048576, 2),
        "disk_gb": round(usage.f_blocks * usage.f_frsize / 1e9, 2),
    }


class Agent:
    """The loop: collect, send what is buffered and what is new, keep what was not taken."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._buffer: list[Point] = []
        self._most = max(config.buffer_max_size, LEAST_BUFFER)
        self._stopping = threading.Event()
        if self._most != config.buffer_max_size:
            say("WARN", f"buffer_max_size is raised to {LEAST_BUFFER}")

    def run(self) -> int:
        """Run until SIGINT."""
        signal.signal(signal.SIGINT, self._stop)
        say("INFO", f"agent {self._config.agent_id} {VERSION} reports to {self._config.server_endpoint}")
        if FACE == "documented" and not self._config.auth_token:
            say("WARN", "no auth_token is set: a server that asks for one refuses the reports")
        if self._config.collection_interval_secs == 0:
            raise StartError("`period` must be non-zero.")
        for tick in self._ticks():
            if BROKEN != "hang":
                self._tick(tick)
        say("INFO", "stopped")
        return 0

    def _ticks(self) -> Iterator[int]:
        tick = 0
        while not self._stopping.is_set():
            yield tick
            tick += 1
            self._stopping.wait(self._config.collection_interval_secs)

    def _tick(self, tick: int) -> None:
        waiting = [*self._buffer, *collect()]
        self._buffer = []
        info = system_info() if tick % INFO_EVERY == 0 else None
        while waiting:
            chunk = waiting[:CHUNK]
            try:
                report(self._config, chunk, info)
            except (ReportError, OSError) as error:
                say("WARN", f"report failed, {len(waiting)} data points kept: {error}")
                self._buffer = waiting[-self._most :]
                return
            waiting, info = waiting[CHUNK:], None
        say("DEBUG", "reported")

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()


def main() -> int:
    """One argument, the configuration; everything else is an error."""
    if BROKEN == "exit":
        say("ERROR", "broken on purpose")
        return 1
    if len(sys.argv) > 2:
        say("ERROR", "usage: oxmon-agent [config.toml]")
        return 1
    try:
        config = Config.load(sys.argv[1] if len(sys.argv) == 2 else DEFAULT_CONFIG)
        return Agent(config).run()
    except StartError as error:
        say("ERROR", str(error))
        return 101 if "period" in str(error) else 1


if __name__ == "__main__":
    sys.exit(main())
