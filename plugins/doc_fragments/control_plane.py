# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the modules that talk to a control plane (private to muster.agents)."""

from __future__ import annotations


class ModuleDocFragment:
    """Mirrors CONTROL_PLANE of plugin_utils/_argument_specs.py."""

    DOCUMENTATION = r"""
options:
  control_plane:
    description:
      - The kind of control plane that O(url) is.
      - Which contract the server speaks, the one its guide documents or the one it ships with, is found out and needs no setting.
    type: str
    required: true
    choices: [stacker, pganalytics, kubeatlas, oxmon]
  url:
    description:
      - Address of the control plane as the controller reaches it, without a path, such as V(https://stacker.example.com).
      - Every request is sent from the controller, so the host needs no way there for the enrolment itself.
    type: str
    required: true
  registration_secret:
    description:
      - Secret shared with the control plane that allows new agents to register. V(stacker) has none and ignores it.
      - It stays on the controller.
    type: str
  registration_secret_file:
    description: File on the controller that holds the registration secret. Give this or O(registration_secret).
    type: path
  install_token:
    description: Token that is good for one registration. V(stacker) has none and ignores it.
    type: str
  install_token_file:
    description: File on the controller that holds the install token. Give this or O(install_token).
    type: path
  username:
    description:
      - User to log in as. With V(stacker) this is the e-mail address of the user who owns the deployment, and the agent is linked to it
        instead of registering by its name alone.
      - Leave it out where agents register without a login.
    type: str
  password:
    description: Password of that user. It stays on the controller.
    type: str
  password_file:
    description: File on the controller that holds the password. Give this or O(password).
    type: path
  admin_token:
    description:
      - Token of an administrator. With V(stacker) it is sent as bearer token with a registration, for servers whose access rules ask for one,
        and shows the records of agents by name.
    type: str
  admin_token_file:
    description: File on the controller that holds the administrator's token. Give this or O(admin_token).
    type: path
  client_id:
    description: Client to log in with at O(issuer_url). V(stacker) has none and ignores it.
    type: str
  client_secret:
    description: Secret of that client. V(stacker) has none and ignores it.
    type: str
  client_secret_file:
    description: File on the controller that holds the client's secret. Give this or O(client_secret).
    type: path
  issuer_url:
    description: OpenID Connect issuer that the control plane trusts. V(stacker) has none and ignores it.
    type: str
  grpc_endpoint:
    description:
      - Where the control plane takes what agents report by gRPC, as the controller reaches it, such as V(metrics.example.com:9090), or
        V(https://metrics.example.com:443) where TLS is terminated before it. Used by V(oxmon) alone, to prove tokens.
      - The default is the host of O(url) with the port that the control plane names, else 9090.
      - A token is sent there in clear text only to a loopback address or with O(allow_plaintext=true). Otherwise it is not tried, and the proof
        says so.
    type: str
"""
