"""W3C trace context, version 00, read strictly: it comes from callers and goes into the log."""

import re

from streamproc.telemetry.spans import Place

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def place_of(traceparent: str) -> Place | None:
    """The span that a `traceparent` names; None if it is malformed or not sampled."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    place = Place(int(found[1], 16), int(found[2], 16))
    return place if place.trace and place.span and int(found[3], 16) & 1 else None


def traceparent_of(place: Place) -> str:
    """The header of a sampled span."""
    return f"00-{place.trace:032x}-{place.span:016x}-01"
