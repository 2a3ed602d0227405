"""GLEIF's register, `GET /gleif/api/v1/lei-records`: just enough of JSON:API to look an entity up."""

from collections import deque

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.sandbox.neighbours import Availability, fault_response

CALLS_MAX = 10_000
PAGE_SIZE_DEFAULT = 10
PAGE_SIZE_MAX = 200
MEDIA_TYPE = "application/vnd.api+json"


class LegalEntity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One record. `status` is the entity's, `registration` the LEI's own."""

    lei: str
    name: str
    country: str = "IN"
    status: str = "ACTIVE"
    registration: str = "ISSUED"

    def shown(self) -> dict[str, object]:
        """As the register shows it."""
        return {
            "type": "lei-records",
            "id": self.lei,
            "attributes": {
                "lei": self.lei,
                "entity": {
                    "legalName": {"name": self.name, "language": "en"},
                    "legalAddress": {"country": self.country},
                    "jurisdiction": self.country,
                    "status": self.status,
                },
                "registration": {"status": self.registration},
            },
        }


class RegistryKnobs(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /_control/gleif`; what is not given stays as it is."""

    records: list[LegalEntity] | None = None
    down: Availability | None = None
    slow_ms: int | None = None


class Registry:
    """The records, the availability, and who asked for what."""

    def __init__(self) -> None:
        self.records = [
            LegalEntity(lei="984500SANDBOX0000190", name="Asha Paper Works Private Limited"),
            LegalEntity(
                lei="984500SANDBOX0000287",
                name="Lapsed Traders Private Limited",
                status="INACTIVE",
                registration="LAPSED",
            ),
        ]
        self.availability: Availability = "ok"
        self.slow_ms = 0
        self.calls: deque[dict[str, object]] = deque(maxlen=CALLS_MAX)

    def apply(self, knobs: RegistryKnobs) -> None:
        """Change what the knobs name."""
        self.records = self.records if knobs.records is None else knobs.records
        self.availability = knobs.down or self.availability
        self.slow_ms = self.slow_ms if knobs.slow_ms is None else knobs.slow_ms

    async def find(self, request: Request, now: float) -> Response:
        """By `filter[lei]` exactly, or `filter[entity.legalName]` as a part of the name, case ignored; the first
        `page[size]`."""
        query = request.query_params
        name, lei = query.get("filter[entity.legalName]", ""), query.get("filter[lei]", "")
        self.calls.append({"at": now, "name": name, "lei": lei})
        response = await fault_response(self.availability, self.slow_ms)
        if response is not None:
            return response
        found = [
            record.shown()
            for record in self.records
            if (not lei or record.lei == lei) and name.casefold() in record.name.casefold()
        ]
        asked = query.get("page[size]", "")
        size = min(int(asked), PAGE_SIZE_MAX) if asked.isascii() and asked.isdigit() else PAGE_SIZE_DEFAULT
        meta = {"pagination": {"currentPage": 1, "perPage": size, "total": len(found)}}
        body = {"meta": meta, "data": found[:size]}
        return JSONResponse(body, media_type=MEDIA_TYPE)
