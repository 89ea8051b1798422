"""Numbers as protobuf writes them, for the messages that are read and written by hand."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
