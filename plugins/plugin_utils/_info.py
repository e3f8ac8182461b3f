# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a control plane knows of its agents, and whether it can be used at all; only reads (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, InvalidRequest, Mismatch
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import ControlPlane, Record, ServerState

__all__ = ["MAX_CLOCK_SKEW", "describe"]

MAX_CLOCK_SKEW = 300.0  # seconds; the widest window that the control planes' signed requests and tokens allow


def describe(control_plane: ControlPlane, name: str) -> dict[str, t.Any]:
    """Return the task result of agent_info: the server's state, and the agent *name* or, when that is empty, all agents.

    Raises Unreachable, Untrusted or ServerFault when the server cannot be used, Mismatch(clock_skew) when its clock or ours is wrong by
    more than five minutes, Rejected when the login that was given is refused; each carries ``server`` as far as it is known.
    """
    server: dict[str, t.Any] = {
        "url": control_plane.http.url, "reachable": False, "version": "", "api_versions": [], "clock_skew": None, "enforced": None,
    }
    try:
        if name:
            control_plane.rules.check(name, allow_unstable=True)
        server = _known(server, control_plane.probe())
        _check_clock(server)
        control_plane.check_bootstrap()
        return {"changed": False, "server": server, **(_one(control_plane, name) if name else _all(control_plane))}
    except AgentsError as error:
        error.facts = {"agents": [], "server": server, **error.facts}
        raise


def _known(server: dict[str, t.Any], state: ServerState) -> dict[str, t.Any]:
    skew = None if state.clock_skew is None else round(state.clock_skew, 1)
    known = {"reachable": True, "version": state.version, "api_versions": list(state.api_versions), "clock_skew": skew, "enforced": state.enforced}
    return {**server, **known}


def _check_clock(server: t.Mapping[str, t.Any]) -> None:
    skew = server["clock_skew"]
    if skew is None or abs(skew) <= MAX_CLOCK_SKEW:
        return
    raise Mismatch(
        f"The clock of {server['url']} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's: set both by NTP "
        f"first, since more than {MAX_CLOCK_SKEW:.0f} s break tokens and certificates.", reason="clock_skew")


def _one(control_plane: ControlPlane, name: str) -> dict[str, t.Any]:
    record = control_plane.find(name, None)
    if record is None:
        told = "does not know it, or shows it only to a login that owns it"
        return {"agents": [], "reason": "not_found", "msg": f"{control_plane.http.url} shows no agent {name}: it {told}."}
    return {"agents": [record.as_result()], "reason": "ok", "msg": f"{control_plane.http.url} knows {name}."}


def _all(control_plane: ControlPlane) -> dict[str, t.Any]:
    try:
        records: list[Record] = list(control_plane.list_agents())
    except InvalidRequest as error:
        if error.reason != "unsupported":
            raise
        return {"agents": [], "reason": "list_unsupported", "msg": f"{control_plane.http.url} can be used. {error.msg}"}
    agents = [record.as_result() for record in records]
    return {"agents": agents, "reason": "ok", "msg": f"{control_plane.http.url} knows {len(agents)} agents."}
