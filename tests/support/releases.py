"""Which grpcio the tests run with, and what its core words otherwise than today's (`make releases`)."""

from __future__ import annotations

import grpc

RELEASE = tuple(int(part) for part in grpc.__version__.split(".")[:2])
WRAPS = RELEASE >= (1, 81)
"""Whether core says where it met an error: ``Stream removed (Socket closed)``. Before, ``Socket closed``."""


def worded(words: str) -> str:
    """What today's core says, as the installed one says it."""
    return words if WRAPS else words.removeprefix("Stream removed (").removesuffix(")")
