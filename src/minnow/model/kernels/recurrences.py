"""Linear attention with decay in plain torch: chunks of positions for training, one position at a time for decoding.

The memory of a head is a matrix ``S [K, V]`` that a key writes to and a query reads. Everything is computed in float32
(float64 for float64 input). A chunk's inner part is a product with a triangle of decays, and only the memory passes
from chunk to chunk. Documents are maximal runs of equal ids, and each begins with an empty memory: decays between
positions of different documents are set to zero, never computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minnow.model.kernels.reference import document_starts

DELTA_CHUNK = 64
"""As in ``delta.c``."""

LINEAR_CHUNK = 16
"""Smaller, because every key dimension has a triangle of decays of its own."""


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """``[B, T, H, ...]`` to ``[B, H, N, chunk, ...]``, padded with zeros."""
    missing = -x.shape[1] % chunk
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return padded.unflatten(1, (-1, chunk)).movedim(3, 1)


def _joined(chunks: list[Tensor], length: int) -> Tensor:
    """``[B, H, chunk, V]`` per chunk back to ``[B, T, H, V]``."""
    return torch.cat(chunks, dim=2).transpose(1, 2)[:, :length]


@dataclass(frozen=True)
class _Borders:
    """What of a chunk belongs together, as multipliers 0 or 1.

    Attributes:
        same: ``[B, 1, N, C, C]`` pairs of one document.
        old: ``[B, 1, N, C]`` positions of the document that the chunk began with.
        last: ``[B, 1, N, C]`` positions of the document that the chunk ends with.
        whole: ``[B, 1, N]`` chunks that end with the document they began with.
    """

    same: Tensor
    old: Tensor
    last: Tensor
    whole: Tensor


def _borders(documents: Tensor, chunk: int, goes_on: bool) -> _Borders:
    """Args: goes_on: the first document of each row began before it."""
    starts = document_starts(documents)
    if goes_on:
        starts = starts.masked_fill(starts == 0, -1)
    missing = -starts.shape[1] % chunk
    starts = torch.cat([starts, starts[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (-1, chunk))[:, None]
    begins = torch.arange(0, starts.shape[2] * chunk, chunk, device=starts.device)[:, None]
    old = starts < begins
    return _Borders(starts[..., :, None] == starts[..., None, :], old, starts == starts[..., -1:], old[..., -1])


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    documents: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, length, chunk = v.dtype, v.shape[1], DELTA_CHUNK
    q, k, v, log_decay, strength = _wide(q, k, v, log_decay, strength)
    sharing = v.shape[2] // k.shape[2]
    q, k = (_unit(x).repeat_interleave(sharing, dim=2) if sharing > 1 else _unit(x) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    q, k, v = (_chunked(x, chunk) for x in (q, k, v))
    log_decay, strength = _chunked(log_decay, chunk), _chunked(strength, chunk)[..., None]
    total = log_decay.cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()
    from_old, to_end, across = total.exp(), (total[..., -1:] - total).exp(), total[..., -1].exp()
    if documents is not None:
        borders = _borders(documents, chunk, memory is not None)
        between, from_old = between * borders.same, from_old * borders.old
        to_end, across = to_end * borders.last, across * borders.whole
    # What the positions of a chunk write depends on what the earlier ones wrote: a unit triangular system
    # (arXiv 2406.06484), solved at once for the values and for the keys that read the old memory.
    system = (strength * k @ k.mT) * between
    wanted = torch.cat([strength * v, strength * from_old[..., None] * k], dim=-1)
    values, keys = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True).split(
        [v.shape[-1], k.shape[-1]], dim=-1
    )
    inner = (q @ k.mT) * between
    reading, writing = q * from_old[..., None], (k * to_end[..., None]).mT
    memory = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]) if memory is None else memory.to(v.dtype)
    outputs = []
    for n in range(v.shape[2]):
        written = values[:, :, n] - keys[:, :, n] @ memory
        outputs.append(reading[:, :, n] @ memory + inner[:, :, n] @ written)
        memory = memory * across[:, :, n, None, None] + writing[:, :, n] @ written
    return _joined(outputs, length).to(dtype), memory


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    q, k, v, log_decay, strength = _wide(q, k, v, log_decay, strength)
    sharing = v.shape[1] // k.shape[1]
    q, k = (_unit(x).repeat_interleave(sharing, dim=1) if sharing > 1 else _unit(x) for x in (q, k))
    memory = memory * log_decay.exp()[..., None, None]
    recalled = (k[..., None, :] @ memory)[..., 0, :]
    memory = memory + k[..., :, None] * ((v - recalled) * strength[..., None])[..., None, :]
    out = (q[..., None, :] * q.shape[-1] ** -0.5) @ memory
    return out[..., 0, :].to(dtype), memory


def gated_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    documents: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype, length, chunk = v.dtype, v.shape[1], LINEAR_CHUNK
    q, k, v, log_decay = (_chunked(x, chunk) for x in _wide(q, k, v, log_decay))
    q = q * q.shape[-1] ** -0.5
    total = log_decay.cumsum(-2)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).triu(1)[..., None]
    # Differences before exponentials: e^(-total) alone would overflow where a dimension fades fast.
    between = (total[..., :, None, :] - total[..., None, :, :]).masked_fill(later, float("-inf")).exp()
    from_old, to_end, across = total.exp(), (total[..., -1:, :] - total).exp(), total[..., -1, :].exp()
    inner = torch.einsum("...ik,...jk,...ijk->...ij", q, k, between)
    if documents is not None:
        borders = _borders(documents, chunk, memory is not None)
        inner, from_old = inner * borders.same, from_old * borders.old[..., None]
        to_end, across = to_end * borders.last[..., None], across * borders.whole[..., None]
    within, reading, writing = inner @ v, q * from_old, (k * to_end).mT @ v
    memory = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]) if memory is None else memory.to(v.dtype)
    outputs = []
    for n in range(v.shape[2]):
        outputs.append(within[:, :, n] + reading[:, :, n] @ memory)
        memory = memory * across[:, :, n, :, None] + writing[:, :, n]
    return _joined(outputs, length).to(dtype), memory


def gated_linear_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    q, k, v, log_decay = _wide(q, k, v, log_decay)
    memory = memory * log_decay.exp()[..., None] + k[..., None] * v[..., None, :]
    out = (q[..., None, :] * q.shape[-1] ** -0.5) @ memory
    return out[..., 0, :].to(dtype), memory
