# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real systemd hosts in privileged podman containers, reached by plain ssh as production hosts are.

The same code serves an ordinary Debian or Ubuntu (cgroup v2, systemd as first process) and a bare build machine (hybrid cgroups, no
systemd, low resource limits): what differs is detected in ``_podman_environment`` and in the image's ``ct-init``.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import IO

from .errors import WorldError
from .machine import cache_directory, pure_cgroup_v2
from .processes import port_in_use, wait_until

__all__ = ["DEFAULT_NETWORK", "SUITES", "Fleet", "Host"]

SUITES: Mapping[str, int] = {"bookworm": 11, "trixie": 12, "bullseye": 13}
"""Debian releases a host can run, and the last byte of the host's address."""

_FURTHER = 20  # from the address of a suite's host to that of its next one

DEFAULT_NETWORK = "10.231.7.0/24"

_IMAGES = Path(__file__).resolve().parent.parent / "images"


def _podman_environment(directory: Path) -> dict[str, str]:
    """Return the environment for podman, with a containers.conf of our own only where podman's defaults cannot work.

    With cgroup v1 or hybrid, crun refuses what systemd needs and runc does not. Without CAP_SYS_RESOURCE podman's default ulimits lie
    above the hard limit and no container starts.
    """
    lines = []
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < 1048576:
        processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        processes = 4096 if processes == resource.RLIM_INFINITY else min(processes, 4096)
        lines += ["[containers]", f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]']
    if not pure_cgroup_v2():
        lines += ["[engine]", 'runtime = "runc"']
    environment = dict(os.environ)
    if lines:
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "containers.conf"
        config.write_text("\n".join(lines) + "\n")
        environment["CONTAINERS_CONF"] = str(config)
    return environment


@dataclass(frozen=True)
class Host:
    """One systemd host: its container name (and inventory name), Debian suite and address."""

    name: str
    suite: str
    address: str


class Fleet:
    """The hosts of one world, one for each suite that is named, on one podman network whose gateway is the machine itself."""

    def __init__(self, directory: Path, *, name: str = "muster", network: str = DEFAULT_NETWORK, suites: Sequence[str] = ()) -> None:
        """``directory`` keeps the ssh key. ``name`` prefixes containers and the podman network; ``suites`` are keys of SUITES, which may recur."""
        unknown = [suite for suite in suites if suite not in SUITES]
        if unknown:
            raise WorldError(f"No image recipe for {', '.join(unknown)}.", f"Choose from {', '.join(SUITES)}.")
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.name = name
        self.network = IPv4Network(network)
        self.hosts = tuple(self._host(suite, suites[:number].count(suite)) for number, suite in enumerate(suites))
        self.key_file = directory / "id_ed25519"
        self._environment = _podman_environment(directory)

    @property
    def gateway(self) -> str:
        """The machine's own address as the hosts see it."""
        return str(IPv4Address(self.network[1]))

    def _host(self, suite: str, before: int) -> Host:
        """Describe the next host of a suite, of which there are ``before`` already."""
        suffix = f"-{before + 1}" if before else ""
        return Host(f"{self.name}-{suite}{suffix}", suite, str(self.network[SUITES[suite] + _FURTHER * before]))

    # -- life

    def up(self, trust: Path | None = None) -> list[str]:
        """Build what is missing and start what does not run; hosts that are up and unchanged are left alone.

        ``trust``: a CA file that the hosts' system store shall trust. Returns the names of the hosts that had to be started.
        """
        self._make_key()
        suites = list(dict.fromkeys(host.suite for host in self.hosts))
        with ThreadPoolExecutor(max_workers=2) as pool:
            images = dict(zip(suites, pool.map(self._image, suites)))
        started = [host.name for host in self.hosts if self._run(host, images[host.suite], trust)]
        for host in self.hosts:
            self._wait(host)
            if trust and host.name in started:
                self._trust(host, trust)
        return started

    def down(self) -> None:
        """Remove every container of this name, and the network. Images stay in the cache."""
        listed = self._podman("ps", "--all", "--filter", f"label=muster.world={self.name}", "--format", "{{.Names}}", check=False)
        for container in listed.stdout.split():
            self._podman("rm", "--force", "--volumes", "--time=0", container, check=False)
        if self._podman("network", "exists", self._network_name, check=False).returncode == 0:
            self._podman("network", "rm", "--force", self._network_name)

    def running(self, host: Host) -> bool:
        """Whether the host's container runs: podman still says so of one whose processes ended together with podman's own, as in a lost machine."""
        answer = self._podman("container", "inspect", "--format", "{{.State.Running}} {{.State.Pid}}", host.name, check=False)
        state, _space, process = answer.stdout.strip().partition(" ")
        return answer.returncode == 0 and state == "true" and b"init" in _command_line(process)

    def execute(self, host: Host, *command: str, stdin: str = "") -> str:
        """Run ``command`` on the host without ssh. Returns its output; raises WorldError when it fails."""
        return self._podman("exec", "--interactive", host.name, *command, stdin=stdin).stdout

    def reaches(self, host: Host, port: int) -> bool:
        """Whether the host can open a TCP connection to ``port`` on the machine (a local firewall may forbid it)."""
        probe = f"import socket; socket.create_connection(('{self.gateway}', {port}), 5).close()"
        return self._podman("exec", host.name, "python3", "-c", probe, check=False).returncode == 0

    # -- parts

    @property
    def _network_name(self) -> str:
        return f"{self.name}-net"

    def _make_key(self) -> None:
        if not self.key_file.exists():
            _command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "muster.agents test hosts", "-f", str(self.key_file)])

    def _make_network(self) -> None:
        if self._podman("network", "exists", self._network_name, check=False).returncode == 0:
            return
        made = self._podman("network", "create", f"--subnet={self.network}", f"--gateway={self.gateway}", self._network_name, check=False)
        if made.returncode:
            raise WorldError(f"The network {self.network} cannot be made: {made.stderr.strip()}.", "Choose another one with --network.")

    def _image(self, suite: str) -> str:
        """Return the name of the suite's image: present, imported from the cache, or built (about half a minute)."""
        recipe = hashlib.sha256(suite.encode())
        for part in ("mkimg.sh", "ct-init"):
            recipe.update((_IMAGES / part).read_bytes())
        tag = recipe.hexdigest()[:12]
        image = f"localhost/muster-host-{suite}:{tag}"
        if self._podman("image", "exists", image, check=False).returncode == 0:
            return image
        archive = cache_directory() / "images" / f"{suite}-{tag}.tar.zst"
        if not archive.exists():
            self._build(suite, archive)
        with subprocess.Popen(["zstd", "--decompress", "--stdout", str(archive)], stdout=subprocess.PIPE) as unpack:
            self._podman(
                "import",
                "--quiet",
                "--change",
                'CMD ["/sbin/ct-init"]',
                "--change",
                "STOPSIGNAL SIGRTMIN+3",
                "-",
                image,
                stream=unpack.stdout,
            )
        if unpack.returncode:
            archive.unlink()
            raise WorldError(f"The cached image {archive} is damaged and was removed.", "Run the same command again.")
        return image

    @staticmethod
    def _build(suite: str, archive: Path) -> None:
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_name(f"unfinished-{os.getpid()}-{archive.name}")
        try:
            _command(["sh", str(_IMAGES / "mkimg.sh"), suite, str(unfinished)])
            unfinished.replace(archive)
        finally:
            unfinished.unlink(missing_ok=True)

    def _run(self, host: Host, image: str, trust: Path | None) -> bool:
        """Start the host unless it runs as wanted. Returns whether anything was done."""
        public = self.key_file.with_suffix(".pub")
        wanted = hashlib.sha256("\n".join([image, str(self.network), public.read_text(), trust.read_text() if trust else ""]).encode()).hexdigest()[:16]
        owner = self._label(host, "muster.directory")
        if owner and owner != str(self.directory) and Path(owner).exists() and self.running(host):
            raise WorldError(
                f"{host.name} belongs to the world in {Path(owner).parent}.",
                "Take that one down first, or give this one its own --name, --network and ports.",
            )
        if self._label(host, "muster.recipe") == wanted:
            if self.running(host):
                return False
            self._podman("start", host.name)
            return True
        self._make_network()
        self._podman(
            "run",
            "--detach",
            "--replace",
            f"--name={host.name}",
            f"--hostname={host.name}",
            f"--network={self._network_name}",
            f"--ip={host.address}",
            f"--label=muster.world={self.name}",
            f"--label=muster.recipe={wanted}",
            f"--label=muster.directory={self.directory}",
            f"--add-host=control.muster.test:{self.gateway}",
            f"--add-host=vault.muster.test:{self.gateway}",
            "--systemd=always",
            "--privileged",
            # A cgroup namespace of its own, else systemd's resource limits are accepted and not enforced.
            "--cgroupns=private",
            f"--volume={public}:/root/.ssh/authorized_keys:ro",
            image,
            "/sbin/ct-init",
        )
        return True

    def _label(self, host: Host, label: str) -> str:
        answer = self._podman("container", "inspect", "--format", f'{{{{index .Config.Labels "{label}"}}}}', host.name, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def _wait(self, host: Host) -> None:
        def settled() -> bool:
            state = self._podman("exec", host.name, "systemctl", "is-system-running", "--wait", check=False).stdout.strip()
            return state in ("running", "degraded")

        if not (wait_until(settled, 90, 0.3) and wait_until(lambda: port_in_use(host.address, 22), 30, 0.2)):
            log = self._podman("logs", "--tail", "15", host.name, check=False)
            raise WorldError(
                f"{host.name} does not come up; the end of its console:\n{log.stdout}{log.stderr}",
                "Privileged containers with systemd inside are needed; see the host requirements in CONTRIBUTING.md.",
            )

    def _trust(self, host: Host, ca_file: Path) -> None:
        self.execute(host, "tee", "/usr/local/share/ca-certificates/muster-world.crt", stdin=ca_file.read_text())
        self.execute(host, "update-ca-certificates")

    def _podman(self, *arguments: str, check: bool = True, stdin: str = "", stream: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        return _command(["podman", *arguments], check=check, stdin=stdin, stream=stream, environment=self._environment)


def _command_line(process: str) -> bytes:
    """Return the command line of a process by its number, empty when there is none."""
    try:
        return Path("/proc", process, "cmdline").read_bytes()
    except OSError:
        return b""


def _command(
    command: list[str],
    *,
    check: bool = True,
    stdin: str = "",
    stream: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` with a text or an open stream on stdin. Raises WorldError with the end of its output when ``check`` and it fails."""
    if stream is not None:
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False, env=environment)
    else:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment)
    if check and done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        raise WorldError(f"`{' '.join(command[:4])} ...` failed with status {done.returncode}:\n{tail}")
    return done
