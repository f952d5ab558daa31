"""Products of bfloat16 matrices on the CPU, each way in turn: packed weights in C with and without tiles, and torch's.

For decoding (the weight is packed once) microseconds by rows; for training GFLOP/s of the output and both gradients,
packing included. The best of the rounds in CPU time of one thread, for machines that are not idle. Where the processor
has no tiles (AMX), the first two columns are the same way.

    python benchmarks/products.py [--part decoding training] [--rounds 12]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.model.kernels import build, decoding, describe, products

DECODING = [(128, 768), (384, 128), (640, 3584), (1792, 640)]
TRAINING = [(256, 1408), (704, 256), (256, 256), (768, 4096), (2048, 768)]
"""Inputs and outputs."""
ROWS = (1, 8, 16, 64, 256, 1024)
TOKENS = 2048
ROUND = 0.004
"""Seconds that one way takes of a round, at least."""


def best(ways: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Seconds of each."""
    times, repeats = [float("inf")] * len(ways), [1] * len(ways)
    for _ in range(rounds):
        for index, way in enumerate(ways):
            begin = time.thread_time()
            for _ in range(repeats[index]):
                way()
            spent = (time.thread_time() - begin) / repeats[index]
            times[index], repeats[index] = min(times[index], spent), max(1, int(ROUND / spent))
    return times


def with_tiles(wanted: bool, way: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        build.library().use_tiles(wanted)
        return way()

    return run


def decoding_table(rounds: int) -> None:
    print("| inputs x outputs | rows | tiles, us | pairs, us | torch, us |\n|---|---:|---:|---:|---:|")
    for inputs, outputs in DECODING:
        weight = torch.randn(outputs, inputs).bfloat16()
        packed = products.pack(weight)
        for rows in ROWS:
            x = torch.randn(rows, inputs).bfloat16()

            def own(x: Tensor = x, packed: Tensor = packed, outputs: int = outputs) -> Tensor:
                return decoding.linear(x, packed, outputs, torch.bfloat16)

            def theirs(x: Tensor = x, weight: Tensor = weight) -> Tensor:
                return F.linear(x, weight)

            times = best([with_tiles(True, own), with_tiles(False, own), theirs], rounds)
            print(
                f"| {inputs} x {outputs} | {rows} | " + " | ".join(f"{1e6 * t:.1f}" for t in times) + " |", flush=True
            )


def training_table(rounds: int) -> None:
    names = ("output", "gradient of x", "gradient of the weight")
    print(
        "| inputs x outputs | " + " | ".join(f"{name}: tiles, pairs, torch" for name in names) + " |\n|---|---|---|---|"
    )
    for inputs, outputs in TRAINING:
        x, weight, g = (torch.randn(*s).bfloat16() for s in ((TOKENS, inputs), (outputs, inputs), (TOKENS, outputs)))
        flops = 2 * TOKENS * inputs * outputs

        def output(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return products.multiply(x, products.pack(weight), len(weight))

        def of_x(g: Tensor = g, weight: Tensor = weight) -> Tensor:
            return products.multiply(g, products.pack_down(weight), weight.shape[1])

        def of_weight(g: Tensor = g, x: Tensor = x) -> Tensor:
            return products.outer(g, x)

        torchs = (lambda x=x, w=weight: F.linear(x, w), lambda g=g, w=weight: g @ w, lambda g=g, x=x: g.t() @ x)
        cells = []
        for own, theirs in zip((output, of_x, of_weight), torchs, strict=True):
            times = best([with_tiles(True, own), with_tiles(False, own), theirs], rounds)
            cells.append(", ".join(f"{flops / t / 1e9:.0f}" for t in times))
        print(f"| {inputs} x {outputs} | " + " | ".join(cells) + " |", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=("decoding", "training"), default=["decoding", "training"])
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(describe())
    for part in options.part:
        (decoding_table if part == "decoding" else training_table)(options.rounds)


if __name__ == "__main__":
    main()
