#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_config
short_description: Render an agent's configuration with its credentials
version_added: 1.0.0
description:
  - Renders your own templates for an enrolled agent, as environment file, TOML, JSON, YAML or plain text, and delivers them to the host.
  - The credentials come from the host's store, where M(muster.agents.agent_register) put them. Only the templates know them, they are not
    variables of the play, and they are never returned or shown. On a host without an enrolment templates know O(secrets) alone.
  - All files are rendered and checked, by their format on the controller and by O(files[].validate) on the host, before the first one is
    replaced.
  - The control plane is not asked anything.
author:
  - muster.agents contributors (@muster-agents)
attributes:
  check_mode:
    support: full
    details:
      - Renders and compares. O(files[].validate) is not run, since nothing is written to the host.
  diff_mode:
    support: full
    details:
      - Shows files with C(<generation N>) in the place of secrets, and of files that somebody else wrote only the names of their keys.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.identity
  - muster.agents.store
  - muster.agents.secrets
  - muster.agents.files
options:
  control_plane:
    description: The kind of control plane the agent is enrolled with.
    type: str
    required: true
    choices: [stacker, pganalytics, kubeatlas, oxmon]
  url:
    description:
      - Address of the control plane, as templates know it in C(muster_agent.url). By default the one the agent is enrolled at.
    type: str
  state:
    description:
      - V(present) renders the files and makes the host have them. It needs O(files).
      - V(restored) puts the files back that stood there when the agent last passed M(muster.agents.agent_health), with their owners and modes.
        Without such files nothing happens. What O(files) says does not matter.
      - V(absent) removes O(files), or without them all files that were delivered for this agent. The credentials in the store stay.
    type: str
    choices: [present, restored, absent]
    default: present
notes:
  - The host's part needs root. Set C(become) where the connection is not root's.
seealso:
  - module: muster.agents.agent_register
  - plugin: muster.agents.env_quote
    plugin_type: filter
  - plugin: muster.agents.toml_quote
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Render the agent's environment file
  muster.agents.agent_config:
    control_plane: stacker
    name: "{{ agent_name }}"
    version: 1.0.0
    files:
      - path: /opt/agent/.env
        src: agent.env.j2
        format: env
  become: true
  register: configured

# templates/agent.env.j2
#   AGENT_ID={{ muster_agent.agent_id | muster.agents.env_quote }}
#   AGENT_TOKEN={{ muster_secret.token | muster.agents.env_quote }}
#   {% if muster_secret.vault_token is defined %}
#   VAULT_TOKEN={{ muster_secret.vault_token | muster.agents.env_quote }}
#   {% endif %}

- name: Render several files for an unprivileged agent, with a secret of one's own, checked by the agent itself
  muster.agents.agent_config:
    control_plane: stacker
    name: "{{ agent_name }}"
    secrets:
      - name: database
        file: ~/.config/muster/database-password
    files:
      - path: /etc/agent/agent.toml
        src: agent.toml.j2
        format: toml
        owner: root
        group: agent
        mode: "0640"
        directory_mode: "0750"
        validate: /usr/local/bin/agent check --config %s
      - path: /etc/agent/token
        content: "{% raw %}{{ muster_secret.token }}{% endraw %}"
        group: agent
        mode: "0640"
        restart: false
  become: true

# templates/agent.toml.j2
#   [auth]
#   token = {{ muster_secret.token | muster.agents.toml_quote }}
#   [database]
#   password = {{ muster_secret.database | muster.agents.toml_quote }}

- name: Change the configuration, and go back when the agent does not like it
  block:
    - name: Render the new configuration
      muster.agents.agent_config:
        control_plane: stacker
        name: "{{ agent_name }}"
        files: "{{ agent_files }}"
      become: true
      register: configured

    - name: Restart the agent
      ansible.builtin.systemd_service:
        name: status-panel.service
        state: restarted
      become: true
      when: configured.pending_restart
  rescue:
    - name: Put the former files back
      muster.agents.agent_config:
        control_plane: stacker
        name: "{{ agent_name }}"
        state: restored
      become: true

    - name: Say what was wrong with the new ones
      ansible.builtin.fail:
        msg: "{{ configured.msg }} The former files are back."
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be.
  returned: success
  type: str
  choices: [unchanged, delivered, restored, removed]
  sample: delivered
reason:
  description:
    - Why, as a stable key. On success one of V(content_differs), V(leftovers) (what an interrupted run left was cleared away), V(up_to_date),
      V(previous_restored), V(nothing_to_restore), V(files_removed) and V(nothing_to_remove).
    - On failure what is wrong, such as V(invalid_input), V(unknown_secret), V(undefined_variable), V(invalid_template), V(invalid_content),
      V(render_failure), V(busy), V(not_writable), V(disk_full) and V(become_failed).
  returned: always
  type: str
  sample: content_differs
msg:
  description: One sentence for people. On failure it says what to do, and never quotes a template or a value.
  returned: always
  type: str
  sample: 'Template agent.env.j2 at line 2: muster_secret.tokn does not exist; known here: token, vault_token; add yours under secrets.'
files:
  description: Each file that this task is about.
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
"""
