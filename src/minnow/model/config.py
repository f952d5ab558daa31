"""The shape of an LFM2 model, as Minnow and as Hugging Face write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minnow.errors import UserError

CONV = "conv"
ATTENTION = "full_attention"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder in the LFM2 form (arXiv 2511.23404; transformers ``Lfm2Config``).

    Attributes:
        layer_types: mixer of each layer, ``"conv"`` or ``"full_attention"``.
        intermediate_size: width of the SwiGLU feed-forward as it is, never adjusted.
        conv_kernel: taps of the causal depthwise convolution (``conv_L_cache``).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    conv_kernel: int = 3
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_positions: int = 128_000
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 7

    def __post_init__(self) -> None:
        unknown = set(self.layer_types) - {CONV, ATTENTION}
        if unknown:
            raise UserError(f"unknown mixer {min(unknown)!r}; the mixers are {CONV!r} and {ATTENTION!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads; "
                "choose num_heads as a multiple of num_kv_heads"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        if self.num_heads * self.head_dim != self.hidden_size:
            raise UserError(
                f"{self.num_heads} heads of {self.head_dim} make {self.num_heads * self.head_dim}, not the hidden size "
                f"{self.hidden_size}; an LFM2 checkpoint needs num_heads * head_dim = hidden_size"
            )

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face ``lfm2`` config, the auto-adjusted feed-forward width and older key names included.

        Raises:
            UserError: another model type, or a form of LFM2 this backbone does not compute.
        """
        if not isinstance(config, Mapping) or config.get("model_type") != "lfm2":
            kind = config.get("model_type") if isinstance(config, Mapping) else type(config).__name__
            raise UserError(
                f"model_type is {kind!r}; Minnow's backbone reads 'lfm2' checkpoints, "
                "convert the model or choose another one"
            )
        try:
            return cls._read(config)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"config.json is not a complete 'lfm2' config ({reason}); restore the file") from error

    @classmethod
    def _read(cls, config: Mapping[str, Any]) -> ModelConfig:
        if config.get("conv_bias"):
            raise UserError("conv_bias is set; no published LFM2 uses it and Minnow does not compute it")
        if not config.get("tie_embedding", config.get("tie_word_embeddings", True)):
            raise UserError("the output head is not tied to the embedding; no published LFM2 does so, choose another")
        hidden = int(config["hidden_size"])
        width = int(config.get("block_ff_dim") or config["intermediate_size"])
        if config.get("block_auto_adjust_ff_dim", True):
            width = int(2 * width / 3)
            multiplier = config.get("block_ffn_dim_multiplier", 1.0)
            if multiplier is not None:  # transformers rounds only where there is a multiplier
                multiple = int(config.get("block_multiple_of", 256))
                width = multiple * -(-int(float(multiplier) * width) // multiple)
        layer_types = config.get("layer_types")
        if layer_types is None:
            attention = config.get("full_attn_idxs")
            every = range(int(config["num_hidden_layers"]))
            layer_types = [ATTENTION if attention is None or i in attention else CONV for i in every]
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"rope_type {rope['rope_type']!r} is not an LFM2 form; only 'default' is computed")
        heads = int(config["num_attention_heads"])
        eos = config.get("eos_token_id", 7)
        pad, bos = config.get("pad_token_id"), config.get("bos_token_id")
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=width,
            layer_types=tuple(layer_types),
            num_heads=heads,
            num_kv_heads=int(config["num_key_value_heads"]),
            head_dim=hidden // heads,
            conv_kernel=int(config.get("conv_L_cache", 3)),
            norm_eps=float(config.get("norm_eps", 1e-5)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 1e6))),
            max_positions=int(config.get("max_position_embeddings", 128_000)),
            pad_id=0 if pad is None else int(pad),
            bos_id=1 if bos is None else int(bos),
            eos_id=int(eos[0] if isinstance(eos, list) else eos),
        )

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers, llama.cpp's and MLX's readers expect (``block_dim`` is for MLX)."""
        return {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": "lfm2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "block_dim": self.hidden_size,
            "conv_dim": self.hidden_size,
            "conv_dim_out": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "block_ff_dim": self.intermediate_size,
            "block_auto_adjust_ff_dim": False,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "layer_types": list(self.layer_types),
            "full_attn_idxs": [i for i, kind in enumerate(self.layer_types) if kind == ATTENTION],
            "conv_L_cache": self.conv_kernel,
            "conv_bias": False,
            "norm_eps": self.norm_eps,
            "block_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": True,
            "tie_embedding": True,
            "pad_token_id": self.pad_id,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            "use_cache": True,
            "dtype": "float32",
        }
