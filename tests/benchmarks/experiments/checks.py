# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checking many TLS endpoints in one task, against community.crypto's loops and a bare loop; and with a tenth of them dead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from .. import endpoints, limits
from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Side, cpu, per_item, ratio, task
from ..ground import Ground
from ..measure import Sample, median

__all__ = ["check_endpoints"]

_TIMEOUT = 3.0
_LIVING, _DEAD = 11, 12  # second bytes of the loopback addresses


def _ours(report: str, timeout: float) -> list[dict[str, Any]]:
    options = {"endpoints": "{{ endpoints }}", "ca_certs": ["{{ ca_file }}"], "timeout": timeout, "json_file": report, "remember": False}
    return [{"name": "Check", "muster.agents.cert_check": options}]


_THEIRS: list[dict[str, Any]] = [
    {
        "name": "Get", "loop": "{{ endpoints }}", "loop_control": {"label": "{{ item.host }}"}, "register": "found",
        "community.crypto.get_certificate": {
            "host": "{{ item.host }}", "port": "{{ item.port }}", "server_name": "localhost", "ca_cert": "{{ ca_file }}", "asn1_base64": True},
    },
    {
        "name": "Read", "loop": "{{ found.results }}", "loop_control": {"label": "{{ item.item.host }}"},
        "community.crypto.x509_certificate_info": {"content": "{{ item.cert }}"},
    },
]


class _Checks:
    """Runs checks of living and dead endpoints on the controller."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def ours(self, alive: int, gone: int = 0) -> Sample:
        """cert_check over all of them. Raises BenchError unless it finds as many good and unreachable ones as there are."""
        report = self._ground.directory / "report.json"
        sample = self._play(lambda: _ours(str(report), _TIMEOUT), alive, gone)
        summary = json.loads(report.read_text())["summary"]
        if (summary["ok"], summary["unreachable"]) != (alive, gone):
            raise BenchError(f"cert_check found {summary} instead of {alive} good and {gone} unreachable")
        return sample

    def theirs(self, alive: int) -> Sample:
        """Two loops of community.crypto."""
        return self._play(lambda: _THEIRS, alive, 0)

    def bare(self, alive: int) -> Sample:
        """Handshake, verification and the end of validity, from one loop."""
        listening = endpoints.addresses(alive, _LIVING)
        with endpoints.living(self._ground.pair, listening) as port:
            given = {"addresses": listening, "port": port, "ca_file": str(self._ground.ca.ca_file)}
            return limits.bare(self._ground, "check", given, alive)

    def _play(self, tasks: Callable[[], Sequence[Mapping[str, Any]]], alive: int, gone: int) -> Sample:
        listening, silent = endpoints.addresses(alive, _LIVING), endpoints.addresses(gone, _DEAD)
        with ExitStack() as stack:
            port = stack.enter_context(endpoints.living(self._ground.pair, listening))
            stack.enter_context(endpoints.dead(silent, port))
            targets = [{"host": address, "port": port, "server_name": "localhost"} for address in (*listening, *silent)]
            variables = {"endpoints": targets, "ca_file": str(self._ground.ca.ca_file)}
            return self._ground.controller.run(Play(tasks(), {"localhost": {}}, variables, items=len(targets)))


def check_endpoints(ground: Ground, options: Options) -> list[Experiment]:
    """Living endpoints, then some of them dead."""
    checks, many, few = _Checks(ground), options.fleet, max(1, options.fleet // 10)
    work = f"cert_check, {many} endpoints in one task"
    peer = f"get_certificate + x509_certificate_info, looped over {options.peer_items}, for each endpoint"

    def marginal(samples: Mapping[str, Sequence[Sample]]) -> float:
        def more(of_many: str, of_few: str) -> float:
            return median(samples[of_many], task) - median(samples[of_few], task)

        return more("ours", "few") / more("bare", "bare-few")

    living = Experiment(
        "check", work,
        (
            Side("ours", f"cert_check, {many}", lambda: checks.ours(many)),
            Side("few", f"cert_check, {few}", lambda: checks.ours(few)),
            Side("peer", "get_certificate + x509_certificate_info, looped", lambda: checks.theirs(options.peer_items)),
            Side("bare", f"bare asyncio, {many}", lambda: checks.bare(many)),
            Side("bare-few", f"bare asyncio, {few}", lambda: checks.bare(few)),
        ),
        (
            Line(f"{work}: task time", peer, ratio("peer", "ours", per_item(task)), 100),
            Line(f"{work}: CPU", peer, ratio("peer", "ours", per_item(cpu))),
            Line(f"{work}: each further endpoint", "bare asyncio, 64 at a time", marginal, 2, least=False),
        ), runs=min(options.runs, 2))
    gone = max(1, many // 10)
    with_dead = f"cert_check, {gone} of {many} endpoints dead"
    return [living, Experiment(
        "check-dead", with_dead, (Side("ours", "cert_check", lambda: checks.ours(many - gone, gone)),),
        (Line(f"{with_dead}: seconds", f"one timeout of {_TIMEOUT:g} s", lambda samples: median(samples["ours"], task), 2 * _TIMEOUT + 1, least=False,
              unit="s"),), runs=1)]
