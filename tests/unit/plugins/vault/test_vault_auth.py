# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way to log in, against the real auth methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _vault_client
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Ambiguous, InvalidInput, MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath
from world import OpenBao

from .conftest import CANARY, Open, Refused


@pytest.fixture(scope="session")
def writers(bao: OpenBao) -> str:
    """The name of a policy that may do all that this collection does below the test mounts, and no more."""
    rights = '{ capabilities = ["create", "read", "update", "delete"] }'
    return bao.policy("writers", "\n".join(f'path "{path}/*" {rights}' for path in ("status_panel", "secret/data", "secret/metadata")))


def stores_and_removes(bao: OpenBao, vault: Vault, name: str) -> str:
    """Use *vault* for all it is for, then close it. Returns the token it worked with."""
    for prefix in ("status_panel", "secret/data"):
        path = VaultPath(f"{prefix}/{name}", {"token": "token"})
        vault.preflight([path])
        vault.ensure(path, {"token": Secret(CANARY)})
        found = bao.read(path.path)
        assert found is not None
        assert found["data"] == {"token": CANARY}
        vault.preflight([path], remove=True)
        vault.remove(path)
        assert bao.read(path.path) is None
    token = vault._client.token
    vault.close()
    return token


def is_alive(bao: OpenBao, token: str) -> bool:
    """Whether Vault still accepts *token*."""
    return bao.call("GET", "auth/token/lookup-self", token=token).status == 200


def test_a_token_is_used_and_left_alone(bao: OpenBao, open_vault: Open, writers: str, fresh: str) -> None:
    token = bao.token([writers])
    assert stores_and_removes(bao, open_vault(token=token), fresh) == token
    assert is_alive(bao, token)


def test_a_token_can_come_from_a_file(bao: OpenBao, open_vault: Open, writers: str, fresh: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(bao.token([writers]) + "\n")
    stores_and_removes(bao, open_vault(token=None, token_file=str(tmp_path / "token")), fresh)


def test_the_environment_is_not_a_source_of_credentials(open_vault: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", CANARY)
    with pytest.raises(InvalidInput, match=r"needs vault\.token or vault\.token_file"):
        open_vault(token=None)
    assert open_vault()._client.token == ""


@pytest.mark.parametrize("mount", ["approle", "teams/approle"])
def test_approle_logs_in_and_its_token_is_revoked_at_the_end(
    bao: OpenBao, open_vault: Open, writers: str, fresh: str, mount: str,
) -> None:
    role = bao.approle(fresh, [writers], mount=mount)
    vault = open_vault(auth_method="approle", auth_mount=mount, role_id=role.role_id, secret_id=role.secret_id)
    assert not is_alive(bao, stores_and_removes(bao, vault, fresh))


def test_approle_without_a_secret_id_logs_in_where_the_role_asks_for_none(
    bao: OpenBao, open_vault: Open, writers: str, fresh: str,
) -> None:
    role = bao.approle(fresh, [writers])
    bao.write(f"auth/approle/role/{fresh}", {"bind_secret_id": False, "token_policies": [writers], "token_bound_cidrs": ["127.0.0.1/32"],
                                             "secret_id_bound_cidrs": ["127.0.0.1/32"]})
    stores_and_removes(bao, open_vault(auth_method="approle", role_id=role.role_id), fresh)


def test_one_login_serves_the_whole_session(bao: OpenBao, open_vault: Open, writers: str, fresh: str) -> None:
    role = bao.approle(fresh, [writers])
    bao.write(f"auth/approle/role/{fresh}", {"secret_id_num_uses": 1, "token_policies": [writers]})
    secret_id = bao.write(f"auth/approle/role/{fresh}/secret-id", {}).data["secret_id"]
    vault = open_vault(auth_method="approle", role_id=role.role_id, secret_id=secret_id)
    vault.authenticate()
    vault.authenticate()
    stores_and_removes(bao, vault, fresh)


@pytest.mark.parametrize("by", ["role", "path"])
def test_a_wrapped_secret_id_is_opened_when_it_was_wrapped_where_it_should_be(
    bao: OpenBao, open_vault: Open, writers: str, fresh: str, by: str,
) -> None:
    role = bao.approle(fresh, [writers], wrap_ttl="60s")
    where = {"role": fresh} if by == "role" else {"secret_id_creation_path": role.wrap_path}
    vault = open_vault(auth_method="approle", role_id=role.role_id, secret_id=role.secret_id, secret_id_wrapped=True, **where)
    stores_and_removes(bao, vault, fresh)


def test_a_wrapped_secret_id_from_elsewhere_is_refused_unopened(
    bao: OpenBao, open_vault: Open, writers: str, fresh: str, refused: Refused,
) -> None:
    role = bao.approle(fresh, [writers])
    planted = bao.call("POST", "sys/wrapping/wrap", {"secret_id": role.secret_id}, wrap_ttl="60s").body["wrap_info"]["token"]
    vault = open_vault(auth_method="approle", role=fresh, role_id=role.role_id, secret_id=planted, secret_id_wrapped=True)
    with refused("wrapping_refused", "sys/wrapping/wrap", f"auth/approle/role/{fresh}/secret-id", hidden=(planted, role.secret_id)):
        vault.authenticate()
    assert bao.call("POST", "sys/wrapping/lookup", {"token": planted}).status == 200


def test_a_used_wrapping_token_is_refused(bao: OpenBao, open_vault: Open, writers: str, fresh: str, refused: Refused) -> None:
    role = bao.approle(fresh, [writers], wrap_ttl="60s")
    bao.call("POST", "sys/wrapping/unwrap", token=role.secret_id)
    vault = open_vault(auth_method="approle", role=fresh, role_id=role.role_id, secret_id=role.secret_id, secret_id_wrapped=True)
    with refused("wrapping_refused", "used or has expired", hidden=(role.secret_id,)):
        vault.authenticate()


@pytest.mark.parametrize("method", ["jwt", "kubernetes"])
def test_a_signed_token_logs_in(bao: OpenBao, open_vault: Open, writers: str, fresh: str, method: str, tmp_path: Path) -> None:
    # Kubernetes differs from JWT in its mount and in who checks the signature; the exchange is the same.
    issuer = bao.jwt(fresh, [writers], subject="controller", mount=method)
    (tmp_path / "jwt").write_text(issuer.token("controller"))
    vault = open_vault(auth_method=method, role=fresh, jwt_file=str(tmp_path / "jwt"))
    assert not is_alive(bao, stores_and_removes(bao, vault, fresh))


def test_user_and_password_log_in(bao: OpenBao, open_vault: Open, writers: str, fresh: str) -> None:
    bao.userpass(fresh, CANARY, [writers])
    vault = open_vault(auth_method="userpass", username=fresh, password=CANARY)
    assert not is_alive(bao, stores_and_removes(bao, vault, fresh))


def test_a_client_certificate_logs_in(bao: OpenBao, open_vault: Open, writers: str, fresh: str) -> None:
    pair = bao.cert(fresh, [writers])
    vault = open_vault(auth_method="cert", role=fresh, client_cert=str(pair.cert), client_key=str(pair.key))
    assert not is_alive(bao, stores_and_removes(bao, vault, fresh))


def test_a_refused_login_is_named(bao: OpenBao, open_vault: Open, writers: str, fresh: str, refused: Refused) -> None:
    role = bao.approle(fresh, [writers])
    bao.userpass(fresh, "right", [writers])
    issuer = bao.jwt(fresh, [writers])
    pair = bao.ca.client(f"stranger-{fresh}")
    expired, stranger = issuer.token("s", -5000), issuer.token("s", aud="elsewhere")
    attempts: list[dict[str, Any]] = [
        {"auth_method": "approle", "role_id": role.role_id, "secret_id": CANARY},
        {"auth_method": "approle", "role_id": role.role_id, "secret_id": CANARY, "auth_mount": "nowhere"},
        {"auth_method": "userpass", "username": fresh, "password": CANARY},
        {"auth_method": "jwt", "role": fresh, "jwt": expired},
        {"auth_method": "jwt", "role": fresh, "jwt": stranger},
        {"auth_method": "jwt", "role": fresh, "jwt": CANARY},
        {"auth_method": "jwt", "role": "unknown", "jwt": issuer.token("s")},
        {"auth_method": "cert", "client_cert": str(pair.cert), "client_key": str(pair.key)},
    ]
    for attempt in attempts:
        vault = open_vault(**attempt)
        where = attempt.get("auth_mount") or attempt["auth_method"]
        with refused("login_refused", f"auth/{where}", hidden=(expired, stranger, role.secret_id)):
            vault.preflight([])


def test_a_lost_answer_to_a_login_is_not_tried_again(
    bao: OpenBao, open_vault: Open, writers: str, fresh: str, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = bao.approle(fresh, [writers])
    vault = open_vault(auth_method="approle", role_id=role.role_id, secret_id=role.secret_id)
    sent = []

    def lost(method: str, path: str, **named: Any) -> Any:
        sent.append(path)
        raise Ambiguous("the answer was lost.")

    monkeypatch.setattr(vault._client._http, "send", lost)
    with refused("ambiguous", "auth/approle"):
        vault.authenticate()
    assert sent == ["/v1/auth/approle/login"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"token": None}, "vault.token or vault.token_file"),
    ({"token": ""}, "vault.token is empty"),
    ({"token_file": "/dev/null"}, "vault.token and vault.token_file are both set"),
    ({"token": None, "token_file": "/nonexistent/token"}, "cannot be read"),
    ({"token": None, "token_file": "/dev/null"}, "is empty"),
    ({"auth_method": "approle"}, "needs vault.role_id"),
    ({"auth_method": "approle", "role_id": "r", "secret_id_wrapped": True}, "without a secret id"),
    ({"auth_method": "approle", "role_id": "r", "secret_id": "w", "secret_id_wrapped": True}, "vault.secret_id_creation_path"),
    ({"auth_method": "jwt"}, "needs vault.jwt or vault.jwt_file"),
    ({"auth_method": "kubernetes", "jwt": "j"}, "needs vault.role"),
    ({"auth_method": "userpass", "password": "p"}, "needs vault.username"),
    ({"auth_method": "userpass", "username": "u"}, "needs vault.password or vault.password_file"),
    ({"auth_method": "userpass", "username": "u/../v", "password": "p"}, "vault.username"),
    ({"auth_method": "cert"}, "needs vault.client_cert"),
    ({"auth_mount": "a//b"}, "vault.auth_mount"),
    ({"ca_cert": "/nonexistent/ca.pem"}, "vault.ca_cert '/nonexistent/ca.pem' cannot be read"),
    ({"client_cert": "/nonexistent/cert.pem"}, "vault.client_cert '/nonexistent/cert.pem' and its key cannot be loaded"),
    ({"url": "vault.example.com"}, "vault.url 'vault.example.com' has no scheme"),
    ({"url": "https://vault.example.com:8200/v1"}, "vault.url 'https://vault.example.com:8200/v1' has a path"),
    ({"url": "http://vault.example.com:8200"}, "vault.url 'http://vault.example.com:8200' would send credentials in clear text"),
])
def test_options_are_checked_before_anything_is_sent(open_vault: Open, bao: OpenBao, refused: Refused, changes: dict[str, Any], words: str) -> None:
    with refused("invalid_input", words):
        open_vault(**changes)


def test_clear_text_is_possible_on_loopback_and_when_asked_for(open_vault: Open) -> None:
    assert open_vault(url="http://127.0.0.1:8200").url == "http://127.0.0.1:8200"
    assert open_vault(url="http://vault.example.com:8200", allow_plaintext=True).url == "http://vault.example.com:8200"


def test_a_missing_library_is_named(open_vault: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_vault_client, "IMPORT_ERROR", "Traceback: no module named hvac")
    with pytest.raises(MissingLibrary, match="hvac is needed on the controller"):
        open_vault()
