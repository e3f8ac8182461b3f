# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference Stacker and its Vault: the late write, who wins, what a silent Vault means. Against a real OpenBao."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reference_server.client import ReferenceServer, Tls, VaultLink
from world.openbao import OpenBao

from .conftest import Wire, eventually

documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)
NEW = "N" * 86


@pytest.fixture(scope="module")
def running_with_vault(tls: Tls, vault_link: VaultLink) -> Iterator[dict[str, ReferenceServer]]:
    """One server for each contract; every test uses a name of its own, since Vault keeps what it was given."""
    arguments = ["--overlap", "3600"]
    with (
        ReferenceServer.start("documented", tls=tls, vault=vault_link, arguments=arguments) as documented_server,
        ReferenceServer.start("shipped", tls=tls, vault=vault_link, arguments=arguments) as shipped_server,
    ):
        yield {"documented": documented_server, "shipped": shipped_server}


@pytest.fixture
def with_vault(contract: str, running_with_vault: dict[str, ReferenceServer], trust: ssl.SSLContext) -> tuple[ReferenceServer, Wire]:
    server = running_with_vault[contract]
    server.reset()
    return server, Wire(server.url, trust)


def leaf(vault: OpenBao, name: str) -> str | None:
    """The token as an independent reader sees it on KV v1: wrapped."""
    found = vault.read(f"status_panel/{name}/token")
    return None if found is None else str(found["data"]["token"])


def rotate(vault: OpenBao, name: str, token: str) -> None:
    vault.write(f"status_panel/{name}/token", {"data": {"token": token}})


@contextmanager
def sealed(vault: OpenBao) -> Iterator[None]:
    vault.seal()
    try:
        yield
    finally:
        vault.unseal()


@shipped
def test_a_late_write_leaves_a_fresh_token_unusable_for_a_while(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "late-vault-write", seconds=1)
    item = wire.register().json["data"]["item"]
    refused = wire.prove(item)
    assert (refused.status, refused.json) == (400, {"message": "Token not found in Vault: 404 Not Found"})
    eventually(lambda: wire.prove(item).status == 200)


@shipped
def test_a_lost_write_makes_the_next_registration_mint_another_token(wire: Wire, server: ReferenceServer) -> None:
    server.fault("register", "no-vault-write")
    first = wire.register().json["data"]["item"]
    again = wire.register()
    second = again.json["data"]["item"]
    assert (again.status, second["agent_id"]) == (200, first["agent_id"])
    assert second["agent_token"] != first["agent_token"]
    eventually(lambda: server.accepts("agent-1", second["agent_token"]))
    assert not server.accepts("agent-1", first["agent_token"])


def test_the_token_lands_in_vault_where_readers_look(with_vault: tuple[ReferenceServer, Wire], vault: OpenBao, contract: str) -> None:
    _server, wire = with_vault
    name = f"lands-{contract}"
    item = wire.register(name).json["data"]["item"]
    eventually(lambda: leaf(vault, name) == item["agent_token"])
    assert wire.prove(item, name).status == 200


def test_a_kv_v2_prefix_with_data_gives_the_same_shape(
    contract: str, tls: Tls, trust: ssl.SSLContext, vault: OpenBao, vault_link: VaultLink
) -> None:
    link = VaultLink(vault_link.url, vault_link.token_file, vault_link.ca_file, "secret/data")
    with ReferenceServer.start(contract, tls=tls, vault=link) as server:
        name = f"v2-{contract}"
        item = Wire(server.url, trust).register(name).json["data"]["item"]
        eventually(lambda: vault.read(f"secret/data/{name}/token") is not None)
        found = vault.read(f"secret/data/{name}/token")
        assert found is not None
        assert found["data"] == {"token": item["agent_token"], "deployment_hash": name}


@shipped
def test_shipped_rotation_in_vault_has_no_overlap(with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
    _server, wire = with_vault
    item = wire.register("no-overlap").json["data"]["item"]
    eventually(lambda: wire.prove(item, "no-overlap").status == 200)
    rotate(vault, "no-overlap", NEW)
    assert wire.prove(item, "no-overlap").status == 400
    assert wire.prove(item, "no-overlap", NEW).status == 200


@shipped
def test_shipped_server_refuses_everybody_while_vault_is_sealed_and_remints_on_registration(
    with_vault: tuple[ReferenceServer, Wire], vault: OpenBao
) -> None:
    _server, wire = with_vault
    item = wire.register("sealed").json["data"]["item"]
    eventually(lambda: wire.prove(item, "sealed").status == 200)
    with sealed(vault):
        refused = wire.prove(item, "sealed")
        assert (refused.status, refused.json) == (400, {"message": "Token not found in Vault: Vault returned 503"})
        again = wire.register("sealed")
        assert again.status == 200
        assert wire.call("GET", "/health_check").json["status"] == "degraded"
    minted = again.json["data"]["item"]["agent_token"]
    assert minted != item["agent_token"]
    eventually(lambda: leaf(vault, "sealed") == minted)


def test_loopback_bypass_lets_anybody_in_when_vault_has_no_answer(
    tls: Tls, trust: ssl.SSLContext, vault: OpenBao, vault_link: VaultLink
) -> None:
    with ReferenceServer.start("shipped", tls=tls, vault=vault_link, arguments=["--loopback-bypass", "on"]) as server:
        wire = Wire(server.url, trust)
        item = wire.register("bypass").json["data"]["item"]
        eventually(lambda: leaf(vault, "bypass") is not None)
        assert wire.prove(item, "bypass", "forged").status == 400
        vault.delete("status_panel/bypass/token")
        assert wire.prove(item, "bypass", "forged").status == 200


class TestDocumented:
    """The database knows tokens; a change in Vault wins, and the old token has its overlap."""

    @documented
    def test_a_changed_vault_wins_and_the_old_token_overlaps(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        server, wire = with_vault
        item = wire.register("overlap").json["data"]["item"]
        eventually(lambda: leaf(vault, "overlap") is not None)
        rotate(vault, "overlap", NEW)
        assert wire.prove(item, "overlap", NEW).status == 200
        assert wire.prove(item, "overlap").status == 200
        assert not server.accepts("overlap", "other")

    @documented
    def test_a_bearer_alone_is_found_by_a_token_only_vault_knows(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        _server, wire = with_vault
        wire.register("bystander")
        wire.register("lone")
        eventually(lambda: leaf(vault, "lone") is not None)
        rotate(vault, "lone", "L" * 86)
        reply = wire.call("GET", "/api/v1/commands", headers={"Authorization": "Bearer " + "L" * 86})
        assert reply.status == 200

    def test_without_overlap_the_old_token_dies_at_once(
        self, tls: Tls, trust: ssl.SSLContext, vault: OpenBao, vault_link: VaultLink
    ) -> None:
        with ReferenceServer.start("documented", tls=tls, vault=vault_link, arguments=["--overlap", "0"]) as server:
            wire = Wire(server.url, trust)
            item = wire.register("at-once").json["data"]["item"]
            eventually(lambda: leaf(vault, "at-once") is not None)
            rotate(vault, "at-once", NEW)
            assert [wire.prove(item, "at-once", token).status for token in (None, NEW)] == [401, 200]

    @documented
    def test_the_database_answers_while_vault_cannot(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        _server, wire = with_vault
        item = wire.register("fallback").json["data"]["item"]
        eventually(lambda: leaf(vault, "fallback") is not None)
        with sealed(vault):
            assert wire.prove(item, "fallback").status == 200
            assert wire.prove(item, "fallback", "other").status == 401

    @documented
    def test_a_leaf_deleted_from_vault_revokes(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        _server, wire = with_vault
        item = wire.register("revoked").json["data"]["item"]
        eventually(lambda: leaf(vault, "revoked") is not None)
        assert wire.prove(item, "revoked").status == 200
        vault.delete("status_panel/revoked/token")
        assert wire.prove(item, "revoked").status == 401

    @documented
    def test_a_leftover_leaf_does_not_win_over_a_new_registration(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        server, wire = with_vault
        rotate(vault, "leftover", "old")
        server.fault("register", "no-vault-write")
        item = wire.register("leftover").json["data"]["item"]
        assert wire.prove(item, "leftover").status == 200
        assert not server.accepts("leftover", "old")

    @documented
    def test_a_late_write_overwrites_a_rotation_made_meanwhile(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        server, wire = with_vault
        server.fault("register", "late-vault-write", seconds=1)
        item = wire.register("late").json["data"]["item"]
        rotate(vault, "late", NEW)
        assert wire.prove(item, "late", NEW).status == 200
        eventually(lambda: leaf(vault, "late") == item["agent_token"])

    @documented
    def test_drift_without_vault_leaves_the_old_token_there(self, with_vault: tuple[ReferenceServer, Wire], vault: OpenBao) -> None:
        server, wire = with_vault
        item = wire.register("drift").json["data"]["item"]
        eventually(lambda: leaf(vault, "drift") is not None)
        assert wire.prove(item, "drift").status == 200
        server.drift("drift", vault=False)
        assert wire.prove(item, "drift").status == 401
        assert leaf(vault, "drift") == item["agent_token"]
