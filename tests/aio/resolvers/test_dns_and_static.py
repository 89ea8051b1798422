"""The DNS resolver on a scripted name service, the static one, and which target gets which."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from lb.aio.resolvers import StaticResolver, make_resolver
from lb.aio.resolvers.consul import ConsulResolver
from lb.aio.resolvers.dns import DnsResolver, Lookup
from lb.core.endpoint import Endpoint, Resolution
from lb.core.target import parse_target
from tests.aio.conftest import Recorder

NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class Names:
    """A name service: each lookup gets the next answer, the last one for ever."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        """Looks up."""
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Opened:
    """Opens a resolver on scripted names and closes it at the end."""

    def __init__(self) -> None:
        self.resolvers: list[DnsResolver] = []

    def __call__(self, *answers: list[str] | Exception) -> Recorder:
        """A recorder of what the resolver says."""
        return self.on(Names(*answers), refresh_s=0.01)

    def on(self, lookup: Lookup | None = None, host: str = "shop", **times: float) -> Recorder:
        """The same, on a name service that the test made, or on the system's."""
        recorder = Recorder()
        resolver = DnsResolver(host, 1, lookup=lookup, rng=random.Random(1), **times)
        self.resolvers.append(resolver)
        resolver.start(recorder)
        return recorder

    def again(self) -> None:
        """Ask the last one to look up again."""
        self.resolvers[-1].resolve_now()


@pytest.fixture
async def resolve() -> AsyncIterator[Opened]:
    """Opens DNS resolvers."""
    opened = Opened()
    yield opened
    for resolver in opened.resolvers:
        await resolver.close()


async def test_every_record_is_an_endpoint(resolve: Opened) -> None:
    """All addresses, and the changes of later lookups; without a change the last set is confirmed."""
    seen = resolve(["10.0.0.1:1", "10.0.0.2:1"], ["10.0.0.1:1", "10.0.0.2:1"], ["10.0.0.2:1"])
    await seen.ids("10.0.0.1:1", "10.0.0.2:1")
    await seen.ids("10.0.0.2:1")
    assert len(seen.resolutions) == 2
    await seen.until(lambda r: r.confirmed)


async def test_last_good_answer_outlives_failures(resolve: Opened) -> None:
    """A failing name server, and a name gone later, are errors; the set stays, and recovery is told."""
    seen = resolve(["10.0.0.1:1"], TRY_AGAIN, NO_NAME, ["10.0.0.1:1"])
    await seen.until(lambda r: len(r.resolutions) == 2)
    assert seen.errors == ["dns shop: Temporary failure in name resolution", "dns shop: Name or service not known"]
    assert [len(r.endpoints) for r in seen.resolutions] == [1, 1]


async def test_a_name_that_never_was(resolve: Opened) -> None:
    """A misspelt name is an empty set that says why, so that calls fail at once."""
    seen = resolve(NO_NAME)
    await seen.ids()
    assert seen.note == "dns shop: Name or service not known"


@pytest.mark.parametrize("host", ["a" * 70, "shop..example"])
async def test_what_is_no_name_fails_like_one_that_never_was(host: str) -> None:
    """A label is too long, or empty: the system's resolver is not even asked, and calls must not wait for it."""
    recorder = Recorder()
    resolver = DnsResolver(host, 1)
    resolver.start(recorder)
    await recorder.ids()
    assert recorder.note.startswith(f"dns {host}: ")
    await resolver.close()


async def test_name_server_away_at_first(resolve: Opened) -> None:
    """Not being able to ask is an error, and nothing is resolved yet."""
    seen = resolve(TRY_AGAIN, ["10.0.0.1:1"])
    await seen.until(lambda r: r.errors)
    assert seen.resolutions == []
    await seen.ids("10.0.0.1:1")


async def test_logged_on_change_only(resolve: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """The same trouble is in the log once."""
    with caplog.at_level(logging.INFO, "lb.dns"):
        seen = resolve(TRY_AGAIN)
        await seen.until(lambda r: len(r.errors) >= 5)
    assert len(caplog.records) == 1


async def test_the_systems_resolver(listener: Recorder) -> None:
    """Localhost is found, by the real lookup."""
    resolver = make_resolver(parse_target("dns:///localhost:80"))
    assert isinstance(resolver, DnsResolver)
    resolver.start(listener)
    await listener.until(lambda r: {"127.0.0.1:80", "[::1]:80"} & set(r.endpoints or ()))
    await resolver.close()


async def test_resolve_now(resolve: Opened) -> None:
    """A lookup that is asked for comes at once, also in the pause after a failure; nothing is due for an hour."""
    names = Names(["10.0.0.1:1"], ["10.0.0.2:1"], TRY_AGAIN, ["10.0.0.3:1"])
    seen = resolve.on(names, refresh_s=3600, floor_s=0)
    await seen.ids("10.0.0.1:1")
    resolve.again()
    await seen.ids("10.0.0.2:1")
    resolve.again()
    await seen.until(lambda r: r.errors)
    resolve.again()
    await seen.ids("10.0.0.3:1")
    assert names.asked == 4


async def test_asking_often_looks_up_seldom(resolve: Opened) -> None:
    """However often it is asked, and while a lookup runs: the next one waits until the last is ``floor_s`` old."""
    loop = asyncio.get_running_loop()
    at: list[float] = []

    async def ask_while_looking_up(host: str, port: int) -> list[str]:
        at.append(loop.time())
        for _ in range(10):
            resolve.again()
            await asyncio.sleep(0)
        return [f"10.0.0.{len(at)}:1"]

    seen = resolve.on(ask_while_looking_up, refresh_s=3600, floor_s=0.2)
    await seen.ids("10.0.0.3:1")
    assert [later - earlier >= 0.19 for earlier, later in pairwise(at)] == [True, True]


async def test_a_lookup_that_takes_long(resolve: Opened) -> None:
    """It is said, so that calls do not wait for it for ever; the answer counts all the same when it comes."""
    answered = asyncio.Event()

    async def slow(host: str, port: int) -> list[str]:
        await answered.wait()
        return ["10.0.0.1:1"]

    seen = resolve.on(slow, slow_s=0.01)
    await seen.until(lambda r: r.errors)
    assert seen.errors == ["dns shop: no answer in 0.01 s"]
    answered.set()
    await seen.ids("10.0.0.1:1")


async def test_a_lookup_that_never_ends(resolve: Opened) -> None:
    """It is given up for another one."""
    asked = 0

    async def hang_once(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return ["10.0.0.1:1"]

    seen = resolve.on(hang_once, refresh_s=0.01, slow_s=0.01, give_up_s=0.02)
    await seen.ids("10.0.0.1:1")
    assert len(seen.errors) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), KeyError("x"), TimeoutError()]
)
async def test_whatever_a_lookup_raises(resolve: Opened, error: Exception) -> None:
    """The next one comes, and has the answer."""
    seen = resolve(error, ["10.0.0.1:1"])
    await seen.ids("10.0.0.1:1")
    assert [message.startswith("dns shop: ") for message in seen.errors] == [True]


async def test_the_words_of_a_failed_lookup_stand_on_one_line(
    resolve: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and in the calls' errors."""
    with caplog.at_level(logging.WARNING, "lb.dns"):
        seen = resolve(OSError("away\nERROR " + "x" * 1000), ["10.0.0.1:1"])
        await seen.ids("10.0.0.1:1")
    (line,) = caplog.messages
    assert seen.errors == [line]
    assert line.startswith(r"dns shop: away\nERROR xxx")
    assert line.isprintable()
    assert len(line) < 220


async def test_a_listener_that_raises() -> None:
    """Is in the log; the lookups go on."""
    resolver = DnsResolver("shop", 1, refresh_s=0.01, lookup=Names(["10.0.0.1:1"], ["10.0.0.2:1"]))
    recorder = Recorder()
    update = recorder.update

    def raise_once(resolution: Resolution) -> None:
        recorder.update = update  # type: ignore[method-assign]
        raise KeyError("no")

    recorder.update = raise_once  # type: ignore[method-assign]
    resolver.start(recorder)
    await recorder.ids("10.0.0.2:1")
    await resolver.close()


def test_a_busy_executor_delays_no_lookup() -> None:
    """The loop's default executor is the program's: all its threads may be taken."""
    free = threading.Event()

    async def look_up() -> None:
        taken = loop.run_in_executor(None, free.wait, 60)
        recorder = Recorder()
        resolver = DnsResolver("localhost", 1)
        resolver.start(recorder)
        await recorder.until(lambda r: r.resolutions)
        assert not taken.done()
        await resolver.close()

    loop = asyncio.new_event_loop()  # of its own: an executor cannot be taken back
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        try:
            loop.run_until_complete(look_up())
        finally:
            free.set()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


async def test_the_systems_resolver_hangs(resolve: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few threads wait for it and no more; when it answers again, so does the resolver, and they end."""
    hangs = threading.Event()
    asked: list[str] = []

    def hang(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        hangs.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    seen = resolve.on(refresh_s=0.01, slow_s=0.001, give_up_s=0.002)
    try:
        await seen.until(lambda r: "dns shop: 4 lookups hang in the system's resolver" in r.errors)
        assert asked == ["shop"] * 4
    finally:
        hangs.set()
    await seen.ids("10.0.0.1:1")


async def test_close_without_start_and_while_looking_up() -> None:
    """Closing never hangs."""
    never = DnsResolver("shop", 1)
    await never.close()

    async def hang(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    resolver = DnsResolver("shop", 1, lookup=hang)
    resolver.start(Recorder())
    await asyncio.sleep(0)
    await resolver.close()


def test_static() -> None:
    """The endpoints at once."""
    recorder = Recorder()
    resolver = StaticResolver([Endpoint("a:1", weight=2)])
    resolver.start(recorder)
    resolver.close()
    assert recorder.endpoints == {"a:1": Endpoint("a:1", weight=2)}


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("consul:///a", ConsulResolver),
        ("dns:///a:1", DnsResolver),
        ("static:///a:1", StaticResolver),
        ("ipv4:127.0.0.1:1", StaticResolver),
        ("localhost:1", DnsResolver),
        ("dns:a:1", DnsResolver),
        ("127.0.0.1:1", StaticResolver),
        ("dns:///[::1]:1", StaticResolver),
        ("dns://127.0.0.1/a:1", StaticResolver),
        ("unix:/x", StaticResolver),
    ],
)
def test_which_resolver(target: str, kind: type) -> None:
    """Each kind of target has its resolver."""
    assert type(make_resolver(parse_target(target))) is kind
