# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the modules that give an agent a Vault token of its own (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors AGENT_TOKEN_POLICY of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  agent_token_policy:
    description:
      - Gives the agent a Vault token of its own, so that no shared token lands on any host. An ACL policy is written that covers this agent's paths
        and nothing else, and an orphan, periodic token is minted under it and kept in the host's store. Give an empty dictionary for the defaults.
      - A token on the host that is still good is kept, and renewed when less than half of its time is left. Otherwise a new one is minted, and the
        old one revoked once the host has the new one.
      - O(vault)'s token needs C(read) and C(update) on C(sys/policies/acl/POLICY), C(update) on C(auth/token/lookup) and C(auth/token/revoke), and
        C(update) with C(sudo) on C(auth/token/create-orphan). To take both away again it needs C(delete) in place of C(update) on the policy.
    type: dict
    suboptions:
      policy:
        description:
          - Name of the policy. By default C(muster-CONTROL_PLANE-NAME) in lower case, with a digest where that would not be unique.
          - A policy of that name that was not written by this collection is left alone, and the task fails.
        type: str
      paths:
        description:
          - API paths the agent may use; a trailing C(/*) covers everything below. By default the paths of O(vault_paths).
          - The policy also lets the token look itself up and renew itself.
        type: list
        elements: str
      capabilities:
        description: What the agent may do there, out of V(create), V(read), V(update), V(patch), V(delete) and V(list).
        type: list
        elements: str
        default: [read]
      period:
        description:
          - How long the token lives without being renewed, such as V(768h). An agent that does not renew its token gets it renewed by running the
            playbook again within that time.
          - Vault caps it at the maximum of its token mount.
        type: str
        default: 768h
      secret:
        description: Name of the token in the host's store and in templates, as C(muster_secret.vault_token).
        type: str
        default: vault_token
"""
