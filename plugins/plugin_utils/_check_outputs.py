# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results of a certificate check as others read them: a table, JSON, Prometheus, Nagios (private to muster.agents)."""

from __future__ import annotations

import json
import os
import re
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import replace_file
from ansible_collections.muster.agents.plugins.plugin_utils._check_verdict import VERDICTS
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._times import parse_time

__all__ = ["alert", "as_json", "known_before", "nagios", "prometheus", "summary", "table", "write"]

_NAGIOS = {"ok": ("OK", 0), "warning": ("WARNING", 1)}
_MAX_PERFDATA = 50
_HELP = {
    "up": "Whether a certificate was seen in the last check",
    "not_before_timestamp_seconds": "When the certificate becomes valid",
    "not_after_timestamp_seconds": "When the certificate expires; of the last one that was seen when the last check saw none",
    "chain_not_after_timestamp_seconds": "When the first certificate on the way to a trusted CA expires",
    "chain_valid": "Whether the certificate leads to a trusted CA",
    "verdict": "0 ok, 1 warning, 2 critical, 3 expired, 4 unreachable",
    "failures": "Checks in a row that saw no certificate",
    "last_success_timestamp_seconds": "When a certificate was seen last",
}
_SAMPLE = re.compile(r'muster_certificate_(\w+)\{item="((?:[^"\\]|\\.)*)",kind="[a-z]*",source="([^"]*)"\} ([0-9.e+-]+)\Z')


def summary(results: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, int]:
    """Return how many items have each verdict, and how many there are."""
    verdicts = [item["verdict"] for item in results]
    return {**{verdict: verdicts.count(verdict) for verdict in VERDICTS}, "total": len(verdicts)}


def alert(item: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what an alert about *item* carries."""
    names = ("item", "verdict", "reason", "msg", "domain", "not_after", "days_left", "issuer", "ip_addresses", "serial_number")
    return {name: item[name] for name in names}


def table(results: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return lines for people, the worst first."""
    rows = [("ITEM", "VERDICT", "DAYS", "EXPIRES", "ISSUER", "REASON")]
    for item in sorted(results, key=lambda one: (-VERDICTS.index(one["verdict"]), _days(one), one["item"])):
        days = "" if item["days_left"] is None else f"{item['days_left']:.1f}"
        rows.append((item["item"], item["verdict"], days, item["not_after"][:10], item["issuer_cn"] or item["issuer_o"], item["reason"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_visible("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()) for row in rows]


def nagios(results: t.Sequence[t.Mapping[str, t.Any]], limits: tuple[float | None, float | None]) -> dict[str, t.Any]:
    """Return the line and the exit code of a Nagios check; *limits* are the days for warning and critical."""
    counts = summary(results)
    worst = max((item["verdict"] for item in results), key=VERDICTS.index, default="ok")
    word, code = _NAGIOS.get(worst, ("CRITICAL", 2))
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]) or "nothing to check"
    ranked = sorted(results, key=lambda one: (-VERDICTS.index(one["verdict"]), _days(one)))
    bad = [f"{item['item']}: {item['msg']}" for item in ranked if item["verdict"] != "ok"][:3]
    bounds = ";".join("" if limit is None else f"{limit:g}" for limit in limits)
    data = [f"'{_plain(item['item'])}'={item['days_left']};{bounds}" for item in ranked if item["days_left"] is not None][:_MAX_PERFDATA]
    line = f"CERTIFICATES {word} - {told}" + ("" if not bad else f" - {_plain(' '.join(bad))}")
    return {"line": line + (f" | {' '.join(data)}" if data else ""), "code": code}


def prometheus(results: t.Sequence[t.Mapping[str, t.Any]], now: float) -> str:
    """Return the textfile for node_exporter. A failed check keeps the dates of the last certificate that was seen, and says so by ``up`` 0."""
    lines = []
    for name, words in _HELP.items():
        samples = [(item, _value(name, item)) for item in results]
        if any(value is not None for _item, value in samples):
            lines += [f"# HELP muster_certificate_{name} {words}.", f"# TYPE muster_certificate_{name} gauge"]
            lines += [f"muster_certificate_{name}{_labels(item)} {value:.15g}" for item, value in samples if value is not None]
    lines += ["# HELP muster_certificate_check_timestamp_seconds When the last check ran.", "# TYPE muster_certificate_check_timestamp_seconds gauge",
              f"muster_certificate_check_timestamp_seconds {now:.0f}"]
    return "\n".join(lines) + "\n"


def known_before(path: str) -> dict[tuple[str, str], dict[str, float]]:
    """Return what the Prometheus file at *path* knew by item and source; empty when there is none. It outlives a controller that is a container."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        sample = _SAMPLE.match(line)
        if sample is not None:
            item = re.sub(r"\\(.)", lambda match: "\n" if match.group(1) == "n" else match.group(1), sample.group(2))
            found.setdefault((item, sample.group(3)), {})[sample.group(1)] = float(sample.group(4))
    return found


def write(path: str, text: str) -> None:
    """Replace the file at *path* as a whole, readable by others, who are meant to read it. Raises HostFailure."""
    try:
        replace_file(os.path.abspath(os.path.expanduser(path)), text.encode(), mode=0o644)
    except OSError as error:
        raise HostFailure(f"{path} cannot be written on the controller ({error.strerror}): check directory and permissions.", reason="not_writable") from None


def as_json(document: t.Mapping[str, t.Any]) -> str:
    """Return *document* as JSON for people and programs: each of its ``results`` is a line, as each of its other values is."""
    lines = []
    for name, value in sorted(document.items()):
        several = name == "results" and value
        told = "[\n  " + ",\n  ".join(json.dumps(one, sort_keys=True) for one in value) + "\n ]" if several else json.dumps(value, sort_keys=True)
        lines.append(f" {json.dumps(name)}: {told}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(name: str, item: t.Mapping[str, t.Any]) -> float | None:
    before: t.Mapping[str, t.Any] = item.get("last_success") or {}
    if name == "up":
        return 1.0 if item["not_after"] else 0.0
    if name == "verdict":
        return float(VERDICTS.index(item["verdict"]))
    if name == "failures":
        return float(item["failures"])
    if name == "chain_valid":
        return float(item["chain_valid"]) if item["not_after"] else None
    if name == "last_success_timestamp_seconds":
        return parse_time(before.get("at") or "")
    field = name.removesuffix("_timestamp_seconds")
    return parse_time(item[field] or before.get(field) or "")


def _labels(item: t.Mapping[str, t.Any]) -> str:
    escaped = [(name, str(item[name]).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name in ("item", "kind", "source")]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _days(item: t.Mapping[str, t.Any]) -> float:
    return float("inf") if item["days_left"] is None else float(item["days_left"])


def _plain(text: str) -> str:
    """Return *text* without what has a meaning in a Nagios line, and without anything that is not to be seen."""
    return re.sub("[|']", " ", _visible(text))


def _visible(text: str) -> str:
    """Names in certificates are what anybody wrote there: no line breaks or control characters of theirs reach a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
