"""What is remembered of payouts alike comes to what looking at each as a whole comes to, or to nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consumers import plans, reserve
from consumers.approvals import Templates
from consumers.fast_path import governance_fast_path
from consumers.vet import Reputations
from streamproc.bench.pure import NoCache
from streamproc.domain import governance, narrowed
from streamproc.domain.asks import charged_windows, vendor_charged
from streamproc.domain.beneficiaries import NOTED, BeneficiarySeen
from streamproc.domain.budget import NOTHING_ASKED, QUARTER_US, US
from streamproc.domain.case import Case, Reputation, case_under
from streamproc.domain.events import Finding, PayoutObserved
from streamproc.domain.intent import intent_id
from streamproc.domain.payouts import fold
from streamproc.domain.policy import PolicyBook, ScopeState
from streamproc.log.templates import Offer, OfferFate, as_filled
from streamproc.log.work import BatchContext, FastPath, Work
from tests.engine import ZONE
from tests.profiles import policy_fields
from tests.words import ACCOUNT, NOW, observed, policies, requested

POLICIES = """
defaults: {rate_limit: {count: 3, window: 60}, blocked_domains: [bad.example]}
policies:
  bot: {daily_limit: 1000, weekly_limit: 1500, require_approval_above: 400}
  free: {rate_limit: {count: 0}, count_fees: true, vendor_daily_limit: 700, per_txn_limit: 500}
  wary: {new_beneficiary: hold, changed_beneficiary: hold, on_rate_limit: hold}
  night: {hours: "00:00-23:00"}
  usd: {currencies: [INR, USD], dual_approval_above: 400}
  ice: {frozen: true}
  proven: {require_verified_identity: true}
  steady: {OF_HABIT}
agents: {proven: {fund_accounts: [fa_1]}}
""".replace("OF_HABIT", policy_fields(amounts=(300,) * 20, threshold=420))
CREATED_AT = NOW // US
"""Some hours before midnight, where a day's windows end."""
AN_INTENT = intent_id(ACCOUNT, "bot", "key")
URLS = ("https://shop.example/100%25?%d", "https://other.example/", "https://bad.example/", "not a url", None)
alike = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(
            ["bot", "bot", "free", "wary", "night", "usd", "ice", "proven", "steady", "stranger", None]
        ),
        "url": st.sampled_from([*URLS[:2], *URLS]),
        "currency": st.sampled_from(["INR", "INR", "INR", "USD"]),
        "fund_account": st.sampled_from(["fa_1", "fa_1", "fa_2", ""]),
        "status": st.sampled_from(["pending", "pending", "queued", "processing"]),
    }
)
own = st.tuples(
    st.sampled_from([*map("pout_{}".format, range(12)), 'pout_"', AN_INTENT]),
    st.sampled_from([1, 399, 400, 401, 500, 501, 0]),
)
times = st.sampled_from([0, 1, 2, 0, 1, 899, 18_000, -10]).map(lambda s: NOW + s * US)
looked_at = st.sampled_from([3, 3, 3, 950, 18_001, 18_002, 90_000]).map(lambda s: NOW + s * US)
rare = st.fixed_dictionaries(
    {},
    optional={
        "reference_id": st.sampled_from(["r", '"']),
        "fees": st.sampled_from([0] * 9 + [7]),
        "utr": st.sampled_from([""] * 9 + ["u"]),
        "tax": st.sampled_from([0] * 9 + [7]),
        "created_at": st.sampled_from([CREATED_AT, CREATED_AT, 1]),
    },
)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[PayoutObserved, int]]:
    """Payouts, few of them unlike, and when each is looked at (µs)."""
    few, history = draw(st.lists(alike, min_size=1, max_size=3)), []
    for _ in range(draw(st.integers(2, 20))):
        (payout, amount), common = draw(own), draw(st.sampled_from(few))
        event = observed(payout, amount, at=draw(times), **common)
        event = replace(event, facts=replace(event.facts, **draw(rare)))
        if draw(st.sampled_from([False] * 9 + [True])):
            event.facts.notes["agent_sig"] = "x"
        history.append((event, draw(looked_at)))
    return history


@pytest.fixture(scope="module")
def book() -> PolicyBook:
    return book_of(POLICIES)


def book_of(text: str) -> PolicyBook:
    return PolicyBook(
        {c.scope: ScopeState(version=c.version, own=c.after, effective=c.effective) for c in policies(text)}
    )


async def reputations() -> Reputations:
    """Clean ones, for a day."""

    async def lookup(urls: Sequence[str]) -> Mapping[str, Reputation]:
        until = NOW + 86_400 * US
        return {url: Reputation("clean", checked_at=NOW, fresh_until=until) for url in urls}

    known = Reputations(lookup)
    await known.of([url for url in URLS if url], NoCache(), NOW)
    return known


def ctx(book: PolicyBook, now_us: int) -> BatchContext:
    async def none(_: object) -> list[object]:
        return []

    async def book_now() -> PolicyBook:
        return book

    return BatchContext(now_us, 0, book, none, NoCache(), book_now, none)  # type: ignore[arg-type]


def work_of(event: PayoutObserved) -> Work:
    return Work(b"1-1", [event], event.payout, beneficiary=NOTED)


def as_a_whole(ask: FastPath, event: PayoutObserved) -> Offer | None:
    work = work_of(event)
    work.open(b"0", None, NOTHING_ASKED, keep=False)
    return ask(work)


def everything(offer: Offer) -> list[object]:
    """All that an offer says."""
    template = offer.template
    templates = (
        (OfferFate.DONE, template),
        (OfferFate.NO_SLOT, template.no_slot),
        (OfferFate.NO_ROOM, template.no_room),
    )
    filled = [(as_filled(one, offer), offer.outputs(fate)) for fate, one in templates if one is not None]
    return [offer.ask, offer.at, offer.agent, template.ends, *filled]


@settings(max_examples=200, deadline=None)
@given(history=histories())
async def test_an_offer_at_sight_is_the_offer_of_who_looks_at_the_whole(
    book: PolicyBook, history: list[tuple[PayoutObserved, int]]
) -> None:
    way = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)
    for event, now_us in history:
        ask = way(ctx(book, now_us))
        at_sight, whole = ask.at_sight(work_of(event)), as_a_whole(ask, event)
        if at_sight is not None:
            assert whole is not None
            assert everything(at_sight) == everything(whole)


async def test_who_was_paid_before_is_offered_at_sight_what_he_asks_for(book: PolicyBook) -> None:
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, NOW + US))
    first = observed("pout_1", 100, url=URLS[0])
    assert ask.at_sight(work_of(first)) is None
    assert as_a_whole(ask, first) is not None
    second = ask.at_sight(work_of(observed("pout_2", 400, url=URLS[0])))
    assert second is not None
    assert (second.ask.payout, second.ask.amount) == ("pout_2", 400)


async def test_only_one_payout_at_the_bank_and_nothing_else_is_offered_at_sight(book: PolicyBook) -> None:
    """What has no offer is handled as a whole, without a line in the log of a failure."""
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, NOW + US))
    assert as_a_whole(ask, observed("pout_1", 100, url=URLS[0])) is not None
    second, third = observed("pout_2", 100, url=URLS[0]), observed("pout_3", 100, url=URLS[0])
    assert ask.at_sight(work_of(second)) is not None
    assert ask.at_sight(Work(b"1-1", [second, third], "pout_2", beneficiary=NOTED)) is None
    intent = requested(100)
    assert ask.at_sight(Work(b"1-1", [intent], intent.payout, beneficiary=NOTED)) is None


async def test_while_it_is_not_known_who_was_paid_before_only_a_rejection_is_offered(
    book: PolicyBook,
) -> None:
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, NOW + US))

    def offered(url: str, beneficiary: BeneficiarySeen | None) -> bool:
        event = observed("pout_1", 100, url=url)
        work = Work(b"1-1", [event], event.payout, beneficiary=beneficiary)
        work.open(b"0", None, NOTHING_ASKED, keep=False)
        return ask(work) is not None

    assert [offered(URLS[0], NOTED), offered(URLS[0], None)] == [True, False]
    assert [offered("https://bad.example/", NOTED), offered("https://bad.example/", None)] == [True, True]


SOON = NOW + US
FRESH_UNTIL = NOW + 86_400 * US
RETENTION_S = 1_000
GONE_BEFORE = SOON // US - RETENTION_S // 2
"""What was made before (Unix s) may have left Redis."""
QUARTER_ENDS = NOW - NOW % QUARTER_US + QUARTER_US
UNLIKE: dict[str, tuple[dict[str, Any], int]] = {
    "of no amount": ({"amount": 0}, SOON),
    "of so much that a person is asked": ({"amount": 401}, SOON),
    "of another currency": ({"currency": "USD"}, SOON),
    "further at the bank": ({"status": "queued"}, SOON),
    "of another agent": ({"agent": "free"}, SOON),
    "of another account": ({"account": "acc_other"}, SOON),
    "to another fund account": ({"fund_account": "fa_2"}, SOON),
    "for another vendor": ({"url": URLS[1]}, SOON),
    "for no vendor": ({"url": None}, SOON),
    "with a reference": ({"reference_id": "r"}, SOON),
    "with a bank's reference": ({"utr": "u"}, SOON),
    "with fees": ({"fees": 7}, SOON),
    "with tax": ({"tax": 7}, SOON),
    "signed": ({"agent_sig": "x"}, SOON),
    "with an id that JSON escapes": ({"payout": 'pout_"'}, SOON),
    "an intent of ours": ({"payout": AN_INTENT}, SOON),
    "received at no time": ({"at": 0}, SOON),
    "received later than now": ({"at": SOON + 1}, SOON),
    "received in the quarter of an hour before": ({"at": QUARTER_ENDS - QUARTER_US - 1}, SOON),
    "received in the next quarter of an hour": ({"at": QUARTER_ENDS}, QUARTER_ENDS),
    "made so long ago that Redis may have forgotten it": ({"created_at": GONE_BEFORE - 1}, SOON),
    "looked at when the vendor's reputation is over": ({}, FRESH_UNTIL),
}
"""What a payout is, if it is not like one that was approved, and when it is looked at (µs)."""
LIKE: dict[str, tuple[dict[str, Any], int]] = {
    "of the lowest amount": ({"amount": 1}, SOON),
    "of the highest amount": ({"amount": 400}, SOON),
    "received this very moment": ({"at": SOON}, SOON),
    "received at the end of the quarter of an hour": ({"at": QUARTER_ENDS - 1}, QUARTER_ENDS),
    "made when Redis surely has not forgotten it": ({"created_at": GONE_BEFORE}, SOON),
    "looked at in the last moment of the vendor's reputation": ({}, FRESH_UNTIL - 1),
}
"""What it is at most, if it is like that one."""


def like_the_first(payout: str = "pout_2", amount: int = 100, **other: Any) -> PayoutObserved:
    """A payout that is like the first but for its id, and for what is `other`."""
    named = {"url": URLS[0]} | other
    facts = {
        name: named.pop(name)
        for name in ("reference_id", "utr", "fees", "tax", "created_at")
        if name in named
    }
    signature = named.pop("agent_sig", None)
    event = observed(payout, amount, **named)
    if signature is not None:
        event.facts.notes["agent_sig"] = signature
    return replace(event, facts=replace(event.facts, **facts))


@pytest.mark.parametrize("like", LIKE)
async def test_a_payout_that_is_like_the_first_in_all_that_rules_look_at_is_offered_at_sight(
    book: PolicyBook, like: str
) -> None:
    assert await offered_at_sight(book, *LIKE[like])


@pytest.mark.parametrize("unlike", UNLIKE)
async def test_a_payout_that_is_unlike_in_one_thing_is_looked_at_as_a_whole(
    book: PolicyBook, unlike: str
) -> None:
    assert not await offered_at_sight(book, *UNLIKE[unlike])


async def offered_at_sight(book: PolicyBook, other: dict[str, Any], now_us: int) -> bool:
    """Whether a payout with what is `other` is, after a first one."""
    way = governance_fast_path(await reputations(), zone=ZONE, retention_s=RETENTION_S)
    assert as_a_whole(way(ctx(book, SOON)), observed("pout_1", 100, url=URLS[0])) is not None
    return way(ctx(book, now_us)).at_sight(work_of(like_the_first(**other))) is not None


async def test_what_names_no_vendor_is_remembered_without_a_reputation_that_could_end(
    book: PolicyBook,
) -> None:
    way = governance_fast_path(await reputations(), zone=ZONE, retention_s=2.0 * FRESH_UNTIL)
    assert as_a_whole(way(ctx(book, SOON)), observed("pout_1", 100)) is not None
    assert way(ctx(book, FRESH_UNTIL)).at_sight(work_of(observed("pout_2", 100))) is not None


async def test_what_was_remembered_ends_with_the_policies(book: PolicyBook) -> None:
    way = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)
    event = observed("pout_1", 100, url=URLS[0])
    assert as_a_whole(way(ctx(book, NOW + US)), event) is not None
    assert way(ctx(book, NOW + US)).at_sight(work_of(event)) is not None
    frozen = book_of(POLICIES.replace("bot: {", "bot: {frozen: true, "))
    assert way(ctx(frozen, NOW + US)).at_sight(work_of(event)) is None


async def test_of_who_is_held_by_a_score_nothing_is_remembered(book: PolicyBook) -> None:
    """It depends on amount and hour, so each payout is looked at as a whole: the second one here is held."""
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, SOON))
    usual, unlike = (observed(f"pout_{amount}", amount, agent="steady", url=URLS[0]) for amount in (400, 501))
    offers = [as_a_whole(ask, event) for event in (usual, unlike)]
    decisions = [offer.outputs(OfferFate.DONE)[0].decision for offer in offers if offer is not None]
    assert decisions == ["APPROVED", "HELD"]
    assert [ask.at_sight(work_of(event)) for event in (usual, unlike)] == [None, None]


async def test_where_a_rule_is_asked_that_nobody_looked_into_nothing_is_remembered(
    book: PolicyBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(_: Case) -> Finding | None:
        return None

    monkeypatch.setitem(governance.RULES, "approval", (*governance.RULES["approval"], new))
    narrowed.rules_under.cache_clear()
    try:
        ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(
            ctx(book, NOW + US)
        )
        event = observed("pout_1", 100, url=URLS[0])
        assert as_a_whole(ask, event) is not None
        assert ask.at_sight(work_of(event)) is None
    finally:
        narrowed.rules_under.cache_clear()


async def test_plans_stand_side_by_side(book: PolicyBook) -> None:
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, SOON))
    both = [observed(f"pout_{n}", 100, url=url) for n, url in enumerate(URLS[:2])]
    for event in both:
        assert as_a_whole(ask, event) is not None
    assert None not in [ask.at_sight(work_of(event)) for event in both]


async def test_plans_are_made_anew_where_there_would_be_too_many(
    book: PolicyBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "PLANS_MAX", 1)
    ask = governance_fast_path(await reputations(), zone=ZONE, retention_s=30 * 86_400.0)(ctx(book, NOW + US))
    one, other = observed("pout_1", 100, url=URLS[0]), observed("pout_2", 100, url=URLS[1])
    for event in (one, other):
        assert as_a_whole(ask, event) is not None
    assert ask.at_sight(work_of(one)) is None
    assert ask.at_sight(work_of(other)) is not None


async def test_what_is_asked_for_is_not_kept_for_ever(
    book: PolicyBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker runs for months, and windows are others each quarter of an hour."""
    monkeypatch.setattr(reserve, "TERMS_MAX", 3)
    kept = plans.Plans(Templates(), ZONE).under(book).terms
    for quarter in range(9):
        for agent in ("bot", "free", "wary", "night"):
            case = case_of(book, agent, NOW + quarter * QUARTER_US)
            assert kept.windows(case) is kept.windows(case)
            assert kept.rate(case) is kept.rate(case)
            assert len(kept._windows) <= 3
            assert len(kept._rates) <= 3


OF_ITS_OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of another agent": ({"agent": "bot"}, {"agent": "night"}),
    "of another account": ({"agent": "bot"}, {"agent": "bot", "account": "acc_other"}),
    "for another vendor": ({"agent": "free", "url": URLS[0]}, {"agent": "free", "url": URLS[1]}),
    "received on the next day": ({"agent": "bot"}, {"agent": "bot", "at": NOW + 86_400 * US}),
}
"""Two payouts that are charged to other windows."""


@pytest.mark.parametrize("other", OF_ITS_OWN)
async def test_windows_are_those_of_the_payout_whatever_was_asked_before(other: str) -> None:
    """A worker that remembered too long would charge the budget of yesterday, or somebody else's."""
    limits = {account: {"daily_limit": 2_500} for account in (ACCOUNT, "acc_other")}
    book = book_of(f"{POLICIES}accounts: {json.dumps(limits)}\n")
    kept = plans.Plans(Templates(), ZONE).under(book).terms

    def case(**of: Any) -> Case:
        record = fold([observed(**of)])
        assert record is not None
        return case_under(book, record, ZONE)

    first, second = (case(**of) for of in OF_ITS_OWN[other])
    asked = [kept.windows(case) for case in (first, second, first)]
    assert asked == [charged_windows(case, vendor_charged(case), ZONE) for case in (first, second, first)]
    assert asked[0] != asked[1]


async def test_agents_ask_in_turn_for_the_same_as_before(book: PolicyBook) -> None:
    """What is the same object is sent to Redis once."""
    kept = plans.Plans(Templates(), ZONE).under(book).terms
    cases = [case_of(book, agent, NOW) for agent in ("bot", "free", "wary")]
    asked = [(kept.rate(case), kept.windows(case)) for case in cases]
    for case, (rate, windows) in zip(cases, asked, strict=True):
        assert kept.rate(case) is rate
        assert kept.windows(case) is windows


def case_of(book: PolicyBook, agent: str, at: int) -> Case:
    record = fold([observed(agent=agent, at=at)])
    assert record is not None
    return Case(record, "claimed", book.agent(agent))
