"""How to choose among endpoints: one algorithm a file, and the interfaces in ``base``."""

from __future__ import annotations

from lb.core.policies.base import CallInfo, Candidate, Hooks, Picker, Policy
from lb.core.policies.least_request import LeastRequest
from lb.core.policies.orca import Orca
from lb.core.policies.p2c import P2C
from lb.core.policies.pick_first import PickFirst
from lb.core.policies.random import Random
from lb.core.policies.registry import by_name, names, resolve
from lb.core.policies.ring_hash import RingHash
from lb.core.policies.round_robin import RoundRobin
from lb.core.policies.slow_start import SlowStart
from lb.core.policies.subset import Subset
from lb.core.policies.weighted_random import WeightedRandom
from lb.core.policies.weighted_round_robin import WeightedRoundRobin
from lb.core.policies.zone_aware import ZoneAware

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
