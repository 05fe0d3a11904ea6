"""`finetwo reproduce`: a run once more from its receipt, and whether it gives the same numbers.

It must not know how a receipt is made. Its one invariant: what went in is compared before the first step, and nothing
of the old run is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import TrainConfig
from finetwo.core.errors import FineTwoError, InputError, NumericError

_USAGE = "finetwo reproduce RECEIPT [--data PATH] [--out DIR]"
_ABOUT = """Run the job of a receipt again, into a new folder, and compare every loss and the final weights: `identical`
(exit 0), or the first step that differs and what of the environment does (exit 1). Data, tokenizer or base that are not
the recorded ones are refused before the first step; other packages or another machine are named, and tried.

examples:
  finetwo reproduce runs/data-instruct/receipt.json
  finetwo reproduce runs/data-instruct --data copies/data.jsonl --out runs/again
"""


@dataclass
class ReproduceArguments:
    """Options of `finetwo reproduce`."""

    data: str | None = None
    """Where the data is now (default: where the receipt says); its content must be the recorded one."""
    out: str | None = None
    """Folder of the new run, which must not exist yet (default: the old one's name with -again)."""


class _Over(BaseException):
    """The comparison is over; no Exception, as those of listeners are fenced off from the run."""

    def __init__(self, step: int = 0, loss: float | None = None, refusal: InputError | None = None) -> None:
        self.step, self.loss, self.refusal = step, loss, refusal


class Watch:
    """A listener that ends the run at the first step whose loss is not the recorded one."""

    def __init__(self, receipt: Mapping[str, Any]) -> None:
        from finetwo.train.receipt import BLOCK, Chain, marks_of

        self._receipt, self._chain, self._block = receipt, Chain(), BLOCK
        self._marks = marks_of(receipt["losses"])
        self._links = {int(link["step"]): str(link["sha256"]) for link in receipt["losses"]["links"]}

    def hear(self, event: Mapping[str, Any]) -> None:
        """Compare what went in when the run starts, and every loss."""
        if event["event"] == "start":
            self._compare_inputs(Path(event["folder"]), int(event["total_steps"]))
        elif event["event"] == "step":
            self._compare_loss(int(event["step"]), float(event["loss"]))

    def close(self) -> None:
        """Nothing to close."""

    def _compare_loss(self, step: int, loss: float) -> None:
        if step > len(self._marks):
            raise _Over(step, loss)
        digest = self._chain.add(step, loss)
        if not digest.startswith(self._marks[step - 1]) or self._links.get(step, digest) != digest:
            raise _Over(step, loss)
        if step == len(self._marks) and not self._receipt["finished"] and not _broke(self._receipt):
            raise _Over()

    def _compare_inputs(self, folder: Path, total: int) -> None:
        from finetwo.core.files import read_json
        from finetwo.train.resume import ENVIRONMENT

        now = read_json(folder / ENVIRONMENT)["fingerprint"] | {"total_steps": total}
        old = self._receipt
        wanted = {
            "data": (old["data"]["digest"], "give the recorded data with --data"),
            "tokenizer": (old["tokenizer"], "put the base's own tokenizer back"),
            "template": (old["template"]["digest"], "put the recorded template back (it stands in the receipt)"),
            "base": (old["base"]["sha256"], f"put the recorded weights of {old['base']['name']} back"),
            "total_steps": (old["total_steps"], "give the recorded data with --data"),
        }
        for name, (then, fix) in wanted.items():
            if now[name] != then:
                what = f"{name}: not what the receipt was made with ({_short(then)})"
                raise _Over(refusal=InputError(name, what, _short(now[name]), fix))


def _broke(receipt: Mapping[str, Any]) -> bool:
    """Whether a numeric guard ended the run, which the same run must do again."""
    return receipt["failure"] is not None and receipt["failure"]["type"] == NumericError.__name__


def _short(value: object) -> str:
    return str(value)[:12]


def _settle(arguments: ReproduceArguments, words: Words) -> ReproduceArguments:
    words.expect("reproduce", 1, 1, "one receipt, or a run folder that holds it, is needed", _USAGE)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ReproduceArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    from finetwo.app.console import say
    from finetwo.train.receipt import RECEIPT, environment_now
    from finetwo.train.recorded import differences, read_receipt
    from finetwo.train.start import pick_device

    path = Path(name) / RECEIPT if Path(name).is_dir() else Path(name)
    receipt = read_receipt(path)
    if not receipt["losses"]["steps"] and not _broke(receipt):
        raise InputError(str(path), "the run of this receipt took no step", None, "there is nothing to compare")
    config = _config(receipt, arguments, path)
    _check_data(receipt, config.data)
    _check_adapter(receipt, config)
    _same_threads(receipt)
    others = differences(receipt, environment_now(pick_device(config.device)))
    for line in others:
        say(f"not as it was: {line}")
    answer, code = _again(receipt, config, path)
    sys.stdout.write("\n".join([*answer, *(_reasons(others, receipt) if code else [])]) + "\n")
    return code


def _config(receipt: Mapping[str, Any], arguments: ReproduceArguments, path: Path) -> TrainConfig:
    """The resolved configuration of the receipt, for a new folder; what changes no loss is left out."""
    from finetwo.app.api import configure

    config = configure(dict(receipt["config"]))
    folder = Path(arguments.out or f"{path.resolve().parent.name}-again")
    if arguments.out is None:
        folder = path.parent.resolve().parent / folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("--out", "exists and is not an empty folder", str(folder), "give a new folder")
    data = arguments.data or config.data
    if data is None:
        what = "the data of this run was in memory; the receipt has only its hash"
        raise InputError("--data", what, None, "give the records as a file")
    return replace(config, data=data, out=str(folder), resume="never", track=[], sample_prompts=None)


def _check_data(receipt: Mapping[str, Any], data: str | None) -> None:
    """Refuse data that is missing, or has other content than the recorded."""
    from finetwo.core.files import sha256_file
    from finetwo.train.receipt import data_files

    recorded = receipt["data"]["files"]
    if data is None or data.startswith("hub:") or not recorded:
        return
    if not Path(data).exists():
        raise InputError(data, "the data of the receipt is not there", None, "name its place with --data PATH")
    files = data_files(data)
    if len(files) != len(recorded):
        what, fix = f"{len(recorded)} data files were read then", "give the recorded data with --data PATH"
        raise InputError(data, what, len(files), fix)
    for file, then in zip(files, recorded, strict=True):
        now = sha256_file(file)
        if now != then["sha256"]:
            what = f"changed since the run: its SHA-256 was {then['sha256'][:12]}"
            raise InputError(str(file), what, now[:12], "give the recorded data with --data PATH")


def _check_adapter(receipt: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse another adapter than the one that the run went on from."""
    then = receipt["base"]["adapter"]
    if then is None:
        return
    from finetwo.core.files import sha256_file
    from finetwo.store.hub import resolve
    from finetwo.store.peft import WEIGHTS

    file = resolve(config.model) / WEIGHTS
    now = sha256_file(file) if file.is_file() else None
    if now != then:
        what = f"is not the adapter the run began with: SHA-256 {then[:12]}"
        raise InputError(config.model, what, _short(now), "put the recorded adapter back")


def _same_threads(receipt: Mapping[str, Any]) -> None:
    """Compute with as many threads as then: sums come out otherwise in the last digits."""
    import torch

    threads = receipt["hardware"].get("threads")
    if isinstance(threads, int) and 1 <= threads <= 1024:
        torch.set_num_threads(threads)


def _again(receipt: Mapping[str, Any], config: TrainConfig, path: Path) -> tuple[list[str], int]:
    """Run the job and compare; return what to say and the exit code."""
    from finetwo.app.console import Console, say
    from finetwo.train.job import train
    from finetwo.train.recorded import read_receipt

    steps = receipt["losses"]["steps"]
    failure = receipt["failure"] if _broke(receipt) else None
    try:
        report = train(config, say=say, listeners=[Console(sys.stderr), Watch(receipt)])
    except _Over as over:
        if over.refusal is not None:
            raise over.refusal from None
        if over.step == 0:
            return [f"identical: {steps:,} steps, every loss; the run of the receipt ended there unfinished"], 0
        return [_first(over, path, steps)], 1
    except NumericError as error:
        return _failed(error, failure, read_receipt(Path(str(config.out))), steps)
    if report.steps != steps:
        return [f"differs: {steps:,} steps then, {report.steps:,} now; the losses up to there are equal"], 1
    now, then = read_receipt(report.folder)["weights"], receipt["weights"]
    if then is not None and now["sha256"] != then["sha256"]:
        what = f"{then['sha256'][:12]} then, {now['sha256'][:12]} now"
        return [f"differs in the final weights only: every loss of {steps:,} steps is equal, {then['file']}: {what}"], 1
    weights = f" and the final weights (sha256 {now['sha256'][:12]})" if then is not None else ""
    return [f"identical: {steps:,} steps, every loss{weights}"], 0


def _failed(
    error: FineTwoError, failure: Mapping[str, Any] | None, again: Mapping[str, Any], steps: int
) -> tuple[list[str], int]:
    """The run failed; whether it did so then."""
    if failure is not None and failure["type"] == type(error).__name__ and again["losses"]["steps"] == steps:
        return [f"identical: {steps:,} steps, every loss, and then the same failure: {failure['line']}"], 0
    return [f"differs: fails after step {again['losses']['steps']:,}, as it did not then: {error.line()}"], 1


def _first(over: _Over, path: Path, steps: int) -> str:
    """The first step that differs, with the loss it had then where the old run's log is at hand."""
    if over.step > steps:
        return f"differs first at step {over.step:,}: the run ended before it then"
    then = _loss_then(path.parent / "metrics.jsonl", over.step)
    was = f"loss {then!r} then, {over.loss!r} now" if then is not None else f"loss {over.loss!r} now, another then"
    return f"differs first at step {over.step:,} of {steps:,}: {was}"


def _loss_then(metrics: Path, step: int) -> float | None:
    from finetwo.core.strict_json import parse_json

    if not metrics.is_file():
        return None
    with metrics.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            record = parse_json(line, f"{metrics}:{number}")
            if record.get("event") == "step" and record.get("step") == step:
                return float(record["loss"])
    return None


def _reasons(others: Sequence[str], receipt: Mapping[str, Any]) -> list[str]:
    """What of the environment may be why."""
    if not others:
        return ["nothing that the receipt records of the environment differs"]
    lines = ["what differs of the environment:", *(f"  {line}" for line in others)]
    at = receipt.get("resumed_at")
    return [*lines, f"  the run was resumed after step {at:,}; what it ran on before is not recorded"] if at else lines
