# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names that stay and are nobody else's are accepted; those that change at each run, collide or can be guessed are refused with the reason."""

from __future__ import annotations

import datetime
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import IdentityRules
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes.stacker import Stacker

RULES = Stacker.rules


def _refusal(name: str, *, allow_unstable: bool = False, rules: IdentityRules = RULES) -> str:
    with pytest.raises(InvalidInput) as refusal:
        rules.check(name, allow_unstable=allow_unstable)
    assert refusal.value.reason == "invalid_input"
    return refusal.value.msg


@pytest.mark.parametrize("name", [
    "6c84fb90-12c4-11e1-840d-7b25c5ee775a",
    # Digit runs that look like an epoch, a date, a date with time: a UUID is a UUID.
    "17000000-1234-5678-9abc-170000000012", "20260101-2026-0101-2026-202601011230", "20260101-1231-4abc-8def-1700000000ff",
    "ABCDEF01-2345-6789-ABCD-EF0123456789",
    "shop-eu-frontend", "web_frontend_eu", "a", "Z_9z", "web-eu-01", "node42b", "web-10000", "my-production", "productions", "hosts",
    # Near misses of dates and epochs.
    "host-20261301", "host-20260132", "eu-host-2026", "host-18991231", "x-2700000000", "x-170000000", "x-17000000001", "a1700000000", "build-9202601019",
    "v1-2-3", "x" * 128, "sha-3f9d2c8b7a6e5f4d3c2b1a09f8e7d6c5b4a39281",
])
def test_a_lasting_name_is_accepted(name: str) -> None:
    RULES.check(name, allow_unstable=False)


@pytest.mark.parametrize("name", [
    "host-20260101", "host-2026-01-01", "host_2026_12_31", "2026-06-15-web", "19991231", "host-202601011230", "host-20260101T1230", "x-1700000000",
    "x-1700000000123", "1700000000", "deploy-1767323045-web", "web-20260101-120000",
])
def test_a_name_with_date_time_or_epoch_is_refused(name: str) -> None:
    message = _refusal(name)
    assert "date, a time or an epoch" in message
    assert "allow_unstable_name" in message
    RULES.check(name, allow_unstable=True)


@pytest.mark.parametrize("name", ["production", "PRODUCTION", "default", "localhost", "status-panel", "status_panel", "Agent", "test", "dev"])
def test_a_generic_name_is_refused(name: str) -> None:
    assert "generic" in _refusal(name)
    RULES.check(name, allow_unstable=True)


@pytest.mark.parametrize("name", ["web-01", "web1", "web_0001", "1", "0007", "host9999", "A-3", "node-00000042"])
def test_a_counted_name_is_refused_where_registration_is_open(name: str) -> None:
    assert "sequential" in _refusal(name)
    RULES.check(name, allow_unstable=True)
    IdentityRules(128, "[A-Za-z0-9_-]", "words").check(name, allow_unstable=False)


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_an_empty_name_is_refused_whatever_is_allowed(name: str) -> None:
    assert "name is empty" in _refusal(name, allow_unstable=True)


@pytest.mark.parametrize("name", ["has space", "slash/ed", "dot.ted", "ümlaut", "new\nline", "trailing\n", "semi;colon", "per%cent", "-" * 3 + "é", "٣abc"])
def test_other_characters_are_refused_whatever_is_allowed(name: str) -> None:
    message = _refusal(name, allow_unstable=True)
    assert "A-Z, a-z, 0-9, - and _" in message
    assert "\n" not in message


def test_a_name_too_long_is_refused_with_its_length() -> None:
    message = _refusal("x" * 129, allow_unstable=True)
    assert "129" in message
    assert "128" in message


@given(st.uuids())
def test_every_uuid_is_accepted(value: uuid.UUID) -> None:
    RULES.check(str(value), allow_unstable=False)


@given(st.dates(min_value=datetime.date(1900, 1, 1), max_value=datetime.date(2099, 12, 31)), st.sampled_from(["%Y%m%d", "%Y-%m-%d", "%Y_%m_%d"]))
def test_every_date_is_found(day: datetime.date, form: str) -> None:
    assert "date" in _refusal(f"edge-{day.strftime(form)}-a")
