"""docs/results.json, docs/results.md and its plots, made of run folders; no figure is typed by hand.

The JSON holds every figure that the page shows, so the page can be read again without the runs. Its one invariant: the
page shows figures and texts of our own only, never a passage of outside data.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import EXPERIMENTS

PROMPTS = ("Name three things one finds in a kitchen.", "Rewrite in the past tense: She walks to the harbour.")
"""Prompts of our own, answered by the run of the book's records."""
OPENING = "It was agreed at breakfast that the visit should be returned"
"""An opening of our own, continued by the run of the novels."""
_TARGETS = {
    "emotion": "GPT-2 124M full tuning: macro F1 0.882; DistilBERT: accuracy 93.2 to 94.3 %",
    "rte": "GPT-2 124M full tuning: 65.3 % (FusionBench); an interval of 5.6 points either way",
    "book": "gpt2-medium: validation loss over all tokens 0.65 (two epochs), 0.867 (seed 004)",
    "alpaca-3000": "gpt2 124M on 3,000 cleaned records: validation loss 1.674 (seed 003, all tokens)",
    "dolly-3000": "none with this protocol; the GPT-2 family's is MiniLLM's DollyEval",
    "verdict": "124M, ten epochs, seed 004: training loss 0.77 with pre-norm, 6.08 with post-norm",
    "austen": "none published: the page sets it",
}


# --- collecting ---------------------------------------------------------------------------------------------------


def collect(out: Path) -> dict[str, Any]:
    """Everything the page shows, from the run folders below `out`."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted(out.iterdir()):
        if (folder / "metrics.jsonl").is_file() and (folder / "final").is_dir():
            name, _, seed = folder.name.rpartition("-")
            runs.setdefault(name, []).append(run_of(folder, int(seed)))
    untuned = {p.stem.removeprefix("untuned-"): json.loads(p.read_text()) for p in sorted(out.glob("untuned-*.json"))}
    baselines = json.loads((out / "baselines.json").read_text()) if (out / "baselines.json").is_file() else {}
    environment = json.loads(next(out.glob("*/environment.json")).read_text())
    samples = json.loads((out / "samples.json").read_text()) if (out / "samples.json").is_file() else {}
    machine = {"platform": platform.platform(), "threads": environment["threads"], "packages": environment["packages"]}
    changed = {e.name: list(e.options) for e in EXPERIMENTS if e.options and e.name in runs}
    found = {"machine": machine, "runs": runs, "untuned": untuned, "baselines": baselines}
    return found | {"samples": samples, "options": changed}


def run_of(folder: Path, seed: int) -> dict[str, Any]:
    """One run: its course and what it was measured to do."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [e for e in events if e["event"] == "step"]
    evaluations = [{k: v for k, v in e.items() if k != "event"} for e in events if e["event"] == "evaluation"]
    every = max(1, len(steps) // 60)
    return {
        "seed": seed,
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "train": [[s["step"], round(s["loss"], 4)] for s in steps[::every]],
        "evaluations": evaluations,
        "figures": {
            p.stem.removeprefix("figures-"): {k: v for k, v in json.loads(p.read_text()).items() if k != "protocols"}
            for p in sorted(folder.glob("figures-*.json"))
        },
    }


# --- writing ------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], form: str = "{:.1%}") -> str:
    """Mean and standard deviation over seeds, or the one value there is."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(statistics.mean(values))} ± {form.format(statistics.stdev(values))}"


def between(bounds: Sequence[float], form: str = "{:.1%}") -> str:
    """An interval."""
    return f"[{form.format(bounds[0])}, {form.format(bounds[1])}]"


def figures_of(found: dict[str, Any], experiment: str, measured: str) -> list[dict[str, Any]]:
    """What the runs of an experiment were measured to do, seed by seed."""
    runs = found["runs"].get(experiment, [])
    return [r["figures"][measured] for r in sorted(runs, key=lambda r: r["seed"]) if measured in r["figures"]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def classes(found: dict[str, Any]) -> list[str]:
    """Emotion and RTE."""
    lines: list[str] = []
    for name, measured, title in (("emotion", "test", "Emotion"), ("rte", "dev", "RTE")):
        tuned = figures_of(found, name, measured)
        if not tuned:
            continue
        head = ("", "seeds", "accuracy", "95 % of seed 0", "macro F1", "Matthews", "calibration error before → after")
        rows = [class_row("tuned", tuned)]
        if random := figures_of(found, f"{name}-random", measured):
            rows.append(class_row("the same from random weights", random))
        base = found["baselines"].get(name, {})
        if base:
            tfidf = [f"{base['tfidf_accuracy']:.1%}", "", f"{base['tfidf_macro_f1']:.3f}", "", ""]
            rows.append(["TF-IDF (1-2 words) + logistic regression", "", *tfidf])
            rows.append(["majority class", "", f"{base['majority']:.1%}", "", "", "", ""])
        how = (
            "2,000 test records; the step with the best validation accuracy; probabilities calibrated on validation"
            if name == "emotion"
            else "277 development records (the test labels are withheld); the last step, so that nothing was chosen on "
            "them; their temperature was fitted on them too, so no calibration error is shown"
        )
        if name == "rte":
            rows = [[*row[:6], ""] for row in rows]
        lines += [f"## {title}", "", f"{how}. Published: {_TARGETS[name]}.", "", *table(head, rows)]
        if name == "emotion":
            lines += ["![Reliability and abstaining](results/emotion.png)", "", *per_class(tuned[0])]
    return lines


def class_row(what: str, runs: list[dict[str, Any]]) -> list[str]:
    """One line of the table of classes."""
    return [
        what,
        str(len(runs)),
        spread([r["accuracy"] for r in runs]),
        between(runs[0]["intervals"]["accuracy"]),
        spread([r["macro_f1"] for r in runs], "{:.3f}"),
        spread([r["matthews"] for r in runs], "{:.3f}"),
        f"{spread([r['ece_raw'] for r in runs], '{:.3f}')} → {spread([r['ece'] for r in runs], '{:.3f}')}",
    ]


def per_class(figures: dict[str, Any]) -> list[str]:
    """Precision, recall and F1 of each class."""
    rows = [
        [c["label"], *(f"{c[n]:.3f} {between(c['intervals'][n], '{:.3f}')}" for n in ("precision", "recall", "f1"))]
        for c in figures["classes"]
    ]
    return ["Seed 0, class by class, with 95 % intervals:", "", *table(("class", "precision", "recall", "F1"), rows)]


def instructions(found: dict[str, Any]) -> list[str]:
    """Book, Alpaca and Dolly."""
    head = ("recipe", "seeds", "records", "loss, answers", "loss, all tokens", "stop rate", "ROUGE-L", "BLEU", "exact")
    rows, notes = [], []
    for name, measured in (("book", "test"), ("alpaca-3000", "validation"), ("dolly-3000", "test")):
        tuned = figures_of(found, name, measured)
        before = found["untuned"].get(f"{name}-{measured}")
        if not tuned:
            continue
        rows.append([f"{name}: tuned", str(len(tuned)), *text_cells(tuned)])
        if before:
            rows.append([f"{name}: the untuned base", "", *text_cells([before])])
        notes.append(f"- {name}: {_TARGETS[name]}.")
    if not rows:
        return []
    how = (
        "Held-out records, greedy answers of at most 96 tokens; the step with the best validation loss. `alpaca-3000` "
        "has no test part: its validation part, 5 %, also chose the step. Losses in nats a token."
    )
    return [
        "## Instructions",
        "",
        how,
        "",
        *table(head, rows),
        "Published, with larger models and other protocols:",
        "",
        *notes,
        "",
    ]


def text_cells(runs: list[dict[str, Any]]) -> list[str]:
    """Cells of the table of instructions."""
    cells = [f"{runs[0]['records']:,}"]
    forms = (
        ("loss", "{:.3f}"),
        ("loss_all", "{:.3f}"),
        ("stop_rate", "{:.1%}"),
        ("rouge_l", "{:.3f}"),
        ("bleu", "{:.1f}"),
    )
    for name, form in (*forms, ("exact_match", "{:.1%}")):
        cells.append(spread([r[name] for r in runs], form) if all(r.get(name) is not None for r in runs) else "")
    return cells


def style(found: dict[str, Any]) -> list[str]:
    """Austen against Dickens."""
    rows = []
    runs = found["runs"].get("austen", [])
    for name, tuned in (runs[0]["figures"] if runs else {}).items():
        before = found["untuned"].get(f"austen-{name}")
        if before:
            change = tuned["perplexity"] / before["perplexity"] - 1
            bits = f"{before['bits_per_byte']:.3f} → {tuned['bits_per_byte']:.3f}"
            row = [name, f"{before['perplexity']:.2f}", f"{tuned['perplexity']:.2f}", f"{change:+.1%}", bits]
            rows.append((name.startswith("Persuasion"), change, row))
    if not rows:
        return []
    rows.sort(key=lambda r: (not r[0], r[1]))
    how = (
        "Tuned on six works of Austen; Persuasion is held out (and chose the best of the few steps looked at). "
        "Perplexity a token over whole works in chunks of 512 tokens; the vocabulary is the embedded base's own, so "
        "only the change compares with other models. The base never saw Austen or Dickens, but much of their century."
    )
    return [
        "## Style: Jane Austen",
        "",
        how,
        "",
        *table(("work", "before", "after", "change", "bits a byte"), [r[2] for r in rows]),
    ]


VERDICT = {"verdict": "pre-norm", "verdict-post-norm": "post-norm", "verdict-muon": "pre-norm, Muon"}
"""The experiments with that text, and what sets them apart."""


def pretraining(found: dict[str, Any]) -> list[str]:
    """The Verdict, norms before and after, and Muon."""
    rows = []
    for name, what in VERDICT.items():
        for run in found["runs"].get(name, [])[:1]:
            ends = [e["loss"] for e in run["evaluations"]]
            first, last = run["train"][0][1], run["train"][-1][1]
            rows.append(
                [what, str(run["steps"]), f"{first:.3f} → {last:.3f}", f"{ends[0]:.3f} → {min(ends):.3f} (best)"]
            )
    if not rows:
        return []
    how = f"Fresh weights of the base's shape on 20 kB, ten epochs, no warm-up. Published: {_TARGETS['verdict']}."
    head = ("norms", "steps", "training loss", "validation loss")
    return [
        "## Pre-training: The Verdict",
        "",
        how,
        "",
        *table(head, rows),
        "![The courses](results/verdict.png)",
        "",
    ]


def ranks(found: dict[str, Any]) -> list[str]:
    """The rank sweep."""
    rows = []
    for rank in (8, 16, 32, 64):
        for run in found["runs"].get(f"rank-{rank}", [])[:1]:
            ends = [e["loss"] for e in run["evaluations"]]
            rows.append([str(rank), f"{ends[0]:.4f}", f"{min(ends):.4f}", f"{ends[-1]:.4f}"])
    head = ("rank", "before", "best", "last")
    how = "The book's records, one seed, alpha twice the rank; validation loss over the answers."
    return ["## LoRA rank", "", how, "", *table(head, rows)] if rows else []


def samples(found: dict[str, Any]) -> list[str]:
    """Texts on prompts of our own."""
    lines = []
    for prompt, (before, after) in found["samples"].items():
        shown = [" ".join(text.split())[:300] or "(nothing)" for text in (before, after)]
        lines += [f"**{prompt}**", "", f"- untuned: {shown[0]}", f"- tuned: {shown[1]}", ""]
    how = "Prompts of our own; greedy. A model of 5 million parameters learns form, not knowledge."
    return ["## Samples", "", how, "", *lines] if lines else []


def plots(found: dict[str, Any], folder: Path) -> None:
    """The plots of the page."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    verdict = [(n, found["runs"][n][0]) for n in VERDICT if n in found["runs"]]
    if verdict:
        figure, axes = plt.subplots(figsize=(7, 3.6))
        for (name, run), colour in zip(verdict, ("tab:blue", "tab:orange", "tab:green"), strict=False):
            what = VERDICT[name]
            axes.plot(*zip(*run["train"], strict=True), color=colour, label=f"{what}, training")
            points = [(e["step"], e["loss"]) for e in run["evaluations"]]
            axes.plot(*zip(*points, strict=True), "o--", color=colour, label=f"{what}, validation", markersize=3)
        axes.set(xlabel="step", ylabel="loss (nats a token)", title="The Verdict, from fresh weights")
        axes.legend()
        figure.tight_layout()
        figure.savefig(folder / "verdict.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    tuned = figures_of(found, "emotion", "test")
    if tuned:
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
        bins = tuned[0]["reliability"]
        left.plot([0, 1], [0, 1], color="grey", linewidth=1)
        left.scatter(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins],
            s=[8 + 90 * math.sqrt(b["records"] / tuned[0]["records"]) for b in bins],
        )  # fmt: skip
        left.set(xlabel="confidence", ylabel="share right", title="Reliability (calibrated, seed 0)")
        curve = tuned[0]["coverage"]
        right.plot([c["coverage"] for c in curve], [c["accuracy"] for c in curve], "o-")
        right.invert_xaxis()
        right.set(xlabel="share of the records answered", ylabel="accuracy", title="Abstaining")
        figure.tight_layout()
        figure.savefig(folder / "emotion.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def write_page(out: Path, docs: Path) -> None:
    """Write docs/results.json, docs/results.md and docs/results/*.png."""
    found = collect(out)
    (docs / "results.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    plots(found, docs / "results")
    packages = ", ".join(f"{k} {v}" for k, v in found["machine"]["packages"].items())
    lines = [
        "# Results",
        "",
        "<!-- Written by `python benchmarks/results.py page`; do not edit. -->",
        "",
        "The recipes that were run, with the embedded base `tiny` (5.4 million parameters), on two CPU "
        "cores. The same with published weights is one command, where they can be downloaded:",
        "",
        "```",
        "python benchmarks/results.py run --data FOLDER --model gpt2 --out runs/results-gpt2",
        "python benchmarks/results.py page --out runs/results-gpt2",
        "```",
        "",
        f"{packages}; {found['machine']['platform']}. Several seeds: mean ± standard deviation over them. "
        "[results.json](results.json) holds all figures; [evaluation.md](evaluation.md) says what they are.",
        "",
        "To keep the whole short, some runs take less than their recipe, and one another optimizer: "
        + "; ".join(f"`{name}`: `{' '.join(options)}`" for name, options in found["options"].items())
        + ".",
        "",
        *classes(found),
        *instructions(found),
        *style(found),
        *pretraining(found),
        *ranks(found),
        *samples(found),
    ]
    (docs / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
