# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cert_issue from end to end in one process: the controller's code, and the host's module run beside it on a directory of this machine."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast
from unittest import mock

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.muster.agents.plugins.action import cert_issue
from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.modules import key_pair
from ansible_collections.muster.agents.plugins.plugin_utils import _issuance
from ansible_collections.muster.agents.plugins.plugin_utils._pair_renewal import PairRenewal

__all__ = ["Authority", "Machine", "Way", "killed_at"]

_STEPS = ("rename", "replace", "symlink", "unlink", "mkdir", "rmdir", "fsync", "write", "fchmod", "fchown", "chmod")
Key = ec.EllipticCurvePrivateKey


class _Done(Exception):
    """The module came to its end with a result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("done")
        self.result = result


class _Module:
    """What key_pair needs of AnsibleModule."""

    def __init__(self, given: Mapping[str, Any], argument_spec: dict[str, Any], supports_check_mode: bool, check_mode: bool) -> None:
        validated = ArgumentSpecValidator(argument_spec).validate(dict(given))
        if validated.error_messages:
            raise AssertionError(validated.error_messages)
        self.params = validated.validated_parameters
        self.check_mode = check_mode and supports_check_mode
        self.labels: list[tuple[str, str]] = []

    def selinux_enabled(self) -> bool:
        return False

    def exit_json(self, **result: Any) -> NoReturn:
        raise _Done(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise _Done({**result, "failed": True})


class Way:
    """The way to the host: the module in this process, and scripts in the shell *runs* where one is named. *clock* is how far its clock is off."""

    def __init__(self, *, check_mode: bool = False, clock: float = 0.0, runs: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.check_mode = check_mode
        self.clock = clock
        self.visits: list[str] = []
        self.answers: list[str] = []
        self.truncate: int | None = None
        self._shell = [str(shutil.which(runs)), *(["sh"] if runs == "busybox" else [])] if runs else []
        self._environment = {"PATH": os.environ["PATH"], **(environment or {})}

    def run_script(self, script: str, data: bytes | None = None) -> tuple[int, str, str] | None:
        if not self._shell:
            return None
        self.visits.append("script")
        done = subprocess.run(
            [*self._shell, "-c", script], check=False, capture_output=True, input=(data or b"")[: self.truncate], env=self._environment,
            start_new_session=True)
        self.answers.append(done.stdout.decode())
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def execute(self, module: str, options: Mapping[str, Any]) -> dict[str, Any]:
        assert module == "muster.agents.key_pair"
        self.visits.append(options["operation"])
        with mock.patch.object(key_pair, "AnsibleModule", lambda **spec: _Module(options, check_mode=self.check_mode, **spec)):
            try:
                key_pair.main()
            except _Done as done:
                result = done.result
        if "time" in result:
            result["time"] += self.clock
        return result


class Authority:
    """A CA of a test's own making in *directory*; *more* turns it into one that is wrong in some way."""

    def __init__(
        self, directory: Path, name: str = "Agents", *, above: Authority | None = None, days: tuple[float, float] = (-1, 3650), is_ca: bool | None = True,
        path_length: int | None = None, usage: tuple[bool, bool] | None = (True, True), password: str = "", key: Any = None,
    ) -> None:
        """*usage*: keyCertSign and cRLSign, None for no such extension. *is_ca* None: no basic constraints."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.above = above
        now = datetime.datetime.now(datetime.timezone.utc)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        builder = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(above.name if above else self.name).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1])).add_extension(identifier, critical=False))
        if is_ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None), critical=True)
        if usage is not None:
            flags = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
                                   "decipher_only"), False)
            builder = builder.add_extension(x509.KeyUsage(**{**flags, "digital_signature": True}, key_cert_sign=usage[0], crl_sign=usage[1]), critical=True)
        signer = above.key if above else self.key
        self.certificate = builder.sign(signer, hashes.SHA256() if hasattr(signer, "curve") or hasattr(signer, "key_size") else None)
        self.file, self.key_file, self.records = directory / f"{name}.pem", directory / f"{name}.key", directory / f"{name}-records"
        above_pem = above.file.read_bytes() if above else b""
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM) + above_pem)
        encryption: Any = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        self.key_file.write_bytes(self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of cert_issue that name this CA; None removes one."""
        own = {"certificate": str(self.file), "key": str(self.key_file), "directory": str(self.records), **changes}
        return {"issuer": "own_ca", "own_ca": {key: value for key, value in own.items() if value is not None}}

    def issued(self) -> list[str]:
        """The lines of the index."""
        index = self.records / "index.txt"
        return index.read_text().splitlines() if index.exists() else []

    def by_hand(self, machine: Machine, request: x.Request, *, days: tuple[float, float] = (-1, 365), **more: Any) -> None:
        """Put a plain pair at the machine's fixed paths, as somebody's own script does.

        *more*: ``serial``, and ``asked`` for the signing request of another key, so that the pair does not belong together.
        """
        machine.certificate.parent.mkdir(parents=True, exist_ok=True)
        key, csr = x.new_key_and_request(request)
        asked = x.load_request(more.get("asked") or csr)
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder().subject_name(asked.subject).issuer_name(self.name).public_key(cast(Any, asked.public_key()))
            .serial_number(more.get("serial") or x509.random_serial_number()).not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1])))
        for extension in asked.extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        machine.certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        machine.certificate.chmod(0o644)
        machine.key.write_bytes(key)
        machine.key.chmod(0o600)
        machine.ca.write_bytes(self.file.read_bytes())
        machine.ca.chmod(0o644)


class Machine:
    """One host's files below *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate, self.key, self.ca = (directory / "certs" / name for name in ("agent.crt", "agent.key", "ca.crt"))
        self.unit = directory / "certs" / ".muster" / "agent.crt"
        self.visits: list[str] = []
        self.shell = ""
        self.environment: dict[str, str] = {}

    def options(self, **changes: Any) -> dict[str, Any]:
        """The options of cert_issue for this host; None removes one."""
        given = {
            "certificate_path": str(self.certificate), "key_path": str(self.key), "ca_path": str(self.ca), "subject": {"O": "Example", "CN": "agent-web"},
            "owner": str(os.geteuid()), "group": str(os.getegid()), **changes,
        }
        return {key: value for key, value in given.items() if value is not None}

    def issue(self, *, check_mode: bool = False, diff: bool = False, clock: float = 0.0, **changes: Any) -> dict[str, Any]:
        """Run cert_issue and return its result. Raises AgentsError."""
        validated = ArgumentSpecValidator(cert_issue.ARGUMENT_SPEC, **cert_issue.RULES).validate(self.options(**changes))
        assert not validated.error_messages, validated.error_messages
        host = Way(check_mode=check_mode, clock=clock, runs=self.shell, environment=self.environment)
        action: Any = SimpleNamespace(_task=SimpleNamespace(check_mode=check_mode, diff=diff))
        with mock.patch.object(_issuance, "Host", lambda *_args, **_options: host):
            try:
                return _issuance.issue(action, validated.validated_parameters, {})
            finally:
                self.visits = host.visits

    def renewal(self, **changes: Any) -> PairRenewal:
        """A new pair for this host in two steps, with the options of cert_issue."""
        return PairRenewal(Way(check_mode=False), self.options(**changes), check_mode=False)

    def keep(self, certificate: str) -> dict[str, Any]:
        """Let the host keep a certificate (PEM) beside the key that waits."""
        places = {name: value for name, value in self.options().items() if name != "subject"}
        return _issuance.visit(Way(check_mode=False), {**places, "operation": "keep", "certificate": certificate})

    def leaf(self) -> x509.Certificate:
        """The certificate at the fixed path."""
        return x.load_certificates(self.certificate.read_bytes())[0]

    def is_whole(self) -> bool:
        """Whether key and certificate at the fixed paths belong together, and a service that starts now can load them."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError):
            return False
        return x.key_matches(self.leaf(), self.key.read_bytes())

    def is_tidy(self) -> bool:
        """Whether nothing lies about that is of no use."""
        hidden = {path.name for path in self.certificate.parent.iterdir()} - {"agent.crt", "agent.key", "ca.crt", ".muster"}
        inside = {path.name for path in self.unit.iterdir()} - {"current", "generations", "lock", "reload_pending"}
        numbers = [path.name for path in (self.unit / "generations").iterdir()]
        return not hidden and not inside and len(numbers) <= 2 and all(name.isdigit() for name in numbers)

    def everything(self) -> dict[str, tuple[int, bytes]]:
        """Every file and link with its mode and content."""
        return {
            str(path.relative_to(self.directory)): (path.lstat().st_mode, os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
            for path in sorted(self.directory.rglob("*")) if not path.is_dir() or path.is_symlink()}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do *work* in a process that is killed before its *step*-th change to a disk (from 1). Returns False when it came to its end before that."""
    child = os.fork()
    if child == 0:
        try:
            _countdown(step)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed"
    return False


def _countdown(step: int) -> None:
    left = [step]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **options)
        return run

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
