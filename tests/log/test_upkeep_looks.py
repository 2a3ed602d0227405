"""What a consumer looks for beside its batches, and when: by a Redis that answers what the test says."""

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from streamproc.log import claims, scripts, upkeep
from streamproc.log.claims import TakenUp
from streamproc.log.names import Names
from streamproc.log.scripts import Due, Raw
from streamproc.log.upkeep import FEW, LOOK_S, SUSPECT_DELIVERIES, Found, Upkeep
from streamproc.log.work import Group

NAMES = Names(0)
CLAIM_IDLE_S = 100.0
RETRY: Raw = (b"9-9", [])
END = b"0-0"


def raw(entry: bytes) -> Raw:
    return (entry, [b"e", b"[]"])


class Server:
    """Redis as an upkeep sees it, and the clock; it keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.now_s = 1_000.0
        self.left: list[list[bytes]] = []
        """What consumers that are gone have left, look by look."""
        self.claims: list[tuple[bytes, list[bytes]]] = []
        """Answers of XAUTOCLAIM: where it goes on, and what it claimed."""
        self.cursors: list[bytes] = []
        self.retries: list[Raw] = [RETRY]
        self.deliveries: int | None = 1
        """Of each claimed entry; None: it is put off, and nobody takes it up before its time."""
        self.deliveries_of: dict[bytes, int] = {}
        """Of those that were delivered otherwise."""
        self.entries_max = 0
        """Entries that are taken over at once of those that are gone."""
        self.consumers: list[dict[str, Any]] = []
        self.removed: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now_s)
        monkeypatch.setattr(upkeep, "DeadConsumers", self._dead_consumers)
        monkeypatch.setattr(claims, "take_up", self._take_up)
        monkeypatch.setattr(scripts, "due_retries", self._due_retries)
        monkeypatch.setattr(scripts, "leave", self._leave)

    def upkeep(self, works_max: int = 256) -> Upkeep:
        return Upkeep(NAMES, Group(name="g", stages=(), works_max=works_max), "me", CLAIM_IDLE_S)

    def _dead_consumers(self, *_: object, entries_max: int, **__: object) -> SimpleNamespace:
        self.entries_max = entries_max
        return SimpleNamespace(take=self._gone)

    async def look(self, one: Upkeep, *, may_claim: bool = True) -> tuple[Found | None, list[str]]:
        """What a look found, and what was asked for it."""
        self.asked.clear()
        client: Any = self
        found = await one.look(client, may_claim=may_claim)
        return found, list(self.asked)

    async def _gone(self, _: object, now_s: float) -> list[bytes]:
        assert now_s == self.now_s
        self.asked.append("gone")
        return self.left.pop(0) if self.left else []

    async def execute_command(self, command: str, *args: Any) -> tuple[bytes, list[bytes]]:
        assert (command, args[:4], args[5:]) == (
            "XAUTOCLAIM", (NAMES.log, "g", "me", int(CLAIM_IDLE_S * 1000)), ("COUNT", 64, "JUSTID"),
        )  # fmt: skip
        self.asked.append("claim")
        self.cursors.append(args[4])
        return self.claims.pop(0) if self.claims else (END, [])

    async def xinfo_consumers(self, *_: object) -> list[Any]:
        self.asked.append("consumers")
        return self.consumers

    async def _leave(self, *args: Any) -> None:
        self.removed.append(args[-1])

    async def _take_up(self, *args: Any, most: int) -> list[TakenUp]:
        assert most == SUSPECT_DELIVERIES
        if self.deliveries is None:
            return []
        counted = [(self.deliveries_of.get(entry, self.deliveries), entry) for entry in args[4]]
        return [TakenUp(n, entry, None if n >= most else raw(entry)) for n, entry in counted]

    async def _due_retries(self, *_: object, limit: int) -> Due:
        self.asked.append("retries")
        return Due(self.retries)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


@pytest.mark.parametrize(("pick", "factor"), [(min, 0.8), (max, 1.2)])
async def test_each_kind_of_look_has_its_interval_give_or_take_a_fifth_so_that_workers_do_not_look_together(
    server: Server, monkeypatch: pytest.MonkeyPatch, pick: Callable[..., float], factor: float
) -> None:
    monkeypatch.setattr(random, "uniform", pick)
    one, began = server.upkeep(), server.now_s
    everything = ["gone", "claim", "consumers", "retries"]
    assert await server.look(one) == (Found([RETRY], []), everything)
    for after_s, asked in (
        (factor * LOOK_S - 0.01, ["retries"]),
        (factor * LOOK_S, ["gone", "retries"]),
        (factor * CLAIM_IDLE_S / 4 - 0.01, ["gone", "retries"]),
        (factor * CLAIM_IDLE_S / 4, ["claim", "consumers", "retries"]),
    ):
        server.now_s = began + after_s
        assert (await server.look(one))[1] == asked


async def test_who_may_not_claim_has_its_retries_alone(server: Server) -> None:
    one = server.upkeep()
    assert await server.look(one, may_claim=False) == (Found([RETRY], []), ["retries"])
    server.retries = []
    assert await server.look(one, may_claim=False) == (None, ["retries"])


async def test_after_something_was_taken_from_who_is_gone_retries_have_a_turn_and_then_it_is_asked_again(
    server: Server,
) -> None:
    """Others may have left thousands, and what was put off is due."""
    one, server.left = server.upkeep(), [[b"1-1"], [b"2-1"]]
    assert await server.look(one) == (Found([raw(b"1-1")], []), ["gone"])
    found, asked = await server.look(one)
    assert (found, "gone" in asked) == (Found([RETRY], []), False)
    assert await server.look(one) == (Found([raw(b"2-1")], []), ["gone"])


async def test_what_was_idle_for_the_claim_time_is_looked_for_to_the_end_over_several_looks(
    server: Server,
) -> None:
    """From the beginning each time, it might never come to the end."""
    one = server.upkeep()
    server.claims = [(b"5-0", []), (b"7-0", [b"6-1"]), (END, [b"8-1"])]
    assert await server.look(one) == (Found([raw(b"6-1")], []), ["gone", "claim", "claim"])
    assert await server.look(one) == (Found([raw(b"8-1")], []), ["claim", "consumers"])
    assert await server.look(one) == (Found([RETRY], []), ["retries"])
    assert server.cursors == [END, b"5-0", b"7-0"]


async def test_what_others_left_and_was_put_off_leaves_the_turn_to_what_is_due(server: Server) -> None:
    one, server.deliveries = server.upkeep(), None
    server.left, server.claims = [[b"1-1"]], [(END, [b"2-1"])]
    assert await server.look(one) == (Found([RETRY], []), ["gone", "claim", "consumers", "retries"])


async def test_of_what_may_kill_its_worker_a_look_gives_the_ids_alone(server: Server) -> None:
    """To take it up is a delivery, which counts when its turn comes."""
    one, server.left, server.deliveries = server.upkeep(), [[b"1-1", b"2-1"]], SUSPECT_DELIVERIES
    assert (await server.look(one))[0] == Found([], [[b"1-1", b"2-1"]])


async def test_who_has_nothing_and_was_not_heard_of_for_longer_than_the_claim_time_is_removed(
    server: Server,
) -> None:
    long_ms = int(CLAIM_IDLE_S * 1000) + 1
    server.consumers = [
        {"name": name, "pending": pending, "idle": idle_ms}
        for name, pending, idle_ms in (
            (b"me", 0, long_ms), (b"busy", 1, long_ms), (b"quiet", 0, long_ms - 1), (b"stale", 0, long_ms),
        )
    ]  # fmt: skip
    await server.look(server.upkeep())
    assert server.removed == ["stale"]


async def test_what_was_in_hand_when_the_connection_was_lost_is_handled_together_except_suspects(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []

    async def take_up(*args: Any, most: int | None) -> list[TakenUp]:
        limits.append(most)
        ids = enumerate(args[4], start=1)
        return [TakenUp(n, entry, raw(entry) if n < 5 else None) for n, entry in ids]

    monkeypatch.setattr(claims, "take_up", take_up)
    assert SUSPECT_DELIVERIES == 2
    client: Any = server
    parts = await server.upkeep().take_up_again(client, [b"1-1", b"2-1", b"3-1", b"4-1", b"5-1"])
    assert parts == [[raw(b"1-1"), raw(b"2-1")], [raw(b"3-1")], [raw(b"4-1")]]
    assert limits == [None]  # it is no delivery


async def test_who_takes_over_from_who_is_gone_takes_no_more_than_a_pass_can_handle(server: Server) -> None:
    """What waits longer than the claim time is taken by others in turn: messages were sent to people twice."""
    server.upkeep(works_max=7)
    assert server.entries_max == 7


async def test_suspects_are_handled_apart_the_least_suspicious_first_and_who_killed_again_alone(
    server: Server,
) -> None:
    few = [b"few-%d" % n for n in range(FEW + 1)]
    server.left = [[b"worst", b"fine", *few, b"again"]]
    server.deliveries_of = dict.fromkeys(few, SUSPECT_DELIVERIES)
    server.deliveries_of |= {b"again": SUSPECT_DELIVERIES + 1, b"worst": 9}
    found, _ = await server.look(server.upkeep())
    assert found == Found([raw(b"fine")], [few[:FEW], few[FEW:], [b"again"], [b"worst"]])
