"""docs/metrics.md: the list of instruments is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider

from lb.telemetry.instruments import Instruments

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "metrics.md"


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


def test_the_alerts_read_what_is_exported() -> None:
    """Each series of the rules in docs/operating.md is an instrument, under the name that Prometheus gives it.

    A dot becomes ``_``, a unit is added, and a counter ends in ``_total``; a histogram has ``_count`` and ``_sum``.
    """
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([a-z]+)(?:, (\w+))? \|", PAGE.read_text(), re.MULTILINE)
    exported = set()
    for name, kind, unit in rows:
        series = name.replace(".", "_") + {"s": "_seconds", "By": "_bytes", "": ""}[unit]
        ends = {"counter": ["_total"], "histogram": ["_count", "_sum", "_bucket"], "gauge": [""]}[kind]
        exported |= {series + end for end in ends}
    (rules,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "operating.md").read_text(), re.MULTILINE | re.DOTALL)
    read = set(re.findall(r"\b(?:grpc|lb)_client_\w+", rules))
    assert len(read) >= 5
    assert read <= exported
