"""A finding: what went wrong, why, and how that is known.

It knows no run and no check. Its one invariant: a finding without a cause and the check that found it cannot be made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One failure of a run."""

    name: str
    cause: str
    check: str
    """What was seen, with its numbers."""
    fix: str

    def lines(self) -> list[str]:
        """The finding as lines for a person."""
        return [f"{self.name}: {self.cause}", f"    seen: {self.check}", f"    fix:  {self.fix}"]

    def to_dict(self) -> dict[str, str]:
        """As JSON content."""
        return asdict(self)
