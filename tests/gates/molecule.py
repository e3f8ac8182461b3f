# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate "molecule": every scenario on fresh hosts, and none of them passing because it met no host.

``python3 -m gates.molecule`` in the checkout, with the tools environment first on PATH.
"""

from __future__ import annotations

import re
import subprocess
import sys

__all__ = ["main", "vacuous"]

_SIGNS = ("no hosts matched", "Could not match supplied host pattern", "Executed: Missing playbook")
_OPTIONAL = re.compile(r"> (?:prepare|cleanup)\b")


def vacuous(line: str) -> bool:
    """Whether a line of molecule's output tells of a step that did nothing although it had to."""
    return any(sign in line for sign in _SIGNS) and not _OPTIONAL.search(line)


def main() -> int:
    """Run all scenarios. Returns molecule's status, or 1 when a play found no host or a scenario lacks a playbook."""
    hollow = []
    with subprocess.Popen(["molecule", "test", "--all"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if vacuous(line):
                hollow.append(line)
    if process.returncode:
        subprocess.run(["molecule", "destroy", "--all"], check=False)
    if hollow:
        print("A step that did nothing:", *hollow, sep="\n")
    return process.returncode or (1 if hollow else 0)


if __name__ == "__main__":
    sys.exit(main())
