#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: registration_secret
short_description: Make and revoke the secrets that buy enrolments
version_added: 1.0.0
description:
  - Makes a registration secret at a control plane that manages them, and keeps its value in Vault or in a file on the controller. Revokes it again.
  - The control plane shows a value once, so it is stored before anything else is done, and never shown or returned. When it cannot be stored the
    secret is revoked again.
  - Needs the login of an administrator, O(username) with O(password) or O(admin_token).
  - V(pganalytics) manages registration secrets as it ships; its guide knows a fixed one only. Other control planes have none.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests, cryptography and pyjwt on the controller; hvac for Vault
attributes:
  check_mode:
    support: full
    details:
      - It logs in and lists, and changes nothing.
  diff_mode:
    support: none
    details:
      - There is nothing to show but a secret.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.control_plane
  - muster.agents.transport
  - muster.agents.vault
options:
  name:
    description: What the secret is called at the control plane, such as the fleet or the month it is for.
    type: str
    required: true
  state:
    description:
      - V(present) makes sure that a secret of this name is in force and that its value is kept. One that has expired or was switched off is
        replaced.
      - V(absent) revokes every secret of this name, and removes the value from where it was kept. Agents that are enrolled keep working.
    type: str
    choices: [present, absent]
    default: present
  expires_at:
    description:
      - When a new secret loses its force, such as V(2027-01-31T00:00:00Z). Without it never.
      - Control planes do not change that for a secret that exists; a difference is told in a warning.
    type: str
  dest:
    description:
      - File on the controller to keep the value in, written with mode 0600 in one step. Use it as O(registration_secret_file) in other tasks.
      - In an execution environment choose a place that outlives the job, or use O(vault).
    type: path
seealso:
  - module: muster.agents.agent_register
"""

EXAMPLES = r"""
- name: Make a secret for the next deployment, for one month
  muster.agents.registration_secret:
    control_plane: pganalytics
    url: https://api.example.com
    username: automation
    password_file: /etc/ansible/pganalytics-password
    name: fleet-europe
    expires_at: "2099-01-31T00:00:00Z"
    dest: /etc/ansible/pganalytics-registration-secret
  run_once: true

- name: Keep it in Vault instead
  muster.agents.registration_secret:
    control_plane: pganalytics
    url: https://api.example.com
    username: automation
    password_file: /etc/ansible/pganalytics-password
    name: fleet-europe
    vault:
      url: https://vault.example.com:8200
      auth_method: approle
      role_id: 5d1f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
      secret_id_file: ~/.config/muster/secret-id
    vault_paths:
      - path: secret/data/pganalytics/registration
        fields:
          secret: registration_secret
  run_once: true

- name: See which secrets there are, and go on where none are managed
  block:
    - name: List them
      muster.agents.registration_secret:
        control_plane: pganalytics
        url: https://api.example.com
        admin_token_file: ~/.config/muster/pganalytics-admin-token
        name: fleet-europe
        state: absent
      check_mode: true
      register: known
  rescue:
    - name: Say why not
      ansible.builtin.debug:
        msg: "{{ known.reason }}: {{ known.msg }}"

- name: Revoke it after the deployment
  muster.agents.registration_secret:
    control_plane: pganalytics
    url: https://api.example.com
    username: automation
    password_file: /etc/ansible/pganalytics-password
    name: fleet-europe
    dest: /etc/ansible/pganalytics-registration-secret
    state: absent
  run_once: true
"""

RETURN = r"""
action:
  description: What was done, or would be done in check mode. One of C(created), C(replaced), C(unchanged), C(revoked), C(absent).
  returned: success
  type: str
  sample: created
reason:
  description: Why, as a stable key. After a failure its kind, such as C(value_lost), C(bad_bootstrap) or C(unsupported).
  returned: always
  type: str
  sample: not_there
msg:
  description: The same in a sentence.
  returned: always
  type: str
  sample: Made fleet-europe at https://api.example.com.
name:
  description: The name of the secret.
  returned: success
  type: str
  sample: fleet-europe
url:
  description: The control plane.
  returned: success
  type: str
  sample: https://api.example.com
dest:
  description: The file that keeps the value, empty for none.
  returned: success
  type: str
  sample: /etc/ansible/pganalytics-registration-secret
registration_secrets:
  description: Every secret that the control plane manages, without its value.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: What it is called.
      type: str
      sample: fleet-europe
    id:
      description: The id that the control plane gave it.
      type: str
      sample: 0d3f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
    active:
      description: Whether it is switched on.
      type: bool
      sample: true
    created_at:
      description: When it was made.
      type: str
      sample: "2026-02-25T10:10:00Z"
    expires_at:
      description: When it loses its force, empty for never.
      type: str
      sample: "2099-01-31T00:00:00Z"
    uses:
      description: How many registrations it was used for.
      type: int
      sample: 12
"""
