# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""registration_secret against a server that manages them: made once, kept before anything else, shown to nobody, revoked for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from world.openbao import OpenBao

from .agents import REGISTER
from .canary import found_in
from .controller import Controller

MODULE = "muster.agents.registration_secret"
PASSWORD = "canary-password-5e1a"
LEAF = "secret/data/pganalytics/registration"


@pytest.fixture(scope="module")
def server(tls: Tls) -> Iterator[ReferenceServer]:
    with ReferenceServer.start("shipped", tls=tls, arguments=["--plane", "pganalytics", "--pganalytics-user", f"ops:{PASSWORD}"]) as started:
        yield started


@pytest.fixture
def options(server: ReferenceServer, ca: Any, bao: OpenBao, tmp_path: Path) -> dict[str, Any]:
    """A secret that is kept in a file and in Vault."""
    server.reset()
    bao.reset_mutations()
    return {
        "control_plane": "pganalytics", "url": server.url, "ca_cert": str(ca.ca_file), "username": "ops", "password": PASSWORD, "name": "fleet",
        "dest": str(tmp_path / "secret"), "vault": {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)},
        "vault_paths": [{"path": LEAF, "fields": {"secret": "registration_secret"}}]}


def _run(controller: Controller, options: dict[str, Any], *arguments: str) -> tuple[dict[str, Any], str]:
    """Run the module once. Returns its result and all that was said."""
    play = controller.each(MODULE, {"host": options}, arguments=["-vvvvvv", *arguments])
    return dict(play.result("host")), play.output + play.events


def _kept(options: dict[str, Any], bao: OpenBao) -> list[str]:
    entry = bao.read(LEAF)
    file = Path(options["dest"])
    return [file.read_text().strip() if file.exists() else "", entry["data"]["secret"] if entry else ""]


def test_a_secret_is_made_once_buys_an_enrolment_and_is_revoked(
    server: ReferenceServer, options: dict[str, Any], bao: OpenBao, controller: Controller, tmp_path: Path) -> None:
    planned, _said = _run(controller, options, "--check")
    assert (planned["action"], planned["changed"], planned["registration_secrets"]) == ("created", True, [])
    assert server.counters()["pganalytics"]["mutating"] == 0
    assert _kept(options, bao) == ["", ""]

    made, said = _run(controller, options)
    file, vault = _kept(options, bao)
    assert (made["action"], made["changed"]) == ("created", True)
    assert len(file) == 43
    assert file == vault
    assert Path(options["dest"]).stat().st_mode & 0o777 == 0o600
    assert [entry["name"] for entry in made["registration_secrets"]] == ["fleet"]
    assert found_in(said, [file, PASSWORD]) == []

    server.reset_counters()
    again, said = _run(controller, options)
    assert (again["action"], again["changed"]) == ("unchanged", False)
    assert server.counters()["pganalytics"]["mutating"] == 0
    assert found_in(said, [file, PASSWORD]) == []

    agent = {**{key: options[key] for key in ("control_plane", "url", "ca_cert")}, "name": "primary-db", "hostname": "db-1.example.com",
             "registration_secret_file": options["dest"], "store": str(tmp_path / "store"), "capabilities": [], "system_info": {}}
    controller.each(REGISTER, {"host": agent}).good()
    used, _said = _run(controller, options)
    assert used["registration_secrets"][0]["uses"] == 1

    gone, _said = _run(controller, {**options, "state": "absent"})
    assert (gone["action"], gone["changed"], gone["registration_secrets"]) == ("revoked", True, [])
    assert _kept(options, bao) == ["", ""]
    quiet, _said = _run(controller, {**options, "state": "absent"})
    assert (quiet["action"], quiet["changed"]) == ("absent", False)


@pytest.mark.parametrize("kind", ["commit-then-drop", "truncate", "commit-then-500"])
def test_a_lost_answer_leaves_one_secret_whose_value_is_kept(
    kind: str, server: ReferenceServer, options: dict[str, Any], bao: OpenBao, controller: Controller) -> None:
    server.fault("pganalytics_secret_create", kind)
    made, _said = _run(controller, options)
    assert made["action"] == "created", made
    assert len(made["registration_secrets"]) == 1
    file, vault = _kept(options, bao)
    assert file == vault != ""
    _run(controller, {**options, "state": "absent"})


def test_what_cannot_be_kept_is_revoked_again_and_what_was_lost_is_said(
    server: ReferenceServer, options: dict[str, Any], bao: OpenBao, controller: Controller, tmp_path: Path) -> None:
    failed, _said = _run(controller, {**options, "dest": str(tmp_path / "nowhere" / "secret")})
    assert (failed["failed"], failed["reason"]) == (True, "host_failure")
    listed, _said = _run(controller, {**options, "state": "absent"}, "--check")
    assert listed["registration_secrets"] == []
    _run(controller, options)
    Path(options["dest"]).unlink()
    lost, _said = _run(controller, options)
    assert (lost["failed"], lost["reason"]) == (True, "value_lost")
    _run(controller, {**options, "state": "absent"})


@pytest.mark.parametrize(("changes", "reason", "words"), [
    ({"dest": None, "vault": None, "vault_paths": None}, "invalid_input", "give dest"), ({"expires_at": "tomorrow"}, "invalid_input", "no moment"),
    ({"expires_at": "2020-01-01T00:00:00Z"}, "invalid_input", "is over"), ({"username": None, "password": None}, "invalid_input", "administrator"),
    ({"password": "canary-wrong-5e1a"}, "bad_bootstrap", "username and password"),
])
def test_bad_input_is_said_and_nothing_made(
    changes: dict[str, Any], reason: str, words: str, server: ReferenceServer, options: dict[str, Any], controller: Controller) -> None:
    refused, said = _run(controller, {key: value for key, value in {**options, **changes}.items() if value is not None})
    assert (refused["failed"], refused["reason"]) == (True, reason)
    assert words in refused["msg"]
    assert server.counters()["pganalytics"]["mutating"] == 0
    assert found_in(said, ["canary-wrong-5e1a"]) == []
