"""A network, whole or quantised, as one call of the compiled kernel: tokens, places and slots in, logits out.

It knows the network's parts and the cache's layout, and must not know sampling or when a sequence ends. Its one
invariant: a row's logits depend on its slot's tokens alone, bit for bit, however rows are put together in calls.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from finetwo.core.compiled import Refused
from finetwo.model import kernel
from finetwo.model.cached import round_up
from finetwo.model.config import GPT2Config
from finetwo.model.kernel import address
from finetwo.model.linear import Linear
from finetwo.model.lora import LoraAdapter, linears
from finetwo.model.network import Network
from finetwo.model.quantised import KINDS, Codes, Kind, QuantisedEmbedding, QuantisedLinear, quantise

_LANES = 16  # places that keys are stored by, and numbers that a head is padded to
_ROWS = 64
"""A prompt is computed so many tokens at a time."""
_log, _said = logging.getLogger("finetwo"), set[str]()
_ACTIVATIONS = {"relu": 0, "gelu": 1}


class Fused:
    """The kernel's view of a packed network, with a cache of `slots` sequences of at most `capacity` tokens."""

    def __init__(self, network: Network, vocab: int, slots: int, capacity: int, *, threads: int | None = None) -> None:
        """`vocab`: ids from here on get no logits; `threads`: as many as torch has where none are given."""
        config, trunk = network.config, network.transformer
        self._threads = threads
        self._network, self.vocab = network, vocab  # the kernel reads the network's own tensors: they must stay
        self.capacity = round_up(capacity, _LANES)
        size = self.capacity * round_up(config.n_embd // config.n_head, _LANES)
        shape = (2, config.n_layer, slots, config.n_head, size)
        self._keys, self._values = kernel.memory(4 * math.prod(shape)).view(torch.float32).view(shape)
        self._ups = [up for linear in linears(network).values() if (up := _up(linear)) is not None]
        ups = iter(self._ups)
        self._layers = (kernel.CLayer * config.n_layer)(*(_layer(block, ups) for block in trunk.h))
        self._described = kernel.CNetwork(
            layers=config.n_layer,
            heads=config.n_head,
            head_width=config.n_embd // config.n_head,
            width=config.n_embd,
            inner=config.inner,
            activation=_ACTIVATIONS.get(config.activation_function, 2),
            post_norm=config.post_norm,
            capacity=self.capacity,
            slots=slots,
            rank=max((up.shape[0] for up in self._ups), default=0),
            epsilon=config.layer_norm_epsilon,
            layer=self._layers,
            head=_head(trunk.wte, vocab),
            places=address(trunk.wpe.weight),
            gain=address(trunk.ln_f.weight),
            shift=address(trunk.ln_f.bias),
            keys=self._keys.data_ptr(),
            values=self._values.data_ptr(),
        )
        self._work = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def slot_bytes(config: GPT2Config, capacity: int) -> int:
        """Memory of one slot's keys and values."""
        width = round_up(config.n_embd // config.n_head, _LANES)
        return 8 * config.n_layer * config.n_head * round_up(capacity, _LANES) * width

    def copy(self, source: int, target: int) -> None:
        """Copy what a slot holds to another."""
        self._keys[:, target] = self._keys[:, source]
        self._values[:, target] = self._values[:, source]

    def prompt(self, slot: int, tokens: Sequence[int], known: int = 0) -> Tensor:
        """Put a prompt into a slot whose first `known` places hold its beginning; return the logits after, (1, V)."""
        for first in range(known, len(tokens), _ROWS):
            part = tokens[first : first + _ROWS]
            rows = range(first, first + len(part))
            last = [len(part) - 1] if rows.stop == len(tokens) else []
            logits = self.forward(part, rows, [slot] * len(part), last)
        return logits

    def forward(
        self, tokens: Sequence[int], places: Sequence[int], slots: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """Append a token a row, rows of one slot together and in order; return the logits of rows `wanted`, (N, V)."""
        count, threads = len(tokens), self._threads or torch.get_num_threads()
        assert max(places) < self.capacity and min(places) >= 0
        rows = torch.tensor([*tokens, *places, *slots, *wanted], dtype=torch.int32)
        logits = torch.empty(len(wanted), self.vocab)
        net, library = ctypes.byref(self._described), kernel.library()
        needed = library.ft_work(net, count, threads)
        if self._work.numel() < needed:
            self._work = torch.empty(needed, dtype=torch.uint8)
        at = [rows.data_ptr() + 4 * count * i for i in range(4)]
        library.ft_forward(net, count, *at[:3], len(wanted), at[3], logits.data_ptr(), self._work.data_ptr(), threads)
        return logits


def _up(linear: Linear) -> Tensor | None:
    """An adapter's second matrix as the kernel reads it, (rank, out), scaled."""
    adapter = linear.adapter
    if not isinstance(adapter, LoraAdapter):
        return None
    return (adapter.lora_B.weight.detach().t() * adapter.scale).contiguous()


def _linear(linear: Linear, ups: Iterator[Tensor]) -> kernel.CLinear:
    """Describe a linear; `ups` gives what `_up` made of the adapters, in the network's order."""
    if isinstance(linear, QuantisedLinear):
        return linear.matrix.described(linear.bias)
    adapter = linear.adapter
    added = (adapter.lora_A.weight, next(ups)) if isinstance(adapter, LoraAdapter) else None
    return kernel.floats(linear.weight, linear.bias, added)


def _head(words: nn.Module, vocab: int) -> kernel.CLinear:
    if isinstance(words, QuantisedEmbedding):
        assert words.matrix.packed
        return words.matrix.described(None, vocab)
    assert isinstance(words, nn.Embedding)
    return kernel.table(words.weight, vocab)


def _layer(block: object, ups: Iterator[Tensor]) -> kernel.CLayer:
    attention, mlp = block.attn, block.mlp  # type: ignore[attr-defined]
    parts = {"attention": attention.c_attn, "projection": attention.c_proj, "up": mlp.c_fc, "down": mlp.c_proj}
    norms = (block.ln_1, block.ln_2)  # type: ignore[attr-defined]
    return kernel.CLayer(
        **{name: _linear(linear, ups) for name, linear in parts.items()},
        **{f"gain{i}": address(norm.weight) for i, norm in enumerate(norms, 1)},
        **{f"shift{i}": address(norm.bias) for i, norm in enumerate(norms, 1)},
        scale=attention.scale,
    )


def matrices(network: Network) -> list[Codes]:
    """Every matrix of a quantised network that is stored as codes."""
    return [m for m in network.modules() if isinstance(m, Codes)]


def usable(network: Network) -> bool:
    """Whether the kernel can run a network: on the CPU, and packed codes without adapters, or float32 throughout.

    Asking for a float32 network compiles the kernel where that was not done.
    """
    if network.score is not None:
        return False
    if network.quantised is not None:
        plain = all(m.adapter is None for m in network.modules() if isinstance(m, QuantisedLinear))
        return plain and all(m.packed and m.codes.is_cpu for m in matrices(network))
    if not all(p.is_cpu and p.dtype == torch.float32 and p.is_contiguous() for p in network.parameters()):
        return False
    return all(_whole(linear) for linear in linears(network).values()) and refused() is None


def _whole(linear: Linear) -> bool:
    """Whether a linear computes with its own float32 weight, and no adapter but LoRA's."""
    as_it_is = type(linear) is Linear and linear.lowered is None and linear.copies is None
    return as_it_is and (linear.adapter is None or type(linear.adapter) is LoraAdapter)


def pack(network: Network) -> str:
    """Bring a quantised network into the kernel's layout; return what the kernel is, or why torch must do without.

    The first call on a machine compiles the kernel, which takes seconds; the first in a process checks it.
    """
    refusal = refused()
    if refusal is not None:
        return f"no compiled kernel, torch computes instead, slower: {refusal}"
    waiting = [matrix for matrix in matrices(network) if not matrix.packed]
    places = kernel.memory(sum(matrix.packed_bytes for matrix in waiting)).split([m.packed_bytes for m in waiting])
    for matrix, place in zip(waiting, places, strict=True):
        matrix.pack(place)
    return f"compiled kernel: {kernel.name()}"


def make_ready(network: Network, kind: Kind | None) -> None:
    """Quantise a network if a kind is given; bring one that is quantised into the kernel's layout, if it is on the CPU.

    Where there is no kernel that is said once, as a warning in the log.
    """
    if kind is not None:
        quantise(network, kind)
    if network.quantised is not None and network.transformer.wpe.weight.is_cpu:
        said = pack(network)
        if refused() is not None and said not in _said:
            _said.add(said)
            _log.warning("note: %s", said)


@cache
def refused() -> str | None:
    """Why the kernel is not used in this process; None once it was compiled, loaded and found to agree with torch."""
    try:
        kernel.library()
    except Refused as reason:
        return str(reason)
    for kind in (None, *KINDS):
        for what, difference, bound in (
            ("number", _product(kind), 1e-5),
            ("logit", _step(kind), 1e-4 if kind is None else 0.03),
        ):
            if not difference < bound:
                of = f"the largest {what} ({kind or 'float32'})"
                return f"the compiled kernel differs from torch by {difference:.1e} of {of}"
    if not _alone():
        return "the compiled kernel gives a row other bits in company than alone"
    return None


def _alone() -> bool:
    """Whether a row of a float32 product has the same bits alone and among others, which the C compiler could undo."""
    weight, x = torch.linspace(-50, 50, 75 * 72).sin().view(75, 72), torch.linspace(-90, 90, 11 * 72).cos().view(11, 72)
    turned = weight.t().contiguous()
    described = (kernel.table(weight, 75), kernel.floats(turned, None))
    together = [kernel.multiply(by, x) for by in described]
    alone = [torch.cat([kernel.multiply(by, row) for row in x.split(1)]) for by in described]
    return all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@torch.inference_mode()
def _product(kind: Kind | None) -> float:
    """The largest relative difference between kernel and torch in a product of odd sizes; kind None: of floats."""
    weight = torch.linspace(-50, 50, 75 * 72).sin().view(75, 72)
    x = torch.linspace(-90, 90, 11 * 72).cos().view(11, 72)
    if kind is None:
        turned = weight.t().contiguous()
        found = torch.stack([kernel.multiply(by, x) for by in (kernel.table(weight, 75), kernel.floats(turned, None))])
        expected = (x.double() @ weight.t().double()).float()
        return float((found - expected).abs().max() / expected.abs().max())
    matrix = Codes.of(weight, kind)
    expected = matrix.multiply(x)
    matrix.pack()
    return float((matrix.multiply(x) - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def _step(kind: Kind | None) -> float:
    """The largest relative difference in a logit, on a small network; kind None: in float32, with an adapter.

    With codes not as small as that of a product: a number that lies between two may be rounded up here and down there.
    """
    shape = GPT2Config(vocab_size=75, n_positions=40, n_embd=72, n_layer=2, n_head=3, eos_token_id=74)
    network = Network.fresh(shape, seed=0)
    if kind is None:
        network.add_lora(rank=3, targets="c_attn,mlp.c_proj")
    for p in network.parameters():
        p.add_(torch.linspace(-0.3, 0.3, p.numel()).sin().view(p.shape) * 0.3)
    network.eval()
    if kind is not None:
        quantise(network, kind)
    tokens = [[(7 * i + j * j) % 75 for j in range(21)] for i in range(6)]
    expected = network(torch.tensor(tokens))[:, -2:]  # (6, 2, V)
    for matrix in matrices(network):
        matrix.pack()
    fused = Fused(network, 75, 6, 40, threads=1)  # one: threads that wait for each other take long on a busy machine
    first = torch.cat([fused.prompt(slot, given[:-1]) for slot, given in enumerate(tokens)])
    second = fused.forward([given[-1] for given in tokens], [20] * 6, range(6), range(6))
    return float((torch.stack([first, second], 1) - expected).abs().max() / expected.abs().max())
