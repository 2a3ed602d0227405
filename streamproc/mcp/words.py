"""What a model is told: what a payout's state means for whoever asked for it, and what the API's refusals say."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

SAME_AGAIN: Final = (
    "Call request_payout again with the same idempotency_key and the same arguments: that is the same payout and never"
    " a second one."
)
ERRORS_MAX: Final = 40
"""Wrong fields that are named; a request has some twenty."""


def link_to(public_url: str, payout: str) -> str | None:
    """Where people see a payout, as in messages; None where STREAMPROC_PUBLIC_URL is not set."""
    return f"{public_url}/v1/payouts/{quote(payout, safe='')}" if public_url else None


def of_payout(shown: Mapping[str, Any], link: str | None) -> str:
    """What a payout's decision and state mean, and what to do next."""
    reasons = ", ".join(shown["reasons"]) or shown["reason"]
    match shown["decision"]:
        case None:
            return (
                f"{shown['payout']} is taken and not decided yet. Look again with get_payout. Do not ask again under"
                " another key: that would be another payout."
            )
        case "HELD":
            where = f" It is at {link}." if link else ""
            return (
                f"{shown['payout']} is HELD ({reasons}): it waits for a person, and nothing here can approve it.{where}"
                " Tell whoever you work for. Do not ask again under another key, nor in smaller parts. Look again with"
                " get_payout."
            )
        case "REJECTED":
            return (
                f"{shown['payout']} is REJECTED ({reasons}): it is not paid. The same request under another key meets"
                " the same rules."
            )
    failure = f" ({shown['failure']})" if shown["failure"] else ""
    return f"{shown['payout']} is APPROVED. Its state is {shown['state']}{failure}; get_payout shows how far it is."


def of_problem(status: int, problem: Mapping[str, Any], *, asks: bool) -> str:
    """A refusal of the API (RFC 9457) in lines: status, title, detail, each wrong field. `asks`: of a new payout."""
    title = problem.get("title") or _phrase(status)
    lines = [f"HTTP {status} {title}: {problem.get('detail', 'no detail')}"]
    errors = problem.get("errors", ())
    lines += [f"- {one.get('field')}: {one.get('problem')}" for one in errors[:ERRORS_MAX]]
    if len(errors) > ERRORS_MAX:
        lines.append(f"- and {len(errors) - ERRORS_MAX} more")
    if asks and (status >= 500 or status == 429):
        lines.append(SAME_AGAIN)
    if asks and status == 409:
        lines.append("Look at that payout with get_payout first: under another key this is another payout.")
    return "\n".join(lines)


def of_wrong_arguments(problems: Mapping[str, str]) -> str:
    """Arguments that were refused here, as the API refuses a request's fields."""
    lines = [f"- {name}: {problem}" for name, problem in problems.items()]
    many = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{many} with the arguments; nothing was asked for", *lines])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "refused"
