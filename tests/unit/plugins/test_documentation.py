# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is documented is what is accepted: options, examples, results and action groups, as ansible-doc reads them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils import _argument_specs

COLLECTION = "muster.agents"
ROOT = Path(_argument_specs.__file__).parents[2]
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("[a-z]*.py"))
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("[a-z]*.py"))
FILTERS = sorted(path.stem for path in (ROOT / "plugins" / "filter").glob("[a-z]*.py"))
TESTS = sorted(path.stem for path in (ROOT / "plugins" / "test").glob("[a-z]*.py"))
FRAGMENTS = sorted(path.stem for path in (ROOT / "plugins" / "doc_fragments").glob("[a-z]*.py") if path.stem != "attributes")
GROUPS: dict[str, list[str]] = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
# What module_defaults of a group may set: every option of these fragments is accepted by every member.
GROUP_FRAGMENTS = {"agents": ("control_plane", "transport"), "vault": ("vault",), "certificates": ("certificate", "issuer")}
TASK_KEYWORDS = frozenset({
    "any_errors_fatal", "become", "block", "changed_when", "check_mode", "delegate_to", "diff", "failed_when", "loop", "loop_control", "name", "no_log",
    "register", "rescue", "run_once", "until", "vars", "when",
})


def documented(kind: str, name: str) -> dict[str, t.Any]:
    """Return what ansible-doc has on a plugin: doc, examples and return."""
    return t.cast("dict[str, t.Any]", ansible_doc(kind)[f"{COLLECTION}.{name}"])


@functools.cache
def ansible_doc(kind: str) -> dict[str, t.Any]:
    names = [f"{COLLECTION}.{name}" for name in {"module": MODULES, "filter": FILTERS, "test": TESTS}[kind]]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "ansible.cli.doc", "--type", kind, "--json", *names], check=False, capture_output=True, text=True, timeout=120,
        env={**environment, "ANSIBLE_COLLECTIONS_PATH": str(ROOT.parents[2]), "ANSIBLE_DEVEL_WARNING": "false"})
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr
    return t.cast("dict[str, t.Any]", json.loads(done.stdout))


def action(name: str) -> t.Any:
    return importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.action.{name}")


def fragment(name: str) -> dict[str, t.Any]:
    module = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.doc_fragments.{name}")
    return t.cast("dict[str, t.Any]", yaml.safe_load(module.ModuleDocFragment.DOCUMENTATION)["options"])


def shape(options: t.Mapping[str, t.Mapping[str, t.Any]], nested: str) -> dict[str, t.Any]:
    """Return what an option means to Ansible: type, elements, required, default, choices, aliases, and the same of its suboptions."""
    return {
        name: {
            "type": option.get("type", "str"), "elements": option.get("elements"), "required": bool(option.get("required", False)),
            "default": option.get("default"), "choices": list(option["choices"]) if "choices" in option else None,
            "aliases": sorted(option.get("aliases", ())), "options": shape(option.get(nested) or {}, nested),
        } for name, option in options.items()
    }


def described(options: t.Mapping[str, t.Mapping[str, t.Any]], place: str) -> t.Iterator[tuple[str, str]]:
    """Yield each option or result with its whole description."""
    for name, option in options.items():
        text = option.get("description", "")
        yield f"{place}{name}", " ".join(text) if isinstance(text, list) else text
        for nested in ("suboptions", "contains"):
            yield from described(option.get(nested) or {}, f"{place}{name}.")


def tasks_in(items: t.Iterable[t.Mapping[str, t.Any]]) -> t.Iterator[t.Mapping[str, t.Any]]:
    for item in items:
        if "block" in item:
            for part in ("block", "rescue", "always"):
                yield from tasks_in(item.get(part, ()))
        else:
            yield item


def module_of(task: t.Mapping[str, t.Any]) -> str:
    keys = [key for key in task if key not in TASK_KEYWORDS]
    assert len(keys) == 1, f"{task.get('name')}: which of {keys} is the module?"
    return keys[0]


def unknown_keys(given: t.Any, options: t.Mapping[str, t.Any], place: str = "") -> list[str]:
    """Return the keys of *given* that *options* do not document, and those they require and *given* lacks."""
    if not isinstance(given, dict):
        return []
    wrong = [f"{place}{key} is not documented" for key in given if key not in options]
    wrong += [f"{place}{name} is missing" for name, option in options.items() if option.get("required") and name not in given]
    for key, value in given.items():
        suboptions = options.get(key, {}).get("suboptions")
        for item in value if isinstance(value, list) else [value]:
            wrong += unknown_keys(item, suboptions, f"{place}{key}.") if suboptions else []
    return wrong


@pytest.mark.parametrize("name", ACTIONS)
def test_a_module_documents_the_options_that_its_action_accepts(name: str) -> None:
    assert shape(documented("module", name)["doc"]["options"], "suboptions") == shape(action(name).ARGUMENT_SPEC, "options")


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_mirrors_its_argument_spec(name: str) -> None:
    assert shape(fragment(name), "suboptions") == shape(getattr(_argument_specs, name.upper()), "options")


@pytest.mark.parametrize("name", ACTIONS)
def test_the_rules_of_an_action_are_about_options_it_has(name: str) -> None:
    rules: dict[str, t.Any] = action(name).RULES
    accepted = set(inspect.signature(ArgumentSpecValidator.__init__).parameters) & {
        "mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by"}
    assert set(rules) <= accepted
    named = {name for key in ("mutually_exclusive", "required_together", "required_one_of") for group in rules.get(key, ()) for name in group}
    named |= {name for rule in rules.get("required_if", ()) for name in (rule[0], *rule[2])}
    named |= {name for key, needs in rules.get("required_by", {}).items() for name in (key, *([needs] if isinstance(needs, str) else needs))}
    assert named <= set(action(name).ARGUMENT_SPEC)


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_is_documented_by_a_module_that_holds_nothing_else(name: str) -> None:
    tree = ast.parse((ROOT / "plugins" / "modules" / f"{name}.py").read_text())
    others = [node for node in tree.body if not isinstance(node, (ast.Assign, ast.ImportFrom))]
    assert not others
    assigned = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)]
    assert assigned == ["DOCUMENTATION", "EXAMPLES", "RETURN"]
    assert [node.module for node in tree.body if isinstance(node, ast.ImportFrom)] == ["__future__"]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_either_runs_on_the_host_or_has_an_action(name: str) -> None:
    text = (ROOT / "plugins" / "modules" / f"{name}.py").read_text()
    assert ("def main(" in text) != (name in ACTIONS)


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_is_an_action_plugin(name: str) -> None:
    assert issubclass(action(name).ActionModule, ActionBase)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_since_when_by_whom_and_what_it_can_be_relied_on_for(name: str) -> None:
    doc = documented("module", name)["doc"]
    assert doc["version_added"] == "1.0.0"
    assert doc["author"]
    assert doc["short_description"]
    assert not doc["short_description"].endswith(".")
    for attribute in ("check_mode", "diff_mode", "idempotent"):
        assert doc["attributes"][attribute]["support"] in ("full", "partial", "none")
        assert doc["attributes"][attribute]["description"]


@pytest.mark.parametrize("name", MODULES)
def test_every_option_is_described_in_sentences(name: str) -> None:
    for option, text in described(documented("module", name)["doc"]["options"], ""):
        assert text.strip(), option
        assert text.rstrip().endswith("."), f"{option}: {text}"
        assert not re.search(r"\b[Ss]ee the (README|documentation)\b", text), option


@pytest.mark.parametrize("name", MODULES)
def test_every_result_is_described_with_type_occasion_and_sample(name: str) -> None:
    results: dict[str, t.Any] = documented("module", name)["return"]
    assert results
    for key, result in results.items():
        assert result.get("type"), key
        assert result.get("returned"), key
        assert "sample" in result or result.get("contains"), key
    for place, result in nested_results(results, ""):
        assert result.get("type"), place
        assert (result["type"] != "list") or result.get("elements"), place
    for place, text in described(results, ""):
        assert text.strip().endswith("."), place


def nested_results(results: t.Mapping[str, t.Any], place: str) -> t.Iterator[tuple[str, t.Mapping[str, t.Any]]]:
    for key, result in results.items():
        yield f"{place}{key}", result
        yield from nested_results(result.get("contains") or {}, f"{place}{key}.")


@pytest.mark.parametrize("name", MODULES)
def test_the_results_that_every_action_has_are_documented(name: str) -> None:
    if name in ACTIONS:
        assert {"reason", "msg"} <= set(documented("module", name)["return"])
        assert all(documented("module", name)["return"][key]["returned"] == "always" for key in ("reason", "msg"))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_tasks_that_use_documented_options_by_full_names(name: str) -> None:
    examples = yaml.safe_load(documented("module", name)["examples"])
    tasks = list(tasks_in(examples))
    assert len([task for task in tasks if module_of(task) == f"{COLLECTION}.{name}"]) >= 2
    for task in tasks:
        module = module_of(task)
        assert re.match(r"[a-z_]+\.[a-z_]+\.[a-z_]+\Z", module), f"{task['name']}: {module} is no full name"
        assert task["name"][0].isupper()
        if module.startswith(f"{COLLECTION}."):
            options = documented("module", module.rpartition(".")[2])["doc"]["options"]
            assert unknown_keys(task[module] or {}, options) == [], task["name"]


@pytest.mark.parametrize("name", ACTIONS)
def test_the_examples_show_what_to_do_about_a_failure(name: str) -> None:
    examples = yaml.safe_load(documented("module", name)["examples"])
    assert any("rescue" in item for item in examples)


def test_the_groups_are_the_ones_whose_fragments_are_known() -> None:
    assert set(GROUPS) == set(GROUP_FRAGMENTS)


@pytest.mark.parametrize(("group", "member"), [(group, member) for group, members in GROUPS.items() for member in members])
def test_every_member_of_a_group_accepts_every_option_of_its_fragments(group: str, member: str) -> None:
    spec = action(member).ARGUMENT_SPEC
    for name in GROUP_FRAGMENTS[group]:
        for option, wanted in getattr(_argument_specs, name.upper()).items():
            assert option in spec, f"{member} does not take {option}"
            assert spec[option]["type"] == wanted["type"], f"{member} takes another kind of {option}"
            assert spec[option].get("choices") == wanted.get("choices"), f"{member} takes other values of {option}"


@pytest.mark.parametrize("name", ACTIONS)
def test_a_module_that_takes_all_options_of_a_group_is_its_member(name: str) -> None:
    spec = action(name).ARGUMENT_SPEC
    for group, fragments in GROUP_FRAGMENTS.items():
        takes_all = all(option in spec for fragment_name in fragments for option in getattr(_argument_specs, fragment_name.upper()))
        assert takes_all == (name in GROUPS[group]), f"{name} and the group {group}"


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_documented_with_examples(name: str) -> None:
    found = documented("filter", name)
    assert found["doc"]["version_added"] == "1.0.0"
    assert all(text.strip().endswith(".") for _option, text in described(found["doc"]["options"], ""))
    assert all(re.match(r"[a-z_]+\.[a-z_]+\.[a-z_]+\Z", module_of(task)) for task in yaml.safe_load(found["examples"]))
    assert found["return"]["_value"]["type"] in ("str", "float", "dict")


@pytest.mark.parametrize("name", TESTS)
def test_a_test_is_documented_with_examples(name: str) -> None:
    found = documented("test", name)
    assert found["doc"]["version_added"] == "1.0.0"
    assert all(text.strip().endswith(".") for _option, text in described(found["doc"]["options"], ""))
    assert all(re.match(r"[a-z_]+\.[a-z_]+\.[a-z_]+\Z", module_of(task)) for task in yaml.safe_load(found["examples"]))
    assert found["return"]["_value"]["type"] == "bool"
