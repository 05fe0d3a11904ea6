"""What TensorBoard's own reader finds in the files of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.train.support import At, digest, metrics, quick, records

pytest.importorskip("tensorboard")

SETTINGS: dict[str, Any] = {
    "rows": {"split": "train:11,validation:4"},
    "max_steps": 6,
    "eval_every": "2",
    "save_every": "2",
    "sample_every": "2",
    "dropout": 0.1,
}


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def curve(reader: Any, name: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in reader.Scalars(name)]


def texts(reader: Any, name: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in reader.Tensors(name)]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.txt").write_text("# lamp | *harbour*\nnine\n", encoding="utf-8")
    return SETTINGS | {"sample_prompts": str(tmp_path / "p.txt")}


def wanted(run: Path, kind: str, name: str) -> list[tuple[int, Any]]:
    return [(m["step"], pytest.approx(m[name], rel=1e-6)) for m in metrics(run) if m["event"] == kind]


def test_curves_configuration_and_samples(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = tmp_path / "run"
    quick(records(15), base, run, **settings, track=["tensorboard"])
    found = read(run)
    for name in ("loss", "lr", "grad_norm", "tokens_per_second"):
        assert curve(found, f"train/{name}") == wanted(run, "step", name)
    for name in ("loss", "loss_all", "bits_per_byte"):
        assert curve(found, f"validation/{name}") == wanted(run, "evaluation", name)
    ((step, config),) = texts(found, "config")
    assert step == 0
    shown = yaml.safe_load("\n".join(line.removeprefix("    ") for line in config.split("\n")))
    assert shown == yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    samples = [m for m in metrics(run) if m["event"] == "sample"]
    assert [s for s, _ in texts(found, "samples/01")] == [0, 2, 4, 6]
    first = texts(found, "samples/01")[0][1]
    assert first.startswith("**prompt**\n\n    # lamp | *harbour*\n\n**answer**\n\n    ")
    assert samples[0]["texts"][0].split("\n")[0] in first
    assert found.SummaryMetadata("config").plugin_data.plugin_name == "text"


def test_a_tracked_run_is_the_same_run(base: Path, tmp_path: Path) -> None:
    quick(records(15), base, tmp_path / "plain", **SETTINGS)
    quick(records(15), base, tmp_path / "run", **SETTINGS, track=["tensorboard"])
    assert digest(tmp_path / "run/final") == digest(tmp_path / "plain/final")


def test_the_step_goes_on_over_epochs_and_a_resume(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Seed fault 0.16: the step began at 0 in every epoch. Steps taken twice stand once."""
    run = tmp_path / "run"

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after step 4; the checkpoint is of step 2, three steps are an epoch
        quick(records(15), base, run, **settings, track=["tensorboard"], listeners=[At("step", 4, die)])
    quick(records(15), base, run, **settings, track=["tensorboard"])
    assert len(list((run / "tensorboard").iterdir())) == 2
    found = read(run)
    assert curve(found, "train/loss") == wanted(run, "step", "loss")
    assert [step for step, _ in curve(found, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curve(found, "validation/loss")] == [0, 2, 4, 6]
    assert [step for step, _ in texts(found, "samples/02")] == [0, 2, 4, 6]
    assert [step for step, _ in texts(found, "config")] == [0, 2]


def test_a_new_start_forgets_the_steps_of_a_run_without_a_checkpoint(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def die() -> None:
        raise KeyboardInterrupt

    for stop in (At("step", 2, die), At("step", 99, die)):
        try:
            quick(records(15), base, run, **SETTINGS | {"save_every": "0"}, track=["tensorboard"], listeners=[stop])
        except KeyboardInterrupt:
            continue
    assert curve(read(run), "train/loss") == wanted(run, "step", "loss")


def test_no_tensorflow_is_loaded_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('tensorflow was loaded')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from finetwo.train.tensorboard import EventFile\n"
        "from finetwo.train.tracker import Opening, Sample\n"
        "sink = EventFile(); sink.open(Opening(Path(sys.argv[1]), 0, 'lr: 1'))\n"
        "sink.figures(1, {'a': 1.0}); sink.samples(1, [Sample('p', 'a')]); sink.close()\n"
        "print('tensorflow' in sys.modules)\n"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(source), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
