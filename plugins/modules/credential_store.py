#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: credential_store
short_description: The store of receipts and credentials on a host
version_added: 1.0.0
description:
  - The store on the host that the other modules of this collection keep their receipts, credential generations and rendered files in.
  - M(muster.agents.agent_register) and its siblings run it where their faster shell script cannot do the work. Use it yourself to see what a host knows
    of an enrolled identity with O(operation=show).
  - It needs Python 3.9 and its standard library on the host.
author:
  - muster.agents contributors (@muster-agents)
attributes:
  check_mode:
    description: Can run in check mode and tells what would happen without changing the host.
    support: full
  diff_mode:
    description: Returns what changed when run with C(--diff).
    support: none
  idempotent:
    description: Running it again with the same options changes nothing further.
    support: full
options:
  operation:
    description:
      - V(show) returns the receipt, which holds no secret.
      - V(look) and V(deliver) are the two steps that the action plugins of this collection take; what they carry is sealed for one use.
    type: str
    choices: [show, look, deliver]
    default: show
  root:
    description: The folder of one identity, such as V(/var/lib/muster/stacker/NAME).
    type: path
    required: true
  url:
    description: The control plane that a receipt must be of, so that no intent needs to be recorded.
    type: str
  read:
    description: Further files to read in the same visit.
    type: list
    elements: str
    default: []
  facts:
    description: Whether to gather what the host says of itself.
    type: bool
    default: false
  intent:
    description: The intent to record, when there is work.
    type: str
  lease:
    description: How many seconds a recorded intent keeps other controllers away.
    type: int
    default: 60
  force:
    description: Record the intent in any case.
    type: bool
    default: false
  takeover:
    description: The holder of a lease that is void, because its process is gone.
    type: str
    default: ''
  controller_time:
    description: The controller's time in seconds since the epoch; a host whose clock is more than 300 seconds off gets no intent. V(0) skips that.
    type: int
    default: 0
  make_key:
    description: Whether to make the store's own key when it has none; deliveries are sealed with it.
    type: bool
    default: false
  seal_key:
    description: The one-time key that the answer is sealed with; without it, a look is refused.
    type: str
  payload:
    description: The sealed delivery.
    type: str
"""

EXAMPLES = r"""
- name: See what a host knows of an enrolled identity
  muster.agents.credential_store:
    root: /var/lib/muster/stacker/6c84fb90-12c4-11e1-840d-7b25c5ee775a
  become: true
  register: store

- name: Stop when an enrolment was never proved
  ansible.builtin.assert:
    that: store.receipt.phase == 'COMMITTED'
    fail_msg: The credential on this host was never proved by its agent.

- name: Read the receipt of an identity that is not there
  muster.agents.credential_store:
    root: /var/lib/muster/stacker/not-enrolled
  become: true
  register: missing
  failed_when: missing.reason != 'no_receipt'
"""

RETURN = r"""
reason:
  description: What was found, as a stable word.
  returned: always
  type: str
  sample: ok
receipt:
  description: The receipt, which holds no secret; empty when there is none.
  returned: with O(operation=show)
  type: dict
  sample: {"phase": "COMMITTED", "generation": 1}
sealed:
  description: What a look found, readable with O(seal_key) alone.
  returned: with O(operation=look)
  type: str
  sample: c2VhbGVk
delivered:
  description: Whether the delivery is in place.
  returned: with O(operation=deliver)
  type: bool
  sample: true
place:
  description: The file or folder that a failure is about.
  returned: when a delivery fails
  type: str
  sample: /opt/agent/.env
"""

import base64
import json
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file
from ansible_collections.muster.agents.plugins.module_utils._credential_store import (
    Delivery,
    HostFile,
    LookRequest,
    StoreFailure,
    deliver,
    look,
    pack_files,
)
from ansible_collections.muster.agents.plugins.module_utils._host_facts import Runner, host_facts, host_tools
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt, ReceiptError
from ansible_collections.muster.agents.plugins.module_utils._secrets import new_key, open_sealed, seal


def main() -> None:
    """Run one operation on the store."""
    module = AnsibleModule(
        argument_spec={
            "operation": {"type": "str", "choices": ["show", "look", "deliver"], "default": "show"},
            "root": {"type": "path", "required": True},
            "url": {"type": "str"},
            "read": {"type": "list", "elements": "str", "default": []},
            "facts": {"type": "bool", "default": False},
            "intent": {"type": "str"},
            "lease": {"type": "int", "default": 60},
            "force": {"type": "bool", "default": False},
            "takeover": {"type": "str", "default": ""},
            "controller_time": {"type": "int", "default": 0},
            "make_key": {"type": "bool", "default": False, "no_log": False},
            "seal_key": {"type": "str", "no_log": True},
            "payload": {"type": "str", "no_log": True},
        },
        required_if=[("operation", "look", ["seal_key"]), ("operation", "deliver", ["payload"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**_OPERATIONS[module.params["operation"]](module))
    except StoreFailure as failure:
        module.fail_json(msg=str(failure), reason=failure.reason, place=failure.detail)


def _show(module: AnsibleModule) -> dict[str, t.Any]:
    path = os.path.join(module.params["root"], "receipt.json")
    try:
        with open(path, "rb") as stream:
            data = stream.read()
        Receipt.load(data)
    except OSError:
        return {"changed": False, "reason": "no_receipt", "receipt": {}}
    except ReceiptError as error:
        module.fail_json(msg=f"{path}: {error}", reason="bad_receipt")
    return {"changed": False, "reason": "ok", "receipt": json.loads(data)}


def _look(module: AnsibleModule) -> dict[str, t.Any]:
    options = module.params
    intent = Intent.load(options["intent"].encode()) if options["intent"] and not module.check_mode else None
    answer = look(LookRequest(
        options["root"], url=options["url"] or "", read=tuple(options["read"]), intent=intent, lease=options["lease"], force=options["force"],
        takeover=options["takeover"], controller_time=options["controller_time"]))
    if options["make_key"] and not module.check_mode and answer["intent"] in ("", "recorded"):
        _ensure_key(options["root"], answer["files"])
    answer["files"] = base64.b64encode(pack_files(answer["files"])).decode()
    answer["facts"] = host_facts(_runner(module)) if options["facts"] else {}
    answer["tools"] = host_tools() if options["facts"] else []
    sealed = seal(options["seal_key"], json.dumps(answer).encode())
    return {"changed": answer["intent"] == "recorded", "reason": "ok", "sealed": base64.b64encode(sealed).decode()}


def _deliver(module: AnsibleModule) -> dict[str, t.Any]:
    nonce, _dot, body = module.params["payload"].partition(".")
    try:
        data = base64.b64decode(body)
        document = json.loads(open_sealed(_key(module.params["root"]) + nonce, data) if nonce else data)
        delivery = Delivery.assemble(document["plan"], base64.b64decode(document["archive"]))
    except (KeyError, OSError, ValueError):
        raise StoreFailure("corrupt", "the delivery does not belong to this store") from None
    if not nonce and (delivery.secrets or delivery.files):
        raise StoreFailure("corrupt", "a delivery that holds secrets must be sealed")
    if module.check_mode:
        return {"changed": True, "reason": "ok", "delivered": False}
    deliver(delivery, _runner(module))
    return {"changed": True, "reason": "ok", "delivered": True}


def _runner(module: AnsibleModule) -> Runner:
    def run(command: t.Sequence[str]) -> tuple[int, str]:
        code, output, _errors = module.run_command(list(command))
        return int(code), str(output)

    return run


def _key(root: str) -> str:
    """Return the store's own key. Raises OSError when there is none."""
    with open(os.path.join(root, "key"), encoding="ascii") as stream:
        return stream.read()


def _ensure_key(root: str, found: dict[str, HostFile]) -> None:
    """Make the store and its key unless the look *found* one, and add it there. A store that cannot be written shows at the delivery."""
    path, key = os.path.join(root, "key"), new_key().encode()
    if path in found:
        return
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        replace_file(path, key)
    except OSError:
        return
    found[path] = HostFile(key, "0600", "root", "root")


_OPERATIONS = {"show": _show, "look": _look, "deliver": _deliver}


if __name__ == "__main__":
    main()
