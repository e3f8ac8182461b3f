# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cert_check by ansible-playbook: against a real control plane's certificate, from controller and host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .agents import World
from .authority import Authority, openssl
from .controller import Controller

CHECK = "muster.agents.cert_check"
PASSPHRASE = "passphrase-of-a-key-91ad"


def port(world: World) -> str:
    """Host and port of a control plane that is there."""
    return world.stackers["documented"].url.removeprefix("https://")


def test_a_server_and_its_files_are_checked_from_controller_and_host(world: World, controller: Controller, tmp_path: Path) -> None:
    certificate = openssl("s_client", "-connect", port(world), "-servername", "localhost")
    served = tmp_path / "served.pem"
    served.write_text(certificate[certificate.index("-----BEGIN"):certificate.index("-----END CERTIFICATE-----") + 26])
    authority = Authority(tmp_path, PASSPHRASE)
    authority.by_hand(tmp_path / "agent", "agent-7")
    key = tmp_path / "agent" / "agent.key"
    openssl("rsa", "-in", str(key), "-aes256", "-passout", f"pass:{PASSPHRASE}", "-out", str(tmp_path / "locked.key"))
    common = {
        "endpoints": [{"host": port(world), "file": str(served)}, "localhost:1"], "ca_certs": [str(world.ca_file), str(authority.root_file)],
        "files": [
            {"path": str(tmp_path / "agent" / "agent.crt"), "key": str(key), "purpose": "client", "name": "agent"},
            {"path": str(tmp_path / "agent" / "agent.crt"), "key": str(tmp_path / "locked.key"), "name": "locked"},
        ],
        "intermediates": [str(authority.issuing_file)], "ignore": ["missing_intermediate"], "retries": 0,
    }
    (tmp_path / "passphrase-file").write_text(f"{PASSPHRASE}\n")
    options: dict[str, Mapping[str, Any]] = {
        "controller": {**common, "passphrase": PASSPHRASE, "prometheus_file": str(tmp_path / "m.prom"), "json_file": str(tmp_path / "m.json")},
        "host": {**common, "from": "host", "passphrase_file": str(tmp_path / "passphrase-file")},
    }
    for arguments in (["--check"], ["-vvvv"]):
        done = controller.each(CHECK, options, arguments=arguments).good()
        assert (tmp_path / "m.prom").exists() is (arguments != ["--check"])
        assert PASSPHRASE not in done.output
    results = {host: done.result(host)["results"] for host in options}
    for host, items in results.items():
        assert [(item["verdict"], item["reason"]) for item in items] == [("ok", "ok"), ("unreachable", "refused"), ("ok", "ok"), ("ok", "ok")], items
        assert (items[0]["file_match"], items[0]["chain_valid"], items[0]["host_match"]) == (True, True, True)
        assert [item["key_match"] for item in items] == [None, None, True, True]
        assert {item["source"] for item in items} == {host}
    same = ("fingerprint_sha256", "not_after", "chain_depth", "tls_version", "verdict", "reason", "problems", "subject_alt_names")
    assert [{name: item[name] for name in same} for item in results["host"]] == [{name: item[name] for name in same} for item in results["controller"]]
    assert json.loads((tmp_path / "m.json").read_text())["summary"]["unreachable"] == 1
    # The memory of the second run: the first was a dry one.
    assert results["controller"][1]["failures"] == 1


def test_the_task_fails_when_told_to_and_still_tells_everything(controller: Controller, tmp_path: Path) -> None:
    options = {"files": [str(tmp_path / "nothing.pem")], "fail_on": ["unreachable"]}
    done = controller.each(CHECK, {"bad": options, "wrong": {"files": [], "endpoints": ["a:b"]}})
    assert done.code != 0
    assert (done.result("bad")["failed"], done.result("bad")["reason"], done.result("bad")["summary"]["unreachable"]) == (True, "file_missing", 1)
    assert (done.result("wrong")["failed"], done.result("wrong")["reason"]) == (True, "invalid_input")
