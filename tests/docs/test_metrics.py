"""docs/metrics.md: the list of instruments is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider

from lb.telemetry.instruments import Instruments

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Meter(NoOpMeter):
    """Keeps the names and units of what is made of it."""

    def __init__(self) -> None:
        super().__init__("test")
        self.made: dict[str, str] = {}

    def create_histogram(self, name: str, unit: str = "", *rest: Any, **named: Any) -> Any:
        """See ``Meter``."""
        self.made[name] = unit
        return super().create_histogram(name, unit)

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", *rest: Any) -> Any:
        """See ``Meter``."""
        self.made[name] = unit
        return super().create_observable_counter(name)

    create_observable_gauge = create_observable_counter  # type: ignore[assignment]


class Provider(NoOpMeterProvider):
    """Hands out one `Meter`."""

    meter = Meter()

    def get_meter(self, *_: Any, **__: Any) -> Any:
        """See ``MeterProvider``."""
        return self.meter


def test_every_instrument_is_listed() -> None:
    """No instrument is missing, none is invented, and those in seconds or bytes say so."""
    Instruments(Provider())
    made = {name: unit if unit in ("s", "By") else None for name, unit in Provider.meter.made.items()}
    rows = re.findall(r"^\| `([a-z_.]+)` \| [a-z]+(?:, (\w+))? \|", PAGE.read_text(), re.MULTILINE)
    assert {name: unit or None for name, unit in rows} == made
