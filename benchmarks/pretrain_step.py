"""How much of a pre-training step is matrix products: a whole step against the same products run bare.

Runs rounds of (bare products, whole step) on a model of the pocket size with packed documents and prints the ratio
with its spread, tokens per second and the share of the machine's bfloat16 peak (a 2048³ product).

    python benchmarks/pretrain_step.py [--threads 2] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.model.families.lfm2 import lfm2_config

Product = tuple[int, int, int]
"""Inputs, outputs and how many times in one step, of a linear map over all tokens."""


def pocket_config(hidden: int, width: int, layers: int, vocabulary: int) -> ModelConfig:
    """Three convolutions to one attention, as LFM2 mixes them."""
    kinds = tuple(ATTENTION if i % 3 == 2 else CONV for i in range(layers))
    return lfm2_config(vocabulary, hidden, width, kinds, num_heads=hidden // 32, num_kv_heads=2, head_dim=32)


def products(config: ModelConfig) -> list[Product]:
    """The linear maps of one forward pass, the vocabulary's included."""
    with torch.device("meta"):
        model = Backbone(config)
    names = [*model.matrices(), "embedding"]
    shapes = Counter(tuple(parameter.shape) for name, parameter in model.named_parameters() if name in names)
    return [(inputs, outputs, times) for (outputs, inputs), times in shapes.items()]


def bare_products(config: ModelConfig, tokens: int) -> Callable[[], None]:
    """Output, input gradient and weight gradient of every map as products into memory that is already there."""
    operands = []
    for inputs, outputs, times in products(config):
        x, g, w = (torch.randn(shape).bfloat16() for shape in ((tokens, inputs), (tokens, outputs), (outputs, inputs)))
        operands.append((x, g, w, torch.empty_like(x), torch.empty_like(g), torch.empty_like(w), times))

    def run() -> None:
        for x, g, w, d_x, y, d_w, times in operands:
            for _ in range(times):
                torch.mm(x, w.t(), out=y)
                torch.mm(g, w, out=d_x)
                torch.mm(g.t(), x, out=d_w)

    return run


def packed_documents(rows: int, length: int, mean: int) -> Tensor:
    """Ids of documents with lengths drawn evenly from 1 to twice the mean."""
    generator = torch.Generator().manual_seed(1)
    documents = torch.zeros((rows, length), dtype=torch.int16)
    for row in documents:
        begin, number = 0, 1
        while begin < length:
            end = begin + int(torch.randint(1, 2 * mean, (), generator=generator))
            row[begin:end] = number
            begin, number = end, number + 1
    return documents


def training_step(config: ModelConfig, rows: int, length: int, mean: int) -> Callable[[], float]:
    """One AdamW step over float32 masters with bfloat16 compute; returns its loss per token."""
    model = Backbone(config)
    model.initialise(seed=0)
    masters = [parameter.detach().clone() for parameter in model.parameters()]
    model.to(torch.bfloat16)
    shadows = list(model.parameters())
    means, squares = ([torch.zeros_like(master) for master in masters] for _ in range(2))
    decay = [0.1 if master.dim() > 1 else 0.0 for master in masters]
    tokens = torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1).flatten()
    documents = packed_documents(rows, length, mean)
    done = 0

    def run() -> float:
        nonlocal done
        done += 1
        hidden = model(tokens, documents).flatten(0, 1)
        loss = kernels.linear_cross_entropy(hidden, model.head, targets) / targets.numel()
        loss.backward()
        grads = [parameter.grad for parameter in shadows if parameter.grad is not None]
        clip_scale = min(1.0, 1.0 / (kernels.grad_norm(grads) + 1e-6))
        copies = [p.detach() for p in shadows]
        for *state, rate in zip(masters, copies, grads, means, squares, decay, strict=True):
            kernels.adamw(*state, 1e-3, (0.9, 0.95), 1e-8, rate, done, clip_scale)
        for parameter in shadows:
            parameter.grad = None
        return float(loss.detach())

    return run


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def peak_flops() -> float:
    a = torch.randn(2048, 2048).bfloat16()
    out = torch.empty_like(a)
    return 2 * 2048**3 / min(seconds(lambda: torch.mm(a, a, out=out)) for _ in range(4))


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    config = pocket_config(options.hidden, options.width, options.layers, options.vocabulary)
    rows = options.tokens // options.length
    step = training_step(config, rows, options.length, options.document_tokens)
    bare = bare_products(config, rows * options.length)
    losses = [step()]
    bare()
    peak = peak_flops()
    bare_times, step_times = [], []
    for _ in range(options.rounds):
        bare_times.append(seconds(bare))
        step_times.append(seconds(lambda: losses.append(step())))
    if options.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
    flops = sum(6 * inputs * outputs * times for inputs, outputs, times in products(config)) * rows * options.length
    best_flops = flops / min(step_times)
    return {
        "kernels": kernels.describe(),
        "threads": options.threads,
        "model": {"hidden": config.hidden_size, "width": config.intermediate_size, "layers": config.num_layers},
        "tokens_per_step": rows * options.length,
        "row_length": options.length,
        "losses": [losses[0], losses[-1]],
        "step_seconds": spread(step_times),
        "products_seconds": spread(bare_times),
        "ratio": spread([step_time / bare for step_time, bare in zip(step_times, bare_times, strict=True)]),
        "tokens_per_second": rows * options.length / statistics.median(step_times),
        "gflops": flops / statistics.median(step_times) / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": best_flops / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="per step")
    parser.add_argument("--document-tokens", type=int, default=64, help="mean length of a packed document")
    parser.add_argument("--profile", action="store_true", help="also print where one step's time goes")
    parser.add_argument("--json", action="store_true")
    result = measure(options := parser.parse_args())
    if options.json:
        print(json.dumps(result))
        return
    ratio, step, bare = result["ratio"], result["step_seconds"], result["products_seconds"]
    print(f"kernels            {result['kernels']}, {result['threads']} threads")
    print(f"whole step         {step['median']:.3f} s ({step['min']:.3f} to {step['max']:.3f})")
    print(f"products alone     {bare['median']:.3f} s ({bare['min']:.3f} to {bare['max']:.3f})")
    print(f"ratio              {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"speed              {result['tokens_per_second']:,.0f} tokens/s, {result['gflops']:.0f} GFLOP/s")
    print(f"share of peak      {result['share_of_peak']:.0%} of {result['peak_gflops']:.0f} GFLOP/s (2048³ product)")


if __name__ == "__main__":
    main()
