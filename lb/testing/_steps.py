"""The steps of a backend's script: what becomes of one call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import grpc

from lb.core.outcome import PUSHBACK_KEY

Pairs = tuple[tuple[str, str | bytes], ...]


class Gate:
    """Holds calls back until it is opened. It stays open. See `hold`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def open(self) -> None:
        """Let all calls through."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it is open."""
        await self._event.wait()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._event.is_set() else 'shut'}>"


@dataclass(frozen=True, slots=True)
class Step:
    """What one call gets. `echo`, `fail`, `pushback`, `hold` and `hang` make the usual ones.

    Args:
        code: the status that the call ends with.
        details: the words that come with it.
        after: how many messages are handled first: requests read and, if responses are a stream, answered. It does not
            count for calls with one request and one response.
        gate: wait for this one before the end.
        headers: send headers first, even if they are empty.
        initial_metadata: headers to send first.
        trailing_metadata: added to the trailing metadata.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    after: int = 0
    gate: Gate | None = None
    headers: bool = False
    initial_metadata: Pairs = ()
    trailing_metadata: Pairs = ()


def echo(*, headers: bool = False, initial_metadata: Pairs = (), trailing_metadata: Pairs = ()) -> Step:
    """The usual answer.

    Args:
        headers: send headers first, even if they are empty.
        initial_metadata: headers to send first.
        trailing_metadata: added to the trailing metadata.
    """
    return Step(headers=headers, initial_metadata=initial_metadata, trailing_metadata=trailing_metadata)


def fail(
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    details: str = "scripted failure",
    *,
    after: int = 0,
    headers: bool = False,
    initial_metadata: Pairs = (),
    trailing_metadata: Pairs = (),
) -> Step:
    """The call ends with this status.

    Args:
        code: the status code.
        details: the words that come with it.
        after: how many messages are handled first.
        headers: send headers first, even if they are empty.
        initial_metadata: headers to send first.
        trailing_metadata: added to the trailing metadata.
    """
    return Step(
        code,
        details,
        after=after,
        headers=headers,
        initial_metadata=initial_metadata,
        trailing_metadata=trailing_metadata,
    )


def pushback(value: int | str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Step:
    """The call is refused with push-back (gRFC A6).

    Args:
        value: ``grpc-retry-pushback-ms``: milliseconds to wait; below 0, or not a number: do not retry.
        code: the status code.
    """
    return fail(code, f"refused, push-back {value}", trailing_metadata=((PUSHBACK_KEY, str(value)),))


def hold(gate: Gate, then: Step | None = None, *, after: int | None = None) -> Step:
    """The call waits until ``gate`` is open.

    Args:
        gate: what it waits for.
        then: what it gets after that. Default: the echo.
        after: how many messages are handled before it waits. Default: as ``then`` says.
    """
    step = then or Step()
    return replace(step, gate=gate, after=step.after if after is None else after)


def hang(*, after: int = 0, headers: bool = False) -> Step:
    """The call gets no answer: the client has to give up, or the backend to stop.

    Args:
        after: how many messages are handled first.
        headers: send headers first.
    """
    return Step(gate=Gate(), after=after, headers=headers)
