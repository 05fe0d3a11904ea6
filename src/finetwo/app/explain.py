"""`finetwo explain`: what went wrong in a run, why, and how that is known.

It must not know what a failure looks like. Its one invariant: it changes nothing in the run.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.errors import InputError

_USAGE = "finetwo explain RUN [--answers 8] [--json]"
_ABOUT = """Look at a run for the usual failures: loss 0, NaN, flat loss, validation rising while training falls, all
answers equal, answers that never stop, gradient explosion, records all truncated, label leak, learning rate too high or
too low, wrong template. Each is named with its cause, the check that found it, and a remedy. Exit 1 if one was found.

examples:
  finetwo explain runs/data-instruct
  finetwo explain runs/data-instruct --answers 0 --json
"""


@dataclass
class ExplainArguments:
    """Options of `finetwo explain`."""

    answers: int = 8
    """Where the run answered no prompts itself: let its model answer this many held-out ones, greedily (0: none)."""
    json: bool = False
    """Write one JSON object."""


def _settle(arguments: ExplainArguments, words: Words) -> ExplainArguments:
    words.expect("explain", 1, 1, "one run folder is needed", _USAGE)
    if not 0 <= arguments.answers <= 1000:
        raise InputError("--answers", "must be an integer from 0 to 1000", arguments.answers, "8 is a good start")
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ExplainArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    from finetwo.insight.explain import explain

    findings = explain(Path(name), arguments.answers)
    if arguments.json:
        sys.stdout.write(json.dumps({"run": name, "findings": [f.to_dict() for f in findings]}) + "\n")
    elif findings:
        sys.stdout.write("\n".join(line for finding in findings for line in finding.lines()) + "\n")
    else:
        sys.stdout.write("nothing found: no check of the twelve failures has anything to say about this run\n")
    return 1 if findings else 0
