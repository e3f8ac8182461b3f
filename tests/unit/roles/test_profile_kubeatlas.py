# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the profile makes of an operator's variables: the guide's environment file, the pair it points to, and the unit."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest
from role_files import COLLECTION, Variables

from ansible_collections.muster.agents.plugins.action.agent_register import ARGUMENT_SPEC
from ansible_collections.muster.agents.plugins.action.cert_issue import ARGUMENT_SPEC as CERT_ISSUE
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._client_certificate import usable_certificate
from ansible_collections.muster.agents.plugins.plugin_utils._formats import parse_env
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer
from world.agent_pairs import issue

AGENT = {"agent_id": "5f6c", "name": "n-1", "service_type": "agent", "controller_name": "c-1"}
FILE_DEFAULTS = {name: option.get("default") for name, option in ARGUMENT_SPEC["files"]["options"].items()}
IDENTITY = {"agent_service_type": "agent", "agent_controller_name": "c-1", "agent_control_plane_url": "https://kubeatlas.example.com/"}
GUIDE = {"BACKEND_URL", "CERT_PATH", "KEY_PATH"}
OURS = {"AGENT_ID", "SERVICE_ID", "SERVICE_TYPE", "CONTROLLER_NAME", "HEARTBEAT_INTERVAL_SECS", "HEALTH_PORT"}


def variables(role: str = "registration", **given: t.Any) -> Variables:
    return Variables(role, "kubeatlas", **{**IDENTITY, **given})


def rendered(agent: dict[str, str] | None = None, secrets: dict[str, Secret] | None = None, **given: t.Any) -> dict[str, t.Any]:
    """Return path -> file as agent_register would deliver it."""
    known = variables(**given)
    files = [{**FILE_DEFAULTS, **entry} for entry in known.value("_agent_files")]
    return {file.path: file for file in Renderer(known.templar(), files, known.all)(agent or AGENT, secrets or {})}


def environment(**given: t.Any) -> dict[str, str]:
    return parse_env(rendered(**given)["/etc/kubeatlas/agent.env"].content.decode())


def test_environment_has_the_guides_variables_and_no_install_token() -> None:
    found = environment(agent_install_token="spent-by-the-enrolment")
    assert set(found) == GUIDE | OURS
    assert found["BACKEND_URL"] == "https://kubeatlas.example.com"
    assert (found["CERT_PATH"], found["KEY_PATH"]) == ("/etc/kubeatlas/certs/agent.crt", "/etc/kubeatlas/certs/agent.key")
    assert (found["AGENT_ID"], found["SERVICE_ID"]) == ("n-1", "5f6c")


def test_a_controller_has_no_controller() -> None:
    found = environment(agent={**AGENT, "service_type": "controller", "controller_name": ""}, agent_service_type="controller", agent_controller_name="")
    assert "CONTROLLER_NAME" not in found
    assert found["SERVICE_TYPE"] == "controller"


def test_install_token_goes_to_the_host_only_when_the_operator_says_so() -> None:
    own = environment(agent_secrets=[{"name": "install_token", "file": "/token"}], secrets={"install_token": Secret("t0ken-of-mine")})
    assert own["INSTALL_TOKEN"] == "t0ken-of-mine"
    named = environment(agent_environment={"INSTALL_TOKEN_PATH": "/etc/kubeatlas/secrets/install-token"})
    assert named["INSTALL_TOKEN_PATH"] == "/etc/kubeatlas/secrets/install-token"


def test_operators_settings_and_paths_win() -> None:
    found = environment(
        agent_environment={"HEARTBEAT_INTERVAL_SECS": 5}, agent_port=9191, agent_certificate_path="/srv/a.crt", agent_key_path="/srv/a.key")
    assert (found["HEARTBEAT_INTERVAL_SECS"], found["HEALTH_PORT"]) == ("5", "9191")
    assert (found["CERT_PATH"], found["KEY_PATH"]) == ("/srv/a.crt", "/srv/a.key")


def test_cas_of_the_controller_become_the_agents_trust(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("ONE\n")
    files = rendered(agent_ca_cert=str(ca))
    assert (files["/etc/kubeatlas/certs/ca.crt"].content, files["/etc/kubeatlas/certs/ca.crt"].mode) == (b"ONE\n", "0644")
    assert parse_env(files["/etc/kubeatlas/agent.env"].content.decode())["CA_PATH"] == "/etc/kubeatlas/certs/ca.crt"
    assert environment(agent_ca_bundle="/etc/ssl/certs/ca-certificates.crt")["CA_PATH"] == "/etc/ssl/certs/ca-certificates.crt"


def test_environment_file_is_the_agents_alone() -> None:
    (file,) = rendered(agent_user="atlas").values()
    assert (file.owner, file.group, file.mode) == ("atlas", "atlas", "0600")


def test_pair_is_described_in_the_words_of_cert_issue() -> None:
    pair = variables(agent_user="atlas").value("_agent_profile_certificate")
    assert set(pair) <= set(CERT_ISSUE)
    assert pair["subject"] == {"C": "US", "O": "KubeAtlas", "CN": "agent-n-1"}
    assert (pair["key_mode"], pair["owner"], pair["valid_days"]) == ("0600", "atlas", 365)
    assert variables(agent_service_type="controller").value("_agent_profile_certificate")["subject"]["CN"] == "controller-n-1"


def test_pair_with_the_profiles_usage_is_one_that_the_enrolment_takes() -> None:
    assert usable_certificate(issue("agent-n-1").cert, "/etc/kubeatlas/certs/agent.crt").signs


def test_longest_name_fits_into_the_subject() -> None:
    assert len(variables(agent_service_type="controller", agent_name="n" * 53).value("_agent_profile_certificate")["subject"]["CN"]) == 64


def test_vault_gets_certificate_and_id_and_no_key() -> None:
    given = variables(agent_vault={"url": "https://vault.example.com"}, agent_vault_prefix="/secret/data/atlas/")
    assert given.value("_agent_vault_paths") == [{"path": "secret/data/atlas/n-1", "fields": {"certificate": "certificate", "service_id": "agent_id"}}]
    assert given.value("_agent_token_policy") == {}
    assert variables().value("_agent_vault_paths") == []


@pytest.mark.parametrize(("given", "named"), [
    ({"agent_service_type": ""}, "agent_service_type"),
    ({"agent_service_type": "node"}, "agent_service_type"),
    ({"agent_controller_name": " "}, "agent_controller_name"),
])
def test_bad_input_is_refused_with_one_sentence_that_names_it(given: dict[str, t.Any], named: str) -> None:
    (complaint,) = variables("agent", **given).value("_agent_complaints")
    assert complaint.startswith(named)


def test_good_input_is_not_complained_about() -> None:
    assert variables("agent").value("_agent_complaints") == []
    assert variables("agent", agent_service_type="controller", agent_controller_name="").value("_agent_complaints") == []


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    template = COLLECTION / "roles" / "service" / "templates" / "unit.service.j2"
    given = variables("service", agent_binary_path="/bin/true", _service_help={})
    (unit,) = given.value("_service_layout")["units"]
    given.all["_service_unit"] = unit
    text = given.value(f"lookup('ansible.builtin.template', '{template}')")
    for line in ("ExecStart=/bin/true", "EnvironmentFile=/etc/kubeatlas/agent.env", "StateDirectory=kubeatlas-agent",
                 "WorkingDirectory=/var/lib/kubeatlas-agent",
                 "MemoryMax=256M", "NoNewPrivileges=yes"):
        assert line in text.splitlines()
    file = tmp_path / unit["name"]
    file.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
