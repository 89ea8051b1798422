"""The faults, one function each: what is broken while 64 calls are in flight, and what that may cost.

A row gets a rig and the seconds its fault lasts, and returns lines of the table, most one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lb
from tests.chaos import cancellations
from tests.chaos.load import TIMEOUT_S, Figures
from tests.chaos.rig import IN_FLIGHT, MOST_IN_FLIGHT, Rig, Told
from tests.support.process import Process
from tests.support.wait import until

_RESETS_S = 0.1
_CHANGES_S = 0.2
_NOTICE_S = 0.3
_TAIL = 1.2
_TIMES_SLOWER = 10
_USUAL_S = 0.04
_TURNS = 3
SLOW: dict[str, dict[str, Any]] = {
    "P2C": {"policy": "p2c"},
    "P2C, hedging": {"policy": "p2c", "hedging": lb.Hedging()},
}
_BACK_S = 1.0
_HEARD_S = 5.0
_AT_ONCE_S = 0.1
_QUICK_S = 0.005
_OUT_S = 2.0
_FAILED = 0.02
_ASKED_AGAIN_S = 10.0
_LOOKS_S = 0.02
_REFUSED = 0.05
_NEW_A_SECOND = 25
"""So many new channels, for each second that a row of them is told to last."""


@dataclass
class Line:
    """One line of the table. ``broken`` names promises that did not hold, ``missed`` goals of speed."""

    row: str
    name: str
    figures: Figures
    driver: str = "asyncio"
    notes: list[str] = field(default_factory=list)
    wanted: int = 0
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def promise(self, kept: bool, otherwise: str) -> None:
        """One more promise; when it is not kept, what happened ``otherwise``."""
        self.wanted += 1
        if not kept:
            self.broken.append(otherwise)

    def goal(self, met: bool, otherwise: str) -> None:
        """One more goal of speed."""
        self.wanted += 1
        if not met:
            self.missed.append(otherwise)


@dataclass(frozen=True)
class Row:
    """One fault: its number in the table, how long it lasts in the full form and in the short one."""

    number: str
    name: str
    run: Callable[[Rig, Row, float], Awaitable[list[Line]]]
    full_s: float = 8.0
    short_s: float = 1.0
    threads: bool = False
    """Whether its calls are blocking ones of `lb.sync`, each in a thread."""
    needs: str = ""
    """The server that it cannot be without, by its name in `tests.support.servers`."""

    @property
    def driver(self) -> str:
        """Who makes the calls."""
        return "threads" if self.threads else "asyncio"


def _line(row: Row, figures: Figures, name: str = "") -> Line:
    """A line with the promise of nearly every row: no call failed."""
    line = Line(row.number, name or row.name, figures, row.driver)
    line.promise(figures.failed == 0, f"{figures.failed} of {figures.calls} calls failed")
    return line


async def healthy(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Nothing is broken: what the other rows are compared with."""
    servers = await rig.servers("abc")
    async with rig.load(await rig.channel(Told(*servers))) as load:
        await load.warm("a", "b", "c")
        load.fault()
        await asyncio.sleep(lasts_s)
    return [_line(row, load.figures)]


async def _signalled(
    rig: Rig, row: Row, lasts_s: float, servers: list[Process], number: signal.Signals, hit: str, **settings: Any
) -> Line:
    async with rig.load(await rig.channel(Told(*servers), **settings)) as load:
        await load.warm(*(server.id for server in servers))
        load.fault(*hit)
        for server in servers:
            if server.id in hit:
                server.signal(number)
        await asyncio.sleep(lasts_s)
    return _line(row, load.figures, f"{row.name}: hedging" if settings else "")


async def killed(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three is gone at once: its connections end."""
    return [await _signalled(rig, row, lasts_s, await rig.servers("abc"), signal.SIGKILL, "a")]


async def stopped(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three hangs: its connections stand, the kernel accepts more, nothing answers."""
    servers = await rig.servers("abc")
    plain = await _signalled(rig, row, lasts_s, servers, signal.SIGSTOP, "a")
    servers[0].signal(signal.SIGCONT)
    return [plain, await _signalled(rig, row, lasts_s, servers, signal.SIGSTOP, "a", hedging=lb.Hedging())]


async def all_but_one(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Four of five are gone at once."""
    return [await _signalled(rig, row, lasts_s, await rig.servers("abcde"), signal.SIGKILL, "abcd")]


async def _proxied(
    rig: Rig, row: Row, lasts_s: float, servers: list[Process], mode: str, every_s: float = 0.0, **settings: Any
) -> Line:
    """The first of the servers is a proxy."""
    proxy = servers[0]
    async with rig.load(await rig.channel(Told(*servers), **settings)) as load:
        await load.warm("a", "b", "c")
        load.fault("a")
        loop = asyncio.get_running_loop()
        end = loop.time() + lasts_s
        await proxy.tell(mode=mode)
        while every_s and loop.time() < end:
            await asyncio.sleep(every_s)
            await proxy.tell(mode=mode)
        await asyncio.sleep(end - loop.time())
    return _line(row, load.figures, f"{row.name}: hedging" if settings else "")


async def _one_behind_a_proxy(rig: Rig) -> list[Process]:
    first, *others = await rig.servers("abc")
    return [await rig.proxy(first), *others]


async def refusing(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three no longer listens, and closed the connections it had."""
    return [await _proxied(rig, row, lasts_s, await _one_behind_a_proxy(rig), "refuse")]


async def black_hole(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """What is sent to one of three vanishes, on the old connection and on new ones."""
    servers = await _one_behind_a_proxy(rig)
    plain = await _proxied(rig, row, lasts_s, servers, "hole")
    await servers[0].tell(mode="pass")
    return [plain, await _proxied(rig, row, lasts_s, servers, "hole", hedging=lb.Hedging())]


async def resets(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """The connection to one of three is reset ten times a second, in the midst of calls."""
    return [await _proxied(rig, row, lasts_s, await _one_behind_a_proxy(rig), "reset", _RESETS_S)]


async def half_failing(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three answers UNAVAILABLE to half its calls."""
    servers = await rig.servers("abc")
    async with rig.load(await rig.channel(Told(*servers))) as load:
        await load.warm("a", "b", "c")
        load.fault("a")
        await servers[0].tell(failing=0.5)
        await asyncio.sleep(lasts_s)
    return [_line(row, load.figures)]


async def ten_times_slower(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three takes ten times as long. The tail must be that of the two others alone."""
    servers = await rig.servers("abc", latency_s=_USUAL_S)
    lines = []
    for name, settings in SLOW.items():
        alone, both = Figures(), Figures()
        channel = await rig.channel(Told(*servers[1:]), **settings)
        whole = await rig.channel(Told(*servers), **settings)
        await servers[0].tell(latency_s=_USUAL_S)
        turns = _TURNS if lasts_s > _TURNS else 1
        for turn in range(turns):  # by turns: a machine that grows slower slows both
            async with rig.load(channel) as load:
                await load.warm()
                load.measure()
                await asyncio.sleep(lasts_s / turns)
            alone.add(load.figures)
            async with rig.load(whole) as load:
                await load.warm()
                load.fault("a")
                if turn == 0:
                    await servers[0].tell(latency_s=_USUAL_S * _TIMES_SLOWER)
                await asyncio.sleep(lasts_s / turns)
            both.add(load.figures)
        line = _line(row, both, f"{row.name}: {name}")
        ratio = both.percentile_ms(99) / alone.percentile_ms(99)
        line.goal(ratio <= _TAIL, f"p99 {ratio:.2f} times the healthy ones'")
        line.notes.append(
            f"{_USUAL_S * 1000:g} ms against {_USUAL_S * _TIMES_SLOWER * 1000:g}; p99 {ratio:.2f} times the"
            f" {alone.percentile_ms(99):.1f} of the healthy ones alone;"
            f" {both.bad / both.calls:.2%} of the calls went to it"
        )
        lines.append(line)
    return lines


async def rolling_restart(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Every instance leaves in order and is followed by another. That must not cost a retry, either."""
    registry = await rig.registry()
    arguments = ("--consul", registry.address, "--notice", _NOTICE_S)
    servers = await rig.servers("abc", *arguments)
    async with rig.load(await rig.channel(f"consul://{registry.address}/echo")) as load:
        await load.warm("a", "b", "c")
        load.measure()
        for server in servers:
            load.hit(server.id)
            server.signal(signal.SIGTERM)
            await server.ended()
            (successor,) = await rig.servers(server.id.upper(), *arguments)
            await load.answer(successor.id, within_s=30)
    line = _line(row, load.figures)
    retries = load.figures.extra["retry"]
    line.goal(retries == 0, f"{retries} retries")
    line.notes.append(registry.kind)
    return [line]


async def consul_gone(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Consul is gone while one instance dies and another is replaced; both are known once it is back."""
    registry = await rig.registry()
    arguments = ("--consul", registry.address, "--notice", 0)
    _dies, leaves, *_ = await rig.servers("abcd", *arguments)
    async with rig.load(await rig.channel(f"consul://{registry.address}/echo")) as load:
        await load.warm("a", "b", "c", "d")
        load.measure()
        await registry.leave()
        await asyncio.sleep(lasts_s / 3)
        load.hit("a")
        await _dies.kill()
        await asyncio.sleep(lasts_s / 3)
        leaves.signal(signal.SIGTERM)
        await leaves.ended()
        await rig.servers("e", *arguments)
        await asyncio.sleep(lasts_s / 3)
        await registry.come_back()
        heard_s = await load.answer("e", within_s=30)
    line = _line(row, load.figures)
    line.notes.append(f"{registry.kind}, gone for {lasts_s:g} s; the new one had a call after {heard_s:.1f} s")
    line.goal(heard_s <= _HEARD_S, f"the new one had no call for {heard_s:.1f} s")
    return [line]


async def consul_empty(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Consul comes back and knows nobody; all register again."""
    registry = await rig.registry()
    await rig.servers("abc", "--consul", registry.address)
    async with rig.load(await rig.channel(f"consul://{registry.address}/echo")) as load:
        await load.warm("a", "b", "c")
        load.measure()
        await registry.forget()
        since = time.monotonic()

        async def all_back() -> bool:
            return await registry.instances() >= {"a", "b", "c"}

        await until(all_back, within_s=30, what="all are registered again")
        again_s = time.monotonic() - since
        await asyncio.sleep(lasts_s)
        await load.answer("a", "b", "c", within_s=30)
    line = _line(row, load.figures)
    line.notes.append(f"{registry.kind}; all registered again after {again_s:.1f} s")
    line.goal(again_s <= _HEARD_S, f"registered again only after {again_s:.1f} s")
    return [line]


async def goaways(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Every server ends each connection after a second (maximum connection age); no call may notice, whatever it is."""
    servers = await rig.servers("abc", "--max-age-ms", 1000)
    lines = []
    for name, settings in (("", {}), ("not idempotent", {"retry": lb.Retry()})):
        async with rig.load(await rig.channel(Told(*servers), **settings)) as load:
            await load.warm("a", "b", "c")
            load.measure()
            await asyncio.sleep(lasts_s)
        lines.append(_line(row, load.figures, name and f"{row.name}, {name}"))
    return lines


async def _breakers(channel: Any, lasts_s: float) -> set[str]:
    """The states of all breakers that were seen in so many seconds."""
    seen: set[str] = set()
    end = time.monotonic() + lasts_s
    while time.monotonic() < end:
        await asyncio.sleep(_LOOKS_S)
        seen |= {endpoint.breaker for endpoint in channel.snapshot().endpoints}
    return seen


async def streams_and_ages(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Servers in Go with five streams a connection and a second of age: most calls wait for a stream when it ends."""
    servers = await rig.go_servers("abc", "--max-streams", 5, "--max-age", "1s")
    lines = []
    for name, settings in (("not idempotent", {"retry": lb.Retry()}), ("idempotent", {})):
        channel = await rig.channel(Told(*servers), **settings)
        async with rig.load(channel, IN_FLIGHT) as load:
            await load.warm("a", "b", "c")
            load.measure()
            seen = await _breakers(channel, lasts_s)
        line = _line(row, load.figures, f"{row.name}, {name}")
        line.promise(seen == {"CLOSED"}, f"breakers {', '.join(sorted(seen))}")
        lines.append(line)
    return lines


async def refused_streams(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """150 callers of one server that refuses streams beyond a hundred."""
    servers = await rig.servers("a", "--max-streams", 100)
    lines = []
    for name, settings in (("idempotent", {}), ("not idempotent", {"retry": lb.Retry()})):
        channel = await rig.channel(Told(*servers), **settings)
        async with rig.load(channel, MOST_IN_FLIGHT) as load:
            await load.warm("a")
            load.measure()
            seen = await _breakers(channel, lasts_s)
        figures = load.figures
        line = _line(row, figures, f"{row.name}, {name}")
        if settings:  # a refusal may be another's: such a call is not sent again, but the limit is learnt
            share = figures.failed / figures.calls
            line = Line(row.number, f"{row.name}, {name}", figures, row.driver)
            line.promise(share < _REFUSED, f"{share:.1%} of the calls failed")
        line.promise(seen == {"CLOSED"}, f"breakers {', '.join(sorted(seen))}")
        lines.append(line)
    return lines


async def new_sets(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Five times a second the set is wholly another one; the servers that left go on serving what they have."""
    one, other = await asyncio.gather(rig.servers("abc"), rig.servers("def"))
    resolver = Told(*one)
    changes = round(lasts_s / _CHANGES_S)
    async with rig.load(await rig.channel(resolver)) as load:
        await load.warm("a", "b", "c")
        load.measure()
        sets: Sequence[Sequence[Process]] = (other, one)
        for change in range(changes):
            now, before = sets[change % 2], sets[1 - change % 2]
            load.heal(*(server.id for server in now))
            load.hit(*(server.id for server in before))
            resolver.say(*now)
            await asyncio.sleep(_CHANGES_S)
    line = _line(row, load.figures)
    line.notes.append(f"{changes} changes")
    return [line]


async def none_alive(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """All die, later one comes back: calls say so at once, and go through at once."""
    servers = await rig.servers("abc")
    channel = await rig.channel(Told(*servers))
    async with rig.load(channel) as load:
        await load.warm("a", "b", "c")
        load.measure()
        await asyncio.gather(*(server.kill() for server in servers))
        await asyncio.sleep(lasts_s)
        call = rig.caller(channel)
        refused = await call(timeout=TIMEOUT_S)
        words, took = refused.words(), refused.took_s
        patient = asyncio.ensure_future(call(timeout=2 * TIMEOUT_S, wait_for_ready=True))
        await servers[0].start()
        listens_at = time.monotonic()
        figures = load.figures
        if load.answered_at < listens_at:
            await load.answer(within_s=30)
        back_s = max(0.0, load.answered_at - listens_at)
        waited = await patient
    line = Line(row.number, row.name, figures, row.driver)
    _refusals(line, figures, f"{took:.3f} s: {words}")
    line.promise("can be reached" in words, f"unclear: {words}")
    line.promise(waited.error is None, f"a call that waits for ready failed: {waited.words()}")
    line.goal(took <= _AT_ONCE_S, f"said only after {took:.3f} s")
    line.goal(back_s <= _BACK_S, f"back only after {back_s:.2f} s")
    line.notes.append(f"error after {took * 1000:.0f} ms; answered again {back_s:.2f} s after the first listens")
    return [line]


async def all_hang(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """All hang with their connections open, later one goes on."""
    servers = await rig.servers("abc")
    async with rig.load(await rig.channel(Told(*servers))) as load:
        await load.warm("a", "b", "c")
        load.measure()
        for server in servers:
            server.signal(signal.SIGSTOP)
        await asyncio.sleep(lasts_s)
        await load.failure(within_s=2 * TIMEOUT_S)
        figures = load.figures
        continued_at = time.monotonic()
        servers[0].signal(signal.SIGCONT)
        await load.answer(within_s=30)
        back_s = load.answered_at - continued_at
    line = Line(row.number, row.name, figures, row.driver)
    # The last attempt of a call has what is left of its time: giving it up sooner could only fail the call early.
    others = figures.codes.keys() - {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    line.promise(not others and figures.failed > 0, f"ended {dict(figures.codes)}")
    late_s = figures.slowest_failure_s - TIMEOUT_S
    line.promise(late_s < _LATE_S, f"ended {late_s:.2f} s after the deadline")
    line.goal(back_s <= _BACK_S, f"back only after {back_s:.2f} s")
    line.notes.append(f"error after {figures.slowest_failure_s:.2f} s; answered again after {back_s:.2f} s")
    return [line]


_LATE_S = 1.0


def _refusals(line: Line, figures: Figures, words: str) -> None:
    """With none alive calls fail, but in order."""
    others = {code: count for code, count in figures.codes.items() if code != "UNAVAILABLE"}
    line.promise(not others and figures.failed > 0, f"ended {dict(figures.codes)}, not UNAVAILABLE {words}")
    slowest = figures.slowest_failure_s
    line.promise(slowest < TIMEOUT_S, f"took until the deadline ({slowest:.2f} s)")


async def cancelled(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Calls of all kinds are given up at random moments. ``lasts_s`` stands for thousands of calls."""
    servers = await rig.servers("abc", latency_s=cancellations.LATENCY_S)
    await servers[1].tell(failing=0.5)
    channel = await rig.channel(Told(*servers), **cancellations.SETTINGS)
    given_up = cancellations.Cancellations(channel, servers, seed=1)
    left = await given_up.run(round(lasts_s * 1000))
    line = Line(row.number, row.name, Figures(latencies_s=given_up.lives_s, extra=given_up.attempts))
    line.promise(not left, "left behind: " + ", ".join(left))
    line.notes += [f"{what} {count}" for what, count in given_up.moments.most_common()]
    return [line]


async def answers_badly(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three is an old build: it answers UNIMPLEMENTED, at once. Nobody retries that; it must be ejected."""
    servers = await rig.servers("abc", latency_s=_QUICK_S)
    lines = []
    for policy in ("weighted_round_robin", "least_request", "p2c"):
        channel = await rig.channel(Told(*servers), policy=policy)

        async def out(channel: Any = channel) -> bool:
            return not next(each for each in channel.snapshot().endpoints if each.id == "a").picked

        async with rig.load(channel) as load:
            await load.warm("a", "b", "c")
            load.fault("a")
            since = time.monotonic()
            await servers[0].tell(failing=1.0, code="UNIMPLEMENTED")
            await until(out, within_s=30, what="the bad one is ejected", every_s=0.01)
            out_s, before = time.monotonic() - since, load.figures.failed
            load.measure()
            await asyncio.sleep(lasts_s)
            figures = load.figures
            since = time.monotonic()
            await servers[0].tell(failing=0.0)
            load.heal("a")
            await load.answer("a", within_s=30)
            back_s = time.monotonic() - since
        line = Line(row.number, f"{row.name}: {policy}", figures, row.driver)
        others = {code: count for code, count in figures.codes.items() if code != "UNIMPLEMENTED"}
        line.promise(not others, f"others ended {others}")
        failed = figures.failed / figures.calls
        line.promise(failed <= _FAILED, f"{failed:.1%} of the calls failed while it was out")
        line.goal(out_s <= _OUT_S, f"ejected only after {out_s:.2f} s")
        line.goal(back_s <= _ASKED_AGAIN_S, f"back only after {back_s:.1f} s")
        line.notes.append(
            f"ejected after {out_s:.2f} s, in which {before} calls failed; then {failed:.2%} failed;"
            f" used again {back_s:.1f} s after it recovered"
        )
        lines.append(line)
    return lines


async def new_beside_one_that_waits(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """The server was away and is back; a channel waits a minute to connect again. New ones must not wait, nor fail."""
    (server,) = await rig.servers("a")
    settings = {"connection": lb.Connection(backoff_s=60, max_backoff_s=60), "retry": lb.Retry()}
    waits = await rig.channel(Told(server), **settings)
    assert (await rig.caller(waits)(timeout=TIMEOUT_S)).error is None
    await server.kill()
    while (await rig.caller(waits)(timeout=TIMEOUT_S)).error is None:
        pass
    await server.start()
    figures = Figures()
    for _ in range(round(lasts_s * _NEW_A_SECOND)):
        figures.count(await rig.caller(await rig.channel(Told(server), **settings))(timeout=TIMEOUT_S))
    return [_line(row, figures)]


async def first_calls(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Many channels of one call each, not idempotent: each of three servers gets its share of them."""
    servers = await rig.servers("abc")
    figures, got = Figures(), Counter[str]()
    for _ in range(round(lasts_s * _NEW_A_SECOND)):
        call = rig.caller(await rig.channel(Told(*servers), retry=lb.Retry()))
        ended = await call(timeout=TIMEOUT_S)
        figures.count(ended)
        got.update(attempt.endpoint_id for attempt in ended.attempts)
    line = _line(row, figures)
    least = min(got[server.id] for server in servers)
    line.promise(least > figures.calls / 10, f"shares {dict(got)}")
    line.notes.append("shares " + ", ".join(f"{name} {count}" for name, count in sorted(got.items())))
    return [line]


async def hanging_up(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three accepts each connection, greets and hangs up: it is connected to at a pace."""
    proxy, *others = await _one_behind_a_proxy(rig)
    line = await _proxied(rig, row, lasts_s, [proxy, *others], "hang up")
    before = (await proxy.tell(mode="hang up"))["taken"]
    since = time.monotonic()
    channel = await rig.channel(Told(proxy, *others))
    async with rig.load(channel) as load:
        await load.warm(*(other.id for other in others))
        await asyncio.sleep(lasts_s)
    took_s = time.monotonic() - since
    taken = (await proxy.tell(mode="hang up"))["taken"] - before
    # Two channels; 0.1 s, 0.2 s, 0.4 s, then 0.5 s, a fifth less at most.
    line.promise(taken <= 2 * (took_s / 0.4 + 5), f"{taken} connections in {took_s:.1f} s")
    line.notes.append(f"{taken / took_s:.1f} connections a second of two channels")
    return [line]


async def dead_addresses(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Six servers, and six addresses that lead nowhere; one server fails all its calls. That one is left out."""
    servers = await rig.servers("abcdef")
    nowhere = [Process(name, "nowhere") for name in "ABCDEF"]
    for at, process in enumerate(nowhere, 1):
        process.port = at  # nobody listens on the first ports
    channel = await rig.channel(Told(*servers, *nowhere))
    async with rig.load(channel) as load:
        await load.warm("a", "b", "c", "d", "e", "f")
        load.fault("a")
        await servers[0].tell(failing=1.0)
        await asyncio.sleep(lasts_s)
        panic = channel.snapshot().panic_reason
    line = _line(row, load.figures)
    line.promise(not panic, f"panic: {panic}")
    return [line]


_ASYNCIO = (
    Row("0", "all healthy", healthy),
    Row("1", "SIGKILL one of three", killed),
    Row("2", "SIGSTOP one of three", stopped, short_s=1.5),
    Row("3", "one refuses connections", refusing),
    Row("4", "black hole", black_hole, short_s=1.5),
    Row("5", "resets in mid-call", resets),
    Row("6", "one fails half its calls", half_failing),
    Row("7", "one ten times slower", ten_times_slower, full_s=12.0),
    Row("8", "rolling restart of all", rolling_restart),
    Row("9", "all but one of five die", all_but_one),
    Row("10", "Consul gone, one dies, one replaced", consul_gone, full_s=60.0, short_s=1.5),
    Row("11", "Consul restarted empty", consul_empty),
    Row("12", "GOAWAY every second", goaways, short_s=1.4),
    Row("13", "all endpoints replaced", new_sets, full_s=10.0, short_s=1.2),
    Row("14", "none alive", none_alive, full_s=4.0),
    Row("15", "all hang", all_hang, full_s=4.0),
    Row("16", "calls cancelled at random", cancelled, full_s=100.0, short_s=3.0),
    Row("17", "five streams a connection, aged 1 s", streams_and_ages, short_s=1.4, needs="gopeer"),
    Row("18", "streams refused beyond 100", refused_streams, short_s=1.0),
    Row("19", "one answers UNIMPLEMENTED at once", answers_badly, full_s=20.0),
    Row("20", "new channels beside one that waits", new_beside_one_that_waits, full_s=4.0),
    Row("21", "one accepts and hangs up", hanging_up),
    Row("22", "channels of one call each", first_calls, full_s=4.0, short_s=2.0),
    Row("23", "six of twelve addresses dead", dead_addresses),
)

# Where the driver has a part. (The other rows are the resolver's and the policy's matter, which both drivers share.)
_IN_THREADS = {"1", "2", "3", "4", "5", "6", "8", "9", "12", "13", "14", "17", "18", "19", "20", "21"}

ROWS = tuple(
    replace(row, threads=threads)
    for row in _ASYNCIO
    for threads in (False, True)
    if not threads or row.number in _IN_THREADS
)
