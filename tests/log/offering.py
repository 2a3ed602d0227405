"""A consumer's handler that offers payouts by what it remembers, and what it calls for that."""

from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved
from streamproc.domain.payouts import PayoutRecord, decode_record
from streamproc.domain.wire import encode_events
from streamproc.log import grants, scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.names import Names
from streamproc.log.opened import Opened
from tests.properties.test_straight import governance
from tests.words import observed

NAMES = Names(0)
POLICIES = """
defaults: {rate_limit: {count: 0}}
policies:
  bot: {daily_limit: 100000, new_beneficiary: hold, changed_beneficiary: hold}
  easy: {daily_limit: 100000}
reviewers: [asha]
"""
HOST = "shop.example"
SCRIPTS = {scripts._load.sha: "load", grants._grant.sha: "grant", scripts._commit.sha: "commit"}


class Bench:
    """A consumer's handler, and entries as it reads them."""

    def __init__(self, client: Redis, called: list[str]) -> None:
        self.client, self.called = client, called
        self.handler = Handler(0, governance(), Limits())

    async def read(self, *events: PayoutObserved) -> Opened:
        """Append entries and read them, as a consumer does while another batch is in hand."""
        self.called.clear()
        for event in events:
            await self.client.xadd(NAMES.log, {"e": encode_events([event]), "m": b'{"by":"webhook"}'})
        name = self.handler.group.name
        reply = await self.client.execute_command(
            "XREADGROUP", "GROUP", name, "me", "STREAMS", NAMES.log, ">"
        )
        return await self.handler.opener.ahead(self.client, reply[0][1])

    async def handle(self, opened: Opened, *, more: bool = False) -> None:
        await self.handler.handle(self.client, opened.entries, taken=False, ahead=opened, more=more)

    async def decide(self, *events: PayoutObserved) -> list[PayoutRecord]:
        await self.handle(await self.read(*events))
        return await self.records(*(event.payout for event in events))

    async def records(self, *payouts: str) -> list[PayoutRecord]:
        return [decode_record(await self.client.hget(NAMES.payout(payout), "s")) for payout in payouts]


def pay(payout: str, *, agent: str = "bot", account: str = "fa_1", status: str = "pending") -> PayoutObserved:
    return observed(payout, 100, agent=agent, url=f"https://{HOST}/", fund_account=account, status=status)
