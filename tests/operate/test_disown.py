"""An entry that no version of ours wrote stops whoever reads it, until a person states that it is none of ours."""

import asyncio
import json

import pytest
from msgspec.structs import replace

import consumers
from projections import keep
from streamproc.archive.disowned import digest_of, is_disowned
from streamproc.cli import run as cli
from streamproc.domain.attribution import WHY_CHARS_MAX, Attribution
from streamproc.domain.events import EntryDisowned
from streamproc.domain.wire import decode_events, encode_events
from streamproc.errors import InputError, JobFailed, Unprocessable
from streamproc.log import disown as log
from streamproc.log.names import Names
from streamproc.log.stream import Entry, entry_of
from streamproc.operate import disown as disowning
from streamproc.operate.dead import discard, list_letters, redrive
from streamproc.operate.disown import Disowning, disown, statement
from streamproc.operate.groups import groups
from streamproc.operate.history import history_of, history_until
from streamproc.operate.replay import replay
from streamproc.operate.site import Site
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.recovering import archive as archive_only
from tests.operate.words import POLICIES, archive, site_of
from tests.words import attributed, observed

GARBAGE = "no events at all"
OF_NO_GROUP = '[{"type":"token.created","v":1,"broken'
"""Its type concerns no group, so that nobody sets it aside."""
LATER = '[{"type":"payout.teleported","v":1,"at":1}]'


SHELL = "cli:asha@laptop"
MADE = b'{"by":"stranger"}'


async def strange(site: Site, e: str | bytes = GARBAGE, m: str | bytes = '{"by":"stranger"}') -> str:
    """Something else writes into the log."""
    entry: bytes = await site.client.xadd(Names(0).log, {"e": e, "m": m})
    return f"0:{entry.decode()}"


async def disowned(site: Site, entry: str, *, no_later_version: bool = False) -> Disowning:
    said = statement(entry, attributed("asha", "a load test", SHELL), no_later_version=no_later_version)
    return await disown(site, said, consumers.GROUPS)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "BROKEN_RETRY_S", 0.05)


@pytest.mark.parametrize(
    ("e", "m"),
    [
        (GARBAGE, "{}"),
        (OF_NO_GROUP, "{}"),
        (LATER, "{}"),
        ("[]", "no metadata"),
        ("[]", '{"by":"stranger","cause":5}'),
        (b'[{"type":"token.\xff"}]', "{}"),
        (b'[{"payout":"\xff"}]', "{}"),
        ("[]", b'{"by":"\xff"}'),
    ],
)
async def test_views_and_a_replay_pass_over_it_and_show_what_came_after(
    redis_url: str, postgres: str, e: str | bytes, m: str | bytes
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        await engine.apply(POLICIES)
        entry = await strange(site, e, m)
        await engine.deliver(observed("pout_1", 1_000))
        await archive_only(redis_url, postgres)
        with pytest.raises(
            JobFailed, match=f"entry {entry}: .*`streamproc log disown {entry}`.*nothing was swapped"
        ):
            await replay(postgres)
        await disowned(site, entry, no_later_version=e == LATER)
        await archive(redis_url, postgres)
        done = await replay(postgres, verify=True)
        assert [view.view for view in done.views if view.equal is not True] == []
        assert (await site.pool.fetchval("SELECT state FROM payouts WHERE payout = 'pout_1'")) == "approved"
        lines = await site.pool.fetch("SELECT reason, actor FROM audit WHERE reason LIKE '%disowned%'")
    assert [tuple(line) for line in lines] == [
        (f"entry {entry[2:]} disowned by {SHELL}: a load test", "asha")
    ]


async def test_views_that_stood_still_at_it_go_on_by_themselves(redis_url: str, postgres: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        await engine.apply(POLICIES)
        entry = await strange(site)
        await engine.deliver(observed("pout_1", 1_000))
        showing = asyncio.create_task(archive(redis_url, postgres))
        async with asyncio.timeout(DEADLINE_S):
            while not await site.pool.fetchval("SELECT to_regclass('heads') IS NOT NULL"):
                await asyncio.sleep(0.01)
            while not await site.pool.fetchval("SELECT count(*) FROM heads WHERE seq > 1"):
                await asyncio.sleep(0.01)
        assert await site.pool.fetchval("SELECT count(*) FROM payouts") == 0
        await disowned(site, entry)
        await showing
        assert await site.pool.fetchval("SELECT count(*) FROM payouts") == 1


async def test_its_dead_letters_are_discarded_with_it_and_those_of_others_stay(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        first, second = await strange(site), await strange(site)
        await engine.settled()
        assert [row["entry"] for row in await list_letters(site)] == [first, second]
        done = await disowned(site, first)
        assert [row["entry"] for row in await list_letters(site)] == [second]
        last = await site.client.xrevrange(Names(0).log, count=1)
        [closed] = decode_events(entry_of(last[0]).e)
        assert (closed.by, closed.channel) == ("asha", SHELL)
    assert (done.entry, len(done.letters), done.groups) == (first, 1, [])


async def test_what_looks_like_a_later_version_waits_for_that_until_somebody_knows_better(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        entry = await strange(site, LATER)
        async with asyncio.timeout(DEADLINE_S):
            while not (await groups(site))[0]["deferred"]:
                await asyncio.sleep(0.01)
        with pytest.raises(JobFailed, match=r"payout\.teleported.*--no-later-version"):
            await disowned(site, entry)
        done = await disowned(site, entry, no_later_version=True)
        await engine.settled(wholly=True)
    assert (done.groups, done.letters) == (["governance"], [])


async def test_a_run_that_was_killed_is_run_again_and_states_it_once(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.settled()
        entry = await strange(site)
        first, again = await disowned(site, entry), await disowned(site, entry)
        rows = await site.client.xrange(Names(0).log)
    assert first.recorded == again.recorded
    assert sum(b"entry.disowned" in b"".join(fields) for _, fields in rows) == 1


async def test_a_letter_that_is_given_back_at_the_same_time_brings_it_to_no_group(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        entry = await strange(site)
        await engine.settled()

        async def after_another(site: Site, letter: str, attribution: Attribution) -> int:
            monkeypatch.setattr(disowning, "discard", discard)
            await redrive(site, letter, attributed("ravi"))
            return await discard(site, letter, attribution)

        monkeypatch.setattr(disowning, "discard", after_another)
        done = await disowned(site, entry)
        await engine.settled()
        assert await list_letters(site) == []
    assert (done.groups, done.letters) == ([consumers.GOVERNANCE], [])


@pytest.mark.parametrize("e", [GARBAGE, LATER])
async def test_a_group_that_has_not_come_to_it_is_named_and_the_same_again_takes_it_from_there(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], e: str
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.settled()
    async with site_of(redis_url) as site:  # no worker runs
        entry = await strange(site, e)
        assert (await disowned(site, entry, no_later_version=True)).unread == [consumers.GOVERNANCE]
        monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
        arguments = ["log", "disown", entry, "--by", "asha", "--why", "a load test", "--yes"]
        assert await asyncio.to_thread(cli, [*arguments, "--no-later-version"]) == 0
        assert "governance did not come to it yet: run this again once" in capsys.readouterr().err
        async with Engine(redis_url) as engine:
            await engine.settled()
            again = await disowned(site, entry, no_later_version=True)
            assert (again.unread, len(again.groups) + len(again.letters)) == ([], 1)
            await engine.settled(wholly=True)
            assert await list_letters(site) == []


async def test_where_there_are_more_dead_letters_than_are_looked_at_it_does_not_say_that_all_is_done(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        entry = await strange(site)
        await engine.settled()
        monkeypatch.setattr(log, "LETTERS_MAX", 1)
        with pytest.raises(
            JobFailed, match=f"entry {entry} was disowned, but only the first 1 dead letters "
        ):
            await disowned(site, entry)
        assert (await disowned(site, entry)).letters == []  # its own was discarded


async def test_two_who_state_it_at_once_have_both_done_it(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        entry = await strange(site)
        await engine.settled()
        one, other = await asyncio.gather(disowned(site, entry), disowned(site, entry))
        assert not await list_letters(site)
    assert one.recorded == other.recorded


async def test_what_can_be_read_is_no_entry_or_has_no_reason_is_refused(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.deliver(observed("pout_1"))
        [(entry, _), *_] = await site.client.xrange(Names(0).log)
        with pytest.raises(JobFailed, match=r"can be read.*`streamproc dead discard` closes"):
            await disowned(site, f"0:{entry.decode()}")
        with pytest.raises(JobFailed, match="there is no entry 0:1-1 in Redis and Postgres cannot be asked"):
            await disowned(site, "0:1-1")
        with pytest.raises(InputError, match="partition 7"):
            await disowned(site, "7:1-1")
    for text, why, says in (
        ("1-1", "x", "not the id of a log entry"),
        ("0:1-1", " ", "--why is blank"),
        ("0:1-1", "x" * (WHY_CHARS_MAX + 1), "the limit is 500"),
    ):
        with pytest.raises(InputError, match=says):
            statement(text, attributed("asha", why, SHELL))


async def test_it_stands_for_these_bytes_alone(redis_url: str, postgres: str) -> None:
    """Somebody who writes to the database may not use it to have another entry passed over."""
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        entry = await strange(site)
        await disowned(site, entry)
        await engine.deliver(observed("pout_1", 1_000))
        await archive_only(redis_url, postgres)
        async with site.pool.acquire() as db, db.transaction():
            await db.execute("SET LOCAL session_replication_role = replica")
            await db.execute("UPDATE events SET e = 'other bytes' WHERE entry_id = $1", entry[2:])
        with pytest.raises(JobFailed, match=f"entry {entry}: "):
            await replay(postgres)


async def test_the_story_of_a_payout_that_it_names_is_told_without_it(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await engine.deliver(observed("pout_1"))
        before = await history_of(site, "pout_1")
        entry = await strange(site, '[{"type":"payout.decided","payout":"pout_1"}]')
        found = await history_of(site, "pout_1")
    assert [told.id for told in found.events] == [told.id for told in before.events]
    assert any(note.startswith(f"entry {entry} cannot be read and is left out: ") for note in found.notes)


async def test_the_story_of_a_payout_that_a_disowned_later_version_names_is_told_without_it(
    redis_url: str, postgres: str
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        await engine.deliver(observed("pout_1"))
        entry = await strange(site, LATER.replace("}", ',"payout":"pout_1"}'))
        await archive_only(redis_url, postgres)
        with pytest.raises(Unprocessable, match=f"entry {entry}: .*teleported"):
            await history_of(site, "pout_1")
        await disowned(site, entry, no_later_version=True)
        await archive_only(redis_url, postgres)
        found = await history_of(site, "pout_1")
        until = await history_until(site, "pout_1", {0: 1_000})
    assert found.events
    assert found.notes == until.notes == [f"entry {entry} was disowned and is left out"]


async def test_what_else_is_stated_of_it_takes_nothing_back_and_needs_to_be_readable_itself(
    redis_url: str, postgres: str
) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url, postgres) as site:
        entry = await strange(site)
        event = EntryDisowned(
            at=1, entry=entry[2:], digest=digest_of(GARBAGE.encode(), MADE), by="x", why="y"
        )
        await site.client.xadd(Names(0).log, {"e": encode_events([event]), "m": "no metadata"})
        await archive_only(redis_url, postgres)
        assert not await is_disowned(site.pool, 0, Entry(entry[2:], GARBAGE.encode(), MADE))
        await disowned(site, entry)
        other = encode_events([replace(event, digest="of other bytes")])
        await site.client.xadd(Names(0).log, {"e": other, "m": MADE})
        await engine.settled()
        await archive_only(redis_url, postgres)
        assert await is_disowned(site.pool, 0, Entry(entry[2:], GARBAGE.encode(), MADE))


async def test_the_command_says_what_it_did(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", postgres)
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        entry = await strange(site)
        await engine.settled()
        arguments = ["log", "disown", entry, "--by", "asha", "--why", "a load test", "--yes"]
        assert await asyncio.to_thread(cli, [*arguments, "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert (done["entry"], len(done["letters"])) == (entry, 1)
        assert await asyncio.to_thread(cli, arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{entry} is disowned (recorded as {done['recorded']}); 0 dead letters")
