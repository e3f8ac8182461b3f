# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults and replays of the reference server: what a client meets, and what really happened behind it."""

from __future__ import annotations

import contextlib
import http.client

import pytest

from reference_server.client import ReferenceServer

from .conftest import Wire


def test_refuse_resets_the_connection_and_nothing_happened(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "refuse")
    with pytest.raises(ConnectionResetError):
        wire.register()
    assert server.agents() == []
    assert server.counters()["stacker"]["mutating"] == 0
    assert wire.register().status == 201


def test_commit_then_drop_resets_the_connection_after_the_record_exists(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "commit-then-drop")
    with pytest.raises(ConnectionResetError):
        wire.register()
    assert [agent["name"] for agent in server.agents()] == ["agent-1"]
    assert server.counters()["by_outcome"]["register"] == {"dropped": 1}


def test_commit_then_500_hides_the_record(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "commit-then-500")
    reply = wire.register()
    assert (reply.status, reply.json["message"]) == (500, "Internal Server Error")
    assert len(server.agents()) == 1


def test_truncate_sends_half_of_the_answer(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "truncate")
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.register()
    assert 0 < len(caught.value.partial) < 400
    assert len(server.agents()) == 1


def test_garbage_keeps_the_status_and_loses_the_json(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "garbage")
    reply = wire.register()
    assert (reply.status, reply.body[:6]) == (201, b"<html>")
    assert len(server.agents()) == 1


def test_slow_commits_and_answers_too_late(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "slow", seconds=30)
    body = {"deployment_hash": "agent-1", "agent_version": "1.0.0", "capabilities": ["docker"], "system_info": {}}
    with pytest.raises(TimeoutError):
        wire.call("POST", "/api/v1/agent/register", body, timeout=0.5)
    assert len(server.agents()) == 1


def test_status_answers_what_the_test_wrote(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "status", status=502, body={"x": 1}, headers={"X-Proxy": "yes"})
    reply = wire.register()
    assert (reply.status, reply.json, reply.headers["X-Proxy"]) == (502, {"x": 1}, "yes")
    assert server.agents() == []
    assert server.counters()["stacker"]["mutating"] == 1


def test_429_names_the_time_to_wait(wire: Wire, server: ReferenceServer) -> None:
    server.fault("any", "429", retry_after=7)
    reply = wire.register()
    assert (reply.status, reply.headers["Retry-After"]) == (429, "7")
    assert server.agents() == []


def test_missing_token_and_bad_api_version_spoil_only_the_answer(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "missing-token")
    assert set(wire.register("a").json["data"]["item"]) == {"agent_id", "dashboard_version", "supported_api_versions"}
    server.fault("register", "bad-api-version")
    assert wire.register("b").json["data"]["item"]["supported_api_versions"] == ["9.9"]
    assert len(server.agents()) == 2


def test_a_fault_strikes_as_often_as_asked_after_those_it_skips(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "status", times=2, skip=1, status=503)
    assert [wire.register(name).status for name in "abcd"] == [201, 503, 503, 201]
    assert [(fault["kind"], fault["fired"]) for fault in server.faults()] == [("status", 2)]


def test_a_fault_without_end_lasts_until_it_is_cleared(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "status", times=None, status=503)
    assert [wire.register(name).status for name in "abc"] == [503, 503, 503]
    server.clear_faults()
    assert wire.register("d").status == 201


def test_a_fault_can_be_meant_for_one_name(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "status", name="unlucky", status=503)
    assert [wire.register(name).status for name in ("lucky", "unlucky")] == [201, 503]


def test_a_fault_on_another_route_does_not_strike(wire: Wire, server: ReferenceServer) -> None:
    server.fault("notifications", "status", status=503)
    assert wire.register().status == 201


@pytest.mark.parametrize(("route", "kind"), [("register", "explode"), ("nowhere", "refuse")])
def test_an_unknown_fault_is_an_error_that_names_the_known_ones(server: ReferenceServer, route: str, kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"known: .*(status|register)"):
        server.fault(route, kind)


def test_a_paused_server_refuses_connections_and_comes_back_on_the_same_port(wire: Wire, server: ReferenceServer) -> None:
    server.pause()
    try:
        with pytest.raises(ConnectionRefusedError):
            wire.call("GET", "/health_check")
    finally:
        server.resume()
    assert wire.call("GET", "/health_check").status == 200


@pytest.mark.parametrize("fault", ["commit-then-drop", "commit-then-500", "truncate", "garbage", "missing-token"])
def test_the_same_idempotency_key_repeats_the_lost_answer(wire: Wire, server: ReferenceServer, fault: str) -> None:
    server.fault("register", fault)
    with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
        wire.register(key="attempt-1")
    replay = wire.register(key="attempt-1")
    assert (replay.status, replay.headers["Idempotency-Replayed"]) == (201, "true")
    assert len(replay.json["data"]["item"]["agent_token"]) == 86
    assert [agent["agent_id"] for agent in server.agents()] == [replay.json["data"]["item"]["agent_id"]]


def test_another_idempotency_key_is_another_request(wire: Wire, contract: str) -> None:
    wire.register(key="attempt-1")
    assert wire.register(key="attempt-2").status == (409 if contract == "documented" else 200)


def test_an_idempotency_key_belongs_to_one_record(wire: Wire, server: ReferenceServer) -> None:
    wire.register("a", key="attempt-1")
    assert wire.register("b", key="attempt-1").status == 422
    assert [agent["name"] for agent in server.agents()] == ["a"]


def test_a_failure_is_not_replayed(wire: Wire, contract: str) -> None:
    # A version both contracts refuse: no semantic version, and too wide for the column.
    refused = wire.register(key="attempt-1", agent_version="v" * 51)
    assert refused.status == (400 if contract == "documented" else 500)
    assert wire.register(key="attempt-1").status == 201


def test_a_scripted_answer_does_not_use_up_an_idempotency_key(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "status", status=503)
    assert [wire.register(key="attempt-1").status for _try in range(2)] == [503, 201]


def test_a_control_plane_that_lost_a_record_lost_its_replays_too(wire: Wire, server: ReferenceServer) -> None:
    first = wire.register(key="attempt-1").json["data"]["item"]
    server.forget("agent-1")
    again = wire.register(key="attempt-1")
    assert "Idempotency-Replayed" not in again.headers
    assert again.json["data"]["item"]["agent_id"] != first["agent_id"]
