"""Losses over the vocabulary and the optimiser's passes over the compiled library.

Same signatures and semantics as :mod:`minnow.model.kernels.reference`. The library's part of a result does not depend
on the thread count.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from minnow.model.kernels import products
from minnow.model.kernels.build import floats, library, pointer, threads
from minnow.model.kernels.reference import CHUNK_LOGITS, IGNORED

SQUARES_BLOCK = 16384
"""As in ``kernels.c``."""


def _cross_entropy(logits: Tensor, ids: Tensor, d_loss: Tensor | None, loss: Tensor) -> None:
    """Fill ``loss``; with ``d_loss [n]``, overwrite ``logits [n, V]`` by their gradient."""
    rows, vocabulary = logits.shape
    workers = threads(logits.numel())
    scratch = floats(workers * vocabulary)
    library(logits.dtype).cross_entropy(
        workers, rows, vocabulary, logits.data_ptr(), ids.data_ptr(), pointer(d_loss), loss.data_ptr(),
        scratch.data_ptr(),
    )  # fmt: skip


def _wanted(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Positions that are trained on (None for all), their hidden states and targets."""
    positions = (targets != IGNORED).nonzero()[:, 0]
    everything = len(positions) == len(targets)
    ids = (targets if everything else targets[positions]).long().contiguous()
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(head)):
        raise IndexError(f"targets reach from {int(ids.min())} to {int(ids.max())}, the vocabulary has {len(head)}")
    return (None, hidden.contiguous(), ids) if everything else (positions, hidden[positions], ids)


def _head_gradients(rows: Tensor, head: Tensor, ids: Tensor, d_loss: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``sum(d_loss * loss)`` for ``rows`` and ``head``; fills ``loss``. Logits live a chunk at a time."""
    chunk = max(1, CHUNK_LOGITS // len(head))
    d_rows, d_head = torch.empty_like(rows), torch.zeros(head.shape, dtype=torch.float32)
    suited = products.suits(rows, head)
    across, down = (products.pack(head), products.pack_down(head)) if suited else (head, head)
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        logits = products.multiply(rows[part], across, len(head)) if suited else rows[part] @ head.t()
        _cross_entropy(logits, ids[part], d_loss[part], loss[part])
        if suited:
            products.multiply(logits, down, head.shape[1], d_rows[part])
            products.outer(logits, rows[part], d_head)
        else:
            torch.mm(logits, head, out=d_rows[part])
            product = logits.t() @ rows[part]
            library(product.dtype).accumulate(
                threads(product.numel()), product.numel(), product.data_ptr(), d_head.data_ptr()
            )
    return d_rows, d_head.to(head.dtype)


def _losses(rows: Tensor, head: Tensor, ids: Tensor) -> Tensor:
    chunk = max(1, CHUNK_LOGITS // len(head))
    loss = floats(len(rows))
    packed = products.pack(head) if products.suits(rows, head) else None
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        logits = rows[part] @ head.t() if packed is None else products.multiply(rows[part], packed, len(head))
        _cross_entropy(logits, ids[part], None, loss[part])
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
            loss = floats(len(rows))
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
        d_rows, d_head = _head_gradients(rows, head, ids, d_loss, floats(len(rows)))
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
    return library().sum_squares(threads(grad.numel()), grad.numel(), *_either(grad), partial.data_ptr())


def adamw(
    master: Tensor, shadow: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, step: int, clip_scale: float,
) -> None:  # fmt: skip
    """Update one tensor; ``shadow`` is bfloat16, or ``master`` itself where there is no copy."""
    grad = grad.detach().contiguous()
    first_beta, second_beta = betas
    library().adamw(
        threads(master.numel()), master.numel(), master.data_ptr(), None if shadow is master else shadow.data_ptr(),
        *_either(grad), mean.data_ptr(), square.data_ptr(), 1 - first_beta, 1 - second_beta,
        lr / (1 - first_beta**step), (1 - second_beta**step) ** -0.5, eps, 1 - lr * weight_decay, clip_scale,
    )  # fmt: skip
