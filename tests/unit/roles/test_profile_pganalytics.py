# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the profile makes of an operator's variables: the files that both pgAnalytics collectors read, their unit, and what is refused."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.utils.unsafe_proxy import wrap_var
from role_files import COLLECTION, Variables

from ansible_collections.muster.agents.plugins.action.agent_register import ARGUMENT_SPEC
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils._errors import RenderFailure
from ansible_collections.muster.agents.plugins.plugin_utils._formats import parse
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import Renderer

AGENT = {
    "agent_id": "550e8400-e29b-41d4-a716-446655440000", "name": "primary-db", "hostname": "db-prod-01.example.com", "url": "https://api.example.com"}
ISSUED = {"token": Secret("header.claims.signature"), "certificate": Secret("CERTIFICATE\n"), "private_key": Secret("KEY\n")}
DOCUMENTED = {**ISSUED, "ca_certificate": Secret("CA\n")}
PASSWORD = {"pg_password": Secret("s3cret#with!signs")}
GIVEN = {"agent_secrets": [{"name": "pg_password", "file": "/secret"}]}
FILE_DEFAULTS = {name: option.get("default") for name, option in ARGUMENT_SPEC["files"]["options"].items()}
TOML = "/etc/pganalytics/collector.toml"
DOCUMENTED_HELP = "usage: pganalytics [--config FILE] [--validate] [--dry-run] [--verbose]\n"
SHIPPED_HELP = "Unknown action: --help\nUsage: pganalytics [cron|register|help]\n"

# Every section and key of the guide's collector.toml.
GUIDE = {
    "collector": "id name hostname interval verbose log_level log_file log_max_size log_backup_count",
    "backend": "url tls_cert tls_key ca_cert verify_ssl jwt_token token_refresh_url token_refresh_days push_timeout max_retries retry_backoff",
    "postgres": "host port user password connect_timeout query_timeout pool_min_connections pool_max_connections ssl_mode ssl_verify_server version "
                "databases exclude_system_databases",
    "metrics": "enable_pg_stat_statements enable_pg_stat_database enable_pg_stat_table enable_pg_stat_index enable_pg_stat_user_functions "
               "enable_pg_stat_io enable_replication enable_wal_level enable_system_metrics enable_disk_metrics enable_memory_metrics "
               "enable_log_analysis log_path exclude_metrics sample_rate",
    "buffer": "buffer_enabled buffer_max_size buffer_flush_interval compress_buffer",
    "security": "tls_enabled verify_certificate api_timeout rate_limit_rps",
    "health_check": "enabled port path interval status_file",
    "telemetry": "prometheus_enabled prometheus_port telemetry_enabled",
}


def rendered(secrets: t.Mapping[str, Secret] = DOCUMENTED, **given: t.Any) -> dict[str, t.Any]:
    """Return path -> file as agent_register would deliver it."""
    variables = Variables("registration", "pganalytics", **{"agent_control_plane_url": "https://api.example.com/", **given})
    files = [{**FILE_DEFAULTS, **entry} for entry in variables.value("_agent_files")]
    return {file.path: file for file in Renderer(variables.templar(), files, variables.all, ("ca_certificate",))(AGENT, secrets)}


def configuration(secrets: t.Mapping[str, Secret] = DOCUMENTED, **given: t.Any) -> dict[str, t.Any]:
    parsed: dict[str, t.Any] = parse(rendered(secrets, **given)[TOML].content.decode(), "toml")
    return parsed


def as_shipped(**given: t.Any) -> dict[str, str]:
    """Return section.key -> value as the shipped collector's parser reads it: lines, no comments behind values, one pair of quotes taken off."""
    secrets = {**ISSUED, **(PASSWORD if "agent_secrets" in given else {})}
    found, section = {}, ""
    for line in rendered(secrets, **given)[TOML].content.decode().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, _equals, value = (part.strip() for part in line.partition("="))
            found[f"{section}.{key}"] = value[1:-1] if value[:1] == '"' == value[-1:] else value
    return found


def test_the_file_has_every_section_and_key_of_the_guide() -> None:
    found = configuration({**DOCUMENTED, **PASSWORD}, **GIVEN)
    assert {section: set(keys) for section, keys in found.items()} == {section: set(keys.split()) for section, keys in GUIDE.items()}
    assert found["collector"] == {
        "id": AGENT["agent_id"], "name": "primary-db", "hostname": "db-prod-01.example.com", "interval": 60, "verbose": False, "log_level": "info",
        "log_file": "/var/log/pganalytics/collector.log", "log_max_size": 100, "log_backup_count": 5}
    assert found["backend"]["url"] == "https://api.example.com"
    assert found["backend"]["jwt_token"] == "header.claims.signature"
    assert found["backend"]["ca_cert"] == "/etc/pganalytics/ca.crt"
    assert found["postgres"]["password"] == "s3cret#with!signs"
    assert found["postgres"]["databases"] == ["postgres"]
    assert (found["security"]["tls_enabled"], found["security"]["verify_certificate"], found["backend"]["verify_ssl"]) == (True, True, True)
    assert found["health_check"]["port"] == 9090


def test_without_a_password_there_is_none_and_not_an_empty_one() -> None:
    assert "password" not in configuration()["postgres"]


def test_operators_settings_come_last_and_null_takes_a_key_out() -> None:
    found = configuration(agent_settings={
        "collector": {"interval": 30, "log_file": None}, "backend": {"pin_certificate_fingerprint": "SHA256:abcd1234ef5678"},
        "postgres": {"exclude_databases": ["template0", "template1"], "databases": []}, "own_section": {"key": 1.5},
        "failover": {"primary_host": "a", "fallback_host": "b", "health_check_interval": 30}})
    assert found["collector"]["interval"] == 30
    assert "log_file" not in found["collector"]
    assert found["backend"]["pin_certificate_fingerprint"] == "SHA256:abcd1234ef5678"
    assert (found["postgres"]["exclude_databases"], found["postgres"]["databases"]) == (["template0", "template1"], [])
    assert found["failover"] == {"primary_host": "a", "fallback_host": "b", "health_check_interval": 30}
    assert found["own_section"] == {"key": 1.5}


def test_text_of_every_kind_survives_toml() -> None:
    motto = 'say "hi" \\ # no comment\n'
    assert configuration(agent_settings={"collector": {"motto": motto}})["collector"]["motto"] == motto


def test_the_shipped_collector_finds_its_keys_in_the_form_its_parser_takes() -> None:
    found = as_shipped(agent_settings={"postgres": {"databases": ["postgres", "app_db"]}, "pg_log": {"enabled": False}}, **GIVEN)
    assert found["collector.id"] == AGENT["agent_id"]
    assert found["collector.hostname"] == "db-prod-01.example.com"
    assert (found["collector.push_interval"], found["collector.config_pull_interval"]) == ("60", "100000000")
    assert found["backend.url"] == "https://api.example.com"
    assert (found["postgres.host"], found["postgres.port"], found["postgres.user"]) == ("localhost", "5432", "pganalytics_monitoring")
    assert found["postgres.databases"] == "postgres,app_db"
    assert found["postgres.password"] == "s3cret#with!signs"
    assert (found["tls.verify"], found["tls.cert_file"], found["tls.key_file"]) == ("true", "/etc/pganalytics/collector.crt", "/etc/pganalytics/collector.key")
    assert found["pg_log.enabled"] == "false"
    text = rendered(ISSUED)[TOML].content.decode()
    assert not re.search(r"=.*\S\s+#", text)


def test_a_fresh_token_changes_nothing_that_the_shipped_collector_reads() -> None:
    """It refreshes its token in memory: the configuration, whose change means a restart, holds none."""
    files = rendered(ISSUED)
    assert b"header.claims.signature" not in files[TOML].content
    assert [path for path, file in files.items() if b"header.claims" in file.content and file.restart] == []


@pytest.mark.parametrize(("password", "good"), [
    ("plain", True), ("with#sign", True), ("two words", False), ("quo'te", False), ('quo"te', False), ("back\\slash", False), ("tab\tbed", False)])
def test_a_password_that_the_shipped_collector_would_misread_is_refused_without_being_shown(password: str, good: bool) -> None:
    secrets = {**ISSUED, "pg_password": Secret(password)}
    if good:
        assert rendered(secrets, **GIVEN)
        return
    with pytest.raises(RenderFailure, match="cannot read") as failure:
        rendered(secrets, **GIVEN)
    assert password not in failure.value.msg
    assert configuration({**secrets, **DOCUMENTED}, **GIVEN)["postgres"]["password"] == password


def test_the_form_follows_what_was_issued_unless_it_is_said() -> None:
    assert configuration(DOCUMENTED)["postgres"]["databases"] == ["postgres"]
    assert configuration(ISSUED)["postgres"]["databases"] == "postgres"
    assert configuration(ISSUED, agent_settings={"format": "documented"})["backend"]["jwt_token"] == "header.claims.signature"
    assert "jwt_token" not in configuration(DOCUMENTED, agent_settings={"format": "shipped"})["backend"]
    assert "format" not in configuration(DOCUMENTED, agent_settings={"format": "shipped"})


def test_credential_files_have_the_guides_paths_and_modes_and_the_shipped_ones() -> None:
    files = rendered(agent_user="pganalytics")
    modes = {path: (file.mode, file.owner, file.restart) for path, file in files.items()}
    assert modes == {
        TOML: ("0600", "pganalytics", True),
        "/etc/pganalytics/collector.crt": ("0644", "root", True),
        "/etc/pganalytics/collector.key": ("0600", "pganalytics", True),
        "/etc/pganalytics/credentials/jwt_token.txt": ("0600", "pganalytics", False),
        "/etc/pganalytics/collector_id.txt": ("0644", "root", False),
        "/var/lib/pganalytics/collector.token": ("0600", "pganalytics", False),
        "/var/lib/pganalytics/collector.id": ("0600", "pganalytics", False),
        "/etc/pganalytics/ca.crt": ("0644", "root", True),
    }
    assert files["/etc/pganalytics/credentials/jwt_token.txt"].directory_mode == "0700"
    content = {path: file.content.decode() for path, file in files.items()}
    assert content["/etc/pganalytics/collector.key"] == "KEY\n"
    assert content["/etc/pganalytics/collector.crt"] == "CERTIFICATE\n"
    assert content["/etc/pganalytics/ca.crt"] == "CA\n"
    assert content["/etc/pganalytics/credentials/jwt_token.txt"] == content["/var/lib/pganalytics/collector.token"] == "header.claims.signature\n"
    assert content["/etc/pganalytics/collector_id.txt"] == content["/var/lib/pganalytics/collector.id"] == AGENT["agent_id"] + "\n"


def test_the_cas_of_the_controller_and_the_issued_one_stand_in_one_file(tmp_path: Path) -> None:
    mine = tmp_path / "ca.pem"
    mine.write_text("MINE\n")
    assert rendered(DOCUMENTED, agent_ca_cert=str(mine))["/etc/pganalytics/ca.crt"].content == b"MINE\nCA\n"
    shipped = rendered(ISSUED, agent_ca_cert=str(mine))
    assert shipped["/etc/pganalytics/ca.crt"].content == b"MINE\n"
    assert b'ca_file = "/etc/pganalytics/ca.crt"' in shipped[TOML].content


def test_where_there_is_no_ca_no_file_and_no_key_speak_of_one() -> None:
    files = rendered(ISSUED)
    assert "/etc/pganalytics/ca.crt" not in files
    assert b"ca.crt" not in files[TOML].content


def test_a_bundle_of_the_host_is_named() -> None:
    found = configuration(DOCUMENTED, agent_ca_bundle="/etc/ssl/certs/ca-certificates.crt")
    assert found["backend"]["ca_cert"] == "/etc/ssl/certs/ca-certificates.crt"


VAULT = {"url": "https://vault.example.com:8200/", "auth_method": "token", "token_file": "/secret"}


def test_vault_gets_the_guides_entry() -> None:
    fields = {"jwt_token": "token", "collector_id": "agent_id"}
    assert Variables("registration", "pganalytics", agent_vault=VAULT).value("_agent_vault_paths") == [
        {"path": "secret/data/pganalytics/collectors/n-1", "fields": fields}]
    with_password = Variables("registration", "pganalytics", agent_vault=VAULT, **GIVEN).value("_agent_vault_paths")
    assert with_password[0]["fields"] == {**fields, "pg_password": "pg_password"}
    assert Variables("registration", "pganalytics", agent_vault=VAULT).value("_agent_token_policy") == {}
    assert Variables("registration", "pganalytics").value("_agent_vault_paths") == []


def test_tls_13_is_the_floor_unless_the_operator_says_otherwise() -> None:
    assert Variables("registration", "pganalytics").value("_agent_tls_min_version") == "1.3"
    assert Variables("registration", "pganalytics", agent_tls_min_version="1.2").value("_agent_tls_min_version") == "1.2"


def unit(help_text: str, **given: t.Any) -> dict[str, t.Any]:
    layout = Variables("service", "pganalytics", _service_help={"stdout": help_text}, **given).value("_service_layout")
    (found,) = layout["units"]
    return {**found, "layout": layout["name"]}


def test_the_binary_says_how_it_is_started_and_checked() -> None:
    documented = unit(DOCUMENTED_HELP)
    command = ["/usr/local/bin/pganalytics", "--config", TOML]
    assert (documented["layout"], documented["command"]) == ("documented-checked", " ".join(command))
    assert documented["checks"] == [[*command, "--validate"], [*command, "--dry-run"]]
    plain = unit("usage: pganalytics --config FILE")
    assert (plain["layout"], plain["command"], plain.get("checks")) == ("documented", " ".join(command), None)
    shipped = unit(SHIPPED_HELP)
    assert (shipped["layout"], shipped["command"], shipped["name"]) == ("shipped", "/usr/local/bin/pganalytics cron", "pganalytics-collector.service")


def test_only_a_collector_that_serves_is_asked_for_its_health() -> None:
    def asked(help_text: str, **given: t.Any) -> str:
        return str(Variables("health_gate", "pganalytics", _service_help={"stdout": help_text}, **given).value("_agent_profile_health_url | trim"))

    assert asked(DOCUMENTED_HELP) == "http://127.0.0.1:9090/health"
    assert asked(DOCUMENTED_HELP, agent_port=9999) == "http://127.0.0.1:9999/health"
    assert asked(DOCUMENTED_HELP, agent_settings={"health_check": {"enabled": False}}) == ""
    assert asked(SHIPPED_HELP) == ""


def test_unit_has_the_places_that_the_collector_writes_to() -> None:
    variables = Variables("service", "pganalytics", _service_help={"stdout": DOCUMENTED_HELP}, agent_user="pganalytics")
    (variables.all["_service_unit"],) = variables.value("_service_layout")["units"]
    template = Path(variables.all["role_path"]) / "templates" / "unit.service.j2"
    lines = variables.value(f"lookup('ansible.builtin.template', '{template}')").splitlines()
    for line in ("StateDirectory=pganalytics", "LogsDirectory=pganalytics", "RuntimeDirectory=pganalytics", "User=pganalytics", "ProtectSystem=strict",
                 f"ExecStart=/usr/local/bin/pganalytics --config {TOML}"):
        assert line in lines
    assert not any(line.startswith(("EnvironmentFile", "StandardInput")) for line in lines)


class _Loader(yaml.SafeLoader):
    """Knows the tag for text that is not rendered early."""


_Loader.add_constructor("!unsafe", lambda loader, node: wrap_var(str(loader.construct_scalar(node))))


def variant(name: str) -> dict[str, t.Any]:
    """Return the variables of one of the documented variants."""
    text = (COLLECTION / "docs" / "examples" / "pganalytics" / "variants" / f"{name}.yml").read_text()
    loaded: dict[str, t.Any] = _Loader(text).get_single_data()
    return loaded


@pytest.mark.parametrize("secrets", [DOCUMENTED, ISSUED], ids=["documented", "shipped"])
@pytest.mark.parametrize("name", ["minimal", "high-security", "multi-database", "environment"])
def test_documented_variants_are_whole_configurations(name: str, secrets: dict[str, Secret]) -> None:
    found = configuration({**secrets, **PASSWORD}, **variant(name))
    assert set(GUIDE) <= set(found)
    assert found["collector"]["id"] == AGENT["agent_id"]
    if name == "minimal":
        assert "log_file" not in found["collector"]
    elif name == "high-security":
        assert found["backend"]["pin_certificate_fingerprint"].startswith("SHA256:")
        assert found["postgres"]["password"] == "s3cret#with!signs"
    elif name == "multi-database":
        excluded = found["postgres"]["exclude_databases"]
        assert excluded == ["template0", "template1", "test_db"] or excluded == "template0,template1,test_db"
    else:
        assert (found["backend"]["url"], found["backend"]["jwt_token"], found["postgres"]["password"]) == ("${BACKEND_URL}", "${JWT_TOKEN}", "${PG_PASSWORD}")
        files = rendered({**secrets, **PASSWORD}, **variant(name))
        assert b"JWT_TOKEN=header.claims.signature\n" in files["/etc/pganalytics/collector.env"].content
        assert b"header.claims" not in files[TOML].content


@pytest.mark.parametrize(("settings", "named"), [
    ({"format": "toml"}, "agent_settings.format"), ({"collector": 5}, "agent_settings has a section"),
    ({"postgres": {"password": "in the open"}}, "agent_settings.postgres.password"),
])
def test_bad_settings_are_refused_with_one_sentence(settings: dict[str, t.Any], named: str) -> None:
    complaints = Variables("agent", "pganalytics", agent_settings=settings).value("_agent_complaints")
    assert len(complaints) == 1
    assert complaints[0].startswith(named)
    assert "in the open" not in complaints[0]


@pytest.mark.parametrize("settings", [{}, {"format": "shipped"}, {"postgres": {"password": "${PG_PASSWORD}"}}, {"postgres": {"databases": "a,b"}}])
def test_good_settings_are_not_complained_about(settings: dict[str, t.Any]) -> None:
    assert Variables("agent", "pganalytics", agent_settings=settings).value("_agent_complaints") == []


def test_what_earlier_installations_left_is_looked_for() -> None:
    places = Variables("registration", "pganalytics").value("_agent_adopt_from")
    assert [(place["path"], place["format"]) for place in places] == [("/etc/pganalytics", "files"), ("/var/lib/pganalytics", "files")]
    assert set(places[0]["secrets"]) >= {"token", "certificate", "private_key"}
