"""Whatever is in an entry, its group goes on: the entry is skipped, handled, or set aside with a reason."""

import asyncio
import json
from unittest import mock

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain.wire import encode_events
from streamproc.log import failures, scripts
from streamproc.log.connection import connected
from tests.engine import Engine
from tests.words import ACCOUNT, NOW, observed, requested

POLICIES = """
policies:
  bot: {daily_limit: 1_000_000_000, require_approval_above: 1_000_000}
reviewers: [asha]
"""
ENTRIES_MAX = 12
EXAMPLES = 12
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example takes a second, so shrinking one would take minutes."""
LONG = "x" * 1_000_000
"""A note of one megabyte: more than the webhook accepts, but not more than a stream holds."""
DEEP = "[" * 20_000
SAMPLES: list[e.Event] = [
    observed("pout_hostile"),
    observed("pout_hostile", status="processed"),
    requested(key="hostile"),
    e.ReviewSubmitted(at=NOW, payout="pout_hostile", by="asha", action="approve", why="", channel="cli"),
    e.TimerFired(at=NOW, payout="pout_hostile", timer="hold_expiry"),
    e.BankCommandAnswered(
        at=NOW, payout="pout_hostile", command="approve", outcome="done", bank_status="processed"
    ),
    e.PayoutStopped(
        at=NOW,
        payout="pout_hostile",
        command="approve",
        finding=e.Finding(stage="screening", code="FROZEN", outcome="REJECTED"),
        maybe_sent=True,
        caused_by="0:1-1:0",
    ),
    e.VelocityChecked(at=NOW, payout="pout_hostile", number=0, used=0, limit=0, window_s=0),
    e.PayoutMalformed(at=NOW, payout="pout_hostile", account=ACCOUNT, source="webhook", problem="amount"),
    e.PayoutSettled(
        at=NOW, payout="pout_hostile", settlement="released", amount=1, why="", windows=[["agent:bot", "x"]]
    ),
]
VALUES = [
    *("null", "true", "-1", "0", "1.5", "NaN", "Infinity", "9007199254740993", "1e400", "9" * 5_000),
    *('"\\ud800"', '""', '"\\u0000"', "[]", "{}", '[{"a":[]}]', DEEP, DEEP + "]" * 20_000, f'"{LONG}"'),
]
"""Texts that are or look like JSON: huge numbers, a lone surrogate, endless nesting."""


@st.composite
def hostile(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Fields `e` and `m` of an entry that no process of ours would write."""
    m = draw(st.sampled_from([b'{"by":"stranger"}', b"{}", b"", b"[", b'{"by":7}', b'{"by":"governance"']))
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=60)), m
    fields = json.loads(encode_events([draw(st.sampled_from(SAMPLES))]))[0]
    parts = {name: json.dumps(value, separators=(",", ":")) for name, value in fields.items()}
    change = draw(st.sampled_from(["replace", "remove", "double", "add", "inner", "none"]))
    name = draw(st.sampled_from(sorted(parts)))
    if change == "replace":
        parts[name] = draw(st.sampled_from(VALUES))
    elif change == "remove":
        del parts[name]
    elif change == "add":
        parts["of another version"] = draw(st.sampled_from(VALUES))
    elif change == "inner" and "facts" in parts:
        inner = {**fields["facts"], draw(st.sampled_from(sorted(fields["facts"]))): "\x00?"}
        parts["facts"] = json.dumps(inner, separators=(",", ":")).replace(
            '"\\u0000?"', draw(st.sampled_from(VALUES))
        )
    text = ",".join(f'"{key}":{value}' for key, value in parts.items())
    if change == "double" and name in parts:
        text += f',"{name}":{draw(st.sampled_from(VALUES))}'
    times = draw(st.sampled_from([1, 1, 1, 2]))
    return ("[" + ",".join(times * [f"{{{text}}}"]) + "]").encode("utf-8", "surrogatepass"), m


HUGE = encode_events([SAMPLES[0]])[:-2] + b',"of another version":' + b"9" * 5_000 + b"}]"
NAMELESS = [(encode_events([replace(event, payout="")]), b"{}") for event in (SAMPLES[0], SAMPLES[2])]


@given(st.lists(hostile(), min_size=1, max_size=ENTRIES_MAX))
@example(NAMELESS)
@example([(HUGE, b"{}")])
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
def test_no_entry_stops_its_group_or_vanishes_without_a_reason(
    valkey: str, entries: list[tuple[bytes, bytes]]
) -> None:
    with mock.patch.object(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0)):
        asyncio.run(_among_others(valkey, entries))


async def _among_others(url: str, entries: list[tuple[bytes, bytes]]) -> None:
    async with connected(url) as client:
        await client.flushall()
    async with Engine(url) as engine:
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_first"))
        written = [await engine.client.xadd(engine.names.log, {"e": e, "m": m}) for e, m in entries]
        await engine.append(ACCOUNT, observed("pout_last"))
        await engine.settled(wholly=True)

        assert await engine.client.hexists(engine.names.payout("pout_first"), "s")
        for payout in ("pout_first", "pout_last"):
            kept = await engine.client.hget(engine.names.payout(payout), "s")
            assert kept is not None
            assert json.loads(kept)["decision"] == "APPROVED"
        letters = [
            dict(zip(fields[::2], fields[1::2], strict=True))
            for _, fields in await engine.client.xrange(engine.names.dead)
        ]
        assert all(letter[b"problem"] for letter in letters)
        set_aside = {letter[b"entry"] for letter in letters}
        unreadable = {entry for entry, (e, m) in zip(written, entries, strict=True) if _must_be_told_of(e, m)}
        assert unreadable <= set_aside


def _must_be_told_of(e: bytes, m: bytes) -> bool:
    """Whether the entry claims to show a payout but is not JSON or does not name it, so that it must not be skipped."""
    if not e.startswith(b'[{"type":"payout.observed"') or m.startswith(b'{"by":"governance"'):
        return False
    try:
        # Integers stay texts: 5,000 digits are JSON, though Python makes no number of them, and may be in any field.
        return bool(json.loads(e, parse_int=str)[0].get("payout") == "")
    except (ValueError, RecursionError):
        return True
