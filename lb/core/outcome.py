"""How an attempt ended: the table that gives each way to end its meaning.

The ``verdict`` says what it means for the endpoint: `lb.core.judgement` begins with it, and has the rules that go by
more than one call, or by time. ``retryable`` says what it means for the call: `lb.core.retry` begins with that.

====================================  =======  =============
how it ended                          verdict  retried
====================================  =======  =============
OK                                    SUCCESS  never
the caller cancelled, or its own      IGNORED  never
deadline passed (but see the breaker's
``unanswered_s``), or a hedge was faster;
core refused what it asked for: metadata
that is no header, a deadline in 300 years
a hedge was faster by far             IGNORED  never
                                      (counts as a failure in a row)
never found a connection              FAILURE  always
sent on a connection that was closing IGNORED  always, and
(GOAWAY), never processed                      for nothing
the same, says the status, but the    none     as above, once it is;
connection's loss is not seen yet     yet      as any UNAVAILABLE if not
its stream was refused                IGNORED  if idempotent,
(REFUSED_STREAM), says the status              once for nothing
the attempt's own time-out            FAILURE  if idempotent
UNAVAILABLE or RESOURCE_EXHAUSTED     IGNORED  always
with push-back >= 0 (refused before
any work: overload, draining)
push-back < 0 or unreadable           IGNORED  never
UNAVAILABLE (also: the connection     FAILURE  if idempotent
was lost in mid-call)
INTERNAL, UNKNOWN, DATA_LOSS,         FAILURE  never
DEADLINE_EXCEEDED from the server
CANCELLED, not by us (a server that   IGNORED  if idempotent
stops cancels what it never began)
RESOURCE_EXHAUSTED (quota),           IGNORED  never
UNIMPLEMENTED
any other code (the server answered)  SUCCESS  never
====================================  =======  =============

Push-back is ``grpc-retry-pushback-ms`` in the trailing metadata (gRFC A6). An endpoint that refuses all
it is sent is left out in the end: see the breaker's ``refused_s``.

*Compared with the others.* Beside the verdict, which looks at one answer by itself, answers of a server are
compared: OK is a good one, and every other code is a bad one, whatever its verdict, but for quota, for refusals by
push-back, and for what was given back or refused unprocessed. Who answers far worse than the others is left out
until it answers well once more. How far that is stands in `lb.core.comparison`; the setting is the breaker's
``good_ratio``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from grpc import StatusCode

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REPORT_KEY = "lb-endpoint-load-metrics-bin"
"""The trailer with a server's load: gRFC A51's message under a key of our own, since grpcio keeps
``endpoint-load-metrics-bin`` from whoever is not its own policy."""


_LATE_FACTOR = 2.0


class Verdict(enum.Enum):
    """What an outcome says of the endpoint."""

    SUCCESS = "success"
    """It answers: OK, or an error of the caller's, such as NOT_FOUND."""
    FAILURE = "failure"
    """It is in trouble; its breaker counts this."""
    IGNORED = "ignored"
    """Nothing: the caller left, or the endpoint refused the call before any work."""


class Retryable(enum.Enum):
    """Whether the call may be sent again after an outcome."""

    NEVER = "never"
    """It may not."""
    IF_IDEMPOTENT = "if idempotent"
    """It may, if the method is declared idempotent: a server may have seen the call."""
    ALWAYS = "always"
    """It may: no server has begun to work on it."""


class Origin(enum.Enum):
    """Who produced the status."""

    PEER = "peer"
    """The server answered, or the connection was lost: from here the two look alike."""
    UNSENT = "unsent"
    """No connection was found; the server has seen nothing."""
    UNPROCESSED = "unprocessed"
    """The connection was closing (GOAWAY), and the server says that it has not looked at the call."""
    CLOSING = "closing"
    """The status says the same, but a server may pass on such words of a client of its own: it waits for
    the news that the connection was lost."""
    REFUSED = "refused"
    """The server had more streams than it takes (REFUSED_STREAM), says the status. A server may pass on such words
    of a client of its own, and nothing proves that it has not."""
    ATTEMPT_TIMEOUT = "attempt timeout"
    """The attempt's own time-out passed, while the call had time left."""
    LATE = "late"
    """Another attempt of the same call answered in less than half of its time."""
    CALLER = "caller"
    """The caller cancelled, its deadline passed, or what it gave could not be sent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and what follows from it."""

    code: StatusCode
    """The status code."""
    verdict: Verdict
    """What it says of the endpoint."""
    retryable: Retryable
    """Whether another attempt may follow."""
    origin: Origin = Origin.PEER
    """Who produced the status."""
    details: str = ""
    """The words that came with the code."""
    pushback_s: float | None = None
    """Seconds that the server asked to wait (``grpc-retry-pushback-ms``), -1: do not retry; None: it asked nothing."""

    @property
    def refused(self) -> bool:
        """Whether the server refused the call: by push-back, or by refusing its stream."""
        return self.pushback_s is not None or self.origin is Origin.REFUSED

    @property
    def bad(self) -> bool:
        """Whether a server gave a bad answer, for which it is compared with the others (``Breaker.good_ratio``)."""
        return (
            self.origin is Origin.PEER
            and self.code not in _NOT_COMPARED
            and (self.pushback_s is None or self.code is not StatusCode.UNAVAILABLE)
        )

    def reason(self) -> str:
        """In words, for spans and messages: ``UNAVAILABLE: Socket closed``."""
        words = self.code.name
        if self.origin is not Origin.PEER:
            words += f" ({self.origin.value})"
        return f"{words}: {self.details}" if self.details else words


_NOT_COMPARED = (StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED)

LOST = Outcome(StatusCode.CANCELLED, Verdict.IGNORED, Retryable.NEVER, Origin.CALLER, "another attempt was faster")
LATE = Outcome(StatusCode.CANCELLED, Verdict.IGNORED, Retryable.NEVER, Origin.LATE, "another attempt was faster by far")


def lost(ran_s: float, winner_s: float) -> Outcome:
    """The outcome of an attempt of a hedged call that ran for ``ran_s`` when another won after ``winner_s``.

    Losing says little by itself, with a short delay any attempt may lose. Who had twice the winner's
    time is late: several in a row are what a hung or far slower endpoint shows when calls are hedged.
    """
    return LATE if ran_s >= _LATE_FACTOR * winner_s else LOST


OK = Outcome(StatusCode.OK, Verdict.SUCCESS, Retryable.NEVER)
"""The outcome of every call that went well: shared, so the happy path allocates none."""

_BY_CODE = {
    StatusCode.UNAVAILABLE: (Verdict.FAILURE, Retryable.IF_IDEMPOTENT),
    StatusCode.INTERNAL: (Verdict.FAILURE, Retryable.NEVER),
    StatusCode.UNKNOWN: (Verdict.FAILURE, Retryable.NEVER),
    StatusCode.DATA_LOSS: (Verdict.FAILURE, Retryable.NEVER),
    StatusCode.DEADLINE_EXCEEDED: (Verdict.FAILURE, Retryable.NEVER),
    StatusCode.RESOURCE_EXHAUSTED: (Verdict.IGNORED, Retryable.NEVER),
    StatusCode.UNIMPLEMENTED: (Verdict.IGNORED, Retryable.NEVER),
    StatusCode.CANCELLED: (Verdict.IGNORED, Retryable.IF_IDEMPOTENT),
}
_ANSWERED = (Verdict.SUCCESS, Retryable.NEVER)
_INT32 = 2**31 - 1
_REFUSALS = (StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED)


def classify(
    code: StatusCode, *, origin: Origin = Origin.PEER, pushback: str | None = None, details: str = ""
) -> Outcome:
    """The outcome of an attempt, by the table above.

    ``pushback`` is the raw value of ``grpc-retry-pushback-ms``, None when it is absent.
    """
    if code is StatusCode.OK:
        return OK
    pushback_s = None
    if origin is Origin.CALLER:
        verdict, retryable = Verdict.IGNORED, Retryable.NEVER
    elif origin is Origin.UNSENT:
        verdict, retryable = Verdict.FAILURE, Retryable.ALWAYS
    elif origin is Origin.UNPROCESSED:
        verdict, retryable = Verdict.IGNORED, Retryable.ALWAYS
    elif origin in (Origin.CLOSING, Origin.REFUSED):
        verdict, retryable = Verdict.IGNORED, Retryable.IF_IDEMPOTENT
    elif origin is Origin.ATTEMPT_TIMEOUT:
        verdict, retryable = Verdict.FAILURE, Retryable.IF_IDEMPOTENT
    elif pushback is not None and code in _REFUSALS:
        pushback_s = _seconds(pushback)
        verdict, retryable = Verdict.IGNORED, Retryable.NEVER if pushback_s < 0 else Retryable.ALWAYS
    else:
        verdict, retryable = _BY_CODE.get(code, _ANSWERED)
        if pushback is not None:
            pushback_s = _seconds(pushback)
    return Outcome(code, verdict, retryable, origin, details, pushback_s)


def _seconds(pushback: str) -> float:
    """Push-back in seconds; -1 for "do not retry", which an unreadable value means too (gRFC A6)."""
    text = pushback.strip()
    digits = text[1:] if text[:1] in "+-" else text
    if not (digits.isascii() and digits.isdigit()) or text[:1] == "-" or len(digits) > 10 or int(digits) > _INT32:
        return -1.0
    return int(digits) / 1000
