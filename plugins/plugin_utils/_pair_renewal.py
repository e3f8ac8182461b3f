# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new pair in two steps: its certificate first, its place at the fixed paths once the control plane knows it (private to muster.agents).

The key is made on the host and waits there beside the pair in use, soon with its certificate, whatever else is done to the host meanwhile. The same
goes for the way back: the pair before stays on the host.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs as specs
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, Mismatch, MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils._faults import reach
from ansible_collections.muster.agents.plugins.plugin_utils._issuance import check_answer, visit, wish_of
from ansible_collections.muster.agents.plugins.plugin_utils._pair import Executor
from ansible_collections.muster.agents.plugins.plugin_utils.issuers import issuer_of
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, SigningOrder

__all__ = ["PairRenewal"]

_SPEC: specs.Spec = {**specs.CERTIFICATE, **specs.ISSUER, **specs.TRANSPORT, "vault": specs.VAULT["vault"]}
_NEEDED = ("certificate_path", "key_path", "subject", "issuer")


class PairRenewal:
    """The pair of one agent, and who signs its certificates."""

    def __init__(self, host: Executor, options: t.Mapping[str, t.Any], *, check_mode: bool) -> None:
        """*options* are those of cert_issue, as a task has them. Raises InvalidInput for what cannot be right; nothing is sent yet."""
        if x.IMPORT_ERROR is not None:
            raise MissingLibrary("The Python library cryptography is needed on the controller: install the collection's requirements.txt there.",
                                 traceback=x.IMPORT_ERROR)
        validation = ArgumentSpecValidator(_SPEC).validate(dict(options))
        if validation.error_messages:
            raise InvalidInput(f"certificate: {validation.error_messages[0]}.")
        args = validation.validated_parameters
        missing = [name for name in _NEEDED if not args.get(name)]
        if missing:
            raise InvalidInput(f"certificate: {missing[0]} is missing: give it as cert_issue has it.")
        self._host = host
        self._issuer = issuer_of(args)
        self._wish = wish_of(args, exact=self._issuer.exact, check_mode=check_mode)
        self._chain: Chain | None = None
        self.warnings: tuple[str, ...] = self._wish.warnings

    def check(self) -> None:
        """Ask the signer whether it could sign. Changes nothing. Raises AgentsError."""
        self._opened()

    def certified(self) -> str:
        """Return a certificate (PEM, with its issuers) that waits on the host with its key; nothing is in its place yet. Raises AgentsError."""
        wish, chain = self._wish, self._opened()
        csr = self._looked()["request"].encode()
        reach("after_key")
        signed = self._issuer.sign(SigningOrder(csr, wish.request, wish.valid_days, wish.name))
        reach("after_sign")
        self.warnings = (*wish.warnings, *check_answer(signed, csr, wish, chain))
        shown = (signed.intermediates or chain.intermediates) if wish.include_chain else ()
        certificate = x.certificate_pem(signed.certificate, *shown).decode()
        visit(self._host, {**wish.places, "operation": "keep", "certificate": certificate})
        return certificate

    def holds(self, certificate: str) -> bool:
        """Say whether the key of *certificate* (PEM) is on the host, in a pair or waiting with it. Changes nothing."""
        leaf = x.load_certificates(certificate.encode())[0]
        raw = visit(self._host, {**self._wish.places, "operation": "look"})
        return any(x.load_certificates(text.encode())[0] == leaf for text in (*raw["held"], raw["waiting"]) if text)

    def install(self, certificate: str, *, abandon: bool = False) -> None:
        """Put *certificate* with its key at the fixed paths, as one unit; the pair that was there is kept.

        *abandon* throws away a key that waits for another time. Raises HostFailure.
        """
        ca = x.certificate_pem(*self._opened().bundle).decode() if self._wish.places.get("ca_path") else ""
        visit(self._host, {**self._wish.places, "operation": "install", "certificate": certificate, "ca": ca, "abandon": abandon})
        reach("after_install")

    def settle(self) -> None:
        """Note that the agent has read the pair, so that nobody restarts it for that. Raises HostFailure."""
        visit(self._host, {**self._wish.places, "operation": "settle"})

    def close(self) -> None:
        """End the connection to the signer."""
        self._issuer.close()

    def _looked(self) -> dict[str, t.Any]:
        renewal = self._wish.renewal
        raw = visit(self._host, {
            **self._wish.places, "operation": "look", "request": self._wish.request.dump(), "reason": "rotation",
            "renewal": {"now": renewal.now, "days": renewal.days, "share": renewal.share, "early": renewal.early}})
        if not isinstance(raw.get("request"), str):
            raise Mismatch("The host's part answered without a signing request.")
        return raw

    def _opened(self) -> Chain:
        """Return the signer's chain, asked for once."""
        if self._chain is None:
            self._chain = self._issuer.open()
        return self._chain
