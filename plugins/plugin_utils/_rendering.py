# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Renders the operator's own templates in a render that alone knows ``muster_secret`` and ``muster_agent`` (private to muster.agents).

``src`` names a template file on the controller. It is rendered by ansible-core, with the search path and the settings of
ansible.builtin.template; its text is trusted, because it is the operator's file, while every variable stays data.

``content`` is text that ansible-core has rendered already, like every other option. What it holds by now may come from a host's facts,
so nothing in it is trusted a second time: what is left (written with ``{% raw %}`` or ``!unsafe``) is rendered in a sandbox that knows
the two names, this collection's filters and to_json, and no variables, lookups or plugins.
"""

from __future__ import annotations

import importlib
import json
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ansible.errors import AnsibleError, AnsibleFileNotFound
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, RenderFailure
from ansible_collections.muster.agents.plugins.plugin_utils._formats import FormatError, env_quote, key_names, parse, toml_quote
from ansible_collections.muster.agents.plugins.plugin_utils._redaction import redacted_view, unmanaged_view
from ansible_collections.muster.agents.plugins.plugin_utils._template_errors import Source, explain

__all__ = ["RenderedFile", "Renderer", "redacted_view", "unmanaged_view"]

_MODE = re.compile(r"0[0-7]{3,4}\Z")
_BOM = "\ufeff"
_JINJA = {"trim_blocks": True, "lstrip_blocks": False}
_FORMAT_NAMES = {"env": "environment file", "toml": "TOML", "json": "JSON", "yaml": "YAML"}


@dataclass(frozen=True)
class RenderedFile:
    """A file as it shall be on the host. *content* may hold secrets and is left out of the representation.

    path: absolute, on the host. mode, directory_mode: octal text such as "0600". validate: a command with ``%s``, "" for none.
    restart: whether a change asks for a restart of the agent. keys: names of the keys in *content*, for diffs.
    """

    path: str
    content: bytes = field(repr=False)
    owner: str
    group: str
    mode: str
    directory_mode: str
    validate: str
    restart: bool
    keys: tuple[str, ...]
    format: str = "text"


class Renderer:
    """The operator's files, as often as they are asked for: once with stand-ins, to see that they are right, and once with what is real.

    A template is read once, so that what was tried is what is rendered.
    """

    def __init__(
        self, templar: Templar, files: t.Sequence[t.Mapping[str, t.Any]] | None, task_vars: t.Mapping[str, t.Any], optional: t.Iterable[str] = (),
    ) -> None:
        """*files* are the validated values of the option ``files``.

        *templar* is the action's own (its loader reads the templates, also vault-encrypted ones). *task_vars* are the task's variables and are
        not changed. *optional* names secrets that may be missing: they are empty in templates, and a file that needs one is left out.
        """
        self._entries = list(files or ())
        self._loader = _loader_of(templar)
        self._task_vars = task_vars
        self._optional = tuple(optional)
        self._sources: dict[str, _Template] = {}

    def __call__(self, agent: t.Mapping[str, t.Any], secrets: t.Mapping[str, Secret]) -> tuple[RenderedFile, ...]:
        """Render each file and check the result against its format.

        *agent* becomes ``muster_agent``, *secrets* become ``muster_secret``; neither is ever rendered a second time.

        Raises InvalidInput when an entry cannot be right, and RenderFailure when a template cannot be rendered or its result is not valid.
        Messages hold file names, line numbers and names, never content.
        """
        _check_entries(self._entries)
        missing = [name for name in self._optional if name not in secrets]
        texts = {**dict.fromkeys(missing, ""), **{name: _plain(secret.reveal()) for name, secret in secrets.items()}}
        for entry in self._entries:
            if entry.get("needs") and entry["needs"] not in texts:
                raise InvalidInput(f"files: {entry['path']} needs the unknown secret {entry['needs']!r}: known are {', '.join(sorted(texts))}.")
        scope = _Scope(self._loader, self._task_vars, _plain(agent), texts, self._sources)
        return tuple(_rendered(entry, scope, secrets) for entry in self._entries if entry.get("needs") not in missing)


@dataclass(frozen=True, repr=False)
class _Template:
    """A template of the operator's as it was read, with what core renders it by."""

    path: Path
    text: str
    searchpath: tuple[str, ...]
    templar: Templar


@dataclass(frozen=True, repr=False)
class _Scope:
    """What a template may know. Holds secrets in plain text and lives only as long as one call of a Renderer, but for the *sources* read so far."""

    loader: DataLoader
    task_vars: t.Mapping[str, t.Any]
    agent: t.Mapping[str, t.Any]
    secrets: t.Mapping[str, str]
    sources: dict[str, _Template]


def _check_entries(entries: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    seen: set[str] = set()
    for entry in entries:
        path = str(entry["path"])
        if not path.startswith("/") or path.endswith("/"):
            raise InvalidInput(f"files: path {path!r} is not the absolute path of a file: give one that starts with a slash.")
        if path in seen:
            raise InvalidInput(f"files: {path} is listed twice: keep one entry for each path.")
        seen.add(path)
        if (entry.get("src") is None) == (entry.get("content") is None):
            raise InvalidInput(f"files: {path} needs either src (a template on the controller) or content (its text), and not both.")
        for option in ("mode", "directory_mode"):
            if not _MODE.match(str(entry[option])):
                raise InvalidInput(f"files: {option} of {path} is not an octal mode: write it quoted and with its zero, such as '0600'.")
        if entry.get("validate") and "%s" not in entry["validate"]:
            raise InvalidInput(f"files: validate of {path} lacks %s, which stands for the file to check: add it.")


def _rendered(entry: t.Mapping[str, t.Any], scope: _Scope, secrets: t.Mapping[str, Secret]) -> RenderedFile:
    path, fmt = str(entry["path"]), str(entry["format"])
    if entry.get("src") is not None:
        label = f"template {entry['src']}"
        text = _render_file(str(entry["src"]), label, path, scope)
    else:
        label = f"content of {path}"
        text = _render_content(str(entry["content"]), label, scope)
    data = _parsed(text, fmt, label)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        content = None
    if content is None:
        raise RenderFailure(f"{_upper(label)} renders to text that is not valid Unicode: look for a variable or secret with raw bytes in it.")
    return RenderedFile(
        path=path, content=content, owner=str(entry["owner"]), group=str(entry["group"]), mode=str(entry["mode"]),
        directory_mode=str(entry["directory_mode"]), validate=str(entry.get("validate") or ""), restart=bool(entry["restart"]),
        keys=tuple(redact(name, secrets.values()) for name in key_names(data)), format=fmt,
    )


def _parsed(text: str, fmt: str, label: str) -> t.Any:
    """Return the data in *text*. Raises RenderFailure, free of the parser's own error, which quotes content."""
    problem: FormatError | None = None
    try:
        return parse(text, fmt)
    except FormatError as error:
        problem = FormatError(error.problem, error.line)
    where = f" at line {problem.line} of the result" if problem.line else ""
    raise RenderFailure(
        f"{_upper(label)} renders to invalid {_FORMAT_NAMES[fmt]}{where}: {problem.problem}.", reason="invalid_content", line=problem.line)


def _render_file(src: str, label: str, destination: str, scope: _Scope) -> str:
    source = scope.sources.get(src)
    if source is None:
        source = scope.sources[src] = _read_template(src, label, scope)
    # Added over the task's variables, in a new dict: neither name can be shadowed, and nothing is left behind in task_vars.
    variables = {
        "ansible_managed": "Ansible managed",
        **scope.task_vars,
        "template_path": src,
        "template_fullpath": str(source.path),
        "template_destpath": destination,
        "muster_agent": _untrusted(scope.agent),
        "muster_secret": _untrusted(scope.secrets),
    }
    attempt = _Attempt()
    with attempt:
        return _core_render(source, variables)
    raise explain(
        attempt.take(), Source(label, source.text), searchpath=source.searchpath, variables=scope.task_vars,
        known={"muster_secret": tuple(scope.secrets), "muster_agent": tuple(scope.agent)})


def _render_content(content: str, label: str, scope: _Scope) -> str:
    text = _plain(content)
    _check_text(text, label)
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, **_JINJA)
    environment.filters = {**environment.filters, **_own_filters()}
    attempt = _Attempt()
    with attempt:
        return environment.from_string(text).render(muster_agent=scope.agent, muster_secret=scope.secrets)
    raise explain(
        attempt.take(), Source(label, text), searchpath=(), variables={},
        known={"muster_secret": tuple(scope.secrets), "muster_agent": tuple(scope.agent)}, sandboxed=True)


def _own_filters() -> dict[str, t.Callable[..., t.Any]]:
    own: dict[str, t.Callable[..., t.Any]] = {"env_quote": env_quote, "toml_quote": toml_quote}
    return {**own, **{f"muster.agents.{name}": function for name, function in own.items()}, "to_json": json.dumps, "ansible.builtin.to_json": json.dumps}


class _Attempt:
    """Catches whatever a template or a plugin raises, so that the failure we raise afterwards carries no trace of it."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._error = error
        return True

    def take(self) -> Exception:
        """Return the error caught and forget it."""
        error, self._error = self._error, None
        return error or RuntimeError()


def _core_render(source: _Template, variables: dict[str, t.Any]) -> str:
    """Render *source* as ansible.builtin.template does, on cores with trust (2.19 and later) and without."""
    templar, text = source.templar, source.text
    trust = getattr(importlib.import_module("ansible.template"), "trust_as_template", None)
    templar.available_variables = variables
    try:
        if trust is None:
            result = templar.do_template(text, preserve_trailing_newlines=True, escape_backslashes=False, fail_on_undefined=True, overrides=_JINJA)
        else:
            result = templar.template(trust(text), escape_backslashes=False, overrides=_JINJA)
    finally:
        templar.available_variables = {}  # among which are secrets
    # A template that is one expression keeps its type on cores with trust; as a file it is text.
    return "" if result is None else _plain(result if isinstance(result, str) else str(result))


def _untrusted(value: t.Any) -> t.Any:
    """Return *value* so that core renders nothing inside it: plain on cores with trust, wrapped as unsafe on those before."""
    if hasattr(importlib.import_module("ansible.template"), "trust_as_template"):
        return value
    return importlib.import_module("ansible.utils.unsafe_proxy").wrap_var(value)


def _plain(value: t.Any) -> t.Any:
    """Return *value* rebuilt from plain types: no tags, no trust, nothing lazy. Types that JSON lacks become text."""
    if not isinstance(value, str):  # as most are; to be asked whether it is a Mapping costs a type that is new to a fork a good deal
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (list, tuple)):
            return [_plain(item) for item in value]
        if isinstance(value, (dict, t.Mapping)):
            return {_plain(key): _plain(item) for key, item in value.items()}
    return str(value).encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def _loader_of(templar: Templar) -> DataLoader:
    """Return the loader of *templar*, which knows the vault passwords. Since 2.19 it lies one level deeper."""
    loader = getattr(getattr(templar, "_engine", templar), "_loader", None)
    return loader if isinstance(loader, DataLoader) else DataLoader()


def _read_template(src: str, label: str, scope: _Scope) -> _Template:
    """Return the template *src*. Raises RenderFailure when it is missing, unreadable or not plain UTF-8."""
    stack = list(scope.task_vars.get("ansible_search_path") or ())
    problem, data, path = "", b"", Path(src)
    try:
        path = Path(scope.loader.path_dwim_relative_stack(stack, "templates", src))
        data = scope.loader._get_file_contents(str(path))[0]
    except AnsibleFileNotFound:
        problem = "was not found: put it into the templates directory of the role or beside the playbook, or give its absolute path"
    except (AnsibleError, OSError):
        problem = "could not be read: check its permissions, and the vault password if it is encrypted"
    if problem:
        raise RenderFailure(f"{_upper(label)} {problem}.")
    searchpath = _searchpath(path, scope)
    return _Template(path, _decoded(data, label), searchpath, Templar(loader=scope.loader).copy_with_new_env(searchpath=list(searchpath)))


def _decoded(data: bytes, label: str) -> str:
    line = 0
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    if line:
        raise RenderFailure(f"{_upper(label)} is not UTF-8 at line {line}: save it as UTF-8.", line=line)
    _check_text(text, label)
    return str(_plain(text))


def _check_text(text: str, label: str) -> None:
    if text.startswith(_BOM):
        raise RenderFailure(f"{_upper(label)} starts with a byte order mark, which agents take for a part of the first name: save it without.")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise RenderFailure(f"{_upper(label)} has Windows line endings at line {line}: save it with Unix line endings.", line=line)


def _searchpath(template: Path, scope: _Scope) -> tuple[str, ...]:
    """Return where includes are looked for: as ansible.builtin.template does, each place's templates directory first."""
    places = [*(scope.task_vars.get("ansible_search_path") or ()), scope.loader.get_basedir(), str(template.parent)]
    return tuple(str(path) for place in places for path in (Path(place) / "templates", Path(place)))


def _upper(label: str) -> str:
    return label[:1].upper() + label[1:]
