# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a diff may show of a file that holds secrets (private to muster.agents).

A secret rarely stands in a file as it is: quoting, JSON or YAML escapes, base64 and percent-encoding change it. The view replaces every
form that it knows, then reads its own result back through the decoders that a reader would use. If a secret shows up in any of them, the
view falls back to key names: showing too little is the safe side.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import shlex
import typing as t
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from ansible_collections.muster.agents.plugins.module_utils._secrets import REDACTED, Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils._formats import FormatError, QuotingError, env_quote, key_names, parse, toml_quote

__all__ = ["redacted_view", "unmanaged_view"]

_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
# The second line is YAML's alone; its escaped line break joins two lines.
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0",
    "a": "\a", "v": "\v", "e": "\x1b", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029", "\n": "",
}
_ENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_LONG_LINE = 16


def redacted_view(content: bytes, fmt: str, secrets: t.Mapping[str, Secret], generation: int | None = None) -> str:
    """Return the file's text with each of *secrets* replaced by ``<generation N>``, or ``<secret>`` when *generation* is None.

    *content* is a file that this collection rendered, in format *fmt*. Where a secret is hidden in an encoding that cannot be cut out, only
    the key names are shown.
    """
    placeholder = REDACTED if generation is None else f"<generation {generation}>"
    values = _fragments(secrets.values())
    text = content.decode("utf-8", "replace")
    view = _cut_base64(_cut_forms(text, values, placeholder), values, placeholder)
    if _shows(view, values) or _shows(_leaves(view, fmt), values):
        return unmanaged_view(content, fmt, secrets)
    return view


def unmanaged_view(content: bytes, fmt: str, secrets: t.Mapping[str, Secret] | None = None) -> str:
    """Return the names of the keys in *content*, one a line, and how many lines it has: for a file that somebody else wrote.

    No value is shown, whatever the file holds; without a format that has keys, or when it cannot be read safely, only the line count is.
    """
    text = content.decode("utf-8", "replace")
    names = [] if "\ufffd" in text else list(_names(text, fmt))
    values = _fragments((secrets or {}).values())
    shown = [name for name in names if name.isprintable() and not _shows(name, values)]
    count = len(text.splitlines())
    return "".join(f"{name}\n" for name in shown) + f"({count} {'line' if count == 1 else 'lines'}; values are not shown)\n"


def _names(text: str, fmt: str) -> tuple[str, ...]:
    try:
        return key_names(parse(text, fmt))
    except (FormatError, MissingLibrary):
        return _lenient_env_names(text) if fmt == "env" else ()


def _lenient_env_names(text: str) -> tuple[str, ...]:
    """Return the variables of an environment file written by somebody else, none when a line might continue another one's value."""
    names: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        match = _ENV_LINE.fullmatch(line)
        if match is None or not _closed(match.group(2)):
            return ()
        names.append(match.group(1))
    return tuple(dict.fromkeys(names))


def _closed(value: str) -> bool:
    """Tell whether *value* ends on its own line: no open quote, no continuation."""
    plain = re.sub(r"\\.", "", value)
    return plain.count('"') % 2 == 0 and plain.count("'") % 2 == 0 and not plain.endswith("\\")


def _fragments(secrets: t.Iterable[Secret]) -> list[str]:
    """Return what must not be shown: each secret, and the long lines of one with several lines (which formats indent). Longest first."""
    plain = {secret.reveal() for secret in secrets}
    lines = {line.strip() for value in plain if "\n" in value for line in value.splitlines() if len(line.strip()) >= _LONG_LINE}
    return sorted({value for value in plain | lines | {value.strip() for value in plain} if value}, key=len, reverse=True)


def _forms(value: str) -> set[str]:
    """Return the ways in which *value* is commonly written inside a file, itself included."""
    forms = {
        value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], value.replace("'", "''"), value.replace("'", "\\'"),
        shlex.quote(value), quote(value), quote(value, safe=""), quote_plus(value), html.escape(value), html.escape(value, quote=False),
        value.encode("utf-8", "replace").hex(),
    }
    for writer in (env_quote, toml_quote):
        try:
            forms.add(writer(value).strip("\"'"))
        except QuotingError:
            continue
    return {form for form in forms if form}


def _cut_forms(text: str, values: t.Sequence[str], placeholder: str) -> str:
    for form in sorted({form for value in values for form in _forms(value)}, key=len, reverse=True):
        text = text.replace(form, placeholder)
    return text


def _cut_base64(text: str, values: t.Sequence[str], placeholder: str) -> str:
    return _BASE64_RUN.sub(lambda run: placeholder if _in_base64(run.group(), values) else run.group(), text)


def _in_base64(run: str, values: t.Sequence[str]) -> bool:
    """Tell whether *run* is base64 (either alphabet, any alignment) of something that holds one of *values*."""
    clean = run.rstrip("=").replace("-", "+").replace("_", "/")
    for start in range(4):
        body = clean[start:]
        body = body[: len(body) - (len(body) % 4 == 1)]
        try:
            decoded = base64.b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError):
            continue
        if any(value.encode("utf-8", "replace") in decoded for value in values):
            return True
    return False


def _shows(text: str, values: t.Sequence[str]) -> bool:
    """Tell whether a reader of *text* could still find one of *values* with a decoder of everyday use."""
    readings = {text, _unescape(text), unquote(text), unquote_plus(text), html.unescape(text), text.replace("''", "'")}
    if any(value in reading for value in values for reading in readings):
        return True
    # Folded and wrapped text: the same characters with blanks between them.
    dense = {"".join(reading.split()) for reading in readings}
    return any("".join(value.split()) in reading or _in_base64_of(reading, value) for value in values if value.split() for reading in dense)


def _leaves(view: str, fmt: str) -> str:
    """Return every text in *view* as the format's own parser reads it, "" when it cannot."""
    try:
        pending: list[t.Any] = [parse(view, fmt)]
    except (FormatError, MissingLibrary):
        return ""
    texts: list[str] = []
    visited: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, (dict, list)):
            if id(value) not in visited:
                visited.add(id(value))
                pending.extend([*value, *value.values()] if isinstance(value, dict) else value)
        else:
            texts.append(str(value))
    return "\n".join(texts)


def _in_base64_of(dense: str, value: str) -> bool:
    return any(_in_base64(run.group(), [value]) for run in _BASE64_RUN.finditer(dense))


def _unescape(text: str) -> str:
    """Undo the backslash escapes that JSON, TOML, YAML and environment files share."""
    return _ESCAPE.sub(_unescaped, text)


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1) or match.group(2) or match.group(3)
    if code is None:
        return _ESCAPED.get(match.group(4), match.group(4))
    number = int(code, 16)
    return chr(number) if number < 0x110000 else ""
