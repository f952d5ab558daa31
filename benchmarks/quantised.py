"""What Q4_0 loses on a finished run's model, and what importance and quantisation-aware fine-tuning give back.

Fine-tunes with the `quantise` stage on the run's own recipe, exports Q4_0 files, and compares them under llama.cpp: mean
KL of the checkpoint's answers, task score (mean verifier value), and greedy doom loops, all on held-out prompts.

    python benchmarks/quantised.py runs/pocket [--stage merge] [--examples 100] [--loops 200] [--steps 800] [--rate 1e-4]
                                   [--out runs/quantised] [--only kl] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import plan_export
from minnow.device.importance import column_importance
from minnow.device.llama_engine import LlamaEngine
from minnow.device.parity import check_parity, own_sequences
from minnow.evaluate.measure import answer, score
from minnow.files import read_json
from minnow.model.checkpoint import load_checkpoint
from minnow.recipe.registry import stage_kinds
from minnow.recipe.runner import run
from minnow.recipe.schema import parse_recipe
from minnow.recipe.stages.prompts import prompts_of
from minnow.rollout import Sampling


def fine_tuned(options: argparse.Namespace, checkpoint: Path, written: dict[str, Any]) -> Path:
    """The checkpoint of the `quantise` stage on the run's recipe."""
    settings: dict[str, Any] = {"checkpoint": "base"}
    for pair in options.set:
        name, _, value = pair.partition("=")
        *parents, last = name.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(value)
    optimizer = {"learning_rate": options.rate, "muon": False, "weight_decay": 0.0}
    settings["training"] = {"steps": options.steps, "optimizer": optimizer, "log_every": 10}
    recipe = written | {
        "run_folder": str(options.out),
        "checkpoint": str(checkpoint),
        "threads": 1,
        "stages": {"base": {"kind": "checkpoint"}, "quantise": settings},
    }
    run(parse_recipe(recipe, stage_kinds()))
    return options.out / "quantise" / "checkpoint"


def scores(file: Path, words: Tokenizer, written: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    drawn = written | {"checkpoint": str(options.run), "stages": {"base": {"kind": "checkpoint"}}}
    prompts = prompts_of(parse_recipe(drawn, stage_kinds()))
    tasks, loops = prompts.to_measure((), options.examples, options.loops)
    with LlamaEngine(file, words) as engine:
        scored = answer(engine, words, tasks, Sampling(0.0, max_new_tokens=384))
        looped = answer(engine, words, loops, Sampling(0.0, max_new_tokens=options.max_new_tokens))
    return {
        "task_score": sum(score(e, r).value for e, r in zip(tasks, scored, strict=True)) / len(tasks),
        "answers": len(tasks),
        "loops": sum(each.finish_reason != "stop" for each in looped),
        "prompts": len(loops),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    checkpoint = options.run / options.stage / "checkpoint"
    written = read_json(options.run / "recipe.json")["recipe"]
    model, words = load_checkpoint(checkpoint)
    tuned = fine_tuned(options, checkpoint, written)
    costs = column_importance(model, own_sequences(model, words, count=64, length=256, seed=7))
    better = load_checkpoint(tuned)[0]
    tuned_costs = column_importance(better, own_sequences(better, words, count=64, length=256, seed=7))
    plans = {
        "F16": plan_export(checkpoint, "F16"),
        "Q8_0": plan_export(checkpoint, "Q8_0"),
        "Q4_0": plan_export(checkpoint, "Q4_0"),
        "Q4_0, importance": plan_export(checkpoint, "Q4_0", None, costs),
        "Q4_0, fine-tuned": plan_export(tuned, "Q4_0"),
        "Q4_0, fine-tuned, importance": plan_export(tuned, "Q4_0", None, tuned_costs),
    }
    files = [plan.write(options.out / f"{name.replace(', ', '-')}.gguf").file for name, plan in plans.items()]
    parities = check_parity(checkpoint, files, own_sequences(model, words, count=64, length=200, seed=1))
    found = {name: parity.as_dict() for name, parity in zip(plans, parities, strict=True)}
    if options.only != "kl":
        for name, file in zip(plans, files, strict=True):
            found[name] |= scores(file, words, written, options)
            print(json.dumps({"file": name, **found[name]}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", default="merge")
    parser.add_argument("--examples", type=int, default=100, help="of every task")
    parser.add_argument("--loops", type=int, default=200, help="loop-prone prompts")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of an answer to those")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="settings of the quantise stage")
    parser.add_argument("--out", type=Path, default=Path("runs/quantised"))
    parser.add_argument("--only", choices=("kl",))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options)
    print("| file | agreement | mean KL | perplexity | task score | loops |\n|---|---:|---:|---:|---:|---:|")
    for name, row in found.items():
        cells = [f"{row['agreement']:.2%}", f"{row['mean_kl']:.5f}", f"{row['perplexity']:.4f}"]
        if "task_score" in row:
            cells += [f"{row['task_score']:.4f}", f"{row['loops']} of {row['prompts']}"]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"options": settings, "files": found}, indent=2))


if __name__ == "__main__":
    main()
