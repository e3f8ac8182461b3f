# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates, as data. Each is a name, an environment, and the commands that must all succeed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from world.machine import TOP
from world.venvs import python_directories

from .place import Place

__all__ = ["GATES", "Gate", "Step"]

# A world of its own, beside one that `make demo` left up.
_WORLD = {
    "MUSTER_WORLD": str(TOP / "build" / "gate-world"),
    "MUSTER_WORLD_FLAGS": ("--name=muster-demo-gate --network=10.231.18.0/24 --control-plane-port=18543 --control-port=18544 --vault-port=18300"),
}


@dataclass(frozen=True)
class Step:
    """One command, where it runs, and what it adds to the environment."""

    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """``venv``: a key of world.venvs.VENVS whose programs come first on PATH. ``package``: whose version the table shows.

    ``one_core``: it never keeps more than one core busy, and runs beside the others.
    """

    name: str
    venv: str
    package: str
    steps: Callable[[Place, Path], list[Step]]
    note: str = ""
    minutes: int = 15
    one_core: bool = False

    @property
    def title(self) -> str:
        """Unique name, with the ansible-core where one gate runs on several."""
        return f"{self.name}-{self.venv}" if self.venv.startswith("2.") else self.name


def _build(place: Place, _bin: Path) -> list[Step]:
    return [Step((sys.executable, "-m", "gates.build"), place.top)]


def _sanity(*skipped: str, hosts: tuple[str, ...] = ()) -> Callable[[Place, Path], list[Step]]:
    """Every sanity test on a fresh copy of the installed tarball, except those ``skipped``; code of hosts also under the Pythons in ``hosts``."""

    def steps(place: Place, bin_folder: Path) -> list[Step]:
        minor = next((bin_folder.parent / "lib").glob("python3.*")).name.removeprefix("python")
        path = os.pathsep.join([str(bin_folder), *python_directories(), "/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        environment = {"PATH": path, "PYTHONPATH": ""}
        command = ["ansible-test", "sanity", "--venv", "--python", minor, "--color", "no", *(f"--skip-test={name}" for name in skipped)]
        return [
            Step((sys.executable, "-m", "gates.ansible_test_pip", str(bin_folder.parent)), place.top),
            Step((sys.executable, "-c", "from gates.place import Place; Place().copy_installed()"), place.top),
            Step(tuple(command), place.sanity, environment),
            *(Step(("ansible-test", "sanity", "--venv", "--python", old, "--color", "no", "--test", "compile", "--test", "import"), place.sanity, environment)
              for old in hosts),
        ]

    return steps


def _pytest(folder: str, *selection: str) -> Callable[[Place, Path], list[Step]]:
    def steps(place: Place, bin_folder: Path) -> list[Step]:
        environment = {
            "PYTHONPATH": f"{place.collections}{os.pathsep}{place.top / 'tests'}",
            "ANSIBLE_COLLECTIONS_PATH": str(place.collections),
        }
        return [Step((str(bin_folder / "python"), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *selection, folder), place.top, environment)]

    return steps


def _mypy(place: Place, _bin: Path) -> list[Step]:
    common = ("mypy", "--config-file", str(place.top / "pyproject.toml"))
    return [
        Step(
            (*common, "ansible_collections/muster/agents/plugins"),
            place.collections,
            {"MYPYPATH": str(place.collections), "PYTHONPATH": ""},
        ),
        Step((*common, "tests/world", "tests/gates"), place.source, {"MYPYPATH": str(place.source / "tests"), "PYTHONPATH": ""}),
    ]


def _galaxy_importer(place: Place, bin_folder: Path) -> list[Step]:
    config = place.top / "tests" / "gates" / "galaxy-importer.cfg"
    return [Step((str(bin_folder / "python"), "-m", "gates.importer", str(place.tarball)), place.build, {"GALAXY_IMPORTER_CONFIG": str(config)})]


def _molecule(place: Place, _bin: Path) -> list[Step]:
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(place.collections), "MOLECULE_COMMAND_BORDERS": "0", "NO_COLOR": "1"}
    return [Step(("python", "-m", "gates.molecule"), place.top, environment)]


def _demo(place: Place, _bin: Path) -> list[Step]:
    return [
        Step(("make", "demo-down"), place.top, _WORLD),
        Step(("make", "demo"), place.top, _WORLD),
        Step(("make", "demo", "DEMO=--unchanged"), place.top, _WORLD),
        Step(("make", "demo-down"), place.top, _WORLD),
    ]


def _in(where: str, *command: str) -> Callable[[Place, Path], list[Step]]:
    """One command in the copy of the source or in the installed collection."""

    def steps(place: Place, _bin: Path) -> list[Step]:
        folder: Path = getattr(place, where)
        return [Step(command, folder, {"ANSIBLE_COLLECTIONS_PATH": str(place.collections), "PYTHONPATH": str(place.top / "tests")})]

    return steps


GATES: tuple[Gate, ...] = (
    Gate("build", "tools", "ansible-core", _build),
    Gate("licences", "tools", "", _in("source", "python", "-m", "gates.licences", ".")),
    Gate("ruff", "tools", "ruff", _in("source", "ruff", "check", "--no-cache", ".")),
    Gate("mypy", "tools", "mypy", _mypy),
    Gate("yamllint", "tools", "yamllint", _in("source", "yamllint", "--strict", ".")),
    Gate("role-specs", "tools", "", _in("installed", "python", "-m", "gates.role_specs", "roles")),
    Gate("ansible-lint", "tools", "ansible-lint", _in("source", "ansible-lint", "--offline", "--profile", "production", "--nocolor")),
    Gate("changelog", "tools", "antsibull-changelog", _in("source", "antsibull-changelog", "lint")),
    Gate(
        "docs",
        "tools",
        "antsibull-docs",
        _in("installed", "antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=all", "."),
    ),
    Gate("galaxy-importer", "tools", "galaxy-importer", _galaxy_importer),
    Gate("sanity", "2.16", "ansible-core", _sanity(), one_core=True),
    Gate("sanity", "2.19", "ansible-core", _sanity(), one_core=True),
    Gate("sanity", "2.21", "ansible-core", _sanity(hosts=("3.9",)), one_core=True),
    Gate("unit", "2.19", "ansible-core", _pytest("tests/unit")),
    # The same Python as 2.19 with another core, and another Python with yet another core.
    Gate("unit", "2.16", "ansible-core", _pytest("tests/unit", "-m", "not thorough and not coreless")),
    Gate("unit", "2.21", "ansible-core", _pytest("tests/unit", "-m", "not thorough")),
    Gate("integration", "2.19", "ansible-core", _pytest("tests/integration"), minutes=40),
    # What does not depend on ansible-core is proved once, above.
    *(Gate("integration", core, "ansible-core", _pytest("tests/integration", "-m", "not thorough"), minutes=20) for core in ("2.16", "2.21")),
    Gate("molecule", "tools", "molecule", _molecule, minutes=40),
    Gate("demo", "demo", "ansible-core", _demo),
)
