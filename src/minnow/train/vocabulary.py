"""Losses over the vocabulary without the whole logit matrix: a chunk of positions at a time, forward and back.

Where the fused kernels serve (on the CPU), they do. Elsewhere a sum's gradient is worked out in the forward
pass, while a chunk's logits are there (as Liger does, arXiv 2410.10989), and values per position have their logits
computed again in the backward pass. The head's gradient is added up in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.kernels.reference import CHUNK_LOGITS, IGNORED

BYTES_PER_LOGIT = 12
"""In float32: the logit, what a loss makes of it and its gradient."""

CHUNKS_IN_MEMORY = 64
"""A chunk's logits take at most one part in so many of a GPU's memory."""

LogitSums = Callable[..., Tensor]
"""``(logits [n, V], *others [n, ...]) -> [m]`` sums over positions; the first is the loss, the others are reported."""


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """As :func:`minnow.model.kernels.linear_cross_entropy`."""
    if _kernels_suffice(hidden, softcap):
        return kernels.linear_cross_entropy(hidden, head, targets, softcap)
    wanted = targets != IGNORED
    return summed(_negative_log_likelihood, hidden[wanted], head, targets[wanted], softcap=softcap)[0]


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """As :func:`minnow.model.kernels.token_log_probs`."""
    if _kernels_suffice(hidden, softcap):
        return kernels.token_log_probs(hidden, head, targets, softcap)
    wanted = targets != IGNORED
    values: Tensor = _LogProbs.apply(hidden[wanted], head, targets[wanted], softcap)
    return values.new_zeros(targets.shape).masked_scatter(wanted, values)


def summed(function: LogitSums, hidden: Tensor, head: Tensor, *others: Tensor, softcap: float | None = None) -> Tensor:
    """``function`` of the logits of all positions, summed over chunks of them.

    Args:
        function: pure, and differentiable in its logits, which are float32 at least and already capped.
        hidden: ``[N, D]``.
        head: ``[V, D]``, same dtype.
        others: ``[N, ...]`` each, cut with the positions.

    Returns:
        ``[m]``; gradients flow from the first element alone.
    """
    return _Summed.apply(function, softcap, hidden, head, *others)


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """Positions in a chunk: on a CPU so many that its logits fit the caches, on a GPU a sixty-fourth of its memory."""
    logits = CHUNK_LOGITS
    if device.type == "cuda":
        logits = max(
            logits, torch.cuda.get_device_properties(device).total_memory // (CHUNKS_IN_MEMORY * BYTES_PER_LOGIT)
        )
    return max(1, logits // vocabulary)


def _kernels_suffice(hidden: Tensor, softcap: float | None) -> bool:
    return not torch.is_grad_enabled() or (softcap is None and kernels.fusable(hidden))


def _negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets.long(), reduction="sum")[None]


def _cap(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _HeadGradient:
    """What chunks add to the gradients of the hidden states and of the head."""

    def __init__(self, hidden: Tensor, head: Tensor) -> None:
        self.hidden, self.head = torch.empty_like(hidden), torch.zeros_like(head, dtype=_wide(head))

    def add(self, part: slice, d_logits: Tensor, hidden: Tensor, head: Tensor) -> None:
        """From the gradient ``d_logits [n, V]`` of the positions in ``part``."""
        d_logits = d_logits.to(head.dtype)
        torch.mm(d_logits, head, out=self.hidden[part])
        if self.head.dtype == head.dtype:
            self.head.addmm_(d_logits.t(), hidden[part])
        else:
            self.head.add_(d_logits.t() @ hidden[part])


class _Summed(Function):
    @staticmethod
    def forward(
        ctx: Any, function: LogitSums, softcap: float | None, hidden: Tensor, head: Tensor, *others: Tensor
    ) -> Tensor:
        wanted = hidden.requires_grad or head.requires_grad
        hidden, head = hidden.detach().contiguous(), head.detach()
        gradient = _HeadGradient(hidden, head) if wanted else None
        size = max(
            1, positions_at_once(len(head), head.device) // 2
        )  # a function's own gradient holds several of these
        total: Tensor | None = None
        for begin in range(0, max(1, len(hidden)), size):
            part = slice(begin, begin + size)
            with torch.set_grad_enabled(wanted):
                logits = kernels.logits(hidden[part], head).requires_grad_(wanted)
                sums = function(_cap(logits, softcap), *(other[part] for other in others))
                d_logits = torch.autograd.grad(sums[0], logits)[0] if wanted else None
            if gradient is not None and d_logits is not None:
                gradient.add(part, d_logits, hidden, head)
            total = sums.detach() if total is None else total + sums.detach()
        assert total is not None
        if gradient is not None:
            ctx.save_for_backward(gradient.hidden, gradient.head.to(head.dtype))
        ctx.others = len(others)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_hidden, d_head = ctx.saved_tensors
        scale = d_total[0]
        return None, None, d_hidden * scale, d_head * scale, *(None for _ in range(ctx.others))


class _LogProbs(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        ctx.save_for_backward(hidden, head, targets)
        ctx.softcap = softcap
        size = positions_at_once(len(head), head.device)
        # One tensor for all: results of each chunk's own would lie between the chunks' logits and keep their memory.
        values = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            values[part] = kernels.token_log_probs(hidden[part], head, targets[part], softcap)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_values: Tensor) -> Any:
        hidden, head, targets = ctx.saved_tensors
        gradient = _HeadGradient(hidden, head)
        size = positions_at_once(len(head), head.device)
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            capped = _cap(kernels.logits(hidden[part], head), ctx.softcap)
            d_logits = capped.softmax(-1).neg_()
            d_logits[torch.arange(len(d_logits), device=hidden.device), targets[part].long()] += 1
            d_logits *= d_values[part, None]
            if ctx.softcap is not None:
                d_logits *= 1 - (capped / ctx.softcap).square()
            gradient.add(part, d_logits, hidden, head)
        return gradient.hidden, gradient.head.to(head.dtype), None, None
