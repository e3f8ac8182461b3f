# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small documents that the forks of one controller share (private to muster.agents).

Each is a JSON file of mode 0600 with a lock beside it: whoever holds the lock has the document to itself, and a fork that dies lets go of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import typing as t

from ansible import constants as core_constants

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file

__all__ = ["SharedDocument", "state_directory"]


def state_directory(part: str) -> str:
    """Return where the controller keeps *part* of its state: below Ansible's home, which belongs to the user who runs it."""
    return os.path.join(_ansible_home(os.environ.get("ANSIBLE_HOME")), "muster", part)


@functools.lru_cache(maxsize=1)
def _ansible_home(_environment: str | None) -> str:
    """Return Ansible's home, looked up anew only when the environment names another."""
    return str(core_constants.config.get_config_value("ANSIBLE_HOME"))


class SharedDocument:
    """One JSON object. Without a directory it lives in this object alone, for callers that share nothing."""

    def __init__(self, directory: str, *identity: str) -> None:
        """*directory* is made with mode 0700 when first needed; *identity* names the document, by a digest."""
        digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]
        self._directory = directory
        self._path = os.path.join(directory, f"{digest}.json") if directory else ""
        self._private: dict[str, t.Any] = {}

    @property
    def untouched(self) -> bool:
        """Whether nobody has ever written anything to it; this asks without waiting for a turn."""
        return not self._private and not (self._path and os.path.exists(self._path))

    @contextlib.contextmanager
    def held(self) -> t.Iterator[dict[str, t.Any]]:
        """Yield the document; what is changed in it is written when the block ends without an exception. Waits for its turn.

        A file that cannot be made or read costs the sharing, not the work: the document is private then.
        """
        try:
            lock = self._lock()
        except OSError:
            lock = None
        if lock is None:
            yield self._private
            return
        with os.fdopen(lock, "w"):
            document = self._read()
            before = json.dumps(document, sort_keys=True)
            yield document
            if json.dumps(document, sort_keys=True) != before:
                with contextlib.suppress(OSError):
                    replace_file(self._path, json.dumps(document).encode())

    def _lock(self) -> int | None:
        if not self._path:
            return None
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        descriptor = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _read(self) -> dict[str, t.Any]:
        try:
            with open(self._path, encoding="utf-8") as stream:
                document = json.load(stream)
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}
