# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An identity as templates and the control plane see it, the same in every action (private to muster.agents)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Enrolment

__all__ = ["ASSIGNED", "Gathering", "agent_facts", "completed"]

ASSIGNED = "assigned-at-enrolment"


@dataclass(frozen=True)
class Gathering:
    """What is asked of the host because the operator gave nothing."""

    system_info: bool
    capabilities: bool

    @classmethod
    def of(cls, args: t.Mapping[str, t.Any]) -> Gathering:
        """Return what validated *args* leave open."""
        return cls(args.get("system_info") is None, args.get("capabilities") is None)

    @property
    def needed(self) -> bool:
        """Whether the look has to gather facts at all."""
        return self.system_info or self.capabilities


def completed(enrolment: Enrolment, look: Look, gathering: Gathering) -> Enrolment:
    """Return *enrolment* with what the host says of itself where the operator gave nothing."""
    if gathering.system_info:
        enrolment = replace(enrolment, system_info=dict(look.facts))
    if gathering.capabilities:
        enrolment = replace(enrolment, capabilities=_capabilities(look))
    pair = look.files.get(enrolment.certificate_path)
    certificate = pair.content.decode("utf-8", "replace") if pair is not None else ""
    return replace(enrolment, hostname=enrolment.hostname or str(look.facts.get("hostname", "")), certificate=certificate)


def agent_facts(
    enrolment: Enrolment, *, control_plane: str, url: str, agent_id: str, generation: int, server_version: str,
) -> dict[str, t.Any]:
    """Return what templates know as ``muster_agent``: plain values, no secret."""
    return {
        "agent_id": agent_id, "name": enrolment.name, "control_plane": control_plane, "url": url, "version": enrolment.version,
        "hostname": enrolment.hostname, "address": enrolment.address, "capabilities": list(enrolment.capabilities),
        "service_type": enrolment.service_type, "controller_name": enrolment.controller_name, "server_version": server_version,
        "generation": generation, "labels": dict(enrolment.labels), "description": enrolment.description,
        "certificate_path": enrolment.certificate_path, "key_path": enrolment.key_path,
    }


def _capabilities(look: Look) -> tuple[str, ...]:
    """Return what this host can do, after the guide's own helper: Docker and Compose where they are, logs always, more by tool."""
    return tuple(name for name, there in (
        ("docker", "docker" in look.tools), ("compose", bool(look.facts.get("docker_compose_version"))), ("logs", True),
        ("backup", "rsync" in look.tools), ("monitoring", "curl" in look.tools)) if there)
