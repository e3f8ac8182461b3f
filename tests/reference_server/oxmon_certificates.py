# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""oxmon's certificate monitor: domains, checks, ``certificate_details``, and the rule that raises alerts on expiry.

As documented, every address of a domain is tried, with backoff, and failures are stored too. As shipped, the first address that answers is
checked once, details are collected by a second handshake that verifies, and one alert silences all domains for a day.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, NameOID

from .core import Answer, Call, RefusalError, Route, Shared
from .oxmon_body import Field, json_object

CHECKER = "cert-checker"
DOCUMENTED_TIMEOUT, SHIPPED_TIMEOUT = 5.0, 10.0
DOCUMENTED_INTERVAL, SHIPPED_INTERVAL = 3600, 86400
BACKOFF = (0.05, 0.1)
SILENCE = 86400
THRESHOLDS = {"warning_days": 30, "critical_days": 7}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS oxmon_domains (
    id TEXT PRIMARY KEY, domain TEXT NOT NULL UNIQUE, port INTEGER NOT NULL, enabled INTEGER NOT NULL, check_interval_secs INTEGER, note TEXT,
    last_checked REAL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_check_results (
    id TEXT PRIMARY KEY, domain_id TEXT NOT NULL, domain TEXT NOT NULL, checked_at TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_alerts (
    id TEXT PRIMARY KEY, rule_id TEXT NOT NULL, agent_id TEXT NOT NULL, severity TEXT NOT NULL, message TEXT NOT NULL, labels TEXT NOT NULL,
    fired_at REAL NOT NULL, active INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS oxmon_alert_rules (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, rule_type TEXT NOT NULL, config_json TEXT NOT NULL, enabled INTEGER NOT NULL, silence_secs INTEGER NOT NULL);
"""
#: Column for column the guide's.
_DOCUMENTED_DETAILS = """
CREATE TABLE IF NOT EXISTS certificate_details (
    domain TEXT PRIMARY KEY,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    ip_addresses TEXT NOT NULL,  -- JSON array
    issuer_cn TEXT,
    issuer_o TEXT,
    issuer_ou TEXT,
    issuer_c TEXT,
    subject_alt_names TEXT,  -- JSON array
    chain_valid INTEGER NOT NULL,  -- 0 or 1
    chain_error TEXT,
    last_checked INTEGER NOT NULL
);
"""
_SHIPPED_DETAILS = """
CREATE TABLE IF NOT EXISTS certificate_details (
    id TEXT PRIMARY KEY, domain TEXT NOT NULL UNIQUE, not_before TEXT NOT NULL, not_after TEXT NOT NULL, ip_addresses TEXT NOT NULL, issuer_cn TEXT,
    issuer_o TEXT, issuer_ou TEXT, issuer_c TEXT, subject_alt_names TEXT, chain_valid INTEGER NOT NULL, chain_error TEXT, last_checked TEXT NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL, more TEXT NOT NULL);
"""
_EMPTY = (
    "DELETE FROM oxmon_domains", "DELETE FROM oxmon_check_results", "DELETE FROM oxmon_alerts", "DELETE FROM certificate_details",
)

__all__ = ["Certificates", "Observation", "observe"]


@dataclass(frozen=True)
class Observation:
    """What one look at a domain showed. *untrusted* is why the chain does not verify; *error* why no certificate was seen at all."""

    addresses: tuple[str, ...] = ()
    certificate: x509.Certificate | None = None
    chain_length: int = 0
    untrusted: str = ""
    error: str = ""
    tls_version: str = ""
    cipher: str = ""


@dataclass(frozen=True)
class Names:
    """The parts of a distinguished name that are stored."""

    cn: str | None = None
    o: str | None = None
    ou: str | None = None
    c: str | None = None

    @classmethod
    def of(cls, name: x509.Name) -> Names:
        """Read them; the first of each kind counts."""

        def first(oid: x509.ObjectIdentifier) -> str | None:
            found = name.get_attributes_for_oid(oid)
            return str(found[0].value) if found else None

        return cls(
            first(NameOID.COMMON_NAME), first(NameOID.ORGANIZATION_NAME), first(NameOID.ORGANIZATIONAL_UNIT_NAME), first(NameOID.COUNTRY_NAME))


@dataclass
class _Tick:
    """What one run of the scheduler found: certificates with the days they have left."""

    expiring: list[tuple[sqlite3.Row, Observation, int]] = field(default_factory=list)


def observe(domain: str, port: int, timeout: float, roots: str | None, *, every_address: bool) -> Observation:
    """Look at a domain: resolve, shake hands without verifying, then again verifying. Blocks; *timeout* in seconds for each connection."""
    try:
        found = socket.getaddrinfo(domain, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Observation(error=f"DNS resolution failed: {error}")
    addresses = tuple(dict.fromkeys(str(item[4][0]) for item in found))
    seen = Observation(addresses, error="no address")
    for address in addresses:
        seen = _observed(domain, address, port, timeout, roots, addresses)
        if not seen.error and (not every_address or not seen.untrusted):
            return seen
    return seen


def _observed(domain: str, address: str, port: int, timeout: float, roots: str | None, addresses: tuple[str, ...]) -> Observation:
    lenient = ssl.create_default_context()
    lenient.check_hostname, lenient.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout) as plain, lenient.wrap_socket(plain, server_hostname=domain) as tls:
            der = tls.getpeercert(True) or b""
            length, version, cipher = _chain_length(tls), tls.version() or "", (tls.cipher() or ("", "", 0))[0]
    except (OSError, ValueError) as error:
        return Observation(addresses, error=f"TLS connection failed: {error}")
    untrusted = _untrusted(domain, address, port, timeout, roots)
    return Observation(addresses, x509.load_der_x509_certificate(der), length, untrusted, "", version, cipher)


def _chain_length(tls: ssl.SSLSocket) -> int:
    """How many certificates the server sent. The method is public from Python 3.13 on."""
    public = getattr(tls, "get_unverified_chain", None) or getattr(getattr(tls, "_sslobj", None), "get_unverified_chain", None)
    return len(public() or ()) if public is not None else 1


def _untrusted(domain: str, address: str, port: int, timeout: float, roots: str | None) -> str:
    strict = ssl.create_default_context()
    if roots is not None:
        strict.load_verify_locations(roots)
    try:
        with socket.create_connection((address, port), timeout) as plain, strict.wrap_socket(plain, server_hostname=domain):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"TLS verification failed: {error.verify_message}"
    except (OSError, ValueError) as error:
        return f"TLS verification failed: {error}"


class Certificates:
    """The monitor of one plane."""

    def __init__(self, shared: Shared, reply: Callable[..., Answer], failure: Callable[..., Answer], *, documented: bool, roots: str | None) -> None:
        self._shared = shared
        self._db = shared.database
        self._reply = reply
        self._failure = failure
        self._documented = documented
        self._roots = roots
        self._db.create(_SCHEMA + (_DOCUMENTED_DETAILS if documented else _SHIPPED_DETAILS))
        self._seed()

    def _seed(self) -> None:
        if self._db.one("SELECT 1 FROM oxmon_alert_rules") is None:
            self._db.run(
                "INSERT INTO oxmon_alert_rules VALUES (?, ?, ?, ?, 1, ?)",
                self._new_id(), "Certificate expiry", "CertificateExpirationRule" if self._documented else "cert_expiration", json.dumps(THRESHOLDS), SILENCE)

    def reset(self) -> None:
        """Forget domains, results and alerts; the rule is as it was seeded."""
        for statement in (*_EMPTY, "DELETE FROM oxmon_alert_rules"):
            self._db.run(statement)
        self._seed()

    def routes(self) -> list[Route]:
        """The endpoints; authentication is put before them by the plane."""
        domains, status, certificates, rules = "/v1/certs/domains", "/v1/certs/status", "/v1/certificates", "/v1/alerts/rules"
        both = [
            Route("POST", domains, "oxmon_domain_add", "mutating", self._add),
            Route("GET", domains, "oxmon_domains", "read", self._listed),
            Route("DELETE", f"{domains}/{{id}}", "oxmon_domain_remove", "mutating", self._remove),
            Route("POST", f"{domains}/{{id}}/check", "oxmon_domain_check", "mutating", self._check_one),
            Route("GET", certificates, "oxmon_certificates", "read", self._details_listed),
            Route("GET", f"{certificates}/{{id}}", "oxmon_certificate", "read", self._details_one),
            Route("GET", "/v1/alerts/active", "oxmon_alerts_active", "read", self._alerts_active),
            Route("GET", rules, "oxmon_alert_rules", "read", self._rules),
            Route("PUT", f"{rules}/{{id}}", "oxmon_alert_rule_update", "mutating", self._rule_update),
        ]
        if self._documented:
            return both
        return [
            *both,
            Route("POST", f"{domains}/batch", "oxmon_domain_batch", "mutating", self._add_batch),
            Route("GET", f"{domains}/{{id}}", "oxmon_domain", "read", self._one),
            Route("PUT", f"{domains}/{{id}}", "oxmon_domain_update", "mutating", self._update),
            Route("GET", f"{domains}/{{id}}/detail-view", "oxmon_domain_view", "read", self._view),
            Route("GET", f"{domains}/{{id}}/history", "oxmon_domain_history", "read", self._history),
            Route("POST", "/v1/certs/check", "oxmon_check_all", "mutating", self._check_all),
            Route("GET", status, "oxmon_cert_status", "read", self._status),
            Route("GET", f"{status}/summary", "oxmon_cert_summary", "read", self._summary),
            Route("GET", f"{status}/{{domain}}", "oxmon_cert_status_one", "read", self._status_one),
            Route("GET", f"{certificates}/{{id}}/chain", "oxmon_certificate_chain", "read", self._chain),
            Route("GET", "/v1/alerts/history", "oxmon_alerts_history", "read", self._alerts_history),
            Route("PUT", f"{rules}/{{id}}/enable", "oxmon_alert_rule_enable", "mutating", self._rule_enable),
        ]

    # Domains.

    async def _add(self, call: Call) -> Answer:
        spec = await json_object(call, {"domain": Field(str, True), "port": Field(int), "check_interval_secs": Field(int), "note": Field(str)})
        row_id = self._insert(spec)
        return self._reply(201, {"id": row_id})

    def _insert(self, spec: dict[str, Any]) -> str:
        domain, port = str(spec["domain"]), spec.get("port") or (443 if spec.get("port") is None else 0)
        if not domain.strip():
            raise RefusalError(self._failure(400, 1102, "domain is required"))
        if not 1 <= port <= 65535:
            raise RefusalError(self._failure(400, 1103, "port must be between 1 and 65535"))
        row_id, now = self._new_id(), self._now_text()
        try:
            self._db.run(
                "INSERT INTO oxmon_domains VALUES (?, ?, ?, 1, ?, ?, NULL, ?, ?)",
                row_id, domain, port, spec.get("check_interval_secs"), spec.get("note"), now, now)
        except sqlite3.IntegrityError as error:
            raise RefusalError(self._failure(409, 1101, f"Domain '{domain}' already exists")) from error
        return row_id

    async def _add_batch(self, call: Call) -> Answer:
        """Not transactional: what stood before a bad one stays."""
        spec = await json_object(call, {"domains": Field(list, True)})
        if not spec["domains"]:
            return self._failure(400, 1104, "domains cannot be empty")
        return self._reply(201, [self._insert(item) for item in spec["domains"]])

    async def _listed(self, call: Call) -> Answer:
        rows = self._db.all("SELECT * FROM oxmon_domains ORDER BY created_at DESC, id DESC")
        wanted, enabled = call.query.get("domain__contains", ""), call.query.get("enabled__eq")
        found = [_plain(row) for row in rows if wanted in row["domain"] and enabled in (None, "true" if row["enabled"] else "false")]
        return self._listing(found)

    async def _one(self, call: Call) -> Answer:
        return self._reply(200, _plain(self._domain(call)))

    async def _update(self, call: Call) -> Answer:
        spec = await json_object(call, {"port": Field(int), "enabled": Field(bool), "check_interval_secs": Field(int), "note": Field(str)})
        row = self._domain(call)
        self._db.run(
            """UPDATE oxmon_domains SET port = COALESCE(?, port), enabled = COALESCE(?, enabled), note = COALESCE(?, note),
               check_interval_secs = COALESCE(?, check_interval_secs), updated_at = ? WHERE id = ?""",
            spec.get("port"), spec.get("enabled"), spec.get("note"), spec.get("check_interval_secs"), self._now_text(), row["id"])
        return self._reply(200, {"id": row["id"]})

    async def _remove(self, call: Call) -> Answer:
        row = self._domain(call)
        self._db.run("DELETE FROM oxmon_domains WHERE id = ?", row["id"])
        self._db.run("DELETE FROM oxmon_check_results WHERE domain_id = ?", row["id"])
        self._db.run("DELETE FROM certificate_details WHERE domain = ?", row["domain"])
        return self._reply(200, {"id": row["id"]})

    async def _view(self, call: Call) -> Answer:
        row = self._domain(call)
        details = self._db.one("SELECT * FROM certificate_details WHERE domain = ?", row["domain"])
        return self._reply(200, {
            "domain_info": _plain(row), "latest_check": self._latest(row), "certificate_details": None if details is None else _details(details)})

    async def _history(self, call: Call) -> Answer:
        row = self._domain(call)
        results = self._db.all("SELECT result FROM oxmon_check_results WHERE domain_id = ? ORDER BY checked_at DESC, id DESC", row["id"])
        return self._listing([json.loads(item["result"]) for item in results])

    def _domain(self, call: Call) -> sqlite3.Row:
        row = self._db.one("SELECT * FROM oxmon_domains WHERE id = ?", call.parameters["id"])
        if row is None:
            raise RefusalError(self._failure(404, 1004, "Domain not found"))
        return row

    # Checks.

    async def tick(self) -> None:
        """One run of the scheduler: check what is due, and let the expiry rule judge."""
        found = _Tick()
        now = self._shared.clock.now()
        default = DOCUMENTED_INTERVAL if self._documented else SHIPPED_INTERVAL
        for row in self._db.all("SELECT * FROM oxmon_domains WHERE enabled = 1 ORDER BY created_at, id LIMIT 100"):
            if row["last_checked"] is None or now - row["last_checked"] >= (row["check_interval_secs"] or default):
                await self._check(row, found)
        self._alert(found)

    async def _check_one(self, call: Call) -> Answer:
        """Check now; no alert is raised by this."""
        return self._reply(200, await self._check(self._domain(call), _Tick()))

    async def _check_all(self, call: Call) -> Answer:
        rows = self._db.all("SELECT * FROM oxmon_domains WHERE enabled = 1 ORDER BY created_at, id")
        return self._reply(200, [await self._check(row, _Tick()) for row in rows])

    async def _check(self, row: sqlite3.Row, found: _Tick) -> dict[str, Any]:
        seen = await self._observe(row)
        now = self._now_text()
        days = _days_left(seen.certificate, self._shared.clock.now()) if seen.certificate is not None else None
        if days is not None:
            found.expiring.append((row, seen, days))
        result = self._result(row, seen, days, now)
        self._db.run("INSERT INTO oxmon_check_results VALUES (?, ?, ?, ?, ?)", result["id"], row["id"], row["domain"], now, json.dumps(result))
        self._db.run("UPDATE oxmon_domains SET last_checked = ? WHERE id = ?", self._shared.clock.now(), row["id"])
        if self._documented:
            self._keep_documented(row["domain"], seen)
        elif seen.certificate is not None and not seen.untrusted:
            self._keep_shipped(row["domain"], seen, now)
        return result

    async def _observe(self, row: sqlite3.Row) -> Observation:
        timeout = DOCUMENTED_TIMEOUT if self._documented else SHIPPED_TIMEOUT
        pauses = (*BACKOFF, None) if self._documented else (None,)
        for pause in pauses:
            seen = await asyncio.to_thread(observe, row["domain"], row["port"], timeout, self._roots, every_address=self._documented)
            if not seen.error or pause is None:
                return seen
            await asyncio.sleep(pause)
        return Observation(error="never tried")

    def _result(self, row: sqlite3.Row, seen: Observation, days: int | None, now: str) -> dict[str, Any]:
        certificate = seen.certificate
        inside = certificate is not None and certificate.not_valid_before_utc.timestamp() <= self._shared.clock.now() <= _not_after(certificate)
        chain_valid = certificate is not None and not seen.untrusted
        return {
            "id": self._new_id(), "domain_id": row["id"], "domain": row["domain"], "is_valid": inside and chain_valid, "chain_valid": chain_valid,
            "not_before": _text(certificate.not_valid_before_utc) if certificate is not None else None,
            "not_after": _text(certificate.not_valid_after_utc) if certificate is not None else None,
            "days_until_expiry": days, "issuer": certificate.issuer.rfc4514_string() if certificate is not None else None,
            "subject": certificate.subject.rfc4514_string() if certificate is not None else None,
            "san_list": _dns_names(certificate) if certificate is not None else [], "resolved_ips": list(seen.addresses),
            "error": seen.error or seen.untrusted or None, "checked_at": now, "created_at": now, "updated_at": now,
        }

    def _keep_documented(self, domain: str, seen: Observation) -> None:
        """The guide's row: always the latest state, a failure too."""
        certificate, now = seen.certificate, int(self._shared.clock.now())
        if certificate is None:
            changed = self._db.run(
                "UPDATE certificate_details SET chain_valid = 0, chain_error = ?, last_checked = ? WHERE domain = ?", seen.error, now, domain)
            if not changed:
                self._db.run(
                    "INSERT INTO certificate_details VALUES (?, 0, 0, ?, NULL, NULL, NULL, NULL, NULL, 0, ?, ?)",
                    domain, json.dumps(seen.addresses), seen.error, now)
            return
        issuer = Names.of(certificate.issuer)
        self._db.run(
            "INSERT OR REPLACE INTO certificate_details VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            domain, int(certificate.not_valid_before_utc.timestamp()), int(_not_after(certificate)), json.dumps(seen.addresses), issuer.cn, issuer.o,
            issuer.ou, issuer.c, json.dumps(_alternative_names(certificate)), int(not seen.untrusted), seen.untrusted or None, now)

    def _keep_shipped(self, domain: str, seen: Observation, now: str) -> None:
        """The shipped row. ``chain_valid`` says only that more than one certificate was sent."""
        certificate = seen.certificate
        if certificate is None:
            return
        issuer = Names.of(certificate.issuer)
        known = self._db.one("SELECT id, created_at FROM certificate_details WHERE domain = ?", domain)
        self._db.run(
            "INSERT OR REPLACE INTO certificate_details VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            known["id"] if known is not None else self._new_id(), domain, _text(certificate.not_valid_before_utc), _text(certificate.not_valid_after_utc),
            json.dumps(seen.addresses), issuer.cn, issuer.o, issuer.ou, issuer.c, json.dumps(_alternative_names(certificate)), int(seen.chain_length > 1),
            None if seen.chain_length > 1 else "only the leaf certificate was sent", now, known["created_at"] if known is not None else now, now,
            json.dumps(_further(certificate, seen)))

    # Status.

    def _latest(self, row: sqlite3.Row) -> dict[str, Any] | None:
        found = self._db.one("SELECT result FROM oxmon_check_results WHERE domain_id = ? ORDER BY checked_at DESC, id DESC", row["id"])
        return None if found is None else json.loads(found["result"])

    def _latest_enabled(self) -> list[dict[str, Any]]:
        rows = self._db.all("SELECT * FROM oxmon_domains WHERE enabled = 1 ORDER BY created_at, id")
        return [result for row in rows if (result := self._latest(row)) is not None]

    async def _status(self, call: Call) -> Answer:
        found = self._latest_enabled()
        wanted, valid, days = call.query.get("domain__contains", ""), call.query.get("is_valid__eq"), call.query.get("days_until_expiry__lte")
        found = [item for item in found if wanted in item["domain"] and valid in (None, "true" if item["is_valid"] else "false")]
        if days is not None:
            found = [item for item in found if item["days_until_expiry"] is not None and item["days_until_expiry"] <= int(days)]
        return self._listing(found)

    async def _status_one(self, call: Call) -> Answer:
        row = self._db.one("SELECT * FROM oxmon_domains WHERE domain = ?", call.parameters["domain"])
        if row is None:
            return self._failure(404, 1004, "Domain is not monitored")
        latest = self._latest(row)
        return self._failure(404, 1105, "No check results yet") if latest is None else self._reply(200, latest)

    async def _summary(self, call: Call) -> Answer:
        found = self._latest_enabled()
        soon = [item for item in found if item["days_until_expiry"] is not None and 0 <= item["days_until_expiry"] <= 30]
        healthy = sum(item["is_valid"] for item in found)
        return self._reply(200, {"total": len(found), "healthy": healthy, "failed": len(found) - healthy, "expiring_soon": len(soon)})

    # Details.

    async def _details_listed(self, call: Call) -> Answer:
        return self._listing([_details(row) for row in self._db.all("SELECT * FROM certificate_details ORDER BY domain")])

    def _details_row(self, call: Call) -> sqlite3.Row:
        column = "domain" if self._documented else "id"
        rows = [row for row in self._db.all("SELECT * FROM certificate_details") if row[column] == call.parameters["id"]]
        if not rows:
            raise RefusalError(self._failure(404, 1004, "Certificate not found"))
        return rows[0]

    async def _details_one(self, call: Call) -> Answer:
        """By domain as documented, by row id as shipped."""
        return self._reply(200, _details(self._details_row(call)))

    async def _chain(self, call: Call) -> Answer:
        details = _details(self._details_row(call))
        return self._reply(200, {key: details[key] for key in ("id", "domain", "chain_valid", "chain_error", "last_checked")})

    # Alerts.

    def _alert(self, found: _Tick) -> None:
        """Let the rule judge what a run found. As shipped, all domains share one silence."""
        rule = self._db.one("SELECT * FROM oxmon_alert_rules")
        if rule is None or not rule["enabled"]:
            return
        limits, now = {**THRESHOLDS, **json.loads(rule["config_json"])}, self._shared.clock.now()
        for row, seen, days in found.expiring:
            certificate = seen.certificate
            subject = row["domain"] if self._documented else CHECKER
            if certificate is None or days > limits["warning_days"] or self._silenced(rule, subject, now):
                continue
            labels: dict[str, Any] = {"domain": row["domain"]}
            if self._documented:
                issuer = Names.of(certificate.issuer)
                labels.update(not_after=int(_not_after(certificate)), issuer=issuer.cn, ip_addresses=list(seen.addresses))
            else:
                labels["ip"] = seen.addresses[0] if seen.addresses else ""
            text = f"certificate of {row['domain']} has expired" if days <= 0 else f"certificate of {row['domain']} expires in {days} days"
            self._db.run(
                "INSERT INTO oxmon_alerts VALUES (?, ?, ?, ?, ?, ?, ?, 1)", self._new_id(), rule["id"], subject,
                "critical" if days <= limits["critical_days"] else "warning", text, json.dumps(labels), now)

    def _silenced(self, rule: sqlite3.Row, subject: str, now: float) -> bool:
        last = self._db.one("SELECT MAX(fired_at) AS fired_at FROM oxmon_alerts WHERE rule_id = ? AND agent_id = ?", rule["id"], subject)
        return last is not None and last["fired_at"] is not None and now - last["fired_at"] < rule["silence_secs"]

    async def _alerts_active(self, call: Call) -> Answer:
        return self._listing([self._alert_item(row) for row in self._db.all("SELECT * FROM oxmon_alerts WHERE active = 1 ORDER BY fired_at, id")])

    async def _alerts_history(self, call: Call) -> Answer:
        return self._listing([self._alert_item(row) for row in self._db.all("SELECT * FROM oxmon_alerts ORDER BY fired_at DESC, id DESC")])

    def _alert_item(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            "id": row["id"], "rule_id": row["rule_id"], "agent_id": row["agent_id"], "severity": row["severity"], "message": row["message"],
            "labels": json.loads(row["labels"]), "timestamp": self._shared.clock.rfc3339(row["fired_at"]),
        }

    async def _rules(self, call: Call) -> Answer:
        rows = self._db.all("SELECT * FROM oxmon_alert_rules ORDER BY id")
        return self._listing([{**dict(row), "enabled": bool(row["enabled"])} for row in rows])

    async def _rule_update(self, call: Call) -> Answer:
        spec = await json_object(call, {"config_json": Field(str), "enabled": Field(bool), "silence_secs": Field(int)})
        rule = self._rule(call)
        self._db.run(
            """UPDATE oxmon_alert_rules SET config_json = COALESCE(?, config_json), enabled = COALESCE(?, enabled),
               silence_secs = COALESCE(?, silence_secs) WHERE id = ?""",
            spec.get("config_json"), spec.get("enabled"), spec.get("silence_secs"), rule["id"])
        return self._reply(200, {"id": rule["id"]})

    async def _rule_enable(self, call: Call) -> Answer:
        spec = await json_object(call, {"enabled": Field(bool, True)})
        rule = self._rule(call)
        self._db.run("UPDATE oxmon_alert_rules SET enabled = ? WHERE id = ?", spec["enabled"], rule["id"])
        return self._reply(200, {"id": rule["id"]})

    def _rule(self, call: Call) -> sqlite3.Row:
        row = self._db.one("SELECT * FROM oxmon_alert_rules WHERE id = ?", call.parameters["id"])
        if row is None:
            raise RefusalError(self._failure(404, 1004, "Alert rule not found"))
        return row

    # Shared steps.

    def _listing(self, items: Sequence[Any]) -> Answer:
        """A list: bare as documented, one page as shipped."""
        if self._documented:
            return self._reply(200, list(items))
        return self._reply(200, {"items": list(items), "total": len(items), "limit": 1000, "offset": 0})

    def _now_text(self) -> str:
        return str(self._shared.clock.rfc3339(self._shared.clock.now()))

    @staticmethod
    def _new_id() -> str:
        return str((int(time.time() * 1000) - 1_288_834_974_657 << 22) | secrets.randbelow(1 << 22))


def _not_after(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _days_left(certificate: x509.Certificate, now: float) -> int:
    """Whole days, truncated toward zero."""
    return int((_not_after(certificate) - now) / 86400)


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> Any:
    try:
        return certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None


def _dns_names(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    return [] if names is None else list(names.get_values_for_type(x509.DNSName))


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    return [] if names is None else [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _colons(data: bytes, upper: bool) -> str:
    text = data.hex(":")
    return text.upper() if upper else text


def _public_key(certificate: x509.Certificate) -> tuple[str, int]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ECDSA", key.key_size
    return ("Ed25519", 256) if isinstance(key, ed25519.Ed25519PublicKey) else (type(key).__name__, 0)


def _further(certificate: x509.Certificate, seen: Observation) -> dict[str, Any]:
    """The columns that only the shipped contract has."""
    subject, (algorithm, bits) = Names.of(certificate.subject), _public_key(certificate)
    usage, extended = _extension(certificate, ExtensionOID.KEY_USAGE), _extension(certificate, ExtensionOID.EXTENDED_KEY_USAGE)
    basic, access = _extension(certificate, ExtensionOID.BASIC_CONSTRAINTS), _extension(certificate, ExtensionOID.AUTHORITY_INFORMATION_ACCESS)
    serial = certificate.serial_number
    usages = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")
    places = [(item.access_method, item.access_location.value) for item in access or ()]
    return {
        "serial_number": _colons(serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big"), False),
        "fingerprint_sha256": _colons(certificate.fingerprint(hashes.SHA256()), True), "version": certificate.version.value + 1,
        "signature_algorithm": certificate.signature_algorithm_oid._name, "public_key_algorithm": algorithm, "public_key_bits": bits,
        "subject_cn": subject.cn, "subject_o": subject.o, "key_usage": [name for name in usages if usage is not None and getattr(usage, name)],
        "extended_key_usage": [item._name for item in extended or ()], "is_ca": bool(basic is not None and basic.ca),
        "is_wildcard": any(name.startswith("*.") for name in _dns_names(certificate)),
        "ocsp_urls": [place for method, place in places if method == AuthorityInformationAccessOID.OCSP], "crl_urls": [],
        "ca_issuer_urls": [place for method, place in places if method == AuthorityInformationAccessOID.CA_ISSUERS], "sct_count": 0,
        "tls_version": seen.tls_version, "cipher_suite": seen.cipher, "chain_depth": seen.chain_length,
    }


def _details(row: sqlite3.Row) -> dict[str, Any]:
    """A row of certificate_details as JSON shows it."""
    values = dict(row)
    more = json.loads(values.pop("more", "{}"))
    for column in ("ip_addresses", "subject_alt_names"):
        values[column] = json.loads(values[column] or "[]")
    return {**values, "chain_valid": bool(values["chain_valid"]), **more}


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    """A monitored domain as JSON shows it."""
    return {key: bool(value) if key == "enabled" else value for key, value in dict(row).items() if key != "last_checked"}
