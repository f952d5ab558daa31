"""Greedy decoding against ``transformers.generate``: same weights, same prompts, tokens per second by batch.

Rounds of (transformers, Minnow) in turn on the CPU, end tokens disabled, each in the precision that suits it best among
float32 and bfloat16. Minnow's time is the whole rollout engine's: log-probabilities, bookkeeping and the loop watch.

    python benchmarks/decode.py [--size 1m 48m] [--batch 1 8 64 256] [--new 96] [--threads 2] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.model.checkpoint import load_model
from minnow.rollout.records import Sampling
from minnow.rollout.torch_engine import TorchEngine
from minnow.tasks import PocketWorld

SIZES = {"1m": (128, 384, 6), "48m": (640, 1792, 9)}
"""Hidden width, feed-forward width, layers."""
PROMPT_TOKENS = 32
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def lfm2(size: str, vocabulary: int) -> Any:
    """Transformers' LFM2 with random weights in float32; the end token is never the likeliest."""
    width, inner, layers = SIZES[size]
    heads = max(4, width // 64)
    config = transformers.Lfm2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, block_auto_adjust_ff_dim=False,
        layer_types=["full_attention" if i % 3 == 2 else "conv" for i in range(layers)],
        pad_token_id=0, bos_token_id=1, eos_token_id=7, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = 0.0
    return model.eval()


def builders(size: str, tokenizer: Tokenizer) -> dict[str, Callable[[list[list[int]], int], int]]:
    """For each way and precision, prompts and a number of new tokens to the last row's last token."""
    model = lfm2(size, tokenizer.vocab_size)
    ways: dict[str, Callable[[list[list[int]], int], int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, dtype in TYPES.items():
            their = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            their.generation_config.eos_token_id = None
            engine = TorchEngine(load_model(Path(folder), dtype), tokenizer)

            def generate(prompts: list[list[int]], new: int, model: Any = their) -> int:
                ids = torch.tensor(prompts)
                with torch.no_grad():
                    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
                assert out.shape[1] == ids.shape[1] + new
                return int(out[-1, -1])

            def minnow(prompts: list[list[int]], new: int, engine: TorchEngine = engine) -> int:
                named = [(str(i), ids) for i, ids in enumerate(prompts)]
                rollouts = engine.generate(named, Sampling(max_new_tokens=new, stop_on_loop=False))
                assert all(len(rollout.token_ids) == new for rollout in rollouts)
                return rollouts[-1].token_ids[-1]

            ways |= {f"transformers {name}": generate, f"minnow {name}": minnow}
    return ways


def measure(size: str, batch: int, options: argparse.Namespace, ways: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(8, 270, (batch, PROMPT_TOKENS), generator=generator).tolist()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run(prompts, 8)
    for _ in range(options.rounds):
        for name, run in ways.items():
            begin = time.perf_counter()
            run(prompts, options.new)
            times[name].append(time.perf_counter() - begin)
    speeds = {name: batch * options.new / statistics.median(values) for name, values in times.items()}
    best = {
        who: max((name for name in ways if name.startswith(who)), key=speeds.__getitem__)
        for who in ("transformers", "minnow")
    }
    ratios = [their / our for their, our in zip(times[best["transformers"]], times[best["minnow"]], strict=True)]
    return {
        "size": size,
        "batch": batch,
        "tokens_per_second": speeds,
        "best": best,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = train_tokenizer(PocketWorld(0).documents(3000), 2048)
    results = []
    print(
        "| size | batch | transformers, tok/s (float32, bfloat16) | Minnow, tok/s (float32, bfloat16) | best ÷ best |"
    )
    print("|---|---:|---:|---:|---:|")
    for size in options.size:
        ways = builders(size, tokenizer)
        for batch in options.batch:
            row = measure(size, batch, options, ways)
            results.append(row)
            cells = [
                ", ".join(f"{row['tokens_per_second'][f'{who} {name}']:,.0f}" for name in TYPES)
                for who in ("transformers", "minnow")
            ]
            ratio = row["ratio"]
            shown = f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"
            print(f"| {size} | {batch} | {cells[0]} | {cells[1]} | {shown} |", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
