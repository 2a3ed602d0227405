"""Asks the bank after a recovery: what it did, or was asked for, in the last moments, which the archive does not have.

Everything is appended as usual, under the keys that webhooks and the poller use, so what is known changes nothing.
Governance settles what comes of it, and alarms if a payout moved that was never approved here.

The account that the settings name is asked about, as by the poller and `reconcile`: its key may not see the payouts of
another. Those are named, and asked about by a run with the other account's settings.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamproc.clients.razorpay import Razorpay
from streamproc.domain.events import BankPayout
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import LogUnavailable, TryAgain, Unprocessable
from streamproc.ingress.translate import append_of_look
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.inspect import open_records
from streamproc.log.names import Names
from streamproc.log.restore import accounts_asked, mark_asked, mark_reconciled, unreconciled_run
from streamproc.log.stream import Producer
from streamproc.operate.bank import opened_bank
from streamproc.operate.poller_role import listing_of
from streamproc.settings import Settings

FETCHES_AT_ONCE = 16
"""Payouts asked about at once; the client's own limit, 8 calls a second, applies besides."""
TRIES_MAX = 3
"""Tries of one payout while the bank is away; after these the rest is left to a person."""
WAIT_S_MAX = 5.0
"""Longest wait between two tries, whatever the bank asks for: a person is waiting."""
NOTES_MAX = 10
"""Payouts unknown to the bank, and accounts, that are named; more are only counted."""


@dataclass
class BankAsked:
    """What was asked and learned. `left`: what is still to do; empty if the bank was asked about everything."""

    asked: int = 0
    listed: int = 0
    new: int = 0
    left: list[str] = field(default_factory=list)


def is_configured(settings: Settings) -> bool:
    """Whether the bank can be asked from here."""
    return bool(settings.razorpay_key_id and settings.razorpay_key_secret)


async def ask_bank(settings: Settings, *, on_asked: Callable[[int], None] = lambda _: None) -> BankAsked:
    """Fetch every payout of the settings' account that is open here, then read the list of what the bank has made
    since. Once each account with open payouts was asked about, the recovery is complete."""
    done, account = BankAsked(), settings.razorpay_account_id
    if not account or not settings.razorpay_account_number:
        done.left.append(
            "the bank was not asked: STREAMPROC_RAZORPAY_ACCOUNT_ID and _ACCOUNT_NUMBER are not both set"
        )
        return done
    async with (
        opened_bank(settings) as bank,
        Producer(settings.redis_url, partitions=settings.partitions, name="recover") as producer,
        connected(settings.redis_url) as client,
    ):
        # Read before anything is asked: the answers say nothing of a log that is rebuilt later.
        run = await unreconciled_run(client)
        others = await _open_payouts(settings, client, bank, producer, done, on_asked)
        await _list(settings, bank, producer, done)
        await _conclude(client, run, account, others, done)
    return done


async def _conclude(
    client: Any, run: int | None, account: str, others: Counter[str], done: BankAsked
) -> None:
    """Mark what was asked since the recovery `run`, if one asks for that, and name what is left of other accounts."""
    if await unreconciled_run(client) != run:
        done.left.append("Redis was lost, or recovered by somebody else, while the bank was asked")
        return
    if run is not None and not done.left:
        await mark_asked(client, account, run)
    for asked in await accounts_asked(client, run):
        others.pop(asked, None)
    done.left += _named(others, account)
    if run is not None and not done.left:
        await mark_reconciled(client, run)


def _named(others: Counter[str], account: str) -> list[str]:
    """What is left of other accounts: each with its number of open payouts."""
    names = sorted(others)
    texts = [
        f"account {name}: {others[name]} open payouts were not looked up, since STREAMPROC_RAZORPAY_ACCOUNT_ID is"
        f" {account} here; run this again with that account's id, number and key"
        for name in names[:NOTES_MAX]
    ]
    if len(names) > NOTES_MAX:
        texts.append(f"nor were those of {len(names) - NOTES_MAX} more accounts")
    return texts


async def _open_payouts(
    settings: Settings,
    client: Any,
    bank: Razorpay,
    producer: Producer,
    done: BankAsked,
    on_asked: Callable[[int], None],
) -> Counter[str]:
    """Ask about the account's open payouts; the other accounts that have some, and how many."""
    account, others = settings.razorpay_account_id, Counter[str]()
    unasked, unknown = 0, list[str]()
    away = ""
    for partition in range(settings.partitions):
        async for found in open_records(client, Names(partition), at_once=FETCHES_AT_ONCE):
            records = [record for record in found if record.account == account]
            others.update(record.account for record in found if record.account != account)
            if away:
                unasked += len(records)
                continue
            answers = await asyncio.gather(
                *(_ask(settings, bank, producer, record) for record in records), return_exceptions=True
            )
            for record, answer in zip(records, answers, strict=True):
                match answer:
                    case TryAgain() | LogUnavailable():
                        away, unasked = str(answer), unasked + 1
                    case Unprocessable():
                        unknown.append(f"{record.payout}: {answer}")
                    case BaseException():
                        raise answer
                    case new:
                        done.asked += 1
                        done.new += new
            on_asked(done.asked)
    if unasked:
        done.left.append(
            f"account {account}: {unasked} open payouts could not be looked up at the bank ({away})"
        )
    done.left += [f"the bank has no answer for payout {text}" for text in unknown[:NOTES_MAX]]
    if len(unknown) > NOTES_MAX:
        done.left.append(f"the bank has no answer for {len(unknown) - NOTES_MAX} more payouts")
    return others


async def _ask(settings: Settings, bank: Razorpay, producer: Producer, record: PayoutRecord) -> bool:
    """Record where a payout stands at the bank; whether that was news."""
    for attempt in range(1, TRIES_MAX + 1):
        try:
            found = await _found(settings, bank, record)
            break
        except TryAgain as problem:
            if attempt == TRIES_MAX:
                raise
            await asyncio.sleep(min(problem.after_s, WAIT_S_MAX))
    new = False
    for facts in found:
        append = append_of_look(facts, record, account=record.account, now_us=producer.now_us())
        if append is not None:
            new = (await producer.append(append)).new or new
    return new


async def _found(settings: Settings, bank: Razorpay, record: PayoutRecord) -> list[BankPayout]:
    """The payout at the bank; for an intent, all payouts under its reference, of which there may be none yet."""
    if is_intent(record.payout):
        return (await bank.find(settings.razorpay_account_number, record.payout)).payouts
    return [await bank.fetch(record.payout)]


async def _list(settings: Settings, bank: Razorpay, producer: Producer, done: BankAsked) -> None:
    """One pass of the poller, from where the archive ends."""
    cursor = PollCursor(
        settings.redis_url, account=settings.razorpay_account_id, partitions=settings.partitions
    )
    found = await listing_of(settings, bank, producer, cursor).read()
    done.listed += found.listed
    done.new += found.new
    if found.problem:
        done.left.append(
            f"the bank's list was not read to its end ({found.problem}); the poller reads it again"
        )
