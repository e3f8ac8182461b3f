# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets ``ansible-test --venv`` start where only a Python package index is reachable.

ansible-test fetches a ``get-pip.py`` from a web server of its own unless it finds the file in its cache. A stand-in there installs the
very pip that ansible-test wants from the package index that pip itself is set up for.

``python3 -m gates.ansible_test_pip CORE_VENV...`` writes the stand-ins those ansible-cores ask for.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

__all__ = ["main", "provide"]

_STAND_IN = """\
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "pip-{version}-py3-none-any.whl"))
from pip._internal.cli.main import main

sys.exit(main(["install", "--upgrade", *[word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]]))
"""


def _wanted(venv: Path) -> set[str]:
    """Return the pip versions that the ansible-test of ``venv`` may ask for."""
    versions: set[str] = set()
    for source in venv.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py"):
        versions.update(re.findall(r"pip='([0-9.]+)'", source.read_text()))
    return versions


def provide(venv: Path) -> None:
    """Write the stand-ins for one environment with an ansible-core."""
    cache = Path.home() / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in sorted(_wanted(venv)):
        stand_in = cache / f"get_pip_{version.replace('.', '_')}.py"
        if stand_in.exists():
            continue
        download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d", str(cache), f"pip=={version}"]
        subprocess.run([str(venv / "bin" / "python"), *download], check=True)
        stand_in.write_text(_STAND_IN.format(version=version))


def main() -> None:
    """Command line."""
    for folder in sys.argv[1:]:
        provide(Path(folder))


if __name__ == "__main__":
    main()
