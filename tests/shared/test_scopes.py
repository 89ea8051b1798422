"""A scope: what the calls of a handler inherit from the incoming one."""

from __future__ import annotations

import contextlib
import contextvars
import time

import pytest

import lb
from lb.shared import scopes
from lb.shared.scopes import Scope
from tests.shared.kit import Noted


def test_a_scope_holds_no_call() -> None:
    """It tells those that are there, and those that come later; it keeps none alive."""
    scope = Scope(10)
    first, gone = Noted(), Noted()
    scope.add(first)
    scope.add(gone)
    del gone
    assert "calls=1" in repr(scope)
    scope.cancel()
    late = Noted()
    scope.add(late)
    assert (first.told, late.told) == (1, 1)
    assert "cancelled" in repr(scope)


@pytest.mark.parametrize("remaining", [None, 9.2e18, 1e10])
def test_a_deadline_in_centuries_is_none(remaining: float | None) -> None:
    """That is how grpcio's threads tell a call without one."""
    scope = Scope(remaining)
    assert scope.deadline is None
    assert scope.bound(None) is None
    assert scope.bound(5.0) == 5.0


def test_the_earlier_deadline_is_taken() -> None:
    """On the monotonic clock, which nobody sets."""
    scope = Scope(10)
    now = time.monotonic()
    inherited = scope.bound(None)
    assert inherited is not None
    assert now + 9 < inherited < now + 11
    assert scope.bound(now + 5) == now + 5
    bound = scope.bound(now + 50)
    assert bound is not None
    assert bound < now + 11


def test_detached_blocks_nest() -> None:
    """The scope is there again behind the block, also when it is left by an error."""
    scope = Scope(None)

    def body() -> None:
        scopes.enter(scope)
        with lb.detached():
            with lb.detached():
                assert scopes.current() is None
            assert scopes.current() is None
        assert scopes.current() is scope
        with contextlib.suppress(ZeroDivisionError), lb.detached():
            raise ZeroDivisionError
        assert scopes.current() is scope

    contextvars.copy_context().run(body)
