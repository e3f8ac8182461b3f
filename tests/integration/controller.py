# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One control node: runs ansible-playbook over many hosts at once and tells what each task answered on each of them.

Hosts are local ones with directories of their own. A module's options may differ from host to host, so that one run covers many cases.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.muster.agents.plugins.plugin_utils import _errors
from world.processes import wait_until

COLLECTIONS = Path(str(_errors.__file__)).parents[5]
HERE = Path(__file__).parent
_MARK = "MUSTER_TEST_RUN"
_PATIENCE = 240

Options = Mapping[str, Any]

__all__ = ["COLLECTIONS", "Controller", "Play", "Running", "for_each"]


@dataclass(frozen=True)
class Play:
    """How a run ended. results: host -> the results of its tasks in order, as callbacks saw them; output: all that was printed."""

    code: int
    output: str
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    events: str = field(repr=False, default="")

    def result(self, host: str) -> Mapping[str, Any]:
        """The result of the last task on *host*. Fails with the whole output when the host has none."""
        assert self.results.get(host), self.output
        return self.results[host][-1]

    def good(self) -> Play:
        """This run, which must not have failed on any host."""
        assert self.code == 0, self.output
        return self


def for_each(module: str, options: Mapping[str, Options]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return one task that runs *module* with the options of each host, and the host variables it takes them from."""
    names = sorted({name for given in options.values() for name in given})
    task = {"name": module, module: {name: f"{{{{ given.{name} | default(omit) }}}}" for name in names}}
    return task, {host: {"given": dict(given)} for host, given in options.items()}


class Running:
    """A run that goes on in the background, in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, mark: str) -> None:
        self._process = process
        self._directory = directory
        self._mark = f"{_MARK}={mark}".encode()

    @property
    def pid(self) -> int:
        """The process id of ansible-playbook."""
        return self._process.pid

    def members(self) -> list[int]:
        """Every live process of this run, also those that outlived ansible-playbook."""
        return [pid for pid in _pids() if self._owns(pid) and _state(pid) not in "ZX"]

    def halted(self) -> list[int]:
        """Those that stand still at a fault point."""
        return [pid for pid in _pids() if _state(pid) == "T" and self._owns(pid)]

    def _owns(self, pid: int) -> bool:
        return self._mark in _bytes(pid, "environ").split(b"\0")

    def wait_halted(self, number: int) -> None:
        """Wait until *number* workers stand still. Fails when the run ends before."""
        wait_until(lambda: self._process.poll() is not None or len(self.halted()) >= number, _PATIENCE, 0.1)
        assert len(self.halted()) >= number, self.end().output

    def kill(self) -> Play:
        """Kill every process of the run at once, as a dying machine would."""
        while self._process.poll() is None or self.members():
            for pid in {*self.members(), *([self.pid] if self._process.poll() is None else [])}:
                _kill(pid)
            self._process.poll()
            time.sleep(0.005)
        return self.end()

    def end(self) -> Play:
        """Wait for the end and return what happened."""
        try:
            code = self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        events = self._directory / "results.jsonl"
        text = events.read_text() if events.exists() else ""
        results: dict[str, list[Mapping[str, Any]]] = {}
        for line in text.splitlines():
            note = json.loads(line)
            results.setdefault(note["host"], []).append({**note["result"], "failed": note["outcome"] in ("failed", "unreachable")})
        return Play(code, (self._directory / "output.txt").read_text(errors="replace"), results, text)


class Controller:
    """A control node with a home and a folder for temporary files of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        # Not below *directory*: ansible-core puts a socket there, whose path must be short.
        self.scratch = Path(tempfile.mkdtemp(prefix="muster-"))
        weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)
        self._runs = 0

    @property
    def spool(self) -> list[Path]:
        """What waits in the spool of issued credentials."""
        return sorted((self.home / "muster" / "spool").glob("*"))

    def run(self, tasks: Sequence[Options], hosts: Mapping[str, Options], **how: Any) -> Play:
        """Run *tasks* on *hosts* (name -> variables) and wait. See :meth:`start`."""
        return self.start(tasks, hosts, **how).end()

    def each(self, module: str, options: Mapping[str, Options], **how: Any) -> Play:
        """Run *module* once on each host, with the options given for it."""
        task, hosts = for_each(module, options)
        return self.run([task], hosts, **how)

    def start(
        self, tasks: Sequence[Options], hosts: Mapping[str, Options], *, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None,
        forks: int = 8,
    ) -> Running:
        """Start ansible-playbook with further command-line *arguments*; *environment* overrides ours. No task stops the ones after it."""
        self._runs += 1
        mark, directory = uuid.uuid4().hex, self.directory / f"run-{self._runs}"
        directory.mkdir(parents=True)
        steps = [{"ignore_errors": True, **task} for task in tasks] if len(tasks) > 1 else list(tasks)
        plays = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": steps}]
        (directory / "play.json").write_text(json.dumps(plays))
        inventory = {"all": {"hosts": {name: dict(variables) for name, variables in hosts.items()}}}
        (directory / "inventory.json").write_text(json.dumps(inventory))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(directory / "inventory.json"), *arguments]
        ours = {**self.environment(), "MUSTER_TEST_RESULTS": str(directory / "results.jsonl"), "ANSIBLE_FORKS": str(forks), _MARK: mark}
        with (directory / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [*command, str(directory / "play.json")], env={**ours, **(environment or {})}, cwd=directory, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        return Running(process, directory, mark)

    def environment(self) -> dict[str, str]:
        """What ansible-playbook finds in its environment on this control node."""
        ours = {
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(self.home), "ANSIBLE_LOCAL_TEMP": str(self.scratch / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.scratch / "remote"), "TMPDIR": str(self.scratch), "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "collected", "ANSIBLE_DEPRECATION_WARNINGS": "false",
        }
        return {**{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}, **ours}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _bytes(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _state(pid: int) -> str:
    """The process state as one letter, X when it is gone."""
    return _bytes(pid, "stat").decode("ascii", "replace").rpartition(")")[2].strip()[:1] or "X"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
