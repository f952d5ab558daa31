"""Parts of ``config.json`` that the families share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from minnow.errors import UserError
from minnow.model.config import Attention, Mixer, ModelConfig, Rope, RopeScaling

T = TypeVar("T")


def read_rope(parameters: Mapping[str, Any], theta: float, share: float = 1.0) -> Rope:
    """Of ``rope_parameters``, or the older ``rope_scaling``.

    Args:
        theta, share: where the parameters do not say.

    Raises:
        UserError: a kind of rotation that is not computed.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters.get("rope_theta") or theta)
    share = float(parameters.get("partial_rotary_factor", share))
    if kind == "default":
        return Rope(theta, share)
    if kind == "proportional" and float(parameters.get("factor", 1.0)) == 1.0:
        return Rope(theta, share, proportional=share < 1)
    if kind == "linear":
        return Rope(theta, share, scaling=RopeScaling("linear", float(parameters["factor"])))
    if kind == "llama3":
        factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        original = int(parameters["original_max_position_embeddings"])
        return Rope(theta, share, scaling=RopeScaling("llama3", factor, low, high, original))
    raise UserError(
        f"rope_type {kind!r} is not computed; use a checkpoint with 'default', 'linear' or 'llama3' rotation"
    )


def older_rope(config: Mapping[str, Any], theta: float, share: float = 1.0) -> Rope:
    """The one rotation of a config: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` beside each other."""
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    share = float(config.get("partial_rotary_factor", share))
    return read_rope(parameters, float(config.get("rope_theta") or theta), share)


def write_rope(rope: Rope) -> dict[str, Any]:
    """``rope_parameters`` as transformers reads them."""
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.share != 1.0:
        written["partial_rotary_factor"] = rope.share
    if rope.proportional:
        written["rope_type"] = "proportional"
    scaling = rope.scaling
    if scaling is not None:
        written |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        written |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return written


def write_scaling(rope: Rope) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` beside ``rope_parameters``, for readers older than those."""
    scaling = {key: value for key, value in write_rope(rope).items() if key != "rope_theta"}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling if rope.scaling else None,
        "rope_parameters": write_rope(rope),
    }


def common(config: Mapping[str, Any], eps: str = "rms_norm_eps", tied: bool = False) -> dict[str, Any]:
    """What every family says alike, as keywords of :class:`ModelConfig`; ``tied`` where the config does not say."""
    ids = {name: config.get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    eos = ids["eos"][0] if isinstance(ids["eos"], list) else ids["eos"]
    return {
        "vocab_size": int(config["vocab_size"]),
        "hidden_size": int(config["hidden_size"]),
        "norm_eps": float(config.get(eps, 1e-6)),
        "tied": bool(config.get("tie_word_embeddings", tied)),
        "max_positions": int(config["max_position_embeddings"]),
        "pad_id": None if ids["pad"] is None else int(ids["pad"]),
        "bos_id": None if ids["bos"] is None else int(ids["bos"]),
        "eos_id": 0 if eos is None else int(eos),
    }


def write_common(config: ModelConfig, architecture: str, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """The inverse of :func:`common`."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        eps: config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "use_cache": True,
        "dtype": "float32",
    }


def refuse(config: Mapping[str, Any], **allowed: Any) -> None:
    """Raise UserError where a key is there with another value than the one this backbone computes."""
    for key, value in allowed.items():
        given = config.get(key)
        if given is not None and given != value:
            raise UserError(f"{key} is {given!r}; Minnow computes {value!r} only, choose a checkpoint that has it so")


def only(values: Iterable[T], what: str, family: str) -> T:
    """The one value that a family's config has room for.

    Raises:
        UserError: layers that differ in it, or none has it.
    """
    different = set(values)
    if len(different) != 1:
        problem = "differ in" if different else "do not have"
        raise UserError(f"the layers {problem} {what}, and a {family!r} checkpoint has one; use the family 'minnow'")
    return different.pop()


def expect(config: ModelConfig, *mixers: type[Mixer], norm_offset: bool = False, sandwich: bool = False) -> None:
    """Raise UserError where a family has no words for the config's mixers or norms."""
    wrong = next((layer.mixer.kind for layer in config.layers if not isinstance(layer.mixer, mixers)), None)
    if config.norm_offset != norm_offset:
        wrong = f"norm_offset={config.norm_offset}"
    if config.sandwich != sandwich:
        wrong = f"sandwich={config.sandwich}"
    if wrong:
        raise UserError(f"a {config.family!r} checkpoint has no {wrong}; use the family 'minnow'")


def attentions(config: ModelConfig) -> list[Attention]:
    """The attention layers' shapes."""
    return [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
