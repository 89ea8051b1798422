"""What is declared of a method: whether it may run twice without harm.

The proto says so by ``option idempotency_level``. Generated stubs put their descriptors into
protobuf's default pool when they are imported, so a method name is enough to find it. Who has
not imported protobuf has no such stubs, and is spared its import.
"""

from __future__ import annotations

import sys

# MethodOptions.NO_SIDE_EFFECTS and .IDEMPOTENT of google/protobuf/descriptor.proto.
_IDEMPOTENT = (1, 2)


def is_idempotent(method: str) -> bool:
    """Whether the proto of ``/package.Service/Method`` declares it idempotent; False when it is unknown."""
    descriptor_pool = sys.modules.get("google.protobuf.descriptor_pool")
    if descriptor_pool is None:
        return False
    name = method.lstrip("/").replace("/", ".")
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(name)
    except KeyError:
        return False
    return descriptor.GetOptions().idempotency_level in _IDEMPOTENT
