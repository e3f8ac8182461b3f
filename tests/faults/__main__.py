# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m faults``: plays the crash matrix, kills at random moments, measures downtime; one line for each, and "N passed, 0 failed" at the end."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from integration.agents import CONTRACTS, World
from integration.atlas import Atlas, atlases

from reference_server.client import ReferenceServer, Tls, VaultLink
from world import OpenBao
from world.ca import CertificateAuthority

from .downtime import rotations
from .matrix import ELSEWHERE, ENDS, NEXT, POINTS, Cell, cells, play
from .randoms import HOSTS, rounds

# Cells that are played together; their hosts and servers are shared. A pair's rotation starts Python on its host several times, which takes longer.
_BATCH, _BATCH_OF_PAIRS = 60, 20


@contextmanager
def _world(directory: Path) -> Iterator[World]:
    """One Stacker of each contract and an OpenBao."""
    directory.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def _atlas(directory: Path) -> Iterator[Atlas]:
    """One KubeAtlas of each contract."""
    place = directory / "agents-ca"
    place.mkdir(parents=True)
    authority = CertificateAuthority(directory / "ca")
    pair = authority.server()
    with atlases(authority, Tls(str(pair.cert), str(pair.key)), place) as atlas:
        yield atlas


def _chosen(arguments: argparse.Namespace) -> list[Cell]:
    points = {name: [point for point in POINTS[name] if not arguments.point or point in arguments.point] for name in arguments.transaction}
    return cells(points, arguments.end, arguments.next, both=arguments.both)


def _matrix(arguments: argparse.Namespace, place: Path) -> Iterator[tuple[str, str]]:
    """Play the cells. Yields a line and what was wrong for each."""
    chosen = _chosen(arguments)
    tokens, pairs = [cell for cell in chosen if not cell.of_pair], [cell for cell in chosen if cell.of_pair]
    if tokens:
        with _world(place / "tokens") as world:
            yield from _batches(world, list(world.stackers.values()), place / "tokens", tokens, _BATCH)
    if pairs:
        with _atlas(place / "pairs") as atlas:
            yield from _batches(atlas, list(atlas.servers.values()), place / "pairs", pairs, _BATCH_OF_PAIRS)
    for row, reason in ELSEWHERE.items():
        print(f"no cell: {row}: {reason}")


def _batches(world: World | Atlas, servers: list[ReferenceServer], place: Path, chosen: list[Cell], size: int) -> Iterator[tuple[str, str]]:
    for number in range(0, len(chosen), size):
        for server in servers:
            server.reset()
        for played in play(world, place / f"batch-{number}", chosen[number:number + size]):
            cell = played.cell
            yield (f"{cell.transaction:9}  {cell.row:3}  {cell.point:16}  {cell.end:11}  {cell.next:15}  {cell.contract:10}  {cell.way:6}",
                   played.problem)


def _random(arguments: argparse.Namespace, place: Path) -> Iterator[tuple[str, str]]:
    """Kill at random moments. Yields a line and what was wrong for each."""
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"random: seed {seed}, {arguments.kills} deploys and {arguments.kills} rotations of {HOSTS} hosts", flush=True)
    with _world(place) as world:
        for killed in rounds(world, place / "random", arguments.kills, seed):
            what = "the whole run" if killed.whole else "ansible-playbook"
            yield f"random  {killed.run:6}  {what:16}  killed after {killed.after:5.2f} s, {killed.done:2} results by then", killed.problem


def _downtime(arguments: argparse.Namespace, place: Path) -> Iterator[tuple[str, str]]:
    """Rotate under load. Yields a line and what was wrong for each."""
    for served in rotations(place, arguments.rotations):
        bound = f"allowed {served.case.bound:g} s" if served.case.bound else "allowed none"
        line = (f"downtime  {served.case.name}: {served.rotated} rotations, {served.done} of {served.commands} commands done, "
                f"{served.requests} requests, {served.refused} refused, at most {served.longest:.2f} s at a time ({bound})")
        yield line, "" if served.good else "more than is allowed"


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[tuple[str, str]]]] = {"matrix": _matrix, "random": _random, "downtime": _downtime}


def main() -> int:
    """Command line. Returns 1 when something failed."""
    parser = argparse.ArgumentParser(prog="faults", description="End enrolments and rotations in every way, and see what the next run makes of it.")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    matrix = parser.add_argument_group("matrix: every step, ended in every way")
    matrix.add_argument("--transaction", nargs="+", default=list(POINTS), choices=list(POINTS))
    matrix.add_argument("--point", nargs="+", default=[])
    matrix.add_argument("--end", nargs="+", default=list(ENDS), choices=ENDS)
    matrix.add_argument("--next", nargs="+", default=list(NEXT), choices=NEXT)
    matrix.add_argument("--both", action="store_true", help="play each cell with both contracts")
    chance = parser.add_argument_group("random: ansible-playbook killed at any moment")
    chance.add_argument("--kills", type=int, default=50, help="how many deploys, and how many rotations")
    chance.add_argument("--seed", type=int, help="repeat an earlier choice of moments")
    parser.add_argument_group("downtime: what rotations cost a client").add_argument("--rotations", type=int, default=20)
    arguments = parser.parse_args()
    started, passed, failed = time.monotonic(), 0, 0
    for part in arguments.part:
        with tempfile.TemporaryDirectory(prefix="muster-faults-") as name:
            for line, problem in PARTS[part](arguments, Path(name)):
                print(f"{line}  {'FAILED: ' + problem if problem else 'passed'}", flush=True)
                passed, failed = passed + (not problem), failed + bool(problem)
    print(f"\n{passed} passed, {failed} failed ({time.monotonic() - started:.0f} s)")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
