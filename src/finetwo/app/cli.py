"""The command `finetwo`: finds the verb, runs it, and turns every expected failure into one line.

It must not know what a verb does. Its one invariant: nothing heavy is imported before the verb is known, and no
traceback reaches a person who did not ask for one with --debug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

VERBS: dict[str, str] = {
    "train": "tune a model on your data, or pre-train one",
    "plan": "look at data, loss and cost of a training job before it starts",
    "generate": "answer prompts with a model, run or adapter",
    "chat": "talk with a model, and with the one it was tuned from",
    "predict": "tell the classes of texts with a tuned classifier",
    "evaluate": "loss and perplexity of a model on your data",
    "style": "prove a style: authorship, copying, recitation, names",
    "forget": "what the tuning cost on a neutral text",
    "compare": "models side by side on the same prompts",
    "prepare": "read, split and tokenise data once, for many runs",
    "convert": "make JSON lines of a pickled, Parquet or Arrow data set, safely",
    "export": "write a Hugging Face folder, a PEFT adapter, or a merged model",
    "reproduce": "run a receipt's job again and say whether every loss is the same",
    "explain": "name what went wrong in a run, with the check that found it",
    "info": "what a model, adapter, run or this machine is",
    "tokenizer": "train a byte-level BPE vocabulary",
    "demo": "watch the embedded base learn word games, in minutes, offline",
}
_HEAD = """usage: finetwo VERB ...

FineTwo fine-tunes the GPT-2 family end to end, on a laptop or a GPU, from your own text or table.

verbs:
"""
_TAIL = """
start here:
  finetwo demo                              see a model learn, offline, in minutes
  finetwo train notes.txt                   tune the embedded base on a text file
  finetwo train data.jsonl --model gpt2 --lora.rank 8
  finetwo generate runs/data-instruct "What is the capital of France?"

finetwo VERB --help explains a verb; --debug shows the traceback of an error.
"""


def help_text() -> str:
    """The text of `finetwo --help`."""
    return _HEAD + "".join(f"  {name:<11} {about}\n" for name, about in VERBS.items()) + _TAIL


def main(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; expected failures print one line on stderr."""
    debug = "--debug" in words
    try:
        from finetwo.core.errors import FineTwoError

        options = list(words[: words.index("--")] if "--" in words else words)
        debug = "--debug" in options
        return _dispatch([w for w in options if w != "--debug"] + list(words[len(options) :]))
    except KeyboardInterrupt:  # first: it may come before the name below is known
        return _complain("stopped", 130, debug)
    except FineTwoError as error:
        return _complain(error.line(), error.exit_code, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _complain(_unexpected(error), 3 if isinstance(error, OSError | MemoryError) else 1, debug)


def _unexpected(error: Exception) -> str:
    from finetwo.core.errors import shown

    kind = type(error).__name__
    text = shown(str(error).split("\n", 1)[0], 300)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"memory: {kind}: {text}. Fix: lower --batch_size or --max_length"
    if isinstance(error, OSError):
        return f"system: {text}. Fix: check the path, its permissions and the disk"
    return f"internal: {kind}: {text}. Fix: this is a fault of FineTwo: run again with --debug and report it"


def _complain(line: str, code: int, debug: bool) -> int:
    """Write the error that is being handled, after its traceback if asked for; return the exit code."""
    text = f"error: {line}\n"
    if debug:
        import traceback

        text = traceback.format_exc() + text
    encoding = sys.stderr.encoding or "ascii"
    sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))
    return code


def _dispatch(words: list[str]) -> int:
    from finetwo.core.errors import InputError

    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0
    if words[0] == "--version":
        from finetwo.core.version import __version__

        sys.stdout.write(f"finetwo {__version__}\n")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        near = get_close_matches(verb, list(VERBS), n=1)
        raise InputError(verb, "unknown verb", None, f"did you mean {near[0]}?" if near else f"use {', '.join(VERBS)}")
    return _run(verb)(rest)


def _run(verb: str) -> Callable[[list[str]], int]:
    """The function of a verb; only its own module is imported."""
    run: Callable[[list[str]], int] = import_module(f"finetwo.app.{verb}").run
    return run


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
