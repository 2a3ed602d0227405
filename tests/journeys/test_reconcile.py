"""`reconcile` finds what neither webhook nor poller told, says so once, and mends nothing but its own ignorance.

There is no poller here and webhooks are dropped at will, so that there is something to find.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamproc.archive.read import payout_known
from streamproc.clients.razorpay import Razorpay
from streamproc.domain import events as e
from streamproc.domain.events import BankPayout
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import JobFailed, TryAgain
from streamproc.ingress.translate import append_of
from streamproc.log.stream import Producer
from streamproc.operate import reconcile as reconciling
from streamproc.operate.bank import opened_bank
from streamproc.operate.reconcile import Reconciled, reconcile
from streamproc.settings import Settings, load
from tests.bank import until
from tests.journeys.conftest import POLICIES
from tests.journeys.system import ACCOUNT, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTES = {"agent_id": "bot"}
FRUGAL = "  frugal: {daily_limit: 100_000_000, require_approval_above: 100_000, count_fees: true}"
GHOST = "pout_Ghost000000001"


async def run(system: System) -> Reconciled:
    await system.settled()
    return await reconcile(load(system.env), since_s=3_600, grace_s=0)


async def found(system: System, payout: str) -> list[tuple[str, str, str]]:
    done = await run(system)
    return [(m.kind, m.ours, m.theirs) for m in done.mismatches if m.payout == payout]


async def test_payouts_of_another_account_in_the_partition_are_left_to_that_accounts_own_run(
    system: System,
) -> None:
    """Its list has them. The key of this account may not see them: each would be a mismatch, and each cost a call."""
    theirs = BankPayout(
        id="pout_Another0000001", amount=1_000, currency="INR", status="processed", notes={"agent_id": "bot"}
    )
    await all_webhooks_are_in(system)
    before = await run(system)
    async with Producer(system.redis_url, partitions=1, name="test") as producer:
        await producer.append(
            append_of(theirs, account="acc_Another0000001", source="webhook", now_us=producer.now_us())
        )
    await system.reaches(theirs.id, "bypassed")
    done = await run(system)
    assert theirs.id not in {mismatch.payout for mismatch in done.mismatches}
    assert done.fetched == before.fetched


async def test_where_all_agree_nothing_is_found_and_the_run_is_in_the_log(system: System) -> None:
    made = await system.bank.pay(250_000, notes=NOTES)
    await system.reaches(made["id"], "processed")
    await all_webhooks_are_in(system)
    done = await run(system)
    assert ([m for m in done.mismatches if m.payout != GHOST], done.left, done.appended) == ([], [], 0)
    assert done.listed >= 1
    assert done.windows >= 1
    last = [event for event in await system.events() if isinstance(event, e.ReconcileDone)][-1]
    assert (last.mismatches, last.listed, last.windows) == (len(done.mismatches), done.listed, done.windows)


async def test_a_payout_that_nobody_told_us_of_is_found_and_governed(system: System) -> None:
    await system.bank.faults(webhooks=[{"kind": "drop"}])
    made = await system.bank.pay(250_000, notes=NOTES)
    assert await found(system, made["id"]) == [("unknown_here", "", "pending, 250000 paise")]
    await system.bank.faults(webhooks=[])
    record = await system.reaches(made["id"], "confirmed", "processed")
    assert record.decision == "APPROVED"
    await system.bank.reaches(made["id"], "processed")
    await run(system)  # its own webhooks may have been dropped: that is news once more
    assert await found(system, made["id"]) == []


async def test_a_payout_that_is_archived_but_not_in_the_views_yet_ends_no_run(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one that no worker has handled yet, for a moment: a run over a busy system failed by that."""
    asked: list[str] = []

    async def behind_at_first(pool: Any, payout: str) -> PayoutRecord | None:
        asked.append(payout)
        if asked.count(payout) == 1:
            raise TryAgain("the view payouts does not show all that is archived of it")
        return await payout_known(pool, payout)

    await system.bank.faults(webhooks=[{"kind": "drop"}])
    made = await system.bank.pay(250_000, notes=NOTES)
    monkeypatch.setattr(reconciling, "payout_known", behind_at_first)
    assert [kind for kind, _, _ in await found(system, made["id"])] == ["unknown_here"]
    assert asked.count(made["id"]) > 1
    monkeypatch.setattr(reconciling, "VIEWS_S", 0.0)
    monkeypatch.setattr(reconciling, "payout_known", always_behind)
    made = await system.bank.pay(250_000, notes=NOTES)
    with pytest.raises(JobFailed, match=f"{made['id']} is not in Redis, and the archive does not tell"):
        await run(system)
    await system.bank.faults(webhooks=[])


async def always_behind(_pool: Any, _payout: str) -> PayoutRecord | None:
    raise TryAgain("it stands still")


async def test_one_that_paid_itself_unseen_is_a_bypass(system: System) -> None:
    await system.bank.faults(webhooks=[{"kind": "drop"}])
    made = await system.bank.pay(250_000, status="processing", notes=NOTES)
    await system.bank.reaches(made["id"], "processed")
    assert [kind for kind, _, _ in await found(system, made["id"])] == ["unknown_here"]
    await system.bank.faults(webhooks=[])
    await system.reaches(made["id"], "bypassed")


async def test_a_held_payout_that_somebody_cancelled_at_the_bank_gives_its_budget_back_once(
    system: System,
) -> None:
    made = await system.bank.pay(800_000, notes={"agent_id": "careful"})
    await system.reaches(made["id"], "held")
    await system.bank.advance(made["id"], "cancelled")  # the bank has no event for it
    assert await found(system, made["id"]) == [("behind", "pending", "cancelled")]
    await system.reaches(made["id"], "cancelled")
    await system.settled()
    record = await system.view(made["id"])
    assert record is not None
    assert record.reservation is not None
    assert record.reservation.state == "released"
    assert await found(system, made["id"]) == []
    story = await system.story(made["id"])
    assert sum(isinstance(event, e.PayoutSettled) for event in story) == 1
    assert sum(isinstance(event, e.PayoutDecided) for event in story) == 1
    code, out, _ = await system.cli("explain", made["id"])
    assert code == 0
    assert "MISMATCH behind: we had pending, the bank shows cancelled" in out


async def test_a_utr_whose_webhook_was_lost_is_found_once_and_the_late_webhook_adds_nothing(
    system: System,
) -> None:
    await system.bank.faults(webhooks=[{"kind": "drop", "events": "payout.updated"}])
    made = await system.bank.pay(250_000, mode="NEFT", notes=NOTES)
    await system.reaches(made["id"], "processed")
    utr = await the_banks_utr(system, made["id"])
    (mismatch,) = await found(system, made["id"])
    assert mismatch[0] == "behind"
    assert mismatch[1].startswith("processed, UTR none, fees ")
    assert mismatch[2] == mismatch[1].replace("UTR none", f"UTR {utr}")
    await system.settled()
    record = await system.view(made["id"])
    assert record is not None
    assert (record.utr, record.state) == (utr, "processed")
    assert await found(system, made["id"]) == []

    story = await sightings(system, made["id"])
    assert [event.bank_event for event in story if event.source == "fetch"][-1] == "payout.updated"
    await an_update_is_delivered(system, made["id"])
    assert await sightings(system, made["id"]) == story


async def test_fees_whose_webhook_was_lost_count_in_the_budget_that_wants_them_and_once(
    system: System,
) -> None:
    """The bank may say `processed` before it names the fees (ADR 19). Ours names them at once, so that word is made."""
    await system.apply(POLICIES.replace("policies:", f"policies:\n{FRUGAL}"))
    made = await system.bank.pay(250_000, notes={"agent_id": "frugal"})
    await system.reaches(made["id"], "held")
    await system.bank.faults(webhooks=[{"kind": "drop"}])
    await system.bank.advance(made["id"], "processing")  # somebody approved it at the bank
    shown = await system.bank.reaches(made["id"], "processed")
    assert shown["fees"] > 0
    without = BankPayout(
        id=made["id"], amount=250_000, currency="INR", status="processed", notes={"agent_id": "frugal"}
    )
    async with Producer(system.redis_url, partitions=1, name="test") as producer:
        await producer.append(append_of(without, account=ACCOUNT, source="webhook", now_us=producer.now_us()))
    await system.reaches(made["id"], "bypassed")
    await system.settled()
    assert await charged(system, "frugal") == 250_000

    assert [kind for kind, _, _ in await found(system, made["id"])] == ["behind"]
    await system.settled()
    assert await charged(system, "frugal") == 250_000 + shown["fees"]
    assert await found(system, made["id"]) == []
    await an_update_is_delivered(system, made["id"])
    assert await charged(system, "frugal") == 250_000 + shown["fees"]
    settled = [event.fees for event in await system.story(made["id"]) if isinstance(event, e.PayoutSettled)]
    assert settled == [0, shown["fees"]]


async def charged(system: System, agent: str) -> int:
    """Paise committed in an agent's daily window."""
    (key,) = [
        key async for key in system.redis.scan_iter(match=f"{system.names.base}:budget:agent:{agent}:*")
    ]
    return int(await system.redis.hget(key, "c") or 0)


async def the_banks_utr(system: System, payout: str) -> str:
    async def named() -> str:
        return (await system.bank.payout(payout))["utr"] or ""

    return await until(named, what="the bank names the UTR")


async def sightings(system: System, payout: str) -> list[e.PayoutObserved]:
    return [event for event in await system.story(payout) if isinstance(event, e.PayoutObserved)]


async def an_update_is_delivered(system: System, payout: str) -> None:
    """The bank says once more how the payout stands, and we answer 2xx."""
    await system.bank.faults(webhooks=[])
    await system.bank.advance(payout, "processed")

    async def delivered() -> bool:
        told = await system.bank.deliveries(payout=payout, event="payout.updated", state="delivered")
        return bool(told)

    await until(delivered, what="payout.updated was delivered")
    await system.settled()


async def test_a_payout_that_the_bank_does_not_know_is_named_once_however_often_it_is_found(
    system: System,
) -> None:
    await the_ghost_is_here(system)
    for _ in range(2):
        (mismatch,) = await found(system, GHOST)
        assert mismatch[:2] == ("unknown_at_bank", "processing")
    story = await system.story(GHOST)
    assert sum(isinstance(event, e.ReconcileMismatch) for event in story) == 1


async def the_ghost_is_here(system: System) -> None:
    """It stays for all tests that come after, and is appended only once."""
    ghost = BankPayout(id=GHOST, amount=1_000, currency="INR", status="processing")
    async with Producer(system.redis_url, partitions=1, name="test") as producer:
        await producer.append(append_of(ghost, account=ACCOUNT, source="webhook", now_us=producer.now_us()))
    await system.reaches(GHOST, "received", "bypassed")


async def a_counter(system: System) -> bytes:
    """The key of a counter to which a payout was charged."""
    made = await system.bank.pay(250_000, notes=NOTES)
    await system.reaches(made["id"], "processed")
    await system.settled()
    (key, *_) = [key async for key in system.redis.scan_iter(match=f"{system.names.base}:budget:agent:bot:*")]
    return bytes(key)


async def test_a_counter_that_differs_from_its_fold_is_an_alarm_and_is_left_as_it_is(system: System) -> None:
    key = await a_counter(system)
    await system.redis.hincrby(key, "r", 5_000)
    try:
        (mismatch,) = [m for m in (await run(system)).mismatches if m.kind == "budget"]
        assert mismatch.subject.startswith("agent:bot ")
        assert int(mismatch.ours.split()[0]) == int(mismatch.theirs.split()[0]) + 5_000
        assert int(await system.redis.hget(key, "r") or 0) == int(mismatch.ours.split()[0])
    finally:
        await system.redis.hincrby(key, "r", -5_000)
    assert [m for m in (await run(system)).mismatches if m.kind == "budget"] == []


async def test_a_counter_that_is_gone_is_an_alarm_too(system: System) -> None:
    """Its limit would begin anew."""
    key = await a_counter(system)
    kept = await system.redis.dump(key)
    assert kept is not None
    await system.redis.delete(key)
    try:
        (mismatch,) = [m for m in (await run(system)).mismatches if m.kind == "budget"]
        assert mismatch.ours == "0 reserved, 0 committed"
        assert mismatch.theirs != mismatch.ours
    finally:
        await system.redis.restore(key, 0, kept)


async def test_the_banks_own_fees_are_no_bypass_and_charged_to_nobody(system: System) -> None:
    first = await system.bank.pay(11_800, status="processing", vendor={"name": "Fee Collection"})
    await system.reaches(first["id"], "bypassed")  # until the policy says where fees go
    await system.apply(
        f"{POLICIES}\naccounts: {{{ACCOUNT}: {{fee_fund_accounts: [{first['fund_account_id']}]}}}}"
    )
    fee = await system.bank.pay(11_800, status="processing", fund_account_id=first["fund_account_id"])
    await system.reaches(fee["id"], "processed")
    await system.settled()
    record = await system.view(fee["id"])
    assert record is not None
    assert (record.bank_fee, record.bypassed, record.reservation) == (True, False, None)
    story = await system.story(fee["id"])
    assert sum(isinstance(event, e.BankFeeRecorded) for event in story) == 1
    other = await system.bank.pay(11_800, status="processing", vendor={"name": "Not The Bank"})
    await system.reaches(other["id"], "bypassed")


async def test_a_list_that_cannot_be_read_is_a_failure_and_not_agreement(system: System) -> None:
    await system.bank.faults(api=[{"kind": "429", "retry_after": 60}])
    with pytest.raises(JobFailed, match="could not be read to its end"):
        await run(system)
    await system.bank.faults(api=[])


async def test_a_bank_that_goes_away_after_its_list_is_not_asked_about_every_payout(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be tried for minutes, and a period may have a million."""
    asked: list[str] = []

    async def fetch(payout: str) -> BankPayout:
        asked.append(payout)
        raise TryAgain("the bank is away", after_s=0)

    @asynccontextmanager
    async def only_its_list(settings: Settings) -> AsyncIterator[Razorpay]:
        async with opened_bank(settings) as bank:
            monkeypatch.setattr(bank, "fetch", fetch)
            yield bank

    await system.bank.faults(webhooks=[{"kind": "drop"}])
    for _ in range(3):
        await system.bank.pay(250_000, notes=NOTES)
    await system.bank.faults(webhooks=[])
    monkeypatch.setattr(reconciling, "opened_bank", only_its_list)
    monkeypatch.setattr(reconciling, "FETCHES_AT_ONCE", 1)
    done = await run(system)
    assert asked == asked[:1] * reconciling.TRIES_MAX
    assert done.left[0] == f"payout {asked[0]} could not be fetched: the bank is away"
    assert re.fullmatch(r"[2-9] more payouts were not fetched", done.left[1])


async def test_the_command_says_what_it_found_and_exits_1(system: System) -> None:
    code, _, err = await system.cli("reconcile", "--since", "week")
    assert (code, "--since 'week' is no time: ISO 8601, or a time ago such as" in err) == (2, True)
    code, _, err = await system.cli("reconcile", "--since", "10000d")
    assert (code, "it is 60 s to 90 days" in err) == (2, True)
    code, _, err = await system.cli("reconcile", "--since", "2099-01-01")
    assert (code, "it is 60 s to 90 days" in err) == (2, True)
    await the_ghost_is_here(system)
    await all_webhooks_are_in(system)
    code, out, err = await system.cli("reconcile", "--since", "1h")
    assert code == 1
    assert "unknown_at_bank" in out
    assert "1 mismatches" in err
    began = datetime.now(UTC) - timedelta(hours=1)
    code, out, _ = await system.cli("reconcile", "--since", began.isoformat(), "--json")
    assert code == 1
    done = json.loads(out)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", done[at]) for at in ("since", "until"))
    since = datetime.fromisoformat(done["since"])
    assert abs(since - began) < timedelta(seconds=60)
    assert since < datetime.fromisoformat(done["until"])


async def all_webhooks_are_in(system: System) -> None:
    """Nothing is left to find of what other tests kept from us, but the ghost."""

    async def nothing_else() -> bool:
        return [m.payout for m in (await run(system)).mismatches if m.payout != GHOST] == []

    await until(nothing_else, what="all webhooks are in")
