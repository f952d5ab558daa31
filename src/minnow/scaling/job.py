"""A training to be planned: the job, and the mesh of ranks that shares it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal

import torch

from minnow.model.accounting import flops_per_token, parameter_parts
from minnow.model.backbone import Backbone
from minnow.model.config import FeedForward, LayerConfig, Mixer, ModelConfig
from minnow.model.inventory import part_tensors
from minnow.train.optimizer import muon_cost

Part = Mixer | FeedForward

Kind = Literal["gather", "reduce", "all-reduce", "exchange"]
"""Of collectives: all-gather, reduce-scatter, all-reduce, all-to-all."""


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        length: tokens of a row.
        rows: of a step, over all ranks.
        tokens: in all.
        muon: for the matrices; AdamW for the rest, or for all.
    """

    config: ModelConfig
    length: int
    rows: int
    tokens: float
    muon: bool

    @cached_property
    def layers(self) -> Counter[LayerConfig]:
        """How many there are of each kind."""
        return Counter(self.config.layers)

    @cached_property
    def parts(self) -> Counter[Part]:
        """How many there are of each kind of mixer and feed-forward."""
        return Counter(part for layer in self.config.layers for part in (layer.mixer, layer.feed_forward))

    @cached_property
    def units(self) -> list[tuple[int, int]]:
        """Parameters that are gathered together, by layer: those that all ranks share, and the experts'."""
        return [self.unit(layer) for layer in self.config.layers]

    def unit(self, layer: LayerConfig) -> tuple[int, int]:
        """One of :attr:`units`."""
        tensors = [*part_tensors(layer.mixer, self.config.hidden_size)]
        tensors += part_tensors(layer.feed_forward, self.config.hidden_size)
        experts = sum(tensor.parameters for tensor in tensors if tensor.part == "experts")
        return sum(tensor.parameters for tensor in tensors) - experts, experts

    @cached_property
    def parameters(self) -> int:
        return sum(parameter_parts(self.config).values())

    @cached_property
    def root(self) -> int:
        """Parameters outside the layers' units: embedding, head and norms."""
        return self.parameters - sum(map(sum, self.units))

    @cached_property
    def orthogonal(self) -> tuple[int, float]:
        """Parameters that Muon takes, and the FLOPs of one update of them; none where AdamW takes all."""
        if not self.muon:
            return 0, 0.0
        with torch.device("meta"):
            model = Backbone(self.config)
        named = dict(model.named_parameters())
        matrices = sum(weight.numel() for weight in named.values() if weight.dim() >= 2)
        return sum(named[name].numel() for name in model.matrices()), muon_cost(model, 1) * 6 * matrices

    @cached_property
    def flops(self) -> float:
        """Of training, per token."""
        return flops_per_token(self.config, self.length / 2)


@dataclass(frozen=True)
class Mesh:
    """How the ranks share the work.

    Attributes:
        shard: ranks that hold one copy of the weights between them.
        expert: of these, ranks over which whole experts are dealt out.
        context: ranks that share the same rows, each a part of the positions.
        rows: that go through the model at once, on the ranks that share them.
        checkpointing: mixers and feed-forwards are computed again going back.
    """

    ranks: int
    per_node: int
    shard: int
    expert: int = 1
    context: int = 1
    rows: int = 1
    checkpointing: bool = False

    @property
    def copies(self) -> int:
        """Of the weights."""
        return self.ranks // self.shard

    def passes(self, rows: int) -> int:
        """Forward and backward, that a rank makes in a step of ``rows`` rows."""
        return ceil(ceil(rows * self.context / self.ranks) / self.rows)

    def group(self, ranks: int, stride: int = 1) -> Group:
        """``ranks`` ranks that lie ``stride`` apart."""
        return Group(ranks, min(ranks, max(1, self.per_node // stride)))


@dataclass(frozen=True)
class Group:
    """Ranks that communicate; ``inside`` of them on each node."""

    ranks: int
    inside: int
