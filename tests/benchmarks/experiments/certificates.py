# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Issuing a certificate for each host from an own CA, against community.crypto's key, CSR and certificate."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ..controller import BenchError, Play
from ..experiment import Experiment, Line, Options, Side, cpu, ratio, task, wall
from ..ground import Ground
from ..measure import Sample

__all__ = ["issue"]

#: kind -> (what it is called, options of ours, options of community.crypto, target)
_KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "ec": ("EC", {"key_type": "ec"}, {"type": "ECC", "curve": "secp256r1"}, 3),
    "rsa": ("RSA-2048", {"key_type": "rsa", "key_size": 2048}, {"type": "RSA", "size": 2048}, 2.5),
}


def _ours(key: Mapping[str, Any], records: str) -> list[dict[str, Any]]:
    return [{
        "name": "Issue", "muster.agents.cert_issue": {
            "certificate_path": "{{ place }}/agent.crt", "key_path": "{{ place }}/agent.key", "subject": {"CN": "{{ deployment_hash }}"},
            "issuer": "own_ca", "own_ca": {"certificate": "{{ authority.certificate }}", "key": "{{ authority.key }}", "directory": records}, **key,
        },
    }]


def _theirs(key: Mapping[str, Any]) -> list[dict[str, Any]]:
    paths = {"path": "{{ place }}/agent.crt", "csr_path": "{{ place }}/agent.csr"}
    return [
        {"name": "Key", "community.crypto.openssl_privatekey": {"path": "{{ place }}/agent.key", **key}},
        {"name": "CSR", "community.crypto.openssl_csr": {
            "path": "{{ place }}/agent.csr", "privatekey_path": "{{ place }}/agent.key", "common_name": "{{ deployment_hash }}",
            "extended_key_usage": ["clientAuth"], "key_usage": ["digitalSignature"]}},
        {"name": "Certificate", "community.crypto.x509_certificate": {
            **paths, "provider": "ownca", "ownca_path": "{{ authority.certificate }}", "ownca_privatekey_path": "{{ authority.key }}"}},
    ]


def issue(ground: Ground, options: Options) -> list[Experiment]:
    """One experiment for each kind of key."""
    return [_issue(ground, options, kind) for kind in _KINDS]


def _issue(ground: Ground, options: Options, kind: str) -> Experiment:
    title, ours, theirs, target = _KINDS[kind]

    def issued(tasks: Sequence[Mapping[str, Any]]) -> Sample:
        agents = ground.agents(options.certificate_hosts)
        variables = {"authority": dict(ground.authority)}
        sample = ground.controller.run(Play(tasks, agents.hosts(), variables, forks=options.forks))
        files = [str(agents.folder / host / "agent.crt") for host in agents.names]
        done = subprocess.run(["openssl", "verify", "-CAfile", ground.authority["certificate"], *files], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"openssl does not verify the certificates: {(done.stdout + done.stderr)[-500:]}")
        return sample

    work = f"cert_issue, {title}, {options.certificate_hosts} hosts, forks {options.forks}"
    against = "community.crypto key + csr + certificate"
    return Experiment(
        f"issue-{kind}", work,
        (
            Side("ours", "cert_issue", lambda: issued(_ours(ours, str(ground.directory / "records")))),
            Side("peer", against, lambda: issued(_theirs(theirs))),
        ),
        (
            Line(f"{work}: wall", against, ratio("peer", "ours", wall), target),
            Line(f"{work}: task time", against, ratio("peer", "ours", task)),
            Line(f"{work}: CPU", against, ratio("peer", "ours", cpu)),
        ))
