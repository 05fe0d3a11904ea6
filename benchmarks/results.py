"""Every recipe on its data, with seeds and baselines, and the page docs/results.md made of what the runs found.

    python benchmarks/results.py run --data FOLDER [--model tiny] [--only emotion,rte] [--jobs 2] [--out runs/results]
    python benchmarks/results.py page [--out runs/results]

`run` trains and evaluates by the command line alone, as a user would; what is done already is not done again. FOLDER
holds the data sets by the names in `EXPERIMENTS`; one that is missing is left out. With `--model gpt2` the same is done
with the published weights. `page` reads the run folders, and writes docs/results.json, docs/results.md and the plots.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = "figures-{}.json"


@dataclass(frozen=True)
class Measured:
    """One evaluation: of the run, and of the model it started from."""

    name: str
    data: str
    options: tuple[str, ...] = ()
    part: str = "all"
    untuned: bool = True
    final: bool = False
    """The last step instead of the best one: where the best was chosen on the very data that is measured."""


@dataclass(frozen=True)
class Experiment:
    """One recipe on one data set."""

    name: str
    recipe: str
    data: str
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    measured: tuple[Measured, ...] = ()
    random_seeds: tuple[int, ...] = ()
    """Also from random weights of the same shape."""


_ANSWERS = ("--metrics", "rouge_l,bleu,distinct,stop_rate,exact_match", "--max_new_tokens", "96")
_EMOTION = ("--rows.delimiter", ";")
_RTE = ("--rows.labels", "entailment,not_entailment")
_BOOK = "instruct/instruction-data.json"
_BOOK_SPLIT = ("--rows.split", "train:935,test:110,validation:55")
EXPERIMENTS = (
    Experiment(
        "emotion", "emotion", "classify/emotion", (), (0, 1, 2),
        (Measured("test", "classify/emotion", _EMOTION, "test", untuned=False),), random_seeds=(0,),
    ),
    Experiment(
        "austen", "austen", "style/austen", (), (0,),
        (
            Measured("Persuasion (held out)", "style/austen/austen-persuasion.txt"),
            Measured("Great Expectations", "style/dickens/dickens-GE.txt"),
            Measured("Oliver Twist", "style/dickens/dickens-OT.txt"),
            Measured("A Tale of Two Cities", "style/dickens/dickens-TTC.txt"),
            Measured("A Christmas Carol", "style/dickens/dickens-carol.txt"),
        ),
    ),
    Experiment(
        "rte", "rte", "entail/rte", ("--epochs", "3"), (0, 1, 2),
        (Measured("dev", "entail/rte", _RTE, "validation", untuned=False, final=True),),
    ),
    Experiment("book", "book", _BOOK, (), (0, 1, 2), (Measured("test", _BOOK, (*_BOOK_SPLIT, *_ANSWERS), "test"),)),
    Experiment("verdict", "verdict", "pretrain/the-verdict.txt"),
    Experiment("verdict-post-norm", "verdict-post-norm", "pretrain/the-verdict.txt"),
    Experiment("verdict-muon", "verdict", "pretrain/the-verdict.txt", ("--optimizer", "muon")),
    Experiment(
        "alpaca-3000", "alpaca", "instruct/alpaca_data.json", ("--rows.limit", "3000", "--epochs", "2"), (0,),
        (
            Measured(
                "validation", "instruct/alpaca_data.json",
                ("--rows.limit", "3000", "--rows.split", "train:0.95,validation:0.05", *_ANSWERS), "validation",
            ),
        ),
    ),
    Experiment(
        "dolly-3000", "dolly", "instruct/databricks-dolly-15k.jsonl",
        ("--rows.limit", "3000", "--epochs", "2", "--max_length", "256"), (0,),
        (
            Measured(
                "test", "instruct/databricks-dolly-15k.jsonl",
                ("--rows.limit", "3000", "--rows.split", "train:0.9,validation:0.05,test:0.05", *_ANSWERS), "test",
            ),
        ),
    ),
    *(
        Experiment(
            f"rank-{rank}", "rank-sweep", _BOOK,
            ("--lora.rank", str(rank), "--lora.alpha", str(2 * rank), "--epochs", "2"),
        )
        for rank in (8, 16, 32, 64)
    ),
)  # fmt: skip


@dataclass
class Plan:
    """Where things are."""

    data: Path
    model: str
    out: Path
    threads: int
    done: list[str] = field(default_factory=list)


def finetwo(plan: Plan, *words: str) -> str:
    """Run one command line; return its standard output. A failure ends the script with what the command said."""
    environment = os.environ | {"OMP_NUM_THREADS": str(plan.threads)}
    command = [sys.executable, "-m", "finetwo", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"finetwo {' '.join(words)}\n{done.stderr[-2000:]}")
    return done.stdout


def random_model(plan: Plan, seed: int) -> Path:
    """A model of the same shape with random weights."""
    from finetwo import load
    from finetwo.model.network import Network

    folder = plan.out / f"random-{seed}"
    if not folder.exists():
        model = load(plan.model, device="cpu")
        model.network = Network.fresh(model.network.config, 1000 + seed)
        model.save(folder)
    return folder


def run_one(plan: Plan, experiment: Experiment, seed: int, start: str, folder: Path) -> None:
    """Train one run and measure it; what is there is kept."""
    data = plan.data / experiment.data
    if not (folder / "final").is_dir():
        recipe = str(ROOT / "recipes" / f"{experiment.recipe}.yaml")
        words = ["--data", str(data), "--model", start, "--seed", str(seed), "--out", str(folder)]
        finetwo(plan, "train", "--config", recipe, *words, *experiment.options)
    for measured in experiment.measured:
        target = folder / FIGURES.format(measured.name)
        if not target.exists():
            model = folder / "final" if measured.final else folder
            target.write_text(evaluated(plan, str(model), measured), encoding="utf-8")
        before = plan.out / f"untuned-{experiment.name}-{measured.name}.json"
        if measured.untuned and seed == 0 and not before.exists():
            # what the untuned model reads is written by the run's own template
            template = ("--template", "dolly" if "dolly" in experiment.name else "alpaca")
            extra = template if "instruct" in measured.data else ()
            before.write_text(evaluated(plan, plan.model, measured, extra), encoding="utf-8")
    print(f"{folder.name}: done", flush=True)


def evaluated(plan: Plan, model: str, measured: Measured, extra: Iterable[str] = ()) -> str:
    """The figures of one evaluation, as JSON text."""
    words = [*measured.options, *extra, "--part", measured.part, "--batch_size", "16", "--json"]
    return finetwo(plan, "evaluate", model, str(plan.data / measured.data), *words)


def baselines(plan: Plan) -> dict[str, Any]:
    """Majority class, and TF-IDF with logistic regression, on the classification sets that are there."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline

    from finetwo.core.config import RowsConfig
    from finetwo.data.examples import load_splits

    found: dict[str, Any] = {}
    sets = {
        "emotion": ("classify/emotion", RowsConfig(delimiter=";"), "classify", "test"),
        "rte": ("entail/rte", RowsConfig(labels="entailment,not_entailment"), "entail", "validation"),
    }
    for name, (place, rows, kind, part) in sets.items():
        if not (plan.data / place).exists():
            continue
        loaded = load_splits(plan.data / place, rows, 0, lambda _: None, kind)  # type: ignore[arg-type]
        texts = {
            split: [" ".join(e.fields[role] for role in ("text", "first", "second") if role in e.fields) for e in part_]
            for split, part_ in loaded.splits.items()
        }
        labels = {split: [e.fields["label"] for e in part_] for split, part_ in loaded.splits.items()}
        most = max(set(labels["train"]), key=labels["train"].count)
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
        told = model.fit(texts["train"], labels["train"]).predict(texts[part])
        right = [a == b for a, b in zip(told, labels[part], strict=True)]
        found[name] = {
            "majority": labels[part].count(most) / len(labels[part]),
            "tfidf_accuracy": sum(right) / len(right),
            "tfidf_macro_f1": float(f1_score(labels[part], told, average="macro")),
        }
    return found


def run(plan: Plan, only: set[str], jobs: int) -> None:
    """Do everything that is not done yet, `jobs` runs at a time."""
    plan.out.mkdir(parents=True, exist_ok=True)
    tasks = []
    for experiment in EXPERIMENTS:
        if only and experiment.name not in only:
            continue
        if not (plan.data / experiment.data).exists():
            print(f"{experiment.name}: no {experiment.data} in {plan.data}; left out", flush=True)
            continue
        for seed in experiment.seeds:
            tasks.append((experiment, seed, plan.model, plan.out / f"{experiment.name}-{seed}"))
            if seed in experiment.random_seeds:
                start = str(random_model(plan, seed))
                tasks.append((experiment, seed, start, plan.out / f"{experiment.name}-random-{seed}"))
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(run_one, plan, *task) for task in tasks]:
            future.result()
    write_samples(plan)
    target = plan.out / "baselines.json"
    if not target.exists():
        target.write_text(json.dumps(baselines(plan)), encoding="utf-8")


def write_samples(plan: Plan) -> None:
    """Let the untuned and the tuned models answer prompts of our own."""
    from results_page import OPENING, PROMPTS  # it reads the experiments from here

    target, found = plan.out / "samples.json", {}
    for run_name, prompts in (("book-0", PROMPTS), ("austen-0", (OPENING,))):
        if (plan.out / run_name / "final").is_dir():
            for prompt in prompts:
                words = (prompt, "--max_new_tokens", "48", "--repetition_penalty", "1.1")
                both = [finetwo(plan, "generate", m, *words) for m in (plan.model, str(plan.out / run_name))]
                found[prompt] = [text.strip() for text in both]
    target.write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "page"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    asked = parser.parse_args()
    if asked.action == "run":
        plan = Plan(asked.data, asked.model, asked.out, max(1, asked.threads // asked.jobs))
        run(plan, {name for name in asked.only.split(",") if name}, asked.jobs)
    else:
        from results_page import write_page

        write_page(asked.out, ROOT / "docs")


if __name__ == "__main__":
    main()
