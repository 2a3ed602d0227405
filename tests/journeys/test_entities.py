"""Rule 14 through every role: an agent names whom it pays, the register is asked, and people decide what it cannot."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from tests.bank import until
from tests.journeys.system import System, running_system
from tests.journeys.test_gateway import of_reference, token
from tests.journeys.test_slack import SIGNING_SECRET, TOKEN
from tests.journeys.truth import assert_budgets_agree, assert_one_story, assert_records_agree
from tests.ports import free_port

POLICIES = """
policies:
  strict: {daily_limit: 100_000_000, require_entity: true}
reviewers: [asha]
"""
ASHA_LEI = "984500SANDBOX0000190"
VERIFIED, LAPSED, UNKNOWN = "Asha Paper Works Pvt. Ltd.", "Lapsed Traders (P) Ltd", "Nobody Anywhere LLP"


@asynccontextmanager
async def vetting_system(redis_url: str, dsn: str, *, workers: int = 1) -> AsyncIterator[System]:
    """The system with the sandbox's register and Slack, whose port must be known before the roles start."""
    port = free_port()
    settings = {
        "gleif_url": f"http://127.0.0.1:{port}/gleif/api/v1",
        "slack_bot_token": TOKEN,
        "slack_signing_secret": SIGNING_SECRET,
        "slack_channel_id": "C0HOLDS",
        "slack_base_url": f"http://127.0.0.1:{port}/slack/api",
    }
    sandbox = {"port": port, "slack_token": TOKEN, "slack_signing_secret": SIGNING_SECRET}
    async with running_system(redis_url, dsn, workers=workers, sandbox=sandbox, **settings) as system:
        yield system


async def told_in_slack(system: System, text: str) -> None:
    """Wait until a message in Slack says this."""

    async def said() -> bool:
        return any(text in json.dumps(each["body"]) for each in await system.bank.messages("slack"))

    await until(said, what=f"Slack shows: {text}")


async def ask(system: System, secret: str, name: str, notes: dict[str, str] | None = None) -> str:
    """A payout to a contact of this name; its id."""
    payee = {
        "account_type": "vpa",
        "vpa": {"address": "somebody@okhdfc"},
        "contact": {"name": name, "type": "vendor"},
    }
    order = {"amount": 250_000, "mode": "UPI", "purpose": "vendor bill", "fund_account": payee}
    answer = await system.api.post(
        "/v1/payouts",
        json=order | ({"notes": notes} if notes else {}),
        headers={"authorization": f"Bearer {secret}", "idempotency-key": token_hex(8)},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["payout"])


async def held_because(system: System, payout: str) -> dict[str, Any]:
    """The evidence of a payout that is held for its contact's entity."""
    record = await system.reaches(payout, "held")
    (finding,) = record.findings
    assert (record.decision, finding.code) == ("HELD", "ENTITY_UNVERIFIED")
    return finding.evidence


async def test_who_is_verified_is_paid_and_whoever_is_not_waits_for_a_person(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with vetting_system(redis_url, postgres) as system:
        await system.apply(POLICIES)
        secret = await token(system, "strict")

        verified = await ask(system, secret, VERIFIED)
        await system.reaches(verified, "processed")

        lapsed = await held_because(system, await ask(system, secret, LAPSED))
        assert (lapsed["problem"], lapsed["entity_status"], lapsed["registration_status"]) == (
            *("the entity is not active", "INACTIVE", "LAPSED"),
        )
        unknown = await held_because(system, await ask(system, secret, UNKNOWN))
        assert unknown == {"problem": "the register has no such entity", "named": UNKNOWN}
        renamed = await ask(system, secret, "Another Name Ltd", {"lei": ASHA_LEI})
        other = await held_because(system, renamed)
        assert other["problem"] == "the entity of this LEI has another name"
        assert (other["named"], other["registered_name"]) == (
            *("Another Name Ltd", "Asha Paper Works Private Limited"),
        )
        _, told, _ = await system.cli("explain", renamed)
        assert "named Another Name Ltd" in told
        assert "registered_name Asha Paper Works Private Limited" in told
        await told_in_slack(
            system,
            "ENTITY_UNVERIFIED: the contact is not verified as a legal entity: the entity of this LEI has another name;"
            f" the payout names Another Name Ltd; LEI {ASHA_LEI}; registered as Asha Paper Works Private Limited;"
            " entity ACTIVE; registration ISSUED",
        )

        await system.bank.control("gleif", down="500")
        away = await ask(system, secret, "Far Away Traders Ltd")
        assert "the register could not be asked: " in (await held_because(system, away))["problem"]
        again = await ask(system, secret, VERIFIED, {"invoice": "8"})
        await system.reaches(again, "processed")  # its answer is kept for a day
        assert await of_reference(system, away) == []

        code, out, err = await system.cli("hold", "approve", away, "--by", "asha", "--reason", "known to us")
        assert code == 0, out + err
        record = await system.reaches(away, "processed")
        assert record.reason == "REVIEW_APPROVED"
        assert len(await of_reference(system, away)) == 1

        asked = [(call["name"], call["lei"]) for call in await system.bank.show("gleif")]
        assert asked == [
            ("Asha Paper Works Private Limited", ""),
            ("Lapsed Traders Private Limited", ""),
            *((UNKNOWN, ""), (UNKNOWN.removesuffix(" LLP"), "")),
            ("", ASHA_LEI),
            ("Far Away Traders Limited", ""),
        ]
        await agrees_with_its_past(system, tmp_path)
        _, told, _ = await system.cli("explain", verified)
        assert (
            f"legal entity: verified ({ASHA_LEI}, Asha Paper Works Private Limited, ACTIVE, ISSUED)" in told
        )


async def agrees_with_its_past(system: System, tmp_path: Path) -> None:
    """The views, a retrial of the past and the counters say what the log says."""
    await system.settled()
    await assert_one_story(system)
    await assert_records_agree(system)
    await assert_budgets_agree(system)
    code, out, _ = await system.cli("replay", "--verify")
    assert code == 0, out
    code, out, _ = await system.cli("policy", "whatif", "--in-force", "--since", "1d")
    assert code == 0, out
    lax = tmp_path / "lax.yaml"
    lax.write_text(POLICIES.replace("true", "false"))
    code, out, err = await system.cli("policy", "whatif", str(lax), "--since", "1d", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["judged"]["payouts"], found["changed"]["payouts"]) == (6, 4)


async def test_of_a_payout_that_names_a_fund_account_only_the_bank_is_asked_who_has_it(
    redis_url: str, postgres: str
) -> None:
    """Made at the bank, or an intent. People are told the name. The agent is not: it could learn whom others pay."""
    async with vetting_system(redis_url, postgres) as system:
        await system.apply(POLICIES)
        secret = await token(system, "strict")
        notes = {"agent_id": "strict"}
        known = await system.bank.pay(250_000, vendor={"name": VERIFIED}, notes=notes)
        await system.reaches(known["id"], "processed")
        vendor = {"name": LAPSED, "account_number": "50100012345679"}
        lapsed = await system.bank.pay(250_000, vendor=vendor, notes=notes)
        evidence = await held_because(system, lapsed["id"])
        assert (evidence["problem"], evidence["contact"]) == ("the entity is not active", LAPSED)
        await told_in_slack(
            system, f"the bank names the contact {LAPSED}; LEI 984500SANDBOX0000287; registered as"
        )
        _, told, _ = await system.cli("explain", known["id"])
        assert f"legal entity: verified (the bank names the contact {VERIFIED}, {ASHA_LEI}, " in told

        order = {"amount": 250_000, "mode": "IMPS", "purpose": "vendor bill"}
        headers = {"authorization": f"Bearer {secret}"}
        for made, state in ((known, "processed"), (lapsed, "held")):
            answer = await system.api.post(
                "/v1/payouts",
                json=order | {"fund_account_id": made["fund_account_id"]},
                headers=headers | {"idempotency-key": token_hex(8)},
            )
            payout = answer.json()["payout"]
            await system.reaches(payout, state)
            for path in (f"/v1/payouts/{payout}", f"/v1/payouts/{payout}/events"):
                shown = await system.api.get(path, headers=headers)
                assert shown.status_code == 200, shown.text
                assert "Asha" not in shown.text
                assert "Lapsed" not in shown.text
        await system.settled()
        await assert_one_story(system)
        await assert_records_agree(system)
