"""Write docs/performance.md, its tables and its plots, from benchmarks/results/*.json.

    python benchmarks/performance_page.py [--results FOLDER] [--docs FOLDER]

It measures nothing and knows no figure: whatever stands on the page was read from a file that a benchmark wrote, and a
benchmark whose file is not there has no section.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparing import verdict
from harness import RESULTS
from surroundings import ROOT

ABOUT = {
    "train": (
        "Training",
        "Real tokens a second, without padding. The sides of a workload are processes and take turns step by step, "
        "and a ratio is of two steps on the same batch, one right after the other; the losses stand beside the speed.",
    ),
    "generate": ("Generation", "Tokens a second after the prompt was read, greedy."),
    "data": ("Preparation", "Records of instructions to token ids; ours includes the template and the targets."),
    "start": ("Start", "Seconds from the command to what is named, files in the system's cache."),
    "growth": ("How cost grows", "Ours alone; one thing is changed at a time."),
    "gpu": (
        "One GPU",
        "Random weights of the published shapes, records made from a seed, bf16 on both sides. They warm up at one "
        "time and then take one turn each; a ratio of training is of blocks of five steps on the same batches.",
    ),
    "limits": ("What the machine gives", "The most that was reached; the shares on this page are shares of these."),
    "limits-cuda": ("What the GPU gives", "The most that was reached."),
}
"""Sections in their order; a file of another name comes last, under that name."""


def figure(value: float) -> str:
    """A figure with three digits that count."""
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing where there are no rows."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return []
    line = ["---" if i == 0 or not head[i] else "---:" for i in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in (head, line, *cells)] + [""]


def limits_of(found: Mapping[str, Any]) -> dict[str, float]:
    """The measured rates in operations and bytes a second: of float32, bf16, and the better of copy and read."""
    limits: dict[str, float] = {}
    for row in found.get("limits", {}).get("workloads", ()):
        medians = {name: side["median"] * 1e9 for name, side in row["sides"].items()}
        if row["unit"] == "GFLOP/s":
            limits |= {{"bfloat16": "bf16"}.get(name, name): value for name, value in medians.items()}
        elif medians:
            limits["memory"] = max(medians.values())
    return limits


def share(side: Mapping[str, Any], limits: Mapping[str, float], result: Mapping[str, Any]) -> str:
    """What share of a limit a side reaches: its own word, or by the operations or bytes that its unit takes."""
    if "share" in side:
        return f"{side['share']:.0%}"
    if result["benchmark"] == "gpu":
        return ""
    if "flops" in side and side.get("precision") in limits:
        return f"{side['median'] * side['flops'] / limits[side['precision']]:.0%} of matrix rate"
    if "bytes" in side and "memory" in limits:
        return f"{side['median'] * side['bytes'] / limits['memory']:.0%} of memory rate"
    return ""


def sides_table(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float], result: Mapping[str, Any]) -> list[str]:
    """Every side with its median, spread and peak."""
    cells, shares = [], False
    for row in rows:
        for name, side in row["sides"].items():
            part = share(side, limits, result)
            shares = shares or bool(part)
            gpu = f" (GPU {figure(side['gpu_peak_mb'])})" if "gpu_peak_mb" in side else ""
            spread = f"{figure(side['low'])} to {figure(side['high'])}"
            cells.append((row["name"], f"{name}{': ' + side['note'] if side['note'] else ''}", figure(side["median"]),
                          spread, row["unit"], figure(side["peak_mb"]) + gpu, part))  # fmt: skip
    head = ["workload", "side", "median", "lowest to highest", "unit", "peak MB", "share of limit"]
    return table(head if shares else head[:-1], cells if shares else [cell[:-1] for cell in cells])


def pairs_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every pair with the ratio of the same round, and what was asked."""
    cells = []
    for row in rows:
        for p in row["pairs"]:
            asked = "" if p["must"] is None else f"{p['must']:.3g} / {p['aim']:.3g}"
            what = "times as fast" if p["of"] == "speed" else "of its memory"
            spread = f"{p['low']:.2f} to {p['high']:.2f}"
            cells.append(
                (row["name"], f"{p['ours']} / {p['peer']}", f"{p['median']:.2f} {what}", spread, asked, verdict(p))
            )
    return table(["workload", "ours / peer", "ratio", "lowest to highest", "must / aim", ""], cells)


def losses_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first losses of each side and its last: a faster wrong step counts nothing."""
    cells = []
    for row in rows:
        for name, side in row["sides"].items():
            losses = side.get("losses") or []
            if losses:
                first = ", ".join(f"{loss:.4f}" for loss in losses[:3])
                cells.append((row["name"], name, first, f"{losses[-1]:.4f} (step {len(losses)})"))
    return table(["workload", "side", "first losses", "last"], cells)


def failures_list(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was not measured, and why."""
    lines = [f"- {row['name']}, {name}: {why}" for row in rows for name, why in row["failures"].items()]
    return ["Not measured:", "", *lines, ""] if lines else []


def ran_on(result: Mapping[str, Any]) -> str:
    """One line: machine, commit, versions."""
    m = result["machine"]
    sets = f" ({', '.join(m['instructions'])})" if m["instructions"] else ""
    packages = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if name in ("torch", "tokenizers"))
    theirs = result["peer_versions"] or result["versions"]  # without an environment of their own peers run in ours
    peers = ", ".join(f"{name} {v}" for name, v in theirs.items() if name not in ("torch", "numpy"))
    gpu = f"; {m['gpu']}" if "gpu" in m else ""
    changed = ", with changes not committed" if result["changed"] else ""
    return (
        f"{result['at']} UTC, commit `{result['commit'][:10]}`{changed}; {m['cpu']}, {m['cores']} cores{sets}, "
        f"{m['memory_gib']} GiB{gpu}, {m['system']}, Python {m['python']}; {packages}"
        + (f"; peers: {peers}" if peers else "")
        + "."
    )


def draw(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the curves of a benchmark; return the lines that show them."""
    curves = [curve for curve in result["curves"] if curve["lines"]]
    if not curves:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(curves))
    height = -(-len(curves) // columns)
    figure_, axes = plt.subplots(height, columns, figsize=(5.0 * columns, 3.2 * height), squeeze=False)
    for axis, curve in zip(axes.flat, curves, strict=False):
        for label, points in curve["lines"].items():
            xs, ys = zip(*sorted(points), strict=True)
            axis.plot(xs, ys, marker="o", label=label)
        if len({x for points in curve["lines"].values() for x, _ in points}) > 2:
            axis.set_xscale("log", base=2)
        axis.set(title=curve["name"], xlabel=curve["x"], ylabel=curve["y"])
        axis.set_ylim(0, 1.08 * max(y for points in curve["lines"].values() for _, y in points))
        axis.grid(alpha=0.3)
        if len(curve["lines"]) > 1:
            axis.legend(fontsize=8)
    for axis in list(axes.flat)[len(curves) :]:
        axis.set_visible(False)
    figure_.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{result['benchmark']}.png"
    figure_.savefig(folder / name, dpi=110, metadata={"Software": None})
    plt.close(figure_)
    return [f"![{ABOUT.get(result['benchmark'], (result['benchmark'],))[0]}](performance/{name})", ""]


def tables(result: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The tables of a benchmark; of one whose workloads stand in several groups, those of each group apart."""
    groups = dict.fromkeys(row.get("group", "") for row in result["workloads"])
    lines = []
    for group in groups:
        rows = [row for row in result["workloads"] if row.get("group", "") == group]
        head = [f"### {group[:1].upper()}{group[1:]}", ""] if len(groups) > 1 else []
        lines += [*head, *pairs_table(rows), *sides_table(rows, limits, result), *losses_table(rows)]
    return lines


def section(result: Mapping[str, Any], limits: Mapping[str, float], folder: Path) -> list[str]:
    """One benchmark's part of the page."""
    title, about = ABOUT.get(result["benchmark"], (result["benchmark"].capitalize(), ""))
    told = {
        name: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, value in result["settings"].items()
    }
    settings = ", ".join(f"{name} {value}" for name, value in told.items() if value not in ("", None))
    small = ["**A smoke run: tiny shapes, and no figure means anything.**", ""] if result["smoke"] else []
    return [
        f"## {title}",
        "",
        *([about, ""] if about else []),
        *small,
        ran_on(result),
        *([f"Settings: {settings}."] if settings else []),
        "",
        *([*(f"- {note}" for note in result["notes"]), ""] if result["notes"] else []),
        *tables(result, limits),
        *draw(result, folder),
        *failures_list(result["workloads"]),
    ]


def page(results: Path, docs: Path) -> Path | None:
    """Write the page; None where no benchmark has been run."""
    found = {}
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[content["benchmark"]] = content
    if not found:
        return None
    limits = limits_of(found)
    order = [*(name for name in ABOUT if name in found), *(name for name in found if name not in ABOUT)]
    lines = [
        "# Performance",
        "",
        "Generated by `make bench-page` from the files in `benchmarks/results/`, which the benchmarks write:",
        f"{', '.join(f'`make bench-{name}`' for name in order if not name.startswith('limits-'))}. A ratio is taken of",
        "runs next to each other in time, ours and the peer's in turn; medians stand with the lowest and the highest.",
        "",
    ]
    for name in order:
        lines += section(found[name], limits, docs / "performance")
    target = docs / "performance.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return target


def main(words: list[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    asked = parser.parse_args(words)
    written = page(asked.results, asked.docs)
    if written is None:
        print(f"bench-page: no results in {asked.results}. Fix: run a benchmark, for example make bench-data")
        return 2
    print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
