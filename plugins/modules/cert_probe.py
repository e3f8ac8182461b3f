#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cert_probe
short_description: Show the certificates that a host has in files and that servers show to it
version_added: 1.0.0
description:
  - Reads certificate files on the host, and connects from the host to servers to see which certificates they show. It judges nothing.
  - M(muster.agents.cert_check) runs it for O(muster.agents.cert_check#module:from=host) and judges what comes back; use that in playbooks.
  - Private keys are read on the host only, to say whether they belong to their certificates.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - Python 3.9 or newer on the host; cryptography there for PKCS#12 files, and for keys and certificates in DER that are to be compared
attributes:
  check_mode:
    support: full
    details:
      - It only reads.
  diff_mode:
    support: none
    details:
      - It changes nothing.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
options:
  targets:
    description: Servers to connect to.
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description: Name or address of the server.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      server_name:
        description: The name to ask for in TLS. Empty asks for O(targets[].host).
        type: str
        default: ''
      address:
        description: Where to connect, instead of the addresses of O(targets[].host).
        type: str
        default: ''
      starttls:
        description: The protocol that TLS is asked for in, empty where the server speaks TLS at once.
        type: str
        default: ''
        choices: ['', smtp, imap, pop3, ldap, postgres, mysql, xmpp]
      client_cert:
        description: File on the host with the certificate to show to the server, empty for none.
        type: str
        default: ''
      client_key:
        description: File on the host with the key of O(targets[].client_cert).
        type: str
        default: ''
      passphrase_file:
        description: File on the host that holds the passphrase of that key.
        type: str
        default: ''
      all_addresses:
        description: Whether every address of the name is tried, or the first one alone.
        type: bool
        default: true
      staple:
        description: Whether to ask for an OCSP answer with the handshake, for which another connection is made to each address.
        type: bool
        default: false
  files:
    description: Certificate files to read.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: str
        required: true
      key_path:
        description: The private key that should belong to it.
        type: str
        default: ''
      passphrase_file:
        description: File on the host that holds the passphrase of the key or of the PKCS#12 file.
        type: str
        default: ''
  directories:
    description: Directories whose certificate files are read; wildcards are allowed.
    type: list
    elements: str
    default: []
  patterns:
    description: Names of certificate files in O(directories).
    type: list
    elements: str
    default: ['*.pem', '*.crt', '*.cer', '*.der', '*.p12', '*.pfx']
  timeout:
    description: Seconds for one address with all its tries.
    type: float
    default: 5.0
  retries:
    description: Further tries after failures that may pass at once.
    type: int
    default: 2
  concurrency:
    description: How many connections are begun at a time.
    type: int
    default: 64
seealso:
  - module: muster.agents.cert_check
"""

EXAMPLES = r"""
- name: Show what a host's own web server serves, and what its file holds
  muster.agents.cert_probe:
    targets:
      - host: 127.0.0.1
        port: 443
        server_name: www.example.com
    files:
      - path: /etc/ssl/www.example.com.pem
        key_path: /etc/ssl/private/www.example.com.key
  register: shown

- name: List the certificates in a directory of the host
  muster.agents.cert_probe:
    directories: [/etc/ssl/agents]
"""

RETURN = r"""
sights:
  description: For each of O(targets), what its addresses showed.
  returned: success
  type: list
  elements: list
  sample:
    - - address: 127.0.0.1
        reason: ok
        msg: ''
        chain: ["-----BEGIN CERTIFICATE-----\n..."]
        tls_version: TLSv1.3
        cipher_suite: TLS_AES_256_GCM_SHA384
        client_certificate: none
        tries: 1
        staple: ''
readings:
  description: For each of O(files), what it holds.
  returned: success
  type: list
  elements: dict
  sample:
    - path: /etc/ssl/www.example.com.pem
      reason: ok
      msg: ''
      chain: [MIIB...]
      kind: pem
      key: match
      key_msg: ''
found:
  description: The same for the files in O(directories).
  returned: success
  type: list
  elements: dict
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.muster.agents.plugins.module_utils._certificate_files import PATTERNS, FileSource, expand, read
from ansible_collections.muster.agents.plugins.module_utils._tls_probe import STARTTLS, Target, probe

_TEXT = {"type": "str", "default": ""}


def main() -> None:
    """Look at everything that was asked for; what a server or a file does is part of the answer, never a failure."""
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "default": [], "options": {
                "host": {"type": "str", "required": True}, "port": {"type": "int", "required": True}, "server_name": _TEXT, "address": _TEXT,
                "starttls": {"type": "str", "default": "", "choices": ["", *STARTTLS]}, "client_cert": _TEXT,
                "client_key": {"type": "str", "default": "", "no_log": False}, "passphrase_file": {"type": "str", "default": "", "no_log": False},
                "all_addresses": {"type": "bool", "default": True}, "staple": {"type": "bool", "default": False}}},
            "files": {"type": "list", "elements": "dict", "default": [], "options": {
                "path": {"type": "str", "required": True}, "key_path": {"type": "str", "default": "", "no_log": False},
                "passphrase_file": {"type": "str", "default": "", "no_log": False}}},
            "directories": {"type": "list", "elements": "str", "default": []},
            "patterns": {"type": "list", "elements": "str", "default": list(PATTERNS)},
            "timeout": {"type": "float", "default": 5.0},
            "retries": {"type": "int", "default": 2},
            "concurrency": {"type": "int", "default": 64},
        },
        supports_check_mode=True)
    given = module.params
    sights = probe(
        [Target(**target) for target in given["targets"]], timeout=given["timeout"], retries=given["retries"], concurrency=given["concurrency"])
    module.exit_json(
        changed=False, sights=[[sight.dump() for sight in group] for group in sights],
        readings=[read(FileSource(**source)).dump() for source in given["files"]],
        found=[read(source).dump() for source in expand(given["directories"], given["patterns"])])


if __name__ == "__main__":
    main()
