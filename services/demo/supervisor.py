"""Run a set of processes and keep them running, for ``make demo``.

Each child is a process in a session of its own, so that Ctrl-C in the terminal reaches only the
supervisor, which then ends them in order. It inherits the reading end of a pipe whose number is
in ``MESH_PARENT_FD``; nothing is ever written to it. The supervisor alone holds the writing end,
so end-of-file on it means that the supervisor is gone, however it died (`lb.server.live` reads it)::

    supervisor ──writing end──┐            killed ──► the kernel closes the writing end
                              ▼                       every child reads end-of-file and ends
    child, child, child ◄─reading end

This needs no PR_SET_PDEATHSIG and works on Linux and macOS alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TextIO

_LONGEST_LINE = 8192
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run under one name.

    ``env`` is added to the supervisor's own environment. ``stop_order`` orders the end: the
    lowest goes first, and the next ones are asked to end once it is gone. ``on_line`` sees each
    line of output first and returns True to keep it off the screen.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_order: int = 0
    on_line: Callable[[str], bool] | None = None


class RestartDelay:
    """How long to wait before a child that died is started again, in seconds.

    ``first_s``, doubled each time up to ``longest_s``; it starts afresh when the child lived for
    at least ``steady_s``, so only a child that keeps dying is held back.
    """

    def __init__(self, first_s: float = 2.0, longest_s: float = 30.0, steady_s: float = 5.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._steady_s = steady_s
        self._next_s = first_s

    def after(self, lived_s: float) -> float:
        """The delay after a child that lived ``lived_s`` seconds."""
        if lived_s >= self._steady_s:
            self._next_s = self._first_s
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._longest_s)
        return delay_s

    def __repr__(self) -> str:
        return f"<RestartDelay next={self._next_s:g}s longest={self._longest_s:g}s>"


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


class _Child:
    """One name: its process of the moment, and the task that starts it again."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: asyncio.subprocess.Process | None = None
        self.output: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.started_at = 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)  # with whatever it has started itself
            else:
                os.kill(self.pid, number)

    def __repr__(self) -> str:
        return f"<_Child {self.spec.name} pid={self.pid} starts={self.starts}>"


class Supervisor:
    """Starts processes, starts those that die again, and ends them all.

    Use it as an asynchronous context manager, or call ``stop``; nothing it started outlives that.
    A death is told in one line through ``say`` (default: standard error). What the children print
    is shown there too, each line after the child's name.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None] | None = None,
        delay: Callable[[], RestartDelay] = RestartDelay,
    ) -> None:
        self._writer = LineWriter(sys.stderr) if say is None else None
        self._say = say if say is not None else self._to_stderr
        self._delay = delay
        self._children: dict[str, _Child] = {}
        self._stopping = asyncio.Event()
        self._parent_read, self._parent_write = os.pipe()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _to_stderr(self, line: str) -> None:
        if self._writer is not None:
            self._writer.write(line)

    @property
    def parent_fd(self) -> int:
        """The number of the inherited pipe end in each child, for those that take it as an argument."""
        return self._parent_read

    def say(self, line: str) -> None:
        """Show a line where the children's lines go, in order with them."""
        self._say(line)

    def pids(self) -> dict[str, int]:
        """The process of each child that runs at this moment."""
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def starts(self, name: str) -> int:
        """How often ``name`` has been started."""
        return self._children[name].starts

    async def start(self, spec: Spec) -> None:
        """Start a process and keep it running from here on.

        Raises ``OSError`` when it cannot be started this first time, ``ValueError`` when the name
        is taken and ``RuntimeError`` after ``stop``.
        """
        if spec.name in self._children:
            raise ValueError(f"supervisor: {spec.name!r} runs already; expected a name of its own for each process")
        if self._stopping.is_set():
            raise RuntimeError("supervisor: stopped; it starts nothing any more")
        child = _Child(spec)
        self._children[spec.name] = child
        try:
            await self._spawn(child)
        except OSError:
            del self._children[spec.name]
            raise
        child.task = asyncio.create_task(self._keep_running(child), name=f"supervise-{spec.name}")
        if self._stopping.is_set():
            child.signal(signal.SIGKILL)
            await child.task
            raise RuntimeError("supervisor: stopped while this was being started")

    def replace(self, spec: Spec) -> None:
        """Use ``spec`` from the next start of this name on. Raises ``KeyError`` when there is none."""
        self._children[spec.name].spec = spec

    async def stop(self, grace_s: float = 30.0) -> None:
        """End every process: SIGTERM in ``stop_order``, SIGKILL for those left after ``grace_s`` seconds.

        If it is cancelled, another ``stop`` ends what is left.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self._stopping.set()
        children = list(self._children.values())
        for order in sorted({child.spec.stop_order for child in children}):
            group = [child for child in children if child.spec.stop_order == order]
            for child in group:
                child.signal(signal.SIGTERM)
            await self._gone(group, max(0.0, deadline - loop.time()))
        for child in children:
            child.signal(signal.SIGKILL)
        await self._gone(children)
        self._children.clear()
        for end in (self._parent_read, self._parent_write):
            with contextlib.suppress(OSError):
                os.close(end)
        self._parent_read = self._parent_write = -1
        if self._writer is not None:
            self._writer.close()

    async def _gone(self, children: list[_Child], within_s: float | None = None) -> None:
        """Wait until these have ended, for at most ``within_s`` seconds."""
        if tasks := [child.task for child in children if child.task is not None]:
            done, _ = await asyncio.wait(tasks, timeout=within_s)
            for task in done:
                task.result()

    async def _keep_running(self, child: _Child) -> None:
        delay = self._delay()
        loop = asyncio.get_running_loop()
        while True:
            assert child.process is not None
            pid, status = child.process.pid, await child.process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # what it left behind in its session
            await self._end_output(child)
            if self._stopping.is_set():
                return
            lived_s = loop.time() - child.started_at
            wait_s = delay.after(lived_s)
            how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
            self._say(f"{child.spec.name} (pid {pid}) {how} after {lived_s:.1f} s; it is started again in {wait_s:g} s")
            while True:
                if await _set_within(self._stopping, wait_s):
                    return
                try:
                    await self._spawn(child)
                except OSError as error:
                    wait_s = delay.after(0.0)
                    self._say(f"{child.spec.name} could not be started ({error}); the next try is in {wait_s:g} s")
                    continue
                break
            if self._stopping.is_set():
                child.signal(signal.SIGKILL)  # it came too late to be asked

    async def _spawn(self, child: _Child) -> None:
        """Start the process, its output going through a pipe of ours.

        asyncio's own would hold back the news of an exit for as long as any grandchild keeps it open.
        """
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *child.spec.argv,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **child.spec.env,
                    "MESH_PARENT_FD": str(self._parent_read),
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(self._parent_read,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        child.process = process
        child.starts += 1
        child.started_at = loop.time()
        child.output = asyncio.create_task(self._show(child.spec, read_end), name=f"output-{child.spec.name}")

    async def _show(self, spec: Spec, read_end: int) -> None:
        """Pass the output on line by line; a line without an end is cut at 8 KiB."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await reader.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines.append(rest)
                    rest = b""
                for line in lines:
                    self._line(spec, line)
        finally:
            transport.close()
            if rest:
                self._line(spec, rest)

    def _line(self, spec: Spec, raw: bytes) -> None:
        line = raw[:_LONGEST_LINE].decode("utf-8", "replace").rstrip()
        if not line or (spec.on_line is not None and spec.on_line(line)):
            return
        self._say(f"{spec.name} | {line}")

    async def _end_output(self, child: _Child) -> None:
        """Show what the dead process still had in its pipe; a grandchild may hold it open, so not for ever."""
        if child.output is not None:
            done, _ = await asyncio.wait({child.output}, timeout=0.5)
            if not done:
                child.output.cancel()
                await asyncio.wait({child.output})
            child.output = None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
