# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The contract between the enrolment transaction and a control plane (private to muster.agents).

An adapter maps the collection's one vocabulary to the wire of one control plane, in the contract its guide documents and in
the one its server ships. It detects what the server offers; it never asks the operator which version is running.
"""

from __future__ import annotations

import re
import typing as t
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, InvalidRequest, Mismatch
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pace
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time

__all__ = [
    "Bootstrap", "BootstrapRecord", "Capabilities", "ControlPlane", "Credential", "Enrolment", "HostProof", "IdentityRules", "Issued", "Lifetime", "Proof",
    "Record", "ServerState", "Withdrawal",
]

_GENERIC_NAMES = frozenset({
    "agent", "collector", "default", "demo", "dev", "development", "example", "host", "localhost", "main", "master", "node", "prod", "production",
    "server", "stage", "staging", "status-panel", "status_panel", "test", "testing",
})
_SEQUENTIAL = re.compile(r"(?:[A-Za-z]+[-_]?)?0*\d{1,4}\Z")
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")
_DATE_TIME = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[Tt]?(?:[01]\d|2[0-3])[0-5]\d")
_EPOCH = re.compile(r"(?<![0-9A-Fa-f])1[0-9]{9}(?:[0-9]{3})?(?![0-9A-Fa-f])")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")


@dataclass(frozen=True)
class IdentityRules:
    """What a control plane accepts as an agent's name.

    max_length: in characters. charset: a regular expression for one of them. unguessable: registration is open to whoever knows the
    name, so that counted names (``web-01``) are refused too.
    """

    max_length: int
    charset: str
    charset_words: str
    unguessable: bool = False
    _whole: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile where the rules are made, which is before ansible-playbook forks."""
        object.__setattr__(self, "_whole", re.compile(f"{self.charset}+"))

    def check(self, name: str, *, allow_unstable: bool) -> None:
        """Raise InvalidInput when *name* cannot serve as a lasting identity.

        The guides ask for names that are unique and stay the same at each deployment. A date, a time or an epoch in a name makes
        a new agent at every run; a generic or counted name collides or can be guessed. Both are refused unless *allow_unstable*.
        """
        if not name.strip():
            raise InvalidInput("name is empty: give a stable, unique name for this agent, such as a UUID derived from the inventory name.")
        if len(name) > self.max_length:
            raise InvalidInput(f"name has {len(name)} characters, but this control plane stores at most {self.max_length}: shorten it.")
        if self._whole.fullmatch(name) is None:
            raise InvalidInput(f"name {name!r} has characters other than {self.charset_words}: use only those.")
        if not allow_unstable:
            self._check_stable(name)

    def _check_stable(self, name: str) -> None:
        remedy = "Derive it from something that stays, or set allow_unstable_name: true if it really is fixed."
        if _UUID.match(name) is not None:
            return
        if _DATE.search(name) or _DATE_TIME.search(name) or _EPOCH.search(name):
            raise InvalidInput(f"name {name!r} contains a date, a time or an epoch, so that each run would enrol a new agent. {remedy}")
        if name.lower() in _GENERIC_NAMES:
            raise InvalidInput(f"name {name!r} is generic: two installations would share one identity. {remedy}")
        if self.unguessable and _SEQUENTIAL.fullmatch(name):
            raise InvalidInput(f"name {name!r} is sequential, so that anybody can guess it, and registration is open to whoever knows it. {remedy}")


@dataclass(frozen=True)
class Capabilities:
    """What a control plane can do for us; facts about it, not options.

    overlap: the old credential stays valid beside a new one. restore_old: a replaced credential can be put back.
    revoke: what withdrawal can remove ("record", "credential" or "nothing"). key_born_on: where a private key is made, if any.
    prove_on: where the proof by use runs. token_lifetime: seconds, None when tokens do not expire.
    paces: the server's known limits on requests by bucket, the empty name for everything without one of its own.
    """

    overlap: bool
    restore_old: bool
    revoke: t.Literal["record", "credential", "nothing"]
    key_born_on: t.Literal["none", "host", "server"]
    prove_on: t.Literal["controller", "host"]
    token_lifetime: int | None
    paces: t.Mapping[str, Pace] = field(default_factory=dict)


@dataclass(frozen=True)
class Enrolment:
    """The identity an operator wants enrolled, in the collection's vocabulary; adapters map it to wire fields.

    system_info may hold volatile values (uptime, free space): they are sent and never compared. certificate is the client certificate (PEM)
    that lies at certificate_path on the host, where the key at key_path stays; empty until the host was looked at, and where none is used.
    """

    name: str
    version: str = ""
    capabilities: tuple[str, ...] = ()
    system_info: t.Mapping[str, t.Any] = field(default_factory=dict)
    hostname: str = ""
    address: str = ""
    labels: t.Mapping[str, t.Any] = field(default_factory=dict)
    description: str = ""
    service_type: str = ""
    controller_name: str = ""
    public_key: str = ""
    allow_unstable_name: bool = False
    certificate: str = ""
    certificate_path: str = ""
    key_path: str = ""


@dataclass(frozen=True)
class Bootstrap:
    """What buys the right to enrol or to administer; all of it stays on the controller."""

    registration_secret: Secret | None = None
    install_token: Secret | None = None
    username: str = ""
    password: Secret | None = None
    admin_token: Secret | None = None
    client_id: str = ""
    client_secret: Secret | None = None
    issuer_url: str = ""


@dataclass(frozen=True)
class Credential:
    """What an agent proves itself with: the id the server gave it and its secrets by name (``token``, ``certificate``, ``key`` ...)."""

    agent_id: str
    secrets: t.Mapping[str, Secret]


@dataclass(frozen=True)
class ServerState:
    """What a look at the control plane showed. *clock_skew* is server minus controller in seconds, None when it told no time.

    *enforced* says whether it refuses agents that show no valid credential, None when it does not tell.
    """

    version: str = ""
    api_versions: tuple[str, ...] = ()
    clock_skew: float | None = None
    enforced: bool | None = None


@dataclass(frozen=True)
class Issued:
    """A credential as the server answered it. *created* is False when an existing record was handed back (adopted or refreshed).

    *warnings* say what the operator should know of it, such as a stale record that stays behind; they hold no secret.
    """

    credential: Credential
    created: bool
    server: ServerState = ServerState()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lifetime:
    """From when to when a credential is good, in seconds since the epoch by the server's own claims."""

    issued_at: float
    expires_at: float

    def used(self, now: float) -> float:
        """Return the share of the life that is over: 0.0 when fresh, 1.0 and above when expired."""
        return (now - self.issued_at) / max(1.0, self.expires_at - self.issued_at)


@dataclass(frozen=True)
class HostProof:
    """A request that only the host can make, since the key never leaves it: GET *url* with the pair at these paths. *url* may be empty.

    Without a url only the pair is tried: whether the key belongs to the certificate.
    """

    certificate_path: str
    key_path: str
    url: str = ""


@dataclass(frozen=True)
class Proof:
    """The outcome of using a credential. *definite* is False when the answer says nothing about it (fault, time-out).

    *pending* is True when the server says that it has not stored the credential yet.
    """

    accepted: bool
    definite: bool
    how: str
    detail: str = ""
    pending: bool = False


@dataclass(frozen=True)
class Record:
    """What the control plane knows of an agent. *last_seen* and *registered_at* are ISO 8601 in UTC, empty when unknown or never.

    *live* is False where the server itself says that the agent is not active, None where it does not judge. *reports* counts what the agent has
    delivered (metrics, batches), None where the server does not tell. *details* are further plain facts.
    """

    name: str
    agent_id: str = ""
    version: str = ""
    status: str = ""
    capabilities: tuple[str, ...] = ()
    system_info: t.Mapping[str, t.Any] = field(default_factory=dict)
    last_seen: str = ""
    registered_at: str = ""
    live: bool | None = None
    reports: int | None = None
    details: t.Mapping[str, t.Any] = field(default_factory=dict)

    def as_result(self) -> dict[str, t.Any]:
        """Return the record as plain data for a task result."""
        return {
            "name": self.name, "agent_id": self.agent_id, "version": self.version, "status": self.status, "capabilities": list(self.capabilities),
            "system_info": dict(self.system_info), "last_seen": self.last_seen, "registered_at": self.registered_at, "reports": self.reports,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal took away at the control plane, and what it had to leave there, as short sentences."""

    removed: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()


@dataclass(frozen=True)
class BootstrapRecord:
    """A secret that buys enrolments, as a control plane that manages them shows it: without its value. Times are ISO 8601, empty for never."""

    id: str
    name: str
    active: bool = True
    created_at: str = ""
    expires_at: str = ""
    uses: int = 0

    def usable(self, now: float) -> bool:
        """Say whether it is in force at *now* (seconds since the epoch)."""
        ends = parse_time(self.expires_at)
        return self.active and (ends is None or ends > now)

    def as_result(self) -> dict[str, t.Any]:
        """Return it as plain data for a task result."""
        return {"id": self.id, "name": self.name, "active": self.active, "created_at": self.created_at, "expires_at": self.expires_at, "uses": self.uses}


class ControlPlane(ABC):
    """One control plane, in every contract it is met in. Subclasses hold no state beside the session they are given.

    key: its name in options. secret_names: the secrets it issues; optional_secrets: those it issues in one contract only.
    api_versions: those that its agents speak, empty when it names none.
    vault_companions: fields that the server itself writes beside a credential in Vault, which mean nothing without it.
    loopback_vault_warning: what a withdrawal has to say when Vault is on loopback, empty for nothing.
    retires: whether a replaced credential leaves something at the server that retire removes.
    """

    key: t.ClassVar[str]
    capabilities: t.ClassVar[Capabilities]
    rules: t.ClassVar[IdentityRules]
    secret_names: t.ClassVar[tuple[str, ...]]
    optional_secrets: t.ClassVar[tuple[str, ...]] = ()
    api_versions: t.ClassVar[frozenset[str]] = frozenset()
    vault_companions: t.ClassVar[tuple[str, ...]] = ()
    loopback_vault_warning: t.ClassVar[str] = ""
    retires: t.ClassVar[bool] = False

    def __init__(self, http: Http, bootstrap: Bootstrap, sessions: Sessions | None = None) -> None:
        """*sessions* are the admin sessions that the forks of a controller share; without them each adapter logs in for itself."""
        self.http = http
        self.bootstrap = bootstrap
        self.sessions = sessions or Sessions("", "")

    def check(self, enrolment: Enrolment) -> None:
        """Raise InvalidInput when the server could not accept *enrolment*; sends nothing."""
        self.rules.check(enrolment.name, allow_unstable=enrolment.allow_unstable_name)

    def wire_metadata(self, enrolment: Enrolment) -> dict[str, t.Any]:
        """Return the parts of *enrolment* that the server stores and that are stable enough to compare between runs."""
        return {"version": enrolment.version, "capabilities": sorted(enrolment.capabilities)}

    def check_versions(self, offered: t.Iterable[str]) -> None:
        """Raise Mismatch when the server *offered* API versions and none of them is one that agents of this kind speak."""
        versions = tuple(offered)
        if versions and self.api_versions and not self.api_versions.intersection(versions):
            raise Mismatch(
                f"{self.http.url} offers API versions {', '.join(versions)}, but {', '.join(sorted(self.api_versions))} is needed: "
                "use a server and an agent that share one.", reason="no_common_api_version")

    @abstractmethod
    def probe(self) -> ServerState:
        """Ask whether the server is there; changes nothing. Raises Unreachable, Untrusted or ServerFault."""

    def check_bootstrap(self) -> None:
        """Try the bootstrap credential as far as that changes nothing, such as by logging in. Raises Rejected or InvalidInput when it is bad."""
        return

    def bootstrap_secret(self) -> Secret | None:
        """Return the secret that registering is refused without, so that one refused on one host is not sent by the others; None for none."""
        return None

    @abstractmethod
    def find(self, name: str, credential: Credential | None) -> Record | None:
        """Return what the server knows of *name*, None when it is unknown or the server offers no way to ask. Changes nothing."""

    @abstractmethod
    def register(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Enrol; *attempt* (a UUID) is sent as idempotency key.

        Raises Ambiguous when it may have happened, IdentityConflict when the name is taken, Rejected when the bootstrap credential is bad.
        """

    def recover(self, enrolment: Enrolment, attempt: str) -> Issued:
        """Go on after a registration under *attempt* whose answer was lost, here or in a run that died. Raises as register does.

        The default asks again under the same key, which is right where names are unique at the server and the key is honoured or harmless.
        """
        return self.register(enrolment, attempt)

    def reissue(self, enrolment: Enrolment, known_id: str, attempt: str) -> Issued | None:
        """Replace the credential of an agent that the server has under this name, None where it offers no way. Raises as register does.

        The caller has made sure that the identity is this host's to take. *known_id* is what else is known of it, empty when nothing is.
        """
        return None

    def refresh(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        """Exchange an accepted credential for a fresh one before it expires, None where the server offers no way."""
        return None

    def rotate(self, enrolment: Enrolment, credential: Credential, attempt: str) -> Issued | None:
        """Get a new credential in the place of an accepted one, None where the server offers no call for it. Raises as register does.

        Where the server has overlap the old one stays good, and a lost answer costs nothing: the caller asks again under a new key. Where it has
        not, the old one may be dead after a lost answer, and asking again is the only way on.
        """
        return None

    def retire(self, enrolment: Enrolment, unwanted: Credential, kept: Credential) -> Withdrawal:
        """Remove what the server still has of a credential that was replaced by *kept*; nothing where replacing removes it (``retires`` is False).

        Removing what is gone already is no failure: a run that died in between asks again.
        """
        return Withdrawal()

    def lifetime(self, credential: Credential) -> Lifetime | None:
        """Return from when to when *credential* is good, None when it does not expire or does not tell."""
        return None

    def host_proof(self, enrolment: Enrolment) -> HostProof | None:
        """Return what the host shall try with the pair that lies there, None for agents without one."""
        return None

    @abstractmethod
    def prove(self, enrolment: Enrolment, credential: Credential) -> Proof:
        """Use *credential* in a call that changes nothing, not even the last time the agent was seen. Raises Unreachable or Untrusted only."""

    def own_credential(self) -> Secret | None:
        """Return a new credential that the server will accept once a store it trusts holds it, None where it issues its own only."""
        return None

    def refresh_metadata(self, enrolment: Enrolment, attempt: str) -> Issued | None:
        """Send changed metadata for an enrolled agent; None when the server offers no way. The answer may carry the live credential."""
        return None

    @abstractmethod
    def last_seen(self, name: str, credential: Credential) -> Record | None:
        """Return the record with its last sign of life, None when the server does not tell.

        Only what the agent itself did counts: a time that registering alone sets must be left empty.
        """

    @abstractmethod
    def revoke(self, name: str, credential: Credential | None) -> Withdrawal:
        """Remove what this control plane lets one remove, and say what stays."""

    def list_agents(self) -> t.Iterator[Record]:
        """Yield every agent the server knows, through all pages. Raises InvalidRequest where it offers no such list."""
        raise InvalidRequest(f"{self.key} offers no list of its agents: ask for one by name.", reason="unsupported")

    def create_bootstrap(self, name: str, expires_at: str) -> tuple[BootstrapRecord, Secret]:
        """Make a secret that buys enrolments and return it with its value, which is shown this once. *expires_at* may be empty.

        Raises Ambiguous when it may have been made, InvalidRequest where the server manages none.
        """
        raise self._no_bootstraps()

    def list_bootstraps(self) -> tuple[BootstrapRecord, ...]:
        """Return the secrets that buy enrolments. Raises InvalidRequest where the server manages none."""
        raise self._no_bootstraps()

    def revoke_bootstrap(self, record: BootstrapRecord) -> None:
        """Take a secret out of force for good. Raises InvalidRequest where the server manages none."""
        raise self._no_bootstraps()

    def _no_bootstraps(self) -> InvalidRequest:
        return InvalidRequest(f"{self.http.url} manages no registration secrets: set the one of its own configuration.", reason="unsupported")
