# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""oxmon, the control plane of metrics agents (private to muster.agents).

Two contracts are met. The agent whitelist guide documents a REST API without login, bare JSON and entries addressed by the agent's name. The
shipped server asks for an encrypted login, wraps everything in an envelope, addresses entries by a row id, can regenerate a token and limits
requests. Agents report over gRPC in both, and a report without data points proves a token: it is judged, then dropped.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import time
import typing as t
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import quote, urlsplit

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Mismatch,
    MissingLibrary,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http
from ansible_collections.muster.agents.plugins.plugin_utils._oxmon_report import Endpoint, Reply, send_empty_batch
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pace
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Session, Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument, state_directory
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    Bootstrap,
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

__all__ = ["Oxmon"]

_AGENTS = "/v1/agents"
_WHITELIST = f"{_AGENTS}/whitelist"
_LOGIN = "login"
_UNLIMITED = "unlimited"  # what the server's own limits leave out
_DEFAULT_PORT = 9090
_LOGIN_WINDOW = 300.0  # seconds that the clocks may differ for a login
_LARGEST_SECRET = 190  # bytes that RSA-2048 with OAEP and SHA-256 can carry
_LONGEST_PAUSE = 60.0  # seconds; a rate limit asks for less, a locked login for hours
_PAGE = 1000
_MAX_PAGES = 10_000
_FACTS_LIFE = 20.0  # seconds for which the forks of a play share what the server says of itself
_BY_REGISTERING = 1.0  # seconds after its registration in which "last seen" is what registering itself set
_HANDED_OUT = "was registered at {url} without an answer that could be read; the next run asks what became of it."


@dataclass(frozen=True)
class _Facts:
    """What the server says of itself: its gRPC port, and whether it checks the tokens of agents; None where it does not say."""

    grpc_port: int | None = None
    enforced: bool | None = None


class _NoLogin(InvalidRequest):
    """This server has no login: it is the documented one."""


class Oxmon(ControlPlane):
    """oxmon: a whitelist entry is the identity, an opaque bearer token sent with each gRPC report is the credential.

    Source: agent whitelist guide (design document), and the shipped server where it differs.
    """

    key = "oxmon"
    capabilities = Capabilities(
        overlap=False, restore_old=False, revoke="record", key_born_on="none", prove_on="controller", token_lifetime=None,
        paces={"": Pace(60, 1.0), _LOGIN: Pace(5, 1 / 12)})
    rules = IdentityRules(max_length=255, charset="[A-Za-z0-9._:-]", charset_words="A-Z, a-z, 0-9, dot, underscore, colon and hyphen")
    secret_names = ("token",)

    def __init__(self, http: Http, bootstrap: Bootstrap, sessions: Sessions | None = None) -> None:
        """See the base class. With *sessions* the forks also share what the server says of itself."""
        super().__init__(http, bootstrap, sessions)
        self._shared = SharedDocument(state_directory("servers") if sessions is not None else "", http.url)
        self._session: Session | None = None
        self._without_login = False
        self._refused: Rejected | None = None
        self._issued: Credential | None = None

    def check(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput for a name that could not be a gRPC header or a path segment of its own."""
        super().check(enrolment)
        if enrolment.name == "whitelist":
            raise InvalidInput("name 'whitelist' is a path of the control plane's own API, so that such an agent could not be asked for: choose another.")
        if enrolment.name in (".", ".."):
            raise InvalidInput(f"name {enrolment.name!r} cannot be part of a path: choose another.")
        self._given_endpoint()

    def wire_metadata(self, enrolment: Enrolment) -> dict[str, t.Any]:
        """The description. An empty one is not managed, since the server cannot clear it."""
        return {"description": enrolment.description} if enrolment.description else {}

    # -- what the server says of itself ------------------------------------------------------------------------------------------------------

    def probe(self) -> ServerState:
        """Ask for the health page, and, where we may, whether tokens are checked; the guide names neither, so a 404 is an answer too."""
        answer = self.http.get("/v1/health", bucket=_UNLIMITED)
        if answer.status >= 500:
            raise ServerFault(f"{self.http.url} answers, but says that it is not healthy (HTTP {answer.status}): repair the control plane first.")
        self._check_app_id(answer)
        data = _data(answer)
        version = data.get("version") if isinstance(data, dict) else ""
        # Where the login is refused, check_bootstrap says so.
        return ServerState(version=str(version or ""), clock_skew=self.http.clock_skew, enforced=self._known_enforced())

    def check_bootstrap(self) -> None:
        """Log in, and read one entry of the whitelist. Raises Rejected, Mismatch, InvalidInput or InvalidRequest."""
        answer = self._read(_WHITELIST, {"limit": 1})
        if answer.status != 200:
            raise self._unreadable(answer, "the list of agents")

    def bootstrap_secret(self) -> Secret | None:
        """Return the administrator's password or token."""
        return self.bootstrap.admin_token or self.bootstrap.password

    def _facts(self) -> _Facts:
        """Return what the server says of itself; one fork asks, the others of this play use its answer for a short while."""
        with self._shared.held() as document:
            if document.get("run") == os.getppid() and 0 <= time.time() - float(document.get("at", 0.0)) < _FACTS_LIFE:
                return _Facts(document.get("grpc_port"), document.get("enforced"))
            facts = self._asked_facts()
            document.update(run=os.getppid(), at=time.time(), grpc_port=facts.grpc_port, enforced=facts.enforced)
            return facts

    def _asked_facts(self) -> _Facts:
        answer = self._read("/v1/system/config")
        if answer.status == 404:
            return _Facts()
        data = _data(answer)
        if answer.status != 200 or not isinstance(data, dict):
            raise self._unreadable(answer, "its configuration")
        port, enforced = data.get("grpc_port"), data.get("require_agent_auth")
        return _Facts(port if isinstance(port, int) else None, enforced if isinstance(enforced, bool) else None)

    def _keep_enforced(self, enforced: bool) -> None:
        """Let the other forks know what a trial showed."""
        with self._shared.held() as document:
            document["enforced"] = enforced

    # -- the whitelist -----------------------------------------------------------------------------------------------------------------------

    def find(self, name: str, credential: Credential | None) -> Record | None:
        """Return the whitelist entry of *name* with what its reports show, None when it is not whitelisted. *credential* is of no use here."""
        entry = self._entry(name)
        if entry is None:
            return None
        newest, reports = self._reports(name)
        return self._record(entry, last_seen=newest, reports=reports)

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Whitelist the agent; the answer is the one time that its token is shown. See the base class for what it raises."""
        body: dict[str, t.Any] = {"agent_id": enrolment.name}
        if enrolment.description:
            body["description"] = enrolment.description
        began = time.time()
        answer = self._send("POST", _WHITELIST, body, attempt)
        if answer.status in (200, 201):
            return self._issue(answer, enrolment.name, created=True)
        failure = self._failure(answer, f"the registration of {enrolment.name}")
        if answer.status >= 500 and self._was_there_before(enrolment.name, began):
            # Two at once: the database refused the second, and says so as a fault.
            raise IdentityConflict(f"{enrolment.name} is whitelisted at {self.http.url} already.")
        raise failure

    def recover(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Go on after a lost answer: a token that nobody received is regenerated; without an entry nothing had happened."""
        entry = self._entry(enrolment.name)
        if entry is None:
            return self.register(enrolment, attempt)
        return self._replace(enrolment, entry, attempt, created=True)

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        """Replace the token of a whitelisted agent. The old one is dead at once: there is no overlap."""
        entry = self._entry(enrolment.name)
        if entry is None:
            return self.register(enrolment, attempt)
        issued = self._replace(enrolment, entry, attempt, created=False)
        warning = f"The former token of {enrolment.name} died at once: an agent that still runs with it is refused until it is restarted with the new one."
        return Issued(issued.credential, created=False, server=issued.server, warnings=(warning, *issued.warnings))

    def rotate(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        """Regenerate the token. The old one is dead at once and cannot come back, so that a lost answer is made up for by asking once more."""
        entry = self._entry(enrolment.name)
        if entry is None:
            raise Rejected(f"{self.http.url} has no whitelist entry of {enrolment.name} (tokens may not be checked there): run agent_register.",
                           reason="not_enrolled")
        return self._replace(enrolment, entry, attempt, created=False)

    def refresh_metadata(self, enrolment: Enrolment, attempt: str) -> Issued | None:
        """Send a changed description; None where entries cannot be changed (the guide has no such call)."""
        entry = self._entry(enrolment.name)
        if entry is None or "id" not in entry:
            return None
        credential = Credential(str(entry["id"]), {})
        if enrolment.description and entry.get("description") != enrolment.description:
            answer = self._send("PUT", f"{_WHITELIST}/{_segment(entry['id'])}", {"description": enrolment.description}, attempt)
            if answer.status in (404, 405):
                return None
            if answer.status != 200:
                raise self._failure(answer, f"the description of {enrolment.name}")
        return Issued(credential, created=False)

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        """Take the agent off the whitelist. A lost answer is cleared up by asking again, which is harmless."""
        remains: tuple[str, ...] = (f"The metrics of {name} at {self.http.url}, and its place in the list of agents that have reported.",)
        removed = False
        for last in (False, True):
            entry = self._entry(name)
            if entry is None:
                break
            try:
                self._remove(name, entry)
            except Ambiguous:
                if last:
                    raise
            removed = True
        if self._known_enforced() is False:
            remains = (*remains, f"{self.http.url} does not check tokens (require_agent_auth is off), so that an agent of this name may go on reporting.")
        return Withdrawal(removed=(f"The whitelist entry of {name} at {self.http.url}.",) if removed else (), remains=remains)

    def list_agents(self) -> t.Iterator[Record]:
        """Yield every whitelisted agent, then those that report without being whitelisted, where the server tells (status ``not_enrolled``)."""
        for entry in self._pages(_WHITELIST):
            yield self._record(entry)
        for agent in self._pages(_AGENTS, optional=True):
            if agent.get("in_whitelist") is False:
                yield Record(
                    name=str(agent.get("agent_id") or ""), status="not_enrolled", last_seen=_moment(agent.get("last_seen")), details={"whitelisted": False})

    def _entry(self, name: str) -> dict[str, t.Any] | None:
        """Return the entry of exactly this name; the server's filter finds substrings only, and its quotes are not safe (names have none)."""
        return next((entry for entry in self._pages(_WHITELIST, {"agent_id__contains": name}) if entry.get("agent_id") == name), None)

    def _pages(self, path: str, filters: t.Mapping[str, str] | None = None, *, optional: bool = False) -> t.Iterator[dict[str, t.Any]]:
        """Yield the items of a list, bare or in pages. Raises ServerFault for a list without end, or one that cannot be read."""
        offset = 0
        seen: set[str] = set()
        for _number in range(_MAX_PAGES):
            answer = self._read(path, {**(filters or {}), "limit": _PAGE, "offset": offset})
            if optional and answer.status in (404, 405):
                return
            if answer.status != 200:
                raise self._unreadable(answer, "the list of agents")
            data = _data(answer)
            page = data.get("items") if isinstance(data, dict) else data
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise ServerFault(f"{self.http.url} answers {path} with something that is no list of agents: check that this is an oxmon server.")
            new = [item for item in page if str(item.get("id") or item.get("agent_id")) not in seen]
            if page and not new:
                break
            seen.update(str(item.get("id") or item.get("agent_id")) for item in new)
            yield from new
            offset += len(page)
            total = data.get("total") if isinstance(data, dict) else None
            if not page or not isinstance(total, int) or offset >= total:
                return
        raise ServerFault(f"{self.http.url} never comes to the end of its list of agents: its pages repeat, or there are more than {_MAX_PAGES}.",
                          reason="endless_list")

    def _replace(self, enrolment: Enrolment, entry: t.Mapping[str, t.Any], attempt: str, *, created: bool) -> Issued:
        """Give an entry a new token: by its row id where it has one, else by removing it and adding it again."""
        if "id" in entry:
            answer = self._send("POST", f"{_WHITELIST}/{_segment(entry['id'])}/token", None, attempt)
            if answer.status in (200, 201):
                return self._issue(answer, enrolment.name, row_id=str(entry["id"]), created=created)
            if answer.status != 404:
                raise self._failure(answer, f"a new token for {enrolment.name}")
        self._remove(enrolment.name, entry)
        issued = self.register(enrolment, attempt)
        return Issued(issued.credential, created=created, server=issued.server, warnings=issued.warnings)

    def _remove(self, name: str, entry: t.Mapping[str, t.Any]) -> None:
        """Delete an entry; one that is gone already is fine."""
        answer = self._send("DELETE", f"{_WHITELIST}/{_segment(entry.get('id', name))}", None, "")
        if answer.status not in (200, 202, 204) and not (answer.status == 404 and isinstance(answer.json, dict)):
            raise self._failure(answer, f"the removal of {name}")

    def _was_there_before(self, name: str, began: float) -> bool:
        """Say whether the entry is older than a request that failed, on the server's clock."""
        try:
            entry = self._entry(name)
        except AgentsError:
            return False
        created = parse_time(_moment(entry.get("created_at"))) if entry is not None else None
        return created is not None and created < began + (self.http.clock_skew or 0.0) - 2.0

    def _issue(self, answer: Answer, name: str, *, created: bool, row_id: str = "") -> Issued:
        data = _data(answer)
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(token, str) or not token:
            raise Ambiguous(f"{name} {_HANDED_OUT.format(url=self.http.url)}", reason="incomplete_answer")
        if data.get("agent_id", name) != name:
            raise Mismatch(f"{self.http.url} answered with a token of {data.get('agent_id')!r} when asked for one of {name!r}: do not use this server.",
                           reason="wrong_identity")
        secret = Secret(token)
        register_with_core([secret])
        credential = Credential(row_id or str(data.get("id") or name), {"token": secret})
        self._issued = credential
        return Issued(credential, created=created, server=ServerState(clock_skew=self.http.clock_skew), warnings=self._unchecked_warning(name))

    def _unchecked_warning(self, name: str) -> tuple[str, ...]:
        if self._known_enforced() is not False:
            return ()
        return (f"{self.http.url} does not check the tokens of agents yet (require_agent_auth is off): {name} would be let in with any, or none.",)

    def _known_enforced(self) -> bool | None:
        """Return whether tokens are checked, as far as the server tells. Raises Unreachable or Untrusted."""
        return self._facts_or_none().enforced

    def _facts_or_none(self) -> _Facts:
        """Return what the server says of itself, as far as it tells, and tells us. Raises Unreachable or Untrusted."""
        try:
            return self._facts()
        except (Unreachable, Untrusted):
            raise
        except AgentsError:
            return _Facts()

    # -- proof and signs of life -------------------------------------------------------------------------------------------------------------

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        """Report no data points at all: the token is judged, nothing is written, and the agent is not seen by it.

        While the server does not check tokens this proves nothing: then, and without gRPC, the whitelist says whether the entry is there.
        """
        token = credential.secrets.get("token")
        if token is None:
            return Proof(accepted=False, definite=False, how="none", detail="there is no token to try")
        if re.fullmatch("[!-~]+", token.reveal()) is None:
            return Proof(accepted=False, definite=True, how="none", detail="what is kept as the token has characters that no token has")
        facts = self._facts_or_none()
        try:
            endpoint = self._endpoint(facts)
            reply = send_empty_batch(endpoint, enrolment.name, token, self.http.transport)
        except (MissingLibrary, InvalidInput, Unreachable, ServerFault) as error:
            return self._by_whitelist(enrolment.name, credential, "whitelist", f"the token itself was not tried: {error.msg}")
        if reply.refused:
            return Proof(accepted=False, definite=True, how="empty_batch", detail=f"{reply.status} {reply.message}")
        if not reply.passed:
            return Proof(accepted=False, definite=False, how="empty_batch", detail=f"{reply.status} {reply.message}")
        enforced = facts.enforced if facts.enforced is not None else self._enforced_by_trial(endpoint, enrolment.name)
        if enforced:
            return Proof(accepted=True, definite=True, how="empty_batch")
        how = "auth_off" if enforced is False else "auth_unknown"
        return self._by_whitelist(enrolment.name, credential, how, "tokens are not checked (require_agent_auth is off)" if enforced is False else "")

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        """Return the newest report, None where the server keeps no log of reports. Being whitelisted counts as being seen there, but not here."""
        answer = self._read(f"{_AGENTS}/{_segment(name)}/report-logs", {"limit": 1})
        if answer.status == 404 and not _enveloped(answer):
            return None
        newest, reports = self._newest(answer)
        return Record(name=name, agent_id=credential.agent_id, last_seen=newest, reports=reports)

    def _reports(self, name: str) -> tuple[str, int | None]:
        """Return the newest report and how many there are; nothing is known where the server keeps no log."""
        answer = self._read(f"{_AGENTS}/{_segment(name)}/report-logs", {"limit": 1})
        return ("", None) if answer.status == 404 and not _enveloped(answer) else self._newest(answer)

    def _newest(self, answer: Answer) -> tuple[str, int]:
        if answer.status == 404:
            return "", 0
        data = _data(answer)
        items = data.get("items") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(data, dict) or not isinstance(items, list):
            raise self._unreadable(answer, "the log of reports")
        newest = items[0].get("reported_at") if items and isinstance(items[0], dict) else ""
        total = data.get("total")
        return _moment(newest), total if isinstance(total, int) else len(items)

    def _record(self, entry: t.Mapping[str, t.Any], *, last_seen: str = "", reports: int | None = None) -> Record:
        """Return an entry as a record. Its own "last seen" counts only when it is later than the entry itself, which sets it."""
        registered = _moment(entry.get("created_at"))
        shown = _moment(entry.get("last_seen"))
        if not last_seen and reports is None and (parse_time(shown) or 0.0) > (parse_time(registered) or 0.0) + _BY_REGISTERING:
            last_seen = shown
        return Record(
            name=str(entry.get("agent_id") or ""), agent_id=str(entry.get("id") or entry.get("agent_id") or ""),
            status=str(entry.get("status") or "") if last_seen else "whitelisted", last_seen=last_seen, registered_at=registered, reports=reports,
            details={"description": str(entry.get("description") or ""), "updated_at": _moment(entry.get("updated_at")), "whitelisted": True})

    def _given_endpoint(self) -> Endpoint | None:
        given = self.http.transport.grpc_endpoint
        return Endpoint.parse(given) if given else None

    def _endpoint(self, facts: _Facts) -> Endpoint:
        """Return where reports go. Raises InvalidInput where a token would travel in clear over a network that nobody vouched for."""
        given = self._given_endpoint()
        endpoint = given or Endpoint(urlsplit(self.http.url).hostname or "", facts.grpc_port or _DEFAULT_PORT)
        if not endpoint.tls and not endpoint.loopback and not self.http.transport.allow_plaintext:
            raise InvalidInput(
                f"{endpoint.address} takes reports in clear text: set allow_plaintext: true if the network is yours, "
                "or give the https:// address of a TLS terminator as grpc_endpoint.")
        return endpoint

    def _enforced_by_trial(self, endpoint: Endpoint, name: str) -> bool | None:
        """Find out whether tokens are checked where the server does not say: show one that cannot be right."""
        try:
            reply: Reply = send_empty_batch(endpoint, name, Secret(base64.b64encode(secrets.token_bytes(32)).decode()), self.http.transport)
        except AgentsError:
            return None
        if not reply.refused and not reply.passed:
            return None
        self._keep_enforced(reply.refused)
        return reply.refused

    def _by_whitelist(self, name: str, credential: Credential, how: str, detail: str) -> Proof:
        """Say what the whitelist alone can: that a token cannot be right since there is no entry, or another one. Else it is accepted, not proved."""
        if credential is self._issued:
            return Proof(accepted=True, definite=False, how=how, detail=detail)
        try:
            entry = self._entry(name)
        except (Unreachable, Untrusted):
            raise
        except AgentsError as error:
            return Proof(accepted=False, definite=False, how=how, detail=f"{detail}; {error.msg}")
        if entry is None:
            return Proof(accepted=False, definite=True, how="whitelist", detail=f"{name} is not whitelisted")
        if "id" in entry and credential.agent_id.isdecimal() and credential.agent_id != str(entry["id"]):
            return Proof(accepted=False, definite=True, how="whitelist", detail=f"{name} was taken off the whitelist and added again since")
        return Proof(accepted=True, definite=False, how=how, detail=detail)

    # -- requests ----------------------------------------------------------------------------------------------------------------------------

    def _read(self, path: str, params: t.Mapping[str, t.Any] | None = None) -> Answer:
        """Read as an administrator. Raises Rejected where the login is refused, and ServerFault for a page that is no JSON."""
        answer = self._authorized(lambda headers: self.http.get(path, params=params, headers=headers))
        if answer.status == 200 and answer.json is None:
            raise ServerFault(f"{self.http.url} answers {path} with something that is not JSON: check that this is the control plane itself, not a page "
                              "in front of it.")
        return answer

    def _send(self, method: str, path: str, body: t.Any, attempt: str) -> Answer:
        """Change something as an administrator. Raises Rejected where the login is refused, Ambiguous where the answer cannot be read."""
        key = {"Idempotency-Key": attempt} if attempt else {}
        answer = self._authorized(lambda headers: self.http.send(method, path, json_body=body, headers={**headers, **key}))
        if answer.status in (200, 201) and answer.json is None and method != "DELETE":
            raise Ambiguous(f"{self.http.url} answered with something that is not JSON, so that nobody knows what happened; the next run finds out.",
                            reason="incomplete_answer")
        return answer

    def _authorized(self, request: t.Callable[[dict[str, str]], Answer]) -> Answer:
        """Make a *request* with the administrator's session; one that has ended on the way is replaced once, since a 401 means that nothing was done."""
        answer = request(self._headers())
        if answer.status == 401 and self._session is not None and self.bootstrap.password is not None:
            self.sessions.discard(self.bootstrap.username, self.bootstrap.password, self._session)
            self._session = None
            answer = request(self._headers())
        if answer.status == 401:
            raise self._failure(answer, "the request")
        self._check_app_id(answer)
        return answer

    def _headers(self) -> dict[str, str]:
        """Return what shows that we may: nothing at a server without login. Raises what logging in raises."""
        if self.bootstrap.admin_token is not None:
            return {"Authorization": f"Bearer {self.bootstrap.admin_token.reveal()}"}
        if not self.bootstrap.username or self._without_login:
            return {}
        if self.bootstrap.password is None:
            raise InvalidInput("username is set without password: give password or password_file.")
        if self._refused is not None:
            raise self._refused
        try:
            self._session = self._session or self.sessions.session(self.bootstrap.username, self.bootstrap.password, self._login)
        except _NoLogin:
            self._without_login = True
            return {}
        except Rejected as error:
            self._refused = error
            raise
        return {"Authorization": f"Bearer {self._session.token.reveal()}"}

    def _login(self) -> Session:
        """Log in with the password encrypted under the server's key. Raises _NoLogin, Rejected, Mismatch, InvalidInput or InvalidRequest."""
        answer = self.http.get("/v1/auth/public-key", bucket=_LOGIN)
        if answer.status == 404:
            raise _NoLogin(f"{self.http.url} has no login.")
        self._check_app_id(answer)
        data = _data(answer)
        pem = data.get("public_key") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(pem, str):
            raise ServerFault(f"{self.http.url} shows no key to encrypt a password with (HTTP {answer.status}): check that this is an oxmon server.")
        skew = self.http.clock_skew
        if skew is not None and abs(skew) > _LOGIN_WINDOW:
            raise Mismatch(f"The clock of {self.http.url} is {skew:.0f} seconds off the controller's, and a login is good for {_LOGIN_WINDOW:.0f}: "
                           "set both by NTP, then run again.", reason="clock_skew")
        body = {"username": self.bootstrap.username, "encrypted_password": self._encrypted(pem)}
        try:
            answer = self.http.send("POST", "/v1/auth/login", json_body=body, read=True, bucket=_LOGIN)
        except Throttled as error:
            raise self._locked(error) from None
        return self._logged_in(answer)

    def _logged_in(self, answer: Answer) -> Session:
        self._check_app_id(answer)
        data = _data(answer)
        token = data.get("access_token") if isinstance(data, dict) else None
        if answer.status == 200 and isinstance(data, dict) and isinstance(token, str) and token:
            session = Session(Secret(token), time.time() + float(data.get("expires_in") or 0.0))
            register_with_core([session.token])
            return session
        said = _said(answer)
        if answer.status in (401, 403):
            raise Rejected(f"{self.http.url} refuses the login of {self.bootstrap.username} (HTTP {answer.status}).{said} Check username and password: "
                           "after five failures the login is locked for three hours.", reason="bad_bootstrap")
        if answer.status == 400:
            raise InvalidRequest(f"{self.http.url} cannot read the encrypted login of {self.bootstrap.username}.{said} Compare the clocks, and make sure that "
                                 "every request reaches the same server.", reason="login_unreadable")
        raise ServerFault(f"{self.http.url} could not log {self.bootstrap.username} in (HTTP {answer.status}).{said} Run again.")

    def _encrypted(self, pem: str) -> str:
        """Return the password as the server wants it: RSA-OAEP (SHA-256) over JSON with the time, in base64. Raises InvalidInput or ServerFault."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        password = self.bootstrap.password
        text = json.dumps({"password": password.reveal() if password is not None else "", "timestamp": int(time.time())}, separators=(",", ":"))
        if len(text.encode()) > _LARGEST_SECRET:
            raise InvalidInput(f"password is too long: with the time beside it, at most {_LARGEST_SECRET} bytes can be encrypted for this control plane.")
        try:
            key = load_pem_public_key(pem.encode())
        except ValueError:
            key = None
        if not isinstance(key, rsa.RSAPublicKey):
            raise ServerFault(f"{self.http.url} shows a key that is no RSA public key: check that this is an oxmon server.")
        oaep = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
        return base64.b64encode(key.encrypt(text.encode(), oaep)).decode()

    def _locked(self, error: Throttled) -> AgentsError:
        """Tell a locked login, which lasts hours, from the limit on logins, which lasts seconds."""
        if error.retry_after <= _LONGEST_PAUSE:
            return error
        until = datetime.fromtimestamp(time.time() + error.retry_after, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Rejected(
            f"{self.http.url} has locked the login of {self.bootstrap.username} until {until}, after too many failures: correct the password, then unlock it "
            "(POST /v1/admin/users/unlock-login-throttle as another administrator) or wait.", reason="login_locked", locked_until=until)

    def _check_app_id(self, answer: Answer) -> None:
        document = answer.json if answer.status == 403 else None
        if isinstance(document, dict) and document.get("err_code") in (1008, 1009):
            raise InvalidRequest(f"{self.http.url} asks for an ox-app-id header, which is not supported here: set require_app_id = false at the server.",
                                 reason="app_id_required")

    def _unreadable(self, answer: Answer, what: str) -> AgentsError:
        """Return the exception for an unsuccessful read: a fault there means nothing but itself."""
        failure = self._failure(answer, what)
        return ServerFault(f"{self.http.url} could not show {what} (HTTP {answer.status}).{_said(answer)} Run again.") if answer.status >= 500 else failure

    def _failure(self, answer: Answer, what: str) -> AgentsError:
        """Return the exception that says what an unsuccessful *answer* to *what* means."""
        url, said, status = self.http.url, _said(answer), answer.status
        if status == 401:
            remedy = "give username and password of an administrator" if self.bootstrap_secret() is None else "check username, password and admin_token"
            return Rejected(f"{url} asks for an administrator's login (HTTP 401).{said} To go on, {remedy}.", reason="bad_bootstrap")
        if status == 403:
            return Rejected(f"{url} does not allow {what} (HTTP 403).{said} Check the login, and what stands before the server.", reason="bad_bootstrap")
        if status in (404, 405) and not isinstance(answer.json, dict):
            return InvalidRequest(f"{url} has no agent whitelist: check that this is an oxmon server, of a version that has one.", reason="not_a_control_plane")
        if status == 409:
            return IdentityConflict(f"{what[:1].upper()}{what[1:]} is refused by {url}, since the name is whitelisted already.{said}")
        if status >= 500:
            return Ambiguous(f"{url} failed at {what} (HTTP {status}); it may have happened.{said}")
        if 200 <= status < 300:
            return ServerFault(f"{url} answers {what} with something that cannot be read: check that this is an oxmon server.")
        return InvalidRequest(f"{url} calls {what} invalid (HTTP {status}).{said}")


def _data(answer: Answer) -> t.Any:
    """Return what an answer carries: below ``data`` in the shipped envelope, else the whole document."""
    document = answer.json
    if isinstance(document, dict) and "err_code" in document and "data" in document:
        return document["data"]
    return document


def _enveloped(answer: Answer) -> bool:
    """Say whether the shipped server's own handler answered: unknown paths have empty answers."""
    document = answer.json
    return isinstance(document, dict) and "err_code" in document


def _said(answer: Answer) -> str:
    """Return the server's own words as a sentence of their own, without secrets; empty when it has none."""
    document = answer.json
    told = document.get("err_msg") if isinstance(document, dict) else None
    text = told if isinstance(told, str) else answer.message
    text = " ".join(redact(text, answer.sent).split())[:200]
    return f" It says: {text.rstrip('.')}." if text else ""


def _segment(text: t.Any) -> str:
    return quote(str(text), safe="")


def _moment(value: t.Any) -> str:
    """Return a time of either contract (RFC 3339 text or whole seconds since the epoch) as ISO 8601 in UTC, empty when it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return datetime.fromtimestamp(value, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return value if isinstance(value, str) and parse_time(value) is not None else ""
