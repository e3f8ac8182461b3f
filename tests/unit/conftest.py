# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads collections as ansible-playbook does, before any unit test imports one, so that plugins and filters are found by their full names.

Says too which tests do not depend on the version of ansible-core: those of the servers, of the world and of the gates are ``thorough`` and run with one
version; those of plugin code that uses nothing of core are ``coreless`` and run once for each version of Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig


def pytest_configure() -> None:
    """Install core's collection loader."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([path for path in sys.path if (Path(path or ".") / "ansible_collections").is_dir()])


_THOROUGH = frozenset({"benchmarks", "gates", "reference", "world"})
_CORELESS_FOLDERS = frozenset({"check", "issuers", "vault"})
_CORELESS_FILES = frozenset({
    "test_agent_probe.py", "test_certificates.py", "test_credential_store.py", "test_host_scripts.py", "test_http.py", "test_identity_rules.py",
    "test_pair_probe.py", "test_receipt.py", "test_secrets.py", "test_shared_state.py", "test_spool.py", "test_times.py",
})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what need not run with every version."""
    for item in items:
        folder, name = item.path.parent.name, item.path.name
        if folder in _THOROUGH:
            item.add_marker("thorough")
        elif folder in _CORELESS_FOLDERS or name in _CORELESS_FILES or name.endswith("_contract.py"):
            item.add_marker("coreless")
