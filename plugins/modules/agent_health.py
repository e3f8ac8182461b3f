#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_health
short_description: Pass an agent only when it runs, is accepted and was seen
version_added: 1.0.0
description:
  - The gate at the end of a deployment. It waits until the agent's units are up and stay up, its health endpoint is content, the control plane
    accepts its credential, and the control plane has seen it since its process started.
  - When all of that holds, the host's receipt becomes C(COMMITTED). When it does not within the time given, the task fails with the first reason, and
    shows the end of the units' journal with secrets removed.
  - The controller uses the credential in a call that changes nothing, so that being seen is always the running agent's own doing.
  - What an agent or control plane does not tell is not judged, and the checks say so.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - requests and cryptography on the controller
  - Python 3.9 and systemd 247 or later on the host
attributes:
  check_mode:
    support: full
    details:
      - Looks once, writes nothing, and succeeds whatever it finds, since a deployment in check mode has started nothing.
  diff_mode:
    support: none
    details:
      - All it writes is that the agent proved itself.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.control_plane
  - muster.agents.transport
  - muster.agents.store
options:
  name:
    description: The name the agent is enrolled under, as given to M(muster.agents.agent_register).
    type: str
    required: true
  certificate_path:
    description:
      - Path of the agent's client certificate on the host, for control planes whose agents prove themselves by one. The host then tries the pair
        against the control plane, since the key never leaves it.
    type: str
  key_path:
    description: Path on the host of the private key that belongs to O(certificate_path).
    type: str
  units:
    description:
      - The agent's systemd units, the one that talks to the control plane first. C(.service) is added to a name without a suffix.
      - Leave it out for an agent that systemd does not run.
    type: list
    elements: str
    default: []
  health_url:
    description:
      - The agent's health endpoint as the host sees it, such as V(http://127.0.0.1:5000/health). The process that answers there must belong to one
        of O(units).
      - Leave it out for an agent that has none.
    type: str
  health_status:
    description: What C(status) in the health document must be. With an empty string any successful answer will do.
    type: str
    default: ok
  vault_enabled:
    description:
      - Whether the agent reads its token from Vault. If so, C(last_refresh_ok) in the health document must be V(true), and a token must not get
        older than O(token_age_max).
    type: bool
    default: false
  token_age_max:
    description:
      - Oldest token to accept, in seconds since the agent refreshed it. It is not judged for agents that count C(token_age_seconds) from their own
        start.
    type: int
    default: 600
  seen:
    description: Whether the control plane must have seen the agent since its process started.
    type: bool
    default: true
  attempts:
    description:
      - Together with O(delay) the time that the agent has. The whole gate takes at most O(attempts) times O(delay) seconds, 20 by default, and ends as
        soon as everything is good.
      - It looks more often than this within that time, which is also why O(retries) is not used here.
    type: int
    default: 10
  delay:
    description: See O(attempts). In seconds.
    type: float
    default: 2.0
  journal_lines:
    description: How many lines of the units' journal to show when the gate stays red.
    type: int
    default: 40
  warning_days:
    description:
      - Days before the credential's end from which on RV(lifetime.verdict) is V(warning). It is told and does not make the gate red.
      - With neither this nor any of the other three, 30 days; a third of the lifetime for a credential that lives for less than 90 days.
    type: float
  critical_days:
    description:
      - Days before the credential's end from which on RV(lifetime.verdict) is V(critical).
      - With none of the four, 7 days; a tenth of the lifetime for a credential that lives for less than 90 days.
    type: float
  warning_percent:
    description: Percentage of the credential's lifetime that is left from which on RV(lifetime.verdict) is V(warning).
    type: float
  critical_percent:
    description: Percentage of the credential's lifetime that is left from which on RV(lifetime.verdict) is V(critical).
    type: float
  commit:
    description:
      - Whether the receipt is to say what was found. With V(false) it is only a look.
    type: bool
    default: true
notes:
  - The host's part needs root. Set C(become) where the connection is not root's.
seealso:
  - module: muster.agents.agent_register
  - module: muster.agents.agent_probe
"""

EXAMPLES = r"""
- name: Pass the agent when it works
  muster.agents.agent_health:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ agent_name }}"
    units: [status-panel]
    health_url: http://127.0.0.1:5000/health
  become: true

- name: Give a slow agent of two units, which refreshes its token from Vault, two minutes
  muster.agents.agent_health:
    control_plane: stacker
    url: https://stacker.example.com
    ca_cert: /etc/ssl/certs/company-ca.pem
    name: "{{ agent_name }}"
    units: [status-panel, status-panel-api]
    health_url: http://127.0.0.1:5000/health
    vault_enabled: true
    token_age_max: 300
    attempts: 60
    delay: 2
    journal_lines: 100
  become: true

- name: Look at an agent without writing anything
  muster.agents.agent_health:
    control_plane: stacker
    url: https://stacker.example.com
    name: "{{ agent_name }}"
    units: [status-panel]
    attempts: 0
    commit: false
  become: true

- name: Stop the agent when it does not prove itself
  block:
    - name: Pass the agent when it works
      muster.agents.agent_health:
        control_plane: stacker
        url: https://stacker.example.com
        name: "{{ agent_name }}"
        units: [status-panel]
        health_url: http://127.0.0.1:5000/health
      become: true
      register: gate
  rescue:
    - name: Stop the unit
      ansible.builtin.systemd_service:
        name: status-panel.service
        state: stopped
      become: true

    - name: Say why
      ansible.builtin.fail:
        msg: "{{ gate.msg }} The unit was stopped. {{ gate.journal | default([]) | join('\n') }}"
"""

RETURN = r"""
action:
  description:
    - V(committed) when the receipt was brought to say that the agent proved itself, V(unchanged) when it said so already, V(checked) when nothing
      was to be written or the gate stayed red.
  returned: when the agent could be looked at
  type: str
  choices: [committed, unchanged, checked]
  sample: committed
reason:
  description:
    - V(ok), or the first thing that is wrong, as a stable key.
    - Of the host, V(unit_not_found), V(unit_masked), V(unit_failed), V(unit_exits), V(unit_flapping), V(unit_starting), V(unit_inactive),
      V(port_taken), V(no_answer), V(status_not_ok), V(refresh_failed) and V(token_stale).
    - Of the credential, V(not_enrolled), V(unfinished), V(credential_refused), V(credential_pending) and V(credential_unclear).
    - Of the control plane, V(not_seen), V(unreachable), V(unresolvable), V(refused), V(untrusted), V(throttled) and V(server_fault).
  returned: always
  type: str
  sample: ok
msg:
  description: One sentence for people. On failure it says what to do.
  returned: always
  type: str
  sample: 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10 is well and committed.
name:
  description: The name the agent is enrolled under.
  returned: when the agent could be looked at
  type: str
  sample: 5b0c8e8e-7a5d-5c8e-9d1f-0d9e2b8f5a10
checks:
  description: Everything that was judged, and what was not.
  returned: when the agent could be looked at
  type: list
  elements: dict
  contains:
    name:
      description: What was looked at.
      type: str
      sample: unit status-panel.service
    ok:
      description: Whether it is good.
      type: bool
      sample: true
    reason:
      description: V(ok), or what is wrong, out of the keys of RV(reason).
      type: str
      sample: ok
    detail:
      description: The same in words, with secrets removed.
      type: str
      sample: active (running) for 12 s.
    skipped:
      description: Whether it was not judged. RV(checks[].detail) says why.
      type: bool
      sample: false
health:
  description: The agent's health document with secrets removed, null when there is none.
  returned: when the agent could be looked at
  type: dict
  sample:
    status: ok
    token_age_seconds: 12
    last_refresh_ok: true
last_seen:
  description: When the control plane last saw the agent, in ISO 8601 by the server's clock, empty when that was not asked or is not told.
  returned: when the agent could be looked at
  type: str
  sample: '2026-01-01T12:00:05Z'
lifetime:
  description: From when to when the credential on the host is good, as it says itself; null for one that does not end or does not tell.
  returned: when the agent could be looked at
  type: dict
  contains:
    issued_at:
      description: When it was issued, in ISO 8601, empty when it does not tell.
      type: str
      sample: '2026-01-01T12:00:00Z'
    expires_at:
      description: When it ends, in ISO 8601.
      type: str
      sample: '2027-01-01T12:00:00Z'
    days_left:
      description: Days until then by the control plane's clock, negative when it has ended.
      type: float
      sample: 364.5
    percent_left:
      description: Percentage of its lifetime that is left, null when it does not tell its beginning.
      type: float
      sample: 99.9
    verdict:
      description: V(ok), or what O(warning_days), O(critical_days) and their percentages make of it, or V(expired).
      type: str
      sample: ok
units:
  description: The units as systemd knows them, as described in RV(muster.agents.agent_probe#module:units).
  returned: when the agent could be looked at
  type: list
  elements: dict
  sample:
    - name: status-panel.service
      load_state: loaded
      active_state: active
      sub_state: running
      result: success
      exit_status: 0
      main_pid: 4711
      restarts: 0
      uptime: 12.3
      started: 1767225600.5
journal:
  description: The last lines of the units' journal, with secrets removed.
  returned: when the gate stayed red
  type: list
  elements: str
  sample:
    - Started status-panel.service.
    - "config: AGENT_TOKEN=<secret>"
pending_restart:
  description: Whether the agent has still to be restarted to read what was delivered to it.
  returned: when the agent could be looked at
  type: bool
  sample: false
previously_committed:
  description: Whether it had passed the gate before this run, which tells an upgrade from a first installation.
  returned: when the agent could be looked at
  type: bool
  sample: false
duration:
  description: Seconds that the gate took.
  returned: when the agent could be looked at
  type: float
  sample: 2.41
"""
