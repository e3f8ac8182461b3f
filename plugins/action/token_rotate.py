# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of token_rotate; documented in plugins/modules/token_rotate.py."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs as specs
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._token_rotation import rotate

ARGUMENT_SPEC: specs.Spec = {
    **specs.CONTROL_PLANE, **specs.TRANSPORT, **specs.IDENTITY, **specs.STORE, **specs.SECRETS, **specs.FILES, **specs.VAULT, **specs.ROTATION,
    "name": {"type": "str"},
}
RULES: dict[str, t.Any] = {
    "required_by": {"vault_paths": ("vault",), "agents": ("vault",)}, "required_one_of": [("name", "agents")],
    "mutually_exclusive": [("name", "agents"), ("agents", "files"), ("agents", "vault_paths")],
}


class ActionModule(ActionBase):
    """Rotates the credential of one agent, or the tokens of a fleet; the work is in plugin_utils."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the task's result; never a secret."""
        started = time.monotonic()
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            _validation, args = self.validate_argument_spec(ARGUMENT_SPEC, **RULES)
            result.update(rotate(self, args, task_vars or {}))
        except AgentsError as error:
            result.update(error.as_result())
        result["duration"] = round(time.monotonic() - started, 3)
        return result
