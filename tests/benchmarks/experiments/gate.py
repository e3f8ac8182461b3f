# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for an agent that is ready 1.5 seconds after it is first asked, against ``uri`` with ``until``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..controller import Play
from ..experiment import Experiment, Line, Options, Side, ratio, task
from ..ground import Ground
from ..measure import Sample
from ..tasks import ENROL

__all__ = ["gate"]

READY_AFTER = 1.5


class _Handler(BaseHTTPRequestHandler):
    """Answers 503 until the server's time has come, then what a healthy agent answers."""

    server: _Agent

    def do_GET(self) -> None:  # the name that the standard library looks for
        ready = self.server.is_ready()
        body = json.dumps({"status": "ok", "token_age_seconds": 1, "last_refresh_ok": True}).encode() if ready else b"{}"
        self.send_response(200 if ready else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


class _Agent(ThreadingHTTPServer):
    """A health page that is ready some time after the first question, so that the start of ansible-playbook favours nobody."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._first = 0.0
        self._lock = threading.Lock()

    def is_ready(self) -> bool:
        with self._lock:
            self._first = self._first or time.monotonic()
            return time.monotonic() - self._first >= READY_AFTER


@contextmanager
def _agent() -> Iterator[str]:
    """Serve one health page. Yields its URL."""
    server = _Agent()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/health"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_OURS: list[dict[str, Any]] = [{
    "name": "Wait", "muster.agents.agent_health": {
        "control_plane": "stacker", "url": "{{ stacker_url }}", "ca_cert": "{{ ca_file }}", "name": "{{ deployment_hash }}", "store": "{{ place }}/store",
        "health_url": "{{ health_url }}", "seen": False,
    },
}]
_THEIRS: list[dict[str, Any]] = [{
    "name": "Wait", "ansible.builtin.uri": {"url": "{{ health_url }}", "method": "GET"}, "register": "health_check", "retries": 10, "delay": 2,
    "until": "health_check.status == 200",
}]


def gate(ground: Ground, options: Options) -> Experiment:
    """Ours also proves the credential at the control plane, and commits the receipt."""

    def waited(tasks: Sequence[Mapping[str, Any]]) -> Sample:
        agents = ground.agents(1)
        with _agent() as url:
            variables = {**ground.variables, "health_url": url}
            ground.controller.run(Play(ENROL, agents.hosts(), variables))
            sample = ground.controller.run(Play(tasks, agents.hosts(), variables))
            ground.documented.reset()
            return sample

    work = f"health gate, agent ready after {READY_AFTER} s"
    return Experiment(
        "gate", work,
        (Side("ours", "agent_health", lambda: waited(_OURS)), Side("peer", "uri, until, delay: 2", lambda: waited(_THEIRS))),
        (Line(f"{work}: task time", "uri with until, delay: 2", ratio("peer", "ours", task), 1.5),))
