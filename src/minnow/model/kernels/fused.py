"""The model's fused operations as autograd functions over the compiled library: bfloat16 or float32 tensors on
the CPU.

Same signatures and semantics as :mod:`minnow.model.kernels.reference`. Results do not depend on the thread count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minnow.model.kernels.build import floats, library, pairs, pointer, threads
from minnow.model.kernels.recurrences import DELTA_CHUNK


def _blocks(rows: int) -> int:
    """Parts that a sum over rows is cut into: a function of the rows alone, so that results are too."""
    return max(1, min(64, rows // 64))


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width, plain = x.shape[-1], _plain(weight)
        rows = x.numel() // width
        out, rstd = torch.empty_like(x), floats(rows)
        library(x.dtype).rms_norm_forward(
            threads(x.numel()), rows, width, x.data_ptr(), None, None, plain.data_ptr(), None, eps, out.data_ptr(),
            rstd.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(x, plain, rstd)
        ctx.weight_dtype = weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_weight = _rms_norm_backward(ctx.saved_tensors, d_out, None)
        return d_x, d_weight.to(ctx.weight_dtype), None


class _AddRMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        width, plain = x.shape[-1], _plain(weight)
        rows = x.numel() // width
        total, out, rstd = torch.empty_like(x), torch.empty_like(x), floats(rows)
        library(x.dtype).rms_norm_forward(
            threads(x.numel()), rows, width, x.data_ptr(), residual.data_ptr(), total.data_ptr(), plain.data_ptr(),
            None, eps, out.data_ptr(), rstd.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(total, plain, rstd)
        ctx.weight_dtype = weight.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_out: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_out is None:
            return d_total, d_total, None, None
        d_x, d_weight = _rms_norm_backward(ctx.saved_tensors, d_out, d_total)
        return d_x, d_x, d_weight.to(ctx.weight_dtype), None


def _rms_norm_backward(
    saved: tuple[Tensor, Tensor, Tensor], d_out: Tensor, d_sum: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, plain, rstd = saved
    width = x.shape[-1]
    rows = x.numel() // width
    blocks = _blocks(rows)
    d_out = d_out.contiguous()
    d_sum = None if d_sum is None else d_sum.contiguous()
    d_x, d_weight, partial = torch.empty_like(x), floats(width), floats(blocks, width)
    library(x.dtype).rms_norm_backward(
        threads(x.numel()), rows, width, blocks, x.data_ptr(), plain.data_ptr(), rstd.data_ptr(), d_out.data_ptr(),
        pointer(d_sum), d_x.data_ptr(), d_weight.data_ptr(), partial.data_ptr(),
    )  # fmt: skip
    return d_x, d_weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _RMSNorm.apply(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _AddRMSNorm.apply(x, residual, weight, eps)


class _Gated(Function):
    """SwiGLU or GeGLU, by the ``name`` of its functions in the library."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, name: str) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty((*gate_up.shape[:-1], width))
        rows = out.numel() // width
        forward = getattr(library(out.dtype), f"{name}_forward")
        forward(threads(out.numel()), rows, width, gate_up.data_ptr(), out.data_ptr())
        ctx.save_for_backward(gate_up)
        ctx.name = name
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        d_out, d_gate_up = d_out.contiguous(), torch.empty_like(gate_up)
        width = d_out.shape[-1]
        backward = getattr(library(d_out.dtype), f"{ctx.name}_backward")
        backward(
            threads(d_out.numel()), d_out.numel() // width, width, gate_up.data_ptr(), d_out.data_ptr(),
            d_gate_up.data_ptr(),
        )  # fmt: skip
        return d_gate_up, None


def swiglu(gate_up: Tensor) -> Tensor:
    return _Gated.apply(gate_up, "swiglu")


def geglu(gate_up: Tensor) -> Tensor:
    return _Gated.apply(gate_up, "geglu")


def _starts(documents: Tensor | None) -> Tensor | None:
    """As :func:`reference.document_starts`."""
    if documents is None:
        return None
    ids = documents.to(torch.int32).contiguous()
    starts = torch.empty_like(ids)
    library().document_starts(*ids.shape, ids.data_ptr(), starts.data_ptr())
    return starts


class _Convolution(Function):
    """``short_conv`` of ``x [B, T, 3D]``, or ``conv_silu`` of ``x [B, T, D]``, which may be a slice."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
        (batch, length), (width, taps) = x.shape[:2], weight.shape
        gated = name == "short_conv"  # whose kernel takes no stride
        x, step = _rows((x.contiguous() if gated else x)[:, :, None])
        strides = [] if gated else [step]
        # The library wants one row per tap, the current token's first.
        plain = weight.detach().float().flip(1).t().contiguous()
        out = x.new_empty((batch, length, width))
        workers, scratch = _convolution_scratch(name, out)
        getattr(library(x.dtype), f"{name}_forward")(
            workers, batch, length, width, taps, *strides, x.data_ptr(), plain.data_ptr(), pointer(starts),
            out.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(x, plain, starts)
        ctx.name, ctx.strides, ctx.weight_dtype = name, strides, weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, plain, starts = ctx.saved_tensors
        (batch, length), (taps, width) = x.shape[:2], plain.shape
        d_out = d_out.contiguous()
        d_x, d_weight = x.new_empty(batch, length, x.shape[3]), torch.empty_like(plain)
        workers, scratch = _convolution_scratch(ctx.name, d_out)
        partial = floats(library(x.dtype).short_conv_blocks(batch, length), taps, width)
        getattr(library(x.dtype), f"{ctx.name}_backward")(
            workers, batch, length, width, taps, *ctx.strides, x.data_ptr(), plain.data_ptr(), pointer(starts),
            d_out.data_ptr(), d_x.data_ptr(), d_weight.data_ptr(), partial.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        return None, d_x, d_weight.t().flip(1).to(ctx.weight_dtype), None


def _convolution_scratch(name: str, out: Tensor) -> tuple[int, Tensor]:
    workers = threads(out.numel())
    return workers, floats(workers * getattr(library(out.dtype), f"{name}_scratch")(out.shape[-1]))


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    return _Convolution.apply("short_conv", bcx, weight, _starts(documents))


def causal_conv_silu(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    return _Convolution.apply("conv_silu", x, weight, _starts(documents))


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """``x [B, T, heads, dim]`` and the elements between its positions; a slice of a wider projection is not copied."""
    batch, length, _, dim = x.shape
    step = x.stride(0) if length == 1 else x.stride(1)
    evenly = length == 1 or batch == 1 or x.stride(0) == length * step
    if x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == dim) and evenly:
        return x, step
    return x.contiguous(), x.shape[2] * dim


class _Rope(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = _plain(cos), _plain(sin)
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(d_out, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, step = _rows(x)
    (heads, dim), turn = x.shape[2:], cos.shape[-1]
    out = x.new_empty(x.shape)
    library(x.dtype).rope(
        threads(x.numel()), x.shape[0] * x.shape[1], cos.numel() // turn, heads, dim, turn, step, x.data_ptr(),
        cos.data_ptr(), sin.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _Rope.apply(q, cos, sin), _Rope.apply(k, cos, sin)


class _GatedDelta(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (q, q_step), (k, k_step), (v, v_step) = _rows(q), _rows(k), _rows(v)
        (batch, length, heads, width), key_width = v.shape, k.shape[3]
        decay, amount = _plain(log_decay), _plain(strength)
        ctx.layout = (batch, length, heads, heads // k.shape[2], key_width, width)
        ctx.steps, ctx.strength_dtype = (q_step, k_step, v_step), strength.dtype
        out, memory = v.new_empty(v.shape), floats(batch, heads, key_width, width)
        kept = any(ctx.needs_input_grad)
        memories = floats(batch, heads, -(-length // DELTA_CHUNK) if kept else 0, key_width, width)
        workers, scratch = _delta_scratch(v, key_width)
        library(v.dtype).delta_forward(
            workers, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, decay.data_ptr(),
            amount.data_ptr(), pointer(starts), out.data_ptr(), memory.data_ptr(),
            pointer(memories if kept else None), scratch.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, decay, amount, starts, memories)
        ctx.mark_non_differentiable(memory)
        return out, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, amount, starts, memories = ctx.saved_tensors
        q_step, k_step, v_step = ctx.steps
        d_out = d_out.contiguous()
        wide = (*v.shape[:3], k.shape[3])
        d_q, d_k, d_v = q.new_empty(wide), k.new_empty(wide), v.new_empty(v.shape)
        d_decay, d_amount = torch.empty_like(decay), torch.empty_like(amount)
        workers, scratch = _delta_scratch(v, k.shape[3])
        library(v.dtype).delta_backward(
            workers, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, decay.data_ptr(),
            amount.data_ptr(), pointer(starts), memories.data_ptr(), d_out.data_ptr(), d_q.data_ptr(),
            d_k.data_ptr(), d_v.data_ptr(), d_decay.data_ptr(), d_amount.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        if d_q.shape != q.shape:  # value heads that share a key head
            d_q, d_k = (x.unflatten(2, (q.shape[2], -1)).float().sum(3).to(x.dtype) for x in (d_q, d_k))
        return d_q, d_k, d_v, d_decay, d_amount.to(ctx.strength_dtype), None


def _delta_scratch(v: Tensor, key_width: int) -> tuple[int, Tensor]:
    workers = threads(v.numel())
    return workers, floats(workers * library(v.dtype).delta_scratch(key_width, v.shape[3]))


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _GatedDelta.apply(q, k, v, log_decay, strength, _starts(documents))


class _NormRope(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        x, step = _rows(x)
        heads, dim = x.shape[2:]
        plain, cos, sin = _plain(weight), _plain(cos), _plain(sin)
        out = x.new_empty(x.shape)
        library(x.dtype).norm_rope_forward(
            threads(x.numel()), x.shape[0] * x.shape[1], cos.numel() // dim, heads, dim, step, x.data_ptr(),
            plain.data_ptr(), cos.data_ptr(), sin.data_ptr(), eps, out.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(x, plain, cos, sin)
        ctx.step, ctx.eps, ctx.weight_dtype = step, eps, weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, plain, cos, sin = ctx.saved_tensors
        heads, dim = x.shape[2:]
        rows = x.shape[0] * x.shape[1]
        blocks = _blocks(rows)
        d_out = d_out.contiguous()
        d_x, d_weight, partial = x.new_empty(x.shape), floats(dim), floats(blocks, dim)
        library(x.dtype).norm_rope_backward(
            threads(x.numel()), rows, cos.numel() // dim, heads, dim, ctx.step, blocks, x.data_ptr(),
            plain.data_ptr(), cos.data_ptr(), sin.data_ptr(), ctx.eps, d_out.data_ptr(), d_x.data_ptr(),
            d_weight.data_ptr(), partial.data_ptr(),
        )  # fmt: skip
        return d_x, d_weight.to(ctx.weight_dtype), None, None, None


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    if cos.shape[-1] < q.shape[-1]:
        return rope(rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps), cos, sin)
    return _NormRope.apply(q, q_weight, cos, sin, eps), _NormRope.apply(k, k_weight, cos, sin, eps)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int, scale: float) -> Tensor:
        (q, q_step), (k, k_step), (v, v_step) = _rows(q), _rows(k), _rows(v)
        batch, length, heads, dim = q.shape
        ctx.layout = (batch, length, heads, k.shape[2], dim, window, scale)
        ctx.steps = (q_step, k_step, v_step)
        out, log_sum = q.new_empty(q.shape), floats(batch, heads, length)
        workers, scratch = _attention_scratch(q)
        _attention_kernel("forward", q.dtype)(
            workers, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, pointer(starts),
            out.data_ptr(), log_sum.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, starts, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, out, log_sum = ctx.saved_tensors
        q_step, k_step, v_step = ctx.steps
        d_out = d_out.contiguous()
        d_q, d_k, d_v = (x.new_empty(x.shape) for x in (q, k, v))
        workers, scratch = _attention_scratch(q)
        _attention_kernel("backward", q.dtype)(
            workers, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, pointer(starts),
            out.data_ptr(), log_sum.data_ptr(), d_out.data_ptr(), d_q.data_ptr(), d_k.data_ptr(), d_v.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        return d_q, d_k, d_v, None, None, None


def _attention_kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Of the two forms in ``attention.c``, that of products in float and that of pairs of bfloat16."""
    paired = dtype == torch.bfloat16 and pairs()
    return getattr(library(dtype), f"attention_pairs_{name}" if paired else f"attention_{name}")


def _attention_scratch(q: Tensor) -> tuple[int, Tensor]:
    workers = threads(q.numel())
    return workers, floats(workers * _attention_kernel("scratch", q.dtype)(q.shape[1], q.shape[3]))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    return _Attention.apply(q, k, v, _starts(documents), window or 0, q.shape[-1] ** -0.5 if scale is None else scale)
