# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The receipt survives a round trip, ignores what it does not know, and is refused when it is damaged or newer."""

from __future__ import annotations

import json
import typing as t
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.module_utils._receipt import (
    PHASES,
    SCHEMA,
    DeliveredFile,
    Intent,
    Receipt,
    ReceiptError,
    Transition,
    VaultLeaf,
)

RELEASED = sorted((Path(__file__).parent / "receipts").glob("*.json"))
_TEXT = st.text(max_size=20)
_PLAIN = st.dictionaries(_TEXT, st.one_of(_TEXT, st.integers(), st.booleans(), st.lists(_TEXT, max_size=2)), max_size=3)
_RECEIPTS = st.builds(
    Receipt, control_plane=_TEXT, name=_TEXT, url=_TEXT, phase=st.sampled_from(PHASES), attempt=_TEXT, generation=st.integers(0, 10**6), agent_id=_TEXT,
    pin=_TEXT, fingerprints=st.dictionaries(_TEXT, _TEXT, max_size=3), metadata=_TEXT, server=_PLAIN,
    vault=st.lists(st.builds(
        VaultLeaf, path=_TEXT, kv_version=st.sampled_from([1, 2]), version=st.none() | st.integers(1, 99), fields=st.lists(_TEXT, max_size=3).map(tuple)),
        max_size=2).map(tuple),
    vault_url=_TEXT, policy=_PLAIN,
    files=st.lists(st.builds(DeliveredFile, path=_TEXT, digest=_TEXT, mode=_TEXT, owner=_TEXT, group=_TEXT), max_size=2).map(tuple), adopted_from=_TEXT,
    pending_restart=st.integers(0, 2**40), retire_pending=st.lists(_TEXT, max_size=2).map(tuple), proof=_PLAIN,
    history=st.lists(st.builds(Transition, at=st.integers(0, 2**40), phase=st.sampled_from(PHASES), why=_TEXT), max_size=3).map(tuple), schema=st.just(SCHEMA))


def _receipt() -> Receipt:
    return Receipt("stacker", "name", "https://control.test", "STORED", "attempt-1")


@given(_RECEIPTS)
def test_a_receipt_survives_a_round_trip(receipt: Receipt) -> None:
    data = receipt.dump()
    assert Receipt.load(data) == receipt
    assert data.endswith(b"\n")
    assert Receipt.load(data).dump() == data


def test_the_shell_can_read_phase_and_server() -> None:
    lines = replace(_receipt(), vault_url="https://vault.test").dump().decode().splitlines()
    assert ' "phase": "STORED",' in lines
    assert ' "url": "https://control.test",' in lines


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_a_receipt_as_any_release_wrote_it_loads_and_loses_nothing(file: Path) -> None:
    written = json.loads(file.read_bytes())
    receipt = Receipt.load(file.read_bytes())
    kept = json.loads(receipt.dump())
    assert {key: kept.get(key) for key in written} == written
    assert receipt.history
    assert Receipt.load(receipt.moved("STORED", "read by a later release", 1).dump()).history[-1].phase == "STORED"


def test_the_receipts_of_every_schema_are_there_and_the_newest_has_every_field() -> None:
    documents = [json.loads(file.read_bytes()) for file in RELEASED]
    assert {document["schema"] for document in documents} == set(range(1, SCHEMA + 1))
    assert {item.name for item in fields(Receipt)} in [set(document) for document in documents]


def test_unknown_keys_are_ignored() -> None:
    document = {**json.loads(_receipt().dump()), "colour": "green", "nested": {"a": [1]}}
    assert Receipt.load(json.dumps(document).encode()) == _receipt()


def test_keys_of_an_older_receipt_may_be_missing() -> None:
    document = {key: value for key, value in json.loads(_receipt().dump()).items() if key in ("control_plane", "name", "url", "phase", "attempt")}
    assert Receipt.load(json.dumps(document).encode()) == _receipt()


@pytest.mark.parametrize("schema", [SCHEMA + 1, 1000])
def test_a_newer_schema_is_refused_with_the_remedy(schema: int) -> None:
    document = {**json.loads(_receipt().dump()), "schema": schema}
    with pytest.raises(ReceiptError, match=f"schema {schema}.*use a newer muster.agents"):
        Receipt.load(json.dumps(document).encode())


@pytest.mark.parametrize("length", [0, 1, 40, 200])
def test_a_receipt_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ReceiptError, match="cannot be read"):
        Receipt.load(_receipt().dump()[:length])


@pytest.mark.parametrize("change", [
    {"schema": "one"}, {"schema": None}, {"vault": [{}]}, {"vault": [{"path": "p"}]}, {"vault": 3}, {"vault": None}, {"files": [{"path": "p"}]},
    {"files": "text"}, {"history": [[1, 2]]}, {"history": [{"at": 1}]}, {"retire_pending": 5},
])
def test_a_receipt_of_another_form_is_refused(change: dict[str, t.Any]) -> None:
    with pytest.raises(ReceiptError):
        Receipt.load(json.dumps({**json.loads(_receipt().dump()), **change}).encode())


@given(st.one_of(
    st.binary(max_size=50), st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | _TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["schema", "vault", "files", "history", "phase", "name", "retire_pending"]) | _TEXT, inner, max_size=4),
        max_leaves=8).map(lambda document: json.dumps(document).encode())))
def test_whatever_lies_there_is_a_receipt_or_refused(data: bytes) -> None:
    try:
        receipt = Receipt.load(data)
    except ReceiptError as error:
        assert len(str(error)) < 200
    else:
        assert receipt.dump()


def test_the_journal_keeps_the_last_ten_steps() -> None:
    receipt = _receipt()
    for number in range(14):
        receipt = receipt.moved("STORED", f"step {number}", number)
    assert [step.at for step in receipt.history] == list(range(4, 14))
    assert receipt.history[-1] == Transition(13, "STORED", "step 13")


def test_a_phase_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ReceiptError, match="unknown phase"):
        _receipt().moved("FINISHED", "why", 1)


_WORD = st.text(st.characters(blacklist_characters="\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", blacklist_categories=("Cs",)), max_size=12)


@given(attempt=_WORD, controller=_WORD, until=st.integers(0, 2**40), why=_WORD)
def test_an_intent_survives_a_round_trip(attempt: str, controller: str, until: int, why: str) -> None:
    intent = Intent(attempt, controller, until, why)
    assert Intent.load(intent.dump()) == intent


@given(st.binary(max_size=30))
def test_a_foreign_intent_is_none(data: bytes) -> None:
    found = Intent.load(data)
    assert found is None or data.count(b"\t") == 3


def test_numbers_that_are_none_make_no_intent() -> None:
    assert Intent.load("a\tb\t²\td\n".encode()) is None
