"""Matrix products in 16 bits (bfloat16 or float16) over float32 masters, without casting a weight twice.

Norms, embeddings, the residual stream and every sum of gradients stay float32; it knows no optimizer and no loss. Its
one invariant: a working copy is never older than its parameter.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetwo.model import native_passes
from finetwo.model.passes import kernels

_ROWS = 4096
"""Rows of a product that are made at a time where it is then widened: some megabytes."""
TILE = 64
"""Rows of a head come in such numbers on a GPU, whose matrix units want it: GPT-2's 50,257 become 50,304."""


def only_imitates_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 by way of float32: an x86 processor without AVX-512."""
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")


def summed_product(a: Tensor, b: Tensor, dtype: torch.dtype, total: Tensor | None = None) -> Tensor:
    """`a @ b` in `dtype`, added to `total` if there is one; a GPU's products sum in float32 and can write that."""
    if a.dtype == dtype:
        return a @ b if total is None else total.addmm_(a, b)
    if a.device.type == "cuda" and dtype == torch.float32:
        found = torch.mm(a, b, out_dtype=dtype)
    elif dtype == torch.float32 and kernels(a.device, a.dtype) is native_passes:
        return _widened(a, b, total)
    else:
        found = (a @ b).to(dtype)
    return found if total is None else total.add_(found)


def _widened(a: Tensor, b: Tensor, total: Tensor | None) -> Tensor:
    """The same on a CPU in bfloat16: some rows at a time, so that what is rounded does not leave the caches."""
    found = torch.empty(a.shape[0], b.shape[1], dtype=torch.float32) if total is None else total
    for i in range(0, a.shape[0], _ROWS):
        native_passes.widen_(found[i : i + _ROWS], a[i : i + _ROWS] @ b, add=total is not None)
    return found


def _summed(g: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the rows of g (N, D), taken and given in `dtype`; PyTorch widens all of g first on a CPU."""
    if dtype == torch.float32 and kernels(g.device, g.dtype) is native_passes:
        return native_passes.sum_rows(g.contiguous())
    return g.sum(0, dtype=dtype)


class Copy:
    """A parameter in 16 bits, kept until the parameter may have changed.

    Its version tells of every change but the fused optimizers', so whoever learns must be told of by `refresh`.
    """

    def __init__(self, parameter: Tensor, dtype: torch.dtype, multiple: int = 1) -> None:
        """`multiple`: the copy has so many rows or a multiple of that, the further ones 0."""
        self._parameter, self._multiple = parameter, multiple
        self._state: tuple[int, int, bool] | None = None
        self._low = torch.empty(0, dtype=dtype)

    def refresh(self) -> None:
        """Write the copy anew at its next use if the parameter learns."""
        if self._parameter.requires_grad:
            self._state = None

    def __call__(self) -> Tensor:
        """Return the copy as it stands now."""
        p = self._parameter
        state = (p._version, p.data_ptr(), p.requires_grad)  # one that was frozen may have learned just before
        if state != self._state:
            self._room().copy_(p.detach())
            self._state = state
        return self._low

    def _room(self) -> Tensor:
        """Where the parameter is to be copied to."""
        p, rows = self._parameter, -(-self._parameter.shape[0] // self._multiple) * self._multiple
        if self._low.shape != (rows, *p.shape[1:]) or self._low.device != p.device:
            self._low = torch.zeros((rows, *p.shape[1:]), dtype=self._low.dtype, device=p.device)
        return self._low[: p.shape[0]]

    @staticmethod
    def write(copies: Iterable[Copy]) -> None:
        """Refresh copies at once, where a GPU would otherwise wait for one call after the other."""
        stale = [c for c in copies if c._state is None]
        if not stale:
            return
        with torch.no_grad():
            torch._foreach_copy_([c._room() for c in stale], [c._parameter.detach() for c in stale])
        for copy in stale:
            p = copy._parameter
            copy._state = (p._version, p.data_ptr(), p.requires_grad)


class Lowered:
    """The context in which a network's products are made in 16 bits: one step's, or one evaluation's.

    Nothing may learn inside. The copies of what is frozen are kept for the next time.
    """

    def __init__(self, network: nn.Module, head: Tensor | None, dtype: torch.dtype) -> None:
        """`head`: the head's matrix, if its products are large enough to be worth it."""
        self._slots = [(m, m.working_copies(dtype)) for m in network.modules() if isinstance(m, Lowerable)]
        gpu = head is not None and head.device.type == "cuda"
        self.head = None if head is None else Copy(head, dtype, TILE if gpu else 1)
        self.dtype = dtype
        self._depth = 0
        self._gpu = next(network.parameters()).device.type == "cuda"

    @property
    def active(self) -> bool:
        """Whether the network is in this context now."""
        return self._depth > 0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        for module, copies in self._slots:
            module.lowered, module.copies = self.dtype, copies
            for copy in copies or ():
                copy.refresh()
        if self.head is not None:
            self.head.refresh()
        if self._gpu:
            every = [copy for _, copies in self._slots for copy in copies or ()]
            Copy.write([*every, *([] if self.head is None else [self.head])])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        for module, _ in self._slots:
            module.lowered, module.copies = None, None


class Lowerable(nn.Module):
    """A module with a weight and a bias whose product may be made in 16 bits, from copies of them."""

    lowered: torch.dtype | None = None
    """The precision that it is made in now, where that is not the weight's."""
    copies: tuple[Copy, Copy] | None = None
    if TYPE_CHECKING:
        weight: nn.Parameter
        bias: nn.Parameter

    def working_copies(self, dtype: torch.dtype) -> tuple[Copy, Copy] | None:
        """Copies of weight and bias; None where the product needs none to be made in its input's precision."""
        return Copy(self.weight, dtype), Copy(self.bias, dtype)


class LowProduct(torch.autograd.Function):
    """`x @ weight + bias` from copies in 16 bits; the gradients of weight and bias come in their own precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, low: tuple[Tensor, Tensor]) -> Tensor:
        """Return (N, out) for x (N, in), both in the precision of the copies."""
        ctx.save_for_backward(x if weight.requires_grad else None, low[0])
        ctx.dtype = weight.dtype
        return torch.addmm(low[1], x, low[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """The usual three products; the bias's sum is taken in float32."""
        (g,) = grads
        x, weight = ctx.saved_tensors
        return (
            g @ weight.t() if ctx.needs_input_grad[0] else None,
            summed_product(x.t(), g, ctx.dtype) if ctx.needs_input_grad[1] else None,
            _summed(g, ctx.dtype) if ctx.needs_input_grad[2] else None,
            None,
        )
