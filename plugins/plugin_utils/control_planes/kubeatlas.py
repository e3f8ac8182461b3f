# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""KubeAtlas, the control plane of cluster agents and controllers (private to muster.agents).

Two contracts are met. The mTLS agent integration guide documents validated input, JSON errors, a certificate that must chain and a heartbeat over
mTLS. The shipped server verifies nothing, uses the install token up before it parses the certificate, answers malformed requests with text, and has
no heartbeat. In both, registering again makes another record, so that the list of services is read before anything is sent.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._client_certificate import ClientCertificate, read_certificate, usable_certificate
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    Ambiguous,
    IdentityConflict,
    InvalidInput,
    InvalidRequest,
    Rejected,
    ServerFault,
    Throttled,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer
from ansible_collections.muster.agents.plugins.plugin_utils._oidc import OidcLogin, shortcoming_of
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Session
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import (
    Capabilities,
    ControlPlane,
    Credential,
    Enrolment,
    HostProof,
    IdentityRules,
    Issued,
    Lifetime,
    Proof,
    Record,
    ServerState,
    Withdrawal,
)

__all__ = ["KubeAtlas"]

_API = "/api/v1"
_HEARTBEAT = f"{_API}/agent/heartbeat"
_TYPES = ("agent", "controller")
_CLIENT = "kubeatlas-backend"  # the client of the guide's token request
_TOKEN_HOURS = 1  # servers take 1 to 8760; ours is used at once
_REFUSED_WORDS = "invalid or expired install token"
_STORAGE = re.compile(r"redis|failed to (?:add|store) service", re.IGNORECASE)
_MOVED = 1.0  # seconds between registration and last_seen, from which on something came after it
_Service = t.Mapping[str, t.Any]


class KubeAtlas(ControlPlane):
    """KubeAtlas: a service registers with a one-time install token and a client certificate whose key stays on the host.

    Source: mTLS agent integration guide, and the shipped backend where it differs.
    """

    key = "kubeatlas"
    capabilities = Capabilities(
        overlap=True, restore_old=True, revoke="nothing", key_born_on="host", prove_on="host", token_lifetime=None)
    # A common name holds 64 characters (RFC 5280), and the certificate names the service as controller-NAME at the longest.
    rules = IdentityRules(max_length=53, charset="[A-Za-z0-9._-]", charset_words="A-Z, a-z, 0-9, ., _ and -")
    secret_names = ("certificate",)
    retires = True

    def check(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput for what the guide's server would refuse, and for a certificate that would spend an install token in vain."""
        super().check(enrolment)
        if enrolment.service_type not in _TYPES:
            given = f"service_type {enrolment.service_type!r} is not known" if enrolment.service_type else "service_type is missing"
            raise InvalidInput(f"{given}: KubeAtlas has agent and controller.")
        if enrolment.service_type == "agent" and not enrolment.controller_name.strip():
            raise InvalidInput("controller_name is missing: give the name of the controller that this agent belongs to.")
        if enrolment.controller_name and re.fullmatch(f"{self.rules.charset}+", enrolment.controller_name) is None:
            raise InvalidInput(f"controller_name {enrolment.controller_name!r} has characters other than {self.rules.charset_words}: use only those.")
        if enrolment.certificate:
            usable_certificate(enrolment.certificate, enrolment.certificate_path, self.http.clock_skew or 0.0)

    def wire_metadata(self, enrolment: Enrolment) -> dict[str, t.Any]:
        """What registering sends as metadata, with the controller."""
        return {**_metadata(enrolment), "controller_name": enrolment.controller_name}

    def probe(self) -> ServerState:
        """Ask for the health page, which is static; where there is none, a list of services that asks for a login shows whose server it is."""
        answer = self.http.get("/health")
        if answer.status >= 500:
            raise ServerFault(f"{self.http.url} answers, but says that it is not healthy (HTTP {answer.status}): repair the control plane first.")
        document = answer.json if isinstance(answer.json, dict) else {}
        if answer.status != 200 or not document:
            self._recognise()
        return ServerState(version=str(document.get("version") or ""), clock_skew=self.http.clock_skew)

    def check_bootstrap(self) -> None:
        """Log in, and read the list of services, which needs a token that the server takes. An install token can be tried by using it only."""
        if self._may_log_in:
            self._services()
        elif self.bootstrap.install_token is None:
            raise _no_bootstrap()

    def bootstrap_secret(self) -> Secret | None:
        """The administrator's token: a login is shared anyway, and an install token is one host's."""
        return self.bootstrap.admin_token

    def find(self, name: str, credential: Credential | None) -> Record | None:
        """Return the service of this name: the one with the credential's certificate, or the one with the latest sign of life."""
        if not self._may_log_in:
            return None
        services = [item for item in self._services() or () if item.get("service_name") == name]
        if credential is not None:
            mine = _chosen(services, read_certificate(credential.secrets["certificate"].reveal()), credential.agent_id)
            return None if mine is None else _record(mine)
        return max((_record(item) for item in services), key=lambda record: record.last_seen or record.registered_at, default=None)

    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Register the certificate, unless it is already; another live record of this name is a conflict. See the base class for what it raises."""
        return self._enrol(enrolment, attempt, takes_over=False, ours=False)

    def recover(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Look for name and certificate in the list of services; only when they are not there, register again with a fresh token."""
        return self._enrol(enrolment, attempt, takes_over=False, ours=True)

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        """Register the certificate beside the record that is there: this server has no call that changes one."""
        return self._enrol(enrolment, attempt, takes_over=True, ours=True)

    def retire(self, enrolment: Enrolment, unwanted: Credential, kept: Credential) -> Withdrawal:
        """Say which records stay beside that of the certificate to be kept: neither contract has a call that removes one."""
        named = [item for item in (self._services() or () if self._may_log_in else ()) if item.get("service_name") == enrolment.name]
        used, old = (_chosen(named, read_certificate(one.secrets["certificate"].reveal()), one.agent_id) for one in (kept, unwanted))
        remains, no_call = [], "this control plane has no call that removes one."
        if old is not None and old is not used:
            end = read_certificate(unwanted.secrets["certificate"].reveal()).end
            known = str(old.get("id"))
            remains.append(f"The record {known} of {enrolment.name} at {self.http.url}, whose certificate is good until {end}: {no_call} {_redis([known])}")
        others = [str(item.get("id")) for item in named if item is not old and item is not used]
        if others and used is not None:
            remains.append(f"Older records of {enrolment.name} at {self.http.url} ({', '.join(others)}), of other certificates: {no_call} {_redis(others)}")
        return Withdrawal(remains=tuple(remains))

    def lifetime(self, credential: Credential) -> Lifetime | None:
        """From notBefore to notAfter of the certificate."""
        found = read_certificate(credential.secrets["certificate"].reveal())
        return Lifetime(found.not_before, found.not_after)

    def host_proof(self, enrolment: Enrolment) -> HostProof | None:
        """The pair that lies there, used for the health page where the server speaks TLS."""
        if not enrolment.certificate_path or not enrolment.key_path:
            return None
        url = f"{self.http.url}/health" if self.http.url.startswith("https:") else ""
        return HostProof(enrolment.certificate_path, enrolment.key_path, url)

    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        """Look for name and certificate in the list of services. Without a login nobody tells, and what was registered here counts as good.

        The key cannot be used from here: host_proof is the other half. Raises Rejected too, when the login is refused.
        """
        pem = credential.secrets["certificate"].reveal()
        if enrolment.certificate and enrolment.certificate.strip() != pem.strip():
            return Proof(accepted=False, definite=True, how="certificate", detail=f"another certificate lies at {enrolment.certificate_path} on the host")
        certificate = read_certificate(pem)
        if certificate.expired(self.http.clock_skew or 0.0):
            return Proof(accepted=False, definite=True, how="certificate", detail=f"the certificate expired at {certificate.end}")
        services = None
        if self._may_log_in:
            try:
                services = self._services()
            except (ServerFault, Throttled) as error:
                return Proof(accepted=False, definite=False, how="services", detail=error.msg)
        if services is None:
            known = bool(credential.agent_id)
            return Proof(accepted=known, definite=not known, how="unproved", detail="" if known else "nothing says that it is registered")
        named = [item for item in services if item.get("service_name") == enrolment.name]
        if _chosen(named, certificate, credential.agent_id) is not None:
            return Proof(accepted=True, definite=True, how="services")
        return Proof(accepted=False, definite=True, how="services", detail="no service of this name has this certificate")

    def last_seen(self, name: str, credential: Credential) -> Record | None:
        """Return the record with its last heartbeat; None where the server has no heartbeat and the time is that of the registration for ever."""
        record = self.find(name, credential)
        if record is None or (not record.last_seen and not self._has_heartbeat()):
            return None
        return record

    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        """Say what stays: neither contract has a call that removes a service or takes a certificate back."""
        ids = [str(item.get("id")) for item in self._services() or () if item.get("service_name") == name] if self._may_log_in else []
        known = ids or ([credential.agent_id] if credential is not None and credential.agent_id else [])
        which = f" ({', '.join(known)})" if known else ""
        remains = [f"The record of {name}{which} at {self.http.url}: this control plane has no call that removes one. {_redis(known)}"]
        if credential is not None:
            end = read_certificate(credential.secrets["certificate"].reveal()).end
            remains.append(f"The certificate of {name} is good until {end}: no revocation list is asked. Whoever kept a copy of its key can use it.")
        return Withdrawal(remains=tuple(remains))

    def list_agents(self) -> t.Iterator[Record]:
        """Yield every service; the server has no pages."""
        services = self._services() if self._may_log_in else None
        if services is None:
            raise InvalidRequest("The list of services needs a login, and a server that has one: give issuer_url with a login, or admin_token.",
                                 reason="unsupported")
        yield from (_record(item) for item in services)

    # -- registering -----------------------------------------------------------------------------------------------------------------------

    def _enrol(self, enrolment: Enrolment, attempt: str, *, takes_over: bool, ours: bool) -> Issued:
        """Find this name and certificate, or register them. *takes_over*: beside whatever else has the name; *ours*: a find is our own lost answer."""
        if not enrolment.certificate:
            raise InvalidInput(
                "No certificate was found at certificate_path on the host: issue one with cert_issue, or put your own pair there.",
                reason="certificate_missing")
        certificate = usable_certificate(enrolment.certificate, enrolment.certificate_path, self.http.clock_skew or 0.0)
        given = self.bootstrap.install_token
        if given is None and not self._may_log_in:
            raise _no_bootstrap()
        services = self._services() if self._may_log_in else None
        named = [item for item in services or () if item.get("service_name") == enrolment.name]
        mine = _chosen(named, certificate, "")
        if mine is not None:
            return self._issued(enrolment, str(mine.get("id")), created=ours)
        if named and not takes_over:
            self._refuse_if_live(enrolment, named)
        warnings = self._warnings(enrolment, certificate, named)
        if given is not None:
            answer = self._post(enrolment, given, attempt)
            if not (_is_token_refused(answer) and ours and self._may_log_in):
                return self._registered(answer, enrolment, warnings, own=False)
        return self._register_with_own_tokens(enrolment, certificate, attempt, warnings)

    def _register_with_own_tokens(self, enrolment: Enrolment, certificate: ClientCertificate, attempt: str, warnings: tuple[str, ...]) -> Issued:
        """Mint a token as the last step and spend it. One refused although it is fresh is replaced once: its server may have lost its storage for a moment."""
        answer = self._post(enrolment, self._mint(enrolment), attempt)
        if _is_worth_another(answer):
            named = [item for item in self._services() or () if item.get("service_name") == enrolment.name]
            mine = _chosen(named, certificate, "")
            if mine is not None:
                return self._issued(enrolment, str(mine.get("id")), created=True, warnings=warnings)
            answer = self._post(enrolment, self._mint(enrolment), attempt)
        return self._registered(answer, enrolment, warnings, own=True)

    def _refuse_if_live(self, enrolment: Enrolment, named: t.Sequence[_Service]) -> None:
        """Raise IdentityConflict when the name has another certificate at a server that sees its agents; one that does not cannot tell."""
        latest = max((_record(item) for item in named), key=lambda record: record.last_seen or record.registered_at)
        if latest.last_seen or self._has_heartbeat():
            seen = f"last seen {latest.last_seen}" if latest.last_seen else f"registered {latest.registered_at}, not seen since"
            raise IdentityConflict(
                f"{enrolment.name} is registered at {self.http.url} with another certificate ({seen}).", last_seen=latest.last_seen)

    def _warnings(self, enrolment: Enrolment, certificate: ClientCertificate, named: t.Sequence[_Service]) -> tuple[str, ...]:
        found = []
        if named:
            ids = [str(item.get("id")) for item in named]
            found.append(f"{enrolment.name} stays registered at {self.http.url} with another certificate too ({', '.join(ids)}): "
                         f"this control plane has no call that removes a record. {_redis(ids)}")
        if not certificate.signs:
            found.append(f"The key usage of the certificate of {enrolment.name} lacks digitalSignature: servers that use OpenSSL refuse it in the TLS "
                         "handshake. Issue it with digitalSignature.")
        return tuple(found)

    def _mint(self, enrolment: Enrolment) -> Secret:
        """Get an install token for this service. Raises Ambiguous when the answer holds none: one may lie there unused until it expires."""
        body = {**_identity(enrolment), "expires_in_hours": _TOKEN_HOURS}
        answer = self._asked(lambda headers: self.http.send("POST", f"{_API}/install-tokens", json_body=body, headers=headers))
        token = answer.json.get("install_token") if answer.status in (200, 201) and isinstance(answer.json, dict) else None
        if isinstance(token, str) and token:
            secret = Secret(token)
            register_with_core([secret])
            return secret
        said = _said(answer)
        if answer.status in (200, 201):
            raise Ambiguous(f"{self.http.url} answered without an install token; the next try asks for another.", reason="incomplete_answer")
        if answer.status >= 500:
            raise ServerFault(f"{self.http.url} cannot make an install token (HTTP {answer.status}): check its Redis.{said}", reason="storage_down")
        if answer.status in (404, 405):
            raise self._foreign(f"{_API}/install-tokens")
        raise InvalidRequest(f"{self.http.url} refuses to make an install token for {enrolment.name} (HTTP {answer.status}).{said}")

    def _post(self, enrolment: Enrolment, token: Secret, attempt: str) -> Answer:
        """Spend *token*; only a request that provably never arrived leaves it unspent."""
        body = {**_identity(enrolment), "install_token": token.reveal(), "client_cert_pem": enrolment.certificate, "metadata": _metadata(enrolment)}
        return self.http.send("POST", f"{_API}/register", json_body=body, headers={"Idempotency-Key": attempt})

    def _registered(self, answer: Answer, enrolment: Enrolment, warnings: tuple[str, ...], *, own: bool) -> Issued:
        """Return what *answer* granted. *own*: the token was minted a moment ago. Raises what a refusal means."""
        if answer.status not in (200, 201):
            raise self._failure(answer, enrolment, own=own)
        service_id = answer.json.get("service_id") if isinstance(answer.json, dict) else None
        if not isinstance(service_id, str) or not service_id:
            raise Ambiguous(f"{self.http.url} registered {enrolment.name} but its answer holds no service id; the next run looks for it.",
                            reason="incomplete_answer")
        return self._issued(enrolment, service_id, created=True, warnings=warnings)

    def _issued(self, enrolment: Enrolment, service_id: str, *, created: bool, warnings: tuple[str, ...] = ()) -> Issued:
        credential = Credential(service_id, {"certificate": Secret(enrolment.certificate)})
        return Issued(credential, created=created, server=ServerState(clock_skew=self.http.clock_skew), warnings=warnings)

    def _failure(self, answer: Answer, enrolment: Enrolment, *, own: bool) -> Exception:
        """Return the exception that says what a refused registration means."""
        said = _said(answer)
        where = f"The certificate at {enrolment.certificate_path}"
        if _is_token_refused(answer) and own:
            return ServerFault(f"{self.http.url} refuses install tokens that it made a moment ago: check its Redis and its clock, then run again.{said}",
                               reason="fresh_token_refused")
        if _is_token_refused(answer):
            return Rejected(
                f"{self.http.url} refuses the install token of {enrolment.name}: it was used, is expired, or was made for another service, or the server "
                f"cannot reach its Redis. Get a new one, or give a login so that one is made when it is needed.{said}", reason="install_token_refused")
        if answer.status == 400 and _STORAGE.search(answer.message):
            return ServerFault(f"{self.http.url} could not store the registration of {enrolment.name}: check its Redis, then run again.{said}",
                               reason="storage_down")
        if answer.status == 400 and "certificate" in answer.message.lower():
            return InvalidRequest(
                f"{where} is refused by {self.http.url}: it must be PEM, in force, from a CA that the server trusts with its chain complete, for client "
                f"authentication, and name the service as {enrolment.service_type}-{enrolment.name}.{said}", reason="certificate_refused")
        if answer.status == 409:
            return IdentityConflict(f"{enrolment.name} is registered at {self.http.url} already.{said}")
        if answer.status in (401, 403):
            return Rejected(f"{self.http.url} refuses the registration (HTTP {answer.status}): check the access rules before it.{said}", reason="bad_bootstrap")
        if answer.status in (404, 405):
            return self._foreign(f"{_API}/register")
        if answer.status >= 500:
            return Ambiguous(f"{self.http.url} failed while registering {enrolment.name} (HTTP {answer.status}); it may have happened.{said}")
        return InvalidRequest(f"{self.http.url} calls the registration of {enrolment.name} invalid (HTTP {answer.status}).{said}")

    # -- reading ---------------------------------------------------------------------------------------------------------------------------

    def _services(self) -> list[_Service] | None:
        """Return all services, None where the server has no such list. Raises ServerFault for an answer that is none."""
        answer = self._asked(lambda headers: self.http.get(f"{_API}/services", headers=headers))
        if answer.status in (404, 405):
            return None
        if answer.status != 200 or not isinstance(answer.json, list):
            raise ServerFault(f"{self.http.url} could not list its services (HTTP {answer.status}): check its Redis, then run again.{_said(answer)}")
        return [item for item in answer.json if isinstance(item, dict)]

    def _has_heartbeat(self) -> bool:
        """Say whether the server takes heartbeats. A GET tells: the route knows POST only, and a server without it knows no such path."""
        return self.http.get(_HEARTBEAT).status != 404

    def _recognise(self) -> None:
        """Raise InvalidRequest unless the list of services, asked without a login, is refused as KubeAtlas does."""
        answer = self.http.get(f"{_API}/services")
        if answer.status != 401 or not isinstance(answer.json, dict):
            raise self._foreign("/health")

    def _foreign(self, path: str) -> InvalidRequest:
        return InvalidRequest(f"{self.http.url} has no {path} that answers as KubeAtlas does: check that this is a KubeAtlas backend with agent enrolment.",
                              reason="not_a_control_plane")

    # -- the login -------------------------------------------------------------------------------------------------------------------------

    @property
    def _may_log_in(self) -> bool:
        """Whether anything was given to ask as a user."""
        given = self.bootstrap
        return given.admin_token is not None or bool(given.issuer_url or given.username) or given.client_secret is not None

    def _asked(self, send: t.Callable[[dict[str, str]], Answer]) -> Answer:
        """Send with a bearer; one that is over is renewed once. Raises Rejected with what is wrong with it."""
        if self.bootstrap.admin_token is not None:
            token = self.bootstrap.admin_token
            answer = send(_bearer(token))
            if answer.status in (401, 403):
                raise shortcoming_of(token, "admin_token") or Rejected(
                    f"{self.http.url} refuses admin_token (HTTP {answer.status}): check it, and that the server uses the realm that made it.{_said(answer)}",
                    reason="bad_bootstrap")
            return answer
        return self._asked_with_session(send)

    def _asked_with_session(self, send: t.Callable[[dict[str, str]], Answer]) -> Answer:
        login = OidcLogin(self.bootstrap, self.http.transport, self.http.url, _CLIENT)
        try:
            session = self._session(login)
            answer = send(_bearer(session.token))
            if answer.status == 401:
                self.sessions.discard(login.who, login.secret, session)
                session = self._session(login)
                answer = send(_bearer(session.token))
            if answer.status in (401, 403):
                raise login.shortcoming(session.token) or Rejected(
                    f"{self.http.url} refuses a token that {login.issuer} gave a moment ago (HTTP {answer.status}): compare issuer_url with the server's "
                    f"KEYCLOAK_URL and KEYCLOAK_REALM, and check that it reaches that.{_said(answer)}", reason="bad_bootstrap")
            return answer
        finally:
            login.close()

    def _session(self, login: OidcLogin) -> Session:
        return self.sessions.session(login.who, login.secret, login.login)


def _identity(enrolment: Enrolment) -> dict[str, str]:
    """Return the fields that name a service, in minting and registering alike."""
    named = {"service_name": enrolment.name, "service_type": enrolment.service_type}
    return {**named, "controller_name": enrolment.controller_name} if enrolment.controller_name else named


def _metadata(enrolment: Enrolment) -> dict[str, t.Any]:
    """Return the guide's five keys, always, beside the operator's labels."""
    labels, system = dict(enrolment.labels), enrolment.system_info
    return {
        **labels, "version": enrolment.version, "environment": str(labels.get("environment", "")),
        "hostname": enrolment.hostname or str(system.get("hostname", "")), "platform": str(labels.get("platform") or system.get("os") or ""),
        "agent_id": enrolment.name,
    }


def _chosen(services: t.Iterable[_Service], certificate: ClientCertificate, agent_id: str) -> _Service | None:
    """Return the service that has *certificate*: the one with this id if it is among several, else the newest."""
    mine = [item for item in services
            if certificate.is_known_as(str(item.get("client_cert_fingerprint") or ""), str(item.get("client_cert_serial") or ""))]
    by_id = [item for item in mine if item.get("id") == agent_id]
    return next(iter(by_id or sorted(mine, key=lambda item: str(item.get("connected_at")), reverse=True)), None)


def _record(service: _Service) -> Record:
    metadata = service.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    registered, seen = str(service.get("connected_at") or ""), str(service.get("last_seen") or "")
    details = {key: service.get(key) for key in ("service_type", "controller_name", "client_cert_serial", "client_cert_fingerprint", "metadata")}
    return Record(
        name=str(service.get("service_name") or ""), agent_id=str(service.get("id") or ""), version=str(known.get("version") or ""),
        status=str(service.get("status") or ""), last_seen=seen if _is_after(seen, registered) else "", registered_at=registered, details=details)


def _is_after(seen: str, registered: str) -> bool:
    """Say whether *seen* came after the registration, which sets it too."""
    later, earlier = parse_time(seen), parse_time(registered)
    return later is not None and (earlier is None or later - earlier > _MOVED)


def _is_token_refused(answer: Answer) -> bool:
    return answer.status == 400 and _REFUSED_WORDS in answer.message.lower()


def _is_worth_another(answer: Answer) -> bool:
    """Say whether a refusal of a fresh token may be the server's storage, which a further try may find well again."""
    return _is_token_refused(answer) or (answer.status == 400 and _STORAGE.search(answer.message) is not None)


def _redis(ids: t.Sequence[str]) -> str:
    """Return how the operator of the server removes records by hand."""
    if not ids:
        return "Its operator can remove it in Redis."
    keys = " ".join(f"service:{item}" for item in ids)
    return f"Its operator can: redis-cli DEL {keys} and redis-cli SREM services {' '.join(ids)}."


def _bearer(token: Secret) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.reveal()}"}


def _said(answer: Answer) -> str:
    return f" It says: {answer.message.rstrip('.')}." if answer.message else ""


def _no_bootstrap() -> InvalidInput:
    return InvalidInput(
        "Nothing was given to register with: give issuer_url with username and password (or client_id and client_secret), admin_token, or install_token.",
        reason="no_bootstrap")
