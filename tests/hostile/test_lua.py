"""A script that is called wrongly, or meets a key of a wrong type, says so before its first write: nothing has changed.

The calls are those that the product makes of each script, heard while it works. Each is sent again from the same state
with its arguments or keys cut, doubled or changed, or a key of another type; what is answered by an error must have
left every key as it was.
"""

import asyncio
import contextlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

import streamproc.log
from streamproc.domain import events as e
from streamproc.log import claims, failures, lease, letters, restore, scripts, trim
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.dead_consumers import DeadConsumers
from streamproc.log.digests import Alert, Digests
from streamproc.log.names import Names
from streamproc.log.pace import Pace
from streamproc.log.policies import Policies
from streamproc.log.script import Script
from streamproc.log.stream import open_log
from streamproc.log.tokens import take_request
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.hostile.mutations import CASES, SEED
from tests.log.test_letters import closing
from tests.words import ACCOUNT, NOW, observed

NAMES = Names(0)
DIRECTORY = Path(streamproc.log.__file__).parent / "lua"
LUA = {path.stem for path in DIRECTORY.glob("*.lua")}
PARTS = {"checks", "this_server", "counters", "beneficiaries", "own", "retry_clock"}
"""These are put before others, and are no scripts by themselves."""
COMMAND = re.compile(rb"call\('([A-Z]+)'")
"""A command in a script."""
ENDLESS_MAX = 12
"""Numbers of one call that are replaced, the first ones: they count what follows."""
PACKED_WITHIN, BINARY = re.compile(rb"\xdb(?=.{4}\x92)", re.DOTALL), b"\xc6"
"""Where a packed array of two is a text within a packed array, as a template of `grant` is; and as binary data."""
SWEPT_MAX = 40
"""Arguments of one call that are replaced one after another, the first ones: others are of the same kinds."""
CALLS_MAX = 3
"""Of each script, those that had the most arguments."""
VALUES: tuple[bytes, ...] = (
    b"",
    b"x",
    b"-1",
    b"0",
    b"1",
    b"2",
    b"1.5",
    b"nan",
    b"inf",
    b"1e99",
    b"9" * 30,
    b"\xff\x00",
    b"{}",
    b"0-0",
)
WITHIN: tuple[Any, ...] = (
    *(value.decode(errors="replace") for value in VALUES),
    -1,
    0,
    1,
    1.5,
    10**18,
    None,
    True,
    [],
    {},
)
"""The same within MessagePack, which has types."""
POLICIES = """
policies:
  bot: {daily_limit: 1_000_000_000, require_approval_above: 1_000_000, new_beneficiary: ignore}
  tight: {daily_limit: 300_000, rate_limit: {count: 3, window: 60}}
reviewers: [asha]
"""


@dataclass(frozen=True)
class Heard:
    """A call, and everything that was in Redis before it."""

    script: Script
    keys: list[bytes]
    args: list[bytes]
    before: dict[bytes, bytes]


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


async def everything(client: Redis) -> dict[bytes, bytes]:
    """Every key with its value."""
    names = sorted(await client.keys("*"))
    async with client.pipeline(transaction=True) as pipe:
        for name in names:
            pipe.dump(name)
        found = zip(names, await pipe.execute(), strict=True)
        return {name: value for name, value in found if value is not None}  # its time may end between the two


def name_of(script: Script) -> str:
    """The file that the script is, without those that are put before it."""
    files = {name: (DIRECTORY / f"{name}.lua").read_bytes().partition(b"\n")[2] for name in LUA - PARTS}
    return next(name for name, text in files.items() if script.text.endswith(text))


class Ears:
    """Hears the calls, one at a time, so that what is in Redis before a call is what the call meets."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.calls: dict[str, list[Heard]] = defaultdict(list)
        self.lock = asyncio.Lock()
        self.real = Script.__call__

    async def __call__(self, script: Script, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        async with self.lock:
            heard = Heard(
                script,
                [as_bytes(key) for key in keys],
                [as_bytes(arg) for arg in args],
                await everything(self.client),
            )
            answer = await self.real(script, client, keys, args)
        mine = self.calls[name_of(script)]
        mine.append(heard)
        mine.sort(key=lambda one: (-len(one.args), -len(one.keys)))
        del mine[CALLS_MAX:]
        return answer


async def work(url: str) -> None:
    """Everything that the product has a script for, once at least."""
    async with Engine(url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(
            *(
                observed(
                    f"pout_{n}",
                    agent="bot" if n % 2 else "tight",
                    url="https://a.example/" if n > 4 else None,
                )
                for n in range(10)
            )
        )
        await engine.deliver(observed("pout_held", 2_000_000))
        await engine.review("pout_held", "asha", "approve", account=ACCOUNT)
        await engine.deliver(observed("pout_1", status="processed"))
        await engine.append(
            ACCOUNT,
            e.PayoutMalformed(at=NOW, payout="x", account=ACCOUNT, source="webhook", problem="amount"),
        )
        await engine.client.zadd(
            engine.names.timers,
            {'[{"type":"timer.fired","v":1,"at":1,"payout":"pout_2","timer":"hold_expiry"}]': 1},
        )
        await engine.settled()
        async with asyncio.timeout(DEADLINE_S):
            while await engine.client.zcount(engine.names.timers, 0, 1):
                await asyncio.sleep(0.01)
        await engine.settled()
        client, group = engine.client, engine.groups[0].name
        (letter, fields), *_ = await client.xrange(NAMES.dead)
        entry = dict(zip(fields[::2], fields[1::2], strict=True))[b"entry"].decode()
        await letters.close_letter(client, NAMES, closing(letter.decode(), entry, "redrive", group))
        last = (await client.xrevrange(NAMES.log, count=1))[0][0].decode()
        await trim.trim(client, NAMES, anchor=last, retention_s=0)
    async with connected(url) as client:
        await by_hand(client, url)


async def by_hand(client: Redis, url: str) -> None:
    """What no payout of `work` brings about."""
    await open_log(client, partitions=1, groups=("g", "late"))
    await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
    reply = await client.execute_command(
        "XREADGROUP", "GROUP", "g", "a", "COUNT", 1, "STREAMS", NAMES.log, ">"
    )
    entry = reply[0][1][0][0]
    backoff = scripts.Backoff(0.0, 0.0, 0.0)
    for times in (1, 2):
        deferral = scripts.Deferral(entry, 0.0, counts=True, unsent=True)
        await scripts.defer(client, NAMES, "g", [deferral] * times, backoff)
        await scripts.due_retries(client, NAMES, "g", "b", limit=4)
    await claims.take_up(client, NAMES, "g", "b", [entry], most=9)
    await claims.renew(client, NAMES, "g", "b", [entry])
    await claims.not_begun(client, NAMES, "g", "b", {entry: True})
    await DeadConsumers(NAMES, "g", "c")._take_from(client, "b", 0, 9)
    await client.execute_command("XGROUP", "CREATECONSUMER", NAMES.log, "g", "idle")
    await scripts.leave(client, NAMES, "g", "idle")
    await scripts.pass_own(client, NAMES, "g")
    await scripts.delivered_before(client, NAMES)
    pace = Pace(url, name="turn", per_s=1000.0, burst=2)
    await pace.reserve()
    await pace.take(within_s=0.5, beside=1)
    await pace.put_off(0.1)
    await pace.aclose()
    await take_request(client, "t", per_min=2, reads=False)
    await Policies(NAMES).now(client)
    await lease.take_lease(client, NAMES, "job", "me", lasts_s=60)
    await PollCursor(url, account=ACCOUNT, partitions=1).save(1, after=None)
    counting = Digests(url, gather_s=0.0)
    await counting.count(0, [Alert("LIMIT", "of bot", f"pout_{n}", 100) for n in range(3)])
    (digest,) = await counting.take(1)
    told = e.NotificationSent(at=NOW, kind="digest", channel="ntfy", ref="r", count=2, about="of bot")
    await counting.close(digest, told, "notification")
    recovery = restore.Restorer(client, NAMES, 7)
    await recovery.set_aside()
    await client.xadd(NAMES.staged, {"e": "[]", "m": "{}"})
    await recovery.put_in_place(keep_rescued_s=60)
    await restore.mark_recovered(client, [0], run=7)
    await restore.mark_asked(client, ACCOUNT, run=7)
    await restore.mark_reconciled(client, run=7)


async def hear(url: str) -> dict[str, list[Heard]]:
    """The calls of each script."""
    async with Redis.from_url(url) as client:
        await client.flushall()
        ears = Ears(client)

        async def called(script: Script, *call: Any) -> Any:
            return await ears(script, *call)

        with (
            mock.patch.object(Script, "__call__", called),
            mock.patch.object(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0)),
        ):
            await work(url)
    return dict(ears.calls)


def spoilt(rng: Random, heard: Heard) -> tuple[list[bytes], list[bytes], bytes]:
    """Keys and arguments of a call that nobody of us makes, and the key to be made of another type, or none."""
    keys, args = list(heard.keys), list(heard.args)
    packed = [n for n, arg in enumerate(args) if arg[:1] >= b"\x90"]
    if packed and rng.randrange(2):
        args[packed[0]] = spoilt_within(rng, args[packed[0]])
        return keys, args, b""
    kind, at = rng.randrange(9), rng.randrange(len(args) or 1)
    match kind:
        case 0:
            del args[at:]
        case 1 if args:
            del args[at]
        case 2 if args:
            args.insert(at, args[at])
        case 3:
            args.insert(at, rng.choice(VALUES))
        case 4 | 5 if args:
            args[at] = rng.choice(VALUES)
        case 6:
            del keys[rng.randrange(len(keys)) :]
        case 7:
            args += [rng.choice(VALUES) for _ in range(rng.randrange(4))]
        case _:
            return keys, args, rng.choice(keys)
    return keys, args, b""


def spoilt_within(rng: Random, packed: bytes) -> bytes:
    """A MessagePack array with one element of it, or of an array in it, cut off, left out, doubled or changed."""
    request: list[Any] = msgspec.msgpack.decode(PACKED_WITHIN.sub(BINARY, packed))
    part = request
    while (deeper := [one for one in part if isinstance(one, list) and one]) and rng.randrange(4):
        part = rng.choice(deeper)
    at = rng.randrange(len(part))
    match rng.randrange(6):
        case 0:
            del part[at:]
        case 1:
            del part[at]
        case 2:
            part.insert(at, part[at])
        case _:
            inner = part[at]
            part[at] = spoilt_within(rng, inner) if isinstance(inner, bytes) else rng.choice(WITHIN)
    return msgspec.msgpack.encode(_as_sent(request))


def _as_sent(value: Any) -> Any:
    """With what is packed as a text, as the server's Lua wants it, and not as binary data."""
    if isinstance(value, list):
        return [_as_sent(one) for one in value]
    if isinstance(value, bytes):
        return msgspec.Raw(b"\xdb" + len(value).to_bytes(4, "big") + value)
    return value


async def put_back(client: Redis, before: dict[bytes, bytes], wrong: bytes, rng: Random) -> None:
    """Everything as it was before the call; one key of another type."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.flushdb()
        for name, value in before.items():
            if name != wrong:
                pipe.restore(name, 0, value)
        if wrong:
            match rng.randrange(3):
                case 0:
                    pipe.set(wrong, "a text")
                case 1:
                    pipe.rpush(wrong, "a list")
                case _:
                    pipe.hset(wrong, "a", "hash")
        await pipe.execute()


async def violations(
    url: str, rng: Random, calls: dict[str, list[Heard]], cases: int
) -> tuple[list[str], Counter[str]]:
    """Calls that were answered by an error and changed something; and how many were answered by an error, by script."""
    found: list[str] = []
    refused: Counter[str] = Counter()
    async with Redis.from_url(url) as client:
        for name in sorted(calls):
            for number in range(cases):
                heard = calls[name][number % len(calls[name])]
                keys, args, wrong = spoilt(rng, heard)
                await put_back(client, heard.before, wrong, rng)
                before = await everything(client)
                try:
                    await evaluate(client, heard.script, keys, args)
                except ResponseError as problem:
                    refused[name] += 1
                    after = await everything(client)
                    if after != before:
                        changed = sorted(
                            key for key in after.keys() | before.keys() if after.get(key) != before.get(key)
                        )
                        found.append(f"{name}: {problem}: {changed} by {keys} {args} {wrong!r}"[:700])
    return found, refused


async def evaluate(client: Redis, script: Script, keys: list[bytes], args: list[bytes]) -> None:
    try:
        await client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        await client.execute_command("EVAL", script.text, len(keys), *keys, *args)


@pytest.fixture(scope="module")
def calls(valkey: str) -> dict[str, list[Heard]]:
    """What the product calls, heard once."""
    return asyncio.run(hear(valkey))


@pytest.mark.timeout(120)
async def test_a_call_that_is_an_error_has_changed_nothing(
    redis_url: str, calls: dict[str, list[Heard]]
) -> None:
    assert calls.keys() == LUA - PARTS
    found, refused = await violations(redis_url, Random(SEED), calls, CASES // 5)
    assert not found, f"{len(found)} of {refused}:\n" + "\n".join(found[:40])
    assert refused.total() > CASES // 5


@pytest.mark.timeout(120)
async def test_no_argument_is_found_to_be_wrong_only_after_something_was_written(
    redis_url: str, calls: dict[str, list[Heard]]
) -> None:
    """Each argument of one call of each script, one after another, is no number, is empty, or is left out."""
    found: list[str] = []
    async with Redis.from_url(redis_url) as client:
        for name, heard in ((name, each[0]) for name, each in calls.items()):
            await put_back(client, heard.before, b"", Random(SEED))
            before = await everything(client)
            for at, instead in itertools.product(range(min(len(heard.args), SWEPT_MAX)), ([b"x"], [b""], [])):
                args = [*heard.args[:at], *instead, *heard.args[at + 1 :]]
                try:
                    await evaluate(client, heard.script, heard.keys, args)
                except ResponseError as problem:
                    if await everything(client) == before:
                        continue
                    found.append(f"{name}: {problem}: argument {at + 1} as {instead}")
                await put_back(client, heard.before, b"", Random(SEED))
    assert not found, "\n".join(found)


@pytest.mark.timeout(120)
async def test_a_count_that_is_none_does_not_let_a_script_run_on(
    redis_url: str, calls: dict[str, list[Heard]]
) -> None:
    async with Redis.from_url(redis_url, socket_timeout=10.0) as client:
        for heard in (each[0] for each in calls.values()):
            for at in [at for at, arg in enumerate(heard.args) if arg.lstrip(b"-").isdigit()][:ENDLESS_MAX]:
                await put_back(client, heard.before, b"", Random(SEED))
                args = [*heard.args[:at], b"1e99", *heard.args[at + 1 :]]
                with contextlib.suppress(ResponseError):
                    await evaluate(client, heard.script, heard.keys, args)


@pytest.mark.timeout(120)
async def test_a_call_that_the_access_list_stops_has_changed_nothing(
    redis_url: str, calls: dict[str, list[Heard]]
) -> None:
    """A commit acknowledged its input, and then might not append what came of it: the payout was lost."""
    found: list[str] = []
    limited = redis_url.replace(f":{urlsplit(redis_url).password}@", "limited:x@")
    async with Redis.from_url(redis_url) as client:
        try:
            for name, heard in ((name, one) for name, each in calls.items() for one in each):
                await put_back(client, heard.before, b"", Random(SEED))
                before = await everything(client)
                for command in sorted(set(COMMAND.findall(heard.script.text))):
                    await client.execute_command(
                        *("ACL", "SETUSER", "limited", "reset", "on", ">x", "~*", "+@all"),
                        b"-" + command.lower(),
                    )
                    async with Redis.from_url(limited) as one:
                        try:
                            await evaluate(one, heard.script, heard.keys, heard.args)
                        except ResponseError as problem:
                            if (await everything(client)) == before:
                                continue
                            found.append(f"{name} without {command.decode()}: {problem}")
                    await put_back(client, heard.before, b"", Random(SEED))
        finally:
            await client.execute_command("ACL", "DELUSER", "limited")
    assert not found, "\n".join(found)
