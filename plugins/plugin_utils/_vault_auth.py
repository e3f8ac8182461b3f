# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ways to log in to Vault or OpenBao, one small class each (private to muster.agents).

Making an object checks the options and reads files on the controller; :meth:`AuthMethod.login` is the first thing that sends.
"""

from __future__ import annotations

import typing as t
from abc import ABC, abstractmethod

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._options import secret_option
from ansible_collections.muster.agents.plugins.plugin_utils._vault_client import AnswerLost, Refusal, VaultClient, checked_path

__all__ = ["AuthMethod", "auth_method"]


class AuthMethod(ABC):
    """One way to get a token. *issues* says whether the token is ours to revoke when the work is done."""

    issues: t.ClassVar[bool] = True
    key: t.ClassVar[str]

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        """Check *options* (the ``vault`` dictionary). Raises InvalidInput."""
        self.mount = checked_path(options.get("auth_mount") or self.key, option="vault.auth_mount")
        self.role = str(options.get("role") or "")

    def login(self, client: VaultClient) -> Secret:
        """Return a token. Raises VaultFailure (login_refused, wrapping_refused, ...)."""
        try:
            answer = self._login(client)
        except Refusal as error:
            words = f" ({error.words})" if error.words else ""
            raise VaultFailure(
                f"Vault refused the {self.key} login at auth/{self.mount}{words}: check the mount, the role and the credential.",
                reason="login_refused") from None
        except AnswerLost:
            raise VaultFailure(
                f"The answer to the {self.key} login at auth/{self.mount} was lost: run again, with a new secret id if that was single-use.",
                reason="ambiguous") from None
        token = (answer.get("auth") or {}).get("client_token")
        if not token:
            raise VaultFailure(
                f"Vault answered the {self.key} login at auth/{self.mount} without a token: check which auth method is mounted there.",
                reason="login_refused")
        return Secret(str(token))

    @abstractmethod
    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        """Send the login and return Vault's answer."""


class _Token(AuthMethod):
    """A token that the operator brings; it is used as it is and never revoked here."""

    key = "token"
    issues = False

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        self._token = _required(options, "token", self.key)

    def login(self, client: VaultClient) -> Secret:
        """Return the operator's token; nothing is sent."""
        return self._token

    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        return {}


class _AppRole(AuthMethod):
    """Role id and secret id; the latter may come response-wrapped, and is then opened only if it was wrapped where it should have been."""

    key = "approle"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        self._role_id = _text(options, "role_id", self.key)
        self._secret_id = secret_option(options, "secret_id", prefix="vault.")
        self._wrapped = bool(options.get("secret_id_wrapped"))
        self._creation_path = str(options.get("secret_id_creation_path") or "").strip("/")
        if not self._wrapped:
            return
        if self._secret_id is None:
            raise InvalidInput(
                "vault.secret_id_wrapped is set without a secret id: give the wrapping token in vault.secret_id or vault.secret_id_file.")
        if not self._creation_path:
            if not self.role:
                raise InvalidInput(
                    "vault.secret_id_wrapped needs to know where the secret id was wrapped: give the AppRole's name in vault.role, "
                    "or the whole path in vault.secret_id_creation_path.")
            self._creation_path = f"auth/{self.mount}/role/{self.role}/secret-id"

    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        secret_id = self._secret_id
        if secret_id is not None:
            client.remember(secret_id)
            if self._wrapped:
                secret_id = self._unwrapped(client, secret_id)
        answer: t.Mapping[str, t.Any] = client.hvac.auth.approle.login(
            role_id=self._role_id, secret_id=secret_id.reveal() if secret_id else None, mount_point=self.mount, use_token=False)
        return answer

    def _unwrapped(self, client: VaultClient, wrapping: Secret) -> Secret:
        """Open the wrapping token. A wrong creation path means that somebody opened the original and wrapped something else."""
        remedy = "have a new secret id wrapped"
        try:
            found = client.call("POST", "sys/wrapping/lookup", {"token": wrapping.reveal()}).get("data") or {}
        except Refusal:
            raise VaultFailure(
                f"Vault does not know the wrapping token of the secret id: it was used or has expired; {remedy}, and if nobody of yours "
                "used it, treat it as stolen.", reason="wrapping_refused") from None
        if found.get("creation_path") != self._creation_path:
            raise VaultFailure(
                f"The secret id was wrapped at {client.redacted(str(found.get('creation_path')))} instead of {self._creation_path}, "
                f"so it was not opened: somebody may have replaced it; {remedy}.", reason="wrapping_refused")
        try:
            with client.using(wrapping):
                opened = client.hvac.sys.unwrap().get("data") or {}
        except Refusal:
            raise VaultFailure(
                f"The wrapping token of the secret id was used by somebody else just now: {remedy}.", reason="wrapping_refused") from None
        if not opened.get("secret_id"):
            raise VaultFailure(f"The wrapping token of the secret id holds no secret id: {remedy}.", reason="wrapping_refused")
        return client.remember(Secret(str(opened["secret_id"])))


class _Jwt(AuthMethod):
    """A signed JSON Web Token, and a role that accepts it (the mount's default role when none is named)."""

    key = "jwt"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        self._jwt = _required(options, "jwt", self.key)

    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        client.remember(self._jwt)
        answer: t.Mapping[str, t.Any] = client.hvac.auth.jwt.jwt_login(
            role=self.role or None, jwt=self._jwt.reveal(), path=self.mount, use_token=False)
        return answer


class _Kubernetes(_Jwt):
    """A Kubernetes service account's token: the JWT login under another mount, with a role that must be named."""

    key = "kubernetes"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        _text(options, "role", self.key)


class _UserPass(AuthMethod):
    """A user name and a password."""

    key = "userpass"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        self._username = checked_path(_text(options, "username", self.key), option="vault.username")
        self._password = _required(options, "password", self.key)

    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        client.remember(self._password)
        answer: t.Mapping[str, t.Any] = client.hvac.auth.userpass.login(
            username=self._username, password=self._password.reveal(), mount_point=self.mount, use_token=False)
        return answer


class _Cert(AuthMethod):
    """The TLS client certificate of the connection itself."""

    key = "cert"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(options)
        _text(options, "client_cert", self.key)

    def _login(self, client: VaultClient) -> t.Mapping[str, t.Any]:
        return client.call("POST", f"auth/{self.mount}/login", {"name": self.role} if self.role else {})


_METHODS: t.Mapping[str, type[AuthMethod]] = {method.key: method for method in (_Token, _AppRole, _Jwt, _Kubernetes, _UserPass, _Cert)}


def auth_method(options: t.Mapping[str, t.Any]) -> AuthMethod:
    """Return the chosen method with its options checked. Raises InvalidInput."""
    return _METHODS[options.get("auth_method") or "token"](options)


def _required(options: t.Mapping[str, t.Any], name: str, method: str) -> Secret:
    secret = secret_option(options, name, prefix="vault.")
    if secret is None:
        raise InvalidInput(f"vault.auth_method {method} needs vault.{name} or vault.{name}_file: give one of them.")
    return secret


def _text(options: t.Mapping[str, t.Any], name: str, method: str) -> str:
    value = str(options.get(name) or "")
    if not value:
        raise InvalidInput(f"vault.auth_method {method} needs vault.{name}: give it.")
    return value
