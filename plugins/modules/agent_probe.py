#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at an agent on its own host; documented below."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_probe
short_description: Look at an agent on its own host
version_added: 1.0.0
author:
  - muster.agents contributors (@muster-agents)
description:
  - Says whether the systemd units of an agent are up and stay up, what its health endpoint answers, and who holds that endpoint's port.
  - Waits inside one execution until all of it is good or O(timeout) is over, and brings the end of the units' journal when it is not.
  - This is the part of M(muster.agents.agent_health) that runs on the host. It does not ask the control plane anything and fails
    only when it cannot look, so that V(ok=false) is an answer and not an error.
  - The journal is returned as it is, with whatever the agent logged. M(muster.agents.agent_health) removes secrets from it.
requirements:
  - systemd 247 or later on the host, when O(units) are given.
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: full
    details:
      - It only reads.
  diff_mode:
    description: Returns details on what has changed, or would change, when run in diff mode.
    support: none
    details:
      - It changes nothing.
  idempotent:
    description: Running it twice in a row gives no change the second time.
    support: full
options:
  units:
    description:
      - The agent's systemd units. C(.service) is added to a name without a suffix.
      - Leave it out for an agent that systemd does not run; then only O(health_url) is judged.
    type: list
    elements: str
    default: []
  health_url:
    description:
      - The agent's health endpoint as seen from the host, for example V(http://127.0.0.1:5000/health).
      - Leave it out for an agent that has none.
    type: str
  health_status:
    description:
      - What the document's C(status) must be.
      - Set it to an empty string to be content with any answer of HTTP 200 to 299.
    type: str
    default: ok
  vault_enabled:
    description:
      - Whether the agent should read its token from Vault, so that C(last_refresh_ok) must be V(true).
    type: bool
    default: false
  token_age_max:
    description:
      - The oldest a token may be, in seconds, where the agent counts C(token_age_seconds) from its last refresh.
    type: int
    default: 600
  timeout:
    description:
      - How long to wait for everything to be good, in seconds. V(0) looks once.
    type: float
    default: 0
  settle:
    description:
      - How long a unit must have been up before it counts as up, in seconds. A process that ends at once is not taken for a good one then.
    type: float
    default: 1
  pair:
    description:
      - A client certificate and its key on the host, for agents that prove themselves by one.
      - It is tried once, without waiting, whether the key belongs to the certificate and nobody else may read it; with O(pair.url) also whether a
        server takes the pair. The key is read by OpenSSL on the host and goes nowhere.
    type: dict
    suboptions:
      certificate:
        description: Path of the certificate (PEM), the agent's own first.
        type: str
        required: true
      key:
        description: Path of its private key (PEM, not encrypted).
        type: str
        required: true
      url:
        description: An address to fetch over mutual TLS, beginning with C(https://). It is fetched once; redirects are not followed.
        type: str
      ca:
        description: PEM text of the CAs that the server's certificate is checked with. Without it the host's own are used.
        type: str
  journal_lines:
    description:
      - How many lines of the units' journal to bring.
    type: int
    default: 40
  journal:
    description:
      - When to bring them.
    type: str
    choices:
      - failure
      - always
      - never
    default: failure
seealso:
  - module: muster.agents.agent_health
"""

EXAMPLES = r"""
- name: See whether the agent runs and answers
  muster.agents.agent_probe:
    units:
      - status-panel
    health_url: http://127.0.0.1:5000/health

- name: Wait up to 20 seconds for an agent of two units that reads its token from Vault
  muster.agents.agent_probe:
    units:
      - status-panel
      - status-panel-api
    health_url: http://127.0.0.1:5000/health
    vault_enabled: true
    timeout: 20
  register: probe

- name: Try a certificate with its key, and let the control plane see it
  muster.agents.agent_probe:
    pair:
      certificate: /etc/kubeatlas/certs/agent.crt
      key: /etc/kubeatlas/certs/agent.key
      url: https://kubeatlas.example.com/health
  register: probe

- name: Stop with the reason when it did not become good
  ansible.builtin.assert:
    that: probe.ok
    fail_msg: "{{ probe.reason }}: {{ probe.msg }}"
"""

RETURN = r"""
ok:
  description: Whether everything that was judged is good.
  type: bool
  returned: always
  sample: true
reason:
  description:
    - V(ok), or the first thing that is wrong, among V(unit_not_found), V(unit_masked), V(unit_failed), V(unit_exits), V(unit_flapping),
      V(unit_starting), V(unit_inactive), V(port_taken), V(no_answer), V(status_not_ok), V(refresh_failed) and V(token_stale).
    - Of O(pair), among V(certificate_missing), V(certificate_unreadable), V(key_missing), V(key_unreadable), V(key_mode), V(key_mismatch),
      V(pair_unusable), V(server_unreachable), V(server_untrusted), V(tls_refused) and V(certificate_refused).
  type: str
  returned: always
  sample: unit_exits
msg:
  description: The same in words.
  type: str
  returned: always
  sample: "unit status-panel.service: Its process ends at once (exit status 3, after 0.1 s)."
checks:
  description: What was judged, and what was not.
  type: list
  elements: dict
  returned: always
  sample:
    - name: unit status-panel.service
      ok: true
      detail: active (running) for 12 s.
      reason: ok
      final: false
      skipped: false
units:
  description:
    - The units as systemd knows them. RV(units[].uptime) is the age of the main process in seconds and RV(units[].started) its start
      on the host's clock (epoch); both are null when nothing runs.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name with suffix.
      type: str
      returned: always
      sample: status-panel.service
    load_state:
      description: Whether systemd could load it.
      type: str
      returned: always
      sample: loaded
    active_state:
      description: Whether it runs.
      type: str
      returned: always
      sample: active
    sub_state:
      description: The finer state.
      type: str
      returned: always
      sample: running
    result:
      description: How its last run ended.
      type: str
      returned: always
      sample: success
    exit_status:
      description: Exit status or signal of the last main process that ended.
      type: int
      returned: always
      sample: 0
    main_pid:
      description: Pid of the main process, V(0) without one.
      type: int
      returned: always
      sample: 4711
    restarts:
      description: How often systemd restarted it by itself.
      type: int
      returned: always
      sample: 0
    uptime:
      description: Age of the main process in seconds.
      type: float
      returned: always
      sample: 12.3
    started:
      description: Start of the main process in seconds since the epoch, on the host's clock.
      type: float
      returned: always
      sample: 1767225600.5
health:
  description: The health document, null when there is none.
  type: dict
  returned: always
  sample:
    status: ok
    token_age_seconds: 12
    last_refresh_ok: true
listeners:
  description: Who listens where O(health_url) points. V(ours) is null when it cannot be told.
  type: list
  elements: dict
  returned: always
  sample:
    - address: 127.0.0.1
      pid: 4711
      command: status-panel
      ours: true
journal:
  description: The last lines of the units' journal, as they are.
  type: list
  elements: str
  returned: when asked for by O(journal)
  sample:
    - "Started status-panel.service."
time:
  description: The host's clock when it was looked at last, in seconds since the epoch.
  type: float
  returned: always
  sample: 1767225612.8
looked:
  description: How many seconds before the end of the module that was.
  type: float
  returned: always
  sample: 0.01
elapsed:
  description: Seconds the look took, with its waiting.
  type: float
  returned: always
  sample: 0.02
"""

import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.muster.agents.plugins.module_utils._local_probe import (
    Check,
    Expectation,
    Probe,
    ProbeError,
    wait_until_good,
    worst,
)
from ansible_collections.muster.agents.plugins.module_utils._pair_probe import PairFiles, check_pair

_BOOTED = Path("/run/systemd/system")  # sd_booted(3): the directory exists where systemd is the init


def main() -> None:
    """Wire options, probe and result."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "health_url": {"type": "str"},
            "health_status": {"type": "str", "default": "ok"},
            "vault_enabled": {"type": "bool", "default": False},
            "token_age_max": {"type": "int", "default": 600, "no_log": False},
            "timeout": {"type": "float", "default": 0},
            "settle": {"type": "float", "default": 1},
            "pair": {
                "type": "dict",
                "no_log": False,
                "options": {
                    "certificate": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": False},
                    "url": {"type": "str"},
                    "ca": {"type": "str"},
                },
            },
            "journal_lines": {"type": "int", "default": 40},
            "journal": {"type": "str", "choices": ["failure", "always", "never"], "default": "failure"},
        },
        supports_check_mode=True,
    )
    began = time.monotonic()
    module.run_command_environ_update = {"LC_ALL": "C", "LANGUAGE": "C", "SYSTEMD_COLORS": "0"}
    probe = Probe(_expectation(module), module.run_command)
    pair = _pair(module)
    _require_systemd(module)
    try:
        checks = wait_until_good(probe.look, module.params["timeout"])
    except ProbeError as error:
        module.fail_json(msg=str(error), reason="no_systemd")
    result = _result(probe, [*checks, *(check_pair(pair) if pair is not None else ())])
    wanted = module.params["journal"]
    if wanted == "always" or (wanted == "failure" and not result["ok"]):
        result["journal"] = probe.journal(module.params["journal_lines"])
    module.exit_json(changed=False, elapsed=round(time.monotonic() - began, 3), **result)


def _expectation(module: AnsibleModule) -> Expectation:
    params = module.params
    url = params["health_url"] or ""
    if url and not url.startswith(("http://", "https://")):
        module.fail_json(msg=f"health_url {url!r} does not begin with http:// or https://.", reason="invalid_input")
    if any(not name or name.startswith("-") or any(char.isspace() for char in name) for name in params["units"]):
        module.fail_json(msg="units holds something that is no unit name: give names such as status-panel.service.", reason="invalid_input")
    return Expectation(
        units=tuple(params["units"]), health_url=url, health_status=params["health_status"], vault_enabled=params["vault_enabled"],
        token_age_max=params["token_age_max"], settle=params["settle"])


def _pair(module: AnsibleModule) -> PairFiles | None:
    given = module.params["pair"]
    if given is None:
        return None
    url = given["url"] or ""
    if url and not url.startswith("https://"):
        module.fail_json(msg=f"pair.url {url!r} does not begin with https://.", reason="invalid_input")
    return PairFiles(certificate=given["certificate"], key=given["key"], url=url, ca=given["ca"] or "")


def _require_systemd(module: AnsibleModule) -> None:
    if not module.params["units"] or (_BOOTED.is_dir() and module.get_bin_path("systemctl")):
        return
    module.fail_json(
        msg="This host was not started by systemd, so that the state of units cannot be told: leave units out and give health_url alone.",
        reason="no_systemd")


def _result(probe: Probe, checks: t.Sequence[Check]) -> dict[str, t.Any]:
    """Return what was seen as plain data."""
    state = probe.state
    bad = worst(checks)
    return {
        "ok": bad is None,
        "reason": bad.reason if bad else "ok",
        "msg": f"{bad.name}: {bad.detail}" if bad else "Everything that was judged is good.",
        "checks": [check.as_result() for check in checks],
        "units": [unit.as_result(state.time) for unit in state.units],
        "health": state.health.document if state.health else None,
        "listeners": [{"address": item.address, "pid": item.pid, "command": item.command, "ours": item.ours} for item in state.listeners],
        "time": round(state.time, 3),
        "looked": round(time.time() - state.time, 3),
    }


if __name__ == "__main__":
    main()
