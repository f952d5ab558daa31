"""Do convolution hybrids doom-loop more or less than attention-only and delta-net models?

Trains the pocket recipe up to RL with four backbones of matched size that differ in every other layer's mixer, each
with several seeds, and prints loop rates, task scores, training speed and memory.

    python benchmarks/operators.py run runs/operators [--mixers attn conv sliding delta] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/operators.py table runs/operators
    python benchmarks/operators.py endings runs/operators
    python benchmarks/operators.py speed [--threads 2]

``run`` continues where it was stopped: a finished stage is kept. ``endings`` lets the answers
of the models after SFT run to their budget, and ``speed`` measures the four shapes side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from minnow.evaluate.measure import answer
from minnow.model.backbone import Backbone
from minnow.model.footprint import state_bytes
from minnow.recipe.schema import ModelSettings
from minnow.recipe.stages.sources import engine_of
from minnow.rollout.records import Sampling
from minnow.tasks import PocketWorld
from pretrain_step import seconds, training_step

RECIPE = Path(__file__).parents[1] / "recipes" / "pocket.yaml"
LAST_STAGE = "measure-grpo"
WIDTHS = {"attn": 408, "conv": 384, "sliding": 408, "delta": 384}
"""Feed-forward width by the mixer of the odd layers, so that all have the size of the LFM2 layout within 1%."""
NAMES = {"attn": "attention only", "conv": "LFM2 layout", "sliding": "sliding and global", "delta": "delta net hybrid"}
STAGES = {"measure-sft": "SFT", "measure-dpo": "DPO", "measure-grpo": "RL"}


def recipe(mixer: str) -> dict[str, Any]:
    """The pocket recipe with ``mixer`` in layers 1, 3 and 5, up to the measurement after RL."""
    raw: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    names = list(raw["stages"])
    raw["stages"] = {name: raw["stages"][name] for name in names[: names.index(LAST_STAGE) + 1]}
    layers = [mixer if layer == "conv" else layer for layer in raw["model"]["layers"]]
    raw["model"] |= {"layers": layers, "intermediate_size": WIDTHS[mixer]}
    return raw | {"name": f"operators-{mixer}"}


def train(folder: Path, mixer: str, seed: int, threads: int) -> None:
    """One run in a process of its own."""
    here = folder / f"{mixer}-{seed}"
    here.mkdir(parents=True, exist_ok=True)
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe(mixer) | {"threads": threads}, sort_keys=False))
    flags = ["--set", f"seed={seed}", "--run-folder", str(here / "run")]
    with (here / "log.txt").open("a") as log:
        subprocess.run(
            [Path(sys.executable).parent / "minnow", "run", str(here / "recipe.yaml"), *flags],
            stdout=log,
            stderr=log,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    print(f"{mixer}, seed {seed}: finished", flush=True)


def read(folder: Path, mixer: str) -> dict[int, dict[str, Any]]:
    """Results of the finished stages of every seed."""
    runs = {}
    for here in sorted(folder.glob(f"{mixer}-*/run")):
        results = {path.parent.name: json.loads(path.read_text()) for path in here.glob("*/result.json")}
        if LAST_STAGE in results:
            runs[int(here.parent.name.rpartition("-")[2])] = results
    return runs


def _cells(values: Sequence[float], form: str) -> str:
    """Mean over seeds, and each seed."""
    return f"{form.format(statistics.mean(values))} ({', '.join(form.format(value) for value in values)})"


def _greedy(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(loops for loops in result["loops"] if loops["temperature"] == 0.0)


def _task(run: Mapping[str, Any], stage: str, name: str) -> float:
    return 100 * float(run[stage]["tasks"][name]["value"])


def table(folder: Path, mixers: Sequence[str]) -> list[str]:
    """Markdown rows: one column per backbone, the mean of its seeds and each seed."""
    runs = {mixer: list(read(folder, mixer).values()) for mixer in mixers}
    lines = [
        "| | " + " | ".join(f"{NAMES[m]}, n = {len(runs[m])}" for m in mixers) + " |",
        "|---" * (len(mixers) + 1) + "|",
    ]

    def row(label: str, value: Any, form: str) -> None:
        cells = [_cells([value(run) for run in runs[mixer]], form) for mixer in mixers]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    row("parameters", lambda run: run["pretrain"]["parameters"] / 1e6, "{:.3f}M")
    row("bits per byte after pre-training", lambda run: run["pretrain"]["bits_per_byte"], "{:.3f}")
    for stage, name in STAGES.items():
        row(f"greedy loops after {name}, %", lambda run, stage=stage: 100 * _greedy(run[stage])["rate"], "{:.1f}")
    row(
        "pages that loop after SFT, %",
        lambda run: 100 * _greedy(run["measure-sft"])["by_task"]["page"]["rate"],
        "{:.1f}",
    )
    for temperature in (0.5, 1.0):
        row(
            f"loops after SFT at T = {temperature}, %",
            lambda run, t=temperature: (
                100 * next(x for x in run["measure-sft"]["loops"] if x["temperature"] == t)["rate"]
            ),
            "{:.1f}",
        )
    for stage, name in (("measure-sft", "SFT"), ("measure-grpo", "RL")):
        row(
            f"mean task value after {name}, %",
            lambda run, stage=stage: statistics.mean(_task(run, stage, task) for task in run[stage]["tasks"]),
            "{:.1f}",
        )
    for task in next(iter(runs[mixers[0]]))["measure-grpo"]["tasks"]:
        row(f"{task} after RL, %", lambda run, task=task: _task(run, "measure-grpo", task), "{:.0f}")
    return lines


def endings(folder: Path, mixers: Sequence[str]) -> list[str]:
    """Greedy answers after SFT once stopped at certain loops and once left alone: how many loop, or are cut off."""
    lines = [
        "| | stopped as a loop | left alone: in a loop at the end | left alone: cut off without one |",
        "|---|---:|---:|---:|",
    ]
    for mixer in mixers:
        for checkpoint in sorted(folder.glob(f"{mixer}-*/run/sft/checkpoint")):
            seed = int(checkpoint.parents[2].name.rpartition("-")[2])
            engine, _, words = engine_of(checkpoint, rows=512)
            prompts = PocketWorld(seed).loop_prone("held_out", 500)
            stopped, alone = (
                answer(engine, words, prompts, Sampling(0.0, 512, stop_on_loop=stop)) for stop in (True, False)
            )
            counts = (
                sum(rollout.loop is not None for rollout in stopped),
                sum(rollout.loop is not None for rollout in alone),
                sum(rollout.finish_reason == "length" and rollout.loop is None for rollout in alone),
            )
            lines.append(f"| {NAMES[mixer]}, seed {seed} | " + " | ".join(map(str, counts)) + " |")
    return lines


def speed(threads: int, rounds: int = 5) -> list[str]:
    """Training and decoding of the four shapes in turn, and the decode state of a row."""
    torch.set_num_threads(threads)
    configs = {mixer: ModelSettings(**recipe(mixer)["model"]).config(2048) for mixer in WIDTHS}
    steps = {mixer: training_step(config, rows=8, length=256, mean=64) for mixer, config in configs.items()}
    models = {mixer: Backbone(config).to(torch.bfloat16) for mixer, config in configs.items()}
    for model in models.values():
        model.initialise(seed=0)

    def decode(model: Backbone) -> float:
        tokens = torch.randint(8, 2000, (64, 32), generator=torch.Generator().manual_seed(0))
        with model.decoding():
            _, state = model.prefill(tokens, torch.full((64,), 32), 32 + 128)
            begin = time.perf_counter()
            for _ in range(128):
                model.step(tokens[:, 0], state)
            return 64 * 128 / (time.perf_counter() - begin)

    trained: dict[str, list[float]] = {mixer: [] for mixer in WIDTHS}
    decoded: dict[str, list[float]] = {mixer: [] for mixer in WIDTHS}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for mixer in WIDTHS:
            trained[mixer].append(2048 * 4 / sum(seconds(steps[mixer]) for _ in range(4)))
            decoded[mixer].append(decode(models[mixer]))
    head = "| | " + " | ".join(NAMES[mixer] for mixer in WIDTHS) + " |"

    def cells(values: Mapping[str, Sequence[float]]) -> str:
        return " | ".join(f"{statistics.median(v):,.0f} ({min(v):,.0f}–{max(v):,.0f})" for v in values.values())

    states = " | ".join(f"{sum(state_bytes(config, 512).values()):,}" for config in configs.values())
    return [
        head,
        "|---" * (len(WIDTHS) + 1) + "|",
        f"| training step without Muon, tokens/s | {cells(trained)} |",
        f"| decoding 64 rows, positions 32 to 160, tokens/s | {cells(decoded)} |",
        f"| decode state of a row at 512 tokens, bytes | {states} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table", "endings", "speed"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/operators"))
    parser.add_argument("--mixers", nargs="+", choices=tuple(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--threads", type=int, default=2, help="of the measurement of speed")
    flags = parser.parse_args()
    if flags.action == "run":
        with ThreadPoolExecutor(flags.jobs) as pool:
            runs = [pool.submit(train, flags.folder, mixer, seed, 1) for seed in flags.seeds for mixer in flags.mixers]
            for run in runs:
                run.result()
    else:
        actions = {
            "table": lambda: table(flags.folder, flags.mixers),
            "endings": lambda: endings(flags.folder, flags.mixers),
            "speed": lambda: speed(flags.threads),
        }
        print("\n".join(actions[flags.action]()))


if __name__ == "__main__":
    main()
