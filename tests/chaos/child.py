"""What the processes of the rig have in common: they say where they listen, then do as their standard input says."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any


async def commands(obey: Callable[[dict[str, Any]], Any]) -> None:
    """Give ``obey`` each line of standard input (a JSON object), and print what it returns. Returns at its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            say(obey(json.loads(line)))
    finally:
        transport.close()


def say(words: Any) -> None:
    """One line of JSON to whoever started this process."""
    print(json.dumps(words), flush=True)
