# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of agent_info; documented in plugins/modules/agent_info.py."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import CONTROL_PLANE, TRANSPORT, Spec
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._info import describe
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane

ARGUMENT_SPEC: Spec = {**CONTROL_PLANE, **TRANSPORT, "name": {"type": "str"}}
RULES: dict[str, t.Any] = {}


class ActionModule(ActionBase):
    """Asks the control plane what it knows; the host is not visited."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Validate, ask, translate failures. Returns the task result."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC, **RULES)
        try:
            return {**result, **describe(control_plane(args), args.get("name") or "")}
        except AgentsError as error:
            return {**result, **error.as_result()}
