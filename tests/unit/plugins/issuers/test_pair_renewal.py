# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair that waits beside the one in use: what keeps it, what takes its turn, and what throws it away."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure

from .pairs import Authority, Machine


def _held(machine: Machine) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (machine.unit / "stage").glob("*")}


def test_it_outlives_what_is_done_to_the_pair_in_use_and_goes_when_it_is_installed(authority: Authority, machine: Machine) -> None:
    options = authority.options()
    machine.issue(**options)
    renewal = machine.renewal(**options)
    before = machine.leaf()
    certificate = renewal.certified()
    assert machine.leaf() == before
    waiting = _held(machine)
    assert sorted(waiting) == ["certificate.pem", "key.pem", "request.pem"]
    assert waiting["certificate.pem"].decode() == certificate
    assert {path.stat().st_mode & 0o777 for path in (machine.unit / "stage").iterdir()} == {0o600}
    assert renewal.holds(certificate)
    assert not machine.issue(**options)["changed"]
    machine.key.resolve().chmod(0o644)
    (machine.unit / "generations" / ".new").mkdir()
    assert machine.issue(**options)["action"] == "repaired"
    assert machine.issue(**options, include_chain=False)["changed"] is False
    assert machine.renewal(**options).holds(certificate)
    assert _held(machine) == waiting

    machine.renewal(**options).install(certificate)
    assert x.certificate_pem(machine.leaf()).decode() in certificate
    assert machine.is_whole()
    assert machine.is_tidy()
    assert renewal.holds(certificate)
    assert renewal.holds(x.certificate_pem(before).decode()), "the way back"


def test_a_look_for_it_changes_nothing_whatever_the_options_say(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options())
    certificate = machine.renewal(**authority.options()).certified()
    before = machine.everything()
    assert machine.renewal(**authority.options(), key_type="ed25519").holds(certificate)
    assert machine.everything() == before


def test_another_key_takes_its_turn(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options())
    certificate = machine.renewal(**authority.options()).certified()
    machine.issue(**authority.options(), key_type="ed25519")
    assert machine.is_tidy()
    assert not machine.renewal(**authority.options()).holds(certificate)


@pytest.mark.parametrize("plain", [False, True])
def test_the_way_back_throws_it_away(authority: Authority, machine: Machine, plain: bool) -> None:
    if plain:
        authority.by_hand(machine, x.Request(subject=(("CN", "agent-web"),)))
    else:
        machine.issue(**authority.options())
    renewal = machine.renewal(**authority.options())
    before = x.certificate_pem(machine.leaf()).decode()
    certificate = renewal.certified()
    renewal.install(before)
    assert renewal.holds(certificate)
    renewal.install(before, abandon=True)
    assert not renewal.holds(certificate)
    assert not (machine.unit / "stage").exists()
    assert x.certificate_pem(machine.leaf()).decode() == before


def test_a_certificate_of_another_key_is_not_kept(authority: Authority, machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    foreign = other.renewal(**authority.options()).certified()
    machine.renewal(**authority.options()).certified()
    waiting = _held(machine)
    with pytest.raises(HostFailure, match="no key that waits on this host belongs to the certificate"):
        machine.keep(foreign)
    assert _held(machine) == waiting
