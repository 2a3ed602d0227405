"""A person lists holds, answers one, and is told what became of the answer."""

import asyncio
import os
import pwd
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from streamproc.archive.sql import statements
from streamproc.cli import run
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.shown import hold_json
from streamproc.domain.wire import Newer, decode_events
from streamproc.errors import InputError, JobFailed, LogBroken, LogUnavailable, TryAgain
from streamproc.log.inspect import records_where
from streamproc.log.stream import Entry, LogView, Producer
from streamproc.operate import hold_service, holds
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.hold_service import HoldService
from streamproc.operate.holds import answer, list_holds
from tests.engine import Engine
from tests.operate.words import NOBODY_THERE, POLICIES, archive, site_of
from tests.words import NOW, attributed, observed


async def held(engine: Engine, *payouts: str, agent: str = "bot", amount: int = 600_000) -> None:
    await engine.apply(POLICIES)
    await engine.deliver(*(observed(p, amount, agent=agent, at=NOW + n) for n, p in enumerate(payouts)))


async def test_the_first_approval_decides_and_the_second_is_told_by_whom(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        outcome = await answer(site, "pout_1", "approve", attributed("asha", "checked"))
        assert (outcome.decision, outcome.reason, outcome.needed) == ("APPROVED", "REVIEW_APPROVED", 0)
        decided = r"^already APPROVED by asha at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
        with pytest.raises(JobFailed, match=decided):
            await answer(site, "pout_1", "reject", attributed("vikram", "no"))


async def test_a_payout_whose_record_is_damaged_is_named_with_what_to_do_and_no_answer_is_recorded(
    redis_url: str,
):
    """It was a traceback of the decoder, for the person as for the page."""
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1", "pout_2")
        await engine.client.hset(engine.names.payout("pout_1"), "s", "damaged")
        entries = await engine.client.xlen(engine.names.log)
        told = r"^what Redis has under sp:\{0\}:payout:pout_1 cannot be read: .+`streamproc recover`"
        with pytest.raises(LogBroken, match=told):
            await answer(site, "pout_1", "approve", attributed("asha", "checked"))
        assert await engine.client.xlen(engine.names.log) == entries
        await answer(site, "pout_2", "approve", attributed("asha", "checked"))


async def test_an_answer_that_a_later_version_handled_is_recorded_and_not_an_error(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    """A rolling upgrade, workers first: this one has asked, and cannot read what became of it."""

    def decode(e: bytes) -> list[Event]:
        if b'"type":"review.counted"' in e:
            raise Newer("event type 'review.counted' has version 9; known here are 1 to 2")
        return decode_events(e)

    monkeypatch.setattr(holds, "decode_events", decode)
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        with pytest.raises(
            JobFailed,
            match="recorded, and a later version handled it",
        ):
            await answer(site, "pout_1", "approve", attributed("asha", "checked"))
        assert (await engine.record("pout_1")).state == "approved"


async def test_a_rejection_is_told(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        outcome = await answer(site, "pout_1", "reject", attributed("asha", "unknown vendor"))
        assert (outcome.decision, outcome.reason) == ("REJECTED", "REVIEW_REJECTED")
        assert (await engine.record("pout_1")).reviews[0].why == "unknown vendor"


async def test_above_the_dual_threshold_the_first_approval_asks_for_another(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1", agent="strict", amount=700_001)
        first = await answer(site, "pout_1", "approve", attributed("asha", "ok"))
        second = await answer(site, "pout_1", "approve", attributed("vikram", "ok"))
    assert (first.decision, first.needed) == (None, 1)
    assert (second.decision, second.needed) == ("APPROVED", 0)


async def test_two_names_from_one_shell_count_as_two_and_show_the_shell(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    shell = f"cli:{pwd.getpwuid(os.getuid()).pw_name}@laptop"

    async def said(*arguments: str) -> str:
        assert await asyncio.to_thread(run, list(arguments)) == 0
        return capsys.readouterr().out

    async with Engine(redis_url) as engine:
        await held(engine, "pout_1", agent="strict", amount=700_001)
        for name in ("asha", "vikram"):
            await said("hold", "approve", "pout_1", "--by", name, "--reason", "ok")
        record = await engine.record("pout_1")
    assert record.decision == "APPROVED"
    assert [(review.by, review.via, review.channel) for review in record.reviews] == [
        ("asha", "", shell),
        ("vikram", "", shell),
    ]
    assert f"vikram says approve by {shell}: ok" in await said("explain", "pout_1")


async def test_who_is_no_reviewer_is_refused_and_that_is_recorded(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        with pytest.raises(JobFailed, match="mallory is not in the list of reviewers"):
            await answer(site, "pout_1", "approve", attributed("mallory", "hello"))
        assert (await engine.record("pout_1")).state == "held"


async def test_two_answers_at_the_same_moment_decide_once(redis_url: str):
    async with Engine(redis_url, workers=2) as engine, site_of(redis_url) as one, site_of(redis_url) as two:
        await held(engine, "pout_1")
        answers = await asyncio.gather(
            answer(one, "pout_1", "approve", attributed("asha", "yes")),
            answer(two, "pout_1", "reject", attributed("vikram", "no")),
            return_exceptions=True,
        )
    assert sorted(isinstance(a, JobFailed) for a in answers) == [False, True]


async def test_an_answer_to_a_payout_that_nobody_knows_writes_nothing(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        with pytest.raises(JobFailed, match="pout_nobody is not known here"):
            await answer(site, "pout_nobody", "approve", attributed("asha", "yes"))
        with pytest.raises(JobFailed, match=r"^payout pout_nobody \[31m is not known here$"):
            await answer(site, "pout_nobody\n\x1b[31m", "approve", attributed("asha", "yes"))
        assert await engine.entries() == []


@pytest.mark.parametrize(("by", "why"), [("", "yes"), ("asha", " "), ("asha", "x" * 501)])
async def test_an_answer_without_a_name_or_a_short_reason_is_wrong_use(redis_url: str, by: str, why: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        with pytest.raises(InputError):
            await answer(site, "pout_1", "approve", attributed(by, why))


async def test_without_a_worker_the_answer_stays_and_the_person_is_told_where(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(holds, "ANSWER_WAIT_S", 0.3)
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        await engine.stop()
        with pytest.raises(JobFailed, match=r"recorded as 0:\d+-\d+, but no worker handled it within 0\.3 s"):
            await answer(site, "pout_1", "approve", attributed("asha", "yes"))
        engine.start()
        await engine.settled()
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_if_redis_goes_away_then_the_person_is_told_that_the_answer_is_recorded(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    async def away(*_: object) -> list[Entry]:
        raise LogUnavailable("Redis is away")

    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        with monkeypatch.context() as patch:
            patch.setattr(LogView, "read", away)
            with pytest.raises(JobFailed, match=r"recorded as 0:\d+-\d+; .* cannot be seen: Redis is away"):
                await answer(site, "pout_1", "approve", attributed("asha", "yes"))
        await engine.settled()
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_holds_are_listed_from_the_view_in_pages_the_longest_waiting_first(
    redis_url: str, postgres: str
):
    async with Engine(redis_url) as engine:
        await held(engine, "pout_c", "pout_a", "pout_b")
        await archive(redis_url, postgres)
        async with site_of(redis_url, postgres) as site:
            first = await list_holds(site, limit=2)
            rest = await list_holds(site, after=first.next, limit=2)
    assert [record.payout for record in first.items] == ["pout_c", "pout_a"]
    assert [record.payout for record in rest.items] == ["pout_b"]
    assert (first.next, rest.next, first.note) == ("pout_a", None, "")


async def test_pages_from_the_view_have_the_order_of_pages_from_redis_in_a_database_of_any_collation(
    redis_url: str, postgres: str
):
    """Most collations put pout_a before pout_B, and a page from Redis may follow one from the view. Those databases are
    not to be had here, so this looks at the order that Postgres is asked for."""
    query = statements("streamproc.archive", "lookup.sql")["held_page"]
    async with Engine(redis_url) as engine:
        await held(engine, "pout_a", "pout_B")
        await archive(redis_url, postgres)
    db = await asyncpg.connect(postgres)
    try:
        await db.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
        at = datetime(2026, 1, 1, tzinfo=UTC)
        plan = "\n".join(row[0] for row in await db.fetch(f"EXPLAIN {query}", at, "", None, None, 5))
    finally:
        await db.close()
    assert re.search(r'Sort Key: received_at, \S*payout\S* COLLATE "C"', plan), plan
    assert query.count('payout COLLATE "C"') == 2  # of the order, and of where a page begins


async def test_a_payout_that_was_seen_held_is_listed_at_once(redis_url: str, postgres: str):
    """The view is a moment behind the log: the list waits for it, and shows nothing of before."""
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        await held(engine, "pout_1")
        await archive(redis_url, postgres)
        await held(engine, "pout_2")
        listing = asyncio.create_task(list_holds(site))
        await archive(redis_url, postgres)
        found = await listing
    assert ([record.payout for record in found.items], found.note) == (["pout_1", "pout_2"], "")


async def test_while_the_view_stays_behind_holds_are_listed_from_redis_and_that_is_said(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(holds, "VIEW_WAIT_S", 0.1)
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        await held(engine, "pout_1")
        await archive(redis_url, postgres)
        await held(engine, "pout_2")
        found = await list_holds(site)
    assert [record.payout for record in found.items] == ["pout_1", "pout_2"]
    assert "the views show partition 0 up to" in found.note
    assert "listed from Redis" in found.note


@pytest.mark.parametrize("dsn", ["", NOBODY_THERE], ids=["not configured", "away"])
async def test_without_postgres_holds_are_listed_from_redis_and_that_is_said(redis_url: str, dsn: str):
    async with Engine(redis_url) as engine, site_of(redis_url, dsn) as site:
        await held(engine, "pout_b", "pout_a")
        await engine.deliver(observed("pout_small", 1_000))
        found = await list_holds(site)
    assert [record.payout for record in found.items] == ["pout_b", "pout_a"]
    assert "listed from Redis" in found.note


async def test_pages_from_redis_together_are_all_holds_once_however_few_are_put_in_order_at_a_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    async def twice(*arguments: Any, **named: Any) -> AsyncIterator[list[PayoutRecord]]:
        """SCAN gives a key again while others are added."""
        async for some in records_where(*arguments, **named):
            yield some
            yield some

    monkeypatch.setattr(holds, "RECORDS_AT_ONCE", 3)
    monkeypatch.setattr(holds, "records_where", twice)
    payouts, pages = [f"pout_{n}" for n in range(10)], list[list[str]]()
    async with Engine(redis_url) as engine:
        await held(engine, *payouts)
        after = None
        while not pages or after is not None:
            async with site_of(redis_url) as site:
                found = await list_holds(site, after=after, limit=4)
            pages.append([record.payout for record in found.items])
            after = found.next
    assert pages == [payouts[:4], payouts[4:8], payouts[8:]]


@asynccontextmanager
async def service(redis_url: str) -> AsyncIterator[HoldService]:
    async with (
        aclosing(SiteGateway(redis_url, 1, None)) as gateway,
        Producer(redis_url, partitions=1, name="test") as producer,
    ):
        yield HoldService(gateway, producer)


async def test_pages_from_redis_are_read_one_at_a_time(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    """Each reads every payout in Redis, in the process that answers webhooks."""
    reading, at_once = 0, set[int]()

    async def watched(*arguments: Any, **named: Any) -> AsyncIterator[list[PayoutRecord]]:
        nonlocal reading
        reading += 1
        at_once.add(reading)
        async for some in records_where(*arguments, **named):
            yield some
        reading -= 1

    monkeypatch.setattr(holds, "records_where", watched)
    async with Engine(redis_url) as engine, service(redis_url) as pages:
        await held(engine, "pout_1")
        one = pages.page(after=None, limit=5, account="", agent="")
        other = pages.page(after=None, limit=5, account="", agent="")
        found = await asyncio.gather(one, other)
    assert [[record.payout for record in page.items] for page in found] == [["pout_1"], ["pout_1"]]
    assert at_once == {1}


async def test_a_page_that_takes_too_long_is_given_up(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    async def endless(*_arguments: Any, **_named: Any) -> AsyncIterator[list[PayoutRecord]]:
        await asyncio.Event().wait()
        yield []

    monkeypatch.setattr(hold_service, "PAGE_S_MAX", 0.1)
    monkeypatch.setattr(holds, "records_where", endless)
    async with Engine(redis_url) as engine, service(redis_url) as pages:
        await held(engine, "pout_1")
        with pytest.raises(TryAgain, match=r"no page of holds within 0\.1 s"):
            await pages.page(after=None, limit=5, account="", agent="")


async def test_a_hold_for_scripts_has_its_reasons_and_its_expiry(redis_url: str):
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await held(engine, "pout_1")
        [record] = (await list_holds(site)).items
    shown = hold_json(record)
    assert shown["reasons"] == ["APPROVAL_REQUIRED"]
    assert shown["amount"] == 600_000
    assert shown["expires_at"] > shown["received_at"]
    assert shown["approved_by"] == []
