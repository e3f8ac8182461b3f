# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""What can be seen of an agent on its own host: its units, its health document, and who holds its port (private to muster.agents).

Reading is kept apart from judging: :class:`Probe` reads, :func:`judge` is pure, :func:`wait_until_good` polls.
Runs on the host with Python 3.9+ and its standard library alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import struct
import time
import typing as t
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

__all__ = [
    "Check", "Expectation", "Health", "Listener", "LocalState", "Probe", "ProbeError", "UnitState", "find_listeners", "get_health", "judge",
    "parse_units", "unit_name", "wait_until_good", "worst",
]

RunCommand = t.Callable[[list[str]], tuple[int, str, str]]

# All of them exist from systemd 247 on. Times are read as monotonic microseconds: they need no parsing of localised dates, and an age
# computed from them does not care whether the host's wall clock is right.
_PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "Result", "Type", "ExecMainCode", "ExecMainStatus", "MainPID", "NRestarts", "Job",
    "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic", "ActiveEnterTimestampMonotonic", "ControlGroup",
)
_UNIT_SUFFIXES = (".service", ".socket", ".timer", ".path", ".target", ".mount", ".slice", ".scope")
_RUNNING = ("active", "reloading", "refreshing")
_KILLED_CODES = (2, 3)  # CLD_KILLED and CLD_DUMPED: ExecMainStatus is a signal then
_AT_ONCE = 5.0  # seconds: a process that lived shorter never did its work (a busy host needs some just to start an interpreter)
_CALM_AFTER_RESTART = 5.0  # seconds that a unit must stay up once systemd had to restart it
_AGE_TOLERANCE = 5.0  # seconds between a process's age and the token age it reports, when both count from the same moment
_MAX_DOCUMENT = 64 * 1024
_MAX_REQUEST_SECONDS = 3.0
_FIRST_PAUSE, _LAST_PAUSE, _GROWTH = 0.1, 0.2, 1.25  # seconds, seconds, and from one pause to the next
_LISTEN = "0A"
# What explains the rest comes first: an agent whose port is taken exits, and one that exits does not answer.
_RANKS = {"unit_not_found": 0, "unit_masked": 0, "port_taken": 1, "unit_starting": 3}
# These hold a port for somebody else, so that their unit says nothing about whose port it is.
_CONTAINER_MARKS = ("docker", "containerd", "libpod", "kubepods", "/lxc")
_PORT_BROKERS = ("systemd", "docker-proxy", "rootlessport", "conmon", "slirp4netns", "pasta")


@dataclass(frozen=True)
class Expectation:
    """What a healthy agent looks like.

    units: the first one is the agent itself. health_url: empty when the agent has none. health_status: wanted value of the document's
    ``status``; empty judges the HTTP status alone. token_age_max and settle are in seconds; settle is how long a unit must have been up.
    """

    units: tuple[str, ...] = ()
    health_url: str = ""
    health_status: str = "ok"
    vault_enabled: bool = False
    token_age_max: float = 600.0
    settle: float = 1.0


@dataclass(frozen=True)
class UnitState:
    """One systemd unit. *uptime* is the age of its main process in seconds, negative when there is none.

    *lived* is how long the last main process ran before it ended, negative when it has not ended; *exit_code* is a CLD_* number.
    """

    name: str
    load_state: str = "not-found"
    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str = ""
    service_type: str = ""
    exit_code: int = 0
    exit_status: int = 0
    main_pid: int = 0
    restarts: int = 0
    uptime: float = -1.0
    lived: float = -1.0
    control_group: str = ""
    job: bool = False

    @property
    def running(self) -> bool:
        """Whether the unit does its work now."""
        if self.active_state not in _RUNNING:
            return False
        return not self.name.endswith(".service") or self.main_pid > 0 or self.service_type == "oneshot" or self.sub_state == "running"

    @property
    def ending(self) -> str:
        """How the main process ended, in words."""
        if self.exit_code in _KILLED_CODES:
            return f"killed by signal {self.exit_status}"
        return f"exit status {self.exit_status}"

    def as_result(self, host_time: float) -> dict[str, t.Any]:
        """Return plain data for a task result. *started* is epoch seconds on the host's clock, None when nothing runs."""
        started = None if self.uptime < 0 else round(host_time - self.uptime, 3)
        return {
            "name": self.name, "load_state": self.load_state, "active_state": self.active_state, "sub_state": self.sub_state,
            "result": self.result, "exit_status": self.exit_status, "main_pid": self.main_pid, "restarts": self.restarts,
            "uptime": None if self.uptime < 0 else round(self.uptime, 3), "started": started,
        }


@dataclass(frozen=True)
class Listener:
    """A process that listens on the health port. *ours* is None when that cannot be told; *uptime* is in seconds, negative if unknown."""

    address: str
    pid: int = 0
    command: str = ""
    ours: bool | None = None
    uptime: float = -1.0


@dataclass(frozen=True)
class Health:
    """The answer of the health endpoint. *code* is the HTTP status, 0 when there was no answer and *error* says why."""

    code: int = 0
    document: dict[str, t.Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class LocalState:
    """One look at the host, units read at *time* (epoch seconds, host's clock).

    *first_restarts* are the units' restart counters when the waiting began, *waited* seconds ago; *ended* holds each unit as it was last met
    between two lives.
    """

    units: tuple[UnitState, ...] = ()
    health: Health | None = None
    listeners: tuple[Listener, ...] = ()
    first_restarts: t.Mapping[str, int] = field(default_factory=dict)
    ended: t.Mapping[str, UnitState] = field(default_factory=dict)
    time: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Check:
    """One verdict. *reason* is stable, for machines; *final* says that waiting cannot mend it; *skipped* that it was not judged."""

    name: str
    ok: bool
    detail: str
    reason: str = "ok"
    final: bool = False
    skipped: bool = False

    def as_result(self) -> dict[str, t.Any]:
        """Return plain data for a task result."""
        return asdict(self)


def unit_name(name: str) -> str:
    """Return *name* with the suffix that systemctl would add."""
    return name if name.endswith(_UNIT_SUFFIXES) else f"{name}.service"


def parse_units(text: str, names: t.Sequence[str], monotonic: float) -> tuple[UnitState, ...]:
    """Read the output of ``systemctl show``: one block per unit, in the order of *names*. *monotonic* is now, in seconds."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.strip().split("\n\n")]
    padded = blocks + [{}] * (len(names) - len(blocks))
    return tuple(_unit(unit_name(name), block, monotonic) for name, block in zip(names, padded))


def judge(expected: Expectation, state: LocalState) -> list[Check]:
    """Return all local verdicts: each unit, the port, and what the health document says."""
    checks = [_judge_unit(expected, unit, state) for unit in state.units]
    if not expected.health_url:
        return [*checks, Check("health", True, "Not judged: no health_url is given.", skipped=True)]
    checks.extend(_judge_port(expected, state))
    health = state.health or Health(error="it was not asked")
    answered = _judge_answer(expected, health)
    checks.append(answered)
    if answered.ok and health.document is not None:
        checks.append(_judge_refresh(expected, health.document))
        checks.append(_judge_age(expected, health.document, state))
    return checks


def worst(checks: t.Iterable[Check]) -> Check | None:
    """Return the failed verdict that explains the others, None when all are good."""
    failed = [check for check in checks if not check.ok]
    return min(failed, key=lambda check: _RANKS.get(check.reason, 2), default=None)


def wait_until_good(
    look: t.Callable[[], list[Check]], timeout: float, *, clock: t.Callable[[], float] = time.monotonic,
    sleep: t.Callable[[float], None] = time.sleep,
) -> list[Check]:
    """Call *look* until all verdicts are good, until one is final in two looks running, or until *timeout* seconds are over.

    Returns the last verdicts. Looks at least once; pauses grow from 0.1 to 0.2 s. A final verdict is looked at twice because asking for
    the health document may itself start a unit (socket activation).
    """
    deadline = clock() + timeout
    pause = _FIRST_PAUSE
    finals = 0
    while True:
        checks = look()
        finals = finals + 1 if any(check.final for check in checks) else 0
        remaining = deadline - clock()
        if all(check.ok for check in checks) or finals == 2 or remaining <= 0:
            return checks
        sleep(min(pause, remaining))
        pause = min(pause * _GROWTH, _LAST_PAUSE)


class Probe:
    """Reads the local state again and again, and remembers the restart counters of the first look."""

    def __init__(self, expected: Expectation, run_command: RunCommand) -> None:
        """*run_command* takes an argument list and returns (return code, standard output, standard error)."""
        self.expected = expected
        self.state = LocalState()
        self._run = run_command
        self._first_restarts: dict[str, int] = {}
        self._began: float | None = None
        self._ended: dict[str, UnitState] = {}

    def look(self) -> list[Check]:
        """Read everything once and return the verdicts; ``state`` holds what was read. Raises ProbeError when systemd does not answer."""
        units = self._units()
        now = time.time()
        looked = time.monotonic()
        self._began = looked if self._began is None else self._began
        for unit in units:
            self._first_restarts.setdefault(unit.name, unit.restarts)
            if unit.lived >= 0 and not unit.running:
                self._ended[unit.name] = unit
        health = get_health(self.expected.health_url) if self.expected.health_url else None
        listeners = find_listeners(self.expected.health_url, units) if self.expected.health_url and units else ()
        self.state = LocalState(units, health, listeners, dict(self._first_restarts), dict(self._ended), now, looked - self._began)
        return judge(self.expected, self.state)

    def journal(self, lines: int) -> list[str]:
        """Return the last *lines* lines of the units' journal, unredacted; empty when there is no journal."""
        if not self.expected.units or lines <= 0:
            return []
        units = [f"--unit={unit_name(name)}" for name in self.expected.units]
        code, output, _errors = self._run(["journalctl", "--no-pager", "--output=cat", f"--lines={lines}", *units])
        return output.splitlines()[-lines:] if code == 0 else []

    def _units(self) -> tuple[UnitState, ...]:
        if not self.expected.units:
            return ()
        names = [unit_name(name) for name in self.expected.units]
        code, output, error = self._run(["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", "--", *names])
        if code != 0:
            raise ProbeError(f"systemctl show failed: {' '.join(error.split())[:200] or f'exit status {code}'}.")
        return parse_units(output, names, time.monotonic())


class ProbeError(Exception):
    """systemd could not be asked."""


def get_health(url: str, seconds: float = _MAX_REQUEST_SECONDS) -> Health:
    """GET *url* without proxies or redirects: at most 64 KiB, *seconds* for each step. Never raises for what the peer does."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    deadline = time.monotonic() + seconds
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close", "User-Agent": "muster.agents"})
            response = connection.getresponse()
            body = _read(response, deadline)
        finally:
            connection.close()
    except ssl.SSLError as error:
        return Health(error=f"TLS failed ({error.reason or type(error).__name__})")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Health(error=_network_words(error))
    return Health(code=response.status, document=_document(body))


def find_listeners(url: str, units: t.Sequence[UnitState], proc: Path = Path("/proc")) -> tuple[Listener, ...]:
    """Return who listens where a connection to *url* arrives; empty when nobody does, or when it is not this host."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    tables = "".join(_read_text(proc / "net" / name) for name in ("tcp", "tcp6"))
    sockets = _reached(_listening(tables, port), _addresses(parts.hostname or ""))
    owners = _owners({inode for _address, inode in sockets}, units, proc)
    return tuple(_listener(address, owners.get(inode, 0), units, proc) for address, inode in sockets)


def _unit(name: str, block: t.Mapping[str, str], monotonic: float) -> UnitState:
    main_pid = _number(block.get("MainPID"))
    started = _number(block.get("ExecMainStartTimestampMonotonic")) / 1e6
    ended = _number(block.get("ExecMainExitTimestampMonotonic")) / 1e6
    active = block.get("ActiveState", "inactive")
    since = started or _number(block.get("ActiveEnterTimestampMonotonic")) / 1e6
    return UnitState(
        name=name, load_state=block.get("LoadState", "not-found"), active_state=active, sub_state=block.get("SubState", ""),
        result=block.get("Result", ""), service_type=block.get("Type", ""), exit_code=_number(block.get("ExecMainCode")),
        exit_status=_number(block.get("ExecMainStatus")), main_pid=main_pid, restarts=_number(block.get("NRestarts")),
        uptime=max(0.0, monotonic - since) if since and active in _RUNNING else -1.0,
        lived=ended - started if started and ended >= started else -1.0,
        control_group=block.get("ControlGroup", ""), job=_number(block.get("Job")) > 0)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _judge_unit(expected: Expectation, unit: UnitState, state: LocalState) -> Check:
    """Say whether *unit* is up and stays up, or which of the ways of being down it is in."""
    name = f"unit {unit.name}"
    if unit.load_state == "masked":
        return Check(name, False, "It is masked.", "unit_masked", final=True)
    if unit.load_state == "not-found":
        return Check(name, False, "There is no such unit.", "unit_not_found", final=True)
    if unit.load_state not in ("loaded", "merged"):
        return Check(name, False, f"systemd cannot load it ({unit.load_state}).", "unit_failed", final=True)
    restarted = max(0, unit.restarts - state.first_restarts.get(unit.name, unit.restarts))
    if not unit.running:
        return _judge_down(name, unit, restarted)
    # The counter is set back when somebody starts the unit, so that it tells of this start only.
    if not 0 <= unit.uptime < (_CALM_AFTER_RESTART if unit.restarts else expected.settle):
        return Check(name, True, f"{unit.active_state} ({unit.sub_state}) for {max(unit.uptime, 0.0):.0f} s.")
    if not unit.restarts:
        return Check(name, False, f"It has only just started, {unit.uptime:.1f} s ago.", "unit_starting")
    if unit.name in state.ended:
        return _judge_down(name, state.ended[unit.name], max(1, restarted))
    if restarted > 1 and state.waited / restarted < _AT_ONCE:  # Never met between two lives, but so many lives in so little time are short ones.
        return Check(name, False, f"Its process ends at once ({restarted} restarts in {state.waited:.0f} s).", "unit_exits")
    return Check(name, False, f"It restarted {unit.restarts} times and has been up for {unit.uptime:.1f} s.", "unit_flapping")


def _judge_down(name: str, unit: UnitState, restarted: int) -> Check:
    again = f", {restarted} {'restart' if restarted == 1 else 'restarts'} during the wait" if restarted else ""
    final = unit.active_state in ("failed", "inactive") and not unit.job
    if 0 <= unit.lived < _AT_ONCE and (final or unit.sub_state == "auto-restart" or restarted):
        return Check(name, False, f"Its process ends at once ({unit.ending} after {unit.lived:.1f} s{again}).", "unit_exits", final)
    if restarted:
        return Check(name, False, f"It keeps restarting ({unit.ending}{again}).", "unit_flapping", final)
    if unit.active_state == "failed" or unit.sub_state == "auto-restart":
        return Check(name, False, f"It failed ({unit.result or 'no result'}, {unit.ending}).", "unit_failed", final)
    if unit.active_state == "inactive":
        return Check(name, False, "It is not running.", "unit_inactive", final)
    return Check(name, False, f"It is still {unit.active_state} ({unit.sub_state}).", "unit_starting")


def _judge_port(expected: Expectation, state: LocalState) -> list[Check]:
    if not state.units or not state.listeners:
        return []
    strangers = [listener for listener in state.listeners if listener.ours is False]
    if strangers:
        stranger = strangers[0]
        holder = f"{stranger.command or 'a process'} (pid {stranger.pid})"
        return [Check("port", False, f"It is held on {stranger.address} by {holder}, which belongs to none of the units.", "port_taken")]
    if any(listener.ours is None for listener in state.listeners):
        return [Check("port", True, "Not judged: who listens on it cannot be told.", skipped=True)]
    return [Check("port", True, f"It is held on {state.listeners[0].address} by the agent (pid {state.listeners[0].pid}).")]


def _judge_answer(expected: Expectation, health: Health) -> Check:
    if health.code == 0:
        return Check("health", False, f"{expected.health_url} does not answer: {health.error or 'no reason known'}.", "no_answer")
    document = health.document
    status = document.get("status") if document is not None else None
    if expected.health_status and status is not None and str(status) != expected.health_status:
        return Check("health", False, f"Its status is {str(status)[:60]!r}, not {expected.health_status!r}.", "status_not_ok")
    if not 200 <= health.code < 300:
        return Check("health", False, f"{expected.health_url} answers HTTP {health.code}.", "status_not_ok")
    if expected.health_status and document is None:
        return Check("health", False, f"{expected.health_url} does not answer with a JSON document.", "status_not_ok")
    if not expected.health_status or status is None:
        return Check("health", True, f"HTTP {health.code}; the document's status is not judged.")
    return Check("health", True, f"Its status is {expected.health_status!r}.")


def _judge_refresh(expected: Expectation, document: t.Mapping[str, t.Any]) -> Check:
    """``last_refresh_ok`` must be true where the agent should read its token from Vault; null is right where it should not (guide)."""
    if "last_refresh_ok" not in document:
        return Check("refresh", True, "Not judged: this agent does not report last_refresh_ok.", skipped=True)
    value = document["last_refresh_ok"]
    if not expected.vault_enabled:
        return Check("refresh", True, "Not judged: Vault is off for this agent.", skipped=True)
    if value is True:
        return Check("refresh", True, "Its last read from Vault went well.")
    if value is None:
        return Check("refresh", False, "It does not use Vault (last_refresh_ok is null), although Vault should be on.", "refresh_failed")
    return Check("refresh", False, "Its last read from Vault failed (last_refresh_ok is not true).", "refresh_failed")


def _judge_age(expected: Expectation, document: t.Mapping[str, t.Any], state: LocalState) -> Check:
    """``token_age_seconds`` must stay below the limit where it counts from the last refresh.

    Agents without Vault never refresh, and the shipped agent counts from its own start while it reports a constant success
    (protocol, 4.4): both pass any limit while they are well, so they are not judged by it.
    """
    age = document.get("token_age_seconds")
    if isinstance(age, bool) or not isinstance(age, (int, float)):
        return Check("token age", True, "Not judged: this agent does not report token_age_seconds.", skipped=True)
    refreshed = document.get("last_refresh_ok")
    if refreshed is None and not expected.vault_enabled:
        return Check("token age", True, "Not judged: Vault is off for this agent, so that its token is never refreshed.", skipped=True)
    if age <= expected.token_age_max:
        return Check("token age", True, f"{age:.0f} s, the limit is {expected.token_age_max:.0f} s.")
    if refreshed is True and any(abs(age - uptime) <= _AGE_TOLERANCE for uptime in _uptimes(state)):
        detail = f"Not judged: this agent counts token_age_seconds ({age:.0f} s) from its start, not from a refresh."
        return Check("token age", True, detail, skipped=True)
    return Check("token age", False, f"{age:.0f} s since its last refresh, the limit is {expected.token_age_max:.0f} s.", "token_stale")


def _uptimes(state: LocalState) -> list[float]:
    """The ages of the processes that may have answered: who listens, when that is known, else every unit's."""
    known = [listener.uptime for listener in state.listeners if listener.uptime >= 0]
    return known or [unit.uptime for unit in state.units if unit.uptime >= 0]


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read a bounded body in a bounded time. Raises TimeoutError or ValueError."""
    body = b""
    while True:
        chunk = response.read1(8192)
        if not chunk:
            return body
        body += chunk
        if len(body) > _MAX_DOCUMENT:
            raise ValueError(f"it sends more than {_MAX_DOCUMENT} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("it is too slow")


def _document(body: bytes) -> dict[str, t.Any] | None:
    try:
        document = json.loads(body.decode("utf-8"))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _network_words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "no answer in time"
    if isinstance(error, http.client.HTTPException):
        return f"it does not speak HTTP ({type(error).__name__})"
    if isinstance(error, ValueError):
        return str(error)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _listening(tables: str, port: int) -> list[tuple[str, str]]:
    """Return (address, inode) of the listening sockets on *port* in the text of /proc/net/tcp and tcp6."""
    found = []
    for line in tables.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN or ":" not in fields[1]:
            continue
        address, number = fields[1].rsplit(":", 1)
        if int(number, 16) == port:
            found.append((_address(address), fields[9]))
    return found


def _address(text: str) -> str:
    """Return the address that the kernel printed as 32-bit numbers, each in the host's own byte order."""
    packed = b"".join(struct.pack("=I", int(text[at:at + 8], 16)) for at in range(0, len(text), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _addresses(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def _reached(sockets: list[tuple[str, str]], addresses: set[str]) -> list[tuple[str, str]]:
    """Return those of *sockets* that a connection to *addresses* reaches; the kernel prefers an exact address to a wildcard."""
    exact = [item for item in sockets if item[0] in addresses]
    return exact or [item for item in sockets if ipaddress.ip_address(item[0]).is_unspecified]


def _owners(inodes: set[str], units: t.Sequence[UnitState], proc: Path) -> dict[str, int]:
    """Map socket inodes to the pid that holds them. The units' own processes are asked first, since the rest of /proc may be long."""
    owners: dict[str, int] = {}
    mains = [str(unit.main_pid) for unit in units if unit.main_pid]
    for pid in _pids(mains, proc):
        if len(owners) == len(inodes):
            break
        for inode in _socket_inodes(proc / pid / "fd") & inodes:
            owners.setdefault(inode, int(pid))
    return owners


def _pids(first: t.Sequence[str], proc: Path) -> t.Iterator[str]:
    yield from first
    # Youngest first: a socket that systemd passed on is held by pid 1 too, and the younger holder is the one that serves it.
    yield from sorted((name for name in _entries(proc) if name.isdigit()), key=int, reverse=True)


def _entries(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _socket_inodes(folder: Path) -> set[str]:
    targets = [_target(folder / name) for name in _entries(folder)]
    return {target[8:-1] for target in targets if target.startswith("socket:[")}


def _target(link: Path) -> str:
    """Return where *link* points, empty when it is gone: descriptors close while one reads the list of them."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _listener(address: str, pid: int, units: t.Sequence[UnitState], proc: Path) -> Listener:
    if not pid:
        return Listener(address)
    command = _read_text(proc / str(pid) / "comm").strip()
    return Listener(address, pid, command, _is_ours(pid, command, units, proc), _process_uptime(pid, proc))


def _is_ours(pid: int, command: str, units: t.Sequence[UnitState], proc: Path) -> bool | None:
    """Say whether *pid* belongs to one of *units*, None when a broker or a container holds the port for somebody unknown."""
    groups = {line.rsplit(":", 1)[-1] for line in _read_text(proc / str(pid) / "cgroup").splitlines()}
    for unit in units:
        if pid == unit.main_pid or any(_within(group, unit) for group in groups):
            return True
    contained = any(mark in group for group in groups for mark in _CONTAINER_MARKS)
    return None if command in _PORT_BROKERS or contained else False


def _within(group: str, unit: UnitState) -> bool:
    if unit.control_group and (group == unit.control_group or group.startswith(f"{unit.control_group}/")):
        return True
    return f"/{unit.name}/" in f"{group}/"


def _process_uptime(pid: int, proc: Path) -> float:
    """Return the age of *pid* in seconds, negative when it cannot be told. proc(5): field 22 counts ticks since boot, sleep included."""
    fields = _read_text(proc / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20 or not fields[19].isdigit():
        return -1.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
