#!/usr/bin/python
# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cert_check
short_description: Check certificates in files and at servers, many at once
version_added: 1.0.0
description:
  - Looks at certificate files and at the certificates that servers show, and says of each whether it is V(ok), V(warning), V(critical), V(expired) or
    V(unreachable), and why.
  - It sees what others do not. It tells when a server still serves another certificate than its file holds, when the addresses of a name do not agree, when an
    intermediate certificate is missing, when a key belongs to another certificate, and when a CA on the way expires.
  - One task checks any number of servers at the same time. Dead ones cost one O(timeout) together.
  - It only reads, and fails only for the verdicts in O(fail_on).
author:
  - muster.agents contributors (@muster-agents)
requirements:
  - cryptography and requests on the controller
  - cryptography on the host for PKCS#12 files there
attributes:
  check_mode:
    support: full
    details:
      - It looks and judges as ever, but writes neither O(json_file) nor O(prometheus_file) and remembers nothing.
  diff_mode:
    support: none
    details:
      - It changes nothing.
  idempotent:
    support: full
extends_documentation_fragment:
  - muster.agents.attributes
  - muster.agents.attributes.action
options:
  files:
    description:
      - Certificate files in PEM (a chain may follow the certificate), DER or PKCS#12. A plain string is short for O(files[].path).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file, on the machine that looks.
        type: str
        required: true
      key:
        description: The private key that must belong to the certificate. It is read where it lies and only compared.
        type: str
      name:
        description: What the item is called in results. The path, when it is not given.
        type: str
      hostname:
        description: The host that the certificate must be for.
        type: str
      purpose:
        description: What the certificate must be good for, by its extended key usage.
        type: str
        choices: [server, client]
      pin_sha256:
        description: As O(endpoints[].pin_sha256).
        type: str
      check_chain:
        description: As O(check_chain), for this file.
        type: bool
  directories:
    description:
      - Directories whose certificate files are checked. Wildcards are allowed in the path, and files that hold no certificate are passed over.
    type: list
    elements: str
    default: []
  patterns:
    description: Names of the files in O(directories) that are looked at.
    type: list
    elements: str
    default: ['*.pem', '*.crt', '*.cer', '*.der', '*.p12', '*.pfx']
  endpoints:
    description:
      - Servers to connect to. A plain string is short for O(endpoints[].host), such as C(www.example.com:8443) or C([2001:db8::7]:443).
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description: Name or address of the server, with the port after a colon if you like.
        type: str
        required: true
      port:
        description: Its port. The usual one of O(endpoints[].starttls), else 443, when it is not given.
        type: int
      name:
        description: What the item is called in results. Host and port, when it is not given.
        type: str
      server_name:
        description: The name to ask for in TLS (SNI), which the certificate must be for. The host, when it is not given.
        type: str
      address:
        description: The address to connect to, instead of those that the host resolves to. So a server can be checked before the name points to it.
        type: str
      starttls:
        description: The protocol that is spoken until TLS begins. Without it TLS begins at once.
        type: str
        choices: [smtp, imap, pop3, ldap, postgres, mysql, xmpp]
      client_cert:
        description: As O(client_cert), for this server.
        type: str
      client_key:
        description: As O(client_key), for this server.
        type: str
      pin_sha256:
        description:
          - The SHA-256 that the certificate must have, in hexadecimal, or the one that its public key must have, in base64.
        type: str
      file:
        description:
          - The certificate file, on the machine that looks, that the server should be serving. One that serves another certificate was not reloaded.
        type: str
      check_hostname:
        description: Whether the certificate must be for O(endpoints[].server_name).
        type: bool
        default: true
      check_chain:
        description: As O(check_chain), for this server.
        type: bool
  from:
    description: Who looks. V(host) reads files on the host and connects from there.
    type: str
    choices: [controller, host]
    default: controller
  ca_certs:
    description:
      - Files on the controller with the CAs to trust. The system's CAs are trusted when none is given.
      - Every certificate in them is trusted, also one of an intermediate CA.
    type: list
    elements: path
    default: []
  intermediates:
    description:
      - Files on the controller with certificates of intermediate CAs that are known but not trusted by themselves. They help to tell a missing intermediate
        from an unknown CA; so do those that other servers of the same task send.
    type: list
    elements: path
    default: []
  check_chain:
    description: Whether a certificate has to lead to a trusted CA. RV(results[].chain_valid) is told in any case.
    type: bool
    default: true
  all_addresses:
    description: Whether every IPv4 and IPv6 address of a name is looked at and has to show the same certificate, or the first one alone.
    type: bool
    default: true
  client_cert:
    description: File with the certificate to show to servers, in PEM, on the machine that looks.
    type: str
  client_key:
    description: File with the key of O(client_cert), in PEM, on the machine that looks.
    type: str
  passphrase:
    description: The passphrase of encrypted keys and PKCS#12 files. Only with O(from=controller), so that it is sent nowhere.
    type: str
  passphrase_file:
    description: File that holds the passphrase, on the machine that looks.
    type: str
  warning_days:
    description: Days before the expiry from which on the verdict is V(warning). 30 when neither this nor a percentage is given.
    type: float
  critical_days:
    description: Days before the expiry from which on the verdict is V(critical). 7 when neither this nor a percentage is given.
    type: float
  warning_percent:
    description: Percentage of the lifetime that is left from which on the verdict is V(warning). Fits certificates that live for days or hours.
    type: float
  critical_percent:
    description: Percentage of the lifetime that is left from which on the verdict is V(critical).
    type: float
  ignore:
    description: Reasons that do not count, such as V(self_signed). They are told in RV(results[].ignored).
    type: list
    elements: str
    default: []
  fail_on:
    description: Verdicts that make the task fail.
    type: list
    elements: str
    choices: [warning, critical, expired, unreachable]
    default: []
  revocation:
    description:
      - How to ask whether a CA has taken the certificate back. V(crl) fetches the lists that the certificate names and those in O(crls), V(ocsp) asks the
        responder that it names, and each server for the answer that it staples to its handshake. Nothing is asked unless you say so.
      - An answer that cannot be had is a V(warning), never more, since responders fail more often than certificates are revoked.
    type: list
    elements: str
    choices: [crl, ocsp]
    default: []
  crls:
    description: Further certificate revocation lists, by path on the controller or by URL.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Seconds for one address with all its tries, and for one revocation list or answer.
      - Moments in which the machine that looks was too busy to listen do not count, so that a server is not called silent for them.
    type: float
    default: 5.0
  retries:
    description: Further tries at an address after failures that may pass at once (refused, reset, closed), with pauses that double, within O(timeout).
    type: int
    default: 2
  concurrency:
    description: How many connections are begun at a time. Servers that are silent do not hold up the others.
    type: int
    default: 64
  remember:
    description: Whether the controller remembers, from run to run, how long an item has been failing and when it was good.
    type: bool
    default: true
  json_file:
    description: File on the controller that gets the results as JSON.
    type: path
  prometheus_file:
    description:
      - File on the controller that gets metrics for the textfile collector of node_exporter. It is replaced as a whole.
      - An item that cannot be reached keeps the dates that were seen last, and C(muster_certificate_up) says 0, so that an alert about an expiry does not end
        because the server is down.
    type: path
seealso:
  - module: muster.agents.cert_issue
  - module: muster.agents.cert_probe
  - plugin: muster.agents.cert_days_left
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Check the web servers and the mail server, and fail when one of them is about to expire
  muster.agents.cert_check:
    endpoints:
      - www.example.com
      - www.example.com:8443
      - host: mail.example.com
        starttls: smtp
    fail_on: [critical, expired]
  run_once: true

- name: Check on every host what it has, with its key, and whether the server there was reloaded
  muster.agents.cert_check:
    from: host
    ca_certs: [/etc/ssl/company-ca.pem]
    files:
      - path: /etc/kubeatlas/certs/current/agent.crt
        key: /etc/kubeatlas/certs/current/agent.key
        purpose: client
    directories: [/etc/ssl/agents]
    endpoints:
      - host: "{{ inventory_hostname }}:8443"
        address: 127.0.0.1
        file: /etc/ssl/agents/server.pem
  register: checked

- name: Watch certificates that live for a day, behind client certificates, and write metrics
  muster.agents.cert_check:
    endpoints: "{{ groups['control_planes'] | map('regex_replace', '$', ':8443') | list }}"
    ca_certs: [/etc/ssl/company-ca.pem]
    client_cert: /etc/ssl/monitor.pem
    client_key: /etc/ssl/private/monitor.key
    warning_percent: 33
    critical_percent: 10
    revocation: [crl]
    prometheus_file: /var/lib/node_exporter/muster_certificates.prom
  run_once: true

- name: Show what was found before the play fails
  block:
    - name: Check the servers of a list
      muster.agents.cert_check:
        endpoints: "{{ watched_endpoints }}"
        ignore: [self_signed]
        fail_on: [critical, expired, unreachable]
      register: checked
  rescue:
    - name: Show the table
      ansible.builtin.debug:
        msg: "{{ checked.table | default(checked.msg) }}"
"""

RETURN = r"""
verdict:
  description: The worst verdict.
  returned: when it could look
  type: str
  sample: warning
reason:
  description:
    - The reason of the worst verdict, V(ok) when everything is good.
    - V(expired), V(expires_soon), V(not_yet_valid), V(self_signed), V(untrusted_root), V(missing_issuer), V(missing_intermediate), V(bad_signature),
      V(chain_expired), V(chain_expires_soon), V(chain_not_yet_valid), V(not_a_ca), V(path_too_long), V(wrong_purpose), V(name_not_permitted),
      V(unknown_critical_extension), V(wrong_host), V(weak_key), V(weak_signature), V(old_protocol), V(pin_mismatch), V(revoked), V(crl_stale),
      V(crl_unavailable), V(ocsp_stale), V(ocsp_unknown), V(ocsp_unavailable), V(key_mismatch), V(key_missing), V(key_unreadable), V(key_encrypted),
      V(key_not_compared), V(served_differs), V(file_not_compared), V(addresses_disagree), V(malformed), V(malformed_name), V(bad_serial), V(unknown_key).
    - Of servers also V(unresolvable), V(no_route), V(refused), V(timeout), V(silent), V(closed), V(reset), V(not_tls), V(tls_failed), V(starttls_refused),
      V(client_certificate_required), V(client_certificate_refused), V(bad_client_certificate); of files V(file_missing), V(file_unreadable),
      V(file_empty), V(no_certificate), V(damaged), V(too_large), V(too_many), V(wrong_passphrase), V(missing_library).
    - When it could not look, V(invalid_input), V(missing_library), V(host_failure) or V(not_writable).
  returned: always
  type: str
  sample: expires_soon
msg:
  description: One sentence for people.
  returned: always
  type: str
  sample: '2 checked: 1 ok, 1 warning. www.example.com:443: It expires in 12.3 days (14 % of its lifetime left), at 2026-01-13T12:00:00Z.'
checked_at:
  description: When it looked.
  returned: when it could look
  type: str
  sample: '2026-01-01T04:48:00Z'
summary:
  description: How many items have each verdict.
  returned: when it could look
  type: dict
  sample:
    ok: 1
    warning: 1
    critical: 0
    expired: 0
    unreachable: 0
    total: 2
table:
  description: Lines for people, the worst item first.
  returned: when it could look
  type: list
  elements: str
  sample:
    - ITEM                 VERDICT  DAYS  EXPIRES     ISSUER   REASON
    - www.example.com:443  warning  12.3  2026-01-13  Example  expires_soon
nagios:
  description: The same as a Nagios check has it.
  returned: when it could look
  type: dict
  contains:
    line:
      description: The line with performance data.
      type: str
      sample: "CERTIFICATES OK - 1 ok | 'www.example.com:443'=62.3;30;7"
    code:
      description: The exit code.
      type: int
      sample: 0
alerts:
  description: What an alert about each item that is not V(ok) carries.
  returned: when it could look
  type: list
  elements: dict
  sample:
    - item: www.example.com:443
      verdict: warning
      reason: expires_soon
      msg: It expires in 12.3 days (14 % of its lifetime left), at 2026-01-13T12:00:00Z.
      domain: www.example.com
      not_after: '2026-01-13T12:00:00Z'
      days_left: 12.3
      issuer: CN=Example CA,O=Example,C=NL
      ip_addresses: [192.0.2.7, '2001:db8::7']
      serial_number: 4B:11:0C:93:5E:D2:70:A8
results:
  description: Every item in the order of the options, files of directories last. Fields about the certificate are empty when none was seen.
  returned: when it could look
  type: list
  elements: dict
  contains:
    item:
      description: What the item is called.
      type: str
      sample: www.example.com:443
    kind:
      description: V(endpoint) or V(file).
      type: str
      sample: endpoint
    source:
      description: Who looked, V(controller) or the name of the host.
      type: str
      sample: controller
    domain:
      description: The name that the certificate has to be for.
      type: str
      sample: www.example.com
    port:
      description: The port, 0 for a file.
      type: int
      sample: 443
    path:
      description: The file, empty for a server.
      type: str
      sample: ''
    verdict:
      description: V(ok), V(warning), V(critical), V(expired) or V(unreachable).
      type: str
      sample: ok
    reason:
      description: Why, out of the keys of RV(reason).
      type: str
      sample: ok
    msg:
      description: The same in one sentence.
      type: str
      sample: It is good until 2026-03-13T12:00:00Z.
    problems:
      description: Everything that is wrong, the worst first, each with C(reason), C(severity) and C(msg).
      type: list
      elements: dict
      sample: []
    ignored:
      description: What would be wrong, but is in O(ignore).
      type: list
      elements: dict
      sample: []
    addresses:
      description: What each address showed.
      type: list
      elements: dict
      sample:
        - address: 192.0.2.7
          reason: ok
          msg: ''
          tls_version: TLSv1.3
          cipher_suite: TLS_AES_256_GCM_SHA384
          client_certificate: none
          tries: 1
          chain_depth: 2
          fingerprint_sha256: 5C:0F:0D:F9:71:34:91:A2:9C:6E:0B:7F:21:62:E5:3D:6A:11:5A:90:47:73:2E:4B:1C:C8:AB:00:7D:35:9F:E4
          not_after: '2026-03-13T12:00:00Z'
    ip_addresses:
      description: The addresses that were looked at.
      type: list
      elements: str
      sample: [192.0.2.7]
    not_before:
      description: From when on it is valid.
      type: str
      sample: '2025-12-13T12:00:00Z'
    not_after:
      description: Until when it is valid.
      type: str
      sample: '2026-03-13T12:00:00Z'
    days_until_expiry:
      description: Whole days left, negative when it is over.
      type: int
      sample: 62
    days_left:
      description: Days left.
      type: float
      sample: 62.3
    percent_left:
      description: Percentage of the whole lifetime that is left.
      type: float
      sample: 69.2
    subject:
      description: The subject (RFC 4514).
      type: str
      sample: CN=www.example.com
    subject_cn:
      description: Its common name.
      type: str
      sample: www.example.com
    subject_o:
      description: Its organisation.
      type: str
      sample: ''
    issuer:
      description: The issuer's name (RFC 4514).
      type: str
      sample: CN=Example CA,O=Example,C=NL
    issuer_cn:
      description: Its common name.
      type: str
      sample: Example CA
    issuer_o:
      description: Its organisation.
      type: str
      sample: Example
    issuer_ou:
      description: Its organisational unit.
      type: str
      sample: ''
    issuer_c:
      description: Its country.
      type: str
      sample: NL
    subject_alt_names:
      description: The names and addresses that the certificate is for.
      type: list
      elements: str
      sample: [www.example.com]
    serial_number:
      description: The serial number, in hexadecimal with colons.
      type: str
      sample: 4B:11:0C:93:5E:D2:70:A8
    fingerprint_sha256:
      description: The SHA-256 of the certificate, in hexadecimal with colons.
      type: str
      sample: 5C:0F:0D:F9:71:34:91:A2:9C:6E:0B:7F:21:62:E5:3D:6A:11:5A:90:47:73:2E:4B:1C:C8:AB:00:7D:35:9F:E4
    fingerprint_spki_sha256:
      description: The SHA-256 of its public key, in base64.
      type: str
      sample: bhJtsh1CqaMq9n1rc8ZspHBfTSxZqfcVRT4U8WPOuEU=
    version:
      description: The version of X.509, 3 for all of today.
      type: int
      sample: 3
    signature_algorithm:
      description: What it is signed with, as OpenSSL calls it.
      type: str
      sample: ecdsa-with-SHA256
    public_key_algorithm:
      description: V(RSA), V(ECDSA), V(Ed25519), V(Ed448) or V(DSA).
      type: str
      sample: ECDSA
    public_key_bits:
      description: The size of the key.
      type: int
      sample: 256
    key_usage:
      description: What the key may be used for.
      type: list
      elements: str
      sample: [digital_signature]
    extended_key_usage:
      description: What the certificate may be used for.
      type: list
      elements: str
      sample: [serverAuth]
    is_ca:
      description: Whether it is the certificate of a CA.
      type: bool
      sample: false
    is_wildcard:
      description: Whether one of its names begins with C(*.).
      type: bool
      sample: false
    ocsp_urls:
      description: Where its CA can be asked about it.
      type: list
      elements: str
      sample: []
    crl_urls:
      description: Where its CA lists what it took back.
      type: list
      elements: str
      sample: [http://ca.example.com/agents.crl]
    ca_issuer_urls:
      description: Where the certificate of its issuer lies.
      type: list
      elements: str
      sample: []
    sct_count:
      description: Signed certificate timestamps in it.
      type: int
      sample: 0
    tls_version:
      description: What the server speaks.
      type: str
      sample: TLSv1.3
    cipher_suite:
      description: The cipher suite of the connection.
      type: str
      sample: TLS_AES_256_GCM_SHA384
    client_certificate:
      description: V(none), V(requested), V(required), V(accepted) or V(refused), empty for a file.
      type: str
      sample: none
    chain_depth:
      description: How many certificates came, with the certificate itself.
      type: int
      sample: 2
    chain:
      description: All of them in their order, each with C(subject), C(issuer), C(not_before), C(not_after), C(days_left) and more.
      type: list
      elements: dict
      sample: []
    chain_valid:
      description: Whether the certificate leads to a trusted CA with what came with it.
      type: bool
      sample: true
    chain_error:
      description: Why not, empty when it does.
      type: str
      sample: ''
    chain_reason:
      description: The same as one of the keys of RV(reason).
      type: str
      sample: ok
    missing_intermediate:
      description: Whether the certificate of its issuer, or of one on the way, did not come.
      type: bool
      sample: false
    trusted_path:
      description: The subjects on the way to the trusted CA, the certificate's own first.
      type: list
      elements: str
      sample: [CN=www.example.com, 'CN=Example CA,O=Example,C=NL', 'CN=Example Root,O=Example,C=NL']
    chain_not_after:
      description: When the first certificate on that way expires.
      type: str
      sample: '2026-03-13T12:00:00Z'
    earliest_not_after:
      description: When the first of all certificates that came expires.
      type: str
      sample: '2026-03-13T12:00:00Z'
    host_match:
      description: Whether it is for the host, null when none was asked for.
      type: bool
      sample: true
    pin_match:
      description: Whether it is the one that is pinned, null when none is.
      type: bool
      sample: true
    key_match:
      description: Whether the private key belongs to it, null when that was not asked for or cannot be told.
      type: bool
      sample: true
    file_match:
      description: Whether the server serves what is in the file, null when that was not asked for or cannot be told.
      type: bool
      sample: true
    crl:
      description: What revocation lists say, null when they were not asked.
      type: dict
      sample:
        status: good
        msg: ''
        url: http://ca.example.com/agents.crl
        this_update: '2026-01-01T00:00:00Z'
        next_update: '2026-01-31T00:00:00Z'
        revoked_at: ''
        revocation_reason: ''
    ocsp:
      description: What the responder says, null when it was not asked. The keys are those of RV(results[].crl).
      type: dict
      sample:
        status: good
    stapled:
      description:
        - What the OCSP answer says that the server sends with its handshake, null when none came or none was asked for.
        - The keys are those of RV(results[].crl).
      type: dict
      sample:
        status: good
    last_checked:
      description: When it was looked at.
      type: str
      sample: '2026-01-01T04:48:00Z'
    failures:
      description: Checks in a row that saw no certificate, this one included.
      type: int
      sample: 0
    failing_since:
      description: When the first of them was, empty when there is none.
      type: str
      sample: ''
    last_success:
      description: What was seen last, and when, null when nothing ever was.
      type: dict
      sample:
        at: '2026-01-01T04:48:00Z'
        not_before: '2025-12-13T12:00:00Z'
        not_after: '2026-03-13T12:00:00Z'
        chain_not_after: '2026-03-13T12:00:00Z'
        fingerprint_sha256: 5C:0F:0D:F9:71:34:91:A2:9C:6E:0B:7F:21:62:E5:3D:6A:11:5A:90:47:73:2E:4B:1C:C8:AB:00:7D:35:9F:E4
        issuer: CN=Example CA,O=Example,C=NL
duration:
  description: Seconds that it took.
  returned: always
  type: float
  sample: 0.42
"""
