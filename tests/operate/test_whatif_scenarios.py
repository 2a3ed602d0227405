"""A log that the real engine wrote, judged again under other policies: what follows from what."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from streamproc.archive.rows import Row
from streamproc.domain import events as e
from streamproc.domain.budget import US, Ask, RateAsk, Window
from streamproc.domain.policy import parse_policy_file
from streamproc.domain.whatif import fates, judge, retrial
from streamproc.domain.whatif.comparison import Comparison, Sum
from streamproc.domain.whatif.judge import Assumptions
from streamproc.domain.whatif.retrial import Retrial
from streamproc.domain.whatif.trial import DecodedEntry
from streamproc.domain.wire import read_entry
from streamproc.errors import InputError
from streamproc.log import scripts
from streamproc.log.batch import Limits
from streamproc.log.stream import LogView
from streamproc.operate.whatif import decoded_entry, overlay_of
from tests.domain.test_agent_note import BOT, FACTS, paid
from tests.engine import ZONE, Engine
from tests.profiles import policy_fields
from tests.words import ACCOUNT, NOW, Forgotten, Vendors, observed, requested

FAR = 4_000_000_000
HOUR_US = 3_600_000_000
NO_RATE = "rate_limit: {count: 0}"


async def log_of(engine: Engine) -> list[DecodedEntry]:
    async with LogView(engine.url, 0) as view:
        rows = await view.read("0-0", 100_000, 0)
    return [
        decoded_entry(Row(n, row.id, row.e, row.m), *read_entry(row.e, row.m))
        for n, row in enumerate(rows, 1)
    ]


def again(
    log: Sequence[DecodedEntry], policies: str | None, *, since_us: int = 0, **assume: Any
) -> Comparison:
    """The log judged again under a policy file, or under the policies of then."""
    overlay = None
    if policies is not None:
        overlay = overlay_of(parse_policy_file(policies, name="next.yaml"), prune=False)
    trial = Retrial(overlay, Assumptions(ZONE, **assume), since_us=since_us)
    trial.decided = frozenset(
        event.payout for entry in log for event in entry.events if isinstance(event, e.PayoutDecided)
    )
    for entry in log:
        trial.feed(entry)
    return trial.finish()


def moved(found: Comparison) -> dict[str, str]:
    """Payouts that come out otherwise in the end: 'old decision -> new decision and reason'."""
    return {
        change.payout: f"{change.old_end[0]} -> {' '.join(change.new_end)}"
        for change in found.changes
        if change.old_end != change.new_end
    }


def later(log: Sequence[DecodedEntry], by_us: int, of: Callable[[DecodedEntry], bool]) -> list[DecodedEntry]:
    """The log with the entries from the first that is `of` on, and what is said in them, as if they had come later."""
    first = next(n for n, entry in enumerate(log) if of(entry))
    return moved_to(log, [0] * first + [by_us] * (len(log) - first), with_events=True)


def moved_to(log: Sequence[DecodedEntry], by_us: Sequence[int], *, with_events: bool) -> list[DecodedEntry]:
    """The log with each entry appended so much later; causes follow, and so do the times of events if wanted."""
    names: dict[str, str] = {}
    found = []
    for entry, shift_us in zip(log, by_us, strict=True):
        ms, n = entry.id.split("-")
        names[entry.id] = f"{int(ms) + shift_us // 1000}-{n}"
        events = [replace(event, at=event.at + shift_us) if with_events else event for event in entry.events]
        found.append(replace(entry, id=names[entry.id], cause=names.get(entry.cause, ""), events=events))
    return found


def has(kind: type[e.Fact]) -> Callable[[DecodedEntry], bool]:
    return lambda entry: any(type(event) is kind for event in entry.events)


async def test_what_the_candidate_rejects_leaves_room_for_a_later_payout(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        for payout, amount in (("p1", 700), ("p2", 500), ("p3", 200)):
            await engine.deliver(observed(payout, amount))
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    found = again(log, f"policies: {{bot: {{daily_limit: 1000, per_txn_limit: 600, {NO_RATE}}}}}")
    assert moved(found) == {
        "p1": "APPROVED -> REJECTED TXN_LIMIT_EXCEEDED",
        "p2": "REJECTED -> APPROVED POLICY_OK",
    }
    assert {what: many.amount for what, many in found.assumed.items()} == {fates.PAID: 500}
    assert (found.judged.payouts, found.changed.amount) == (3, 1200)


async def test_a_candidate_with_a_profile_holds_what_is_unlike_and_one_without_keeps_that_of_then(
    redis_url: str,
) -> None:
    strict, loose = policy_fields(), policy_fields(threshold=750)
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}}}")
        for payout, amount in (("p1", 2_000), ("p2", 9_000)):
            await engine.deliver(observed(payout, amount))
        await engine.apply(f"policies: {{bot: {{{NO_RATE}, {strict}}}}}")
        for payout, amount in (("p3", 2_000), ("p4", 9_000)):
            await engine.deliver(observed(payout, amount))
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    measured = again(log, f"policies: {{bot: {{{NO_RATE}, {strict}}}}}")
    assert moved(measured) == {"p2": "APPROVED -> HELD ANOMALY_DETECTED"}
    freed = {"p4": "HELD -> APPROVED POLICY_OK"}
    assert moved(again(log, f"policies: {{bot: {{{NO_RATE}, {loose}}}}}")) == freed
    assert moved(again(log, f"policies: {{bot: {{{NO_RATE}, anomaly: false}}}}")) == freed
    assert (
        moved(again(log, f"policies: {{bot: {{{NO_RATE}, anomaly_profile: null, anomaly: true}}}}")) == freed
    )
    kept = again(log, f"policies: {{bot: {{{NO_RATE}, anomaly: true}}}}")
    assert kept.changed.payouts == 0


async def test_a_rate_slot_that_the_candidate_does_not_give_is_free_for_a_later_payout(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {rate_limit: {count: 1, window: 60}}}")
        await engine.deliver(observed("p1", 700))
        await engine.deliver(observed("p2", 200))
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    found = again(log, "policies: {bot: {per_txn_limit: 600, rate_limit: {count: 1, window: 60}}}")
    assert moved(found) == {
        "p1": "APPROVED -> REJECTED TXN_LIMIT_EXCEEDED",
        "p2": "REJECTED -> APPROVED POLICY_OK",
    }


async def test_what_a_crash_left_taken_is_taken_once_whatever_the_candidate_says(redis_url: str) -> None:
    """A worker died when the counters had admitted p1, and by the policy of the next one p1 was frozen."""
    policy = "policies: {bot: {daily_limit: 1000, rate_limit: {count: 3, window: 60}}}"
    async with Engine(redis_url) as engine:
        await engine.apply(policy)
        ask = Ask(
            "p1", 300, NOW, RateAsk("bot", 3, 60 * US, False), (Window("agent:bot", "2026-09-21", 1000, FAR),)
        )
        await scripts.admit(engine.client, engine.names, [ask], keep_budgets_s=60)
        await engine.apply(policy.replace("bot: {", "bot: {frozen: true, "))
        await engine.deliver(observed("p1", 300))
        await engine.apply(policy)
        for payout, amount in (("p2", 650), ("p3", 100), ("p4", 1)):
            await engine.deliver(observed(payout, amount))
        assert (await engine.record("p4")).reason == "RATE_LIMITED"
        log = await log_of(engine)
    same = again(log, None)
    assert (same.changed.payouts, same.counters_differ, same.skipped_numbers) == (0, [], 0)
    thawed = again(log, policy.replace("bot: {", "bot: {frozen: false, "))
    assert moved(thawed) == {
        "p1": "REJECTED -> APPROVED POLICY_OK",
        "p3": "APPROVED -> REJECTED LIMIT_EXCEEDED",
    }


@pytest.mark.parametrize(
    ("payout", "outcome", "changed"),
    [
        ("p1", "APPROVED POLICY_OK", "daily_limit: 500, rate_limit: {count: 9, window: 60}"),
        (
            "p1",
            "APPROVED POLICY_OK",
            "daily_limit: 400, rate_limit: {count: 9, window: 60}, weekly_limit: 500",
        ),
        ("p2", "REJECTED LIMIT_EXCEEDED", "daily_limit: 9000, rate_limit: {count: 9, window: 60}"),
        ("p3", "REJECTED RATE_LIMITED", "daily_limit: 1000, rate_limit: {count: 9, window: 60}"),
        ("p1", "APPROVED POLICY_OK", "daily_limit: 1000, rate_limit: {count: 0}"),
    ],
)
async def test_a_policy_that_changed_between_the_counters_answer_and_the_decision_changes_no_outcome(
    redis_url: str, payout: str, outcome: str, changed: str
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {daily_limit: 1000, rate_limit: {count: 2, window: 60}}}")
        for name, amount in (("p1", 700), ("p2", 500), ("p3", 1)):
            await engine.deliver(observed(name, amount))
        record = await engine.record(payout)
        assert f"{record.decision} {record.reason}" == outcome
        await engine.apply(f"policies: {{bot: {{{changed}}}}}")
        *log, change = await log_of(engine)
    decision = next(n for n, entry in enumerate(log) if about(entry, payout) and has(e.PayoutDecided)(entry))
    for candidate in (None, "policies: {other: {per_txn_limit: 1}}"):
        found = again([*log[:decision], change, *log[decision:]], candidate)
        assert (found.judged.payouts, found.changed.payouts) == (3, 0)


async def test_a_payout_that_failed_gives_its_room_back_under_the_candidate_too(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}}}")
        await engine.deliver(observed("p1", 800))
        await engine.deliver(observed("p1", 800, status="failed"))
        await engine.deliver(observed("p2", 800))
        await engine.deliver(observed("p2", 800, status="processed"))
        await engine.deliver(observed("p3", 300))
        await engine.deliver(observed("p2", 800, status="reversed"))
        await engine.deliver(observed("p4", 900))
        log = await log_of(engine)
    found = again(log, f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
    assert moved(found) == {"p3": "APPROVED -> REJECTED LIMIT_EXCEEDED"}


@pytest.mark.parametrize(
    ("new_holds", "outcome"),
    [("wait", "APPROVED -> HELD APPROVAL_REQUIRED"), ("approve", None)],
)
async def test_what_is_held_only_by_the_candidate_keeps_its_money_and_nobody_answers(
    redis_url: str, new_holds: str, outcome: str | None
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        await engine.deliver(observed("p2", 500))
        log = await log_of(engine)
    candidate = f"policies: {{bot: {{daily_limit: 1000, require_approval_above: 600, {NO_RATE}}}}}"
    found = again(log, candidate, new_holds=new_holds)
    assert moved(found).get("p1", "APPROVED -> APPROVED REVIEW_APPROVED") == (
        outcome or "APPROVED -> APPROVED REVIEW_APPROVED"
    )
    assert "p2" not in moved(found)
    assert found.rules[("APPROVED", "HELD")].payouts == 1
    assert [many.payouts for what, many in found.assumed.items() if what.startswith(fates.NEW_HOLD)] == [1]


async def test_reviewers_answer_as_they_did_and_are_checked_by_the_candidate(redis_url: str) -> None:
    held = f"daily_limit: 9000, require_approval_above: 100, {NO_RATE}"
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{held}}}}}\nreviewers: [asha, ravi]")
        for payout in ("p1", "p2", "p3"):
            await engine.deliver(observed(payout, 500, url="https://vendor.example.net/"))
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        await engine.review("p2", "asha", "reject", account=ACCOUNT)
        await engine.apply(f"policies: {{bot: {{{held}, blocked_domains: [vendor.example.net]}}}}")
        await engine.review("p3", "ravi", "approve", account=ACCOUNT)
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    same = again(log, f"policies: {{bot: {{{held}}}}}")
    assert moved(same) == {"p3": "REJECTED -> APPROVED REVIEW_APPROVED"}
    dual = again(log, f"policies: {{bot: {{{held}, dual_approval_above: 400}}}}")
    assert moved(dual) == {
        "p1": "APPROVED -> HELD APPROVAL_REQUIRED",
        "p3": "REJECTED -> HELD APPROVAL_REQUIRED",
    }
    without_asha = again(log, f"policies: {{bot: {{{held}}}}}\nreviewers: [ravi]")
    assert moved(without_asha) == {
        "p1": "APPROVED -> HELD APPROVAL_REQUIRED",
        "p2": "REJECTED -> HELD APPROVAL_REQUIRED",
        "p3": "REJECTED -> APPROVED REVIEW_APPROVED",
    }
    assert without_asha.assumed[fates.REFUSED].payouts == 2
    nobody_is_asked = again(log, f"policies: {{bot: {{daily_limit: 9000, {NO_RATE}}}}}")
    assert moved(nobody_is_asked) == {
        "p1": "APPROVED -> APPROVED POLICY_OK",
        "p2": "REJECTED -> APPROVED POLICY_OK",
        "p3": "REJECTED -> APPROVED POLICY_OK",
    }
    assert nobody_is_asked.assumed.keys() == {fates.PAID}


async def test_of_two_approvals_each_counts_if_its_reviewer_does(redis_url: str) -> None:
    policy = f"policies: {{bot: {{dual_approval_above: 600, {NO_RATE}}}}}\n"
    async with Engine(redis_url) as engine:
        await engine.apply(policy + "reviewers: [asha, ravi]")
        await engine.deliver(observed("p1", 700))
        for reviewer in ("asha", "ravi"):
            await engine.review("p1", reviewer, "approve", account=ACCOUNT)
        log = await log_of(engine)
    assert again(log, None).ends == {("APPROVED", "APPROVED"): Sum(1, 700)}
    for one in ("asha", "ravi"):
        alone = again(log, policy + f"reviewers: [{one}]")
        assert moved(alone) == {"p1": "APPROVED -> HELD APPROVAL_REQUIRED"}


async def test_a_click_in_slack_is_whose_the_candidate_says_the_account_is(redis_url: str) -> None:
    policy = f"policies: {{bot: {{daily_limit: 9000, require_approval_above: 100, {NO_RATE}}}}}\n"
    async with Engine(redis_url) as engine:
        await engine.apply(policy + "reviewers: {asha: {slack: U0ASHA}}")
        await engine.deliver(observed("p1", 500))
        await engine.review("p1", "slack:U0ASHA", "approve", account=ACCOUNT)
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    assert moved(again(log, policy + "reviewers: {ravi: {slack: U0ASHA}}")) == {}
    for nobody in ("{asha: {slack: U0OTHER}}", "{asha: {}}", "{}"):
        assert moved(again(log, policy + f"reviewers: {nobody}")) == {
            "p1": "APPROVED -> HELD APPROVAL_REQUIRED"
        }
    agents = "reviewers: {asha: {slack: U0ASHA}}\nagents: {bot: {owners: [asha]}}"
    assert moved(again(log, policy + agents)) == {"p1": "APPROVED -> HELD APPROVAL_REQUIRED"}


async def test_a_hold_ends_by_the_candidates_own_time_to_live(redis_url: str) -> None:
    policy = "policies: {{bot: {{require_approval_above: 100, hold_ttl: {}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy.format("2h"))
        await engine.deliver(observed("p1", 500))
        await engine.deliver(observed("p2", 500))
        expires_at = (await engine.record("p2")).hold_expires_at
        await engine.append(ACCOUNT, e.TimerFired(at=expires_at, payout="p2", timer="hold_expiry"))
        await engine.settled()
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        log = await log_of(engine)
    answered_after_an_hour = later(log, HOUR_US, has(e.ReviewSubmitted))
    assert again(answered_after_an_hour, None).changed.payouts == 0
    shorter = again(answered_after_an_hour, policy.format("30m"))
    assert moved(shorter) == {"p1": "APPROVED -> REJECTED HOLD_EXPIRED"}
    longer = again(log, policy.format("3h"))
    assert moved(longer) == {"p2": "REJECTED -> HELD APPROVAL_REQUIRED"}


async def test_a_hold_that_the_candidate_ends_early_gives_its_money_back(redis_url: str) -> None:
    policy = "policies: {{bot: {{daily_limit: 1000, require_approval_above: 600, hold_ttl: {}}}}}"
    async with Engine(redis_url) as engine:
        await engine.apply(policy.format("2h"))
        await engine.deliver(observed("p1", 700))
        await engine.deliver(observed("p2", 500))
        log = await log_of(engine)
    asked_an_hour_later = later(
        log, HOUR_US, lambda entry: any(getattr(event, "payout", "") == "p2" for event in entry.events)
    )
    found = again(asked_an_hour_later, policy.format("30m"))
    assert moved(found) == {
        "p1": "HELD -> REJECTED HOLD_EXPIRED",
        "p2": "REJECTED -> APPROVED POLICY_OK",
    }


async def outliving(engine: Engine, policy: str, *, end: str) -> list[DecodedEntry]:
    """p1 is held and ended by a reviewer's `end` at once; three hours later p2 asks for what p1 held."""
    await engine.apply(policy)
    await engine.deliver(observed("p1", 700))
    await engine.review("p1", "asha", end, account=ACCOUNT)
    await engine.deliver(observed("p2", 500))
    return later(
        await log_of(engine),
        3 * HOUR_US,
        lambda entry: any(getattr(event, "payout", "") == "p2" for event in entry.events),
    )


@pytest.mark.parametrize("end", ["approve", "reject"])
@pytest.mark.parametrize("reason", ["a second reviewer is missing", "the reviewer does not count"])
async def test_a_hold_that_outlives_its_end_expires_in_its_own_time_and_gives_its_money_back(
    redis_url: str, end: str, reason: str
) -> None:
    policy = "policies: {{bot: {{daily_limit: 1000, require_approval_above: 600, hold_ttl: 2h{}}}}}\nreviewers: [{}]"
    async with Engine(redis_url) as engine:
        log = await outliving(engine, policy.format("", "asha, ravi"), end=end)
    assert again(log, None).changed.payouts == 0
    if reason == "the reviewer does not count":
        found = again(log, policy.format("", "ravi"))
    elif end == "approve":
        found = again(log, policy.format(", dual_approval_above: 600", "asha, ravi"))
    else:
        return  # one rejection is enough
    old = "APPROVED" if end == "approve" else "REJECTED"
    assert moved(found)["p1"] == f"{old} -> REJECTED HOLD_EXPIRED"
    assert moved(found).get("p2", "room") in ("room", "REJECTED -> APPROVED POLICY_OK")
    assert "p2" in moved(found) or end == "reject", "with p1 approved then, p2 found no room"


async def test_a_hold_that_was_answered_does_not_expire_afterwards(redis_url: str) -> None:
    policy = "policies: {{bot: {{daily_limit: 1000, require_approval_above: 600, hold_ttl: {}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        log = await outliving(engine, policy.format("2h"), end="approve")
    assert moved(again(log, policy.format("1h"))) == {}


async def test_a_hold_that_the_bank_ended_does_not_expire_afterwards(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{require_approval_above: 600, hold_ttl: 2h, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        await engine.deliver(observed("p1", 700, status="cancelled"))
        await engine.deliver(observed("p2", 100))
        log = later(await log_of(engine), 3 * HOUR_US, lambda entry: about(entry, "p2"))
    assert again(log, None).ends == {("HELD", "HELD"): Sum(1, 700), ("APPROVED", "APPROVED"): Sum(1, 100)}


async def test_an_answer_that_was_in_time_counts_however_late_it_was_handled(redis_url: str) -> None:
    """The workers stood still for three hours, in which the hold of two hours ran out."""
    policy = f"policies: {{bot: {{require_approval_above: 600, hold_ttl: 2h, {NO_RATE}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy)
        await engine.deliver(observed("p1", 700))
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        await engine.deliver(observed("p2", 500))
        log = later(await log_of(engine), 3 * HOUR_US, has(e.ReviewCounted))
    handled = next(n for n, entry in enumerate(log) if has(e.ReviewCounted)(entry))
    for late in (log, [*log[:handled], *log[handled + 1 :], log[handled]]):
        assert again(late, None).changed.payouts == 0
    assert again(log, policy).ends[("APPROVED", "APPROVED")].payouts == 2


async def test_a_hold_that_outlives_its_windows_is_not_forgotten(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrial, "FORGET_EVERY", 1)
    policy = "policies: {{bot: {{require_approval_above: {}, hold_ttl: 7d, {}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy.format(600, NO_RATE))
        start = engine.producer.now_us()
        await engine.deliver(observed("p1", 700, at=start))
        await engine.deliver(observed("p2", 500, at=start))
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        await engine.deliver(observed("p3", 500, at=start))
        await engine.deliver(observed("p4", 500, at=start))
        log = await log_of(engine)
    days = {"p2": 3, "p3": 8, "p4": 11}
    shifts, shift = [], 0
    for entry in log:
        day = (
            5
            if has(e.ReviewSubmitted)(entry)
            else max((days.get(p, 0) for p in days if about(entry, p)), default=0)
        )
        shift = max(shift, day * 24 * HOUR_US)
        shifts.append(shift)
    spread = moved_to(log, shifts, with_events=True)
    assert again(spread, None).ends == {("APPROVED", "APPROVED"): Sum(4, 2200)}
    assert moved(again(spread, policy.format(400, NO_RATE))) == {
        "p2": "APPROVED -> REJECTED HOLD_EXPIRED",
        "p3": "APPROVED -> HELD APPROVAL_REQUIRED",
        "p4": "APPROVED -> HELD APPROVAL_REQUIRED",
    }


async def test_what_was_frozen_while_it_was_held_is_not_approved_by_an_answer_here_either(
    redis_url: str,
) -> None:
    policy = "policies: {{bot: {{require_approval_above: {}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy.format(600))
        await engine.deliver(observed("p1", 700))
        await engine.freeze("agent:bot")
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        log = await log_of(engine)
    for candidate in (None, policy.format(100)):
        found = again(log, candidate)
        assert (found.changes, found.ends.keys()) == ([], {("REJECTED", "REJECTED")})


async def test_what_came_of_payouts_from_before_all_that_is_read_is_passed_over(redis_url: str) -> None:
    """As where a hold, or a payout that is stopped, is older than the month that is read before `since`."""
    policy = f"policies: {{bot: {{dual_approval_above: 600, {NO_RATE}}}}}\nreviewers: [asha, ravi]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy)
        await engine.deliver(observed("held", 700), observed("expired", 700), observed("stopped", 100))
        begin = len(await log_of(engine))
        await engine.review("held", "asha", "approve", account=ACCOUNT)
        await engine.review("held", "ravi", "approve", account=ACCOUNT)
        expires_at = (await engine.record("expired")).hold_expires_at
        await engine.append(ACCOUNT, e.TimerFired(at=expires_at, payout="expired", timer="hold_expiry"))
        await engine.append(ACCOUNT, stopped_by_a_freeze(engine, "stopped"))
        await engine.settled()
        await engine.deliver(observed("new", 100))
        log = await log_of(engine)
    trial = Retrial(None, Assumptions(ZONE), first_number=None)
    for entry in [one for one in log[:begin] if has(e.PolicyChanged)(one)] + log[begin:]:
        trial.feed(entry)
    found = trial.finish()
    assert (found.judged.payouts, found.changed.payouts, dict(found.unjudged)) == (1, 0, {})


async def test_what_is_held_only_by_the_candidate_expires_in_its_time(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}, other: {{{NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        await engine.deliver(observed("p0", 700, agent="other"))
        await engine.deliver(observed("p2", 500))
        log = await log_of(engine)
    asked_later = later(
        log, 3 * HOUR_US, lambda entry: any(getattr(event, "payout", "") == "p2" for event in entry.events)
    )
    held = f"require_approval_above: 600, {NO_RATE}"
    candidate = (
        f"policies: {{bot: {{daily_limit: 1000, hold_ttl: 2h, {held}}}, other: {{hold_ttl: 4h, {held}}}}}"
    )
    assert moved(again(asked_later, candidate)) == {
        "p0": "APPROVED -> HELD APPROVAL_REQUIRED",
        "p1": "APPROVED -> REJECTED HOLD_EXPIRED",
        "p2": "REJECTED -> APPROVED POLICY_OK",
    }


async def test_what_was_decided_before_since_stays_as_it_was_and_keeps_its_room(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        since_us = engine.producer.now_us()
        await engine.deliver(observed("p2", 500))
        await engine.deliver(observed("p3", 300))
        log = await log_of(engine)
    assert again(log, None, since_us=since_us).changed.payouts == 0
    found = again(
        log, f"policies: {{bot: {{daily_limit: 900, per_txn_limit: 600, {NO_RATE}}}}}", since_us=since_us
    )
    assert moved(found) == {"p3": "APPROVED -> REJECTED LIMIT_EXCEEDED"}
    assert found.judged.payouts == 2


async def test_a_freeze_of_then_stays_unless_the_file_speaks_of_it(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {per_txn_limit: 100, frozen: true}}")
        await engine.deliver(observed("p1", 90))
        log = await log_of(engine)
    assert moved(again(log, "policies: {bot: {per_txn_limit: 100}}")) == {}
    thawed = again(log, "policies: {bot: {per_txn_limit: 100, frozen: false}}")
    assert moved(thawed) == {"p1": "REJECTED -> APPROVED POLICY_OK"}


async def test_a_reputation_that_was_never_asked_for_is_another_payouts_or_assumed(redis_url: str) -> None:
    async with Engine(redis_url, vendors=Vendors({"malware": "threat"})) as engine:
        await engine.apply(f"policies: {{bot: {{per_txn_limit: 100, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 100, url="https://malware.example.net/"))
        await engine.deliver(observed("p2", 101, url="https://malware.example.net/"))
        await engine.deliver(observed("p3", 101, url="https://never.example.net/"))
        log = await log_of(engine)
    candidate = f"policies: {{bot: {{{NO_RATE}}}}}"
    clean = again(log, candidate)
    assert {change.payout: change.new_end[1] for change in clean.changes} == {
        "p2": "RISK_HIGH",
        "p3": "POLICY_OK",
    }
    assert clean.assumed[judge.SAME_VENDOR].payouts == 1
    assert clean.assumed[f"{judge.UNKNOWN_VENDOR}: taken as clean"].payouts == 1
    careful = again(log, candidate, unknown_reputation="unavailable")
    assert moved(careful)["p3"] == "REJECTED -> HELD REPUTATION_UNAVAILABLE"


async def test_an_approval_without_a_reputation_is_no_approval_under_a_candidate_that_does_not_reject(
    redis_url: str,
) -> None:
    vendors = Forgotten()
    policy = f"require_approval_above: 100, {NO_RATE}"
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(f"policies: {{bot: {{{policy}}}}}\nreviewers: [asha]")
        await engine.deliver(observed("p1", 500, url="https://vendor.example.net/"))
        vendors.verdicts["vendor"] = "unavailable"
        await engine.apply(f"policies: {{bot: {{{policy}, per_txn_limit: 400}}}}")
        await engine.review("p1", "asha", "approve", account=ACCOUNT)
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    found = again(log, f"policies: {{bot: {{{policy}}}}}")
    assert moved(found) == {"p1": "REJECTED -> HELD APPROVAL_REQUIRED"}
    assert found.assumed[fates.REFUSED].payouts == 1


async def test_scopes_that_the_file_does_not_name_follow_their_own_history(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}, other: {{per_txn_limit: 100, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 200, agent="other"))
        await engine.apply(f"policies: {{other: {{per_txn_limit: 300, {NO_RATE}}}}}")
        await engine.deliver(observed("p2", 200, agent="other"))
        await engine.deliver(observed("p3", 200), observed("p4", 200, agent="stranger"))
        log = await log_of(engine)
    found = again(log, f"policies: {{bot: {{per_txn_limit: 50, {NO_RATE}}}}}")
    assert moved(found) == {"p3": "APPROVED -> REJECTED TXN_LIMIT_EXCEEDED"}
    assert moved(again(log, "policies: {stranger: {}}")) == {"p4": "REJECTED -> APPROVED POLICY_OK"}


async def test_limits_that_the_file_does_not_name_follow_theirs(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        for payout, limit in (("p1", 1000), ("p2", 300)):
            await engine.apply(f"policies: {{bot: {{daily_limit: {limit}, {NO_RATE}}}}}")
            await engine.deliver(observed(payout, 200))
        log = await log_of(engine)
    found = again(log, f"accounts: {{{ACCOUNT}: {{daily_limit: 9000}}}}")
    assert (moved(found), found.rules[("REJECTED", "REJECTED")].payouts) == ({}, 1)


async def test_counters_of_which_the_log_says_otherwise_are_named_under_the_policies_of_then(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {daily_limit: 1000, rate_limit: {count: 9, window: 60}}}")
        for payout in ("p1", "p2", "p3"):
            await engine.deliver(observed(payout, 100))
        log = await log_of(engine)

    def other(event: e.Event) -> e.Event:
        if isinstance(event, e.VelocityChecked) and event.payout == "p2":
            return replace(event, used=0)
        if isinstance(event, e.BudgetReserved) and event.payout == "p3":
            return replace(event, windows=[replace(window, reserved=100) for window in event.windows])
        return event

    assert again(log, None).counters_differ == []
    log = [replace(entry, events=[other(event) for event in entry.events]) for entry in log]
    assert again(log, None).counters_differ == ["p2", "p3"]
    assert again(log, "policies: {other: {per_txn_limit: 1}}").counters_differ == []


async def test_a_file_that_could_not_have_been_applied_then_is_refused(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {per_txn_limit: 100}}")
        await engine.deliver(observed("p1", 90))
        await engine.apply("teams: {desk: {}}")
        since_us = engine.producer.now_us()
        await engine.deliver(observed("p2", 90))
        log = await log_of(engine)
    with pytest.raises(InputError, match="there is no text 'desk' under teams"):
        again(log, "policies: {bot: {team: desk}}")
    assert again(log, "policies: {bot: {team: desk}}", since_us=since_us).judged.payouts == 1


async def test_what_a_decision_was_made_on_is_asked_for_where_it_was_not_kept(redis_url: str) -> None:
    """And nothing else is: an answer to a hold and a stop were not made on what the bank showed."""
    policy = f"policies: {{bot: {{require_approval_above: 600, {NO_RATE}}}}}\nreviewers: [asha]"
    async with Engine(redis_url) as engine:
        await engine.apply(policy)
        await engine.deliver(observed("held", 700))
        await engine.review("held", "asha", "approve", account=ACCOUNT)
        await engine.deliver(observed("stopped", 100))
        await engine.append(ACCOUNT, stopped_by_a_freeze(engine, "stopped"))
        await engine.settled()
        log = await log_of(engine)
    seen = {entry.id: event for entry in log for event in entry.events if isinstance(event, e.PayoutObserved)}
    trial, asked = Retrial(None, Assumptions(ZONE)), []
    for entry in (entry for entry in log if entry.id not in seen):
        if trial.misses(entry):
            asked.append(entry.cause)
            trial.remember(entry.cause, seen[entry.cause])
            assert not trial.misses(entry)
        trial.feed(entry)
    found = trial.finish()
    assert asked == list(seen)
    assert (found.judged.payouts, found.changed.payouts, dict(found.unjudged)) == (2, 0, {})


async def test_of_too_many_observations_the_oldest_are_not_kept(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrial, "OBSERVED_MAX", 10)
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        log = await log_of(engine)
    trial = Retrial(None, Assumptions(ZONE))
    for entry in log[:-1]:
        trial.feed(entry)
    for n in range(9):
        trial.remember(f"1-{n}", observed(f"other_{n}"))
    assert not trial.misses(log[-1])
    trial.remember("1-9", observed("other_9"))
    assert trial.misses(log[-1])


async def test_what_an_agent_asked_for_is_judged_like_what_the_bank_showed(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}}}")
        asked = requested(500)
        await engine.append(ACCOUNT, asked)
        await engine.settled()
        log = await log_of(engine)
    assert again(log, None).judged.payouts == 1
    found = again(log, f"policies: {{bot: {{per_txn_limit: 400, {NO_RATE}}}}}")
    assert moved(found) == {asked.payout: "APPROVED -> REJECTED TXN_LIMIT_EXCEEDED"}


async def test_a_decision_on_what_is_not_in_the_archive_is_named_and_not_judged(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}}}}}")
        await engine.deliver(observed("p1", 700))
        since_us = engine.producer.now_us()
        await engine.deliver(observed("p2", 500))
        log = [entry for entry in await log_of(engine) if not has(e.PayoutObserved)(entry)]
    for begin_us, left_out in ((0, Sum(2, 1200)), (since_us, Sum(1, 500))):
        found = again(log, None, since_us=begin_us)
        assert (found.judged.payouts, found.unjudged) == (0, {retrial.NOT_FOUND: left_out})


async def test_money_that_moved_without_a_decision_is_charged_and_given_back_as_it_was_and_not_judged(
    redis_url: str,
) -> None:
    """Its worker died when the counters had admitted it, and somebody let it go at the bank."""
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        window = Window("agent:bot", "2026-09-21", 1000, FAR)
        ask = Ask("p1", 900, NOW, None, (window,))
        await scripts.admit(engine.client, engine.names, [ask], keep_budgets_s=60)
        await engine.deliver(observed("p1", 900, status="processing"))
        await engine.deliver(observed("p2", 900))
        assert (await engine.record("p2")).decision == "REJECTED"
        await engine.deliver(observed("p1", 900, status="failed"))
        await engine.deliver(observed("p3", 900))
        assert (await engine.record("p3")).decision == "APPROVED"
        log = await log_of(engine)
    same = again(log, None)
    assert (same.judged.payouts, same.changed.payouts, same.counters_differ) == (2, 0, [])
    assert again(log, None, since_us=FAR * US).unjudged == {}
    found = again(log, "policies: {bot: {per_txn_limit: 1}}")
    assert found.unjudged[retrial.MOVED].payouts == 1
    assert found.judged.payouts == 2


@pytest.mark.parametrize("windows", [None, (Window("agent:bot", "2026-09-21", 1000, FAR),)])
@pytest.mark.parametrize("status", ["processing", "cancelled"])
@pytest.mark.parametrize("pending_first", [True, False])
async def test_a_slot_of_what_ended_without_a_decision_counts_once_for_those_that_follow(
    redis_url: str, windows: tuple[Window, ...] | None, status: str, pending_first: bool
) -> None:
    """The worker that looked at it died when it had a slot, and perhaps room. Whoever saw it move, or end unpaid, knew
    of that, or had looked at it before."""
    async with Engine(redis_url, claim_idle_s=0.1) as engine:
        await engine.apply("policies: {bot: {daily_limit: 1000, rate_limit: {count: 2, window: 60}}}")
        moved_on = observed("p1", 300, status=status)
        if not pending_first:
            await engine.deliver(moved_on)
        await engine.stop()
        await engine.append(ACCOUNT, observed("p1", 300))
        await engine.client.xreadgroup("governance", "died", {engine.names.log: ">"})
        ask = Ask("p1", 300, NOW, RateAsk("bot", 2, 60 * US, False), windows)
        await scripts.admit(engine.client, engine.names, [ask], keep_budgets_s=60)
        if pending_first:
            await engine.append(ACCOUNT, moved_on)
        engine.start()
        await engine.settled()
        await engine.deliver(observed("p2", 100), observed("p3", 100))
        assert [(await engine.record(p)).reason for p in ("p2", "p3")] == ["POLICY_OK", "RATE_LIMITED"]
        log = await log_of(engine)
    same = again(log, None)
    assert (same.changed.payouts, same.counters_differ, same.skipped_numbers) == (0, [], 0)


async def test_room_that_was_given_before_the_policy_had_a_rate_is_judged_with_the_slot_asked_for_later(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        ask = Ask("p2", 300, NOW, None, (Window("agent:bot", "2026-09-21", 1000, FAR),))
        await scripts.admit(engine.client, engine.names, [ask], keep_budgets_s=60)  # and its worker died
        rate = "rate_limit: {count: 1, window: 60}, on_rate_limit: hold"
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {rate}}}}}")
        for payout in ("p1", "p2", "p3"):
            await engine.deliver(observed(payout, 300))
        assert (await engine.record("p2")).reason == "RATE_LIMITED"
        log = await log_of(engine)
    same = again(log, None)
    assert (same.judged.payouts, same.changed.payouts, same.counters_differ) == (3, 0, [])


async def test_slots_that_the_log_has_twice_count_once_each(redis_url: str) -> None:
    """Whoever saw both payouts move recorded their slots, and so did those who took over from the worker that died."""
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {rate_limit: {count: 3, window: 60}}}")
        await engine.stop()
        await engine.append(ACCOUNT, observed("p1", 300))
        await engine.append(ACCOUNT, observed("p2", 300))
        await engine.client.xreadgroup("governance", "died", {engine.names.log: ">"})
        asks = [Ask(payout, 300, NOW, RateAsk("bot", 3, 60 * US, False)) for payout in ("p1", "p2")]
        await scripts.admit(engine.client, engine.names, asks, keep_budgets_s=60)
        for payout in ("p1", "p2"):
            await engine.append(ACCOUNT, observed(payout, 300, status="processing"))
        engine.start()
        for payout in ("p1", "p2"):
            await engine.until_state(payout, "bypassed")
        await engine.stop()
        engine.limits = Limits(claim_idle_s=0.1)
        engine.start()
        await engine.settled()
        await engine.deliver(observed("p3", 100), observed("p4", 100))
        log = await log_of(engine)
    slots = [event.number for entry in log for event in entry.events if isinstance(event, e.VelocityChecked)]
    assert slots[:4] == [1, 2, 1, 2]
    same = again(log, None)
    assert (same.judged.payouts, same.changed.payouts, same.counters_differ) == (2, 0, [])


async def test_what_was_rejected_and_moved_all_the_same_is_judged_and_not_left_out(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{per_txn_limit: 100, {NO_RATE}}}}}")
        await engine.deliver(observed("p1", 900))
        await engine.deliver(observed("p1", 900, status="processing"))
        log = await log_of(engine)
    assert any(isinstance(event, e.GovernanceBypassed) for entry in log for event in entry.events)
    found = again(log, None)
    assert (found.judged.payouts, dict(found.unjudged)) == (1, {})


async def test_forgetting_what_is_long_over_changes_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrial, "FORGET_EVERY", 1)
    day_us = 24 * HOUR_US
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        start = engine.producer.now_us()
        for day in range(8):
            for n in range(3):
                await engine.deliver(observed(f"p{day}_{n}", 400, at=start + day * day_us))
        await engine.deliver(observed("p0_0", 400, status="processed", at=start + 8 * day_us))
        log = await log_of(engine)
    shifts, shift = [], 0
    for entry in log:
        seen = next((event.at for event in entry.events if type(event) is e.PayoutObserved), None)
        shift = shift if seen is None else (seen - start) // day_us * day_us
        shifts.append(shift)
    spread = moved_to(log, shifts, with_events=False)  # each day's entries were appended on that day
    trial = Retrial(None, Assumptions(ZONE))
    for entry in spread:
        trial.feed(entry)
    assert len(trial._fates._open) < 3 * 4  # of 16 that hold money
    assert len(trial._judge._counters.budgets) < 4
    found = trial.finish()
    assert (found.judged.payouts, found.changed.payouts, found.counters_differing) == (24, 0, 0)


async def test_a_candidate_for_beneficiaries_is_judged_by_what_was_known_then(redis_url: str) -> None:
    candidate = "policies: {bot: {new_beneficiary: hold, changed_beneficiary: hold, " + NO_RATE + "}}"
    shop, other = "https://shop.example/", "https://other.example/"
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{{NO_RATE}, blocked_domains: [evil.example]}}}}")
        await engine.deliver(observed("new", 100, url=shop))
        await engine.deliver(observed("known", 100, url=shop))
        await engine.deliver(observed("changed", 100, url=other))
        await engine.deliver(observed("blocked", 100, url="https://evil.example/", fund_account="fa_2"))
        log = await log_of(engine)
    assert again(log, None).assumed == {}
    found = again(log, candidate.replace(NO_RATE, f"{NO_RATE}, blocked_domains: []"))
    assert moved(found) == {
        "new": "APPROVED -> HELD BENEFICIARY_NEW",
        "changed": "APPROVED -> HELD BENEFICIARY_CHANGED",
        "blocked": "REJECTED -> APPROVED POLICY_OK",
    }
    assert found.assumed[judge.KNOWN_THEN].payouts == 3
    # It was rejected before anybody looked.
    assert found.assumed[judge.UNKNOWN_BENEFICIARY].payouts == 1


def stopped_by_a_freeze(engine: Engine, payout: str) -> e.PayoutStopped:
    finding = e.Finding(stage="screening", code="FROZEN", outcome="REJECTED")
    return e.PayoutStopped(
        at=engine.producer.now_us(),
        payout=payout,
        command="approve",
        finding=finding,
        maybe_sent=False,
        caused_by="",
    )


async def test_an_approved_payout_that_was_stopped_came_to_a_rejection_and_gives_its_money_back_here_too(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        await engine.deliver(observed("stopped", 800))
        await engine.append(ACCOUNT, stopped_by_a_freeze(engine, "stopped"))
        await engine.settled()
        await engine.deliver(observed("next", 900))
        log = await log_of(engine)
        assert (await engine.record("next")).decision == "APPROVED"
    found = again(log, None)
    assert (found.changes, found.counters_differing, found.assumed, found.unjudged) == ([], 0, {}, {})
    assert (found.judged.payouts, found.ends[("REJECTED", "REJECTED")].payouts) == (2, 1)
    assert moved(again(log, "policies: {bot: {per_txn_limit: 700, daily_limit: 1000}}")) == {
        "stopped": "REJECTED -> REJECTED TXN_LIMIT_EXCEEDED",
        "next": "APPROVED -> REJECTED TXN_LIMIT_EXCEEDED",
    }


async def test_a_signature_of_then_is_checked_again_with_the_keys_of_the_candidate(redis_url: str) -> None:
    notes = BOT["agent_notes"](**FACTS)
    policies = f"{{bot: {{require_verified_identity: true, {NO_RATE}}}}}"
    keys = f'agents: {{bot: {{public_keys: ["{BOT["public_key"]}"]}}}}'
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {policies}\n{keys}")
        await engine.deliver(paid(notes))
        assert (await engine.record("pout_1")).identity == "verified"
        log = await log_of(engine)
    assert moved(again(log, None)) == {}
    assert moved(again(log, "agents: {}")) == {"pout_1": "APPROVED -> HELD IDENTITY_UNVERIFIED"}


async def test_what_waits_for_a_number_that_was_lost_finds_the_windows_of_its_day_however_late_it_is_judged(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p2 was asked about and never decided: its worker died. Two days later p3 still waits for p2's number."""
    monkeypatch.setattr(retrial, "FORGET_EVERY", 1)
    async with Engine(redis_url) as engine:
        await engine.apply(f"policies: {{bot: {{daily_limit: 1000, {NO_RATE}}}}}")
        for payout, amount in (("p1", 400), ("p2", 700), ("p3", 500), ("p4", 200)):
            await engine.deliver(observed(payout, amount))
        log = await log_of(engine)
    told_of_day = NOW + HOUR_US - int(log[0].id.partition("-")[0]) * 1_000
    shifts = [told_of_day + (50 * HOUR_US if about(entry, "p4") else 0) for entry in log]
    kept = [
        entry
        for entry in moved_to(log, shifts, with_events=False)
        if not (has(e.PayoutDecided)(entry) and about(entry, "p2"))
    ]
    found = again(kept, None)
    assert (found.judged.payouts, found.changed.payouts, found.counters_differ) == (3, 0, [])
    assert found.skipped_numbers == 1


def about(entry: DecodedEntry, payout: str) -> bool:
    return any(getattr(event, "payout", "") == payout for event in entry.events)
