# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small world for rotations: one host with a real store, a Vault, a running process, and control planes of the three kinds there are.

Every effect (a visit to the host, a request) is numbered, so that a test can end a run before or after each of them, or let somebody else act there.
"""

from __future__ import annotations

import hashlib
import itertools
import time
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from store_ways import NAME, URL

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, HostFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Outcome, Parts, Transaction
from ansible_collections.muster.agents.plugins.plugin_utils._errors import GateRed, HostFailure, IdentityConflict, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._health import GateOptions
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look
from ansible_collections.muster.agents.plugins.plugin_utils._identity import Gathering
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile
from ansible_collections.muster.agents.plugins.plugin_utils._rotation import Rotated, Rotation, RotationOrder
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import Due
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

PATH = "secret/data/agent/token"
UNIT = "agent.service"
ENV = "/opt/agent/agent.env"
ALWAYS = Due(("always",), 90, 30, 67)
AGE = Due(("age",), 90, 30, 67)


class Dead(BaseException):
    """The controller was killed here."""


@dataclass
class Effects:
    """The effects of a run, counted. at: number -> what happens there, before the effect or after it."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    before: dict[int, t.Callable[[], None]] = field(default_factory=dict)
    after: dict[int, t.Callable[[], None]] = field(default_factory=dict)

    def take(self, name: str, work: t.Callable[[], t.Any]) -> t.Any:
        """Do *work* as the next effect."""
        number = self.count
        self.count += 1
        self.names.append(name)
        if number in self.before:
            self.before[number]()
        result = work()
        if number in self.after:
            self.after[number]()
        return result


class Server(ControlPlane):
    """What all three kinds share. tokens: record id -> the tokens that are good for it."""

    key = "stacker"
    rules = IdentityRules(128, "[A-Za-z0-9_-]", "letters")
    secret_names = ("token",)

    def __init__(self, world: World) -> None:
        super().__init__(t.cast(t.Any, SimpleNamespace(url=URL, clock_skew=0.0, close=lambda: None)), Bootstrap())
        self.world = world
        self.tokens: dict[str, list[str]] = {}
        self.numbers = itertools.count(1)
        self.life: Lifetime | None = None

    def accepts(self, token: str) -> bool:
        """Whether a token is good now."""
        return any(token in good for good in self.tokens.values())

    def probe(self) -> ServerState:
        return ServerState("1.0", clock_skew=0.0)

    def find(self, name: str, credential: Credential | None) -> Record | None:
        return Record(NAME, next(iter(self.tokens), ""))

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        return t.cast(Issued, self.world.effects.take("register", lambda: self._register()))

    def _register(self) -> Issued:
        if self.tokens:
            raise IdentityConflict("taken")
        return Issued(self._further(), created=True)

    def _further(self) -> Credential:
        number = next(self.numbers)
        self.tokens[f"id-{number}"] = [f"issued-{number}"]
        return Credential(f"id-{number}", {"token": Secret(f"issued-{number}")})

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        good = self.world.effects.take("prove", lambda: self.accepts(credential.secrets["token"].reveal()))
        return Proof(accepted=good, definite=True, how="probe", detail="" if good else "HTTP 401")

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        return None

    def lifetime(self, credential: Credential) -> Lifetime | None:
        return self.life

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        return Withdrawal()


class ThroughVault(Server):
    """Whatever Vault holds is good, and nothing else."""

    capabilities = Capabilities(overlap=False, restore_old=True, revoke="credential", key_born_on="none", prove_on="controller", token_lifetime=None)

    def accepts(self, token: str) -> bool:
        return bool(self.tokens) and self.world.safe.value() == token

    def _further(self) -> Credential:
        issued = super()._further()
        self.world.safe.put(issued.secrets["token"].reveal())
        return issued

    def own_credential(self) -> Secret | None:
        return Secret(f"own-{next(self.numbers)}")


class WithOverlap(Server):
    """Each rotation makes a further record; the old one is good until somebody deletes it."""

    capabilities = Capabilities(overlap=True, restore_old=True, revoke="record", key_born_on="none", prove_on="controller", token_lifetime=None)
    retires = True

    def rotate(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        return t.cast(Issued, self.world.effects.take("issue", lambda: self._rotate(credential)))

    def _rotate(self, credential: Credential) -> Issued:
        for other in [number for number in self.tokens if number != credential.agent_id and number not in self.world.used]:
            del self.tokens[other]  # never used: the fruit of a lost try
        return Issued(self._further(), created=False)

    def retire(self, enrolment: Enrolment, unwanted: Credential, kept: Credential) -> Withdrawal:
        self.world.effects.take("retire", lambda: self.tokens.pop(unwanted.agent_id, None))
        return Withdrawal()

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        self.tokens.clear()
        return Issued(self._further(), created=True)


class Destructive(Server):
    """A new token kills the old one, and nothing brings it back."""

    capabilities = Capabilities(overlap=False, restore_old=False, revoke="record", key_born_on="none", prove_on="controller", token_lifetime=None)

    def rotate(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        return t.cast(Issued, self.world.effects.take("issue", self._regenerate))

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        return t.cast(Issued, self.world.effects.take("issue", self._regenerate))

    def _regenerate(self) -> Issued:
        number = next(self.numbers)
        (name,) = self.tokens
        self.tokens[name] = [f"issued-{number}"]
        return Issued(Credential(name, {"token": Secret(f"issued-{number}")}), created=False)


class Safe:
    """One entry of KV v2."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.versions: list[str] = []
        self.failure: VaultFailure | None = None

    def value(self) -> str:
        """What its readers find, empty for nothing."""
        return self.versions[-1] if self.versions else ""

    def put(self, token: str) -> None:
        """Write as anybody may."""
        self.versions.append(token)

    def authenticate(self) -> None:
        """Nothing to do."""

    def preflight(self, paths: t.Sequence[VaultPath], **_options: t.Any) -> None:
        """Everything is allowed."""

    def read(self, path: VaultPath) -> VaultEntry:
        return t.cast(VaultEntry, self.world.effects.take("vault read", lambda: VaultEntry(
            PATH, "secret", 2, bool(self.versions), len(self.versions), {"token": Secret(self.value())} if self.versions else {})))

    def recall(self, path: VaultPath) -> VaultEntry:
        return self.read(path)

    def plan(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        changed = self.value() != secrets["token"].reveal()
        return VaultChange(PATH, "secret", 2, changed, len(self.versions), len(self.versions) + changed, ("token",))

    def ensure(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        return t.cast(VaultChange, self.world.effects.take("vault write", lambda: self._written(path, secrets)))

    def exchange(self, path: VaultPath, secrets: t.Mapping[str, Secret], seen: VaultEntry) -> VaultChange:
        return t.cast(VaultChange, self.world.effects.take("vault write", lambda: self._exchanged(path, secrets, seen)))

    def _exchanged(self, path: VaultPath, secrets: t.Mapping[str, Secret], seen: VaultEntry) -> VaultChange:
        if self.plan(path, secrets).changed and seen.version != len(self.versions):
            raise VaultFailure("changed by somebody else", reason="cas_conflict")
        return self._written(path, secrets)

    def _written(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        change = self.plan(path, secrets)
        if change.changed:
            if self.failure is not None:
                raise self.failure
            self.put(secrets["token"].reveal())
        return change


@dataclass
class Disk:
    """What a host keeps: the store's own files by name, and rendered files by path."""

    receipt: bytes = b""
    key: str = ""
    intent: Intent | None = None
    generations: dict[int, dict[str, str]] = field(default_factory=dict)
    files: dict[str, HostFile] = field(default_factory=dict)
    previous: dict[str, HostFile] = field(default_factory=dict)
    leftovers: set[str] = field(default_factory=set)


class MemoryHost:
    """A handle on the host, as _host.Host is one; what scripts and module do on a disk is tested with them."""

    root = f"/var/lib/muster/stacker/{NAME}"

    def __init__(self, world: World) -> None:
        self.world = world

    def look(
        self, read: t.Sequence[str] = (), *, facts: bool = False, intent: Intent | None = None, url: str = "", lease: int = 60, force: bool = False,
        takeover: str = "", will_deliver: bool = False,
    ) -> Look:
        """Read the store; record *intent* as the host does."""
        return t.cast(Look, self.world.effects.take("look", lambda: self._look(read, intent, url, lease, force, takeover)))

    def _look(self, read: t.Sequence[str], intent: Intent | None, url: str, lease: int, force: bool, takeover: str) -> Look:
        disk, said = self.world.disk, ""
        receipt = Receipt.load(disk.receipt) if disk.receipt else None
        settled = receipt is not None and receipt.phase in ("ISSUED", "STORED", "ACTIVE", "COMMITTED") and receipt.url == url
        if intent is not None and (force or not settled):
            held = disk.intent
            if held is not None and held.controller not in (intent.controller, takeover) and held.lease_until > self.world.now():
                said = "held"
            else:
                disk.intent = replace(intent, attempt=held.attempt if held is not None else intent.attempt, lease_until=int(self.world.now()) + lease)
                said = "recorded"
        secrets = {number: {name: Secret(text) for name, text in stored.items() if name != "agent_id"} for number, stored in disk.generations.items()}
        ids = {number: stored["agent_id"] for number, stored in disk.generations.items()}
        newest = max(secrets, default=0)
        return Look(
            receipt=receipt, receipt_digest=hashlib.sha256(disk.receipt).hexdigest() if disk.receipt else "", generations=secrets,
            files={path: disk.files[path] for path in read if path in disk.files}, previous=dict(disk.previous), facts={}, tools=frozenset(),
            time=int(self.world.now()), key=disk.key, intent=said, held=disk.intent, free_kib=1 << 20, secrets=secrets.get(newest, {}),
            agent_id=ids.get(newest, ""), ids=ids, taken_at=self.world.now(), leftovers=tuple(sorted(disk.leftovers)))

    def deliver(self, delivery: Delivery) -> None:
        """Put *delivery* in place, whole."""
        self.world.effects.take("deliver", lambda: self._deliver(delivery))

    def _deliver(self, delivery: Delivery) -> None:
        disk = self.world.disk
        if (hashlib.sha256(disk.receipt).hexdigest() if disk.receipt else "") != delivery.expect:
            raise HostFailure("The store was changed by another run.", reason="changed")
        if delivery.remove_all:
            self.world.disk = Disk()
            return
        if delivery.save_previous:
            disk.previous = {item.path: disk.files[item.path] for item in delivery.files if item.path in disk.files}
        if delivery.generation:
            disk.generations[delivery.generation] = {name: content.decode() for name, content in delivery.secrets}
        disk.files.update({item.path: HostFile(item.content, item.mode, item.owner, item.group) for item in delivery.files})
        disk.key = disk.key or delivery.key
        disk.receipt = delivery.receipt or disk.receipt
        if delivery.keep:
            disk.generations = {number: stored for number, stored in disk.generations.items() if number in delivery.keep}
        disk.leftovers -= set(delivery.remove)
        if not delivery.keep_intent:
            disk.intent = None

    def nudge(self, verb: str, units: t.Sequence[str]) -> None:
        """Restart the unit, which reads its file then."""
        self.world.effects.take("nudge", self.world.restart)


class ProcessGate:
    """The gate as the process decides it: green when the control plane accepts the token that the process read at its start."""

    world: t.ClassVar[World]

    def __init__(self, options: GateOptions, host: MemoryHost, plane: ControlPlane) -> None:
        self._host = host

    def run(self) -> dict[str, t.Any]:
        world = ProcessGate.world
        look = self._host.look()
        if world.reds:
            world.reds -= 1
            raise GateRed("The agent is not well.", reason="unit_failed")
        if not world.plane.accepts(world.process):
            raise GateRed("The control plane refuses it.", reason="credential_refused")
        world.used.update(name for name, good in world.plane.tokens.items() if world.process in good)
        if look.receipt is not None:
            receipt = replace(look.receipt.moved("COMMITTED", "the gate is green", 1), pending_restart=0)
            self._host.deliver(Delivery(self._host.root, look.receipt_digest, receipt=receipt.dump()))
        return {"checks": [], "duration": 0.0}


class World:
    """Everything together. process is the token that the running agent works with; used holds records that an agent has used."""

    def __init__(self, folder: Path, kind: type[Server], *, vault: bool = True) -> None:
        self.folder = folder
        self.disk = Disk()
        self.effects = Effects()
        self.safe = Safe(self)
        self.plane = kind(self)
        self.vault = vault
        self.process = ""
        self.reds = 0
        self.used: set[str] = set()
        self.clock = Clock.shared
        ProcessGate.world = self

    @property
    def receipt(self) -> Receipt:
        """The receipt on the host."""
        return Receipt.load(self.disk.receipt)

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return time.time() + self.clock.slept

    def restart(self) -> None:
        """Let the process read its file."""
        found = self.disk.files.get(ENV)
        self.process = found.content.decode().split("TOKEN=")[1].strip() if found is not None else ""

    def enrol(self) -> Outcome:
        """Run agent_register, then what the service role and the gate do."""
        parts = self._parts()
        outcome = Transaction(self._order(check_mode=False), parts).run()
        if outcome.receipt.pending_restart or not self.process:
            self.restart()
        if self.receipt.phase != "COMMITTED":
            ProcessGate(GateOptions(NAME, (UNIT,)), t.cast(MemoryHost, parts.host), self.plane).run()
        return outcome

    def rotate(self, due: Due = ALWAYS, *, nudge: str = "restart", check_mode: bool = False) -> Rotated:
        """Run token_rotate."""
        wish = RotationOrder(due, GateOptions(NAME, (UNIT,)), nudge, 60)
        return Rotation(self._order(check_mode=check_mode), self._parts(), wish).rotate()

    def check(self) -> None:
        """Fail unless host, file, Vault, process and control plane agree, with one live record and nothing left lying about."""
        receipt = self.receipt
        token = self.disk.generations[receipt.generation]["token"]
        assert self.plane.accepts(token), "the control plane refuses the token in the store"
        assert self.disk.files[ENV].content.decode() == f"TOKEN={token}\n", "the file holds another token"
        assert self.process == token, "the process works with another token"
        assert not self.vault or self.safe.value() == token, "Vault holds another token"
        assert len(self.plane.tokens) == 1, f"there are {len(self.plane.tokens)} records"
        assert receipt.phase in ("STORED", "COMMITTED"), receipt.phase
        assert max(self.disk.generations) == receipt.generation, "a generation is left over"
        assert self.disk.intent is None, "the lease is left over"
        assert not self.disk.leftovers, "something half written is left over"
        assert list((self.folder / "spool").glob("*")) == [], "a credential waits in the spool"

    def _order(self, *, check_mode: bool) -> Order:
        paths = (VaultPath(PATH, {"token": "token"}),) if self.vault else ()
        return Order(
            Enrolment(NAME, "1.0.0", ("logs",), hostname="edge"), {}, vault_paths=paths, settle_timeout=0.0, lease=1, adopt="always",
            check_mode=check_mode, gathering=Gathering(system_info=False, capabilities=False))

    def _parts(self) -> Parts:
        def render(agent: t.Mapping[str, t.Any], secrets: t.Mapping[str, Secret]) -> tuple[RenderedFile, ...]:
            text = f"TOKEN={secrets['token'].reveal()}\n"
            return (RenderedFile(ENV, text.encode(), "root", "root", "0600", "0755", "", True, ("TOKEN",), "env"),)

        return Parts(
            self.plane, t.cast(Host, MemoryHost(self)), Spool(str(self.folder / "spool"), URL, NAME), render, (ENV,),
            t.cast(Vault, self.safe) if self.vault else None, "https://vault.test" if self.vault else "")


class Clock:
    """Time that passes where somebody sleeps; there is one."""

    shared: t.ClassVar[Clock]

    def __init__(self) -> None:
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def monotonic(self) -> float:
        return self.slept

    def time(self) -> float:
        return time.time() + self.slept


Clock.shared = Clock()
