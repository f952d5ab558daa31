"""Products of many rows with a weight, and their gradients, over the compiled library: bfloat16 tensors on the CPU.

Where the processor multiplies pairs of bfloat16 and not whole tiles (AMX): those are torch's, four times as fast. In
float32 only products with weights that stay packed are here.
Operands are packed for each product: that reads and writes them once, a hundredth of the product's time from some
hundred rows on. Results do not depend on the thread count.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minnow.model.kernels.build import library, pairs, pointer, processor

BLOCK = 64
"""As in ``products.c``."""

_FEWEST_ROWS = 64
"""Below these, packing costs more than it brings."""

_SMALL_PRODUCT = 1 << 21
"""Multiplications below which a second thread costs more than it brings."""


@functools.cache
def tiles() -> bool:
    """Whether torch multiplies tiles of bfloat16 on this processor (AMX)."""
    return b"amx_bf16" in processor()


def can_pack(weight: Tensor) -> bool:
    """Whether :func:`pack` takes ``weight``, of a type that the library is there for."""
    if weight.dtype == torch.float32:
        return bool(library(weight.dtype).can_pack())
    return pairs() and weight.shape[1] % 2 == 0


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`linear` takes these and brings something."""
    outputs, inputs = weight.shape
    paired = weight.dtype == torch.bfloat16 and outputs % 2 == 0 and can_pack(weight)
    return paired and x.numel() >= _FEWEST_ROWS * inputs and not tiles()


def workers(multiplications: int) -> int:
    return 1 if multiplications < _SMALL_PRODUCT else torch.get_num_threads()


def _blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK


def pack(weight: Tensor) -> Tensor:
    """``weight [N, K]`` for products with rows of K; K is even in bfloat16."""
    weight = weight.detach().contiguous()
    outputs, inputs = weight.shape
    packed = weight.new_empty(_blocks(outputs) * inputs)
    library(weight.dtype).pack(workers(64 * weight.numel()), outputs, inputs, weight.data_ptr(), packed.data_ptr())
    return packed


def pack_down(x: Tensor) -> Tensor:
    """``x [N, K]`` for :func:`multiply` with rows of N, which is even, or for :func:`outer`."""
    x = x.detach().contiguous()
    rows, columns = x.shape
    packed = x.new_empty(_blocks(columns) * (rows + rows % 2))
    library().pack_down(workers(64 * x.numel()), rows, columns, x.data_ptr(), packed.data_ptr())
    return packed


def multiply(x: Tensor, packed: Tensor, outputs: int, out: Tensor | None = None) -> Tensor:
    """``x [M, K]`` times a packed matrix to ``[M, outputs]``, in bfloat16 unless ``out`` is in float32."""
    rows, inputs = x.shape
    out = x.new_empty(rows, outputs) if out is None else out
    narrow, wide = (None, out.data_ptr()) if out.dtype == torch.float32 else (out.data_ptr(), None)
    some = workers(rows * outputs * inputs)
    library().linear_packed(some, rows, outputs, inputs, x.data_ptr(), packed.data_ptr(), narrow, wide)
    return out


def outer(g: Tensor, x: Tensor, total: Tensor | None = None) -> Tensor:
    """``g.T @ x`` of ``g [M, N]`` and ``x [M, K]``; added to ``total [N, K]`` in float32 where that is given."""
    (count, outputs), inputs = g.shape, x.shape[1]
    out = g.new_empty(outputs, inputs) if total is None else total
    narrow = None if total is not None else out.data_ptr()
    g, x = pack_down(g), pack_down(x)
    library().outer_packed(
        workers(count * outputs * inputs), count, outputs, inputs, g.data_ptr(), x.data_ptr(), narrow, pointer(total)
    )
    return out


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return multiply(x.flatten(0, -2), pack(weight), len(weight)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        g = d_out.contiguous().flatten(0, -2)
        d_x = multiply(g, pack_down(weight), x.shape[-1]).view_as(x) if wants_x else None
        return d_x, outer(g, x.flatten(0, -2)) if wants_weight else None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x [..., K]`` times ``weight [N, K]``; K and N are even."""
    return _Linear.apply(x, weight)
