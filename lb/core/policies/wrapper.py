"""What the policies share that stand around another one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from lb.core.policies.base import Policy
from lb.core.policies.registry import resolve

_HOOKS = frozenset({"needs_metadata", "in_order", "ended", "report", "spreads"})


class Wrapper:
    """Has the hooks of the policy inside, and no others: what that lacks costs nothing here, either."""

    __slots__ = ()

    policy: Any

    def __getattr__(self, name: str) -> Any:
        if name in _HOOKS:
            return getattr(self.policy, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _settle(self, kind: str) -> None:
        """Take the policy inside by object or name (None: the default one), and make a name of both."""
        policy: Policy = resolve(self.policy, f"{type(self).__name__}.policy")
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "name", f"{kind}({policy.name})")


class WrapperPicker:
    """What the pickers around another one share: its word on what they do not rule themselves."""

    __slots__ = ()

    inner: Any

    @property
    def repeatable(self) -> bool:
        """As the picker inside."""
        return bool(getattr(self.inner, "repeatable", False))

    @property
    def turn(self) -> Callable[[Random], None] | None:
        """As the picker inside; None when it has none."""
        return getattr(self.inner, "turn", None)

    def _explained(self, rule: str) -> str:
        inside = getattr(self.inner, "explain", None)
        return rule if inside is None else f"{rule}: {inside()}"
