"""Many sandboxes in one process: starting a process for each test took half a second of CPU, mostly for imports.

Each sandbox is a server with its own port and its own state, from when it is opened until it is closed. The process
lives as long as the one that started it. A test that does something to a sandbox's process needs a sandbox that is
alone in it.
"""

import asyncio
import atexit
import functools
import subprocess
import sys
from collections.abc import Mapping

import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ops.sandbox.config import SandboxConfig
from ops.sandbox.server import DRAIN_MAX_S, KEEP_ALIVE_S, build_app
from tests.ports import free_port

START_MAX_S = 90.0
END_MAX_S = 60.0
"""Limits for what hangs, as in tests/bank.py."""
LOOK_S = 0.005


# ---- in the test's process --------------------------------------------------------------


async def open_bank(env: Mapping[str, str]) -> None:
    """Let a sandbox with these `SANDBOX_*` variables listen on its port."""
    await _ask("POST", "/", env)


async def close_bank(port: int) -> None:
    """Close a sandbox as SIGTERM does: it finishes what is under way, and then listens no more."""
    await _ask("DELETE", f"/{port}")


async def _ask(method: str, path: str, body: object = None) -> None:
    async with httpx.AsyncClient(base_url=_address(), timeout=END_MAX_S, trust_env=False) as http:
        answer = await http.request(method, path, json=body)
    assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"


@functools.cache
def _address() -> str:
    """Address of the shared process, which the first call starts."""
    port = free_port()
    command = [sys.executable, "-m", "tests.banks", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline(), "the process of the sandboxes ended at once"

    def end() -> None:
        process.communicate(timeout=END_MAX_S)  # closes its stdin, which ends it

    atexit.register(end)
    return f"http://127.0.0.1:{port}"


# ---- in the shared process -----------------------------------------------------------------------


class Banks:
    """The open sandboxes, by port."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[uvicorn.Server, asyncio.Task[None]]] = {}

    async def open(self, request: Request) -> Response:
        """Open a sandbox; answered when it listens."""
        config = SandboxConfig.from_env(await request.json())
        server, serving = await listening(build_app(config), config.port)
        self._open[config.port] = server, serving
        return Response()

    async def close(self, request: Request) -> Response:
        """Close a sandbox; answered when it listens no more."""
        server, serving = self._open.pop(request.path_params["port"])
        server.should_exit = True
        await serving
        return Response()


async def listening(app: Starlette, port: int) -> tuple[uvicorn.Server, asyncio.Task[None]]:
    """Start a server; returns it with its task. It does not handle signals, since there may be many servers."""
    config = uvicorn.Config(
        app,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_MAX_S,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(_served(server), name=f"port {port}")
    async with asyncio.timeout(START_MAX_S):
        while not server.started:
            if serving.done():
                serving.result()
            await asyncio.sleep(LOOK_S)
    return server, serving


async def _served(server: uvicorn.Server) -> None:
    """Serve until it should exit. One that cannot listen does not take the others with it: uvicorn would end the
    process."""
    try:
        await server._serve()
    except SystemExit as ended:
        raise OSError(f"no sandbox can listen on port {server.config.port}") from ended


async def main(port: int) -> None:
    """Open and close sandboxes until stdin ends, which it does with the parent process."""
    banks, ended = Banks(), asyncio.Event()
    routes = [
        Route("/", banks.open, methods=["POST"]),
        Route("/{port:int}", banks.close, methods=["DELETE"]),
    ]
    await listening(Starlette(routes=routes), port)
    print("ready", flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
