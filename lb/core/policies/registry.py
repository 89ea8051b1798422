"""Which policy a user means by an object, a name or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lb.core import policies
from lb.core.checks import shown
from lb.core.policies.base import Policy

_BY_NAME = {
    "weighted_round_robin": "WeightedRoundRobin",
    "round_robin": "RoundRobin",
    "weighted_random": "WeightedRandom",
    "random": "Random",
    "pick_first": "PickFirst",
    "least_request": "LeastRequest",
    "p2c": "P2C",
    "orca": "Orca",
}
"""The class of each, in `lb.core.policies`."""
_DEFAULT = "weighted_round_robin"

_OBJECTS_ONLY = {
    "ring_hash": 'lb.RingHash(key="user-id")',
    "slow_start": 'lb.SlowStart(policy="p2c")',
    "subset": "lb.Subset(size=20, client=3)",
    "zone_aware": 'lb.ZoneAware(zone="eu-west-1a")',
}
"""Those that need to be told something."""


def names() -> Sequence[str]:
    """The names that `by_name` accepts, sorted."""
    return sorted(_BY_NAME)


def by_name(name: str, what: str = "policy") -> Policy:
    """The policy of that name with its default settings. ``what`` is the setting that has the name.

    Raises:
        ValueError: there is none, or it does not work without settings; the message says what is accepted.
    """
    if name in _BY_NAME:
        return _made(name)
    if name in _OBJECTS_ONLY:
        raise ValueError(f"{what} is {name!r}; expected an object, as it needs settings: {_OBJECTS_ONLY[name]}")
    raise ValueError(f"{what} is {shown(name)}; expected one of {', '.join(names())}")


@cache
def _made(name: str) -> Policy:
    made: Policy = getattr(policies, _BY_NAME[name])()
    return made


def resolve(policy: Policy | str | None, what: str = "policy") -> Policy:
    """The policy that a user means by an object, a name, or nothing (``WeightedRoundRobin``).

    ``what`` is the setting, as messages name it.

    Raises:
        ValueError: a name that is not known.
        TypeError: an object that is no policy; the message says what it lacks.
    """
    if policy is None:
        return _made(_DEFAULT)
    if isinstance(policy, str):
        return by_name(policy, what)
    if isinstance(policy, type):
        raise TypeError(f"{what} is the class {policy.__name__}; expected an object, for example {policy.__name__}()")
    if not callable(getattr(policy, "picker", None)):
        raise TypeError(f"{what} is {shown(policy)}; expected a name, or an object with picker(candidates, previous)")
    name = getattr(policy, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{what}.name is {shown(name)}; expected a string that is not empty")
    return policy
