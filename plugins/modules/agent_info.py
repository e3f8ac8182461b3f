#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_info
short_description: Ask a control plane what it knows of its agents
version_added: 1.0.0
description:
  - Tells what the control plane knows of one agent or of all of them, and whether the control plane can be used at all.
  - It fails when the control plane cannot be reached or trusted, or when its clock and the controller's are more than 300 seconds apart. That
    makes it the check to run once for a whole play, before anything is changed.
  - It only reads. The host is not visited.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests and cryptography on the controller
attributes:
  check_mode:
    support: full
    details:
      - It only reads.
  diff_mode:
    support: none
    details:
      - It changes nothing.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.control_plane
  - muster.agents.transport
options:
  name:
    description:
      - The agent to ask for. Without it all agents are listed, where the control plane offers that; V(stacker) does not, and RV(agents) is
        empty then.
      - V(stacker) shows an agent only to itself and to O(admin_token). Without that it is not found.
    type: str
seealso:
  - module: muster.agents.agent_register
  - module: muster.agents.agent_health
"""

EXAMPLES = r"""
- name: Make sure once for the whole play that the control plane can be used
  muster.agents.agent_info:
    control_plane: stacker
    url: https://stacker.example.com
  run_once: true
  any_errors_fatal: true

- name: Look at one agent over a private CA, with a pinned certificate
  muster.agents.agent_info:
    control_plane: stacker
    url: https://stacker.example.com
    ca_cert: /etc/ssl/certs/company-ca.pem
    pin_sha256: 5c:0f:0d:f9:71:34:91:a2:9c:6e:0b:7f:21:62:e5:3d:6a:11:5a:90:47:73:2e:4b:1c:c8:ab:00:7d:35:9f:e4
    admin_token_file: ~/.config/muster/stacker-admin-token
    name: "{{ agent_name }}"
  register: known

- name: Stop when it was never seen
  ansible.builtin.assert:
    that:
      - known.agents | length == 1
      - known.agents[0].last_seen | length > 0
    fail_msg: "{{ known.msg }}"

- name: Go on without the control plane, and say why
  block:
    - name: Ask the control plane
      muster.agents.agent_info:
        control_plane: stacker
        url: https://stacker.example.com
        retries: 0
      register: known
  rescue:
    - name: Say why it cannot be used
      ansible.builtin.debug:
        msg: "{{ known.reason }}: {{ known.msg }}"
"""

RETURN = r"""
agents:
  description: What the control plane knows, one item for each agent. Empty when it knows or tells of none.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name the agent is enrolled under.
      type: str
      sample: 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
    agent_id:
      description: The id that the control plane gave it.
      type: str
      sample: 0d3f7c3e-6c2b-4b63-9d5c-2f6f3a1f8a11
    version:
      description: Version of the agent, as the control plane was told.
      type: str
      sample: 1.0.0
    status:
      description: What the control plane says of its state, in its own words.
      type: str
      sample: online
    capabilities:
      description: What the agent can do, as the control plane was told.
      type: list
      elements: str
      sample: [docker, compose, logs]
    system_info:
      description: What the control plane was told about the machine.
      type: dict
      sample:
        os: linux
        arch: x86_64
    last_seen:
      description: When the agent was last seen, in ISO 8601, empty when it never was or the control plane does not tell.
      type: str
      sample: '2026-01-01T12:00:05Z'
    registered_at:
      description: When it was registered, in ISO 8601, empty when the control plane does not tell.
      type: str
      sample: '2026-01-01T12:00:00Z'
    reports:
      description: How much the agent has delivered (metrics or batches, as the control plane counts them), null when it does not tell.
      type: int
      sample: 1450
    details:
      description: What else this control plane tells of its agents, under its own names.
      type: dict
      sample: {}
server:
  description: The control plane itself, as far as it is known. On failure too.
  returned: always
  type: dict
  contains:
    url:
      description: Its address.
      type: str
      sample: https://stacker.example.com
    reachable:
      description: Whether it answered.
      type: bool
      sample: true
    version:
      description: Its version, empty when it tells none.
      type: str
      sample: 2.0.0
    api_versions:
      description: Versions of its interface that it offers to agents, empty when it tells none.
      type: list
      elements: str
      sample: []
    clock_skew:
      description: Seconds by which its clock is ahead of the controller's, null when it tells no time.
      type: float
      sample: 0.3
    enforced:
      description: Whether it refuses agents that show no valid credential, null when it does not tell.
      type: bool
      sample: true
reason:
  description:
    - V(ok), V(not_found) when the agent asked for is not shown, V(list_unsupported) when there is no list of all agents.
    - On failure a stable key, such as V(invalid_input), V(unreachable), V(unresolvable), V(refused), V(untrusted), V(clock_skew), V(throttled),
      V(bad_bootstrap) and V(server_fault).
  returned: always
  type: str
  sample: ok
msg:
  description: One sentence for people. On failure it says what to do.
  returned: always
  type: str
  sample: https://stacker.example.com knows 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10.
"""
