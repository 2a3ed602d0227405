"""What people are told: of a hold, of how it ended, of an alert. Words, which each channel puts into its markup. Pure.

What an agent or a vendor wrote is a stranger's text: it is kept apart from what we say (`untrusted`), is one line of
visible characters, and shows of a long number, which may be an account's, the last four digits.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from streamproc.domain.agent_note import NOTE
from streamproc.domain.domains import vendor_of, without_login
from streamproc.domain.facts import BankPayout
from streamproc.domain.intent import Beneficiary, masked, without_personal
from streamproc.domain.legal_entities import is_lei
from streamproc.domain.money import rupees
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import cut, plain
from streamproc.domain.shown import moment

NAME_CHARS_MAX = 80
"""An agent's or a reviewer's name, an id: a longer one would hide what stands beside it."""
HOST_CHARS_MAX = 253
"""A host name's own limit."""
TEXT_CHARS_MAX = 600
"""One text of a stranger. Six of them and ours stay below what Slack takes as one message, some 10,000 characters."""
REGISTER_CHARS_MAX = 160
"""One text of the register of legal entities."""
UNTRUSTED_MAX = 6
NOTES_MAX = 15
"""The bank's own limit."""
WHY_CHARS_MAX = 500

MEANINGS: Mapping[str, str] = {
    "FROZEN": "the agent, its account or its team is frozen",
    "NO_POLICY": "the agent has no policy",
    "CURRENCY_NOT_ALLOWED": "the policy does not allow this currency",
    "IDENTITY_UNVERIFIED": "who asks is only claimed, and the policy wants it verified",
    "TXN_LIMIT_EXCEEDED": "the amount is above the policy's limit for one payout",
    "VENDOR_URL_INVALID": "the vendor's URL is not a web address",
    "VENDOR_URL_REQUIRED": "there is no vendor URL, and the policy wants one",
    "VENDOR_URL_SUSPICIOUS": "the vendor's host mixes scripts or has look-alike signs: it may imitate another",
    "DOMAIN_BLOCKED": "the vendor's host is blocked, or not among those allowed",
    "OUTSIDE_HOURS": "it came outside the hours or days of the policy",
    "RATE_LIMITED": "the agent asks too often",
    "RISK_HIGH": "Safe Browsing knows the vendor's URL as a threat",
    "REPUTATION_UNAVAILABLE": "Safe Browsing could not be asked about the vendor",
    "BENEFICIARY_NEW": "nobody was paid there from this account before",
    "BENEFICIARY_CHANGED": "the money goes elsewhere than it did for this vendor, this beneficiary was another"
    " vendor's, or the bank has no fund account of this beneficiary yet by which to tell",
    "ENTITY_UNVERIFIED": "the contact is not verified as a legal entity",
    "ANOMALY_DETECTED": "the payout is unlike what the agent usually pays",
    "LIMIT_EXCEEDED": "a budget has no room for it",
    "APPROVAL_REQUIRED": "the amount is above what the policy lets pass without a person",
    "BYPASSED": "money moved at the bank that was never approved here",
    "SET_ASIDE": "something could not be handled and is a dead letter now; `streamproc dead list`",
    "MISMATCH": "the bank, or the fold of the log, says otherwise than we do; `streamproc reconcile`",
}
ENTITY_UNVERIFIED = "ENTITY_UNVERIFIED"
_REGISTER = (
    ("problem", ""),
    ("named", "the payout names"),
    ("contact", "the bank names the contact"),
    ("lei", "LEI"),
    ("registered_name", "registered as"),
    ("entity_status", "entity"),
    ("registration_status", "registration"),
)
"""Its evidence, and what is said before each part."""
URGENT = frozenset({"BYPASSED"})
"""Alerts about money that has moved."""
_NOTES_SHOWN = frozenset({"agent_id", "vendor_url", NOTE})
"""Notes that are shown elsewhere, or say nothing to a person."""
_AMOUNT = r"₹[0-9]{1,2}(?:,[0-9]{2})*,[0-9]{3}\.[0-9]{2}(?!\d)"
"""Money as `rupees` writes it, from ₹1,000.00 on. No account number looks like this, so it is shown whole."""
_LONG_NUMBER = re.compile(
    rf"({_AMOUNT})|\d(?:(?: ?[^\w\s,]{{1,2}} ?|[ ,_])?\d){{11,}}|\d(?:[ ._\u2010-\u2015-]?\d){{8,}}"
)
"""Nine digits and more, of any script: India's account numbers have 9 to 18. Twelve and more also where `/` or the like
splits them; fewer, written like that, are dates and sums too."""


class UntrustedText(Struct, frozen=True):
    """A stranger's text, and what it is."""

    label: str
    text: str


class HoldNotice(Struct, frozen=True):
    """A hold. `host` is the vendor's as a browser would open it, or empty; `expires_at` is µs; `link` may be empty."""

    payout: str
    amount: str
    agent: str
    identity: str
    host: str
    payee: str
    reasons: tuple[tuple[str, str], ...]
    """Codes with what they mean."""
    policy_version: int
    expires_at: int
    untrusted: tuple[UntrustedText, ...]
    approvals: str
    """Who has approved and how many more are wanted; empty where one approval is enough and none is there."""
    link: str


class HoldOutcome(Struct, frozen=True):
    """How a hold ended."""

    decision: str
    text: str


class Notice(Struct, frozen=True):
    """An alert, or a digest of many. `lines` are ours, with strangers' names in them made plain."""

    title: str
    lines: tuple[str, ...]
    urgent: bool = False
    link: str = ""


def name(text: str) -> str:
    """A stranger's name or id among our own words."""
    return cut(numbers_masked(plain(text)), NAME_CHARS_MAX) or "-"


def payout_id(payout: str) -> str:
    """An id as it must be typed: of this one no digit is hidden."""
    return cut(plain(payout), NAME_CHARS_MAX) or "-"


def amount_text(paise: int, currency: str) -> str:
    """₹1,50,000.00; of another currency its hundredths too."""
    if currency in ("INR", ""):
        return rupees(paise)
    return f"{rupees(paise).replace('₹', '')} {name(currency)}"


def hold_notice(
    record: PayoutRecord,
    *,
    wanted: int,
    given: Sequence[str] = (),
    link: str,
    shown: BankPayout | None = None,
) -> HoldNotice:
    """What a person has to know of a hold. `wanted`: approvals that the policy in force asks for; `given`: who has
    approved, and still counts; `shown`: the payout as the bank showed it, with what the record does not keep."""
    vendor = vendor_of(record.vendor_url)
    payee = record.intent.beneficiary if record.intent is not None else None
    account = masked(payee.account_number or payee.vpa) if payee is not None else name(record.fund_account)
    return HoldNotice(
        payout=record.payout,
        amount=amount_text(record.amount, record.currency),
        agent=name(record.agent),
        identity=record.identity,
        host=cut(plain(vendor.host), HOST_CHARS_MAX) if vendor is not None else "",
        payee=cut(plain(account), NAME_CHARS_MAX),
        reasons=tuple((code, _meaning(code, record)) for code in record.reasons),
        policy_version=record.policy_version,
        expires_at=record.hold_expires_at,
        untrusted=_untrusted(record, shown),
        approvals=_approvals(given, wanted),
        link=link,
    )


def _meaning(code: str, record: PayoutRecord) -> str:
    """What a reason means; of an unverified entity also what the register said, which a person has to weigh."""
    meaning = MEANINGS.get(code, "")
    if code != ENTITY_UNVERIFIED:
        return meaning
    said = next((finding.evidence for finding in record.findings if finding.code == code), {})
    if not is_lei(str(said.get("lei", ""))):  # the agent's text, which stands with the untrusted notes
        said = {key: value for key, value in said.items() if key != "lei"}
    texts = [f"{label} {_register_text(str(said[key]))}" for key, label in _REGISTER if said.get(key)]
    return f"{meaning}: {'; '.join(text.strip() for text in texts)}" if texts else meaning


def _register_text(text: str) -> str:
    """A text of the register's, whose every digit a person may have to look up: an LEI is public."""
    return cut(plain(text), REGISTER_CHARS_MAX)


def _approvals(given: Sequence[str], wanted: int) -> str:
    if wanted < 2 and not given:
        return ""
    by = f", by {', '.join(map(name, given))}" if given else ""
    return f"{len(given)} of {max(wanted, len(given))} approvals{by}"


def _untrusted(record: PayoutRecord, shown: BankPayout | None) -> tuple[UntrustedText, ...]:
    texts: list[tuple[str, str]] = [("vendor URL", without_login(record.vendor_url))]
    said_in = record.intent or shown
    payee = record.intent.beneficiary if record.intent is not None else None
    if said_in is not None:
        notes = [(key, value) for key, value in said_in.notes.items() if key not in _NOTES_SHOWN]
        texts += [
            ("beneficiary", payee.contact_name if payee is not None else ""),
            ("notes", "; ".join(f"{key}: {value}" for key, value in notes[:NOTES_MAX])),
            ("narration", said_in.narration),
            ("purpose", said_in.purpose),
        ]
    texts.append(("reference", record.reference_id))
    said = [
        UntrustedText(label, _text(text, payee if label != "beneficiary" else None))
        for label, text in texts
        if text
    ]
    return tuple(one for one in said if one.text)[:UNTRUSTED_MAX]


def _text(text: str, payee: Beneficiary | None) -> str:
    return cut(numbers_masked(plain(without_personal(text, payee))), TEXT_CHARS_MAX)


def numbers_masked(text: str) -> str:
    """A text without what may be the number of an account."""
    return _LONG_NUMBER.sub(lambda found: found[1] or masked(found[0]), text)


def outcome_of(record: PayoutRecord) -> HoldOutcome:
    """How a hold ended, as the record has it; for one that the bank ended by itself too."""
    if record.decision in ("APPROVED", "REJECTED"):
        when = moment(record.decided_at)
        last = record.reviews[-1] if record.reviews else None
        if record.reason == "HOLD_EXPIRED":
            return HoldOutcome("REJECTED", f"nobody decided it in time; rejected at {when}")
        by = f" by {_names(record)}" if last is not None else ""
        found = MEANINGS.get(record.reason, "")
        then = f" ({record.reason}: {found})" if found else ""
        why = f": {cut(numbers_masked(plain(last.why)), WHY_CHARS_MAX)}" if last is not None else ""
        return HoldOutcome(record.decision, f"{record.decision.lower()}{by} at {when}{then}{why}")
    return HoldOutcome("OVER", f"the hold is over: the bank says {name(record.bank_status)}")


def _names(record: PayoutRecord) -> str:
    action = "approve" if record.decision == "APPROVED" else record.reviews[-1].action
    deciding = [review.by for review in record.reviews if review.action == action]
    return ", ".join(name(by) for by in dict.fromkeys(deciding)) or name(record.reviews[-1].by)


def alert_about(code: str, agent: str, account: str) -> str:
    """What alerts of one digest have in common."""
    parts = [code, f"agent {name(agent)}" if agent else "", f"account {name(account)}" if account else ""]
    return ", ".join(part for part in parts if part)


def alert_notice(about: str, code: str, facts: Sequence[tuple[str, str]], *, link: str = "") -> Notice:
    """An alert. `facts` are labelled; each is made plain here."""
    said = [
        f"{label}: {payout_id(text) if label == 'payout' else _text(text, None)}"
        for label, text in facts
        if text
    ]
    lines = tuple(line for line in (MEANINGS.get(code, ""), *said) if line)
    return Notice(f"Alert: {about}", lines, code in URGENT, link)


def digest_notice(about: str, *, count: int, paise: int, more: bool, examples: Sequence[str]) -> Notice:
    """Many alerts that are alike. `more`: there were more than could be counted, and if `count` is 0 only such."""
    number = f"more than {count}" if more and count else str(count or "some")
    of = about or "alerts of many kinds"
    worth = f", of {rupees(paise)} in all" if count else ""
    lines = [f"{number} more alerts within a minute{worth}"]
    if examples:
        lines.append(f"for example {', '.join(payout_id(example) for example in examples)}")
    lines.append("`streamproc audit list` shows every one")
    code = about.partition(",")[0]
    return Notice(f"{number} alerts: {of}", tuple(lines), code in URGENT)
