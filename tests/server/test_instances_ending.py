"""How the processes of one program end: at a signal, at the second one, with their supervisor, by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from lb.server.supervising import Spec
from lb.server.supervising.instances import Together
from tests.server.conftest import failed
from tests.support.process import alive, with_lb
from tests.support.wait import eventually

SERVER = """
import asyncio, os, sys, grpc, lb.server
from pathlib import Path

where = Path(sys.argv[1])
parent_fd = lb.server.instances(2, drain_s=float(sys.argv[2]))

async def wait(request, context):
    (where / f"begun-{os.getpid()}").touch()
    await lb.server.draining()
    (where / f"told-{os.getpid()}").touch()
    while not (where / "go").exists():
        await asyncio.sleep(0.01)
    return request

async def main():
    async with lb.server.Server("test", drain_wait_s=0, drain_s=300) as server:
        handlers = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
        serving = asyncio.create_task(server.serve(parent_fd=parent_fd))
        while server.state != "serving":
            await asyncio.sleep(0.01)
        (where / f"new-{os.getpid()}").write_text(server.address)
        (where / f"new-{os.getpid()}").rename(where / f"at-{os.getpid()}")
        await serving

asyncio.run(main())
"""


class Running:
    """The program `SERVER`, with a call in flight in each of its two processes."""

    def __init__(self, where: Path, process: asyncio.subprocess.Process, calls: list[Any]) -> None:
        self._where = where
        self.process = process
        self.pids = [int(found.name.partition("-")[2]) for found in where.glob("at-*")]
        self.calls = calls

    async def told(self) -> None:
        """Wait until each process has told its handler that it drains."""
        await eventually(lambda: len(list(self._where.glob("told-*"))) == 2, "both drain")

    def go(self) -> None:
        """Let the handlers end."""
        (self._where / "go").touch()

    async def ended(self) -> int:
        """Wait for its end: the exit status. None of the others is left then."""
        status = await asyncio.wait_for(self.process.wait(), 60)
        assert not any(alive(pid) for pid in self.pids)
        return status


@contextlib.asynccontextmanager
async def running(where: Path, drain_s: float) -> AsyncIterator[Running]:
    """Start it, and kill what is left of it."""
    program = where / "program.py"
    program.write_text(SERVER)
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, where, str(drain_s), stderr=asyncio.subprocess.DEVNULL, env=with_lb()
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(kill, process)
        await eventually(lambda: len(list(where.glob("at-*"))) == 2, "both serve", 60)
        calls = []
        for found in where.glob("at-*"):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(found.read_text()))
            opening: Any = channel.unary_unary("/test.Service/Wait")
            calls.append(opening(b"x", timeout=120))
        await eventually(lambda: len(list(where.glob("begun-*"))) == 2, "both calls run")
        yield Running(where, process, calls)


async def kill(process: asyncio.subprocess.Process) -> None:
    """Be sure that it is gone; its children notice that."""
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_calls_in_flight_finish_in_each_process(tmp_path: Path) -> None:
    """SIGTERM to the one that was started drains all at once; it waits for their calls, and ends with status 0."""
    async with running(tmp_path, drain_s=300) as world:
        world.process.send_signal(signal.SIGTERM)
        await world.told()
        assert world.process.returncode is None
        assert all(alive(pid) for pid in world.pids)
        world.go()
        assert await asyncio.gather(*world.calls) == [b"x", b"x"]
        assert await world.ended() == 0


async def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    """Nobody waits for calls in flight."""
    async with running(tmp_path, drain_s=300) as world:
        world.process.send_signal(signal.SIGTERM)
        await world.told()
        world.process.send_signal(signal.SIGTERM)
        assert await world.ended() == 0
        for call in world.calls:
            await failed(call)


async def test_who_is_left_is_killed_when_the_time_is_over(tmp_path: Path) -> None:
    """However long the processes themselves would drain."""
    async with running(tmp_path, drain_s=0.5) as world:
        world.process.send_signal(signal.SIGTERM)
        assert await world.ended() == 0
        for call in world.calls:
            await failed(call)


async def test_processes_whose_supervisor_is_killed_drain_and_end(tmp_path: Path) -> None:
    """By SIGKILL, of which it tells nobody: their calls finish."""
    async with running(tmp_path, drain_s=300) as world:
        world.process.kill()
        await world.told()
        world.go()
        assert await asyncio.gather(*world.calls) == [b"x", b"x"]
        await eventually(lambda: not any(alive(pid) for pid in world.pids), "they are gone")


@pytest.mark.parametrize("end", [lambda together: together.leave(""), Together.close])
async def test_the_supervisor_adds_no_time_of_its_own(end: Callable[[Together], Awaitable[None]]) -> None:
    """Of no time at all none is given to who does not listen, nor at its close. A busy machine has some tries."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
    took: list[float] = []
    while not took or (min(took) > 0.9 and len(took) < 5):
        up = asyncio.Event()

        def heard(_: str, up: asyncio.Event = up) -> bool:
            up.set()
            return True

        specs = [Spec("stubborn", (sys.executable, "-S", "-c", stubborn), on_line=heard)]
        together = Together(lambda say, specs=specs: specs, drain_s=0.0)  # type: ignore[misc]
        await together.start()
        await asyncio.wait_for(up.wait(), 60)
        began = asyncio.get_running_loop().time()
        await end(together)
        took.append(asyncio.get_running_loop().time() - began)
        await together.close()
    assert min(took) <= 0.9


ENDS = """
import sys, lb.server
lb.server.instances(2)
sys.exit(int(sys.argv[1]))
"""


async def ending(where: Path, status: int) -> asyncio.subprocess.Process:
    """A program whose processes end at once, with this status."""
    program = where / "program.py"
    program.write_text(ENDS)
    command = (sys.executable, program, str(status))
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=with_lb())


async def test_a_wrong_setting_ends_all(tmp_path: Path) -> None:
    """Status 2 says that no new start helps: it is the status of the whole."""
    process = await ending(tmp_path, 2)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 2
        assert b"started again" not in (said or b"")
    finally:
        await kill(process)


async def test_a_process_that_dies_right_after_its_start_is_held_back(tmp_path: Path) -> None:
    """2 s for the first time, then 4; a signal ends the wait."""
    process = await ending(tmp_path, 3)
    assert process.stderr is not None
    delays: dict[str, list[str]] = {"instance-1": [], "instance-2": []}
    try:
        async with asyncio.timeout(60):
            while min(map(len, delays.values())) < 2:
                line = (await process.stderr.readline()).decode()
                assert "ended with status 3" in line, line
                delays[line.partition(" ")[0]].append(line.strip().rpartition(" in ")[2])
        assert [each[:2] for each in delays.values()] == [["2 s", "4 s"]] * 2
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        await kill(process)
