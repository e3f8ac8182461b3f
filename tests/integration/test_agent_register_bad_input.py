# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What agent_register refuses: each with a stable reason and one sentence that says what to do, and without any trace of the attempt."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reference_server.client import ReferenceServer, Tls
from world.ca import CertificateAuthority

from .agents import REGISTER, WAYS, Agent, World
from .controller import Controller, Play

PEM_WITHOUT_KEY = "-----BEGIN PUBLIC KEY-----\nbm90IGEga2V5\n-----END PUBLIC KEY-----\n"


@dataclass(frozen=True)
class Case:
    """One wrong input: what is changed of good options, the reason it must give, and words its sentence must have."""

    reason: str
    words: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def rendered(text: str, fmt: str = "text", **more: Any) -> dict[str, Any]:
    """The option ``files`` with one file beside the environment file's place; *text* is a template."""
    return {"files": [{"path": "{{ place }}/opt/file", "content": f"{{% raw %}}{text}{{% endraw %}}", "format": fmt, **more}]}


INPUT: dict[str, Case] = {
    # the identity
    "empty-name": Case("invalid_input", "give a stable, unique name", {"name": ""}),
    "blank-name": Case("invalid_input", "give a stable, unique name", {"name": "  "}),
    "long-name": Case("invalid_input", "stores at most 128: shorten it", {"name": "n" * 129}),
    "odd-name": Case("invalid_input", "use only those", {"name": "web.example.com"}),
    "slash-in-name": Case("invalid_input", "use only those", {"name": "../escape"}),
    "newline-in-name": Case("invalid_input", "use only those", {"name": "valid-name-x7k\n"}),
    "date-in-name": Case("invalid_input", "allow_unstable_name", {"name": "shop-2026-11-22"}),
    "time-in-name": Case("invalid_input", "allow_unstable_name", {"name": "shop-20261122T101500"}),
    "epoch-in-name": Case("invalid_input", "allow_unstable_name", {"name": "shop-1763770000"}),
    "generic-name": Case("invalid_input", "generic", {"name": "production"}),
    "sequential-name": Case("invalid_input", "sequential", {"name": "web-01"}),
    "no-capabilities": Case("invalid_input", "name at least one", {"capabilities": []}),
    "long-capability": Case("invalid_input", "correct it", {"capabilities": ["docker", "c" * 33]}),
    "upper-capability": Case("invalid_input", "correct it", {"capabilities": ["Docker"]}),
    "short-version": Case("invalid_input", "X.Y.Z", {"version": "1.0"}),
    "word-version": Case("invalid_input", "X.Y.Z", {"version": "latest"}),
    "key-not-pem": Case("invalid_input", "-----BEGIN PUBLIC KEY-----", {"public_key": "ssh-ed25519 AAAA"}),
    "pem-without-key": Case("invalid_input", "-----BEGIN PUBLIC KEY-----", {"public_key": PEM_WITHOUT_KEY}),
    # the url
    "url-without-scheme": Case("invalid_input", "https://host:port", {"url": "stacker.example.com:8000"}),
    "url-with-path": Case("invalid_input", "the paths are added here", {"url": "https://stacker.example.com/api/v1"}),
    "url-with-query": Case("invalid_input", "the paths are added here", {"url": "https://stacker.example.com?x=1"}),
    "url-with-password": Case("invalid_input", "their own options", {"url": "https://joe:hunter2@stacker.example.com"}),
    "url-in-clear-text": Case("invalid_input", "allow_plaintext: true", {"url": "http://stacker.example.com:8000"}),
    "url-unresolvable": Case("unresolvable", "check the host name", {"url": "https://stacker.invalid:8443"}),
    "url-refusing": Case("refused", "check that the server runs", {"url": "https://127.0.0.1:1"}),
    "url-speaks-no-tls": Case("untrusted", "does not speak TLS", {"url": "{{ plain_url }}"}),
    "untrusted": Case("untrusted", "name the CA that signed it in ca_cert", {"ca_cert": None}),
    "wrong-host-name": Case("untrusted", "use a host name the certificate carries", {"url": "{{ other_name_url }}"}),
    "wrong-pin": Case("wrong_pin", "compare pin_sha256", {"pin_sha256": "0" * 64}),
    "malformed-pin": Case("invalid_input", "64 hexadecimal digits", {"pin_sha256": "beef"}),
    "old-tls": Case("tls_too_old", "the floor is set by tls_min_version", {"url": "{{ old_tls_url }}"}),
    "missing-ca": Case("invalid_input", "ca_cert", {"ca_cert": "/nonexistent/ca.pem"}),
    "server-clock": Case("clock_skew", "set both by NTP", {"url": "{{ skewed_url }}"}),
    # Vault
    "vault-wrong-token": Case("wrong_token", "token", {"vault": {"url": "{{ vault_url }}", "ca_cert": "{{ vault_ca }}", "token": "s.not-a-token"}}),
    "vault-permission": Case(
        "permission_denied", "status_panel_token", {"vault": {"url": "{{ vault_url }}", "ca_cert": "{{ vault_ca }}", "token": "{{ limited }}"}}),
    "vault-mount": Case("missing_mount", "nowhere", {"vault_paths": [{"path": "nowhere/a-name/token", "fields": {"token": "token"}}]}),
    "vault-shape": Case("wrong_kv_shape", "secret/data/", {"vault_paths": [{"path": "secret/a-name/token", "fields": {"token": "token"}}]}),
    "vault-unknown-secret": Case("invalid_input", "known are token", {"vault_paths": [{"path": "status_panel/x/token", "fields": {"token": "jeton"}}]}),
    "vault-in-clear-text": Case("invalid_input", "clear text", {"vault": {"url": "http://vault.example.com", "token": "x"}}),
    "vault-without-login": Case("invalid_input", "token", {"vault": {"url": "{{ vault_url }}", "ca_cert": "{{ vault_ca }}"}}),
    # templates
    "unknown-secret": Case("unknown_secret", "add yours under secrets", rendered("{{ muster_secret.jeton }}")),
    "failing-template": Case("render_failure", "could not be rendered", rendered("one\n{{ 1 / 0 }}")),
    "broken-template": Case("invalid_template", "line 1", rendered("{% if %}")),
    "missing-template": Case("render_failure", "nowhere.j2", {"files": [{"path": "{{ place }}/opt/file", "src": "nowhere.j2"}]}),
    "invalid-env": Case("invalid_content", "environment file", rendered("A=1\nnot a line of one", "env")),
    "invalid-toml": Case("invalid_content", "TOML", rendered("a = [", "toml")),
    "invalid-json": Case("invalid_content", "JSON", rendered('{"token": {{ muster_secret.token }} }', "json")),
    "invalid-yaml": Case("invalid_content", "YAML", rendered("a: [", "yaml")),
    "relative-path": Case("invalid_input", "starts with a slash", {"files": [{"path": "opt/file", "content": "x"}]}),
    "unquoted-mode": Case("invalid_input", "octal mode", rendered("x", mode="384")),
    "validate-without-file": Case("invalid_input", "lacks %s", rendered("x", validate="/bin/true")),
    "secret-file-missing": Case("invalid_input", "cannot be read", {"secrets": [{"name": "database", "file": "/nonexistent/secret"}]}),
    "reserved-secret": Case("invalid_input", "choose another", {"secrets": [{"name": "token", "value": "mine"}]}),
}


@dataclass(frozen=True)
class Refused:
    """One run over every case, what it left on each host, and the mutating requests that servers saw."""

    play: Play
    left: Mapping[str, Mapping[str, bytes]]
    mutations: list[str]


@pytest.fixture(scope="module")
def others(ca: CertificateAuthority, tls: Tls) -> Iterator[dict[str, ReferenceServer]]:
    """Control planes that a run must refuse: one with a wrong clock, one without TLS, and one with another host's certificate."""
    elsewhere = ca.server("elsewhere", ("stacker.elsewhere.example",))
    servers = {
        "skewed_url": ReferenceServer.start("shipped", tls=tls), "plain_url": ReferenceServer.start("shipped"),
        "other_name_url": ReferenceServer.start("shipped", tls=Tls(str(elsewhere.cert), str(elsewhere.key))),
    }
    servers["skewed_url"].clock(900)
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="module")
def old_tls_url(tls: Tls) -> Iterator[str]:
    """A server that speaks TLS 1.1 and nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(tls.cert, tls.key)

    def greet(listener: socket.socket) -> None:
        while True:
            try:
                connection, _peer = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def refused(_shared_world: World, others: Mapping[str, ReferenceServer], old_tls_url: str, tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """All cases in one run of ansible-playbook, each as a host of its own."""
    world, directory = _shared_world, tmp_path_factory.mktemp("bad-input")
    agents = {host: Agent(world, "shipped", directory / host) for host in INPUT}
    writable, readable = agents["vault-permission"].leaves
    rules = {writable: ["create", "read", "update"], readable: ["read"]}
    world.bao.policy("bad-input", "".join(f'path "{path}" {{ capabilities = {json.dumps(able)} }}\n' for path, able in rules.items()))
    shared: dict[str, Any] = {
        "vault_url": world.bao.url, "vault_ca": str(world.bao.ca_file), "limited": world.bao.token(["bad-input"]),
        "skewed_url": others["skewed_url"].url, "old_tls_url": old_tls_url, "other_name_url": others["other_name_url"].url,
        "plain_url": others["plain_url"].url.replace("http:", "https:"),
    }
    world.quiet()
    hosts: dict[str, dict[str, Any]] = {}
    options = {host: {**agents[host].options(retries=1), **case.changes} for host, case in INPUT.items()}
    names = sorted({name for given in options.values() for name in given})
    for host, given in options.items():
        hosts[host] = {"given": {key: value for key, value in given.items() if value is not None}, "place": str(directory / host), **shared}
    task = {"name": "Enrol", REGISTER: {name: f"{{{{ given.{name} | default(omit) }}}}" for name in names}}
    play = Controller(directory / "controller").run([task], hosts)
    own = [server for key, server in others.items() if server.counters()["stacker"]["mutating"]]
    assert own == []
    return Refused(play, {host: agent.everything() for host, agent in agents.items()}, world.mutations())


def is_refusal(result: Mapping[str, Any], reason: str, words: str) -> None:
    """Fail unless *result* is a failure with *reason*, told in one line that has *words*."""
    assert result.get("failed"), result
    assert (result["reason"], result["changed"]) == (reason, False), result["msg"]
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert len(result["msg"]) < 400
    assert result["msg"].endswith("."), result["msg"]


@pytest.mark.parametrize("host", INPUT)
def test_wrong_input_is_refused_in_one_sentence_and_leaves_no_trace(host: str, refused: Refused) -> None:
    is_refusal(refused.play.result(host), INPUT[host].reason, INPUT[host].words)
    assert refused.left[host] == {}


def test_no_wrong_input_ever_sends_a_request_that_changes_something(refused: Refused) -> None:
    assert refused.mutations == []


def test_a_missing_name_is_told_by_name(world: World, controller: Controller, tmp_path: Path) -> None:
    agent = Agent(world, "shipped", tmp_path / "host")
    result = controller.each(REGISTER, {"host": agent.options(name=None)}).result("host")
    assert "name" in result["msg"]
    assert "required" in result["msg"]
    assert (agent.everything(), world.mutations()) == ({}, [])


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A disk that cannot be written and one that is full."""
    places = {"read-only": tmp_path / "read-only", "full": tmp_path / "full"}
    for place in places.values():
        place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "muster-test", str(places["read-only"])], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "muster-test", str(places["full"])], check=True)
    with (places["full"] / "ballast").open("wb") as ballast:
        ballast.write(b"x" * 65536)
    yield places
    for place in places.values():
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_cannot_be_written_and_a_full_disk_stop_before_the_first_request(
    world: World, controller: Controller, tmp_path: Path, small_disks: Mapping[str, Path],
) -> None:
    reasons = {"read-only": ("not_writable", "become: true"), "full": ("disk_full", "make room")}
    agents = {f"{disk}-{way}": Agent(world, "documented", tmp_path / f"{disk}-{way}", way) for disk in small_disks for way in WAYS}
    options = {host: agent.options(store=str(small_disks[host.rpartition("-")[0]] / "store")) for host, agent in agents.items()}
    ran = controller.each(REGISTER, options)
    for host, agent in agents.items():
        is_refusal(ran.result(host), *reasons[host.rpartition("-")[0]])
        assert agent.everything() == {}
    assert [path.name for disk in small_disks.values() for path in disk.rglob("*")] == ["ballast"]
    assert world.mutations() == []


def test_a_host_whose_clock_is_off_is_refused_before_the_first_request(world: World, controller: Controller, tmp_path: Path) -> None:
    fast, module = (Agent(world, "documented", tmp_path / way, way) for way in ("fast", "module"))
    late = tmp_path / "late"
    late.mkdir()
    date = late / "date"
    date.write_text('#!/bin/sh\n[ "$*" = "-d now +%s" ] && exec /bin/date -d "+900 seconds" +%s\nexec /bin/date "$@"\n')
    # Only the host's module runs under this interpreter: the controller's clock stays right.
    (late / "sitecustomize.py").write_text("import time\n_now = time.time\ntime.time = lambda: _now() + 900\n")
    python = late / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={late} exec {sys.executable} "$@"\n')
    for path in (date, python):
        path.chmod(0o755)
    path = f"{late}:{controller.environment()['PATH']}"
    by_script = controller.each(REGISTER, {"fast": fast.options()}, environment={"PATH": path})
    by_module = controller.each(REGISTER, {"module": module.options()}, environment={"ANSIBLE_PYTHON_INTERPRETER": str(python)})
    is_refusal(by_script.result("fast"), "clock_skew", "set both by NTP")
    is_refusal(by_module.result("module"), "clock_skew", "set both by NTP")
    assert (fast.everything(), module.everything(), world.mutations()) == ({}, {}, [])


def test_a_sealed_vault_stops_before_the_first_request(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {contract: Agent(world, contract, tmp_path / contract) for contract in world.stackers}
    world.bao.seal()
    ran = controller.each(REGISTER, {host: agent.options() for host, agent in agents.items()})
    world.bao.unseal()
    for host, agent in agents.items():
        is_refusal(ran.result(host), "sealed", "unseal")
        assert agent.everything() == {}
    assert world.mutations() == []


def test_an_unknown_owner_and_a_refusing_validation_leave_host_and_vault_recoverable(world: World, controller: Controller, tmp_path: Path) -> None:
    wrong = {"unknown-owner": {"owner": "nobody-of-that-name"}, "refused-by-validate": {"validate": "/bin/false %s"}}
    reasons = {"unknown-owner": ("unknown_owner", "create them first"), "refused-by-validate": ("invalid", "the old file stays")}
    agents = {f"{kind}-{way}": Agent(world, "documented", tmp_path / f"{kind}-{way}", way) for kind in wrong for way in WAYS}

    def given(agent: Agent, **more: str) -> dict[str, Any]:
        return agent.options(files=[{**agent.options()["files"][0], **more}])

    ran = controller.each(REGISTER, {host: given(agent, **wrong[host.rpartition("-")[0]]) for host, agent in agents.items()})
    for host, agent in agents.items():
        is_refusal(ran.result(host), *reasons[host.rpartition("-")[0]])
        assert not agent.env_file.exists()
    mended = controller.each(REGISTER, {host: given(agent) for host, agent in agents.items()}).good()
    for host, agent in agents.items():
        assert mended.result(host)["changed"]
        agent.check_healthy()
    assert controller.spool == []
