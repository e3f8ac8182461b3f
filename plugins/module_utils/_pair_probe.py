# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Trying a client certificate and its key where they lie, since the key never leaves its host (private to muster.agents).

Runs on the host with Python 3.9+ and its standard library alone: OpenSSL says whether key and certificate belong together, and a request over
mutual TLS says whether a server takes them. Neither changes anything.
"""

from __future__ import annotations

import http.client
import os
import ssl
import stat
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ansible_collections.muster.agents.plugins.module_utils._local_probe import Check

__all__ = ["PairFiles", "check_pair"]

_SECONDS = 5.0  # for each step of the request
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_REFUSING_STATUS = (401, 403, 495, 496)  # 495 and 496 are nginx's for a certificate that is bad or missing


@dataclass(frozen=True)
class PairFiles:
    """Paths of certificate and key (PEM) on this host, and what to do with them.

    url: fetched with the pair, empty to try the pair alone. ca: PEM text of the CAs that the server is trusted by, empty for the system's.
    """

    certificate: str
    key: str
    url: str = ""
    ca: str = field(default="", repr=False)


def check_pair(files: PairFiles) -> list[Check]:
    """Return the verdicts: ``pair`` on files and key, and ``mtls`` on the request, when a url is given.

    Reasons of ``pair``: certificate_missing, certificate_unreadable, key_missing, key_unreadable, key_mode, key_mismatch, pair_unusable. Of ``mtls``:
    server_unreachable, server_untrusted, tls_refused, certificate_refused.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    pair = _file_problem(files) or _load(context, files)
    if not files.url:
        return [pair]
    if not pair.ok:
        return [pair, Check("mtls", True, "Not judged: the pair cannot be used.", skipped=True)]
    return [pair, _request(context, files)]


def _file_problem(files: PairFiles) -> Check | None:
    """Return what is wrong with the files themselves, None when nothing is."""
    for what, path in (("certificate", files.certificate), ("key", files.key)):
        try:
            with open(path, "rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
        except FileNotFoundError:
            return _bad("pair", f"{what}_missing", f"There is no {what} at {path}.")
        except OSError as error:
            return _bad("pair", f"{what}_unreadable", f"The {what} at {path} cannot be read ({os.strerror(error.errno or 0)}).")
        if what == "key" and mode & _OTHERS_MAY:
            return _bad("pair", "key_mode", f"The key at {path} has mode {stat.S_IMODE(mode):04o}: others than its owner may use it. Set it to 0600.")
    return None


def _load(context: ssl.SSLContext, files: PairFiles) -> Check:
    """Load the pair, which OpenSSL does only when both parts belong together."""
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except _EncryptedKeyError:
        return _bad("pair", "key_unreadable", f"The key at {files.key} is encrypted with a password, which no agent could give.")
    except (ssl.SSLError, OSError) as error:
        return _load_problem(files, error)
    return Check("pair", True, "The key belongs to the certificate.")


def _load_problem(files: PairFiles, error: OSError) -> Check:
    reason = str(getattr(error, "reason", "") or "")
    if "KEY_VALUES_MISMATCH" in reason or "KEY_TYPE_MISMATCH" in reason:
        return _bad("pair", "key_mismatch", f"The key at {files.key} does not belong to the certificate at {files.certificate}.")
    if reason and "PEM" not in reason and "NO_START_LINE" not in reason:
        return _bad("pair", "pair_unusable", f"OpenSSL does not take the pair ({reason.replace('_', ' ').lower()}).")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(files.certificate)
    except (ssl.SSLError, OSError):
        return _bad("pair", "certificate_unreadable", f"The file {files.certificate} holds no certificate in PEM.")
    return _bad("pair", "key_unreadable", f"The file {files.key} holds no private key in PEM.")


def _request(context: ssl.SSLContext, files: PairFiles) -> Check:
    """Fetch the url once, without proxies and redirects, and judge what came of it."""
    parts = urlsplit(files.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    server = f"{parts.hostname}:{parts.port or 443}"
    try:
        _trust(context, files.ca)
    except (ssl.SSLError, ValueError):
        return _bad("mtls", "server_untrusted", "The CA certificates that were given cannot be read.")
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=_SECONDS, context=context)
    try:
        connection.connect()
        return _answer(connection, path, server)
    except ssl.SSLCertVerificationError as error:
        return _bad("mtls", "server_untrusted", f"The certificate of {server} is not trusted here ({error.verify_message}).")
    except ssl.SSLError as error:
        return _bad("mtls", "tls_refused", f"{server} broke the TLS handshake off ({_alert(error)}): its CA must be the one that signed the certificate.")
    except (OSError, http.client.HTTPException) as error:
        return _bad("mtls", "server_unreachable", f"{server} cannot be reached from this host ({_words(error)}).")
    finally:
        connection.close()


def _answer(connection: http.client.HTTPSConnection, path: str, server: str) -> Check:
    """Ask and judge the answer. In TLS 1.3 a server refuses a client's certificate only after the client's handshake is over."""
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close", "User-Agent": "muster.agents"})
        status = connection.getresponse().status
    except (ConnectionError, ssl.SSLEOFError, http.client.BadStatusLine):
        return _bad("mtls", "tls_refused", f"{server} hung up as soon as it had seen the certificate: its CA must be the one that signed it.")
    if status in _REFUSING_STATUS:
        return _bad("mtls", "certificate_refused", f"{server} answers HTTP {status} to a request with this certificate.")
    return Check("mtls", True, f"{server} answers HTTP {status} to a request with this certificate.")


def _trust(context: ssl.SSLContext, ca: str) -> None:
    if ca:
        context.load_verify_locations(cadata=ca)
    else:
        context.load_default_certs()


class _EncryptedKeyError(Exception):
    """OpenSSL asks for a password."""


def _no_password() -> t.NoReturn:
    raise _EncryptedKeyError


def _alert(error: ssl.SSLError) -> str:
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else type(error).__name__


def _bad(name: str, reason: str, detail: str) -> Check:
    return Check(name, False, detail, reason, final=True)
