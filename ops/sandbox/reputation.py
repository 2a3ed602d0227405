"""Safe Browsing v4, `threatMatches:find`: it names a threat for listed hosts and those below them."""

import json
from collections import deque
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.sandbox.neighbours import Availability, fault_response

CALLS_MAX = 50_000
ENTRIES_MAX = 500
"""Safe Browsing's own limit of URLs in one request."""
THREATS = {"malware.example.net": "MALWARE", "phishing.example.org": "SOCIAL_ENGINEERING"}


class ThreatInfo(Struct, kw_only=True, rename="camel"):
    """What is asked; on the wire the names are in camel case."""

    threat_types: list[str]
    platform_types: list[str]
    threat_entry_types: list[str]
    threat_entries: list[dict[str, str]]


class Lookup(Struct, kw_only=True, rename="camel"):
    """The request's body."""

    threat_info: ThreatInfo
    client: dict[str, str] = {}


class ReputationKnobs(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /_control/safebrowsing`; what is not given stays as it is."""

    threats: dict[str, str] | None = None
    """Host -> threat type; replaces the list."""
    cache_s: int | None = None
    down: Availability | None = None
    slow_ms: int | None = None


class Reputation:
    """The list, the availability, and who asked for what."""

    def __init__(self, key: str) -> None:
        self.threats = dict(THREATS)
        self.cache_s = 300
        self.availability: Availability = "ok"
        self.slow_ms = 0
        self.calls: deque[dict[str, object]] = deque(maxlen=CALLS_MAX)
        self._key = key

    def apply(self, knobs: ReputationKnobs) -> None:
        """Change what the knobs name."""
        self.threats = self.threats if knobs.threats is None else knobs.threats
        self.cache_s = self.cache_s if knobs.cache_s is None else knobs.cache_s
        self.availability = knobs.down or self.availability
        self.slow_ms = self.slow_ms if knobs.slow_ms is None else knobs.slow_ms

    async def find(self, request: Request, now: float) -> Response:
        """`POST /safebrowsing/v4/threatMatches:find?key=…`."""
        body = await request.body()
        call: dict[str, object] = {"at": now, "urls": [], "status": 0}
        self.calls.append(call)
        response = await fault_response(self.availability, self.slow_ms)
        if response is None:
            response = self._answer(request.query_params.get("key", ""), body, call)
        call["status"] = response.status_code
        return response

    def _answer(self, key: str, body: bytes, call: dict[str, object]) -> Response:
        if not key:
            words = "Method doesn't allow unregistered callers (callers without established identity)."
            return _refused(403, "PERMISSION_DENIED", words)
        if self._key not in ("", key):
            words = "API key not valid. Please pass a valid API key."
            return _refused(400, "INVALID_ARGUMENT", words)
        try:
            asked = msgspec.json.decode(body, type=Lookup).threat_info
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            return _refused(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {problem}")
        urls = [entry.get("url", "") for entry in asked.threat_entries]
        call["urls"] = urls
        if len(urls) > ENTRIES_MAX:
            return _refused(400, "INVALID_ARGUMENT", f"More than {ENTRIES_MAX} threat entries")
        matches = [self._match(url, asked) for url in urls if self._threat(url) in asked.threat_types]
        return JSONResponse({"matches": matches} if matches else {})

    def _match(self, url: str, asked: ThreatInfo) -> dict[str, object]:
        return {
            "threatType": self._threat(url),
            "platformType": asked.platform_types[0] if asked.platform_types else "ANY_PLATFORM",
            "threat": {"url": url},
            "cacheDuration": f"{self.cache_s}.000s",
            "threatEntryType": "URL",
        }

    def _threat(self, url: str) -> str | None:
        host = host_of(url)
        while host:
            if host in self.threats:
                return self.threats[host]
            host = host.partition(".")[2]
        return None


def host_of(url: str) -> str:
    """The host of a URL, with or without a scheme, in lower case; empty when there is none."""
    try:
        return (urlsplit(url if "://" in url else f"http://{url}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _refused(code: int, status: str, message: str) -> Response:
    body = json.dumps({"error": {"code": code, "message": message, "status": status}})
    return Response(body, code, media_type="application/json")
