# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who holds a lease, in a worker of ansible-playbook and in one that outlived it."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host import controller_identity, holder_is_dead, require_controller

FORK = multiprocessing.get_context("fork")


def _worker(controller: int, answers: Connection, orphaned: bool) -> None:
    """Say whose lease this worker would take, and whether it goes on."""
    while orphaned and os.getppid() == controller:
        time.sleep(0.01)
    try:
        require_controller()
        answers.send((controller_identity(), ""))
    except HostFailure as error:
        answers.send((controller_identity(), error.reason))


def _controller(answers: Connection, orphaned: bool) -> None:
    """Start a worker, and be killed or wait for it."""
    worker = FORK.Process(target=_worker, args=(os.getpid(), answers, orphaned))
    worker.start()
    if orphaned:
        os._exit(0)
    worker.join()


@pytest.mark.parametrize(("orphaned", "stopped"), [(False, ""), (True, "controller_gone")], ids=["at work", "outlived"])
def test_a_worker_that_outlived_its_controller_keeps_its_name_and_stops(orphaned: bool, stopped: str) -> None:
    ours, theirs = FORK.Pipe()
    controller = FORK.Process(target=_controller, args=(theirs, orphaned))
    controller.start()
    controller.join()
    identity, reason = ours.recv()
    assert identity.rpartition(":")[2] == str(controller.pid)
    assert reason == stopped
    assert holder_is_dead(identity)


def test_a_process_that_is_no_worker_goes_on() -> None:
    require_controller()
    assert controller_identity().endswith(f":{os.getppid()}")
