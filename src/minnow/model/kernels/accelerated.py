"""Kernels of other projects for half-precision tensors on a GPU, with the signatures of the torch reference.

:data:`TABLE` lists what serves which operation. A kernel is imported when a tensor on a GPU first asks for it; where
none is installed or takes the shapes, :func:`serves` is false and the reference runs. Single precision always takes
the reference: these kernels may round its products to TF32.

Attention is FlexAttention and not ``torch.nn.attention.varlen``: one kernel does documents, windows and soft-capping
(which the other lacks), its shapes are the batch's whatever the documents (cumulative lengths change theirs, and wait
for the device to know them), and its masks can be checked on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from minnow.model.kernels import build, reference

BLOCK = 128
"""Positions along a side of the squares that FlexAttention takes or skips as a whole."""


@dataclass(frozen=True)
class Kernel:
    """An implementation that may be installed.

    Attributes:
        name: as :func:`describe` has it.
        package: what ``pip install`` is given.
        module: what is imported.
        fits: whether it takes an input and what goes with it: queries and values, or ``x [B, T, D]`` and its taps
            ``[D, K]``.
        limits: the part of ``fits`` that models may meet, in words.
    """

    name: str
    package: str
    module: str
    fits: Callable[[Tensor, Tensor], bool]
    limits: str = ""


def _wide_heads(q: Tensor, v: Tensor) -> bool:
    return q.shape[-1] >= 16 and v.shape[-1] >= 16  # the least that Triton multiplies


def _few_taps(x: Tensor, taps: Tensor) -> bool:
    # A single position's strides do not tell whether channels come last, which it must know.
    return 2 <= taps.shape[1] <= 4 and taps.shape[0] % 8 == 0 and x.shape[1] > 1


TABLE: dict[str, tuple[Kernel, ...]] = {
    "attention": (Kernel("FlexAttention", "triton", "triton", _wide_heads),),
    "convolution": (
        Kernel("causal-conv1d", "causal-conv1d", "causal_conv1d", _few_taps, "2 to 4 taps"),
        Kernel("flash-linear-attention", "fla-core", "fla.modules.causal_conv1d", lambda x, taps: True),
    ),
    "gated delta": (
        Kernel(
            "flash-linear-attention",
            "fla-core",
            "fla.ops.gated_delta_rule",
            lambda q, v: _wide_heads(q, v) and q.shape[-1] <= 256,
        ),
    ),
    "gated linear": (Kernel("flash-linear-attention", "fla-core", "fla.ops.gla", _wide_heads),),
}
"""Operations and their kernels, the preferred one first."""


@functools.cache
def _absence(kernel: Kernel) -> str | None:
    """Why a kernel cannot be used, or None. Imports it."""
    if build.torch_only():
        return build.TORCH_ONLY
    if importlib.util.find_spec(kernel.module.partition(".")[0]) is None:
        return f"no {kernel.name}: pip install {kernel.package}"
    try:
        importlib.import_module(kernel.module)
    except (ImportError, OSError) as error:
        return f"{kernel.name} does not load ({error}): pip install -U {kernel.package}"
    return None


def _chosen(operation: str, x: Tensor, other: Tensor) -> Kernel | None:
    fitting = (kernel for kernel in TABLE[operation] if kernel.fits(x, other))
    return next((kernel for kernel in fitting if _absence(kernel) is None), None)


def serves(operation: str, x: Tensor, other: Tensor) -> bool:
    """Whether a kernel of :data:`TABLE` takes these two tensors, which :class:`Kernel` describes."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.numel() > 0
        and _chosen(operation, x, other) is not None
    )


def serves_groups(x: Tensor, weights: Tensor) -> bool:
    """Whether torch's grouped product takes these, which wants rows of 16 bytes."""
    aligned = x.shape[-1] % 8 == weights.shape[1] % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and x.numel() > 0 and aligned and not build.torch_only()


def describe() -> str:
    """One line: what serves each operation, and for one that is left to torch what is missing."""
    parts, reasons = [], []
    for operation, kernels in TABLE.items():
        found = [f"{k.name} ({k.limits})" if k.limits else k.name for k in kernels if _absence(k) is None]
        parts.append(f"{operation}: {' or '.join(found) or 'torch'}")
        reasons += [] if found else [_absence(kernels[-1])]
    why = "; ".join(filter(None, dict.fromkeys(reasons)))
    if len(reasons) == len(TABLE):
        return f"pure torch: {why}"
    return ", ".join(parts) + (f" ({why})" if why else "")


class Layout:
    """What kernels want to know of a batch's documents, each worked out once and shared by all layers."""

    def __init__(self, starts: Tensor) -> None:
        """``starts [B, T]`` as :func:`reference.document_starts` gives them."""
        self.starts = starts
        self._masks: dict[int | None, BlockMask] = {}

    def block_mask(self, window: int | None) -> BlockMask:
        """FlexAttention's mask: causal, inside documents, over ``window`` positions at most."""
        if window not in self._masks:
            self._masks[window] = _block_mask(self.starts, window)
        return self._masks[window]

    @functools.cached_property
    def _begins(self) -> Tensor:
        return self.starts == torch.arange(self.starts.shape[1], device=self.starts.device)

    @functools.cached_property
    def bounds(self) -> Tensor:
        """Where each document begins among all ``B * T`` positions and where the last one ends, int64 ``[N + 1]``."""
        begins = self._begins.flatten().nonzero()[:, 0]
        return torch.cat([begins, begins.new_tensor([self.starts.numel()])])

    @functools.cached_property
    def last(self) -> Tensor:
        """Each row's last document among the ``N``, int64 ``[B]``."""
        return self._begins.sum(1).cumsum(0) - 1


_layouts = WeakTensorKeyDictionary()


def layout(documents: Tensor) -> Layout:
    """The layout of ``documents [B, T]``; kept as long as the tensor lives and is not written to."""
    if documents.is_inference():  # keeps no count of its versions
        return Layout(reference.document_starts(documents))
    written, known = _layouts.get(documents, (None, None))
    if known is None or written != documents._version:
        known = Layout(reference.document_starts(documents))
        _layouts[documents] = documents._version, known
    return known


@functools.lru_cache(maxsize=8)
def _undivided(batch: int, length: int, device: torch.device) -> Layout:
    return Layout(torch.zeros((batch, length), dtype=torch.int32, device=device))


def _block_mask(starts: Tensor, window: int | None) -> BlockMask:
    """As ``create_block_mask``, which would write out the mask of all pairs.

    The keys of a query reach from ``first`` to itself, and ``first`` never falls along a row: the squares of a row of
    squares follow from its first and its last query.
    """
    length = starts.shape[1]
    squares = torch.arange(-(-length // BLOCK), device=starts.device)
    first = starts if window is None else starts.maximum(torch.arange(length, device=starts.device) + 1 - window)
    top, bottom = squares * BLOCK, (squares * BLOCK + BLOCK - 1).clamp(max=length - 1)
    column, row = squares, squares[:, None]
    seen = (column >= first[:, top, None] // BLOCK) & (column <= row)
    whole = (top >= first[:, bottom, None]) & (column < row) & (row < length // BLOCK)

    def mask(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = (key <= query) & (key >= starts[b, query])
        return inside if window is None else inside & (key > query - window)

    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~whole), *_ordered(whole), BLOCK, mask_mod=mask, seq_lengths=(length, length)
    )


def _ordered(squares: Tensor) -> tuple[Tensor, Tensor]:
    """How many squares ``[B, rows, columns]`` of each row are set, and their columns before the others."""
    marked = squares[:, None].int()
    return marked.sum(-1).int(), marked.argsort(dim=-1, descending=True, stable=True).int()


@functools.cache
def _flex() -> Callable[..., Any]:
    # Windows, soft-caps and lengths that come and go each compile once; torch gives up compiling at 8.
    return torch.compile(flex_attention, recompile_limit=64)  # type: ignore[call-overload]  # its stub forgot it


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def score(value: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(value / softcap)

    return score


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    batch, length = q.shape[:2]
    if window is not None and window >= length:
        window = None
    if documents is None and window is None and softcap is None:
        return reference.attention(q, k, v, scale=scale)  # torch's own causal kernel needs no mask
    divided = _undivided(batch, length, q.device) if documents is None else layout(documents)
    mixed = _flex()(
        *(x.transpose(1, 2) for x in (q, k, v)),
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=divided.block_mask(window),
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2)


def grouped_linear(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    return F.grouped_mm(x, weights.mT, offs=counts.cumsum(0, dtype=torch.int32))


def causal_conv(x: Tensor, weight: Tensor, documents: Tensor | None = None, activation: str | None = None) -> Tensor:
    """As :func:`reference.causal_conv`, with SiLU behind it for ``activation="silu"``."""
    kernel = _chosen("convolution", x, weight)
    assert kernel is not None, "dispatched to only where something serves it"
    module = importlib.import_module(kernel.module)
    if kernel.module == "causal_conv1d":
        # Ids that come again would join documents: the starts are as good and never do.
        starts = None if documents is None else layout(documents).starts
        # 16 bytes are loaded at a time along the channels.
        if x.stride(-1) != 1 or x.stride(0) % 8 or x.stride(1) % 8 or x.data_ptr() % 16:
            x = x.contiguous()
        return module.causal_conv1d_fn(x.transpose(1, 2), weight, seq_idx=starts, activation=activation).transpose(1, 2)
    if documents is None:
        return module.causal_conv1d(x, weight, activation=activation)[0]
    bounds = layout(documents).bounds
    return module.causal_conv1d(x.reshape(1, -1, x.shape[2]), weight, activation=activation, cu_seqlens=bounds)[0].view(
        x.shape
    )


def causal_conv_silu(x: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    return causal_conv(x, weight, documents, "silu")


def short_conv(bcx: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    gate_in, gate_out, x = bcx.chunk(3, dim=-1)
    return gate_out * causal_conv(gate_in * x, weight, documents)


def _rows(run: Callable[..., Any], tensors: dict[str, Tensor], documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run one of flash-linear-attention's kernels over rows of documents: outputs, and each row's last memory."""
    if documents is None:
        return run(**tensors, output_final_state=True)
    divided, shape = layout(documents), tensors["v"].shape
    flat = {name: x.flatten(0, 1)[None] for name, x in tensors.items()}
    out, memories = run(**flat, output_final_state=True, cu_seqlens=divided.bounds)
    return out.view(shape), memories[divided.last]


def _step(run: Callable[..., Any], tensors: dict[str, Tensor], memory: Tensor) -> tuple[Tensor, Tensor]:
    """Run a recurrent one for one position of every row."""
    out, memory = run(
        **{name: x[:, None] for name, x in tensors.items()}, initial_state=memory, output_final_state=True
    )
    return out[:, 0], memory


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    run = functools.partial(chunk_gated_delta_rule, use_qk_l2norm_in_kernel=True)
    return _rows(run, {"q": q, "k": k, "v": v, "g": log_decay, "beta": strength}, documents)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    run = functools.partial(fused_recurrent_gated_delta_rule, use_qk_l2norm_in_kernel=True)
    return _step(run, {"q": q, "k": k, "v": v, "g": log_decay, "beta": strength}, memory)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from fla.ops.gla import chunk_gla

    return _rows(chunk_gla, {"q": q, "k": k, "v": v, "g": log_decay}, documents)


def gated_linear_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    from fla.ops.gla import fused_recurrent_gla

    return _step(fused_recurrent_gla, {"q": q, "k": k, "v": v, "gk": log_decay}, memory)
