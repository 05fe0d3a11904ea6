"""Train recipes/rank-sweep.yaml with several ranks and print one line for each: rank and validation losses.

python recipes/rank_sweep.py --data instruction-data.json [--model tiny] [--ranks 8,16,32,64] [--out runs] ...
Any other option is one of `finetwo train` and goes to each run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from finetwo.app.cli import main


def sweep(words: list[str]) -> int:
    """Run the sweep; return the exit code of the first run that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--ranks", default="8,16,32,64")
    parser.add_argument("--out", default="runs")
    asked, options = parser.parse_known_args(words)
    recipe = str(Path(__file__).with_name("rank-sweep.yaml"))
    lines = []
    for rank in (int(r) for r in asked.ranks.split(",")):
        out = Path(asked.out) / f"rank-{rank}"
        lora = ["--lora.rank", str(rank), "--lora.alpha", str(2 * rank), "--out", str(out)]
        code = main(["train", "--config", recipe, *lora, *options])
        if code:
            return code
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found = [e["loss"] for e in events if e["event"] == "evaluation"]
        lines.append(f"{rank:>5}  {found[0]:>8.4f}  {min(found):>8.4f}  {found[-1]:>8.4f}")
    print(" rank     start      best      last   (validation loss)")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(sweep(sys.argv[1:]))
