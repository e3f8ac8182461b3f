# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Files that are either the old one or the new one, also after a power cut (private; no stability promise outside muster.agents).

Runs on the host with Python 3.9+ and its standard library alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

__all__ = ["replace_file", "sync", "sync_directory", "temporary_name", "write_private"]


def temporary_name(path: str) -> str:
    """Return the name beside *path* under which its next content is staged; fixed, so that a leftover can be found again."""
    directory, base = os.path.split(path)
    return os.path.join(directory, f".{base}.muster")


def write_private(path: str, content: bytes, *, mode: int = 0o600, uid: int = -1, gid: int = -1, wait: bool = True) -> None:
    """Create *path* with *content*, owner and mode set before the first byte, and *wait* until it is on disk.

    An existing file or link of that name is removed first and never followed. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        if uid != -1 or gid != -1:
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        _write_all(descriptor, content)
        if wait:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: str, content: bytes, *, mode: int = 0o600) -> None:
    """Write *content* beside *path*, then rename it there and wait until the directory is on disk. Raises OSError, and leaves nothing beside it then."""
    staged = temporary_name(path)
    try:
        write_private(staged, content, mode=mode)
        os.replace(staged, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise
    sync_directory(os.path.dirname(path))


def sync(paths: Iterable[str]) -> None:
    """Wait until the files and the entries of the directories *paths* are on disk; many together take little longer than one. Raises OSError."""
    for path in paths:
        _sync(path, 0)


def sync_directory(path: str) -> None:
    """Wait until the entries of the directory *path* are on disk. Raises OSError."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view: bytes | memoryview = memoryview(content)
    while view:
        view = view[os.write(descriptor, view):]
