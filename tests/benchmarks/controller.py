# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one play with ansible-playbook and tells what it cost; every side of an experiment is run by the same controller, set up the same way."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world.machine import TOP

from .measure import Sample, run

__all__ = ["BenchError", "Controller", "Play", "neutral"]

_HERE = Path(__file__).resolve().parent
_TAIL = 40
_SSH = "-o ControlMaster=auto -o ControlPersist=120s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
_SSH_ALONE = "-o ControlMaster=no -o ControlPersist=no -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


# Whose values would make one machine's figures differ from another's: a bundle of authorities is read anew by every process, and PYTHONUNBUFFERED, which
# many containers set, has Python read a module that comes by standard input byte by byte.
_UNWANTED = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})


class BenchError(Exception):
    """A run failed or did not do its work, so that its time means nothing."""


@dataclass(frozen=True)
class Play:
    """What to run: tasks on hosts (name -> variables), with variables for all of them.

    *items*: how many things are served, by default the hosts. *pipelining* and *persist* matter over ssh; *become* goes through su.
    *environment* is added to that of ansible-playbook.
    """

    tasks: Sequence[Mapping[str, Any]]
    hosts: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, Any]
    forks: int = 20
    items: int = 0
    connection: str = "local"
    pipelining: bool = True
    persist: bool = True
    become: bool = False


class Controller:
    """A control node in *directory*, with the collection of this checkout and whatever the environment's Python carries besides.

    The collection is copied, so that all runs measure the same code, whatever is edited meanwhile.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._runs = 0
        collection = directory / "collections" / "ansible_collections" / "muster" / "agents"
        for part in ("plugins", "meta"):
            shutil.copytree(TOP / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(TOP / "galaxy.yml", collection)

    def run(self, play: Play, *, watch_memory: bool = False) -> Sample:
        """Run *play*. Returns what it cost; raises BenchError with the end of its output when it failed."""
        self._runs += 1
        folder = self.directory / f"play-{self._runs}"
        folder.mkdir()
        book = [{"name": "Benchmark", "hosts": "all", "connection": play.connection, "gather_facts": False, "become": play.become, "become_method": "su",
                 "vars": dict(play.variables), "tasks": list(play.tasks)}]
        (folder / "play.json").write_text(json.dumps(book))
        (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": {name: dict(values) for name, values in play.hosts.items()}}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "inventory.json"), str(folder / "play.json")]
        with (folder / "output.txt").open("wb") as output:
            cost = run(command, output, environment=self._environment(play, folder), folder=folder, watch_memory=watch_memory)
        if cost.code:
            tail = (folder / "output.txt").read_text(errors="replace").splitlines()[-_TAIL:]
            raise BenchError(f"ansible-playbook ended with {cost.code}:\n" + "\n".join(line[:400] for line in tail))
        tasks = _tasks(folder / "tasks.jsonl")
        shutil.rmtree(folder)
        return Sample(cost.wall, cost.cpu, play.items or len(play.hosts), tasks, cost.memory)

    def _environment(self, play: Play, folder: Path) -> dict[str, str]:
        ours = {
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"), "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_LOCAL_TEMP": str(self.directory / "local"), "ANSIBLE_REMOTE_TEMP": str(self.directory / "remote"), "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": str(play.forks), "ANSIBLE_PIPELINING": str(play.pipelining).lower(), "ANSIBLE_CALLBACK_PLUGINS": str(_HERE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "stopwatch", "MUSTER_BENCH_TASKS": str(folder / "tasks.jsonl"), "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_HOST_KEY_CHECKING": "false", "ANSIBLE_SSH_ARGS": _SSH if play.persist else _SSH_ALONE,
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "cp"),
        }
        if play.connection == "ssh":
            ours["ANSIBLE_REMOTE_TEMP"] = "/tmp/.ansible"
        else:
            ours["ANSIBLE_PYTHON_INTERPRETER"] = sys.executable
        return {**neutral(os.environ), **ours}


def neutral(environment: Mapping[str, str]) -> dict[str, str]:
    """Return *environment* without the settings of Ansible and Python, and others that would tell in the figures."""
    return {name: value for name, value in environment.items() if not name.startswith(("ANSIBLE_", "PYTHON")) and name not in _UNWANTED}


def _tasks(file: Path) -> dict[str, float]:
    """Return the seconds of each task by name, from when each began; a name that recurs is added up."""
    notes = [json.loads(line) for line in file.read_text().splitlines()]
    seconds: dict[str, float] = {}
    for note, following in zip(notes, notes[1:]):
        seconds[note["task"]] = seconds.get(note["task"], 0.0) + following["at"] - note["at"]
    return seconds
