# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter muster.agents.toml_quote."""

from __future__ import annotations

DOCUMENTATION = r"""
name: toml_quote
author: muster.agents contributors (@muster-agents)
version_added: 1.0.0
short_description: Write a value in TOML
description:
  - Writes a value as TOML 1.0 has it, with the quotes. Text becomes a basic string with every special character escaped, so that line breaks,
    quotes and backslashes survive.
  - Booleans, integers, floats and lists of all these are written as their TOML types.
  - A value that TOML lacks makes the task fail; the message does not quote the value.
positional: _input
options:
  _input:
    description: Text, a boolean, a number, or a list of these. Integers must fit into 64 bits.
    type: raw
    required: true
  forbidden:
    description:
      - Characters that the agent's own reader does not take inside a string. Text that holds one of them, or a control character, makes the task
        fail.
      - For agents that read TOML with a parser of their own which knows no escapes.
    type: str
    default: ""
seealso:
  - plugin: muster.agents.env_quote
    plugin_type: filter
  - module: muster.agents.agent_config
"""

EXAMPLES = r"""
# templates/agent.toml.j2, rendered by muster.agents.agent_config
#   token = {{ muster_secret.token | muster.agents.toml_quote }}
#   tags = {{ agent_tags | muster.agents.toml_quote }}

- name: Show how text with quotes is written
  ansible.builtin.debug:
    msg: "motto = {{ 'say \"hi\"' | muster.agents.toml_quote }}" # motto = "say \"hi\""

- name: Show how a list is written
  ansible.builtin.debug:
    msg: "ports = {{ [5000, 5001] | muster.agents.toml_quote }}" # ports = [5000, 5001]

- name: Refuse what a reader without escapes would misread
  ansible.builtin.debug:
    msg: "user = {{ 'monitor' | muster.agents.toml_quote(forbidden='\"') }}" # user = "monitor"
"""

RETURN = r"""
_value:
  description: What to write after C(key =).
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.muster.agents.plugins.plugin_utils._formats import QuotingError, toml_quote


def _filter(value: object, forbidden: str = "") -> str:
    """Return *value* as TOML. Raises AnsibleFilterError, without the value, when TOML has no such value or it holds a *forbidden* character."""
    try:
        return toml_quote(value, forbidden)
    except QuotingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible loads from this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filter by its name."""
        return {"toml_quote": _filter}
