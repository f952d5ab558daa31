"""Answers of real models, labelled by what came after the place where a rule sees them cut.

Each checkpoint answers its pocket world's held-out loop-prone prompts greedily and is never stopped. Where an answer has
not ended after ``--shown`` tokens, it is cut there for the rules, and goes on for the label: a *loop* has not ended after
``--budget`` tokens either, and nine tenths of the 8-grams of its very last 512 stood in it before: it goes on and on without
saying anything new. It is none if it ended by itself, however late. What is neither is counted and left out. No rule
looks at anything after the cut, so the label owes nothing to any of them.

    python benchmarks/loops/real_answers.py CHECKPOINT ... --out answers.jsonl.xz [--n 200] [--shown 1024]
        [--budget 2560]
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from positives import Case

ENDLESS, ENDED_LATER, ENDED = "real answers, endless", "real answers, ended later", "real answers, ended"


def label(tokens: Sequence[int], ended: bool, shown: int) -> str | None:
    """The type of an answer by its outcome; None where that does not tell."""
    if ended:
        return ENDED if len(tokens) <= shown else ENDED_LATER
    before, last = _grams(tokens[:-512]), _grams(tokens[-512:])
    return ENDLESS if len(before & last) >= 0.9 * len(last) else None


def _grams(tokens: Sequence[int], size: int = 8) -> set[tuple[int, ...]]:
    return {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}


def labelled(checkpoint: Path, n: int, shown: int, budget: int) -> Iterator[dict[str, Any]]:
    """Rows ``text``, ``content``, ``id`` and ``model``; ``content`` is None where the outcome does not tell."""
    from minnow.recipe.run_record import world_of
    from minnow.recipe.stages.sources import engine_of
    from minnow.rollout import Sampling

    engine, _, tokenizer = engine_of(checkpoint)
    world = world_of(checkpoint)
    examples = world.loop_prone("held_out", n)
    prompts = [(example.id, tokenizer.prompt(example.messages, example.tools)) for example in examples]
    for rollout in engine.generate(prompts, Sampling(0.0, budget, stop_on_loop=False)):
        text = tokenizer.decode(rollout.token_ids[:shown])
        content = label(rollout.token_ids, rollout.finish_reason == "stop", shown)
        stage = checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name
        yield {"text": text, "content": content, "id": rollout.prompt_id, "model": f"seed {world.seed}, {stage}"}


def read_answers(file: Path) -> Iterator[Case]:
    """The labelled answers as cases of the benchmark; their onsets are not known."""
    with lzma.open(file, "rt", encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            yield Case(row["text"], 0, row["content"] == ENDLESS, row["content"], "english")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=200, help="loop-prone prompts of each checkpoint")
    parser.add_argument("--shown", type=int, default=1024, help="tokens that a rule may see")
    parser.add_argument("--budget", type=int, default=2560, help="tokens after which an answer counts as endless")
    options = parser.parse_args()
    kept: list[dict[str, Any]] = []
    for checkpoint in options.checkpoints:
        rows = list(labelled(checkpoint, options.n, options.shown, options.budget))
        print(f"{checkpoint}: {dict(Counter(row['content'] or 'unclear' for row in rows))}", flush=True)
        kept += [row for row in rows if row["content"]]
    with lzma.open(options.out, "wt", encoding="utf-8", preset=9) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)


if __name__ == "__main__":
    main()
