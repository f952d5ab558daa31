"""Minnow's own form, for mixtures of mixers that no other family has words for; only Minnow opens it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    RopeScaling,
    ShortConv,
)
from minnow.model.families import slots
from minnow.model.families.slots import Slot

_FORMS: dict[str, type[Any]] = {
    form.__name__: form for form in (Attention, ShortConv, GatedDelta, GatedLinear, Dense, Experts)
}


def _named(part: Mixer | FeedForward) -> dict[str, Any]:
    return {"form": type(part).__name__, **asdict(part)}


def _part(written: Mapping[str, Any]) -> Any:
    values = dict(written)
    form = _FORMS[values.pop("form")]
    if "rope" in values:
        rope = dict(values["rope"])
        scaling = rope.pop("scaling")
        values["rope"] = Rope(**rope, scaling=None if scaling is None else RopeScaling(**scaling))
    return form(**values)


def write(config: ModelConfig) -> dict[str, Any]:
    layers = [{"mixer": _named(layer.mixer), "feed_forward": _named(layer.feed_forward)} for layer in config.layers]
    return {"architectures": ["MinnowForCausalLM"], "model_type": "minnow", "dtype": "float32"} | (
        {key: value for key, value in vars(config).items() if key != "family"} | {"layers": layers}
    )


def read(config: Mapping[str, Any]) -> ModelConfig:
    values = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "dtype")}
    layers = (LayerConfig(_part(layer["mixer"]), _part(layer["feed_forward"])) for layer in values.pop("layers"))
    return ModelConfig("minnow", layers=tuple(layers), **values)


def tensors(config: ModelConfig) -> Iterator[Slot]:
    from minnow.model.backbone import Backbone

    with torch.device("meta"):
        names = Backbone(config).state_dict()
    return (slots.same(name, name) for name in names)
