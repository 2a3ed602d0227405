"""Agents' intents through every role: the API, two workers, the bank, and the views; a worker dies in the middle."""

import json
from pathlib import Path
from typing import Any

import httpx

from tests.bank import until
from tests.journeys.system import ACCOUNT, System, kinds, running_system
from tests.journeys.test_kill import kill_while_it_holds_entries
from tests.journeys.truth import assert_budgets_agree, assert_one_story, assert_records_agree

POLICIES = """
policies:
  bot: {daily_limit: 100_000_000, require_verified_identity: true}
  careful: {daily_limit: 100_000_000, require_approval_above: 500_000}
reviewers: [asha]
"""
PAYEE = {
    "account_type": "bank_account",
    "bank_account": {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"},
    "contact": {"name": "Some Body", "type": "vendor"},
}
LOST = [{"kind": "timeout", "path": "/v1/payouts", "method": "POST", "count": 1}]


async def token(system: System, agent: str) -> str:
    """A token as an operator makes it."""
    code, out, err = await system.cli("token", "create", agent, "--scope", "agent", "--agent", agent)
    assert code == 0, err
    return out.strip()


async def ask_once(system: System, secret: str, key: str, amount: int = 250_000) -> httpx.Response:
    order = {"amount": amount, "mode": "IMPS", "purpose": "vendor bill", "fund_account": PAYEE}
    headers = {"authorization": f"Bearer {secret}", "idempotency-key": key}
    return await system.api.post("/v1/payouts", json=order, headers=headers)


async def ask(system: System, secret: str, key: str, amount: int = 250_000) -> dict[str, Any]:
    answer = await ask_once(system, secret, key, amount)
    assert answer.status_code == 202, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def of_reference(system: System, payout: str) -> list[dict[str, Any]]:
    return [shown for shown in await system.bank.show("payouts") if shown["reference_id"] == payout]


async def test_a_worker_that_dies_between_the_banks_act_and_its_own_record_creates_nothing_twice(
    redis_url: str, postgres: str
) -> None:
    async with running_system(redis_url, postgres, workers=2, claim_idle="2s") as system:
        await system.apply(POLICIES)
        secret = await token(system, "bot")
        await system.bank.faults(api=LOST)
        payout = (await ask(system, secret, "inv-1"))["payout"]

        async def acted() -> bool:
            return bool(await of_reference(system, payout))

        await until(acted, what="the bank has made it, and does not answer")
        await kill_while_it_holds_entries(system, await system.holder("execution"), "execution")

        record = await system.reaches(payout, "processed")
        await system.settled()
        [made] = await of_reference(system, payout)
        assert record.bank_payout == made["id"]
        mine = {"authorization": f"Bearer {secret}"}
        for path in ("", "/events"):
            ours, banks = [
                (await system.api.get(f"/v1/payouts/{name}{path}", headers=mine)).json()
                for name in (payout, made["id"])
            ]
            assert banks == ours, "an intent is found by the bank's id too"
        assert len(await system.bank.record(command="payout.create", effect="true")) == 1
        found = kinds(await system.story(payout))
        assert (found["payout.requested"], found["payout.decided"], found["payout.settled"]) == (1, 1, 1)
        assert found["governance.bypassed"] == 0
        assert await system.dead() == 0
        await assert_one_story(system)
        await assert_records_agree(system)
        await assert_budgets_agree(system)

        # Long after: Redis has forgotten payout and key, and the archive knows them.
        await system.redis.delete(system.names.payout(payout), system.names.seen(f"in:{payout}"))
        again = await ask(system, secret, "inv-1")
        assert (again["payout"], again["state"]) == (payout, "processed")


async def test_pay_waits_for_the_decision_a_person_approves_and_the_money_goes(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with running_system(redis_url, postgres, workers=1) as system:
        await system.apply(POLICIES)
        secret, payee = tmp_path / "token", tmp_path / "payee.json"
        secret.write_text(await token(system, "careful"))
        payee.write_text(json.dumps(PAYEE))
        call = ("pay", "--to", str(payee), "--token", str(secret), "--key", "inv-7", "--json")
        code, out, _ = await system.cli(*call, "--amount", "800000", "--wait")
        held = json.loads(out)
        assert (code, held["decision"], held["account"]) == (0, "HELD", ACCOUNT)
        assert await of_reference(system, held["payout"]) == []
        refused, _, err = await system.cli(*call, "--amount", "800001")
        assert (refused, "409" in err) == (1, True)
        wrong, _, err = await system.cli(*call, "--amount", "1")
        assert (wrong, "'1' is no whole number of paise from 100 to " in err) == (2, True)

        approve = ("hold", "approve", held["payout"], "--by", "asha", "--reason", "seen")
        assert (await system.cli(*approve))[0] == 0

        record = await system.reaches(held["payout"], "processed")
        [made] = await of_reference(system, held["payout"])
        assert (record.bank_payout, made["amount"]) == (made["id"], 800_000)
        code, out, _ = await system.cli("explain", held["payout"])
        assert code == 0
        assert "agent careful asks for ₹8,000.00 (token" in out
        assert "000011112222" not in out
        code, out, _ = await system.cli("policy", "whatif", "--in-force", "--since", "1d")
        assert code == 0, out
        code, out, _ = await system.cli("replay", "--verify")
        assert code == 0, out
