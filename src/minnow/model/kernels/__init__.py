"""Operations of the model and its training between the matrix products, fused where the machine allows it.

Every function looks at its input: bfloat16 on the CPU takes the fused C kernel, anything else (other devices, other
precisions, no C compiler, ``MINNOW_KERNELS=torch``) the torch reference of the same name. :func:`describe` says which
this process has. Gradients flow through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minnow.model.kernels import build, fused, fused_training, reference
from minnow.model.kernels.reference import IGNORED

_MOST_TAPS = 8


def describe() -> str:
    """Which implementation this process uses, and why where it is not the fused one. Compiles on first use."""
    return build.load().description


def _fusable(*tensors: Tensor) -> bool:
    return (
        all(tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" for tensor in tensors)
        and tensors[0].numel() > 0
        and build.load().library is not None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension; ``x [..., D]``, ``weight [D]`` of any dtype."""
    return (fused if _fusable(x) else reference).rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(x + residual, rms_norm(x + residual))``, both ``[..., D]``."""
    return (fused if _fusable(x, residual) else reference).add_rms_norm(x, residual, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[..., 2F] = [gate, up]``, giving ``[..., F]``."""
    return (fused if _fusable(gate_up) else reference).swiglu(gate_up)


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """LFM2's gated short convolution ``C * conv(B * x)`` without its projections.

    Args:
        bcx: ``[B, T, 3D]``, the input gate, the output gate and x side by side.
        weight: ``[D, K]`` taps of the causal depthwise convolution, the last one for the current token.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document and no tap leaves it.

    Returns:
        ``[B, T, D]``.
    """
    fits = _fusable(bcx) and weight.shape[1] <= _MOST_TAPS
    return (fused if fits else reference).short_conv(bcx, weight, documents)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """RMS norm of every head, then rotary embedding in the half-rotation layout.

    Args:
        q: ``[B, T, H, h]``; may be a slice of a wider projection.
        k: ``[B, T, G, h]``, likewise.
        q_weight, k_weight: ``[h]``.
        cos, sin: ``[T, h]``, or ``[B, T, h]`` where rows are at different positions.

    Returns:
        q and k in the same layout, contiguous.
    """
    fits = _fusable(q, k) and q.shape[-1] % 2 == 0
    return (fused if fits else reference).qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """Causal grouped-query attention inside documents, scores scaled by ``1/sqrt(h)``.

    Args:
        q: ``[B, T, H, h]``.
        k, v: ``[B, T, G, h]``; query heads ``i * H / G`` to ``(i + 1) * H / G`` share key head ``i``.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.

    Returns:
        ``[B, T, H, h]``.
    """
    fits = _fusable(q, k, v) and q.shape[-1] % 16 == 0
    return (fused if fits else reference).attention(q, k, v, documents)


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of ``hidden @ head.T``, summed over trained positions, without holding all logits.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``, same dtype.
        targets: ``[N]`` ids, ``IGNORED`` (-100) where not trained.

    Returns:
        Scalar in float32 (float64 for float64 input).

    Raises:
        IndexError: a target outside the vocabulary.
    """
    return (fused_training if _fusable(hidden, head) else reference).linear_cross_entropy(hidden, head, targets)


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target ``[N]``, 0 where ignored; arguments as :func:`linear_cross_entropy`."""
    return (fused_training if _fusable(hidden, head) else reference).token_log_probs(hidden, head, targets)


def grad_norm(grads: Sequence[Tensor]) -> float:
    """Euclidean norm of all gradients together."""
    wide = [grad for grad in grads if not _updatable(grad)]
    total = sum(fused_training.sum_squares(grad) for grad in grads if _updatable(grad))
    return math.sqrt(total + reference.grad_norm(wide) ** 2)


def adamw_step(
    masters: Sequence[Tensor],
    shadows: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Sequence[float],
    step: int,
    clip_scale: float,
) -> None:
    """One AdamW update (arXiv 1711.05101) in place, one pass over each tensor.

    Args:
        masters: float32 parameters.
        shadows: their bfloat16 copies, rewritten; an entry may be the master itself where there is no copy.
        grads: bfloat16 or float32; multiplied by ``clip_scale`` first.
        exp_avg, exp_avg_sq: float32 moments.
        weight_decay: one value per tensor, decoupled.
        step: number of this update, from 1 on.
    """
    for entry in zip(masters, shadows, grads, exp_avg, exp_avg_sq, weight_decay, strict=True):
        master, shadow, grad, mean, square, decay = entry
        plain = all(tensor.is_contiguous() for tensor in (master, shadow, mean, square))
        copied = shadow is master or shadow.dtype == torch.bfloat16
        if plain and copied and _updatable(grad) and master.dtype == mean.dtype == square.dtype == torch.float32:
            fused_training.adamw(master, shadow, grad, mean, square, lr, betas, eps, decay, step, clip_scale)
        else:
            reference.adamw_step(
                [master], [shadow], [grad], [mean], [square], lr, betas, eps, [decay], step, clip_scale
            )


def _updatable(grad: Tensor) -> bool:
    known = grad.dtype in (torch.bfloat16, torch.float32) and grad.device.type == "cpu"
    return known and build.load().library is not None


__all__ = [
    "IGNORED",
    "adamw_step",
    "add_rms_norm",
    "attention",
    "describe",
    "grad_norm",
    "linear_cross_entropy",
    "qk_norm_rope",
    "rms_norm",
    "short_conv",
    "swiglu",
    "token_log_probs",
]
