# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference pgAnalytics collector: both faces as built artefacts, against a real server."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reference_agent import collector
from reference_agent.build import AGENTS, build

from ansible_collections.muster.agents.plugins.plugin_utils._formats import FormatError, parse
from reference_server.client import ReferenceServer, Tls
from reference_server.pganalytics import DEFAULT_SECRET
from world.ca import CertificateAuthority

from .conftest import Launch, Process, Wire, eventually


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both faces."""
    faces = build(tmp_path_factory.mktemp("artefacts"), agent="collector")
    return dict(zip(AGENTS["collector"][1], faces))


@pytest.fixture(scope="module")
def servers(ca: CertificateAuthority, tls: Tls) -> Iterator[dict[str, ReferenceServer]]:
    """One server for each contract; the documented one asks collectors for their certificates."""
    asking = Tls(tls.cert, tls.key, client_ca=str(ca.ca_file))
    own_ca = ["--pganalytics-mtls", "on", "--pganalytics-ca-cert", str(ca.ca_file), "--pganalytics-ca-key", str(ca.ca_file.with_name("ca.key"))]
    started = {
        "documented": ReferenceServer.start("documented", tls=asking, arguments=["--plane", "pganalytics", *own_ca]),
        "shipped": ReferenceServer.start("shipped", tls=tls, arguments=["--plane", "pganalytics"]),
    }
    yield started
    for server in started.values():
        server.stop()


class Home:
    """A host's files for one collector, below a folder that stands in for its root."""

    def __init__(self, root: Path, server: ReferenceServer, contract: str, trust: ssl.SSLContext, ca: CertificateAuthority) -> None:
        self.root, self.server, self.ca = root, server, ca
        body = {"name": "primary-db", "hostname": "db-1.example.com"}
        self.item: dict[str, Any] = Wire(server.url, trust).call("POST", "/api/v1/collectors/register", body, {"X-Registration-Secret": DEFAULT_SECRET}).json
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.put("/etc/pganalytics/collector.crt", self.item["certificate"])
        self.put("/etc/pganalytics/collector.key", self.item["private_key"])
        self.put("/etc/pganalytics/ca.crt", ca.ca_file.read_text())
        self.put("/var/lib/pganalytics/collector.token", self.item["token"] + "\n")
        self.put("/var/lib/pganalytics/collector.id", self.item["collector_id"] + "\n")
        self.put("/var/run/pganalytics/.keep", "")
        self.put(collector.CONFIG, self.documented() if contract == "documented" else self.shipped())

    def put(self, path: str, text: str) -> None:
        file = Path(f"{self.root}{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def documented(self, **changes: str) -> str:
        values = {
            "id": f'"{self.item["collector_id"]}"', "interval": "1", "url": f'"{self.server.url}"', "jwt_token": f'"{self.item["token"]}"',
            "ca_cert": '"/etc/pganalytics/ca.crt"', "tls_cert": '"/etc/pganalytics/collector.crt"', "port": str(self.port), **changes}
        return (
            '[collector]\nid = {id}\nhostname = "db-1.example.com" # the database\ninterval = {interval}\n[backend]\nurl = {url}\njwt_token = {jwt_token}\n'
            'tls_cert = {tls_cert}\ntls_key = "/etc/pganalytics/collector.key"\nca_cert = {ca_cert}\nverify_ssl = true\n'
            '[postgres]\nhost = "localhost"\nport = 5432\nuser = "m"\ndatabases = [\n  "postgres",\n  "app_db"\n]\n'
            '[health_check]\nenabled = true\nport = {port}\nstatus_file = "/var/run/pganalytics/collector.status"\n').format(**values)

    def shipped(self) -> str:
        return (
            f'[collector]\nid = "{self.item["collector_id"]}"\nhostname = "db-1.example.com"\npush_interval = 1\n[backend]\nurl = "{self.server.url}"\n'
            '[postgres]\ndatabases = "postgres,app_db"\n[pg_log]\nenabled = false\n')

    @property
    def environment(self) -> dict[str, str]:
        return {"MUSTER_TEST_ROOT": str(self.root), "SSL_CERT_FILE": str(self.ca.ca_file)}

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                found: dict[str, Any] = json.loads(answer.read())
        except urllib.error.URLError:
            return {}
        return found

    def seen(self) -> bool:
        return self.server.agent("primary-db")["last_seen"] is not None


@pytest.fixture(params=["documented", "shipped"])
def contract(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path, servers: dict[str, ReferenceServer], contract: str, trust: ssl.SSLContext, ca: CertificateAuthority) -> Home:
    servers[contract].reset()
    return Home(tmp_path / "root", servers[contract], contract, trust, ca)


documented = pytest.mark.parametrize("contract", ["documented"], indirect=True)
shipped = pytest.mark.parametrize("contract", ["shipped"], indirect=True)


def once(artefact: Path, home: Home, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(artefact), *arguments], env={**home.environment, **environment}, capture_output=True, text=True, check=False, timeout=30)


def started(launch: Launch, artefact: Path, home: Home, *arguments: str) -> Process:
    return launch([str(artefact), *arguments], home.environment)


@documented
def test_documented_collector_pushes_with_token_and_certificate_and_tells_how_it_is(launch: Launch, artefacts: dict[str, Path], home: Home) -> None:
    process = started(launch, artefacts["documented"], home, "--config", collector.CONFIG)
    eventually(lambda: home.health().get("status") == "healthy")
    record = home.server.agent("primary-db")
    assert (record["status"], record["metrics_count"] > 0) == ("active", True)
    status = json.loads((home.root / "var/run/pganalytics/collector.status").read_text())
    assert (status["status"], status["collector_id"]) == ("healthy", home.item["collector_id"])
    process.popen.terminate()
    assert process.popen.wait(10) == 0
    assert "Collector started with ID" in process.said
    assert home.item["token"] not in process.said


@documented
def test_documented_collector_without_its_certificate_is_refused_and_says_so(launch: Launch, artefacts: dict[str, Path], home: Home) -> None:
    home.put(collector.CONFIG, home.documented(tls_cert='""'))
    started(launch, artefacts["documented"], home)
    eventually(lambda: "401" in str(home.health().get("last_error")))
    assert home.health()["status"] == "degraded"
    assert not home.seen()


@documented
def test_validate_and_dry_run_try_without_leaving_a_trace(artefacts: dict[str, Path], home: Home) -> None:
    before = home.server.agents()
    for option in ("--validate", "--dry-run"):
        done = once(artefacts["documented"], home, "--config", collector.CONFIG, option, "--verbose")
        assert (done.returncode, home.item["token"] in done.stdout + done.stderr) == (0, False), done.stderr
    assert home.server.agents() == before
    home.server.act("pganalytics", "expire", name="primary-db")
    refused = once(artefacts["documented"], home, "--dry-run")
    assert (refused.returncode, "refuses the token (401)" in refused.stderr) == (1, True)
    assert once(artefacts["documented"], home, "--validate").returncode == 0


@documented
@pytest.mark.parametrize(("changes", "words"), [
    ({"id": '""'}, "collector.id is missing"), ({"interval": '"60"'}, "collector.interval is of the wrong type"), ({"interval": "60 s"}, "not TOML, line 4"),
    ({"url": '"api.example.com"'}, "backend.url"), ({"jwt_token": '"opaque"'}, "no JWT"), ({"ca_cert": '"/nowhere"'}, "ca_cert"),
    ({"port": "70000"}, "out of range"),
])
def test_bad_configuration_is_refused_with_the_key(changes: dict[str, str], words: str, artefacts: dict[str, Path], home: Home) -> None:
    home.put(collector.CONFIG, home.documented(**changes))
    for options in (["--validate"], []):
        done = once(artefacts["documented"], home, *options)
        assert done.returncode == 1
        assert words in done.stderr


@documented
def test_missing_configuration_is_refused(artefacts: dict[str, Path], home: Home) -> None:
    assert "cannot read" in once(artefacts["documented"], home, "--config", "/etc/pganalytics/other.toml", "--validate").stderr


@shipped
def test_shipped_collector_refreshes_in_memory_and_pushes(launch: Launch, artefacts: dict[str, Path], home: Home) -> None:
    home.put("/var/lib/pganalytics/collector.token", home.server.act("pganalytics", "mint", name="primary-db", issued_ago=1700, expires_in=60)["token"] + "\n")
    before = (home.root / "var/lib/pganalytics/collector.token").read_text()
    process = started(launch, artefacts["shipped"], home)
    eventually(home.seen)
    eventually(lambda: home.server.counters()["by_route"]["pganalytics_refresh"] >= 2)
    assert (home.root / "var/lib/pganalytics/collector.token").read_text() == before
    assert home.health() == {}
    process.popen.terminate()
    assert process.popen.wait(10) == 0


@shipped
def test_shipped_collector_calls_refused_pushes_a_success(launch: Launch, artefacts: dict[str, Path], home: Home) -> None:
    home.server.act("pganalytics", "expire", name="primary-db")
    process = started(launch, artefacts["shipped"], home, "cron")
    eventually(lambda: "Metrics pushed successfully" in process.said)
    assert process.popen.poll() is None
    assert not home.seen()


@shipped
@pytest.mark.parametrize("option", ["--config", "--validate", "--dry-run", "--verbose", "--version", "--help"])
def test_shipped_collector_has_no_options(option: str, artefacts: dict[str, Path], home: Home) -> None:
    done = once(artefacts["shipped"], home, option)
    assert (done.returncode, f"Unknown action: {option}" in done.stderr) == (1, True)


@shipped
def test_shipped_register_writes_four_files(artefacts: dict[str, Path], home: Home) -> None:
    assert "REGISTRATION_SECRET" in once(artefacts["shipped"], home, "register").stderr
    done = once(artefacts["shipped"], home, "register", REGISTRATION_SECRET=DEFAULT_SECRET)
    assert done.returncode == 0, done.stderr
    assert home.server.agent("db-1.example.com")["agent_id"] == (home.root / "var/lib/pganalytics/collector.id").read_text().strip()
    files = ("var/lib/pganalytics/collector.token", "etc/pganalytics/collector.key")
    assert [(home.root / file).stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    (home.root / "etc/pganalytics/collector.toml").unlink()
    assert once(artefacts["shipped"], home).returncode == 1


def test_the_shipped_parser_has_its_own_rules() -> None:
    text = '[a]\nkey = "v" # comment\nlist = ["x", "y"]\nbroken\nkey2 = \'q\'\nkey2 = "last \\" one"\n'
    assert collector.mini_parser(text) == {"a.key": '"v" # comment', "a.list": '["x", "y"]', "a.key2": 'last \\" one'}


@pytest.mark.parametrize("text", [
    ('a = 1\n[b]\nc = "#no comment" # one\nd = [ "x,y", "z", ] # more\ne = true\nf = -1.5e3\n'
     'g = \'lit\\n\'\nh = "\\u00e4\\t\\"\\\\"\ni = [\n1,\n2\n]\nj = 1_000\n'),
    "", "# only\n",
])
def test_the_small_reader_agrees_with_pythons_own(text: str) -> None:
    assert collector.SmallToml(text).read() == parse(text, "toml")


@pytest.mark.parametrize("text", [
    "a\n", "a = \n", "a = b\n", "[a\n", "[a]\n[a]\n", "a = 1\na = 2\n", 'a = "x\n', "a = [1\n", 'a = "\\q"\n', "a b = 1\n", "a = 01\n", 'a = "x"y"\n'])
def test_the_small_reader_refuses_what_pythons_own_refuses(text: str) -> None:
    with pytest.raises(FormatError):
        parse(text, "toml")
    with pytest.raises(collector.StartError, match="line"):
        collector.SmallToml(text).read()


@documented
@pytest.mark.parametrize(("broken", "code"), [("exit", 1), ("badtoken", None)])
def test_broken_builds_fail_in_their_way(broken: str, code: int | None, launch: Launch, tmp_path: Path, home: Home) -> None:
    artefact = build(tmp_path / "broken", broken=broken, agent="collector")[0]
    process = started(launch, artefact, home)
    if code is not None:
        assert process.popen.wait(10) == code
    else:
        eventually(lambda: home.health().get("status") == "degraded")
    assert not home.seen()


@documented
def test_an_old_python_runs_it_too(artefacts: dict[str, Path], home: Home) -> None:
    """Hosts may have 3.9, which has no reader of TOML."""
    old = next((found for name in ("python3.9", "python3.10") if (found := shutil.which(name)) and _starts(found)), None)
    if old is None:
        assert collector.SmallToml(home.documented()).read() == parse(home.documented(), "toml")
        return
    done = subprocess.run([old, str(artefacts["documented"]), "--validate"], env=home.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _starts(program: str) -> bool:
    return subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0
