# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m faults.launch``: plays the crash matrix with this checkout as the collection; options as for ``python -m faults``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def main() -> int:
    """Put the checkout where Python and Ansible look for a collection, and run the matrix there. Returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="muster-collection-") as name:
        namespace = Path(name, "ansible_collections", "muster")
        namespace.mkdir(parents=True)
        (namespace / "agents").symlink_to(TOP)
        environment = {**os.environ, "PYTHONPATH": f"{name}{os.pathsep}{TOP / 'tests'}", "ANSIBLE_COLLECTIONS_PATH": name}
        return subprocess.run([sys.executable, "-m", "faults", *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
