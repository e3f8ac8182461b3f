# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of registration_secret; documented in plugins/modules/registration_secret.py."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import CONTROL_PLANE, TRANSPORT, VAULT, Spec
from ansible_collections.muster.agents.plugins.plugin_utils._bootstraps import manage
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._options import control_plane

ARGUMENT_SPEC: Spec = {
    **CONTROL_PLANE, **TRANSPORT, **VAULT,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "expires_at": {"type": "str"},
    "dest": {"type": "path"},
}
RULES: dict[str, t.Any] = {"required_by": {"vault_paths": ["vault"]}}


class ActionModule(ActionBase):
    """Works at the control plane and in Vault from the controller; no host is visited."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Validate, work, translate failures. Returns the task result."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC, **RULES)
        try:
            plane = control_plane(args)
            try:
                return {**result, **manage(plane, args, check_mode=bool(self._task.check_mode))}
            finally:
                plane.http.close()
        except AgentsError as error:
            return {**result, **error.as_result()}
