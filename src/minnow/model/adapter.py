"""Low-rank adapters (LoRA, arXiv 2106.09685) in PEFT's folders: ``adapter_config.json``, ``adapter_model.safetensors``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.model.families import FAMILIES
from minnow.model.families.slots import Slot, same
from minnow.model.foreign import ForeignModel
from minnow.model.language_model import LanguageModel

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# What changes the maps beyond ``W + scale * B A`` when it is set to anything else.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "alpha_pattern": ({}, None),
    "rank_pattern": ({}, None),
    "modules_to_save": ([], None),
    "target_parameters": ([], None),
    "trainable_token_indices": ([], {}, None),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class Adapter:
    """``scale * B A`` for each adapted matrix, ``A [rank, inputs]`` and ``B [outputs, rank]`` by checkpoint tensor name."""

    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]
    rank_stabilised: bool = False

    @property
    def rank(self) -> int:
        return len(next(iter(self.factors.values()))[0])

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def updates(self, slot: Slot, whole: Tensor) -> Tensor:
        """What is added to a tensor of the shape of ``whole``, float32."""
        parts = []
        for name, part in zip(slot.theirs, slot.split(whole), strict=True):
            if name in self.factors:
                a, b = self.factors[name]
                parts.append(self.scale * (b.float() @ a.float()))
            else:
                parts.append(torch.zeros_like(part, dtype=torch.float32))
        return slot.join(parts)


def adaptable(model: LanguageModel) -> list[Slot]:
    """The linear maps of a model, by its own names and by those of its checkpoint; experts are not among them.

    transformers holds all experts of a layer in one tensor, which PEFT adapts in another way.
    """
    names = model.matrices()
    if isinstance(model, ForeignModel):
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        return [same(name, name.removeprefix("network.")) for name in names if name in linear]
    return [
        slot
        for slot in FAMILIES[model.config.family].tensors(model.config)
        if slot.ours in names and not any(".experts." in name for name in slot.theirs)
    ]


def module_name(tensor: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``: what PEFT calls a target module."""
    return tensor.removesuffix(".weight").rpartition(".")[2]


@torch.no_grad()
def merge(model: LanguageModel, adapter: Adapter) -> None:
    """Add an adapter to a model's weights.

    Raises:
        UserError: it adapts what the model does not have, or matrices of another shape.
    """
    weights = dict(model.named_parameters())
    slots = adaptable(model)
    shapes = {
        name: tuple(part.shape)
        for slot in slots
        for name, part in zip(slot.theirs, slot.split(weights[slot.ours]), strict=True)
    }
    for name, (a, b) in adapter.factors.items():
        shape = (len(b), a.shape[1])
        if shapes.get(name) != shape:
            found = f"has {shapes[name]} there" if name in shapes else "has no such linear map"
            raise UserError(
                f"the adapter changes {name} of shape {shape}, and the model {found}; use the base model that the adapter "
                "was trained on"
            )
    for slot in slots:
        if adapter.factors.keys() & set(slot.theirs):
            whole = weights[slot.ours]
            whole.copy_(whole.float() + adapter.updates(slot, whole))


def save_adapter(folder: Path, adapter: Adapter, base: str) -> None:
    """Write what ``PeftModel.from_pretrained`` opens on top of the checkpoint ``base``; appears whole or not at all."""
    with whole_folder(folder) as temporary:
        tensors = {
            f"{_PREFIX}{name.removesuffix('.weight')}.lora_{side}.weight": factor.detach().float().contiguous().clone()
            for name, pair in adapter.factors.items()
            for side, factor in zip("AB", pair, strict=True)
        }
        try:
            save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "use_rslora": adapter.rank_stabilised,
            "target_modules": sorted({name.removesuffix(".weight") for name in adapter.factors}),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_dropout": 0.0,
        }
        write_json(temporary / CONFIG, settings)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def base_folder(folder: Path) -> Path:
    """The checkpoint folder under an adapter.

    Raises:
        UserError: it is not on this disk.
    """
    named = str(read_json(folder / CONFIG).get("base_model_name_or_path"))
    if not Path(named).is_dir():
        raise UserError(
            f"{folder} is an adapter for the base model {named!r}, which is not a folder here; download it and name it as "
            f"base_model_name_or_path in {folder / CONFIG}"
        )
    return Path(named)


def load_adapter(folder: Path) -> Adapter:
    """An adapter that PEFT or :func:`save_adapter` wrote.

    Raises:
        UserError: a missing or damaged file, or an adapter that is more than low-rank updates of linear maps.
    """
    settings = read_json(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise UserError(
                f"{folder}: the adapter has {key}: {settings[key]!r}, which Minnow does not add to weights; merge it "
                "with peft (merge_and_unload) and use the merged checkpoint"
            )
    try:
        stored = load_file(folder / _WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{folder} lacks {_WEIGHTS}; give the complete adapter folder") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / _WEIGHTS} is damaged or cut short ({error}); restore it") from error
    try:
        factors = dict(_paired(stored))
        return Adapter(float(settings["lora_alpha"]), factors, bool(settings.get("use_rslora")))
    except KeyError as error:
        raise UserError(f"{folder} is no complete LoRA adapter (it lacks {error}); restore it") from error


def _paired(stored: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    names = dict.fromkeys(name.rpartition(".lora_")[0] for name in stored)
    for name in names:
        pair = (stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"])
        yield f"{name.removeprefix(_PREFIX)}.weight", pair
