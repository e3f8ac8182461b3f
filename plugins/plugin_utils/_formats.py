# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The formats that agents read their configuration in: quoting a value, checking a file, naming its keys (private to muster.agents).

``env`` is what systemd's ``EnvironmentFile=`` (systemd.exec(5)) and the dotenv libraries of Rust (dotenvy) and Python (python-dotenv)
read *alike*. Each of them accepts more, and reads it differently from the others; such lines are refused rather than guessed.
Nothing in this file puts content into an error: only line numbers and fixed phrases.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import typing as t

import yaml
from jinja2 import Undefined

from ansible_collections.muster.agents.plugins.plugin_utils._errors import MissingLibrary

__all__ = ["FORMATS", "FormatError", "QuotingError", "env_quote", "key_names", "parse", "parse_env", "toml_quote"]

FORMATS = ("text", "env", "toml", "json", "yaml")

_ENV_BARE = re.compile(r"[A-Za-z0-9_@%+:,./=-]*\Z")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SPACE = re.compile(r"\s")
_QUOTING = re.compile(r"['\"\\$`]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOML_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_TOML_INT = range(-(2**63), 2**63)


class FormatError(Exception):
    """The text is not valid in its format. *line* counts from 1, None when the parser does not tell; *problem* never quotes content."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(f"{problem} at line {line}" if line else problem)
        self.problem = problem
        self.line = line


class QuotingError(Exception):
    """The value cannot be written in the format; the message never quotes the value."""


def env_quote(value: object) -> str:
    """Return *value* (text, number or boolean) as the right side of ``KEY=`` in a file read by systemd and dotenv libraries.

    Booleans become ``true`` and ``false``. Raises QuotingError for anything that systemd drops or that the readers see differently:
    line breaks, NUL and other control characters, null, lists and mappings.
    """
    text = _env_text(value)
    if _CONTROL.search(text):
        raise QuotingError(
            "env_quote: the value holds a line break, a NUL or another control character, which an environment file cannot carry; "
            "encode it first, for example with b64encode.")
    if _SURROGATE.search(text):
        raise QuotingError("env_quote: the value is not valid Unicode, which an environment file must be.")
    if _ENV_BARE.match(text):
        return text
    if "'" not in text and "\\\\" not in text and not text.endswith("\\"):
        return f"'{text}'"
    # A backtick needs no escape for these readers, and dotenvy refuses an escaped one.
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'


def _env_text(value: object) -> str:
    _require_defined(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise QuotingError("env_quote: the value is not text, a number or a boolean; choose one, or encode it first, for example with to_json.")


def toml_quote(value: object, forbidden: str = "") -> str:
    """Return *value* as a TOML 1.0 value: a basic string with its quotes, a boolean, an integer, a float, or an array of these.

    *forbidden* are characters that the agent's own reader does not take in a string, such as those that need an escape.
    Raises QuotingError for these, for null and mappings, which have no inline form that agents agree on, and for integers beyond 64 bits.
    """
    _require_defined(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if set(value) & set(forbidden) or (forbidden and _CONTROL.search(value)):
            raise QuotingError("toml_quote: the value holds a character that the agent cannot read there; choose another value.")
        return _toml_string(value)
    if isinstance(value, int):
        plain = int(value)
        if plain not in _TOML_INT:  # a subclass, such as core's tagged integers, would be looked for one number after the other
            raise QuotingError("toml_quote: the integer does not fit into the 64 bits that TOML has.")
        return str(plain)
    if isinstance(value, float):
        return _toml_float(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_quote(item, forbidden) for item in value) + "]"
    raise QuotingError("toml_quote: the value is not text, a boolean, a number or a list of these; TOML has no null, and tables are written as tables.")


def _require_defined(value: object) -> None:
    """Let an undefined template value raise its own error, which names it. Older cores hand such values to filters."""
    if isinstance(value, Undefined):
        str(value)


def _toml_string(value: str) -> str:
    if _SURROGATE.search(value):
        raise QuotingError("toml_quote: the value is not valid Unicode, which TOML must be.")
    return '"' + "".join(_TOML_SHORT.get(char) or (f"\\u{ord(char):04X}" if _CONTROL.match(char) else char) for char in value) + '"'


def _toml_float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(float(value))


def parse(text: str, fmt: str) -> t.Any:
    """Return *text* as data: a dict for ``env``, whatever the document holds for ``toml``, ``json`` and ``yaml``, None for ``text``.

    Raises FormatError when it is not valid, and MissingLibrary when Python is older than 3.11 and lacks tomli.
    """
    try:
        return _PARSERS[fmt](text)
    except RecursionError:
        pass
    raise FormatError("it is nested too deeply")


def parse_env(text: str) -> dict[str, str]:
    """Return the variables of an environment file. Raises FormatError for what systemd and dotenv libraries do not read alike."""
    values: dict[str, str] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if _CONTROL.search(line):
            raise FormatError("a control character (Windows line endings have one too)", number)
        key, value = _env_line(line, number)
        if not key:
            continue
        if key in seen:
            raise FormatError(f"a variable is set a second time (first at line {seen[key]})", number)
        seen[key] = number
        values[key] = value
    return values


def _env_line(line: str, number: int) -> tuple[str, str]:
    """Return the variable and value of one line, two empty strings for a blank or a comment."""
    stripped = line.strip(" \t")
    if not stripped:
        return "", ""
    if stripped.startswith("#"):
        if stripped.endswith("\\"):
            raise FormatError("a comment ends in a backslash, which makes systemd skip the next line", number)
        return "", ""
    key, equals, rest = line.partition("=")
    if not equals:
        raise FormatError("neither KEY=VALUE nor a comment", number)
    if not _ENV_KEY.match(key):
        raise FormatError("the name before '=' is not a plain variable name (letters, digits, underscores, no blanks)", number)
    if rest[:1] in (" ", "\t"):
        raise FormatError("a blank after '='", number)
    return key, _env_value(rest.rstrip(" \t"), number)


def _env_value(raw: str, number: int) -> str:
    if raw[:1] == "'":
        return _env_single_quoted(raw, number)
    if raw[:1] == '"':
        return _env_double_quoted(raw, number)
    if raw[:1] == "#":
        raise FormatError("a value starts with '#': quote it, for example with the filter env_quote", number)
    if _SPACE.search(raw):
        raise FormatError("a value with blanks, or a comment after it, is not quoted: quote it, for example with the filter env_quote", number)
    if _QUOTING.search(raw):
        raise FormatError("a value with a quote, backslash, dollar or backtick is not quoted: use the filter env_quote", number)
    return raw


def _env_single_quoted(raw: str, number: int) -> str:
    inner = raw[1:-1]
    if len(raw) < 2 or raw[-1] != "'" or "'" in inner:
        raise FormatError("single quotes that do not enclose the whole value", number)
    if "\\\\" in inner or inner.endswith("\\"):
        raise FormatError("a backslash in single quotes that not all readers take literally: use the filter env_quote", number)
    return inner


def _env_double_quoted(raw: str, number: int) -> str:
    match = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', raw)
    if match is None:
        raise FormatError("double quotes that do not enclose the whole value", number)
    inner = match.group(1)
    if re.search(r'\\[^\\"$]', re.sub(r"\\\\", "", inner)):
        raise FormatError("an escape in double quotes other than \\\\, \\\" and \\$: use the filter env_quote", number)
    if re.search(r"(?<!\\)\$", re.sub(r"\\\\", "", inner)):
        raise FormatError("a bare dollar in double quotes, which dotenv libraries expand: use the filter env_quote", number)
    return re.sub(r'\\([\\"$])', r"\1", inner)


def _parse_toml(text: str) -> t.Any:
    library = _toml_library()
    try:
        return library.loads(text)
    except ValueError as error:  # TOMLDecodeError is one; an integer of thousands of digits raises a plain one
        found = re.search(r"at line (\d+)", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1
    raise FormatError("a syntax error", line)


def _toml_library() -> t.Any:
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingLibrary("format: toml needs Python 3.11 or the library tomli on the controller: run 'pip install tomli'.")


def _parse_json(text: str) -> t.Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError as error:  # JSONDecodeError is one; an integer of thousands of digits raises a plain one
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
    raise FormatError("a syntax error", line)


def _unique(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("a key appears twice in one object")
    return result


def _no_constant(_name: str) -> t.NoReturn:
    raise FormatError("NaN or Infinity, which JSON does not have")


def _parse_yaml(text: str) -> t.Any:
    line: int | None = None
    try:
        return _load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
    except (ValueError, TypeError, OverflowError):  # a date, number or key that YAML's own types cannot hold
        line = None
    raise FormatError("a syntax error", line)


def _load_yaml(text: str) -> t.Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_repeated_keys(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node, visited: set[int]) -> None:
    """Raise FormatError for a key written twice in one mapping, of which PyYAML would silently take the last."""
    if id(node) in visited:  # an alias, or a document that contains itself
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, visited)
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise FormatError("a key appears twice in one mapping", key.start_mark.line + 1)
                seen.add((key.tag, key.value))
            _refuse_repeated_keys(value, visited)


def _parse_text(_text: str) -> None:
    return None


_PARSERS: t.Mapping[str, t.Callable[[str], t.Any]] = {
    "text": _parse_text, "env": parse_env, "toml": _parse_toml, "json": _parse_json, "yaml": _parse_yaml,
}


def key_names(data: t.Any) -> tuple[str, ...]:
    """Return the names of the keys of parsed *data* in their order: the first level, and the second as ``first.second``."""
    if not isinstance(data, t.Mapping):
        return ()
    names: list[str] = []
    for key, value in data.items():
        if isinstance(value, t.Mapping) and value:
            names.extend(f"{key}.{inner}" for inner in value)
        else:
            names.append(str(key))
    return tuple(names)
