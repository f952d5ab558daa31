"""Peak memory of a loss over a large vocabulary, forward and backward, against materialised logits.

Each loss runs in a process of its own; what it held at most beyond its inputs is compared with the float32 logits of
all positions. The gradients of the hidden states and of the head are part of it and shown apart.

    python benchmarks/loss_memory.py [--vocabulary 65536] [--positions 8192] [--hidden 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.train import vocabulary
from minnow.train.distillation import divergence

K = 32


def plain(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Over the whole matrix, as written in a textbook."""
    return F.cross_entropy((hidden @ head.t()).float(), targets, reduction="sum")


def log_probs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return vocabulary.token_log_probs(hidden, head, targets).square().sum()


def distillation(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    likely = (targets[:, None] + torch.arange(K)) % len(head)
    answers = torch.full((len(targets), K), -4.0)
    rest = 1 - answers.exp().sum(1)

    def sums(logits: Tensor, targets: Tensor, likely: Tensor, answers: Tensor, rest: Tensor) -> Tensor:
        taught = divergence(logits, likely, answers, rest, 2.0).sum()
        return (F.cross_entropy(logits, targets, reduction="sum") + taught)[None]

    return vocabulary.summed(sums, hidden, head, targets, likely, answers, rest)[0]


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], torch.dtype]] = {
    "whole logits, float32": (plain, torch.float32),
    "whole logits, bfloat16": (plain, torch.bfloat16),
    "next token, float32": (vocabulary.cross_entropy, torch.float32),
    "next token, bfloat16": (vocabulary.cross_entropy, torch.bfloat16),
    "log-probabilities, float32": (log_probs, torch.float32),
    "log-probabilities, bfloat16": (log_probs, torch.bfloat16),
    "distillation, float32": (distillation, torch.float32),
    "distillation, bfloat16": (distillation, torch.bfloat16),
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One loss in this process."""
    torch.set_num_threads(options.threads)
    function, dtype = LOSSES[name]

    def step(positions: int, words: int) -> None:
        hidden = torch.randn(positions, options.hidden).to(dtype).requires_grad_()
        head = (torch.randn(words, options.hidden) / options.hidden**0.5).to(dtype).requires_grad_()
        targets = torch.randint(words, (positions,))
        if positions > 64:
            before.append(peak())
        function(hidden, head, targets).backward()

    before: list[int] = []
    step(64, 512)  # libraries, kernels and threads are there
    began = time.perf_counter()
    step(options.positions, options.vocabulary)
    held = peak() - before[0]
    logits = 4 * options.positions * options.vocabulary
    gradients = (options.positions + options.vocabulary) * options.hidden * dtype.itemsize
    return {
        "loss": name,
        "peak_bytes": held,
        "gradient_bytes": gradients,
        "share_of_logits": held / logits,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="losses whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'loss':<30}{'peak':>12}{'gradients':>12}{'of logits':>12}{'seconds':>10}")
    for name in (name for name in LOSSES if options.only in name):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (name, options))
        results.append(result)
        print(
            f"{name:<30}{result['peak_bytes'] / 2**20:>8.0f} MiB{result['gradient_bytes'] / 2**20:>8.0f} MiB"
            f"{result['share_of_logits']:>11.1%}{result['seconds']:>10.1f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"options": {**vars(options), "json": None}, "results": results}, indent=2))


if __name__ == "__main__":
    main()
