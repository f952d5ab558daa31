"""The fused operations as autograd functions over the compiled library: bfloat16 tensors on the CPU.

Same signatures and semantics as :mod:`minnow.model.kernels.reference`. Results do not depend on the thread count.
"""

from __future__ import annotations

import math
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minnow.model.kernels import build
from minnow.model.kernels.reference import CHUNK_LOGITS, IGNORED

SMALL = 1 << 15
"""Elements below which a second thread costs more than it brings."""

SQUARES_BLOCK = 16384
"""As in ``kernels.c``."""


def _library() -> CDLL:
    library = build.load().library
    assert library is not None, "fused kernels are dispatched to only where they are loaded"
    return library


def _threads(elements: int) -> int:
    return 1 if elements < SMALL else torch.get_num_threads()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


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
        out, rstd = torch.empty_like(x), _floats(rows)
        _library().rms_norm_forward(
            _threads(x.numel()), rows, width, x.data_ptr(), None, None, plain.data_ptr(), eps, out.data_ptr(),
            rstd.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(x, plain, rstd)
        ctx.weight_dtype = weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_weight = _rms_norm_backward(*ctx.saved_tensors, d_out, None)
        return d_x, d_weight.to(ctx.weight_dtype), None


class _AddRMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        width, plain = x.shape[-1], _plain(weight)
        rows = x.numel() // width
        total, out, rstd = torch.empty_like(x), torch.empty_like(x), _floats(rows)
        _library().rms_norm_forward(
            _threads(x.numel()), rows, width, x.data_ptr(), residual.data_ptr(), total.data_ptr(), plain.data_ptr(),
            eps, out.data_ptr(), rstd.data_ptr(),
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
        d_x, d_weight = _rms_norm_backward(*ctx.saved_tensors, d_out, d_total)
        return d_x, d_x, d_weight.to(ctx.weight_dtype), None


def _rms_norm_backward(
    x: Tensor, plain: Tensor, rstd: Tensor, d_out: Tensor, d_sum: Tensor | None
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    rows = x.numel() // width
    blocks = _blocks(rows)
    d_out = d_out.contiguous()
    d_sum = None if d_sum is None else d_sum.contiguous()
    d_x, d_weight, partial = torch.empty_like(x), _floats(width), _floats(blocks, width)
    _library().rms_norm_backward(
        _threads(x.numel()), rows, width, blocks, x.data_ptr(), plain.data_ptr(), rstd.data_ptr(), d_out.data_ptr(),
        _pointer(d_sum), d_x.data_ptr(), d_weight.data_ptr(), partial.data_ptr(),
    )  # fmt: skip
    return d_x, d_weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _RMSNorm.apply(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _AddRMSNorm.apply(x, residual, weight, eps)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty((*gate_up.shape[:-1], width))
        rows = out.numel() // width
        _library().swiglu_forward(_threads(out.numel()), rows, width, gate_up.data_ptr(), out.data_ptr())
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        d_out, d_gate_up = d_out.contiguous(), torch.empty_like(gate_up)
        width = d_out.shape[-1]
        _library().swiglu_backward(
            _threads(d_out.numel()), d_out.numel() // width, width, gate_up.data_ptr(), d_out.data_ptr(),
            d_gate_up.data_ptr(),
        )  # fmt: skip
        return d_gate_up


def swiglu(gate_up: Tensor) -> Tensor:
    return _SwiGLU.apply(gate_up)


def document_starts(documents: Tensor) -> Tensor:
    ids = documents.to(torch.int32).contiguous()
    starts = torch.empty_like(ids)
    _library().document_starts(*ids.shape, ids.data_ptr(), starts.data_ptr())
    return starts


class _ShortConv(Function):
    @staticmethod
    def forward(ctx: Any, bcx: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
        bcx = bcx.contiguous()
        batch, length, width, taps = *bcx.shape[:2], *weight.shape
        # The library wants one row per tap, the current token's first.
        plain = weight.detach().float().flip(1).t().contiguous()
        out = bcx.new_empty((batch, length, width))
        threads = _threads(out.numel())
        scratch = _floats(threads * _library().short_conv_scratch(width))
        _library().short_conv_forward(
            threads, batch, length, width, taps, bcx.data_ptr(), plain.data_ptr(), _pointer(starts), out.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(bcx, plain, starts)
        ctx.weight_dtype = weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        bcx, plain, starts = ctx.saved_tensors
        batch, length, taps, width = *bcx.shape[:2], *plain.shape
        d_out = d_out.contiguous()
        d_bcx, d_weight = torch.empty_like(bcx), torch.empty_like(plain)
        threads = _threads(d_out.numel())
        partial = _floats(_library().short_conv_blocks(batch, length), taps, width)
        scratch = _floats(threads * _library().short_conv_scratch(width))
        _library().short_conv_backward(
            threads, batch, length, width, taps, bcx.data_ptr(), plain.data_ptr(), _pointer(starts), d_out.data_ptr(),
            d_bcx.data_ptr(), d_weight.data_ptr(), partial.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        return d_bcx, d_weight.t().flip(1).to(ctx.weight_dtype), None


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    return _ShortConv.apply(bcx, weight, None if documents is None else document_starts(documents))


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """``x [B, T, heads, dim]`` and the elements between its positions; a slice of a wider projection is not copied."""
    batch, length, _, dim = x.shape
    step = x.stride(0) if length == 1 else x.stride(1)
    evenly = length == 1 or batch == 1 or x.stride(0) == length * step
    if x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == dim) and evenly:
        return x, step
    return x.contiguous(), x.shape[2] * dim


class _NormRope(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        x, step = _rows(x)
        heads, dim = x.shape[2:]
        plain, cos, sin = _plain(weight), _plain(cos), _plain(sin)
        out = x.new_empty(x.shape)
        _library().norm_rope_forward(
            _threads(x.numel()), x.shape[0] * x.shape[1], cos.numel() // dim, heads, dim, step, x.data_ptr(),
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
        d_x, d_weight, partial = x.new_empty(x.shape), _floats(dim), _floats(blocks, dim)
        _library().norm_rope_backward(
            _threads(x.numel()), rows, cos.numel() // dim, heads, dim, ctx.step, blocks, x.data_ptr(),
            plain.data_ptr(), cos.data_ptr(), sin.data_ptr(), ctx.eps, d_out.data_ptr(), d_x.data_ptr(),
            d_weight.data_ptr(), partial.data_ptr(),
        )  # fmt: skip
        return d_x, d_weight.to(ctx.weight_dtype), None, None, None


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _NormRope.apply(q, q_weight, cos, sin, eps), _NormRope.apply(k, k_weight, cos, sin, eps)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        (q, q_step), (k, k_step), (v, v_step) = _rows(q), _rows(k), _rows(v)
        batch, length, heads, dim = q.shape
        ctx.layout = (batch, length, heads, k.shape[2], dim)
        ctx.steps = (q_step, k_step, v_step)
        out, log_sum = q.new_empty(q.shape), _floats(batch, heads, length)
        threads, scratch = _attention_scratch(q)
        _library().attention_forward(
            threads, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, _pointer(starts),
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
        threads, scratch = _attention_scratch(q)
        _library().attention_backward(
            threads, *ctx.layout, q.data_ptr(), q_step, k.data_ptr(), k_step, v.data_ptr(), v_step, _pointer(starts),
            out.data_ptr(), log_sum.data_ptr(), d_out.data_ptr(), d_q.data_ptr(), d_k.data_ptr(), d_v.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        return d_q, d_k, d_v, None


def _attention_scratch(q: Tensor) -> tuple[int, Tensor]:
    threads = _threads(q.numel())
    return threads, _floats(threads * _library().attention_scratch(q.shape[1], q.shape[3]))


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    return _Attention.apply(q, k, v, None if documents is None else document_starts(documents))


def _cross_entropy(logits: Tensor, ids: Tensor, d_loss: Tensor | None, loss: Tensor) -> None:
    """Fill ``loss``; with ``d_loss [n]``, overwrite ``logits [n, V]`` by their gradient."""
    rows, vocabulary = logits.shape
    threads = _threads(logits.numel())
    scratch = _floats(threads * vocabulary)
    _library().cross_entropy(
        threads, rows, vocabulary, logits.data_ptr(), ids.data_ptr(), _pointer(d_loss), loss.data_ptr(),
        scratch.data_ptr(),
    )  # fmt: skip


def _wanted(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Positions that are trained on (None for all), their hidden states and targets."""
    positions = (targets != IGNORED).nonzero()[:, 0]
    everything = len(positions) == len(targets)
    ids = (targets if everything else targets[positions]).long().contiguous()
    if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < len(head)):
        raise IndexError(f"targets reach from {int(ids.min())} to {int(ids.max())}, the vocabulary has {len(head)}")
    return (None, hidden.contiguous(), ids) if everything else (positions, hidden[positions], ids)


def _head_gradients(
    rows: Tensor, head: Tensor, ids: Tensor, d_loss: Tensor, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``sum(d_loss * loss)`` for ``rows`` and ``head``; fills ``loss``. Logits live a chunk at a time."""
    chunk = max(1, CHUNK_LOGITS // len(head))
    d_rows, d_head = torch.empty_like(rows), torch.zeros(head.shape, dtype=torch.float32)
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        logits = rows[part] @ head.t()
        _cross_entropy(logits, ids[part], d_loss[part], loss[part])
        torch.mm(logits, head, out=d_rows[part])
        product = logits.t() @ rows[part]
        _library().accumulate(_threads(product.numel()), product.numel(), product.data_ptr(), d_head.data_ptr())
    return d_rows, d_head.to(head.dtype)


def _losses(rows: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    chunk = max(1, CHUNK_LOGITS // len(head))
    loss = _floats(len(rows))
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        _cross_entropy(rows[part] @ head.t(), ids[part], None, loss[part])
    return loss


def _spread(values: Tensor, positions: Tensor | None, count: int) -> Tensor:
    """Rows back at their positions among ``count``, zeros elsewhere."""
    if positions is None:
        return values
    return values.new_zeros((count, *values.shape[1:])).index_copy_(0, positions, values)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        head = head.contiguous()
        positions, rows, ids = _wanted(hidden, head, targets)
        if any(ctx.needs_input_grad):
            loss = _floats(len(rows))
            d_rows, d_head = _head_gradients(rows, head, ids, torch.ones(len(rows)), loss)
            ctx.save_for_backward(_spread(d_rows, positions, len(targets)), d_head)
        else:
            loss = _losses(rows, head, ids)
        return loss.sum(dtype=torch.float64).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * d_loss, d_head * d_loss, None


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return _LinearCrossEntropy.apply(hidden, head, targets)


class _TokenLogProbs(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        head = head.contiguous()
        positions, rows, ids = _wanted(hidden, head, targets)
        ctx.save_for_backward(positions, rows, head, ids)
        return _spread(-_losses(rows, head, ids), positions, len(targets))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor) -> tuple[Tensor | None, ...]:
        positions, rows, head, ids = ctx.saved_tensors
        d_loss = -(d_log_probs if positions is None else d_log_probs[positions]).contiguous()
        d_rows, d_head = _head_gradients(rows, head, ids, d_loss, _floats(len(rows)))
        return _spread(d_rows, positions, len(d_log_probs)), d_head, None


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return _TokenLogProbs.apply(hidden, head, targets)


def _either(tensor: Tensor) -> tuple[int | None, int | None]:
    """Pointers for the library's pairs of arguments: (bfloat16, None) or (None, float32)."""
    return (tensor.data_ptr(), None) if tensor.dtype == torch.bfloat16 else (None, tensor.data_ptr())


def sum_squares(grad: Tensor) -> float:
    """Of a bfloat16 or float32 tensor on the CPU."""
    grad = grad.detach().contiguous()
    partial = torch.empty(math.ceil(grad.numel() / SQUARES_BLOCK), dtype=torch.float64)
    return _library().sum_squares(_threads(grad.numel()), grad.numel(), *_either(grad), partial.data_ptr())


def adamw(
    master: Tensor, shadow: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, step: int, clip_scale: float,
) -> None:  # fmt: skip
    """Update one tensor; ``shadow`` is bfloat16, or ``master`` itself where there is no copy."""
    grad = grad.detach().contiguous()
    first_beta, second_beta = betas
    _library().adamw(
        _threads(master.numel()), master.numel(), master.data_ptr(), None if shadow is master else shadow.data_ptr(),
        *_either(grad), mean.data_ptr(), square.data_ptr(), first_beta, second_beta, lr / (1 - first_beta**step),
        (1 - second_beta**step) ** -0.5, eps, 1 - lr * weight_decay, clip_scale,
    )  # fmt: skip
