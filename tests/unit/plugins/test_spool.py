# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The spool keeps an issued credential privately, gives it back, and gets out of the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential

CREDENTIAL = Credential("agent-id", {"token": Secret("canary-7f3e")})


def _spool(folder: Path, url: str = "https://control.test", name: str = "edge") -> Spool:
    return Spool(str(folder / "spool"), url, name)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {"vault_token": Secret("v")}, possessed=False)
    assert _spool(tmp_path).find() == (CREDENTIAL, {"vault_token": Secret("v")}, False)
    _spool(tmp_path).keep(CREDENTIAL, {})
    assert _spool(tmp_path).find() == (CREDENTIAL, {}, True)


def test_it_is_private_and_its_name_tells_nothing(tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {})
    folder = tmp_path / "spool"
    (kept,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "edge" not in kept.name


def test_identities_do_not_mix(tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {})
    assert _spool(tmp_path, name="other").find() is None
    assert _spool(tmp_path, url="https://other.test").find() is None


def test_dropping_removes_it_and_may_be_repeated(tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {})
    _spool(tmp_path).drop()
    _spool(tmp_path).drop()
    assert _spool(tmp_path).find() is None
    assert list((tmp_path / "spool").iterdir()) == []


def test_dropping_takes_away_what_a_killed_run_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_source: str, _target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr("os.replace", killed)
        _spool(tmp_path).keep(CREDENTIAL, {})
    assert len(list((tmp_path / "spool").iterdir())) == 1
    _spool(tmp_path).drop()
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"3", b"null", b"\xff", b"{}", b'{"agent_id": "x"}', b'{"agent_id": "x", "secrets": {"token": ""}, "extra": {}}',
    b'{"agent_id": "x", "secrets": [], "extra": {}}', b'{"agent_id": "x", "secrets": {"token": null}, "extra": {}}',
])
def test_a_damaged_file_counts_as_none(content: bytes, tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {})
    (kept,) = (tmp_path / "spool").iterdir()
    kept.write_bytes(content)
    assert _spool(tmp_path).find() is None


def test_a_file_that_says_nothing_of_possession_proves_none(tmp_path: Path) -> None:
    _spool(tmp_path).keep(CREDENTIAL, {})
    (kept,) = (tmp_path / "spool").iterdir()
    document = json.loads(kept.read_text())
    del document["possessed"]
    kept.write_text(json.dumps(document))
    assert _spool(tmp_path).find() == (CREDENTIAL, {}, False)


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file in the way")
    _spool(tmp_path).keep(CREDENTIAL, {})
    assert _spool(tmp_path).find() is None
