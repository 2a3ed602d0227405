"""Payouts and events as scripts see them, by `explain --json` and by HTTP. Amounts in paise, times in ISO 8601. Pure.

Where an intent's money goes is shown by its last four characters: the log alone has it whole, for the bank.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from streamproc.domain.attribution import kind_of
from streamproc.domain.budget import OF_VENDORS, US
from streamproc.domain.events import Event, Finding, PayoutDecided, PayoutRequested
from streamproc.domain.intent import Beneficiary, masked
from streamproc.domain.money import rupees
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.wire import type_of

_MONEY = frozenset({"amount", "limit", "used", "reserved", "committed", "above", "usual_up_to"})
"""Evidence in paise, except velocity's, which counts payouts."""
_OPEN_FIELDS = frozenset({"account_type", "contact_type"})
"""Fields of a beneficiary that say nothing of the person."""
_IN_US = frozenset({"checked_at", "fresh_until", "hold_expires_at", "expires_at", "expired_at"})
"""Times of events and evidence that the log has in µs since 1970; 0 means never."""
_IN_S = frozenset({"created_at", "since", "until"})
"""Times that it has in seconds: what the bank named, and the period of a reconciliation."""


def iso(at_us: int) -> str:
    """µs since 1970 as ISO 8601 in UTC with µs: 2026-11-22T12:00:00.000001Z."""
    return datetime.fromtimestamp(at_us // US, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at_us % US:06d}Z"


def moment(at_us: int) -> str:
    """As `iso`, to the second, for people."""
    return f"{iso(at_us)[:19]}Z"


def iso_or_none(at_us: int) -> str | None:
    """As `iso`; None for 0, which means never."""
    return iso(at_us) if at_us else None


def evidence_texts(finding: Finding) -> list[str]:
    """What a finding rests on, in words for people: each a name and a value, money in rupees, times to the second."""
    money = frozenset() if finding.stage == "velocity" else _MONEY
    return [f"{name} {_value_text(name, value, money)}" for name, value in finding.evidence.items()]


def _value_text(name: str, value: str | int | bool | list[str] | None, money: frozenset[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(value) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return rupees(value) if name in money else moment(value) if name.endswith("_at") else str(value)
    return "none" if value is None else str(value)


def payout_json(record: PayoutRecord) -> dict[str, Any]:
    """A payout: a contract that scripts rely on. `bank_payout` is null while nothing is known to be at the bank."""
    return {
        "payout": record.payout,
        "account": record.account,
        "agent": record.agent,
        "identity": record.identity,
        "amount": record.amount,
        "currency": record.currency,
        "vendor_url": record.vendor_url,
        "received_at": iso(record.received_at),
        "decision": record.decision,
        "reason": record.reason,
        "reasons": record.reasons,
        "findings": [finding_json(finding) for finding in record.findings],
        "policy_version": record.policy_version,
        "state": record.state,
        "bank_status": record.bank_status,
        "bank_payout": record.at_bank if record.intent is None else record.bank_payout or None,
        "failure": record.failure or None,
        "reservation": _reservation_json(record),
        "reviews": [
            {"by": r.by, "action": r.action, "why": r.why, "channel": r.channel, "at": iso(r.at)}
            for r in record.reviews
        ],
    }


HOLD_SHOWS = (
    *("payout", "account", "agent", "identity", "amount", "currency", "vendor_url"),
    *("reason", "reasons", "received_at"),
)
"""What a hold shows of its payout, as everywhere."""


def hold_json(record: PayoutRecord) -> dict[str, Any]:
    """A hold as scripts see it. Amounts in paise, times ISO 8601."""
    shown = payout_json(record)
    return {name: shown[name] for name in HOLD_SHOWS} | {
        "expires_at": iso_or_none(record.hold_expires_at),
        "approved_by": [review.by for review in record.reviews if review.action == "approve"],
        "notified": record.told,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """A rule that fired, with every field written out."""
    return {
        "stage": finding.stage,
        "code": finding.code,
        "outcome": finding.outcome,
        "evidence": _times_written(finding.evidence),
    }


OF_OTHERS = frozenset({"paid_for", "vendor_paid_at", "other_vendors", "other_accounts"})
"""Parts of evidence that tell of other agents' payouts: what was paid on the account for a vendor, or to a fund
account."""
SUMS = frozenset({"used", "reserved", "committed"})
"""Parts that do so where the window is a vendor's."""
CHANNELS = ("channel", "confirmed_channel")
"""Where what an agent may see names a person's token or host."""


def for_its_agent(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A payout, an event's data, or a change of its policy, as the agent may see it. It keeps each rule that fired;
    whoever may ask for payouts could otherwise ask for one after the other, and learn whom the others pay, and where.
    Of a reviewer, or who changed a policy, it shows the name, and not by which token, or from which host, that came."""
    kept = dict(shown)
    for name in CHANNELS:
        if shown.get(name):
            kept[name] = kind_of(shown[name])
    if "reviews" in shown:
        kept["reviews"] = [{**review, "channel": kind_of(review["channel"])} for review in shown["reviews"]]
    if "findings" in shown:
        kept["findings"] = [
            {**finding, "evidence": _own(finding.get("evidence", {}))} for finding in shown["findings"]
        ]
    for part in ("beneficiary", "entity"):
        if shown.get(part) is not None:
            kept[part] = _own(shown[part])
    if shown.get("reservation"):
        kept["reservation"] = {
            **shown["reservation"],
            "windows": _own_windows(shown["reservation"]["windows"]),
        }
    if "windows" in shown:
        kept["windows"] = _own_windows(shown["windows"])
    return kept


def _own(told: Mapping[str, Any]) -> dict[str, Any]:
    if told.get("contact"):  # the bank told us who has the fund account, and the register of whom it tells
        return {name: told[name] for name in ("verdict", "problem") if name in told}
    of_others = OF_OTHERS | SUMS if str(told.get("scope", "")).startswith(OF_VENDORS) else OF_OTHERS
    return {name: value for name, value in told.items() if name not in of_others}


def _own_windows(windows: Sequence[Any]) -> list[Any]:
    """Those with their sums that are no vendor's; of a settlement, which names its windows only, all."""
    return [use for use in windows if isinstance(use, list) or not use["scope"].startswith(OF_VENDORS)]


def event_json(identity: str, event: Event) -> dict[str, Any]:
    """An event as scripts see it: `data` is everything but its type and its time."""
    data = _times_written(event_fields(event))
    for part in ("facts", "entity"):
        if data.get(part):
            data[part] = _times_written(data[part])
    for finding in (*data.get("findings", ()), *filter(None, [data.get("finding")])):
        finding["evidence"] = _times_written(finding.get("evidence", {}))
    if type(event) is PayoutRequested and event.intent.beneficiary is not None:
        data["intent"]["beneficiary"] = _masked(event.intent.beneficiary)
    return {"id": identity, "type": type_of(event), "at": iso(data.pop("at")), "data": data}


def _times_written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, with times as everywhere in what scripts read; None for one that is not set."""
    return {
        name: iso_or_none(value if name in _IN_US else value * US)
        if name in _IN_US or name in _IN_S
        else value
        for name, value in fields.items()
    }


def event_fields(event: Event) -> dict[str, Any]:
    """Every field of an event as the log has it, those too that the wire leaves out."""
    data = {name: msgspec.to_builtins(getattr(event, name)) for name in event.__struct_fields__}
    return data | {"reasons": event.codes} if type(event) is PayoutDecided else data


def _masked(payee: Beneficiary) -> dict[str, str]:
    fields: dict[str, str] = msgspec.to_builtins(payee)
    return {name: value if name in _OPEN_FIELDS else masked(value) for name, value in fields.items()}


def _reservation_json(record: PayoutRecord) -> dict[str, Any] | None:
    held = record.reservation
    if held is None:
        return None
    return {
        "state": held.state,
        "amount": held.amount,
        "fees": held.fees,
        "number": held.number,
        "windows": [
            {
                "scope": use.scope,
                "window": use.window,
                "limit": use.limit,
                "reserved": use.reserved,
                "committed": use.committed,
            }
            for use in held.windows
        ],
    }
