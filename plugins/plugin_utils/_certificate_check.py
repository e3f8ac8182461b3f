# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One task that checks certificates in files and at servers, from the controller or from the host (private to muster.agents).

Looking is done by the same code on both: here directly, on the host inside the module cert_probe. Judging is done here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import time
import typing as t
from dataclasses import asdict, dataclass, replace

from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils import _certificate_files as files
from ansible_collections.muster.agents.plugins.module_utils._certificate_files import FileSource, Reading
from ansible_collections.muster.agents.plugins.module_utils._tls_probe import DEFAULT_PORTS, Sight, Target, probe
from ansible_collections.muster.agents.plugins.plugin_utils import _check_details, _check_outputs, _check_revocation
from ansible_collections.muster.agents.plugins.plugin_utils._check_chain import Authorities
from ansible_collections.muster.agents.plugins.plugin_utils._check_details import Certificate, load, quiet
from ansible_collections.muster.agents.plugins.plugin_utils._check_revocation import Revocation, Status
from ansible_collections.muster.agents.plugins.plugin_utils._check_verdict import VERDICTS, Context, Item, Look, Pin, Seen, judge, look_at
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure, InvalidInput, MissingLibrary
from ansible_collections.muster.agents.plugins.plugin_utils._options import secret_option
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument, state_directory
from ansible_collections.muster.agents.plugins.plugin_utils._thresholds import Thresholds
from ansible_collections.muster.agents.plugins.plugin_utils._times import iso

__all__ = ["PROBE", "check", "spelled_out"]

PROBE = "muster.agents.cert_probe"
_HTTPS = 443
_KEEP_SECONDS = 90 * 86400  # how long an item that is checked no more is remembered
_REMEMBERED = ("not_before", "not_after", "chain_not_after", "fingerprint_sha256", "issuer")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]+))(?::(?P<port>[0-9]{1,5}))?\Z")


@dataclass(frozen=True)
class _Job:
    """One item with the orders to look at it; *compare* is the file that an endpoint should serve."""

    item: Item
    target: Target | None = None
    source: FileSource | None = None
    compare: FileSource | None = None


def spelled_out(args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the task's arguments with the short forms written out: a file's path, and an endpoint as host:port. Raises InvalidInput."""
    given = dict(args)
    for option, key in (("files", "path"), ("endpoints", "host")):
        items = given.get(option)
        if isinstance(items, str):
            items = [items]
        if isinstance(items, list):
            given[option] = [{key: item} if isinstance(item, str) else item for item in items]
    return given


def check(action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    """Look, judge, remember, write. Returns the task result; ``failed`` is set when a verdict is among those to fail on.

    Raises InvalidInput for options that cannot be right, MissingLibrary, and HostFailure when the host could not look or a file not be written.
    """
    if _check_details.IMPORT_ERROR or (args["revocation"] and _check_revocation.IMPORT_ERROR):
        raise MissingLibrary("cert_check needs the Python libraries cryptography and requests on the controller: install them there.")
    now = time.time()
    context = Context(
        Authorities.of(args["ca_certs"]), Thresholds.of(args), now, frozenset(args["ignore"]), tuple(_certificates_of(args["intermediates"])))
    passphrase = _passphrase(args)
    jobs = [*_endpoint_jobs(args, passphrase), *_file_jobs(args, passphrase)]
    if not jobs and not args["directories"]:
        raise InvalidInput("There is nothing to check: give files, directories or endpoints.")
    jobs, seen = _look_on_host(action, args, task_vars, jobs) if args["from"] == "host" else _look_here(args, jobs, passphrase)
    source = "controller" if args["from"] == "controller" else str(task_vars.get("inventory_hostname", "host"))
    with quiet():
        results = [{**result, "source": source} for result in _judged(jobs, seen, context, args)]
    remembered = _remembered(results, args, now, check_mode=check_mode)
    return _reported(remembered, args, now, check_mode=check_mode)


# -- what to look at


def _endpoint_jobs(args: t.Mapping[str, t.Any], passphrase: str) -> t.Iterator[_Job]:
    for given in args["endpoints"]:
        host, port = _host_and_port(given)
        server_name = given["server_name"] or host
        client_cert = given["client_cert"] or args["client_cert"] or ""
        target = Target(
            host, port, server_name=server_name, address=given["address"] or "", starttls=given["starttls"] or "", client_cert=client_cert,
            client_key=given["client_key"] or args["client_key"] or "", all_addresses=args["all_addresses"], staple="ocsp" in args["revocation"],
            passphrase=passphrase, passphrase_file=args["passphrase_file"] or "" if args["from"] == "host" else "")
        label = given["name"] or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        item = Item(
            label, "endpoint", domain=server_name, port=port, host_name=server_name if given["check_hostname"] else "", purpose="server",
            check_chain=_either(given["check_chain"], args["check_chain"]), pin=Pin.parse(given["pin_sha256"] or "", label), file=given["file"] or "")
        yield _Job(item, target=target, compare=FileSource(item.file) if item.file else None)


def _file_jobs(args: t.Mapping[str, t.Any], passphrase: str) -> t.Iterator[_Job]:
    for given in args["files"]:
        source = FileSource(
            given["path"], key_path=given["key"] or "", passphrase=passphrase,
            passphrase_file=args["passphrase_file"] or "" if args["from"] == "host" else "")
        yield _file_job(source, args, given)


def _file_job(source: FileSource, args: t.Mapping[str, t.Any], given: t.Mapping[str, t.Any]) -> _Job:
    label = given.get("name") or source.path
    item = Item(
        label, "file", domain=given.get("hostname") or "", path=source.path, host_name=given.get("hostname") or "",
        check_chain=_either(given.get("check_chain"), args["check_chain"]), pin=Pin.parse(given.get("pin_sha256") or "", label),
        purpose=given.get("purpose") or "")
    return _Job(item, source=source)


def _host_and_port(given: t.Mapping[str, t.Any]) -> tuple[str, int]:
    """Return host and port out of an endpoint's *host*, which may carry the port, and *port*. Raises InvalidInput."""
    text = given["host"].strip()
    default = DEFAULT_PORTS.get(given["starttls"] or "", _HTTPS)
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(text)), given["port"] or default
    found = _ENDPOINT.match(text)
    if found is None:
        raise InvalidInput(f"endpoints: {text!r} is no endpoint: write it as host, host:port or [address]:port.")
    port = int(found["port"]) if found["port"] else given["port"] or default
    if not 0 < port < 65536:
        raise InvalidInput(f"endpoints: {text!r} has no port that exists: give one from 1 to 65535.")
    return (found["v6"] or found["host"]), port


def _either(own: bool | None, common: bool) -> bool:
    return common if own is None else own


def _passphrase(args: t.Mapping[str, t.Any]) -> str:
    """Return the passphrase for keys and PKCS#12 files that are read here. On a host it is read from a file there, so that none is sent."""
    if args["from"] == "host":
        if args["passphrase"] is not None:
            raise InvalidInput("passphrase cannot be used with from: host, since it would be sent there: put it into a file on the host and name that "
                               "with passphrase_file.")
        return ""
    secret = secret_option(args, "passphrase")
    return secret.reveal() if secret is not None else ""


def _certificates_of(paths: t.Sequence[str]) -> t.Iterator[Certificate]:
    for path in paths:
        reading = files.read(FileSource(path))
        if reading.reason != "ok":
            raise InvalidInput(f"intermediates: {path} gives no certificate: {reading.msg}.")
        yield from (one for one in map(load, reading.chain) if isinstance(one, Certificate))


# -- looking


def _look_here(args: t.Mapping[str, t.Any], jobs: t.Sequence[_Job], passphrase: str) -> tuple[list[_Job], list[Seen]]:
    jobs = [*jobs, *(_file_job(replace(source, passphrase=passphrase), args, {}) for source in files.expand(args["directories"], args["patterns"]))]
    sights = probe([job.target for job in jobs if job.target], timeout=args["timeout"], retries=args["retries"], concurrency=args["concurrency"])
    return _matched(jobs, iter(sights), map(files.read, _sources(jobs)))


def _look_on_host(
    action: ActionBase, args: t.Mapping[str, t.Any], task_vars: t.Mapping[str, t.Any], jobs: t.Sequence[_Job],
) -> tuple[list[_Job], list[Seen]]:
    """Have the host look. Raises HostFailure."""
    orders = {
        "targets": [_order(job.target) for job in jobs if job.target], "files": [_order(source) for source in _sources(jobs)],
        "directories": args["directories"], "patterns": args["patterns"], "timeout": args["timeout"], "retries": args["retries"],
        "concurrency": args["concurrency"],
    }
    answer = action._execute_module(module_name=PROBE, module_args=orders, task_vars=dict(task_vars))
    if answer.get("failed") or "sights" not in answer:
        raise HostFailure(f"The host could not look: {answer.get('msg') or answer.get('module_stderr') or 'its module gave no answer'}".strip())
    found = [Reading.load(item) for item in answer["found"]]
    jobs = [*jobs, *(_file_job(FileSource(reading.path, found=True), args, {}) for reading in found)]
    readings = [*map(Reading.load, answer["readings"]), *found]
    return _matched(jobs, ([Sight.load(item) for item in items] for items in answer["sights"]), iter(readings))


def _order(given: Target | FileSource) -> dict[str, t.Any]:
    """Return what the host's module is told; the passphrase never goes there."""
    return {name: value for name, value in asdict(given).items() if name not in ("passphrase", "found")}


def _sources(jobs: t.Sequence[_Job]) -> list[FileSource]:
    return [source for job in jobs for source in (job.source or job.compare,) if source is not None]


def _matched(jobs: t.Sequence[_Job], sights: t.Iterator[list[Sight]], readings: t.Iterator[Reading]) -> tuple[list[_Job], list[Seen]]:
    """Give each job what was seen for it; files out of directories that are no certificates are left out."""
    kept, seen = [], []
    for job in jobs:
        shown = tuple(next(sights)) if job.target else ()
        reading = next(readings) if job.source or job.compare else None
        if job.source is not None and job.source.found and reading is not None and reading.reason in ("no_certificate", "empty"):
            continue
        kept.append(job)
        seen.append(Seen(shown, reading if job.source else None, reading if job.compare else None))
    return kept, seen


# -- judging


def _judged(jobs: t.Sequence[_Job], seen: t.Sequence[Seen], context: Context, args: t.Mapping[str, t.Any]) -> t.Iterator[dict[str, t.Any]]:
    """Return a result for each job. Intermediate certificates that other servers of the task send are known for all of them."""
    everything = {one.sha256: one for sighted in seen for one in _intermediates(sighted)}
    context = replace(context, known=(*context.known, *everything.values()))
    looks = [look_at(job.item, sighted, context) for job, sighted in zip(jobs, seen)]
    answers = _answers([look for group in looks for look in group], context, args)
    return (judge(job.item, sighted, group, answers, context) for job, sighted, group in zip(jobs, seen, looks))


def _intermediates(seen: Seen) -> t.Iterator[Certificate]:
    chains = {sight.chain for sight in seen.sights if len(sight.chain) > 1}
    for chain in chains:
        yield from (one for one in map(load, chain[1:]) if isinstance(one, Certificate) and not one.self_issued)


def _answers(looks: t.Sequence[Look], context: Context, args: t.Mapping[str, t.Any]) -> dict[tuple[bytes, ...], dict[str, Status]]:
    questions = {look.key: look.question for look in looks if look.question is not None}
    asked = Revocation(args["revocation"], args["crls"], args["timeout"], context.now).ask(list(questions.values()))
    answers = dict(zip(questions, asked))
    for look in looks:
        if look.question is None and isinstance(look.leaf, Certificate):
            answers[look.key] = {way: Status("unavailable", "its issuer is not known") for way in args["revocation"]}
    return answers


# -- remembering and telling


def _remembered(results: t.Sequence[dict[str, t.Any]], args: t.Mapping[str, t.Any], now: float, *, check_mode: bool) -> list[dict[str, t.Any]]:
    """Add to each result how long it has been failing and when a certificate was seen last, from the controller's memory and the Prometheus file."""
    before = _check_outputs.known_before(args["prometheus_file"]) if args["prometheus_file"] else {}
    document = SharedDocument(state_directory("checks") if args["remember"] else "", "cert_check")
    done = []
    with document.held() as memory:
        items = memory if not check_mode else dict(memory)
        for result in results:
            key = f"{result['source']} {result['item']}"
            entry = _entry(result, items.get(key) or _from_metrics(before.get((result["item"], result["source"]))), now)
            items[key] = entry
            done.append({**result, **{name: entry[name] for name in ("failures", "failing_since", "last_success")}})
        for key in [key for key, entry in items.items() if now - entry["at"] > _KEEP_SECONDS]:
            del items[key]
    return done


def _entry(result: t.Mapping[str, t.Any], old: t.Mapping[str, t.Any], now: float) -> dict[str, t.Any]:
    if result["not_after"]:
        success = {"at": iso(now), **{name: result[name] for name in _REMEMBERED}}
        return {"at": now, "failures": 0, "failing_since": "", "last_success": success}
    return {"at": now, "failures": int(old.get("failures", 0)) + 1, "failing_since": old.get("failing_since") or iso(now),
            "last_success": old.get("last_success")}


def _from_metrics(known: t.Mapping[str, float] | None) -> dict[str, t.Any]:
    """Return what an earlier run's metrics still tell of an item that the memory has lost."""
    if not known or "last_success_timestamp_seconds" not in known:
        return {"failures": (known or {}).get("failures", 0)}
    dates = {name: iso(known[f"{name}_timestamp_seconds"]) for name in ("not_before", "not_after", "chain_not_after") if f"{name}_timestamp_seconds" in known}
    success = {**dict.fromkeys(_REMEMBERED, ""), "at": iso(known["last_success_timestamp_seconds"]), **dates}
    return {"failures": known.get("failures", 0), "last_success": success}


def _reported(results: list[dict[str, t.Any]], args: t.Mapping[str, t.Any], now: float, *, check_mode: bool) -> dict[str, t.Any]:
    counts = _check_outputs.summary(results)
    worst = max(results, key=lambda item: VERDICTS.index(item["verdict"]), default=None)
    verdict = worst["verdict"] if worst is not None else "ok"
    limits = Thresholds.of(args)
    report = {
        "changed": False, "verdict": verdict, "reason": worst["reason"] if worst is not None else "ok", "checked_at": iso(now), "summary": counts,
        "results": results, "alerts": [_check_outputs.alert(item) for item in results if item["verdict"] != "ok"], "table": _check_outputs.table(results),
        "nagios": _check_outputs.nagios(results, (limits.warning_days, limits.critical_days)),
    }
    told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name]) or "nothing was found"
    report["msg"] = f"{counts['total']} checked: {told}." + (f" {worst['item']}: {worst['msg']}" if worst is not None and verdict != "ok" else "")
    if not check_mode:
        if args["json_file"]:
            _check_outputs.write(args["json_file"], _check_outputs.as_json({name: report[name] for name in ("checked_at", "verdict", "summary", "results")}))
        if args["prometheus_file"]:
            _check_outputs.write(args["prometheus_file"], _check_outputs.prometheus(results, now))
    bad = [item for item in results if item["verdict"] in args["fail_on"]]
    return {**report, "failed": True} if bad else report
