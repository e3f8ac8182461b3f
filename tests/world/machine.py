# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine is and what it lacks. Standard library only: it is the first thing that runs on a fresh machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .errors import WorldError

__all__ = ["TOP", "cache_directory", "has_program", "install_packages", "packages_for", "pure_cgroup_v2", "require_root"]

TOP = Path(__file__).resolve().parent.parent.parent
"""The root of the checkout."""

_HOST_PACKAGES = {"podman": "podman", "mmdebstrap": "mmdebstrap", "zstd": "zstd", "ssh-keygen": "openssh-client"}


def cache_directory() -> Path:
    """Where images and virtual environments outlive a checkout: MUSTER_CACHE, by default ``~/.cache/muster-agents``."""
    return Path(os.environ.get("MUSTER_CACHE") or Path.home() / ".cache" / "muster-agents")


def pure_cgroup_v2() -> bool:
    """Whether the machine has the unified cgroup hierarchy alone, as current distributions do."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def has_program(name: str) -> bool:
    """Whether ``name`` is on PATH or in a system directory that a user's PATH may lack."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def packages_for() -> list[str]:
    """Return the Debian packages that hosts need and this machine has not."""
    wanted = dict(_HOST_PACKAGES)
    if not pure_cgroup_v2():
        wanted["runc"] = "runc"
    if not has_program("podman"):
        wanted["iptables"] = "iptables"
    missing = [package for program, package in wanted.items() if not has_program(program)]
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.append("debian-archive-keyring")
    return missing


def require_root(purpose: str) -> None:
    """Raise WorldError unless this process is root."""
    if os.geteuid() != 0:
        raise WorldError(f"{purpose} needs root.", "Run the same command with sudo.")


def install_packages(packages: Iterable[str]) -> None:
    """Install Debian packages. Raises WorldError with the remedy when this machine cannot."""
    names = list(packages)
    if not names:
        return
    remedy = f"Install them yourself: {', '.join(names)}."
    if not has_program("apt-get"):
        raise WorldError("This machine lacks programs and is not a Debian or Ubuntu.", remedy)
    if os.geteuid() != 0:
        raise WorldError(f"These packages are missing: {', '.join(names)}.", f"Run with sudo, or: apt-get install {' '.join(names)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", *names]
    for command in (["apt-get", "update", "--quiet"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode and command is install:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
            raise WorldError(f"`{' '.join(command)}` failed:\n{tail}\n", remedy)
