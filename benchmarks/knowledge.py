"""Knowledge capacity: bits of made facts that models of several sizes keep after so many exposures (arXiv 2404.05405).

    python benchmarks/knowledge.py RUN_FOLDER [--sizes 32:1000 64:400] [--exposures 25 100 400 1000] [--out FILE.json]

Every size gets a table of its own with ``--offered`` bits per parameter: people of eight attributes, each one of 128
words. It is trained once at a flat rate; each number of exposures is a branch that decays. What is there is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.files import read_json, whole_file, write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.model.config import ModelConfig
from minnow.recipe.schema import ModelSettings
from minnow.recipe.stages.ladder import Branch, scaled, train_branch
from minnow.rollout.scoring import TorchScorer
from minnow.scaling.knowledge import Facts, read_facts, stored
from minnow.tasks.encyclopaedia import BLOCK, BLOCK_SIZE, COLOURS, PROFESSIONS
from minnow.tasks.extraction import ITEMS
from minnow.tasks.names import GIVEN, PLACE_FIRST, SECOND
from minnow.train.batches import Prefetch
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings, choose_muon

WORDS = SECOND[:128]
ATTRIBUTES = ("home", "school", "teacher", "employer", "partner", "street", "ship", "rival")
SENTENCE = "{name} " + " ".join(f"{{{attribute}}}" for attribute in ATTRIBUTES)
SHAPE = ModelSettings(
    hidden_size=32, intermediate_size=96, layers=("conv", "attn"), heads=1, kv_heads=1, head_dim=32, vocab_size=672
)
ROW_LENGTH, WARMUP_STEPS, DECAY = 104, 50, 0.2  # a row holds eight people
SEARCH = 0.956  # one-hop questions that the pocket model answers with search: docs/results/pocket.md


def people(count: int, seed: int) -> Facts:
    """``count`` people of different names, every attribute drawn evenly from 128 words: 7 bits each."""
    draw = Random(f"{seed}/people")
    names: dict[str, None] = {}
    while len(names) < count:
        names[" ".join((draw.choice(GIVEN), draw.choice(WORDS), draw.choice(WORDS)))] = None
    values = {attribute: tuple(draw.choices(WORDS, k=count)) for attribute in ATTRIBUTES}
    return Facts("name", tuple(names), values)


def config_of(width: int, words: Tokenizer) -> ModelConfig:
    return scaled(SHAPE, width).config(words.vocab_size)


def size_of(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Backbone(config).parameters())


def branches(exposures: Sequence[int], rows: int, batch: int) -> list[Branch]:
    """A run for each number of exposures, fewest first: so many passes over ``rows`` rows, ``batch`` at a step."""
    steps = [max(2 * WARMUP_STEPS, round(each * rows / batch)) for each in sorted(exposures)]
    return [Branch(each, run - round(DECAY * run), run) for each, run in zip(sorted(exposures), steps, strict=True)]


def train(width: int, exposures: Sequence[int], folder: Path, options: argparse.Namespace) -> None:
    """All branches of one size; each leaves a checkpoint, and the size's facts lie beside them as ``facts.csv``."""
    words = tokenizer(options.runs)
    config = config_of(width, words)
    size = size_of(config)
    facts = people(round(options.offered * size / (7 * len(ATTRIBUTES))), options.seed)
    with whole_file(folder / "facts.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("name", *ATTRIBUTES))
        table.writerows(zip(facts.names, *facts.values.values(), strict=True))
    texts = words.encode_batch([SENTENCE.format(**row) for row in facts.rows()])
    packed = pack((([*words.begin, *ids, words.eos_id], None) for ids in texts), ROW_LENGTH, words.pad_id)
    batch = max(1, round(len(packed) / options.steps))
    loader = Loader(packed, batch, options.seed)
    rate = options.rate * (SHAPE.hidden_size / width) ** 0.5
    chosen = OptimizerSettings(learning_rate=rate, weight_decay=options.weight_decay)

    def part(name: str, steps: int, start: int, state: Path) -> Trainer:
        model = Backbone(config)
        model.initialise(options.seed)
        optimizer = choose_muon(chosen, model, batch * ROW_LENGTH)
        settings = TrainSettings(
            steps=steps, optimizer=optimizer, warmup=WARMUP_STEPS / steps, decay=(steps - start) / steps, spike=0.0
        )
        batches = Prefetch(lambda step: [loader.batch(step)])

        def log(**line: Any) -> None:
            if line["step"] % 500 == 0 or line["step"] == steps:
                print(f"  width {width} {name}: {line['step']}/{steps} loss {line['loss']:.4f}", flush=True)

        trainer = Trainer(model, next_token, batches, settings, log, state)
        trainer.run(check=lambda trainer: True)  # a check makes it save its state at the end
        return trainer

    for run in branches(exposures, len(packed), batch):
        done = folder / f"{run.ratio:g}"
        if (done / "config.json").exists():
            continue
        state = folder / f"{run.ratio:g}.pt"
        trainer = train_branch(run, f"{run.ratio:g} exposures", state, part)
        save_checkpoint(trainer.model, words, done, trainer.optimizer.averaged())
        write_json(folder / f"{run.ratio:g}.json", {"steps": run.steps, "tokens": trainer.tokens, "rate": rate})
        state.unlink()


def tokenizer(folder: Path) -> Tokenizer:
    """One tokenizer for all sizes: it writes every word of the tables as one token."""
    place = folder / "tokenizer"
    if not (place / "tokenizer.json").exists():
        texts = [f"{given} {word} {word} {word}" for given in GIVEN for word in WORDS]
        train_tokenizer(texts, SHAPE.vocab_size).save(place)
    return Tokenizer.load(place)


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each checkpoint of one size."""
    facts = read_facts(folder / "facts.csv", "name")
    rows = []
    for done in sorted(folder.glob("*/config.json"), key=lambda file: float(file.parent.name)):
        model, words = load_checkpoint(done.parent)
        size = sum(parameter.numel() for parameter in model.parameters())
        found = stored(TorchScorer(model, words.pad_id), words, facts, SENTENCE, options.rows, options.seed)
        known = read_json(folder / f"{done.parent.name}.json")
        rows.append(
            {
                "width": model.config.hidden_size,
                "params": size,
                "exposures": float(done.parent.name),
                "people": len(facts.names),
                "offered_bits_per_param": facts.bits / size,
                "bits_per_param": found.bits / size,
                "low": found.low / size,
                "high": found.high / size,
                "recalled": sum(each.recalled.count for each in found.attributes)
                / sum(each.recalled.total for each in found.attributes),
                **known,
            }
        )
    return rows


def encyclopaedia_bits(entities: int) -> float:
    """Bits of the pocket world's encyclopaedia, by what is drawn for it: each entity's province of 25, and its facts.

    Names are taken as known, as they are when a question names one; only the lakes' are facts themselves.
    """
    provinces = entities // BLOCK_SIZE
    towns, people, companies, rivers = (BLOCK[kind] for kind in ("town", "person", "company", "river"))
    lakes = 0.8 * len(PLACE_FIRST) * len(SECOND)  # names of one split
    drawn = {
        "province": towns * people,  # capital and ruler
        "town": rivers * people * 900 * len(ITEMS),
        "person": len(PROFESSIONS) * towns * companies,
        "company": towns * len(ITEMS) * people,
        "river": 881 * lakes,
        "plant": len(COLOURS) * len(ITEMS),
    }
    facts = sum(BLOCK[kind] * math.log2(choices) for kind, choices in drawn.items())
    return provinces * (facts + (BLOCK_SIZE - 1) * math.log2(provinces))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder for checkpoints")
    parser.add_argument(
        "--sizes", nargs="+", default=["32:1000", "64:400", "96:100", "128:25"], help="WIDTH:MOST_EXPOSURES"
    )
    parser.add_argument("--exposures", nargs="+", type=int, default=[25, 100, 400, 1000])
    parser.add_argument("--offered", type=float, default=2.5, help="bits in the table for each parameter")
    parser.add_argument("--steps", type=int, default=34, help="steps for each exposure, of all sizes")
    parser.add_argument("--rate", type=float, default=2e-2, help="peak learning rate at width 32")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--rows", type=int, default=2000, help="people that are asked for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for each in options.sizes:
        width, most = map(int, each.split(":"))
        folder = options.runs / f"width-{width}"
        begin = time.perf_counter()
        train(width, [count for count in options.exposures if count <= most], folder, options)
        print(f"width {width}: {time.perf_counter() - begin:.0f} s", flush=True)
        found = measure(folder, options)
        for row in found:
            print(
                f"{row['params']:>9,} parameters {row['exposures']:>6g} exposures: {row['bits_per_param']:.3f} bits per "
                f"parameter of {row['offered_bits_per_param']:.2f} offered, {row['recalled']:.1%} recalled",
                flush=True,
            )
        rows += found
    sizes = {entities: encyclopaedia_bits(entities) for entities in (6_000, 60_000, 600_000, 6_000_000)}
    for entities, bits in sizes.items():
        held = ", ".join(f"{SEARCH * bits / row['bits_per_param']:,.0f} at {row['bits_per_param']:.2f}" for row in rows)
        print(f"{entities:>9,} entities, {bits:,.0f} bits; parameters that know {SEARCH:.1%}: {held}")
    if options.out:
        options.out.write_text(
            json.dumps({"rows": rows, "encyclopaedia_bits": sizes}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
