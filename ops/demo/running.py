"""The running system as the demo reaches it: the bank's controls over HTTP, and an operator's command line.

Nothing here calls streamproc's functions: what is shown is what an operator and a bank would see.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self, TypeVar

import httpx

from streamproc.errors import JobFailed
from streamproc.settings import Settings

T = TypeVar("T")

CALL_MAX_S = 10.0
"""For one call of the sandbox, or one run of the command line."""
CLI_MAX_S = 30.0
POLL_S = 0.05
OUTCOME_MAX_S = 30.0
"""For a payout to be decided, told to the bank, and seen as it should be."""
CLI_AT_ONCE = 2
"""Runs of the command line at once: each is a Python start."""


_AGENT = re.compile(r"^  (demo-[a-z]+):$", re.MULTILINE)
"""An agent's line in the policy file."""


class Outcome(NamedTuple):
    """A payout's outcome. `told`: the commands that took effect at the bank."""

    decision: str
    reason: str
    bank: str
    told: tuple[str, ...]

    def __str__(self) -> str:
        told = ", ".join(self.told) or "nothing"
        return f"{self.decision} {self.reason}, bank: {self.bank}, told: {told}"


class Running(AbstractAsyncContextManager["Running"]):
    """The system that the environment names."""

    def __init__(self, settings: Settings) -> None:
        self._bank = httpx.AsyncClient(
            base_url=settings.razorpay_base_url.removesuffix("/v1"),
            auth=(settings.razorpay_key_id, settings.razorpay_key_secret.reveal()),
            timeout=CALL_MAX_S,
            trust_env=False,
        )
        self._turns = asyncio.Semaphore(CLI_AT_ONCE)
        self._suffix = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._bank.aclose()

    async def begin(self, policies: str) -> str:
        """Put the demo's policies in force, and say what was done.

        After an earlier run here the agents of this one have names of their own: the others have spent of their
        budgets, and may be frozen by now.
        """
        said, (agent, *_) = "", _AGENT.findall(policies)
        if not (await self._run(("policy", "show", agent)))[0]:
            self._suffix = f"-{datetime.now(UTC):%Y%m%d-%H%M%S}"
            said = f"The demo was played here before: the names of this run's agents end in {self._suffix}\n"
        return said + await self.cli(
            "policy", "apply", "-", stdin=_AGENT.sub(rf"  \1{self._suffix}:", policies)
        )

    # ---- the bank ----

    async def control(self, path: str, **body: Any) -> dict[str, Any]:
        """`POST /_control/{path}`; JobFailed when it is refused."""
        return await self._call("POST", f"/_control/{path}", json=body)

    async def pay(self, agent: str, amount: int, url: str = "") -> str:
        """Somebody makes a payout at the bank, which tells us by a signed webhook; its id. Paise."""
        notes = {"agent_id": agent + self._suffix} | ({"vendor_url": url} if url else {})
        made = await self.control("payouts", amount=amount, notes=notes)
        return str(made["id"])

    async def deliveries(self, payout: str, event: str) -> list[dict[str, Any]]:
        """The webhooks of one event of a payout, with their attempts."""
        shown = await self._call("GET", "/_control/deliveries", params={"payout": payout, "event": event})
        return list(shown["items"])

    async def told(self, payout: str) -> tuple[str, ...]:
        """The commands about a payout that took effect at the bank."""
        shown = await self._call("GET", "/_control/record", params={"payout": payout, "effect": "true"})
        return tuple(line["command"].removeprefix("payout.") for line in shown["items"])

    async def bank_status(self, payout: str) -> str:
        """What the bank's API says of the payout."""
        return str((await self._call("GET", f"/v1/payouts/{payout}"))["status"])

    async def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = await self._bank.request(method, path, **more)
        except httpx.HTTPError as problem:
            raise JobFailed(
                f"the sandbox does not answer {method} {path}: {type(problem).__name__}"
            ) from problem
        if answer.status_code != httpx.codes.OK:
            raise JobFailed(f"the sandbox refused {method} {path}: {answer.status_code} {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found

    # ---- the operator ----

    async def cli(self, *arguments: str, stdin: str = "") -> str:
        """Run `streamproc ARGUMENTS` and give what it printed; JobFailed, with its error, unless it exits 0."""
        code, out, err = await self._run(arguments, stdin)
        if code != 0:
            raise JobFailed(f"streamproc {' '.join(arguments)} exited {code}: {err.strip()[-500:]}")
        return out

    async def explain(self, payout: str) -> dict[str, Any] | None:
        """`explain --json`; None while the payout is not known."""
        code, out, _ = await self._run(("explain", payout, "--json"))
        if code != 0:
            return None
        story: dict[str, Any] = json.loads(out)
        return story

    async def _run(self, arguments: tuple[str, ...], stdin: str = "") -> tuple[int, str, str]:
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "streamproc", *arguments),
                env=os.environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(CLI_MAX_S):
                    out, err = await process.communicate(stdin.encode())
            except TimeoutError as problem:
                raise JobFailed(f"streamproc {' '.join(arguments)} took over {CLI_MAX_S:g} s") from problem
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return process.returncode or 0, out.decode(), err.decode(errors="replace")

    # ---- both ----

    async def at_bank(self, payout: str, wanted: Outcome) -> None:
        """Wait until the bank's side of the outcome is as wanted, for OUTCOME_MAX_S at most."""

        async def there() -> bool:
            return (await self.bank_status(payout), await self.told(payout)) == (wanted.bank, wanted.told)

        await until(there)

    async def outcome(self, payout: str, wanted: Outcome) -> Outcome:
        """The payout's outcome: `wanted` as soon as it is so, else as it is after OUTCOME_MAX_S."""

        async def here() -> Outcome | None:
            seen = await self._seen(payout)
            return seen if seen == wanted else None

        await self.at_bank(payout, wanted)  # cheap to ask; explain is a process each time
        return await until(here) or await self._seen(payout)

    async def _seen(self, payout: str) -> Outcome:
        story = await self.explain(payout) or {}
        decision, reason = story.get("decision") or "no decision", story.get("reason") or ""
        return Outcome(decision, reason, await self.bank_status(payout), await self.told(payout))


async def until(condition: Callable[[], Awaitable[T]], deadline_s: float = OUTCOME_MAX_S) -> T | None:
    """The first true answer of `condition`, or None when there is none within the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            while not (answer := await condition()):  # noqa: ASYNC110  # other processes set no event
                await asyncio.sleep(POLL_S)
            return answer
    except TimeoutError:
        return None
