# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries on KV v1 and v2, read back by an independent reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath, vault_paths
from world import OpenBao

from .conftest import CANARY, Open, Refused, lose_answers

PREFIXES = pytest.mark.parametrize("prefix", ["status_panel", "secret/data", "kv/team/data"])


def as_readers_do(bao: OpenBao, path: str) -> Mapping[str, Any]:
    """Return ``.data.data`` of a plain GET."""
    found = bao.read(path)
    return {} if found is None else found["data"]


def before_each_write(monkeypatch: pytest.MonkeyPatch, vault: Vault, act: Callable[[int], None]) -> None:
    """Call *act* with the number of the write (from 1) between our look and our write."""
    write, count = vault._write, [0]

    def interrupted(*args: Any) -> bool:
        count[0] += 1
        act(count[0])
        return write(*args)

    monkeypatch.setattr(vault, "_write", interrupted)


@PREFIXES
def test_readers_find_what_was_stored(bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}/token", {"token": "token", "backup": "other"})
    vault.preflight([path])
    change = vault.ensure(path, secrets)
    assert (change.changed, change.fields_added, change.version) == (True, ("backup", "token"), None if prefix == "status_panel" else 1)
    assert as_readers_do(bao, path.path) == {"token": CANARY, "backup": f"{CANARY}-2"}
    assert vault.read(path).fields["token"] == secrets["token"]


@PREFIXES
def test_nothing_is_written_twice(bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str) -> None:
    path = VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    open_vault().ensure(path, secrets)
    bao.reset_mutations()
    again = open_vault().ensure(path, secrets)
    assert (again.changed, again.fields_unchanged, again.version_before) == (False, ("token",), again.version)
    assert bao.mutating_requests() == []


@PREFIXES
def test_a_plan_reads_only_and_tells_what_ensure_does(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str,
) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    planned, removal = vault.plan(path, secrets), vault.plan_removal(path)
    assert (bao.mutating_requests(), planned.changed, removal.changed) == ([], True, False)
    assert vault.ensure(path, secrets) == planned
    bao.reset_mutations()
    planned = vault.plan_removal(path)
    assert (bao.mutating_requests(), planned.changed) == ([], True)
    assert vault.remove(path) == planned


@PREFIXES
def test_a_drifted_field_is_put_right_and_foreign_fields_are_kept(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str,
) -> None:
    bao.write(f"{prefix}/{fresh}", {"data": {"token": "drifted", "deployment_hash": "h", "port": 5000}})
    change = open_vault().ensure(VaultPath(f"{prefix}/{fresh}", {"token": "token"}), secrets)
    assert (change.fields_changed, change.fields_added, change.fields_kept) == (("token",), (), ("deployment_hash", "port"))
    assert as_readers_do(bao, f"{prefix}/{fresh}") == {"token": CANARY, "deployment_hash": "h", "port": 5000}


def test_a_flat_v1_entry_is_nested_with_its_fields(bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str) -> None:
    bao.write(f"status_panel/{fresh}", {"token": CANARY, "note": "by hand"})
    vault, path = open_vault(), VaultPath(f"status_panel/{fresh}", {"token": "token"})
    entry = vault.read(path)
    assert (entry.exists, entry.flat, dict(entry.fields)) == (True, True, {})
    change = vault.ensure(path, secrets)
    assert (change.changed, change.migrated, change.fields_added) == (True, True, ("note", "token"))
    assert bao.read(path.path) == {"data": {"token": CANARY, "note": "by hand"}}
    assert vault.ensure(path, secrets).changed is False


def test_what_stands_beside_the_inner_data_on_v1_stays(bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str) -> None:
    bao.write(f"status_panel/{fresh}", {"data": {"token": "old"}, "ttl": "1h"})
    vault, path = open_vault(), VaultPath(f"status_panel/{fresh}", {"token": "token"})
    vault.ensure(path, secrets)
    assert bao.read(path.path) == {"data": {"token": CANARY}, "ttl": "1h"}
    vault.remove(path)
    assert bao.read(path.path) == {"data": {}, "ttl": "1h"}


@pytest.mark.parametrize("prefix", ["secret/data", "kv/team/data"])
def test_fields_written_by_others_meanwhile_survive(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})

    def other_writer(number: int) -> None:
        if number < 3:
            bao.write(path.path, {"data": {"theirs": number}})

    before_each_write(monkeypatch, vault, other_writer)
    change = vault.ensure(path, secrets)
    assert (change.version, change.fields_kept) == (3, ("theirs",))
    assert as_readers_do(bao, path.path) == {"token": CANARY, "theirs": 2}


def test_removal_too_keeps_what_others_write_meanwhile(
    bao: OpenBao, open_vault: Open, fresh: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, path = open_vault(), VaultPath(f"secret/data/{fresh}", {"token": "token"})
    bao.write(path.path, {"data": {"token": CANARY, "theirs": 0}})
    before_each_write(monkeypatch, vault, lambda number: number == 1 and bao.write(path.path, {"data": {"token": CANARY, "theirs": 1}}) and None)
    assert vault.remove(path).changed is True
    assert as_readers_do(bao, path.path) == {"theirs": 1}


def test_a_writer_that_never_rests_is_named_as_a_conflict(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, path = open_vault(), VaultPath(f"secret/data/{fresh}", {"token": "token"})
    before_each_write(monkeypatch, vault, lambda number: bao.write(path.path, {"data": {"theirs": number}}) and None)
    with refused("cas_conflict", path.path):
        vault.ensure(path, secrets)


@PREFIXES
def test_a_value_overwritten_right_after_our_write_is_a_conflict(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, prefix: str,
) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    write = vault._write

    def overwritten(*args: Any) -> bool:
        done = write(*args)
        bao.write(path.path, {"data": {"token": "theirs"}})
        return done

    monkeypatch.setattr(vault, "_write", overwritten)
    with refused("cas_conflict", path.path):
        vault.ensure(path, secrets)
    assert as_readers_do(bao, path.path) == {"token": "theirs"}


@PREFIXES
@pytest.mark.parametrize("delivered", [True, False])
def test_a_lost_answer_to_a_write_is_looked_after(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str, delivered: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    lose_answers(monkeypatch, vault, methods=("POST",), times=1, delivered=delivered)
    change = vault.ensure(path, secrets)
    assert (change.changed, change.fields_added, change.version) == (True, ("token",), None if prefix == "status_panel" else 1)
    assert as_readers_do(bao, path.path) == {"token": CANARY}
    assert len(bao.mutating_requests()) == 1


@PREFIXES
@pytest.mark.parametrize("delivered", [True, False])
def test_a_lost_answer_to_a_deletion_is_looked_after(
    bao: OpenBao, open_vault: Open, fresh: str, prefix: str, delivered: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    bao.write(path.path, {"data": {"token": CANARY}})
    lose_answers(monkeypatch, vault, methods=("DELETE",), times=1, delivered=delivered)
    assert vault.remove(path).changed is True
    assert bao.read(path.path) is None


@PREFIXES
def test_removal_takes_the_whole_entry_when_only_our_fields_were_in_it(bao: OpenBao, open_vault: Open, fresh: str, prefix: str) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token", "gone": "other"})
    for value in ("first", "second"):
        bao.write(path.path, {"data": {"token": value}})
    vault.preflight([path], remove=True)
    change = vault.remove(path)
    assert (change.changed, change.fields_removed, change.remains) == (True, ("token",), ())
    assert bao.read(path.path) is None
    if prefix != "status_panel":
        assert bao.read(path.path.replace("/data/", "/metadata/", 1)) is None
    bao.reset_mutations()
    assert vault.remove(path).changed is False
    assert bao.mutating_requests() == []


@PREFIXES
def test_removal_keeps_foreign_fields_and_tells_what_remains(bao: OpenBao, open_vault: Open, fresh: str, prefix: str) -> None:
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token"})
    bao.write(path.path, {"data": {"token": CANARY, "deployment_hash": "h"}})
    change = vault.remove(path)
    assert (change.fields_removed, change.fields_kept) == (("token",), ("deployment_hash",))
    assert as_readers_do(bao, path.path) == {"deployment_hash": "h"}
    assert [path.path in sentence for sentence in change.remains] == ([] if prefix == "status_panel" else [True])
    assert vault.remove(path).changed is False


def test_removal_from_a_flat_v1_entry_leaves_the_rest_as_it_was(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    vault, path = open_vault(), VaultPath(f"status_panel/{fresh}", {"token": "token"})
    bao.write(path.path, {"token": CANARY, "note": "by hand"})
    assert vault.remove(path).changed is True
    assert bao.read(path.path) == {"note": "by hand"}


def test_a_deleted_v2_entry_can_be_written_again_and_its_old_versions_removed(
    bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str,
) -> None:
    vault, path = open_vault(), VaultPath(f"secret/data/{fresh}", {"token": "token"})
    bao.write(path.path, {"data": {"token": "old"}})
    bao.delete(path.path)
    entry = vault.read(path)
    assert (entry.exists, entry.version) == (False, 1)
    assert vault.ensure(path, secrets).version == 2
    bao.delete(path.path)
    assert vault.remove(path).changed is True
    assert bao.read(f"secret/metadata/{fresh}") is None


@PREFIXES
def test_a_diff_shows_names_and_versions_only(bao: OpenBao, open_vault: Open, secrets: dict[str, Secret], fresh: str, prefix: str) -> None:
    bao.write(f"{prefix}/{fresh}", {"data": {"token": "drifted", "deployment_hash": "value-of-theirs"}})
    vault, path = open_vault(), VaultPath(f"{prefix}/{fresh}", {"token": "token", "extra": "other"})
    change = vault.ensure(path, secrets)
    diff = change.diff()
    old, new = ("<present>", "<written>") if prefix == "status_panel" else ("<version 1>", "<version 2>")
    assert diff["before"] == f"deployment_hash: {old}\ntoken: {old}\n"
    assert diff["after"] == f"deployment_hash: {old}\nextra: {new}\ntoken: {new}\n"
    for value in (CANARY, "drifted", "value-of-theirs"):
        assert value not in repr((diff, change, change.as_result(), vault.read(path)))
    same = vault.ensure(path, secrets).diff()
    assert same["before"] == same["after"]


def test_an_unknown_secret_is_refused_with_the_known_names(open_vault: Open, secrets: dict[str, Secret], bao: OpenBao, fresh: str) -> None:
    with pytest.raises(InvalidInput, match=r"unknown secret 'nope' \(known: other, token\)"):
        open_vault().ensure(VaultPath(f"secret/data/{fresh}", {"token": "nope"}), secrets)
    assert bao.mutating_requests() == []


def test_paths_are_read_from_the_option() -> None:
    found = vault_paths([{"path": "/secret/data/a/", "fields": {"token": "token"}}, {"path": "secret/data/b", "fields": {"x": "y"}}])
    assert found == (VaultPath("secret/data/a", {"token": "token"}), VaultPath("secret/data/b", {"x": "y"}))


@pytest.mark.parametrize(("item", "words"), [
    ({"path": "", "fields": {"a": "b"}}, "is not a path"),
    ({"path": "secret//a", "fields": {"a": "b"}}, "empty parts"),
    ({"path": "secret/../sys", "fields": {"a": "b"}}, "is not a path"),
    ({"path": "v1/secret/data/a", "fields": {"a": "b"}}, "begins with v1/"),
    ({"path": "secret/data/a b", "fields": {"a": "b"}}, "not safe"),
    ({"path": "secret/data/*", "fields": {"a": "b"}}, "not safe"),
    ({"path": "secret/data/a?version=1", "fields": {"a": "b"}}, "not safe"),
    ({"path": "secret/data/{{identity}}", "fields": {"a": "b"}}, "not safe"),
    ({"path": "secret/data/a", "fields": {}}, "has no fields"),
    ({"path": "secret/data/a", "fields": {"a": ""}}, "must name a secret"),
    ({"path": "secret/data/a", "fields": {"a": {"b": "c"}}}, "must name a secret"),
])
def test_an_impossible_path_is_refused(item: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        vault_paths([item])
    assert words in caught.value.msg


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="listed twice"):
        vault_paths([{"path": "secret/data/a", "fields": {"a": "b"}}, {"path": "secret/data/a/", "fields": {"c": "d"}}])
