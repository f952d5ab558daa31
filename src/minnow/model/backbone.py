"""The LFM2 decoder: gated short convolutions and grouped-query attention, SwiGLU, tied embeddings.

Maths only. Precision, sharding and compilation are applied from outside; each operator is
dispatched by :mod:`minnow.model.kernels`. Checked against transformers' ``Lfm2ForCausalLM``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.config import ATTENTION, ModelConfig
from minnow.model.state import AttentionState, ConvState, DecodeState


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864, half-rotation layout).

    Args:
        positions: integer positions, any shape ``[...]``.

    Returns:
        ``cos, sin`` in float32, each ``[..., head_dim]``.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class ShortConv(nn.Module):
    """Gated short convolution: ``out(C * conv(B * x))`` with ``B, C, x`` projected from the input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernel = config.conv_kernel
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.conv = nn.Parameter(torch.empty(config.hidden_size, config.conv_kernel))
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; a tap never reaches into another document."""
        return self.out_proj(kernels.short_conv(self.in_proj(x), self.conv, documents))

    def prefill(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], lengths: Tensor, capacity: int
    ) -> tuple[Tensor, ConvState]:
        """As ``forward`` over right-padded rows; the state holds the last ``kernel - 1`` gated inputs of each row."""
        projected = self.in_proj(x)
        gate_in, _, value = projected.chunk(3, dim=-1)
        back = torch.arange(-(self.kernel - 1), 0, device=x.device)
        index = lengths[:, None] + back
        gated = (gate_in * value).gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        gated = gated * (index >= 0)[..., None]
        return self.out_proj(kernels.short_conv(projected, self.conv, None)), ConvState(gated)

    def step(self, x: Tensor, rotary: tuple[Tensor, Tensor], lengths: Tensor, state: ConvState) -> Tensor:
        """One position ``x [B, D]``; the state moves on by one."""
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        window = torch.cat([state.inputs, (gate_in * value)[:, None]], dim=1)
        state.inputs = window[:, 1:]
        return self.out_proj(gate_out * (window * self.conv.T).sum(1))


class Attention(nn.Module):
    """Causal grouped-query attention with per-head RMSNorm of queries and keys before rotation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps = config.norm_eps
        self.qkv_proj = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim))
        self.k_norm = nn.Parameter(torch.ones(self.head_dim))

    def _project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, T, D]`` to ``q [B, T, H, h]``, ``k, v [B, T, G, h]``."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        q, k = kernels.qk_norm_rope(q, k, self.q_norm, self.k_norm, *rotary, self.eps)
        return q, k, v

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; a query sees the earlier positions of its own document."""
        q, k, v = self._project(x, rotary)
        return self.out_proj(kernels.attention(q, k, v, documents).flatten(-2))

    def prefill(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], lengths: Tensor, capacity: int
    ) -> tuple[Tensor, AttentionState]:
        """As ``forward`` over right-padded rows; the state has room for ``capacity`` positions."""
        q, k, v = self._project(x, rotary)
        padding = (0, 0, 0, capacity - x.shape[1])
        state = AttentionState(F.pad(k.transpose(1, 2), padding), F.pad(v.transpose(1, 2), padding))
        return self.out_proj(kernels.attention(q, k, v, None).flatten(-2)), state

    def step(self, x: Tensor, rotary: tuple[Tensor, Tensor], lengths: Tensor, state: AttentionState) -> Tensor:
        """One position ``x [B, D]`` at ``lengths [B]``; the state gains its key and value."""
        cos, sin = rotary
        q, k, v = (part[:, 0] for part in self._project(x[:, None], (cos[:, None], sin[:, None])))
        rows = torch.arange(len(x), device=x.device)
        state.keys[rows, :, lengths] = k
        state.values[rows, :, lengths] = v
        span = int(lengths.max()) + 1
        seen = (torch.arange(span, device=x.device) <= lengths[:, None])[:, None, None]
        # The query heads that share a key head stand as query positions: no repeated keys, no causal mask.
        grouped = q.unflatten(1, (self.kv_heads, -1))
        mixed = F.scaled_dot_product_attention(
            grouped, state.keys[:, :, :span], state.values[:, :, :span], attn_mask=seen
        )
        return self.out_proj(mixed.flatten(1))


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``; gate and up are one matrix product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(kernels.swiglu(self.gate_up_proj(x)))


class Layer(nn.Module):
    """A mixer and a feed-forward, each behind its norm."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.mixer_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.mixer: ShortConv | Attention = Attention(config) if kind == ATTENTION else ShortConv(config)
        self.feed_forward_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.feed_forward = FeedForward(config)


class Backbone(nn.Module):
    """Token ids to hidden states; ``hidden @ head.T`` gives logits.

    Shapes: ``B`` rows, ``T`` positions, ``D`` hidden, ``V`` vocabulary, ``H``/``G`` query/key heads, ``h`` head width.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        layers = nn.ModuleList(Layer(config, kind) for kind in config.layer_types)
        self.layers: Sequence[Layer] = layers  # type: ignore[assignment]
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))

    @property
    def head(self) -> Tensor:
        """``[V, D]``, tied with the embedding."""
        return self.embedding

    def initialise(self, seed: int) -> None:
        """Draw weights: matrices at ``1/sqrt(fan in)``, those that write to the residual stream scaled down by depth."""
        generator = torch.Generator().manual_seed(seed)
        residual_scale = 1.0 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() < 2:
                    parameter.fill_(1.0)
                    continue
                if name == "embedding":
                    std = 1.0 / math.sqrt(self.config.hidden_size)
                else:
                    std = 1.0 / math.sqrt(parameter.shape[1])
                    if name.endswith(("out_proj.weight", "down_proj.weight")):
                        std *= residual_scale
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_table(positions, self.config.head_dim, self.config.rope_theta)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: ``[B, T]`` integer ids.
            documents: ``[B, T]`` document ids; positions of different documents never see each other.
                Positions count from the row's start: rotation is relative, so a document may begin anywhere.

        Returns:
            ``[B, T, D]`` in the weights' dtype.
        """
        rotary = self._rotary(torch.arange(tokens.shape[1], device=tokens.device))
        stream = F.embedding(tokens, self.embedding)
        update: Tensor | None = None
        for layer in self.layers:
            stream, normed = self._enter(stream, update, layer.mixer_norm)
            mixed = layer.mixer(normed, rotary, documents)
            stream, normed = self._enter(stream, mixed, layer.feed_forward_norm)
            update = layer.feed_forward(normed)
        return self._enter(stream, update, self.final_norm)[1]

    def _enter(self, stream: Tensor, update: Tensor | None, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``update`` to the residual stream and normalise the sum."""
        if update is None:
            return stream, kernels.rms_norm(stream, norm, self.config.norm_eps)
        return kernels.add_rms_norm(update, stream, norm, self.config.norm_eps)

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor, capacity: int) -> tuple[Tensor, DecodeState]:
        """Read prompts.

        Args:
            tokens: ``[B, T]`` ids, each row padded on the right.
            lengths: ``[B]`` valid ids per row, at least 1.
            capacity: positions the state has room for, prompt included.

        Returns:
            Hidden state at each row's last id ``[B, D]``, and the decode state.
        """
        rotary = self._rotary(torch.arange(tokens.shape[1], device=tokens.device))
        stream = F.embedding(tokens, self.embedding)
        states: list[ConvState | AttentionState] = []
        update: Tensor | None = None
        for layer in self.layers:
            stream, normed = self._enter(stream, update, layer.mixer_norm)
            mixed, state = layer.mixer.prefill(normed, rotary, lengths, capacity)
            states.append(state)
            stream, normed = self._enter(stream, mixed, layer.feed_forward_norm)
            update = layer.feed_forward(normed)
        hidden = self._enter(stream, update, self.final_norm)[1]
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return last, DecodeState(states, lengths.clone())

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecodeState) -> Tensor:
        """Read one more id per row: ``tokens [B]`` to hidden states ``[B, D]``; ``state`` moves on by one."""
        rotary = self._rotary(state.lengths)
        stream = F.embedding(tokens, self.embedding)
        update: Tensor | None = None
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            stream, normed = self._enter(stream, update, layer.mixer_norm)
            mixed = layer.mixer.step(normed, rotary, state.lengths, layer_state)  # type: ignore[arg-type]
            stream, normed = self._enter(stream, mixed, layer.feed_forward_norm)
            update = layer.feed_forward(normed)
        state.lengths = state.lengths + 1
        return self._enter(stream, update, self.final_norm)[1]

    def matrices(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix, by parameter name.

        Projections that share an input are one matrix here but several to an optimiser that looks at singular
        values. The embedding and the convolution taps are not listed: they are tables, not maps.
        """
        config = self.config
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        sizes = {
            "in_proj.weight": [config.hidden_size] * 3,
            "qkv_proj.weight": [query, key, key],
            "out_proj.weight": [config.hidden_size],
            "gate_up_proj.weight": [config.intermediate_size] * 2,
            "down_proj.weight": [config.hidden_size],
        }
        return {
            name: rows
            for name, _ in self.named_parameters()
            for suffix, rows in sizes.items()
            if name.endswith("." + suffix)
        }
