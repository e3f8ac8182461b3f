# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""What a host says of itself when an agent is enrolled (private; no stability promise outside muster.agents).

Runs on the host with Python 3.9+ and its standard library alone. The shell way (plugin_utils/_host_scripts.py) tells the same by the same names.
"""

from __future__ import annotations

import os
import platform
import shutil
import typing as t

__all__ = ["Runner", "host_facts", "host_tools"]

_TOOLS = ("docker", "rsync", "curl")
Runner = t.Callable[[t.Sequence[str]], tuple[int, str]]
"""Runs a command and returns its exit code and output."""


def host_tools() -> list[str]:
    """Return the names of those programs on the host that an agent may have a use for."""
    return [name for name in _TOOLS if shutil.which(name)]


def host_facts(run: Runner) -> dict[str, t.Any]:
    """Return system, sizes in KiB, uptime in seconds, and the versions of Docker and its compose plugin where they are; *run* asks for the latter."""
    facts: dict[str, t.Any] = {
        "os": platform.system(), "arch": platform.machine(), "hostname": platform.node(), "kernel_version": platform.release(),
        "cpu_cores": os.cpu_count() or 0, "disk_free_kib": shutil.disk_usage("/").free // 1024,
        "memory_kib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024,
    }
    try:
        with open("/proc/uptime", encoding="ascii") as stream:
            facts["uptime_seconds"] = int(float(stream.read().split()[0]))
    except (OSError, ValueError):
        facts["uptime_seconds"] = 0
    if shutil.which("docker"):
        facts["docker_version"] = run(["docker", "--version"])[1].strip()
        code, output = run(["docker", "compose", "version", "--short"])
        facts["docker_compose_version"] = output.strip() if code == 0 else ""
    return facts
