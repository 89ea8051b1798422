"""gRPC's own service config, the JSON that a service's owner gives to all its clients, instead of lb's settings.

::

    python examples/service_config.py

It starts the servers that it calls. lb carries out the document's retries, hedging, timeouts, throttling and
policy. A bad document is refused when the channel is made, with an error that names the path.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

import lb
from lb.testing import Backend
from lb.testing.backend import SERVICE, UNARY_STREAM, UNARY_UNARY, fail, hang

DOCUMENT = f"""
{{
  "loadBalancingConfig": [{{"a_policy_of_tomorrow": {{}}}}, {{"round_robin": {{}}}}],
  "retryThrottling": {{"maxTokens": 10, "tokenRatio": 0.1}},
  "methodConfig": [
    {{
      "name": [{{"service": "{SERVICE}"}}],
      "timeout": "1.5s",
      "retryPolicy": {{
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
      }}
    }},
    {{
      "name": [{{"service": "{SERVICE}", "method": "UnaryUnary"}}],
      "waitForReady": true,
      "hedgingPolicy": {{"maxAttempts": 2, "hedgingDelay": "0.3s", "nonFatalStatusCodes": ["UNAVAILABLE"]}}
    }}
  ]
}}
"""


async def main() -> None:
    """A retry, a timeout and a hedge, each as the document says."""
    async with Backend("a") as a, Backend("b") as b:
        target = f"static:///{a.address},{b.address}"
        names = {a.address: "a", b.address: "b"}
        async with lb.aio.channel(target, service_config=DOCUMENT) as channel:
            print("policy:", channel.snapshot().policy)
            await channel.channel_ready()
            while any(e.connectivity != "READY" for e in channel.snapshot().endpoints):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)  # one connection is enough for a channel; here both should take part

            stream: Any = channel.unary_stream(UNARY_STREAM)
            a.script(fail(grpc.StatusCode.UNAVAILABLE, "not now"))
            b.script(fail(grpc.StatusCode.UNAVAILABLE, "not now"))
            call = stream(b"hello")
            answers = [answer async for answer in call]
            print(f"retried: {len(lb.attempts(call))} attempts, {len(answers)} answers")

            a.always(hang())
            b.always(hang())
            try:
                _ = [answer async for answer in stream(b"hello")]
            except grpc.aio.AioRpcError as error:
                print(f"timeout: {error.code().name}")

            b.always(None)  # it answers again
            unary = channel.unary_unary(UNARY_UNARY)
            for _ in range(2):  # the servers take turns, so one of the two calls begins at a
                call = unary(b"hello")
                await call
                if len(lb.attempts(call)) > 1:
                    print("hedged:", " then ".join(names[attempt.address] for attempt in lb.attempts(call)))

        try:
            lb.aio.channel(target, service_config={"methodConfig": [{"name": [{}], "timeout": "soon"}]})
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main())
