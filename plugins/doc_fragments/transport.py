# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that say how the control plane is reached and trusted (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors TRANSPORT of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  ca_cert:
    description: File on the controller with the CA certificates (PEM) to trust for the control plane, in place of the system's.
    type: path
  client_cert:
    description: File on the controller with a TLS client certificate (PEM), for a control plane that asks every client for one.
    type: path
  client_key:
    description: File on the controller with that certificate's key (PEM, unencrypted). Leave it out if the certificate's file holds both.
    type: path
  validate_certs:
    description:
      - Whether the control plane's certificate must be valid for its name and signed by a trusted CA.
      - Without it anybody on the way can read the credentials. Switch it off on a test bench only; O(pin_sha256) is checked all the same.
    type: bool
    default: true
  pin_sha256:
    description:
      - The one certificate or key to accept, so that not even a trusted CA can put another server in its place.
      - Either the SHA-256 of the server's certificate in hexadecimal, with or without colons, or the SHA-256 of its public key in base64.
    type: str
  tls_min_version:
    description: Oldest version of TLS to accept.
    type: str
    choices: ['1.2', '1.3']
    default: '1.2'
  ciphers:
    description: Ciphers to allow for TLS 1.2, in OpenSSL's notation. By default Python's own choice.
    type: str
  proxy:
    description:
      - Proxy between the controller and the control plane, such as V(http://proxy.example.com:3128).
      - A SOCKS proxy, such as V(socks5h://proxy.example.com:1080), needs the Python library C(PySocks) on the controller.
      - By default the controller's environment (E(HTTPS_PROXY), E(HTTP_PROXY), E(ALL_PROXY), E(NO_PROXY)) decides.
    type: str
  timeout:
    description: Seconds to wait for a connection, and for each answer.
    type: float
    default: 10.0
  retries:
    description:
      - How often to try again after a refused connection, a fault of the server, or its request to wait.
      - A request that may have been carried out is never sent again blindly.
    type: int
    default: 3
  allow_plaintext:
    description: Whether an V(http://) address beyond the controller itself may be used, which sends every credential in clear text.
    type: bool
    default: false
"""
