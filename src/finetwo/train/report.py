"""What a run has to say when it is over.

It knows figures and the tuned model, nothing of how they came about. Its one invariant: every figure is also in
the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetwo.generate.pipeline import Model


@dataclass
class Report:
    """The outcome of `finetwo.train`."""

    model: Model
    """The model after the last step, ready to generate; `finetwo.load(report.folder)` gives the best one."""
    folder: Path
    """The run folder."""
    steps: int
    train_loss: float
    """Loss of the last step, nats per learned token."""
    first: dict[str, Any] | None
    """Validation before the first step; None without validation data."""
    best: dict[str, Any] | None
    """The best validation and its step."""
    last: dict[str, Any] | None
    """Validation at the end."""
    tokens: int
    seconds: float
    trainable: int
    frozen: int
    stopped_early: bool = False

    def lines(self) -> list[str]:
        """The report as lines for a person."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        found = [
            f"done: {self.steps:,} steps, {self.tokens:,} tokens in {self.seconds:,.0f} s ({rate:,.0f} tokens/s)"
            + (", stopped early" if self.stopped_early else "")
        ]
        if self.first and self.best and self.last:
            found.append(
                f"validation loss {self.first['loss']:.4f} -> {self.last['loss']:.4f} "
                f"(best {self.best['loss']:.4f} at step {self.best['step']:,})"
            )
            if "accuracy" in self.best:
                found.append(
                    f"validation accuracy {self.first['accuracy']:.1%} -> {self.last['accuracy']:.1%} "
                    f"(best {self.best['accuracy']:.1%}, macro F1 {self.best['macro_f1']:.3f})"
                )
            if self.best["step"] == 0:
                found.append("warning: no step beat the untuned start on the validation data; final/ is the last step")
        return found
