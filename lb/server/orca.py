"""What a server says of its load with each answer (gRFC A51), for clients that balance by it (`lb.Orca`).

::

    server = grpc.aio.server(interceptors=[LoadTrailers(LoadReporter()), ...])

The interceptor counts calls, and puts the latest report into the trailing metadata of each that ends well. It must
come before interceptors that set trailing metadata, and adds to theirs. A handler tells what its call cost by
``cost("rows", 120)``. Nothing here sends initial metadata.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from math import inf
from numbers import Real
from typing import TYPE_CHECKING, Any

from lb.core import checks
from lb.core.orca import KEYS, LoadReport
from lb.server.gate import not_grpcs_own
from lb.shared.asynchronous import behavior_of
from lb.shared.handlers import Around, Behavior

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_log = logging.getLogger("lb.server")

Trailers = tuple[tuple[str, bytes], ...]

_costs: ContextVar[dict[str, float] | None] = ContextVar("orca_costs", default=None)


def counting() -> dict[str, float]:
    """What `cost` is told in this context from now on."""
    costs: dict[str, float] = {}
    _costs.set(costs)
    return costs


def cost(name: str, amount: float) -> None:
    """Add to what the call that runs costs, under that name. Without `LoadTrailers` around it does nothing.

    Raises:
        ValueError: ``amount`` is below 0, not finite or not a number (NaN), or makes the sum infinite.
        TypeError: ``name`` is not a string, or ``amount`` not a number.
    """
    if not isinstance(name, str):
        raise TypeError(f"cost: name is {checks.shown(name)}; expected a string")
    if isinstance(amount, bool) or not isinstance(amount, (int, float, Real)):
        raise TypeError(f"cost: {name} is {checks.shown(amount)}; expected a number >= 0")
    costs = _costs.get()
    spent = 0.0 if costs is None else costs.get(name, 0.0)
    if not (amount >= 0.0 and spent + amount < inf):
        raise ValueError(f"cost: {name} is {amount}; expected a finite number >= 0")
    if costs is not None:
        costs[name] = spent + amount


class LoadReporter:
    """Measures calls a second, failures a second and the processor's use, over spans of ``every_s``.

    Args:
        application: the part in use by the service's own measure, 0 to 1 (above when overloaded); called once per span.
            With None, clients use the processor's use. If it or ``utilization`` raises, nothing is reported, and the
            log says so once.
        utilization: the used parts of other resources by name, 0 to 1, such as the loop's lag; called once per span.
        every_s: length of a span in seconds, > 0. There is no report before the first is over.
        clock: monotonic seconds.
        cpu: seconds of processor time used by this process. One Python process can fill about one processor, so a
            utilization of 1 is one processor.

    Raises:
        ValueError: ``every_s`` is not above 0.
        TypeError: ``every_s`` is not a number, or a measure is not a function.
    """

    def __init__(
        self,
        *,
        application: Callable[[], float] | None = None,
        utilization: Callable[[], Mapping[str, float]] | None = None,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        checks.number("LoadReporter.every_s", every_s, above=True)
        for name, measure in (("application", application), ("utilization", utilization)):
            if measure is not None and not callable(measure):
                raise TypeError(f"LoadReporter.{name} is {checks.shown(measure)}; expected a function or None")
        self.report: LoadReport | None = None
        """The latest."""
        self._application = application
        self._utilization = utilization
        self._every_s = every_s
        self._clock = clock
        self._cpu = cpu
        self._began_at = clock()
        self._used_s = cpu()
        self._calls = 0
        self._failures = 0
        self._encoded = b""
        self._trailers: Trailers = ()
        self._broken = False

    def ended(self, *, failed: bool) -> None:
        """A call ended."""
        self._calls += 1
        self._failures += failed

    def trailers(self, costs: Mapping[str, float] | None = None) -> Trailers:
        """The pairs for the trailing metadata, with what this call cost; none while there is nothing to say."""
        now = self._clock()
        if now - self._began_at >= self._every_s:
            self._renew(now)
        if not costs:
            return self._trailers
        # Two messages behind each other are one with the fields of both.
        encoded = self._encoded + LoadReport(request_cost=costs).encode()
        return tuple((key, encoded) for key in KEYS)

    def _renew(self, now: float) -> None:
        """Measure. A measure of the user's that raises costs the report, and no call."""
        used_s = self._cpu()
        try:
            self.report = self._measured(now - self._began_at, used_s)
            self._encoded = self.report.encode()
            self._broken = False
        except Exception as error:  # noqa: BLE001 - whatever it is, the handler's answer is worth more
            self.report, self._encoded = None, b""
            if not self._broken:
                _log.error("LoadReporter: there is no report of the load until it can be measured", exc_info=error)
            self._broken = True
        encoded = self._encoded
        self._trailers = tuple((key, encoded) for key in KEYS) if encoded else ()
        self._began_at, self._used_s = now, used_s
        self._calls = self._failures = 0

    def _measured(self, span: float, used: float) -> LoadReport:
        return LoadReport(
            cpu_utilization=max(0.0, used - self._used_s) / span,
            application_utilization=max(0.0, self._application()) if self._application is not None else 0.0,
            qps=self._calls / span,
            eps=self._failures / span,
            utilization=self._utilization() if self._utilization is not None else {},
        )

    def __repr__(self) -> str:
        return f"<LoadReporter {self.report or 'nothing measured yet'}>"


def check_reporter(what: str, given: object, expected: str = "a LoadReporter") -> None:
    """Raises ``TypeError`` if this is none: it would break each call."""
    if not isinstance(given, LoadReporter):
        raise TypeError(f"{what} is {checks.shown(given)}; expected {expected}")


class LoadTrailers(Around):
    """Puts a reporter's reports into the trailing metadata of calls that end well.

    Args:
        reporter: what is reported.
        counts: which methods (``/package.Service/Method``) are counted and carry a report. By default all but gRPC's
            own, such as health checks.
    """

    def __init__(self, reporter: LoadReporter, *, counts: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        check_reporter("LoadTrailers.reporter", reporter)
        self._reporter = reporter
        self._counts = counts or not_grpcs_own

    def concerns(self, method: str) -> bool:
        """See ``counts``."""
        return self._counts(method)

    def around(self, method: str, handler: Handler) -> Behavior:
        """Count a call, and report if it ended well."""
        behavior = behavior_of(handler)
        reporter = self._reporter

        async def unary(request: Any, context: Any) -> Any:
            costs = counting()
            try:
                response = await behavior(request, context)
            except BaseException:
                reporter.ended(failed=True)
                raise
            reporter.ended(failed=False)
            if trailers := reporter.trailers(costs):
                _add(context, trailers)
            return response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            costs = counting()
            failed = True
            try:
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
                failed = False
            finally:
                reporter.ended(failed=failed)
            if trailers := reporter.trailers(costs):
                _add(context, trailers)

        return stream if handler.response_streaming else unary


def _add(context: Any, trailers: Trailers) -> None:
    before = context.trailing_metadata()
    context.set_trailing_metadata((*before, *trailers) if before else trailers)
