"""The operations of decoding over the compiled library: bfloat16 or float32 tensors on the CPU, no gradients.

Same signatures and semantics as :mod:`minnow.model.kernels.reference`. Results do not depend on the thread count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minnow.model.kernels.build import floats, library, pointer, threads

HEAD_DIMS = (32, 64, 128)
"""Of attention that :func:`attention_step` computes, which has them unrolled."""

_SMALL_PRODUCT = 1 << 18
"""Weights, times rows over eight, below which a second thread costs more than it brings."""


def linear(x: Tensor, packed: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    x = x.contiguous()
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    out = torch.empty((*x.shape[:-1], outputs), dtype=dtype)
    some = 1 if outputs * inputs * max(1, rows // 8) < _SMALL_PRODUCT else torch.get_num_threads()
    narrow, wide = (None, out.data_ptr()) if dtype == torch.float32 else (out.data_ptr(), None)
    library(x.dtype).linear_packed(some, rows, outputs, inputs, x.data_ptr(), packed.data_ptr(), narrow, wide)
    return out


def _normed(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    width = x.shape[-1]
    total, out = x if residual is None else torch.empty_like(x), torch.empty_like(x)
    wide, narrow = _either(weight)
    library(x.dtype).rms_norm_forward(
        threads(x.numel()), x.numel() // width, width, x.data_ptr(), pointer(residual),
        None if residual is None else total.data_ptr(), pointer(wide), pointer(narrow), eps, out.data_ptr(), None,
    )  # fmt: skip
    return total, out


def _either(weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A norm's weight for an argument in float32 and one in bfloat16."""
    if weight is None:
        return None, None
    weight = weight.contiguous()
    return (None, weight) if weight.dtype == torch.bfloat16 else (weight.float(), None)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _normed(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _normed(x, residual, weight, eps)


def _gated(gate_up: Tensor, name: str) -> Tensor:
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    run = getattr(library(out.dtype), name)
    run(threads(out.numel()), out.numel() // width, width, gate_up.data_ptr(), out.data_ptr())
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, "swiglu_forward")


def geglu(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, "geglu_forward")


def short_conv_step(bcx: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    bcx = bcx.contiguous()
    width, taps = weight.shape
    out = bcx.new_empty(len(bcx), width)
    library(bcx.dtype).short_conv_step(
        threads(out.numel()), len(bcx), width, taps, bcx.data_ptr(), weight.data_ptr(), inputs.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out


def attention_step(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rotary: tuple[Tensor, Tensor],
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    scale: float | None,
) -> Tensor:
    batch, groups, capacity, dim = keys.shape
    cos, sin = rotary
    (q_wide, q_narrow), (k_wide, k_narrow) = map(_either, norms or (None, None))
    out = qkv.new_empty(batch, heads, dim)
    some = threads(batch * heads * capacity * dim)
    scratch = floats(some, library(qkv.dtype).attention_step_scratch(dim, capacity))
    library(qkv.dtype).attention_step(
        some, batch, heads, groups, dim, cos.shape[-1], capacity, qkv.stride(0), qkv.data_ptr(), pointer(q_wide),
        pointer(k_wide), pointer(q_narrow), pointer(k_narrow), eps, cos.data_ptr(), sin.data_ptr(), lengths.data_ptr(),
        dim**-0.5 if scale is None else scale, keys.data_ptr(), values.data_ptr(), out.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    return out


def highest(logits: Tensor, among: int) -> tuple[Tensor, Tensor]:
    rows, width = logits.shape
    place, total = torch.empty(rows, dtype=torch.long), floats(rows)
    library().highest(
        threads(logits.numel()), rows, width, among, logits.data_ptr(), place.data_ptr(), total.data_ptr()
    )
    return place, total
