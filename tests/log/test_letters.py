"""`close_letter.lua`: an entry goes back to its group once, and money is given back only where nothing became of it."""

import pytest
from redis.asyncio import Redis

from streamproc.domain.budget import Ask, RateAsk, Window
from streamproc.domain.events import DeadLetterClosed
from streamproc.domain.wire import encode_events
from streamproc.errors import LogBroken, Unprocessable
from streamproc.log import scripts
from streamproc.log.letters import Closed, GivenUp, close_letter, reserved_for
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Committed, Deferral, Handover
from tests.log.test_grant import everything, pending

NAMES = Names(0)
WINDOWS = tuple(Window("agent:a", name, 500, 4_000_000_000) for name in ("d1", "w1"))
BUDGETS = [NAMES.budget(w.scope, w.window) for w in WINDOWS]


async def reserve(client: Redis, payout: str, amount: int = 100, rate: RateAsk | None = None) -> None:
    await scripts.admit(client, NAMES, [Ask(payout, amount, 1, rate, WINDOWS)], keep_budgets_s=60)


async def reserved(client: Redis) -> list[int]:
    return [int(await client.hget(key, "r") or 0) for key in BUDGETS]


async def letter_of(client: Redis) -> tuple[str, str]:
    """A dead letter, and its entry."""
    entry = await pending(client)
    one = Handover(entry=entry, e=b"[9]", m=b'{"by":"g"', problem="because")
    assert await scripts.commit(client, NAMES, "g", [one]) == [Committed.DONE]
    ((letter, _),) = await client.xrange(NAMES.dead)
    return letter.decode(), entry.decode()


def closing(letter: str, entry: str, action: str = "discard", group: str = "g") -> DeadLetterClosed:
    """That asha closed a letter of partition 0."""
    return DeadLetterClosed(
        at=7, payout="", group=group, entry=entry, letter=f"0:{letter}", action=action, by="asha"
    )


async def close(
    client: Redis, letter: str, entry: str, action: str = "discard", given_up: GivenUp | None = None
) -> Closed | None:
    return await close_letter(client, NAMES, closing(letter, entry, action), given_up=given_up)


async def test_given_up_is_what_was_reserved_for_a_payout_of_which_the_log_says_nothing(
    client: Redis,
) -> None:
    await reserve(client, "p")
    found = await reserved_for(client, NAMES, "p")
    assert found is not None
    assert (found.version, found.keys) == (b"0", [NAMES.payout("p"), *BUDGETS])


async def test_nothing_is_given_up_of_what_the_log_knows_or_for_which_nothing_is_reserved(
    client: Redis,
) -> None:
    await reserve(client, "known")
    known = Handover(await pending(client), payout="known", record=b'{"payout":"known","account":"acc"}')
    assert await scripts.commit(client, NAMES, "g", [known]) == [Committed.DONE]
    await reserve(client, "no_room", 401)
    slot = RateAsk("a", 0, 60_000_000, False)
    await reserve(client, "no_slot", 1, slot)
    for payout in ("known", "no_room", "no_slot", "never_asked"):
        assert await reserved_for(client, NAMES, payout) is None, payout


async def test_what_is_discarded_gives_back_what_was_reserved_once(client: Redis) -> None:
    await reserve(client, "p")
    await reserve(client, "other", 30)
    letter, entry = await letter_of(client)
    given_up = await reserved_for(client, NAMES, "p")
    closed = await close(client, letter, entry, given_up=given_up)
    assert await reserved(client) == [30, 30]
    assert not await client.exists(NAMES.payout("p")), "who asks again is admitted anew"
    assert await client.xlen(NAMES.dead) == 0
    (record, fields), *_ = await client.xrevrange(NAMES.log, count=1)
    assert closed == Closed(record.decode(), 100)
    assert fields == [
        b"e",
        encode_events([closing(letter, entry)]),
        b"m",
        b'{"by":"operator","actor":"asha"}',
    ]
    before = await everything(client)
    assert await close(client, letter, entry, given_up=given_up) is None
    assert await everything(client) == before


@pytest.mark.parametrize("since", ["a pass", "another admission", "settled", "the budget is gone", "redrive"])
async def test_what_has_changed_since_it_was_looked_at_is_left_alone(client: Redis, since: str) -> None:
    await reserve(client, "p")
    letter, entry = await letter_of(client)
    given_up = await reserved_for(client, NAMES, "p")
    key, left, action = NAMES.payout("p"), [100, 100], "discard"
    match since:
        case "a pass":
            await client.hset(key, "v", "1")
        case "another admission":
            await client.hset(key, "a", "|9 100 -1 0 0 0 0|[]")
        case "settled":
            await client.hset(key, "q", "committed")
        case "the budget is gone":
            await client.delete(BUDGETS[0])
            left = [0, 0]
        case _:
            action = "redrive"
    closed = await close(client, letter, entry, action, given_up)
    assert closed is not None
    assert closed.freed == (100 if since == "the budget is gone" else 0), (
        "what was not given back is not told of"
    )
    assert await reserved(client) == left
    assert await client.exists(BUDGETS[0]) == (since != "the budget is gone")
    assert await client.hexists(key, "a") == (since != "the budget is gone")
    assert await client.xlen(NAMES.dead) == 0


async def test_a_letter_that_is_given_back_is_due_at_once_and_in_nobodys_hands_twice(client: Redis) -> None:
    letter, entry = await letter_of(client)
    assert await close(client, letter, entry, "redrive")
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 1
    (found,) = (await scripts.due_retries(client, NAMES, "g", "d", limit=9)).entries
    assert found[0].decode() == entry
    assert await scripts.defer(client, NAMES, "g", [Deferral(found[0], 0, True)], Backoff(0, 0, 0)) == [1]
    assert await close(client, letter, entry, "redrive") is None


async def test_a_letter_whose_entry_or_log_is_gone_stays(client: Redis) -> None:
    letter, entry = await letter_of(client)
    await client.xdel(NAMES.log, entry)
    before = await everything(client)
    with pytest.raises(Unprocessable, match="has left Redis"):
        await close(client, letter, entry, "redrive")
    assert await everything(client) == before
    await client.delete(NAMES.log)
    with pytest.raises(LogBroken, match="is gone"):
        await close(client, letter, entry)
    assert await client.xlen(NAMES.dead) == 1
