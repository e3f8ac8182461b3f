# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of agent_health; documented in plugins/modules/agent_health.py."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import CONTROL_PLANE, STORE, TRANSPORT, Spec
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._health import Gate, gate_options
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane

ARGUMENT_SPEC: Spec = {
    **CONTROL_PLANE,
    **TRANSPORT,
    **STORE,
    "name": {"type": "str", "required": True},
    "certificate_path": {"type": "str"},
    "key_path": {"type": "str", "no_log": False},
    "units": {"type": "list", "elements": "str", "default": []},
    "health_url": {"type": "str"},
    "health_status": {"type": "str", "default": "ok"},
    "vault_enabled": {"type": "bool", "default": False},
    "token_age_max": {"type": "int", "default": 600, "no_log": False},
    "seen": {"type": "bool", "default": True},
    "attempts": {"type": "int", "default": 10},
    "delay": {"type": "float", "default": 2.0},
    "journal_lines": {"type": "int", "default": 40},
    "commit": {"type": "bool", "default": True},
    "warning_days": {"type": "float"}, "critical_days": {"type": "float"}, "warning_percent": {"type": "float"}, "critical_percent": {"type": "float"},
}
RULES: dict[str, t.Any] = {}


class ActionModule(ActionBase):
    """Runs the gate for one agent on one host."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Validate, run the gate, translate failures. Returns the task result."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC, **RULES)
        try:
            options = gate_options(args, check_mode=self._task.check_mode)
            # The gate itself asks again until its time is over, so that one question is one request here.
            plane = control_plane({**args, "retries": 0})
            plane.rules.check(options.name, allow_unstable=True)
            host = Host(self, task_vars or {}, store=args["store"], control_plane=plane.key, name=options.name, delivery=args["delivery"])
            return {**result, **Gate(options, host, plane).run()}
        except AgentsError as error:
            return {**result, **error.as_result()}
