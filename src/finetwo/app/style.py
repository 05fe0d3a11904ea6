"""`finetwo style`: does a tuned model write like its author, and how much of that is copying?

It must not know how a figure is taken. Its one invariant: nothing is written but the report that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig, SamplingConfig
from finetwo.core.errors import InputError

_USAGE = "finetwo style MODEL --train FILES --held_out FILES --others FILES [--option VALUE ...]"
_ABOUT = """The proof behind "it writes like the author": four tests of a tuned model against its base.
Authorship: does the tuning help on the author's held-out text more than on texts of others (AUC, 0.5 is chance)?
Copying: how many sequences of 8, 13 and 20 tokens of what it writes stand word for word in the training text, held
against how often the author repeats himself (held-out text) and against the base? Extraction: given 32 or 64 tokens
of training text, does it go on with exactly the next 32? Names: which names of the training text did it carry over?
For a run folder, the same is said of every checkpoint that was kept, the best and the final model: the trade-off.

FILES are files, folders or patterns, comma-separated: plain text, or records with prompts and answers. Held-out text
must be by the same author and not in the training text; others are other authors of the same kind of text. Where one
folder or file holds both, --rows.hold_out (texts) or --rows.split (records) shares it out as the training did.

examples:
  finetwo style runs/austen-style --train emma.txt,pride.txt --held_out persuasion.txt --others twocities.txt
  finetwo style runs/austen --train austen/ --held_out austen/ --rows.hold_out "*persuasion*" --others dickens/
  finetwo style my-model --base gpt2 --train t.txt --held_out h.txt --others o.txt --canaries planted.txt --json
"""


@dataclass
class StyleArguments:
    """Options of `finetwo style`."""

    train: list[str] = field(default_factory=list)
    """Text the model was trained on."""
    held_out: list[str] = field(default_factory=list)
    """Text by the same author that it was not trained on."""
    others: list[str] = field(default_factory=list)
    """Text by others."""
    base: str | None = None
    """The model it was tuned from, where neither its adapter nor its run says it."""
    canaries: str | None = None
    """File of sentences planted in the training text, one a line: each is reported found or not."""
    passages: int = 200
    """Most passages on each side of the authorship test."""
    passage_tokens: int = 256
    """Tokens of such a passage."""
    openings: int = 32
    """Continuations written, each from the opening of another held-out passage."""
    opening_tokens: int = 16
    """Tokens of an opening (of records the whole prompt)."""
    extractions: int = 100
    """Passages of each kind in the extraction test."""
    max_new_tokens: int = 96
    """Tokens of a continuation."""
    temperature: float = 0.8
    """Of the continuations: 0 is greedy; higher is more random."""
    top_k: int = 0
    """Of the continuations: keep only the k most likely tokens (0: all)."""
    top_p: float = 0.95
    """Of the continuations: keep the smallest set of tokens whose probability reaches p."""
    stages: bool = True
    """Also measure a run's checkpoints, best and final model."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    batch_size: int = 8
    """Passages at a time; the figures do not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of the continuations, of the intervals, and of --rows.split (as in training)."""
    report: str | None = None
    """Also write the page to this file, .html (one file, no network), .md or .txt."""
    json: bool = False
    """Write the figures as one JSON object."""

    @property
    def sampling(self) -> SamplingConfig:
        """How continuations are written."""
        return SamplingConfig(self.max_new_tokens, self.temperature, self.top_k, self.top_p, seed=self.seed)


def _settle(arguments: StyleArguments, words: Words) -> StyleArguments:
    """Check everything that needs neither model nor data."""
    words.expect("style", 1, 1, "one model is needed", _USAGE)
    lows = {"passages": 2, "passage_tokens": 32, "openings": 1, "opening_tokens": 1, "extractions": 1, "batch_size": 1}
    for name, low in lows.items():
        value = getattr(arguments, name)
        if value < low:
            raise InputError(f"--{name}", f"must be an integer >= {low}", value, f"give {low} or more")
    arguments.sampling.check()
    arguments.rows.check()
    if not words.print_config:
        for name in ("train", "held_out", "others"):
            if not all(getattr(arguments, name)) or not getattr(arguments, name):
                raise InputError(f"--{name}", "is needed: a file, folder or pattern", None, _USAGE)
    front.check_page(arguments.report)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(StyleArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    from finetwo.app.console import say
    from finetwo.app.tuned import load_tuned
    from finetwo.insight.style import prove
    from finetwo.insight.style_figures import StyleOptions
    from finetwo.insight.style_page import style_page

    canaries = _canaries(arguments.canaries)
    model, base = load_tuned(name, arguments.base, arguments.device)
    options = StyleOptions(
        train=arguments.train,
        held_out=arguments.held_out,
        others=arguments.others,
        passages=arguments.passages,
        passage_tokens=arguments.passage_tokens,
        openings=arguments.openings,
        opening_tokens=arguments.opening_tokens,
        sampling=arguments.sampling,
        extractions=arguments.extractions,
        canaries=canaries,
        stages=arguments.stages,
        batch_size=arguments.batch_size,
        rows=arguments.rows,
    )
    found = prove(model, name, base, options, say)
    page = style_page(found)
    front.show_page(page, found, arguments.report, as_json=arguments.json)
    return 0


def _canaries(path: str | None) -> list[str]:
    """The sentences of a file, one a line; InputError where there is none, or one of a single word."""
    if path is None:
        return []
    from finetwo.generate.prompts import prompt_lines
    from finetwo.insight.library import read_whole

    found = [str(line).strip() for line in prompt_lines(read_whole(Path(path)))]
    short = next((line for line in found if len(line.split()) < 4), None)
    if short is not None or not found:
        fix = "write sentences of four words or more, one a line"
        raise InputError(path, "no sentence in it" if short is None else "too short for a planted sentence", short, fix)
    return found
