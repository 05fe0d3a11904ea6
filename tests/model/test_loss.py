"""The chunked loss against PyTorch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch
from tests.standins.models import difference
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetwo.model import loss as module
from finetwo.model.gpt2 import pick
from finetwo.model.loss import LinearCrossEntropy, kept, summed_loss, token_losses

VOCAB, WIDTH = 37, 12


def sample(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (rows,), generator=generator)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)  # the smallest chunk: 16 rows
    assert module._rows(VOCAB) == 16


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 50])
def test_value_and_gradients(rows: int) -> None:
    hidden, weight, targets = sample(rows)
    got = LinearCrossEntropy.apply(hidden, weight, targets)
    (got * 0.7).backward()
    wanted_hidden, wanted_weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    wanted = cross_entropy(wanted_hidden @ wanted_weight.t(), targets, reduction="sum")
    (wanted * 0.7).backward()
    assert got.dtype == torch.float32 and got.shape == ()
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    for ours, theirs in ((hidden, wanted_hidden), (weight, wanted_weight)):
        assert ours.grad is not None and theirs.grad is not None
        assert difference(ours.grad, theirs.grad) < 2e-5


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets = sample(5)
    got = LinearCrossEntropy.apply(hidden, weight, targets)
    got.backward()
    with torch.no_grad():
        for tensor, at in ((hidden, (2, 3)), (weight, (int(targets[1]), 0))):
            moved, step = tensor.detach().double(), 1e-5
            values = []
            for sign in (1, -1):
                other = moved.clone()
                other[at] += sign * step
                h, w = (other, weight.double()) if tensor is hidden else (hidden.double(), other)
                values.append(float(cross_entropy(h @ w.t(), targets, reduction="sum")))
            assert tensor.grad is not None
            assert float(tensor.grad[at]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


def test_chunks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = sample(50)
    whole = LinearCrossEntropy.apply(hidden, weight, targets)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    assert float(LinearCrossEntropy.apply(hidden, weight, targets).detach()) == pytest.approx(
        float(whole.detach()), rel=1e-6
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets = sample(20)
    both = LinearCrossEntropy.apply(hidden, weight, targets)
    both.backward()
    kept = {"hidden": weight, "weight": hidden}[frozen]
    assert kept.grad is not None
    wanted = kept.grad.clone()
    hidden.grad = weight.grad = None
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    LinearCrossEntropy.apply(hidden, weight, targets).backward()
    assert torch.equal(kept.grad, wanted)
    assert {"hidden": hidden, "weight": weight}[frozen].grad is None


@pytest.mark.usefixtures("small_chunks")
def test_without_gradients() -> None:
    hidden, weight, targets = sample(20)
    with torch.no_grad():
        got = LinearCrossEntropy.apply(hidden, weight, targets)
    assert not got.requires_grad
    assert float(got.detach()) == pytest.approx(float(token_losses(hidden, targets, weight).sum().detach()), rel=1e-6)


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, targets = sample(8)
    with torch.no_grad():
        hidden.mul_(1e4)
    got = LinearCrossEntropy.apply(hidden, weight, targets)
    got.backward()
    assert torch.isfinite(got) and hidden.grad is not None and torch.isfinite(hidden.grad).all()
    assert float(got.detach()) == pytest.approx(
        float(cross_entropy(hidden @ weight.t(), targets, reduction="sum").detach()), rel=1e-5
    )


@pytest.mark.parametrize("way", ["weights in bf16", "a copy in bf16"])
def test_bf16(way: str) -> None:
    hidden, weight, targets = sample(40, torch.bfloat16 if way == "weights in bf16" else torch.float32)
    low = weight.detach().bfloat16() if way == "a copy in bf16" else None
    got = LinearCrossEntropy.apply(hidden, weight, targets, None, low)
    got.backward()
    exact_hidden, exact_weight = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    exact = cross_entropy(exact_hidden @ exact_weight.t(), targets, reduction="sum")
    exact.backward()
    assert got.dtype == torch.float32 and float(got.detach()) == pytest.approx(float(exact.detach()), rel=0.01)
    for ours, theirs in ((hidden, exact_hidden), (weight, exact_weight)):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == ours.dtype
        assert difference(ours.grad, theirs.grad) < 0.03 * float(theirs.grad.abs().max())


@pytest.mark.usefixtures("small_chunks")
def test_the_scale_is_part_of_the_loss_and_of_its_gradients() -> None:
    found = []
    for scale in (0.25, 1.0):
        hidden, weight, targets = sample(40)
        loss = LinearCrossEntropy.apply(hidden, weight, targets, None, None, scale)
        (loss * (0.25 / scale)).backward()
        assert hidden.grad is not None and weight.grad is not None
        found.append((loss.detach() * (0.25 / scale), hidden.grad, weight.grad))
        with pytest.raises(RuntimeError, match="once"):
            loss.backward()
    for scaled, afterwards in zip(*found, strict=True):
        assert difference(scaled, afterwards) < 1e-5


def test_only_kept_positions_count() -> None:
    hidden = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[-100, 3, -100, 36, 0, -100], [-100] * 5 + [7]])
    places = kept(targets)
    assert places.tolist() == [1, 3, 4, 11]
    total = summed_loss(pick(hidden, places), targets.view(-1)[places], weight)
    total.backward()
    wanted = cross_entropy((hidden @ weight.t()).view(-1, VOCAB), targets.view(-1), ignore_index=-100, reduction="sum")
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, targets != -100)


def test_nothing_kept_is_an_exact_zero_with_a_gradient() -> None:
    hidden = torch.randn(1, 3, WIDTH, requires_grad=True)
    places = kept(torch.full((1, 3), -100))
    total = summed_loss(pick(hidden, places), torch.zeros(0, dtype=torch.long), torch.randn(VOCAB, WIDTH))
    total.backward()
    assert float(total.detach()) == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.usefixtures("small_chunks")
def test_token_losses() -> None:
    hidden, weight, targets = sample(50)
    wanted = cross_entropy(hidden @ weight.t(), targets, reduction="none")
    assert difference(token_losses(hidden, targets, weight), wanted) < 1e-5
    assert token_losses(hidden[:0], targets[:0], weight).shape == (0,)
