import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.clients import razorpay
from streamproc.clients.breaker import OPEN_S, Breaker
from streamproc.clients.http import (
    BACKOFF_BASE_S,
    RETRY_AFTER_S_MAX,
    Answer,
    OutboundClient,
    OutcomeUnknown,
    backoff_s,
    retry_after_s,
)
from streamproc.clients.limiter import Limiter, NotItsTurn
from streamproc.errors import TryAgain
from tests.clients.loopback import (
    Asked,
    HandClock,
    Script,
    always,
    hang,
    in_turn,
    loopback,
    response,
    silent_for,
)
from tests.deadline import DEADLINE_S
from tests.hurry import pass_at_once

TIMEOUT_S = 20.0
"""Of the clients here. No test waits for it: it passes at once."""


def client_of(
    url: str,
    *,
    burst: int = 100,
    breaker: Breaker | None = None,
    body_bytes_max: int = 1_000,
) -> OutboundClient:
    return OutboundClient(
        "bank",
        url,
        timeout_s=TIMEOUT_S,
        limiter=Limiter(0.01 if burst == 1 else 1_000, burst),
        breaker=breaker or Breaker(),
        body_bytes_max=body_bytes_max,
    )


async def failure(script: Script) -> TryAgain:
    async with loopback(script) as server, client_of(server.url) as client:
        with pytest.raises(TryAgain) as caught:
            await client.call("POST", "/pay", content=b"{}")
    return caught.value


class Broken(httpx.AsyncBaseTransport):
    """What comes from below httpx where the peer is gone as soon as it is connected."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'getpeername'")


async def test_no_request_carries_what_an_answer_set_as_a_cookie() -> None:
    """Else a system that sets another one each time would get longer and longer requests, until it refuses them."""
    async with (
        loopback(always(200, b"{}", set_cookie="seen=1; Path=/; Max-Age=1000")) as server,
        client_of(server.url) as client,
    ):
        for _ in range(2):
            await client.call("GET", "/payouts")
    assert [asked.headers.get("cookie") for asked in server.asked] == [None, None]


async def test_a_peer_that_is_gone_as_soon_as_it_is_connected_is_no_defect_of_the_payout() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        client._http = httpx.AsyncClient(base_url="http://127.0.0.1:1", transport=Broken())
        with pytest.raises(TryAgain) as caught:
            await client.call("GET", "/x")
    assert not isinstance(caught.value, OutcomeUnknown)  # nothing was sent


async def test_a_call_without_a_path_is_named_as_one_to_the_root() -> None:
    async with loopback(always(500, b"")) as server, client_of(server.url) as client:
        with pytest.raises(OutcomeUnknown, match=r"^bank POST /: answered 500$"):
            await client.call("POST", "")


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 404, 422])
async def test_2xx_and_4xx_are_answers(status: int) -> None:
    body = b"" if status == 204 else b"{}"
    async with loopback(always(status, body)) as server, client_of(server.url) as client:
        assert await client.call("GET", "/x") == Answer(status, body)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_after_a_5xx_the_outcome_is_unknown(status: int) -> None:
    assert isinstance(await failure(always(status, b"<html>Bad Gateway</html>")), OutcomeUnknown)


async def test_a_429_means_that_nothing_was_done_and_its_retry_after_is_kept() -> None:
    problem = await failure(always(429, b"slow down", retry_after="7"))
    assert (type(problem), problem.after_s) == (TryAgain, 7)


async def test_without_a_connection_nothing_was_done() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refused
        async with client_of(f"http://127.0.0.1:{closed.getsockname()[1]}") as client:
            with pytest.raises(TryAgain) as caught:
                await client.call("POST", "/pay")
    assert type(caught.value) is TryAgain
    assert caught.value.after_s == BACKOFF_BASE_S


async def test_an_answer_that_does_not_come_in_time_leaves_the_outcome_unknown() -> None:
    assert isinstance(await failure(silent_for(TIMEOUT_S)), OutcomeUnknown)


async def test_a_connection_closed_instead_of_an_answer_leaves_the_outcome_unknown() -> None:
    assert isinstance(await failure(in_turn(None)), OutcomeUnknown)


async def test_an_answer_cut_short_leaves_the_outcome_unknown() -> None:
    half = response(200, b"0123456789")[:-5]

    async def script(_asked: Asked) -> bytes:
        asyncio.get_running_loop().call_later(0.05, pass_at_once, TIMEOUT_S)  # when it was read
        return half

    assert isinstance(await failure(script), OutcomeUnknown)


async def test_a_body_that_trickles_is_bounded_by_the_limit_of_the_whole_call() -> None:
    """Every chunk comes well within a read timeout, so only a deadline over the whole call ends it."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
                pass_at_once(TIMEOUT_S / 4)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with (
        server,
        client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client,
    ):
        with pytest.raises(OutcomeUnknown, match="no answer within 20 s"):
            await client.call("GET", "/x")


async def test_a_body_over_the_cap_is_no_answer() -> None:
    async with loopback(always(200, b"x" * 1_001)) as server, client_of(server.url) as client:
        with pytest.raises(OutcomeUnknown, match="more than 1000 bytes"):
            await client.call("GET", "/x")


async def test_a_body_of_exactly_the_cap_is_an_answer() -> None:
    async with loopback(always(200, b"x" * 1_000)) as server, client_of(server.url) as client:
        assert len((await client.call("GET", "/x")).body) == 1_000


async def test_redirects_are_not_followed() -> None:
    async with loopback(always(302, location="/elsewhere")) as server, client_of(server.url) as client:
        with pytest.raises(OutcomeUnknown):
            await client.call("POST", "/pay")
        assert [asked.path for asked in server.asked] == ["/pay"]


async def test_a_call_is_sent_once_whatever_happens_to_it() -> None:
    async with loopback(in_turn(None)) as server, client_of(server.url) as client:
        with pytest.raises(OutcomeUnknown):
            await client.call("POST", "/pay")
        assert len(server.asked) == 1


async def test_a_call_that_gets_no_token_in_time_was_not_made() -> None:
    async with loopback(always(200)) as server, client_of(server.url, burst=1) as client:
        await client.call("GET", "/first")
        with pytest.raises(TryAgain, match="wait for their turn") as caught:
            await client.call("GET", "/second")
        assert type(caught.value) is NotItsTurn
        assert len(server.asked) == 1


async def test_consecutive_failures_open_the_breaker_and_then_nobody_is_called() -> None:
    breaker = Breaker(failures_max=3)
    async with loopback(always(503)) as server, client_of(server.url, breaker=breaker) as client:
        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await client.call("POST", "/pay")
        assert breaker.state == "open"
        with pytest.raises(TryAgain, match="the breaker is open") as caught:
            await client.call("POST", "/pay")
        assert type(caught.value) is TryAgain
        assert 0 < caught.value.after_s <= OPEN_S
        assert len(server.asked) == 3


async def test_429_timeouts_and_lost_answers_open_the_breaker_too() -> None:
    for script in (always(429), silent_for(TIMEOUT_S), in_turn(None)):
        breaker = Breaker(failures_max=1)
        async with loopback(script) as server, client_of(server.url, breaker=breaker) as client:
            with pytest.raises(TryAgain):
                await client.call("GET", "/x")
        assert breaker.state == "open"


async def test_4xx_never_opens_the_breaker() -> None:
    breaker = Breaker(failures_max=1)
    async with loopback(always(400)) as server, client_of(server.url, breaker=breaker) as client:
        for _ in range(3):
            await client.call("POST", "/pay")
    assert breaker.state == "closed"


async def test_one_good_call_closes_the_breaker_again() -> None:
    clock = HandClock()
    breaker = Breaker(failures_max=1, open_s=10, clock=clock)
    script = in_turn(response(500), response(200))
    async with loopback(script) as server, client_of(server.url, breaker=breaker) as client:
        with pytest.raises(OutcomeUnknown):
            await client.call("GET", "/x")
        clock.now_s += 10
        await client.call("GET", "/x")
    assert breaker.state == "closed"


async def test_a_cancelled_probe_does_not_keep_the_breaker_half_open() -> None:
    clock = HandClock()
    breaker = Breaker(failures_max=1, open_s=10, clock=clock)
    async with loopback(always(500)) as server, client_of(server.url, breaker=breaker) as client:
        with pytest.raises(OutcomeUnknown):
            await client.call("GET", "/x")
        clock.now_s += 10
        server.script = hang
        probe = asyncio.create_task(client.call("GET", "/probe"))
        async with asyncio.timeout(DEADLINE_S):
            while len(server.asked) < 2:
                await asyncio.sleep(0.01)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        server.script = always(200)
        await client.call("GET", "/x")
    assert breaker.state == "closed"


async def test_no_message_and_no_log_line_shows_the_query_the_headers_or_the_body(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {
        "params": {"key": "SECRET-Q"},
        "headers": {"authorization": "SECRET-H"},
        "content": b"SECRET-B",
    }
    async with (
        loopback(in_turn(response(200), response(500), None)) as server,
        client_of(server.url) as client,
    ):
        await client.call("POST", "/x", **secrets)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(OutcomeUnknown) as caught:
                await client.call("POST", "/x", **secrets)  # type: ignore[arg-type]
            assert "SECRET" not in str(caught.value)
    assert len(server.asked) == 3
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0),
        ("30", 30),
        (" 30 ", 30),
        ("999999999999999999999999", RETRY_AFTER_S_MAX),
        (formatdate(1_000_060, usegmt=True), 60),
        (formatdate(999_000, usegmt=True), 0),
        (formatdate(9_000_000, usegmt=True), RETRY_AFTER_S_MAX),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_capped(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, now_s=1_000_000) == seconds


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This host's local time is five hours behind."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "EST5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize("zone", ["", " GMT", " -0000"])
def test_a_date_without_a_zone_is_not_this_hosts_local_time(zone: str) -> None:
    assert retry_after_s(f"Mon, 12 Jan 1970 13:47:40{zone}", now_s=1_000_000) == 60


@given(st.text())
def test_no_retry_after_header_is_ever_an_error(header: str) -> None:
    seconds = retry_after_s(header, now_s=0)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_S_MAX


@given(st.integers(-5, 10**6), st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_above_its_cap(attempt: int, chance: float) -> None:
    assert 0 <= backoff_s(attempt, 2, 60, lambda: chance) <= 60


def test_backoff_doubles_up_to_its_cap() -> None:
    most = [backoff_s(attempt, 2, 10, lambda: 1.0) for attempt in (1, 2, 3, 4)]
    assert most == [2, 4, 8, 10]


class SlowTurns:
    """Turns that come only when the time of a whole call would be over."""

    queued = 0

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    def wait_s(self, *, urgent: bool = False) -> float:
        return 0.0

    async def take(self, *, urgent: bool = False) -> None:
        asyncio.get_running_loop().call_soon(pass_at_once, self._wait_s)
        await asyncio.sleep(self._wait_s)


async def test_waiting_for_the_pace_takes_nothing_of_the_time_that_the_bank_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(razorpay, "TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(razorpay, "WAIT_S_MAX", 3 * TIMEOUT_S)
    async with loopback(always(200, {"id": "pout_1"})) as server:
        bank = razorpay.open_razorpay(
            server.url, key_id="k", key_secret="s", limiter=SlowTurns(2 * TIMEOUT_S)
        )
        answer = await bank.reject("pout_1", "late")
        await bank.aclose()
    assert answer.outcome == "done"


async def test_a_turn_that_does_not_come_is_named_and_is_no_failure_of_the_system() -> None:
    breaker = Breaker()
    async with (
        loopback(always(200)) as server,
        OutboundClient(
            "bank", server.url, timeout_s=20.0, limiter=SlowTurns(60.0), breaker=breaker,
            wait_s_max=0.1,
        ) as client,
    ):  # fmt: skip
        with pytest.raises(TryAgain, match=r"its turn did not come within 0\.1 s") as caught:
            await client.call("GET", "/")
    assert type(caught.value) is NotItsTurn
    assert server.asked == []


async def test_where_waiting_is_apart_a_call_has_its_whole_time_when_its_turn_has_come() -> None:
    async with (
        loopback(always(200)) as server,
        OutboundClient(
            "slack", server.url, timeout_s=TIMEOUT_S, limiter=SlowTurns(2 * TIMEOUT_S), breaker=Breaker(),
            wait_s_max=3 * TIMEOUT_S,
        ) as client,
    ):  # fmt: skip
        answers = [await client.call("GET", "/") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
