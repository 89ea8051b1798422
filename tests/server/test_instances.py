"""``lb.server.instances`` in a program of a user."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from lb.server import instances
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


def test_a_wrong_count_is_told() -> None:
    """With the argument's name, before anything is started."""
    with pytest.raises(ValueError, match=r"^count: expected auto or a whole number from 1 to 1024, got 'two'$"):
        instances("two")
