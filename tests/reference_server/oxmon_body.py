# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON bodies as oxmon's web framework reads them: what it refuses, it refuses as plain text, outside any envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core import Answer, Call, RefusalError

__all__ = ["Field", "json_object"]


@dataclass(frozen=True)
class Field:
    """One field of a JSON body: its Python type, and whether it has to be there."""

    kind: type
    required: bool = False


async def json_object(call: Call, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The JSON object of a request, with fields of these types. Raises RefusalError: 415, 400 or 422."""
    if not call.headers.get("Content-Type", "").startswith("application/json"):
        raise RefusalError(Answer.of_text(415, "Expected request with `Content-Type: application/json`"))
    body = await call.body()
    try:
        document = json.loads(body)
    except ValueError as error:
        raise RefusalError(Answer.of_text(400, f"Failed to parse the request body as JSON: {error}")) from error
    if not isinstance(document, dict):
        raise RefusalError(_mistyped(body, "invalid type: expected struct"))
    for name, field in fields.items():
        if name not in document and field.required:
            raise RefusalError(_mistyped(body, f"missing field `{name}`"))
        value = document.get(name)
        if (value is not None or field.required) and not _fits(value, field.kind):
            raise RefusalError(_mistyped(body, f"{name}: invalid type"))
    return document


def _fits(value: Any, kind: type) -> bool:
    """Whether a value is of this type; numbers are unsigned."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, kind)


def _mistyped(body: bytes, what: str) -> Answer:
    return Answer.of_text(422, f"Failed to deserialize the JSON body into the target type: {what} at line 1 column {len(body)}")
