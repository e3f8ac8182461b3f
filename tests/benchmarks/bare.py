# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit: the same requests from one asyncio loop over keep-alive connections, without Ansible, without proofs, with nothing made durable.

``python -m benchmarks.bare KIND FILE`` reads what to do from the JSON file and prints the seconds that the loop took, imports not counted.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509

__all__ = ["CONNECTIONS", "main"]

CONNECTIONS = 16

Work = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


async def _all(names: Sequence[str], work: Work, ca_file: str) -> float:
    """Do *work* for every name, CONNECTIONS at a time. Returns seconds."""
    context = ssl.create_default_context(cafile=ca_file)
    waiting = iter(names)

    async def worker(session: aiohttp.ClientSession) -> None:
        for name in waiting:
            await work(session, name)

    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context)
    async with aiohttp.ClientSession(connector=connector, raise_for_status=True) as session:
        began = time.perf_counter()
        await asyncio.gather(*(worker(session) for _number in range(CONNECTIONS)))
        return time.perf_counter() - began


async def _enrol(given: Mapping[str, Any]) -> float:
    """Register, prove, write to Vault, read back, write the file."""

    async def one(session: aiohttp.ClientSession, name: str) -> None:
        body = {"deployment_hash": name, "agent_version": "1.0.0", "capabilities": ["docker", "compose", "logs"], "system_info": {"os": "linux"}}
        async with session.post(f"{given['stacker_url']}/api/v1/agent/register", json=body) as answer:
            item = (await answer.json())["data"]["item"]
        headers = {"Authorization": f"Bearer {item['agent_token']}", "X-Agent-Id": item["agent_id"]}
        async with session.get(f"{given['stacker_url']}/api/v1/agent/notifications", params={"deployment_hash": name}, headers=headers) as answer:
            await answer.read()
        leaf = f"{given['vault_address']}/v1/{given['vault_agent_path_prefix']}/{name}/token"
        vault = {"X-Vault-Token": given["vault_token"]}
        async with session.post(leaf, json={"data": {"token": item["agent_token"]}}, headers=vault) as answer:
            await answer.read()
        async with session.get(leaf, headers=vault) as answer:
            await answer.read()
        Path(given["places"][name], ".env").write_text(f"AGENT_ID={item['agent_id']}\nAGENT_TOKEN={item['agent_token']}\n")

    return await _all(list(given["places"]), one, given["ca_file"])


async def _fleet(given: Mapping[str, Any]) -> float:
    """Register agents and keep their tokens in Vault: what rotations start from."""

    async def one(session: aiohttp.ClientSession, name: str) -> None:
        body = {"deployment_hash": name, "agent_version": "1.0.0", "capabilities": ["docker"], "system_info": {"os": "linux"}}
        async with session.post(f"{given['stacker_url']}/api/v1/agent/register", json=body) as answer:
            item = (await answer.json())["data"]["item"]
        leaf = f"{given['vault_address']}/v1/{given['vault_agent_path_prefix']}/{name}/token"
        async with session.post(leaf, json={"data": {"token": item["agent_token"]}}, headers={"X-Vault-Token": given["vault_token"]}) as answer:
            await answer.read()

    return await _all(given["names"], one, given["ca_file"])


async def _rotate(given: Mapping[str, Any]) -> float:
    """Read, prove, write with check-and-set, prove: what a guarded rotation cannot do without."""
    headers = {"X-Vault-Token": given["vault_token"]}
    base, prefix = f"{given['vault_address']}/v1", given["vault_agent_path_prefix"]

    async def proved(session: aiohttp.ClientSession, name: str, token: str) -> None:
        url, bearer = f"{given['stacker_url']}/api/v1/agent/notifications", {"Authorization": f"Bearer {token}"}
        async with session.get(url, params={"deployment_hash": name}, headers=bearer) as answer:
            await answer.read()

    async def read(session: aiohttp.ClientSession, leaf: str) -> dict[str, Any]:
        async with session.get(leaf, headers=headers) as answer:
            found: dict[str, Any] = (await answer.json())["data"]
            return found

    async def write(session: aiohttp.ClientSession, leaf: str, data: Mapping[str, str], version: int) -> None:
        async with session.post(leaf, json={"data": dict(data), "options": {"cas": version}}, headers=headers) as answer:
            await answer.read()

    async def one(session: aiohttp.ClientSession, name: str) -> None:
        leaf = f"{base}/{prefix}/{name}/token"
        entry = await read(session, leaf)
        await proved(session, name, entry["data"]["token"])
        token = secrets.token_urlsafe(64)
        await write(session, leaf, {**entry["data"], "token": token}, entry["metadata"]["version"])
        await proved(session, name, token)

    return await _all(given["names"], one, given["ca_file"])


async def _check(given: Mapping[str, Any]) -> float:
    """Shake hands with every endpoint, verify its chain and name, and see when its certificate ends; 64 at a time."""
    context = ssl.create_default_context(cafile=given["ca_file"])
    waiting = iter(given["addresses"])

    async def worker() -> None:
        for address in waiting:
            _reader, writer = await asyncio.open_connection(address, given["port"], ssl=context, server_hostname="localhost")
            certificate = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
            if certificate.not_valid_after_utc.timestamp() < time.time():
                raise ValueError("an endpoint's certificate has ended")
            writer.transport.abort()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _number in range(64)))
    return time.perf_counter() - began


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], Coroutine[Any, Any, float]]] = {"enrol": _enrol, "fleet": _fleet, "rotate": _rotate, "check": _check}


def main() -> None:
    """Command line."""
    kind, file = sys.argv[1:3]
    print(asyncio.run(_KINDS[kind](json.loads(Path(file).read_text()))))


if __name__ == "__main__":
    main()
