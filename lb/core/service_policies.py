"""``loadBalancingConfig``: gRPC's names of policies and their fields, in ours.

The list is read from its beginning, and the first known policy is taken; what stands behind it is
not looked at. That none is known is an error, as in gRPC.

=============================  =======================================================
in the document                here
=============================  =======================================================
``round_robin``                `RoundRobin`
``pick_first``                 `PickFirst` (``shuffleAddressList``): all calls to one
                               endpoint, though the others stay connected
any name of ours               that policy with its defaults (``random``,
                               ``weighted_random``, ...)
=============================  =======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lb.core.documents import Fields, Problems, fields_of, shown
from lb.core.policies import PickFirst, Policy, RoundRobin, by_name, names

Reader = Callable[[Fields], Policy]


def _pick_first(fields: Fields) -> Policy:
    return PickFirst(shuffle=fields.flag("shuffleAddressList") or False)


_READERS: dict[str, Reader] = {
    "round_robin": lambda fields: RoundRobin(),
    "pick_first": _pick_first,
}


def policy_of(top: Fields, problems: Problems) -> Policy | None:
    """The policy that a service config asks for; None when it leaves it open."""
    entries = top.items("loadBalancingConfig")
    deprecated = _deprecated(top, problems)
    return deprecated if entries is None else _first_known(entries, problems)


def _deprecated(top: Fields, problems: Problems) -> Policy | None:
    """``loadBalancingPolicy``, a mere name; checked even where it does not count, as in gRPC."""
    name = top.text("loadBalancingPolicy")
    if not name:
        return None
    reader = _reader(name.lower())
    if reader is None:
        top.wrong("loadBalancingPolicy", f"one of {_known()}")
        return None
    return reader(Fields({}, "loadBalancingPolicy", problems))


def _first_known(entries: list[tuple[str, Any]], problems: Problems) -> Policy | None:
    passed = []
    for path, value in entries:
        entry = fields_of(value, path, problems)
        if entry is None:
            return None
        if len(value) != 1 or not isinstance(next(iter(value)), str):
            problems.error(f"{path} has {len(value)} fields; expected one, the name of a policy")
            return None
        (name,) = value
        if not isinstance(value[name], Mapping):
            problems.wrong(entry.at(name), value[name], "an object")
            return None
        reader = _reader(name)
        if reader is not None:
            fields = entry.fields(name)
            assert fields is not None
            return reader(fields)
        entry.value(name)
        problems.note(f"{path} is {shown(name)}, which is not known, and passed over")
        passed.append(shown(name))
    problems.error(f"loadBalancingConfig has {', '.join(passed) or 'no entry'}; expected at least one of {_known()}")
    return None


def _reader(name: str) -> Reader | None:
    reader = _READERS.get(name)
    if reader is None:
        try:
            policy = by_name(name)
        except ValueError:
            return None
        return lambda fields: policy
    return reader


def _known() -> str:
    return ", ".join(sorted({*_READERS, *names()}))
