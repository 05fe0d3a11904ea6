"""How long a person waits: from the command to the first training step, and for import and help.

    python benchmarks/start.py [--shapes "4 x 256,gpt2"] [--rounds 5] [--smoke]

Eight records and a local model folder of each asked shape with random weights; the same files for both. A command is
timed from the outside, until the line that tells its first step, and ended there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import PARTIAL, Bench, Workload, options
from running import OFFLINE, PEER, Side, emit, script_side
from surroundings import ROOT, native_bf16
from workloads import SHAPES, some, write_records

MUST, AIM = 1 / 0.4, 1 / 0.3
STEP = re.compile(r"step +1/|'loss':|\"loss\":")
"""How FineTwo and TRL tell their first step."""
TRL = "import sys; from trl.cli import main; sys.argv[0] = 'trl'; main()"


def until(command: list[str], seen: re.Pattern[str] | None) -> tuple[float, float]:
    """Seconds until the command writes a line with `seen`, or ends where that is None, and its peak memory in MB."""
    environment = os.environ | OFFLINE | {"PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    assert child.stdout is not None
    said, took = [], None
    for line in child.stdout:
        said.append(line)
        if seen is not None and seen.search(line):
            took = time.perf_counter() - started
            os.killpg(child.pid, signal.SIGKILL)
            break
    _, status, usage = os.wait4(child.pid, 0)
    if took is None and (seen is not None or status):
        raise SystemExit(f"Error: no first step: {''.join(said)[-250:]}")
    return took or time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6


def side(words: list[str]) -> None:
    """Time one command: `step` waits for its first step, `end` for its end."""
    kind, *command = words
    with tempfile.TemporaryDirectory(dir=PARTIAL) as out:
        took, peak = until([word.replace("OUT", f"{out}/run") for word in command], STEP if kind == "step" else None)
    emit({"value": took, "peak_mb": peak})


def make(folder: Path, shape: str) -> None:
    """Write the records and a model folder; a process of its own, since it takes PyTorch."""
    from finetwo.model.config import GPT2Config
    from finetwo.model.network import Network
    from finetwo.store.folder import Extras, save_model
    from finetwo.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(ROOT / "src" / "finetwo" / "assets" / "tiny")
    size = SHAPES[shape] | {"vocab_size": max(SHAPES[shape]["vocab_size"], tokenizer.vocab_size)}
    save_model(folder / shape, Network.fresh(GPT2Config(**size), 0), tokenizer, Extras())
    found = some(8)
    rows = [{"prompt": f"{r['instruction']} {r['input']}".strip(), "completion": r["output"]} for r in found]
    write_records(folder / "data" / "train.json", rows)


def first_step(folder: Path, shape: str, smoke: bool) -> Workload:
    """From the command to the first step."""
    data, model = folder / "data" / "train.json", folder / shape
    ours = [sys.executable, "-m", "finetwo", "train", str(data), "--model", str(model), "--max_steps", "3"]
    ours += ["--batch_size", "8", "--out", "OUT"]
    theirs = [str(PEER), "-c", TRL, "sft", "--model_name_or_path", str(model), "--dataset_name", str(folder / "data")]
    theirs += ["--max_steps", "3", "--per_device_train_batch_size", "8", "--logging_steps", "1", "--report_to", "none"]
    theirs += ["--output_dir", "OUT", "--use_cpu", *([] if native_bf16() else ["--bf16", "False"])]
    sides = [script_side("finetwo", __file__, ["side", "step", *ours])]
    launcher = "its peak is that of the process it begins in"
    if not smoke:
        sides.append(script_side("trl sft", __file__, ["side", "step", *theirs], note=launcher))
    pairs = [("finetwo", "trl sft", MUST, AIM)]
    name = f"command to first step, 8 records, {shape}"
    return Workload(name, "s", sides, pairs, better="lower", group="start")


def waiting(smoke: bool) -> Workload:
    """Imports and help texts."""
    py, peer = sys.executable, str(PEER if PEER.exists() else sys.executable)
    commands = {
        "python -c pass": [py, "-c", "pass"],
        "import finetwo": [py, "-c", "import finetwo"],
        "finetwo --help": [py, "-m", "finetwo", "--help"],
        "finetwo train --help": [py, "-m", "finetwo", "train", "--help"],
        "import torch": [peer, "-c", "import torch"],
        "import transformers.Trainer": [peer, "-c", "from transformers import Trainer"],
        "trl sft --help": [peer, "-c", TRL, "sft", "--help"],
        "litgpt --help": [peer, "-m", "litgpt", "--help"],
    }
    wanted = list(commands)[:4] if smoke else list(commands)
    sides: list[Side] = [script_side(name, __file__, ["side", "end", *commands[name]]) for name in wanted]
    pairs = [("finetwo --help", "trl sft --help", None, None), ("import finetwo", "import torch", None, None)]
    return Workload("wait for import and help", "s", sides, pairs, better="lower", group="start")


def main(words: list[str]) -> int:
    """Run one side (hidden words), or all of them in turn."""
    if words[:1] == ["side"]:
        side(words[1:])
        return 0
    if words[:1] == ["make"]:
        make(Path(words[1]), words[2])
        return 0
    parser = options(__doc__)
    parser.set_defaults(rounds=5)
    parser.add_argument("--shapes", default="4 x 256,gpt2", help=f"the models' shapes, of {', '.join(SHAPES)}")
    asked = parser.parse_args(words)
    shapes = ["smaller"] if asked.smoke else asked.shapes.split(",")
    bench = Bench("start", asked, shapes=", ".join(shapes))
    if not native_bf16():
        bench.notes.append("TRL's default is bf16, which this processor would imitate; it is measured with bf16 off.")
    PARTIAL.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PARTIAL) as work:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"}
        for shape in shapes:
            subprocess.run([sys.executable, __file__, "make", work, shape], check=True, env=environment)
        steps = [first_step(Path(work), shape, asked.smoke) for shape in shapes]
        if bench.measure_all([*steps, waiting(asked.smoke)]):
            bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
