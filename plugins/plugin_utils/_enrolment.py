# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The enrolment transaction: look, intent, issue or adopt, settle, Vault, delivery (private to muster.agents).

Rule zero: whoever receives a secret makes it durable before doing anything else. The order is: intent on the host, one request to the control
plane, spool on the controller, proof by use, Vault (verified by reading), then generation, rendered files and receipt on the host in one delivery.
A run that dies anywhere is finished by the next one, which asks reality first: what the control plane accepts, what Vault holds, what the host has.
The health gate writes COMMITTED later, once the running agent has proved itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import typing as t
import uuid
from dataclasses import asdict, dataclass, field, replace

from ansible_collections.muster.agents.plugins.module_utils._credential_store import MAX_SKEW, MIN_FREE_KIB, Delivery
from ansible_collections.muster.agents.plugins.module_utils._local_probe import worst
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _faults as faults
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import (
    AGENT_ID,
    Candidate,
    OldPlace,
    candidate_of_pair,
    candidates_in_vault,
    candidates_on_host,
    presents,
)
from ansible_collections.muster.agents.plugins.plugin_utils._delivery_plan import Plan, Wanted, file_diffs, generation_for, make_plan, receipt_diff
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    Busy,
    IdentityConflict,
    InvalidInput,
    Mismatch,
    Rejected,
    ServerFault,
)
from ansible_collections.muster.agents.plugins.plugin_utils._host import (
    Host,
    Look,
    controller_identity,
    holder_is_dead,
    require_controller,
    require_free,
)
from ansible_collections.muster.agents.plugins.plugin_utils._identity import ASSIGNED, Gathering, agent_facts, completed
from ansible_collections.muster.agents.plugins.plugin_utils._pair import pair_checks
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import this_run
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._times import age_seconds
from ansible_collections.muster.agents.plugins.plugin_utils._vault import AgentTokenPolicy, TokenOutcome, Vault, VaultChange, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    ControlPlane,
    Credential,
    Enrolment,
    Issued,
    Proof,
    ServerState,
)

__all__ = ["Order", "Outcome", "Parts", "Transaction"]

_RECONCILE_PAUSES = (0.2, 1.0)
_PLACEHOLDER = "x" * 86
_PROBE_LIFE = 3.0  # seconds for which the forks of a run take each other's word that the control plane is well

Render = t.Callable[[t.Mapping[str, t.Any], t.Mapping[str, Secret]], tuple[RenderedFile, ...]]


@dataclass(frozen=True)
class Order:
    """What the operator asks for, beside the identity.

    secrets: the operator's own, by name. vault_paths: empty without Vault. settle_timeout: seconds to wait for the server's own late write.
    lease: seconds an intent keeps others away. adopt: never, stale or always, for an identity that is live elsewhere; adopt_after: seconds
    without a sign of life that make it stale. refresh_at: the share of a credential's life after which it is exchanged, where that is possible.
    diff: whether the outcome shall show what changed.
    """

    enrolment: Enrolment
    secrets: t.Mapping[str, Secret]
    vault_paths: tuple[VaultPath, ...] = ()
    policy: AgentTokenPolicy | None = None
    old_places: tuple[OldPlace, ...] = ()
    settle_timeout: float = 10.0
    lease: int = 60
    adopt: str = "stale"
    adopt_after: float = 3600.0
    refresh_at: float = 0.67
    pin: str = ""
    check_mode: bool = False
    diff: bool = True
    gathering: Gathering = field(default_factory=lambda: Gathering(system_info=True, capabilities=True))


@dataclass(frozen=True)
class Parts:
    """What the transaction works with. vault is None when none is configured; vault_url is for the receipt.

    probes is where the forks of a run tell each other what the control plane says of itself.
    """

    plane: ControlPlane
    host: Host
    spool: Spool
    render: Render
    file_paths: tuple[str, ...]
    vault: Vault | None = None
    vault_url: str = ""
    probes: SharedDocument = field(default_factory=lambda: SharedDocument(""))


@dataclass(frozen=True)
class Outcome:
    """What happened, or would happen in check mode. Holds no secret."""

    action: str
    reason: str
    msg: str
    changed: bool
    receipt: Receipt
    server: ServerState
    proof: Proof | None = None
    vault: tuple[VaultChange, ...] = ()
    policy: TokenOutcome | None = None
    files: tuple[tuple[str, bool], ...] = ()
    warnings: tuple[str, ...] = ()
    diff: tuple[t.Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class _Held:
    """The credential that the transaction settled on, and how it came to it."""

    candidate: Candidate
    action: str
    reason: str
    proof: Proof
    server: ServerState = field(default_factory=ServerState)
    metadata_sent: bool = False
    warnings: tuple[str, ...] = ()


class _MovedOn(Exception):
    """Another run has changed the host since it was looked at."""


class Transaction:
    """One identity's enrolment on one host. The methods are its steps, in order."""

    def __init__(self, order: Order, parts: Parts, *, attempt: str = "") -> None:
        """*attempt* is the idempotency key of this try, made anew when not given."""
        # _ours says whether the control plane's record under this name may stem from this or an interrupted run.
        self.order = order
        self.parts = parts
        self.enrolment = order.enrolment
        self.attempt = attempt or str(uuid.uuid4())
        self.server = ServerState()
        self._ours = False

    def run(self) -> Outcome:
        """Carry the enrolment through, or say what would be done. Raises AgentsError; after one, the next run goes on from where this one came to."""
        self._check_input()
        self._preflight()
        faults.reach("after_probe")
        for last in (False, False, True):
            look = self._look()
            faults.reach("after_look")
            try:
                self._complete_identity(look)
                held = self._choose(look)
                if held is None:
                    held = self._plan_issue() if self.order.check_mode else self._issue(look)
                return self._finish(look, held)
            except _MovedOn:
                if last:
                    break
            except AgentsError:
                self._forget_attempt(look)
                raise
        raise Busy(f"Other runs keep changing {self.enrolment.name} on its host: let them finish, then run again.")

    def _forget_attempt(self, look: Look) -> None:
        """Take the intent back when the attempt cannot have made a record: the next run would take a foreign record for the fruit of this one."""
        if self.order.check_mode or self._ours or look.intent != "recorded" or look.receipt is not None or look.generations:
            return
        with contextlib.suppress(AgentsError):
            self.parts.host.deliver(Delivery(self.parts.host.root, look.receipt_digest, remove_all=True))

    # -- before the first side effect ------------------------------------------------------------------------------------------------------

    def _check_input(self) -> None:
        """Refuse what cannot be right, while nothing has been sent or written: identity, templates, names of secrets."""
        given = self.enrolment
        probe = replace(given, capabilities=given.capabilities or ("logs",)) if self.order.gathering.capabilities else given
        self.parts.plane.check(probe)
        known = {**self.order.secrets, **{name: Secret(_PLACEHOLDER) for name in self._issued_names()}}
        for path in self.order.vault_paths:
            unknown = sorted(set(path.fields.values()) - {*known, AGENT_ID})
            if unknown:
                raise InvalidInput(f"vault_paths: {path.path} asks for the unknown secret {unknown[0]!r}: known are {', '.join(sorted(known))}.")
        self.enrolment = replace(probe, hostname=given.hostname or "host")
        self.parts.render(self._agent_facts(ASSIGNED, 0), known)
        self.enrolment = given

    def _preflight(self) -> None:
        """Ask control plane and Vault whether they would do their part; both are only read. Raises Mismatch when the server's clock is off."""
        self.server = self._probed()
        skew = self.server.clock_skew
        if skew is not None and abs(skew) > MAX_SKEW:
            raise Mismatch(f"The clock of {self.parts.plane.http.url} is {skew:.0f} seconds off the controller's: set both by NTP, then run again.",
                           reason="clock_skew")
        if self.parts.vault is not None:
            self.parts.vault.authenticate()
            self.parts.vault.preflight(self.order.vault_paths, policy=self.order.policy)

    def _probed(self) -> ServerState:
        """Return what the control plane says of itself, or said to another fork a moment ago; in check mode nothing else may show that it is out of reach."""
        if self.order.check_mode:
            return self.parts.plane.probe()
        run = this_run()
        with self.parts.probes.held() as document:
            if document.get("run") == run and 0 <= time.time() - document["at"] < _PROBE_LIFE:
                told = ServerState(**{**document["server"], "api_versions": tuple(document["server"]["api_versions"])})
                self.parts.plane.http.clock_skew = told.clock_skew
                return told
        server = self.parts.plane.probe()
        with self.parts.probes.held() as document:
            document.update(run=run, at=time.time(), server=asdict(server))
        return server

    def _look(self) -> Look:
        """Look at the host and record the intent there when there is work. Waits while another controller holds the lease."""
        pair = (self.enrolment.certificate_path,) if self.enrolment.certificate_path else ()
        read = (*self.parts.file_paths, *(path for place in self.order.old_places for path in place.paths), *pair)
        intent = None if self.order.check_mode else Intent(self.attempt, controller_identity(), 0, "enrol")
        deadline = time.monotonic() + self.order.lease + 5
        takeover = ""
        while True:
            look = self.parts.host.look(
                read, facts=self.order.gathering.needed, intent=intent, url=self.parts.plane.http.url, lease=self.order.lease, takeover=takeover)
            self._check_host(look)
            if self.order.check_mode or not _leased_elsewhere(look):
                break
            if look.held is not None and holder_is_dead(look.held.controller):
                if look.intent != "held":
                    break
                takeover = look.held.controller
                continue
            if time.monotonic() > deadline:
                require_free(replace(look, intent="held"), self.parts.host.root)
            time.sleep(0.5)
        require_free(look, self.parts.host.root)
        if look.held is not None:
            self._ours = look.held.attempt != self.attempt
            self.attempt = look.held.attempt
        return look

    def _check_host(self, look: Look) -> None:
        skew = look.time - time.time()
        if look.intent == "clock_skew" or abs(skew) > MAX_SKEW:
            raise Mismatch(f"The host's clock is {skew:.0f} seconds off the controller's: set both by NTP, then run again.", reason="clock_skew")
        if look.receipt is None and look.free_kib < MIN_FREE_KIB:
            require_free(replace(look, intent="disk_full"), self.parts.host.root)

    def _complete_identity(self, look: Look) -> None:
        """Fill in what the host says of itself where the operator gave nothing; then check the whole."""
        self.enrolment = completed(self.enrolment, look, self.order.gathering)
        if self.enrolment.certificate_path and not self.enrolment.certificate and not self.order.check_mode:
            raise InvalidInput(
                f"There is no certificate at {self.enrolment.certificate_path} on the host: issue one with cert_issue, or put your own pair there.",
                reason="certificate_missing")
        self.parts.plane.check(self.enrolment)

    # -- which credential ------------------------------------------------------------------------------------------------------------------

    def _choose(self, look: Look) -> _Held | None:
        """Return the first existing credential that the control plane accepts, None when there is none."""
        for candidate in self._candidates(look):
            proof = self._prove(candidate)
            if proof.accepted:
                self._guard_takeover(candidate)
                return self._held(candidate, proof)
            if candidate.origin == "spool":
                self._begin_anew()
            if candidate.possessed and not proof.definite and not proof.pending:
                raise ServerFault(f"{self.parts.plane.http.url} could not say whether it accepts the credential of {self.enrolment.name} "
                                  f"({proof.detail}): nothing was changed, run again.")
        return None

    def _begin_anew(self) -> None:
        """Ask under a new key from here on: the attempt was answered, and a server that knows the key would give the same useless answer again."""
        self.attempt = str(uuid.uuid4())

    def _candidates(self, look: Look) -> t.Iterator[Candidate]:
        """Yield what exists: on the host, in the spool, in old files, in Vault; each distinct credential once."""
        seen: list[Credential] = []
        names, optional = self.parts.plane.secret_names, self.parts.plane.optional_secrets
        agent_id = look.receipt.agent_id if look.receipt is not None else ""
        for candidate in (*candidates_on_host(look, self.order.old_places, self.parts.spool, names, optional), *candidate_of_pair(self.enrolment)):
            agent_id = agent_id or candidate.credential.agent_id
            if candidate.credential not in seen and presents(candidate.credential, self.enrolment):
                seen.append(candidate.credential)
                yield candidate
        if self.parts.vault is not None:
            for candidate in candidates_in_vault(self.parts.vault, self.order.vault_paths, agent_id, names, optional):
                if candidate.credential not in seen and presents(candidate.credential, self.enrolment):
                    seen.append(candidate.credential)
                    yield replace(candidate, possessed=bool(agent_id))

    def _held(self, candidate: Candidate, proof: Proof) -> _Held:
        if candidate.origin == "store":
            return _Held(candidate, "unchanged", "accepted", proof)
        if candidate.origin == "spool":
            return _Held(candidate, "resumed", "spooled_credential", proof)
        reason = "vault_credential" if candidate.origin.startswith("vault:") else "found_on_host"
        return _Held(self._with_id(candidate), "adopted", reason, proof)

    def _with_id(self, candidate: Candidate) -> Candidate:
        """Ask the control plane for the id that belongs to a credential found without one."""
        if candidate.credential.agent_id:
            return candidate
        record = self.parts.plane.find(self.enrolment.name, candidate.credential)
        return replace(candidate, credential=replace(candidate.credential, agent_id=record.agent_id)) if record is not None else candidate

    def _guard_takeover(self, candidate: Candidate) -> None:
        """Refuse to take over an identity that is live elsewhere. Possession on this host proves that it is this one."""
        if candidate.possessed or self.order.adopt == "always":
            return
        name, url = self.enrolment.name, self.parts.plane.http.url
        record = self.parts.plane.last_seen(name, candidate.credential)
        seen = record.last_seen if record is not None else ""
        age = age_seconds(seen, time.time() + (self.parts.plane.http.clock_skew or 0.0))
        if self.order.adopt == "never":
            raise IdentityConflict(f"{name} exists at {url} already and this host holds no credential of it: set adopt: stale or always to take it over.")
        if age is not None and age < self.order.adopt_after:
            raise IdentityConflict(
                f"{name} is live at {url} (last seen {seen}) and this host holds no credential of it: give this host another name, "
                "or set adopt: always if it replaces the host that has it.", last_seen=seen)

    # -- a new credential ------------------------------------------------------------------------------------------------------------------

    def _plan_issue(self) -> _Held:
        """Return what check mode can say without asking for a credential."""
        candidate = Candidate(Credential(ASSIGNED, {name: Secret(_PLACEHOLDER) for name in self.parts.plane.secret_names}), "planned", False)
        return _Held(candidate, "registered", "not_enrolled", Proof(accepted=False, definite=False, how="none"))

    def _issue(self, look: Look) -> _Held:
        """Register, reconcile a lost answer, settle; a name that is taken is served through Vault."""
        if look.intent != "recorded":
            look = self._declare(look, "reissue")
        self._try_pair()
        faults.reach("before_issue")
        require_controller()
        known_id = self._known_id(look)
        try:
            issued = self._register()
        except IdentityConflict as conflict:
            return self._reissue(known_id, conflict)
        faults.reach("after_issue")
        self.parts.spool.keep(issued.credential, {}, possessed=issued.created or issued.credential.agent_id == known_id)
        faults.reach("after_spool")
        issued, proof = self._settle(issued)
        faults.reach("after_settle")
        candidate = Candidate(issued.credential, "issued", possessed=issued.created or issued.credential.agent_id == known_id)
        try:
            self._guard_takeover(candidate)
        except IdentityConflict:
            self.parts.spool.drop()
            raise
        action = "registered" if issued.created else ("reissued" if look.receipt is not None else "adopted")
        reason = "not_enrolled" if issued.created else ("credential_refused" if look.receipt is not None else "known_to_control_plane")
        return _Held(candidate, action, reason, proof, issued.server, metadata_sent=True, warnings=issued.warnings)

    def _try_pair(self) -> None:
        """Let the host try the pair that lies there, before anything is spent on it. Raises Mismatch when key and certificate are no pair."""
        wanted = self.parts.plane.host_proof(self.enrolment)
        if wanted is None:
            return
        bad = worst(pair_checks(self.parts.host, replace(wanted, url="")))
        if bad is not None:
            raise Mismatch(f"The certificate at {wanted.certificate_path} on the host cannot be used: {bad.detail}", reason=bad.reason)

    def _declare(self, look: Look, why: str) -> Look:
        """Record the intent where the look did not, since all seemed well, waiting while another controller holds the lease.

        It takes a further visit, before the first request that could undo what another run does. Raises _MovedOn when one has changed the host since the
        look, and Busy when it does not end.
        """
        intent = Intent(self.attempt, controller_identity(), 0, why)
        deadline = time.monotonic() + self.order.lease + 5
        holder = look.held.controller if look.held is not None else ""
        while True:
            declared = self.parts.host.look(
                (), intent=intent, url=self.parts.plane.http.url, lease=self.order.lease, force=True, takeover=holder if holder_is_dead(holder) else "")
            if declared.intent != "held" or time.monotonic() > deadline:
                break
            before, holder = holder, declared.held.controller if declared.held is not None else ""
            if holder == before or not holder_is_dead(holder):
                time.sleep(0.5)
        require_free(declared, self.parts.host.root)
        if declared.receipt_digest != look.receipt_digest:
            raise _MovedOn
        return replace(look, intent=declared.intent, held=declared.held)

    def _known_id(self, look: Look) -> str:
        return next((candidate.credential.agent_id for candidate in self._candidates(look) if candidate.credential.agent_id),
                    look.receipt.agent_id if look.receipt is not None else "")

    def _register(self) -> Issued:
        """Register; after a lost answer, of this run or of one that died, let the control plane's adapter find out what came of it."""
        plane = self.parts.plane
        for pause in (*_RECONCILE_PAUSES, None):
            try:
                with plane.sessions.trial(plane.bootstrap_secret()):
                    issued = (plane.recover if self._ours else plane.register)(self.enrolment, self.attempt)
                self._ours = self._ours or issued.created
                return issued
            except Ambiguous:
                self._ours = True
                if pause is None:
                    raise
                time.sleep(pause)
        raise Ambiguous("unreachable by construction")

    def _settle(self, issued: Issued) -> tuple[Issued, Proof]:
        """Wait until the control plane accepts what it issued: its own write to Vault comes late, or never.

        Raises Rejected when it does not in settle_timeout and no Vault of ours can help.
        """
        deadline = time.monotonic() + self.order.settle_timeout
        pause = 0.05
        while True:
            proof = self.parts.plane.prove(self.enrolment, issued.credential)
            if proof.accepted:
                return issued, proof
            if time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        if self.parts.vault is not None and self.order.vault_paths:
            secrets = self._for_vault(issued.credential, {})
            for path in self._own_paths(secrets):
                self.parts.vault.ensure(path, secrets)
            proof = self.parts.plane.prove(self.enrolment, issued.credential)
        elif proof.definite:
            self._begin_anew()
            issued = self._register()
            self.parts.spool.keep(issued.credential, {}, possessed=issued.created)
            proof = self.parts.plane.prove(self.enrolment, issued.credential)
        if not proof.accepted:
            raise Rejected(
                f"{self.parts.plane.http.url} issued a credential for {self.enrolment.name} and does not accept it after {self.order.settle_timeout:g} s "
                f"({proof.detail}): check the server's own Vault, then run again.", reason="issued_credential_refused")
        return issued, proof

    def _for_vault(self, credential: Credential, extra: t.Mapping[str, Secret]) -> dict[str, Secret]:
        """Return what Vault's fields may name: the operator's secrets, the issued ones, and the agent's id."""
        known = {AGENT_ID: Secret(credential.agent_id)} if credential.agent_id else {}
        return {**self.order.secrets, **extra, **credential.secrets, **known}

    def _own_paths(self, secrets: t.Mapping[str, Secret]) -> t.Iterator[VaultPath]:
        """Yield the readers' paths, each with the fields whose secrets exist by now."""
        for path in self.order.vault_paths:
            fields = {name: secret for name, secret in path.fields.items() if secret in secrets}
            if fields:
                yield VaultPath(path.path, fields)

    def _may_take(self, known_id: str) -> bool:
        """Say whether a name that is taken is this host's to take.

        It is when this host knows the identity's id, when the record may stem from an attempt of its own whose answer was lost, when the operator
        says adopt: always, or stale and the control plane shows a record that has been there and silent for adopt_after.
        """
        if known_id or self._ours or self.order.adopt == "always":
            return True
        record = self.parts.plane.find(self.enrolment.name, None) if self.order.adopt == "stale" else None
        if record is None:
            return False
        age = age_seconds(record.last_seen or record.registered_at, time.time() + (self.parts.plane.http.clock_skew or 0.0))
        return age is not None and age >= self.order.adopt_after

    def _reissue(self, known_id: str, conflict: IdentityConflict) -> _Held:
        """Get a new credential for a name that is taken: from the control plane, or one of our own through Vault. Raises IdentityConflict."""
        if self.parts.plane.own_credential() is not None:
            return self._reissue_through_vault(known_id, conflict)
        if not self._may_take(known_id):
            raise IdentityConflict(
                f"{conflict.msg} This host holds no credential of it, and nothing says that it is this host: give another name, "
                "or set adopt: always if this host replaces it.", **conflict.facts)
        issued = self.parts.plane.reissue(self.enrolment, known_id, self.attempt)
        if issued is None:
            raise IdentityConflict(
                f"{conflict.msg} No credential of it is left on this host, and nothing at hand may replace it: remove the record at the control plane, "
                "or put the old credential back.", **conflict.facts)
        faults.reach("after_issue")
        self.parts.spool.keep(issued.credential, {})
        faults.reach("after_spool")
        issued, proof = self._settle(issued)
        candidate = Candidate(issued.credential, "issued", possessed=True)
        return _Held(candidate, "reissued", "name_taken", proof, issued.server, metadata_sent=True, warnings=issued.warnings)

    def _reissue_through_vault(self, known_id: str, conflict: IdentityConflict) -> _Held:
        """Make a credential of our own for a name that is taken, where the server trusts what Vault holds. Raises IdentityConflict."""
        token = self.parts.plane.own_credential()
        vault = self.parts.vault
        remedy = ("Give vault and vault_paths so that a new token can be placed where the server reads it, put the old token back, "
                  "or remove the record at the control plane.")
        if token is None or vault is None or not self.order.vault_paths:
            raise IdentityConflict(f"{conflict.msg} No credential of it is left on this host. {remedy}", **conflict.facts)
        if not self._may_take(known_id):
            raise IdentityConflict(
                f"{conflict.msg} This host holds no credential of it, and nothing says that it is this host: give another name, "
                "or set adopt: always if this host replaces it.", **conflict.facts)
        credential = Credential(known_id, {self.parts.plane.secret_names[0]: token})
        self.parts.spool.keep(credential, {})
        faults.reach("after_spool")
        secrets = self._for_vault(credential, {})
        for path in self._own_paths(secrets):
            vault.ensure(path, secrets)
        issued, proof = self._settle(Issued(credential, created=False, server=self.server))
        candidate = self._with_id(Candidate(issued.credential, "issued", possessed=True))
        return _Held(candidate, "reissued", "name_taken", proof, self.server)

    def _prove(self, candidate: Candidate) -> Proof:
        """Use the credential; an answer of "not stored yet" is waited for, since a former run may have died in that gap."""
        deadline = time.monotonic() + self.order.settle_timeout
        while True:
            proof = self.parts.plane.prove(self.enrolment, candidate.credential)
            if not proof.pending or not candidate.possessed or self.order.check_mode or time.monotonic() > deadline:
                return proof
            if self._heal_vault(candidate):
                continue
            time.sleep(0.5)

    def _heal_vault(self, candidate: Candidate) -> bool:
        """Put a possessed credential back where the server looks for it and found nothing. Says whether something was written."""
        vault = self.parts.vault
        if vault is None:
            return False
        secrets = self._for_vault(candidate.credential, candidate.extra)
        changes = [vault.ensure(path, secrets) for path in self._own_paths(secrets)]
        return any(change.changed for change in changes)

    # -- Vault, files, receipt -------------------------------------------------------------------------------------------------------------

    def _finish(self, look: Look, held: _Held) -> Outcome:
        """Bring metadata, Vault, rendered files and receipt to what they shall be, writing only what differs."""
        held = self._refresh_metadata(look, self._refreshed(held))
        try:
            planned = self._planned_in_vault(look, held)
            if not self.order.check_mode and any(change.changed for change in planned):
                look, planned = self._declare(look, "enrol"), ()
            changes, policy, extra = self._store_in_vault(look, held, planned)
        except AgentsError:
            self._save_after_failure(look, held)
            raise
        wanted = replace(self._wanted(held, extra), changes=changes, policy=policy.policy if policy is not None else "")
        generation = generation_for(look, wanted.credential, wanted.stored)
        secrets = {**self.order.secrets, **wanted.stored}
        version = held.server.version or str(look.receipt.server.get("version", "") if look.receipt is not None else "")
        rendered = self.parts.render(self._agent_facts(wanted.credential.agent_id, generation, version), secrets)
        plan = make_plan(look, replace(wanted, rendered=rendered), self.parts.host.root)
        if held.candidate.origin == "planned":
            plan = replace(plan, receipt=replace(plan.receipt, agent_id="", fingerprints={}))
        if plan.delivery is not None and not self.order.check_mode:
            faults.reach("before_delivery")
            self.parts.host.deliver(plan.delivery)
            faults.reach("after_delivery")
            self._retire_agent_token(look, wanted)
        if not self.order.check_mode:
            self.parts.spool.drop()
            self.parts.plane.check_versions(plan.receipt.server.get("api_versions", ()))
        return self._outcome(look, held, plan, secrets, rendered=rendered, changes=changes, policy=policy)

    def _outcome(
        self, look: Look, held: _Held, plan: Plan, secrets: t.Mapping[str, Secret], *, rendered: t.Sequence[RenderedFile],
        changes: tuple[VaultChange, ...], policy: TokenOutcome | None,
    ) -> Outcome:
        changed = plan.delivery is not None or any(item.changed for item in changes) or (policy is not None and policy.changed)
        changed = changed or held.action in ("registered", "refreshed")
        action = "delivered" if changed and held.action == "unchanged" else held.action
        msg = _SENTENCES[action].format(name=self.enrolment.name, url=self.parts.plane.http.url, origin=held.candidate.origin)
        names = {item.path for item in plan.changed}
        return Outcome(
            action=action, reason=held.reason, msg=f"Would be done: {msg}" if self.order.check_mode and changed else msg, changed=changed,
            receipt=plan.receipt, server=replace(self.server, version=held.server.version or self.server.version, api_versions=held.server.api_versions),
            proof=held.proof, vault=changes, policy=policy, files=tuple((item.path, item.path in names) for item in rendered), warnings=held.warnings,
            diff=self._shown(look, plan, secrets, changes) if self.order.diff else ())

    def _shown(
        self, look: Look, plan: Plan, secrets: t.Mapping[str, Secret], changes: t.Sequence[VaultChange],
    ) -> tuple[t.Mapping[str, str], ...]:
        """Return what changes in files, receipt and Vault, without its secrets."""
        old = {f"{name}_{number}": value for number, stored in look.generations.items() for name, value in stored.items()}
        shown: list[t.Mapping[str, str]] = [*file_diffs(look, plan.changed, secrets, old, plan.receipt.generation)]
        if plan.delivery is not None:
            shown.append(receipt_diff(look, plan, self.parts.host.root))
        return (*shown, *(item.diff() for item in changes if item.changed))

    def _refreshed(self, held: _Held) -> _Held:
        """Exchange an accepted credential that nears its end. One that cannot be exchanged any more is kept while it is good."""
        plane, credential = self.parts.plane, held.candidate.credential
        life = plane.lifetime(credential) if held.action not in ("registered", "reissued") else None
        if life is None or life.used(time.time() + (plane.http.clock_skew or 0.0)) < self.order.refresh_at:
            return held
        if self.order.check_mode:
            return replace(held, action="refreshed", reason="expires_soon")
        try:
            issued = plane.refresh(self.enrolment, credential, self.attempt)
        except (Ambiguous, Rejected) as error:
            return replace(held, warnings=(*held.warnings, f"The credential of {self.enrolment.name} nears its end and was not refreshed: {error.msg}"))
        if issued is None:
            return held
        faults.reach("after_issue")
        self.parts.spool.keep(issued.credential, held.candidate.extra)
        faults.reach("after_spool")
        proof = plane.prove(self.enrolment, issued.credential)
        if not proof.accepted:
            self.parts.spool.drop()
            return replace(held, warnings=(
                *held.warnings, f"{plane.http.url} refreshed the credential of {self.enrolment.name} and does not accept the new one ({proof.detail})."))
        candidate = Candidate(issued.credential, "issued", True, extra=held.candidate.extra)
        return replace(held, candidate=candidate, action="refreshed", reason="expires_soon", proof=proof, warnings=(*held.warnings, *issued.warnings))

    def _refresh_metadata(self, look: Look, held: _Held) -> _Held:
        """Tell the control plane of a new version or new capabilities. The answer may carry another credential, which is then proved by use."""
        before = look.receipt.metadata if look.receipt is not None else ""
        if held.metadata_sent or held.action == "registered" or not before or before == self._metadata():
            return held
        refreshed = replace(held, action="refreshed", reason="metadata_changed", metadata_sent=True)
        if self.order.check_mode:
            return refreshed
        issued = self.parts.plane.refresh_metadata(self.enrolment, self.attempt)
        if issued is None:
            return replace(held, reason="metadata_not_taken", metadata_sent=True)
        if issued.credential == held.candidate.credential:
            return refreshed
        self.parts.spool.keep(issued.credential, held.candidate.extra)
        proof = self.parts.plane.prove(self.enrolment, issued.credential)
        if not proof.accepted:
            self.parts.spool.drop()
            return refreshed
        return replace(refreshed, candidate=Candidate(issued.credential, "issued", True, extra=held.candidate.extra), proof=proof)

    def _metadata(self) -> str:
        wire = json.dumps(self.parts.plane.wire_metadata(self.enrolment), sort_keys=True, default=str)
        return hashlib.sha256(wire.encode()).hexdigest()[:16]

    def _planned_in_vault(self, look: Look, held: _Held) -> tuple[VaultChange, ...]:
        """Return what would be written to Vault by a run that has not recorded its intent, and so keeps no other run away; empty for one that has.

        Such a run writes nothing there: it could only put back what another one has replaced meanwhile.
        """
        vault = self.parts.vault
        if vault is None or (look.intent == "recorded" and not self.order.check_mode):
            return ()
        secrets = self._for_vault(held.candidate.credential, held.candidate.extra)
        return tuple(vault.plan(path, secrets) for path in self._own_paths(secrets))

    def _store_in_vault(
        self, look: Look, held: _Held, planned: tuple[VaultChange, ...],
    ) -> tuple[tuple[VaultChange, ...], TokenOutcome | None, dict[str, Secret]]:
        """Bring Vault's entries and the agent's own Vault token to what they shall be; return the changes and the further secrets of the host.

        Entries that are *planned* stay as they are.
        """
        vault = self.parts.vault
        extra = dict(held.candidate.extra)
        if vault is None:
            return (), None, extra
        secrets = self._for_vault(held.candidate.credential, extra)
        changes = planned or tuple(vault.ensure(path, secrets) for path in self._own_paths(secrets))
        faults.reach("after_vault")
        policy = self.order.policy
        if policy is None:
            return changes, None, extra
        current = extra.get(policy.secret) or look.secrets.get(policy.secret)
        if self.order.check_mode:
            outcome = vault.plan_agent_token(policy, current)
            return changes, outcome, {**extra, policy.secret: current or Secret(_PLACEHOLDER)}
        outcome, minted = vault.ensure_agent_token(policy, current)
        if minted is not None:
            extra[policy.secret] = minted
            self.parts.spool.keep(held.candidate.credential, extra)
        elif current is not None:
            extra[policy.secret] = current
        faults.reach("after_mint")
        return changes, outcome, extra

    def _retire_agent_token(self, look: Look, wanted: Wanted) -> None:
        """Revoke the agent's former Vault token, once the one that replaces it is on the host."""
        policy, vault = self.order.policy, self.parts.vault
        if policy is None or vault is None:
            return
        former = look.secrets.get(policy.secret)
        if former is not None and former != wanted.stored.get(policy.secret):
            vault.revoke_agent_token(former)

    def _save_after_failure(self, look: Look, held: _Held) -> None:
        """Vault failed after a credential was issued: put the credential on the host, so that the next run starts from it."""
        if self.order.check_mode or held.candidate.origin == "store":
            return
        plan = make_plan(look, replace(self._wanted(held, dict(held.candidate.extra)), phase="ISSUED"), self.parts.host.root)
        if plan.delivery is not None:
            self.parts.host.deliver(plan.delivery)
            self.parts.spool.drop()

    def _wanted(self, held: _Held, extra: t.Mapping[str, Secret]) -> Wanted:
        credential = held.candidate.credential
        sent = held.metadata_sent or held.action in ("registered", "adopted", "resumed")
        return Wanted(
            control_plane=self.parts.plane.key, name=self.enrolment.name, url=self.parts.plane.http.url, attempt=self.attempt, credential=credential,
            stored={**extra, **credential.secrets}, why=f"{held.action}: {held.reason}", proof=held.proof, server=held.server,
            metadata=self._metadata() if sent else "", adopted_from=held.candidate.origin if held.action == "adopted" else "", pin=self.order.pin,
            vault_url=self.parts.vault_url)

    def _agent_facts(self, agent_id: str, generation: int, server_version: str = "") -> dict[str, t.Any]:
        return agent_facts(
            self.enrolment, control_plane=self.parts.plane.key, url=self.parts.plane.http.url, agent_id=agent_id, generation=generation,
            server_version=server_version)

    def _issued_names(self) -> tuple[str, ...]:
        """Return the names of the secrets that templates and Vault paths may use beside the operator's own."""
        minted = (self.order.policy.secret,) if self.order.policy is not None else ()
        return (*self.parts.plane.secret_names, *self.parts.plane.optional_secrets, *minted)


def _leased_elsewhere(look: Look) -> bool:
    """Say whether another run holds an unexpired lease on this identity."""
    return look.held is not None and look.held.controller != controller_identity() and look.held.lease_until > look.time


_SENTENCES = {
    "unchanged": "{name} is enrolled at {url} and its credential is accepted.",
    "registered": "{name} was enrolled at {url}.",
    "adopted": "{name} was enrolled at {url} already; its credential was taken over from {origin}.",
    "resumed": "The enrolment of {name} at {url} was finished from where an earlier run stopped.",
    "reissued": "{name} got a new credential at {url}, since the old one was not accepted.",
    "refreshed": "{url} was told what is new about {name}, or gave it a fresh credential.",
    "delivered": "Files or Vault entries of {name} were brought up to date.",
}
