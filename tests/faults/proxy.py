"""A TCP proxy between one role and one server that can be made to misbehave."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK_BYTES = 65_536
CONNECT_S = 3.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on `port` and passes bytes to and from a server. Its faults can be changed at any time."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.late_s = 0.0
        """Delay of every piece (s)."""
        self.mute = False
        """Whether the server's bytes are lost."""
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Accept and pass on connections inside this context."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.reset()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Reset every connection, both ends: RST, not FIN."""
        for writer in list(self._writers):
            _reset(writer)

    def lead_to(self, port: int) -> None:
        """Pass new connections to `port` from now on, and reset the existing ones."""
        self._target = (self._target[0], port)
        self.reset()

    def stall(self) -> None:
        """Stop passing bytes. Connections stay open, and new ones are accepted."""
        self._flows.clear()

    def flow(self) -> None:
        """End all faults. Connections that lost bytes are useless, so they are reset."""
        if self.mute:
            self.reset()
        self.mute, self.late_s = False, 0.0
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._flows.wait()
            try:
                async with asyncio.timeout(CONNECT_S):
                    there, back = await asyncio.open_connection(*self._target)
            except (OSError, TimeoutError):
                return
            self._writers.add(back)
            try:
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(reader, back, answers=False))
                    pumps.create_task(self._pump(there, writer, answers=True))
            finally:
                self._writers.discard(back)
                _reset(back)
        except* (OSError, RuntimeError, asyncio.CancelledError):
            pass  # either end is gone, which is intended, or we are closing
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            _reset(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flows.wait()
            if answers and self.mute:
                continue
            if self.late_s:
                await asyncio.sleep(self.late_s)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):  # uvloop raises RuntimeError for a closed transport
            if writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.transport.is_closing():
        return
    plain = writer.get_extra_info("socket")
    if isinstance(plain, socket.socket) or plain is not None:
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
