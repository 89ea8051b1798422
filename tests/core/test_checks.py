"""Every setting with every wrong value: one clear sentence at construction, and what is accepted works."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

import lb
from lb.core.checks import MOST, shown
from lb.core.outcome import OK
from lb.core.settings import settings
from lb.core.throttle import Throttle
from tests.core.rig import INTERNAL, Rig

# What a class cannot be made without.
NEEDED: dict[type, Mapping[str, Any]] = {
    lb.RingHash: {"key": "user-id"},
    lb.Subset: {"size": 1, "client": 0},
    lb.ZoneAware: {"zone": "a"},
    Throttle: {"max_tokens": 1, "token_ratio": 1.0},
    lb.Endpoint: {"address": "a:1"},
    lb.Resolution: {"endpoints": ()},
}
CLASSES: tuple[Any, ...] = (
    lb.Retry,
    lb.Budget,
    lb.Hedging,
    lb.Breaker,
    lb.Ejection,
    lb.ConcurrencyLimit,
    lb.Connection,
    lb.MethodSettings,
    Throttle,
    lb.PickFirst,
    lb.LeastRequest,
    lb.P2C,
    lb.Orca,
    lb.RingHash,
    lb.Subset,
    lb.SlowStart,
    lb.ZoneAware,
    lb.Endpoint,
    lb.Resolution,
    lb.LoadReport,
)
FIELDS = [(kind, f.name) for kind in CLASSES for f in dataclasses.fields(kind) if f.init]


class Rude:
    """Even its repr is broken."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


EVIL: list[Any] = [
    *(None, True, False, "", "1", "nope", "two\nlines", "\ud800", b"x", [], {}, (), ["a"], {"a": "b"}, {1: 2}),
    *(math.nan, math.inf, -math.inf, -1, -0.5, 0, -0.0, 1, 0.5, 2.0, 5e-324, 1e-12, 1e9, 1e10, 1e308),
    *(10**10, 10**400, -(10**400), 10**5000, complex(1), Decimal(1), Decimal("nan"), Fraction(1, 2)),
    *(object(), Rude(), int, len, lambda *_: 1, lb.P2C, lb.P2C(), lb.Budget(), [StatusCode.OK], [StatusCode.ABORTED]),
    *(StatusCode.OK, [Rude()], list(range(1000)), "x" * 1000, iter(["a"])),
]


TYPES: Mapping[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "Literal[False]": (),
    "None": (type(None),),
}
"""What a plain annotation stands for; True and False are no numbers."""

WITHOUT_UNIT = frozenset(
    {
        *("jitter", "ratio", "min_per_s", "failure_ratio", "good_ratio", "max_share", "panic_share", "token_ratio"),
        *("error_penalty", "bound", "minimum"),
        *("cpu_utilization", "mem_utilization", "application_utilization", "qps", "eps"),
    }
)
"""Fields that are numbers and no seconds. A new one belongs here, or ends in ``_s``."""

POSITIONAL = {lb.Endpoint: ["address"], lb.Resolution: ["endpoints", "note"]}
"""Values, and what of them may be given without its name."""


def refused(kind: Any, **fields: Any) -> Exception | None:
    """The error with which an object of the class is refused."""
    try:
        kind(**{**NEEDED.get(kind, {}), **fields})
    except (ValueError, TypeError) as error:
        return error
    return None


def made(kind: Any, **fields: Any) -> Any:
    """An object of the class, or the sentence with which it is refused."""
    error = refused(kind, **fields)
    return kind(**{**NEEDED.get(kind, {}), **fields}) if error is None else str(error)


def test_all_settings_are_here() -> None:
    """Whatever `lb` exports and is made of fields, but for what the library makes."""
    exported = {value for name in lb.__all__ if dataclasses.is_dataclass(value := getattr(lb, name))}
    without_fields = {kind for kind in exported if not [f for f in dataclasses.fields(kind) if f.init]}
    made_by_the_library = {lb.Snapshot, lb.EndpointSnapshot, lb.Outcome}
    assert exported - without_fields - made_by_the_library == set(CLASSES) - {Throttle}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_settings_are_given_by_name(kind: Any) -> None:
    """So that a field may be added, or moved, and nobody has to count."""
    parameters = inspect.signature(kind).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == POSITIONAL.get(kind, [])


@pytest.mark.parametrize("made_by", [lb.aio.channel, lb.sync.channel, lb.aio.registration])
def test_arguments_are_given_by_name(made_by: Any) -> None:
    """All but the first, which says what is called, or registered."""
    _, *others = inspect.signature(made_by).parameters.values()
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}


def test_seconds_are_called_so() -> None:
    """A number is in seconds and ends in ``_s``, or is listed as something else; messages have the unit."""
    for kind in CLASSES:
        for field in dataclasses.fields(kind):
            if field.init and "float" in str(field.type).split(" | "):
                assert field.name.endswith("_s") != (field.name in WITHOUT_UNIT) or field.name == "min_per_s", field
                error = refused(kind, **{field.name: -1.0})
                assert ("seconds" in str(error)) == (field.name not in WITHOUT_UNIT), error
    for function in (lb.aio.channel, lb.sync.channel, lb.aio.registration, lb.deadline):
        for parameter in inspect.signature(function).parameters.values():
            if "float" in str(parameter.annotation):
                assert parameter.name.endswith("_s"), (function, parameter)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_one_form_of_error(kind: Any, name: str) -> None:
    """``Class.field is VALUE; expected ...``. TypeError for a wrong type, ValueError for a wrong value."""
    (field,) = (f for f in dataclasses.fields(kind) if f.name == name)
    parts = str(field.type).split(" | ")
    types = {t for part in parts for t in TYPES.get(part, ())} if TYPES.keys() >= set(parts) else None
    for value in EVIL:
        error = refused(kind, **{name: value})
        if error is None:
            continue
        form = rf"{kind.__name__}\.(\w+)(\[.*\]|\.name)? (is|has|has the name) .+; expected .+"
        assert re.fullmatch(form, str(error)), error
        if types is not None:
            assert type(error) is (ValueError if type(value) in types else TypeError), error
        elif type(value) is object:
            assert type(error) is TypeError, error


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_value_is_told_in_one_sentence(kind: Any, name: str) -> None:
    """It names the field, shows the value, says what is accepted, and is short; nothing else is ever raised."""
    for value in EVIL:
        found = made(kind, **{name: value})
        if not isinstance(found, str):
            continue
        assert "expected" in found, found
        assert name.partition("_")[0] in found, found
        assert len(found) < 300, found
        assert "\n" not in found, found
        if not isinstance(value, (list, dict, set)) and value != "":
            assert (value.__name__ if isinstance(value, type) else shown(value)) in found, found


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_no_field_takes_anything(kind: Any, name: str) -> None:
    """A mere object is wrong everywhere; None, where its type does not have it."""
    (field,) = (f for f in dataclasses.fields(kind) if f.name == name)
    wrong = [object(), Rude()] if "None" in str(field.type) else [object(), Rude(), None]
    for value in wrong:
        assert isinstance(made(kind, **{name: value}), str), value


# Fields whose numbers are free within their bounds.
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(),
    st.floats(0, 2),
    st.floats(0, 1e9),
    st.integers(0, 99),
)


@given(data=st.data(), seed=st.integers(0, 99))
def test_what_is_accepted_works(data: st.DataObject, seed: int) -> None:
    """Any numbers in any fields are refused by name, or a channel's whole core runs with them and raises nothing."""
    given_: dict[str, Any] = {}
    for argument, kind in (
        ("breaker", lb.Breaker),
        ("retry", lb.Budget),
        ("hedging", lb.Hedging),
        ("limit", lb.ConcurrencyLimit),
        ("policy", data.draw(st.sampled_from([lb.P2C, lb.LeastRequest, lb.Orca, lb.RoundRobin, lb.SlowStart]))),
    ):
        names = [f.name for f in dataclasses.fields(kind) if f.init and f.type in ("float", "int", "float | None")]
        fields = data.draw(st.dictionaries(st.sampled_from(names), NUMBERS, max_size=3)) if names else {}
        found = made(kind, **fields)
        if isinstance(found, str):
            assert any(name in found for name in fields), found
            found = kind()
        given_[argument] = lb.Retry(budget=found) if kind is lb.Budget else found
    weights = data.draw(st.lists(st.integers(0, int(MOST)), min_size=3, max_size=3))
    rig = Rig("abc", seed=seed, weights=weights, **given_)
    for step in range(30):
        call = rig.call(timeout=1.0)
        call.begin(rig.now)
        rig.clock.advance(0.01 * step)
        if call.attempts:
            call.hedge_delay_s()
            rig.fail(call, INTERNAL) if step % 3 else rig.end(call.attempts[-1], OK)
        call.settled()
        rig.balancer.admission(rig.now)
        assert rig.budget.balance(rig.now) >= 0


def test_all_fields_of_a_channel_are_named() -> None:
    """The arguments themselves: an object of another kind is a TypeError with the argument's name."""
    for name in ("retry", "breaker", "hedging", "limit", "ejection", "connection", "health", "propagate", "policy"):
        for value in (7, object(), Rude(), 10**5000, lb.P2C):
            given: dict[str, Any] = {name: value}
            with pytest.raises(TypeError, match=f"{name} is ") as caught:
                settings(**given)
            assert len(str(caught.value)) < 300


# ---- settings that stand in each other's way ----


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (lb.Breaker, {"open_s": 100}, "Breaker.max_open_s is 60.0; expected seconds >= open_s (100)"),
        (lb.Connection, {"backoff_s": 1}, "Connection.max_backoff_s is 0.5; expected seconds >= backoff_s (1)"),
        (
            lb.ConcurrencyLimit,
            {"adaptive": True, "limit": 2},
            "ConcurrencyLimit.limit is 2; expected min_limit (4) <= limit <= max_limit (1000)",
        ),
        (lb.Breaker, {"window_s": 5e-324}, "Breaker.window_s is 5e-324; expected seconds > 0, at least 1e-09"),
        (lb.Retry, {"jitter": 2}, "Retry.jitter is 2; expected a number from 0 to 1"),
        (
            lb.Retry,
            {"attempt_timeout_s": 1e10},
            "Retry.attempt_timeout_s is 10000000000.0; expected seconds > 0, or None, at most 1e+09",
        ),
    ],
)
def test_two_that_contradict_are_both_named(kind: Any, fields: dict[str, Any], words: str) -> None:
    """One that was set and one that was left alone, too. A bound that the words do not name is told when passed."""
    assert made(kind, **fields) == words


def test_a_bound_is_no_bound_where_it_does_not_count() -> None:
    """``min_limit`` and ``max_limit`` are for adaptive limits, keepalive's time-out for keepalive."""
    assert lb.ConcurrencyLimit(limit=2).new_state().limit == 2
    assert "grpc.keepalive_timeout_ms" not in dict(lb.Connection(keepalive_timeout_s=9).options())


def test_hedging_is_left_out_where_a_method_may_not_run_twice() -> None:
    """It is no error: the same settings serve all methods."""
    found = settings(hedging=lb.Hedging(delay_s=0), retry=lb.Retry(idempotent=["/a.B/C"]))
    assert found.method("/a.B/C", declared_idempotent=False).hedging is not None
    assert found.method("/a.B/D", declared_idempotent=False).hedging is None


def test_shown_survives_all() -> None:
    """One line of at most 80 characters, whatever the value."""
    assert shown(Rude()) == "a Rude"
    assert shown(10**5000) == "a int"
    assert shown("two\nlines") == "'two\\nlines'"
    for value in EVIL:
        assert len(shown(value)) <= 80
