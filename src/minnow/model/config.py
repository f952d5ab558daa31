"""The shape of a decoder: for every layer its mixer and its feed-forward, and what surrounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minnow.errors import UserError

CONV = "conv"
ATTENTION = "full_attention"
SLIDING = "sliding_attention"
DELTA = "gated_delta"
LINEAR = "gated_linear"

Activation = Literal["silu", "gelu"]


@dataclass(frozen=True)
class RopeScaling:
    """Longer wavelengths for longer contexts.

    Attributes:
        kind: ``"linear"`` divides every frequency by ``factor``; ``"llama3"`` only the slow ones, with a smooth step
            between ``high`` and ``low`` turns over the ``original`` context.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings (arXiv 2104.09864).

    Attributes:
        share: part of each head that turns.
        proportional: where ``share < 1``, False turns the head's first dimensions as a smaller head of their own;
            True turns the fastest frequencies of the whole head and leaves the slow ones still (LFM3).
    """

    theta: float
    share: float = 1.0
    proportional: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention.

    Attributes:
        window: positions a query sees, itself included; None for all.
        qk_norm: RMS norm of every query and key head before rotation.
        output_gate: sigmoid gate on the heads' outputs from the layer's input: one number per ``"head"`` (LFM3) or per
            ``"element"`` (Qwen3.5).
        scale: of the scores; None for ``head_dim ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    window: int | None = None
    qk_norm: bool = True
    output_gate: Literal["head", "element"] | None = None
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads cannot share {self.kv_heads} key/value heads; "
                "choose num_heads as a multiple of num_kv_heads"
            )
        if self.head_dim % 2 or self.rotary_dim % 2:
            odd = self.head_dim if self.head_dim % 2 else self.rotary_dim
            raise UserError(f"head_dim is {odd}; rotary embeddings need an even number")
        if self.window is not None and self.window < 1:
            raise UserError(f"window is {self.window}; a query needs to see at least itself, choose 1 or more")

    @property
    def rotary_dim(self) -> int:
        """Width of the part of a head that the rotary table spans."""
        return self.head_dim if self.rope.proportional else int(self.head_dim * self.rope.share)

    @property
    def kind(self) -> str:
        return ATTENTION if self.window is None else SLIDING


@dataclass(frozen=True)
class ShortConv:
    """LFM2's gated short convolution (arXiv 2511.23404): ``kernel`` taps, as wide as the residual stream."""

    kernel: int = 3

    @property
    def kind(self) -> str:
        return CONV


@dataclass(frozen=True)
class GatedDelta:
    """Gated delta net (arXiv 2412.06464) in Qwen3.5's form: convolution before, gated norm after.

    Attributes:
        key_dim, value_dim: of one head.
        kernel: taps of the convolution over queries, keys and values.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4

    def __post_init__(self) -> None:
        if self.value_heads % self.key_heads:
            raise UserError(
                f"{self.value_heads} value heads cannot share {self.key_heads} key heads; "
                "choose value_heads as a multiple of key_heads"
            )

    @property
    def kind(self) -> str:
        return DELTA


@dataclass(frozen=True)
class GatedLinear:
    """Gated linear attention (arXiv 2312.06635).

    Attributes:
        key_dim, value_dim: of one head.
        gate_rank: width of the low-rank map that gives the decay of every key dimension.
        temperature: the decay is ``sigmoid(gate) ** (1 / temperature)``.
    """

    heads: int
    key_dim: int
    value_dim: int
    gate_rank: int = 16
    temperature: float = 16.0

    @property
    def kind(self) -> str:
        return LINEAR


Mixer = Attention | ShortConv | GatedDelta | GatedLinear


@dataclass(frozen=True)
class Dense:
    """``down(activation(gate(x)) * up(x))``: SwiGLU, or GeGLU with the tanh form of gelu."""

    width: int
    activation: Activation = "silu"


@dataclass(frozen=True)
class Experts:
    """Mixture of experts with a sigmoid router, in LFM2-MoE's form.

    Attributes:
        active: experts that each token goes to.
        width: of one expert.
        normalise: the chosen experts' weights are divided by their sum, and multiplied by ``scale``.
        selection_bias: a number per expert that is added for the choice and not for the weight.
    """

    experts: int
    active: int
    width: int
    activation: Activation = "silu"
    normalise: bool = True
    scale: float = 1.0
    selection_bias: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise UserError(
                f"{self.active} of {self.experts} experts cannot be active; choose between 1 and {self.experts}"
            )


FeedForward = Dense | Experts


@dataclass(frozen=True)
class LayerConfig:
    """One layer: what mixes positions, and what transforms each."""

    mixer: Mixer
    feed_forward: FeedForward


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder.

    Attributes:
        family: whose checkpoint format it is written in, a name in :data:`minnow.model.families.FAMILIES`.
        norm_offset: norms multiply by ``1 + weight``; else by ``weight``.
        sandwich: a norm after each mixer and feed-forward too, before the residual stream takes them.
        tied: the output head is the embedding.
        embedding_scale: multiplies embeddings on their way in.
        logit_softcap: logits become ``logit_softcap * tanh(logits / logit_softcap)``.
        pad_id, bos_id: None where the family has none.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-5
    norm_offset: bool = False
    sandwich: bool = False
    tied: bool = True
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    max_positions: int = 128_000
    pad_id: int | None = 0
    bos_id: int | None = 1
    eos_id: int = 7

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Kind of each layer's mixer: :data:`CONV`, :data:`ATTENTION`, :data:`SLIDING`, …"""
        return tuple(layer.mixer.kind for layer in self.layers)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read the ``config.json`` of any family.

        Raises:
            UserError: another model type, a key that is missing, or a form this backbone does not compute.
        """
        from minnow.model.families import read_config

        return read_config(config)

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` of its family, as transformers and the runtimes beside it read it.

        Raises:
            UserError: the family has no words for some layer.
        """
        from minnow.model.families import FAMILIES

        return FAMILIES[self.family].write(self)
