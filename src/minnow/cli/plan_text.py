"""What ``minnow run --dry-run`` says of a plan (:mod:`minnow.recipe.plan`), in words and tables."""

from __future__ import annotations

from typing import Any

from minnow.cli.output import columns
from minnow.progress import duration, quantity, size_text

_METHODS = {
    "steps": "real training steps",
    "products": "matrix products of the model's shapes alone: a whole step takes up to twice as long",
}


def plan_text(numbers: dict[str, Any]) -> str:
    """The model, the machine, a row for each stage whose time is known, and what the largest one holds."""
    model, device, total = numbers["model"], numbers["machine"], numbers["total"]
    shape = f"{model['layers']} layers of width {model['hidden_size']}, vocabulary of {model['vocab_size']:,}"
    parts = [[name, f"{count:,}", f"{model['shares'][name]:.1%}"] for name, count in model["parts"].items() if count]
    machine = f"on {device['cpu']}, {device['cores']} cores, {size_text(device['memory_bytes'])}"
    compute = f"  {_count(device['threads'], 'thread')}, {device['dtype']}, kernels: {device['kernels']}"
    head = f"{numbers['name']}: {model['parameters']:,} parameters, {shape}"
    blocks = [f"{head}\n{columns(parts)}", f"{machine}\n{compute}"]
    known = [stage for stage in numbers["stages"] if stage["estimated"]]
    if known:
        blocks.append(columns(_rows(known)))
        blocks.append(_memory_text(max(known, key=lambda stage: stage["memory"]["peak"]), device["memory_bytes"]))
        blocks.append("\n".join([*_measured(known), f"training takes about {duration(total['seconds'])} in all"]))
    if total["not_estimated"]:
        blocks.append(f"not estimated: {', '.join(total['not_estimated'])}")
    return "\n\n".join(blocks)


def _rows(stages: list[dict[str, Any]]) -> list[list[str]]:
    head = ["stage", "steps", "tokens", "per parameter", "FLOPs/token", "tokens/s", "step memory", "time"]
    return [head] + [
        [
            stage["stage"],
            str(stage["steps"]),
            quantity(stage["tokens"]),
            f"{stage['tokens_per_parameter']:.2f}",
            quantity(stage["flops_per_token"]),
            f"{stage['measured']['tokens_per_second']:,.0f}",
            size_text(stage["memory"]["peak"]),
            duration(stage["seconds"]),
        ]
        for stage in stages
    ]


def _memory_text(stage: dict[str, Any], available: int) -> str:
    held = [f"{name} {size_text(size)}" for name, size in stage["memory"].items() if name != "peak" and size]
    peak = stage["memory"]["peak"]
    lines = [f"memory of a step of {stage['stage']}: {', '.join(held)}; at its peak {size_text(peak)}"]
    lines.append("  (the corpus, and the answers that other stages decode, come on top)")
    if peak > available:
        lines.append(
            f"that is more than this machine has ({size_text(available)}): lower its rows or the model's width"
        )
    return "\n".join(lines)


def _measured(stages: list[dict[str, Any]]) -> list[str]:
    lines = []
    for method in dict.fromkeys(stage["measured"]["method"] for stage in stages):
        measured = [stage for stage in stages if stage["measured"]["method"] == method]
        names = ", ".join(stage["stage"] for stage in measured)
        shape = ""
        if method == "steps":
            one = measured[0]
            share = f"{one['measured']['rows']} of its " if one["measured"]["rows"] < one["rows"] else ""
            rows = f"{share}{_count(one['rows'], 'row')} by {one['row_length']} tokens"
            shape = f" ({_count(one['measured']['repeats'], 'step')} of {rows})"
        lines.append(f"time of {names} from {_METHODS[method]}{shape}, measured just now")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
