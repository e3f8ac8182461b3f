# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments in the cache: found by name, made on demand, left alone while their requirements stay the same.

``python3 -m world.venvs demo`` makes one and prints the path of its Python. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import WorldError
from .machine import TOP, cache_directory, install_packages

__all__ = ["VENVS", "Venv", "find_python", "make", "python_directories"]

_REQUIREMENTS = TOP / "tests" / "requirements"


@dataclass(frozen=True)
class Venv:
    """One environment: its name, its requirements file, and the Python versions (minor of 3) it may use, best first."""

    name: str
    requirements: str
    minors: tuple[int, ...]

    @property
    def directory(self) -> Path:
        """Where it lives."""
        return cache_directory() / f"venv-{self.name}"

    @property
    def bin(self) -> Path:
        """Its folder of programs."""
        return self.directory / "bin"


VENVS = {
    venv.name: venv
    for venv in (
        Venv("2.16", "core-2.16.txt", (11, 12, 10)),
        Venv("2.19", "core-2.19.txt", (11, 12, 13)),
        Venv("2.21", "core-2.21.txt", (13, 12, 14)),
        Venv("tools", "tools.txt", (11, 12, 13, 14)),
        Venv("demo", "demo.txt", (13, 12, 14, 11, 10)),
        Venv("bench", "bench.txt", (11, 12, 13)),
    )
}


def _pyenv_pythons() -> dict[int, Path]:
    """Return the newest real interpreter (never a shim) of each minor version that pyenv holds."""
    try:
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
    except OSError:
        return {}
    found: dict[tuple[int, int], Path] = {}
    for interpreter in Path(root.stdout.strip() or "/nonexistent").glob("versions/3.*/bin/python"):
        _major, minor, patch = (interpreter.parent.parent.name + ".0").split(".")[:3]
        if minor.isdigit() and patch.isdigit():
            found[int(minor), int(patch)] = interpreter
    return {minor: found[minor, patch] for minor, patch in sorted(found)}


def find_python(minors: Sequence[int]) -> Path | None:
    """Return the first interpreter 3.X, in the order of ``minors``, that really runs on this machine."""
    managed = _pyenv_pythons()
    for minor in minors:
        for candidate in (managed.get(minor), Path(f"/usr/bin/python3.{minor}"), Path(f"/usr/local/bin/python3.{minor}")):
            if candidate is None or not candidate.exists():
                continue
            probe = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
            if subprocess.run([str(candidate), "-c", probe], capture_output=True, check=False).returncode == 0:
                return candidate
    return None


def python_directories(minors: Sequence[int] = (9, 10, 11, 12, 13, 14)) -> list[str]:
    """Return the folders of the real interpreters, for the PATH of tools that look for ``python3.X`` by name."""
    found = [find_python([minor]) for minor in minors]
    return [str(interpreter.parent) for interpreter in found if interpreter]


def _fingerprint(requirements: Path) -> str:
    """Hash a requirements file and all it includes."""
    digest = hashlib.sha256()
    for line in requirements.read_text().splitlines():
        digest.update(line.encode())
        if line.startswith("-r "):
            digest.update(_fingerprint(requirements.parent / line[3:].strip()).encode())
    return digest.hexdigest()


def make(name: str) -> Path:
    """Return the Python of the environment ``name`` (a key of VENVS), made or brought up to date first when needed.

    Raises WorldError when no suitable Python is here or pip fails.
    """
    venv = VENVS[name]
    requirements = _REQUIREMENTS / venv.requirements
    stamp = venv.directory / "muster-requirements.json"
    python = venv.bin / "python"
    wanted = {"requirements": _fingerprint(requirements)}
    venv.directory.parent.mkdir(parents=True, exist_ok=True)
    with (venv.directory.parent / f"venv-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and python.exists() and json.loads(stamp.read_text()) == wanted:
            return python
        if not python.exists():
            _create(venv)
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)])
        stamp.write_text(json.dumps(wanted))
    return python


def _create(venv: Venv) -> None:
    base = find_python(venv.minors)
    if base is None:
        versions = ", ".join(f"3.{minor}" for minor in sorted(venv.minors))
        raise WorldError(f"The environment {venv.name} needs one of Python {versions}.", "Install one with apt-get or pyenv.")
    if subprocess.run([str(base), "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode:
        install_packages([f"{base.name}-venv"])
    _run([str(base), "-m", "venv", "--clear", str(venv.directory)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise WorldError(f"`{' '.join(command[:5])} ...` failed:\n{tail}")


if __name__ == "__main__":
    try:
        for _name in sys.argv[1:] or VENVS:
            print(make(_name))
    except WorldError as problem:
        sys.exit(f"world: {problem}")
