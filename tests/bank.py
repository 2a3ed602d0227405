"""The sandbox as a real process, for tests of everything that talks to a bank.

async with running_sandbox(workflow="off") as bank, receiving_webhooks() as inbox:
    await bank.webhook(url=inbox.url)
    payout = await bank.pay(250_000, notes={"agent_id": "buyer"})
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ops.sandbox.config import SandboxConfig
from tests.banks import close_bank, open_bank
from tests.ports import free_port as free_port
from tests.signals import heard

START_MAX_S = 90.0
STOP_MAX_S = 60.0
CALL_MAX_S = 60.0
STEP_MAX_S = 60.0
"""Limits for what hangs, not measures of what works: a busy machine is ten times slower."""
SHORT_READ = httpx.Timeout(CALL_MAX_S, read=0.3)
"""For a caller who gets no answer. He gives up reading, and not connecting, which a busy machine may make slow."""
POLL_S = 0.02
REST_S_MAX = 0.5
"""`until` rests as long as it looked, and no longer: a look at a whole log, or a command, keeps a core busy."""
T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T]], *, what: str, deadline_s: float = STEP_MAX_S) -> T:
    """The first true answer of `condition`. Raises AssertionError with `what` if there is none in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    began = loop.time()
    while not (answer := await condition()):
        now = loop.time()
        assert now < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(max(POLL_S, min(now - began, REST_S_MAX)))
        began = loop.time()
    return answer


@dataclass
class Sandbox:
    """A running sandbox, and how to talk to it: as a customer (`call`), or to control it (the rest)."""

    config: SandboxConfig
    http: httpx.AsyncClient
    process: asyncio.subprocess.Process | None
    """None if it shares its process with others."""

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end; the bank's API is below `/v1`."""
        return f"http://127.0.0.1:{self.config.port}"

    async def call(
        self, method: str, path: str, body: Any = None, *, auth: str = "basic", key: str = "", **more: Any
    ) -> httpx.Response:
        """Call the bank's API. `auth`: basic, bearer or none; `key`: the idempotency header."""
        headers: dict[str, str] = dict(more.pop("headers", {}))
        if key:
            headers["X-Payout-Idempotency"] = key
        if auth == "bearer":
            headers["Authorization"] = f"Bearer {self.config.oauth_token}"
        credentials = (self.config.key_id, self.config.key_secret) if auth == "basic" else None
        if body is not None:
            more["json"] = body
        return await self.http.request(method, path, headers=headers, auth=credentials, **more)

    async def control(self, path: str, **body: Any) -> Any:
        """`POST /_control/{path}`. Raises AssertionError with the answer if it is refused."""
        answer = await self.http.post(f"/_control/{path}", json=body)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def show(self, what: str, **filters: str) -> list[dict[str, Any]]:
        """The items of `GET /_control/{what}`."""
        answer = await self.http.get(f"/_control/{what}", params=filters)
        assert answer.status_code == 200, f"{what}: {answer.status_code} {answer.text}"
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def pay(self, amount: int, **fields: Any) -> dict[str, Any]:
        """Make a payout at the bank as an outsider, `pending` unless `status` says otherwise. Paise."""
        made: dict[str, Any] = await self.control("payouts", amount=amount, **fields)
        return made

    async def advance(self, payout_id: str, to: str, **fields: Any) -> dict[str, Any]:
        """Move a payout by hand."""
        moved: dict[str, Any] = await self.control(f"payouts/{payout_id}/advance", to=to, **fields)
        return moved

    async def payout(self, payout_id: str) -> dict[str, Any]:
        """The payout as the API shows it now."""
        answer = await self.call("GET", f"/v1/payouts/{payout_id}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def reaches(self, payout_id: str, status: str) -> dict[str, Any]:
        """Wait until the payout is in `status`."""

        async def there() -> dict[str, Any] | None:
            shown = await self.payout(payout_id)
            return shown if shown["status"] == status else None

        shown = await until(there, what=f"{payout_id} is {status}")
        assert shown is not None
        return shown

    async def faults(self, **plan: list[dict[str, Any]]) -> None:
        """`api=[…]`, `webhooks=[…]`: replace the faults in force."""
        await self.control("faults", **plan)

    async def record(self, **filters: str) -> list[dict[str, Any]]:
        """What the bank was told, oldest first; filters `payout`, `command`, `effect`."""
        return await self.show("record", **filters)

    async def deliveries(self, **filters: str) -> list[dict[str, Any]]:
        """Webhooks, oldest first; filters `payout`, `event`, `state`."""
        return await self.show("deliveries", **filters)

    async def messages(self, to: str) -> list[dict[str, Any]]:
        """Messages that were sent to `slack` or `ntfy`."""
        return await self.show("messages", to=to)

    async def webhook(self, **change: Any) -> None:
        """Change the subscription: `url`, `secret`, `events`, `enabled`, `retry_base_s`, `give_up_s`."""
        await self.control("webhook", **change)

    async def bank(self, **change: Any) -> None:
        """Change the bank: `workflow`, `levels`, `processing_s`, `outcome`, `next_outcomes`, …"""
        await self.control("bank", **change)

    async def balance(self, **change: int) -> int:
        """Change the balance by `add=` or to `set=` (paise). Returns the new balance."""
        balance: int = (await self.control("balance", **change))["balance"]
        return balance

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the process, if it has not ended. Returns its exit status."""
        assert self.process is not None, "it shares its process; use running_sandbox(alone=True)"
        if self.process.returncode is None:
            self.process.send_signal(how)
        return await asyncio.wait_for(self.process.wait(), STOP_MAX_S)


@asynccontextmanager
async def running_sandbox(*, alone: bool = False, **config: Any) -> AsyncIterator[Sandbox]:
    """Start the sandbox with these fields of SandboxConfig on a free port, and stop it at the end.

    It runs in a process that tests share, one after the other (tests/banks.py). With `alone` it has its own.
    """
    settings = SandboxConfig(**{"port": free_port(), **config})
    given = {f"SANDBOX_{name.upper()}": str(getattr(settings, name)) for name in {"port", *config}}
    base_url = f"http://127.0.0.1:{settings.port}"
    async with httpx.AsyncClient(base_url=base_url, timeout=CALL_MAX_S, trust_env=False) as http:
        if not alone:
            await open_bank(given)
            try:
                yield Sandbox(settings, http, None)
            finally:
                await close_bank(settings.port)
            return
        env = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ops.sandbox"),
            env=env | given,
            start_new_session=True,  # it hears us, and not our terminal
            preexec_fn=heard,
        )
        sandbox = Sandbox(settings, http, process)
        try:
            await until(lambda: _answers(sandbox), what="the sandbox answers", deadline_s=START_MAX_S)
            yield sandbox
        finally:
            await sandbox.stop()


async def _answers(sandbox: Sandbox) -> bool:
    assert sandbox.process is not None
    assert sandbox.process.returncode is None, f"the sandbox ended with {sandbox.process.returncode}"
    try:
        return (await sandbox.http.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Inbox:
    """A customer's endpoint, which keeps every request. It answers with `answers` in order, then always with 200."""

    url: str
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        """Keep the request and answer as planned."""
        self.requests.append((dict(request.headers), await request.body()))
        return Response(status_code=self.answers.pop(0) if self.answers else 200)

    async def holds(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        """Wait for at least `count` requests. Returns all that there are."""

        async def enough() -> bool:
            return len(self.requests) >= count

        await until(enough, what=f"{count} webhooks came (there are {len(self.requests)})")
        return self.requests


@asynccontextmanager
async def receiving_webhooks() -> AsyncIterator[Inbox]:
    """Listen for webhooks on a free port, in this process."""
    port = free_port()
    inbox = Inbox(f"http://127.0.0.1:{port}/webhooks")
    async with listening(port, Route("/webhooks", inbox.take, methods=["POST"])):
        yield inbox


@asynccontextmanager
async def listening(port: int, *routes: Route) -> AsyncIterator[None]:
    """An HTTP server with these routes, in this process."""
    app = Starlette(routes=routes)
    # Its own configuration of logging would cut its loggers off from the root for all tests of this process.
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None))
    serving = asyncio.create_task(server._serve())  # not `serve`: the signals belong to pytest

    async def started() -> bool:
        return server.started

    await until(started, what=f"{routes[0].path} listens", deadline_s=START_MAX_S)
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, STOP_MAX_S)
