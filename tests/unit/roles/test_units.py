# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The units of the role service: which ones a binary gets, what is in them, and what systemd says about them."""

from __future__ import annotations

import base64
import subprocess
import typing as t
from pathlib import Path

import pytest
from role_files import COLLECTION, Variables

TEMPLATE = COLLECTION / "roles" / "service" / "templates" / "unit.service.j2"
SHIPPED_HELP = "Usage: status [OPTIONS]\n  --daemon\n  --compose-mode\n"
DOCUMENTED_HELP = "usage: status-panel [-h] {serve} ...\n"


def units(help_text: str = DOCUMENTED_HELP, **given: t.Any) -> dict[str, list[str]]:
    """Return unit name -> lines for a binary that prints *help_text*. The command is one that exists wherever the tests run."""
    found = {}
    variables = Variables("service", _service_help={"stdout": help_text}, **{"agent_binary_path": "/bin/true", **given})
    for unit in variables.value("_service_layout")["units"]:
        variables.all["_service_unit"] = unit
        found[unit["name"]] = variables.value(f"lookup('ansible.builtin.template', '{TEMPLATE}')").splitlines()
    return found


def written(tmp_path: Path, lines: t.Sequence[str]) -> Path:
    file = tmp_path / "status-panel.service"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_documented_agent_is_one_process() -> None:
    (lines,) = units().values()
    assert "ExecStart=/bin/true serve --port 5000" in lines
    assert "KillSignal=SIGTERM" in lines


def test_shipped_agent_is_two_processes_and_its_daemon_stops_on_sigint() -> None:
    found = units(SHIPPED_HELP, agent_port=5100)
    assert list(found) == ["status-panel.service", "status-panel-api.service"]
    assert "ExecStart=/bin/true --config /opt/agent/config.json" in found["status-panel.service"]
    assert "KillSignal=SIGINT" in found["status-panel.service"]
    assert "ExecStart=/bin/true --config /opt/agent/config.json serve --port 5100" in found["status-panel-api.service"]


def test_the_guides_limits_and_places_are_kept() -> None:
    (lines,) = units().values()
    for line in ("MemoryMax=512M", "CPUQuota=50%", "WorkingDirectory=/opt/agent", "EnvironmentFile=/opt/agent/.env", "User=root",
                 "Restart=on-failure", "RestartSec=10", "NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=strict", "ProtectHome=yes",
                 "LogsDirectory=status-panel", "StateDirectory=status-panel"):
        assert line in lines


def test_operator_can_change_limits_and_sandbox() -> None:
    (lines,) = units(
        service_limits={"MemoryMax": "1G"}, service_hardening={"ProtectHome": "read-only", "MemoryDenyWriteExecute": []},
        service_read_write_paths=["/opt/stacks"], service_capabilities=["CAP_NET_ADMIN"], service_address_allow=["10.0.0.0/8"],
        service_address_deny=["any"]).values()
    for line in ("MemoryMax=1G", "ProtectHome=read-only", "ReadWritePaths=/opt/agent/.status /etc/status-panel /opt/stacks",
                 "CapabilityBoundingSet=CAP_NET_ADMIN", "IPAddressAllow=10.0.0.0/8", "IPAddressDeny=any"):
        assert line in lines
    assert not [line for line in lines if line.startswith("MemoryDenyWriteExecute")]


def test_docker_is_out_of_reach_unless_the_agent_has_that_capability() -> None:
    (without,) = units(agent_capabilities=["logs"], agent_user="panel").values()
    (having,) = units(agent_capabilities=["docker"], agent_user="panel").values()
    (denied,) = units(agent_capabilities=["docker"], service_docker_access="deny").values()
    assert "InaccessiblePaths=-/run/docker.sock" in denied
    assert "InaccessiblePaths=-/run/docker.sock" in without
    assert "SupplementaryGroups=docker" not in without
    assert "SupplementaryGroups=docker" in having
    assert not [line for line in having if line.startswith("InaccessiblePaths")]


@pytest.mark.parametrize("help_text", [DOCUMENTED_HELP, SHIPPED_HELP])
@pytest.mark.parametrize("given", [{}, {"agent_capabilities": ["docker"]}, {"service_capabilities": ["CAP_NET_ADMIN"], "service_address_deny": ["any"]}])
def test_systemd_finds_no_fault_in_a_unit(help_text: str, given: dict[str, t.Any], tmp_path: Path) -> None:
    for lines in units(help_text, **given).values():
        done = subprocess.run(
            ["systemd-analyze", "verify", str(written(tmp_path, lines))], capture_output=True, text=True, check=False, timeout=60)
        # It exits with 0 for unknown directives and bad values: silence is what counts.
        assert done.stdout + done.stderr == ""


def test_that_check_would_see_a_fault(tmp_path: Path) -> None:
    (lines,) = units().values()
    broken = [line.replace("ProtectProc=invisible", "ProtectProc=perhaps") for line in lines]
    done = subprocess.run(["systemd-analyze", "verify", str(written(tmp_path, broken))], capture_output=True, text=True, check=False, timeout=60)
    assert "perhaps" in done.stdout + done.stderr


@pytest.mark.parametrize("given", [{}, {"agent_capabilities": ["docker"]}])
def test_systemd_calls_a_unit_well_contained_although_it_runs_as_root(given: dict[str, t.Any], tmp_path: Path) -> None:
    for lines in units(**given).values():
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", str(written(tmp_path, lines))],
            capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout[-400:]


HEADERS = {
    "x86_64": "7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00 02 00 3e 00",
    "aarch64": "7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00 02 00 b7 00",
    "s390x": "7f 45 4c 46 02 02 01 00 00 00 00 00 00 00 00 00 00 02 00 16",
    "script": "23 21 2f 75 73 72 2f 62 69 6e 2f 70 79 74 68 6f 6e 33 0a 0a",
}


@pytest.mark.parametrize(("header", "host", "wrong"), [
    ("x86_64", "x86_64", False), ("aarch64", "x86_64", True), ("x86_64", "aarch64", True), ("s390x", "x86_64", True), ("s390x", "s390x", False),
    ("script", "x86_64", False), ("script", "riscv64", False),
])
def test_a_binary_for_another_machine_is_told_by_its_header(header: str, host: str, wrong: bool) -> None:
    variables = Variables("service", _service_controller_header={"stdout": HEADERS[header]}, ansible_facts={"architecture": host})
    assert variables.value("_service_wrong_machine | bool") is wrong


GOOD = "ab" * 32
URL = {"agent_binary_url": "https://r.example.com/a", "agent_binary_checksum": f"sha256:{GOOD}"}


@pytest.mark.parametrize(("given", "installed", "due"), [
    (URL, {"exists": False}, True),
    (URL, {"exists": True, "checksum": GOOD}, False),
    (URL, {"exists": True, "checksum": "cd" * 32}, True),
    ({**URL, "service_download_on": "none"}, {"exists": True, "checksum": "cd" * 32}, False),
    ({}, {"exists": True, "checksum": "cd" * 32}, False),
    ({"agent_binary_src": "/a", "_service_source": {"stat": {"exists": True, "checksum": GOOD}}}, {"exists": True, "checksum": GOOD}, False),
    ({"agent_binary_src": "/a", "_service_source": {"stat": {"exists": True, "checksum": GOOD}}}, {"exists": False}, True),
])
def test_binary_is_replaced_only_when_it_differs(given: dict[str, t.Any], installed: dict[str, t.Any], due: bool) -> None:
    assert Variables("service", _service_installed={"stat": installed}, **given).value("_service_binary_due | bool") is due


RUNS = {"_service_found": {"files": [{"path": "/var/lib/muster/service/stacker.running"}]}, "_service_compared": {"changed": False}}


@pytest.mark.parametrize(("given", "restart"), [
    (RUNS, False),
    ({"_service_found": {"files": []}}, True),
    ({**RUNS, "_service_compared": {"changed": True}}, True),
    ({**RUNS, "_registration_result": {"name": "n-1", "pending_restart": True}}, True),
    ({**RUNS, "_environment_result": {"name": "n-1", "pending_restart": True}}, True),
    ({**RUNS, "_environment_result": {"name": "n-2", "pending_restart": True}}, False),
    ({**RUNS, "_service_restart_forced": True}, True),
])
def test_restart_follows_what_runs_and_what_the_receipt_says(given: dict[str, t.Any], restart: bool) -> None:
    assert Variables("service", **given).value("_service_restart | bool") is restart


GREEN, RED = {"msg": "Well.", "previously_committed": True}, {"msg": "It is not well.", "previously_committed": False}


@pytest.mark.parametrize(("result", "service", "way_back", "said"), [
    (GREEN, {}, True, "put back"),
    (RED, {}, False, "stopped and disabled"),
    (RED, {"control_plane": "stacker", "takes_over": True}, True, "put back"),
    (RED, {"control_plane": "stacker", "proved_before": True}, True, "put back"),
    (RED, {"control_plane": "stacker", "takes_over": False, "binary_replaced": True}, False, "stopped and disabled"),
    (RED, {"control_plane": "oxmon", "takes_over": True}, False, "stopped and disabled"),
])
def test_gate_goes_back_only_to_what_was_there(result: dict[str, t.Any], service: dict[str, t.Any], way_back: bool, said: str) -> None:
    variables = Variables("health_gate", _health_gate_result=result, _service_outcome=service)
    assert variables.value("_health_gate_upgrade | bool") is way_back
    assert said in variables.value("_health_gate_done")


@pytest.mark.parametrize(("proven", "previous", "installed", "replaced", "back"), [
    ("aa", "aa", "bb", False, True),
    ("bb", "aa", "bb", False, False),
    ("cc", "aa", "bb", False, False),
    ("", "aa", "bb", True, True),
    ("aa", "aa", "aa", True, False),
    ("aa", "", "bb", True, False),
])
def test_binary_goes_back_when_it_is_the_last_that_was_proved(proven: str, previous: str, installed: str, replaced: bool, back: bool) -> None:
    variables = Variables(
        "health_gate",
        _health_gate_proven={"content": base64.b64encode(f"binary={proven}\nlayout=x\n".encode()).decode()},
        _health_gate_previous={"stat": {"exists": bool(previous), **({"checksum": previous} if previous else {})}},
        _health_gate_installed={"stat": {"exists": True, "checksum": installed}},
        _service_outcome={"control_plane": "stacker", "takes_over": replaced, "binary_replaced": replaced})
    assert variables.value("_health_gate_binary_back | bool") is back


@pytest.mark.parametrize(("proven", "installed", "displaces"), [
    ("", "aa" * 32, True),
    ("aa" * 32, "aa" * 32, True),
    ("aa" * 32, "bb" * 32, False),
    ("aa" * 20, "bb" * 32, True),
])
def test_a_binary_that_never_passed_the_gate_does_not_displace_the_one_that_did(proven: str, installed: str, displaces: bool) -> None:
    content = base64.b64encode(f"binary={proven}\nlayout=x\n".encode()).decode()
    variables = Variables("service", _service_proven={"content": content}, _service_installed={"stat": {"exists": True, "checksum": installed}})
    assert variables.value("_service_binary_unproven | bool") is not displaces
