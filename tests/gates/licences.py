# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate "licence headers": every source file says under which licence it is, and the right one.

Code that runs inside the user's own modules (``plugins/module_utils``) is BSD-2-Clause, everything else GPL-3.0-or-later. A file that
cannot carry a comment (JSON, binary, licence texts) is not a source file here; neither is a text made by a tool, nor prose.

``python3 -m gates.licences FOLDER`` prints every offender; status 1 when there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main", "problems"]

_SUFFIXES = frozenset({".cfg", ".hcl", ".j2", ".ini", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"})
_NAMES = frozenset({"Makefile", ".ansible-lint", ".gitignore", ".yamllint", "ct-init", "run"})
_GENERATED = ("changelogs/changelog.yaml", "FILES.json", "MANIFEST.json")
_HEAD_LINES = 6


def _is_source(file: Path, name: str) -> bool:
    if name.startswith(("LICENSES/", ".git/", "build/")) or name in _GENERATED:
        return False
    if file.suffix not in _SUFFIXES and file.name not in _NAMES:
        return False
    return file.stat().st_size > 0


def problems(folder: Path, files: list[Path]) -> list[str]:
    """Return one sentence for each file (of ``files``, below ``folder``) with a missing or wrong SPDX line."""
    found = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        if not _is_source(file, name):
            continue
        wanted = "BSD-2-Clause" if name.startswith("plugins/module_utils/") else "GPL-3.0-or-later"
        head = file.read_text(errors="replace").splitlines()[:_HEAD_LINES]
        tags = [line.split("SPDX-License-Identifier:", 1)[1].strip(" #}-*/") for line in head if "SPDX-License-Identifier:" in line]
        if tags != [wanted]:
            found.append(f"{name}: the first {_HEAD_LINES} lines say {' and '.join(tags) or 'no licence'}, not {wanted}.")
    return found


def main() -> int:
    """Command line."""
    folder = Path(sys.argv[1])
    files = sorted(file for file in folder.rglob("*") if file.is_file() and ".git" not in file.relative_to(folder).parts)
    offenders = problems(folder, files)
    print("\n".join(offenders) or f"{len(files)} files: every source file carries its licence.")
    return 1 if offenders or not files else 0


if __name__ == "__main__":
    sys.exit(main())
