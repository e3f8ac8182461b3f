# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a server, a token, a mount or a path: found before anything is written, and named."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._vault import VaultPath
from world import OpenBao
from world.openbao import find_bao
from world.processes import free_port, wait_until

from .conftest import CANARY, Open, Refused


@contextmanager
def canned(status: int, body: object, **headers: str) -> Iterator[str]:
    """Serve one answer to every request; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_sealed_vault(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    vault = open_vault()
    bao.seal()
    with refused("sealed", bao.url, "unseal it"):
        vault.preflight([VaultPath(f"secret/data/{fresh}", {"token": "token"})])


def test_a_vault_that_was_never_initialised(open_vault: Open, refused: Refused, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    config = {"storage": {"inmem": {}}, "listener": [{"tcp": {"address": url[7:], "tls_disable": True}}], "log_level": "error"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with subprocess.Popen([find_bao(), "server", f"-config={tmp_path / 'config.json'}"], stdout=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: _answers(f"{url}/v1/sys/seal-status"), 20)
            with refused("uninitialised", url, "initialise and unseal it"):
                open_vault(url=url, ca_cert=None).preflight([VaultPath("secret/data/x", {"token": "token"})])
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(("changes", "reason", "words"), [
    ({"url": "https://127.0.0.1:1"}, "unreachable", "refuses connections"),
    ({"url": "https://vault.does-not-exist.invalid:8200"}, "unreachable", "cannot be resolved"),
    ({"ca_cert": None}, "untrusted", "is not trusted"),
])
def test_a_vault_that_cannot_be_reached_or_trusted(
    open_vault: Open, refused: Refused, changes: dict[str, str | None], reason: str, words: str,
) -> None:
    with refused(reason, "Vault: ", words):
        open_vault(**changes).preflight([VaultPath("secret/data/x", {"token": "token"})])


def test_trust_can_be_switched_off(bao: OpenBao, open_vault: Open, fresh: str) -> None:
    open_vault(ca_cert=None, validate_certs=False).preflight([VaultPath(f"secret/data/{fresh}", {"token": "token"})])


def test_a_wrong_token(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    vault, path = open_vault(token=CANARY), VaultPath(f"secret/data/{fresh}", {"token": "token"})
    with refused("wrong_token", "unknown, expired or revoked"):
        vault.preflight([path])
    with refused("wrong_token"):
        vault.read(path)
    with refused("wrong_token"):
        vault.ensure(path, {"token": Secret(CANARY)})


def test_a_token_that_expired_meanwhile(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    token = bao.token(["root"])
    vault, path = open_vault(token=token), VaultPath(f"secret/data/{fresh}", {"token": "token"})
    vault.preflight([path])
    bao.call("POST", "auth/token/revoke", {"token": token})
    with refused("wrong_token", hidden=(token,)):
        vault.ensure(path, {"token": Secret(CANARY)})


def test_a_path_without_permission_is_named_with_what_is_missing(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    allowed, denied = f"secret/data/{fresh}/a", f"secret/data/{fresh}/b"
    bao.policy(fresh, f'path "{allowed}" {{ capabilities = ["create", "read", "update"] }}\npath "{denied}" {{ capabilities = ["read"] }}')
    token = bao.token([fresh])
    vault = open_vault(token=token)
    vault.preflight([VaultPath(allowed, {"token": "token"})])
    with refused("permission_denied", f"create and update on {denied}", hidden=(token,)):
        vault.preflight([VaultPath(allowed, {"token": "token"}), VaultPath(denied, {"token": "token"})])
    with refused("permission_denied", f"lacks update on {denied}", hidden=(token,)):
        vault.preflight([VaultPath(denied, {"token": "token"})], remove=True)
    with refused("permission_denied", f"update on {denied}", hidden=(token,)):
        vault.ensure(VaultPath(denied, {"token": "token"}), {"token": Secret(CANARY)})
    assert bao.read(denied) is None


def test_the_permissions_of_a_whole_fleet_are_checked(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    paths = [VaultPath(f"secret/data/{fresh}/{number}", {"token": "token"}) for number in range(1200)]
    bao.policy(fresh, f'path "secret/data/{fresh}/*" {{ capabilities = ["create", "read", "update"] }}\npath "{paths[-1].path}" {{ capabilities = ["deny"] }}')
    with refused("permission_denied", f"create and read and update on {paths[-1].path}"):
        open_vault(token=bao.token([fresh])).preflight(paths)
    open_vault().preflight(paths)


def test_removal_on_v2_needs_the_metadata(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    bao.policy(fresh, f'path "secret/data/{fresh}" {{ capabilities = ["create", "read", "update", "delete"] }}')
    with refused("permission_denied", f"lacks delete on secret/metadata/{fresh}"):
        open_vault(token=bao.token([fresh])).preflight([VaultPath(f"secret/data/{fresh}", {"token": "token"})], remove=True)


def test_a_token_without_any_right_below_the_mount(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    token = bao.token(["default"])
    with refused("permission_denied", f"secret/data/{fresh}", "or there is no such mount", hidden=(token,)):
        open_vault(token=token).preflight([VaultPath(f"secret/data/{fresh}", {"token": "token"})])


def test_a_token_without_the_default_policy_is_told_what_it_lacks(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    bao.policy(fresh, f'path "secret/data/{fresh}" {{ capabilities = ["create", "read", "update"] }}\n'
                      'path "auth/token/lookup-self" { capabilities = ["read"] }')
    with refused("permission_denied", "update on sys/capabilities-self"):
        open_vault(token=bao.token([fresh], no_default_policy=True)).preflight([VaultPath(f"secret/data/{fresh}", {"token": "token"})])


def test_a_missing_mount_is_named_with_the_ones_there_are(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    with refused("missing_mount", "nowhere/data/x", "kv/team/, secret/, status_panel/"):
        open_vault().preflight([VaultPath("nowhere/data/x", {"token": "token"})])


def test_a_missing_mount_is_found_by_a_token_that_may_not_list_mounts(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    bao.policy(fresh, 'path "nowhere/*" { capabilities = ["create", "read", "update"] }')
    with refused("missing_mount", "nowhere/data/x"):
        open_vault(token=bao.token([fresh])).preflight([VaultPath("nowhere/data/x", {"token": "token"})])


@pytest.mark.parametrize(("path", "words"), [
    ("secret/x/token", "secret/data/x/token"),
    ("secret/metadata/x", "secret/data/x"),
    ("kv/team/x", "kv/team/data/x"),
    ("status_panel/data/x", "status_panel/x"),
    ("sys/x", "a system engine"),
    ("cubbyhole/x", "a cubbyhole engine"),
])
def test_a_path_in_the_wrong_shape_is_refused_with_the_right_one(
    bao: OpenBao, open_vault: Open, fresh: str, refused: Refused, path: str, words: str,
) -> None:
    vault = open_vault()
    for attempt in (lambda: vault.preflight([VaultPath(path, {"token": "token"})]), lambda: vault.read(path)):
        with refused("wrong_kv_shape", path, words):
            attempt()
    assert bao.mutating_requests() == []


def test_a_namespace_is_used_and_a_missing_one_named(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    bao.namespace("team")
    bao.enable_kv("secret", 2, namespace="team")
    path = VaultPath(f"secret/data/{fresh}", {"token": "token"})
    vault = open_vault(namespace="team/")
    vault.preflight([path])
    vault.ensure(path, {"token": Secret(CANARY)})
    found = bao.read(path.path, namespace="team")
    assert (found or {}).get("data") == {"token": CANARY}
    assert bao.read(path.path) is None
    with refused("missing_namespace", "vault.namespace"):
        open_vault(namespace="elsewhere").preflight([path])


def test_throttling_is_waited_out_and_named_when_it_lasts(bao: OpenBao, open_vault: Open, fresh: str, refused: Refused) -> None:
    bao.enable_kv("busy", 2)
    path = VaultPath(f"busy/data/{fresh}", {"token": "token"})
    vault = open_vault()
    vault.preflight([path])
    bao.write("sys/quotas/rate-limit/busy", {"path": "busy/", "rate": 1, "interval": "1s"})
    assert vault.ensure(path, {"token": Secret(CANARY)}).changed
    bao.write("sys/quotas/rate-limit/busy", {"path": "busy/", "rate": 1, "interval": "1h"})
    vault.read(path)
    with refused("throttled", bao.url, "asks to wait"):
        vault.read(path)
    bao.delete("sys/quotas/rate-limit/busy")


@pytest.mark.parametrize(("status", "body", "reason", "words"), [
    (307, {}, "standby", "active node"),
    (400, {"errors": [f"the token {CANARY} is bad"]}, "refused", "400"),
    (503, {"errors": ["no leader"]}, "server_fault", "unavailable"),
])
def test_odd_answers_are_named_without_repeating_secrets(
    open_vault: Open, refused: Refused, status: int, body: object, reason: str, words: str,
) -> None:
    with canned(status, body, Location="http://127.0.0.1:1/") as url, refused(reason, words):
        open_vault(url=url, ca_cert=None, token=CANARY).preflight([VaultPath("secret/data/x", {"token": "token"})])


def test_a_login_answered_without_a_token_is_named(open_vault: Open, refused: Refused) -> None:
    with canned(200, {"auth": None}) as url, refused("login_refused", "without a token"):
        open_vault(url=url, ca_cert=None, auth_method="userpass", username="u", password=CANARY).authenticate()
