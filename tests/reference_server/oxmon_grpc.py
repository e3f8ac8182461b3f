# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC side of oxmon: ``oxmon.MetricService/ReportMetrics`` with its authentication in an interceptor.

grpcio carries the calls and protobuf reads the messages, so that the hand-written bytes of the collection and of the reference agent
meet an implementation that is not theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PATH = "/oxmon.MetricService/ReportMetrics"
BODY_LIMIT = 4 * 1024 * 1024

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {"string": _FIELD.TYPE_STRING, "int64": _FIELD.TYPE_INT64, "int32": _FIELD.TYPE_INT32, "double": _FIELD.TYPE_DOUBLE, "bool": _FIELD.TYPE_BOOL}
_MESSAGES: Mapping[str, tuple[str, ...]] = {
    "SystemInfoProto": (
        "string hostname", "string os", "string os_version", "string arch", "string kernel_version", "int32 cpu_cores", "double memory_gb", "double disk_gb",
    ),
    "MetricDataPointProto": ("int64 timestamp_ms", "string agent_id", "string metric_name", "double value", "map labels"),
    "MetricBatchProto": ("string agent_id", "int64 timestamp_ms", "repeated MetricDataPointProto data_points", "SystemInfoProto system_info"),
    "ReportResponse": ("bool success", "string message"),
}

__all__ = ["PATH", "Admission", "Batch", "GrpcListener", "Outcome"]


@dataclass(frozen=True)
class Admission:
    """What authentication says: who it is (None: it was not asked), or why not, as a gRPC status name and a text."""

    identity: str | None = None
    status: str = ""
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """One report, read. *points* are (metric name, value, agent id inside the point)."""

    agent_id: str
    points: tuple[tuple[str, float, str], ...]
    system_info: Mapping[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """What the plane answers: a ReportResponse, or a gRPC status other than OK."""

    success: bool = False
    message: str = ""
    status: str = ""


Authenticate = Callable[[Mapping[str, str]], Awaitable[Admission]]
Report = Callable[[Batch, "str | None"], Awaitable[Outcome]]


def _message_classes() -> dict[str, Any]:
    """Build the classes of the package ``oxmon`` (proto3)."""
    file = descriptor_pb2.FileDescriptorProto(name="oxmon.proto", package="oxmon", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, declared in enumerate(fields, start=1):
            *kind, field_name = declared.split()
            field = message.field.add(name=field_name, number=number, label=_FIELD.LABEL_OPTIONAL)
            if kind == ["map"]:
                entry = message.nested_type.add(name="LabelsEntry")
                entry.options.map_entry = True
                for position, part in enumerate(("key", "value"), start=1):
                    entry.field.add(name=part, number=position, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
                field.label, field.type, field.type_name = _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE, f".oxmon.{name}.LabelsEntry"
            elif kind[-1] in _TYPES:
                field.type = _TYPES[kind[-1]]
            else:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".oxmon.{kind[-1]}"
                field.label = _FIELD.LABEL_REPEATED if kind[0] == "repeated" else _FIELD.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"oxmon.{name}")) for name in _MESSAGES}


class _Authentication(grpc.aio.ServerInterceptor):
    """Looks at the metadata before any handler does; the handler learns who called, or is never reached."""

    def __init__(self, authenticate: Authenticate, handler: Callable[[bytes, Any, str | None], Awaitable[bytes]]) -> None:
        self._authenticate = authenticate
        self._handler = handler

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        known = await continuation(details)
        if details.method != PATH:
            return known
        admission = await self._authenticate({key: value for key, value in details.invocation_metadata or () if isinstance(value, str)})

        async def refuse(_request: bytes, context: Any) -> bytes:
            await context.abort(getattr(grpc.StatusCode, admission.status), admission.text)
            return b""

        async def admit(request: bytes, context: Any) -> bytes:
            return await self._handler(request, context, admission.identity)

        return grpc.unary_unary_rpc_method_handler(refuse if admission.status else admit)


class GrpcListener:
    """The listener of one plane."""

    def __init__(self, authenticate: Authenticate, report: Report) -> None:
        self._report = report
        self._classes = _message_classes()
        self._server = grpc.aio.server(
            interceptors=[_Authentication(authenticate, self._handle)],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", BODY_LIMIT)],
        )
        handlers = {PATH.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._unauthenticated)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("oxmon.MetricService", handlers),))

    async def start(self, address: str, tls: tuple[bytes, bytes] | None) -> int:
        """Listen on ``HOST:PORT``, in clear text unless *tls* holds key and certificates (PEM). Returns the port. Raises OSError."""
        try:
            port = self._server.add_insecure_port(address) if tls is None else self._server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Stop at once."""
        await self._server.stop(None)

    async def _unauthenticated(self, request: bytes, context: Any) -> bytes:
        """Stands for the handler behind the interceptor, which replaces it."""
        return await self._handle(request, context, None)

    async def _handle(self, request: bytes, context: Any, identity: str | None) -> bytes:
        batch = self._classes["MetricBatchProto"]()
        batch.ParseFromString(request)
        info = {field.name: value for field, value in batch.system_info.ListFields()} if batch.HasField("system_info") else None
        points = tuple((point.metric_name, point.value, point.agent_id) for point in batch.data_points)
        outcome = await self._report(Batch(batch.agent_id, points, info), identity)
        if outcome.status:
            await context.abort(getattr(grpc.StatusCode, outcome.status), outcome.message)
        return bytes(self._classes["ReportResponse"](success=outcome.success, message=outcome.message).SerializeToString())
