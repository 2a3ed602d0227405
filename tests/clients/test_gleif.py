"""GLEIF is asked for each entity, within its limits, and whatever goes wrong says nothing against an entity."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.json import encode

from streamproc.clients.breaker import FAILURES_MAX, Breaker
from streamproc.clients.gleif import (
    AT_ONCE_MAX,
    CALLS_BURST,
    CALLS_PER_S,
    FRESH_S,
    MEDIA_TYPE,
    NO_TURN,
    PAGE_SIZE,
    PAUSE_S,
    TURNS_KEPT,
    UNREQUIRED_S,
    Gleif,
    open_gleif,
)
from streamproc.clients.http import OutboundClient
from streamproc.clients.ration import Take, Unlimited
from streamproc.domain.events import EntitySeen
from streamproc.domain.legal_entities import Question
from streamproc.errors import LogBroken, LogUnavailable
from tests.bank import running_sandbox
from tests.clients.loopback import (
    NO_ANSWERS,
    Asked,
    Loopback,
    Script,
    always,
    in_turn,
    loopback,
    response,
    silent_for,
)
from tests.clients.turns import OwnTurns
from tests.hurry import pass_at_once

NOW_US = 1_760_000_000_000_000
LEI, LAPSED_LEI = "984500SANDBOX0000190", "984500SANDBOX0000287"
NAME = "Asha Paper Works Private Limited"
ASHA = Question("Asha Paper Works Pvt Ltd")
ASHA_BY_LEI = Question("Asha Paper Works Pvt Ltd", LEI)
VERIFIED = EntitySeen(
    verdict="verified",
    lei=LEI,
    name=NAME,
    status="ACTIVE",
    registration="ISSUED",
    checked_at=NOW_US,
    fresh_until=NOW_US + FRESH_S * 1_000_000,
)


def record(lei: object = LEI, name: object = NAME, status: object = "ACTIVE") -> dict[str, object]:
    entity = {"legalName": {"name": name, "language": "en"}, "status": status}
    return {
        "type": "lei-records",
        "id": lei,
        "attributes": {"lei": lei, "entity": entity, "registration": {"status": "ISSUED"}},
    }


def page(*records: object, total: object = None) -> dict[str, object]:
    count = len(records) if total is None else total
    return {"meta": {"pagination": {"total": count}}, "data": list(records)}


@asynccontextmanager
async def gleif(script: Script) -> AsyncIterator[tuple[Gleif, Loopback]]:
    async with loopback(script) as server:
        client = open_gleif(
            server.url + "/api/v1/", OwnTurns(CALLS_PER_S, CALLS_BURST).take, now_us=lambda: NOW_US
        )
        try:
            yield client, server
        finally:
            await client.aclose()


def impatient(
    url: str, *, timeout_s: float, per_s: float = 50, burst: int = 50
) -> tuple[OutboundClient, Take]:
    """A client with other limits, and its turns."""
    turns = OwnTurns(per_s, burst)
    return OutboundClient(
        "gleif", url, timeout_s=timeout_s, limiter=Unlimited(), breaker=Breaker()
    ), turns.take


async def answer(script: Script, question: Question = ASHA) -> EntitySeen:
    async with gleif(script) as (client, _):
        return (await client.lookup([question]))[question]


async def test_a_name_is_searched_and_an_lei_looked_up_and_nothing_else_is_sent() -> None:
    async with gleif(always(200, page(record()))) as (client, server):
        found = await client.lookup([ASHA, ASHA_BY_LEI, ASHA])
    assert found == {ASHA: VERIFIED, ASHA_BY_LEI: VERIFIED}
    by_name, by_lei = sorted(server.asked, key=lambda asked: len(asked.query), reverse=True)
    name = "Asha Paper Works Private Limited"
    assert by_name.query == {"filter[entity.legalName]": name, "page[size]": str(PAGE_SIZE)}
    assert by_lei.query == {"filter[lei]": LEI}
    for asked in server.asked:
        assert (asked.method, asked.path, asked.body) == ("GET", "/api/v1/lei-records", b"")
        assert asked.headers["accept"] == MEDIA_TYPE


async def test_a_name_is_searched_as_it_is_usually_registered_then_without_its_legal_form() -> None:
    shortly = record(name="ASHA PAPER WORKS PVT LTD")
    async with gleif(in_turn(*(response(200, encode(body)) for body in (page(), page(shortly))))) as (
        client,
        server,
    ):
        seen = (await client.lookup([ASHA]))[ASHA]
    assert (seen.verdict, seen.name) == ("verified", "ASHA PAPER WORKS PVT LTD")
    names = [asked.query["filter[entity.legalName]"] for asked in server.asked]
    assert names == ["Asha Paper Works Private Limited", "Asha Paper Works"]


async def test_of_more_entities_than_a_page_has_nobody_is_meant() -> None:
    assert (await answer(always(200, page(record(), total=2)))).verdict == "several"


@pytest.mark.parametrize(
    "script",
    [
        always(400, {"errors": [{"title": "bad"}]}),
        *NO_ANSWERS,
        always(404),
        always(200, {"data": None}),
        always(200, {"data": [record()]}),
        always(200, page(record(), total="1")),
        always(200, page(record(), total=0)),
        always(200, page(*[record()] * (PAGE_SIZE + 1))),
        always(200, page(7)),
        always(200, page(record(), {"attributes": {"lei": LEI}})),
        always(200, page(record(lei=7))),
        always(200, page(record(lei="984500SANDBOX0000191"))),
        always(200, page(record(name=["x"]))),
        always(200, page(record(name=" "))),
        always(200, page(record(name=NAME + " " * 500 + "Somebody Else"))),
        always(200, page(record(status="<b>ACTIVE</b>"))),
        always(200, b'{"data": [' + b" " * (3 * 1024 * 1024) + b"]}"),
    ],
)
async def test_whatever_goes_wrong_the_register_could_not_be_asked_and_that_is_never_kept(
    script: Script,
) -> None:
    seen = await answer(script)
    assert (seen.verdict, seen.lei, seen.name) == ("unavailable", "", "")
    assert (seen.checked_at, seen.fresh_until) == (NOW_US, NOW_US)
    assert seen.problem
    assert "Asha" not in seen.problem


@pytest.mark.parametrize(
    "answered",
    [page(record(lei=LAPSED_LEI)), page(record(), record(lei=LAPSED_LEI)), page(record(), record())],
)
async def test_an_answer_about_another_lei_than_was_asked_for_is_not_trusted(answered: object) -> None:
    assert (await answer(always(200, answered), ASHA_BY_LEI)).verdict == "unavailable"


async def test_no_answer_in_time_is_unavailable() -> None:
    async with loopback(silent_for(20)) as server:
        http, turns = impatient(server.url, timeout_s=20)
        async with http:
            seen = (await Gleif(http, turns, lambda: NOW_US).lookup([ASHA]))[ASHA]
    assert (seen.verdict, len(server.asked)) == ("unavailable", 1)


async def test_only_so_many_are_asked_at_once_and_the_first_ones_come_first() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def never(asked: Asked) -> bytes | None:
        seen.put_nowait(asked.query["filter[entity.legalName]"])
        await asyncio.Event().wait()
        return None

    async with loopback(never) as server:
        http, turns = impatient(server.url, timeout_s=60)
        async with http:
            many = [Question(f"Name{n:02}") for n in range(3 * AT_ONCE_MAX)]
            looking = asyncio.create_task(Gleif(http, turns, lambda: NOW_US, lookups_s=60).lookup(many))
            names = sorted([await seen.get() for _ in range(AT_ONCE_MAX)])
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    assert names == [f"Name{n:02}" for n in range(AT_ONCE_MAX)]
    assert seen.empty()


async def test_questions_that_have_no_answer_when_the_time_of_all_is_over_are_unavailable() -> None:
    async with loopback(silent_for(20)) as server:
        http, turns = impatient(server.url, timeout_s=60)
        async with http:
            many = [Question(f"Name{n:02}") for n in range(3 * AT_ONCE_MAX)]
            found = await Gleif(http, turns, lambda: NOW_US, lookups_s=0.05).lookup(many)
    assert list(found) == many
    assert {seen.verdict for seen in found.values()} == {"unavailable"}
    assert {seen.fresh_until for seen in found.values()} == {NOW_US}


async def test_what_no_policy_requires_is_not_asked_where_it_would_wait_for_a_turn() -> None:
    """One turn is free, and the next one comes soon. What was not asked has no answer, not even that of a failure."""
    async with loopback(always(200, page())) as server:
        http, turns = impatient(server.url, timeout_s=60, per_s=20, burst=1)
        async with http:
            required, others = [Question("Name1"), Question("Name2")], [Question("Name3"), Question("Name4")]
            found = await Gleif(http, turns, lambda: NOW_US, lookups_s=60).lookup(required, others)
    assert [found[question].verdict for question in required] == ["not_found"] * 2
    assert not found.keys() & set(others)
    assert len(server.asked) == len(required)


async def test_new_contacts_of_other_agents_leave_turns_to_payouts_that_need_an_answer() -> None:
    """No turn comes while this runs."""
    async with loopback(always(200, page(record()))) as server:
        http, turns = impatient(server.url, timeout_s=60, per_s=0.000_1, burst=CALLS_BURST)
        async with http:
            client = Gleif(http, turns, lambda: NOW_US)
            others = await client.lookup([], [Question(f"Name{n}") for n in range(3 * CALLS_BURST)])
            for n in range(CALLS_BURST):
                others |= await client.lookup([], [Question(f"Later{n}")])
            required = await client.lookup([Question(f"Needed{n}") for n in range(TURNS_KEPT)])
    assert len(others) == CALLS_BURST - TURNS_KEPT
    assert [seen.verdict for seen in required.values()] == ["not_found"] * TURNS_KEPT


async def test_after_payouts_waited_for_turns_the_next_ones_are_asked_about_only_while_turns_are_free() -> (
    None
):
    """A turn comes every minute. Else each batch with a new contact would wait, while no more of them are answered."""
    waiting: asyncio.Queue[float] = asyncio.Queue()
    turns = OwnTurns(per_s=1 / 60, burst=1)

    async def take(*, within_s: float, beside: int = 0) -> tuple[bool, float]:
        taken, wait_s = await turns.take(within_s=within_s, beside=beside)
        if taken and wait_s:
            waiting.put_nowait(wait_s)
        return taken, wait_s

    async with loopback(always(200, page())) as server:
        http, _ = impatient(server.url, timeout_s=200)
        async with http:
            client = Gleif(http, take, lambda: NOW_US, wait_s=200, lookups_s=200)

            async def waits_for_a_turn(name: str) -> asyncio.Task[dict[Question, EntitySeen]]:
                looking = asyncio.create_task(client.lookup([Question(name)]))
                await waiting.get()
                return looking

            await client.lookup([Question("Name1")])
            first = await waits_for_a_turn("Name2")
            next_one = await asyncio.wait_for(client.lookup([Question("Name3")]), 30)  # else it would hang
            pass_at_once(60)
            answered = await first
            later = await waits_for_a_turn("Name4")
            later.cancel()
            await asyncio.gather(later, return_exceptions=True)
    assert [seen.problem for seen in next_one.values()] == [NO_TURN]
    assert [seen.verdict for seen in answered.values()] == ["not_found"]


async def test_a_turn_that_comes_too_late_is_left_to_others_and_nobody_waits_for_it() -> None:
    """A turn comes every minute, and payouts may wait for half of one. All answers come at once."""
    async with loopback(always(200, page())) as server:
        http, take = impatient(server.url, timeout_s=60, per_s=1 / 60, burst=1)
        async with http:
            client = Gleif(http, take, lambda: NOW_US, wait_s=30, lookups_s=60)
            found = await client.lookup([Question(f"Name{n}") for n in range(3)])
            pass_at_once(60)
            next_one = await client.lookup([Question("Later")])
    assert [seen.problem for seen in found.values()] == ["", NO_TURN, NO_TURN]
    assert [seen.verdict for seen in next_one.values()] == ["not_found"]


@pytest.mark.parametrize("problem", [LogUnavailable, LogBroken])
async def test_where_turns_cannot_be_counted_nobody_is_asked(problem: type[Exception]) -> None:
    """Redis is away, or has something else under that key."""

    async def lost(*, within_s: float, beside: int = 0) -> tuple[bool, float]:
        raise problem("away")

    async with loopback(always(200, page(record()))) as server:
        http, _ = impatient(server.url, timeout_s=60)
        async with http:
            found = await Gleif(http, lost, lambda: NOW_US).lookup([ASHA], [ASHA_BY_LEI])
    assert found[ASHA].verdict == "unavailable"
    assert "counted" in found[ASHA].problem
    assert server.asked == []


async def test_a_call_that_the_breaker_refuses_takes_no_turn() -> None:
    turns = OwnTurns(per_s=0.000_1, burst=FAILURES_MAX + 1)
    async with loopback(always(503)) as server:
        http, _ = impatient(server.url, timeout_s=60)
        async with http:
            client = Gleif(http, turns.take, lambda: NOW_US)
            for n in range(FAILURES_MAX + 3):
                await client.lookup([Question(f"Name{n}")])
    assert await turns.take(within_s=0) == (True, 0)


async def test_a_search_that_no_policy_requires_begins_only_if_there_are_turns_for_all_of_it() -> None:
    """A name with a legal form takes two calls if it is not found, and one of them alone would be spent for nothing."""
    async with loopback(always(200, page())) as server:
        http, turns = impatient(server.url, timeout_s=60, per_s=0.000_1, burst=TURNS_KEPT + 3)
        async with http:
            client = Gleif(http, turns, lambda: NOW_US)
            found = await client.lookup([], [Question("Name1 Ltd"), Question("Name2 Ltd")])
    assert list(found) == [Question("Name1 Ltd")]
    assert len(server.asked) == 2


async def test_a_slow_register_costs_payouts_that_do_not_need_it_one_short_wait_and_then_a_pause() -> None:
    """It answers nothing. Payouts that need an answer go on asking."""
    async with gleif(silent_for(UNREQUIRED_S)) as (client, server):
        others = [await client.lookup([], [Question(f"Name{n}")]) for n in range(3)]
        asked = len(server.asked)
        needed = (await client.lookup([ASHA]))[ASHA]
        pass_at_once(PAUSE_S)
        await client.lookup([], [Question("Later")])
    assert (others, asked) == ([{}, {}, {}], 1)
    assert needed.verdict == "unavailable"
    assert [call.query["filter[entity.legalName]"] for call in server.asked] == [
        *("Name0", "Asha Paper Works Private Limited", "Later")
    ]


async def test_what_no_policy_requires_does_not_wait_behind_other_calls() -> None:
    """All calls that may be in flight are, and none of them ends by itself. Afterwards it is asked, without a pause."""
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def never(asked: Asked) -> bytes | None:
        begun.put_nowait(asked.target)
        await asyncio.Event().wait()
        return None

    async with loopback(never) as server:
        http, turns = impatient(server.url, timeout_s=60)
        async with http:
            client = Gleif(http, turns, lambda: NOW_US, lookups_s=60)
            needed = asyncio.create_task(client.lookup([Question(f"Name{n}") for n in range(AT_ONCE_MAX)]))
            for _ in range(AT_ONCE_MAX):
                await begun.get()
            assert await client.lookup([], [ASHA]) == {}
            needed.cancel()
            await asyncio.gather(needed, return_exceptions=True)
            later = asyncio.create_task(client.lookup([], [ASHA]))
            asked = asyncio.create_task(begun.get())
            done, _ = await asyncio.wait({later, asked}, return_when=asyncio.FIRST_COMPLETED)
            later.cancel()
            await asyncio.gather(later, return_exceptions=True)
    assert done == {asked}


async def test_what_no_policy_requires_is_asked_while_turns_are_free() -> None:
    async with gleif(always(200, page(record()))) as (client, _):
        found = await client.lookup([], [ASHA])
    assert found == {ASHA: VERIFIED}


async def test_no_more_is_asked_than_is_allowed_in_a_minute() -> None:
    assert CALLS_BURST + 60 * CALLS_PER_S <= 60
    many = [Question(f"Name{n}") for n in range(3 * CALLS_BURST)]
    async with gleif(always(200, page())) as (client, server):
        found = await client.lookup(many)
    assert {seen.verdict for seen in found.values()} == {"not_found", "unavailable"}
    assert CALLS_BURST <= len(server.asked) < 2 * CALLS_BURST


async def test_after_failures_in_a_row_the_breaker_keeps_further_calls_away() -> None:
    async with gleif(always(503)) as (client, server):
        for n in range(FAILURES_MAX + 3):
            seen = (await client.lookup([Question(f"Name{n}")]))[Question(f"Name{n}")]
        assert client.breaker.state == "open"
    assert len(server.asked) == FAILURES_MAX
    assert "the breaker is open" in seen.problem


async def test_a_redirect_is_not_followed() -> None:
    async with loopback(always(200, page(record()))) as elsewhere:
        seen = await answer(always(302, location=elsewhere.url))
        assert (seen.verdict, elsewhere.asked) == ("unavailable", [])


async def test_an_entity_of_which_the_register_shows_no_status_is_not_active() -> None:
    seen = await answer(always(200, page(record(status=None))))
    assert (seen.verdict, seen.status) == ("not_active", "NULL")


async def test_the_sandbox_answers_as_the_register_does() -> None:
    lapsed = Question("Lapsed Traders Pvt. Ltd.")
    renamed = Question("Lapsed Traders Private Limited", LEI)
    nobody = Question("Nobody At All LLP")
    async with running_sandbox() as bank:
        client = open_gleif(str(bank.http.base_url.join("/gleif/api/v1")), OwnTurns(50, 50).take)
        try:
            found = await client.lookup([ASHA, ASHA_BY_LEI, lapsed, renamed, nobody])
            await bank.control("gleif", down="500")
            away = (await client.lookup([ASHA]))[ASHA]
            await bank.control("gleif", down="ok", records=[])
            gone = (await client.lookup([ASHA_BY_LEI]))[ASHA_BY_LEI]
        finally:
            await client.aclose()
    verdicts = [found[question].verdict for question in (ASHA, ASHA_BY_LEI, lapsed, renamed, nobody)]
    assert verdicts == ["verified", "verified", "not_active", "name_differs", "not_found"]
    assert (found[lapsed].status, found[lapsed].registration) == ("INACTIVE", "LAPSED")
    assert (away.verdict, gone.verdict) == ("unavailable", "not_found")
