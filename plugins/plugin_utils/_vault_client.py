# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hvac on top of our own HTTP session, with every failure named (private to muster.agents).

hvac knows Vault's API; :class:`Http` knows TLS, keep-alive, throttling and what a lost answer means. hvac's own exceptions carry
URLs, bodies and sometimes tokens, so they are never raised here: a failure is a :class:`VaultFailure` with one sentence.
"""

from __future__ import annotations

import contextlib
import functools
import re
import traceback
import typing as t
from dataclasses import replace

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, redact
from ansible_collections.muster.agents.plugins.plugin_utils._errors import (
    Ambiguous,
    InvalidInput,
    MissingLibrary,
    ServerFault,
    Throttled,
    Unreachable,
    Untrusted,
    VaultFailure,
)
from ansible_collections.muster.agents.plugins.plugin_utils._http import Answer, Http, Transport, check_url, require_library

try:
    import hvac
    import hvac.adapters
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

__all__ = ["AnswerLost", "Refusal", "VaultClient", "checked_path"]

# POST requests that only look: safe to send again when the answer was lost.
_API = re.compile(r"\A/*(?:v1/)?")
_HARMLESS = re.compile(r"sys/(?:capabilities-self|wrapping/lookup)|auth/token/(?:lookup|renew-self)")
# Requests whose 403 says something else than "this token may not do that".
_NOT_ABOUT_OUR_TOKEN = re.compile(r"sys/wrapping/.*|auth/(?!token/).*/login(?:/.*)?|auth/token/lookup-self|sys/seal-status")
_PATIENCE = 5.0  # seconds that a request waits for a quota in all
_UNCERTAIN_STATUS = frozenset({500, 502, 504})
_CAPABILITY = {"GET": "read", "POST": "update", "PUT": "update", "DELETE": "delete"}
# Printable ASCII without blanks and without what a URL or an ACL policy would read as syntax.
_SEGMENT = re.compile(r"""[!$&'(),\-.0-9:;=@A-Z\[\]^_`a-z|~]+\Z""")


class Refusal(VaultFailure):
    """Vault answered, and the answer is no. *status* is the HTTP status, *body* the decoded answer, *words* Vault's own (redacted)."""

    def __init__(self, msg: str, *, reason: str, status: int, body: t.Mapping[str, t.Any], words: str) -> None:
        super().__init__(msg, reason=reason)
        self.status = status
        self.body = body
        self.words = words


class AnswerLost(VaultFailure):
    """A request that changes something was sent, and nobody can say whether it was carried out."""

    default_reason = "ambiguous"


def checked_path(path: t.Any, *, option: str) -> str:
    """Return the API path *path* without the slashes around it. Raises InvalidInput for what is no plain path below /v1/."""
    text = str(path).strip("/")
    segments = text.split("/")
    if not text or any(part in ("", ".", "..") for part in segments):
        raise InvalidInput(f"{option} {str(path)!r} is not a path: write it as mount/segment/segment, without empty parts.")
    if segments[0] == "v1":
        raise InvalidInput(f"{option} {str(path)!r} begins with v1/: leave that out, it is added here.")
    if not all(_SEGMENT.match(part) for part in segments):
        raise InvalidInput(f"{option} {str(path)!r} has blanks, wildcards or other characters that are not safe in a Vault path.")
    return text


class VaultClient:
    """One session to one Vault or OpenBao: hvac's client, the token in use, and the secrets to keep out of messages."""

    def __init__(self, url: str, transport: Transport, namespace: str) -> None:
        """Check the options; nothing is sent. Raises InvalidInput or MissingLibrary."""
        require_library()
        if IMPORT_ERROR is not None:
            raise MissingLibrary(
                "The Python library hvac is needed on the controller to use Vault or OpenBao: install the collection's requirements.txt "
                "into the environment that runs ansible-playbook.", traceback=IMPORT_ERROR)
        self.url = check_url(url, option="vault.url", allow_plaintext=transport.allow_plaintext)
        try:
            # A standby redirects to the active node, which is told as such; a quota that lasts is the operator's to lift.
            self._http = Http(self.url, replace(transport, patience=_PATIENCE, redirects=True))
        except InvalidInput as error:
            raise InvalidInput(f"vault.{error.msg}") from None
        self._known: list[Secret] = []
        self._wire = _Wire(self, namespace.strip("/"))

    @functools.cached_property
    def hvac(self) -> t.Any:
        """hvac's own client on this session, for what takes more than one plain request. It is costly to make, and few tasks need it."""
        # An explicit empty token and explicit verification keep hvac from reading VAULT_TOKEN, ~/.vault-token and VAULT_CACERT.
        return hvac.Client(url=self.url, token="", verify=True, adapter=lambda **_known: self._wire)

    def remember(self, secret: Secret) -> Secret:
        """Keep *secret* out of every later message; returns it."""
        self._known.append(secret)
        return secret

    def redacted(self, text: str) -> str:
        """Return *text* as one line of at most 200 characters without any secret known here."""
        return " ".join(redact(text, self._known).split())[:200]

    @property
    def token(self) -> str:
        """The token in use, empty for none."""
        return str(self._wire.token)

    def forget_token(self) -> None:
        """Send no token from now on."""
        self._wire.token = ""

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return bool(self.token)

    def use(self, token: Secret) -> None:
        """Send *token* with every request from now on."""
        self._wire.token = self.remember(token).reveal()

    @contextlib.contextmanager
    def using(self, token: Secret) -> t.Iterator[None]:
        """Send *token* instead of our own inside the block."""
        ours = self.token
        self.use(token)
        try:
            yield
        finally:
            self._wire.token = ours

    def call(self, method: str, path: str, body: t.Any = None) -> dict[str, t.Any]:
        """Send a request to ``/v1/<path>`` and return the decoded answer ({} when it has no body). Raises Refusal or VaultFailure."""
        answer: dict[str, t.Any] = self._wire.request(method, f"/v1/{path}", json=body)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def exchange(self, method: str, path: str, *, body: t.Any, headers: t.Mapping[str, str]) -> dict[str, t.Any]:
        """Send one request and judge its answer; *path* is below /v1/."""
        harmless = method == "GET" or _HARMLESS.fullmatch(path) is not None
        answer = self._sent(method, path, body, headers, harmless)
        if answer.status in (200, 202, 204):
            return _object(answer)
        if answer.status == 503:
            raise self._unavailable(path)
        if not harmless and answer.status in _UNCERTAIN_STATUS:
            raise AnswerLost(f"Vault answered {answer.status} to a change of {path}, which may have happened: run again to find out.")
        if answer.status == 403 and self.has_token and _NOT_ABOUT_OUR_TOKEN.fullmatch(path) is None:
            self._check_token()
        raise self._refusal(method, path, answer)

    def _sent(self, method: str, path: str, body: t.Any, headers: t.Mapping[str, str], harmless: bool) -> Answer:
        try:
            return self._http.send(method, f"/v1/{path}", json_body=body, headers=headers, read=harmless)
        except Throttled as error:
            raise VaultFailure(f"Vault: {error.msg} Raise its rate limit, or run fewer forks.", reason="throttled") from None
        except Untrusted as error:
            raise VaultFailure(f"Vault: {error.msg}", reason="untrusted") from None
        except Unreachable as error:
            raise VaultFailure(f"Vault: {error.msg}", reason="unreachable") from None
        except Ambiguous as error:
            raise AnswerLost(f"Vault: {error.msg}") from None
        except ServerFault as error:
            raise VaultFailure(f"Vault: {error.msg}", reason="server_fault") from None

    def _unavailable(self, path: str) -> VaultFailure:
        """Return what a 503 means: Vault answers it to everything while it is sealed, not initialised or without a leader."""
        if path != "sys/seal-status":
            with contextlib.suppress(VaultFailure):
                status = self.call("GET", "sys/seal-status")
                if not status.get("initialized", True):
                    return VaultFailure(
                        f"Vault at {self.url} is not initialised: initialise and unseal it, then run again.", reason="uninitialised")
                if status.get("sealed"):
                    return VaultFailure(f"Vault at {self.url} is sealed: unseal it and run again; nothing was written.", reason="sealed")
        return VaultFailure(f"Vault at {self.url} is unavailable (503): wait for its active node and run again.", reason="server_fault")

    def _check_token(self) -> None:
        """Raise VaultFailure when Vault does not know our token at all; otherwise the 403 was about a permission."""
        for method, path, body in (("GET", "auth/token/lookup-self", None), ("POST", "sys/capabilities-self", {"paths": ["sys/health"]})):
            headers = {"X-Vault-Request": "true", "X-Vault-Token": self.token}
            if self._wire.namespace:
                headers["X-Vault-Namespace"] = self._wire.namespace
            if self._sent(method, path, body, headers, True).status != 403:
                return
        raise VaultFailure(
            f"Vault at {self.url} does not accept the token: it is unknown, expired or revoked, or of another namespace; give a valid one.",
            reason="wrong_token")

    def _refusal(self, method: str, path: str, answer: Answer) -> Refusal:
        body = _object(answer)
        errors = body.get("errors")
        words = self.redacted("; ".join(str(error) for error in errors)) if isinstance(errors, list) else ""
        reason = "refused"
        if answer.status == 403:
            reason = "permission_denied"
            msg = f"Vault does not allow the token {_CAPABILITY.get(method, method)} on {path}: grant it in a policy of this token."
        elif answer.status == 404 and "namespace not found" in words:
            reason = "missing_namespace"
            msg = f"Vault at {self.url} has no such namespace: check vault.namespace."
        elif 300 <= answer.status < 400:
            reason = "standby"
            msg = f"Vault at {self.url} is a standby that redirects: give the active node's or the load balancer's address in vault.url."
        else:
            msg = f"Vault answered {answer.status} on {path}: {words or 'no reason given'}."
        return Refusal(msg, reason=reason, status=answer.status, body=body, words=words)


if IMPORT_ERROR is None:

    class _Wire(hvac.adapters.Adapter):
        """hvac's adapter interface on our session: a decoded answer comes back, or a failure of ours is raised."""

        def __init__(self, owner: VaultClient, namespace: str) -> None:
            # The base class would open a requests session of its own.
            self._owner = owner
            self.base_uri = owner.url
            self.token = ""
            self.namespace = namespace

        def get_login_token(self, response: t.Mapping[str, t.Any]) -> str:
            """Return the token of a login's answer."""
            return str(response["auth"]["client_token"])

        def request(
            self, method: str, url: str, headers: t.Mapping[str, str] | None = None, raise_exception: bool = True, **options: t.Any,
        ) -> dict[str, t.Any]:
            """Send one request with Vault's headers; *url* is the path including /v1/."""
            sent = {"X-Vault-Request": "true", **(headers or {})}
            if self.token:
                sent["X-Vault-Token"] = self.token
            if self.namespace:
                sent["X-Vault-Namespace"] = self.namespace
            path = _API.sub("", url)
            return self._owner.exchange(method.upper(), path, body=options.get("json"), headers=sent)


def _object(answer: Answer) -> dict[str, t.Any]:
    document = answer.json
    return document if isinstance(document, dict) else {}
