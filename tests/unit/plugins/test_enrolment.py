# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The enrolment, step by step: which credential wins, what a lost answer leads to, whose identity is never taken, and what is left when it fails."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_ways import NAME, URL, Way

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _enrolment
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import OldPlace
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Outcome, Parts, Transaction
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    Busy,
    HostFailure,
    IdentityConflict,
    InvalidInput,
    Mismatch,
    Rejected,
    ServerFault,
    Unreachable,
    VaultFailure,
)
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look
from ansible_collections.muster.agents.plugins.plugin_utils._identity import Gathering
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultChange, VaultEntry, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    Bootstrap,
    Capabilities,
    ControlPlane,
    Credential,
    Enrolment,
    IdentityRules,
    Issued,
    Lifetime,
    Proof,
    Record,
    ServerState,
    Withdrawal,
)

CANARY = "canary-7f3e"
AGENT_ID = "f0e1d2c3-0000-4000-8000-000000000001"
PATH = "status_panel/agent/token"
ACCEPTED = Proof(accepted=True, definite=True, how="notifications")
REFUSED = Proof(accepted=False, definite=True, how="notifications", detail="HTTP 401")
UNSURE = Proof(accepted=False, definite=False, how="notifications", detail="HTTP 502")
PENDING = Proof(accepted=False, definite=False, how="notifications", detail="HTTP 400", pending=True)


def _credential(what: str = "one", agent_id: str = AGENT_ID) -> Credential:
    return Credential(agent_id, {"token": Secret(f"{CANARY}-{what}")})


class Clock:
    """Time that passes faster where somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def monotonic(self) -> float:
        return sum(self.slept)

    def time(self) -> float:
        return time.time() + sum(self.slept)


class Plane(ControlPlane):
    """A control plane that does what the test lays down, and remembers what it was asked."""

    key = "stacker"
    capabilities = Capabilities(
        overlap=False, restore_old=True, revoke="nothing", key_born_on="none", prove_on="controller", token_lifetime=None)
    rules = IdentityRules(128, "[A-Za-z0-9_-]", "letters")
    secret_names = ("token",)
    api_versions = frozenset({"1.0"})

    def __init__(self) -> None:
        super().__init__(t.cast(t.Any, SimpleNamespace(url=URL, clock_skew=0.0)), Bootstrap())
        self.state: ServerState | AgentsError = ServerState(version="2.0.0", clock_skew=0.0)
        self.probes = 0
        self.answers: list[Issued | AgentsError] = []
        self.accepted: list[Credential] = []
        self.proofs: list[Proof] = []
        self.fallback = REFUSED
        self.record: Record | AgentsError | None = None
        self.attempts: list[str] = []
        self.proved: list[Credential] = []
        self.refreshed: list[str] = []
        self.own: Secret | None = None
        self.asked_as: list[str] = []
        self.reissues: list[Issued | AgentsError | None] = []
        self.life: Lifetime | None = None
        self.fresh: Issued | AgentsError | None = None
        self.found: Record | None = Record(NAME, AGENT_ID)

    def issue(self, credential: Credential, *, created: bool = True, accepted: bool = True, versions: tuple[str, ...] = ("1.0",)) -> None:
        """Answer the next registration with *credential*."""
        self.answers.append(Issued(credential, created, ServerState("2.0.0", versions)))
        if accepted:
            self.accepted.append(credential)

    def probe(self) -> ServerState:
        self.probes += 1
        if isinstance(self.state, AgentsError):
            raise self.state
        return self.state

    def find(self, name: str, credential: Credential | None) -> Record | None:
        return self.found

    def recover(self, enrolment: Enrolment, attempt: str) -> Issued:
        issued = self.register(enrolment, attempt)
        self.asked_as[-1] = "recover"
        return issued

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        answer = self.reissues.pop(0)
        if isinstance(answer, AgentsError):
            raise answer
        return answer

    def lifetime(self, credential: Credential) -> Lifetime | None:
        return self.life

    def refresh(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        if isinstance(self.fresh, AgentsError):
            raise self.fresh
        return self.fresh

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        self.attempts.append(attempt)
        self.asked_as.append("register")
        answer = self.answers.pop(0)
        if isinstance(answer, AgentsError):
            raise answer
        return answer

    def refresh_metadata(self, enrolment: Enrolment, attempt: str) -> Issued | None:
        self.refreshed.append(enrolment.version)
        return None

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        self.proved.append(credential)
        if self.proofs:
            return self.proofs.pop(0)
        return ACCEPTED if credential in self.accepted else self.fallback

    def own_credential(self) -> Secret | None:
        return self.own

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        if isinstance(self.record, AgentsError):
            raise self.record
        return self.record

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        raise AssertionError("nothing is revoked here")


class Safe:
    """A Vault with one mount; *failure* is raised by what writes."""

    def __init__(self, plane: Plane) -> None:
        self.entries: dict[str, dict[str, Secret]] = {}
        self.failure: AgentsError | None = None
        self.writes: list[str] = []
        self._plane = plane
        self.makes_valid = False

    def authenticate(self) -> None:
        """Nothing to do."""

    def preflight(self, paths: t.Sequence[VaultPath], **_options: t.Any) -> None:
        """Everything is allowed."""

    def read(self, path: VaultPath) -> VaultEntry:
        return VaultEntry(path.path, "status_panel", 2, path.path in self.entries, 1, dict(self.entries.get(path.path, {})))

    def recall(self, path: VaultPath) -> VaultEntry:
        return self.read(path)

    def plan(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        wanted = {name: secrets[secret] for name, secret in path.fields.items()}
        changed = any(self.entries.get(path.path, {}).get(name) != value for name, value in wanted.items())
        return VaultChange(path.path, "status_panel", 2, changed, 0, 1, tuple(wanted))

    def ensure(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        change = self.plan(path, secrets)
        if change.changed:
            if self.failure is not None:
                raise self.failure
            self.writes.append(path.path)
            self.entries[path.path] = {name: secrets[secret] for name, secret in path.fields.items()}
            if self.makes_valid:
                self._plane.accepted = [Credential(agent_id, {"token": secrets["token"]}) for agent_id in ("", AGENT_ID)]
        return change


@dataclass
class World:
    """One identity with its host, spool, control plane and Vault."""

    folder: Path
    plane: Plane
    safe: Safe
    clock: Clock
    order: Order = field(default_factory=lambda: Order(
        Enrolment(NAME, "1.0.0", ("logs",), {"os": "linux"}, hostname="edge"), {}, gathering=Gathering(system_info=False, capabilities=False)))
    with_vault: bool = False
    with_forks: bool = False

    @property
    def env(self) -> Path:
        """The rendered file."""
        return self.folder / "agent.env"

    @property
    def spooled(self) -> list[Path]:
        """What lies in the spool."""
        return list((self.folder / "spool").glob("*"))

    @property
    def receipt(self) -> Receipt:
        """The receipt on the host."""
        return Receipt.load((Path(self.host().root) / "receipt.json").read_bytes())

    def host(self) -> Host:
        """A new handle, as each run has one."""
        return Way("module").host(self.folder / "store")

    def run(self, host: Host | None = None, **changes: t.Any) -> Outcome:
        """Run the transaction with a changed order."""
        order = replace(self.order, **changes)
        if self.with_vault and not order.vault_paths:
            order = replace(order, vault_paths=(VaultPath(PATH, {"token": "token"}),))

        def render(agent: t.Mapping[str, t.Any], secrets: t.Mapping[str, Secret]) -> tuple[RenderedFile, ...]:
            text = f"AGENT_ID={agent['agent_id']}\nTOKEN={secrets['token'].reveal()}\n"
            return (RenderedFile(str(self.env), text.encode(), "root", "root", "0600", "0755", "", True, ("AGENT_ID", "TOKEN"), "env"),)

        parts = Parts(
            self.plane, host or self.host(), Spool(str(self.folder / "spool"), URL, NAME), render, (str(self.env),),
            t.cast(Vault, self.safe) if self.with_vault else None, "https://vault.test" if self.with_vault else "",
            SharedDocument(str(self.folder / "servers") if self.with_forks else "", "probe"))
        return Transaction(order, parts).run()

    def fails(self, kind: type[AgentsError], host: Host | None = None, **changes: t.Any) -> AgentsError:
        """Run, expect a failure, and see that its message is a sentence without a secret."""
        with pytest.raises(kind) as failure:
            self.run(host, **changes)
        error = failure.value
        assert type(error) is kind
        assert re.fullmatch(r"[^\n]{20,500}[.:)]?", error.msg)
        assert CANARY not in repr(error) + json.dumps(error.as_result(), default=str)
        return error


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    clock = Clock()
    monkeypatch.setattr(_enrolment, "time", clock)
    plane = Plane()
    return World(tmp_path, plane, Safe(plane), clock)


class Broken:
    """A host on which the delivery fails; looks are real."""

    def __init__(self, real: Host, failure: AgentsError) -> None:
        self._real = real
        self._failure = failure
        self.root = real.root

    def look(self, *args: t.Any, **options: t.Any) -> Look:
        return self._real.look(*args, **options)

    def deliver(self, delivery: Delivery) -> None:
        raise self._failure


def _moment(ago: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))


# -- the plain course -----------------------------------------------------------------------------------------------------------------------------


def test_a_new_identity_is_registered_once_and_stays(world: World) -> None:
    world.plane.issue(_credential())
    first = world.run()
    assert (first.action, first.reason, first.changed) == ("registered", "not_enrolled", True)
    assert world.env.read_text() == f"AGENT_ID={AGENT_ID}\nTOKEN={CANARY}-one\n"
    assert (world.receipt.phase, world.receipt.generation, world.receipt.attempt) == ("STORED", 1, world.plane.attempts[0])
    assert world.receipt.pending_restart > 0
    assert world.spooled == []
    again = world.run()
    assert (again.action, again.changed, again.diff) == ("unchanged", False, ())
    assert len(world.plane.attempts) == 1
    assert CANARY not in repr(first) + repr(again)


def test_a_file_that_was_changed_is_brought_back_without_a_request(world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    world.env.write_text("TOKEN=nonsense\n")
    again = world.run()
    assert (again.action, again.changed, again.files) == ("delivered", True, ((str(world.env), True),))
    assert world.env.read_text() == f"AGENT_ID={AGENT_ID}\nTOKEN={CANARY}-one\n"
    assert (world.receipt.generation, len(world.plane.attempts)) == (1, 1)


def test_new_metadata_is_told_once(world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    newer = replace(world.order.enrolment, version="1.1.0")
    assert world.run(enrolment=newer, check_mode=True).action == "refreshed"
    assert world.plane.refreshed == []
    told = world.run(enrolment=newer)
    assert (told.action, told.reason) == ("delivered", "metadata_not_taken")
    assert world.run(enrolment=newer).action == "unchanged"
    assert world.plane.refreshed == ["1.1.0"]


def test_no_common_version_is_told_after_the_credential_is_safe(world: World) -> None:
    world.plane.issue(_credential(), versions=("9.9",))
    assert world.fails(Mismatch).reason == "no_common_api_version"
    assert world.receipt.generation == 1
    assert world.fails(Mismatch).reason == "no_common_api_version"
    assert len(world.plane.attempts) == 1


# -- which credential wins ------------------------------------------------------------------------------------------------------------------------


def _places(world: World) -> dict[str, Credential]:
    """Put a different credential into each place, and return them by place in the order in which they are tried."""
    world.with_vault = True
    for token in ("old", "new"):
        world.plane.answers.clear()
        world.plane.issue(_credential(token))
        world.run()
        world.plane.accepted.clear()
    Spool(str(world.folder / "spool"), URL, NAME).keep(_credential("spool"), {})
    (world.folder / "guide.env").write_text(f"ID={AGENT_ID}\nTOK={CANARY}-guide\n")
    world.safe.entries[PATH] = {"token": Secret(f"{CANARY}-vault")}
    world.plane.attempts.clear()
    world.plane.proved.clear()
    return {name: _credential(token) for name, token in (
        ("newest generation", "new"), ("older generation", "old"), ("spool", "spool"), ("old file", "guide"), ("vault", "vault"))}


@pytest.mark.parametrize(("place", "action", "reason"), [
    ("newest generation", "unchanged", "accepted"), ("older generation", "unchanged", "accepted"), ("spool", "resumed", "spooled_credential"),
    ("old file", "adopted", "found_on_host"), ("vault", "adopted", "vault_credential"),
])
def test_the_first_credential_that_is_accepted_wins(place: str, action: str, reason: str, world: World) -> None:
    places = _places(world)
    world.plane.accepted = [places[place]]
    outcome = world.run(old_places=(OldPlace(str(world.folder / "guide.env"), "env", "ID", {"token": "TOK"}),))
    assert outcome.reason == reason
    assert outcome.action in (action, "delivered")
    order = list(places.values())
    assert world.plane.proved == order[: order.index(places[place]) + 1]
    assert world.plane.attempts == []
    token = places[place].secrets["token"].reveal()
    assert f"TOKEN={token}\n" in world.env.read_text()
    assert world.safe.entries[PATH]["token"].reveal() == token
    assert world.spooled == []


def test_where_several_are_accepted_the_newest_generation_wins(world: World) -> None:
    places = _places(world)
    world.plane.accepted = list(places.values())
    assert world.run().reason == "accepted"
    assert world.plane.proved == [places["newest generation"]]


def test_where_none_is_accepted_a_new_one_is_asked_for(world: World) -> None:
    places = _places(world)
    world.plane.issue(_credential("fresh"))
    outcome = world.run()
    assert outcome.action == "registered"
    assert len(world.plane.attempts) == 1
    assert set(map(repr, world.plane.proved)) == {repr(next(iter(places.values())))}
    assert "fresh" in world.env.read_text()


@pytest.mark.parametrize("created", [True, False])
def test_a_refused_credential_is_replaced_after_a_further_intent(created: bool, world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    world.plane.accepted.clear()
    world.plane.issue(_credential("two"), created=created)
    world.plane.record = Record(NAME, AGENT_ID, last_seen=_moment(1))
    outcome = world.run()
    assert outcome.action == ("registered" if created else "reissued")
    assert (world.receipt.generation, world.receipt.attempt) == (2, world.plane.attempts[1])
    assert world.plane.attempts[0] != world.plane.attempts[1]
    assert world.run().action == "unchanged"


def test_a_doubtful_proof_stops_before_anything_changes(world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    before = world.receipt
    world.plane.accepted.clear()
    world.plane.fallback = UNSURE
    error = world.fails(ServerFault)
    assert "nothing was changed" in error.msg
    assert world.receipt == before
    assert len(world.plane.attempts) == 1


def test_a_credential_that_the_server_has_not_stored_yet_is_waited_for(world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    world.plane.proofs = [PENDING, PENDING, PENDING, ACCEPTED]
    assert world.run().action == "unchanged"
    assert world.clock.slept == [0.5, 0.5, 0.5]


def test_a_credential_that_vault_lost_is_put_back(world: World) -> None:
    world.with_vault = True
    world.plane.issue(_credential())
    world.run()
    world.safe.entries.clear()
    world.plane.proofs = [PENDING, ACCEPTED]
    assert world.run().reason == "accepted"
    assert world.safe.entries[PATH] == {"token": Secret(f"{CANARY}-one")}
    assert len(world.plane.attempts) == 1


# -- lost answers -------------------------------------------------------------------------------------------------------------------------------


def test_a_lost_answer_is_asked_for_again_under_the_same_key(world: World) -> None:
    world.plane.answers = [Ambiguous("The answer was lost on the way."), Ambiguous("The answer was lost on the way.")]
    world.plane.issue(_credential())
    assert world.run().action == "registered"
    assert len(world.plane.attempts) == 3
    assert len(set(world.plane.attempts)) == 1


def test_answers_that_stay_lost_leave_an_intent_with_the_key(world: World) -> None:
    world.plane.answers = [Ambiguous("The answer was lost on the way.")] * 3
    world.fails(Ambiguous)
    world.plane.issue(_credential(), created=False)
    assert world.run().action == "adopted"
    assert len(set(world.plane.attempts)) == 1
    assert len(world.plane.attempts) == 4


def test_a_name_taken_by_our_own_lost_attempt_is_served_through_vault(world: World) -> None:
    world.with_vault = True
    world.plane.answers = [Ambiguous("The answer was lost on the way."), IdentityConflict("The name is registered already.")]
    world.plane.own = Secret(f"{CANARY}-own")
    world.safe.makes_valid = True
    outcome = world.run()
    assert (outcome.action, outcome.reason) == ("reissued", "name_taken")
    assert world.receipt.agent_id == AGENT_ID
    assert f"TOKEN={CANARY}-own" in world.env.read_text()
    assert len(set(world.plane.attempts)) == 1


def test_a_kill_after_the_answer_is_finished_from_the_spool(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.plane.issue(_credential())
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", "after_spool=raise")
    assert world.fails(AgentsError).reason == "test_fault"
    assert world.spooled != []
    assert world.spooled[0].stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    assert world.run().action == "resumed"
    assert (len(world.plane.attempts), world.spooled) == (1, [])


@pytest.mark.parametrize("point", ["after_look", "before_issue", "after_issue", "after_spool", "after_settle", "after_vault", "before_delivery",
                                   "after_delivery"])
def test_a_run_that_ends_anywhere_is_finished_by_the_next(point: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.with_vault = True
    world.plane.issue(_credential())
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", f"{point}=raise")
    world.fails(AgentsError)
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    if not world.plane.answers:
        # The server knows the name by now; it answers a second request with the same credential.
        world.plane.issue(_credential(), created=False)
    assert world.run().receipt.generation == 1
    assert world.run().action == "unchanged"
    assert world.env.read_text() == f"AGENT_ID={AGENT_ID}\nTOKEN={CANARY}-one\n"
    assert world.safe.entries[PATH] == {"token": Secret(f"{CANARY}-one")}
    assert world.spooled == []


# -- other people's identities --------------------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_a_conflict_and_leaves_nothing_to_resume(world: World) -> None:
    world.with_vault = True
    world.plane.own = Secret(f"{CANARY}-own")
    for _run in range(3):
        world.plane.answers = [IdentityConflict("The name is registered already.")]
        error = world.fails(IdentityConflict)
        assert "adopt: always" in error.msg
        assert not (Path(world.host().root) / "intent").exists()
    assert world.safe.entries == {}
    assert world.spooled == []
    assert len(set(world.plane.attempts)) == 3


def test_a_taken_name_without_vault_names_the_ways_out(world: World) -> None:
    world.plane.own = Secret(f"{CANARY}-own")
    world.plane.answers = [IdentityConflict("The name is registered already.")]
    error = world.fails(IdentityConflict)
    assert "vault_paths" in error.msg
    assert "remove the record" in error.msg


@pytest.mark.parametrize(("adopt", "seen", "taken"), [
    ("stale", 60.0, False), ("stale", 3500.0, False), ("stale", 3700.0, True), ("stale", -60.0, False), ("stale", None, True), ("never", 99999.0, False),
    ("never", None, False), ("always", 1.0, True),
])
def test_a_live_identity_is_not_taken_over(adopt: str, seen: float | None, taken: bool, world: World) -> None:
    world.plane.record = Record(NAME, AGENT_ID, last_seen="" if seen is None else _moment(seen))
    world.plane.issue(_credential(), created=False)
    if taken:
        assert world.run(adopt=adopt).action == "adopted"
        return
    assert world.fails(IdentityConflict, adopt=adopt).reason == "identity_conflict"
    assert not world.env.exists()
    assert world.spooled == []


@pytest.mark.parametrize("point", ["after_issue", "after_spool", "after_settle"])
def test_a_crash_is_no_way_around_the_guard(point: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.plane.record = Record(NAME, AGENT_ID, last_seen=_moment(5))
    world.plane.issue(_credential(), created=False)
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", f"{point}=raise")
    world.fails(AgentsError)
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    world.plane.issue(_credential(), created=False)
    world.fails(IdentityConflict)
    assert not world.env.exists()


def test_a_control_plane_that_cannot_say_who_is_live_is_no_licence(world: World) -> None:
    world.plane.record = ServerFault("The server could not say what it knows.")
    for _run in range(2):
        world.plane.issue(_credential(), created=False)
        world.fails(ServerFault)
        assert not world.env.exists()


def test_a_token_in_vault_alone_does_not_make_a_live_identity_ours(world: World) -> None:
    world.with_vault = True
    world.safe.entries[PATH] = {"token": Secret(f"{CANARY}-theirs")}
    world.plane.accepted = [_credential("theirs", agent_id="")]
    world.plane.record = Record(NAME, AGENT_ID, last_seen=_moment(5))
    world.fails(IdentityConflict)
    world.plane.record = Record(NAME, AGENT_ID, last_seen=_moment(5000))
    outcome = world.run()
    assert (outcome.action, outcome.receipt.agent_id) == ("adopted", AGENT_ID)
    assert world.plane.attempts == []


# -- settling -------------------------------------------------------------------------------------------------------------------------------------


def test_a_late_write_of_the_server_is_waited_for(world: World) -> None:
    world.plane.issue(_credential())
    world.plane.proofs = [PENDING, REFUSED, UNSURE, ACCEPTED]
    assert world.run().action == "registered"
    assert world.clock.slept == [0.05, 0.1, 0.2]


def test_a_credential_that_is_never_accepted_ends_the_run_in_time(world: World) -> None:
    world.plane.issue(_credential(), accepted=False)
    world.plane.fallback = PENDING
    error = world.fails(Rejected, settle_timeout=3.0)
    assert error.reason == "issued_credential_refused"
    assert "after 3 s" in error.msg
    assert 3.0 <= sum(world.clock.slept) < 5.0
    assert world.spooled != []
    assert not world.env.exists()


def test_a_refused_first_credential_is_asked_for_once_more_under_a_new_key(world: World) -> None:
    world.plane.issue(_credential("dead"), accepted=False)
    world.plane.issue(_credential("good"))
    assert world.run(settle_timeout=0.2).action == "registered"
    assert len(set(world.plane.attempts)) == 2
    assert "good" in world.env.read_text()


def test_where_the_server_never_writes_our_own_vault_write_helps(world: World) -> None:
    world.with_vault = True
    world.safe.makes_valid = True
    world.plane.issue(_credential(), accepted=False)
    world.plane.fallback = PENDING
    assert world.run(settle_timeout=0.2).action == "registered"
    assert world.safe.entries[PATH] == {"token": Secret(f"{CANARY}-one")}
    assert len(world.plane.attempts) == 1


# -- failures after the answer ----------------------------------------------------------------------------------------------------------------------


def test_a_vault_that_fails_leaves_the_credential_on_the_host(world: World) -> None:
    world.with_vault = True
    world.plane.issue(_credential())
    world.safe.failure = VaultFailure("Vault is sealed: unseal it, then run again.", reason="sealed")
    assert world.fails(VaultFailure).reason == "sealed"
    assert (world.receipt.phase, world.receipt.generation) == ("ISSUED", 1)
    assert world.spooled == []
    assert not world.env.exists()
    world.safe.failure = None
    outcome = world.run()
    assert (world.receipt.phase, outcome.changed) == ("STORED", True)
    assert world.safe.entries[PATH] == {"token": Secret(f"{CANARY}-one")}
    assert len(world.plane.attempts) == 1
    assert world.run().changed is False


def test_a_delivery_that_fails_leaves_the_credential_in_the_spool(world: World) -> None:
    world.plane.issue(_credential())
    host = t.cast(Host, Broken(world.host(), HostFailure("The disk of the host is full: make room.", reason="disk_full")))
    assert world.fails(HostFailure, host).reason == "disk_full"
    assert len(world.spooled) == 1
    assert world.run().action == "resumed"
    assert (world.spooled, len(world.plane.attempts)) == ([], 1)


def test_a_spooled_credential_that_died_is_replaced(world: World) -> None:
    Spool(str(world.folder / "spool"), URL, NAME).keep(_credential("dead"), {})
    world.plane.issue(_credential("alive"))
    assert world.run().action == "registered"
    assert "alive" in world.env.read_text()
    assert world.spooled == []


# -- before the first side effect -------------------------------------------------------------------------------------------------------------------


def test_an_unknown_secret_in_vault_paths_stops_everything(world: World) -> None:
    world.with_vault = True
    error = world.fails(InvalidInput, vault_paths=(VaultPath(PATH, {"token": "tokn"}),))
    assert "'tokn'" in error.msg
    assert "token" in error.msg
    assert not (world.folder / "store").exists()


def test_a_bad_name_stops_everything(world: World) -> None:
    world.fails(InvalidInput, enrolment=replace(world.order.enrolment, name="host-20260101"))
    assert not (world.folder / "store").exists()


@pytest.mark.parametrize("skew", [-301.0, 301.0, 86400.0])
def test_a_server_whose_clock_is_off_stops_everything(skew: float, world: World) -> None:
    world.plane.state = ServerState(version="2.0.0", clock_skew=skew)
    assert world.fails(Mismatch).reason == "clock_skew"
    assert not (world.folder / "store").exists()


@pytest.mark.parametrize("skew", [-299.0, 299.0, None])
def test_a_clock_that_is_a_little_off_is_no_obstacle(skew: float | None, world: World) -> None:
    world.plane.state = ServerState(version="2.0.0", clock_skew=skew)
    world.plane.issue(_credential())
    assert world.run().action == "registered"


def test_forks_take_each_others_word_for_the_server_for_a_moment(world: World) -> None:
    world.with_forks = True
    world.plane.state = ServerState("2.0.0", (), 7.0, enforced=True)
    world.plane.issue(_credential())
    world.run()
    world.plane.http.clock_skew = None
    again = world.run()
    assert (world.plane.probes, again.server, world.plane.http.clock_skew) == (1, world.plane.state, 7.0)
    world.clock.sleep(3.0)
    world.run()
    assert world.plane.probes == 2


def test_a_run_asks_by_itself_whatever_another_one_was_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.with_forks = True
    world.plane.issue(_credential())
    world.run()
    monkeypatch.setattr(_enrolment, "this_run", lambda: "another")
    world.run()
    assert world.plane.probes == 2


def test_check_mode_asks_by_itself(world: World) -> None:
    world.with_forks = True
    world.plane.issue(_credential())
    world.run()
    world.plane.state = Unreachable("The control plane cannot be reached by anybody.")
    world.fails(Unreachable, check_mode=True)


def test_a_server_that_was_not_well_is_asked_again(world: World) -> None:
    world.with_forks = True
    world.plane.state = ServerFault("The control plane says that it is not healthy.")
    for _fork in range(2):
        world.fails(ServerFault)
    assert world.plane.probes == 2


def _hold(world: World, controller: str, seconds: int) -> None:
    root = Path(world.host().root)
    root.mkdir(parents=True)
    (root / "intent").write_bytes(Intent("theirs", controller, int(time.time()) + seconds, "enrol").dump())


def test_another_controllers_lease_is_waited_for_and_then_told(world: World) -> None:
    _hold(world, "another.test:4711", 9999)
    error = world.fails(Busy, lease=2)
    assert "another.test:4711" in error.msg
    assert 7.0 <= sum(world.clock.slept) <= 8.5
    assert world.plane.attempts == []


def test_the_lease_of_a_dead_run_of_this_controller_is_taken_over(world: World) -> None:
    _hold(world, f"{socket.gethostname()}:{2**22 + 1}", 9999)
    world.plane.issue(_credential())
    assert world.run().action == "registered"
    assert world.plane.attempts == ["theirs"]
    assert world.clock.slept == []


# -- check mode -----------------------------------------------------------------------------------------------------------------------------------


class _Watched:
    """A host, Vault or control plane that raises as soon as anything would change."""

    def __init__(self, real: t.Any, *mutating: str) -> None:
        self._real = real
        self._mutating = mutating

    def __getattr__(self, name: str) -> t.Any:
        if name in self._mutating:
            raise AssertionError(f"{name} was called in check mode")
        return getattr(self._real, name)

    def look(self, *args: t.Any, **options: t.Any) -> Look:
        if options.get("intent") is not None or options.get("force"):
            raise AssertionError("an intent was recorded in check mode")
        return t.cast(Look, self._real.look(*args, **options))


@pytest.mark.parametrize("situation", ["bare", "enrolled", "drifted", "refused", "pending", "spooled", "vault only", "metadata"])
def test_check_mode_changes_nothing_anywhere(situation: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.with_vault = True
    enrolment = world.order.enrolment
    if situation not in ("bare", "vault only", "spooled"):
        world.plane.issue(_credential())
        world.run()
    if situation == "drifted":
        world.env.write_text("TOKEN=other\n")
        world.safe.entries.clear()
    elif situation == "refused":
        world.plane.accepted.clear()
    elif situation == "pending":
        world.plane.accepted.clear()
        world.plane.fallback = PENDING
    elif situation == "spooled":
        Spool(str(world.folder / "spool"), URL, NAME).keep(_credential(), {})
        world.plane.accepted = [_credential()]
    elif situation == "vault only":
        world.safe.entries[PATH] = {"token": Secret(f"{CANARY}-one")}
        world.plane.accepted = [_credential(agent_id="")]
    elif situation == "metadata":
        enrolment = replace(enrolment, version="2.0.0")
    before = {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    entries = dict(world.safe.entries)
    for name in ("register", "refresh_metadata", "own_credential", "revoke"):
        monkeypatch.setattr(world.plane, name, lambda *_args, name=name: pytest.fail(f"{name} was called in check mode"))
    world.safe = t.cast(Safe, _Watched(world.safe, "ensure", "ensure_agent_token", "remove"))
    host = t.cast(Host, _Watched(world.host(), "deliver", "execute"))
    outcome = world.run(host, check_mode=True, enrolment=enrolment)
    assert outcome.changed == (situation != "enrolled")
    assert {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()} == before
    assert world.safe.entries == entries
    assert CANARY not in repr(outcome)
    if outcome.changed:
        assert outcome.msg.startswith("Would be done: ")


def test_check_mode_knows_no_id_of_an_agent_that_is_not_there(world: World) -> None:
    outcome = world.run(check_mode=True)
    assert (outcome.action, outcome.receipt.agent_id, dict(outcome.receipt.fingerprints)) == ("registered", "", {})


# -- control planes with ways of their own --------------------------------------------------------------------------------------------------------


def test_a_lost_answer_is_recovered_by_the_adapters_own_way(world: World) -> None:
    world.plane.answers = [Ambiguous("The answer was lost on the way.")]
    world.plane.issue(_credential())
    assert world.run().action == "registered"
    assert world.plane.asked_as == ["register", "recover"]


def test_so_is_that_of_a_run_that_died(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.plane.issue(_credential("lost"))
    monkeypatch.setenv("MUSTER_AGENTS_TEST_FAULT", "after_issue=raise")
    world.fails(AgentsError)
    monkeypatch.delenv("MUSTER_AGENTS_TEST_FAULT")
    world.plane.issue(_credential())
    assert world.run().action == "registered"
    assert world.plane.asked_as == ["register", "recover"]
    assert len(set(world.plane.attempts)) == 1


@pytest.mark.parametrize(("adopt", "registered", "seen", "taken"), [
    ("always", 1.0, 1.0, True), ("stale", 99999.0, None, True), ("stale", 99999.0, 3700.0, True), ("stale", 99999.0, 60.0, False), ("stale", 60.0, None, False),
    ("stale", None, None, False), ("never", 99999.0, 99999.0, False),
])
def test_a_taken_name_is_reissued_only_when_it_may_be_taken(
    adopt: str, registered: float | None, seen: float | None, taken: bool, world: World,
) -> None:
    world.plane.found = Record(
        NAME, AGENT_ID, last_seen="" if seen is None else _moment(seen), registered_at="" if registered is None else _moment(registered))
    world.plane.answers = [IdentityConflict("The name is registered already.")]
    world.plane.reissues = [Issued(_credential("new"), created=True, warnings=("The old record stays.",))]
    world.plane.accepted.append(_credential("new"))
    if not taken:
        assert "adopt: always" in world.fails(IdentityConflict, adopt=adopt).msg
        assert len(world.plane.reissues) == 1
        return
    outcome = world.run(adopt=adopt)
    assert (outcome.action, outcome.reason, outcome.warnings) == ("reissued", "name_taken", ("The old record stays.",))
    assert f"TOKEN={CANARY}-new" in world.env.read_text()


def test_a_taken_name_that_nothing_may_replace_says_so(world: World) -> None:
    world.plane.answers = [IdentityConflict("The name is registered already.")]
    world.plane.reissues = [None]
    assert "remove the record" in world.fails(IdentityConflict, adopt="always").msg


@pytest.mark.parametrize(("used", "refreshed"), [(0.1, False), (0.66, False), (0.68, True), (0.99, True)])
def test_a_credential_is_refreshed_when_its_share_of_life_is_used(used: float, refreshed: bool, world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    now = time.time()
    world.plane.life = Lifetime(now - used * 1000, now + (1 - used) * 1000)
    world.plane.fresh = Issued(_credential("fresh"), created=False)
    world.plane.accepted.append(_credential("fresh"))
    planned = world.run(check_mode=True)
    assert (planned.action, planned.changed) == (("refreshed", True) if refreshed else ("unchanged", False))
    assert world.receipt.generation == 1
    outcome = world.run()
    assert (outcome.action, outcome.changed) == (("refreshed", True) if refreshed else ("unchanged", False))
    assert world.receipt.generation == (2 if refreshed else 1)
    assert (f"TOKEN={CANARY}-fresh" in world.env.read_text()) is refreshed
    assert len(world.plane.attempts) == 1


@pytest.mark.parametrize("answer", [Rejected("The secret is gone."), Ambiguous("The answer was lost."), None])
def test_a_credential_that_cannot_be_refreshed_is_kept_while_it_is_good(answer: AgentsError | None, world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    world.plane.life = Lifetime(time.time() - 900, time.time() + 100)
    world.plane.fresh = answer
    outcome = world.run()
    assert (outcome.action, outcome.changed) == ("unchanged", False)
    assert bool(outcome.warnings) is (answer is not None)


def test_a_refreshed_credential_that_is_refused_is_dropped(world: World) -> None:
    world.plane.issue(_credential())
    world.run()
    world.plane.life = Lifetime(time.time() - 900, time.time() + 100)
    world.plane.fresh = Issued(_credential("useless"), created=False)
    outcome = world.run()
    assert (outcome.action, world.spooled) == ("unchanged", [])
    assert "does not accept" in outcome.warnings[0]
    assert world.receipt.generation == 1


def test_vault_holds_the_agents_id_where_its_readers_want_it(world: World) -> None:
    world.with_vault = True
    world.plane.issue(_credential())
    paths = (VaultPath(PATH, {"jwt_token": "token", "collector_id": "agent_id"}),)
    world.run(vault_paths=paths)
    assert {name: value.reveal() for name, value in world.safe.entries[PATH].items()} == {"jwt_token": f"{CANARY}-one", "collector_id": AGENT_ID}
    shutil.rmtree(world.folder / "store")
    world.env.unlink()
    adopted = world.run(vault_paths=paths, adopt="always")
    assert (adopted.action, adopted.receipt.agent_id, len(world.plane.attempts)) == ("adopted", AGENT_ID, 1)
