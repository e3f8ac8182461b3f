# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Key, certificate and CA of a host as one unit (private; no stability promise outside muster.agents).

The files that an agent reads lie at fixed paths. Beside the certificate there is a folder of ours::

    agent.crt -> .muster/agent.crt/current/certificate.pem
    agent.key -> .muster/agent.crt/current/key.pem
    .muster/agent.crt/current -> generations/2
    .muster/agent.crt/generations/{1,2}/{key,certificate,ca}.pem
    .muster/agent.crt/stage/{key,request}.pem       a key that waits for its certificate
    .muster/agent.crt/stage/certificate.pem         that certificate, where it waits too until somebody else knows it

One rename of ``current`` changes all of it. Plain files at the fixed paths are taken over without a moment in which key and certificate are apart:
they become a generation, ``current`` names it, the links take the files' places, and only then is ``current`` switched.
Runs on the host with Python 3.9+ and its standard library alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
import typing as t
from contextlib import contextmanager
from dataclasses import dataclass, field

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file, sync_directory, temporary_name, write_private

__all__ = ["UNREADABLE", "Attributes", "Contents", "Found", "PairStore", "Places", "StoreProblem"]

_MAX_FILE = 1024 * 1024
_LOCK_WAIT = 10.0
_FOLDER_MODE = 0o755  # the agent goes through our folders; what it may read there is said by each file
_NAMES = ("certificate", "key", "ca")
UNREADABLE = b"\0"  # stands for what is there and is no file of a sensible size


class StoreProblem(Exception):
    """The store cannot be used: *reason* is locked, unsafe or changed, *place* where."""

    def __init__(self, reason: str, place: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place


@dataclass(frozen=True)
class Places:
    """The fixed paths. ca is empty when nobody reads one."""

    certificate: str
    key: str
    ca: str = ""

    @property
    def unit(self) -> str:
        """Our folder."""
        directory, name = os.path.split(self.certificate)
        return os.path.join(directory, ".muster", name)

    @property
    def waiting(self) -> str:
        """Where a certificate waits with its key."""
        return os.path.join(self.unit, "stage", "certificate.pem")

    def paths(self) -> dict[str, str]:
        """Return the fixed paths by role."""
        return {name: path for name, path in (("certificate", self.certificate), ("key", self.key), ("ca", self.ca)) if path}


@dataclass(frozen=True)
class Attributes:
    """Who may read the files: user and group by number, modes as numbers."""

    uid: int
    gid: int
    key_mode: int = 0o600
    certificate_mode: int = 0o644
    directory_mode: int = 0o755

    def mode(self, role: str) -> int:
        """Return the mode of the file in *role*."""
        return self.key_mode if role == "key" else self.certificate_mode


@dataclass(frozen=True)
class Contents:
    """The bytes of one unit; None for a file that is not there."""

    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    ca: bytes | None = None

    @property
    def is_whole(self) -> bool:
        """Whether there are both a certificate and a key that could be read."""
        return self.certificate not in (None, UNREADABLE) and self.key not in (None, UNREADABLE)

    def has_pair_of(self, other: Contents | None) -> bool:
        """Whether certificate and key are those of *other*."""
        return other is not None and (self.certificate, self.key) == (other.certificate, other.key)


@dataclass(frozen=True)
class Found:
    """What there is. fixed: as read at the fixed paths. linked: whether all of them lead into our folder.

    generations: by number; current: the number of the one in use, 0 for none. stage: a key and its request that wait for a certificate; waiting: that
    certificate, when it waits beside them.
    leftovers: what an interrupted run left. astray: fixed paths whose owner, group or mode is another. reload_pending: since when, 0 for not at all.
    """

    fixed: Contents
    linked: bool = False
    generations: t.Mapping[int, Contents] = field(default_factory=dict)
    current: int = 0
    stage: Contents = field(default_factory=Contents)
    waiting: bytes | None = None
    leftovers: tuple[str, ...] = ()
    astray: tuple[str, ...] = ()
    reload_pending: int = 0

    @property
    def newest(self) -> int:
        """The number of the newest generation, 0 for none."""
        return max(self.generations, default=0)

    def token(self) -> str:
        """Return a digest of all that a decision rests on, so that an installation can tell whether somebody came between."""
        digest = hashlib.sha256()
        for contents in (self.fixed, self.stage, *(self.generations[number] for number in sorted(self.generations))):
            for value in (contents.certificate, contents.key, contents.ca):
                digest.update(b"-" if value is None else hashlib.sha256(value).digest())
        digest.update(b"-" if self.waiting is None else hashlib.sha256(self.waiting).digest())
        digest.update(f"{sorted(self.generations)} {self.current} {self.linked}".encode())
        return digest.hexdigest()


class PairStore:
    """The unit of one certificate. *label* is called with a real path and the fixed path that it stands for, to give it its SELinux context."""

    def __init__(self, places: Places, attributes: Attributes, label: t.Callable[[str, str], None]) -> None:
        self._places = places
        self._attributes = attributes
        self._label = label
        self._unit = places.unit
        self._stage = os.path.join(self._unit, "stage")
        self._generations = os.path.join(self._unit, "generations")
        self._current = os.path.join(self._unit, "current")

    def look(self) -> Found:
        """Read everything; nothing is written. Raises OSError."""
        paths = self._places.paths()
        fixed = Contents(**{name: _read(path) for name, path in paths.items()})
        generations = {}
        for name in _listed(self._generations):
            if name.isdigit():
                generations[int(name)] = self._contents(os.path.join(self._generations, name))
        current = _number_of(self._current)
        return Found(
            fixed=fixed, linked=all(self._is_linked(name, path) for name, path in paths.items()), generations=generations,
            current=current if current in generations else 0,
            stage=Contents(certificate=_read(os.path.join(self._stage, "request.pem")), key=_read(os.path.join(self._stage, "key.pem"))),
            waiting=_read(self._places.waiting), leftovers=self._leftovers(generations, current), astray=self._astray(paths),
            reload_pending=_number(_read(os.path.join(self._unit, "reload_pending"))))

    def stage(self, key: bytes, request: bytes) -> None:
        """Keep a new key with its signing request; both are on disk when this returns. Raises OSError or StoreProblem."""
        self._make_folders()
        with self._locked():
            shutil.rmtree(self._stage, ignore_errors=True)
            os.mkdir(self._stage, 0o700)
            write_private(os.path.join(self._stage, "key.pem"), key)
            write_private(os.path.join(self._stage, "request.pem"), request)
            sync_directory(self._stage)
            sync_directory(self._unit)

    def keep(self, certificate: bytes) -> None:
        """Keep *certificate* beside the key that waits for it, which nobody tidies away then. Raises OSError or StoreProblem."""
        with self._locked():
            if _read(os.path.join(self._stage, "key.pem")) is None:
                raise StoreProblem("changed", self._unit)
            replace_file(self._places.waiting, certificate)

    def install(self, contents: Contents, expect: str, *, abandon: bool = False) -> int:
        """Make *contents* the ones at the fixed paths and return the generation's number. *expect* is the token of the look that it rests on.

        A key that waits with its certificate for another time stays, unless *abandon* is given. Every state on the way
        is one in which the fixed paths show a pair that belongs together, provided they did before. Raises OSError or StoreProblem.
        """
        self._make_folders()
        with self._locked():
            found = self.look()
            if expect != found.token():
                raise StoreProblem("changed", self._unit)
            number = self._generation_of(contents, found)
            if not found.linked and found.fixed.is_whole and found.fixed != contents:
                if not found.fixed.has_pair_of(found.generations.get(found.current)):
                    # What is in use now becomes a generation first, so that the links change nothing.
                    self._switch(self._write(found.fixed, found.newest + 1))
                    number = found.newest + 2
                self._link(present_only=True)
            if number not in found.generations:
                self._write(contents, number)
            previous = _number_of(self._current)
            if number != previous or not found.linked:
                replace_file(os.path.join(self._unit, "reload_pending"), f"{int(time.time())}\n".encode())
            if number != previous:
                self._switch(number)
            self._link(present_only=False)
            self._set_attributes(self._files(number))
            kept = {number, previous} if previous != number else _in_use(found.generations, number)
            self._tidy(kept, stage=abandon)
            return number

    def correct(self, *, abandon: bool = False) -> None:
        """Give the files at the fixed paths their owner, group and mode, and tidy up; contents stay. Raises OSError or StoreProblem."""
        self._set_attributes({os.path.realpath(path): name for name, path in self._places.paths().items() if os.path.isfile(path)})
        if os.path.isdir(self._unit):
            with self._locked():
                self._tidy(_in_use(self.look().generations, _number_of(self._current)), stage=abandon)

    def settle(self) -> bool:
        """Note that whoever reads the files has read the new ones. Returns whether that was open."""
        return _unlinked(os.path.join(self._unit, "reload_pending"))

    def remove(self) -> bool:
        """Take the files and our folder away, the key first. Returns whether there was anything."""
        paths = self._places.paths()
        existed = [_unlinked(paths[name]) for name in ("key", "certificate", "ca") if name in paths]
        folder = os.path.isdir(self._unit) and not os.path.islink(self._unit)
        if folder:
            _unlinked(self._current)
            shutil.rmtree(self._unit)
        parent = os.path.dirname(self._unit)
        if _is_empty(parent):
            os.rmdir(parent)
        for directory in sorted({os.path.dirname(path) for path in paths.values()}):
            if os.path.isdir(directory):
                sync_directory(directory)
        return folder or any(existed)

    # -- reading

    def _contents(self, folder: str) -> Contents:
        return Contents(**{name: _read(os.path.join(folder, f"{name}.pem")) for name in _NAMES})

    def _target(self, name: str, path: str) -> str:
        """Return what the link at the fixed *path* says: relative where that is plain, so that the directory may be mounted elsewhere too."""
        target = os.path.join(self._current, f"{name}.pem")
        here = os.path.dirname(path)
        return os.path.relpath(target, here) if here == os.path.dirname(self._places.certificate) else target

    def _is_linked(self, name: str, path: str) -> bool:
        return os.path.islink(path) and os.readlink(path) == self._target(name, path)

    def _leftovers(self, generations: t.Collection[int], current: int) -> tuple[str, ...]:
        """Return what an interrupted run may have left: a stage, half a generation, temporary links, generations nobody needs."""
        return self._needless(_in_use(generations, current))

    def _needless(self, kept: t.Collection[int]) -> tuple[str, ...]:
        """Return what exists beside the generations *kept* and has no use."""
        left = [os.path.join(self._generations, name) for name in _listed(self._generations) if not name.isdigit() or int(name) not in kept]
        left += [path for path in (self._stage, temporary_name(self._current)) if os.path.lexists(path) and (path != self._stage or not self._waits(kept))]
        return tuple(left + [temporary_name(path) for path in self._places.paths().values() if os.path.lexists(temporary_name(path))])

    def _waits(self, kept: t.Iterable[int]) -> bool:
        """Whether a key waits with its certificate that none of the generations *kept* has."""
        key = _read(os.path.join(self._stage, "key.pem"))
        used = {_read(os.path.join(self._generations, str(number), "key.pem")) for number in kept}
        return key is not None and _read(self._places.waiting) is not None and key not in used

    def _astray(self, paths: t.Mapping[str, str]) -> tuple[str, ...]:
        found = []
        for name, path in paths.items():
            try:
                state = os.stat(path)
            except OSError:
                continue
            if (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) != (self._attributes.uid, self._attributes.gid, self._attributes.mode(name)):
                found.append(path)
        return tuple(found)

    # -- writing

    def _make_folders(self) -> None:
        for path in {os.path.dirname(path) for path in self._places.paths().values()}:
            _make_directories(path, self._attributes.directory_mode)
        for path in (os.path.dirname(self._unit), self._unit, self._generations):
            if not os.path.lexists(path):
                _make_directories(path, _FOLDER_MODE)
            state = os.lstat(path)
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
                raise StoreProblem("unsafe", path)

    def _generation_of(self, contents: Contents, found: Found) -> int:
        """Return the number under which *contents* are, or are to be, kept."""
        for number in (found.current, found.newest):
            if number and found.generations[number] == contents:
                return number
        return found.newest + 1

    def _write(self, contents: Contents, number: int) -> int:
        """Write a whole generation beside the others, then give it its name. Returns *number*."""
        folder, final = os.path.join(self._generations, ".new"), os.path.join(self._generations, str(number))
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder, _FOLDER_MODE)
        os.chmod(folder, _FOLDER_MODE)
        for name in _NAMES:
            content = getattr(contents, name)
            if content is not None:
                path = os.path.join(folder, f"{name}.pem")
                write_private(path, content, mode=self._attributes.mode(name), uid=self._attributes.uid, gid=self._attributes.gid)
                self._label(path, self._places.paths().get(name, self._places.certificate))
        sync_directory(folder)
        os.rename(folder, final)
        sync_directory(self._generations)
        return number

    def _switch(self, number: int) -> None:
        _replace_link(self._current, os.path.join("generations", str(number)))

    def _link(self, *, present_only: bool) -> None:
        """Put our links at the fixed paths; *present_only* where a file is now, so that nothing appears before its content is right."""
        for name, path in self._places.paths().items():
            there = os.path.lexists(path)
            if self._is_linked(name, path) or (present_only and not there):
                continue
            if present_only and not os.path.exists(os.path.join(self._current, f"{name}.pem")):
                continue
            _replace_link(path, self._target(name, path))

    def _files(self, number: int) -> dict[str, str]:
        folder = os.path.join(self._generations, str(number))
        return {path: name for name in _NAMES for path in [os.path.join(folder, f"{name}.pem")] if os.path.isfile(path)}

    def _set_attributes(self, files: t.Mapping[str, str]) -> None:
        for path, name in files.items():
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fchown(descriptor, self._attributes.uid, self._attributes.gid)
                os.fchmod(descriptor, self._attributes.mode(name))
            finally:
                os.close(descriptor)
            self._label(path, self._places.paths().get(name, self._places.certificate))

    def _tidy(self, kept: t.Collection[int], *, stage: bool) -> None:
        """Remove what is not needed any more: the stage (in any case where *stage* says so), and generations but the one in use and the one before."""
        if stage:
            shutil.rmtree(self._stage, ignore_errors=True)
        for path in self._needless(kept):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                _unlinked(path)

    @contextmanager
    def _locked(self) -> t.Iterator[None]:
        """Hold the unit's lock for the write itself. Raises StoreProblem(locked) after ten seconds."""
        path = os.path.join(self._unit, "lock")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "ab") as stream:
            deadline = time.monotonic() + _LOCK_WAIT
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreProblem("locked", self._unit) from None
                    time.sleep(0.05)
            yield


def _read(path: str) -> bytes | None:
    """Return the content of a file, None when there is none, UNREADABLE for what is no regular file of at most 1 MiB."""
    try:
        # Without waiting: a named pipe would keep us until somebody writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MAX_FILE:
            return UNREADABLE
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


def _in_use(generations: t.Iterable[int], current: int) -> set[int]:
    """Return the generation in use and the one before it."""
    return {current, max((number for number in generations if number < current), default=current)}


def _number(content: bytes | None) -> int:
    text = (content or b"").decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0


def _replace_link(path: str, target: str) -> None:
    temporary = temporary_name(path)
    _unlinked(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def _number_of(link: str) -> int:
    try:
        name = os.path.basename(os.readlink(link))
    except OSError:
        return 0
    return int(name) if name.isdigit() else 0


def _make_directories(path: str, mode: int) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        os.mkdir(directory, mode)
        os.chmod(directory, mode)
        sync_directory(os.path.dirname(directory))


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_empty(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _unlinked(path: str) -> bool:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
