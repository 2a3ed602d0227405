"""The sides of `bench floor`: how each is started, what it reads, and where its decisions are."""

import asyncio
from collections import Counter
from typing import Final

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.bench import engine, faststream_side, floor


class Side(Struct, frozen=True):
    """One side. `keeps_all`: it works on the engine's log and leaves behind there all that the engine leaves."""

    name: str
    module: str
    mode: str = ""
    """First argument of the module, if the module has several modes."""
    keeps_all: bool = False
    has_consumers: bool = False
    """Its process has several consumers, as many as the engine's."""
    field: str = "e"
    """The field of an entry in which it expects the payout."""

    @property
    def stream(self) -> str:
        """The stream with the payouts."""
        return engine.NAMES.log if self.keeps_all else floor.IN

    def commands(self, url: str, dsn: str | None, consumers: int) -> dict[str, list[str]]:
        """Its processes as modules with arguments. The real projector archives for every side that keeps all."""
        worker = [self.module, *([self.mode] if self.mode else []), url]
        worker += [str(consumers)] if self.has_consumers else []
        if dsn is None:
            return {"worker": worker}
        if self.keeps_all:
            return {"worker": worker, "archive": ["streamproc.bench.engine", "projector", url, dsn]}
        return {"worker": [*worker, dsn]}

    async def load(self, client: Redis, payouts: int, payees: int, at_us: int) -> None:
        """Append the payouts to the stream, after all that must be there before."""
        if self.keeps_all:
            await engine.load(client, payouts, payees, at_us)
        else:
            await floor.load(client, payouts, payees, at_us, self.field)

    async def outcomes(self, url: str, client: Redis) -> Counter[str]:
        """Number of decisions in Redis, by reason."""
        return await (engine.outcomes(url) if self.keeps_all else floor.outcomes(client))

    @property
    def audit_counts(self) -> str:
        """SQL for the number of decisions in Postgres, by reason."""
        return engine.AUDIT_COUNTS if self.keeps_all else floor.AUDIT_COUNTS

    async def log_bytes(self, client: Redis) -> int:
        """Memory of its streams in Redis (bytes)."""
        streams = (engine.NAMES.log,) if self.keeps_all else (floor.IN, floor.OUT)
        sizes = await asyncio.gather(*(client.memory_usage(stream, samples=0) for stream in streams))
        return sum(int(size or 0) for size in sizes)


FLOOR: Final = "floor"
ENGINE: Final = "engine"
WHOLE: Final = "whole"
RIVAL: Final = "faststream"
RIVAL_WHOLE: Final = "faststream_whole"
RIVAL_TYPED: Final = "faststream_typed"
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
        Side(RIVAL_TYPED, _FASTSTREAM, "typed", has_consumers=True, field=faststream_side.FIELD),
        Side(RIVAL_USUAL, _FASTSTREAM, "usual", field=faststream_side.FIELD),
    )
}
"""By name, in the order of a round. The engine comes before the sides that are compared with what it left behind."""

SIDES: Final = (FLOOR, ENGINE)
"""The sides of every contest."""


def asked_for(
    *, whole: bool = False, faststream: bool = False, typed: bool = False, usual: bool = False
) -> list[str]:
    """The sides of a contest with these options, in the order of a round."""
    asked = {
        **dict.fromkeys(SIDES, True),
        WHOLE: whole,
        RIVAL: faststream,
        RIVAL_WHOLE: faststream and whole,
        RIVAL_TYPED: typed,
        RIVAL_USUAL: usual,
    }
    return [name for name in ALL if asked[name]]
