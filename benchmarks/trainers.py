"""A whole training step of Minnow against Hugging Face's Trainer and litgpt: same network, tokens, AdamW and threads.

Each way is its project's own training loop in a process of its own (see contestants.py); they take turns of a few steps, so
that a busy machine slows all alike. Prints tokens per second, each round's ratio of seconds to Minnow's and its
spread, and what share of the machine's bfloat16 peak (a 2048³ product, measured in turn too) Minnow's step reaches.

Needs ``pip install accelerate`` for the HF Trainer. litgpt (0.5.13) wants an older huggingface-hub than transformers,
so it goes into an environment of its own, ``python -m venv E; E/bin/pip install torch==2.13.0 litgpt==0.5.13``, whose
Python ``--litgpt`` names; without it litgpt is left out. It has no LFM2.

    python benchmarks/trainers.py [--family llama lfm2] [--size 7m 60m] [--rounds 7] [--litgpt E/bin/python] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contestants import SHAPES, VOCABULARY, WAYS, Contestant, Job, hf_config
from minnow.model import kernels
from minnow.model.accounting import accounting, flops_per_token
from minnow.model.config import ModelConfig
from pretrain_step import peak_flops, spread


def measure(family: str, size: str, ways: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All ways on one network."""
    data = folder / "tokens.npy"
    tokens = np.random.default_rng(0).integers(14, VOCABULARY, (64 * options.rows, options.length + 1), dtype=np.int32)
    np.save(data, tokens)
    job = Job(family, size, str(data), options.rows, options.length, 100_000, options.threads)
    contestants = {way: Contestant(way, job, options.litgpt if way == "litgpt" else options.python) for way in ways}
    for contestant in contestants.values():
        contestant.ask("steps 3")  # compilation, caches, allocator
    peaks: list[float] = []
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        peaks.append(peak_flops())
        for way, contestant in contestants.items():
            turns[way].append(contestant.ask(f"steps {options.steps}"))
    for contestant in contestants.values():
        contestant.close()
    config = ModelConfig.from_hf(hf_config(family, size).to_dict())
    per_step = options.rows * options.length
    flops = flops_per_token(config, options.length // 2) * per_step * options.steps
    ours = turns["minnow"]
    results = {}
    for way, taken in turns.items():
        results[way] = {
            "tokens_per_second": per_step * options.steps / statistics.median(turn["wall"] for turn in taken),
            "ratio": spread([turn["wall"] / our["wall"] for turn, our in zip(taken, ours, strict=True)]),
            "cpu_ratio": spread([turn["cpu"] / our["cpu"] for turn, our in zip(taken, ours, strict=True)]),
            "share_of_peak": spread([flops / turn["wall"] / peak for turn, peak in zip(taken, peaks, strict=True)]),
            "peak_bytes": max(turn["peak_bytes"] for turn in taken),
        }
    return {
        "family": family,
        "size": size,
        "parameters": accounting(config)["total"],
        "tokens_per_step": per_step,
        "peak_gflops": statistics.median(peaks) / 1e9,
        "ways": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=("llama", "lfm2"), default=["llama", "lfm2"])
    parser.add_argument("--size", nargs="+", choices=("7m", "60m"), default=["7m", "60m"])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="in a turn")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt", help="the Python of an environment that has litgpt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.python = sys.executable
    torch.set_num_threads(options.threads)
    print(f"kernels: {kernels.describe()}; {options.threads} threads; load {os.getloadavg()[0]:.1f}")
    print("| network | way | tokens/s | seconds ÷ Minnow's | CPU seconds ÷ | share of peak | peak memory, MiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    results = []
    for family, size in SHAPES:
        if family not in options.family or size not in options.size:
            continue
        ways = [way for way in options.ways if way != "litgpt" or (options.litgpt and family == "llama")]
        with tempfile.TemporaryDirectory() as folder:
            result = measure(family, size, ways, options, Path(folder))
        results.append(result)
        for way, row in result["ways"].items():
            ratio, cpu, share = row["ratio"], row["cpu_ratio"], row["share_of_peak"]
            print(
                f"| {family}, {result['parameters'] / 1e6:.1f}M | {WAYS[way]} | {row['tokens_per_second']:,.0f} "
                f"| {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) | {cpu['median']:.2f} "
                f"| {share['median']:.0%} | {row['peak_bytes'] / 2**20:,.0f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"options": {**vars(options), "json": None}, "results": results}, indent=2))


if __name__ == "__main__":
    main()
