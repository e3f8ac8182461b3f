# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cells of the crash matrix are played with: an agent whose token is our own and lies in Vault, or one that proves itself with a pair of its host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Union

from cryptography import x509
from integration.agents import CONTRACTS, REGISTER, Agent, World
from integration.atlas import Atlas, Host
from integration.canary import found_in_files

from ansible_collections.muster.agents.plugins.module_utils._certificates import key_matches

ROTATE = "muster.agents.token_rotate"
HEALTH = "muster.agents.agent_health"
_HEALTH_OPTIONS = ("control_plane", "url", "ca_cert", "name", "store", "delivery")
_GATE: Mapping[str, Any] = {"seen": False, "attempts": 1, "delay": 0.2}

__all__ = ["HEALTH", "ROTATE", "Ground", "Pairs", "Subject", "Tokens"]


Subject = Union[Agent, Host]


class Ground(Protocol):
    """The servers, and how an agent is put on a host, run on and judged."""

    def put(self, contract: str, way: str, place: Path, *, policy: bool) -> Any:
        """Prepare a host in *place* and return its agent; *policy*: it shall get a token for Vault too."""

    def options(self, module: str, agent: Any) -> dict[str, Any]:
        """The options of *module* for it."""

    def check(self, agent: Any) -> None:
        """Fail unless host, files and control plane agree on one working credential, with nothing left lying about."""

    def names(self, agent: Any, said: str) -> bool:
        """Whether everything that the control plane keeps of older credentials is named in what was *said*."""

    def url(self, agent: Any) -> str:
        """The address of its control plane."""

    def quiet(self) -> None:
        """Count mutating requests from here on."""

    def mutations(self) -> list[str]:
        """Every mutating request since then."""


@dataclass(frozen=True)
class Tokens:
    """Stacker and its Vault."""

    world: World

    def put(self, contract: str, way: str, place: Path, *, policy: bool) -> Agent:
        """See the protocol."""
        return Agent(self.world, contract, place, way, policy=policy)

    def options(self, module: str, agent: Agent) -> dict[str, Any]:
        """See the protocol."""
        if module == REGISTER:
            return agent.options(adopt="always", lease=2)
        if module == HEALTH:
            return {**{name: value for name, value in agent.options().items() if name in _HEALTH_OPTIONS}, **_GATE}
        return agent.options(agent_token_policy=None, settle_timeout=3, lease=2, **_GATE)

    def check(self, agent: Agent) -> None:
        """See the protocol."""
        agent.check_healthy()

    def names(self, agent: Agent, said: str) -> bool:
        """There is one record, whatever token it has."""
        return True

    def url(self, agent: Agent) -> str:
        """See the protocol."""
        return agent.stacker.url

    def quiet(self) -> None:
        """See the protocol."""
        self.world.quiet()

    def mutations(self) -> list[str]:
        """See the protocol."""
        return self.world.mutations()


@dataclass(frozen=True)
class Pairs:
    """KubeAtlas, and a CA of its agents' own."""

    atlas: Atlas

    def put(self, contract: str, way: str, place: Path, *, policy: bool) -> Host:
        """See the protocol."""
        host = Host(self.atlas, contract, place, way)
        host.put()
        return host

    def options(self, module: str, agent: Host) -> dict[str, Any]:
        """See the protocol."""
        if module == REGISTER:
            return agent.options(adopt="always", lease=2)
        return {**agent.options(lease=2, settle_timeout=5, capabilities=None), **_GATE, "certificate": agent.signing()}

    def check(self, agent: Host) -> None:
        """See the protocol. Each certificate has one record; a key that waits for its turn does so with mode 0600."""
        pem, key = agent.certificate.read_text(), agent.certificate.with_suffix(".key").read_bytes()
        leaf = x509.load_pem_x509_certificate(pem.encode())
        assert key_matches(leaf, key), "key and certificate are apart"
        assert agent.server.accepts(agent.name, pem), "the control plane does not know the pair in use"
        serials = [record["serial"] for record in agent.records()]
        assert len(set(serials)) == len(serials), "a certificate has two records"
        (used,) = [record["agent_id"] for record in agent.records() if record["serial"] == str(leaf.serial_number)]
        receipt = agent.receipt()
        assert receipt["agent_id"] == agent.env()["SERVICE_ID"] == used, "receipt, file and control plane name different records"
        assert receipt["phase"] in ("STORED", "ACTIVE", "COMMITTED"), receipt["phase"]
        generation = agent.root / "generations" / str(receipt["generation"])
        assert ((generation / "certificate").read_text(), (generation / "agent_id").read_text()) == (pem, used), "the store has another pair than that in use"
        known = {"receipt.json", "key", "lock", "generations", "previous"}
        assert {path.name for path in agent.root.iterdir()} <= known, "the store holds something left over"
        assert [path.name for path in agent.env_file.parent.iterdir()] == [agent.env_file.name], "something lies beside the file"
        assert {path.name for path in agent.certificate.parent.iterdir()} <= {"agent.crt", "agent.key", ".muster"}, "something lies beside the pair"
        assert found_in_files(agent.directory / "store", [agent.key]) == [], "the key was copied"
        keys = [path for path in (agent.certificate.parent / ".muster").rglob("key.pem") if not path.is_symlink()]
        assert len(keys) <= 3, "more keys than those in use, before and waiting"
        assert {path.stat().st_mode & 0o777 for path in keys} <= {0o600}, "a key is open to others"

    def names(self, agent: Host, said: str) -> bool:
        """See the protocol."""
        used = agent.receipt()["agent_id"]
        return all(f"service:{record['agent_id']}" in said for record in agent.records() if record["agent_id"] != used)

    def url(self, agent: Host) -> str:
        """See the protocol."""
        return agent.server.url

    def quiet(self) -> None:
        """See the protocol."""
        self.atlas.quiet()

    def mutations(self) -> list[str]:
        """See the protocol."""
        return [f"{contract}: {count}" for contract, count in zip(CONTRACTS, self.atlas.mutations(), strict=True) if count]
