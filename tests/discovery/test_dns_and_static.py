"""The DNS resolver on a scripted name service, the static one, and which target gets which."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator

import pytest

from lb.aio.resolvers import ConsulResolver, DnsResolver, StaticResolver, make_resolver
from lb.core.endpoint import Endpoint
from lb.core.target import parse_target
from tests.discovery.conftest import Recorder

NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class Names:
    """A name service: each lookup gets the next answer, the last one for ever."""

    def __init__(self, *answers: list[str] | OSError) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        """Looks up."""
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


class Opened:
    """Opens a resolver on scripted names and closes it at the end."""

    def __init__(self) -> None:
        self.resolvers: list[DnsResolver] = []

    def __call__(self, *answers: list[str] | OSError) -> Recorder:
        """A recorder of what the resolver says."""
        recorder = Recorder()
        resolver = DnsResolver("shop", 1, refresh_s=0.01, lookup=Names(*answers), rng=random.Random(1))
        self.resolvers.append(resolver)
        resolver.start(recorder)
        return recorder


@pytest.fixture
async def resolve() -> AsyncIterator[Opened]:
    """Opens DNS resolvers."""
    opened = Opened()
    yield opened
    for resolver in opened.resolvers:
        await resolver.close()


async def test_every_record_is_an_endpoint(resolve: Opened) -> None:
    """All addresses, and the changes of later lookups; no news without a change."""
    seen = resolve(["10.0.0.1:1", "10.0.0.2:1"], ["10.0.0.1:1", "10.0.0.2:1"], ["10.0.0.2:1"])
    await seen.ids("10.0.0.1:1", "10.0.0.2:1")
    await seen.ids("10.0.0.2:1")
    assert len(seen.resolutions) == 2


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
        ("localhost:1", StaticResolver),
        ("unix:/x", StaticResolver),
    ],
)
def test_which_resolver(target: str, kind: type) -> None:
    """Each kind of target has its resolver."""
    assert type(make_resolver(parse_target(target))) is kind
