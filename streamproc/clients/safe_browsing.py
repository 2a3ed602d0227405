"""Google Safe Browsing v4, `threatMatches:find`: is this vendor's URL a known threat?

Whatever goes wrong, the answer is `unavailable` with a reason: the rules hold such a payout, and neither approve it nor
call it fraud. The API key is in the query, so no message here shows a URL.
"""

import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Struct

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import Answer, OutboundClient, OverHttp
from streamproc.clients.json_text import Unusable, read_answer
from streamproc.clients.limiter import Limiter
from streamproc.domain.case import Reputation
from streamproc.domain.domains import VendorUrl, parse_vendor_url
from streamproc.domain.plain import clean
from streamproc.errors import TryAgain
from streamproc.host_clock import host_clock_us

TIMEOUT_S = 2.0
"""For a whole lookup: a payout waits for it, and is held if it takes longer."""
CALLS_PER_S = 50.0
"""Far below the default quota (10,000 lookups a minute), far above what batches of 500 need."""
CALLS_BURST = 50
URLS_PER_CALL_MAX = 500
"""The API's own limit for one request."""
CLEAN_FRESH_S = 300
"""How long `clean` is valid: the v4 lookup names no duration for it; for threats it usually names 300 s."""
FRESH_S_MAX = 86_400
"""No answer is trusted for more than a day, whatever duration it names."""
THREATS_MAX = 8
"""Most threat types kept for one URL; four are asked for."""
THREAT_TYPES = ("MALWARE", "SOCIAL_ENGINEERING", "UNWANTED_SOFTWARE", "POTENTIALLY_HARMFUL_APPLICATION")

_DURATION = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?s")
_THREAT = re.compile(r"[A-Z_]{1,64}")


def open_safe_browsing(
    base_url: str, key: str, *, now_us: Callable[[], int] = host_clock_us
) -> "SafeBrowsing":
    """A client with this API's limits; `base_url` may end with `/v4` or the whole path. Close it with `aclose`."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix("/threatMatches:find").removesuffix("/v4")
    http = OutboundClient(
        "safe browsing",
        urlunsplit(parts._replace(path=path)),
        timeout_s=TIMEOUT_S,
        limiter=Limiter(CALLS_PER_S, CALLS_BURST),
        breaker=Breaker(),
    )
    return SafeBrowsing(http, key, now_us)


class SafeBrowsing(OverHttp):
    """Looks up many URLs at a time. `now_us` is the clock for the answers' times."""

    def __init__(self, http: OutboundClient, key: str, now_us: Callable[[], int] = host_clock_us) -> None:
        super().__init__(http)
        self._key = key
        self._now_us = now_us

    async def lookup(self, urls: Iterable[str]) -> dict[str, Reputation]:
        """A reputation for every URL, as it was spelled when asked. Never raises for the API's failures.

        Each 500 distinct URLs are one call of at most TIMEOUT_S. A verdict is `clean`, `threat`, or `unavailable`
        with its `problem`, which is never fresh. Its times count from before the call.
        """
        asked = list(dict.fromkeys(urls))
        found: dict[str, Reputation] = {}
        for start in range(0, len(asked), URLS_PER_CALL_MAX):
            found |= await self._lookup_batch(asked[start : start + URLS_PER_CALL_MAX])
        return found

    async def _lookup_batch(self, urls: list[str]) -> dict[str, Reputation]:
        now_us = self._now_us()
        canonical = {url: _canonical(url) for url in urls}
        try:
            answer = await self._http.call(
                "POST",
                "/v4/threatMatches:find",
                params={"key": self._key},
                headers={"content-type": "application/json"},
                content=_request(dict.fromkeys(canonical.values())),
            )
            matches = _matches(answer, set(canonical.values()))
        except (TryAgain, Unusable) as problem:
            return dict.fromkeys(urls, _unavailable(str(problem), now_us))
        return {url: _reputation(matches, canonical[url], now_us) for url in urls}


class _Match(Struct, frozen=True):
    url: str
    threat: str
    fresh_s: float


def _canonical(url: str) -> str:
    parsed = parse_vendor_url(url)
    return parsed.href if isinstance(parsed, VendorUrl) else url


def _request(urls: Iterable[str]) -> bytes:
    threat_info = {
        "threatTypes": THREAT_TYPES,
        "platformTypes": ["ANY_PLATFORM"],
        "threatEntryTypes": ["URL"],
        "threatEntries": [{"url": clean(url, len(url))} for url in urls],
    }
    client = {"clientId": "streamproc", "clientVersion": "1"}
    return msgspec.json.encode({"client": client, "threatInfo": threat_info})


def _matches(answer: Answer, asked: set[str]) -> list[_Match]:
    """The threats named. Raises Unusable for an answer that cannot be read or is about a URL that was not asked for,
    since then no `clean` could be trusted."""
    body = read_answer(answer.status, answer.body, "safe browsing")
    matches = body.get("matches", []) if isinstance(body, dict) else None
    if not isinstance(matches, list):
        raise Unusable("safe browsing's answer has no list of matches")
    named = [_match(match) for match in matches]
    if any(match.url not in asked for match in named):
        raise Unusable("safe browsing named a threat for a URL that was not asked for")
    return named


def _match(match: object) -> _Match:
    entry = match.get("threat") if isinstance(match, dict) else None
    url = entry.get("url") if isinstance(entry, dict) else None
    if not isinstance(match, dict) or not isinstance(url, str):
        raise Unusable("safe browsing named a threat without its URL")
    threat = match.get("threatType")
    if not isinstance(threat, str) or not _THREAT.fullmatch(threat):
        threat = "THREAT_TYPE_UNSPECIFIED"
    return _Match(_canonical(url), threat, _duration_s(match.get("cacheDuration")))


def _reputation(matches: list[_Match], url: str, now_us: int) -> Reputation:
    mine = [match for match in matches if match.url == url]
    if not mine:
        return Reputation(verdict="clean", checked_at=now_us, fresh_until=now_us + CLEAN_FRESH_S * 1_000_000)
    fresh_s = min(match.fresh_s for match in mine)
    return Reputation(
        verdict="threat",
        threats=tuple(sorted({match.threat for match in mine})[:THREATS_MAX]),
        checked_at=now_us,
        fresh_until=now_us + round(fresh_s * 1_000_000),
    )


def _unavailable(problem: str, now_us: int) -> Reputation:
    return Reputation(verdict="unavailable", checked_at=now_us, fresh_until=now_us, problem=problem)


def _duration_s(text: object) -> float:
    """Seconds in `300.000s`; the default if it is not usable."""
    parts = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if parts is None:
        return CLEAN_FRESH_S
    return min(float(f"{parts[1]}.{parts[2] or 0}"), FRESH_S_MAX)
