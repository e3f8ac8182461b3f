# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate is green for an agent that runs, is accepted and was seen, red with the reason for every other, and writes only what is new."""

from __future__ import annotations

import base64
import datetime
import hashlib
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery
from ansible_collections.muster.agents.plugins.module_utils._local_probe import Check
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt, Transition
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    GateRed,
    HostFailure,
    InvalidInput,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._health import (
    Clock,
    Gate,
    GateOptions,
    gate_options,
    life_result,
    redacted_lines,
    redacted_value,
)
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Enrolment, HostProof, Lifetime, Proof, Record

TOKEN = "tok-Zx81QmPv-canary-000000000001"
OLD_TOKEN = "tok-Yw72RnOu-canary-000000000000"
EPOCH = 1_800_000_000.0  # the controller's clock when a test begins
UPTIME = 30.0
NAME = "5f9c2a1e-0000-4000-8000-000000000001"
RECEIPT = Receipt(
    "stacker", NAME, "https://control.example:8000", "STORED", "attempt-1", generation=2, agent_id="agent-7", pending_restart=int(EPOCH - 60),
    history=(Transition(int(EPOCH - 60), "STORED", "registered: not_enrolled"),))
COMMITTED = replace(RECEIPT, phase="COMMITTED", pending_restart=0, history=(*RECEIPT.history, Transition(int(EPOCH - 20), "COMMITTED", "the gate is green")))


class FakeClock(Clock):
    """Time that only sleeping and working moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return EPOCH + self.passed

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


def iso(epoch: float) -> str:
    """An instant as Stacker writes it."""
    return datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).isoformat().replace("+00:00", "Z")


@dataclass
class FakeHost:
    """A host in memory: its store, and what its probe says (a value, or a function of how often it was asked)."""

    clock: FakeClock
    receipt: Receipt | None = RECEIPT
    checks: list[Check] = field(default_factory=lambda: [Check("unit status-panel.service", True, "active (running) for 30 s.")])
    journal: list[str] = field(default_factory=list)
    uptime: float | None = UPTIME
    skew: float = 0.0
    pids: list[int] = field(default_factory=lambda: [42])
    probe_failure: dict[str, t.Any] | None = None
    deliver_failure: AgentsError | None = None
    root: str = "/var/lib/muster/stacker/" + NAME
    asked: list[dict[str, t.Any]] = field(default_factory=list)
    written: list[Receipt] = field(default_factory=list)
    pair: list[Check] = field(default_factory=list)
    pairs: list[dict[str, t.Any]] = field(default_factory=list)

    def look(self) -> Look:
        text = self.receipt.dump() if self.receipt is not None else b""
        generations = {1: {"token": Secret(OLD_TOKEN)}, 2: {"token": Secret(TOKEN)}}
        return Look(
            receipt=self.receipt, receipt_digest=hashlib.sha256(text).hexdigest() if text else "", generations=generations, files={}, previous={},
            facts={}, tools=frozenset(), time=int(self.clock.now()), key="", secrets=generations[2], agent_id="agent-7")

    def deliver(self, delivery: Delivery) -> None:
        if self.deliver_failure is not None:
            raise self.deliver_failure
        assert (delivery.root, delivery.expect) == (self.root, self.look().receipt_digest)
        assert (delivery.generation, delivery.keep, delivery.remove) == (0, (), ())
        self.receipt = Receipt.load(delivery.receipt)
        self.written.append(self.receipt)

    def execute(self, module: str, args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        assert module == "muster.agents.agent_probe"
        if "pair" in args:
            self.pairs.append(args["pair"])
            return {"checks": [check.as_result() for check in self.pair]}
        self.asked.append(dict(args))
        if self.probe_failure is not None:
            return self.probe_failure
        good = all(check.ok for check in self.checks)
        pid = self.pids[min(len(self.asked), len(self.pids)) - 1]
        started = None if self.uptime is None else self.clock.now() + self.skew - self.uptime - self.clock.passed
        unit = {
            "name": "status-panel.service", "main_pid": pid, "restarts": 0, "started": started,
            "uptime": None if self.uptime is None else self.uptime + self.clock.passed,
        }
        answer = {
            "ok": good, "checks": [check.as_result() for check in self.checks], "units": [unit] if args["units"] else [], "health": {"status": "ok"},
            "elapsed": 0.0, "looked": 0.0,
        }
        if args["journal"] == "always" or (args["journal"] == "failure" and not good):
            answer["journal"] = self.journal
        return answer


@dataclass
class FakePlane:
    """A control plane that answers as told: a value or an exception for each question in turn, the last one for ever."""

    proofs: list[Proof | Exception] = field(default_factory=lambda: [Proof(accepted=True, definite=True, how="notifications")])
    seen: list[str | Exception | None] = field(default_factory=lambda: [iso(EPOCH - 10)])
    skew: float | None = -0.5
    key: str = "stacker"
    used: list[Credential] = field(default_factory=list)
    asked: int = 0

    wanted: HostProof | None = None
    ca_cert: str = ""
    reports: list[int | None] = field(default_factory=lambda: [None])
    live: list[bool | None] = field(default_factory=lambda: [None])

    life: Lifetime | Exception | None = None

    def lifetime(self, credential: Credential) -> Lifetime | None:
        assert credential.secrets
        if isinstance(self.life, Exception):
            raise self.life
        return self.life

    def host_proof(self, enrolment: Enrolment) -> HostProof | None:
        return self.wanted

    @property
    def http(self) -> SimpleNamespace:
        return SimpleNamespace(clock_skew=self.skew, transport=SimpleNamespace(ca_cert=self.ca_cert))

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        assert enrolment.name == NAME
        self.used.append(credential)
        answer = self.proofs[min(len(self.used), len(self.proofs)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        assert name == NAME
        self.asked += 1
        answer = self.seen[min(self.asked, len(self.seen)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else Record(name, last_seen=answer, reports=self.reports[min(self.asked, len(self.reports)) - 1],
                                               live=self.live[min(self.asked, len(self.live)) - 1], status="degraded")


class World:
    """One gate with all it touches."""

    def __init__(self, host: t.Mapping[str, t.Any] | None = None, plane: t.Mapping[str, t.Any] | None = None, **options: t.Any) -> None:
        self.clock = FakeClock()
        self.host = FakeHost(self.clock, **(host or {}))
        self.plane = FakePlane(**(plane or {}))
        self.options = GateOptions(NAME, units=("status-panel",), **options)

    def run(self) -> dict[str, t.Any]:
        plane: t.Any = self.plane
        return Gate(self.options, self.host, plane, self.clock).run()

    def red(self) -> dict[str, t.Any]:
        with pytest.raises(GateRed) as caught:
            self.run()
        return caught.value.as_result()


def check_of(result: t.Mapping[str, t.Any], name: str) -> dict[str, t.Any]:
    found: dict[str, t.Any] = next(check for check in result["checks"] if check["name"] == name)
    return found


class TestGreen:
    def test_it_commits_with_the_proof_and_clears_the_restart(self) -> None:
        world = World()
        result = world.run()
        assert (result["changed"], result["action"], result["reason"], result["previously_committed"]) == (True, "committed", "ok", False)
        (receipt,) = world.host.written
        assert (receipt.phase, receipt.pending_restart, receipt.generation, receipt.agent_id) == ("COMMITTED", 0, 2, "agent-7")
        assert receipt.proof == {"when": int(EPOCH), "how": "notifications+seen", "result": "accepted"}
        assert [(step.phase, step.why) for step in receipt.history][-1] == ("COMMITTED", "the gate is green")
        assert result["pending_restart"] is False

    def test_a_second_run_writes_nothing(self) -> None:
        world = World()
        world.run()
        again = Gate(world.options, world.host, t.cast(t.Any, world.plane), world.clock).run()
        assert (again["changed"], again["action"], again["previously_committed"]) == (False, "unchanged", True)
        assert len(world.host.written) == 1

    def test_the_receipts_generation_is_what_is_proved(self) -> None:
        world = World({"receipt": replace(RECEIPT, generation=1)})
        world.run()
        assert world.plane.used == [Credential("agent-7", {"token": Secret(OLD_TOKEN)})]

    @pytest.mark.parametrize("options", [{"commit": False}, {"check_mode": True}])
    def test_without_commit_and_in_check_mode_nothing_is_written(self, options: dict[str, bool]) -> None:
        world = World(**options)
        result = world.run()
        assert (result["changed"], result["action"]) == (False, "checked")
        assert world.host.written == []

    def test_a_process_older_than_the_delivery_leaves_the_restart_pending(self) -> None:
        world = World({"receipt": replace(RECEIPT, pending_restart=int(EPOCH - UPTIME + 5))})
        result = world.run()
        assert (result["action"], result["pending_restart"]) == ("committed", True)
        assert world.host.written[0].pending_restart == int(EPOCH - UPTIME + 5)
        assert "restarted" in result["msg"]

    def test_start_and_delivery_are_compared_on_the_hosts_clock(self) -> None:
        hour = 3600.0
        pending = {"receipt": replace(RECEIPT, pending_restart=int(EPOCH + hour - 60)), "skew": hour}
        assert World(pending).run()["pending_restart"] is False

    def test_a_restart_alone_is_worth_writing(self) -> None:
        world = World({"receipt": replace(COMMITTED, pending_restart=int(EPOCH - 60))})
        result = world.run()
        assert (result["changed"], result["previously_committed"]) == (True, True)
        assert world.host.written[0].pending_restart == 0

    def test_recovery_is_written_once(self) -> None:
        sick = replace(COMMITTED, history=(*COMMITTED.history, Transition(int(EPOCH), "COMMITTED", "unhealthy: not_seen")))
        world = World({"receipt": sick})
        assert world.run()["changed"] is True
        assert world.run()["changed"] is False

    def test_nothing_of_the_journal_is_shown(self) -> None:
        assert "journal" not in World({"journal": ["all is well"]}).run()


class TestRedOnTheHost:
    def world(self, **host: t.Any) -> World:
        bad = [Check("unit status-panel.service", False, "Its process ends at once (exit status 3 after 0.1 s).", "unit_exits", final=True)]
        return World({"checks": bad, "journal": ["starting", "no such file"], **host})

    def test_the_reason_the_journal_and_what_to_do_are_told(self) -> None:
        result = self.world().red()
        assert (result["failed"], result["changed"], result["reason"]) == (True, False, "unit_exits")
        assert "exit status 3" in result["msg"]
        assert "Read the journal" in result["msg"]
        assert result["journal"] == ["starting", "no such file"]

    def test_the_credential_is_tried_once_all_the_same(self) -> None:
        world = self.world()
        world.plane.proofs = [Proof(accepted=False, definite=False, how="notifications", pending=True)]
        assert check_of(world.red(), "credential")["reason"] == "credential_pending"
        assert len(world.plane.used) == 1
        assert world.plane.asked == 0

    def test_the_receipt_is_marked_once_and_keeps_its_phase(self) -> None:
        world = self.world(receipt=COMMITTED)
        result = world.red()
        world.red()
        assert result["previously_committed"] is True
        (receipt,) = world.host.written
        assert (receipt.phase, receipt.history[-1].why, receipt.agent_id, receipt.generation) == ("COMMITTED", "unhealthy: unit_exits", "agent-7", 2)

    def test_without_commit_it_is_not_marked(self) -> None:
        world = self.world()
        world.options = replace(world.options, commit=False)
        world.red()
        assert world.host.written == []

    def test_a_full_disk_does_not_hide_the_reason(self) -> None:
        assert self.world(deliver_failure=HostFailure("full", reason="disk_full")).red()["reason"] == "unit_exits"

    def test_in_check_mode_it_is_told_and_does_not_fail(self) -> None:
        world = self.world()
        world.options = replace(world.options, check_mode=True)
        result = world.run()
        assert (result["changed"], result["reason"], result.get("failed")) == (False, "unit_exits", None)
        assert world.host.asked[0]["timeout"] == 0
        assert world.host.written == []

    def test_a_probe_that_cannot_look_is_a_failure_of_the_host(self) -> None:
        world = World({"probe_failure": {"failed": True, "msg": "This host was not started by systemd.", "reason": "no_systemd"}})
        with pytest.raises(HostFailure, match="not started by systemd") as caught:
            world.run()
        assert caught.value.reason == "no_systemd"

    def test_the_probe_gets_the_gates_whole_time(self) -> None:
        world = World(wait=7.5)
        world.run()
        assert world.host.asked[0]["timeout"] == 7.5


class TestEnrolment:
    @pytest.mark.parametrize(("receipt", "reason"), [
        (None, "not_enrolled"),
        (replace(RECEIPT, phase="WITHDRAWN"), "not_enrolled"),
        (replace(RECEIPT, phase="INTENT"), "not_enrolled"),
        (replace(RECEIPT, phase="ISSUED"), "unfinished"),
    ])
    def test_what_is_not_enrolled_cannot_pass(self, receipt: Receipt | None, reason: str) -> None:
        world = World({"receipt": receipt})
        result = world.red()
        assert result["reason"] == reason
        assert "agent_register" in result["msg"]
        assert world.host.asked == []
        assert world.plane.used == []


class TestCredential:
    def test_a_refusal_is_final(self) -> None:
        world = World(plane={"proofs": [Proof(accepted=False, definite=True, how="notifications", detail="HTTP 400 Invalid agent token")]})
        world.host.journal = ["polling error: 400"]
        result = world.red()
        assert (result["reason"], result["journal"]) == ("credential_refused", ["polling error: 400"])
        assert "agent_register" in result["msg"]
        assert world.clock.passed == 0
        assert world.plane.asked == 0

    def test_a_server_that_is_away_for_a_moment_is_asked_again(self) -> None:
        away = Unreachable("refused", reason="refused")
        unclear = Proof(accepted=False, definite=False, how="notifications")
        late = Proof(accepted=False, definite=False, how="notifications", pending=True)
        world = World(plane={"proofs": [away, unclear, late, Proof(accepted=True, definite=True, how="notifications")]})
        assert world.run()["action"] == "committed"
        assert world.clock.passed == pytest.approx(0.2 + 0.3 + 0.45)

    @pytest.mark.parametrize(("answer", "reason"), [
        (Unreachable("https://x refuses connections.", reason="refused"), "refused"),
        (Proof(accepted=False, definite=False, how="n", pending=True), "credential_pending"),
        (Proof(accepted=False, definite=False, how="n", detail="HTTP 500"), "credential_unclear"),
    ])
    def test_asking_ends_with_the_gates_time(self, answer: Proof | Exception, reason: str) -> None:
        world = World(plane={"proofs": [answer]}, wait=6.0)
        assert world.red()["reason"] == reason
        assert world.clock.passed == pytest.approx(6.0)

    def test_broken_trust_is_not_waited_for(self) -> None:
        world = World(plane={"proofs": [Untrusted("wrong pin", reason="wrong_pin")]})
        assert world.red()["reason"] == "wrong_pin"
        assert world.clock.passed == 0


DAY = 86400.0
NO_LIMITS: t.Mapping[str, float | None] = dict.fromkeys(("warning_days", "critical_days", "warning_percent", "critical_percent"))


class TestLifetime:
    @pytest.mark.parametrize(("whole", "left", "verdict", "percent"), [
        (365.0, 200.0, "ok", 54.8), (365.0, 30.0, "warning", 8.2), (365.0, 7.0, "critical", 1.9), (365.0, 0.0, "expired", 0.0), (365.0, -3.0, "expired", 0.0),
        (1 / 48, 1 / 96, "ok", 50.0), (1 / 48, 1 / 500, "critical", 9.6), (0.0, 20.0, "warning", None),
    ])
    def test_what_is_left_is_told_and_judged(self, whole: float, left: float, verdict: str, percent: float | None) -> None:
        end = EPOCH + left * DAY
        told = life_result(Lifetime(end - whole * DAY, end), NO_LIMITS, EPOCH)
        assert told is not None
        assert (told["verdict"], told["percent_left"], told["days_left"]) == (verdict, percent, round(left, 3))
        assert told["expires_at"] == iso(int(end))
        assert bool(told["issued_at"]) is (whole > 0)

    def test_a_credential_without_an_end_or_with_one_that_is_no_number_is_not_judged(self) -> None:
        assert life_result(None, NO_LIMITS, EPOCH) is None
        assert life_result(Lifetime(EPOCH, float("nan")), NO_LIMITS, EPOCH) is None
        assert life_result(Lifetime(EPOCH, 1e300), NO_LIMITS, EPOCH) is not None

    def test_the_gate_tells_it_by_the_servers_clock_whether_green_or_red(self) -> None:
        life = Lifetime(EPOCH - 90 * DAY, EPOCH + 10 * DAY)
        plane: dict[str, t.Any] = {"life": life, "skew": -DAY, "seen": [iso(EPOCH + DAY)]}
        options = {**NO_LIMITS, "warning_days": 20.0}
        green = World(plane={**plane, "seen": [None]}, limits=options).run()
        assert (green["reason"], green["lifetime"]["days_left"], green["lifetime"]["verdict"]) == ("ok", 11.0, "warning")
        refused = Proof(accepted=False, definite=True, how="notifications", detail="expired")
        assert World(plane={**plane, "proofs": [refused]}, limits=options).red()["lifetime"] == green["lifetime"]

    @pytest.mark.parametrize("life", [None, KeyError("certificate"), ServerFault("no certificate in it.")])
    def test_one_that_tells_nothing_or_cannot_be_read_is_no_failure(self, life: Exception | None) -> None:
        assert World(plane={"life": life}).run()["lifetime"] is None

    def test_what_is_not_enrolled_has_none(self) -> None:
        assert World({"receipt": None}, {"life": Lifetime(EPOCH, EPOCH + DAY)}).red()["lifetime"] is None


class TestPair:
    """Agents whose key never leaves the host: the host itself uses the pair."""

    WANTED = HostProof("/etc/agent/agent.crt", "/etc/agent/agent.key", "https://plane.example.com/health")

    def test_the_host_tries_the_pair_with_the_cas_text(self, tmp_path: Path) -> None:
        ca = tmp_path / "ca.pem"
        ca.write_text("the CA's text")
        world = World({"pair": [Check("pair", True, "Key and certificate belong together."), Check("mtls", True, "Accepted.")]},
                      {"wanted": self.WANTED, "ca_cert": str(ca)})
        result = world.run()
        assert result["action"] == "committed"
        assert check_of(result, "mtls")["ok"]
        assert world.host.pairs == [{
            "certificate": "/etc/agent/agent.crt", "key": "/etc/agent/agent.key", "url": "https://plane.example.com/health", "ca": "the CA's text"}]

    def test_what_it_found_stays_when_the_host_is_looked_at_again_after_a_wait(self) -> None:
        pair = [Check("pair", True, "Key and certificate belong together."), Check("mtls", True, "Accepted.")]
        world = World({"pair": pair}, {"wanted": self.WANTED, "seen": [""] * 6 + [iso(EPOCH + 3)]})
        result = world.run()
        assert len(world.host.asked) == 2
        assert [check["name"] for check in result["checks"]] == ["unit status-panel.service", "credential", "pair", "mtls", "seen"]

    def test_a_pair_that_is_none_keeps_the_gate_red(self) -> None:
        world = World({"pair": [Check("pair", False, "The key belongs to another certificate.", "key_mismatch", final=True)]}, {"wanted": self.WANTED})
        result = world.red()
        assert result["reason"] == "key_mismatch"
        assert "cert_issue" in result["msg"]
        assert world.plane.asked == 0

    def test_without_a_pair_nothing_is_tried(self) -> None:
        world = World()
        assert world.run()["action"] == "committed"
        assert world.host.pairs == []


class TestSeen:
    def test_a_sign_of_life_from_before_the_start_does_not_count(self) -> None:
        result = World(plane={"seen": [iso(EPOCH - UPTIME - 5)]}, wait=4.0).red()
        assert result["reason"] == "not_seen"
        assert result["last_seen"] == iso(EPOCH - UPTIME - 5)

    def test_an_agent_that_was_never_seen_is_waited_for(self) -> None:
        world = World(plane={"seen": ["", "", iso(EPOCH + 0.4)]})
        assert world.run()["last_seen"] == iso(EPOCH + 0.4)
        assert world.clock.passed == pytest.approx(0.5)

    def test_never_seen_is_red_when_the_time_is_over(self) -> None:
        world = World(plane={"seen": [""]}, wait=4.0)
        assert "never seen" in world.red()["msg"]
        assert world.clock.passed == pytest.approx(4.0)

    @pytest.mark.parametrize("skew", [-7200.0, 7200.0])
    def test_the_comparison_is_made_on_the_servers_clock(self, skew: float) -> None:
        assert World(plane={"skew": skew, "seen": [iso(EPOCH + skew - 10)]}).run()["action"] == "committed"
        assert World(plane={"skew": skew, "seen": [iso(EPOCH + skew - UPTIME - 10)]}, wait=1.0).red()["reason"] == "not_seen"

    def test_a_wrong_host_clock_does_not_matter(self) -> None:
        assert World({"skew": 86400.0}).run()["action"] == "committed"
        old = {"seen": [iso(EPOCH - UPTIME - 10)]}
        assert World({"skew": -86400.0}, old, wait=1.0).red()["reason"] == "not_seen"

    def test_a_sign_too_close_to_the_start_is_accepted_after_a_grace(self) -> None:
        world = World(plane={"seen": [iso(EPOCH - UPTIME + 0.2)]})
        assert world.run()["action"] == "committed"
        assert 3.0 <= world.clock.passed < 5.0

    def test_a_sign_too_close_to_a_switch_is_not_enough_where_nothing_was_restarted(self) -> None:
        """It may be the last one with the old credential."""
        assert World(plane={"seen": [iso(EPOCH + 0.2)]}, since=EPOCH, wait=8.0).red()["reason"] == "not_seen"
        world = World(plane={"seen": [iso(EPOCH + 0.2), iso(EPOCH + 0.2), iso(EPOCH + 4.0)]}, since=EPOCH, wait=8.0)
        assert world.run()["action"] == "committed"
        assert world.plane.asked == 3

    def test_a_plane_that_does_not_tell_is_not_judged_and_says_so(self) -> None:
        result = World(plane={"seen": [None]}).run()
        assert check_of(result, "seen")["skipped"]

    def test_an_agent_that_delivered_nothing_yet_is_waited_for(self) -> None:
        world = World(plane={"reports": [0, 0, 3]})
        assert world.run()["action"] == "committed"
        assert world.plane.asked == 3

    def test_an_agent_that_its_control_plane_calls_inactive_is_waited_for_and_then_red(self) -> None:
        world = World(plane={"live": [False, False, True]})
        assert world.run()["action"] == "committed"
        assert world.plane.asked == 3
        result = World(plane={"live": [False]}, wait=4.0).red()
        assert (result["reason"], "degraded" in result["msg"]) == ("not_active", True)

    def test_an_agent_that_never_delivers_is_red(self) -> None:
        result = World(plane={"reports": [0]}, wait=4.0).red()
        assert result["reason"] == "no_reports"
        assert "more attempts" in result["msg"]

    def test_seen_false_does_not_ask(self) -> None:
        world = World(seen=False)
        assert check_of(world.run(), "seen")["skipped"]
        assert world.plane.asked == 0
        assert world.host.written[0].proof["how"] == "notifications"

    def test_throttling_is_waited_out(self) -> None:
        world = World(plane={"seen": [Throttled("slow", retry_after=5.0), iso(EPOCH - 1)]})
        assert world.run()["action"] == "committed"
        assert world.clock.passed == pytest.approx(5.0)

    def test_a_fault_of_the_server_is_asked_again_and_named_in_the_end(self) -> None:
        assert World(plane={"seen": [ServerFault("HTTP 502"), iso(EPOCH - 1)]}).run()["action"] == "committed"
        assert World(plane={"seen": [ServerFault("HTTP 502")]}, wait=2.0).red()["reason"] == "server_fault"

    def test_an_agent_that_ended_while_it_was_waited_for_is_flapping(self) -> None:
        world = World({"pids": [42, 77]}, {"seen": ["", "", "", "", "", "", iso(EPOCH + 3)]})
        result = world.red()
        assert result["reason"] == "unit_flapping"
        assert check_of(result, "seen")["ok"]
        assert len(world.host.asked) >= 2

    def test_without_units_only_a_sign_of_life_from_now_on_counts(self) -> None:
        world = World(plane={"seen": [iso(EPOCH - 10), iso(EPOCH + 2)]})
        world.options = replace(world.options, units=())
        assert world.run()["last_seen"] == iso(EPOCH + 2)
        assert world.host.written[0].pending_restart == RECEIPT.pending_restart


class TestRedaction:
    def test_known_secrets_are_masked_in_every_shape(self) -> None:
        secret = "p/q+r=s.canary&0123456789"
        lines = [f"url ?x={secret}", "esc p%2Fq%2Br%3Ds.canary%260123456789", base64.b64encode(f"user:{secret}".encode()).decode()]
        shown = "\n".join(redacted_lines(lines, [Secret(secret)]))
        assert "canary" not in shown
        assert base64.b64encode(secret.encode()).decode()[:12] not in shown

    def test_unknown_values_of_secret_names_are_masked_too(self) -> None:
        lines = [
            "Authorization: Bearer abcdefghijkl", "retry with bearer abcdefghijkl", "VAULT_TOKEN=abcdefghijkl", '{"agent_token": "abcdefghijkl"}',
            "password='abcdefghijkl'", "x-vault-token: abcdefghijkl",
        ]
        assert not [line for line in redacted_lines(lines, []) if "abcdefghijkl" in line]

    def test_plain_words_stay_readable(self) -> None:
        lines = ["Token rotated", "Failed to fetch token from Vault (403 Forbidden)", "health: token_age_seconds=120", "listening on 127.0.0.1:5000"]
        assert redacted_lines(lines, [Secret(TOKEN)]) == lines

    def test_control_codes_go_and_long_lines_are_cut(self) -> None:
        assert redacted_lines(["\x1b[31mred\x1b[0m\x07"], []) == ["red"]
        assert len(redacted_lines(["x" * 5000], [])[0]) == 500

    def test_neither_result_nor_message_shows_a_secret_of_any_generation(self) -> None:
        detail = f"HTTP 400 bad token {TOKEN}"
        world = World(
            {"journal": [f"using {TOKEN}", f"before {OLD_TOKEN}"]},
            {"proofs": [Proof(accepted=False, definite=True, how="notifications", detail=detail)]})
        result = world.red()
        assert TOKEN not in repr(result)
        assert OLD_TOKEN not in repr(result)
        assert len(result["journal"]) == 2

    def test_documents_are_masked_at_any_depth(self) -> None:
        document = {"a": [{"b": f"x {TOKEN}"}], "n": 3, TOKEN: None}
        shown = redacted_value(document, [Secret(TOKEN)])
        assert TOKEN not in repr(shown)
        assert shown["n"] == 3


class TestOptions:
    ARGS: t.ClassVar[dict[str, t.Any]] = {
        "name": NAME, "units": ["a"], "health_url": None, "health_status": "ok", "vault_enabled": False, "token_age_max": 600, "seen": True,
        "attempts": 10, "delay": 2.0, "journal_lines": 40, "commit": True,
    }

    def test_the_whole_wait_is_attempts_times_delay(self) -> None:
        assert gate_options(self.ARGS, check_mode=False).wait == 20.0

    @pytest.mark.parametrize("changes", [
        {"warning_days": 5.0}, {"warning_percent": 5.0, "critical_percent": 6.0}, {"attempts": -1}, {"delay": -0.5},
        {"health_url": "127.0.0.1:5000/health"}, {"health_url": "ftp://x/"},
    ])
    def test_impossible_input_is_refused(self, changes: dict[str, t.Any]) -> None:
        with pytest.raises(InvalidInput):
            gate_options({**self.ARGS, **changes}, check_mode=False)
