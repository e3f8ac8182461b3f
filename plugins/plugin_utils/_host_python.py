# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our own modules in a host's Python, sent as sources on standard input (private to muster.agents).

What comes of it is what the module itself would have answered; _light_module.py is the part on the host. Options travel on standard input
too: nothing but a short program that reads it stands on a command line, and no file is made on the host.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import typing as t
import zlib
from pathlib import Path

from ansible import constants as C
from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START

__all__ = ["LIGHT", "interpreter_of", "light_command", "light_payload", "light_result"]

LIGHT = ("muster.agents.agent_probe", "muster.agents.credential_store", "muster.agents.key_pair")
"""The modules that use no more of AnsibleModule than its stand-in has."""

_PLUGINS = Path(__file__).resolve().parent.parent
_PACKAGE = "ansible_collections.muster.agents.plugins"
_IMPORTED = re.compile(rf"^from {re.escape(_PACKAGE)}\.module_utils(?:\.(\w+) import|  *import ([\w, ]+))", re.MULTILINE)
_DISCOVERED = "discovered_interpreter_python"
_READER = (
    "import sys,json,zlib;sys.version_info<(3,9) and sys.exit('unfit Python');p=json.loads(zlib.decompress(sys.stdin.buffer.read()));"
    "d={'__name__':'muster_light'};exec(compile(p['light'],'muster_light','exec'),d);d['serve'](p)"
)


def interpreter_of(action: ActionBase, task_vars: t.Mapping[str, t.Any]) -> str:
    """Return the Python that ansible-core would run a module with on the host of this task, empty where it would have to look for one first."""
    variables = task_vars
    if getattr(action._connection, "_remote_is_local", False):
        return ""  # of a network device, whose modules run on the controller
    if action._task.delegate_to:
        variables = (task_vars.get("ansible_delegated_vars") or {}).get(action._task.delegate_to) or {}
    configured = str(C.config.get_config_value("INTERPRETER_PYTHON", variables=dict(variables)) or "").strip()
    interpreter = str(action._templar.template(configured)).strip() if configured else ""
    if not interpreter or interpreter.startswith("auto"):
        interpreter = str((variables.get("ansible_facts") or {}).get(_DISCOVERED) or "")
    return interpreter


def light_command(interpreter: str, environment: str) -> str:
    """Return the shell command for a payload on standard input; *environment* is what the task sets, as the shell writes it."""
    return f"{environment} {interpreter} -c {shlex.quote(_READER)}".strip()


def light_payload(module: str, args: t.Mapping[str, t.Any], *, check_mode: bool) -> bytes:
    """Return what standard input is: the sources of *module* and its options."""
    document = {**_sources(module.rpartition(".")[2]), "args": dict(args), "check_mode": check_mode, "start": START, "end": END}
    return zlib.compress(json.dumps(document).encode(), 1)


def light_result(code: int, output: str, errors: str) -> dict[str, t.Any] | None:
    """Return the module's result; None when nothing was begun, so that another way may be taken."""
    lines = output.splitlines()
    if START not in lines:
        return None
    answer = lines[lines.index(START) + 1:]
    if len(answer) == 2 and answer[1] == END:
        result: dict[str, t.Any] = json.loads(answer[0])
        return result
    return {"failed": True, "rc": code, "module_stderr": errors, "msg": ""}


@functools.cache
def _sources(module: str) -> dict[str, t.Any]:
    found: dict[str, str] = {}
    waiting = [f"modules.{module}"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _PLUGINS.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            waiting += [f"module_utils.{item}" for item in _imported(found[name])]
    return {
        "name": f"{_PACKAGE}.modules.{module}", "sources": {f"{_PACKAGE}.{name}": text for name, text in found.items()},
        "light": (_PLUGINS / "plugin_utils" / "_light_module.py").read_text(encoding="utf-8"),
    }


def _imported(source: str) -> list[str]:
    """Return the names of our own module_utils that *source* imports."""
    pairs = _IMPORTED.findall(source)
    return [name for one, several in pairs for name in ([one] if one else [item.split()[0] for item in several.split(",")])]
