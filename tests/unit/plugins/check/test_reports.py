# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check makes of its options and of several addresses, what it remembers, and how it is told to people and programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.muster.agents.plugins.module_utils import _tls_probe
from ansible_collections.muster.agents.plugins.plugin_utils import _certificate_check
from ansible_collections.muster.agents.plugins.plugin_utils._check_outputs import as_json
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure, InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._thresholds import Thresholds

from .faces import Authority, TlsServer, checked, pem

HOST = "www.example.test"
ROOT = Authority("Root")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_certificate_check, "state_directory", lambda part: str(tmp_path / "state" / part))
    return tmp_path / "state"


@pytest.fixture
def roots(tmp_path: Path) -> str:
    path = tmp_path / "roots.pem"
    path.write_bytes(pem(ROOT.certificate))
    return str(path)


def endpoint(server: Any, **options: Any) -> dict[str, Any]:
    return {"host": HOST, "address": "127.0.0.1", "port": server.port, "name": "www", **options}


def test_a_server_that_was_not_reloaded_is_told_from_its_file(tmp_path: Path, roots: str) -> None:
    old, new = ROOT.issue(HOST, days=(-60, 40)), ROOT.issue(HOST)
    with TlsServer(*old.write(tmp_path, "old")) as server:
        files = {label: made.write(tmp_path, label)[0] for label, made in (("same", old), ("new", new))}
        found = {label: checked(endpoints=[endpoint(server, file=str(path))], ca_certs=[roots])["results"][0] for label, path in files.items()}
        gone = checked(endpoints=[endpoint(server, file=str(tmp_path / "gone"))], ca_certs=[roots])["results"][0]
    assert [(item["verdict"], item["reason"], item["file_match"]) for item in found.values()] == [("ok", "ok", True), ("warning", "served_differs", False)]
    assert (gone["verdict"], gone["reason"], gone["file_match"]) == ("warning", "file_not_compared", None)


def test_addresses_that_disagree_are_told(tmp_path: Path, roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ROOT.issue(HOST, days=(-85, 5)), ROOT.issue(HOST)

    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]
    monkeypatch.setattr(_tls_probe.socket, "getaddrinfo", lambda *_arguments, **_options: answers)
    with TlsServer(*old.write(tmp_path, "old")) as server, TlsServer(*new.write(tmp_path, "new"), address="127.0.0.2", wanted_port=server.port):
        found = checked(endpoints=[f"{HOST}:{server.port}"], ca_certs=[roots])["results"][0]
    assert {problem["reason"] for problem in found["problems"]} == {"expires_soon", "addresses_disagree", "refused"}
    assert (found["verdict"], found["reason"]) == ("critical", "expires_soon")
    assert found["ip_addresses"] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    # The fields are those of the worst certificate.
    assert 4 < found["days_left"] <= 5


@pytest.mark.parametrize(("given", "left", "expected"), [
    ({}, (31.0, 50.0), "ok"), ({}, (30.0, 50.0), "warning"), ({}, (7.0, 50.0), "critical"),
    ({"warning_percent": 33.0}, (1.0, 34.0), "ok"), ({"warning_percent": 33.0}, (1.0, 33.0), "warning"),
    ({"warning_percent": 33.0, "critical_percent": 10.0}, (1.0, 10.0), "critical"),
    ({"warning_percent": 33.0, "warning_days": 2.0}, (1.0, 50.0), "warning"), ({"warning_days": 5.0, "critical_days": 0.0}, (6.0, 1.0), "ok"),
])
def test_limits_are_days_unless_percentages_are_given(given: dict[str, float], left: tuple[float, float], expected: str) -> None:
    names = ("warning_days", "critical_days", "warning_percent", "critical_percent")
    if given.get("warning_days") == 5.0:
        given = {**given, "critical_days": 0.0}
    limits = Thresholds.of({**dict.fromkeys(names), **given})
    assert limits.severity(*left) == expected


@pytest.mark.parametrize(("given", "whole", "left", "expected"), [
    ({}, 365.0, (31.0, 8.0), "ok"), ({}, 365.0, (30.0, 8.0), "warning"), ({}, 1.0, (0.5, 50.0), "ok"), ({}, 1.0, (0.3, 33.0), "warning"),
    ({}, 1.0, (0.1, 10.0), "critical"), ({}, 90.0, (29.0, 32.0), "warning"), ({}, 0.0, (31.0, 0.0), "ok"),
    ({"warning_days": 9.0}, 1.0, (0.5, 50.0), "critical"), ({"warning_percent": 60.0}, 365.0, (200.0, 55.0), "warning"),
])
def test_what_lives_shortly_is_judged_by_shares_unless_told_otherwise(
    given: dict[str, float], whole: float, left: tuple[float, float], expected: str,
) -> None:
    names = ("warning_days", "critical_days", "warning_percent", "critical_percent")
    assert Thresholds.for_life({**dict.fromkeys(names), **given}, whole).severity(*left) == expected


@pytest.mark.parametrize(("options", "words"), [
    ({"files": ["x"], "warning_days": 3.0}, "warning_days 3"), ({"files": ["x"], "warning_percent": 5.0, "critical_percent": 9.0}, "warning_percent"),
    ({"endpoints": ["a:b:c"]}, "no endpoint"), ({"endpoints": ["host:99999"]}, "port"), ({"endpoints": [""]}, "no endpoint"),
    ({"files": []}, "nothing to check"), ({"files": ["x"], "ca_certs": ["/nowhere/ca.pem"]}, "ca_certs"),
    ({"files": ["x"], "intermediates": ["/nowhere/ca.pem"]}, "intermediates"), ({"files": ["x"], "from": "host", "passphrase": "open"}, "passphrase_file"),
    ({"endpoints": [{"host": "a", "pin_sha256": "zz"}]}, "pin_sha256"),
])
def test_options_that_cannot_be_right_are_refused_before_anything_is_done(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        checked(**options)


@pytest.mark.parametrize(("text", "options", "expected"), [
    ("www.example.test", {}, ("www.example.test", 443)), ("www.example.test:8443", {}, ("www.example.test", 8443)), ("192.0.2.7:1", {}, ("192.0.2.7", 1)),
    ("[2001:db8::7]:8443", {}, ("2001:db8::7", 8443)), ("2001:db8::7", {}, ("2001:db8::7", 443)), ("[::1]", {"port": 9}, ("::1", 9)),
    ("mail.example.test", {"starttls": "smtp"}, ("mail.example.test", 25)),
    ("mail.example.test:587", {"starttls": "smtp", "port": 1}, ("mail.example.test", 587)),
])
def test_endpoints_are_written_as_people_write_them(text: str, options: dict[str, Any], expected: tuple[str, int]) -> None:
    assert _certificate_check._host_and_port({"port": None, "starttls": None, "host": text, **options}) == expected


def metrics(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


@pytest.mark.parametrize("forgotten", [False, True], ids=["remembered", "out of the file itself"])
def test_a_metric_survives_a_failed_probe(forgotten: bool, tmp_path: Path, state: Path, roots: str) -> None:
    prom = tmp_path / "certificates.prom"
    labels = '{item="www",kind="endpoint",source="controller"}'
    with TlsServer(*ROOT.issue(HOST).write(tmp_path, "www")) as server:
        options = {"endpoints": [endpoint(server)], "ca_certs": [roots], "prometheus_file": str(prom), "retries": 0}
        first = checked(**options)["results"][0]
        before = metrics(prom)
    for number in (1, 2):
        if forgotten:
            shutil.rmtree(state)
        failed = checked(**options)["results"][0]
        after = metrics(prom)
        assert (failed["verdict"], failed["reason"], failed["failures"]) == ("unreachable", "refused", number)
        assert failed["last_success"]["not_after"] == first["not_after"]
    assert before[f"muster_certificate_up{labels}"] == "1"
    assert after[f"muster_certificate_up{labels}"] == "0"
    assert after[f"muster_certificate_verdict{labels}"] == "4"
    assert after[f"muster_certificate_failures{labels}"] == "2"
    for name in ("not_after_timestamp_seconds", "not_before_timestamp_seconds", "chain_not_after_timestamp_seconds"):
        assert after[f"muster_certificate_{name}{labels}"] == before[f"muster_certificate_{name}{labels}"]
    assert after[f"muster_certificate_last_success_timestamp_seconds{labels}"] == before[f"muster_certificate_last_success_timestamp_seconds{labels}"]
    assert prom.stat().st_mode & 0o777 == 0o644


def test_success_ends_a_series_of_failures(tmp_path: Path, roots: str) -> None:
    path = tmp_path / "late.crt"
    options = {"files": [str(path)], "ca_certs": [roots]}
    failing = [checked(**options)["results"][0] for _number in range(3)]
    assert [item["failures"] for item in failing] == [1, 2, 3]
    assert len({item["failing_since"] for item in failing}) == 1
    ROOT.issue("late").write(tmp_path, "late")
    good = checked(**options)["results"][0]
    assert (good["failures"], good["failing_since"], good["last_success"]["not_after"]) == (0, "", good["not_after"])
    path.unlink()
    assert checked(**options, remember=False)["results"][0]["last_success"] is None


def test_names_with_quotes_come_back_out_of_the_metrics(tmp_path: Path, state: Path, roots: str) -> None:
    odd = 'a "quoted\\ name\nof two lines'
    path = ROOT.issue("x").write(tmp_path, "x")[0]
    options = {"files": [{"path": str(path), "name": odd}], "ca_certs": [roots], "prometheus_file": str(tmp_path / "m.prom")}
    good = checked(**options)["results"][0]
    path.unlink()
    shutil.rmtree(state)
    assert checked(**options)["results"][0]["last_success"]["not_after"] == good["not_after"]


def test_json_table_nagios_and_alerts_tell_the_same(tmp_path: Path, roots: str) -> None:
    report_file = tmp_path / "report.json"
    paths = [made.write(tmp_path, label)[0] for label, made in (
        ("good", ROOT.issue("good")), ("soon", ROOT.issue("soon", days=(-80, 10))), ("over", ROOT.issue("over", days=(-80, -10))))]
    report = checked(files=[*map(str, paths), str(tmp_path / "it's | gone")], ca_certs=[roots], json_file=str(report_file))
    told = json.loads(report_file.read_text())
    assert told["summary"] == report["summary"] == {"ok": 1, "warning": 1, "critical": 0, "expired": 1, "unreachable": 1, "total": 4}
    assert [item["verdict"] for item in told["results"]] == ["ok", "warning", "expired", "unreachable"]
    assert told["results"] == report["results"]
    lines = [line.strip().rstrip(",") for line in report_file.read_text().splitlines()]
    assert [json.loads(line) for line in lines if line.startswith('{"')] == report["results"]
    assert [line.split()[-1] for line in report["table"]] == ["REASON", "file_missing", "expired", "expires_soon", "ok"]
    assert report["nagios"]["code"] == 2
    line = report["nagios"]["line"]
    assert line.startswith("CERTIFICATES CRITICAL - 1 ok, 1 warning, 1 expired, 1 unreachable - ")
    assert line.count("|") == 1
    assert re.search(rf" \| '{re.escape(str(paths[2]))}'=-10\.\d+;30;7 ", line)
    assert [item["verdict"] for item in report["alerts"]] == ["warning", "expired", "unreachable"]
    for item in report["alerts"]:
        assert {"domain", "not_after", "issuer", "ip_addresses"} <= set(item)


def test_a_report_of_nothing_is_json_too() -> None:
    document: dict[str, Any] = {"checked_at": "now", "verdict": "ok", "summary": {"total": 0}, "results": []}
    assert json.loads(as_json(document)) == document


@pytest.mark.parametrize(("days", "code", "word"), [((-1, 90), 0, "OK"), ((-80, 10), 1, "WARNING"), ((-80, 5), 2, "CRITICAL")])
def test_nagios_codes_are_its_own(days: tuple[float, float], code: int, word: str, tmp_path: Path, roots: str) -> None:
    path = ROOT.issue("x", days=days).write(tmp_path, "x")[0]
    told = checked(files=[str(path)], ca_certs=[roots])["nagios"]
    assert (told["code"], told["line"].split()[1]) == (code, word)


def test_the_task_fails_for_the_verdicts_it_is_told_to(tmp_path: Path, roots: str) -> None:
    path = ROOT.issue("x", days=(-80, 10)).write(tmp_path, "x")[0]
    assert [checked(files=[str(path)], ca_certs=[roots], fail_on=verdicts).get("failed", False) for verdicts in ([], ["critical", "expired"], ["warning"])] == [
        False, False, True]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, roots: str) -> None:
    path = ROOT.issue("x").write(tmp_path, "x")[0]
    with pytest.raises(HostFailure, match="nowhere"):
        checked(files=[str(path)], ca_certs=[roots], prometheus_file=str(tmp_path / "nowhere" / "m.prom"))


def test_the_systems_cas_are_trusted_when_none_is_given(tmp_path: Path, roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT.issue("x").write(tmp_path, "x")[0]
    assert checked(files=[str(path)])["results"][0]["reason"] == "missing_issuer"
    monkeypatch.setenv("SSL_CERT_FILE", roots)
    assert checked(files=[str(path)])["results"][0]["verdict"] == "ok"
    assert os.environ["SSL_CERT_FILE"] == roots


def test_the_example_alert_rules_ask_for_metrics_that_there_are(tmp_path: Path, roots: str) -> None:
    rules = yaml.safe_load((Path(_certificate_check.__file__).resolve().parents[2] / "docs/examples/prometheus-rules.yml").read_text())
    asked = {name for group in rules["groups"] for rule in group["rules"] for name in re.findall(r"muster_\w+", rule["expr"])}
    path = ROOT.issue("x").write(tmp_path, "x")[0]
    checked(files=[str(path)], ca_certs=[roots], prometheus_file=str(tmp_path / "m.prom"))
    assert asked <= {name.partition("{")[0] for name in metrics(tmp_path / "m.prom")}
    assert len(asked) >= 7


def test_names_of_others_stay_on_their_line(tmp_path: Path) -> None:
    evil = Authority("Evil\x1b[31m\nFORGED ok | 'x'=1").issue("x")
    report = checked(files=[str(evil.write(tmp_path, "x")[0])])
    for text in (*report["table"], report["nagios"]["line"]):
        assert text.isprintable()
    assert report["nagios"]["line"].count("|") == 1
