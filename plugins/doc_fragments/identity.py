# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that say who an agent is (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors IDENTITY of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - The agent's lasting name, under which its control plane knows it. With V(control_plane=stacker) this is the deployment hash.
      - It must stay the same at every deployment and be unique in the fleet. A UUID derived from the inventory name is a good one, as in
        V({{ inventory_hostname | ansible.builtin.to_uuid }}).
      - With V(control_plane=stacker) it has at most 128 characters out of letters, digits, hyphens and underscores.
    type: str
    required: true
  version:
    description: Version of the agent's binary. With V(control_plane=stacker) a semantic version, such as V(1.0.0).
    type: str
  capabilities:
    description:
      - What this agent can do, such as V(docker), V(compose) and V(logs). The control plane sends it only commands that it has the capability for.
      - Without this option they are found out on the host.
    type: list
    elements: str
  system_info:
    description:
      - What the control plane is told about the machine, as free keys and values. A change of values that move by themselves, such as free
        disk space, counts as no change.
      - Without this option it is gathered on the host. Give an empty dictionary to tell nothing.
    type: dict
  hostname:
    description: Name of the machine, for people who look at the control plane. By default the host's own.
    type: str
  address:
    description: Address at which the machine is reached, for control planes that keep one.
    type: str
  labels:
    description: Labels such as region or environment, for control planes that keep some. V(stacker) has none.
    type: dict
  description:
    description: A sentence about this agent, for control planes that keep one. V(stacker) has none.
    type: str
  service_type:
    description: Kind of the agent, for control planes that have more than one. V(stacker) has one only.
    type: str
  controller_name:
    description: Name of the agent's controller, for control planes that group agents. V(stacker) does not.
    type: str
  public_key:
    description: Public key (PEM) that the agent will sign requests with, for control planes that keep one.
    type: str
  certificate_path:
    description:
      - Path on the host of the agent's client certificate (PEM), for control planes whose agents prove themselves by one. It must be there with its
        key; M(muster.agents.cert_issue) makes the pair.
    type: str
  key_path:
    description: Path on the host of the private key that belongs to O(certificate_path). It is tried there and never leaves the host.
    type: str
  allow_unstable_name:
    description:
      - Whether O(name) may look like one that changes at every run or that two agents could share. Names with a date, a time or an epoch in
        them, generic names such as V(production), and counted names such as V(web-01) are refused otherwise.
    type: bool
    default: false
"""
