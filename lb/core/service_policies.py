"""``loadBalancingConfig``: gRPC's names of policies and their fields, in ours.

The first known policy in the list is taken; what follows it is
not read. If none is known that is an error, as in gRPC.

docs/service_config.md lists gRPC's names, and ours, which have their defaults. (``weighted_round_robin`` is gRPC's:
`Orca`.)

Policies of ours that need settings, or wrap others, are given as objects (``policy=``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lb.core.documents import Fields, Problems, fields_of, in_json
from lb.core.headers import legal_key
from lb.core.policies import LeastRequest, Orca, PickFirst, Policy, RingHash, by_name, names

Reader = Callable[[Fields, Problems], Policy | None]

_MOST_CHOICES = 10
_LEAST_UPDATE_S = 0.1
_LARGEST_RING = 8_388_608


def _pick_first(fields: Fields, problems: Problems) -> Policy:
    return PickFirst(shuffle=fields.flag("shuffleAddressList") or False)


def _weighted_round_robin(fields: Fields, problems: Problems) -> Policy:
    fields.seconds("oobReportingPeriod")
    if fields.flag("enableOobLoadReport"):
        problems.note(f"{fields.at('enableOobLoadReport')} is ignored: reports are taken from the calls")
    blackout = fields.seconds("blackoutPeriod")
    expiry = fields.seconds("weightExpirationPeriod")
    update = fields.seconds("weightUpdatePeriod")
    penalty = fields.number("errorUtilizationPenalty")
    default = Orca()
    return Orca(
        blackout_s=default.blackout_s if blackout is None else blackout,
        expiry_s=default.expiry_s if expiry is None else max(expiry, 1e-9),
        update_s=default.update_s if update is None else max(update, _LEAST_UPDATE_S),
        error_penalty=default.error_penalty if penalty is None else penalty,
    )


def _least_request(fields: Fields, problems: Problems) -> Policy:
    choices = fields.whole("choiceCount", 2) or 2
    if choices > _MOST_CHOICES:
        problems.note(f"{fields.at('choiceCount')} is {choices}; lb uses the maximum, {_MOST_CHOICES}")
        choices = _MOST_CHOICES
    return LeastRequest(choices=choices)


def _ring_hash(fields: Fields, problems: Problems) -> Policy | None:
    least = fields.whole("minRingSize", 1, _LARGEST_RING)
    most = fields.whole("maxRingSize", 1, _LARGEST_RING)
    if (1024 if least is None else least) > (4096 if most is None else most):  # gRPC's defaults
        fields.wrong("maxRingSize", "no less than minRingSize")
    header = (fields.text("requestHashHeader") or "").lower()
    if not legal_key(header) or header.endswith("-bin"):
        fields.wrong("requestHashHeader", "the name of a metadata key that is no -bin")
        return None
    return RingHash(key=header)


def _outlier_detection(fields: Fields, problems: Problems) -> Policy | None:
    for name in ("interval", "baseEjectionTime", "maxEjectionTime"):
        fields.seconds(name)
    fields.whole("maxEjectionPercent", 0, 100)
    for name in ("successRateEjection", "failurePercentageEjection"):
        if fields.value(name) is not None:
            problems.note(f"{fields.at(name)} is ignored: see lb.Breaker and lb.Ejection")
    entries = fields.items("childPolicy")
    if entries is None:
        fields.wrong("childPolicy", "a list of policies")
        return None
    return _first_known(entries, fields.at("childPolicy"), problems)


_READERS: dict[str, Reader] = {
    "pick_first": _pick_first,
    "weighted_round_robin": _weighted_round_robin,
    "least_request_experimental": _least_request,
    "outlier_detection_experimental": _outlier_detection,
    "ring_hash_experimental": _ring_hash,
}


def policy_of(top: Fields, problems: Problems) -> Policy | None:
    """The policy that a service config asks for; None when it leaves it open."""
    entries = top.items("loadBalancingConfig")
    deprecated = _deprecated(top, problems)
    return deprecated if entries is None else _first_known(entries, "loadBalancingConfig", problems)


def _deprecated(top: Fields, problems: Problems) -> Policy | None:
    """``loadBalancingPolicy``, a mere name; checked even where it does not count, as in gRPC."""
    name = top.text("loadBalancingPolicy")
    if not name:
        return None
    reader = _reader(name.lower())
    if reader is None:
        top.wrong("loadBalancingPolicy", f"one of {_known()}")
        return None
    return reader(Fields({}, "loadBalancingPolicy", problems), problems)


def _first_known(entries: list[tuple[str, Any]], where: str, problems: Problems) -> Policy | None:
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
            return reader(fields, problems)
        entry.value(name)
        problems.note(f"{path} is {in_json(name)}, which is unknown, and ignored")
        passed.append(in_json(name))
    problems.error(f"{where} has {', '.join(passed) or 'no entry'}; expected at least one of {_known()}")
    return None


def _reader(name: str) -> Reader | None:
    reader = _READERS.get(name)
    if reader is None:
        try:
            policy = by_name(name)
        except ValueError:
            return None
        return lambda fields, problems: policy
    return reader


def _known() -> str:
    return ", ".join(sorted({*_READERS, *names()}))
