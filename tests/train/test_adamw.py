"""AdamW against PyTorch's own, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from finetwo.train.adamw import AdamW


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (33,), (4, 4), (1,)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_pytorchs_update_to_the_bit(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)

    def groups(found: list[nn.Parameter]) -> list[dict[str, object]]:
        return [{"params": found[:2], "weight_decay": 0.1}, {"params": found[2:], "weight_decay": 0.0}]

    mine = AdamW(groups(ours), 3e-3, (0.9, 0.95), 1e-7)
    reference = torch.optim.AdamW(groups(theirs), lr=3e-3, betas=(0.9, 0.95), eps=1e-7, fused=True)
    generator = torch.Generator().manual_seed(1)
    for turn in range(12):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator).to(dtype)
            skip = i == 3 and turn % 3 == 0  # a parameter without a gradient stays as it is, and so does its count
            a.grad, b.grad = (None, None) if skip else (gradient, gradient.clone())
        for part in (mine, reference):
            for group in part.param_groups:
                group["lr"] = 3e-3 / (turn + 1)
            part.step()
            part.zero_grad(set_to_none=True)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert mine.state[a].keys() == reference.state[b].keys()
        assert all(torch.equal(mine.state[a][k], reference.state[b][k]) for k in mine.state[a])
        assert a.grad is None


def test_gradients_can_be_set_to_zero() -> None:
    found = parameters()
    optimizer = AdamW([{"params": found, "weight_decay": 0.0}], 1e-3)
    found[0].grad = torch.ones_like(found[0])
    optimizer.zero_grad(set_to_none=False)
    assert found[0].grad is not None and not found[0].grad.any() and found[1].grad is None


def test_a_run_does_not_import_the_compiler(tmp_path: object) -> None:
    """What makes the start quick: PyTorch's compiler is imported by nothing on the way to the first step."""
    program = (
        "import sys\nfrom finetwo.core.config import TrainConfig\nfrom finetwo.train.job import train\n"
        "rows = [{'prompt': 'Who?', 'completion': 'I.'}] * 2\n"
        f"train(TrainConfig(out={str(tmp_path)!r} + '/run', max_steps=1, eval_every='0'), rows)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
