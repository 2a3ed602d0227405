"""The child processes of `up`: started, restarted with backoff, stopped in order, each line of output named.

A role may crash (an unexpected error ends the process on purpose), and the log remembers what was in flight, so it is
simply started again. So is an embedded store that ends, at the same port: what it answered is on its disk, and the
roles wait for it. Three cases end `up`, since no restart helps: a role or a store that keeps ending, a store that
cannot be started again, and a role that refuses its settings (exit 2).
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from streamproc import processes
from streamproc.embedded import EndedAtStart, Store
from streamproc.errors import WHEN_LOST, StreamprocError
from streamproc.printer import TERMINAL_VARIABLE, on_terminal, say
from streamproc.run_file import NAME_VARIABLE

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
CRASHES_MAX = 5
CRASH_WINDOW_S = 60.0  # five crashes in a minute are a fault that restarts do not cure
OFTEN = f"{CRASHES_MAX} times within {CRASH_WINDOW_S:g} s"
STORE_STARTS_MAX = 10
"""Starts of a store that fail one after another are such a fault too: one that takes over 12 s to fail never ends five
times in a minute. One that was ready in between is counted anew: somebody may be killing it."""
KILL_AFTER_DRAIN_S = 5.0
"""On top of the drain time, after which a role ends by itself (drain.py), unless it is frozen. Roles whose turn to stop
had not come by then have this long."""
KILL_STORES_S = 3.0
"""What the stores have to stop once the operator asked twice. Their data outlives a kill."""
LINE_MAX = 1 << 20  # bytes of one output line; a longer one is dropped rather than held in memory
LOST_LOG_S = 10.0
"""Between two starts of a role that refuses a lost log. `up` goes on, since `streamproc recover` needs its stores."""
WRONG_SETTINGS = 2  # exit code, by the contract of the command line


class Crashes:
    """When a child ended by itself, of late."""

    def __init__(self) -> None:
        self.crashes: deque[float] = deque(maxlen=CRASHES_MAX)

    def crashed_too_often(self, now: float) -> bool:
        """Count a crash at *now* (monotonic seconds); whether that was one too many."""
        self.crashes.append(now)
        return len(self.crashes) == CRASHES_MAX and now - self.crashes[0] < CRASH_WINDOW_S

    def backoff_s(self, now: float) -> float:
        """The wait before the next start: doubled for every crash of the last minute."""
        recent = sum(1 for at in self.crashes if now - at < CRASH_WINDOW_S)
        return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** max(0, recent - 1))


class Role(Crashes):
    """One child: its name in the output, its command, its environment."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__()
        self.name, self.argv, self.env = name, argv, env
        self.stop = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.last_line = ""


class Crew:
    """Keeps roles running as tasks of *group*. `broken` gets the reason when that is no longer possible."""

    def __init__(self, group: asyncio.TaskGroup, *, drain_s: float) -> None:
        self._group, self._drain_s = group, drain_s
        self._drained_at: float | None = None
        """When the drain time is over (the loop's seconds). It is one for all roles."""
        self._roles: list[Role] = []
        self._stores: list[asyncio.subprocess.Process] = []
        self._tasks: dict[Role, asyncio.Task[None]] = {}
        self._hurried = False
        self.draining = False
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def add(self, role: Role) -> None:
        """Start *role* and keep it running until it is drained."""
        self._roles.append(role)
        self._tasks[role] = self._group.create_task(self._keep(role), name=role.name)

    def add_store(self, process: asyncio.subprocess.Process) -> None:
        """Have `hurry` kill a store too, which is started and stopped elsewhere, even if it is not ready yet."""
        self._stores.append(process)

    def give_up(self, reason: str) -> None:
        """Say that the system cannot go on; the first reason counts."""
        if not self.broken.done():
            self.broken.set_result(reason)

    async def once(self, role: Role) -> int:
        """Run *role* to its end; its exit code. If the caller is cancelled, the role is stopped."""
        self._roles.append(role)
        process = await self._start(role)
        output = self._group.create_task(self._copy_output(role, process))
        try:
            return await process.wait()
        finally:
            self._roles.remove(role)
            await self._end(role.name, process)
            await output

    async def drain(self, *phases: Sequence[str]) -> None:
        """Stop the roles of each phase together, one phase after another; a phase is a list of role names.

        Once the drain time is over, all that are left are stopped together.
        """
        self.draining = True
        for number, phase in enumerate(phases):
            names = {*phase} if self._left_s() else {name for left in phases[number:] for name in left}
            roles = [role for role in self._roles if role.name in names]
            for role in roles:
                role.stop.set()
            if roles:
                await asyncio.wait([self._tasks[role] for role in roles])

    def hurry(self) -> None:
        """Kill all roles now, and the stores if they do not end soon: the operator asked twice."""
        self._hurried = True
        for role in self._roles:
            if role.process is not None:
                processes.kill(role.process)
        asyncio.get_running_loop().call_later(KILL_STORES_S, self._kill_stores)

    def is_hurried(self) -> bool:
        """Whether the operator asked twice: what ends now was killed here."""
        return self._hurried

    def _kill_stores(self) -> None:
        for store in self._stores:
            if store.returncode is None:
                processes.kill(store)

    async def _keep(self, role: Role) -> None:
        while not role.stop.is_set():
            process = await self._start(role)
            output = self._group.create_task(self._copy_output(role, process))
            try:
                if not await _first(process.wait(), role.stop.wait()):
                    await self._end(role.name, process)
            finally:
                processes.kill(process)  # and its session, in case it left children
            await output
            if self._hurried:
                return
            if not role.stop.is_set():
                await self._after_crash(role, process.returncode)

    async def _start(self, role: Role) -> asyncio.subprocess.Process:
        role.process = await processes.start(
            role.argv,
            env={**role.env, NAME_VARIABLE: role.name, TERMINAL_VARIABLE: on_terminal()},
            on_parent_death=signal.SIGKILL,
            output=asyncio.subprocess.PIPE,
            line_max=LINE_MAX,
        )
        return role.process

    async def _end(self, name: str, process: asyncio.subprocess.Process) -> None:
        signum = signal.SIGKILL if self._hurried else signal.SIGTERM
        within_s = KILL_AFTER_DRAIN_S + (self._left_s() if process.returncode is None else 0.0)
        if not await processes.stop(process, signum, within_s):
            say(f"[up] {name} did not end within {round(within_s, 1):g} s, and was killed")

    def _left_s(self) -> float:
        """What is left of the drain time, which begins when this is asked first: something is to end."""
        now = asyncio.get_running_loop().time()
        if self._drained_at is None:
            self._drained_at = now + self._drain_s
        return max(0.0, self._drained_at - now)

    async def _after_crash(self, role: Role, code: int | None) -> None:
        now = time.monotonic()
        how = _how(code)
        if code == WRONG_SETTINGS:
            self.give_up(f"{role.name} refuses its settings: {role.last_line}")
            await role.stop.wait()
        elif WHEN_LOST in role.last_line:
            say(f"[up] {role.name} waits for `streamproc recover`; starting it again in {LOST_LOG_S:g} s")
            await _first(role.stop.wait(), asyncio.sleep(LOST_LOG_S))
        elif role.crashed_too_often(now):
            self.give_up(f"{role.name} ended {OFTEN}, at last with {how}: {role.last_line}")
            await role.stop.wait()
        else:
            wait_s = role.backoff_s(now)
            say(f"[up] {role.name} ended with {how}; starting it again in {wait_s:g} s")
            await _first(role.stop.wait(), asyncio.sleep(wait_s))

    async def _copy_output(self, role: Role, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                line = f"(a line of more than {LINE_MAX} bytes was dropped)\n".encode()
            if not line:
                return
            role.last_line = line.decode(errors="replace").rstrip() or role.last_line
            say(f"[{role.name}] {line.decode(errors='replace').rstrip()}")


OpenStore = Callable[[int | None], AbstractAsyncContextManager[Store]]
"""Runs a store at a port, or at a free one."""


@asynccontextmanager
async def kept(crew: Crew, name: str, store: OpenStore) -> AsyncIterator[Store]:
    """Run a store and keep it running; `crew` gives up if that is no longer possible.

    Raises what *store* raises if it does not start in the first place.
    """
    first: asyncio.Future[Store] = asyncio.get_running_loop().create_future()
    keeping = asyncio.ensure_future(_keep_store(crew, name, store, first))

    def on_end(ended: asyncio.Future[None]) -> None:
        problem = None if ended.cancelled() else ended.exception()
        if problem is not None and first.done():  # a defect: nobody would start it again
            crew.give_up(f"{name} is kept running no more: {problem!r}")

    keeping.add_done_callback(on_end)
    try:
        awaited: set[asyncio.Future[Any]] = {first, keeping}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            await keeping
        yield first.result()
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def _keep_store(crew: Crew, name: str, open_: OpenStore, first: asyncio.Future[Store]) -> None:
    crashes, port, failed_starts = Crashes(), None, 0
    while not crew.is_hurried():
        try:
            async with open_(port) as store:
                failed_starts = 0
                if first.done():
                    say(f"[up] {name} is there again")
                else:
                    first.set_result(store)
                how = _how(await store.process.wait())
                why = f"{processes.why_it_ended(store.log)}; see {store.log}"
                port = urlsplit(store.url).port  # clients know no other
        except EndedAtStart as problem:
            if not first.done():
                raise
            failed_starts += 1
            how, why = _how(problem.code), problem.why  # as if it had ended a little later
        except StreamprocError as problem:
            if not first.done():
                raise
            crew.give_up(f"{name} ended and could not be started again: {problem}")
            return
        if crew.is_hurried():
            return
        now = time.monotonic()
        often = OFTEN if crashes.crashed_too_often(now) else ""
        if failed_starts == STORE_STARTS_MAX:
            often = f"{failed_starts} times in a row as it started"
        if often:
            crew.give_up(f"{name} ended {often}, at last with {how}: {why}")
            return
        wait_s = crashes.backoff_s(now)
        say(f"[up] {name} ended with {how}; starting it again in {wait_s:g} s: {why}")
        await asyncio.sleep(wait_s)


def _how(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


async def _first(wanted: Coroutine[None, None, object], other: Coroutine[None, None, object]) -> bool:
    """Wait until one of the two ends, and cancel the other; whether *wanted* ended first."""
    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return tasks[0] in done
