# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference control plane of a world, as a background server that survives the command which started it."""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_agent.build import AGENTS, build

from .ca import CertificateAuthority, KeyPair, write_private
from .machine import TOP
from .processes import Daemon

__all__ = ["Reference", "VaultAccess", "build_releases", "control_plane_arguments"]

OPERATOR_SECRETS = ("registration-secret", "password", "client-secret")
_TESTS = TOP / "tests"


@dataclass(frozen=True)
class VaultAccess:
    """How the control plane reaches the Vault it shares with its agents."""

    url: str
    ca_file: Path
    token_file: Path
    prefix: str


def build_releases(directory: Path, version: str) -> None:
    """Write the reference agents' release artefacts and their ``.sha256`` files into ``directory``."""
    for agent in AGENTS:
        build(directory, version, agent=agent)


def control_plane_arguments(operator: Path, reports: str, ca: CertificateAuthority) -> list[str]:
    """Return what single control planes are started with; ``reports``: ``HOST:PORT`` for agents that report by gRPC, ``ca`` signs what they issue.

    The operator's secrets are made once and kept in the folder ``operator``, one file each.
    """
    operator.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in OPERATOR_SECRETS:
        if not (operator / name).exists():
            write_private(operator / name, secrets.token_urlsafe(32))
    held = {name: (operator / name).read_text() for name in OPERATOR_SECRETS}
    return [
        f"--pganalytics-secret={held['registration-secret']}",
        f"--pganalytics-user=operator:{held['password']}",
        f"--pganalytics-ca-cert={ca.ca_file}",
        f"--pganalytics-ca-key={ca.key_file}",
        f"--kubeatlas-user=operator:{held['password']}:operator@example.com",
        f"--kubeatlas-client=muster:{held['client-secret']}:muster@example.com",
        f"--oxmon-user=operator:{held['password']}",
        f"--oxmon-grpc-listen={reports}",
    ]


class Reference:
    """One control plane in one directory: ``state.sqlite``, ``requests.log``, ``ready.json``, ``pid``."""

    def __init__(
        self,
        directory: Path,
        *,
        contract: str,
        listen: Sequence[str],
        control_port: int,
        server: KeyPair,
        client_ca: Path | None,
        vault: VaultAccess,
        releases: Path,
        arguments: Sequence[str] = (),
    ) -> None:
        """``listen``: ``HOST:PORT`` of each TLS listener. ``control_port``: the tests' own API, on loopback only.

        ``client_ca`` signs the client certificates that it asks for and does without (None: it asks for none); ``arguments`` are those of
        single control planes.
        """
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ready = directory / "ready.json"
        self._daemon = Daemon("The reference control plane", directory / "pid", directory / "server.log", str(self._ready))
        self._arguments = [
            f"--contract={contract}",
            *(f"--listen={address}" for address in listen),
            f"--tls-cert={server.cert}",
            f"--tls-key={server.key}",
            *([f"--client-ca={client_ca}"] if client_ca else []),
            f"--state={directory / 'state.sqlite'}",
            f"--control-listen=127.0.0.1:{control_port}",
            f"--ready-file={self._ready}",
            f"--vault-url={vault.url}",
            f"--vault-ca={vault.ca_file}",
            f"--vault-token-file={vault.token_file}",
            f"--vault-prefix={vault.prefix}",
            f"--releases={releases}",
            f"--log={directory / 'requests.log'}",
            *arguments,
        ]

    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._daemon.pid() is not None

    def start(self) -> None:
        """Start the server unless it runs with these very arguments. Its records survive a restart."""
        used = self.directory / "arguments.json"
        if self.running():
            if used.exists() and json.loads(used.read_text()) == self._arguments:
                return
            self.stop()
        self._ready.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(_TESTS)}
        self._daemon.start([sys.executable, "-m", "reference_server", *self._arguments], environment)
        self._daemon.wait_ready(self._ready.exists, 20)
        used.write_text(json.dumps(self._arguments))

    def stop(self) -> None:
        """End the server; its records stay."""
        self._daemon.stop()

    def agents(self) -> list[Mapping[str, Any]]:
        """Return what the control plane knows of its agents, through the tests' own API (no tokens in it)."""
        return list(self._get("/agents"))

    def counters(self) -> Mapping[str, Any]:
        """Return the counters of requests by class."""
        return dict(self._get("/counters"))

    def reset_counters(self) -> None:
        """Count from here on."""
        self._get("/counters/reset", method="POST")

    def _get(self, path: str, method: str = "GET") -> Any:
        control = json.loads(self._ready.read_text())["control"]
        data = b"{}" if method == "POST" else None
        request = urllib.request.Request(f"{control}{path}", data=data, method=method, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"null")
