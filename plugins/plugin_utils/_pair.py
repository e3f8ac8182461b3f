# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Trying a pair of certificate and key where it lies, since the key never leaves the host (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible_collections.muster.agents.plugins.module_utils._local_probe import Check
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import HostProof

__all__ = ["PROBE", "Executor", "last_line", "pair_checks", "pair_option"]

PROBE = "muster.agents.agent_probe"


class Executor(t.Protocol):
    """What is needed of a host; _host.Host is one."""

    def execute(self, module: str, args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Run a module on the host."""


def pair_option(wanted: HostProof, ca_cert: str = "") -> dict[str, t.Any]:
    """Return agent_probe's option ``pair``. *ca_cert* is a file on the controller; its text goes along, since the host may not have it."""
    ca = ""
    if ca_cert and wanted.url:
        with open(ca_cert, encoding="utf-8") as stream:
            ca = stream.read()
    option = {"certificate": wanted.certificate_path, "key": wanted.key_path, "url": wanted.url, "ca": ca}
    return {name: value for name, value in option.items() if value}


def pair_checks(host: Executor, wanted: HostProof, ca_cert: str = "") -> list[Check]:
    """Return what the host found out about the pair. Raises HostFailure when it cannot look."""
    answer = host.execute(PROBE, {"pair": pair_option(wanted, ca_cert), "timeout": 0.0, "journal": "never"})
    if answer.get("failed") or "checks" not in answer:
        raise HostFailure(f"The pair cannot be looked at on the host: {last_line(answer)}")
    return [Check(**item) for item in answer["checks"]]


def last_line(answer: t.Mapping[str, t.Any]) -> str:
    """Return the last line of what a module that failed says, at most 300 characters."""
    lines = str(answer.get("msg") or answer.get("module_stderr") or "no answer").strip().splitlines()
    return lines[-1][:300] if lines else "no answer"
