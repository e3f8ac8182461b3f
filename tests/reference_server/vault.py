# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's own side of Vault: one token for each agent, at the URL Stacker computes.

Source: the wire contract, Vault section. Read and write use the wrapped shape that gives
``.data.data.token`` on KV v1 (literal object) and on KV v2 (prefix with ``/data``).
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Protocol

import aiohttp

from .core import Database

__all__ = ["HttpVault", "StoreVault", "TokenVault", "VaultError"]


class VaultError(Exception):
    """Vault gave no token. ``missing`` tells "there is none" from "cannot say"."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing


class TokenVault(Protocol):
    """Where a control plane keeps agent tokens."""

    address: str

    async def read(self, name: str) -> str:
        """The token of one agent. Raises VaultError."""

    async def write(self, name: str, token: str) -> None:
        """Store a token. Raises VaultError."""

    async def alive(self) -> bool:
        """Whether it can serve."""

    async def reset(self) -> None:
        """Drop what only lives inside this process; a real Vault is left alone."""

    async def close(self) -> None:
        """Close connections."""


class HttpVault:
    """A real Vault or OpenBao. ``timeout`` None means: wait for ever, as the shipped server does."""

    def __init__(self, address: str, prefix: str, token_file: str, ca_file: str | None, timeout: float | None) -> None:
        self.address = address.rstrip("/")
        self._base = f"{self.address}/v1/{prefix.strip('/')}"
        self._token_file = Path(token_file)
        self._ca_file = ca_file
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, name: str) -> str:
        """GET the leaf."""
        status, payload = await self._call("GET", self._leaf(name))
        if status == 404:
            raise VaultError("404 Not Found", missing=True)
        if status != 200:
            raise VaultError(f"Vault returned {status}")
        data = payload.get("data") if isinstance(payload, dict) else None
        inner = data.get("data") if isinstance(data, dict) else None
        token = inner.get("token") if isinstance(inner, dict) else None
        if not isinstance(token, str) or not token:
            raise VaultError("token not found in Vault response", missing=True)
        return token

    async def write(self, name: str, token: str) -> None:
        """POST the leaf; 200 (KV v2) and 204 (KV v1) are success."""
        status, _payload = await self._call("POST", self._leaf(name), {"data": {"token": token, "deployment_hash": name}})
        if status not in (200, 204):
            raise VaultError(f"Vault returned {status}")

    async def alive(self) -> bool:
        """Ask its health endpoint; a sealed Vault is not alive."""
        try:
            status, _payload = await self._call("GET", f"{self.address}/v1/sys/health", timeout=aiohttp.ClientTimeout(total=2))
        except VaultError:
            return False
        return status in (200, 429, 473)

    async def reset(self) -> None:
        """Leave the real Vault alone."""

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    def _leaf(self, name: str) -> str:
        return f"{self._base}/{name}/token"

    async def _call(
        self, method: str, url: str, body: object | None = None, timeout: aiohttp.ClientTimeout | None = None
    ) -> tuple[int, object]:
        try:
            # Read each time: a test may renew the token while the server runs.
            headers = {"X-Vault-Token": self._token_file.read_text(encoding="utf-8").strip()}
            request = self._connected().request(method, url, json=body, headers=headers, timeout=timeout or self._timeout)
            async with request as response:
                payload = await response.json(content_type=None) if response.status == 200 else {}
                return response.status, payload
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            raise VaultError(f"error sending request to Vault ({type(error).__name__})") from error

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context(cafile=self._ca_file)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
        return self._session


class StoreVault:
    """A stand-in inside the server, for the shipped contract without a Vault: there it holds every token."""

    address = "in-process"

    def __init__(self, database: Database) -> None:
        self._database = database
        database.create("CREATE TABLE IF NOT EXISTS vault_leaves (name TEXT PRIMARY KEY, token TEXT NOT NULL)")

    async def read(self, name: str) -> str:
        """Read the leaf."""
        row = self._database.one("SELECT token FROM vault_leaves WHERE name = ?", name)
        if row is None:
            raise VaultError("404 Not Found", missing=True)
        return str(row["token"])

    async def write(self, name: str, token: str) -> None:
        """Write the leaf."""
        self._database.run("INSERT OR REPLACE INTO vault_leaves VALUES (?, ?)", name, token)

    async def alive(self) -> bool:
        """It always is."""
        return True

    async def reset(self) -> None:
        """Drop every leaf."""
        self._database.run("DELETE FROM vault_leaves")

    async def close(self) -> None:
        """Nothing to close."""
