"""A DPO step of Minnow against TRL's: same checkpoint, pairs, loss and AdamW, reference log-probabilities cached by both.

TRL's own trainer runs as its users run it, with its defaults (bfloat16 autocast, gradient checkpointing) and tuned for
a CPU (no checkpointing; the faster of bfloat16 and float32), and takes turns with Minnow's, step by step. Length-normalised DPO with beta 5.

    python benchmarks/dpo_step.py [--model pocket llama lfm2] [--rounds 5] [--prompt 64] [--answer 192] [--json FILE]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from against_trl import MODELS, PLAIN, Turn, alternate, compare, make_checkpoint
from minnow.model.checkpoint import load_model
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.optimizer import OptimizerSettings
from minnow.train.precision import compute_dtype
from minnow.train.preference import AnswerPair, Preference, pair_batch
from minnow.train.reference import Reference

WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned, bf16": {"gradient_checkpointing": False},
    "tuned, fp32": {"gradient_checkpointing": False, "bf16": False},
}
RATE = 1e-5


def run(name: str, way: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, single = make_checkpoint(name, folder / "model")
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choices(single, k=length))

    steps = options.rounds + options.warm
    pairs = options.pairs if name != "pocket" else options.pocket_pairs
    rows = [
        {"prompt": text(options.prompt), "chosen": text(options.answer), "rejected": text(options.answer)}
        for _ in range(pairs)
    ]
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=trl.DPOConfig(
            str(folder / "trl"),
            loss_type=["sigmoid_norm"],
            beta=5.0,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=pairs,
            max_steps=steps + 1,
            learning_rate=RATE,
            **PLAIN,
            **WAYS[way],
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    prepared = list(trainer.train_dataset)
    asked = [AnswerPair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in prepared]
    theirs = Turn(trainer)

    settings = Preference(sft=0.0)
    prompts = [pair.prompt for pair in asked for _ in range(2)]
    answers = [answer for pair in asked for answer in (pair.chosen, pair.rejected)]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    reference = Reference(folder / "model", folder / "reference", compute_dtype())
    known = reference.log_probs(prompts, answers, width)

    def batches(step: int) -> list[Any]:
        batch = pair_batch(asked, width, settings)
        batch.reference = batch.placed(known)
        return [batch]

    optimizer = OptimizerSettings(learning_rate=RATE, muon=False, weight_decay=0.0, betas=(0.9, 0.999))
    losses: list[float] = []
    ours = Trainer(
        load_model(folder / "model"),
        settings,
        batches,
        TrainSettings(steps, optimizer, warmup=0.0, decay=0.0, save_seconds=1e9, log_every=1),
        lambda **values: losses.append(values["loss"]),
        folder / "state.pt",
    )

    def minnow(after: Callable[[], None]) -> None:
        ours.run(progress=lambda *_: after())

    found = alternate(minnow, theirs.take, options.warm)
    last = len(theirs.losses) - 1  # TRL notes a step's loss when it begins the next
    seen = " and ".join(f"{values[0]:.3f} → {values[last]:.3f}" for values in (losses, theirs.losses))
    return {"seen": seen, "pairs": pairs, **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2, help="in a step of the 58M models")
    parser.add_argument("--pocket-pairs", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--answer", type=int, default=192, help="tokens")
    compare(parser, run, "loss of the first and the last step, Minnow and TRL")
