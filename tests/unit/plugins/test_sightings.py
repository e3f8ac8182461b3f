# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What two clocks that differ tell of a sign of life."""

from __future__ import annotations

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils._sightings import ServerClock, Span, judge_seen, moment


def test_each_date_header_narrows_the_bounds() -> None:
    clock = ServerClock()
    assert clock.bounds() == Span(-2.0, 2.0)
    clock.note(None)
    clock.note(9.3)
    assert clock.bounds() == Span(9.3, 10.8)
    clock.note(9.9)
    assert clock.bounds() == Span(9.9, 10.8)
    clock.note(9.1)
    assert clock.bounds() == Span(9.9, 10.6)


@pytest.mark.parametrize(("text", "low", "width"), [
    ("2026-01-02T03:04:05Z", 1767323045.0, 1.0),
    ("2026-01-02T03:04:05.25Z", 1767323045.25, 0.01),
    ("2026-01-02T03:04:05.123456789Z", 1767323045.123456, 1e-9),
    ("2026-01-02 03:04:05 UTC", 1767323045.0, 1.0),
    ("2026-01-02T05:04:05+02:00", 1767323045.0, 1.0),
])
def test_a_moment_is_as_wide_as_its_last_digit(text: str, low: float, width: float) -> None:
    found = moment(text)
    assert found is not None
    assert found.low == pytest.approx(low, abs=1e-5)
    assert found.high - found.low == pytest.approx(width, abs=1e-6)


@pytest.mark.parametrize("text", ["", "never", "1767323045"])
def test_what_names_no_moment_is_none(text: str) -> None:
    assert moment(text) is None


def test_sure_and_possible_differ_between_the_bounds() -> None:
    start = Span(100.0, 101.0)
    assert judge_seen(Span(101.0, 101.1), start).sure
    assert not judge_seen(Span(100.5, 100.6), start).sure
    assert judge_seen(Span(100.5, 100.6), start).possible
    assert not judge_seen(Span(99.0, 99.9), start).possible
