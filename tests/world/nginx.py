# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real nginx as TLS endpoint, one port for each site. Its package is unpacked into the cache, not installed, since installing it would start it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .errors import WorldError
from .machine import cache_directory
from .processes import wait_until

__all__ = ["Nginx", "Site", "nginx_program"]


def nginx_program() -> str:
    """Return the path of nginx: this machine's own, or the one unpacked from the distribution's package. Raises WorldError with the remedy."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    kept = cache_directory() / "nginx"
    program = kept / "usr" / "sbin" / "nginx"
    if found or program.exists():
        return found or str(program)
    remedy = "Install nginx yourself."
    if shutil.which("apt-get") is None:
        raise WorldError("This machine has no nginx and is not a Debian or Ubuntu.", remedy)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        # An account of apt's own fetches, and has to get in.
        Path(folder).chmod(0o755)
        done = _download(folder)
        if done.returncode:  # a machine that has never asked what packages there are, or long ago
            subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, check=False)
            done = _download(folder)
        packages = sorted(Path(folder).glob("nginx_*.deb"))
        if done.returncode or not packages:
            raise WorldError(f"`apt-get download nginx` failed: {done.stderr.strip()[-300:]}", remedy)
        subprocess.run(["dpkg-deb", "--extract", str(packages[0]), f"{folder}/tree"], check=True)
        with contextlib.suppress(OSError):  # somebody else was faster
            Path(folder, "tree").rename(kept)
    return str(program)


def _download(folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["apt-get", "download", "--quiet", "nginx"], cwd=folder, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Site:
    """What one port serves. certificate holds the chain; options are further directives. Without a certificate it speaks plain HTTP."""

    certificate: Path | None = None
    key: Path | None = None
    options: Sequence[str] = ()


@dataclass
class Nginx:
    """An nginx that serves *sites* on loopback while inside; *ports* are in their order."""

    directory: Path
    sites: Sequence[Site]
    ports: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Nginx:
        program = nginx_program()
        with contextlib.ExitStack() as stack:
            reserved = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _site in self.sites]
            self.ports = [one.getsockname()[1] for one in reserved]
        (self.directory / "nginx.conf").write_text(self._configuration())
        self._process = subprocess.Popen(
            [program, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf"), "-e", "error.log"], stdin=subprocess.DEVNULL)
        process = self._process
        if not wait_until(lambda: process.poll() is not None or self._answers(), 30, 0.05) or process.poll() is not None:
            self._end()
            raise WorldError(f"nginx does not start: {(self.directory / 'error.log').read_text()[-500:]}", "Read what it says.")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports[-1]), timeout=1).close()
        except OSError:
            return False
        return True

    def _configuration(self) -> str:
        places = "".join(f"{kind}_temp_path temp-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        servers = "".join(self._server(site, port) for site, port in zip(self.sites, self.ports))
        user = "user root;" if os.geteuid() == 0 else ""
        return f"daemon off; pid nginx.pid; {user} worker_processes 1; events {{}}\nhttp {{ access_log off; {places}\n{servers}}}\n"

    def _server(self, site: Site, port: int) -> str:
        tls = "" if site.certificate is None else f"ssl_certificate {site.certificate}; ssl_certificate_key {site.key}; ssl_ciphers ALL:@SECLEVEL=0;"
        options = " ".join(f"{option};" for option in site.options)
        return f"server {{ listen 127.0.0.1:{port}{' ssl' if tls else ''}; {tls} {options} }}\n"
