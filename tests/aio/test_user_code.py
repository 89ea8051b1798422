"""What a user hands in may be wrong: metadata, a policy, a strategy, a resolver. The call ends, and says so."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import textwrap
from typing import Any

import grpc
import pytest

import lb
from lb.aio.calls import logical_call
from lb.core.policies import base as policies_base
from lb.core.words import TABLE, Meaning
from lb.testing import Backend
from lb.testing.backend import fail
from tests.aio.kit import (
    HANGS_S,
    KINDS,
    NO_BREAKER,
    UU,
    Kind,
    Told,
    channel_to,
    endpoints,
    failure,
    in_flight,
    ready,
)
from tests.support.passing_on import passing_on

BAD_METADATA = [((("count", 1),), "a number"), ((("blob-bin", "text"),), "text under a binary key")]


class Broken:
    """A policy whose picker raises."""

    name = "broken"

    def picker(self, candidates: Any, previous: Any) -> Any:
        """Itself."""
        return self

    def pick(self, call: Any, now: Any, rng: Any) -> Any:
        """Raises."""
        raise RuntimeError("the policy is broken")


def broken_strategy(state: Any) -> Any:
    """A tenacity strategy that raises."""
    raise RuntimeError("the strategy is broken")


@pytest.mark.parametrize("metadata", [pytest.param(m, id=name) for m, name in BAD_METADATA])
async def test_metadata_that_can_not_be_sent_leaves_nothing_in_flight(
    backend: Backend, kind: Kind, metadata: Any
) -> None:
    """It raises what grpcio raises; the attempt is given back, so that no load is counted for ever."""
    async with channel_to(backend) as channel:
        await ready(channel, 1)
        call = kind.start(channel, metadata=metadata)
        with pytest.raises(TypeError):
            async with asyncio.timeout(HANGS_S):
                await kind.responses(call)
        left = in_flight(channel)
        call.cancel()
        assert left == 0


async def test_a_metadata_key_that_is_not_allowed_leaves_nothing_in_flight(backend: Backend) -> None:
    """The same where core itself refuses the metadata."""
    async with channel_to(backend) as channel:
        await ready(channel, 1)
        call = UU.start(channel, metadata=(("Upper", "x"),))
        with pytest.raises(Exception, match=r"execute_batch|[Mm]etadata"):
            await call
        left = in_flight(channel)
        call.cancel()
        assert left == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_policy_that_raises_ends_the_call_with_its_words(backend: Backend, kind: Kind) -> None:
    """The call has a status that names the culprit; nobody who asks for it waits for ever."""
    async with channel_to(backend, policy=Broken()) as channel:
        call = kind.start(channel)
        async with asyncio.timeout(HANGS_S):
            assert await call.code() is grpc.StatusCode.INTERNAL
            assert "the policy is broken" in await call.details()


class Picks:
    """A policy whose picker is whatever ``make`` makes of the candidates."""

    name = "picks"

    def __init__(self, make: Any) -> None:
        self.make = make

    def picker(self, candidates: Any, previous: Any) -> Any:
        """What the test wants."""
        return self.make(candidates, previous)


class Fixed:
    """A picker that always returns the same."""

    def __init__(self, choice: Any) -> None:
        self.choice = choice

    def pick(self, call: Any, now: Any, rng: Any) -> Any:
        """It."""
        return self.choice


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda c, p: 1 / 0, "division by zero", id="the picker is not made"),
        pytest.param(lambda c, p: None, r"picker\(\) returned None; expected an object with pick", id="no picker"),
        pytest.param(lambda c, p: Fixed(None), r"pick\(\) returned None; expected one of the", id="nothing"),
        pytest.param(lambda c, p: Fixed(c[0].endpoint), r"pick\(\) returned Endpoint", id="an endpoint"),
    ],
)
async def test_a_wrong_policy_fails_every_call_at_once(backend: Backend, make: Any, words: str) -> None:
    """Not only the first one: the next must not wait for a picker that was never made."""
    async with channel_to(backend, policy=Picks(make)) as channel:
        for _ in range(3):
            async with asyncio.timeout(HANGS_S):
                with pytest.raises(grpc.aio.AioRpcError, match=f"the policy picks failed: .*{words}") as failed:
                    await UU.run(channel)
            assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert in_flight(channel) == 0


async def test_a_picker_that_keeps_what_is_gone_is_told(backend: Backend) -> None:
    """The connection of an endpoint that is gone is closed; the call ends with a status all the same."""
    resolver = Told(*endpoints(backend))
    policy = Picks(lambda candidates, previous: previous or Fixed(candidates[0]))
    async with lb.aio.channel(resolver, policy=policy) as channel:
        await UU.run(channel)
        resolver.say(lb.Endpoint(backend.address, id="its successor"))
        await ready(channel, 1)
        with pytest.raises(grpc.aio.AioRpcError, match="which is gone; expected one of the candidates"):
            await UU.run(channel)


async def test_the_smallest_policy_of_the_documentation_works(backend: Backend) -> None:
    """As it stands in the docstring."""
    names: dict[str, Any] = {}
    lines = (policies_base.__doc__ or "").split("own::\n")[1].splitlines()
    example = itertools.takewhile(lambda line: not line or line.startswith("    "), lines)
    exec(textwrap.dedent("\n".join(example)), names)
    async with channel_to(backend, policy=names["First"]()) as channel:
        for _ in range(2):
            await UU.run(channel)
        assert " first " in str(channel.snapshot())


@pytest.mark.parametrize("part", ["retry", "wait", "stop"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_strategy_that_raises_is_told_in_the_log(
    backend: Backend, kind: Kind, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure stands, also where the status arrives outside of any task of the user's."""
    backend.always(fail())
    settings: dict[str, Any] = {"idempotent": () if part == "retry" else (kind.method,), part: broken_strategy}
    retry = lb.Retry(**settings)
    async with channel_to(backend, retry=retry) as channel:
        call = kind.start(channel)
        async with asyncio.timeout(HANGS_S):
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        logical = logical_call(call)
        assert logical is not None
        assert "the strategy is broken" in logical.record.gave_up
        assert "the strategy is broken" in caplog.text
        assert in_flight(channel) == 0


async def test_a_strategy_that_raises_after_a_doubtful_end_is_told_in_the_log(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A server uses the words of a closing connection, so the strategy is asked only when no news of a loss came."""
    async with passing_on({kind.name: kind.method}) as gateway:
        gateway.say(next(words for words in TABLE if words.meaning is Meaning.GIVEN_BACK))
        address = f"static:///{gateway.address}"
        async with lb.aio.channel(address, retry=lb.Retry(retry=broken_strategy)) as channel:
            await ready(channel, 1)
            assert (await failure(kind.start(channel))).code() is grpc.StatusCode.UNAVAILABLE
            assert in_flight(channel) == 0
    told = [record for record in caplog.records if record.exc_info and "the strategy is broken" in record.getMessage()]
    assert [record.name for record in told] == ["lb.channel"]


async def test_a_resolver_that_can_not_start_fails_every_call() -> None:
    """Not only the first one: the next must not wait for a resolver that never began."""

    class Unstartable(Told):
        def start(self, listener: lb.Listener) -> None:
            raise RuntimeError("no way to start")

    async with lb.aio.channel(Unstartable()) as channel:
        for _ in range(2):
            with pytest.raises((RuntimeError, grpc.aio.AioRpcError), match="no way to start"):
                async with asyncio.timeout(HANGS_S):
                    await UU.run(channel)


async def test_a_resolver_whose_start_is_a_coroutine_function_is_told() -> None:
    """Nobody would await it: calls would wait for ever."""

    class Asynchronous(Told):
        async def start(self, listener: lb.Listener) -> None:  # type: ignore[override]
            raise AssertionError("never run")

    async with lb.aio.channel(Asynchronous()) as channel:  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError, match=r"did not start: .*coroutine function"):
            async with asyncio.timeout(HANGS_S):
                await UU.run(channel)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["127.0.0.1:1"], r"update\(\) was given \['127.0.0.1:1'\]; expected an lb.Resolution"),
        (lb.Resolution(("127.0.0.1:1",)), "the endpoint '127.0.0.1:1'; expected an lb.Endpoint"),  # type: ignore[arg-type]
    ],
    ids=["a list", "addresses"],
)
async def test_a_resolver_that_says_something_else_is_told(backend: Backend, said: Any, words: str) -> None:
    """In its own stack; what it said before stands."""
    listeners: list[lb.Listener] = []

    class Keeping(Told):
        def start(self, listener: lb.Listener) -> None:
            listeners.append(listener)
            super().start(listener)

    async with lb.aio.channel(Keeping(*endpoints(backend))) as channel:
        await UU.run(channel)
        with pytest.raises(TypeError, match=words):
            listeners[0].update(said)
        await UU.run(channel)


async def test_an_endpoint_named_twice_is_one(backend: Backend) -> None:
    """One connection, and none left when the channel is closed."""
    twice = endpoints(backend) * 2
    before = _watchers()
    async with lb.aio.channel(Told(*twice), breaker=NO_BREAKER) as channel:
        assert await UU.run(channel) == UU.echo()
        opened = len(_watchers() - before)
    left = _watchers() - before
    for task in left:
        task.cancel()
    assert (opened, len(left)) == (1, 0)


def _watchers() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task.get_name().startswith("lb: watch")}


async def test_the_resolver_does_not_live_in_the_first_calls_context(backend: Backend) -> None:
    """What outlives a call must not hold its context: its trace, its request."""
    variable = contextvars.ContextVar("variable", default="outside")
    seen = []

    class Watching(Told):
        def start(self, listener: lb.Listener) -> None:
            seen.append(variable.get())
            super().start(listener)

    async with lb.aio.channel(Watching(*endpoints(backend))) as channel:
        token = variable.set("inside the first call")
        try:
            await UU.run(channel)
        finally:
            variable.reset(token)
    assert seen == ["outside"]
