"""The Consul resolver on a real Consul, on the embedded agent, and on a scripted one."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from lb.aio.resolvers.consul import ConsulResolver
from lb.core.target import ConsulTarget, parse_target
from lb.testing import Agent
from tests.aio.conftest import Recorder
from tests.support import doors
from tests.support.consul import Consul, Registry
from tests.support.wait import until

TTL = {"TTL": "60s", "Status": "passing"}

Open = Callable[..., Recorder]


async def met(true: Callable[[], bool], within_s: float = 30.0) -> None:
    """Waits until it is so."""

    async def ask() -> bool:
        return true()

    await until(ask, within_s=within_s, what="the condition", every_s=0.01)


@pytest.fixture
async def watch() -> AsyncIterator[Open]:
    """Opens resolvers for a target, each with a recorder, and closes them all."""
    opened: list[ConsulResolver] = []

    def open(target: str, **settings: Any) -> Recorder:
        parsed = parse_target(target)
        assert isinstance(parsed, ConsulTarget)
        recorder = Recorder()
        opened.append(ConsulResolver(parsed, **settings))
        opened[-1].start(recorder)
        return recorder

    yield open
    for resolver in opened:
        await resolver.close()


async def test_appear_and_vanish_within_200_ms(registry: Registry, service: str, watch: Open) -> None:
    """From the moment Consul was told, or knows by a check, to the endpoint's coming and going: under 200 ms."""
    seen = watch(f"consul://{registry.address}/{service}")
    await seen.ids()
    one, check = f"{service}-1", f"service:{service}-1"
    steps: list[tuple[Callable[[], Awaitable[Any]], tuple[str, ...]]] = [
        (lambda: registry.register(service, one, Check=TTL), (one,)),
        (lambda: registry.put(f"agent/check/fail/{check}", note="ill"), ()),
        (lambda: registry.put(f"agent/check/pass/{check}"), (one,)),
        (lambda: registry.put(f"agent/service/maintenance/{one}", enable="true"), ()),
        (lambda: registry.put(f"agent/service/maintenance/{one}", enable="false"), (one,)),
        (lambda: registry.deregister(one), ()),
    ]
    loop = asyncio.get_running_loop()
    best = [float("inf")] * len(steps)
    # Some rounds, for a pause of the machine is not a pause of ours. The latency counts from
    # before the request, so Consul's own share is in it.
    for _ in range(20):
        for number, (change, ids) in enumerate(steps):
            began = loop.time()
            await change()
            await seen.ids(*ids)
            best[number] = min(best[number], loop.time() - began)
        if max(best) < 0.2:
            break
    logging.getLogger(__name__).info("%s: %s ms", registry.kind, [round(s * 1000) for s in best])
    assert max(best) < 0.2, best
    assert seen.errors == []


async def test_weights_come_live(registry: Registry, service: str, watch: Open) -> None:
    """A weight changed in Consul, a warning with its own weight, and weight 0 by metadata."""
    await registry.register(service, f"{service}-1", weight=2, Check=TTL, Meta={"zone": "z1"})
    seen = watch(f"consul://{registry.address}/{service}")
    await seen.ids(f"{service}-1")

    def weight(wanted: int) -> Callable[[Recorder], bool]:
        return lambda r: r.endpoints is not None and r.endpoints[f"{service}-1"].weight == wanted

    await seen.until(weight(2))
    await registry.set_weight(f"{service}-1", 7)
    await seen.until(weight(7))
    await registry.put(f"agent/check/warn/service:{service}-1")
    await seen.until(weight(1))
    await registry.register(service, f"{service}-1", weight=1, Meta={"weight": "0"})
    await seen.until(weight(0))


async def test_fields(registry: Registry, service: str, watch: Open) -> None:
    """Address, zone and metadata arrive as registered."""
    await registry.register(service, f"{service}-1", "10.1.2.3", 80, Meta={"zone": "z1", "pid": "7"})
    seen = watch(f"consul://{registry.address}/{service}")
    await seen.ids(f"{service}-1")
    assert seen.endpoints is not None
    endpoint = seen.endpoints[f"{service}-1"]
    assert (endpoint.address, endpoint.zone, endpoint.metadata["pid"]) == ("10.1.2.3:80", "z1", "7")


async def test_tags_and_dc(registry: Registry, service: str, watch: Open) -> None:
    """Only instances with all the tags; an unknown datacenter is an error that says so."""
    await registry.register(service, f"{service}-1", Tags=["a", "b"])
    await registry.register(service, f"{service}-2", Tags=["a"])
    both = watch(f"consul://{registry.address}/{service}?tag=b&tag=a&dc=dc1&near=_agent")
    await both.ids(f"{service}-1")
    none = watch(f"consul://{registry.address}/{service}?tag=z")
    await none.ids()
    assert none.note.endswith(f"no service '{service}' with tag z is registered")
    lost = watch(f"consul://{registry.address}/{service}?dc=nowhere")
    await lost.until(lambda r: r.errors)
    assert lost.errors[0] == f"consul {registry.address}: HTTP 500: No path to datacenter"
    assert lost.resolutions == []


async def test_notes_say_why_nothing_is_usable(registry: Registry, service: str, watch: Open) -> None:
    """An unknown service, and one whose instances are all ill, are told apart."""
    seen = watch(f"consul://{registry.address}/{service}")
    await seen.ids()
    assert seen.note == f"consul {registry.address}: no service '{service}' is registered"
    await registry.register(service, f"{service}-1", Check={"TTL": "60s"})
    await seen.until(lambda r: r.note.endswith("has no usable instance: 1 critical"))


async def test_one_watch_for_equal_questions(registry: Registry, service: str, watch: Open) -> None:
    """Channels that ask the same share a task; it ends with the last of them."""

    def tasks() -> int:
        return sum(f"consul watch {service}" in task.get_name() for task in asyncio.all_tasks())

    target = parse_target(f"consul://{registry.address}/{service}")
    assert isinstance(target, ConsulTarget)
    resolvers = [ConsulResolver(target) for _ in range(3)]
    recorders = [Recorder() for _ in resolvers]
    for resolver, recorder in zip(resolvers, recorders, strict=True):
        resolver.start(recorder)
    other = watch(f"consul://{registry.address}/{service}?tag=x")
    await other.ids()
    assert tasks() == 2
    for recorder in recorders:
        await recorder.ids()
    late = ConsulResolver(target)
    late_recorder = Recorder()
    late.start(late_recorder)
    assert late_recorder.endpoints == {}, "a latecomer knows at once what the others know"
    await resolvers[0].close()
    await registry.register(service, f"{service}-1")
    for recorder in (*recorders[1:], late_recorder):
        await recorder.ids(f"{service}-1")
    assert recorders[0].endpoints == {}, "nothing is told after close"
    for resolver in (*resolvers, late):
        await resolver.close()
    assert tasks() == 1


async def test_restarted_empty(own_registry: Registry, service: str, watch: Open) -> None:
    """What Consul forgot is kept, what comes anew is added, the forgotten go after the hold."""
    for number in range(3):
        await own_registry.register(service, f"{service}-{number}", port=number + 1)
    seen = watch(f"consul://{own_registry.address}/{service}", hold_s=3.0)
    await seen.ids(f"{service}-0", f"{service}-1", f"{service}-2")
    await own_registry.kill()
    await seen.until(lambda r: r.errors)
    assert own_registry.address in seen.errors[0]
    await own_registry.start()
    await own_registry.register(service, f"{service}-0", port=1)
    await own_registry.register(service, f"{service}-9", port=9)
    await seen.ids(f"{service}-0", f"{service}-1", f"{service}-2", f"{service}-9")
    await seen.until(lambda r: "2 of 4 instances are missing" in r.note)
    await seen.ids(f"{service}-0", f"{service}-9")
    sets = [{e.id for e in resolution.endpoints} for resolution in seen.resolutions]
    complete = sets.index({f"{service}-{number}" for number in range(3)})
    assert all(f"{service}-0" in ids for ids in sets[complete:]), "what registered again was never away"


async def test_recovery_after_an_outage_is_quick(own_registry: Registry, service: str, watch: Open) -> None:
    """The last good answer outlives Consul; after its return a change is seen soon, however long it was away."""
    await own_registry.register(service, f"{service}-1")
    seen = watch(f"consul://{own_registry.address}/{service}")
    await seen.ids(f"{service}-1")
    await own_registry.kill()
    await seen.until(lambda r: len(r.errors) >= 6)
    assert set(seen.endpoints or ()) == {f"{service}-1"}
    await own_registry.start()
    await own_registry.register(service, f"{service}-2", port=2)
    assert await seen.ids(f"{service}-1", f"{service}-2") < 10  # 2.5 s on a machine that does nothing else


async def test_agent_absent_at_start(listener: Recorder, service: str, watch: Open) -> None:
    """Errors name the agent and the reason until it is there; then the endpoints come."""
    agent = Agent()
    await agent.start()
    address = agent.address
    await agent.stop()
    seen = watch(f"consul://{address}/{service}")
    await seen.until(lambda r: len(r.errors) >= 3)
    assert set(seen.errors) == {f"consul {address}: cannot connect: connection refused"}
    assert seen.resolutions == [], "not resolved is not empty"
    await agent.start()
    try:
        await seen.ids()
    finally:
        await agent.stop()


async def test_index_gone_backwards_without_an_interruption(service: str, watch: Open) -> None:
    """A restored snapshot: removals that come with a lower index are held, later ones are not."""
    async with Agent() as agent:
        registry = Registry()
        registry.url = agent.url
        for number in range(5):
            await registry.register(service, f"{service}-{number}", port=number + 1)
        seen = watch(f"consul://{agent.address}/{service}", hold_s=60.0)
        await seen.until(lambda r: len(r.endpoints or ()) == 5)
        await met(lambda: agent.waiting == 1)
        agent.set_index(1)
        # Before the answer to that is written: the watch hears of both at once.
        doors.registry(agent).deregister(f"{service}-0")
        await seen.until(lambda r: "1 of 5 instances are missing" in r.note)
        await met(lambda: agent.waiting == 1)
        await registry.deregister(f"{service}-1")
        await seen.until(lambda r: f"{service}-1" not in (r.endpoints or ()))
        assert f"{service}-0" in (seen.endpoints or ())


# A scripted agent


class Scripted:
    """Answers each question with the next of ``answers``; the last one for ever. Remembers the questions."""

    words = "slow down"
    headers: Mapping[str, str] = {}
    cut_s = float("inf")
    """For how long a question may wait before it is cut, as by a proxy."""
    pieces_s = 0.0
    """The time between the pieces of an answer."""

    def __init__(self, *answers: tuple[int, int, list[Any]]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, list[str]]] = []
        self.tokens: list[str] = []
        self.times: list[float] = []
        self.url = ""
        self._site = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/health/service/{name}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append({key: request.query.getall(key) for key in request.query})
        self.tokens.append(request.headers.get("X-Consul-Token", ""))
        self.times.append(asyncio.get_running_loop().time())
        last = len(self.answers) == 1
        status, index, body = self.answers[0] if last else self.answers.pop(0)
        if last and request.query.get("index") == str(index):
            wait_s = float(request.query["wait"].removesuffix("ms")) / 1000
            await asyncio.sleep(min(wait_s, self.cut_s))
            if wait_s > self.cut_s:
                return web.Response(status=504, text="upstream timed out")
        headers = {**self.headers} | ({"X-Consul-Index": str(index)} if index else {})
        text = json.dumps(body) if status == 200 else self.words
        if not self.pieces_s:
            return web.Response(status=status, text=text, headers=headers)
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        for at in range(0, len(text), len(text) // 8):
            await response.write(text[at : at + len(text) // 8].encode())
            await asyncio.sleep(self.pieces_s)
        return response

    async def __aenter__(self) -> Scripted:
        await self._site.setup()
        await web.TCPSite(self._site, "127.0.0.1", 0).start()
        self.url = f"127.0.0.1:{self._site.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._site.cleanup()


def entry(id: str, port: int, created: int = 3) -> dict[str, Any]:
    """One healthy instance in Consul's shape."""
    return {
        "Node": {"ID": "n", "Node": "n", "Address": "127.0.0.1"},
        "Service": {"ID": id, "Service": "a", "Address": "", "Port": port, "CreateIndex": created},
        "Checks": [],
    }


async def test_questions_on_the_wire(watch: Open) -> None:
    """No index, the last one, none again after it went backwards; stale, wait, tags and dc each time."""
    a, b = entry("a", 1), entry("b", 2)
    async with Scripted((200, 50, [a, b]), (200, 51, [a, b]), (200, 9, [b]), (200, 9, [b])) as agent:
        seen = watch(f"consul://{agent.url}/a?tag=x&tag=y&dc=d&near=_agent", wait_s=20.0)
        await met(lambda: len(agent.asked) == 5)
        assert [q.get("index") for q in agent.asked] == [None, ["50"], ["51"], None, ["9"]]
        assert all(q["stale"] == [""] for q in agent.asked)
        assert all((q["tag"], q["dc"], q["near"]) == (["x", "y"], ["d"], ["_agent"]) for q in agent.asked)
        assert [q.get("wait") for q in agent.asked] == [None, ["20000ms"], ["20000ms"], None, ["20000ms"]]
        assert len(seen.resolutions) == 2, "a return without a change is no news"
        assert set(seen.endpoints or ()) == {"a", "b"}, "held: the index went backwards"


async def test_pace(watch: Open) -> None:
    """An agent that answers at once for ever is asked twenty times a second."""
    answers = [(200, index, [entry("a", 1)]) for index in range(1, 200)]
    async with Scripted(*answers) as agent:
        seen = watch(f"consul://{agent.url}/a")
        await seen.ids("a")
        await met(lambda: len(agent.times) >= 20)
        assert agent.times[19] - agent.times[0] >= 0.7  # 0.95, but for the first question that may have come late


@pytest.mark.parametrize("status", [429, 503])
async def test_overloaded_agent_is_left_alone(watch: Open, status: int) -> None:
    """429 and 503: the next question comes after a growing wait, without an index; the set stays."""
    full = (200, 5, [entry("a", 1)])
    async with Scripted(full, (status, 0, []), (status, 0, []), full) as agent:
        seen = watch(f"consul://{agent.url}/a")
        await seen.until(lambda r: len(r.resolutions) == 2)
        waits = [after - before for before, after in zip(agent.times[1:3], agent.times[2:4], strict=True)]
        assert 0.25 <= waits[0] < 10
        assert 0.5 <= waits[1] < 10
        assert set(seen.errors) == {f"consul {agent.url}: HTTP {status}: slow down"}
        assert [q.get("index") for q in agent.asked[:4]] == [None, ["5"], None, None]
        assert [set(e.id for e in r.endpoints) for r in seen.resolutions] == [{"a"}, {"a"}]


async def test_an_answer_that_is_not_consuls(watch: Open) -> None:
    """Something else on that port is an error that says so, and no empty service."""
    async with Scripted((200, 0, [])) as agent:
        seen = watch(f"consul://{agent.url}/a")
        await seen.until(lambda r: r.errors)
        assert seen.errors[0] == f"consul {agent.url}: the answer has no X-Consul-Index; is this Consul's HTTP port?"
        assert seen.resolutions == []


async def test_token_from_the_environment(
    watch: Open, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The token travels in the header; a token file wins, and is read anew for each question."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("first\n")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "plain")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    async with Scripted((200, 1, []), (200, 2, []), (200, 3, [entry("a", 1)])) as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", f"http://{agent.url}")
        seen = watch("consul:///a")
        await seen.ids()
        file.write_text("second")
        await seen.ids("a")
        assert (agent.tokens[0], agent.tokens[2]) == ("first", "second")
    monkeypatch.delenv("CONSUL_HTTP_TOKEN_FILE")
    async with Scripted((200, 1, [])) as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        await watch("consul:///a").ids()
        assert agent.tokens[0] == "plain"


async def test_several_agents_in_turn(watch: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that answers is asked; when it goes, the next takes over without a wait."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        port = dead.getsockname()[1]
        async with Scripted((200, 5, [entry("a", 1)])) as second:
            first = Scripted((200, 5, [entry("a", 1)]))
            await first.__aenter__()
            monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{port},{first.url},http://{second.url}")
            seen = watch("consul:///a")
            await seen.ids("a")
            assert (len(first.asked), len(second.asked)) == (2, 0) or len(first.asked) == 1
            await first.__aexit__()
            await seen.until(lambda r: r.note == f"consul {second.url}")
            assert set(seen.endpoints or ()) == {"a"}


async def test_close_without_start() -> None:
    """Closing what was never started does nothing; closing twice neither."""
    resolver = ConsulResolver(ConsulTarget("consul:///a", "a"))
    await resolver.close()
    await resolver.close()


async def test_close_while_it_waits(service: str) -> None:
    """Closing during a blocking query returns at once."""
    async with Agent() as agent:
        resolver = ConsulResolver(ConsulTarget("consul:///a", service, agent=agent.address))
        recorder = Recorder()
        resolver.start(recorder)
        await recorder.ids()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await resolver.close()
        assert loop.time() - began < 10  # its query waits for minutes


async def test_a_listener_that_raises_is_told_on_and_harms_nobody(
    service: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a listener is in the log; it and the others of that watch hear of what comes next."""

    class Broken(Recorder):
        def update(self, resolution: Any) -> None:
            super().update(resolution)
            raise RuntimeError("broken listener")

    async with Agent() as agent:
        registry = Registry()
        registry.url = agent.url
        target = ConsulTarget("consul:///a", service, agent=agent.address)
        resolvers, recorders = [ConsulResolver(target), ConsulResolver(target)], [Broken(), Recorder()]
        with caplog.at_level(logging.ERROR, "lb.consul"):
            for resolver, recorder in zip(resolvers, recorders, strict=True):
                resolver.start(recorder)
            for recorder in recorders:
                await recorder.ids()
            await registry.register(service, f"{service}-1")
            for recorder in recorders:
                await recorder.ids(f"{service}-1")
        for resolver in resolvers:
            await resolver.close()
    assert caplog.text.count("RuntimeError: broken listener") == 2


async def test_what_nobody_expected_ends_no_watch(
    watch: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug on the way to an answer is an error like others: told with its traceback, once, and asked again."""
    client: Any = doors.consul().AgentClient
    broken = client.get
    left = [ZeroDivisionError("a bug")] * 3

    async def get(self: Any, *arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return await broken(self, *arguments, **named)

    monkeypatch.setattr(client, "get", get)
    async with Scripted((200, 5, [entry("a", 1)])) as agent:
        with caplog.at_level(logging.WARNING, "lb.consul"):
            seen = watch(f"consul://{agent.url}/a")
            await seen.ids("a")
    assert seen.errors == [f"consul {agent.url}: ZeroDivisionError('a bug')"] * 3
    assert caplog.text.count("Traceback") == 1


async def test_each_agents_trouble_is_logged_once(
    watch: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two are asked in turn, and both refuse, in other words each time; what is told of one is not told again."""
    ids = itertools.count()
    refusing = [Scripted((403, 0, [])), Scripted((500, 0, []))]
    monkeypatch.setattr(Scripted, "words", property(lambda _: f"refused, request {next(ids)}"))
    async with refusing[0] as one, refusing[1] as two:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", f"{one.url},{two.url}")
        with caplog.at_level(logging.WARNING, "lb.consul"):
            seen = watch("consul:///a")
            await seen.until(lambda r: len(r.errors) >= 6)
    assert [record.message.split("refused")[0] for record in caplog.records] == [
        f"a: consul {one.url}: HTTP 403: ",
        f"a: consul {two.url}: HTTP 500: ",
    ]


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answers_words_stand_on_one_line(
    watch: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Of an error, and of an instance's id: nothing begins a line of its own, and no error fills the log."""
    monkeypatch.setattr(Scripted, "words", "no\nERROR lb.consul: \x1b[31mall is lost" + "x" * 1000)
    async with Scripted((status, 5, [entry("a\nERROR \x1b[31m", 1)])) as agent:
        with caplog.at_level(logging.INFO, "lb.consul"):
            seen = watch(f"consul://{agent.url}/a")
            await seen.until(lambda r: r.errors if status == 500 else r.resolutions)
    (line,) = caplog.messages
    assert line.isprintable()
    assert (r"\x1b[31mall is lostxxx" if status == 500 else r"a\nERROR \x1b[31m=") in line
    assert len(line) < 300


async def test_an_answer_is_read_while_bytes_come(watch: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 instances over a slow line take longer in all than an agent may be silent."""
    monkeypatch.setattr("lb.core.watch._ANSWER_S", 0.6)
    async with Scripted((200, 5, [entry(f"a{n}", n + 1) for n in range(50)])) as agent:
        agent.pieces_s = 0.15
        seen = watch(f"consul://{agent.url}/a")
        await seen.until(lambda r: len(r.endpoints or ()) == 50)
        assert seen.errors == []


async def test_an_agent_that_falls_silent_is_an_error(watch: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of an answer."""
    monkeypatch.setattr("lb.core.watch._ANSWER_S", 0.2)
    async with Scripted((200, 5, [entry("a", 1)])) as agent:
        agent.pieces_s = 2.0
        seen = watch(f"consul://{agent.url}/a")
        await seen.until(lambda r: r.errors)
        assert seen.errors[0] == f"consul {agent.url}: no answer within 0.2 s"


async def test_an_answer_that_came_while_the_client_stood_still_counts(watch: Open) -> None:
    """The loop is held for longer than the agent may be silent; the answer is in the socket already."""
    async with Scripted((200, 5, [entry("a", 1)]), (200, 6, [entry("b", 2)]), (200, 6, [entry("b", 2)])) as agent:
        loop = asyncio.get_running_loop()
        client = doors.consul().AgentClient(doors.consul().agents_from(agent.url)[0])
        assert (await client.get("/v1/health/service/a", timeout_s=0.3)).status == 200
        asking = asyncio.create_task(client.get("/v1/health/service/a", timeout_s=0.3))
        await met(lambda: len(agent.asked) == 2)
        loop.call_soon(time.sleep, 0.5)
        assert (await asking).status == 200
        await client.close()


@pytest.mark.alone  # the log tells how long a question waited, to a tenth of a second
async def test_a_proxy_that_cuts_waiting_questions(
    watch: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log; from then on questions wait less long, and no error is told at all."""
    monkeypatch.setattr("lb.core.watch._CUT_LEAST_S", 0.2)
    async with Scripted((200, 5, [entry("a", 1)])) as agent:
        agent.cut_s = 0.4
        with caplog.at_level(logging.WARNING, "lb.consul"):
            seen = watch(f"consul://{agent.url}/a")
            await met(lambda: len(agent.asked) >= 8)
        waits = [float(q["wait"][0].removesuffix("ms")) / 1000 if "wait" in q else None for q in agent.asked]
        assert waits[:5] == [None, 30.0, None, 30.0, None]
        assert all(wait is not None and wait < 0.4 for wait in waits[5:])
        assert seen.errors == []
        assert len(seen.resolutions) == 1
    assert len(caplog.records) == 1
    assert "probably a proxy, ends requests after 0.4 s" in caplog.text


async def test_what_the_token_may_not_read(watch: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Consul says 200, and in a header that it filtered: nothing read is an error, less than before removes nobody."""
    filtered = {"X-Consul-Results-Filtered-By-ACLs": "true"}
    a, b = entry("a", 1), entry("b", 2)
    async with Scripted((200, 5, [a, b])) as agent:
        with caplog.at_level(logging.WARNING, "lb.consul"):
            seen = watch(f"consul://{agent.url}/a", wait_s=0.2)
            await seen.ids("a", "b")
            agent.headers, agent.answers = filtered, [(200, 6, [b])]
            await seen.until(lambda r: "cannot read 1 of 2" in r.note)
            agent.answers = [(200, 7, [])]
            await seen.until(lambda r: len(r.errors) >= 3)
            assert set(seen.endpoints or ()) == {"a", "b"}
            agent.headers, agent.answers = {}, [(200, 8, [b])]
            await seen.ids("b")
    assert [record.message.split(": ", 1)[1][:40] for record in caplog.records] == [
        "Consul's ACLs hide instances from this t",
        f"consul {agent.url}: Consul's ACLs let this token"[:40],
    ]
    assert all("needs service:read for the service and node:read" in record.message for record in caplog.records)


async def test_ids_that_clash_are_said_once(watch: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Two ids at one address, one id on two nodes: one line each, however often the set changes."""
    other = entry("a", 2)
    other["Node"]["Node"] = "m"
    answers = [(200, 5 + n, [entry("a", 1), entry("z", 1), other, entry("c", 9 + n)]) for n in range(4)]
    async with Scripted(*answers) as agent:
        with caplog.at_level(logging.WARNING, "lb.consul"):
            seen = watch(f"consul://{agent.url}/a")
            await seen.until(lambda r: r.endpoints is not None and r.endpoints["c"].address.endswith(":12"))
        assert set(seen.endpoints or ()) == {"a", "a@n", "c"} or set(seen.endpoints or ()) == {"a", "a@m", "c"}
    assert len(caplog.records) == 2


@pytest.mark.consul
async def test_one_id_on_two_nodes_of_a_cluster(two_nodes: tuple[Consul, Consul], service: str, watch: Open) -> None:
    """The instance that was there keeps its id when another node has one too, and when that one leaves again."""
    server, client = two_nodes
    await client.register(service, f"{service}-1", port=1, Check=TTL)
    seen = watch(f"consul://{server.address}/{service}")
    await seen.ids(f"{service}-1")
    await server.register(service, f"{service}-1", port=2, Check=TTL)
    await seen.ids(f"{service}-1", f"{service}-1@test")
    assert (seen.endpoints or {})[f"{service}-1"].address == "127.0.0.1:1"
    await server.deregister(f"{service}-1")
    await seen.ids(f"{service}-1")
    await client.deregister(f"{service}-1")


async def test_names_mind_no_case(registry: Registry, service: str, watch: Open) -> None:
    """A service is found in any spelling, as in Consul, and changes are seen."""
    await registry.register(service.title(), f"{service}-1")
    seen = watch(f"consul://{registry.address}/{service.upper()}")
    await seen.ids(f"{service}-1")
    await registry.register(service, f"{service}-2", port=2)
    await seen.ids(f"{service}-1", f"{service}-2")


async def test_consuls_client_is_loaded_when_the_channel_is_made() -> None:
    """Not at the first call: the import takes up to a second, in which the loop would stand still."""
    words = """
import asyncio, sys
import lb
assert "aiohttp" not in sys.modules and "consul" not in sys.modules
async def main():
    async with lb.aio.channel("consul:///a"):
        assert "aiohttp" in sys.modules and "consul" in sys.modules
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", words)
    assert await asyncio.wait_for(child.wait(), 60) == 0
