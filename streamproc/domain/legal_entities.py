"""Legal entities: is a payout's contact an entity that a register has, under that name, active and issued? Pure.

Names are equal or they are not: spelling is evened out (case, punctuation, usual spellings of legal forms), and nothing
is guessed. An agent chooses the contact's name, so a likeness would be what an impostor needs.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from streamproc.domain.facts import EntitySeen, EntityVerdict, Evidence
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import clean

NOTE_LEI = "lei"
"""The note in which an agent may say which entity it pays."""
LEI_CHARS_MAX = 40
"""Characters of that note that are kept: twice those of an LEI (ISO 17442)."""
NAME_CHARS_MAX = 160
"""Characters kept of a registered name: three times a contact's."""
CONTACT_CHARS_MAX = 120
"""Characters of a contact's name as the bank tells it. A longer one is not used: comparing takes the square of it."""
NAMES_MAX = 4_096
"""Names whose words a process keeps, some 300 bytes each."""

_LEI = re.compile(r"[0-9A-Z]{18}[0-9]{2}")
_FORMS: Mapping[tuple[str, ...], str] = {
    ("private", "limited"): "private limited",
    ("private", "ltd"): "private limited",
    ("pvt", "limited"): "private limited",
    ("pvt", "ltd"): "private limited",
    ("p", "limited"): "private limited",
    ("p", "ltd"): "private limited",
    ("pvtltd",): "private limited",
    ("public", "limited", "company"): "public limited company",
    ("plc",): "public limited company",
    ("limited", "liability", "partnership"): "limited liability partnership",
    ("llp",): "limited liability partnership",
    ("limited", "liability", "company"): "limited liability company",
    ("llc",): "limited liability company",
    ("limited",): "limited",
    ("ltd",): "limited",
    ("incorporated",): "incorporated",
    ("inc",): "incorporated",
    ("corporation",): "corporation",
    ("corp",): "corporation",
    ("company",): "company",
    ("co",): "company",
}
"""Usual spellings of legal forms at the end of a name, as words without punctuation."""
_REGISTERED: Mapping[str, str] = {
    "private limited": "Private Limited",
    "public limited company": "PLC",
    "limited liability partnership": "LLP",
    "limited liability company": "LLC",
    "limited": "Limited",
    "incorporated": "Inc.",
    "corporation": "Corporation",
    "company": "Company",
}
"""How registers usually spell each of them."""
_FORM_WORDS_MAX = max(map(len, _FORMS))

_WHY: Mapping[EntityVerdict, str] = {
    "not_found": "the register has no such entity",
    "several": "several entities in the register may be meant; the note `lei` can say which",
    "name_differs": "the entity of this LEI has another name",
    "not_active": "the entity is not active",
    "not_issued": "the entity's LEI is not valid any more",
    "malformed_lei": "the note `lei` is not a well-formed LEI",
    "unavailable": "the register could not be asked",
}
_NOT_LOOKED_UP = frozenset[EntityVerdict]({"malformed_lei", "unavailable"})
"""Where there is nothing to compare the contact's name with."""
NO_CONTACT = "the payout names no contact"
NO_REGISTER = "no register of legal entities is set"


class Question(NamedTuple):
    """What is asked about a payout's contact: by `lei`, if the payout gives one, else by `name`. Where there is a
    `fund_account` instead of a name, the bank has to be asked for the name of its contact first."""

    name: str
    lei: str = ""
    fund_account: str = ""


class ContactSeen(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the bank said of a fund account's contact: its name or, where that is empty, the problem. Times in µs."""

    name: str = ""
    problem: str = ""
    checked_at: int = 0
    fresh_until: int = 0


class Registered(NamedTuple):
    """An entity as the register shows it."""

    lei: str
    name: str
    status: str
    """The entity's own: ACTIVE, INACTIVE."""
    registration: str
    """That of its LEI: ISSUED, LAPSED, RETIRED and others."""


class LegalName(NamedTuple):
    """A name for comparison: its words, and the legal forms at its end."""

    words: tuple[str, ...]
    forms: tuple[str, ...]


def question_of(record: PayoutRecord, *, by_bank: bool = True) -> Question | None:
    """What to ask about a payout whose contact is named or, `by_bank`, could be by the bank; None of any other. Only an
    intent with its payee inline names a contact; the notes of a payout that was made at the bank are not kept."""
    intent = record.intent
    if not by_bank and (intent is None or intent.beneficiary is None):
        return None
    lei = "" if intent is None else intent.notes.get(NOTE_LEI, "")
    lei = clean(lei.strip().upper(), LEI_CHARS_MAX)
    if intent is None or intent.beneficiary is None:
        return Question("", lei, record.fund_account) if record.fund_account else None
    name = intent.beneficiary.contact_name
    return Question(name, lei) if legal_name(name).words else None


def is_lei(text: str) -> bool:
    """Whether it is a well-formed LEI (ISO 17442): 18 characters and two check digits (ISO 7064, mod 97-10)."""
    if not _LEI.fullmatch(text):
        return False
    return int("".join(str(int(char, 36)) for char in text)) % 97 == 1


@lru_cache(maxsize=NAMES_MAX)
def legal_name(text: str) -> LegalName:
    """The name as it is compared. A name is never all legal form: its first word stays a word."""
    words, forms = _words(text), list[str]()
    while True:
        for many in range(min(_FORM_WORDS_MAX, len(words) - 1), 0, -1):
            form = _FORMS.get(words[-many:])
            if form is not None:
                words = words[:-many]
                forms.insert(0, form)
                break
        else:
            return LegalName(words, tuple(forms))


def _words(text: str) -> tuple[str, ...]:
    even = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    even = even.replace("&", " and ").replace(".", "")  # `L.L.P.` is one word
    return tuple("".join(" " if unicodedata.category(c)[0] in "PZ" else c for c in even).split())


def searches(name: str) -> tuple[str, ...]:
    """What to look for in the register, one after the other until an entity of this name is found: the name with its
    legal form as registers usually spell it, then without. Commas would separate several names."""
    begin = _without_form(name)
    spelled = " ".join((begin, *(_REGISTERED[form] for form in legal_name(name).forms)))
    return (spelled, begin) if spelled != begin else (begin,)


def _without_form(name: str) -> str:
    """The beginning of a name that has its words: up to a blank or, where no blank is before the form, a character."""
    (words, forms), text = legal_name(name), " ".join(name.replace(",", " ").split())
    blanks = [place for place, char in enumerate(text) if char == " "]
    ends = [*blanks, *range(1, len(text))] if forms else blanks
    return next((text[:end] for end in ends if _words(text[:end]) == words), text)


def judged(question: Question, found: Sequence[Registered], *, more: bool) -> EntitySeen:
    """What the register's answer says of the contact; without times. `more`: it has further entities like these.

    `found` are entities of the LEI that was asked for, or with names like the contact's.
    """
    wanted = legal_name(question.name)
    if question.lei:
        same, more = list(found), False
    else:
        same = [entity for entity in found if legal_name(entity.name) == wanted]
    if more or len(same) > 1:
        return EntitySeen(verdict="several")
    if not same:
        return EntitySeen(verdict="not_found", lei=question.lei)
    return _seen(same[0], is_named=legal_name(same[0].name) == wanted)


def _seen(entity: Registered, *, is_named: bool) -> EntitySeen:
    verdict: EntityVerdict = "verified"
    if not is_named:
        verdict = "name_differs"
    elif entity.status != "ACTIVE":
        verdict = "not_active"
    elif entity.registration != "ISSUED":
        verdict = "not_issued"
    return EntitySeen(
        verdict=verdict,
        lei=entity.lei,
        name=clean(entity.name, NAME_CHARS_MAX),
        status=entity.status,
        registration=entity.registration,
    )


def answered_here(question: Question) -> EntitySeen | None:
    """The answer if the register need not be asked: of a malformed LEI it could say nothing."""
    if not question.lei or is_lei(question.lei):
        return None
    return EntitySeen(verdict="malformed_lei", lei=question.lei)


def why_unverified(record: PayoutRecord, seen: EntitySeen | None) -> Evidence | None:
    """The evidence that a payout's contact is not verified; None if it is. `seen` None: nothing was asked."""
    if seen is None:
        question = question_of(record)
        return {"problem": NO_REGISTER if question is not None and question.name else NO_CONTACT}
    if seen.verdict == "verified":
        return None
    why = _WHY[seen.verdict]
    evidence: Evidence = {"problem": f"{why}: {seen.problem}" if seen.problem else why}
    question = question_of(record) if seen.verdict not in _NOT_LOOKED_UP else None
    told = {
        "named": clean(question.name, CONTACT_CHARS_MAX) if question is not None else "",
        "contact": seen.contact,
        "lei": seen.lei,
        "registered_name": seen.name,
        "entity_status": seen.status,
        "registration_status": seen.registration,
    }
    return evidence | {name: text for name, text in told.items() if text}
