"""The sandbox as a web server: one port for the bank, its neighbours and the controls."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from ops.sandbox import api, control
from ops.sandbox.config import ENV_PREFIX, SandboxConfig, refused
from ops.sandbox.refusals import url_not_found
from ops.sandbox.world import World

DRAIN_MAX_S = 2
"""How long SIGTERM waits for calls in flight; those that are never answered must not delay it."""
KEEP_ALIVE_S = 75
"""How long an idle connection is kept, as web servers usually do: longer than clients keep it, since a call is lost on
one that is closed just as it is used again."""
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def build_app(config: SandboxConfig) -> Starlette:
    """The ASGI application, which is to be run: its end closes the file of the state."""

    world = World(config)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        app.state.world = world
        heartbeat = asyncio.create_task(world.beat())
        heartbeat.add_done_callback(_loud)
        yield
        heartbeat.cancel()
        with suppress(asyncio.CancelledError):
            await heartbeat
        await world.close()

    return Starlette(routes=_routes(), lifespan=life)


def _loud(heartbeat: asyncio.Task[None]) -> None:
    """End the process if the heartbeat fails: a bank whose clock has stopped must not look alive."""
    if not heartbeat.cancelled() and heartbeat.exception() is not None:
        signal.raise_signal(signal.SIGTERM)
        heartbeat.result()


def _routes() -> list[Route | Mount]:
    return [
        Route("/healthz", healthz),
        Route("/v1/{path:path}", api.answer, methods=METHODS),
        Route("/safebrowsing/v4/threatMatches:find", safebrowsing, methods=["POST"]),
        Route("/gleif/api/v1/lei-records", gleif),
        Route("/oauth/token", token, methods=["POST"]),
        Route("/slack/api/{method}", slack, methods=["GET", "POST"]),
        Route("/ntfy/", ntfy, methods=["POST", "PUT"]),
        Route("/ntfy/{topic}", ntfy, methods=["POST", "PUT"]),
        Mount("/_control", routes=control.ROUTES, middleware=[Middleware(control.LoopbackOnly)]),
        Route("/{path:path}", elsewhere, methods=METHODS),
    ]


async def healthz(request: Request) -> Response:
    """200 while the sandbox is up."""
    return JSONResponse({"status": "ok", "payouts": len(request.app.state.world.bank.payouts)})


async def safebrowsing(request: Request) -> Response:
    """Safe Browsing's lookup."""
    world: World = request.app.state.world
    return await world.reputation.find(request, world.clock.now())


async def gleif(request: Request) -> Response:
    """GLEIF's search."""
    world: World = request.app.state.world
    return await world.registry.find(request, world.clock.now())


async def token(request: Request) -> Response:
    """The bank's authorization server: a new access token for a refresh token."""
    world: World = request.app.state.world
    return await world.tokens.answer(request)


async def slack(request: Request) -> Response:
    """Slack's Web API."""
    world: World = request.app.state.world
    return await world.messages.slack(request, world.clock.now())


async def ntfy(request: Request) -> Response:
    """ntfy's publish."""
    world: World = request.app.state.world
    return await world.messages.ntfy(request, world.clock.now())


async def elsewhere(request: Request) -> Response:
    """Any other URL, refused as the bank refuses it."""
    refusal = url_not_found()
    return JSONResponse(refusal.envelope(), refusal.status)


def run(config: SandboxConfig) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP (not with nohup), then drain and return. SystemExit, as for a wrong
    setting, if the port is taken or the file of the state cannot be used.

    Blocks; for the main thread of a process of its own: it takes over these signals, and ignores them at its end.
    """
    with config.bound() as listening:
        settings = uvicorn.Config(
            _opened(config),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_MAX_S,
        )
        server = uvicorn.Server(settings)

        def stop(_number: int, _frame: object) -> None:
            server.should_exit = True

        # uvicorn hears two of them itself, and raises these again at its end for the handler before its own.
        ordered_stops = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            ordered_stops.append(signal.SIGHUP)
        for ordered_stop in ordered_stops:
            signal.signal(ordered_stop, stop)
        server.run([listening])
        for ordered_stop in ordered_stops:  # one more must not change the status with which it ends
            signal.signal(ordered_stop, signal.SIG_IGN)


def _opened(config: SandboxConfig) -> Starlette:
    try:
        return build_app(config)
    except (OSError, sqlite3.Error, msgspec.MsgspecError) as problem:
        raise refused(
            f"{ENV_PREFIX}DATA_FILE {config.data_file} cannot be used: {problem}; move it away to start anew"
        ) from problem
