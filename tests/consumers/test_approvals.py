"""What payouts have in common is sent once, with blanks; filled in, it is what is told of each alone."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consumers import approvals
from consumers.approvals import Approval, Templates
from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.budget import RateAsk, Window
from streamproc.domain.case import NO_URL, Reputation
from streamproc.domain.events import BeneficiarySeen
from streamproc.domain.payouts import encode_record, fold
from streamproc.domain.policy import AgentPolicy, PolicyBook, ScopeState
from streamproc.domain.wire import encode_events
from streamproc.log.templates import (
    AMOUNT,
    COMMON,
    NOTHING,
    VALUES,
    Offer,
    OfferFate,
    RecordAndEvents,
    Template,
    Text,
    as_filled,
    blank,
)
from tests.words import NOW, observed, policies

FAR = 4_000_000_000
BOOK = PolicyBook(
    {
        change.scope: ScopeState(version=change.version, own=change.after, effective=change.effective)
        for change in policies(
            "policies: {bot: {daily_limit: 1000}, other: {daily_limit: 7}, free: {count_fees: true, daily_limit: 5}}"
        )
    }
)
NASTY = ('"', "\\", "\x01", "\x013\x01", '"number":0', '"reserved":0,"committed":0', "%d", "é", "\U0001f4b8")
texts = st.sampled_from(["", "x", *NASTY]) | st.text(max_size=12)
counts = st.integers(1, 10**15)
agents = st.sampled_from(["bot", "free"])


def agent(name: str) -> AgentPolicy:
    known = BOOK.agent(name)
    assert known is not None
    return known


@st.composite
def approvals_of(draw: st.DrawFn) -> Approval:
    """Of the bank's own payouts, to whom was paid before; some of them are less usual."""
    name = draw(agents)
    seen = observed(
        draw(st.integers(0, 10**6).map("pout_{}".format) | st.sampled_from(['pout_"', "pout_é"])),
        draw(counts),
        agent=name,
        url=draw(texts),
        status=draw(st.sampled_from(["pending", "queued"])),
        fund_account=draw(texts),
        at=NOW + draw(st.integers(0, 10**9)),
    )
    rare = draw(st.sampled_from([{}] * 6 + [{"fees": 7}, {"utr": "u"}]))
    facts = replace(seen.facts, reference_id=draw(texts), **rare)
    record = fold([replace(seen, facts=facts)])
    assert record is not None
    beneficiary = draw(st.sampled_from([NOTED] * 4 + [BeneficiarySeen(known=True)]))
    url = Reputation("clean", (), draw(counts), draw(counts))
    windows = st.builds(Window, texts, texts, st.none() | counts, st.just(FAR))
    return Approval(
        replace(record, beneficiary=beneficiary),
        draw(st.sampled_from(["claimed", "verified"])),
        agent(name),
        draw(st.sampled_from([url, url, NO_URL])),
        NOW + draw(st.integers(-5, 10**10)),
        RateAsk(name, 3, 60_000_000, False) if name == "bot" else None,
        tuple(draw(st.lists(windows, min_size=1, max_size=3))),
    )


def written(template: Template, offer: Offer) -> tuple[bytes, bytes]:
    """As the script fills it in, but for what only the script knows."""
    record, e = as_filled(template, offer)
    return record.encode(), e.encode()


def encoded(outputs: RecordAndEvents) -> tuple[bytes, bytes]:
    record, out = outputs
    return encode_record(record), encode_events(out)


@settings(max_examples=150, deadline=None)
@given(given_all=st.lists(approvals_of(), min_size=1, max_size=12))
def test_a_form_that_is_filled_in_is_what_is_told_of_the_payout(given_all: list[Approval]) -> None:
    templates = Templates()
    for approval in given_all:
        offer = templates.offer(approval)
        template = offer.template
        assert written(template, offer) == encoded(approval.outputs())
        for fate, one in ((OfferFate.NO_SLOT, template.no_slot), (OfferFate.NO_ROOM, template.no_room)):
            if one is not None:
                assert written(one, offer) == encoded(approval.outputs(fate))


def test_what_has_no_slot_is_left_to_the_chain_where_the_policy_holds_it_or_the_form_is_its_own() -> None:
    templates, one = Templates(), plain(1)
    assert one.rate is not None
    holds = replace(one, rate=replace(one.rate, hold=True))
    own = replace(one, record=replace(one.record, utr="u"))
    assert templates.offer(one).template.no_slot is not None
    assert templates.offer(replace(holds, agent=agent("other"))).template.no_slot is None
    assert templates.offer(own).template.no_slot is templates.offer(own).template.no_room is None


def plain(n: int, *, url: str = "https://a.example/", name: str = "bot") -> Approval:
    record = fold([observed(f"pout_{n}", 100 + n, url=url, agent=name)])
    assert record is not None
    clean = Reputation("clean", (), NOW, NOW + 1)
    window = Window(f"agent:{name}", "d1", 1000, FAR)
    rate = RateAsk(name, 3, 60_000_000, False)
    seen = replace(record, beneficiary=NOTED)
    return Approval(seen, "claimed", agent(name), clean, NOW + n, rate, (window,))


def test_all_agents_share_a_form_and_the_payouts_of_one_what_is_its_own() -> None:
    templates = Templates()
    offers = [templates.offer(one) for one in (plain(1), plain(2), plain(3, name="other"))]
    assert offers[0].template is offers[1].template is offers[2].template
    assert offers[0].common is offers[1].common
    assert offers[0].common != offers[2].common


def test_values_of_one_kind_that_are_always_neighbours_are_one_value() -> None:
    """Each blank costs the script, so a payout's own values, and those that it shares, come in as few as can be."""
    one = plain(1)
    offer = Templates().offer(replace(one, record=replace(one.record, reference_id="r")))
    for text in (offer.template.record, offer.template.e):
        for before, piece, after in zip(text.blanks, text.pieces[1:], text.blanks[1:], strict=False):
            own, shared = VALUES <= min(before, after) < NOTHING, min(before, after) >= COMMON
            own = own and max(before, after) < NOTHING
            assert not ((own or shared) and re.fullmatch(r',"\w+":', str(piece))), piece


def test_a_text_has_a_number_of_blanks_that_the_script_can_fill() -> None:
    for count, filled_up in ((0, 0), (1, 4), (4, 4), (5, 13), (13, 13)):
        text = Text.of("x" + blank(AMOUNT) * count)
        assert (len(text.blanks), len(text.pieces)) == (filled_up, filled_up + 1)
        assert text.blanks == [AMOUNT] * count + [NOTHING] * (filled_up - count)
    with pytest.raises(ValueError, match="14 blanks"):
        Text.of(blank(AMOUNT) * 14)


def test_agents_of_different_rates_share_a_form_and_each_bears_its_own() -> None:
    templates, one, other = Templates(), plain(1), plain(2, name="other")
    other = replace(other, rate=RateAsk("other", 7, 120_000_000, False))
    offers = [templates.offer(approval) for approval in (one, other)]
    assert offers[0].template is offers[1].template
    for approval, offer in zip((one, other), offers, strict=True):
        assert written(offer.template, offer) == encoded(approval.outputs())


def test_forms_are_made_anew_where_there_would_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "TEMPLATES_MAX", 1)
    templates = Templates()
    first = templates.offer(plain(1))
    templates.offer(plain(2, url=""))
    assert templates.offer(plain(3)).template is not first.template
    assert templates.offer(plain(4)).template == first.template


def test_every_field_of_a_record_is_looked_at_by_those_who_make_forms() -> None:
    """A new one is named in `approvals.py`: what of it a template has, goes by, or has a blank for."""
    assert approvals.FITS


def test_what_an_observation_sets_is_in_no_form_unseen() -> None:
    """With a value in every field of the bank's, only what a template goes by, has a blank for, or asks for is set."""
    facts = {
        field: 7 if isinstance(getattr(observed().facts, field), int) else "x"
        for field in observed().facts.__struct_fields__
        if field != "notes"
    }
    notes = {"agent_id": "bot", "vendor_url": "x", "agent_sig": "x"}
    event = observed()
    full = fold([replace(event, facts=replace(event.facts, **facts, notes=notes))])
    assert full is not None
    bare = type(full)(payout="", account="", received_at=0)
    changed = {name for name in full.__struct_fields__ if getattr(full, name) != getattr(bare, name)}
    assert changed <= approvals.OWN | approvals.KEYED | approvals.EMPTY


def test_a_form_that_does_not_give_what_is_told_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if something else came to depend on what is the payout's own."""
    outputs = Approval.outputs

    def other(approval: Approval, fate: OfferFate = OfferFate.DONE) -> object:
        record, out = outputs(approval, fate)
        return replace(record, reason="long" if len(record.vendor_url) > 20 else ""), out

    monkeypatch.setattr(Approval, "outputs", other)
    templates = Templates()
    assert not any(templates.offer(plain(n)).values for n in range(3))
    assert "its cached template does not give the events of payout pout_0" in caplog.text


@pytest.mark.parametrize(
    "other",
    [{name: ""} for name in ("vendor_url", "fund_account", "reference_id")]
    + [
        {"utr": "u"},
        {"fees": 7},
        {"tax": 7},
        {"agent_sig": "s"},
        {"beneficiary": BeneficiarySeen(known=True)},
    ],
    ids=str,
)
def test_a_payout_that_differs_in_more_than_its_values_is_written_as_it_is(other: dict[str, Any]) -> None:
    templates, first = Templates(), plain(1)
    first = replace(first, record=replace(first.record, reference_id="r"))
    second = replace(first, record=replace(first.record, **other))
    for one in (first, second, first):
        offer = templates.offer(one)
        assert written(offer.template, offer) == encoded(one.outputs())
