# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters and test about lifetimes: what they read, and that they never quote a token."""

from __future__ import annotations

import datetime
from typing import Any

import jwt
import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.filter.cert_days_left import FilterModule as DaysFilters
from ansible_collections.muster.agents.plugins.filter.token_claims import FilterModule as ClaimsFilters
from ansible_collections.muster.agents.plugins.test.rotation_due import TestModule as DueTests

from .faces import NOW, Authority

token_claims = ClaimsFilters().filters()["token_claims"]
cert_days_left = DaysFilters().filters()["cert_days_left"]
rotation_due = DueTests().tests()["rotation_due"]

MOMENT = NOW.timestamp()
KEY = "a key of thirty-two bytes or more."
CERTIFICATE = Authority("Root").issue("agent", days=(-60, 30)).pem.decode()
TOKEN = jwt.encode({"sub": "collector-7", "iat": int(MOMENT) - 600, "exp": int(MOMENT) + 1200}, KEY, algorithm="HS256")


def iso(days: float) -> str:
    return (NOW + datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_claims_are_those_that_the_token_was_made_with() -> None:
    assert token_claims(TOKEN) == {"sub": "collector-7", "iat": int(MOMENT) - 600, "exp": int(MOMENT) + 1200}


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.integers(-2**53, 2**53), st.text(max_size=20), st.booleans(), st.none()), max_size=5))
def test_all_claims_come_back(claims: dict[str, Any]) -> None:
    known = {name: value for name, value in claims.items() if name not in ("iss", "sub", "jti")}
    assert token_claims(jwt.encode(known, KEY, algorithm="HS256")) == known


@pytest.mark.parametrize("value", ["", "opaque-secret-token", "a.b", "secret.!!!.sig", "secret.WzFd.sig", "." * 2, 7, None, "x." * 40000, {"a": 1}])
def test_what_is_no_token_is_refused_without_being_quoted(value: Any) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        token_claims(value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("value", "days"), [
    (CERTIFICATE, 30), (iso(10), 10), (MOMENT + 86400, 1), (int(MOMENT) - 86400, -1), (NOW + datetime.timedelta(days=2), 2),
    ({"not_after": iso(-3)}, -3), ({"exp": MOMENT + 86400 * 5, "not_after": ""}, 5), ({"expires_at": iso(4), "anything": "else"}, 4),
    (TOKEN, round(1200 / 86400, 2)),
], ids=lambda _value: "")
def test_days_are_counted_for_everything_that_tells_an_end(value: Any, days: float) -> None:
    assert cert_days_left(value, now=MOMENT) == pytest.approx(days, abs=0.011)
    assert cert_days_left(value, now=iso(1)) == pytest.approx(days - 1, abs=0.011)
    assert isinstance(cert_days_left(value), float)


@pytest.mark.parametrize("value", [
    "secret words", "", None, [], True, {"not_before": iso(1)}, {"not_after": "soon"}, {"exp": True},
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
])
def test_what_tells_no_end_is_refused_without_being_quoted(value: Any) -> None:
    for ask in (cert_days_left, rotation_due):
        with pytest.raises(AnsibleFilterError) as caught:
            ask(value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("value", "options", "due"), [
    (CERTIFICATE, {}, False), (CERTIFICATE, {"share": 0.66}, True), (CERTIFICATE, {"days": 29}, False), (CERTIFICATE, {"days": 30}, True),
    (CERTIFICATE, {"days": 1, "share": 0.5}, True), (TOKEN, {"now": MOMENT}, False), (TOKEN, {"now": MOMENT + 700}, True),
    ({"not_after": iso(-1)}, {}, True), (iso(-1), {}, True), (iso(10), {"days": 30}, True), (iso(40), {"days": 30}, False),
    ({"not_before": iso(0), "not_after": iso(0)}, {"now": MOMENT - 1, "share": 0.5}, True),
], ids=lambda _value: "")
def test_rotation_is_due_by_share_or_by_days(value: Any, options: dict[str, Any], due: bool) -> None:
    assert rotation_due(value, **{"now": MOMENT, **options}) is due


def test_a_share_needs_a_beginning() -> None:
    with pytest.raises(AnsibleFilterError, match="give days"):
        rotation_due(iso(40))
