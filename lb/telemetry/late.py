"""A span that is made at its end.

Until then it is ids, a start and a few attributes. At its end it becomes what the SDK's own would have become by then,
a ``ReadableSpan``, and goes to the span processors. An exporter cannot tell the difference. It saves the work that
the SDK does for the sake of those who might look at a span or write to it meanwhile: locks, copies, checks of values.

`lb` makes its spans so when nobody does: see ``Sdk.unwatched``.
"""

from __future__ import annotations

from time import time_ns
from typing import Any

from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode

from lb.telemetry._opentelemetry import Sdk

_UNSET = Status(StatusCode.UNSET)


class Late(NonRecordingSpan):
    """For everybody but `lb` it is a span that has ids and takes nothing: other spans can begin under it."""

    def __init__(
        self,
        sdk: Sdk,
        name: str,
        kind: SpanKind,
        ids: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
    ) -> None:
        super().__init__(ids)
        self.sdk = sdk
        self._name = name
        self._kind = kind
        self._parent = parent
        self._attributes = attributes
        self._ended = False
        self._start_ns = time_ns()

    def finish(self, attributes: dict[str, Any], status: Status | None) -> None:
        """End it, with these attributes added."""
        if self._ended:
            return
        self._ended = True
        self.sdk.ended(
            self._name,
            self._kind,
            self.get_span_context(),
            self._parent,
            {**self._attributes, **attributes},
            _UNSET if status is None else status,
            self._start_ns,
            time_ns(),
        )

    def __repr__(self) -> str:
        return f"<Late {self._name!r} {self.get_span_context()}>"
