"""What the views of holds, policies, agents and vendors say of a story; cutting it anywhere changes nothing."""

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import holds, policies, vendors
from projections.fold import Step, decode, steps_of
from projections.heads import open_heads
from projections.runner import Runner, catch_up
from projections.schema import prepare
from projections.tally import Tally, tallies
from projections.views import NAMES
from streamproc.domain import events as e
from tests.projections.histories import (
    ListedLog,
    Stored,
    decided,
    everything,
    fetch,
    history,
    log_of,
    project_all,
    reserved,
    rows_of,
    settled,
)
from tests.words import ACCOUNT, NOW, observed
from tests.words import policies as changes_of

SEEN = observed("pout_1", 500, url="https://Shop.example/x")
HELD = decided("pout_1", 500, "HELD", "APPROVAL_REQUIRED")


def steps(*batches: list[e.Event]) -> list[Step]:
    return steps_of(0, [decode(0, row) for row in rows_of(log_of(*batches))], {})


def counted(by: str, needed: int = 0) -> e.ReviewCounted:
    return e.ReviewCounted(
        at=NOW + 5, payout="pout_1", by=by, action="approve", why="known", channel="cli", needed=needed
    )


def final(decision: e.Decision, reason: str, by: str = "", at: int = NOW + 6) -> e.PayoutDecided:
    return e.PayoutDecided(
        at=at,
        payout="pout_1",
        account=ACCOUNT,
        agent="bot",
        amount=500,
        decision=decision,
        reason=reason,
        reasons=[reason],
        findings=[],
        policy_version=1,
        bank_status="pending",
        by=by,
    )


# ---- holds ----


def hold_after(*batches: list[e.Event]) -> tuple[object, ...]:
    hold = holds.holds_of(steps([SEEN], [HELD], *batches))["pout_1"]
    return (hold.state, hold.decided_at, hold.decided_by, hold.approvals)


def test_a_hold_is_open_until_somebody_decides_it():
    assert hold_after() == ("open", None, "", 0)
    assert hold_after([counted("asha", needed=1)]) == ("open", None, "", 1)


@pytest.mark.parametrize(
    ("decision", "reason", "by", "state"),
    [
        ("APPROVED", "REVIEW_APPROVED", "asha", "approved"),
        ("REJECTED", "REVIEW_REJECTED", "asha", "rejected"),
        ("REJECTED", "DOMAIN_BLOCKED", "asha", "rejected"),
        ("REJECTED", "HOLD_EXPIRED", "", "expired"),
    ],
)
def test_a_hold_ends_as_it_was_decided_and_by_whom(decision: e.Decision, reason: str, by: str, state: str):
    assert hold_after([final(decision, reason, by)]) == (state, NOW + 6, by, 0)


def test_a_hold_is_over_when_the_bank_ends_the_payout_before_anybody_decides():
    gone = observed("pout_1", 500, status="cancelled", at=NOW + 7)
    assert hold_after([gone]) == ("over", NOW + 7, "", 0)
    later = observed("pout_1", 500, status="reversed", at=NOW + 9)
    assert hold_after([gone], [later]) == ("over", NOW + 7, "", 0)


def test_a_payout_that_was_never_held_has_no_hold():
    assert holds.holds_of(steps([SEEN], [decided("pout_1", 500)])) == {}


async def test_a_hold_keeps_who_ended_it_when_more_is_seen_of_the_payout_later(prepared: str):
    log = ListedLog(log_of([SEEN], [HELD], [final("APPROVED", "REVIEW_APPROVED", "asha")]))
    await project_all(prepared, log, batch_max=1)
    log.entries = log_of(
        [SEEN],
        [HELD],
        [final("APPROVED", "REVIEW_APPROVED", "asha")],
        [observed("pout_1", 500, status="processed", at=NOW + 9)],
    )
    await project_all(prepared, log, batch_max=1)
    assert await fetch(prepared, "SELECT payout, state, decided_by, reasons, amount FROM holds") == [
        ("pout_1", "approved", "asha", ["APPROVAL_REQUIRED"], 500)
    ]


# ---- policies ----


async def test_every_version_of_a_policy_is_a_row_with_who_and_why(prepared: str):
    made = changes_of("policies: {bot: {daily_limit: 5}}")
    await project_all(prepared, ListedLog(log_of(list(made))))
    assert await fetch(
        prepared, "SELECT scope, version, by_whom, why, before, after->>'daily_limit', seq FROM policies"
    ) == [("agent:bot", 1, "test", "test", None, "5", 1)]


def test_fields_that_postgres_cannot_hold_are_kept_without_the_byte_it_refuses():
    change = e.PolicyChanged(
        at=NOW,
        scope="agent:a\0",
        version=1,
        before=None,
        after={"k": "\\\0"},
        effective=None,
        by="x",
        why="\0",
    )
    row = dict(zip(policies.COLUMNS, policies.versions(steps([change]))[0], strict=True))
    assert row["scope"] == "agent:a\ufffd"
    assert row["why"] == "\ufffd"
    assert row["after"] == '{"k":"\\\\\\ufffd"}'


# ---- agents and vendors ----


def test_an_agents_row_counts_what_it_asked_and_what_came_of_it():
    reservation = reserved("pout_1", 500)
    story = [
        [SEEN],
        [reservation, decided("pout_1", 500)],
        [observed("pout_1", 500, status="processed", at=NOW + 9)],
        [settled(reservation, "committed")],
        [observed("pout_2", 70, at=NOW + 20)],
        [decided("pout_2", 70, "REJECTED", "RISK_HIGH")],
    ]
    assert tallies(steps(*story), lambda record: record.agent) == {
        "bot": Tally(
            payouts=2,
            amount=570,
            approved=1,
            approved_amount=500,
            rejected=1,
            processed_amount=500,
            threats=1,
            first_at=NOW,
            last_at=NOW + 20,
        )
    }


def test_money_that_came_back_is_no_longer_processed():
    reservation = reserved("pout_1", 500)
    story = [[SEEN], [reservation], [settled(reservation, "committed")], [settled(reservation, "released")]]
    assert tallies(steps(*story), lambda record: record.agent)["bot"].processed_amount == 0
    story = [[SEEN], [reservation], [settled(reservation, "released")]]
    assert tallies(steps(*story), lambda record: record.agent)["bot"].processed_amount == 0


def test_a_vendor_is_the_host_or_the_fund_account_or_nobody():
    story = [
        [SEEN],
        [observed("pout_2", 1, url="not a url", fund_account="fa_2")],
        [observed("pout_3", 1, fund_account="")],
    ]
    assert set(tallies(steps(*story), vendors._vendor)) == {"shop.example", "fa_2"}


async def test_names_that_are_one_when_cut_for_the_index_are_one_row(prepared: str):
    log = ListedLog(log_of([observed("p1", 1, agent="x" * 600)], [observed("p2", 2, agent="x" * 700)]))
    await project_all(prepared, log)
    assert await fetch(prepared, "SELECT payouts, amount::text FROM agents") == [(2, "3")]


# ---- cutting a history anywhere changes nothing ----


@given(seed=st.integers(0, 2**32), payouts_n=st.integers(1, 6), at=st.floats(0, 1))
def test_the_sums_of_two_parts_are_the_sums_of_the_whole(seed: int, payouts_n: int, at: float):
    log = [decode(0, row) for row in rows_of(history(seed, payouts_n))]
    whole = steps_of(0, log, {})
    cut = int(at * len(whole))
    for name_of in (lambda record: record.agent, vendors._vendor):
        parts = [tallies(part, name_of) for part in (whole[:cut], whole[cut:])]
        for name, tally in tallies(whole, name_of).items():
            here = [part[name] for part in parts if name in part]
            assert sum(part.amount for part in here) == tally.amount
            assert sum(part.approved for part in here) == tally.approved
            assert max(part.last_at for part in here) == tally.last_at
            assert min(part.first_at for part in here) == tally.first_at


@pytest.mark.parametrize("batch_max", [1, 2, 5])
async def test_every_view_is_the_same_whatever_the_batches(postgres: str, batch_max: int):
    await prepare(postgres)
    log: list[Stored] = history(seed=21, payouts=40)
    await project_all(postgres, ListedLog(log))
    at_once = await everything(postgres)
    for table in (*NAMES, "view_heads"):
        await fetch(postgres, f"DROP TABLE {table}")
    await prepare(postgres)
    place, source = await asyncpg.connect(postgres), await asyncpg.connect(postgres)
    try:
        runner = Runner(place, 0, await open_heads(place, 0))
        await catch_up(runner, source, 0, len(log), batch_max=batch_max)
    finally:
        await place.close()
        await source.close()
    assert await everything(postgres) == at_once
