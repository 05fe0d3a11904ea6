"""Failures that the texts show: cut records, leaked labels, a wrong template, answers all alike, answers without end.

It knows the texts of a run and its answers, and no curves. Its one invariant: what a task may rightly look like
(multiple choice, copying from a passage, a class that is rare) is no finding.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from finetwo.insight.evidence import Evidence, Texts
from finetwo.insight.verdict import Finding
from finetwo.text.template import Template

_HEADERS = ("### Instruction:", "### Response:", "### User:", "### Assistant:", "<|im_start|>", "[INST]", "<|user|>")
_PIECE = re.compile(r"\{[^{}]*\}")
_WORD = re.compile(r"[\w<>\[\]#@%-]+")


def data_findings(seen: Evidence, *, high: bool, slow: bool = False) -> list[Finding]:
    """What the answers show: all alike, or without end.

    `high`: the rate or the gradient is known to be at fault; `slow`: the run is known to have learned nothing, of
    which such answers are only the consequence.
    """
    blame = _Blame(high, slow)
    equal = classes_equal(seen, blame) if seen.labels else answers_equal(seen, blame)
    return [f for f in (equal, never_stops(seen, blame)) if f]


@dataclass(frozen=True)
class _Blame:
    """What is known already to be at fault."""

    high: bool
    slow: bool


def _is_short(seen: Evidence) -> bool:
    """Whether a run was too short for its answers to be held against it."""
    return seen.epochs < 3 or len(seen.steps) < 100


# --- records --------------------------------------------------------------------------------------------------------


def everything_truncated(seen: Evidence) -> Finding | None:
    """Half of the records or more were cut or left out as too long."""
    kept = sum(seen.counts.get(name, 0) for name in ("train", "validation", "test"))
    cut, left = seen.counts.get("truncated", 0), seen.counts.get("too_long", 0)
    if kept + left < 4 or cut + left < 0.5 * (kept + left):
        return None
    length = seen.settings.get("max_length", "?")
    cause = f"--max_length {length} is shorter than the records"
    check = f"{cut:,} of {kept:,} records were cut and {left:,} left out as too long"
    if seen.answers_end:
        check += "; a cut answer has no end to learn"
    return Finding("everything truncated", cause, check, "raise --max_length, or shorten the prompts")


def label_leak(seen: Evidence) -> Finding | None:
    """The answer stands in the text that it is to be told from, always at the same mark."""
    texts = seen.texts
    if texts is None or len(texts.answers) < 20:
        return None
    return _leaked_class(texts) if seen.labels else _leaked_answer(texts)


def _leaked_answer(texts: Texts) -> Finding | None:
    if texts.top_answer()[1] > 0.5:
        return None
    marks: Counter[str] = Counter()
    for prompt, answer in zip(texts.prompts, texts.answers, strict=True):
        wanted = answer.strip()
        at = prompt.rfind(wanted) if wanted else -1
        if at >= 0:
            marks[" ".join(prompt[:at].split()[-1:])] += 1
    mark, share = texts.share(marks)
    if share < 0.9:
        return None
    cause = f"the answer stands in the prompt, after {mark[-40:]!r}: the model copies it and need not know it"
    check = f"in {share:.0%} of {len(texts.answers)} training records the prompt holds the whole answer at this mark"
    fix = "leave that column out of the prompt; if copying is the task, all is well"
    return Finding("label leak", cause, check, fix)


def _leaked_class(texts: Texts) -> Finding | None:
    words = [set(_WORD.findall(prompt.casefold())) for prompt in texts.prompts]
    groups: dict[str, list[set[str]]] = {}
    for found, label in zip(words, texts.answers, strict=True):
        groups.setdefault(label, []).append(found)
    if len(words) < 50 or len(groups) < 2 or any(len(group) < 5 or _alike(group) for group in groups.values()):
        return None
    told: dict[str, str] = {}
    for label, group in groups.items():
        counts = Counter(word for found in group for word in found)
        others = set().union(*(found for name, rest in groups.items() if name != label for found in rest))
        sure = [w for w, n in counts.most_common(50) if n >= 0.98 * len(group) and w not in others]
        if sure:
            told[label] = min(sure, key=lambda w: (w != label.casefold(), w))
    if len(told) < len(groups) - 1:
        return None
    shown = ", ".join(f"{word!r} only in {label}" for label, word in list(told.items())[:3])
    check = f"in {len(words)} training records a word tells the class by itself: {shown}"
    fix = "take the label's column, or what was made from it, out of the text"
    return Finding("label leak", "the class stands in the text, so there is nothing to be told", check, fix)


def _alike(group: list[set[str]]) -> bool:
    """Whether the texts are one sentence with small changes: then a word that is in all of them betrays nothing."""
    pairs = list(pairwise(group))
    return sum(len(a & b) / max(1, len(a | b)) for a, b in pairs) / len(pairs) > 0.5


# --- templates ------------------------------------------------------------------------------------------------------


def wrong_template(seen: Evidence) -> Finding | None:
    """The template is not the model's, not the training's, or stands in the data already."""
    if seen.labels or seen.template is None:
        return None
    if seen.stored is not None and seen.stored.digest != seen.template:
        cause = "the model's template was changed after the training: its prompts are not those it has learned"
        check = f"finetwo.json has {seen.stored.digest[:12]}, the run was trained with {seen.template[:12]}"
        return Finding("wrong template", cause, check, "put the trained template back, or train again")
    if seen.base is not None and seen.base.digest != seen.template:
        cause = f"{seen.settings.get('model')} was tuned with another template ({seen.base.name}) than this run"
        check = f"the model brought {seen.base.digest[:12]}, the run used {seen.template[:12]}"
        return Finding("wrong template", cause, check, "leave --template out: the model's own is taken")
    return _doubled(seen)


def _doubled(seen: Evidence) -> Finding | None:
    texts, template = seen.texts, seen.stored or seen.base
    if texts is None or template is None or template.name == "custom" or len(texts.prompts) < 4:
        return None
    own = fixed_lines(template)
    for mark in dict.fromkeys([*own, *(_HEADERS if template.name != "plain" else ())]):
        least = 2 if mark in own else 1
        share = sum(prompt.count(mark) >= least for prompt in texts.prompts) / len(texts.prompts)
        if share >= 0.5:
            cause = f"the data brings template words of its own, and the template {template.name} is put around them"
            what = "twice" if least == 2 else "besides the template's own headers"
            check = f"{mark!r} stands in {share:.0%} of the prompts {what}"
            return Finding("wrong template", cause, check, "--template plain, or take the words out of the data")
    return None


def fixed_lines(template: Template) -> list[str]:
    """The lines of a template that no field fills, in order: what marks its prompts."""
    lines = [piece.strip() for text in _PIECE.split(template.text) for piece in text.split("\n")]
    return [line for line in dict.fromkeys(lines) if len(line) >= 5]


# --- answers --------------------------------------------------------------------------------------------------------


def answers_equal(seen: Evidence, blame: _Blame) -> Finding | None:
    """Different prompts get one and the same answer."""
    prompts = {reply.prompt for reply in seen.replies}
    answers = {reply.text.strip() for reply in seen.replies}
    if len(prompts) < 4 or len(answers) != 1:
        return None
    check = f"{len(prompts)} different prompts are all answered {next(iter(answers))[:60]!r}"
    texts = seen.texts
    top, share = texts.top_answer() if texts is not None else ("", 0.0)
    if texts is not None and len(set(texts.prompts)) == 1 and len(texts.prompts) > 1:
        cause = "the prompts of all training records are the same: the template leaves out what differs"
        return Finding("all answers equal", cause, check, "give a --template with the fields that matter")
    if share >= 0.5:
        cause = f"{share:.0%} of the training answers are {top[:40]!r}: always saying so is nearly always right"
        return Finding("all answers equal", cause, check, "balance the answers, or leave most of these out")
    if blame.high:
        cause = "the training blew up: what is left of the model does not read its prompt"
        return Finding("all answers equal", cause, check, f"--lr {seen.usual:g} --clip 1")
    if blame.slow or _is_short(seen):
        return None
    cause = "the model does not read the prompt: too little training, or answers that do not follow from it"
    return Finding(
        "all answers equal", cause, check, "train longer, and look whether the answers follow from the prompts"
    )


def classes_equal(seen: Evidence, blame: _Blame) -> Finding | None:
    """A classifier gives every held-out record the same class."""
    last, number = (seen.evaluations or [{}])[-1], len(seen.labels)
    if "accuracy" not in last or last.get("records", 0) < 20 or len(seen.steps) < 20:
        return None
    accuracy = float(last["accuracy"])
    alone = 2 * accuracy / (1 + accuracy) / number  # the macro F1 of whoever always says one class
    if abs(float(last["macro_f1"]) - alone) > 1e-9:
        return None
    check = f"of {last['records']} held-out records {accuracy:.1%} are right, as if one class were always told"
    top, share = seen.texts.top_answer() if seen.texts is not None else ("", 0.0)
    if blame.high:
        cause, fix = "the training blew up: the head gives one class whatever it reads", f"--lr {seen.usual:g} --clip 1"
    elif share >= 0.6:
        cause, fix = f"{share:.0%} of the training records are {top}", "--class_weights balanced, or train longer"
    elif blame.slow or _is_short(seen):
        return None
    else:
        cause, fix = "the classifier has not learned to tell the texts apart", "train longer, or raise --lr"
    return Finding("all answers equal", cause, check, fix)


def never_stops(seen: Evidence, blame: _Blame) -> Finding | None:
    """Answers go on until they are cut."""
    replies, texts = seen.replies, seen.texts
    if not seen.answers_end or len(replies) < 3 or texts is None or not texts.lengths:
        return None
    cut = sum(reply.finish == "length" for reply in replies)
    limit = seen.number("sampling.max_new_tokens", 64)
    if cut < 0.8 * len(replies) or median(texts.lengths) > limit:
        return None
    check = (
        f"{cut} of {len(replies)} answers ran on to their limit; the end is learned in {texts.ended:.0%} of the records"
    )
    if texts.ended < 0.2 and seen.counts.get("truncated"):
        cut, length = seen.counts["truncated"], seen.settings.get("max_length")
        cause = f"no record teaches an end: {cut:,} were cut at --max_length {length}"
        return Finding("never stops", cause, check, "raise --max_length so that the ends of the answers stay")
    if texts.ended < 0.2:
        cause = "no record teaches an end: the task writes answers without end-of-text"
        return Finding("never stops", cause, check, "end the last learned segment (Segment(..., end=True))")
    if blame.high or blame.slow or _is_short(seen):
        return None
    cause = "the end-of-text is in the records but was hardly learned"
    return Finding("never stops", cause, check, "train longer, or raise --lr")
