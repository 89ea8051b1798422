"""A stream of responses on core, in place of the half of ``cygrpc._AioCall`` that carries one."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from typing import Any

from lb.aio._grpcio import AioRpcStatus, cygrpc

_FAIL_FAST: int = cygrpc.InitialMetadataFlags.wait_for_ready_explicitly_set


class ResponseStream:
    """The lower call of a stream of responses, begun on a ``cygrpc._AioCall``; it drives core as that one does.

    But no headers are lost. In ``_AioCall`` the status comes in beside the headers, and when a server sends
    both at once it may be handled first: the headers that follow are then dropped (40 % of them on one CPU).
    Here the status waits for them. So a reader of the status knows whether a response had begun.
    """

    __slots__ = (
        "_call",
        "_ended",
        "_initial_metadata",
        "_status",
        "_waiters",
        "receive_serialized_message",
        "send_receive_close",
        "send_serialized_message",
    )

    def __init__(self, call: Any, ended: Callable[[ResponseStream], None]) -> None:
        self._call = call
        self._ended: Callable[[ResponseStream], None] | None = ended
        self._initial_metadata: tuple[Any, ...] | None = None
        self._status: Any = None
        self._waiters: list[asyncio.Future[None]] = []
        self.receive_serialized_message = call.receive_serialized_message
        self.send_serialized_message = call.send_serialized_message
        self.send_receive_close = call.send_receive_close

    @property
    def core(self) -> Any:
        """The ``cygrpc._AioCall``."""
        return self._call

    def done(self) -> bool:
        """Whether it has its status."""
        return self._status is not None

    async def initial_metadata(self) -> tuple[Any, ...]:
        """The headers, once they are here; empty also for a status that came without."""
        while self._initial_metadata is None:
            await self._change()
        return self._initial_metadata

    async def status(self) -> Any:
        """The status, once it is here."""
        while self._status is None:
            await self._change()
        return self._status

    def cancel(self, details: str) -> None:
        """End it with CANCELLED, at once."""
        self._call.cancel(details)
        self._settle(self._call._status)

    def initiate_unary_stream(
        self, request: bytes, metadata: tuple[Any, ...], context: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Send the request; returns with the headers."""
        return self._initiate(
            (
                cygrpc.SendInitialMetadataOperation(metadata, _FAIL_FAST),
                cygrpc.SendMessageOperation(request, 0),
                cygrpc.SendCloseFromClientOperation(0),
            ),
            None,
            context,
        )

    def initiate_stream_stream(
        self, metadata: tuple[Any, ...], metadata_sent: Callable[[], None], context: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Begin; returns with the headers. ``metadata_sent``: messages may be sent."""
        return self._initiate((cygrpc.SendInitialMetadataOperation(metadata, _FAIL_FAST),), metadata_sent, context)

    async def _initiate(
        self, operations: tuple[Any, ...], metadata_sent: Callable[[], None] | None, context: Any
    ) -> None:
        call, loop = self._call, get_running_loop()
        if context is not None:
            cygrpc.set_instrumentation_context_on_call_aio(call, context)
        loop.create_task(self._await_status())
        failed = False
        try:
            await cygrpc.execute_batch(call, operations, loop)
            if metadata_sent is not None:
                metadata_sent()
        except cygrpc.ExecuteBatchError:  # the status tells why; a server may have answered before it had all
            failed = True
        headers = cygrpc.ReceiveInitialMetadataOperation(0)
        try:
            await cygrpc.execute_batch(call, (headers,), loop)
            pairs = headers.initial_metadata()
        except cygrpc.ExecuteBatchError:
            pairs = ()
        if self._initial_metadata is None:
            self._initial_metadata = pairs
            self._wake()
        if failed:
            await self.status()

    async def _await_status(self) -> None:
        status = cygrpc.ReceiveStatusOnClientOperation(0)
        await cygrpc.execute_batch(self._call, (status,), get_running_loop())
        if self._initial_metadata is None:
            await self.initial_metadata()
        if self._status is None:  # else it was cancelled
            self._settle(
                AioRpcStatus(status.code(), status.details(), status.trailing_metadata(), status.error_string())
            )

    def _settle(self, status: Any) -> None:
        self._status = status
        if self._initial_metadata is None:
            self._initial_metadata = ()
        self._wake()
        ended, self._ended = self._ended, None  # no cycle stays
        if ended is not None:
            ended(self)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
