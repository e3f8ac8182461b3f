# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the modules that use the store on the host (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors STORE of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  store:
    description:
      - Directory on the host that keeps receipts and credentials, one directory for each agent. Root owns it and nobody else can read it.
      - Give the same path to every task about one agent; an agent whose receipt is not found counts as not enrolled by this collection.
    type: path
    default: /var/lib/muster
  delivery:
    description:
      - How the store on the host is read and written. The outcome is the same.
      - V(fast) sends one POSIX shell script through the connection. V(module) does what M(muster.agents.credential_store) does in the host's Python;
        the sources go through the connection too where that works, otherwise Ansible runs the module.
      - V(auto) takes the fast way wherever it works. Where the host is the machine that runs C(ansible-playbook), by a local connection without
        C(become) and without SELinux, it needs neither and reads and writes the files by itself.
    type: str
    choices: [auto, fast, module]
    default: auto
"""
