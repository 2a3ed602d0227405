"""The sides of `streamproc bench floor`: what each is run as, what it is given, and where its answers are."""

import asyncio
from collections import Counter
from typing import Final

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.bench import engine, faststream_side, floor


class Side(Struct, frozen=True):
    """One side. `keeps_all`: it works on the engine's log, and leaves behind there all that the engine leaves."""

    name: str
    module: str
    mode: str = ""
    """Its module's first argument, where that can be several sides."""
    keeps_all: bool = False
    has_consumers: bool = False
    """Several at once in its process, as many as the engine has."""
    field: str = "e"
    """Of an entry, where it looks for a payout."""

    @property
    def stream(self) -> str:
        """Where the payouts wait."""
        return engine.NAMES.log if self.keeps_all else floor.IN

    def commands(self, url: str, dsn: str | None, consumers: int) -> dict[str, list[str]]:
        """Its processes: modules with their arguments. What keeps all is archived by the real projector."""
        worker = [self.module, *([self.mode] if self.mode else []), url]
        worker += [str(consumers)] if self.has_consumers else []
        if dsn is None:
            return {"worker": worker}
        if self.keeps_all:
            return {"worker": worker, "archive": ["streamproc.bench.engine", "projector", url, dsn]}
        return {"worker": [*worker, dsn]}

    async def load(self, client: Redis, payouts: int, payees: int, at_us: int) -> None:
        """Put the payouts where they wait, with all that has to be there before."""
        if self.keeps_all:
            await engine.load(client, payouts, payees, at_us)
        else:
            await floor.load(client, payouts, payees, at_us, self.field)

    async def outcomes(self, url: str, client: Redis) -> Counter[str]:
        """How many decisions of each reason there are."""
        return await (engine.outcomes(url) if self.keeps_all else floor.outcomes(client))

    @property
    def audit_counts(self) -> str:
        """The same in Postgres, as SQL."""
        return engine.AUDIT_COUNTS if self.keeps_all else floor.AUDIT_COUNTS

    async def log_bytes(self, client: Redis) -> int:
        """What its streams take of Redis's memory."""
        streams = (engine.NAMES.log,) if self.keeps_all else (floor.IN, floor.OUT)
        sizes = await asyncio.gather(*(client.memory_usage(stream, samples=0) for stream in streams))
        return sum(int(size or 0) for size in sizes)


FLOOR: Final = "floor"
ENGINE: Final = "engine"
WHOLE: Final = "whole"
RIVAL: Final = "faststream"
RIVAL_WHOLE: Final = "faststream_whole"
RIVAL_USUAL: Final = "faststream_usual"

_FASTSTREAM = "streamproc.bench.faststream_side"
ALL: Final = {
    side.name: side
    for side in (
        Side(FLOOR, "streamproc.bench.floor"),
        Side(ENGINE, "streamproc.bench.engine", "worker", keeps_all=True, has_consumers=True),
        Side(WHOLE, "streamproc.bench.whole", keeps_all=True),
        Side(RIVAL, _FASTSTREAM, "batch", has_consumers=True, field=faststream_side.FIELD),
        Side(RIVAL_WHOLE, _FASTSTREAM, "whole", keeps_all=True, has_consumers=True),
        Side(RIVAL_USUAL, _FASTSTREAM, "usual", field=faststream_side.FIELD),
    )
}
"""By name, in the order of a round: the engine comes before those who are held against what it left."""

SIDES: Final = (FLOOR, ENGINE)
"""Those of every contest."""


def asked_for(*, whole: bool = False, faststream: bool = False, usual: bool = False) -> list[str]:
    """The sides of a contest, in the order of a round."""
    asked = {
        **dict.fromkeys(SIDES, True),
        WHOLE: whole,
        RIVAL: faststream,
        RIVAL_WHOLE: faststream and whole,
        RIVAL_USUAL: usual,
    }
    return [name for name in ALL if asked[name]]
