"""A failover lost the log's newest entries, and it grew on: what came from outside is kept, what was decided is not."""

from typing import Any

import pytest
from redis.asyncio import Redis

import consumers
from streamproc.domain import events as e
from streamproc.domain.wire import NEWEST, decode_events, encode_events, read_entry
from streamproc.errors import JobFailed, LogBroken
from streamproc.log.names import Names
from streamproc.log.stream import Append, LogView, open_log
from streamproc.operate import recover_fork
from streamproc.operate.disown import statement
from streamproc.operate.recover import look, rebuild
from tests.operate.recovering import archive, dump, recovered, settings_of
from tests.operate.twins import Twin, handled, twins
from tests.operate.words import archive as projected
from tests.words import ACCOUNT, attributed, delivery, observed

NAMES = Names(0)
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 1_000_000}
  careful: {daily_limit: 10_000_000, require_approval_above: 100_000}
  rogue: {daily_limit: 10_000_000, per_txn_limit: 900_000}
reviewers: [asha]
"""
LOWERED = POLICIES.replace("per_txn_limit: 900_000", "per_txn_limit: 500_000")
FROZEN = POLICIES.replace("per_txn_limit: 900_000", "per_txn_limit: 900_000, frozen: true")


async def snapshot(client: Redis) -> dict[bytes, bytes]:
    """All that a replica has at this moment."""
    return {key: await client.dump(key) async for key in client.scan_iter(count=1000)}


async def failed_over(client: Redis, replica: dict[bytes, bytes]) -> None:
    """The replica is the server now."""
    await client.flushdb()
    for key, value in replica.items():
        await client.restore(key, 0, value)


async def lost_its_tail(twin: Twin, redis_url: str, dsn: str) -> None:
    """The archive has more than the log."""
    await twin.engine.apply(POLICIES)
    await twin.pays("bot_0", 300_000, "bot")
    await twin.pays("careful_0", 200_000, "careful")
    await twin.engine.stop()
    replica = await snapshot(twin.engine.client)
    twin.engine.start()
    await twin.pays("bot_1", 600_000, "bot")
    await twin.engine.apply(LOWERED)
    await twin.engine.stop()
    await archive(redis_url, dsn)
    await failed_over(twin.engine.client, replica)


async def grew_on(twin: Twin) -> None:
    """What happened on the new server before anybody noticed."""
    twin.is_open = False  # no approval passes: the archive does not have its decision
    twin.engine.start()
    await twin.pays("bot_2", 500_000, "bot")  # there is room, since bot_1 is forgotten
    await twin.review("careful_0", "asha", "approve")
    await twin.engine.apply(FROZEN)
    await twin.pays("rogue_0", 1_000, "rogue")
    await twin.pays("unlisted_0", 1_000, "nobody")
    malformed = e.PayoutMalformed(
        at=twin.base_us, payout="bad_0", account=ACCOUNT, source="webhook", problem="its amount is 7"
    )
    ignored = e.BankEventIgnored(at=twin.base_us, account=ACCOUNT, bank_event="account.low_balance")
    await twin.engine.producer.append(Append(ACCOUNT, ("bad:bad_0:1",), (malformed,)))
    await twin.engine.producer.append(Append(ACCOUNT, ("body:1",), (ignored,)))
    # bot_1 is delivered again: it is not known here.
    await twin.engine.producer.append(delivery(twin.delivered[2]))
    await twin.shows("bot_0", "processed")
    await twin.engine.settled()
    await twin.engine.stop()


async def new_entries(redis_url: str, after: str) -> list[tuple[str, list[Any]]]:
    async with LogView(redis_url, 0) as view:
        return [(entry.m.decode(), decode_events(entry.e)) for entry in await view.read(after, 1000, 0)]


async def test_what_came_from_outside_is_kept_and_decided_on_what_the_archive_knows(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        fork = await dump(mine.engine.client)
        assert fork["payouts"]["bot_2"]["record"].decision == "APPROVED"

        done = await recovered(redis_url, postgres)

        assert done.partitions[0].rescued > 0
        assert done.left == []
        await handled(mine)
        outcome = await mine.outcome()
        decided = {payout: (told[0], told[2], told[3]) for payout, told in outcome["payouts"].items()}
        assert decided["bot_0"] == ("processed", "APPROVED", "POLICY_OK")
        assert decided["bot_1"] == ("confirmed", "APPROVED", "POLICY_OK")
        assert decided["bot_2"] == ("rejected", "REJECTED", "LIMIT_EXCEEDED")
        assert decided["careful_0"] == ("confirmed", "APPROVED", "REVIEW_APPROVED")
        # What the fork rejected it has told the bank: rejecting waits for no archive. Told again, the bank says so.
        assert decided["rogue_0"] == ("rejected", "REJECTED", "FROZEN")
        assert decided["unlisted_0"] == ("rejected", "REJECTED", "NO_POLICY")
        assert [problem for _, problem in outcome["dead"]] == [b"rule 1: its amount is 7"]
        assert ("bot_2", "approve") not in mine.bank.told
        assert not (await mine.again(mine.delivered[3])).new


async def test_a_freeze_on_the_fork_stays_in_force_beside_the_change_that_the_fork_had_lost(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)

        await recovered(redis_url, postgres)

        version, own = (await mine.outcome())["policies"]["agent:rogue"]
        assert (own["frozen"], own["per_txn_limit"]) == (True, 500_000)
        assert version == 3, "the archive has version 2; the fork's own version 2 is not told again"
        await handled(mine)
        await projected(redis_url, postgres)  # a version told twice would stop the view
        await mine.pays("rogue_1", 1_000, "rogue")
        assert (await mine.record("rogue_1")).reason == "FROZEN"


async def test_what_only_a_later_version_can_read_is_not_dropped_that_version_is_to_recover(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        newest = NEWEST["payout.observed"]
        now, then = b'"v":%d' % newest, b'"v":%d' % (newest + 1)
        later = encode_events([observed("later_0", 500, agent="bot")]).replace(now, then)
        client = mine.engine.client
        await client.xadd(NAMES.log, {"e": later, "m": b'{"by":"webhook"}'})
        with pytest.raises(JobFailed, match=r"has version \d+; .* recover with that version"):
            await recovered(redis_url, postgres)
        assert not await client.exists(NAMES.log)  # nobody goes on with half of it
        monkeypatch.setattr(recover_fork, "read_entry", lambda e, m: read_entry(e.replace(then, now), m))
        await recovered(redis_url, postgres)
        assert later in [fields[1] for _, fields in await client.xrange(NAMES.log)]


async def test_what_looks_like_a_later_versions_is_dropped_where_a_person_disowned_it(
    redis_url: str, postgres: str
) -> None:
    """No archive has it, and no version will ever recover with it: there was no way out."""
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        client, settings = mine.engine.client, settings_of(redis_url, postgres)
        strange = await client.xadd(NAMES.log, {"e": '[{"type":"load.test"}]', "m": "{}"})
        entry = f"0:{strange.decode()}"
        with pytest.raises(JobFailed, match=f"entry {entry} of the old log: .*--disown.*--no-later-version"):
            await recovered(redis_url, postgres)
        said = statement(entry, attributed("asha", "a load test", "cli:asha@laptop"), no_later_version=True)
        done = await rebuild(settings, await look(settings), disowned=[said])
        assert f"partition 0: entry {entry[2:]} of the old log was disowned and is not kept" in done.left
        assert strange not in [found for found, _ in await client.xrange(NAMES.log)]


async def test_what_is_kept_says_where_it_was_and_is_appended_once_however_often_it_was_there(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        old = {entry.id: entry async for entry in _all(redis_url)}

        await recovered(redis_url, postgres)

        [anchor] = [
            row[0].decode()
            for row in await mine.engine.client.execute_command("XRANGE", NAMES.log, "-", "+")
            if row[1][3].find(b"rescued") < 0
        ][-1:]
        kept = await new_entries(redis_url, anchor)
        assert all('"rescued":"' in m for m, _ in kept)
        rescued = [m.partition('"rescued":"')[2].partition('"')[0] for m, _ in kept]
        assert len(set(rescued)) == len(rescued)
        assert set(rescued) <= old.keys()
        facts = [event for _, events in kept for event in events if type(event) is e.PayoutObserved]
        delivered = [event.payout for event in facts if event.source == "webhook"]
        assert "bot_1" not in delivered, "the archive has that delivery"
        assert delivered.count("bot_2") == 1
        assert "bot_1" in {event.payout for event in facts if event.source == "fetch"}
        kinds = {type(event) for _, events in kept for event in events}
        assert kinds == {
            *(e.PayoutObserved, e.ReviewSubmitted, e.PolicyChanged, e.PayoutMalformed, e.BankEventIgnored),
            e.BankCommandAnswered,
        }
        assert await mine.engine.client.ttl(NAMES.rescued) > 0


async def _all(redis_url: str) -> Any:
    async with LogView(redis_url, 0) as view:
        for entry in await view.read("0-0", 10_000, 0):
            yield entry


async def test_a_projector_on_such_a_log_stops_and_names_recover_and_goes_on_after_it(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        with pytest.raises(LogBroken, match="streamproc recover"):
            await projected(redis_url, postgres)
        await recovered(redis_url, postgres)
        await handled(mine)
        await projected(redis_url, postgres)


async def test_a_log_that_a_role_without_an_archive_began_anew_is_a_fork_from_its_first_entry(
    redis_url: str, postgres: str
) -> None:
    async with twins(redis_url) as (mine, _):
        await mine.engine.apply(POLICIES)
        await mine.pays("bot_0", 300_000, "bot")
        await mine.engine.stop()
        await archive(redis_url, postgres)
        await mine.engine.client.flushdb()
        await open_log(mine.engine.client, partitions=1, groups=consumers.GROUPS)
        mine.engine.start()
        await mine.pays("bot_1", 300_000, "bot")  # rejected: there is no policy here
        await mine.engine.apply(POLICIES.replace("1_000_000", "500_000"))
        await mine.engine.stop()

        done = await recovered(redis_url, postgres)

        assert done.left == []
        await handled(mine)
        outcome = await mine.outcome()
        version, own = outcome["policies"]["agent:bot"]
        assert (version, own["daily_limit"]) == (2, 500_000)
        assert outcome["payouts"]["bot_0"][2] == "APPROVED"
        assert outcome["payouts"]["bot_1"][3] == "LIMIT_EXCEEDED"


async def test_a_regressed_log_that_did_not_grow_is_recovered_too(redis_url: str, postgres: str) -> None:
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        done = await recovered(redis_url, postgres)
        assert (done.partitions[0].rescued, done.partitions[0].dropped) == (0, 0)
        await handled(mine)
        assert (await mine.record("bot_1")).decision == "APPROVED"


async def test_a_second_loss_after_a_recovery_is_recovered_as_well(redis_url: str, postgres: str) -> None:
    """The log has gaps below the first recovery's anchor then."""
    async with twins(redis_url) as (mine, _):
        await lost_its_tail(mine, redis_url, postgres)
        await grew_on(mine)
        await recovered(redis_url, postgres)
        await handled(mine)
        await mine.engine.stop()
        replica = await snapshot(mine.engine.client)
        mine.engine.start()
        await mine.pays("later_0", 10_000, "bot")
        await mine.engine.stop()
        await archive(redis_url, postgres)
        await failed_over(mine.engine.client, replica)
        mine.engine.start()
        await mine.pays("later_1", 10_000, "bot")
        await mine.engine.stop()

        done = await recovered(redis_url, postgres)

        await handled(mine)
        told = (await mine.outcome())["payouts"]
        assert {told["later_0"][2], told["later_1"][2]} == {"APPROVED"}
        assert done.partitions[0].rescued <= 3, "of the log before the loss nothing is told twice"
