# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the modules that keep credentials in Vault or OpenBao (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors VAULT of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  vault:
    description:
      - How to reach Vault or OpenBao and log in there. All requests are sent from the controller, so the host needs no way to it and sees none of
        these credentials.
      - One login serves the whole task. A token that a login issued is revoked when the task ends; a token you bring is left alone.
    type: dict
    suboptions:
      url:
        description: Address of the server, such as V(https://vault.example.com:8200), without a path.
        type: str
        required: true
      namespace:
        description: Namespace in which the mounts, the login and the policies are. Leave it out for the root namespace.
        type: str
      auth_method:
        description:
          - How to log in.
          - V(token) takes a token you bring, V(approle) a role id with a secret id, V(jwt) and V(kubernetes) a signed token, V(userpass) a user name
            with a password, and V(cert) the TLS client certificate.
        type: str
        choices: [token, approle, jwt, kubernetes, userpass, cert]
        default: token
      auth_mount:
        description: Where that auth method is mounted, without C(auth/). By default it is the name of the method.
        type: str
      token:
        description: The token, for O(vault.auth_method=token). The environment's E(VAULT_TOKEN) and the file C(~/.vault-token) are never used.
        type: str
      token_file:
        description: File on the controller that holds the token.
        type: path
      role:
        description:
          - Role to log in with for V(jwt), V(kubernetes) and V(cert). V(kubernetes) needs it; for the others the mount may have a default.
          - For a wrapped secret id of V(approle), the name of the AppRole, which tells where the secret id must have been wrapped.
        type: str
      role_id:
        description: Role id of the AppRole.
        type: str
      secret_id:
        description: Secret id of the AppRole, or the wrapping token that holds it. Leave it out for roles that ask for none.
        type: str
      secret_id_file:
        description: File on the controller that holds the secret id or its wrapping token.
        type: path
      secret_id_wrapped:
        description:
          - Whether the secret id is response-wrapped. It is then opened once, after a look at where it was wrapped; one from elsewhere may have been
            swapped on its way, and is refused unopened.
          - A wrapping token serves one task, check mode included, since even a look into Vault needs the login.
        type: bool
        default: false
      secret_id_creation_path:
        description:
          - Where a wrapped secret id must have been wrapped.
          - By default C(auth/MOUNT/role/ROLE/secret-id) with O(vault.auth_mount) and O(vault.role).
        type: str
      jwt:
        description: Signed token for V(jwt) and V(kubernetes).
        type: str
      jwt_file:
        description: File on the controller that holds the signed token, such as C(/var/run/secrets/kubernetes.io/serviceaccount/token).
        type: path
      username:
        description: User name for V(userpass).
        type: str
      password:
        description: Password for V(userpass).
        type: str
      password_file:
        description: File on the controller that holds the password.
        type: path
      client_cert:
        description: File on the controller with the TLS client certificate (PEM), for V(cert) or for a server that asks every client for one.
        type: path
      client_key:
        description: File on the controller with the certificate's key (PEM, unencrypted). Leave it out if the certificate's file holds both.
        type: path
      ca_cert:
        description: File on the controller with the CA certificates (PEM) to trust, in place of the system's.
        type: path
      validate_certs:
        description: Whether the server's certificate must be valid for its name and signed by a trusted CA. Switch it off on a test bench only.
        type: bool
        default: true
      allow_plaintext:
        description: Whether an V(http://) address beyond the controller itself may be used, which sends every credential in clear text.
        type: bool
        default: false
      timeout:
        description: Seconds to wait for a connection, and for each answer.
        type: float
        default: 10.0
  vault_paths:
    description:
      - Where Vault keeps the credentials, one item for each entry. Fields that others keep in the same entry stay as they are.
      - The token needs C(create), C(read) and C(update) on each path. To take entries away it needs C(read), C(update) and
        C(delete) on the path, or on KV v2 C(read) and C(update) on the path and C(delete) on the same path with C(metadata) in place of C(data).
        All of this is checked before anything is written anywhere.
      - On KV v2 each write is guarded by check-and-set, so that nothing written by others meanwhile is lost. KV v1 has no such guard.
    type: list
    elements: dict
    suboptions:
      path:
        description:
          - The path as its readers ask for it, without C(/v1/). Readers send C(GET URL/v1/PATH) and take C(.data.data.FIELD) of the answer.
          - On a KV v2 mount it has C(data/) after the mount, such as V(secret/data/agents/web). On a KV v1 mount, such as
            V(status_panel/web/token), the entry is stored with an inner C(data), which is what those readers need and what C(vault kv put)
            leaves out. An entry that lacks it is put right.
          - A path in the wrong shape for its mount is refused, with the right one named.
        type: str
        required: true
      fields:
        description:
          - Name of each field in Vault, and the name of the secret that belongs there.
          - Secrets are the ones the control plane issued (V(token) for Stacker), the agent's id as V(agent_id), your own from C(secrets), and the
            agent's own Vault token under the name that C(agent_token_policy) gives it.
        type: dict
        required: true
"""

    # For modules that log in there and keep nothing in a KV engine: the same without the paths.
    LOGIN: str = DOCUMENTATION.partition("  vault_paths:\n")[0]
