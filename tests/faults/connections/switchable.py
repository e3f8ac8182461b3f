# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The local connection with two switches: a host whose mark exists is away, and a host may have a fault point of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
name: switchable
short_description: A local host that a test can take away
description:
  - Runs on this machine, unless a file with the host's name lies in MUSTER_TEST_AWAY.
  - A file with the host's name in MUSTER_TEST_ENDS is the fault point at which the run on this host ends. It is set for the worker that the
    connection is made in, which serves this host alone.
version_added: 1.0.0
author: muster.agents contributors (@muster-agents)
extends_documentation_fragment: [connection_pipelining]
"""


class Connection(Local):
    """A host of a test."""

    transport = "switchable"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Set the worker's fault point."""
        super().__init__(*arguments, **options)
        folder = os.environ.get("MUSTER_TEST_ENDS", "")
        if folder:
            place = Path(folder, self._play_context.remote_addr)
            os.environ["MUSTER_AGENTS_TEST_FAULT"] = place.read_text() if place.exists() else ""

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Any:
        """Run a command, if the host is there."""
        self._require_there()
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)

    def put_file(self, in_path: str, out_path: str) -> Any:
        """Copy a file to the host, if it is there."""
        self._require_there()
        return super().put_file(in_path, out_path)

    def _require_there(self) -> None:
        folder = os.environ.get("MUSTER_TEST_AWAY", "")
        if folder and os.path.exists(os.path.join(folder, self._play_context.remote_addr)):
            raise AnsibleConnectionFailure(f"{self._play_context.remote_addr} is away")
