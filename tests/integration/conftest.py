# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every integration test needs: a way to run ansible-playbook, and a real OpenBao."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.muster.agents.plugins.plugin_utils import _errors
from reference_server.client import ReferenceServer, Tls, VaultLink
from world import OpenBao
from world.ca import CertificateAuthority

from .agents import CONTRACTS, World
from .atlas import Atlas, atlases
from .controller import Controller

_COLLECTIONS = Path(str(_errors.__file__)).parents[5]

# What each version of ansible-core is asked to show: a way through each module and control plane, what its own templating, argument checks and
# logging could spoil, and a run that dies. What else these files prove is proved with one version.
_WITH_EVERY_CORE: Mapping[str, tuple[str, ...]] = {
    "test_agent_config.py": (
        "test_files_are_foretold_rendered_kept_put_back_and_removed", "test_a_wrong_file_is_refused_in_one_sentence_and_the_old_one_stays"),
    "test_agent_health.py": (
        "test_a_good_agent_is_committed_once_and_never_again", "test_check_mode_and_commit_false_write_nothing",
        "test_a_broken_agent_is_red_with_its_reason_and_its_journal", "test_no_secret_is_shown_even_when_the_agent_logs_it",
        "test_it_says_whether_the_server_can_be_used"),
    "test_agent_register_adoption.py": (
        "test_a_host_enrolled_by_the_guides_playbook_is_adopted_with_its_id_and_no_registration",
        "test_a_token_changed_in_vault_by_another_writer_is_taken_over_by_use"),
    "test_agent_register_bad_input.py": (
        "test_wrong_input_is_refused_in_one_sentence_and_leaves_no_trace", "test_no_wrong_input_ever_sends_a_request_that_changes_something",
        "test_a_missing_name_is_told_by_name"),
    "test_bootstrap.py": ("test_the_role_stops_the_play_with_one_message",),
    "test_cert_check.py": ("test_a_server_and_its_files_are_checked_from_controller_and_host",),
    "test_cert_issue.py": ("test_issued_left_alone_renewed_and_removed",),
    "test_cert_leaks.py": (),
    "test_check_playbook.py": (),
    "test_kubeatlas.py": ("test_install_token_of_the_operators_is_enough_and_stays_off_the_host",),
    "test_oxmon.py": ("test_from_a_bare_host_to_a_withdrawn_one",),
    "test_pganalytics.py": ("test_collectors_are_enrolled_once_and_a_second_run_sends_nothing_that_changes",),
    "test_pganalytics_examples.py": (),
    "test_registration_secret.py": ("test_a_secret_is_made_once_buys_an_enrolment_and_is_revoked",),
    "test_token_rotate.py": ("test_a_rotation_is_foretold_done_and_then_left_alone",),
    "test_token_rotate_crashes.py": (),
    "test_token_rotate_fleet.py": ("test_a_fleet_is_foretold_rotated_and_then_adopted_by_its_hosts_without_a_change_at_the_server",),
    "test_token_rotate_pair.py": (),
    "test_token_rotate_planes.py": (),
    "test_token_rotate_units.py": (),
    "test_vault_token_store.py": (
        "test_present_again_and_absent", "test_the_secrets_of_an_enrolled_agent_and_its_own_vault_token", "test_required_options_are_named"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what one version of ansible-core proves for all of them. Fails when the table names a test that its file has not."""
    for item in items:
        name = getattr(item, "originalname", item.name)
        if name not in _WITH_EVERY_CORE.get(item.path.name, (name,)):
            item.add_marker("thorough")
    for path in {item.path for item in items}:
        missing = [name for name in _WITH_EVERY_CORE.get(path.name, ()) if f"def {name}(" not in path.read_text()]
        if missing:
            raise pytest.UsageError(f"{path.name} has no {', '.join(missing)}: mend the table in conftest.py.")


@dataclass(frozen=True)
class Ran:
    """How a playbook ended: exit code, everything it printed, and the results of its tasks in order (failed ones included)."""

    code: int
    output: str
    results: Sequence[Mapping[str, Any]]

    @property
    def result(self) -> Mapping[str, Any]:
        """The result of the last task."""
        return self.results[-1]


class Playbook:
    """Runs tasks on localhost with the ansible-playbook beside this Python."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, *tasks: Mapping[str, Any], arguments: Sequence[str] = (), variables: Mapping[str, Any] | None = None) -> Ran:
        """Run *tasks* with further command-line *arguments* (``--check``, ``-vvvv``). A failing task does not stop the rest."""
        collected = self._directory / "results.json"
        steps = []
        for number, task in enumerate(tasks):
            steps.append({"name": f"Step {number}", **task, "register": f"step_{number}", "ignore_errors": True})
        names = ", ".join(f"step_{number}" for number in range(len(tasks)))
        keep = {"ansible.builtin.copy": {"content": f"{{{{ [{names}] | to_json }}}}", "dest": str(collected), "mode": "0600"},
                "check_mode": False, "diff": False, "no_log": True, "changed_when": False}
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": dict(variables or {}), "tasks": [*steps, keep]}
        book = self._directory / "play.json"
        book.write_text(json.dumps([play]))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", *arguments, str(book)], env=self._environment(),
            cwd=self._directory, capture_output=True, text=True, check=False, timeout=300)
        results = json.loads(collected.read_text()) if collected.exists() else []
        collected.unlink(missing_ok=True)
        return Ran(done.returncode, done.stdout + done.stderr, results)

    def _environment(self) -> dict[str, str]:
        ours = {
            "ANSIBLE_COLLECTIONS_PATH": str(_COLLECTIONS), "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_LOCAL_TEMP": str(self._directory / "controller"),
            "ANSIBLE_REMOTE_TEMP": str(self._directory / "host"), "ANSIBLE_PIPELINING": "true",
        }
        return {**{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}, **ours}


@pytest.fixture
def playbook(tmp_path: Path) -> Playbook:
    """A runner of playbooks in a directory of its own."""
    directory = tmp_path / "ansible"
    directory.mkdir()
    return Playbook(directory)


@pytest.fixture(scope="session")
def bao() -> Iterator[OpenBao]:
    """One OpenBao for the session, with a KV v1 mount ``status_panel`` and a KV v2 mount ``secret``."""
    with OpenBao() as server:
        server.enable_kv("status_panel", 1)
        server.enable_kv("secret", 2)
        yield server


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """The CA that signed the control planes' certificates."""
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def tls(ca: CertificateAuthority) -> Tls:
    """The control planes' own certificate."""
    pair = ca.server()
    return Tls(str(pair.cert), str(pair.key))


@pytest.fixture(scope="session")
def _shared_world(bao: OpenBao, ca: CertificateAuthority, tls: Tls) -> Iterator[World]:
    """One Stacker of each contract for the session, both with the session's OpenBao behind them."""
    link = VaultLink(bao.url, str(bao.token_file), str(bao.ca_file), "status_panel")
    stackers = {contract: ReferenceServer.start(contract, tls=tls, vault=link) for contract in CONTRACTS}
    yield World(stackers, bao, ca.ca_file, tls)
    for server in stackers.values():
        server.stop()


@pytest.fixture
def world(_shared_world: World) -> Iterator[World]:
    """The shared servers, counting from zero; whatever a test did to them is put right afterwards."""
    for server in _shared_world.stackers.values():
        server.reset()
    _shared_world.quiet()
    yield _shared_world
    _shared_world.bao.unseal()


@pytest.fixture(scope="session")
def _shared_atlas(ca: CertificateAuthority, tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    """One KubeAtlas of each contract for the session."""
    with atlases(ca, tls, tmp_path_factory.mktemp("agents-ca")) as atlas:
        yield atlas


@pytest.fixture
def atlas(_shared_atlas: Atlas) -> Atlas:
    """The shared servers without records and faults, counting from zero."""
    for server in _shared_atlas.servers.values():
        server.reset()
    return _shared_atlas


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    """A control node with a home of its own."""
    return Controller(tmp_path / "controller")
