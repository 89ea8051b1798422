"""How many instructions a call costs a server, counted by callgrind: what `lb.server` adds to a bare grpcio server.

Run ``python bench/server_cost.py [--calls 2000] [--runs 2] [ROW ...]`` (needs valgrind). A server of asyncio runs
under callgrind; its handler returns an empty message. The client, beside it, has eight calls at once, so that the
event loop takes several in one turn, as under load. Counting begins after a warm-up. The rows are:

- bare: ``grpc.aio.server`` without interceptors;
- admission: with `lb.server.Admission`, and all that it can do: a rate, a rate of the method, a rate of each client, an
  adaptive limit, a longest time;
- all: what `lb.server.Server` puts around a handler, besides its own gate;
- server: a whole `lb.server.Server`;
- refused, refused by rate: calls that `Admission` refuses because the server is full, or because there are too many a
  second;
- server: refused, server: refused by rate: the same with a whole `lb.server.Server`;
- threads: ``grpc.server`` without interceptors; threads: admission, threads: refused: with
  `lb.server.threads.Admission`.

"of bare" is what a row costs, divided by what the call of the bare server of its kind costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, os.environ.get("COUNTED_CHECKOUT") or str(ROOT))
    sys.path.append(str(ROOT))

import grpc  # noqa: E402  # the project's own `lb` comes first

from bench.instructions import COLLECTED, VALGRIND, control, possible  # noqa: E402  # as above

ROWS = (
    "bare",
    "admission",
    "all",
    "server",
    "refused",
    "refused by rate",
    "server: refused",
    "server: refused by rate",
    "threads",
    "threads: admission",
    "threads: refused",
)
METHOD = "/bench.Empty/Call"
AT_ONCE = 8
WARM_UP = 400
SLOWER = 50
GOALS = {
    "admission": 1.15,
    "all": 1.15,
    "refused": 1.1,
    "refused by rate": 1.1,
    "threads: admission": 1.15,
    "threads: refused": 1.1,
}


def bounds(row: str) -> Any:
    """The limits of a row. `lb` is imported here: the bare server has none of it."""
    from lb.server import Concurrency, Limits, Rate

    if row.endswith("refused"):
        return Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))
    return Limits(
        concurrency=Concurrency(limit=64, min_limit=64),
        rate=Rate(1e-3, 1) if row.endswith("by rate") else Rate(1e9),
        method_rates={METHOD: Rate(1e9)},
        client_rate=Rate(1e9),
        timeout_s=60.0,
    )


def made(row: str) -> Any:
    """The server of a row."""
    if row == "bare":
        return grpc.aio.server()
    import lb.aio
    from lb.server import Admission, LoadReporter, LoadTrailers, Server

    limits = bounds(row)
    if row.startswith("server"):
        return Server("bench", listen=None, limits=limits, health=False, reflection=False)
    behind = [LoadTrailers(LoadReporter()), lb.aio.incoming()] if row == "all" else []
    return grpc.aio.server(interceptors=[Admission(limits), *behind])


async def serve(row: str) -> None:
    """Be the server of a row, until standard input ends. A server that refuses for being full has a call that waits."""
    end = asyncio.Event()

    async def answer(request: bytes, context: Any) -> bytes:
        return b""

    async def hold(request: bytes, context: Any) -> bytes:
        await end.wait()
        return b""

    # The process takes so much longer under callgrind: by a clock as slow as that, its loop is no later than without.
    loop: Any = asyncio.get_running_loop()
    loop.time = lambda: time.monotonic() / SLOWER
    server = made(row)
    handlers: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(answer),
        "Hold": grpc.unary_unary_rpc_method_handler(hold),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Empty", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    end.set()
    await server.stop(None)


def serve_with_threads(row: str) -> None:
    """The same with threads."""
    end = threading.Event()

    def answer(request: bytes, context: Any) -> bytes:
        return b""

    def hold(request: bytes, context: Any) -> bytes:
        end.wait()
        return b""

    if row == "threads":
        server = grpc.server(ThreadPoolExecutor(32))
    else:
        from lb.server.threads import Admission

        admission = Admission(bounds(row), threads=32)
        server = grpc.server(admission.pool, interceptors=[admission])
    handlers: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(answer),
        "Hold": grpc.unary_unary_rpc_method_handler(hold),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Empty", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    end.set()
    server.stop(None).wait()


async def drive(port: int, calls: int, refused: bool) -> AsyncIterator[None]:
    """Make calls, so many at once; yields once the server is warm, and ends with the last call."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        make: Any = channel.unary_unary
        call, hold = make(METHOD, _registered_method=True), make("/bench.Empty/Hold")
        metadata = (("lb-client", "bench"), ("lb-priority", "critical"))
        held = hold(b"")  # where one call may run, it is this one
        await channel.channel_ready()

        async def one_by_one(number: int) -> None:
            for _ in range(number):
                try:
                    await call(b"", timeout=30, metadata=metadata)
                    answered = True
                except grpc.aio.AioRpcError as error:
                    answered = False
                    if not refused:
                        raise SystemExit(f"the call failed: {error}") from None
                if answered is refused and number != WARM_UP // AT_ONCE:
                    raise SystemExit("a call that should be refused was answered")

        await asyncio.gather(*(one_by_one(WARM_UP // AT_ONCE) for _ in range(AT_ONCE)))
        yield
        await asyncio.gather(*(one_by_one(calls // AT_ONCE) for _ in range(AT_ONCE)))
        held.cancel()


async def count(row: str, calls: int, checkout: Path | None = None) -> float:
    """Instructions a call of the server of one row."""
    environment = os.environ | {"PYTHONHASHSEED": "0", "COUNTED_CHECKOUT": str(checkout or "")}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        server = subprocess.Popen(  # noqa: ASYNC220  # nothing else runs meanwhile
            [*VALGRIND, f"--log-file={log}", sys.executable, __file__, "--serve", row],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            assert server.stdout is not None
            port = int(await asyncio.to_thread(server.stdout.readline))
            driving = drive(port, calls, "refused" in row)
            await anext(driving)
            control(server, "-i", "on")
            await anext(driving, None)
            control(server, "-i", "off")
        finally:
            await asyncio.to_thread(server.communicate)
        said = log.read_text()
    found = COLLECTED.search(said)
    if server.returncode or found is None:
        raise SystemExit(f"{row}: the server ended with status {server.returncode}: {said[-2000:]}")
    return int(found[1]) / (calls // AT_ONCE * AT_ONCE)


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description="instructions a call costs a server, by callgrind")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=2, help="of each row; the median counts")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--serve", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)}")
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.serve.startswith("threads"):
            serve_with_threads(arguments.serve)
        else:
            asyncio.run(serve(arguments.serve))
        return 0
    if not possible():
        parser.error("valgrind is not on PATH (Debian: apt-get install valgrind)")
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"row {unknown[0]!r}; expected one of: {'; '.join(ROWS)}")
    return report(arguments.rows or list(ROWS), arguments.calls, arguments.runs, arguments.against)


def report(rows: list[str], calls: int, runs: int, against: Path | None) -> int:
    """Count, print, and say how many goals are met."""
    print(f"{'instructions of the server':26} {'a call':>9} {'apart':>6} {'of bare':>8} {'goal':>6} {'against':>9}")
    met = goals = 0.0
    costs: dict[str, float] = {}
    kinds = {row: "threads" if row.startswith("threads") else "bare" for row in rows}
    for row in dict.fromkeys((*sorted(set(kinds.values())), *rows)):
        here = [asyncio.run(count(row, calls)) for _ in range(runs)]
        middle = statistics.median(here)
        costs[row] = middle
        bare = costs[kinds.get(row, row)]
        goal = GOALS.get(row)
        line = f"{row:26} {middle:9.0f} {(max(here) - min(here)) / middle:6.1%} {middle / bare:8.3f}"
        line += f" {goal:6.2f}" if goal else " " * 7
        if goal:
            goals += 1
            met += middle / bare <= goal
        if against is not None:
            line += f" {asyncio.run(count(row, calls, against.resolve())):9.0f}"
        print(line, flush=True)
    print(f"goals: {met:.0f} of {goals:.0f} met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
