# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks that are compared: ours, and those of the Stacker guide's own playbook made to work."""

from __future__ import annotations

from typing import Any

__all__ = ["ENROL", "GUIDE", "NOTHING", "enrol"]

_CAPABILITIES = ["docker", "compose", "logs"]
_SYSTEM = {"os": "linux", "arch": "x86_64"}

NOTHING: list[dict[str, Any]] = [{"name": "Nothing", "ansible.builtin.debug": {"msg": "nothing"}}]

# What the guide does in its steps 2 to 4, with what it needs to run at all: fully qualified names, a CA, a status that is accepted, the answer's
# own variable in the template, no log of secrets. Facts, assertions and set_fact are left out, which makes it faster.
GUIDE: list[dict[str, Any]] = [
    {
        "name": "Register agent with Stacker server", "no_log": True, "register": "registration_response",
        "ansible.builtin.uri": {
            "url": "{{ stacker_url }}/api/v1/agent/register", "method": "POST", "body_format": "json", "status_code": [200, 201],
            "ca_path": "{{ ca_on_host }}",
            "body": {"deployment_hash": "{{ deployment_hash }}", "agent_version": "{{ agent_version }}", "capabilities": _CAPABILITIES,
                     "system_info": _SYSTEM},
        },
    },
    {
        "name": "Store initial token in Vault KV", "no_log": True,
        "ansible.builtin.uri": {
            "url": "{{ vault_address }}/v1/{{ vault_agent_path_prefix }}/{{ deployment_hash }}/token", "method": "POST", "body_format": "json",
            "headers": {"X-Vault-Token": "{{ vault_token }}"}, "status_code": [200, 204], "ca_path": "{{ ca_on_host }}",
            "body": {"data": {"token": "{{ registration_response.json.data.item.agent_token }}"}},
        },
    },
    {
        "name": "Create agent .env file", "no_log": True,
        "ansible.builtin.template": {"src": "{{ templates }}/guide.env.j2", "dest": "{{ place }}/.env", "mode": "0600"},
    },
]


def enrol(delivery: str = "auto") -> list[dict[str, Any]]:
    """The same in one task of ours, by the *delivery* given; it proves the token, reads Vault back and keeps a receipt besides."""
    return [{
        "name": "Enrol the agent",
        "muster.agents.agent_register": {
            "control_plane": "stacker", "url": "{{ stacker_url }}", "ca_cert": "{{ ca_file }}", "name": "{{ deployment_hash }}",
            "version": "{{ agent_version }}", "capabilities": _CAPABILITIES, "system_info": _SYSTEM, "store": "{{ place }}/store", "delivery": delivery,
            "vault": {"url": "{{ vault_address }}", "ca_cert": "{{ ca_file }}", "token_file": "{{ vault_token_file }}"},
            "vault_paths": [{"path": "{{ vault_agent_path_prefix }}/{{ deployment_hash }}/token", "fields": {"token": "token"}}],
            "files": [{"path": "{{ place }}/.env", "src": "{{ templates }}/muster.env.j2", "format": "env"}],
        },
    }]


ENROL = enrol()
