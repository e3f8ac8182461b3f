# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that say what a certificate shall be and where it lies (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors CERTIFICATE of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - Whom the certificate is for. A remote signer is told it, and it decides how much earlier than O(renew_at) or O(renew_days) this host renews.
      - By default the C(CN) of O(subject).
    type: str
  certificate_path:
    description:
      - Where the certificate lies on the host. After the first certificate was issued this is a link into a folder C(.muster) beside it, where one rename
        changes key, certificate and CA together.
      - A certificate that lies there already and is as it shall be stays as it is.
    type: str
  key_path:
    description: Where its private key lies on the host. The key is made there and never leaves the host.
    type: str
  ca_path:
    description: Where the certificates of the CA shall lie on the host, the one that signs first. Leave it out when the agent reads none.
    type: str
  include_chain:
    description: Whether intermediate CA certificates follow the agent's own in O(certificate_path), as servers need that know the root alone.
    type: bool
    default: true
  subject:
    description:
      - Distinguished name of the certificate, from the general to the special, such as V({"C":"US", "O":"Example", "CN":"agent-web"}).
      - Known are C(C), C(ST), C(L), C(STREET), C(O), C(OU), C(CN), C(DC), C(UID), C(serialNumber), C(emailAddress), C(title), C(GN), C(SN) and dotted
        OIDs. A list gives an attribute more than once.
    type: dict
  subject_alt_name:
    description: Further names, each as V(DNS:web.example.com), V(IP:192.0.2.7) or V(URI:spiffe://example.com/agent/web).
    type: list
    elements: str
    default: []
  key_usage:
    description:
      - What the key may be used for. Left out, the signer decides, and no certificate is renewed for it. O(issuer=own_ca) gives V(digitalSignature), and to
        RSA keys V(keyEncipherment) too.
    type: list
    elements: str
    choices: [digitalSignature, contentCommitment, keyEncipherment, dataEncipherment, keyAgreement, encipherOnly, decipherOnly]
  extended_key_usage:
    description:
      - What the certificate is good for, out of V(clientAuth), V(serverAuth), V(codeSigning), V(emailProtection), V(timeStamping), V(OCSPSigning) and
        dotted OIDs.
    type: list
    elements: str
    default: [clientAuth]
  key_type:
    description: Kind of the key. V(ec) is on the curve P-256.
    type: str
    choices: [ec, ed25519, rsa]
    default: ec
  key_size:
    description: Bits of an RSA key, from 2048 to 4096. Other kinds have one size.
    type: int
    default: 3072
  valid_days:
    description:
      - For how many days a certificate is issued, at most 36525. A CA that ends before that ends it earlier.
      - A change of this option alone renews nothing.
    type: int
    default: 365
  renew_days:
    description: Renew when fewer days than this are left.
    type: int
  renew_at:
    description:
      - Renew when this share of the lifetime is over.
      - Without O(renew_days) and O(renew_at) it is 0.67. With both, whichever comes first counts.
    type: float
  renew_jitter:
    description:
      - Up to which share of the lifetime a host may renew earlier, so that a fleet does not renew in the same hour. How much it is for a host follows from
        O(name) and is always the same.
    type: float
    default: 0.05
  force:
    description: Whether to make a new key and certificate in any case. Every run does so then.
    type: bool
    default: false
  owner:
    description: User on the host who owns the files, by name or number.
    type: str
    default: root
  group:
    description: Group of the files on the host, by name or number.
    type: str
    default: root
  key_mode:
    description: Mode of the key's file, in octal. Others than owner and group can never read it.
    type: str
    default: '0600'
  certificate_mode:
    description: Mode of the certificate's and the CA's file, in octal.
    type: str
    default: '0644'
  directory_mode:
    description: Mode of directories that have to be made, in octal.
    type: str
    default: '0755'
"""
