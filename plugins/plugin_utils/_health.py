# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate: an agent is deployed once it runs, its credential is accepted and its control plane saw it (private to muster.agents).

Three kinds of evidence, since none is enough alone: the host says that the process is up and well (agent_probe), the control plane says
that it accepts the credential (proof by use, which changes nothing), and that the agent itself has called since its process started.
"""

from __future__ import annotations

import math
import re
import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery
from ansible_collections.muster.agents.plugins.module_utils._local_probe import Check, worst
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import REDACTED, Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _faults as faults
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    GateRed,
    HostFailure,
    InvalidInput,
    Throttled,
    Unreachable,
)
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._pair import PROBE, last_line, pair_checks
from ansible_collections.muster.agents.plugins.plugin_utils._redaction import redacted_view
from ansible_collections.muster.agents.plugins.plugin_utils._sightings import ServerClock, Span, judge_seen, moment
from ansible_collections.muster.agents.plugins.plugin_utils._thresholds import Thresholds
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import ControlPlane, Credential, Enrolment, Lifetime, Record

__all__ = ["Clock", "Gate", "GateHost", "GateOptions", "gate_options", "life_result", "redacted_lines", "redacted_value"]

_FIRST_PAUSE, _LAST_PAUSE = 0.2, 1.0  # seconds between two questions to the control plane
_GRACE = 3.0  # seconds after which a sign of life too close to the start to be told apart is accepted
_RETURN = 0.5  # seconds that the probe's answer may need on its way back
_LINE_LENGTH = 500
_DAY = 86400.0
_ENROLLED = ("STORED", "ACTIVE", "COMMITTED")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
# What names a secret in a log line; it masks those that are not known here, such as a token of long ago.
_ASSIGNED = re.compile(
    r"(?i)\b((?:authorization|x-vault-token|x-agent-signature|[\w-]*(?:token|password|passwd|secret|api[_-]?key))[\"']?\s*[=:]\s*[\"']?(?:bearer\s+|basic\s+)?)"
    r"[^\s\"',;}]{6,}")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{6,}")
_REMEDIES = {
    "unit_not_found": "Install the unit, or correct its name in units.",
    "unit_masked": "Run systemctl unmask on it.",
    "unit_failed": "Read the journal below, and systemctl status of the unit.",
    "unit_exits": "Read the journal below; a wrong path, a missing setting or a taken port are the usual causes.",
    "unit_flapping": "Read the journal below for what ends it.",
    "unit_starting": "Give it more attempts if it is slow by nature, else read the journal below.",
    "unit_inactive": "Start the unit.",
    "port_taken": "Stop that process, or give the agent another port.",
    "no_answer": "Check the port that the agent was started with, and that health_url names it.",
    "status_not_ok": "Read the health document and the journal below.",
    "refresh_failed": "Check the VAULT_* settings the agent was started with, its Vault token and that token's policy.",
    "token_stale": "Check that the agent reaches Vault and that its Vault token has not run out.",
    "credential_refused": "Run agent_register again: it finds out which credential the server accepts.",
    "credential_pending": "The control plane has not stored the credential yet: check that it reaches its Vault, then run again.",
    "credential_unclear": "The control plane gives no clear answer: look at its own health, then run again.",
    "not_seen": "Check that the host reaches the control plane's URL, and read the journal below.",
    "not_active": "Read the journal below, and look at the agent at the control plane.",
    "no_reports": "Give it more attempts if it reports seldom, else read the journal below.",
    "key_mismatch": "Issue the pair again with cert_issue, or put certificate and key there that belong together.",
    "not_enrolled": "Run agent_register first.",
    "unfinished": "Run agent_register again: it finishes what was begun.",
}


_LIMITS = ("warning_days", "critical_days", "warning_percent", "critical_percent")


@dataclass(frozen=True)
class GateOptions:
    """What the gate is asked. units: the first is the one that talks to the control plane. wait is in seconds and spans the whole gate.

    since: a sign of life must be younger than this too (seconds since the epoch, controller's clock), for an agent that was not restarted.
    limits: from when on the credential's end is worth a word, by the names of Thresholds.
    """

    name: str
    units: tuple[str, ...] = ()
    health_url: str = ""
    health_status: str = "ok"
    vault_enabled: bool = False
    token_age_max: int = 600
    seen: bool = True
    wait: float = 20.0
    journal_lines: int = 40
    commit: bool = True
    check_mode: bool = False
    certificate_path: str = ""
    key_path: str = ""
    since: float = 0.0
    limits: t.Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(_LIMITS))


class GateHost(t.Protocol):
    """What the gate needs of a host; _host.Host is one."""

    root: str

    def look(self) -> Look:
        """Read the store."""

    def deliver(self, delivery: Delivery) -> None:
        """Write the receipt."""

    def execute(self, module: str, args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Run a module on the host."""


class Clock:
    """Time, so that tests can own it."""

    def now(self) -> float:
        """Seconds since the epoch on the controller's clock."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds on a clock that only moves forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass
class _Findings:
    """What one passage through the gate gathered. *local* is what the host's newest look found, *proved* what came after the first one.

    *journal* is None until it was asked for; it is not redacted yet.
    """

    local: list[Check] = field(default_factory=list)
    proved: list[Check] = field(default_factory=list)
    units: list[dict[str, t.Any]] = field(default_factory=list)
    health: t.Any = None
    journal: list[str] | None = None
    last_seen: str = ""
    how: str = ""

    @property
    def checks(self) -> list[Check]:
        """All verdicts, the host's first."""
        return [*self.local, *self.proved]


def gate_options(args: t.Mapping[str, t.Any], *, check_mode: bool) -> GateOptions:
    """Return the task's arguments as one value. Raises InvalidInput for a negative number or a health_url that is no URL."""
    for option in ("attempts", "delay", "journal_lines", "token_age_max"):
        if args[option] < 0:
            raise InvalidInput(f"{option} is {args[option]}: give a number that is not negative.")
    url = args.get("health_url") or ""
    if url and not re.match(r"https?://[^/\s]+", url):
        raise InvalidInput(f"health_url {url!r} is no URL: write it as the host sees it, such as http://127.0.0.1:5000/health.")
    limits = {name: args.get(name) for name in _LIMITS}
    Thresholds.of(limits)
    return GateOptions(
        name=args["name"], units=tuple(args["units"]), health_url=url, health_status=args["health_status"],
        vault_enabled=args["vault_enabled"], token_age_max=args["token_age_max"], seen=args["seen"], wait=args["attempts"] * args["delay"],
        journal_lines=args["journal_lines"], commit=args["commit"], check_mode=check_mode, certificate_path=args.get("certificate_path") or "",
        key_path=args.get("key_path") or "", limits=limits)


def life_result(life: Lifetime | None, limits: t.Mapping[str, float | None], now: float) -> dict[str, t.Any] | None:
    """Return what a task result tells of a credential's *life*, None where it does not end. *now* is in seconds since the epoch by the server's clock."""
    if life is None or not (math.isfinite(life.issued_at) and math.isfinite(life.expires_at)):
        return None
    whole, left = (life.expires_at - life.issued_at) / _DAY, (life.expires_at - now) / _DAY
    # Without a known beginning there is no share to speak of.
    percent = max(0.0, 100.0 * left / whole) if whole > 0 else None
    judged = Thresholds.for_life(limits, whole).severity(left, 100.0 if percent is None else percent)
    return {
        "issued_at": iso(life.issued_at) if whole > 0 else "", "expires_at": iso(life.expires_at), "days_left": round(left, 3),
        "percent_left": None if percent is None else round(percent, 1), "verdict": "expired" if left <= 0 else judged,
    }


def redacted_lines(lines: t.Iterable[str], known: t.Iterable[Secret]) -> list[str]:
    """Return journal *lines* fit to be shown: *known* secrets and values given to a secret's name are masked, control codes removed."""
    text = _cut("\n".join(_CONTROL.sub("", line) for line in lines), _numbered(known))
    masked = _BEARER.sub(rf"\1{REDACTED}", _ASSIGNED.sub(rf"\1{REDACTED}", text))
    return [line[:_LINE_LENGTH] for line in masked.splitlines()]


def redacted_value(value: t.Any, known: t.Iterable[Secret]) -> t.Any:
    """Return plain data with the *known* secrets masked in every string."""
    return _masked(value, _numbered(known))


class Gate:
    """One passage of one agent through the gate."""

    def __init__(self, options: GateOptions, host: GateHost, control_plane: ControlPlane, clock: Clock | None = None) -> None:
        """Nothing is asked yet."""
        self._options = options
        self._host = host
        self._control_plane = control_plane
        self._clock = clock or Clock()
        self._server_clock = ServerClock()
        self._began = self._clock.monotonic()
        self._wait = 0.0 if options.check_mode else options.wait

    def run(self) -> dict[str, t.Any]:
        """Judge the agent, and commit when it is well.

        Returns the task result. Raises GateRed when it is not well (in check mode that is a result, since nothing was started there).
        """
        look = self._host.look()
        known = [secret for generation in look.generations.values() for secret in generation.values()]
        findings = self._findings(look)
        bad = worst(findings.checks)
        facts = self._facts(look, findings, known)
        if bad is None:
            return {**facts, **self._green(look, findings)}
        sentence = redacted_value(_sentence(bad), known)
        facts = {**facts, "action": "checked", "journal": redacted_lines(findings.journal or (), known)}
        if self._options.check_mode:
            return {**facts, "changed": False, "reason": bad.reason, "msg": f"Check mode: the gate would be red now. {sentence}"}
        self._mark_unhealthy(look, bad)
        raise GateRed(f"{self._options.name} did not prove itself in {facts['duration']:.0f} s. {sentence}", reason=bad.reason, **facts)

    def _findings(self, look: Look) -> _Findings:
        findings = _Findings()
        credential = _credential(look)
        if credential is None:
            findings.proved.append(_not_enrolled(look.receipt))
            return findings
        started = self._local(findings)
        well = worst(findings.checks) is None
        accepted = self._credential_check(findings, credential, patient=well)
        findings.proved.append(accepted)
        if accepted.ok:
            findings.proved.extend(self._pair())
        if well and worst(findings.checks) is None:
            before = self._clock.monotonic()
            findings.proved.append(self._seen_check(findings, credential, started))
            if self._clock.monotonic() - before > _LAST_PAUSE:
                self._still_up(findings)
        if worst(findings.checks) is not None and findings.journal is None:
            findings.journal = self._probe(0.0, "always").get("journal")
        return findings

    def _pair(self) -> list[Check]:
        """Let the host use the pair that lies there, where the agent proves itself by one."""
        wanted = self._control_plane.host_proof(self._enrolment())
        return pair_checks(self._host, wanted, self._control_plane.http.transport.ca_cert) if wanted is not None else []

    def _enrolment(self) -> Enrolment:
        options = self._options
        return Enrolment(name=options.name, certificate_path=options.certificate_path, key_path=options.key_path)

    def _remaining(self) -> float:
        return max(0.0, self._began + self._wait - self._clock.monotonic())

    def _probe(self, timeout: float, journal: str) -> dict[str, t.Any]:
        """Run the probe on the host. Raises HostFailure when it cannot look."""
        options = self._options
        answer = self._host.execute(PROBE, {
            "units": list(options.units), "health_url": options.health_url or None, "health_status": options.health_status,
            "vault_enabled": options.vault_enabled, "token_age_max": options.token_age_max, "timeout": timeout, "journal": journal,
            "journal_lines": options.journal_lines,
        })
        if answer.get("failed") or "checks" not in answer:
            reason = str(answer.get("reason") or "host_failure")
            raise HostFailure(f"The agent cannot be looked at on the host: {last_line(answer)}", reason=reason)
        return answer

    def _local(self, findings: _Findings) -> Span:
        """Judge the host's side with the time that is left. Returns when the agent's process started, on the controller's clock.

        The host's own clock is not asked: the process's age is taken back from the moment of the look, which lies between two of ours.
        """
        before = self._clock.now()
        answer = self._probe(self._remaining(), "failure")
        after = self._clock.now()
        findings.local = [Check(**item) for item in answer["checks"]]
        findings.units, findings.health, findings.journal = answer["units"], answer["health"], answer.get("journal")
        uptime = answer["units"][0]["uptime"] if answer["units"] else None
        if uptime is None:  # nothing to count from: only a sign of life from now on tells anything
            return Span(before, before) if not self._options.since else Span(self._options.since, self._options.since)
        # Getting a module going on a busy host takes seconds, its answer's way back does not: the later bound is the better one.
        latest = after - answer["looked"] - uptime
        started = Span(max(before + answer["elapsed"] - answer["looked"] - uptime, latest - _RETURN), latest)
        return Span(max(started.low, self._options.since), max(started.high, self._options.since))

    def _still_up(self, findings: _Findings) -> None:
        """Look again after a wait: an agent that ended meanwhile is not well, whatever it proved before."""
        earlier = {unit["name"]: (unit["main_pid"], unit["restarts"]) for unit in findings.units}
        self._local(findings)
        for unit in findings.units:
            if earlier.get(unit["name"]) != (unit["main_pid"], unit["restarts"]):
                again = Check(f"unit {unit['name']}", False, "It ended and was started again while we waited.", "unit_flapping")
                findings.local.append(again)

    def _tries(self, *, patient: bool) -> t.Iterator[t.Callable[[float], None]]:
        """Yield once, then with growing pauses until the gate's time is over; what is yielded lengthens the next pause (in seconds)."""
        pause = _FIRST_PAUSE
        while True:
            asked = [0.0]
            yield asked.append
            remaining = self._remaining()
            if not patient or remaining <= 0:
                return
            self._clock.sleep(min(max(pause, *asked), remaining))
            pause = min(pause * 1.5, _LAST_PAUSE)

    def _credential_check(self, findings: _Findings, credential: Credential, *, patient: bool) -> Check:
        """Use the credential. A clear refusal is final; a server that is away or still writing is asked again."""
        enrolment = self._enrolment()
        check = Check("credential", False, "It was not tried.", "credential_unclear")
        for _longer in self._tries(patient=patient):
            try:
                proof = self._control_plane.prove(enrolment, credential)
            except Unreachable as error:
                check = Check("credential", False, error.msg, error.reason)
                continue
            except AgentsError as error:
                return Check("credential", False, error.msg, error.reason)
            self._server_clock.note(self._control_plane.http.clock_skew)
            if proof.accepted:
                findings.how = proof.how
                return Check("credential", True, f"The control plane accepts it ({proof.how}).")
            if proof.definite and not proof.pending:
                return Check("credential", False, f"The control plane refuses it ({proof.detail or proof.how}).", "credential_refused")
            reason = "credential_pending" if proof.pending else "credential_unclear"
            check = Check("credential", False, f"The control plane gives no clear answer to it ({proof.detail or proof.how}).", reason)
        return check

    def _seen_check(self, findings: _Findings, credential: Credential, started: Span) -> Check:
        """Wait for a sign of life that is younger than the agent's process."""
        if not self._options.seen:
            return Check("seen", True, "Not judged: seen is false.", skipped=True)
        began = self._clock.monotonic()
        check = Check("seen", False, "The control plane has never seen it.", "not_seen")
        for longer in self._tries(patient=True):
            try:
                record = self._control_plane.last_seen(self._options.name, credential)
            except Throttled as error:
                longer(error.retry_after)
                continue
            except AgentsError as error:
                check = Check("seen", False, error.msg, error.reason)
                continue
            if record is None:
                return Check("seen", True, "Not judged: this control plane does not tell when it saw an agent.", skipped=True)
            self._server_clock.note(self._control_plane.http.clock_skew)
            findings.last_seen = record.last_seen
            seen = moment(record.last_seen)
            if seen is None:
                continue
            since = started.plus(self._server_clock.bounds())
            sighting = judge_seen(seen, since)
            if record.live is False:
                check = Check("seen", False, f"The control plane calls it {record.status}.", "not_active")
                continue
            if record.reports == 0:
                check = Check("seen", False, "The control plane has not got anything from it yet.", "no_reports")
                continue
            # A process that was not restarted may have called just before, with its old credential: it calls again, and then it is sure.
            patience_over = not self._options.since and (self._remaining() <= 0 or self._clock.monotonic() - began >= _GRACE)
            if sighting.sure or (sighting.possible and patience_over):
                return Check("seen", True, f"The control plane saw it at {record.last_seen}, after its start.")
            check = _not_seen(record, seen, since)
        return check

    def _lifetime(self, look: Look) -> dict[str, t.Any] | None:
        """Return how long the credential lives; None where it does not tell, or cannot be read."""
        credential = _credential(look)
        if credential is None:
            return None
        try:
            life = self._control_plane.lifetime(credential)
        except (AgentsError, KeyError):  # a generation that lacks what tells it; the checks say that it is bad
            return None
        return life_result(life, self._options.limits, self._clock.now() + (self._control_plane.http.clock_skew or 0.0))

    def _green(self, look: Look, findings: _Findings) -> dict[str, t.Any]:
        """Write the receipt if that says anything new. Returns what the task result says about it."""
        options = self._options
        if not options.commit or options.check_mode or look.receipt is None:
            return {"changed": False, "action": "checked", "reason": "ok", "msg": f"{options.name} is well; nothing was written."}
        receipt = self._committed(look.receipt, findings)
        if receipt is None:
            return {"changed": False, "action": "unchanged", "reason": "ok", "msg": f"{options.name} is well, and was committed before."}
        faults.reach("before_commit")
        self._host.deliver(Delivery(root=self._host.root, expect=look.receipt_digest, receipt=receipt.dump()))
        faults.reach("after_commit")
        pending = " It still has to be restarted to read its newest files." if receipt.pending_restart else ""
        return {
            "changed": True, "action": "committed", "reason": "ok", "pending_restart": receipt.pending_restart > 0,
            "msg": f"{options.name} is well and committed.{pending}",
        }

    def _committed(self, receipt: Receipt, findings: _Findings) -> Receipt | None:
        """Return the receipt as it should be now, None when it says so already."""
        restarted = bool(findings.units) and all((unit["started"] or 0) > receipt.pending_restart for unit in findings.units)
        pending = 0 if restarted else receipt.pending_restart
        recovered = bool(receipt.history) and receipt.history[-1].why.startswith(_UNHEALTHY)
        if receipt.phase == "COMMITTED" and pending == receipt.pending_restart and not recovered:
            return None
        now = int(self._clock.now())
        how = "+".join(part for part in (findings.how, "seen" if findings.last_seen and self._options.seen else "") if part)
        proof = {"when": now, "how": how, "result": "accepted"}
        return replace(receipt.moved("COMMITTED", "the gate is green", now), pending_restart=pending, proof=proof)

    def _mark_unhealthy(self, look: Look, bad: Check) -> None:
        """Note the failure in the receipt's history, once; nothing is taken away, since the credential may be good (failure point F11)."""
        receipt = look.receipt
        why = f"{_UNHEALTHY}{bad.reason}"
        if not self._options.commit or receipt is None or (receipt.history and receipt.history[-1].why == why):
            return
        marked = receipt.moved(receipt.phase, why, int(self._clock.now()))
        try:
            self._host.deliver(Delivery(root=self._host.root, expect=look.receipt_digest, receipt=marked.dump()))
        except AgentsError:
            return  # the note is a convenience; the failure that is being reported is what matters

    def _facts(self, look: Look, findings: _Findings, known: t.Sequence[Secret]) -> dict[str, t.Any]:
        receipt = look.receipt
        committed = receipt is not None and (receipt.phase == "COMMITTED" or any(step.phase == "COMMITTED" for step in receipt.history))
        return {
            "name": self._options.name,
            "checks": redacted_value([_plain(check) for check in findings.checks], known),
            "health": redacted_value(findings.health, known),
            "last_seen": findings.last_seen,
            "lifetime": self._lifetime(look),
            "units": findings.units,
            "pending_restart": receipt is not None and receipt.pending_restart > 0,
            "previously_committed": committed,
            "duration": round(self._clock.monotonic() - self._began, 3),
        }


_UNHEALTHY = "unhealthy: "


def _credential(look: Look) -> Credential | None:
    """Return what the agent proves itself with, None when this host holds no finished enrolment."""
    receipt = look.receipt
    if receipt is None or receipt.phase not in _ENROLLED:
        return None
    secrets = look.generations.get(receipt.generation) or look.secrets
    agent_id = receipt.agent_id or look.agent_id
    return Credential(agent_id, secrets) if secrets and agent_id else None


def _not_enrolled(receipt: Receipt | None) -> Check:
    if receipt is None or receipt.phase in ("WITHDRAWN", "INTENT"):
        return Check("receipt", False, "This agent is not enrolled on this host.", "not_enrolled", final=True)
    return Check("receipt", False, f"Its enrolment is not finished (phase {receipt.phase}).", "unfinished", final=True)


def _not_seen(record: Record, seen: Span, since: Span) -> Check:
    before = max(0.0, since.low - seen.high)
    return Check("seen", False, f"The control plane saw it last at {record.last_seen}, {before:.0f} s before it started.", "not_seen")


def _sentence(bad: Check) -> str:
    remedy = _REMEDIES.get(bad.reason, "")
    return f"{bad.name[:1].upper()}{bad.name[1:]}: {bad.detail} {remedy}".strip()


def _plain(check: Check) -> dict[str, t.Any]:
    return {"name": check.name, "ok": check.ok, "reason": check.reason, "detail": check.detail, "skipped": check.skipped}


def _masked(value: t.Any, known: t.Mapping[str, Secret]) -> t.Any:
    if isinstance(value, str):
        return _cut(value, known)
    if isinstance(value, dict):
        return {_cut(str(key), known): _masked(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, known) for item in value]
    return value


def _cut(text: str, known: t.Mapping[str, Secret]) -> str:
    """Return *text* without any of *known*, in whatever everyday encoding; only a count of lines where one cannot be cut out."""
    return redacted_view(text.encode(), "text", known).rstrip("\n") if text else text


def _numbered(known: t.Iterable[Secret]) -> dict[str, Secret]:
    return {str(number): secret for number, secret in enumerate(known)}
