# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A secret shows itself nowhere; what is sealed opens with its own key alone; fingerprints need the host's key."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import traceback
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.module_utils._secrets import (
    REDACTED,
    Secret,
    fingerprint,
    new_key,
    open_sealed,
    redact,
    register_with_core,
    seal,
)
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, Credential

CANARY = "canary-7f3e-do-not-print"


@pytest.mark.parametrize("show", [
    repr, str, "{}".format, "{!r}".format, "{:>40}".format, lambda secret: f"{secret}", lambda secret: f"{secret!s:.99}",
    lambda secret: f"{[secret]} {({'a': secret})}",
    lambda secret: repr(Credential("id", {"token": secret})), lambda secret: repr(Bootstrap(password=secret, admin_token=secret)),
    lambda secret: json.dumps({"token": secret}, default=str), lambda secret: repr(dir(secret)), lambda secret: "%s".__mod__((secret,)),
])
def test_no_way_of_printing_shows_it(show: object) -> None:
    assert callable(show)
    secret = Secret(CANARY)
    try:
        text = show(secret)
    except TypeError as error:
        text = str(error)
    assert CANARY not in text


@pytest.mark.parametrize("serialise", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, hash, vars, iter, len, bytes])
def test_it_refuses_to_be_carried_off(serialise: object) -> None:
    assert callable(serialise)
    with pytest.raises(TypeError) as refusal:
        serialise(Secret(CANARY))
    assert CANARY not in str(refusal.value)


def test_a_traceback_with_locals_does_not_show_it() -> None:
    def fails(token: Secret, credential: Credential) -> None:
        wrapped = {"token": token, "list": [credential]}
        raise ValueError(f"failed with {wrapped}")

    try:
        fails(Secret(CANARY), Credential("id", {"token": Secret(CANARY)}))
    except ValueError:
        kind, error, trace = sys.exc_info()
    assert kind is not None
    assert error is not None
    assert isinstance(trace, types.TracebackType)
    text = "".join(traceback.TracebackException(kind, error, trace.tb_next, capture_locals=True).format())
    assert REDACTED in text
    assert CANARY not in text


def test_equality_compares_values_of_secrets_alone() -> None:
    assert Secret("ä" + CANARY) == Secret("ä" + CANARY)
    assert Secret(CANARY) != Secret(CANARY + "x")
    assert Secret(CANARY) != CANARY


def test_an_empty_secret_is_a_bug() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Secret("")


@given(st.binary(max_size=2000))
def test_what_is_sealed_opens_again(data: bytes) -> None:
    key = new_key()
    sealed = seal(key, data)
    assert open_sealed(key, sealed) == data
    assert len(sealed) == len(data) + 32


def test_sealed_data_hides_what_it_holds() -> None:
    assert CANARY.encode() not in seal(new_key(), CANARY.encode() * 4)
    zeros = seal(new_key(), bytes(64))[:64]
    assert len(set(zeros)) > 16


@given(data=st.binary(min_size=1, max_size=60), position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_one_changed_bit_is_noticed(data: bytes, position: int, bit: int) -> None:
    key = new_key()
    sealed = bytearray(seal(key, data))
    sealed[position % len(sealed)] ^= 1 << bit
    with pytest.raises(ValueError, match="does not belong"):
        open_sealed(key, bytes(sealed))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 40])
def test_sealed_data_cut_short_is_noticed(length: int) -> None:
    key = new_key()
    with pytest.raises(ValueError, match="does not belong"):
        open_sealed(key, seal(key, b"sixteen bytes ok")[:length])


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        open_sealed(new_key(), seal(new_key(), b"data"))


def test_a_fingerprint_depends_on_key_and_value_and_shows_neither() -> None:
    key = new_key()
    print_ = fingerprint(key, Secret(CANARY))
    assert print_ == fingerprint(key, CANARY) == fingerprint(key, CANARY.encode())
    assert len(print_) == 12
    assert int(print_, 16) >= 0
    assert print_ not in (fingerprint(new_key(), CANARY), fingerprint(key, CANARY + "x"), fingerprint("", CANARY))


def test_keys_are_never_the_same() -> None:
    keys = {new_key() for _number in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {64}


def test_redaction_leaves_no_tail_of_a_longer_secret() -> None:
    text = redact(f"a={CANARY} b={CANARY}-and-more", [Secret(CANARY), Secret(f"{CANARY}-and-more")])
    assert text == f"a={REDACTED} b={REDACTED}"


def test_core_is_told_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    core = types.ModuleType("ansible.module_utils.secrets")
    core.__dict__["register_secrets"] = told.extend
    monkeypatch.setitem(sys.modules, "ansible.module_utils.secrets", core)
    register_with_core([Secret("one"), Secret("two")])
    assert told == ["one", "two"]


def test_an_older_core_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ansible.module_utils.secrets", None)
    register_with_core([Secret("one")])
