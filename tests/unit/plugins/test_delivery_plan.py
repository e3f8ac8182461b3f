# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What differs is delivered, what does not is left alone, and a diff shows no secret."""

from __future__ import annotations

import time
import typing as t
from dataclasses import replace

import pytest
from store_ways import KEY, NAME, URL

from ansible_collections.muster.agents.plugins.module_utils._credential_store import HostFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import DeliveredFile, Intent, Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, fingerprint
from ansible_collections.muster.agents.plugins.plugin_utils._delivery_plan import (
    Plan,
    Wanted,
    delivered,
    file_diffs,
    generation_for,
    host_time,
    make_plan,
    receipt_diff,
    staged,
)
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile
from ansible_collections.muster.agents.plugins.plugin_utils._vault import VaultChange
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Proof, ServerState

ROOT = f"/var/lib/muster/stacker/{NAME}"
TOKEN = Secret("canary-7f3e")
FILE = RenderedFile("/opt/agent/.env", b"TOKEN=canary-7f3e\n", "root", "agent", "0640", "0755", "", True, ("TOKEN",), "env")


def _look(**changes: t.Any) -> Look:
    values: dict[str, t.Any] = {
        "receipt": None, "receipt_digest": "", "generations": {}, "files": {}, "previous": {}, "facts": {}, "tools": frozenset(),
        "time": int(time.time()), "key": KEY, "taken_at": time.time()}
    return Look(**{**values, **changes})


def _wanted(**changes: t.Any) -> Wanted:
    values: dict[str, t.Any] = {
        "control_plane": "stacker", "name": NAME, "url": URL, "attempt": "attempt-1",
        "credential": Credential("id", {"token": TOKEN}), "stored": {"token": TOKEN}, "why": "registered: not_enrolled",
        "proof": Proof(accepted=True, definite=True, how="notifications"), "server": ServerState("2.0.0", ("1.0",)),
        "metadata": "abc", "rendered": (FILE,)}
    return Wanted(**{**values, **changes})


def _after(plan: Plan, wanted: Wanted) -> Look:
    """Return the look that follows a delivery."""
    files = {item.path: HostFile(item.content, item.mode, item.owner, item.group) for item in wanted.rendered}
    return _look(
        receipt=plan.receipt, receipt_digest="d", generations={plan.receipt.generation: dict(wanted.stored)}, secrets=dict(wanted.stored), agent_id="id",
        files=files)


def test_a_bare_host_gets_everything() -> None:
    plan = make_plan(_look(key=""), _wanted(), ROOT)
    delivery = plan.delivery
    assert delivery is not None
    assert (delivery.root, delivery.expect, delivery.generation, delivery.keep, delivery.save_previous) == (ROOT, "", 1, (1, 0), False)
    assert dict(delivery.secrets) == {"agent_id": b"id", "token": b"canary-7f3e"}
    assert [item.path for item in delivery.files] == [FILE.path]
    assert len(delivery.key) == 64
    assert plan.receipt.fingerprints == {"token": fingerprint(delivery.key, TOKEN)}
    assert plan.receipt.files == (DeliveredFile(FILE.path, fingerprint(delivery.key, FILE.content), "0640", "root", "agent"),)
    assert (plan.receipt.phase, plan.receipt.server) == ("STORED", {"version": "2.0.0", "api_versions": ["1.0"]})
    assert b"canary" not in delivery.receipt


@pytest.mark.parametrize("phase", ["STORED", "ACTIVE", "COMMITTED"])
def test_a_host_that_has_everything_gets_nothing(phase: str) -> None:
    look = _after(make_plan(_look(), _wanted(), ROOT), _wanted())
    assert look.receipt is not None
    look = replace(look, receipt=replace(look.receipt, phase=phase))
    plan = make_plan(look, _wanted(attempt="attempt-2", why="unchanged: accepted", metadata=""), ROOT)
    assert (plan.delivery, plan.changed, plan.receipt) == (None, (), look.receipt)


@pytest.mark.parametrize("change", [
    {"rendered": (replace(FILE, content=b"TOKEN=canary-7f3e\nX=1\n"),)}, {"rendered": (replace(FILE, mode="0600"),)},
    {"rendered": (replace(FILE, owner="agent"),)},
    {"rendered": (replace(FILE, group="root"),)}, {"rendered": (FILE, replace(FILE, path="/opt/agent/other"))},
])
def test_a_file_that_differs_is_delivered_and_asks_for_a_restart(change: dict[str, t.Any]) -> None:
    look = _after(make_plan(_look(), _wanted(), ROOT), _wanted())
    assert look.receipt is not None
    look = replace(look, receipt=replace(look.receipt, phase="COMMITTED", pending_restart=0))
    plan = make_plan(look, _wanted(**change), ROOT)
    assert plan.delivery is not None
    assert len(plan.delivery.files) == 1
    assert (plan.delivery.generation, plan.delivery.secrets, plan.delivery.keep, plan.delivery.save_previous) == (0, (), (), True)
    assert plan.receipt.pending_restart == pytest.approx(time.time(), abs=10)
    assert plan.receipt.phase == "STORED"


def test_a_file_that_asks_for_no_restart_leaves_the_process_alone() -> None:
    quiet = replace(FILE, restart=False)
    plan = make_plan(_look(), _wanted(rendered=(quiet,)), ROOT)
    assert plan.receipt.pending_restart == 0


@pytest.mark.parametrize("change", [
    {"metadata": "new"}, {"server": ServerState("2.1.0", ("1.0",))}, {"pin": "ab"}, {"policy": "p"}, {"vault_url": "https://vault.test"},
    {"changes": (VaultChange("p", "m", 2, False, 1, 1, ("token",)),)},
])
def test_news_of_the_record_alone_are_written_without_a_new_generation(change: dict[str, t.Any]) -> None:
    look = _after(make_plan(_look(), _wanted(), ROOT), _wanted())
    plan = make_plan(look, _wanted(**change), ROOT)
    assert plan.delivery is not None
    assert (plan.delivery.generation, plan.delivery.files, plan.delivery.secrets) == (0, (), ())


@pytest.mark.parametrize("look", [{"leftovers": ("/opt/agent/..env.muster", f"{ROOT}/stage")}, {"held": Intent("a", "b:1", 0, "enrol")}])
def test_what_a_killed_run_left_is_cleared(look: dict[str, t.Any]) -> None:
    plan = make_plan(replace(_after(make_plan(_look(), _wanted(), ROOT), _wanted()), **look), _wanted(), ROOT)
    assert plan.delivery is not None
    assert plan.delivery.remove == tuple(path for path in look.get("leftovers", ()) if not path.endswith("/stage"))


def test_a_new_secret_makes_a_generation_and_keeps_the_one_before() -> None:
    look = _after(make_plan(_look(), _wanted(), ROOT), _wanted())
    newer = Secret("canary-two")
    plan = make_plan(look, _wanted(credential=Credential("id", {"token": newer}), stored={"token": newer}, attempt="attempt-2"), ROOT)
    assert plan.delivery is not None
    assert (plan.delivery.generation, plan.delivery.keep) == (2, (2, 1))
    assert (plan.receipt.generation, plan.receipt.attempt) == (2, "attempt-2")
    assert len(plan.receipt.history) == 2


@pytest.mark.parametrize(("look", "number"), [
    ({}, 1), ({"generations": {4: {"token": TOKEN}}, "secrets": {"token": TOKEN}, "agent_id": "id"}, 4),
    ({"generations": {4: {"token": TOKEN}}, "secrets": {"token": TOKEN}, "agent_id": "other"}, 5),
    ({"generations": {4: {"token": TOKEN, "x": TOKEN}}, "secrets": {"token": TOKEN, "x": TOKEN}, "agent_id": "id"}, 5),
    ({"generations": {2: {"token": TOKEN}, 7: {"token": Secret("z")}}, "secrets": {"token": Secret("z")}, "agent_id": "id"}, 8),
])
def test_a_generation_is_used_again_when_it_is_the_same(look: dict[str, t.Any], number: int) -> None:
    assert generation_for(_look(**look), Credential("id", {"token": TOKEN}), {"token": TOKEN}) == number


def test_a_receipt_of_another_server_is_begun_anew() -> None:
    first = make_plan(_look(), _wanted(adopted_from="vault:x"), ROOT)
    plan = make_plan(_after(first, _wanted()), _wanted(url="https://other.test"), ROOT)
    assert (plan.receipt.url, plan.receipt.adopted_from, len(plan.receipt.history)) == ("https://other.test", "", 1)


def test_a_failure_of_vault_is_noted_as_issued_and_stored_later() -> None:
    plan = make_plan(_look(), _wanted(phase="ISSUED", rendered=()), ROOT)
    assert plan.receipt.phase == "ISSUED"
    later = make_plan(_after(plan, _wanted(rendered=())), _wanted(rendered=()), ROOT)
    assert later.delivery is not None
    assert later.receipt.phase == "STORED"


def test_files_known_before_stay_listed_for_a_withdrawal() -> None:
    old = DeliveredFile("/opt/agent/old", "d", "0600", "root", "root")
    assert [item.path for item in delivered([old], [FILE], KEY)] == ["/opt/agent/.env", "/opt/agent/old"]


def test_the_restart_is_timed_by_the_hosts_clock() -> None:
    assert host_time(_look(time=1000, taken_at=time.time() - 5)) == pytest.approx(1005, abs=2)


def test_a_validation_command_is_split_as_a_shell_does() -> None:
    assert staged([replace(FILE, validate="check --name 'a b' %s")])[0].validate == ("check", "--name", "a b", "%s")


def test_diffs_show_keys_and_no_secret() -> None:
    receipt = Receipt("stacker", NAME, URL, "STORED", "a", generation=1, files=(DeliveredFile(FILE.path, "d", "0640", "root", "agent"),))
    old = HostFile(b"TOKEN=canary-old\nPORT=1\n", "0640", "root", "agent")
    for look in (_look(), _look(files={FILE.path: old}), _look(files={FILE.path: old}, receipt=receipt)):
        (diff,) = file_diffs(look, [FILE], {"token": TOKEN}, {"token_1": Secret("canary-old")}, 2)
        assert "canary" not in repr(diff)
        assert "TOKEN" in diff["after"]
        assert ("TOKEN" in diff["before"]) == (FILE.path in look.files)
    look = _look(files={FILE.path: HostFile(FILE.content, "0600", "root", "agent")}, receipt=replace(receipt, generation=2))
    (attributes,) = file_diffs(look, [FILE], {"token": TOKEN}, {}, 2)
    assert attributes["before"].startswith("# root:agent 0600\n")
    assert attributes["after"].startswith("# root:agent 0640\n")


def test_the_receipts_diff_tells_phase_generation_and_fingerprints() -> None:
    plan = make_plan(_look(), _wanted(), ROOT)
    diff = receipt_diff(_look(), plan, ROOT)
    assert diff["before"] == ""
    assert diff["after"].splitlines()[:3] == ["phase: STORED", "generation: 1", "agent_id: id"]
    assert f"token: <fingerprint {fingerprint(KEY, TOKEN)}>" in diff["after"]
