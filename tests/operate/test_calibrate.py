"""`policy calibrate` measures an agent's approved payouts in the archive and puts the profile in its policy."""

import asyncio
import json
from typing import Any

import pytest

from streamproc.cli import run as cli
from streamproc.domain.calibration import PROFILE_AGE_MAX
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import PayoutObserved, PolicyChanged
from streamproc.domain.shown import iso
from streamproc.log import clock
from streamproc.log.clock import clock_us
from streamproc.log.inspect import newest_entries
from streamproc.operate import calibrate as job
from streamproc.operate import doctor_policies
from streamproc.operate.doctor_policies import examine_policies
from tests.engine import Engine
from tests.operate.words import NOBODY_THERE, archive, settings
from tests.words import ACCOUNT, NOW, observed

NO_RATE = "rate_limit: {count: 0}"
POLICIES = f"""
policies:
  bot: {{anomaly: true, per_txn_limit: 100000, require_approval_above: 50000, {NO_RATE}}}
  other: {{{NO_RATE}}}
reviewers: [asha]
"""
DAY_US = 86_400_000_000
EVER = ("--since", "2026-01-01")


def usual(many: int, *, agent: str = "bot", before: str = "p") -> list[PayoutObserved]:
    """Payouts of ₹10 and a little more, one a day at 19:43, the last one at NOW."""
    return [
        observed(f"{before}{n}", 1_000 + n, agent=agent, at=NOW - (many - 1 - n) * DAY_US)
        for n in range(many)
    ]


class Command:
    """`streamproc policy calibrate`, and other commands, on the stores of a test."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def said(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = await asyncio.to_thread(cli, ["policy", *arguments])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    async def document(self, *arguments: str) -> Any:
        """What it prints as JSON; it must exit 0."""
        code, out, err = await self.said(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def command(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", postgres)
    return Command(capsys)


async def test_what_is_measured_is_in_force_at_once_and_holds_what_is_unlike(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(60), *usual(5, agent="other", before="o"))
        await archive(redis_url, postgres)
        told = await command.document("calibrate", "bot", *EVER, "--by", "asha", "--why", "first month")
        await engine.deliver(observed("usual", 1_030), observed("unlike", 20_000))
        records = await engine.records()
        entry = told["partitions"][0]["entry"]
        events = [event for events in await engine.entries() for event in events]
    [changed] = [event for event in events if isinstance(event, PolicyChanged) and event.version == 2]
    profile = told["profile"]
    assert (profile["payouts"], profile["threshold"], profile["timezone"]) == (60, 500, "Asia/Kolkata")
    assert (profile["amounts"][0], profile["amounts"][10], profile["amounts"][19]) == (1_000, 1_029, 1_056)
    assert profile["weekday_hours"][19] + profile["weekend_hours"][19] == 60
    assert profile["until"] == "2026-09-21T14:13:20.000000Z"
    assert (told["agent"], told["changed"], told["would_hold"], told["highest"]) == ("bot", True, 0, [])
    assert entry is not None
    assert (changed.scope, changed.by, changed.why) == ("agent:bot", "asha", "first month")
    assert changed.channel.startswith("cli:")
    assert changed.after is not None
    assert changed.after["anomaly_profile"] == profile
    assert {p: (records[p].decision, records[p].reason) for p in ("usual", "unlike")} == {
        "usual": ("APPROVED", "POLICY_OK"),
        "unlike": ("HELD", "ANOMALY_DETECTED"),
    }
    assert records["unlike"].policy_version == 2


async def test_only_payouts_that_were_approved_count_by_the_rules_or_by_a_person(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(48), observed("rejected", 100_001))
        await engine.deliver(*(observed(f"held_{n}", 60_000) for n in range(3)))
        await engine.review("held_0", "asha", "approve", account=ACCOUNT)
        await engine.review("held_1", "asha", "reject", account=ACCOUNT)
        await archive(redis_url, postgres)
        code, out, err = await command.said("calibrate", "bot", *EVER)
        assert (code, out) == (1, "")
        assert "agent bot has 49 approved payouts since 2026-01-01T00:00:00Z, and a profile needs 50" in err
        await engine.deliver(observed("one_more", 1_000))
        await archive(redis_url, postgres)
        told = await command.document("calibrate", "bot", *EVER, "--share-held", "20")
    assert told["profile"]["payouts"] == 50
    assert told["would_hold"] == 1
    [highest] = told["highest"]
    assert (highest["payout"], highest["amount"]) == ("held_0", 60_000)
    assert highest["score"] > told["profile"]["threshold"]


async def test_of_many_a_sample_of_the_whole_time_is_measured_and_of_none_before_since(
    redis_url: str, postgres: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(60))
        await archive(redis_url, postgres)
        since = await command.document("calibrate", "bot", "--since", "2026-08-01", "--dry-run")
        monkeypatch.setattr(job, "PAYOUTS_MAX", 50)
        sample, again = [await command.document("calibrate", "bot", *EVER, "--dry-run") for _ in range(2)]
    assert (sample["profile"]["payouts"], again["profile"]) == (50, sample["profile"])
    assert sample["profile"]["since"] < "2026-08-01"  # of the sixty the newest fifty begin on 3 August
    assert (since["profile"]["payouts"], since["profile"]["since"]) == (52, "2026-08-01T14:13:20.000000Z")


async def test_a_dry_run_changes_nothing_and_what_is_in_force_is_not_changed_again(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(60))
        await archive(redis_url, postgres)
        told = await command.document("calibrate", "bot", *EVER, "--dry-run")
        assert (told["changed"], told["waits"], told["loosens"]) == (False, False, [])
        assert (await command.document("show", "bot"))["version"] == 1
        assert (await command.document("calibrate", "bot", *EVER))["changed"] is True
        assert (await command.document("calibrate", "bot", *EVER))["changed"] is False
        shown = await command.document("show", "bot")
    assert (shown["version"], shown["own"]["anomaly_profile"]) == (2, told["profile"])


async def test_where_loosening_takes_two_people_measuring_anew_waits_for_the_second(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES + "changes: {loosening: two_people}")
        await engine.deliver(*usual(60))
        await archive(redis_url, postgres)
        first = await command.document("calibrate", "bot", *EVER)
        assert first["changed"] is True  # the rule begins, which only tightens
        await engine.deliver(observed("more", 1_500))
        await archive(redis_url, postgres)
        waits = await command.document("calibrate", "bot", *EVER, "--by", "asha")
        assert waits["changed"] is False
        [loosens] = waits["proposal"]["loosens"]
        assert (loosens["field"], loosens["why"]) == (
            "anomaly_profile",
            "its usual payouts are measured anew",
        )
        _, listed, _ = await command.said("proposals")
        until = "2026-09-21T14:13:20.000000Z"
        before = f"60 payouts until {until}, 95 % up to ₹10.56, threshold 500"
        after = f"61 payouts until {until}, 95 % up to ₹10.57, threshold 500 (its usual payouts are measured anew)"
        assert f"agent:bot anomaly_profile: {before} -> {after}" in listed
        code, _, err = await command.said("confirm", waits["proposal"]["id"], "--by", "vikram")
        assert code == 0, err
        shown = await command.document("show", "bot")
        code, out, err = await command.said("calibrate", "bot", *EVER, "--share-held", "0", "--by", "asha")
    assert shown["own"]["anomaly_profile"] == waits["profile"]
    assert (code, "nothing to change: this profile is in force already" in out) == (0, True), err


async def test_people_are_told_what_is_usual_what_would_have_been_held_and_that_the_rule_is_off(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(99, agent="other", before="o"), observed("large", 90_000, agent="other"))
        await archive(redis_url, postgres)
        code, out, err = await command.said("calibrate", "other", *EVER)
    assert code == 0
    for line in (
        "agent other: 100 approved payouts from 2026-06-15T14:13:20.000000Z to 2026-09-21T14:13:20.000000Z",
        "  half up to ₹10.49, 95 % up to ₹10.94",
        "  threshold 500: 1 of them would have been held",
        "agent:other changed, version 2",
    ):
        assert line in out.splitlines()
    assert "large   2026-09-21T14:13:20.000000Z  ₹900.00  695    993        0" in out
    assert err == "note: the policy says anomaly: false, so nothing of other is held by it yet\n"


async def test_people_are_told_that_a_history_is_shorter_than_a_week(
    redis_url: str, postgres: str, command: Command
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"p{n}", 1_000) for n in range(50)))
        await archive(redis_url, postgres)
        code, _, err = await command.said("calibrate", "bot", *EVER)
    assert (code, err.startswith("note: these payouts are of less than a week: at hours")) == (0, True), err


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["nobody"], 1, "agent nobody has no policy"),
        (["bot", "--since", "yesterday"], 2, "--since 'yesterday' is no time"),
        (["bot", "--share-held", "101"], 2, "101 is not in the range 0<=x<=100"),
    ],
)
async def test_wrong_use_is_one_clear_line(
    redis_url: str, command: Command, arguments: list[str], code: int, problem: str
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        got, _, err = await command.said("calibrate", *arguments)
    assert (got, problem in err) == (code, True), err


async def test_without_the_archive_nothing_is_measured(
    redis_url: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", NOBODY_THERE)
        code, _, err = await command.said("calibrate", "bot")
    assert (code, "the agent's payouts are in Postgres: " in err) == (1, True), err


async def test_what_the_views_do_not_show_yet_is_not_measured_and_the_command_says_from_when_on(
    redis_url: str, postgres: str, command: Command
) -> None:
    """The projector stands still while the agent goes on."""
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(49))
        await archive(redis_url, postgres)
        shown = await newest(engine)
        await engine.deliver(*usual(9, before="few"))
        code, _, err = await command.said("calibrate", "bot", *EVER)
        assert (code, f"up to {shown}, which is how far the views are, and a profile needs 50" in err) == (
            1,
            True,
        )
        await archive(redis_url, postgres)
        shown = await newest(engine)
        await until_later(engine, shown)
        await engine.deliver(*usual(9, before="later"))
        behind = await command.document("calibrate", "bot", *EVER, "--dry-run")
        _, told, _ = await command.said("calibrate", "bot", *EVER, "--dry-run")
        await archive(redis_url, postgres)
        whole = await command.document("calibrate", "bot", *EVER, "--dry-run")
        _, all_told, _ = await command.said("calibrate", "bot", *EVER, "--dry-run")
        last = await newest(engine)
    assert (behind["profile"]["payouts"], behind["views"]["until"]) == (58, shown)
    assert behind["views"]["behind_s"] > 0
    assert f"  the views, from which they are, show the log up to {shown} and are " in told
    assert (whole["profile"]["payouts"], whole["views"]["behind_s"]) == (67, 0)
    assert whole["views"]["until"] >= last
    assert "  the views, from which they are, show the whole log up to " in all_told


async def newest(engine: Engine) -> str:
    """When the log's newest entry was written."""
    [entry] = await newest_entries(engine.client, engine.names, 1)
    return iso(id_key(entry.id)[0] * 1_000)


async def until_later(engine: Engine, moment: str) -> None:
    """Return when Redis's clock has another millisecond."""
    while iso(await clock_us(engine.client) // 1_000 * 1_000) <= moment:
        pass


async def test_how_old_a_profile_is_shows_in_policy_show_and_doctor_names_those_that_are_outdated(
    redis_url: str, postgres: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest payout is of NOW."""
    days = [0]

    async def later(_: Any) -> int:
        return NOW + days[0] * DAY_US

    monkeypatch.setattr(doctor_policies, "clock_us", later)
    monkeypatch.setattr(clock, "clock_us", later)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*usual(60))
        await archive(redis_url, postgres)
        await command.document("calibrate", "bot", *EVER)
        days[0] = PROFILE_AGE_MAX.days
        assert await examine_policies(settings(redis_url)) == []
        _, shown, _ = await command.said("show", "bot")
        days[0] += 1
        [check] = await examine_policies(settings(redis_url))
        await engine.apply(POLICIES.replace("anomaly: true", "anomaly: false"))
        off = await examine_policies(settings(redis_url))
    profile = "60 payouts until 2026-09-21T14:13:20.000000Z, 95 % up to ₹10.56, threshold 500"
    assert f"  anomaly_profile: {profile} (90 days old; all its numbers: --json)" in shown.splitlines()
    assert (check.status, check.detail) == ("note", "the profile's newest payout is older than 90 days: bot")
    assert check.todo == "measure anew: streamproc policy calibrate bot"
    assert off == []


async def at_now(_: Any) -> int:
    """The clock, when the newest payouts come."""
    return NOW


async def test_an_agent_that_asks_and_was_never_measured_is_named_by_apply_and_by_doctor(
    redis_url: str, postgres: str, command: Command, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (
        "agent bot: anomaly is on, but holds nothing before its payouts are measured:"
        " streamproc policy calibrate bot"
    )
    file = tmp_path / "p.yaml"
    file.write_text(POLICIES)
    async with Engine(redis_url) as engine:
        _, _, err = await command.said("apply", str(file), "--dry-run")
        assert err == f"note: {wanted}\nnote: nothing was changed\n"
        assert (await command.document("apply", str(file)))["notes"] == [wanted]
        [check] = await examine_policies(settings(redis_url, postgres))
        assert (check.status, check.detail) == (
            "note",
            "is on and has no profile, so it holds nothing of: bot",
        )
        assert check.todo == "measure them: streamproc policy calibrate bot"
        await engine.deliver(*usual(60))
        await archive(redis_url, postgres)
        await command.document("calibrate", "bot", *EVER)
        monkeypatch.setattr(doctor_policies, "clock_us", at_now)
        assert await examine_policies(settings(redis_url, postgres)) == []
        file.write_text(POLICIES.replace("100000", "90000"))
        assert (await command.document("apply", str(file)))["notes"] == []


async def test_of_many_agents_that_were_never_measured_ten_are_named(
    redis_url: str, command: Command, tmp_path: Any
) -> None:
    file = tmp_path / "p.yaml"
    agents = {f"a{n}": {} for n in range(12)}
    file.write_text(json.dumps({"defaults": {"anomaly": True}, "policies": agents}))
    async with Engine(redis_url) as engine:
        await engine.settled()
        notes = (await command.document("apply", str(file)))["notes"]
        [check] = await examine_policies(settings(redis_url))
    assert [note.partition(":")[0] for note in notes[:10]] == [f"agent a{n}" for n in range(10)]
    assert notes[10:] == ["and 2 agents more have no profile"]
    assert check.detail.endswith("holds nothing of: a0, a1, a10, a11, a2 and 7 more")
