"""Creates an approved intent at the bank: once, whatever calls or answers are lost.

The bank keeps an idempotency key for seven days: the same key and bytes give the same payout. So the key is made of the
decision's event id, and the bytes of what the log holds, both of which never change. Before a second attempt the bank's
list is searched for the reference. A payout found there counts as ours only if its fund account proves it; for an
inline beneficiary only a call under the same key can tell. After CREATE_WITHIN_S the bank may have forgotten the key,
so nothing is sent any more.
"""

from collections.abc import Sequence
from hashlib import sha256
from time import monotonic

import msgspec

from consumers.attempt import (
    Attempt,
    CommandAnswer,
    Debit,
    Found,
    Said,
    record_answer,
    record_sighting,
    sending,
)
from consumers.verdicts import stopped
from streamproc.domain.copies import copy_of
from streamproc.domain.events import BankPayout, CommandOutcome
from streamproc.domain.intent import Beneficiary, without_personal
from streamproc.domain.ours import could_be
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.states import MOVED_STATUSES, RELEASING_STATUSES
from streamproc.errors import TryAgain, Unprocessable
from streamproc.log.cursor import Requested
from streamproc.log.work import Work

CREATE_WITHIN_S = 6 * 86_400
"""Counted from the decision. The bank keeps a key for 7 days; one day is left for clocks and calls under way."""
AHEAD_S_MAX = 86_400
"""That day. If Redis's clock was further ahead at the decision, CREATE_WITHIN_S from then on ends too late."""
LOST_FOR_GOOD_S = 3_600
"""A payout may appear this long after a call whose answer was lost: the bank advises to look for it for up to an
hour."""
REFUSED = "refused:"
"""Begins the name, followed by the decision's event id, under which Redis keeps since when (µs) each attempt was
refused. If it loses that, the bank is asked for longer."""
KEPT_BY = ":by"
"""Ends the name under which it keeps which server it was then."""
LOOKED_FOR = "lost:"
"""The same, of since when (µs) an attempt is looked for where the clock went back to before its intent was stopped."""
SINCE_KEPT_S = 2 * LOST_FOR_GOOD_S
"""For how long Redis keeps either; the bank is asked again much sooner."""
LOOK_AGAIN_S = 5.0
"""Least time between two looks for it; the interval grows."""
DECIDED_AT_ONCE_S = 2.0
"""An intent that was decided later than this after its request, or by a clock that is so far behind the request's, may
have been decided and paid before, by entries that were lost together with Postgres's newest ones: then the bank is
searched before a first attempt too."""
OLDER_S = 5
"""What is older than the decision by more than this was not made by it. A restored Postgres and a recovery take longer.
Ages are compared, each by the clock that gave the time, since the bank's and ours may differ."""
UNREADABLE_AFTER_S = 5.0
"""Delay before a call is repeated whose answer could not be read."""
NOT_SET_AFTER_S = 60.0
"""Delay while a setting is missing: a person must act, and the payout must not be lost."""


async def create(attempt: Attempt) -> BankPayout | None:
    """Make sure that the intent is at the bank, and record it. Returns the payout there; None where the bank refused
    it, or it was frozen, which is recorded too.

    Raises Unprocessable where a person must look, and TryAgain where the bank must be asked again.
    """
    work, ctx, bank, debit = attempt.work, attempt.ctx, attempt.bank, attempt.debit
    record = work.known()
    if record.failure:
        return None
    _check_debit(record, debit)
    found: Sequence[BankPayout] = ()
    if work.maybe_sent or record.copies or await _may_be_second(attempt):
        answered = await bank.find(debit.number, record.payout)
        found = answered.payouts
        if (mine := _ours(record, found)) is not None:
            return _bind(attempt, mine, "already")
        _refuse_doubtful(attempt, answered)
    _refuse_forgotten(work, found, (ctx.now_us - attempt.decided_at) / 1_000_000)
    refused_since = await _take_refused_since(attempt) if work.maybe_sent else ctx.now_us
    if await stopped(work, "create", attempt.caused_by, ctx):
        for payout in found:
            # An attempt of ours may have made it. Once that is recorded, governance has it rejected.
            if _pays_the_same(record, payout):
                record_sighting(attempt, payout)
        return None
    try:
        with sending(work):
            answer = await bank.create(order_bytes(record, debit.number), key_of(attempt.caused_by))
    except TryAgain as problem:
        if not problem.may_be_done:
            await _keep_refused_since(attempt, refused_since)
        raise
    if answer.outcome == "done":
        return _bind(attempt, _checked(record, answer), "done", answer.http_status)
    work.sent = False  # it was refused: nothing of it is under way
    return await _refused(attempt, answer, refused_since)


async def look_for_lost(attempt: Attempt) -> None:
    """Search the bank for an attempt whose answer was lost before its intent was stopped.

    A live payout that pays the same is taken for it and recorded, and governance has it rejected. One that ended unpaid
    may be somebody else's: ours may still turn up beside it. If none is found within LOST_FOR_GOOD_S it is not there,
    which is recorded and frees the reserved money. Raises TryAgain until then.
    """
    work, debit = attempt.work, attempt.debit
    record = work.known()
    _check_debit(record, debit)
    found = (await attempt.bank.find(debit.number, record.payout)).payouts
    over = {copy.id for copy in record.copies if copy.bypassed}  # made around us
    over |= {payout.id for payout in found if payout.status in RELEASING_STATUSES}
    if live := [payout for payout in found if payout.id not in over and _pays_the_same(record, payout)]:
        for payout in live:
            record_sighting(attempt, payout)
        oldest = min(live, key=lambda payout: (payout.created_at, payout.id))
        take_for_ours(attempt, oldest.id, oldest.status)
        return
    _wait_for_lost(
        attempt, await _looked_for_since(attempt), "was stopped after an attempt whose answer is lost"
    )
    record_answer(attempt, "create", "not_needed", "")


async def _looked_for_since(attempt: Attempt) -> int:
    """When (µs) the intent was stopped. If that is still to come, since the clock went back: when it was first looked
    for since. Else the bank would be asked every few seconds until the clock is there again."""
    now_us, cache = attempt.ctx.now_us, attempt.ctx.cache
    if attempt.decided_at <= now_us:
        return attempt.decided_at
    name = LOOKED_FOR + attempt.caused_by
    [kept] = await cache.get_many([name])
    since = min(int(kept), now_us) if kept else now_us
    await cache.put_many({name: (str(since).encode(), SINCE_KEPT_S)})
    return since


def _wait_for_lost(attempt: Attempt, since: int, why: str) -> None:
    """Raise TryAgain while a payout may still turn up that an attempt before `since` (µs) made."""
    waited_s = (attempt.ctx.now_us - since) / 1_000_000
    if waited_s < LOST_FOR_GOOD_S:
        raise TryAgain(
            f"intent {attempt.work.payout} {why}; it is looked for at the bank for {LOST_FOR_GOOD_S // 60} minutes, and"
            " keeps its money meanwhile",
            after_s=max(LOOK_AGAIN_S, waited_s / 4),
        )


def take_for_ours(attempt: Attempt, payout: str, status: str) -> None:
    """Record that a payout at the bank is the lost attempt of a stopped intent: it stays so, however it ends."""
    record_answer(attempt, "create", "already", status, bank_payout=payout)


def _check_debit(record: PayoutRecord, debit: Debit) -> None:
    """Refuse to pay from one account what was governed as another one's money."""
    if not debit.number:
        raise TryAgain(
            "this worker creates no payouts: set STREAMPROC_RAZORPAY_ACCOUNT_NUMBER for it",
            after_s=NOT_SET_AFTER_S,
        )
    if debit.account and record.account != debit.account:
        raise Unprocessable(
            f"ALARM: intent {record.payout} is of account {record.account}, and this installation pays from"
            f" {debit.account}, so it is not created. Its token names the wrong account: revoke it"
        )


def key_of(caused_by: str) -> str:
    """The idempotency key (`X-Payout-Idempotency`), by the decision's event id: 35 of at most 36 characters."""
    return f"sp-{sha256(caused_by.encode()).hexdigest()[:32]}"


def order_bytes(record: PayoutRecord, debit: str) -> bytes:
    """The body of the call. The bank compares it, so the same record must give the same bytes, in later releases
    too."""
    intent = record.intent
    assert intent is not None
    order: dict[str, object] = {"account_number": debit}
    if intent.beneficiary is None:
        order["fund_account_id"] = intent.fund_account_id
    order |= {"amount": record.amount, "currency": record.currency, "mode": intent.mode}
    order |= {"purpose": intent.purpose, "queue_if_low_balance": False, "reference_id": record.payout}
    if intent.narration:
        order["narration"] = intent.narration
    if intent.notes:
        order["notes"] = intent.notes
    if intent.beneficiary is not None:
        order["fund_account"] = _fund_account(intent.beneficiary)
    return msgspec.json.encode(order)


def _fund_account(payee: Beneficiary) -> dict[str, object]:
    if payee.account_type == "vpa":
        details: dict[str, str] = {"address": payee.vpa}
    else:
        details = {"name": payee.name, "ifsc": payee.ifsc, "account_number": payee.account_number}
    contact = {"name": payee.contact_name, "type": payee.contact_type}
    contact |= {"email": payee.email, "contact": payee.phone}
    return {
        "account_type": payee.account_type,
        payee.account_type: details,
        "contact": {name: value for name, value in contact.items() if value},
    }


def _ours(record: PayoutRecord, found: Sequence[BankPayout]) -> BankPayout | None:
    """The oldest of `found` that pays the same to the same fund account: whoever made it, it is what was asked for.

    Not one that ended without paying: if it was ours, the bank names it again when it is called under the same key.
    """
    if not record.fund_account:
        return None
    same = [
        p
        for p in found
        if p.status not in RELEASING_STATUSES
        and _pays_the_same(record, p)
        and p.fund_account_id == record.fund_account
    ]
    return min(same, key=lambda payout: (payout.created_at, payout.id), default=None)


def _pays_the_same(record: PayoutRecord, payout: BankPayout) -> bool:
    return could_be(record, copy_of(payout))


def _refuse_forgotten(work: Work, found: Sequence[BankPayout], age_s: float) -> None:
    """Raise Unprocessable if the bank may have forgotten the key. `age_s`: since the decision, by Redis's clock, which
    may have been wrong at the one time or the other."""
    if age_s > CREATE_WITHIN_S:
        when = f"more than {CREATE_WITHIN_S // 86_400} days ago"
    elif work.maybe_sent and age_s < -AHEAD_S_MAX:
        when = "by a clock that was more than a day ahead, so nobody can tell how long ago"
    else:
        return
    there = f"it has {', '.join(p.id for p in found)} under that reference" if found else "it shows none"
    raise Unprocessable(
        f"ALARM: intent {work.payout} was approved {when}, and is not known to be at the bank ({there})."
        " Its idempotency key may be forgotten there, so it is not sent again. Look for the reference in the bank's"
        " dashboard; if it was not paid, ask for it anew under another key"
    )


async def _may_be_second(attempt: Attempt) -> bool:
    """Whether a lost decision may have come before this one: about this request, or about one that is lost too, and
    that the agent has repeated under the same key."""
    work, record = attempt.work, attempt.work.known()
    waited_us = attempt.decided_at - record.received_at
    is_late = abs(waited_us) > DECIDED_AT_ONCE_S * 1_000_000
    requested = Requested(work.payout, record.received_at, work.version)
    return is_late or await attempt.unasked(record.account, requested)


def _refuse_doubtful(attempt: Attempt, found: Found) -> None:
    """Raise Unprocessable if a payout that agrees moved at the bank without us: it may be this very payment, made
    around us."""
    record = attempt.work.known()
    same = [payout for payout in found.payouts if _pays_the_same(record, payout)]
    doubtful = [payout.id for payout in same if _is_around_us(attempt, record, payout, found.at_s)]
    if doubtful:
        raise Unprocessable(
            f"ALARM: {', '.join(doubtful)} moved at the bank under the reference {record.payout} and with its amount,"
            " but was not made here; the intent is not created, since that may pay it twice"
        )


def _is_around_us(attempt: Attempt, record: PayoutRecord, payout: BankPayout, at_s: int | None) -> bool:
    """Whether a payout under the reference moved without this decision: the record says so, or it moved and no attempt
    of ours can have made it, since it was there before a first one, or is older than the decision."""
    kept = next((copy for copy in record.copies if copy.id == payout.id), None)
    if kept is not None and kept.bypassed:
        return True
    now_s = attempt.ctx.now_us / 1_000_000 + monotonic() - attempt.began_s
    decided_ago_s = now_s - attempt.decided_at / 1_000_000
    made_ago_s = (now_s if at_s is None else at_s) - payout.created_at if payout.created_at else 0
    # Our clock was ahead at the decision if that is still to come: then age tells nothing.
    is_older = made_ago_s > decided_ago_s + OLDER_S and decided_ago_s >= 0
    return payout.status in MOVED_STATUSES and (not attempt.work.maybe_sent or is_older)


def _checked(record: PayoutRecord, answer: CommandAnswer) -> BankPayout:
    """The payout of a successful answer. Raises TryAgain if it cannot be read, Unprocessable if it is another
    payout."""
    payout = answer.payout
    if payout is None:
        raise TryAgain(f"intent {record.payout} was taken, but {answer.problem}", after_s=UNREADABLE_AFTER_S)
    if payout.reference_id != record.payout or payout.amount != record.amount:
        raise Unprocessable(
            f"ALARM: asked for intent {record.payout} of {record.amount} paise, the bank answered with payout"
            f" {payout.id} of {payout.amount} paise under the reference {payout.reference_id or '-'}"
        )
    return payout


async def _take_refused_since(attempt: Attempt) -> int:
    """Since when (µs) the bank has refused each attempt, so that what turns up late was made before; now if it has not,
    or nobody knows. It is forgotten until the attempt that begins now is refused too: that one's answer may be lost.
    A server that took over, or was started again, may have lost that it was forgotten."""
    name, cache = REFUSED + attempt.caused_by, attempt.ctx.cache
    kept, server = await cache.get_many([name, name + KEPT_BY])
    if not kept or server != (await cache.server()).encode():
        return attempt.ctx.now_us
    await cache.put_many({name: (b"", SINCE_KEPT_S)})
    return min(int(kept), attempt.ctx.now_us)  # now, if the clock went back


async def _keep_refused_since(attempt: Attempt, since: int) -> None:
    """The attempt that began was refused too, or made no call. Of a first one there is nothing to keep."""
    if attempt.work.maybe_sent:
        name, cache = REFUSED + attempt.caused_by, attempt.ctx.cache
        kept = {name: str(since).encode(), name + KEPT_BY: (await cache.server()).encode()}
        await cache.put_many({each: (value, SINCE_KEPT_S) for each, value in kept.items()})


async def _refused(attempt: Attempt, answer: CommandAnswer, since: int) -> BankPayout | None:
    """The bank refused with a 4xx, as it does since then (µs). Its list says whether the payout exists all the same;
    else the refusal is recorded, unless an earlier attempt may still turn up."""
    record = attempt.work.known()
    await _keep_refused_since(attempt, since)
    assert record.intent is not None
    problem = without_personal(answer.problem, record.intent.beneficiary)
    found = (await attempt.bank.find(attempt.debit.number, record.payout)).payouts
    if (mine := _ours(record, found)) is not None:
        return _bind(attempt, mine, "already", answer.http_status)
    said = f"{answer.http_status} {answer.code} ({problem})"
    known = [copy.id for copy in record.copies if not copy.bypassed and could_be(record, copy)]
    if known or any(_pays_the_same(record, payout) for payout in found):
        raise Unprocessable(
            f"ALARM: the bank refused to create intent {record.payout} with {said}, and yet has"
            f" {', '.join(sorted({*known, *(payout.id for payout in found)}))} under its reference; whether that is"
            " ours cannot be told"
        )
    if "idempotency" in answer.problem.lower():
        raise Unprocessable(
            f"ALARM: the bank knows the key of intent {record.payout} with another body, {said}: was the account number"
            " changed meanwhile? Look for the reference in the bank's dashboard before anything else"
        )
    if attempt.work.maybe_sent:
        _wait_for_lost(
            attempt, since, f"was refused with {said}, and an earlier attempt's answer may be lost"
        )
    refusal = Said(answer.http_status, answer.code, problem)
    record_answer(attempt, "create", "refused", "failed", said=refusal, caused_by=attempt.caused_by)
    return None


def _bind(attempt: Attempt, payout: BankPayout, outcome: CommandOutcome, http_status: int = 0) -> BankPayout:
    """Record that this payout at the bank is the intent's."""
    record_sighting(attempt, payout)
    record_answer(
        attempt,
        "create",
        outcome,
        payout.status,
        said=Said(http_status),
        caused_by=attempt.caused_by,
        bank_payout=payout.id,
    )
    return payout
