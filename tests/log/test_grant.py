"""`grant.lua` admits as the model does, fills in what only it knows, and does all of it or nothing."""

import copy
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis

from consumers.verdicts import decision_of
from streamproc.domain import governance
from streamproc.domain.asks import uses
from streamproc.domain.budget import Admission, Ask, BudgetAnswer, Ledger, RateAnswer, RateAsk, Window
from streamproc.domain.case import Case
from streamproc.domain.events import BudgetReserved, Event, Finding, TimerFired, VelocityChecked
from streamproc.domain.governance import conclude, find, window_limit
from streamproc.domain.payouts import PayoutRecord, decode_record, encode_record
from streamproc.domain.policy import PolicyBook, ScopeState
from streamproc.domain.record import Reservation
from streamproc.domain.wire import decode_events, encode_events
from streamproc.errors import LogBroken
from streamproc.log import grants, scripts
from streamproc.log.grants import Grant
from streamproc.log.names import Names, Note
from streamproc.log.stream import open_log
from streamproc.log.templates import (
    AT,
    PAYOUT,
    Offer,
    OfferFate,
    blank,
    no_room_of,
    no_slot_of,
    offer_of,
    rejection_of,
    template_with,
)
from tests.words import ACCOUNT, NOW, policies

NAMES = Names(0)
FAR = 4_000_000_000
NASTY = 'https://a.example/%d%s?"number":0,"used":0,"limit":"reserved":0,"committed":0}'
"""What somebody else wrote; it must come out as it went in."""
DAY = (Window("agent:a", "d1", 500, FAR),)
RATE = RateAsk("a", 2, 60_000_000, False)
AGENT = PolicyBook(
    {
        change.scope: ScopeState(version=change.version, own=change.after, effective=change.effective)
        for change in policies("policies: {a: {daily_limit: 500}}")
    }
).agent("a")


def told(ask: Ask, admission: Admission) -> tuple[PayoutRecord, list[Event]]:
    """A record and events that tell of an admission."""
    rate, budget = admission.rate, admission.budget
    record = PayoutRecord(
        payout=ask.payout, account=ACCOUNT, received_at=ask.received_at, amount=ask.amount, vendor_url=NASTY
    )
    slot = VelocityChecked(
        at=NOW,
        payout=ask.payout,
        number=rate.number if rate else 0,
        used=rate.used if rate else 0,
        limit=rate.count if rate else 0,
        window_s=rate.window_us // 1_000_000 if rate else 0,
        findings=[],
    )
    case = Case(record, "claimed", AGENT, admission=admission)
    if found := find((governance.rate, window_limit), case):
        return rejected(record, found, [] if found[0].stage == "velocity" else [slot])
    assert budget is not None
    windows = uses(budget.windows, budget.before)
    reservation = Reservation(state="reserved", amount=ask.amount, number=budget.number, windows=windows)
    room = BudgetReserved(
        at=NOW, payout=ask.payout, amount=ask.amount, number=budget.number, windows=windows, findings=[]
    )
    return replace(record, reservation=reservation), [slot, room]


def rejected(
    record: PayoutRecord, found: list[Finding], before: Sequence[Event] = ()
) -> tuple[PayoutRecord, list[Event]]:
    decision = decision_of(record, None, "claimed", conclude(found), NOW)
    return replace(record, decision="REJECTED", findings=found), [*before, decision]


def offer(ask: Ask, *, rejects: bool = False) -> Offer:
    """With 0 for what only the script knows. `rejects`: it says what it is without a slot and without room, too."""
    assert ask.windows is not None
    empty = ((0, 0),) * len(ask.windows)
    room = BudgetAnswer(0, ask.amount, -1, ask.windows, empty)
    terms = (ask.rate.count, ask.rate.window_us) if ask.rate is not None else (0, 0)
    rate = RateAnswer(0, 0, False, *terms) if ask.rate is not None else None
    plain = offer_of(ask, NOW, *told(ask, Admission(rate, room)))
    if not rejects:
        return plain
    template = plain.template
    if ask.windows:
        lack = told(ask, Admission(rate, replace(room, exceeded=0)))
        template = replace(template, no_room=template_with(*no_room_of(ask, *texts(*lack))))
    if ask.rate is not None and not ask.rate.hold:
        limited = told(ask, Admission(RateAnswer(0, 0, True, *terms)))
        template = replace(template, no_slot=template_with(*no_slot_of(ask, *texts(*limited))))
    return replace(plain, template=template)


def texts(record: PayoutRecord, out: Sequence[Event]) -> tuple[str, str]:
    return encode_record(record).decode(), encode_events(out).decode()


async def pending(client: Redis) -> bytes:
    """A new entry that the group has read."""
    entry: bytes = await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
    await client.xreadgroup("g", "c", {NAMES.log: ">"})
    return entry


async def send(client: Redis, given: Sequence[Grant], rev: bytes = b"0", *, decided_at: int = 0) -> list[int]:
    return await grants.grant(client, NAMES, "g", given, rev=rev, keep_budgets_s=60, decided_at=decided_at)


def ask_of(payout: str, amount: int = 100, rate: RateAsk | None = RATE) -> Ask:
    return Ask(payout, amount, NOW, rate, DAY)


async def granted(client: Redis, ask: Ask, notes: Sequence[Note] = (), *, rejects: bool = False) -> Grant:
    return Grant(await pending(client), offer(ask, rejects=rejects), list(notes))


async def everything(client: Redis) -> dict[bytes, bytes]:
    """Every key's contents, except what time does to them."""
    return {key: await client.dump(key) for key in await client.keys("*")}


BY_ADMIT, OR_LEFT, OR_REJECTED = WAYS = ("by admit.lua", "granted or left", "granted or rejected")
asks = st.builds(
    Ask,
    st.integers(0, 12).map("pout_{}".format),
    st.sampled_from([1, 50, 100, 101, 10**15]),
    st.integers(0, 200).map(lambda s: NOW + s * 1_000_000),
    st.none()
    | st.builds(RateAsk, st.sampled_from(["a", "b"]), st.integers(1, 3), st.just(60_000_000), st.booleans()),
    st.lists(
        st.builds(
            Window,
            st.sampled_from(["agent:a", "agent:b", "account:x"]),
            st.sampled_from(["d1", "w1"]),
            st.sampled_from([None, 0, 100, 150, 300, 10**15]),
            st.just(FAR),
        ),
        max_size=3,
        unique_by=lambda w: (w.scope, w.window),
    ).map(tuple),
)
batches = st.lists(
    st.tuples(st.sampled_from(WAYS), st.lists(asks, min_size=1, max_size=6, unique_by=lambda a: a.payout)),
    max_size=8,
)


def at_second(payout: str, second: int, count: int) -> Ask:
    """Asks for one of `count` slots a minute of agent b."""
    ask = ask_of(payout, 1, RateAsk("b", count, 60_000_000, hold=False))
    return replace(ask, received_at=NOW + second * 1_000_000)


LATE_AND_LIMITED = ((92, 1), (113, 2), (152, 1), (113, 2))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=batches)
@example(  # who is left to the chain looks further on than those who come after it, and leaves no trace of that
    [
        (OR_LEFT, [at_second("pout_0", 92, 1)]),
        (OR_LEFT, [at_second("pout_1", 113, 2), at_second("pout_2", 152, 1)]),
        (OR_LEFT, [at_second("pout_3", 113, 2)]),
    ]
)
@example(
    [
        (OR_LEFT, [at_second("pout_0", 92, 1), at_second("pout_1", 113, 2)]),
        (OR_LEFT, [at_second("pout_2", 152, 1), at_second("pout_3", 113, 2)]),
    ]
)
@example([(OR_LEFT, [at_second(f"pout_{n}", at, of) for n, (at, of) in enumerate(LATE_AND_LIMITED)])])
@example([(OR_REJECTED, [at_second(f"pout_{n}", at, of) for n, (at, of) in enumerate(LATE_AND_LIMITED)])])
async def test_what_is_granted_is_what_the_model_grants_and_is_recorded_as_such(
    client: Redis, history: list[tuple[str, list[Ask]]]
) -> None:
    await client.flushdb()
    await open_log(client, partitions=1, groups=("g",))
    model = Ledger()
    for way, batch in history:
        if way == BY_ADMIT:  # as the chain does; whatever it answered is known from then on
            answers = await scripts.admit(client, NAMES, batch, keep_budgets_s=60)
            assert answers == [model.admit(ask) for ask in batch]
            continue
        rejects = way == OR_REJECTED
        fates = await send(client, [await granted(client, ask, rejects=rejects) for ask in batch])
        for ask, fate in zip(batch, fates, strict=True):
            trial = copy.deepcopy(model)
            admission = trial.admit(ask)
            assert fate is fate_of(ask, admission, known=ask.payout in model.admissions, rejects=rejects)
            if fate is OfferFate.LEFT:
                continue
            model = trial
            version, record, kept = await client.hmget(NAMES.payout(ask.payout), "v", "s", "a")
            assert (version, kept) == (b"1", scripts.kept_admission(admission))
            (entry,) = [e for e in await log(client) if e and getattr(e[0], "payout", "") == ask.payout]
            assert (decode_record(record), entry) == told(ask, admission)
    for (scope, window), amounts in model.budgets.items():
        row = await client.hmget(NAMES.budget(scope, window), "r", "c")
        assert tuple(int(value or 0) for value in row) == amounts
    assert int(await client.get(NAMES.number) or 0) == model.number
    for agent, slots in model.counters.rates.items():
        rows = await client.zrange(NAMES.rate(agent), 0, -1, withscores=True)
        assert [score for _, score in rows][-len(slots) :] == list(slots)


def fate_of(ask: Ask, admission: Admission, *, known: bool, rejects: bool) -> OfferFate:
    if known:
        return OfferFate.LEFT
    if admission.rate is not None and admission.rate.limited:
        assert ask.rate is not None
        return OfferFate.NO_SLOT if rejects and not ask.rate.hold else OfferFate.LEFT
    if admission.budget is not None and admission.budget.granted:
        return OfferFate.DONE
    return OfferFate.NO_ROOM if rejects else OfferFate.LEFT


async def log(client: Redis) -> list[list[Event]]:
    rows = await client.execute_command("XRANGE", NAMES.log, "-", "+")
    return [decode_events(fields[1]) for _, fields in rows]


async def test_sent_or_delivered_again_it_finds_the_payout_known_and_does_nothing(client: Redis) -> None:
    one = await granted(client, ask_of("pout_1"))
    assert await send(client, [one]) == [OfferFate.DONE]
    again = await granted(client, ask_of("pout_1"))
    before = await everything(client)
    assert await send(client, [one]) == [OfferFate.LEFT]
    assert await send(client, [again]) == [OfferFate.LEFT]
    assert await everything(client) == before


async def test_what_somebody_else_acknowledged_takes_no_slot_no_room_and_no_number(client: Redis) -> None:
    late, other = await granted(client, ask_of("pout_1")), await granted(client, ask_of("pout_2"))
    await client.xack(NAMES.log, "g", late.entry)
    assert await send(client, [late, other]) == [OfferFate.LEFT, OfferFate.DONE]
    assert await client.hget(NAMES.budget("agent:a", "d1"), "r") == b"100"
    assert await client.zrange(NAMES.rate("a"), 0, -1) == [b"pout_2"]
    assert await client.get(NAMES.number) == b"1"
    assert not await client.exists(NAMES.payout("pout_1"))


async def test_between_a_workers_entries_may_lie_as_many_of_others(client: Redis) -> None:
    batch = []
    for payout in ("pout_1", "pout_2"):
        await pending(client)
        batch.append(await granted(client, ask_of(payout)))
    assert await send(client, batch) == [OfferFate.DONE, OfferFate.DONE]


async def test_under_another_policy_nothing_is_granted(client: Redis) -> None:
    one = await granted(client, ask_of("pout_1"))
    await client.hset(NAMES.policy, "rev", "7")
    before = await everything(client)
    assert await send(client, [one], rev=b"6") == [OfferFate.LEFT]
    assert await everything(client) == before
    assert await send(client, [one], rev=b"7") == [OfferFate.DONE]


async def test_a_time_after_that_of_redis_or_long_before_it_is_refused(client: Redis) -> None:
    """Where it was not Redis that told the time: a host that slept, or a clock that was set."""
    one = await granted(client, ask_of("pout_1"))
    before = await everything(client)
    seconds, us = await client.time()
    now = seconds * 1_000_000 + us
    for off_s in (60, -11):
        assert await send(client, [one], decided_at=now + off_s * 1_000_000) == [OfferFate.LEFT]
    assert await everything(client) == before
    assert await send(client, [one], decided_at=now) == [OfferFate.DONE]


async def test_without_a_slot_no_room_is_taken_and_without_room_no_slot(client: Redis) -> None:
    batch = [await granted(client, ask) for ask in (ask_of("pout_1", 501), ask_of("pout_2", 500, None))]
    assert await send(client, batch) == [OfferFate.LEFT, OfferFate.DONE]
    assert not await client.exists(NAMES.rate("a"))
    full = RateAsk("a", 0, 60_000_000, False)
    assert await send(client, [await granted(client, ask_of("pout_3", 0, full))]) == [OfferFate.LEFT]
    assert await client.hget(NAMES.budget("agent:a", "d1"), "r") == b"500"


@pytest.mark.parametrize("key", [NAMES.rate("a"), NAMES.budget("agent:a", "d1")])
async def test_a_key_of_a_wrong_type_fails_the_call_before_anything_is_written(
    client: Redis, key: str
) -> None:
    batch = [await granted(client, ask_of("pout_1")), await granted(client, ask_of("pout_2", rate=None))]
    await client.set(key, "x")
    before = await everything(client)
    with pytest.raises(LogBroken, match="not what it must be"):
        await send(client, list(reversed(batch)))
    assert await everything(client) == before


async def test_a_template_bears_the_time_of_each_batch_that_uses_it(client: Redis) -> None:
    """It is packed once, and one text has the time more than once, beside what else comes with a payout."""
    first = offer(ask_of("pout_1"))
    both = encode_record(first.outputs(OfferFate.DONE)[0]).decode(), f'[{AT},"{blank(PAYOUT)}",{AT},{AT}]'
    shared = template_with(*both)
    for n in (1, 2):
        ask, at = ask_of(f"pout_{n}"), NOW + n
        again = replace(first, ask=ask, at=at, template=shared)
        assert await send(client, [Grant(await pending(client), again)]) == [OfferFate.DONE]
        ((_, fields),) = await client.xrevrange(NAMES.log, count=1)
        assert fields[1].decode() == f'[{at},"pout_{n}",{at},{at}]'


async def test_who_asks_for_nothing_is_rejected_without_a_number_or_an_admission(client: Redis) -> None:
    """And goes with the retention time where the payout is over with that, as none at the bank is."""
    record = PayoutRecord(payout="pout_1", account=ACCOUNT, received_at=NOW, bank_status="pending")
    after, out = rejected(
        record, [Finding(stage="screening", code="FROZEN", outcome="REJECTED", evidence={})]
    )
    for ends, bank_status in ((False, "pending"), (True, "")):
        payout = f"pout_{bank_status}"
        after = replace(after, payout=payout, bank_status=bank_status, state="rejected")
        asked = rejection_of(Ask(payout, 1, NOW), NOW, after, out)
        batch = [Grant(await pending(client), asked), await granted(client, ask_of(f"{payout}_beside", 1))]
        assert await send(client, batch) == [OfferFate.DONE, OfferFate.DONE]
        row = await client.hgetall(NAMES.payout(payout))
        assert row == {b"v": b"1", b"s": encode_record(after)}
        assert out in await log(client)
        assert (await client.ttl(NAMES.payout(payout)) > 0) is ends
    assert await client.get(NAMES.number) == b"2"
    assert await client.xlen(NAMES.log) == 8
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_who_comes_to_be_the_second_where_nobody_was_is_left(client: Redis) -> None:
    """Of one call, of two calls; who is there already under that name is no other."""
    key = NAMES.paid_at(ACCOUNT, "one.example")
    named = [("fa_1", OfferFate.DONE), ("fa_2", OfferFate.LEFT), ("fa_1", OfferFate.DONE)]
    batch = [
        await granted(client, ask_of(f"pout_{n}", 1, None), notes=[(key, name, NOW, True)])
        for n, (name, _) in enumerate(named)
    ]
    assert await send(client, batch) == [fate for _, fate in named]
    for n, (name, fate) in enumerate(named, 3):
        one = await granted(client, ask_of(f"pout_{n}", 1, None), notes=[(key, name, NOW, True)])
        assert await send(client, [one]) == [fate]
    assert await client.hgetall(key) == {b"fa_1": str(NOW).encode()}


@pytest.mark.parametrize("number", ["x", "", "-1"])
async def test_where_the_counter_is_no_number_nothing_is_done(client: Redis, number: str) -> None:
    """Also of who asks for no number."""
    record = PayoutRecord(payout="pout_1", account=ACCOUNT, received_at=NOW, bank_status="pending")
    found = [Finding(stage="screening", code="FROZEN", outcome="REJECTED", evidence={})]
    one = Grant(await pending(client), rejection_of(Ask("pout_1", 1, NOW), NOW, *rejected(record, found)))
    await client.set(NAMES.number, number)
    before = await everything(client)
    with pytest.raises(Exception, match="not a whole number"):
        await send(client, [one])
    assert await everything(client) == before


async def test_timers_are_set_where_the_payout_was_granted_and_nowhere_else(client: Redis) -> None:
    timers = [TimerFired(at=NOW + n, payout="pout_1", timer="hold_expiry") for n in range(2)]
    grant = await granted(client, ask_of("pout_1"))
    grant.offer = replace(grant.offer, timers=timers)
    full = await granted(client, ask_of("pout_2", 501), rejects=True)
    full.offer = replace(full.offer, timers=[replace(timers[0], payout="pout_2")])
    assert await send(client, [grant, full]) == [OfferFate.DONE, OfferFate.NO_ROOM]
    assert await send(client, [grant]) == [OfferFate.LEFT]
    due = await client.zrange(NAMES.timers, 0, -1, withscores=True)
    assert due == [(encode_events([timer]), timer.at) for timer in timers]


async def test_where_timers_cannot_be_set_nothing_is_granted(client: Redis) -> None:
    grant = await granted(client, ask_of("pout_1"))
    grant.offer = replace(grant.offer, timers=[TimerFired(at=NOW, payout="pout_1", timer="hold_expiry")])
    await client.set(NAMES.timers, "x")
    before = await everything(client)
    with pytest.raises(LogBroken, match="not what it must be"):
        await send(client, [grant])
    assert await everything(client) == before


async def test_without_a_log_nothing_is_granted(client: Redis) -> None:
    one = await granted(client, ask_of("pout_1"))
    await client.delete(NAMES.log)
    with pytest.raises(LogBroken, match="is gone"):
        await send(client, [one])
    assert not await client.exists(NAMES.number)


async def test_notes_are_kept_where_the_payout_was_granted_and_nowhere_else(client: Redis) -> None:
    key = NAMES.paid_for(ACCOUNT, "fa_1")
    fates = []
    for payout, amount, name in (
        ("pout_1", 100, "one.example"),
        ("pout_1", 100, "known.example"),
        ("pout_2", 501, "no-room.example"),
        ("pout_3", 100, "no-slot.example"),
    ):
        notes = [(key, name, NOW, False)]
        fates += await send(client, [await granted(client, ask_of(payout, amount), notes, rejects=True)])
    assert fates == [OfferFate.DONE, OfferFate.LEFT, OfferFate.NO_ROOM, OfferFate.NO_SLOT]
    assert await client.hgetall(key) == {b"one.example": str(NOW).encode()}


def test_an_offer_whose_blanks_are_not_where_they_must_be_is_none() -> None:
    ask = ask_of("pout_1")
    record, out = offer(ask).outputs(OfferFate.DONE)
    for asked, events in (
        (ask, out[:1]),
        (ask, out[1:]),
        (ask_of("pout_1", rate=None), out[:1]),
        (Ask("pout_1", 1, NOW, RATE, (*DAY, *DAY)), out),
    ):
        with pytest.raises(ValueError, match="an offer"):
            offer_of(asked, NOW, record, events)
