# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference pgAnalytics, in both contracts, over TLS."""

from __future__ import annotations

import json
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.ca import CertificateAuthority

from .conftest import Reply, Wire

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)

COLLECTORS = "/api/v1/collectors"
REGISTER = f"{COLLECTORS}/register"
SECRETS = "/api/v1/registration-secrets"
USERS = ("ops:correct-horse", "viewer:battery-staple:viewer", "gone:left-long-ago:inactive")
SECRET_HEADER = {"X-Registration-Secret": DEFAULT_SECRET}

Start = Callable[..., ReferenceServer]


@pytest.fixture(scope="module")
def start(tls: Tls) -> Iterator[Start]:
    """Start servers when they are first asked for; the same arguments give the same server."""
    servers: dict[tuple[str, ...], ReferenceServer] = {}

    def get(contract: str, *arguments: str) -> ReferenceServer:
        key = (contract, *arguments)
        if key not in servers:
            users = [word for user in USERS for word in ("--pganalytics-user", user)]
            servers[key] = ReferenceServer.start(contract, tls=tls, arguments=["--plane", "pganalytics", *users, *arguments])
        servers[key].reset()
        return servers[key]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture(params=["documented", "shipped"])
def contract(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(start: Start, contract: str) -> ReferenceServer:
    return start(contract)


@pytest.fixture
def wire(server: ReferenceServer, trust: ssl.SSLContext) -> Wire:
    return Wire(server.url, trust)


def register(wire: Wire, name: str | None = "primary-db", secret: str | None = DEFAULT_SECRET, **changes: Any) -> Reply:
    body = {"name": name, "hostname": "db-1.example.com", **changes}
    return wire.call("POST", REGISTER, {key: value for key, value in body.items() if value is not None}, {"X-Registration-Secret": secret} if secret else {})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def login(wire: Wire, who: str = USERS[0]) -> dict[str, str]:
    """The headers of a session, wherever this contract puts its token."""
    user, password = who.split(":")[:2]
    reply = wire.call("POST", "/api/v1/auth/login", {"username": user, "password": password})
    assert reply.status == 200
    token = reply.json.get("token") or cookies(reply)["auth_token"]
    return bearer(token)


def cookies(reply: Reply) -> dict[str, str]:
    lines = [value for name, value in reply.headers.items() if name.lower() == "set-cookie"]
    return dict(line.partition(";")[0].split("=", 1) for line in lines)


def push(wire: Wire, item: dict[str, Any], **changes: Any) -> Reply:
    body = {"collector_id": item["collector_id"], "hostname": "db-1.example.com", "timestamp": "2026-01-01T00:00:00Z", "metrics": [], **changes}
    return wire.call("POST", "/api/v1/metrics/push", body, bearer(item["token"]))


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


# -- registering ---------------------------------------------------------------------------------------------------------------------


@documented
def test_documented_answer_has_the_guides_keys_and_they_fit_each_other(wire: Wire) -> None:
    reply = register(wire, region="us-east-1", tags={"tier": "primary"}, address="203.0.113.10")
    item = reply.json
    assert reply.status == 201
    assert set(item) == {"collector_id", "token", "certificate", "private_key", "ca_certificate", "expires_at", "fingerprint"}
    certificate, ca = (x509.load_pem_x509_certificate(item[key].encode()) for key in ("certificate", "ca_certificate"))
    certificate.verify_directly_issued_by(ca)
    assert item["fingerprint"] == "SHA256:" + certificate.fingerprint(hashes.SHA256()).hex()
    assert item["private_key"].startswith("-----BEGIN PRIVATE KEY-----")
    key = load_pem_private_key(item["private_key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == item["collector_id"]
    assert certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


@documented
def test_documented_token_is_the_guides_for_a_year(wire: Wire) -> None:
    item = register(wire).json
    assert jwt.get_unverified_header(item["token"]) == {"alg": "HS256", "typ": "JWT"}
    said = claims(item["token"])
    assert (said["sub"], said["collector_id"]) == (item["collector_id"], item["collector_id"])
    assert (said["iss"], said["aud"]) == ("pganalytics-api", "pganalytics-collectors")
    assert said["exp"] - said["iat"] == 365 * 86400
    assert abs(said["iat"] - time.time()) < 60


@shipped
def test_shipped_answer_has_five_keys_and_a_certificate_that_signs_itself(wire: Wire) -> None:
    reply = register(wire, region="us-east-1", tags={"tier": "primary"})
    item = reply.json
    assert reply.status == 200
    assert set(item) == {"collector_id", "token", "certificate", "private_key", "expires_at"}
    certificate = x509.load_pem_x509_certificate(item["certificate"].encode())
    certificate.verify_directly_issued_by(certificate)
    assert [attribute.value for attribute in certificate.subject] == ["BR", "pgAnalytics", "Collectors", "db-1.example.com"]
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == x509.SubjectAlternativeName([x509.DNSName("db-1.example.com")])
    assert certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest == item["collector_id"].encode()
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    key = load_pem_private_key(item["private_key"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert (key.key_size, key.public_key()) == (2048, certificate.public_key())
    assert len(item["expires_at"].partition(".")[2]) == len("123456789Z")


@shipped
def test_shipped_token_lasts_half_an_hour_and_names_no_issuer(wire: Wire) -> None:
    item = register(wire).json
    said = claims(item["token"])
    assert set(said) == {"collector_id", "hostname", "type", "sub", "nbf", "iat", "exp"}
    assert (said["sub"], said["type"]) == (f"collector:{item['collector_id']}", "access")
    assert said["exp"] - said["iat"] == 1800


@documented
def test_documented_second_registration_is_a_conflict(wire: Wire, server: ReferenceServer) -> None:
    register(wire)
    reply = register(wire)
    assert (reply.status, reply.json) == (409, {"error": "collector_exists", "message": "Collector with name 'primary-db' already registered"})
    assert len(server.agents()) == 1


@shipped
def test_shipped_registration_never_conflicts_and_ignores_what_it_does_not_know(wire: Wire, server: ReferenceServer) -> None:
    first, second = register(wire, region="x", tags={"a": "b"}).json, register(wire).json
    assert first["collector_id"] != second["collector_id"]
    records = server.agents()
    assert [record["name"] for record in records] == ["primary-db", "primary-db"]
    assert (records[0]["region"], records[0]["tags"]) == (None, None)
    assert push(wire, first).status == push(wire, second).status == 200


@documented
@pytest.mark.parametrize("secret", [None, "", "wrong-registration-secret-00000000"])
def test_documented_bad_secret_is_named_by_a_slug(wire: Wire, server: ReferenceServer, secret: str | None) -> None:
    reply = register(wire, secret=secret)
    assert (reply.status, reply.json) == (
        401, {"error": "invalid_registration_secret", "message": "Registration secret not provided or invalid"})
    assert server.agents() == []
    assert server.log[-1] == {**server.log[-1], "path": REGISTER, "status": "401"}


@shipped
@pytest.mark.parametrize("secret", [None, "", "wrong-registration-secret-00000000"])
def test_shipped_bad_secret_has_one_message(wire: Wire, secret: str | None) -> None:
    reply = register(wire, secret=secret)
    assert (reply.status, reply.json) == (401, {"code": 401, "message": "Invalid or missing registration secret"})


def test_the_body_is_checked_after_the_secret_by_the_guide_and_before_it_as_shipped(wire: Wire, contract: str) -> None:
    reply = register(wire, name=None, secret="wrong-registration-secret-00000000")
    assert reply.status == (401 if contract == "documented" else 400)


@documented
@pytest.mark.parametrize(("changes", "message"), [
    ({"name": ""}, "Missing required field: name"), ({"hostname": None}, "Missing required field: hostname"),
    ({"address": "not-an-ip"}, "Invalid field: address"), ({"tags": ["x"]}, "Invalid field: tags"), ({"name": "a" * 256}, "Invalid field: name"),
    ({"hostname": "dätenbank"}, "Invalid field: hostname"),
])
def test_documented_rules_are_enforced(wire: Wire, server: ReferenceServer, changes: dict[str, Any], message: str) -> None:
    reply = register(wire, **changes)
    assert (reply.status, reply.json) == (400, {"error": "invalid_request", "message": message})
    assert server.agents() == []


@shipped
@pytest.mark.parametrize(("changes", "status", "message", "details"), [
    ({"name": ""}, 400, "Invalid request", "'required' tag"), ({"hostname": None}, 400, "Invalid request", "Hostname"),
    ({"name": 7}, 400, "Invalid request", "unmarshal"), ({"version": 3}, 400, "Invalid request", "version"),
    ({"address": "not-an-ip"}, 500, "Database error", "inet"), ({"name": "a" * 256}, 500, "Database error", "character varying(255)"),
    ({"version": "v" * 51}, 500, "Database error", "character varying(50)"),
])
def test_shipped_errors_carry_raw_details(wire: Wire, changes: dict[str, Any], status: int, message: str, details: str) -> None:
    reply = register(wire, **changes)
    assert (reply.status, reply.json["code"], reply.json["message"]) == (status, status, message)
    assert details in reply.json["details"]


@shipped
def test_shipped_row_stays_behind_when_no_certificate_can_be_made(wire: Wire, server: ReferenceServer) -> None:
    reply = register(wire, hostname="dätenbank")
    assert (reply.status, reply.json["message"]) == (500, "Certificate generation failed")
    assert [record["name"] for record in server.agents()] == ["primary-db"]


def test_unparsable_bodies_are_400(wire: Wire) -> None:
    for body in (b"", b"{", b"[]"):
        assert wire.call("POST", REGISTER, body, SECRET_HEADER).status == 400


# -- tokens ------------------------------------------------------------------------------------------------------------------------------


@documented
def test_documented_token_info_tells_and_changes_nothing(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    before = server.agents()
    reply = wire.call("GET", f"{COLLECTORS}/token/info", headers=bearer(item["token"]))
    assert (reply.status, reply.json["collector_id"], reply.json["expires_at"]) == (200, item["collector_id"], item["expires_at"])
    assert server.agents() == before
    assert wire.call("GET", f"{COLLECTORS}/token/info").status == 401
    assert wire.call("GET", f"{COLLECTORS}/token/info", headers=bearer("nonsense")).json["error"] == "invalid_token"
    server.act("pganalytics", "expire", name="primary-db")
    assert wire.call("GET", f"{COLLECTORS}/token/info", headers=bearer(item["token"])).json["error"] == "token_expired"
    server.forget("primary-db")
    assert wire.call("GET", f"{COLLECTORS}/token/info", headers=bearer(item["token"])).json["error"] == "invalid_token"


@documented
def test_documented_refresh_wants_the_id_and_helps_an_expired_token_too(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    path, body = f"{COLLECTORS}/token/refresh", {"collector_id": item["collector_id"]}
    assert wire.call("POST", path, {}, bearer(item["token"])).status == 400
    assert wire.call("POST", path, {"collector_id": "other"}, bearer(item["token"])).status == 401
    fresh = wire.call("POST", path, body, bearer(item["token"]))
    assert (fresh.status, claims(fresh.json["token"])["collector_id"]) == (200, item["collector_id"])
    late = server.act("pganalytics", "mint", name="primary-db", issued_ago=7200, expires_in=-3600)["token"]
    assert wire.call("POST", path, body, bearer(late)).status == 200
    dead = server.act("pganalytics", "mint", name="primary-db", issued_ago=80 * 86400, expires_in=-40 * 86400)["token"]
    assert wire.call("POST", path, body, bearer(dead)).json["error"] == "token_expired"


@shipped
def test_shipped_refresh_takes_a_living_collector_token_only(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    path = f"{COLLECTORS}/refresh-token"
    fresh = wire.call("POST", path, b"", bearer(item["token"]))
    assert (fresh.status, set(fresh.json)) == (200, {"token", "expires_at"})
    assert push(wire, item).status == push(wire, {**item, "token": fresh.json["token"]}).status == 200
    assert wire.call("POST", path).json == {"code": 401, "message": "Missing authorization header"}
    assert wire.call("POST", path, headers={"Authorization": "Basic x"}).json["message"] == "Invalid token"
    assert wire.call("POST", path, headers=login(wire)).json["message"] == "No valid collector token"
    late = server.act("pganalytics", "mint", name="primary-db", issued_ago=7200, expires_in=-3600)["token"]
    assert "expired" in wire.call("POST", path, headers=bearer(late)).json["details"]
    server.forget("primary-db")
    assert wire.call("POST", path, headers=bearer(item["token"])).json == {"code": 404, "message": "Collector not found"}


@documented
def test_documented_rotation_gives_everything_anew_and_the_old_token_lives_on(wire: Wire) -> None:
    item = register(wire).json
    body = {"collector_id": item["collector_id"]}
    assert wire.call("POST", f"{COLLECTORS}/rotate", body, bearer(item["token"])).json["error"] == "invalid_registration_secret"
    assert wire.call("POST", f"{COLLECTORS}/rotate", body, SECRET_HEADER).json["error"] == "invalid_token"
    fresh = wire.call("POST", f"{COLLECTORS}/rotate", body, {**bearer(item["token"]), **SECRET_HEADER}).json
    assert fresh["collector_id"] == item["collector_id"]
    assert fresh["certificate"] != item["certificate"]
    assert push(wire, item).status == push(wire, {**item, "token": fresh["token"]}).status == 200


@shipped
@pytest.mark.parametrize("path", ["token/info", "token/refresh", "rotate", "heartbeat"])
def test_shipped_server_has_no_such_path_and_says_so_in_plain_text(wire: Wire, path: str) -> None:
    for method in ("GET", "POST"):
        reply = wire.call(method, f"{COLLECTORS}/{path}")
        if (method, path) in (("GET", "rotate"), ("GET", "heartbeat")):
            assert reply.status == 401  # taken for a collector's id
        else:
            assert (reply.status, reply.body, reply.headers["Content-Type"]) == (404, b"404 page not found", "text/plain")


@shipped
def test_shipped_trailing_slash_is_redirected(wire: Wire) -> None:
    reply = wire.call("POST", f"{REGISTER}/", {}, SECRET_HEADER)
    assert (reply.status, reply.headers["Location"]) == (307, REGISTER)
    assert wire.call("GET", f"{COLLECTORS}/").status == 301


@shipped
def test_shipped_replies_have_a_request_id(wire: Wire) -> None:
    replies = [wire.call("GET", "/api/v1/health"), wire.call("GET", "/api/v1/nothing"), register(wire), register(wire, secret=None)]
    assert len({uuid.UUID(reply.headers["X-Request-ID"]) for reply in replies}) == 4


# -- users' calls ------------------------------------------------------------------------------------------------------------------------


@documented
def test_documented_login_has_the_token_in_its_body(wire: Wire) -> None:
    reply = wire.call("POST", "/api/v1/auth/login", {"username": "ops", "password": "correct-horse"})
    assert claims(reply.json["token"])["role"] == "admin"
    assert cookies(reply) == {}


@shipped
def test_shipped_login_has_the_token_in_a_cookie_only(wire: Wire) -> None:
    reply = wire.call("POST", "/api/v1/auth/login", {"username": "ops", "password": "correct-horse"})
    assert set(reply.json) == {"message", "csrf_token", "user", "expires_at"}
    line = reply.headers["Set-Cookie"]
    assert "; Path=/; Max-Age=900; HttpOnly" in line
    assert "Secure" not in line
    said = claims(cookies(reply)["auth_token"])
    assert (said["sub"], said["type"], said["role"], said["exp"] - said["iat"]) == ("user:1", "access", "admin", 900)


@pytest.mark.parametrize(("user", "password", "message"), [
    ("ops", "wrong", "Invalid credentials"), ("nobody", "x", "Invalid credentials"), ("gone", "left-long-ago", "User account is inactive")])
def test_refused_logins(wire: Wire, user: str, password: str, message: str) -> None:
    reply = wire.call("POST", "/api/v1/auth/login", {"username": user, "password": password})
    assert (reply.status, reply.json["message"]) == (401, message)
    assert wire.call("POST", "/api/v1/auth/login", {"username": user}).status == 400


@documented
def test_documented_list_is_a_bare_array(wire: Wire) -> None:
    item = register(wire).json
    assert wire.call("GET", COLLECTORS).status == 401
    listed = wire.call("GET", COLLECTORS, headers=login(wire)).json
    assert [set(entry) for entry in listed] == [{"id", "name", "hostname", "status", "last_seen", "metrics_count", "created_at"}]
    assert (listed[0]["status"], listed[0]["last_seen"], listed[0]["metrics_count"]) == ("registered", None, 0)
    push(wire, item, metrics=[{"type": "pg_stats"}, {"type": "pg_io"}])
    listed = wire.call("GET", COLLECTORS, headers=login(wire)).json
    assert (listed[0]["status"], listed[0]["metrics_count"]) == ("active", 2)
    assert listed[0]["last_seen"].endswith("Z")


def test_shipped_list_is_the_newest_20_whatever_is_asked_for(start: Start, trust: ssl.SSLContext) -> None:
    server = start("shipped", "--pganalytics-page-size", "3")
    wire = Wire(server.url, trust)
    ids = [register(wire, f"db-{number}").json["collector_id"] for number in range(4)]
    headers = login(wire)
    first, second = (wire.call("GET", f"{COLLECTORS}?page={page}&page_size=100", headers=headers).json for page in (1, 2))
    assert first == second
    assert ([entry["id"] for entry in first["data"]], first["total"], first["page"], first["total_pages"]) == (ids[:0:-1], 4, 1, 2)
    assert {"status", "metrics_count_total", "config_version"} <= set(first["data"][0])
    assert "last_seen" not in first["data"][0]
    assert wire.call("GET", f"{COLLECTORS}/{ids[0]}", headers=headers).json["name"] == "db-0"


@shipped
def test_shipped_refusals_tell_a_missing_a_bad_and_a_collectors_token_apart(wire: Wire) -> None:
    item = register(wire).json
    assert wire.call("GET", COLLECTORS).json["message"] == "Missing authentication token"
    assert wire.call("GET", COLLECTORS, headers=bearer("nonsense")).json["message"] == "Invalid token"
    assert wire.call("GET", COLLECTORS, headers=bearer(item["token"])).json["message"] == "User not found"


@documented
def test_documented_deletion_is_by_name_and_for_admins(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    assert wire.call("DELETE", f"{COLLECTORS}/primary-db").status == 401
    assert wire.call("DELETE", f"{COLLECTORS}/primary-db", headers=login(wire, USERS[1])).status == 403
    assert wire.call("DELETE", f"{COLLECTORS}/{item['collector_id']}", headers=login(wire)).status == 404
    assert wire.call("DELETE", f"{COLLECTORS}/primary-db", headers=login(wire)).status == 204
    assert server.agents() == []
    assert push(wire, item).status == 401


@shipped
def test_shipped_deletion_is_by_id_for_anybody_and_the_token_lives_on(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    headers = login(wire, USERS[1])
    assert wire.call("DELETE", f"{COLLECTORS}/primary-db", headers=headers).json == {"code": 404, "message": "Collector not found"}
    assert wire.call("DELETE", f"{COLLECTORS}/{item['collector_id']}", headers=headers).status == 204
    assert server.agents() == []
    assert push(wire, item).status == 200


# -- metrics -----------------------------------------------------------------------------------------------------------------------------


def test_a_push_is_the_sign_of_life(wire: Wire, server: ReferenceServer, contract: str) -> None:
    item = register(wire).json
    assert server.agent("primary-db")["last_seen"] is None
    reply = push(wire, item, metrics=[{"type": "pg_stats"}])
    assert (reply.status, reply.json["status"], reply.json["next_check_in_seconds"]) == (200, "success", 300)
    record = server.agent("primary-db")
    assert record["last_seen"] is not None
    assert (record["metrics_count"], record["status"]) == ((1, "active") if contract == "documented" else (0, "registered"))
    assert push(wire, item, timestamp="").json["message"] == "Invalid metrics data"
    assert push(wire, item, collector_id="other").json["message"] == "Collector ID mismatch"
    assert push(wire, {**item, "token": "nonsense"}).status == 401
    assert push(wire, item, metrics=[{"type": 7}]).status == 500


def test_with_mtls_a_push_needs_the_collectors_own_certificate(ca: CertificateAuthority, tls: Tls, trust: ssl.SSLContext, tmp_path: Path) -> None:
    ours = ["--plane", "pganalytics", "--pganalytics-mtls", "on", "--pganalytics-ca-cert", str(ca.ca_file),
            "--pganalytics-ca-key", str(ca.ca_file.with_name("ca.key"))]
    asking = Tls(tls.cert, tls.key, client_ca=str(ca.ca_file))
    with ReferenceServer.start("documented", tls=asking, arguments=ours) as server:
        wire = Wire(server.url, trust)
        item = register(wire).json
        other = register(wire, "replica-1").json
        assert push(wire, item).json["error"] == "invalid_certificate"
        for shown, status in ((item, 200), (other, 401)):
            context = ssl.create_default_context(cafile=str(ca.ca_file))
            pair = tmp_path / "pair.pem"
            pair.write_text(shown["certificate"] + shown["private_key"])
            context.load_cert_chain(pair)
            assert push(Wire(server.url, context), item).status == status


# -- health, limits, configurations ----------------------------------------------------------------------------------------------------------


def test_health_in_both_manners(wire: Wire, contract: str) -> None:
    said = wire.call("GET", "/api/v1/health").json
    if contract == "documented":
        assert said == {"status": "healthy", "version": "3.2.0"}
        assert wire.call("GET", "/version").json == {"error": "not_found", "message": "No such endpoint"}
    else:
        assert (said["status"], said["version"], said["database_ok"]) == ("ok", "3.0.0-alpha", True)
        assert wire.call("GET", "/version").json == {"version": "3.0.0-alpha", "api": "1.0.0"}


def test_the_rate_limit_comes_first_and_names_no_time(start: Start, trust: ssl.SSLContext) -> None:
    wire = Wire(start("shipped", "--pganalytics-rate", "2/0.001").url, trust)
    assert [register(wire, secret=None).status for _time in range(3)] == [401, 401, 429]
    reply = register(wire)
    assert (reply.status, reply.json, "Retry-After" in reply.headers) == (429, {"code": 429, "message": "Too many requests"}, False)
    assert wire.call("GET", "/api/v1/health").status == 200


@shipped
def test_shipped_configurations_are_for_users_and_not_for_collectors(wire: Wire, start: Start, trust: ssl.SSLContext) -> None:
    item = register(wire).json
    path = f"/api/v1/config/{item['collector_id']}"
    headers = login(wire)
    assert wire.call("GET", path, headers=bearer(item["token"])).json["message"] == "User not found"
    assert wire.call("GET", path, headers=headers).status == 404
    assert wire.call("PUT", path, b"[collector]", headers).json["version"] == 1
    stored = wire.call("GET", path, headers=headers)
    assert (stored.body, stored.headers["X-Config-Version"]) == (b"[collector]", "1")
    strict = Wire(start("shipped", "--pganalytics-environment", "production").url, trust)
    assert strict.call("GET", path, headers=headers).json["message"] == "Invalid certificate"


def test_shipped_tenant_bug_spares_a_collectors_token_that_is_asked_about(start: Start, trust: ssl.SSLContext) -> None:
    wire = Wire(start("shipped", "--pganalytics-tenant-bug", "on").url, trust)
    item = register(wire).json
    reply = wire.call("GET", COLLECTORS, headers=login(wire))
    assert (reply.status, reply.json) == (500, {"error": "Invalid user context"})
    assert wire.call("GET", COLLECTORS, headers=bearer(item["token"])).json["message"] == "User not found"


# -- registration secrets ------------------------------------------------------------------------------------------------------------------


@shipped
def test_registration_secrets_are_made_shown_once_used_and_revoked(wire: Wire) -> None:
    headers = login(wire)
    assert wire.call("GET", SECRETS, headers=headers).json == {"secrets": None, "count": 0}
    made = wire.call("POST", SECRETS, {"name": "fleet", "secret_value": "mine"}, headers)
    assert (made.status, set(made.json)) == (201, {"id", "name", "secret_value", "active", "created_at", "message"})
    value = made.json["secret_value"]
    assert len(value) == 43
    assert register(wire, secret=value).status == 200
    one = wire.call("GET", f"{SECRETS}/{made.json['id']}", headers=headers).json
    assert (one["total_registrations"], one["created_by_username"], "last_used_at" in one) == (1, "ops", True)
    assert value not in json.dumps(wire.call("GET", SECRETS, headers=headers).json)
    assert wire.call("POST", SECRETS, {"name": "fleet"}, headers).status == 500
    assert wire.call("PUT", f"{SECRETS}/{made.json['id']}", {"active": False}, headers).status == 400
    assert wire.call("PUT", f"{SECRETS}/{made.json['id']}", {"name": "fleet", "active": False}, headers).json["active"] is False
    assert register(wire, secret=value).status == 401
    assert wire.call("DELETE", f"{SECRETS}/{made.json['id']}", headers=headers).status == 200
    assert wire.call("DELETE", f"{SECRETS}/{made.json['id']}", headers=headers).status == 500
    assert wire.call("GET", f"{SECRETS}/{made.json['id']}", headers=headers).status == 404
    assert wire.call("PUT", f"{SECRETS}/{made.json['id']}", {"name": "x"}, headers).status == 500


@shipped
def test_registration_secrets_end_and_are_for_admins(wire: Wire) -> None:
    headers = login(wire)
    ended = wire.call("POST", SECRETS, {"name": "old", "expires_at": "2020-01-01T00:00:00Z"}, headers).json
    assert register(wire, secret=ended["secret_value"]).status == 401
    assert wire.call("POST", SECRETS, {"name": "odd", "expires_at": "tomorrow"}, headers).status == 400
    reply = wire.call("POST", SECRETS, {"name": "x"}, login(wire, USERS[1]))
    assert (reply.status, reply.json["message"]) == (403, "Only admins can create registration secrets")


def test_with_the_shipped_schema_managed_secrets_do_not_work(start: Start, trust: ssl.SSLContext) -> None:
    wire = Wire(start("shipped", "--pganalytics-managed-secrets", "off").url, trust)
    made = wire.call("POST", SECRETS, {"name": "fleet"}, login(wire)).json
    assert register(wire, secret=made["secret_value"]).status == 401


# -- what tests can do ---------------------------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_class(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    push(wire, item)
    wire.call("GET", COLLECTORS, headers=login(wire))
    assert server.counters()["pganalytics"] == {"mutating": 1, "login": 1, "read": 1, "agent": 1}


def test_no_secret_is_in_the_log_or_behind_the_control_api(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    push(wire, item)
    text = json.dumps(server.log) + json.dumps(server.agents())
    for secret in (item["token"], item["private_key"], DEFAULT_SECRET):
        assert secret not in text


def test_records_keys_and_sessions_outlive_a_restart(tls: Tls, trust: ssl.SSLContext) -> None:
    with ReferenceServer.start("documented", tls=tls, arguments=["--plane", "pganalytics", "--pganalytics-user", USERS[0]]) as server:
        wire = Wire(server.url, trust)
        item = register(wire).json
        headers = login(wire)
        server.restart()
        assert push(wire, item).status == 200
        assert wire.call("GET", COLLECTORS, headers=headers).json[0]["id"] == item["collector_id"]
        assert register(wire, "replica-1").json["ca_certificate"] == item["ca_certificate"]


def test_the_same_key_gets_the_same_answer_only_where_that_is_switched_on(start: Start, trust: ssl.SSLContext) -> None:
    wire = Wire(start("shipped", "--pganalytics-idempotency", "on").url, trust)
    body, headers = {"name": "a", "hostname": "h"}, {**SECRET_HEADER, "Idempotency-Key": "k"}
    assert wire.call("POST", REGISTER, body, headers).body == wire.call("POST", REGISTER, body, headers).body
    plain = Wire(start("shipped").url, trust)
    assert plain.call("POST", REGISTER, body, headers).body != plain.call("POST", REGISTER, body, headers).body


def test_tokens_can_be_checked_drifted_and_aged(wire: Wire, server: ReferenceServer) -> None:
    item = register(wire).json
    assert server.accepts("primary-db", item["token"])
    assert not server.accepts("other", item["token"])
    server.drift("primary-db")
    assert not server.accepts("primary-db", item["token"])
    server.act("pganalytics", "age", name="primary-db", seconds=86400)
    assert server.agent("primary-db")["registered_at"] < "2100"
    server.act("pganalytics", "lifetime", seconds=60)
    fresh = claims(register(wire, "replica-1").json["token"])
    assert fresh["exp"] - fresh["iat"] == 60
    with pytest.raises(RuntimeError, match="404"):
        server.act("pganalytics", "expire", name="nobody")


@pytest.mark.parametrize("arguments", [
    ["--pganalytics-user", "nopassword"], ["--pganalytics-rate", "fast"], ["--pganalytics-ca-cert", "/x"]])
def test_contradicting_options_are_one_line(arguments: list[str]) -> None:
    with pytest.raises(RuntimeError, match="--pganalytics"):
        ReferenceServer.start("shipped", arguments=arguments)
