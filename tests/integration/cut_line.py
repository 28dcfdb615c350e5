"""A line to the API server that a test can cut, silence, or break in the middle of an answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class CutLine:
    """Passes bytes on between clients and a server, as far as the test lets it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.remaining: int | None = None
        """Bytes that still come from the server; then every connection breaks, and this is None again."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, is_answer=False),
                self._pass(far_reader, writer, is_answer=True),
            )
        except OSError:
            pass  # cut
        finally:
            self._writers -= {writer, far_writer}
            self._tasks.discard(task)
            for one in (writer, far_writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await reader.read(4096):
            await self._passing.wait()
            if is_answer and self.remaining is not None:
                data, self.remaining = data[: self.remaining], self.remaining - len(data)
                writer.write(data)
                await writer.drain()
                if self.remaining <= 0:
                    self.remaining = None
                    self.cut()
                    return
                continue
            writer.write(data)
            await writer.drain()
        self.cut_one(writer)

    @staticmethod
    def cut_one(writer: asyncio.StreamWriter) -> None:
        """Pass the end of a connection on."""
        with contextlib.suppress(OSError):
            if writer.can_write_eof():
                writer.write_eof()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Keep connections open and pass nothing on."""
        self._passing.clear()

    def speak(self) -> None:
        """Pass on again, what was held back too."""
        self._passing.set()

    async def end(self) -> None:
        """Break everything and wait for it."""
        self.speak()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def cut_line(kubeconfig: Path, copy: Path) -> AsyncIterator[CutLine]:
    """A line to the API server of a kubeconfig; `copy` becomes a kubeconfig that goes through it."""
    address = urlsplit(_server(kubeconfig))
    line = CutLine(address.hostname or "", address.port or 443)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _write_with_server(kubeconfig, copy, f"https://127.0.0.1:{port}")
    try:
        yield line
    finally:
        server.close()
        await line.end()
        await server.wait_closed()


def _server(kubeconfig: Path) -> str:
    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def _write_with_server(kubeconfig: Path, copy: Path, server: str) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = server
    copy.write_text(yaml.safe_dump(document))
