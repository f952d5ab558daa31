"""What a model without search knows of a made-up encyclopaedia that it has read, asked the questions of fictional_world.py.

It is trained from nothing on the facts of every page of that world, as favourably to it as can be: each page as a line of
nothing but its facts, their order shuffled, and every one-hop question with its answer in the form in which it is asked,
those of the measuring among them. One run at a flat rate; each number of readings is a branch that decays. What is there is
not run again, and an interrupted run goes on where it was.

    python benchmarks/agent/closed_book.py RUN_FOLDER --tokenizer runs/pocket/tokenizer/checkpoint [--readings 2 4 8] [--fifth] [--width 448] [--pages 10000] [--each 100] [--injections 500] [--seed 71] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from minnow.agent import Limits, SearchIndex
from minnow.agent.lookup_scores import measure_lookups
from minnow.cli.models import open_model
from minnow.data.loader import Loader, Source
from minnow.data.packing import pack
from minnow.data.tokenizer import Tokenizer
from minnow.files import read_json, write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.recipe.schema import ModelSettings
from minnow.recipe.stages.ladder import Branch, scaled, train_branch
from minnow.tasks.encyclopaedia import Entity, build
from minnow.tasks.made_world import MadeWorld, make
from minnow.tasks.questions import RELATIONS, WORDINGS, one_hop
from minnow.train.batches import Prefetch
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings

POCKET = ModelSettings(128, 384, ("conv", "attn") * 3, heads=4, kv_heads=2, head_dim=32, vocab_size=2048)
ROW_LENGTH = 128
ORDERS = 4
"""Orders of a page's facts; a pass over that source is so many readings."""
WARMUP_STEPS, DECAY = 20, 0.3

Document = tuple[list[int], list[bool]]


def entities_of(world: MadeWorld, seed: int, fifth: bool = False) -> list[Entity]:
    """What the true pages of ``world`` are about; of a ``fifth`` of them, those of the split that is asked about."""
    found = {page.id for page in world.pages}
    return [
        entity
        for entity in build(seed, len(world.pages))
        if entity.id in found and (entity.split == "held_out" or not fifth)
    ]


def pages(entities: Sequence[Entity], words: Tokenizer, rng: Random) -> Iterator[Document]:
    """Every page, once in each order, as "NAME: capital NAME, ruler NAME."; the name itself is not trained."""
    for _ in range(ORDERS):
        for entity in entities:
            facts = [f"{RELATIONS[entity.kind, each.outer].label} {each.gold}" for each in one_hop([entity])]
            rng.shuffle(facts)
            ids = [*words.begin, *words.encode(f"{entity.name}: {', '.join(facts)}."), words.eos_id]
            given = len(words.begin) + len(words.encode(entity.name))
            yield ids, [place >= given for place in range(len(ids))]


def questions(entities: Sequence[Entity], words: Tokenizer) -> Iterator[Document]:
    """Every one-hop question in each wording, with its answer, which alone is trained."""
    for wording in WORDINGS:
        for question in one_hop(list(entities)):
            asked = {"role": "user", "content": question.text(wording)}
            yield words.conversation([asked, {"role": "assistant", "content": question.reply}])


def branches(readings: Sequence[int], steps_per_reading: float) -> list[Branch]:
    """A run for each number of readings, fewest first."""
    steps = [max(2 * WARMUP_STEPS, round(each * steps_per_reading)) for each in sorted(readings)]
    return [Branch(each, run - round(DECAY * run), run) for each, run in zip(sorted(readings), steps, strict=True)]


def train(world: MadeWorld, words: Tokenizer, options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoint of each branch and what went into it, as they are done."""
    entities = entities_of(world, options.seed, options.fifth)
    config = scaled(POCKET, options.width).config(words.vocab_size)
    packed = {
        "pages": pack(pages(entities, words, Random(options.seed)), ROW_LENGTH, words.pad_id),
        "questions": pack(questions(entities, words), ROW_LENGTH, words.pad_id),
    }
    shares = {"pages": 1 - options.questions, "questions": options.questions}
    loader = Loader([Source(name, rows, shares[name]) for name, rows in packed.items()], options.rows, options.seed)
    steps_per_reading = len(packed["pages"]) / ORDERS / shares["pages"] / options.rows
    folder: Path = options.run
    rate = options.rate * (POCKET.hidden_size / options.width) ** 0.5
    chosen = OptimizerSettings(learning_rate=rate, muon=True, weight_decay=options.weight_decay)

    def part(name: str, steps: int, start: int, state: Path) -> Trainer:
        model = Backbone(config)
        model.initialise(options.seed)
        settings = TrainSettings(
            steps=steps,
            optimizer=chosen,
            warmup=WARMUP_STEPS / steps,
            decay=(steps - start) / steps,
            spike=0.0,
            log_every=20,
        )
        begun = time.perf_counter()

        def log(**line: Any) -> None:
            print(
                f"  {name}: step {line['step']}/{steps}, loss {line['loss']:.4f}, {line['tokens']:,} tokens, "
                f"{line['tokens_per_second']:,.0f} tokens/s, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )

        trainer = Trainer(model, next_token, Prefetch(lambda step: [loader.batch(step)]), settings, log, state)
        trainer.run(check=lambda trainer: True)  # a check makes it save its state at the end
        return trainer

    for run in branches(options.readings, steps_per_reading):
        done = folder / f"{run.ratio:g}"
        if not (done / "facts.json").exists():
            state = folder / f"{run.ratio:g}.pt"
            trainer = train_branch(run, f"{run.ratio:g} readings", state, part)
            save_checkpoint(trainer.model, words, done, trainer.optimizer.averaged())
            passes = loader.passes(run.steps * options.rows)
            facts = {
                "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
                "pages": len(entities),
                "page_readings": passes["pages"] * ORDERS,
                "question_readings": passes["questions"] * len(WORDINGS),
                "steps": run.steps,
                "tokens": trainer.tokens,
                "seconds": trainer.seconds,
            }
            write_json(done / "facts.json", facts)
            state.unlink()
        yield done, read_json(done / "facts.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder for checkpoints")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--readings", type=int, nargs="+", default=[2, 4, 8], help="of every page as a line of facts")
    parser.add_argument("--questions", type=float, default=0.35, help="share of questions among the rows")
    parser.add_argument("--fifth", action="store_true", help="read only the fifth of the pages that holds every answer")
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--rows", type=int, default=32, help=f"of {ROW_LENGTH} tokens, in a step")
    parser.add_argument("--rate", type=float, default=1e-2, help="peak learning rate at the pocket model's width")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run.mkdir(parents=True, exist_ok=True)
    world = make(options.seed, options.pages, options.each, options.injections)
    index = SearchIndex.build(world.pages)
    document = []
    for checkpoint, facts in train(world, Tokenizer.load(options.tokenizer), options):
        with open_model(checkpoint, threads=1, max_new_tokens=32) as model:
            limits = Limits(max_new_tokens=32, max_context=model.context)
            made, _ = measure_lookups(model.engine, model.tokenizer, world, index, limits, ("closed book",))
        exact = {kind: each["exact"] for kind, each in made["closed book"].items()}
        document.append(facts | {"exact": exact})
        print(
            f"{facts['parameters']:,} parameters, {facts['pages']:,} pages, each read {facts['page_readings']:.1f} times and "
            f"every question {facts['question_readings']:.1f} times: {facts['tokens']:,} tokens, {facts['steps']:,} steps, "
            f"{facts['seconds']:.0f} s\n  "
            + ", ".join(f"{kind} {each['rate']:.1%} of {each['total']}" for kind, each in exact.items()),
            flush=True,
        )
        if options.json:
            write_json(options.json, document)


if __name__ == "__main__":
    main()
