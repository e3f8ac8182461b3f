# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter muster.agents.cert_days_left."""

from __future__ import annotations

DOCUMENTATION = r"""
name: cert_days_left
author: muster.agents contributors (@muster-agents)
version_added: 1.0.0
short_description: Tell how many days a certificate is still valid
description:
  - Returns the days until the expiry, with two decimals, negative when it is over.
  - A value without an expiry makes the task fail; the message does not quote the value.
positional: _input
options:
  _input:
    description:
      - A certificate in PEM (of several the first), a date in ISO 8601 or in seconds since the epoch, a JSON Web Token, or a mapping with C(not_after), C(exp)
        or C(expires_at), such as a result of M(muster.agents.cert_check).
    type: raw
    required: true
  now:
    description: The moment to count from, in ISO 8601 or in seconds since the epoch. The controller's clock, when it is not given.
    type: raw
requirements:
  - cryptography on the controller, for certificates in PEM
seealso:
  - module: muster.agents.cert_check
  - plugin: muster.agents.rotation_due
    plugin_type: test
"""

EXAMPLES = r"""
- name: Show how long the CA of the play is still valid
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', '/etc/ssl/company-ca.pem') | muster.agents.cert_days_left }} days"

- name: Stop when a certificate would expire within the maintenance freeze
  ansible.builtin.assert:
    that: signed.certificate | muster.agents.cert_days_left(now='2026-12-20T00:00:00Z') > 21
"""

RETURN = r"""
_value:
  description: The days that are left.
  type: float
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.muster.agents.plugins.plugin_utils._lifetimes import LifetimeError, days_left, life_of


def _filter(value: object, now: object = None) -> float:
    """Return the days until *value* expires. Raises AnsibleFilterError, without the value."""
    try:
        return days_left(value, None if now is None else life_of(now).end)
    except LifetimeError as error:
        raise AnsibleFilterError(f"cert_days_left: {error}.") from error


class FilterModule:
    """What Ansible loads from this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filter by its name."""
        return {"cert_days_left": _filter}
