"""Why a server does not start as it is set."""

from __future__ import annotations


class StartError(ValueError):
    """A server cannot start as it is set: its port is taken, or clients could not connect to its address.

    The message begins with the setting.
    """

    def __init__(self, setting: str, value: object, why: str) -> None:
        super().__init__(f"{setting}={value!r}: {why}")
        self.setting: str = setting
        """Its name: ``listen`` or ``address``."""
        self.value: object = value
        """What it is set to."""
        self.why: str = why
        """What is wrong with that."""
