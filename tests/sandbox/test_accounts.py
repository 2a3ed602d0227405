"""Accounts of others that the same keys reach: each has its own list, and its webhooks name it."""

import json

import pytest

from tests.bank import receiving_webhooks, running_sandbox

OTHER, NUMBER = "acc_Other000000001", "2323230000000001"


async def test_a_payout_is_listed_and_told_of_under_its_own_account() -> None:
    async with running_sandbox(more_accounts=f"{OTHER}={NUMBER}") as bank, receiving_webhooks() as inbox:
        await bank.webhook(url=inbox.url)
        mine = (await bank.pay(100_000))["id"]
        theirs = (await bank.pay(100_000, account=OTHER))["id"]
        for number, payout in ((bank.config.account_number, mine), (NUMBER, theirs)):
            listed = await bank.call("GET", "/v1/payouts", params={"account_number": number})
            assert [one["id"] for one in listed.json()["items"]] == [payout]
        told = [json.loads(body) for _, body in await inbox.holds(2)]
        assert {one["payload"]["payout"]["entity"]["id"]: one["account_id"] for one in told} == {
            mine: bank.config.account_id,
            theirs: OTHER,
        }
        with pytest.raises(AssertionError, match="not one of SANDBOX_MORE_ACCOUNTS"):
            await bank.pay(100_000, account="acc_Nobody00000001")
