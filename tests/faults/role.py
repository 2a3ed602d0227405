"""A role of the product with something wrong in it: a crash at a named point, a wrong clock, or a known bug.

    python -m tests.faults.role [--crash POINT:before|after:N] [--skew S] [--revert BUG] [--later N] [--records N]
        ROLE [ARGUMENTS]

It patches the product from outside and then runs its command, so that no product code knows of faults.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

USAGE = "usage: python -m tests.faults.role [--crash P:before|after:N] [--skew S] [--revert BUG] ROLE …"


def main(arguments: list[str]) -> None:
    """Read the options, patch the product, run the role."""
    options: list[tuple[str, str]] = []
    while arguments and arguments[0].startswith("--"):
        if len(arguments) < 3:
            raise SystemExit(USAGE)
        options.append((arguments[0], arguments[1]))
        arguments = arguments[2:]
    # In this order the clock is first, before others keep a reference to `time.time`.
    for option, value in sorted(options, reverse=True):
        match option:
            case "--skew":
                skew(float(value))
            case "--crash":
                point, when, nth = value.split(":")
                crash(point, when, int(nth))
            case "--revert":
                from tests.faults.reverts import REVERTS

                REVERTS[value]()
            case "--later":
                later(int(value))
            case "--records":
                keep_records(int(value))
            case _:
                raise SystemExit(USAGE)
    from streamproc.cli import main as run

    signal.signal(signal.SIGUSR2, say_where)
    run(arguments)


def say_where(*_: object) -> None:
    """Print where every task waits, for a role that does not end."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def wire_names(ahead: int) -> tuple[bytes, bytes]:
    """The first bytes of a `payout.observed`, in this version and in one that is `ahead` later."""
    from streamproc.domain.wire import NEWEST

    newest = NEWEST["payout.observed"]
    return b'"type":"payout.observed","v":%d,' % newest, b'"type":"payout.observed","v":%d,' % (
        newest + ahead
    )


def skew(seconds: float) -> None:
    """Set this process's clock `seconds` ahead of the others'. The monotonic clock is unchanged."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


def later(ahead: int) -> None:
    """Act as a later streamproc: it writes `payout.observed` in a version `ahead` of ours, and reads both."""
    from streamproc.domain import wire  # before any module imports these two from it

    encode, decode = wire.encode_events, wire.decode_events
    now, then = wire_names(ahead)
    wire.encode_events = lambda events: encode(events).replace(now, then)
    wire.decode_events = lambda e: decode(e.replace(then, now))


def keep_records(most: int) -> None:
    """Limit the payout records that the projector keeps: its own 20,000 would not be full within a run of minutes."""
    from projections import runner

    runner.Records = partial(runner.Records, records_max=most)  # type: ignore[attr-defined,misc]


def crash(point: str, when: str, nth: int) -> None:
    """Kill ourselves (SIGKILL) right before, or right after, reaching a point for the n-th time."""
    passed = 0

    def around(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            passed += 1
            mine = passed == nth
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await inner(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return counted

    for holder, name in places_of(point):
        setattr(holder, name, around(getattr(holder, name)))


def places_of(point: str) -> list[tuple[Any, str]]:
    """The functions that a point stands for."""
    match point:
        case "append" | "admit" | "commit":
            from streamproc.log import scripts

            return [(scripts, {"append": "append_once"}.get(point, point))]
        case "grant":
            from streamproc.log import grants

            return [(grants, "grant")]
        case "call":
            from streamproc.clients.razorpay import Razorpay

            return [(Razorpay, name) for name in ("create", "approve", "reject", "cancel")]
        case "archive":
            from projections import loop

            return [(loop, "archive")]
        case "cursor":
            from streamproc.log.cursor import PollCursor

            return [(PollCursor, "save")]
    raise SystemExit(f"no crash point {point}")


if __name__ == "__main__":
    main(sys.argv[1:])
