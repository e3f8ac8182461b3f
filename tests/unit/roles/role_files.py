# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The roles of the collection under test, as files and as variables; shared by the tests of this folder."""

from __future__ import annotations

import importlib
import inspect
import typing as t
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ansible_collections.muster.agents.plugins.plugin_utils import _rendering

__all__ = ["COLLECTION", "ROLES", "Variables", "load", "tasks", "trusted"]

COLLECTION = Path(_rendering.__file__).resolve().parents[2]
ROLES = sorted(folder for folder in (COLLECTION / "roles").iterdir() if folder.is_dir())


def trusted(text: str) -> str:
    """Return *text* as inventory or play text is: a template where core knows trust."""
    mark = getattr(importlib.import_module("ansible.template"), "trust_as_template", str)
    return t.cast(str, mark(text))


def tasks(content: t.Any) -> t.Iterator[dict[str, t.Any]]:
    """Yield every task in the loaded *content* of a task file or playbook, also those inside blocks."""
    for item in content or ():
        for section in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(item.get(section))
        if "block" not in item and "hosts" not in item:
            yield item


class Variables:
    """The variables that a task of *role* sees: defaults and vars of the roles, the profile, and the operator's own."""

    def __init__(self, role: str, profile: str = "stacker", **given: t.Any) -> None:
        self._loader = DataLoader()
        self.all: dict[str, t.Any] = {"inventory_hostname": "host-a", "ansible_check_mode": False, "role_path": str(COLLECTION / "roles" / role)}
        for name in dict.fromkeys(("agent", role)):
            for file in ("defaults/main.yml", "vars/main.yml"):
                self._load(COLLECTION / "roles" / name / file)
        self._load(COLLECTION / "roles" / "agent" / "vars" / f"{profile}.yml")
        self.all.update({"agent_control_plane": profile, "agent_name": "n-1", "agent_control_plane_url": "https://stacker.example.com/"})
        self.all.update(given)

    def value(self, expression: str) -> t.Any:
        """Return what *expression* comes to."""
        return self.templar().template(trusted("{{ " + expression + " }}"))

    def templar(self) -> Templar:
        """Return a templar over these variables."""
        return Templar(loader=self._loader, variables=self.all)

    def _load(self, file: Path) -> None:
        if not file.exists():
            return
        trust = {"trusted_as_template": True} if "trusted_as_template" in inspect.signature(self._loader.load_from_file).parameters else {}
        self.all.update(self._loader.load_from_file(str(file), **trust) or {})


def load(file: Path) -> t.Any:
    """Return the content of a YAML file as plain data."""
    return yaml.safe_load(file.read_text())
