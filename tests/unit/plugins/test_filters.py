# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the quoting filters write is read back as it was, by every reader they promise."""

from __future__ import annotations

import importlib
import json
import re
import typing as t

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.filter.env_quote import FilterModule as EnvFilters
from ansible_collections.muster.agents.plugins.filter.toml_quote import FilterModule as TomlFilters
from ansible_collections.muster.agents.plugins.plugin_utils._formats import FormatError, key_names, parse, parse_env

env_quote = EnvFilters().filters()["env_quote"]
toml_quote = TomlFilters().filters()["toml_quote"]

CARRIED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, [*range(9), *range(10, 32), 127])]))
NASTY = st.text(st.sampled_from("ab '\"\\$`#={}\t;!%~é"), max_size=12)
NOT_CARRIED = st.sampled_from(["\n", "\r", "\0", "\x1b", "\x7f", "\x0b"])


def toml_loads(text: str) -> t.Any:
    try:
        return importlib.import_module("tomllib").loads(text)
    except ImportError:
        return importlib.import_module("tomli").loads(text)


class Systemd:
    """The state machine of systemd's parser of environment files (src/basic/env-file.c, version 240 and later), in our own words."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, str] = {}
        self.key = self.value = ""
        self.trailing: int | None = None
        self.state = self.pre_key
        for char in text:
            self.state = self.state(char) or self.state
        if self.state not in (self.pre_key, self.comment, self.comment_escape, self.in_key):
            self.push()

    def push(self) -> t.Any:
        end = self.value if self.trailing is None else self.value[: self.trailing]
        self.values[self.key.rstrip(" \t")] = end
        self.key = self.value = ""
        self.trailing = None
        return self.pre_key

    def pre_key(self, char: str) -> t.Any:
        if char in "#;":
            return self.comment
        if char in " \t\n\r":
            return None
        self.key = char
        return self.in_key

    def in_key(self, char: str) -> t.Any:
        if char in "\n\r":
            self.key = ""
            return self.pre_key
        if char == "=":
            return self.pre_value
        self.key += char
        return None

    def pre_value(self, char: str) -> t.Any:
        if char in "\n\r":
            return self.push()
        if char == "'":
            return self.single
        if char == '"':
            return self.double
        if char == "\\":
            return self.bare_escape
        if char not in " \t":
            self.value += char
            return self.bare
        return None

    def bare(self, char: str) -> t.Any:
        if char in "\n\r":
            return self.push()
        if char == "\\":
            self.trailing = None
            return self.bare_escape
        if char not in " \t":
            self.trailing = None
        elif self.trailing is None:
            self.trailing = len(self.value)
        self.value += char
        return None

    def bare_escape(self, char: str) -> t.Any:
        if char not in "\n\r":
            self.value += char
        return self.bare

    def single(self, char: str) -> t.Any:
        if char == "'":
            return self.pre_value
        self.value += char
        return None

    def double(self, char: str) -> t.Any:
        if char == '"':
            return self.pre_value
        if char == "\\":
            return self.double_escape
        self.value += char
        return None

    def double_escape(self, char: str) -> t.Any:
        if char in '"\\`$':
            self.value += char
        elif char != "\n":
            self.value += "\\" + char
        return self.double

    def comment(self, char: str) -> t.Any:
        return self.comment_escape if char == "\\" else self.pre_key if char in "\n\r" else None

    def comment_escape(self, _char: str) -> t.Any:
        return self.comment


def dotenvy(line: str) -> str:
    """Return the value of one line as the Rust library dotenvy reads it, in our own words. Raises ValueError where it would."""
    out, state, escaped, ending = "", "", False, False
    for char in line.partition("=")[2]:
        if ending:
            if char in " \t":
                continue
            if char == "#":
                break
            raise ValueError("text after the value")
        if escaped:
            if char not in "\\'\"$ n":
                raise ValueError("unknown escape")
            out, escaped = out + ("\n" if char == "n" else char), False
        elif state == "'":
            state, out = ("", out) if char == "'" else ("'", out + char)
        elif char == "$":
            raise ValueError("a substitution")
        elif char == "\\":
            escaped = True
        elif state == '"':
            state, out = ("", out) if char == '"' else ('"', out + char)
        elif char in "'\"":
            state = char
        elif char in " \t":
            ending = True
        else:
            out += char
    if state or escaped:
        raise ValueError("unterminated")
    return out


def python_dotenv(line: str) -> str:
    """Return the value of one line as python-dotenv reads it with interpolation off, in our own words."""
    raw = line.partition("=")[2]
    for quote, escapes in (("'", r"\\([\\'])"), ('"', r"\\([\\'\"])")):
        if raw.startswith(quote):
            found = re.match(f"{quote}((?:\\\\{quote}|[^{quote}])*){quote}[ \t]*(?:#.*)?$" if quote == "'" else r'"((?:\\"|[^"])*)"[ \t]*(?:#.*)?$', raw)
            if found is None:
                raise ValueError("not terminated")
            return re.sub(escapes, r"\1", found.group(1))
    return re.sub(r"\s+#.*", "", raw).rstrip()


@given(CARRIED | NASTY)
@example("it's $HOME")
@example("trailing\\")
@example("a\\\\b")
@example("")
@example("${X}")
def test_every_reader_reads_the_quoted_value_back(value: str) -> None:
    line = "KEY=" + env_quote(value)
    assert parse_env(line + "\n") == {"KEY": value}
    assert Systemd(f"A=1\n{line}\nB=2\n").values == {"A": "1", "KEY": value, "B": "2"}
    assert dotenvy(line) == value
    if "\\$" not in line:
        assert python_dotenv(line) == value


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), NASTY), unique_by=lambda pair: pair[0]))
def test_a_whole_environment_file_is_read_back_in_order(pairs: list[tuple[str, str]]) -> None:
    text = "# head\n\n" + "".join(f"{key}={env_quote(value)}\n" for key, value in pairs)
    assert list(parse_env(text).items()) == pairs
    assert Systemd(text).values == dict(pairs)


@given(st.text(st.sampled_from("Ab=1 '\"\\$`#\n\t;"), max_size=30))
def test_what_the_strict_parser_accepts_systemd_and_dotenvy_read_the_same(text: str) -> None:
    try:
        values = parse_env(text)
    except FormatError:
        return
    assert Systemd(text + "\n").values == values
    lines = [line for line in text.split("\n") if line.strip(" \t") and not line.strip(" \t").startswith("#")]
    assert [dotenvy(line) for line in lines] == list(values.values())


@given(CARRIED, NOT_CARRIED, CARRIED)
def test_line_breaks_and_control_characters_are_refused_without_quoting_them(before: str, char: str, after: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        env_quote(before + char + after)
    assert str(caught.value) == (
        "env_quote: the value holds a line break, a NUL or another control character, which an environment file cannot carry; "
        "encode it first, for example with b64encode.")


@pytest.mark.parametrize(("value", "written"), [
    (5, "5"), (1.5, "1.5"), (True, "true"), (False, "false"), ("plain-value_1.2/3:4@5%", "plain-value_1.2/3:4@5%"), ("a b", "'a b'"), ("it's", '"it\'s"'),
])
def test_plain_values_are_written_plainly(value: object, written: str) -> None:
    assert env_quote(value) == written


@pytest.mark.parametrize("value", [None, ["s3cret"], {"k": "s3cret"}, "\ud800"])
def test_what_is_no_text_is_refused_by_env_quote(value: object) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^env_quote: ") as caught:
        env_quote(value)
    assert "s3cret" not in str(caught.value)


TOML_VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"])) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(TOML_VALUES)
@example("\x00\x1f\x7f\n\"\\")
@example(1e16)
def test_toml_reads_the_quoted_value_back(value: t.Any) -> None:
    read = toml_loads(f"key = {toml_quote(value)}\n")["key"]
    assert read == value
    assert json.dumps(read) == json.dumps(value)


def test_toml_nan_is_written_as_toml_has_it() -> None:
    assert toml_quote(float("nan")) == "nan"


@pytest.mark.parametrize("value", [None, {"k": "s3cret"}, [None], 2**63, "s3cret\ud800"])
def test_what_toml_lacks_is_refused(value: object) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^toml_quote: ") as caught:
        toml_quote(value)
    assert "s3cret" not in str(caught.value)


class _Tagged(int):
    """An integer as ansible-core hands it to filters from 2.19 on."""


def test_toml_writes_integers_of_a_subclass_at_once() -> None:
    assert toml_quote(_Tagged(5000)) == "5000"
    with pytest.raises(AnsibleFilterError, match="64 bits"):
        toml_quote(_Tagged(2**63))


@pytest.mark.parametrize(("value", "forbidden", "good"), [
    ("plain # text", '"\\', True), ('a"b', '"\\', False), ("a\\b", '"\\', False), ("a b", " '", False), ("line\nbreak", '"', False), ("", '"', True),
    (["ok", "not'ok"], "'", False), (5, "5", True)])
def test_toml_refuses_what_an_agents_own_reader_cannot_take(value: object, forbidden: str, good: bool) -> None:
    if good:
        assert toml_loads(f"key = {toml_quote(value, forbidden)}\n")["key"] == value
        return
    with pytest.raises(AnsibleFilterError, match="cannot read") as caught:
        toml_quote(value, forbidden)
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize(("text", "line", "problem"), [
    ("A=1\nB\n", 2, "neither KEY=VALUE nor a comment"),
    ("export A=1\n", 1, "not a plain variable name"),
    (" A=1\n", 1, "not a plain variable name"),
    ("A =1\n", 1, "not a plain variable name"),
    ("A= 1\n", 1, "a blank after '='"),
    ("1A=1\n", 1, "not a plain variable name"),
    ("A=1\nB=2\nA=3\n", 3, r"second time \(first at line 1\)"),
    ("A=a b\n", 1, "not quoted"),
    ("A=1 # why\n", 1, "not quoted"),
    ("A=#1\n", 1, "starts with '#'"),
    ("A=a$b\n", 1, "not quoted"),
    ("A=a\\b\n", 1, "not quoted"),
    ("A='a\n", 1, "single quotes"),
    ("A='a'b\n", 1, "single quotes"),
    ("A='a\\'\n", 1, "a backslash in single quotes"),
    ("A='a\\\\b'\n", 1, "a backslash in single quotes"),
    ('A="a\n', 1, "double quotes"),
    ('A="a$b"\n', 1, "a bare dollar"),
    ('A="a\\\\$b"\n', 1, "a bare dollar"),
    ('A="a\\nb"\n', 1, "an escape in double quotes"),
    ("A=1\r\n", 1, "Windows line endings"),
    ("# odd \\\nA=1\n", 1, "ends in a backslash"),
    ("; old style\n", 1, "neither KEY=VALUE nor a comment"),
])
def test_lines_that_readers_see_differently_are_refused(text: str, line: int, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        parse_env(text)
    assert caught.value.line == line


def test_an_environment_file_may_have_comments_blanks_and_empty_values() -> None:
    text = "# note\n\n  # indented\nA=\nB=''\nC=\"\"\nD=x#y\nE=1  \nF=\"a \\\"b\\\" \\$c \\\\\"\n"
    assert parse_env(text) == {"A": "", "B": "", "C": "", "D": "x#y", "E": "1", "F": 'a "b" $c \\'}
    assert Systemd(text).values == parse_env(text)


@pytest.mark.parametrize(("fmt", "text", "line"), [
    ("toml", "a = 1\nb = \n", 2),
    ("toml", "a = 1\na = 2\n", 2),
    ("toml", "a = [1,\n\n", 3),
    ("toml", "a = " + "9" * 5000, 1),
    ("json", '{"a": 1,\n "b": }', 2),
    ("json", '{"a": 1, "a": 2}', None),
    ("json", '{"a": NaN}', None),
    ("json", "9" * 5000, None),
    ("json", "[" * 100000, None),
    ("json", "", 1),
    ("yaml", "a: 1\nb: [1\n", 3),
    ("yaml", "a: 1\nb:\n  c: 1\n  c: 2\n", 4),
    ("yaml", "a: 1\n---\nb: 2\n", 2),
    ("yaml", "a: 1\nb: \x07\n", 2),
    ("yaml", "a: !!python/object:os.system x\n", 1),
    ("yaml", "a: 2026-99-99\n", None),
    ("yaml", "[" * 5000, None),
])
def test_invalid_documents_are_named_by_line(fmt: str, text: str, line: int | None) -> None:
    with pytest.raises(FormatError) as caught:
        parse(text, fmt)
    assert caught.value.line == line


@pytest.mark.parametrize(("fmt", "text", "names"), [
    ("env", "A=1\nB=2\n", ("A", "B")),
    ("toml", "top = 1\n[a]\nb = 1\nc = {d = 1}\n[e]\n", ("top", "a.b", "a.c", "e")),
    ("json", '{"a": {"b": {"c": 1}}, "d": [1]}', ("a.b", "d")),
    ("yaml", "base: &b {x: 1}\nreal:\n  <<: *b\n  x: 2\n1: y\n", ("base.x", "real.x", "1")),
    ("yaml", "- a\n- b\n", ()),
    ("yaml", "", ()),
    ("text", "A=1\n", ()),
])
def test_keys_are_named_down_to_the_second_level(fmt: str, text: str, names: tuple[str, ...]) -> None:
    assert key_names(parse(text, fmt)) == names


def test_a_yaml_document_that_contains_itself_is_walked_once() -> None:
    assert key_names(parse("&a\nself: *a\n", "yaml")) == ("self.self",)


def test_the_filters_document_themselves() -> None:
    for name in ("env_quote", "toml_quote"):
        module = importlib.import_module(f"ansible_collections.muster.agents.plugins.filter.{name}")
        assert yaml.safe_load(module.DOCUMENTATION)["name"] == name
        assert yaml.safe_load(module.EXAMPLES)
        assert yaml.safe_load(module.RETURN)["_value"]["type"] == "str"
