"""Health checks that the embedded agent really performs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import grpc
import grpc.aio

from lb.aio import pulse
from lb.testing._entries import Probe

Report = Callable[[str, str], None]

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1
_OUTPUT_MAX = 4096


class Runner:
    """Performs one check at its interval, the first time at once, and reports (status, output).

    A TTL check is the other way round: it reports critical when :meth:`heard` was not called
    in time.
    """

    def __init__(self, probe: Probe, http: aiohttp.ClientSession, report: Report) -> None:
        self.probe = probe
        self._http = http
        self._report = report
        self._good = self._bad = 0
        self._channel: grpc.aio.Channel | None = None
        self._heard = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"check {probe.kind} {probe.target}")

    def heard(self) -> None:
        """The TTL check was heard of: its time begins anew."""
        self._heard.set()

    def cancel(self) -> None:
        """Reports no more from now on."""
        self._task.cancel()

    async def close(self) -> None:
        """Stops checking."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._channel is not None:
            await self._channel.close()

    async def _run(self) -> None:
        if self.probe.kind == "ttl":
            await self._expire()
        probe = {"grpc": self._grpc, "http": self._get, "tcp": self._connect}[self.probe.kind]
        while True:
            began = time.monotonic()
            self._judge(*await self._bounded(probe()))
            await asyncio.sleep(max(0.0, self.probe.interval_s - (time.monotonic() - began)))

    async def _expire(self) -> None:
        while True:
            self._heard.clear()
            try:
                async with asyncio.timeout(self.probe.interval_s):
                    await self._heard.wait()
            except TimeoutError:
                self._report("critical", "TTL expired")

    def _judge(self, status: str, output: str) -> None:
        """Consul's thresholds: so many in a row before the status changes."""
        if status == "passing":
            self._good, self._bad = self._good + 1, 0
            if self._good < self.probe.success_before_passing:
                return
        elif status == "critical":
            self._good, self._bad = 0, self._bad + 1
            if self._bad < self.probe.failures_before_critical:
                if self._bad < self.probe.failures_before_warning:
                    return
                status = "warning"
        self._report(status, output[:_OUTPUT_MAX])

    async def _bounded(self, probe: Awaitable[tuple[str, str]]) -> tuple[str, str]:
        try:
            async with pulse.timeout(self.probe.timeout_s):
                return await probe
        except TimeoutError:
            return (
                "critical",
                f"{self.probe.kind} check {self.probe.target}: no answer within {self.probe.timeout_s:g} s",
            )
        except (OSError, ValueError, aiohttp.ClientError) as error:
            return "critical", f"{self.probe.kind} check {self.probe.target}: {error or type(error).__name__}"

    async def _grpc(self) -> tuple[str, str]:
        address, _, service = self.probe.target.partition("/")
        if self._channel is None:
            backoff = max(100, min(1000, round(self.probe.interval_s * 1000)))
            self._channel = grpc.aio.insecure_channel(
                address,
                options=[
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.min_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", backoff),
                ],
            )
        # grpc.health.v1.HealthCheckRequest{1: service} and ...Response{1: status}, by hand: the
        # generated messages would be one more dependency.
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_HEALTH)
        try:
            answer = await check(request)
        except grpc.aio.AioRpcError as error:
            code = "".join(word.title() for word in error.code().name.split("_"))
            return "critical", f"rpc error: code = {code} desc = {error.details()}"
        if len(answer) == 2 and answer[0] == 0x08 and answer[1] == _SERVING:
            return "passing", f"gRPC check {self.probe.target}: success"
        return "critical", "gRPC application didn't report service healthy"

    async def _get(self) -> tuple[str, str]:
        probe = self.probe
        async with self._http.request(
            probe.method, probe.target, headers=probe.header, data=probe.body or None, ssl=probe.verify
        ) as answer:
            body = (await answer.content.read(_OUTPUT_MAX)).decode(errors="replace")
        output = f"HTTP {probe.method} {probe.target}: {answer.status} {answer.reason} Output: {body}"
        if 200 <= answer.status < 300:
            return "passing", output
        return "warning" if answer.status == 429 else "critical", output

    async def _connect(self) -> tuple[str, str]:
        host, _, port = self.probe.target.rpartition(":")
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        return "passing", f"TCP connect {self.probe.target}: Success"
