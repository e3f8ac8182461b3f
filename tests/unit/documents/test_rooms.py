# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who knows a control plane: its adapter, its profile and its documentation, and nobody else.

Code that asks which control plane it has is in the wrong room: a fifth one would have to be entered there too. Lists of choices and the
table of adapters name them all; documentation may speak of any.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._adapters import ADAPTERS
from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import CONTROL_PLANES

TOP = Path(__file__).parents[3]
NAMES = re.compile("|".join(CONTROL_PLANES), re.IGNORECASE)
DOCUMENTATION = {"DOCUMENTATION", "EXAMPLES", "RETURN"}


def _owner(file: Path) -> str:
    """The control plane that a file is about, empty for none: its adapter, what it imports of its own, its profile, its templates."""
    parts = {file.stem, *file.parent.parts[-1:], *(word for word in re.split(r"[_.]", file.stem) if word)}
    return next((name for name in CONTROL_PLANES if name in parts), "")


def _python() -> list[Path]:
    return sorted(file for file in (TOP / "plugins").rglob("*.py") if "doc_fragments" not in file.parts)


def _yaml() -> list[Path]:
    found = [*(TOP / "roles").rglob("*.yml"), *(TOP / "roles").rglob("*.j2"), *(TOP / "playbooks").rglob("*.yml")]
    return sorted(file for file in found if file.name != "argument_specs.yml")


def _spoken(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name and every string of a module that runs, which leaves out docstrings and the documentation of modules."""
    silent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.add(id(node.value))
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id in DOCUMENTATION for target in node.targets):
            silent.update(id(part) for part in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


def _lists_of_choices(file: Path) -> bool:
    return (file.parent.name, file.name) in {("plugin_utils", "_argument_specs.py"), ("plugin_utils", "_adapters.py")}


def test_every_choice_has_an_adapter_a_profile_and_a_page() -> None:
    assert list(ADAPTERS) == CONTROL_PLANES
    for name in CONTROL_PLANES:
        assert (TOP / "roles" / "agent" / "vars" / f"{name}.yml").is_file()
        assert (TOP / "tests" / "reference_server" / f"{name}.py").is_file()


@pytest.mark.parametrize("file", _python(), ids=lambda file: str(file.relative_to(TOP)))
def test_no_code_elsewhere_names_a_control_plane(file: Path) -> None:
    if _lists_of_choices(file):
        return
    spoken = [f"{line}: {text}" for line, text in _spoken(ast.parse(file.read_text())) if NAMES.search(text)]
    own = _owner(file)
    assert [text for text in spoken if not own or not _only(own, text)] == []


@pytest.mark.parametrize("file", _yaml(), ids=lambda file: str(file.relative_to(TOP)))
def test_no_role_or_playbook_elsewhere_names_a_control_plane(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if NAMES.search(line) and not line.lstrip().startswith("#")]
    own = _owner(file)
    assert [line for line in lines if not own or not _only(own, line)] == []


def _only(own: str, text: str) -> bool:
    """Whether the control plane *own* is the only one that *text* names."""
    return {found.lower() for found in NAMES.findall(text)} == {own}
