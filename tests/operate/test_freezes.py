"""`streamproc freeze`: on every partition, without a policy too, kept by every file, lifted by a person only."""

import asyncio
import json

import pytest

from streamproc.cli import run as cli
from streamproc.cli.person import shell
from streamproc.domain.policy import parse_policy_file
from streamproc.errors import InputError
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from streamproc.operate import freezes
from streamproc.operate.changes import make
from streamproc.operate.freezes import freeze
from streamproc.operate.policies import in_force, of_file
from streamproc.operate.site import Site
from tests.operate.words import site_of
from tests.words import attributed

ONE = "policies: {bot: {daily_limit: 1_000}}"


async def made(redis_url: str, partitions: int = 1) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=partitions, groups=["governance"])


async def put(site: Site, text: str, *, prune: bool = False) -> None:
    who = attributed("asha", "because")
    await make(site, of_file(parse_policy_file(text, name="test.yaml"), who, prune=prune), who)


async def frozen(site: Site, scope: str, *, lift: bool = False) -> freezes.Frozen:
    return await freeze(site, scope, attributed("asha", "it loops"), frozen=not lift)


async def test_a_freeze_is_on_every_partition_and_twice_is_once(redis_url: str) -> None:
    await made(redis_url, partitions=3)
    async with site_of(redis_url) as site:
        first, again = await frozen(site, "agent:nobody"), await frozen(site, "agent:nobody")
        lifted = await frozen(site, "agent:nobody", lift=True)
    assert (first.changed, again.changed, lifted.changed) == ([0, 1, 2], [], [0, 1, 2])
    assert first.notes == [
        "no policy names agent:nobody; it is frozen all the same: check that this is its id"
    ]


async def test_neither_applying_nor_pruning_lifts_a_freeze(redis_url: str) -> None:
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, ONE)
        await frozen(site, "agent:bot")
        await put(site, "policies: {other: {daily_limit: 5}}", prune=True)
        await put(site, ONE)
        state = (await in_force(site))["freeze:agent:bot"]
    assert state.own == {"frozen": True, "by": "asha", "why": "it loops"}


async def test_lifting_says_where_the_policy_itself_freezes(redis_url: str) -> None:
    await made(redis_url)
    async with site_of(redis_url) as site:
        await put(site, "policies: {bot: {frozen: true}}")
        lifted = await frozen(site, "agent:bot", lift=True)
    assert lifted.notes == [
        "agent:bot stays frozen: its policy says `frozen: true`; apply a file without that"
    ]


@pytest.mark.parametrize("scope", ["defaults", "reviewers:asha", "agent:no such", "agent:"])
async def test_what_cannot_be_frozen_is_refused(redis_url: str, scope: str) -> None:
    await made(redis_url)
    async with site_of(redis_url) as site:
        with pytest.raises(InputError):
            await frozen(site, scope)


async def test_the_command_says_what_it_did_and_fails_where_a_policy_keeps_it_frozen(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await made(redis_url)
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)

    async def said(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli, list(arguments))
        out = capsys.readouterr()
        return code, out.out, out.err

    who = ("--by", "asha", "--why", "it loops")
    assert (await said("freeze", "agent", "bot", *who))[:2] == (0, "agent:bot is frozen\n")
    assert (await said("freeze", "agent", "bot", *who))[
        1
    ] == "agent:bot was frozen already; this freeze is recorded too\n"
    code, out, _ = await said("policy", "show", "--json")
    assert [row["scope"] for row in json.loads(out)["policies"]] == ["freeze:agent:bot"]
    assert (await said("policy", "show", "bot"))[2].endswith("REJECTED NO_POLICY, and it is frozen\n")
    async with site_of(redis_url) as site:
        await put(site, ONE)
    _, out, _ = await said("policy", "show", "bot", "--json")
    assert json.loads(out)["freeze"] == {"frozen": True, "by": "asha", "why": "it loops"}
    assert "freeze:agent:bot, version 2" in (await said("policy", "show", "bot"))[1]
    _, out, _ = await said("policy", "history", "bot")
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("2")] == [
        f"freeze:agent:bot added, version 1 by asha ({shell()}): it loops",
        f"freeze:agent:bot changed, version 2 by asha ({shell()}): it loops",
        "agent:bot added, version 1 by asha (cli): because",
    ]
    code, out, _ = await said("unfreeze", "agent", "bot", *who, "--json")
    assert (code, json.loads(out)["changed"]) == (0, True)
    code, _, err = await said("freeze", "agent", "bot", "--by", "asha", "--why", "x" * 501)
    assert (code, err) == (2, "streamproc: --why has 501 characters, the limit is 500\n")
    assert (await said("freeze", "vendor", "bot", *who))[0] == 2
    assert (await said("freeze", "agent", "bot", "--by", "asha"))[0] == 2
    async with site_of(redis_url) as site:
        await put(site, "policies: {bot: {frozen: true}}")
    code, _, err = await said("unfreeze", "agent", "bot", *who)
    assert (code, "stays frozen" in err) == (1, True)
