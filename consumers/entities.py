"""What the register of legal entities says of payouts' contacts (rule 14), asked at most once a day for each.

A payout that was made at the bank, or names a fund account, names no contact. Where the policy requires an entity, the
bank is asked for it first, at most once an hour for each fund account.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from consumers.answers import Answers
from streamproc.domain.events import EntitySeen
from streamproc.domain.legal_entities import (
    CONTACT_CHARS_MAX,
    ContactSeen,
    Question,
    answered_here,
    question_of,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import clean
from streamproc.log.cache import Cache

ContactLookup: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, ContactSeen]]]
"""Asks the bank for the contacts of fund accounts. Never raises: it answers with a problem."""


class EntityLookup(Protocol):
    """Asks the register. Never raises: it answers `unavailable`."""

    async def __call__(
        self, required: Sequence[Question], others: Sequence[Question]
    ) -> Mapping[Question, EntitySeen]:
        """The answers to all that is `required`, which is asked first. The `others` wait for nothing, and may have
        none."""
        ...


class Entities:
    """Answers about contacts. Without a `lookup` no register is set: nothing is asked, and nothing known. Without
    `contacts` the bank is not asked who has a fund account."""

    def __init__(self, lookup: EntityLookup | None = None, contacts: ContactLookup | None = None) -> None:
        self._lookup = lookup
        self._contacts = contacts
        self._answers = Answers[Question, EntitySeen](EntitySeen, _key)
        self._names = Answers[str, ContactSeen](ContactSeen, "contact\n{}".format)

    def question_of(self, record: PayoutRecord, *, required: bool) -> Question | None:
        """What must be known of a payout's contact before it is decided; None: nothing. `required`: by its policy; else
        the bank is not asked for a contact."""
        if self._lookup is None:
            return None
        return question_of(record, by_bank=required and self._contacts is not None)

    def known(self, question: Question | None, now_us: int) -> EntitySeen | None:
        """The answer as far as nobody has to be asked; None: it has to be looked up, if there is a question."""
        if question is None:
            return None
        if not question.fund_account:
            return answered_here(question) or self._answers.known(question, now_us)
        contact = self._names.known(question.fund_account, now_us)
        if contact is None:
            return None
        entity = self.known(_named(question, contact), now_us)
        return None if entity is None else _of_contact(entity, contact)

    async def of(
        self, required: Sequence[Question], others: Sequence[Question], cache: Cache, now_us: int
    ) -> Mapping[Question, EntitySeen]:
        """The answers to all questions that a policy requires, and to others as far as they are known or at hand."""
        contacts = await self._contacts_of(required, cache, now_us)
        asked = {
            one: _named(one, contacts[one.fund_account]) if one.fund_account else one for one in required
        }
        found = await self._of_named(
            [one for one in asked.values() if one.name], [one for one in others if one.name], cache, now_us
        )
        told = {one: seen for one in others if (seen := found.get(one)) is not None}
        for one, named in asked.items():
            if not one.fund_account:
                told[one] = found[named]
            elif contacts[one.fund_account].name:
                told[one] = _of_contact(found[named], contacts[one.fund_account])
            else:
                told[one] = _nobody(contacts[one.fund_account], now_us)
        return told

    async def _contacts_of(
        self, questions: Iterable[Question], cache: Cache, now_us: int
    ) -> Mapping[str, ContactSeen]:
        """Who has each of the fund accounts that are asked about."""
        fund_accounts = [one.fund_account for one in questions if one.fund_account]
        if not fund_accounts:
            return {}
        assert self._contacts is not None  # else there was no question
        return await self._names.of(fund_accounts, cache, now_us, self._contacts)

    async def _of_named(
        self, required: Sequence[Question], others: Sequence[Question], cache: Cache, now_us: int
    ) -> Mapping[Question, EntitySeen]:
        here = {one: answer for one in (*required, *others) if (answer := answered_here(one)) is not None}
        wanted = [one for one in (*required, *others) if one not in here]

        async def ask(questions: Sequence[Question]) -> Mapping[Question, EntitySeen]:
            assert self._lookup is not None  # else there was no question
            first = set(required)
            return await self._lookup(
                [one for one in questions if one in first], [one for one in questions if one not in first]
            )

        return here | await self._answers.of(wanted, cache, now_us, ask)


def _named(question: Question, contact: ContactSeen) -> Question:
    return Question(contact.name, question.lei)


def _of_contact(entity: EntitySeen, contact: ContactSeen) -> EntitySeen:
    return replace(entity, contact=clean(contact.name, CONTACT_CHARS_MAX))


def _nobody(contact: ContactSeen, now_us: int) -> EntitySeen:
    problem = f"the bank did not say who has the fund account, {contact.problem}"
    return EntitySeen(verdict="unavailable", problem=problem, checked_at=now_us, fresh_until=now_us)


def _key(question: Question) -> str:
    # No URL has such a beginning, and no name a line end.
    return f"entity\n{question.lei}\n{question.name}"
