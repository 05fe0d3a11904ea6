"""What the data doctor finds: kinds of faults, how many records have each, and where the first of them stand.

It knows no data and no network. Its one invariant: a count is of all records, whatever part of them is named, and a
text is shown escaped and short.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from finetwo.core.errors import shown

KEPT = 20
"""Places that are remembered of each kind."""
_TEXT = 80

KINDS: dict[str, tuple[str, bool]] = {
    "empty answer": ("records without an answer; they are left out", True),
    "empty prompt": ("records without a prompt; they are left out", False),
    "empty text": ("records without text; they are left out", False),
    "no class": ("records without a class; they are left out", False),
    "duplicate": ("records that repeat an earlier one of their split", True),
    "near duplicate": ("records that nearly repeat an earlier one of their split (Jaccard >= 0.8)", False),
    "overlap": ("records that stand in an earlier split too (of train, validation, test)", True),
    "near overlap": ("records that nearly repeat one of an earlier split (Jaccard >= 0.8)", False),
    "label conflict": ("texts that bear more than one class", True),
    "class imbalance": ("classes with less than a tenth of the largest class's training records", False),
    "too long": ("records left out, because too little of them fits into max_length", False),
    "cut": ("records cut at max_length: what is beyond is not read, and a cut answer teaches no end", False),
    "one-word answer": ("records with an answer of one word", False),
    "answer equals prompt": ("records whose answer is their prompt", False),
    "template words": ("records with words of a prompt template in their text", False),
    "replacement character": ("records with U+FFFD, which stands where a byte could not be read", False),
    "mojibake": ("records with UTF-8 read as another encoding, such as 'Ã©' for 'é'", False),
    "control characters": ("records with control characters", False),
    "html": ("records with HTML tags or entities", False),
}
"""Each kind: what its count is of, and whether --strict refuses it."""


@dataclass(frozen=True)
class Spot:
    """One place, and what is to be seen there: safe, short, on one line."""

    where: str
    text: str

    def line(self) -> str:
        """Place and text."""
        return f"{self.where}: {self.text}" if self.text else self.where


def spot(where: str, text: str, start: int = 0, end: int = 0) -> Spot:
    """Return the place with an excerpt of `text` around the characters from `start` to `end`."""
    low = max(0, start - 20)
    cut = text[low : max(low + _TEXT, min(end, low + _TEXT) + 20)]
    return Spot(shown(where, 300), ("…" if low else "") + shown(cut, _TEXT))


@dataclass(frozen=True)
class Finding:
    """A kind of fault: how many there are, and the first places."""

    kind: str
    count: int
    spots: tuple[Spot, ...]

    @property
    def strict(self) -> bool:
        """Whether --strict refuses it."""
        return KINDS[self.kind][1]

    @property
    def about(self) -> str:
        """What the count is of."""
        return KINDS[self.kind][0]

    def line(self, places: int = 3) -> str:
        """The finding as one line, with its first `places`."""
        places = min(places, len(self.spots))
        more = f"; and {self.count - places:,} more" if places and self.count > places else ""
        named = "; ".join(s.line() for s in self.spots[:places])
        return f"{self.kind}: {self.count:,} {self.about}" + (f": {named}{more}" if named else "")

    def brief(self) -> str:
        """The finding in a few words, with its first place."""
        return f"{self.kind}: {self.count:,}" + (f" ({self.spots[0].where})" if self.spots else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        spots = [{"where": s.where, "text": s.text} for s in self.spots]
        return {"kind": self.kind, "count": self.count, "about": self.about, "strict": self.strict, "spots": spots}


@dataclass
class Findings:
    """Findings in the making."""

    counts: Counter[str] = field(default_factory=Counter)
    spots: dict[str, list[Spot]] = field(default_factory=dict)

    def add(self, kind: str, place: Spot | None = None) -> None:
        """Count one more of `kind`."""
        self.counts[kind] += 1
        kept = self.spots.setdefault(kind, [])
        if place is not None and len(kept) < KEPT:
            kept.append(place)

    def list(self) -> list[Finding]:
        """What was found, in the order of `KINDS`."""
        return [Finding(kind, self.counts[kind], tuple(self.spots[kind])) for kind in KINDS if self.counts[kind]]
