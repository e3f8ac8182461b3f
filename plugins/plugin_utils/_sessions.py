# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Admin sessions and the verdict on bootstrap credentials, shared by the forks of a controller (private to muster.agents).

One login serves a whole play: servers limit logins, and some count failures towards a lockout. A bootstrap credential that was refused on one
host is not sent by the others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Rejected
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument

__all__ = ["Session", "Sessions", "this_run"]

_MARGIN = 60.0  # seconds before its end at which a session is not begun on any more


@dataclass(frozen=True)
class Session:
    """An admin session: its token and when it ends, in seconds since the epoch."""

    token: Secret
    expires_at: float


class Sessions:
    """The sessions at one server."""

    def __init__(self, directory: str, url: str) -> None:
        """*directory*: where they are shared, empty to share nothing; *url*: the server."""
        self._directory = directory
        self._url = url
        self._documents: dict[str, SharedDocument] = {}

    def session(self, who: str, secret: Secret, login: t.Callable[[], Session]) -> Session:
        """Return the live session of *who* (a user or client name), logging in with *login* when there is none. Others wait for it meanwhile.

        Raises what *login* raises; a login that was refused in this play is not tried again.
        """
        with self._document("session", who, secret).held() as document:
            kept = document.get("session")
            if isinstance(kept, dict) and float(kept.get("expires_at", 0.0)) - _MARGIN > time.time():
                token = Secret(str(kept["token"]))
                register_with_core([token])
                return Session(token, float(kept["expires_at"]))
            self._raise_if_refused(document)
            try:
                session = login()
            except Rejected as error:
                document["refused"] = {"run": this_run(), "msg": error.msg}
                refused = error
            else:
                document["session"] = {"token": session.token.reveal(), "expires_at": session.expires_at}
                return session
        raise refused

    def discard(self, who: str, secret: Secret, session: Session) -> None:
        """Forget *session*, which the server no longer takes, unless another fork has renewed it already."""
        with self._document("session", who, secret).held() as document:
            kept = document.get("session")
            if isinstance(kept, dict) and kept.get("token") == session.token.reveal():
                del document["session"]

    @contextlib.contextmanager
    def trial(self, secret: Secret | None) -> t.Iterator[None]:
        """Use a bootstrap *secret* in the block. The first use has it to itself; one that ends in Rejected(bad_bootstrap) stops all later ones of this play.

        Raises Rejected when the verdict is known already; nothing was sent then.
        """
        if secret is None:
            yield
            return
        document_file = self._document("bootstrap", "", secret)
        with document_file.held() as document:
            self._raise_if_refused(document)
            proved = document.get("good") == this_run()
            if not proved:
                refused: list[Rejected] = []
                try:
                    yield
                except Rejected as error:
                    if error.reason != "bad_bootstrap":
                        raise
                    refused.append(error)
                if not refused:
                    document["good"] = this_run()
                    return
                document["refused"] = {"run": this_run(), "msg": refused[0].msg}
        if proved:
            yield
            return
        raise refused[0]

    def _raise_if_refused(self, document: dict[str, t.Any]) -> None:
        refused = document.get("refused")
        if isinstance(refused, dict) and refused.get("run") == this_run():
            raise Rejected(f"Not sent, since it was refused for another host of this play: {refused.get('msg', '')}", reason="bad_bootstrap")
        document.pop("refused", None)

    def _document(self, kind: str, who: str, secret: Secret) -> SharedDocument:
        name = hmac.new(self._key(), secret.reveal().encode(), hashlib.sha256).hexdigest()
        return self._documents.setdefault(f"{kind} {who} {name}", SharedDocument(self._directory, self._url, kind, who, name))

    def _key(self) -> bytes:
        """Return the controller's own key for digests, so that a file's name tells nothing of a secret."""
        with SharedDocument(self._directory, "key").held() as document:
            key: str = document.setdefault("key", secrets.token_hex(32))
        return bytes.fromhex(key) if self._directory else b"private"


def this_run() -> str:
    """Return what tells this run of ansible-playbook from others: the process that all workers were forked from, and when it began."""
    return _run_of(os.getppid())


@functools.lru_cache(maxsize=1)
def _run_of(parent: int) -> str:
    try:
        with open(f"/proc/{parent}/stat", "rb") as stream:  # as bytes: the codec for plain ASCII would have to be loaded
            began = stream.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        began = ""
    return f"{parent} {began}"
