# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the module that rotates credentials (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors ROTATION of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  when:
    description:
      - Conditions of which one is enough to rotate. With none of them fulfilled nothing is changed and no request is sent that changes anything.
      - V(age) rotates a credential that is older than O(max_age), V(days_left) one that ends in less than O(min_days_left), and V(percent_used) one of
        whose life O(max_percent_used) is over. The last two never hold for credentials that do not expire.
      - V(drift) rotates when Vault holds something else than what the control plane accepts.
      - V(always) rotates in any case.
    type: list
    elements: str
    choices: [always, age, days_left, percent_used, drift]
    default: [age, percent_used]
  max_age:
    description: Oldest credential to keep, in days, for O(when=age).
    type: float
    default: 90.0
  min_days_left:
    description: Days that a credential must still be good for, for O(when=days_left).
    type: float
    default: 30.0
  max_percent_used:
    description: Share of its life that a credential may have behind it, in percent, for O(when=percent_used).
    type: float
    default: 67.0
  units:
    description:
      - The agent's systemd units, the one that talks to the control plane first. They are nudged once the new credential is in place, and must be
        well afterwards.
      - Leave it out for an agent that systemd does not run.
    type: list
    elements: str
    default: []
  nudge:
    description:
      - How O(units) are made to read the new credential. V(none) is for agents that fetch it by themselves; give them more time with O(attempts) then.
    type: str
    choices: [restart, reload, none]
    default: restart
  health_url:
    description: The agent's health endpoint as the host sees it, as in M(muster.agents.agent_health).
    type: str
  health_status:
    description: What C(status) in the health document must be. With an empty string any successful answer will do.
    type: str
    default: ok
  vault_enabled:
    description: Whether the agent reads its token from Vault itself, so that its health document has to say that this works.
    type: bool
    default: false
  token_age_max:
    description: Oldest token to accept in the health document, in seconds since the agent refreshed it.
    type: int
    default: 600
  seen:
    description: Whether the control plane must have seen the agent since it got the new credential.
    type: bool
    default: true
  attempts:
    description: Together with O(delay) the time that the agent has to prove itself, as in M(muster.agents.agent_health). After that the rotation is undone.
    type: int
    default: 10
  delay:
    description: See O(attempts). In seconds.
    type: float
    default: 2.0
  journal_lines:
    description: How many lines of the units' journal to show when the agent does not prove itself.
    type: int
    default: 40
  settle_timeout:
    description: Seconds to wait until the control plane accepts the new credential.
    type: float
    default: 10.0
  lease:
    description:
      - Seconds for which a run keeps other controllers away from this identity, on top of the time that O(attempts) give. It ends with the run; the time
        counts only after a crash.
    type: int
    default: 60
  certificate:
    description:
      - How a new pair is made on the host, for agents that prove themselves with one (KubeAtlas), as options of M(muster.agents.cert_issue) such as
        C(issuer), C(own_ca), C(subject) and C(valid_days). O(certificate_path) and O(key_path) are the places unless it names the same.
      - The new pair is registered beside the old one before it changes its place, and the old one stays on the host for the way back.
    type: dict
  agents:
    description:
      - Rotates these agents in one task through Vault, without visiting a host. It is for control planes that accept what Vault holds (Stacker), and for
        mounts of KV v2. Give it together with O(vault) and in place of O(name), under C(run_once).
      - Each agent is guarded by check-and-set. The agents have to fetch their tokens from Vault themselves. One that was not seen with its new
        token in O(fleet_wait) seconds gets its old one back. Receipts and files on the hosts are brought up to date by the next
        M(muster.agents.agent_register).
    type: list
    elements: dict
    suboptions:
      name:
        description: The name the agent is enrolled under.
        type: str
        required: true
      agent_id:
        description:
          - The id that the control plane gave it. Without it, the one in Vault is used (a field of O(agents[].vault_paths) that names V(agent_id)), or
            the control plane is asked, which may need an administrator's login. Stacker as it ships knows a token only together with its id.
        type: str
      vault_paths:
        description: Where Vault keeps its credentials, as O(vault_paths). The first entry is the one that the control plane reads.
        type: list
        elements: dict
        required: true
        suboptions:
          path:
            description: The path as its readers ask for it, as O(vault_paths[].path).
            type: str
            required: true
          fields:
            description: Name of each field in Vault, and the name of the secret that belongs there.
            type: dict
            required: true
  connections:
    description: How many of O(agents) are worked on at a time, from 1 to 64. Each has connections of its own, which are kept alive.
    type: int
    default: 16
  vault_lease:
    description:
      - Whether a run over O(agents) takes a lease on each of them that has several entries, beside its first one in Vault (C(muster_lease)), so that two
        jobs or two slices of a job never rotate the same one at a time. The token needs C(create), C(read) and C(update) there, and C(delete) on its
        metadata to leave nothing behind.
      - An agent with one entry needs none. That entry is written by check-and-set, so of two runs one rotates the agent, and the other leaves it with the
        reason C(rotated_meanwhile).
    type: bool
    default: true
  fleet_wait:
    description:
      - Seconds that each of O(agents) has to be seen with its new token. It must be more than the interval at which agents ask Vault, which is 60
        to 69 seconds for Stacker's. V(0) does not wait, and so does not notice an agent that stays away.
    type: float
    default: 90.0
  campaign:
    description:
      - Name of an undertaking over many agents and runs, such as V(2026-Q4). An agent that was rotated in it is not rotated again, so that a play that
        stopped is gone on with by running it again. Who is done and who failed is kept on the controller.
    type: str
  failure_budget:
    description:
      - How many agents may fail in one run before no more are begun; those whose old credential was put back count too. Agents that were not begun keep
        their credentials and are reported as V(untouched).
      - With O(name) it needs a O(campaign), in which the hosts of a run count together.
    type: int
    default: 3
"""
