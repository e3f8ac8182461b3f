# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How each control plane rotates and retires a credential, against the reference servers over TLS, in both contracts."""

from __future__ import annotations

import typing as t
import uuid
from collections.abc import Iterator

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Ambiguous, Rejected
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Enrolment, Issued
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.oxmon import Oxmon
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.pganalytics import PgAnalytics
from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.ca import CertificateAuthority

COLLECTOR = Enrolment("primary-db", "3.2.0", hostname="db-prod-01.example.com")
METRICS = Enrolment("edge-7.example", description="rack 4")
PASSWORD = "canary-password-7f3e"
LOGIN = Bootstrap(username="ops", password=Secret(PASSWORD))
ADMIN = Bootstrap(registration_secret=Secret(DEFAULT_SECRET), username="ops", password=Secret(PASSWORD))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module", params=["documented", "shipped"])
def started(request: pytest.FixtureRequest, ca: CertificateAuthority) -> Iterator[ReferenceServer]:
    """Both control planes in one server."""
    pair = ca.server()
    arguments = [
        "--plane", "pganalytics", "--pganalytics-user", f"ops:{PASSWORD}", "--plane", "oxmon", "--oxmon-user", f"ops:{PASSWORD}",
        "--oxmon-require-agent-auth"]
    with ReferenceServer.start(str(request.param), tls=Tls(str(pair.cert), str(pair.key)), arguments=arguments) as server:
        yield server


@pytest.fixture
def server(started: ReferenceServer) -> ReferenceServer:
    started.reset()
    started.act("oxmon", "require_auth", on=True)
    return started


@pytest.fixture
def connect(ca: CertificateAuthority, server: ReferenceServer) -> Iterator[t.Callable[..., t.Any]]:
    """Make adapters; their connections are closed at the end."""
    made: list[t.Any] = []

    def one(kind: t.Any, bootstrap: Bootstrap) -> t.Any:
        transport = Transport(ca_cert=str(ca.ca_file), retries=0, timeout=10.0, grpc_endpoint=server.addresses["oxmon_grpc"])
        made.append(kind(Http(server.url, transport), bootstrap))
        return made[-1]

    yield one
    for plane in made:
        plane.http.close()


def _attempt() -> str:
    return str(uuid.uuid4())


def _records(server: ReferenceServer, name: str) -> list[dict[str, t.Any]]:
    return [record for record in server.agents() if record["name"] == name]


def test_a_collector_gets_a_new_token_and_pair_while_the_old_ones_stay_good_until_they_are_retired(
    server: ReferenceServer, connect: t.Callable[..., t.Any],
) -> None:
    plane: PgAnalytics = connect(PgAnalytics, ADMIN)
    old = plane.register(COLLECTOR, _attempt()).credential
    issued = plane.rotate(COLLECTOR, old, _attempt())
    assert issued is not None
    new = issued.credential
    # A token is the same text again when it is made in the same second.
    assert all(new.secrets[name] != old.secrets[name] for name in ("certificate", "private_key"))
    assert plane.prove(COLLECTOR, old).accepted
    assert plane.prove(COLLECTOR, new).accepted
    withdrawal = plane.retire(COLLECTOR, old, new)
    assert plane.prove(COLLECTOR, new).accepted
    assert [record["agent_id"] for record in _records(server, COLLECTOR.name)] == [new.agent_id]
    # A token that nobody can call back is named.
    assert any("token" in sentence for sentence in withdrawal.remains)
    assert plane.retire(COLLECTOR, old, new).removed == ()


def test_a_collector_whose_answer_was_lost_has_no_further_record_after_the_next_try(server: ReferenceServer, connect: t.Callable[..., t.Any]) -> None:
    plane: PgAnalytics = connect(PgAnalytics, ADMIN)
    old = plane.register(COLLECTOR, _attempt()).credential
    for route in ("pganalytics_rotate", "pganalytics_register"):
        try:
            server.fault(route, "commit-then-drop")
        except RuntimeError:  # the shipped server has no such call
            continue
    with pytest.raises(Ambiguous):
        plane.rotate(COLLECTOR, old, _attempt())
    server.clear_faults()
    issued = plane.rotate(COLLECTOR, old, _attempt())
    assert issued is not None
    plane.retire(COLLECTOR, old, issued.credential)
    assert [record["agent_id"] for record in _records(server, COLLECTOR.name)] == [issued.credential.agent_id]


def test_without_an_admin_login_the_older_record_is_named(server: ReferenceServer, connect: t.Callable[..., t.Any]) -> None:
    plane: PgAnalytics = connect(PgAnalytics, Bootstrap(registration_secret=Secret(DEFAULT_SECRET)))
    old = plane.register(COLLECTOR, _attempt()).credential
    issued = plane.rotate(COLLECTOR, old, _attempt())
    assert issued is not None
    withdrawal = plane.retire(COLLECTOR, old, issued.credential)
    assert withdrawal.removed == ()
    assert len(_records(server, COLLECTOR.name)) == (1 if issued.credential.agent_id == old.agent_id else 2)
    assert (issued.credential.agent_id == old.agent_id) is not any("needs a login" in sentence for sentence in withdrawal.remains)


def test_a_regenerated_token_kills_the_old_one_at_once(server: ReferenceServer, connect: t.Callable[..., t.Any]) -> None:
    plane: Oxmon = connect(Oxmon, LOGIN)
    old = plane.register(METRICS, _attempt()).credential
    issued: Issued | None = plane.rotate(METRICS, old, _attempt())
    assert issued is not None
    assert not plane.prove(METRICS, old).accepted
    assert plane.prove(METRICS, issued.credential).accepted
    assert len(_records(server, METRICS.name)) == 1
    assert not plane.capabilities.restore_old
    assert plane.retire(METRICS, old, issued.credential).removed == ()


def test_a_lost_answer_to_a_regeneration_is_made_up_for_by_another(server: ReferenceServer, connect: t.Callable[..., t.Any]) -> None:
    plane: Oxmon = connect(Oxmon, LOGIN)
    old = plane.register(METRICS, _attempt()).credential
    server.fault("oxmon_whitelist_token" if "oxmon_whitelist_token" in _routes(server) else "oxmon_whitelist_add", "commit-then-drop")
    with pytest.raises(Ambiguous):
        plane.rotate(METRICS, old, _attempt())
    issued = plane.rotate(METRICS, old, _attempt())
    assert issued is not None
    assert plane.prove(METRICS, issued.credential).accepted
    assert len(_records(server, METRICS.name)) == 1


def test_an_agent_that_is_not_whitelisted_is_not_enrolled_by_a_rotation(server: ReferenceServer, connect: t.Callable[..., t.Any]) -> None:
    plane: Oxmon = connect(Oxmon, LOGIN)
    old = plane.register(METRICS, _attempt()).credential
    server.forget(METRICS.name)
    with pytest.raises(Rejected) as refused:
        plane.rotate(METRICS, old, _attempt())
    assert refused.value.reason == "not_enrolled"
    assert not any(record.get("whitelisted", True) for record in _records(server, METRICS.name))


def _routes(server: ReferenceServer) -> str:
    """The routes that faults may name, out of the server's own words."""
    try:
        server.fault("no_such_route", "refuse")
    except RuntimeError as error:
        return str(error)
    return ""
