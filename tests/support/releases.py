"""Which grpcio the tests run with, and what its core words otherwise than today's (`make releases`)."""

from __future__ import annotations

import grpc
import pytest

RELEASE = tuple(int(part) for part in grpc.__version__.split(".")[:2])
WRAPS = RELEASE >= (1, 81)
"""Whether core says where it met an error: ``Stream removed (Socket closed)``. Before, ``Socket closed``."""


def worded(words: str) -> str:
    """What today's core says, as the installed one says it."""
    return words if WRAPS else words.removeprefix("Stream removed (").removesuffix(")")


def since(ours: bool, *release: int) -> None:
    """Skip a test of grpcio's own channel with a grpcio before this release, which did otherwise; ours never did."""
    if not ours and release > RELEASE:
        pytest.skip(f"grpcio itself does so from {'.'.join(map(str, release))} on")
