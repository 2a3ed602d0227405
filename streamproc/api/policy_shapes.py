"""Requests and answers of the routes of policies, freezes, budgets and the audit, as types for `/openapi.json`."""

from typing import Annotated, Any, Final, Literal, get_origin

from msgspec import Meta, Struct
from msgspec.structs import fields

from streamproc.domain.anomaly import HOURS, PAYOUTS_MAX, PAYOUTS_MIN, QUANTILES, SCALE, AnomalyProfile
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.policy_fields import POLICY_FIELDS, Policy, RateLimit, Weekday, written

Why = Annotated[str, Meta(min_length=1, max_length=WHY_CHARS_MAX, pattern=r"\S")]


class PolicyShown(Struct, frozen=True):
    """An agent's policy: `own` as it was written, `effective` with the defaults; `freeze`: who froze it and why."""

    scope: str
    agent: str
    version: int
    own: dict[str, Any]
    effective: dict[str, Any]
    freeze: dict[str, Any] | None


class FieldChange(Struct, frozen=True):
    """One field of a scope; null: not set."""

    field: str
    before: Any
    after: Any


class Change(Struct, frozen=True):
    """One version of a scope, and the change that made it. A channel is `api:` and a token's name, or `cli:` and the
    shell's login and host; to the agent itself it is `api` or `cli`; null where an earlier version wrote it."""

    scope: str
    version: int
    at: str
    by: str
    channel: str | None
    why: str
    confirmed_by: str | None
    confirmed_channel: str | None
    removed: bool
    fields: list[FieldChange]


class Changes(Struct, frozen=True):
    """What is in force now that was not before; empty if nothing changed. `left`: what a person must look at."""

    changed: bool
    changes: list[Change]
    left: list[str] = []


class History(Struct, frozen=True):
    """Changes, the oldest first; give `next` as `after` to get more. `notes` say what may be missing."""

    items: list[Change]
    next: int | None
    notes: list[str]


class Loosens(Struct, frozen=True):
    """One field by which a change lets more through. An empty `field` means the scope as a whole."""

    scope: str
    field: str
    before: Any
    after: Any
    why: str


class ProposalShown(Struct, frozen=True):
    """A change that waits, or waited, for a second person."""

    id: str
    state: str
    by: str
    why: str
    channel: str
    proposed_at: str
    expires_at: str
    confirmed_by: str | None
    confirmed_channel: str | None
    withdrawn_by: str | None
    withdrawn_channel: str | None
    closed_at: str | None
    loosens: list[Loosens]
    changes: list[Any]


class Waits(Struct, frozen=True):
    """Nothing changed yet: somebody else must confirm it."""

    proposal: ProposalShown


class Proposals(Struct, frozen=True):
    """Proposals, the newest first."""

    items: list[ProposalShown]
    next: str | None


class Freeze(Struct, frozen=True, forbid_unknown_fields=True):
    """Why, for the audit and for every rejection's evidence."""

    why: Why


class FreezeShown(Struct, frozen=True):
    """A freeze that is in force."""

    scope: str
    by: str
    why: str


class Freezes(Struct, frozen=True):
    """Every freeze that is in force."""

    items: list[FreezeShown]


class Frozen(Struct, frozen=True):
    """What is in force now. `notes`: surprises, for a person."""

    scope: str
    frozen: bool
    changed: bool
    notes: list[str]


class BudgetWindow(Struct, frozen=True):
    """One window as it is now. Paise; `remaining` is never below 0."""

    scope: str
    window: str
    limit: int
    reserved: int
    committed: int
    remaining: int


class Budget(Struct, frozen=True):
    """The windows that limit an agent now. A vendor's own window is known only of a payout, and is not here."""

    agent: str
    windows: list[BudgetWindow]


class AuditLine(Struct, frozen=True):
    """One line of the audit; `id` is the event's."""

    id: str
    at: str
    kind: str
    decision: str | None
    reason: str
    payout: str | None
    agent: str
    vendor: str
    amount: int | None
    actor: str
    partition: int
    seq: int
    place: int
    trace_id: str | None


class AuditPage(Struct, frozen=True):
    """Lines, the newest first; `next` is what to ask `after` for more. `notes` say what may be missing."""

    items: list[AuditLine]
    next: str | None
    notes: list[str] = []


def _numbers(many: int, most: int, least: int = 0) -> dict[str, Any]:
    one = {"type": "integer", "minimum": least, "maximum": most}
    return {"type": "array", "items": one, "minItems": many, "maxItems": many}


_LIMIT: Final = {"type": ["integer", "null"], "minimum": 0, "maximum": AMOUNT_MAX_PAISE}
_FLAG: Final = {"type": ["boolean", "null"]}
_TEXTS: Final = {"type": ["array", "null"], "items": {"type": "string"}}
_SECONDS: Final = {"type": ["integer", "string", "null"]}
_TEXT: Final = {"type": ["string", "null"]}
_RATE: Final = {
    "type": ["object", "null"],
    "properties": {"count": {"type": "integer"}, "window": _SECONDS},
    "additionalProperties": False,
}
_PROFILE: Final = {
    "type": ["object", "null"],
    "description": "Measured by `streamproc policy calibrate`; a PUT that does not name it keeps the one in force.",
    "properties": {
        **{name: {"type": "string"} for name in ("since", "until", "timezone")},
        "payouts": {"type": "integer", "minimum": PAYOUTS_MIN, "maximum": PAYOUTS_MAX},
        "threshold": {"type": "integer", "minimum": 0, "maximum": SCALE},
        "amounts": _numbers(QUANTILES, AMOUNT_MAX_PAISE, least=1),
        **{name: _numbers(HOURS, PAYOUTS_MAX) for name in ("weekday_hours", "weekend_hours")},
    },
    "additionalProperties": False,
}
_KINDS: Final[dict[Any, Any]] = {
    int | None: _LIMIT,
    int: _SECONDS,
    bool: _FLAG,
    str | None: _TEXT,
    RateLimit: _RATE,
    tuple[str, ...]: _TEXTS,
    tuple[Weekday, ...]: _TEXTS,
    tuple[int, int] | None: _TEXT,  # hours
    AnomalyProfile | None: _PROFILE,
}
"""By the type in `Policy`, how a field is written; words (Literal) are text. An unknown type is a KeyError at once."""


def _kinds() -> dict[str, Any]:
    types = {written(field.name, None)[0]: field.type for field in fields(Policy)}
    return {
        name: _TEXT if get_origin(types[name]) is Literal else _KINDS[types[name]] for name in POLICY_FIELDS
    }


POLICY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        **_kinds(),
        "why": {"type": "string", "minLength": 1, "maxLength": WHY_CHARS_MAX},
    },
    "additionalProperties": False,
}
"""A policy's fields at top level, and why; docs/governance.md has what each may be."""
