# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deploy achieved, told by independent witnesses: systemd on the host, OpenBao, and the control plane. Never by the roles."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from .errors import WorldError
from .hosts import Host
from .world import World, agent_name

__all__ = ["Row", "complete", "rows", "summary"]

_UNITS = ("status-panel.service", "status-panel-serve.service", "status.service", "status-serve.service")
_HEALTH = """
import json, urllib.request
try:
    with urllib.request.urlopen("http://127.0.0.1:5000/health", timeout=5) as answer:
        print(json.load(answer).get("status", "?"))
except (OSError, ValueError) as error:
    print("no answer")
"""
_SEEN_SECONDS = 300


@dataclass(frozen=True)
class Row:
    """One host. ``seen`` is the age of the last heartbeat, in words."""

    host: str
    agent_id: str
    vault_path: str
    unit: str
    health: str
    seen: str


def rows(world: World) -> list[Row]:
    """Ask every witness about every host."""
    known = {str(agent.get("name")): agent for agent in world.reference.agents()}
    return [_row(world, host, known.get(agent_name(host), {})) for host in world.fleet.hosts]


def complete(row: Row) -> bool:
    """Whether a host is enrolled, stored, running, healthy and seen."""
    return "-" not in (row.agent_id, row.vault_path) and "active" in row.unit.split() and row.health == "ok" and row.seen.endswith("ago")


def _row(world: World, host: Host, agent: Mapping[str, Any]) -> Row:
    path = f"status_panel/{agent_name(host)}/token"
    return Row(
        host=host.name,
        agent_id=str(agent.get("agent_id") or "-"),
        vault_path=path if world.vault.read(path) else "-",
        unit=_units(world, host),
        health=_on_host(world, host, "python3", "-c", _HEALTH),
        seen=_seen(agent.get("last_heartbeat")),
    )


def _on_host(world: World, host: Host, *command: str) -> str:
    try:
        return world.fleet.execute(host, *command).strip() or "-"
    except WorldError:
        return "-"


def _units(world: World, host: Host) -> str:
    listed = _on_host(world, host, "systemctl", "list-units", "--all", "--output=json", "--no-pager", *_UNITS)
    try:
        units = json.loads(listed)
    except ValueError:
        return "-"
    return ", ".join(f"{unit['unit'].removesuffix('.service')} {unit['active']}" for unit in units) or "-"


def _seen(heartbeat: object) -> str:
    """Say how long ago a heartbeat was; it is seconds since the epoch or ISO 8601."""
    if not heartbeat:
        return "never"
    if isinstance(heartbeat, (int, float)):
        moment = datetime.datetime.fromtimestamp(heartbeat, datetime.timezone.utc)
    else:
        moment = datetime.datetime.fromisoformat(str(heartbeat).replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    seconds = int((datetime.datetime.now(datetime.timezone.utc) - moment).total_seconds())
    return f"{max(seconds, 0)} s ago" if seconds < _SEEN_SECONDS else f"offline ({seconds} s)"


def summary(world: World, seconds: float | None = None) -> str:
    """Return the table for people; ``seconds`` is how long the deploy took."""
    titles = [field.name.replace("_", " ") for field in fields(Row)]
    return table([titles, *([str(cell) for cell in astuple(row)] for row in rows(world))]) + ("" if seconds is None else f"\nDeployed in {seconds:.0f} s.")


def table(lines: list[list[str]]) -> str:
    """Align columns; the first line is the heading."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    printed = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([printed[0], "  ".join("-" * width for width in widths), *printed[1:]])
