"""Interceptors that stand next to each other, as one: each one of grpcio's is a coroutine and a look-up for each call.

What stands around a handler is put together once for each handler of a method, and kept. Each piece is an interceptor
by itself, too; this changes only what they cost together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import grpc

from lb.server.admission import Admission
from lb.shared.handlers import Around, Kept, surrounded

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_PLAIN = (Around.intercept_service, Admission.intercept_service)


def joined(interceptors: Iterable[grpc.aio.ServerInterceptor]) -> Iterator[grpc.aio.ServerInterceptor]:
    """The same interceptors in the same order, each run of ours as one. One with an interception of its own stays."""
    for ours, run in groupby(interceptors, lambda each: type(each).intercept_service in _PLAIN):
        if ours:
            yield Chain(tuple(each for each in run if isinstance(each, Around)))
        else:
            yield from run


class _Served:
    """What becomes of the calls of one method with one handler."""

    __slots__ = ("admissions", "looks", "serves")

    def __init__(self, stages: tuple[Around, ...], method: str, handler: Handler) -> None:
        self.serves = handler
        self.looks: list[Around] = []
        self.admissions: list[tuple[Admission, Handler]] = []
        """Each, and what a call gets that it refuses: what stands around it sees that, too."""
        for stage in reversed(stages):  # from inside to outside
            if not stage.concerns(method):
                continue
            self.serves = surrounded(stage, method, self.serves)
            self.admissions = [(each, surrounded(stage, method, refuses)) for each, refuses in self.admissions]
            if isinstance(stage, Admission):
                self.admissions.insert(0, (stage, stage.refuses))
            elif type(stage).look is not Around.look:
                self.looks.append(stage)


class Chain(grpc.aio.ServerInterceptor):
    """``stages`` are from outside to inside."""

    def __init__(self, stages: tuple[Around, ...]) -> None:
        self._stages = stages
        self._kept = Kept(lambda method, handler: _Served(stages, method, handler))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        served = self._kept.of(handler_call_details.method, handler)
        for look in served.looks:
            look.look(handler_call_details)
        for admission, refuses in served.admissions:
            admitted = admission.admits(handler_call_details)
            if admitted is None:
                admitted = await admission.admits_after_waiting(handler_call_details)
            if not admitted:
                return refuses
        return served.serves

    def __repr__(self) -> str:
        return f"<Chain {', '.join(map(repr, self._stages))}>"
