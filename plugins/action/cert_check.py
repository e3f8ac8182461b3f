# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of cert_check; documented in plugins/modules/cert_check.py."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils._certificate_files import PATTERNS
from ansible_collections.muster.agents.plugins.module_utils._tls_probe import STARTTLS
from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import Spec
from ansible_collections.muster.agents.plugins.plugin_utils._certificate_check import check, spelled_out
from ansible_collections.muster.agents.plugins.plugin_utils._check_verdict import VERDICTS
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError

_FILE: Spec = {
    "path": {"type": "str", "required": True}, "key": {"type": "str", "no_log": False}, "name": {"type": "str"}, "hostname": {"type": "str"},
    "purpose": {"type": "str", "choices": ["server", "client"]}, "pin_sha256": {"type": "str"}, "check_chain": {"type": "bool"},
}
_ENDPOINT: Spec = {
    "host": {"type": "str", "required": True}, "port": {"type": "int"}, "name": {"type": "str"}, "server_name": {"type": "str"}, "address": {"type": "str"},
    "starttls": {"type": "str", "choices": list(STARTTLS)}, "client_cert": {"type": "str"}, "client_key": {"type": "str", "no_log": False},
    "pin_sha256": {"type": "str"}, "file": {"type": "str"}, "check_hostname": {"type": "bool", "default": True}, "check_chain": {"type": "bool"},
}
ARGUMENT_SPEC: Spec = {
    "files": {"type": "list", "elements": "dict", "options": _FILE, "default": []},
    "directories": {"type": "list", "elements": "str", "default": []},
    "patterns": {"type": "list", "elements": "str", "default": list(PATTERNS)},
    "endpoints": {"type": "list", "elements": "dict", "options": _ENDPOINT, "default": []},
    "from": {"type": "str", "choices": ["controller", "host"], "default": "controller"},
    "ca_certs": {"type": "list", "elements": "path", "default": []}, "intermediates": {"type": "list", "elements": "path", "default": []},
    "check_chain": {"type": "bool", "default": True}, "all_addresses": {"type": "bool", "default": True},
    "client_cert": {"type": "str"}, "client_key": {"type": "str", "no_log": False},
    "passphrase": {"type": "str", "no_log": True}, "passphrase_file": {"type": "str", "no_log": False},
    "warning_days": {"type": "float"}, "critical_days": {"type": "float"}, "warning_percent": {"type": "float"}, "critical_percent": {"type": "float"},
    "ignore": {"type": "list", "elements": "str", "default": []},
    "fail_on": {"type": "list", "elements": "str", "choices": [verdict for verdict in VERDICTS if verdict != "ok"], "default": []},
    "revocation": {"type": "list", "elements": "str", "choices": ["crl", "ocsp"], "default": []},
    "crls": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "float", "default": 5.0}, "retries": {"type": "int", "default": 2}, "concurrency": {"type": "int", "default": 64},
    "remember": {"type": "bool", "default": True}, "json_file": {"type": "path"}, "prometheus_file": {"type": "path"},
}
RULES: dict[str, t.Any] = {"required_one_of": [("files", "directories", "endpoints")], "required_together": [("client_cert", "client_key")]}


class ActionModule(ActionBase):
    """Checks certificates; the host is visited only when it is the one to look."""

    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the task's result; never a secret."""
        started = time.monotonic()
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            self._task.args = spelled_out(self._task.args)
            _validation, args = self.validate_argument_spec(ARGUMENT_SPEC, **RULES)
            result.update(check(self, args, task_vars or {}, check_mode=self._task.check_mode))
        except AgentsError as error:
            result.update(error.as_result())
        result["duration"] = round(time.monotonic() - started, 3)
        return result
