# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the reference server from a test, and talk to its control API.

Standard library only, so that every layer of the tests can use it. The Python that runs the server
(``sys.executable`` unless told otherwise) needs aiohttp.

    with ReferenceServer.start(contract="shipped", tls=Tls(cert, key)) as server:
        server.fault("register", "commit-then-drop")
        ...
        assert server.counters()["stacker"]["mutating"] == 1
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

TESTS = Path(__file__).resolve().parent.parent

__all__ = ["Control", "ReferenceServer", "Tls", "VaultLink"]


@dataclass(frozen=True)
class Tls:
    """Files of the server's certificate. ``client_ca`` makes it ask for client certificates."""

    cert: str
    key: str
    client_ca: str | None = None
    max_version: str = "1.3"

    def arguments(self) -> list[str]:
        """The matching command line."""
        result = ["--tls-cert", self.cert, "--tls-key", self.key, "--tls-max-version", self.max_version]
        return [*result, "--client-ca", self.client_ca] if self.client_ca else result


@dataclass(frozen=True)
class VaultLink:
    """How the server reaches its Vault. ``prefix`` is the mount, with ``/data`` for KV v2."""

    url: str
    token_file: str
    ca_file: str | None = None
    prefix: str = "status_panel"

    def arguments(self) -> list[str]:
        """The matching command line."""
        result = ["--vault-url", self.url, "--vault-token-file", self.token_file, "--vault-prefix", self.prefix]
        return [*result, "--vault-ca", self.ca_file] if self.ca_file else result


class Control:
    """The control API of a running reference server."""

    def __init__(self, control_url: str) -> None:
        self.control_url = control_url
        # No proxy from the environment: the control API is on loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """One control request; returns the decoded answer. Raises RuntimeError with the server's sentence."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control_url + path, data=data, method=method, headers={"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=30) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode('utf-8', 'replace')}") from error

    def counters(self) -> dict[str, Any]:
        """``{"stacker": {"mutating", "login", "read", "agent"}, "by_route": {...}, "by_outcome": {...}}``."""
        counters: dict[str, Any] = self.call("GET", "/counters")
        return counters

    def reset_counters(self) -> None:
        """Start counting from zero."""
        self.call("POST", "/counters/reset")

    def agents(self, plane: str | None = None) -> list[dict[str, Any]]:
        """Every record the server has (of one *plane*, where one is named), without secrets."""
        agents: list[dict[str, Any]] = self.call("GET", "/agents" if plane is None else f"/agents?control_plane={plane}")
        return agents

    def agent(self, name: str) -> dict[str, Any]:
        """The one record of this name. Raises LookupError."""
        for agent in self.agents():
            if agent["name"] == name:
                return agent
        raise LookupError(name)

    def fault(self, route: str, kind: str, times: int | None = 1, **parameters: Any) -> None:
        """Arm a fault. Parameters: ``skip``, ``name``, ``seconds``, ``status``, ``body``, ``headers``, ``retry_after``."""
        self.call("POST", "/faults", {"route": route, "kind": kind, "times": times, **parameters})

    def faults(self) -> list[dict[str, Any]]:
        """The armed and spent faults; ``fired`` says how often each struck."""
        faults: list[dict[str, Any]] = self.call("GET", "/faults")
        return faults

    def clear_faults(self) -> None:
        """Disarm everything."""
        self.call("DELETE", "/faults")

    def clock(self, offset_seconds: float) -> None:
        """Put the server's clock wrong by this many seconds (0 puts it right)."""
        self.call("POST", "/clock", {"offset_seconds": offset_seconds})

    def forget(self, name: str) -> None:
        """Let the control plane lose a record."""
        self.call("POST", f"/agents/{quote(name, safe='')}/forget")

    def drift(self, name: str, **options: Any) -> None:
        """Change a token behind everybody's back (``vault=False``: not in Vault; documented contract only)."""
        self.call("POST", f"/tokens/{quote(name, safe='')}/set-random", options)

    def accepts(self, name: str, token: str) -> bool:
        """Whether the control plane accepts this token for this name; counts nothing, touches nothing."""
        return bool(self.call("POST", "/check-token", {"name": name, "token": token})["accepted"])

    def own(self, name: str, owner: str | None = None) -> None:
        """Make a deployment known (and owned) before an agent registers."""
        self.call("POST", "/deployments", {"name": name, "owner": owner})

    def act(self, plane: str, action: str, **options: Any) -> Any:
        """Let a control plane do something that only its own tests need; the plane's file names its actions."""
        return self.call("POST", f"/planes/{plane}/{action}", options)

    def pause(self) -> None:
        """Stop listening: new connections are refused, which proves that nothing was delivered."""
        self.call("POST", "/listeners", {"accepting": False})

    def resume(self) -> None:
        """Listen again, on the same ports."""
        self.call("POST", "/listeners", {"accepting": True})

    def reset(self) -> None:
        """Drop all records, faults and counts, and put the clock right."""
        self.call("POST", "/reset")


class ReferenceServer(Control):
    """A reference server in a process of its own; use :meth:`start`, then as a context manager."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        super().__init__("")
        self._command = list(command)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.urls: list[str] = []
        self.addresses: dict[str, str] = {}

    @classmethod
    def start(
        cls,
        contract: str = "documented",
        tls: Tls | None = None,
        vault: VaultLink | None = None,
        listen: Sequence[str] = ("127.0.0.1:0",),
        arguments: Sequence[str] = (),
        python: str = sys.executable,
    ) -> ReferenceServer:
        """Start a server and wait until it listens.

        ``arguments`` are passed on as they are (``--overlap``, ``--without``, ``--user`` ...).
        Raises RuntimeError with the server's own words when it does not come up within 20 seconds.
        """
        folder = Path(tempfile.mkdtemp(prefix="reference-server-"))
        command = [python, "-m", "reference_server", "--contract", contract]
        command += ["--state", str(folder / "state.sqlite"), "--log", str(folder / "requests.jsonl")]
        command += [*(tls.arguments() if tls else ()), *(vault.arguments() if vault else ()), *arguments]
        server = cls(command, folder)
        try:
            server._run(listen, "127.0.0.1:0")
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """The first public URL."""
        return self.urls[0]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The request log, decoded."""
        text = (self._folder / "requests.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def state_files(self) -> list[Path]:
        """Files the server writes (state, log, output), for a search for secrets."""
        return sorted(path for path in self._folder.iterdir() if path.is_file())

    def kill(self) -> None:
        """Kill the process at once (SIGKILL); records stay in its state file."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, if still running, and start again on the same ports with the same records."""
        listen = [url.split("//", 1)[1] for url in self.urls]
        control = self.control_url.split("//", 1)[1]
        self._end(signal.SIGTERM)
        self._run(listen, control)

    def stop(self) -> int | None:
        """Stop the server and remove its files. Returns its exit code (None: it was not running)."""
        code = self._end(signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def __enter__(self) -> ReferenceServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _run(self, listen: Sequence[str], control: str) -> None:
        ready, output = self._folder / "ready.json", self._folder / "output.txt"
        ready.unlink(missing_ok=True)
        command = [*self._command, "--ready-file", str(ready), "--control-listen", control]
        command += [word for address in listen for word in ("--listen", address)]
        with output.open("wb") as sink:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=_environment())
        deadline = time.monotonic() + 20
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the reference server did not start: {output.read_text(encoding='utf-8', errors='replace').strip()}")
            time.sleep(0.01)
        announced: Mapping[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        self.urls, self.control_url, self.addresses = list(announced["urls"]), str(announced["control"]), dict(announced["addresses"])

    def _end(self, number: signal.Signals) -> int | None:
        process = self._process
        if process is None:
            return None
        self._process = None
        process.send_signal(number)
        try:
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _environment() -> dict[str, str]:
    """The environment of the server: this folder importable, nothing else changed."""
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
