#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_register
short_description: Enrol an agent with its control plane, or withdraw it
version_added: 1.0.0
description:
  - Enrols one identity once, before the agent is deployed, and keeps its credential on the host, in the files that the agent reads and, if asked,
    in Vault or OpenBao. No secret is returned, shown or passed through a variable.
  - The credential that exists already is looked for first, on the host, in files of an earlier tool and in Vault, and is kept if the control plane
    accepts it. So running it again changes nothing and sends no request that changes anything.
  - A run that dies at any point is finished by the next one. A registration whose answer was lost is never repeated blindly.
  - The control plane and Vault are asked from the controller. The host needs a POSIX shell or Python 3.9, and no library.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests and cryptography on the controller
  - hvac on the controller, when O(vault) is given
attributes:
  check_mode:
    support: full
    details:
      - Asks the control plane, Vault and the host, and writes nothing anywhere. A wrapped secret id is used up by the login to Vault.
  diff_mode:
    support: full
    details:
      - Shows rendered files with C(<generation N>) in the place of secrets, and of files that somebody else wrote only the names of their keys.
      - Shows of the receipt and of Vault only versions, names and keyed fingerprints.
  idempotent:
    support: full
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
  - muster.agents.agent_token_policy
options:
  state:
    description:
      - V(present) makes sure that the identity is enrolled and that host and Vault hold a credential that the control plane accepts.
      - V(absent) removes the entries in Vault, what the control plane lets one remove, the rendered files and the host's store, in this order.
        What has to stay is named in RV(remains).
    type: str
    choices: [present, absent]
    default: present
  adopt_from:
    description:
      - Files on the host where an earlier tool may have left this agent's credential. One that the control plane accepts is taken over, and the
        agent keeps its id instead of registering again.
    type: list
    elements: dict
    suboptions:
      path:
        description: The file, or with O(adopt_from[].format=files) the directory, as an absolute path.
        type: str
        required: true
      format:
        description:
          - What the file is written in.
          - V(files) means that O(adopt_from[].path) is a directory with a file for each part of the credential, and that O(adopt_from[].agent_id)
            and O(adopt_from[].secrets) name these files, below the directory or by their full paths.
        type: str
        choices: [env, json, toml, files]
        default: env
      agent_id:
        description:
          - Key under which the file has the agent's id, or the name of the file that holds it. A key inside a table or an object is written
            with dots, such as V(collector.id).
        type: str
        required: true
      secrets:
        description: Name of each issued credential (V(token) with V(control_plane=stacker)), and the key under which the file has it.
        type: dict
        required: true
  adopt:
    description:
      - What to do when the control plane knows O(name) already and this host holds no credential of it, as after a reinstallation. Such a name
        may be this host's own from before, or another host's by mistake, which would then lose its credential or share it.
      - V(never) fails. V(stale) takes the identity over if the control plane has not seen its agent for O(adopt_after) seconds. V(always) takes it
        over whoever uses it.
    type: str
    choices: [never, stale, always]
    default: stale
  adopt_after:
    description: Seconds without a sign of life after which an identity counts as given up, for O(adopt=stale).
    type: float
    default: 3600.0
  refresh_at:
    description:
      - Share of a credential's life (between 0 and 1) after which it is exchanged for a fresh one, for control planes whose credentials expire and
        can be exchanged. It is a change, and the files that hold it are rendered again.
    type: float
    default: 0.67
  settle_timeout:
    description:
      - Seconds to wait until the control plane accepts the credential that it has just issued. Servers that keep tokens in a Vault of their own may
        write it there late.
    type: float
    default: 10.0
  lease:
    description:
      - Seconds for which a run keeps other controllers away from this identity. It ends with the run; the time counts only after a crash.
    type: int
    default: 60
notes:
  - The host's part needs root. Set C(become) where the connection is not root's.
  - O(vault) and O(vault_paths) go together, and O(agent_token_policy) needs both.
  - Answers to a registration wait in a spool below Ansible's home on the controller (mode 0600) until the host has them, so that a host
    that breaks down in between loses nothing.
seealso:
  - module: muster.agents.agent_health
  - module: muster.agents.agent_config
  - module: muster.agents.agent_info
  - module: muster.agents.vault_token_store
"""

EXAMPLES = r"""
- name: Enrol the agent and render its environment file
  muster.agents.agent_register:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ inventory_hostname | ansible.builtin.to_uuid }}"
    version: 1.0.0
    capabilities: [docker, compose, logs]
    files:
      - path: /opt/agent/.env
        src: agent.env.j2
        format: env
  become: true
  register: enrolled

# templates/agent.env.j2
#   AGENT_ID={{ muster_agent.agent_id | muster.agents.env_quote }}
#   AGENT_TOKEN={{ muster_secret.token | muster.agents.env_quote }}
#   DEPLOYMENT_HASH={{ muster_agent.name | muster.agents.env_quote }}
#   DASHBOARD_URL={{ muster_agent.url | muster.agents.env_quote }}

- name: Take over what the guide's own playbook left, keep the token in Vault, and give the agent a Vault token of its own
  muster.agents.agent_register:
    control_plane: stacker
    url: https://stacker.example.com
    ca_cert: /etc/ssl/certs/company-ca.pem
    username: owner@example.com
    password_file: ~/.config/muster/stacker-password
    name: "{{ agent_name }}"
    version: 1.0.0
    adopt_from:
      - path: /opt/agent/.env
        format: env
        agent_id: AGENT_ID
        secrets:
          token: AGENT_TOKEN
      - path: /var/lib/stacker/agent.json
        format: json
        agent_id: agent_id
        secrets:
          token: agent_token
    vault:
      url: https://vault.example.com:8200
      auth_method: approle
      role_id: 5d1f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
      secret_id_file: ~/.config/muster/secret-id
    vault_paths:
      - path: "status_panel/{{ agent_name }}/token"
        fields:
          token: token
      - path: "status_panel/{{ agent_name }}/status_panel_token"
        fields:
          token: token
    agent_token_policy: {}
    secrets:
      - name: ui_password
        file: ~/.config/muster/ui-password
    files:
      - path: /opt/agent/.env
        src: agent.env.j2
        format: env
        group: status-panel
        mode: "0640"
      - path: /opt/agent/config.json
        content: '{"reqdata": {"email": "ops@example.com"}}'
        format: json
  become: true

- name: See what would be done, and what stands in the files
  muster.agents.agent_register:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ agent_name }}"
    version: 1.0.0
    files: "{{ agent_files }}"
  become: true
  check_mode: true
  diff: true

- name: Withdraw the agent
  muster.agents.agent_register:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ agent_name }}"
    vault: "{{ agent_vault }}"
    vault_paths: "{{ agent_vault_paths }}"
    state: absent
  become: true
  register: withdrawn

- name: Show what the control plane does not let one remove
  ansible.builtin.debug:
    var: withdrawn.remains

- name: Enrol, and tell a name that is in use from other failures
  block:
    - name: Enrol
      muster.agents.agent_register:
        control_plane: stacker
        url: https://stacker.example.com
        name: "{{ agent_name }}"
        version: 1.0.0
      become: true
      register: enrolled
  rescue:
    - name: Stop with what has to be done
      ansible.builtin.fail:
        msg: >-
          {{ 'Two hosts share a name. ' if enrolled.reason | default('') == 'identity_conflict' else '' }}{{ enrolled.msg }}
"""

RETURN = r"""
action:
  description:
    - What was done, or in check mode would be.
    - V(registered) is a new record, V(adopted) an existing one taken over with its id, V(reissued) a new credential for it, V(resumed) the end of
      a run that died, V(refreshed) new metadata, V(delivered) files or Vault entries brought up to date.
  returned: success
  type: str
  choices: [unchanged, registered, adopted, reissued, resumed, refreshed, delivered, withdrawn, absent]
  sample: registered
reason:
  description:
    - Why, as a stable key. On success one of V(accepted), V(not_enrolled), V(found_on_host), V(vault_credential), V(known_to_control_plane),
      V(credential_refused), V(name_taken), V(spooled_credential), V(metadata_changed), V(metadata_not_taken) and
      V(withdrawn).
    - On failure what is wrong, such as V(invalid_input), V(unreachable), V(untrusted), V(bad_bootstrap), V(identity_conflict), V(invalid_request),
      V(throttled), V(ambiguous), V(clock_skew), V(issued_credential_refused), V(busy), V(not_writable), V(disk_full), V(become_failed),
      V(unknown_secret), V(undefined_variable), V(invalid_template), V(invalid_content), or one of those of
      M(muster.agents.vault_token_store) for Vault.
  returned: always
  type: str
  sample: not_enrolled
msg:
  description: One sentence for people. On failure it says what to do.
  returned: always
  type: str
  sample: 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10 was enrolled at https://stacker.example.com.
agent_id:
  description: The id that the control plane gave the agent. Empty in check mode before the enrolment.
  returned: success
  type: str
  sample: 0d3f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
name:
  description: The name the agent is enrolled under.
  returned: success
  type: str
  sample: 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
control_plane:
  description: The kind of control plane.
  returned: success
  type: str
  sample: stacker
url:
  description: The control plane's address.
  returned: success
  type: str
  sample: https://stacker.example.com
generation:
  description: Number of the credential on the host, which counts from 1 and grows with each new one.
  returned: when O(state=present) and successful
  type: int
  sample: 1
phase:
  description:
    - How far the enrolment is. V(STORED) is a credential that the control plane accepts and the host holds; M(muster.agents.agent_health) makes it
      V(COMMITTED) once the running agent has proved itself.
  returned: when O(state=present) and successful
  type: str
  sample: STORED
fingerprints:
  description:
    - Fingerprint of each secret on the host, by its name, to compare runs by. They are keyed with a random key of the host, so that nobody can
      test guesses with them.
  returned: when O(state=present) and successful
  type: dict
  sample:
    token: 3f6a0c1d9b2e
server:
  description: What the control plane says of itself.
  returned: when O(state=present) and successful
  type: dict
  contains:
    version:
      description: Its version, empty when it tells none.
      type: str
      sample: 2.0.0
    api_versions:
      description: Versions of its interface that it offers to agents.
      type: list
      elements: str
      sample: ['1.0']
    clock_skew:
      description: Seconds by which its clock is ahead of the controller's.
      type: float
      sample: 0.3
vault:
  description:
    - Each path in Vault with what happened there, without values, as described in RV(muster.agents.vault_token_store#module:vault). Empty without
      O(vault).
  returned: success
  type: list
  elements: dict
  sample:
    - path: status_panel/5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10/token
      mount: status_panel
      kv_version: 1
      changed: true
      version_before:
      version:
      fields: [token]
      fields_added: [token]
      fields_changed: []
      fields_removed: []
      migrated: false
      remains: []
policy:
  description: What became of the agent's own Vault policy and token. Empty without O(agent_token_policy).
  returned: success
  type: dict
  sample:
    policy: muster-stacker-5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
    policy_action: created
    token_action: minted
    why: the host has none yet
    changed: true
files:
  description: Each rendered file, in the order of O(files), or with O(state=absent) each file that was removed.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Where it lies on the host.
      type: str
      sample: /opt/agent/.env
    changed:
      description: Whether its content, owner, group or mode changed.
      type: bool
      sample: true
pending_restart:
  description: Whether the agent must be restarted to read what was delivered, in this run or in one that died before the restart.
  returned: success
  type: bool
  sample: true
previously_committed:
  description: Whether this identity has passed M(muster.agents.agent_health) before, which tells an upgrade from a first installation.
  returned: when O(state=present) and successful
  type: bool
  sample: false
proof:
  description: The last use of the credential by the controller. Such a use changes nothing, not even when the agent was last seen.
  returned: when O(state=present) and successful
  type: dict
  contains:
    accepted:
      description: Whether the control plane accepted it.
      type: bool
      sample: true
    how:
      description: The call it was used in.
      type: str
      sample: notifications
removed:
  description: What was taken away, as sentences.
  returned: when O(state=absent) and successful
  type: list
  elements: str
  sample:
    - File /opt/agent/.env on the host.
remains:
  description: What could not be taken away and why, as sentences.
  returned: when O(state=absent) and successful
  type: list
  elements: str
  sample:
    - >-
      The record of 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10 at https://stacker.example.com: this control plane has no call that removes an agent;
      it shows as offline from now on.
store:
  description: Directory on the host with the receipt and the credentials.
  returned: success
  type: str
  sample: /var/lib/muster/stacker/5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
duration:
  description: Seconds that the task took.
  returned: always
  type: float
  sample: 0.412
"""
