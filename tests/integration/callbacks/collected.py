# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes each task's result as a line of JSON, as callbacks of any operator see it, to the file that MUSTER_TEST_RESULTS names."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: collected
type: aggregate
short_description: Collects results for tests
description: Writes each result as a line of JSON.
"""


class CallbackModule(CallbackBase):
    """One line for each result: host, task, outcome and the result itself."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "collected"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        self._note(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._note(result, "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._note(result, "unreachable")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._note(result, "skipped")

    def _note(self, result: Any, outcome: str) -> None:
        # ansible-core 2.16 has only the names with an underscore, which later versions deprecate.
        shown = result.result if hasattr(result, "result") else result._result
        host = result.host if hasattr(result, "host") else result._host
        task = result.task if hasattr(result, "task") else result._task
        line = {"host": host.get_name(), "task": task.get_name(), "outcome": outcome, "result": shown}
        with open(os.environ["MUSTER_TEST_RESULTS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")
