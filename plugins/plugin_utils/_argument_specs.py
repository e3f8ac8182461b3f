# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Argument specifications, one per documentation fragment, merged by each action plugin (private to muster.agents)."""

from __future__ import annotations

import typing as t

__all__ = [
    "AGENT_TOKEN_POLICY", "CERTIFICATE", "CONTROL_PLANE", "CONTROL_PLANES", "ENROLMENT", "FILES", "IDENTITY", "ISSUER", "ROTATION", "SECRETS", "STORE",
    "TRANSPORT", "VAULT", "Spec",
]

Spec = dict[str, dict[str, t.Any]]

CONTROL_PLANES = ["stacker", "pganalytics", "kubeatlas", "oxmon"]


def _secret(name: str) -> Spec:
    """Return the options of one secret: its value, or a file on the controller that holds it."""
    return {name: {"type": "str", "no_log": True}, f"{name}_file": {"type": "path", "no_log": False}}


CONTROL_PLANE: Spec = {
    "control_plane": {"type": "str", "required": True, "choices": CONTROL_PLANES},
    "url": {"type": "str", "required": True},
    **_secret("registration_secret"),
    **_secret("install_token"),
    "username": {"type": "str"},
    **_secret("password"),
    **_secret("admin_token"),
    "client_id": {"type": "str"},
    **_secret("client_secret"),
    "issuer_url": {"type": "str"},
    "grpc_endpoint": {"type": "str"},
}

TRANSPORT: Spec = {
    "ca_cert": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "validate_certs": {"type": "bool", "default": True},
    "pin_sha256": {"type": "str"},
    "tls_min_version": {"type": "str", "choices": ["1.2", "1.3"], "default": "1.2"},
    "ciphers": {"type": "str"},
    "proxy": {"type": "str"},
    "timeout": {"type": "float", "default": 10.0},
    "retries": {"type": "int", "default": 3},
    "allow_plaintext": {"type": "bool", "default": False},
}

IDENTITY: Spec = {
    "name": {"type": "str", "required": True},
    "version": {"type": "str"},
    "capabilities": {"type": "list", "elements": "str"},
    "system_info": {"type": "dict"},
    "hostname": {"type": "str"},
    "address": {"type": "str"},
    "labels": {"type": "dict"},
    "description": {"type": "str"},
    "service_type": {"type": "str"},
    "controller_name": {"type": "str"},
    "public_key": {"type": "str", "no_log": False},
    "certificate_path": {"type": "str"},
    "key_path": {"type": "str", "no_log": False},
    "allow_unstable_name": {"type": "bool", "default": False},
}

STORE: Spec = {
    "store": {"type": "path", "default": "/var/lib/muster"},
    "delivery": {"type": "str", "choices": ["auto", "fast", "module"], "default": "auto"},
}

SECRETS: Spec = {
    "secrets": {
        "type": "list",
        "elements": "dict",
        "no_log": False,
        "options": {
            "name": {"type": "str", "required": True},
            "value": {"type": "str", "no_log": True},
            "file": {"type": "path"},
        },
    },
}

FILES: Spec = {
    "files": {
        "type": "list",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "src": {"type": "path"},
            "content": {"type": "str"},
            "format": {"type": "str", "choices": ["text", "env", "toml", "json", "yaml"], "default": "text"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0600"},
            "directory_mode": {"type": "str", "default": "0755"},
            "validate": {"type": "str"},
            "restart": {"type": "bool", "default": True},
            "needs": {"type": "str"},
        },
    },
}

ENROLMENT: Spec = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "adopt_from": {
        "type": "list",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "format": {"type": "str", "choices": ["env", "json", "toml", "files"], "default": "env"},
            "agent_id": {"type": "str", "required": True},
            "secrets": {"type": "dict", "required": True, "no_log": False},
        },
    },
    "adopt": {"type": "str", "choices": ["never", "stale", "always"], "default": "stale"},
    "adopt_after": {"type": "float", "default": 3600.0},
    "refresh_at": {"type": "float", "default": 0.67},
    "settle_timeout": {"type": "float", "default": 10.0},
    "lease": {"type": "int", "default": 60},
}

VAULT: Spec = {
    "vault": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True},
            "namespace": {"type": "str"},
            "auth_method": {"type": "str", "choices": ["token", "approle", "jwt", "kubernetes", "userpass", "cert"], "default": "token"},
            "auth_mount": {"type": "str"},
            **_secret("token"),
            "role": {"type": "str"},
            "role_id": {"type": "str"},
            **_secret("secret_id"),
            "secret_id_wrapped": {"type": "bool", "default": False, "no_log": False},
            "secret_id_creation_path": {"type": "str", "no_log": False},
            **_secret("jwt"),
            "username": {"type": "str"},
            **_secret("password"),
            "client_cert": {"type": "path"},
            "client_key": {"type": "path", "no_log": False},
            "ca_cert": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "allow_plaintext": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 10.0},
        },
    },
    "vault_paths": {
        "type": "list",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "fields": {"type": "dict", "required": True},
        },
    },
}

AGENT_TOKEN_POLICY: Spec = {
    "agent_token_policy": {
        "type": "dict",
        "options": {
            "policy": {"type": "str"},
            "paths": {"type": "list", "elements": "str"},
            "capabilities": {"type": "list", "elements": "str", "default": ["read"]},
            "period": {"type": "str", "default": "768h"},
            "secret": {"type": "str", "default": "vault_token", "no_log": False},
        },
    },
}

CERTIFICATE: Spec = {
    "name": {"type": "str"},
    "certificate_path": {"type": "str"},
    "key_path": {"type": "str", "no_log": False},
    "ca_path": {"type": "str"},
    "include_chain": {"type": "bool", "default": True},
    "subject": {"type": "dict"},
    "subject_alt_name": {"type": "list", "elements": "str", "default": []},
    "key_usage": {
        "type": "list", "elements": "str", "no_log": False,
        "choices": ["digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement", "encipherOnly", "decipherOnly"],
    },
    "extended_key_usage": {"type": "list", "elements": "str", "default": ["clientAuth"], "no_log": False},
    "key_type": {"type": "str", "choices": ["ec", "ed25519", "rsa"], "default": "ec", "no_log": False},
    "key_size": {"type": "int", "default": 3072, "no_log": False},
    "valid_days": {"type": "int", "default": 365},
    "renew_days": {"type": "int"},
    "renew_at": {"type": "float"},
    "renew_jitter": {"type": "float", "default": 0.05},
    "force": {"type": "bool", "default": False},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "key_mode": {"type": "str", "default": "0600", "no_log": False},
    "certificate_mode": {"type": "str", "default": "0644"},
    "directory_mode": {"type": "str", "default": "0755"},
}

ISSUER: Spec = {
    "issuer": {"type": "str", "choices": ["own_ca", "vault_pki", "remote_signer"]},
    "own_ca": {
        "type": "dict",
        "options": {
            "certificate": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            **_secret("passphrase"),
            "directory": {"type": "path"},
            "crl_days": {"type": "int", "default": 30},
            "crl_url": {"type": "str"},
        },
    },
    "vault_pki": {
        "type": "dict",
        "options": {
            "mount": {"type": "str", "default": "pki"},
            "role": {"type": "str", "required": True},
            "issuer_ref": {"type": "str", "default": "default"},
        },
    },
    "url": {"type": "str"},
    "issuer_ca": {"type": "path"},
    "controller_name": {"type": "str"},
}

ROTATION: Spec = {
    "when": {"type": "list", "elements": "str", "choices": ["always", "age", "days_left", "percent_used", "drift"], "default": ["age", "percent_used"]},
    "max_age": {"type": "float", "default": 90.0},
    "min_days_left": {"type": "float", "default": 30.0},
    "max_percent_used": {"type": "float", "default": 67.0},
    "units": {"type": "list", "elements": "str", "default": []},
    "nudge": {"type": "str", "choices": ["restart", "reload", "none"], "default": "restart"},
    "health_url": {"type": "str"},
    "health_status": {"type": "str", "default": "ok"},
    "vault_enabled": {"type": "bool", "default": False},
    "token_age_max": {"type": "int", "default": 600, "no_log": False},
    "seen": {"type": "bool", "default": True},
    "attempts": {"type": "int", "default": 10},
    "delay": {"type": "float", "default": 2.0},
    "journal_lines": {"type": "int", "default": 40},
    "settle_timeout": {"type": "float", "default": 10.0},
    "lease": {"type": "int", "default": 60},
    "certificate": {"type": "dict"},
    "agents": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "agent_id": {"type": "str"},
            "vault_paths": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "fields": {"type": "dict", "required": True},
                },
            },
        },
    },
    "connections": {"type": "int", "default": 16},
    "vault_lease": {"type": "bool", "default": True},
    "fleet_wait": {"type": "float", "default": 90.0},
    "campaign": {"type": "str"},
    "failure_budget": {"type": "int", "default": 3},
}
