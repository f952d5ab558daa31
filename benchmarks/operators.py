"""Do convolution hybrids doom-loop more or less than attention-only and delta-net models?

Trains the pocket recipe up to RL with four backbones of matched size that differ in every other layer's mixer, each
with several seeds, and prints loop rates, task scores, training speed and memory.

    python benchmarks/operators.py run runs/operators [--mixers attn conv sliding delta] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/operators.py table runs/operators [--json]

``run`` continues where it was stopped: a finished stage is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixers", nargs="+", choices=tuple(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    if flags.action == "run":
        with ThreadPoolExecutor(flags.jobs) as pool:
            runs = [pool.submit(train, flags.folder, mixer, seed, 1) for seed in flags.seeds for mixer in flags.mixers]
            for run in runs:
                run.result()


if __name__ == "__main__":
    main()
