"""What the decoding guard does to the loop rate of a checkpoint, its task scores and the tokens spent, greedily.

Answers the held-out loop-prone prompts of the checkpoint's pocket world, and examples of all its tasks: as the model is,
with the guard, and with the penalties that are published instead; nothing is stopped early. A loop is the verdict where
the answer ends: over ids, and over text.

    python benchmarks/guard.py CHECKPOINT ... [--n 500] [--each 60] [--budget 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.measure import answer, tally
from minnow.loops import Dry, LzPenalty, Penalty, Rate, breaker_tokens, find_text_loops
from minnow.recipe.run_record import world_of
from minnow.recipe.stages.sources import engine_of
from minnow.rollout import Guard, Rollout, Sampling
from minnow.tasks import Example


@dataclass(frozen=True)
class Arm:
    """One way of decoding."""

    guard: Guard | None = None
    penalties: tuple[Penalty, ...] = ()


def arms(tokenizer: Tokenizer) -> dict[str, Arm]:
    """Every way of decoding, by its name: penalties at their authors' settings, then DRY weaker and LZ stronger."""
    breakers = breaker_tokens([tokenizer.decode([token]) for token in range(tokenizer.vocab_size)])
    return {
        "nothing": Arm(),
        "guard": Arm(Guard()),
        "DRY 0.8": Arm(penalties=(Dry(breakers=breakers),)),
        "DRY 0.8, from 8 tokens on": Arm(penalties=(Dry(allowed_length=8, breakers=breakers),)),
        "LZ 0.15": Arm(penalties=(LzPenalty(),)),
        "LZ 0.3": Arm(penalties=(LzPenalty(strength=0.3),)),
    }


def figures(examples: Sequence[Example], rollouts: Sequence[Rollout]) -> dict[str, Any]:
    ran_on = [rollout for rollout in rollouts if rollout.finish_reason != "stop"]
    by_text = sum(loop is not None for loop in find_text_loops([rollout.text for rollout in ran_on]))
    scores = tally(examples, rollouts)
    kept, discarded = sum(len(r.token_ids) for r in rollouts), sum(r.discarded for r in rollouts)
    return {
        "loops": Rate(sum(rollout.loop is not None for rollout in rollouts), len(rollouts)).as_dict(),
        "loops_by_text": Rate(by_text, len(rollouts)).as_dict(),
        "ended": sum(rollout.finish_reason == "stop" for rollout in rollouts),
        "score": round(scores.mean_value, 4),
        "correct": sum(rate.count for rate in scores.rates.values()),
        "tokens_kept": kept,
        "tokens_discarded": discarded,
        "rewinds": dict(sorted(Counter(rollout.rewinds for rollout in rollouts).items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--n", type=int, default=500, help="loop-prone prompts")
    parser.add_argument("--each", type=int, default=60, help="examples of every task")
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sampling = Sampling(0.0, options.budget, stop_on_loop=False)
    report: dict[str, Any] = {}
    print(
        f"{'':30} {'loops':>9} {'by text':>7} {'ended':>5} {'score':>6} {'correct':>7} {'kept':>7} {'thrown':>7} "
        f"{'seconds':>7}  answers by rewinds"
    )
    for checkpoint in options.checkpoints:
        engine, _, tokenizer = engine_of(checkpoint)
        world = world_of(checkpoint)
        tasks = [example for task in world.TASKS for example in world.examples(task, "held_out", options.each)]
        sets = {"loop-prone": world.loop_prone("held_out", options.n), "all tasks": tasks}
        for name, examples in sets.items():
            print(f"{checkpoint}, {name}")
            for name_of_arm, arm in arms(tokenizer).items():
                engine.guard, engine.penalties = arm.guard, arm.penalties
                begun = time.process_time()
                rollouts = answer(engine, tokenizer, examples, sampling)
                seconds = time.process_time() - begun
                one = figures(examples, rollouts) | {"cpu_seconds": round(seconds, 1)}
                report.setdefault(str(checkpoint), {}).setdefault(name, {})[name_of_arm] = one
                loops = one["loops"]
                print(
                    f"  {name_of_arm:28} {loops['count']:>4}/{loops['total']} {one['loops_by_text']['count']:>7} "
                    f"{one['ended']:>5} {one['score']:>6.3f} {one['correct']:>7} {one['tokens_kept']:>7} "
                    f"{one['tokens_discarded']:>7} {seconds:>7.1f}  {one['rewinds']}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
