"""In which order a batch leaves a worker's hands: payouts first, then what only has to be acknowledged."""

from typing import Any

import pytest

import consumers
from consumers.vet import Reputations
from streamproc.domain.wire import encode_events
from streamproc.log.batch import Handler, Limits
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from tests.words import Vendors, apply_policies, observed

NAMES = Names(0)


async def test_own_outputs_are_acknowledged_after_the_payouts_that_came_with_them(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command that writes waits for the server's disk; a payout must not wait for one that nobody waits for."""
    group = consumers.governance(Reputations(Vendors()), zone="Asia/Kolkata")
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=[group.name])
        await apply_policies(client, "policies: {bot: {daily_limit: 1000}}")
        own = await client.xadd(NAMES.log, {"e": b"[]", "m": b'{"by":"governance"}'})
        payout = encode_events([observed("pout_1", 100, agent="bot")])
        entry = await client.xadd(NAMES.log, {"e": payout, "m": b'{"by":"webhook"}'})
        reply = await client.execute_command(
            "XREADGROUP", "GROUP", group.name, "me", "COUNT", 10, "STREAMS", NAMES.log, ">"
        )
        assert [raw[0] for raw in reply[0][1][-2:]] == [own, entry]

        decided_before_ack: list[bool] = []
        execute = client.execute_command

        async def heard(*args: Any, **options: Any) -> Any:
            if args[0] == "XACK":
                assert own in args
                written = await execute("XREVRANGE", NAMES.log, "+", "-", "COUNT", 1)
                decided_before_ack.append(b"payout.decided" in written[0][1][1])
            return await execute(*args, **options)

        monkeypatch.setattr(client, "execute_command", heard)
        handler = Handler(0, group, Limits())
        await handler.handle(client, reply[0][1], taken=False)
        assert decided_before_ack == []
        await handler.acknowledge(client)
        assert decided_before_ack == [True]
        assert (await client.xpending(NAMES.log, group.name))["pending"] == 0
