"""What evaluation finds: named figures, each with the protocol it was taken by and, where there is one, its interval.

It knows no models and no data. Its one invariant: a figure cannot be had without the protocol it was taken by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetwo.insight.metric import Interval, Result, Value


@dataclass
class Figures:
    """Named figures in the order they were added."""

    values: dict[str, Value] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)

    def add(self, values: Mapping[str, Value], protocol: str, intervals: Mapping[str, Interval] | None = None) -> None:
        """Add figures that share a protocol; one that is not a number is none."""
        self.values |= {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in values.items()}
        self.protocols |= dict.fromkeys(values, protocol)
        self.intervals |= intervals or {}

    def add_result(self, found: Result, condition: str) -> None:
        """Add what a metric found; `condition` says how the answers were made."""
        self.add(found.result(), f"{found.protocol}; {condition}", found.intervals())

    def join(self, other: Figures) -> None:
        """Add the figures of another set."""
        self.values |= other.values
        self.protocols |= other.protocols
        self.intervals |= other.intervals

    def to_dict(self, protocol: str) -> dict[str, Any]:
        """As JSON content: the figures, the `protocol` of the losses, then protocol and interval by figure."""
        intervals = {name: list(found) for name, found in self.intervals.items()}
        return {**self.values, "protocol": protocol, "protocols": dict(self.protocols), "intervals": intervals}
