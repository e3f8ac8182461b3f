# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Credentials in Vault or OpenBao, in the shape their readers read (private to muster.agents).

A reader sends ``GET {url}/v1/{path}`` and takes ``.data.data.<field>``. On a KV v2 mount that is the natural answer for ``mount/data/...``;
on a KV v1 mount the stored object must be the literal ``{"data": {...}}``. Paths are those the readers use and are never changed silently.
Source: the Status Panel guide, "Vault Integration for Token Rotation"; Vault API, KV v1 and v2.
"""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidInput, VaultFailure
from ansible_collections.muster.agents.plugins.plugin_utils._http import Transport
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import this_run
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument
from ansible_collections.muster.agents.plugins.plugin_utils._vault_auth import auth_method
from ansible_collections.muster.agents.plugins.plugin_utils._vault_client import AnswerLost, Refusal, VaultClient, checked_path
from ansible_collections.muster.agents.plugins.plugin_utils._vault_policy import (
    AgentTokenPolicy,
    TokenOutcome,
    agent_token_policy,
    ensure_token,
    plan_token,
    remove_token,
    required_capabilities,
    revoke,
)

__all__ = [
    "AgentTokenPolicy", "TokenOutcome", "Vault", "VaultChange", "VaultEntry", "VaultPath", "agent_token_policy", "check_secret_names",
    "vault_paths",
]

_TRIES = 5
# A cluster's other nodes may answer a read a moment behind the write.
_SETTLE = (0.0, 0.1, 0.4, 1.0)
# Paths whose capabilities are asked for at once: OpenBao refuses a request with more than a thousand strings.
_ASKED_AT_ONCE = 250
# Entries that a session remembers: those of one agent, not of a fleet.
_MOST_REMEMBERED = 16
_CAS_WORDS = "check-and-set"


@dataclass(frozen=True)
class VaultPath:
    """One entry: *path* as its readers GET it (without /v1/), and *fields*: name in Vault -> name of the secret."""

    path: str
    fields: t.Mapping[str, str]


@dataclass(frozen=True)
class VaultEntry:
    """An entry as its readers see it. *version* is None on KV v1; *fields* holds the text fields they find.

    *flat* tells of a KV v1 entry without the inner ``data``: it exists, and no reader can read it. *written_at* is when this version was
    written, as Vault tells it (RFC 3339), empty on KV v1. *whole* is all that was read, other writers' fields included.
    """

    path: str
    mount: str
    kv_version: int
    exists: bool
    version: int | None
    fields: t.Mapping[str, Secret]
    flat: bool = False
    written_at: str = ""
    whole: _State | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class VaultChange:
    """What was done to an entry (or would be), without values.

    *fields* are the names we manage there, *fields_unchanged* those of them that were right, *fields_kept* everybody else's.
    *migrated*: a flat KV v1 entry was nested. *remains*: what a removal left, as short sentences.
    """

    path: str
    mount: str
    kv_version: int
    changed: bool
    version_before: int | None
    version: int | None
    fields: tuple[str, ...] = ()
    fields_added: tuple[str, ...] = ()
    fields_changed: tuple[str, ...] = ()
    fields_removed: tuple[str, ...] = ()
    fields_unchanged: tuple[str, ...] = ()
    fields_kept: tuple[str, ...] = ()
    migrated: bool = False
    remains: tuple[str, ...] = ()

    def as_result(self) -> dict[str, t.Any]:
        """Return the change as plain data for a task result."""
        return {
            "path": self.path, "mount": self.mount, "kv_version": self.kv_version, "changed": self.changed,
            "version_before": self.version_before, "version": self.version, "fields": list(self.fields),
            "fields_added": list(self.fields_added), "fields_changed": list(self.fields_changed),
            "fields_removed": list(self.fields_removed), "migrated": self.migrated, "remains": list(self.remains),
        }

    def diff(self) -> dict[str, str]:
        """Return the change as one entry of a task's diff: versions and names of fields."""
        present = {*self.fields_kept, *self.fields_unchanged, *self.fields_changed, *self.fields_removed}
        before = {name: _stamp(self.version_before, "present") for name in present}
        after = {name: stamp for name, stamp in before.items() if name not in self.fields_removed}
        after.update({name: _stamp(self.version, "written") for name in (*self.fields_added, *self.fields_changed)})
        header = f"vault {self.path}"
        return {"before_header": header, "after_header": header, "before": _view(before), "after": _view(after)}


@dataclass(frozen=True)
class _Mount:
    """A secrets engine: *path* without slashes around it, *version* of its KV engine."""

    path: str
    version: int


@dataclass(frozen=True)
class _State:
    """An entry as Vault holds it.

    document: the fields (``.data.data``, or ``.data`` of an entry on v1 that is *flat*). beside: on v1, what stands next to the inner
    ``data``. version: None on v1; 0 when a v2 entry never existed; kept for a deleted one.
    """

    mount: _Mount
    exists: bool
    version: int | None
    document: t.Mapping[str, t.Any] = field(repr=False)
    beside: t.Mapping[str, t.Any] = field(default_factory=dict, repr=False)
    flat: bool = False
    written_at: str = ""

    @property
    def visible(self) -> t.Mapping[str, t.Any]:
        """What the readers find."""
        return {} if self.flat else self.document


def vault_paths(items: t.Iterable[t.Mapping[str, t.Any]] | None) -> tuple[VaultPath, ...]:
    """Return the option ``vault_paths`` as typed values. Raises InvalidInput for an impossible path or field, or a path given twice."""
    found: dict[str, VaultPath] = {}
    for item in items or ():
        path = checked_path(item["path"], option="vault_paths.path")
        if path in found:
            raise InvalidInput(f"vault_paths: {path} is listed twice: put all of its fields into one item.")
        fields = item.get("fields") or {}
        if not fields:
            raise InvalidInput(f"vault_paths: {path} has no fields: name at least one, such as token: token.")
        for name, secret in fields.items():
            if not str(name) or not isinstance(secret, str) or not secret:
                raise InvalidInput(f"vault_paths: field {str(name)!r} of {path} must name a secret, such as token: token.")
        found[path] = VaultPath(path, {str(name): secret for name, secret in fields.items()})
    return tuple(found.values())


def check_secret_names(paths: t.Iterable[VaultPath], known: t.Collection[str]) -> None:
    """Raise InvalidInput when a field names a secret that is not among *known*."""
    for path in paths:
        for name, secret in path.fields.items():
            if secret not in known:
                names = ", ".join(sorted(known)) or "none"
                raise InvalidInput(f"vault_paths: field {name} of {path.path} names an unknown secret {secret!r} (known: {names}).")


class Vault:
    """One session with one Vault or OpenBao. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, options: t.Mapping[str, t.Any], shared: str = "") -> None:
        """Check *options* (the validated ``vault`` dictionary), read its files; nothing is sent. Raises InvalidInput or MissingLibrary.

        *shared*: where the forks of a controller tell each other which mounts there are, for one run; empty to share nothing.
        """
        transport = Transport(
            ca_cert=options.get("ca_cert") or "", client_cert=options.get("client_cert") or "", client_key=options.get("client_key") or "",
            validate_certs=options.get("validate_certs", True), timeout=options.get("timeout") or 10.0,
            allow_plaintext=bool(options.get("allow_plaintext")))
        self._client = VaultClient(options["url"], transport, options.get("namespace") or "")
        self._options = options
        self._method = auth_method(options)
        self._mounts: list[_Mount] = []
        self._last: dict[str, _State] = {}
        self.url = self._client.url
        self._shared = SharedDocument(shared, "mounts", self.url, str(options.get("namespace") or ""))

    def companion(self) -> Vault:
        """Return another session that works with this one's login, for a thread of its own. Close it before this one."""
        self.authenticate()
        other = Vault({**self._options, "auth_method": "token", "token": self._client.token, "token_file": None})
        other._mounts = list(self._mounts)
        return other

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def authenticate(self) -> None:
        """Log in, once. Raises VaultFailure (login_refused, wrapping_refused, unreachable, ...)."""
        if not self._client.has_token:
            self._client.use(self._method.login(self._client))

    def close(self) -> None:
        """Revoke the token if a login of ours issued it, and close the connections. Where that fails the token ends by its own TTL."""
        if self._method.issues and self._client.has_token:
            try:
                self._client.hvac.auth.token.revoke_self()
            except AgentsError:
                self._client.forget_token()
        self._client.close()

    # -- before anything is written

    def preflight(self, paths: t.Sequence[VaultPath], *, remove: bool = False, policy: AgentTokenPolicy | None = None) -> None:
        """Check that everything later can work: server, token, mounts, shapes, and each capability on each exact API path. Writes nothing.

        Raises VaultFailure: unreachable, untrusted, sealed, uninitialised, wrong_token, missing_mount, wrong_kv_shape, permission_denied.
        """
        self.authenticate()
        needed: dict[str, tuple[str, ...]] = {}
        for path in paths:
            needed.update(self._needed(path, remove))
        if policy is not None:
            needed.update(required_capabilities(policy, remove=remove))
        granted = self._capabilities(tuple(needed))
        for api_path, wanted in needed.items():
            missing = [name for name in wanted if name not in granted[api_path]]
            if missing and "root" not in granted[api_path]:
                raise VaultFailure(
                    f"The Vault token lacks {_words(missing)} on {api_path}: add to one of its policies "
                    f'path "{api_path}" {{ capabilities = [{", ".join(_quoted(wanted))}] }}.', reason="permission_denied")

    def _needed(self, path: VaultPath, remove: bool) -> dict[str, tuple[str, ...]]:
        mount = self._mount(path.path)
        if not remove:
            return {path.path: ("create", "read", "update")}
        if mount.version == 1:
            return {path.path: ("read", "update", "delete")}
        return {path.path: ("read", "update"), _metadata_path(mount, path.path): ("delete",)}

    def _capabilities(self, paths: t.Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for start in range(0, len(paths), _ASKED_AT_ONCE):
            asked = paths[start:start + _ASKED_AT_ONCE]
            data = self._client.call("POST", "sys/capabilities-self", {"paths": list(asked)}).get("data") or {}
            found.update({path: [str(name) for name in data.get(path) or ["deny"]] for path in asked})
        return found

    # -- reading

    def read(self, path: VaultPath | str) -> VaultEntry:
        """Return the entry as its readers see it. Raises VaultFailure."""
        name = path.path if isinstance(path, VaultPath) else checked_path(path, option="path")
        return _entry(name, self._state(name))

    def recall(self, path: VaultPath) -> VaultEntry:
        """Return the entry as this session saw it last, and read it only when it never did. Raises VaultFailure."""
        return _entry(path.path, self._last.get(path.path) or self._state(path.path))

    def _state(self, path: str) -> _State:
        state = self._asked_state(path)
        self._last.pop(path, None)
        self._last[path] = state
        if len(self._last) > _MOST_REMEMBERED:
            del self._last[next(iter(self._last))]
        return state

    def _asked_state(self, path: str) -> _State:
        self.authenticate()
        mount = self._mount(path)
        try:
            data = self._client.call("GET", path).get("data") or {}
        except Refusal as error:
            if error.status != 404:
                raise
            # A deleted v2 entry answers 404 with its metadata; its version number still counts for check-and-set.
            data = error.body.get("data") or {}
        if mount.version == 2:
            metadata, document = data.get("metadata") or {}, data.get("data")
            return _State(
                mount, document is not None, int(metadata.get("version") or 0), document or {}, written_at=str(metadata.get("created_time") or ""))
        inner = data.get("data")
        if isinstance(inner, dict):
            return _State(mount, True, None, inner, {key: value for key, value in data.items() if key != "data"})
        return _State(mount, bool(data), None, data, flat=bool(data))

    # -- writing

    def plan(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        """Return what :meth:`ensure` would do now; reads only."""
        return _planned(path, self._state(path.path), _wanted(path, secrets))

    def ensure(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> VaultChange:
        """Make the readers of *path* find *secrets* under its fields, keep every other field, and check by reading as they do.

        Nothing is written when they find them already. On KV v2 check-and-set guards the write, so that what others write meanwhile is
        kept, and what this session has read before is good enough to begin with; KV v1 has no such guard. Raises VaultFailure (cas_conflict
        when others keep writing), InvalidInput for an unknown secret.
        """
        wanted = _wanted(path, secrets)
        for secret in secrets.values():
            self._client.remember(secret)
        unanswered: VaultChange | None = None
        for number in range(_TRIES):
            known = self._last.get(path.path) if number == 0 else None
            state = known if known is not None and _guards(known, path, wanted) else self._state(path.path)
            change = _planned(path, state, wanted)
            if not change.changed:
                return replace(unanswered, version=state.version) if unanswered else change
            unanswered = None
            try:
                if self._write(path.path, state, {**state.document, **wanted}):
                    return self._verified(path, wanted, change)
            except AnswerLost:
                # Whether it landed shows at the next look.
                unanswered = change
        raise _contended(path.path)

    def exchange(self, path: VaultPath, secrets: t.Mapping[str, Secret], seen: VaultEntry, *, check: bool = True) -> VaultChange:
        """Make the readers of *path* find *secrets*, but only if the entry still is as it was *seen*: then *check* by reading as they do.

        On KV v2 its version decides, and check-and-set guards the write itself; on KV v1 our fields are compared just before. An entry that
        holds *secrets* already is left alone. Without *check* Vault's answer is believed, where check-and-set stands behind it: for a caller who sees
        by other means that the readers find it. Raises VaultFailure(cas_conflict) when somebody else wrote in between; nothing was written then.
        """
        wanted = _wanted(path, secrets)
        for secret in secrets.values():
            self._client.remember(secret)
        for number in range(_TRIES):
            known = seen.whole if number == 0 else None
            state = known if known is not None and _guards(known, path, wanted) else self._state(path.path)
            change = _planned(path, state, wanted)
            if not change.changed:
                return replace(change, changed=number > 0)
            if not _as_seen(path, state, seen):
                break
            try:
                if self._write(path.path, state, {**state.document, **wanted}):
                    if check or state.version is None:
                        return self._verified(path, wanted, change)
                    self._last.pop(path.path, None)
                    return change
            except AnswerLost:
                continue  # whether it landed shows at the next look
        raise VaultFailure(
            f"{path.path} was changed by somebody else since it was read: nothing was written there. Run again.", reason="cas_conflict")

    def create(self, path: VaultPath, secrets: t.Mapping[str, Secret]) -> bool:
        """Write *secrets* under *path* where nothing is nor ever was, in one request. False when something is, on KV v1, and when nobody can say.

        Check-and-set decides, so that of two who create the same entry one gets True. Raises VaultFailure.
        """
        wanted = _wanted(path, secrets)
        self.authenticate()
        mount = self._mount(path.path)
        if mount.version == 1:
            return False
        try:
            return self._write(path.path, _State(mount, False, 0, {}), wanted)
        except AnswerLost:
            return False

    def destroy(self, path: VaultPath) -> None:
        """Delete the entry with all of its versions, whatever it holds, without a look. Raises VaultFailure."""
        self.authenticate()
        mount = self._mount(path.path)
        self._client.call("DELETE", path.path if mount.version == 1 else _metadata_path(mount, path.path))

    def _write(self, path: str, state: _State, document: t.Mapping[str, t.Any]) -> bool:
        """Write *document*; False when another writer came first. Raises AnswerLost when nobody can say."""
        body: dict[str, t.Any] = {**state.beside, "data": dict(document)}
        if state.mount.version == 2:
            body["options"] = {"cas": state.version or 0}
        try:
            self._client.call("POST", path, body)
        except Refusal as error:
            if error.status == 400 and _CAS_WORDS in error.words:
                return False
            raise
        return True

    def _verified(self, path: VaultPath, wanted: t.Mapping[str, str], change: VaultChange) -> VaultChange:
        """Read as the readers do until they find *wanted*; the version is the one that was found."""
        for pause in _SETTLE:
            time.sleep(pause)
            state = self._state(path.path)
            if all(state.visible.get(name) == value for name, value in wanted.items()):
                return replace(change, version=state.version)
            if (state.version or 0) > (change.version or 0):
                break
        raise VaultFailure(
            f"{path.path} was changed by somebody else right after it was written: find the other writer, then run again.",
            reason="cas_conflict")

    def plan_removal(self, path: VaultPath) -> VaultChange:
        """Return what :meth:`remove` would do now; reads only."""
        return _planned_removal(path, self._state(path.path))

    def remove(self, path: VaultPath) -> VaultChange:
        """Remove our fields from *path*, and the whole entry when nothing else is left in it.

        On KV v2 the whole entry means all versions and the metadata, so that no secret stays. Where foreign fields stay, earlier versions
        stay with them, and the change says so. Raises VaultFailure.
        """
        done: VaultChange | None = None
        for _try in range(_TRIES):
            state = self._state(path.path)
            change = _planned_removal(path, state)
            if not change.changed:
                return done or change
            done = None
            try:
                if self._take_out(path, state):
                    done = change
            except AnswerLost:
                done = change
        raise _contended(path.path)

    def _take_out(self, path: VaultPath, state: _State) -> bool:
        """Write what is left without our fields, or delete the entry; False when another writer came first."""
        left = {name: value for name, value in state.document.items() if name not in path.fields}
        if not left and not state.beside:
            self._client.call("DELETE", path.path if state.mount.version == 1 else _metadata_path(state.mount, path.path))
            return True
        if state.flat:
            self._client.call("POST", path.path, left)
            return True
        return self._write(path.path, state, left)

    # -- an agent's own token

    def plan_agent_token(self, policy: AgentTokenPolicy, current: Secret | None) -> TokenOutcome:
        """Return what :meth:`ensure_agent_token` would do now; reads only."""
        self.authenticate()
        return plan_token(self._client, policy, current)

    def ensure_agent_token(self, policy: AgentTokenPolicy, current: Secret | None) -> tuple[TokenOutcome, Secret | None]:
        """Make the policy right and see that the agent has a token under it.

        Returns the outcome (``.changed``, ``.as_result()``) and the new token, None when *current* stays. Deliver the new token,
        then revoke the old one with :meth:`revoke_agent_token`.
        """
        self.authenticate()
        return ensure_token(self._client, policy, current)

    def revoke_agent_token(self, token: Secret) -> None:
        """Revoke a token that has been replaced; one that Vault no longer knows is fine."""
        self.authenticate()
        revoke(self._client, token)

    def plan_agent_token_removal(self, policy: AgentTokenPolicy, current: Secret | None) -> TokenOutcome:
        """Return what :meth:`remove_agent_token` would do now; reads only."""
        self.authenticate()
        return remove_token(self._client, policy, current, check_mode=True)

    def remove_agent_token(self, policy: AgentTokenPolicy, current: Secret | None) -> TokenOutcome:
        """Revoke *current* and delete the policy."""
        self.authenticate()
        return remove_token(self._client, policy, current)

    # -- mounts

    def _mount(self, path: str) -> _Mount:
        """Return the KV mount that holds *path*. Raises VaultFailure when there is none, or when *path* has not its engine's shape."""
        for mount in self._mounts or self._told_mounts():
            if path.startswith(f"{mount.path}/"):
                _check_shape(path, mount)
                return mount
        self.authenticate()
        try:
            data = self._client.call("GET", f"sys/internal/ui/mounts/{path}").get("data") or {}
        except Refusal as error:
            if error.status != 403:
                raise
            data = self._listed_mount(path)
        mount = _kv_mount(path, data)
        _check_shape(path, mount)
        self._mounts.append(mount)
        self._tell_mount(mount)
        return mount

    def _told_mounts(self) -> list[_Mount]:
        """Return the mounts that other forks of this run have met. No mount lies below another one, so a path has one at most."""
        with self._shared.held() as document:
            told = document.get("mounts") if document.get("run") == this_run() else None
        self._mounts = [_Mount(str(path), int(version)) for path, version in told.items()] if isinstance(told, dict) else []
        return self._mounts

    def _tell_mount(self, mount: _Mount) -> None:
        run = this_run()
        with self._shared.held() as document:
            if document.get("run") != run:
                document.clear()
                document["run"] = run
            document.setdefault("mounts", {})[mount.path] = mount.version

    def _listed_mount(self, path: str) -> dict[str, t.Any]:
        """Find the mount in the full list: Vault answers the cheaper question with 403 without a mount and without any right below it."""
        try:
            listed = self._client.call("GET", "sys/mounts").get("data") or {}
        except Refusal:
            if "deny" in self._capabilities([path])[path]:
                raise VaultFailure(
                    f"The Vault token has no right on {path} or anywhere below its mount, or there is no such mount: "
                    f'grant it path "{path}" {{ capabilities = ["create", "read", "update"] }}, or correct the path.',
                    reason="permission_denied") from None
            raise _no_mount(path, []) from None
        names = [name for name in listed if path.startswith(name)]
        if not names:
            engines = [name for name, engine in listed.items() if isinstance(engine, dict) and engine.get("type") == "kv"]
            raise _no_mount(path, engines)
        name = max(names, key=len)
        return {**listed[name], "path": name}


def _entry(path: str, state: _State) -> VaultEntry:
    return VaultEntry(
        path=path, mount=state.mount.path, kv_version=state.mount.version, exists=state.exists, version=state.version, flat=state.flat,
        written_at=state.written_at, whole=state,
        fields={key: Secret(value) for key, value in state.visible.items() if isinstance(value, str) and value})


def _guards(known: _State, path: VaultPath, wanted: t.Mapping[str, str]) -> bool:
    """Say whether an entry read before may be worked with: where it leads to a write, which fails by check-and-set if somebody wrote since."""
    return known.version is not None and _planned(path, known, wanted).changed


def _as_seen(path: VaultPath, state: _State, seen: VaultEntry) -> bool:
    """Say whether nobody wrote to an entry since it was read."""
    if state.version is not None:
        return state.version == (seen.version or 0)
    return all(state.visible.get(name) == (seen.fields[name].reveal() if name in seen.fields else None) for name in path.fields)


def _kv_mount(path: str, data: t.Mapping[str, t.Any]) -> _Mount:
    name = str(data.get("path") or "").strip("/")
    if data.get("type") not in ("kv", "generic"):
        raise VaultFailure(
            f"{path} lies in {name}/, a {data.get('type')} engine that keeps no key-value secrets: give a path on a KV mount.",
            reason="wrong_kv_shape")
    return _Mount(name, 2 if str((data.get("options") or {}).get("version") or "1") == "2" else 1)


def _check_shape(path: str, mount: _Mount) -> None:
    """Raise VaultFailure when *path* is not what a reader of that engine would GET."""
    rest = path[len(mount.path) + 1:]
    if mount.version == 1:
        if rest.startswith("data/"):
            raise VaultFailure(
                f"{path} has the shape of KV v2, but {mount.path}/ is KV v1: its readers get {mount.path}/{rest[5:]}; give that path here, "
                "and the same prefix to the readers.", reason="wrong_kv_shape")
        return
    if not rest.startswith("data/") or not rest[5:]:
        right = rest.removeprefix("metadata/")
        raise VaultFailure(
            f"{path} has the shape of KV v1, but {mount.path}/ is KV v2: its readers get {mount.path}/data/{right}; give that path here, "
            "and the prefix with /data to the readers.", reason="wrong_kv_shape")


def _metadata_path(mount: _Mount, path: str) -> str:
    return f"{mount.path}/metadata/{path[len(mount.path) + len('/data/'):]}"


def _no_mount(path: str, known: t.Sequence[str]) -> VaultFailure:
    there = f" (KV engines there: {', '.join(sorted(known))})" if known else ""
    return VaultFailure(
        f"No secrets engine is mounted above {path}{there}: enable a KV engine, or correct the path.", reason="missing_mount")


def _contended(path: str) -> VaultFailure:
    return VaultFailure(
        f"{path} was changed by somebody else {_TRIES} times while it was written: find the other writer, then run again.",
        reason="cas_conflict")


def _wanted(path: VaultPath, secrets: t.Mapping[str, Secret]) -> dict[str, str]:
    check_secret_names([path], secrets)
    return {name: secrets[secret].reveal() for name, secret in path.fields.items()}


def _planned(path: VaultPath, state: _State, wanted: t.Mapping[str, str]) -> VaultChange:
    visible = state.visible
    after = {**state.document, **wanted}
    added = tuple(sorted(name for name in after if name not in visible))
    altered = tuple(sorted(name for name in after if name in visible and visible[name] != after[name]))
    changed = bool(added or altered)
    return VaultChange(
        path=path.path, mount=state.mount.path, kv_version=state.mount.version, changed=changed, version_before=state.version,
        version=state.version + 1 if changed and state.version is not None else state.version,
        fields=tuple(sorted(wanted)), fields_added=added, fields_changed=altered,
        fields_unchanged=tuple(sorted(set(wanted) & set(visible) - set(altered))),
        fields_kept=tuple(sorted(set(visible) - set(wanted))), migrated=state.flat)


def _planned_removal(path: VaultPath, state: _State) -> VaultChange:
    ours = tuple(sorted(name for name in state.document if name in path.fields))
    foreign = tuple(sorted(name for name in state.document if name not in path.fields))
    # A deleted v2 entry still holds its old versions until its metadata goes.
    buried = not state.exists and bool(state.version)
    changed = bool(ours) or buried
    stays = bool(foreign or state.beside)
    remains: tuple[str, ...] = ()
    if changed and stays and state.version:
        kept = ", ".join(foreign)
        remains = (f"{path.path} keeps {kept}, and its versions up to {state.version} still hold the removed fields: destroy them.",)
    version = state.version
    if changed and version is not None:
        version = version + 1 if stays else 0
    return VaultChange(
        path=path.path, mount=state.mount.path, kv_version=state.mount.version, changed=changed, version_before=state.version,
        version=version, fields=tuple(sorted(path.fields)), fields_removed=ours, fields_kept=foreign, remains=remains)


def _stamp(version: int | None, word: str) -> str:
    return f"<{word}>" if version is None else f"<version {version}>"


def _view(fields: t.Mapping[str, str]) -> str:
    return "".join(f"{name}: {fields[name]}\n" for name in sorted(fields))


def _words(names: t.Sequence[str]) -> str:
    return " and ".join(names)


def _quoted(names: t.Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]
