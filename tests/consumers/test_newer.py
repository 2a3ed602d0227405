"""Two versions on one log: what only the later one knows waits for its workers: not skipped, and not set aside."""

import asyncio
import json
from unittest import mock

import pytest

from streamproc.domain import wire
from streamproc.domain.payouts import decode_record, encode_record, fold
from streamproc.domain.record import unknown_in
from streamproc.domain.wire import encode_events
from streamproc.log import batch, failures, opened, scripts
from tests.engine import Engine
from tests.words import observed

POLICIES = """
policies:
  bot: {daily_limit: 1000000}
"""


NEWEST = wire.NEWEST["payout.observed"]


def later(**changes: object) -> bytes:
    """A payout's sighting as a later version may write it."""
    [event] = json.loads(encode_events([observed("pout_later")]))
    return json.dumps([{**event, **changes}], separators=(",", ":")).encode()


async def decision(engine: Engine, payout: str) -> str | None:
    """What Redis has; the log cannot be read whole here."""
    kept = await engine.client.hget(engine.names.payout(payout), "s")
    found: str | None = json.loads(kept).get("decision") if kept else None
    return found


@pytest.mark.parametrize(
    ("e", "why"),
    [
        (later(v=NEWEST + 1), f"has version {NEWEST + 1}; known here are 1 to {NEWEST}"),
        (later(type="payout.announced"), "'payout.announced' is not known here"),
        (
            b'[{"type":"review.delegated","v":1,"payout":"pout_later"}]',
            "'review.delegated' is not known here",
        ),
    ],
)
async def test_an_event_of_a_later_version_waits_and_its_neighbours_do_not(
    redis_url: str, e: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        written = await engine.client.xadd(engine.names.log, {"e": e, "m": '{"by":"webhook"}'})
        await engine.deliver(observed("pout_good"))

        assert await decision(engine, "pout_good") == "APPROVED"
        async with asyncio.timeout(60):
            while await engine.client.zscore(engine.names.retries("governance"), written) is None:
                await asyncio.sleep(0.01)
        pending = await engine.client.xpending_range(engine.names.log, "governance", "-", "+", 10)
        assert [row["message_id"] for row in pending] == [written]
        assert await engine.client.xlen(engine.names.dead) == 0
    assert why in caplog.text


async def test_a_worker_that_knows_it_finishes_what_the_other_one_left(redis_url: str) -> None:
    with (
        mock.patch.object(opened, "NEWER_S", 0.0),
        mock.patch.object(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0)),
    ):
        async with Engine(redis_url) as engine:
            await engine.apply(POLICIES)
            written = await engine.client.xadd(
                engine.names.log, {"e": later(v=NEWEST + 1), "m": '{"by":"webhook"}'}
            )
            async with asyncio.timeout(60):
                while await engine.client.zscore(engine.names.retries("governance"), written) is None:
                    await asyncio.sleep(0.01)
            real, now, then = wire.decode_events, b'"v":%d' % NEWEST, b'"v":%d' % (NEWEST + 1)
            with mock.patch.object(opened, "decode_events", lambda e: real(e.replace(then, now))):
                async with asyncio.timeout(60):
                    while await decision(engine, "pout_later") is None:
                        await asyncio.sleep(0.01)
                await engine.settled()
            entries = [fields[1] for _, fields in await engine.client.xrange(engine.names.log)]
            assert sum(e.count(b'"type":"payout.decided"') for e in entries) == 1
            assert await engine.client.xlen(engine.names.dead) == 0


@pytest.mark.parametrize("where", ["PayoutRecord", "Reservation", "WindowUse"])
async def test_a_record_with_what_only_a_later_version_knows_waits_for_it_and_is_not_written_back_without_it(
    redis_url: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling upgrade: a worker that does not know a field would have dropped it with its next commit."""
    with (
        mock.patch.object(batch, "NEWER_S", 0.0),
        mock.patch.object(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0)),
    ):
        async with Engine(redis_url) as engine:
            await engine.apply(POLICIES)
            await engine.deliver(observed("pout_kept"))
            key = engine.names.payout("pout_kept")
            record = json.loads(await engine.client.hget(key, "s"))
            held = record["reservation"]
            {"PayoutRecord": record, "Reservation": held, "WindowUse": held["windows"][0]}[where]["mood"] = (
                "good"
            )
            kept = json.dumps(record, separators=(",", ":")).encode()
            await engine.client.hset(key, "s", kept)

            e = encode_events([observed("pout_kept", status="processed")])
            written = await engine.client.xadd(engine.names.log, {"e": e, "m": '{"by":"webhook"}'})
            async with asyncio.timeout(60):
                while await engine.client.zscore(engine.names.retries("governance"), written) is None:
                    await asyncio.sleep(0.01)
            await engine.deliver(observed("pout_good"))
            assert await decision(engine, "pout_good") == "APPROVED"
            assert await engine.client.hget(key, "s") == kept
            assert await engine.client.xlen(engine.names.dead) == 0

            with mock.patch.object(batch, "unknown_in", return_value=[]):  # a worker that knows it
                async with asyncio.timeout(60):
                    while json.loads(await engine.client.hget(key, "s"))["bank_status"] != "processed":
                        await asyncio.sleep(0.01)
    assert f"written by a later version: {where}.mood" in caplog.text


def test_a_record_is_what_its_encoder_writes_so_nothing_unknown_is_looked_for_in_it() -> None:
    record = fold([observed("pout_1")])
    assert record is not None
    kept = encode_record(record)
    assert unknown_in(decode_record(kept), kept) == []
    # As a version that wrote defaults too: known, if not what is written today.
    aged = kept[:-1] + b',"tax":0}'
    assert unknown_in(decode_record(aged), aged) == []


def test_what_no_later_version_would_write_is_not_waited_for() -> None:
    for e in (later(v=10**6), later(v=0), later(v="2"), later(type=""), later(type="x"), later(type=None)):
        with pytest.raises(wire.Unprocessable) as told:
            wire.decode_events(e)
        assert type(told.value) is wire.Unprocessable


def test_a_note_that_is_called_type_is_not_taken_for_an_event() -> None:
    [event] = json.loads(encode_events([observed("pout_1")]))
    for kind in ("vendor bill", "payout.announced"):
        event["facts"]["notes"]["type"] = kind
        wire.refuse_newer(json.dumps([event], separators=(",", ":")).encode())
    with pytest.raises(wire.Newer):
        wire.refuse_newer(later(type="payout.announced"))
