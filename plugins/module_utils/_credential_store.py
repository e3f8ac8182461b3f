# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""The store on the host: receipt, credential generations and rendered files (private; no stability promise outside muster.agents).

Two operations: a *look* reads everything the controller decides on, and records the intent; a *delivery* puts a generation, rendered files
and the receipt in place in an order that a crash cannot harm. The same two exist as shell scripts (plugin_utils/_host_scripts.py) for hosts where
starting Python is the slow part; both read the same archive and leave the same bytes behind.

Runs on the host with Python 3.9+ and its standard library alone; the data types and the archive are used by the controller too.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import hashlib
import io
import json
import os
import pwd
import shutil
import tarfile
import time
import typing as t
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file, sync, sync_directory, temporary_name, write_private
from ansible_collections.muster.agents.plugins.module_utils._host_facts import Runner
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent

__all__ = [
    "MAX_FILE", "MAX_SKEW", "MIN_FREE_KIB", "Delivery", "HostFile", "LookRequest", "StagedFile", "StoreFailure", "deliver", "look", "pack_files",
    "previous_name", "unpack_files",
]

MAX_FILE = 1024 * 1024
MAX_SKEW = 300
MIN_FREE_KIB = 1024
_LOCK_WAIT = 10.0


class StoreFailure(Exception):
    """The store could not do it: *reason* is stable, *detail* names the place.

    Reasons: not_writable, disk_full, locked, changed, unknown_owner, invalid, corrupt.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class HostFile:
    """A file as it is on the host: its bytes, octal mode such as ``0600``, and the names of owner and group."""

    content: bytes
    mode: str
    owner: str
    group: str


@dataclass(frozen=True)
class StagedFile:
    """A file to be put in place. directory_mode is for parents that do not exist yet; validate is a command with ``%s`` for the staged file."""

    path: str
    content: bytes
    owner: str = "root"
    group: str = "root"
    mode: str = "0600"
    directory_mode: str = "0755"
    validate: tuple[str, ...] = ()


@dataclass(frozen=True)
class LookRequest:
    """What to look at: the identity's directory, further files to read, and the intent to record when no usable receipt for *url* exists.

    lease is how many seconds the intent holds from the host's now on; force records it in any case; takeover names the ``controller`` of a dead run,
    whose lease is void. controller_time (seconds since the epoch) keeps an intent from being recorded by a clock that is more than MAX_SKEW off.
    """

    root: str
    url: str = ""
    read: tuple[str, ...] = ()
    intent: Intent | None = None
    lease: int = 60
    force: bool = False
    takeover: str = ""
    controller_time: int = 0


@dataclass(frozen=True)
class Delivery:
    """What to put in place. expect is the SHA-256 of the receipt the decision rests on, empty for none.

    generation is the number of the new one, 0 for none; secrets are its files by name. keep lists generations that stay, others are removed; empty keeps all.
    save_previous keeps the replaced rendered files for a rollback. remove lists further paths to delete. remove_all withdraws: the store goes too.
    keep_intent leaves the lease on the identity where it is, for a transaction of several deliveries.
    """

    root: str
    expect: str
    receipt: bytes = b""
    key: str = ""
    generation: int = 0
    secrets: tuple[tuple[str, bytes], ...] = ()
    files: tuple[StagedFile, ...] = ()
    keep: tuple[int, ...] = ()
    remove: tuple[str, ...] = ()
    save_previous: bool = False
    remove_all: bool = False
    keep_intent: bool = False

    def archive(self) -> bytes:
        """Return the tar archive that both ways deliver: in ``stage/`` ``g/<generation>/<secret>``, ``f<index>``, ``receipt.json``, ``key``, ``manifest``.

        Unpacked in the store it makes the folders too, which spares the script the programs that would. ``manifest`` is the last, and so
        nothing is missing where it is there.
        """
        members: list[tuple[str, bytes]] = [(f"g/{self.generation}/{name}", content) for name, content in self.secrets]
        members += [(f"f{index}", item.content) for index, item in enumerate(self.files)]
        if self.receipt:
            members.append(("receipt.json", self.receipt))
        if self.key:
            members.append(("key", self.key.encode()))
        manifest = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in members)
        return _tar([(f"stage/{name}", content) for name, content in (*members, ("manifest", manifest.encode()))])

    def plan(self) -> dict[str, t.Any]:
        """Return everything but the contents, as plain data."""
        document = {key: value for key, value in asdict(self).items() if key not in ("receipt", "key", "secrets", "files")}
        document["files"] = [{key: value for key, value in asdict(item).items() if key != "content"} for item in self.files]
        document["has_receipt"] = bool(self.receipt)
        return document

    @classmethod
    def assemble(cls, plan: t.Mapping[str, t.Any], archive: bytes) -> Delivery:
        """Undo :meth:`plan` and :meth:`archive`. Raises StoreFailure(corrupt) when the archive is not what its manifest says."""
        members = _untar(archive)
        manifest = members.pop("manifest", b"").decode()
        listed = {line[66:]: line[:64] for line in manifest.splitlines()}
        if {name: hashlib.sha256(content).hexdigest() for name, content in members.items()} != listed:
            raise StoreFailure("corrupt", "the delivery differs from its manifest")
        files = tuple(
            StagedFile(**{**item, "content": members[f"f{index}"], "validate": tuple(item["validate"])}) for index, item in enumerate(plan["files"]))
        secrets = tuple((name.split("/", 2)[2], content) for name, content in members.items() if name.startswith("g/"))
        return cls(
            root=plan["root"], expect=plan["expect"], receipt=members.get("receipt.json", b""), key=members.get("key", b"").decode(),
            generation=plan["generation"], secrets=secrets, files=files, keep=tuple(plan["keep"]), remove=tuple(plan["remove"]),
            save_previous=plan["save_previous"], remove_all=plan["remove_all"], keep_intent=plan["keep_intent"])


def previous_name(path: str) -> str:
    """Return the name under which the replaced content of *path* is kept in the store's ``previous`` folder."""
    return path.replace("%", "%25").replace("/", "%2F")


def look(request: LookRequest) -> dict[str, t.Any]:
    """Read the store and what else is asked for; record the intent when there is work.

    Returns {"time": epoch, "uid", "writable": bool, "free_kib", "intent": "recorded"|"held"|"", "leftovers": [path], "files": {path: HostFile}}.
    """
    answer: dict[str, t.Any] = {"time": int(time.time()), "uid": os.geteuid(), "intent": ""}
    parent = request.root
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    answer["writable"] = os.access(parent, os.W_OK)
    space = os.statvfs(parent)
    answer["free_kib"] = space.f_bavail * space.f_frsize // 1024
    if request.intent is not None and (request.force or not _settled(request)):
        skewed = request.controller_time and abs(answer["time"] - request.controller_time) > MAX_SKEW
        full = answer["free_kib"] < MIN_FREE_KIB and not os.path.exists(os.path.join(request.root, "receipt.json"))
        answer["intent"] = "clock_skew" if skewed else "disk_full" if full else _record_intent(request, answer["time"])
    places = [os.path.join(request.root, name) for name in ("receipt.json", "key", "intent")]
    for directory in ("generations", "previous"):
        for base, _directories, names in sorted(os.walk(os.path.join(request.root, directory))):
            places += [os.path.join(base, name) for name in sorted(names)]
    answer["files"] = {path: found for path in (*places, *request.read) for found in [_read(path)] if found is not None}
    own = sorted(name for name in _listed(request.root) if _is_temporary(name))
    leftovers = [*(temporary_name(path) for path in request.read), *(os.path.join(request.root, name) for name in (*own, "previous.new"))]
    stage = os.path.join(request.root, "stage")
    answer["leftovers"] = [path for path in leftovers if os.path.lexists(path)] + ([stage] if os.path.isdir(stage) else [])
    return answer


def deliver(delivery: Delivery, validate: Runner) -> None:
    """Put *delivery* in place; *validate* runs a command and returns its code and output. Raises StoreFailure; nothing live is touched before all is staged."""
    root = delivery.root
    with _translated(root):
        _make_directories(root, 0o700)
        with _locked(root):
            _check_expected(root, delivery.expect)
            if delivery.remove_all:
                _remove_paths(delivery.remove)
                _clear(root)
                return
            stage = os.path.join(root, "stage")
            shutil.rmtree(stage, ignore_errors=True)
            try:
                sync(_staged(stage, delivery, validate))
            except BaseException:
                _discard(delivery, stage)
                raise
            if delivery.save_previous:
                _save_previous(root, delivery.files)
            _move(stage, delivery)
            _prune(root, delivery.keep)
            done = ("stage", "previous.new") if delivery.keep_intent else ("intent", "stage", "previous.new")
            _remove_paths([os.path.join(root, name) for name in os.listdir(root) if name in done or _is_temporary(name)])


def pack_files(files: t.Mapping[str, HostFile]) -> bytes:
    """Return *files* as a tar archive with absolute names, as the shell way's ``tar`` makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, item in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.uname, member.gname = len(item.content), int(item.mode, 8), item.owner, item.group
            archive.addfile(member, io.BytesIO(item.content))
    return buffer.getvalue()


def unpack_files(data: bytes) -> dict[str, HostFile]:
    """Undo :func:`pack_files`, and read what ``tar -P`` made. Raises tarfile.TarError when *data* is cut short."""
    found: dict[str, HostFile] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                owner, group = member.uname or str(member.uid), member.gname or str(member.gid)
                found["/" + member.name.lstrip("/")] = HostFile(stream.read(), f"{member.mode & 0o7777:04o}", owner, group)
    return found


def _settled(request: LookRequest) -> bool:
    """Say whether a receipt for this server exists that stands for a delivered credential: then there is nothing to announce."""
    found = _read(os.path.join(request.root, "receipt.json"))
    if found is None:
        return False
    try:
        document = json.loads(found.content)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("phase") in ("ISSUED", "STORED", "ACTIVE", "COMMITTED") and document.get("url") == request.url


def _record_intent(request: LookRequest, now: int) -> str:
    intent = request.intent
    if intent is None:
        return ""
    try:
        _make_directories(request.root, 0o700)
        os.chmod(request.root, 0o700)
        with _locked(request.root):
            path = os.path.join(request.root, "intent")
            found = _read(path)
            held = Intent.load(found.content) if found is not None else None
            if held is not None and held.controller not in (intent.controller, request.takeover) and held.lease_until > now:
                return "held"
            attempt = held.attempt if held is not None else intent.attempt
            lease = Intent(attempt, intent.controller, now + request.lease, intent.why)
            replace_file(path, lease.dump())
            return "recorded"
    except (OSError, StoreFailure) as error:
        return "disk_full" if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else "not_writable"


def _check_expected(root: str, expect: str) -> None:
    found = _read(os.path.join(root, "receipt.json"))
    digest = hashlib.sha256(found.content).hexdigest() if found is not None else ""
    if digest != expect:
        raise StoreFailure("changed", root)


def _staged(stage: str, delivery: Delivery, validate: Runner) -> list[str]:
    """Write the generation into *stage* and all else beside its place; return what has to be on the disk before it is named."""
    contents = [(os.path.join(stage, name), content) for name, content in delivery.secrets] if delivery.generation else []
    contents += [(temporary_name(path), content) for path, content in _records(delivery)]
    if delivery.generation:
        os.mkdir(stage, 0o700)
    for path, content in contents:
        write_private(path, content, wait=False)
    files = [_stage_file(item, validate) for item in delivery.files]
    return [*(path for path, _content in contents), *([stage] if delivery.generation else []), *files]


def _records(delivery: Delivery) -> list[tuple[str, bytes]]:
    """Return path and content of what the store keeps beside its generations, the receipt last. A store that has a key keeps it."""
    key = os.path.join(delivery.root, "key")
    records = [(key, delivery.key.encode())] if delivery.key and not os.path.exists(key) else []
    return [*records, (os.path.join(delivery.root, "receipt.json"), delivery.receipt)] if delivery.receipt else records


def _move(stage: str, delivery: Delivery) -> None:
    """Give everything its name, the receipt last, and then make the names last, in the same order.

    What they name is on the disk by now. A host that loses power between them has the old receipt, or a new one whose files the next run finds amiss;
    it was not told to be done.
    """
    root, places = delivery.root, []
    if delivery.generation:
        places.append(os.path.join(root, "generations"))
        os.makedirs(places[0], mode=0o700, exist_ok=True)
        os.rename(stage, os.path.join(places[0], str(delivery.generation)))
    for item in delivery.files:
        os.replace(temporary_name(item.path), item.path)
    places += sorted({os.path.dirname(item.path) for item in delivery.files})
    records = _records(delivery)
    if delivery.remove:
        if places:
            sync([*places, root])
            places = []
        staged = {temporary_name(path) for path, _content in records}  # which may bear the name of a leftover that is to go
        _remove_paths([path for path in delivery.remove if path not in staged])
    for path, _content in records:
        os.replace(temporary_name(path), path)
    sync([*places, *([root] if delivery.generation or records else [])])


def _stage_file(item: StagedFile, validate: Runner) -> str:
    directory = os.path.dirname(item.path)
    _make_directories(directory, int(item.directory_mode, 8))
    if os.path.isdir(item.path):
        raise StoreFailure("not_writable", f"{item.path} is a directory")
    uid, gid = _ids(item)
    temporary = temporary_name(item.path)
    with _translated(item.path, always=True):
        write_private(temporary, item.content, mode=int(item.mode, 8), uid=uid, gid=gid, wait=False)
    if item.validate:
        code, _output = validate([word.replace("%s", temporary) for word in item.validate])
        if code != 0:
            raise StoreFailure("invalid", f"{item.path} (exit code {code})")
    return temporary


def _make_directories(path: str, mode: int) -> None:
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, mode)
        except FileExistsError:
            # Another identity's delivery on this host may have made it meanwhile.
            if not os.path.isdir(directory):
                raise
        else:
            os.chmod(directory, mode)


def _ids(item: StagedFile) -> tuple[int, int]:
    try:
        uid = int(item.owner) if item.owner.isdigit() else pwd.getpwnam(item.owner).pw_uid
        gid = int(item.group) if item.group.isdigit() else grp.getgrnam(item.group).gr_gid
    except KeyError:
        raise StoreFailure("unknown_owner", f"{item.owner}:{item.group} for {item.path}") from None
    return uid, gid


def _save_previous(root: str, files: t.Sequence[StagedFile]) -> None:
    folder, fresh = os.path.join(root, "previous"), os.path.join(root, "previous.new")
    if not os.path.exists(folder) and not any(os.path.isfile(item.path) for item in files):
        return
    shutil.rmtree(fresh, ignore_errors=True)
    os.mkdir(fresh, 0o700)
    for item in files:
        if os.path.isfile(item.path):
            copy = os.path.join(fresh, previous_name(item.path))
            state = os.stat(item.path)
            with open(item.path, "rb") as stream:
                write_private(copy, stream.read(), mode=state.st_mode & 0o7777, uid=state.st_uid, gid=state.st_gid)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(fresh, folder)
    sync_directory(root)


def _prune(root: str, keep: t.Sequence[int]) -> None:
    folder = os.path.join(root, "generations")
    if not keep or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        if name.isdigit() and int(name) not in keep:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _discard(delivery: Delivery, stage: str) -> None:
    """Take away what was staged; what stands in the way of that does not hide the failure that led here."""
    for path in (*(item.path for item in delivery.files), *(path for path, _content in _records(delivery))):
        with suppress(OSError):
            _remove_paths([temporary_name(path)])
    shutil.rmtree(stage, ignore_errors=True)


def _clear(root: str) -> None:
    """Remove the identity's folder, the receipt last, so that a crash on the way leaves a receipt that says what to finish."""
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if name in ("receipt.json", "lock"):
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    for name in ("receipt.json", "lock"):
        _unlink(os.path.join(root, name))
    os.rmdir(root)


def _listed(directory: str) -> list[str]:
    """Return the names in *directory*, none when it is not there or not ours to read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".muster")


def _remove_paths(paths: t.Sequence[str]) -> None:
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            _unlink(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _read(path: str) -> HostFile | None:
    try:
        # Without waiting: a named pipe would keep us until somebody writes into it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            state = os.fstat(stream.fileno())
            if not _is_small_file(state):
                return None
            return HostFile(stream.read(), f"{state.st_mode & 0o7777:04o}", _user(state.st_uid), _group(state.st_gid))
    except OSError:
        return None


def _is_small_file(state: os.stat_result) -> bool:
    return (state.st_mode & 0o170000) == 0o100000 and state.st_size <= MAX_FILE


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


@contextmanager
def _locked(root: str) -> t.Iterator[None]:
    """Hold the store's lock, for the write itself only. Raises StoreFailure(locked) after ten seconds."""
    with open(os.open(os.path.join(root, "lock"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as stream:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreFailure("locked", root) from None
                time.sleep(0.05)
        yield


@contextmanager
def _translated(place: str, *, always: bool = False) -> t.Iterator[None]:
    """Turn an OSError into the StoreFailure that says what it means, of *place* where the error names none, or *always*."""
    try:
        yield
    except OSError as error:
        reason = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "not_writable"
        raise StoreFailure(reason, place if always else str(error.filename or place)) from None


def _tar(members: t.Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _untar(data: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    members[member.name.removeprefix("stage/")] = stream.read()
    except tarfile.TarError:
        raise StoreFailure("corrupt", "the delivery cannot be unpacked") from None
    return members
