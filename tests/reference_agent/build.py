# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build release artefacts of the reference agents: one executable file each, with a ``.sha256`` beside it.

``python tests/reference_agent/build.py OUTDIR --version 1.0.0`` writes
``status-panel-1.0.0-linux-any`` (documented face) and ``status-1.0.0-linux-any`` (shipped face).
``--agent cluster-agent`` writes those of another agent instead.
``--broken`` writes artefacts that fail in one way, for the tests of the health gate.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Each agent: its source, and the names of its artefacts by face.
AGENTS = {
    "status-panel": ("status_panel.py", {"documented": "status-panel", "shipped": "status"}),
    "cluster-agent": ("cluster_agent.py", {"documented": "kubeatlas-agent", "shipped": "kubeatlas-agent-shipped"}),
    "collector": ("collector.py", {"documented": "pganalytics", "shipped": "pganalytics-collector"}),
    "metrics-agent": ("metrics_agent.py", {"documented": "oxmon-agent", "shipped": "oxmon-agent-shipped"}),
}
FACES = AGENTS["status-panel"][1]
BREAKAGES = ("exit", "hang", "badtoken", "portless", "arch")

__all__ = ["AGENTS", "BREAKAGES", "FACES", "build"]


def build(folder: Path, version: str = "1.0.0", broken: str = "", agent: str = "status-panel") -> list[Path]:
    """Write both artefacts of an agent and their checksums, and return the artefacts' paths.

    ``broken``: ``exit`` (ends at once), ``hang`` (runs, does nothing), ``badtoken`` (spoils its
    token), ``portless`` (heartbeats, serves nothing), ``arch`` (an executable of another machine).
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, faces = AGENTS[agent]
    return [_write(folder / f"{name}-{version}-linux-any", _content(HERE / source, face, version, broken)) for face, name in faces.items()]


def _content(source: Path, face: str, version: str, broken: str) -> bytes:
    if broken == "arch":
        return _foreign_elf()
    text = "#!/usr/bin/python3\n" + source.read_text(encoding="utf-8")
    for constant, old, new in (("FACE", "documented", face), ("VERSION", "1.0.0", version), ("BROKEN", "", broken)):
        line = f'{constant} = "{old}"\n'
        if text.count(line) != 1:
            raise ValueError(f"{source.name} does not set {constant} exactly once")
        text = text.replace(line, f'{constant} = "{new}"\n')
    return text.encode()


def _foreign_elf() -> bytes:
    """An ELF header for s390x: big-endian, machine 22; no x86 or ARM kernel starts it."""
    identity = b"\x7fELF" + bytes([2, 2, 1, 0]) + bytes(8)
    return identity + struct.pack(">HHIQQQIHHHHHH", 2, 22, 1, 0x400000, 64, 0, 0, 64, 56, 0, 64, 0, 0)


def _write(path: Path, content: bytes) -> Path:
    """Write an executable and its checksum file, each in one step."""
    for target, data, mode in (
        (path, content, 0o755),
        (path.with_name(f"{path.name}.sha256"), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode(), 0o644),
    ):
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_bytes(data)
        beside.chmod(mode)
        beside.replace(target)
    return path


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build release artefacts of the reference agent.")
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--broken", default="", choices=("", *BREAKAGES))
    parser.add_argument("--agent", default="status-panel", choices=sorted(AGENTS))
    options = parser.parse_args()
    for path in build(options.outdir, options.version, options.broken, options.agent):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
