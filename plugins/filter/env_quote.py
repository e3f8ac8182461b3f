# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter muster.agents.env_quote."""

from __future__ import annotations

DOCUMENTATION = r"""
name: env_quote
author: muster.agents contributors (@muster-agents)
version_added: 1.0.0
short_description: Quote a value for an environment file
description:
  - Writes a value so that C(KEY=value) in an environment file means the same to systemd's C(EnvironmentFile=) and to the dotenv libraries of
    Rust (dotenvy) and Python (python-dotenv).
  - A value of plain characters stays as it is, anything else gets single or double quotes as its characters need.
  - A value that no environment file can carry makes the task fail; the message does not quote the value.
positional: _input
options:
  _input:
    description: Text, a number or a boolean. Booleans are written as V(true) and V(false).
    type: raw
    required: true
notes:
  - python-dotenv replaces C(${NAME}) in every value, whatever its quotes, unless its caller sets C(interpolate=False), and it keeps the
    backslash of an escaped dollar, which is how a value that holds both a dollar and a single quote has to be written.
    systemd and dotenvy read all values as they were.
seealso:
  - plugin: muster.agents.toml_quote
    plugin_type: filter
  - module: muster.agents.agent_config
"""

EXAMPLES = r"""
# templates/agent.env.j2, rendered by muster.agents.agent_config
#   AGENT_TOKEN={{ muster_secret.token | muster.agents.env_quote }}
#   DB_PASSWORD={{ muster_secret.db_password | muster.agents.env_quote }}

- name: Show how a value with blanks is written
  ansible.builtin.debug:
    msg: "GREETING={{ 'hello fleet' | muster.agents.env_quote }}" # GREETING='hello fleet'

- name: Carry a value of several lines, which an environment file cannot hold as it is
  ansible.builtin.debug:
    msg: "MOTD_BASE64={{ motd | ansible.builtin.b64encode | muster.agents.env_quote }}"
"""

RETURN = r"""
_value:
  description: What to write after C(KEY=), with quotes where they are needed.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.muster.agents.plugins.plugin_utils._formats import QuotingError, env_quote


def _filter(value: object) -> str:
    """Return *value* quoted. Raises AnsibleFilterError, without the value, when an environment file cannot carry it."""
    try:
        return env_quote(value)
    except QuotingError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible loads from this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filter by its name."""
        return {"env_quote": _filter}
