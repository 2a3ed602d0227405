"""The API's answers: JSON, or a problem (RFC 9457). A handler that cannot answer raises Refusal."""

import logging
from collections.abc import Awaitable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from streamproc.domain.policy_changes import Contended, Differ
from streamproc.errors import JobFailed, LogBroken, LogUnavailable, TryAgain, Unprocessable, kind_of
from streamproc.ingress.problems import PROBLEM_JSON, problem_body
from streamproc.ingress.refusals import ThrottledWarning

RETRY_AFTER_S = 5
"""Retry-After of a 503, seconds."""
JSON = "application/json"
log = logging.getLogger(__name__)


class Refusal(Exception):
    """The request ends with a problem. `more`: extension members, as `errors` by field."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), more

    def response(self) -> Response:
        """The problem as a response."""
        return problem(self.status, self.detail, self.headers, **self.more)


def wrong_fields(errors: list[dict[str, str]]) -> Refusal:
    """422 that names every wrong field."""
    many = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    return Refusal(422, f"{many} with the request", errors=errors)


def wrong_field(field: str, problem: str) -> Refusal:
    """422 for one wrong field."""
    return wrong_fields([{"field": field, "problem": problem}])


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem as a response."""
    body = problem_body(status, detail, **more)
    return Response(body, status, headers, media_type=PROBLEM_JSON.decode("ascii"))


def json_answer(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type=JSON)


async def answered(handling: Awaitable[Response], unanswered: ThrottledWarning) -> Response:
    """The answer; a refusal becomes its problem, and 503 is sent while the log or the archive cannot be asked. That is
    counted in `unanswered`: while a store is away, it happens to every request."""
    try:
        return await handling
    except Refusal as refusal:
        return refusal.response()
    except (Contended, Differ) as found:  # its text says what to do; the log itself is sound
        log.warning("a request was not answered: %s", found)
        return problem(503, str(found), {"retry-after": str(RETRY_AFTER_S)})
    except (LogUnavailable, LogBroken, TryAgain, JobFailed, Unprocessable, TimeoutError) as trouble:
        # Unprocessable: a later version wrote it, and only that version's `serve` can read it.
        unanswered.count(str(trouble) or kind_of(trouble))
        what = "the archive" if isinstance(trouble, TryAgain) else "the log"
        return away(what).response()


def away(what: str) -> Refusal:
    """503: `what` cannot be asked."""
    return Refusal(
        503,
        f"{what} cannot be asked now; ask again, with the same Idempotency-Key where there was one",
        {"retry-after": str(RETRY_AFTER_S)},
    )
