# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's part of the gate tells the ways of being unwell apart, and is not fooled by an agent that only looks well."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.muster.agents.plugins.module_utils._local_probe import (
    Check,
    Expectation,
    Health,
    Listener,
    LocalState,
    Probe,
    ProbeError,
    UnitState,
    find_listeners,
    get_health,
    judge,
    parse_units,
    unit_name,
    wait_until_good,
    worst,
)
from ansible_collections.muster.agents.plugins.modules import agent_probe

NOW = 1000.0  # seconds on the monotonic clock
URL = "http://127.0.0.1:5000/health"
UP = UnitState(
    "status-panel.service", load_state="loaded", active_state="active", sub_state="running", result="success", service_type="simple", main_pid=42,
    uptime=60.0, control_group="/system.slice/status-panel.service")
WELL = {"status": "ok", "token_age_seconds": 30, "last_refresh_ok": True}
OURS = Listener("127.0.0.1", 42, "status-panel", ours=True, uptime=60.0)


def block(**changes: object) -> str:
    """What ``systemctl show`` prints for one unit that runs since 60 s."""
    values = {
        "Id": "status-panel.service", "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success", "Type": "simple",
        "ExecMainCode": 0, "ExecMainStatus": 0, "MainPID": 42, "NRestarts": 0, "ExecMainStartTimestampMonotonic": int((NOW - 60) * 1e6),
        "ExecMainExitTimestampMonotonic": 0, "ActiveEnterTimestampMonotonic": int((NOW - 60) * 1e6),
        "ControlGroup": "/system.slice/status-panel.service", **changes,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def ended(lived: float, **changes: object) -> str:
    """The same for one whose process started 10 s ago and ended with status 3 after *lived* seconds."""
    start = NOW - 10
    return block(**{
        "ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3, "MainPID": 0,
        "ExecMainStartTimestampMonotonic": int(start * 1e6), "ExecMainExitTimestampMonotonic": int((start + lived) * 1e6), **changes})


def judged(text: str, first_restarts: int | None = None, waited: float = 0.0, **expected: t.Any) -> Check:
    """The verdict on one unit, as printed by systemctl."""
    (unit,) = parse_units(text, ["status-panel"], NOW)
    first = {unit.name: unit.restarts if first_restarts is None else first_restarts}
    gone = {unit.name: unit} if unit.lived >= 0 and not unit.running else {}
    state = LocalState((unit,), first_restarts=first, ended=gone, waited=waited)
    (check, _health) = judge(Expectation(units=("status-panel",), **expected), state)
    return check


def documented(document: t.Mapping[str, t.Any] | None, *, code: int = 200, uptime: float = 60.0, **expected: t.Any) -> dict[str, Check]:
    """The verdicts on a health document of an agent whose process is *uptime* seconds old, by name."""
    unit, listener = replace(UP, uptime=uptime), replace(OURS, uptime=uptime)
    health = Health(code, None if document is None else dict(document))
    state = LocalState((unit,), health, (listener,), {unit.name: 0})
    return {check.name: check for check in judge(Expectation(units=(unit.name,), health_url=URL, **expected), state)}


class TestUnits:
    def test_a_running_unit_is_good(self) -> None:
        assert judged(block()).ok

    @pytest.mark.parametrize(("text", "reason"), [
        (block(LoadState="not-found", ActiveState="inactive", MainPID=0), "unit_not_found"),
        (block(LoadState="masked", ActiveState="inactive", MainPID=0), "unit_masked"),
        (block(LoadState="bad-setting", ActiveState="inactive", MainPID=0), "unit_failed"),
        (ended(0.1), "unit_exits"),
        (ended(0.1, ActiveState="inactive", SubState="dead", Result="success", ExecMainStatus=0), "unit_exits"),
        (ended(0.1, ActiveState="activating", SubState="auto-restart"), "unit_exits"),
        (ended(8.0), "unit_failed"),
        (ended(8.0, ActiveState="activating", SubState="auto-restart"), "unit_failed"),
        (ended(8.0, ActiveState="inactive", SubState="dead", Result="success"), "unit_inactive"),
        (block(ActiveState="inactive", SubState="dead", MainPID=0, ExecMainStartTimestampMonotonic=0), "unit_inactive"),
        (block(ActiveState="activating", SubState="start"), "unit_starting"),
        (block(ExecMainStartTimestampMonotonic=int((NOW - 0.2) * 1e6)), "unit_starting"),
        (block(MainPID=0, SubState="exited"), "unit_starting"),
    ])
    def test_each_way_of_being_down_has_its_reason(self, text: str, reason: str) -> None:
        check = judged(text)
        assert (check.ok, check.reason) == (False, reason)

    def test_restarts_during_the_wait_are_flapping(self) -> None:
        check = judged(ended(7.0, ActiveState="activating", SubState="auto-restart", NRestarts=3), first_restarts=1)
        assert (check.ok, check.reason) == (False, "unit_flapping")
        assert "2 restarts during the wait" in check.detail

    @pytest.mark.parametrize(("restarts", "waited", "reason"), [(3, 9.0, "unit_exits"), (3, 11.0, "unit_flapping"), (2, 1.0, "unit_flapping")])
    def test_a_unit_never_met_between_two_lives_is_told_by_how_many_there_were(self, restarts: int, waited: float, reason: str) -> None:
        recent = block(NRestarts=restarts, ExecMainStartTimestampMonotonic=int((NOW - 3) * 1e6))
        assert judged(recent, first_restarts=1, waited=waited).reason == reason

    def test_a_unit_that_systemd_restarted_must_stay_up_for_longer(self) -> None:
        recent = block(NRestarts=1, ExecMainStartTimestampMonotonic=int((NOW - 3) * 1e6))
        assert judged(recent).reason == "unit_flapping"
        assert judged(block(NRestarts=1, ExecMainStartTimestampMonotonic=int((NOW - 6) * 1e6))).ok

    def test_settle_is_how_long_a_fresh_unit_must_be_up(self) -> None:
        fresh = block(ExecMainStartTimestampMonotonic=int((NOW - 3) * 1e6))
        assert judged(fresh, settle=1.0).ok
        assert judged(fresh, settle=5.0).reason == "unit_starting"

    @pytest.mark.parametrize("changes", [
        {"Type": "oneshot", "SubState": "exited", "MainPID": 0},
        {"ActiveState": "reloading", "SubState": "reload"},
        {"ActiveState": "refreshing", "SubState": "refresh-extensions"},
    ])
    def test_other_ways_of_being_up_are_good_too(self, changes: dict[str, object]) -> None:
        assert judged(block(**changes)).ok

    def test_a_death_by_signal_is_named_as_one(self) -> None:
        assert "killed by signal 9" in judged(ended(8.0, ExecMainCode=2, ExecMainStatus=9, Result="signal")).detail

    def test_only_what_nobody_will_start_is_final(self) -> None:
        assert judged(ended(8.0)).final
        assert not judged(ended(8.0, Job=17)).final
        assert not judged(ended(8.0, ActiveState="activating", SubState="auto-restart")).final

    def test_blocks_belong_to_the_names_in_order(self) -> None:
        text = f"{block()}\n{block(ActiveState='inactive', MainPID=0)}"
        first, second = parse_units(text, ["status-panel", "status-panel-api.service"], NOW)
        assert (first.name, first.active_state, first.uptime) == ("status-panel.service", "active", 60.0)
        assert (second.name, second.active_state, second.uptime) == ("status-panel-api.service", "inactive", -1.0)

    def test_a_unit_that_systemctl_left_out_is_not_found(self) -> None:
        assert [unit.load_state for unit in parse_units(block(), ["a", "b"], NOW)] == ["loaded", "not-found"]

    def test_names_get_the_suffix_that_systemctl_would_add(self) -> None:
        assert [unit_name(name) for name in ("a", "a.b", "a.timer")] == ["a.service", "a.b.service", "a.timer"]

    def test_start_is_told_on_the_hosts_clock(self) -> None:
        told = UP.as_result(5000.0)
        assert (told["started"], told["uptime"]) == (4940.0, 60.0)
        assert replace(UP, uptime=-1.0).as_result(5000.0)["started"] is None


class TestHealthDocument:
    def test_a_good_document_passes_every_check(self) -> None:
        assert all(check.ok and not check.skipped for check in documented(WELL, vault_enabled=True).values())

    @pytest.mark.parametrize(("document", "name", "reason"), [
        ({**WELL, "status": "degraded"}, "health", "status_not_ok"),
        ({**WELL, "last_refresh_ok": False}, "refresh", "refresh_failed"),
        ({**WELL, "last_refresh_ok": None}, "refresh", "refresh_failed"),
        ({**WELL, "token_age_seconds": 601}, "token age", "token_stale"),
        (None, "health", "status_not_ok"),
    ])
    def test_each_bad_value_has_its_reason(self, document: dict[str, t.Any] | None, name: str, reason: str) -> None:
        check = documented(document, vault_enabled=True)[name]
        assert (check.ok, check.reason) == (False, reason)

    def test_a_bad_http_status_is_not_ok_whatever_the_document_says(self) -> None:
        assert documented(WELL, code=503)["health"].reason == "status_not_ok"

    def test_no_refresh_is_right_where_vault_is_off(self) -> None:
        checks = documented({"status": "ok", "token_age_seconds": 90000, "last_refresh_ok": None})
        assert all(check.ok for check in checks.values())
        assert checks["refresh"].skipped
        assert checks["token age"].skipped

    def test_a_failed_refresh_does_not_matter_where_vault_is_off(self) -> None:
        assert documented({**WELL, "last_refresh_ok": False})["refresh"].skipped

    @pytest.mark.parametrize("age", [7200, 7204, 7196])
    def test_an_age_that_counts_from_the_start_is_not_judged_and_says_so(self, age: int) -> None:
        check = documented({**WELL, "token_age_seconds": age}, uptime=7200.0, vault_enabled=True)["token age"]
        assert check.ok
        assert check.skipped
        assert "counts token_age_seconds" in check.detail

    @pytest.mark.parametrize(("age", "refreshed"), [(7190, True), (7200, False)])
    def test_an_old_token_of_an_agent_that_counts_from_its_refresh_is_stale(self, age: int, refreshed: bool) -> None:
        check = documented({**WELL, "token_age_seconds": age, "last_refresh_ok": refreshed}, uptime=7200.0, vault_enabled=True)["token age"]
        assert (check.ok, check.reason) == (False, "token_stale")

    def test_the_age_is_compared_with_the_process_that_answers(self) -> None:
        daemon, api = replace(UP, uptime=9000.0), replace(UP, name="status-panel-api.service", uptime=7200.0)
        health = Health(200, {**WELL, "token_age_seconds": 9000})
        state = LocalState((daemon, api), health, (replace(OURS, uptime=7200.0),))
        checks = {check.name: check for check in judge(Expectation(("status-panel",), URL, vault_enabled=True), state)}
        assert checks["token age"].reason == "token_stale"

    def test_the_limit_is_the_operators(self) -> None:
        assert documented({**WELL, "token_age_seconds": 700}, token_age_max=900.0)["token age"].ok
        assert not documented({**WELL, "token_age_seconds": 700}, token_age_max=600.0)["token age"].ok

    def test_what_another_agents_document_lacks_is_not_judged(self) -> None:
        checks = documented({"status": "ok"}, vault_enabled=True)
        assert all(check.ok for check in checks.values())
        assert [name for name, check in checks.items() if check.skipped] == ["refresh", "token age"]

    def test_the_wanted_status_can_be_another_or_none(self) -> None:
        assert documented({"status": "UP"}, health_status="UP")["health"].ok
        assert documented(None, health_status="")["health"].ok

    def test_without_a_url_health_is_named_as_not_judged(self) -> None:
        (_unit, health) = judge(Expectation((UP.name,)), LocalState((UP,)))
        assert (health.name, health.ok, health.skipped) == ("health", True, True)


class TestWorst:
    def test_a_taken_port_explains_an_agent_that_exits(self) -> None:
        checks = [Check("unit", False, "", "unit_exits"), Check("port", False, "", "port_taken"), Check("health", False, "", "no_answer")]
        found = worst(checks)
        assert found is not None
        assert found.reason == "port_taken"

    def test_a_missing_unit_explains_all(self) -> None:
        found = worst([Check("port", False, "", "port_taken"), Check("unit", False, "", "unit_not_found")])
        assert found is not None
        assert found.reason == "unit_not_found"

    def test_nothing_is_wrong_when_all_is_good(self) -> None:
        assert worst([Check("unit", True, "")]) is None


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class TestWaiting:
    def wait(self, verdicts: t.Iterable[list[Check]], timeout: float) -> tuple[list[Check], FakeTime]:
        time, looks = FakeTime(), iter(verdicts)
        return wait_until_good(lambda: next(looks), timeout, clock=time.clock, sleep=time.sleep), time

    def test_it_stops_at_the_first_good_look(self) -> None:
        bad, good = [Check("unit", False, "")], [Check("unit", True, "")]
        checks, time = self.wait([bad, bad, good], 20)
        assert checks == good
        assert time.naps == pytest.approx([0.1, 0.125])

    def test_pauses_grow_to_a_fifth_of_a_second_and_end_with_the_time(self) -> None:
        checks, time = self.wait(([Check("unit", False, "")] for _ in range(100)), 3)
        assert not checks[0].ok
        assert max(time.naps) == 0.2
        assert sum(time.naps) == pytest.approx(3)

    def test_without_time_it_looks_once(self) -> None:
        _checks, time = self.wait([[Check("unit", False, "")]], 0)
        assert time.naps == []

    def test_a_final_verdict_is_confirmed_once_and_not_waited_for(self) -> None:
        final, good = [Check("unit", False, "", final=True)], [Check("unit", True, "")]
        checks, time = self.wait([final, final, good], 20)
        assert (checks, len(time.naps)) == (final, 1)
        assert self.wait([final, good], 20)[0] == good


@contextmanager
def serving(body: bytes, *, code: int = 200, headers: t.Mapping[str, str] | None = None) -> Iterator[int]:
    """A server on loopback that answers each GET like this; yields its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TestAsking:
    def test_a_document_is_read(self) -> None:
        with serving(json.dumps(WELL).encode()) as port:
            assert get_health(f"http://127.0.0.1:{port}/health") == Health(200, WELL)

    def test_a_redirect_is_an_answer_and_is_not_followed(self) -> None:
        with serving(b"", code=302, headers={"Location": "http://127.0.0.1:1/"}) as port:
            assert get_health(f"http://127.0.0.1:{port}/health").code == 302

    def test_a_proxy_in_the_environment_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with serving(b"{}") as port:
            assert get_health(f"http://127.0.0.1:{port}/health").code == 200

    def test_an_endless_answer_is_cut(self) -> None:
        with serving(b"x" * 200_000) as port:
            health = get_health(f"http://127.0.0.1:{port}/health")
        assert health.code == 0
        assert "more than" in health.error

    def test_silence_is_no_answer(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            assert get_health(f"http://127.0.0.1:{listener.getsockname()[1]}/health", 0.1) == Health(error="no answer in time")

    def test_nobody_there_is_no_answer(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            assert get_health(f"http://127.0.0.1:{closed.getsockname()[1]}/health") == Health(error="nobody listens there")

    def test_tls_to_a_plain_port_is_no_answer(self) -> None:
        with serving(b"{}") as port:
            assert get_health(f"https://127.0.0.1:{port}/health").error.startswith("TLS failed")

    def test_what_is_no_json_object_has_no_document(self) -> None:
        for body in (b"ok", b"[1]", b"\xff"):
            with serving(body) as port:
                assert get_health(f"http://127.0.0.1:{port}/") == Health(200)


class TestListeners:
    def find(self, port: int, **unit: t.Any) -> Listener:
        (listener,) = find_listeners(f"http://127.0.0.1:{port}/health", [replace(UP, **unit)])
        return listener

    def test_the_real_holder_is_found(self) -> None:
        with serving(b"{}") as port:
            listener = self.find(port, main_pid=os.getpid())
        assert (listener.address, listener.pid, listener.ours) == ("127.0.0.1", os.getpid(), True)
        assert listener.command == Path("/proc/self/comm").read_text().strip()
        assert listener.uptime >= 0

    def test_a_process_of_no_unit_is_a_stranger(self, tmp_path: Path) -> None:
        with serving(b"{}") as port:
            (listener,) = find_listeners(f"http://127.0.0.1:{port}/health", [UP], self.proc(tmp_path, "/user.slice/session-1.scope"))
        assert listener.ours is False

    @pytest.mark.parametrize("group", ["/system.slice/status-panel.service", "/system.slice/status-panel.service/worker"])
    def test_a_child_of_the_unit_is_ours(self, tmp_path: Path, group: str) -> None:
        with serving(b"{}") as port:
            (listener,) = find_listeners(f"http://127.0.0.1:{port}/health", [UP], self.proc(tmp_path, group))
        assert listener.ours is True

    @pytest.mark.parametrize("group", ["/system.slice/docker-0123.scope", "/machine.slice/libpod-0123.scope"])
    def test_a_container_is_not_guessed_at(self, tmp_path: Path, group: str) -> None:
        with serving(b"{}") as port:
            (listener,) = find_listeners(f"http://127.0.0.1:{port}/health", [UP], self.proc(tmp_path, group))
        assert listener.ours is None

    def test_a_unit_whose_name_only_begins_alike_is_a_stranger(self, tmp_path: Path) -> None:
        with serving(b"{}") as port:
            proc = self.proc(tmp_path, "/system.slice/status-panel.service-old")
            (listener,) = find_listeners(f"http://127.0.0.1:{port}/health", [UP], proc)
        assert listener.ours is False

    def test_nobody_is_found_where_nobody_listens(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            assert find_listeners(f"http://127.0.0.1:{closed.getsockname()[1]}/", [UP]) == ()

    def test_wildcard_and_ipv6_sockets_are_read(self) -> None:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            with socket.socket(family) as listener:
                listener.bind((address, 0))
                listener.listen()
                assert self.find(listener.getsockname()[1], main_pid=os.getpid()).address == address

    def test_a_stranger_on_the_port_makes_it_taken(self) -> None:
        state = LocalState((UP,), Health(200, dict(WELL)), (replace(OURS, pid=7, command="nginx", ours=False),))
        port = next(check for check in judge(Expectation((UP.name,), URL), state) if check.name == "port")
        assert (port.ok, port.reason) == (False, "port_taken")
        assert "nginx (pid 7)" in port.detail

    def test_a_holder_that_cannot_be_told_is_not_judged(self) -> None:
        state = LocalState((UP,), Health(200, dict(WELL)), (Listener("127.0.0.1"),))
        port = next(check for check in judge(Expectation((UP.name,), URL), state) if check.name == "port")
        assert (port.ok, port.skipped) == (True, True)

    def proc(self, folder: Path, group: str) -> Path:
        """A /proc in which this very process holds the sockets, in the control group *group*."""
        mine = folder / str(os.getpid())
        mine.mkdir()
        (folder / "net").symlink_to("/proc/net")
        (mine / "fd").symlink_to("/proc/self/fd")
        (mine / "stat").symlink_to("/proc/self/stat")
        (mine / "comm").write_text("python3\n")
        (mine / "cgroup").write_text(f"1:name=systemd:{group}\n0::/\n")
        return folder


class TestProbe:
    def test_it_asks_for_all_units_at_once_and_counts_restarts_from_its_first_look(self) -> None:
        asked: list[list[str]] = []
        answers = iter([block(NRestarts=2), ended(7.0, NRestarts=2), block(NRestarts=3, ExecMainStartTimestampMonotonic=10 ** 18)])

        def run(command: list[str]) -> tuple[int, str, str]:
            asked.append(command)
            return 0, next(answers), ""

        probe = Probe(Expectation(("status-panel",)), run)
        probe.look()
        assert probe.look()[0].reason == "unit_failed"
        assert probe.look()[0].reason == "unit_flapping"
        assert probe.state.waited > 0
        assert asked[0][:2] == ["systemctl", "show"]
        assert asked[0][-2:] == ["--", "status-panel.service"]

    def test_systemd_that_does_not_answer_is_an_error(self) -> None:
        with pytest.raises(ProbeError, match="Failed to connect to bus"):
            Probe(Expectation(("a",)), lambda _command: (1, "", "Failed to connect to bus\n")).look()

    def test_the_journals_tail_is_of_all_units(self) -> None:
        asked: list[list[str]] = []

        def run(command: list[str]) -> tuple[int, str, str]:
            asked.append(command)
            return 0, "one\ntwo\nthree\n", ""

        assert Probe(Expectation(("a", "b")), run).journal(2) == ["two", "three"]
        assert asked == [["journalctl", "--no-pager", "--output=cat", "--lines=2", "--unit=a.service", "--unit=b.service"]]

    def test_no_units_means_no_systemctl_and_no_journal(self) -> None:
        def run(_command: list[str]) -> tuple[int, str, str]:
            raise AssertionError("nothing is to be run")

        probe = Probe(Expectation(), run)
        assert all(check.ok for check in probe.look())
        assert probe.journal(10) == []


class Failed(Exception):
    """What fail_json raises here."""


def module(**params: t.Any) -> t.Any:
    """As much of an AnsibleModule as the checks of input use."""

    def fail_json(**facts: t.Any) -> t.NoReturn:
        raise Failed(facts["reason"], facts["msg"])

    defaults = {"units": [], "health_url": "", "health_status": "ok", "vault_enabled": False, "token_age_max": 600, "settle": 1.0}
    return SimpleNamespace(params={**defaults, **params}, fail_json=fail_json, get_bin_path=lambda _name: "/bin/systemctl")


class TestModule:
    def test_a_host_without_systemd_is_told_so(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(agent_probe, "_BOOTED", tmp_path / "absent")
        with pytest.raises(Failed, match="not started by systemd"):
            agent_probe._require_systemd(module(units=["a"]))
        agent_probe._require_systemd(module())
        monkeypatch.setattr(agent_probe, "_BOOTED", tmp_path)
        agent_probe._require_systemd(module(units=["a"]))

    @pytest.mark.parametrize("params", [{"units": ["--all"]}, {"units": ["a b"]}, {"units": [""]}, {"health_url": "ftp://x/"}])
    def test_impossible_input_is_refused(self, params: dict[str, t.Any]) -> None:
        with pytest.raises(Failed, match="invalid_input"):
            agent_probe._expectation(module(**params))

    def test_the_result_is_plain_data(self) -> None:
        probe = Probe(Expectation((UP.name,), URL), lambda _command: (0, "", ""))
        probe.state = LocalState((UP,), Health(200, dict(WELL)), (OURS,), time=5000.0)
        checks = judge(probe.expected, probe.state)
        result = agent_probe._result(probe, checks)
        assert json.loads(json.dumps(result)) == result
        assert (result["ok"], result["reason"], result["health"]["status"], result["units"][0]["started"]) == (True, "ok", "ok", 4940.0)
