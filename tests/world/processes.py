# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long-lived servers of a world: started detached, known by a pid file, and never mistaken for somebody else's process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

from .errors import WorldError

__all__ = ["Daemon", "free_port", "port_in_use", "wait_until"]


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that was free on ``address`` a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def port_in_use(address: str, port: int) -> bool:
    """Say whether something already listens on ``address:port``."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def wait_until(predicate: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Call ``predicate`` until it is true or ``seconds`` passed. Returns its last answer as a bool."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if predicate():
            return True
        time.sleep(pause)
    return bool(predicate())


class Daemon:
    """One background server: a command, its log, and its pid file.

    A pid alone proves nothing after a reboot, so a process counts as ours only while its command line still carries ``marker``.
    """

    def __init__(self, name: str, pid_file: Path, log_file: Path, marker: str) -> None:
        """``marker`` is a string that appears in this server's command line and in no other's (the path of its configuration)."""
        self.name = name
        self.pid_file = pid_file
        self.log_file = log_file
        self.marker = marker
        self._child: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        """Return the pid of the running server, or None."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        if self._child is not None and self._child.pid == pid:
            return pid if self._child.poll() is None else None
        try:
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        return pid if self.marker.encode() in command_line else None

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start ``command`` in a session of its own with output appended to the log. Does not wait for it to be ready."""
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                close_fds=True,
            )
        self.pid_file.write_text(f"{self._child.pid}\n")

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ``ready`` says so. Raises WorldError with the log's tail when the server ends or the time is over."""

        def settled() -> bool:
            return self.pid() is None or ready()

        if wait_until(settled, seconds) and self.pid() is not None:
            return
        state = "is not ready" if self.pid() is not None else "ended"
        raise WorldError(f"{self.name} {state}; the end of {self.log_file}:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        """Return the last ``lines`` lines of the log."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def stop(self, seconds: float = 10) -> None:
        """End the server (SIGTERM, then SIGKILL) and forget its pid. Does nothing when it is not running."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid()
            if pid is None:
                break
            os.kill(pid, number)
            wait_until(lambda: self.pid() is None, seconds)
        if self._child is not None:
            self._child.wait(timeout=seconds)
            self._child = None
        self.pid_file.unlink(missing_ok=True)
