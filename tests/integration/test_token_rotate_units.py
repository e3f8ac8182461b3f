# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""token_rotate with a real agent under a real systemd: the process itself changes over, and comes back when it cannot live with the new token."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_server.client import ReferenceServer, Tls, VaultLink
from world import OpenBao
from world.ca import CertificateAuthority
from world.hosts import Fleet

from .test_agent_health import ENVIRONMENT, HEALTH_URL, UNITS, Deployment

NETWORK, GATEWAY = "10.231.23.0/24", "10.231.23.1"
ROTATIONS = 3


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, bao: OpenBao) -> Iterator[tuple[Fleet, CertificateAuthority, Path]]:
    """One real host, and the CA of its control planes."""
    folder = tmp_path_factory.mktemp("rotate")
    hosts = Fleet(folder / "fleet", name="muster-rotate", network=NETWORK, suites=("bookworm",))
    hosts.down()
    hosts.up()
    yield hosts, CertificateAuthority(folder / "ca"), folder
    hosts.down()


@pytest.fixture(params=["documented", pytest.param("shipped", marks=pytest.mark.thorough)])
def agent(request: pytest.FixtureRequest, bench: tuple[Fleet, CertificateAuthority, Path], bao: OpenBao) -> Iterator[tuple[Deployment, dict[str, t.Any]]]:
    """An agent that runs and was committed, and what describes it to a rotation."""
    fleet, authority, folder = bench
    pair = authority.server("control", ("127.0.0.1", GATEWAY))
    link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), "status_panel")
    with ReferenceServer.start(
        request.param, tls=Tls(str(pair.cert), str(pair.key)), vault=link, listen=("127.0.0.1:0", f"{fleet.gateway}:0"),
    ) as server:
        place = folder / f"{request.param}-{len(list(folder.iterdir()))}"
        place.mkdir()
        deployment = Deployment(fleet, fleet.hosts[0], server, authority.ca_file, place, request.param)
        template = place / "env.j2"
        template.write_text(ENVIRONMENT % {"url": server.urls[1]})
        paths = [{"path": f"status_panel/{deployment.name}/{leaf}", "fields": {"token": "token"}} for leaf in ("token", "status_panel_token")]
        options = {
            **deployment.identity, "files": [{"path": "/opt/agent/.env", "src": str(template), "format": "env"}], "vault_paths": paths,
            "vault": {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)},
        }
        enrolled = deployment.task("agent_register", {**options, "version": "1.0.0", "capabilities": ["docker"]})
        assert not enrolled.get("failed"), enrolled
        deployment.start()
        assert deployment.gate()["action"] == "committed"
        gate = {"units": UNITS[request.param], "health_url": HEALTH_URL, "attempts": 20, "delay": 0.5}
        yield deployment, {**options, **gate, "when": ["always"]}
        deployment.stop()


def token(deployment: Deployment, generation: int) -> str:
    """A token in the store."""
    return deployment.run("cat", f"{deployment.store}/generations/{generation}/token")


def test_the_process_changes_over_each_time_and_only_the_server_without_overlap_ever_refuses_it(
    agent: tuple[Deployment, dict[str, t.Any]],
) -> None:
    deployment, options = agent
    for number in range(ROTATIONS):
        done = deployment.task("token_rotate", options)
        assert (done.get("action"), done.get("generation"), done.get("phase")) == ("rotated", number + 2, "COMMITTED"), done
        assert [step["step"] for step in done["steps"]] == ["stage", "vault", "prove", "deliver", "restart", "gate"]
        assert not done["pending_restart"]
        assert f"AGENT_TOKEN={token(deployment, number + 2)}" in deployment.run("cat", "/opt/agent/.env")
        assert token(deployment, number + 2) not in deployment.output
    refused = [line for line in deployment.run("journalctl", "-u", "status-panel", "--no-pager", "-o", "cat").splitlines() if "refused" in line]
    # With overlap none; without, what fits between the change in Vault and the restart: one poll for each rotation.
    assert len(refused) <= (0 if deployment.contract == "documented" else 2 * ROTATIONS), refused
    assert deployment.gate()["action"] == "unchanged"


def test_a_process_that_cannot_live_with_the_new_token_works_with_the_old_one_again(agent: tuple[Deployment, dict[str, t.Any]]) -> None:
    deployment, options = agent
    old = token(deployment, 1)
    before = deployment.run("cat", "/opt/agent/.env")
    deployment.write(
        "/etc/systemd/system/status-panel.service.d/old.conf", f"[Service]\nExecStartPre=/usr/bin/grep -q -e {old} /opt/agent/.env\n")
    deployment.run("systemctl", "daemon-reload")
    red = deployment.task("token_rotate", {**options, "attempts": 6})
    deployment.run("rm", "-r", "/etc/systemd/system/status-panel.service.d")
    deployment.run("systemctl", "daemon-reload")
    assert (red["failed"], red["action"], red["rolled_back"]) == (True, "rolled_back", True), red
    assert red["failed_step"] in ("restart", "gate")
    assert deployment.run("cat", "/opt/agent/.env") == before
    assert (deployment.receipt["generation"], deployment.receipt["phase"]) == (1, "COMMITTED")
    assert deployment.server.accepts(deployment.name, old)
    assert deployment.gate()["action"] == "unchanged"
    assert deployment.task("token_rotate", options)["action"] == "rotated"
