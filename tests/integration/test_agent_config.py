# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""agent_config: the operator's own files, rendered with an enrolled agent's secrets, put back, and taken away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .agents import CONFIG, REGISTER, TEMPLATES, WAYS, Agent, World, orders
from .controller import Controller

DATABASE = "database-password-3b7c"


def settings(agent: Agent, *files: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The options of agent_config for an agent; None removes one."""
    given = {
        "control_plane": "stacker", "name": agent.name, "store": str(agent.directory / "store"), "delivery": agent.way, "version": "1.0.0",
        "capabilities": ["docker"], "system_info": {}, "files": list(files), "secrets": [{"name": "database", "value": DATABASE}],
    }
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


def agent_json(agent: Agent) -> dict[str, Any]:
    """A JSON file with the agent's credential, as the guide's client keeps it."""
    return {"path": str(agent.directory / "lib" / "agent.json"), "src": str(TEMPLATES / "agent.json.j2"), "format": "json", "directory_mode": "0700"}


def toml(agent: Agent, text: str = "one") -> dict[str, Any]:
    """A TOML file with the operator's own secret in it."""
    content = "{% raw %}url = {{ ('postgresql://' ~ muster_secret.database) | muster.agents.toml_quote }}\ntext = '" + text + "'\n{% endraw %}"
    return {"path": str(agent.directory / "etc" / "agent.toml"), "content": content, "format": "toml", "mode": "0640", "validate": "/usr/bin/test -s %s"}


@pytest.fixture
def enrolled(world: World, controller: Controller, tmp_path: Path) -> dict[str, Agent]:
    """One enrolled agent for each way to the host."""
    agents = {way: Agent(world, "shipped", tmp_path / way, way, vault=False) for way in WAYS}
    controller.each(REGISTER, orders(agents)).good()
    world.quiet()
    return agents


def test_files_are_foretold_rendered_kept_put_back_and_removed(world: World, controller: Controller, enrolled: Mapping[str, Agent]) -> None:
    options = {host: settings(agent, agent_json(agent), toml(agent)) for host, agent in enrolled.items()}
    before = {host: agent.everything() for host, agent in enrolled.items()}
    foretold = controller.each(CONFIG, options, arguments=["--check", "--diff"]).good()
    assert {host: agent.everything() for host, agent in enrolled.items()} == before

    done = controller.each(CONFIG, options, arguments=["--diff", "-vvvv"]).good()
    for host, agent in enrolled.items():
        result = done.result(host)
        assert {key: foretold.result(host)[key] for key in ("action", "changed", "files", "diff")} == {
            key: result[key] for key in ("action", "changed", "files", "diff")}
        assert (result["action"], result["changed"], result["pending_restart"]) == ("delivered", True, True)
        assert json.loads((agent.directory / "lib" / "agent.json").read_text()) == {"agent_id": agent.secret("agent_id"), "agent_token": agent.secret()}
        assert (agent.directory / "etc" / "agent.toml").read_text() == f'url = "postgresql://{DATABASE}"\ntext = \'one\'\n'
        modes = [(agent.directory / name).stat().st_mode & 0o777 for name in ("lib", "lib/agent.json", "etc", "etc/agent.toml")]
        assert modes == [0o700, 0o600, 0o755, 0o640]
        for secret in (agent.secret(), DATABASE):
            assert secret not in done.output + done.events

    again = controller.each(CONFIG, options).good()
    assert [(again.result(host)["changed"], again.result(host)["action"]) for host in enrolled] == [(False, "unchanged")] * len(enrolled)
    quiet = controller.each(REGISTER, orders(enrolled)).good()
    assert [quiet.result(host)["changed"] for host in enrolled] == [False] * len(enrolled)

    gone = {host: settings(agent, files=None, state="absent") for host, agent in enrolled.items()}
    for arguments, left in ((["--check"], True), ([], False)):
        removed = controller.each(CONFIG, gone, arguments=arguments).good()
        for host, agent in enrolled.items():
            assert (removed.result(host)["action"], removed.result(host)["changed"]) == ("removed", True)
            assert [path.exists() for path in (agent.directory / "lib/agent.json", agent.directory / "etc/agent.toml", agent.env_file)] == [left] * 3
            assert agent.receipt()["phase"] == "STORED"
    nothing = controller.each(CONFIG, gone).good()
    assert [nothing.result(host)["changed"] for host in enrolled] == [False] * len(enrolled)
    assert world.mutations() == []


def test_a_committed_state_comes_back_after_a_bad_change(controller: Controller, enrolled: Mapping[str, Agent]) -> None:
    good = {host: settings(agent, toml(agent)) for host, agent in enrolled.items()}
    controller.each(CONFIG, good).good()
    for agent in enrolled.values():
        # What the health gate writes once the agent has proved itself.
        document = (agent.root / "receipt.json").read_text().replace('"phase": "STORED",\n "pin"', '"phase": "COMMITTED",\n "pin"')
        assert '"phase": "COMMITTED"' in document
        (agent.root / "receipt.json").write_text(document)
    controller.each(CONFIG, {host: settings(agent, toml(agent, "two")) for host, agent in enrolled.items()}).good()
    back = {host: settings(agent, files=None, state="restored") for host, agent in enrolled.items()}
    for arguments, text in ((["--check"], "two"), ([], "one")):
        restored = controller.each(CONFIG, back, arguments=arguments).good()
        for host, agent in enrolled.items():
            assert (restored.result(host)["action"], restored.result(host)["changed"]) == ("restored", True)
            assert (agent.directory / "etc/agent.toml").read_text().endswith(f"text = '{text}'\n")
    nothing = controller.each(CONFIG, back).good()
    assert [(nothing.result(host)["changed"], nothing.result(host)["reason"]) for host in enrolled] == [(False, "nothing_to_restore")] * len(enrolled)


def raw(text: str, fmt: str = "text", **more: Any) -> dict[str, Any]:
    """One wrong file; ``path`` is filled in for each host."""
    return {"content": f"{{% raw %}}{text}{{% endraw %}}", "format": fmt, **more}


WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "unknown-secret": ("unknown_secret", "known here: database, token", raw("{{ muster_secret.jeton }}")),
    "invalid-env": ("invalid_content", "environment file", raw("A=1\nnot a line of one", "env")),
    "invalid-toml": ("invalid_content", "TOML", raw("a = [", "toml")),
    "invalid-json": ("invalid_content", "JSON", raw('{"token": {{ muster_secret.token }} }', "json")),
    "invalid-yaml": ("invalid_content", "YAML", raw("a: [", "yaml")),
    "failing-template": ("render_failure", "could not be rendered", raw("{{ 1 / 0 }}")),
    "refused-by-validate": ("invalid", "the old file stays", raw("x", validate="/bin/false %s")),
    "unknown-owner": ("unknown_owner", "create them first", raw("x", owner="nobody-of-that-name")),
}


def test_a_wrong_file_is_refused_in_one_sentence_and_the_old_one_stays(controller: Controller, enrolled: Mapping[str, Agent]) -> None:
    agents, options = {}, {}
    for way, agent in enrolled.items():
        (agent.directory / "etc").mkdir()
        for kind, (_reason, _words, wrong) in WRONG.items():
            path = agent.directory / "etc" / kind
            path.write_text("old")
            agents[f"{kind}-{way}"] = agent
            options[f"{kind}-{way}"] = settings(agent, {**wrong, "path": str(path)})
    before = {way: agent.everything() for way, agent in enrolled.items()}
    ran = controller.each(CONFIG, options, arguments=["-vvvv", "--diff"])
    for host, agent in agents.items():
        reason, words, _wrong = WRONG[host.rpartition("-")[0]]
        result = ran.result(host)
        assert (result["failed"], result["changed"], result["reason"]) == (True, False, reason), result
        assert words in result["msg"]
        assert "\n" not in result["msg"]
        for secret in (agent.secret(), DATABASE):
            assert secret not in ran.output
    assert {way: agent.everything() for way, agent in enrolled.items()} == before


def test_a_host_that_is_not_enrolled_gets_the_operators_files_and_nothing_else(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {way: Agent(world, "shipped", tmp_path / way, way) for way in WAYS}
    wrong = controller.each(CONFIG, {way: settings(agent, agent_json(agent)) for way, agent in agents.items()})
    for way, agent in agents.items():
        assert (wrong.result(way)["reason"], agent.everything()) == ("unknown_secret", {})
        assert "known here: database" in wrong.result(way)["msg"]
    options = {way: settings(agent, toml(agent)) for way, agent in agents.items()}
    controller.each(CONFIG, options).good()
    again = controller.each(CONFIG, options).good()
    for way, agent in agents.items():
        assert again.result(way)["changed"] is False
        assert (agent.directory / "etc/agent.toml").exists()
        assert not (agent.root / "receipt.json").exists()


def test_listed_files_go_from_a_host_that_is_not_enrolled(world: World, controller: Controller, tmp_path: Path) -> None:
    agents = {way: Agent(world, "shipped", tmp_path / way, way) for way in WAYS}
    for agent in agents.values():
        (agent.directory / "etc").mkdir(parents=True)
        (agent.directory / "etc" / "agent.toml").write_text("old")
    gone = {way: settings(agent, toml(agent), state="absent") for way, agent in agents.items()}
    for changed in (True, False):
        removed = controller.each(CONFIG, gone).good()
        for way, agent in agents.items():
            assert removed.result(way)["changed"] is changed
            assert not (agent.directory / "etc" / "agent.toml").exists()
