# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the profile makes of an operator's variables: the file that the metrics agent reads, its unit, and what is refused."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest
from reference_agent.metrics_agent import Config, flat_toml
from role_files import COLLECTION, Variables

from ansible_collections.muster.agents.plugins.action.agent_register import ARGUMENT_SPEC
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _adoption
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer

AGENT = {"agent_id": "2124468213811213927", "name": "n-1"}
TOKEN = "Z+F5eECA3ix654Gbjo/YuhJQ3mVqCiR7E7drzFLnODk="
FILE_DEFAULTS = {name: option.get("default") for name, option in ARGUMENT_SPEC["files"]["options"].items()}
PATH = "/etc/oxmon/agent.toml"


def variables(role: str = "registration", **given: t.Any) -> Variables:
    return Variables(role, "oxmon", **{"agent_control_plane_url": "https://oxmon.example.com:8443/", **given})


def rendered(**given: t.Any) -> t.Any:
    """Return the one file, as agent_register would deliver it."""
    known = variables(**given)
    files = [{**FILE_DEFAULTS, **entry} for entry in known.value("_agent_files")]
    (file,) = Renderer(known.templar(), files, known.all)(AGENT, {"token": Secret(TOKEN)})
    return file


def settings(**given: t.Any) -> dict[str, t.Any]:
    return flat_toml(rendered(**given).content.decode())


def test_file_has_the_agents_keys_and_its_token_quoted() -> None:
    assert settings() == {
        "agent_id": "n-1", "server_endpoint": "oxmon.example.com:9090", "tls": False, "collection_interval_secs": 10, "buffer_max_size": 1000,
        "auth_token": TOKEN}


def test_file_is_one_that_the_reference_agent_takes(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(rendered(agent_settings={"collection_interval_secs": 2}).content)
    config = Config.load(str(path))
    assert (config.agent_id, config.address, config.collection_interval_secs, config.auth_token) == ("n-1", ("oxmon.example.com", 9090), 2, TOKEN)


def test_file_can_be_read_by_the_agents_group_and_by_nobody_else() -> None:
    file = rendered(agent_user="metrics")
    assert (file.path, file.owner, file.group, file.mode) == (PATH, "root", "metrics", "0640")


@pytest.mark.parametrize(("given", "endpoint"), [
    ({}, "oxmon.example.com:9090"), ({"agent_grpc_endpoint": "10.0.0.1:19090"}, "10.0.0.1:19090"),
    ({"agent_grpc_endpoint": "http://10.0.0.1:19090"}, "10.0.0.1:19090"),
    ({"agent_grpc_endpoint": "10.0.0.1:19090", "agent_settings": {"server_endpoint": "127.0.0.1:9090"}}, "127.0.0.1:9090"),
    ({"agent_control_plane_url": "http://[2001:db8::1]:8080"}, "[2001:db8::1]:9090"), ({"agent_control_plane_url": "https://o.test"}, "o.test:9090"),
])
def test_reports_go_where_they_are_told_else_to_the_usual_port(given: dict[str, t.Any], endpoint: str) -> None:
    assert settings(**given)["server_endpoint"] == endpoint


def test_operators_settings_win_and_unknown_ones_are_kept() -> None:
    found = settings(agent_settings={"collection_interval_secs": 60, "zone": "a\"b"})
    assert (found["collection_interval_secs"], found["buffer_max_size"], found["zone"]) == (60, 1000, 'a"b')


def test_vault_gets_the_token_and_the_agent_none_of_vault() -> None:
    given = variables(agent_vault={"url": "https://vault.example.com"}, agent_vault_prefix="/secret/data/oxmon/")
    assert given.value("_agent_vault_paths") == [{"path": "secret/data/oxmon/n-1", "fields": {"token": "token"}}]
    assert given.value("_agent_token_policy") == {}
    usual = variables(agent_vault={"url": "https://vault.example.com"})
    assert usual.value("_agent_vault_paths")[0]["path"] == "secret/data/oxmon/agents/n-1"
    assert variables().value("_agent_vault_paths") == []


def test_a_token_in_a_hand_written_file_is_found() -> None:
    (place,) = variables().value("_agent_adopt_from")
    assert _adoption._loose_env(f'# by hand\nagent_id = "n-1"\nauth_token = "{TOKEN}"\n')[place["secrets"]["token"]] == TOKEN
    assert (place["path"], place["agent_id"]) == (PATH, "")


@pytest.mark.parametrize(("given", "named"), [
    ({"agent_settings": {"tls": True}}, "would go on in clear text"),
    ({"agent_settings": {"server_endpoint": "https://oxmon.example.com:443"}}, "would go on in clear text"),
    ({"agent_grpc_endpoint": "https://oxmon.example.com:443"}, "would go on in clear text"),
    ({"agent_settings": {"server_endpoint": "oxmon.example.com"}}, "server_endpoint"),
    ({"agent_settings": {"agent_id": "another"}}, "agent_settings.agent_id"),
    ({"agent_settings": {"auth_token": "x"}}, "agent_settings.auth_token"),
    ({"agent_settings": {"collection_interval_secs": 0}}, "collection_interval_secs"),
    ({"agent_settings": {"collection_interval_secs": "often"}}, "collection_interval_secs"),
    ({"agent_settings": {"buffer_max_size": 50}}, "buffer_max_size"),
    ({"agent_settings": {"server": {"a": 1}}}, "section"),
])
def test_bad_input_is_refused_with_one_sentence_that_names_it(given: dict[str, t.Any], named: str) -> None:
    (complaint,) = variables("agent", **given).value("_agent_complaints")
    assert named in complaint
    assert complaint.startswith("agent_settings")


@pytest.mark.parametrize("given", [
    {}, {"agent_settings": {"tls": False, "agent_id": "n-1"}}, {"agent_settings": {"server_endpoint": "http://[::1]:9090/"}},
    {"agent_grpc_endpoint": "https://oxmon.example.com:443", "agent_settings": {"server_endpoint": "127.0.0.1:9090"}},
])
def test_good_input_is_not_complained_about(given: dict[str, t.Any]) -> None:
    assert variables("agent", **given).value("_agent_complaints") == []


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    template = COLLECTION / "roles" / "service" / "templates" / "unit.service.j2"
    given = variables("service", agent_binary_path="/bin/true")
    (unit,) = given.value("_service_layout")["units"]
    given.all["_service_unit"] = unit
    text = given.value(f"lookup('ansible.builtin.template', '{template}')")
    for line in ("ExecStart=/bin/true /etc/oxmon/agent.toml", "KillSignal=SIGINT", "WorkingDirectory=/var/lib/oxmon", "StateDirectory=oxmon",
                 "Restart=on-failure", "MemoryMax=256M", "ProtectProc=default", "NoNewPrivileges=yes"):
        assert line in text.splitlines()
    file = tmp_path / unit["name"]
    file.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_binary_is_asked_for_nothing_and_serves_nothing() -> None:
    given = variables("service")
    assert given.value("_agent_profile_binary_probe") == []
    assert given.value("_agent_profile_health_url") == ""
    assert int(given.value("_agent_profile_report_interval")) == 10
