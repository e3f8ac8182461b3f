# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The timers for a controller in docs/examples: systemd finds no fault in them, each starts what there is, and each playbook exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

COLLECTION = Path(__file__).parents[3]
EXAMPLES = COLLECTION / "docs" / "examples" / "systemd"
TIMERS = sorted(EXAMPLES.glob("*.timer"))


def setting(file: Path, name: str) -> str:
    """The value of one setting of a unit file."""
    (value,) = [line.partition("=")[2] for line in file.read_text().splitlines() if line.startswith(f"{name}=")]
    return value


def verified(directory: Path, timer: Path) -> str:
    """What systemd says to *timer* and the service it starts."""
    unit = setting(timer, "Unit")
    service = (EXAMPLES / "muster-rotate@.service").read_text().replace("/usr/bin/ansible-playbook", "/bin/true")
    for name, text in (("muster-rotate@.service", service), (unit, service), (timer.name, timer.read_text())):
        (directory / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(directory / timer.name), str(directory / unit)], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("timer", TIMERS, ids=lambda timer: timer.stem)
def test_systemd_finds_no_fault_in_a_timer_and_what_it_starts(timer: Path, tmp_path: Path) -> None:
    assert verified(tmp_path, timer) == ""
    calendar = setting(timer, "OnCalendar")
    subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, check=True, timeout=60)


def test_that_check_would_see_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "muster-broken.timer"
    broken.write_text(TIMERS[0].read_text().replace("RandomizedDelaySec=", "RandomizedDelaySec=soon"))
    assert "soon" in verified(tmp_path, broken)


@pytest.mark.parametrize("timer", TIMERS, ids=lambda timer: timer.stem)
def test_each_instance_names_a_playbook_and_a_file_of_variables_that_exist(timer: Path) -> None:
    found = re.fullmatch(r"muster-rotate@([a-z]+)\.service", setting(timer, "Unit"))
    assert found is not None
    settings = dict(line.split("=", 1) for line in (EXAMPLES / f"{found[1]}.env").read_text().splitlines() if "=" in line and not line.startswith("#"))
    namespace, playbook = settings["PLAYBOOK"].rsplit(".", 1)
    assert namespace == "muster.agents"
    assert (COLLECTION / "playbooks" / f"{playbook}.yml").is_file()
    for word in shlex.split(settings["ARGUMENTS"]):
        if word.startswith("@/etc/muster/"):
            given = yaml.safe_load((EXAMPLES / word.rpartition("/")[2]).read_text())
            known = yaml.safe_load((COLLECTION / "roles" / "rotation" / "defaults" / "main.yml").read_text())
            assert set(given) <= set(known)
