"""One outside system over HTTP: time limits, a call rate, a breaker, and failures named by what to do next.

    Answer           the system answered: 2xx or 4xx, the caller reads it
    TryAgain         nothing was done: no connection, 429, the breaker is open; NotItsTurn: no turn in time
    OutcomeUnknown   the request may have been carried out, but no usable answer came back (a TryAgain)

There are no automatic retries and no redirects: only the caller knows whether a call to a bank may be repeated.
The two failures can be told apart because httpcore says when it begins to send.
"""

import asyncio
import logging
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from msgspec import Struct

from streamproc.clients.breaker import Breaker
from streamproc.clients.limiter import QUEUE_MAX, NotItsTurn, RateLimiter
from streamproc.errors import TryAgain
from streamproc.telemetry.watch import Called, Server

BODY_BYTES_MAX = 8 * 1024 * 1024
"""A page of 100 payouts is about 150 kB; more than this is not an answer to anything we ask."""
CONNECT_S_MAX = 5.0
"""A call whose TCP and TLS handshake takes longer would hardly succeed in time; the total limit holds besides."""
CONNECTIONS_MAX = 32
"""Concurrent calls: more than any client's rate limit needs if each answer takes a second."""
KEEPALIVE_S = 5.0
"""Below the usual idle limits of servers, so that a call seldom gets a connection that was just closed."""
BACKOFF_BASE_S = 1.0
"""Least wait after a failure if the system names none."""
RETRY_AFTER_S_MAX = 900.0
"""The longest Retry-After that is obeyed: a system that asks for a day is called again after 15 minutes."""


class OutcomeUnknown(TryAgain):
    """The request may have been carried out and its answer was lost: look what happened before repeating it."""

    may_be_done = True


class Answer(Struct, frozen=True):
    """An outside system's answer: a 2xx or 4xx status and the body's bytes.

    `at_s`: when it was made by that system's own clock (Unix s), as its header Date says; None if that says nothing.
    """

    status: int
    body: bytes
    at_s: int | None = None


def backoff_s(attempt: int, base_s: float, cap_s: float, random: Callable[[], float]) -> float:
    """Exponential backoff with full jitter, in seconds; `attempt` counts from 1, `random` gives [0, 1)."""
    exponent = min(max(attempt, 1) - 1, 63)  # 2.0**64 s is beyond any cap, and far larger powers overflow
    return random() * min(cap_s, base_s * 2.0**exponent)


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header (seconds or HTTP date) asks for, capped; None if it says nothing.

    `now_s` is Unix time, wanted for dates only. A past date or zero is 0.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:18]), RETRY_AFTER_S_MAX)
    at_s = _time_of(text)
    return None if at_s is None else min(max(0.0, at_s - now_s), RETRY_AFTER_S_MAX)


def _asked_s(response: httpx.Response) -> float | None:
    return retry_after_s(response.headers.get("retry-after"), time.time())


def _time_of(date: str | None) -> int | None:
    try:
        # Of no zone, or of -0000, it is UTC too, and not this host's local time.
        return timegm(parsedate_to_datetime(date or "").utctimetuple())
    except (ValueError, OverflowError):
        return None


class _Progress:
    """How far one call got."""

    def __init__(self) -> None:
        self.ticket: int | None = None
        self.sending = False

    async def trace(self, event: str, _info: object) -> None:
        if event.endswith("send_request_headers.started"):
            self.sending = True


class OutboundClient:
    """HTTP to one outside system. `timeout_s` bounds a whole call, waiting for its turn included; if `wait_s_max` is
    given, it bounds the waiting, and `timeout_s` only what comes after.

    Messages of failures name the system, the method and the path, never the query, headers or body.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        timeout_s: float,
        limiter: RateLimiter,
        breaker: Breaker,
        body_bytes_max: int = BODY_BYTES_MAX,
        wait_s_max: float | None = None,
    ) -> None:
        self.name = name
        self.breaker = breaker
        self._server = _server_of(base_url)
        self._timeout_s = timeout_s
        self._wait_s_max = timeout_s if wait_s_max is None else wait_s_max
        self._waits_apart = wait_s_max is not None
        self._limiter = limiter
        self._body_bytes_max = body_bytes_max
        self._http = httpx.AsyncClient(
            base_url=base_url,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S_MAX)),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=KEEPALIVE_S),
            cookies=no_cookies(),
            # Uncompressed, since a limit on compressed bytes limits nothing.
            headers={"user-agent": "streamproc", "accept": "application/json", "accept-encoding": "identity"},
            trust_env=not is_loopback(base_url),  # a proxy named in the environment cannot reach our loopback
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; a call in flight fails."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        urgent: bool = False,
    ) -> Answer:
        """One request, one answer. Raises TryAgain or OutcomeUnknown with `after_s`; a 4xx is an answer."""
        what = f"{self.name} {method} {path or '/'}"
        progress = _Progress()
        request = self._http.build_request(
            method,
            path,
            params=params,
            headers=headers,
            content=content,
            extensions={"trace": progress.trace},
        )
        with Called(self.name, f"{method} {path}", self._server) as called:
            try:
                async with asyncio.timeout(self._wait_s_max) as limit:
                    await self._take_turn(what, progress, urgent)
                    if self._waits_apart:
                        limit.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                    response, body = await self._send(request)
            except TimeoutError as error:
                if progress.ticket is None:
                    late = f"{what}: its turn did not come within {self._wait_s_max:g} s"
                    raise NotItsTurn(late, after_s=self._failed(progress, None)) from error
                raise self._lost(what, progress, f"no answer within {self._timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise self._lost(what, progress, type(error).__name__) from error
            finally:
                # Cancelled, or a defect: the breaker must not wait for this probe for ever.
                if progress.ticket is not None:
                    self.breaker.abandoned(progress.ticket)
            try:
                answer = self._read(what, progress, response, body)
            except TryAgain:
                if response.status_code == 429 and (asked_s := _asked_s(response)):
                    await self._limiter.put_off(asked_s)
                raise
            called.outcome = f"{answer.status // 100}xx"
            return answer

    async def _take_turn(self, what: str, progress: _Progress, urgent: bool) -> None:
        self._refuse_if_open(what, self.breaker.wait_s)
        wait_s = self._limiter.wait_s(urgent=urgent)
        if wait_s > self._wait_s_max or self._limiter.queued >= QUEUE_MAX:
            raise NotItsTurn(f"{what}: {self._limiter.queued} calls wait for their turn", after_s=wait_s)
        await self._limiter.take(urgent=urgent)
        progress.ticket = self.breaker.begin()
        if progress.ticket is None:
            self._refuse_if_open(what, max(self.breaker.wait_s, BACKOFF_BASE_S))

    def _refuse_if_open(self, what: str, wait_s: float) -> None:
        if wait_s > 0:
            raise TryAgain(f"{what}: not called, the breaker is {self.breaker.state}", after_s=wait_s)

    async def _send(self, request: httpx.Request) -> tuple[httpx.Response, bytes | None]:
        """The response and its body; None for a body beyond the cap."""
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.HTTPError, asyncio.CancelledError, TimeoutError):
            raise
        except Exception as error:
            # A peer that dies as soon as it is connected shows as AttributeError from below httpx (anyio, uvloop).
            raise httpx.TransportError(f"{type(error).__name__} in the transport") from error
        try:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._body_bytes_max:
                    return response, None
            return response, bytes(body)
        finally:
            await response.aclose()

    def _read(self, what: str, progress: _Progress, response: httpx.Response, body: bytes | None) -> Answer:
        status = response.status_code
        asked_s = _asked_s(response)
        if status == 429:
            after_s = self._failed(progress, asked_s)
            raise TryAgain(f"{what}: answered 429, too many requests", after_s=after_s)
        if not (200 <= status < 300 or 400 <= status < 500):
            raise OutcomeUnknown(f"{what}: answered {status}", after_s=self._failed(progress, asked_s))
        if body is None:
            problem = f"{what}: answered {status} with more than {self._body_bytes_max} bytes"
            raise OutcomeUnknown(problem, after_s=self._failed(progress, None))
        if progress.ticket is not None:
            self.breaker.succeeded(progress.ticket)
        return Answer(status, body, _time_of(response.headers.get("date")))

    def _lost(self, what: str, progress: _Progress, why: str) -> TryAgain:
        kind = OutcomeUnknown if progress.sending else TryAgain
        return kind(f"{what}: {why}", after_s=self._failed(progress, None))

    def _failed(self, progress: _Progress, asked_s: float | None) -> float:
        """Tell the breaker; the least wait in seconds: what the system asked for, else the breaker's, else the base."""
        if progress.ticket is not None:
            self.breaker.failed(progress.ticket)
        if asked_s is not None:
            return max(asked_s, BACKOFF_BASE_S)
        return max(self.breaker.wait_s, BACKOFF_BASE_S)


class OverHttp:
    """A client of one outside system, whose calls go through `http`. Close it with `aclose`, or use it as an async
    context manager."""

    def __init__(self, http: OutboundClient) -> None:
        self._http = http

    @property
    def breaker(self) -> Breaker:
        """For the metric and `/readyz`."""
        return self._http.breaker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def no_cookies() -> CookieJar:
    """A jar that stays empty. Each answer could add cookies to it, until requests are too long for their server; and
    where callers share a client, one would send what another was given."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _server_of(base_url: str) -> Server:
    parts = urlsplit(base_url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return Server(parts.hostname or "", port, urlunsplit(shown).rstrip("/"))


def is_loopback(base_url: str) -> bool:
    """Whether a URL's host is this machine's loopback."""
    return urlsplit(base_url).hostname in {"127.0.0.1", "::1", "localhost"}


def _without_request_lines(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


# httpx logs every URL at INFO, with its query: there is an API key in Safe Browsing's, an account number in the bank's.
logging.getLogger("httpx").addFilter(_without_request_lines)
