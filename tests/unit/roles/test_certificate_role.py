# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role certificate makes of its variables: options that cert_issue takes, and nothing where nobody signs."""

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from role_files import Variables

from ansible_collections.muster.agents.plugins.action.cert_issue import ARGUMENT_SPEC, RULES

PLACES = {"certificate_path": "/etc/agent/agent.crt", "key_path": "/etc/agent/agent.key", "subject": {"CN": "agent"}}
OWN = {"certificate": "/ca.pem", "key": "/ca.key"}
VAULT = {"url": "https://vault.example.com", "token": "t"}
SIGNERS: dict[str, dict[str, t.Any]] = {
    "own_ca": {"certificate_own_ca": OWN},
    "vault_pki": {"certificate_vault_pki": {"role": "agent"}, "agent_vault": VAULT},
    "remote_signer": {"certificate_signer_url": "https://pki.example.com", "certificate_signer_ca": "/ca.pem", "agent_controller_name": "main"},
}


def options(issuer: str, **given: t.Any) -> dict[str, t.Any]:
    """Return the options that the task is given, and fail when cert_issue would not take them."""
    known = Variables("certificate", certificate_issuer=issuer, certificate_settings=PLACES, **{**SIGNERS[issuer], **given})
    found = t.cast("dict[str, t.Any]", known.value("_certificate_options"))
    validated = ArgumentSpecValidator(ARGUMENT_SPEC, **RULES).validate({**found, "state": known.value("_certificate_state")})
    assert not validated.error_messages, validated.error_messages
    return found


@pytest.mark.parametrize("issuer", SIGNERS)
def test_each_signer_gets_what_it_needs(issuer: str) -> None:
    found = options(issuer)
    assert found["issuer"] == issuer
    assert {key: found[key] for key in PLACES} == PLACES
    assert found.get("own_ca") == (OWN if issuer == "own_ca" else None)
    assert found.get("vault") == (VAULT if issuer == "vault_pki" else None)


def test_a_vault_of_its_own_goes_before_the_agent_s() -> None:
    own = {"url": "https://pki.example.com", "token": "u"}
    assert options("vault_pki", certificate_vault=own)["vault"] == own


def test_the_way_to_the_control_plane_is_the_way_to_its_signer() -> None:
    found = options("remote_signer", agent_ca_cert="/tls.pem", agent_client_cert="/c.pem", agent_timeout=3.0, agent_validate_certs=False)
    assert (found["ca_cert"], found["client_cert"], found["timeout"], found["validate_certs"]) == ("/tls.pem", "/c.pem", 3.0, False)
    assert (found["url"], found["issuer_ca"], found["controller_name"]) == ("https://pki.example.com", "/ca.pem", "main")


def test_settings_win_over_the_profile() -> None:
    known = Variables("certificate", "kubeatlas", certificate_issuer="own_ca", certificate_own_ca=OWN, certificate_settings={"valid_days": 30},
                      agent_service_type="agent")
    found = known.value("_certificate_options")
    assert (found["valid_days"], found["subject"]["O"], found["certificate_path"]) == (30, "KubeAtlas", "/etc/kubeatlas/certs/agent.crt")


def test_without_a_signer_nothing_is_due() -> None:
    assert not Variables("certificate").value("_certificate_due | bool")


@pytest.mark.parametrize(("given", "state"), [
    ({}, "present"), ({"agent_state": "absent"}, "absent"), ({"agent_state": "absent", "certificate_when_absent": "revoked"}, "revoked"),
])
def test_the_state_follows_the_agent_s(given: dict[str, t.Any], state: str) -> None:
    assert Variables("certificate", **given).value("_certificate_state") == state


def test_only_units_that_are_up_are_reloaded() -> None:
    seen = {"results": [{"item": "a", "status": {"ActiveState": "active"}}, {"item": "b", "status": {"ActiveState": "inactive"}}, {"item": "c"}]}
    assert Variables("certificate", _certificate_seen=seen).value("_certificate_units_up") == ["a"]
