"""Operations of the model and its training between the matrix products, fused where the machine allows it.

Every function looks at its input:

=====================================  ===============================================================================
bfloat16 or float32 on the CPU         :mod:`.fused`: C kernels, compiled on first use
bfloat16 or float16 on a GPU           :mod:`.accelerated`: kernels of other projects for the mixers, where installed
anything else, and where those lack    :mod:`.reference` and :mod:`.recurrences`: plain torch
=====================================  ===============================================================================

``MINNOW_KERNELS=torch`` in the environment asks for plain torch everywhere. :func:`describe` says what this process
has. Gradients flow through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.model.kernels import accelerated, build, decoding, fused, fused_training, products, recurrences, reference
from minnow.model.kernels.reference import IGNORED as IGNORED

_MOST_TAPS = 8


def describe(device: torch.device | str = "cpu") -> str:
    """Which implementations run on ``device``, and why no faster one does. Compiles or imports them on first use."""
    return accelerated.describe() if torch.device(device).type == "cuda" else build.load(torch.bfloat16).description


def fusable(*tensors: Tensor) -> bool:
    """Whether the fused kernels take these: all of one of their types, and on the CPU."""
    dtype = tensors[0].dtype
    return (
        dtype in build.DTYPES
        and all(tensor.dtype == dtype and tensor.device.type == "cpu" for tensor in tensors)
        and tensors[0].numel() > 0
        and build.load(dtype).library is not None
    )


def _fastest(*tensors: Tensor) -> ModuleType:
    """Where no gradient is wanted, the way around autograd: it would cost as much again in a decoding step."""
    if not fusable(*tensors):
        return reference
    return fused if torch.is_grad_enabled() else decoding


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension; ``x [..., D]``, ``weight [D]`` of any dtype."""
    return _fastest(x).rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(x + residual, rms_norm(x + residual))``, both ``[..., D]``."""
    return _fastest(x, residual).add_rms_norm(x, residual, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[..., 2F] = [gate, up]``, giving ``[..., F]``."""
    return _fastest(gate_up).swiglu(gate_up)


def rms_norm_gated(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm(x) * silu(gate)``, both ``[..., D]``."""
    return reference.rms_norm_gated(x, gate, weight, eps)


def geglu(gate_up: Tensor) -> Tensor:
    """``gelu(gate) * up`` with the tanh form of gelu; shapes as :func:`swiglu`."""
    return _fastest(gate_up).geglu(gate_up)


def causal_conv_silu(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """``silu`` of a causal depthwise convolution of ``x [B, T, D]``; the rest as :func:`short_conv`."""
    return _convolving(x, weight).causal_conv_silu(x, weight, documents)


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """LFM2's gated short convolution ``C * conv(B * x)`` without its projections.

    Args:
        bcx: ``[B, T, 3D]``, the input gate, the output gate and x side by side.
        weight: ``[D, K]`` taps of the causal depthwise convolution, the last one for the current token.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document and no tap leaves it.

    Returns:
        ``[B, T, D]``.
    """
    return _convolving(bcx, weight).short_conv(bcx, weight, documents)


def _convolving(x: Tensor, weight: Tensor) -> ModuleType:
    if fusable(x) and weight.shape[1] <= _MOST_TAPS:
        return fused
    return accelerated if accelerated.serves("convolution", x, weight) else reference


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
    fits = fusable(q, k) and q.shape[-1] % 2 == 0
    return (fused if fits else reference).qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`qk_norm_rope` without the norm."""
    return (fused if fusable(q, k) else reference).rope(q, k, cos, sin)


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
        q: ``[B, N, H, h]``, the last ``N`` of ``T`` positions.
        k, v: ``[B, T, G, h]``; query heads ``i * H / G`` to ``(i + 1) * H / G`` share key head ``i``.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.
        window: positions that a query sees at most, itself included.
        scale: of the scores, ``1/sqrt(h)`` unless given.
        softcap: scores become ``softcap * tanh(scores / softcap)``.

    Returns:
        ``[B, N, H, h]``.
    """
    whole = q.shape[1] == k.shape[1]
    if whole and softcap is None and fusable(q, k, v) and q.shape[-1] % 16 == 0:
        return fused.attention(q, k, v, documents, window, scale)
    served = whole and accelerated.serves("attention", q, v)
    return (accelerated if served else reference).attention(q, k, v, documents, window, scale, softcap)


def attention_step(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rotary: tuple[Tensor, Tensor],
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """One position of attention per row: norm and rotation as :func:`qk_norm_rope`, then :func:`attention`.

    Args:
        qkv: ``[B, at least (H + 2G) h]``, beginning with a position's queries, keys and values.
        norms: weights ``[h]`` of the queries' and keys' norms, None without.
        rotary: cosines and sines of the rows' positions ``[B, turning]``.
        lengths: ``[B]`` positions that each row holds already.
        keys, values: ``[B, G, S, h]``; the new ones are written at ``lengths % S``, so that a cache as long as a
            window is a ring.

    Returns:
        ``[B, H, h]``.
    """
    plain = softcap is None and keys.shape[-1] in decoding.HEAD_DIMS and keys.is_contiguous() and values.is_contiguous()
    if plain and fusable(qkv, keys, values):
        return decoding.attention_step(qkv, norms, eps, rotary, lengths, keys, values, heads, scale)
    return reference.attention_step(qkv, norms, eps, rotary, lengths, keys, values, heads, scale, softcap)


def short_conv_step(bcx: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    """One position ``bcx [B, 3D]`` of :func:`short_conv`; ``inputs [B, K - 1, D]``, oldest first, moves on by one."""
    fits = fusable(bcx, weight) and inputs.is_contiguous()
    return (decoding if fits else reference).short_conv_step(bcx, weight, inputs)


def pack(weight: Tensor) -> Tensor | None:
    """A copy of ``weight [N, K]`` for :func:`linear`, or None where that would bring nothing."""
    return products.pack(weight) if fusable(weight) and products.can_pack(weight) else None


def linear(x: Tensor, weight: Tensor, packed: Tensor | None = None) -> Tensor:
    """``x [..., K]`` times ``weight [N, K]``; faster where ``weight`` was packed, if no gradient is wanted."""
    if packed is not None and x.dtype == weight.dtype and not torch.is_grad_enabled():
        return decoding.linear(x, packed, len(weight), x.dtype)
    return products.linear(x, weight) if fusable(x, weight) and products.suits(x, weight) else F.linear(x, weight)


def grouped_linear(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """``x [N, K]`` times ``weights [E, M, K]``: the first ``counts[0]`` rows with the first matrix, and so on.

    Args:
        counts: ``[E]`` integers that add up to ``N``.

    Returns:
        ``[N, M]``.
    """
    return (accelerated if accelerated.serves_groups(x, weights) else reference).grouped_linear(x, weights, counts)


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    documents: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated delta rule (arXiv 2412.06464) over rows of documents; queries and keys are brought to unit length.

    Args:
        q, k: ``[B, T, G, K]``; value heads ``i * H / G`` to ``(i + 1) * H / G`` share key head ``i``.
        v: ``[B, T, H, V]``.
        log_decay: ``[B, T, H]``, at most 0.
        strength: ``[B, T, H]``, 0 where a position writes nothing.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.
        memory: ``[B, H, K, V]`` that each row's first document goes on from; it has a gradient, in plain torch.

    Returns:
        ``[B, T, H, V]``, and the memory ``[B, H, K, V]`` after the last position in float32.
    """
    if memory is not None:
        return recurrences.gated_delta(q, k, v, log_decay, strength, documents, memory)
    fits = fusable(q, k, v) and q.shape[-1] % 16 == v.shape[-1] % 16 == 0
    fast = fused if fits else accelerated if accelerated.serves("gated delta", q, v) else recurrences
    return fast.gated_delta(q, k, v, log_decay, strength, documents)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of :func:`gated_delta`, without its dimension ``T``: output ``[B, H, V]`` and the new memory."""
    served = accelerated.serves("gated delta", q, v)
    return (accelerated if served else recurrences).gated_delta_step(q, k, v, log_decay, strength, memory)


def gated_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    documents: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated linear attention (arXiv 2312.06635) over rows of documents.

    Args:
        q, k, log_decay: ``[B, T, H, K]``; decays are at most 0.
        v: ``[B, T, H, V]``.
        documents: ``[B, T]`` ids; a maximal run of equal ids is one document.
        memory: as in :func:`gated_delta`.

    Returns:
        ``[B, T, H, V]``, and the memory ``[B, H, K, V]`` after the last position in float32.
    """
    if memory is not None:
        return recurrences.gated_linear(q, k, v, log_decay, documents, memory)
    served = accelerated.serves("gated linear", q, v)
    return (accelerated if served else recurrences).gated_linear(q, k, v, log_decay, documents)


def gated_linear_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One position of :func:`gated_linear`, without its dimension ``T``: output ``[B, H, V]`` and the new memory."""
    served = accelerated.serves("gated linear", q, v)
    return (accelerated if served else recurrences).gated_linear_step(q, k, v, log_decay, memory)


def logits(hidden: Tensor, head: Tensor, softcap: float | None = None, packed: Tensor | None = None) -> Tensor:
    """``hidden @ head.T`` in float32 (float64 for float64 input), capped to ``softcap * tanh(logits / softcap)``."""
    if softcap is None and packed is not None and hidden.dtype == head.dtype and not torch.is_grad_enabled():
        return decoding.linear(hidden, packed, len(head), torch.float32)
    return reference.logits(hidden, head, softcap)


def highest(logits: Tensor, among: int) -> tuple[Tensor, Tensor]:
    """For each row of ``logits [B, V]`` the first place of the highest of its first ``among``, and its logsumexp."""
    fused_here = (
        logits.dtype == torch.float32 and logits.device.type == "cpu" and build.load(torch.bfloat16).library is not None
    )
    return (decoding if fused_here and logits.is_contiguous() else reference).highest(logits, among)


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
    if softcap is None and fusable(hidden, head):
        return fused_training.linear_cross_entropy(hidden, head, targets)
    return reference.linear_cross_entropy(hidden, head, targets, softcap)


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Log-probability of each target ``[N]``, 0 where ignored; arguments as :func:`linear_cross_entropy`."""
    if softcap is None and fusable(hidden, head):
        return fused_training.token_log_probs(hidden, head, targets)
    return reference.token_log_probs(hidden, head, targets, softcap)


def grad_norm(grads: Sequence[Tensor]) -> float:
    """Euclidean norm of all gradients together."""
    wide = [grad for grad in grads if not _updatable(grad)]
    total = sum(fused_training.sum_squares(grad) for grad in grads if _updatable(grad))
    return math.sqrt(total + reference.grad_norm(wide) ** 2)


def adamw(
    master: Tensor, shadow: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, step: int, clip_scale: float,
) -> None:  # fmt: skip
    """One AdamW update (arXiv 1711.05101) of a parameter in place, in one pass over it.

    Args:
        master: float32.
        shadow: its bfloat16 copy, rewritten; the master itself where there is no copy.
        grad: bfloat16 or float32; multiplied by ``clip_scale`` first.
        mean, square: float32 moments.
        weight_decay: decoupled.
        step: number of this update, from 1 on.
    """
    plain = all(tensor.is_contiguous() for tensor in (master, shadow, mean, square))
    copied = shadow is master or shadow.dtype == torch.bfloat16
    fits = plain and copied and _updatable(grad) and master.dtype == mean.dtype == square.dtype == torch.float32
    (fused_training if fits else reference).adamw(
        master, shadow, grad, mean, square, lr, betas, eps, weight_decay, step, clip_scale
    )


def _updatable(grad: Tensor) -> bool:
    known = grad.dtype in (torch.bfloat16, torch.float32) and grad.device.type == "cpu"
    return known and build.load(torch.bfloat16).library is not None
