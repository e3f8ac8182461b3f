# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate "galaxy-importer": the importer that Galaxy runs, with everything on, and each of its complaints taken as a failure.

``python -m gates.importer TARBALL`` (in the tools environment).
"""

from __future__ import annotations

import re
import subprocess
import sys

__all__ = ["main"]

_COMPLAINT = re.compile(r"^(?:ERROR|WARNING)\b|^\S+ (?:ERROR|WARNING)\b|flake8:", re.MULTILINE)


def main() -> int:
    """Run the importer. Returns its status, or 1 when it complained and went on."""
    done = subprocess.run(
        [sys.executable, "-m", "galaxy_importer.main", sys.argv[1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    return done.returncode or (1 if _COMPLAINT.search(done.stdout) else 0)


if __name__ == "__main__":
    sys.exit(main())
