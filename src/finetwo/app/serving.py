"""`finetwo evaluate --check_serving`: the ways a model can be asked, each held against training.

It knows how each way is used and not what is compared. Its one invariant: a way is used as a user uses it, the command
line in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetwo.core.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from finetwo.generate.pipeline import Model
    from finetwo.insight.serving import Served, ServingOptions, Way

_PATIENCE = 3600
"""Seconds after which a command line that says nothing is given up."""


def run(name: str, data: str, options: ServingOptions, base: str | None, device: str, *, as_json: bool) -> int:
    """Check the model `name` on `data` and write the outcome; return the exit code: 1 where something differs."""
    from finetwo.app.api import load
    from finetwo.app.console import say
    from finetwo.insight.serving import check_serving
    from finetwo.store.hub import resolve
    from finetwo.store.hub_data import data_path
    from finetwo.train.recorded import recorded_of

    model = load(name, base=base, device=device)
    ways = ways_of(model, name, base, device)
    outcome = check_serving(model, recorded_of(resolve(name)), data_path(data, say), options, ways, say)
    shown = json.dumps(outcome.to_dict()) if as_json else "\n".join(outcome.lines())
    sys.stdout.write(shown + "\n")
    return 0 if outcome.passed else 1


def ways_of(model: Model, name: str, base: str | None, device: str) -> dict[str, Way]:
    """Every way there is to ask the model `name`, loaded as `model`, by its name."""
    there = ["--device", device, *([] if base is None else ["--base", base])]
    if model.network.config.labels:
        return {"Python API": _Predict(model), "command line": _PredictLine(name, there)}
    return {"Python API": _Answers(model), "command line": _GenerateLine(name, there)}


@dataclass(frozen=True)
class _Answers:
    """`Model.answers`."""

    model: Model

    def __call__(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        from finetwo.core.config import SamplingConfig
        from finetwo.insight.serving import Served

        answers = self.model.answers(prompts, SamplingConfig(max_new_tokens=max_new_tokens))
        return [Served(answer.prompt_ids, answer.texts[0]) for answer in answers]


@dataclass(frozen=True)
class _Predict:
    """`Model.predict`."""

    model: Model

    def __call__(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        from finetwo.insight.serving import Served

        return [Served(probabilities=found.probabilities) for found in self.model.predict(list(prompts))]


@dataclass(frozen=True)
class _GenerateLine:
    """`finetwo generate` with all prompts in one file."""

    name: str
    there: list[str]

    def __call__(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        from finetwo.insight.serving import Served

        records = [prompt if isinstance(prompt, dict) else {"messages": prompt} for prompt in prompts]
        words = [*self.there, "--json", "--ids", "--max_new_tokens", str(max_new_tokens)]
        found = command_line("generate", self.name, "--prompts", records, words)
        return [Served(tuple(answer["prompt_ids"]), answer["texts"][0]) for answer in found]


@dataclass(frozen=True)
class _PredictLine:
    """`finetwo predict` with all documents in one file."""

    name: str
    there: list[str]

    def __call__(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        from finetwo.insight.serving import Served

        columns = [word for part in prompts[0] for word in (f"--rows.columns.{part}", part)]
        found = command_line("predict", self.name, "--data", prompts, [*self.there, *columns, "--json"])
        inner = [{k[2:-1]: v for k, v in record.items() if k.startswith("p(")} for record in found]
        return [Served(probabilities=each) for each in inner]


def command_line(
    verb: str, name: str, option: str, records: Sequence[Any], words: Sequence[str]
) -> list[dict[str, Any]]:
    """Run a verb in a process of its own on a file of `records`; return the JSON lines it writes.

    Raises:
        InputError: the process failed, with the last line that it said.
        EnvironmentFault: it could not be started, or never ended.
    """
    package = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
        file = Path(folder) / "asked.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        command = [sys.executable, "-m", "finetwo", verb, name, option, str(file), *words]
        env = os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", env=env, timeout=_PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFault("command line", f"finetwo {verb} could not be run: {error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError("command line", f"finetwo {verb} ends with exit code {done.returncode}: {said}")
    return [json.loads(line) for line in done.stdout.splitlines()]
