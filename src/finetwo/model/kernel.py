"""The compiled kernel (native/step.c) as Python functions over tensors: its structures, its loading, its calls.

It knows the memory layout that the C code declares, and must not know how a matrix is quantised or what a network is
made of. Its one invariant: only contiguous CPU tensors of the wanted type are passed on, kept alive by the caller.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from finetwo.core.compiled import Refused, load

_FOLDER = Path(__file__).resolve().parent / "native"
_SOURCES = (_FOLDER / "step.c", _FOLDER / "codes.h", _FOLDER / "floats.h")
BITS = {"int8": 8, "int4": 4}
_FLOAT, _TABLE = 32, 33  # kinds of float32 weights: (inputs, outputs) and (outputs, inputs)
_BLOCK = 32


class CLinear(ctypes.Structure):
    """`Linear` of codes.h."""

    _fields_ = (
        ("outputs", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "bias", "down", "up")),
    )


class CLayer(ctypes.Structure):
    """`Layer` of step.c."""

    _fields_ = (
        *((name, CLinear) for name in ("attention", "projection", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("gain1", "shift1", "gain2", "shift2")),
        ("scale", ctypes.c_float),
        ("unused", ctypes.c_int32),
    )


class CNetwork(ctypes.Structure):
    """`Network` of step.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in "layers heads head_width width inner activation post_norm capacity slots rank".split()
        ),
        ("epsilon", ctypes.c_float),
        ("unused", ctypes.c_int32),
        ("layer", ctypes.POINTER(CLayer)),
        ("head", CLinear),
        *((name, ctypes.c_void_p) for name in ("places", "gain", "shift", "keys", "values")),
    )


@cache
def _library() -> ctypes.CDLL | Refused:
    try:
        library = load(_SOURCES)
    except Refused as refused:
        return refused
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.ft_kernel.restype = ctypes.c_char_p
    library.ft_zero.restype = number
    library.ft_work.restype = ctypes.c_int64
    library.ft_work.argtypes = [ctypes.POINTER(CNetwork), number, number]
    library.ft_linear.restype = library.ft_forward.restype = None
    library.ft_linear.argtypes = [ctypes.POINTER(CLinear), number, pointer, pointer, pointer, number]
    rows, wanted = (number, pointer, pointer, pointer), (number, pointer, pointer, pointer, number)
    library.ft_forward.argtypes = (ctypes.POINTER(CNetwork), *rows, *wanted)
    return library


def library() -> ctypes.CDLL:
    """Return the compiled library, compiled and loaded at the first call; Refused where that cannot be."""
    found = _library()
    if isinstance(found, Refused):
        raise found
    return found


def name() -> str:
    """Which instruction set the C code was compiled for: avx512-vnni, avx-vnni, avx2 or portable."""
    told: bytes = library().ft_kernel()
    return told.decode("ascii")


@cache
def zero() -> int:
    """The zero point of packed int8 codes: what the kernel's instructions want is unsigned, or signed."""
    point: int = library().ft_zero()
    return point


def memory(size: int) -> Tensor:
    """Return `size` zero bytes, in large pages where the system has them: reading weights is then a third faster."""
    block = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)[:size]


def linear(kind: str, shape: tuple[int, int], codes: Tensor, scales: Tensor, bias: Tensor | None) -> CLinear:
    """Describe a linear (outputs, inputs) with packed codes; the tensors must outlive the description."""
    for tensor, dtype in ((codes, torch.uint8), *((t, torch.float32) for t in (scales, bias) if t is not None)):
        if dtype == torch.float32 and kind == "int4" and tensor is scales:
            continue  # they lie among the codes
        assert tensor.is_cpu and tensor.is_contiguous() and tensor.dtype == dtype
    described = CLinear(shape[0], shape[1], BITS[kind], 0, codes.data_ptr())
    described.scales = scales.data_ptr() if kind == "int8" else None
    described.bias = bias.data_ptr() if bias is not None else None
    return described


def address(tensor: Tensor) -> int:
    """Where a float32 tensor lies that the kernel reads; the tensor must outlive what is told of it."""
    assert tensor.is_cpu and tensor.is_contiguous() and tensor.dtype == torch.float32
    return tensor.data_ptr()


def floats(weight: Tensor, bias: Tensor | None, adapter: tuple[Tensor, Tensor] | None = None) -> CLinear:
    """Describe a float32 linear (inputs, outputs); the tensors must outlive the description.

    `adapter`: matrices down (rank, inputs) and up (rank, outputs), whose product with the input is added.
    """
    described = CLinear(weight.shape[1], weight.shape[0], _FLOAT, 0, address(weight))
    described.bias = None if bias is None else address(bias)
    if adapter is not None:
        down, up = adapter
        assert down.shape == (up.shape[0], weight.shape[0]) and up.shape[1] == weight.shape[1]
        described.rank, described.down, described.up = down.shape[0], address(down), address(up)
    return described


def table(rows: Tensor, outputs: int) -> CLinear:
    """Describe the first `outputs` rows of a float32 table as a head, and all of it as an embedding."""
    return CLinear(outputs, rows.shape[1], _TABLE, 0, address(rows))


def multiply(by: CLinear, x: Tensor) -> Tensor:
    """Return `x` (M, inputs) float32 (rounded for codes) times the linear, (M, outputs)."""
    x = x.contiguous()
    assert x.is_cpu and x.dtype == torch.float32 and x.shape[1] == by.inputs
    y = torch.empty(x.shape[0], by.outputs)
    blocks = -(-x.shape[1] // _BLOCK)
    work = torch.empty(x.shape[0] * (blocks * (_BLOCK + 8) + 4 * by.rank) + 64, dtype=torch.uint8)
    if x.shape[0]:
        library().ft_linear(
            ctypes.byref(by), x.shape[0], x.data_ptr(), y.data_ptr(), work.data_ptr(), torch.get_num_threads()
        )
    return y
