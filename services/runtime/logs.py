"""Logs: one line an event on stderr, JSON unless a person looks at it.

The trace id is read from the current span when an event is logged. It is not bound to a context
variable, for those differ between threads and the event loop.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from services.runtime.settings import LogLevel


def setup(service: str, instance_id: str, level: LogLevel, stream: TextIO | None = None) -> None:
    """Configure structlog and the standard library's logging alike, for the whole process."""
    out = stream or sys.stderr

    def identify(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["service"] = service
        event["instance"] = instance_id
        return event

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        identify,
        add_trace,
    ]
    renderer: list[Processor] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    if out.isatty():
        renderer = [structlog.dev.ConsoleRenderer()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("urllib3", "aiosqlite", "aiohttp", "asyncio", "lb.server"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the trace id of the current span, if there is one."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
    return event
