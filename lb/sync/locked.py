"""The core's objects with a lock: the loop and any number of calling threads use them at once.

One lock per channel. It is held while the core thinks (a pick runs a user's policy under it),
never while anything is sent or waited for. Breakers, budget, limits and statistics are reached
through these two classes only, so they need none of their own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from lb.core.balancer import Balancer
from lb.core.call import Call


class LockedBalancer(Balancer):
    """A balancer that one thread uses at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Reentrant: a call that holds it picks, and a finalizer may run anywhere.
        self.lock = threading.RLock()
        super().__init__(*args, **kwargs)


class LockedCall(Call):
    """A call's record, which takes its balancer's lock for each step."""

    _balancer: LockedBalancer


def _locked(function: Callable[..., Any], lock_of: Callable[[Any], threading.RLock]) -> Callable[..., Any]:
    @functools.wraps(function)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock_of(self):
            return function(self, *args, **kwargs)

    return locked


def _lock_public(locked: type, base: type, lock_of: Callable[[Any], threading.RLock]) -> None:
    """Put every public method and property of ``base`` under the lock."""
    for name, value in vars(base).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) and value.fget is not None:
            setattr(locked, name, property(_locked(value.fget, lock_of), doc=value.__doc__))
        elif callable(value):
            setattr(locked, name, _locked(value, lock_of))


_lock_public(LockedBalancer, Balancer, lambda balancer: balancer.lock)
_lock_public(LockedCall, Call, lambda call: call._balancer.lock)
