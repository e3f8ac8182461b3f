# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A signer behind a REST call, as control planes offer it: ``POST /api/v1/sign-certificate`` (private to muster.agents).

The request is ``{"csr": base64 of the CSR file, "agent_name", "controller", "validity_days"}``, the answer ``{"certificate": PEM}``.
"""

from __future__ import annotations

import base64

from ansible_collections.muster.agents.plugins.module_utils._certificates import CertificateError, load_certificates
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous, InvalidRequest, Rejected, ServerFault
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, Issuer, Signed, SigningOrder, certificates_in, own_signed

__all__ = ["RemoteSigner"]

_ROUTE = "/api/v1/sign-certificate"


class RemoteSigner(Issuer):
    """Sends the request and takes what comes back, once it leads to a CA that the operator named."""

    key = "remote_signer"

    def __init__(self, http: Http, ca_file: str, controller_name: str) -> None:
        """*ca_file*: certificates (PEM, on the controller) that an answer must lead to. *controller_name* is sent along."""
        self._http = http
        self._ca_file = ca_file
        self._controller = controller_name

    def open(self) -> Chain:
        """Read the CA's certificates; the signer itself has no question that could be asked without a consequence."""
        trusted = certificates_in(self._ca_file, "issuer_ca")
        return Chain(anchors=trusted, intermediates=(), bundle=trusted)

    def sign(self, order: SigningOrder) -> Signed:
        """Have the request signed. The same request may be sent again after a lost answer: it is for the same key."""
        body = {
            "csr": base64.b64encode(order.csr).decode(), "agent_name": order.name, "controller": self._controller, "validity_days": order.valid_days,
        }
        answer = self._http.send("POST", _ROUTE, json_body=body)
        if answer.status not in (200, 201):
            raise self._failure(answer)
        document = answer.json
        text = document.get("certificate") if isinstance(document, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise Ambiguous(
                f"{self._http.url} answered the signing request without a certificate: check that it is a signer; the next run asks again for the same key.",
                reason="incomplete_answer")
        try:
            certificates = load_certificates(text.encode())
        except CertificateError as error:
            raise Ambiguous(
                f"The certificate that {self._http.url} sent cannot be used: {error.msg}; the next run asks again for the same key.",
                reason="incomplete_answer") from None
        return Signed(certificates[0], tuple(item for item in certificates[1:] if not own_signed(item)))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _failure(self, answer: Answer) -> AgentsError:
        words = f" ({answer.message})" if answer.message else ""
        where = f"{self._http.url}{_ROUTE}"
        if answer.status in (401, 403):
            return Rejected(
                f"{where} refuses us{words}: give the client certificate that the signer asks for in client_cert and client_key.", reason="bad_bootstrap")
        if answer.status in (404, 405):
            return InvalidRequest(f"{where} does not exist: check url, and that this control plane has a signer.", reason="no_signer")
        if answer.status < 500:
            return InvalidRequest(f"{where} refuses the request{words}: check subject, names and valid_days.", reason="refused")
        fault = ServerFault if answer.status == 503 else Ambiguous
        return fault(f"{where} answered {answer.status}{words}: run again, the same key is asked for.")
