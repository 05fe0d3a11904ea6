"""Child process of test_checkpoint: saves checkpoints, with or without torch, to be killed while it does.

`plain RUN STEP KEEP TIMES` saves STEP so many times; torch is replaced by a stand-in, so that it starts quickly.
`loop RUN SEED TRIALS` forks savers that are killed at random moments, and verifies after each.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import types
from pathlib import Path


def without_torch() -> None:
    """Put a stand-in for torch in place: enough to import the store and to write files without tensors."""
    torch = types.ModuleType("torch")
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        setattr(torch, name, name)
    torch.dtype = torch.Tensor = object  # type: ignore[attr-defined]
    sys.modules["torch"] = torch


def plain(run: Path, step: int, keep: int, times: int) -> int:
    """Save, and return the exit code of what happened."""
    without_torch()
    from finetwo.core.errors import FineTwoError
    from finetwo.store.checkpoint import write_checkpoint

    try:
        for turn in range(times):
            write_checkpoint(run, step, {"model": {}, "optimizer": {}}, {"turn": turn}, keep)
    except FineTwoError as error:
        sys.stderr.write(error.line() + "\n")
        return error.exit_code
    return 0


def save_for_ever(run: Path, seed: int) -> None:
    """Save step after step, some of them twice, until killed."""
    import torch

    from finetwo.store.checkpoint import newest_valid, write_checkpoint

    found, _ = newest_valid(run)
    step, chance = 0 if found is None else found.step, random.Random(seed)
    while True:
        step += chance.random() < 0.8
        value = torch.full((5000,), float(step))
        write_checkpoint(run, step, {"model": {"w": value}, "optimizer": {"m": value}}, {"step": step}, keep=1)


def loop(run: Path, seed: int, trials: int) -> int:
    """Kill a saver `trials` times; return 0 if after each there was a valid checkpoint, never an older one."""
    import torch

    from finetwo.store.checkpoint import list_checkpoints, newest_valid, write_checkpoint

    torch.set_num_threads(1)
    chance, last = random.Random(seed), 0
    write_checkpoint(run, 0, {"model": {"w": torch.zeros(5000)}, "optimizer": {}}, {"step": 0}, keep=1)
    for trial in range(trials):
        child = os.fork()
        if child == 0:
            save_for_ever(run, seed + trial)
        time.sleep(chance.random() * 0.06)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found, skipped = newest_valid(run)
        if found is None or found.step < last or skipped:
            sys.stderr.write(f"seed {seed} trial {trial}: {found} after {last}, {skipped}\n")
            return 1
        if not torch.equal(found.tensors("model")["w"], torch.full((5000,), float(found.step))):
            sys.stderr.write(f"seed {seed} trial {trial}: wrong content at {found.step}\n")
            return 1
        last = found.step
    write_checkpoint(run, last + 1, {"model": {}}, {}, keep=1)
    left = sorted(os.listdir(run))
    if left != [f"checkpoint-{last + 1}"] or len(list_checkpoints(run)) != 1 or last < 2:
        sys.stderr.write(f"seed {seed}: left {left} after {last}\n")
        return 1
    return 0


if __name__ == "__main__":
    what, folder, *numbers = sys.argv[1:]
    verb = {"plain": plain, "loop": loop}[what]
    sys.exit(verb(Path(folder), *map(int, numbers)))
