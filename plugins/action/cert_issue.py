# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs as specs
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from ansible_collections.muster.agents.plugins.plugin_utils._issuance import issue

ARGUMENT_SPEC: specs.Spec = {
    **specs.CERTIFICATE, **specs.ISSUER, **specs.TRANSPORT, "vault": specs.VAULT["vault"],
    "state": {"type": "str", "choices": ["present", "absent", "revoked"], "default": "present"},
    "serial_number": {"type": "str"},
}
RULES: dict[str, t.Any] = {
    "required_one_of": [("certificate_path", "serial_number")],
    "required_together": [("certificate_path", "key_path")],
    "required_if": [
        ("state", "present", ["certificate_path", "key_path", "subject", "issuer"]), ("state", "absent", ["certificate_path", "key_path"]),
        ("state", "revoked", ["issuer"]),
    ],
}


class ActionModule(ActionBase):
    """Has a host's key certified and the certificate installed there; the work is in plugin_utils."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the task's result; never a secret."""
        started = time.monotonic()
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            _validation, args = self.validate_argument_spec(ARGUMENT_SPEC, **RULES)
            result.update(issue(self, args, task_vars or {}))
        except AgentsError as error:
            result.update(error.as_result())
        result["duration"] = round(time.monotonic() - started, 3)
        return result
