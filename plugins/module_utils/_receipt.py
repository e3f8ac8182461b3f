# Copyright (c) 2026, muster.agents contributors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""The receipt: what is known of one enrolled identity, without a secret (private; no stability promise outside muster.agents).

Runs on controller and host with Python 3.9+ and its standard library alone. It is a journal, not the truth: losing it is survivable,
since what the server accepts, what Vault holds and what the files say are asked first.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass, field, fields, replace

__all__ = ["PHASES", "SCHEMA", "DeliveredFile", "Intent", "Receipt", "ReceiptError", "Transition", "VaultLeaf"]

SCHEMA = 1
PHASES = ("INTENT", "ISSUED", "STORED", "ACTIVE", "COMMITTED", "ROTATING", "ROLLING_BACK", "WITHDRAWN")
_HISTORY = 10


class ReceiptError(ValueError):
    """The text is no receipt, or one of a newer schema than this collection knows."""


@dataclass(frozen=True)
class Transition:
    """One step of the journal. *at* is seconds since the epoch on the controller's clock."""

    at: int
    phase: str
    why: str


@dataclass(frozen=True)
class DeliveredFile:
    """A rendered file as it was delivered; *digest* is keyed with the host's key, since the content holds secrets."""

    path: str
    digest: str
    mode: str
    owner: str
    group: str


@dataclass(frozen=True)
class VaultLeaf:
    """An entry in Vault that holds this identity's credential; *version* is None on KV v1."""

    path: str
    kv_version: int
    version: int | None
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """Written before the first request leaves, so that a lost answer is known to be possible; it is also the lease on the identity.

    *controller* is ``host:pid`` of the run that holds it until *lease_until* (seconds since the epoch on the host's clock).
    """

    attempt: str
    controller: str
    lease_until: int
    why: str

    def dump(self) -> bytes:
        """Return one line: the four values, tab-separated, for the shell to read as well."""
        return "\t".join((self.attempt, self.controller, str(self.lease_until), self.why)).encode() + b"\n"

    @classmethod
    def load(cls, data: bytes) -> Intent | None:
        """Return the intent in *data*, None when it is cut short or foreign."""
        parts = data.decode("utf-8", "replace").rstrip("\n").split("\t")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])


@dataclass(frozen=True)
class Receipt:
    """Everything remembered of one identity on one host.

    generation counts credentials from 1. fingerprints are keyed, by secret name. metadata is the digest of what the server was last told.
    pending_restart is the time (seconds since the epoch, host's clock) of a delivery that the running process has not read yet, 0 for none.
    proof is the last proof by use: {"when", "how", "result"}. server holds ids and versions as the server told them.
    issued_at is when the credential in use came to this host (seconds since the epoch, controller's clock), 0 when that was not noted.
    """

    control_plane: str
    name: str
    url: str
    phase: str
    attempt: str
    generation: int = 0
    agent_id: str = ""
    pin: str = ""
    fingerprints: t.Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""
    server: t.Mapping[str, t.Any] = field(default_factory=dict)
    vault: tuple[VaultLeaf, ...] = ()
    vault_url: str = ""
    policy: t.Mapping[str, t.Any] = field(default_factory=dict)
    files: tuple[DeliveredFile, ...] = ()
    adopted_from: str = ""
    pending_restart: int = 0
    retire_pending: tuple[str, ...] = ()
    proof: t.Mapping[str, t.Any] = field(default_factory=dict)
    history: tuple[Transition, ...] = ()
    issued_at: int = 0
    schema: int = SCHEMA

    def moved(self, phase: str, why: str, at: int) -> Receipt:
        """Return the receipt one step further in the journal, which keeps the last ten."""
        if phase not in PHASES:
            raise ReceiptError(f"unknown phase {phase!r}")
        step = Transition(at, phase, why)
        return replace(self, phase=phase, history=(*self.history, step)[-_HISTORY:])

    def dump(self) -> bytes:
        """Return the receipt as JSON with sorted keys, one trailing newline."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def load(cls, data: bytes) -> Receipt:
        """Return the receipt in *data*. Raises ReceiptError when it is no receipt or of a newer schema; unknown keys are ignored."""
        try:
            document = json.loads(data.decode("utf-8"))
            if not isinstance(document, dict):
                raise ReceiptError("the receipt is no JSON object")
            if document.get("schema", SCHEMA) > SCHEMA:
                raise ReceiptError(f"the receipt has schema {document['schema']}, this collection knows up to {SCHEMA}: use a newer muster.agents")
            known = {item.name for item in fields(cls)}
            values = {key: value for key, value in document.items() if key in known}
            values["vault"] = tuple(VaultLeaf(**{**leaf, "fields": tuple(leaf["fields"])}) for leaf in values.get("vault", ()))
            values["files"] = tuple(DeliveredFile(**item) for item in values.get("files", ()))
            values["history"] = tuple(Transition(**item) for item in values.get("history", ()))
            values["retire_pending"] = tuple(values.get("retire_pending", ()))
            return cls(**values)
        except (UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ReceiptError):
                raise
            raise ReceiptError(f"the receipt cannot be read ({type(error).__name__})") from None
