# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter muster.agents.token_claims."""

from __future__ import annotations

DOCUMENTATION = r"""
name: token_claims
author: muster.agents contributors (@muster-agents)
version_added: 1.0.0
short_description: Read what a token says of itself
description:
  - Decodes the claims of a JSON Web Token, such as V(exp), V(iat) and V(sub). The signature is not verified, so this tells what is claimed and proves nothing.
  - Anything else makes the task fail, opaque tokens too. The message does not quote the value.
positional: _input
options:
  _input:
    description: The token.
    type: str
    required: true
notes:
  - Claims are no secret, but the token is. Read it with a lookup where it is used, and keep it out of facts.
seealso:
  - plugin: muster.agents.rotation_due
    plugin_type: test
"""

EXAMPLES = r"""
- name: Show until when a collector's token is valid
  ansible.builtin.debug:
    msg: "{{ '%Y-%m-%d %H:%M' | ansible.builtin.strftime((collector_token | muster.agents.token_claims).exp) }}"

- name: Make sure that a token was issued for this host
  ansible.builtin.assert:
    that: (lookup('ansible.builtin.file', token_file) | muster.agents.token_claims).sub == agent_name
"""

RETURN = r"""
_value:
  description: The claims by their names.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.muster.agents.plugins.plugin_utils._lifetimes import LifetimeError, token_claims


def _filter(value: object) -> dict[str, t.Any]:
    """Return the claims of the token *value*. Raises AnsibleFilterError, without the value."""
    try:
        return token_claims(value)
    except LifetimeError as error:
        raise AnsibleFilterError(f"token_claims: {error}.") from error


class FilterModule:
    """What Ansible loads from this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filter by its name."""
        return {"token_claims": _filter}
