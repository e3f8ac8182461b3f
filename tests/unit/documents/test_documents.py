# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What README and docs show: playbooks that parse, commands and links that lead somewhere, variables and options that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[3]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Knows the tags that Ansible adds."""


_Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


def blocks(kind: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


def names(kind: str) -> list[str]:
    return [f"{page.name}-{number}" for number, (page, _text) in enumerate(blocks(kind))]


def variables(text: str) -> Iterator[str]:
    yield from re.findall(r"^\s*(?:- )?(agent_\w+):", text, re.MULTILINE)
    yield from re.findall(r"-e (agent_\w+)=", text)


def test_there_is_something_to_check() -> None:
    assert len(blocks("yaml")) >= 3
    assert len(blocks("sh")) >= 5


@pytest.mark.parametrize(("page", "text"), blocks("yaml"), ids=names("yaml"))
def test_yaml_parses_and_playbooks_pass_the_syntax_check(page: Path, text: str, tmp_path: Path) -> None:
    content = _Loader(text).get_single_data()
    if not isinstance(content, list):
        return
    playbook = tmp_path / "play.yml"
    playbook.write_text(text)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--syntax-check", "-i", "localhost,", str(playbook)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("page", "text"), [*blocks("yaml"), *blocks("sh")], ids=[*names("yaml"), *names("sh")])
def test_every_variable_is_one_of_the_roles_or_the_playbook(page: Path, text: str) -> None:
    known = set(yaml.safe_load((TOP / "roles/agent/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"])
    known |= set(re.findall(r"agent_\w+", (TOP / "playbooks/deploy.yml").read_text()))
    assert set(variables(text)) <= known


@pytest.mark.parametrize(("page", "text"), blocks("sh"), ids=names("sh"))
def test_commands_name_what_exists(page: Path, text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for playbook in re.findall(r"ansible-playbook muster\.agents\.(\w+)", text):
        assert (TOP / "playbooks" / f"{playbook}.yml").is_file()
    for module in re.findall(r"-m muster\.agents\.(\w+)", text):
        assert (TOP / "plugins/modules" / f"{module}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_lists_every_module_and_role() -> None:
    text = (TOP / "README.md").read_text()
    for name in [path.stem for path in (TOP / "plugins/modules").glob("*.py")] + [path.name for path in (TOP / "roles").iterdir()]:
        assert f"| `{name}` |" in text


def test_reasons_in_the_recovery_table_are_ones_that_the_code_gives() -> None:
    code = "".join(path.read_text() for path in (TOP / "plugins").rglob("*.py"))
    for reason in re.findall(r"`reason: (\w+)`", (TOP / "docs/recovery.md").read_text()):
        assert f'"{reason}"' in code
