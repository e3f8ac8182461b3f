# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checkers of the gates themselves: each must see the fault it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.licences import problems
from gates.molecule import vacuous
from gates.role_specs import differences


def _role(folder: Path, defaults: str, options: str) -> Path:
    role = folder / "demo"
    for name, text in (
        ("defaults/main.yml", defaults),
        ("meta/argument_specs.yml", f"argument_specs:\n  main:\n    options:\n{options}"),
    ):
        (role / name).parent.mkdir(parents=True)
        (role / name).write_text(text)
    return role


def test_a_role_whose_defaults_and_specification_agree_has_no_differences(tmp_path: Path) -> None:
    role = _role(
        tmp_path,
        "demo_list: [1, two]\n_demo_internal: x\n",
        "      demo_list: {type: list, default: [1, two]}\n      demo_needed: {type: str, required: true}\n",
    )
    assert differences(role) == []


@pytest.mark.parametrize(
    ("defaults", "options", "expected"),
    [
        ("demo_a: 1\n", "      demo_b: {type: int}\n", "demo_a has a default and no argument specification"),
        ("demo_a: 1\n", "      demo_a: {type: int}\n", "has no default in its specification"),
        ("demo_a: 1\n", "      demo_a: {type: int, default: 2}\n", "demo_a is 1 in the defaults and 2 in its specification"),
        ("demo_a: 1\n", "      demo_a: {type: int, default: true}\n", "demo_a is 1 in the defaults and True in its specification"),
        ("demo_a: [1]\n", "      demo_a: {type: list, default: ['1']}\n", "in the defaults and ['1'] in its specification"),
        ("{}\n", "      demo_a: {type: int, default: 1}\n", "demo_a has a default in its specification and none in the defaults"),
        ("demo_a: 1\n", "      demo_a: {type: int, default: 1, required: true}\n", "demo_a is required and has a default"),
    ],
)
def test_a_difference_between_defaults_and_specification_is_named(tmp_path: Path, defaults: str, options: str, expected: str) -> None:
    assert expected in " ".join(differences(_role(tmp_path, defaults, options)))


def test_a_role_without_a_specification_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert differences(tmp_path / "bare") == ["bare: meta/argument_specs.yml is missing."]


@pytest.mark.parametrize(
    ("name", "licence", "accepted"),
    [
        ("plugins/action/x.py", "GPL-3.0-or-later", True),
        ("plugins/action/x.py", "BSD-2-Clause", False),
        ("plugins/module_utils/x.py", "BSD-2-Clause", True),
        ("plugins/module_utils/x.py", "GPL-3.0-or-later", False),
        ("roles/x/tasks/main.yml", "", False),
        ("docs/x.md", "", True),
    ],
)
def test_each_source_file_carries_the_licence_of_its_place(tmp_path: Path, name: str, licence: str, accepted: bool) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(f"# SPDX-License-Identifier: {licence}\nx: 1\n" if licence else "x: 1\n")
    assert (problems(tmp_path, [file]) == []) is accepted


@pytest.mark.parametrize(
    ("line", "hollow"),
    [
        ("skipping: no hosts matched", True),
        ("WARNING  [deploy > verify] Executed: Missing playbook (Remove from test_sequence to suppress)", True),
        ("WARNING  [deploy > cleanup] Executed: Missing playbook (Remove from test_sequence to suppress)", False),
        ("INFO     [deploy > verify] Executed: Successful", False),
    ],
)
def test_a_scenario_that_met_no_host_does_not_pass(line: str, hollow: bool) -> None:
    assert vacuous(line) is hollow
