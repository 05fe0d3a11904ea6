"""How long a person waits before anything happens: import, help, and the peers' import, run in turn.

python benchmarks/start.py [RUNS] prints medians with spread and, per round, our time over the peer's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

OURS = {
    "import finetwo": [sys.executable, "-c", "import finetwo"],
    "finetwo --help": [sys.executable, "-m", "finetwo", "--help"],
    "finetwo train --help": [sys.executable, "-m", "finetwo", "train", "--help"],
}
FLOOR = {"python -c pass": [sys.executable, "-c", "pass"]}
PEERS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import transformers.Trainer": [sys.executable, "-c", "from transformers import Trainer"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one run of `command`."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int) -> None:
    """Run every command `runs` times, interleaved, after one warm-up round."""
    commands = FLOOR | OURS | PEERS
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            took = seconds(command)
            if turn:
                times[name].append(took)
    peer = times["import transformers.Trainer"]
    print(f"{'command':<30} {'median s':>9} {'min':>7} {'max':>7} {'/ Trainer':>10}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, peer, strict=True))
        print(f"{name:<30} {statistics.median(found):>9.3f} {min(found):>7.3f} {max(found):>7.3f} {ratio:>10.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
