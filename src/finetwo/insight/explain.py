"""What went wrong in a run: twelve failures, each named with its cause and the check that found it.

It reads what a run left behind and changes nothing. Its one invariant: a check that lacks what it needs (too few steps,
no texts, no answers) stays silent, and a failure that only follows from another is not reported beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from finetwo.insight.curves import Curves
from finetwo.insight.evidence import Evidence, ask, gather
from finetwo.insight.texts import data_findings, everything_truncated, label_leak, wrong_template
from finetwo.insight.verdict import Finding

_ENOUGH = 20
"""Steps below which a curve tells nothing."""
_SOLVED = 0.005
"""Nats a token below which nothing is left to learn."""


@dataclass(frozen=True)
class Case:
    """A run as its checks see it."""

    seen: Evidence
    curves: Curves


def explain(run: Path, answers: int = 0) -> list[Finding]:
    """Return what is wrong with the run in the folder `run`, the gravest first; nothing for a healthy one.

    With `answers` its model answers that many held-out prompts, where the run itself answered none.

    Raises:
        InputError: not a run folder, or the run has taken no step.
    """
    seen = gather(run)
    ask(seen, answers)
    return judge(Case(seen, Curves.of(seen.steps, seen.evaluations)))


def explained(run: Path) -> list[str]:
    """The findings of `explain` as lines for the end of a run, without asking the model anything; [] if there are none.

    A run that cannot be read gives no line: explaining must not make a good run fail.
    """
    try:
        return [line for finding in explain(run) for line in finding.lines()]
    except Exception as error:
        return [f"explain: the run could not be looked at: {type(error).__name__}: {error}"]


def judge(case: Case) -> list[Finding]:
    """Hold every check against a case, and leave out what only follows from a graver finding."""
    seen = case.seen
    found = [f for f in (not_a_number(case), everything_truncated(seen), label_leak(seen), wrong_template(seen)) if f]
    names = {f.name for f in found}
    unstable = None if "NaN" in names else gradient_explosion(case) or rate_too_high(case)
    found += [unstable] if unstable else []
    slow = None if names & {"NaN"} or unstable else rate_too_low(case) or flat_loss(case)
    found += data_findings(seen, high=unstable is not None, slow=slow is not None)
    heart = None if names & {"NaN"} or unstable else overfit(case)
    solved = None if heart or "label leak" in names else loss_zero(case)
    return found + [f for f in (solved, slow, heart) if f]


# --- numbers that blow up -------------------------------------------------------------------------------------------


def not_a_number(case: Case) -> Finding | None:
    """A numeric guard ended the run, or a loss in the log is no number."""
    seen = case.seen
    bad = [s["step"] for s in seen.steps if not isinstance(s.get("loss"), int | float)]
    if seen.failure is None and not bad:
        return None
    check = seen.failure or f"the loss of step {bad[0]} in metrics.jsonl is no number"
    if not seen.steps:
        cause = "the numbers overflow before any update: the weights of the base are too large for this precision"
        fix = f"take another base than {seen.settings.get('model')}, or --precision float32"
    elif seen.peak_lr > 3 * seen.usual and not case.curves.is_calm:
        cause = f"the learning rate: {seen.peak_lr:g}, {seen.peak_lr / seen.usual:,.0f} times what is usual here"
        fix = f"--lr {seen.usual:g}"
    elif not seen.number("clip", 1.0):
        cause, fix = "a gradient that nothing cuts (--clip 0)", "--clip 1"
    else:
        cause = "one batch whose numbers overflow; the check names its records"
        fix = "look at these records, and lower --lr"
    return Finding("NaN", cause, check, fix)


def gradient_explosion(case: Case) -> Finding | None:
    """A gradient far larger than at the start, not because of the learning rate alone."""
    seen, norms = case.seen, case.curves.norms
    if len(norms) < 3:
        return None
    early = median(norms[: max(3, len(norms) // 10)])
    peak = max(norms)
    if not (peak >= 1000 or (peak >= 100 * early and peak >= 50)):
        return None
    clip = seen.number("clip", 1.0)
    if clip and seen.peak_lr > 3 * seen.usual:
        return None  # the learning rate's finding says it
    step = seen.steps[norms.index(peak)]["step"]
    check = f"the gradient's norm is {peak:,.0f} at step {step}, {early:,.2g} in the first steps"
    if not clip:
        times = seen.peak_lr / seen.usual
        rate = f", and the learning rate is {times:,.0f} times the usual" if times > 3 else ""
        return Finding("gradient explosion", f"nothing cuts the gradient (--clip 0){rate}", check, "--clip 1")
    cause = "the weights of the base, or the records of that step: their loss is far outside the usual"
    return Finding("gradient explosion", cause, check, "look at the base and at these records; keep --clip 1")


def rate_too_high(case: Case) -> Finding | None:
    """The loss climbs out of where it was, or stands still under a rate far above the usual."""
    seen, curves = case.seen, case.curves
    if len(curves.losses) < 10 or seen.settings.get("optimizer") == "muon":
        return None
    times = seen.peak_lr / seen.usual
    climbed, step = curves.climb()
    worse = curves.late > curves.early * 1.1 and curves.late - curves.early > 0.3
    stuck = curves.quarter(4) > 0.98 * curves.quarter(2) and curves.late > 0.5
    unlearned = curves.validation_gain is not None and curves.validation_gain < 0
    if not ((climbed and (times > 2 or worse)) or (times >= 10 and (stuck or unlearned or worse))):
        return None
    how = f"climbs by {climbed:.2f} up to step {step}" if climbed else f"stays at {curves.late:.2f}"
    check = f"the training loss {how} ({curves.early:.2f} in the first steps, {curves.late:.2f} in the last)"
    cause = f"the learning rate reaches {seen.peak_lr:g}, {times:,.1f} times what is usual for this model and job"
    return Finding("learning rate too high", cause, check, f"--lr {seen.usual:g}")


# --- nothing learned, or too much -----------------------------------------------------------------------------------


def rate_too_low(case: Case) -> Finding | None:
    """Hardly anything learned, under a rate far below the usual."""
    seen, curves = case.seen, case.curves
    if len(curves.losses) < _ENOUGH or seen.settings.get("optimizer") == "muon":
        return None
    gain = curves.gain
    if seen.peak_lr > seen.usual / 10 or gain > 0.1 or curves.late < _SOLVED:
        return None
    asked = seen.number("lr", seen.usual)
    if asked > seen.usual / 10:
        return None  # still warming up: the run was stopped, or is not over
    cause = f"the learning rate is {asked:g}, 1/{seen.usual / max(asked, 1e-300):,.0f} of what is usual here"
    fix = f"--lr {seen.usual:g}"
    check = f"the loss fell by {max(gain, 0):.1%} in {len(curves.losses):,} steps"
    return Finding("learning rate too low", cause, check, fix)


def flat_loss(case: Case) -> Finding | None:
    """The loss stays where it was, though the rate is as usual."""
    seen, curves = case.seen, case.curves
    gain = curves.validation_gain
    if seen.peak_lr <= seen.usual / 10:
        return None  # too low, or still warming up
    held = _held_back(seen, median(curves.norms) if curves.norms else 0.0)
    if held is None and (guessing := _guessing(case)) is not None:
        return guessing
    if len(curves.losses) < _ENOUGH or curves.late < 0.1 or abs(curves.training_gain) > max(0.02, curves.noise):
        return None
    shown = "" if gain is None else f", the validation loss by {gain:.2%}"
    check = f"in {len(curves.losses):,} steps the training loss fell by {curves.training_gain:.2%}{shown}"
    if gain is not None and gain > (0.02 if held else 0.003):
        return None
    if held is not None:
        return Finding("flat loss", held[0], check, held[1])
    if gain is None and abs(curves.training_gain) > 0.02:
        return None  # within the noise of the batches, and no validation data to tell
    if "freeze" in seen.settings:
        cause = f"--freeze {seen.settings['freeze']} holds back what would have to learn"
        return Finding("flat loss", cause, check, "freeze less")
    if seen.labels:
        cause = "the classes do not follow from the texts: the loss is that of guessing"
        return Finding("flat loss", cause, check, "look at some records: is the label column the right one?")
    cause = (
        "nothing is left that this model can learn from these records, or the answers do not follow from the prompts"
    )
    return Finding("flat loss", cause, check, "look at some records; take more of them, or a larger model")


def _guessing(case: Case) -> Finding | None:
    """A classifier that after some passes still does as well as one that only knows how common each class is.

    Its loss may have fallen to there: a fresh head begins above it.
    """
    seen, texts = case.seen, case.seen.texts
    short = seen.epochs < 3 or len(case.curves.losses) < 100
    if not seen.labels or texts is None or short or seen.settings.get("class_weights", "none") != "none":
        return None
    shares = [count / len(texts.answers) for count in Counter(texts.answers).values()]
    floor, last = -sum(share * math.log(share) for share in shares), (seen.evaluations or [{}])[-1]
    luck = max(0.05, 1 / math.sqrt(max(1, last.get("records", 0))))  # two standard errors of a fair coin
    if case.curves.late < 0.98 * floor or float(last.get("accuracy", 0.0)) > max(shares) + luck:
        return None
    check = f"after {seen.epochs:.0f} passes the training loss is {case.curves.late:.3f}; guessing costs {floor:.3f}"
    cause = "the classes do not follow from the texts, or not for this model: the loss is that of guessing"
    return Finding("flat loss", cause, check, "is the label column the right one? take a larger base, or more records")


def _held_back(seen: Evidence, norm: float) -> tuple[str, str] | None:
    """A setting that takes the strength of every update, with the remedy."""
    clip = seen.number("clip", 1.0)
    if 0 < clip < 1e-3 * norm and clip < 1e-3:
        return f"--clip {clip:g} cuts a gradient of {norm:.2g} to nothing", "--clip 1"
    if seen.number("adam_eps", 1e-8) > 1e-3:
        return f"--adam_eps {seen.settings['adam_eps']} outweighs every gradient", "--adam_eps 1e-8"
    return None


def loss_zero(case: Case) -> Finding | None:
    """Nothing left to learn, for a reason that is no success."""
    seen, curves = case.seen, case.curves
    if len(curves.losses) < 5 or curves.late >= _SOLVED:
        return None
    check = f"the training loss is {curves.late:.2g} in the last steps"
    if not any(curves.losses):
        fix = "look at the answers: none holds anything to predict"
        return Finding("loss 0", "no token of the records can be got wrong", f"{check}, and in all", fix)
    top, share = ("", 0.0)
    if seen.texts is not None:
        top, share = seen.texts.top_answer()
    if share >= 0.9:
        cause = f"{share:.0%} of the answers are the same text ({top[:40]!r}): there is nothing to tell apart"
        return Finding("loss 0", cause, check, "give records with answers of their own")
    last = seen.evaluations[-1]["loss"] if seen.evaluations else None
    if last is not None and last > 0.5:
        cause = f"the records are learned by heart in {seen.epochs:.0f} epochs; held out, the loss is {last:.2f}"
        return Finding("loss 0", cause, check, "give more records, or fewer --epochs")
    if last is None and seen.epochs >= 20 and not seen.labels:
        number = seen.counts.get("train", 0)
        cause = f"{number:,} records are learned by heart: each was seen {seen.epochs:.0f} times, none is held out"
        return Finding("loss 0", cause, check, "give more records, a validation set, or fewer steps")
    return None


def overfit(case: Case) -> Finding | None:
    """The validation loss rises from its best while the training loss goes on falling."""
    seen = case.seen
    found = [e for e in seen.evaluations if isinstance(e.get("loss"), int | float)]
    if len(found) < 3 or seen.stopped_early:
        return None
    best = min(found, key=lambda e: float(e["loss"]))
    rise = float(found[-1]["loss"]) - float(best["loss"])
    least = max(0.1, 0.1 * float(best["loss"]))
    if not seen.labels and case.curves.late < 0.05 * float(best["loss"]):
        least = 0.01 * float(best["loss"])  # learned to the last word; the rest of the run could move little
    if rise < least or _still_better(best, found[-1]):
        return None
    then = case.curves.around(int(best["step"]))
    if case.curves.late > 0.98 * then:
        return None
    check = (
        f"the validation loss rose from {best['loss']:.3f} at step {best['step']} to {found[-1]['loss']:.3f}, "
        f"while the training loss fell from {then:.3f} to {case.curves.late:.3f}"
    )
    cause = f"the training records are learned by heart: {seen.epochs:.1f} passes are too many for them"
    kept = f"take best/ (step {max(found, key=_merit)['step']})"
    return Finding(
        "validation rises while training falls", cause, check, f"{kept}, stop with --patience 2, or give more records"
    )


def _still_better(best: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether a classifier went on to tell more records rightly, though less modest where it errs."""
    return "accuracy" in last and float(last["accuracy"]) > float(best["accuracy"]) + 0.002


def _merit(evaluation: Mapping[str, Any]) -> tuple[float, float]:
    """What the best step is chosen by: accuracy where there is one, then the loss."""
    return float(evaluation.get("accuracy", 0.0)), -float(evaluation["loss"])
