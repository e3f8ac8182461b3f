# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotating the tokens of a fleet through Vault in one task, against one ``vault_kv2_write`` for each agent and against bare requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import limits
from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Side, cpu, memory, per_item, ratio, task
from ..ground import FLEET, Ground
from ..measure import Sample
from ..tasks import GUIDE

__all__ = ["fleet_memory", "fleet_rotation"]

_OURS: list[dict[str, Any]] = [{
    "name": "Rotate", "muster.agents.token_rotate": {
        "control_plane": "stacker", "url": "{{ stacker_url }}", "ca_cert": "{{ ca_file }}", "when": ["always"], "fleet_wait": 0, "agents": "{{ agents }}",
        "vault": {"url": "{{ vault_address }}", "ca_cert": "{{ ca_file }}", "token_file": "{{ vault_token_file }}"},
    },
}]
_THEIRS: list[dict[str, Any]] = [{
    "name": "Rotate", "no_log": True, "loop": "{{ agents }}", "community.hashi_vault.vault_kv2_write": {
        "url": "{{ vault_address }}", "ca_cert": "{{ ca_file }}", "token": "{{ vault_token }}", "engine_mount_point": "secret",
        "path": "fleet/{{ item.name }}/token", "data": {"token": "{{ item.name ~ '-' ~ fresh }}"},
    },
}]


@dataclass(frozen=True)
class _Fleet:
    """Agents that are registered and have their tokens in Vault."""

    ground: Ground
    names: Sequence[str]

    @classmethod
    def enrolled(cls, ground: Ground, count: int) -> _Fleet:
        """Register *count* agents at an empty control plane and keep their tokens in Vault."""
        ground.fleet.reset()
        fleet = cls(ground, [str(uuid.uuid4()) for _number in range(count)])
        limits.bare(ground, "fleet", {**ground.fleet_variables, "names": fleet.names}, count)
        return fleet

    def tokens(self) -> list[str]:
        """The tokens in Vault, in the order of the names."""
        found = [self.ground.bao.read(f"{FLEET}/{name}/token") for name in self.names]
        return [entry["data"]["token"] if entry is not None else "" for entry in found]

    def rotate(self, tasks: Sequence[Mapping[str, Any]], *, watch_memory: bool = False) -> Sample:
        """Run *tasks* on the controller alone. Raises BenchError when a token stayed what it was."""
        before = self.tokens()
        agents = [{"name": name, "vault_paths": [{"path": f"{FLEET}/{name}/token", "fields": {"token": "token"}}]} for name in self.names]
        variables = {**self.ground.fleet_variables, "agents": agents, "fresh": uuid.uuid4().hex}
        sample = self.ground.controller.run(Play(tasks, {"localhost": {}}, variables, items=len(self.names)), watch_memory=watch_memory)
        self._check(before)
        return sample

    def bare(self) -> Sample:
        """The same requests from one loop."""
        before = self.tokens()
        sample = limits.bare(self.ground, "rotate", {**self.ground.fleet_variables, "names": self.names}, len(self.names))
        self._check(before)
        return sample

    def _check(self, before: Sequence[str]) -> None:
        after = self.tokens()
        if any(not new or new == old for old, new in zip(before, after)):
            raise BenchError("not every token was replaced")
        if not self.ground.fleet.accepts(self.names[0], after[0]):
            raise BenchError("the control plane does not accept a new token")


def fleet_rotation(ground: Ground, options: Options) -> Experiment:
    """Theirs only writes; ours proves both tokens, and check-and-set guards the write."""
    work = f"rotate {options.fleet} Stacker tokens through Vault, one task"
    peer = f"one vault_kv2_write per agent, looped over {options.peer_items}, for each agent"
    return Experiment(
        "rotate", work,
        (
            Side("ours", "token_rotate", lambda: _Fleet.enrolled(ground, options.fleet).rotate(_OURS)),
            Side("peer", "community.hashi_vault.vault_kv2_write, looped", lambda: _Fleet.enrolled(ground, options.peer_items).rotate(_THEIRS)),
            Side("bare", "bare asyncio, 16 connections", lambda: _Fleet.enrolled(ground, options.fleet).bare()),
        ),
        (
            Line(f"{work}: task time", peer, ratio("peer", "ours", per_item(task)), 100),
            Line(f"{work}: task time", "the requests it cannot do without, bare asyncio", ratio("ours", "bare", task), 2.5, least=False),
            Line(f"{work}: CPU", peer, ratio("peer", "ours", per_item(cpu))),
        ))


def fleet_memory(ground: Ground, options: Options) -> Experiment:
    """Peak memory of ansible-playbook with its forks: one task for a fleet, against the guide's playbook on fewer hosts."""
    hosts = min(200, 4 * options.hosts)

    def guide() -> Sample:
        agents = ground.agents(hosts)
        variables = {**ground.variables, "ca_on_host": ground.variables["ca_file"]}
        sample = ground.controller.run(Play(GUIDE, agents.hosts(), variables, forks=options.forks), watch_memory=True)
        ground.documented.reset()
        return sample

    work, against = f"memory, fleet task, {options.fleet} agents", f"guide's playbook, {hosts} hosts, forks {options.forks}"
    return Experiment(
        "memory", work,
        (
            Side("ours", f"token_rotate, {options.fleet} agents", lambda: _Fleet.enrolled(ground, options.fleet).rotate(_OURS, watch_memory=True)),
            Side("guide", against, guide),
        ),
        (Line(work, against, ratio("ours", "guide", memory), 0.2, least=False),), runs=1)
