"""Which kernels are used where: those that were shown to be right on the device, and PyTorch's operators else."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.standins.models import difference
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from finetwo.model import passes
from finetwo.model.passes import AddNorm, proven

CPU = torch.device("cpu")


def plain_cross_entropy(
    logits: Tensor, targets: Tensor, classes: int, weights: Tensor | None, scale: float, *, gradient: bool
) -> Tensor:
    leaf = logits[:, :classes].float().requires_grad_()
    losses = cross_entropy(leaf, targets, reduction="none")
    losses = losses if weights is None else losses * weights
    (found,) = torch.autograd.grad(losses.sum() * scale, leaf)
    if gradient:
        logits.zero_()[:, :classes] = found
    return losses.detach()


def plain_add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    total = x if delta is None else x + delta
    mean = total.mean(1)
    rstd = (total.var(1, correction=0) + eps).rsqrt()
    return total, layer_norm(total, total.shape[1:], weight, bias, eps).to(dtype), mean, rstd


def plain_add_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    low: Any,
    *,
    learn: bool,
) -> tuple[Tensor | None, ...]:
    normed, g = (total - mean[:, None]) * rstd[:, None], dy.float() * weight
    back = (g - normed * (g * normed).mean(1, keepdim=True) - g.mean(1, keepdim=True)) * rstd[:, None]
    dx = back if dtotal is None else back + dtotal
    sums = ((dy.float() * normed).sum(0), dy.float().sum(0)) if learn else (None, None)
    return dx, None if low is None else dx.to(low), *sums


def kernels_of(**other: Any) -> Any:
    found = {
        "cross_entropy_": plain_cross_entropy,
        "add_norm": plain_add_norm,
        "add_norm_backward": plain_add_norm_backward,
    }
    return SimpleNamespace(**found | other)


def test_kernels_that_are_right_are_taken() -> None:
    assert proven(kernels_of(), CPU)


def _off(function: Any, place: int) -> Any:
    """The same, one of its results wrong by a tenth."""

    def wrong(*given: Any, **more: Any) -> Any:
        found = list(function(*given, **more))
        found[place] = found[place] * 1.1
        return tuple(found)

    return wrong


@pytest.mark.parametrize("place", range(2))
def test_a_norm_that_is_wrong_is_found_out(place: int) -> None:
    assert not proven(kernels_of(add_norm=_off(plain_add_norm, place)), CPU)


@pytest.mark.parametrize("place", range(4))
def test_a_gradient_that_is_wrong_is_found_out(place: int) -> None:
    assert not proven(kernels_of(add_norm_backward=_off(plain_add_norm_backward, place)), CPU)


def test_a_loss_that_is_wrong_is_found_out() -> None:
    assert not proven(kernels_of(cross_entropy_=lambda *a, **k: plain_cross_entropy(*a, **k) * 1.1), CPU)
    assert not proven(kernels_of(cross_entropy_=lambda *a, **k: plain_cross_entropy(*a, gradient=False)), CPU)

    def unfilled(logits: Tensor, *given: Any, **more: Any) -> Tensor:
        losses = plain_cross_entropy(logits, *given, **more)
        logits[:, -1] = 1.0
        return losses

    assert not proven(kernels_of(cross_entropy_=unfilled), CPU)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_each_input_gets_its_gradient(monkeypatch: pytest.MonkeyPatch, adds: bool, learns: bool) -> None:
    monkeypatch.setattr(passes, "kernels", lambda device, dtype=None: kernels_of())
    generator = torch.Generator().manual_seed(0)
    x, delta, up = (torch.randn(5, 12, generator=generator) for _ in range(3))
    weight, bias = (torch.randn(12, generator=generator) for _ in range(2))
    found, wanted = ([t.clone().requires_grad_() for t in (x, delta)] for _ in range(2))
    mine, theirs = ([t.clone().requires_grad_(learns) for t in (weight, bias)] for _ in range(2))
    out: Any = AddNorm.apply(found[0], found[1] if adds else None, *mine, 1e-5, torch.float32)  # type: ignore[no-untyped-call]
    total = wanted[0] + wanted[1] if adds else wanted[0]
    y = layer_norm(total, (12,), *theirs, 1e-5)
    if adds:
        ((out[0] * up).sum() + (out[1] * up).sum()).backward()
        ((total * up).sum() + (y * up).sum()).backward()
    else:
        (out * up).sum().backward()
        (y * up).sum().backward()
    for a, b in zip((*found, *mine), (*wanted, *theirs), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or b.grad is None or difference(a.grad, b.grad) < 1e-5


def test_without_triton_pytorch_computes_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "finetwo.model.triton_kernels", raising=False)
    assert passes.kernels.__wrapped__(torch.device("cuda", 7)) is None
    (said,) = caplog.messages
    assert "the Triton kernels are not used: " in said and "triton" in said


def test_kernels_that_fail_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    broken = ModuleType("finetwo.model.triton_kernels")
    monkeypatch.setitem(sys.modules, "finetwo.model.triton_kernels", broken)
    monkeypatch.setattr(passes, "proven", lambda found, device: False)
    monkeypatch.setattr("finetwo.model.triton_kernels", broken, raising=False)
    assert passes.kernels.__wrapped__(torch.device("cuda", 7)) is None
    assert "they differ from PyTorch here" in caplog.text
