# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Explains why a template failed without quoting it, its variables or its secrets (private to muster.agents).

The messages of ansible-core and Jinja2 quote template text and, on some cores, whole variables. None of them is passed on. A name is taken
from one of them only when a template in play writes exactly that name, so that a value can never pose as a name.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, TemplateError, TemplateNotFound, TemplateSyntaxError, nodes

from ansible_collections.muster.agents.plugins.plugin_utils._errors import RenderFailure
from ansible_collections.muster.agents.plugins.plugin_utils._formats import QuotingError

__all__ = ["Source", "explain"]

_UNDEFINED = (
    re.compile(r"'([^']+)' is undefined"),
    re.compile(r"has no attribute '([^']+)'"),
    re.compile(r"Mandatory variable '([^']+)'"),
)
_PLUGIN = (re.compile(r"No (?:filter|test) named '([\w.]+)'"), re.compile(r'Could not load "([\w.]+)"'))
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Source:
    """One template text and what to call it in a message: ``template env.j2`` or ``content of /opt/agent/.env``."""

    label: str
    text: str


@dataclass(frozen=True)
class _Use:
    """One name that a template writes. *owner* is the variable before the dot (``muster_secret``), "" for the variable itself."""

    source: Source
    line: int
    name: str
    owner: str = ""


def explain(
    error: BaseException,
    source: Source,
    *,
    searchpath: t.Sequence[str],
    variables: t.Mapping[str, t.Any],
    known: t.Mapping[str, tuple[str, ...]],
    sandboxed: bool = False,
) -> RenderFailure:
    """Return the failure to raise for *error*, met while rendering *source*.

    *searchpath* is where included templates lie, *variables* the task's (they may hold templates too), *known* the names that exist in
    ``muster_secret`` and ``muster_agent``. *sandboxed* says that no other variables exist.
    """
    causes = list(_causes(error))
    messages = [str(cause) for cause in causes]
    uses = [use for text in _with_includes(source, searchpath) for use in _uses(text)]
    quoting = next((cause for cause in causes if isinstance(cause, QuotingError)), None)
    if quoting is not None:
        return _failure(source, _frame_line(causes, source), str(quoting).rstrip("."))
    plugin = _written(_found(_PLUGIN, messages), {use.name for use in uses if use.owner == "|"} | set(_raw_words(source.text)))
    if plugin:
        return _failure(source, _syntax_line(causes, source) or _word_line(plugin, source), f"uses the unknown filter or test '{plugin}'", "invalid_template")
    syntax = next((cause for cause in causes if isinstance(cause, TemplateSyntaxError)), None)
    if syntax is not None:
        return _syntax(syntax, source)
    if any(isinstance(cause, TemplateNotFound) for cause in causes):
        return _failure(source, _frame_line(causes, source), "includes a template that was not found", "invalid_template")
    candidates = _found(_UNDEFINED, messages)
    if candidates or any("Undefined" in type(cause).__name__ for cause in causes):
        return _undefined(candidates, source, uses, variables, known, sandboxed)
    return _failure(source, _frame_line(causes, source), f"could not be rendered ({type(_root(error)).__name__})")


def _failure(source: Source, line: int | None, what: str, reason: str | None = None) -> RenderFailure:
    where = f" at line {line}" if line else ""
    return RenderFailure(f"{source.label[:1].upper()}{source.label[1:]}{where}: {what}.", reason=reason, line=line)


def _syntax(error: TemplateSyntaxError, source: Source) -> RenderFailure:
    if error.filename and Path(error.filename).is_absolute():
        return _failure(Source(f"template {error.filename}", ""), error.lineno or None, "is not valid Jinja2", "invalid_template")
    return _failure(source, error.lineno or None, "is not valid Jinja2", "invalid_template")


def _undefined(
    candidates: t.Sequence[str],
    source: Source,
    uses: t.Sequence[_Use],
    variables: t.Mapping[str, t.Any],
    known: t.Mapping[str, tuple[str, ...]],
    sandboxed: bool,
) -> RenderFailure:
    """Name what is undefined if a template in play writes that name, directly or in a variable that it uses."""
    for name in candidates:
        for namespace, names in known.items():
            own = [use for use in uses if use.owner == namespace and use.name == name and name not in names]
            if own:
                return _unknown_member(namespace, names, own)
        direct = [use for use in uses if use.name == name and use.owner != "|"]
        if direct:
            return _named(name, direct, sandboxed)
        through = [use for use in uses if not use.owner and name in _reachable(use.name, variables)]
        if through:
            return _failure(
                through[0].source, _only_line(through), f"the variable '{through[0].name}' uses '{name}', which is undefined", "undefined_variable")
    return _failure(source, None, "uses an undefined variable or attribute", "undefined_variable")


def _unknown_member(namespace: str, names: t.Sequence[str], own: t.Sequence[_Use]) -> RenderFailure:
    listed = ", ".join(sorted(names)) or "none"
    remedy = "; add yours under secrets" if namespace == "muster_secret" else ""
    what = f"{namespace}.{own[0].name} does not exist; known here: {listed}{remedy}"
    return _failure(own[0].source, _only_line(own), what, "unknown_secret" if namespace == "muster_secret" else "undefined_variable")


def _named(name: str, direct: t.Sequence[_Use], sandboxed: bool) -> RenderFailure:
    what = f"'{name}' is undefined"
    if sandboxed:
        what += " (what content leaves unrendered can use muster_secret and muster_agent alone; a template file given as src knows all variables)"
    return _failure(direct[0].source, _only_line(direct), what, "undefined_variable")


def _only_line(uses: t.Sequence[_Use]) -> int | None:
    """Return the line of *uses* when there is just one: a wrong line is worse than none."""
    lines = {(use.source.label, use.line) for use in uses}
    return uses[0].line if len(lines) == 1 else None


def _found(patterns: t.Sequence[re.Pattern[str]], messages: t.Sequence[str]) -> list[str]:
    found = [name for message in messages for pattern in patterns for name in pattern.findall(message)]
    return list(dict.fromkeys(found))


def _written(candidates: t.Sequence[str], names: t.Collection[str]) -> str:
    return next((name for name in candidates if name in names), "")


def _raw_words(text: str) -> list[str]:
    """Return every word after ``|`` or ``is``: what may be a filter or a test in a text that Jinja2 cannot parse."""
    return re.findall(r"(?:\||\bis\s+(?:not\s+)?)\s*([A-Za-z_][\w.]*)", text)


def _word_line(word: str, source: Source) -> int | None:
    lines = [number for number, line in enumerate(source.text.split("\n"), start=1) if word in _raw_words(line)]
    return lines[0] if len(lines) == 1 else None


def _syntax_line(causes: t.Sequence[BaseException], source: Source) -> int | None:
    for cause in causes:
        if isinstance(cause, TemplateSyntaxError) and not cause.filename and 0 < cause.lineno <= source.text.count("\n") + 1:
            return cause.lineno
    return None


def _causes(error: BaseException) -> t.Iterator[BaseException]:
    """Yield *error* and everything it came from, the outermost first. ``orig_exc`` is where older cores keep the cause."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [cause for cause in (current.__cause__, getattr(current, "orig_exc", None), current.__context__) if isinstance(cause, BaseException)]


def _root(error: BaseException) -> BaseException:
    """Return the first link of the chain of explicit causes."""
    for _step in range(_MAX_DEPTH):
        cause = error.__cause__ or getattr(error, "orig_exc", None)
        if not isinstance(cause, BaseException):
            break
        error = cause
    return error


def _frame_line(causes: t.Sequence[BaseException], source: Source) -> int | None:
    """Return the line that the outermost template frame was at, None when that frame is not certain to be in *source*."""
    for cause in causes:
        trace = cause.__traceback__
        while trace is not None:
            template = trace.tb_frame.f_globals.get("__jinja_template__")
            if template is not None:
                return _checked_line(template, trace.tb_lineno, source)
            trace = trace.tb_next
    return None


def _checked_line(template: t.Any, code_line: int, source: Source) -> int | None:
    # Variables are looked up before the first line of a template runs, and a variable's own text is a template too: in both cases
    # Jinja2 answers line 1. A line counts only when it was really reached and writes an expression.
    reached = [line for line, start in template.debug_info if start <= code_line]
    lines = source.text.split("\n")
    if template.name is not None or not reached or reached[-1] > len(lines):
        return None
    return reached[-1] if re.search(r"\{[{%]", lines[reached[-1] - 1]) else None


def _with_includes(source: Source, searchpath: t.Sequence[str]) -> list[Source]:
    """Return *source* and the templates that it includes or imports by a literal name, found in *searchpath*."""
    found, pending = [source], [source]
    labels = {source.label}
    while pending:
        for name in _included(pending.pop().text):
            path = next((Path(place) / name for place in searchpath if (Path(place) / name).is_file()), None)
            label = f"template {path}"
            if path is not None and label not in labels:
                labels.add(label)
                included = Source(label, path.read_text(encoding="utf-8", errors="replace"))
                found.append(included)
                pending.append(included)
    return found


def _included(text: str) -> list[str]:
    tree = _tree(text)
    if tree is None:
        return []
    names = [getattr(reference, "template", None) for reference in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))]
    return [name.value for name in names if isinstance(name, nodes.Const) and isinstance(name.value, str)]


def _uses(source: Source) -> list[_Use]:
    """Return the variables, attributes, literal subscripts and filters that *source* writes, with their lines."""
    tree = _tree(source.text)
    if tree is None:
        return []
    uses: list[_Use] = []
    for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Filter)):
        if isinstance(node, nodes.Name):
            uses.append(_Use(source, node.lineno, node.name))
        elif isinstance(node, nodes.Filter):
            uses.append(_Use(source, node.lineno, node.name, "|"))
        elif isinstance(node, nodes.Getattr):
            uses.append(_Use(source, node.lineno, node.attr, _owner(node.node)))
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            uses.append(_Use(source, node.lineno, node.arg.value, _owner(node.node)))
    return uses


def _owner(node: nodes.Node) -> str:
    return node.name if isinstance(node, nodes.Name) else "."


def _reachable(name: str, variables: t.Mapping[str, t.Any]) -> set[str]:
    """Return the names that the templates inside the variable *name* write, followed through further variables."""
    names: set[str] = set()
    pending = [name]
    while pending:
        for text in _templates_in(variables.get(pending.pop()), _MAX_DEPTH):
            for use in _uses(Source("", text)):
                if use.name not in names:
                    names.add(use.name)
                    pending.append(use.name)
    return names


def _templates_in(value: t.Any, depth: int) -> t.Iterator[str]:
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _templates_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _templates_in(item, depth - 1)


def _tree(text: str) -> nodes.Template | None:
    """Return the parsed template, None when it cannot be parsed with Jinja2's default delimiters."""
    try:
        # Only parsed, never rendered.
        return Environment(autoescape=True).parse(text)
    except TemplateError:
        return None
