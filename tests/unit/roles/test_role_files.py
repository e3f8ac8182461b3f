# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every role keeps to, and that no option of a module is forgotten on the way from a variable to a task."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
from role_files import COLLECTION, ROLES, load, tasks

from ansible_collections.muster.agents.plugins.action import agent_config, agent_health, agent_info, agent_register, token_rotate

TASK_FILES = sorted(file for role in ROLES for file in (role / "tasks").glob("*.yml"))
PLAYBOOKS = sorted((COLLECTION / "playbooks").glob("*.yml"))
MAGIC = {"ansible_check_mode", "ansible_facts", "ansible_play_batch", "ansible_play_hosts"}
OURS = {
    "agent_config": agent_config, "agent_health": agent_health, "agent_info": agent_info, "agent_register": agent_register, "token_rotate": token_rotate,
}
LIMITS = {"warning_days", "critical_days", "warning_percent", "critical_percent"}
FLEET = {"agents", "connections", "fleet_wait", "vault_lease"}


def every_task() -> t.Iterator[tuple[Path, dict[str, t.Any]]]:
    for file in (*TASK_FILES, *PLAYBOOKS):
        for task in tasks(load(file)):
            yield file, task


def options_by_default(task: dict[str, t.Any], name: str) -> set[str]:
    """The options that a task's module_defaults give to its module, by group or by name."""
    shared = load(COLLECTION / "roles" / "agent" / "vars" / "main.yml")
    defaults = task.get("module_defaults", {})
    grouped = name in load(COLLECTION / "meta" / "runtime.yml")["action_groups"]["agents"]
    found = [defaults.get(f"muster.agents.{name}"), defaults.get("group/muster.agents.agents") if grouped else None]
    return {option for text in found if text for option in shared[text.strip("{} ")]}


def ids(file: Path) -> str:
    return str(file.relative_to(COLLECTION))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_role_has_what_its_users_look_for(role: Path) -> None:
    assert (role / "README.md").read_text().startswith(f"# muster.agents.{role.name}\n")
    info = load(role / "meta" / "main.yml")["galaxy_info"]
    assert info["min_ansible_version"] == "2.16"
    assert {platform["name"] for platform in info["platforms"]} == {"Debian", "Ubuntu"}
    assert load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["description"]


@pytest.mark.parametrize("role", [role for role in ROLES if role.name != "agent"], ids=lambda role: role.name)
def test_role_takes_the_agent_from_one_place(role: Path) -> None:
    assert load(role / "meta" / "main.yml")["dependencies"] == [{"role": "muster.agents.agent"}]
    assert [name for name in load(role / "defaults" / "main.yml") if name.startswith("agent_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_documented_variables_are_the_options_of_the_role(role: Path) -> None:
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    named = set(re.findall(rf"`({role.name}_[a-z_]+)(?=[`:])", (role / "README.md").read_text()))
    assert named <= set(options)
    if role.name != "agent":
        assert named == set(options)


@pytest.mark.parametrize("file", [*TASK_FILES, *PLAYBOOKS], ids=ids)
def test_tasks_hide_nothing(file: Path) -> None:
    for task in tasks(load(file)):
        assert task["name"][0].isupper()
        assert not {"ignore_errors", "ignore_unreachable", "no_log"} & set(task), task["name"]
        assert task.get("failed_when") is not False, task["name"]
        assert not [word for word in task if word.endswith(".shell") or word in ("shell", "raw")], task["name"]


@pytest.mark.parametrize("file", [*TASK_FILES, *PLAYBOOKS], ids=ids)
def test_a_task_that_never_reports_a_change_says_why(file: Path) -> None:
    bare = [line for line in file.read_text().splitlines() if re.search(r"changed_when: false\s*$", line)]
    assert bare == []


@pytest.mark.parametrize(
    "file", sorted(file for role in ROLES for file in role.rglob("*") if file.suffix in (".yml", ".j2")), ids=ids)
def test_facts_are_read_only_through_ansible_facts(file: Path) -> None:
    found = set(re.findall(r"(?<![\w.])ansible_[a-z_]+", re.sub(r"#.*|ansible_collections|min_ansible_version", "", file.read_text())))
    assert found <= MAGIC


@pytest.mark.parametrize(("file", "task"), [found for found in every_task() if any(f"muster.agents.{name}" in found[1] for name in OURS)],
    ids=lambda value: value["name"] if isinstance(value, dict) else value.parent.parent.name)
def test_a_task_gives_its_module_every_option_there_is(file: Path, task: dict[str, t.Any]) -> None:
    (name,) = [name for name in OURS if f"muster.agents.{name}" in task]
    given, known = set(task[f"muster.agents.{name}"]) | options_by_default(task, name), set(OURS[name].ARGUMENT_SPEC)
    if "agents" in task.get(f"muster.agents.{name}", {}):  # one task for a whole fleet leaves out what is about a host
        known = given | FLEET
    left_out = {"token_rotate": FLEET - given, "agent_info": {"name"}, "agent_health": {"commit", *(LIMITS - given)}}.get(name, set())
    assert given == known - left_out
