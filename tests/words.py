"""Builders for the values that tests need, in the words of the specification."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.bench.job import noon_zone
from streamproc.domain import events as e
from streamproc.domain.attribution import Attribution
from streamproc.domain.case import Reputation
from streamproc.domain.intent import Beneficiary, Intent, intent_id
from streamproc.domain.legal_entities import ContactSeen, Question
from streamproc.domain.policy import parse_policy_file, plan_changes
from streamproc.log.names import Names
from streamproc.log.policies import put_in_force, read_scopes
from streamproc.log.stream import Append

ACCOUNT = "acc_Test0000000001"
NOW = 1_790_000_000_000_000
"""µs; Mon 21 Sep 2026, 19:43 in Asia/Kolkata."""
NOON_ZONE = noon_zone(time.time())
"""Time zone for payouts that are received now: no day, week or month ends there while the tests run."""


def observed(
    payout: str = "pout_1",
    amount: int = 250_000,
    *,
    agent: str | None = "bot",
    url: str | None = None,
    status: str = "pending",
    currency: str = "INR",
    fund_account: str = "fa_1",
    at: int = NOW,
    account: str = ACCOUNT,
) -> e.PayoutObserved:
    """The bank showed a payout."""
    notes = {}
    if agent is not None:
        notes["agent_id"] = agent
    if url is not None:
        notes["vendor_url"] = url
    facts = e.BankPayout(
        id=payout, amount=amount, currency=currency, status=status, fund_account_id=fund_account, notes=notes
    )
    return e.PayoutObserved(at=at, payout=payout, account=account, source="webhook", facts=facts)


def reviewed(
    payout: str,
    by: str = "asha",
    action: Literal["approve", "reject"] = "approve",
    *,
    at: int = NOW,
    why: str = "because",
    channel: str = "test",
) -> e.ReviewSubmitted:
    """A person answers a hold."""
    return e.ReviewSubmitted(at=at, payout=payout, by=by, action=action, why=why, channel=channel)


def attributed(by: str, why: str = "", channel: str = "cli") -> Attribution:
    """Something done on the command line."""
    return Attribution(by, channel, why)


def delivery(event: e.PayoutObserved) -> Append:
    """The event as the webhook appends it."""
    return Append(event.account, (f"st:{event.payout}:{event.facts.status}",), (event,))


def policies(text: str) -> list[e.PolicyChanged]:
    """The changes of a policy file that is the first one."""
    file = parse_policy_file(text, name="test.yaml")
    return plan_changes({}, file, prune=False, at=NOW, by="test", why="test")


async def apply_policies(client: Redis, text: str, *, partition: int = 0, prune: bool = False) -> None:
    """Put a policy file in force; with `prune`, what it does not name is removed."""
    names = Names(partition)
    rev, scopes = await read_scopes(client, names)
    file = parse_policy_file(text, name="test.yaml")
    changes = plan_changes(scopes, file, prune=prune, at=NOW, by="test", why="test")
    if changes:
        assert await put_in_force(client, names, rev, changes, actor="test") is not None


class Vendors:
    """Safe Browsing as a table from a text in the URL to a verdict. It keeps the URLs that were looked up."""

    def __init__(self, verdicts: Mapping[str, str] | None = None) -> None:
        self.verdicts = dict(verdicts or {})
        self.asked: list[str] = []

    async def __call__(self, urls: Sequence[str]) -> dict[str, Reputation]:
        """The reputation of each URL, `clean` unless the table says otherwise."""
        self.asked += urls
        return {url: self._of(url) for url in urls}

    def _of(self, url: str) -> Reputation:
        verdict: Any = next((v for text, v in self.verdicts.items() if text in url), "clean")
        if verdict == "unavailable":
            return Reputation("unavailable", problem="timeout")
        threats = ("MALWARE",) if verdict == "threat" else ()
        return Reputation(verdict, threats, checked_at=NOW, fresh_until=NOW + 3_600_000_000)


class Forgotten(Vendors):
    """Reputations that expire at once, so that every payout looks them up again."""

    async def __call__(self, urls: Sequence[str]) -> dict[str, Reputation]:
        answers = await super().__call__(urls)
        return {
            url: replace(reputation, fresh_until=reputation.checked_at) for url, reputation in answers.items()
        }


class Register:
    """A register of legal entities as a table from a contact's name to what it says, `not_found` if that is nothing. It
    keeps what was asked."""

    def __init__(self, verdicts: Mapping[str, str] | None = None) -> None:
        self.verdicts = dict(verdicts or {})
        self.asked: list[Question] = []

    async def __call__(
        self, required: Sequence[Question], others: Sequence[Question]
    ) -> dict[Question, e.EntitySeen]:
        """The answer to each question."""
        self.asked += [*required, *others]
        return {question: self._of(question) for question in (*required, *others)}

    def _of(self, question: Question) -> e.EntitySeen:
        verdict: Any = self.verdicts.get(question.name, "not_found")
        if verdict == "unavailable":
            return e.EntitySeen(verdict="unavailable", problem="timeout", checked_at=NOW, fresh_until=NOW)
        return e.EntitySeen(
            verdict=verdict, lei=question.lei, checked_at=NOW, fresh_until=NOW + 86_400_000_000
        )


class Payees:
    """The bank, of which it is asked who has a fund account: a name, or a problem. It keeps what was asked."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.asked: list[str] = []

    async def __call__(self, fund_accounts: Sequence[str]) -> dict[str, ContactSeen]:
        """The contact of each fund account."""
        self.asked += fund_accounts
        return {one: self._of(one) for one in fund_accounts}

    def _of(self, fund_account: str) -> ContactSeen:
        if fund_account not in self.names:
            return ContactSeen(problem="timeout", checked_at=NOW, fresh_until=NOW)
        return ContactSeen(name=self.names[fund_account], checked_at=NOW, fresh_until=NOW + 3_600_000_000)


def contact(name: str) -> Beneficiary:
    """An inline payee whose contact has this name."""
    return Beneficiary(contact_name=name, account_type="vpa", vpa="somebody@okbank")


def requested(
    amount: int = 250_000,
    *,
    key: str = "k1",
    agent: str = "bot",
    url: str = "",
    fund_account: str = "fa_1",
    payee: Beneficiary | None = None,
    notes: Mapping[str, str] | None = None,
    at: int = NOW,
    account: str = ACCOUNT,
) -> e.PayoutRequested:
    """An agent asks for a payout."""
    intent = Intent(
        digest="d" * 64,
        mode="IMPS" if payee is None or payee.account_type == "bank_account" else "UPI",
        purpose="payout",
        notes=dict(notes or {}),
        fund_account_id="" if payee is not None else fund_account,
        beneficiary=payee,
    )
    return e.PayoutRequested(
        at=at,
        payout=intent_id(account, agent, key),
        account=account,
        agent=agent,
        token="test",
        amount=amount,
        currency="INR",
        vendor_url=url,
        intent=intent,
    )


def request(event: e.PayoutRequested) -> Append:
    """The event as the gateway appends it."""
    return Append(event.account, (f"in:{event.payout}",), (event,))


def copy_of(
    event: e.PayoutRequested, bank_id: str, status: str, *, amount: int | None = None, at: int = NOW + 100
) -> e.PayoutObserved:
    """The bank shows a payout under an intent's reference."""
    facts = e.BankPayout(
        id=bank_id,
        amount=event.amount if amount is None else amount,
        currency="INR",
        status=status,
        created_at=at // 1_000_000,
        fund_account_id=event.intent.fund_account_id or "fa_inline",
        reference_id=event.payout,
    )
    return e.PayoutObserved(at=at, payout=event.payout, account=event.account, source="webhook", facts=facts)
