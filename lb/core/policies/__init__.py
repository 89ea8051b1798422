"""How to choose among endpoints: one algorithm a file, and the interfaces in ``base``.

A policy is imported when it is first asked for: a channel uses one or two of the dozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lb.core.later import later
from lb.core.policies.base import CallInfo, Candidate, Hooks, Picker, Policy
from lb.core.policies.registry import by_name, names, resolve

if TYPE_CHECKING:
    from lb.core.policies.least_request import LeastRequest
    from lb.core.policies.orca import Orca
    from lb.core.policies.p2c import P2C
    from lb.core.policies.pick_first import PickFirst
    from lb.core.policies.random import Random
    from lb.core.policies.ring_hash import RingHash
    from lb.core.policies.round_robin import RoundRobin
    from lb.core.policies.slow_start import SlowStart
    from lb.core.policies.subset import Subset
    from lb.core.policies.weighted_random import WeightedRandom
    from lb.core.policies.weighted_round_robin import WeightedRoundRobin
    from lb.core.policies.zone_aware import ZoneAware
else:
    LATER = {
        "LeastRequest": "lb.core.policies.least_request",
        "Orca": "lb.core.policies.orca",
        "P2C": "lb.core.policies.p2c",
        "PickFirst": "lb.core.policies.pick_first",
        "Random": "lb.core.policies.random",
        "RingHash": "lb.core.policies.ring_hash",
        "RoundRobin": "lb.core.policies.round_robin",
        "SlowStart": "lb.core.policies.slow_start",
        "Subset": "lb.core.policies.subset",
        "WeightedRandom": "lb.core.policies.weighted_random",
        "WeightedRoundRobin": "lb.core.policies.weighted_round_robin",
        "ZoneAware": "lb.core.policies.zone_aware",
    }
    __getattr__ = later(__name__, LATER)

__all__ = [
    "CallInfo",
    "Candidate",
    "Hooks",
    "LeastRequest",
    "Orca",
    "P2C",
    "PickFirst",
    "Picker",
    "Policy",
    "Random",
    "RingHash",
    "RoundRobin",
    "SlowStart",
    "Subset",
    "WeightedRandom",
    "WeightedRoundRobin",
    "ZoneAware",
    "by_name",
    "names",
    "resolve",
]
