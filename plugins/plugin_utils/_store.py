# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small changes to a host's store outside of an enrolment (private to muster.agents)."""

from __future__ import annotations

import time
from dataclasses import replace

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, fingerprint
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host, Look

__all__ = ["deliver_secret"]


def deliver_secret(host: Host, look: Look, name: str, secret: Secret | None) -> None:
    """Put *secret* under *name* into a new generation of the store, or take it out with None. Raises HostFailure, or InvalidInput without a receipt."""
    receipt = look.receipt
    if receipt is None:
        raise InvalidInput(f"{host.root} holds no receipt: enrol the agent with agent_register first.")
    stored = {key: value for key, value in look.secrets.items() if key != name}
    if secret is not None:
        stored[name] = secret
    generation = look.generation() + 1
    fingerprints = {key: fingerprint(look.key, value) for key, value in sorted(stored.items())}
    why = f"{name} {'removed' if secret is None else 'replaced'}"
    changed = replace(receipt, generation=generation, fingerprints=fingerprints).moved(receipt.phase, why, int(time.time()))
    files = (("agent_id", look.agent_id.encode()), *((key, value.reveal().encode()) for key, value in sorted(stored.items())))
    host.deliver(Delivery(
        host.root, look.receipt_digest, receipt=changed.dump(), generation=generation, secrets=files, keep=(generation, generation - 1)))
