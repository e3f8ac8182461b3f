# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rotation transaction: host, Vault and control plane move to a new credential together, or not at all (private to muster.agents).

The order is: lease, new credential staged beside the old one on the host, Vault by check-and-set, proof by use, files, nudge, gate on the running
process, and only then is the old credential retired. Where the control plane trusts what Vault holds, the credential is our own and durable on the
host before anybody else has it; where the control plane issues it, it is durable on the host before Vault or files have it.

Whatever goes wrong before the gate is green is undone: Vault by check-and-set, files, process. A run that dies anywhere is finished by the next one,
which asks reality first: which of the credentials that exist does the control plane accept?
"""

from __future__ import annotations

import hashlib
import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible.errors import AnsibleConnectionFailure

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, HostFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt, VaultLeaf
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, fingerprint
from ansible_collections.muster.agents.plugins.plugin_utils import _faults as faults
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import AGENT_ID, Candidate
from ansible_collections.muster.agents.plugins.plugin_utils._delivery_plan import changed_files, delivered, file_diffs, host_time, staged
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Parts, Transaction
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    Busy,
    GateRed,
    HostFailure,
    InvalidInput,
    InvalidRequest,
    Rejected,
    ServerFault,
    VaultFailure,
)
from ansible_collections.muster.agents.plugins.plugin_utils._health import Gate, GateOptions
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look, controller_identity, holder_is_dead, require_free
from ansible_collections.muster.agents.plugins.plugin_utils._identity import completed
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import Due, Origin, RotationPlan, State, judge
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils._vault import VaultChange, VaultEntry, check_secret_names
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Issued, Proof

__all__ = ["Held", "Rotated", "Rotation", "RotationOrder", "Situation", "steps_as_result"]

_ENROLLED = ("STORED", "ACTIVE", "COMMITTED", "ROTATING", "ROLLING_BACK")
_ASK_AGAIN = (0.2, 1.0)
_PENDING = "generation "
_CAME_BACK = "rolled back to generation "


@dataclass(frozen=True)
class RotationOrder:
    """What the operator asks for beside the enrolment's order. nudge: restart, reload or none, for the gate's units. lease is in seconds."""

    due: Due
    gate: GateOptions
    nudge: str
    lease: int


@dataclass(frozen=True)
class Rotated:
    """What happened, or would happen in check mode. Holds no secret. steps are (name, outcome) in the order in which they were taken."""

    action: str
    reason: str
    msg: str
    changed: bool
    receipt: Receipt
    plan: RotationPlan
    steps: tuple[tuple[str, str], ...] = ()
    vault: tuple[VaultChange, ...] = ()
    files: tuple[tuple[str, bool], ...] = ()
    warnings: tuple[str, ...] = ()
    gate: t.Mapping[str, t.Any] = field(default_factory=dict)
    diff: tuple[t.Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Held:
    """A credential with what else its generation holds (such as the agent's own Vault token), and the number it has on the host (0: none yet)."""

    credential: Credential
    extra: t.Mapping[str, Secret]
    generation: int
    origin: str

    @property
    def stored(self) -> dict[str, Secret]:
        """Everything that its generation on the host holds."""
        return {**self.extra, **self.credential.secrets}


@dataclass(frozen=True)
class Situation:
    """Where host and control plane stand.

    accepted is the credential that works; step is where to go on from: fresh (nothing is under way), forward (accepted is new and not everywhere yet),
    staged (ours waits on the host), gate (delivered and not proved by the process), back (accepted is the older one, the host has moved on),
    returned (all is back on the older one, and the process has not proved itself with it either).
    """

    accepted: Held
    step: str
    other: Held | None = None

    def given(self, plan: RotationPlan) -> Situation:
        """Return it with what is to be done: one that came back begins anew where a rotation is due, else only its process is judged."""
        if self.step != "returned":
            return self
        return replace(self, step="fresh" if plan.due else "gate")


class Rotation(Transaction):
    """One identity's rotation on one host. It shares with the enrolment how an identity is checked, found and rendered."""

    def __init__(self, order: Order, parts: Parts, wish: RotationOrder, *, attempt: str = "") -> None:
        """*attempt* is the idempotency key of this try, made anew when not given."""
        super().__init__(order, parts, attempt=attempt)
        self.wish = wish
        self._steps: list[tuple[str, str]] = []
        self._changes: dict[str, VaultChange] = {}
        self._seen: dict[str, VaultEntry] = {}
        self._before: t.Mapping[str, HostFile] | None = None
        self._warnings: list[str] = []
        self._leased = False
        self._retried = False
        self._nudging = False
        self._issued_before = 0

    def rotate(self) -> Rotated:
        """Carry the rotation through, finish one that was interrupted, or say what would be done. Raises AgentsError."""
        self._preflight()
        faults.reach("after_probe")
        look = self._read()
        faults.reach("after_look")
        situation = self._situation(look)
        plan = self._plan(look, situation)
        situation = situation.given(plan)
        if plan.due or situation.step != "fresh":
            self._rendered(situation.accepted)  # a template that cannot be rendered is found out while nothing has been touched
        faults.reach("after_plan")
        if self.order.check_mode:
            return self._foretold(look, situation, plan)
        if situation.step == "fresh" and not plan.due:
            return self._nothing_due(look, plan)
        first = look
        look = self._lease(look)
        faults.reach("after_lease")
        try:
            if look.receipt_digest != first.receipt_digest:
                situation = self._situation(look).given(plan)
                if situation.step == "fresh" and _receipt(look).generation != _receipt(first).generation:
                    self._release(look)
                    return self._unchanged(look, plan, "rotated_elsewhere", f"{self.enrolment.name} was rotated by another run meanwhile.")
            return self._go_on(look, situation, plan)
        except AgentsError as error:
            self._explain(error, plan)
            self._release_after_failure()
            raise

    # -- looking ---------------------------------------------------------------------------------------------------------------------------

    def _read(self) -> Look:
        """Look at the host, writing nothing. Raises InvalidInput when it holds no enrolled agent of this control plane."""
        pair = (self.enrolment.certificate_path,) if self.enrolment.certificate_path else ()
        look = self.parts.host.look((*self.parts.file_paths, *pair), facts=self.order.gathering.needed, url=self.parts.plane.http.url)
        self._check_host(look)
        self._check_enrolled(look)
        self._check_fields(look)
        self.enrolment = completed(self.enrolment, look, self.order.gathering)
        return look

    def _check_fields(self, look: Look) -> None:
        """Raise InvalidInput when Vault's fields name secrets that do not exist."""
        known = {AGENT_ID, *self.order.secrets, *self._issued_names(), *look.secrets}
        check_secret_names(self.order.vault_paths, known)

    def _check_enrolled(self, look: Look) -> None:
        receipt, url = look.receipt, self.parts.plane.http.url
        if receipt is None or receipt.url != url or receipt.phase not in _ENROLLED or not look.generations:
            raise InvalidInput(f"{self.enrolment.name} is not enrolled at {url} on this host: run agent_register first.", reason="not_enrolled")

    def _situation(self, look: Look) -> Situation:
        """Find out which credential the control plane accepts, and so where an interrupted run stopped. Raises Rejected when it accepts none."""
        receipt = _receipt(look)
        candidates = list(self._candidates(look))
        # What was issued and not staged comes first, or it would be left behind at the control plane; of two that are accepted while a run was
        # going back, the older one.
        going_back = receipt.phase == "ROLLING_BACK"
        candidates.sort(key=lambda item: (item.origin != "spool", item.origin != "store", item.generation if going_back else -item.generation))
        for candidate in candidates:
            proof = self._prove(candidate)
            if proof.accepted:
                return self._judged(look, receipt, self._as_held(look, candidate))
            if candidate.possessed and not proof.definite and not proof.pending:
                raise ServerFault(f"{self.parts.plane.http.url} could not say whether it accepts the credential of {self.enrolment.name} "
                                  f"({proof.detail}): nothing was changed, run again.")
        raise Rejected(f"{self.parts.plane.http.url} accepts none of the credentials of {self.enrolment.name} that host and Vault hold: "
                       "run agent_register, which finds or makes one.", reason="no_accepted_credential")

    def _as_held(self, look: Look, candidate: Candidate) -> Held:
        extra = dict(candidate.extra)
        if candidate.origin != "store":
            names = {*self.parts.plane.secret_names, *self.parts.plane.optional_secrets}
            extra = {**{name: value for name, value in look.secrets.items() if name not in names}, **extra}
        return Held(candidate.credential, extra, candidate.generation, candidate.origin)

    def _judged(self, look: Look, receipt: Receipt, accepted: Held) -> Situation:
        newest, current = look.generation(), receipt.generation
        if accepted.origin != "store" or accepted.generation > current:
            return Situation(accepted, "forward", self._generation(look, current))
        if accepted.generation < current:
            return Situation(accepted, "back", self._generation(look, current))
        if receipt.phase == "ROTATING" and newest > current and self._origin != "server":  # ours: it was written before it is valid
            return Situation(accepted, "staged", self._generation(look, newest))
        if receipt.phase in ("ACTIVE", "ROLLING_BACK"):
            if _came_back(receipt):
                return Situation(accepted, "returned")
            return Situation(accepted, "gate", self._generation(look, current - 1))
        return Situation(accepted, "fresh")

    def _generation(self, look: Look, number: int) -> Held | None:
        """Return what the host keeps under *number*, None when it is not there or not whole."""
        secrets, plane = look.generations.get(number, {}), self.parts.plane
        if not all(name in secrets for name in plane.secret_names):
            return None
        issued = {name: secrets[name] for name in (*plane.secret_names, *plane.optional_secrets) if name in secrets}
        extra = {name: value for name, value in secrets.items() if name not in issued}
        return Held(Credential(look.ids.get(number) or _receipt(look).agent_id, issued), extra, number, "store")

    def _plan(self, look: Look, situation: Situation) -> RotationPlan:
        """Judge whether rotation is due, from the receipt, the credential's own claims and what Vault holds."""
        receipt, plane = _receipt(look), self.parts.plane
        life = plane.lifetime(situation.accepted.credential)
        if self.parts.vault is not None:
            self._seen = {path.path: self.parts.vault.read(path) for path in self.order.vault_paths}
        oldest = receipt.issued_at or (life.issued_at if life is not None else 0.0) or (receipt.history[0].at if receipt.history else 0.0)
        state = State(time.time() + (plane.http.clock_skew or 0.0), oldest or self._written_at(), life, self._drift(situation.accepted))
        return judge(
            self.wish.due, state, plane.capabilities, origin=self._origin, vault=self.parts.vault is not None,
            nudge=self.wish.nudge if self.wish.gate.units else "none", retires=plane.retires)

    @property
    def _origin(self) -> Origin:
        """Where a new credential comes from: ours and valid through Vault, or the control plane's."""
        return "server" if self.parts.plane.own_credential() is None else "vault"

    def _written_at(self) -> float | None:
        times = [moment for entry in self._seen.values() for moment in [parse_time(entry.written_at)] if moment is not None]
        return min(times, default=None)

    def _drift(self, accepted: Held) -> tuple[str, ...]:
        """Say where Vault's readers find something else than the credential that the control plane accepts."""
        secrets = self._for_vault(accepted.credential, accepted.extra)
        return tuple(
            f"Vault's {path.path} holds something else than what the control plane accepts."
            for path in self._own_paths(secrets)
            if any(self._seen[path.path].fields.get(name) != secrets[secret] for name, secret in path.fields.items()))

    # -- answers without work --------------------------------------------------------------------------------------------------------------

    def _foretold(self, look: Look, situation: Situation, plan: RotationPlan) -> Rotated:
        receipt, name = _receipt(look), self.enrolment.name
        if situation.step != "fresh":
            msg = f"Would be done: an interrupted rotation of {name} would be finished ({situation.step})."
            return Rotated("planned", "unfinished", msg, True, receipt, plan)
        if plan.due:
            self._require_way(situation)
            back = "The old credential can be put back." if plan.restorable else "The old credential cannot be put back."
            return Rotated("planned", plan.reason, f"Would be done: {name} would be rotated. {plan.why} {back}", True, receipt, plan)
        if receipt.retire_pending:
            return Rotated("planned", "retire_pending", f"Would be done: what is left of an older credential of {name} would be removed.", True, receipt, plan)
        return self._unchanged(look, plan, "not_due", f"{name} keeps its credential. {plan.why}")

    def _nothing_due(self, look: Look, plan: RotationPlan) -> Rotated:
        receipt = _receipt(look)
        self.parts.spool.drop()  # what lies there is on the host too, or was refused
        if not receipt.retire_pending:
            if look.leftovers or self._stray(look) or (look.held is not None and (look.held.lease_until <= look.time or holder_is_dead(look.held.controller))):
                self._release(self._lease(look))  # a run that died before it did anything left them
            return self._unchanged(look, plan, "not_due", f"{self.enrolment.name} keeps its credential. {plan.why}")
        look = self._lease(look)
        receipt = self._retire(look)
        self._release(self.parts.host.look())
        changed = not receipt.retire_pending
        msg = f"What was left of an older credential of {self.enrolment.name} was removed." if changed else f"{self.enrolment.name} keeps its credential."
        return Rotated("retired" if changed else "unchanged", "retire_pending", msg, changed, receipt, plan, tuple(self._steps), warnings=tuple(self._warnings))

    def _unchanged(self, look: Look, plan: RotationPlan, reason: str, msg: str) -> Rotated:
        return Rotated("unchanged", reason, msg, False, _receipt(look), plan)

    # -- the lease -------------------------------------------------------------------------------------------------------------------------

    def _lease(self, look: Look) -> Look:
        """Take the lease on the identity, waiting while another controller holds it. Returns a look of that moment. Raises Busy or HostFailure."""
        intent = Intent(self.attempt, controller_identity(), 0, "rotate")
        deadline = time.monotonic() + self.wish.lease + 5
        takeover = ""
        pair = (self.enrolment.certificate_path,) if self.enrolment.certificate_path else ()
        while True:
            look = self.parts.host.look(
                (*self.parts.file_paths, *pair), intent=intent, url=self.parts.plane.http.url, lease=self.wish.lease, force=True, takeover=takeover)
            if look.intent != "held":
                break
            if look.held is not None and holder_is_dead(look.held.controller):
                takeover = look.held.controller
                continue
            if time.monotonic() > deadline:
                require_free(look, self.parts.host.root)
            time.sleep(0.5)
        require_free(look, self.parts.host.root)
        if look.held is not None:
            self.attempt = look.held.attempt
        self._leased = True
        self._check_enrolled(look)
        return look

    def _release(self, look: Look) -> None:
        """Let go of the lease, and take away what runs that died left half done; nothing that is in use is touched."""
        if self._leased and look.held is not None and look.held.controller == controller_identity():
            self.parts.host.deliver(Delivery(self.parts.host.root, look.receipt_digest, remove=look.rubbish, keep=self._worth_keeping(look)))
        self._leased = False

    def _stray(self, look: Look) -> bool:
        """Say whether the host has a generation that no receipt tells of: a run ended between its two steps of staging a credential of ours.

        Nobody else has heard of it then. What a control plane issued is another matter: it may be good once its server is ready.
        """
        receipt = _receipt(look)
        return self._origin != "server" and receipt.phase != "ROTATING" and look.generation() > receipt.generation

    def _worth_keeping(self, look: Look) -> tuple[int, ...]:
        """Return the generations to keep where there is a stray one; none, for all, where there is not."""
        receipt = _receipt(look)
        return _kept(receipt, receipt.generation, receipt.generation - 1) if self._stray(look) else ()

    def _without_stray(self, look: Look) -> Look:
        """Take a stray generation away while the lease is ours. Returns the look as it would be now."""
        keep = self._worth_keeping(look)
        if not keep:
            return look
        self.parts.host.deliver(Delivery(self.parts.host.root, look.receipt_digest, keep=keep, keep_intent=True))
        kept = {number: secrets for number, secrets in look.generations.items() if number in keep}
        return _after(look, _receipt(look), kept, {number: name for number, name in look.ids.items() if number in keep})

    def _release_after_failure(self) -> None:
        """Let go of the lease where the host can still be reached; otherwise it ends by itself."""
        if not self._leased:
            return
        try:
            self._release(self.parts.host.look())
        except (AgentsError, AnsibleConnectionFailure):
            return

    # -- the way forward -------------------------------------------------------------------------------------------------------------------

    def _go_on(self, look: Look, situation: Situation, plan: RotationPlan) -> Rotated:
        """Take the steps that are left."""
        accepted, other = situation.accepted, situation.other
        if situation.step == "back":
            return self._finish_going_back(look, accepted, other, plan)
        if situation.step == "gate":
            look = self._without_stray(look)
            return self._guarded(look, accepted, other, plan, "resumed", "unfinished", proved=True)
        if situation.step == "forward":
            reason = "vault_credential" if accepted.origin.startswith("vault:") else "unfinished"
            if reason == "vault_credential":  # somebody rotated it on purpose: what the host has is not put back over that
                return self._guarded(look, accepted, None, plan, "adopted", reason, proved=True)
            return self._guarded(look, accepted, other, plan, "resumed", reason, proved=True)
        self._before, self._issued_before = look.files, _receipt(look).issued_at
        if situation.step == "staged" and other is not None:
            return self._guarded(look, other, accepted, plan, "resumed", "unfinished", proved=False)
        self._require_way(situation)
        return self._begun(look, accepted, plan)

    def _begun(self, look: Look, accepted: Held, plan: RotationPlan) -> Rotated:
        """Get a new credential, and go on with it."""
        if self._origin == "server":
            return self._with_issued(look, accepted, plan)
        return self._guarded(look, self._own(accepted), accepted, plan, "rotated", plan.reason, proved=False)

    def _require_way(self, situation: Situation) -> None:
        """Raise InvalidInput when this control plane's own way of rotating is not open. Nothing was sent."""
        if self.parts.plane.own_credential() is not None and (self.parts.vault is None or not self.order.vault_paths):
            raise InvalidInput(
                f"{self.enrolment.name} is rotated through Vault, where its control plane looks credentials up: give vault and vault_paths.",
                reason="vault_needed")

    def _own(self, accepted: Held) -> Held:
        token = self.parts.plane.own_credential()
        if token is None:
            raise InvalidRequest(f"{self.parts.plane.key} takes no credential of ours.", reason="unsupported")
        secrets = {**accepted.credential.secrets, self.parts.plane.secret_names[0]: token}
        return Held(Credential(accepted.credential.agent_id, secrets), accepted.extra, 0, "own")

    def _with_issued(self, look: Look, accepted: Held, plan: RotationPlan) -> Rotated:
        """Let the control plane issue a new credential, then go on with it."""
        faults.reach("before_issue")
        # With overlap the old one is good and a further new one harmless; without, only a further new one helps.
        issued = self._asked(lambda: self.parts.plane.rotate(self.enrolment, accepted.credential, self.attempt), "rotate the credential")
        faults.reach("after_issue")
        self.parts.spool.keep(issued.credential, accepted.extra)
        faults.reach("after_spool")
        self._warnings.extend(issued.warnings)
        self._note("issue", "a new credential was issued")
        new = Held(issued.credential, accepted.extra, 0, "issued")
        return self._guarded(look, new, accepted, plan, "rotated", plan.reason, proved=False)

    def _asked(self, ask: t.Callable[[], Issued | None], what: str) -> Issued:
        """Return what the control plane issues, asking again when an answer is lost. Raises InvalidRequest where it has no way to do *what*."""
        for pause in (*_ASK_AGAIN, None):
            try:
                issued = ask()
                break
            except Ambiguous:
                if pause is None:
                    raise
                time.sleep(pause)
        if issued is None:
            raise InvalidRequest(f"{self.parts.plane.http.url} offers no way to {what} of {self.enrolment.name}.", reason="unsupported")
        return issued

    def _guarded(
        self, look: Look, new: Held, old: Held | None, plan: RotationPlan, action: str, reason: str, *, proved: bool,
    ) -> Rotated:
        """Go forward with *new*; undo it all when a step fails. *proved* says that the control plane accepts *new* already."""
        try:
            look, new = self._staged(look, new)
            new = self._prove_and_store(new, proved=proved)
            files = self._deliver(look, new, old)
            self._nudge()
            gate = self._gate()
        except AnsibleConnectionFailure:
            if not self._nudging:  # the host is away, and its process works with the old credential: that one shall be good until the next run
                self._vault_back_quietly(new, old, plan)
            raise
        except AgentsError as error:
            if isinstance(error, VaultFailure) and error.reason == "cas_conflict" and not self._retried:
                return self._once_more(new, old, plan, error)
            raise self._undone(new, old, plan, error) from None
        self._note("gate", "green")
        self._read_by_the_agent()
        receipt = self._retire(self.parts.host.look())
        self.parts.spool.drop()
        self._leased = False
        msg = _SENTENCES[action].format(name=self.enrolment.name, url=self.parts.plane.http.url, why=plan.why)
        return Rotated(
            action, reason, msg, True, receipt, plan, tuple(self._steps), tuple(self._changes.values()), files, tuple(self._warnings), gate,
            self._diff(look, files, receipt))

    def _prove_and_store(self, new: Held, *, proved: bool) -> Held:
        """Try *new* and put it into Vault: after that where Vault makes it valid, before it where the control plane issued it. Returns it as it is now."""
        through_vault = self._origin == "vault"
        if proved:
            self._note("prove", "accepted already")
        elif not through_vault:
            self._settled(new)
        self._to_vault(new)
        if not proved and through_vault:
            self._settled(new)
        return new

    def _read_by_the_agent(self) -> None:
        """Note elsewhere than in the receipt that the agent has read what it was given, where that is noted."""

    def _staged(self, look: Look, new: Held) -> tuple[Look, Held]:
        """Put *new* on the host beside the generation in use, which stays. Returns the look as it would be now."""
        receipt = _receipt(look)
        if new.generation:  # it is there already
            self._note("stage", f"generation {new.generation} was on the host already")
            if new.generation == receipt.generation or receipt.phase == "ROTATING":
                return look, new
        number = new.generation or look.generation() + 1
        pending = receipt.retire_pending
        if self.parts.plane.retires and new.credential.agent_id != receipt.agent_id:
            pending = tuple(sorted({*pending, f"{_PENDING}{receipt.generation}"}))
        moved = replace(receipt, retire_pending=pending).moved("ROTATING", f"generation {number} staged", int(time.time()))
        fresh = not new.generation
        self.parts.host.deliver(Delivery(
            self.parts.host.root, look.receipt_digest, receipt=moved.dump(), generation=number if fresh else 0,
            secrets=_files_of(new) if fresh else (), keep=_kept(moved, receipt.generation, number), keep_intent=True))
        self.parts.spool.drop()
        self._note("stage", f"generation {number}")
        faults.reach("after_stage")
        generations = {**look.generations, number: new.stored}
        return _after(look, moved, generations, {**look.ids, number: new.credential.agent_id}), replace(new, generation=number)

    def _to_vault(self, new: Held) -> None:
        """Give Vault's readers *new*, unless somebody else wrote there since the plan was made."""
        vault = self.parts.vault
        if vault is None:
            return
        secrets = self._for_vault(new.credential, new.extra)
        for path in self._own_paths(secrets):
            self._changes[path.path] = vault.exchange(path, secrets, self._seen.get(path.path) or vault.read(path))
            self._seen[path.path] = vault.read(path)
        self._note("vault", f"{sum(change.changed for change in self._changes.values())} entries written")
        faults.reach("after_vault")

    def _settled(self, new: Held) -> Proof:
        """Wait until the control plane accepts *new*. Raises Rejected when it does not in settle_timeout."""
        deadline = time.monotonic() + self.order.settle_timeout
        pause = 0.05
        while True:
            proof = self.parts.plane.prove(self.enrolment, new.credential)
            if proof.accepted:
                self._note("prove", f"accepted ({proof.how})")
                faults.reach("after_settle")
                return proof
            if time.monotonic() > deadline:
                raise Rejected(
                    f"{self.parts.plane.http.url} does not accept the new credential of {self.enrolment.name} after {self.order.settle_timeout:g} s "
                    f"({proof.detail or proof.how}).", reason="new_credential_refused")
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _deliver(self, look: Look, new: Held, old: Held | None) -> tuple[tuple[str, bool], ...]:
        """Render the files with *new*, put them in place and note that the process has not read them yet."""
        if _receipt(look).phase == "ACTIVE" and _receipt(look).generation == new.generation:
            self._note("deliver", "the host had it already")
            return ()
        rendered = self._rendered(new)
        changed = changed_files(look.files, rendered)
        receipt = self._receipt_for(look, new, rendered, "ACTIVE", f"generation {new.generation} delivered")
        restart = host_time(look) if any(item.restart for item in changed) else receipt.pending_restart
        receipt = replace(receipt, pending_restart=restart, issued_at=int(time.time()))
        keep = _kept(receipt, new.generation, old.generation if old is not None and old.generation else new.generation - 1)
        faults.reach("before_delivery")
        self.parts.host.deliver(Delivery(
            self.parts.host.root, look.receipt_digest, receipt=receipt.dump(), files=staged(changed), keep=keep, save_previous=True, keep_intent=True))
        self._note("deliver", f"{len(changed)} files written")
        faults.reach("after_delivery")
        names = {item.path for item in changed}
        self._rendered_files, self._changed_files = rendered, changed
        return tuple((item.path, item.path in names) for item in rendered)

    _rendered_files: tuple[RenderedFile, ...] = ()
    _changed_files: tuple[RenderedFile, ...] = ()

    def _rendered(self, held: Held) -> tuple[RenderedFile, ...]:
        return self.parts.render(
            self._agent_facts(held.credential.agent_id, held.generation, self.server.version), {**self.order.secrets, **held.stored})

    def _receipt_for(self, look: Look, held: Held, rendered: t.Sequence[RenderedFile], phase: str, why: str) -> Receipt:
        """Return the receipt with *held* as the credential in use."""
        receipt = _receipt(look)
        entries = {leaf.path: leaf for leaf in receipt.vault}
        entries.update({
            change.path: VaultLeaf(change.path, change.kv_version, change.version, tuple(change.fields)) for change in self._changes.values()})
        return replace(
            receipt, generation=held.generation, agent_id=held.credential.agent_id or receipt.agent_id, attempt=self.attempt,
            fingerprints={name: fingerprint(look.key, value) for name, value in sorted(held.stored.items())},
            vault=tuple(entries.values()), vault_url=self.parts.vault_url or receipt.vault_url,
            files=delivered(receipt.files, rendered, look.key) if rendered else receipt.files).moved(phase, why, int(time.time()))

    def _nudge(self) -> None:
        """Let the agent read its credential now. Raises HostFailure when a unit cannot be restarted."""
        self._nudging = True
        if self.wish.nudge == "none":
            return
        if self.wish.gate.units:
            self.parts.host.nudge(self.wish.nudge, self.wish.gate.units)
            self._note(self.wish.nudge, ", ".join(self.wish.gate.units))
        faults.reach("after_nudge")

    def _gate(self) -> dict[str, t.Any]:
        """Let the running process prove itself; green commits the receipt. Raises GateRed."""
        since = time.time() if self.wish.nudge == "none" or not self.wish.gate.units else 0.0
        result = Gate(replace(self.wish.gate, since=since), self.parts.host, self.parts.plane).run()
        faults.reach("after_gate")
        return {key: result[key] for key in ("checks", "last_seen", "duration") if key in result}

    # -- what is left of the old one -------------------------------------------------------------------------------------------------------

    def _retire(self, look: Look) -> Receipt:
        """Remove at the control plane what is left of replaced credentials; what cannot be removed now is tried again by the next run."""
        receipt, plane = _receipt(look), self.parts.plane
        if not receipt.retire_pending:
            return receipt
        kept = self._generation(look, receipt.generation)
        faults.reach("before_retire")
        left = []
        for item in receipt.retire_pending:
            unwanted = self._generation(look, _number(item))
            if unwanted is None or kept is None or unwanted.credential == kept.credential:
                continue
            try:
                withdrawal = plane.retire(self.enrolment, unwanted.credential, kept.credential)
                self._warnings.extend(withdrawal.remains)
                self._note("retire", item)
            except AgentsError as error:
                left.append(item)
                self._warnings.append(f"What is left of {item} could not be removed and is tried again by the next run: {error.msg}")
        faults.reach("after_retire")
        if tuple(left) == receipt.retire_pending:
            return receipt
        receipt = replace(receipt, retire_pending=tuple(left)).moved(receipt.phase, "older credential retired", int(time.time()))
        self.parts.host.deliver(Delivery(self.parts.host.root, look.receipt_digest, receipt=receipt.dump()))
        return receipt

    # -- the way back ----------------------------------------------------------------------------------------------------------------------

    def _undone(self, new: Held, old: Held | None, plan: RotationPlan, error: AgentsError) -> AgentsError:
        """Put the old credential back everywhere, and return the failure that says what failed and what was done about it."""
        step = self._failed_step()
        if not plan.restorable or old is None:
            error.msg += " The old credential cannot be put back: run again to go on with a new one."
            return self._told(error, step, "failed", rolled_back=False)
        try:
            self._go_back(new, old)
        except AgentsError as second:
            error.msg += f" Going back failed too: {second.msg} Run again: it finishes what was begun."
            return self._told(error, step, "failed", rolled_back=False)
        either = f" {self._warnings[-1]}" if self._warnings else ""
        error.msg += f" Host, Vault and process are back on the old credential.{either}"
        return self._told(error, step, "rolled_back", rolled_back=True)

    def _told(self, error: AgentsError, step: str, action: str, *, rolled_back: bool) -> AgentsError:
        changed = any(name in ("vault", "deliver", "issue", "register") for name, _outcome in self._steps)
        error.facts.update({"action": action, "failed_step": step, "rolled_back": rolled_back, "changed": changed})
        error.msg = f"The rotation of {self.enrolment.name} failed at the step {step}: {error.msg}"
        self._leased = self._leased and not rolled_back
        return error

    _FIRST: t.ClassVar[tuple[str, ...]] = ("stage", "vault", "prove")

    def _failed_step(self) -> str:
        """Name the step that did not come to its end, from those that did."""
        done = [name for name, _outcome in self._steps]
        order = (*self._FIRST, "deliver", self.wish.nudge, "gate")
        later = [name for name in order if name not in done and not (name == "vault" and self.parts.vault is None)
                 and not (name in ("none", self.wish.nudge) and (self.wish.nudge == "none" or not self.wish.gate.units))]
        return later[0] if later else "gate"

    def _go_back(self, new: Held, old: Held) -> None:
        """Bring Vault, host and process back to *old*, whatever of them has moved. Raises AgentsError."""
        faults.reach("before_rollback")
        look = self._lease(self.parts.host.look())
        receipt = _receipt(look)
        moved = receipt.generation == new.generation != old.generation
        if not self._is_ours(look, new if moved else old):
            raise HostFailure("Another run has gone on with this agent meanwhile, and is left alone.", reason="changed")
        if moved and receipt.phase != "ROLLING_BACK":
            document = receipt.moved("ROLLING_BACK", f"back to generation {old.generation}", int(time.time()))
            self.parts.host.deliver(Delivery(self.parts.host.root, look.receipt_digest, receipt=document.dump(), keep_intent=True))
            look = _after(look, document, look.generations, look.ids)
        self._vault_back(new, old)
        faults.reach("after_vault_back")
        self._accepted_again(old)
        self._host_back(look, new, old)
        faults.reach("after_rollback")
        self.parts.spool.drop()
        if self.parts.plane.retires:
            self._retire_unwanted(new, old)
        if moved:
            self._nudge()
            self._gate_after_rollback()
        self._note("rollback", f"generation {old.generation}")

    def _gate_after_rollback(self) -> None:
        """Commit the old state where the agent proves itself with it; where it does not, the credential was not what is wrong with it."""
        try:
            self._gate()
            self._read_by_the_agent()
        except GateRed as error:
            self._release(self.parts.host.look())
            self._warnings.append(f"The agent does not prove itself with its old credential either. {error.msg}")

    @staticmethod
    def _is_ours(look: Look, held: Held) -> bool:
        """Say whether the host's credential in use is *held*, under its number and in its content."""
        return _receipt(look).generation == held.generation and dict(look.generations.get(held.generation, {})) == held.stored

    def _host_back(self, look: Look, new: Held, old: Held) -> None:
        """Put the old files and the old generation back; the staged one goes."""
        rendered = self._old_files(old)
        changed = changed_files(look.files, rendered)
        before = _receipt(look)
        moved = before.generation != old.generation
        # Where the process may have read the new one, only the gate can say that it is back.
        phase = "ACTIVE" if moved or changed else _phase_before(before)
        receipt = self._receipt_for(look, old, rendered, phase, f"{_CAME_BACK}{old.generation}")
        pending = tuple(item for item in before.retire_pending if _number(item) != old.generation)
        restart = host_time(look) if any(item.restart for item in changed) else before.pending_restart
        receipt = replace(
            receipt, pending_restart=restart, retire_pending=pending, issued_at=self._issued_before if moved else before.issued_at)
        self.parts.host.deliver(Delivery(
            self.parts.host.root, look.receipt_digest, receipt=receipt.dump(), files=staged(changed),
            keep=_kept(receipt, old.generation, old.generation - 1)))

    def _old_files(self, old: Held) -> tuple[RenderedFile, ...]:
        """Return the files as they were before this run; a run that does not know them renders them with the old credential."""
        rendered = self._rendered(old)
        if self._before is None:
            return rendered
        before = self._before
        return tuple(
            replace(item, content=before[item.path].content, owner=before[item.path].owner, group=before[item.path].group, mode=before[item.path].mode)
            for item in rendered if item.path in before)

    def _vault_back(self, new: Held, old: Held) -> None:
        """Put *old* back where Vault holds *new*; what somebody else wrote stays."""
        vault = self.parts.vault
        if vault is None:
            return
        ours, theirs = self._for_vault(new.credential, new.extra), self._for_vault(old.credential, old.extra)
        for path in self._own_paths(theirs):
            entry = vault.read(path)
            if all(entry.fields.get(name) == ours.get(secret) for name, secret in path.fields.items()):
                self._changes[path.path] = vault.exchange(path, theirs, entry)

    def _vault_back_quietly(self, new: Held, old: Held | None, plan: RotationPlan) -> None:
        if old is None or not plan.restorable:
            return
        try:
            self._vault_back(new, old)
        except AgentsError:
            return

    def _accepted_again(self, old: Held) -> None:
        deadline = time.monotonic() + self.order.settle_timeout
        while True:
            proof = self.parts.plane.prove(self.enrolment, old.credential)
            if proof.accepted:
                return
            if time.monotonic() > deadline:
                raise Rejected(
                    f"{self.parts.plane.http.url} does not accept the old credential of {self.enrolment.name} any more ({proof.detail or proof.how}).",
                    reason="old_credential_refused")
            time.sleep(0.2)

    def _retire_unwanted(self, new: Held, old: Held) -> None:
        try:
            self._warnings.extend(self.parts.plane.retire(self.enrolment, new.credential, old.credential).remains)
        except AgentsError as error:
            self._warnings.append(f"The new credential that was not kept could not be removed at {self.parts.plane.http.url}: {error.msg}")

    def _finish_going_back(self, look: Look, old: Held, new: Held | None, plan: RotationPlan) -> Rotated:
        """Finish a rollback that was interrupted, or follow a control plane that went back by itself."""
        self._go_back(new or replace(old, generation=_receipt(look).generation), old)
        receipt = _receipt(self.parts.host.look())
        self._leased = False
        msg = f"{self.enrolment.name} is back on the older credential, which {self.parts.plane.http.url} accepts."
        return Rotated(
            "rolled_back", "unfinished", msg, True, receipt, plan, tuple(self._steps), tuple(self._changes.values()), warnings=tuple(self._warnings))

    def _once_more(self, new: Held, old: Held | None, plan: RotationPlan, error: VaultFailure) -> Rotated:
        """Somebody else wrote to Vault meanwhile: take the staged credential back, and look again, once (the agent may have rotated itself)."""
        self._retried = True
        if old is not None and new.generation:
            look = self._lease(self.parts.host.look())
            self._vault_back_quietly(new, old, plan)
            receipt = _receipt(look)
            if receipt.phase == "ROTATING":
                document = receipt.moved(_phase_before(receipt), "staged credential dropped: Vault was changed by somebody else", int(time.time()))
                self.parts.host.deliver(Delivery(
                    self.parts.host.root, look.receipt_digest, receipt=document.dump(),
                    keep=_kept(receipt, receipt.generation, receipt.generation - 1)))
        self._note("vault", "changed by somebody else")
        self._changes.clear()
        try:
            look = self._lease(self.parts.host.look())
            situation = self._situation(look)
            plan = self._plan(look, situation)
            return self._go_on(look, situation.given(plan), plan)
        except Rejected:
            raise error from None

    # -- words -----------------------------------------------------------------------------------------------------------------------------

    def _note(self, step: str, outcome: str) -> None:
        self._steps.append((step, outcome))

    def _explain(self, error: AgentsError, plan: RotationPlan) -> None:
        """Add to a failure what was done until then."""
        error.facts.setdefault("action", "failed")
        error.facts.setdefault("plan", plan.as_result())
        error.facts.setdefault("steps", steps_as_result(self._steps))
        error.facts.setdefault("warnings", list(self._warnings))
        if isinstance(error, Busy):
            error.facts["action"] = "unchanged"

    def _diff(self, look: Look, files: tuple[tuple[str, bool], ...], receipt: Receipt) -> tuple[t.Mapping[str, str], ...]:
        secrets = {**self.order.secrets, **look.generations.get(receipt.generation, {})}
        old = {f"{name}_{number}": value for number, stored in look.generations.items() for name, value in stored.items()}
        changes = [change.diff() for change in self._changes.values() if change.changed]
        return (*file_diffs(look, self._changed_files, secrets, old, receipt.generation), *changes)


def steps_as_result(steps: t.Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return steps as plain data for a task result."""
    return [{"step": name, "outcome": outcome} for name, outcome in steps]


def _receipt(look: Look) -> Receipt:
    if look.receipt is None:
        raise HostFailure("The receipt went away on the host while it was worked with: run again.", reason="changed")
    return look.receipt


def _after(look: Look, receipt: Receipt, generations: t.Mapping[int, t.Mapping[str, Secret]], ids: t.Mapping[int, str]) -> Look:
    """Return the look as the host would give it after a delivery of *receipt*; saves a visit."""
    newest = max(generations, default=0)
    return replace(
        look, receipt=receipt, receipt_digest=hashlib.sha256(receipt.dump()).hexdigest(), generations=generations, ids=ids,
        secrets=generations.get(newest, {}), agent_id=ids.get(newest, ""))


def _files_of(held: Held) -> tuple[tuple[str, bytes], ...]:
    files = [("agent_id", held.credential.agent_id.encode())]
    return (*files, *((name, secret.reveal().encode()) for name, secret in sorted(held.stored.items())))


def _number(pending: str) -> int:
    """Return the generation that an entry of retire_pending names."""
    return int(pending.removeprefix(_PENDING))


def _kept(receipt: Receipt, *numbers: int) -> tuple[int, ...]:
    """Return the generations that stay on the host: *numbers*, and those that are needed to retire what is left of them."""
    return tuple(sorted({*numbers, *map(_number, receipt.retire_pending)}))


def _came_back(receipt: Receipt) -> bool:
    """Say whether the last credential that came into use was an older one; what a gate noted since then makes no difference."""
    moves = [step.why for step in receipt.history if step.why.startswith((_PENDING, _CAME_BACK))]
    return bool(moves) and moves[-1].startswith(_CAME_BACK)


def _phase_before(receipt: Receipt) -> str:
    """Return the phase that a rotation began from."""
    return next((step.phase for step in reversed(receipt.history) if step.phase not in ("ROTATING", "ROLLING_BACK")), "STORED")


_SENTENCES = {
    "rotated": "{name} has a new credential at {url}, and its agent works with it. {why}",
    "resumed": "An interrupted rotation of {name} at {url} was finished.",
    "adopted": "{name} follows Vault to a credential that {url} accepts, and its agent works with it.",
}
