"""What an operator does on the command line is recorded with the login and host that it was typed at, whatever `--by`
claims; an auditor who asks who really lifted a freeze finds them in the log and in every list."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from msgspec import Struct

from streamproc.cli import run as cli
from streamproc.cli.person import shell
from streamproc.domain import events as e
from streamproc.domain.policy_events import Loosening, ScopeChange
from streamproc.domain.wire import EVENT_KINDS, decode_events
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.proposals import read_proposals
from streamproc.log.stream import LogView, open_log
from streamproc.operate import proposals
from streamproc.operate.dead import discard
from streamproc.operate.explain import explain
from streamproc.operate.freezes import freeze
from streamproc.operate.site import Site
from streamproc.operate.story import tell
from tests.engine import Engine
from tests.operate.test_dead import malformed
from tests.operate.words import archive, site_of
from tests.words import attributed

POLICIES = "{policies: {bot: {daily_limit: 1_000}}, changes: {loosening: two_people}}"
WHO = ("--by", "asha", "--why", "a test")

Said = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def site(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["governance", "execution", "notification"])
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    async with site_of(redis_url) as site:
        yield site


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command that succeeds; what it printed."""

    async def run(*words: str) -> str:
        code = await asyncio.to_thread(cli, list(words))
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    return run


async def told(site: Site) -> list[Any]:
    async with LogView(site.redis_url, 0) as view:
        rows = await view.read("0-0", 1_000, 0)
    return [event for row in rows if row.e.startswith(b"[{") for event in decode_events(row.e)]


async def letter(site: Site) -> str:
    entry = await site.client.xadd(Names(0).log, {"e": "[]", "m": "{}"})
    letter = {"entry": entry, "group": "governance", "e": "[]", "m": "{}", "problem": "p"}
    made: bytes = await site.client.xadd(Names(0).dead, letter)
    return f"0:{made.decode()}"


async def everything(site: Site, said: Said, at: Path) -> None:
    """Every command by which an operator changes something, once; a name is claimed for each."""
    policies, looser = at / "policies.yaml", at / "looser.yaml"
    policies.write_text(POLICIES)
    looser.write_text("{daily_limit: 2_000}")
    await said("policy", "apply", str(policies), *WHO)
    for end in (("confirm", "--by", "vikram"), ("withdraw", "--by", "vikram")):
        await said("policy", "patch", "bot", str(looser), *WHO)
        waits = json.loads(await said("policy", "proposals", "--json"))["items"][0]["id"]
        await said("policy", end[0], waits, *end[1:])
        looser.write_text("{daily_limit: 3_000}")
    await said("freeze", "agent", "bot", *WHO)
    await said("unfreeze", "agent", "bot", *WHO)
    lifting = json.loads(await said("policy", "proposals", "--json"))["items"][0]["id"]
    await said("policy", "confirm", lifting, "--by", "vikram")
    await said("token", "create", "laptop", "--scope", "viewer", "--by", "asha")
    await said("token", "revoke", "laptop", "--by", "asha")
    await said("dead", "redrive", await letter(site), *WHO)
    await said("dead", "discard", await letter(site), "--yes", *WHO)
    strange = (await site.client.xadd(Names(0).log, {"e": "none", "m": "{}"})).decode()
    await said("log", "disown", f"0:{strange}", "--yes", *WHO)


def fields_of(kind: type[Any]) -> set[str]:
    return set(kind.__struct_fields__)


ANSWERS = {e.ReviewSubmitted, e.ReviewCounted, e.ReviewRefused}
BY_PEOPLE = {kind for kind in EVENT_KINDS if "by" in fields_of(kind)} - {e.PayoutDecided}
"""A decision names the reviewer of an answer, which is an event of its own."""


def test_whatever_a_person_did_has_a_channel() -> None:
    assert {kind for kind in BY_PEOPLE if "channel" not in fields_of(kind)} == set()


async def test_every_command_that_changes_something_records_the_shell(
    site: Site, said: Said, tmp_path: Path
) -> None:
    await everything(site, said, tmp_path)
    done = [event for event in await told(site) if type(event) in BY_PEOPLE]
    assert {type(event) for event in done} == BY_PEOPLE - ANSWERS
    assert {event.channel for event in done} == {shell()}
    assert {c.confirmed_channel for c in done if type(c) is e.PolicyChanged and c.confirmed_by} == {shell()}


async def test_the_audit_and_the_lists_show_it(
    site: Site,
    said: Said,
    redis_url: str,
    postgres: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await everything(site, said, tmp_path)
    await archive(redis_url, postgres)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", postgres)
    for kind in ("policy", "alert"):
        rows = json.loads(await said("audit", "list", "--kind", kind, "--json"))["items"]
        of_people = [row["reason"] for row in rows if row["actor"] in ("asha", "vikram")]
        assert of_people
        assert [reason for reason in of_people if f" by {shell()}" not in reason] == []
    history = await said("policy", "history", "bot")
    assert f"freeze:agent:bot added, version 1 by asha ({shell()}): a test" in history
    lifted = f"version 2 by asha ({shell()}), confirmed by vikram ({shell()}): a test"
    assert f"freeze:agent:bot removed, {lifted}" in history
    waiting = (await said("policy", "proposals")).splitlines()
    assert any(
        f"confirmed by vikram ({shell()}); proposed by asha ({shell()}) at" in line for line in waiting
    )
    assert any(f"withdrawn by vikram ({shell()}); proposed" in line for line in waiting)
    table = tmp_path / "policy.jsonl"
    await said("audit", "export", str(table), "--kind", "policy")
    assert (
        f"freeze:agent:bot removed, version 2 by {shell()}, confirmed by vikram ({shell()})"
        in table.read_text()
    )


async def test_a_proposal_that_a_freeze_ends_is_withdrawn_at_the_shell_of_the_freeze(
    site: Site, said: Said, tmp_path: Path
) -> None:
    policies = tmp_path / "policies.yaml"
    policies.write_text(POLICIES)
    await said("policy", "apply", str(policies), *WHO)
    await said("freeze", "agent", "bot", *WHO)
    await said("unfreeze", "agent", "bot", *WHO)
    await freeze(site, "agent:bot", attributed("meera", "again", "cli:meera@night"), frozen=True)
    [ended] = [event for event in await told(site) if type(event) is e.ProposalWithdrawn]
    assert (ended.by, ended.channel) == ("meera", "cli:meera@night")


async def test_explain_says_at_which_shell_a_payouts_dead_letter_was_closed(redis_url: str) -> None:
    async with Engine(redis_url) as engine, site_of(redis_url) as site:
        await malformed(engine)
        [row] = (await engine.client.xrange(Names(0).dead))[:1]
        await discard(site, f"0:{row[0].decode()}", attributed("asha", "a test", "cli:root@host"))
        text = "\n".join(tell(await explain(site, "pout_bad")))
    assert "asha (cli:root@host) discarded dead letter" in text


class FormerProposal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A proposal as the version reads it that knew two words for a channel."""

    id: str
    changes: list[ScopeChange]
    loosens: list[Loosening]
    by: str
    why: str
    channel: Literal["cli", "api"]
    proposed_at: int
    expires_at: int
    confirmed_by: str = ""
    withdrawn_by: str = ""
    closed_at: int = 0
    base: list[dict[str, int]] = []


@pytest.mark.parametrize(
    ("channel", "kind"), [("cli:asha@laptop", "cli"), ("api:asha-laptop", "api"), ("unheard:of", "cli")]
)
async def test_beside_this_version_a_former_one_reads_each_proposal_and_is_told_its_kind(
    site: Site, channel: str, kind: str
) -> None:
    """It reads all of them before each freeze, which would fail where one is not readable."""
    made = await proposals.propose(site, [], [], attributed("asha", "", channel))
    stored = await site.client.hget(Names(0).proposals, made.id)
    assert msgspec.json.decode(stored, type=FormerProposal).channel == kind
    assert (await read_proposals(site.client))[1][made.id].proposed_channel == channel


async def test_what_a_former_version_left_waiting_is_confirmed_and_shows_what_is_known(site: Site) -> None:
    former = FormerProposal(
        id="prop_0123456789abcdef",
        changes=[ScopeChange(scope="agent:bot", before=None, after={"daily_limit": 5})],
        loosens=[Loosening(scope="agent:bot", field="", before=None, after=None, why="its first policy")],
        by="asha", why="", channel="cli", proposed_at=1, expires_at=2**53,
    )  # fmt: skip
    await site.client.hset(Names(0).proposals, former.id, msgspec.json.encode(former))
    assert (await proposals.listed(site))[0]["channel"] == "cli"
    await proposals.confirm(site, former.id, attributed("vikram", channel="cli:vikram@desk"))
    [change] = [event for event in await told(site) if type(event) is e.PolicyChanged]
    assert (change.channel, change.confirmed_channel) == ("cli", "cli:vikram@desk")
