# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enrolling real systemd hosts over ssh: with pipelining and without, with connections kept and without, and through su."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..controller import Controller, Play
from ..experiment import Experiment, Line, Options, Side, cpu, ratio, task, wall
from ..ground import Ground
from ..measure import Sample
from ..tasks import ENROL, GUIDE, NOTHING, enrol

__all__ = ["over_ssh"]

_CA_ON_HOST = "/usr/local/share/ca-certificates/muster-world.crt"


class _Remote:
    """Runs tasks on the hosts with a new agent on each, in a new directory."""

    def __init__(self, ground: Ground, hosts: Mapping[str, Mapping[str, Any]], variables: Mapping[str, Any], forks: int) -> None:
        self._controller: Controller = ground.controller
        self._hosts = hosts
        self._variables = {**variables, "ca_on_host": _CA_ON_HOST}
        self._forks = forks

    def side(self, name: str, label: str, tasks: Sequence[Mapping[str, Any]], **how: Any) -> Side:
        """A side; *how* goes to Play (pipelining, persist, become)."""

        def measured() -> Sample:
            place = f"/opt/bench-{uuid.uuid4().hex}"
            hosts = {host: {**values, "deployment_hash": str(uuid.uuid4()), "place": place} for host, values in self._hosts.items()}
            self._play(hosts, [{"name": "Make the directory", "ansible.builtin.file": {"path": place, "state": "directory", "mode": "0700"}}])
            sample = self._play(hosts, tasks, **how)
            if tasks is not NOTHING:
                self._play(hosts, [
                    {"name": "Read the file", "ansible.builtin.command": {"cmd": f"grep -c ^AGENT_TOKEN=..... {place}/.env"}, "changed_when": False},
                ])
            return sample

        return Side(name, label, measured)

    def _play(self, hosts: Mapping[str, Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], **how: Any) -> Sample:
        return self._controller.run(Play(tasks, hosts, self._variables, forks=self._forks, connection="ssh", **how))


@contextmanager
def over_ssh(ground: Ground, options: Options) -> Iterator[list[Experiment]]:
    """Start the hosts; they live as long as the context. Raises BenchError where there can be none."""
    with ground.systemd_hosts(options.ssh_hosts) as (hosts, variables):
        remote = _Remote(ground, hosts, variables, options.forks)
        work = f"enrol + Vault + .env over ssh, {options.ssh_hosts} systemd hosts, forks {options.forks}"
        pipelined = Experiment(
            "ssh", f"{work}, pipelining",
            (
                remote.side("ours", "agent_register", ENROL),
                remote.side("module", "agent_register, module way", enrol("module")),
                remote.side("guide", "guide's playbook (uri, uri, template)", GUIDE),
                remote.side("nothing", "a no-op task (debug)", NOTHING),
            ),
            (
                Line(f"{work}, pipelining: wall", "guide's playbook", ratio("guide", "ours", wall), 5),
                Line(f"{work}, pipelining: task time", "guide's playbook", ratio("guide", "ours", task)),
                Line(f"{work}, pipelining: CPU of the controller", "guide's playbook", ratio("guide", "ours", cpu)),
                Line(f"{work}, pipelining, module way: wall", "guide's playbook", ratio("guide", "module", wall)),
            ))
        yield [pipelined, *(_variant(remote, work, name, how, words) for name, how, words in _VARIANTS)]


_VARIANTS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("ssh-unpipelined", {"pipelining": False}, "no pipelining"),
    ("ssh-unkept", {"persist": False}, "pipelining, no ControlPersist"),
    ("ssh-become", {"become": True}, "pipelining, become (su)"),
)


def _variant(remote: _Remote, work: str, name: str, how: Mapping[str, Any], words: str) -> Experiment:
    return Experiment(
        name, f"{work}, {words}",
        (remote.side("ours", "agent_register", ENROL, **how), remote.side("guide", "guide's playbook", GUIDE, **how)),
        (Line(f"{work}, {words}: wall", "guide's playbook", ratio("guide", "ours", wall)),), runs=1)
