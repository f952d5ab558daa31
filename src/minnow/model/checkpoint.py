"""Checkpoints: Hugging Face folders in and out, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minnow.data.tokenizer import FILES, Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.model.adapter import base_folder, is_adapter, load_adapter, merge
from minnow.model.backbone import Backbone
from minnow.model.config import ModelConfig
from minnow.model.families import FAMILIES
from minnow.model.foreign import ForeignModel, is_foreign
from minnow.model.language_model import LanguageModel
from minnow.model.tensor_files import WEIGHTS_INDEX, shards, write_index

SHARD_BYTES = 5 * 10**9
"""The most bytes of tensors in one file."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def to_hf_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Minnow's names and fused matrices to those of the family's checkpoints."""
    return {
        name: part.detach().contiguous().clone()
        for slot in FAMILIES[config.family].tensors(config)
        for name, part in zip(slot.theirs, slot.split(weights[slot.ours]), strict=True)
    }


def from_hf_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of :func:`to_hf_weights`.

    Raises:
        KeyError: a tensor of the config's shape is missing.
    """
    return {
        slot.ours: slot.join([weights[name] for name in slot.theirs])
        for slot in FAMILIES[config.family].tensors(config)
    }


def save_model(
    model: LanguageModel,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``config.json`` and the tensors into a folder that is there, in several files where they are many.

    Args:
        weights: the model's tensors by Minnow's names (fp32 masters) where they differ from the model's own.
        dtype: of the file; None for each tensor's own.

    Raises:
        UserError: the model's shape is not one of its family's.
    """
    if isinstance(model, ForeignModel):
        model.save(folder, weights or {}, dtype, shard_bytes)
        return
    settings = model.config.to_hf()
    tensors = to_hf_weights(model.state_dict() | dict(weights or {}), model.config)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    settings["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")  # the embedding comes first
    write_json(folder / "config.json", settings)
    files = shards(tensors, shard_bytes)
    for file, shard in files.items():
        try:
            save_file(shard, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    write_index(folder, files)


def save_checkpoint(
    model: LanguageModel,
    tokenizer: Tokenizer | Path,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Write a folder that transformers, Minnow and the exporters open.

    Args:
        tokenizer: or the checkpoint folder whose tokenizer, chat template and generation config are to be kept.
        weights: the model's tensors by Minnow's names (fp32 masters) where they differ from the model's own.
        dtype: of the file; None for each tensor's own.

    Raises:
        UserError: the disk is full; an earlier checkpoint in ``folder`` stays as it was.
    """
    config = model.config
    settings = {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    settings = {name: value for name, value in settings.items() if value is not None}
    with whole_folder(folder) as temporary:
        save_model(model, temporary, weights, dtype)
        if isinstance(tokenizer, Path):
            for file in sorted({file for pattern in FILES for file in tokenizer.glob(pattern)}):
                if file.is_file():
                    shutil.copyfile(file, temporary / file.name)
            kept = tokenizer / "generation_config.json"
            settings |= read_json(kept) if kept.exists() else {}
        else:
            tokenizer.save(temporary)
            settings |= tokenizer.generation
        write_json(temporary / "generation_config.json", settings)


def load_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> LanguageModel:
    """Read the network of a checkpoint folder, of a family or of any other causal language model of transformers.

    A folder of a LoRA adapter gives its base model with the adapter added.

    Args:
        dtype: to compute in; None keeps every tensor as it is stored (without a family: the type ``config.json`` names).

    Raises:
        UserError: a missing or damaged file, a model type that is not known, pickled weights, or a tensor that is
            missing, surplus or of another shape than ``config.json`` says.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a checkpoint folder; give a folder with config.json and model.safetensors")
    if is_adapter(folder):
        adapted = load_model(base_folder(folder), None)
        merge(adapted, load_adapter(folder))
        return adapted if dtype is None else adapted.to(dtype)
    settings = read_json(folder / "config.json")
    if is_foreign(settings):
        _Stored(folder)  # what transformers would say less clearly: pickles, missing and damaged files
        return ForeignModel.load(folder, dtype)
    config = ModelConfig.from_hf(settings)
    family, stored = FAMILIES[config.family], _Stored(folder)
    places = {plain: name for name in stored.files if (plain := family.name(name)) is not None}
    with torch.device("meta"):
        model = Backbone(config)
    empty, ours = model.state_dict(), {}
    try:
        slots = list(family.tensors(config))
        surplus = places.keys() - {name for slot in slots for name in slot.theirs}
        surplus -= {"lm_head.weight"}  # some writers repeat the tied embedding
        for slot in slots:
            parts = []
            for name, part in zip(slot.theirs, slot.split(empty[slot.ours]), strict=True):
                if name not in places:
                    raise _MisfitError(f"it lacks {name}")
                tensor = stored.read(places[name])
                if tensor.shape != part.shape:
                    raise _MisfitError(f"{name} is {list(tensor.shape)} and not {list(part.shape)}")
                parts.append(tensor)
            ours[slot.ours] = slot.join(parts)
        if surplus:
            raise _MisfitError(f"there is no place for {min(surplus)}")
    except _MisfitError as error:
        raise UserError(f"{folder}: the weights do not fit config.json ({error}); restore the folder") from error
    model.load_state_dict(ours, assign=True)
    return model if dtype is None else model.to(dtype)


class _MisfitError(Exception):
    """A tensor that contradicts ``config.json``."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's index names, or all of them where there is no index.

    Raises:
        UserError: one of them is missing, or there is none.
    """
    if (folder / WEIGHTS_INDEX).exists():
        places = read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(places, dict):
            raise UserError(f"{folder / WEIGHTS_INDEX} has no weight_map; restore it")
        paths = [folder / name for name in sorted(set(places.values()))]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise UserError(f"{missing} is missing, though {WEIGHTS_INDEX} names it; give a complete checkpoint folder")
        return paths
    if files := sorted(folder.glob("*.safetensors")):
        return files
    pickled = next((file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))), None)
    if pickled is not None:
        raise UserError(
            f"{folder} holds its weights as a pickle ({pickled}), and opening one runs whatever code is in it; "
            "save the model again as safetensors"
        )
    raise UserError(f"{folder} holds no .safetensors file; give a complete checkpoint folder")


class _Stored:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._open: dict[Path, Any] = {}
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            try:
                self._open[path] = safe_open(path, framework="pt")
                self.files |= dict.fromkeys(self._open[path].keys(), path)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is damaged or cut short ({error}); restore it or train the stage again"
                ) from error

    def read(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            return self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or cut short ({error}); restore it") from error


def load_checkpoint(folder: Path, dtype: torch.dtype | None = torch.float32) -> tuple[LanguageModel, Tokenizer]:
    """Read network and tokenizer of a checkpoint folder.

    Raises:
        UserError: as :func:`load_model`; or the tokenizer has more ids than the embedding has rows.
    """
    model = load_model(folder, dtype)
    adapter_only = is_adapter(folder) and not (folder / "tokenizer.json").exists()
    tokenizer = Tokenizer.load(base_folder(folder) if adapter_only else folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids but the embedding {model.config.vocab_size} rows; "
            "this tokenizer belongs to another checkpoint, put the right tokenizer.json back"
        )
    return model, tokenizer


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint folder's weights, an adapter's base included."""
    digest = hashlib.sha256(weights_digest(base_folder(folder)).encode() if is_adapter(folder) else b"")
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
