"""The decoder: an embedding, layers of a mixer and a feed-forward, a norm and an output head.

Maths only. Precision, sharding and compilation are applied from outside; each operator is dispatched by
:mod:`minnow.model.kernels`. Checked against transformers' model of every family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import config, kernels
from minnow.model.feed_forward import build_feed_forward
from minnow.model.linear import Linear
from minnow.model.mixers import GatedDelta, GatedLinear, build_mixer
from minnow.model.norms import multiplier
from minnow.model.rotary import RotaryTable, rotary_table
from minnow.model.rows import Rows
from minnow.model.state import DecodeState, LayerState


class Layer(nn.Module):
    """A mixer and a feed-forward, each behind its norm, and with ``sandwich`` before one."""

    mixer_out_norm: nn.Parameter | None
    feed_forward_out_norm: nn.Parameter | None

    def __init__(self, shape: config.LayerConfig, model: config.ModelConfig) -> None:
        super().__init__()
        width = model.hidden_size
        self.shape = shape
        self.mixer_norm = nn.Parameter(torch.ones(width))
        self.mixer = build_mixer(shape.mixer, model)
        self.feed_forward_norm = nn.Parameter(torch.ones(width))
        self.feed_forward = build_feed_forward(shape.feed_forward, width)
        for name in ("mixer_out_norm", "feed_forward_out_norm"):
            self.register_parameter(name, nn.Parameter(torch.ones(width)) if model.sandwich else None)

    @property
    def rotation(self) -> tuple[config.Rope, int] | None:
        """What decides the layer's rotary table."""
        mixer = self.shape.mixer
        return (mixer.rope, mixer.head_dim) if isinstance(mixer, config.Attention) else None


class Backbone(nn.Module):
    """Token ids to hidden states; ``logits(hidden)`` are the output head's.

    Shapes: ``B`` rows, ``T`` positions, ``D`` hidden, ``V`` vocabulary, ``H``/``G`` query/key heads, ``h`` head width.
    """

    output: nn.Parameter | None
    packed_head: Tensor | None = None

    def __init__(self, config: config.ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        layers = nn.ModuleList(Layer(layer, config) for layer in config.layers)
        self.layers: Sequence[Layer] = layers  # type: ignore[assignment]
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))
        shape = (config.vocab_size, config.hidden_size)
        self.register_parameter("output", None if config.tied else nn.Parameter(torch.empty(shape)))

    @property
    def head(self) -> Tensor:
        """``[V, D]``; the embedding where the two are tied."""
        return self.embedding if self.output is None else self.output

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., V]``, in float32 at least."""
        return kernels.logits(hidden, self.head, self.config.logit_softcap, self.packed_head)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """While it lasts, :meth:`step` is faster and the weights, held twice where that helps, must not change."""
        maps = [module for module in self.modules() if isinstance(module, Linear)]
        try:
            for one in maps:
                one.packed = kernels.pack(one.weight)
            self.packed_head = kernels.pack(self.head)
            yield
        finally:
            for one in maps:
                one.packed = None
            self.packed_head = None

    def initialise(self, seed: int) -> None:
        """Draw weights: matrices at ``1/sqrt(fan in)``, those that write to the residual stream scaled down by depth."""
        generator = torch.Generator().manual_seed(seed)
        residual_scale = 1.0 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() < 2:
                    own_norm = name.endswith("mixer.norm")  # of a linear mixer: never stored as an offset
                    parameter.fill_(0.0 if self.config.norm_offset and not own_norm else 1.0)
                    continue
                std = 1.0 / math.sqrt(parameter.shape[1])
                if name.endswith(("out_proj.weight", "down_proj.weight", "feed_forward.down")):
                    std *= residual_scale
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            for layer in self.layers:
                if isinstance(layer.mixer, GatedDelta | GatedLinear):
                    layer.mixer.initialise_rates(generator)

    def rotary(self, positions: Tensor) -> dict[tuple[config.Rope, int] | None, RotaryTable]:
        """One table for every kind of rotation among the layers."""
        shapes = {layer.rotation: layer.shape.mixer for layer in self.layers}
        return {
            key: rotary_table(positions, mixer)
            for key, mixer in shapes.items()
            if key is not None and isinstance(mixer, config.Attention)
        }

    def _embed(self, tokens: Tensor) -> Tensor:
        stream = F.embedding(tokens, self.embedding)
        scale = self.config.embedding_scale
        return stream if scale == 1.0 else stream * torch.tensor(scale, dtype=stream.dtype, device=stream.device)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return kernels.rms_norm(x, multiplier(weight, self.config.norm_offset), self.config.norm_eps)

    def _enter(self, stream: Tensor, update: Tensor | None, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``update`` to the residual stream and normalise the sum."""
        if update is None:
            return stream, self._norm(stream, norm)
        weight = multiplier(norm, self.config.norm_offset)
        return kernels.add_rms_norm(update, stream, weight, self.config.norm_eps)

    def _leave(self, update: Tensor, norm: Tensor | None) -> Tensor:
        """What a mixer or feed-forward hands to the residual stream."""
        return update if norm is None else self._norm(update, norm)

    def through(self, tokens: Tensor, mix: Callable[[Layer, Tensor], Tensor], asked: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, ``mix`` being what a layer's mixer makes of its input.

        Args:
            asked: those of ``tokens [N]`` that alone are asked for; they are all that ``mix`` gives for the last layer.
        """
        stream = self._embed(tokens)
        update: Tensor | None = None
        for layer in self.layers:
            stream, normed = self._enter(stream, update, layer.mixer_norm)
            mixed = mix(layer, normed)
            if asked is not None and layer is self.layers[-1]:  # no later layer asks what it makes of the others
                stream = stream[asked]
            stream, normed = self._enter(stream, self._leave(mixed, layer.mixer_out_norm), layer.feed_forward_norm)
            update = self._leave(layer.feed_forward(normed), layer.feed_forward_out_norm)
        return self._enter(stream, update, self.final_norm)[1]

    def forward(self, tokens: Tensor, documents: Tensor | None = None, first: int = 0) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: ``[B, T]`` integer ids.
            documents: ``[B, T]`` document ids; positions of different documents never see each other.
                Positions count from the row's start: rotation is relative, so a document may begin anywhere.
            first: position of the row's first token, where the row is a part of a longer one.

        Returns:
            ``[B, T, D]`` in the weights' dtype.
        """
        tables = self.rotary(torch.arange(first, first + tokens.shape[1], device=tokens.device))
        return self.through(tokens, lambda layer, x: layer.mixer(x, tables.get(layer.rotation), documents))

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
        rows = Rows(lengths)
        tables = self.rotary(rows.positions)
        states: list[LayerState] = []

        def mix(layer: Layer, x: Tensor) -> Tensor:
            last = layer is self.layers[-1]
            mixed, state = layer.mixer.prefill(x, tables.get(layer.rotation), rows, capacity, last)
            states.append(state)
            return mixed

        return self.through(rows.flat(tokens), mix, rows.ends), DecodeState(states, lengths.clone())

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecodeState) -> Tensor:
        """Read one more id per row: ``tokens [B]`` to hidden states ``[B, D]``; ``state`` moves on by one."""
        tables, states = self.rotary(state.lengths), iter(state.layers)

        def mix(layer: Layer, x: Tensor) -> Tensor:
            return layer.mixer.step(x, tables.get(layer.rotation), state.lengths, next(states))  # type: ignore[arg-type]

        hidden = self.through(tokens, mix)
        state.lengths = state.lengths + 1
        return hidden

    def matrices(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix, by parameter name.

        Projections that share an input are one matrix here but several to an optimiser that looks at singular
        values. Embedding, head, routers, convolution taps and the maps that give decays are not listed.
        """
        return {
            f"layers.{i}.{part}.{name}": rows
            for i, layer in enumerate(self.layers)
            for part, module in (("mixer", layer.mixer), ("feed_forward", layer.feed_forward))
            for name, rows in module.blocks().items()
        }
