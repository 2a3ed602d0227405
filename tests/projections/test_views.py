"""What the folds say, without a database."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import audit, budgets, payouts
from projections.fold import Step, decode, steps_of
from streamproc.archive.text import KEY_CHARS_MAX
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy_events import ScopeChange
from streamproc.domain.wire import EVENT_KINDS
from streamproc.errors import LogBroken
from tests.projections.histories import (
    Stored,
    budgets_by_state,
    decided,
    history,
    log_of,
    reserved,
    rows_of,
    settled,
)
from tests.words import ACCOUNT, NOW, observed

HELD = reserved("pout_1", 500)
SEEN = observed(amount=500)
KEY = ("agent:bot", "2026-11-30")


def steps(*batches: list[e.Event], m: bytes = b'{"by":"governance"}') -> list[Step]:
    return steps_of(0, [decode(0, row) for row in rows_of(log_of(*batches, m=m))], {})


def changes(found: Sequence[Step]) -> dict[budgets.Key, budgets.WindowChange]:
    view = budgets.Charged()
    view.add(found)
    return view.found


def latest(found: Sequence[Step]) -> dict[str, PayoutRecord]:
    view = payouts.Changed()
    view.add(found)
    return {payout: last.record for payout, last in view.last.items()}


def use_after(*events: e.Event) -> tuple[int, int]:
    use = changes(steps([SEEN], *[[event] for event in events]))[KEY]
    return use.reserved, use.committed


# ---- budgets ----


def test_a_reservation_is_reserved_and_a_commit_moves_it_and_a_release_frees_it():
    assert use_after(HELD) == (500, 0)
    assert use_after(HELD, settled(HELD, "committed")) == (0, 500)
    assert use_after(HELD, settled(HELD, "released")) == (0, 0)


def test_a_reversal_after_the_commit_lowers_what_was_committed():
    assert use_after(HELD, settled(HELD, "committed"), settled(HELD, "released")) == (0, 0)


@pytest.mark.parametrize("again", ["committed", "released"])
def test_what_was_released_cannot_be_settled_again(again: str):
    with pytest.raises(LogBroken, match=r"pout_1 is .*, but its reservation was already released"):
        use_after(HELD, settled(HELD, "released"), settled(HELD, again))


def test_the_limit_is_the_one_that_the_last_reservation_saw():
    found = changes(steps([SEEN], [reserved("pout_1", 1, limit=5)], [reserved("pout_1", 1, limit=None)]))
    assert found[KEY].limit_paise is None


@given(seed=st.integers(0, 2**32), payouts_n=st.integers(1, 8), cut=st.floats(0, 1))
def test_at_any_prefix_the_budgets_are_what_the_payouts_hold(seed: int, payouts_n: int, cut: float):
    log = history(seed, payouts_n)
    found = steps_of(0, [decode(0, row) for row in rows_of(log[: int(cut * len(log)) + 1])], {})
    records = list(latest(found).values())
    uses = {key: (use.reserved, use.committed) for key, use in changes(found).items()}
    assert uses == budgets_by_state(records)


@given(seed=st.integers(0, 2**32), payouts_n=st.integers(1, 6), at=st.floats(0, 1))
def test_folding_in_two_parts_is_folding_at_once(seed: int, payouts_n: int, at: float):
    log = [decode(0, row) for row in rows_of(history(seed, payouts_n))]
    cut = int(at * len(log))
    whole = steps_of(0, log, {})
    first = steps_of(0, log[:cut], {})
    second = steps_of(0, log[cut:], latest(first))
    assert first + second == whole
    assert audit.lines(first) + audit.lines(second) == audit.lines(whole)


def test_of_a_payout_that_waits_to_be_written_only_its_latest_record_is_kept():
    """What else its steps hold is freed while the processor has it at hand, not at the end of thousands of rows."""
    found = steps([SEEN], [HELD], [settled(HELD, "committed")])
    held = [each for step in found for each in (step, step.event, step.before) if each is not None]
    before = [sys.getrefcount(each) for each in held]
    waiting = payouts.Changed()
    waiting.add(found)
    assert waiting.last["pout_1"].record is found[-1].after
    assert [sys.getrefcount(each) for each in held] == before


# ---- audit ----


def kinds(*events: e.Event) -> list[tuple[object, ...]]:
    rows = [
        dict(zip(audit.COLUMNS, line, strict=True)) for line in audit.lines(steps(*[[x] for x in events]))
    ]
    return [(row["kind"], row["decision"], row["reason"], row["actor"]) for row in rows]


def test_each_decision_review_command_confirmation_settlement_policy_and_alert_is_a_line():
    review = e.ReviewCounted(
        at=NOW, payout="pout_1", by="asha", action="approve", why="known", channel="cli", needed=0
    )
    refused = e.ReviewRefused(
        at=NOW, payout="pout_1", by="bob", action="approve", channel="cli", problem="not a reviewer"
    )
    command = e.BankCommandAnswered(
        at=NOW, payout="pout_1", command="approve", outcome="done", bank_status="processing"
    )
    policy = e.PolicyChanged(
        at=NOW, scope="agent:bot", version=1, before=None, after={}, effective={}, by="ann", why="first"
    )
    bypass = e.GovernanceBypassed(
        at=NOW, payout="pout_1", account=ACCOUNT, agent="bot", amount=500, status="processing"
    )
    assert kinds(
        SEEN, HELD, decided("pout_1", 500, "HELD", "APPROVAL_REQUIRED"), review, refused, command,
        observed(amount=500, status="processed"), settled(HELD, "committed"), policy, bypass,
    ) == [
        ("decision", "HELD", "APPROVAL_REQUIRED", "governance"),
        ("review", None, "approve by cli: known", "asha"),
        ("review", None, "approve by cli refused: not a reviewer", "bob"),
        ("command", None, "approve: done", "governance"),
        ("confirmation", None, "processed", "webhook"),
        ("settlement", None, "committed", "governance"),
        ("policy", None, "agent:bot added, version 1: first", "ann"),
        ("alert", None, "governance bypassed: processing", "governance"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("channel", "via", "line"),
    [
        ("cli:root@host", "", "approve by cli:root@host: known"),
        ("api:asha-laptop", "", "approve by api:asha-laptop: known"),
        ("slack", "slack:U0ASHA", "approve by slack:U0ASHA: known"),
    ],
)
def test_the_line_of_a_review_says_by_which_shell_token_or_account_it_came(channel: str, via: str, line: str):
    review = e.ReviewCounted(
        at=NOW, payout="pout_1", by="asha", via=via, action="approve", why="known", channel=channel, needed=0
    )
    assert kinds(SEEN, review) == [("review", None, line, "asha")]


SHELL = "cli:root@host"
TOKEN: dict[str, Any] = {
    "at": NOW, "name": "laptop", "scope": "approver", "digest": "d", "expires_at": 0, "by": "ann", "reviewer": "asha"
}  # fmt: skip
LETTER: dict[str, Any] = {
    "at": NOW, "payout": "", "group": "g", "entry": "1-1", "letter": "0:1-1", "action": "discard", "by": "ann",
    "why": "a test",
}  # fmt: skip
ENTRY: dict[str, Any] = {"at": NOW, "entry": "1-1", "digest": "d", "by": "ann", "why": "a test"}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (e.TokenCreated(**TOKEN, channel=SHELL), f"token laptop created: approver of asha by {SHELL}"),
        (e.TokenCreated(**TOKEN), "token laptop created: approver of asha"),
        (e.TokenRevoked(at=NOW, name="laptop", by="ann", channel=SHELL), f"token laptop revoked by {SHELL}"),
        (e.DeadLetterClosed(**LETTER, channel=SHELL), f"dead letter 0:1-1: discard by {SHELL}: a test"),
        (e.DeadLetterClosed(**LETTER), "dead letter 0:1-1: discard: a test"),
        (e.EntryDisowned(**ENTRY, channel=SHELL), f"entry 1-1 disowned by {SHELL}: a test"),
        (e.EntryDisowned(**ENTRY), "entry 1-1 disowned: a test"),
    ],
)
def test_the_line_of_what_an_operator_did_says_by_which_shell_where_that_is_known(event: Any, line: str):
    assert [(reason, actor) for _, _, reason, actor in kinds(event)] == [(line, "ann")]


FROZEN = {"frozen": True, "by": "ann", "why": "it loops"}


@pytest.mark.parametrize(
    ("scope", "version", "before", "after", "more", "line"),
    [
        ("freeze:agent:bot", 1, None, FROZEN, {}, "freeze:agent:bot added, version 1: why"),
        ("freeze:agent:bot", 2, FROZEN, None, {}, "freeze:agent:bot removed, version 2: why"),
        ("account:acc_1", 3, {}, {"daily_limit": 5}, {}, "account:acc_1 changed, version 3: why"),
        ("team:red", 1, None, {}, {}, "team:red added, version 1: why"),
        ("defaults", 2, {}, {"daily_limit": 5}, {}, "defaults changed, version 2: why"),
        ("reviewers", 3, {}, {"asha": {}}, {"why": ""}, "reviewers changed, version 3"),
        (
            "agent:bot", 2, {}, {"daily_limit": 5}, {"confirmed_by": "vikram", "proposal": "prop_1"},
            "agent:bot changed, version 2, confirmed by vikram (prop_1): why",
        ),
        (
            "agent:bot", 2, {}, None, {"confirmed_by": "vikram", "why": ""},
            "agent:bot removed, version 2, confirmed by vikram",
        ),
        (
            "freeze:agent:bot", 2, FROZEN, None, {"channel": "cli:root@host"},
            "freeze:agent:bot removed, version 2 by cli:root@host: why",
        ),
        (
            "agent:bot", 2, {}, {"daily_limit": 5},
            {"channel": "api:ann-laptop", "confirmed_by": "vikram", "confirmed_channel": "api:vikram"},
            "agent:bot changed, version 2 by api:ann-laptop, confirmed by vikram (api:vikram): why",
        ),
    ],
)  # fmt: skip
def test_the_line_of_a_policys_change_says_its_scope_what_became_of_it_who_confirmed_it_and_why(
    scope: str, version: int, before: Any, after: Any, more: dict[str, str], line: str
):
    change = e.PolicyChanged(
        at=NOW, scope=scope, version=version, before=before, after=after, effective=after, by="ann",
        **{"why": "why", **more},
    )  # fmt: skip
    assert kinds(change) == [("policy", None, line, "ann")]


def test_the_lines_of_a_proposal_name_the_scopes_that_it_changes_the_first_of_many():
    changes = [ScopeChange(scope=f"agent:bot{n}", before=None, after={}) for n in range(7)]
    proposed = e.PolicyProposed(
        at=NOW,
        proposal="prop_1",
        changes=changes,
        loosens=[],
        by="ann",
        why="season",
        channel="cli:ann@laptop",
        expires_at=NOW,
    )
    confirmed = e.ProposalConfirmed(
        at=NOW,
        proposal="prop_1",
        by="vikram",
        channel="api:vikram-phone",
        base=[{"defaults": 1}, {"defaults": 1, "agent:bot": 0}],
    )
    withdrawn = e.ProposalWithdrawn(at=NOW, proposal="prop_1", by="ann", why="late", channel="cli:ann@laptop")
    assert kinds(proposed, confirmed, withdrawn) == [
        (
            "policy", None,
            "proposed prop_1 of agent:bot0, agent:bot1, agent:bot2, agent:bot3, agent:bot4 and 2 more"
            " by cli:ann@laptop: season",
            "ann",
        ),
        ("policy", None, "confirmed prop_1 of agent:bot, defaults by api:vikram-phone", "vikram"),
        ("policy", None, "withdrawn prop_1 by cli:ann@laptop: late", "ann"),
    ]  # fmt: skip


def test_a_line_about_a_payout_has_the_id_of_its_trace_and_others_have_none():
    policy = e.PolicyChanged(
        at=NOW, scope="agent:bot", version=1, before=None, after={}, effective={}, by="ann", why="first"
    )
    rows = audit.lines(steps([SEEN], [decided("pout_1", 500, "HELD", "OUTSIDE_HOURS")], [policy]))
    named = [dict(zip(audit.COLUMNS, row, strict=True)) for row in rows]
    assert [(row["payout"], row["trace_id"]) for row in named] == [
        ("pout_1", hashlib.sha256(b"streamproc/trace/v1:pout_1").hexdigest()[:32]),
        (None, None),
    ]


def test_the_same_status_seen_again_or_late_is_no_confirmation():
    assert kinds(SEEN, observed(amount=500), observed(amount=500, status="processed"), SEEN) == [
        ("confirmation", None, "processed", "webhook")
    ]


def test_every_kind_of_event_has_its_place_in_the_audit_or_is_silent_by_name():
    spoken = {
        e.PayoutObserved, e.PayoutMalformed, e.PolicyChanged, e.PayoutDecided, e.ReviewCounted, e.ReviewRefused,
        e.TokenCreated, e.TokenRevoked, e.PolicyProposed, e.ProposalConfirmed, e.ProposalWithdrawn,
        e.GovernanceBypassed, e.BankCommandAnswered, e.PayoutSettled, e.EntrySetAside,
        e.DeadLetterClosed, e.CancelRequested, e.PayoutStopped, e.BankFeeRecorded, e.ReconcileMismatch,
        e.AccessRefused, e.NotificationFailed, e.EntryDisowned,
    }  # fmt: skip
    assert spoken | set(audit.SILENT) == set(EVENT_KINDS)
    assert not spoken & set(audit.SILENT)


def test_an_event_that_nobody_placed_stops_the_audit():
    class Unplaced(e.Fact, frozen=True, kw_only=True, tag="unplaced"):
        pass

    step = Step(0, 1, "1-1", 0, "", "", Unplaced(at=1), None, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Unplaced"):
        audit.lines([step])


# ---- steps ----


def test_an_event_of_a_payout_that_was_never_observed_breaks_the_log_by_name():
    with pytest.raises(LogBroken, match=r"event 0:\d+-0:0: .*pout_1"):
        steps([decided("pout_1", 1)])


def test_an_unknown_event_breaks_the_log_by_entry_and_type():
    with pytest.raises(LogBroken, match=r"entry 3:5-1: .*payout\.teleported"):
        decode(3, rows_of([Stored("5-1", b'[{"type":"payout.teleported","v":1,"at":1}]')])[0])


@pytest.mark.parametrize(("events", "meta"), [(b"nonsense", b"{}"), (b"[]", b"nonsense")])
def test_bytes_that_are_no_entry_break_the_log_by_entry(events: bytes, meta: bytes):
    with pytest.raises(LogBroken, match="entry 0:5-1"):
        decode(0, rows_of([Stored("5-1", events, meta)])[0])


def test_an_entry_about_two_payouts_breaks_the_log():
    with pytest.raises(LogBroken, match="several payouts"):
        steps([observed("pout_1"), observed("pout_2")])


def test_the_actor_is_the_person_where_the_commit_names_one():
    assert steps([SEEN], m=b'{"by":"policy","actor":"ann","settled":12}')[0].by == "ann"


def test_a_long_or_odd_payout_id_is_cut_and_cleaned_for_the_index():
    odd = "\0" + "x" * 2 * KEY_CHARS_MAX
    assert steps([observed(odd)])[0].payout == "\ufffd" + "x" * (KEY_CHARS_MAX - 1)


def test_random_lives_reach_every_settlement():
    found = {
        event.settlement
        for row in rows_of(history(seed=7, payouts=60))
        for event in decode(0, row).events
        if isinstance(event, e.PayoutSettled)
    }
    assert found == {"committed", "released"}
