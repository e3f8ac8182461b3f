# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping a given value in Vault's KV v2, one secret for each host, against community.hashi_vault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Side, cpu, ratio, task, wall
from ..ground import Ground
from ..measure import Sample

__all__ = ["vault_store"]

_OURS: list[dict[str, Any]] = [{
    "name": "Store", "muster.agents.vault_token_store": {
        "vault": {"url": "{{ vault_address }}", "ca_cert": "{{ ca_file }}", "token_file": "{{ vault_token_file }}"},
        "vault_paths": [{"path": "secret/data/store/{{ deployment_hash }}", "fields": {"token": "given"}}],
        "secrets": [{"name": "given", "value": "{{ 'value-of-' ~ deployment_hash }}"}],
    },
}]
_THEIRS: list[dict[str, Any]] = [{
    "name": "Store", "no_log": True, "community.hashi_vault.vault_kv2_write": {
        "url": "{{ vault_address }}", "ca_cert": "{{ ca_file }}", "token": "{{ vault_token }}", "engine_mount_point": "secret",
        "path": "store/{{ deployment_hash }}", "data": {"token": "{{ 'value-of-' ~ deployment_hash }}"},
    },
}]


def vault_store(ground: Ground, options: Options) -> Experiment:
    """Ours reads before and after it writes; theirs writes."""

    def stored(tasks: Sequence[Mapping[str, Any]]) -> Sample:
        agents = ground.agents(options.hosts)
        sample = ground.controller.run(Play(tasks, agents.hosts(), ground.variables, forks=options.forks))
        for name in agents.names.values():
            found = ground.bao.read(f"secret/data/store/{name}")
            if found is None or found["data"] != {"token": f"value-of-{name}"}:
                raise BenchError(f"Vault does not hold the secret of {name}")
        return sample

    work = f"vault_token_store, value given, {options.hosts} hosts, forks {options.forks}"
    return Experiment(
        "vault", work,
        (
            Side("ours", "vault_token_store", lambda: stored(_OURS)),
            Side("peer", "community.hashi_vault.vault_kv2_write", lambda: stored(_THEIRS)),
        ),
        (
            Line(f"{work}: wall", "vault_kv2_write", ratio("peer", "ours", wall), 5),
            Line(f"{work}: task time", "vault_kv2_write", ratio("peer", "ours", task)),
            Line(f"{work}: CPU", "vault_kv2_write", ratio("peer", "ours", cpu)),
        ))
