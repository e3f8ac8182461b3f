# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS servers on many loopback addresses, in a process of their own: ``python -m benchmarks.endpoints CERT KEY PORT ADDRESS...``.

Prints a line when all of them listen, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from world.ca import KeyPair
from world.processes import free_port

__all__ = ["addresses", "dead", "living"]


def addresses(count: int, second: int) -> list[str]:
    """Return *count* addresses of loopback, all in 127.*second*.0.0/16."""
    return [f"127.{second}.{number // 250}.{number % 250 + 1}" for number in range(count)]


@contextmanager
def living(pair: KeyPair, listening: Sequence[str]) -> Iterator[int]:
    """Serve TLS on every address. Yields the port, the same everywhere."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.endpoints", str(pair.cert), str(pair.key), str(port), *listening]
    folder = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError("the endpoints did not start")
            yield port
        finally:
            process.kill()


@contextmanager
def dead(silent: Sequence[str], port: int) -> Iterator[None]:
    """Let connections to these addresses hang as they do to a host that is gone: the queue is full, so that the kernel answers no more SYN."""
    with ExitStack() as stack:
        for address in silent:
            listener = stack.enter_context(socket.socket())
            listener.bind((address, port))
            listener.listen(0)
            for _number in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect((address, port))
        yield


async def _serve(cert: str, key: str, port: int, listening: Sequence[str]) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1)
            writer.close()
            await writer.wait_closed()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(greet, list(listening), port, ssl=context, backlog=1024)
    async with server:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Command line."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    cert, key, port, *listening = sys.argv[1:]
    asyncio.run(_serve(cert, key, int(port), listening))


if __name__ == "__main__":
    main()
