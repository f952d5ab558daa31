"""``minnow inspect``: where the parameters sit and what they cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, columns, emit, size_text
from minnow.errors import UserError
from minnow.files import read_json
from minnow.model.accounting import accounting
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.model.presets import PRESETS
from minnow.model.references import REFERENCES
from minnow.progress import quantity
from minnow.recipe.mapping import nearest


def inspect(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    context: tuple[int, ...] = (4096, 32_768),
    as_json: AsJson = False,
) -> None:
    """Show a model's parameters by part, the embedding's share, and bytes of weights and of decode state.

    Args:
        model: a checkpoint folder, a stage or run folder, or a published model by name, such as LFM2-350M.
        context: context lengths, in tokens, to give the decode state and the FLOPs per token for.
    """
    if min(context, default=1) < 1:
        raise UserError(f"a context of {min(context)} tokens holds nothing; use lengths of at least 1")
    config, source = _config(model)
    document = describe(config, context) | {"model": model, "source": source}
    emit(document, _text(document), as_json)


def _config(name: str) -> tuple[ModelConfig, str]:
    """The shape of a preset or of a checkpoint, and where it came from."""
    path = Path(name)
    if not path.exists() and len(path.parts) == 1:
        # Every published name is in capitals, so small letters mean the same.
        if name.upper() in PRESETS:
            return PRESETS[name.upper()], "preset"
        raise UserError(f"{name} is neither a folder nor a published model; {nearest(name.upper(), PRESETS)}")
    folder = resolve_model(path)
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    stored, counted = _stored_parameters(folder), accounting(config)["total"]
    if stored != counted:
        raise UserError(
            f"{folder} holds {stored:,} parameters but its config.json describes {counted:,}; restore the folder"
        )
    return config, str(folder)


def _stored_parameters(folder: Path) -> int:
    """Parameters in the weight files, from their headers; a tied head that was written twice counts once."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file; give a complete checkpoint folder")
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or cut short ({error}); restore it or train the stage again") from error
    shapes.pop("lm_head.weight", None)
    return sum(math.prod(shape) for shape in shapes.values())


def describe(config: ModelConfig, contexts: tuple[int, ...]) -> dict[str, Any]:
    """The accounting of a model with the embedding's share over several denominators, beside published models."""
    numbers = accounting(config, contexts)
    embedding, total = numbers["parts"]["embedding"], numbers["total"]
    return {
        "parameters": total,
        "parts": numbers["parts"],
        "shares": numbers["shares"],
        "embedding": {
            "parameters": embedding,
            "share": embedding / total,
            "share_with_untied_head": 2 * embedding / (total + embedding),
        },
        "shape": {
            "layers": config.num_layers,
            "conv_layers": config.layer_types.count(CONV),
            "attention_layers": config.layer_types.count(ATTENTION),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_positions": config.max_positions,
        },
        "training_flops_per_token": numbers["flops_per_token"],
        "weight_bytes": numbers["weight_bytes"],
        "state_bytes": {
            length: {**parts, "total": sum(parts.values())} for length, parts in numbers["state_bytes"].items()
        },
        "comparison": [
            {
                "name": other.name,
                "parameters": other.total,
                "embedding": other.parts["embedding"],
                "embedding_share": other.parts["embedding"] / other.total,
                "shares": {part: count / other.total for part, count in other.parts.items()},
                "checkpoint_parameters": other.checkpoint,
                "embedding_share_of_checkpoint": (
                    other.parts["embedding"] / other.checkpoint if other.checkpoint else None
                ),
            }
            for other in REFERENCES
        ],
    }


def _text(document: dict[str, Any]) -> str:
    shape, embedding = document["shape"], document["embedding"]
    mixers = f"{shape['conv_layers']} convolution, {shape['attention_layers']} attention"
    heads = f"{shape['heads']} query and {shape['kv_heads']} key heads of {shape['head_dim']}"
    form = f"{shape['layers']} layers ({mixers} with {heads}), width {shape['hidden_size']}"
    form += f", feed-forward {shape['intermediate_size']}, vocabulary {shape['vocab_size']:,}"
    parts = [[part, f"{count:,}", f"{document['shares'][part]:.2%}"] for part, count in document["parts"].items()]
    tied = f"tied, so counted once; {embedding['share_with_untied_head']:.1%} if the head were a matrix of its own"
    blocks = [
        f"{document['model']}: {document['parameters']:,} parameters\n{form}",
        columns(parts),
        f"The embedding is {embedding['share']:.1%} of all parameters ({tied}).",
    ]
    lengths = list(document["state_bytes"])
    states = [["context", *(f"{int(length):,}" for length in lengths)]]
    states += [
        [f"decode state, {name}", *(size_text(document["state_bytes"][length][part]) for length in lengths)]
        for name, part in (("convolution", "conv"), ("KV cache", "kv"), ("total", "total"))
    ]
    states.append(
        ["training FLOPs/token", *(quantity(document["training_flops_per_token"][length]) for length in lengths)]
    )
    sizes = ", ".join(f"{kind} {size_text(size)}" for kind, size in document["weight_bytes"].items())
    blocks += [f"weights in GGUF: {sizes}"] + ([columns(states)] if lengths else [])
    rows = [["embedding share", "parameters", "embedding", "share"]]
    own = {"name": document["model"], "embedding_share": embedding["share"], "checkpoint_parameters": None}
    own |= {"parameters": document["parameters"], "embedding": embedding["parameters"]}
    for model in (own, *document["comparison"]):
        share = f"{model['embedding_share']:.1%}"
        rows.append([model["name"], f"{model['parameters']:,}", f"{model['embedding']:,}", share])
        if model["checkpoint_parameters"]:
            share = f"{model['embedding_share_of_checkpoint']:.1%}"
            rows.append(["  of its whole checkpoint", f"{model['checkpoint_parameters']:,}", "", share])
    return "\n\n".join([*blocks, columns(rows)])
