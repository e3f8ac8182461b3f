# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that installs a certificate leaves what the module leaves, goes nowhere else, and no end in its middle takes key and certificate apart."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from store_ways import SHELLS, Action, Entry, killing_programs, tree

from ansible_collections.muster.agents.plugins.module_utils import _certificates as x
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host import Host
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START
from ansible_collections.muster.agents.plugins.plugin_utils._issuance import visit
from ansible_collections.muster.agents.plugins.plugin_utils._pair_scripts import Installation, install, install_script

from .pairs import Authority, Machine, Way

_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_REQUEST = x.Request((("CN", "agent-web"),), extended_key_usage=("clientAuth",))
_FITTING = tuple(shell for shell in SHELLS if shell != "busybox")
pytestmark = pytest.mark.coreless
every_shell = pytest.mark.parametrize("shell", _FITTING)


class Site:
    """A host below *folder* on which a key waits for its certificate, which is here; *before* certificates were put in place already."""

    def __init__(self, folder: Path, before: int = 0, places: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.authority = Authority(folder / "ca")
        self.machine = Machine(folder / "host")
        given = {name: value for name, value in self.machine.options().items() if name != "subject"}
        self.places = {name: value for name, value in {**given, **(places or {})}.items() if value is not None}
        for _number in range(before):
            self.by_module(self.wanted())
        self.installation = self.wanted()

    def look(self) -> dict[str, Any]:
        """A look that has a new key made, or finds the one that waits."""
        return visit(Way(), {**self.places, "operation": "look", "request": _REQUEST.dump(), "reason": "forced"})

    def wanted(self) -> Installation:
        """What is to be installed after a look."""
        raw = self.look()
        more = Machine(self.folder / "signed")
        self.authority.by_hand(more, _REQUEST, asked=raw["request"].encode())
        ca = self.authority.file.read_text() if "ca_path" in self.places else ""
        return Installation(self.places, more.certificate.read_text(), ca, raw["token"])

    def by_module(self, wanted: Installation | None = None) -> int:
        """Let the module install it."""
        wanted = wanted or self.installation
        raw = visit(Way(), {**wanted.places, "operation": "install", "certificate": wanted.certificate, "ca": wanted.ca, "expect": wanted.expect})
        return int(raw["generation"])

    def by_script(self, shell: str = "dash", **way: Any) -> int | None:
        """Let the script install it."""
        self.way = Way(runs=shell, environment=way)
        return install(self.way, self.installation)

    def tree(self) -> dict[str, Entry]:
        """Everything on the host but the moment at which a reload became due, and the lock that nobody holds."""
        found = tree(self.folder / "host")
        return {name: replace(entry, content=b"") if name.endswith("/reload_pending") else entry for name, entry in found.items()
                if not name.endswith("/lock")}

    def save(self) -> Callable[[], None]:
        """Keep the host as it is; calling what is returned brings that back."""
        host, kept = self.folder / "host", self.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        subprocess.run(["cp", "-a", str(host), str(kept)], check=True)

        def bring_back() -> None:
            shutil.rmtree(host)
            subprocess.run(["cp", "-a", str(kept), str(host)], check=True)

        return bring_back


_ODD = "a 'b\" \\ $HOME %s\nc"
PLACES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "as-ever": lambda _folder: {},
    "without-ca": lambda _folder: {"ca_path": None},
    "apart": lambda folder: {"key_path": str(folder / "host" / "private" / "k.pem"), "ca_path": str(folder / "host" / "etc" / "x" / ".." / "ca.pem")},
    "odd-names": lambda folder: {
        "certificate_path": str(folder / "host" / _ODD / "-n *.crt"), "key_path": str(folder / "host" / _ODD / "`id`.key")},
    "others": lambda _folder: {"owner": "daemon", "group": "12345", "key_mode": "0640", "certificate_mode": "0444", "directory_mode": "0750"},
}


@every_shell
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("places", PLACES)
def test_script_and_module_leave_the_same_behind(tmp_path: Path, places: str, before: int, shell: str) -> None:
    site = Site(tmp_path, before, PLACES[places](tmp_path))
    bring_back = site.save()
    number = site.by_module()
    by_module = site.tree()
    bring_back()
    assert site.by_script(shell) == number == before + 1, site.way.answers
    assert site.tree() == by_module
    assert not [name for name in by_module if "stage" in name]
    key, certificate = Path(site.places["key_path"]), Path(site.places["certificate_path"])
    assert x.key_matches(x.load_certificates(certificate.read_bytes())[0], key.read_bytes())


def test_an_owner_by_number_is_never_taken_for_a_name(tmp_path: Path) -> None:
    assert "chown daemon:+12345 " in install_script(Installation({**PLACES["others"](tmp_path), "certificate_path": "/c", "key_path": "/k"}, "", "", ""))


def test_numbers_are_counted_and_not_sorted_as_words(tmp_path: Path) -> None:
    site = Site(tmp_path, 9)
    assert [site.by_script() for _number in range(2) if _renewed(site)] == [10, 11]
    assert sorted(path.name for path in (site.machine.unit / "generations").iterdir()) == ["10", "11"]


def _renewed(site: Site) -> bool:
    site.installation = site.wanted()
    return True


def test_cert_issue_goes_by_script_and_a_second_run_changes_nothing(authority: Authority, machine: Machine) -> None:
    machine.shell = "dash"
    options = {**authority.options(), "include_chain": True}
    for number, action in enumerate(("issued", "renewed", "renewed"), 1):
        done = machine.issue(**options, force=True)
        assert (done["action"], done["generation"], done["reload_pending"], machine.visits) == (action, number, True, ["look", "script"])
        assert machine.is_whole()
        assert machine.is_tidy()
        assert done["certificate"]["serial"] == x.serial_text(machine.leaf().serial_number)
    before = machine.everything()
    assert (machine.issue(**options)["changed"], machine.visits) == (False, ["look"])
    assert machine.everything() == before
    told = machine.issue(**options, force=True, check_mode=True)
    assert (told["action"], machine.visits, machine.everything()) == ("renewed", ["look"], before)


# -- what a script leaves to the module -----------------------------------------------------------------------------------------------------


def _append(name: str) -> Callable[[Site], None]:
    def change(site: Site) -> None:
        path = site.machine.unit / name
        path.write_bytes(path.read_bytes() + b"\n")

    return change


def _link_away(name: str) -> Callable[[Site], None]:
    """A thing of ours is moved elsewhere, with a link in its place."""

    def change(site: Site) -> None:
        path = site.machine.unit / name if name else site.machine.unit
        path.rename(site.folder / "elsewhere")
        path.symlink_to(site.folder / "elsewhere")

    return change


def _relinked(site: Site) -> None:
    site.machine.key.unlink()
    site.machine.key.symlink_to(site.machine.unit / "current" / "key.pem")


def _plain(site: Site) -> None:
    content = site.machine.key.read_bytes()
    site.machine.key.unlink()
    site.machine.key.write_bytes(content)


def _made(name: str) -> Callable[[Site], None]:
    def change(site: Site) -> None:
        (site.machine.unit / name).mkdir()

    return change


def _switched_oddly(site: Site) -> None:
    (site.machine.unit / "current").unlink()
    (site.machine.unit / "current").symlink_to("generations/../generations/1")


#: What is found -> (generations before, what somebody did).
UNFIT: dict[str, tuple[int, Callable[[Site], Any]]] = {
    "another-request": (0, _append("stage/request.pem")), "another-key": (0, _append("stage/key.pem")),
    "another-certificate": (1, _append("generations/1/certificate.pem")), "another-ca-before": (2, _append("generations/1/ca.pem")),
    "no-ca-any-more": (1, lambda site: (site.machine.unit / "generations/1/ca.pem").unlink()),
    "a-folder-for-a-file": (1, lambda site: ((site.machine.unit / "generations/1/ca.pem").unlink(), (site.machine.unit / "generations/1/ca.pem").mkdir())),
    "no-key-waits": (1, lambda site: shutil.rmtree(site.machine.unit / "stage")),
    "a-certificate-waits": (1, lambda site: (site.machine.unit / "stage" / "certificate.pem").write_bytes(b"")),
    "half-a-generation": (1, _made("generations/.new")), "a-generation-to-come": (1, _made("generations/2")),
    "a-generation-too-many": (2, _made("generations/0")), "no-generation": (0, _made("generations/1")), "no-number": (1, _made("generations/1 1")),
    "too-many-before": (3, _made("generations/1")), "a-word": (2, _made("generations/1x")), "leading-zero": (1, _made("generations/01")),
    "a-link-elsewhere": (1, _relinked), "a-plain-key": (1, _plain), "plain-files": (0, lambda site: site.machine.certificate.write_bytes(b"mine")),
    "a-dangling-link": (0, lambda site: site.machine.key.symlink_to("nowhere")),
    "a-leftover-link": (1, lambda site: (site.machine.key.parent / ".agent.key.muster").symlink_to("nowhere")),
    "a-leftover-switch": (1, lambda site: (site.machine.unit / ".current.muster").symlink_to("generations/1")),
    "a-leftover-note": (1, lambda site: (site.machine.unit / ".reload_pending.muster").write_bytes(b"")),
    "nothing-current": (1, lambda site: (site.machine.unit / "current").unlink()),
    "current-elsewhere": (1, _switched_oddly),
    "current-gone": (1, lambda site: shutil.rmtree(site.machine.unit / "generations/1")),
    "open-to-a-group": (1, lambda site: site.machine.unit.chmod(0o775)), "open-to-all": (0, lambda site: (site.machine.unit / "generations").chmod(0o757)),
    "open-above": (0, lambda site: site.machine.unit.parent.chmod(0o777)), "somebody-else-s": (1, lambda site: os.chown(site.machine.unit, 1, 1)),
    "linked-unit": (1, _link_away("")), "linked-stage": (0, _link_away("stage")), "linked-key": (0, _link_away("stage/key.pem")),
    "linked-lock": (0, _link_away("lock")), "linked-generations": (0, _link_away("generations")),
}


#: Only a change since the look speaks against these.
_GOOD_ENOUGH = frozenset({"another-request", "another-key", "another-certificate", "another-ca-before", "no-ca-any-more", "no-key-waits"})


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_not_as_it_was_is_left_to_the_module(tmp_path: Path, case: str) -> None:
    before, change = UNFIT[case]
    site = Site(tmp_path, before)
    change(site)
    there = site.tree()
    assert site.by_script() is None
    assert "\nunfit " in site.way.answers[0], site.way.answers
    assert site.tree() == there
    if case not in _GOOD_ENOUGH:
        # A look that saw it makes it no better.
        site.installation = replace(site.installation, expect=site.look()["token"])
        assert site.by_script() is None
        assert site.way.answers[0].splitlines()[-1] not in (END, "unfit changed")
        assert site.tree() == there


def _without(folder: Path, missing: str) -> str:
    """A PATH to everything the script needs but one, and nothing else; the script's own additions find nothing more."""
    folder.mkdir()
    for name in f"{_KILLING} df sh tail".split():
        if name != missing:
            (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


@pytest.mark.parametrize("missing", ["flock", "find", "sha256sum", "tar"])
def test_a_missing_tool_is_named(tmp_path: Path, missing: str) -> None:
    site = Site(tmp_path)
    script = re.sub(r"(?m)^PATH=.*$", "", install_script(site.installation), count=1)
    done = subprocess.run(
        [str(shutil.which("dash")), "-c", script], check=True, capture_output=True, text=True, input="", env={"PATH": _without(tmp_path / "bin", missing)})
    assert done.stdout.splitlines() == [START, f"unfit {missing}"]


def test_tools_that_are_not_gnu_leave_it_to_the_module(tmp_path: Path) -> None:
    site = Site(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cp").write_text("#!/bin/sh\necho 'BusyBox v1.35.0 multi-call binary.' >&2; exit 1\n")
    (tools / "cp").chmod(0o755)
    there = site.tree()
    assert site.by_script(PATH=f"{tools}:{os.environ['PATH']}") is None
    assert (site.way.answers, site.tree()) == ([f"{START}\nunfit cp\n"], there)


@pytest.mark.parametrize("length", [0, 512, 700, 1024])
def test_a_certificate_cut_short_on_the_way_changes_nothing(tmp_path: Path, length: int) -> None:
    site = Site(tmp_path, 1)
    there = site.tree()
    way = Way(runs="dash")
    way.truncate = length
    assert install(way, site.installation) is None
    assert site.tree() == there


def test_a_certificate_changed_on_the_way_changes_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, 1)
    there = site.tree()
    other = replace(site.installation, ca=site.installation.ca.replace("A", "B"))

    class Swapping(Way):
        def run_script(self, script: str, data: bytes | None = None) -> tuple[int, str, str] | None:
            return super().run_script(install_script(site.installation), data)

    assert install(Swapping(runs="dash"), other) is None
    assert site.tree() == there


def test_what_the_module_says_better_is_left_to_it(authority: Authority, machine: Machine) -> None:
    machine.shell = "dash"
    with pytest.raises(HostFailure) as failure:
        machine.issue(**authority.options(), owner="nobody-of-that-name")
    assert failure.value.reason == "unknown_owner"
    assert not machine.directory.exists()
    site = Site(machine.directory.parent / "locked", 1)
    with (site.machine.unit / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert site.by_script() is None


def test_an_owner_that_is_gone_since_leaves_everything_as_it_was(tmp_path: Path) -> None:
    site = Site(tmp_path, 1)
    there = site.tree()
    site.installation = replace(site.installation, places={**site.places, "owner": "nobody-of-that-name"})
    assert site.by_script() is None
    assert site.tree() == there


def test_a_key_that_is_in_use_already_is_none_that_waits(authority: Authority, machine: Machine) -> None:
    machine.issue(**authority.options())
    stage = machine.unit / "stage"
    stage.mkdir(mode=0o700)
    shutil.copy2(machine.key, stage / "key.pem")
    request = x.Request((("O", "Example"), ("CN", "agent-web")), extended_key_usage=("clientAuth",))
    (stage / "request.pem").write_bytes(_request_of(machine.key.read_bytes(), request))
    machine.shell = "dash"
    done = machine.issue(**authority.options(), force=True)
    assert (machine.visits, done["generation"], len(authority.issued())) == (["look", "install"], 1, 1)
    assert machine.is_tidy()


def _request_of(key: bytes, request: x.Request) -> bytes:
    """A signing request for a key that there is."""
    loaded = x.private_key_of(key)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(x, "_new_key", lambda _kind, _size: loaded)
        return x.new_key_and_request(request)[1]


# -- links that others plant ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agent.key", "agent.crt"])
def test_a_link_planted_in_the_very_moment_is_not_followed(tmp_path: Path, name: str) -> None:
    site = Site(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    planted = site.machine.certificate.parent / f".{name}.muster"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ln").write_text(f"#!/bin/sh\n[ -L {planted} ] || {shutil.which('ln')} -s {victim} {planted}\nexec {shutil.which('ln')} \"$@\"\n")
    (tools / "ln").chmod(0o755)
    with pytest.raises(HostFailure) as failure:
        site.by_script(PATH=f"{tools}:{os.environ['PATH']}")
    assert failure.value.reason == "not_writable"
    assert list(victim.iterdir()) == []
    assert not site.machine.certificate.is_symlink() or os.readlink(site.machine.certificate).startswith(".muster/")


# -- ends in the middle -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: these tests make many hosts, each synced many times."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        yield Path(folder)


_STEPS_THAT_LOOK = 7  # programs that read, before the first one that changes anything
_KILLING = "chmod chown cp date env find flock ln mkdir mv rm sed sha256sum sync tar"


@pytest.fixture
def killers(tmp_path: Path) -> Path:
    """Programs that take the whole script with them."""
    return killing_programs(tmp_path / "killers", _KILLING)


@pytest.mark.parametrize("before", [0, 2])
def test_a_script_killed_at_any_step_leaves_a_pair_and_the_next_run_finishes(killers: Path, quick: Path, before: int) -> None:
    authority, template = Authority(quick / "ca"), Machine(quick / "template")
    for _number in range(before):
        template.issue(**authority.options(), force=True)
    template.directory.mkdir(exist_ok=True)
    deaths = 0
    for step in range(_STEPS_THAT_LOOK, 80):
        machine = Machine(quick / f"host{step}")
        subprocess.run(["cp", "-a", str(template.directory), str(machine.directory)], check=True)
        issued = len(authority.issued())
        machine.shell = "dash"
        machine.environment = {"PATH": f"{killers}:{os.environ['PATH']}", "COUNT": str(quick / f"count{step}"), "KILL_AT": str(step)}
        try:
            machine.issue(**authority.options(), force=True)
        except HostFailure as failure:
            assert failure.reason == "delivery_lost", step
        else:
            assert machine.visits == ["look", "script"], step
            break
        deaths += 1
        if before or machine.key.exists():
            assert machine.is_whole(), step
        machine.environment = {}
        machine.shell = ("", "dash")[step % 2]
        machine.issue(**authority.options(), force=bool(before) and machine.leaf() != _third(machine))
        assert machine.is_whole(), step
        assert machine.is_tidy(), step
        assert len(authority.issued()) == issued + 1, step
        shutil.rmtree(machine.directory)
    assert 15 < deaths < 60


def _third(machine: Machine) -> Any:
    """The certificate of the third generation, None for a host that has none."""
    file = machine.unit / "generations" / "3" / "certificate.pem"
    return x.load_certificates(file.read_bytes())[0] if file.exists() else None


def test_everything_is_on_disk_before_it_is_named(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    for name in ("sync", "mv", "ln", "rm"):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>{calls}\nexec {shutil.which(name)} "$@"\n')
        (tools / name).chmod(0o755)
    assert site.by_script(PATH=f"{tools}:{os.environ['PATH']}") == 1
    unit, certs = "U", "C"
    steps = calls.read_text().replace(str(site.machine.unit), unit).replace(str(site.machine.certificate.parent), certs).splitlines()
    new = f"{unit}/generations/.new"
    links = [f"ln -sT .muster/agent.crt/current/{role}.pem {certs}/.{name}.muster"
             for role, name in (("certificate", "agent.crt"), ("key", "agent.key"), ("ca", "ca.crt"))]
    assert steps == [
        f"sync {unit}/.reload_pending.muster {new}/certificate.pem {new}/ca.pem {new}/key.pem {new}", f"mv -T {new} {unit}/generations/1",
        f"sync {unit}/generations", f"mv -fT {unit}/.reload_pending.muster {unit}/reload_pending", f"sync {unit}",
        f"ln -sT generations/1 {unit}/.current.muster", f"mv -fT {unit}/.current.muster {unit}/current", f"sync {unit}",
        *links, *(f"mv -fT {certs}/.{name}.muster {certs}/{name}" for name in ("agent.crt", "agent.key", "ca.crt")), f"sync {certs}",
        f"rm -rf {unit}/stage",
    ]


# -- what the controller makes of an answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "reason"), [
    (f"{START}\n", "delivery_lost"), (f"{START}\ngeneration 2\n", "delivery_lost"), (f"{START}\ngeneration x\n{END}\n", "delivery_lost"),
    (f"{START}\nfail disk_full /etc/a b\n", "disk_full"), (f"{START}\nfail not_writable /etc/a b\n", "not_writable"), ("", ""), ("sh: 1: no\n", ""),
    (f"{START}\nunfit cp\n", ""),
])
def test_an_answer_is_a_number_or_nothing_happened_or_a_failure(tmp_path: Path, output: str, reason: str) -> None:
    wanted = Site(tmp_path).installation

    class Saying:
        def run_script(self, _script: str, _data: bytes | None = None) -> tuple[int, str, str] | None:
            return 0, output, ""

    if not reason:
        assert install(Saying(), wanted) is None
        return
    with pytest.raises(HostFailure) as failure:
        install(Saying(), wanted)
    assert failure.value.reason == reason
    assert failure.value.msg.endswith(".")
    assert "run again" in failure.value.msg


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_understood_by_every_shell(tmp_path: Path, shell: str) -> None:
    for places in PLACES.values():
        wanted = Installation({**Site(tmp_path / "s").places, **places(tmp_path)}, "-----", "", "0" * 64)
        wanted = replace(wanted, places={name: value for name, value in wanted.places.items() if value})
        done = subprocess.run(
            [shell, *(["sh"] if shell == "busybox" else []), "-n"], check=False, input=install_script(wanted), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        shutil.rmtree(tmp_path / "s")


def test_a_host_runs_scripts_where_scripts_serve_it(tmp_path: Path) -> None:
    def host(action: Action, delivery: str = "auto") -> Host:
        return Host(cast(Any, action), {}, store=str(tmp_path), control_plane="", name="", delivery=delivery)

    assert host(Action()).run_script("cat; exit 3", b"data") == (3, "data", "")
    assert host(Action(), "module").run_script("cat", b"data") is None
    slow, windows = Action(), Action()
    slow._connection.has_pipelining = False
    windows._connection._shell.SHELL_FAMILY = "powershell"
    assert (host(slow).run_script("cat"), host(windows).run_script("cat"), slow.scripts, windows.scripts) == (None, None, [], [])
