"""`streamproc recover` as a command: when it refuses, what it says, and what it learns from the bank."""

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import pytest
from redis.asyncio import Redis

import consumers
from projections.schema import prepare
from streamproc.archive.store import connection, open_head, take_lock
from streamproc.cli import run as cli
from streamproc.cli.person import shell
from streamproc.clients.razorpay import Page
from streamproc.domain.wire import decode_events
from streamproc.errors import JobFailed
from streamproc.ingress.razorpay_poll import Listing
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.names import META, Names
from streamproc.log.restore import accounts_asked, mark_asked, mark_recovered
from streamproc.log.stream import Producer, open_log
from streamproc.operate import recover as job
from streamproc.operate import recover_bank
from streamproc.operate.disown import statement
from streamproc.operate.doctor_log import examine_log
from streamproc.operate.recover import look
from streamproc.run_file import LOCK_FILE
from tests.bank import Sandbox, running_sandbox
from tests.operate.recovering import archive, dump, recovered, settings_of
from tests.operate.twins import POLICIES, Twin, handled, twins
from tests.operate.words import NOBODY_THERE
from tests.words import ACCOUNT as TWINS_ACCOUNT
from tests.words import attributed, delivery, observed

ACCOUNT = "acc_Sandbox0000001"
OTHER_ACCOUNT = "acc_Another0000001"


@pytest.fixture
async def mine(redis_url: str) -> AsyncIterator[Twin]:
    async with twins(redis_url) as (mine, _):
        await mine.engine.apply(POLICIES)
        yield mine


@pytest.fixture
def environment(redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stores of this test are those of the commands."""
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", postgres)
    return monkeypatch


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(cli, list(arguments))


# ---- when it refuses ----


async def test_a_log_that_is_well_is_not_touched(redis_url: str, postgres: str, mine: Twin) -> None:
    await mine.pays("bot_0", 1_000, "bot")
    await archive(redis_url, postgres)
    with pytest.raises(JobFailed, match="nothing to recover: the log is well"):
        await look(settings_of(redis_url, postgres))


async def test_an_empty_archive_gives_nothing_back(redis_url: str, postgres: str) -> None:
    with pytest.raises(JobFailed, match="the archive is empty"):
        await look(settings_of(redis_url, postgres))
    await prepare(postgres)
    with pytest.raises(JobFailed, match="the archive is empty"):
        await look(settings_of(redis_url, postgres))


async def test_while_postgres_is_away_nothing_is_changed(redis_url: str) -> None:
    with pytest.raises(JobFailed, match=r"is away.*nothing was changed"):
        await look(settings_of(redis_url, NOBODY_THERE))


async def test_an_archive_that_our_user_may_not_see_is_not_taken_for_none(
    redis_url: str, postgres: str, mine: Twin
) -> None:
    """Else a role would begin a new log where an old one was lost."""
    await archive(redis_url, postgres)
    user = f"stranger_{os.getpid()}"
    async with connection(postgres, name="owner") as db:
        await db.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'pw'; REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        try:
            hidden = settings_of(redis_url, f"postgresql://{user}:pw@{postgres.rpartition('@')[2]}")
            with pytest.raises(JobFailed, match="may not use the schema of our tables"):
                await look(hidden)
        finally:
            await db.execute(f"DROP ROLE {user}")


async def test_a_lock_that_cannot_be_used_is_not_taken_for_a_running_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMPROC_DATA_DIR", str(tmp_path))
    (tmp_path / LOCK_FILE).mkdir()
    assert await run("recover", "--yes") == 2
    assert capsys.readouterr().err == (
        f"streamproc: STREAMPROC_DATA_DIR {tmp_path} cannot be used: {tmp_path / LOCK_FILE}: Is a directory\n"
    )


async def test_another_partition_count_than_the_log_was_made_with_is_refused(
    redis_url: str, postgres: str, mine: Twin
) -> None:
    await archive(redis_url, postgres)
    for flushed in (False, True):
        if flushed:
            await mine.engine.client.hset(META, "partitions", "2")
        with pytest.raises(JobFailed, match=r"STREAMPROC_PARTITIONS is \d, but this log was made with \d"):
            await look(settings_of(redis_url, postgres, partitions="1" if flushed else "3"))


@pytest.mark.parametrize("partitions", ["1", "3"])
async def test_another_partition_count_is_refused_when_redis_does_not_know_it_any_more(
    redis_url: str, postgres: str, mine: Twin, partitions: str
) -> None:
    """The archive knows: a projector opens every partition of its log, also those that nothing is in yet."""
    await archive(redis_url, postgres)
    async with connection(postgres, name="projector") as db:
        await open_head(db, 1)
    await mine.engine.stop()
    await mine.engine.client.flushdb()
    with pytest.raises(
        JobFailed, match=rf"STREAMPROC_PARTITIONS is {partitions}, but this log was made with 2"
    ):
        await look(settings_of(redis_url, postgres, partitions=partitions))
    assert await mine.engine.client.dbsize() == 0


async def test_it_waits_for_a_projector_that_is_at_work_and_then_refuses(
    redis_url: str, postgres: str, mine: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LOCK_WAIT_S", 0.1)
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await mine.engine.client.flushdb()
    async with connection(postgres, name="projector") as db:
        assert await take_lock(db, 0, asyncio.Event())
        with pytest.raises(JobFailed, match=r"projector.*partition 0; stop it first.*Nothing was changed"):
            await recovered(redis_url, postgres)
    assert await mine.engine.client.dbsize() == 0


async def test_a_person_at_a_terminal_is_asked_and_may_say_no(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
) -> None:
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await mine.engine.client.flushdb()
    environment.setattr(sys, "stdin", Terminal())
    environment.setattr(click, "confirm", _no)
    assert await run("recover") == 1
    assert await mine.engine.client.dbsize() == 0


async def test_a_script_is_not_asked_and_needs_no_flag(
    redis_url: str, postgres: str, mine: Twin, environment: pytest.MonkeyPatch
) -> None:
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await mine.engine.client.flushdb()
    environment.setattr(sys, "stdin", io.StringIO())
    assert await run("recover", "--without-bank") == 0
    assert await mine.engine.client.exists(Names(0).log)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _no(question: str, **_: object) -> None:
    assert "Are the workers stopped?" in question
    raise click.Abort


async def test_at_what_nobody_can_read_it_ends_until_somebody_states_that_none_of_us_wrote_it(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await mine.pays("bot_0", 1_000, "bot")
    strange = await mine.engine.client.xadd(mine.engine.names.log, {"e": "no events", "m": "no metadata"})
    await mine.pays("bot_1", 1_000, "bot")
    await archive(redis_url, postgres)
    entry = f"0:{strange.decode()}"
    by = ("--by", "asha", "--why", "a load test")
    assert await run("recover", "--yes", "--disown", entry, *by) == 1
    assert "nothing to recover" in capsys.readouterr().err

    await mine.engine.stop()
    await mine.engine.client.flushdb()
    assert await run("recover", "--yes") == 1
    said = capsys.readouterr().err
    assert f"entry {entry}: " in said
    assert "the log stays closed" in said
    assert await run("recover", "--yes", "--disown", entry) == 2
    assert await run("recover", "--yes", "--disown", f"5:{strange.decode()}", *by) == 2
    assert "partition 5 is not to be rebuilt" in capsys.readouterr().err
    assert await run("recover", "--yes", "--disown", "0:1-1", *by) == 1
    assert "there is no entry 0:1-1 in the archive" in capsys.readouterr().err

    assert await run("recover", "--yes", "--without-bank", "--json", "--disown", entry, *by) == 0
    [one] = json.loads(capsys.readouterr().out)["partitions"]
    assert one["payouts"] == 2
    assert await run("recover", "--yes", "--disown", entry, *by) == 1  # it is open: `log disown` is for that
    await mine.engine.client.flushdb()
    assert await run("recover", "--yes", "--without-bank") == 0  # stated once, it holds for every recovery


async def test_the_same_command_again_ends_what_was_killed_and_states_nothing_twice(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = await mine.engine.client.xadd(mine.engine.names.log, {"e": "no events", "m": "{}"})
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await mine.engine.client.flushdb()
    entry, settings = f"0:{strange.decode()}", settings_of(redis_url, postgres)
    command = (
        "recover",
        "--yes",
        "--without-bank",
        "--disown",
        entry,
        "--by",
        "asha",
        "--why",
        "a load test",
    )
    with environment.context() as patched:  # killed once it was stated, before anything was rebuilt
        patched.setattr(job, "_rebuild_all", no_more)
        assert await run(*command) == 1
    said = statement(entry, attributed("asha", "a load test", "cli:asha@laptop"))
    await job.rebuild(settings, await look(settings), disowned=[said])  # killed before the bank was asked
    assert await run(*command) == 0
    async with connection(postgres, name="test") as db:
        [row] = await db.fetch("SELECT e FROM events WHERE position('entry.disowned'::bytea IN e) > 0")
    [stated] = decode_events(row["e"])
    assert (stated.by, stated.channel) == ("asha", shell())


async def no_more(*_: object) -> None:
    raise JobFailed("killed")


# ---- what it does, and says ----


async def test_it_says_what_it_did_to_people_and_to_machines(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for n in range(3):
        await mine.pays(f"bot_{n}", 1_000, "bot")
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await mine.engine.client.flushdb()

    assert await run("recover", "--yes", "--without-bank", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    [one] = said["partitions"]
    assert (one["payouts"], one["budgets"] > 0, one["policies"] > 0) == (3, True, True)
    assert said["entries"] == one["archived"] > 0
    assert said["bank"] is None
    assert said["left"] == []

    await mine.engine.client.flushdb()
    assert await run("recover", "--yes") == 0
    heard = capsys.readouterr()
    assert "its stream is gone" in heard.err
    assert "the bank was not asked" in heard.err
    assert "workers may be started" in heard.out
    assert await run("recover", "--yes", "--without-bank") == 0
    assert await run("recover", "--yes") == 1
    assert "nothing to recover" in capsys.readouterr().err


async def test_doctor_says_what_is_lost_what_to_do_and_what_is_left(
    redis_url: str, postgres: str, mine: Twin
) -> None:
    await mine.pays("bot_0", 1_000, "bot")
    await archive(redis_url, postgres)
    settings = settings_of(redis_url, postgres)
    well = {check.name: check for check in await examine_log(settings)}
    assert {name: check.status for name, check in well.items()} == {"archive 0": "ok", "trimming 0": "ok"}
    await mine.engine.stop()

    await mine.engine.client.flushdb()
    [lost] = await examine_log(settings)
    assert (lost.status, "streamproc recover" in lost.todo) == ("bad", True)

    await recovered(redis_url, postgres)
    found = {check.name: check for check in await examine_log(settings)}
    assert found["archive 0"].status == "ok"
    assert (found["recovery"].status, "bank" in found["recovery"].detail) == ("note", True)

    await mine.engine.client.hset(META, "recovering", "1")
    found = {check.name: check for check in await examine_log(settings)}
    assert (found["recovery"].status, "again" in found["recovery"].todo) == ("bad", True)


async def test_a_lost_meta_alone_is_written_again(redis_url: str, postgres: str, mine: Twin) -> None:
    await archive(redis_url, postgres)
    before = await dump(mine.engine.client)
    await mine.engine.client.delete(META)
    done = await recovered(redis_url, postgres)
    assert done.partitions == []
    assert await dump(mine.engine.client) == before
    await open_log(mine.engine.client, partitions=1, groups=consumers.GROUPS)


# ---- the bank ----


def bank_settings(
    environment: pytest.MonkeyPatch, bank: Sandbox, url: str = "", *, account: str = ACCOUNT
) -> None:
    environment.setenv("STREAMPROC_RAZORPAY_KEY_ID", bank.config.key_id)
    environment.setenv("STREAMPROC_RAZORPAY_KEY_SECRET", bank.config.key_secret)
    environment.setenv("STREAMPROC_RAZORPAY_ACCOUNT_NUMBER", bank.config.account_number)
    environment.setenv("STREAMPROC_RAZORPAY_ACCOUNT_ID", account)
    environment.setenv("STREAMPROC_RAZORPAY_BASE_URL", url or bank.url)


async def lost_while_the_bank_went_on(mine: Twin, bank: Sandbox, redis_url: str, dsn: str) -> dict[str, str]:
    """Payouts that are open here; meanwhile the bank moves them, and others are made that nobody told us of."""
    mine.is_open = False
    made = {
        name: (await bank.pay(250_000, notes={"agent_id": agent}))["id"] for name, agent in AGENTS.items()
    }
    for name, agent in AGENTS.items():
        event = observed(made[name], 250_000, agent=agent, at=mine.engine.producer.now_us(), account=ACCOUNT)
        await mine.engine.producer.append(delivery(event))
    await mine.engine.settled()
    await mine.engine.stop()
    await archive(redis_url, dsn)
    await bank.advance(made["approved"], "processing")
    await bank.advance(made["approved"], "processed")
    await bank.advance(made["held"], "rejected")
    made["bypass"] = (await bank.pay(1_000, status="processing", notes={"agent_id": "bot"}))["id"]
    made["new"] = (await bank.pay(1_000, notes={"agent_id": "bot"}))["id"]
    await mine.engine.client.flushdb()
    return made


AGENTS = {"approved": "bot", "held": "careful", "waiting": "careful"}


async def test_the_bank_is_asked_what_happened_meanwhile_and_governance_settles_it(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_sandbox(processing_s=60.0) as bank:
        bank_settings(environment, bank)
        made = await lost_while_the_bank_went_on(mine, bank, redis_url, postgres)

        assert await run("recover", "--yes", "--json") == 0

        said = json.loads(capsys.readouterr().out)["bank"]
        assert (said["asked"], said["new"], said["left"]) == (3, 4, [])
        mine.bank.statuses |= {made["approved"]: "processed", made["held"]: "rejected"}
        await handled(mine)
        told = (await mine.outcome())["payouts"]
        assert told[made["approved"]][0] == "processed"
        assert told[made["approved"]][5][0] == "committed"
        assert told[made["held"]][0] == "declined"
        assert told[made["held"]][5][0] == "released"
        assert told[made["waiting"]][0] == "held"
        assert told[made["bypass"]][0] == "bypassed"
        assert told[made["new"]][2] == "APPROVED"
        assert await mine.engine.client.hget(META, "unreconciled") is None


async def test_while_the_bank_is_away_the_recovery_stands_and_the_rest_is_done_later(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_sandbox(processing_s=60.0) as bank:
        bank_settings(environment, bank, "http://127.0.0.1:1")
        environment.setattr(recover_bank, "WAIT_S_MAX", 0.0)
        await lost_while_the_bank_went_on(mine, bank, redis_url, postgres)

        assert await run("recover", "--yes") == 1

        assert "3 open payouts could not be looked up" in capsys.readouterr().err
        async with connected(redis_url) as client:
            await open_log(client, partitions=1, groups=consumers.GROUPS)  # roles may start

        bank_settings(environment, bank)
        assert await run("recover", "--json") == 0  # nothing is rebuilt, so nobody has to be asked
        said = json.loads(capsys.readouterr().out)
        assert (said["partitions"], said["bank"]["asked"], said["bank"]["new"]) == ([], 3, 4)


async def test_each_account_is_asked_about_with_its_own_key_and_those_that_are_left_are_named(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the key of another account a payout is unknown to the bank, or refused: that held up all the others."""
    async with running_sandbox() as bank, running_sandbox(key_id="rzp_test_other") as elsewhere:
        made = (await elsewhere.pay(250_000, notes={"agent_id": "careful"}))["id"]
        event = observed(
            made, 250_000, agent="careful", at=mine.engine.producer.now_us(), account=OTHER_ACCOUNT
        )
        await mine.engine.producer.append(delivery(event))
        await lost_while_the_bank_went_on(mine, bank, redis_url, postgres)
        await elsewhere.advance(made, "rejected")
        theirs = f"account {OTHER_ACCOUNT}: 1 open payouts were not looked up"

        bank_settings(environment, bank)
        assert await run("recover", "--yes", "--json") == 1
        heard = capsys.readouterr()
        said = json.loads(heard.out)["bank"]
        assert (said["asked"], said["new"]) == (3, 4)
        assert [text.startswith(theirs) for text in said["left"]] == [True]
        assert theirs in heard.err

        bank_settings(environment, elsewhere, account=OTHER_ACCOUNT)
        environment.setenv("STREAMPROC_RAZORPAY_KEY_SECRET", "an old one")
        assert await run("recover") == 1
        refused = f"account {OTHER_ACCOUNT}: 1 open payouts could not be looked up at the bank (payout {made}"
        told = capsys.readouterr().err
        assert refused in told
        assert "the bank refuses our keys with 401" in told
        assert f"account {ACCOUNT}:" not in told, "it was asked about already"

        bank_settings(environment, elsewhere, account=OTHER_ACCOUNT)
        assert await run("recover", "--json") == 0
        said = json.loads(capsys.readouterr().out)["bank"]
        assert (said["asked"], said["new"], said["left"]) == (1, 1, [])
        assert [mark for mark in await mine.engine.client.hkeys(META) if b"asked" in mark] == []
        assert await mine.engine.client.hget(META, "unreconciled") is None


async def test_what_an_earlier_recovery_asked_the_bank_is_asked_again_after_the_next(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await mark_recovered(client, [0], run=1)
        await mark_asked(client, ACCOUNT, run=1)
        assert await accounts_asked(client, run=1) == [ACCOUNT]
        await mark_recovered(client, [0], run=2)
        assert await accounts_asked(client, run=2) == []


async def test_a_run_that_was_still_asking_the_bank_does_not_count_for_a_recovery_that_began_meanwhile(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It looked at the payouts of a log that was lost since: the next run took the bank for asked, and had nothing
    to do."""
    async with running_sandbox(processing_s=60.0) as bank:
        bank_settings(environment, bank)
        await lost_while_the_bank_went_on(mine, bank, redis_url, postgres)
        list_made = recover_bank._list

        async def list_while_redis_is_lost_again(*arguments: Any) -> None:
            await list_made(*arguments)
            async with connected(redis_url) as client:
                await client.flushdb()
            await recovered(redis_url, postgres)  # of another person, killed before it asked

        environment.setattr(recover_bank, "_list", list_while_redis_is_lost_again)
        assert await run("recover", "--yes") == 1
        assert (
            "Redis was lost, or recovered by somebody else, while the bank was asked"
            in capsys.readouterr().err
        )

        environment.setattr(recover_bank, "_list", list_made)
        assert await run("recover", "--json") == 0
        said = json.loads(capsys.readouterr().out)["bank"]
        assert (said["asked"], said["new"]) == (3, 4)


async def test_without_an_account_it_is_not_known_whose_payouts_the_key_may_see(
    redis_url: str,
    postgres: str,
    mine: Twin,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_sandbox() as bank:
        bank_settings(environment, bank, account="")
        await lost_while_the_bank_went_on(mine, bank, redis_url, postgres)
        assert await run("recover", "--yes") == 1
        assert "the bank was not asked: STREAMPROC_RAZORPAY_ACCOUNT_ID and" in capsys.readouterr().err
        bank_settings(environment, bank)
        assert await run("recover", "--yes") == 0


async def test_the_list_is_read_from_the_archives_end_on(redis_url: str, postgres: str, mine: Twin) -> None:
    """That of every account that the archive knows, whichever one is set where this runs: each has its poller."""
    await mine.pays("bot_0", 1_000, "bot")
    await archive(redis_url, postgres)
    await mine.engine.stop()
    before: Redis = mine.engine.client
    for account in (ACCOUNT, TWINS_ACCOUNT):
        await before.set("sp:{0}:cursor:poll:" + account, 4_000_000_000)
    await before.delete(mine.engine.names.log)
    await recovered(redis_url, postgres, razorpay_account_id=ACCOUNT)
    for account in (ACCOUNT, TWINS_ACCOUNT):
        at = int(await before.get("sp:{0}:cursor:poll:" + account) or 0)
        assert abs(at - mine.base_us // 1_000_000) < 60


async def test_the_list_is_read_from_when_the_archives_end_was_archived_if_its_id_is_of_a_clock_that_was_ahead(
    redis_url: str, postgres: str, mine: Twin
) -> None:
    """A cursor that is still to come counts as now, so what was lost and is older than the overlap was not listed."""
    await mine.pays("bot_0", 1_000, "bot")
    client: Redis = mine.engine.client
    now_s, _ = await client.time()
    await client.xadd(mine.engine.names.log, {"e": "[]", "m": "{}"}, id=f"{(now_s + 7_200) * 1_000}-0")
    await archive(redis_url, postgres)
    await mine.engine.stop()
    await client.delete(mine.engine.names.log)
    await recovered(redis_url, postgres, razorpay_account_id=ACCOUNT)
    at = int(await client.get("sp:{0}:cursor:poll:" + ACCOUNT) or 0)
    assert now_s <= at <= (await client.time())[0]


class Bank:
    """Its list is empty; while it is asked for, something happens."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._meanwhile = meanwhile

    async def list_page(self, _account_number: str, *, from_s: int, to_s: int, skip: int) -> Page:
        await self._meanwhile()
        return Page(items=[], raw_count=0, at_s=to_s)


@pytest.mark.parametrize("has_polled", [True, False], ids=["by one that polled before", "by a first one"])
async def test_a_poller_whose_pass_outlasts_it_does_not_move_the_list_past_the_archives_end(
    redis_url: str, postgres: str, mine: Twin, has_polled: bool
) -> None:
    """What the bank made in between would be known to nobody, and be paid again when it is asked for again."""
    await mine.pays("bot_0", 1_000, "bot")
    await archive(redis_url, postgres)
    await mine.engine.stop()
    cursor = PollCursor(redis_url, account=ACCOUNT, partitions=1)
    key, ended_s = "sp:{0}:cursor:poll:" + ACCOUNT, mine.base_us // 1_000_000 - 7_200
    if has_polled:
        await mine.engine.client.set(key, ended_s + 3_600)

    async def is_recovered() -> None:
        await mine.engine.client.flushdb()
        await recovered(redis_url, postgres, razorpay_account_id=ACCOUNT)
        await mine.engine.client.set(key, ended_s)  # as of an archive that ends there

    async with Producer(redis_url, partitions=1, name="poll") as producer:
        listing = Listing(Bank(is_recovered), producer, cursor, account=ACCOUNT, account_number="1")
        done = await listing.read()
    assert await cursor.load() == ended_s
    assert "was set back meanwhile" in done.problem
