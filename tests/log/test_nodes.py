"""Which node a command goes to; the nodes themselves are in tests/faults/test_cluster.py."""

import pytest

from streamproc.errors import ConfigError
from streamproc.log.names import META, Names
from streamproc.log.nodes import Address, Cluster, key_of, slot_of
from streamproc.settings import load

LOG = Names(3).log


def test_a_key_has_the_slot_that_redis_gives_it() -> None:
    assert slot_of("123456789") == 12739  # 0x31C3, the check value of CRC-16/XMODEM
    assert slot_of("sp:{3}:log") == slot_of("3") == slot_of(Names(3).payout("pout_1"))
    assert slot_of("a{}b") != slot_of("")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("hget", b"k", "f"), "k"),
        (("XINFO GROUPS", LOG), LOG),
        (("XGROUP CREATE", LOG, "g", "$"), LOG),
        (("XGROUP", "CREATE", LOG, "g", "$"), LOG),
        (("MEMORY USAGE", LOG), LOG),
        (("EVALSHA", "0" * 40, 2, LOG, META, "x"), LOG),
        (("EVAL", "return 1", 0), None),
        (("XREAD", "COUNT", 5, "BLOCK", 100, "STREAMS", LOG, "0-0"), LOG),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", LOG, ">"), LOG),
        (("SCAN", 0, b"MATCH", "sp:{3}:payout:*", b"COUNT", 10), "sp:{3}:payout:*"),
        (("TIME",), None),
        (("CONFIG GET", "append*"), None),
        (("CLIENT UNBLOCK", 3), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_a_command_goes_where_its_key_is(command: tuple[object, ...], key: str | None) -> None:
    assert key_of(command) == key


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    cluster = Cluster("redis+cluster://me:pw@one:7000,[fd00::2]:7001,three/0?ssl_ca_certs=x")
    assert cluster.seeds == (Address("one", 7000), Address("fd00::2", 7001), Address("three", 6379))
    assert cluster.url_of(cluster.seeds[1]) == "redis://me:pw@[fd00::2]:7001/0?ssl_ca_certs=x"
    assert Cluster("rediss+cluster://one:7000").url_of(Address("two", 1)) == "rediss://two:1/0"


@pytest.mark.parametrize(
    "wrong",
    [
        "redis+cluster://",
        "redis+cluster://one:7000,",
        "redis+cluster://one:x",
        "redis+cluster://one:0",
        "redis+cluster://one:7000,[fd00::2]:65536",
        "redis+cluster://one:7000/1",
    ],
)
def test_a_url_that_names_no_cluster_is_refused_at_the_start(wrong: str) -> None:
    with pytest.raises(ConfigError, match="STREAMPROC_REDIS_URL must name a cluster's nodes"):
        load({"STREAMPROC_REDIS_URL": wrong})
    with pytest.raises(ValueError, match="must name"):
        Cluster(wrong)


def test_a_clusters_password_is_not_shown() -> None:
    settings = load({"STREAMPROC_REDIS_URL": "redis+cluster://me:hidden@one:7000,two:7001"})
    assert "hidden" not in repr(settings)
