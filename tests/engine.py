"""The engine in a test: a real Valkey and the real consume loop, with Safe Browsing as a table."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

import consumers
from consumers import settle
from consumers.recall import Archived
from consumers.vet import Reputations
from streamproc.domain.events import Event, PayoutObserved
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.policy import plan_freeze
from streamproc.domain.wire import decode_events, payout_of
from streamproc.log.batch import Limits
from streamproc.log.connection import connect
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.policies import put_in_force, read_scopes
from streamproc.log.stream import Append, Appended, LogView, Producer, open_log
from streamproc.log.work import Group
from tests.words import Vendors, apply_policies, delivery, reviewed

DEADLINE_S = 60.0
ZONE = "Asia/Kolkata"


def split(group: Group) -> Mapping[str, Group]:
    """The same chain with one group for each stage: the same decisions in more commits. A payout that was not
    approved may be ended at the bank twice."""
    alone = settle.settle_stage(alone=True)
    stages = [alone if stage is settle.STAGE else stage for stage in group.stages]
    return {
        f"{group.name}.{stage.name}": Group(name=f"{group.name}.{stage.name}", stages=(stage,))
        for stage in stages
    }


class Engine:
    """Workers of the governance chain (and any other group) over one partition."""

    def __init__(
        self,
        redis_url: str,
        *,
        vendors: Vendors | None = None,
        groups: Sequence[Group] = (),
        workers: int = 1,
        claim_idle_s: float = 60.0,
        archived: Archived | None = None,
    ) -> None:
        self.url = redis_url
        self.vendors = vendors or Vendors()
        self.names = Names(0)
        self.workers = workers
        self.limits = Limits(claim_idle_s=claim_idle_s)
        self.groups = list(groups) or [
            consumers.governance(Reputations(self.vendors), zone=ZONE, archived=archived)
        ]
        self.stopping = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self._started = 0

    async def __aenter__(self) -> Self:
        self.client: Redis = connect(self.url)
        await open_log(self.client, partitions=1, groups=[group.name for group in self.groups])
        self.producer = await Producer(self.url, partitions=1, name="webhook").__aenter__()
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self.producer.__aexit__()
        await self.client.aclose()

    def start(self) -> None:
        """Start the workers."""
        self.stopping.clear()
        for group in self.groups:
            for _ in range(self.workers):
                self._start_one(group)

    def _start_one(self, group: Group) -> None:
        self._started += 1
        consumer = Consumer(self.url, 0, group, name=f"{group.name}-{self._started}", limits=self.limits)
        self.tasks.append(asyncio.create_task(consumer.run(self.stopping)))

    async def crash(self) -> None:
        """Cancel a worker of the first group wherever it is, and start another one."""
        victim = self.tasks.pop(0)
        victim.cancel()
        await asyncio.gather(victim, return_exceptions=True)
        self._start_one(self.groups[0])

    async def stop(self) -> None:
        """Drain the workers."""
        self.stopping.set()
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    async def apply(self, text: str) -> None:
        """Put a policy file in force."""
        await apply_policies(self.client, text)

    async def freeze(self, scope: str, *, frozen: bool = True) -> None:
        """Freeze or unfreeze a scope, as `streamproc freeze` does."""
        rev, scopes = await read_scopes(self.client, self.names)
        changes = plan_freeze(scopes, scope, frozen=frozen, at=self.producer.now_us(), by="test", why="test")
        if changes:
            assert await put_in_force(self.client, self.names, rev, changes, actor="test") is not None

    async def until(self, payout: str, kind: str) -> None:
        """Wait until the payout's story has an event of this name and everything is handled."""
        async with asyncio.timeout(DEADLINE_S):
            while not any(type(event).__name__ == kind for event in await self.story(payout)):
                await asyncio.sleep(0.01)
        await self.settled()

    async def until_state(self, payout: str, state: str) -> None:
        """Wait until the fold of the payout's story has this state."""
        async with asyncio.timeout(DEADLINE_S):
            while (record := fold(await self.story(payout))) is None or record.state != state:
                await asyncio.sleep(0.01)

    async def deliver(self, *events: PayoutObserved) -> None:
        """Append observations as the webhook does, and wait until they are handled."""
        await asyncio.gather(*(self.producer.append(delivery(event)) for event in events))
        await self.settled()

    async def append(self, account: str, *events: Event) -> Appended:
        """Append events, without waiting until they are handled."""
        return await self.producer.append(Append(account, (), events))

    async def review(self, payout: str, by: str, action: str, *, account: str) -> None:
        """Answer a hold as a reviewer, and wait until that is handled."""
        channel = "slack" if by.startswith("slack:") else "test"
        event = reviewed(payout, by, action, at=self.producer.now_us(), channel=channel)
        await self.append(account, event)
        await self.settled()

    async def settled(self, *, wholly: bool = False) -> None:
        """Wait until every group of this engine has read everything and nothing is pending except deferred entries;
        with `wholly`, not even these."""
        async with asyncio.timeout(DEADLINE_S):
            while not await self._is_settled(wholly):
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def _is_settled(self, wholly: bool) -> bool:
        rows = await self.client.xinfo_groups(self.names.log)
        at_work = {group.name for group in self.groups}
        for row in rows:
            if row["name"].decode() not in at_work:
                continue  # a recovery creates all groups
            deferred = 0 if wholly else await self.client.zcard(self.names.retries(row["name"].decode()))
            if row["lag"] != 0 or row["pending"] > deferred:
                return False
        return True

    async def entries(self) -> list[list[Event]]:
        """The events of each entry of the log."""
        async with LogView(self.url, 0) as view:
            rows = await view.read("0-0", 1_000_000, 0)
        return [decode_events(row.e) for row in rows]

    async def story(self, payout: str) -> list[Event]:
        """Every event of a payout, in log order."""
        return [event for entry in await self.entries() for event in entry if payout_of(event) == payout]

    async def record(self, payout: str) -> PayoutRecord:
        """The fold of a payout's story."""
        record = fold(await self.story(payout))
        assert record is not None
        return record

    async def records(self) -> dict[str, PayoutRecord]:
        """The fold of every payout."""
        stories: dict[str, list[Event]] = defaultdict(list)
        for entry in await self.entries():
            for event in entry:
                if payout_of(event):
                    stories[payout_of(event)].append(event)
        return {payout: record for payout, story in stories.items() if (record := fold(story)) is not None}
