# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test muster.agents.rotation_due."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rotation_due
author: muster.agents contributors (@muster-agents)
version_added: 1.0.0
short_description: Whether a token or certificate is due for its successor
description:
  - True when no more than O(days) are left, when O(share) of the lifetime is over, or when it has expired.
  - A value without an expiry makes the task fail; the message does not quote the value.
options:
  _input:
    description:
      - A certificate in PEM, a JSON Web Token, a date, or a mapping with C(not_after), C(exp) or C(expires_at) and, for O(share), with C(not_before), C(iat),
        C(nbf) or C(issued_at). Results of M(muster.agents.cert_check) and claims of P(muster.agents.token_claims#filter) are such mappings.
    type: raw
    required: true
  share:
    description:
      - The share of the lifetime after which it is due. 0.67 when O(days) is not given either. Where only the expiry is known, O(days) has to be given.
    type: float
  days:
    description: The days before the expiry from which on it is due.
    type: float
  now:
    description: The moment to judge by, in ISO 8601 or in seconds since the epoch. The controller's clock, when it is not given.
    type: raw
requirements:
  - cryptography on the controller, for certificates in PEM
seealso:
  - plugin: muster.agents.cert_days_left
    plugin_type: filter
  - plugin: muster.agents.token_claims
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Name the servers whose certificates are due
  ansible.builtin.debug:
    msg: "{{ checked.results | select('muster.agents.rotation_due', days=30) | map(attribute='item') | list }}"

- name: Say when a token has used two thirds of its life
  ansible.builtin.debug:
    msg: The token is due.
  when: collector_token is muster.agents.rotation_due
"""

RETURN = r"""
_value:
  description: Whether it is due.
  type: bool
"""

import time
import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.muster.agents.plugins.plugin_utils._lifetimes import LifetimeError, life_of, share_used

_SHARE = 0.67
_DAY = 86400.0


def _test(value: object, share: float | None = None, days: float | None = None, now: object = None) -> bool:
    """Say whether *value* is due. Raises AnsibleFilterError, without the value."""
    try:
        life = life_of(value)
        moment = time.time() if now is None else life_of(now).end
        if moment >= life.end or (days is not None and life.end - moment <= float(days) * _DAY):
            return True
        if days is not None and share is None:
            return False
        return share_used(life, moment) >= (_SHARE if share is None else float(share))
    except LifetimeError as error:
        raise AnsibleFilterError(f"rotation_due: {error}.") from error


class TestModule:
    """What Ansible loads from this file."""

    def tests(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the test by its name."""
        return {"rotation_due": _test}
