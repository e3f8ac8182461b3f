# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Task arguments become typed values; a secret comes as value or file, once, and its messages never quote it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._argument_specs import CONTROL_PLANE, IDENTITY, TRANSPORT
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._http import Transport
from ansible_collections.muster.agents.plugins.plugin_utils._options import (
    bootstrap,
    control_plane,
    enrolment,
    secret_option,
    transport,
    user_secrets,
)
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Enrolment
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.stacker import Stacker

CANARY = "canary-7f3e-do-not-print"


def _validated(**given: t.Any) -> dict[str, t.Any]:
    """Return arguments as Ansible's validation leaves them."""
    spec = {**CONTROL_PLANE, **TRANSPORT, **IDENTITY}
    return {**{name: option.get("default") for name, option in spec.items()}, **given}


def _refusal(call: t.Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as refusal:
        call()
    assert CANARY not in refusal.value.msg
    return refusal.value.msg


@pytest.mark.parametrize(("content", "secret"), [
    (CANARY, CANARY), (f"{CANARY}\n", CANARY), (f"{CANARY}\r\n", CANARY), (f" {CANARY} \n", f" {CANARY} "), (f"{CANARY}\nsecond\n", f"{CANARY}\nsecond"),
    ("ü\n", "ü"),
])
def test_a_file_gives_its_text_without_the_last_line_break(content: str, secret: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    assert secret_option({"password_file": str(tmp_path / "secret")}, "password") == Secret(secret)


def test_a_value_is_taken_as_it_is() -> None:
    assert secret_option({"password": f" {CANARY}\n"}, "password") == Secret(f" {CANARY}\n")
    assert secret_option({"password": 12345}, "password") == Secret("12345")


@pytest.mark.parametrize("args", [{}, {"password": None}, {"password": None, "password_file": None}, {"password_file": ""}])
def test_neither_is_none(args: dict[str, t.Any]) -> None:
    assert secret_option(args, "password") is None


def test_both_are_refused(tmp_path: Path) -> None:
    assert "both set" in _refusal(lambda: secret_option({"password": CANARY, "password_file": "/x"}, "password"))


def test_an_empty_value_is_refused() -> None:
    assert "password is empty" in _refusal(lambda: secret_option({"password": ""}, "password"))


@pytest.mark.parametrize(("name", "content", "words"), [
    ("absent", None, "FileNotFoundError"), ("empty", b"", "is empty"), ("blank", b"\r\n\n", "is empty"),
    ("binary", b"\xff\xfe" + CANARY.encode(), "UnicodeDecodeError"),
    ("folder", "folder", "IsADirectoryError"),
])
def test_a_file_that_cannot_serve_is_named(name: str, content: bytes | str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    message = _refusal(lambda: secret_option({"password_file": str(path)}, "password", prefix="vault."))
    assert words in message
    assert f"vault.password_file '{path}'" in message


def test_the_operators_own_secrets_come_by_name(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("from-file\n")
    found = user_secrets({"secrets": [{"name": "db", "file": str(tmp_path / "db")}, {"name": "_key2", "value": CANARY, "file": None}]})
    assert found == {"db": Secret("from-file"), "_key2": Secret(CANARY)}
    assert user_secrets({}) == user_secrets({"secrets": None}) == {}


@pytest.mark.parametrize(("items", "words"), [
    ([{"name": "has-dash", "value": CANARY}], "not a usable name"), ([{"name": "1st", "value": CANARY}], "not a usable name"),
    ([{"name": "line\n", "value": CANARY}], "not a usable name"), ([{"name": "", "value": CANARY}], "not a usable name"),
    ([{"name": "token", "value": CANARY}], "taken"), ([{"name": "a", "value": CANARY}, {"name": "a", "value": CANARY}], "taken"),
    ([{"name": "a"}], "neither value nor file"), ([{"name": "a", "value": CANARY, "file": "/x"}], "secrets[a].value and secrets[a].value_file are both set"),
    ([{"name": "a", "value": ""}], "secrets[a].value is empty"),
])
def test_own_secrets_that_cannot_be_right_are_refused(items: list[dict[str, t.Any]], words: str) -> None:
    assert words in _refusal(lambda: user_secrets({"secrets": items}, reserved=("token", "agent_id")))


def test_nothing_given_means_the_defaults() -> None:
    args = _validated(control_plane="stacker", url="https://control.test", name="edge")
    assert transport(args) == Transport()
    assert bootstrap(args) == Bootstrap()
    assert enrolment(args) == Enrolment("edge")


def test_every_option_finds_its_place(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("admin\n")
    args = _validated(
        control_plane="stacker", url="https://control.test", name="edge", version="1.0.0", capabilities=["logs"], system_info={"os": "linux"}, hostname="h",
        address="10.0.0.1", labels={"a": 1}, description="d", service_type="s", controller_name="c", public_key="k", allow_unstable_name=True,
        registration_secret="r", install_token="i", username="u", password="p", admin_token_file=str(tmp_path / "admin"), client_id="ci", client_secret="cs",
        issuer_url="iu", ca_cert="ca", client_cert="cc", client_key="ck", validate_certs=False, pin_sha256="pin", tls_min_version="1.3", ciphers="X",
        proxy="http://p", timeout=3.5, retries=7, allow_plaintext=True)
    assert transport(args) == Transport("ca", "cc", "ck", False, "pin", "1.3", "X", "http://p", 3.5, 7, True)
    assert bootstrap(args) == Bootstrap(Secret("r"), Secret("i"), "u", Secret("p"), Secret("admin"), "ci", Secret("cs"), "iu")
    assert enrolment(args) == Enrolment("edge", "1.0.0", ("logs",), {"os": "linux"}, "h", "10.0.0.1", {"a": 1}, "d", "s", "c", "k", True)


def test_the_adapter_is_chosen_by_name_and_sends_nothing() -> None:
    plane = control_plane(_validated(control_plane="stacker", url="https://control.invalid/", name="edge"))
    assert isinstance(plane, Stacker)
    assert plane.http.url == "https://control.invalid"
    assert "no scheme" in _refusal(lambda: control_plane(_validated(control_plane="stacker", url="control.invalid", name="edge")))
