"""Forward and backward of one batch against transformers' own model with the same weights, in bfloat16 on the CPU.

Rounds of (transformers, transformers compiled, Minnow) in turn, so that a busy machine slows all alike; then each once
more in a process of its own for its peak memory. Prints seconds, the ratio of each round and its spread, and memory.

    python benchmarks/backbone_step.py [--family lfm2 llama qwen3_5] [--size 7m 60m] [--threads 2] [--rounds 7] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from minnow.model import kernels
from minnow.model.checkpoint import load_model

VOCABULARY = 8192
SIZES = {"7m": (256, 704, 6), "60m": (768, 2048, 8)}
"""Hidden width, feed-forward width, layers."""
WAYS = ("transformers", "compiled", "minnow")


def theirs(family: str, size: str) -> Any:
    """Transformers' model with random weights in bfloat16."""
    width, inner, layers = SIZES[size]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256), "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
    }  # fmt: skip
    if family == "lfm2":
        kinds = ["full_attention" if i % 3 == 2 else "conv" for i in range(layers)]
        config: Any = transformers.Lfm2Config(**common, layer_types=kinds, block_auto_adjust_ff_dim=False)
    elif family == "llama":
        config = transformers.LlamaConfig(**common)
    else:
        kinds = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)]
        heads = width // 64
        config = transformers.Qwen3_5TextConfig(
            **common, layer_types=kinds, head_dim=64, linear_num_key_heads=heads, linear_num_value_heads=heads,
            linear_key_head_dim=64, linear_value_head_dim=64,
        )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def builders(family: str, size: str, ways: tuple[str, ...]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """For each way, tokens ``[B, T]`` to the mean loss of the next token."""
    model = theirs(family, size)
    losses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    if "minnow" in ways:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            own = load_model(Path(folder), torch.bfloat16)
        for parameter in own.parameters():
            parameter.requires_grad_(True)

        def minnow(tokens: torch.Tensor) -> torch.Tensor:
            hidden = own(tokens)[:, :-1].flatten(0, 1)
            return kernels.linear_cross_entropy(hidden, own.head, tokens[:, 1:].flatten()) / len(hidden)

        losses["minnow"] = minnow
    if "transformers" in ways:
        losses["transformers"] = lambda tokens: model(input_ids=tokens, labels=tokens).loss
    if "compiled" in ways:
        compiled = torch.compile(model)
        losses["compiled"] = lambda tokens: compiled(input_ids=tokens, labels=tokens).loss
    return losses


def seconds(loss: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> float:
    begin = time.perf_counter()
    loss(tokens).backward()
    return time.perf_counter() - begin


def batch(options: argparse.Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (options.rows, options.length), generator=generator)


def measure(family: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    tokens = batch(options)
    losses = builders(family, size, tuple(options.ways))
    values = {way: float(loss(tokens).detach()) for way, loss in losses.items()}
    for loss in losses.values():
        seconds(loss, tokens)
    times: dict[str, list[float]] = {way: [] for way in losses}
    for _ in range(options.rounds):
        for way, loss in losses.items():
            times[way].append(seconds(loss, tokens))
    ours = times["minnow"]
    ratios = {
        way: [their / our for their, our in zip(times[way], ours, strict=True)] for way in losses if way != "minnow"
    }
    return {
        "family": family,
        "size": size,
        "parameters": sum(p.numel() for p in theirs(family, size).parameters()),
        "tokens": tokens.numel(),
        "losses": values,
        "seconds": {way: statistics.median(values) for way, values in times.items()},
        "ratios": {way: {"median": statistics.median(r), "min": min(r), "max": max(r)} for way, r in ratios.items()},
        "memory_mib": {way: _memory(family, size, way, options) for way in losses if way != "compiled"},
    }


def _memory(family: str, size: str, way: str, options: argparse.Namespace) -> float:
    """MiB that forward and backward add to the peak of a process of their own."""
    flags = ["--family", family, "--size", size, "--ways", way, "--rows", options.rows, "--length", options.length]
    command = [sys.executable, __file__, "--memory", *map(str, flags), "--threads", str(options.threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory(options: argparse.Namespace) -> None:
    (loss,) = builders(options.family[0], options.size[0], tuple(options.ways)).values()
    gc.collect()  # the model that Minnow's weights came from
    seconds(loss, torch.randint(3, VOCABULARY, (1, 16)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _resident("VmRSS")
    for _ in range(2):
        seconds(loss, batch(options))
    print(_resident("VmHWM") - before)


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--family", nargs="+", choices=("lfm2", "llama", "qwen3_5"), default=["lfm2", "llama", "qwen3_5"]
    )
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--memory", action="store_true", help="only the memory of one way")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(options)
        return
    results = []
    print(
        "| model | tokens | "
        + " | ".join(f"{way}, s" for way in WAYS)
        + " | eager ÷ Minnow | compiled ÷ Minnow | MiB: Minnow, transformers |"
    )
    print("|---|---:" + "|---:" * 6 + "|")
    for family in options.family:
        for size in options.size:
            row = measure(family, size, options)
            results.append(row)
            times = " | ".join(f"{row['seconds'].get(way, float('nan')):.3f}" for way in WAYS)
            ratios = " | ".join(
                f"{r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})" if r else "–"
                for r in (row["ratios"].get(way) for way in WAYS[:2])
            )
            held = ", ".join(f"{value:.0f}" for value in row["memory_mib"].values())
            print(
                f"| {family}, {row['parameters'] / 1e6:.1f}M | {row['tokens']} | {times} | {ratios} | {held} |",
                flush=True,
            )
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
