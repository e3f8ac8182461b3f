# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making and revoking what buys enrolments, at control planes that manage it (private to muster.agents).

The server shows a value once. It goes to Vault or into a file of the controller before anything else is done, and never into a result. When that
fails the secret is revoked again, so that none is in force that nobody holds.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous, HostFailure, InvalidInput, Mismatch
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath, check_secret_names, vault_paths
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import BootstrapRecord, ControlPlane

__all__ = ["manage"]

_VALUE = "registration_secret"  # what vault_paths calls it
_TRIES = 3


@dataclass(frozen=True)
class _Places:
    """Where the value is kept: entries in Vault, a file on the controller, or both."""

    vault: Vault | None
    paths: tuple[VaultPath, ...]
    dest: str

    def held(self) -> bool:
        """Say whether every place has a value."""
        files = not self.dest or (Path(self.dest).is_file() and Path(self.dest).stat().st_size > 0)
        return files and all(set(path.fields) <= set(self.vault.read(path).fields) for path in self.paths if self.vault is not None)

    def keep(self, value: Secret) -> None:
        """Write the value to every place. Raises VaultFailure or HostFailure."""
        for path in self.paths:
            if self.vault is not None:
                self.vault.ensure(path, {_VALUE: value})
        if self.dest:
            _write(self.dest, value)

    def drop(self, *, check_mode: bool) -> bool:
        """Take the value out of every place. Says whether there was something to take out."""
        changed = False
        for path in self.paths:
            if self.vault is not None:
                changed = (self.vault.plan_removal(path) if check_mode else self.vault.remove(path)).changed or changed
        if self.dest and Path(self.dest).exists():
            changed = True
            if not check_mode:
                Path(self.dest).unlink()
        return changed


def manage(plane: ControlPlane, args: t.Mapping[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    """Carry out the task with validated *args* and return its result, which holds no value of a secret. Raises AgentsError."""
    paths = vault_paths(args.get("vault_paths")) if args.get("vault") else ()
    check_secret_names(paths, {_VALUE})
    expires_at = _expiry(args.get("expires_at") or "")
    if args["state"] == "present" and not paths and not args.get("dest"):
        raise InvalidInput("The value is shown once and has to be kept: give dest, or vault with vault_paths.")
    with contextlib.ExitStack() as stack:
        vault = stack.enter_context(Vault(args["vault"])) if paths else None
        places = _Places(vault, paths, args.get("dest") or "")
        plane.probe()
        if vault is not None:
            vault.preflight(paths, remove=args["state"] == "absent")
        known = plane.list_bootstraps()
        mine = tuple(record for record in known if record.name == args["name"])
        act = _present if args["state"] == "present" else _absent
        result = act(plane, args["name"], expires_at, mine, places, check_mode)
        listed = known if check_mode or not result["changed"] else plane.list_bootstraps()
    return {**result, "name": args["name"], "url": plane.http.url, "dest": places.dest, "registration_secrets": [record.as_result() for record in listed]}


def _present(
    plane: ControlPlane, name: str, expires_at: str, mine: tuple[BootstrapRecord, ...], places: _Places, check_mode: bool,
) -> dict[str, t.Any]:
    good = next((record for record in mine if record.usable(time.time())), None)
    if good is not None:
        if not places.held():
            raise Mismatch(f"{name} is in force at {plane.http.url}, but its value is not where it should be kept, and the server does not show it again: "
                           "revoke it with state: absent and make it anew, or put the value back.", reason="value_lost")
        result = _told("unchanged", "in_force", f"{name} is in force at {plane.http.url}, and its value is kept.")
        if expires_at and parse_time(good.expires_at) != parse_time(expires_at):
            result["warnings"] = [f"{name} ends at {good.expires_at or 'no time'}, not at {expires_at}: a server changes that for new secrets only."]
        return result
    action, reason = ("replaced", "not_usable") if mine else ("created", "not_there")
    if not check_mode:
        for record in mine:
            plane.revoke_bootstrap(record)
        _make(plane, name, expires_at, places)
    return _told(action, reason, f"{'Would make' if check_mode else 'Made'} {name} at {plane.http.url}.", changed=True)


def _make(plane: ControlPlane, name: str, expires_at: str, places: _Places) -> None:
    """Make a secret and keep its value. One whose answer was lost is revoked and made again: nobody has its value."""
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            record, value = plane.create_bootstrap(name, expires_at)
        except Ambiguous:
            for orphan in plane.list_bootstraps():
                if orphan.name == name:
                    plane.revoke_bootstrap(orphan)
            if last:
                raise
            continue
        try:
            places.keep(value)
        except AgentsError:
            plane.revoke_bootstrap(record)
            with contextlib.suppress(AgentsError, OSError):
                places.drop(check_mode=False)
            raise
        return


def _absent(
    plane: ControlPlane, name: str, _expires_at: str, mine: tuple[BootstrapRecord, ...], places: _Places, check_mode: bool,
) -> dict[str, t.Any]:
    # At the server first: a value that is lost is worse than one that is still kept after it lost its force.
    for record in mine:
        if not check_mode:
            plane.revoke_bootstrap(record)
    dropped = places.drop(check_mode=check_mode)
    if not mine and not dropped:
        return _told("absent", "not_there", f"{plane.http.url} has no {name}.")
    return _told("revoked", "revoked", f"{'Would revoke' if check_mode else 'Revoked'} {name} at {plane.http.url}.", changed=True)


def _told(action: str, reason: str, msg: str, *, changed: bool = False) -> dict[str, t.Any]:
    return {"changed": changed, "action": action, "reason": reason, "msg": msg}


def _expiry(text: str) -> str:
    if not text:
        return ""
    moment = parse_time(text)
    if moment is None or "T" not in text:
        raise InvalidInput(f"expires_at {text!r} is no moment: write it as 2027-01-31T00:00:00Z.")
    if moment <= time.time():
        raise InvalidInput(f"expires_at {text!r} is over: such a secret would never work.")
    return text if text.endswith("Z") or "+" in text else f"{text}Z"


def _write(dest: str, value: Secret) -> None:
    """Replace a file by the value in one step, mode 0600, on disk before this returns. Raises HostFailure."""
    folder = os.path.dirname(os.path.abspath(dest))
    beside = ""
    try:
        descriptor, beside = tempfile.mkstemp(dir=folder, prefix=".muster-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{value.reveal()}\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, dest)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except OSError as error:
        if beside:
            with contextlib.suppress(OSError):
                os.unlink(beside)
        raise HostFailure(f"dest {dest!r} cannot be written on the controller ({type(error).__name__}): the secret was revoked again.") from None
