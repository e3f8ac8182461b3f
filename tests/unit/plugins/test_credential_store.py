# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shell way and the module way leave the same bytes, modes and owners behind, report the same failures, and no crash harms a store."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_ways import KEY, NAME, URL, WAYS, Way, delivery_of, killing_programs, plant_key, receipt_of, tree

from ansible_collections.muster.agents.plugins.module_utils import _credential_store as credential_store
from ansible_collections.muster.agents.plugins.module_utils._atomic_file import temporary_name
from ansible_collections.muster.agents.plugins.module_utils._credential_store import (
    MAX_FILE,
    MAX_SKEW,
    Delivery,
    HostFile,
    LookRequest,
    StagedFile,
    StoreFailure,
    deliver,
    pack_files,
    previous_name,
    unpack_files,
)
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Busy, HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look, require_free
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import deliver_script, look_script

CANARY = b"canary-7f3e-do-not-print"
BOTH = (WAYS[0], WAYS[2])
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

each_way = pytest.mark.parametrize("way", WAYS, ids=str)
each_distant_way = pytest.mark.parametrize("way", [way for way in WAYS if not way.here], ids=str)


def _both(tmp_path: Path) -> Iterator[tuple[Way, Path, Path]]:
    """Yield each way with a world of its own: its folder for rendered files and its store."""
    for way in WAYS:
        world = tmp_path / str(way)
        world.mkdir()
        yield way, world / "etc", world / "store"


def _alike(results: t.Sequence[t.Any]) -> None:
    for other in results[1:]:
        assert other == results[0]


def _intent(attempt: str = "attempt-1", controller: str = "here:1", why: str = "enrol") -> Intent:
    return Intent(attempt, controller, 0, why)


# -- the same inputs leave the same things behind -------------------------------------------------------------------------------------------


def test_first_delivery_leaves_the_same_tree_and_look(tmp_path: Path) -> None:
    trees, looks = [], []
    for way, etc, store in _both(tmp_path):
        root = plant_key(store)
        host = way.host(store)
        env = StagedFile(str(etc / "agent" / ".env"), b"TOKEN='x y'\n\x00\xff", mode="0640", group="daemon", directory_mode="0750")
        before = host.look((env.path,), will_deliver=True)
        host.deliver(delivery_of(root, before, files=[env]))
        trees.append(tree(etc.parent))
        after = way.host(store).look((env.path,))
        looks.append((
            after.receipt, after.receipt_digest, after.generations, after.secrets, after.agent_id, after.key, after.intent, after.held, after.leftovers,
            after.writable, {path.replace(str(etc), ""): found for path, found in after.files.items()}))
    _alike(trees)
    _alike(looks)
    only = trees[0]
    assert only["etc/agent"].mode == "0750"
    assert (only["etc/agent/.env"].mode, only["etc/agent/.env"].content) == ("0640", b"TOKEN='x y'\n\x00\xff")
    base = f"store/stacker/{NAME}"
    assert only[f"{base}/generations/1/token"].content == b"token-one"
    assert {entry.mode for name, entry in only.items() if name.startswith(base)} == {"0700", "0600"}
    assert not [name for name in only if name.endswith((".muster", "/stage", "/intent"))]


def test_folders_above_the_store_are_private_in_every_way(tmp_path: Path) -> None:
    trees = []
    for way, _etc, store in _both(tmp_path):
        way.host(store / "var" / "muster").look(intent=_intent(), url=URL)
        trees.append({name: entry.mode for name, entry in tree(store.parent).items() if entry.kind == "folder"})
    _alike(trees)
    assert set(trees[0].values()) == {"0700"}


def test_a_store_that_stood_open_is_closed_by_the_intent(tmp_path: Path) -> None:
    modes = []
    for way, _etc, store in _both(tmp_path):
        root = plant_key(store)
        root.chmod(0o755)
        way.host(store).look(intent=_intent(), url=URL)
        modes.append({name: entry.mode for name, entry in tree(store).items()})
    _alike(modes)
    assert modes[0][f"stacker/{NAME}"] == "0700"
    assert modes[0][f"stacker/{NAME}/lock"] == "0600"


def test_previous_files_and_generations_are_kept_alike(tmp_path: Path) -> None:
    trees = []
    for way, etc, store in _both(tmp_path):
        root = plant_key(store)
        etc.mkdir()
        odd = etc / "100% odd 'name'"
        odd.write_bytes(b"old")
        odd.chmod(0o604)
        os.chown(odd, 1, 2)
        link = etc / "link"
        link.symlink_to(odd)
        files = [StagedFile(str(odd), b"new"), StagedFile(str(link), b"new too"), StagedFile(str(etc / "fresh"), b"fresh")]
        host = way.host(store)
        for generation in (1, 2, 3):
            look = host.look(will_deliver=True)
            host.deliver(delivery_of(
                root, look, generation, token=b"token-%d" % generation, files=files if generation == 3 else (), save_previous=generation == 3))
        trees.append({name.replace(previous_name(str(etc)), "E"): entry for name, entry in tree(etc.parent).items()})
        looked = way.host(store).look()
        assert looked.previous[previous_name(str(odd))] == HostFile(b"old", "0604", "daemon", "bin")
        assert sorted(looked.generations) == [2, 3]
        assert looked.secrets["token"] == Secret("token-3")
    _alike(trees)
    base = f"store/stacker/{NAME}"
    assert sorted(name for name in trees[0] if name.startswith(f"{base}/previous/")) == [
        f"{base}/previous/E%2F100%25 odd 'name'", f"{base}/previous/E%2Flink"]
    assert trees[0]["etc/link"].kind == "file"
    assert trees[0][f"{base}/generations/3/token"].content == b"token-3"
    assert f"{base}/generations/1/token" not in trees[0]


def test_pruning_leaves_what_is_no_generation(tmp_path: Path) -> None:
    trees = []
    for way, _etc, store in _both(tmp_path):
        root = plant_key(store)
        (root / "generations" / "notes").mkdir(parents=True)
        host = way.host(store)
        for generation in (1, 2, 3):
            host.deliver(delivery_of(root, host.look(will_deliver=True), generation))
        trees.append(sorted(path.name for path in (root / "generations").iterdir()))
    _alike(trees)
    assert trees[0] == ["2", "3", "notes"]


def test_removal_takes_files_folders_and_the_store(tmp_path: Path) -> None:
    trees = []
    for way, etc, store in _both(tmp_path):
        root = plant_key(store)
        etc.mkdir()
        host = way.host(store)
        host.deliver(delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(etc / "a b"), b"x")]))
        (etc / "kept").write_bytes(b"kept")
        look = host.look(will_deliver=True)
        host.deliver(Delivery(str(root), look.receipt_digest, remove=(str(etc / "a b"), str(etc / "never was")), remove_all=True))
        trees.append(sorted(tree(etc.parent)))
    _alike(trees)
    assert trees[0] == ["etc", "etc/kept", "store", "store/stacker"]


def test_a_delivery_of_removals_alone_is_carried_out(tmp_path: Path) -> None:
    trees = []
    for way, etc, store in _both(tmp_path):
        root = plant_key(store)
        etc.mkdir()
        (etc / "gone").write_bytes(b"x")
        host = way.host(store)
        host.deliver(Delivery(str(root), host.look(will_deliver=True).receipt_digest, remove=(str(etc / "gone"),)))
        trees.append(tree(etc.parent))
    _alike(trees)
    assert "etc/gone" not in trees[0]


def test_the_shell_way_brings_the_key_and_never_replaces_one(tmp_path: Path) -> None:
    host = WAYS[0].host(tmp_path)
    root = Path(host.root)
    host.deliver(replace(delivery_of(root, None), key=KEY))
    host.deliver(replace(delivery_of(root, host.look(), 2), key="another"))
    assert (root / "key").read_text() == KEY
    assert (root / "key").stat().st_mode & 0o777 == 0o600


_NAMES = st.text(st.sampled_from("ab.-' \"%$`\\;&|*?[]{}~#()<>!=\té漢\n"), min_size=1, max_size=24).filter(lambda name: name not in (".", ".."))
_FILES = st.dictionaries(_NAMES, st.one_of(st.binary(max_size=300), st.just(b""), st.just(b"\x00" * 700)), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(folder=_NAMES, files=_FILES, again=_FILES, token=st.text(min_size=1, max_size=40).filter(lambda text: "\x00" not in text and text.isprintable()))
def test_any_name_and_any_content_arrive_alike(folder: str, files: dict[str, bytes], again: dict[str, bytes], token: str) -> None:
    trees = []
    for way in BOTH:
        with tempfile.TemporaryDirectory(dir=_MEMORY) as world:
            etc, store = Path(world, "etc"), Path(world, "a store's $HOME")
            root = plant_key(store)
            host = way.host(store)
            for generation, contents in enumerate((files, again), 1):
                staged = [StagedFile(str(etc / folder / name), content) for name, content in contents.items()]
                look = host.look(tuple(item.path for item in staged), will_deliver=True)
                host.deliver(delivery_of(root, look, generation, token=token.encode(), files=staged, save_previous=True))
                found = way.host(store).look(tuple(item.path for item in staged))
                assert {path: item.content for path, item in found.files.items()} == {item.path: item.content for item in staged}
                assert found.secrets["token"] == Secret(token)
            trees.append({name.replace(previous_name(str(etc)), "E"): entry for name, entry in tree(Path(world)).items()})
    _alike(trees)


# -- links and leftovers --------------------------------------------------------------------------------------------------------------------


@each_way
def test_a_link_at_the_target_is_replaced_and_not_followed(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    elsewhere = tmp_path / "passwd"
    elsewhere.write_bytes(b"precious")
    target = tmp_path / "agent.env"
    target.symlink_to(elsewhere)
    host = way.host(tmp_path / "store")
    host.deliver(delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(target), CANARY)]))
    assert elsewhere.read_bytes() == b"precious"
    assert not target.is_symlink()
    assert target.read_bytes() == CANARY


@each_way
def test_a_link_planted_at_the_staging_name_is_reported_and_not_followed(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    elsewhere = tmp_path / "open.txt"
    elsewhere.write_bytes(b"")
    target = tmp_path / "agent.env"
    Path(temporary_name(str(target))).symlink_to(elsewhere)
    host = way.host(tmp_path / "store")
    look = host.look((str(target),), will_deliver=True)
    assert look.leftovers == (temporary_name(str(target)),)
    host.deliver(delivery_of(root, look, files=[StagedFile(str(target), CANARY)]))
    assert elsewhere.read_bytes() == b""
    assert target.read_bytes() == CANARY
    assert not os.path.lexists(temporary_name(str(target)))


def test_a_link_planted_in_the_very_moment_of_staging_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_key(tmp_path / "store")
    elsewhere = tmp_path / "open.txt"
    elsewhere.write_bytes(b"")
    target = str(tmp_path / "agent.env")
    real_open = os.open

    def late(path: t.Any, flags: int, *rest: t.Any, **options: t.Any) -> int:
        if path == temporary_name(target):
            os.symlink(elsewhere, path)
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(StoreFailure) as failure:
        deliver(delivery_of(root, None, files=[StagedFile(target, CANARY)]), _agree)
    assert failure.value.reason == "not_writable"
    assert elsewhere.read_bytes() == b""


@each_way
def test_leftovers_are_reported_and_cleared(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    (root / "stage" / "g").mkdir(parents=True)
    (root / "stage" / "g" / "token").write_bytes(CANARY)
    target = tmp_path / "agent.env"
    Path(temporary_name(str(target))).write_bytes(CANARY)
    host = way.host(tmp_path / "store")
    look = host.look((str(target),), will_deliver=True)
    assert set(look.leftovers) == {temporary_name(str(target)), str(root / "stage")}
    host.deliver(delivery_of(root, look, remove=(temporary_name(str(target)),)))
    assert way.host(tmp_path / "store").look((str(target),)).leftovers == ()
    assert CANARY not in b"".join(entry.content for entry in tree(tmp_path).values())


@each_way
def test_a_folder_at_the_staging_name_is_an_obstacle_once(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    target = tmp_path / "agent.env"
    Path(temporary_name(str(target))).mkdir()
    host = way.host(tmp_path / "store")
    delivery = delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(target), b"x")])
    with pytest.raises(HostFailure) as failure:
        host.deliver(delivery)
    assert failure.value.reason == "not_writable"
    host.deliver(delivery)
    assert target.read_bytes() == b"x"


# -- looking --------------------------------------------------------------------------------------------------------------------------------


@each_way
def test_a_look_reads_files_alone_and_small_ones(way: Way, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "limit").write_bytes(b"x" * MAX_FILE)
    (tmp_path / "huge").write_bytes(b"x" * (MAX_FILE + 1))
    (tmp_path / "real").write_bytes(b"real")
    (tmp_path / "link").symlink_to("real")
    os.link(tmp_path / "real", tmp_path / "second name")
    names = ("folder", "fifo", "limit", "huge", "real", "link", "second name", "absent", "real")
    look = way.host(tmp_path / "store").look(tuple(str(tmp_path / name) for name in names))
    assert {os.path.basename(path): item.content[:4] for path, item in look.files.items()} == {
        "limit": b"xxxx", "real": b"real", "link": b"real", "second name": b"real"}
    assert look.receipt is None
    assert not (tmp_path / "store").exists()


@each_way
def test_a_look_tells_time_space_and_facts(way: Way, tmp_path: Path) -> None:
    look = way.host(tmp_path).look(facts=True)
    assert abs(look.time - time.time()) < 60
    assert look.free_kib > 0
    assert look.writable
    assert look.facts["os"] == "linux"
    assert look.facts["kernel_version"] == os.uname().release
    assert look.facts["hostname"] == os.uname().nodename
    assert {"arch", "cpu_cores", "memory_gb", "disk_free_gb", "uptime_seconds"} <= set(look.facts)


@each_way
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b'{"phase": "STORED"}', b"\xff\xfe", b'{"schema": "x"}'])
def test_a_damaged_receipt_counts_as_lost(way: Way, content: bytes, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    (root / "receipt.json").write_bytes(content)
    host = way.host(tmp_path)
    look = host.look(intent=_intent(), url=URL)
    assert look.receipt is None
    assert look.intent == "recorded"
    host.deliver(delivery_of(root, look))
    assert way.host(tmp_path).look().receipt is not None


@each_way
def test_a_newer_receipt_stops_us(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    document = json.loads(receipt_of(1, {}).dump())
    (root / "receipt.json").write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(HostFailure, match=r"use a newer muster\.agents") as failure:
        way.host(tmp_path).look()
    assert failure.value.reason == "newer_receipt"


# -- the intent -----------------------------------------------------------------------------------------------------------------------------


@each_way
def test_an_intent_is_recorded_once_and_keeps_its_attempt(way: Way, tmp_path: Path) -> None:
    first = way.host(tmp_path).look(intent=_intent("attempt-1", "here:1"), url=URL, lease=60)
    again = way.host(tmp_path).look(intent=_intent("attempt-2", "here:1"), url=URL, lease=90)
    assert (first.intent, again.intent) == ("recorded", "recorded")
    assert again.held is not None
    assert (again.held.attempt, again.held.controller, again.held.why) == ("attempt-1", "here:1", "enrol")
    assert 85 <= again.held.lease_until - again.time <= 95


@each_way
def test_another_controller_holds_it_until_the_lease_ends(way: Way, tmp_path: Path) -> None:
    way.host(tmp_path).look(intent=_intent("theirs", "there:7"), url=URL, lease=60)
    host = way.host(tmp_path)
    look = host.look(intent=_intent("ours", "here:1"), url=URL)
    assert look.intent == "held"
    assert look.held is not None
    assert (look.held.attempt, look.held.controller) == ("theirs", "there:7")
    with pytest.raises(Busy, match="being enrolled by there:7"):
        require_free(look, host.root)
    taken = way.host(tmp_path).look(intent=_intent("ours", "here:1"), url=URL, takeover="there:7")
    assert taken.intent == "recorded"
    assert taken.held is not None
    assert (taken.held.attempt, taken.held.controller) == ("theirs", "here:1")


@each_way
def test_an_expired_lease_is_taken_over_with_its_attempt(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    (root / "intent").write_bytes(Intent("theirs", "there:7", int(time.time()) - 1, "enrol").dump())
    look = way.host(tmp_path).look(intent=_intent("ours", "here:1"), url=URL)
    assert look.intent == "recorded"
    assert look.held is not None
    assert (look.held.attempt, look.held.controller) == ("theirs", "here:1")


@each_way
@pytest.mark.parametrize("content", [b"", b"\n", b"torn", b"torn\tthere:7", b"torn\tthere:7\tsoon\tenrol\n", b"\x00\xff\x00"])
def test_a_torn_intent_holds_nobody(way: Way, content: bytes, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    (root / "intent").write_bytes(content)
    look = way.host(tmp_path).look(intent=_intent("ours", "here:1"), url=URL)
    assert look.intent == "recorded"
    assert look.held is not None
    assert look.held.attempt == "ours"


@each_way
@pytest.mark.parametrize("off", [-MAX_SKEW - 60, MAX_SKEW + 60])
def test_a_clock_that_is_off_records_nothing(way: Way, off: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("ansible_collections.muster.agents.plugins.plugin_utils._host.time.time", lambda: now + off)
    if way.delivery == "module" or way.here:
        monkeypatch.setattr(credential_store, "time", _Clock(now))
    look = way.host(tmp_path).look(intent=_intent(), url=URL)
    assert look.intent == "clock_skew"
    assert look.held is None
    assert not list(tmp_path.rglob("intent"))


class _Clock:
    """The host's clock, beside a controller's that a test has moved."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def __init__(self, now: float) -> None:
        self._now = now

    def time(self) -> float:
        return self._now


@each_way
@pytest.mark.parametrize(("url", "phase", "recorded"), [
    (URL, "STORED", ""), (URL, "ISSUED", ""), (URL, "ACTIVE", ""), (URL, "COMMITTED", ""), (URL, "INTENT", "recorded"), (URL, "WITHDRAWN", "recorded"),
    (URL + "0", "COMMITTED", "recorded"), ("https://münchen.test", "COMMITTED", "recorded"),
])
def test_an_intent_is_needed_unless_a_receipt_of_this_server_stands(way: Way, url: str, phase: str, recorded: str, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    (root / "receipt.json").write_bytes(receipt_of(1, {}, phase=phase, vault_url=url).dump())
    assert way.host(tmp_path).look(intent=_intent(), url=url).intent == recorded
    assert way.host(tmp_path).look(intent=_intent(), url=url, force=True).intent == "recorded"


@each_way
def test_a_server_name_beyond_ascii_is_recognised_too(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    (root / "receipt.json").write_bytes(replace(receipt_of(1, {}), url="https://münchen.test").dump())
    assert way.host(tmp_path).look(intent=_intent(), url="https://münchen.test").intent == ""


@each_way
def test_a_delivery_ends_the_lease(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    host = way.host(tmp_path)
    host.deliver(delivery_of(root, host.look(intent=_intent(), url=URL)))
    assert not (root / "intent").exists()


@each_way
def test_a_delivery_in_the_middle_of_a_transaction_keeps_the_lease_and_the_last_one_ends_it(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    host = way.host(tmp_path)
    look = host.look(intent=_intent("attempt-1", "here:1"), url=URL)
    host.deliver(delivery_of(root, look, keep_intent=True))
    between = way.host(tmp_path).look(intent=_intent("attempt-2", "there:7"), url=URL, force=True)
    assert (between.intent, between.held.attempt if between.held else "") == ("held", "attempt-1")
    assert (between.generation(), between.leftovers) == (1, look.leftovers)
    host.deliver(delivery_of(root, between, 2))
    after = way.host(tmp_path).look(intent=_intent("attempt-2", "there:7"), url=URL, force=True)
    assert (after.intent, after.held.attempt if after.held else "") == ("recorded", "attempt-2")


# -- failures -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    yield from _mounted(tmp_path / "tiny", "size=64k")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no writes."""
    yield from _mounted(tmp_path / "ro", "ro,size=4m")


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _failure(host: Host, delivery: Delivery) -> HostFailure:
    with pytest.raises(HostFailure) as failure:
        host.deliver(delivery)
    return failure.value


@each_way
def test_a_read_only_store_is_reported_by_look_and_delivery(way: Way, read_only: Path) -> None:
    host = way.host(read_only)
    look = host.look(intent=_intent(), url=URL)
    assert look.intent == "not_writable"
    assert not look.writable
    with pytest.raises(HostFailure, match="cannot be written on the host") as failure:
        require_free(look, host.root)
    assert failure.value.reason == "not_writable"
    assert _failure(host, Delivery(host.root, "", secrets=(("token", CANARY),), generation=1)).reason == "not_writable"


@each_way
def test_a_read_only_place_of_a_file_leaves_everything_as_it_was(way: Way, read_only: Path, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    other = tmp_path / "other.env"
    other.write_bytes(b"old")
    host = way.host(tmp_path / "store")
    host.look(will_deliver=True)
    before = tree(tmp_path / "store")
    files = [StagedFile(str(other), CANARY), StagedFile(str(read_only / "agent.env"), CANARY)]
    failure = _failure(host, delivery_of(root, None, files=files))
    assert failure.reason == "not_writable"
    assert str(read_only / "agent.env") in failure.msg
    assert other.read_bytes() == b"old"
    assert not Path(temporary_name(str(other))).exists()
    after = tree(tmp_path / "store")
    after.pop(f"stacker/{NAME}/lock")
    assert after == before


@each_way
def test_a_full_disk_is_told_apart(way: Way, tiny: Path, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    host = way.host(tmp_path / "store")
    host.look(will_deliver=True)
    failure = _failure(host, delivery_of(root, None, files=[StagedFile(str(tiny / "agent.env"), b"x" * 200_000)]))
    assert failure.reason == "disk_full"
    assert str(tiny / "agent.env") in failure.msg
    assert list(tiny.iterdir()) == []
    small = plant_key(tiny / "store")
    store = way.host(tiny / "store")
    store.look(will_deliver=True)
    assert _failure(store, delivery_of(small, None, token=b"x" * 200_000)).reason == "disk_full"
    assert not (small / "stage").exists()
    assert not (small / "receipt.json").exists()


@each_way
def test_a_full_disk_is_seen_by_the_look(way: Way, tiny: Path) -> None:
    (tiny / "ballast").write_bytes(b"x" * 60 * 1024)
    for number in range(64):
        try:
            (tiny / f"crumb{number}").write_bytes(b"x" * 4096)
        except OSError:
            break
    look = way.host(tiny / "store").look(intent=_intent(), url=URL)
    assert look.intent == "disk_full"


@each_way
@pytest.mark.parametrize("earlier", [False, True], ids=["the first", "one that is replaced"])
def test_an_intent_that_does_not_fit_leaves_nothing_behind(earlier: bool, way: Way, tiny: Path) -> None:
    root = plant_key(tiny / "store")
    host = way.host(tiny / "store")
    host.look(will_deliver=True)
    host.deliver(delivery_of(root, None))
    if earlier:
        host.look(intent=_intent("attempt-0"), url=URL, force=True)
    before = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
    with contextlib.suppress(OSError), (tiny / "ballast").open("wb", buffering=0) as stream:
        while stream.write(b"x" * 4096):
            pass
    assert host.look(intent=_intent(), url=URL, force=True).intent == "disk_full"
    assert {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()} == before | {"lock": b""}
    (tiny / "ballast").unlink()
    look = host.look(intent=_intent("attempt-1"), url=URL, force=True)
    assert (look.intent, look.held.attempt if look.held else "") == ("recorded", "attempt-0" if earlier else "attempt-1")


@each_way
def test_an_unknown_owner_is_named(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    host = way.host(tmp_path / "store")
    host.look(will_deliver=True)
    for owner, group in (("nobody-of-that-name", "root"), ("root", "no such group")):
        failure = _failure(host, delivery_of(root, None, files=[StagedFile(str(tmp_path / "e"), CANARY, owner=owner, group=group)]))
        assert failure.reason == "unknown_owner"
        assert f"{owner}:{group}" in failure.msg
    assert not (tmp_path / "e").exists()
    assert not (root / "stage").exists()


@each_way
def test_numbers_serve_as_owner_and_group(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    host = way.host(tmp_path / "store")
    host.deliver(delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(tmp_path / "e"), b"x", owner="12345", group="23456")]))
    state = (tmp_path / "e").stat()
    assert (state.st_uid, state.st_gid) == (12345, 23456)
    found = way.host(tmp_path / "store").look((str(tmp_path / "e"),)).files[str(tmp_path / "e")]
    assert (found.owner, found.group) == ("12345", "23456")


@each_way
def test_what_validation_refuses_is_not_put_in_place(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    target = tmp_path / "it's an env"
    target.write_bytes(b"old")
    host = way.host(tmp_path / "store")
    host.look(will_deliver=True)
    picky = StagedFile(str(target), b"bad\n", validate=("grep", "-q", "good", "%s"))
    failure = _failure(host, delivery_of(root, None, files=[picky]))
    assert failure.reason == "invalid"
    assert str(target) in failure.msg
    assert "exit code 1" in failure.msg
    assert target.read_bytes() == b"old"
    assert not Path(temporary_name(str(target))).exists()
    host.deliver(delivery_of(root, None, files=[replace(picky, content=b"good\n")]))
    assert target.read_bytes() == b"good\n"


@each_way
def test_a_validation_command_that_is_missing_refuses(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    host = way.host(tmp_path / "store")
    host.look(will_deliver=True)
    files = [StagedFile(str(tmp_path / "e"), b"x", validate=("/bin/false", "%s"))]
    assert _failure(host, delivery_of(root, None, files=files)).reason == "invalid"


@each_way
def test_a_store_changed_since_the_look_is_left_alone(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path)
    host = way.host(tmp_path)
    early = host.look(will_deliver=True)
    host.deliver(delivery_of(root, early, 1))
    before = tree(tmp_path)
    failure = _failure(host, delivery_of(root, early, 2))
    assert failure.reason == "changed"
    assert "run again" in failure.msg
    assert tree(tmp_path) == before


@each_way
def test_a_store_locked_by_another_run_is_reported(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_key(tmp_path)
    monkeypatch.setattr(credential_store, "_LOCK_WAIT", 0.1)
    host = way.host(tmp_path, rewrite=lambda script: script.replace("flock -w 10 9", "flock -w 0.1 9"))
    look = host.look(will_deliver=True)
    with (root / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _failure(host, delivery_of(root, look)).reason == "locked"
    host.deliver(delivery_of(root, look))


@each_distant_way
@pytest.mark.parametrize("length", [0, 100, 512, 700, 1536, 2048])
def test_a_delivery_cut_short_changes_nothing(way: Way, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_key(tmp_path / "store")
    target = tmp_path / "agent.env"
    target.write_bytes(b"old")
    host = way.host(tmp_path / "store")
    look = host.look(will_deliver=True)
    t.cast(t.Any, host)._action.truncate = length
    whole = Delivery.archive
    if way.delivery == "module":
        monkeypatch.setattr(Delivery, "archive", lambda self: whole(self)[:length])
    failure = _failure(host, delivery_of(root, look, files=[StagedFile(str(target), b"new")]))
    assert failure.reason == "corrupt"
    assert target.read_bytes() == b"old"
    assert not (root / "receipt.json").exists()
    assert not (root / "stage").exists()


@each_distant_way
def test_a_delivery_changed_on_the_way_changes_nothing(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_key(tmp_path / "store")
    whole = Delivery.archive
    monkeypatch.setattr(Delivery, "archive", lambda self: whole(self).replace(b"token-one", b"token-two"))
    host = way.host(tmp_path / "store")
    assert _failure(host, delivery_of(root, host.look(will_deliver=True))).reason == "corrupt"
    assert not (root / "generations").exists()


@each_way
def test_a_folder_in_the_place_of_a_file_is_no_target(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    (tmp_path / "agent.env").mkdir()
    host = way.host(tmp_path / "store")
    failure = _failure(host, delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(tmp_path / "agent.env"), b"x")]))
    assert failure.reason == "not_writable"
    assert "is a directory" in failure.msg


@each_way
def test_a_file_in_the_place_of_a_folder_is_named(way: Way, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    (tmp_path / "etc").write_bytes(b"")
    host = way.host(tmp_path / "store")
    failure = _failure(host, delivery_of(root, host.look(will_deliver=True), files=[StagedFile(str(tmp_path / "etc" / "agent.env"), b"x")]))
    assert failure.reason == "not_writable"
    assert str(tmp_path / "etc") in failure.msg


# -- crashes --------------------------------------------------------------------------------------------------------------------------------


class _Site:
    """A store with one committed generation and three rendered files, and the delivery of the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.root = plant_key(folder / "store")
        self.paths = tuple(str(folder / name) for name in ("agent.env", "config.json", "new/file"))
        deliver(delivery_of(self.root, None, files=[StagedFile(path, self._old(path)) for path in self.paths[:2]]), _agree)
        self.digest = hashlib.sha256((self.root / "receipt.json").read_bytes()).hexdigest()

    def delivery(self, expect: str | None = None, generation: int = 2) -> Delivery:
        """Return the delivery that is to be interrupted, or repeated."""
        base = delivery_of(
            self.root, None, generation, token=CANARY, files=[StagedFile(path, self._new(path)) for path in self.paths], save_previous=True)
        return replace(base, expect=self.digest if expect is None else expect)

    def assert_sound(self, where: str) -> Look:
        """Every file is the old one or the new one, the receipt can be read and claims nothing that is not there."""
        for path in self.paths:
            content = Path(path).read_bytes() if os.path.exists(path) else None
            assert content in (self._new(path), self._old(path) if path != self.paths[2] else None), f"{where}: {path} is neither old nor new"
        receipt = Receipt.load((self.root / "receipt.json").read_bytes())
        assert receipt.generation in (1, 2), where
        look = BOTH[1].host(self.folder / "store").look(self.paths, will_deliver=True)
        assert look.receipt is not None, where
        assert set(look.generations[receipt.generation]) == {"token"}, where
        if receipt.generation == 2:
            assert all(Path(path).read_bytes() == self._new(path) for path in self.paths), where
        else:
            assert look.generations[1]["token"] == Secret("token-one"), where
        return look

    def assert_repeatable(self, way: Way, look: Look, where: str) -> None:
        """The same delivery again, as the next run makes it, ends well and leaves nothing lying about."""
        host = way.host(self.folder / "store")
        host.look(self.paths, will_deliver=True)
        number = look.generation() + 1
        host.deliver(replace(self.delivery(look.receipt_digest, number), remove=tuple(path for path in look.leftovers if not path.endswith("/stage"))))
        after = host.look(self.paths)
        assert (after.leftovers, after.generation(), after.secrets["token"]) == ((), number, Secret(CANARY.decode())), where
        assert not list(self.folder.rglob("*.muster")), where

    @staticmethod
    def _old(path: str) -> bytes:
        return f"old {path}\n".encode() * 50

    @staticmethod
    def _new(path: str) -> bytes:
        return f"new {path}\n".encode() * 5000


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: these tests make hundreds of stores, each synced many times."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        yield Path(folder)


def _agree(_command: t.Sequence[str]) -> tuple[int, str]:
    return 0, ""


_KILLING = "chmod chown cp find flock install mkdir mv rm sha256sum sync tar xargs"


@pytest.fixture
def killers(tmp_path: Path) -> Path:
    """Programs that take the whole script with them."""
    return killing_programs(tmp_path / "killers", _KILLING)


def test_a_script_killed_at_any_step_leaves_a_sound_store(killers: Path, quick: Path) -> None:
    deaths = 0
    for step in range(1, 80):
        site = _Site(quick / f"site{step}")
        delivery = site.delivery()
        environment = {"PATH": f"{killers}:{os.environ['PATH']}", "COUNT": str(site.folder / "count"), "KILL_AT": str(step)}
        done = subprocess.run(
            ["dash", "-c", deliver_script(delivery)], check=False, input=delivery.archive(), capture_output=True, env=environment, start_new_session=True)
        look = site.assert_sound(f"step {step}")
        if done.returncode == 0:
            assert look.receipt is not None
            assert look.receipt.generation == 2
            break
        assert done.returncode == -signal.SIGKILL
        deaths += 1
        site.assert_repeatable(BOTH[step % 5 != 0], look, f"step {step}")
        shutil.rmtree(site.folder)
    assert 15 < deaths < 79


_STEPS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "write", "fchown", "fchmod", "chmod", "open")


def test_what_a_visit_leaves_that_is_killed_at_any_step_is_reported_and_cleared(killers: Path, quick: Path) -> None:
    known = {"receipt.json", "key", "lock", "generations", "previous", "intent"}
    seen: set[str] = set()
    for step in range(1, 40):
        site = _Site(quick / f"site{step}")
        host = WAYS[0].host(site.folder / "store")
        environment = {"PATH": f"{killers}:{os.environ['PATH']}", "COUNT": str(site.folder / "count"), "KILL_AT": str(step)}
        host.look(intent=Intent("a", "b:1", 0, "rotate"), force=True)
        request = LookRequest(str(site.root), intent=Intent("a", "b:1", 0, "rotate"), force=True)
        for script, data in ((look_script(request, facts=False), b""), (deliver_script(site.delivery()), site.delivery().archive())):
            done = subprocess.run(["dash", "-c", script], input=data, check=False, capture_output=True, env=environment, start_new_session=True)
            if done.returncode:
                break
        look, own = host.look(site.paths), set(os.listdir(site.root)) - known
        assert own == {os.path.basename(path) for path in look.leftovers if os.path.dirname(path) == str(site.root)}, f"step {step}"
        seen |= own
        remove = tuple(path for path in look.leftovers if not path.endswith("/stage"))
        host.deliver(Delivery(str(site.root), look.receipt_digest, remove=remove))
        assert set(os.listdir(site.root)) <= known, f"step {step}"
        assert host.look(site.paths).leftovers == (), f"step {step}"
    assert seen == {".intent.muster", "stage", "previous.new"}


def test_the_module_way_killed_at_any_step_leaves_a_sound_store(quick: Path) -> None:
    deaths = 0
    for step in range(1, 200):
        site = _Site(quick / f"site{step}")
        status = _in_child(partial(_deliver_until, site.delivery(), step))
        look = site.assert_sound(f"step {step}")
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
        deaths += 1
        site.assert_repeatable(BOTH[step % 5 != 0], look, f"step {step}")
        shutil.rmtree(site.folder)
    assert 30 < deaths < 199


def _in_child(work: t.Callable[[], None]) -> int:
    """Run *work* in a process of its own and return its wait status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def _deliver_until(delivery: Delivery, step: int) -> None:
    calls = iter(range(1, 100_000))

    def deadly(real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*args: t.Any, **options: t.Any) -> t.Any:
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in _STEPS:
        setattr(os, name, deadly(getattr(os, name)))
    deliver(delivery, _agree)


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_a_delivery_killed_at_a_random_moment_leaves_a_sound_store(way: Way, quick: Path) -> None:
    moments = random.Random(7)
    for number in range(10):
        site = _Site(quick / f"site{number}")
        delivery = site.delivery()
        if way.delivery == "module":
            pid = os.fork()
            if pid == 0:
                deliver(delivery, _agree)
                os._exit(0)
            time.sleep(moments.uniform(0, 0.012))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        else:
            (site.folder / "archive").write_bytes(delivery.archive())
            with (site.folder / "archive").open("rb") as archive:
                script = subprocess.Popen(["dash", "-c", deliver_script(delivery)], stdin=archive, stdout=subprocess.DEVNULL, start_new_session=True)
            time.sleep(moments.uniform(0, 0.06))
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()
        site.assert_repeatable(way, site.assert_sound(f"moment {number}"), f"moment {number}")


def test_a_withdrawal_killed_at_any_step_can_be_repeated(killers: Path, quick: Path) -> None:
    deaths = 0
    for step in range(1, 30):
        site = _Site(quick / f"site{step}")
        delivery = Delivery(str(site.root), site.digest, remove=site.paths, remove_all=True)
        environment = {"PATH": f"{killers}:{os.environ['PATH']}", "COUNT": str(site.folder / "count"), "KILL_AT": str(step)}
        done = subprocess.run(["dash", "-c", deliver_script(delivery)], check=False, capture_output=True, env=environment, start_new_session=True)
        if done.returncode == 0:
            assert not site.root.exists()
            break
        deaths += 1
        look = BOTH[0].host(site.folder / "store").look()
        assert look.receipt is not None or not look.generations, "credentials are left that no receipt tells of"
        BOTH[0].host(site.folder / "store").deliver(replace(delivery, expect=look.receipt_digest))
        assert not site.root.exists()
        assert not any(os.path.exists(path) for path in site.paths)
    assert 3 < deaths < 29


def test_everything_is_on_disk_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_key(tmp_path / "store")
    target = str(tmp_path / "agent.env")
    steps: list[str] = []
    real_fsync, real_replace, real_rename = os.fsync, os.replace, os.rename

    def fsync(descriptor: int) -> None:
        steps.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}').replace(str(tmp_path), '')}")
        real_fsync(descriptor)

    def moving(real: t.Callable[..., None]) -> t.Callable[[str, str], None]:
        def move(source: str, target: str) -> None:
            steps.append(f"move {source} {target}".replace(str(tmp_path), ""))
            real(source, target)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moving(real_replace))
    monkeypatch.setattr(os, "rename", moving(real_rename))
    deliver(delivery_of(root, None, files=[StagedFile(target, b"x")]), _agree)
    base = f"/store/stacker/{NAME}"
    assert steps == [
        f"sync {base}/stage/agent_id", f"sync {base}/stage/token", f"sync {base}/.receipt.json.muster", f"sync {base}/stage", "sync /.agent.env.muster",
        f"move {base}/stage {base}/generations/1", "move /.agent.env.muster /agent.env", f"move {base}/.receipt.json.muster {base}/receipt.json",
        f"sync {base}/generations", "sync ", f"sync {base}",
    ]


# -- the archive ----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    files=st.lists(st.tuples(_NAMES, st.binary(max_size=100), st.lists(st.text(max_size=8), max_size=3)), max_size=4),
    secrets=st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.binary(min_size=1, max_size=50), max_size=4))
def test_a_delivery_survives_plan_and_archive(files: list[tuple[str, bytes, list[str]]], secrets: dict[str, bytes]) -> None:
    staged = tuple(StagedFile(f"/{name}", content, validate=tuple(words)) for name, content, words in files)
    delivery = Delivery("/r", "e", receipt=b"{}", key=KEY, generation=3, secrets=tuple(secrets.items()), files=staged, keep=(3, 2), remove=("/x",))
    plan = json.loads(json.dumps(delivery.plan()))
    assert Delivery.assemble(plan, delivery.archive()) == delivery
    text = json.dumps(plan)
    assert KEY not in text


def test_a_manifest_that_differs_is_refused() -> None:
    delivery = Delivery("/r", "", generation=1, secrets=(("token", b"abc"),))
    with pytest.raises(StoreFailure) as failure:
        Delivery.assemble(delivery.plan(), delivery.archive().replace(b"abc", b"abd"))
    assert failure.value.reason == "corrupt"


@given(st.dictionaries(st.from_regex(r"/[a-zé' -]{1,20}", fullmatch=True), st.binary(max_size=100), max_size=4))
def test_files_survive_packing(contents: dict[str, bytes]) -> None:
    files = {path: HostFile(content, "0640", "root", "daemon") for path, content in contents.items()}
    assert unpack_files(pack_files(files)) == files
