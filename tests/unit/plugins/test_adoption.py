# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What exists already is found in files of every form, in order, and half a credential is none."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.muster.agents.plugins.module_utils._credential_store import HostFile
from ansible_collections.muster.agents.plugins.module_utils._receipt import Receipt
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._adoption import OldPlace, candidates_in_vault, candidates_on_host, old_places
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultEntry, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential

ENV = OldPlace("/opt/agent/.env", "env", "AGENT_ID", {"token": "AGENT_TOKEN"})
JSON = OldPlace("/var/lib/agent.json", "json", "agent_id", {"token": "agent_token"})
TOML = OldPlace("/etc/agent.toml", "toml", "agent.id", {"token": "backend.auth.token"})


def _look(**changes: t.Any) -> Look:
    values: dict[str, t.Any] = {
        "receipt": None, "receipt_digest": "", "generations": {}, "files": {}, "previous": {}, "facts": {}, "tools": frozenset(), "time": 0, "key": ""}
    return Look(**{**values, **changes})


def _found(tmp_path: Path, content: str, place: OldPlace) -> list[Credential]:
    look = _look(files={place.path: HostFile(content.encode(), "0600", "root", "root")})
    candidates = list(candidates_on_host(look, [place], Spool(str(tmp_path), "u", "n"), ("token",)))
    assert all(candidate.origin == place.path and candidate.possessed for candidate in candidates)
    return [candidate.credential for candidate in candidates]


@pytest.mark.parametrize("content", [
    "AGENT_ID=id\nAGENT_TOKEN=tok\n", "AGENT_ID='id'\nAGENT_TOKEN=\"tok\"\n", "# comment\nexport AGENT_ID=id\nexport AGENT_TOKEN=tok\n",
    "AGENT_TOKEN=tok\nOTHER=1\nAGENT_ID=id", "this line is no setting\nAGENT_ID = id\n AGENT_TOKEN = 'tok'\n", "AGENT_ID=id\r\nAGENT_TOKEN=tok\r\n",
])
def test_an_environment_file_of_any_hand_is_read(content: str, tmp_path: Path) -> None:
    assert _found(tmp_path, content, ENV) == [Credential("id", {"token": Secret("tok")})]


def test_a_token_may_hold_equals_signs(tmp_path: Path) -> None:
    assert _found(tmp_path, "broken line\nAGENT_ID=id\nAGENT_TOKEN=a=b==\n", ENV) == [Credential("id", {"token": Secret("a=b==")})]


def test_a_json_file_is_read(tmp_path: Path) -> None:
    assert _found(tmp_path, '{"agent_id": "id", "agent_token": "tok", "more": [1]}', JSON) == [Credential("id", {"token": Secret("tok")})]


@pytest.mark.parametrize("content", [
    '[agent]\nid = "id"\n[backend.auth] # who we are\ntoken = "tok" # a secret\n', 'agent.id = "id"\nbackend = {auth = {token = \'tok\'}}\n',
    '"agent.id" = "id"\n[backend]\nauth.token = "tok"\n',
])
def test_dots_lead_into_the_tables_of_a_toml_file(content: str, tmp_path: Path) -> None:
    assert _found(tmp_path, content, TOML) == [Credential("id", {"token": Secret("tok")})]


def test_dots_lead_into_the_objects_of_a_json_file(tmp_path: Path) -> None:
    place = OldPlace("/etc/agent.json", "json", "agent.id", {"token": "agent.token"})
    assert _found(tmp_path, '{"agent": {"id": "id", "token": "tok"}}', place) == [Credential("id", {"token": Secret("tok")})]


FILES = OldPlace("/etc/agent", "files", "id.txt", {"token": "secrets/token.txt", "certificate": "/etc/pki/agent.crt", "ca_certificate": "ca.crt"})


def _in_files(tmp_path: Path, **texts: str) -> list[Credential]:
    """Look for a credential in files, each given by the last part of its name."""
    files = {path: HostFile(texts[Path(path).stem].encode(), "0600", "root", "root") for path in FILES.paths if Path(path).stem in texts}
    found = candidates_on_host(_look(files=files), [FILES], Spool(str(tmp_path), "u", "n"), ("token", "certificate"), ("ca_certificate",))
    return [candidate.credential for candidate in found]


def test_files_of_a_directory_are_named_below_it_or_by_their_full_paths() -> None:
    assert FILES.paths == ("/etc/agent/id.txt", "/etc/agent/secrets/token.txt", "/etc/pki/agent.crt", "/etc/agent/ca.crt")


def test_a_credential_with_a_file_for_each_part_is_read(tmp_path: Path) -> None:
    both = {"token": Secret("tok"), "certificate": Secret("PEM\nPEM")}
    assert _in_files(tmp_path, id="id\n", token="tok\n", agent="PEM\nPEM\n") == [Credential("id", both)]
    assert _in_files(tmp_path, id="id", token="tok", agent="PEM\nPEM", ca="CA\n") == [Credential("id", {**both, "ca_certificate": Secret("CA")})]
    assert _in_files(tmp_path, token="tok", agent="PEM\nPEM") == [Credential("", both)]


def test_without_all_its_files_there_is_no_credential(tmp_path: Path) -> None:
    assert _in_files(tmp_path, id="id", token="tok") == []
    assert _in_files(tmp_path, id="id", token=" \n", agent="PEM") == []


@pytest.mark.parametrize("place", [ENV, JSON], ids=["env", "json"])
def test_a_token_without_an_id_is_worth_trying(place: OldPlace, tmp_path: Path) -> None:
    content = "AGENT_TOKEN=tok\n" if place is ENV else '{"agent_token": "tok", "agent_id": null}'
    assert _found(tmp_path, content, place) == [Credential("", {"token": Secret("tok")})]


@pytest.mark.parametrize(("content", "place"), [
    ("", ENV), ("AGENT_ID=id\n", ENV), ("AGENT_TOKEN=\n", ENV), ("#AGENT_TOKEN=tok\n", ENV), ("\x00\xff", ENV),
    ("", TOML), ("[backend]", TOML), ('backend = "tok"', TOML), ("backend.auth.token = tok", TOML), ("backend.auth.token = 5", TOML),
    ("", JSON), ("{", JSON), ("[]", JSON), ('"agent_token"', JSON),
    ('{"agent_token": 5}', JSON), ('{"agent_token": ""}', JSON), ('{"agent_token": null}', JSON), ('{"agent_token": {"x": 1}}', JSON),
])
def test_half_a_credential_is_none(content: str, place: OldPlace, tmp_path: Path) -> None:
    assert _found(tmp_path, content, place) == []


def test_an_absent_file_is_passed_over(tmp_path: Path) -> None:
    assert list(candidates_on_host(_look(), [ENV, JSON], Spool(str(tmp_path), "u", "n"), ("token",))) == []


def test_the_order_is_generations_spool_files(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), "u", "n")
    spool.keep(Credential("spool-id", {"token": Secret("spool")}), {"extra": Secret("x")}, possessed=False)
    receipt = Receipt("stacker", "n", "u", "STORED", "a", generation=3, agent_id="receipt-id")
    generations = {1: {"token": Secret("one")}, 3: {"token": Secret("three"), "vault_token": Secret("v")}, 2: {"other": Secret("no token")}}
    files = {ENV.path: HostFile(b"AGENT_ID=id\nAGENT_TOKEN=tok\n", "0600", "root", "root")}
    look = _look(receipt=receipt, generations=generations, files=files, agent_id="newest-id")
    found = list(candidates_on_host(look, [ENV], spool, ("token",)))
    assert [(item.origin, item.generation, item.credential.agent_id, item.possessed) for item in found] == [
        ("store", 3, "newest-id", True), ("store", 1, "receipt-id", True), ("spool", 0, "spool-id", False), (ENV.path, 0, "id", True)]
    assert found[0].extra == {"vault_token": Secret("v")}
    assert found[2].extra == {"extra": Secret("x")}


def test_a_spooled_credential_of_the_receipts_own_agent_is_possessed(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), "u", "n")
    spool.keep(Credential("receipt-id", {"token": Secret("spool")}), {}, possessed=False)
    look = _look(receipt=Receipt("stacker", "n", "u", "STORED", "a", agent_id="receipt-id"))
    assert [item.possessed for item in candidates_on_host(look, [], spool, ("token",))] == [True]
    nameless = _look(receipt=Receipt("stacker", "n", "u", "INTENT", "a"))
    spool.keep(Credential("", {"token": Secret("spool")}), {}, possessed=False)
    assert [item.possessed for item in candidates_on_host(nameless, [], spool, ("token",))] == [False]


class _Entries:
    def __init__(self, **entries: dict[str, Secret]) -> None:
        self._entries = entries

    def recall(self, path: VaultPath) -> VaultEntry:
        return VaultEntry(path.path, "m", 2, path.path in self._entries, 1, self._entries.get(path.path, {}))


def test_vault_is_asked_where_the_readers_look() -> None:
    vault = t.cast(Vault, _Entries(one={"t": Secret("tok"), "deployment_hash": Secret("n")}, two={"u": Secret("other")}))
    paths = [VaultPath("one", {"t": "token"}), VaultPath("two", {"db": "password"}), VaultPath("absent", {"t": "token"}), VaultPath("two", {"t": "token"})]
    found = list(candidates_in_vault(vault, paths, "known-id", ("token",)))
    assert [(item.origin, item.credential, item.possessed) for item in found] == [("vault:one", Credential("known-id", {"token": Secret("tok")}), False)]


def test_places_are_absolute() -> None:
    item = {"path": "/opt/agent/.env", "format": "env", "agent_id": "AGENT_ID", "secrets": {"token": "AGENT_TOKEN"}}
    assert old_places([item]) == (ENV,)
    assert old_places(None) == ()
    with pytest.raises(InvalidInput, match="not absolute"):
        old_places([{**item, "path": "opt/agent/.env"}])
