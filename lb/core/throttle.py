"""Retry throttling as gRPC's service config defines it (gRFC A6); it replaces `lb.core.budget`.

A counter starts full, with ``max_tokens``. An attempt that failed in a way that could be retried
(or whose server said by push-back not to retry) takes one token. One that succeeded adds
``token_ratio``. While half of the tokens or less is left, no call is retried or hedged; first
attempts are always sent. So retries stop when more than about ``token_ratio`` of the attempts fail.

A failure counts before a retry is asked for, and also if none can follow: the call is committed,
or has had all its attempts. Attempts that no server processed (A6's transparent
retries) and those that the caller ended do not count. Core does the same, except for push-back that comes with a
code that is not retried (A6 counts it). Java and Go do not count committed calls. What "could be
retried" is decided by the document's codes and by the table of verdicts
(`lb.core.outcome`). All methods of a channel count together.

A budget counts calls and retries; this counts successes and failures. It has the same
methods (`deposit`, `failed`, `withdraw`, `balance`), and one more: `succeeded`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lb.core import checks

# Tokens are counted in thousandths, as in grpcio's core: A6 has three decimal places, and no sum drifts.
_MILLI = 1000
# 0.57 * 1000 is a little less than 570.
_ROUNDING = 1e-6
LEAST_RATIO = 0.001
_MOST_TOKENS = 2**32 - 1  # what the document can say
_MOST_RATIO = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Settings of a retry throttle. One object may serve many channels.

    Args:
        max_tokens: the number of tokens at the start, and the most there can be; a whole number >= 1.
        token_ratio: how many tokens a success adds, >= 0.001; decimal places after the third are ignored.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    max_tokens: int
    token_ratio: float

    def __post_init__(self) -> None:
        checks.whole("Throttle.max_tokens", self.max_tokens, least=1, most=_MOST_TOKENS)
        checks.number("Throttle.token_ratio", self.token_ratio, least=LEAST_RATIO, most=_MOST_RATIO)

    def new_state(self) -> ThrottleState:
        """A channel's own state, full."""
        return ThrottleState(self)


class ThrottleState:
    """The tokens of one channel. They do not depend on time: ``now`` is there because a budget's methods have it."""

    __slots__ = ("_gain", "_half", "_most", "_tokens", "settings")

    def __init__(self, settings: Throttle) -> None:
        """Use ``Throttle.new_state``."""
        self.settings = settings
        self._gain = int(settings.token_ratio * _MILLI + _ROUNDING)
        self._most = self._tokens = settings.max_tokens * _MILLI
        self._half = self._most // 2

    def deposit(self, now: float) -> None:
        """A call began: this changes nothing."""

    def succeeded(self) -> None:
        """An attempt ended OK."""
        self._tokens = min(self._most, self._tokens + self._gain)

    def failed(self) -> None:
        """An attempt ended with a status that may be retried, or its server said not to retry."""
        self._tokens = max(0, self._tokens - _MILLI)

    def withdraw(self, now: float) -> bool:
        """Whether a retry or a hedge may go out. Its price was taken by `failed`."""
        return self._tokens > self._half

    def balance(self, now: float) -> float:
        """After how many more failures no call is retried, >= 0. Changes nothing."""
        return float(max(0, -((self._half - self._tokens) // _MILLI)))

    def __repr__(self) -> str:
        return f"<ThrottleState {self._tokens / _MILLI:g} of {self.settings.max_tokens}>"
