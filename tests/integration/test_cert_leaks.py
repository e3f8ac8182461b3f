# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No key, passphrase or token of cert_issue and cert_check shows anywhere, whichever signer, at the highest verbosity, in success and in failure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from world import OpenBao
from world.ca import CertificateAuthority

from .agents import REGISTER
from .atlas import CLIENT_SECRET, PASSWORD, Atlas, Host, orders
from .authority import Authority, openssl
from .canary import Watch, found_in, found_in_files
from .controller import Controller, for_each
from .test_no_secret_leaks import runner_job

ISSUE, CHECK, ROTATE = "muster.agents.cert_issue", "muster.agents.cert_check", "muster.agents.token_rotate"
PASSPHRASE, LOCK = "canary-passphrase-of-the-ca-8e21", 'canary "passphrase\' of a key$b7'
WRONG = "canary-passphrase-that-is-wrong-40ad"
WRONG_TOKEN = "canary-vault-token-that-is-wrong-77c0"
PROXY_PASSWORD = "canary-password-of-a-proxy-19d4"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA whose key is locked with a canary."""
    return Authority(tmp_path_factory.mktemp("authority"), PASSPHRASE)


def locked_key(authority: Authority, folder: Path) -> dict[str, str]:
    """A pair whose key is locked with another canary."""
    authority.by_hand(folder, "monitor")
    openssl("rsa", "-in", str(folder / "agent.key"), "-aes256", "-passout", "stdin", "-out", str(folder / "locked.key"), stdin=f"{LOCK}\n")
    (folder / "lock").write_text(f"{LOCK}\n")
    return {"path": str(folder / "agent.crt"), "key": str(folder / "locked.key")}


def bodies(*files: Path) -> Iterable[str]:
    """The first whole line of each key in *files*, which is enough to know it by."""
    for file in files:
        lines = [line for line in file.read_text().splitlines() if len(line) == 64]
        assert lines, file
        yield lines[0]


def test_no_key_passphrase_or_token_shows_in_success_or_failure(
    controller: Controller, authority: Authority, bao: OpenBao, ca: CertificateAuthority, tls: Tls, tmp_path: Path) -> None:
    signer_key = tmp_path / "signer.key"
    signer_key.write_text(openssl("pkey", "-in", str(authority.key_file), "-passin", f"file:{authority.passphrase_file}"))
    bao.enable_pki("pki-cert-leaks", "Agents", agent={"allow_any_name": True, "enforce_hostnames": False, "key_type": "any", "max_ttl": "9000h"})
    own = authority.options()["own_ca"]
    plain = {key: value for key, value in own.items() if key != "passphrase_file"}
    vault = {"url": bao.url, "ca_cert": str(bao.ca_file)}
    with ReferenceServer.start(tls=tls, arguments=["--plane", "kubeatlas", "--kubeatlas-signer", f"{authority.issuing_file}:{signer_key}"]) as signer:
        remote = {"issuer": "remote_signer", "url": signer.url, "ca_cert": str(ca.ca_file), "issuer_ca": str(authority.issuing_file), "controller_name": "main"}
        pki = {"issuer": "vault_pki", "vault_pki": {"mount": "pki-cert-leaks", "role": "agent"}}
        issuers: dict[str, dict[str, Any]] = {
            "own": {"issuer": "own_ca", "own_ca": {**plain, "passphrase": PASSPHRASE}}, "vault": {**pki, "vault": {**vault, "token": bao.root_token}},
            "remote": remote, "own-wrong": {"issuer": "own_ca", "own_ca": {**plain, "passphrase": WRONG}},
            "vault-wrong": {**pki, "vault": {**vault, "token": WRONG_TOKEN}}, "remote-wrong": {**remote, "url": "https://localhost:1"},
        }
        options = {
            host: {"certificate_path": str(tmp_path / host / "agent.crt"), "key_path": str(tmp_path / host / "agent.key"), "subject": {"CN": f"agent-{host}"},
                   "timeout": 5, "retries": 0, **issuer} for host, issuer in issuers.items()}
        locked = locked_key(authority, tmp_path / "locked")
        endpoint = {"host": signer.url.removeprefix("https://"), "client_cert": locked["path"], "client_key": locked["key"]}
        checks = {host: {"files": [locked], "endpoints": [endpoint], "retries": 0, "ca_certs": [str(ca.ca_file)]} for host in issuers}
        for host, more in zip(issuers, ({"passphrase": LOCK}, {"from": "host", "passphrase_file": str(tmp_path / "locked" / "lock")}, {"passphrase": WRONG},
                                        {"passphrase": LOCK, "fail_on": ["critical", "unreachable", "warning"], "warning_days": 9999}, {}, {})):
            checks[host].update(more)
        issue, hosts = for_each(ISSUE, options)
        check, asked = for_each(CHECK, checks)
        check = {**check, CHECK: {name: value.replace("given", "asked") for name, value in check[CHECK].items()}}
        variables = {host: {**hosts[host], "asked": asked[host]["given"]} for host in hosts}
        play = [{"hosts": "all", "connection": "local", "gather_facts": False, "environment": {"MUSTER": "1"},
                 "tasks": [{**issue, "ignore_errors": True, "register": "answer"}, {**check, "ignore_errors": True}]}]
        with Watch() as watch:
            artefacts = runner_job(tmp_path / "job", controller, play, variables, "-vvvvvv --diff", ANSIBLE_PIPELINING="0",
                                   ANSIBLE_LOG_PATH=str(tmp_path / "ansible.log"))
    events = [json.loads(path.read_text()) for path in (artefacts / "job" / "job_events").glob("*.json")]
    outcomes = {(event["event_data"]["host"], event["event_data"]["task"], event["event"].removeprefix("runner_on_"))
                for event in events if event["event"] in ("runner_on_ok", "runner_on_failed")}
    assert outcomes == {
        *((host, ISSUE, "ok") for host in ("own", "vault", "remote")), *((host, ISSUE, "failed") for host in issuers if host.endswith("-wrong")),
        *((host, CHECK, "failed" if host == "own-wrong" else "ok") for host in issuers)}
    keys = list(bodies(*(tmp_path / host / "agent.key" for host in ("own", "vault", "remote")), authority.key_file, tmp_path / "locked" / "agent.key"))
    secrets = [PASSPHRASE, LOCK, WRONG, WRONG_TOKEN, bao.root_token, *keys]
    assert (watch.processes(secrets), watch.log(secrets)) == ([], [])
    for place in (artefacts, controller.scratch, controller.home):
        assert found_in_files(place, secrets) == []
    assert found_in((tmp_path / "ansible.log").read_bytes(), secrets) == []


def test_a_rotation_whose_pair_fails_anywhere_shows_no_secret(
    controller: Controller, authority: Authority, atlas: Atlas, bao: OpenBao, tmp_path: Path) -> None:
    """What token_rotate is told of the signer is one option, which core does not look into: whoever fails, nothing of it is shown."""
    hosts = {name: Host(atlas, "documented", tmp_path / name) for name in ("good", "refused", "red", "passphrase", "misspelt", "vault", "signer", "proxy")}
    for host in hosts.values():
        host.put()
    controller.each(REGISTER, orders(hosts)).good()
    trusted = tmp_path / "trusted.key"
    openssl("pkey", "-in", str(atlas.agents_ca.directory / "ca.key"), "-aes256", "-passout", "stdin", "-out", str(trusted), stdin=f"{PASSPHRASE}\n")
    own = {"certificate": str(atlas.agents_ca.ca_file), "key": str(trusted), "passphrase": PASSPHRASE}
    foreign = {"certificate": str(authority.file), "key": str(authority.key_file), "passphrase": PASSPHRASE}
    pki = {"issuer": "vault_pki", "vault_pki": {"mount": "pki-cert-leaks", "role": "agent"}, "vault": {"url": bao.url, "ca_cert": str(bao.ca_file)}}
    remote = {"issuer": "remote_signer", "url": "https://localhost:1", "issuer_ca": str(atlas.agents_ca.ca_file), "controller_name": "main", "timeout": 2,
              "retries": 0}
    pairs: dict[str, tuple[str, dict[str, Any]]] = {
        "good": ("", {"own_ca": own}), "refused": ("certificate_refused", {"own_ca": foreign}), "red": ("no_answer", {"own_ca": own}),
        "passphrase": ("ca_passphrase", {"own_ca": {**own, "passphrase": WRONG}}),
        "misspelt": ("invalid_input", {"own_ca": {**own, "pass_phrase": WRONG}}),
        "vault": ("", {**pki, "vault": {**pki["vault"], "token": WRONG_TOKEN}}), "signer": ("", remote),
        "proxy": ("proxy", {**remote, "proxy": f"http://operator:{PROXY_PASSWORD}@127.0.0.1:1"}),
    }
    options = {
        name: {**host.options(capabilities=None), "when": ["always"], "seen": False, "attempts": 1, "delay": 0.2, "settle_timeout": 5,
               "certificate": {"issuer": "own_ca", **pairs[name][1], "subject": host.signing()["subject"]}} for name, host in hosts.items()}
    options["red"]["health_url"] = "http://127.0.0.1:9/health"
    task, variables = for_each(ROTATE, options)
    play = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [{**task, "register": "answer"}]}]
    with Watch() as watch:
        artefacts = runner_job(tmp_path / "job", controller, play, variables, "-vvvvvv --diff", ANSIBLE_PIPELINING="0",
                               ANSIBLE_LOG_PATH=str(tmp_path / "ansible.log"))
    results = {note["host"]: note for line in (tmp_path / "job" / "results.jsonl").read_text().splitlines() for note in [json.loads(line)]}
    assert {name: note["outcome"] for name, note in results.items()} == {name: "ok" if name == "good" else "failed" for name in hosts}
    for name, (reason, _pair) in pairs.items():
        assert results[name]["result"].get("reason") == reason or not reason, results[name]["result"]
        host = hosts[name]
        assert (len(host.records()), host.receipt()["generation"]) == (2 if name in ("good", "red") else 1, 2 if name == "good" else 1)
    keys = list(bodies(trusted, authority.key_file)) + [host.key for host in hosts.values()]
    secrets = [PASSPHRASE, WRONG, WRONG_TOKEN, PROXY_PASSWORD, PASSWORD, CLIENT_SECRET, *keys]
    shown = [secret for secret in secrets if secret not in (PASSWORD, CLIENT_SECRET)]  # the reference server has those from its command line
    assert (watch.processes(shown), watch.log(secrets)) == ([], [])
    for place in (artefacts, controller.scratch, controller.home, *(host.root for host in hosts.values())):
        assert found_in_files(place, secrets) == []
    assert found_in((tmp_path / "ansible.log").read_bytes(), secrets) == []
