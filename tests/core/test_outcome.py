"""The table of verdicts, row by row, and push-back as gRFC A6 has it."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lb.core.outcome import LATE, LOST, OK, PUSHBACK_KEY, Origin, Outcome, Retryable, Verdict, classify, lost

SUCCESS, FAILURE, IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
NEVER, IF_IDEMPOTENT, ALWAYS = Retryable.NEVER, Retryable.IF_IDEMPOTENT, Retryable.ALWAYS

# (code, origin, push-back) -> (verdict, retried), in the order of the module's table.
ROWS: list[tuple[StatusCode, Origin, str | None, Verdict, Retryable]] = [
    (StatusCode.OK, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.CANCELLED, Origin.CALLER, None, IGNORED, NEVER),
    (StatusCode.DEADLINE_EXCEEDED, Origin.CALLER, None, IGNORED, NEVER),
    (StatusCode.UNAVAILABLE, Origin.UNSENT, None, FAILURE, ALWAYS),
    (StatusCode.UNAVAILABLE, Origin.UNPROCESSED, None, IGNORED, ALWAYS),
    (StatusCode.UNAVAILABLE, Origin.CLOSING, None, IGNORED, IF_IDEMPOTENT),
    (StatusCode.UNAVAILABLE, Origin.REFUSED, None, IGNORED, IF_IDEMPOTENT),
    (StatusCode.DEADLINE_EXCEEDED, Origin.ATTEMPT_TIMEOUT, None, FAILURE, IF_IDEMPOTENT),
    (StatusCode.UNAVAILABLE, Origin.PEER, "0", IGNORED, ALWAYS),
    (StatusCode.RESOURCE_EXHAUSTED, Origin.PEER, "150", IGNORED, ALWAYS),
    (StatusCode.UNAVAILABLE, Origin.PEER, "-1", IGNORED, NEVER),
    (StatusCode.RESOURCE_EXHAUSTED, Origin.PEER, "soon", IGNORED, NEVER),
    (StatusCode.UNAVAILABLE, Origin.PEER, None, FAILURE, IF_IDEMPOTENT),
    (StatusCode.INTERNAL, Origin.PEER, None, FAILURE, NEVER),
    (StatusCode.UNKNOWN, Origin.PEER, None, FAILURE, NEVER),
    (StatusCode.DATA_LOSS, Origin.PEER, None, FAILURE, NEVER),
    (StatusCode.DEADLINE_EXCEEDED, Origin.PEER, None, FAILURE, NEVER),
    (StatusCode.RESOURCE_EXHAUSTED, Origin.PEER, None, IGNORED, NEVER),
    (StatusCode.UNIMPLEMENTED, Origin.PEER, None, IGNORED, NEVER),
    (StatusCode.CANCELLED, Origin.PEER, None, IGNORED, IF_IDEMPOTENT),
    (StatusCode.INVALID_ARGUMENT, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.NOT_FOUND, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.ALREADY_EXISTS, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.PERMISSION_DENIED, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.UNAUTHENTICATED, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.FAILED_PRECONDITION, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.ABORTED, Origin.PEER, None, SUCCESS, NEVER),
    (StatusCode.OUT_OF_RANGE, Origin.PEER, None, SUCCESS, NEVER),
]


@pytest.mark.parametrize(("code", "origin", "pushback", "verdict", "retryable"), ROWS)
def test_each_row_of_the_table(
    code: StatusCode, origin: Origin, pushback: str | None, verdict: Verdict, retryable: Retryable
) -> None:
    """Verdict and retry are as the table says."""
    outcome = classify(code, origin=origin, pushback=pushback)
    assert (outcome.verdict, outcome.retryable) == (verdict, retryable)
    assert (outcome.code, outcome.origin) == (code, origin)


def test_the_rows_cover_every_status_code() -> None:
    """A code that grpcio adds must get a row here."""
    assert {code for code, *_ in ROWS} == set(StatusCode)


def test_ok_is_shared() -> None:
    """Every call that went well has the same outcome object, whatever came with it."""
    assert classify(StatusCode.OK) is OK
    assert classify(StatusCode.OK, pushback="5", details="fine") is OK


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 0.001),
        ("2500", 2.5),
        (" 10 ", 0.01),
        ("+10", 0.01),
        ("2147483647", 2147483.647),
    ],
)
def test_push_back_is_read_as_milliseconds(value: str, seconds: float) -> None:
    """The value is a signed 32-bit number in ASCII (gRFC A6)."""
    outcome = classify(StatusCode.UNAVAILABLE, pushback=value)
    assert outcome.pushback_s == seconds
    assert outcome.retryable is ALWAYS


@pytest.mark.parametrize(
    "value",
    ["-1", "-2147483648", "", " ", "-", "+", "--1", "1.5", "1e3", "0x10", "1_000", "1 0", "ten", "٣", "²", "9" * 40],
)
def test_negative_or_unreadable_push_back_forbids_a_retry(value: str) -> None:
    """Both mean "do not retry at all" (gRFC A6), also where the table would retry."""
    outcome = classify(StatusCode.UNAVAILABLE, pushback=value)
    assert outcome.pushback_s == -1.0
    assert outcome.retryable is NEVER


def test_push_back_beyond_32_bits_is_unreadable() -> None:
    """By gRFC A6 it is a signed 32-bit integer: what does not fit can not be parsed, and forbids a retry."""
    assert classify(StatusCode.UNAVAILABLE, pushback=str(2**31)).retryable is NEVER


@given(st.text(max_size=12))
def test_any_push_back_gives_an_outcome(value: str) -> None:
    """A server can not make the client raise; the delay is never negative but as "do not retry"."""
    outcome = classify(StatusCode.UNAVAILABLE, pushback=value)
    assert outcome.pushback_s is not None
    assert (outcome.retryable is ALWAYS) is (outcome.pushback_s >= 0)
    assert outcome.pushback_s >= 0 or outcome.pushback_s == -1.0


def test_push_back_does_not_make_other_failures_retryable() -> None:
    """Only a refusal is retried for its push-back; INTERNAL with one stays a failure that is not."""
    outcome = classify(StatusCode.INTERNAL, pushback="0")
    assert (outcome.verdict, outcome.retryable, outcome.pushback_s) == (FAILURE, NEVER, 0.0)
    assert classify(StatusCode.INTERNAL, pushback="-1").pushback_s == -1.0


@pytest.mark.parametrize("origin", [Origin.CALLER, Origin.UNSENT, Origin.ATTEMPT_TIMEOUT])
def test_who_produced_the_status_comes_before_push_back(origin: Origin) -> None:
    """What this side produced carries no word of the server."""
    without = classify(StatusCode.UNAVAILABLE, origin=origin)
    assert classify(StatusCode.UNAVAILABLE, origin=origin, pushback="0") == without
    assert without.pushback_s is None


@given(
    code=st.sampled_from([c for c in StatusCode if c is not StatusCode.OK]),
    origin=st.sampled_from(Origin),
    pushback=st.none() | st.sampled_from(["-1", "0", "7", "x"]),
)
def test_what_holds_of_the_whole_table(code: StatusCode, origin: Origin, pushback: str | None) -> None:
    """The caller's own end blames nobody and is final; a failure that is always retried was never sent."""
    outcome = classify(code, origin=origin, pushback=pushback)
    if origin is Origin.CALLER:
        assert (outcome.verdict, outcome.retryable) == (IGNORED, NEVER)
    if outcome.retryable is ALWAYS and outcome.verdict is FAILURE:
        assert origin is Origin.UNSENT
    if outcome.verdict is SUCCESS:
        assert outcome.retryable is NEVER


def test_the_reason_in_words() -> None:
    """The code, who produced it when it was not the server, and the details."""
    assert classify(StatusCode.UNAVAILABLE, details="Socket closed").reason() == "UNAVAILABLE: Socket closed"
    assert classify(StatusCode.INTERNAL).reason() == "INTERNAL"
    timed_out = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.ATTEMPT_TIMEOUT)
    assert timed_out.reason() == "DEADLINE_EXCEEDED (attempt timeout)"
    unsent = classify(StatusCode.UNAVAILABLE, origin=Origin.UNSENT, details="connection refused")
    assert unsent.reason() == "UNAVAILABLE (unsent): connection refused"


@pytest.mark.parametrize(("ran_s", "late"), [(0.0, False), (0.1, False), (0.199, False), (0.2, True), (9.0, True)])
def test_losing_a_race_says_something_only_after_twice_the_winners_time(ran_s: float, late: bool) -> None:
    """Both are IGNORED and final; who had twice the time of the winner's 0.1 s is late."""
    outcome = lost(ran_s, 0.1)
    assert outcome is (LATE if late else LOST)
    assert (outcome.verdict, outcome.retryable) == (IGNORED, NEVER)


def test_outcomes_are_values() -> None:
    """Equal by value, and the key is gRPC's."""
    assert classify(StatusCode.ABORTED) == Outcome(StatusCode.ABORTED, SUCCESS, NEVER)
    assert PUSHBACK_KEY == "grpc-retry-pushback-ms"
