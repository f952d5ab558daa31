"""The fused operations in plain torch: any device, any floating dtype, ordinary autograd.

They are what runs without a C compiler, on other devices and in other precisions, and what the fused kernels
are tested against (in float64). Semantics follow transformers' models; half-precision inputs are computed in float32
and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target id of a position that is not trained on."""

CHUNK_LOGITS = 1 << 22
"""Logits held at a time by the losses over the vocabulary (8 MB in bfloat16: they stay in cache)."""


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def document_starts(documents: Tensor) -> Tensor:
    """Index of the first token of each position's document, int32 ``[B, T]``.

    A document is a maximal run of equal ids in ``documents [B, T]``.
    """
    positions = torch.arange(documents.shape[1], device=documents.device, dtype=torch.int32).expand(documents.shape)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return torch.where(begins, positions, 0).cummax(dim=1).values.int()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = _wide(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.to(wide.dtype)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, rms_norm(total, weight, eps)


def rms_norm_gated(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (rms_norm(_wide(x), weight, eps) * F.silu(_wide(gate))).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def geglu(gate_up: Tensor) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)


def causal_conv(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """Depthwise: ``x [B, T, D]``, ``weight [D, K]`` with the current token's tap last; no tap leaves its document."""
    length, width = x.shape[1], weight.shape[1]
    starts = None if documents is None else document_starts(documents)
    positions = torch.arange(length, device=x.device)
    mixed = x * weight[:, -1]
    for back in range(1, min(width, length)):
        shifted = F.pad(x[:, :-back], (0, 0, back, 0))
        if starts is not None:
            shifted = torch.where((positions - back >= starts)[..., None], shifted, 0)
        mixed = mixed + shifted * weight[:, width - 1 - back]
    return mixed


def causal_conv_silu(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    wide = _wide(x)
    return F.silu(causal_conv(wide, weight.to(wide.dtype), documents)).to(x.dtype)


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    gate_in, gate_out, x = _wide(bcx).chunk(3, dim=-1)
    return (gate_out * causal_conv(gate_in * x, weight.to(gate_in.dtype), documents)).to(bcx.dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first dimensions of every head, as many as the table has, turned; the others as they are."""
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return x * cos + _rotate_half(x) * sin
    turning = x[..., :width]
    return torch.cat([turning * cos + _rotate_half(turning) * sin, x[..., width:]], dim=-1)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _rotated(_wide(q), cos, sin).to(q.dtype), _rotated(_wide(k), cos, sin).to(k.dtype)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    def one(x: Tensor, weight: Tensor) -> Tensor:
        return _rotated(rms_norm(_wide(x), weight, eps), cos, sin).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    count, length, mask = q.shape[1], k.shape[1], None
    if documents is not None or window is not None or softcap is not None or count < length:
        positions = torch.arange(length, device=q.device)
        queries = positions[length - count :, None]
        mask = positions <= queries
        if window is not None:
            mask = mask & (positions > queries - window)
        if documents is not None:
            mask = (mask & (positions >= document_starts(documents)[:, length - count :, None]))[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, mask, scale, softcap).transpose(1, 2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """``q [B, H, N, h]`` over ``k, v [B, G, S, h]`` where ``mask`` (broadcast to ``[B, H, N, S]``); causal without."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    assert mask is not None, "soft-capped attention is given its mask"
    sharing = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(sharing, dim=1) for x in (k, v))
    scores = _wide(q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


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
    groups, capacity, dim = keys.shape[1:]
    positions = qkv[:, None, : (heads + 2 * groups) * dim].unflatten(-1, (-1, dim))
    q, k, v = positions.split([heads, groups, groups], dim=2)
    cos, sin = (part[:, None] for part in rotary)
    q, k = rope(q, k, cos, sin) if norms is None else qk_norm_rope(q, k, *norms, cos, sin, eps)
    rows = torch.arange(len(qkv), device=qkv.device)
    keys[rows, :, lengths % capacity] = k[:, 0]
    values[rows, :, lengths % capacity] = v[:, 0]
    # A ring that is full holds the window and nothing else, in whatever order.
    span = min(int(lengths.max()) + 1, capacity)
    seen = (torch.arange(span, device=qkv.device) <= lengths[:, None])[:, None, None]
    # The query heads that share a key head stand as query positions: no repeated keys, no causal mask.
    grouped = q[:, 0].unflatten(1, (groups, -1))
    return attend(grouped, keys[:, :, :span], values[:, :, :span], seen, scale, softcap).flatten(1, 2)


def short_conv_step(bcx: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    gate_in, gate_out, value = bcx.chunk(3, dim=-1)
    window = torch.cat([inputs, (gate_in * value)[:, None]], dim=1)
    inputs.copy_(window[:, 1:])
    return gate_out * (window * weight.T).sum(1)


def grouped_linear(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    pieces = zip(x.split(counts.tolist()), weights.unbind(), strict=True)
    parts = [F.linear(_even(rows), weight)[: len(rows)] for rows, weight in pieces if len(rows)]
    return torch.cat(parts) if parts else F.linear(x, weights[0])  # no rows, with a gradient of zero


def _even(rows: Tensor) -> Tensor:
    """``rows`` with as many of zeros below that few numbers of them occur: oneDNN compiles its products in half precision
    for each anew, and keeps them, which took a mixture's training tens of megabytes more at every step."""
    short = -len(rows) % 32
    if rows.dtype.itemsize > 2 or rows.device.type != "cpu" or len(rows) < 32 or not short:
        return rows
    return F.pad(rows, (0, 0, 0, short))


def logits(hidden: Tensor, head: Tensor, softcap: float | None = None) -> Tensor:
    plain = _wide(F.linear(hidden, head.to(hidden.dtype)))
    return plain if softcap is None else softcap * torch.tanh(plain / softcap)


def highest(logits: Tensor, among: int) -> tuple[Tensor, Tensor]:
    return logits[:, :among].argmax(-1), logits.logsumexp(-1)


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    wanted = targets != IGNORED
    rows, ids = hidden[wanted], targets[wanted].long()
    chunk = max(1, CHUNK_LOGITS // head.shape[0])
    parts = [
        -F.cross_entropy(logits(part, head, softcap), part_ids, reduction="none")
        for part, part_ids in zip(rows.split(chunk), ids.split(chunk), strict=True)
    ]
    log_probs = torch.zeros(targets.shape, dtype=_wide(hidden[:0]).dtype, device=hidden.device)
    return log_probs.masked_scatter(wanted, torch.cat(parts))


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    return -token_log_probs(hidden, head, targets, softcap).sum()


def grad_norm(grads: Sequence[Tensor]) -> float:
    return float(torch.stack([_wide(grad).square().sum() for grad in grads]).sum().sqrt()) if grads else 0.0


@torch.no_grad()
def adamw(
    master: Tensor, shadow: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, betas: tuple[float, float],
    eps: float, weight_decay: float, step: int, clip_scale: float,
) -> None:  # fmt: skip
    first_beta, second_beta = betas
    wide = grad.to(master.dtype) * clip_scale
    mean.mul_(first_beta).add_(wide, alpha=1 - first_beta)
    square.mul_(second_beta).addcmul_(wide, wide, value=1 - second_beta)
    root = square.sqrt() / (1 - second_beta**step) ** 0.5 + eps
    master.mul_(1 - lr * weight_decay).addcdiv_(mean, root, value=-lr / (1 - first_beta**step))
    if shadow is not master:
        shadow.copy_(master)
