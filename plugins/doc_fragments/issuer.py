# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that say who signs certificates (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors ISSUER of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  issuer:
    description:
      - Who signs.
      - V(own_ca) is a CA whose certificate and key lie on the controller, see O(own_ca).
      - V(vault_pki) is the PKI engine of Vault or OpenBao, see O(vault_pki) and O(vault).
      - V(remote_signer) is a service that takes signing requests at C(/api/v1/sign-certificate), see O(url) and O(issuer_ca).
    type: str
    choices: [own_ca, vault_pki, remote_signer]
  own_ca:
    description: The CA for O(issuer=own_ca). Its key and passphrase are used on the controller and go nowhere else.
    type: dict
    suboptions:
      certificate:
        description: File on the controller with the CA's certificate (PEM), followed by those of the CAs above it, if there are any.
        type: path
        required: true
      key:
        description: File on the controller with the CA's key (PEM), encrypted or not.
        type: path
        required: true
      passphrase:
        description: What the key is encrypted with. Give this or O(own_ca.passphrase_file).
        type: str
      passphrase_file:
        description: File on the controller that holds the passphrase. A line break at its end does not count.
        type: path
      directory:
        description:
          - Directory on the controller for the records of this CA, which are C(index.txt), C(certs), C(crlnumber) and C(crl.pem) as C(openssl ca) has them.
          - Without it nothing can be revoked. All controllers that issue for this CA should share it.
        type: path
      crl_days:
        description: For how many days a new CRL is good.
        type: int
        default: 30
      crl_url:
        description: Where readers of the certificates find the CRL; it is written into them. Publishing C(crl.pem) there is yours to do.
        type: str
  vault_pki:
    description: The PKI engine for O(issuer=vault_pki), which is reached as O(vault) says.
    type: dict
    suboptions:
      mount:
        description: Where the engine is mounted.
        type: str
        default: pki
      role:
        description:
          - Role whose sign endpoint is used. It has to let through what is asked for; what it drops from the subject, the names or the usages is an error,
            since the certificate would be renewed at every run otherwise.
          - The token needs C(update) on C(MOUNT/sign/ROLE), and on C(MOUNT/revoke) for O(state=revoked).
        type: str
        required: true
      issuer_ref:
        description: Name or id of the issuer that the role signs with, when the mount has several.
        type: str
        default: default
  url:
    description: Address of the service for O(issuer=remote_signer), without a path, such as V(https://pki.example.com:8443).
    type: str
  issuer_ca:
    description:
      - File on the controller with the CA certificates (PEM) that certificates of O(issuer=remote_signer) must lead to. They are what O(ca_path) gets.
    type: path
  controller_name:
    description: Name of the agent's controller, which O(issuer=remote_signer) has to be told.
    type: str
"""
