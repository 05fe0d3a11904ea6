"""The loss and the gradients of a step on a GPU, recorded once for each shape as a CUDA graph and played again.

A small model's step is several hundred short kernels; calling them from Python takes longer than they run. It knows
batches and a network, and no optimizer. Its one invariant: what is played is what the same step does when it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetwo.core.config import TrainConfig
from finetwo.data.batch import Batch
from finetwo.model.attend import Attend, Causal, Shares, Varlen, pinned
from finetwo.model.network import Network
from finetwo.train.evaluate import lowered
from finetwo.train.laid import Laid, Shape, lay

_MOST = 48
"""Shapes that are recorded; each keeps some megabytes."""
_PATIENCE = 2
"""Shapes that may fail to be recorded before it is given up."""


class Replayed:
    """Steps of one network; its parameters' gradients stay where they are and must be set to 0, not taken away."""

    def __init__(self, network: Network, precision: str, *, record: bool) -> None:
        """`record`: whether shapes that come again are recorded at all."""
        self._network, self._precision, self._record = network, precision, record
        self._learn = [p for p in network.parameters() if p.requires_grad]
        self._total = torch.zeros((), dtype=torch.float32, device=self._learn[0].device)
        self._ran, self._refused = False, set[Shape]()
        self._made: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    @staticmethod
    def usable(network: Network, precision: str) -> bool:
        """Whether a network's steps can be: on a GPU in 16 bits, and with no sizes that only the GPU would know."""
        config = network.config
        mean = bool(config.labels) and config.pooling == "mean"
        device = network.head_weight.device
        return precision != "float32" and not mean and Varlen.usable(device, config.n_embd // config.n_head)

    @classmethod
    def of(cls, network: Network, config: TrainConfig) -> Replayed | None:
        """Steps of `network` as a run with these settings takes them; None where it takes them plainly."""
        if not cls.usable(network, config.precision):
            return None
        return cls(network, config.precision, record=not (config.recompute or config.deterministic))

    def __call__(
        self, batches: Sequence[Batch], mass: float, class_weights: Sequence[float] | None, scale: float
    ) -> Tensor:
        """Return the mean loss over `batches`, a mean over `mass`, and add `scale` times its gradients to those there.

        A scalar on the device, which is not waited for.
        """
        self._total.zero_()
        for batch in batches:
            self._add(lay(batch, self._network.config.n_positions, scale / mass, class_weights))
        return self._total / scale

    def _add(self, laid: Laid) -> None:
        """Add the loss of a micro-batch and its gradients."""
        shape = laid.shape
        numbers, weights = (pinned(torch.from_numpy(a)) for a in (laid.numbers, laid.weights))
        new = shape not in self._made and shape not in self._refused
        if new and self._record and self._ran and len(self._made) < _MOST:
            self._try_to_record(shape, numbers, weights)
        if shape in self._made:
            graph, given, factors = self._made[shape]
            given.copy_(numbers, non_blocking=True)
            factors.copy_(weights, non_blocking=True)
            graph.replay()
        else:
            device = self._total.device
            self._compute(shape, numbers.to(device, non_blocking=True), weights.to(device, non_blocking=True))
        self._ran = True

    def _try_to_record(self, shape: Shape, numbers: Tensor, weights: Tensor) -> None:
        """Record a shape, once some shape has run, so that the libraries and kernels that it needs are there."""
        device = self._total.device
        given, factors = numbers.to(device), weights.to(device)
        for p in self._learn:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        try:
            self._made[shape] = (self._recorded(shape, given, factors), given, factors)
        except RuntimeError:  # something in it cannot be recorded: it is computed as ever
            self._record = len(self._refused) + 1 < _PATIENCE
            self._refused.add(shape)

    def _recorded(self, shape: Shape, given: Tensor, factors: Tensor) -> torch.cuda.CUDAGraph:
        """The graph of a shape, which reads `given` and `factors`."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._made.values()))[0].pool() if self._made else None
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._compute(shape, given, factors)
        return graph

    def _compute(self, shape: Shape, numbers: Tensor, weights: Tensor) -> None:
        """Forward and backward of one micro-batch."""
        tokens, positions, keep, targets, ends, *shares = numbers.split(list(shape.sizes()))
        attend: Attend = Causal()
        if shape.ends:
            attend = Varlen(ends.view(2, -1), shape.most, Shares(*shares) if shares else None)
        rows = (tokens.view(shape.rows, -1), positions.view(shape.rows, -1))
        with lowered(self._precision, self._network):
            loss = self._network.weighted_loss(*rows, attend, keep if shape.learned else None, targets, weights)
            loss.backward()
            self._total.add_(loss.detach())
