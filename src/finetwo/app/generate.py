"""`finetwo generate`: answers to prompts from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError

if TYPE_CHECKING:
    from finetwo.generate.pipeline import Model, Prompt

_USAGE = 'finetwo generate MODEL ["PROMPT" ...] [--prompts FILE] [--option VALUE ...]'
_ABOUT = """Answer prompts with a model folder, a run folder, an adapter or a hub name. A prompt is put into the
template that the model was tuned with; a model without one continues the text as it stands.

examples:
  finetwo generate runs/data-instruct "What is the capital of France?"
  finetwo generate tiny "It was a dark night, and" --temperature 0.8 --top_p 0.95 --n 3
  finetwo generate runs/data-instruct --prompts questions.txt --json > answers.jsonl
"""


@dataclass
class GenerateArguments:
    """Options of `finetwo generate`."""

    prompts: str | None = None
    """File of prompts: text (one a line), JSON, JSONL or CSV records; - reads lines from standard input."""
    max_new_tokens: int = 128
    """Stop after this many new tokens."""
    temperature: list[float] = field(default_factory=lambda: [0.0])
    """0 is greedy; higher is more random; several may be given: 0,0.7,1."""
    top_k: int = 0
    """Keep only the k most likely tokens (0: all)."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens already seen less likely."""
    stop: list[str] = field(default_factory=list)
    """Strings that end an answer (comma-separated, a JSON list, or given again)."""
    n: int = 1
    """Answers per prompt."""
    seed: int = 0
    """Seed of the sampling."""
    base: str | None = None
    """Where the base of an adapter is."""
    revision: str | None = None
    """Revision of a hub model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the weights in int8 or int4: smaller and faster on a CPU, a little less exact; an adapter is merged."""
    raw: bool = False
    """Leave the model's template out."""
    json: bool = False
    """One JSON object per prompt: prompt, texts, finish_reasons."""
    ids: bool = False
    """With --json: also prompt_ids, the tokens of the prompt as the network read them, and ids, those of each text."""


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(GenerateArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name, *given) = asked
    samplings = [_sampling(arguments, t) for t in arguments.temperature]
    from finetwo.app.api import load

    prompts: list[Prompt] = [*given, *_from_file(arguments.prompts)]
    model = load(
        name,
        base=arguments.base,
        revision=arguments.revision,
        device=arguments.device,
        quantize=arguments.quantize,
    )
    for sampling in samplings:
        if arguments.json:
            _write_json(model, prompts, sampling, arguments, several=len(samplings) > 1)
        else:
            _write_text(model, prompts, sampling, arguments.raw, several=len(samplings) > 1)
    return 0


def _settle(arguments: GenerateArguments, words: Words) -> GenerateArguments:
    """Check everything that needs no model."""
    if not arguments.temperature:
        raise InputError("--temperature", "needs at least one number", "[]", "leave it out, or give 0 for greedy")
    for temperature in arguments.temperature:
        _sampling(arguments, temperature)
    if arguments.ids and not arguments.json:
        raise InputError("--ids", "is for --json", None, "add --json, or leave it out")
    if words.print_config:
        return arguments
    if not words.positional:
        raise InputError("generate", "no model given", None, 'finetwo generate MODEL "PROMPT"')
    if len(words.positional) < 2 and arguments.prompts is None:
        fix = f'finetwo generate {words.positional[0]} "PROMPT", or --prompts FILE'
        raise InputError("generate", "no prompt given", None, fix)
    return arguments


def _sampling(arguments: GenerateArguments, temperature: float) -> SamplingConfig:
    shared: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(SamplingConfig)}
    sampling = SamplingConfig(**(shared | {"temperature": temperature}))
    sampling.check()
    return sampling


def _from_file(path: str | None) -> list[Prompt]:
    if path is None:
        return []
    from finetwo.generate.prompts import prompt_lines, read_prompts

    if path != "-":
        return read_prompts(Path(path))
    try:
        found = prompt_lines(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise InputError("--prompts -", f"not {error.encoding}: {error.reason}", None, "write UTF-8 text") from None
    if not found:
        raise InputError("--prompts -", "no prompt on standard input", None, "write one prompt a line")
    return found


def _write_json(
    model: Model, prompts: list[Prompt], sampling: SamplingConfig, arguments: GenerateArguments, several: bool
) -> None:
    for answer in model.answers(prompts, sampling, raw=arguments.raw):
        record: dict[str, Any] = {
            "prompt": answer.prompt,
            "texts": answer.texts,
            "finish_reasons": answer.finish_reasons,
        }
        if arguments.ids:
            record |= {"prompt_ids": answer.prompt_ids, "ids": answer.ids}
        if several:
            record["temperature"] = sampling.temperature
        if answer.truncated:
            record["truncated"] = True
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_text(model: Model, prompts: list[Prompt], sampling: SamplingConfig, raw: bool, several: bool) -> None:
    """Stream a single answer as it comes; otherwise answer in one batch."""
    limit = model.network.config.n_positions
    for prompt in prompts:
        if len(model.prompt_ids(prompt, raw=raw)) >= limit:
            sys.stderr.write(f"note: the prompt is longer than the context of {limit} tokens and loses its beginning\n")
    if several:
        sys.stdout.write(f"--- temperature {sampling.temperature:g} ---\n")
    if len(prompts) == 1 and sampling.n == 1:
        _stream(model.stream(prompts[0], sampling, raw=raw))
        return
    for answer in model.answers(prompts, sampling, raw=raw):
        if len(prompts) > 1:
            shown = answer.prompt if isinstance(answer.prompt, str) else json.dumps(answer.prompt, ensure_ascii=False)
            sys.stdout.write(f"> {shown}\n")
        for number, text in enumerate(answer.texts, 1):
            head = f"[{number}] " if sampling.n > 1 else ""
            sys.stdout.write(f"{head}{text}\n")
        sys.stdout.write("\n" if len(prompts) > 1 else "")


def _stream(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
