"""Checkpoints: Hugging Face ``lfm2`` folders in and out, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, ModelConfig


def to_hf_weights(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Minnow's names and fused matrices to those of transformers' ``Lfm2ForCausalLM``."""
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    out = {"model.embed_tokens.weight": weights["embedding"], "model.embedding_norm.weight": weights["final_norm"]}
    for i, kind in enumerate(config.layer_types):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out[theirs + "operator_norm.weight"] = weights[ours + "mixer_norm"]
        out[theirs + "ffn_norm.weight"] = weights[ours + "feed_forward_norm"]
        gate, up = weights[ours + "feed_forward.gate_up_proj.weight"].chunk(2)
        out[theirs + "feed_forward.w1.weight"] = gate
        out[theirs + "feed_forward.w3.weight"] = up
        out[theirs + "feed_forward.w2.weight"] = weights[ours + "feed_forward.down_proj.weight"]
        if kind == ATTENTION:
            q, k, v = weights[ours + "mixer.qkv_proj.weight"].split([q_rows, kv_rows, kv_rows])
            attention = theirs + "self_attn."
            out |= {attention + "q_proj.weight": q, attention + "k_proj.weight": k, attention + "v_proj.weight": v}
            out[attention + "out_proj.weight"] = weights[ours + "mixer.out_proj.weight"]
            out[attention + "q_layernorm.weight"] = weights[ours + "mixer.q_norm"]
            out[attention + "k_layernorm.weight"] = weights[ours + "mixer.k_norm"]
        else:
            out[theirs + "conv.in_proj.weight"] = weights[ours + "mixer.in_proj.weight"]
            out[theirs + "conv.conv.weight"] = weights[ours + "mixer.conv"][:, None]
            out[theirs + "conv.out_proj.weight"] = weights[ours + "mixer.out_proj.weight"]
    return {name: tensor.detach().contiguous().clone() for name, tensor in out.items()}


def from_hf_weights(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of :func:`to_hf_weights`.

    Raises:
        KeyError: a tensor of the config's shape is missing.
    """
    out = {"embedding": weights["model.embed_tokens.weight"], "final_norm": weights["model.embedding_norm.weight"]}
    for i, kind in enumerate(config.layer_types):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out[ours + "mixer_norm"] = weights[theirs + "operator_norm.weight"]
        out[ours + "feed_forward_norm"] = weights[theirs + "ffn_norm.weight"]
        out[ours + "feed_forward.gate_up_proj.weight"] = torch.cat(
            [weights[theirs + "feed_forward.w1.weight"], weights[theirs + "feed_forward.w3.weight"]]
        )
        out[ours + "feed_forward.down_proj.weight"] = weights[theirs + "feed_forward.w2.weight"]
        if kind == ATTENTION:
            attention = theirs + "self_attn."
            out[ours + "mixer.qkv_proj.weight"] = torch.cat([weights[f"{attention}{p}_proj.weight"] for p in "qkv"])
            out[ours + "mixer.out_proj.weight"] = weights[attention + "out_proj.weight"]
            out[ours + "mixer.q_norm"] = weights[attention + "q_layernorm.weight"]
            out[ours + "mixer.k_norm"] = weights[attention + "k_layernorm.weight"]
        else:
            out[ours + "mixer.in_proj.weight"] = weights[theirs + "conv.in_proj.weight"]
            out[ours + "mixer.conv"] = weights[theirs + "conv.conv.weight"][:, 0]
            out[ours + "mixer.out_proj.weight"] = weights[theirs + "conv.out_proj.weight"]
    return out


def save_checkpoint(
    model: Backbone,
    tokenizer: Tokenizer,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    generation: dict[str, Any] | None = None,
) -> None:
    """Write a folder that transformers, Minnow and the exporters open.

    Args:
        weights: the model's tensors by Minnow's names (fp32 masters) where they differ from the model's own.
        generation: entries for ``generation_config.json``.

    Raises:
        UserError: the disk is full; an earlier checkpoint in ``folder`` stays as it was.
    """
    config = model.config
    tensors = to_hf_weights(weights or dict(model.named_parameters()), config)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    with whole_folder(folder) as temporary:
        try:
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        write_json(temporary / "config.json", config.to_hf())
        write_json(
            temporary / "generation_config.json",
            {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
            | (generation or {}),
        )
        tokenizer.save(temporary)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """Read the network of a checkpoint folder.

    Raises:
        UserError: a missing or damaged file, or a shape that contradicts ``config.json``.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a checkpoint folder; give a folder with config.json and model.safetensors")
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file; give a complete checkpoint folder")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or cut short ({error}); restore it or train the stage again") from error
    model = Backbone(config)
    try:
        ours = from_hf_weights(weights, config)
        known = to_hf_weights({name: tensor.to("meta") for name, tensor in ours.items()}, config)
        unknown = weights.keys() - known.keys() - {"lm_head.weight"}  # some writers repeat the tied embedding
        if unknown:
            raise KeyError(f"no place for {min(unknown)}")
        model.load_state_dict(ours)
    except (KeyError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: the weights do not fit config.json ({reason}); restore the folder") from error
    return model.to(dtype)


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Backbone, Tokenizer]:
    """Read network and tokenizer of a checkpoint folder.

    Raises:
        UserError: as :func:`load_model`; or the tokenizer has more ids than the embedding has rows.
    """
    model = load_model(folder, dtype)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids but the embedding {model.config.vocab_size} rows; "
            "this tokenizer belongs to another checkpoint, put the right tokenizer.json back"
        )
    return model, tokenizer
