"""``minnow inspect``: where the parameters sit and what they cost."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.inspect_chart import part_name, svg_chart, terminal_bars
from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, columns, emit
from minnow.errors import UserError
from minnow.files import read_json, write_text
from minnow.model.accounting import accounting
from minnow.model.checkpoint import weight_files
from minnow.model.config import ATTENTION, CONV, DELTA, LINEAR, SLIDING, Attention, Dense, Experts, ModelConfig
from minnow.model.families import FAMILIES
from minnow.model.footprint import WEIGHT_TYPES, Repack, largest_context
from minnow.model.presets import EXTRAS, PRESETS, find_preset
from minnow.model.references import REFERENCES
from minnow.model.tensor_files import stored_tensors
from minnow.progress import quantity, size_text
from minnow.recipe.mapping import nearest

_SHOWN_TYPES = ("BF16", "Q8_0", "Q4_0")
_SIDE_BY_SIDE = 5  # models in one table; more go into the next
_REPACKS: dict[Repack, str] = {"x86": "x86", "arm": "ARM", "none": "--no-repack"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SHARES = {
    "total": "all parameters, a tied table once",
    "with_head": "all parameters, embedding and head as two tables",
    "active": "the parameters that a token uses",
    "checkpoint": "the whole published checkpoint",
    "non_embedding": "all other parameters",
}


def inspect(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL …")],
    /,
    context: tuple[int, ...] = (4096, 32_768),
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    svg: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's parameters by part, the embedding's share, and what a token and a context cost.

    Nothing is loaded: all of it follows from the configuration. Several models stand side by side.

    Args:
        models: checkpoint folders, stage or run folders, config.json files, or published models by name, such as
            lfm2.5-350m or gemma-3-270m.
        context: context lengths, in tokens, to give FLOPs, decode state, reads and peak memory for.
        memory: a budget, such as 1GB or 800MiB: the largest context that fits it, for every type of weights.
        svg: also draw the parameters and the peak memory at the first context into this file.
    """
    if not models:
        raise UserError("name at least one model, such as lfm2.5-350m or a checkpoint folder")
    if min(context, default=1) < 1:
        raise UserError(f"a context of {min(context)} tokens holds nothing; use lengths of at least 1")
    if svg and not context:
        raise UserError("--svg draws the memory of a context; give at least one length with --context")
    budget = None if memory is None else parse_size(memory)
    documents: list[dict[str, Any]] = []
    for name in models:
        config, source, extras = _config(name)
        documents.append({"model": name, "source": source} | describe(config, context, extras))
        if budget is not None:
            documents[-1]["fits"] = {"budget": memory, "budget_bytes": budget} | _fits(config, budget)
    if svg:
        write_text(svg, svg_chart(documents, context[0]))
        sys.stderr.write(f"drew {svg}\n")
    single = len(documents) == 1
    text = "" if as_json else (_text if single else _table)(documents, sys.stdout.isatty())
    emit(documents[0] if single else documents, text, as_json)


def parse_size(text: str) -> int:
    """Bytes of ``1GB`` (decimal), ``800MiB`` (binary), ``1.5g`` or a plain number.

    Raises:
        UserError: something else, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmg]?i?)b?\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if size < 1:
        raise UserError(f"{text!r} is not a size of memory; write it as 1GB, 800MB or 1.5GiB")
    return size


def _config(name: str) -> tuple[ModelConfig, str, int]:
    """The shape of a preset, a config file or a checkpoint, where it came from, and parameters beside the model's."""
    path = Path(name)
    preset = find_preset(name)
    if preset is not None and not path.exists():
        return preset, "preset", sum(EXTRAS.get(name.lower(), {}).values())
    if not path.exists() and len(path.parts) == 1:
        raise UserError(f"{name} is neither a folder nor a published model; {nearest(name.lower(), PRESETS)}")
    if path.is_file() and path.suffix == ".json":
        return ModelConfig.from_hf(read_json(path)), str(path), 0
    folder = resolve_model(path)
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    stored, extras = _stored_parameters(folder, config)
    counted = accounting(config, ())["total"]
    if stored != counted:
        raise UserError(
            f"{folder} holds {stored:,} parameters but its config.json describes {counted:,}; restore the folder"
        )
    return config, str(folder), extras


def _stored_parameters(folder: Path, config: ModelConfig) -> tuple[int, int]:
    """Parameters of the language model and of what stands beside it in the weight files, from their headers.

    A tied head that was written twice counts once; selection biases and tables of frequencies are no parameters.
    """
    family, stored, extras = FAMILIES[config.family], 0, 0
    for theirs, tensor in stored_tensors(weight_files(folder)).items():
        name = family.name(theirs)
        if theirs.endswith(("expert_bias", "inv_freq")) or (config.tied and name == "lm_head.weight"):
            continue
        stored, extras = (stored, extras + tensor.entries) if name is None else (stored + tensor.entries, extras)
    return stored, extras


def describe(config: ModelConfig, contexts: Sequence[int], extras: int = 0) -> dict[str, Any]:
    """The accounting of a model with its shape, beside published models.

    Args:
        extras: parameters of the published file beside the language model's.
    """
    numbers = accounting(config, contexts, extras)
    embedding, total = numbers["parts"]["embedding"], numbers["total"]
    return numbers | {
        "parameters": total,
        "embedding": {
            "parameters": embedding,
            "share": embedding / total,
            "share_with_untied_head": numbers["embedding_share"]["with_head"],
        },
        "shape": _shape(config),
        "training_flops_per_token": numbers["flops_per_token"]["training"],
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


def _fits(config: ModelConfig, budget: int) -> dict[str, Any]:
    """The largest context within ``budget`` bytes, by type of weights and way of repacking; 0 where nothing fits."""
    largest = {
        kind: {repack: largest_context(config, kind, budget, repack) for repack in _REPACKS} for kind in WEIGHT_TYPES
    }
    return {"largest_context": largest}


def _shape(config: ModelConfig) -> dict[str, Any]:
    """Counts and widths; those of attention are the first such layer's, None where there is none."""
    kinds = Counter(config.layer_types)
    attention = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)), None)
    dense = next((layer.feed_forward.width for layer in config.layers if isinstance(layer.feed_forward, Dense)), None)
    experts = next((layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, Experts)), None)
    windows = [layer.mixer.window for layer in config.layers if isinstance(layer.mixer, Attention)]
    return {
        "family": config.family,
        "layers": config.num_layers,
        "conv_layers": kinds[CONV],
        "attention_layers": kinds[ATTENTION],
        "sliding_attention_layers": kinds[SLIDING],
        "linear_attention_layers": kinds[DELTA] + kinds[LINEAR],
        "hidden_size": config.hidden_size,
        "intermediate_size": dense,
        "heads": attention.heads if attention else None,
        "kv_heads": attention.kv_heads if attention else None,
        "head_dim": attention.head_dim if attention else None,
        "window": next((window for window in windows if window), None),
        "experts": experts.experts if experts else None,
        "active_experts": experts.active if experts else None,
        "expert_size": experts.width if experts else None,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "tied": config.tied,
    }


def _form(shape: dict[str, Any]) -> str:
    """A shape in one sentence."""
    mixers = [
        f"{shape[f'{key}_layers']} {words}"
        for key, words in (
            ("conv", "convolution"),
            ("linear_attention", "linear attention"),
            ("sliding_attention", f"attention over {shape['window']} positions"),
            ("attention", "attention"),
        )
        if shape[f"{key}_layers"]
    ]
    heads = f" with {shape['heads']} query and {shape['kv_heads']} key heads of {shape['head_dim']}"
    form = f"{shape['layers']} layers ({', '.join(mixers)}{heads if shape['heads'] else ''})"
    form += f", width {shape['hidden_size']}"
    if shape["intermediate_size"]:
        form += f", feed-forward {shape['intermediate_size']}"
    if shape["experts"]:
        form += f", {shape['active_experts']} of {shape['experts']} experts of {shape['expert_size']}"
    return form + f", vocabulary {shape['vocab_size']:,}"


def _text(documents: Sequence[dict[str, Any]], colour: bool) -> str:
    (document,) = documents
    active = document["active"] < document["total"]
    head = f"{document['model']}: {document['total']:,} parameters"
    head += f", {document['active']:,} active" if active else ""
    parts = [["part", "parameters", "share", *(["active"] if active else [])]]
    for part, count in document["parts"].items():
        if count:
            row = [part_name(part), f"{count:,}", f"{document['shares'][part]:.2%}"]
            parts.append([*row, f"{document['active_parts'][part]:,}"] if active else row)
    blocks = [
        f"{head}\n{_form(document['shape'])}",
        columns(parts),
        terminal_bars(documents, colour),
        columns(_share_rows(document)),
    ]
    lengths = list(document["state_bytes"])
    if lengths:
        blocks.append(columns(_cost_rows(document, lengths)))
    growth = document["state_growth"]
    state = f"decode state: {size_text(growth['fixed'])} fixed"
    blocks.append(f"{state}, {size_text(growth['per_token'])} for every token of context")
    blocks.append(columns(_memory_rows(document, lengths)))
    if lengths:
        blocks.append(_notes(documents, lengths))
    if "fits" in document:
        blocks.append(_fits_text(document["fits"]))
    return "\n\n".join([*blocks, columns(_comparison_rows(document))])


def _notes(documents: Sequence[dict[str, Any]], lengths: list[str]) -> str:
    """What the figures mean, and which lengths a model is not made for."""
    lines = ["peak: llama.cpp on an x86 CPU, one sequence, with the copy of Q4_0 weights that it rearranges"]
    longest = max(map(int, lengths))
    for document in documents:
        most = document["shape"]["max_positions"]
        if longest > most:
            lines.append(f"{document['model']} is made for {most:,} positions; its figures beyond are hypothetical")
    return "\n".join(lines)


def _share_rows(document: dict[str, Any]) -> list[list[str]]:
    shares = document["embedding_share"]
    rows = [["the embedding over", ""]]
    for key, words in _SHARES.items():
        if shares[key] is None or (key == "active" and document["active"] == document["total"]):
            continue
        words += f" ({document['checkpoint_total']:,})" if key == "checkpoint" else ""
        rows.append([words, f"{shares[key]:.2%}"])
    return rows


def _cost_rows(document: dict[str, Any], lengths: list[str]) -> list[list[str]]:
    rows = [["context", *(f"{int(length):,}" for length in lengths)]]
    for part, words in (
        ("kv", "KV cache"),
        ("ring_kv", "KV cache of windows"),
        ("conv", "convolution"),
        ("recurrent", "memory matrices"),
        ("total", "total"),
    ):
        sizes = [document["state_bytes"][length][part] for length in lengths]
        if any(sizes) or part == "total":
            rows.append([f"decode state, {words}", *map(size_text, sizes)])
    for key in ("prefill", "decode", "training"):
        flops = document["flops_per_token"][key]
        rows.append([f"{key} FLOPs/token", *(quantity(flops[length]) for length in lengths)])
    return rows


def _memory_rows(document: dict[str, Any], lengths: list[str]) -> list[list[str]]:
    """By type of weights: the file, what a decoded token reads, the peak."""
    heads = [f"{what} at {int(length):,}" for what in ("read per token", "peak") for length in lengths]
    rows = [["weights in GGUF", "size", *heads]]
    for kind in _SHOWN_TYPES:
        reads = [document["decode_bytes"][kind][length]["total"] for length in lengths]
        peaks = [document["peak_memory"][kind][length]["total"] for length in lengths]
        rows.append([kind, *map(size_text, (document["weight_bytes"][kind], *reads, *peaks))])
    return rows


def _fits_text(fits: dict[str, Any]) -> str:
    rows = [[f"largest context in {fits['budget']}", *_REPACKS.values()]]
    rows += [
        [kind, *(_context_text(fits["largest_context"][kind][repack]) for repack in _REPACKS)] for kind in _SHOWN_TYPES
    ]
    note = "llama.cpp rearranges a copy of Q4_0 weights on x86, of Q4_0 and Q8_0 on ARM, of none with --no-repack"
    return f"{columns(rows)}\n{note}"


def _context_text(context: int) -> str:
    return f"{context:,}" if context else "does not fit"


def _comparison_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = [["embedding share", "parameters", "embedding", "share"]]
    embedding = document["embedding"]
    own = {"name": document["model"], "embedding_share": embedding["share"], "checkpoint_parameters": None}
    own |= {"parameters": document["parameters"], "embedding": embedding["parameters"]}
    for model in (own, *document["comparison"]):
        share = f"{model['embedding_share']:.1%}"
        rows.append([model["name"], f"{model['parameters']:,}", f"{model['embedding']:,}", share])
        if model["checkpoint_parameters"]:
            share = f"{model['embedding_share_of_checkpoint']:.1%}"
            rows.append(["  of its whole checkpoint", f"{model['checkpoint_parameters']:,}", "", share])
    return rows


def _table(documents: Sequence[dict[str, Any]], colour: bool) -> str:
    blocks = [terminal_bars(documents, colour)]
    for first in range(0, len(documents), _SIDE_BY_SIDE):
        blocks.append(columns(_side_by_side(documents[first : first + _SIDE_BY_SIDE])))
    lengths = list(documents[0]["state_bytes"])
    return "\n\n".join([*blocks, *([_notes(documents, lengths)] if lengths else [])])


def _side_by_side(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One column per model."""
    first = documents[0]
    rows = [
        ["", *(each["model"] for each in documents)],
        ["parameters", *(f"{each['total']:,}" for each in documents)],
        ["active", *(f"{each['active']:,}" for each in documents)],
        ["layers", *(str(each["shape"]["layers"]) for each in documents)],
    ]
    for part in first["parts"]:
        if any(each["parts"][part] for each in documents):
            shares = (each["shares"][part] if each["parts"][part] else None for each in documents)
            rows.append([part_name(part), *map(_share_text, shares)])
    for key, words in _SHARES.items():
        embedding = [each["embedding_share"][key] for each in documents]
        if key != "total" and any(share is not None for share in embedding):
            rows.append([f"embedding over {words}", *map(_share_text, embedding)])
    for kind in _SHOWN_TYPES:
        rows.append([f"{kind} weights", *(size_text(each["weight_bytes"][kind]) for each in documents)])
    for length in first["state_bytes"]:
        at = f"at {int(length):,}"
        for key in ("prefill", "decode"):
            flops = (each["flops_per_token"][key][length] for each in documents)
            rows.append([f"{key} FLOPs/token {at}", *map(quantity, flops)])
        states = (each["state_bytes"][length]["total"] for each in documents)
        rows.append([f"decode state {at}", *map(size_text, states)])
        for kind in _SHOWN_TYPES:
            for key, words in (("decode_bytes", "read per token"), ("peak_memory", "peak")):
                sizes = (each[key][kind][length]["total"] for each in documents)
                rows.append([f"{kind}, {words} {at}", *map(size_text, sizes)])
    if "fits" in first:
        for kind in _SHOWN_TYPES:
            for repack, words in _REPACKS.items():
                largest = (each["fits"]["largest_context"][kind][repack] for each in documents)
                head = f"largest context in {first['fits']['budget']}, {kind}, {words}"
                rows.append([head, *map(_context_text, largest)])
    return rows


def _share_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
