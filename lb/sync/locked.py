"""The core's objects with a lock: the loop and any number of calling threads use them at once.

One lock per channel. It is held while the core thinks (a pick runs a user's policy under it),
never while anything is sent or waited for. Breakers, budget, limits and statistics are reached
through these two classes only, so they need none of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lb.core.balancer import Balancer
from lb.core.call import Call
from lb.shared import threads


class LockedBalancer(Balancer):
    """A balancer that one thread uses at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Reentrant: a call that holds it picks, and a finalizer may run anywhere.
        self.lock = threads.rlock()
        super().__init__(*args, **kwargs)


class LockedCall(Call):
    """A call's record, which takes its balancer's lock for each step."""

    _balancer: LockedBalancer


def _locked(function: Callable[..., Any], *, of_call: bool) -> Callable[..., Any]:
    # Two wrappers, since this stands on the path of every call.
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return function(self, *args, **kwargs)

    def locked_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._balancer.lock:
            return function(self, *args, **kwargs)

    return functools.wraps(function)(locked_call if of_call else locked)


def _lock_public(locked: type, base: type, *, of_call: bool) -> None:
    """Put every public method and property of ``base`` under the lock."""
    for name, value in vars(base).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) and value.fget is not None:
            setattr(locked, name, property(_locked(value.fget, of_call=of_call), doc=value.__doc__))
        elif callable(value):
            setattr(locked, name, _locked(value, of_call=of_call))


_lock_public(LockedBalancer, Balancer, of_call=False)
_lock_public(LockedCall, Call, of_call=True)
