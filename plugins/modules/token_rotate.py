#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: token_rotate
short_description: Replace an agent's credential by a new one, or put the old one back
version_added: 1.0.0
description:
  - Replaces the credential of an enrolled agent on the host, in the files that the agent reads, in Vault and at the control plane. They move together
    or not at all. No secret is returned, shown or passed through a variable.
  - The new credential lies on the host beside the old one before anybody else has it. It is proved by use, delivered, and then the running agent has to
    prove itself with it. When that fails, Vault, files and process go back to the old one, and the task fails and says at which step.
  - Where the control plane lets both be valid for a while, the old one is retired only after the agent has proved itself. Where it does not, the agent is
    without access between the change and its nudge.
  - A run that dies at any point is finished by the next one, of this module or of M(muster.agents.agent_register).
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests and cryptography on the controller
  - hvac on the controller, when O(vault) is given
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan, that is whether it would rotate, why, in which steps, and whether the old credential could be put back. It sends only reads.
  diff_mode:
    support: full
    details:
      - Shows rendered files with C(<generation N>) in the place of secrets, and of Vault only versions and names.
  idempotent:
    support: partial
    details:
      - With O(when=always) each run rotates. Otherwise a second run finds the new credential not due and changes nothing.
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.control_plane
  - muster.agents.transport
  - muster.agents.identity
  - muster.agents.store
  - muster.agents.secrets
  - muster.agents.files
  - muster.agents.vault
  - muster.agents.rotation
options:
  name:
    description:
      - The name the agent is enrolled under, as given to M(muster.agents.agent_register). Give this or O(agents).
    type: str
    required: false
notes:
  - The host's part needs root. Set C(become) where the connection is not root's.
  - Give O(files) as M(muster.agents.agent_register) has them, or the agent keeps reading the old credential there.
  - An agent whose key is made on its host (KubeAtlas) needs O(certificate), since a rotation is a new pair there. Its older record stays at the control
    plane, which has no call that removes one, and is named in a warning.
  - Stacker's agents are rotated through Vault, where that control plane looks tokens up, so O(vault) and O(vault_paths) are needed for them.
seealso:
  - module: muster.agents.agent_register
  - module: muster.agents.agent_health
  - module: muster.agents.cert_issue
  - module: muster.agents.vault_token_store
"""

EXAMPLES = r"""
- name: Rotate a token that is older than 90 days
  muster.agents.token_rotate:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ agent_name }}"
    max_age: 90
    units: [status-panel]
    health_url: http://127.0.0.1:5000/health
    files:
      - path: /opt/agent/.env
        src: agent.env.j2
        format: env
    vault:
      url: https://vault.example.com:8200
      token_file: /run/secrets/vault-token
    vault_paths:
      - path: "status_panel/{{ agent_name }}/token"
        fields:
          token: token
  become: true

- name: Rotate the pair of a cluster agent before it ends
  muster.agents.token_rotate:
    control_plane: kubeatlas
    url: https://kubeatlas.example.com
    issuer_url: https://keycloak.example.com/realms/kubeatlas
    client_id: kubeatlas-backend
    client_secret_file: /etc/ansible/kubeatlas-client-secret
    name: "{{ agent_name }}"
    service_type: controller
    when: [days_left]
    units: [kubeatlas-agent.service]
    certificate_path: /etc/kubeatlas/certs/agent.crt
    key_path: /etc/kubeatlas/certs/agent.key
    certificate:
      issuer: own_ca
      own_ca:
        certificate: /etc/ansible/pki/agents-ca.pem
        key: /etc/ansible/pki/agents-ca.key
      subject:
        CN: "controller-{{ agent_name }}"
  become: true

- name: Rotate the tokens of the whole play through Vault, in one task
  muster.agents.token_rotate:
    control_plane: stacker
    url: https://stacker.example.com
    when: [always]
    connections: 32
    vault:
      url: https://vault.example.com:8200
      token_file: /run/secrets/vault-token
    agents:
      - name: 6c84fb90-12c4-11e1-840d-7b25c5ee775a
        vault_paths:
          - path: secret/data/status_panel/6c84fb90-12c4-11e1-840d-7b25c5ee775a/token
            fields:
              token: token
  run_once: true

- name: Rotate now, and say what happened when the old token had to be put back
  block:
    - name: Rotate in any case
      muster.agents.token_rotate:
        control_plane: stacker
        url: https://stacker.example.com
        name: "{{ agent_name }}"
        when: [always]
        units: [status-panel]
        vault:
          url: https://vault.example.com:8200
          token_file: /run/secrets/vault-token
        vault_paths:
          - path: "status_panel/{{ agent_name }}/token"
            fields:
              token: token
      become: true
      register: rotation
  rescue:
    - name: Say at which step it failed and whether the agent works
      ansible.builtin.fail:
        msg: >-
          {{ rotation.msg }} Step: {{ rotation.failed_step | default('none') }}, rolled back: {{ rotation.rolled_back | default(false) }}.
"""

RETURN = r"""
action:
  description:
    - What was done. V(planned) in check mode, V(adopted) when Vault held a credential that somebody else had made, V(resumed) when an interrupted
      rotation was finished, V(retired) when only what was left of an older credential was removed, V(untouched) when too many others failed before.
  returned: when the agent could be looked at
  type: str
  choices: [rotated, unchanged, planned, adopted, resumed, retired, rolled_back, failed, untouched]
  sample: rotated
reason:
  description: Why, as a stable word; on failure what failed.
  returned: always
  type: str
  sample: age
msg:
  description: The same as a sentence. On failure it names the step that failed and says whether the agent works with its old credential again.
  returned: always
  type: str
  sample: agent-1 has a new credential at https://stacker.example.com, and its agent works with it. It is 91.0 days old, and 90 are allowed.
plan:
  description: What was found to be due before anything was done.
  returned: with O(name)
  type: dict
  contains:
    due:
      description: Whether a rotation is due.
      returned: always
      type: bool
      sample: true
    reason:
      description: The condition that holds, or V(not_due).
      returned: always
      type: str
      sample: age
    why:
      description: The same as a sentence.
      returned: always
      type: str
      sample: It is 91.0 days old, and 90 are allowed.
    restorable:
      description: Whether the old credential can be put back when the new one does not do.
      returned: always
      type: bool
      sample: true
    steps:
      description: The steps in their order.
      returned: always
      type: list
      elements: str
      sample: [stage, vault, prove, deliver, restart, gate]
steps:
  description: The steps that were taken.
  returned: with O(name)
  type: list
  elements: dict
  contains:
    step:
      description: Name of the step.
      returned: always
      type: str
      sample: vault
    outcome:
      description: What came of it.
      returned: always
      type: str
      sample: 2 entries written
failed_step:
  description: The step that did not come to its end.
  returned: when a rotation fails after it began
  type: str
  sample: gate
rolled_back:
  description: Whether host, Vault and process work with the old credential again.
  returned: when a rotation fails after it began
  type: bool
  sample: true
name:
  description: The identity.
  returned: with O(name)
  type: str
  sample: 6c84fb90-12c4-11e1-840d-7b25c5ee775a
control_plane:
  description: The kind of control plane.
  returned: with O(name)
  type: str
  sample: stacker
url:
  description: The control plane.
  returned: with O(name)
  type: str
  sample: https://stacker.example.com
agent_id:
  description: The id that the control plane gave the agent.
  returned: with O(name)
  type: str
  sample: 5f7f3b4e-0a8f-4f43-9d7c-6d5ad1a1e0d4
generation:
  description: Number of the credential in use on this host.
  returned: with O(name)
  type: int
  sample: 2
phase:
  description: What the receipt on the host says.
  returned: with O(name)
  type: str
  sample: COMMITTED
fingerprints:
  description: Keyed fingerprints of the secrets on the host, by name; the key stays there.
  returned: with O(name)
  type: dict
  sample: {"token": "3f9a1c0b77de"}
retire_pending:
  description: What is left of older credentials at the control plane and is removed by the next run.
  returned: with O(name)
  type: list
  elements: str
  sample: []
store:
  description: The identity's folder on the host.
  returned: with O(name)
  type: str
  sample: /var/lib/muster/stacker/6c84fb90-12c4-11e1-840d-7b25c5ee775a
vault:
  description: What was done to each entry in Vault, without values.
  returned: with O(name)
  type: list
  elements: dict
  sample: [{"path": "status_panel/agent-1/token", "changed": true, "fields": ["token"], "version": 4}]
files:
  description: The rendered files and whether each changed.
  returned: with O(name)
  type: list
  elements: dict
  sample: [{"path": "/opt/agent/.env", "changed": true}]
gate:
  description: What the running agent proved.
  returned: with O(name)
  type: dict
  sample: {"last_seen": "2026-01-01T00:00:00Z", "duration": 1.2}
pending_restart:
  description: Whether the agent still has to be restarted to read its newest files.
  returned: with O(name)
  type: bool
  sample: false
campaign:
  description: Who is done and who failed in O(campaign) so far, by name.
  returned: with O(campaign)
  type: dict
  sample: {"done": ["agent-1"], "failed": []}
results:
  description: What became of each of O(agents), by name. The task fails when one of them failed; the others are done all the same.
  returned: with O(agents)
  type: dict
  sample: {"agent-1": {"action": "rotated", "reason": "due", "changed": true, "failed": false, "versions": {"secret/data/agent-1/token": 4}}}
counts:
  description: How many of O(agents) came to which end.
  returned: with O(agents)
  type: dict
  sample: {"rotated": 998, "rolled_back": 1, "failed": 0, "untouched": 0, "unchanged": 1, "repaired": 0, "planned": 0}
duration:
  description: How long it took, in seconds.
  returned: always
  type: float
  sample: 1.84
"""
