"""`finetwo demo`: the embedded base learns word games whose words it has never seen, in minutes, offline."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.app.console import Console, say
from finetwo.app.wordgames import WordGames, make_games, write_games
from finetwo.core.config import LoraConfig, SamplingConfig, TrainConfig, check_seed

_USAGE = "finetwo demo [--out runs/demo]"
_ABOUT = """Tune the embedded base on word games written by a script of this project, and ask it held-out questions
whose words appear nowhere in the training data: what it gets right, it has learnt and not remembered.
"""
_ANSWER_TOKENS = 32
_SHOWN = 6
_LEARNT = 0.75
"""Share of held-out games that the tuned base must get right; below it the demo has failed."""


@dataclass
class DemoArguments:
    """Options of `finetwo demo`."""

    out: str = "runs/demo"
    """Run folder; an earlier demo there is moved aside."""
    start: Literal["base", "random"] = "base"
    """base: the embedded base; random: the same shape with fresh weights, which shows what the base brings."""
    seed: int = 0
    """Seed of the games, of the adapter and of the order."""


def recipe(out: str, data: str, model: str, seed: int) -> TrainConfig:
    """The demo's training job: LoRA on every linear, three passes."""
    return TrainConfig(
        data=data,
        model=model,
        task="instruct",
        template="dolly",
        out=out,
        epochs=3.0,
        batch_size=16,
        lr=3e-3,
        schedule="cosine",
        warmup=0.05,
        lora=LoraConfig(rank=16, alpha=32, targets="all-linear"),
        eval_every="1epoch",
        save_every="1epoch",
        seed=seed,
        resume="never",
    )


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(DemoArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, _ = asked
    started = time.monotonic()
    say("FineTwo demo: a small GPT-2 (5.4 M parameters, pre-trained on old novels) learns eight word games.")
    from finetwo.app.api import load
    from finetwo.train.job import train

    games = make_games(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="finetwo-demo-") as scratch:
        data = Path(scratch) / "word-games"
        write_games(data, arguments.seed)
        start = "tiny" if arguments.start == "base" else _random_start(Path(scratch) / "random", arguments.seed)
        base = load(start)
        say(f"{len(games.train):,} games to learn from, {len(games.test)} held out; no content word is in both.")
        before, base_answers = score(base, games)
        say(f"before: the base answers {before:.1%} of the held-out games word for word.\n")
        config = recipe(arguments.out, str(data), start, arguments.seed)
        report = train(config, say=say, listeners=[Console(sys.stderr)])
    after, tuned_answers = score(report.model, games)
    _side_by_side(games, base_answers, tuned_answers)
    passed = arguments.start == "random" or after >= _LEARNT  # a random start is there to compare, not to pass
    if arguments.start == "random":
        say("the fresh weights under this adapter are not kept: the run only shows what the base brings.\n")
    elif passed:
        _next(arguments.out, games)
    seconds = time.monotonic() - started
    figures = f"held-out exact match {before:.1%} -> {after:.1%}, {seconds:.0f} s".replace("%", " %")
    sys.stdout.write(f"demo {'ok' if passed else 'failed'}: {figures}\n")
    return 0 if passed else 1


def _settle(arguments: DemoArguments, words: Words) -> DemoArguments:
    words.expect("demo", 0, 0, "takes no data", "finetwo train DATA tunes on your own")
    check_seed("--seed", arguments.seed)
    return arguments


def score(model: Any, games: WordGames) -> tuple[float, list[str]]:
    """Greedy answers to the held-out games, and the share that equals the reference word for word."""
    from finetwo.text.template import Template

    model.template = Template.named("dolly")
    prompts = [{"prompt": g["instruction"], "input": g["input"]} for g in games.test]
    answers = [a.texts[0].strip() for a in model.answers(prompts, SamplingConfig(max_new_tokens=_ANSWER_TOKENS))]
    right = sum(a == g["output"] for a, g in zip(answers, games.test, strict=True))
    return right / len(games.test), answers


def _random_start(folder: Path, seed: int) -> str:
    """A folder with the embedded base's shape and vocabulary and fresh weights."""
    from finetwo.model.network import Network
    from finetwo.store.folder import Extras, load_tokenizer, read_config, save_model
    from finetwo.store.hub import resolve

    config = read_config(resolve("tiny"))
    save_model(folder, Network.fresh(config, seed), load_tokenizer(resolve("tiny"), config), Extras())
    return str(folder)


def _side_by_side(games: WordGames, base: list[str], tuned: list[str]) -> None:
    """Show some held-out games with the base's and the tuned model's answers."""
    say("\nheld-out games, before and after:")
    step = len(games.test) // _SHOWN
    for i in range(0, step * _SHOWN, step):
        game = games.test[i]
        mark = "right" if tuned[i] == game["output"] else f"wrong, expected: {game['output']}"
        say(f"  game   {game['instruction']}")
        say(f"  base   {' '.join(base[i].split())[:100]}")
        say(f"  tuned  {' '.join(tuned[i].split())[:100]}   ({mark})\n")


def _next(out: str, games: WordGames) -> None:
    question = games.test[0]["instruction"]
    say("three things to try next:")
    say(f'  finetwo generate {out} "{question}"')
    say("  finetwo train YOUR.jsonl            (columns such as instruction/output, or a .txt of your own)")
    say(f"  finetwo export {out} --out my-model   (a folder that transformers loads)\n")
