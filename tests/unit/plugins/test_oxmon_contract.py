# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""oxmon's adapter against the reference server over TLS and gRPC, in the contract its guide documents and in the one its server ships."""

from __future__ import annotations

import importlib
import time
import typing as t
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _oxmon_report as report
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
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes import oxmon as adapter
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Credential, Enrolment, Issued
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.oxmon import Oxmon
from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

USER, PASSWORD = "admin", "canary-password-7f3e"
NAME = "edge-7.example:metrics"
ENROLMENT = Enrolment(NAME, description="rack 4")
ENFORCED = "--oxmon-require-agent-auth"

Start = t.Callable[..., ReferenceServer]
Connect = t.Callable[..., Oxmon]


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
            own = ["--plane", "oxmon", "--oxmon-user", f"{USER}:{PASSWORD}", "--oxmon-user", "other:canary-other-7f3e", *arguments]
            servers[key] = ReferenceServer.start(contract, tls=Tls(str(pair.cert), str(pair.key)), arguments=own)
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
    """A server that checks the tokens of agents."""
    found = start(contract)
    found.act("oxmon", "require_auth", on=True)
    return found


@pytest.fixture
def connect(ca: CertificateAuthority) -> Iterator[Connect]:
    """Make adapters; their sessions are closed at the end."""
    made: list[Oxmon] = []

    def one(server: ReferenceServer, bootstrap: Bootstrap | None = None, sessions: Sessions | None = None, **transport: t.Any) -> Oxmon:
        options = {"ca_cert": str(ca.ca_file), "retries": 0, "timeout": 10.0, "grpc_endpoint": server.addresses["oxmon_grpc"], **transport}
        login = bootstrap if bootstrap is not None else Bootstrap(username=USER, password=Secret(PASSWORD))
        made.append(Oxmon(Http(server.url, Transport(**options)), login, sessions))
        return made[-1]

    yield one
    for plane in made:
        plane.http.close()


@pytest.fixture
def plane(server: ReferenceServer, connect: Connect) -> Oxmon:
    return connect(server)


def _attempt() -> str:
    return str(uuid.uuid4())


def _register(plane: Oxmon, enrolment: Enrolment = ENROLMENT) -> Issued:
    return plane.register(enrolment, _attempt())


def _token(issued: Issued) -> str:
    return issued.credential.secrets["token"].reveal()


def _mutations(server: ReferenceServer) -> int:
    return int(server.counters()["oxmon"]["mutating"])


documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


# -- registering --------------------------------------------------------------------------------------------------------------------------------


def test_a_new_name_gets_a_token_that_is_accepted(server: ReferenceServer, plane: Oxmon, contract: str) -> None:
    issued = _register(plane)
    assert issued.created
    record = server.agent(NAME)
    assert record["description"] == "rack 4"
    assert issued.credential.agent_id == record["agent_id"]
    assert (issued.credential.agent_id == NAME) is (contract == "documented")
    assert server.accepts(NAME, _token(issued))
    proof = plane.prove(ENROLMENT, issued.credential)
    assert (proof.accepted, proof.definite, proof.how) == (True, True, "empty_batch")
    assert _mutations(server) == 1
    assert issued.warnings == ()


def test_a_name_that_is_taken_is_a_conflict(server: ReferenceServer, plane: Oxmon) -> None:
    first = _register(plane)
    with pytest.raises(IdentityConflict, match="already") as conflict:
        _register(plane)
    assert conflict.value.reason == "identity_conflict"
    assert server.accepts(NAME, _token(first))


@pytest.mark.parametrize("kind", ["commit-then-drop", "commit-then-500", "truncate", "garbage", "missing-token"])
def test_a_registration_without_a_whole_answer_is_recovered(kind: str, server: ReferenceServer, plane: Oxmon) -> None:
    server.fault("oxmon_whitelist_add", kind)
    with pytest.raises(Ambiguous):
        _register(plane)
    issued = plane.recover(ENROLMENT, _attempt())
    assert issued.created
    assert plane.prove(ENROLMENT, issued.credential).definite
    assert [agent["name"] for agent in server.agents()] == [NAME]
    assert server.accepts(NAME, _token(issued))


def test_a_registration_that_never_happened_is_recovered_by_making_it(server: ReferenceServer, plane: Oxmon) -> None:
    server.fault("oxmon_whitelist_add", "status", status=500, body="")
    with pytest.raises(Ambiguous):
        _register(plane)
    assert server.agents() == []
    assert plane.recover(ENROLMENT, _attempt()).created
    assert _mutations(server) == 2


@shipped
def test_a_recovery_keeps_the_entry_and_replaces_its_token(server: ReferenceServer, plane: Oxmon) -> None:
    first = _register(plane)
    second = plane.recover(ENROLMENT, _attempt())
    assert second.credential.agent_id == first.credential.agent_id
    assert server.accepts(NAME, _token(second))
    assert not server.accepts(NAME, _token(first))


@pytest.mark.parametrize("kind", ["commit-then-drop", "commit-then-500", "truncate", "missing-token"])
@shipped
def test_a_regeneration_without_a_whole_answer_is_ambiguous_and_can_be_asked_for_again(kind: str, server: ReferenceServer, plane: Oxmon) -> None:
    _register(plane)
    server.fault("oxmon_whitelist_token", kind)
    with pytest.raises(Ambiguous):
        plane.reissue(ENROLMENT, "", _attempt())
    assert plane.prove(ENROLMENT, plane.recover(ENROLMENT, _attempt()).credential).accepted


@documented
def test_a_documented_reissue_that_dies_between_removal_and_addition_is_recovered(server: ReferenceServer, plane: Oxmon) -> None:
    _register(plane)
    server.fault("oxmon_whitelist_add", "status", status=502, body="")
    with pytest.raises(Ambiguous):
        plane.reissue(ENROLMENT, NAME, _attempt())
    assert server.agents() == []
    assert plane.prove(ENROLMENT, plane.recover(ENROLMENT, _attempt()).credential).accepted


def test_a_reissue_replaces_the_token_and_says_that_the_old_one_is_dead(server: ReferenceServer, plane: Oxmon) -> None:
    first = _register(plane)
    second = plane.reissue(ENROLMENT, first.credential.agent_id, _attempt())
    assert second is not None
    assert not second.created
    assert "died at once" in second.warnings[0]
    assert plane.prove(ENROLMENT, second.credential).accepted
    refused = plane.prove(ENROLMENT, first.credential)
    assert (refused.accepted, refused.definite) == (False, True)


def test_a_reissue_of_what_is_gone_registers(server: ReferenceServer, plane: Oxmon) -> None:
    issued = plane.reissue(ENROLMENT, "1", _attempt())
    assert issued is not None
    assert issued.created


@shipped
def test_a_duplicate_that_the_database_refused_is_a_conflict(server: ReferenceServer, plane: Oxmon) -> None:
    """Two registrations at once: the second one meets an error of the database, and the entry is older than its request."""
    _register(plane)
    server.clock(60)  # the entry is now a minute old
    server.fault("oxmon_whitelist_add", "status", status=500, body={"err_code": 1500, "err_msg": "UNIQUE", "trace_id": "0", "data": None})
    plane.probe()
    with pytest.raises(IdentityConflict):
        _register(plane)


@pytest.mark.parametrize(("status", "body", "error", "reason", "words"), [
    (409, {"error": "Agent 'x' already exists"}, IdentityConflict, "identity_conflict", "already exists"),
    (409, {"err_code": 1005, "err_msg": "taken", "trace_id": "", "data": None}, IdentityConflict, "identity_conflict", "taken"),
    (401, {"err_code": 1002, "err_msg": "invalid token", "trace_id": "", "data": None}, Rejected, "bad_bootstrap", "invalid token"),
    (403, "", Rejected, "bad_bootstrap", "403"),
    (404, "", InvalidRequest, "not_a_control_plane", "oxmon"), (405, "", InvalidRequest, "not_a_control_plane", "oxmon"),
    (422, "Failed to deserialize", InvalidRequest, "invalid_request", "Failed to deserialize"), (400, "no", InvalidRequest, "invalid_request", "no"),
    (302, "", InvalidRequest, "redirected", "redirects"), (500, "boom", Ambiguous, "ambiguous", "boom"), (503, "", Ambiguous, "ambiguous", "503"),
    (200, "<html>login</html>", Ambiguous, "incomplete_answer", "not JSON"), (201, [], Ambiguous, "incomplete_answer", "next run"),
    (201, {"agent_id": NAME, "token": 5}, Ambiguous, "incomplete_answer", "next run"), (201, {"agent_id": NAME}, Ambiguous, "incomplete_answer", "next run"),
    (201, {"agent_id": "another", "token": "x"}, Mismatch, "wrong_identity", "another"),
])
def test_every_answer_to_a_registration_has_its_meaning(
    status: int, body: object, error: type[AgentsError], reason: str, words: str, start: Start, connect: Connect,
) -> None:
    server = start("documented")
    headers = {"Location": "https://elsewhere.test/v1"} if status == 302 else {}
    server.fault("oxmon_whitelist_add", "status", status=status, body=body, headers=headers)
    with pytest.raises(error) as failure:
        _register(connect(server))
    assert type(failure.value) is error
    assert failure.value.reason == reason
    assert words in failure.value.msg
    assert "\n" not in failure.value.msg


def test_a_second_registration_with_auth_off_says_that_tokens_are_not_checked(start: Start, connect: Connect) -> None:
    issued = _register(connect(start("shipped")))
    assert "require_agent_auth is off" in issued.warnings[0]


# -- proving ------------------------------------------------------------------------------------------------------------------------------------


def test_a_proof_changes_nothing(server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    before = server.agents()
    server.reset_counters()
    for _time in range(3):
        assert plane.prove(ENROLMENT, credential).definite
    assert server.agents() == before
    assert before[0]["reports"] == 0
    assert _mutations(server) == 0


@pytest.mark.parametrize("wrong", ["token", "name", "control character"])
def test_a_bad_credential_is_refused_for_certain(wrong: str, server: ReferenceServer, plane: Oxmon) -> None:
    credential, enrolment = _register(plane).credential, ENROLMENT
    if wrong == "token":
        credential = replace(credential, secrets={"token": Secret("x" * 44)})
    elif wrong == "name":
        enrolment = Enrolment("another.agent")
    else:
        credential = replace(credential, secrets={"token": Secret("line\nbreak")})
    proof = plane.prove(enrolment, credential)
    assert (proof.accepted, proof.definite) == (False, True)
    assert credential.secrets["token"].reveal() not in repr(proof)


@pytest.mark.parametrize("change", ["drift", "forget"])
def test_a_token_that_is_no_longer_the_servers_is_refused(change: str, server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    if change == "drift":
        server.drift(NAME)
    else:
        server.forget(NAME)
    proof = plane.prove(ENROLMENT, credential)
    assert (proof.accepted, proof.definite) == (False, True)
    assert proof.detail.startswith("UNAUTHENTICATED")


def test_while_tokens_are_not_checked_a_proof_says_so(start: Start, connect: Connect, contract: str) -> None:
    server = start(contract)
    plane = connect(server)
    issued = _register(plane)
    for adapter_of_a_later_run in (plane, connect(server)):
        proof = adapter_of_a_later_run.prove(ENROLMENT, issued.credential)
        assert (proof.accepted, proof.definite, proof.how) == (True, False, "auth_off")


def test_while_tokens_are_not_checked_the_whitelist_still_refuses(start: Start, connect: Connect, contract: str) -> None:
    server = start(contract)
    issued = _register(connect(server))
    server.forget(NAME)
    proof = connect(server).prove(ENROLMENT, issued.credential)
    assert (proof.accepted, proof.definite, proof.how) == (False, True, "whitelist")
    assert "not whitelisted" in proof.detail
    if contract == "shipped":
        _register(connect(server))
        again = connect(server).prove(ENROLMENT, issued.credential)
        assert (again.accepted, again.definite) == (False, True)
        assert "added again" in again.detail


def test_where_the_server_does_not_say_whether_it_checks_a_wrong_token_is_shown_once(start: Start, connect: Connect) -> None:
    server = start("documented")
    server.act("oxmon", "require_auth", on=True)
    plane = connect(server)
    credential = _register(plane).credential
    refusals = len([line for line in server.log if line["status"].startswith("UNAUTHENTICATED")])
    for _time in range(3):
        assert plane.prove(ENROLMENT, credential).definite
    assert len([line for line in server.log if line["status"].startswith("UNAUTHENTICATED")]) == refusals + 1


def test_where_grpc_cannot_be_reached_the_whitelist_answers_and_says_so(server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, grpc_endpoint="127.0.0.1:1")
    issued = _register(plane)
    for one in (plane, connect(server, grpc_endpoint="127.0.0.1:1")):
        proof = one.prove(ENROLMENT, issued.credential)
        assert (proof.accepted, proof.definite, proof.how) == (True, False, "whitelist")
        assert "was not tried" in proof.detail
        assert "gRPC port" in proof.detail


def test_without_grpcio_the_whitelist_answers_and_says_so(server: ReferenceServer, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> t.Any:
        raise ImportError(name)

    credential = _register(connect(server)).credential
    monkeypatch.setattr(report.importlib, "import_module", missing)
    proof = connect(server).prove(ENROLMENT, credential)
    monkeypatch.setattr(report.importlib, "import_module", importlib.import_module)
    assert (proof.accepted, proof.definite, proof.how) == (True, False, "whitelist")
    assert "grpcio is not installed" in proof.detail


@pytest.mark.parametrize("kind", ["refuse", "commit-then-drop"])
def test_a_fault_behind_grpc_proves_nothing(kind: str, server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    server.fault("oxmon_report", kind)
    proof = plane.prove(ENROLMENT, credential)
    assert not proof.definite
    assert proof.detail


def test_a_token_is_not_sent_in_clear_over_a_network_nobody_vouched_for(server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, grpc_endpoint="192.0.2.1:9090")
    proof = plane.prove(ENROLMENT, _register(plane).credential)
    assert (proof.accepted, proof.definite, proof.how) == (True, False, "whitelist")
    assert "allow_plaintext" in proof.detail


def test_grpc_over_tls_is_verified(start: Start, connect: Connect, contract: str, ca: CertificateAuthority) -> None:
    server = start(contract, "--oxmon-grpc-tls", ENFORCED)
    address = server.addresses["oxmon_grpc"].replace("127.0.0.1", "https://127.0.0.1")
    plane = connect(server, grpc_endpoint=address)
    issued = _register(plane)
    assert plane.prove(ENROLMENT, issued.credential).definite
    in_clear = connect(server).prove(ENROLMENT, issued.credential)
    assert (in_clear.definite, in_clear.how) == (False, "whitelist")
    pinned = connect(server, grpc_endpoint=address, validate_certs=False).prove(ENROLMENT, issued.credential)
    assert "always verifies" in pinned.detail


@shipped
def test_the_grpc_port_is_the_one_the_server_names(server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, grpc_endpoint="")
    assert plane.prove(ENROLMENT, _register(plane).credential).definite


@pytest.mark.parametrize("given", ["host", "host:", "host:0", "http://host", "ftp://host:1", "https://user@host:1", "https://host:1/path", "host:x", "a b:1"])
def test_an_endpoint_of_another_form_is_refused(given: str, connect: Connect, server: ReferenceServer) -> None:
    with pytest.raises(InvalidInput, match="grpc_endpoint"):
        connect(server, grpc_endpoint=given).check(ENROLMENT)


def test_a_server_that_is_gone_is_no_refusal(server: ReferenceServer, connect: Connect) -> None:
    credential = _register(connect(server)).credential
    with pytest.raises(Untrusted):
        connect(server, ca_cert="").prove(ENROLMENT, credential)
    server.pause()
    try:
        with pytest.raises(Unreachable):
            connect(server).prove(ENROLMENT, credential)
    finally:
        server.resume()


def test_a_credential_without_token_is_not_tried(plane: Oxmon) -> None:
    proof = plane.prove(ENROLMENT, Credential("1", {}))
    assert (proof.accepted, proof.definite) == (False, False)


@shipped
def test_a_proof_needs_no_login(server: ReferenceServer, connect: Connect) -> None:
    """The gate may run without the administrator's password."""
    credential = _register(connect(server)).credential
    assert connect(server, Bootstrap()).prove(ENROLMENT, credential).definite


@pytest.mark.parametrize("size", [1, 127, 128, 255])
def test_the_hand_written_batch_is_read_by_protobuf(size: int) -> None:
    grpc_side = importlib.import_module("reference_server.oxmon_grpc")
    classes = grpc_side._message_classes()
    batch = classes["MetricBatchProto"]()
    batch.ParseFromString(report.empty_batch("x" * size))
    assert batch == classes["MetricBatchProto"](agent_id="x" * size)
    for text in ("", "data_points cannot be empty", "é" * 200):
        assert report.reply_text(classes["ReportResponse"](success=True, message=text).SerializeToString()) == text
    with pytest.raises(ServerFault, match="cannot be read"):
        report.reply_text(b"\x12\xffnot whole")


# -- signs of life ------------------------------------------------------------------------------------------------------------------------------


@shipped
def test_being_whitelisted_is_no_sign_of_life_and_reporting_is(server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    silent = plane.last_seen(NAME, credential)
    assert silent is not None
    assert (silent.last_seen, silent.reports) == ("", 0)
    found = plane.find(NAME, None)
    assert found is not None
    assert (found.last_seen, found.reports, found.status) == ("", 0, "whitelisted")
    server.act("oxmon", "report", name=NAME)
    seen = plane.last_seen(NAME, credential)
    assert seen is not None
    assert seen.reports == 1
    assert abs((parse_time(seen.last_seen) or 0.0) - time.time()) < 60
    listed = plane.find(NAME, None)
    assert listed is not None
    assert (listed.last_seen, listed.status) == (seen.last_seen, "active")


@documented
def test_the_documented_server_tells_no_sign_of_life(server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    server.act("oxmon", "report", name=NAME)
    assert plane.last_seen(NAME, credential) is None
    found = plane.find(NAME, None)
    assert found is not None
    assert (found.agent_id, found.last_seen, found.reports) == (NAME, "", None)
    assert found.registered_at.endswith("Z")


@shipped
def test_an_agent_that_was_never_heard_of_has_no_sign_of_life(plane: Oxmon) -> None:
    record = plane.last_seen("never.heard.of", Credential("1", {}))
    assert record is not None
    assert (record.last_seen, record.reports) == ("", 0)


# -- finding, listing, withdrawing ----------------------------------------------------------------------------------------------------------------


def test_a_name_is_found_exactly_among_names_that_contain_it(server: ReferenceServer, plane: Oxmon) -> None:
    for number in range(3):
        _register(plane, Enrolment(f"{NAME}.{number}x"))
    assert plane.find(NAME, None) is None
    _register(plane)
    _register(plane, Enrolment(f"prefix.{NAME}"))
    found = plane.find(NAME, None)
    assert found is not None
    assert found.name == NAME


@shipped
def test_all_pages_are_read(server: ReferenceServer, plane: Oxmon, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"agent.{number}.x" for number in range(7)}
    for name in names:
        _register(plane, Enrolment(name))
    monkeypatch.setattr(adapter, "_PAGE", 2)
    server.reset_counters()
    assert {record.name for record in plane.list_agents()} == names
    assert server.counters()["by_route"]["oxmon_whitelist"] == 4


def test_a_list_names_everybody_and_who_reports_without_being_whitelisted(server: ReferenceServer, plane: Oxmon, contract: str) -> None:
    server.act("oxmon", "require_auth", on=False)
    _register(plane)
    server.act("oxmon", "report", name="stranger.x")
    listed = {record.name: record for record in plane.list_agents()}
    assert listed[NAME].details["whitelisted"] is True
    assert listed[NAME].details["description"] == "rack 4"
    if contract == "shipped":
        assert (listed["stranger.x"].status, listed["stranger.x"].details["whitelisted"]) == ("not_enrolled", False)
        assert listed[NAME].last_seen == ""
    else:
        assert set(listed) == {NAME}


@pytest.mark.parametrize("kind", ["endless-list", "growing-list"])
@shipped
def test_a_list_without_end_is_left(kind: str, server: ReferenceServer, plane: Oxmon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_MAX_PAGES", 5)
    server.fault("oxmon_whitelist", kind, times=None)
    for ask in (lambda: list(plane.list_agents()), lambda: plane.find(NAME, None)):
        with pytest.raises(ServerFault, match="never comes to the end") as fault:
            ask()
        assert fault.value.reason == "endless_list"


@pytest.mark.parametrize(("kind", "options"), [
    ("garbage", {}), ("truncate", {}), ("status", {"status": 200, "body": "<html></html>"}), ("status", {"status": 200, "body": {"items": 5}}),
    ("status", {"status": 500, "body": "boom"}),
])
def test_a_list_that_cannot_be_read_is_the_servers_fault(kind: str, options: dict[str, t.Any], server: ReferenceServer, plane: Oxmon) -> None:
    server.fault("oxmon_whitelist", kind, times=None, **options)
    with pytest.raises(ServerFault):
        plane.find(NAME, None)


def test_a_withdrawal_removes_the_entry_and_says_what_stays(server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    withdrawal = plane.revoke(NAME, credential)
    assert "whitelist entry" in withdrawal.removed[0]
    assert "metrics" in withdrawal.remains[0]
    assert not any(agent["whitelisted"] for agent in server.agents())
    assert plane.prove(ENROLMENT, credential).accepted is False
    assert plane.revoke(NAME, credential).removed == ()


def test_a_withdrawal_with_auth_off_says_that_the_agent_may_go_on(start: Start, connect: Connect) -> None:
    plane = connect(start("shipped"))
    withdrawal = plane.revoke(NAME, _register(plane).credential)
    assert any("require_agent_auth is off" in text for text in withdrawal.remains)


@pytest.mark.parametrize("kind", ["commit-then-drop", "commit-then-500", "status"])
def test_a_removal_whose_answer_is_lost_is_cleared_up(kind: str, server: ReferenceServer, plane: Oxmon) -> None:
    credential = _register(plane).credential
    server.fault("oxmon_whitelist_remove", kind, status=500, body="")
    assert plane.revoke(NAME, credential).removed
    assert not any(agent["whitelisted"] for agent in server.agents())


def test_a_changed_description_is_sent_where_the_server_takes_it(server: ReferenceServer, plane: Oxmon, contract: str) -> None:
    _register(plane)
    answer = plane.refresh_metadata(replace(ENROLMENT, description="rack 5"), _attempt())
    assert (answer is None) is (contract == "documented")
    assert server.agent(NAME)["description"] == ("rack 4" if contract == "documented" else "rack 5")
    before = _mutations(server)
    plane.refresh_metadata(replace(ENROLMENT, description="rack 5"), _attempt())
    assert _mutations(server) == before


def test_only_a_description_is_compared(plane: Oxmon) -> None:
    assert plane.wire_metadata(ENROLMENT) == plane.wire_metadata(replace(ENROLMENT, version="9.9.9", capabilities=("logs",)))
    assert plane.wire_metadata(ENROLMENT) != plane.wire_metadata(replace(ENROLMENT, description="other"))
    assert plane.wire_metadata(replace(ENROLMENT, description="")) == {}


# -- what the server says of itself ---------------------------------------------------------------------------------------------------------------


def test_a_probe_tells_version_clock_and_whether_tokens_are_checked(server: ReferenceServer, plane: Oxmon, contract: str) -> None:
    state = plane.probe()
    assert state.version == "0.1.12"
    assert state.clock_skew is not None
    assert state.enforced is (True if contract == "shipped" else None)


def test_a_probe_counts_no_health_page_as_an_answer(server: ReferenceServer, plane: Oxmon) -> None:
    server.fault("oxmon_health", "status", status=404, body="")
    assert plane.probe().version == ""
    server.fault("oxmon_health", "status", status=500, body="")
    with pytest.raises(ServerFault, match="not healthy"):
        plane.probe()


def test_forks_ask_once_what_the_server_says_of_itself(
    start: Start, connect: Connect, tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "state_directory", lambda part: str(tmp_path / part))
    server = start("shipped")
    sessions = [Sessions(str(tmp_path / "sessions"), server.url) for _fork in range(4)]
    for own in sessions:
        assert connect(server, sessions=own).probe().enforced is False
    counters = server.counters()
    assert counters["by_route"]["oxmon_system_config"] == 1
    assert counters["by_route"]["oxmon_login"] == 1


# -- logging in ---------------------------------------------------------------------------------------------------------------------------------


def test_a_good_login_passes_and_is_used_once(server: ReferenceServer, plane: Oxmon, contract: str) -> None:
    plane.check_bootstrap()
    _register(plane)
    plane.find(NAME, None)
    assert server.counters()["oxmon"]["login"] == (2 if contract == "shipped" else 0)


@shipped
def test_a_session_that_ended_is_replaced_once(server: ReferenceServer, connect: Connect, tmp_path: t.Any) -> None:
    plane = connect(server, sessions=Sessions(str(tmp_path), server.url))
    plane.check_bootstrap()
    server.act("oxmon", "revoke_sessions")
    assert _register(plane).created
    assert server.counters()["by_route"]["oxmon_login"] == 2
    assert server.counters()["by_outcome"]["oxmon_whitelist_add"] == {"401": 1, "201": 1}


@shipped
def test_an_admin_token_is_used_as_it_is(server: ReferenceServer, connect: Connect) -> None:
    owner = connect(server)
    owner.check_bootstrap()
    assert owner._session is not None
    assert _register(connect(server, Bootstrap(admin_token=owner._session.token))).created
    with pytest.raises(Rejected, match="admin_token") as refusal:
        _register(connect(server, Bootstrap(admin_token=Secret("canary-admin-7f3e"))))
    assert refusal.value.reason == "bad_bootstrap"
    assert "canary" not in refusal.value.msg


@shipped
@pytest.mark.parametrize(("user", "password", "words"), [(USER, "wrong-canary", "username and password"), ("nobody", PASSWORD, "username and password")])
def test_a_wrong_login_is_told_once_and_locks_nothing(user: str, password: str, words: str, server: ReferenceServer, connect: Connect) -> None:
    plane = connect(server, Bootstrap(username=user, password=Secret(password)))
    plane.probe()
    for _time in range(3):
        with pytest.raises(Rejected, match=words) as refusal:
            plane.check_bootstrap()
        assert refusal.value.reason == "bad_bootstrap"
        assert password not in refusal.value.msg
    assert server.counters()["by_route"]["oxmon_login"] == 1


@shipped
def test_no_login_at_all_is_told(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(Rejected, match="give username and password") as refusal:
        connect(server, Bootstrap()).check_bootstrap()
    assert refusal.value.reason == "bad_bootstrap"
    with pytest.raises(InvalidInput, match="password_file"):
        connect(server, Bootstrap(username=USER)).check_bootstrap()


@shipped
def test_a_locked_login_is_told_with_its_date(server: ReferenceServer, connect: Connect) -> None:
    for _time in range(5):
        with pytest.raises(Rejected):
            connect(server, Bootstrap(username=USER, password=Secret("wrong-canary"))).check_bootstrap()
    with pytest.raises(Rejected, match=r"locked the login of admin until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC") as refusal:
        connect(server, retries=3).check_bootstrap()
    assert refusal.value.reason == "login_locked"
    assert str(refusal.value.facts["locked_until"]) in refusal.value.msg
    assert connect(server, Bootstrap(username="other", password=Secret("canary-other-7f3e"))).probe().enforced is True


@shipped
def test_a_login_with_clocks_apart_is_refused_before_it_is_sent(server: ReferenceServer, connect: Connect) -> None:
    server.clock(600)
    with pytest.raises(Mismatch, match="NTP") as refusal:
        connect(server).check_bootstrap()
    assert refusal.value.reason == "clock_skew"
    assert server.counters()["by_route"].get("oxmon_login", 0) == 0


@shipped
def test_a_password_that_cannot_be_encrypted_is_refused(server: ReferenceServer, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="too long") as refusal:
        connect(server, Bootstrap(username=USER, password=Secret("p" * 160))).check_bootstrap()
    assert "ppp" not in refusal.value.msg


@shipped
@pytest.mark.parametrize(("body", "error"), [
    ("<html></html>", ServerFault), ({"err_code": 0, "data": {"public_key": "no key"}}, ServerFault), ({"err_code": 0, "data": {}}, ServerFault),
])
def test_a_key_that_is_none_is_the_servers_fault(body: object, error: type[AgentsError], server: ReferenceServer, connect: Connect) -> None:
    server.fault("oxmon_public_key", "status", status=200, body=body)
    with pytest.raises(error):
        connect(server).check_bootstrap()


@shipped
def test_a_login_that_the_server_cannot_read_names_the_clocks(server: ReferenceServer, connect: Connect) -> None:
    server.fault("oxmon_login", "status", status=400, body={"err_code": 1001, "err_msg": "invalid encrypted password", "trace_id": "", "data": None})
    with pytest.raises(InvalidRequest, match="Compare the clocks") as refusal:
        connect(server).check_bootstrap()
    assert refusal.value.reason == "login_unreadable"


def test_a_server_that_wants_an_app_id_is_named(start: Start, connect: Connect) -> None:
    plane = connect(start("shipped", "--oxmon-require-app-id"))
    for ask in (plane.probe, plane.check_bootstrap):
        with pytest.raises(InvalidRequest, match="require_app_id") as refusal:
            ask()
        assert refusal.value.reason == "app_id_required"


def test_a_server_without_a_whitelist_is_no_oxmon(server: ReferenceServer, connect: Connect) -> None:
    server.fault("oxmon_whitelist", "status", status=404, body="")
    with pytest.raises(InvalidRequest, match="has no agent whitelist") as refusal:
        connect(server).check_bootstrap()
    assert refusal.value.reason == "not_a_control_plane"


def test_the_limits_on_requests_and_logins_are_waited_for(start: Start, connect: Connect) -> None:
    server = start("shipped", "--oxmon-rate-limits")
    server.act("oxmon", "drain", seconds=50)
    with pytest.raises(Throttled) as waiting:
        connect(server, retries=0).check_bootstrap()
    assert waiting.value.reason == "throttled"
    server.act("oxmon", "refill")
    plane = connect(server, retries=1)
    plane.check_bootstrap()
    server.act("oxmon", "drain", seconds=2)
    assert _register(plane).created
    assert server.counters()["by_outcome"]["oxmon_whitelist_add"].get("201") == 1


# -- what is checked before anything is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "web-1.example.org", "rack:4_unit-7", "x" * 255, "6c84fb90-12c4-11e1-840d-7b25c5ee775a"])
def test_a_name_that_travels_in_a_header_is_accepted(name: str, plane: Oxmon) -> None:
    plane.check(Enrolment(name))


@pytest.mark.parametrize("name", [
    "", " ", "has space", "quote'd", 'quote"d', "a/b", "a\\b", "é", "tab\t", "new\nline", "x" * 256, "whitelist", ".", "..", "a%b", "a?b", "a#b", "a,b",
])
def test_a_name_that_could_not_travel_is_refused(name: str, server: ReferenceServer, plane: Oxmon) -> None:
    with pytest.raises(InvalidInput, match="name"):
        plane.check(replace(ENROLMENT, name=name))
    assert server.counters()["by_route"] == {}


def test_the_name_whitelist_is_refused_with_the_reason(plane: Oxmon) -> None:
    with pytest.raises(InvalidInput, match="path of the control plane's own API"):
        plane.check(Enrolment("whitelist"))
