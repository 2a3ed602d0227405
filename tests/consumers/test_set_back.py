"""Both stores are set back together, to an older moment at which log and archive agree. Nothing here knows that, so an
intent that was paid since then, and is asked for again, is looked for at the bank until the bank's list was read."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

import consumers
from consumers.create import Debit
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.archive.barrier import ArchiveBarrier
from streamproc.clients.razorpay import Found, Razorpay, open_razorpay
from streamproc.domain.events import BankCommandAnswered, EntrySetAside, PayoutRequested
from streamproc.domain.intent import Beneficiary
from streamproc.errors import JobFailed
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.inspect import logged_entry
from streamproc.log.lease import Lease
from streamproc.log.names import Names
from streamproc.log.stream import Producer
from streamproc.operate.bank import bank_unasked, handled_s
from streamproc.operate.poller_role import listing_of, teller
from streamproc.operate.recover import look
from tests import servers
from tests.bank import Sandbox, running_sandbox, until
from tests.consumers.test_create import PAYEE, POLICIES, fund_account
from tests.databases import copy_of
from tests.engine import ZONE, Engine
from tests.operate.recovering import archive, settings_of
from tests.restartable import Restartable, restartable
from tests.words import ACCOUNT, Vendors, request, requested


@dataclass
class Site:
    """Redis with a backup of its files, Postgres with a copy of its database, the bank, and our client of it."""

    redis: Restartable
    files: Path
    dsn: str
    server: str
    bank: Sandbox
    client: Razorpay
    looked_for: list[str] = field(default_factory=list)
    """Intents that were looked for at the bank."""

    @asynccontextmanager
    async def at_work(self, url: str) -> AsyncIterator[Engine]:
        """Workers of both groups, behind the barrier, and an archive that follows."""

        async def keep_archiving() -> None:
            while True:
                await archive(url, self.dsn)
                await asyncio.sleep(0.02)

        archiving = asyncio.create_task(keep_archiving())
        try:
            async with asyncpg.create_pool(self.dsn, min_size=0, max_size=2) as pool:
                barrier = ArchiveBarrier(pool, partial(logged_entry, url))
                debit = Debit(self.bank.config.account_number, ACCOUNT)
                unasked = partial(bank_unasked, settings_of(url, self.dsn))
                groups = [
                    consumers.governance(Reputations(Vendors()), zone=ZONE),
                    execution(self.client, barrier, debit, unasked=unasked),
                ]
                async with Engine(url, groups=groups) as engine:
                    yield engine
        finally:
            archiving.cancel()
            with suppress(asyncio.CancelledError):
                await archiving

    async def pays(self, engine: Engine, asked: PayoutRequested) -> None:
        """An agent asks, now; wait until the bank has answered, or it waits for a person."""
        await engine.producer.append(request(replace(asked, at=engine.producer.now_us())))

        async def is_over() -> bool:
            story = await engine.story(asked.payout)
            return any(isinstance(event, BankCommandAnswered | EntrySetAside) for event in story)

        await until(is_over, what=f"{asked.payout} is over")

    async def at_bank(self, asked: PayoutRequested) -> list[str]:
        """What the bank has under its reference."""
        return [
            shown["id"] for shown in await self.bank.show("payouts") if shown["reference_id"] == asked.payout
        ]

    async def lists(self, url: str, ago_s: float | None = None) -> None:
        """The first good pass of the poller, so long ago; None: what it found is handled since."""
        settings = settings_of(
            url,
            self.dsn,
            razorpay_account_id=ACCOUNT,
            razorpay_account_number=self.bank.config.account_number,
        )
        cursor = PollCursor(url, account=ACCOUNT, partitions=1)
        async with Producer(url, partitions=1, name="poll") as producer:
            done = await listing_of(settings, self.client, producer, cursor).read()
            assert done.problem == ""
            lease = Lease(url, Names(0), "poll", "host-1")
            await teller(cursor, lease, producer.now_us)(done, 0, 10.0)
        state = await cursor.state()
        assert state is not None
        since = state.pass_at - int(handled_s(settings) + 60 if ago_s is None else ago_s)
        await cursor.save_state(replace(state, covered=replace(state.covered, since=since)))

    @asynccontextmanager
    async def set_back_after(self, asked: PayoutRequested) -> AsyncIterator[str]:
        """Pay, and set both stores back to before that; Redis's URL."""
        url = await self.redis.up()
        async with self.at_work(url) as engine:
            await engine.apply(POLICIES)
            await self.lists(url)
        await archive(url, self.dsn)
        await self.redis.down()
        backup = self.files.with_name("backup")
        shutil.copytree(self.files, backup)
        async with copy_of(self.server, self.dsn.rpartition("/")[2]) as older:
            async with self.at_work(await self.redis.up()) as engine:
                await self.pays(engine, asked)
            await self.redis.down()
            shutil.rmtree(self.files)
            shutil.copytree(backup, self.files)
            self.dsn, url = older, await self.redis.up()
            with pytest.raises(JobFailed, match="there is nothing to recover"):
                await look(settings_of(url, older))
            self.looked_for.clear()
            yield url


@pytest.fixture
async def site(public_dir: Path, tmp_path: Path, postgres_server: str, postgres: str) -> AsyncIterator[Site]:
    files = tmp_path / "redis"
    files.mkdir()
    async with running_sandbox(workflow="off") as bank, restartable(lambda: servers.redis(files)) as redis:
        client = open_razorpay(
            bank.url,
            key_id=bank.config.key_id,
            key_secret=bank.config.key_secret,
            oauth_token=bank.config.oauth_token,
        )
        one = Site(redis, files, postgres, postgres_server, bank, client)
        find = client.find

        async def noted(account_number: str, reference: str) -> Found:
            one.looked_for.append(reference)
            return await find(account_number, reference)

        client.find = noted  # type: ignore[method-assign]
        yield one
        await client.aclose()


@pytest.mark.parametrize("payee", [None, PAYEE], ids=["to a fund account", "to an inline beneficiary"])
async def test_what_was_paid_since_and_is_asked_for_again_is_not_paid_again(
    site: Site, payee: Beneficiary | None
) -> None:
    asked = requested(payee=payee, fund_account=await fund_account(site.bank))
    async with site.set_back_after(asked) as url, site.at_work(url) as engine:
        [paid] = await site.at_bank(asked)
        await site.pays(engine, asked)
        assert await site.at_bank(asked) == [paid]
        assert site.looked_for == [asked.payout]


async def test_what_a_worker_that_stands_still_has_in_hand_of_the_list_is_not_paid_again(site: Site) -> None:
    """For longer than CLAIM_IDLE, 60 s here as by default, before another one took it over: it was paid again."""
    asked = requested(payee=PAYEE)
    async with site.set_back_after(asked) as url, connected(url, name="still") as still:
        [paid] = await site.at_bank(asked)
        await site.lists(url, ago_s=75)
        held = await still.xreadgroup("governance", "still", {Names(0).log: ">"})
        assert len(held) == 1
        async with site.at_work(url) as engine:
            await site.pays(engine, asked)
            assert await site.at_bank(asked) == [paid]


async def test_once_the_list_was_read_nothing_is_paid_again_and_nothing_else_is_looked_for(
    site: Site,
) -> None:
    asked, other = (requested(payee=PAYEE, key=key) for key in ("paid", "new"))
    async with site.set_back_after(asked) as url, site.at_work(url) as engine:
        [paid] = await site.at_bank(asked)
        await site.lists(url)
        await engine.settled()
        await site.pays(engine, other)
        assert len(await site.at_bank(other)) == 1
        assert site.looked_for == []
        await site.pays(engine, asked)
        assert await site.at_bank(asked) == [paid]
