"""What is declared of a method: whether it may run twice without harm.

The proto says so by ``option idempotency_level``. Generated stubs put their descriptors into
protobuf's default pool when they are imported, so a method name is enough to find it.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

_IDEMPOTENT = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


def is_idempotent(method: str) -> bool:
    """Whether the proto of ``/package.Service/Method`` declares it idempotent; False when it is unknown."""
    name = method.lstrip("/").replace("/", ".")
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(name)
    except KeyError:
        return False
    return descriptor.GetOptions().idempotency_level in _IDEMPOTENT
