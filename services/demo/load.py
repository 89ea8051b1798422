"""The load generator: ``python -m services.demo.load`` places small random orders over HTTP.

``MESH_ORDER_RATE`` orders a second go to the gateway (``MESH_HTTP_HOST``, ``MESH_PORT``), whether or not the
earlier ones have been answered; while the gateway is away it waits, longer each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
from pydantic import Field

from lb.server import Life
from services.runtime.process import run, told_in_one_line
from services.runtime.settings import Settings, load

_MOST_AT_ONCE = 32
_TIMEOUT_S = 10.0
_PRODUCTS_S = 30.0
_REPORT_S = 5.0
# What a mesh that starts may take before an order that fails is worth a word.
_PATIENCE_S = 15.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class LoadSettings(Settings):
    """What the load generator reads."""

    port: int = Field(default=8080, ge=1, le=65535)
    """The gateway's port."""
    http_host: str = "127.0.0.1"
    """Where the gateway is; in compose its name."""
    order_rate: float = Field(default=3.0, ge=0, le=1000)
    """Orders a second; 0 means none."""


class Report:
    """Counts orders, and says in at most one line every five seconds what fails."""

    def __init__(self, say: Callable[[str], None], now: float) -> None:
        self._say = say
        self._placed = 0
        self._failed = 0
        self._reason = ""
        self._since = now
        self._quiet_until = now + _PATIENCE_S

    def ok(self) -> None:
        """An order went through: from now on every failure is news."""
        self._placed += 1
        self._quiet_until = 0.0

    def failed(self, reason: str, now: float) -> None:
        """An order failed."""
        self._failed += 1
        self._reason = reason
        if now >= self._quiet_until and now - self._since >= _REPORT_S:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Say what has failed since the last line, if anything has."""
        if self._failed and now >= self._quiet_until:
            self._say(f"{self._failed} of {self._failed + self._placed} orders failed, the last one: {self._reason}")
        self._placed = self._failed = 0
        self._since = now


class Load:
    """Places orders. ``run`` ends when it is cancelled, and takes its orders with it."""

    def __init__(self, client: httpx2.AsyncClient, rate: float, rng: random.Random, report: Report) -> None:
        self._client = client
        self._rate = rate
        self._rng = rng
        self._report = report
        self._skus: list[str] = []
        self._products_at = float("-inf")
        self.pause_s = 0.0
        """How long the gateway is left alone, in seconds; 0 while it answers."""

    async def run(self) -> None:
        """Start orders at random moments, ``rate`` a second on average."""
        loop = asyncio.get_running_loop()
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                if self.pause_s or loop.time() - self._products_at > _PRODUCTS_S:
                    await self._attempt(self._read_products())
                    if self.pause_s:
                        await asyncio.sleep(self.pause_s)
                        continue
                if self._rate:
                    await asyncio.sleep(self._rng.expovariate(self._rate))
                else:
                    await asyncio.sleep(_PRODUCTS_S)
                    continue
                if len(under_way) < _MOST_AT_ONCE and self._skus:
                    task = asyncio.create_task(self._attempt(self._order()))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work. Note how it went, and how long to leave the gateway alone."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await work
        except _Refused as refusal:
            self._report.failed(str(refusal), now())
            away = refusal.away
        except (httpx2.HTTPError, TimeoutError) as error:
            self._report.failed(f"the gateway does not answer: {error or type(error).__name__}", now())
            away = True
        else:
            away = False
        if not away:
            self.pause_s = 0.0
        else:
            self.pause_s = min(max(self.pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    async def _read_products(self) -> None:
        answer = await self._client.get("/api/products")
        _check(answer, 200)
        self._skus = [product["sku"] for product in answer.json()["products"] if product["stock"] > 0]
        self._products_at = asyncio.get_running_loop().time()

    async def _order(self) -> None:
        skus = self._rng.sample(self._skus, min(len(self._skus), self._rng.randint(1, 3)))
        items = [{"sku": sku, "quantity": self._rng.randint(1, 3)} for sku in skus]
        _check(await self._client.post("/api/orders", json={"items": items}), 201)
        self._report.ok()


class _Refused(Exception):
    """The gateway answered, and not what was hoped for. ``away``: it asks to be left alone."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {detail}")
        self.away = status in (429, 503)


def _check(answer: httpx2.Response, status: int) -> None:
    if answer.status_code == status:
        return
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:200]
    raise _Refused(answer.status_code, detail)


class Process(Life):
    """The load generator's life. Made in a running loop."""

    def __init__(self, settings: LoadSettings) -> None:
        self._client = httpx2.AsyncClient(
            base_url=f"http://{settings.http_host}:{settings.port}", trust_env=False, timeout=_TIMEOUT_S
        )
        report = Report(_say, asyncio.get_running_loop().time())
        self._load = Load(self._client, settings.order_rate, random.Random(time.time_ns()), report)

    async def run(self) -> None:
        """Place orders. Those under way are given up at the end."""
        await self._load.run()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone, and so are we in a moment
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with told_in_one_line("load"):
        settings = load(LoadSettings)
        run(lambda: Process(settings), settings)
