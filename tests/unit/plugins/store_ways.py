# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Both ways to a host's store, driven alike on this machine: the shell scripts through a real shell, and the module with its own code."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, StagedFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import fingerprint
from ansible_collections.muster.agents.plugins.modules import credential_store
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look

__all__ = ["KEY", "NAME", "SHELLS", "URL", "WAYS", "Action", "Entry", "Way", "delivery_of", "killing_programs", "plant_key", "receipt_of", "tree"]

#: Every shell of this machine that /bin/sh is on some distribution; dash and bash are everywhere.
SHELLS = tuple(name for name in ("dash", "bash", "busybox") if shutil.which(name))
URL = "https://control.muster.test:8443"
NAME = "6c84fb90-12c4-11e1-840d-7b25c5ee775a"
KEY = "5e" * 32


class _Done(Exception):
    """The module came to its end; *result* is what it told Ansible."""

    def __init__(self, result: dict[str, t.Any]) -> None:
        super().__init__("done")
        self.result = result


class _Module:
    """What the module needs of AnsibleModule: its parameters with defaults, its two exits, and commands run for real."""

    def __init__(self, given: t.Mapping[str, t.Any], argument_spec: t.Mapping[str, t.Mapping[str, t.Any]], **_rest: t.Any) -> None:
        unknown = set(given) - set(argument_spec)
        if unknown:
            raise AssertionError(f"the module has no option {sorted(unknown)}")
        self.params = {name: given[name] if given.get(name) is not None else spec.get("default") for name, spec in argument_spec.items()}
        self.check_mode = False

    def exit_json(self, **result: t.Any) -> t.NoReturn:
        raise _Done(result)

    def fail_json(self, **result: t.Any) -> t.NoReturn:
        raise _Done({**result, "failed": True})

    def run_command(self, command: t.Sequence[str]) -> tuple[int, str, str]:
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout, done.stderr


class Action:
    """What Host needs of an action plugin. Scripts run in *shell* of this machine; *environment* and *rewrite* let a test disturb them."""

    def __init__(self, shell: str = "dash", *, environment: t.Mapping[str, str] | None = None, rewrite: t.Callable[[str], str] | None = None) -> None:
        self._task = SimpleNamespace(check_mode=False, delegate_to=None)
        self._templar = SimpleNamespace(template=lambda value: value)
        self._connection = SimpleNamespace(
            has_pipelining=True, transport="ssh", become=None, _shell=SimpleNamespace(SHELL_FAMILY="sh"), _play_context=SimpleNamespace(no_log=False))
        self._shell = [str(shutil.which(shell)), *(["sh"] if shell == "busybox" else [])]
        self._environment = dict(environment or {})
        self._rewrite = rewrite or (lambda script: script)
        self.scripts: list[str] = []
        self.executables: list[str] = []
        self.module_args: list[dict[str, t.Any]] = []
        self.truncate: int | None = None

    def _low_level_execute_command(self, script: str, *, sudoable: bool, in_data: bytes | None, executable: str) -> dict[str, t.Any]:
        self.scripts.append(script)
        self.executables.append(executable)
        data = in_data if in_data is None or self.truncate is None else in_data[: self.truncate]
        done = subprocess.run(
            [*self._shell, "-c", self._rewrite(script)], check=False, capture_output=True, input=data if data is not None else b"",
            env={"PATH": os.environ["PATH"], **self._environment}, start_new_session=True)
        return {"rc": done.returncode, "stdout": done.stdout.decode("utf-8", "surrogateescape"), "stderr": done.stderr.decode("utf-8", "replace")}

    @staticmethod
    def _compute_environment_string() -> str:
        return ""

    def _execute_module(self, *, module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        if module_name != "muster.agents.credential_store":
            raise AssertionError(f"no other module is run: {module_name}")
        self.module_args.append(module_args)
        with mock.patch.object(credential_store, "AnsibleModule", lambda **spec: _Module(module_args, **spec)):
            try:
                credential_store.main()
            except _Done as done:
                return done.result
        raise AssertionError("the module ended without a result")


@dataclass(frozen=True)
class Way:
    """One way to a store: *delivery* is the option's value, *shell* who runs the scripts.

    *light* makes the host's Python known, so that no module is run; *here* makes the host the machine that ansible-playbook runs on.
    """

    delivery: str
    shell: str = "dash"
    light: bool = False
    here: bool = False

    def host(self, store: Path, **action: t.Any) -> Host:
        """Return a handle on the identity's store below *store*."""
        known = {"ansible_python_interpreter": sys.executable} if self.light else {}
        task = Action(self.shell, **action)
        task._connection.transport = "local" if self.here else "ssh"
        return Host(t.cast(t.Any, task), known, store=str(store), control_plane="stacker", name=NAME, delivery=self.delivery)

    def __str__(self) -> str:
        return "here" if self.here else "light" if self.light else self.delivery if self.delivery == "module" else self.shell


WAYS = (Way("fast", "dash"), Way("fast", "bash"), Way("module"), Way("module", light=True), Way("auto", here=True))


@dataclass(frozen=True)
class Entry:
    """One thing in a folder as the file system has it."""

    kind: str
    mode: str
    owner: int
    group: int
    content: bytes


def killing_programs(folder: Path, names: str) -> Path:
    """Make *folder* of the programs *names*, which count their calls in $COUNT and at call number $KILL_AT take their whole process group with them."""
    folder.mkdir()
    flock = shutil.which("flock")
    for name in names.split():
        (folder / name).write_text(
            f"#!/bin/sh\nexec 8>\"$COUNT.lock\"; {flock} 8\n"  # those of a pipe run at the same time
            "read -r n 2>/dev/null <\"$COUNT\" || n=0; n=$((n + 1)); echo \"$n\" >\"$COUNT\"; exec 8>&-\n"
            f"[ \"$n\" != \"$KILL_AT\" ] || kill -9 0\nexec {shutil.which(name)} \"$@\"\n")
        (folder / name).chmod(0o755)
    return folder


def tree(folder: Path) -> dict[str, Entry]:
    """Return everything below *folder* by relative name."""
    found = {}
    for base, directories, names in os.walk(folder):
        for name in (*directories, *names):
            path = Path(base, name)
            state = path.lstat()
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
            content = os.readlink(path).encode() if kind == "link" else path.read_bytes() if kind == "file" else b""
            found[str(path.relative_to(folder))] = Entry(kind, f"{stat.S_IMODE(state.st_mode):04o}", state.st_uid, state.st_gid, content)
    return found


def plant_key(store: Path) -> Path:
    """Make the identity's folder with the key both ways share, and return it."""
    root = store / "stacker" / NAME
    for folder in (store, store / "stacker", root):
        folder.mkdir(mode=0o700, exist_ok=True)
    (root / "key").write_text(KEY)
    (root / "key").chmod(0o600)
    return root


def receipt_of(generation: int, secrets: t.Mapping[str, bytes], *, phase: str = "STORED", **more: t.Any) -> Receipt:
    """Return a receipt that belongs to a generation."""
    prints = {name: fingerprint(KEY, value) for name, value in secrets.items()}
    return Receipt("stacker", NAME, URL, phase, "attempt-1", generation=generation, agent_id="agent-id", fingerprints=prints, **more)


def delivery_of(
    root: Path, look: Look | None, generation: int = 1, *, token: bytes = b"token-one", files: t.Sequence[StagedFile] = (), **more: t.Any,
) -> Delivery:
    """Return a delivery of one generation with its receipt, resting on *look*."""
    secrets = {"agent_id": b"agent-id", "token": token}
    kept = {"keep": (generation, generation - 1), **more}
    return Delivery(
        str(root), look.receipt_digest if look is not None else "", receipt=receipt_of(generation, secrets).dump(), generation=generation,
        secrets=tuple(secrets.items()), files=tuple(files), **kept)
