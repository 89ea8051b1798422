"""Calls grpcio's ``_get_running_loop`` so many times, for `docs/upstream.md`: ``python bench/line.py 20000 [mended]``.

Under callgrind, two runs with different counts show what one costs: start and end cancel out.
"""

from __future__ import annotations

import asyncio
import sys

from grpc._cython import cygrpc


async def main(times: int) -> None:
    """Ask in a running loop."""
    ask = cygrpc._get_running_loop
    for _ in range(times):
        ask()


if __name__ == "__main__":
    if "mended" in sys.argv:
        from mends import MENDS

        MENDS["running loop"]()
    asyncio.run(main(int(sys.argv[1])))
