"""The watch on an endpoint's health service, as gRFC A17 says, while its connection stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from lb.core import health
from lb.core.candidate import Connectivity
from lb.core.peers import one_line


class Tell(Protocol):
    """Takes what the watch finds."""

    def __call__(self, state: Connectivity, trouble: str = "", *, unserved: bool = False) -> None:
        """``unserved``: the endpoint does not know the service."""


async def watch_health(channel: grpc.aio.Channel, service: str, connected: Callable[[], bool], tell: Tell) -> None:
    """Tell what the endpoint says of ``service``, until cancelled; it returns when there is no health service.

    What has no health service counts as serving. A watch that ends is begun again.
    """
    stub: Any = channel.unary_stream(health.WATCH)
    failures = 0
    while True:
        if not connected():  # this task will be cancelled for that; a call would connect, without a pause
            await asyncio.sleep(health.PAUSE_S)
            continue
        call = stub(health.request(service))
        try:
            # Not `async for`: its generator and the call would keep each other, and the call its connection.
            while (response := await call.read()) is not grpc.aio.EOF:
                failures = 0
                _tell(health.status(response), service, tell)
            why = "it ended the watch"
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                tell(Connectivity.READY)
                return
            why = f"{error.code().name}: {one_line(error.details() or '')}"
        finally:
            call.cancel()
        failures += 1
        if failures == 1:  # the connection may be lost: then this task is about to be cancelled
            tell(Connectivity.CONNECTING)
        else:
            tell(Connectivity.TRANSIENT_FAILURE, f"its health service cannot be watched: {why}")
        await asyncio.sleep(min(health.PAUSE_S * 2 ** min(failures - 1, 10), health.LONGEST_PAUSE_S))


def _tell(serving: health.Serving, service: str, tell: Tell) -> None:
    if serving is health.Serving.SERVING:
        tell(Connectivity.READY)
    elif serving is health.Serving.SERVICE_UNKNOWN:
        tell(Connectivity.READY, unserved=True)
    else:
        tell(Connectivity.TRANSIENT_FAILURE, f"it says {serving.name}{f' of {service!r}' if service else ''}")
