# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the reference server."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from . import kubeatlas, oxmon, pganalytics, stacker
from .control import control_application
from .core import Clock, ControlPlane, Database, Journal, Replays, Service, Shared
from .counters import Counters
from .faults import FaultBoard

#: One line for each control plane: its name, its options, how it is built.
PLANES: tuple[tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, Shared], ControlPlane]], ...] = (
    (stacker.Stacker.name, stacker.add_arguments, stacker.from_arguments),
    (pganalytics.PgAnalytics.name, pganalytics.add_arguments, pganalytics.from_arguments),
    (kubeatlas.KubeAtlas.name, kubeatlas.add_arguments, kubeatlas.from_arguments),
    (oxmon.Oxmon.name, oxmon.add_arguments, oxmon.from_arguments),
)
TLS_VERSIONS = {"1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(prog="reference_server", description="Control planes for tests, as documented and as shipped.")
    result.add_argument("--contract", choices=("documented", "shipped"), required=True)
    result.add_argument("--plane", action="append", choices=[name for name, _add, _build in PLANES], help="repeatable: serve only these (default: all)")
    result.add_argument("--listen", action="append", metavar="HOST:PORT", help="repeatable; port 0 takes any (default: 127.0.0.1:0)")
    result.add_argument("--tls-cert", metavar="FILE", help="certificate chain, PEM; without it the server speaks plain HTTP")
    result.add_argument("--tls-key", metavar="FILE")
    result.add_argument("--client-ca", metavar="FILE", help="ask for client certificates signed by this CA")
    result.add_argument("--tls-max-version", choices=sorted(TLS_VERSIONS), default="1.3", help="highest TLS version offered")
    result.add_argument("--state", metavar="FILE", help="SQLite file (default: memory)")
    result.add_argument("--control-listen", default="127.0.0.1:0", metavar="HOST:PORT", help="control API, plain HTTP")
    result.add_argument("--ready-file", metavar="FILE", help="written once everything listens")
    result.add_argument("--releases", metavar="DIR", help="serve its files at /releases/")
    result.add_argument("--log", metavar="FILE", help="request log, JSON lines")
    for _name, add_arguments, _build in PLANES:
        add_arguments(result)
    return result


def _address(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """The server's TLS context, or None for plain HTTP."""
    if not arguments.tls_cert:
        return None
    if not arguments.tls_key:
        raise ValueError("--tls-cert needs --tls-key")
    highest = TLS_VERSIONS[arguments.tls_max_version]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if highest < ssl.TLSVersion.TLSv1_2:
        # OpenSSL 3 allows the old versions at security level 0 only.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = min(ssl.TLSVersion.TLSv1_2, highest)
    context.maximum_version = highest
    context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    if arguments.client_ca:
        context.load_verify_locations(arguments.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class _Listeners:
    """The public sockets. They can be closed and opened again on the same ports."""

    def __init__(self, runner: web.AppRunner, addresses: Sequence[tuple[str, int]], tls: ssl.SSLContext | None) -> None:
        self._runner = runner
        self._tls = tls
        self._addresses = list(addresses)
        self._sites: list[web.SockSite] = []

    async def gate(self, accepting: bool) -> None:
        """Listen, or stop listening so that new connections are refused."""
        if not accepting:
            for site in self._sites:
                await site.stop()
            self._sites.clear()
        elif not self._sites:
            for number, (host, port) in enumerate(self._addresses):
                bound = _bound(host, port)
                self._addresses[number] = (host, bound.getsockname()[1])
                site = web.SockSite(self._runner, bound, ssl_context=self._tls, backlog=1024)
                await site.start()
                self._sites.append(site)

    def urls(self) -> list[str]:
        """Base URLs, without a trailing slash."""
        scheme = "https" if self._tls else "http"
        return [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in self._addresses]


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _announce(path: str | None, urls: list[str], control: str, addresses: Mapping[str, str]) -> None:
    """Write the ready file in one step, and say the same on stdout."""
    text = json.dumps({"urls": urls, "control": control, "addresses": dict(addresses)})
    if path:
        beside = Path(f"{path}.{os.getpid()}.tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    print(text, flush=True)


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    tls = _tls(arguments)
    addresses = [_address(text) for text in arguments.listen or ["127.0.0.1:0"]]
    control_address = _address(arguments.control_listen)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = Database(arguments.state)
    chosen = [plane for plane in PLANES if arguments.plane is None or plane[0] in arguments.plane]
    counters = Counters([name for name, _add, _build in chosen])
    shared = Shared(Clock(), database, FaultBoard(), counters, Replays(database), Journal(arguments.log))
    planes = [build(arguments, shared) for _name, _add, build in chosen]
    service = Service(planes, shared, arguments.releases)
    public = web.AppRunner(service.application(), access_log=None, shutdown_timeout=1.0)
    await public.setup()
    listeners = _Listeners(public, addresses, tls)
    control = web.AppRunner(control_application(service, listeners.gate), access_log=None, shutdown_timeout=1.0)
    await control.setup()
    try:
        own = {name: address for plane in planes for name, address in (await plane.start()).items()}
        await listeners.gate(True)
        controls = _Listeners(control, [control_address], None)
        await controls.gate(True)
        _announce(arguments.ready_file, listeners.urls(), controls.urls()[0], own)
        await stop.wait()
    finally:
        for plane in planes:
            await plane.close()
        await public.cleanup()
        await control.cleanup()
        database.close()


def main() -> int:
    """Parse, serve, and turn a bad set-up into one line and exit code 2."""
    arguments = parser().parse_args()
    try:
        asyncio.run(serve(arguments))
    except (OSError, ValueError) as error:
        print(f"reference_server: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
