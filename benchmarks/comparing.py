"""Two sides by their runs: spread, how many times better, whether that was asked, and a table for a terminal.

It knows figures, and must not know where they came from. Its one invariant: a ratio is taken round by round, never of
two medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Asked = tuple[str, str, float | None, float | None]
"""Ours, the peer, and the ratio that must be and that should be reached."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def one_side(found: Sequence[Mapping[str, Any]], note: str) -> dict[str, Any]:
    """One side's runs in one: every value and their spread, the peaks of memory; further keys from the first run.

    A run that took turns has a value for each turn.
    """
    values = [float(v) for f in found for v in f.get("values", [f["value"]])]
    peaks = [float(f["peak_mb"]) for f in found]
    passed = {k: v for k, v in found[0].items() if k not in ("value", "peak_mb", "wall_s")}
    return {
        **passed, "values": values, **spread(values), "peak_mb": statistics.median(peaks), "peaks_mb": peaks,
        "note": note,
    }  # fmt: skip


def compare(sides: Mapping[str, Mapping[str, Any]], asked: Asked, better: str) -> dict[str, Any]:
    """How many times better ours is than the peer, round by round."""
    ours, peer, must, aim = asked
    pairs = zip(sides[ours]["values"], sides[peer]["values"], strict=True)
    ratios = [(a / b if better == "higher" else b / a) for a, b in pairs]
    return {"of": "speed", "ours": ours, "peer": peer, "ratios": ratios, **spread(ratios), "must": must, "aim": aim}


def compare_memory(sides: Mapping[str, Mapping[str, Any]], asked: Asked) -> dict[str, Any]:
    """Our peak of memory as a share of the peer's, round by round; `must` and `aim` are the most it may be."""
    ours, peer, must, aim = asked
    ratios = [a / b for a, b in zip(sides[ours]["peaks_mb"], sides[peer]["peaks_mb"], strict=True)]
    return {"of": "memory", "ours": ours, "peer": peer, "ratios": ratios, **spread(ratios), "must": must, "aim": aim}


def verdict(pair: Mapping[str, Any]) -> str:
    """Whether a pair's median meets what was asked of it."""
    if pair["must"] is None:
        return ""
    sign = -1.0 if pair["of"] == "memory" else 1.0
    if pair["aim"] is not None and sign * pair["median"] >= sign * pair["aim"]:
        return "aim met"
    return "met" if sign * pair["median"] >= sign * pair["must"] else "MISSED"


def print_table(workloads: Iterable[Mapping[str, Any]]) -> None:
    """Print a short table: every side with its median, spread and memory, then every pair with its ratio."""
    rows = [("workload", "side", "median", "low-high", "unit", "peak MB")]
    pairs = [("workload", "of", "ours / peer", "ratio", "low-high", "must / aim", "")]
    for w in workloads:
        for name, s in w["sides"].items():
            low_high = f"{s['low']:.4g}-{s['high']:.4g}"
            rows.append((w["name"], name, f"{s['median']:.4g}", low_high, w["unit"], f"{s['peak_mb']:.0f}"))
        for name, failure in w.get("failures", {}).items():
            rows.append((w["name"], name, "-", "-", failure[:60], "-"))
        for p in w["pairs"]:
            asked = "" if p["must"] is None else f"{p['must']:g} / {p['aim']:g}"
            names, between = f"{p['ours']} / {p['peer']}", f"{p['low']:.2f}-{p['high']:.2f}"
            pairs.append((w["name"], p["of"], names, f"{p['median']:.2f}", between, asked, verdict(p)))
    for table in (rows, pairs):
        if len(table) > 1:
            print_columns(table)
            print()


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of words in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
