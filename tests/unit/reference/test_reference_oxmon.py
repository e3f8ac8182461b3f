# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference oxmon, in both contracts, over TLS and gRPC, and the reference metrics agent against it."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from reference_agent import metrics_agent
from reference_agent.build import BREAKAGES, build

from reference_server.client import ReferenceServer, Tls
from reference_server.oxmon import Limiter
from reference_server.oxmon_grpc import PATH, _message_classes
from world.ca import CertificateAuthority

from .conftest import Launch, Reply, Wire, eventually

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)

PASSWORD = "changeme"
WHITELIST = "/v1/agents/whitelist"
MESSAGES = _message_classes()


def encrypted(wire: Wire, password: str, timestamp: int | None = None, text: str | None = None) -> str:
    """A password as the shipped login wants it."""
    key = load_pem_public_key(wire.call("GET", "/v1/auth/public-key").json["data"]["public_key"].encode())
    assert isinstance(key, rsa.RSAPublicKey)
    payload = text if text is not None else json.dumps({"password": password, "timestamp": int(time.time()) if timestamp is None else timestamp})
    return base64.b64encode(key.encrypt(payload.encode(), padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))).decode()


def login(wire: Wire, password: str = PASSWORD, user: str = "admin", **headers: str) -> Reply:
    return wire.call("POST", "/v1/auth/login", {"username": user, "encrypted_password": encrypted(wire, password)}, headers)


class Admin:
    """An administrator of either contract: logged in where there is a login."""

    def __init__(self, wire: Wire, contract: str) -> None:
        self.wire = wire
        self.headers = {"Authorization": f"Bearer {login(wire).json['data']['access_token']}"} if contract == "shipped" else {}

    def call(self, method: str, path: str, body: object | None = None) -> Reply:
        return self.wire.call(method, path, body, self.headers)

    def data(self, method: str, path: str, body: object | None = None) -> Any:
        """What an answer carries, in either contract."""
        payload = self.call(method, path, body).json
        return payload["data"] if isinstance(payload, dict) and "err_code" in payload else payload

    def items(self, path: str) -> list[Any]:
        found = self.data("GET", path)
        return list(found if isinstance(found, list) else found["items"])

    def add(self, name: str = "edge.1", **more: Any) -> dict[str, Any]:
        added: dict[str, Any] = self.data("POST", WHITELIST, {"agent_id": name, **more})
        return added


@pytest.fixture
def admin(wire: Wire, contract: str) -> Admin:
    return Admin(wire, contract)


@pytest.fixture
def send(server: ReferenceServer) -> Iterator[Callable[..., tuple[str, str]]]:
    """Report as an agent; returns status and words. Metadata is given as keywords, points as a number."""
    channel = grpc.insecure_channel(server.addresses["oxmon_grpc"])
    call = channel.unary_unary(PATH)

    def one(agent_id: str = "edge.1", points: int = 1, info: dict[str, Any] | None = None, **metadata: str) -> tuple[str, str]:
        batch = MESSAGES["MetricBatchProto"](agent_id=agent_id, timestamp_ms=1)
        for number in range(points):
            batch.data_points.add(agent_id=agent_id, metric_name=f"m{number}", value=1.0, labels={"k": "v"})
        if info is not None:
            batch.system_info.MergeFrom(MESSAGES["SystemInfoProto"](**info))
        try:
            answer = call(batch.SerializeToString(), metadata=tuple((key.replace("_", "-"), value) for key, value in metadata.items()), timeout=10)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        response = MESSAGES["ReportResponse"].FromString(answer)
        return ("OK" if response.success else "FAILED"), response.message

    yield one
    channel.close()


Send = Callable[..., "tuple[str, str]"]


# --- Whitelist ------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(admin: Admin, server: ReferenceServer, contract: str) -> None:
    added = admin.add(description="rack 4")
    assert len(base64.b64decode(added["token"], validate=True)) == 32
    assert added["agent_id"] == "edge.1"
    assert added["token"] not in json.dumps(admin.items(WHITELIST))
    (state,) = [path for path in server.state_files if path.name == "state.sqlite"]
    rows = sqlite3.connect(state)
    rows.row_factory = sqlite3.Row
    (row,) = rows.execute("SELECT * FROM agent_whitelist").fetchall()
    expected = {"agent_id", "token_hash", "created_at", "description"}
    assert set(row.keys()) == (expected if contract == "documented" else {*expected, "id", "encrypted_token", "updated_at"})
    assert row["token_hash"].startswith("$2b$")
    assert not any(added["token"].encode() in path.read_bytes() for path in server.state_files)
    rows.close()


@documented
def test_the_guides_tables_have_the_guides_columns(admin: Admin, server: ReferenceServer) -> None:
    (state,) = [path for path in server.state_files if path.name == "state.sqlite"]
    rows = sqlite3.connect(state)
    described = {row[1]: (row[2], row[3], row[5]) for row in rows.execute("PRAGMA table_info(certificate_details)")}
    rows.close()
    assert described["domain"] == ("TEXT", 0, 1)
    assert described["not_after"] == ("INTEGER", 1, 0)
    assert list(described) == [
        "domain", "not_before", "not_after", "ip_addresses", "issuer_cn", "issuer_o", "issuer_ou", "issuer_c", "subject_alt_names", "chain_valid",
        "chain_error", "last_checked"]


@documented
def test_documented_whitelist_is_added_to_listed_and_removed_from_without_login(wire: Wire) -> None:
    added = wire.call("POST", WHITELIST, {"agent_id": "edge.1", "description": "rack 4"})
    assert added.status == 201
    assert isinstance(added.json["created_at"], int)
    assert wire.call("POST", WHITELIST, {"agent_id": "edge.1"}).status == 409
    listed = wire.call("GET", WHITELIST).json
    assert listed == [{"agent_id": "edge.1", "created_at": added.json["created_at"], "description": "rack 4"}]
    assert wire.call("DELETE", f"{WHITELIST}/edge.1").status == 204
    gone = wire.call("DELETE", f"{WHITELIST}/edge.1")
    assert (gone.status, list(gone.json)) == (404, ["error"])
    assert wire.call("GET", "/v1/auth/public-key").status == 404


@shipped
def test_shipped_whitelist_speaks_its_envelope(admin: Admin, server: ReferenceServer) -> None:
    reply = admin.call("POST", WHITELIST, {"agent_id": "edge.1"})
    payload = reply.json
    assert (reply.status, payload["err_code"], payload["err_msg"]) == (201, 0, "success")
    assert re.fullmatch(r"[0-9a-f]{16}", payload["trace_id"])
    assert reply.headers["X-Trace-Id"] == payload["trace_id"]
    assert set(payload["data"]) == {"id", "agent_id", "token", "created_at"}
    assert payload["data"]["id"].isdecimal()
    again = admin.call("POST", WHITELIST, {"agent_id": "edge.1"})
    assert (again.status, again.json["err_code"], again.json["err_msg"]) == (409, 1005, "Agent 'edge.1' already exists")
    (item,) = admin.items(WHITELIST)
    assert (item["token"], item["collection_interval_secs"], item["status"]) == (None, None, "active")
    assert set(item) == {
        "id", "agent_id", "created_at", "updated_at", "description", "token", "collection_interval_secs", "last_seen", "status"}


@shipped
def test_shipped_entries_are_addressed_by_row_and_not_by_name(admin: Admin, server: ReferenceServer) -> None:
    added = admin.add()
    assert admin.call("GET", f"{WHITELIST}/{added['id']}").json["data"]["agent_id"] == "edge.1"
    assert admin.call("GET", f"{WHITELIST}/edge.1").json["err_code"] == 1004
    assert admin.data("PUT", f"{WHITELIST}/{added['id']}", {"description": "rack 5"}) == {"id": added["id"]}
    assert admin.data("PUT", f"{WHITELIST}/{added['id']}", {"description": None}) == {"id": added["id"]}
    assert server.agent("edge.1")["description"] == "rack 5"
    renewed = admin.data("POST", f"{WHITELIST}/{added['id']}/token")
    assert set(renewed) == {"agent_id", "token"}
    assert server.accepts("edge.1", renewed["token"])
    assert not server.accepts("edge.1", added["token"])
    for method, path in (("GET", ""), ("PUT", ""), ("POST", "/token"), ("DELETE", "")):
        assert admin.call(method, f"{WHITELIST}/1{path}", {}).json["err_code"] == 1004
    assert admin.call("DELETE", f"{WHITELIST}/{added['id']}").json["data"] == {"id": added["id"]}
    agent = admin.data("GET", "/v1/agents/edge.1")
    assert (agent["in_whitelist"], agent["whitelist_id"]) == (False, None)
    assert admin.data("DELETE", "/v1/agents/edge.1") == {"id": agent["id"]}
    assert admin.call("GET", "/v1/agents/edge.1").status == 404


@shipped
def test_shipped_lists_come_in_pages_and_filter_by_substring(admin: Admin) -> None:
    for number in range(25):
        admin.add(f"edge.{number}")
    first = admin.data("GET", WHITELIST)
    assert (len(first["items"]), first["total"], first["limit"], first["offset"]) == (20, 25, 20, 0)
    assert first["items"][0]["agent_id"] == "edge.24"
    assert len(admin.data("GET", f"{WHITELIST}?limit=5000&offset=24")["items"]) == 1
    assert admin.data("GET", f"{WHITELIST}?limit=5000")["limit"] == 1000
    assert {item["agent_id"] for item in admin.items(f"{WHITELIST}?agent_id__contains=dge.1")} == {"edge.1", *(f"edge.1{number}" for number in range(10))}
    quoted = admin.call("GET", f"{WHITELIST}?agent_id__contains=%27")
    assert (quoted.status, quoted.json["err_code"]) == (500, 1501)
    unread = admin.call("GET", f"{WHITELIST}?limit=x")
    assert (unread.status, unread.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b"{", {}, 400), (b"[]", {}, 422), (b"{}", {}, 422), (b'{"agent_id": 5}', {}, 422), (b'{"agent_id": "a", "description": 5}', {}, 422),
    (b'{"agent_id": "a"}', {"Content-Type": "text/plain"}, 415),
])
def test_bodies_of_the_wrong_form_are_refused_as_text(admin: Admin, body: bytes, headers: dict[str, str], status: int) -> None:
    reply = admin.wire.call("POST", WHITELIST, body, {**admin.headers, **headers})
    assert (reply.status, reply.headers["Content-Type"]) == (status, "text/plain; charset=utf-8")


@shipped
def test_nothing_of_a_name_is_checked_as_shipped(admin: Admin) -> None:
    for name in ("", "é", "with space", "quote'd"):
        assert admin.call("POST", WHITELIST, {"agent_id": name}).status == 201


def test_unknown_paths_and_methods_are_empty_answers(wire: Wire) -> None:
    assert [(reply.status, reply.body) for reply in (wire.call("GET", "/v1/nothing"), wire.call("PATCH", WHITELIST))] == [(404, b""), (405, b"")]


def test_health_is_public(wire: Wire, contract: str) -> None:
    payload = wire.call("GET", "/v1/health").json
    assert (payload["data"] if contract == "shipped" else payload)["storage_status"] == "ok"


# --- Login ----------------------------------------------------------------------------------------


@shipped
def test_a_login_gives_a_session_for_a_day(wire: Wire) -> None:
    data = login(wire).json["data"]
    assert data["expires_in"] == 86400
    claims = jwt.decode(data["access_token"], options={"verify_signature": False})
    assert set(claims) == {"sub", "username", "token_version", "iat", "exp"}
    assert claims["exp"] - claims["iat"] == 86400


@shipped
@pytest.mark.parametrize(("header", "code", "words"), [
    (None, 1002, "missing authorization header"), ("Basic x", 1002, "invalid authorization header"), ("Bearer x.y.z", 1002, "invalid token"),
])
def test_a_session_is_asked_for(wire: Wire, header: str | None, code: int, words: str) -> None:
    reply = wire.call("GET", WHITELIST, headers={} if header is None else {"Authorization": header})
    assert (reply.status, reply.json["err_code"], reply.json["err_msg"]) == (401, code, words)


@shipped
def test_a_session_ends_with_its_day_and_with_any_logout(admin: Admin, server: ReferenceServer) -> None:
    server.clock(86400 + 120)
    expired = admin.call("GET", WHITELIST)
    assert (expired.status, expired.json["err_code"]) == (401, 1003)
    server.clock(0)
    assert admin.call("POST", "/v1/auth/logout").status == 200
    assert admin.call("GET", WHITELIST).json["err_msg"] == "token revoked"


@shipped
def test_a_login_that_cannot_be_read_does_not_count(wire: Wire, server: ReferenceServer) -> None:
    stale = encrypted(wire, "changeme", int(time.time()) - 400)
    for bad in (stale, encrypted(wire, "", text="no json"), encrypted(wire, "", text='{"password": 5, "timestamp": 1}'), "no base64!", "AAAA"):
        reply = wire.call("POST", "/v1/auth/login", {"username": "admin", "encrypted_password": bad})
        assert (reply.status, reply.json["err_msg"]) == (400, "invalid encrypted password")
    empty = wire.call("POST", "/v1/auth/login", {"username": "", "encrypted_password": ""})
    assert empty.json["err_msg"] == "username and encrypted_password are required"
    assert login(wire).status == 200


@shipped
def test_the_fifth_failure_locks_the_login_for_three_hours(wire: Wire, server: ReferenceServer) -> None:
    for _failure in range(4):
        reply = login(wire, "wrong", "Admin")
        assert (reply.status, reply.json["err_msg"]) == (401, "invalid credentials")
    fifth = login(wire, "wrong", "admin")
    assert (fifth.status, fifth.json["err_code"]) == (429, 1010)
    assert 10700 < fifth.json["data"]["retry_after_seconds"] <= 10800
    assert int(fifth.headers["Retry-After"]) == fifth.json["data"]["retry_after_seconds"]
    assert login(wire).status == 429
    assert login(wire, **{"X-Forwarded-For": "10.1.2.3, 10.0.0.1"}).status == 200
    server.clock(3 * 3600 + 5)
    late = wire.call("POST", "/v1/auth/login", {"username": "admin", "encrypted_password": encrypted(wire, "changeme", int(time.time()) + 3 * 3600 + 5)})
    assert late.status == 200


def test_the_limits_are_the_shipped_ones(tls: Tls, trust: ssl.SSLContext) -> None:
    arguments = ["--plane", "oxmon", "--oxmon-rate-limits"]
    with ReferenceServer.start("shipped", tls=tls, arguments=arguments) as server:
        wire = Wire(server.url, trust)
        token = login(wire).json["data"]["access_token"]
        server.act("oxmon", "drain", seconds=600)
        session = {"Authorization": f"Bearer {token}"}
        for path, headers in (("/v1/auth/public-key", {}), (WHITELIST, session)):
            reply = wire.call("GET", path, headers=headers)
            assert (reply.status, reply.body.startswith(b"Too Many Requests! Wait for ")) == (429, True)
            assert 0 < int(reply.headers["retry-after"]) <= 600
            assert reply.headers["x-ratelimit-after"] == reply.headers["retry-after"]
        assert wire.call("GET", WHITELIST).status == 401
        assert wire.call("GET", "/v1/health").status == 200
        server.act("oxmon", "refill")
        assert wire.call("GET", WHITELIST, headers=session).status == 200


def test_a_bucket_empties_and_refills() -> None:
    now = 0.0
    bucket = Limiter(5, 1 / 12, lambda: now)
    assert [bucket.take() for _time in range(5)] == [None] * 5
    assert bucket.take() == pytest.approx(12.0)
    now = 11.0
    assert bucket.take() == pytest.approx(1.0)
    now = 12.5
    assert bucket.take() is None
    now = 1000.0
    assert [bucket.take() is None for _time in range(6)] == [True] * 5 + [False]


def test_an_app_id_is_asked_for_before_the_login(tls: Tls, trust: ssl.SSLContext) -> None:
    with ReferenceServer.start("shipped", tls=tls, arguments=["--plane", "oxmon", "--oxmon-require-app-id"]) as server:
        wire = Wire(server.url, trust)
        codes = [wire.call("GET", path, headers=own).json["err_code"] for path in ("/v1/health", "/v1/auth/public-key") for own in ({}, {"ox-app-id": "x"})]
        assert codes == [1008, 1009, 1008, 1009]
        assert wire.call("GET", WHITELIST).status == 401


def test_sessions_die_with_the_server_and_tokens_do_not(tls: Tls, trust: ssl.SSLContext) -> None:
    with ReferenceServer.start("shipped", tls=tls, arguments=["--plane", "oxmon"]) as server:
        admin = Admin(Wire(server.url, trust), "shipped")
        token, before = admin.add()["token"], server.addresses
        server.restart()
        assert admin.call("GET", WHITELIST).json["err_msg"] == "invalid token"
        assert server.accepts("edge.1", token)
        assert server.addresses == before
        server.act("oxmon", "lose_token_key")
        assert server.accepts("edge.1", token)
        assert not server.accepts("edge.1", "another")


# --- Reports --------------------------------------------------------------------------------------


def test_without_authentication_anybody_reports(send: Send, server: ReferenceServer) -> None:
    assert send("stranger", authorization="Bearer nonsense") == ("OK", "ok")
    (record,) = server.agents("oxmon")
    assert (record["name"], record["whitelisted"], record["reports"]) == ("stranger", False, 1)


@pytest.mark.parametrize(("batch", "words"), [
    ({"agent_id": ""}, "agent_id is required"), ({"points": 0}, "data_points cannot be empty"),
    ({"points": 10001}, "batch too large: 10001 data points (max 10000)"),
])
def test_batches_of_the_wrong_size_are_told(send: Send, server: ReferenceServer, batch: dict[str, Any], words: str) -> None:
    assert send(**batch) == ("FAILED", words)
    assert server.agents("oxmon") == []


@shipped
def test_shipped_authentication_judges_in_its_order_and_logs_each_failure(send: Send, admin: Admin, server: ReferenceServer) -> None:
    token = admin.add()["token"]
    server.act("oxmon", "require_auth", on=True)
    good = {"authorization": f"Bearer {token}", "agent_id": "x"}
    metadata: list[tuple[dict[str, str], str]] = [
        ({}, "Missing or invalid authorization header"), ({"authorization": f"bearer {token}"}, "Missing or invalid authorization header"),
        ({"authorization": good["authorization"]}, "Missing agent-id in metadata"),
        ({"authorization": good["authorization"], "agent-id": "unknown"}, "Agent not authorized"),
        ({"authorization": "Bearer wrong", "agent-id": "edge.1"}, "Invalid token"),
    ]
    for own, words in metadata:
        assert send("edge.1", **own) == ("UNAUTHENTICATED", words)
    own = {"authorization": good["authorization"], "agent-id": "edge.1"}
    assert send("another", **own) == ("PERMISSION_DENIED", "agent_id in payload does not match authenticated identity")
    assert send("edge.1", 0, **own) == ("FAILED", "data_points cannot be empty")
    logged = [line["status"] for line in server.log if line["method"] == "gRPC"]
    assert [words for _own, words in metadata] == [line.removeprefix("UNAUTHENTICATED ").partition(" (agent")[0] for line in logged[-5:]]
    assert logged[-1].endswith("(agent edge.1)")
    assert token not in json.dumps(server.log)
    assert server.agent("edge.1")["reports"] == 0
    assert send("edge.1", **own) == ("OK", "ok")


@documented
def test_documented_authentication_knows_an_agent_by_its_token_alone(send: Send, admin: Admin, server: ReferenceServer) -> None:
    token = admin.add()["token"]
    admin.add("edge.2")
    server.act("oxmon", "require_auth", on=True)
    assert send("edge.1", authorization=f"Bearer {token}") == ("OK", "ok")
    assert send("edge.1", authorization="Bearer wrong") == ("UNAUTHENTICATED", "Invalid token")
    assert send("edge.1") == ("UNAUTHENTICATED", "Missing or invalid authorization header")
    assert send("edge.2", authorization=f"Bearer {token}")[0] == "PERMISSION_DENIED"


@shipped
def test_whitelisting_makes_an_agent_look_alive_and_only_the_logs_tell(send: Send, admin: Admin) -> None:
    admin.add()
    assert admin.data("GET", "/v1/agents/edge.1")["status"] == "active"
    assert admin.call("GET", "/v1/agents/edge.1/latest").json["err_msg"] == "No metrics found for agent"
    assert admin.data("GET", "/v1/agents/edge.1/report-logs")["total"] == 0
    info = {"hostname": "h", "os": "linux", "os_version": "1", "arch": "x86_64", "kernel_version": "6", "cpu_cores": 2, "memory_gb": 3.5, "disk_gb": 9.0}
    assert send("edge.1", 3, info) == ("OK", "ok")
    logs = admin.data("GET", "/v1/agents/edge.1/report-logs")
    assert (logs["total"], logs["items"][0]["metric_count"]) == (1, 3)
    agent = admin.data("GET", "/v1/agents/edge.1")
    assert {key: agent[key] for key in info} == info
    assert admin.call("GET", "/v1/agents/edge.1/latest").status == 200
    assert admin.call("GET", "/v1/agents/nobody/report-logs").json["err_code"] == 1004


@shipped
def test_the_configuration_tells_port_and_authentication(admin: Admin, server: ReferenceServer) -> None:
    found = admin.data("GET", "/v1/system/config")
    assert (found["grpc_port"], found["require_agent_auth"]) == (int(server.addresses["oxmon_grpc"].rpartition(":")[2]), False)
    server.act("oxmon", "require_auth", on=True)
    assert admin.data("GET", "/v1/system/config")["require_agent_auth"] is True


# --- Certificates ---------------------------------------------------------------------------------


@pytest.fixture
def site(ca: CertificateAuthority) -> Iterator[Callable[[int], int]]:
    """Serve TLS with a certificate of so many days; returns the port."""
    listeners: list[socket.socket] = []

    def serve(days: int) -> int:
        pair = ca.server(f"site-{days}", days=days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        return int(listener.getsockname()[1])

    yield serve
    for listener in listeners:
        listener.close()


@pytest.fixture
def monitor(tls: Tls, trust: ssl.SSLContext, ca: CertificateAuthority, contract: str) -> Iterator[tuple[Admin, ReferenceServer]]:
    """A server whose certificate monitor trusts the tests' CA."""
    with ReferenceServer.start(contract, tls=tls, arguments=["--plane", "oxmon", "--oxmon-roots", str(ca.ca_file)]) as server:
        yield Admin(Wire(server.url, trust), contract), server


def test_certificate_details_are_collected_and_expiry_raises_an_alert(
    monitor: tuple[Admin, ReferenceServer], site: Callable[[int], int], contract: str,
) -> None:
    admin, server = monitor
    added = admin.call("POST", "/v1/certs/domains", {"domain": "127.0.0.1", "port": site(5)})
    assert added.status == 201
    admin.call("POST", "/v1/certs/domains", {"domain": "localhost", "port": site(20)})
    server.act("oxmon", "certificates")
    details = {item["domain"]: item for item in admin.items("/v1/certificates")}
    found = details["127.0.0.1"]
    assert found["ip_addresses"] == ["127.0.0.1"]
    assert found["issuer_cn"]
    assert "localhost" in found["subject_alt_names"]
    by_id = "127.0.0.1" if contract == "documented" else found["id"]
    assert admin.data("GET", f"/v1/certificates/{by_id}") == found
    alerts = admin.items("/v1/alerts/active")
    if contract == "documented":
        assert found["chain_valid"] is True
        assert isinstance(found["not_after"], int)
        assert {(alert["labels"]["domain"], alert["severity"]) for alert in alerts} == {("127.0.0.1", "critical"), ("localhost", "warning")}
        assert alerts[0]["labels"]["issuer"] == found["issuer_cn"]
        assert alerts[0]["labels"]["ip_addresses"] == ["127.0.0.1"]
    else:
        # The first domain to fire silences all others for a day.
        assert [(alert["agent_id"], alert["labels"]["domain"], alert["severity"]) for alert in alerts] == [("cert-checker", "127.0.0.1", "critical")]
        assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", found["fingerprint_sha256"])
        status = {item["domain"]: item["days_until_expiry"] for item in admin.items("/v1/certs/status?days_until_expiry__lte=10")}
        assert status == {"127.0.0.1": 4}
        assert admin.data("GET", "/v1/certs/status/summary")["expiring_soon"] == 2
        assert admin.data("GET", "/v1/certs/status/127.0.0.1")["is_valid"] is True


def test_thresholds_can_be_changed(monitor: tuple[Admin, ReferenceServer], site: Callable[[int], int]) -> None:
    admin, server = monitor
    (rule,) = admin.items("/v1/alerts/rules")
    assert json.loads(rule["config_json"]) == {"warning_days": 30, "critical_days": 7}
    assert admin.call("PUT", f"/v1/alerts/rules/{rule['id']}", {"config_json": json.dumps({"warning_days": 3, "critical_days": 1})}).status == 200
    admin.call("POST", "/v1/certs/domains", {"domain": "127.0.0.1", "port": site(5)})
    server.act("oxmon", "certificates")
    assert admin.items("/v1/alerts/active") == []


def test_a_certificate_that_does_not_verify(server: ReferenceServer, admin: Admin, site: Callable[[int], int], contract: str) -> None:
    row = admin.data("POST", "/v1/certs/domains", {"domain": "127.0.0.1", "port": site(5)})["id"]
    result = admin.data("POST", f"/v1/certs/domains/{row}/check")
    assert (result["is_valid"], result["chain_valid"], result["days_until_expiry"]) == (False, False, 4)
    assert result["error"].startswith("TLS verification failed: ")
    kept = admin.items("/v1/certificates")
    if contract == "documented":
        assert (kept[0]["chain_valid"], kept[0]["chain_error"]) == (False, result["error"])
    else:
        assert kept == []
    assert admin.items("/v1/alerts/active") == []


def test_a_site_that_is_gone(server: ReferenceServer, admin: Admin, contract: str) -> None:
    row = admin.data("POST", "/v1/certs/domains", {"domain": "127.0.0.1", "port": 1})["id"]
    result = admin.data("POST", f"/v1/certs/domains/{row}/check")
    assert (result["is_valid"], result["not_after"]) == (False, None)
    assert "connection failed" in result["error"]
    assert [item["chain_error"] for item in admin.items("/v1/certificates")] == ([result["error"]] if contract == "documented" else [])
    unknown = admin.data("POST", "/v1/certs/domains", {"domain": "nowhere.invalid"})["id"]
    assert "resolution" in admin.data("POST", f"/v1/certs/domains/{unknown}/check")["error"]


@shipped
def test_domains_are_checked_before_they_are_kept(admin: Admin) -> None:
    codes = [admin.call("POST", "/v1/certs/domains", body).json["err_code"] for body in (
        {"domain": " "}, {"domain": "a.test", "port": 0}, {"domain": "a.test", "port": 65536}, {"domain": "a.test"}, {"domain": "a.test", "port": 8443})]
    assert codes == [1102, 1103, 1103, 0, 1101]
    assert admin.call("POST", "/v1/certs/domains/batch", {"domains": []}).json["err_code"] == 1104
    assert admin.call("POST", "/v1/certs/domains/batch", {"domains": [{"domain": "b.test"}, {"domain": "a.test"}]}).json["err_code"] == 1101
    rows = {item["domain"]: item["id"] for item in admin.items("/v1/certs/domains")}
    assert set(rows) == {"a.test", "b.test"}
    assert admin.call("GET", "/v1/certs/status/a.test").json["err_code"] == 1105
    assert admin.call("GET", "/v1/certs/status/c.test").json["err_code"] == 1004
    assert admin.data("PUT", f"/v1/certs/domains/{rows['a.test']}", {"enabled": False, "note": "later"}) == {"id": rows["a.test"]}
    assert [item["domain"] for item in admin.items("/v1/certs/domains?enabled__eq=false")] == ["a.test"]
    assert admin.call("DELETE", f"/v1/certs/domains/{rows['a.test']}").status == 200
    assert admin.call("GET", f"/v1/certs/domains/{rows['a.test']}").json["err_code"] == 1004


# --- The reference agent --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(zip(("documented", "shipped"), build(tmp_path_factory.mktemp("artefacts"), agent="metrics-agent")))


@pytest.fixture
def config(server: ReferenceServer, tmp_path: Path) -> Callable[..., str]:
    """Write agent.toml; keywords replace or add settings."""

    def write(**changes: Any) -> str:
        values = {"agent_id": "edge.1", "server_endpoint": server.addresses["oxmon_grpc"], "collection_interval_secs": 1, **changes}
        path = tmp_path / "agent.toml"
        path.write_text("# settings\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None))
        return str(path)

    return write


Configure = Callable[..., str]


def test_the_agent_reports_with_its_token_and_stops_on_sigint(
    server: ReferenceServer, admin: Admin, contract: str, artefacts: dict[str, Path], launch: Launch, config: Configure) -> None:
    token = admin.add()["token"]
    server.act("oxmon", "require_auth", on=True)
    process = launch([str(artefacts[contract]), config(auth_token=token)])
    eventually(lambda: server.agent("edge.1")["reports"] >= 2)
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(10) == 0
    assert token not in process.said
    if contract == "shipped":
        assert admin.data("GET", "/v1/agents/edge.1")["hostname"] == socket.gethostname()


def test_the_agent_goes_on_when_it_is_refused(
    server: ReferenceServer, admin: Admin, contract: str, artefacts: dict[str, Path], launch: Launch, config: Configure) -> None:
    admin.add()
    server.act("oxmon", "require_auth", on=True)
    process = launch([str(artefacts[contract]), config(auth_token="wrong")])
    eventually(lambda: process.said.count("report failed") >= 2)
    assert "Invalid token" in process.said
    server.act("oxmon", "require_auth", on=False)
    eventually(lambda: server.agent("edge.1")["reports"] >= 1)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(10) == -signal.SIGTERM


@documented
def test_an_agent_without_token_warns_as_documented_and_not_as_shipped(
    server: ReferenceServer, artefacts: dict[str, Path], launch: Launch, config: Configure) -> None:
    said = {}
    for face, artefact in artefacts.items():
        process = launch([str(artefact), config(tls=True)])
        eventually(lambda running=process: "reported" in running.said)
        said[face] = process.said
    assert "no auth_token" in said["documented"]
    assert "WARN" not in said["shipped"]


@shipped
@pytest.mark.parametrize(("changes", "words", "code"), [
    ({"agent_id": None}, "missing field `agent_id`", 1), ({"server_endpoint": None}, "missing field `server_endpoint`", 1),
    ({"agent_id": 5}, "missing field `agent_id`", 1), ({"tls": "yes"}, "invalid type for `tls`", 1),
    ({"server_endpoint": "no port"}, "invalid server_endpoint", 1),
    ({"collection_interval_secs": 0}, "non-zero", 101),
])
def test_an_agent_that_cannot_work_ends_with_the_reason(
    changes: dict[str, Any], words: str, code: int, artefacts: dict[str, Path], launch: Launch, config: Configure) -> None:
    process = launch([str(artefacts["shipped"]), config(**changes)])
    assert process.popen.wait(20) == code
    eventually(lambda: words in process.said)


def test_every_option_is_taken_for_a_file_name(artefacts: dict[str, Path], launch: Launch) -> None:
    for option in ("--help", "--version"):
        process = launch([str(artefacts["shipped"]), option])
        assert process.popen.wait(20) == 1
        assert f"'{option}'" in process.said
    unasked = launch([str(artefacts["shipped"])])
    assert unasked.popen.wait(20) == 1
    assert "config/agent.toml" in unasked.said


@documented
@pytest.mark.parametrize("broken", [kind for kind in BREAKAGES if kind not in ("arch", "portless")])
def test_broken_builds_fail_in_their_way(
    server: ReferenceServer, admin: Admin, launch: Launch, config: Configure, tmp_path: Path, broken: str) -> None:
    path = config(auth_token=admin.add()["token"])
    server.act("oxmon", "require_auth", on=True)
    process = launch([str(build(tmp_path / "broken", broken=broken, agent="metrics-agent")[0]), path])
    if broken == "exit":
        assert process.popen.wait(20) == 1
    elif broken == "badtoken":
        eventually(lambda: "Invalid token" in process.said)
    else:
        eventually(lambda: "reports to" in process.said)
        assert server.agent("edge.1")["reports"] == 0


def test_a_big_report_waits_for_the_windows_of_http2(server: ReferenceServer) -> None:
    name = "n" * 200
    settings = metrics_agent.Config(name, server.addresses["oxmon_grpc"])
    points = [metrics_agent.Point(1, "metric" * 40, 1.5, {"label": "é" * 100})] * 2000
    metrics_agent.report(settings, points, metrics_agent.system_info())
    assert server.agent(name)["reports"] == 1


def test_a_batch_written_by_hand_is_the_one_protobuf_reads() -> None:
    info = metrics_agent.system_info()
    written = metrics_agent.batch_bytes("a", [metrics_agent.Point(1700000000000, "m", -2.5, {"k": "v"})], info)
    batch = MESSAGES["MetricBatchProto"].FromString(written)
    (point,) = batch.data_points
    assert (batch.agent_id, point.timestamp_ms, point.metric_name, point.value, dict(point.labels)) == ("a", 1700000000000, "m", -2.5, {"k": "v"})
    assert {key: getattr(batch.system_info, key) for key in info} == info
    for success, message in ((True, "ok"), (False, "x" * 300)):
        assert metrics_agent.response_of(MESSAGES["ReportResponse"](success=success, message=message).SerializeToString()) == (success, message)


@pytest.mark.parametrize(("line", "value"), [
    ('k = "a+/="  # comment', "a+/="), ("k = 'lit\\eral'", "lit\\eral"), (r'k = "\"\\\u00e9\n"', '"\\é\n'), ("k = 1_000", 1000), ("k = true", True),
    ('"k" = -5', -5),
])
def test_toml_values(line: str, value: Any) -> None:
    assert metrics_agent.flat_toml(f"# first\n\n{line}\n[section]\nk = 5\n") == {"k": value}


@pytest.mark.parametrize("text", ["k", "k = ", "k = bare", 'k = "open', "k = 1\nk = 2", r'k = "\q"', "a b = 1"])
def test_toml_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|escape"):
        metrics_agent.flat_toml(text)
