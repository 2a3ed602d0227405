"""`GET /v1/audit`: the audit's lines, the newest first, as `streamproc audit list` has them. 503 without Postgres."""

from typing import Any, Protocol, get_args

from starlette.responses import Response

from projections.audit import Kind
from streamproc.api.answers import json_answer, wrong_field
from streamproc.api.operations import Call, Number, Operation, Says, Text
from streamproc.api.policy_shapes import AuditPage
from streamproc.errors import InputError

PAGE_MAX = 500
"""Lines in one answer, some 300 bytes each."""
PAGE = 100
NAMED = r"[^\x00-\x1f\x7f]{1,256}"
"""A filter's value: control characters are refused, which no name has."""

FILTERS = (
    Text("payout", "a payout's id", NAMED),
    Text("agent", "an agent's id", NAMED),
    Text("vendor", "a vendor's host or fund account", NAMED),
    Text("kind", f"a kind of line: {', '.join(get_args(Kind))}", "|".join(get_args(Kind))),
    Text("decision", "APPROVED, REJECTED or HELD", "APPROVED|REJECTED|HELD"),
    Text("reason", "a reason as the line has it", NAMED),
    Text("since", "a time in ISO 8601, which is included", NAMED),
    Text("until", "a time in ISO 8601, which is not", NAMED),
)


class AuditService(Protocol):
    """What this route needs (streamproc/operate/audit_service.py). Raises TryAgain if Postgres is away."""

    async def page(self, asked: dict[str, str], *, after: str | None, limit: int) -> dict[str, Any]:
        """The lines after line `after`. Raises InputError for a bad time or line."""
        ...


def audit_operations(service: AuditService) -> list[Operation]:
    """The route."""

    async def page(call: Call) -> Response:
        asked = {one.name: call.text(one.name) for one in FILTERS if call.text(one.name)}
        try:
            found = await service.page(asked, after=call.text("after") or None, limit=call.number("limit"))
        except InputError as problem:
            field, _, what = str(problem).partition(" ")
            raise wrong_field(field, what) from problem
        return json_answer(200, found)

    return [
        Operation(
            method="GET", path="/v1/audit", name="listAudit",
            summary="What was decided, reviewed, commanded, confirmed, settled and changed, the newest first",
            action="read all", handle=page, says={200: Says("A page", AuditPage)},
            reads=(*FILTERS, Number("limit", "how many", 1, PAGE_MAX, PAGE),
                   Text("after", "the `next` of another answer", r"[0-9]{1,4}:[0-9]{1,15}-[0-9]{1,18}:[0-9]{1,6}")),
        )
    ]  # fmt: skip
