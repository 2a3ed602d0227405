"""Of many alerts alike the first is told at once; the rest are counted, once each, and told together by one worker."""

import asyncio

import pytest

from streamproc.domain.events import NotificationSent
from streamproc.domain.notice import digest_notice
from streamproc.domain.wire import decode_events
from streamproc.log import digests
from streamproc.log.clock import clock_us
from streamproc.log.connection import connect, connected
from streamproc.log.digests import Alert, Digest, Digests
from streamproc.log.names import Names
from streamproc.log.stream import LogView, open_log

NAMES = Names(0)


def alert(n: int, kind: str = "LIMIT", paise: int = 100) -> Alert:
    return Alert(kind, f"{kind}, agent bot", f"pout_{n}", paise)


def told(digest: Digest) -> NotificationSent:
    about, count = digest.about, digest.count
    return NotificationSent(at=digest.at, kind="digest", channel="ntfy", ref="r", count=count, about=about)


async def due(redis_url: str) -> None:
    """The minute is over."""
    client = connect(redis_url)
    for name in await client.zrange(NAMES.digests, 0, -1):
        await client.zadd(NAMES.digests, {name: 1})
    await client.aclose()


@pytest.fixture
async def counting(redis_url: str) -> Digests:
    client = connect(redis_url)
    await open_log(client, partitions=1, groups=["notification"])
    await client.aclose()
    return Digests(redis_url)


async def test_the_first_is_told_and_the_others_are_counted_each_once(
    redis_url: str, counting: Digests
) -> None:
    assert await counting.count(0, [alert(1), alert(2), alert(3), alert(2)]) == [True, False, False, False]
    # Redelivered: the first is still the first.
    assert await counting.count(0, [alert(1), alert(3)]) == [
        True,
        False,
    ]
    await due(redis_url)
    (digest,) = await counting.take(1)
    assert (digest.count, digest.paise, digest.more) == (2, 200, False)
    assert digest.examples == ("pout_2", "pout_3")
    assert digest.about == "LIMIT, agent bot"


async def test_a_digest_is_in_one_hand_and_is_recorded_once(redis_url: str, counting: Digests) -> None:
    await counting.count(0, [alert(n) for n in range(5)])
    await due(redis_url)
    takers = await asyncio.gather(*(Digests(redis_url).take(1) for _ in range(4)))
    (digest,) = [digest for taken in takers for digest in taken]
    event = told(digest)
    assert [await counting.close(digest, event, "notification") for _ in range(2)] == [True, False]
    async with LogView(redis_url, 0) as view:
        entries = await view.read("0-0", 10, 0)
    assert [decode_events(entry.e) for entry in entries] == [[event]]


async def test_a_digest_of_a_worker_that_died_is_told_by_another(redis_url: str, counting: Digests) -> None:
    await counting.count(0, [alert(n) for n in range(5)])
    await due(redis_url)
    (lost,) = await counting.take(1)
    assert await counting.take(1) == []
    await due(redis_url)  # the lease is over
    (again,) = await counting.take(1)
    assert (again.count, again.paise) == (lost.count, lost.paise)
    event = told(again)
    assert not await counting.close(lost, event, "notification")
    assert await counting.close(again, event, "notification")


async def test_what_comes_while_a_digest_is_told_is_in_the_next_one_and_silence_ends_them(
    redis_url: str, counting: Digests
) -> None:
    await counting.count(0, [alert(n) for n in range(5)])
    await due(redis_url)
    (digest,) = await counting.take(1)
    assert await counting.count(0, [alert(5), alert(6)]) == [False, False]
    event = told(digest)
    await counting.close(digest, event, "notification")
    assert await counting.count(0, [alert(7)]) == [False]
    await due(redis_url)
    (following,) = await counting.take(1)
    assert following.count == 3
    following_event = told(following)
    await counting.close(following, following_event, "notification")
    await due(redis_url)
    assert await counting.take(1) == []
    client = connect(redis_url)
    assert [key async for key in client.scan_iter("*digest*")] == []
    await client.aclose()
    assert await counting.count(0, [alert(8)]) == [True]


async def test_beyond_what_is_counted_exactly_it_is_more_than_that(
    redis_url: str, counting: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "EXACT_MAX", 10)
    await counting.count(0, [alert(n) for n in range(30)])
    await due(redis_url)
    (digest,) = await counting.take(1)
    assert (digest.count, digest.more) == (10, True)


async def test_the_next_digest_begins_anew_and_tells_nothing_that_was_told(
    redis_url: str, counting: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "EXACT_MAX", 2)
    await counting.count(0, [alert(n) for n in range(5)])
    await due(redis_url)
    (digest,) = await counting.take(1)
    assert (digest.count, digest.more, digest.examples) == (2, True, ("pout_1", "pout_2"))
    await counting.close(digest, told(digest), "notification")
    assert await counting.count(0, [alert(0), alert(7)]) == [False, False]
    await due(redis_url)
    (following,) = await counting.take(1)
    assert (following.count, following.paise, following.more) == (2, 200, False)
    assert following.examples == ("pout_0", "pout_7")
    await counting.close(following, told(following), "notification")
    await due(redis_url)
    assert await counting.take(1) == []  # else people would be told of nothing, every minute


async def test_what_comes_beyond_the_count_while_a_digest_is_told_is_said_in_the_next_one(
    redis_url: str, counting: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "EXACT_MAX", 2)
    await counting.count(0, [alert(n) for n in range(4)])
    await due(redis_url)
    (lost,) = await counting.take(1)
    await due(redis_url)  # its worker died
    (digest,) = await counting.take(1)
    assert lost.more
    assert (digest.count, digest.more) == (2, True)
    assert await counting.count(0, [alert(5)]) == [False]
    await counting.close(digest, told(digest), "notification")
    await due(redis_url)
    (following,) = await counting.take(1)
    assert (following.count, following.more) == (0, True)
    notice = digest_notice(following.about, count=0, paise=0, more=True, examples=())
    assert (notice.title, notice.lines[0]) == (
        "some alerts: LIMIT, agent bot",
        "some more alerts within a minute",
    )
    await counting.close(following, told(following), "notification")
    await due(redis_url)
    assert await counting.take(1) == []


async def test_a_digest_is_due_when_it_has_gathered_for_its_time_the_next_one_too(
    redis_url: str, counting: Digests
) -> None:
    gather_us = int(digests.GATHER_S * 1e6)

    async with connected(redis_url) as client:

        async def is_due_in_its_time(began_us: int) -> bool:
            ((_, score),) = await client.zrange(NAMES.digests, 0, -1, withscores=True)
            return began_us + gather_us <= score <= await clock_us(client) + gather_us

        began_us = await clock_us(client)
        await counting.count(0, [alert(1), alert(2)])
        assert await is_due_in_its_time(began_us)
        await due(redis_url)
        (digest,) = await counting.take(1)
        began_us = await clock_us(client)
        await counting.close(digest, told(digest), "notification")
        assert await is_due_in_its_time(began_us)


async def test_a_digest_that_would_be_due_later_than_any_is_told_since_the_clock_went_back(
    redis_url: str, counting: Digests
) -> None:
    await counting.count(0, [alert(n) for n in range(3)])
    assert await counting.take(1) == []
    hour_us = 3_600_000_000
    async with connected(redis_url) as client:
        await client.zincrby(NAMES.digests, hour_us, digests.digest_name("LIMIT"))
    (digest,) = await counting.take(1)
    assert digest.count == 2


async def test_who_makes_up_names_gets_no_flood_of_kinds(
    redis_url: str, counting: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "OPEN_MAX", 3)
    answers = await counting.count(0, [alert(n, kind=f"agent {n}") for n in range(20)])
    assert answers == [True, True, True, True, *[False] * 16]  # three kinds, and the first of all others
    await due(redis_url)
    (others,) = await counting.take(1)
    assert (others.about, others.count) == ("", 16)


async def test_everything_of_it_expires(redis_url: str, counting: Digests) -> None:
    await counting.count(0, [alert(1), alert(2)])
    client = connect(redis_url)
    lives = [await client.ttl(key) async for key in client.scan_iter(f"{NAMES.base}:digest:*")]
    await client.aclose()
    assert len(lives) == 2
    assert all(0 < life <= digests.FORGOTTEN_S for life in lives)


async def test_a_digest_of_alerts_about_no_amount_is_told_once_too(redis_url: str, counting: Digests) -> None:
    await counting.count(0, [alert(n, "DEAD", 0) for n in range(3)])
    await due(redis_url)
    (digest,) = await counting.take(1)
    assert (digest.count, digest.paise) == (2, 0)
    assert await counting.close(digest, told(digest), "notification")
    await due(redis_url)
    assert await counting.take(1) == []
