# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PKI engine of a real OpenBao: issued by a role, chained to its root, revoked, and every refusal named."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError
from world import OpenBao

from .pairs import Machine

ANY_NAME = {"allow_any_name": True, "enforce_hostnames": False, "key_type": "any", "allow_ip_sans": True, "allowed_uri_sans": "*", "max_ttl": "9000h"}
ROLES: dict[str, dict[str, Any]] = {
    "agent": {**ANY_NAME, "organization": "Example"},
    "server": {**ANY_NAME, "organization": "Example", "client_flag": False},
    "narrow": {"allowed_domains": "example.com", "allow_subdomains": True, "key_type": "ec", "require_cn": False},
    "short": {**ANY_NAME, "organization": "Example", "max_ttl": "1h", "ttl": "1h"},
    "unkept": {**ANY_NAME, "organization": "Example", "no_store": True},
}


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    """A server with a root at ``pki`` and an issuing CA below it at ``pki-agents``."""
    with OpenBao() as server:
        server.enable_pki("pki", "Example root")
        server.enable_pki("pki-agents", "Agents CA", below="pki", **ROLES)
        yield server


@pytest.fixture
def issue(bao: OpenBao, machine: Machine) -> Any:
    """Return a function that runs cert_issue with a role of the engine."""

    def run(role: str = "agent", *, token: str = "", mount: str = "pki-agents", issuer_ref: str = "default", **changes: Any) -> dict[str, Any]:
        login = {"url": bao.url, "ca_cert": str(bao.ca_file), "token": token or bao.root_token}
        return machine.issue(issuer="vault_pki", vault_pki={"mount": mount, "role": role, "issuer_ref": issuer_ref}, vault=login, **changes)

    return run


def refused(call: Any, **options: Any) -> AgentsError:
    with pytest.raises(AgentsError) as caught:
        call(**options)
    return caught.value


def test_issued_with_its_chain_left_alone_and_renewed(bao: OpenBao, machine: Machine, issue: Any) -> None:
    first = issue(subject_alt_name=["DNS:web.example.com", "IP:192.0.2.7", "URI:spiffe://example.com/agent"])
    assert (first["action"], machine.visits) == ("issued", ["look", "install"])
    assert first["certificate"]["names"] == ["DNS:web.example.com", "IP:192.0.2.7", "URI:spiffe://example.com/agent"]
    assert len(x.load_certificates(machine.certificate.read_bytes())) == 2
    assert len(x.load_certificates(machine.ca.read_bytes())) == 2
    root = machine.directory / "root.pem"
    root.write_text(bao.call("GET", "pki/cert/ca").data["certificate"])
    subprocess.run(["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(root), "-untrusted", str(machine.certificate),
                    str(machine.certificate)], check=True, stdout=subprocess.DEVNULL)
    bao.reset_mutations()
    again = issue(subject_alt_name=["DNS:web.example.com", "IP:192.0.2.7", "URI:spiffe://example.com/agent"])
    assert (again["changed"], bao.mutating_requests()) == (False, [])
    foretold = issue(check_mode=True, subject_alt_name=["DNS:other.example.com"])
    assert (foretold["reason"], bao.mutating_requests()) == ("san_changed", [])
    renewed = issue(subject_alt_name=["DNS:other.example.com"])
    assert (renewed["action"], renewed["reason"], bao.mutating_requests()) == ("renewed", "san_changed", ["update pki-agents/sign/agent"])
    assert machine.is_whole()


def test_more_than_was_asked_for_is_no_reason_to_renew(issue: Any) -> None:
    """The role adds an organisation of its own and serverAuth; without either in the request that is fine."""
    assert issue(subject={"CN": "agent-web"})["certificate"]["extended_key_usage"] == ["clientAuth", "serverAuth"]
    assert not issue(subject={"CN": "agent-web"})["changed"]


def test_what_is_revoked_there_is_replaced_and_state_revoked_revokes(bao: OpenBao, machine: Machine, issue: Any) -> None:
    serial = issue()["certificate"]["serial"]
    colons = ":".join(serial.lower()[place:place + 2] for place in range(0, len(serial), 2))
    bao.write("pki-agents/revoke", {"serial_number": colons})
    result = issue()
    assert (result["action"], result["reason"]) == ("renewed", "revoked")
    gone = issue(state="revoked")
    assert gone["revoked"] == [result["certificate"]["serial"]]
    assert not machine.key.exists()
    text = result["certificate"]["serial"].lower()
    kept = bao.read("pki-agents/cert/" + ":".join(text[place:place + 2] for place in range(0, len(text), 2)))
    assert kept is not None
    assert kept["revocation_time"] > 0
    assert not issue(state="revoked")["changed"]


def test_a_certificate_that_the_mount_does_not_keep_is_revoked_all_the_same(machine: Machine, issue: Any) -> None:
    serial = issue("unkept")["certificate"]["serial"]
    assert not issue("unkept")["changed"]
    assert issue("unkept", state="revoked")["revoked"] == [serial]


def test_an_issuer_is_chosen_by_its_name(bao: OpenBao, machine: Machine, issue: Any) -> None:
    bao.enable_pki("pki-two", "First", agent=ROLES["agent"])
    bao.call("POST", "pki-two/root/rotate/internal", {"common_name": "Second", "issuer_name": "second", "ttl": "9000h", "key_type": "ec", "key_bits": 256})
    assert issue(mount="pki-two")["certificate"]["issuer"] == "CN=First"
    result = issue(mount="pki-two", issuer_ref="second")
    assert (result["reason"], result["certificate"]["issuer"]) == ("issuer_changed", "CN=Second")
    assert not issue(mount="pki-two", issuer_ref="second")["changed"]
    bao.write("pki-two/roles/agent", {**ROLES["agent"], "issuer_ref": "second"})
    error = refused(issue, mount="pki-two")
    assert error.reason == "issuer_mismatch"
    assert "name the CA or the issuer" in error.msg
    assert machine.is_whole()


REFUSALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "name-not-allowed": ("refused", "narrow", {"subject": {"CN": "agent.other.com"}}),
    "key-not-allowed": ("refused", "narrow", {"subject": {"CN": "a.example.com"}, "key_type": "rsa", "key_size": 2048}),
    "subject-dropped": ("subject_changed", "agent", {"subject": {"O": "Example", "OU": "Agents", "CN": "agent-web"}}),
    "usage-not-given": ("usage_changed", "server", {}), "short": ("absurd_lifetime", "short", {"valid_days": 90, "renew_days": 10}),
    "no-role": ("refused", "nobody", {}), "no-mount": ("missing_issuer", "agent", {"mount": "pki-none"}),
    "no-issuer": ("missing_issuer", "agent", {"issuer_ref": "third"}), "wrong-token": ("wrong_token", "agent", {"token": "s.wrong-token-canary"}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_named_and_nothing_is_installed(bao: OpenBao, machine: Machine, issue: Any, case: str) -> None:
    reason, role, options = REFUSALS[case]
    error = refused(lambda **given: issue(role, **given), **options)
    assert error.reason == reason, error.msg
    assert error.msg.endswith(".")
    assert "canary" not in error.msg
    assert bao.root_token not in error.msg
    assert not machine.certificate.exists()


def test_a_token_that_may_not_sign_is_told_what_it_lacks(bao: OpenBao, issue: Any) -> None:
    token = bao.token([bao.policy("nothing", 'path "none" { capabilities = ["read"] }')])
    error = refused(issue, token=token)
    assert error.reason == "permission_denied"
    assert "update on pki-agents/sign/agent" in error.msg


def test_a_sealed_server_is_named(bao: OpenBao, issue: Any) -> None:
    bao.seal()
    try:
        assert refused(issue).reason == "sealed"
    finally:
        bao.unseal()


def test_a_login_of_ours_is_revoked_at_the_end(bao: OpenBao, machine: Machine, tmp_path: Path) -> None:
    rules = 'path "pki-agents/sign/agent" { capabilities = ["update"] }'
    role = bao.approle("issuing", [bao.policy("issuing", rules)])
    (tmp_path / "secret-id").write_text(role.secret_id)
    bao.reset_mutations()
    login = {"url": bao.url, "ca_cert": str(bao.ca_file), "auth_method": "approle", "role_id": role.role_id, "secret_id_file": str(tmp_path / "secret-id")}
    result = machine.issue(issuer="vault_pki", vault_pki={"mount": "pki-agents", "role": "agent"}, vault=login)
    assert result["action"] == "issued"
    assert bao.mutating_requests() == ["update pki-agents/sign/agent", "update auth/token/revoke-self"]
