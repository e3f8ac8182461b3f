# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scripts are plain POSIX shell, say no where they cannot serve, and carry no secret."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from store_ways import NAME, SHELLS, URL, Action, Way, delivery_of, plant_key, receipt_of

from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, LookRequest, StagedFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent
from ansible_collections.muster.agents.plugins.module_utils._secrets import new_key
from ansible_collections.muster.agents.plugins.plugin_utils import _host
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Ambiguous, HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START, deliver_script, look_script, nudge_script

CANARY = "canary-7f3e-do-not-print"
HARD = "/srv/it's a \"$HOME\" `id` $(id) ;\\%s/-rf *"

def _through(host: Host, action: Action) -> None:
    """Let *host* use another connection."""
    t.cast(t.Any, host)._action = action


every_shell = pytest.mark.parametrize("shell", SHELLS)


def _scripts() -> list[str]:
    """Return every shape of script, with paths that try to break out of it."""
    intent = Intent("attempt-1", "host's:1", 0, "enrol; rm -rf /")
    requests = [
        LookRequest(HARD), LookRequest(HARD, url=URL, read=(HARD, "-n"), intent=intent, controller_time=1, takeover="a'b:2"),
        LookRequest(HARD, url=URL, intent=intent, force=True)]
    files = tuple(StagedFile(f"{HARD}/{number}", CANARY.encode(), validate=("test", "-s", "%s", "'")) for number in range(2))
    deliveries = [
        Delivery(HARD, "0" * 64, receipt=receipt_of(1, {}).dump(), key=CANARY, generation=3, secrets=(("token", CANARY.encode()),), files=files,
                 keep=(3, 2), remove=(HARD, "-rf"), save_previous=True),
        Delivery(HARD, "", remove=(HARD,), remove_all=True), Delivery(HARD, ""), Delivery(HARD, "", files=files[:1]),
    ]
    looks = [look_script(request, facts=facts) for request in requests for facts in (True, False)]
    return [*looks, *(deliver_script(delivery) for delivery in deliveries), nudge_script("restart", (HARD, "-n"))]


@every_shell
def test_every_script_is_understood_by_every_shell(shell: str) -> None:
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    for script in _scripts():
        done = subprocess.run(command, check=False, input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_no_script_holds_a_secret() -> None:
    for script in _scripts():
        assert CANARY not in script


def test_what_stands_in_a_process_list_holds_no_secret(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("chmod", "chown", "cp", "mv", "sha256sum", "sync", "tar", "true"):
        program = tools / name
        program.write_text(f"#!/bin/sh\ncat /proc/*/cmdline >>{seen} 2>/dev/null\nexec {shutil.which(name)} \"$@\"\n")
        program.chmod(0o755)
    root = plant_key(tmp_path / "store")
    host = Way("fast").host(tmp_path / "store", environment={"PATH": f"{tools}:{os.environ['PATH']}"})
    files = [StagedFile(str(tmp_path / "agent.env"), f"TOKEN={CANARY}".encode(), validate=("true", "%s"))]
    host.deliver(delivery_of(root, host.look(), token=CANARY.encode(), files=files))
    assert b"muster-start" in seen.read_bytes()
    assert CANARY.encode() not in seen.read_bytes()
    assert (tmp_path / "agent.env").read_bytes() == f"TOKEN={CANARY}".encode()


# -- what a visit costs --------------------------------------------------------------------------------------------------------------------


def _watched(folder: Path) -> tuple[dict[str, str], Path]:
    """An environment whose programs note their calls, and where they note them."""
    tools, calls = folder / "watched", folder / "calls"
    tools.mkdir()
    for name in _PROGRAMS.split():
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>{calls}\nexec {shutil.which(name)} "$@"\n')
        (tools / name).chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}, calls


_PROGRAMS = "base64 chmod chown cp date df find flock getconf grep install mkdir mv rm sha256sum stat sync tail tar uname xargs"


def test_a_visit_starts_no_program_that_it_could_do_without(tmp_path: Path) -> None:
    environment, calls = _watched(tmp_path)
    host = Way("fast").host(tmp_path / "store", environment=environment)
    target = str(tmp_path / "agent.env")

    def started() -> list[str]:
        names = sorted(line.split()[0] for line in calls.read_text().splitlines())
        calls.unlink()
        return names

    look = host.look((target,), facts=True, intent=Intent("a", "b:1", 0, "enrol"), will_deliver=True)
    asked = [] if Path("/proc/sys/kernel/arch").exists() else ["uname"]
    assert started() == sorted(["date", "df", "flock", "mkdir", "sync", *asked])
    host.deliver(delivery_of(Path(host.root), look, token=b"one", files=[StagedFile(target, b"TOKEN=one")], save_previous=True))
    assert started() == sorted(["flock", "tar", "sha256sum", "install", "sync", "mv", "mv", "mv", "sync", "rm"])
    host.look((target,), facts=True, intent=Intent("a", "b:1", 0, "enrol"), url=URL)
    assert started() == sorted(["date", "df", "grep", "find", "tar", "base64", *asked])


def test_a_script_has_everything_on_disk_before_it_is_named(tmp_path: Path) -> None:
    environment, calls = _watched(tmp_path)
    host = Way("fast").host(tmp_path / "store", environment=environment)
    target, root = str(tmp_path / "agent.env"), host.root
    host.deliver(delivery_of(Path(root), host.look(will_deliver=True), token=b"one", files=[StagedFile(target, b"TOKEN=one")]))
    steps = [line.replace(str(tmp_path), "") for line in calls.read_text().splitlines() if line.split()[0] in ("sync", "mv")]
    store = root.replace(str(tmp_path), "")
    assert steps == [
        "sync g/1/agent_id g/1/token g/1 g receipt.json /.agent.env.muster",
        f"mv -T g {store}/generations", "mv -fT /.agent.env.muster /agent.env", f"mv -f -t {store} receipt.json",
        f"sync {store}/generations  {store}",
    ]


def test_what_replaces_an_attempt_is_on_disk_before_the_attempt_goes(tmp_path: Path) -> None:
    environment, calls = _watched(tmp_path)
    host = Way("fast").host(tmp_path / "store", environment=environment)
    for controller in ("a:1", "a:1"):
        host.look(intent=Intent("attempt", controller, 0, "enrol"))
    steps = [line.replace(host.root, "") for line in calls.read_text().splitlines() if line.split()[0] in ("sync", "mv")]
    named = "sync /intent "
    assert steps == [named, "sync /.intent.muster", "mv -fT /.intent.muster /intent", named]


def test_what_is_removed_goes_when_what_replaces_it_will_last(tmp_path: Path) -> None:
    environment, calls = _watched(tmp_path)
    host = Way("fast").host(tmp_path / "store", environment=environment)
    old = tmp_path / "old"
    old.touch()
    delivery = delivery_of(Path(host.root), host.look(will_deliver=True), token=b"one", files=[StagedFile(str(tmp_path / "agent.env"), b"TOKEN=one")])
    calls.unlink()
    host.deliver(replace(delivery, remove=(str(old),)))
    steps = [line.replace(host.root, "").replace(str(tmp_path), "") for line in calls.read_text().splitlines()]
    where = [steps.index(step) for step in ("sync /generations  ", "rm -rf /old", "mv -f -t  receipt.json", "sync ")]
    assert where == sorted(where)
    assert not old.exists()


@pytest.mark.parametrize(("online", "cores"), [("0", 1), ("0-3", 4), ("0-3,6,8-9", 7)])
def test_a_host_counts_its_cores_without_a_program(tmp_path: Path, online: str, cores: int) -> None:
    (tmp_path / "online").write_text(online + "\n")
    host = Way("fast").host(tmp_path / "store", rewrite=lambda script: script.replace("/sys/devices/system/cpu/online", str(tmp_path / "online")))
    assert host.look(facts=True).facts["cpu_cores"] == cores


def test_a_kernel_that_does_not_show_itself_is_asked_by_programs(tmp_path: Path) -> None:
    plain = Way("fast").host(tmp_path / "store").look(facts=True).facts
    host = Way("fast").host(tmp_path / "store", rewrite=lambda script: script.replace("/proc/sys/kernel/", "/none/").replace("/sys/devices/", "/none/"))
    found = host.look(facts=True).facts
    assert {**found, "uptime_seconds": 0, "disk_free_gb": 0, "free_kib": 0} == {**plain, "uptime_seconds": 0, "disk_free_gb": 0, "free_kib": 0}


# -- restarting what reads the credential -----------------------------------------------------------------------------------------------------


def _host_with_systemctl(folder: Path, answer: str) -> tuple[Host, Path]:
    """A host whose systemctl notes its arguments and ends with the shell command *answer*."""
    tools, asked = folder / "tools", folder / "asked"
    tools.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\nprintf "%s|" "$@" >>{asked}\n{answer}\n')
    (tools / "systemctl").chmod(0o755)
    return Way("fast").host(folder / "store", environment={"PATH": f"{tools}:{os.environ['PATH']}"}), asked


@pytest.mark.parametrize(("verb", "word"), [("restart", "restart"), ("reload", "reload-or-restart")])
def test_all_units_are_restarted_by_one_command(tmp_path: Path, verb: str, word: str) -> None:
    host, asked = _host_with_systemctl(tmp_path, "exit 0")
    host.nudge(verb, ["agent.service", "-x; id"])
    assert asked.read_text() == f"{word}|--|agent.service|-x; id|"


def test_a_unit_that_does_not_restart_is_a_failure_with_what_systemd_said(tmp_path: Path) -> None:
    host, _asked = _host_with_systemctl(tmp_path, "echo 'Job for agent.service failed.' >&2; exit 1")
    with pytest.raises(HostFailure, match=r"agent\.service could not be restarted on the host: Job for agent\.service failed\.") as failure:
        host.nudge("restart", ["agent.service"])
    assert failure.value.reason == "nudge_failed"


def test_what_the_connection_says_of_itself_does_not_hide_what_systemd_said(tmp_path: Path) -> None:
    host = Way("fast").host(tmp_path)
    _through(host, _Saying("Unit is masked.\n", code=1, stderr="debug1: channel 0\n"))
    with pytest.raises(HostFailure, match=r"on the host: Unit is masked\."):
        host.nudge("restart", ["agent.service"])


def test_a_connection_that_breaks_while_a_unit_restarts_is_a_failure(tmp_path: Path) -> None:
    host, _asked = _host_with_systemctl(tmp_path, "kill -9 $PPID")
    with pytest.raises(HostFailure, match="no reason given"):
        host.nudge("restart", ["agent.service"])


@pytest.mark.parametrize("failed", [False, True])
def test_without_scripts_the_module_of_ansible_core_restarts_each_unit(tmp_path: Path, failed: bool) -> None:
    run: list[dict[str, t.Any]] = []

    class Modules:
        _play_context = _connection = None

        def _execute_module(self, *, module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
            run.append({module_name: module_args})
            return {"failed": failed, "msg": "Unit not found."}

    host = Way("module").host(tmp_path / "store")
    _through(host, t.cast(Action, Modules()))
    if failed:
        with pytest.raises(HostFailure, match=r"a\.service could not be reloaded on the host: Unit not found\."):
            host.nudge("reload", ["a.service", "b.service"])
        assert len(run) == 1
    else:
        host.nudge("reload", ["a.service", "b.service"])
        assert run == [{"ansible.builtin.systemd_service": {"name": name, "state": "reloaded"}} for name in ("a.service", "b.service")]


# -- where a script cannot do it --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_gnu(tmp_path: Path) -> str:
    """A PATH of busybox alone, or, on a machine that has none, with a date that speaks like it."""
    folder = tmp_path / "tools"
    folder.mkdir()
    busybox = shutil.which("busybox")
    if busybox:
        for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
            (folder / applet).symlink_to(busybox)
        return str(folder)
    (folder / "date").write_text("#!/bin/sh\necho \"date: invalid date 'now'\" >&2; exit 1\n")
    (folder / "date").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@every_shell
def test_tools_that_are_not_gnu_are_unfit(shell: str, without_gnu: str, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    command = [str(shutil.which(shell)), *(["sh"] if shell == "busybox" else [])]
    script = look_script(LookRequest(str(root), intent=Intent("a", "b:1", 0, "enrol")), facts=False)
    done = subprocess.run([*command, "-c", script], check=True, capture_output=True, text=True, env={"PATH": without_gnu})
    assert done.stdout.splitlines() == [START, "unfit date"]
    assert not (root / "intent").exists()


@pytest.mark.parametrize("missing", ["flock", "base64", "tar"])
def test_a_missing_tool_is_unfit_and_named(missing: str, tmp_path: Path) -> None:
    script = look_script(LookRequest(str(tmp_path / "store")), facts=False)
    hidden = re.sub(r"(?m)^PATH=.*$", f"command() {{ [ \"$2\" != {missing} ]; }}", script, count=1)
    done = subprocess.run(["dash", "-c", hidden], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [START, f"unfit {missing}"]


def test_the_module_goes_where_a_script_cannot(without_gnu: str, tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    host = Way("auto").host(tmp_path / "store", environment={"PATH": without_gnu})
    look = host.look(will_deliver=True)
    host.deliver(delivery_of(root, look, token=CANARY.encode()))
    assert (root / "generations" / "1" / "token").read_text() == CANARY
    with pytest.raises(HostFailure, match="cannot be served by shell script") as failure:
        Way("fast").host(tmp_path / "store", environment={"PATH": without_gnu}).look()
    assert failure.value.reason == "no_fast_way"


def test_nothing_the_module_way_is_given_shows_a_secret(tmp_path: Path) -> None:
    root = plant_key(tmp_path / "store")
    action = Action()
    host = Way("module").host(tmp_path / "store")
    _through(host, action)
    files = [StagedFile(str(tmp_path / "agent.env"), f"TOKEN={CANARY}".encode())]
    host.deliver(delivery_of(root, host.look(will_deliver=True), token=CANARY.encode(), files=files))
    assert (tmp_path / "agent.env").exists()
    given = repr(action.module_args)
    assert CANARY not in given
    assert all(part not in given for part in _base64_of(CANARY))


def _base64_of(text: str) -> list[str]:
    """Return what *text* looks like inside base64, at each of the three offsets."""
    return [base64.b64encode(b"x" * offset + text.encode())[offset + 4 : -8].decode() for offset in range(3)]


def test_a_payload_cannot_be_used_twice_for_another_store(tmp_path: Path) -> None:
    first, second = plant_key(tmp_path / "one"), plant_key(tmp_path / "two")
    (second / "key").write_text(new_key())
    action = Action()
    host = Way("module").host(tmp_path / "one")
    _through(host, action)
    host.deliver(delivery_of(first, host.look(will_deliver=True)))
    payload = {**action.module_args[-1], "root": str(second)}
    result = action._execute_module(module_name="muster.agents.credential_store", module_args=payload, task_vars={})
    assert (result["failed"], result["reason"]) == (True, "corrupt")
    assert not (second / "generations").exists()


# -- what the controller makes of an answer ---------------------------------------------------------------------------------------------------


class _Saying(Action):
    """A connection that answers every script with the same words."""

    def __init__(self, stdout: str, *, code: int = 0, stderr: str = "") -> None:
        super().__init__()
        self._said = {"rc": code, "stdout": stdout, "stderr": stderr}

    def _low_level_execute_command(self, script: str, **_options: object) -> dict[str, object]:
        return dict(self._said)


def test_a_delivery_that_breaks_off_is_ambiguous(tmp_path: Path) -> None:
    host = Way("fast").host(tmp_path)
    _through(host, _Saying(f"{START}\n"))
    with pytest.raises(Ambiguous) as failure:
        host.deliver(Delivery(str(tmp_path / "r"), ""))
    assert failure.value.reason == "delivery_lost"


def test_a_delivery_that_never_began_is_a_failure(tmp_path: Path) -> None:
    host = Way("fast").host(tmp_path)
    _through(host, _Saying("", code=255))
    with pytest.raises(HostFailure) as failure:
        host.deliver(Delivery(str(tmp_path / "r"), ""))
    assert failure.value.reason == "delivery_failed"


def test_a_refused_become_is_told_as_such(tmp_path: Path) -> None:
    host = Way("auto").host(tmp_path)
    _through(host, _Saying("", code=1, stderr="sudo: a password is required"))
    with pytest.raises(HostFailure, match="check become") as failure:
        host.look()
    assert failure.value.reason == "become_failed"


@pytest.mark.parametrize(("delivery", "transport", "become", "selinux", "started"), [
    ("auto", "local", None, False, 0),
    ("auto", "local", object(), False, 2),
    ("auto", "local", None, True, 2),
    ("auto", "ssh", None, False, 2),
    ("fast", "local", None, False, 2),
], ids=["at hand", "become", "selinux", "elsewhere", "as asked"])
def test_nothing_is_started_where_the_files_are_at_hand(
    delivery: str, transport: str, become: object, selinux: bool, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "enforce").touch()
    monkeypatch.setattr(_host, "_SELINUX", str(tmp_path / ("enforce" if selinux else "none")))
    host, action = Way(delivery).host(tmp_path / "store"), Action()
    action._connection.transport, action._connection.become = transport, become
    _through(host, action)
    host.deliver(delivery_of(Path(host.root), host.look(), token=b"one"))
    assert (len(action.scripts), action.module_args) == (started, [])
    assert (Path(host.root) / "generations" / "1" / "token").read_bytes() == b"one"


def test_a_validation_that_cannot_be_run_refuses_as_in_a_shell(tmp_path: Path) -> None:
    host = Way("auto", here=True).host(tmp_path / "store")
    target, plain = str(tmp_path / "agent.env"), tmp_path / "plain"
    plain.touch(mode=0o600)
    for command, code in (("/nothing/here", 127), (str(plain), 126)):
        with pytest.raises(HostFailure, match=rf"exit code {code}") as failure:
            host.deliver(delivery_of(Path(host.root), host.look(), files=[StagedFile(target, b"x", validate=(command, "%s"))]))
        assert failure.value.reason == "invalid"
    assert not Path(target).exists()


@pytest.mark.parametrize(("transport", "become", "default", "put_before"), [
    ("local", None, "/bin/sh", ""),
    ("local", object(), "/bin/sh", "/bin/sh"),
    ("local", None, "/bin/bash", "/bin/sh"),
    ("ssh", None, "/bin/sh", "/bin/sh"),
], ids=["local", "become", "another default", "ssh"])
def test_a_script_has_a_shell_put_before_it_unless_the_connection_starts_the_same(
    transport: str, become: object, default: str, put_before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANSIBLE_EXECUTABLE", default)
    host, action = Way("fast").host(tmp_path), Action()
    action._connection.transport, action._connection.become = transport, become
    _through(host, action)
    host.look()
    assert action.executables == [put_before]


def test_a_damaged_answer_is_refused(tmp_path: Path) -> None:
    host = Way("fast").host(tmp_path)
    _through(host, _Saying(f"{START}\ntime 1\nfiles\nbm90IGEgdGFyIGZpbGUgYXQgYWxs\n{END}\n"))
    with pytest.raises(HostFailure, match="arrived damaged"):
        host.look()


def test_a_connection_shows_neither_script_nor_answer(tmp_path: Path) -> None:
    plant_key(tmp_path)
    host = Way("fast").host(tmp_path)
    action = t.cast(t.Any, host)._action
    shown: list[bool] = []
    run = action._low_level_execute_command
    action._low_level_execute_command = lambda *args, **options: shown.append(action._connection._play_context.no_log) or run(*args, **options)
    host.look()
    assert shown == [True]
    assert action._connection._play_context.no_log is False
    assert NAME in host.root
