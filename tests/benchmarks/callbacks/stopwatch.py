# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notes when each task of a play began and ended, as lines of JSON in the file that MUSTER_BENCH_TASKS names."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: stopwatch
type: aggregate
short_description: Times tasks for the benchmarks
description: Writes a line of JSON when a task begins and when the play is over.
"""


class CallbackModule(CallbackBase):
    """One line per task; a task ends where the next one begins."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "stopwatch"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._note(task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._note("")

    def _note(self, name: str) -> None:
        with open(os.environ["MUSTER_BENCH_TASKS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"task": name, "at": time.monotonic()}) + "\n")
