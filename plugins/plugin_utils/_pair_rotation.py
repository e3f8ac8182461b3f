# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rotating an agent that proves itself with a pair made on its host (private to muster.agents).

The new key and its certificate wait on the host before the control plane hears of them, and are registered beside the old ones. Only then does the pair
change its place, by one rename, and the agent is restarted. The pair before stays on the host, and is good as long as it was.

A pair waits beside the one in use until a rotation has put it in place or has gone back, and outlives a deploy that runs meanwhile: what it does is to
bring the host to the pair in use. The next rotation takes the waiting pair up, due or not, so that no record is left which nobody knows.
"""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, StagedFile
from ansible_collections.muster.agents.plugins.module_utils._pair_store import Places
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _faults as faults
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import AGENT_ID, CERTIFICATE, Candidate
from ansible_collections.muster.agents.plugins.plugin_utils._client_certificate import read_certificate
from ansible_collections.muster.agents.plugins.plugin_utils._enrolment import Order, Parts
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._pair_renewal import PairRenewal
from ansible_collections.muster.agents.plugins.plugin_utils._rotation import Held, Rotated, Rotation, RotationOrder, Situation
from ansible_collections.muster.agents.plugins.plugin_utils._rotation_plan import Origin, RotationPlan
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Issued, Proof

__all__ = ["PairRotation"]


class PairRotation(Rotation):
    """One identity's rotation, where the credential is a certificate whose key never leaves the host."""

    _FIRST = ("stage", "register", "prove", "vault")

    def __init__(self, order: Order, parts: Parts, wish: RotationOrder, pair: PairRenewal | None, *, attempt: str = "") -> None:
        """*pair* is None where nobody was named who signs."""
        given = order.enrolment
        self._waiting_path = Places(given.certificate_path, given.key_path).waiting if given.certificate_path else ""
        read = (*parts.file_paths, self._waiting_path) if self._waiting_path else parts.file_paths
        super().__init__(order, replace(parts, file_paths=read), wish, attempt=attempt)
        self._pair = pair
        self._lying = ""
        self._enrolled_id = ""
        self._unproved = False

    @property
    def _origin(self) -> Origin:
        return "host"

    @property
    def _renewal(self) -> PairRenewal:
        """The pair. Raises InvalidInput where nobody signs."""
        if self._pair is None:
            raise InvalidInput(
                f"{self.enrolment.name} proves itself with a pair that is made on the host, and nobody is named who signs its certificate: give "
                "certificate, or put a new pair there yourself and let agent_register enrol it beside the old one.", reason="pair_on_host")
        return self._pair

    # -- looking ---------------------------------------------------------------------------------------------------------------------------

    def _read(self) -> Look:
        look = super()._read()
        # From here on each pair is judged for itself, whichever of them lies at the fixed paths now.
        self._lying = self.enrolment.certificate
        self._enrolled_id = look.receipt.agent_id if look.receipt is not None else ""
        self.enrolment = replace(self.enrolment, certificate="")
        return look

    def _situation(self, look: Look) -> Situation:
        situation = super()._situation(look)
        if situation.step != "fresh":
            self._require_way(situation)
        return situation

    def _judged(self, look: Look, receipt: Receipt, accepted: Held) -> Situation:
        situation = super()._judged(look, receipt, accepted)
        if situation.step == "staged" and situation.other is not None and not self._has_key(_pem(situation.other.credential)):
            situation = Situation(accepted, "fresh")
        waiting = self._waiting(look)
        if situation.step != "fresh" or not waiting or waiting.strip() == _pem(accepted.credential).strip():
            return situation
        return Situation(accepted, "staged", Held(Credential("", {CERTIFICATE: Secret(waiting)}), accepted.extra, 0, "own"))

    def _waiting(self, look: Look) -> str:
        """Return the certificate (PEM) that waits with its key beside the pair in use, as long as it is good; else an empty text."""
        found = look.files.get(self._waiting_path)
        text = found.content.decode("utf-8", "replace") if found is not None else ""
        try:
            return text if text and not read_certificate(text).expired(self.parts.plane.http.clock_skew or 0.0) else ""
        except InvalidInput:
            return ""

    def _prove(self, candidate: Candidate) -> Proof:
        """Use the credential; one whose key is not on the host is good for nothing, whatever the control plane says."""
        if candidate.origin != "store" or not self._has_key(_pem(candidate.credential)):
            return Proof(accepted=False, definite=True, how="pair", detail="its key is not on the host")
        proof = super()._prove(candidate)
        self._unproved = proof.accepted and not proof.definite
        return proof

    def _has_key(self, certificate: str) -> bool:
        if certificate.strip() == self._lying.strip() or self.order.check_mode or self._pair is None:
            return True
        return self._pair.holds(certificate)

    def _require_way(self, situation: Situation) -> None:
        """Raise InvalidInput when nobody signs, or nobody could tell whether the new pair was registered. Nothing was sent."""
        self._renewal.check()
        if self._unproved:
            raise InvalidInput(
                f"Without a login nobody tells whether a new pair of {self.enrolment.name} is registered: give one to rotate it.", reason="login_needed")

    # -- the way forward -------------------------------------------------------------------------------------------------------------------

    def _begun(self, look: Look, accepted: Held, plan: RotationPlan) -> Rotated:
        """Have a new key certified, and go on with it."""
        try:
            certificate = self._renewal.certified()
        except AgentsError as error:
            error.facts.update({"failed_step": "pair", "rolled_back": False})
            raise
        self._warnings.extend(self._renewal.warnings)
        self._note("pair", "a new key was made on the host and certified")
        new = Held(Credential("", {CERTIFICATE: Secret(certificate)}), accepted.extra, 0, "own")
        return self._guarded(look, new, accepted, plan, "rotated", plan.reason, proved=False)

    def _prove_and_store(self, new: Held, *, proved: bool) -> Held:
        """Register the certificate beside the old one, and see it in use before anybody else gets it."""
        if proved:
            self._note("prove", "accepted already")
            new = self._with_its_id(new)
        else:
            new = self._registered(new)
        self._keep_id(new)
        if not proved:
            self._settled(new)
        self._to_vault(new)
        return new

    def _registered(self, new: Held) -> Held:
        """Register *new*. A lost answer is looked up by the next try, so that a certificate has one record."""
        enrolment, plane = replace(self.enrolment, certificate=_pem(new.credential)), self.parts.plane

        def beside() -> Issued | None:
            with plane.sessions.trial(plane.bootstrap_secret()):
                return plane.reissue(enrolment, self._enrolled_id, self.attempt)

        faults.reach("before_issue")
        issued = self._asked(beside, "register another pair")
        faults.reach("after_issue")
        self._note("register", "the certificate was registered beside the old one" if issued.created else "the certificate was registered already")
        return replace(new, credential=issued.credential)

    def _keep_id(self, held: Held) -> None:
        """Note the id beside the certificate, which was on the host before it had one."""
        host = self.parts.host
        look = host.look()
        if held.credential.agent_id and look.ids.get(held.generation) != held.credential.agent_id:
            name = StagedFile(f"{host.root}/generations/{held.generation}/{AGENT_ID}", held.credential.agent_id.encode())
            host.deliver(Delivery(host.root, look.receipt_digest, files=(name,), keep_intent=True))

    def _with_its_id(self, held: Held) -> Held:
        """Ask the control plane for the id of a certificate that was registered by a run that died."""
        record = self.parts.plane.find(self.enrolment.name, held.credential)
        return replace(held, credential=replace(held.credential, agent_id=record.agent_id)) if record is not None else held

    def _deliver(self, look: Look, new: Held, old: Held | None) -> tuple[tuple[str, bool], ...]:
        self._renewal.install(_pem(new.credential))
        return super()._deliver(look, new, old)

    def _read_by_the_agent(self) -> None:
        if self.wish.nudge == "none" or not self.wish.gate.units:
            return
        try:
            self._renewal.settle()
        except AgentsError as error:  # what was proved stands
            self._warnings.append(f"The next deploy restarts the agent once more, since the host could not note that it has read its pair: {error.msg}")

    # -- the way back ----------------------------------------------------------------------------------------------------------------------

    def _generation(self, look: Look, number: int) -> Held | None:
        """As the base has it; a generation that was staged before it was registered has no id of its own."""
        held = super()._generation(look, number)
        return self._with_its_id(held) if held is not None and not look.ids.get(number) else held

    def _host_back(self, look: Look, new: Held, old: Held) -> None:
        self._renewal.install(_pem(old.credential), abandon=True)
        super()._host_back(look, new, old)

    # -- what is left of others ------------------------------------------------------------------------------------------------------------

    def _retire(self, look: Look) -> Receipt:
        """As the base has it; where nothing is noted, a run that died may have left something all the same."""
        receipt = super()._retire(look)
        kept = self._generation(look, receipt.generation)
        if kept is not None and not any(name == "retire" for name, _outcome in self._steps):
            self._retire_unwanted(kept, kept)
        return receipt


def _pem(credential: Credential) -> str:
    return credential.secrets[CERTIFICATE].reveal()
