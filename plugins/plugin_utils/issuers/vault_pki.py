# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The PKI secrets engine of Vault or OpenBao, by a role's sign endpoint (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible_collections.muster.agents.plugins.module_utils._certificates import CertificateError, certificate_pem, load_certificates, serial_text
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._http import Transport
from ansible_collections.muster.agents.plugins.plugin_utils._vault_auth import auth_method
from ansible_collections.muster.agents.plugins.plugin_utils._vault_client import AnswerLost, Refusal, VaultClient, checked_path
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Chain, Issuer, Signed, SigningOrder

if t.TYPE_CHECKING:
    from cryptography import x509

__all__ = ["VaultPki"]


class VaultPki(Issuer):
    """A role decides what may be asked for; what it changes or drops is found when the answer is checked."""

    key = "vault_pki"

    def __init__(self, options: t.Mapping[str, t.Any], login: t.Mapping[str, t.Any]) -> None:
        """*options*: mount, role, issuer_ref. *login*: the dictionary ``vault``. Nothing is sent. Raises InvalidInput or MissingLibrary."""
        self.can_revoke = True
        self._mount = checked_path(options.get("mount") or "pki", option="vault_pki.mount")
        self._role = checked_path(options["role"], option="vault_pki.role")
        self._issuer = checked_path(options.get("issuer_ref") or "default", option="vault_pki.issuer_ref")
        transport = Transport(
            ca_cert=login.get("ca_cert") or "", client_cert=login.get("client_cert") or "", client_key=login.get("client_key") or "",
            validate_certs=login.get("validate_certs", True), timeout=login.get("timeout") or 10.0, allow_plaintext=bool(login.get("allow_plaintext")))
        self._client = VaultClient(login["url"], transport, login.get("namespace") or "")
        self._method = auth_method(login)

    def open(self) -> Chain:
        """Read the issuer's certificate and chain. Raises VaultFailure."""
        self._authenticate()
        try:
            found = self._client.call("GET", f"{self._mount}/issuer/{self._issuer}/json").get("data") or {}
        except Refusal as error:
            if error.reason in ("missing_namespace", "standby"):
                raise
            raise VaultFailure(
                f"Vault shows no issuer {self._issuer} at {self._mount} ({error.words or error.status}): check vault_pki.mount and vault_pki.issuer_ref, "
                f"and allow read on {self._mount}/issuer/{self._issuer}/json.", reason="missing_issuer") from None
        texts = [str(found.get("certificate") or ""), *(str(item) for item in found.get("ca_chain") or ())]
        path: list[x509.Certificate] = []
        for text in texts:
            path += [item for item in _certificates(text, self._mount) if item not in path]
        if not path:
            raise VaultFailure(f"Vault has no CA certificate at {self._mount}: generate or import one there first.", reason="missing_issuer")
        return Chain.of(path)

    def sign(self, order: SigningOrder) -> Signed:
        """Send the request to the role's sign endpoint. Raises VaultFailure (refused, permission_denied, ...) or Ambiguous."""
        self._authenticate()
        names = {kind: [name.partition(":")[2] for name in order.request.names if name.startswith(kind)] for kind in ("DNS", "IP", "URI")}
        body: dict[str, t.Any] = {
            "csr": order.csr.decode(), "ttl": f"{order.valid_days * 24}h", "format": "pem", "exclude_cn_from_sans": True,
            "common_name": next((value for key, value in order.request.subject if key == "CN"), ""), "alt_names": ",".join(names["DNS"]),
            "ip_sans": ",".join(names["IP"]), "uri_sans": ",".join(names["URI"]),
        }
        path = f"{self._mount}/sign/{self._role}" if self._issuer == "default" else f"{self._mount}/issuer/{self._issuer}/sign/{self._role}"
        try:
            found = self._client.call("POST", path, body).get("data") or {}
        except AnswerLost as error:
            raise Ambiguous(f"{error.msg} The next run asks again for the same key.") from None
        except Refusal as error:
            raise self._refused(error, path) from None
        certificates = _certificates(str(found.get("certificate") or ""), self._mount)
        if not certificates:
            raise Ambiguous(f"Vault answered {path} without a certificate; the next run asks again for the same key.", reason="incomplete_answer")
        return Signed(certificates[0])

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Ask the mount. A certificate it does not keep (no_store) counts as good."""
        self._authenticate()
        try:
            found = self._client.call("GET", f"{self._mount}/cert/{_colons(certificate.serial_number)}").get("data") or {}
        except Refusal as error:
            if error.status in (400, 404):
                return False
            raise
        return int(found.get("revocation_time") or 0) > 0

    def revoke(self, serial: int, certificate: x509.Certificate | None) -> bool:
        """Revoke by serial, or with the certificate itself where the mount does not keep it. Vault puts it on its CRL. Raises VaultFailure."""
        self._authenticate()
        if certificate is not None and self.is_revoked(certificate):
            return False
        tries: list[dict[str, str]] = [{"serial_number": _colons(serial)}]
        if certificate is not None:
            tries.append({"certificate": certificate_pem(certificate).decode()})
        for number, body in enumerate(tries, start=1):
            try:
                self._client.call("POST", f"{self._mount}/revoke", body)
                return True
            except Refusal as error:
                if error.status not in (400, 404) or number == len(tries):
                    raise VaultFailure(
                        f"Vault did not revoke {serial_text(serial)} at {self._mount}: {error.words or error.msg}.", reason=_reason(error)) from None
        return False

    def close(self) -> None:
        """Revoke the token if a login of ours issued it, and close the connections."""
        if self._method.issues and self._client.has_token:
            try:
                self._client.hvac.auth.token.revoke_self()
            except AgentsError:
                self._client.forget_token()
        self._client.close()

    def _authenticate(self) -> None:
        if not self._client.has_token:
            self._client.use(self._method.login(self._client))

    def _refused(self, error: Refusal, path: str) -> VaultFailure:
        if error.status == 400:
            return VaultFailure(
                f"The role {self._role} at {self._mount} refuses the request: {error.words}: change the role, or ask for less.", reason="refused")
        if error.status == 404:
            return VaultFailure(f"Vault has no {path}: check vault_pki.mount and vault_pki.role.", reason="missing_mount")
        return VaultFailure(error.msg, reason=_reason(error))


def _reason(error: Refusal) -> str:
    return "unknown_serial" if error.status == 404 else error.reason


def _certificates(text: str, mount: str) -> tuple[x509.Certificate, ...]:
    if not text.strip():
        return ()
    try:
        return load_certificates(text.encode())
    except CertificateError as error:
        raise VaultFailure(f"Vault's answer from {mount} cannot be used: {error.msg}.", reason="incomplete_answer") from None


def _colons(serial: int) -> str:
    text = serial_text(serial).lower()
    return ":".join(text[place:place + 2] for place in range(0, len(text), 2))
