# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent that a test enrols: the options it is enrolled with, and what host, Vault and control plane hold of it."""

from __future__ import annotations

import contextlib
import json
import shlex
import ssl
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reference_server.client import ReferenceServer, Tls
from world import OpenBao

TEMPLATES = Path(__file__).parent / "templates"
CONTRACTS = ("documented", "shipped")
WAYS = ("fast", "module", "auto")
REGISTER = "muster.agents.agent_register"
CONFIG = "muster.agents.agent_config"

__all__ = ["CONFIG", "CONTRACTS", "REGISTER", "TEMPLATES", "WAYS", "Agent", "World", "orders", "strict_python"]


@dataclass(frozen=True)
class World:
    """The servers that tests share: one Stacker of each contract, which keep tokens in the same OpenBao, and their certificate with its CA."""

    stackers: Mapping[str, ReferenceServer]
    bao: OpenBao
    ca_file: Path
    tls: Tls

    def quiet(self) -> None:
        """Count mutating requests from here on."""
        self.bao.reset_mutations()
        for server in self.stackers.values():
            server.reset_counters()

    def mutations(self) -> list[str]:
        """Every mutating request since then, at any server."""
        sent = [f"{contract}: {server.counters()['stacker']['mutating']}" for contract, server in self.stackers.items()]
        return [*(line for line in sent if not line.endswith(": 0")), *self.bao.mutating_requests()]


@dataclass(frozen=True)
class Agent:
    """One identity on one host. *prefix* is the Vault mount that its server uses, with /data for KV v2; *vault* whether the host's run writes there."""

    world: World
    contract: str
    directory: Path
    way: str = "fast"
    vault: bool = True
    policy: bool = False
    prefix: str = "status_panel"
    server: ReferenceServer | None = None
    name: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def stacker(self) -> ReferenceServer:
        """Its control plane."""
        return self.server or self.world.stackers[self.contract]

    @property
    def root(self) -> Path:
        """Its folder in the store."""
        return self.directory / "store" / "stacker" / self.name

    @property
    def env_file(self) -> Path:
        """The rendered environment file."""
        return self.directory / "opt" / ".env"

    @property
    def leaves(self) -> list[str]:
        """The two places in Vault where readers look."""
        return [f"{self.prefix}/{self.name}/{leaf}" for leaf in ("token", "status_panel_token")]

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_register; None removes one."""
        given: dict[str, Any] = {
            "control_plane": "stacker", "url": self.stacker.url, "ca_cert": str(self.world.ca_file), "name": self.name, "version": "1.0.0",
            "capabilities": ["docker", "logs"], "system_info": {"os": "linux"}, "store": str(self.directory / "store"), "delivery": self.way,
            "settle_timeout": 8, "files": [{"path": str(self.env_file), "src": str(TEMPLATES / "env.j2"), "format": "env"}],
        }
        if self.vault:
            given["vault"] = self.vault_login()
            given["vault_paths"] = [{"path": leaf, "fields": {"token": "token"}} for leaf in self.leaves]
        if self.policy:
            given["agent_token_policy"] = {"period": "1h"}
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    def vault_login(self) -> dict[str, Any]:
        """The option ``vault``, with the operator's own token."""
        return {"url": self.world.bao.url, "ca_cert": str(self.world.bao.ca_file), "token_file": str(self.world.bao.token_file)}

    # What there is of it.

    def secret(self, name: str = "token") -> str:
        """A secret of the newest generation on the host."""
        newest = max((self.root / "generations").iterdir(), key=lambda folder: int(folder.name))
        return (newest / name).read_text()

    def receipt(self) -> dict[str, Any]:
        """The receipt on the host."""
        loaded: dict[str, Any] = json.loads((self.root / "receipt.json").read_text())
        return loaded

    def env(self) -> dict[str, str]:
        """The rendered environment file, read as a shell would."""
        lines = (word.partition("=") for word in shlex.split(self.env_file.read_text(), comments=True))
        return {name: value for name, _equals, value in lines}

    def in_vault(self) -> list[str | None]:
        """The token under each leaf, as its readers read it."""
        found = []
        for leaf in self.leaves:
            document = self.world.bao.read(leaf)
            found.append(document["data"]["token"] if document is not None else None)
        return found

    def records(self) -> list[dict[str, Any]]:
        """What the control plane has under this name."""
        return [record for record in self.stacker.agents() if record["name"] == self.name]

    def everything(self) -> dict[str, bytes]:
        """Every file below this host's directory, with its content."""
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in sorted(self.directory.rglob("*")) if path.is_file()}

    def heartbeat(self) -> None:
        """Be seen by the control plane, as a running agent is: report on a command that is not there."""
        body = {"command_id": "cmd_none", "deployment_hash": self.name, "status": "completed", "completed_at": "2026-01-01T00:00:00Z"}
        headers = {"X-Agent-Id": self.secret("agent_id"), "Authorization": f"Bearer {self.secret()}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.stacker.url}/api/v1/agent/commands/report", json.dumps(body).encode(), headers)
        context = ssl.create_default_context(cafile=str(self.world.ca_file))
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=10, context=context).close()
        assert self.records()[0]["last_heartbeat"] is not None

    def check_healthy(self) -> None:
        """Fail unless host, files, Vault and control plane agree on one credential, with nothing left lying about."""
        token = self.secret()
        assert self.stacker.accepts(self.name, token), "the control plane refuses the token in the store"
        assert self.env()["AGENT_TOKEN"] == token
        assert len(self.records()) == 1
        assert self.receipt()["agent_id"] == self.env()["AGENT_ID"] == self.records()[0]["agent_id"] == self.secret("agent_id")
        assert self.receipt()["phase"] in ("STORED", "ACTIVE", "COMMITTED")
        if self.vault:
            assert self.in_vault() == [token, token]
        if self.policy:
            assert self.env()["VAULT_TOKEN"] == self.secret("vault_token")
        known = {"receipt.json", "key", "lock", "generations"}
        assert {path.name for path in self.root.iterdir()} <= known | {"previous"}, "the store holds something left over"
        assert [path.name for path in self.env_file.parent.iterdir()] == [".env"]
        modes = {path.name: path.stat().st_mode & 0o777 for path in (self.root, self.root / "receipt.json", self.env_file)}
        assert modes == {self.root.name: 0o700, "receipt.json": 0o600, ".env": 0o600}


def orders(agents: Mapping[str, Agent] | Sequence[Agent], **changes: Any) -> dict[str, dict[str, Any]]:
    """The options of many agents by host name, each with the same *changes*."""
    named = agents if isinstance(agents, Mapping) else {agent.name: agent for agent in agents}
    return {host: agent.options(**changes) for host, agent in named.items()}


def strict_python(directory: Path) -> Path:
    """Make an interpreter in *directory* that runs files and standard input only, so that a module of ours goes as Ansible's archive."""
    python = directory / "strict-python"
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exit 1\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return python
