"""The words for a model: what a payout's state means to whoever asked for it, and what the API's refusals say."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Struct

from streamproc.domain.plain import cut, plain
from streamproc.domain.states import TERMINAL_STATES

SAME_AGAIN: Final = (
    "Call request_payout again with the same idempotency_key and the same arguments: that is the same payout and never"
    " a second one."
)
ERRORS_MAX: Final = 40
"""Most wrong fields that are named; a request has some twenty."""
FAILURE_UNITS_MAX: Final = 200
"""Characters of the bank's own reason for making no payout."""


def of_payout(shown: Mapping[str, Any], link: str | None) -> str:
    """What a payout's state means, and what to do next. Its end matters more than its decision."""
    name, state = shown["payout"], shown["state"]
    reasons = ", ".join(shown["reasons"]) or shown["reason"]
    failure = f" ({cut(plain(shown['failure']), FAILURE_UNITS_MAX)})" if shown["failure"] else ""
    if state == "processed":
        return f"{name} is paid: the bank has processed it."
    if state == "bypassed":
        return f"{name}: the bank moved it without an approval here. Tell whoever you work for; do not ask again."
    if shown["decision"] == "REJECTED":
        return (
            f"{name} is REJECTED ({reasons}): it is not paid. The same request under another key meets the same"
            " rules."
        )
    if state in TERMINAL_STATES:
        return (
            f"{name} is not paid: its state is {state}{failure}, and that is its end. The same key only shows it again;"
            " another key is another payout, which is decided anew."
        )
    if shown["decision"] is None:
        return (
            f"{name} is taken and not decided yet. Look again with get_payout. Do not ask again under another key: that"
            " would be another payout."
        )
    if shown["decision"] == "HELD":
        where = f" It is at {link}." if link else ""
        return (
            f"{name} is HELD ({reasons}): it waits for a person, and nothing here can approve it.{where} Tell whoever"
            " you work for. Do not ask again under another key, nor in smaller parts. Look again with get_payout."
        )
    return f"{name} is APPROVED. Its state is {state}{failure}; get_payout shows how far it is."


class _Field(Struct):
    field: str
    problem: str


class _Problem(Struct):
    title: str = ""
    detail: str = "no detail"
    errors: list[_Field] = []


def of_problem(status: int, body: Mapping[str, Any], *, asks: bool, after_s: float | None = None) -> str:
    """A refusal of the API (RFC 9457) in lines: status, title, detail, wrong fields. `asks`: a payout was requested."""
    try:
        problem = msgspec.convert(body, _Problem)
    except msgspec.ValidationError:  # a proxy between us and the API answered
        problem = _Problem()
    lines = [f"HTTP {status} {problem.title or _phrase(status)}: {problem.detail}"]
    lines += [f"- {one.field}: {one.problem}" for one in problem.errors[:ERRORS_MAX]]
    if len(problem.errors) > ERRORS_MAX:
        lines.append(f"- and {len(problem.errors) - ERRORS_MAX} more")
    if after_s is not None and status in (429, 503):
        lines.append(f"Ask again in {after_s:g} s.")
    if asks and (status >= 500 or status == 429):
        lines.append(SAME_AGAIN)
    if asks and status == 409:
        lines.append(
            "Look at that payout with get_payout first. If it is what you were to pay, another key would pay it twice."
        )
    return "\n".join(lines)


def of_lost(why: str, *, asks: bool) -> str:
    """What to say if an answer never came or cannot be read."""
    return f"{why}; whether it was taken is not known. {SAME_AGAIN}" if asks else why


def of_defect(*, asks: bool) -> str:
    """What to say if a call failed by a defect here, perhaps after it was sent."""
    return of_lost("the call failed here; the reason is in the log of `streamproc mcp`", asks=asks)


def of_wrong_arguments(problems: Mapping[str, str]) -> str:
    """What to say of arguments that were refused here, in the form of the API's wrong fields."""
    lines = [f"- {name}: {problem}" for name, problem in problems.items()]
    many = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{many} with the arguments; nothing was asked for", *lines])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "refused"
