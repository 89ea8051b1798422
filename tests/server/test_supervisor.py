"""The supervisor: starts again what dies, ends everything, and is noticed when it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from lb.server.supervising import LineWriter, RestartDelay, Spec, Supervisor
from tests.support.process import alive
from tests.support.wait import eventually

SLEEPER = (sys.executable, "-S", "-c", "import time; print('up'); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)",
)


def quick() -> RestartDelay:
    """Delays short enough for a test."""
    return RestartDelay(first_s=0.01, longest_s=0.1, steady_s=5.0)


def test_the_delay_doubles_and_starts_afresh() -> None:
    """2, 4, 8, 16, 30, 30 s for one that keeps dying; 2 s again once it lived for 5 s."""
    delay = RestartDelay()
    assert [delay.after(0.1) for _ in range(6)] == [2, 4, 8, 16, 30, 30]
    assert delay.after(5.0) == 2
    assert delay.after(4.9) == 4


async def test_a_killed_child_is_started_again_and_says_so_in_one_line() -> None:
    """After SIGKILL there is a new process under the same name, and one line names both causes and delay."""
    said: list[str] = []
    async with Supervisor(say=said.append, delay=quick) as supervisor:
        await supervisor.start(Spec("catalog-1", SLEEPER))
        await eventually(lambda: "catalog-1 | up" in said)
        first = supervisor.pids()["catalog-1"]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.starts("catalog-1") == 2 and said.count("catalog-1 | up") == 2)
        assert supervisor.pids()["catalog-1"] != first
        told = [line for line in said if "started again" in line]
        assert len(told) == 1
        assert f"catalog-1 (pid {first}) was killed by SIGKILL" in told[0]
        last = supervisor.pids()["catalog-1"]
    assert not alive(last)
    assert not [line for line in said if "started again" in line][1:]


async def test_a_line_of_json_is_shown_as_it_is() -> None:
    """A collector of logs can read it. All other lines have the child's name before them, also one that is cut."""
    cut = '{"event": "' + 9_000 * "x" + '"}'
    lines = ['{"event": "ready", "pid": 7}', "{'a': 1}", "{", "[1]", "ready {}", cut]
    said: list[str] = []
    async with Supervisor(say=said.append, delay=quick) as supervisor:
        program = f"import time\nfor line in {lines!r}: print(line)\ntime.sleep(600)"
        await supervisor.start(Spec("a", (sys.executable, "-S", "-c", program)))
        await eventually(lambda: len(said) >= len(lines))
    assert said[:5] == [lines[0], lines[1], "a | {", "a | [1]", "a | ready {}"]
    assert said[5].startswith('a | {"event": "xxx')


async def test_a_child_that_dies_right_after_its_start_is_held_back() -> None:
    """Each time it stays down longer, up to the longest delay."""
    said: list[str] = []

    def delay() -> RestartDelay:
        return RestartDelay(first_s=0.01, longest_s=0.05, steady_s=600.0)

    def told() -> list[str]:
        return [line.rpartition(" in ")[2] for line in said if "ended with status 3" in line]

    async with Supervisor(say=said.append, delay=delay) as supervisor:
        await supervisor.start(Spec("dies", (sys.executable, "-S", "-c", "raise SystemExit(3)")))
        await eventually(lambda: len(told()) >= 5)
    assert told()[:5] == ["0.01 s", "0.02 s", "0.04 s", "0.05 s", "0.05 s"]


async def test_stop_kills_who_does_not_listen_and_ends_in_order() -> None:
    """SIGTERM goes in order; who ignores it is killed at the bound, and nothing is left."""
    said: list[str] = []
    supervisor = Supervisor(say=said.append, delay=quick)
    await supervisor.start(Spec("stubborn", STUBBORN, stop_order=0))
    await supervisor.start(Spec("last", SLEEPER, stop_order=1))
    await eventually(lambda: len(said) == 2)
    pids = supervisor.pids()
    started = asyncio.get_running_loop().time()
    stop = asyncio.create_task(supervisor.stop(grace_s=0.4))
    await asyncio.sleep(0)
    assert alive(pids["last"])
    await stop
    assert 0.3 <= asyncio.get_running_loop().time() - started < 30
    assert not any(alive(pid) for pid in pids.values())
    with pytest.raises(RuntimeError, match="stopped"):
        await supervisor.start(Spec("late", SLEEPER))


async def test_a_stop_that_is_cancelled_is_ended_by_the_next_one() -> None:
    """A second Ctrl-C ends at once what would have had time: nothing is left."""
    said: list[str] = []
    supervisor = Supervisor(say=said.append)
    await supervisor.start(Spec("stubborn", STUBBORN))
    await eventually(lambda: len(said) == 1)
    pid = supervisor.pids()["stubborn"]
    stop = asyncio.create_task(supervisor.stop(grace_s=60))
    await asyncio.sleep(0)
    stop.cancel()
    await asyncio.gather(stop, return_exceptions=True)
    async with asyncio.timeout(30):
        await supervisor.stop(0.0)
    assert not alive(pid)


async def test_a_replaced_spec_is_used_from_the_next_start_on() -> None:
    """The agent learns its port at the first start and keeps it at the next one."""
    said: list[str] = []
    async with Supervisor(say=said.append, delay=quick) as supervisor:
        await supervisor.start(Spec("agent", (sys.executable, "-S", "-c", "print('port 0')")))
        supervisor.replace(Spec("agent", (sys.executable, "-S", "-c", "print('port 7'); import time; time.sleep(600)")))
        await eventually(lambda: "agent | port 7" in said)
        assert "agent | port 0" in said


async def test_children_notice_a_supervisor_that_is_gone(tmp_path: Path) -> None:
    """End-of-file on MESH_PARENT_FD comes when the supervisor is killed, even with siblings still there."""
    child = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "os.read(int(os.environ['MESH_PARENT_FD']), 1)\n"
    )
    parent = (
        "import asyncio, sys\n"
        "from lb.server.supervising import Spec, Supervisor\n"
        "async def main():\n"
        "    s = Supervisor()\n"
        "    for n in '12':\n"
        "        await s.start(Spec(n, (sys.executable, '-S', '-c', sys.argv[1], sys.argv[2] + n)))\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, child, str(tmp_path / "pid-"), stderr=asyncio.subprocess.DEVNULL
    )
    files = [tmp_path / f"pid-{n}" for n in "12"]
    await eventually(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(alive(pid) for pid in pids)
    process.kill()
    await process.wait()
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_a_flood_of_output_neither_blocks_the_child_nor_fills_memory() -> None:
    """A child that prints without end, and one endless line, are shown in bounded pieces."""
    count = 0

    def say(line: str) -> None:
        nonlocal count
        assert len(line) < 9000
        count += 1

    flood = "import sys\nfor _ in range(20000): print('x' * 100)\nsys.stdout.write('y' * 300000)\nsys.stdout.flush()\n"
    async with Supervisor(say=say, delay=lambda: RestartDelay(first_s=60)) as supervisor:
        await supervisor.start(Spec("loud", (sys.executable, "-S", "-c", flood)))
        await eventually(lambda: "loud" not in supervisor.pids())
        assert count >= 20000


def test_a_stopped_terminal_never_blocks_the_writer() -> None:
    """What the screen does not take is dropped and counted; writing returns at once, closing in bounded time."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, True)
    with os.fdopen(write_end, "w") as stream:
        writer = LineWriter(stream, capacity=50)
        for _ in range(5000):
            writer.write("x" * 200)
        writer.close(timeout_s=0.05)
        received = bytearray()

        def read() -> None:
            while chunk := os.read(read_end, 65536):
                received.extend(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        writer.close(timeout_s=60)
    reader.join(60)
    os.close(read_end)
    assert b"lines were dropped" in received
