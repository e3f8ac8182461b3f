# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs as specs
from ansible_collections.muster.agents.plugins.plugin_utils._configuration import configure
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError

ARGUMENT_SPEC: specs.Spec = {
    "control_plane": specs.CONTROL_PLANE["control_plane"], "url": {"type": "str"},
    **specs.IDENTITY, **specs.STORE, **specs.SECRETS, **specs.FILES,
    "state": {"type": "str", "choices": ["present", "restored", "absent"], "default": "present"},
}
RULES: dict[str, t.Any] = {"required_if": [("state", "present", ["files"])]}


class ActionModule(ActionBase):
    """Renders files with secrets that only that render knows; the work is in plugin_utils."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the task's result; never a secret."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            _validation, args = self.validate_argument_spec(ARGUMENT_SPEC, **RULES)
            result.update(configure(self, args, task_vars or {}))
        except AgentsError as error:
            result.update(error.as_result())
        return result
