# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API: how a test arms faults, reads counters, and looks behind the scenes.

Plain HTTP on a loopback address of its own. Nothing here is counted or logged, and no answer holds
a token.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from .core import Service
from .faults import UnknownFaultError

Gate = Callable[[bool], Awaitable[None]]

__all__ = ["control_application"]


class _Control:
    """Handlers of the control API over one service. ``gate(False)`` closes the public listeners."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self._planes = service.planes
        self._shared = service.shared
        self._gate = gate

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def counters(self, request: web.Request) -> web.Response:
        return web.json_response(self._shared.counters.report())

    async def reset_counters(self, request: web.Request) -> web.Response:
        self._shared.counters.reset()
        return web.json_response({})

    async def agents(self, request: web.Request) -> web.Response:
        wanted = request.query.get("control_plane")
        planes = [plane for plane in self._planes if wanted in (None, plane.name)]
        return web.json_response([agent for plane in planes for agent in plane.agents()])

    async def forget(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        known = [plane.forget(name) for plane in self._planes]
        self._shared.replays.forget(name)
        return _found(any(known), name)

    async def drift(self, request: web.Request) -> web.Response:
        name, options = request.match_info["name"], await _spec(request)
        return _found(any([await plane.drift(name, options) for plane in self._planes]), name)

    async def check_token(self, request: web.Request) -> web.Response:
        spec = await _spec(request)
        name, token = str(spec.get("name", "")), str(spec.get("token", ""))
        return web.json_response({"accepted": any([await plane.accepts(name, token) for plane in self._planes])})

    async def deployment(self, request: web.Request) -> web.Response:
        spec = await _spec(request)
        for plane in self._planes:
            plane.own(str(spec.get("name", "")), spec.get("owner"))
        return web.json_response({})

    async def act(self, request: web.Request) -> web.Response:
        name, action = request.match_info["plane"], request.match_info["action"]
        for plane in self._planes:
            if plane.name == name:
                try:
                    return web.json_response(await plane.control(action, await _spec(request)))
                except LookupError:
                    break
        return web.json_response({"message": f"no action {action} of {name}"}, status=404)

    async def faults(self, request: web.Request) -> web.Response:
        return web.json_response(self._shared.faults.report())

    async def arm(self, request: web.Request) -> web.Response:
        try:
            fault = self._shared.faults.arm(await _spec(request))
        except UnknownFaultError as error:
            return web.json_response({"message": str(error)}, status=400)
        return web.json_response(fault.report(), status=201)

    async def disarm(self, request: web.Request) -> web.Response:
        self._shared.faults.clear()
        return web.json_response({})

    async def clock(self, request: web.Request) -> web.Response:
        self._shared.clock.offset_seconds = float((await _spec(request)).get("offset_seconds", 0))
        return web.json_response({"offset_seconds": self._shared.clock.offset_seconds})

    async def listeners(self, request: web.Request) -> web.Response:
        accepting = bool((await _spec(request)).get("accepting", True))
        await self._gate(accepting)
        return web.json_response({"accepting": accepting})

    async def reset(self, request: web.Request) -> web.Response:
        for plane in self._planes:
            await plane.reset()
        self._shared.replays.reset()
        self._shared.faults.clear()
        self._shared.counters.reset()
        self._shared.clock.offset_seconds = 0.0
        return web.json_response({})


def control_application(service: Service, gate: Gate) -> web.Application:
    """Build the control API's application."""
    control = _Control(service, gate)
    application = web.Application()
    application.router.add_get("/healthz", control.healthz)
    application.router.add_get("/counters", control.counters)
    application.router.add_post("/counters/reset", control.reset_counters)
    application.router.add_get("/agents", control.agents)
    application.router.add_post("/agents/{name}/forget", control.forget)
    application.router.add_post("/tokens/{name}/set-random", control.drift)
    application.router.add_post("/check-token", control.check_token)
    application.router.add_post("/deployments", control.deployment)
    application.router.add_post("/planes/{plane}/{action}", control.act)
    application.router.add_get("/faults", control.faults)
    application.router.add_post("/faults", control.arm)
    application.router.add_delete("/faults", control.disarm)
    application.router.add_post("/clock", control.clock)
    application.router.add_post("/listeners", control.listeners)
    application.router.add_post("/reset", control.reset)
    return application


def _found(known: bool, name: str) -> web.Response:
    return web.json_response({}) if known else web.json_response({"message": f"no record of {name}"}, status=404)


async def _spec(request: web.Request) -> dict[str, Any]:
    """The JSON object a test sent; an empty body is an empty object."""
    body = await request.read()
    try:
        spec = json.loads(body) if body else {}
    except ValueError as error:
        raise web.HTTPBadRequest(text="the body is not JSON") from error
    if not isinstance(spec, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return spec
