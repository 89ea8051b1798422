"""The children's output: read line by line, and written by a thread that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import TextIO

_LONGEST_LINE = 8192
_CHUNK = 65536


class LineWriter:
    """Writes lines to a stream from a thread of its own.

    ``write`` never blocks: a terminal that is stopped, or a pipe nobody reads, costs at most
    ``capacity`` lines of memory, and what does not fit is dropped and counted.
    """

    def __init__(self, stream: TextIO, capacity: int = 2000) -> None:
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(capacity)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="supervisor-output", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line (without its end)."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, timeout_s: float = 0.5) -> None:
        """Write what is queued, for at most ``timeout_s`` seconds."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if self._dropped:
                line, self._dropped = f"({self._dropped} lines were dropped)\n{line}", 0
            try:
                self._stream.write(line + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # Nobody can be told that stderr is gone; the children go on.
                continue


async def read_lines(read_end: int, heard: Callable[[str], None]) -> None:
    """Hand on the lines of a pipe until its end, and close it.

    Empty ones are left out; one without an end is cut at 8 KiB.
    """
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )

    def line(raw: bytes) -> None:
        if text := raw[:_LONGEST_LINE].decode("utf-8", "replace").rstrip():
            heard(text)

    rest = b""
    try:
        while chunk := await reader.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines.append(rest)
                rest = b""
            for each in lines:
                line(each)
    finally:
        transport.close()
        line(rest)
