"""Closing a listening port while clients are connecting to it."""

from __future__ import annotations

import asyncio

_TURNS = 4


async def stop_accepting(server: asyncio.Server) -> None:
    """Take no more connections, and let those that were accepted become what they are. Close the server then.

    asyncio makes the transport of an accepted connection some turns later. When its server was closed in
    between, that fails, the socket is lost, and Python complains of it whenever it is collected.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for listening in server.sockets:
            loop.remove_reader(listening)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
