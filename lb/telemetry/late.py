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
        # Not super().__init__: all that it holds are the ids.
        self.sdk = sdk
        self.name = name
        self.kind = kind
        self.ids = ids
        self.parent = parent
        self.attributes = attributes
        self.ended = False
        self.start_ns = time_ns()

    def get_span_context(self) -> SpanContext:
        """Its ids."""
        return self.ids

    def finish(self, error: Status | None = None) -> None:
        """End it, with what its ``attributes`` are by now."""
        if self.ended:
            return
        self.ended = True
        self.sdk.ended(
            self.name,
            self.kind,
            self.ids,
            self.parent,
            self.attributes,
            _UNSET if error is None else error,
            self.start_ns,
            time_ns(),
        )

    def __repr__(self) -> str:
        return f"<Late {self.name!r} {self.ids}>"
