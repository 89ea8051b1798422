"""Calls from asyncio: found through Consul, retried on another server, hedged, with every attempt listed.

::

    python examples/servers.py              # in another terminal
    python examples/asyncio_client.py
"""

from __future__ import annotations

import asyncio

import tenacity

import lb
from mesh.catalog.v1 import CatalogStub, GetProductRequest


async def main() -> None:
    """Six calls, one after another."""
    async with lb.aio.channel(
        "consul:///catalog",  # in the Consul that CONSUL_HTTP_ADDR names; 127.0.0.1:8500 if it names none
        policy="round_robin",  # every server in turn; see docs/policies.md
        retry=lb.Retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential(multiplier=0.01, max=0.1)),
        hedging=lb.Hedging(delay_s=0.1),  # no answer after 0.1 s: ask another server as well
    ) as channel:
        catalog = CatalogStub(channel)
        for _ in range(6):
            # The proto says that GetProduct may run twice. Otherwise lb would neither hedge nor retry these calls.
            call = catalog.GetProduct(GetProductRequest(sku="espresso"), timeout=5)
            response = await call
            print(response.product.name)
            for attempt in lb.attempts(call):
                ended = "running" if attempt.outcome is None else attempt.outcome.reason()
                print(f"  {attempt.number}. {attempt.endpoint_id}: {ended}" + (attempt.why and f" ({attempt.why})"))
        print(channel.snapshot())


asyncio.run(main())
