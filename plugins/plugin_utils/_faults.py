# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Named points of the transaction at which a test may end it (private to muster.agents).

Nothing happens unless the environment of ansible-playbook sets ``MUSTER_AGENTS_TEST_FAULT=<point>=<kill|raise|break|stop>``, which is meant for
tests alone. ``kill`` ends the controller at once; ``raise`` fails as the product does, ``break`` as a mistake in it would; ``stop`` halts the worker
until somebody kills or continues it, so that many can be killed at one point.
"""

from __future__ import annotations

import multiprocessing
import os
import signal

from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError

__all__ = ["POINTS", "reach"]

POINTS = (
    "after_probe", "after_look", "before_issue", "after_issue", "after_spool", "after_settle", "after_vault", "after_mint", "before_delivery",
    "after_delivery", "before_commit", "after_commit", "after_key", "after_sign", "before_install", "after_install", "after_revoke",
    "after_plan", "after_lease", "after_stage", "after_nudge", "after_gate", "before_rollback", "after_vault_back", "after_rollback", "before_retire",
    "after_retire",
)
_SWITCH = "MUSTER_AGENTS_TEST_FAULT"


def reach(point: str) -> None:
    """Say that the transaction has come to *point*. With the test switch on it, stop there, kill the controller, or raise AgentsError or RuntimeError."""
    wanted, _equals, action = os.environ.get(_SWITCH, "").partition("=")
    if wanted != point:
        return
    if action == "raise":
        raise AgentsError(f"The test switch ended the run at {point}.", reason="test_fault")
    if action == "break":
        raise RuntimeError(f"The test switch ended the run at {point}.")
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    # A worker whose controller is gone already has been adopted by some other process, which is none of ours.
    controller = multiprocessing.parent_process()
    if controller is not None and controller.pid == os.getppid():
        os.kill(controller.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
