# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what the Vault token in /opt/agent/.env can read, as the agent would: ``vault_reach.py OWN_NAME OTHER_NAME``. Prints no secret."""

import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path


def status(settings, path):
    """Return the HTTP status of reading ``path`` below the agents' prefix."""
    url = f"{settings['VAULT_ADDRESS']}/v1/{settings['VAULT_AGENT_PATH_PREFIX']}/{path}"
    request = urllib.request.Request(url, headers={"X-Vault-Token": settings["VAULT_TOKEN"]})
    context = ssl.create_default_context(cafile=settings["SSL_CERT_FILE"])
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def main():
    """Try both leaves of both agents."""
    lines = Path("/opt/agent/.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    for whose, name in zip(("own", "other"), sys.argv[1:]):
        for leaf in ("token", "status_panel_token"):
            print(f"{whose}/{leaf} {status(settings, f'{name}/{leaf}')}")


if __name__ == "__main__":
    main()
