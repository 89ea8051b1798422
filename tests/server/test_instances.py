"""``lb.server.instances`` in a program of a user."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from lb.server import instances
from tests.support.ports import free_ports
from tests.support.process import alive, with_lb

PROGRAM = """
import asyncio, os, lb.server
parent_fd = lb.server.instances(3)
print("pid", os.getpid(), flush=True)
asyncio.run(lb.server.live(lb.server.Life(), parent_fd=parent_fd))
"""


async def test_a_program_runs_as_several_processes(tmp_path: Path) -> None:
    """The program goes on in each of three processes; SIGTERM to the first one ends all, with status 0."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, stderr=asyncio.subprocess.PIPE, env=with_lb()
    )
    assert process.stderr is not None
    pids: set[int] = set()
    try:
        async with asyncio.timeout(60):
            while len(pids) < 3:
                line = (await process.stderr.readline()).decode()
                assert "| pid " in line, line
                pids.add(int(line.rpartition(" ")[2]))
            assert process.pid not in pids
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not [pid for pid in pids if alive(pid)]


FIXED = """
import asyncio, sys, lb.server
from lb.server.threads import Server as WithThreads
parent_fd = lb.server.instances(int(sys.argv[1]))
listen, options = sys.argv[3], [("grpc.so_reuseport", 1)] if "shared" in sys.argv else []
async def main():
    async with lb.server.Server("test", listen=listen, options=options) as server:
        await server.start()
if sys.argv[2] == "asyncio":
    asyncio.run(main())
else:
    with WithThreads("test", listen=listen, options=options) as server:
        server.start()
sys.exit(2)  # it got there: that ends all
"""


async def fixed(folder: Path, count: int, kind: str, listen: str, *more: str) -> tuple[int | None, list[str]]:
    """How a program ends whose processes listen there, and what they say."""
    program = folder / "program.py"
    program.write_text(FIXED)
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, str(count), kind, listen, *more, stderr=asyncio.subprocess.PIPE, env=with_lb()
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, errors.decode().splitlines()


@pytest.mark.parametrize("kind", ["asyncio", "threads"])
async def test_several_processes_cannot_have_one_port(tmp_path: Path, kind: str) -> None:
    """All end, with status 2 and a sentence that says why. Nothing is started again."""
    with free_ports(1) as (port,):
        pass
    listen = f"127.0.0.1:{port}"
    status, said = await fixed(tmp_path, 2, kind, listen)
    why = f"listen='{listen}': 2 processes of lb.server.instances() cannot have one port; expected port 0"
    assert (status, {line.partition(" | ")[2] for line in said}) == (2, {why})


@pytest.mark.parametrize("kind", ["asyncio", "threads"])
async def test_ports_that_processes_may_have(tmp_path: Path, kind: str) -> None:
    """One process has the port that it wants; several have free ones, or one that they say they share."""
    with free_ports(1) as (port,):
        pass
    for count, listen, more in (
        (1, f"127.0.0.1:{port}", ()),
        (2, "127.0.0.1:0", ()),
        (2, f"127.0.0.1:{port}", ("shared",)),
    ):
        assert await fixed(tmp_path, count, kind, listen, *more) == (2, [])


def test_a_wrong_count_is_told() -> None:
    """With the argument's name, before anything is started."""
    with pytest.raises(ValueError, match=r"^count: expected auto or a whole number from 1 to 1024, got 'two'$"):
        instances("two")
