# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference KubeAtlas across a socket: the guide's contract and the shipped one, its identity provider, and its signer."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from reference_server.client import ReferenceServer, Tls
from world.agent_pairs import SERVER, Issuer, Pair, issue
from world.ca import CertificateAuthority

from .conftest import Reply, Wire

REALM = "/realms/kubeatlas"
TOKEN = f"{REALM}/protocol/openid-connect/token"
USERINFO = f"{REALM}/protocol/openid-connect/userinfo"
MINT, REGISTER, SERVICES, HEARTBEAT = "/api/v1/install-tokens", "/api/v1/register", "/api/v1/services", "/api/v1/agent/heartbeat"
CLIENT = {"client_id": "kubeatlas-backend", "client_secret": "client-s3cret"}
OPTIONS = [
    "--plane", "kubeatlas", "--kubeatlas-user", "olga:pass-w0rd:olga@example.test", "--kubeatlas-user", "nomail:pass-w0rd",
    "--kubeatlas-client", "kubeatlas-backend:client-s3cret", "--kubeatlas-client", "robot:robot-s3cret:robot@example.test", "--kubeatlas-max-failures", "3",
]
REFUSED = {"error": "Failed to register service", "message": "Invalid or expired install token"}


class Atlas(Wire):
    """A client that can log in, mint and register."""

    def form(self, path: str, **fields: str) -> Reply:
        """Send a form."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.call("POST", path, urllib.parse.urlencode(fields).encode(), headers)

    def access_token(self, username: str = "olga", scope: str = "openid email") -> str:
        """A user's access token."""
        answer = self.form(TOKEN, grant_type="password", username=username, password="pass-w0rd", scope=scope, **CLIENT)
        return str(answer.json["access_token"])

    def authorized(self, method: str, path: str, body: object | None = None, token: str | None = None) -> Reply:
        """A call as olga."""
        return self.call(method, path, body, {"Authorization": f"Bearer {token or self.access_token()}"})

    def install_token(self, **spec: Any) -> str:
        """A token for the agent a-1."""
        body = {"service_name": "a-1", "service_type": "agent", "controller_name": "c-1", **spec}
        return str(self.authorized("POST", MINT, body).json["install_token"])

    def enrol(self, pem: str, token: str | None = None, **spec: Any) -> Reply:
        """Register the agent a-1 with a certificate."""
        body = {
            "install_token": token or self.install_token(), "service_name": "a-1", "service_type": "agent", "controller_name": "c-1",
            "client_cert_pem": pem, "metadata": {"agent_id": "a-1"}, **spec,
        }
        return self.call("POST", REGISTER, body)

    def services(self) -> list[dict[str, Any]]:
        """The list of services."""
        listed: list[dict[str, Any]] = self.authorized("GET", SERVICES).json
        return listed


Start = Callable[[str], ReferenceServer]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("agents-ca"), "agents' CA")


@pytest.fixture(scope="module")
def start(tls: Tls, authority: CertificateAuthority) -> Iterator[Start]:
    servers: dict[str, ReferenceServer] = {}
    signer = f"{authority.ca_file}:{authority.directory / 'ca.key'}"

    def get(contract: str) -> ReferenceServer:
        if contract not in servers:
            asking = Tls(tls.cert, tls.key, client_ca=str(authority.ca_file))
            servers[contract] = ReferenceServer.start(contract, tls=asking, arguments=[*OPTIONS, "--kubeatlas-signer", signer])
        servers[contract].reset()
        return servers[contract]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture
def server(start: Start, contract: str) -> ReferenceServer:
    return start(contract)


@pytest.fixture
def atlas(server: ReferenceServer, trust: ssl.SSLContext) -> Atlas:
    return Atlas(server.url, trust)


@pytest.fixture(scope="module")
def pair(authority: CertificateAuthority) -> Pair:
    return issue("agent-a-1", Issuer.of(authority))


documented = pytest.mark.parametrize("contract", ["documented"])
shipped = pytest.mark.parametrize("contract", ["shipped"])


# -- the identity provider ----------------------------------------------------------------------------------------------------------------


@shipped
def test_access_token_is_verified_by_the_published_keys(atlas: Atlas) -> None:
    head, body, signature = atlas.access_token().split(".")
    discovery = atlas.call("GET", f"{REALM}/.well-known/openid-configuration").json
    assert discovery["token_endpoint"].endswith(TOKEN)
    key = atlas.call("GET", urllib.parse.urlsplit(discovery["jwks_uri"]).path).json["keys"][0]
    numbers = [int.from_bytes(_decoded(key[name]), "big") for name in ("e", "n")]
    rsa.RSAPublicNumbers(*numbers).public_key().verify(_decoded(signature), f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
    assert json.loads(_decoded(head))["kid"] == key["kid"]
    claims = json.loads(_decoded(body))
    assert (claims["email"], claims["preferred_username"], claims["iss"]) == ("olga@example.test", "olga", discovery["issuer"])


@shipped
def test_userinfo_wants_the_scope_openid_and_knows_only_addresses_that_exist(atlas: Atlas) -> None:
    assert atlas.authorized("GET", USERINFO).json["email"] == "olga@example.test"
    assert atlas.authorized("GET", USERINFO, token=atlas.access_token(scope="email")).status == 403
    assert "email" not in atlas.authorized("GET", USERINFO, token=atlas.access_token("nomail")).json
    assert atlas.authorized("GET", USERINFO, token="a.b.c").status == 401


@shipped
@pytest.mark.parametrize(("changes", "status", "error"), [
    ({"password": "wrong"}, 401, "invalid_grant"),
    ({"username": "nobody"}, 401, "invalid_grant"),
    ({"client_secret": "wrong"}, 401, "unauthorized_client"),
    ({"client_id": "nobody"}, 401, "invalid_client"),
    ({"scope": "openid everything"}, 400, "invalid_scope"),
    ({"grant_type": "implicit"}, 400, "unsupported_grant_type"),
    ({"grant_type": ""}, 400, "invalid_request"),
])
def test_logins_are_refused_in_the_words_of_rfc_6749(atlas: Atlas, changes: dict[str, str], status: int, error: str) -> None:
    fields = {"grant_type": "password", "username": "olga", "password": "pass-w0rd", "scope": "openid email", **CLIENT, **changes}
    answer = atlas.form(TOKEN, **fields)
    assert (answer.status, answer.json["error"]) == (status, error)


@shipped
def test_failures_lock_a_user_until_the_realm_is_reset(atlas: Atlas, server: ReferenceServer) -> None:
    login = {"grant_type": "password", "username": "olga", "scope": "openid", **CLIENT}
    for _try in range(3):
        assert atlas.form(TOKEN, password="wrong", **login).json["error_description"] == "Invalid user credentials"
    answer = atlas.form(TOKEN, password="pass-w0rd", **login)
    assert (answer.status, answer.json) == (400, {"error": "invalid_grant", "error_description": "Account disabled"})
    server.reset()
    assert atlas.form(TOKEN, password="pass-w0rd", **login).status == 200
    server.act("kubeatlas", "lock", user="olga")
    assert atlas.form(TOKEN, password="pass-w0rd", **login).status == 400


@shipped
def test_a_client_can_log_in_for_itself_and_refresh_tokens_work_once(atlas: Atlas, server: ReferenceServer) -> None:
    robot = atlas.form(TOKEN, grant_type="client_credentials", client_id="robot", client_secret="robot-s3cret", scope="openid email").json
    assert "refresh_token" not in robot
    assert atlas.authorized("GET", SERVICES, token=robot["access_token"]).status == 200
    token = atlas.form(TOKEN, grant_type="password", username="olga", password="pass-w0rd", scope="openid email", **CLIENT).json["refresh_token"]
    fresh = atlas.call("POST", "/auth/refresh", {"refresh_token": token})
    assert sorted(fresh.json) == ["access_token", "expires_in", "refresh_token"]
    assert atlas.call("POST", "/auth/refresh", {"refresh_token": token}).status == 401
    assert atlas.call("POST", "/auth/logout", {"refresh_token": fresh.json["refresh_token"]}).status == 200
    assert atlas.call("POST", "/auth/logout", {"refresh_token": fresh.json["refresh_token"]}).json["error"] == "logout_failed"
    assert server.counters()["kubeatlas"]["login"] == 6


@shipped
def test_validation_tells_who_a_token_belongs_to(atlas: Atlas) -> None:
    good = atlas.call("POST", "/auth/validate", {"token": atlas.access_token()}).json
    assert (good["valid"], good["user"]["email"], good["error"]) == (True, "olga@example.test", None)
    bad = atlas.call("POST", "/auth/validate", {"token": "x"})
    assert (bad.status, bad.json) == (200, {"valid": False, "user": None, "error": "Invalid token"})
    assert atlas.call("GET", "/auth/user", {"token": atlas.access_token()}).json["roles"] == ["user"]
    assert (atlas.call("GET", "/auth/user", {"token": "x"}).status, atlas.call("GET", "/auth/user", {"token": "x"}).body) == (401, b"")


# -- who may ask ---------------------------------------------------------------------------------------------------------------------------


def test_operators_calls_need_a_bearer(atlas: Atlas) -> None:
    for method, path in (("POST", MINT), ("GET", SERVICES)):
        answer = atlas.call(method, path, {} if method == "POST" else None)
        assert (answer.status, answer.json) == (401, {"error": "Unauthorized", "message": "Missing or invalid authorization header"})
        answer = atlas.authorized(method, path, {}, token="a.b.c")
        assert (answer.status, answer.json) == (401, {"error": "Unauthorized", "message": "Invalid token"})


def test_shipped_server_wants_scope_and_address_where_the_guide_wants_neither(atlas: Atlas, contract: str) -> None:
    expected = 200 if contract == "documented" else 401
    assert atlas.authorized("GET", SERVICES, token=atlas.access_token(scope="")).status == expected
    assert atlas.authorized("GET", SERVICES, token=atlas.access_token("nomail")).status == expected


def test_sessions_end_by_time_by_revocation_and_with_the_provider(atlas: Atlas, server: ReferenceServer) -> None:
    token = atlas.access_token()
    assert atlas.authorized("GET", SERVICES, token=token).status == 200
    server.clock(3601)
    assert atlas.authorized("GET", SERVICES, token=token).status == 401
    server.clock(0)
    server.act("kubeatlas", "revoke-sessions")
    assert atlas.authorized("GET", SERVICES, token=token).status == 401
    token = atlas.access_token()
    server.act("kubeatlas", "identity", up=False)
    assert atlas.authorized("GET", SERVICES, token=token).status == 401
    assert atlas.form(TOKEN, grant_type="password").status == 503


# -- install tokens ------------------------------------------------------------------------------------------------------------------------


def test_minting_answers_what_the_contract_says(atlas: Atlas, server: ReferenceServer, contract: str) -> None:
    answer = atlas.authorized("POST", MINT, {"service_name": "a-1", "service_type": "agent", "expires_in_hours": 1})
    assert answer.status == (201 if contract == "documented" else 200)
    assert sorted(answer.json) == (["install_token"] if contract == "documented" else ["expires_at", "install_token"])
    assert len(answer.json["install_token"]) == 43
    assert len(server.act("kubeatlas", "tokens")) == 1
    server.clock(3601)
    assert server.act("kubeatlas", "tokens") == []


@pytest.mark.parametrize(("body", "documented", "shipped"), [
    ({"service_type": "agent"}, (400, "Missing required field: service_name"), (422, "missing field `service_name`")),
    ({"service_name": "a", "service_type": "Agent"}, (400, "Invalid value for field: service_type"), (422, "unknown variant `Agent`")),
    ({"service_name": "a", "service_type": "agent", "expires_in_hours": "x"}, (400, "expires_in_hours"), (422, "expires_in_hours")),
    ({"service_name": "a", "service_type": "agent", "expires_in_hours": 0}, (400, "expires_in_hours"), (500, "Failed to generate install token")),
    (b"{", (400, "must be a JSON object"), (400, "Failed to parse the request body as JSON")),
    (b"[]", (400, "must be a JSON object"), (422, "invalid type")),
])
def test_malformed_requests(atlas: Atlas, contract: str, body: object, documented: tuple[int, str], shipped: tuple[int, str]) -> None:
    answer = atlas.authorized("POST", MINT, body)
    status, words = documented if contract == "documented" else shipped
    assert answer.status == status
    assert words in answer.body.decode()
    assert answer.headers["Content-Type"].startswith("application/json" if contract == "documented" or status == 500 else "text/plain")


@shipped
def test_wrong_content_type_and_too_long_bodies_are_told_in_text(atlas: Atlas) -> None:
    assert atlas.call("POST", REGISTER, b"{}", {"Content-Type": "text/plain"}).status == 415
    assert atlas.call("POST", REGISTER, b" " * (2 * 1024 * 1024 + 1)).status == 413


# -- registration --------------------------------------------------------------------------------------------------------------------------


def test_registration_is_listed_with_ten_keys(atlas: Atlas, contract: str, pair: Pair) -> None:
    answer = atlas.enrol(pair.cert)
    assert answer.status == (201 if contract == "documented" else 200)
    assert answer.json["message"] == "agent 'a-1' successfully registered"
    (service,) = atlas.services()
    assert sorted(service) == [
        "client_cert_fingerprint", "client_cert_serial", "connected_at", "controller_name", "id", "last_seen", "metadata", "service_name", "service_type",
        "status"]
    assert (service["id"], service["controller_name"], service["status"]) == (answer.json["service_id"], "c-1", "active")
    assert service["client_cert_serial"] == str(pair.certificate.serial_number)
    text = hashlib.sha256(pair.cert.strip().encode()).hexdigest()
    der = pair.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    assert service["client_cert_fingerprint"] == (der if contract == "documented" else text)
    assert service["metadata"] == {"agent_id": "a-1"}


def test_token_works_once_and_not_after_its_time(atlas: Atlas, server: ReferenceServer, pair: Pair) -> None:
    token = atlas.install_token()
    assert atlas.enrol(pair.cert, token).status < 300
    assert (atlas.enrol(pair.cert, token).status, atlas.enrol(pair.cert, token).json) == (400, REFUSED)
    late = atlas.install_token(expires_in_hours=1)
    server.clock(3601)
    assert atlas.enrol(pair.cert, late).json == REFUSED
    assert len(server.agents()) == 1


def test_same_certificate_again_makes_another_service(atlas: Atlas, pair: Pair) -> None:
    ids = [atlas.enrol(pair.cert).json["service_id"] for _time in range(2)]
    assert [service["id"] for service in atlas.services()] == ids[::-1]


def test_filter_of_the_list(atlas: Atlas, server: ReferenceServer, pair: Pair) -> None:
    atlas.enrol(pair.cert)
    assert len(atlas.authorized("GET", f"{SERVICES}?service_type=agent").json) == 1
    assert atlas.authorized("GET", f"{SERVICES}?service_type=controller").json == []
    bad = atlas.authorized("GET", f"{SERVICES}?service_type=x")
    assert (bad.status, bad.json) == (400, {"error": "Invalid service type", "message": "Valid types are: controller, agent"})
    server.fault("kubeatlas_services", "kubeatlas-redis-down")
    assert atlas.authorized("GET", SERVICES).json["error"] == "Failed to list connected services"


@shipped
def test_shipped_server_ignores_the_body_beside_the_token_and_verifies_nothing(atlas: Atlas) -> None:
    expired = issue("anything", begins=-200.0, ends=-100.0, usages=None)
    answer = atlas.enrol(f"leading text\n{expired.cert}", service_name="other", service_type="nonsense", metadata=["any", 1])
    assert answer.json["message"] == "agent 'a-1' successfully registered"
    assert atlas.services()[0]["metadata"] == ["any", 1]


@shipped
def test_bad_certificate_burns_the_shipped_servers_token(atlas: Atlas, server: ReferenceServer, pair: Pair) -> None:
    token = atlas.install_token()
    answer = atlas.enrol("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", token)
    assert (answer.status, answer.json["message"]) == (400, "Failed to extract certificate serial")
    assert atlas.enrol(pair.cert, token).json == REFUSED
    assert server.agents() == []


@shipped
@pytest.mark.parametrize(("kind", "words"), [
    ("kubeatlas-redis-down", "Invalid or expired install token"),
    ("kubeatlas-redis-store", "Failed to store service in Redis"),
    ("kubeatlas-redis-list", "Failed to add service to list"),
])
def test_storage_faults_look_like_bad_requests(atlas: Atlas, server: ReferenceServer, pair: Pair, kind: str, words: str) -> None:
    token = atlas.install_token()
    server.fault("kubeatlas_register", kind)
    answer = atlas.enrol(pair.cert, token)
    assert (answer.status, answer.json["message"]) == (400, words)
    assert atlas.services() == []
    assert (atlas.enrol(pair.cert, token).status == 200) is (kind == "kubeatlas-redis-down")


@documented
@pytest.mark.parametrize(("changes", "message"), [
    ({"install_token": ""}, "Missing required field: install_token"),
    ({"service_name": ""}, "Missing required field: service_name"),
    ({"controller_name": None}, "Missing required field: controller_name"),
    ({"client_cert_pem": ""}, "Missing required field: client_cert_pem"),
    ({"service_type": "node"}, "Invalid value for field: service_type"),
    ({"client_cert_pem": "no pem"}, "Invalid certificate format"),
    ({"service_name": "a-2"}, "Invalid or expired install token"),
    ({"controller_name": "c-2"}, "Invalid or expired install token"),
])
def test_documented_server_names_what_is_wrong_and_keeps_the_token(
    atlas: Atlas, pair: Pair, changes: dict[str, Any], message: str) -> None:
    token = atlas.install_token()
    answer = atlas.enrol(**{"pem": pair.cert, "token": token, **changes})
    assert (answer.status, answer.json["message"]) == (400, message)
    assert atlas.enrol(pair.cert, token).status == 201


@documented
def test_documented_server_wants_a_valid_client_certificate_of_this_service(atlas: Atlas, authority: CertificateAuthority) -> None:
    ours = Issuer.of(authority)
    between = issue("intermediate", ours, authority=True)
    bad = {
        "expired": issue("agent-a-1", ours, begins=-200.0, ends=-100.0).cert,
        "not yet valid": issue("agent-a-1", ours, begins=100.0).cert,
        "for servers": issue("agent-a-1", ours, usages=SERVER).cert,
        "for nothing": issue("agent-a-1", ours, usages=None).cert,
        "another name": issue("agent-a-2", ours).cert,
        "a foreign CA": issue("agent-a-1").cert,
        "a chain with a gap": issue("agent-a-1", Issuer.from_pair(between)).cert,
    }
    token = atlas.install_token()
    for kind, pem in bad.items():
        answer = atlas.enrol(pem, token)
        assert (answer.status, answer.json["message"]) == (400, "Certificate validation failed"), kind
    chained = issue("a-1", Issuer.from_pair(between)).cert + between.cert
    assert atlas.enrol(chained, token).status == 201
    assert atlas.enrol(issue("x", ours, names=["a-1"]).cert).status == 201


# -- signs of life -------------------------------------------------------------------------------------------------------------------------


def _heart(server: ReferenceServer, ca: CertificateAuthority, pair: Pair | None, folder: Path) -> Wire:
    context = ssl.create_default_context(cafile=str(ca.ca_file))
    if pair is not None:
        context.load_cert_chain(*pair.write(folder, pair.certificate.serial_number.__str__()))
    return Wire(server.url, context)


@documented
def test_heartbeat_over_mtls_moves_last_seen(
    atlas: Atlas, server: ReferenceServer, ca: CertificateAuthority, authority: CertificateAuthority, pair: Pair, tmp_path: Path
) -> None:
    atlas.enrol(pair.cert)
    body = {"agent_id": "a-1", "status": "healthy"}
    before = atlas.services()[0]
    assert before["last_seen"] == before["connected_at"]
    heart = _heart(server, ca, pair, tmp_path)
    assert heart.call("POST", HEARTBEAT, body).status == 200
    assert atlas.services()[0]["last_seen"] > before["last_seen"]
    assert heart.call("POST", HEARTBEAT, {"agent_id": "a-1", "status": "fine"}).status == 400
    assert heart.call("POST", HEARTBEAT, {"status": "healthy"}).json["message"] == "Missing required field: agent_id"
    assert heart.call("POST", HEARTBEAT, {**body, "agent_id": "a-2"}).status == 403
    assert _heart(server, ca, None, tmp_path).call("POST", HEARTBEAT, body).status == 401
    assert _heart(server, ca, issue("agent-a-1", Issuer.of(authority)), tmp_path).call("POST", HEARTBEAT, body).status == 401
    with pytest.raises(OSError):
        _heart(server, ca, issue("agent-a-1"), tmp_path).call("POST", HEARTBEAT, body)
    assert server.counters()["kubeatlas"]["agent"] == 6


def test_only_the_documented_server_has_the_route_of_the_heartbeat(atlas: Atlas, contract: str) -> None:
    answer = atlas.call("GET", HEARTBEAT)
    assert (answer.status, answer.body) == (405 if contract == "documented" else 404, b"")
    assert atlas.call("DELETE", REGISTER).status == 405
    assert atlas.call("GET", "/api/v1/services/x").status == 404


# -- the signer and the control API --------------------------------------------------------------------------------------------------------


def test_signer_signs_what_the_csr_says(atlas: Atlas, authority: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent-a-1")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    body = {"csr": base64.b64encode(csr).decode(), "agent_name": "a-1", "controller": "c-1", "validity_days": 10}
    certificate = x509.load_pem_x509_certificate(atlas.call("POST", "/api/v1/sign-certificate", body).json["certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_file.read_bytes()))
    assert certificate.public_key() == key.public_key()
    assert certificate.subject == name
    assert ExtendedKeyUsageOID.CLIENT_AUTH in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert 9 < (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 10
    for change in ({"csr": "AAAA"}, {"csr": ""}, {"validity_days": 0}, {"validity_days": "x"}, {"agent_name": None}):
        assert atlas.call("POST", "/api/v1/sign-certificate", {**body, **change}).status == 400


def test_signer_is_off_unless_it_is_asked_for() -> None:
    with ReferenceServer.start("shipped", arguments=OPTIONS) as server:
        assert Wire(server.url, None).call("POST", "/api/v1/sign-certificate", {}).status == 404
        assert Wire(server.url, None).call("GET", "/health").json["service"] == "kubeatlas-backend"


def test_control_api_sees_and_changes_what_tests_need(atlas: Atlas, server: ReferenceServer, pair: Pair) -> None:
    token = server.act("kubeatlas", "mint", service_name="a-1", controller_name="c-1")["install_token"]
    service_id = atlas.enrol(pair.cert, token).json["service_id"]
    assert server.agent("a-1")["agent_id"] == service_id
    assert server.agent("a-1")["last_heartbeat"] is None
    assert server.accepts("a-1", pair.cert)
    server.act("kubeatlas", "touch", name="a-1")
    assert server.agent("a-1")["last_heartbeat"] is not None
    server.drift("a-1")
    assert not server.accepts("a-1", pair.cert)
    server.forget("a-1")
    assert server.agents() == []
    with pytest.raises(RuntimeError, match="404"):
        server.act("kubeatlas", "nonsense")


def test_records_and_sessions_outlive_a_restart_and_no_secret_is_written_down(server: ReferenceServer, atlas: Atlas, pair: Pair) -> None:
    access, install = atlas.access_token(), atlas.install_token()
    server.kill()
    server.restart()
    assert atlas.enrol(pair.cert, install).status < 300
    assert len(atlas.authorized("GET", SERVICES, token=access).json) == 1
    written = b"".join(path.read_bytes() for path in server.state_files)
    for secret in (access, install, "pass-w0rd", "client-s3cret"):
        assert secret.encode() not in written


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
