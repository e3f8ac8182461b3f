# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pgAnalytics' adapter against the reference server over TLS, in the contract its guide documents and in the one its server ships."""

from __future__ import annotations

import time
import typing as t
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _credential_checks
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Mismatch,
    MissingLibrary,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Sessions
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes import pganalytics
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Credential, Enrolment, Issued
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.pganalytics import PgAnalytics
from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.ca import CertificateAuthority

NAME = "primary-db"
PASSWORD = "canary-password-7f3e"
USER = f"ops:{PASSWORD}"
VIEWER = "viewer:canary-viewer-7f3e:viewer"
SECRET = Secret(DEFAULT_SECRET)
PLAIN = Bootstrap(registration_secret=SECRET)
ADMIN = replace(PLAIN, username="ops", password=Secret(PASSWORD))
ENROLMENT = Enrolment(
    NAME, "3.2.0", hostname="db-prod-01.example.com", address="203.0.113.10", labels={"region": "us-east-1", "tier": "primary", "tags": {"cluster": 7}})
REGISTER = "pganalytics_register"

Start = t.Callable[..., ReferenceServer]
Connect = t.Callable[..., PgAnalytics]

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def start(ca: CertificateAuthority) -> Iterator[Start]:
    """Start servers when they are first asked for; the same arguments give the same server."""
    servers: dict[tuple[str, ...], ReferenceServer] = {}
    pair = ca.server()

    def get(contract: str, *arguments: str) -> ReferenceServer:
        key = (contract, *arguments)
        if key not in servers:
            users = ["--plane", "pganalytics", "--pganalytics-user", USER, "--pganalytics-user", VIEWER]
            servers[key] = ReferenceServer.start(contract, tls=Tls(str(pair.cert), str(pair.key)), arguments=[*users, *arguments])
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
def connect(ca: CertificateAuthority) -> Iterator[Connect]:
    """Make adapters; their connections are closed at the end."""
    made: list[PgAnalytics] = []

    def one(server: ReferenceServer, bootstrap: Bootstrap = PLAIN, sessions: str = "", **transport: t.Any) -> PgAnalytics:
        options = {"ca_cert": str(ca.ca_file), "retries": 0, "timeout": 10.0, "tls_min_version": "1.3", **transport}
        made.append(PgAnalytics(Http(server.url, Transport(**options)), bootstrap, Sessions(sessions, server.url)))
        return made[-1]

    yield one
    for plane in made:
        plane.http.close()


@pytest.fixture
def plane(server: ReferenceServer, connect: Connect) -> PgAnalytics:
    return connect(server)


@pytest.fixture
def admin(server: ReferenceServer, connect: Connect) -> PgAnalytics:
    return connect(server, ADMIN)


def _attempt() -> str:
    return str(uuid.uuid4())


def _register(plane: PgAnalytics, enrolment: Enrolment = ENROLMENT) -> Issued:
    return plane.register(enrolment, _attempt())


def _push(plane: PgAnalytics, credential: Credential, metrics: int = 1) -> int:
    """Let the collector report, and return the status."""
    body = {"collector_id": credential.agent_id, "hostname": "h", "timestamp": "2026-01-01T00:00:00Z", "metrics": [{"type": "x"}] * metrics}
    headers = {"Authorization": f"Bearer {credential.secrets['token'].reveal()}"}
    return plane.http.send("POST", "/api/v1/metrics/push", json_body=body, headers=headers).status


def _with(credential: Credential, **secrets: str) -> Credential:
    return replace(credential, secrets={**credential.secrets, **{name: Secret(value) for name, value in secrets.items()}})


# -- registering --------------------------------------------------------------------------------------------------------------------------------


def test_a_new_name_gets_a_credential_that_is_accepted(server: ReferenceServer, plane: PgAnalytics, contract: str) -> None:
    issued = _register(plane)
    assert issued.created
    optional = {"ca_certificate"} if contract == "documented" else set()
    assert set(issued.credential.secrets) == {"token", "certificate", "private_key"} | optional
    record = server.agent(NAME)
    assert (record["agent_id"], record["hostname"], record["address"]) == (issued.credential.agent_id, "db-prod-01.example.com", "203.0.113.10")
    assert record["version"] == "3.2.0"
    if contract == "documented":
        assert (record["region"], record["tags"]) == ("us-east-1", {"tier": "primary", "cluster": "7"})
    proof = plane.prove(ENROLMENT, issued.credential)
    assert (proof.accepted, proof.definite) == (True, True)
    assert proof.how == ("token info" if contract == "documented" else "list of collectors")
    assert server.counters()["pganalytics"] == {"mutating": 1, "login": 0, "read": 1, "agent": 0}


@documented
def test_the_documented_server_refuses_a_name_twice_also_without_a_login(plane: PgAnalytics, server: ReferenceServer) -> None:
    _register(plane)
    with pytest.raises(IdentityConflict, match="already") as conflict:
        _register(plane)
    assert conflict.value.reason == "identity_conflict"
    assert len(server.agents()) == 1


@shipped
def test_the_shipped_server_takes_a_name_twice_and_we_say_what_that_means_without_a_login(plane: PgAnalytics, server: ReferenceServer) -> None:
    first = _register(plane)
    assert [warning for warning in first.warnings if "admin login" in warning]
    assert _register(plane).credential.agent_id != first.credential.agent_id
    assert len(server.agents()) == 2


def test_an_admin_looks_for_the_name_first_and_nothing_is_sent_for_one_that_is_there(admin: PgAnalytics, server: ReferenceServer) -> None:
    issued = _register(admin)
    assert issued.warnings == ()
    _push(admin, issued.credential)
    server.reset_counters()
    with pytest.raises(IdentityConflict, match="last seen") as conflict:
        _register(admin)
    assert conflict.value.facts["agent_id"] == issued.credential.agent_id
    assert conflict.value.facts["last_seen"]
    assert server.counters()["pganalytics"]["mutating"] == 0


def test_only_a_valid_address_is_sent_and_nothing_empty(server: ReferenceServer, plane: PgAnalytics) -> None:
    _register(plane, Enrolment(NAME, hostname="db.example.com", address="not an address"))
    record = server.agent(NAME)
    assert (record["address"], record["version"], record["region"], record["tags"]) == (None, None, None, None)


@pytest.mark.parametrize("kind", ["commit-then-drop", "commit-then-500", "truncate", "garbage", "pganalytics-no-token", "pganalytics-no-certificate"])
def test_a_registration_without_a_whole_answer_is_ambiguous_and_recovery_leaves_one_record(kind: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    server.fault(REGISTER, kind)
    attempt = _attempt()
    with pytest.raises(Ambiguous) as lost:
        admin.register(ENROLMENT, attempt)
    assert lost.value.reason == ("incomplete_answer" if kind == "garbage" or kind.startswith("pganalytics") else "ambiguous")
    orphan = server.agent(NAME)["agent_id"]
    issued = admin.recover(ENROLMENT, attempt)
    assert [agent["agent_id"] for agent in server.agents()] == [issued.credential.agent_id]
    assert issued.credential.agent_id != orphan
    assert admin.prove(ENROLMENT, issued.credential).accepted


def test_recovery_leaves_a_record_alone_that_somebody_uses(contract: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    used = _register(admin).credential
    _push(admin, used)
    if contract == "documented":
        with pytest.raises(IdentityConflict):
            admin.recover(ENROLMENT, _attempt())
    else:
        admin.recover(ENROLMENT, _attempt())
    assert used.agent_id in {agent["agent_id"] for agent in server.agents()}


def test_recovery_without_a_login_warns_of_what_may_stay(contract: str, server: ReferenceServer, plane: PgAnalytics) -> None:
    server.fault(REGISTER, "commit-then-drop")
    with pytest.raises(Ambiguous):
        _register(plane)
    if contract == "documented":
        with pytest.raises(IdentityConflict):
            plane.recover(ENROLMENT, _attempt())
    else:
        issued = plane.recover(ENROLMENT, _attempt())
        assert any("unused record" in warning for warning in issued.warnings)
        assert len(server.agents()) == 2


def test_recovery_does_not_get_the_dead_answer_again_where_keys_are_honoured(start: Start, connect: Connect) -> None:
    server = start("documented", "--pganalytics-idempotency", "on")
    admin, attempt = connect(server, ADMIN), _attempt()
    server.fault(REGISTER, "commit-then-drop")
    with pytest.raises(Ambiguous):
        admin.register(ENROLMENT, attempt)
    issued = admin.recover(ENROLMENT, attempt)
    assert admin.prove(ENROLMENT, issued.credential).accepted
    assert [agent["agent_id"] for agent in server.agents()] == [issued.credential.agent_id]


def test_reissuing_replaces_the_record_for_an_admin_and_is_not_to_be_had_without(server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    old = _register(admin).credential
    assert plane.reissue(ENROLMENT, old.agent_id, _attempt()) is None
    issued = admin.reissue(ENROLMENT, old.agent_id, _attempt())
    assert issued is not None
    assert [agent["agent_id"] for agent in server.agents()] == [issued.credential.agent_id]
    assert admin.prove(ENROLMENT, issued.credential).accepted
    assert not admin.prove(ENROLMENT, old).accepted


@shipped
def test_reissuing_names_further_records_of_the_name_and_leaves_them(server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    ids = [_register(plane).credential.agent_id for _time in range(3)]
    issued = admin.reissue(ENROLMENT, ids[0], _attempt())
    assert issued is not None
    assert [agent["agent_id"] for agent in server.agents()] == [ids[1], issued.credential.agent_id]
    assert any(ids[1] in warning for warning in issued.warnings)


# -- what an answer must be worth -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "reason", "words", "only"), [
    ("pganalytics-other-id", "bad_token", "sub", ""), ("pganalytics-other-subject", "bad_token", "sub", ""),
    ("pganalytics-old-token", "bad_token", "expired", ""), ("pganalytics-early-token", "bad_token", "iat", ""),
    ("pganalytics-no-jwt", "bad_token", "no JWT", ""), ("pganalytics-other-issuer", "bad_token", "iss", ""),
    ("pganalytics-other-audience", "bad_token", "aud", ""), ("pganalytics-other-key", "bad_certificate", "does not belong", ""),
    ("pganalytics-old-certificate", "bad_certificate", "expired", ""), ("pganalytics-broken-certificate", "bad_certificate", "cannot be read", ""),
    ("pganalytics-other-ca", "bad_certificate", "not signed", "documented"), ("pganalytics-other-fingerprint", "bad_fingerprint", "fingerprint", "documented"),
])
def test_a_contradiction_is_named_and_its_record_taken_back(
    fault: str, reason: str, words: str, only: str, contract: str, server: ReferenceServer, admin: PgAnalytics, plane: PgAnalytics,
) -> None:
    server.fault(REGISTER, fault)
    if only not in ("", contract):
        assert _register(admin).created  # the shipped answer has no such part
        return
    with pytest.raises(Mismatch, match=words) as mismatch:
        _register(admin)
    assert mismatch.value.reason == reason
    assert "\n" not in mismatch.value.msg
    # The id itself may be the false one; then the record cannot be told from another.
    assert (server.agents() == []) is (fault != "pganalytics-other-id")
    server.reset()
    server.fault(REGISTER, fault)
    with pytest.raises(Mismatch, match="delete it there"):
        _register(plane)


@pytest.mark.parametrize(("form", "good"), [
    ("SHA256:{hex}", True), ("{hex}", True), ("sha256:{HEX}", True), ("{colons}", True), ("SHA256:{base64}", True), ("SHA256:{unpadded}", True),
    ("SHA256:abcd1234...", False), ("{reversed}", False),
])
def test_fingerprints_are_read_in_every_form(form: str, good: bool, connect: Connect, start: Start) -> None:
    import base64
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    secrets = _register(connect(start("documented"))).credential.secrets
    der = x509.load_pem_x509_certificate(secrets["certificate"].reveal().encode()).public_bytes(Encoding.DER)
    digest = hashlib.sha256(der)
    encoded = base64.b64encode(digest.digest()).decode()
    text = form.format(hex=digest.hexdigest(), HEX=digest.hexdigest().upper(), colons=digest.digest().hex(":"), base64=encoded, unpadded=encoded.rstrip("="),
                       reversed=digest.hexdigest()[::-1])
    pair = (secrets["certificate"].reveal(), secrets["private_key"].reveal(), time.time())
    if good:
        _credential_checks.check_pair(*pair, fingerprint=text)
    else:
        with pytest.raises(Mismatch, match="fingerprint"):
            _credential_checks.check_pair(*pair, fingerprint=text)


def test_a_server_whose_clock_is_off_is_taken_by_its_own_time(server: ReferenceServer, plane: PgAnalytics) -> None:
    server.clock(1200)
    assert plane.probe().clock_skew == pytest.approx(1200, abs=5)
    assert _register(plane).created


# -- input --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "words"), [
    ("short", "5 characters"), ("x" * 31, "31 characters"), ("with a space in the middle of it all", "spaces"), ("tab\there-" + "x" * 32, "control"),
    ("ümlaut-" + "x" * 32, "non-ASCII"),
])
def test_an_impossible_registration_secret_is_never_sent(secret: str, words: str, server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, Bootstrap(registration_secret=Secret(secret)))
    for step in (lambda: plane.check(ENROLMENT), plane.check_bootstrap, lambda: _register(plane), lambda: plane.recover(ENROLMENT, _attempt())):
        with pytest.raises(Rejected, match=words) as refusal:
            step()
        assert refusal.value.reason == "bad_bootstrap"
        assert secret not in refusal.value.msg
    assert server.counters()["by_route"] == {}


def test_a_missing_secret_or_host_name_is_said_before_anything_is_sent(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="registration_secret is not given"):
        _register(connect(server, Bootstrap()))
    with pytest.raises(InvalidInput, match="hostname is empty"):
        _register(connect(server), replace(ENROLMENT, hostname=""))
    assert server.counters()["by_route"] == {}


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": 'quo"te'}, "characters other"), ({"name": "two words"}, "characters other"), ({"name": "a/b"}, "characters other"),
    ({"name": "dätenbank"}, "characters other"), ({"name": ".."}, "dots"), ({"name": "n" * 256}, "256 characters"), ({"name": "collector"}, "generic"),
    ({"name": "db-20260225"}, "date"), ({"hostname": "dätenbank.example.com"}, "ASCII"), ({"hostname": "a b"}, "ASCII"),
    ({"hostname": "h" * 256}, "255"), ({"version": "v" * 51}, "51 characters"), ({"labels": {"tags": ["x"]}}, "labels.tags"),
])
def test_bad_input_is_refused(changes: dict[str, t.Any], words: str, plane: PgAnalytics) -> None:
    with pytest.raises(InvalidInput, match=words):
        plane.check(replace(ENROLMENT, **changes))


def test_good_input_passes_also_before_the_host_told_its_name(plane: PgAnalytics) -> None:
    plane.check(replace(ENROLMENT, hostname="", version="", labels={}))
    plane.check(replace(ENROLMENT, name="db-1.prod_a"))


def test_without_pyjwt_the_library_is_asked_for(monkeypatch: pytest.MonkeyPatch, server: ReferenceServer, connect: Connect) -> None:
    monkeypatch.setattr(_credential_checks, "IMPORT_ERROR", "Traceback: no module named jwt")
    with pytest.raises(MissingLibrary, match="pyjwt"):
        connect(server)


# -- every answer has a meaning -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "body", "error", "reason", "words"), [
    (409, {"error": "collector_exists", "message": "already registered"}, IdentityConflict, "identity_conflict", "already registered"),
    (401, {"error": "invalid_registration_secret", "message": "Registration secret not provided or invalid"}, Rejected, "bad_bootstrap", "REGISTRATION_SECRET"),
    (401, {"code": 401, "message": "Invalid or missing registration secret"}, Rejected, "bad_bootstrap", "expired"),
    (403, "", Rejected, "bad_bootstrap", "REGISTRATION_SECRET"),
    (400, {"code": 400, "message": "Invalid request"}, InvalidRequest, "invalid_request", "Invalid"),
    (422, "plain words", InvalidRequest, "invalid_request", "plain words"), (404, "404 page not found", InvalidRequest, "not_a_control_plane", "pgAnalytics"),
    (302, "", InvalidRequest, "redirected", "redirects"), (500, {"code": 500, "message": "Database error"}, Ambiguous, "ambiguous", "Database error"),
    (503, "", Ambiguous, "ambiguous", "503"), (418, "", InvalidRequest, "invalid_request", "418"),
    (201, "<html></html>", Ambiguous, "incomplete_answer", "collector_id"), (200, [], Ambiguous, "incomplete_answer", "collector_id"),
    (201, {"collector_id": "x", "token": 5}, Ambiguous, "incomplete_answer", "token"),
])
def test_every_answer_to_a_registration_has_its_meaning(
    status: int, body: object, error: type[AgentsError], reason: str, words: str, start: Start, connect: Connect,
) -> None:
    server = start("shipped")
    server.fault(REGISTER, "status", status=status, body=body)
    with pytest.raises(error) as failure:
        _register(connect(server))
    assert type(failure.value) is error
    assert failure.value.reason == reason
    assert words in failure.value.msg
    assert "\n" not in failure.value.msg


def test_a_wrong_registration_secret_is_a_bad_bootstrap_and_is_not_repeated(server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, Bootstrap(registration_secret=Secret("canary-wrong-secret-000000000000000")))
    with pytest.raises(Rejected) as refusal:
        _register(plane)
    assert refusal.value.reason == "bad_bootstrap"
    assert "canary" not in refusal.value.msg
    assert plane.bootstrap_secret() == Secret("canary-wrong-secret-000000000000000")


def test_throttling_is_waited_for_and_a_long_wait_is_said(server: ReferenceServer, connect: Connect) -> None:
    server.fault(REGISTER, "429", retry_after=0)
    assert _register(connect(server, retries=1)).created
    server.fault(REGISTER, "429", retry_after=3000)
    with pytest.raises(Throttled):
        _register(connect(server, retries=1))


@pytest.mark.parametrize("path", ["health", "list", "login"])
def test_html_on_a_read_is_a_server_fault(path: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    server.fault(f"pganalytics_{path}", "garbage", times=None)
    with pytest.raises(ServerFault):
        admin.probe() if path == "health" else list(admin.list_agents())


@pytest.mark.parametrize("path", ["health", "list", "login"])
def test_a_server_without_our_paths_is_not_a_control_plane(path: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    server.fault(f"pganalytics_{path}", "status", status=404, body="404 page not found", times=None)
    with pytest.raises(InvalidRequest) as failure:
        admin.probe() if path == "health" else list(admin.list_agents())
    assert failure.value.reason == "not_a_control_plane"


# -- being there ----------------------------------------------------------------------------------------------------------------------------------


def test_a_probe_tells_version_and_clock(plane: PgAnalytics, contract: str) -> None:
    state = plane.probe()
    assert state.version == ("3.2.0" if contract == "documented" else "3.0.0-alpha")
    assert state.clock_skew == pytest.approx(0, abs=5)


def test_a_degraded_server_is_named(server: ReferenceServer, plane: PgAnalytics) -> None:
    server.fault("pganalytics_health", "status", status=503, body={"status": "degraded", "database_ok": False, "timescale_ok": True})
    with pytest.raises(ServerFault, match="not database_ok"):
        plane.probe()


def test_a_server_that_is_away_or_not_trusted_is_told_apart(server: ReferenceServer, connect: Connect, ca: CertificateAuthority) -> None:
    with pytest.raises(Untrusted):
        connect(server, ca_cert="").probe()
    server.pause()
    try:
        with pytest.raises(Unreachable):
            connect(server).probe()
    finally:
        server.resume()


def test_tls_12_is_refused_where_13_is_the_floor(ca: CertificateAuthority, connect: Connect) -> None:
    pair = ca.server()
    tls = Tls(str(pair.cert), str(pair.key), max_version="1.2")
    with ReferenceServer.start("documented", tls=tls, arguments=["--plane", "pganalytics"]) as old:
        with pytest.raises(Untrusted, match="tls_min_version"):
            connect(old).probe()
        assert connect(old, tls_min_version="1.2").probe().version == "3.2.0"


# -- proving --------------------------------------------------------------------------------------------------------------------------------------


def test_a_proof_changes_nothing(server: ReferenceServer, admin: PgAnalytics) -> None:
    credential = _register(admin).credential
    before = server.agents()
    server.reset_counters()
    for _time in range(3):
        assert admin.prove(ENROLMENT, credential).accepted
    assert server.agents() == before
    counted = server.counters()["pganalytics"]
    assert (counted["mutating"], counted["agent"]) == (0, 0)


@pytest.mark.parametrize("wrong", ["token", "signature", "id", "control characters", "expired", "called expired", "key", "no key"])
def test_a_bad_credential_is_refused_for_certain(wrong: str, server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    other = _register(plane, replace(ENROLMENT, name="replica-1")).credential
    token = credential.secrets["token"].reveal()
    if wrong == "expired":
        token = server.act("pganalytics", "mint", name=NAME, issued_ago=7200, expires_in=-3600)["token"]
    if wrong == "called expired":
        server.act("pganalytics", "expire", name=NAME)
    spoilt = {
        "token": _with(credential, token="nonsense"), "signature": _with(credential, token=token[:-6] + "AAAAAA"),
        "id": replace(credential, agent_id=other.agent_id), "control characters": _with(credential, token=token + "\nX"),
        "expired": _with(credential, token=token), "called expired": credential,
        "key": _with(credential, private_key=other.secrets["private_key"].reveal()), "no key": _with(credential, private_key="no key at all"),
    }[wrong]
    proof = plane.prove(ENROLMENT, spoilt)
    assert (proof.accepted, proof.definite, proof.pending) == (False, True, False)
    assert proof.detail
    assert token not in proof.detail


@pytest.mark.parametrize("days", [-1, 400])
def test_a_pair_past_its_time_is_refused_whatever_the_token_is_worth(days: int, server: ReferenceServer, plane: PgAnalytics, contract: str) -> None:
    """Certificates last a year: a controller that is 400 days on sees one that is over, though the server takes the token."""
    credential = _register(plane).credential
    plane.http.clock_skew = days * 86400.0
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite, proof.how) == (False, True, "pair")
    assert ("not valid before" if days < 0 else "expired") in proof.detail


def test_a_deleted_collector_is_refused_where_that_can_be_told(contract: str, server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    credential = _register(plane).credential
    server.forget(NAME)
    proof = admin.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, True)
    # The shipped server goes on taking the token, and only an admin is told that its collector is gone.
    assert plane.prove(ENROLMENT, credential).accepted is (contract == "shipped")


@pytest.mark.parametrize(("kind", "options"), [("status", {"status": 500}), ("garbage", {}), ("status", {"status": 429}), ("429", {"retry_after": 3000})])
def test_a_fault_says_nothing_about_the_credential(
    kind: str, options: dict[str, t.Any], contract: str, server: ReferenceServer, plane: PgAnalytics,
) -> None:
    credential = _register(plane).credential
    server.fault("pganalytics_token_info" if contract == "documented" else "pganalytics_list", kind, times=None, **options)
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, False)


def test_a_server_that_is_away_is_not_a_refusal(server: ReferenceServer, plane: PgAnalytics, connect: Connect) -> None:
    credential = _register(plane).credential
    server.pause()
    try:
        with pytest.raises(Unreachable):
            connect(server).prove(ENROLMENT, credential)
    finally:
        server.resume()


# -- looking --------------------------------------------------------------------------------------------------------------------------------------


def test_a_record_shows_when_the_collector_was_seen_and_what_it_reported(contract: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    credential = _register(admin).credential
    fresh = admin.last_seen(NAME, credential)
    assert fresh is not None
    assert (fresh.agent_id, fresh.last_seen) == (credential.agent_id, "")
    assert fresh.registered_at
    assert fresh.reports == (0 if contract == "documented" else None)
    assert _push(admin, credential, 3) == 200
    seen = admin.last_seen(NAME, credential)
    assert seen is not None
    assert seen.last_seen
    assert (seen.reports, seen.status) == ((3, "active") if contract == "documented" else (None, "registered"))
    server.forget(NAME)
    gone = admin.last_seen(NAME, credential)
    assert gone is not None
    assert gone.last_seen == ""


def test_without_a_login_nobody_tells_about_a_record(plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    assert plane.last_seen(NAME, credential) is None
    assert plane.find(NAME, None) is None
    told = plane.find(NAME, credential)
    assert told is not None
    assert told.agent_id == credential.agent_id
    with pytest.raises(InvalidRequest) as failure:
        list(plane.list_agents())
    assert failure.value.reason == "unsupported"


def test_a_name_is_matched_exactly(admin: PgAnalytics) -> None:
    _register(admin, replace(ENROLMENT, name=f"{NAME}-2"))
    assert admin.find(NAME, None) is None
    _register(admin)
    found = admin.find(NAME, None)
    assert found is not None
    assert found.name == NAME


@shipped
def test_of_records_with_one_name_the_newest_counts_and_the_others_are_named(server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    ids = [_register(plane).credential.agent_id for _time in range(3)]
    server.act("pganalytics", "age", name=NAME, seconds=86400)  # the last one, so that order and age differ
    found = admin.find(NAME, None)
    assert found is not None
    assert (found.agent_id, found.details["duplicates"]) == (ids[1], [ids[0], ids[2]])


@pytest.mark.parametrize("arguments", [
    ("documented",), ("documented", "--pganalytics-paging", "working", "--pganalytics-page-size", "2"), ("shipped",),
    ("shipped", "--pganalytics-paging", "working", "--pganalytics-page-size", "2")])
def test_every_page_is_read(arguments: tuple[str, ...], start: Start, connect: Connect) -> None:
    admin = connect(start(*arguments), ADMIN)
    names = [f"replica-{number}" for number in range(5)]
    for name in names:
        admin._post(replace(ENROLMENT, name=name), _attempt(), ())
    assert sorted(record.name for record in admin.list_agents()) == names
    assert admin.find(names[0], None) is not None


def test_a_list_that_stops_at_its_newest_is_called_incomplete(start: Start, connect: Connect) -> None:
    """The shipped server's parser of pages is a stub: what it cannot show is not taken for absent."""
    server = start("shipped", "--pganalytics-page-size", "2")
    admin = connect(server, ADMIN)
    credentials = [admin._post(replace(ENROLMENT, name=f"replica-{number}"), _attempt(), ()).credential for number in range(4)]
    with pytest.raises(ServerFault, match="newest 2") as failure:
        list(admin.list_agents())
    assert failure.value.reason == "incomplete_list"
    assert [agent["name"] for agent in failure.value.facts["agents"]] == ["replica-3", "replica-2"]
    # One that is known by its id is found all the same.
    first = admin.last_seen("replica-0", credentials[0])
    assert first is not None
    assert first.agent_id == credentials[0].agent_id
    issued = _register(admin)
    assert any("could not be ruled out" in warning for warning in issued.warnings)


def test_a_list_without_end_is_left(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pganalytics, "_MAX_PAGES", 20)
    server = start("shipped", "--pganalytics-paging", "endless")
    with pytest.raises(ServerFault) as failure:
        list(connect(server, ADMIN).list_agents())
    assert failure.value.reason == "endless_list"
    assert server.counters()["by_route"]["pganalytics_list"] == 20


def test_pages_that_bring_nothing_new_are_left(server: ReferenceServer, admin: PgAnalytics) -> None:
    page = {"data": [{"id": "x", "name": "x"}], "total_pages": 9}
    server.fault("pganalytics_list", "status", status=200, body=page, times=None)
    with pytest.raises(ServerFault) as failure:
        list(admin.list_agents())
    assert failure.value.reason == "endless_list"
    assert server.counters()["by_route"]["pganalytics_list"] == 2


def test_an_empty_list_may_be_null(server: ReferenceServer, admin: PgAnalytics) -> None:
    server.fault("pganalytics_list", "status", status=200, body={"data": None, "total": 0, "page": 1})
    assert list(admin.list_agents()) == []


def test_with_the_tenant_bug_nothing_is_known_and_that_is_said(start: Start, connect: Connect) -> None:
    admin = connect(start("shipped", "--pganalytics-tenant-bug", "on"), ADMIN)
    issued = _register(admin)
    assert any("could not be ruled out" in warning for warning in issued.warnings)
    assert admin.prove(ENROLMENT, issued.credential).accepted


# -- administering --------------------------------------------------------------------------------------------------------------------------------


def test_one_login_serves_all_forks_and_an_ended_session_is_renewed(server: ReferenceServer, connect: Connect, tmp_path: t.Any) -> None:
    folder = str(tmp_path)
    for _fork in range(3):
        connect(server, ADMIN, folder).check_bootstrap()
        assert list(connect(server, ADMIN, folder).list_agents()) == []
    assert server.counters()["pganalytics"]["login"] == 1
    server.fault("pganalytics_list", "status", status=401, body={"code": 401, "message": "Invalid token"})
    assert list(connect(server, ADMIN, folder).list_agents()) == []
    assert server.counters()["pganalytics"]["login"] == 2


@pytest.mark.parametrize(("bootstrap", "words"), [
    (replace(ADMIN, password=Secret("canary-wrong-7f3e")), "username and password"), (replace(PLAIN, admin_token=Secret("canary-token-7f3e")), "admin_token")])
def test_a_refused_login_is_a_bad_bootstrap(bootstrap: Bootstrap, words: str, server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, bootstrap)
    with pytest.raises(Rejected, match=words) as refusal:
        plane.check_bootstrap()
    assert refusal.value.reason == "bad_bootstrap"
    assert "canary" not in refusal.value.msg
    with pytest.raises(Rejected):
        _register(plane)
    assert server.agents() == []


def test_a_user_without_a_password_is_said(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="without password"):
        connect(server, replace(PLAIN, username="ops")).check_bootstrap()


def test_an_admin_token_serves_instead_of_a_login(server: ReferenceServer, admin: PgAnalytics, connect: Connect) -> None:
    by_token = connect(server, replace(PLAIN, admin_token=admin._session().token))
    server.reset_counters()
    by_token.check_bootstrap()
    issued = _register(by_token)
    assert by_token.last_seen(NAME, issued.credential) is not None
    assert server.counters()["pganalytics"]["login"] == 0


# -- withdrawing ----------------------------------------------------------------------------------------------------------------------------------


def test_an_admin_removes_the_record_and_is_told_of_a_token_that_lives_on(contract: str, server: ReferenceServer, admin: PgAnalytics) -> None:
    credential = _register(admin).credential
    gone = admin.revoke(NAME, credential)
    assert server.agents() == []
    assert len(gone.removed) == 1
    assert [text for text in gone.remains if "call a token back" in text] == list(gone.remains)
    assert len(gone.remains) == (0 if contract == "documented" else 1)
    assert admin.revoke(NAME, credential).removed == ()


def test_without_a_login_the_record_stays_and_that_is_said(server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    gone = plane.revoke(NAME, credential)
    assert gone.removed == ()
    assert "needs a login" in gone.remains[0]
    assert len(server.agents()) == 1


def test_a_record_is_found_by_its_name_when_the_host_knows_nothing(server: ReferenceServer, admin: PgAnalytics) -> None:
    _register(admin)
    assert len(admin.revoke(NAME, None).removed) == 1
    assert server.agents() == []


@shipped
def test_records_of_others_with_the_same_name_stay(server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    first, second = (_register(plane).credential for _time in range(2))
    gone = admin.revoke(NAME, first)
    assert [agent["agent_id"] for agent in server.agents()] == [second.agent_id]
    assert any(second.agent_id in text for text in gone.remains)
    third = _register(plane).credential
    assert admin.revoke(NAME, None).removed == ()
    assert {agent["agent_id"] for agent in server.agents()} == {second.agent_id, third.agent_id}


@documented
def test_a_name_that_went_to_somebody_else_is_not_deleted(server: ReferenceServer, plane: PgAnalytics, admin: PgAnalytics) -> None:
    old = _register(plane).credential
    server.forget(NAME)
    new = _register(plane).credential
    assert admin.revoke(NAME, old).removed == ()
    assert [agent["agent_id"] for agent in server.agents()] == [new.agent_id]


@documented
def test_a_login_that_may_not_delete_is_refused(server: ReferenceServer, plane: PgAnalytics, connect: Connect) -> None:
    credential = _register(plane).credential
    viewer = connect(server, replace(PLAIN, username="viewer", password=Secret(VIEWER.split(":")[1])))
    with pytest.raises(Rejected) as refusal:
        viewer.revoke(NAME, credential)
    assert refusal.value.reason == "forbidden"


def test_a_record_that_cannot_be_deleted_is_a_fault(server: ReferenceServer, admin: PgAnalytics) -> None:
    credential = _register(admin).credential
    server.fault("pganalytics_delete", "status", status=500, body={"code": 500, "message": "Database error"}, times=None)
    with pytest.raises(ServerFault, match="could not delete"):
        admin.revoke(NAME, credential)


# -- lifetimes ------------------------------------------------------------------------------------------------------------------------------------


def test_a_token_tells_its_life_and_is_refreshed(contract: str, server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    life = plane.lifetime(credential)
    assert life is not None
    assert life.expires_at - life.issued_at == (365 * 86400 if contract == "documented" else 1800)
    older = _with(credential, token=server.act("pganalytics", "mint", name=NAME, issued_ago=1500, expires_in=300)["token"])
    assert t.cast(t.Any, plane.lifetime(older)).used(time.time()) == pytest.approx(0.83, abs=0.02)
    before = server.agents()
    issued = plane.refresh(ENROLMENT, older, _attempt())
    assert issued is not None
    assert not issued.created
    assert issued.credential.agent_id == credential.agent_id
    assert issued.credential.secrets["private_key"] == credential.secrets["private_key"]
    assert t.cast(t.Any, plane.lifetime(issued.credential)).used(time.time()) < 0.01
    assert plane.prove(ENROLMENT, issued.credential).accepted
    assert plane.prove(ENROLMENT, older).accepted  # overlap
    assert server.agents() == before


@shipped
def test_an_expired_token_is_not_refreshed_and_the_way_back_is_named(server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    dead = _with(credential, token=server.act("pganalytics", "mint", name=NAME, issued_ago=7200, expires_in=-3600)["token"])
    with pytest.raises(Rejected, match="registration_secret") as refusal:
        plane.refresh(ENROLMENT, dead, _attempt())
    assert refusal.value.reason == "refresh_refused"


@pytest.mark.parametrize(("kind", "error"), [("garbage", ServerFault), ("commit-then-drop", ServerFault), ("pganalytics-old-token", Mismatch)])
def test_a_refresh_that_brings_nothing_leaves_the_old_token(kind: str, error: type[AgentsError], server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    server.fault("pganalytics_refresh", kind)
    with pytest.raises(error):
        plane.refresh(ENROLMENT, credential, _attempt())
    assert plane.prove(ENROLMENT, credential).accepted


def test_where_nothing_is_refreshed_that_is_none(start: Start, connect: Connect) -> None:
    plane = connect(start("documented", "--pganalytics-without", "token_refresh"))
    assert plane.refresh(ENROLMENT, _register(plane).credential, _attempt()) is None


# -- the guide's troubleshooting, from the server's side to what we say ----------------------------------------------------------------------


def test_symptom_collector_already_exists_names_the_way_out(admin: PgAnalytics) -> None:
    _register(admin)
    with pytest.raises(IdentityConflict) as conflict:
        _register(admin)
    assert "registered" in conflict.value.msg


def test_symptom_invalid_or_expired_token_is_a_definite_refusal(contract: str, server: ReferenceServer, plane: PgAnalytics) -> None:
    credential = _register(plane).credential
    server.act("pganalytics", "expire", name=NAME)
    proof = plane.prove(ENROLMENT, credential)
    assert proof.definite
    assert ("Token Expired" if contract == "documented" else "Invalid token") in proof.detail


def test_symptom_certificate_validation_failure_names_the_ca(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(Untrusted, match="ca_cert"):
        connect(server, ca_cert="").probe()


def test_symptom_cannot_connect_to_the_backend_names_the_port(server: ReferenceServer, connect: Connect) -> None:
    server.pause()
    try:
        with pytest.raises(Unreachable, match="port"):
            connect(server).probe()
    finally:
        server.resume()


# -- registration secrets ---------------------------------------------------------------------------------------------------------------------------


def test_the_shipped_server_manages_registration_secrets(start: Start, connect: Connect) -> None:
    admin = connect(start("shipped"), ADMIN)
    assert admin.list_bootstraps() == ()
    record, value = admin.create_bootstrap("fleet", "2099-01-01T00:00:00Z")
    assert (record.name, record.active, record.usable(time.time())) == ("fleet", True, True)
    assert _register(connect(start_of(admin), replace(PLAIN, registration_secret=value))).created
    (listed,) = admin.list_bootstraps()
    assert (listed.id, listed.uses) == (record.id, 1)
    assert listed.expires_at.startswith("2099-01-01T00:00:00")
    assert not listed.usable(time.time() + 100 * 365 * 86400)
    with pytest.raises(Ambiguous, match="may have been made"):
        admin.create_bootstrap("fleet", "")
    admin.revoke_bootstrap(record)
    assert admin.list_bootstraps() == ()
    with pytest.raises(ServerFault, match="could not delete"):
        admin.revoke_bootstrap(record)
    with pytest.raises(Rejected):
        _register(connect(start_of(admin), replace(PLAIN, registration_secret=value)))


def start_of(plane: PgAnalytics) -> t.Any:
    """Return something that has the address of an adapter's server."""
    return t.cast(t.Any, type("Address", (), {"url": plane.http.url}))


def test_where_registration_secrets_are_not_managed_that_is_said(start: Start, connect: Connect) -> None:
    admin = connect(start("documented"), ADMIN)
    for step in (admin.list_bootstraps, lambda: admin.create_bootstrap("x", "")):
        with pytest.raises(InvalidRequest) as failure:
            step()
        assert failure.value.reason == "unsupported"


def test_registration_secrets_are_an_administrators(start: Start, connect: Connect) -> None:
    server = start("shipped")
    with pytest.raises(InvalidInput, match="administrator"):
        connect(server).list_bootstraps()
    viewer = connect(server, replace(PLAIN, username="viewer", password=Secret(VIEWER.split(":")[1])))
    with pytest.raises(Rejected) as refusal:
        viewer.create_bootstrap("x", "")
    assert refusal.value.reason == "forbidden"
    with pytest.raises(InvalidRequest, match="invalid"):
        connect(server, ADMIN).create_bootstrap("n" * 256, "")
