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

from minnow.model.kernels import build, fused, fused_training, recurrences, reference
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


def rms_norm_gated(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm(x) * silu(gate)``, both ``[..., D]``."""
    return reference.rms_norm_gated(x, gate, weight, eps)


def geglu(gate_up: Tensor) -> Tensor:
    """``gelu(gate) * up`` with the tanh form of gelu; shapes as :func:`swiglu`."""
    return (fused if _fusable(gate_up) else reference).geglu(gate_up)


def causal_conv_silu(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """``silu`` of a causal depthwise convolution of ``x [B, T, D]``; the rest as :func:`short_conv`."""
    fits = _fusable(x) and weight.shape[1] <= _MOST_TAPS
    return (fused if fits else reference).causal_conv_silu(x, weight, documents)


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
        cos, sin: ``[T, h]``, or ``[B, T, h]`` where rows are at different positions, the second half like the
            first; a table narrower than a head turns its first dimensions.

    Returns:
        q and k in the same layout, contiguous.
    """
    fits = _fusable(q, k) and q.shape[-1] % 2 == 0
    return (fused if fits else reference).qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`qk_norm_rope` without the norm."""
    return (fused if _fusable(q, k) else reference).rope(q, k, cos, sin)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention inside documents.

    Args:
        q: ``[B, T, H, h]``.
        k, v: ``[B, T, G, h]``; query heads ``i * H / G`` to ``(i + 1) * H / G`` share key head ``i``.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.
        window: positions that a query sees at most, itself included.
        scale: of the scores, ``1/sqrt(h)`` unless given.
        softcap: scores become ``softcap * tanh(scores / softcap)``.

    Returns:
        ``[B, T, H, h]``.
    """
    if softcap is None and _fusable(q, k, v) and q.shape[-1] % 16 == 0:
        return fused.attention(q, k, v, documents, window, scale)
    return reference.attention(q, k, v, documents, window, scale, softcap)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """Queries ``[B, G, N, h]`` that share the key heads of ``k, v [B, G, S, h]``, where ``mask [B, 1, 1, S]``."""
    return reference.attend(q, k, v, mask, scale, softcap)


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gated delta rule (arXiv 2412.06464) over rows of documents; queries and keys are brought to unit length.

    Args:
        q, k: ``[B, T, G, K]``; value heads ``i * H / G`` to ``(i + 1) * H / G`` share key head ``i``.
        v: ``[B, T, H, V]``.
        log_decay: ``[B, T, H]``, at most 0.
        strength: ``[B, T, H]``, 0 where a position writes nothing.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.

    Returns:
        ``[B, T, H, V]``, and the memory ``[B, H, K, V]`` after the last position in float32.
    """
    fits = _fusable(q, k, v) and q.shape[-1] % 16 == v.shape[-1] % 16 == 0
    return (fused if fits else recurrences).gated_delta(q, k, v, log_decay, strength, documents)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of :func:`gated_delta`, without its dimension ``T``: output ``[B, H, V]`` and the new memory."""
    return recurrences.gated_delta_step(q, k, v, log_decay, strength, memory)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gated linear attention (arXiv 2312.06635) over rows of documents.

    Args:
        q, k, log_decay: ``[B, T, H, K]``; decays are at most 0.
        v: ``[B, T, H, V]``.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.

    Returns:
        ``[B, T, H, V]``, and the memory ``[B, H, K, V]`` after the last position in float32.
    """
    return recurrences.gated_linear(q, k, v, log_decay, documents)


def gated_linear_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One position of :func:`gated_linear`, without its dimension ``T``: output ``[B, H, V]`` and the new memory."""
    return recurrences.gated_linear_step(q, k, v, log_decay, memory)


def logits(hidden: Tensor, head: Tensor, softcap: float | None = None) -> Tensor:
    """``hidden @ head.T`` in float32 (float64 for float64 input), capped to ``softcap * tanh(logits / softcap)``."""
    return reference.logits(hidden, head, softcap)


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Cross-entropy of :func:`logits`, summed over trained positions, without holding all logits.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``, same dtype.
        targets: ``[N]`` ids, ``IGNORED`` (-100) where not trained.

    Returns:
        Scalar in float32 (float64 for float64 input).

    Raises:
        IndexError: a target outside the vocabulary.
    """
    if softcap is None and _fusable(hidden, head):
        return fused_training.linear_cross_entropy(hidden, head, targets)
    return reference.linear_cross_entropy(hidden, head, targets, softcap)


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Log-probability of each target ``[N]``, 0 where ignored; arguments as :func:`linear_cross_entropy`."""
    if softcap is None and _fusable(hidden, head):
        return fused_training.token_log_probs(hidden, head, targets)
    return reference.token_log_probs(hidden, head, targets, softcap)


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
    "attend",
    "attention",
    "causal_conv_silu",
    "describe",
    "gated_delta",
    "gated_delta_step",
    "gated_linear",
    "gated_linear_step",
    "geglu",
    "grad_norm",
    "linear_cross_entropy",
    "logits",
    "qk_norm_rope",
    "rms_norm",
    "rms_norm_gated",
    "rope",
    "short_conv",
    "swiglu",
    "token_log_probs",
]
