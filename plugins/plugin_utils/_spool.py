# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's spool: an issued credential until it is durable elsewhere (private to muster.agents).

Best effort by design: an execution environment may vanish with it. A credential found here is only a candidate, decided by use like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file, temporary_name
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential

__all__ = ["Spool"]


class Spool:
    """One identity's place in the spool directory: a file of mode 0600, named by a digest."""

    def __init__(self, directory: str, url: str, name: str) -> None:
        """*directory* is made with mode 0700 when something is kept; *url* and *name* are the identity."""
        self._directory = directory
        digest = hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()[:32]
        self._path = os.path.join(directory, f"{digest}.json")

    def keep(self, credential: Credential, extra: t.Mapping[str, Secret], *, possessed: bool = True) -> None:
        """Write *credential* and the *extra* secrets to disk before anything else happens. A spool that cannot be written is no reason to stop.

        *possessed* is False while nothing proves that the identity is this host's own, so that a later run asks that question again.
        """
        document = {
            "possessed": possessed,
            "agent_id": credential.agent_id,
            "secrets": {name: secret.reveal() for name, secret in credential.secrets.items()},
            "extra": {name: secret.reveal() for name, secret in extra.items()},
        }
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            replace_file(self._path, json.dumps(document).encode())
        except OSError:
            return

    def find(self) -> tuple[Credential, dict[str, Secret], bool] | None:
        """Return what an interrupted run left here and whether it was possessed, None when there is nothing usable."""
        try:
            with open(self._path, encoding="utf-8") as stream:
                document = json.load(stream)
            credential = Credential(str(document["agent_id"]), {name: Secret(value) for name, value in document["secrets"].items()})
            extra = {name: Secret(value) for name, value in document["extra"].items()}
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        register_with_core([*credential.secrets.values(), *extra.values()])
        return credential, extra, document.get("possessed") is True

    def drop(self) -> None:
        """Remove what is kept, once it is durable elsewhere, and what a run that was killed in :meth:`keep` left half written."""
        for path in (self._path, temporary_name(self._path)):
            with contextlib.suppress(OSError):
                os.unlink(path)
