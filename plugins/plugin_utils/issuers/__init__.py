# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who can sign a certificate, by the name that the option ``issuer`` gives it (private to muster.agents)."""

from __future__ import annotations

import typing as t

from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput
from ansible_collections.muster.agents.plugins.plugin_utils._http import Http
from ansible_collections.muster.agents.plugins.plugin_utils._options import transport
from ansible_collections.muster.agents.plugins.plugin_utils.issuers._base import Issuer
from ansible_collections.muster.agents.plugins.plugin_utils.issuers.own_ca import OwnCa
from ansible_collections.muster.agents.plugins.plugin_utils.issuers.remote_signer import RemoteSigner
from ansible_collections.muster.agents.plugins.plugin_utils.issuers.vault_pki import VaultPki

__all__ = ["ISSUERS", "issuer_of"]


def _own_ca(args: t.Mapping[str, t.Any]) -> Issuer:
    return OwnCa(_given(args, "own_ca", "own_ca"))


def _vault_pki(args: t.Mapping[str, t.Any]) -> Issuer:
    return VaultPki(_given(args, "vault_pki", "vault_pki"), _given(args, "vault", "vault_pki"))


def _remote_signer(args: t.Mapping[str, t.Any]) -> Issuer:
    url, authority, controller = (_given(args, option, "remote_signer") for option in ("url", "issuer_ca", "controller_name"))
    return RemoteSigner(Http(url, transport(args)), authority, controller)


ISSUERS: t.Mapping[str, t.Callable[[t.Mapping[str, t.Any]], Issuer]] = {
    "own_ca": _own_ca, "vault_pki": _vault_pki, "remote_signer": _remote_signer,
}


def issuer_of(args: t.Mapping[str, t.Any]) -> Issuer:
    """Return the signer that validated *args* name; nothing is read or sent yet. Raises InvalidInput or MissingLibrary."""
    return ISSUERS[args["issuer"]](args)


def _given(args: t.Mapping[str, t.Any], option: str, issuer: str) -> t.Any:
    value = args.get(option)
    if not value:
        raise InvalidInput(f"issuer: {issuer} needs the option {option}: give it.")
    return value
