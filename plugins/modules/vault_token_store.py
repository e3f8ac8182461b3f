#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_token_store
short_description: Put credentials into Vault or OpenBao where their readers find them
version_added: 1.0.0
description:
  - Stores secrets under every path and field that their readers use, in the shape the readers expect on KV v1 and v2, and checks the outcome by
    reading as they do. What is there already is compared first, and nothing is written when it is right.
  - The secrets are your own, given in O(secrets), or those of an agent enrolled by M(muster.agents.agent_register), named by O(control_plane) and
    O(name), whose host keeps them. They are never shown or returned.
  - M(muster.agents.agent_register) takes the same O(vault) options and does this as a part of enrolling. Use this module for secrets besides the
    enrolment, for more paths later, and to put right what drifted.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests, cryptography and hvac on the controller
attributes:
  check_mode:
    support: full
    details:
      - Logs in and looks, and writes nothing. A wrapped secret id is used up by that login.
  diff_mode:
    support: full
    details:
      - Shows names of fields and version numbers, never values.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.vault
  - muster.agents.agent_token_policy
  - muster.agents.secrets
  - muster.agents.store
options:
  control_plane:
    description:
      - The kind of control plane the agent is enrolled with. Together with O(name) it makes the credentials in the host's store usable in
        O(vault_paths), and O(agent_token_policy) possible.
    type: str
    choices: [stacker, pganalytics, kubeatlas, oxmon]
  name:
    description: The name the agent is enrolled under, as given to M(muster.agents.agent_register). Needs O(control_plane).
    type: str
  state:
    description:
      - V(present) makes the readers find the secrets.
      - V(absent) takes the named fields away, whatever their values, and the whole entry when nothing else is left in it. On KV v2 that means all of
        its versions and its metadata, so that no secret stays. Where other fields remain, so do the earlier versions; RV(vault[].remains)
        says so.
      - V(absent) with O(agent_token_policy) also revokes the agent's token and deletes its policy.
    type: str
    choices: [present, absent]
    default: present
notes:
  - O(vault) and O(vault_paths) must both be given, in the task or through C(module_defaults).
seealso:
  - module: muster.agents.agent_register
"""

EXAMPLES = r"""
- name: Keep a database password where the application reads it (KV v2)
  muster.agents.vault_token_store:
    vault:
      url: https://vault.example.com:8200
      ca_cert: /etc/ssl/certs/company-ca.pem
      token_file: ~/.config/muster/vault-token
    vault_paths:
      - path: secret/data/apps/shop
        fields:
          db_password: database
    secrets:
      - name: database
        file: ~/.config/muster/shop-database-password
  delegate_to: localhost
  run_once: true

- name: Write an enrolled agent's token for the server and for both kinds of agent, and give the agent a Vault token of its own
  muster.agents.vault_token_store:
    vault:
      url: https://vault.example.com:8200
      namespace: platform/agents
      auth_method: approle
      role: enrolment
      role_id: 5d1f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
      secret_id_file: /run/secrets/wrapped-secret-id
      secret_id_wrapped: true
    control_plane: stacker
    name: "{{ agent_name }}"
    vault_paths:
      - path: "status_panel/{{ agent_name }}/token"
        fields:
          token: token
      - path: "status_panel/{{ agent_name }}/status_panel_token"
        fields:
          token: token
    agent_token_policy:
      capabilities: [read]
      period: 768h
  become: true

- name: Take the agent's entries, its policy and its Vault token away
  muster.agents.vault_token_store:
    vault: "{{ agent_vault }}"
    control_plane: stacker
    name: "{{ agent_name }}"
    vault_paths:
      - path: "status_panel/{{ agent_name }}/token"
        fields:
          token: token
    agent_token_policy: {}
    state: absent
  become: true

- name: Tell a sealed Vault from other failures
  block:
    - name: Store the token
      muster.agents.vault_token_store:
        vault: "{{ agent_vault }}"
        vault_paths: "{{ agent_vault_paths }}"
        secrets: "{{ agent_secrets }}"
      register: stored
  rescue:
    - name: Stop with what has to be done
      ansible.builtin.fail:
        msg: >-
          {{ 'Unseal Vault, then run again.' if stored.reason == 'sealed' else stored.msg }}
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be.
  returned: success
  type: str
  choices: [unchanged, stored, removed]
  sample: stored
reason:
  description:
    - The same as RV(action) on success.
    - On failure a stable key that says what is wrong, one of V(invalid_input), V(missing_library), V(unreachable), V(untrusted), V(sealed),
      V(uninitialised), V(standby), V(missing_namespace), V(login_refused), V(wrapping_refused), V(wrong_token), V(permission_denied),
      V(missing_mount), V(wrong_kv_shape), V(policy_conflict), V(cas_conflict), V(throttled), V(ambiguous), V(server_fault), V(refused), or one of
      those that M(muster.agents.agent_register) has for the host.
  returned: always
  type: str
  sample: stored
msg:
  description: One sentence for people. On failure it says what to do.
  returned: always
  type: str
  sample: Stored status_panel/5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10/token (token).
vault:
  description: Each path with what happened there, without values. On failure, what was done before it.
  returned: when the checks before the first write passed
  type: list
  elements: dict
  contains:
    path:
      description: The path as its readers ask for it.
      type: str
      sample: secret/data/apps/shop
    mount:
      description: The mount that holds it.
      type: str
      sample: secret
    kv_version:
      description: Version of that KV engine.
      type: int
      sample: 2
    changed:
      description: Whether the entry changed.
      type: bool
      sample: true
    version_before:
      description: Version of the entry before, V(0) when it did not exist, null on KV v1.
      type: int
      sample: 3
    version:
      description: Version of the entry now, V(0) when it is gone, null on KV v1.
      type: int
      sample: 4
    fields:
      description: Names of the fields that this task manages.
      type: list
      elements: str
      sample: [db_password]
    fields_added:
      description: Names of the fields that the readers did not find before.
      type: list
      elements: str
      sample: []
    fields_changed:
      description: Names of the fields that had another value.
      type: list
      elements: str
      sample: [db_password]
    fields_removed:
      description: Names of the fields that were taken away.
      type: list
      elements: str
      sample: []
    migrated:
      description: Whether a flat KV v1 entry, which no reader could read, was given its inner C(data).
      type: bool
      sample: false
    remains:
      description: What a removal had to leave, as sentences.
      type: list
      elements: str
      sample: []
policy:
  description: What became of the agent's policy and token.
  returned: when O(agent_token_policy) is given
  type: dict
  contains:
    policy:
      description: Name of the policy.
      type: str
      sample: muster-stacker-5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
    policy_action:
      description: What was done about the policy.
      type: str
      choices: [unchanged, created, updated, removed, absent]
      sample: created
    token_action:
      description: What was done about the token.
      type: str
      choices: [kept, renewed, minted, removed, absent]
      sample: minted
    why:
      description: Why a token had to be minted, empty otherwise.
      type: str
      sample: the host has none yet
    changed:
      description: Whether any of it is a change. Renewing a token is none.
      type: bool
      sample: true
"""
