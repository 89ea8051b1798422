"""What counts against retries under gRPC's service config, beside grpcio's own channel."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from lb.testing import Backend
from lb.testing.backend import SERVICE, Gate, fail, hold, pushback
from tests.aio.kit import HANGS_S, US, UU, Kind, channel_to, failure
from tests.support.calls import RETRY_POLICY

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("ours", [False, True], ids=["grpcio", "lb"])
@pytest.mark.parametrize(
    ("kind", "step", "counts"),
    [
        (US, fail(UNAVAILABLE, initial_metadata=(("k", "v"),)), True),
        (US, fail(UNAVAILABLE, after=1), True),
        (UU, pushback(-1), True),
        (UU, fail(grpc.StatusCode.NOT_FOUND), False),
        (US, fail(grpc.StatusCode.NOT_FOUND, initial_metadata=(("k", "v"),)), False),
    ],
    ids=["headers", "message", "push-back", "other code", "other code, headers"],
)
async def test_what_counts_against_retries(backend: Backend, ours: bool, kind: Kind, step: Any, counts: bool) -> None:
    """Of 4 tokens two such failures leave half, and nothing is retried: also what was committed. As in core."""
    # Not 1 ms: core may lose a retry whose timer fires at once, and the call hangs (grpc #41036).
    policy = {**RETRY_POLICY, "initialBackoff": "0.01s", "maxBackoff": "0.02s"}
    document = {
        "methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 4, "tokenRatio": 0.001},
    }
    options = (("grpc.service_config", json.dumps(document)),)
    async with (
        channel_to(backend, service_config=document)
        if ours
        else grpc.aio.insecure_channel(backend.address, options=options)
    ) as channel:
        for _ in range(2):
            gate = Gate()
            backend.script(hold(gate, step))
            call = kind.start(channel, timeout=HANGS_S)
            if step.initial_metadata:  # headers that come together with the status do not count for core
                await call.initial_metadata()
            gate.open()
            with pytest.raises(grpc.RpcError):
                await kind.responses(call)
        before = len(backend.received)
        backend.script(fail(UNAVAILABLE))
        if counts:
            assert (await failure(UU.start(channel, timeout=HANGS_S))).code() is UNAVAILABLE
        else:
            await UU.run(channel, timeout=HANGS_S)
        assert len(backend.received) - before == (1 if counts else 2)
