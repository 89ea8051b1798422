"""Calls from threads: the same channel, as a ``grpc.Channel``.

::

    python examples/servers.py              # in another terminal
    python examples/threads.py

Any number of threads may use the channel at once. It has a bounded number of threads of its own, however
many endpoints there are.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

import lb
from mesh.catalog.v1 import CatalogStub, GetProductRequest


def main() -> None:
    """A call of each kind, and many at once."""
    with lb.sync.channel("consul:///catalog", policy="least_request") as channel:
        catalog = CatalogStub(channel)

        print(catalog.GetProduct(GetProductRequest(sku="espresso"), timeout=5).product.name)

        response, call = catalog.GetProduct.with_call(GetProductRequest(sku="filter"), timeout=5)
        print(response.product.name, "from", lb.attempts(call)[-1].endpoint_id)

        future = catalog.GetProduct.future(GetProductRequest(sku="filter"), timeout=5)
        print(future.result().product.name, "later")

        def served_by(sku: str) -> str:
            _, call = catalog.GetProduct.with_call(GetProductRequest(sku=sku), timeout=5)
            return lb.attempts(call)[-1].endpoint_id

        with ThreadPoolExecutor(8) as pool:
            shares = Counter(pool.map(served_by, ["espresso", "filter"] * 30))
        print("60 calls by 8 threads:", dict(sorted(shares.items())))

        try:
            catalog.GetProduct(GetProductRequest(sku="tea"), timeout=5)
        except grpc.RpcError as error:
            (attempt,) = lb.attempts(error)[-1:]
            print(f"{attempt.endpoint_id} says {error.code().name}: {error.details()}")


main()
