"""The audit for the HTTP API: pages of lines that keep their order while the audit grows."""

from datetime import datetime
from typing import Any

from streamproc.archive.gauges import views_behind
from streamproc.archive.read import AuditFilter, audit_position, audit_rows
from streamproc.errors import InputError, TryAgain
from streamproc.operate.audit_list import lacking, line_json, page_of, parts_of
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.moments import iso_moment


class AuditService:
    """Reads the view `audit`."""

    def __init__(self, gateway: SiteGateway) -> None:
        self._gateway = gateway

    async def page(self, asked: dict[str, str], *, after: str | None, limit: int) -> dict[str, Any]:
        """Lines after another one. Raises TryAgain if Postgres is away, InputError for an invalid time or line."""
        given: dict[str, Any] = dict(asked)
        for name in ("since", "until"):
            if name in given:
                given[name] = _moment(name, given[name])
        async with self._gateway.site() as site:
            start = None
            if after is not None:
                start = await site.ask_postgres(audit_position, *parts_of(after))
                if start is None and not site.postgres_problem:
                    raise InputError("after is no line of the audit")
            behind = await site.ask_postgres(views_behind)
            rows = await site.ask_postgres(audit_rows, AuditFilter(**given), after=start, limit=limit + 1)
            if behind is None or rows is None:
                raise TryAgain(site.postgres_problem)
        page = page_of(rows, limit, lacking(behind))
        return {"items": [line_json(row) for row in page.items], "next": page.next, "notes": page.notes}


def _moment(name: str, text: str) -> datetime:
    at = iso_moment(text)
    if at is None:
        raise InputError(f"{name} must be a time in ISO 8601, like 2026-11-26T09:00:00Z")
    return at
