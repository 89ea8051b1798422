"""What tests of scopes share."""

from __future__ import annotations


class Noted:
    """An outgoing call that counts how often it was told."""

    def __init__(self) -> None:
        self.told = 0

    def incoming_cancelled(self) -> None:
        """Count."""
        self.told += 1
