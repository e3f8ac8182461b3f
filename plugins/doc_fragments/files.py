# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are rendered with secrets and delivered to the host (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors FILES of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  files:
    description:
      - Configuration files of the agent to render and keep on the host.
      - Their templates alone know C(muster_secret), the agent's credentials and your own O(secrets), and C(muster_agent), which has C(agent_id),
        C(name), C(control_plane), C(url), C(version), C(hostname), C(address), C(capabilities), C(service_type), C(controller_name),
        C(labels), C(description), C(certificate_path), C(key_path), C(server_version) and C(generation).
      - The rendered text goes to the host without passing through a variable, a result or a command line.
    type: list
    elements: dict
    suboptions:
      path:
        description: Where the file lies on the host, as an absolute path. Missing directories above it are made.
        type: str
        required: true
      src:
        description:
          - Template on the controller, found where M(ansible.builtin.template) would find it, and rendered with the same settings and
            variables. It may be encrypted with Ansible Vault.
          - Give this or O(files[].content).
        type: path
      content:
        description:
          - The text itself, for short files. Ansible renders it before this module sees it, as it does with every option, and does not know
            C(muster_secret) then. Put what uses it into C({% raw %}), as in V(TOKEN={% raw %}{{ muster_secret.token }}{% endraw %}).
          - What is left is rendered with C(muster_secret) and C(muster_agent), the filters P(muster.agents.env_quote#filter),
            P(muster.agents.toml_quote#filter) and P(ansible.builtin.to_json#filter), and nothing else, since text that came from a host must
            not run on the controller. Use O(files[].src) for anything more.
        type: str
      format:
        description:
          - What the rendered text must be valid as, before it is sent. V(text) is not checked.
          - V(env) is an environment file that systemd and dotenv libraries read alike. Quote values with P(muster.agents.env_quote#filter).
          - V(toml) needs the Python library tomli on controllers with Python 3.10.
        type: str
        choices: [text, env, toml, json, yaml]
        default: text
      owner:
        description: User who owns the file.
        type: str
        default: root
      group:
        description: Group of the file.
        type: str
        default: root
      mode:
        description: Mode of the file as quoted octal digits with the zero.
        type: str
        default: '0600'
      directory_mode:
        description: Mode of the directories that are made above the file. Directories that exist stay as they are.
        type: str
        default: '0755'
      validate:
        description:
          - Command that checks the new file on the host before it replaces the old one, with C(%s) in the place of its path.
          - When it fails, the old file stays, and the task fails.
        type: str
      restart:
        description:
          - Whether the agent must be restarted to read a change of this file. The receipt remembers it until that has happened, also when a run
            dies in between.
        type: bool
        default: true
      needs:
        description:
          - Name of a secret without which this file makes no sense, such as V(ca_certificate), which not every server issues. The file is left
            out where the secret is missing.
        type: str
"""
