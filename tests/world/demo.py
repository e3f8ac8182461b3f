# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: a world, the collection built and installed, ``muster.agents.deploy`` run on it, and what witnesses say afterwards.

``python -m world.demo`` (in the environment ``demo``). With ``--unchanged`` the deploy must change nothing and send no mutating request.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from .__main__ import open_world
from .errors import WorldError
from .machine import TOP
from .summary import complete, rows, summary
from .world import World

__all__ = ["main"]

_CHANGED = re.compile(r"\bchanged=([1-9]\d*)")


def _install_collection() -> Path:
    """Build the tarball and install it. Returns the folder for ANSIBLE_COLLECTIONS_PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "gates.build", "demo"],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorldError(f"The collection cannot be built:\n{done.stdout}{done.stderr}")
    return TOP / "build" / "collections"


def _deploy(world: World, collections: Path) -> str:
    """Run the playbook, showing its output as it comes. Returns the output; raises WorldError when it fails."""
    command = _command(world)
    print(f"$ {shlex.join(command)}\n", flush=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
    }
    lines = []
    with subprocess.Popen(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise WorldError(f"The deploy failed with status {process.returncode}.", "The world is left up: see above, and try again.")
    return "".join(lines)


def _command(world: World) -> list[str]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return [program, "muster.agents.deploy", "-i", str(world.inventory), "-e", f"@{world.demo_variables}"]


def _check_unchanged(world: World, output: str) -> None:
    recap = output.rsplit("PLAY RECAP", 1)[-1]
    if _CHANGED.search(recap):
        raise WorldError("Deploying again changed something; see the recap above.")
    sent = world.reference.counters().get("stacker", {}).get("mutating", 0)
    if sent or world.vault.mutations():
        listed = ", ".join(world.vault.mutating_requests()) or "none"
        raise WorldError(f"Deploying again sent {sent} mutating requests to the control plane; to OpenBao: {listed}.")
    print("\nNothing changed, and neither the control plane nor OpenBao saw a mutating request.")


def _next(world: World, collections: Path) -> str:
    host = world.fleet.hosts[0]
    ssh = f"ssh -i {world.fleet.key_file} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@{host.address}"
    again = shlex.join(_command(world))
    return "\n".join(
        [
            "",
            "The world is left up. Try:",
            f"  export ANSIBLE_COLLECTIONS_PATH={collections}",
            f"  {again}                    # again: nothing changes",
            f"  {again} --check --diff     # what would change: nothing",
            f"  {ssh}                      # look at a host",
            "  make demo-down             # remove everything",
        ]
    )


def main() -> int:
    """Command line. Returns 0 when every host is enrolled, healthy and seen."""
    parser = argparse.ArgumentParser(prog="world.demo")
    parser.add_argument("--unchanged", action="store_true", help="fail when the deploy changes anything")
    unchanged = parser.parse_args().unchanged
    try:
        print("Bringing the world up (the first time this builds two host images) ...", flush=True)
        world = open_world([])
        world.up()
        collections = _install_collection()
        world.reference.reset_counters()
        world.vault.reset_mutations()
        started = time.monotonic()
        output = _deploy(world, collections)
        seconds = time.monotonic() - started
        if unchanged:
            _check_unchanged(world, output)
        print(f"\n{summary(world, seconds)}")
        missing = [row.host for row in rows(world) if not complete(row)]
        if missing:
            raise WorldError(f"Not enrolled, healthy and seen: {', '.join(missing)}.")
        print(_next(world, collections))
    except WorldError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    except PermissionError as problem:
        print(f"demo: {problem}. Run the same command with sudo.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
