# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""KubeAtlas's adapter against the reference server over TLS, in the contract its guide documents and in the one its server ships."""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
import typing as t
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sockets import Sayer, answer_bytes

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Rejected,
    ServerFault,
    Unreachable,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Sessions
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Credential, Enrolment, Issued
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.kubeatlas import KubeAtlas
from reference_server.client import ReferenceServer, Tls
from world.agent_pairs import SERVER, Issuer, Pair, issue
from world.ca import CertificateAuthority

NAME = "edge-7f3a"
PASSWORD, CLIENT_SECRET = "canary-password-7f3e", "canary-client-19ab"
OPTIONS = [
    "--plane", "kubeatlas", "--kubeatlas-user", f"olga:{PASSWORD}:olga@example.test", "--kubeatlas-user", f"nomail:{PASSWORD}",
    "--kubeatlas-client", f"kubeatlas-backend:{CLIENT_SECRET}", "--kubeatlas-client", f"robot:{CLIENT_SECRET}:robot@example.test",
    "--kubeatlas-client", f"mute:{CLIENT_SECRET}", "--kubeatlas-max-failures", "3",
]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def agents_ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("agents-ca"), "agents' CA")


Start = Callable[..., ReferenceServer]


@pytest.fixture(scope="module")
def start(ca: CertificateAuthority, agents_ca: CertificateAuthority) -> Iterator[Start]:
    """Start servers when they are first asked for; the same arguments give the same server."""
    servers: dict[tuple[str, ...], ReferenceServer] = {}
    pair = ca.server()
    tls = Tls(str(pair.cert), str(pair.key), client_ca=str(agents_ca.ca_file))

    def get(contract: str, *arguments: str) -> ReferenceServer:
        key = (contract, *arguments)
        if key not in servers:
            servers[key] = ReferenceServer.start(contract, tls=tls, arguments=[*OPTIONS, *arguments])
        servers[key].reset()
        return servers[key]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture(params=["documented", "shipped"])
def contract(request: pytest.FixtureRequest) -> str:
    return str(request.param)


documented = pytest.mark.parametrize("contract", ["documented"])
shipped = pytest.mark.parametrize("contract", ["shipped"])


@pytest.fixture
def server(start: Start, contract: str) -> ReferenceServer:
    return start(contract)


@pytest.fixture(scope="module")
def pair(agents_ca: CertificateAuthority) -> Pair:
    return issue(f"agent-{NAME}", Issuer.of(agents_ca))


@pytest.fixture(scope="module")
def other(agents_ca: CertificateAuthority) -> Pair:
    return issue(f"agent-{NAME}", Issuer.of(agents_ca))


@pytest.fixture(scope="module")
def enrolment(pair: Pair) -> Enrolment:
    return Enrolment(
        NAME, "1.2.3", service_type="agent", controller_name="c-1", hostname="edge", system_info={"os": "Linux"}, labels={"environment": "lab", "rack": 7},
        certificate=pair.cert, certificate_path="/etc/kubeatlas/certs/agent.crt", key_path="/etc/kubeatlas/certs/agent.key")


Connect = Callable[..., KubeAtlas]


@pytest.fixture
def connect(ca: CertificateAuthority, tmp_path: Path) -> Iterator[Connect]:
    """Make adapters that share sessions as the forks of one controller do; by default with the login of a user."""
    made: list[KubeAtlas] = []

    def one(server: ReferenceServer | str, *, retries: int = 0, timeout: float = 10.0, **given: t.Any) -> KubeAtlas:
        url = server if isinstance(server, str) else server.url
        login: dict[str, t.Any] = {
            "issuer_url": f"{url}/realms/kubeatlas", "username": "olga", "password": Secret(PASSWORD), "client_secret": Secret(CLIENT_SECRET)}
        bootstrap = Bootstrap(**{key: value for key, value in (given or login).items() if value is not None})
        http = Http(url, Transport(ca_cert=str(ca.ca_file), retries=retries, timeout=timeout))
        made.append(KubeAtlas(http, bootstrap, Sessions(str(tmp_path / "sessions"), url)))
        return made[-1]

    yield one
    for plane in made:
        plane.http.close()


@pytest.fixture
def plane(server: ReferenceServer, connect: Connect) -> KubeAtlas:
    return connect(server)


def _robot(server: ReferenceServer, **changes: t.Any) -> dict[str, t.Any]:
    """The login of a client of its own."""
    return {"issuer_url": f"{server.url}/realms/kubeatlas", "client_id": "robot", "client_secret": Secret(CLIENT_SECRET), **changes}


def _register(plane: KubeAtlas, enrolment: Enrolment) -> Issued:
    return plane.register(enrolment, str(uuid.uuid4()))


def _mutating(server: ReferenceServer) -> int:
    count: int = server.counters()["kubeatlas"]["mutating"]
    return count


def _beat(server: ReferenceServer, ca: CertificateAuthority, pair: Pair, folder: Path, name: str = NAME) -> None:
    """Send the heartbeat of a running agent."""
    context = ssl.create_default_context(cafile=str(ca.ca_file))
    context.load_cert_chain(*pair.write(folder))
    body = json.dumps({"agent_id": name, "status": "healthy"}).encode()
    request = urllib.request.Request(f"{server.url}/api/v1/agent/heartbeat", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10, context=context).close()


# -- the way it should go ------------------------------------------------------------------------------------------------------------------


def test_registering_makes_one_service_with_all_metadata_and_spends_its_token(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment) -> None:
    issued = _register(plane, enrolment)
    assert (issued.created, issued.warnings) == (True, ())
    (agent,) = server.agents()
    assert issued.credential.agent_id == agent["agent_id"]
    assert agent["metadata"] == {
        "version": "1.2.3", "environment": "lab", "hostname": "edge", "platform": "Linux", "agent_id": NAME, "rack": 7}
    assert (agent["service_type"], agent["controller_name"]) == ("agent", "c-1")
    assert server.act("kubeatlas", "tokens") == []
    assert _mutating(server) == 2


def test_install_token_lives_an_hour_and_a_controller_needs_no_controller(plane: KubeAtlas, server: ReferenceServer, agents_ca: CertificateAuthority) -> None:
    pair = issue(f"controller-{NAME}", Issuer.of(agents_ca))
    plain = Enrolment(NAME, service_type="controller", certificate=pair.cert)
    plane.check(plain)
    server.fault("kubeatlas_register", "status", status=503)
    with pytest.raises(Ambiguous):
        _register(plane, plain)
    (token,) = server.act("kubeatlas", "tokens")
    assert 3590 < token["expires_at"] - time.time() < 3601
    assert (token["service_type"], token["controller_name"]) == ("controller", None)
    assert _register(plane, plain).created
    assert server.agent(NAME)["metadata"] == {"version": "", "environment": "", "hostname": "", "platform": "", "agent_id": NAME}


def test_registering_again_finds_the_service_and_sends_nothing_that_changes(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, connect: Connect) -> None:
    first = _register(plane, enrolment)
    server.reset_counters()
    again = _register(connect(server), enrolment)
    assert (again.created, again.credential) == (False, first.credential)
    assert _mutating(server) == 0


def test_one_login_serves_every_fork(server: ReferenceServer, connect: Connect, enrolment: Enrolment, agents_ca: CertificateAuthority) -> None:
    for number in range(3):
        name = f"{NAME}-{number}x"
        pair = issue(name, Issuer.of(agents_ca))
        _register(connect(server), replace(enrolment, name=name, certificate=pair.cert))
    assert server.counters()["kubeatlas"]["login"] == 1
    assert len(server.agents()) == 3


def test_a_client_logs_in_for_itself_and_an_admin_token_will_do(server: ReferenceServer, connect: Connect, enrolment: Enrolment, tmp_path: Path) -> None:
    robot = connect(server, **_robot(server))
    robot.check_bootstrap()
    assert _register(robot, enrolment).created
    token = _access_token(tmp_path)
    by_token = connect(server, admin_token=token)
    by_token.check_bootstrap()
    assert by_token.bootstrap_secret() == token
    assert [record.name for record in by_token.list_agents()] == [NAME]
    assert server.counters()["kubeatlas"]["login"] == 1


def test_probe_tells_version_and_clock(plane: KubeAtlas, server: ReferenceServer) -> None:
    server.clock(-600)
    state = plane.probe()
    assert state.version == "0.1.0"
    assert state.clock_skew is not None
    assert -602 < state.clock_skew < -598


def test_server_without_a_health_page_is_known_by_its_list_of_services(start: Start, connect: Connect, contract: str) -> None:
    assert connect(start(contract, "--kubeatlas-without", "health")).probe().version == ""


def test_list_and_find_show_what_is_registered(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, pair: Pair) -> None:
    issued = _register(plane, enrolment)
    (record,) = plane.list_agents()
    assert plane.find(NAME, None) == plane.find(NAME, issued.credential) == record
    assert plane.find("nobody", None) is None
    assert plane.find(NAME, Credential("", {"certificate": Secret(issue("x").cert)})) is None
    assert (record.name, record.agent_id, record.version, record.status, record.last_seen) == (NAME, issued.credential.agent_id, "1.2.3", "active", "")
    assert record.details["client_cert_serial"] == str(pair.certificate.serial_number)
    lifetime = plane.lifetime(issued.credential)
    assert lifetime is not None
    assert lifetime.expires_at == pair.certificate.not_valid_after_utc.timestamp()


# -- proof and signs of life ---------------------------------------------------------------------------------------------------------------


def test_proof_is_name_and_certificate_in_the_list_and_changes_nothing(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, other: Pair) -> None:
    issued = _register(plane, enrolment)
    before, sent = server.agents(), _mutating(server)
    proof = plane.prove(enrolment, issued.credential)
    assert (proof.accepted, proof.definite, proof.how) == (True, True, "services")
    assert plane.prove(Enrolment(NAME), issued.credential).accepted
    for wrong in (
        plane.prove(replace(enrolment, name="edge-other"), issued.credential),
        plane.prove(replace(enrolment, certificate=other.cert), issued.credential),
        plane.prove(Enrolment(NAME), Credential("", {"certificate": Secret(other.cert)})),
    ):
        assert (wrong.accepted, wrong.definite) == (False, True)
    assert (server.agents(), _mutating(server)) == (before, sent)
    server.drift(NAME)
    assert not plane.prove(enrolment, issued.credential).accepted


def test_expired_certificate_proves_nothing_although_its_record_stays(plane: KubeAtlas) -> None:
    pair = issue(NAME, begins=-200.0, ends=-100.0)
    proof = plane.prove(Enrolment(NAME), Credential("x", {"certificate": Secret(pair.cert)}))
    assert (proof.accepted, proof.definite) == (False, True)
    assert "expired" in proof.detail


def test_proof_without_a_login_believes_what_was_registered_here_only(server: ReferenceServer, connect: Connect, enrolment: Enrolment, pair: Pair) -> None:
    plane = connect(server, install_token=Secret("t"))
    known = plane.prove(enrolment, Credential("some-id", {"certificate": Secret(pair.cert)}))
    assert (known.accepted, known.definite, known.how) == (True, False, "unproved")
    fresh = plane.prove(enrolment, Credential("", {"certificate": Secret(pair.cert)}))
    assert (fresh.accepted, fresh.definite) == (False, True)
    assert server.counters()["kubeatlas"]["read"] == 0


def test_proof_is_undecided_while_the_servers_storage_is_away(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment) -> None:
    issued = _register(plane, enrolment)
    server.fault("kubeatlas_services", "kubeatlas-redis-down")
    proof = plane.prove(enrolment, issued.credential)
    assert (proof.accepted, proof.definite) == (False, False)
    assert "Redis" in proof.detail


def test_last_seen_moves_with_heartbeats_where_there_are_any(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, ca: CertificateAuthority, pair: Pair, tmp_path: Path, contract: str
) -> None:
    issued = _register(plane, enrolment)
    record = plane.last_seen(NAME, issued.credential)
    if contract == "shipped":
        assert record is None
        return
    assert record is not None
    assert record.last_seen == ""
    server.clock(5)
    _beat(server, ca, pair, tmp_path)
    record = plane.last_seen(NAME, issued.credential)
    assert record is not None
    assert record.last_seen > record.registered_at
    assert server.counters()["kubeatlas"]["agent"] == 1, "only the agent itself beats"


def test_host_is_asked_to_try_the_pair_and_over_tls_to_use_it(plane: KubeAtlas, enrolment: Enrolment, connect: Connect) -> None:
    proof = plane.host_proof(enrolment)
    assert proof is not None
    assert (proof.certificate_path, proof.key_path, proof.url) == (enrolment.certificate_path, enrolment.key_path, f"{plane.http.url}/health")
    plain = connect("http://127.0.0.1:1").host_proof(enrolment)
    assert plain is not None
    assert plain.url == ""
    assert plane.host_proof(Enrolment(NAME)) is None


# -- answers that are lost -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["commit-then-drop", "truncate", "commit-then-500", "garbage", "kubeatlas-no-id"])
def test_lost_answer_is_found_in_the_list_and_not_sent_again(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, kind: str) -> None:
    attempt = str(uuid.uuid4())
    server.fault("kubeatlas_register", kind)
    with pytest.raises(Ambiguous) as caught:
        plane.register(enrolment, attempt)
    assert caught.value.reason == ("incomplete_answer" if kind in ("garbage", "kubeatlas-no-id") else "ambiguous")
    server.reset_counters()
    issued = plane.recover(enrolment, attempt)
    assert (issued.created, issued.credential.agent_id) == (True, server.agent(NAME)["agent_id"])
    assert _mutating(server) == 0
    assert len(server.agents()) == 1


@pytest.mark.parametrize("kind", ["commit-then-drop", "truncate", "garbage", "kubeatlas-no-token"])
def test_lost_install_token_is_replaced_by_another(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, kind: str) -> None:
    attempt = str(uuid.uuid4())
    server.fault("kubeatlas_mint", kind)
    with pytest.raises(Ambiguous):
        plane.register(enrolment, attempt)
    assert plane.recover(enrolment, attempt).created
    assert len(server.agents()) == 1


def test_request_that_never_left_costs_no_token(server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    connect(server).check_bootstrap()
    server.pause()
    try:
        with pytest.raises(Unreachable):
            _register(connect(server), enrolment)
    finally:
        server.resume()
    assert _mutating(server) == 0
    assert server.act("kubeatlas", "tokens") == []


@pytest.mark.parametrize("kind", ["kubeatlas-redis-down", "kubeatlas-redis-store"])
def test_burnt_token_is_noticed_and_replaced_once(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, kind: str) -> None:
    server.fault("kubeatlas_register", kind)
    assert _register(plane, enrolment).created
    assert server.counters()["by_route"]["kubeatlas_mint"] == 2
    assert len(server.agents()) == 1


@pytest.mark.parametrize(("kind", "reason"), [("kubeatlas-redis-down", "fresh_token_refused"), ("kubeatlas-redis-store", "storage_down")])
def test_replacing_tokens_has_an_end(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, kind: str, reason: str) -> None:
    server.fault("kubeatlas_register", kind, times=None)
    with pytest.raises(ServerFault, match="Redis") as caught:
        _register(plane, enrolment)
    assert caught.value.reason == reason
    assert server.counters()["by_route"]["kubeatlas_register"] == 2


def test_storage_that_cannot_mint_is_a_fault_of_the_server(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment) -> None:
    server.fault("kubeatlas_mint", "kubeatlas-redis-down")
    with pytest.raises(ServerFault, match="Redis") as caught:
        _register(plane, enrolment)
    assert caught.value.reason == "storage_down"


# -- names that are taken ------------------------------------------------------------------------------------------------------------------


def test_other_certificate_of_the_name_is_a_conflict_where_life_can_be_seen(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, other: Pair, contract: str) -> None:
    old = _register(plane, enrolment).credential.agent_id
    renewed = replace(enrolment, certificate=other.cert)
    if contract == "documented":
        with pytest.raises(IdentityConflict, match="another certificate"):
            _register(plane, renewed)
        assert len(server.agents()) == 1
        issued = plane.reissue(renewed, old, str(uuid.uuid4()))
    else:
        issued = _register(plane, renewed)
    assert issued is not None
    assert issued.created
    assert len(server.agents()) == 2
    (warning,) = issued.warnings
    assert old in warning
    assert f"redis-cli DEL service:{old}" in warning
    assert plane.prove(renewed, issued.credential).accepted


def test_find_shows_the_record_with_the_latest_sign_of_life(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment) -> None:
    _register(plane, enrolment)
    server.clock(30)
    server.act("kubeatlas", "touch", name=NAME)
    record = plane.find(NAME, None)
    assert record is not None
    assert record.last_seen > record.registered_at


def test_withdrawal_says_what_stays_and_how_it_can_be_removed(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, pair: Pair) -> None:
    issued = _register(plane, enrolment)
    sent = _mutating(server)
    withdrawal = plane.revoke(NAME, issued.credential)
    assert withdrawal.removed == ()
    text = " ".join(withdrawal.remains)
    assert f"redis-cli DEL service:{issued.credential.agent_id}" in text
    assert f"{pair.certificate.not_valid_after_utc:%Y-%m-%d}" in text
    assert _mutating(server) == sent


# -- install tokens of the user's ----------------------------------------------------------------------------------------------------------


def _given(server: ReferenceServer, **spec: t.Any) -> Secret:
    return Secret(server.act("kubeatlas", "mint", **{"service_name": NAME, "controller_name": "c-1", **spec})["install_token"])


def test_given_token_is_spent_without_a_login(server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    plane = connect(server, install_token=_given(server))
    plane.check_bootstrap()
    assert _register(plane, enrolment).created
    assert (plane.find(NAME, None), server.counters()["kubeatlas"]["login"], _mutating(server)) == (None, 0, 1)
    with pytest.raises(InvalidRequest) as caught:
        list(plane.list_agents())
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("fault", ["used", "expired", "unknown", "foreign"])
def test_bad_install_token_is_named_with_its_causes_and_the_remedy(
    server: ReferenceServer, connect: Connect, enrolment: Enrolment, fault: str, contract: str) -> None:
    token = Secret("never-minted") if fault == "unknown" else _given(server, **{
        "expired": {"seconds": 1}, "foreign": {"service_name": "edge-other"}}.get(fault, {}))
    plane = connect(server, install_token=token)
    if fault == "used":
        _register(plane, enrolment)
    if fault == "expired":
        server.clock(5)
    if fault == "foreign" and contract == "shipped":
        # The shipped server binds the name at minting and ignores what is sent: only the list shows it.
        assert _register(plane, enrolment).created
        assert server.agents()[0]["name"] == "edge-other"
        return
    with pytest.raises(Rejected, match="Get a new one, or give a login") as caught:
        _register(plane, enrolment)
    assert caught.value.reason == "install_token_refused"
    assert token.reveal() not in caught.value.msg
    assert server.counters()["by_route"]["kubeatlas_register"] == (2 if fault == "used" else 1)


def test_given_token_whose_answer_was_lost_is_looked_up_or_replaced_when_there_is_a_login(
    server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    login = {"issuer_url": f"{server.url}/realms/kubeatlas", "username": "olga", "password": Secret(PASSWORD), "client_secret": Secret(CLIENT_SECRET)}
    plane = connect(server, install_token=_given(server), **login)
    attempt = str(uuid.uuid4())
    server.fault("kubeatlas_register", "commit-then-drop")
    with pytest.raises(Ambiguous):
        plane.register(enrolment, attempt)
    assert plane.recover(enrolment, attempt).credential.agent_id == server.agent(NAME)["agent_id"]
    server.forget(NAME)
    assert plane.recover(enrolment, attempt).created
    assert server.counters()["by_route"]["kubeatlas_mint"] == 1


def test_lost_answer_without_a_login_ends_with_the_tokens_refusal(server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    plane = connect(server, install_token=_given(server))
    attempt = str(uuid.uuid4())
    server.fault("kubeatlas_register", "commit-then-drop")
    with pytest.raises(Ambiguous):
        plane.register(enrolment, attempt)
    with pytest.raises(Rejected, match="was used"):
        plane.recover(enrolment, attempt)
    assert len(server.agents()) == 1


def test_server_without_a_list_of_services_is_used_as_the_guide_uses_it(
    start: Start, contract: str, connect: Connect, enrolment: Enrolment) -> None:
    server = start(contract, "--kubeatlas-without", "services")
    plane = connect(server)
    plane.check_bootstrap()
    issued = _register(plane, enrolment)
    assert issued.created
    assert plane.prove(enrolment, issued.credential).how == "unproved"
    assert plane.last_seen(NAME, issued.credential) is None
    with pytest.raises(InvalidRequest) as caught:
        list(plane.list_agents())
    assert caught.value.reason == "unsupported"


# -- bad input -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": ""}, "name is empty"),
    ({"name": 'edge"7'}, "characters"),
    ({"name": "edge 7"}, "characters"),
    ({"name": "edge/7"}, "characters"),
    ({"name": "édge"}, "characters"),
    ({"name": "e" * 54}, "53"),
    ({"name": "edge-20260102"}, "date"),
    ({"service_type": ""}, "service_type is missing"),
    ({"service_type": "Agent"}, "agent and controller"),
    ({"controller_name": " "}, "controller_name is missing"),
    ({"controller_name": "c/1"}, "characters"),
])
def test_identity_that_cannot_be_right_is_refused_before_anything_is_sent(enrolment: Enrolment, changes: dict[str, t.Any], words: str) -> None:
    plane = KubeAtlas(Http("https://127.0.0.1:1", Transport()), Bootstrap())
    with pytest.raises(InvalidInput, match=words):
        plane.check(replace(enrolment, **changes))
    plane.check(replace(enrolment, certificate=""))


def _certificates(agents_ca: CertificateAuthority) -> dict[str, str]:
    """A certificate file for each fault, by the reason that names it."""
    ours = Issuer.of(agents_ca)
    good, top = issue(NAME, ours), issue("intermediate", ours, authority=True)
    below = issue(NAME, Issuer.from_pair(top))
    return {
        "certificate_expired": issue(NAME, ours, begins=-200.0, ends=-100.0).cert,
        "certificate_not_yet_valid": issue(NAME, ours, begins=3600.0).cert,
        "certificate_not_client": issue(NAME, ours, usages=SERVER).cert,
        "certificate_unreadable": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "certificate_line_endings": good.cert.replace("\n", "\r\n"),
        "key_in_certificate": good.cert + good.key,
        "chain_broken": below.cert + good.cert,
        "certificate_missing": "",
    }


@pytest.mark.parametrize("reason", [
    "certificate_expired", "certificate_not_yet_valid", "certificate_not_client", "certificate_unreadable", "certificate_line_endings",
    "key_in_certificate", "chain_broken", "certificate_missing"])
def test_certificate_that_is_no_good_costs_no_token(
    server: ReferenceServer, connect: Connect, enrolment: Enrolment, agents_ca: CertificateAuthority, reason: str) -> None:
    bad = replace(enrolment, certificate=_certificates(agents_ca)[reason])
    plane = connect(server)
    with pytest.raises(InvalidInput) as caught:
        _register(plane, bad)
    assert caught.value.reason == reason
    if bad.certificate:
        with pytest.raises(InvalidInput):
            plane.check(bad)
    assert sum(server.counters()["kubeatlas"].values()) == 0


def test_certificates_that_are_well_pass(enrolment: Enrolment, agents_ca: CertificateAuthority) -> None:
    plane = KubeAtlas(Http("https://127.0.0.1:1", Transport()), Bootstrap())
    top = issue("intermediate", Issuer.of(agents_ca), authority=True)
    chain = issue(NAME, Issuer.from_pair(top)).cert + top.cert
    for pem in (chain, f"Certificate:\n    Data: text\n{chain}", issue(NAME, usages=None).cert, issue(NAME, signs=False).cert):
        plane.check(replace(enrolment, certificate=pem))


def test_skewed_server_clock_is_the_one_that_counts(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, agents_ca: CertificateAuthority) -> None:
    soon = replace(enrolment, certificate=issue(NAME, Issuer.of(agents_ca), ends=120.0).cert)
    plane.check(soon)
    server.clock(200)
    plane.probe()
    with pytest.raises(InvalidInput, match="expired"):
        plane.check(soon)


@shipped
def test_guides_key_usage_gets_a_warning(plane: KubeAtlas, enrolment: Enrolment) -> None:
    issued = _register(plane, replace(enrolment, certificate=issue(NAME, signs=False).cert))
    assert "digitalSignature" in issued.warnings[0]


@documented
def test_certificate_that_only_the_server_can_judge_is_refused_with_what_it_wants(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, agents_ca: CertificateAuthority) -> None:
    for wrong in (issue(f"agent-{NAME}"), issue("agent-other", Issuer.of(agents_ca))):
        with pytest.raises(InvalidRequest, match=f"name the service as agent-{NAME}.*Certificate validation failed") as caught:
            _register(plane, replace(enrolment, certificate=wrong.cert))
        assert caught.value.reason == "certificate_refused"
    assert server.agents() == []


def test_nothing_to_register_with_is_said_before_anything_is_sent(server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    plane = connect(server, username=None)
    for attempt in (plane.check_bootstrap, lambda: _register(plane, enrolment)):
        with pytest.raises(InvalidInput, match="install_token") as caught:
            attempt()
        assert caught.value.reason == "no_bootstrap"
    assert sum(server.counters()["kubeatlas"].values()) == 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"issuer_url": None}, "issuer_url is missing"),
    ({"password": None}, "username is set without password"),
    ({"username": None, "client_secret": None}, "without a login"),
    ({"issuer_url": "https://127.0.0.1/realms/x?y=1"}, "query"),
    ({"issuer_url": "http://keycloak.example.com/realms/x"}, "clear text"),
    ({"issuer_url": "keycloak.example.com"}, "scheme"),
])
def test_incomplete_logins_are_named(server: ReferenceServer, connect: Connect, changes: dict[str, t.Any], words: str) -> None:
    login = {"issuer_url": f"{server.url}/realms/kubeatlas", "username": "olga", "password": Secret("x"), "client_secret": Secret("y"), **changes}
    with pytest.raises(InvalidInput, match=words):
        connect(server, **login).check_bootstrap()
    assert server.counters()["kubeatlas"]["login"] == 0


@pytest.mark.parametrize(("changes", "reason", "words"), [
    ({"username": "olga", "password": Secret("wrong-password")}, "bad_bootstrap", "check username and password"),
    ({"client_id": "kubeatlas-backend", "client_secret": Secret("wrong-secret")}, "bad_bootstrap", "client_id and client_secret"),
    ({"client_id": "nobody"}, "bad_bootstrap", "client_id and client_secret"),
])
def test_refused_login_is_named_and_not_sent_by_the_other_hosts(
    server: ReferenceServer, connect: Connect, enrolment: Enrolment, changes: dict[str, t.Any], reason: str, words: str) -> None:
    given = _robot(server, **{"client_id": "kubeatlas-backend", **changes})
    with pytest.raises(Rejected, match=words) as caught:
        connect(server, **given).check_bootstrap()
    assert caught.value.reason == reason
    for secret in (changes.get("password"), changes.get("client_secret")):
        assert secret is None or secret.reveal() not in caught.value.msg
    with pytest.raises(Rejected, match="Not sent"):
        _register(connect(server, **given), enrolment)
    assert server.counters()["kubeatlas"]["login"] == 1
    assert _mutating(server) == 0


def test_locked_account_and_lockout_with_a_date_have_a_reason_of_their_own(server: ReferenceServer, connect: Connect, tmp_path: Path) -> None:
    server.act("kubeatlas", "lock", user="olga")
    with pytest.raises(Rejected, match="Account disabled") as caught:
        connect(server).check_bootstrap()
    assert caught.value.reason == "account_locked"
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 900))
    server.fault("kubeatlas_oidc_token", "429", retry_after=date)
    with pytest.raises(Rejected, match=r"in (?:89\d|900) s") as caught:
        connect(server, **_robot(server)).check_bootstrap()
    assert caught.value.reason == "account_locked"


@shipped
@pytest.mark.parametrize(("login", "reason"), [
    ({"username": "nomail", "password": Secret(PASSWORD), "client_id": "kubeatlas-backend"}, "token_without_email"),
    ({"client_id": "mute"}, "token_without_email"),
])
def test_token_without_an_address_is_told_where_the_server_only_says_401(
    server: ReferenceServer, connect: Connect, enrolment: Enrolment, login: dict[str, t.Any], reason: str) -> None:
    with pytest.raises(Rejected, match="no email claim") as caught:
        connect(server, **_robot(server, **login)).check_bootstrap()
    assert caught.value.reason == reason
    assert _mutating(server) == 0


@documented
def test_token_without_an_address_is_good_where_the_server_takes_it(server: ReferenceServer, connect: Connect, enrolment: Enrolment) -> None:
    assert _register(connect(server, **_robot(server, client_id="mute")), enrolment).created


@shipped
def test_token_without_the_scope_openid_is_told(server: ReferenceServer, connect: Connect) -> None:
    server.fault("kubeatlas_oidc_userinfo", "status", status=403, body={})
    with pytest.raises(Rejected, match="scope openid") as caught:
        connect(server, **_robot(server, client_id="mute")).check_bootstrap()
    assert caught.value.reason == "token_without_openid"


@pytest.mark.parametrize(("claims", "reason", "words"), [
    ({"exp": 1000}, "bad_bootstrap", "admin_token expired"),
    ({"scope": "email", "email": "a@b"}, "token_without_openid", "scope openid"),
    ({"scope": "openid"}, "token_without_email", "no email claim"),
    ({"scope": "openid", "email": "a@b"}, "bad_bootstrap", "refuses admin_token"),
    (None, "bad_bootstrap", "refuses admin_token"),
])
def test_admin_token_that_is_refused_is_explained_by_its_claims(
    server: ReferenceServer, connect: Connect, claims: dict[str, t.Any] | None, reason: str, words: str) -> None:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    with pytest.raises(Rejected, match=words) as caught:
        connect(server, admin_token=Secret("opaque-token" if claims is None else f"e30.{body}.c2ln")).check_bootstrap()
    assert caught.value.reason == reason


def test_session_that_is_over_is_renewed_once(plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment) -> None:
    plane.check_bootstrap()
    time.sleep(0.01)
    server.act("kubeatlas", "revoke-sessions")
    assert _register(plane, enrolment).created
    assert server.counters()["kubeatlas"]["login"] == 2


def test_server_that_takes_no_token_of_this_issuer_is_told_apart_from_a_bad_login(plane: KubeAtlas, server: ReferenceServer) -> None:
    server.fault("kubeatlas_services", "status", times=None, status=401, body={"error": "Unauthorized", "message": "Invalid token"})
    with pytest.raises(Rejected, match=r"KEYCLOAK_REALM.*Invalid token") as caught:
        plane.check_bootstrap()
    assert caught.value.reason == "bad_bootstrap"
    assert server.counters()["kubeatlas"]["login"] == 2


def test_identity_provider_that_is_away_is_not_taken_for_a_bad_password(plane: KubeAtlas, server: ReferenceServer) -> None:
    server.act("kubeatlas", "identity", up=False)
    with pytest.raises(ServerFault, match="identity provider") as caught:
        plane.check_bootstrap()
    assert caught.value.reason == "issuer_fault"


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 200, "body": "<html></html>"}, {"status": 200, "body": {
    "token_endpoint": "https://elsewhere.example.com/token", "userinfo_endpoint": "https://elsewhere.example.com/userinfo"}}])
def test_credentials_go_to_the_issuer_that_was_given_and_nowhere_else(plane: KubeAtlas, server: ReferenceServer, fault: dict[str, t.Any]) -> None:
    server.fault("kubeatlas_oidc_discovery", "status", times=None, **fault)
    plane.check_bootstrap()
    assert server.counters()["by_route"]["kubeatlas_oidc_token"] == 1


@pytest.mark.parametrize(("fault", "error", "reason"), [
    ({"status": 200, "body": "<html></html>"}, ServerFault, "incomplete_answer"),
    ({"status": 404, "body": {"error": "Realm does not exist"}}, InvalidRequest, "not_an_issuer"),
    ({"status": 500, "body": {}}, ServerFault, "issuer_fault"),
    ({"status": 400, "body": {"error": "invalid_grant", "error_description": "Account is not fully set up"}}, Rejected, "account_not_ready"),
    ({"status": 400, "body": {"error": "invalid_scope", "error_description": "Invalid scopes: openid email"}}, Rejected, "scope_refused"),
    ({"status": 400, "body": {"error": "unsupported_grant_type", "error_description": "no"}}, InvalidRequest, "grant_refused"),
    ({"status": 302, "headers": {"Location": "https://elsewhere.example.com/"}}, InvalidRequest, "redirected"),
])
def test_answers_of_an_issuer_that_are_no_token(
    plane: KubeAtlas, server: ReferenceServer, fault: dict[str, t.Any], error: type[AgentsError], reason: str) -> None:
    server.fault("kubeatlas_oidc_token", "status", **fault)
    with pytest.raises(error) as caught:
        plane.check_bootstrap()
    assert caught.value.reason == reason


# -- servers that are something else -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["garbage", "truncate"])
def test_list_that_cannot_be_read_is_a_fault_of_the_server(plane: KubeAtlas, server: ReferenceServer, kind: str) -> None:
    server.fault("kubeatlas_services", kind)
    with pytest.raises(ServerFault):
        list(plane.list_agents())


def test_another_kind_of_server_is_recognised(connect: Connect, ca: CertificateAuthority, enrolment: Enrolment) -> None:
    pair = ca.server()
    with ReferenceServer.start("documented", tls=Tls(str(pair.cert), str(pair.key)), arguments=["--plane", "stacker"]) as stacker:
        plane = connect(stacker, admin_token=Secret("token-of-nobody"))
        for ask in (plane.probe, lambda: _register(plane, enrolment)):
            with pytest.raises(InvalidRequest) as caught:
                ask()
            assert caught.value.reason == "not_a_control_plane"


@pytest.mark.parametrize("path", ["probe", "check_bootstrap"])
def test_redirect_to_another_host_is_not_followed(connect: Connect, path: str) -> None:
    with Sayer(answer_bytes(b"", "302 Found", "Location: https://elsewhere.example.com/\r\n")) as elsewhere:
        with pytest.raises(InvalidRequest, match=r"redirects to https://elsewhere\.example\.com") as caught:
            getattr(connect(elsewhere.url, admin_token=Secret("some-token")), path)()
        assert caught.value.reason == "redirected"


@pytest.mark.parametrize(("status", "body", "error", "words"), [
    (422, "missing field `service_name`", InvalidRequest, "missing field"),
    (415, "Expected request with `Content-Type: application/json`", InvalidRequest, "415"),
    (409, {"message": "already registered"}, IdentityConflict, "already"),
    (403, {"message": "blocked by policy"}, Rejected, "blocked by policy"),
    (404, "", InvalidRequest, "check that this is a KubeAtlas"),
    (400, {"error": "Validation error", "message": "Missing required field: client_cert_pem"}, InvalidRequest, "client_cert_pem"),
])
def test_refusals_of_a_registration_by_what_they_mean(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, status: int, body: object, error: type[AgentsError], words: str) -> None:
    server.fault("kubeatlas_register", "status", status=status, body=body)
    with pytest.raises(error, match=words):
        _register(plane, enrolment)


@pytest.mark.parametrize(("status", "body", "error"), [(400, {"message": "no"}, InvalidRequest), (404, "", InvalidRequest)])
def test_refusals_of_a_minting(
    plane: KubeAtlas, server: ReferenceServer, enrolment: Enrolment, status: int, body: object, error: type[AgentsError]) -> None:
    server.fault("kubeatlas_mint", "status", status=status, body=body)
    with pytest.raises(error):
        _register(plane, enrolment)
    assert "kubeatlas_register" not in server.counters()["by_route"]


# -- the guide's troubleshooting section ---------------------------------------------------------------------------------------------------


def test_connection_refused_names_the_server_and_what_to_check(connect: Connect) -> None:
    with pytest.raises(Unreachable, match="refuses connections: check that the server runs and that the port is right"):
        connect("https://127.0.0.1:1").probe()


def test_secrets_that_an_issuer_repeats_are_cut_out_of_its_words(plane: KubeAtlas, server: ReferenceServer) -> None:
    said = {"error": "invalid_grant", "error_description": f"not {PASSWORD} of {CLIENT_SECRET}"}
    server.fault("kubeatlas_oidc_token", "status", status=401, body=said)
    with pytest.raises(Rejected, match="not <secret> of <secret>"):
        plane.check_bootstrap()


def test_reasons_of_the_documented_troubleshooting_are_ones_that_the_code_gives() -> None:
    top = Path(__file__).parents[3]
    code = "".join(path.read_text() for path in (top / "plugins").rglob("*.py"))
    table = (top / "docs" / "kubeatlas.md").read_text().partition("## When it does not work")[2].partition("## Limits")[0]
    reasons = [reason for row in table.splitlines() if row.startswith("|") for reason in re.findall(r"`(\w+)`", row.split("|")[2])]
    assert len(reasons) > 20
    assert [reason for reason in reasons if f'"{reason}"' not in code] == []


def _access_token(directory: Path) -> Secret:
    """The token of the shared session, as the forks find it."""
    for path in (directory / "sessions").rglob("*"):
        if path.is_file():
            try:
                return Secret(json.loads(path.read_text())["session"]["token"])
            except (ValueError, KeyError):
                continue
    raise AssertionError("no session was kept")
