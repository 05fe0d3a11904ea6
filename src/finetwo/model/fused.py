"""A quantised network as one call of the compiled kernel: tokens, places and slots in, logits out, the cache kept.

It knows the network's parts and the cache's layout, and must not know sampling or when a sequence ends. Its one
invariant: a row's logits depend on its slot's tokens alone, bit for bit, however rows are put together in calls.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from finetwo.core.compiled import Refused
from finetwo.model import kernel
from finetwo.model.cached import round_up
from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.model.quantised import KINDS, Codes, Kind, QuantisedEmbedding, QuantisedLinear, quantise

_LANES = 16  # places that keys are stored by, and numbers that a head is padded to
_ROWS = 64
"""A prompt is computed so many tokens at a time."""
_log, _said = logging.getLogger("finetwo"), set[str]()
_ACTIVATIONS = {"relu": 0, "gelu": 1}


class Fused:
    """The kernel's view of a packed network, with a cache of `slots` sequences of at most `capacity` tokens."""

    def __init__(self, network: Network, vocab: int, slots: int, capacity: int) -> None:
        """`vocab`: ids from here on get no logits."""
        config, trunk = network.config, network.transformer
        self._network, self.vocab = network, vocab  # the kernel reads the network's own tensors: they must stay
        self.capacity = round_up(capacity, _LANES)
        size = self.capacity * round_up(config.n_embd // config.n_head, _LANES)
        shape = (2, config.n_layer, slots, config.n_head, size)
        self._keys, self._values = kernel.memory(4 * math.prod(shape)).view(torch.float32).view(shape)
        self._layers = (kernel.CLayer * config.n_layer)(*(_layer(block) for block in trunk.h))
        embedding = trunk.wte
        assert isinstance(embedding, QuantisedEmbedding) and embedding.matrix.packed
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
            epsilon=config.layer_norm_epsilon,
            layer=self._layers,
            head=embedding.matrix.described(None, vocab),
            places=_floats(trunk.wpe.weight),
            gain=_floats(trunk.ln_f.weight),
            shift=_floats(trunk.ln_f.bias),
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
        count, threads = len(tokens), torch.get_num_threads()
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


def _floats(tensor: Tensor) -> int:
    """The address of a float32 tensor that the kernel reads."""
    assert tensor.is_cpu and tensor.is_contiguous() and tensor.dtype == torch.float32
    return tensor.data_ptr()


def _layer(block: object) -> kernel.CLayer:
    attention, mlp = block.attn, block.mlp  # type: ignore[attr-defined]
    linears = {"attention": attention.c_attn, "projection": attention.c_proj, "up": mlp.c_fc, "down": mlp.c_proj}
    norms = (block.ln_1, block.ln_2)  # type: ignore[attr-defined]
    return kernel.CLayer(
        **{name: linear.matrix.described(linear.bias) for name, linear in linears.items()},
        **{f"gain{i}": _floats(norm.weight) for i, norm in enumerate(norms, 1)},
        **{f"shift{i}": _floats(norm.bias) for i, norm in enumerate(norms, 1)},
        scale=attention.scale,
    )


def matrices(network: Network) -> list[Codes]:
    """Every matrix of a quantised network that is stored as codes."""
    return [m for m in network.modules() if isinstance(m, Codes)]


def usable(network: Network) -> bool:
    """Whether a network can be run by the kernel: quantised, packed, on the CPU, and nothing added to its linears."""
    if network.quantised is None or network.score is not None:
        return False
    plain = all(m.adapter is None for m in network.modules() if isinstance(m, QuantisedLinear))
    return plain and all(m.packed and m.codes.is_cpu for m in matrices(network))


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
    for kind in KINDS:
        for what, difference, bound in (("number", _product(kind), 1e-5), ("logit", _step(kind), 0.03)):
            if not difference < bound:
                return f"the compiled kernel differs from torch by {difference:.1e} of the largest {what} ({kind})"
    return None


@torch.inference_mode()
def _product(kind: Kind) -> float:
    """The largest relative difference between kernel and torch in a product of odd sizes."""
    matrix = Codes.of(torch.linspace(-50, 50, 75 * 72).sin().view(75, 72), kind)
    x = torch.linspace(-90, 90, 11 * 72).cos().view(11, 72)
    expected = matrix.multiply(x)
    matrix.pack()
    return float((matrix.multiply(x) - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def _step(kind: Kind) -> float:
    """The largest relative difference in a logit, on a small network.

    Not as small as that of a product: a number that lies between two codes may be rounded up here and down there.
    """
    shape = GPT2Config(vocab_size=75, n_positions=40, n_embd=72, n_layer=2, n_head=3, eos_token_id=74)
    network = Network.fresh(shape, seed=0)
    for p in network.parameters():
        p.add_(torch.linspace(-0.3, 0.3, p.numel()).sin().view(p.shape) * 0.3)
    quantise(network.eval(), kind)
    tokens = [[(7 * i + j * j) % 75 for j in range(21)] for i in range(6)]
    expected = network(torch.tensor(tokens))[:, -2:]  # (6, 2, V)
    for matrix in matrices(network):
        matrix.pack()
    fused = Fused(network, 75, 6, 40)
    first = torch.cat([fused.prompt(slot, given[:-1]) for slot, given in enumerate(tokens)])
    second = fused.forward([given[-1] for given in tokens], [20] * 6, range(6), range(6))
    return float((torch.stack([first, second], 1) - expected).abs().max() / expected.abs().max())
