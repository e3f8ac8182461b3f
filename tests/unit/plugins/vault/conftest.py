# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenBao for the tests of this folder, and a check that no failure ever shows a secret."""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import AgentsError, Ambiguous
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault
from world import OpenBao

CANARY = "canary-7f3e-do-not-print"

Open = Callable[..., Vault]
Refused = Callable[..., "AbstractContextManager[list[AgentsError]]"]


@pytest.fixture(scope="session")
def bao() -> Iterator[OpenBao]:
    """One server for the session with a KV v1 mount, a KV v2 mount and one on a path of two segments."""
    with OpenBao() as server:
        server.enable_kv("status_panel", 1)
        server.enable_kv("secret", 2)
        server.enable_kv("kv/team", 2)
        yield server


@pytest.fixture
def fresh(bao: OpenBao) -> Iterator[str]:
    """A name no other test uses; the counter of mutating requests starts at zero, and the server is unsealed afterwards."""
    bao.reset_mutations()
    yield uuid.uuid4().hex
    bao.unseal()


@pytest.fixture
def options(bao: OpenBao) -> dict[str, Any]:
    """The ``vault`` option of an administrator with the root token."""
    return {"url": bao.url, "ca_cert": str(bao.ca_file), "auth_method": "token", "token": bao.root_token}


@pytest.fixture
def open_vault(options: dict[str, Any]) -> Iterator[Open]:
    """Return a function that opens a Vault with changed options (None takes one away); all are closed at the end."""
    opened: list[Vault] = []

    def open_one(**changes: Any) -> Vault:
        merged = {**options, **changes}
        vault = Vault({name: value for name, value in merged.items() if value is not None})
        opened.append(vault)
        return vault

    yield open_one
    for vault in opened:
        vault.close()


@pytest.fixture
def secrets() -> dict[str, Secret]:
    """Two secrets by name."""
    return {"token": Secret(CANARY), "other": Secret(f"{CANARY}-2")}


@pytest.fixture
def refused(bao: OpenBao) -> Refused:
    """Return a context manager that expects a failure with a reason, as one clean sentence without any secret."""

    @contextmanager
    def expect(reason: str, *words: str, hidden: tuple[str, ...] = ()) -> Iterator[list[AgentsError]]:
        seen: list[AgentsError] = []
        with pytest.raises(AgentsError) as caught:
            yield seen
        error = caught.value
        seen.append(error)
        assert (error.reason, error.msg.endswith("."), "\n" in error.msg) == (reason, True, False), error.msg
        assert "VAULT_TOKEN" not in error.msg
        for word in words:
            assert word in error.msg
        shown = "".join(traceback.format_exception(error)) + repr(error.as_result())
        for secret in (CANARY, bao.root_token, *hidden):
            assert secret not in shown

    return expect


def lose_answers(monkeypatch: pytest.MonkeyPatch, vault: Vault, *, methods: tuple[str, ...], times: int, delivered: bool) -> None:
    """Break the connection for the first requests of *methods*: after they were carried out when *delivered*, else before."""
    http = vault._client._http
    send, left = http.send, [times]

    def broken(method: str, *args: Any, **named: Any) -> Any:
        if method not in methods or not left[0]:
            return send(method, *args, **named)
        left[0] -= 1
        if delivered:
            send(method, *args, **named)
        raise Ambiguous("the answer was lost.")

    monkeypatch.setattr(http, "send", broken)
