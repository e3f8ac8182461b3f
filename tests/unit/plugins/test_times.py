# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Times as servers write them become seconds, and nothing else does."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.plugin_utils._times import age_seconds, iso, parse_time

_MOMENT = 1767323045.0


@pytest.mark.parametrize(("text", "seconds"), [
    ("2026-01-02T03:04:05Z", _MOMENT), ("2026-01-02T03:04:05", _MOMENT), ("2026-01-02 03:04:05", _MOMENT), ("2026-01-02 03:04:05 UTC", _MOMENT),
    ("2026-01-02T04:04:05+01:00", _MOMENT), ("2026-01-01T22:04:05-05:00", _MOMENT), (" 2026-01-02T03:04:05Z ", _MOMENT),
    ("2026-01-02T03:04:05.5Z", _MOMENT + 0.5), ("2026-01-02T03:04:05.250Z", _MOMENT + 0.25), ("2026-01-02T03:04:05.123456789Z", _MOMENT + 0.123456),
    ("2026-01-02T03:04:05.123456789+00:00", _MOMENT + 0.123456),
])
def test_every_way_of_writing_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("text", ["", " ", "never", "null", "2026-13-01T00:00:00Z", "2026-02-30", "T", "12:30", "Z"])
def test_anything_else_is_no_time(text: str) -> None:
    assert parse_time(text) is None
    assert age_seconds(text, 0.0) is None


@given(st.datetimes(min_value=datetime.datetime(1971, 1, 1), max_value=datetime.datetime(2200, 1, 1), timezones=st.just(datetime.timezone.utc)))
def test_what_python_writes_is_read(moment: datetime.datetime) -> None:
    assert parse_time(moment.isoformat()) == pytest.approx(moment.timestamp(), abs=1e-5)


@given(st.text(max_size=30))
def test_no_text_breaks_it(text: str) -> None:
    assert parse_time(text) is None or isinstance(parse_time(text), float)


def test_an_age_counts_back_from_now() -> None:
    assert age_seconds("2026-01-02T03:04:05Z", _MOMENT + 90) == pytest.approx(90)
    assert age_seconds("2026-01-02T03:04:05Z", _MOMENT - 10) == pytest.approx(-10)


@pytest.mark.parametrize(("seconds", "text"), [
    (_MOMENT, "2026-01-02T03:04:05Z"), (_MOMENT + 0.999, "2026-01-02T03:04:05Z"), (-1.5, "1969-12-31T23:59:58Z"),
    (-1e18, "0001-01-01T00:00:00Z"), (1e18, "9999-12-31T23:59:59Z"),
])
def test_a_time_is_written_in_whole_seconds_of_the_years_that_a_date_can_name(seconds: float, text: str) -> None:
    assert iso(seconds) == text
