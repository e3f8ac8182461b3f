# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Credentials that already exist somewhere, in the order in which they are tried (private to muster.agents).

Who is right is decided by use, never by age: each candidate is shown to the control plane until one is accepted.
"""

from __future__ import annotations

import posixpath
import typing as t
from dataclasses import dataclass, field

from ansible_collections.muster.agents.plugins.module_utils._credential_store import HostFile
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._formats import FormatError, parse
from ansible_collections.muster.agents.plugins.plugin_utils._host import Look
from ansible_collections.muster.agents.plugins.plugin_utils._spool import Spool
from ansible_collections.muster.agents.plugins.plugin_utils._vault import Vault, VaultPath
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Credential, Enrolment

__all__ = ["AGENT_ID", "Candidate", "OldPlace", "candidate_of_pair", "candidates_in_vault", "candidates_on_host", "old_places", "presents"]

AGENT_ID = "agent_id"  # what Vault's fields may name beside secrets
CERTIFICATE = "certificate"


@dataclass(frozen=True)
class Candidate:
    """A credential and where it was found. *possessed* is True when it lay on this very host, or was issued to it, which proves that it is this agent's."""

    credential: Credential
    origin: str
    possessed: bool
    generation: int = 0
    extra: t.Mapping[str, Secret] = field(default_factory=dict)


@dataclass(frozen=True)
class OldPlace:
    """Where an earlier tool left an agent's credential: a file with the key of the id and the keys of secrets by our names (format env,
    json or toml, where dots lead into tables), or a directory with a file for each of them (format files).
    """

    path: str
    format: str
    agent_id: str
    secrets: t.Mapping[str, str]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that have to be read for it."""
        if self.format != "files":
            return (self.path,)
        return tuple(self.file(name) for name in (self.agent_id, *self.secrets.values()) if name)

    def file(self, name: str) -> str:
        """Return the path of one file of the format ``files``; a name is below the directory unless it is a full path."""
        return posixpath.join(self.path, name)


def old_places(items: t.Sequence[t.Mapping[str, t.Any]] | None) -> tuple[OldPlace, ...]:
    """Return the option ``adopt_from`` as values. Raises InvalidInput for a path that is not absolute."""
    places = []
    for item in items or ():
        if not str(item["path"]).startswith("/"):
            raise InvalidInput(f"adopt_from: path {item['path']!r} is not absolute: give the file's full path on the host.")
        places.append(OldPlace(item["path"], item["format"], item["agent_id"], {str(key): str(value) for key, value in item["secrets"].items()}))
    return tuple(places)


def candidates_on_host(
    look: Look, places: t.Sequence[OldPlace], spool: Spool, secret_names: t.Sequence[str], optional: t.Sequence[str] = (),
) -> t.Iterator[Candidate]:
    """Yield the store's generations from the newest, what an interrupted run spooled, then what an earlier tool left in files.

    A credential has all of *secret_names*, and those of *optional* that are there.
    """
    receipt_id = look.receipt.agent_id if look.receipt is not None else ""
    for number in sorted(look.generations, reverse=True):
        secrets = look.generations[number]
        agent_id = look.ids.get(number) or (look.agent_id if number == look.generation() else "") or receipt_id
        if all(name in secrets for name in secret_names):
            issued = {name: secrets[name] for name in (*secret_names, *optional) if name in secrets}
            extra = {name: secret for name, secret in secrets.items() if name not in issued}
            yield Candidate(Credential(agent_id, issued), "store", True, number, extra)
    spooled = spool.find()
    if spooled is not None:
        credential, extra, possessed = spooled
        yield Candidate(credential, "spool", possessed or (bool(receipt_id) and credential.agent_id == receipt_id), 0, extra)
    for place in places:
        old = _read_files(look, place, secret_names, optional) if place.format == "files" else _read_file(look, place, secret_names)
        if old is not None:
            yield Candidate(old, place.path, True)


def candidates_in_vault(
    vault: Vault, paths: t.Sequence[VaultPath], agent_id: str, secret_names: t.Sequence[str], optional: t.Sequence[str] = (),
) -> t.Iterator[Candidate]:
    """Yield what Vault holds under the readers' paths. *agent_id* is what else is known of the identity, empty when nothing is."""
    for path in paths:
        wanted = {secret: name for name, secret in path.fields.items() if secret in (*secret_names, *optional, AGENT_ID)}
        if not all(name in wanted for name in secret_names):
            continue
        entry = vault.recall(path)
        found = {secret: entry.fields[name] for secret, name in wanted.items() if name in entry.fields}
        stored_id = found.pop(AGENT_ID, None)
        if all(name in found for name in secret_names):
            register_with_core(found.values())
            yield Candidate(Credential(agent_id or (stored_id.reveal() if stored_id is not None else ""), found), f"vault:{path.path}", False)


def candidate_of_pair(enrolment: Enrolment) -> t.Iterator[Candidate]:
    """Yield the certificate that lies on the host with its key, which may be registered already."""
    if enrolment.certificate:
        yield Candidate(Credential("", {CERTIFICATE: Secret(enrolment.certificate)}), enrolment.certificate_path, True)


def presents(credential: Credential, enrolment: Enrolment) -> bool:
    """Say whether the host can present *credential*: one whose key is on the host is good for nothing when another pair lies there."""
    return not enrolment.certificate or credential.secrets.get(CERTIFICATE) == Secret(enrolment.certificate)


def _read_files(look: Look, place: OldPlace, secret_names: t.Sequence[str], optional: t.Sequence[str]) -> Credential | None:
    """Return the credential that lies in a file for each of its parts, None when it is not all there."""
    texts = {name: _text_of(look.files.get(place.file(file))) for name, file in place.secrets.items() if name in (*secret_names, *optional)}
    if not all(texts.get(name) for name in secret_names):
        return None
    credential = Credential(_text_of(look.files.get(place.file(place.agent_id))), {name: Secret(text) for name, text in texts.items() if text})
    register_with_core([secret for name, secret in credential.secrets.items() if name in secret_names])
    return credential


def _text_of(found: HostFile | None) -> str:
    """Return the text of a file less the blank lines around it, an empty text when it is not there."""
    return found.content.decode("utf-8", "replace").strip() if found is not None else ""


def _read_file(look: Look, place: OldPlace, secret_names: t.Sequence[str]) -> Credential | None:
    """Return the credential in an old file, None when it is not all there."""
    found = look.files.get(place.path)
    if found is None:
        return None
    text = found.content.decode("utf-8", "replace")
    try:
        values = parse(text, place.format)
    except FormatError:
        values = _loose_env(text) if place.format == "env" else None
    secrets = {name: _value(values, place.secrets.get(name, "")) for name in secret_names}
    if not all(isinstance(value, str) and value for value in secrets.values()):
        return None
    credential = Credential(str(_value(values, place.agent_id) or ""), {name: Secret(str(value)) for name, value in secrets.items()})
    register_with_core(credential.secrets.values())
    return credential


def _value(document: t.Any, key: str) -> t.Any:
    """Return what a document has under *key*: under that very name, else where its dots lead. None when it has nothing there."""
    if isinstance(document, dict) and key not in document:
        first, _dot, rest = key.partition(".")
        return _value(document.get(first), rest) if rest else None
    return document.get(key) if isinstance(document, dict) else None


def _loose_env(text: str) -> dict[str, str]:
    """Read what lines there are of a hand-made environment file that is not strictly one."""
    pairs = (line.strip().partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip().removeprefix("export ").strip(): value.strip().strip("'\"") for key, _equals, value in pairs}
