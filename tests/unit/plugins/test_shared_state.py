# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the forks of a controller share: documents under a lock, paces, admin sessions and the verdict on a bootstrap secret."""

from __future__ import annotations

import json
import multiprocessing
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _pacing, _sessions
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Rejected, Unreachable
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pace, Pacer
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Session, Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument

URL = "https://plane.example.com"
PASSWORD = Secret("canary-shared-password")
TOKEN = "canary-shared-session"


class Wall:
    """Time as the tests set it."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """Time that stands still, in pacing and sessions."""
    made = Wall()
    monkeypatch.setattr(_pacing, "time", made)
    monkeypatch.setattr(_sessions, "time", made)
    return made


def _in_parallel(work: Callable[[int], None], count: int) -> list[int | None]:
    """Run *work* in forked processes, as ansible-playbook runs its workers; return their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


# -- documents --------------------------------------------------------------------------------------------------------------------------------------


def test_forks_do_not_lose_each_others_changes(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for _turn in range(20):
            with SharedDocument(str(tmp_path / "state"), "count").held() as document:
                document["count"] = int(document.get("count", 0)) + 1

    assert _in_parallel(work, 6) == [0] * 6
    with SharedDocument(str(tmp_path / "state"), "count").held() as document:
        assert document == {"count": 120}


def test_documents_are_for_their_owner_alone(tmp_path: Path) -> None:
    with SharedDocument(str(tmp_path / "state"), "one").held() as document:
        document["secret"] = TOKEN
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()} == {0o600}
    with SharedDocument(str(tmp_path / "state"), "two").held() as document:
        assert document == {}


def test_a_change_in_a_block_that_fails_is_not_kept(tmp_path: Path) -> None:
    shared = SharedDocument(str(tmp_path), "one")
    with pytest.raises(KeyError), shared.held() as document:
        document["half"] = True
        raise KeyError("half")
    with shared.held() as document:
        assert document == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_broken_document_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    shared = SharedDocument(str(tmp_path), "one")
    with shared.held() as document:
        document["a"] = 1
    next(tmp_path.glob("*.json")).write_bytes(content)
    with shared.held() as document:
        assert document == {}
        document["a"] = 2
    with shared.held() as document:
        assert document == {"a": 2}


def test_without_a_place_to_write_each_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shared = SharedDocument(str(tmp_path / "file" / "below"), "one")
    with shared.held() as document:
        document["a"] = 1
    with shared.held() as document:
        assert document == {"a": 1}


# -- paces ------------------------------------------------------------------------------------------------------------------------------------------


def _pacer(tmp_path: Path) -> Pacer:
    return Pacer(SharedDocument(str(tmp_path), URL), {"": Pace(60, 1.0), "login": Pace(5, 1 / 12)})


def test_a_server_that_never_asked_to_wait_costs_no_lock_until_one_fork_hears_it_ask(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first, second = _pacer(folder), _pacer(folder)
    assert (first.delay(), second.delay("login")) == (0.0, 0.0)
    assert not folder.exists()
    first.refused("login", 30)
    assert (second.delay(), second.delay("login") > 25) == (0.0, True)


def test_a_pace_that_nobody_shares_is_kept_all_the_same() -> None:
    alone = Pacer(SharedDocument(""), {"": Pace(60, 1.0)})
    assert alone.delay() == 0.0
    alone.refused("", 30)
    assert alone.delay() > 25


def test_a_server_that_never_refused_is_not_waited_for(tmp_path: Path, wall: Wall) -> None:
    pacer = _pacer(tmp_path)
    assert {pacer.delay() for _request in range(500)} == {0.0}


def test_after_a_refusal_requests_leave_at_the_known_pace_over_all_forks(tmp_path: Path, wall: Wall) -> None:
    _pacer(tmp_path).refused("", 3.0)
    delays = [_pacer(tmp_path).delay() for _request in range(5)]
    assert delays == pytest.approx([3.0, 4.0, 5.0, 6.0, 7.0])
    assert _pacer(tmp_path).delay("login") == 0.0


def test_a_bucket_fills_again(tmp_path: Path, wall: Wall) -> None:
    pacer = _pacer(tmp_path)
    pacer.refused("", 1.0)
    wall.now += 31.0
    delays = [pacer.delay() for _request in range(33)]
    assert delays[:31] == [0.0] * 31
    assert delays[31] == pytest.approx(1.0)


def test_a_refusal_is_forgotten_after_an_hour(tmp_path: Path, wall: Wall) -> None:
    pacer = _pacer(tmp_path)
    pacer.refused("", 1.0)
    wall.now += 3601.0
    assert {pacer.delay() for _request in range(100)} == {0.0}


def test_a_clock_that_was_set_back_blocks_nobody(tmp_path: Path, wall: Wall) -> None:
    pacer = _pacer(tmp_path)
    pacer.refused("", 1.0)
    wall.now -= 86400.0
    assert pacer.delay() == 0.0


def test_without_a_known_pace_only_the_servers_word_counts(tmp_path: Path, wall: Wall) -> None:
    pacer = Pacer(SharedDocument(str(tmp_path), URL), {})
    pacer.refused("", 2.0)
    assert [pacer.delay(), pacer.delay()] == pytest.approx([2.0, 2.0])


# -- sessions ---------------------------------------------------------------------------------------------------------------------------------------


def test_one_login_serves_all_forks(tmp_path: Path) -> None:
    logins = tmp_path / "logins"

    def login() -> Session:
        with logins.open("a") as stream:
            stream.write("x")
        time.sleep(0.05)
        return Session(Secret(TOKEN), time.time() + 3600)

    def work(number: int) -> None:
        session = Sessions(str(tmp_path / "state"), URL).session("admin", PASSWORD, login)
        if session.token != Secret(TOKEN):
            raise SystemExit(1)

    assert _in_parallel(work, 6) == [0] * 6
    assert logins.read_text() == "x"


def test_a_session_ends_and_can_be_discarded(tmp_path: Path, wall: Wall) -> None:
    made: list[str] = []

    def login() -> Session:
        made.append(f"{TOKEN}-{len(made)}")
        return Session(Secret(made[-1]), wall.now + 600)

    sessions = Sessions(str(tmp_path), URL)
    first = sessions.session("admin", PASSWORD, login)
    assert sessions.session("admin", PASSWORD, login) == first
    wall.now += 545
    second = sessions.session("admin", PASSWORD, login)
    assert second != first
    sessions.discard("admin", PASSWORD, first)
    assert sessions.session("admin", PASSWORD, login) == second
    sessions.discard("admin", PASSWORD, second)
    assert sessions.session("admin", PASSWORD, login) not in (first, second)


def test_another_user_password_or_server_has_a_session_of_its_own(tmp_path: Path) -> None:
    made: list[int] = []

    def login() -> Session:
        made.append(1)
        return Session(Secret(f"{TOKEN}-{len(made)}"), time.time() + 3600)

    for url, who, password in ((URL, "a", "canary-one"), (URL, "b", "canary-one"), (URL, "a", "canary-two"), ("https://other.example.com", "a", "canary-one")):
        Sessions(str(tmp_path), url).session(who, Secret(password), login)
    assert len(made) == 4
    names = " ".join(path.name for path in tmp_path.iterdir())
    contents = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "canary" not in names
    assert b"canary-one" not in contents
    assert b"canary-two" not in contents


def test_a_refused_login_is_not_tried_for_the_next_host(tmp_path: Path) -> None:
    tries: list[int] = []

    def login() -> Session:
        tries.append(1)
        raise Rejected("The password is wrong.", reason="bad_bootstrap")

    for _host in range(3):
        with pytest.raises(Rejected, match="The password is wrong") as refusal:
            Sessions(str(tmp_path), URL).session("admin", PASSWORD, login)
        assert refusal.value.reason == "bad_bootstrap"
    assert tries == [1]
    with pytest.raises(Rejected):
        Sessions(str(tmp_path), URL).session("admin", Secret("canary-corrected"), login)
    assert tries == [1, 1]


# -- bootstrap secrets ------------------------------------------------------------------------------------------------------------------------------


def _use(tmp_path: Path, error: Exception | None = None, secret: Secret | None = PASSWORD) -> bool:
    """Use a bootstrap secret; say whether anything was sent."""
    sent = False
    with Sessions(str(tmp_path), URL).trial(secret):
        sent = True
        if error is not None:
            raise error
    return sent


def test_a_bootstrap_secret_that_was_refused_is_sent_once(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="check it") as first:
        _use(tmp_path, Rejected("The secret is wrong: check it.", reason="bad_bootstrap"))
    assert "Not sent" not in first.value.msg
    for _host in range(2):
        with pytest.raises(Rejected, match=r"Not sent.*check it"):
            _use(tmp_path)
    assert _use(tmp_path, secret=Secret("canary-corrected"))


def test_another_run_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Rejected):
        _use(tmp_path, Rejected("The secret is wrong.", reason="bad_bootstrap"))
    monkeypatch.setattr(_sessions, "this_run", lambda: "another")
    assert _use(tmp_path)


@pytest.mark.parametrize("error", [Unreachable("Gone."), Rejected("Another reason.", reason="rejected")])
def test_only_a_refusal_of_the_secret_counts(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        _use(tmp_path, error)
    assert _use(tmp_path)


def test_no_secret_needs_no_trial(tmp_path: Path) -> None:
    assert _use(tmp_path, secret=None)
    assert list(tmp_path.iterdir()) == []


def test_the_first_use_has_the_secret_to_itself_and_the_rest_go_in_parallel(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def note(text: str) -> None:
        with log.open("a") as stream:
            stream.write(f"{json.dumps(text)}\n")

    def work(number: int) -> None:
        try:
            with Sessions(str(tmp_path / "state"), URL).trial(PASSWORD):
                note("sent")
                time.sleep(0.2)
                raise Rejected("The secret is wrong.", reason="bad_bootstrap")
        except Rejected:
            note("refused")

    assert _in_parallel(work, 5) == [0] * 5
    assert log.read_text().count("sent") == 1
    assert log.read_text().count("refused") == 5
