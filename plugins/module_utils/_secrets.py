# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Secrets that do not show themselves (private; no stability promise outside muster.agents).

Runs on controller and host with Python 3.9+ and its standard library alone.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import importlib
import secrets as _random
import sys
import types
import typing as t

__all__ = ["REDACTED", "Secret", "fingerprint", "new_key", "open_sealed", "redact", "register_with_core", "seal"]

REDACTED = "<secret>"
_FINGERPRINT_HEX = 12
_KEY_BYTES = 32
_MASKING = "ansible.module_utils.secrets"


class Secret:
    """A secret string that prints as a placeholder and can be opened in one way only.

    Equality is constant-time. A Secret has no useful hash and refuses to be pickled, so that it cannot slip into a cache.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        """Wrap *value* (text). Raises ValueError when it is empty: an empty credential is a bug upstream."""
        if not value:
            raise ValueError("a secret must not be empty")
        self.__value = str(value)

    def reveal(self) -> str:
        """Return the plain text; call it only where the secret is sent or stored."""
        return self.__value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.__value.encode(), other.reveal().encode())

    def __hash__(self) -> int:
        raise TypeError("a secret cannot be hashed")

    def __repr__(self) -> str:
        return REDACTED

    __str__ = __repr__

    def __reduce__(self) -> t.NoReturn:
        raise TypeError("a secret cannot be serialised")


def new_key() -> str:
    """Return a random key for :func:`fingerprint` and :func:`seal`: 64 hexadecimal digits (32 bytes)."""
    return _random.token_hex(_KEY_BYTES)


def fingerprint(key: str, value: Secret | str | bytes) -> str:
    """Return the keyed fingerprint of *value*: 12 hexadecimal digits of HMAC-SHA256.

    *key* is the host's own random key, so that nobody can test guesses of a weak secret against a published fingerprint.
    """
    if isinstance(value, Secret):
        value = value.reveal()
    data = value.encode() if isinstance(value, str) else value
    return hmac.new(key.encode(), data, hashlib.sha256).hexdigest()[:_FINGERPRINT_HEX]


def seal(key: str, data: bytes) -> bytes:
    """Hide *data* with a key that is used once: a SHAKE-256 key stream, then a 32-byte HMAC-SHA256 tag.

    It protects data that Ansible may leave in a temporary file while the key exists elsewhere; each key seals one message.
    """
    body = _stream(key, data)
    return body + hmac.new(key.encode(), body, hashlib.sha256).digest()


def open_sealed(key: str, sealed: bytes) -> bytes:
    """Undo :func:`seal`. Raises ValueError when the key is not the one used or the data was changed."""
    body, tag = sealed[:-32], sealed[-32:]
    if not hmac.compare_digest(tag, hmac.new(key.encode(), body, hashlib.sha256).digest()):
        raise ValueError("the sealed data does not belong to this key")
    return _stream(key, body)


def redact(text: str, values: t.Iterable[Secret]) -> str:
    """Return *text* with each of *values* replaced by a placeholder, longest first, so that no tail of one survives."""
    for plain in sorted((value.reveal() for value in values), key=len, reverse=True):
        text = text.replace(plain, REDACTED)
    return text


def register_with_core(values: t.Iterable[Secret]) -> None:
    """Tell ansible-core about *values*, where it can mask them in its output (2.22 and later); older cores do nothing."""
    core = sys.modules.get(_MASKING) or _masking()
    if core is not None:
        core.register_secrets([value.reveal() for value in values])


@functools.lru_cache(maxsize=1)
def _masking() -> types.ModuleType | None:
    """Return the part of ansible-core that masks secrets, looked for once; None where there is none."""
    try:
        return importlib.import_module(_MASKING)
    except ImportError:
        return None


def _stream(key: str, data: bytes) -> bytes:
    pad = hashlib.shake_256(b"muster-seal:" + key.encode()).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")
