# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for secrets where none may be: in text, in files, in the system log, and in what every process on the machine shows."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote, quote_plus

_LOG = Path("/dev/log")
_TURN = Path(tempfile.gettempdir()) / "muster-watch.lock"

__all__ = ["Watch", "found_in", "found_in_files", "slow_tools"]


def forms(secret: str) -> Iterator[bytes]:
    """Yield *secret* as it is and in the disguises in which it might travel: base64 at each offset, URL-encoded, escaped."""
    data = secret.encode()
    yield data
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + data)
        # The characters at either end also depend on the neighbours.
        inner = encoded[(offset * 8 + 5) // 6 + (1 if offset else 0): (offset + len(data)) * 8 // 6]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))
    for text in (quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1], repr(secret)[1:-1]):
        yield text.encode()
    yield data.hex().encode()


def found_in(data: bytes | str, secrets: Iterable[str]) -> list[str]:
    """Return which of *secrets* are in *data* in any form, by their first characters."""
    text = data.encode() if isinstance(data, str) else data
    return [f"{secret[:6]}..." for secret in secrets if any(form in text for form in forms(secret))]


def found_in_files(directory: Path, secrets: Iterable[str]) -> list[str]:
    """Return the files below *directory* that hold one of *secrets*."""
    known = list(secrets)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if found_in(path.read_bytes(), known) or found_in(str(path), known)]


def slow_tools(directory: Path) -> str:
    """Return a PATH whose ``sync`` takes a moment, so that a script on a host stays in sight while it holds secrets."""
    directory.mkdir(parents=True, exist_ok=True)
    tool = directory / "sync"
    tool.write_text(f'#!/bin/sh\nsleep 0.05\nexec {shutil.which("sync")} "$@"\n')
    tool.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def _is_served(log: Path) -> bool:
    """Whether somebody reads what is sent to the socket *log*; one whose reader was killed stays behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(str(log))
        except OSError:
            return False
    return True


class Watch:
    """While inside: collects command lines and environments of all processes, and what is sent to the system log.

    There is one log for the machine, so one who watches waits for another to end.
    """

    def __init__(self) -> None:
        self._turn: IO[str] | None = None
        self._seen: set[bytes] = set()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._log: socket.socket | None = None
        self._journal = b""

    def __enter__(self) -> Watch:
        self._turn = _TURN.open("w")
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        if not _is_served(_LOG):
            _LOG.unlink(missing_ok=True)
            self._log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._log.bind(str(_LOG))
            self._log.settimeout(0.2)
            self._threads.append(threading.Thread(target=self._listen, args=(self._log,), daemon=True))
        self._threads.append(threading.Thread(target=self._sample, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._log is not None:
            self._log.close()
            _LOG.unlink()
        elif shutil.which("journalctl"):
            done = subprocess.run(["journalctl", "--since=-10min", "--output=cat", "--no-pager"], capture_output=True, check=False)
            self._journal = done.stdout
        if self._turn is not None:
            self._turn.close()

    def processes(self, secrets: Iterable[str]) -> list[str]:
        """Which secrets a process showed in its command line or environment."""
        return found_in(b"\n".join(self._seen), secrets)

    def log(self, secrets: Iterable[str]) -> list[str]:
        """Which secrets the system log was told."""
        return found_in(self._journal, secrets)

    def _listen(self, log: socket.socket) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError, socket.timeout):
                self._journal += log.recv(65536) + b"\n"

    def _sample(self) -> None:
        own = str(os.getpid())
        while not self._over.wait(0.02):
            for pid in os.listdir("/proc"):
                if pid.isdigit() and pid != own:
                    for name in ("cmdline", "environ"):
                        with contextlib.suppress(OSError):
                            self._seen.add(Path(f"/proc/{pid}/{name}").read_bytes())
