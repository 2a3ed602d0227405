"""The bank's list has shown what this log has forgotten, and governance has put it off, since the archive is away. What
is asked for again meanwhile is looked for at the bank."""

from functools import partial

import pytest

import consumers
from consumers.attempt import Debit
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.clients.razorpay import open_razorpay
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import TryAgain
from streamproc.operate import bank as operate
from streamproc.operate.bank import bank_unasked
from streamproc.settings import load
from tests.bank import running_sandbox, until
from tests.consumers.test_create import PAYEE, POLICIES, Gateway
from tests.consumers.test_refuted import at_once
from tests.engine import ZONE, Engine
from tests.operate.recovering import polled
from tests.words import ACCOUNT, Vendors, request, requested


class Away:
    """An archive that does not answer governance."""

    def __init__(self) -> None:
        self.was_asked = False

    async def __call__(self, payout: str) -> PayoutRecord | None:
        self.was_asked = True
        raise TryAgain("Postgres is away")

    async def has_put_it_off(self) -> bool:
        return self.was_asked


async def test_what_the_list_has_shown_and_governance_has_put_off_is_not_paid_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, once the time was over after which another worker would have taken it over."""
    monkeypatch.setattr(operate, "handled_s", lambda _: 0.0)  # that time
    archive = Away()
    async with running_sandbox(workflow="off") as bank:
        client = open_razorpay(bank.url, key_id=bank.config.key_id, key_secret=bank.config.key_secret)
        await polled(redis_url, ACCOUNT)
        unasked = partial(bank_unasked, load({"STREAMPROC_REDIS_URL": redis_url}))
        groups = [
            consumers.governance(Reputations(Vendors()), zone=ZONE, archived=archive),
            execution(client, at_once, Debit(bank.config.account_number, ACCOUNT), unasked=unasked),
        ]
        async with Engine(redis_url, groups=groups) as engine:
            gate = Gateway(engine, bank, client)
            await engine.apply(POLICIES)
            asked = requested(payee=PAYEE)
            made = await bank.pay(asked.amount, reference_id=asked.payout, status="processing")
            await bank.reaches(made["id"], "processed")
            await gate.tells(asked.payout)
            await until(archive.has_put_it_off, what="it is put off")
            await engine.producer.append(request(requested(payee=PAYEE, at=engine.producer.now_us())))

            async def answers() -> list[e.Event]:
                story = await engine.story(asked.payout)
                return [
                    event for event in story if isinstance(event, e.BankCommandAnswered | e.EntrySetAside)
                ]

            [answer] = await until(answers, what="it is over")
            assert isinstance(answer, e.EntrySetAside)
            assert "moved at the bank" in answer.problem
            assert [shown["id"] for shown in await gate.at_bank(asked.payout)] == [made["id"]]
        await client.aclose()
