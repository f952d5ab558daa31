"""What ending an answer early costs and saves: answers that ran on, read again by the watch that would have stopped them.

Each checkpoint answers its pocket world's loop-prone prompts once, never stopped, and every answer is replayed through
``LoopWatch`` for several persistences. A row is clean when its answer ended by itself or is in no loop where the budget
ends. Prints clean rows cut, loops stopped and tokens saved for each persistence.

    python benchmarks/early_stop.py CHECKPOINT ... [--split held_out] [--n 500] [--skip 0] [--budget 1024] [--temperature 0]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minnow.loops import CUT_AFTER, LoopWatch, Rate
from minnow.recipe.run_record import world_of
from minnow.recipe.stages.sources import engine_of
from minnow.rollout import Rollout, Sampling, TorchEngine

PERSISTENCES = (0, 64, 128, 256, 384, 512, 640, CUT_AFTER)


def answers(checkpoint: Path, split: str, skip: int, n: int, sampling: Sampling) -> tuple[TorchEngine, list[Rollout]]:
    engine, _, tokenizer = engine_of(checkpoint)
    examples = world_of(checkpoint).loop_prone(split, skip + n)[skip:]
    return engine, engine.generate([(e.id, tokenizer.prompt(e.messages, e.tools)) for e in examples], sampling)


def stops(engine: TorchEngine, rollouts: Sequence[Rollout], persistence: int) -> list[int | None]:
    """Tokens after which each answer would have been cut, None where it would not."""
    rows = [rollout.token_ids for rollout in rollouts]
    watch = LoopWatch(
        len(rows), lexicon=engine.lexicon, persistence=persistence,
        text=lambda row: engine.tokenizer.decode(rows[row][: step + 1], keep_special=True),
    )  # fmt: skip
    found: list[int | None] = [None] * len(rows)
    for step in range(max(map(len, rows))):
        active = np.array([step < len(row) and stop is None for row, stop in zip(rows, found, strict=True)])
        tokens = np.array([row[step] if step < len(row) else 0 for row in rows])
        for row in watch.push(tokens, active):
            found[row] = step + 1
    return found


def figures(rollouts: Sequence[Rollout], found: Sequence[int | None]) -> dict[str, Any]:
    clean = [stop for rollout, stop in zip(rollouts, found, strict=True) if rollout.loop is None]
    loops = [(len(rollout.token_ids), stop) for rollout, stop in zip(rollouts, found, strict=True) if rollout.loop]
    saved = sum(size - stop for size, stop in loops if stop is not None)
    return {
        "clean_rows_cut": Rate(sum(stop is not None for stop in clean), len(clean)).as_dict(),
        "loops_stopped": Rate(sum(stop is not None for _, stop in loops), len(loops)).as_dict() if loops else None,
        "loop_tokens_saved": round(saved / max(1, sum(size for size, _ in loops)), 4),
        "tokens_saved": saved,
        "tokens": sum(len(rollout.token_ids) for rollout in rollouts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--split", choices=["train", "held_out"], default="held_out")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--skip", type=int, default=0, help="prompts passed over first")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sampling = Sampling(options.temperature, options.budget, stop_on_loop=False)
    rollouts: list[Rollout] = []
    found: dict[int, list[int | None]] = {persistence: [] for persistence in PERSISTENCES}
    for checkpoint in options.checkpoints:
        engine, some = answers(checkpoint, options.split, options.skip, options.n, sampling)
        rollouts += some
        for persistence in PERSISTENCES:
            found[persistence] += stops(engine, some, persistence)
    report = {persistence: figures(rollouts, stop) for persistence, stop in found.items()}
    print(f"{'lasted':>6} {'clean rows cut':>16} {'loops stopped':>14} {'of their tokens':>15} {'of all tokens':>13}")
    for persistence, one in report.items():
        clean, loops = one["clean_rows_cut"], one["loops_stopped"]
        stopped = f"{loops['count']}/{loops['total']}" if loops else "-"
        print(
            f"{persistence:6} {clean['count']:>9}/{clean['total']:<6} {stopped:>14} {one['loop_tokens_saved']:>15.1%} "
            f"{one['tokens_saved'] / one['tokens']:>13.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
