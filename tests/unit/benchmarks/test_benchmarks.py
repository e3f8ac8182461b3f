# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""That the benchmarks measure what they say, and run: never how fast anything is."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import endpoints, limits
from benchmarks.__main__ import _options, _parser
from benchmarks.controller import BenchError, Play, neutral
from benchmarks.experiment import Experiment, Line, Options, Report, Side, conduct, cpu, per_item, ratio, task, wall
from benchmarks.experiments import EXPERIMENTS
from benchmarks.experiments.enrol import enrol_local
from benchmarks.ground import Ground
from benchmarks.measure import Sample, pss_of_tree, run
from benchmarks.report import as_document, table, write_document, write_page
from benchmarks.tasks import NOTHING

TOP = Path(__file__).resolve().parents[3]
SPIN = "import time\nwhile time.process_time() < 0.2: pass"


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with Ground() as found:
        yield found


def fixed(name: str, *samples: Sample) -> Side:
    """A side that has been run already."""
    given = iter(samples)
    return Side(name, f"side {name}", lambda: next(given))


def test_settings_that_would_tell_in_the_figures_are_left_out() -> None:
    assert neutral({"PATH": "/bin", "PYTHONUNBUFFERED": "1", "PYTHONPATH": "/x", "ANSIBLE_FORKS": "1", "SSL_CERT_FILE": "/ca"}) == {"PATH": "/bin"}


def test_a_play_does_not_see_the_settings_of_python(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    look = {"name": "Look", "ansible.builtin.assert": {"that": "lookup('ansible.builtin.env', 'PYTHONUNBUFFERED') == ''"}}
    assert ground.controller.run(Play([look], {"localhost": {}}, {})).items == 1


def test_cpu_seconds_of_grandchildren_are_counted(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        cost = run(["sh", "-c", '"$0" -c "$1"; exit 3', sys.executable, SPIN], output, environment=os.environ, folder=tmp_path)
    assert cost.code == 3
    assert cost.cpu >= 0.2
    assert cost.memory == 0


def test_memory_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    hoard = "import time; kept = bytearray(64 << 20); print(flush=True); time.sleep(60)"
    command = ["sh", "-c", '"$0" -c "$1" & "$0" -c "$1"', sys.executable, hoard]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        held = pss_of_tree(process.pid)
        os.killpg(process.pid, 9)
    assert held > 128


def test_a_watched_run_tells_its_peak(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        hoard = "import time; kept = bytearray(64 << 20); time.sleep(1)"
        cost = run([sys.executable, "-c", hoard], output, environment=os.environ, folder=tmp_path, watch_memory=True)
    assert cost.memory > 64


def test_lines_are_ratios_of_medians_and_know_their_target() -> None:
    ours = [Sample(1.0, 1.0, 10, {"a": 0.5}), Sample(9.0, 9.0, 10, {"a": 9.0}), Sample(2.0, 2.0, 10, {"a": 0.5, "b": 0.5})]
    peer = [Sample(24.0, 10.0, 5, {"a": 20.0})]
    samples = {"ours": ours, "peer": peer}
    assert ratio("peer", "ours", wall)(samples) == 12
    assert ratio("peer", "ours", cpu)(samples) == 5
    assert ratio("peer", "ours", task)(samples) == 20
    assert ratio("peer", "ours", per_item(task))(samples) == 40
    assert Sample(3.0, 1.0, 1).task == 3
    floor, ceiling, told = (Line("w", "p", lambda _: 0, target, least) for target, least in ((12, True), (4, False), (None, True)))
    assert [floor.verdict(12), floor.verdict(11.9)] == ["ok", "below target"]
    assert [ceiling.verdict(4), ceiling.verdict(4.1)] == ["ok", "below target"]
    assert told.verdict(0) == ""


def test_sides_take_turns_and_every_second_round_goes_backwards() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        def measured() -> Sample:
            order.append(name)
            return Sample(1.0, 1.0, 1)

        return Side(name, name, measured)

    conduct(Experiment("e", "E", [side("a"), side("b"), side("c")], []), Options(runs=3), lambda _text: None)
    assert "".join(order) == "abccbaabc"


def test_the_table_and_the_document_tell_the_same(tmp_path: Path) -> None:
    line = Line("enrol", "the guide", ratio("peer", "ours", wall), 12)
    experiment = Experiment("e", "E", [fixed("ours", Sample(2.0, 1.0, 4)), fixed("peer", Sample(20.0, 9.0, 4))], [line])
    reports = [conduct(experiment, Options(runs=1), lambda _text: None), Report("ssh", "over ssh", missing="systemd hosts need root and podman")]
    assert [row.split() for row in table(reports).splitlines()[2:]] == [
        ["enrol", "the", "guide", "10", "x", ">=", "12", "x", "below", "target"],
        ["over", "ssh", "not", "measured", "systemd", "hosts", "need", "root", "and", "podman"],
    ]
    document = json.loads(write_document(as_document(reports, Options(runs=1), {}, 3.2), tmp_path).read_text())
    assert document["experiments"][0]["lines"][0] == {
        "work": "enrol", "against": "the guide", "value": 10.0, "unit": "x", "target": 12, "wanted": "at least", "verdict": "below target"}
    assert document["experiments"][0]["sides"]["peer"]["median"] == {"wall": 20.0, "task": 20.0, "cpu": 9.0, "memory": 0.0}
    assert document["experiments"][1]["missing"] == "systemd hosts need root and podman"


def test_the_page_of_results_shows_the_plots_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "hosts.svg").write_text("<svg/>")
    facts = {"processor": "P", "cores": 2, "memory_mib": 1, "kernel": "6", "python": "3", "two_processes_against_one": 2.0, "packages": {"hvac": "2"},
             "collections": {"community.crypto": "3"}}
    write_page({"machine": facts}, "the table", tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "the table" in page
    assert "hvac 2, community.crypto 3" in page
    assert [word for word in ("hosts.svg", "ratios.svg") if word in page] == ["hosts.svg"]


def test_sizes_are_chosen_on_the_command_line() -> None:
    words = ["--only", "enrol", "scale", "--hosts", "7", "--runs", "2", "--growth", "5,50", "--scale", "10,5", "20,5"]
    assert _options(_parser().parse_args(words)) == replace(Options(), hosts=7, runs=2, growth=(5, 50), scale=((10, 5), (20, 5)))
    assert _options(_parser().parse_args([])) == Options()


def test_the_page_names_every_experiment() -> None:
    page = (TOP / "docs" / "performance.md").read_text()
    assert [name for name in EXPERIMENTS if f"| `{name}` |" not in page] == []


def test_a_play_is_timed_task_by_task(ground: Ground) -> None:
    tasks = [{**NOTHING[0], "name": "First"}, {**NOTHING[0], "name": "Second"}]
    sample = ground.controller.run(Play(tasks, {"a": {}, "b": {}}, {}))
    assert set(sample.tasks) == {"First", "Second"}
    assert sample.items == 2
    assert 0 < sample.task < sample.wall


def test_a_play_that_fails_is_no_measurement(ground: Ground) -> None:
    with pytest.raises(BenchError, match="wrong on purpose"):
        ground.controller.run(Play([{"name": "Fail", "ansible.builtin.fail": {"msg": "wrong on purpose"}}], {"a": {}}, {}))


def test_enrolling_two_hosts_in_our_way_and_the_guides(ground: Ground) -> None:
    full = enrol_local(ground, Options(hosts=2))
    lines = [line for line in full.lines if line.against == "guide's playbook" and "module" not in line.work]
    wanted = replace(full, sides=[side for side in full.sides if side.name in ("ours", "guide", "bare")], lines=lines)
    report = conduct(wanted, Options(runs=1), lambda _text: None)
    assert [line.work.rpartition(": ")[2] for line, _value in report.lines] == ["wall", "task time", "CPU"]
    assert all(value > 0 for _line, value in report.lines)
    assert set(report.samples["ours"][0].tasks) == {"Enrol the agent"}
    assert len(report.samples["guide"][0].tasks) == 3
    assert ground.documented.agents() == []


def test_a_bare_loop_that_fails_is_no_measurement(ground: Ground) -> None:
    with pytest.raises(BenchError, match="the bare loop failed"):
        limits.bare(ground, "check", {"addresses": ["127.0.0.1"], "port": 1, "ca_file": str(ground.ca.ca_file)}, 1)


def test_endpoints_are_alive_or_dead(ground: Ground) -> None:
    alive, gone = endpoints.addresses(2, 21), endpoints.addresses(1, 22)
    context = ssl.create_default_context(cafile=str(ground.ca.ca_file))
    with endpoints.living(ground.pair, alive) as port, endpoints.dead(gone, port):
        for address in alive:
            with socket.create_connection((address, port), 10) as plain, context.wrap_socket(plain, server_hostname="localhost") as secured:
                assert secured.getpeercert()
        with pytest.raises(TimeoutError):
            socket.create_connection((gone[0], port), 0.3)
