"""The client of a cluster against a real one: it follows what nodes say, and repeats only what nobody has executed."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from streamproc.errors import LogUnavailable
from streamproc.log import nodes
from streamproc.log.connection import connect, connected, is_quiet, named_errors
from streamproc.log.health import log_sizes, replica_count, server_settings
from streamproc.log.inspect import counted_budgets, counted_in, forgot_nothing, record_of
from streamproc.log.names import META, Names
from streamproc.log.nodes import ClusterClient, cluster_of, every_node, slot_of
from streamproc.log.pool import ClientPool
from streamproc.log.scripts import Committed, Handover, commit, load
from streamproc.log.stream import BEGUN
from tests.bank import until
from tests.valkey_cluster import valkey_cluster

A, B = Names(0), Names(3)
"""Partitions of two nodes."""

pytestmark = pytest.mark.timeout(120)


async def test_commands_go_to_their_nodes_and_a_wrong_map_is_put_right(public_dir: Path) -> None:
    async with valkey_cluster(public_dir / "cluster-client") as cluster, connected(cluster.url) as client:
        assert cluster.home_of(A.log) is not cluster.home_of(B.log)

        # Each node has what belongs to it, in one pipeline too; a transaction is of one partition.
        async with client.pipeline(transaction=False) as pipe:
            for names in (A, B):
                pipe.hset(names.budget("agent:bot", "d"), "r", names.partition + 1)
            assert await pipe.execute() == [1, 1]
        for names in (A, B):
            async with connected(cluster.home_of(names.log).url) as one:
                assert await one.hget(names.budget("agent:bot", "d"), "r") == b"%d" % (names.partition + 1)
            assert await counted_in(client, names, [("agent:bot", "d")]) == [(names.partition + 1, 0)]
        async with client.pipeline(transaction=True) as pipe:
            pipe.get(A.log)
            pipe.get(B.log)
            with pytest.raises(ValueError, match="one partition"):
                await pipe.execute()
        assert await record_of(client, 5, "pout_nowhere") is None
        assert not await forgot_nothing(client, 5)
        for partition in range(5):
            await client.xadd(Names(partition).log, {"e": "[]", "m": "{}"})
        await client.hset(META, BEGUN, str((await client.time())[0]))
        assert await forgot_nothing(client, 5)
        for key in (META, *(Names(partition).log for partition in range(5))):
            await client.delete(key)

        # Who names one node alone is told how to name the cluster.
        async with connected(cluster.home_of(A.log).url) as one:
            with pytest.raises(LogUnavailable, match=r"redis\+cluster://"), named_errors():
                await one.get(B.log)

        # A command without a key goes home.
        for names in (A, B):
            async with connected(cluster.url, home=names.log) as homely:
                assert (await homely.info("server"))["tcp_port"] == cluster.home_of(names.log).port
        assert len(await every_node(client)) == 3
        assert await server_settings(client) == []

        # What is said of all nodes is what is worst: one without a replica, and the one that is full first.
        replicated = next(n for n in map(Names, range(20)) if cluster.home_of(n.log) is cluster.primaries[1])
        async with connected(cluster.url, home=replicated.log) as homely:
            assert await replica_count(homely) == 0
        for node, limit in zip(cluster.primaries, (1_000_000_000, 50_000_000, 0), strict=True):
            async with connected(node.url) as one:
                await one.config_set("maxmemory", limit)
        assert (await log_sizes(client, 5)).memory_max == 50_000_000

        # Connections to nodes are kept for the next question too, unless one of them was closed.
        kept = ClientPool(cluster.url)
        async with kept.acquire() as first:
            assert [await first.exists(names.log) for names in (A, B)] == [0, 0]
            used = [await node.client_id() for node in await every_node(first)]
            assert await record_of(first, 5, "pout_nowhere") is None
        async with kept.acquire() as second:
            assert second is first
            assert await record_of(first, 5, "pout_nowhere") is None
        last = max(cluster.primaries, key=lambda node: node.port)  # by their addresses, as they were asked
        async with connected(last.url) as one:
            assert await one.client_kill_filter(_id=str(used[-1])) == 1

        async def is_heard() -> bool:
            return not await is_quiet(first)

        await until(is_heard, what="a node has closed its connection")
        async with kept.acquire() as third:
            assert third is not first
        await kept.aclose()

        # A map that is out of date: MOVED is followed by a command, and by a pipeline at its next try.
        known = cluster_of(cluster.url)
        right = list(known._ranges)
        wrong = [(low, high, right[(n + 1) % 3][2]) for n, (low, high, _) in enumerate(right)]
        known._ranges = list(wrong)
        async with connected(cluster.url) as new:
            assert await new.hget(A.budget("agent:bot", "d"), "r") == b"1"
        known._ranges, known._moved = list(wrong), {}
        async with connected(cluster.url) as new, new.pipeline(transaction=False) as pipe:
            pipe.hget(B.budget("agent:bot", "d"), "r")
            with pytest.raises(LogUnavailable), named_errors():
                await pipe.execute()
            pipe.hget(B.budget("agent:bot", "d"), "r")
            assert await pipe.execute() == [b"4"]
        # A command without a key is answered by any node, which says nothing about the slot.
        known._ranges, known._moved = list(wrong), {}
        async with connected(cluster.url, home=A.log) as new:
            await new.time()
            assert await new.hget(A.budget("agent:bot", "d"), "r") == b"1"
        # A node that has not the slot answers a SCAN with nothing, instead of MOVED: it is not believed.
        known._ranges, known._moved = list(wrong), {}
        async with connected(cluster.url) as new:
            assert await counted_budgets(new, A) == {("agent:bot", "d"): (1, 0)}
        known._ranges, known._moved = list(wrong), {}
        async with connected(cluster.url) as new:
            with pytest.raises(LogUnavailable), named_errors():
                await new.scan(7, match=f"{A.base}:*")
        # A client that a node has answered stays with it, whatever a map says.
        known._ranges, known._moved = list(wrong), {}
        assert await client.hget(A.budget("agent:bot", "d"), "r") == b"1"
        assert known._moved == {}
        known.forget()

        # A slot that is on its way to another node: what is not there any more waits.
        slot = slot_of(A.log)
        source, target = cluster.home_of(A.log), cluster.home_of(B.log)
        async with connected(source.url) as one, connected(target.url) as other:
            await other.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
            await one.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
            with pytest.raises(LogUnavailable), named_errors():
                await client.get(A.seen("new"))
            with pytest.raises(LogUnavailable):
                await counted_budgets(client, A)
            assert await client.hget(A.budget("agent:bot", "d"), "r") == b"1"
            await one.execute_command("CLUSTER SETSLOT", slot, "STABLE")
            await other.execute_command("CLUSTER SETSLOT", slot, "STABLE")
        assert await client.get(A.seen("new")) is None


async def test_what_one_node_said_is_not_used_at_the_node_that_took_over(public_dir: Path) -> None:
    """A replica that takes over may lack the newest writes: a payout's version there may be another's."""
    async with valkey_cluster(public_dir / "cluster-takeover") as cluster, connected(cluster.url) as other:
        names = next(n for n in map(Names, range(20)) if cluster.home_of(n.log) is cluster.primaries[1])
        handover = Handover(b"1-1", "pout_1", version=b"0", record=b"{}", e=b"[]", m=b"{")
        async with connected(cluster.url, home=names.log) as client:
            await client.xgroup_create(names.log, "g", "0", mkstream=True)
            await client.xadd(names.log, {"e": "[]", "m": "{}"}, id="1-1")
            await client.execute_command("XREADGROUP", "GROUP", "g", "w", "STREAMS", names.log, ">")
            await load(client, names, ["pout_1"])
            await cluster.in_step()
            async with connected(cluster.replica.url) as replica:
                await replica.execute_command("CLUSTER FAILOVER", "TAKEOVER")
            await cluster.took_over()
            async with connected(cluster.primaries[1].url) as old:

                async def has_heard() -> bool:
                    return (await old.info("replication"))["role"] == "slave"

                await until(has_heard, what="the old primary follows the new one")
            assert await other.xlen(names.log) == 1  # all clients of this process know the new node by now

            with pytest.raises(LogUnavailable):
                await commit(client, names, "g", [handover])
            assert await client.xlen(names.log) == 1, "what was loaded before was committed all the same"
            await load(client, names, ["pout_1"])
            assert await commit(client, names, "g", [handover]) == [Committed.DONE]


async def test_a_node_that_hangs_is_left_also_by_callers_who_wait_for_less_than_a_connection_does(
    public_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /readyz does: otherwise it would say for ever that Redis is away, long after a replica has taken over."""
    monkeypatch.setattr(nodes, "GIVEN_UP_S", 0.05)
    async with valkey_cluster(public_dir / "cluster-hangs") as cluster, connected(cluster.url) as kept:
        key = next(n.log for n in map(Names, range(20)) if cluster.home_of(n.log) is cluster.primaries[1])
        assert await kept.xlen(key) == 0
        await cluster.in_step()
        known = cluster_of(cluster.url)
        before = list(known._ranges)
        os.kill(cluster.primaries[1].store.pid, signal.SIGSTOP)
        try:
            await cluster.took_over()
            for client in (kept, connect(cluster.url)):
                known._ranges = list(before)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await client.xlen(key)
                assert await client.xlen(key) == 0
                await client.aclose()
        finally:
            os.kill(cluster.primaries[1].store.pid, signal.SIGCONT)


async def test_where_no_node_answers_the_log_is_away(public_dir: Path) -> None:
    client = connect("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    assert isinstance(client, ClusterClient)
    with pytest.raises(LogUnavailable), named_errors():
        await client.get(A.log)
    await client.aclose()


async def test_a_server_alone_says_that_it_is_no_cluster(redis_url: str) -> None:
    async with connected(redis_url.replace("redis://", "redis+cluster://")) as client:
        with pytest.raises(LogUnavailable), named_errors():
            await client.get(A.log)
