#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cert_issue
short_description: Give a host a certificate for a key that never leaves it
version_added: 1.0.0
description:
  - Makes a key on the host, has its signing request signed by your own CA, by the PKI engine of Vault or OpenBao, or by a control plane's signer, checks the
    answer, and puts key, certificate and CA in place with one rename.
  - Run it as often as you like. It renews when the certificate is missing, unreadable, of another key, subject, name, usage or CA, revoked, or due, and
    leaves everything alone otherwise. RV(reason) says which.
  - Each renewal makes a new key. The generation before is kept on the host.
  - The new key is on the host's disk before the signer hears of it. When an answer is lost or a run dies, the next run asks for the same key again, and
    what an interrupted installation left is put right.
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - cryptography 3.3 or later on the host (the package C(python3-cryptography)).
  - cryptography and requests on the controller, and hvac for O(issuer=vault_pki).
attributes:
  check_mode:
    support: full
    details:
      - Asks the host and the signer's public parts, makes no key and sends no request.
  diff_mode:
    support: full
    details:
      - Shows subject, names, issuer, serial number, dates, usages and fingerprint of the old and the new certificate.
  idempotent:
    support: full
    details:
      - With O(force=true) every run makes a new certificate.
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
  - muster.agents.certificate
  - muster.agents.issuer
  - muster.agents.vault.login
  - muster.agents.transport
options:
  state:
    description:
      - V(present) makes the host have the certificate. It needs O(subject) and O(issuer).
      - V(absent) removes key, certificate and CA with all generations from the host. The certificate stays valid until it expires.
      - V(revoked) has O(issuer) revoke what it issued and the host holds, then removes it like V(absent). With O(serial_number) the host is not visited.
    type: str
    choices: [present, absent, revoked]
    default: present
  serial_number:
    description:
      - The certificate that O(state=revoked) is about, in hexadecimal with or without colons, for a host that is lost.
    type: str
notes:
  - The host's part needs root. Set C(become) where the connection is not root's.
  - O(ca_cert), O(client_cert), O(timeout) and the other options about the transport are for O(issuer=remote_signer). Vault has its own in O(vault).
seealso:
  - module: muster.agents.key_pair
  - module: muster.agents.agent_register
"""

EXAMPLES = r"""
- name: Give the agent a client certificate from our own CA
  muster.agents.cert_issue:
    certificate_path: /etc/kubeatlas/certs/agent.crt
    key_path: /etc/kubeatlas/certs/agent.key
    ca_path: /etc/kubeatlas/certs/ca.crt
    subject:
      C: US
      O: KubeAtlas
      CN: "agent-{{ inventory_hostname }}"
    subject_alt_name:
      - "DNS:{{ inventory_hostname }}"
    issuer: own_ca
    own_ca:
      certificate: /etc/ansible/pki/agents-ca.pem
      key: /etc/ansible/pki/agents-ca.key
      passphrase_file: /etc/ansible/pki/agents-ca.passphrase
      directory: /etc/ansible/pki/agents-ca
  become: true
  register: pair

- name: Renew short-lived certificates of an unprivileged agent by Vault's PKI engine, after half of their lifetime
  muster.agents.cert_issue:
    certificate_path: /etc/agent/tls/agent.pem
    key_path: /etc/agent/tls/agent.key
    ca_path: /etc/agent/tls/ca.pem
    subject:
      CN: "{{ inventory_hostname }}.agents.example.com"
    subject_alt_name:
      - "DNS:{{ inventory_hostname }}.agents.example.com"
      - "URI:spiffe://example.com/agent/{{ inventory_hostname }}"
    extended_key_usage: [clientAuth, serverAuth]
    valid_days: 14
    renew_at: 0.5
    group: agent
    key_mode: "0640"
    issuer: vault_pki
    vault_pki:
      mount: pki-agents
      role: agent
    vault:
      url: https://vault.example.com:8200
      ca_cert: /etc/ansible/company-ca.pem
      auth_method: approle
      role_id: 2f3a7c1e-6f0e-4f1c-9d0a-0c9a4a1f7b52
      secret_id_file: /etc/ansible/vault-secret-id
  become: true

- name: Renew, and say what has to be done when it does not work
  block:
    - name: Have the control plane's signer renew the certificate
      muster.agents.cert_issue:
        certificate_path: /etc/kubeatlas/certs/agent.crt
        key_path: /etc/kubeatlas/certs/agent.key
        subject:
          CN: "agent-{{ inventory_hostname }}"
        renew_days: 30
        issuer: remote_signer
        url: https://pki.example.com:8443
        ca_cert: /etc/ansible/company-ca.pem
        issuer_ca: /etc/ansible/pki/agents-ca.pem
        controller_name: main
      become: true
      register: renewed
  rescue:
    - name: Tell a host without the library from other failures
      ansible.builtin.fail:
        msg: "{{ 'Install python3-cryptography.' if renewed.reason == 'missing_library' else renewed.msg }}"

- name: Revoke the certificate of a host that was lost
  muster.agents.cert_issue:
    state: revoked
    serial_number: 3F:9A:01:77:4C
    issuer: own_ca
    own_ca:
      certificate: /etc/ansible/pki/agents-ca.pem
      key: /etc/ansible/pki/agents-ca.key
      passphrase_file: /etc/ansible/pki/agents-ca.passphrase
      directory: /etc/ansible/pki/agents-ca
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be.
  returned: success
  type: str
  choices: [unchanged, issued, renewed, updated, repaired, removed, revoked]
  sample: renewed
reason:
  description:
    - Why, as a stable key. V(ok) when nothing was due. A new certificate is made because of V(missing), V(unreadable), V(key_missing), V(key_unreadable),
      V(key_mismatch), V(issuer_changed), V(expired), V(not_yet_valid), V(weak_signature), V(subject_changed), V(san_changed), V(usage_changed),
      V(key_changed), V(expires_soon), V(revoked) or V(forced).
    - The certificate stays and what lies around it is put right because of V(chain_changed), V(interrupted), V(links), V(attributes) or V(leftovers).
    - For the other states one of V(removed), V(nothing_to_remove), V(revoked) and V(nothing_to_revoke).
    - On failure what is wrong. On the host V(missing_library), V(not_writable), V(disk_full), V(locked), V(changed), V(unsafe), V(unknown_owner) or
      V(clock_skew). About a CA of your own V(ca_expired), V(ca_not_yet_valid), V(not_a_ca), V(ca_without_cert_sign), V(ca_without_crl_sign), V(ca_pathlen),
      V(ca_chain), V(ca_mismatch), V(ca_passphrase) or V(ca_weak). About a signer's answer V(issuer_mismatch), V(key_mismatch), V(expired),
      V(not_yet_valid), V(absurd_lifetime), V(absurd_usage), V(subject_changed), V(san_changed), V(usage_changed), V(key_changed) or
      V(incomplete_answer). Otherwise V(invalid_input), V(refused), V(no_signer), V(cannot_revoke), V(unknown_serial), V(missing_issuer), V(ambiguous), or
      a reason that M(muster.agents.vault_token_store) has for Vault.
  returned: always
  type: str
  sample: expires_soon
msg:
  description: One sentence for people. On failure it says what to do.
  returned: always
  type: str
  sample: "A new certificate is in place (expires_soon: it expires at 2026-03-01T10:00:00Z and was due at 2025-10-29T18:00:00Z)."
certificate:
  description: The certificate that the host has now. In check mode the one it keeps. Empty for none.
  returned: success
  type: dict
  contains:
    subject:
      description: Distinguished name as RFC 4514 writes it, the special before the general.
      type: str
      sample: CN=agent-web,O=KubeAtlas,C=US
    issuer:
      description: Distinguished name of the CA.
      type: str
      sample: CN=Agents CA
    serial:
      description: Serial number in hexadecimal, as openssl prints it.
      type: str
      sample: 3F9A01774C
    sha256:
      description: SHA-256 of the certificate in hexadecimal.
      type: str
      sample: 0f4a1b0c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8
    spki_sha256:
      description: SHA-256 of its public key in base64, as pins have it.
      type: str
      sample: r/mIkG3eEpVdm+u/ko/cwxzOMo1bk4TyHIlByibiA5E=
    not_before:
      description: Start of its validity.
      type: str
      sample: "2026-01-01T09:59:00Z"
    not_after:
      description: End of its validity.
      type: str
      sample: "2027-01-01T10:00:00Z"
    days_left:
      description: Days until then.
      type: float
      sample: 365.0
    renew_after:
      description: When this host renews it, with the host's own jitter.
      type: str
      sample: "2026-08-27T03:12:44Z"
    names:
      description: Subject alternative names.
      type: list
      elements: str
      sample: [DNS:web.example.com]
    key:
      description: Kind of the key.
      type: str
      sample: EC secp256r1
    signature:
      description: Hash that the CA signed with.
      type: str
      sample: sha256
    key_usage:
      description: Key usages.
      type: list
      elements: str
      sample: [digitalSignature]
    extended_key_usage:
      description: Extended key usages.
      type: list
      elements: str
      sample: [clientAuth]
previous:
  description: The certificate that was replaced, like RV(certificate).
  returned: success, for O(state=present)
  type: dict
  sample: {}
generation:
  description: Number of the generation in use, V(0) for plain files that were there before.
  returned: success, for O(state=present)
  type: int
  sample: 2
reload_pending:
  description:
    - Whether whoever uses the files has to be told of new ones. It stays V(true) over runs until M(muster.agents.key_pair) was run with C(operation=settle).
  returned: success, for O(state=present)
  type: bool
  sample: true
revoked:
  description: Serial numbers that were revoked.
  returned: success
  type: list
  elements: str
  sample: []
duration:
  description: Seconds that the task took.
  returned: always
  type: float
  sample: 0.71
"""
