# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of vault_token_store; documented in plugins/modules/vault_token_store.py."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import (
    AGENT_TOKEN_POLICY,
    CONTROL_PLANES,
    SECRETS,
    STORE,
    VAULT,
    Spec,
)
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._vault_store import keep

ARGUMENT_SPEC: Spec = {
    **VAULT, **AGENT_TOKEN_POLICY, **SECRETS, **STORE,
    "control_plane": {"type": "str", "choices": CONTROL_PLANES},
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
RULES: dict[str, t.Any] = {"required_one_of": [["vault"], ["vault_paths"]], "required_together": [["control_plane", "name"]]}


class ActionModule(ActionBase):
    """Compares, writes and verifies in Vault from the controller; the host is visited only for the secrets of an enrolled agent."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Validate, work, translate failures. Returns the task result."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC, **RULES)
        try:
            told = keep(self, args, task_vars or {}, check_mode=bool(self._task.check_mode))
        except AgentsError as error:
            return {**result, **error.as_result()}
        if not self._task.diff:
            told.pop("diff")
        return {**result, **told}
