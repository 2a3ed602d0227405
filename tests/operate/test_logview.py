"""The log's newest entries, what comes after them, and its size."""

import asyncio
import json

from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import Append, Entry, Producer, open_log
from streamproc.operate.logview import Line, follow, line_json, line_text, stats, tail
from tests.operate.words import DEADLINE_S, site_of
from tests.words import observed

ACCOUNTS = ("acc_a", "acc_d")
"""One in each of two partitions."""


async def made(redis_url: str, partitions: int = 1) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=partitions, groups=["governance"])


async def appended(redis_url: str, partitions: int, *payouts: str) -> None:
    async with Producer(redis_url, partitions=partitions, name="webhook") as producer:
        for n, payout in enumerate(payouts):
            account = ACCOUNTS[n % len(ACCOUNTS)]
            appended = await producer.append(Append(account, (payout,), (observed(payout, account=account),)))
            while producer.now_us() // 1000 <= int(appended.entry.split("-")[0]):
                await asyncio.sleep(0)  # so that no two of them have one time


async def test_the_newest_entries_of_all_partitions_come_in_the_order_of_time(redis_url: str):
    await made(redis_url, partitions=2)
    await appended(redis_url, 2, "pout_1", "pout_2", "pout_3", "pout_4")
    async with site_of(redis_url) as site:
        lines = await tail(site, count=3)
        only = await tail(site, partition=lines[0].partition, count=10)
    assert [line_json(line)["events"][0]["data"]["payout"] for line in lines] == [
        "pout_2",
        "pout_3",
        "pout_4",
    ]
    assert {line.partition for line in lines} == {0, 1}
    assert len(only) == 2


async def test_following_tells_every_later_entry_once(redis_url: str):
    await made(redis_url, partitions=2)
    await appended(redis_url, 2, "pout_1")
    told: list[str] = []
    async with site_of(redis_url) as site:
        shown = await tail(site, count=5)
        following = follow(site, after=shown)
        first = asyncio.ensure_future(anext(following))
        await appended(redis_url, 2, "pout_2", "pout_3", "pout_4")
        async with asyncio.timeout(DEADLINE_S):
            told.append(line_text(await first))
            while len(told) < 3:
                told.append(line_text(await anext(following)))
        await following.aclose()
    assert sorted(line.split()[3] for line in told) == ["pout_2", "pout_3", "pout_4"]


async def test_a_line_says_who_wrote_what_about_which_payout(redis_url: str):
    await made(redis_url)
    await appended(redis_url, 1, "pout_1")
    async with site_of(redis_url) as site:
        [line] = await tail(site, count=5)
    assert "webhook" in line_text(line)
    assert line_text(line).endswith("pout_1  payout.observed(pending)")
    shown = json.loads(json.dumps(line_json(line)))
    assert shown["meta"] == {"by": "webhook", "keys": ["pout_1"]}
    assert shown["events"][0]["id"] == f"0:{line.entry.id}:0"


def test_the_columns_of_all_writers_stand_in_one_line():
    entries = [Entry("1-1", b"[]", b'{"by":"%s"}' % by.encode()) for by in ("cli", "notification")]
    cli, notification = (line_text(Line(0, entry)) for entry in entries)
    assert cli.index("  -  ") == notification.index("  -  ")


async def test_an_entry_of_a_newer_writer_is_shown_as_unreadable_not_hidden(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await site.client.xadd(Names(0).log, {"e": '[{"type":"from.the.future","v":1,"at":1}]', "m": "{}"})
        [line] = await tail(site, count=5)
    assert "cannot be read" in line_text(line)
    assert "from.the.future" in line_json(line)["unreadable"]


async def test_an_entry_whose_metadata_something_else_wrote_is_shown_too(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        await site.client.xadd(Names(0).log, {"e": "[]", "m": "no metadata"})
        [line] = await tail(site, count=5)
    assert "cannot be read: field m is not" in line_text(line)
    shown = line_json(line)
    assert (shown["meta"], "field m" in shown["unreadable"]) == ({}, True)
    assert shown["raw"] == {"e": "[]", "m": "no metadata"}


async def test_stats_count_entries_timers_and_dead_letters_of_each_partition(redis_url: str):
    await made(redis_url, partitions=2)
    await appended(redis_url, 2, "pout_1", "pout_2", "pout_3")
    async with site_of(redis_url) as site:
        names = Names(0)
        await site.client.zadd(names.timers, {"t": 1})
        await site.client.xadd(names.dead, {"e": "a" * 4_000})  # as a dead letter keeps its entry's bytes
        found = await stats(site, retention_s=60)
    rows = [row.size for row in found]
    assert sorted(row.length for row in rows) == [1, 2]
    assert [row.timers for row in rows] == [1, 0]
    assert [row.dead for row in rows] == [1, 0]
    assert rows[0].dead_bytes >= 4_000 > rows[1].dead_bytes
    assert all(row.first <= row.last and row.memory_bytes > 0 for row in rows)
    assert [row.beginning for row in found] == [None, None]  # there is no archive to ask


async def test_an_empty_log_has_nothing_to_show(redis_url: str):
    await made(redis_url)
    async with site_of(redis_url) as site:
        assert await tail(site, count=5) == []
        [row] = await stats(site, retention_s=60)
    assert (row.size.length, row.size.first, row.size.last) == (0, "0-0", "0-0")
