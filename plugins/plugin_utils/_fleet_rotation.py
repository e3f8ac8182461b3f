# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rotating the tokens of a whole fleet through Vault KV v2, in one task and without visiting a host (private to muster.agents).

It serves control planes that accept whatever Vault holds. Check-and-set is the guard, Vault's previous version the undo. The agents fetch their new
tokens themselves; receipts and files on the hosts catch up at the next run there, which adopts what Vault holds.
"""

from __future__ import annotations

import threading
import time
import typing as t
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import AGENT_ID
from ansible_collections.muster.agents.plugins.plugin_utils._campaign import Campaign
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput, InvalidRequest, Rejected, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host import controller_identity
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import Due, RotationPlan, State, due_options, judge
from ansible_collections.muster.agents.plugins.plugin_utils._sightings import ServerClock, Span, judge_seen, moment
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultEntry, VaultPath, check_secret_names, vault_paths
from ansible_collections.muster.agents.plugins.plugin_utils._vault_lease import lease_path, leased
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import ControlPlane, Credential, Enrolment

__all__ = ["rotate_fleet"]

_MOST_CONNECTIONS = 64
_PROGRESS = 2.0  # seconds between two lines of progress
_POLL = 1.0  # seconds between two questions whether an agent was seen
_FAILED = ("failed", "rolled_back")
_TRIES = 3  # of a write that others who write beside the token come before

Say = t.Callable[[str], object]

_Item = t.TypeVar("_Item")
_Answer = t.TypeVar("_Answer")


@dataclass(frozen=True)
class Outcome:
    """What became of one agent, or would. action: rotated, repaired, unchanged, planned, rolled_back, failed or untouched."""

    action: str
    reason: str
    msg: str
    versions: t.Mapping[str, int | None] = field(default_factory=dict)
    last_seen: str = ""

    def as_result(self) -> dict[str, t.Any]:
        """Return it as plain data for a task result."""
        return {
            "action": self.action, "reason": self.reason, "msg": self.msg, "changed": self.action in ("rotated", "repaired", "planned"),
            "failed": self.action in _FAILED, "versions": dict(self.versions), "last_seen": self.last_seen,
        }


@dataclass(frozen=True)
class _Agent:
    """One agent of the fleet; agent_id may be empty."""

    name: str
    agent_id: str
    paths: tuple[VaultPath, ...]


@dataclass(frozen=True)
class _Wish:
    """What the operator asks for. wait is how long an agent may take to be seen, in seconds; 0 does not wait. budget: failures that are put up with."""

    due: Due
    settle_timeout: float
    lease: int
    vault_lease: bool
    wait: float
    budget: int
    check_mode: bool

    def leases(self, agent: _Agent) -> bool:
        """Say whether a lease keeps other runs from *agent*. The write of a single entry keeps them off by itself: check-and-set lets one of them win."""
        return self.vault_lease and not self.check_mode and len(agent.paths) > 1


@dataclass(frozen=True)
class _Switched:
    """An agent whose readers find *new* since switched_at (seconds since the epoch, controller's clock)."""

    agent: _Agent
    old: Credential
    new: Credential
    versions: t.Mapping[str, int | None]
    why: str
    switched_at: float


@dataclass(frozen=True)
class _Session:
    """What a thread works with: connections of its own, which are kept alive from agent to agent."""

    plane: ControlPlane
    vault: Vault


class _Pool:
    """A bounded number of threads, each with a session of its own."""

    def __init__(self, args: t.Mapping[str, t.Any], vault: Vault) -> None:
        self._args = args
        self._vault = vault
        self._local = threading.local()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sessions: list[_Session] = []
        self._threads = ThreadPoolExecutor(args["connections"], thread_name_prefix="muster-rotate")

    def each(
        self, work: t.Callable[[_Session, _Item], _Answer], items: t.Sequence[_Item], told: t.Callable[[_Item, _Answer | Outcome], object],
        meanwhile: t.Callable[[], object],
    ) -> None:
        """Do *work* on every one of *items*, and return when all is done. A failure that nobody expected is that item's outcome.

        *told* hears of each answer and *meanwhile* is called every two seconds until the last of them, never both at once. The threads take items and
        tell of them themselves: a thread that hands them out, and wakes for every answer, would keep those that talk to servers waiting for the
        interpreter.
        """
        waiting = iter(items)
        runs = {self._threads.submit(self._work_off, work, waiting, told) for _number in range(min(self._args["connections"], len(items)))}
        while runs:
            ended, runs = wait(runs, _PROGRESS, FIRST_EXCEPTION)
            # One that a failure ended has told of it: another does what it would have done next.
            runs |= {self._threads.submit(self._work_off, work, waiting, told) for run in ended if run.exception() is not None}
            if runs:
                with self._lock:
                    meanwhile()

    def _work_off(
        self, work: t.Callable[[_Session, _Item], _Answer], waiting: t.Iterator[_Item], told: t.Callable[[_Item, _Answer | Outcome], object],
    ) -> None:
        while not self._closing.is_set():
            with self._lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                answer = work(self._session(), item)
            except BaseException as error:
                what = type(error).__name__
                with self._lock:
                    told(item, Outcome("failed", "unexpected", f"An unexpected {what} came up; this agent may be half rotated: run again."))
                raise
            with self._lock:
                told(item, answer)

    def close(self) -> None:
        """End the threads, each after the item it is at, and their connections."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for session in self._sessions:
            session.plane.http.close()
            session.vault.close()

    def _session(self) -> _Session:
        session = getattr(self._local, "session", None)
        if isinstance(session, _Session):
            return session
        with self._lock:
            session = _Session(control_plane(self._args), self._vault.companion())
            self._sessions.append(session)
        self._local.session = session
        return session


def rotate_fleet(args: t.Mapping[str, t.Any], campaign: Campaign, *, check_mode: bool, say: Say) -> dict[str, t.Any]:
    """Rotate every agent of the option ``agents`` that is due, and return the task result. Raises AgentsError before anything was written.

    What fails for one agent does not stop the others, and is told in its own entry of ``results``. *campaign* knows who was rotated in it before, and
    learns who is now. *say* shows a line of progress.
    """
    agents, wish = _agents(args), _wish(args, check_mode)
    plane = control_plane(args)
    with Vault(args["vault"]) as vault:
        try:
            _preflight(plane, vault, agents, wish)
        finally:
            plane.http.close()
        pool = _Pool(args, vault)
        try:
            done = {agent.name: Outcome("unchanged", "done_in_campaign", f"{agent.name} was rotated in this campaign already.")
                    for agent in agents if campaign.standing(agent.name) == "done"}
            outcomes = {**done, **_Fleet(wish, pool, say).run([agent for agent in agents if agent.name not in done])}
            if not check_mode:
                _note(campaign, outcomes)
            return _result({agent.name: outcomes[agent.name] for agent in agents}, check_mode)
        finally:
            pool.close()


def _agents(args: t.Mapping[str, t.Any]) -> tuple[_Agent, ...]:
    found: dict[str, _Agent] = {}
    for item in args["agents"]:
        name = item["name"]
        if name in found:
            raise InvalidInput(f"agents: {name} is listed twice: list each agent once.")
        found[name] = _Agent(name, item.get("agent_id") or "", vault_paths(item["vault_paths"]))
        if not found[name].paths:
            raise InvalidInput(f"agents: {name} has no vault_paths: name at least the entry that its control plane reads.")
    return tuple(found.values())


def _wish(args: t.Mapping[str, t.Any], check_mode: bool) -> _Wish:
    if not 1 <= args["connections"] <= _MOST_CONNECTIONS:
        raise InvalidInput(f"connections is {args['connections']}: give a number from 1 to {_MOST_CONNECTIONS}.")
    if args["fleet_wait"] < 0 or args["failure_budget"] < 0:
        raise InvalidInput("fleet_wait and failure_budget must not be negative.")
    return _Wish(
        due_options(args), args["settle_timeout"], args["lease"], args["vault_lease"], args["fleet_wait"], args["failure_budget"], check_mode)


def _preflight(plane: ControlPlane, vault: Vault, agents: t.Sequence[_Agent], wish: _Wish) -> None:
    """Check what can be wrong for all of them, while nothing is written. Raises AgentsError."""
    for agent in agents:
        plane.rules.check(agent.name, allow_unstable=True)
        check_secret_names(agent.paths, (*plane.secret_names, AGENT_ID))
    if plane.own_credential() is None:
        raise InvalidRequest(f"{plane.key} issues its credentials itself: rotate its agents host by host, without agents.", reason="unsupported")
    plane.probe()
    paths = [path for agent in agents for path in agent.paths]
    paths += [VaultPath(lease_path(agent.paths[0].path), {"holder": "holder"}) for agent in agents if wish.leases(agent)]
    vault.preflight(paths)
    first = vault.read(agents[0].paths[0]) if agents else None
    if first is not None and first.kv_version == 1:
        raise InvalidInput(
            f"{first.path} is on KV v1, which has neither versions nor check-and-set: rotate these agents host by host, without agents.",
            reason="needs_kv_v2")


class _Fleet:
    """One passage over the fleet: first Vault for all of them, then the wait until each was seen."""

    def __init__(self, wish: _Wish, pool: _Pool, say: Say) -> None:
        self._wish = wish
        self._pool = pool
        self._say = say
        self._outcomes: dict[str, Outcome] = {}
        self._failures = 0
        self._said = time.monotonic()
        self._spent = threading.Event()
        self._ids_needed = threading.Event()

    def run(self, agents: t.Sequence[_Agent]) -> dict[str, Outcome]:
        """Return each agent's outcome by name, in the given order."""
        switched: list[_Switched] = []

        def told(agent: _Agent, done: Outcome | _Switched) -> None:
            if isinstance(done, _Switched):
                switched.append(done)
                self._outcomes[agent.name] = Outcome("rotated", "due", f"{agent.name} has a new token. {done.why}", done.versions)
            else:
                self._outcomes[agent.name] = done
                self._judge_budget(done)

        def progress(*, last: bool = False) -> None:
            self._progress("rotated", len(self._outcomes), len(agents), last=last)

        self._pool.each(self._switch, agents, told, progress)
        if agents:
            progress(last=True)
        if self._wish.wait:
            self._await_seen(switched)
        return {agent.name: self._outcomes[agent.name] for agent in agents}

    def _judge_budget(self, outcome: Outcome) -> None:
        self._failures += outcome.action in _FAILED
        if self._failures > self._wish.budget:
            self._spent.set()

    def _progress(self, what: str, done: int, total: int, *, last: bool = False) -> None:
        if last or time.monotonic() - self._said >= _PROGRESS:
            self._said = time.monotonic()
            failed = sum(outcome.action in _FAILED for outcome in self._outcomes.values())
            self._say(f"token_rotate: {done} of {total} agents {what}, {failed} failed")

    # -- one agent's entries in Vault

    def _switch(self, session: _Session, agent: _Agent) -> Outcome | _Switched:
        """Give the readers of one agent a new token, if it is due."""
        if self._spent.is_set():
            return Outcome("untouched", "budget_spent", f"{agent.name} keeps its token: too many others failed before its turn.")
        try:
            if not self._wish.leases(agent):
                return self._switch_contended(session, agent)
            with leased(session.vault, agent.paths[0].path, controller_identity(), self._wish.lease + self._wish.settle_timeout):
                return self._switch_once(session, agent, self._seen_now(session, agent))
        except AgentsError as error:
            return Outcome("rolled_back" if error.facts.get("rolled_back") else "failed", error.reason, f"{agent.name}: {error.msg}")

    def _switch_contended(self, session: _Session, agent: _Agent) -> Outcome | _Switched:
        """Rotate an agent that other runs may be at too: who writes its entry first has rotated it, and the one who comes second leaves it alone."""
        seen = self._seen_now(session, agent)
        tries = 0
        while True:
            try:
                return self._switch_once(session, agent, seen)
            except VaultFailure as error:
                tries += 1
                if error.reason != "cas_conflict" or len(agent.paths) > 1 or tries == _TRIES:
                    raise
            path, before, seen = agent.paths[0], seen, self._seen_now(session, agent)
            secrets = [name for name, secret in path.fields.items() if secret in session.plane.secret_names]
            if any(seen[path.path].fields.get(name) != before[path.path].fields.get(name) for name in secrets):
                self._accepted(session, agent, seen)
                return Outcome("unchanged", "rotated_meanwhile", f"{agent.name} was given another token by another run just now.", _versions(seen))

    @staticmethod
    def _seen_now(session: _Session, agent: _Agent) -> dict[str, VaultEntry]:
        return {path.path: session.vault.read(path) for path in agent.paths}

    def _switch_once(self, session: _Session, agent: _Agent, seen: t.Mapping[str, VaultEntry]) -> Outcome | _Switched:
        """Work on what was *seen*. Raises VaultFailure (cas_conflict) when somebody wrote there since, AgentsError."""
        old = self._accepted(session, agent, seen)
        drift = _drift(agent, seen, old)
        plan = self._plan(session.plane, old, seen, drift)
        if not plan.due and not drift:
            return Outcome("unchanged", "not_due", f"{agent.name} keeps its token. {plan.why}", _versions(seen))
        if self._wish.check_mode:
            return Outcome("planned", plan.reason if plan.due else "drift", f"Would be done: {agent.name} gets a new token. {plan.why}", _versions(seen))
        if not plan.due:
            versions = self._write(session, agent, old, old, seen)
            return Outcome("repaired", "drift", f"{agent.name}: all of its entries hold the accepted token again.", versions)
        token = session.plane.own_credential()
        if token is None:
            raise InvalidRequest(f"{session.plane.key} takes no credential of ours.", reason="unsupported")
        new = Credential(old.agent_id, {**old.secrets, session.plane.secret_names[0]: token})
        versions = self._write(session, agent, old, new, seen)
        switched = _Switched(agent, old, new, versions, plan.why, time.time())
        self._prove(session, switched)
        return switched

    def _accepted(self, session: _Session, agent: _Agent, seen: t.Mapping[str, VaultEntry]) -> Credential:
        """Return the credential in Vault that the control plane accepts. Raises Rejected when it accepts none.

        An id that nobody gave is asked for where it is to be kept in Vault, or where this control plane has refused a token that came without one.
        """
        known_id = agent.agent_id or _id_in_vault(agent, seen)
        if not known_id and (self._ids_needed.is_set() or _keeps_id(agent)):
            known_id = self._id_of(session, agent)
        accepted, detail = self._first_accepted(session, agent, seen, known_id)
        if accepted is None and detail and not known_id:
            known_id = self._id_of(session, agent)
            if known_id:
                accepted, detail = self._first_accepted(session, agent, seen, known_id)
                if accepted is not None:
                    self._ids_needed.set()
        if accepted is not None:
            return accepted
        if detail and not known_id:
            raise Rejected(
                f"the control plane does not accept its token ({detail}), and may need the agent's id with it, which nobody knows: give agent_id, keep it in "
                "Vault (a field that names agent_id), give admin_token, or rotate it on its host.", reason="agent_id_unknown")
        raise Rejected(f"the control plane accepts no token that Vault holds for it ({detail or 'there is none'}): run agent_register on its host.",
                       reason="no_accepted_credential")

    @staticmethod
    def _first_accepted(
        session: _Session, agent: _Agent, seen: t.Mapping[str, VaultEntry], known_id: str,
    ) -> tuple[Credential | None, str]:
        """Return the first credential in Vault that the control plane accepts; None, and what it said of the last, or nothing where Vault holds none."""
        tried: list[Credential] = []
        detail = ""
        for path in agent.paths:
            names = {secret: name for name, secret in path.fields.items()}
            entry = seen[path.path]
            found = {secret: entry.fields[names[secret]] for secret in session.plane.secret_names if names.get(secret) in entry.fields}
            if set(found) != set(session.plane.secret_names):
                continue
            credential = Credential(known_id, found)
            if credential in tried:
                continue
            tried.append(credential)
            proof = session.plane.prove(Enrolment(agent.name), credential)
            if proof.accepted:
                return credential, ""
            detail = proof.detail or proof.how
        return None, detail

    @staticmethod
    def _id_of(session: _Session, agent: _Agent) -> str:
        """Ask the control plane for an id that neither the operator nor Vault has; empty where it does not tell."""
        record = session.plane.find(agent.name, None)
        return record.agent_id if record is not None else ""

    def _plan(self, plane: ControlPlane, old: Credential, seen: t.Mapping[str, VaultEntry], drift: tuple[str, ...]) -> RotationPlan:
        written = [moment for entry in seen.values() for moment in [parse_time(entry.written_at)] if moment is not None]
        state = State(time.time() + (plane.http.clock_skew or 0.0), min(written, default=None), plane.lifetime(old), drift)
        return judge(self._wish.due, state, plane.capabilities, origin="vault", vault=True, nudge="none", retires=False)

    def _write(
        self, session: _Session, agent: _Agent, old: Credential, new: Credential, seen: t.Mapping[str, VaultEntry],
    ) -> dict[str, int | None]:
        """Write *new* under every path, by check-and-set; takes back what was written when one of them fails.

        A token that is new is proved by use afterwards, by a control plane that finds it in Vault: the only entry there is need not be read besides.
        """
        versions: dict[str, int | None] = {}
        secrets = _for_vault(new)
        shown_by_use = new is not old and len(agent.paths) == 1
        try:
            for path in agent.paths:
                versions[path.path] = session.vault.exchange(_known(path, secrets), secrets, seen[path.path], check=not shown_by_use).version
        except AgentsError as error:
            if new is not old:
                self._restore(session, agent, old, new, error)
            raise
        return versions

    def _restore(self, session: _Session, agent: _Agent, old: Credential, new: Credential, error: AgentsError) -> None:
        """Put *old* back where Vault holds *new*, and say in *error* whether that worked. What somebody else wrote since stays."""
        ours, theirs = _for_vault(new), _for_vault(old)
        restored, foreign = False, []
        try:
            for path in agent.paths:
                known = _known(path, theirs)
                entry = session.vault.read(path)
                if _holds(entry, known, theirs):
                    continue
                if _holds(entry, known, ours):
                    session.vault.exchange(known, theirs, entry)
                    restored = True
                else:
                    foreign.append(path.path)
        except VaultFailure as second:
            error.msg += f" Putting the old token back failed too: {second.msg}"
            return
        if restored:
            error.facts["rolled_back"] = True
            error.msg += " Its old token is in Vault again."
        if foreign:
            error.msg += f" Neither token is at {' and '.join(foreign)}: what somebody else wrote there stays."

    def _prove(self, session: _Session, switched: _Switched) -> None:
        """Wait until the control plane accepts the new token; put the old one back when it does not."""
        deadline = time.monotonic() + self._wish.settle_timeout
        enrolment = Enrolment(switched.agent.name)
        while True:
            proof = session.plane.prove(enrolment, switched.new)
            if proof.accepted:
                return
            if time.monotonic() > deadline:
                error = Rejected(f"the control plane does not accept the new token ({proof.detail or proof.how}).", reason="new_credential_refused")
                self._restore(session, switched.agent, switched.old, switched.new, error)
                raise error
            time.sleep(0.1)

    # -- the agents themselves

    def _await_seen(self, switched: t.Sequence[_Switched]) -> None:
        """Wait until each agent was seen since its switch; put the old token back for those that were not in time."""
        waiting = list(switched)
        unseen: list[_Switched] = []

        def told(item: _Switched, last_seen: Outcome | str | None) -> None:
            if isinstance(last_seen, Outcome):
                self._outcomes[item.agent.name] = last_seen
            elif last_seen is not None:
                self._outcomes[item.agent.name] = replace(self._outcomes[item.agent.name], last_seen=last_seen)
            else:
                unseen.append(item)

        while waiting:
            unseen = []
            self._pool.each(self._seen, waiting, told, lambda: None)
            waiting = unseen
            self._progress("seen with their new tokens", len(switched) - len(waiting), len(switched), last=not waiting)
            if waiting:
                time.sleep(_POLL)

    def _seen(self, session: _Session, item: _Switched) -> Outcome | str | None:
        """Return when the agent was seen, an empty text where nobody tells, None while it was not, or the outcome once its time is over."""
        reason, said = "not_seen", "the control plane has not seen its agent with the new token"
        try:
            record = session.plane.last_seen(item.agent.name, item.new)
            if record is None:
                return ""
            # By this answer's clock alone: a task over a fleet lasts for minutes, in which a clock may be set.
            clock = ServerClock()
            clock.note(session.plane.http.clock_skew)
            seen, since = moment(record.last_seen), Span(item.switched_at, item.switched_at).plus(clock.bounds())
            # What may have come just before may have come with the old token: the agent calls again, and then it is sure.
            if seen is not None and judge_seen(seen, since).sure:
                return record.last_seen
        except AgentsError as failure:
            reason, said = failure.reason, failure.msg
        if time.time() < item.switched_at + self._wish.wait:
            return None
        error = AgentsError(f"{said} in {self._wish.wait:g} s.", reason=reason)
        self._restore(session, item.agent, item.old, item.new, error)
        return Outcome("rolled_back" if error.facts.get("rolled_back") else "failed", error.reason, f"{item.agent.name}: {error.msg}")


def _note(campaign: Campaign, outcomes: t.Mapping[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        if outcome.action in _FAILED:
            campaign.note(name, outcome.reason)
        elif outcome.action in ("rotated", "repaired") or outcome.reason in ("not_due", "rotated_meanwhile"):
            campaign.note(name, "")


def _id_in_vault(agent: _Agent, seen: t.Mapping[str, VaultEntry]) -> str:
    """Return the agent's id as one of its entries has it, an empty text where none does."""
    stored = (seen[path.path].fields.get(name) for path in agent.paths for name, secret in path.fields.items() if secret == AGENT_ID)
    return next((value.reveal() for value in stored if value is not None), "")


def _keeps_id(agent: _Agent) -> bool:
    """Say whether an entry of the agent is to hold its id."""
    return any(AGENT_ID in path.fields.values() for path in agent.paths)


def _for_vault(credential: Credential) -> dict[str, Secret]:
    known = {AGENT_ID: Secret(credential.agent_id)} if credential.agent_id else {}
    return {**credential.secrets, **known}


def _known(path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultPath:
    """Return *path* with the fields whose secrets are known."""
    return VaultPath(path.path, {name: secret for name, secret in path.fields.items() if secret in secrets})


def _drift(agent: _Agent, seen: t.Mapping[str, VaultEntry], accepted: Credential) -> tuple[str, ...]:
    secrets = _for_vault(accepted)
    return tuple(
        f"Vault's {path.path} holds something else than what the control plane accepts."
        for path in agent.paths if not _holds(seen[path.path], _known(path, secrets), secrets))


def _holds(entry: VaultEntry, path: VaultPath, secrets: t.Mapping[str, Secret]) -> bool:
    """Say whether *entry* has *secrets* in the fields of *path*."""
    return all(entry.fields.get(name) == secrets[secret] for name, secret in path.fields.items())


def _versions(seen: t.Mapping[str, VaultEntry]) -> dict[str, int | None]:
    return {path: entry.version for path, entry in seen.items()}


def _result(outcomes: t.Mapping[str, Outcome], check_mode: bool) -> dict[str, t.Any]:
    counts = {action: sum(outcome.action == action for outcome in outcomes.values())
              for action in ("rotated", "repaired", "planned", "unchanged", "rolled_back", "failed", "untouched")}
    told = ", ".join(f"{number} {action.replace('_', ' ')}" for action, number in counts.items() if number) or "no agents"
    failed = counts["failed"] + counts["rolled_back"]
    changed = counts["rotated"] + counts["repaired"] + counts["planned"] > 0
    return {
        "changed": changed, "action": "planned" if check_mode and changed else "rotated" if changed else "unchanged",
        "failed": failed > 0, "reason": "some_failed" if failed else "ok", "msg": f"Of {len(outcomes)} agents: {told}.", "counts": counts,
        "results": {name: outcome.as_result() for name, outcome in outcomes.items()},
    }
