# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTP to a control plane: one keep-alive session, strict TLS, and failures told apart by what they mean (private to muster.agents).

A request that provably never arrived may be sent again; one whose answer was lost may not, unless it only reads. requests finds the proxy and knows its
kind; each request goes to urllib3's pool of connections straight, which costs half of what a requests session does with it.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import hashlib
import ipaddress
import json
import os
import re
import socket
import ssl
import time
import traceback
import typing as t
import warnings
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlencode, urlsplit

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    Ambiguous,
    InvalidInput,
    InvalidRequest,
    MissingLibrary,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
)
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pacer
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument

try:
    import requests.adapters
    import requests.utils
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.exceptions import ConnectTimeoutError, InsecureRequestWarning, NewConnectionError, ProxyError
    from urllib3.exceptions import HTTPError as Urllib3Error
    from urllib3.util import Retry, Timeout, parse_url
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None
    _NO_RETRIES = Retry(False, redirect=False)

__all__ = ["Answer", "Http", "Transport", "check_url", "require_library"]

_TLS_FLOORS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Made where the plugin is loaded, which is before ansible-playbook forks: reading the system's CAs takes longer than a whole enrolment's requests.
_SYSTEM_CAS = ssl.create_default_context()
_SYSTEM_CAS.minimum_version = ssl.TLSVersion.TLSv1_2


def _trusting_nobody() -> ssl.SSLContext:
    """Return what create_default_context makes, before it has loaded any CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options, context.verify_flags = _SYSTEM_CAS.options, _SYSTEM_CAS.verify_flags
    if _SYSTEM_CAS.keylog_filename:
        context.keylog_filename = _SYSTEM_CAS.keylog_filename
    return context


_SPARE = [_trusting_nobody()]  # likewise: each fork has one of its own to begin with
_RETRIED_STATUS = frozenset({502, 503, 504})
_TLS_OPTIONS = ("ca_cert", "client_cert", "client_key", "validate_certs", "tls_min_version", "ciphers")
_FEW = 16
_PAUSES = (0.1, 0.4, 1.0, 2.0, 4.0)
_MAX_WAIT = 60.0  # seconds that one Retry-After may ask for
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BODY_TIMEOUTS = 6  # an answer may take this many read timeouts in all: one that drips without end is cut off
_CHUNK = 65536
_PIN_PREFIX = r"(?:sha256(?://|:|/))?"
_MAX_BODY = 4 * 1024 * 1024
_SECRET_NAME = re.compile(r"authorization|password|secret|token", re.IGNORECASE)
_SHORTEST_SECRET = 4
_NO_HOST = re.compile(r"[\s\x00-\x1f\x7f]")


def require_library() -> None:
    """Raise MissingLibrary when requests or cryptography are not installed beside ansible-core."""
    if IMPORT_ERROR is not None:
        raise MissingLibrary(
            "The Python libraries requests and cryptography are needed on the controller: install the collection's requirements.txt "
            "into the environment that runs ansible-playbook.", traceback=IMPORT_ERROR)


@dataclass(frozen=True)
class Transport:
    """How to reach a server. timeout is in seconds, for connecting and for each read; retries counts further tries of what is safe to repeat.

    pin_sha256: SHA-256 of the server's certificate in hexadecimal (colons allowed) or of its public key (SPKI) in base64, as in RFC 7469.
    grpc_endpoint: where a control plane takes what agents report by gRPC, empty to derive it.
    patience: seconds after which a server that keeps asking to wait has failed. redirects: whether a redirect is an answer; it is never followed.
    """

    ca_cert: str = ""
    client_cert: str = ""
    client_key: str = ""
    validate_certs: bool = True
    pin_sha256: str = ""
    tls_min_version: str = "1.2"
    ciphers: str = ""
    proxy: str = ""
    timeout: float = 10.0
    retries: int = 3
    allow_plaintext: bool = False
    grpc_endpoint: str = ""
    patience: float = 900.0
    redirects: bool = False


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. *text* is kept out of repr, since it may hold a credential; *sent* are the secrets of the request, which a server may repeat.

    *headers* are asked for in lower case. *cookies* are those that this answer sets; none is ever sent back by itself.
    """

    status: int
    headers: t.Mapping[str, str]
    text: str = field(repr=False)
    sent: tuple[Secret, ...] = field(default=(), repr=False)
    cookies: t.Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def json(self) -> t.Any:
        """The body as JSON, None when it is not JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """The server's own words for a failure (JSON ``message``, ``error``, ``msg`` or plain text), at most 200 characters, less our secrets."""
        document = self.json
        if isinstance(document, dict):
            for key in ("message", "error", "msg"):
                if isinstance(document.get(key), str):
                    return _one_line(redact(document[key], self.sent))
            return ""
        return _one_line(redact(self.text, self.sent)) if self.headers.get("content-type", "text/plain").startswith("text/plain") else ""


def check_url(url: str, *, option: str, allow_plaintext: bool) -> str:
    """Return *url* without a trailing slash. Raises InvalidInput unless it is scheme://host[:port], and https except to loopback."""
    if "@" in url:
        raise InvalidInput(f"{option} holds a user name or password: give those through their own options.")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput(f"{option} {url!r} cannot be read: write it as https://host:port.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or _NO_HOST.search(url):
        raise InvalidInput(f"{option} {url!r} has no scheme or host: write it as https://host:port.")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise InvalidInput(f"{option} {url!r} has an impossible port: write it as https://host:port.")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput(f"{option} {url!r} has a path or query: give only {parts.scheme}://{parts.netloc}, the paths are added here.")
    if parts.scheme == "http" and not allow_plaintext and not _is_loopback(parts.hostname):
        raise InvalidInput(f"{option} {url!r} would send credentials in clear text: use https, or set allow_plaintext: true if the network is yours.")
    return f"{parts.scheme}://{parts.netloc}"


class Http:
    """A keep-alive session to one server. Not shared between threads."""

    def __init__(
        self, url: str, transport: Transport, *, option: str = "url", headers: t.Mapping[str, str] | None = None, pacer: Pacer | None = None,
    ) -> None:
        """Check *url* and the TLS options; nothing is sent. *pacer* is shared by the forks. Raises InvalidInput or MissingLibrary."""
        require_library()
        self.pacer = pacer or Pacer(SharedDocument(""), {})
        self.url = check_url(url, option=option, allow_plaintext=transport.allow_plaintext)
        self.transport = transport
        self.clock_skew: float | None = None
        self._last_date = ""
        if not transport.validate_certs:
            warnings.filterwarnings("ignore", category=InsecureRequestWarning)
        self._timeout = Timeout(connect=transport.timeout, read=transport.timeout)
        self._headers = {"User-Agent": "muster.agents", "Accept": "application/json", **(headers or {})}
        secure = self.url.startswith("https:")
        context = _tls_context(transport) if secure else None
        pin = _Pin.parse(transport.pin_sha256) if secure else None
        proxy = transport.proxy or _proxy_of_the_environment(self.url)
        self._base = ""
        if proxy:
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            self._pool = _pool_behind(proxy, self.url, context, pin)
            if not secure and not proxy.startswith("socks"):
                self._base = self.url  # such a proxy is told the whole address, and who asks
                self._headers.update(requests.adapters.HTTPAdapter().proxy_headers(proxy))
        else:
            self._pool = _direct_pool(self.url, context, pin)

    def get(
        self, path: str, *, params: t.Mapping[str, t.Any] | None = None, headers: t.Mapping[str, str] | None = None, bucket: str = "",
    ) -> Answer:
        """Read *path*; safe to repeat, so faults and throttling are retried. *bucket* is the pace that it counts towards.

        Raises Unreachable, Untrusted, ServerFault, Throttled, or InvalidRequest for a redirect, which is never followed.
        """
        return self._tried("GET", path, read=True, bucket=bucket, params=params, headers=headers)

    def send(
        self, method: str, path: str, *, json_body: t.Any = None, form: t.Mapping[str, str] | None = None, headers: t.Mapping[str, str] | None = None,
        read: bool = False, bucket: str = "",
    ) -> Answer:
        """Send a request that may change something, with a JSON body or a *form*. *read* marks a harmless one; *bucket* as for get.

        Raises as get does, and Ambiguous when it may have been carried out.
        """
        return self._tried(method, path, read=read, bucket=bucket, json_body=json_body, form=form, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _tried(self, method: str, path: str, *, read: bool, bucket: str, **request: t.Any) -> Answer:
        pauses = iter((_PAUSES * 4)[: max(0, self.transport.retries)])
        patient = self.transport.retries > 0
        waited = 0.0
        while True:
            delay = self.pacer.delay(bucket)
            if delay > 0:
                time.sleep(delay)
            try:
                answer = self._once(method, path, read=read, **request)
            except (Unreachable, ServerFault):
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
                continue
            if answer.status == 429:
                wait = _retry_after(answer)
                waited += max(wait, _PAUSES[0])
                if not patient or wait > _MAX_WAIT or waited > self.transport.patience:
                    raise Throttled(f"{self.url} asks to wait {wait:.0f} seconds before the next request.", retry_after=wait)
                self.pacer.refused(bucket, max(wait, _PAUSES[0]))
                continue
            if answer.status in _REDIRECTS and not self.transport.redirects:
                raise self._redirected(answer)
            pause = next(pauses, None) if read and answer.status in _RETRIED_STATUS else None
            if pause is not None:
                time.sleep(pause)
                continue
            return answer

    def _redirected(self, answer: Answer) -> InvalidRequest:
        target = urlsplit(answer.headers.get("location", ""))
        where = f"{target.scheme}://{target.netloc}" if target.netloc else "another path"
        return InvalidRequest(
            f"{self.url} redirects to {where}: credentials are not sent along. Give the address of the control plane itself.", reason="redirected")

    def _once(
        self, method: str, path: str, *, read: bool, params: t.Mapping[str, t.Any] | None = None, json_body: t.Any = None,
        form: t.Mapping[str, str] | None = None, headers: t.Mapping[str, str] | None = None,
    ) -> Answer:
        before = time.time()
        sent = {**self._headers, **(headers or {})}
        body: bytes | None = None
        if json_body is not None:
            body = json.dumps(json_body, allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        elif form is not None:
            body = urlencode(dict(form)).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        query = urlencode({name: value for name, value in (params or {}).items() if value is not None}, doseq=True)
        try:
            response = self._pool.request_encode_url(
                method, f"{self._base}{path}{'?' if query else ''}{query}", body=body, headers=sent, retries=_NO_RETRIES, redirect=False,
                assert_same_host=False, timeout=self._timeout, preload_content=False)
            text = self._body(response, ServerFault if read else Ambiguous)
        except (Urllib3Error, OSError) as error:
            raise self._failure(error, read=read) from None
        except ValueError:  # whose words hold the header
            raise InvalidInput(f"A request to {self.url} would have a header with a line break or another character that no header may have: "
                               "check the user names, tokens and secrets given for it.") from None
        self._note_clock(response.headers.get("Date"), before)
        return Answer(
            response.status, response.headers, text.decode("utf-8", "replace"),
            _secrets_sent(headers or {}, json_body if json_body is not None else dict(form or {})), _cookies(response))

    def _body(self, response: t.Any, fault: type[ServerFault] | type[Ambiguous]) -> bytes:
        """Read the whole body. Raises *fault* when it is too long, or drips for longer than any answer should take."""
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + _BODY_TIMEOUTS * self.transport.timeout
        try:
            while chunk := response.read1(_CHUNK, decode_content=True):
                parts.append(chunk)
                size += len(chunk)
                if size >= _MAX_BODY:
                    raise fault(f"{self.url} sent more than {_MAX_BODY} bytes: this is not the control plane it should be.")
                if response.closed and "Content-Encoding" not in response.headers:
                    break  # what would be read next is the end of the body
                if time.monotonic() > deadline:
                    raise fault(f"{self.url} was still sending after {_BODY_TIMEOUTS * self.transport.timeout:g} s: its answer has no end.")
        except BaseException:
            response.close()  # what else comes belongs to no other request
            raise
        response.release_conn()
        return b"".join(parts)

    def _note_clock(self, date: str | None, before: float) -> None:
        """Reckon how far the server's clock is off, by the first answer of each of its seconds, which tells it best."""
        if not date or date == self._last_date:
            return
        self._last_date = date
        try:
            server = email.utils.parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError):
            return
        self.clock_skew = server - (before + time.time()) / 2

    def _failure(self, error: Exception, *, read: bool) -> Exception:
        """Return the exception that says what *error* means for the request."""
        chain = list(_causes(error))
        for cause in chain:
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                return Untrusted(_tls_sentence(self.url, cause), reason=_tls_reason(cause))
        if any(isinstance(cause, ProxyError) or "Tunnel connection failed" in str(cause) for cause in chain):
            return Unreachable(f"The proxy on the way to {self.url} cannot be used ({chain[-1]}): check proxy, or the environment's proxy settings.",
                               reason="proxy")
        for cause in chain:
            if isinstance(cause, socket.gaierror):
                return Unreachable(f"{self.url} cannot be resolved: check the host name and the controller's DNS.", reason="unresolvable")
            if isinstance(cause, ConnectionRefusedError):
                return Unreachable(f"{self.url} refuses connections: check that the server runs and that the port is right.", reason="refused")
        if any(isinstance(cause, (NewConnectionError, ConnectTimeoutError)) for cause in chain):
            return Unreachable(f"{self.url} cannot be reached within {self.transport.timeout:g} s: check the route and firewalls from the controller.")
        if read:
            return ServerFault(f"{self.url} broke off before its answer was complete ({type(chain[-1]).__name__}): try again.")
        return Ambiguous(f"{self.url} took the request but its answer was lost ({type(chain[-1]).__name__}); the next run finds out what happened.")


@dataclass(frozen=True)
class _Pin:
    """The server key or certificate that must be met: exactly one of both digests is set."""

    certificate: bytes = b""
    public_key: bytes = b""

    @classmethod
    def parse(cls, text: str) -> _Pin | None:
        """Read the option's value. Raises InvalidInput when it is neither 64 hexadecimal digits nor a base64 SHA-256."""
        if not text:
            return None
        hexadecimal = re.fullmatch(rf"{_PIN_PREFIX}((?:[0-9a-f]{{2}}:?){{32}})", text.strip(), re.IGNORECASE)
        if hexadecimal is not None:
            return cls(certificate=bytes.fromhex(hexadecimal.group(1).replace(":", "")))
        # The length is fixed, since a digest may begin with the slash that also ends a prefix.
        encoded = re.fullmatch(rf"{_PIN_PREFIX}([a-z0-9+/]{{43}}=)", text.strip(), re.IGNORECASE)
        if encoded is None:
            raise InvalidInput("pin_sha256 is not a SHA-256: give 64 hexadecimal digits of the certificate, or the public key's digest in base64.")
        return cls(public_key=base64.b64decode(encoded.group(1)))

    def matches(self, der: bytes) -> bool:
        """Say whether the certificate *der* is the pinned one."""
        if self.certificate:
            return hashlib.sha256(der).digest() == self.certificate
        key = x509.load_der_x509_certificate(der).public_key()
        return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest() == self.public_key


class _Guard:
    """What a TLS connection of ours does beside urllib3's: it compares the peer with the pin, where there is one, before any byte of a request leaves."""

    pin: t.ClassVar[_Pin | None] = None

    def connect(self) -> None:
        """Connect, then check the pin. Raises ssl.SSLError when it differs, or when the peer hangs up on the handshake."""
        connection: t.Any = super()
        try:
            connection.connect()
        except ssl.SSLEOFError:
            # Told apart from an answer that is cut off: nothing was sent yet.
            raise ssl.SSLError("MUSTER_HANDSHAKE_CUT") from None
        if self.pin is None:
            return
        connected: t.Any = self
        der = connected.sock.getpeercert(True) if isinstance(connected.sock, ssl.SSLSocket) else None
        if not der or not self.pin.matches(der):
            connected.close()
            raise ssl.SSLError("MUSTER_PIN_MISMATCH")


def _guarding(pool: t.Any, pin: _Pin | None) -> t.Any:
    """Return a class like urllib3's *pool* whose connections guard as _Guard does. It makes them itself, and would hand them nothing of ours."""
    return type("_Pool", (pool,), {"ConnectionCls": type("_Connection", (_Guard, pool.ConnectionCls), {"pin": pin})})


if IMPORT_ERROR is None:
    _POOL = _guarding(HTTPSConnectionPool, None)


def _direct_pool(url: str, context: ssl.SSLContext | None, pin: _Pin | None) -> t.Any:
    """Return the connections to *url*, with TLS by *context* unless that is None. To ask urllib3's own manager for them costs more than they do."""
    server = parse_url(url)
    host = server.host or ""
    if context is None:
        return HTTPConnectionPool(host, server.port)
    pool = _POOL if pin is None else _guarding(HTTPSConnectionPool, pin)
    return pool(host, server.port, ssl_context=context)


def _pool_behind(proxy: str, url: str, context: ssl.SSLContext | None, pin: _Pin | None) -> t.Any:
    """Return the connections to *url* through *proxy*; requests knows the kinds of proxies. Raises InvalidInput for one that it cannot use."""
    manager = None
    try:
        if parse_url(proxy).host:
            manager = requests.adapters.HTTPAdapter().proxy_manager_for(proxy, **({} if context is None else {"ssl_context": context}))
    except (requests.exceptions.RequestException, Urllib3Error, ValueError):  # whose words may hold the proxy's password
        pass
    if manager is None:
        raise InvalidInput("proxy cannot be used: give it as http://host:port or https://host:port. One whose address begins with socks needs the Python "
                           "library PySocks beside requests.")
    known = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {**known, "https": _guarding(known["https"], pin)}
    return manager.connection_from_url(url)


def _proxy_of_the_environment(url: str) -> str:
    """Return the proxy that the environment names for *url*, empty for none; it is only searched where it names any."""
    if not any(name[-6:].lower() == "_proxy" for name in os.environ):
        return ""
    return requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) or ""


def _tls_context(transport: Transport) -> ssl.SSLContext:
    """Return the context for *transport*: the same for all sessions with the same options and files, since reading the files is what takes time."""
    if transport.tls_min_version not in _TLS_FLOORS:
        raise InvalidInput(f"tls_min_version {transport.tls_min_version!r} is not one of {', '.join(sorted(_TLS_FLOORS))}.")
    plain = Transport()
    wanted = replace(plain, **{option: getattr(transport, option) for option in _TLS_OPTIONS})
    return _SYSTEM_CAS if wanted == plain else _new_tls_context(wanted, tuple(map(_state_of, (wanted.ca_cert, wanted.client_cert, wanted.client_key))))


def _state_of(path: str) -> tuple[int, ...]:
    """Return what changes when the file does; empty for one that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=_FEW)
def _new_tls_context(transport: Transport, files: tuple[tuple[int, ...], ...]) -> ssl.SSLContext:
    """Return a context made for *transport*; *files* are the states of what it names, so that a file that changes is read again."""
    try:
        if transport.ca_cert:
            context = _SPARE.pop() if _SPARE else _trusting_nobody()
            context.load_verify_locations(transport.ca_cert)
        else:
            context = ssl.create_default_context()
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"ca_cert {transport.ca_cert!r} cannot be read as PEM certificates on the controller ({type(error).__name__}).") from None
    if not transport.validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = _TLS_FLOORS[transport.tls_min_version]
    if transport.ciphers:
        try:
            context.set_ciphers(transport.ciphers)
        except ssl.SSLError:
            raise InvalidInput(f"ciphers {transport.ciphers!r} names no cipher that this OpenSSL knows.") from None
    if transport.client_cert:
        try:
            context.load_cert_chain(transport.client_cert, transport.client_key or None, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise InvalidInput(
                f"client_cert {transport.client_cert!r} and its key cannot be loaded on the controller ({type(error).__name__}): "
                "give an unencrypted PEM pair that belongs together.") from None
    return context


def _no_password() -> str:
    raise ValueError("encrypted")


def _tls_reason(error: ssl.SSLError) -> str:
    text = str(error)
    if "MUSTER_PIN_MISMATCH" in text:
        return "wrong_pin"
    if any(mark in text.upper().replace(" ", "_") for mark in ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS", "VERSION_TOO_LOW")):
        return "tls_too_old"
    return "untrusted"


def _tls_sentence(url: str, error: ssl.SSLError) -> str:
    reason = _tls_reason(error)
    if reason == "wrong_pin":
        return f"{url} shows a certificate that is not the pinned one: compare pin_sha256 with the server's certificate before trusting it."
    if reason == "tls_too_old":
        return f"{url} offers no TLS version at or above the floor: renew the server's TLS, the floor is set by tls_min_version."
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{url} is not trusted: {error.verify_message}; name the CA that signed it in ca_cert, and use a host name the certificate carries."
    if "WRONG_VERSION_NUMBER" in str(error) or "HTTP_REQUEST" in str(error):
        return f"{url} does not speak TLS on this port: check the port, or whether the URL should begin with http://."
    return f"{url} broke off the TLS handshake ({getattr(error, 'reason', None) or 'no reason given'}): check client_cert, ciphers and tls_min_version."


def _causes(error: BaseException | None) -> t.Iterator[BaseException]:
    """Yield *error* and all that is wrapped in it, outermost first."""
    seen: list[BaseException] = []
    waiting: list[BaseException] = [error] if error is not None else []
    while waiting:
        current = waiting.pop(0)
        if any(current is other for other in seen):
            continue
        seen.append(current)
        yield current
        inner = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        waiting.extend(item for item in inner if isinstance(item, BaseException))


def _retry_after(answer: Answer) -> float:
    value = answer.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 1.0


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secrets_sent(headers: t.Mapping[str, str], body: t.Any) -> tuple[Secret, ...]:
    """Return what a request carries under the name of a secret, in its headers or at the top of its JSON body."""
    named = [(name, str(value).rpartition(" ")[2]) for name, value in headers.items()]
    named += [(str(name), value) for name, value in body.items() if isinstance(value, str)] if isinstance(body, dict) else []
    return tuple(Secret(value) for name, value in named if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name))


def _cookies(response: t.Any) -> dict[str, str]:
    """Return the cookies that an answer sets, by name."""
    lines = response.headers.getlist("Set-Cookie")
    if not lines:
        return {}
    jar: SimpleCookie = SimpleCookie()
    for line in lines:
        with contextlib.suppress(CookieError):
            jar.load(line)
    return {name: morsel.value for name, morsel in jar.items()}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
