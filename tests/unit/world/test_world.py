# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The world's OpenBao and CA: what the other tests rely on when they call them witnesses."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from world import CertificateAuthority, OpenBao


@pytest.fixture(scope="module")
def vault() -> Iterator[OpenBao]:
    with OpenBao() as server:
        server.enable_kv("secret", 2)
        server.enable_kv("status_panel", 1)
        yield server


def _as_others_do(vault: OpenBao, method: str, path: str, body: object = None) -> None:
    """A request without the world's own header."""
    request = urllib.request.Request(
        f"{vault.url}/v1/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Vault-Token": vault.root_token},
        method=method,
    )
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=str(vault.ca_file))).close()


def test_what_the_world_itself_writes_is_not_counted(vault: OpenBao) -> None:
    vault.reset_mutations()
    vault.write("status_panel/a", {"token": "t"})
    vault.delete("status_panel/a")
    assert vault.mutations() == 0


def test_writes_deletes_and_new_tokens_of_others_are_counted(vault: OpenBao) -> None:
    vault.reset_mutations()
    _as_others_do(vault, "POST", "secret/data/a", {"data": {"token": "t"}})
    _as_others_do(vault, "DELETE", "secret/metadata/a")
    _as_others_do(vault, "POST", "auth/token/create", {})
    assert vault.mutating_requests() == ["create secret/data/a", "delete secret/metadata/a", "update auth/token/create"]


def test_reading_looking_up_and_asking_for_capabilities_are_not_counted(vault: OpenBao) -> None:
    vault.write("status_panel/b", {"token": "t"})
    vault.reset_mutations()
    _as_others_do(vault, "GET", "status_panel/b")
    _as_others_do(vault, "GET", "auth/token/lookup-self")
    _as_others_do(vault, "POST", "auth/token/lookup", {"token": vault.root_token})
    _as_others_do(vault, "POST", "sys/capabilities-self", {"paths": ["secret/data/a"]})
    assert vault.mutations() == 0


def test_a_sealed_server_refuses_and_an_unsealed_one_serves_again(vault: OpenBao) -> None:
    vault.write("status_panel/c", {"token": "t"})
    vault.seal()
    assert vault.call("GET", "status_panel/c").status == 503
    vault.unseal()
    assert vault.read("status_panel/c") == {"token": "t"}


def test_a_reader_without_permission_is_refused(vault: OpenBao) -> None:
    with pytest.raises(PermissionError):
        vault.read("status_panel/c", token=vault.token(["default"]))


def test_secrets_of_the_server_are_readable_by_their_owner_only(vault: OpenBao) -> None:
    private = [vault.token_file, vault.audit_file, vault.directory / "keys.json"]
    assert [path.stat().st_mode & 0o777 for path in private] == [0o600] * 3


def test_certificates_pass_strict_verification(tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path)
    pair = ca.server(names=("localhost",))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.cert, pair.key)
    client = ssl.create_default_context(cafile=str(ca.ca_file))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        end = ends.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            ends.append(end)


def test_the_ca_of_a_directory_is_made_once(tmp_path: Path) -> None:
    first = CertificateAuthority(tmp_path)
    pair = first.server()
    again = CertificateAuthority(tmp_path)
    assert (again.ca_file.read_bytes(), again.server()) == (first.ca_file.read_bytes(), pair)
