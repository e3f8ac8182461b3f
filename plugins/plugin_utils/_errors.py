# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, by meaning (private to muster.agents).

Each failure carries a stable ``reason`` for machines and a message of one sentence: what, where, and what to do about it.
It is raised where it is known and translated into a task result once, at the edge of an action plugin.
"""

from __future__ import annotations

import typing as t

__all__ = [
    "AgentsError",
    "Ambiguous",
    "Busy",
    "GateRed",
    "HostFailure",
    "IdentityConflict",
    "InvalidInput",
    "InvalidRequest",
    "Mismatch",
    "MissingLibrary",
    "Rejected",
    "RenderFailure",
    "ServerFault",
    "Throttled",
    "Unreachable",
    "Untrusted",
    "VaultFailure",
]


class AgentsError(Exception):
    """Base of all expected failures.

    *msg* is shown to the operator and never holds a secret; *reason* overrides the class's stable key;
    *facts* are further plain values for the task result (no secrets).
    """

    default_reason: t.ClassVar[str] = "failed"

    def __init__(self, msg: str, *, reason: str | None = None, **facts: t.Any) -> None:
        super().__init__(msg)
        self.msg = msg
        self.reason = reason or self.default_reason
        self.facts = facts

    def as_result(self) -> dict[str, t.Any]:
        """Return the task result that reports this failure."""
        return {**self.facts, "failed": True, "changed": bool(self.facts.get("changed", False)), "reason": self.reason, "msg": self.msg}


class InvalidInput(AgentsError):
    """The operator's input cannot be right; nothing was sent and nothing written."""

    default_reason = "invalid_input"


class MissingLibrary(AgentsError):
    """A Python library that the controller needs is not installed."""

    default_reason = "missing_library"


class Unreachable(AgentsError):
    """The request provably never arrived: name resolution, refused connection, timeout while connecting."""

    default_reason = "unreachable"


class Ambiguous(AgentsError):
    """The request may have been carried out: the answer was lost, cut short, or a 5xx after the fact."""

    default_reason = "ambiguous"


class Rejected(AgentsError):
    """A credential was refused: bootstrap secret, session, or the agent's own."""

    default_reason = "rejected"


class IdentityConflict(AgentsError):
    """The identity already belongs to somebody, and nothing at hand proves that it is us."""

    default_reason = "identity_conflict"


class Throttled(AgentsError):
    """The server asks us to wait. *retry_after* is in seconds."""

    default_reason = "throttled"

    def __init__(self, msg: str, *, retry_after: float, **facts: t.Any) -> None:
        super().__init__(msg, **facts)
        self.retry_after = retry_after


class InvalidRequest(AgentsError):
    """The server understood the request and calls it wrong."""

    default_reason = "invalid_request"


class ServerFault(AgentsError):
    """The server failed in a way that proves nothing was committed, or that does not matter (a read)."""

    default_reason = "server_fault"


class Untrusted(AgentsError):
    """TLS could not be trusted: unknown CA, wrong name, wrong pin, protocol below the floor."""

    default_reason = "untrusted"


class Mismatch(AgentsError):
    """An answer contradicts itself or what we know: wrong identity, no common API version, key and certificate apart."""

    default_reason = "mismatch"


class Busy(AgentsError):
    """Another controller holds the lease on this identity."""

    default_reason = "busy"


class HostFailure(AgentsError):
    """Work on the host could not be done: not writable, disk full, missing tool, failed validation."""

    default_reason = "host_failure"


class RenderFailure(AgentsError):
    """A template could not be rendered or its result is not valid; the message never quotes content."""

    default_reason = "render_failure"


class VaultFailure(AgentsError):
    """Vault or OpenBao refused or could not be used."""

    default_reason = "vault_failure"


class GateRed(AgentsError):
    """The agent did not prove itself in time."""

    default_reason = "gate_red"
