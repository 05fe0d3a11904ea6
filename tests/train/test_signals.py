"""The command line killed and signalled: SIGKILL at random moments, SIGTERM and SIGINT, in forked processes."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import digest, losses, metrics, records, snapshot, write_jsonl
from tests.train.zygote import Zygote

from finetwo.core.files import json_bytes, write_json
from finetwo.store.checkpoint import list_checkpoints

MICRO = (
    "--template plain --batch_size 2 --grad_accum 3 --dropout 0.1 --lr 3e-3 --schedule cosine --packing true "
    "--epochs 3 --eval_every 3 --save_every 2 --rows.split train:25,validation:5 --seed 11"
).split()
KINDS = {
    "full": [],
    "lora": "--lora.rank 4 --lora.dropout 0.2 --lr 2e-2".split(),
    "workers": "--workers 2 --optimizer muon".split(),
}


@pytest.fixture(scope="module")
def words(base: Path, data: Path) -> list[str]:
    return ["train", str(data), "--model", str(base), *MICRO]


@pytest.fixture(scope="module")
def reference(zygote: Zygote, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ended = zygote.run([*words, "--out", run])
    assert ended.code == 0, ended.said
    return run


@dataclass
class Chains:
    """What became of runs that were killed again and again until they ended by themselves."""

    kills: int
    runs: int
    most_kills_of_a_run: int


def chains(zygote: Zygote, words: list[str], folder: Path, kills: int, seed: int) -> Chains:
    """Kill runs at uniformly random moments until `kills` were; each must end with the reference's bits by itself."""
    reference = folder / "reference"
    whole = zygote.run([*words, "--out", reference])
    assert whole.code == 0, whole.said
    wanted, rows = (digest(reference / "final"), digest(reference / "best")), losses(reference)
    rng, done, runs, most = random.Random(seed), 0, 0, 0
    while done < kills:
        run, killed = folder / f"run-{runs}", 0
        while True:
            trial = zygote.run([*words, "--out", run], signal.SIGKILL, rng.uniform(0, whole.seconds))
            if trial.code == 0:
                break
            assert trial.code == -signal.SIGKILL, trial.said
            killed += 1
            if killed >= 8:  # a run must end at some time
                trial = zygote.run([*words, "--out", run])
                assert trial.code == 0, trial.said
                break
        assert (digest(run / "final"), digest(run / "best")) == wanted, f"seed {seed}, run {runs}, {killed} kills"
        assert losses(run) == rows, f"seed {seed}, run {runs}, {killed} kills"
        assert not [p.name for p in run.iterdir() if p.name.startswith(".tmp")]
        done, runs, most = done + killed, runs + 1, max(most, killed)
    return Chains(done, runs, most)


def test_killed_at_random_moments_ends_with_the_same_bits(zygote: Zygote, words: list[str], tmp_path: Path) -> None:
    """Promises T1 and T3, a sample."""
    found = chains(zygote, words, tmp_path, kills=4, seed=1)
    assert found.kills >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_random_moments_ends_with_the_same_bits(
    zygote: Zygote, words: list[str], tmp_path: Path, kind: str
) -> None:
    """Done means: killed with SIGKILL at 20 random moments and resumed, bit-identical weights; T1 and T3."""
    found = chains(zygote, words + KINDS[kind], tmp_path, kills=20, seed=2)
    assert found.kills >= 20
    assert found.most_kills_of_a_run >= 2, "some run must have been killed more than once"


@pytest.mark.slow
def test_killed_while_the_corpus_is_built(zygote: Zygote, base: Path, tmp_path: Path) -> None:
    """A run on text, whose token cache is a further thing to die over."""
    text = "\n\n".join(f"{r['prompt']} {r['completion']}." for r in records(400, seed=4))
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="utf-8")
    words = ["train", str(file), "--model", str(base), "--max_length", "16", "--max_steps", "12", "--eval_every", "4"]
    assert chains(zygote, [*words, "--save_every", "3", "--dropout", "0.1"], tmp_path, kills=20, seed=3).kills >= 20


def test_planted_loss_of_the_data_position_is_caught(
    zygote: Zygote, words: list[str], reference: Path, tmp_path: Path
) -> None:
    """The harness can fail: a checkpoint whose step was tampered with resumes elsewhere and ends with other bits."""
    run = tmp_path / "run"
    stopped = zygote.run([*words, "--out", run], signal.SIGTERM, steps=7)
    assert stopped.code == 143, stopped.said
    newest = list_checkpoints(run)[0]
    state = json.loads((newest / "state.json").read_text())
    state["progress"]["step"] -= 1
    write_json(newest / "state.json", state)
    manifest = json.loads((newest / "manifest.json").read_text())
    content = (newest / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.pop("sha256")
    manifest["sha256"] = hashlib.sha256(json_bytes(manifest)).hexdigest()
    write_json(newest / "manifest.json", manifest)
    assert zygote.run([*words, "--out", run]).code == 0
    assert digest(run / "final") != digest(reference / "final")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_saves_exits_and_resumes_equal(
    zygote: Zygote, words: list[str], reference: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Promise T6: within one step and one save, one line, no traceback."""
    run = tmp_path / "run"
    ended = zygote.run([*words, "--out", run], number, steps=4)
    assert ended.code == code, ended.said
    assert ended.after < 5
    assert "Traceback" not in ended.said
    assert ended.said.splitlines()[-1].startswith("error: stopped after step")
    step = max(m["step"] for m in metrics(run))
    assert list_checkpoints(run)[0].name == f"checkpoint-{step}"
    assert f"stopped after step {step} of 15" in ended.said
    assert not (run / "final").exists()
    again = zygote.run([*words, "--out", run])
    assert again.code == 0
    assert f"resuming after step {step}" in again.said
    assert digest(run / "final") == digest(reference / "final")
    assert losses(run) == losses(reference)


def test_second_signal_ends_at_once_and_leaves_a_good_checkpoint(zygote: Zygote, base: Path, tmp_path: Path) -> None:
    """A step of very many micro-batches would take long to end; the second Ctrl-C does not wait for it."""
    data = write_jsonl(tmp_path / "many.jsonl", records(3000))
    run = tmp_path / "run"
    words: list[Any] = ["train", data, "--model", base, "--template", "plain", "--batch_size", "1", "--out", run]
    words += ["--grad_accum", "100000", "--rows.split", "train:2998,validation:2", "--max_steps", "3"]
    ended = zygote.run(words, signal.SIGINT, delay=3.0, again=0.3)
    assert ended.code == 130, ended.said
    assert ended.after < 1.3
    assert "stopped at once" in ended.said


def test_finished_run_again_exits_0_and_changes_nothing(zygote: Zygote, words: list[str], reference: Path) -> None:
    before = snapshot(reference)
    again = zygote.run([*words, "--out", reference])
    assert again.code == 0
    assert "finished; nothing to do" in again.said
    assert snapshot(reference) == before


def test_interrupt_before_the_first_step_leaves_no_folder(zygote: Zygote, words: list[str], tmp_path: Path) -> None:
    """Bad input 30, at several early moments; a later one finds a run, and saves it."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for turn, delay in enumerate((0.0, 0.01, 0.03, 0.06, 0.1)):
            run = tmp_path / f"{number}-{turn}"
            ended = zygote.run([*words, "--out", run], number, delay=delay)
            told = (number, delay, ended.said)
            assert ended.code == code or (ended.code == -number and not run.exists()), told
            assert "Traceback" not in ended.said, told
            assert not run.exists() or list_checkpoints(run), told


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (["--deterministic", "false"], False),
        (["--deterministic=False"], False),
        (["--no_deterministic"], False),
        (["--no-deterministic"], False),
        (["--deterministic", "true"], True),
        (["--deterministic"], True),
        (["--packing", "no", "--deterministic", "off"], False),
    ],
)
def test_switches_are_real_booleans(zygote: Zygote, words: list[str], given: list[str], value: bool) -> None:
    """Seed fault 0.12: `--flag False` means false."""
    shown = zygote.run([*words, *given, "--print_config"])
    assert shown.code == 0, shown.said
    assert f"deterministic: {str(value).lower()}" in shown.said


def test_a_switch_takes_no_other_word(zygote: Zygote, words: list[str]) -> None:
    ended = zygote.run([*words, "--deterministic=maybe", "--print_config"])
    assert ended.code == 2
    assert "true or false" in ended.said


def test_deterministic_run_trains(zygote: Zygote, words: list[str], tmp_path: Path) -> None:
    """Seed fault 0.26: deterministic mode crashed in the loss."""
    ended = zygote.run([*words, "--deterministic", "--max_steps", "2", "--out", tmp_path / "run"])
    assert ended.code == 0, ended.said


def test_out_of_memory_and_full_disk_are_one_line(zygote: Zygote, words: list[str]) -> None:
    """Bad input 20 to 22 from the command line: exit code, one line, nothing touched."""
    ended = zygote.run([*words, "--out", "/dev/null/run"])
    assert ended.code == 2
    assert ended.said.count("\n") >= 1
    assert ended.said.splitlines()[-1].startswith("error: /dev/null")
