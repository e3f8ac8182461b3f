# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many requests the work with Vault takes, what is not asked twice, and that nothing is lost where less is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _sessions, _vault
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Busy
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils._vault_lease import lease_path, leased
from world import OpenBao

from .conftest import Open, Refused, lose_answers

OLD, NEW = {"token": Secret("old")}, {"token": Secret("new")}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request of the tested code: its method and the last part of its path."""
    requests: list[str] = []
    send = Http.send

    def noted(self: Http, method: str, path: str, **options: Any) -> Any:
        requests.append(f"{method} {path.rpartition('/')[2]}")
        return send(self, method, path, **options)

    monkeypatch.setattr(Http, "send", noted)
    return requests


@pytest.fixture
def path(fresh: str) -> VaultPath:
    """An entry that is not there."""
    return VaultPath(f"secret/data/{fresh}/token", {"token": "token"})


def test_what_was_read_is_written_at_once_and_read_as_the_readers_do(open_vault: Open, path: VaultPath, sent: list[str]) -> None:
    vault = open_vault()
    vault.read(path)
    sent.clear()
    assert vault.ensure(path, OLD).version == 1
    assert sent == ["POST token", "GET token"]
    seen = vault.read(path)
    sent.clear()
    assert vault.exchange(path, NEW, seen).version == 2
    assert sent == ["POST token", "GET token"]
    assert vault.recall(path).fields == NEW
    assert len(sent) == 2


def test_a_caller_who_sees_by_other_means_that_it_is_there_spares_the_look(open_vault: Open, path: VaultPath, sent: list[str], refused: Refused) -> None:
    vault = open_vault()
    vault.ensure(path, OLD)
    seen = vault.recall(path)
    sent.clear()
    assert vault.exchange(path, NEW, seen, check=False).version == 2
    assert sent == ["POST token"]
    assert vault.recall(path).fields == NEW
    with refused("cas_conflict", path.path):
        vault.exchange(path, OLD, seen, check=False)


def test_v1_is_looked_at_whoever_asks(open_vault: Open, fresh: str, sent: list[str]) -> None:
    vault, path = open_vault(), VaultPath(f"status_panel/{fresh}/token", {"token": "token"})
    vault.exchange(path, NEW, vault.read(path), check=False)
    assert sent[-2:] == ["POST token", "GET token"]


def test_that_nothing_is_to_be_written_is_never_said_from_memory(bao: OpenBao, open_vault: Open, path: VaultPath, sent: list[str]) -> None:
    vault = open_vault()
    vault.ensure(path, OLD)
    bao.write(path.path, {"data": {"token": "theirs"}})
    sent.clear()
    assert vault.ensure(path, OLD).changed is True
    assert sent == ["GET token", "POST token", "GET token"]


def test_what_others_wrote_since_it_was_read_is_kept_and_an_exchange_gives_way(
    bao: OpenBao, open_vault: Open, path: VaultPath, refused: Refused,
) -> None:
    vault = open_vault()
    seen = vault.read(path)
    bao.write(path.path, {"data": {"theirs": {"deep": 1}}})
    assert vault.ensure(path, OLD).fields_kept == ("theirs",)
    found = bao.read(path.path)
    assert found is not None
    assert found["data"] == {"theirs": {"deep": 1}, "token": "old"}
    with refused("cas_conflict", path.path):
        vault.exchange(path, NEW, seen)
    again = vault.read(path)
    vault.exchange(path, NEW, again)
    found = bao.read(path.path)
    assert found is not None
    assert found["data"] == {"theirs": {"deep": 1}, "token": "new"}


def test_v1_has_no_guard_and_is_read_again(open_vault: Open, fresh: str, sent: list[str]) -> None:
    vault, path = open_vault(), VaultPath(f"status_panel/{fresh}/token", {"token": "token"})
    seen = vault.read(path)
    sent.clear()
    vault.ensure(path, OLD)
    vault.exchange(path, NEW, vault.recall(path))
    assert sent == ["GET token", "POST token", "GET token"] * 2
    assert seen.version is None


def test_a_session_remembers_the_entries_of_one_agent(open_vault: Open, fresh: str, sent: list[str]) -> None:
    vault = open_vault()
    paths = [VaultPath(f"secret/data/{fresh}/{number}", {"token": "token"}) for number in range(_vault._MOST_REMEMBERED + 1)]
    for path in paths:
        vault.read(path)
    sent.clear()
    for path in reversed(paths):
        vault.recall(path)
    assert sent == ["GET 0"]


class TestLease:
    """One request to take it, one to let go."""

    @pytest.fixture
    def place(self, path: VaultPath) -> str:
        """Where it lies."""
        return lease_path(path.path)

    def test_a_free_one_costs_two_requests(self, bao: OpenBao, open_vault: Open, path: VaultPath, place: str, sent: list[str]) -> None:
        vault = open_vault()
        vault.read(path)
        sent.clear()
        with leased(vault, path.path, "one:1", 60):
            held = bao.read(place)
            assert held is not None
            assert held["data"]["holder"] == "one:1"
        assert sent == ["POST muster_lease", "DELETE muster_lease"]
        assert bao.read(place) is None

    def test_of_two_one_gets_it(self, bao: OpenBao, open_vault: Open, path: VaultPath, place: str) -> None:
        with leased(open_vault(), path.path, "one:1", 60):
            with pytest.raises(Busy, match="by one:1"), leased(open_vault(), path.path, "two:2", 60):
                pytest.fail("two have it")
            assert bao.read(place) is not None

    def test_one_that_ran_out_is_taken_and_its_former_holder_leaves_it_alone(self, bao: OpenBao, open_vault: Open, path: VaultPath, place: str) -> None:
        with leased(open_vault(), path.path, "late:1", 0.1):
            time.sleep(0.2)
            with leased(open_vault(), path.path, "two:2", 60):
                pass
            bao.write(place, {"data": {"holder": "three:3", "until": str(int(time.time()) + 60)}})
        held = bao.read(place)
        assert held is not None
        assert held["data"]["holder"] == "three:3"

    @pytest.mark.parametrize("delivered", [True, False])
    def test_a_lost_answer_is_looked_after(
        self, bao: OpenBao, open_vault: Open, path: VaultPath, place: str, delivered: bool, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        vault = open_vault()
        vault.read(path)
        lose_answers(monkeypatch, vault, methods=("POST",), times=1, delivered=delivered)
        with leased(vault, path.path, "one:1", 60):
            held = bao.read(place)
            assert held is not None
            assert held["data"]["holder"] == "one:1"
        assert bao.read(place) is None

    def test_a_token_that_may_not_delete_lets_it_end(self, bao: OpenBao, open_vault: Open, path: VaultPath, place: str, fresh: str) -> None:
        bao.policy(fresh, f'path "secret/data/{fresh}/*" {{ capabilities = ["create", "read", "update"] }}')
        for _time in range(2):
            with leased(open_vault(token=bao.token([fresh])), path.path, "one:1", 60):
                pass
            held = bao.read(place)
            assert held is not None
            assert held["data"]["until"] == "0"

    def test_there_is_none_on_v1(self, bao: OpenBao, open_vault: Open, fresh: str) -> None:
        with leased(open_vault(), f"status_panel/{fresh}/token", "one:1", 60):
            assert bao.mutations() == 0


class TestMounts:
    """Which there are is asked once in a run."""

    @pytest.fixture
    def open_shared(self, options: dict[str, Any], tmp_path: Path) -> Iterator[Any]:
        """Opens sessions that share what they learn."""
        opened: list[Vault] = []

        def open_one(**changes: Any) -> Vault:
            opened.append(Vault({**options, **changes}, str(tmp_path / "state")))
            return opened[-1]

        yield open_one
        for vault in opened:
            vault.close()

    def test_the_second_fork_knows_and_the_next_run_asks_again(
        self, open_shared: Any, path: VaultPath, fresh: str, sent: list[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        flat = VaultPath(f"status_panel/{fresh}/token", {"token": "token"})
        open_shared().preflight([path])
        assert sent == ["GET token", "POST capabilities-self"]
        sent.clear()
        second = open_shared()
        second.preflight([path])
        assert sent == ["POST capabilities-self"]
        second.preflight([flat])
        third = open_shared()
        sent.clear()
        third.preflight([flat, path])
        assert sent == ["POST capabilities-self"]
        assert (third.read(flat).kv_version, third.read(path).kv_version) == (1, 2)
        monkeypatch.setattr(_vault, "this_run", lambda: "another")
        sent.clear()
        open_shared().preflight([path])
        assert sent == ["GET token", "POST capabilities-self"]
        assert _sessions.this_run() != "another"

    def test_shape_and_token_are_checked_all_the_same(self, bao: OpenBao, open_shared: Any, path: VaultPath, fresh: str, refused: Refused) -> None:
        open_shared().preflight([path])
        with refused("wrong_kv_shape", f"secret/data/{fresh}"):
            open_shared().preflight([VaultPath(f"secret/{fresh}", {"token": "token"})])
        with refused("permission_denied", path.path):
            open_shared(token=bao.token(["default"])).preflight([path])
        with refused("wrong_token", "does not accept"):
            open_shared(token="nobody-s-token").preflight([path])
        with refused("missing_mount", "nowhere/x"):
            open_shared().preflight([VaultPath("nowhere/x", {"token": "token"})])
