# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs our own modules on a host without the archive that Ansible makes of a module (private to muster.agents).

Most of what a module costs a host is that archive and what AnsibleModule imports. This file and the sources of one module come on standard input instead
(_host_python.py sends them); the very same code runs, with a stand-in for the few things of AnsibleModule that our modules use.

Its own text runs on the host with Python 3.9+ and the standard library alone; no module imports it, nor anything on the controller.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
import typing as t
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader

__all__ = ["LightModule", "serve"]

_SYSTEM_FOLDERS = ("/sbin", "/usr/sbin", "/usr/local/sbin")


class LightModule:
    """Takes the place of AnsibleModule in a module that is run by :func:`serve`, whose options come from an action plugin of ours and are checked there."""

    given: t.ClassVar[t.Mapping[str, t.Any]] = {}
    checking: t.ClassVar[bool] = False
    mark: t.ClassVar[str] = ""

    def __init__(self, argument_spec: t.Mapping[str, t.Mapping[str, t.Any]], **_rest: t.Any) -> None:
        self.params = _complete(self.given, argument_spec)
        self.check_mode = self.checking
        self.run_command_environ_update: dict[str, str] = {}

    def exit_json(self, **result: t.Any) -> t.NoReturn:
        """Tell the result and end."""
        _say(json.dumps(result), self.mark)
        raise SystemExit(0)

    def fail_json(self, **result: t.Any) -> t.NoReturn:
        """Tell the failure and end."""
        self.exit_json(**{**result, "failed": True})

    def run_command(self, command: t.Sequence[str]) -> tuple[int, str, str]:
        """Run *command* and return its code, output and errors; one that cannot be started fails with the code that a shell gives."""
        try:
            done = subprocess.run(
                list(command), check=False, capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, **self.run_command_environ_update})
        except OSError as error:
            return 127, "", str(error)
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")

    def get_bin_path(self, name: str) -> str | None:
        """Return where the program *name* lies, also among those of the system's administrator; None for nowhere."""
        return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS)))

    def selinux_enabled(self) -> bool:
        """Hosts with SELinux are left to the real module."""
        return False


class _Text(SourceFileLoader):
    """Loads one module from its text; a package has none. There is no file, so nothing is kept beside one either."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, f"<{name}>")
        self._text = text

    def get_data(self, path: str) -> bytes:
        """Return the source."""
        return self._text.encode()

    def path_stats(self, path: str) -> t.NoReturn:
        """Raise OSError, which keeps Python from looking for compiled code, and from writing it."""
        raise OSError(path)


class _Finder:
    """Finds modules among texts by their full names, with the packages above them."""

    def __init__(self, sources: t.Mapping[str, str]) -> None:
        self._sources = sources
        self._packages = {name[:end] for name in sources for end in range(len(name)) if name[end] == "."}

    def find_spec(self, name: str, _path: t.Any = None, _target: t.Any = None) -> ModuleSpec | None:
        """Return how to load *name*, None for what is not ours."""
        if name not in self._sources and name not in self._packages:
            return None
        return ModuleSpec(name, _Text(name, self._sources.get(name, "")), origin=f"<{name}>", is_package=name in self._packages)


def serve(payload: t.Mapping[str, t.Any]) -> None:
    """Run a module: *payload* has its full ``name``, the ``sources`` of it and of what it imports, ``args``, ``check_mode``, ``start`` and ``end``."""
    if os.path.exists("/sys/fs/selinux/enforce"):
        _say("unfit selinux")
        return
    LightModule.given, LightModule.checking, LightModule.mark = payload["args"], payload["check_mode"], payload["end"]
    basic = types.ModuleType("ansible.module_utils.basic")
    vars(basic)["AnsibleModule"] = LightModule
    for name in ("ansible", "ansible.module_utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[basic.__name__] = basic
    sys.meta_path.insert(0, t.cast(t.Any, _Finder(payload["sources"])))
    module = import_module(payload["name"])
    _say(payload["start"])
    module.main()


def _say(*lines: str) -> None:
    """Write lines to standard output, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _complete(given: t.Mapping[str, t.Any], spec: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """Return *given* with the defaults of *spec*, also one level down."""
    unknown = set(given) - set(spec)
    if unknown:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    found = {name: given[name] if given.get(name) is not None else option.get("default") for name, option in spec.items()}
    for name, option in spec.items():
        inner = found[name]
        if "options" in option and isinstance(inner, dict):
            found[name] = _complete(inner, option["options"])
    return found
