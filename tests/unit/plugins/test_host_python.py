# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our modules sent as sources to a host's Python: which Python, what is sent, and what becomes of every kind of answer."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
import typing as t
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_ways import Action, Way, plant_key

from ansible_collections.muster.agents.plugins.plugin_utils import _host_python as sent
from ansible_collections.muster.agents.plugins.plugin_utils import _light_module
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START

PLUGINS = Path(_light_module.__file__).parent.parent


def _action(*, delegate_to: str | None = None, local_only: bool = False) -> t.Any:
    templar = SimpleNamespace(template=lambda value: value.replace("{{ venv }}", "/opt/venv"))
    return SimpleNamespace(_task=SimpleNamespace(delegate_to=delegate_to), _templar=templar, _connection=SimpleNamespace(_remote_is_local=local_only))


@pytest.mark.parametrize(("known", "expected"), [
    ({"ansible_python_interpreter": "/usr/bin/python3.12"}, "/usr/bin/python3.12"),
    ({"ansible_python_interpreter": "{{ venv }}/bin/python"}, "/opt/venv/bin/python"),
    ({"ansible_python_interpreter": "auto_silent"}, ""),
    ({"ansible_python_interpreter": "auto", "ansible_facts": {"discovered_interpreter_python": "/usr/bin/python3"}}, "/usr/bin/python3"),
    ({"ansible_facts": {"discovered_interpreter_python": "/usr/bin/python3"}}, "/usr/bin/python3"),
    ({}, ""),
])
def test_the_interpreter_is_the_one_that_ansible_core_would_take(known: dict[str, t.Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_PYTHON_INTERPRETER", raising=False)
    assert sent.interpreter_of(_action(), known) == expected


def test_a_delegated_task_takes_the_interpreter_of_the_host_that_it_goes_to() -> None:
    known = {"ansible_python_interpreter": "/a", "ansible_delegated_vars": {"other": {"ansible_python_interpreter": "/b"}}}
    assert sent.interpreter_of(_action(delegate_to="other"), known) == "/b"
    assert sent.interpreter_of(_action(local_only=True), known) == ""


@pytest.mark.parametrize("module", sent.LIGHT)
def test_what_is_sent_holds_every_module_of_ours_that_is_imported(module: str) -> None:
    sources = sent._sources(module.rpartition(".")[2])["sources"]
    utils = f"{sent._PACKAGE}.module_utils"
    imported = set()
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(utils):
                imported |= {node.module} if node.module != utils else {f"{utils}.{item.name}" for item in node.names}
    assert imported == {name for name in sources if name.startswith(utils)}


@pytest.mark.parametrize("module", sent.LIGHT)
def test_a_module_uses_nothing_of_ansible_but_what_its_stand_in_has(module: str) -> None:
    tree = ast.parse((PLUGINS / "modules" / f"{module.rpartition('.')[2]}.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "module"}
    # The labels of SELinux come after the question whether there is SELinux, and such hosts are not served this way.
    known = {*dir(_light_module.LightModule), "params", "check_mode", "run_command_environ_update", "set_context_if_different", "selinux_default_context"}
    assert used <= known
    names = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        item.name for node in ast.walk(tree) if isinstance(node, ast.Import) for item in node.names}
    assert {name for name in names if name.partition(".")[0] == "ansible"} == {"ansible.module_utils.basic"}


def _run(module: str, args: dict[str, t.Any], *, check_mode: bool = False, environment: str = "") -> dict[str, t.Any] | None:
    command = sent.light_command(shlex.quote(sys.executable), environment)
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, input=sent.light_payload(module, args, check_mode=check_mode))
    return sent.light_result(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_module_answers_as_it_does_through_ansible(tmp_path: Path) -> None:
    pair = {"certificate_path": str(tmp_path / "a.crt"), "key_path": str(tmp_path / "a.key")}
    found = _run("muster.agents.key_pair", pair)
    assert found is not None
    assert (found["reason"], found["exists"], found["changed"]) == ("ok", False, False)
    refused = _run("muster.agents.key_pair", {**pair, "owner": "nobody-of-that-name"})
    assert refused is not None
    assert (refused["failed"], refused["reason"]) == (True, "unknown_owner")


def test_check_mode_and_environment_reach_the_module(tmp_path: Path) -> None:
    request = {"subject": [["CN", "a"]], "names": [], "key_usage": [], "extended_key_usage": ["clientAuth"], "key_type": "ec", "key_size": 0, "exact": True}
    args = {"certificate_path": str(tmp_path / "a.crt"), "key_path": str(tmp_path / "a.key"), "request": request}
    found = _run("muster.agents.key_pair", args, check_mode=True)
    assert found is not None
    assert (found["reason"], found["request"]) == ("missing", "")
    assert list(tmp_path.iterdir()) == []
    broken = _run("muster.agents.key_pair", args, environment=f"PYTHONHOME={tmp_path}")
    assert broken is None  # such a Python does not even start, so that nothing was begun


def test_a_module_that_breaks_off_has_failed_and_says_why() -> None:
    found = _run("muster.agents.key_pair", {"no_such_option": 1})
    assert found is not None
    assert found["failed"]
    assert "no_such_option" in found["module_stderr"]


def test_an_answer_that_was_cut_off_is_a_failure() -> None:
    assert sent.light_result(255, f"{START}\n{{\"changed\": true}}\n", "gone") == {"failed": True, "rc": 255, "module_stderr": "gone", "msg": ""}
    assert sent.light_result(0, f"motd\n{START}\n{json.dumps({'a': 1})}\n{END}\n", "") == {"a": 1}
    assert sent.light_result(0, "unfit Python\n", "") is None


def test_a_host_that_does_not_take_sources_gets_the_module(tmp_path: Path) -> None:
    plant_key(tmp_path)
    host = Way("module", light=True).host(tmp_path, rewrite=lambda script: "echo unfit Python" if "zlib" in script else script)
    action = t.cast(Action, t.cast(t.Any, host)._action)
    assert host.look().writable
    assert host.look().writable
    assert (len(action.scripts), len(action.module_args)) == (1, 2)  # asked once


def test_no_module_is_made_where_sources_are_taken(tmp_path: Path) -> None:
    plant_key(tmp_path)
    host = Way("module", light=True).host(tmp_path)
    assert host.look().writable
    assert t.cast(Action, t.cast(t.Any, host)._action).module_args == []


def test_commands_run_with_the_given_environment_and_none_is_a_failure() -> None:
    module = _light_module.LightModule({})
    module.run_command_environ_update = {"MUSTER_SAID": "yes"}
    assert module.run_command(["sh", "-c", "echo $MUSTER_SAID; echo no >&2; exit 3"]) == (3, "yes\n", "no\n")
    assert module.run_command(["printf", "\\377"])[1] == "\ufffd"  # no text that a result could not be written with
    assert module.run_command(["/no/such/program"])[0] == 127
    assert str(module.get_bin_path("sh")).endswith("/sh")
    assert module.get_bin_path("no-such-program") is None
