"""How an attempt ended, and what that means: the table of verdicts.

The *verdict* says what it means for the endpoint; `lb.core.judgement` adds the rules that look at more than one call,
or at the time. *Retried* says what it means for the call; `lb.core.retry` adds attempts, budget and a user's strategy.

=========================================  =======  ==========================
how it ended                               verdict  retried
=========================================  =======  ==========================
OK                                         SUCCESS  never
the caller cancelled, or its own deadline  IGNORED  never
passed (but see ``Breaker.unanswered_s``)
grpcio did not send the call: metadata     IGNORED  never
or a deadline that is not valid
a hedge was faster (by far: this counts    IGNORED  never
into the failures in a row)
no connection was found                    FAILURE  always
the connection was closing (GOAWAY), and   IGNORED  always, and without budget
the server has not looked at the call
GOAWAY, says the status, but the           a few    as above if it closed,
connection has not been seen to close      ms later else as UNAVAILABLE
the stream was refused (REFUSED_STREAM),   IGNORED  if idempotent,
says the status                                     once without budget
the attempt's own timeout passed           FAILURE  if idempotent
UNAVAILABLE or RESOURCE_EXHAUSTED with     IGNORED  always
push-back >= 0: refused before any work
push-back < 0, or unreadable               IGNORED  never
UNAVAILABLE, also when the connection was  FAILURE  if idempotent
lost in the middle of the call
INTERNAL, UNKNOWN, DATA_LOSS, or           FAILURE  never
DEADLINE_EXCEEDED from the server
CANCELLED from the server: one that stops  IGNORED  if idempotent
cancels calls that it has not begun
RESOURCE_EXHAUSTED (quota), UNIMPLEMENTED  IGNORED  never
any other code: the server has answered    SUCCESS  never
=========================================  =======  ==========================

Push-back is ``grpc-retry-pushback-ms`` in the trailing metadata (gRFC A6). An endpoint that refuses every call is
ejected in the end (``Breaker.refused_s``).

**Compared with the others.** The verdict looks at one answer. Beside it, the endpoints' answers are compared: OK is a
good answer, and every other code is a bad one, whatever its verdict. Quota, push-back, and calls that a server has not
looked at do not count. An endpoint that answers far worse than the others is ejected until it gives a good answer
(``Breaker.good_ratio``). `lb.core.comparison` has the test that rules out chance.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from grpc import StatusCode

from lb.core.peers import one_line

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REPORT_KEY = "lb-endpoint-load-metrics-bin"
"""The trailer with a server's load: gRFC A51's message under a key of our own, since grpcio hides
``endpoint-load-metrics-bin`` from all but its own policies."""


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
    """The server answered, or the connection was lost: here these look alike."""
    UNSENT = "unsent"
    """No connection was found, so no server has seen the call."""
    UNPROCESSED = "unprocessed"
    """The connection was closing (GOAWAY), and the server has not looked at the call."""
    CLOSING = "closing"
    """The status says so, but nothing proves it yet: a server may pass on such a status from a client of its own.
    It is proved when the connection turns out to be lost."""
    REFUSED = "refused"
    """The status says that the server had more streams than it takes (REFUSED_STREAM). Nothing proves it: a server
    may pass on such a status from a client of its own."""
    ATTEMPT_TIMEOUT = "attempt timeout"
    """The attempt's own timeout passed (``Retry.attempt_timeout_s``), while the call had time left."""
    LATE = "late"
    """Another attempt of the same call answered in less than half of the time that this one had."""
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
    """The words that came with the code, as they came."""
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
        return f"{words}: {one_line(self.details)}" if self.details else words


_NOT_COMPARED = (StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED)

LOST = Outcome(StatusCode.CANCELLED, Verdict.IGNORED, Retryable.NEVER, Origin.CALLER, "another attempt was faster")
LATE = Outcome(StatusCode.CANCELLED, Verdict.IGNORED, Retryable.NEVER, Origin.LATE, "another attempt was faster by far")


def lost(ran_s: float, winner_s: float) -> Outcome:
    """The outcome of an attempt of a hedged call that ran for ``ran_s`` when another won after ``winner_s``.

    Losing alone says little: with a short delay any attempt may lose. An attempt that had twice the winner's
    time is late. Several late ones in a row are how a hung or far slower endpoint shows when calls are hedged.
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


def timed_out(limit_s: float | None) -> Outcome:
    """There was no response within ``attempt_timeout_s``."""
    details = f"no response within attempt_timeout_s ({limit_s:g} s)"
    return classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.ATTEMPT_TIMEOUT, details=details)


def _seconds(pushback: str) -> float:
    """Push-back in seconds; -1 for "do not retry", which an unreadable value means too (gRFC A6)."""
    text = pushback.strip()
    digits = text[1:] if text[:1] in "+-" else text
    if not (digits.isascii() and digits.isdigit()) or text[:1] == "-" or len(digits) > 10 or int(digits) > _INT32:
        return -1.0
    return int(digits) / 1000
