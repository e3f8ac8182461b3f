# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate "argument specs equal defaults": what a role promises in its specification is what its defaults do, in both directions.

For every role: each public variable of ``defaults/main.yml`` is an option of some entry point in ``meta/argument_specs.yml`` with the very
same default; each option with a default is in the defaults; an option that is required, or has no default, is not in the defaults. Names
that start with an underscore are internal and left out.

``python -m gates.role_specs ROLES_FOLDER`` prints every difference; status 1 when there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["differences", "main"]


def _load(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text()) if file.exists() else None
    return content if isinstance(content, dict) else {}


def _same(left: object, right: object) -> bool:
    """Equal in value and in type, all the way down: ``1``, ``true`` and ``"1"`` differ."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(*pair) for pair in zip(left, right))
    return left == right


def differences(role: Path) -> list[str]:
    """Return one sentence for each difference of one role."""
    if not (role / "meta" / "argument_specs.yml").exists():
        return [f"{role.name}: meta/argument_specs.yml is missing."]
    found = []
    defaults = {name: value for name, value in _load(role / "defaults" / "main.yml").items() if not name.startswith("_")}
    options: dict[str, dict[str, Any]] = {}
    for entry_point, spec in _load(role / "meta" / "argument_specs.yml").get("argument_specs", {}).items():
        for name, option in (spec.get("options") or {}).items():
            if name in options and not _same(options[name].get("default"), option.get("default")):
                found.append(f"{role.name}: {name} has another default in entry point {entry_point}.")
            options[name] = option
    for name, value in defaults.items():
        if name not in options:
            found.append(f"{role.name}: {name} has a default and no argument specification.")
        elif "default" not in options[name]:
            found.append(f"{role.name}: {name} is {value!r} in the defaults and has no default in its specification.")
        elif not _same(options[name]["default"], value):
            found.append(f"{role.name}: {name} is {value!r} in the defaults and {options[name]['default']!r} in its specification.")
    for name, option in options.items():
        if "default" in option and name not in defaults:
            found.append(f"{role.name}: {name} has a default in its specification and none in the defaults.")
        if "default" in option and option.get("required"):
            found.append(f"{role.name}: {name} is required and has a default.")
    return found


def main() -> int:
    """Command line."""
    roles = sorted(folder for folder in Path(sys.argv[1]).iterdir() if folder.is_dir())
    problems = [problem for role in roles for problem in differences(role)]
    print("\n".join(problems) or f"{len(roles)} roles: specifications and defaults agree.")
    if not roles:
        print("There are no roles to check.")
    return 1 if problems or not roles else 0


if __name__ == "__main__":
    sys.exit(main())
