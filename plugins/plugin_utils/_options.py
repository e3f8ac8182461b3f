# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From validated task arguments to the typed values the rest works with (private to muster.agents)."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, register_with_core
from ansible_collections.muster.agents.plugins.plugin_utils._adapters import ADAPTERS
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http, Transport
from ansible_collections.muster.agents.plugins.plugin_utils._pacing import Pacer
from ansible_collections.muster.agents.plugins.plugin_utils._sessions import Sessions
from ansible_collections.muster.agents.plugins.plugin_utils._shared_state import SharedDocument, state_directory
from ansible_collections.muster.agents.plugins.plugin_utils.control_planes._base import Bootstrap, ControlPlane, Enrolment

__all__ = ["bootstrap", "control_plane", "enrolment", "secret_option", "transport", "user_secrets"]

_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def secret_option(args: t.Mapping[str, t.Any], name: str, *, prefix: str = "") -> Secret | None:
    """Return the secret given as option *name* or in the file named by *name*_file; None when neither is set.

    Raises InvalidInput when both are set, or when the file is missing, empty or not text. *prefix* completes the option's name in messages.
    """
    value, path = args.get(name), args.get(f"{name}_file")
    if value is not None and path:
        raise InvalidInput(f"{prefix}{name} and {prefix}{name}_file are both set: give one of them.")
    if path:
        return _from_file(path, f"{prefix}{name}_file")
    if value is None:
        return None
    if not str(value):
        raise InvalidInput(f"{prefix}{name} is empty: leave it out, or give the secret.")
    return _secret(str(value))


def user_secrets(args: t.Mapping[str, t.Any], *, reserved: t.Iterable[str] = ()) -> dict[str, Secret]:
    """Return the operator's own secrets (option ``secrets``) by name.

    Raises InvalidInput for a name that is no identifier, given twice or reserved for an issued credential, and for a missing value.
    """
    found: dict[str, Secret] = {}
    for item in args.get("secrets") or ():
        name = item["name"]
        if not _SECRET_NAME.match(name):
            raise InvalidInput(f"secrets: {name!r} is not a usable name: use letters, digits and underscores.")
        if name in found or name in set(reserved):
            raise InvalidInput(f"secrets: the name {name!r} is taken already: choose another.")
        secret = secret_option({"value": item.get("value"), "value_file": item.get("file")}, "value", prefix=f"secrets[{name}].")
        if secret is None:
            raise InvalidInput(f"secrets: {name!r} has neither value nor file: give one of them.")
        found[name] = secret
    return found


def transport(args: t.Mapping[str, t.Any]) -> Transport:
    """Return the transport options as one value."""
    return Transport(
        ca_cert=args.get("ca_cert") or "", client_cert=args.get("client_cert") or "", client_key=args.get("client_key") or "",
        validate_certs=args["validate_certs"], pin_sha256=args.get("pin_sha256") or "", tls_min_version=args["tls_min_version"],
        ciphers=args.get("ciphers") or "", proxy=args.get("proxy") or "", timeout=args["timeout"], retries=args["retries"],
        allow_plaintext=args["allow_plaintext"], grpc_endpoint=args.get("grpc_endpoint") or "")


def bootstrap(args: t.Mapping[str, t.Any]) -> Bootstrap:
    """Return the bootstrap credentials as one value; files are read here, on the controller."""
    return Bootstrap(
        registration_secret=secret_option(args, "registration_secret"), install_token=secret_option(args, "install_token"),
        username=args.get("username") or "", password=secret_option(args, "password"), admin_token=secret_option(args, "admin_token"),
        client_id=args.get("client_id") or "", client_secret=secret_option(args, "client_secret"), issuer_url=args.get("issuer_url") or "")


def enrolment(args: t.Mapping[str, t.Any]) -> Enrolment:
    """Return the identity as one value; missing options stay empty."""
    return Enrolment(
        name=args["name"], version=args.get("version") or "", capabilities=tuple(args.get("capabilities") or ()),
        system_info=dict(args.get("system_info") or {}), hostname=args.get("hostname") or "", address=args.get("address") or "",
        labels=dict(args.get("labels") or {}), description=args.get("description") or "", service_type=args.get("service_type") or "",
        controller_name=args.get("controller_name") or "", public_key=args.get("public_key") or "",
        allow_unstable_name=bool(args.get("allow_unstable_name")), certificate_path=args.get("certificate_path") or "",
        key_path=args.get("key_path") or "")


def control_plane(args: t.Mapping[str, t.Any]) -> ControlPlane:
    """Return the adapter for the chosen control plane with its session; nothing is sent yet. Raises InvalidInput or MissingLibrary."""
    adapter = ADAPTERS[args["control_plane"]]
    pacer = Pacer(SharedDocument(state_directory("pacing"), args["url"]), adapter.capabilities.paces)
    http = Http(args["url"], transport(args), pacer=pacer)
    return adapter(http, bootstrap(args), Sessions(state_directory("sessions"), http.url))


def _from_file(path: str, option: str) -> Secret:
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{option} {path!r} cannot be read on the controller ({type(error).__name__}).") from None
    if not text:
        raise InvalidInput(f"{option} {path!r} is empty: write the secret into it.")
    return _secret(text)


def _secret(text: str) -> Secret:
    secret = Secret(text)
    register_with_core([secret])
    return secret
