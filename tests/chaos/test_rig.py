"""The rig breaks what it says that it breaks, and the table says what broke."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from tests.chaos import __main__ as table
from tests.chaos.load import BODY, Figures
from tests.chaos.proxy import Proxy
from tests.chaos.rig import Rig
from tests.chaos.rows import ROWS, Line
from tests.chaos.server import UNARY
from tests.support import servers
from tests.support.doors import stop_accepting
from tests.support.wait import longer, until

_SILENCE_S = 0.2


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before a server that echoes bytes."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    proxy = Proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", 0)
    await proxy.listen()
    yield proxy
    for each in (server, proxy.server):
        if each is not None:
            await stop_accepting(each)
    proxy.obey({"mode": "refuse"})
    server.close()


async def test_bytes_pass_until_the_connection_is_reset(proxy: Proxy) -> None:
    """`pass` forwards both ways; `reset` ends what stands with RST, and new connections pass."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert proxy.obey({"mode": "reset"})["stood"] == 1
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()


async def test_a_black_hole_swallows_old_and_new_connections(proxy: Proxy) -> None:
    """`hole`: connections are accepted and stand, and not a byte comes back; with `pass` the deaf ones are reset."""
    old = await asyncio.open_connection("127.0.0.1", proxy.port)
    old[1].write(b"hello")
    assert await old[0].readexactly(5) == b"hello"
    proxy.obey({"mode": "hole"})
    new = await asyncio.open_connection("127.0.0.1", proxy.port)
    for reader, writer in (old, new):
        writer.write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), _SILENCE_S)
    proxy.obey({"mode": "pass"})
    for reader, writer in (old, new):
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()


async def test_a_refusing_proxy_listens_again(proxy: Proxy) -> None:
    """`refuse`: nobody listens, standing connections end; `pass` opens the same port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    proxy.obey({"mode": "refuse"})
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.obey({"mode": "pass"})

    async def connected() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    await until(connected, within_s=30, what="it listens again")


async def test_a_server_does_as_it_is_told_and_leaves_in_order() -> None:
    """It echoes, fails when told to, and on SIGTERM ends what is in flight before it ends itself."""
    async with Rig() as rig:
        (server,) = await rig.servers("a", latency_s=0)
        async with grpc.aio.insecure_channel(server.address) as channel:
            call: Any = channel.unary_unary(UNARY)
            assert await call(BODY, timeout=60) == BODY
            assert (await server.tell(failing=1.0))["calls"] == 1
            with pytest.raises(grpc.aio.AioRpcError, match="told to fail"):
                await call(BODY, timeout=60)
            for latency_s in longer(0.5):
                await server.tell(failing=0.0, latency_s=latency_s)
                last = call(BODY, timeout=60)
                while not last.done() and not (await server.tell())["running"]:
                    pass
                if not last.done():
                    break  # else it was over before anybody could look
            server.signal(signal.SIGTERM)
            assert await last == BODY
            assert await server.ended() == 0


def _line(broken: Sequence[str] = (), missed: Sequence[str] = ()) -> Line:
    figures = Figures(latencies_s=[0.01, 0.02])
    return Line("1", "a fault", figures, wanted=2, broken=[*broken], missed=[*missed])


def test_the_last_line_counts_promises_and_goals() -> None:
    """It says how many of all were met, and names the others with their row."""
    assert table.report([_line(), _line()]) == "goals: 4 of 4 met"
    lines = [_line(broken=["3 of 9 calls failed"]), _line(missed=["too slow"])]
    assert table.report(lines) == "goals: 2 of 4 met; missed: 1 asyncio 3 of 9 calls failed; 1 asyncio too slow"


@pytest.mark.parametrize(
    ("wrong", "strict", "status"),
    [({}, True, 0), ({"broken": ["x"]}, False, 1), ({"missed": ["x"]}, False, 0), ({"missed": ["x"]}, True, 1)],
)
def test_the_exit_status(wrong: dict[str, list[str]], strict: bool, status: int) -> None:
    """A broken promise is 1 always, a missed goal of speed only with STRICT=1."""
    assert table.exit_status([_line(), _line(**wrong)], strict=strict) == status


def test_rows_are_chosen_by_their_numbers() -> None:
    """``3,7`` or ``3 7``; none means all; an unknown one is an error that lists the known."""
    chosen = table.chosen(["7,3", "11"])
    assert [(row.number, row.driver) for row in chosen] == [
        ("7", "asyncio"),
        ("3", "asyncio"),
        ("3", "threads"),
        ("11", "asyncio"),
    ]
    assert table.chosen([]) == [row for row in ROWS if not row.needs or servers.find(row.needs)]
    with pytest.raises(SystemExit, match="row '99' is unknown; expected some of 0, 1, "):
        table.chosen(["99"])


async def test_a_part_of_the_rows_keeps_the_results() -> None:
    """Only a whole run writes them: docs/faults.md shows its table."""
    before = table.RESULTS.read_bytes(), table.RESULTS.stat().st_mtime_ns
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos", "14", "--shorter", "0.05",
        cwd=servers.ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert b"goals: " in output
    assert (table.RESULTS.read_bytes(), table.RESULTS.stat().st_mtime_ns) == before
