"""Wall time of the rollouts that pairs and RL are made of, to the last row, against transformers and llama.cpp's server.

Loop-prone prompts of the checkpoint's own world, several answers each, sampled, of every length up to the budget. Minnow
answers all of them in one call, with and without cutting loops; ``transformers.generate`` takes batches of prompts of
like length with ``num_return_sequences``, each until its last row ends, at several batch sizes and in both precisions;
llama.cpp's server has eight slots, a request for each answer and the F16 file. Ways take turns; prints the median and
range of seconds, and the ratio to Minnow's of the same round.

    python benchmarks/rollouts.py CHECKPOINT [--prompts 64] [--samples 6] [--temperature 0.3] [--budget 512] [--rounds 3]
        [--batch 48 192] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.recipe.run_record import world_of
from minnow.recipe.stages.sources import engine_of
from minnow.rollout import Sampling
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import ChatPrompt
from minnow.serve.llama import LlamaServer
from minnow.tasks import Example

SLOTS = 8


def their_answers(model: Any, tokenizer: Tokenizer, prompts: list[list[int]], batch: int, options: Any) -> int:
    """Tokens of all answers by ``transformers.generate``; ``batch`` rows at once."""
    at_once, total = max(1, batch // options.samples), 0
    ordered = sorted(prompts, key=len)
    for begin in range(0, len(ordered), at_once):
        some = ordered[begin : begin + at_once]
        width = max(map(len, some))
        ids = torch.tensor([[tokenizer.pad_id] * (width - len(row)) + row for row in some])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=options.budget, do_sample=True, top_k=0, top_p=1.0,
                temperature=options.temperature, num_return_sequences=options.samples,
                eos_token_id=list(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id,
            )[:, width:]  # fmt: skip
        total += int((out != tokenizer.pad_id).sum())
    return total


def ways(checkpoint: Path, examples: list[Example], folder: Path, options: Any) -> dict[str, Callable[[], int]]:
    """Each way by name: a call that gives all answers and returns how many tokens they have."""
    engine, _, tokenizer = engine_of(checkpoint)
    prompts = [(example.id, tokenizer.prompt(example.messages, example.tools)) for example in examples]
    every = [prompt for prompt in prompts for _ in range(options.samples)]
    sampling = Sampling(options.temperature, options.budget, seed=1)

    def minnow(sampling: Sampling) -> Callable[[], int]:
        return lambda: sum(len(rollout.token_ids) for rollout in engine.generate(every, sampling))

    found = {"minnow": minnow(sampling), "minnow, loops not cut": minnow(replace(sampling, stop_on_loop=False))}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        model.generation_config = transformers.GenerationConfig()
        for batch in options.batch:
            found[f"transformers {name}, {batch} rows"] = lambda model=model, batch=batch: their_answers(
                model, tokenizer, [ids for _, ids in prompts], batch, options
            )
    file = export_gguf(checkpoint, folder / "model.gguf", "F16").file
    context = options.budget + max(len(ids) for _, ids in prompts) + 16
    chats = [ChatPrompt(f"{e.id} {i}", e.messages, e.tools) for e in examples for i in range(options.samples)]
    asked = [replace(sampling, seed=i, stop_on_loop=False) for i in range(len(chats))]

    def served() -> int:
        with LlamaServer(file, context, SLOTS, options.threads) as server:
            asking = ServerEngine(f"{server.url}/v1", "model", concurrency=SLOTS)
            answers = [answer for _, answer in asking.answers(chats, asked)]
        assert not any(answer.error for answer in answers), next(a.error for a in answers if a.error)
        return sum(answer.tokens or 0 for answer in answers)

    return found | {f"llama.cpp server, {SLOTS} slots": served}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[48, 192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    examples = world_of(options.checkpoint).loop_prone("held_out", options.prompts)
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = ways(options.checkpoint, examples, Path(folder), options)
        found["minnow"]()  # compiles, allocates
        for _ in range(options.rounds):
            for name, way in found.items():
                begin = time.perf_counter()
                tokens[name] = way()
                seconds.setdefault(name, []).append(time.perf_counter() - begin)
    print("| way | seconds | tokens | tokens/s | seconds ÷ Minnow's |\n|---|---:|---:|---:|---:|")
    report: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(options).items()}}
    for name, took in seconds.items():
        ratios = [one / ours for one, ours in zip(took, seconds["minnow"], strict=True)]
        middle, ratio = statistics.median(took), statistics.median(ratios)
        print(
            f"| {name} | {middle:.1f} ({min(took):.1f}–{max(took):.1f}) | {tokens[name]:,} | {tokens[name] / middle:,.0f} | "
            f"{ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |"
        )
        report[name] = {"seconds": took, "tokens": tokens[name], "ratios": ratios}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
