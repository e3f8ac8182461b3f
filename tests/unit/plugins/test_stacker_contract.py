# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stacker's adapter against the reference server over TLS, in the contract its guide documents and in the one its server ships."""

from __future__ import annotations

import string
import time
import typing as t
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Mismatch,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Credential, Enrolment, Issued
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.stacker import Stacker
from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

USER, PASSWORD = "operator@example.test", "canary-password-7f3e"
NAME = "6c84fb90-12c4-11e1-840d-7b25c5ee775a"
ENROLMENT = Enrolment(NAME, "1.2.3", ("docker", "logs"), {"os": "linux", "memory_gb": 3.5, "hostname": "edge"})

Start = t.Callable[..., ReferenceServer]


class _Watched(Stacker):
    """The adapter, with the server it talks to."""

    server: ReferenceServer


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
            servers[key] = ReferenceServer.start(contract, tls=Tls(str(pair.cert), str(pair.key)), arguments=["--user", f"{USER}:{PASSWORD}", *arguments])
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
def connect(ca: CertificateAuthority) -> Iterator[t.Callable[..., Stacker]]:
    """Make adapters; their sessions are closed at the end."""
    made: list[_Watched] = []

    def one(server: ReferenceServer, bootstrap: Bootstrap | None = None, **transport: t.Any) -> Stacker:
        options = {"ca_cert": str(ca.ca_file), "retries": 0, "timeout": 10.0, **transport}
        made.append(_Watched(Http(server.url, Transport(**options)), bootstrap or Bootstrap()))
        made[-1].server = server
        return made[-1]

    yield one
    for plane in made:
        plane.http.close()


Connect = t.Callable[..., Stacker]


@pytest.fixture
def plane(server: ReferenceServer, connect: Connect) -> Stacker:
    return connect(server)


def _attempt() -> str:
    return str(uuid.uuid4())


def _register(plane: Stacker, enrolment: Enrolment = ENROLMENT) -> Issued:
    """Register, and wait until the server has written the token to its Vault, which it does after it answered."""
    issued = plane.register(enrolment, _attempt())
    _await(plane, issued)
    return issued


def _await(plane: Stacker, issued: Issued) -> None:
    """Ask the control API, which counts nothing. The limit only ends a test that would fail anyway."""
    deadline = time.monotonic() + 15
    while not t.cast(_Watched, plane).server.accepts(NAME, issued.credential.secrets["token"].reveal()):
        assert time.monotonic() < deadline, "the server never accepted what it issued"
        time.sleep(0.01)


def _heartbeat(plane: Stacker, credential: Credential) -> None:
    """Let the agent report on a command nobody gave, which counts as a sign of life."""
    headers = {"X-Agent-Id": credential.agent_id, "Authorization": f"Bearer {credential.secrets['token'].reveal()}"}
    body = {"command_id": "none", "deployment_hash": NAME, "status": "completed", "completed_at": "2026-01-01T00:00:00Z"}
    assert plane.http.send("POST", "/api/v1/agent/commands/report", json_body=body, headers=headers).status == 404


documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


# -- registering --------------------------------------------------------------------------------------------------------------------------------


def test_a_new_name_gets_a_credential_that_is_accepted(server: ReferenceServer, plane: Stacker) -> None:
    issued = _register(plane)
    assert issued.created
    assert (issued.server.version, issued.server.api_versions) == ("2.0.0", ("1.0",))
    plane.check_versions(issued.server.api_versions)
    record = server.agent(NAME)
    assert (record["agent_id"], record["version"]) == (issued.credential.agent_id, "1.2.3")
    assert record["capabilities"] == ["docker", "logs"]
    assert record["system_info"] == ENROLMENT.system_info
    proof = plane.prove(ENROLMENT, issued.credential)
    assert (proof.accepted, proof.definite, proof.how) == (True, True, "notifications")
    assert server.counters()["stacker"]["mutating"] == 1


@documented
def test_the_documented_server_refuses_a_name_twice(server: ReferenceServer, plane: Stacker) -> None:
    _register(plane)
    with pytest.raises(IdentityConflict, match="already") as conflict:
        _register(plane)
    assert conflict.value.reason == "identity_conflict"


@shipped
def test_the_shipped_server_hands_back_the_token_that_lives(server: ReferenceServer, plane: Stacker) -> None:
    first = _register(plane)
    again = _register(plane, replace(ENROLMENT, version="1.3.0"))
    assert (first.created, again.created) == (True, False)
    assert again.credential == first.credential
    assert server.agent(NAME)["version"] == "1.3.0"


def test_the_same_attempt_is_answered_with_the_same_credential(server: ReferenceServer, plane: Stacker) -> None:
    attempt = _attempt()
    assert plane.register(ENROLMENT, attempt).credential == plane.register(ENROLMENT, attempt).credential
    assert len(server.agents()) == 1


@pytest.mark.parametrize("kind", ["commit-then-drop", "commit-then-500", "truncate", "garbage", "missing-token"])
def test_a_registration_without_a_whole_answer_is_ambiguous_and_can_be_asked_for_again(kind: str, server: ReferenceServer, plane: Stacker) -> None:
    attempt = _attempt()
    server.fault("register", kind)
    with pytest.raises(Ambiguous):
        plane.register(ENROLMENT, attempt)
    assert [agent["name"] for agent in server.agents()] == [NAME]
    issued = plane.register(ENROLMENT, attempt)
    _await(plane, issued)
    assert plane.prove(ENROLMENT, issued.credential).accepted
    assert len(server.agents()) == 1


def test_no_common_api_version_is_a_mismatch(server: ReferenceServer, plane: Stacker) -> None:
    server.fault("register", "bad-api-version")
    issued = _register(plane)
    assert issued.server.api_versions == ("9.9",)
    with pytest.raises(Mismatch, match=r"9\.9.*1\.0") as mismatch:
        plane.check_versions(issued.server.api_versions)
    assert mismatch.value.reason == "no_common_api_version"


@pytest.mark.parametrize(("status", "body", "error", "reason", "words"), [
    (409, "already there", IdentityConflict, "identity_conflict", "already there"),
    (409, {"message": "Agent already registered for this deployment"}, IdentityConflict, "identity_conflict", "already registered"),
    (400, {"message": "deployment is already  registered"}, IdentityConflict, "identity_conflict", "registered"),
    (400, {"kind": "deserialize", "msg": "invalid type"}, InvalidRequest, "invalid_request", "invalid type"),
    (400, "plain words", InvalidRequest, "invalid_request", "plain words"), (422, {"message": "no"}, InvalidRequest, "invalid_request", "no"),
    (401, {"message": "Authentication required"}, Rejected, "bad_bootstrap", "Authentication required"), (403, "", Rejected, "bad_bootstrap", "admin_token"),
    (404, "", InvalidRequest, "not_a_control_plane", "Stacker"), (302, "", InvalidRequest, "redirected", "redirects to"),
    (500, "Failed to create agent", Ambiguous, "ambiguous", "Failed to create agent"), (503, {"message": "later"}, Ambiguous, "ambiguous", "later"),
    (201, "no json", Ambiguous, "incomplete_answer", "next run"), (201, [], Ambiguous, "incomplete_answer", "next run"),
    (200, {"data": {"item": {"agent_id": "x", "agent_token": 5}}}, Ambiguous, "incomplete_answer", "next run"),
    (200, {"data": {"item": {"agent_id": "", "agent_token": "x"}}}, Ambiguous, "incomplete_answer", "next run"),
])
def test_every_answer_to_a_registration_has_its_meaning(
    status: int, body: object, error: type[AgentsError], reason: str, words: str, start: Start, connect: Connect,
) -> None:
    server = start("shipped")
    server.fault("register", "status", status=status, body=body)
    with pytest.raises(error) as failure:
        _register(connect(server))
    assert type(failure.value) is error
    assert failure.value.reason == reason
    assert words in failure.value.msg
    assert "\n" not in failure.value.msg


def test_a_refused_admin_token_is_a_bad_bootstrap(server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, Bootstrap(admin_token=Secret("canary-admin-7f3e")))
    with pytest.raises(Rejected, match="admin_token") as refusal:
        _register(plane)
    assert refusal.value.reason == "bad_bootstrap"
    assert "canary" not in refusal.value.msg
    assert server.agents() == []


def test_throttling_is_waited_for(server: ReferenceServer, connect: Connect) -> None:
    server.fault("register", "429", retry_after=0)
    assert _register(connect(server, retries=1)).created
    server.fault("register", "429", retry_after=3000)
    with pytest.raises(Throttled):
        _register(connect(server, retries=1))


# -- proving ------------------------------------------------------------------------------------------------------------------------------------


def test_a_proof_changes_nothing(server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    before = server.agents()
    server.reset_counters()
    for _time in range(3):
        assert plane.prove(ENROLMENT, credential).accepted
    assert server.agents() == before
    assert before[0]["last_heartbeat"] is None
    counted = server.counters()["stacker"]
    assert (counted["read"], counted["mutating"], counted["agent"]) == (3, 0, 0)


@pytest.mark.parametrize("wrong", ["token", "id", "form of the id", "name"])
def test_a_bad_credential_is_refused_for_certain(wrong: str, server: ReferenceServer, plane: Stacker) -> None:
    credential, enrolment = _register(plane).credential, ENROLMENT
    if wrong == "token":
        credential = replace(credential, secrets={"token": Secret("x" * 86)})
    elif wrong == "id":
        credential = replace(credential, agent_id=str(uuid.uuid4()))
    elif wrong == "form of the id":
        credential = replace(credential, agent_id="not-a-uuid")
    else:
        enrolment = replace(ENROLMENT, name="other")
    proof = plane.prove(enrolment, credential)
    assert (proof.accepted, proof.definite, proof.pending) == (False, True, False)
    assert proof.detail.startswith("HTTP 40")


def test_a_token_that_was_replaced_is_refused(server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    server.drift(NAME)
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, True)


def test_a_record_that_was_lost_refuses_its_token(server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    server.forget(NAME)
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, True)


@shipped
def test_a_token_that_vault_does_not_hold_yet_is_pending(server: ReferenceServer, plane: Stacker) -> None:
    server.fault("register", "no-vault-write")
    proof = plane.prove(ENROLMENT, plane.register(ENROLMENT, _attempt()).credential)
    assert (proof.accepted, proof.definite, proof.pending) == (False, False, True)
    assert "Vault" in proof.detail


def test_where_notifications_are_absent_the_command_list_proves(start: Start, connect: Connect) -> None:
    plane = connect(start("documented", "--without", "notifications"))
    credential = _register(plane).credential
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite, proof.how) == (True, True, "commands")
    refused = plane.prove(ENROLMENT, replace(credential, secrets={"token": Secret("x" * 86)}))
    assert (refused.accepted, refused.definite) == (False, True)


def test_where_nothing_can_prove_the_answer_is_indefinite(start: Start, connect: Connect) -> None:
    plane = connect(start("shipped", "--without", "notifications"))
    proof = plane.prove(ENROLMENT, _register(plane).credential)
    assert (proof.accepted, proof.definite, proof.how) == (False, False, "commands")


@pytest.mark.parametrize("kind", ["commit-then-drop", "429", "status", "truncate"])
def test_a_fault_proves_nothing(kind: str, server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    server.fault("notifications", kind, status=503, retry_after=9999)
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, False)
    assert proof.detail
    assert credential.secrets["token"].reveal() not in repr(proof)


def test_a_server_that_is_gone_is_no_refusal(server: ReferenceServer, plane: Stacker, connect: Connect) -> None:
    credential = _register(plane).credential
    server.pause()
    try:
        with pytest.raises(Unreachable):
            connect(server).prove(ENROLMENT, credential)
    finally:
        server.resume()
    with pytest.raises(Untrusted):
        connect(server, ca_cert="").prove(ENROLMENT, credential)


@documented
def test_a_token_without_its_id_is_proved_alone_and_leads_to_the_id(plane: Stacker) -> None:
    issued = _register(plane)
    alone = replace(issued.credential, agent_id="")
    assert plane.prove(ENROLMENT, alone).accepted
    record = plane.find(NAME, alone)
    assert record is not None
    assert record.agent_id == issued.credential.agent_id


# -- asking -------------------------------------------------------------------------------------------------------------------------------------


def test_the_probe_tells_version_and_clock(server: ReferenceServer, plane: Stacker) -> None:
    state = plane.probe()
    assert state.version == "2.0.0"
    assert state.clock_skew == pytest.approx(0, abs=30)
    server.clock(400)
    assert plane.probe().clock_skew == pytest.approx(400, abs=30)


def test_a_probe_that_finds_no_health_page_is_content(start: Start, contract: str, connect: Connect) -> None:
    assert connect(start(contract, "--without", "health_check")).probe().version == ""


def test_an_unhealthy_server_is_told(server: ReferenceServer, plane: Stacker) -> None:
    server.fault("health", "status", status=500)
    with pytest.raises(ServerFault, match="not healthy"):
        plane.probe()


def test_a_sign_of_life_moves_last_seen(server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    before = plane.last_seen(NAME, credential)
    assert before is not None
    assert (before.last_seen, before.status, before.agent_id) == ("", "offline", credential.agent_id)
    _heartbeat(plane, credential)
    after = plane.last_seen(NAME, credential)
    assert after is not None
    assert (after.last_seen, after.status) == (server.agent(NAME)["last_heartbeat"], "online")


@pytest.mark.parametrize("kind", ["status", "garbage"])
def test_a_snapshot_that_fails_is_not_taken_for_silence(kind: str, server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    _heartbeat(plane, credential)
    server.fault("snapshot", kind, times=None, status=500)
    with pytest.raises(ServerFault):
        plane.last_seen(NAME, credential)


def test_a_record_is_found_by_those_who_may_see_it(server: ReferenceServer, plane: Stacker, connect: Connect) -> None:
    credential = _register(plane).credential
    found = plane.find(NAME, credential)
    assert found is not None
    assert (found.name, found.agent_id, found.version) == (NAME, credential.agent_id, "1.2.3")
    assert (found.capabilities, dict(found.system_info)) == (("docker", "logs"), dict(ENROLMENT.system_info))
    assert plane.find(NAME, None) is None
    assert plane.find(NAME, replace(credential, secrets={"token": Secret("x" * 86)})) is None
    session = connect(server).http.send("POST", "/api/v1/agent/login", json_body={"email": USER, "password": PASSWORD}).json["session_token"]
    admin = connect(server, Bootstrap(admin_token=Secret(session)))
    by_user = admin.find(NAME, None)
    assert by_user is not None
    assert by_user.agent_id == credential.agent_id
    assert admin.find("unknown-name", None) is None


def test_there_is_no_list(plane: Stacker) -> None:
    with pytest.raises(InvalidRequest, match="no list") as refusal:
        list(plane.list_agents())
    assert refusal.value.reason == "unsupported"


def test_a_withdrawal_says_what_stays(server: ReferenceServer, plane: Stacker) -> None:
    credential = _register(plane).credential
    before = server.counters()["stacker"]["mutating"]
    withdrawal = plane.revoke(NAME, credential)
    assert withdrawal.removed == ()
    assert NAME in withdrawal.remains[0]
    assert server.counters()["stacker"]["mutating"] == before


def test_changed_metadata_is_sent_where_the_server_takes_it(server: ReferenceServer, plane: Stacker, contract: str) -> None:
    first = _register(plane)
    changed = replace(ENROLMENT, version="2.0.0", capabilities=("logs",))
    issued = plane.refresh_metadata(changed, _attempt())
    if contract == "documented":
        assert issued is None
        assert server.agent(NAME)["version"] == "1.2.3"
    else:
        assert issued is not None
        assert issued.credential == first.credential
        assert (server.agent(NAME)["version"], server.agent(NAME)["capabilities"]) == ("2.0.0", ["logs"])


def test_metadata_that_changes_by_itself_is_not_compared(plane: Stacker) -> None:
    later = replace(ENROLMENT, system_info={**ENROLMENT.system_info, "memory_gb": 3.4, "uptime_seconds": 5}, capabilities=("logs", "docker"))
    assert plane.wire_metadata(later) == plane.wire_metadata(ENROLMENT)
    assert plane.wire_metadata(replace(ENROLMENT, version="9.9.9")) != plane.wire_metadata(ENROLMENT)


def test_an_own_token_has_the_servers_shape() -> None:
    plane = Stacker(t.cast(Http, None), Bootstrap())
    tokens = {t.cast(Secret, plane.own_credential()).reveal() for _number in range(50)}
    assert len(tokens) == 50
    assert all(len(token) == 86 and set(token) <= {*string.ascii_letters, *string.digits, "-", "_"} for token in tokens)


# -- with a user's login ------------------------------------------------------------------------------------------------------------------------


def test_an_owner_links_the_deployment(server: ReferenceServer, connect: Connect) -> None:
    server.own(NAME, USER)
    plane = connect(server, Bootstrap(username=USER, password=Secret(PASSWORD)))
    issued = _register(plane)
    assert not issued.created
    assert plane.prove(ENROLMENT, issued.credential).accepted
    assert {"docker", "logs", "status_panel"} == set(server.agent(NAME)["capabilities"])
    assert server.counters()["stacker"]["login"] == 1


@pytest.mark.parametrize(("owner", "user", "password", "error", "reason", "words"), [
    (USER, USER, "wrong", Rejected, "bad_bootstrap", "refuses the login"),
    (USER, "nobody@example.test", PASSWORD, Rejected, "bad_bootstrap", "refuses the login"),
    ("someone@else.test", USER, PASSWORD, Rejected, "rejected", "does not own"),
    (None, USER, PASSWORD, InvalidRequest, "unknown_deployment", "knows no deployment"),
])
def test_a_login_that_cannot_link_is_told(
    owner: str | None, user: str, password: str, error: type[AgentsError], reason: str, words: str, server: ReferenceServer, connect: Connect,
) -> None:
    if owner is not None:
        server.own(NAME, owner)
    with pytest.raises(error, match=words) as failure:
        _register(connect(server, Bootstrap(username=user, password=Secret(password))))
    assert failure.value.reason == reason
    assert PASSWORD not in failure.value.msg
    assert server.agents() == []


def test_a_login_without_password_is_refused_before_anything_is_sent(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="password_file"):
        _register(connect(server, Bootstrap(username=USER)))
    assert server.counters()["stacker"]["login"] == 0


# -- what is checked before anything is sent ------------------------------------------------------------------------------------------------------


def _offline() -> Stacker:
    return Stacker(t.cast(Http, None), Bootstrap())


@pytest.mark.parametrize("capability", ["docker", "a", "x" * 32, "snake_case_9", "npm_credential_source=vault", "1"])
def test_a_capability_of_the_guides_form_is_accepted(capability: str) -> None:
    _offline().check(replace(ENROLMENT, capabilities=(capability,)))


@pytest.mark.parametrize("capability", ["", "x" * 33, "Docker", "with-dash", "with space", "é", "docker\n", "=vault", "key=", "key=has space", "key=v\n"])
def test_a_capability_of_another_form_is_refused(capability: str) -> None:
    with pytest.raises(InvalidInput, match="capability") as refusal:
        _offline().check(replace(ENROLMENT, capabilities=("logs", capability)))
    assert "\n" not in refusal.value.msg


def test_no_capability_at_all_is_refused() -> None:
    with pytest.raises(InvalidInput, match="capabilities is empty"):
        _offline().check(replace(ENROLMENT, capabilities=()))


@pytest.mark.parametrize("version", ["0.0.1", "1.0.0", "10.20.30", "2.0.0-rc1", "1.2.3+build.5", "1.0.0-alpha.1+x"])
def test_a_semantic_version_is_accepted(version: str) -> None:
    _offline().check(replace(ENROLMENT, version=version))


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0.0", "latest", "1.0.0\n", "1.0.0-" + "x" * 60])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidInput, match="semantic version"):
        _offline().check(replace(ENROLMENT, version=version))


def test_a_public_key_is_checked_and_accepted_by_the_server(plane: Stacker) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    good = replace(ENROLMENT, public_key=public)
    plane.check(good)
    assert _register(plane, good).created
    lines = public.strip().splitlines()
    for wrong in (private, "ssh-ed25519 AAAA", lines[1], "\n".join([lines[0], "AAAA", lines[-1]]), public.replace("PUBLIC", "PRIVATE"), public + private):
        with pytest.raises(InvalidInput, match="public_key") as refusal:
            plane.check(replace(ENROLMENT, public_key=wrong))
        assert lines[1] not in refusal.value.msg


def test_the_name_is_checked_too() -> None:
    with pytest.raises(InvalidInput, match="sequential"):
        _offline().check(replace(ENROLMENT, name="web-01"))
    _offline().check(replace(ENROLMENT, name="web-01", allow_unstable_name=True))
