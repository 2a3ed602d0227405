"""`explain` tells a payout's whole story, from wherever its events are."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamproc.errors import JobFailed
from streamproc.log.scripts import BATCH_MAX
from streamproc.operate import explain as explaining
from streamproc.operate import history
from streamproc.operate.dead import discard, list_letters
from streamproc.operate.explain import as_json, explain, explain_as_of
from streamproc.operate.story import tell
from tests.consumers.test_entities import POLICIES as ENTITY_POLICIES
from tests.consumers.test_entities import VERDICTS, asks, governance, handled
from tests.engine import Engine
from tests.operate.test_dead import malformed
from tests.operate.words import NOBODY_THERE, POLICIES, archive, site_of
from tests.words import ACCOUNT, Register, Vendors, attributed, copy_of, observed, request, requested

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def story_of(redis_url: str, payout: str, dsn: str = "") -> tuple[dict[str, Any], str]:
    async with site_of(redis_url, dsn) as site:
        story = await explain(site, payout)
        return as_json(story), "\n".join(tell(story))


async def held_and_approved(engine: Engine) -> None:
    await engine.apply(POLICIES)
    await engine.deliver(observed("pout_0", 100_000))
    await engine.deliver(observed("pout_1", 600_000, url="https://paper.example.com"))
    await engine.review("pout_1", "asha", "approve", account=ACCOUNT)


async def test_as_of_a_moment_the_story_is_what_was_known_then(redis_url: str, postgres: str):
    async with Engine(redis_url) as engine:
        await held_and_approved(engine)
        await archive(redis_url, postgres)
        async with site_of(redis_url, postgres) as site:
            whole = await explain(site, "pout_1")
            held = next(told for told in whole.events if getattr(told.event, "decision", "") == "HELD")
            then = await explain_as_of(site, postgres, "pout_1", held.id)
            assert (then.record.decision, then.record.state) == ("HELD", "held")
            assert [told.id for told in then.events] == [told.id for told in whole.events][: len(then.events)]
            assert then.events[-1].id.rpartition(":")[0] == held.id.rpartition(":")[0]
            assert as_json(then)["reviews"] == []
            assert whole.record.decision == "APPROVED"
            with pytest.raises(JobFailed, match="pout_1 was not known at 2001-01-01"):
                await explain_as_of(site, postgres, "pout_1", "2001-01-01")
        async with site_of(redis_url, NOBODY_THERE) as site:
            with pytest.raises(JobFailed, match="Postgres"):
                await explain_as_of(site, NOBODY_THERE, "pout_1", held.id)


@pytest.mark.parametrize(
    ("status", "said"),
    [("processing", "never decided"), ("cancelled", "never decided"), ("pending", "APPROVED POLICY_OK")],
)
async def test_a_payout_that_is_over_is_not_called_undecided_yet(redis_url: str, status: str, said: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_0", 100_000, status=status))
        assert (await story_of(redis_url, "pout_0"))[1].splitlines()[0].endswith(said)


async def test_dollars_are_not_shown_as_rupees(redis_url: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_0", 100_000, currency="USD"))
        first = (await story_of(redis_url, "pout_0"))[1].splitlines()[0]
        assert first == "pout_0  1,000.00 USD  REJECTED CURRENCY_NOT_ALLOWED"


@pytest.mark.parametrize("postgres_there", [True, False])
async def test_an_intent_is_found_by_what_the_bank_calls_it(
    redis_url: str, postgres: str, postgres_there: bool
):
    asked = requested()
    made = copy_of(asked, "pout_at_bank", "processing")
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.producer.append(request(asked))
        await engine.deliver(made)
        if postgres_there:
            await archive(redis_url, postgres)
        told, text = await story_of(redis_url, "pout_at_bank", postgres if postgres_there else NOBODY_THERE)
        with pytest.raises(JobFailed, match="pout_at_bankrupt is not known here"):
            await story_of(redis_url, "pout_at_bankrupt", postgres if postgres_there else NOBODY_THERE)
    assert (told["payout"], told["bank_payout"]) == (asked.payout, "pout_at_bank")
    assert asked.payout in text


@pytest.mark.parametrize("postgres_there", [True, False])
async def test_a_malformed_payout_is_shown_with_its_reason_and_its_dead_letter(
    redis_url: str, postgres: str, postgres_there: bool
):
    async with Engine(redis_url) as engine:
        await malformed(engine, "pout_other", "amount is 1")
        await malformed(engine, "pout_bad", "amount is 99")
        if postgres_there:
            await archive(redis_url, postgres)
        dsn = postgres if postgres_there else NOBODY_THERE
        told, text = await story_of(redis_url, "pout_bad", dsn)
        async with site_of(redis_url) as site:
            [_, letter] = await list_letters(site)
            if postgres_there:
                async with site_of(redis_url, postgres) as whole:
                    then = await explain_as_of(
                        whole, postgres, "pout_bad", (datetime.now(UTC) + timedelta(hours=1)).isoformat()
                    )
                    assert (then.governed, then.record.decision) == (False, None)
            await discard(site, letter["id"], attributed("asha"))
        closed, _ = await story_of(redis_url, "pout_bad", dsn)
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_bad", 100_000))
        later, _ = await story_of(redis_url, "pout_bad", dsn)
    assert (told["payout"], told["account"], told["decision"], told["state"]) == (
        *("pout_bad", ACCOUNT),
        *(None, "received"),
    )
    assert [event["type"] for event in told["events"]] == ["payout.malformed", "entry.set_aside"]
    about = "rule 1, it is not governed: amount is 99"
    assert told["notes"][-2:] == [
        about,
        f"dead letter {letter['id']} of governance (`streamproc dead show {letter['id']}`)",
    ]
    assert text.splitlines()[0] == "pout_bad  not governed"
    assert f"note: {about}" in text
    assert (closed["notes"][-1], closed["events"][-1]["type"]) == (about, "dead_letter.closed")
    assert (later["decision"], later["events"][0]["type"]) == ("APPROVED", "payout.malformed")
    assert not any("beginning" in note for note in later["notes"])


async def test_a_held_and_approved_payout_shows_request_rules_budget_reviewer_and_decision(redis_url: str):
    async with Engine(redis_url) as engine:
        await held_and_approved(engine)
        told, text = await story_of(redis_url, "pout_1")
    assert told["decision"] == "APPROVED"
    assert told["reason"] == "REVIEW_APPROVED"
    assert (told["agent"], told["identity"], told["amount"], told["currency"]) == (
        "bot",
        "claimed",
        600_000,
        "INR",
    )
    assert told["vendor_url"] == "https://paper.example.com"
    assert told["policy_version"] == 1
    assert told["findings"] == [
        {
            "stage": "approval",
            "code": "APPROVAL_REQUIRED",
            "outcome": "HELD",
            "evidence": {"amount": 600_000, "above": 500_000},
        }
    ]
    [review] = told["reviews"]
    assert (review["by"], review["action"], review["why"]) == ("asha", "approve", "because")
    assert "₹6,000.00" in text
    assert "before ₹1,000.00, after ₹7,000.00 of ₹1,00,000.00" in text
    assert "decided APPROVED REVIEW_APPROVED by asha under policy version 1" in text


async def test_the_reservation_names_each_window_with_what_was_there_before(redis_url: str):
    async with Engine(redis_url) as engine:
        await held_and_approved(engine)
        told, _ = await story_of(redis_url, "pout_1")
    reservation = told["reservation"]
    assert reservation["state"] == "reserved"
    [window] = [w for w in reservation["windows"] if w["limit"] is not None]
    assert (window["scope"], window["reserved"], window["committed"]) == ("agent:bot", 100_000, 0)
    assert window["limit"] == 10_000_000


async def test_events_are_in_log_order_with_ids_of_partition_entry_and_index(redis_url: str):
    async with Engine(redis_url) as engine:
        await held_and_approved(engine)
        told, _ = await story_of(redis_url, "pout_1")
    ids = [re.fullmatch(r"0:(\d+)-(\d+):(\d+)", event["id"]) for event in told["events"]]
    keys = [tuple(map(int, found.groups())) for found in ids if found]
    assert len(keys) == len(told["events"])
    assert keys == sorted(set(keys))
    assert told["events"][0]["type"] == "payout.observed"
    assert [event["type"] for event in told["events"]].count("payout.decided") == 2
    assert all(ISO.fullmatch(event["at"]) for event in told["events"])
    assert all(event["data"]["payout"] == "pout_1" for event in told["events"])


async def test_a_rejection_shows_the_rule_that_fired_and_its_evidence(redis_url: str):
    async with Engine(redis_url, vendors=Vendors({"evil": "threat"})) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(
            observed("pout_1", 1_000_001), observed("pout_2", 1_000, url="https://evil.example")
        )
        limit, text = await story_of(redis_url, "pout_1")
        threat, _ = await story_of(redis_url, "pout_2")
    assert [f["code"] for f in limit["findings"]] == ["TXN_LIMIT_EXCEEDED"]
    assert "TXN_LIMIT_EXCEEDED, amount ₹10,000.01, limit ₹10,000.00" in text
    assert limit["reservation"] is None
    assert threat["findings"][-1]["evidence"]["threats"] == ["MALWARE"]


async def test_the_archive_and_the_tail_that_is_not_archived_yet_make_one_story(
    redis_url: str, postgres: str
):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        await archive(redis_url, postgres)
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
        both, _ = await story_of(redis_url, "pout_1", postgres)
        alone, _ = await story_of(redis_url, "pout_1")
    assert both["notes"] == []
    assert both["events"] == alone["events"]
    assert both["decision"] == "REJECTED"


async def test_what_has_left_redis_is_told_from_the_archive(redis_url: str, postgres: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        await archive(redis_url, postgres)
        before, _ = await story_of(redis_url, "pout_1", postgres)
        await engine.client.xtrim(engine.names.log, maxlen=0)
        await engine.client.delete(engine.names.payout("pout_1"))
        after, _ = await story_of(redis_url, "pout_1", postgres)
    assert after == before


async def test_with_postgres_away_the_story_comes_from_redis_and_says_so(redis_url: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        told, text = await story_of(redis_url, "pout_1", NOBODY_THERE)
    assert told["decision"] == "HELD"
    assert "Postgres is away" in told["notes"][0]
    assert "Postgres is away" in text


async def test_a_payout_is_found_behind_more_entries_than_one_read_takes(redis_url: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        many = [observed(f"pout_n{n}", 100, agent="nobody") for n in range(3 * BATCH_MAX)]
        await engine.deliver(*many)
        await engine.deliver(observed("pout_1", 600_000))
        told, _ = await story_of(redis_url, "pout_1")
    assert told["decision"] == "HELD"


async def test_a_payout_whose_name_begins_another_ones_keeps_its_own_story(redis_url: str):
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 1_000), observed("pout_12", 2_000))
        told, _ = await story_of(redis_url, "pout_1")
    assert told["amount"] == 1_000
    assert {event["data"]["payout"] for event in told["events"]} == {"pout_1"}


@pytest.mark.parametrize("archived", [True, False])
async def test_of_a_story_with_too_many_entries_the_end_is_missing_but_not_how_the_payout_stands(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch, archived: bool
):
    """Whoever has the bank's keys can make any number of payouts under one reference, each with its deliveries."""
    monkeypatch.setattr(explaining, "STORY_ENTRIES_MAX", 3)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        before, _ = await story_of(redis_url, "pout_1")
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await engine.deliver(observed("pout_1", 600_000, status="processed"))
        if archived:
            await archive(redis_url, postgres)
            await engine.client.delete(engine.names.payout("pout_1"))
        told, text = await story_of(redis_url, "pout_1", postgres if archived else "")
    missing = "it has more than 3 entries: what the later ones tell is missing here"
    assert missing not in before["notes"]
    assert missing in told["notes"]
    assert missing in text
    assert len({event["id"].rpartition(":")[0] for event in told["events"]}) == 3
    assert (told["decision"], told["state"]) == ("APPROVED", "processed")


async def test_as_of_a_moment_too_many_entries_are_said(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "STORY_ENTRIES_MAX", 1)
    async with Engine(redis_url) as engine:
        await held_and_approved(engine)
        await archive(redis_url, postgres)
        async with site_of(redis_url, postgres) as site:
            last = (await explain(site, "pout_1")).events[-1].id
            then = await explain_as_of(site, postgres, "pout_1", last)
    assert then.notes[1:] == ["it has more than 1 entries: what the later ones tell is missing here"]


async def test_an_unknown_payout_is_a_failed_job_that_names_it(redis_url: str):
    async with Engine(redis_url), site_of(redis_url) as site:
        with pytest.raises(JobFailed, match="pout_nobody is not known here"):
            await explain(site, "pout_nobody")
        with pytest.raises(JobFailed, match=r"^payout pout_nobody \[31m is not known here"):
            await explain(site, "pout_nobody\n\x1b[31m")


async def test_a_redis_without_a_log_is_said_in_one_line(redis_url: str):
    with pytest.raises(JobFailed, match="no log yet"):
        async with site_of(redis_url):
            pass


async def test_what_a_register_said_of_the_contact_is_told_whether_it_held_the_payout_or_not(
    redis_url: str,
):
    async with Engine(redis_url, groups=[governance(Register(VERDICTS))]) as engine:
        await engine.apply(ENTITY_POLICIES)
        strict, lax = asks("Lapsed Ltd"), asks("Away Ltd", agent="lax")
        await handled(engine, strict, lax)
        shown, told = await story_of(redis_url, strict.payout)
        _, told_of_lax = await story_of(redis_url, lax.payout)
    assert "legal entity: not_issued" in told
    assert "HELD ENTITY_UNVERIFIED, problem the entity's LEI is not valid any more" in told
    assert shown["decision"] == "HELD"
    assert "legal entity: unavailable (timeout), asked" in told_of_lax
    assert "ENTITY_UNVERIFIED" not in told_of_lax
