# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line: ``python -m world up|down|status|env|summary`` (PYTHONPATH=tests).

Options may also stand in the environment variable MUSTER_WORLD_FLAGS, and the directory in MUSTER_WORLD.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import time
from pathlib import Path

from .errors import WorldError
from .machine import TOP

try:
    from .summary import summary
    from .world import Settings, World
except ImportError as missing:
    sys.exit(f"world: {missing}. Use the Python that `python3 -m world.venvs demo` prints.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="world", description="A world to enrol agents in: control plane, OpenBao, systemd hosts.")
    parser.add_argument("command", choices=("up", "down", "status", "env", "summary"))
    parser.add_argument("--state", type=Path, default=Path(os.environ.get("MUSTER_WORLD") or TOP / "build" / "world"), metavar="DIR")
    parser.add_argument("--contract", choices=("documented", "shipped"), help="what the control plane speaks (default: documented)")
    parser.add_argument("--hosts", metavar="SUITE,...", help="Debian suites of the hosts, or none (default: bookworm,trixie)")
    parser.add_argument("--name", help="prefix of containers and network (default: muster)")
    parser.add_argument("--network", metavar="CIDR", help="network of the hosts (default: 10.231.7.0/24)")
    parser.add_argument("--control-plane-port", type=int, metavar="PORT")
    parser.add_argument("--control-port", type=int, metavar="PORT", help="the control plane's API for tests")
    parser.add_argument("--both-contracts", action=argparse.BooleanOptionalAction, help="a second control plane speaks the other contract")
    parser.add_argument("--vault-port", type=int, metavar="PORT")
    parser.add_argument("--trust-ca", action=argparse.BooleanOptionalAction, help="let the hosts' system store trust the world's CA")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    """Settings of a new world, or those of the existing one, changed by the options that were given."""
    file = arguments.state / "world.json"
    base = Settings.load(file) if file.exists() else Settings()
    suites = arguments.hosts
    changes = {
        "contract": arguments.contract,
        "name": arguments.name,
        "network": arguments.network,
        "suites": None if suites is None else () if suites == "none" else tuple(suites.split(",")),
        "control_plane_port": arguments.control_plane_port,
        "control_port": arguments.control_port,
        "vault_port": arguments.vault_port,
        "both_contracts": arguments.both_contracts,
        "trust_ca": arguments.trust_ca,
    }
    return dataclasses.replace(base, **{name: value for name, value in changes.items() if value is not None})


def open_world(words: list[str]) -> World:
    """Return the world that the options in ``words`` and in MUSTER_WORLD_FLAGS describe. Nothing is started."""
    arguments = _parse(["status", *words])
    return World(arguments.state, _settings(arguments))


def _parse(words: list[str]) -> argparse.Namespace:
    return _parser().parse_args([*shlex.split(os.environ.get("MUSTER_WORLD_FLAGS", "")), *words])


def main() -> int:
    """Run one command. Returns the exit status: 0 done, 1 not running (status), 2 a WorldError, explained on stderr."""
    arguments = _parse(sys.argv[1:])
    try:
        if arguments.command != "up" and not (arguments.state / "world.json").exists():
            print(f"There is no world in {arguments.state}.")
            return 0 if arguments.command == "down" else 1
        world = World(arguments.state, _settings(arguments))
        return _run(arguments.command, world)
    except WorldError as problem:
        print(f"world: {problem}", file=sys.stderr)
    except PermissionError as problem:
        print(f"world: {problem}. Run the same command with sudo.", file=sys.stderr)
    return 2


def _run(command: str, world: World) -> int:
    if command == "up":
        started = time.monotonic()
        world.up()
        print(f"The world is up ({time.monotonic() - started:.0f} s): {', '.join(world.status())}; inventory {world.inventory}")
    elif command == "down":
        world.down()
        print("The world is down.")
    elif command == "env":
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in world.environment().items()))
    elif command == "summary":
        print(summary(world))
    else:
        states = world.status()
        print("\n".join(f"{part:20} {state}" for part, state in states.items()))
        return 0 if set(states.values()) == {"running"} else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
