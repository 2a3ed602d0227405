import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.json import decode, encode

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient
from streamproc.clients.limiter import Limiter
from streamproc.clients.safe_browsing import (
    CLEAN_FRESH_S,
    FRESH_S_MAX,
    URLS_PER_CALL_MAX,
    SafeBrowsing,
    open_safe_browsing,
)
from streamproc.domain.case import Reputation
from tests.clients.loopback import NO_ANSWERS, Asked, Loopback, Script, always, loopback, response, silent_for

NOW_US = 1_760_000_000_000_000
GOOD, BAD = "https://vendor.example/pay", "https://malware.example/"
CLEAN = Reputation(verdict="clean", checked_at=NOW_US, fresh_until=NOW_US + CLEAN_FRESH_S * 1_000_000)


def match(url: str = BAD, threat: object = "MALWARE", duration: object = "300.000s") -> dict[str, object]:
    return {
        "threatType": threat,
        "platformType": "ANY_PLATFORM",
        "threat": {"url": url},
        "cacheDuration": duration,
    }


@asynccontextmanager
async def google(script: Script) -> AsyncIterator[tuple[SafeBrowsing, Loopback]]:
    async with loopback(script) as server:
        client = open_safe_browsing(server.url + "/v4/", "SECRET-KEY", now_us=lambda: NOW_US)
        try:
            yield client, server
        finally:
            await client.aclose()


async def looked_up(script: Script, *urls: str) -> dict[str, Reputation]:
    async with google(script) as (client, _):
        return await client.lookup(urls or (BAD,))


async def test_it_asks_for_every_threat_type_with_the_key_in_the_query() -> None:
    async with google(always(200, {})) as (client, server):
        await client.lookup([GOOD, BAD, GOOD])
    (asked,) = server.asked
    info = decode(asked.body)["threatInfo"]
    assert (asked.method, asked.path, asked.query) == (
        "POST",
        "/v4/threatMatches:find",
        {"key": "SECRET-KEY"},
    )
    assert set(info["threatTypes"]) == {
        "MALWARE", "SOCIAL_ENGINEERING", "UNWANTED_SOFTWARE", "POTENTIALLY_HARMFUL_APPLICATION",
    }  # fmt: skip
    assert (info["platformTypes"], info["threatEntryTypes"]) == (["ANY_PLATFORM"], ["URL"])
    assert info["threatEntries"] == [{"url": GOOD}, {"url": BAD}]


@pytest.mark.parametrize("suffix", ["", "/", "/v4", "/v4/", "/v4/threatMatches:find"])
@pytest.mark.parametrize("prefix", ["", "/safebrowsing"])
async def test_the_configured_url_may_name_the_version_and_the_method_or_not(
    prefix: str, suffix: str
) -> None:
    async with loopback(always(200, {})) as server:
        client = open_safe_browsing(server.url + prefix + suffix, "k")
        await client.lookup([GOOD])
        await client.aclose()
    assert [asked.path for asked in server.asked] == [prefix + "/v4/threatMatches:find"]


async def test_an_empty_answer_is_clean_for_the_default_time() -> None:
    assert await looked_up(always(200, {}), GOOD) == {GOOD: CLEAN}


async def test_a_match_is_a_threat_of_its_own_url_only_and_fresh_as_long_as_it_says() -> None:
    found = await looked_up(always(200, {"matches": [match(duration="593.440s")]}), GOOD, BAD)
    assert found[GOOD] == CLEAN
    assert found[BAD] == Reputation(
        verdict="threat", threats=("MALWARE",), checked_at=NOW_US, fresh_until=NOW_US + 593_440_000
    )


async def test_several_threats_of_one_url_are_all_named_and_the_shortest_duration_counts() -> None:
    matches = [match(), match(threat="SOCIAL_ENGINEERING", duration="60s"), match(duration="900s")]
    found = (await looked_up(always(200, {"matches": matches})))[BAD]
    assert found.threats == ("MALWARE", "SOCIAL_ENGINEERING")
    assert found.fresh_until == NOW_US + 60_000_000


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("0s", 0), ("300s", 300), ("0.5s", 0.5), ("999999s", FRESH_S_MAX)]
    + [(bad, CLEAN_FRESH_S) for bad in (None, "", "300", "-3s", "1e9s", "soon", 300, "٣s", "1.s")],
)
async def test_cache_durations(duration: object, seconds: float) -> None:
    found = (await looked_up(always(200, {"matches": [match(duration=duration)]})))[BAD]
    assert found.fresh_until == NOW_US + round(seconds * 1_000_000)


@pytest.mark.parametrize("threat", [None, 7, "", "<script>", "x" * 300])
async def test_a_threat_of_an_odd_type_is_still_a_threat(threat: object) -> None:
    found = (await looked_up(always(200, {"matches": [match(threat=threat)]})))[BAD]
    assert (found.verdict, found.threats) == ("threat", ("THREAT_TYPE_UNSPECIFIED",))


@pytest.mark.parametrize(
    "script",
    [
        always(400, {"error": {"message": "API key not valid SECRET-KEY"}}),
        *NO_ANSWERS,
        always(200, {"matches": None}),
        always(200, {"matches": [7]}),
        always(200, {"matches": [{"threatType": "MALWARE"}]}),
        always(200, {"matches": [match(url="https://never-asked.example/")]}),
    ],
)
async def test_whatever_goes_wrong_the_verdict_is_unavailable_never_fresh_and_gives_a_reason(
    script: Script,
) -> None:
    found = await looked_up(script, GOOD, BAD)
    for reputation in found.values():
        assert (reputation.verdict, reputation.fresh_until) == ("unavailable", NOW_US)
        assert reputation.problem
        assert "SECRET" not in reputation.problem
    assert set(found) == {GOOD, BAD}


async def test_no_answer_in_time_is_unavailable() -> None:
    async with loopback(silent_for(20)) as server:
        http = OutboundClient("sb", server.url, timeout_s=20, limiter=Limiter(50, 50), breaker=Breaker())
        async with http:
            found = await SafeBrowsing(http, "k", lambda: NOW_US).lookup([BAD])
    assert found[BAD].verdict == "unavailable"
    assert len(server.asked) == 1


async def test_while_the_breaker_is_open_it_is_unavailable_without_a_call() -> None:
    async with google(always(500)) as (client, server):
        for _ in range(6):
            found = await client.lookup([BAD])
    assert found[BAD].verdict == "unavailable"
    assert "breaker" in found[BAD].problem
    assert len(server.asked) == 5


async def test_more_urls_than_one_call_may_hold_are_asked_in_several() -> None:
    urls = [f"https://v{number}.example/" for number in range(URLS_PER_CALL_MAX + 1)]
    sizes: list[int] = []

    async def script(asked: Asked) -> bytes:
        entries = decode(asked.body)["threatInfo"]["threatEntries"]
        sizes.append(len(entries))
        return response(200, encode({"matches": [match(url=entries[-1]["url"])]}))

    found = await looked_up(script, *urls)
    assert sizes == [URLS_PER_CALL_MAX, 1]
    assert [url for url in urls if found[url].verdict == "threat"] == [urls[-2], urls[-1]]


async def test_two_spellings_of_one_url_are_asked_once_and_answered_both() -> None:
    other = "HTTPS://MALWARE.example:443"
    async with google(always(200, {"matches": [match()]})) as (client, server):
        found = await client.lookup([BAD, other])
    assert len(decode(server.asked[0].body)["threatInfo"]["threatEntries"]) == 1
    assert (found[BAD].verdict, found[other].verdict) == ("threat", "threat")


async def test_a_text_that_is_no_url_can_still_be_asked_for() -> None:
    odd = "not a url \ud800"
    found = await looked_up(always(200, {}), odd)
    assert found[odd].verdict == "clean"


async def test_the_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await looked_up(always(200, {}), GOOD)
    await looked_up(always(500), GOOD)
    assert "SECRET" not in caplog.text
