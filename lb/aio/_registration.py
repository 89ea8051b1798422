"""An instance's entry in Consul, and how it is kept there.

::

    async with lb.aio.registration("catalog", address="10.0.0.7:50051", id="catalog-1", weight=2) as registration:
        ...
        await registration.set_weight(5)  # in place: the check keeps its status
        ...
        await registration.drain()  # no new calls
        await asyncio.sleep(1)  # clients notice
    # gone from Consul

A server serves although Consul is away: registering is tried again until it works, and the log says so once. Every
``reassert_s`` seconds the agent is asked whether it still knows the instance. An agent that restarted may have
forgotten it (consul#4955). Then the instance is registered again, with the last status of its check, so that clients
lose nothing. `lb.core.presence` decides what has to be done; `lb.aio._place` sends requests and takes them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lb.aio._consul import AgentClient, ConsulError, agents_from, load
from lb.aio._place import REQUEST_S, WRITE_S, Place
from lb.core import checks
from lb.core.consul_health import WEIGHT_META, ZONE_META
from lb.core.presence import LEAVING, Presence, Step
from lb.core.target import join_host_port, split_host_port

_log = logging.getLogger("lb.consul")

_BAD_REQUEST = 400
_MAX_WEIGHT = 65535
# Consul: "the minimum timeout is 1 minute".
_DEREGISTER_LEAST_S = 60.0
# A server may listen on these, but no client can connect to them.
_WILDCARDS = ("0.0.0.0", "::", "*")
_STATUSES = ("critical", "warning", "passing")


class Registration:
    """An instance registered in Consul, as `registration` returns it. Enter it once.

    Entering raises a ``ValueError`` if Consul refuses the registration as invalid (HTTP 400), and a ``RuntimeError`` if
    it was entered before.
    """

    def __init__(self, presence: Presence, consul: str | None, reassert_s: float) -> None:
        self._presence = presence
        self._reassert_s = reassert_s
        self._agents = agents_from(consul)
        self._places: list[Place] = []
        self._entered = False
        self._current = 0
        self._registered = False
        self._refusal: ValueError | None = None
        self._remarked = ""
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The instance's id in Consul."""
        return self._presence.id

    @property
    def weight(self) -> int:
        """Its weight while it passes, as last set here or seen in Consul."""
        return self._presence.weight

    @property
    def registered(self) -> bool:
        """Whether the agent had this instance when it was last asked."""
        return self._registered

    async def wait_registered(self) -> None:
        """Wait until the instance is registered. Limit it with ``asyncio.timeout``.

        Raises:
            ValueError: Consul refuses the registration as invalid.
            RuntimeError: the block was left, or not entered.
        """
        while not self._registered:
            if self._refusal is not None:
                raise self._refusal
            if not self._entered or self._leaving.is_set():
                when = "after" if self._entered else "before"
                raise RuntimeError(
                    f"registration {self.id}: wait_registered() was called {when} its `async with` block"
                )
            self._news.clear()
            await self._news.wait()

    async def set_weight(self, weight: int, *, warning: int | None = None) -> None:
        """Change the weight. The check keeps its status. If Consul cannot be reached, it is changed once Consul
        answers.

        Args:
            weight: from 0 to 65535.
            warning: the weight while a check is in warning, from 0 to 65535. Default: as it is.

        Raises:
            ValueError: a weight is out of its range.
            TypeError: a weight is not a whole number.
        """
        _check_weight("weight", weight)
        _check_weight("warning", self._presence.warning_weight if warning is None else warning)
        async with self._lock:
            self._presence.set_weight(weight, self._presence.warning_weight if warning is None else warning)
            if self._places and not self._leaving.is_set():
                await self._turn()

    async def drain(self) -> None:
        """Ask for no new calls: put the instance into maintenance, at every agent that may know it.

        Running calls go on. It takes up to 2 s if an agent cannot be reached, and up to 8 s if it answers slowly. Never
        raises.
        """
        await self._stop_asserting()
        await asyncio.gather(*(self._drain(place) for place in self._places if place.sent))

    async def close(self) -> None:
        """Remove the instance from Consul, at every agent. It may be called again. Never raises.

        It takes up to 2 s if an agent cannot be reached, and up to 8 s if it answers slowly. If the caller is
        cancelled, it goes on in the background.
        """
        self._leaving.set()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"lb registration {self.id} leaves")
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Registration:
        """Register. When Consul is away, this returns, and registering is tried again in the background.

        Raises ``ValueError`` when Consul refuses the registration as invalid (HTTP 400), ``RuntimeError`` when it was
        entered before.
        """
        if self._entered:
            raise RuntimeError(f"registration {self.id} was already used; make a new one")
        self._entered = True
        try:
            self._places = [Place(AgentClient(agent), self.id) for agent in self._agents]
            for _ in self._agents:
                async with self._lock:
                    if self._leaving.is_set():
                        break
                    await self._turn()
                if self._refusal is not None:
                    raise self._refusal
                if self._places[self._current].owned:
                    break
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._assert(), name=f"lb registration {self.id}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _assert(self) -> None:
        while not self._leaving.is_set():
            try:
                async with asyncio.timeout(self._reassert_s):
                    await self._leaving.wait()
            except TimeoutError:
                async with self._lock:
                    await self._turn()

    async def _stop_asserting(self) -> None:
        self._leaving.set()
        self._registered = False
        self._news.set()
        # This may interrupt a turn. The requests that it sent go on; whoever stops asserting leaves the agents next.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _turn(self) -> None:
        """Look at the agent, and put back what is missing. Never raises."""
        place = self._places[self._current]
        step = Step(gives_way=True)
        try:
            step = await self._put_back(place)
        except Exception as error:  # noqa: BLE001  # a bug, here or in py-consul: the instance must stay registered
            if not self._leaving.is_set():
                self._failed(place, error)
        else:
            if place.well():
                _log.info("%s: Consul is back", self.id)
            self._refusal = None
        self._registered = place.owned and not step.gives_way and not self._leaving.is_set()
        self._news.set()
        for other in self._places:
            # Registered elsewhere meanwhile: leave the agent that could not be reached, once it can.
            if self._registered and other is not place and other.sent and not other.leaving:
                other.begin_to_leave(self._leave_behind(other))

    async def _put_back(self, place: Place) -> Step:
        await place.answered(REQUEST_S)
        token = place.client.token()
        known = await place.look()
        step = self._presence.step(known, owned=place.owned, rotated=place.owned and token != place.token)
        self._remark(step.remark)
        if self._leaving.is_set():
            return step
        if step.body is not None:
            await place.register(step.body)
            self._presence.registered()
            _log.info("%s: %s (%r)", self.id, step.words, self._presence)
        if step.maintenance is not None and not self._leaving.is_set():
            await place.maintenance(step.maintenance)
        return step

    def _failed(self, place: Place, error: Exception) -> None:
        self._current = (self._current + 1) % len(self._places)
        ours = isinstance(error, ConsulError)
        words = str(error) if ours else f"consul {place.name}: {error!r}"
        status = error.status if isinstance(error, ConsulError) else None
        if status == _BAD_REQUEST:
            self._refusal = ValueError(f"registration: {self.id} is refused: {words}")
        # The same trouble is told once, though its words may differ each time (a request's id).
        if place.ill(status or words):
            _log.warning("%s: %s; trying again", self.id, words, exc_info=None if ours else error)

    def _remark(self, remark: str) -> None:
        if remark and remark != self._remarked:
            _log.warning("%s: %s", self.id, remark)
        self._remarked = remark

    async def _drain(self, place: Place) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                known = await place.look()
                await place.answered(WRITE_S)
                if known is None:
                    known = await place.look()
                if self._presence.ours(known):
                    await place.maintenance(LEAVING, within_s=WRITE_S)
        except (ConsulError, TimeoutError) as error:
            _log.warning("%s: cannot tell Consul that this instance is leaving: %s", self.id, self._why(place, error))

    async def _leave_behind(self, place: Place) -> None:
        with contextlib.suppress(ConsulError):  # the next turn tries again
            await self._leave(place)

    async def _leave(self, place: Place) -> None:
        if await place.leave(self._presence.ours):
            _log.info("%s: deregistered", self.id)

    async def _leave_last(self, place: Place) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await self._leave(place)
        except (ConsulError, TimeoutError) as error:
            why = self._why(place, error)
            _log.warning("%s: cannot deregister (Consul removes it once its check fails): %s", self.id, why)

    def _why(self, place: Place, error: Exception) -> str:
        return str(error) or f"consul {place.name}: no answer within {WRITE_S:g} s"

    async def _close(self) -> None:
        await self._stop_asserting()
        try:
            await asyncio.gather(*(self._leave_last(place) for place in self._places if place.sent))
        finally:
            places, self._places = self._places, []
            for place in places:
                await place.close()

    def __repr__(self) -> str:
        return f"Registration({self._presence!r}, {'registered' if self.registered else 'not registered'})"


def registration(
    service: str,
    *,
    address: str,
    id: str | None = None,
    weight: int = 1,
    warning_weight: int = 1,
    tags: Sequence[str] = (),
    meta: Mapping[str, str] | None = None,
    zone: str = "",
    tagged_addresses: Mapping[str, str] | None = None,
    check: str | None = "grpc",
    check_interval_s: float = 1.0,
    check_tls: bool = False,
    deregister_after_s: float | None = _DEREGISTER_LEAST_S,
    consul: str | None = None,
    status: str = "critical",
    reassert_s: float = 1.0,
) -> Registration:
    """Register an instance in Consul. Use it as an async context manager: the instance is registered inside the block.

    If Consul cannot be reached, entering the block does not fail: the instance is registered as soon as Consul answers.
    The log ``lb.consul`` says so, and `Registration.registered` tells whether it is registered.

    Args:
        service: the name of the service, as clients write it (``consul:///NAME``).
        address: ``host:port`` at which clients and Consul's agent can reach the instance.
        id: the instance's id, unique on its agent. Default: ``SERVICE-HOST-PORT``.
        weight: its share of the calls while its check passes, from 0 to 65535. 0: none while others are there.
        warning_weight: its share while a check is in warning, from 0 to 65535.
        tags: Consul tags (``consul:///NAME?tag=``).
        meta: metadata, strings by name. The name ``weight`` is reserved.
        zone: where the instance runs. It is the metadata ``zone``.
        tagged_addresses: other addresses by their labels, each ``host:port`` or a URL with both. Unless you give
            another one, ``grpc`` is ``grpc://ADDRESS``, which go-kratos uses.
        check: what Consul's agent checks. ``grpc``: ``grpc.health.v1.Health`` for the whole server, which the server
            must serve; ``grpc/NAME``: the same for NAME; ``tcp``; an ``http://`` or ``https://`` URL; or None: nothing,
            the instance always passes.
        check_interval_s: seconds between two checks, > 0.
        check_tls: whether the gRPC check uses TLS.
        deregister_after_s: seconds in critical, >= 60, after which Consul removes the instance. None: never.
        consul: the agent, as ``host:port`` or a URL; several, separated by commas, are tried in turn. Default:
            ``CONSUL_HTTP_ADDR``, or 127.0.0.1:8500.
        status: the check's status before its first run: ``critical``, ``warning`` or ``passing``.
        reassert_s: seconds between two questions whether the agent still knows the instance, > 0. If it does not, the
            instance is registered again.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has a wrong type.
        ImportError: Consul's client is not installed (the extra ``consul``).
    """
    load("registration")
    for name, text in (("service", service), ("id", "-" if id is None else id)):
        checks.segment(name, text)
    checks.string("address", address, "host:port")
    host, port = split_host_port(address, where="address")
    if host in _WILDCARDS:
        raise ValueError(f"address is {address!r}; expected host:port at which clients can connect")
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not all(isinstance(tag, str) for tag in tags):
        raise TypeError(f"tags is {checks.shown(tags)}; expected a sequence of strings")
    _check_weight("weight", weight)
    _check_weight("warning_weight", warning_weight)
    for name, seconds in (("check_interval_s", check_interval_s), ("reassert_s", reassert_s)):
        checks.number(name, seconds, above=True)
    checks.flag("check_tls", check_tls)
    if deregister_after_s is not None:
        accepted = f"seconds >= {_DEREGISTER_LEAST_S:g}, or None"
        checks.number("deregister_after_s", deregister_after_s, accepted, least=_DEREGISTER_LEAST_S)
    checks.string("status", status, " or ".join(_STATUSES))
    if status not in _STATUSES:
        raise ValueError(f"status is {checks.shown(status)}; expected {' or '.join(_STATUSES)}")
    checks.string("zone", zone, empty=True)
    metadata = _strings("meta", meta)
    if WEIGHT_META in metadata:
        raise ValueError(f"meta has {WEIGHT_META!r}, which is reserved; expected the argument weight")
    if zone:
        metadata[ZONE_META] = zone
    tagged = {"grpc": f"grpc://{join_host_port(host, port)}"} | _strings("tagged_addresses", tagged_addresses)
    presence = Presence(
        service,
        id or f"{service}-{host}-{port}",
        host,
        port,
        weight=weight,
        warning_weight=warning_weight,
        tags=tags,
        meta=metadata,
        tagged={label: _tagged(label, at) for label, at in tagged.items()},
        check=_definition(check, host, port, check_interval_s, check_tls, deregister_after_s),
        status=status,
    )
    return Registration(presence, consul, reassert_s)


def _strings(name: str, given: Mapping[str, str] | None) -> dict[str, str]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} is {checks.shown(given)}; expected a mapping of string to string")
    for key, value in (given or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} has {checks.shown(key)}: {checks.shown(value)}; expected string to string")
    return dict(given or {})


def _tagged(label: str, at: str) -> dict[str, Any]:
    _, separator, address = at.rpartition("://")
    host, port = split_host_port(address, where=f"tagged_addresses[{label!r}]")
    return {"Address": at if separator else host, "Port": port}


def _check_weight(name: str, weight: int) -> None:
    checks.whole(name, weight, f"a whole number from 0 to {_MAX_WEIGHT}", most=_MAX_WEIGHT)


def _definition(
    check: str | None, host: str, port: int, interval_s: float, tls: bool, deregister_s: float | None
) -> Mapping[str, Any] | None:
    if check is None:
        return None
    accepted = "grpc, grpc/NAME, tcp, an http(s):// URL or None"
    checks.string("check", check, accepted)
    target = join_host_port(host, port)
    kind, _, name = check.partition("/")
    what: dict[str, Any]
    if kind == "grpc":
        what = {"GRPC": f"{target}/{name}" if name else target, "GRPCUseTLS": tls}
    elif check == "tcp":
        what = {"TCP": target}
    elif check.startswith(("http://", "https://")):
        what = {"HTTP": check}
    else:
        raise ValueError(f"check is {check!r}; expected {accepted}")
    what["Interval"] = _duration(interval_s)
    # A busy instance may answer late; a dead one refuses at once.
    what["Timeout"] = _duration(max(2.0, interval_s))
    if deregister_s is not None:
        what["DeregisterCriticalServiceAfter"] = _duration(deregister_s)
    return what


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
