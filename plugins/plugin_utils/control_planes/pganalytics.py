# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pgAnalytics, the control plane of PostgreSQL collectors (private to muster.agents).

Two contracts are met. The collector registration guide documents 201 and 409, tokens and certificates of the server's own CA for a year, token info,
deletion by name. The shipped backend answers 200 and makes another collector of the same name each time, issues tokens for 30 minutes and
self-signed certificates, knows collectors by id alone, and shows its newest 20 whatever page is asked for.
"""

from __future__ import annotations

import ipaddress
import re
import time
import typing as t
import uuid
from dataclasses import dataclass, replace
from urllib.parse import quote

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._credential_checks import (
    Claims,
    check_claims,
    check_pair,
    claims_of,
    lifetime_of,
    pair_trouble,
    require_library,
)
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    AgentsError,
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Mismatch,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pace
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Session, Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    Bootstrap,
    BootstrapRecord,
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

__all__ = ["PgAnalytics"]

_API = "/api/v1"
_COLLECTORS = f"{_API}/collectors"
_SECRETS = f"{_API}/registration-secrets"
_ISSUED = ("token", "certificate", "private_key")
_SHORTEST_SECRET = 32  # characters; the guide's rule
_LONGEST_FIELD = 255
_LONGEST_VERSION = 50
_PAGE_SIZE = 100
_MAX_PAGES = 10000
_SESSION = 900.0  # seconds; the shipped server's, where an answer does not say
_ID = re.compile(r"[A-Za-z0-9._:-]{1,255}\Z")
_PRINTABLE = re.compile(r"[\x21-\x7e]+\Z")
_TENANT_BUG = "Invalid user context"


@dataclass(frozen=True)
class _Found:
    """The collectors of one name, newest first. *complete* is False when the server did not show its whole list."""

    entries: tuple[dict[str, t.Any], ...]
    complete: bool


class PgAnalytics(ControlPlane):
    """pgAnalytics v3: a pre-shared secret buys a collector id, a JWT and an X.509 pair.

    Source: collector registration guide, and the shipped backend where it differs.
    """

    key = "pganalytics"
    # A token lives half an hour at the shipped server and a year at the documented one; what a token itself says is what counts.
    capabilities = Capabilities(
        overlap=True, restore_old=True, revoke="record", key_born_on="server", prove_on="controller", token_lifetime=1800,
        paces={"": Pace(burst=1000, per_second=16.0)})
    rules = IdentityRules(max_length=_LONGEST_FIELD, charset="[A-Za-z0-9._-]", charset_words="A-Z, a-z, 0-9, ., - and _")
    secret_names = _ISSUED
    optional_secrets = ("ca_certificate",)
    retires = True

    def __init__(self, http: Http, bootstrap: Bootstrap, sessions: Sessions | None = None) -> None:
        """See the base class. Raises MissingLibrary."""
        require_library()
        super().__init__(http, bootstrap, sessions)

    # -- input -----------------------------------------------------------------------------------------------------------------------------

    def check(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput for what the guide or the server's database would refuse; the host name may still be missing."""
        super().check(enrolment)
        if not enrolment.name.strip("."):
            raise InvalidInput(f"name {enrolment.name!r} is made of dots: it could not stand in an address.")
        if len(enrolment.hostname) > _LONGEST_FIELD or (enrolment.hostname and not _PRINTABLE.match(enrolment.hostname)):
            raise InvalidInput("hostname is not up to 255 printable ASCII characters: it becomes the certificate's name, so give the DNS name.")
        if len(enrolment.version) > _LONGEST_VERSION:
            raise InvalidInput(f"version has {len(enrolment.version)} characters, but this control plane stores at most {_LONGEST_VERSION}: shorten it.")
        tags = enrolment.labels.get("tags")
        if tags is not None and not isinstance(tags, dict):
            raise InvalidInput("labels.tags is not a dictionary: give tags as names with values.")
        if self.bootstrap.registration_secret is not None:
            _check_secret(self.bootstrap.registration_secret)

    def wire_metadata(self, enrolment: Enrolment) -> dict[str, t.Any]:
        """What a registration tells and does not change by itself. There is no call that changes it later."""
        return {name: value for name, value in _body(enrolment).items() if name not in ("name", "address")}

    # -- before and around registering -----------------------------------------------------------------------------------------------------

    def probe(self) -> ServerState:
        """Ask for the health page."""
        answer = self.http.get(f"{_API}/health")
        if answer.status == 404:
            raise self._not_ours(f"{_API}/health")
        if not isinstance(answer.json, dict):
            raise ServerFault(f"{self.http.url} answers with something that is not JSON (HTTP {answer.status}): check that this is pgAnalytics.")
        if answer.status != 200:
            down = ", ".join(name for name in ("database_ok", "timescale_ok") if answer.json.get(name) is False)
            raise ServerFault(
                f"{self.http.url} says that it is not healthy (HTTP {answer.status}{', not ' + down if down else ''}): repair the control plane first.")
        return ServerState(version=str(answer.json.get("version") or ""), clock_skew=self.http.clock_skew)

    def check_bootstrap(self) -> None:
        """Look at the registration secret, which cannot be tried without registering, and try the admin login where one is given."""
        if self.bootstrap.registration_secret is not None:
            _check_secret(self.bootstrap.registration_secret)
        if self.bootstrap.username:
            self._session()
        elif self.bootstrap.admin_token is not None:
            self._administer("GET", _COLLECTORS, params={"page": 1, "page_size": 1})

    def bootstrap_secret(self) -> Secret | None:
        """The registration secret."""
        return self.bootstrap.registration_secret

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Register a collector. Where an admin login is given, the name is looked for first, since the shipped server takes it twice."""
        self._require_registration(enrolment)
        found = self._search(enrolment.name)
        if found is not None and found.entries:
            record = _record(found.entries[0])
            seen = f"last seen {record.last_seen}" if record.last_seen else f"never seen, registered {record.registered_at}"
            raise IdentityConflict(
                f"{enrolment.name} is registered at {self.http.url} already ({seen}).", agent_id=record.agent_id, last_seen=record.last_seen,
                registered_at=record.registered_at)
        return self._post(enrolment, attempt, self._doubts(enrolment.name, found))

    def recover(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Register again after a lost answer. A record that was never used stems from the lost one, and is deleted first where that is possible."""
        self._require_registration(enrolment)
        found = self._search(enrolment.name)
        if found is None:
            left = (f"The answer to an earlier registration of {enrolment.name} was lost, and without an admin login nobody can look for what it left: "
                    f"an unused record of that name may stay at {self.http.url}.")
            return self._post(enrolment, attempt, (left,))
        warnings = self._doubts(enrolment.name, found)
        for entry in found.entries:
            record = _record(entry)
            if not record.last_seen:
                self._delete(record.agent_id, enrolment.name)
        # Not under the lost attempt's key: a server that honours keys would answer with the record that is gone now.
        return self._post(enrolment, str(uuid.uuid4()), warnings)

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        """Delete the record that has this name and register anew; None without an admin login, since nobody else may delete."""
        found = self._search(enrolment.name)
        if found is None:
            return None
        self._require_registration(enrolment)
        newest = _record(found.entries[0]).agent_id if found.entries else ""
        others = [entry for entry in found.entries if _record(entry).agent_id not in (known_id, newest)]
        for old in dict.fromkeys(one for one in (known_id, newest) if one):
            self._delete(old, enrolment.name)
        warnings = self._doubts(enrolment.name, found)
        if others:
            ids = ", ".join(_record(entry).agent_id for entry in others)
            warnings = (*warnings, f"{self.http.url} has {len(others)} more records of {enrolment.name}, which were left: {ids}.")
        return self._post(enrolment, str(uuid.uuid4()), warnings)

    def refresh(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        """Exchange a token that is still good for a fresh one; the pair stays. None where the server has no such path.

        The old token stays good, so that asking twice harms nobody.
        """
        headers = self._bearer(credential)
        answer = self.http.send("POST", f"{_COLLECTORS}/token/refresh", json_body={"collector_id": credential.agent_id}, headers=headers, read=True)
        if answer.status == 404:
            answer = self.http.send("POST", f"{_COLLECTORS}/refresh-token", headers=headers, read=True)
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise Rejected(f"{self.http.url} does not refresh the token of {enrolment.name} (HTTP {answer.status} {answer.message}): "
                           "an expired token cannot be refreshed, enrol again with registration_secret.", reason="refresh_refused")
        token = answer.json.get("token") if answer.status == 200 and isinstance(answer.json, dict) else None
        if not isinstance(token, str) or not token:
            raise ServerFault(f"{self.http.url} did not answer the refresh of {enrolment.name} with a token (HTTP {answer.status}): the old one stays.")
        fresh = _secret(token)
        try:
            self._check_token(fresh, credential.agent_id)
        except Mismatch as error:
            raise self._contradiction(error, enrolment.name) from None
        return Issued(replace(credential, secrets={**credential.secrets, "token": fresh}), created=False, server=self._state())

    def rotate(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        """Get a new token and pair beside the old ones: by the guide's call, or by a further record where the server has none.

        A further record of the name that was never used stems from a try whose answer was lost, and is deleted first where that is possible.
        """
        self._require_registration(enrolment)
        secret = self.bootstrap.registration_secret
        headers = {**self._bearer(credential), "X-Registration-Secret": secret.reveal() if secret is not None else "", "Idempotency-Key": attempt}
        answer = self.http.send("POST", f"{_COLLECTORS}/rotate", json_body={"collector_id": credential.agent_id}, headers=headers)
        if answer.status == 404:
            return self._further_record(enrolment, credential)
        if answer.status not in (200, 201):
            raise self._failure(answer, enrolment)
        issued = self._issued(answer, enrolment.name)
        try:
            self._check_issued(answer, issued)
        except Mismatch as error:
            raise self._contradiction(error, enrolment.name) from None
        return Issued(issued, created=False, server=self._state())

    def _further_record(self, enrolment: Enrolment, credential: Credential) -> Issued:
        found = self._search(enrolment.name)
        for record in map(_record, found.entries if found is not None else ()):
            if record.agent_id != credential.agent_id and not record.last_seen:
                self._delete(record.agent_id, enrolment.name)
        # Not under the key of a registration: a server that honours keys would answer with the record that is there.
        return self._post(enrolment, str(uuid.uuid4()), self._doubts(enrolment.name, found))

    def retire(self, enrolment: Enrolment, unwanted: Credential, kept: Credential) -> Withdrawal:
        """Delete the record of a credential that has one of its own; say how long its token stays good. Raises as the delete does."""
        if unwanted.agent_id == kept.agent_id:
            return Withdrawal(remains=self._alive(unwanted))
        if not self._is_admin:
            stays = f"The older record {unwanted.agent_id} of {enrolment.name} at {self.http.url}: deleting it needs a login, give username and password."
            return Withdrawal(remains=(stays, *self._alive(unwanted)))
        removed = (f"Record {unwanted.agent_id} of {enrolment.name} at {self.http.url}.",) if self._delete(unwanted.agent_id, enrolment.name) else ()
        return Withdrawal(removed, self._alive(unwanted))

    def lifetime(self, credential: Credential) -> Lifetime | None:
        """What the token's own claims say."""
        claims = claims_of(credential.secrets["token"])
        return None if claims is None else lifetime_of(claims)

    # -- using a credential ----------------------------------------------------------------------------------------------------------------

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        """Show the token to token info, or else to the list of collectors, which tells a good collector's token from a bad one in refusing both.

        With an admin login the record is looked for too, since the shipped server takes a token whose collector was deleted. A pair that cannot be
        used any more is refused here, whatever the token is worth.
        """
        try:
            trouble = self._pair_trouble(credential)
            if trouble:
                return Proof(accepted=False, definite=True, how="pair", detail=trouble)
            return self._prove_token(credential)
        except (Unreachable, Untrusted):
            raise
        except AgentsError as error:
            return Proof(accepted=False, definite=False, how="token info", detail=error.msg)

    def _prove_token(self, credential: Credential) -> Proof:
        if not _PRINTABLE.match(credential.secrets["token"].reveal()):
            return Proof(accepted=False, definite=True, how="token info", detail="the token holds characters that no token has")
        headers = self._bearer(credential)
        answer = self.http.get(f"{_COLLECTORS}/token/info", headers=headers)
        if answer.status == 404:
            return self._prove_by_list(credential, self.http.get(_COLLECTORS, headers=headers))
        told = answer.json.get("collector_id") if isinstance(answer.json, dict) else None
        if answer.status == 200 and told and credential.agent_id and told != credential.agent_id:
            return Proof(accepted=False, definite=True, how="token info", detail="the token is another collector's")
        if answer.status == 200 and isinstance(answer.json, dict):
            return Proof(accepted=True, definite=True, how="token info")
        return Proof(accepted=False, definite=_refused(answer), how="token info", detail=_said(answer))

    def _prove_by_list(self, credential: Credential, answer: Answer) -> Proof:
        how = "list of collectors"
        claims = claims_of(credential.secrets["token"]) or {}
        if credential.agent_id and claims.get("collector_id", credential.agent_id) != credential.agent_id:
            return Proof(accepted=False, definite=True, how=how, detail="the token is another collector's")
        known = answer.status == 200 or (_refused(answer) and "user not found" in answer.message.lower())
        if not known:
            return Proof(accepted=False, definite=_refused(answer), how=how, detail=_said(answer))
        if credential.agent_id and self._record_is_gone(credential.agent_id):
            return Proof(accepted=False, definite=True, how=how, detail="the collector was deleted at the control plane")
        return Proof(accepted=True, definite=True, how=how)

    def _record_is_gone(self, agent_id: str) -> bool:
        """Say whether an admin is told that there is no such collector; not asking, or not being told, is no."""
        if not self._is_admin:
            return False
        try:
            answer = self._administer("GET", _one(agent_id))
        except (Rejected, ServerFault, Throttled):
            return False
        return answer.status == 404 and isinstance(answer.json, dict)

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        """Return the record as an admin sees it, None without an admin login: a collector is not told about itself."""
        if not self._is_admin:
            return None
        entry = self._by_id(credential.agent_id)
        if entry is None:
            found = self._search(name)
            entries = found.entries if found is not None else ()
            entry = next((one for one in entries if _record(one).agent_id == credential.agent_id), None)
        return _record(entry) if entry is not None else Record(name=name)

    def find(self, name: str, credential: Credential | None) -> Record | None:
        """Return the newest record of exactly this name, for an admin; with a credential alone, the id that its token names."""
        found = self._search(name)
        if found is not None and found.entries:
            record = _record(found.entries[0])
            others = [_record(entry).agent_id for entry in found.entries[1:]]
            return replace(record, details={**record.details, "duplicates": others}) if others else record
        claims = (claims_of(credential.secrets["token"]) or {}) if credential is not None else {}
        agent_id = claims.get("collector_id")
        return Record(name=name, agent_id=agent_id) if isinstance(agent_id, str) and _ID.match(agent_id) else None

    def list_agents(self) -> t.Iterator[Record]:
        """Yield every collector. Raises InvalidRequest without an admin login, ServerFault when the server does not show them all."""
        if not self._is_admin:
            raise InvalidRequest(f"{self.http.url} lists its collectors for a user only: give username and password, or admin_token.", reason="unsupported")
        entries, complete = self._list()
        if not complete:
            shown = [_record(entry).as_result() for entry in entries]
            raise ServerFault(
                f"{self.http.url} shows only the newest {len(shown)} of its collectors, whatever page is asked for: ask for one by name, "
                "or update the server.", reason="incomplete_list", agents=shown)
        yield from map(_record, entries)

    # -- withdrawing -----------------------------------------------------------------------------------------------------------------------

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        """Delete the record, for an admin. Say what stays: other records of the name, and a token that no server can call back."""
        if not self._is_admin:
            return Withdrawal(remains=(
                f"The record of {name} at {self.http.url}: deleting it needs a login, give username and password, or admin_token.", *self._alive(credential)))
        found = self._search(name)
        entries = found.entries if found is not None else ()
        known = credential.agent_id if credential is not None else ""
        others = [_record(entry).agent_id for entry in entries if _record(entry).agent_id != known]
        if not known and len(others) == 1:
            known = others.pop()
        removed: tuple[str, ...] = ()
        if known and self._delete(known, name):
            removed = (f"Record {known} of {name} at {self.http.url}.",)
        remains = tuple(f"Another record of {name} at {self.http.url}: {other}." for other in others)
        return Withdrawal(removed, (*remains, *self._alive(credential)))

    def _alive(self, credential: Credential | None) -> tuple[str, ...]:
        """Say how long a token outlives its record, where it does."""
        life = self.lifetime(credential) if credential is not None else None
        if credential is None or life is None or life.expires_at <= self._now():
            return ()
        try:
            refused = self.http.get(f"{_COLLECTORS}/token/info", headers=self._bearer(credential)).status in (401, 403)
        except AgentsError:
            refused = False
        if refused:
            return ()
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(life.expires_at))
        return (f"Its token, which {self.http.url} takes until {until}: this control plane has no way to call a token back.",)

    def _delete(self, agent_id: str, name: str) -> bool:
        """Delete a collector by its id, or by its name where that is what the server takes. Says whether there was something to delete.

        By name only after the list said that the name is this id's: another record of the name may have come into being.
        """
        answer = self._administer("DELETE", _one(agent_id))
        if answer.status == 404:
            found = self._search(name)
            if found is None or not any(_record(entry).agent_id == agent_id for entry in found.entries):
                return False
            answer = self._administer("DELETE", _one(name))
        if answer.status in (200, 202, 204):
            return True
        if answer.status == 404:
            return False
        if answer.status == 403:
            raise Rejected(f"{self.http.url} does not let this login delete {name}: use an admin's.", reason="forbidden")
        raise ServerFault(f"{self.http.url} could not delete the record {agent_id} of {name} (HTTP {answer.status} {answer.message}): "
                          "remove what refers to it there, then run again.")

    # -- administering ---------------------------------------------------------------------------------------------------------------------

    @property
    def _is_admin(self) -> bool:
        """Whether the operator gave what user calls need."""
        return bool(self.bootstrap.username) or self.bootstrap.admin_token is not None

    def _administer(self, method: str, path: str, *, params: t.Mapping[str, t.Any] | None = None, body: t.Any = None) -> Answer:
        """Send a user's call; a session that the server has ended is renewed once. Raises Rejected when the login or the token is refused."""
        session = self._session() if self.bootstrap.username else None
        answer = self._as(session, method, path, params, body)
        if answer.status == 401 and session is not None and self.bootstrap.password is not None:
            self.sessions.discard(self.bootstrap.username, self.bootstrap.password, session)
            answer = self._as(self._session(), method, path, params, body)
        if answer.status == 401:
            who = "the login of " + self.bootstrap.username if session is not None else "admin_token"
            raise Rejected(f"{self.http.url} refuses {who} for {path} (HTTP 401 {answer.message}): check it.", reason="bad_bootstrap")
        return answer

    def _as(self, session: Session | None, method: str, path: str, params: t.Mapping[str, t.Any] | None, body: t.Any) -> Answer:
        token = session.token if session is not None else self.bootstrap.admin_token
        headers = {"Authorization": f"Bearer {token.reveal()}"} if token is not None else {}
        if method == "GET":
            return self.http.get(path, params=params, headers=headers)
        return self.http.send(method, path, json_body=body, headers=headers)

    def _session(self) -> Session:
        """Return the session that the forks share. Raises InvalidInput without a password, Rejected when the login is refused."""
        password = self.bootstrap.password
        if password is None:
            raise InvalidInput("username is set without password: give password or password_file.")
        return self.sessions.session(self.bootstrap.username, password, self._login)

    def _login(self) -> Session:
        """Log in. The token is in the body (documented) or in a cookie (shipped)."""
        password = self.bootstrap.password
        plain = password.reveal() if password is not None else ""
        answer = self.http.send("POST", f"{_API}/auth/login", json_body={"username": self.bootstrap.username, "password": plain}, read=True)
        if answer.status == 404:
            raise self._not_ours(f"{_API}/auth/login")
        if answer.status in (400, 401, 403):
            raise Rejected(f"{self.http.url} refuses the login of {self.bootstrap.username} (HTTP {answer.status} {answer.message}): "
                           "check username and password.", reason="bad_bootstrap")
        document = answer.json if isinstance(answer.json, dict) else {}
        token = document.get("token") or document.get("access_token") or answer.cookies.get("auth_token")
        if answer.status != 200 or not isinstance(token, str):
            raise ServerFault(f"{self.http.url} did not answer the login with a token (HTTP {answer.status}): check that this is pgAnalytics.")
        secret = _secret(token)
        life = lifetime_of(claims_of(secret) or {})
        lasts = life.expires_at - life.issued_at if life is not None and life.expires_at > life.issued_at else _SESSION
        return Session(secret, time.time() + lasts)

    def _search(self, name: str) -> _Found | None:
        """Return the collectors of exactly this name, None without an admin login."""
        if not self._is_admin:
            return None
        entries, complete = self._list()
        mine = [entry for entry in entries if entry.get("name") == name]
        return _Found(tuple(sorted(mine, key=lambda entry: parse_time(str(entry.get("created_at") or "")) or 0.0, reverse=True)), complete)

    def _by_id(self, agent_id: str) -> dict[str, t.Any] | None:
        """Return one collector by its id, None where it is not there, or where the server has no such path."""
        answer = self._administer("GET", _one(agent_id))
        return answer.json if answer.status == 200 and isinstance(answer.json, dict) and answer.json.get("id") == agent_id else None

    def _list(self) -> tuple[list[dict[str, t.Any]], bool]:
        """Return the collectors that the server shows through all its pages, and whether those are all it has. Raises ServerFault."""
        entries: dict[str, dict[str, t.Any]] = {}
        for page in range(1, _MAX_PAGES + 1):
            answer = self._administer("GET", _COLLECTORS, params={"page": page, "page_size": _PAGE_SIZE})
            if answer.status == 500 and _TENANT_BUG in answer.text:
                return list(entries.values()), False
            if answer.status == 404:
                raise self._not_ours(_COLLECTORS)
            document = answer.json
            shown = document if isinstance(document, list) else document.get("data") if isinstance(document, dict) else None
            if answer.status != 200 or (shown is None and not (isinstance(document, dict) and "data" in document)):
                raise ServerFault(f"{self.http.url} could not list its collectors (HTTP {answer.status} {answer.message}): run again.")
            new = {str(entry["id"]): entry for entry in shown or () if isinstance(entry, dict) and entry.get("id") and str(entry["id"]) not in entries}
            entries.update(new)
            if isinstance(document, list):
                return list(entries.values()), True
            total, more = document.get("total"), _more(document, page)
            if isinstance(total, int):
                if new and len(entries) < total:
                    continue
                # The shipped server shows the first page again when asked for the second.
                return list(entries.values()), len(entries) >= total
            if not more:
                return list(entries.values()), True
            if not new:
                break
        raise ServerFault(f"{self.http.url} lists collectors without end: it names further pages that bring nothing new, or more than {_MAX_PAGES}. "
                          "Check the server, and whatever answers in its place.", reason="endless_list")

    def _doubts(self, name: str, found: _Found | None) -> tuple[str, ...]:
        """Say that an older record of the name may be there, where that could not be ruled out."""
        if found is None or found.complete:
            return ()
        return (f"{self.http.url} does not show its whole list of collectors, so that an older record of {name} could not be ruled out.",)

    # -- registration secrets, which the shipped server manages ----------------------------------------------------------------------------

    def list_bootstraps(self) -> tuple[BootstrapRecord, ...]:
        """Return the server's registration secrets, newest first."""
        answer = self._secrets_call("GET", _SECRETS)
        listed = answer.json.get("secrets") if answer.status == 200 and isinstance(answer.json, dict) else None
        if answer.status != 200 or (listed is not None and not isinstance(listed, list)):
            raise ServerFault(f"{self.http.url} could not list its registration secrets (HTTP {answer.status} {answer.message}): run again.")
        return tuple(_bootstrap(entry) for entry in listed or () if isinstance(entry, dict))

    def create_bootstrap(self, name: str, expires_at: str) -> tuple[BootstrapRecord, Secret]:
        """Make a registration secret. The server chooses its value, and answers 500 for a name that is taken."""
        answer = self._secrets_call("POST", _SECRETS, {"name": name, **({"expires_at": expires_at} if expires_at else {})})
        if answer.status in (400, 422):
            raise InvalidRequest(f"{self.http.url} calls the registration secret {name} invalid (HTTP {answer.status} {answer.message}).")
        value = answer.json.get("secret_value") if isinstance(answer.json, dict) else None
        if answer.status not in (200, 201) or not isinstance(value, str) or not value:
            raise Ambiguous(f"{self.http.url} did not answer with the value of {name} (HTTP {answer.status} {answer.message}); it may have been made.")
        return _bootstrap(answer.json), _secret(value)

    def revoke_bootstrap(self, record: BootstrapRecord) -> None:
        """Delete a registration secret."""
        answer = self._secrets_call("DELETE", f"{_SECRETS}/{quote(record.id, safe='')}")
        if answer.status not in (200, 202, 204):
            raise ServerFault(f"{self.http.url} could not delete the registration secret {record.name} (HTTP {answer.status} {answer.message}).")

    def _secrets_call(self, method: str, path: str, body: t.Any = None) -> Answer:
        if not self._is_admin:
            raise InvalidInput("Registration secrets are an administrator's: give username and password, or admin_token.")
        answer = self._administer(method, path, body=body)
        if answer.status == 404 and path == _SECRETS:
            raise self._no_bootstraps()
        if answer.status == 403:
            raise Rejected(f"{self.http.url} lets only administrators manage registration secrets: use such a login.", reason="forbidden")
        return answer

    # -- the registration itself -----------------------------------------------------------------------------------------------------------

    def _require_registration(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput or Rejected when the registration would be refused for what is missing here; nothing is sent."""
        if self.bootstrap.registration_secret is None:
            raise InvalidInput(f"registration_secret is not given, and {enrolment.name} has to be registered: give registration_secret or its file.",
                               reason="bad_bootstrap")
        _check_secret(self.bootstrap.registration_secret)
        if not enrolment.hostname:
            raise InvalidInput("hostname is empty and the host told none: give the DNS name of the database server.")

    def _post(self, enrolment: Enrolment, attempt: str, warnings: tuple[str, ...]) -> Issued:
        secret = self.bootstrap.registration_secret
        headers = {"Idempotency-Key": attempt, "X-Registration-Secret": secret.reveal() if secret is not None else ""}
        answer = self.http.send("POST", f"{_COLLECTORS}/register", json_body=_body(enrolment), headers=headers)
        if answer.status not in (200, 201):
            raise self._failure(answer, enrolment)
        if answer.status == 200 and not self._is_admin and not warnings:
            warnings = (f"{self.http.url} takes a name twice, and without an admin login nobody could look for an older record of {enrolment.name}.",)
        issued = self._issued(answer, enrolment.name)
        try:
            self._check_issued(answer, issued)
        except Mismatch as error:
            raise self._contradiction(error, enrolment.name, self._undo(issued.agent_id, enrolment.name)) from None
        return Issued(issued, created=True, server=self._state(), warnings=warnings)

    def _issued(self, answer: Answer, name: str) -> Credential:
        """Return what was issued. Raises Ambiguous when it is not all there."""
        document = answer.json if isinstance(answer.json, dict) else {}
        parts = {key: document.get(key) for key in ("collector_id", *_ISSUED)}
        missing = [key for key, value in parts.items() if not isinstance(value, str) or not value]
        if missing:
            raise Ambiguous(f"{self.http.url} registered {name} but its answer holds no {', '.join(missing)}; the next run finds out what came of it.",
                            reason="incomplete_answer")
        optional = {key: document[key] for key in self.optional_secrets if isinstance(document.get(key), str) and document[key]}
        secrets = {key: Secret(str(value)) for key, value in {**parts, **optional}.items() if key != "collector_id"}
        register_with_core([secrets["token"], secrets["private_key"]])
        return Credential(str(parts["collector_id"]), secrets)

    def _check_issued(self, answer: Answer, issued: Credential) -> None:
        """Raise Mismatch when the parts of an answer contradict each other."""
        if not _ID.match(issued.agent_id):
            raise Mismatch("the collector_id is not usable in an address.", reason="bad_id")
        self._check_token(issued.secrets["token"], issued.agent_id)
        ca = issued.secrets.get("ca_certificate")
        fingerprint = answer.json.get("fingerprint")
        check_pair(
            issued.secrets["certificate"].reveal(), issued.secrets["private_key"].reveal(), self._now(), ca=ca.reveal() if ca is not None else "",
            fingerprint=fingerprint if isinstance(fingerprint, str) else "")

    def _check_token(self, token: Secret, agent_id: str) -> None:
        subjects = frozenset({agent_id, f"collector:{agent_id}"})
        check_claims(token, Claims(
            subjects, {"collector_id": agent_id, "type": "access"}, issuer="pganalytics-api", audience="pganalytics-collectors"), self._now())

    def _undo(self, agent_id: str, name: str) -> str:
        """Take a record back whose credentials are no good. Returns a sentence about what became of it."""
        if self._is_admin and _ID.match(agent_id):
            try:
                if self._delete(agent_id, name):
                    return "The record was deleted again."
            except AgentsError:
                pass
        return f"A record of {name} stays at the control plane: delete it there."

    def _contradiction(self, error: Mismatch, name: str, more: str = "") -> Mismatch:
        return Mismatch(f"{self.http.url} contradicts itself about {name}: {error.msg} Nothing of it was kept. {more}".rstrip(), reason=error.reason)

    def _failure(self, answer: Answer, enrolment: Enrolment) -> AgentsError:
        """Return the exception that says what a refused registration means."""
        name, said = enrolment.name, f" It says: {answer.message.rstrip('.')}." if answer.message else ""
        if answer.status == 409:
            return IdentityConflict(f"{name} is registered at {self.http.url} already.{said}")
        if answer.status in (401, 403):
            return Rejected(f"{self.http.url} refuses registration_secret (HTTP {answer.status}): compare it with the server's REGISTRATION_SECRET, "
                            f"or with its list of registration secrets, where it may have expired.{said}", reason="bad_bootstrap")
        if answer.status == 404:
            return self._not_ours(f"{_COLLECTORS}/register")
        if answer.status >= 500:
            return Ambiguous(f"{self.http.url} failed while registering {name} (HTTP {answer.status}); a record may have been made.{said}")
        if answer.status in (400, 413, 415, 422):
            return InvalidRequest(f"{self.http.url} calls the registration of {name} invalid (HTTP {answer.status}).{said}")
        return InvalidRequest(f"{self.http.url} answered HTTP {answer.status} to the registration: check that this is pgAnalytics.{said}")

    # -- small things ----------------------------------------------------------------------------------------------------------------------

    def _not_ours(self, path: str) -> InvalidRequest:
        return InvalidRequest(f"{self.http.url} has no {path}: check that this is the address of a pgAnalytics server.", reason="not_a_control_plane")

    def _pair_trouble(self, credential: Credential) -> str:
        certificate, key = credential.secrets["certificate"], credential.secrets["private_key"]
        return pair_trouble(certificate.reveal(), key.reveal(), self._now())

    def _bearer(self, credential: Credential) -> dict[str, str]:
        return {"Authorization": f"Bearer {credential.secrets['token'].reveal()}"}

    def _state(self) -> ServerState:
        return ServerState(clock_skew=self.http.clock_skew)

    def _now(self) -> float:
        """The time by the server's clock, in seconds since the epoch."""
        return time.time() + (self.http.clock_skew or 0.0)


def _check_secret(secret: Secret) -> None:
    """Raise Rejected for a registration secret that the guide rules out; it is not sent then."""
    text = secret.reveal()
    if not _PRINTABLE.match(text):
        raise Rejected("registration_secret holds spaces, control or non-ASCII characters, which no header can carry: check where it comes from.",
                       reason="bad_bootstrap")
    if len(text) < _SHORTEST_SECRET:
        raise Rejected(f"registration_secret has {len(text)} characters: the guide asks for {_SHORTEST_SECRET} or more. Make one with "
                       "openssl rand -base64 32, and give it to the server too.", reason="bad_bootstrap")


def _body(enrolment: Enrolment) -> dict[str, t.Any]:
    """Return a registration's body: what the guide names, and nothing empty."""
    body: dict[str, t.Any] = {"name": enrolment.name, "hostname": enrolment.hostname}
    if _is_address(enrolment.address):
        body["address"] = enrolment.address
    labels = dict(enrolment.labels)
    region, tags = labels.pop("region", ""), labels.pop("tags", None) or {}
    tags = {str(key): str(value) for key, value in {**labels, **tags}.items()}
    optional = {"region": str(region or ""), "tags": tags, "version": enrolment.version}
    return {**body, **{name: value for name, value in optional.items() if value}}


def _is_address(text: str) -> bool:
    """Say whether *text* is an IP address; the shipped server's database fails on anything else."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _record(entry: t.Mapping[str, t.Any]) -> Record:
    """Return a collector as the server shows it. The shipped server never counts what it gets, and calls a collector registered for ever."""
    count = entry.get("metrics_count")
    details = {name: entry[name] for name in ("hostname", "config_version", "region", "tags") if entry.get(name) is not None}
    status = str(entry.get("status") or "")
    return Record(
        name=str(entry.get("name") or ""), agent_id=str(entry.get("id") or ""), version=str(entry.get("version") or ""),
        status=status, live=None if status in ("", "registered") else status == "active", last_seen=str(entry.get("last_seen") or ""),
        registered_at=str(entry.get("created_at") or ""),
        reports=count if isinstance(count, int) and not isinstance(count, bool) else None, details=details)


def _bootstrap(entry: t.Mapping[str, t.Any]) -> BootstrapRecord:
    """Return a registration secret as the server shows it."""
    uses = entry.get("total_registrations")
    return BootstrapRecord(
        id=str(entry.get("id") or ""), name=str(entry.get("name") or ""), active=bool(entry.get("active", True)), created_at=str(entry.get("created_at") or ""),
        expires_at=str(entry.get("expires_at") or ""), uses=uses if isinstance(uses, int) else 0)


def _more(document: t.Mapping[str, t.Any], page: int) -> bool:
    """Say whether a page names a further one."""
    pages = document.get("total_pages")
    return isinstance(pages, int) and pages > page


def _one(part: str) -> str:
    """Return the path of one collector."""
    return f"{_COLLECTORS}/{quote(part, safe='')}"


def _refused(answer: Answer) -> bool:
    """Say whether the server itself refused a token; a page of whatever stands before it does not count."""
    return answer.status in (401, 403) and isinstance(answer.json, dict)


def _said(answer: Answer) -> str:
    return f"HTTP {answer.status}" + (f" {answer.message}" if answer.message else "")


def _secret(text: str) -> Secret:
    secret = Secret(text)
    register_with_core([secret])
    return secret
