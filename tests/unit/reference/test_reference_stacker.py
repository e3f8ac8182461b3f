# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference Stacker, in both contracts, over TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from reference_server.core import Answer, Clock, Database, Journal, RefusalError, Replays, Shared
from reference_server.counters import Counters
from reference_server.faults import FaultBoard
from reference_server.stacker import Config, Registration, ShippedStacker
from reference_server.vault import StoreVault

from .conftest import NOTIFICATIONS, REGISTER, USER, Wire, bearer, eventually

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


def registered(wire: Wire, name: str = "agent-1") -> dict[str, Any]:
    """Register, and wait until the credential works (the shipped server stores it in the background)."""
    reply = wire.register(name)
    assert reply.status == 201
    item: dict[str, Any] = reply.json["data"]["item"]
    eventually(lambda: wire.prove(item, name).status == 200)
    return item


def test_a_new_agent_gets_the_four_keys_and_a_token_of_86_characters(wire: Wire, server: ReferenceServer) -> None:
    reply = wire.register()
    item = reply.json["data"]["item"]
    assert reply.status == 201
    assert set(item) == {"agent_id", "agent_token", "dashboard_version", "supported_api_versions"}
    assert len(item["agent_token"]) == 86
    record = server.agent("agent-1")
    assert (record["agent_id"], record["version"], record["last_heartbeat"]) == (item["agent_id"], "1.0.0", None)
    assert item["agent_token"] not in json.dumps(server.agents())


@documented
def test_documented_registration_says_so(wire: Wire) -> None:
    payload = wire.register().json
    assert (payload["status"], payload["message"]) == (201, "Agent registered")


@documented
def test_documented_second_registration_is_a_conflict_and_changes_nothing(wire: Wire, server: ReferenceServer) -> None:
    wire.register()
    reply = wire.register(agent_version="2.0.0")
    assert reply.status == 409
    assert reply.json == {"data": {}, "status": 409, "message": "Agent already registered for this deployment"}
    assert server.agent("agent-1")["version"] == "1.0.0"


@shipped
def test_shipped_second_registration_repeats_id_and_token_and_updates_the_rest(wire: Wire, server: ReferenceServer) -> None:
    first = registered(wire)
    reply = wire.register(agent_version="2.0.0", capabilities=[])
    assert (reply.status, reply.json) == (200, {"data": {"item": first}})
    record = server.agent("agent-1")
    assert (record["version"], record["capabilities"]) == ("2.0.0", [])


@documented
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"deployment_hash": ""}, "deployment_hash"),
        ({"deployment_hash": "   "}, "deployment_hash"),
        ({"deployment_hash": "a" * 256}, "deployment_hash"),
        ({"deployment_hash": "a/b"}, "deployment_hash"),
        ({"deployment_hash": 7}, "deployment_hash"),
        ({"agent_version": "1.0"}, "agent_version"),
        ({"agent_version": "v1.0.0"}, "agent_version"),
        ({"capabilities": []}, "capabilities"),
        ({"capabilities": "docker"}, "capabilities"),
        ({"capabilities": ["Docker"]}, "capabilities"),
        ({"capabilities": ["d" * 33]}, "capabilities"),
        ({"capabilities": [""]}, "capabilities"),
        ({"system_info": []}, "system_info"),
        ({"system_info": None}, "system_info"),
        ({"public_key": "ssh-rsa AAAA"}, "public_key"),
    ],
)
def test_documented_rules_are_enforced(wire: Wire, server: ReferenceServer, changes: dict[str, Any], told: str) -> None:
    reply = wire.register(**changes)
    payload = reply.json
    assert (reply.status, payload["status"], payload["data"]) == (400, 400, {})
    assert told in payload["message"]
    assert server.agents() == []


@documented
def test_documented_limits_are_inclusive(wire: Wire) -> None:
    good: dict[str, Any] = {"capabilities": ["c" * 32], "agent_version": "2.0.0-rc1", "public_key": "-----BEGIN PUBLIC KEY-----\nMII\n"}
    assert wire.register("a" * 255, **good).status == 201


@documented
@pytest.mark.parametrize("missing", ["deployment_hash", "agent_version", "capabilities", "system_info"])
def test_documented_missing_fields_are_named(wire: Wire, missing: str) -> None:
    body = {"deployment_hash": "h", "agent_version": "1.0.0", "capabilities": ["docker"], "system_info": {}}
    del body[missing]
    reply = wire.call("POST", REGISTER, body)
    assert (reply.status, reply.json["message"]) == (400, f"Invalid JSON: missing field '{missing}'")


@shipped
def test_shipped_server_validates_nothing_but_the_widths_of_its_columns(wire: Wire) -> None:
    assert wire.register("", agent_version="x", capabilities=["Key=VALUE"], system_info=[None]).status == 201
    assert wire.register("a" * 128, agent_version="v" * 50).status == 201
    for reply in (wire.register("a" * 129), wire.register("b", agent_version="v" * 51)):
        assert (reply.status, reply.headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
        assert reply.json == {"message": "Failed to create agent"}
    assert wire.register("a" * 128, agent_version="v" * 51).json == {"message": "Failed to update agent"}


@shipped
def test_shipped_parse_errors_are_text_and_not_always_json(wire: Wire) -> None:
    missing = wire.call("POST", REGISTER, {"deployment_hash": "h"})
    assert (missing.status, missing.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
    assert missing.json["kind"] == "deserialize"
    assert "missing field `capabilities`" in missing.json["msg"]
    quoted = wire.register(capabilities="docker")
    assert quoted.status == 400
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(quoted.body)
    assert wire.call("POST", REGISTER, b"{}", {"Content-Type": "text/plain"}).json["kind"] == "other"


def test_two_first_registrations_at_once_leave_one_record_as_shipped() -> None:
    database = Database(None)
    shared = Shared(Clock(), database, FaultBoard(), Counters(["stacker"]), Replays(database), Journal(None))
    plane = ShippedStacker(shared, Config(), StoreVault(database))
    registration = Registration("twin", "1.0.0", ["docker"], {})

    async def both() -> list[Any]:
        results = await asyncio.gather(plane.credentials_for(registration), plane.credentials_for(registration), return_exceptions=True)
        await plane.close()
        return list(results)

    refused = [result for result in asyncio.run(both()) if isinstance(result, RefusalError)]
    assert [error.answer for error in refused] == [Answer.of_text(500, '{"message": "Failed to create agent"}')]
    assert [agent["name"] for agent in plane.agents()] == ["twin"]


def test_the_proof_changes_nothing_and_the_poll_is_the_heartbeat(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    reply = wire.prove(item)
    assert (reply.status, reply.item) == (200, {"notifications": []})
    assert wire.call("GET", "/api/v1/agent/deployments/agent-1", headers=bearer(item)).item["agent"]["status"] == "offline"
    assert server.agent("agent-1")["last_heartbeat"] is None
    wire.call("POST", "/api/v1/agent/commands/enqueue", {"deployment_hash": "agent-1", "command_type": "noop"}, wire.login())
    assert wire.call("GET", "/api/v1/agent/commands/wait/agent-1", headers=bearer(item)).status == 200
    assert server.agent("agent-1")["last_heartbeat"] is not None


def test_an_agent_is_offline_when_its_heartbeat_is_older_than_300_seconds(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    wire.call("POST", "/api/v1/agent/commands/enqueue", {"deployment_hash": "agent-1", "command_type": "noop"}, wire.login())
    wire.call("GET", "/api/v1/agent/commands/wait/agent-1", headers=bearer(item))
    snapshot = "/api/v1/agent/deployments/agent-1"
    assert wire.call("GET", snapshot, headers=bearer(item)).item["agent"]["status"] == "online"
    server.clock(301)
    assert wire.call("GET", snapshot, headers=bearer(item)).item["agent"]["status"] == "offline"


def test_a_wrong_token_is_refused_in_the_manner_of_the_contract(wire: Wire, contract: str) -> None:
    reply = wire.prove(registered(wire), token="wrong")
    if contract == "documented":
        assert (reply.status, reply.json["status"], reply.json["data"]) == (401, 401, {})
    else:
        assert (reply.status, reply.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
        assert reply.json == {"message": "Invalid agent token"}


def test_an_agent_may_not_read_another_deployment(wire: Wire) -> None:
    reply = wire.prove(registered(wire), name="agent-2")
    assert (reply.status, reply.json["message"]) == (403, "Not authorized for this deployment")


@shipped
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X-Agent-Id": "42"}, "Invalid agent ID format"),
        ({"X-Agent-Id": "3f0b1a52-5d1c-4a8f-9f7e-0d2f5a1b6c7d"}, "Authorization header required for agent"),
        ({"X-Agent-Id": "3f0b1a52-5d1c-4a8f-9f7e-0d2f5a1b6c7d", "Authorization": "Basic eA=="}, "Invalid Authorization header format"),
        ({"X-Agent-Id": "3f0b1a52-5d1c-4a8f-9f7e-0d2f5a1b6c7d", "Authorization": "Bearer x"}, "Agent not found"),
        ({"Authorization": "Bearer x"}, "401 Unauthorized"),
        ({"Authorization": "Basic eA=="}, "Bearer missing scheme"),
    ],
)
def test_shipped_authentication_failures_are_400_even_for_register(wire: Wire, headers: dict[str, str], message: str) -> None:
    for method, path in (("GET", NOTIFICATIONS), ("POST", REGISTER), ("GET", "/api/v1/commands")):
        reply = wire.call(method, path, headers=headers)
        assert (reply.status, reply.json) == (400, {"message": message})


@shipped
def test_shipped_callers_without_a_role_get_403_and_no_words(wire: Wire) -> None:
    assert (wire.call("GET", NOTIFICATIONS).status, wire.call("GET", NOTIFICATIONS).body) == (403, b"")


@shipped
def test_shipped_server_believes_an_unsigned_jwt(wire: Wire, server: ReferenceServer) -> None:
    def token(exp: int) -> str:
        claims = base64.urlsafe_b64encode(json.dumps({"role": "group_admin", "email": "a@b.c", "exp": exp}).encode()).decode().rstrip("=")
        return f"Bearer e30.{claims}.e30"

    registered(wire)
    snapshot = "/api/v1/agent/deployments/agent-1"
    assert wire.call("GET", snapshot, headers={"Authorization": token(4102444800)}).status == 200
    assert wire.call("GET", snapshot, headers={"Authorization": token(1)}).status == 400


@documented
def test_documented_bearer_alone_is_enough_and_the_command_list_is_a_heartbeat(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    alone = {"Authorization": f"Bearer {item['agent_token']}"}
    assert wire.call("GET", NOTIFICATIONS, headers=alone).status == 200
    assert server.agent("agent-1")["last_heartbeat"] is None
    assert wire.call("GET", "/api/v1/commands", headers=alone).json == {"data": {"list": []}, "status": 200, "message": "OK"}
    assert server.agent("agent-1")["last_heartbeat"] is not None


def test_a_command_goes_from_the_user_to_the_agent_and_back_once(wire: Wire) -> None:
    item, session = registered(wire), wire.login()
    body = {"deployment_hash": "agent-1", "command_type": "docker_ps", "parameters": {"all": True}}
    assert wire.call("POST", "/api/v1/agent/commands/enqueue", body, session).status == 201
    command = wire.call("GET", "/api/v1/agent/commands/wait/agent-1", headers=bearer(item)).item
    assert (command["type"], command["status"], command["parameters"]) == ("docker_ps", "sent", {"all": True})
    report = {
        "command_id": command["command_id"],
        "deployment_hash": "agent-1",
        "status": "completed",
        "completed_at": "2026-01-01T00:00:00Z",
    }
    assert wire.call("POST", "/api/v1/agent/commands/report", report, bearer(item)).item["accepted"] is True
    unknown = {**report, "command_id": "cmd_none"}
    assert wire.call("POST", "/api/v1/agent/commands/report", unknown, bearer(item)).status == 404
    shown = wire.call("GET", "/api/v1/agent/deployments/agent-1", headers=session).item["commands"]
    assert [entry["status"] for entry in shown] == ["completed"]


def test_link_hands_out_credentials_of_an_owned_deployment_only(wire: Wire, server: ReferenceServer) -> None:
    session = wire.call("POST", "/api/v1/agent/login", {"email": USER[0], "password": USER[1]}).json["session_token"]
    server.own("mine")
    server.own("theirs", "somebody@example.test")

    def link(name: str, token: str) -> int:
        body = {"session_token": token, "deployment_id": name, "server_fingerprint": {}}
        return wire.call("POST", "/api/v1/agent/link", body).status

    assert [link("mine", session), link("theirs", session), link("unknown", session), link("mine", "x")] == [200, 403, 404, 403]
    assert server.agent("mine")["capabilities"] == ["status_panel"]


def test_a_wrong_password_is_refused(wire: Wire, server: ReferenceServer) -> None:
    reply = wire.call("POST", "/api/v1/agent/login", {"email": USER[0], "password": "guess"})
    assert (reply.status, reply.json["message"]) == (403, "Authentication failed (401 Unauthorized)")
    assert server.counters()["stacker"]["login"] == 1


def test_an_unknown_deployment_is_shown_without_an_agent(wire: Wire) -> None:
    reply = wire.call("GET", "/api/v1/agent/deployments/nobody", headers=wire.login())
    assert (reply.status, reply.item["agent"]) == (200, None)


def test_capabilities_of_an_agent_are_told_to_itself(wire: Wire) -> None:
    item = registered(wire)
    assert wire.call("GET", "/api/v1/deployments/agent-1/capabilities", headers=bearer(item)).item["capabilities"] == ["docker"]
    assert wire.call("GET", "/api/v1/deployments/agent-2/capabilities", headers=bearer(item)).status == 403


def test_health_and_metrics_need_no_credential(wire: Wire) -> None:
    assert wire.call("GET", "/health_check").json["status"] == "healthy"
    registered(wire)
    assert b"stacker_agents 1\n" in wire.call("GET", "/metrics").body


def test_requests_are_counted_by_class(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    server.reset_counters()
    wire.register("agent-2")
    wire.prove(item)
    wire.login()
    wire.call("POST", "/api/v1/agent/commands/report", {}, bearer(item))
    counters = server.counters()
    assert counters["stacker"] == {"mutating": 1, "login": 1, "read": 1, "agent": 1}
    assert counters["by_route"] == {"register": 1, "notifications": 1, "login": 1, "report": 1}
    assert counters["by_outcome"]["register"] == {"201": 1}


def test_checking_a_token_leaves_no_trace(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    server.reset_counters()
    assert server.accepts("agent-1", item["agent_token"])
    assert not server.accepts("agent-1", "other")
    assert not server.accepts("agent-2", item["agent_token"])
    assert server.agent("agent-1")["last_heartbeat"] is None
    assert server.counters()["stacker"]["read"] == 0


def test_a_token_that_drifts_is_no_longer_accepted(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    server.drift("agent-1")
    assert wire.prove(item).status == (401 if "data" in wire.prove(item).json else 400)
    with pytest.raises(RuntimeError, match="404"):
        server.drift("agent-2")


def test_a_forgotten_agent_is_refused_and_can_register_anew(wire: Wire, server: ReferenceServer) -> None:
    item = registered(wire)
    server.forget("agent-1")
    assert wire.prove(item).status in (400, 401)
    again = wire.register()
    assert again.status == 201
    assert again.json["data"]["item"]["agent_id"] != item["agent_id"]


def test_the_date_header_follows_the_skewed_clock(wire: Wire, server: ReferenceServer) -> None:
    server.clock(-86400 * 3650)
    assert "2016" in wire.call("GET", "/health_check").headers["Date"]


def test_releases_are_served_and_nothing_else_is(wire: Wire) -> None:
    assert wire.call("GET", "/releases/agent-1.0.0").body == b"\x00release\xff"
    assert wire.call("GET", "/releases/..%2f..%2fetc%2fpasswd").status == 404
    assert wire.call("GET", "/releases/none").status == 404


def test_records_survive_a_killed_server_and_the_log_holds_no_secret(tls: Tls, trust: ssl.SSLContext, contract: str) -> None:
    with ReferenceServer.start(contract, tls=tls) as server:
        wire = Wire(server.url, trust)
        item = registered(wire)
        server.kill()
        server.restart()
        assert wire.prove(item).status == 200
        assert server.log[0]["path"] == REGISTER
        assert {"time", "method", "path", "status", "class"} == set(server.log[0])
        assert item["agent_token"] not in json.dumps(server.log)
        assert {path.stat().st_mode & 0o077 for path in server.state_files if path.name == "state.sqlite"} == {0}


def test_absent_features_answer_404(trust: ssl.SSLContext, tls: Tls, contract: str) -> None:
    arguments = ["--without", "notifications,deployments", "--api-versions", "1.0,2.0", "--dashboard-version", "3.1.4"]
    with ReferenceServer.start(contract, tls=tls, arguments=arguments) as server:
        wire = Wire(server.url, trust)
        item = wire.register().json["data"]["item"]
        assert (item["supported_api_versions"], item["dashboard_version"]) == (["1.0", "2.0"], "3.1.4")
        eventually(lambda: server.accepts("agent-1", item["agent_token"]))
        assert wire.prove(item).status == 404
        assert wire.call("GET", "/api/v1/agent/deployments/agent-1", headers=bearer(item)).status == 404


def test_an_old_tls_server_is_refused_by_a_client_with_a_floor(tls: Tls, trust: ssl.SSLContext, ca: Any) -> None:
    relaxed = ssl.create_default_context(cafile=str(ca.ca_file))
    relaxed.set_ciphers("DEFAULT:@SECLEVEL=0")
    relaxed.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with ReferenceServer.start("documented", tls=Tls(tls.cert, tls.key, max_version="1.1")) as server:
        with pytest.raises(ssl.SSLError):
            Wire(server.url, trust).call("GET", "/health_check")
        assert Wire(server.url, relaxed).call("GET", "/health_check").status == 200


def test_client_certificates_are_asked_for_and_checked(tls: Tls, ca: Any) -> None:
    pair = ca.client("agent-1")
    with ReferenceServer.start("documented", tls=Tls(tls.cert, tls.key, client_ca=str(ca.ca_file))) as server:
        plain, known = (ssl.create_default_context(cafile=str(ca.ca_file)) for _context in range(2))
        known.load_cert_chain(str(pair.cert), str(pair.key))
        assert [Wire(server.url, context).call("GET", "/health_check").status for context in (plain, known)] == [200, 200]


def test_a_bad_set_up_is_one_sentence(tls: Tls) -> None:
    with pytest.raises(RuntimeError, match="--vault-url needs --vault-token-file"):
        ReferenceServer.start("shipped", arguments=["--vault-url", "https://127.0.0.1:1"])
    with pytest.raises(RuntimeError, match="is not HOST:PORT"):
        ReferenceServer.start("shipped", listen=["localhost"])
