# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m faults``: plays the crash matrix, prints one line for each cell, and "N passed, 0 failed" at the end."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from integration.agents import CONTRACTS, World

from reference_server.client import ReferenceServer, Tls, VaultLink
from world import OpenBao
from world.ca import CertificateAuthority

from .matrix import ENDS, NEXT, POINTS, Cell, cells, play

_BATCH = 60  # cells that are played together; their hosts and servers are shared


@contextmanager
def _world(directory: Path) -> Iterator[World]:
    """One Stacker of each contract and an OpenBao."""
    authority = CertificateAuthority(directory / "ca")
    pair = authority.server()
    tls = Tls(str(pair.cert), str(pair.key))
    with ExitStack() as stack:
        bao = stack.enter_context(OpenBao())
        bao.enable_kv("status_panel", 1)
        bao.enable_kv("secret", 2)
        link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), "status_panel")
        stackers = {contract: stack.enter_context(ReferenceServer.start(contract, tls=tls, vault=link)) for contract in CONTRACTS}
        yield World(stackers, bao, authority.ca_file, tls)


def _chosen(arguments: argparse.Namespace) -> list[Cell]:
    points = {name: [point for point in POINTS[name] if not arguments.point or point in arguments.point] for name in arguments.transaction}
    return cells(points, arguments.end, arguments.next, both=arguments.both)


def main() -> int:
    """Command line. Returns 1 when a cell failed."""
    parser = argparse.ArgumentParser(prog="faults", description="Play the crash matrix.")
    parser.add_argument("--transaction", nargs="+", default=list(POINTS), choices=list(POINTS))
    parser.add_argument("--point", nargs="+", default=[])
    parser.add_argument("--end", nargs="+", default=list(ENDS), choices=ENDS)
    parser.add_argument("--next", nargs="+", default=list(NEXT), choices=NEXT)
    parser.add_argument("--both", action="store_true", help="play each cell with both contracts")
    chosen = _chosen(parser.parse_args())
    started, passed, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="muster-faults-") as name, _world(Path(name)) as world:
        for number in range(0, len(chosen), _BATCH):
            for server in world.stackers.values():
                server.reset()
            for played in play(world, Path(name) / f"batch-{number}", chosen[number:number + _BATCH]):
                cell = played.cell
                line = f"{cell.transaction:6}  {cell.point:16}  {cell.end:11}  {cell.next:15}  {cell.contract:10}  {cell.way:6}"
                print(f"{line}  {'FAILED: ' + played.problem if played.problem else 'passed'}", flush=True)
                passed, failed = passed + (not played.problem), failed + bool(played.problem)
    print(f"\n{passed} passed, {failed} failed ({time.monotonic() - started:.0f} s)")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
