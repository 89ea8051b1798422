"""Run a set of processes and keep them running.

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
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lb.server.supervising.child import Child, Spec
from lb.server.supervising.delay import RestartDelay
from lb.server.supervising.output import LineWriter, read_lines


class Supervisor:
    """Starts processes, starts those that die again, and ends them all.

    Use it as an asynchronous context manager, or call ``stop``; nothing it started outlives that.
    A death is told in one line through ``say`` (default: standard error). What the children print
    is shown there too, each line after the child's name; one that is a JSON object as it is, for collectors of logs.
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
        self._children: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self.hopeless = asyncio.Event()
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
        child = Child(spec)
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

    async def _gone(self, children: list[Child], within_s: float | None = None) -> None:
        """Wait until these have ended, for at most ``within_s`` seconds."""
        if tasks := [child.task for child in children if child.task is not None]:
            done, _ = await asyncio.wait(tasks, timeout=within_s)
            for task in done:
                task.result()

    async def _keep_running(self, child: Child) -> None:
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
            if status in child.spec.hopeless:
                self.hopeless.set()
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

    async def _spawn(self, child: Child) -> None:
        """Start the process, its output going through a pipe of ours.

        asyncio's own would hold back the news of an exit for as long as any grandchild keeps it open.
        """
        loop, spec = asyncio.get_running_loop(), child.spec
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **spec.env,
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
        child.output = asyncio.create_task(
            read_lines(read_end, lambda line: self._heard(spec, line)), name=f"output-{spec.name}"
        )

    def _heard(self, spec: Spec, line: str) -> None:
        if spec.on_line is None or not spec.on_line(line):
            is_json = line.startswith("{") and line.endswith("}")
            self._say(line if is_json else f"{spec.name} | {line}")

    async def _end_output(self, child: Child) -> None:
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
