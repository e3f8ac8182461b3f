# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stacker, the control plane of Status Panel agents (private to muster.agents).

Two contracts are met. The agent registration guide documents 201 once and 409 for ever after, JSON errors and 401. The shipped server answers
201 and then 200 with the token it finds in Vault, errors as text, and refuses a bad agent token with 400.
"""

from __future__ import annotations

import re
import secrets
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Rejected,
    ServerFault,
    Throttled,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    Capabilities,
    ControlPlane,
    Credential,
    Enrolment,
    IdentityRules,
    Issued,
    Proof,
    Record,
    ServerState,
    Withdrawal,
)

__all__ = ["Stacker"]

_API = "/api/v1"
_TOKEN_BYTES = 64  # 86 characters
_CAPABILITY = re.compile(r"[a-z0-9_]{1,32}\Z")
_SETTING = re.compile(r"[a-z0-9_]{1,64}=[A-Za-z0-9_.:/-]{1,128}\Z")
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?\Z")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----\s+[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*\Z")
_VERSION_LENGTH = 50
_VOLATILE = frozenset({"disk_free_gb", "memory_gb", "uptime_seconds"})
_TAKEN = re.compile(r"already\s+registered", re.IGNORECASE)


class Stacker(ControlPlane):
    """Stacker: the deployment hash is the identity, an opaque bearer token is the credential, Vault is where the server keeps it.

    Source: agent registration guide, and the shipped server where it differs.
    """

    key = "stacker"
    capabilities = Capabilities(
        overlap=False, restore_old=True, revoke="credential", key_born_on="none", prove_on="controller", token_lifetime=None)
    rules = IdentityRules(max_length=128, charset="[A-Za-z0-9_-]", charset_words="A-Z, a-z, 0-9, - and _", unguessable=True)
    secret_names = ("token",)
    api_versions = frozenset({"1.0"})
    vault_companions = ("deployment_hash",)
    loopback_vault_warning = "a Stacker server that reaches its Vault by loopback stops checking tokens of removed entries."

    def check(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput for what the guide or the server's database would refuse."""
        super().check(enrolment)
        if not _SEMVER.match(enrolment.version) or len(enrolment.version) > _VERSION_LENGTH:
            raise InvalidInput(f"version {enrolment.version!r} is not a semantic version: write it as X.Y.Z, such as 1.0.0 or 2.0.0-rc1.")
        if not enrolment.capabilities:
            raise InvalidInput("capabilities is empty: name at least one thing this agent can do, such as docker or logs.")
        for item in enrolment.capabilities:
            if not _CAPABILITY.match(item) and not _SETTING.match(item):
                raise InvalidInput(f"capability {item!r} is not 1 to 32 lower-case letters, digits and underscores: correct it.")
        if enrolment.public_key and not _is_public_key(enrolment.public_key):
            raise InvalidInput("public_key is not a PEM public key: give the text from -----BEGIN PUBLIC KEY----- to -----END PUBLIC KEY-----.")

    def wire_metadata(self, enrolment: Enrolment) -> dict[str, t.Any]:
        """Version, capabilities and the system information that does not change by itself."""
        stable = {key: value for key, value in sorted(enrolment.system_info.items()) if key not in _VOLATILE}
        return {**super().wire_metadata(enrolment), "system_info": stable}

    def probe(self) -> ServerState:
        """Ask for the health page; a 404 there is an answer too, since the guide names none."""
        answer = self.http.get("/health_check")
        if answer.status >= 500:
            raise ServerFault(f"{self.http.url} answers, but says that it is not healthy (HTTP {answer.status}): repair the control plane first.")
        document = answer.json if isinstance(answer.json, dict) else {}
        return ServerState(version=str(document.get("version") or ""), clock_skew=self.http.clock_skew)

    def check_bootstrap(self) -> None:
        """Log in where a user is given; an admin token shows only when something is registered."""
        if self.bootstrap.username:
            self._login()

    def bootstrap_secret(self) -> Secret | None:
        """Return the user's password, or the admin token."""
        return self.bootstrap.password if self.bootstrap.username else self.bootstrap.admin_token

    def find(self, name: str, credential: Credential | None) -> Record | None:
        """Return the snapshot of *name*; the server shows it to an agent or a user only, so without either the answer is None."""
        answer = self._ask_snapshot(name, self._reader(credential))
        return None if answer is None else self._record(name, answer)

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Register the deployment hash, or link it when a user's login is given. See the base class for what it raises."""
        if self.bootstrap.username:
            return self._link(enrolment, attempt)
        headers = {"Idempotency-Key": attempt}
        if self.bootstrap.admin_token is not None:
            headers["Authorization"] = f"Bearer {self.bootstrap.admin_token.reveal()}"
        answer = self.http.send("POST", f"{_API}/agent/register", json_body=_body(enrolment), headers=headers)
        return self._issued(answer, enrolment)

    def refresh_metadata(self, enrolment: Enrolment, attempt: str) -> Issued | None:
        """Register again: the shipped server takes new metadata and hands back the live token; the documented one says 409, which is None."""
        try:
            return self.register(enrolment, attempt)
        except IdentityConflict:
            return None

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        """Ask for notifications, which needs the token and changes nothing; where they are not served, ask for the list of commands.

        The documented command list counts as a sign of life at some servers; it is the second choice for that reason.
        """
        how = "notifications"
        try:
            answer = self.http.get(f"{_API}/agent/notifications", params={"deployment_hash": enrolment.name}, headers=_agent_headers(credential))
            if answer.status == 404:
                how = "commands"
                answer = self.http.get(f"{_API}/commands", headers=_agent_headers(credential))
        except (ServerFault, Throttled) as error:
            return Proof(accepted=False, definite=False, how=how, detail=error.msg)
        if answer.status == 200:
            return Proof(accepted=True, definite=True, how=how)
        detail = f"HTTP {answer.status}" + (f" {answer.message}" if answer.message else "")
        if answer.status == 400 and "not found in vault" in answer.message.lower():
            return Proof(accepted=False, definite=False, how=how, detail=detail, pending=True)
        return Proof(accepted=False, definite=answer.status in (400, 401, 403), how=how, detail=detail)

    def own_credential(self) -> Secret | None:
        """Return a token of the server's own shape: 86 characters from the URL-safe alphabet. Vault holding it makes it valid."""
        token = Secret(secrets.token_urlsafe(_TOKEN_BYTES))
        register_with_core([token])
        return token

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        """Return the snapshot, whose ``last_heartbeat`` moves when the agent polls or reports; an unknown agent was never seen."""
        answer = self._ask_snapshot(name, _agent_headers(credential))
        return None if answer is None else self._record(name, answer) or Record(name=name)

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        """Say what stays: neither contract lets anybody remove an agent's record over HTTP. The token dies with its Vault entry."""
        return Withdrawal(remains=(
            f"The record of {name} at {self.http.url}: this control plane has no call that removes an agent; it shows as offline from now on.",))

    def _ask_snapshot(self, name: str, headers: dict[str, str]) -> Answer | None:
        """Ask for the snapshot of a deployment; None where this server does not show one, or not to us."""
        answer = self.http.get(f"{_API}/agent/deployments/{name}", params={"command_limit": 1}, headers=headers)
        if answer.status in (400, 401, 403, 404):
            return None
        if answer.status != 200 or not isinstance(answer.json, dict):
            # Silence would pass for an agent that nobody has seen, which may be taken over.
            raise ServerFault(f"{self.http.url} could not say what it knows of {name} (HTTP {answer.status}): run again.")
        return answer

    def _record(self, name: str, answer: Answer) -> Record | None:
        """Return the agent in a snapshot, None when the server knows of none."""
        agent = _item(answer).get("agent")
        if not isinstance(agent, dict):
            return None
        return Record(
            name=name, agent_id=str(agent.get("id") or agent.get("agent_id") or ""), version=str(agent.get("version") or agent.get("agent_version") or ""),
            status=str(agent.get("status") or ""), capabilities=tuple(str(item) for item in agent.get("capabilities") or ()),
            system_info=agent["system_info"] if isinstance(agent.get("system_info"), dict) else {},
            last_seen=str(agent.get("last_heartbeat") or ""), registered_at=str(agent.get("created_at") or agent.get("registered_at") or ""))

    def _reader(self, credential: Credential | None) -> dict[str, str]:
        if credential is not None:
            return _agent_headers(credential)
        if self.bootstrap.admin_token is not None:
            return {"Authorization": f"Bearer {self.bootstrap.admin_token.reveal()}"}
        return {}

    def _link(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Link the deployment in a user's session, which proves who owns it, then send the metadata that linking has no place for."""
        session = self._login()
        fingerprint = {"hostname": enrolment.hostname or enrolment.system_info.get("hostname", ""), "address": enrolment.address}
        body = {"session_token": session, "deployment_id": enrolment.name, "server_fingerprint": fingerprint, "capabilities": list(enrolment.capabilities)}
        answer = self.http.send("POST", f"{_API}/agent/link", json_body=body, headers={"Idempotency-Key": attempt})
        if answer.status == 404:
            raise InvalidRequest(
                f"{self.http.url} knows no deployment {enrolment.name} to link: make it there first, or enrol without username and password.",
                reason="unknown_deployment")
        if answer.status == 403:
            raise Rejected(f"{self.bootstrap.username} does not own the deployment {enrolment.name} at {self.http.url}: use its owner's login.")
        return self._issued(answer, enrolment)

    def _login(self) -> str:
        """Log in as the user and return the session's token. Raises Rejected when the login is refused."""
        password = self.bootstrap.password
        if password is None:
            raise InvalidInput("username is set without password: give password or password_file.")
        login = self.http.send("POST", f"{_API}/agent/login", json_body={"email": self.bootstrap.username, "password": password.reveal()}, read=True)
        session = (login.json or {}).get("session_token") if login.status == 200 and isinstance(login.json, dict) else None
        if not session:
            raise Rejected(f"{self.http.url} refuses the login of {self.bootstrap.username} (HTTP {login.status}): check username and password.",
                           reason="bad_bootstrap")
        return str(session)

    def _issued(self, answer: Answer, enrolment: Enrolment) -> Issued:
        if answer.status not in (200, 201):
            raise self._failure(answer, enrolment)
        item = _item(answer)
        agent_id, token = item.get("agent_id"), item.get("agent_token")
        if not isinstance(agent_id, str) or not agent_id or not isinstance(token, str) or not token:
            raise Ambiguous(f"{self.http.url} registered {enrolment.name} but its answer holds no agent id and token; the next run asks again.",
                            reason="incomplete_answer")
        secret = Secret(token)
        register_with_core([secret])
        versions = tuple(str(version) for version in item.get("supported_api_versions") or ())
        state = ServerState(version=str(item.get("dashboard_version") or ""), api_versions=versions, clock_skew=self.http.clock_skew)
        return Issued(Credential(agent_id, {"token": secret}), created=answer.status == 201, server=state)

    def _failure(self, answer: Answer, enrolment: Enrolment) -> AgentsError:
        """Return the exception that says what a refused registration means."""
        said = f" It says: {answer.message.rstrip('.')}." if answer.message else ""
        if answer.status == 409 or (answer.status < 500 and _TAKEN.search(answer.message)):
            return IdentityConflict(f"{enrolment.name} is registered at {self.http.url} already.{said}")
        if answer.status in (401, 403):
            return Rejected(f"{self.http.url} refuses the registration (HTTP {answer.status}): check admin_token, or the server's access rules.{said}",
                            reason="bad_bootstrap")
        if answer.status in (400, 413, 415, 422):
            if self.bootstrap.admin_token is not None and "unauthorized" in answer.message.lower():
                return Rejected(f"{self.http.url} refuses admin_token: check it.{said}", reason="bad_bootstrap")
            return InvalidRequest(f"{self.http.url} calls the registration of {enrolment.name} invalid (HTTP {answer.status}).{said}")
        if answer.status == 404:
            return InvalidRequest(f"{self.http.url} has no {_API}/agent/register: check that this is a Stacker server.", reason="not_a_control_plane")
        if answer.status >= 500:
            return Ambiguous(f"{self.http.url} failed while registering {enrolment.name} (HTTP {answer.status}); it may have happened.{said}")
        return InvalidRequest(f"{self.http.url} answered HTTP {answer.status} to the registration: check that this is a Stacker server.")


def _body(enrolment: Enrolment) -> dict[str, t.Any]:
    body: dict[str, t.Any] = {
        "deployment_hash": enrolment.name, "agent_version": enrolment.version, "capabilities": list(enrolment.capabilities),
        "system_info": dict(enrolment.system_info),
    }
    if enrolment.public_key:
        body["public_key"] = enrolment.public_key
    return body


def _agent_headers(credential: Credential) -> dict[str, str]:
    """Return the headers of an agent. The documented server knows it by its token alone, so that a token without its id is worth showing too."""
    named = {"X-Agent-Id": credential.agent_id} if credential.agent_id else {}
    return {**named, "Authorization": f"Bearer {credential.secrets['token'].reveal()}"}


def _item(answer: Answer) -> dict[str, t.Any]:
    """Return the payload, which stands under data.item (guide, register), under item (shipped envelope) or bare (link)."""
    document = answer.json
    if not isinstance(document, dict):
        return {}
    data = document.get("data")
    for place in (data.get("item") if isinstance(data, dict) else None, document.get("item"), data, document):
        if isinstance(place, dict) and place:
            return place
    return {}


def _is_public_key(text: str) -> bool:
    if not _PEM.match(text.strip()):
        return False
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        load_pem_public_key(text.strip().encode())
    except ValueError:
        return False
    return True
