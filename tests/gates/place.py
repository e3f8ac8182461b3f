# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where gates work: the tarball as a user would install it, and copies that checkers may write into."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from world.machine import TOP

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """Paths below ``build/`` of the checkout."""

    top: Path = TOP

    @property
    def build(self) -> Path:
        """Everything that gates write."""
        return self.top / "build"

    @property
    def logs(self) -> Path:
        """One full log per gate."""
        return self.build / "logs"

    @property
    def tarball(self) -> Path:
        """The one tarball that was built last."""
        return next(iter((self.build / "dist").glob("muster-agents-*.tar.gz")), self.build / "dist" / "none.tar.gz")

    @property
    def collections(self) -> Path:
        """Where the tarball is installed: the value of ANSIBLE_COLLECTIONS_PATH."""
        return self.build / "collections"

    @property
    def installed(self) -> Path:
        """The installed collection."""
        return self.collections / "ansible_collections" / "muster" / "agents"

    @property
    def sanity(self) -> Path:
        """A git-initialised copy of the installed collection, since ansible-test writes beside what it tests."""
        return self.build / "sanity" / "ansible_collections" / "muster" / "agents"

    @property
    def source(self) -> Path:
        """A git-initialised copy of the checkout without what git ignores, for checkers of what is not shipped."""
        return self.build / "source" / "ansible_collections" / "muster" / "agents"

    def build_and_install(self, galaxy: Path) -> None:
        """Build the tarball with the program ``galaxy`` (ansible-galaxy) and install it offline. Raises CalledProcessError."""
        for folder in (self.build / "dist", self.collections):
            shutil.rmtree(folder, ignore_errors=True)
        self.copy_source()
        _run([str(galaxy), "collection", "build", "--force", "--output-path", str(self.build / "dist")], self.source)
        _run(
            [str(galaxy), "collection", "install", "--offline", "--force", "-p", str(self.collections), str(self.tarball)],
            self.build,
        )

    def copy_source(self) -> None:
        """Make ``source`` anew."""
        listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=self.top, capture_output=True, check=True)
        files = [Path(name.decode()) for name in listed.stdout.split(b"\0") if name]
        shutil.rmtree(self.source, ignore_errors=True)
        for file in files:
            if (self.top / file).is_file():
                (self.source / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.top / file, self.source / file)
        _initialise_git(self.source)

    def copy_installed(self) -> None:
        """Make ``sanity`` anew, with the ignore rules that keep ansible-test from checking its own output."""
        shutil.rmtree(self.sanity, ignore_errors=True)
        shutil.copytree(self.installed, self.sanity)
        (self.sanity / ".gitignore").write_text("tests/output/\ntests/integration/inventory\n.ansible/\n__pycache__/\n")
        _initialise_git(self.sanity)


def _initialise_git(folder: Path) -> None:
    _run(["git", "init", "--quiet"], folder)
    _run(["git", "add", "--all"], folder)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)
