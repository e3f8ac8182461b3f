# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""token_rotate where the key is made on the host: a new pair is registered beside the old one before it changes its place, in both contracts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from world.openbao import OpenBao

from .agents import CONTRACTS, REGISTER, WAYS
from .atlas import CLIENT_SECRET, PASSWORD, Atlas, Host, orders
from .canary import found_in, found_in_files
from .controller import Controller, Play, for_each

ROTATE, ISSUE = "muster.agents.token_rotate", "muster.agents.cert_issue"
# Nothing runs on these hosts: the gate has the record at the control plane to judge, and the pair, which the host uses.
QUIET: dict[str, Any] = {"capabilities": None, "seen": False, "attempts": 1, "delay": 0.2, "when": ["always"], "settle_timeout": 5}
DEAD = "http://127.0.0.1:9/health"


def rotation(host: Host, **changes: Any) -> dict[str, Any]:
    """The options of token_rotate for *host*; None removes one."""
    given = {**host.options(), **QUIET, "certificate": host.signing(), **changes}
    return {key: value for key, value in given.items() if value is not None}


def fleet(atlas: Atlas, directory: Path, controller: Controller) -> dict[str, Host]:
    """One enrolled agent for each contract and way to the host, with a plain pair or one behind links."""
    hosts = {f"{contract}-{way}": Host(atlas, contract, directory / f"{contract}-{way}", way) for contract, way in itertools.product(CONTRACTS, WAYS)}
    for host in hosts.values():
        host.put()
    controller.each(REGISTER, orders(hosts)).good()
    atlas.quiet()
    return hosts


def lying(hosts: Mapping[str, Host]) -> dict[str, tuple[str, str]]:
    """The pair that each host's agent reads."""
    return {name: (host.certificate.read_text(), host.certificate.with_suffix(".key").read_text()) for name, host in hosts.items()}


def test_a_new_pair_takes_the_place_of_the_old_one_whose_record_is_named(
    atlas: Atlas, controller: Controller, bao: OpenBao, tmp_path: Path,
) -> None:
    hosts = fleet(atlas, tmp_path, controller)
    before, ids = lying(hosts), {name: host.receipt()["agent_id"] for name, host in hosts.items()}
    vault = {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)}

    def given(host: Host, **changes: Any) -> dict[str, Any]:
        path = {"path": f"secret/data/kubeatlas/{host.name}", "fields": {"certificate": "certificate", "service_id": "agent_id"}}
        return rotation(host, vault=vault, vault_paths=[path], **changes)

    foretold = controller.each(ROTATE, {name: given(host) for name, host in hosts.items()}, arguments=["--check", "--diff"]).good()
    for name in hosts:
        plan = foretold.result(name)["plan"]
        assert (foretold.result(name)["action"], plan["restorable"]) == ("planned", True)
        assert plan["steps"] == ["pair", "stage", "register", "prove", "vault", "deliver", "gate", "retire"]
    assert (lying(hosts), atlas.mutations()) == (before, [0, 0])

    done = controller.each(ROTATE, {name: given(host) for name, host in hosts.items()}, arguments=["-vvvvvv", "--diff"]).good()
    after = lying(hosts)
    for name, host in hosts.items():
        result = done.result(name)
        assert (result["action"], result["generation"], result["phase"]) == ("rotated", 2, "COMMITTED"), result
        assert [step["step"] for step in result["steps"]] == result["plan"]["steps"]
        assert after[name][0] != before[name][0]
        assert after[name][1] != before[name][1]
        host.check_healthy(records=2)
        assert host.receipt()["agent_id"] != ids[name]
        assert [warning for warning in result["warnings"] if f"redis-cli DEL service:{ids[name]}" in warning] == result["warnings"]
        assert result["retire_pending"] == []
        document = bao.read(f"secret/data/kubeatlas/{host.name}")
        assert document is not None
        assert document["data"] == {"certificate": after[name][0], "service_id": host.receipt()["agent_id"]}
    keys = [key.splitlines()[1] for pairs in (before, after) for _certificate, key in pairs.values()]
    assert found_in(done.output + done.events, [PASSWORD, CLIENT_SECRET, *keys]) == []
    assert [found_in_files(host.directory / "store", keys) for host in hosts.values()] == [[]] * len(hosts)

    atlas.quiet()
    again = controller.each(ROTATE, {name: given(host, when=None) for name, host in hosts.items()}).good()
    assert {(again.result(name)["action"], again.result(name)["reason"]) for name in hosts} == {("unchanged", "not_due")}
    deployed = controller.each(REGISTER, {name: host.options() for name, host in hosts.items()}, arguments=["--diff"]).good()
    assert {deployed.result(name)["changed"] for name in hosts} == {False}, deployed.output
    assert (lying(hosts), atlas.mutations()) == (after, [0, 0])


def test_a_red_gate_brings_the_old_pair_back_and_names_the_record_that_stays(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    hosts = fleet(atlas, tmp_path, controller)
    before, ids = lying(hosts), {name: host.receipt()["agent_id"] for name, host in hosts.items()}
    env = {name: host.env_file.read_text() for name, host in hosts.items()}
    red = controller.each(ROTATE, {name: rotation(host, health_url=DEAD) for name, host in hosts.items()})
    assert lying(hosts) == before
    for name, host in hosts.items():
        result = red.result(name)
        assert (result["failed"], result["action"], result["failed_step"], result["rolled_back"]) == (True, "rolled_back", "gate", True), result
        assert (host.receipt()["agent_id"], host.env_file.read_text()) == (ids[name], env[name])
        (unwanted,) = [record["agent_id"] for record in host.records() if record["agent_id"] != ids[name]]
        assert any(f"redis-cli DEL service:{unwanted}" in warning for warning in result["warnings"])
        assert host.server.accepts(host.name, host.certificate.read_text())
    # The gate was red with the old pair too: where nothing is due the next run proves it, where something is the next run rotates.
    back, again = dict(list(hosts.items())[:2]), dict(list(hosts.items())[2:])
    changes = {**{name: rotation(host, when=["days_left"]) for name, host in back.items()}, **{name: rotation(host) for name, host in again.items()}}
    done = controller.each(ROTATE, changes).good()
    assert {name: done.result(name)["action"] for name in hosts} == {name: "resumed" if name in back else "rotated" for name in hosts}
    for name, host in again.items():
        host.check_healthy(records=3)
        stale = {record["agent_id"] for record in host.records()} - {host.receipt()["agent_id"]}
        said = " ".join(done.result(name)["warnings"])
        assert [known for known in stale if f"service:{known}" not in said] == []
    assert [(host.receipt()["phase"], host.receipt()["agent_id"]) for host in back.values()] == [("COMMITTED", ids[name]) for name in back]
    assert lying(back) == {name: before[name] for name in back}


def test_lost_answers_and_runs_that_die_leave_one_record_for_the_new_pair(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    """The answer is lost; or the run dies with the certificate staged, registered, or in its place. Another controller finishes it."""
    hosts = fleet(atlas, tmp_path / "lost", controller)
    for host in hosts.values():
        host.server.fault("kubeatlas_register", "commit-then-drop", name=f'"{host.name}"')
    controller.each(ROTATE, {name: rotation(host) for name, host in hosts.items()}).good()
    for host in hosts.values():
        host.check_healthy(records=2)

    elsewhere, cut = Controller(tmp_path / "another-node"), {}
    for point in ("after_stage", "after_issue", "after_install", "after_delivery"):
        mine = {f"{contract}-{point}": Host(atlas, contract, tmp_path / f"{contract}-{point.replace('_', '-')}") for contract in CONTRACTS}
        for host in mine.values():
            host.put()
        controller.each(REGISTER, orders(mine)).good()
        task, given = for_each(ROTATE, {name: rotation(host) for name, host in mine.items()})
        running = controller.start([task], given, environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=stop"})
        running.wait_halted(len(mine))
        running.kill()
        cut.update(mine)
    finished = elsewhere.each(ROTATE, {name: rotation(host, when=["days_left"], lease=1) for name, host in cut.items()}).good()
    assert {finished.result(name)["action"] for name in cut} == {"resumed"}
    for host in cut.values():
        host.check_healthy(records=2)
        assert not (host.certificate.parent / ".muster" / host.certificate.name / "stage").exists()
    atlas.quiet()
    quiet = elsewhere.each(REGISTER, orders(cut)).good()
    assert ({quiet.result(name)["changed"] for name in cut}, atlas.mutations()) == ({False}, [0, 0])


def deployed(controller: Controller, hosts: Mapping[str, Host]) -> Play:
    """Deploy: the pair is seen to, then the agent is enrolled."""
    place = {name: {"certificate_path": str(host.certificate), "key_path": str(host.certificate.with_suffix(".key"))} for name, host in hosts.items()}
    issue, made = for_each(ISSUE, {name: {**place[name], **host.signing()} for name, host in hosts.items()})
    task, given = for_each(REGISTER, orders(hosts, lease=1))
    issue = {**issue, ISSUE: {name: value.replace("given", "made") for name, value in issue[ISSUE].items()}}
    return controller.run([issue, task], {name: {**given[name], "made": made[name]["given"]} for name in hosts}).good()


def test_a_deploy_in_the_middle_leaves_the_waiting_pair_to_the_next_rotation(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    """The rotation dies with the new pair certified, registered or installed; two deploys come before the next rotation."""
    hosts: dict[str, Host] = {}
    for point in ("after_stage", "after_issue", "after_install"):
        mine = {f"{contract}-{point}": Host(atlas, contract, tmp_path / f"{contract}-{point.replace('_', '-')}") for contract in CONTRACTS}
        deployed(controller, mine)
        old = lying(mine)
        task, given = for_each(ROTATE, {name: rotation(host) for name, host in mine.items()})
        running = controller.start([task], given, environment={"MUSTER_AGENTS_TEST_FAULT": f"{point}=stop"})
        running.wait_halted(len(mine))
        running.kill()
        assert (lying(mine) == old) is (point != "after_install"), "the new pair was put in place before the control plane knew it"
        hosts.update(mine)
    before, ids = lying(hosts), {name: {record["agent_id"] for record in host.records()} for name, host in hosts.items()}
    elsewhere = Controller(tmp_path / "another-node")
    atlas.quiet()
    for number in range(2):
        done = deployed(elsewhere, hosts)
        assert [done.results[name][0]["changed"] for name in hosts] == [False] * len(hosts), done.output
        assert {result["failed"] for name in hosts for result in done.results[name]} == {False}, done.output
        assert not number or [done.result(name)["changed"] for name in hosts] == [False] * len(hosts), done.output
    assert (lying(hosts), atlas.mutations()) == (before, [0, 0])
    finished = elsewhere.each(ROTATE, {name: rotation(host, when=["days_left"], lease=1) for name, host in hosts.items()}).good()
    for name, host in hosts.items():
        host.check_healthy(records=2)
        assert (lying({name: host})[name] == before[name]) is name.endswith("after_install")
        assert ids[name] <= {record["agent_id"] for record in host.records()}, "the waiting pair was registered twice"
        (stale,) = {record["agent_id"] for record in host.records()} - {host.receipt()["agent_id"]}
        assert f"redis-cli DEL service:{stale}" in " ".join(finished.result(name)["warnings"])
        assert not (host.certificate.parent / ".muster" / host.certificate.name / "stage").exists()
    atlas.quiet()
    quiet = deployed(elsewhere, hosts)
    assert {result["changed"] for name in hosts for result in quiet.results[name]} == {False}
    again = elsewhere.each(ROTATE, {name: rotation(host, when=["days_left"]) for name, host in hosts.items()}).good()
    assert ({again.result(name)["action"] for name in hosts}, atlas.mutations()) == ({"unchanged"}, [0, 0])


def test_vault_or_a_remote_signer_may_certify_the_new_pair(atlas: Atlas, controller: Controller, bao: OpenBao, tmp_path: Path) -> None:
    hosts = {f"{contract}-{signer}": Host(atlas, contract, tmp_path / f"{contract}-{signer}") for contract in CONTRACTS for signer in ("vault", "remote")}
    for host in hosts.values():
        host.put()
    controller.each(REGISTER, orders(hosts)).good()
    authority = atlas.agents_ca
    bao.call("POST", "sys/mounts/pki-pairs", {"type": "pki", "config": {"max_lease_ttl": "8760h"}})
    bao.call("POST", "pki-pairs/config/ca", {"pem_bundle": (authority.directory / "ca.key").read_text() + authority.ca_file.read_text()})
    bao.call("POST", "pki-pairs/roles/agent", {"allow_any_name": True, "enforce_hostnames": False, "key_type": "any", "organization": "KubeAtlas",
                                               "max_ttl": "8000h"})
    login = {"url": bao.url, "ca_cert": str(bao.ca_file), "token_file": str(bao.token_file)}
    vault = {"issuer": "vault_pki", "vault_pki": {"mount": "pki-pairs", "role": "agent"}, "vault": login, "valid_days": 90}
    given, before = {}, lying(hosts)
    for name, host in hosts.items():
        remote = {"issuer": "remote_signer", "url": host.server.url, "ca_cert": str(atlas.ca.ca_file), "issuer_ca": str(authority.ca_file),
                  "controller_name": "main"}
        given[name] = rotation(host, certificate={**(vault if name.endswith("vault") else remote), "subject": host.signing()["subject"]})
    atlas.quiet()
    bao.reset_mutations()
    done = controller.each(ROTATE, given, arguments=["-vvvvvv"]).good()
    for name, host in hosts.items():
        assert (done.result(name)["action"], host.receipt()["phase"]) == ("rotated", "COMMITTED")
        host.check_healthy(records=2)
        assert lying(hosts)[name][1] != before[name][1]
    assert bao.mutating_requests() == ["update pki-pairs/sign/agent"] * len(CONTRACTS)
    assert [server.counters()["by_outcome"]["kubeatlas_sign"] for server in atlas.servers.values()] == [{"200": 1}] * len(CONTRACTS)
    assert found_in(done.output + done.events, [bao.root_token]) == []


def test_without_a_signer_or_a_login_nothing_is_begun(atlas: Atlas, controller: Controller, tmp_path: Path) -> None:
    login = {"username": None, "password": None, "client_secret": None, "issuer_url": None}
    hosts = {name: Host(atlas, "shipped", tmp_path / name) for name in ("unsigned", "token", "no-ca", "elsewhere", "typo")}
    for host in hosts.values():
        host.put()
    controller.each(REGISTER, orders(hosts)).good()
    before, pair = lying(hosts), rotation(hosts["no-ca"])["certificate"]
    token = hosts["token"].server.act("kubeatlas", "mint", service_name=hosts["token"].name, controller_name="main")["install_token"]
    atlas.quiet()
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "unsigned": ("pair_on_host", {"certificate": None}), "token": ("login_needed", {**login, "install_token": token}),
        "no-ca": ("invalid_input", {"certificate": {**pair, "own_ca": {"certificate": "/nonexistent", "key": "/nonexistent"}}}),
        "elsewhere": ("invalid_input", {"certificate": {**pair, "certificate_path": "/etc/other.crt"}}),
        "typo": ("invalid_input", {"certificate": {**pair, "valid_day": 3}}),
    }
    for arguments in (["--check"], []):
        refused = controller.each(ROTATE, {name: rotation(hosts[name], **given) for name, (_reason, given) in changes.items()}, arguments=arguments)
        assert {name: refused.result(name)["reason"] for name in hosts} == {name: reason for name, (reason, _given) in changes.items()}
    assert (lying(hosts), atlas.mutations()) == (before, [0, 0])
    assert [host.receipt()["phase"] for host in hosts.values()] == ["STORED"] * len(hosts)
