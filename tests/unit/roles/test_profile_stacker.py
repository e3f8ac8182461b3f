# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the profile makes of an operator's variables: the files that both Status Panel agents read, and what is refused."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from role_files import Variables

from ansible_collections.muster.agents.plugins.action.agent_register import ARGUMENT_SPEC
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._formats import parse_env
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer

AGENT = {"agent_id": "42", "name": "n-1"}
SECRETS = {"token": Secret("t0ken-of-the-agent"), "vault_token": Secret("s.own-vault-token")}
VAULT = {"url": "https://vault.example.com:8200/", "auth_method": "token", "token_file": "/secret"}
FILE_DEFAULTS = {name: option.get("default") for name, option in ARGUMENT_SPEC["files"]["options"].items()}

# The guide's .env, and what the shipped agent reads beside it.
GUIDE = {"AGENT_ID", "AGENT_TOKEN", "DEPLOYMENT_HASH", "STACKER_URL", "AGENT_VERSION", "AGENT_PORT", "RATE_LIMIT_PER_MIN", "REPLAY_TTL_SECS",
         "SIGNATURE_MAX_SKEW_SECS", "METRICS_INTERVAL_SECS"}
SHIPPED = {"DASHBOARD_URL", "STATUS_PANEL_BIND", "NO_COLOR"}
WITH_VAULT = {"VAULT_ADDRESS", "VAULT_TOKEN", "VAULT_AGENT_PATH_PREFIX"}


def rendered(**given: t.Any) -> dict[str, t.Any]:
    """Return path -> file as agent_register would deliver it."""
    variables = Variables("registration", agent_version="1.0.0", **given)
    files = [{**FILE_DEFAULTS, **entry} for entry in variables.value("_agent_files")]
    return {file.path: file for file in Renderer(variables.templar(), files, variables.all)(AGENT, SECRETS)}


def environment(**given: t.Any) -> dict[str, str]:
    return parse_env(rendered(**given)["/opt/agent/.env"].content.decode())


def test_environment_has_every_variable_of_both_agents() -> None:
    found = environment(agent_vault=VAULT)
    assert set(found) == GUIDE | SHIPPED | WITH_VAULT
    assert found["AGENT_TOKEN"] == "t0ken-of-the-agent"
    assert found["DEPLOYMENT_HASH"] == "n-1"
    assert found["VAULT_TOKEN"] == "s.own-vault-token"
    assert found["VAULT_AGENT_PATH_PREFIX"] == "status_panel"


def test_addresses_have_no_trailing_slash_since_the_shipped_agent_only_joins_strings() -> None:
    found = environment(agent_vault=VAULT)
    assert found["DASHBOARD_URL"] == found["STACKER_URL"] == "https://stacker.example.com"
    assert found["VAULT_ADDRESS"] == "https://vault.example.com:8200"


@pytest.mark.parametrize("given", [{}, {"agent_vault": VAULT, "agent_vault_refresh": False}])
def test_without_vault_its_variables_are_left_out_not_blank(given: dict[str, t.Any]) -> None:
    assert set(environment(**given)) == GUIDE | SHIPPED


def test_operators_settings_replace_those_of_the_profile() -> None:
    found = environment(agent_environment={"METRICS_INTERVAL_SECS": 5, "RUST_LOG": "info,agent='x'"})
    assert found["METRICS_INTERVAL_SECS"] == "5"
    assert found["RUST_LOG"] == "info,agent='x'"


def test_json_files_are_what_the_agents_read() -> None:
    files = rendered(agent_contact="ops@example.com")
    assert json.loads(files["/opt/agent/config.json"].content) == {"reqdata": {"email": "ops@example.com"}}
    assert json.loads(files["/var/lib/stacker/agent.json"].content) == {"agent_id": "42", "agent_token": "t0ken-of-the-agent"}
    assert {file.mode for file in files.values()} == {"0600"}


def test_files_belong_to_the_agents_account() -> None:
    assert {(file.owner, file.group) for file in rendered(agent_user="panel").values()} == {("panel", "panel")}


def test_cas_of_the_controller_become_the_agents_trust(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    one.write_text("ONE\n")
    two.write_text("TWO\n")
    files = rendered(agent_ca_cert=str(one), agent_vault={**VAULT, "ca_cert": str(two)})
    assert files["/etc/status-panel/ca.pem"].content == b"ONE\nTWO\n"
    assert files["/etc/status-panel/ca.pem"].mode == "0644"
    assert parse_env(files["/opt/agent/.env"].content.decode())["SSL_CERT_FILE"] == "/etc/status-panel/ca.pem"


def test_a_bundle_on_the_host_is_named_and_nothing_delivered() -> None:
    files = rendered(agent_ca_cert="/ca.pem", agent_ca_bundle="/etc/ssl/certs/ca-certificates.crt")
    assert "/etc/status-panel/ca.pem" not in files
    assert parse_env(files["/opt/agent/.env"].content.decode())["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"


def test_operators_file_takes_the_place_of_the_profiles(tmp_path: Path) -> None:
    mine = tmp_path / "mine.j2"
    mine.write_text("MINE={{ muster_secret.token }}\n")
    files = rendered(agent_files=[{"path": "/opt/agent/.env", "src": str(mine), "format": "env"}])
    assert files["/opt/agent/.env"].content == b"MINE=t0ken-of-the-agent\n"
    assert "/opt/agent/config.json" in files


def test_both_leaves_are_written_and_the_agent_gets_a_token_of_its_own() -> None:
    variables = Variables("registration", agent_vault=VAULT, agent_vault_prefix="/status_panel/data/")
    assert variables.value("_agent_vault_paths") == [
        {"path": "status_panel/data/n-1/token", "fields": {"token": "token"}},
        {"path": "status_panel/data/n-1/status_panel_token", "fields": {"token": "token"}},
    ]
    assert variables.value("_agent_token_policy") == {"secret": "vault_token"}


@pytest.mark.parametrize("given", [
    {"agent_vault": {}},
    {"agent_vault": VAULT, "agent_vault_refresh": False},
    {"agent_vault": VAULT, "agent_secrets": [{"name": "vault_token", "file": "/mine"}]},
])
def test_no_token_is_minted_for_an_agent_that_does_not_use_it(given: dict[str, t.Any]) -> None:
    assert Variables("registration", **given).value("_agent_token_policy") == {}


def test_without_vault_nothing_is_written_there() -> None:
    assert Variables("registration").value("_agent_vault_paths") == []


SUM = "sha256:" + "ab" * 32


@pytest.mark.parametrize(("given", "named"), [
    ({"agent_name": " "}, "agent_name"),
    ({"agent_control_plane_url": ""}, "agent_control_plane_url"),
    ({"agent_binary_url": "https://r.example.com/a"}, "agent_binary_checksum"),
    ({"agent_binary_url": "https://r.example.com/a", "agent_binary_checksum": "md5:ab"}, "agent_binary_checksum"),
    ({"agent_binary_url": "https://r.example.com/a", "agent_binary_src": "/a", "agent_binary_checksum": SUM}, "agent_binary_src"),
    ({"agent_port": 65536}, "agent_port"),
    ({"agent_user": "Agent Smith"}, "agent_user"),
    ({"agent_environment": {"MY-NAME": 1}}, "agent_environment"),
])
def test_bad_input_is_refused_with_one_sentence_that_names_it(given: dict[str, t.Any], named: str) -> None:
    complaints = Variables("agent", **given).value("_agent_complaints")
    assert len(complaints) == 1
    assert complaints[0].startswith(named) or named in complaints[0].split(":")[0]
    assert ": " in complaints[0]


@pytest.mark.parametrize("given", [
    {},
    {"agent_binary_url": "https://r.example.com/a", "agent_binary_checksum": SUM},
    {"agent_binary_url": "https://r.example.com/a", "agent_binary_checksum_waiver": True},
    {"agent_binary_src": "/a"},
])
def test_good_input_is_not_complained_about(given: dict[str, t.Any]) -> None:
    assert Variables("agent", **given).value("_agent_complaints") == []
