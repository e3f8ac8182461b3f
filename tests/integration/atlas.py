# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KubeAtlas as tests share it: a server of each contract, hosts with an agent's pair on them, and how a new pair is made."""

from __future__ import annotations

import json
import shlex
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reference_server.client import ReferenceServer, Tls
from world.agent_pairs import Issuer, Pair, issue
from world.ca import CertificateAuthority

from .agents import CONTRACTS, TEMPLATES
from .canary import found_in_files

PASSWORD, CLIENT_SECRET = "canary-password-3c1d", "canary-client-secret-8a2f"

__all__ = ["CLIENT_SECRET", "PASSWORD", "Atlas", "Host", "atlases", "orders"]


@dataclass(frozen=True)
class Atlas:
    """One KubeAtlas of each contract, the CA of their own certificate, and the one that signs agents."""

    servers: Mapping[str, ReferenceServer]
    ca: CertificateAuthority
    agents_ca: CertificateAuthority

    def quiet(self) -> None:
        """Count from here on."""
        for server in self.servers.values():
            server.reset_counters()

    def mutations(self) -> list[int]:
        """How many mutating requests each server got since then."""
        return [server.counters()["kubeatlas"]["mutating"] for server in self.servers.values()]


@dataclass(frozen=True)
class Host:
    """One host with one agent, and the pair that lies there."""

    atlas: Atlas
    contract: str
    directory: Path
    way: str = "fast"
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its agent."""
        return f"edge-{self.directory.name}x"

    @property
    def server(self) -> ReferenceServer:
        """Its control plane."""
        return self.atlas.servers[self.contract]

    @property
    def certificate(self) -> Path:
        """Where its certificate lies; the key is beside it."""
        return self.directory / "etc" / "agent.crt"

    @property
    def root(self) -> Path:
        """Its folder in the store."""
        return self.directory / "store" / "kubeatlas" / self.name

    def put(self, pair: Pair | None = None) -> Pair:
        """Lay a pair there, a new one of our CA unless one is given: as plain files, or behind links as cert_issue does."""
        pair = pair or issue(f"agent-{self.name}", Issuer.of(self.atlas.agents_ca))
        if self.contract == "documented":
            pair.write(self.directory / "etc")
            return pair
        for path in pair.write(self.directory / "etc" / ".muster" / "1"):
            link = self.certificate.with_name(path.name)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        return pair

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of agent_register; None removes one."""
        given = {
            **self.login(), "name": self.name, "version": "1.0.0", "service_type": "agent", "controller_name": "main",
            "system_info": {"os": "Linux"}, "capabilities": ["pods"], "certificate_path": str(self.certificate),
            "key_path": str(self.certificate.with_suffix(".key")), "store": str(self.directory / "store"), "delivery": self.way,
            "files": [{"path": str(self.env_file), "src": str(TEMPLATES / "kubeatlas.env.j2"), "format": "env"}], **self.changes,
        }
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    def signing(self) -> dict[str, Any]:
        """How a new pair is made for it, as cert_issue takes it."""
        files = {"certificate": str(self.atlas.agents_ca.ca_file), "key": str(self.atlas.agents_ca.directory / "ca.key")}
        return {"issuer": "own_ca", "own_ca": files, "extended_key_usage": ["clientAuth"], "key_usage": ["digitalSignature"],
                "subject": {"O": "KubeAtlas", "CN": f"agent-{self.name}"}}

    def login(self) -> dict[str, Any]:
        """The options of every module that talks to the control plane."""
        return {
            "control_plane": "kubeatlas", "url": self.server.url, "ca_cert": str(self.atlas.ca.ca_file), "username": "olga", "password": PASSWORD,
            "client_secret": CLIENT_SECRET, "issuer_url": f"{self.server.url}/realms/kubeatlas",
        }

    @property
    def env_file(self) -> Path:
        """The rendered environment file."""
        return self.directory / "opt" / "agent.env"

    def env(self) -> dict[str, str]:
        """The same, read as a shell would."""
        lines = (word.partition("=") for word in shlex.split(self.env_file.read_text(), comments=True))
        return {name: value for name, _equals, value in lines}

    def records(self) -> list[dict[str, Any]]:
        """What the control plane has under this name, newest first."""
        return [record for record in self.server.agents() if record["name"] == self.name]

    def receipt(self) -> dict[str, Any]:
        """The receipt on the host."""
        loaded: dict[str, Any] = json.loads((self.root / "receipt.json").read_text())
        return loaded

    def register_by_hand(self, pair: Pair) -> str:
        """Register as the guide's commands do, without this collection. Returns the service id."""
        token = self.server.act("kubeatlas", "mint", service_name=self.name, controller_name="main")["install_token"]
        body = {"install_token": token, "service_name": self.name, "service_type": "agent", "controller_name": "main", "client_cert_pem": pair.cert.strip(),
                "metadata": {"agent_id": self.name}}
        request = urllib.request.Request(f"{self.server.url}/api/v1/register", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=str(self.atlas.ca.ca_file))) as answer:
            return str(json.loads(answer.read())["service_id"])

    def check_healthy(self, records: int = 1) -> None:
        """Fail unless host and control plane agree on the certificate that lies there."""
        found = self.records()
        assert len(found) == records
        assert self.receipt()["agent_id"] == self.env()["SERVICE_ID"] == found[0]["agent_id"]
        assert self.receipt()["phase"] in ("STORED", "COMMITTED")
        assert self.server.accepts(self.name, self.certificate.read_text())
        newest = max((self.root / "generations").iterdir(), key=lambda folder: int(folder.name))
        assert (newest / "certificate").read_text() == self.certificate.read_text()
        assert found_in_files(self.directory / "store", [self.key]) == [], "the key was copied"

    @property
    def key(self) -> str:
        """A line out of the middle of the key."""
        return self.certificate.with_suffix(".key").read_text().splitlines()[1]


def orders(hosts: Mapping[str, Host], **changes: Any) -> dict[str, dict[str, Any]]:
    """The options of many hosts, each with the same *changes*."""
    return {name: host.options(**changes) for name, host in hosts.items()}


@contextmanager
def atlases(ca: CertificateAuthority, tls: Tls, directory: Path) -> Iterator[Atlas]:
    """Run both contracts, with a CA of their agents' own in *directory*, which also signs requests at ``/api/v1/sign-certificate``."""
    agents_ca = CertificateAuthority(directory, "agents' CA")
    asking = Tls(tls.cert, tls.key, client_ca=str(agents_ca.ca_file))
    options = ["--plane", "kubeatlas", "--kubeatlas-user", f"olga:{PASSWORD}:olga@example.test", "--kubeatlas-user", f"nomail:{PASSWORD}",
               "--kubeatlas-client", f"kubeatlas-backend:{CLIENT_SECRET}", "--kubeatlas-signer", f"{agents_ca.ca_file}:{agents_ca.directory / 'ca.key'}"]
    with ExitStack() as stack:
        yield Atlas({contract: stack.enter_context(ReferenceServer.start(contract, tls=asking, arguments=options)) for contract in CONTRACTS}, ca, agents_ca)
